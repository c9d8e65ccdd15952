"""Random checkpoints in the shape of real models: for speed, memory and loading, not for sense.

    python -m benchmarks.checkpoints qwen3-0.6b FOLDER --tokenizer TOKENIZER_FOLDER

The weights are one random block of BF16 values, repeated: their bytes cost what real ones cost.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from converter.registry import family_of
from tests.published_configs import PUBLISHED

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_act": "silu",
    "max_position_embeddings": 40960,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "eos_token_id": 151645,
}
_QWEN35: dict[str, Any] = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "linear_num_value_heads": 16,
    "max_position_embeddings": 262144,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000},
    "tie_word_embeddings": True,
    "eos_token_id": 151645,  # of Qwen3's tokenizer
}
_GRANITE: dict[str, Any] = {
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_size": 1024,
    "logits_scaling": 6.0,
    "max_position_embeddings": 131072,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
    "eos_token_id": 0,
}
_LLAMA32: dict[str, Any] = {
    **PUBLISHED["meta-llama/Llama-3.2-1B-Instruct"][0],
    "eos_token_id": [128001, 128008, 128009],
}
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-tiny": {
        **_QWEN3,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 96,
    },
    "qwen3-0.6b": {
        **_QWEN3,
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
    },
    "qwen3-4b": {
        **_QWEN3,
        "hidden_size": 2560,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
    },
    "llama-3.2-1b": _LLAMA32,
    "llama-3.2-3b": {
        **_LLAMA32,
        "head_dim": 128,
        "hidden_size": 3072,
        "num_attention_heads": 24,
        "num_hidden_layers": 28,
    },
    "deepseek-r1-8b": {
        **PUBLISHED["deepseek-ai/DeepSeek-R1-Distill-Llama-8B"][0],
        "eos_token_id": 128001,
    },
    "gemma3-1b": {**PUBLISHED["google/gemma-3-1b-it"][0], "eos_token_id": [1, 106]},
    "gemma3-4b": PUBLISHED["google/gemma-3-4b-it"][0],
    "qwen3.5-0.8b": {**_QWEN35, "hidden_size": 1024, "intermediate_size": 3584},
    "qwen3.5-2b": {**_QWEN35, "hidden_size": 2048, "intermediate_size": 6144},
    "granite4-h-1b": {
        "architectures": ["GraniteMoeHybridForCausalLM"],
        "model_type": "granitemoehybrid",
        "vocab_size": 151936,  # of Qwen3's tokenizer; its own has 100352
        "hidden_size": 1536,
        "shared_intermediate_size": 4096,
        "num_hidden_layers": 40,
        "layer_types": [*["mamba"] * 5, *(["attention"] + ["mamba"] * 9) * 3, "attention"]
        + ["mamba"] * 4,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "num_local_experts": 0,
        "attention_multiplier": 0.0078125,
        "embedding_multiplier": 12,
        "logits_scaling": 6,
        "residual_multiplier": 0.22,
        "mamba_n_heads": 48,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "eos_token_id": 151645,
    },
    "gemma4-e2b": {
        "architectures": ["Gemma4ForConditionalGeneration"],
        "model_type": "gemma4",
        "eos_token_id": [1, 106],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "gemma4_text",
            "vocab_size": 262144,
            "hidden_size": 1536,
            "intermediate_size": 6144,
            "num_hidden_layers": 35,
            "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "num_kv_shared_layers": 20,
            "use_double_wide_mlp": True,
            "final_logit_softcapping": 30.0,
            "layer_types": (["sliding_attention"] * 4 + ["full_attention"]) * 7,
        },
    },
    "granite-3.1-1b-a400m": {
        **_GRANITE,
        "architectures": ["GraniteMoeForCausalLM"],
        "model_type": "granitemoe",
        "intermediate_size": 512,
        "num_local_experts": 32,
        "num_experts_per_tok": 8,
    },
    # As wide as the experts that a token takes.
    "granite-400m-dense": {
        **_GRANITE,
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "intermediate_size": 4096,
    },
    "lfm2-1.2b": {
        "architectures": ["Lfm2ForCausalLM"],
        "model_type": "lfm2",
        "block_ff_dim": 12288,
        "full_attn_idxs": [2, 5, 8, 10, 12, 14],
        "hidden_size": 2048,
        "max_position_embeddings": 128000,
        "num_attention_heads": 32,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "vocab_size": 65536,
        "eos_token_id": 7,
    },
}
# The real tokenizer beside it; Qwen3's where none is named; one of bytes where all are too large.
BYTES = "bytes"
TOKENIZERS = {
    "llama-3.2-1b": "llama3.2-tokenizer",
    "llama-3.2-3b": "llama3.2-tokenizer",
    "deepseek-r1-8b": "llama3.2-tokenizer",
    "gemma3-1b": "gemma3-tokenizer",
    "gemma3-4b": "gemma3-tokenizer",
    "gemma4-e2b": "gemma3-tokenizer",
    "granite-3.1-1b-a400m": BYTES,
    "granite-400m-dense": BYTES,
    "lfm2-1.2b": BYTES,
}
_BLOCK_VALUES = 1 << 22
_SHARD_BYTES = 4 << 30


def make_checkpoint(shape: str, folder: Path, tokenizer: Path, seed: int = 0) -> None:
    """Write config.json, safetensors (sharded beyond 4 GiB) and the files of a tokenizer.

    Args:
        shape: a key of `SHAPES`.
        folder: made if missing.
        tokenizer: folder whose files are copied beside the weights.
        seed: of the random values.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in tokenizer.iterdir():
        shutil.copy(file, folder)
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    family = family_of(config)
    stored: dict[str, tuple[int, ...]] = {}
    for path, dims in family.spec().weight_shapes():
        name = family.stored_name(path, "safetensors")
        # Weights of one tensor stand in it one below the other.
        stored[name] = (stored.get(name, (0,))[0] + dims[0], *dims[1:])
    tensors = [
        (name if name.startswith("lm_head.") else f"model.{name}", dims)
        for name, dims in stored.items()
    ]

    random = np.random.default_rng(seed).standard_normal(_BLOCK_VALUES, np.float32) * 0.02
    block = (random.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for tensor in tensors:
        size += _nbytes(tensor[1])
        if size > _SHARD_BYTES:
            shards.append([])
            size = _nbytes(tensor[1])
        shards[-1].append(tensor)
    if len(shards) == 1:
        _write_shard(folder / "model.safetensors", shards[0], block)
        return
    weight_map = {}
    for index, shard in enumerate(shards, 1):
        name = f"model-{index:05}-of-{len(shards):05}.safetensors"
        _write_shard(folder / name, shard, block)
        weight_map.update({tensor: name for tensor, _ in shard})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _nbytes(dims: tuple[int, ...]) -> int:
    return 2 * int(np.prod(dims))


def _write_shard(file: Path, tensors: list[tuple[str, tuple[int, ...]]], block: bytes) -> None:
    header, position = {}, 0
    for name, dims in tensors:
        end = position + _nbytes(dims)
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [position, end]}
        position = end
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    with file.open("wb") as out:
        out.write(len(packed).to_bytes(8, "little") + packed)
        for start in range(0, position, len(block)):
            out.write(block[: position - start])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    args = parser.parse_args()
    make_checkpoint(args.shape, args.folder, args.tokenizer)


if __name__ == "__main__":
    main()
