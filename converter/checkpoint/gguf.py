"""GGUF files as a source of weights.

A GGUF holds metadata, a table of tensors and their data, in that order. The first two are read at
once (`gguf_header`), and weights where they lie, when they are asked for. A model may be split into
several such files: it is read as one, whichever of them is named.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from converter.checkpoint.base import Checkpoint, TensorInfo, ThreadBuffer, room_for
from converter.checkpoint.files import PositionedFile
from converter.checkpoint.gguf_config import architecture, translate_config
from converter.checkpoint.gguf_header import (
    DAMAGED,
    TENSOR_TYPES,
    Header,
    Place,
    first_keys,
    read_header,
)
from converter.checkpoint.gguf_ollama import in_llama_cpp_words
from converter.checkpoint.gguf_parts import parts_of, refuse_other_kinds, vocabulary_alone
from converter.errors import SourceError, UnsupportedError
from converter.kernels import widen_bf16
from converter.registry import family_class

_DEQUANTIZE_STEP = 1 << 16  # elements at once: they stay in cache; 13 times as fast as by block
_PLAIN_TYPES = {
    "F32": "<f4", "F16": "<f2", "F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
}  # fmt: skip
# generation_config.json's keys, as llama.cpp's converter keeps them since 2025.
_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
}

# Numbers of each layer that llama.cpp keeps among the metadata, and the tensors they are here.
_LAYER_NUMBERS = {
    "xielu.alpha_p": "blk.{i}.ffn_act.alpha_p",
    "xielu.alpha_n": "blk.{i}.ffn_act.alpha_n",
}
# Others that are the same in all models there are, as in transformers.
_CONSTANTS = {"xielu.beta": 0.5, "xielu.eps": -1e-6}


def open_gguf(path: str | os.PathLike[str]) -> GGUFCheckpoint:
    """Open a GGUF file of version 2 or 3 and read its header, in time that follows its vocabulary.

    Of a split model, any part will do.

    Raises:
        SourceError: the file or a part is missing, unreadable, truncated or damaged.
        UnsupportedError: it is big-endian, version 1, no language model of a family that is known,
            or uses a type that is not supported.
    """
    return GGUFCheckpoint(Path(path))


def check_head(path: str, head: bytes) -> None:
    """Refuse a GGUF that cannot be converted, from its first bytes, as far as they say.

    Raises:
        SourceError, UnsupportedError: see `open_gguf`.
    """
    metadata = first_keys(head, path)
    _check_kind(path, metadata)


def _check_kind(path: str, metadata: Mapping[str, Any]) -> None:
    refuse_other_kinds(path, metadata)
    arch = architecture(path, metadata)
    known = {key.removeprefix(f"{arch}."): value for key, value in metadata.items()}
    family_class(arch, "gguf", f"{path}: general.architecture", known)


class GGUFFile(Checkpoint):
    """The tensors of a GGUF, or of the parts of a split one, whatever they are.

    Attributes:
        metadata: the key-value pairs as they are: numbers, strings, `list[str]`, and numpy arrays
            for arrays of numbers.
    """

    format = "gguf"
    tensors: dict[str, TensorInfo]

    def __init__(self, path: Path) -> None:
        self.path = path
        self._raw = ThreadBuffer(np.uint8)
        self._files: list[PositionedFile] = []
        self._places: dict[str, Place] = {}
        self._file_of: dict[str, PositionedFile] = {}
        self._numbers: dict[str, float] = {}  # tensors of one number that stands in the metadata
        self.tensors = {}
        self.config, self.generation_config = {}, {}
        try:
            self.metadata = self._read(path)
        except BaseException:
            self.close()
            raise

    def _read(self, path: Path) -> dict[str, Any]:
        """Take in the headers of all parts; return the metadata, which stands in the first."""
        headers = {path: self._open(path)}
        parts = parts_of(path, headers[path].metadata)
        for number, part in enumerate(parts):
            if part not in headers:
                headers[part] = self._open(part)
            stated = headers[part].metadata.get("split.no", 0)
            count = headers[part].metadata.get("split.count", 1)
            if len(parts) > 1 and (stated != number or count != len(parts)):
                raise SourceError(
                    str(part), f"it says that it is part {stated} (from 0) of {count}", DAMAGED
                )
        metadata = headers[parts[0]].metadata
        total = metadata.get("split.tensors.count")
        if len(parts) > 1 and isinstance(total, int) and total != len(self.tensors):
            raise SourceError(
                str(path), f"its parts hold {len(self.tensors)} tensors, not {total}", DAMAGED
            )
        return metadata

    def _open(self, path: Path) -> Header:
        """Open one file, read its header and take in its tensors."""
        file = PositionedFile(path)
        self._files.append(file)
        with file.stream() as stream:
            header = read_header(stream, str(path), file.size)
        for name in header.tensors:
            if name in self._file_of:
                raise SourceError(str(path), f"tensor {name!r:.80} is in another part too", DAMAGED)
            self._file_of[name] = file
        self._places |= header.places
        self.tensors |= header.tensors
        return header

    def read_rows(
        self,
        name: str,
        start: int,
        stop: int,
        buffer: np.ndarray | None = None,
        keep_bf16: bool = False,
    ) -> np.ndarray:
        """Read rows `start:stop` as float32, shape `(stop - start, columns)`; see `Checkpoint`.

        A tensor of three or more dimensions counts as its leading dimensions multiplied into rows.
        """
        if (number := self._numbers.get(name)) is not None:
            return np.full((stop - start, 1), number, np.float32)
        shape = self.tensors[name].shape
        place = self._places[name]
        columns = shape[-1]
        stored = TENSOR_TYPES[place.type_id]
        row_bytes = columns // stored.block * stored.size
        rows = place.nbytes // row_bytes
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"{name}: rows {start}:{stop} of {rows}")
        raw = self._raw.of_size((stop - start) * row_bytes)
        self._file_of[name].read_into(place.offset + start * row_bytes, raw.data)
        values = room_for((stop - start) * columns, buffer)
        _dequantize(raw, place.type_id, values)
        return values.reshape(stop - start, columns)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(sorted(file.path for file in self._files))

    def check_unchanged(self) -> None:
        for file in self._files:
            file.check_unchanged()

    def close(self) -> None:
        for file in self._files:
            file.close()


class GGUFCheckpoint(GGUFFile):
    """A language model in a GGUF file.

    Attributes:
        metadata: of a file that Ollama wrote, in llama.cpp's words.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            _check_kind(str(path), self.metadata)
            if not self.tensors:
                raise vocabulary_alone(str(path))
            self.metadata = in_llama_cpp_words(self.metadata, self.tensors)
            self.generation_config = {
                key: self.metadata[name]
                for key, name in _SAMPLING_KEYS.items()
                if name in self.metadata
            }
            self.config = translate_config(
                str(path),
                self.metadata,
                self.tensors,
                read_vector=lambda name: self.read_rows(name, 0, 1)[0],
            )
            self._take_layer_numbers(self.config["num_hidden_layers"])
        except BaseException:
            self.close()
            raise

    def _take_layer_numbers(self, layers: int) -> None:
        """Show what the metadata say of each layer, or of all of them, as tensors."""
        for key in (_LAYER_NUMBERS.keys() | _CONSTANTS.keys()) & self.metadata.keys():
            numbers = np.atleast_1d(np.asarray(self.metadata[key]))
            if numbers.dtype.kind not in "fiu" or len(numbers) not in (1, layers):
                raise SourceError(
                    str(self.path), f"metadata key {key!r} is not a number for each layer", DAMAGED
                )
            if key in _CONSTANTS:
                if not np.allclose(numbers, _CONSTANTS[key], rtol=1e-3, atol=0):
                    raise UnsupportedError(
                        str(self.path),
                        f"its {key} is {numbers[0]:.6g}, and only {_CONSTANTS[key]} is supported",
                        "convert the model's Hugging Face folder, or use another GGUF of it",
                    )
                continue
            for i, number in enumerate(np.broadcast_to(numbers, layers)):
                tensor = _LAYER_NUMBERS[key].format(i=i)
                self._numbers[tensor] = float(number)
                self.tensors[tensor] = TensorInfo(tensor, (1,), "F32", 4)


def _dequantize(raw: np.ndarray, type_id: int, out: np.ndarray) -> None:
    """Turn whole blocks of stored bytes into float32, `out` of shape `(elements,)`."""
    name = TENSOR_TYPES[type_id].name
    if name in _PLAIN_TYPES:
        with np.errstate(over="ignore"):  # beyond float32 is infinite
            out[:] = raw.view(_PLAIN_TYPES[name])
        return
    if name == "BF16":
        widen_bf16(raw.view("<u2"), out)
        return
    # Imported late because gguf costs 0.1 s. Its dequantizers are pure functions of their input
    # (the lookup grids of the IQ types are built once and assigned whole), so threads may share it.
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    stored = TENSOR_TYPES[type_id]
    count = raw.size // stored.size
    step = max(_DEQUANTIZE_STEP // stored.block, 1)
    result = out.reshape(count, stored.block)
    with np.errstate(all="ignore"):  # an infinite scale is the weights' affair, not a warning
        for start in range(0, count, step):
            blocks = raw[start * stored.size : (start + step) * stored.size]
            part = dequantize(blocks.reshape(1, -1), GGMLQuantizationType(type_id))
            result[start : start + step] = part.reshape(-1, stored.block)
