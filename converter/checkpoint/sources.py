"""What the user typed as MODEL, and where its files and its result live.

    demo                  SmolLM2-135M-Instruct, out of the Python package index
    x.litertlm            converted already
    x.gguf                a GGUF file, whatever it is called; any part of a split one
    folder                config.json and *.safetensors, or one GGUF; a hub cache's folder, too
    org/name              a Hugging Face id; org/name:Q4_K_M or org/name:FILE for one of several
                          GGUFs
    https://...           the address of its page, or of one of its files
    gemma3:270m           a model that Ollama keeps on this machine; its folder, manifest or blob
                          does, too

What exists on disk wins over a Hugging Face id of the same spelling.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from converter.checkpoint import ollama
from converter.checkpoint.addresses import Address, parse_address
from converter.checkpoint.file_kinds import GGUF, HEAD_BYTES, SAFETENSORS, FileKind, what_it_is
from converter.checkpoint.files import (
    files_below,
    is_plain_name,
    refuse_dangling_links,
    status_of,
    unreadable,
    why_not_a_model,
)
from converter.checkpoint.gguf_names import gguf_models, split_name
from converter.errors import LiteRTLMError, OptionError, SourceError
from converter.home import data_folder

DEMO_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
SUFFIX = ".litertlm"
PACKAGES = "coreml"  # the folder of a model's packages, in the model's own
LOCAL = "local"  # in the place of an organisation, for what was made of a file or folder

Kind = Literal["demo", "litertlm", "gguf", "folder", "hub"]

_WHAT_WORKS = (
    "pass a Hugging Face id (org/name), a folder with config.json and *.safetensors, "
    "a .gguf file, a .litertlm file, a model of Ollama's (NAME:TAG), or demo"
)
_TAG = re.compile(r"[\w.-]+")
_ANY_TAG = "latest"  # what Ollama calls a model that was asked for without a tag
_DIGEST = re.compile(r"sha256[-:]?[0-9a-f]{64}|[0-9a-f]{64}")
# An adapter and how much of it.
_WEIGHTED = re.compile(r"(?P<adapter>.+):(?P<weight>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+))", re.DOTALL)
_GGUF_ENDING = re.compile(r"[-_.]gguf$", re.IGNORECASE)
# A folder of the hub's cache, and a commit, which names a folder in it.
_CACHED = re.compile(r"models--(?:.+--)?(.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_STEP = re.compile(r"checkpoint-\d+")


@dataclass(frozen=True)
class Source:
    """A model that can be converted or run.

    Attributes:
        kind: what it is; `demo` and `hub` are fetched into `checkpoint_dir` first.
        name: the base name of the result.
        models_dir: the folder of everything that was fetched or converted.
        path: the local file or folder; None for `demo` and `hub`.
        repo_id: `org/name` for `demo` and `hub`; None for local sources.
        file: what was asked for with `org/name:FILE` or by its address: a file, or the tag of a
            GGUF (`Q4_K_M`).
        revision: branch, tag or commit that stands in the address.
        notes: what the user should be told, a line each.
    """

    kind: Kind
    name: str
    models_dir: Path
    path: Path | None = None
    repo_id: str | None = None
    file: str | None = None
    revision: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def home(self) -> Path:
        """The model's folder: `models/{org}/{name}`, or `models/local/{name}`."""
        if self.repo_id is not None:
            return self.models_dir.joinpath(*self.repo_id.split("/"))
        return self.models_dir / LOCAL / self.name

    @property
    def checkpoint_dir(self) -> Path:
        """Where fetched files go. It does not follow --output-dir: nothing is fetched twice."""
        return self.home / "checkpoint"

    @property
    def packages_dir(self) -> Path:
        """Where Core ML packages go."""
        return self.home / PACKAGES

    def output_path(self, output_dir: Path | None = None) -> Path:
        """Where the converted file goes; for a `.litertlm` file, the file itself."""
        if self.kind == "litertlm" and self.path is not None:
            return self.path
        return (self.home if output_dir is None else output_dir) / (self.name + SUFFIX)


@dataclass(frozen=True)
class AdapterSource:
    """A LoRA adapter that is to be merged.

    Attributes:
        weight: what its update is multiplied by.
        path: a folder of PEFT's or a GGUF file; None for one on the hub.
        repo_id, file: on the hub, `org/name` and the GGUF that was asked for, if one was.
        commit: the one to take; None for the newest.
    """

    weight: float
    path: Path | None = None
    repo_id: str | None = None
    file: str | None = None
    commit: str | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return shown(str(self.path))
        return f"{self.repo_id}:{self.file}" if self.file else str(self.repo_id)

    @property
    def name(self) -> str:
        """What the result is called after it."""
        # "." has a name, too.
        place = (
            Path(os.path.abspath(self.path)) if self.path else Path(self.file or str(self.repo_id))
        )
        name = place.stem if place.suffix.lower() == ".gguf" else place.name
        return name if self.weight == 1 else f"{name}-{self.weight:g}"


def models_dir() -> Path:
    """Return the folder for models: LITERT_LM_MODELS, or `models` in the data folder."""
    moved = os.environ.get("LITERT_LM_MODELS")
    if moved:
        return Path(moved).expanduser()
    return data_folder() / "models"


def list_models(models_dir: Path) -> list[Path]:
    """Return the converted files below `models_dir`, sorted; not what was fetched as a source.

    Raises:
        SourceError: a folder cannot be read.
    """
    if status_of(models_dir) is None:
        return []
    return sorted(
        path
        for path in files_below(models_dir)
        if path.suffix == SUFFIX
        and not path.name.startswith(".")
        and path.relative_to(models_dir).parts[2:-1] != ("checkpoint",)
    )


def models_by_name(models_dir: Path) -> dict[str, Path]:
    """The converted files below `models_dir`, by what `run` calls them."""
    return {
        path.parent.relative_to(models_dir).as_posix(): path for path in list_models(models_dir)
    }


def parse_model(text: str, models_dir: Path) -> Source:
    """Turn what the user typed into a `Source`, from what is on this machine, without the network.

    Raises:
        SourceError: there is no such file, or it is none of the things that can be converted.
        UnsupportedError: a folder that holds only an adapter or PyTorch pickles.
        OptionError: a folder with several GGUFs, Ollama's or not.
    """
    if text == "demo":
        name = DEMO_ID.partition("/")[2]
        return Source("demo", name, models_dir, repo_id=DEMO_ID)
    path = _existing(text)
    if path is not None:
        return _local(text, _in_cache(path), models_dir)
    if parse_address(text) is None and _looks_like_a_path(text):
        raise SourceError(shown(text), "no such file or folder", "check the path")
    # A name without a tag and with one slash is an id of the hub to everybody.
    if ":" in text or text.count("/") != 1:
        kept = ollama.find_model(text)
        if kept is not None:
            return _of_ollama(kept, models_dir)
    return _hub(text, models_dir)


def parse_adapter(text: str) -> AdapterSource:
    """What `--lora` was given: what is here, or else an id on the hub; and `:WEIGHT` behind it.

    Raises:
        SourceError: it is neither.
        OptionError: the weight is beyond all numbers.
    """
    weight = 1.0
    weighted = _WEIGHTED.fullmatch(text)
    if weighted is not None and _existing(text) is None:
        text, weight = weighted["adapter"], float(weighted["weight"])
        if not math.isfinite(weight):
            raise OptionError(f"--lora {shown(text)}", "its weight is not finite", "use another")
    path = _existing(text)
    if path is not None or _looks_like_a_path(text):
        return AdapterSource(weight, Path(text).expanduser())
    source = _hub(text, models_dir())
    if source.revision is not None:
        raise SourceError(shown(text), "of an adapter only the main branch is read", "leave it out")
    return AdapterSource(weight, repo_id=source.repo_id, file=source.file)


def parse_drafter(text: str) -> Source:
    """What `--draft` was given: a folder, or else an id on the hub.

    Raises:
        SourceError: it is neither.
        OptionError: it is a model of another kind.
    """
    source = parse_model(text, models_dir())
    if source.kind not in ("folder", "hub") or source.file is not None:
        raise OptionError(
            f"--draft {shown(text)}",
            "it is no drafter as it was published: a GGUF of one is not read",
            "name a folder with config.json and *.safetensors, or its Hugging Face id",
        )
    return source


def shown(text: str) -> str:
    """Return the user's text fit for an error message: one line, no control characters."""
    return text if text.isprintable() and text.strip() else ascii(text)


def _existing(text: str) -> Path | None:
    """Return the path that `text` names, if there is something; the empty text is no path.

    Raises:
        SourceError: it is a link to nothing, or in a folder that cannot be entered.
    """
    if not text.strip():
        return None
    try:
        path = Path(text).expanduser()
        os.stat(path)
        return path
    except FileNotFoundError:
        refuse_dangling_links(path.parent, [path.name])
        return None
    except PermissionError as error:
        raise unreadable(path, error) from error
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, an unknown ~user
        return None


def _looks_like_a_path(text: str) -> bool:
    """Tell whether a Hugging Face id is out of the question."""
    starts = ("./", "../", "/", "~", ".\\", "..\\", "\\")
    drive = len(text) > 2 and text[1] == ":" and text[2] in "/\\"
    # Not org/name:FILE.gguf, which is one file of a repository.
    ends = ":" not in text and text.lower().endswith((".gguf", SUFFIX, ".safetensors"))
    return text in (".", "..") or text.startswith(starts) or drive or ends


def _in_cache(path: Path) -> Path:
    """The snapshot that a model's folder in the hub's cache, or its `snapshots`, stands for.

    Raises:
        SourceError: the cache does not say which, or does not have it.
    """
    home = path.resolve()
    home = home.parent if home.name == "snapshots" else home
    snapshots = home / "snapshots"
    if not _CACHED.fullmatch(home.name) or not snapshots.is_dir():
        return path
    try:
        have = sorted(entry.name for entry in snapshots.iterdir() if entry.is_dir())
        main = home / "refs" / "main"
        commit = main.read_text("utf-8").strip() if main.is_file() else None
    except (OSError, ValueError) as error:
        raise SourceError(str(home), f"it cannot be read: {error}", "check the folder") from error
    if commit is None and len(have) == 1:
        commit = have[0]
    if commit not in have:
        asked = "refs/main" if commit is None else f"the snapshot {commit:.40} of refs/main"
        listed = ", ".join(have) or "none"
        raise SourceError(
            shown(str(home)),
            f"{asked} is not in this cache, which has the snapshots: {listed}",
            "fetch the model again, or pass a folder in snapshots",
        )
    return snapshots / commit


def _name_of(folder: Path) -> str:
    """What a model in `folder` is called: its name, but for names that are no model's.

    A snapshot in the hub's cache is named after a commit, a trainer's folder after a step.
    """
    parent = folder.parent
    cached = _CACHED.fullmatch(parent.parent.name) if parent.name == "snapshots" else None
    if cached:
        return cached.group(1)
    if _COMMIT.fullmatch(folder.name) and parent.name:
        return parent.name
    if _STEP.fullmatch(folder.name) and parent.name:
        return f"{parent.name}-{folder.name}"
    return folder.name


def _local(text: str, path: Path, models_dir: Path) -> Source:
    """Make the source for something that exists on disk."""
    # `.` and `..` have no name of their own; a link keeps the name that the user sees.
    absolute = Path(os.path.abspath(path))
    if path.is_dir():
        if ollama.is_model_folder(path):
            return _of_ollama(ollama.only_model(path), models_dir)
        try:
            names = {entry.name for entry in path.iterdir()}
        except OSError as error:
            why = (error.strerror or str(error)).lower()
            raise SourceError(shown(text), why, "pass a folder that can be read") from error
        unusable = why_not_a_model(shown(text), names)
        if unusable is not None:
            models = gguf_models(list(names))
            if len(models) == 1:
                return _local(text, path / models[0], models_dir)
            if models:
                raise OptionError(
                    shown(text), f"it holds {len(models)} GGUFs: {', '.join(models)}", "name one"
                )
            raise unusable
        return Source("folder", _checked(text, _name_of(absolute)), models_dir, path=path)
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        return Source("litertlm", path.stem, models_dir, path=path)
    kind = _kind_of(path)
    kept = ollama.model_of_file(absolute)
    if kept is not None:
        return _of_ollama(kept, models_dir)
    if kind == GGUF or suffix == ".gguf":
        name = absolute.stem if suffix == ".gguf" else absolute.name
        part = split_name(absolute.name)
        if _DIGEST.fullmatch(name):
            name = _name_inside(path) or name
        return Source("gguf", _checked(text, part[0] if part else name), models_dir, path=path)
    if suffix == ".safetensors" and kind in (None, SAFETENSORS):
        raise SourceError(
            shown(text),
            "one weight file is not a model: config.json and the tokenizer are beside it",
            "pass its folder",
        )
    if kind is not None:
        raise SourceError(shown(text), f"it is {kind.what}", kind.fix)
    raise SourceError(shown(text), "it is not a model that can be converted", _WHAT_WORKS)


def _kind_of(path: Path) -> FileKind | None:
    """What a file is by its first bytes; None for what is no file.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            return None
        with open(path, "rb") as stream:
            return what_it_is(stream.read(HEAD_BYTES))
    except OSError as error:
        raise unreadable(path, error) from error


def _name_inside(path: Path) -> str | None:
    """The name that a GGUF gives its model, as a file name; None where it gives none."""
    from converter.checkpoint.gguf_header import read_header

    try:
        with open(path, "rb") as stream:
            header = read_header(stream, str(path), path.stat().st_size)
    except (OSError, LiteRTLMError):  # told when it is opened to be converted
        return None
    name = re.sub(r"[^\w.-]+", "-", str(header.metadata.get("general.name", ""))).strip("-.")
    return name or None


def _of_ollama(model: ollama.OllamaModel, models_dir: Path) -> Source:
    """Make the source for a model of Ollama's."""
    added = ", ".join(model.left_out)
    note = f"{model.name}: what Ollama adds to its GGUF is not used ({added})"
    notes = (note,) if added else ()
    return Source("gguf", model.base_name, models_dir, path=model.gguf, notes=notes)


def _hub(text: str, models_dir: Path) -> Source:
    """Make the source for a Hugging Face id, or the address of its page."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    address = parse_address(text)
    if address is None and "://" in text:
        raise SourceError(
            shown(text),
            "it is not an address on huggingface.co",
            "download what it names and pass that, or name a mirror in HF_ENDPOINT",
        )
    address = address or Address(text.removesuffix("/"))
    if address.model is None:
        raise SourceError(shown(text), "it is not the address of a model's page", _WHAT_WORKS)
    repo_id, _, file = address.model.partition(":")
    revision = address.revision
    if address.path is not None:
        if not address.path.lower().endswith((".gguf", SUFFIX)):
            raise SourceError(
                shown(text),
                f"{address.path} in it is neither a .gguf nor a .litertlm file",
                f"pass {repo_id} for the whole model",
            )
        file = address.path
    organisation, slash, name = repo_id.partition("/")
    if not slash:
        raise _unknown_name(text)
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        why = "it is neither a file or folder nor a Hugging Face id"
        raise SourceError(shown(text), why, _WHAT_WORKS) from error
    _checked(text, organisation)
    if file in ("", _ANY_TAG):
        name = _checked(text, name)
        return Source("hub", name, models_dir, repo_id=repo_id, revision=revision)
    if file.lower().endswith((".gguf", SUFFIX)):
        stem = Path(file).name.rpartition(".")[0]
        part = split_name(Path(file).name)
        for folder in file.split("/"):
            _checked(text, folder)
        name = part[0] if part else stem
        return Source("hub", name, models_dir, repo_id=repo_id, file=file, revision=revision)
    if not _TAG.fullmatch(file):
        raise SourceError(
            shown(text),
            "what stands after the colon is no .gguf or .litertlm file and no tag like Q4_K_M",
            _WHAT_WORKS,
        )
    tag = file.upper()
    base = _checked(text, f"{_GGUF_ENDING.sub('', name)}-{tag}")
    return Source("hub", base, models_dir, repo_id=repo_id, file=tag, revision=revision)


def _unknown_name(text: str) -> SourceError:
    """The refusal of a name that is no file, no id of the hub and no model that Ollama has."""
    why = "there is no such file or folder, and a Hugging Face id has the form org/name"
    if ":" in text and (folder := ollama.closed_folder()) is not None:
        return SourceError(
            shown(text),
            f"{why}; and Ollama's folder {folder} may not be read",
            "join the group that owns it, or pass a GGUF or a Hugging Face id",
        )
    names = ollama.known_names()
    if ":" in text and not names:
        return SourceError(shown(text), f"{why}; and Ollama keeps no model here", _WHAT_WORKS)
    if ":" in text:
        near = ", ".join(difflib.get_close_matches(text, names, 5, cutoff=0) or names[:5])
        return SourceError(
            shown(text),
            f"{why}; and Ollama has no model of this name here",
            f"ollama pull it first, or name one that is here: {near}",
        )
    return SourceError(shown(text), why, _WHAT_WORKS)


def _checked(text: str, name: str) -> str:
    """Return `name` if it can be a file's name on every system, and so cannot leave its folder."""
    if not is_plain_name(name) or name.startswith("."):
        raise SourceError(
            shown(text), f"the result cannot be named after {name!a}", "rename it, or pass a copy"
        )
    return name
