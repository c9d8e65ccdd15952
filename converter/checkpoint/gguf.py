"""GGUF files as a source of weights.

A GGUF holds metadata, a table of tensors and their data, in that order. The first two are read at
once (`gguf_header`), and weights where they lie, when they are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer, room_for
from converter.checkpoint.files import PositionedFile
from converter.checkpoint.gguf_config import translate_config
from converter.checkpoint.gguf_header import TENSOR_TYPES, read_header
from converter.kernels import widen_bf16

_DEQUANTIZE_STEP = 1 << 16  # elements at once: they stay in cache; 13 times as fast as by block
# generation_config.json's keys, as llama.cpp's converter keeps them since 2025.
_SAMPLING_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
}


def open_gguf(path: str | os.PathLike[str]) -> GGUFCheckpoint:
    """Open a GGUF file of version 2 or 3 and read its header, in time that follows its vocabulary.

    Raises:
        SourceError: the file is missing, unreadable, truncated or damaged.
        UnsupportedError: it is big-endian, version 1, split, or uses a type that is not supported.
    """
    return GGUFCheckpoint(Path(path))


class GGUFCheckpoint(Checkpoint):
    """A model in one GGUF file.

    Attributes:
        metadata: the file's key-value pairs as they are: numbers, strings, `list[str]`, and numpy
            arrays for arrays of numbers.
    """

    format = "gguf"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = PositionedFile(path)
        self._raw = ThreadBuffer(np.uint8)
        try:
            with self._file.stream() as stream:
                header = read_header(stream, str(path), self._file.size)
            self.metadata = header.metadata
            self.tensors = header.tensors
            self._places = header.places
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
        except BaseException:
            self._file.close()
            raise

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
        shape = self.tensors[name].shape
        place = self._places[name]
        columns = shape[-1]
        stored = TENSOR_TYPES[place.type_id]
        row_bytes = columns // stored.block * stored.size
        rows = place.nbytes // row_bytes
        if not 0 <= start <= stop <= rows:
            raise ValueError(f"{name}: rows {start}:{stop} of {rows}")
        raw = self._raw.of_size((stop - start) * row_bytes)
        self._file.read_into(place.offset + start * row_bytes, raw.data)
        values = room_for((stop - start) * columns, buffer)
        _dequantize(raw, place.type_id, values)
        return values.reshape(stop - start, columns)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.path,)

    def check_unchanged(self) -> None:
        self._file.check_unchanged()

    def close(self) -> None:
        self._file.close()


def _dequantize(raw: np.ndarray, type_id: int, out: np.ndarray) -> None:
    """Turn whole blocks of stored bytes into float32, `out` of shape `(elements,)`."""
    name = TENSOR_TYPES[type_id].name
    if name in ("F32", "F16"):
        out[:] = raw.view("<f4" if name == "F32" else "<f2")
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
