"""An output that exists already: how it was made, and whether that is what is asked for now."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.request import Request, flag
from converter.errors import SourceError

if TYPE_CHECKING:
    from converter.checkpoint.sources import AdapterSource

# Options whose names are not those of the fields that they fill.
_OPTIONS = {
    "prefill_lengths": ("prefill_seq_len",),
    "cache_length": ("kv_cache_max_len",),
    "drafts": ("draft",),
    "chunks": ("chunk",),
    "lut_embeddings": ("lut1", "no_lut"),
    "lut_layers": ("lut2", "no_lut"),
    "lut_head": ("lut3", "no_lut"),
}


def made_otherwise(request: Request, chosen: Mapping[str, Any], output: Path) -> str:
    """That an output was not made as asked, by its receipt; "" where it was.

    What nobody said may be anything. Of `--memory` and a scale that is measured, a receipt has
    what came of them, which cannot be told before.

    Args:
        chosen: `request.chosen()`.
    """
    from converter.receipt import read_receipt, receipt_path

    try:
        receipt = read_receipt(receipt_path(output))
        is_its = output.is_dir() or output.stat().st_size == receipt["output"]["size"]
        said = _said(receipt) if is_its else {}
    except (SourceError, OSError, KeyError, TypeError, ValueError):
        said = {}  # `verify` says what is wrong with it
    wanted = _wanted(chosen)
    if request.revision is not None:
        wanted["revision"] = request.revision
    others = [name for name, value in wanted.items() if value not in said.get(name, ())]
    options = dict.fromkeys(
        option
        for name in others
        for option in _OPTIONS.get(name, (name,))
        if getattr(request, option, None) is not None
    )
    if not options:
        return ""
    asked = " ".join(_spelled(option, getattr(request, option)) for option in options)
    how = "not as asked, with" if said else "nothing says that it was made with"
    return f", and {how} {asked}"


def _wanted(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a receipt would say of options, by their fields."""
    from converter.receipt import hash_text

    wanted = {
        name: list(value) if isinstance(value, tuple) else getattr(value, "value", value)
        for name, value in chosen.items()
        if name not in ("memory", "drafter") and not name.startswith("lut_")
    }
    for name in ("calibrate", "chat_template"):
        if chosen.get(name) is not None:
            wanted[name] = hash_text(chosen[name].text)
    if "lora" in wanted:
        wanted["lora"] = [[_place(adapter), adapter.weight] for adapter in chosen["lora"]]
    if "drafts" in wanted:
        drafter = chosen.get("drafter")
        name = "lookup" if drafter is None else drafter.repo_id or drafter.name
        wanted["drafts"] = f"{name}:{chosen['drafts']}" if chosen["drafts"] else "none"
    if "fp16_scale" in chosen:
        from converter.coreml_options import AUTO_SCALE

        if chosen["fp16_scale"] == AUTO_SCALE:
            del wanted["fp16_scale"]
    for name in chosen:
        if name.startswith("lut_"):
            palette = chosen[name]
            wanted[name] = None if palette is None else [palette.bits, palette.group]
    return wanted


def _said(receipt: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """What a receipt says, by the same names; what each may be called."""
    options, source = receipt["options"] or {}, receipt["source"]
    if options:  # receipts from before there was a choice say nothing of it
        options = {"kv_cache": "fp32"} | options
    said = {name: (value,) for name, value in options.items()}
    for name in ("calibrate", "chat_template"):
        said[name] = ((options.get(name) or {}).get("blake3"),)
    said["lora"] = ([[each["model"], each["weight"]] for each in options.get("adapters") or ()],)
    said["drafts"] = (options.get("draft", "none"),)
    return said | {"revision": (source.get("revision"), source.get("commit"))}


def _place(adapter: AdapterSource) -> str:
    return str(adapter.repo_id if adapter.path is None else adapter.path.absolute())


def _spelled(option: str, value: Any) -> str:
    """An option as it was typed."""
    if value is True:
        return flag(option)
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        value = [value]
    return " ".join(f"{flag(option)} {shlex.quote(f'{one}')}" for one in value)


def made_as(output: Path) -> str:
    """In which scheme, for what and how long a `.litertlm` file was made, where it says so."""
    from converter.litertlm.inspection import read_bundle

    try:
        bundle = read_bundle(output)
    except SourceError:  # whoever uses the file will say what is wrong with it
        return ""
    system, context = bundle.system, bundle.metadata.max_num_tokens
    said = [str(system[key]) for key in ("quantization", "target") if key in system]
    made = f" in {' for '.join(said)}" if said else ""
    if "calibration" in system:
        made += " by a text"
    if "bits of a weight" in system:
        made += f", {str(system['bits of a weight']).partition(';')[0]} bits a weight,"
    made += f" with a context of {context} tokens" if context else ""
    if system.get("KV cache", "fp32") != "fp32":
        made += f" in {system['KV cache']}"
    return made + (" and drafts" if "draft" in system else "")


def packages_made_as(output: Path) -> str:
    """The same of a folder of packages, by its receipt."""
    from converter.receipt import read_receipt, receipt_path

    try:
        said = read_receipt(receipt_path(output)).get("options") or {}
        palettes = [said[name] for name in ("lut_embeddings", "lut_layers", "lut_head")]
        context, argmax = int(said["context"]), ", argmax" if said["argmax"] else ""
        tables = "/".join("fp16" if each is None else f"lut{each[0]}" for each in palettes)
    except (SourceError, KeyError, TypeError, ValueError, IndexError):
        return ""  # `verify` says what is wrong with it
    return f" in {tables} for context {context}{argmax}"
