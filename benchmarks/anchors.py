"""What quality is held against: real weights that lie on no quantiser's grid, and importances.

The real models come from registries as GGUFs that are quantised already: Gemma 3 270M is
llama.cpp's own Q4_K_M, which that quantiser copies as it is, and SmolLM2's blocks of 16 levels are
easy for whoever has blocks as long. `write_off_grid` writes the same function with weights on no
grid, and everybody begins there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_ALIGNMENT = 32  # of tensors in a GGUF
_SPREAD = 0.2  # of the columns' scales: the standard deviation of their logarithm
# What is multiplied with a scale of each channel, and what reads those channels.
_SCALED = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
    "ffn_up": ("ffn_down",),
    "attn_v": ("attn_output",),
}
_CHUNK = 512  # tokens of calibration that see each other


def write_off_grid(source: Path, output: Path) -> None:
    """Write a GGUF of LLaMA's or Gemma 3's architecture in F32: the same function, other weights.

    Every channel between a norm and what reads it, between values and the attention's output, and
    inside the feed-forward block is multiplied with a factor near 1, and divided by it where it is
    read. The token embedding stays as it is.
    """
    reader = gguf.GGUFReader(source)
    shapes = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    random = np.random.default_rng(0)
    factors: dict[str, np.ndarray] = {}  # of rows (or entries) that are multiplied
    divisors: dict[str, np.ndarray] = {}  # of columns
    for name, shape in shapes.items():
        block, _, kind = name.removesuffix(".weight").rpartition(".")
        for read in _SCALED.get(kind, ()):
            if name not in factors:
                factors[name] = np.exp(random.normal(0, _SPREAD, shape[-1])).astype(np.float32)
            columns = factors[name]
            wide = shapes[f"{block}.{read}.weight"][0]
            if wide != len(columns):  # heads that share their values, one after the other
                columns = _shared(columns, wide, _head_size(reader))
            divisors[f"{block}.{read}.weight"] = columns
    first = reader.tensors[0].field.offset
    head = bytes(source.read_bytes()[:first])
    infos, offset = b"", 0
    for name, shape in shapes.items():
        text = name.encode()
        infos += len(text).to_bytes(8, "little") + text + len(shape).to_bytes(4, "little")
        infos += b"".join(size.to_bytes(8, "little") for size in shape)
        infos += (0).to_bytes(4, "little") + offset.to_bytes(8, "little")  # F32
        offset += -(-4 * math.prod(shape) // _ALIGNMENT) * _ALIGNMENT
    with output.open("wb") as out:
        out.write(head + infos + bytes(-(len(head) + len(infos)) % _ALIGNMENT))
        for tensor in reader.tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if tensor.name in divisors:
                values = values / divisors[tensor.name]
            if tensor.name in factors:
                scale = factors[tensor.name]
                values = values * (scale if values.ndim == 1 else scale[:, None])
            data = values.astype(np.float32).tobytes()
            out.write(data + bytes(-len(data) % _ALIGNMENT))


def _head_size(reader: gguf.GGUFReader) -> int:
    architecture = reader.fields["general.architecture"].contents()
    told = reader.fields.get(f"{architecture}.attention.value_length")
    if told is not None:
        return int(told.contents())
    width = reader.fields[f"{architecture}.embedding_length"].contents()
    return int(width // reader.fields[f"{architecture}.attention.head_count"].contents())


def _shared(factors: np.ndarray, wide: int, head: int) -> np.ndarray:
    """Of key-value heads' channels, those of all heads: `(wide,)`."""
    heads = factors.reshape(-1, head)
    return np.repeat(heads, wide // factors.size, axis=0).reshape(wide)


def calibration_tokens(folder: Path, text: str) -> list[list[int]]:
    """Whole chunks of a text, each behind what starts a text."""
    from tokenizers import Tokenizer  # type: ignore[import-untyped]
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    start = [config.bos_token_id] if config.model_type.startswith("gemma") else []
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    size = _CHUNK - len(start)
    return [[*start, *tokens[at : at + size]] for at in range(0, len(tokens) - size + 1, size)]


def write_importances(folder: Path, chunks: Sequence[Sequence[int]], output: Path) -> None:
    """Write an importance matrix as llama.cpp's quantiser reads it, a GGUF of the kind `imatrix`.

    Args:
        folder: the model as transformers reads it, which runs the chunks in float.
    """
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    sums: dict[str, np.ndarray] = {}
    counts: dict[str, int] = {}

    def hook(name: str) -> Any:
        def add(_module: Any, inputs: tuple[Any, ...]) -> None:
            values = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()
            sums[name] = sums.get(name, 0.0) + (values.astype(np.float64) ** 2).sum(0)
            counts[name] = counts.get(name, 0) + len(values)

        return add

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(hook(_gguf_name(name)))
    with torch.no_grad():
        for chunk in chunks:
            model(torch.tensor([list(chunk)]))
    writer = gguf.GGUFWriter(output, "imatrix")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["evaluation_texts.txt"])
    writer.add_uint32("imatrix.chunk_count", len(chunks))
    writer.add_uint32("imatrix.chunk_size", _CHUNK)
    for name, values in sums.items():
        writer.add_tensor(f"{name}.in_sum2", values.astype(np.float32)[None])
        writer.add_tensor(f"{name}.counts", np.array([[counts[name]]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj` -> `blk.3.ffn_up.weight`."""
    kinds = {
        "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
        "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down",
    }  # fmt: skip
    match = re.fullmatch(r"model\.layers\.(\d+)\.\w+\.(\w+)", name)
    return f"blk.{match[1]}.{kinds[match[2]]}.weight" if match else "output.weight"
