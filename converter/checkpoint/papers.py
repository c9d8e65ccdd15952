"""What a model's publisher says beside the weights: its licence, and what it was made of.

On the hub that stands in the front matter of README.md (huggingface.co/docs/hub/model-cards) and in
texts of their own; a GGUF has keys for it (`general.*`, in ggml's docs/gguf.md). It changes
nothing in a conversion, so whatever cannot be read is taken as not said.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from converter.errors import LiteRTLMError

CARD = "README.md"
LARGEST = 1 << 20  # bytes of a text; the longest licences have a twentieth of it
_TEXTS = re.compile(
    r"(licen[cs]e|notice|copying|(acceptable[-_])?use[-_]policy)([-_][\w.-]*?)?(\.(md|txt))?",
    re.IGNORECASE,
)
_FRONT = re.compile(r"---[ \t]*\r?\n(.*?)\r?\n---", re.DOTALL)
_LONGEST_FRONT = 1 << 16  # characters
_CARD_KEYS = ("license", "license_name", "license_link")
_GGUF_KEYS = ("general.license", "general.license.name", "general.license.link")
_REPO_URL = re.compile(r"https://huggingface\.co/([\w.-]+/[\w.-]+)")
_MOST_BASES = 16
_GGUF_HEAD = 1 << 16  # bytes: what a GGUF says of itself stands before its vocabulary


@dataclass(frozen=True)
class Papers:
    """What a source says of itself; empty where it says nothing.

    Attributes:
        license: identifiers as they stand there (`apache-2.0`); with `other` go a name and a link.
        stated_in: where the licence stands: README.md, or the GGUF.
        base_model: ids of what the source was made of.
        texts: whole files by name: the licence, and what its publisher has put beside it.
    """

    license: tuple[str, ...] = ()
    license_name: str | None = None
    license_link: str | None = None
    stated_in: str | None = None
    base_model: tuple[str, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Plain types, as `papers_of` takes them."""
        return asdict(self) | {"license": list(self.license), "base_model": list(self.base_model)}


def are_papers(names: Iterable[str]) -> list[str]:
    """Those of a repository's files that `read_papers` reads."""
    return [name for name in names if name == CARD or _TEXTS.fullmatch(name)]


def read_papers(files: Sequence[Path], of_folder: bool) -> Papers:
    """What is said of a model.

    Args:
        files: what a conversion reads of it, the first part of a split GGUF first.
        of_folder: whether the folder that they lie in is this model's, and its papers too.
    """
    if not files:
        return Papers()
    found = Papers()
    if of_folder:
        read = {path.name: _read(path) for path in _papers_in(files[0].parent)}
        front = _front_matter(read.pop(CARD, None) or "")
        found = replace(
            _licence(front, _CARD_KEYS, CARD),
            base_model=_strings(front.get("base_model")),
            texts={name: text for name, text in read.items() if text is not None},
        )
    keys = _gguf_keys(files[0])
    if not found.license:
        said = _licence(keys, _GGUF_KEYS, "the GGUF's metadata")
        found = replace(said, base_model=found.base_model, texts=found.texts)
    if not found.base_model:
        found = replace(found, base_model=_base_models(keys))
    return found


def papers_of(said: Any) -> Papers | None:
    """Parsed JSON of `Papers.as_json`; None where it is something else."""
    if not isinstance(said, dict) or said.keys() != {field.name for field in fields(Papers)}:
        return None
    texts = said["texts"]
    lists = (said["license"], said["base_model"])
    may_lack = (said["license_name"], said["license_link"], said["stated_in"])
    is_right = (
        all(isinstance(each, list) and all(isinstance(t, str) for t in each) for each in lists)
        and all(isinstance(each, str | None) for each in may_lack)
        and isinstance(texts, dict)
        and all(_TEXTS.fullmatch(name) and isinstance(texts[name], str) for name in texts)
    )
    if not is_right:
        return None
    return Papers(**{**said, "license": tuple(lists[0]), "base_model": tuple(lists[1])})


def _licence(said: Mapping[str, Any], keys: tuple[str, str, str], place: str) -> Papers:
    license, name, link = (_strings(said.get(key)) for key in keys)
    return Papers(
        license, next(iter(name), None), next(iter(link), None), place if license else None
    )


def _base_models(keys: Mapping[str, Any]) -> tuple[str, ...]:
    """Ids of what a GGUF says that its model was made of."""
    urls = (str(keys.get(f"general.base_model.{i}.repo_url", "")) for i in range(_MOST_BASES))
    return tuple(match[1] for url in urls if (match := _REPO_URL.fullmatch(url)))


def _papers_in(folder: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    except OSError:
        return []
    return [folder / name for name in are_papers(names)]


def _gguf_keys(path: Path) -> dict[str, Any]:
    """The first of a GGUF's keys; none of any other file."""
    try:
        with open(path, "rb") as file:
            head = file.read(_GGUF_HEAD)
        if not head.startswith(b"GGUF"):
            return {}
        from converter.checkpoint.gguf_header import first_keys  # and numpy with it

        return first_keys(head, str(path))
    except (OSError, LiteRTLMError):
        return {}


def _front_matter(text: str) -> dict[str, Any]:
    import yaml

    match = _FRONT.match(text[:_LONGEST_FRONT])
    if match is None:
        return {}
    try:
        found = yaml.safe_load(match[1])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _strings(value: Any) -> tuple[str, ...]:
    """One string or a list of them, without what is empty."""
    values = value if isinstance(value, list) else [value]
    return tuple(text.strip() for text in values if isinstance(text, str) and text.strip())


def _read(path: Path) -> str | None:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        return content.decode("utf-8-sig") if len(content) <= LARGEST else None
    except (OSError, UnicodeDecodeError):
        return None
