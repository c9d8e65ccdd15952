"""What the user typed as MODEL, and where its files and its result live.

    demo                  SmolLM2-135M-Instruct, out of the Python package index
    x.litertlm            converted already
    x.gguf                a GGUF file
    folder                config.json and *.safetensors
    org/name              a Hugging Face id; org/name:FILE for one file of several
                          (the address of its page does, too)

What exists on disk wins over a Hugging Face id of the same spelling.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converter.checkpoint.files import is_plain_name, why_not_a_model
from converter.errors import SourceError
from converter.home import data_folder

DEMO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SUFFIX = ".litertlm"

Kind = Literal["demo", "litertlm", "gguf", "folder", "hub"]

_WHAT_WORKS = (
    "pass a Hugging Face id (org/name), a folder with config.json and *.safetensors, "
    "a .gguf file, a .litertlm file, or demo"
)
_PAGE = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)/?")


@dataclass(frozen=True)
class Source:
    """A model that can be converted or run.

    Attributes:
        kind: what it is; `demo` and `hub` are fetched into `checkpoint_dir` first.
        name: the base name of the result.
        models_dir: the folder of everything that was fetched or converted.
        path: the local file or folder; None for `demo` and `hub`.
        repo_id: `org/name` for `demo` and `hub`; None for local sources.
        file: the one file that was asked for with `org/name:FILE`.
    """

    kind: Kind
    name: str
    models_dir: Path
    path: Path | None = None
    repo_id: str | None = None
    file: str | None = None

    @property
    def home(self) -> Path:
        """The model's folder: `models/{org}/{name}`, or `models/local/{name}`."""
        if self.repo_id is not None:
            return self.models_dir.joinpath(*self.repo_id.split("/"))
        return self.models_dir / "local" / self.name

    @property
    def checkpoint_dir(self) -> Path:
        """Where fetched files go. It does not follow --output-dir: nothing is fetched twice."""
        return self.home / "checkpoint"

    def output_path(self, output_dir: Path | None = None) -> Path:
        """Where the converted file goes; for a `.litertlm` file, the file itself."""
        if self.kind == "litertlm" and self.path is not None:
            return self.path
        return (self.home if output_dir is None else output_dir) / (self.name + SUFFIX)


def models_dir() -> Path:
    """Return the folder for models: LITERT_LM_MODELS, or `models` in the data folder."""
    moved = os.environ.get("LITERT_LM_MODELS")
    if moved:
        return Path(moved).expanduser()
    return data_folder() / "models"


def list_models(models_dir: Path) -> list[Path]:
    """Return the converted files below `models_dir`, sorted; not what was fetched as a source."""
    return sorted(
        path
        for path in models_dir.rglob("*" + SUFFIX)
        if path.is_file()
        and not path.name.startswith(".")
        and path.relative_to(models_dir).parts[2:-1] != ("checkpoint",)
    )


def parse_model(text: str, models_dir: Path) -> Source:
    """Turn what the user typed into a `Source`. Reads directories, but no file and no network.

    Raises:
        SourceError: there is no such file, or it is none of the things that can be converted.
        UnsupportedError: a folder that holds only an adapter or PyTorch pickles.
    """
    if text == "demo":
        name = DEMO_ID.partition("/")[2]
        return Source("demo", name, models_dir, repo_id=DEMO_ID)
    path = _existing(text)
    if path is not None:
        return _local(text, path, models_dir)
    if _looks_like_a_path(text):
        raise SourceError(shown(text), "no such file or folder", "check the path")
    return _hub(text, models_dir)


def parse_adapter(text: str) -> tuple[Path | None, str | None]:
    """What `--lora` was given: a folder that is here, or else an id on the hub.

    Raises:
        SourceError: it is neither.
    """
    path = _existing(text)
    if path is not None or _looks_like_a_path(text):
        return Path(text).expanduser(), None
    return None, _hub(text, models_dir()).repo_id


def shown(text: str) -> str:
    """Return the user's text fit for an error message: one line, no control characters."""
    return text if text.isprintable() and text.strip() else ascii(text)


def _existing(text: str) -> Path | None:
    """Return the path that `text` names, if there is something; the empty text is no path."""
    if not text.strip():
        return None
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown ~user
        return None


def _looks_like_a_path(text: str) -> bool:
    """Tell whether a Hugging Face id is out of the question."""
    starts = ("./", "../", "/", "~", ".\\", "..\\", "\\")
    drive = len(text) > 2 and text[1] == ":" and text[2] in "/\\"
    # Not org/name:FILE.gguf, which is one file of a repository.
    ends = ":" not in text and text.lower().endswith((".gguf", SUFFIX, ".safetensors"))
    return text in (".", "..") or text.startswith(starts) or drive or ends


def _local(text: str, path: Path, models_dir: Path) -> Source:
    """Make the source for something that exists on disk."""
    # `.` and `..` have no name of their own; a link keeps the name that the user sees.
    absolute = Path(os.path.abspath(path))
    if path.is_dir():
        try:
            names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise SourceError(shown(text), why, "pass a folder that can be read") from error
        unusable = why_not_a_model(shown(text), names)
        if unusable is not None:
            raise unusable
        return Source("folder", _checked(text, absolute.name), models_dir, path=path)
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        return Source("litertlm", path.stem, models_dir, path=path)
    if suffix == ".gguf":
        return Source("gguf", _checked(text, absolute.stem), models_dir, path=path)
    if suffix == ".safetensors":
        raise SourceError(
            shown(text),
            "one weight file is not a model: config.json and the tokenizer are beside it",
            "pass its folder",
        )
    raise SourceError(shown(text), "it is not a model that can be converted", _WHAT_WORKS)


def _hub(text: str, models_dir: Path) -> Source:
    """Make the source for a Hugging Face id."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    page = _PAGE.fullmatch(text)
    repo_id, colon, file = (page.group(1) if page else text).partition(":")
    organisation, slash, name = repo_id.partition("/")
    if not slash:
        why = "there is no such file or folder, and a Hugging Face id has the form org/name"
        raise SourceError(shown(text), why, _WHAT_WORKS)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        why = "it is neither a file or folder nor a Hugging Face id"
        raise SourceError(shown(text), why, _WHAT_WORKS) from error
    _checked(text, organisation)
    if not colon:
        return Source("hub", _checked(text, name), models_dir, repo_id=repo_id)
    if not file.lower().endswith((".gguf", SUFFIX)):
        raise SourceError(
            shown(text), "what stands after the colon is not a .gguf or .litertlm file", _WHAT_WORKS
        )
    _checked(text, file)
    return Source("hub", Path(file).stem, models_dir, repo_id=repo_id, file=file)


def _checked(text: str, name: str) -> str:
    """Return `name` if it can be a file's name on every system, and so cannot leave its folder."""
    if not is_plain_name(name) or name.startswith("."):
        raise SourceError(
            shown(text), f"the result cannot be named after {name!a}", "rename it, or pass a copy"
        )
    return name
