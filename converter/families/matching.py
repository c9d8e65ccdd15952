"""Which tensor of a checkpoint is which weight of the network, and what the others are.

transformers reads a folder by name: it reports what its class has no place for, and leaves it out.
So do we, as long as that leaves the network what it was. One line is drawn here and nowhere else:

    left out, and said   modules of their own (mtp.*, v_head.*, a vision tower), layers past
                         num_hidden_layers, buffers that older versions saved (masked_bias)
    refused              what stands in a layer of this network or at one of its weights: a bias, a
                         norm or a gate that the config leaves out, an adapter that is not merged,
                         the scales of a quantised weight. Without it these are other numbers.

A GGUF is made for llama.cpp, which refuses a file with a tensor that it does not use: so do we.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from converter.errors import SourceError, UnsupportedError

# Leading parts of a tensor's name that say only where the decoder sits in a larger model, or what
# it was wrapped in when it was saved: DistributedDataParallel, Lightning, peft.
_OUTER = {"backbone", "model", "language_model", "module", "_forward_module", "base_model"}
# The same, at any place: torch.compile, FSDP, activation checkpointing.
_TRANSPARENT = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# What a layer's attention computes for itself, and saved before 2023: masks and rotary tables.
_BUFFER = re.compile(r"layers\.\d+\.self_attn\.(bias|masked_bias|rotary_emb\.\w+)")
_LAYER = re.compile(r"(?:layers|blk)\.(\d+)\.")
# What helps where a GGUF is not what its architecture says; there is nothing in it to be edited.
OTHER_GGUF = "use another GGUF of this model, or its Hugging Face folder"
# What a stranger at a weight means, by its name; the first that fits is told.
_MEANINGS = (
    (
        re.compile(r"lora_|base_layer|modules_to_save|token_adapter"),
        "an adapter that is not merged",
        "load it with peft, merge_and_unload, save_pretrained, and convert the result",
    ),
    (
        re.compile(r"scale|qweight|qzeros|g_idx|absmax|quant|\.biases$|SCB|packed"),
        "quantised weights",
        "convert the original model in BF16, F16 or F32",
    ),
)


def without_wrappers(tensor: str) -> str:
    """A tensor's or module's name as the decoder's own, without what it was wrapped in."""
    parts = [part for part in tensor.split(".") if part not in _TRANSPARENT]
    while len(parts) > 1 and parts[0] in _OUTER:
        del parts[0]
    return ".".join(parts)


def plain_names(tensors: Iterable[str], what: str) -> dict[str, str]:
    """Every tensor by its name without wrappers.

    Raises:
        SourceError: two have the same.
    """
    found: dict[str, str] = {}
    for tensor in tensors:
        plain = without_wrappers(tensor)
        if plain in found:
            raise SourceError(
                what,
                f"holds the same weight twice: {found[plain]} and {tensor}",
                "remove one of them",
            )
        found[plain] = tensor
    return found


def refuse_strangers(what: str, others: Sequence[str], wanted: Collection[str], fmt: str) -> None:
    """Refuse tensors without which the network's numbers would be others.

    Args:
        what: the checkpoint, as the user knows it.
        others: tensors that are no weight of the network.
        wanted: the names of those that are, without wrappers.
        fmt: `safetensors` or `gguf`.

    Raises:
        SourceError, UnsupportedError: there are such tensors; they are listed.
    """
    modules = {name.rpartition(".")[0] for name in wanted}
    layers = {match[0] for name in wanted if (match := _LAYER.match(name))}
    strangers = [
        tensor
        for tensor in others
        if fmt == "gguf" or _is_own(without_wrappers(tensor), modules, layers)
    ]
    if not strangers:
        return
    for pattern, meaning, fix in _MEANINGS:
        found = [tensor for tensor in strangers if pattern.search(tensor)]
        if found:
            raise UnsupportedError(what, f"holds {meaning}: {listed(found)}", fix)
    raise SourceError(
        what,
        f"holds {len(strangers)} tensors that this network does not have: {listed(strangers)}",
        OTHER_GGUF
        if fmt == "gguf"
        else "check model_type in config.json, and what it says about biases and norms",
    )


def _is_own(name: str, modules: Collection[str], layers: Collection[str]) -> bool:
    """Whether a tensor stands in one of the network's layers, or at one of its weights."""
    if _BUFFER.fullmatch(name):
        return False
    layer = _LAYER.match(name)
    if layer:
        return layer[0] in layers
    parts = name.split(".")
    return any(".".join(parts[:end]) in modules for end in range(1, len(parts)))


def listed(names: Sequence[str], limit: int = 20) -> str:
    """Names in a sentence."""
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def grouped(tensors: Sequence[str], limit: int = 12) -> str:
    """Many tensors in a line: those of one module, layers taken together, are named once.

    `mtp.layers.0.a, mtp.fc.b, v_head.c` -> `mtp.* (2 tensors), v_head.c`.
    """
    groups: dict[str, list[str]] = {}
    for tensor in tensors:
        plain = without_wrappers(tensor)
        layer = _LAYER.match(plain)
        first = layer[0] if layer else plain.split(".", 1)[0] + "."
        groups.setdefault(tensor[: len(tensor) - len(plain)] + first, []).append(tensor)
    return listed(
        [
            members[0] if len(members) == 1 else f"{first}* ({len(members)} tensors)"
            for first, members in groups.items()
        ],
        limit,
    )
