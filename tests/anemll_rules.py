"""How ANEMLL 0.3.4 and 0.3.5 find files, restated: `tests/chat.py` and Swift's `YAMLConfig`.

`reliability/anemll_chat.py` runs the chat itself on a checkout.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

import yaml


def parameters(folder: Path) -> dict[str, Any]:
    """`model_info.parameters` of meta.yaml, where all of them begin."""
    content = yaml.safe_load((folder / "meta.yaml").read_text("utf-8"))
    found: dict[str, Any] = content["model_info"]["parameters"]
    return found


def python_stems(found: dict[str, Any]) -> tuple[str, str, str]:
    """chat.py's names of embeddings, first layers and head: built from bits, not read."""
    prefix = found.get("model_prefix", "llama")
    suffixes = {
        part: "" if found[f"lut_{part}"] == "none" else f"_lut{found[f'lut_{part}']}"
        for part in ("embeddings", "ffn", "lmhead")
    }
    chunks = int(found["num_chunks"])
    return (
        f"{prefix}_embeddings{suffixes['embeddings']}",
        f"{prefix}_FFN_PF{suffixes['ffn']}_chunk_01of{chunks:02d}",
        f"{prefix}_lm_head{suffixes['lmhead']}",
    )


def python_path(stem: Path) -> Path:
    """chat.py's search: an ending is put on a name, after what it takes for one is cut off."""
    candidates = [stem.with_suffix(end) for end in (".mlmodelc", ".mlpackage")]
    return next(path for path in candidates if path.exists())


def python_chunks(first: Path) -> list[Path]:
    """chat.py's chunks: of a pattern, which must find as many as the name says."""
    match = re.search(r"FFN_PF.*_chunk_(\d+)of(\d+)", first.name)
    assert match is not None
    assert int(match[1]) == 1
    found = sorted(glob.glob(re.sub(r"_chunk_\d+of\d+", "_chunk_*", str(first))))
    assert len(found) == int(match[2])
    return [Path(path) for path in found]


def swift_window(found: dict[str, Any]) -> int | None:
    """Swift's position from which it calls the functions of full windows."""
    if "sliding_window" in found:
        window: int = found["sliding_window"]
        return window
    guesses = found["model_prefix"].lower().startswith("gemma3") and found["context_length"] > 512
    return 512 if guesses else None


def swift_sampling(found: dict[str, Any]) -> tuple[bool, float, float, int] | None:
    """Swift's recommendation: all three numbers, or none."""
    said = found.get("recommended_sampling", {})
    if not {"temperature", "top_p", "top_k"} <= set(said):
        return None
    return said.get("do_sample", True), said["temperature"], said["top_p"], said["top_k"]
