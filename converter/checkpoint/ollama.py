"""Models that Ollama keeps on this machine.

    manifests/registry.ollama.ai/library/gemma3/270m     JSON: what belongs to gemma3:270m
    blobs/sha256-...                                     its GGUF, without a suffix

The folder is OLLAMA_MODELS, or one of Ollama's own defaults. Nothing is asked of Ollama itself.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from converter.errors import OptionError, SourceError, UnsupportedError

_DEFAULTS = (Path("~/.ollama/models"), Path("/usr/share/ollama/.ollama/models"))
_REGISTRY, _LIBRARY, _TAG = "registry.ollama.ai", "library", "latest"
_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
_NAME = re.compile(rf"(?:(?:({_PART})/)?({_PART})/)?({_PART})(?::({_PART}))?")
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_MEDIA = "application/vnd.ollama.image."
_MOST_LISTED = 20


@dataclass(frozen=True)
class OllamaModel:
    """A model in Ollama's folder.

    Attributes:
        name: what `ollama list` calls it: `gemma3:270m`.
        base_name: a file name made of it: `gemma3-270m`.
        gguf: the blob that holds its weights.
        left_out: what belongs to it besides and is not used: `template`, `system`, `params`.
    """

    name: str
    base_name: str
    gguf: Path
    left_out: tuple[str, ...]


def model_folders() -> list[Path]:
    """The folders in which Ollama may keep models, of those that exist."""
    return [folder for folder in _places() if is_model_folder(folder)]


def closed_folder() -> Path | None:
    """The first of them that may not be read, as where Ollama is a service of another user."""
    for folder in _places():
        try:
            os.listdir(folder / "manifests")
        except PermissionError:
            return folder
        except OSError:
            continue
    return None


def _places() -> list[Path]:
    moved = os.environ.get("OLLAMA_MODELS")
    return [path.expanduser() for path in ([Path(moved)] if moved else _DEFAULTS)]


def is_model_folder(folder: Path) -> bool:
    """Tell whether Ollama keeps its models there, as far as that may be known."""
    try:
        return (folder / "manifests").is_dir() and (folder / "blobs").is_dir()
    except PermissionError:
        return False


def find_model(text: str) -> OllamaModel | None:
    """The model that Ollama would run as `text`; None where it has none of this name.

    Raises:
        SourceError, UnsupportedError: it has one that cannot be read.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    host, namespace, name, tag = match.groups()
    wanted = (host or _REGISTRY, namespace or _LIBRARY, name, tag or _TAG)
    for folder in model_folders():
        manifest = _path_of(folder / "manifests", wanted)
        if manifest is not None:
            return _read(folder, manifest)
    return None


def only_model(folder: Path) -> OllamaModel:
    """The model of a folder that holds one.

    Raises:
        OptionError: it holds several; they are named.
        SourceError, UnsupportedError: none, or one that cannot be read.
    """
    manifests = _manifests(folder)
    if not manifests:
        raise SourceError(str(folder), "Ollama keeps no model there", "ollama pull NAME first")
    if len(manifests) > 1:
        names = sorted(_shown(folder, manifest) for manifest in manifests)
        more = f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else ""
        raise OptionError(
            str(folder),
            f"it holds {len(names)} of Ollama's models: {', '.join(names[:_MOST_LISTED])}{more}",
            f"name one: OLLAMA_MODELS={folder}, and {names[0]} as MODEL",
        )
    return _read(folder, manifests[0])


def model_of_file(path: Path) -> OllamaModel | None:
    """The model to which a manifest or a blob of Ollama's belongs; None for any other file.

    A blob may belong to several: the first by name is taken.
    """
    path = Path(os.path.abspath(path))
    for folder in path.parents:
        if not is_model_folder(folder):
            continue
        manifests = _manifests(folder)
        if path in manifests:
            return _read(folder, path)
        for manifest in manifests:
            try:
                model = _read(folder, manifest)
            except (SourceError, UnsupportedError):  # another model's affair
                continue
            if model.gguf == path:
                return model
    return None


def known_names() -> list[str]:
    """What `ollama list` would show."""
    return sorted(
        _shown(folder, manifest) for folder in model_folders() for manifest in _manifests(folder)
    )


def _manifests(folder: Path) -> list[Path]:
    """Every manifest: HOST/NAMESPACE/NAME/TAG, below `manifests`."""
    found = (folder / "manifests").glob("*/*/*/*")
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def _path_of(manifests: Path, parts: tuple[str, ...]) -> Path | None:
    """The manifest of a name; as in Ollama, large and small letters are the same."""
    path = manifests
    for part in parts:
        try:
            names = sorted(entry.name for entry in path.iterdir())
        except OSError:
            return None
        same = [name for name in names if name.lower() == part.lower()]
        if not same:
            return None
        path = path / (part if part in same else same[0])
    return path if path.is_file() else None


def _shown(folder: Path, manifest: Path) -> str:
    """`gemma3:270m`; with its namespace and host where they are not Ollama's own."""
    host, namespace, name, tag = manifest.relative_to(folder / "manifests").parts
    if host != _REGISTRY:
        return f"{host}/{namespace}/{name}:{tag}"
    return f"{name}:{tag}" if namespace == _LIBRARY else f"{namespace}/{name}:{tag}"


def _read(folder: Path, manifest: Path) -> OllamaModel:
    """The model of a manifest."""
    shown = _shown(folder, manifest)
    layers = _layers(manifest)
    weights = [digest for kind, digest in layers if kind == "model"]
    kinds = {kind for kind, _ in layers}
    if "adapter" in kinds:
        raise UnsupportedError(
            shown,
            "it is a model and a LoRA adapter, which Ollama merges when it runs",
            "convert the base model with --lora and the adapter, a GGUF or a PEFT folder",
        )
    if len(weights) != 1:
        raise UnsupportedError(
            shown,
            "Ollama keeps it in another form than one GGUF",
            "convert the original model from the hub",
        )
    blob = folder / "blobs" / f"sha256-{weights[0]}"
    if not blob.is_file():
        raise SourceError(shown, f"its weights are missing: {blob}", f"ollama pull {shown}")
    name, tag = manifest.parent.name, manifest.name
    return OllamaModel(
        shown,
        name if tag == _TAG else f"{name}-{tag}",
        blob,
        tuple(sorted(kinds & {"template", "system", "params", "messages"})),
    )


def _layers(manifest: Path) -> list[tuple[str, str]]:
    """Of every layer: its kind (`model`, `template`, ...) and its digest in hexadecimal."""

    def wrong(why: str) -> SourceError:
        return SourceError(str(manifest), f"it is no manifest of Ollama's: {why}", "pull it again")

    try:
        content: Any = json.loads(manifest.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise wrong(str(error)) from None
    layers = content.get("layers") if isinstance(content, dict) else None
    if not isinstance(layers, list):
        raise wrong("it has no layers")
    found = []
    for layer in layers:
        media = layer.get("mediaType") if isinstance(layer, dict) else None
        digest = _DIGEST.fullmatch(str(layer.get("digest"))) if isinstance(layer, dict) else None
        if not isinstance(media, str) or digest is None:
            raise wrong("a layer has no mediaType or no digest")
        found.append((media.partition(";")[0].removeprefix(_MEDIA), digest[1]))
    return found
