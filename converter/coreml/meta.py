"""What stands beside packages, so that ANEMLL's runtimes find and read them.

Names, keys and defaults are those of ANEMLL 0.3.5: `generate_meta_yaml.py`, `tests/chat.py` and
Swift's `YAMLConfig`. Where a key is missing runtimes guess from the prefix, often wrongly, so that
every key is written. The same model gives the same bytes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from converter.coreml.decoder_program import Interface, calls
from converter.errors import one_line

VERSION = "0.3.5"  # of ANEMLL's format
META = "meta.yaml"
CONFIG = "config.json"
COMPILE = "compile.sh"

# Runtimes take template, window and vocabulary from it where nothing else says them; a family that
# ANEMLL does not have goes by its own name.
_PREFIXES = {"qwen2": "qwen25", "qwen3": "qwen", "gemma3_text": "gemma3"}
# Swift's window for such a prefix, where the context is longer and no key says another.
_GUESSED_WINDOW = 512
# transformers' values where generation_config.json has none.
_SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 50}


class Lut(Protocol):
    """How matrices are palettised: bits of an index, and rows that share a table (0 for all)."""

    @property
    def bits(self) -> int: ...

    @property
    def group(self) -> int: ...


def default_prefix(model_type: str) -> str:
    """What names of files begin with, where the user does not say it."""
    return _PREFIXES.get(model_type) or re.sub(r"[^A-Za-z0-9_-]", "_", model_type)


def usual_head_parts(model_type: str) -> int:
    """Into how many parts ANEMLL cuts a family's head."""
    return 16 if model_type.startswith(("qwen", "gemma")) else 8


@dataclass(frozen=True)
class Names:
    """Of all packages, without `.mlpackage`; runtimes build the same from meta.yaml.

    Attributes:
        embeddings_lut, layers_lut, head_lut: None for float16.
        chunks: packages that share the layers; 0 where one package has everything.
    """

    prefix: str
    embeddings_lut: Lut | None
    layers_lut: Lut | None
    head_lut: Lut | None
    chunks: int

    @property
    def embeddings(self) -> str:
        return f"{self.prefix}_embeddings{_suffix(self.embeddings_lut)}"

    @property
    def head(self) -> str:
        return f"{self.prefix}_lm_head{_suffix(self.head_lut)}"

    @property
    def monolithic(self) -> str:
        return f"{self.prefix}_monolithic_full{_suffix(self.layers_lut)}"

    def chunk(self, i: int) -> str:
        """Of layers, counted from 0."""
        part = f"{i + 1:02}of{self.chunks:02}"
        return f"{self.prefix}_FFN_PF{_suffix(self.layers_lut)}_chunk_{part}"

    @property
    def all(self) -> tuple[str, ...]:
        """In the order in which a token goes through them."""
        if not self.chunks:
            return (self.monolithic,)
        return (self.embeddings, *map(self.chunk, range(self.chunks)), self.head)


@dataclass(frozen=True)
class Description:
    """A converted model.

    Attributes:
        model: its name.
        license: as its publisher says it; None where nobody says.
        has_windows: whether some layers of it see a window, though the context be no longer.
        sampling: do_sample, temperature, top_p and top_k, those that the source sets.
        comments: for people, by what they concern.
    """

    model: str
    model_type: str
    names: Names
    interface: Interface
    license: str | None = None
    has_windows: bool = False
    sampling: Mapping[str, Any] = field(default_factory=dict)
    comments: Mapping[str, str] = field(default_factory=dict)

    @property
    def window(self) -> int | None:
        """After how many positions runtimes call the functions of full windows.

        A prefix from which Swift would guess a window gets one that no position reaches.
        """
        windows = [state.window for state in self.interface.states if state.window]
        if windows:
            return min(windows)
        context = self.interface.context
        guessed = self.names.prefix.lower().startswith("gemma3") and context > _GUESSED_WINDOW
        return context if guessed else None


def meta_yaml(described: Description) -> bytes:
    """The file from which runtimes start."""
    import yaml

    names, interface = described.names, described.interface
    model = described.model.rpartition("/")[2]
    name = f"anemll-{model}-ctx{interface.context}"
    what = f"{names.chunks} chunks" if names.chunks else "one package"
    about: dict[str, Any] = {
        "name": name if names.chunks else f"{name}-monolithic",
        "version": VERSION,
        "description": f"{model} for Apple's Neural Engine: context {interface.context}, batch "
        f"{interface.batch}, {what}",
        "license": described.license,
        "author": "litert-lm-cli",
        "framework": "Core ML",
        "language": "Python",
        "architecture": described.model_type,
        "model_type": None if names.chunks else "monolithic",
    }
    about = {key: value for key, value in about.items() if value is not None}
    content = {"model_info": {**about, "parameters": _parameters(described)}}
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1 << 16)
    lines = [f"# {one_line(f'{key}: {value}')}\n" for key, value in described.comments.items()]
    return "".join([text, *lines]).encode()


def _parameters(described: Description) -> dict[str, Any]:
    names, interface = described.names, described.interface
    found: dict[str, Any] = {
        "context_length": interface.context,
        "batch_size": interface.batch,
    }
    luts = {"embeddings": names.embeddings_lut, "ffn": names.layers_lut, "lmhead": names.head_lut}
    if not names.chunks:
        found["lut_bits"] = names.layers_lut.bits if names.layers_lut else "none"
        if names.layers_lut:
            found["lut_per_channel"] = names.layers_lut.group
        del luts["ffn"]
    for key, lut in luts.items():
        found[f"lut_{key}"] = lut.bits if lut else "none"
        if lut:
            found[f"lut_{key}_per_channel"] = lut.group
    if names.chunks:
        found["num_chunks"] = names.chunks
    found["model_prefix"] = names.prefix
    if names.chunks:
        found["embeddings"] = f"{names.embeddings}.mlmodelc"
        found["lm_head"] = f"{names.head}.mlmodelc"
        found["ffn"] = f"{names.chunk(0)}.mlmodelc"
    else:
        found["monolithic_model"] = f"{names.monolithic}.mlmodelc"
    found["split_lm_head"] = len(interface.head_parts)
    if interface.argmax:
        found["argmax_in_model"] = True
    found["vocab_size"] = sum(interface.head_parts)
    found["lm_head_chunk_sizes"] = list(interface.head_parts)
    if described.window is not None:
        found["sliding_window"] = described.window
    found["prefill_dynamic_slice"] = True  # batches are read at once
    if described.has_windows and len(interface.states) == 1:
        found["single_cache"] = True
    sampling = recommended_sampling(described.sampling)
    if sampling and not interface.argmax:
        found["recommended_sampling"] = sampling
    if not names.chunks:
        found["functions"] = [call.name for call in calls(interface)]
    return found


def recommended_sampling(said: Mapping[str, Any]) -> dict[str, Any]:
    """All four keys, without which Swift reads none; empty where a source says nothing.

    Args:
        said: do_sample, temperature, top_p and top_k, those that the source sets.
    """
    if not said:
        return {}
    values = _SAMPLING | {key: value for key, value in said.items() if key != "do_sample"}
    greedy = said.get("do_sample") is False or values["temperature"] == 0
    return {"do_sample": not greedy, **values}


def user_metadata(
    described: Description, lut: Lut | None, functions: Sequence[str], chunk: int = 0
) -> dict[str, str]:
    """What a package says of itself, in keys of which the Python chats read some.

    Args:
        lut: its own.
        functions: their names.
        chunk: which of the layers, counted from 1; 0 where it is none of these.
    """
    names, interface = described.names, described.interface
    found = {
        "info": f"{described.model}, converted by litert-lm-cli",
        "context_length": str(interface.context),
        "state_length": str(interface.context),
        "batch_size": str(interface.batch),
        "num_chunks": str(names.chunks or 1),
        "vocab_size": str(sum(interface.head_parts)),
        "lm_head_chunk_sizes": ",".join(map(str, interface.head_parts)),
        "prefill_dynamic_slice": "true",
        "functions": ",".join(functions),
    }
    if lut:  # a word would not be a number, and end the chats
        found["lut_bits"] = str(lut.bits)
    if chunk:
        found["chunk_no"] = str(chunk)
    if interface.argmax:
        found["argmax_in_model"] = "true"
    return {f"com.anemll.{key}": value for key, value in found.items()}


def config_json(
    model_type: str,
    tokenizer_class: str,
    eos_token_ids: Sequence[int],
    bos_token_id: int | None,
    pad_token_id: int | None,
) -> bytes:
    """The config.json from which Swift takes tokens; without one it takes those of a Llama."""
    content = {
        "tokenizer_class": tokenizer_class,
        "model_type": model_type,
        "bos_token_id": bos_token_id,
        "eos_token_id": eos_token_ids[0] if len(eos_token_ids) == 1 else list(eos_token_ids),
        "pad_token_id": pad_token_id,
    }
    content = {key: value for key, value in content.items() if value not in (None, [])}
    return json.dumps(content, indent=2).encode() + b"\n"


def compile_sh(names: Names) -> bytes:
    """The rest of the way, for a Mac: every package through Apple's compiler."""
    packages = " ".join(names.all)
    return f"""#!/bin/sh
# Compiles every package for the Neural Engine. Needs a Mac with macOS 15 or later, and Xcode.
set -eu
cd "$(dirname "$0")"
fail() {{
    echo "error: $1" >&2
    exit 1
}}
system=$(uname -s)
[ "$system" = Darwin ] ||
    fail "this is $system, Apple's compiler runs on macOS alone, run compile.sh of a copy on a Mac"
xcrun --find coremlcompiler >/dev/null 2>&1 ||
    fail "no coremlcompiler, it comes with Xcode, install that from the App Store and open it once"
for name in {packages}; do
    rm -rf "$name.mlmodelc"
    xcrun coremlcompiler compile "$name.mlpackage" .
done
echo "Done. In a checkout of github.com/Anemll/Anemll, chat with:"
echo "  python tests/chat.py --meta '$PWD/{META}'"
""".encode()


def _suffix(lut: Lut | None) -> str:
    return f"_lut{lut.bits}" if lut else ""
