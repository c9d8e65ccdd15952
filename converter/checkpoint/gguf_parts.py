"""GGUFs in several files, and GGUFs that hold something else than a language model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converter.checkpoint.gguf_names import part_name, split_name
from converter.errors import SourceError, UnsupportedError

_LANGUAGE_MODEL = "pass the GGUF of the language model itself"
_OTHER_KINDS = {
    "mmproj": (
        "it is the vision or audio part (mmproj) of a multimodal model, without the language model",
        f"{_LANGUAGE_MODEL}, which lies beside it in the same repository",
    ),
    "adapter": (
        "it is a LoRA adapter, not a whole model",
        "name the model that it was made for, and it is merged: convert MODEL --lora FILE.gguf",
    ),
    "controlvector": ("it is a control vector, not a model", _LANGUAGE_MODEL),
    "imatrix": ("it is an importance matrix for quantising, not a model", _LANGUAGE_MODEL),
}
_KIND_OF_ARCHITECTURE = {"clip": "mmproj", "controlvector": "controlvector", "imatrix": "imatrix"}


def parts_of(path: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """All files of the model of which `path` is one, in order; `metadata` is that file's.

    Raises:
        SourceError: one of them is missing, or its name does not say which it is.
    """
    count = metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return [path]
    named = split_name(path.name)
    if named is None or named[2] != count:
        raise SourceError(
            str(path),
            f"it is one of {count} parts of a model, and its name does not say which",
            f"give all of them the names that they had: NAME-00001-of-{count:05}.gguf and so on",
        )
    paths = [path.with_name(part_name(path.name, number)) for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.exists()]
    if missing:
        raise SourceError(
            str(path),
            f"it is one of {count} parts of a model, and {', '.join(missing[:3])} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            "put all parts into one folder",
        )
    return paths


def vocabulary_alone(path: str) -> UnsupportedError:
    """The refusal of a GGUF without tensors."""
    why = "it holds a vocabulary and no weights, as llama.cpp's tests use it"
    return UnsupportedError(path, why, _LANGUAGE_MODEL)


def refuse_other_kinds(path: str, metadata: Mapping[str, Any]) -> None:
    """Raise UnsupportedError where a GGUF is no language model, saying what it is."""
    stated = str(metadata.get("general.type"))
    kind = _KIND_OF_ARCHITECTURE.get(str(metadata.get("general.architecture")), stated)
    if "adapter.type" in metadata:  # before `general.type` was written
        kind = "adapter"
    if kind in _OTHER_KINDS:
        raise UnsupportedError(path, *_OTHER_KINDS[kind])
