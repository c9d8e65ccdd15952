"""The `.litertlm` file: sections, their header, and a file that appears only when it is complete.

    "LITERTLM" version header_end | header flatbuffer | section | section | ...

Every section starts at a multiple of 16 KiB. The header is written here and not by
`litert_lm_builder.LitertLmFileBuilder`, because that one stamps a random uuid and the clock into
it, and wants every section as a finished file; schema and constants are the builder's own.
"""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import flatbuffers

from converter.errors import OutputError
from converter.graph.kv_cache import CacheShape
from converter.schemas import BLOCK_SIZE, HEADER_BEGIN, HEADER_END_AT, MAGIC, VERSION
from converter.schemas import executor_metadata_pb2 as proto
from converter.schemas import header as schema

FIRST_SECTION = 16 * 1024  # where it begins: the header, a few hundred bytes, has room before it
_SYNC_INTERVAL = 0.1  # seconds
# Bytes per system call. The larger the call, the larger the pieces of memory that Linux wants for
# its page cache, and a virtual machine's host may have taken those back: 1 MiB at once took up to
# ten times as long (benchmarks/README.md).
_WRITE_SIZE = 256 * 1024
ENGINE_VERSION = "0.18"  # the LiteRT-LM release whose behaviour shared/runtime-contract.md measures


@dataclass(frozen=True)
class Section:
    """One part of the bundle.

    Attributes:
        kind: a name in the schema's `AnySectionDataType`.
        nbytes: its size.
        items: its key-value pairs in the header.
    """

    kind: str
    nbytes: int
    items: Mapping[str, str]


@dataclass(frozen=True)
class BundleLayout:
    """Where everything goes: the header's bytes, each section's offset, and the file's size."""

    header: bytes
    offsets: tuple[int, ...]
    nbytes: int


def lay_out(sections: Sequence[Section], system: Mapping[str, str]) -> BundleLayout:
    """Place the sections one after another and write the header.

    Args:
        sections: in file order.
        system: key-value pairs about the whole file.
    """

    def aligned(position: int) -> int:
        return position + -position % BLOCK_SIZE

    # The header's size does not depend on the offsets in it, as long as none is 0.
    size = len(_header(sections, [(1, 1)] * len(sections), system))
    assert size <= FIRST_SECTION
    ranges, position = [], size
    for section in sections:
        begin = aligned(position)
        position = begin + section.nbytes
        ranges.append((begin, position))
    return BundleLayout(
        _header(sections, ranges, system), tuple(begin for begin, _ in ranges), position
    )


def _header(
    sections: Sequence[Section], ranges: Sequence[tuple[int, int]], system: Mapping[str, str]
) -> bytes:
    def pairs(items: Mapping[str, str]) -> list[schema.KeyValuePairT]:
        return [
            schema.KeyValuePairT(
                key=key, value=schema.StringValueT(value), valueType=schema.VData.StringValue
            )
            for key, value in items.items()
        ]

    metadata = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=pairs(system)),
        sectionMetadata=schema.SectionMetadataT(
            objects=[
                schema.SectionObjectT(
                    items=pairs(section.items),
                    dataType=getattr(schema.AnySectionDataType, section.kind),
                    beginOffset=begin,
                    endOffset=end,
                )
                for section, (begin, end) in zip(sections, ranges, strict=True)
            ]
        ),
    )
    builder = flatbuffers.Builder(4096)
    builder.Finish(metadata.Pack(builder))
    packed = bytes(builder.Output())
    head = MAGIC + b"".join(number.to_bytes(4, "little") for number in VERSION)
    head = head.ljust(HEADER_END_AT, b"\0")
    end = HEADER_BEGIN + len(packed)
    return head + end.to_bytes(8, "little") + packed


def tokenizer_section(kind: str, data: bytes) -> bytes:
    """The bytes of a tokenizer section: a tokenizer.json is compressed, after its size."""
    if kind != "HF_Tokenizer_Zlib":
        return data
    return len(data).to_bytes(8, "little") + zlib.compress(data, level=1)


def executor_metadata(caches: Sequence[CacheShape], cache_length: int) -> bytes:
    """ExecutorMetadata: one k and one v cache per layer.

    A ring is called local. Without mask settings the engine makes no mask for it: the graph does.
    """
    message = proto.ExecutorMetadata()
    executor = message.llm_executor_metadata
    executor.max_history_size = cache_length
    for layer, shape in enumerate(caches):
        scope = "LOCAL" if shape.is_ring else "GLOBAL"
        for cache, kind, sequence_axis in (("k", "KEY", 2), ("v", "VALUE", shape.v_axis)):
            name = f"kv_cache_{cache}_{layer}"
            executor.state_buffers.add(
                prefill_input_name=name,
                prefill_output_name=name,
                decode_input_name=name,
                decode_output_name=name,
                type=f"TYPE_{scope}_{kind}_CACHE",
                sequence_axis=sequence_axis,
                minimum_sequence_length=shape.window if shape.is_ring else None,
                maximum_sequence_length=shape.slots,
            )
    return message.SerializeToString(deterministic=True)


class AtomicFile:
    """A file that is written in any order, by any thread, and appears whole or not at all.

    The bytes go to a temporary sibling; `commit` syncs and renames it. Leaving the context without
    a commit removes it, and the folders that were made for it.

    Raises:
        OutputError: the folder cannot be made or written, or the disk is full.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._temporary: Path | None = None
        self._made: list[Path] = []  # folders that were missing, innermost first
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._sync_error: OSError | None = None
        # A daemon, as an interrupt may come before anybody can end it.
        self._syncing = threading.Thread(target=self._sync_early, daemon=True)

    def __enter__(self) -> AtomicFile:
        try:
            folders = (self.target.parent, *self.target.parent.parents)
            self._made = [folder for folder in folders if not folder.exists()]
            self.target.parent.mkdir(parents=True, exist_ok=True)
            name = f".{self.target.name}."
            self._fd, path = tempfile.mkstemp(".partial", name, self.target.parent)
            self._temporary = Path(path)
            self._syncing.start()
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise self._error(error) from error
            raise
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._abandon()

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` at `offset` bytes from the start; gaps read as zeros."""
        view = memoryview(data).cast("B")
        try:
            while view:
                written = self._pwrite(view[:_WRITE_SIZE], offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise self._error(error) from error

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """What was written there."""
        try:
            if hasattr(os, "pread"):
                return os.pread(self._fd, nbytes, offset)
            with self._lock:
                os.lseek(self._fd, offset, os.SEEK_SET)
                return os.read(self._fd, nbytes)
        except OSError as error:
            raise self._error(error) from error

    def _pwrite(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "pwrite"):
            return os.pwrite(self._fd, view, offset)
        with self._lock:  # Windows has no positioned write
            os.lseek(self._fd, offset, os.SEEK_SET)
            return os.write(self._fd, view)

    def _sync_early(self) -> None:
        """Let the disk work while there is more to come: at the end there is less to wait for."""
        try:
            while not self._ended.wait(_SYNC_INTERVAL):
                os.fsync(self._fd)
        except OSError as error:  # the system tells it once
            self._sync_error = error

    def _end_sync(self) -> None:
        self._ended.set()
        if self._syncing.ident is not None:
            self._syncing.join()
        if self._sync_error is not None:
            raise self._sync_error

    def commit(self, seal: Callable[[Path], None] = lambda _: None) -> None:
        """Make the file durable and give it its name.

        Args:
            seal: called with where the complete file lies, before it has its name; what it raises
                keeps the file from getting it.
        """
        assert self._temporary is not None
        seal(self._temporary)
        try:
            self._end_sync()
            os.fsync(self._fd)
            os.close(self._fd)
            umask = os.umask(0)
            os.umask(umask)
            self._temporary.chmod(0o666 & ~umask)  # mkstemp made it private
            self._temporary.replace(self.target)
        except OSError as error:
            raise self._error(error) from error
        self._temporary = None
        self._made = []
        # The new name is durable only once its folder is; not every file system can be asked.
        if hasattr(os, "O_DIRECTORY"):
            with contextlib.suppress(OSError):
                folder = os.open(self.target.parent, os.O_DIRECTORY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)

    def replace_by_link(self, source: Path) -> bool:
        """Make `target` a hard link to `source`; False where the file system cannot."""
        assert self._temporary is not None
        link = self._temporary.with_suffix(".link")
        try:
            os.link(source, link)
            link.replace(self.target)
        except OSError:
            return False
        finally:
            # Still there after a failure, and where `target` was a link to `source` already.
            link.unlink(missing_ok=True)
        return True

    def _abandon(self) -> None:
        if self._temporary is not None:
            with contextlib.suppress(OSError):
                self._end_sync()
            with contextlib.suppress(OSError):  # commit may have closed it before it failed
                os.close(self._fd)
            self._temporary.unlink(missing_ok=True)
            self._temporary = None
        for folder in self._made:
            with contextlib.suppress(OSError):  # somebody put something into it
                folder.rmdir()

    def _error(self, error: OSError) -> OutputError:
        if isinstance(error, FileExistsError):  # mkdir's word for a file in place of the folder
            error = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return OutputError(
            str(self.target),
            error.strerror or str(error),
            "choose a writable folder with enough room with --output-dir",
        )


def link_or_copy(source: Path, target: Path, seal: Callable[[Path], None]) -> None:
    """Let `target` be `source` too: without a second copy where the file system can.

    Args:
        seal: as in `AtomicFile.commit`.

    Raises:
        OutputError: `target` cannot be written.
    """
    with AtomicFile(target) as writer:  # makes the folder, or says why it cannot be written
        seal(source)
        if writer.replace_by_link(source):
            return
        with source.open("rb") as reader:
            offset = 0
            while block := reader.read(1 << 22):
                writer.write_at(offset, block)
                offset += len(block)
        writer.commit()
