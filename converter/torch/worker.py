"""What runs in the environment of `./setup --reference`: PyTorch, transformers and litert-torch.

    venv-reference/bin/python converter/torch/worker.py export '{"folder": ..., ...}'
    venv-reference/bin/python converter/torch/worker.py logits '{"folder": ..., ...}'

The rest of the project is not importable there. `converter.torch.reference` is the other side.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

# Names of ai-edge-quantizer; float16 has none there.
_RECIPES = {"dynamic_int8": "dynamic_wi8_afp32", "int8": "weight_only_wi8_afp32"}
# The layout of the KV cache that the runtime's GPU delegates take, and our plain graph has: keys
# (1, heads, slots, head_dim), values (1, heads, head_dim, slots).
_KEY_SLOTS_AXIS, _VALUE_SLOTS_AXIS = 2, 3


def export(
    folder: str,
    output: str,
    scheme: str,
    prefill_lengths: Sequence[int],
    cache_length: int,
    family: str,
    spec: dict[str, Any],
) -> None:
    """Write a checkpoint's network as one `.tflite` file.

    litert-torch's own models are taken for the sizes that it has; transformers' model, traced by
    its `export_hf`, for all others.

    Args:
        family, spec: what the direct engine has found the checkpoint to be (`DecoderSpec`).
    """
    with tempfile.TemporaryDirectory(dir=Path(output).parent) as work:
        build = _own_model(family, spec)
        if build is not None:
            model = build(folder, custom_loader=_load)
            network = _export_own(model, Path(work), prefill_lengths, cache_length)
        else:
            network = _export_traced(folder, Path(work), prefill_lengths, cache_length)
        if scheme == "fp32":
            os.replace(network, output)
        else:
            _quantize(network, scheme, Path(output))


def _own_model(family: str, spec: dict[str, Any]) -> Any:
    """The builder in litert-torch that makes this very network, or None."""
    # Its layers import TensorFlow, 600 MB, for a copy of the schema that ai-edge-litert has, too.
    from ai_edge_litert import schema_py_generated

    python = ModuleType("tensorflow.lite.python")
    python.schema_py_generated = schema_py_generated  # type: ignore[attr-defined]
    sys.modules.setdefault("tensorflow.lite.python", python)

    from litert_torch.generative.examples.gemma3 import decoder, gemma3
    from litert_torch.generative.examples.qwen import qwen3

    own = {
        "qwen3": (
            (qwen3.get_0_6b_model_config, qwen3.build_0_6b_model),
            (qwen3.get_1_7b_model_config, qwen3.build_1_7b_model),
            (qwen3.get_4b_model_config, qwen3.build_4b_model),
        ),
        "gemma3": (
            (decoder.get_decoder_config_270m, gemma3.build_model_270m),
            (decoder.get_decoder_config_1b, gemma3.build_model_1b),
        ),
    }
    for describe, build in own.get(family, ()):
        if _agrees(_described(describe()), spec):
            return build
    return None


def _described(own: Any) -> dict[str, Any]:
    """What litert-torch says of a model, as `DecoderSpec` would."""
    from litert_torch.generative.layers.model_config import AttentionType

    blocks = [own.block_config(index) for index in range(own.num_layers)]
    return {
        "vocab_size": own.vocab_size,
        "hidden_size": own.embedding_dim,
        "norm": {"epsilon": own.final_norm_config.epsilon},
        "tied_head": own.lm_head_share_weight_with_embedding,
        "layers": [
            {
                "mixer": {
                    "num_heads": block.attn_config.num_heads,
                    "num_kv_heads": block.attn_config.num_query_groups,
                    "head_dim": block.attn_config.head_dim,
                    "scale": block.attn_config.head_dim**-0.5,
                    "rope": {
                        "theta": float(block.attn_config.rotary_base),
                        "factors": [1.0],
                        "attention_factor": 1.0,
                        "positions": None,
                        "width": None,
                    },
                    "sliding_window": block.attn_config.sliding_window_size
                    if block.attn_config.attn_type is AttentionType.LOCAL_SLIDING
                    else None,
                    "biases": ["q", "k", "v"] if block.attn_config.qkv_use_bias else [],
                },
                "feed_forward": {"width": block.ff_config.intermediate_size},
            }
            for block in blocks
        ],
    }


def _agrees(own: Any, spec: Any) -> bool:
    """Whether `spec` says all that `own` says."""
    if isinstance(own, dict):
        return all(_agrees(value, spec[key]) for key, value in own.items())
    if isinstance(own, list) and len(own) == len(spec):
        return all(map(_agrees, own, spec))
    return bool(own == spec)


def _load(folder: str) -> dict[str, Any]:
    """A checkpoint's tensors; a tied head, which few checkpoints store, by both of its names."""
    from litert_torch.generative.utilities.loader import load_safetensors

    tensors: dict[str, Any] = load_safetensors(folder)
    tensors.setdefault("lm_head.weight", tensors["model.embed_tokens.weight"])
    return tensors


def _export_own(model: Any, work: Path, prefill_lengths: Sequence[int], cache_length: int) -> Path:
    from litert_torch.generative.layers import kv_cache
    from litert_torch.generative.utilities import converter
    from litert_torch.generative.utilities.export_config import ExportConfig

    written = converter.convert_to_tflite(
        model,
        output_path=str(work),
        output_name_prefix="network",
        prefill_seq_len=list(prefill_lengths),
        kv_cache_max_len=cache_length,
        quantize=converter.QuantizationName.NONE,
        export_config=ExportConfig(
            kvcache_layout=kv_cache.KV_LAYOUT_TRANSPOSED, mask_as_input=True
        ),
    )
    return Path(written)


def _export_traced(
    folder: str, work: Path, prefill_lengths: Sequence[int], cache_length: int
) -> Path:
    from litert_torch.generative.export_hf.export import export as export_hf

    export_hf(
        model=folder,
        output_dir=str(work),
        prefill_lengths=list(prefill_lengths),
        cache_length=cache_length,
        quantization_recipe="none",
        k_ts_idx=_KEY_SLOTS_AXIS,
        v_ts_idx=_VALUE_SLOTS_AXIS,
        bundle_litert_lm=False,
        keep_temporary_files=True,
    )
    return work / "model.tflite"


def _quantize(network: Path, scheme: str, output: Path) -> None:
    from ai_edge_quantizer import qtyping, quantizer, recipe
    from ai_edge_quantizer.algorithm_manager import AlgorithmName
    from ai_edge_quantizer.recipe_manager import RecipeManager

    if scheme in _RECIPES:
        rules = getattr(recipe, _RECIPES[scheme])()
    else:
        manager = RecipeManager()
        manager.add_weight_only_config(
            regex=".*",
            operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
            num_bits=16,
            algorithm_key=AlgorithmName.FLOAT_CASTING,
        )
        rules = manager.get_quantization_recipe()
    worker = quantizer.Quantizer(str(network))
    worker.load_quantization_recipe(rules)
    worker.quantize().export_model(str(output), overwrite=True)


def logits(folder: str, output: str, tokens: Sequence[int]) -> None:
    """Write what transformers' model says after each token: float32 (tokens, vocabulary), raw."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode(), open(output, "wb") as file:
        for row in model(torch.tensor([tokens])).logits[0]:
            file.write(row.numpy().tobytes())


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"  # everything is in the folder
    tasks: dict[str, Callable[..., None]] = {"export": export, "logits": logits}
    tasks[sys.argv[1]](**json.loads(sys.argv[2]))
