"""How ANEMLL 0.3.4 and 0.3.5 find files and chat: `tests/chat.py` and Swift's YAMLConfig, restated.

`reliability/anemll_chat.py` runs the chat itself on a checkout.
"""

from __future__ import annotations

import argparse
import glob
import re
from pathlib import Path
from typing import Any

import numpy as np
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


# What follows is a chat of 0.3.5, in the names under which `reliability.anemll_chat` watches it.


def initialize_tokenizer(path: str) -> Any:
    """As chat.py loads it: the slow class, where there is one."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path, use_fast=False)


def load(path: Path, function: str | None = None) -> Any:
    """A function of a package; the only one, where none is named."""
    import coremltools as ct

    return ct.models.MLModel(str(path), **({"function_name": function} if function else {}))


def mask_of(context: int) -> np.ndarray:
    """float16 (1, 1, context, context): each row sees the columns up to its own."""
    seen = np.tri(context, dtype=bool)
    return np.where(seen, 0, -np.inf).astype(np.float16)[None, None]


class Chat:
    """Packages, loaded, with one state for all chunks."""

    def __init__(self, folder: Path) -> None:
        self.found = found = parameters(folder)
        embeddings, layers, head = (python_path(folder / stem) for stem in python_stems(found))
        self.context, self.batch = int(found["context_length"]), int(found["batch_size"])
        self.window = swift_window(found)
        names = ["infer", "prefill"]
        if self.window is not None and self.window < self.context:
            names += ["infer_rotate", "prefill_rotate"]
        self.embeddings, self.head = load(embeddings), load(head)
        self.layers = [{name: load(path, name) for name in names} for path in python_chunks(layers)]
        self.state = self.layers[0]["prefill"].make_state()
        self.mask = mask_of(self.context)

    def run(self, kind: str, ids: np.ndarray, first: int, count: int) -> np.ndarray:
        """Tokens `first` to `first + count` through all layers."""
        if self.window is not None and first >= self.window:
            kind += "_rotate"
        places = np.arange(first, first + count, dtype=np.int32)
        tokens = ids[:, first : first + count].astype(np.int32)
        x = self.embeddings.predict({"input_ids": tokens})["hidden_states"]
        for chunk in self.layers:
            inputs = {
                "hidden_states": x.astype(np.float16),
                "position_ids": places,
                "causal_mask": self.mask[:, :, first : first + count],
                "current_pos": places[:1],
            }
            x = chunk[kind].predict(inputs, self.state)["output_hidden_states"]
        return x

    def read(self, ids: np.ndarray) -> None:
        """Whole batches, and the rest one by one."""
        pos = 0
        while pos < ids.shape[1]:
            whole = pos + self.batch <= ids.shape[1]
            count = self.batch if whole else 1
            self.run("prefill" if whole else "infer", ids, pos, count)
            pos += count


def generate_next_token(
    embeddings: Any, layers: Any, head: Any, ids: Any, pos: int, chat: Chat
) -> int:
    """The token at `pos`; the one before it goes through the layers a second time."""
    x = chat.run("infer", ids, pos - 1, 1)
    said = head.predict({"hidden_states": x.astype(np.float16)})
    if chat.found.get("argmax_in_model"):
        part = int(said["argmax_val"].argmax())
        offset = sum(chat.found["lm_head_chunk_sizes"][:part])
        return int(said["argmax_idx"][part]) + offset
    parts = [said[f"logits{i + 1}"] for i in range(chat.found["split_lm_head"])]
    return int(np.concatenate(parts, axis=-1)[0, 0].argmax())


def main() -> int:
    """Answer `--prompt` from the folder of `--meta`."""
    parser = argparse.ArgumentParser()
    for name in ("--meta", "--prompt"):
        parser.add_argument(name)
    parser.add_argument("--nw", action="store_true")
    args = parser.parse_args()
    folder = Path(args.meta).parent
    chat, tokenizer = Chat(folder), initialize_tokenizer(str(folder))
    messages = [{"role": "user", "content": args.prompt}]
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    ids = np.array([tokens])
    chat.read(ids)
    token = None
    while token != tokenizer.eos_token_id and ids.shape[1] < chat.context:
        pos = ids.shape[1]
        token = generate_next_token(chat.embeddings, chat.layers, chat.head, ids, pos, chat)
        ids = np.append(ids, [[token]], axis=1)
    return 0
