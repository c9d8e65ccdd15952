"""A model's files as far as their headers, for those who only want to know what it is.

Each weight file becomes one of its full length in which nothing but the header was written, and
what belongs to it but stands among the weights; the rest is a hole, which takes no room on a disk.
So whatever opens a model opens this one, too, as long as it reads no weight.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from pathlib import Path

from converter.checkpoint.files import INDEX_NAME, PositionedFile
from converter.checkpoint.gguf_header import Header, read_header
from converter.checkpoint.hub_repository import Repository
from converter.checkpoint.progress import DownloadProgress
from converter.checkpoint.quantized.base import STATES_A_SHAPE
from converter.checkpoint.safetensors import read_header as read_tensors
from converter.errors import SourceError
from converter.workers import map_in_threads

_SMALL = ("config.json", "generation_config.json", INDEX_NAME)
# What is fetched at first. Most headers of safetensors fit, and GGUFs have a vocabulary in theirs.
_SAFETENSORS_BYTES, _GGUF_BYTES = 1 << 16, 1 << 21
_MOST_GGUF_BYTES = 1 << 28
_READERS = 8  # of small pieces at once
# Vectors of a GGUF that belong to its config.
_CONFIG_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def bring_headers(repository: Repository, names: Iterable[str]) -> None:
    """Make `repository.target` hold the headers of the files `names`, and the config.

    Raises:
        SourceError: a file is none of what its name says.
        httpx.HTTPError: the client's own errors, for `hub_errors.explain`.
    """
    for name in names:
        if name.endswith(".safetensors"):
            _bring_safetensors(repository, name)
        elif name.lower().endswith(".gguf"):
            _bring_gguf(repository, name)
        elif name in _SMALL:
            repository.fetch(name, DownloadProgress())


def _bring_safetensors(repository: Repository, name: str) -> None:
    data = repository.read(name, 0, _SAFETENSORS_BYTES)
    end = 8 + int.from_bytes(data[:8], "little")  # whether that can be is for the reader to say
    size = repository.files[name].size or 0
    if len(data) < end <= size:
        data += repository.read(name, len(data), end)
    _write(repository, name, [(0, data[:end])])
    shapes = []
    path = Path(repository.target, name)
    with contextlib.suppress(SourceError), PositionedFile(path) as file:  # or its reader says why
        shapes = [
            (begin, begin + info.nbytes)
            for info, begin in read_tensors(file)
            if STATES_A_SHAPE.search(info.name)
        ]
    ranges = list(_merged(shapes))
    contents = map_in_threads(lambda ends: repository.read(name, *ends), ranges, _READERS)
    parts = [(start, content) for (start, _), content in zip(ranges, contents, strict=True)]
    if parts:
        _write(repository, name, [(0, data[:end]), *parts])


def _merged(ranges: Iterable[tuple[int, int]]) -> Iterable[tuple[int, int]]:
    """Ranges of bytes, with those taken together that are near each other."""
    begun: tuple[int, int] | None = None
    for start, stop in sorted(ranges):
        if begun is not None and start - begun[1] <= _SAFETENSORS_BYTES:
            begun = begun[0], stop
            continue
        if begun is not None:
            yield begun
        begun = start, stop
    if begun is not None:
        yield begun


def _bring_gguf(repository: Repository, name: str) -> None:
    size = repository.files[name].size or 0
    data, parts = b"", []
    for count in (_GGUF_BYTES, 4 * _GGUF_BYTES, 16 * _GGUF_BYTES, _MOST_GGUF_BYTES):
        data += repository.read(name, len(data), min(count, size))
        with contextlib.suppress(SourceError):  # for want of bytes, or whoever opens it says why
            header = read_header(io.BytesIO(data), name, size)
            parts = list(_config_tensors(repository, name, header))
            break
        if count >= size:
            break
    _write(repository, name, [(0, data), *parts])


def _config_tensors(
    repository: Repository, name: str, header: Header
) -> Iterable[tuple[int, bytes]]:
    for tensor in _CONFIG_TENSORS:
        if tensor in header.places:
            place = header.places[tensor]
            yield place.offset, repository.read(name, place.offset, place.offset + place.nbytes)


def _write(repository: Repository, name: str, parts: Iterable[tuple[int, bytes]]) -> None:
    path = Path(repository.target, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for offset, data in parts:
            file.seek(offset)
            file.write(data)
        file.truncate(repository.files[name].size)
