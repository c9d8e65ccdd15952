"""What the names of GGUF files say: which part of a model, which quantisation, a model at all."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
# Beside models in a repository: vision parts, importance matrices and draft models.
_NO_MODEL = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-")
_DEFAULT_TAGS = ("Q4_K_M", "Q8_0")  # llama.cpp's, where none is asked for


def split_name(name: str) -> tuple[str, int, int] | None:
    """`m-00002-of-00003.gguf` as its stem, number and count; None for a file that is whole."""
    match = _PART.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def part_name(name: str, number: int) -> str:
    """The name of another part of the same model, from 1."""
    match = _PART.fullmatch(name)
    assert match is not None
    return f"{match[1]}-{number:05}-of-{match[3]}{match[4]}"


def gguf_models(paths: Sequence[str]) -> list[str]:
    """The GGUFs of language models among a repository's files, of split ones the first part."""
    found = []
    for path in sorted(paths):
        name = path.rpartition("/")[2].lower()
        part = split_name(path)
        is_model = name.endswith(".gguf") and not any(word in name for word in _NO_MODEL)
        if is_model and (part is None or part[1] == 1):
            found.append(path)
    return found


def with_tag(models: Sequence[str], tag: str) -> str | None:
    """The GGUF of a quantisation, as llama.cpp and Ollama find it; None where there is none.

    The tag stands before `.` or `-` in the file's name, or is its folder; large and small letters
    are the same. `F16` is not the end of `BF16`.
    """
    pattern = re.compile(rf"(?<![a-z0-9]){re.escape(tag)}[./-]", re.IGNORECASE)
    return next((path for path in models if pattern.search(path)), None)


def default_model(models: Sequence[str]) -> str:
    """The GGUF to take of several where none was asked for."""
    tagged = (with_tag(models, tag) for tag in _DEFAULT_TAGS)
    return next((path for path in tagged if path is not None), models[0])


def all_parts(path: str) -> list[str]:
    """Every file of a model, in order, of its first part or of the whole."""
    part = split_name(path)
    return [path] if part is None else [part_name(path, i + 1) for i in range(part[2])]
