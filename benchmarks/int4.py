"""What rules for rounding to int4 cost: KL divergence of transformers' model with rounded weights.

    venv/bin/python -m benchmarks.int4                        # five minutes
    venv/bin/python -m benchmarks.int4 --only smollm2-135m

The matrices of all layers are rounded in blocks of 32, with float16 scales; embedding, arithmetic
and activations stay float. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from benchmarks.measure import commit, guarded, machine, note, run
from benchmarks.run import MODELS
from benchmarks.sources import name_of
from converter.base import ConvertOptions, ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.importance import TOKENS
from converter.quantization import INT4_BLOCK32, Clip
from converter.version import __version__
from runner.evaluation import TEXT

_SCORED, _OTHER_TEXT = slice(0, 384), slice(1500, 2300)  # tokens
_Q4_0 = GGMLQuantizationType.Q4_0

# The name of a matrix and its values, to what remains of them.
Rule = Callable[[str, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [name for name, model in MODELS.items() if model.gguf]
    parser.add_argument("--only", action="append", choices=names, help="may be given again")
    args = parser.parse_args()
    models = {}
    for name in args.only or names:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            folder = Path(work) / "source"
            run([sys.executable, "-m", "benchmarks.sources", *MODELS[name].make, folder])
            models[name] = measure(folder)
            print(f"{MODELS[name].title}")
            for rule, found in models[name].items():
                print(f"  {rule:55} KL {found['kl_mean']:.4f}, same {found['top1_agreement']:.1%}")
    document = {
        "benchmark": "int4",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("numpy", "torch", "transformers", "gguf"),
        "models": models,
    }
    print(json.dumps(document))


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """All rules on one model."""
    import torch
    from tokenizers import Tokenizer  # type: ignore[import-untyped]
    from transformers import AutoModelForCausalLM

    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    start = [model.config.bos_token_id] if model.config.model_type.startswith("gemma") else []
    text = start + tokenizer.encode(TEXT.read_text(encoding="utf-8"), add_special_tokens=False).ids
    scored, other = torch.tensor([text[_SCORED]]), torch.tensor([text[_OTHER_TEXT]])

    with open_folder(folder) as checkpoint:
        converter = ModelConverter(checkpoint, "model", ConvertOptions("dynamic_int4"))
        plan = converter.plan()
        importance = converter.measure_importance(plan)
    random = {
        f"model.{name_of(plan.family, path, 1)}".removesuffix(".weight"): columns
        for path, columns in importance.items()
        if path.startswith("layers.")
    }
    matrices = {name: model.get_submodule(name) for name in random}
    seen = _inputs(model, matrices, other)

    def ours(importance: dict[str, np.ndarray], clip: Clip = Clip.MSE) -> Rule:
        def rule(name: str, matrix: np.ndarray) -> np.ndarray:
            packed, scales = INT4_BLOCK32.pack(
                matrix.copy(), clip=clip, importance=importance.get(name)
            )
            assert scales is not None
            halves = np.stack([packed << 4, packed & 0xF0], axis=-1).view(np.int8) >> 4
            blocks = halves.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
            return blocks.reshape(matrix.shape)

        return rule

    rules: dict[str, Rule] = {
        "llama.cpp's Q4_0": lambda _, m: dequantize(quantize(m, _Q4_0), _Q4_0),
        "largest magnitude to 7 (--clip max)": ours({}, Clip.MAX),
        "least squared error": ours({}),
        f"weighted with {TOKENS} random tokens (dynamic_int4)": ours(random),
        "weighted with 800 tokens of text": ours(seen),
    }
    whole = {name: module.weight.clone() for name, module in matrices.items()}
    reference = model(scored).logits[0].log_softmax(-1)
    found = {}
    for label, rule in rules.items():
        note(label)
        for name, module in matrices.items():
            module.weight.data = torch.from_numpy(rule(name, whole[name].numpy()))
        said = model(scored).logits[0].log_softmax(-1)
        found[label] = {
            "kl_mean": float((reference.exp() * (reference - said)).sum(-1).mean()),
            "top1_agreement": float((said.argmax(-1) == reference.argmax(-1)).float().mean()),
        }
    return found


def _inputs(model: Any, matrices: dict[str, Any], tokens: Any) -> dict[str, np.ndarray]:
    """The mean square of every matrix's inputs while a model reads a text."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: Any) -> None:
            found[name] = (inputs[0] ** 2).reshape(-1, inputs[0].shape[-1]).mean(dim=0).numpy()

        return hook

    hooks = [module.register_forward_pre_hook(keep(name)) for name, module in matrices.items()]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    guarded(main)
