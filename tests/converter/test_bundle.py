"""The container: a header as the official builder's, and files that are whole or absent."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import pytest
from litert_lm_builder import litertlm_builder, litertlm_peek
from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2

from converter.bundle import (
    FIRST_SECTION,
    AtomicFile,
    Section,
    executor_metadata,
    lay_out,
    link_or_copy,
    tokenizer_section,
)
from converter.errors import OutputError
from converter.graph.kv_cache import CacheShape

ROOT = Path(__file__).parents[2]
BLOCK = 16 * 1024
SYSTEM = {"producer": "a test", "model": "größe 模型"}
FIX = "choose a writable folder with enough room with --output-dir"


def sections(*sizes: int) -> list[Section]:
    return [Section("TFLiteModel", size, {"model_type": "aux"}) for size in sizes]


def write(path: Path, parts: list[tuple[Section, bytes]], system: dict[str, str]) -> Path:
    layout = lay_out([section for section, _ in parts], system)
    with AtomicFile(path) as file:
        # Any order will do.
        for (_, data), offset in reversed(list(zip(parts, layout.offsets, strict=True))):
            file.write_at(offset, data)
        file.write_at(0, layout.header)
        file.commit()
    return path


def fail_within(target: Path, error: type[BaseException]) -> None:
    with AtomicFile(target) as file:
        file.write_at(0, b"new")
        raise error


# Layout ------------------------------------------------------------------------------------------


def test_sections_start_at_multiples_of_16_kib() -> None:
    layout = lay_out(sections(1, BLOCK, BLOCK + 1, 5), SYSTEM)
    assert layout.offsets == (BLOCK, 2 * BLOCK, 3 * BLOCK, 5 * BLOCK)
    assert layout.nbytes == 5 * BLOCK + 5
    assert int.from_bytes(layout.header[24:32], "little") == len(layout.header)


@pytest.mark.parametrize("count", [1, 4])
def test_the_first_section_has_its_place_before_the_header_is_known(count: int) -> None:
    layout = lay_out(sections(*range(count)), {"model": "x" * 255})
    assert len(layout.header) < layout.offsets[0] == FIRST_SECTION == BLOCK


def test_offsets_do_not_change_the_size_of_the_header() -> None:
    small, large = lay_out(sections(1, 1), SYSTEM), lay_out(sections(1 << 40, 1), SYSTEM)
    assert len(small.header) == len(large.header)
    assert large.offsets[1] == BLOCK + (1 << 40)


def test_the_file_is_what_the_official_builder_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, once the builder is kept from adding its random uuid and the clock."""
    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=77)
    contents = {
        "metadata.pb": metadata.SerializeToString(),
        "model.tflite": os.urandom(BLOCK + 100),
        "tokenizer.json.zlib": tokenizer_section("HF_Tokenizer_Zlib", b'{"a": 1}'),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(litertlm_builder, "populate_system_metadata", lambda items: items)
    builder = litertlm_builder.LitertLmFileBuilder()
    for key, value in SYSTEM.items():
        builder.add_system_metadata(
            litertlm_builder.Metadata(key, value, litertlm_builder.DType.STRING)
        )
    builder.add_llm_metadata(str(tmp_path / "metadata.pb"))
    builder.add_tflite_model(
        str(tmp_path / "model.tflite"), litertlm_builder.TfLiteModelType.PREFILL_DECODE
    )
    builder.add_hf_tokenizer(str(tmp_path / "tokenizer.json.zlib"))
    official = io.BytesIO()
    builder.build(official)

    kinds = ("LlmMetadataProto", "TFLiteModel", "HF_Tokenizer_Zlib")
    items: tuple[dict[str, str], ...] = ({}, {"model_type": "tf_lite_prefill_decode"}, {})
    ours = write(
        tmp_path / "ours.litertlm",
        [
            (Section(kind, len(data), pairs), data)
            for kind, pairs, data in zip(kinds, items, contents.values(), strict=True)
        ],
        SYSTEM,
    )
    assert ours.read_bytes() == official.getvalue()


def test_the_official_reader_reads_it(tmp_path: Path) -> None:
    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=77).SerializeToString()
    executor = executor_metadata([CacheShape(64)], 64)
    path = write(
        tmp_path / "m.litertlm",
        [
            (Section("LlmMetadataProto", len(metadata), {}), metadata),
            (Section("ExecutorMetadataProto", len(executor), {}), executor),
            (Section("TFLiteModel", 4, {"model_type": "tf_lite_prefill_decode"}), b"TFL3"),
        ],
        SYSTEM,
    )
    output = io.StringIO()
    litertlm_peek.peek_litertlm_file(str(path), str(tmp_path / "dump"), output)
    text = output.getvalue()
    assert "Sections (3)" in text
    for expected in (*SYSTEM.values(), "max_num_tokens: 77", "tf_lite_prefill_decode"):
        assert expected in text
    dumped = {file.name: file.read_bytes() for file in (tmp_path / "dump").iterdir()}
    assert b"TFL3" in dumped.values()
    header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    kvps = [header.SystemMetadata().Entries(i) for i in range(2)]
    assert {kvp.Key().decode() for kvp in kvps} == set(SYSTEM)  # no uuid, no timestamp


def test_the_same_input_gives_the_same_header() -> None:
    assert lay_out(sections(5, 9), SYSTEM) == lay_out(sections(5, 9), SYSTEM)


# Sections ----------------------------------------------------------------------------------------


def test_a_tokenizer_json_is_compressed_after_its_size() -> None:
    data = b'{"vocab": 1}' * 1000
    packed = tokenizer_section("HF_Tokenizer_Zlib", data)
    assert packed[:8] == len(data).to_bytes(8, "little")
    assert zlib.decompress(packed[8:]) == data
    assert len(packed) < len(data) // 10


def test_a_sentencepiece_model_is_stored_as_it_is() -> None:
    assert tokenizer_section("SP_Tokenizer", b"\x0a\x0b") == b"\x0a\x0b"


def test_executor_metadata_names_every_cache_once() -> None:
    caches = [CacheShape(640, v_axis=3), CacheShape(168, 40, is_ring=True)]
    message = executor_metadata_pb2.ExecutorMetadata.FromString(executor_metadata(caches, 640))
    executor = message.llm_executor_metadata
    assert executor.max_history_size == 640
    assert not executor.HasField("attention_mask_settings")  # else the engine feeds local masks
    kinds = executor_metadata_pb2.StateBuffer
    found = []
    for buffer in executor.state_buffers:
        names = {
            buffer.prefill_input_name,
            buffer.prefill_output_name,
            buffer.decode_input_name,
            buffer.decode_output_name,
        }
        assert len(names) == 1
        lengths = buffer.minimum_sequence_length, buffer.maximum_sequence_length
        found.append((names.pop(), buffer.type, buffer.sequence_axis, lengths))
    assert found == [
        ("kv_cache_k_0", kinds.TYPE_GLOBAL_KEY_CACHE, 2, (0, 640)),
        ("kv_cache_v_0", kinds.TYPE_GLOBAL_VALUE_CACHE, 3, (0, 640)),
        ("kv_cache_k_1", kinds.TYPE_LOCAL_KEY_CACHE, 2, (40, 168)),
        ("kv_cache_v_1", kinds.TYPE_LOCAL_VALUE_CACHE, 2, (40, 168)),
    ]


# AtomicFile --------------------------------------------------------------------------------------


def test_the_file_appears_when_it_is_committed(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "m.litertlm"
    with AtomicFile(target) as file:
        file.write_at(8, b"yz")
        file.write_at(1, memoryview(b"abc"))
        assert not target.exists()
        [temporary] = target.parent.iterdir()
        assert temporary.name.startswith(".m.litertlm.")  # `list` passes hidden files over
        assert temporary.name.endswith(".partial")
        file.commit()
        assert target.read_bytes() == b"\0abc\0\0\0\0yz"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        fail_within(tmp_path / "a" / "b" / "m", error)
    assert list(tmp_path.iterdir()) == []  # not the folders that were made for it, either


def test_an_exception_keeps_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        fail_within(target, KeyboardInterrupt)
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_leaving_without_a_commit_leaves_nothing(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_use_is_kept(tmp_path: Path) -> None:
    with AtomicFile(tmp_path / "new" / "m"):
        (tmp_path / "new" / "note").touch()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["note"]


def test_a_commit_replaces_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old and longer")
    with AtomicFile(target) as file:
        file.write_at(0, b"new")
        file.commit()
    assert target.read_bytes() == b"new"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        with AtomicFile(tmp_path / "m") as file:
            file.commit()
        assert os.umask(umask) == umask  # it was given back
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("below", ["m", "sub/m"])
def test_a_file_in_place_of_the_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    target = tmp_path / "file" / below
    with pytest.raises(OutputError) as caught, AtomicFile(target):
        pass
    assert str(caught.value) == f"{target}, Not a directory, {FIX}"
    assert (tmp_path / "file").read_bytes() == b"kept"


def test_a_folder_in_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    with AtomicFile(tmp_path / "m") as file, pytest.raises(OutputError) as caught:
        file.commit()
    assert str(caught.value) == f"{tmp_path / 'm'}, Is a directory, {FIX}"
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_too_long_a_name_leaves_no_folder(tmp_path: Path) -> None:
    target = tmp_path / "new" / ("x" * 250)
    with pytest.raises(OutputError, match=", File name too long, "), AtomicFile(target):
        pass
    assert list(tmp_path.iterdir()) == []


_FULL = """
import resource, signal, sys
from pathlib import Path
from converter.bundle import AtomicFile
from converter.errors import OutputError

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with AtomicFile(Path(sys.argv[1])) as file:
        for start in range(0, 200_000, 40_000):
            file.write_at(start, bytes(40_000))
        file.commit()
except OutputError as error:
    print(error)
"""


def test_a_disk_without_room(tmp_path: Path) -> None:
    target = tmp_path / "m"
    target.write_bytes(b"old")
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(target)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{target}, File too large, {FIX}\n"
    assert list(tmp_path.iterdir()) == [target]
    assert target.read_bytes() == b"old"


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_all = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write_all(fd, data[:3], at))
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(2, b"abcdefgh")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"\0\0abcdefgh"


def test_without_positioned_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "pwrite")  # as on Windows
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(2, b"cd")
        file.write_at(0, b"ab")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"abcd"


def test_the_file_is_durable_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync, done = os.fsync, []

    def record(fd: int) -> None:
        done.append((os.path.basename(os.readlink(f"/proc/self/fd/{fd}")), target.exists()))
        sync(fd)

    target = tmp_path / "m"
    monkeypatch.setattr(os, "fsync", record)
    with AtomicFile(target) as file:
        [temporary] = tmp_path.iterdir()
        file.commit()
    assert done == [(temporary.name, False), (tmp_path.name, True)]


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse it, and the file is complete by then."""
    sync = os.fsync

    def only_files(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(fd)

    monkeypatch.setattr(os, "fsync", only_files)
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"new")
        file.commit()
    assert (tmp_path / "m").read_bytes() == b"new"


# link_or_copy ------------------------------------------------------------------------------------


def test_a_link_where_the_file_system_can(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(b"content")
    link_or_copy(source, target)
    assert target.samefile(source)
    assert list(target.parent.iterdir()) == [target]


def test_a_link_over_itself_leaves_nothing(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(b"content")
    for _ in range(2):  # the second time, POSIX says that rename does nothing
        link_or_copy(source, target)
        assert sorted(tmp_path.iterdir()) == [source, target]
    assert target.read_bytes() == b"content"


def test_a_copy_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source, target = tmp_path / "source", tmp_path / "new" / "target"
    source.write_bytes(os.urandom((1 << 22) + 7))
    target.parent.mkdir()
    target.write_bytes(b"old")
    link_or_copy(source, target)
    assert target.read_bytes() == source.read_bytes()
    assert not target.samefile(source)
    assert list(target.parent.iterdir()) == [target]


def test_a_link_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="/file/m, Not a directory, "):
        link_or_copy(tmp_path / "file", tmp_path / "file" / "m")


def test_a_disk_that_fails_while_there_is_more_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system reports a failed write to the first who syncs, and to nobody after."""
    failed = threading.Event()

    def fail_once(_: int) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail_once)
    with AtomicFile(tmp_path / "m") as file:
        file.write_at(0, b"new")
        assert failed.wait(30)
        with pytest.raises(OutputError, match="Input/output error"):
            file.commit()
    assert list(tmp_path.iterdir()) == []
