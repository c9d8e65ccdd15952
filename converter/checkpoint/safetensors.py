"""Read a folder of safetensors by row blocks.

The format is eight bytes of header length, a JSON header, and the tensors one after another:
https://huggingface.co/docs/safetensors. The safetensors package is not used for it because it maps
the whole file and cannot hand BF16 to numpy; it is what our tests compare with. A header is input
from a stranger: whatever does not add up to the byte is refused before anything is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.base import Checkpoint, TensorInfo, ThreadBuffer, room_for
from converter.checkpoint.files import (
    INDEX_NAME,
    SIDE_FILES,
    SINGLE_NAME,
    PositionedFile,
    is_plain_path,
    refuse_dangling_links,
    something_else,
    utf8_of,
    weight_files,
    why_not_a_model,
)
from converter.checkpoint.quantized.base import StoredCheckpoint, as_rows
from converter.checkpoint.quantized.checkpoint import QuantizedCheckpoint
from converter.checkpoint.quantized.methods import (
    base_model_of,
    layout_of,
    refuse_quantized,
    without_quantization,
)
from converter.checkpoint.quantized.numbers import NUMPY_TYPES, widened
from converter.errors import SourceError, UnsupportedError
from converter.kernels import widen_bf16

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's limit
MAX_JSON_BYTES = 64_000_000  # config.json and the index: a few megabytes in the largest models
MAX_DIMENSIONS = 16

# Bits per element of every type the format knows. Only those in _READABLE can be converted.
_BITS = {
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8,
    "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
_METADATA = "__metadata__"  # of a header: the one key that is no tensor
_READABLE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}  # bytes per element


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes are: `begin` counts from the start of the file."""

    file: PositionedFile
    begin: int


class SafetensorsCheckpoint(StoredCheckpoint):
    """A folder with config.json and one or more safetensors files; see `open_folder`."""

    format = "safetensors"

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        generation_config: dict[str, Any],
        tensors: Mapping[str, TensorInfo],
        places: Mapping[str, _Place],
        resources: ExitStack,
    ) -> None:
        self.path = path
        self.config = config
        self.generation_config = generation_config
        self.tensors = tensors
        self._places = places
        self._resources = resources
        self._stored = ThreadBuffer(np.uint16)  # elements on their way to float32

    @property
    def files(self) -> tuple[Path, ...]:
        beside = (self.path / name for name in ("config.json", INDEX_NAME, *SIDE_FILES))
        shards = {place.file.path for place in self._places.values()}
        return (*(path for path in beside if path.is_file()), *sorted(shards))

    @classmethod
    def of_file(
        cls,
        path: Path,
        file: PositionedFile,
        entries: Iterable[tuple[TensorInfo, int]],
        resources: ExitStack,
    ) -> SafetensorsCheckpoint:
        """The tensors of one open file, `entries` of `read_header`, without a config."""
        tensors = {info.name: info for info, _ in entries}
        places = {info.name: _Place(file, begin) for info, begin in entries}
        return cls(path, {}, {}, tensors, places, resources)

    def read_rows(
        self,
        name: str,
        start: int,
        stop: int,
        buffer: np.ndarray | None = None,
        keep_bf16: bool = False,
    ) -> np.ndarray:
        """Read rows `start:stop` as float32, `(stop - start, columns)`; see `Checkpoint.read_rows`.

        A tensor of more than two dimensions has its last as columns and the others as rows.

        Raises:
            SourceError: the file ended early or changed, or its disk reports an error.
            UnsupportedError: the tensor is stored in a type that holds quantised numbers.
            KeyError, IndexError: `tensors` does not list this tensor or these rows.
        """
        info, place = self.tensors[name], self._places[name]
        itemsize = _READABLE.get(info.dtype)
        if itemsize is None:
            raise UnsupportedError(
                f"tensor {name}",
                f"it is stored as {info.dtype}, and pre-quantised checkpoints cannot be converted "
                "without changing their numbers again",
                "convert the original model in BF16, F16 or F32",
            )
        rows, columns = as_rows(info.shape) if len(info.shape) > 1 else (1, math.prod(info.shape))
        if not 0 <= start <= stop <= rows:
            raise IndexError(f"rows {start}:{stop} of {name}, which has {rows}")
        count = (stop - start) * columns
        offset = place.begin + start * columns * itemsize
        flat: np.ndarray
        if info.dtype == "F32":
            flat = room_for(count, buffer)
            place.file.read_into(offset, _bytes_of(flat))
        else:
            stored = self._stored.of_size(count * itemsize // 2)
            place.file.read_into(offset, _bytes_of(stored))
            if info.dtype == "BF16" and keep_bf16:
                flat = stored
            elif info.dtype == "BF16":
                flat = room_for(count, buffer)
                widen_bf16(stored, flat)
            else:
                flat = room_for(count, buffer)
                flat[:] = stored.view(np.float16 if info.dtype == "F16" else np.float64)
        place.file.check_unchanged()
        return flat.reshape(stop - start, columns)

    def read_columns(
        self, name: str, first_row: int, last_row: int, start: int, stop: int
    ) -> np.ndarray:
        stored = self.read_stored(name, (first_row, last_row), (start, stop))
        return widened(stored, self.tensors[name].dtype).T

    def read_stored(
        self,
        name: str,
        rows: tuple[int, int] | None = None,
        columns: tuple[int, int] | None = None,
    ) -> np.ndarray:
        info, place = self.tensors[name], self._places[name]
        all_rows, width = as_rows(info.shape)
        first, last = rows or (0, all_rows)
        left, right = columns or (0, width)
        if not (0 <= first <= last <= all_rows and 0 <= left <= right <= width):
            raise IndexError(f"rows {first}:{last} and columns {left}:{right} of {name}")
        found = np.empty((last - first, right - left), NUMPY_TYPES[info.dtype])
        size = found.itemsize
        if right - left == width:
            place.file.read_into(place.begin + first * width * size, _bytes_of(found.reshape(-1)))
        else:  # of each row a piece: the whole would be read again for each tile
            for row, piece in enumerate(found, first):
                place.file.read_into(place.begin + (row * width + left) * size, _bytes_of(piece))
        place.file.check_unchanged()
        return found

    def metadata(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for file in sorted({place.file for place in self._places.values()}, key=lambda f: f.path):
            found |= read_metadata(file)
        return found

    def check_unchanged(self) -> None:
        for file in {place.file for place in self._places.values()}:
            file.check_unchanged()

    def close(self) -> None:
        self._resources.close()


def open_folder(path: Path) -> Checkpoint:
    """Open the model in folder `path`: one `model.safetensors`, or shards with or without an index.

    Only headers are read. As in transformers, the index says which files are shards, and what is in
    them they say themselves: an entry without a tensor, and a tensor without an entry, do no harm.

    Raises:
        SourceError: something is missing, damaged or contradicts itself.
        UnsupportedError: the folder holds only an adapter, PyTorch pickles, or weights that are
            quantised in a way that is not read.
    """
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise SourceError(str(path), why, "pass a folder that can be read") from error
    unusable = why_not_a_model(str(path), names)
    if unusable is not None:
        raise unusable
    refuse_dangling_links(path, ("config.json", INDEX_NAME, *SIDE_FILES))
    config = read_config(path / "config.json")
    layout = layout_of(str(path), config, names, base_model_of(path))
    generation = path / "generation_config.json"
    generation_config = read_config(generation) if generation.name in names else {}
    shards = weight_files(names)
    if INDEX_NAME in names and shards != [SINGLE_NAME]:
        shards = sorted(set(read_index(path / INDEX_NAME).values()))
    for shard in shards:
        if shard not in names and not (path / shard).is_file():
            raise SourceError(
                str(path), f"{shard} is missing, which {INDEX_NAME} names", "fetch the missing file"
            )

    tensors: dict[str, TensorInfo] = {}
    places: dict[str, _Place] = {}
    with ExitStack() as stack:
        for shard in shards:
            file = stack.enter_context(PositionedFile(path / shard))
            for info, begin in read_header(file):
                if info.name in tensors:
                    other = places[info.name].file.path.name
                    why = f"tensor {info.name} is in it and in {other}"
                    raise SourceError(str(file.path), why, "remove the file that is too much")
                tensors[info.name] = info
                places[info.name] = _Place(file, begin)
        stored = SafetensorsCheckpoint(
            path,
            without_quantization(config),
            generation_config,
            tensors,
            places,
            stack.pop_all(),
        )
        stack.push(stored)
        checkpoint = stored if layout is None else QuantizedCheckpoint(stored, layout)
        plain = [info for info in checkpoint.tensors.values() if tensors.get(info.name) == info]
        refuse_quantized(str(path), plain, base_model_of(path))
        stack.pop_all()
        return checkpoint


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json or its like; SourceError if it is not there or not a JSON object.

    Of a key that stands twice the last value counts, as everywhere in Hugging Face's libraries.
    """
    with PositionedFile(path) as file:
        config = _parse_json(file, 0, file.size, MAX_JSON_BYTES, "it", unique=False)
    if not isinstance(config, dict):
        raise SourceError(str(path), "it is not a JSON object", "copy it from the original model")
    return config


def read_index(path: Path) -> dict[str, str]:
    """Read model.safetensors.index.json: tensor name to the path of a file, from its folder on.

    Raises:
        SourceError: it is damaged, empty, or names a file outside its folder.
    """
    with PositionedFile(path) as file:
        index = _parse_json(file, 0, file.size, MAX_JSON_BYTES, "it")
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(str(path), "it has no weight_map", "fetch it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not is_plain_path(shard) or not name.isprintable():
            why = f"tensor {name!a} is said to be in {shard!a}, no file in or below this folder"
            raise SourceError(str(path), why, "do not use this model: its index is not sound")
        if not shard.endswith(".safetensors"):
            why = f"it names {shard}, which is not a safetensors file"
            raise SourceError(str(path), why, "fetch the model in safetensors format")
    return weight_map


def read_header(file: PositionedFile) -> Iterator[tuple[TensorInfo, int]]:
    """Yield every tensor of a safetensors file, with its offset from the start of the file.

    The tensors must fill the file: no overlap, no hole, nothing behind the last.

    Raises:
        SourceError: the header is damaged or does not describe this file.
    """
    header, data = _parse_header(file)
    header.pop(_METADATA, None)
    entries = [_parse_entry(file, name, entry) for name, entry in header.items()]
    expected = 0
    for info, begin, end in sorted(entries, key=lambda entry: entry[1:]):
        if begin < expected:
            raise _damaged(file, f"tensor {info.name} overlaps the one before it")
        if begin > expected:
            raise _damaged(file, f"{begin - expected} bytes before tensor {info.name} are unused")
        expected = end
    if data + expected > file.size:
        missing = data + expected - file.size
        raise _damaged(file, f"it ended early: the last {missing} bytes of its tensors are missing")
    if data + expected < file.size:
        raise _damaged(
            file, f"{file.size - data - expected} bytes after the last tensor are unused"
        )
    for info, begin, _ in entries:
        yield info, data + begin


def read_metadata(file: PositionedFile) -> dict[str, str]:
    """What a safetensors file says about itself, texts by name; raises as `read_header` does."""
    said = _parse_header(file)[0].get(_METADATA, {})
    return {key: value for key, value in said.items() if isinstance(value, str)}


def _parse_header(file: PositionedFile) -> tuple[dict[str, Any], int]:
    """The header, and where the data begin."""
    if file.size < 8:
        raise _damaged(file, f"it has {file.size} bytes, too few for a safetensors header")
    length = int.from_bytes(file.read_at(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        raise _damaged(file, f"its header claims {length} bytes, more than {MAX_HEADER_BYTES}")
    if 8 + length > file.size:
        raise _damaged(file, f"its header claims {length} bytes, but the file has {file.size}")
    header = _parse_json(file, 8, length, MAX_HEADER_BYTES, "its header")
    if not isinstance(header, dict):
        raise _damaged(file, "its header is not a JSON object")
    if not isinstance(header.get(_METADATA, {}), dict):
        raise _damaged(file, f"its {_METADATA} is not a JSON object")
    return header, 8 + length


def _parse_entry(file: PositionedFile, name: str, entry: Any) -> tuple[TensorInfo, int, int]:
    """Check one header entry; return it with its begin and end, counted from the first tensor."""
    if not name.isprintable():  # also keeps control characters off the user's terminal
        raise _damaged(file, f"the tensor name {name!a} is not printable text")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _damaged(file, f"tensor {name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _damaged(file, f"tensor {name} has the unknown dtype {str(dtype)[:40]!a}")
    if not _is_naturals(shape) or len(shape) > MAX_DIMENSIONS:
        raise _damaged(file, f"tensor {name} has the impossible shape {str(shape)[:80]}")
    if not _is_naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _damaged(file, f"tensor {name} has the impossible data_offsets {str(offsets)[:80]}")
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits != (end - begin) * 8:
        why = f"tensor {name} has {end - begin} bytes, but {dtype} {shape} takes {-(-bits // 8)}"
        raise _damaged(file, why)
    return TensorInfo(name, tuple(shape), dtype, end - begin), begin, end


def _is_naturals(value: Any) -> bool:
    """Tell whether `value` is a list of integers from 0 to 2**63 (a bool is not one)."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _parse_json(
    file: PositionedFile, offset: int, length: int, limit: int, what: str, unique: bool = True
) -> Any:
    """Parse `length` bytes of JSON; where keys are unique, one that stands twice is refused."""
    if length > limit:
        raise _damaged(file, f"{what} is {length} bytes long, more than {limit}")
    try:
        text = utf8_of(bytes(file.read_at(offset, length))).decode()
        return json.loads(text, object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise _damaged(file, f"{what} is nested too deeply") from None
    except ValueError as error:
        raise _damaged(file, f"{what} is not JSON ({str(error)[:80]})") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key[:40]!a} stands there twice")
        result[key] = value
    return result


def _damaged(file: PositionedFile, why: str) -> SourceError:
    return something_else(file) or SourceError(str(file.path), why, "fetch or copy it again")


def _bytes_of(array: np.ndarray) -> memoryview:
    """Return the bytes of a contiguous one-dimensional array, writable."""
    return array.view(np.uint8).data
