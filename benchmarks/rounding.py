"""What rules for rounding cost: KL divergence of transformers' model with rounded matrices.

    venv/bin/python -m benchmarks.rounding                        # ten minutes
    venv/bin/python -m benchmarks.rounding --only smollm2-135m

int4: the matrices of all layers in blocks of 32, with float16 scales; embedding, head, arithmetic
and activations stay float. dynamic_int8: the matrices of all layers and the head in int8 rows,
their inputs rounded token by token as XNNPACK does. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from benchmarks.measure import commit, guarded, machine, note, run
from benchmarks.run import MODELS
from converter.base import ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.options import ConvertOptions
from converter.output.atomic_file import AtomicFile
from converter.version import __version__
from converter.weights.calibration import TOKENS
from converter.weights.inputs import Inputs
from converter.weights.quantization import INT4_BLOCK32, INT8
from converter.weights.row_format import Clip
from runner.evaluation import TEXT

_SCORED, _OTHER_TEXT = slice(0, 384), slice(1500, 2300)  # tokens
_Q4_0 = GGMLQuantizationType.Q4_0
_HEAD = "lm_head"

# What an error in each column of a matrix costs, by the matrix's name.
Importance = dict[str, np.ndarray]
# The name of a matrix and its values, to what remains of them.
Weights = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """How the matrices of a model are rounded.

    Attributes:
        weights: what remains of a matrix.
        rounds_input: whether a matrix, by its name, takes its input in int8.
        columns: by the name of a matrix, what its columns are multiplied with before rounding, and
            its input divided by. A bundle would carry the factors in norms and rows of v and up.
    """

    weights: Weights
    rounds_input: Callable[[str], bool] = lambda name: False
    columns: dict[str, np.ndarray] = field(default_factory=dict)


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
                print(f"  {rule:65} KL {found['kl_mean']:.4f}, same {found['top1_agreement']:.1%}")
    document = {
        "benchmark": "rounding",
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

    with open_folder(folder) as checkpoint, AtomicFile(folder / "unused") as file:
        converter = ModelConverter(checkpoint, "model", ConvertOptions("dynamic_int4"))
        plan = converter.plan()
        inputs: dict[str, Inputs] = {}
        converter.stream(plan, file, lambda _: None, inputs.__setitem__)
    random, kept = {}, {}
    for path, found in inputs.items():
        if path.startswith("layers.") and found.importance is not None:
            name = f"model.{plan.family.stored_name(path, 'safetensors')}".removesuffix(".weight")
            assert found.factors is not None
            random[name], kept[name] = found.importance * found.factors**2, found.factors
    whole = {name: model.get_submodule(name).weight.data for name in [*random, _HEAD]}
    rules = _int4(random, _inputs(model, list(random), other), kept) | _int8(model, random, kept)
    reference = model(scored).logits[0].log_softmax(-1)
    results = {}
    for label, rule in rules.items():
        note(label)
        for name, weight in whole.items():
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _rounded(name, weight, rule))
        said = model(scored).logits[0].log_softmax(-1)
        results[label] = {
            "kl_mean": float((reference.exp() * (reference - said)).sum(-1).mean()),
            "top1_agreement": float((said.argmax(-1) == reference.argmax(-1)).float().mean()),
        }
    return results


def _int4(random: Importance, text: Importance, kept: dict[str, np.ndarray]) -> dict[str, Rule]:
    """Rules for the layers' matrices in blocks of 32, the head whole."""

    def ours(
        importance: Importance, clip: Clip = Clip.MSE, factors: dict[str, np.ndarray] | None = None
    ) -> Rule:
        def weights(name: str, matrix: np.ndarray) -> np.ndarray:
            if name == _HEAD:
                return matrix
            packed, scales = INT4_BLOCK32.pack(
                matrix.copy(), clip=clip, importance=importance.get(name)
            )
            assert scales is not None
            halves = np.stack([packed << 4, packed & 0xF0], axis=-1).view(np.int8) >> 4
            blocks = halves.reshape(*scales.shape, -1) * scales.astype(np.float32)[..., None]
            return blocks.reshape(matrix.shape)

        return Rule(weights, columns=factors or {})

    def q4_0(name: str, matrix: np.ndarray) -> np.ndarray:
        return matrix if name == _HEAD else dequantize(quantize(matrix, _Q4_0), _Q4_0)

    return {
        "int4: llama.cpp's Q4_0": Rule(q4_0),
        "int4: largest magnitude to 7 (--clip max)": ours({}, Clip.MAX),
        "int4: least squared error": ours({}),
        f"int4: weighted with {TOKENS} random tokens": ours(random),
        "int4: weighted with 800 tokens of text": ours(text),
        f"int4: weighted and scaled with {TOKENS} random tokens (dynamic_int4)": ours(
            {name: columns / kept[name] ** 2 for name, columns in random.items()}, factors=kept
        ),
    }


def _int8(model: Any, random: Importance, kept: dict[str, np.ndarray]) -> dict[str, Rule]:
    """Rules for all matrices in rows of int8 and for their inputs."""

    def rows(_name: str, matrix: np.ndarray) -> np.ndarray:
        packed, scales = INT8.pack(matrix.copy())
        assert scales is not None
        return packed * scales[:, None]

    def scaled(alpha: float, among: Importance) -> Rule:
        factors = {name: columns ** (alpha / 2) for name, columns in among.items()}
        return Rule(rows, _all, {n: f / np.exp(np.log(f).mean()) for n, f in factors.items()})

    # The value rows that carry o's factors feed several query heads each.
    config = model.config
    shape = (config.num_key_value_heads, -1, config.head_dim)
    carried = {}
    for name, columns in random.items():
        if name.endswith("o_proj"):
            heads = columns.reshape(shape)
            columns = np.broadcast_to(heads.mean(axis=1, keepdims=True), heads.shape).reshape(-1)
        carried[name] = columns
    gains = {name: found for name in random if (found := _squared_gains(model, name)) is not None}
    of_norms = {name: factors for name, factors in kept.items() if name in gains}
    return {
        "int8: weights alone (int8)": Rule(rows),
        "int8: inputs alone": Rule(lambda _, matrix: matrix, _all),
        "int8: weights and inputs (dynamic_int8 --clip max)": Rule(rows, _all),
        "int8: inputs of all but down": Rule(rows, lambda name: "down" not in name),
        "int8: inputs of all but the head": Rule(rows, lambda name: name != _HEAD),
        "int8: columns scaled by gains of norms, alpha 0.3": scaled(0.3, gains),
        **{
            f"int8: columns scaled by {TOKENS} random tokens, alpha {alpha}": scaled(alpha, carried)
            for alpha in (0.2, 0.25, 0.4, 0.6)
        },
        "int8: alpha 0.25 in powers of two (dynamic_int8)": Rule(rows, _all, kept),
        "int8: the same behind norms only": Rule(rows, _all, of_norms),
    }


def _all(_name: str) -> bool:
    return True


def _squared_gains(model: Any, name: str) -> np.ndarray | None:
    """The squared weight of the norm before a matrix, or None where there is none."""
    layer, _, child = name.rpartition(".")
    if child in ("q_proj", "k_proj", "v_proj"):
        norm = "input_layernorm"
    elif child in ("gate_proj", "up_proj"):
        gemma = model.config.model_type.startswith("gemma")
        norm = "pre_feedforward_layernorm" if gemma else "post_attention_layernorm"
    else:
        return None
    weight = model.get_submodule(f"{layer.rpartition('.')[0]}.{norm}").weight.numpy()
    gain = weight + 1 if model.config.model_type.startswith("gemma") else weight
    return np.maximum(gain**2, 1e-10)


def _rounded(name: str, weight: Any, rule: Rule) -> Any:
    """A module that multiplies with a rounded matrix."""
    import torch

    columns = torch.from_numpy(rule.columns.get(name, np.ones(weight.shape[1], np.float32)))

    class Rounded(torch.nn.Module):
        matrix = torch.from_numpy(rule.weights(name, (weight * columns).numpy()))

        def forward(self, x: Any) -> Any:
            x = x / columns
            return (_round_tokens(x) if rule.rounds_input(name) else x) @ self.matrix.T

    return Rounded()


def _round_tokens(x: Any) -> Any:
    """Activations in int8, one scale and zero point per token, as XNNPACK's qd8 has them."""
    low, high = x.amin(-1, keepdim=True).clamp_max(0), x.amax(-1, keepdim=True).clamp_min(0)
    scale = (high - low).clamp_min(1e-20) / 255
    zero = (-128 - low / scale).round().clamp(-128, 127)
    return ((x / scale + zero).round().clamp(-128, 127) - zero) * scale


def _inputs(model: Any, names: list[str], tokens: Any) -> Importance:
    """The mean square of every matrix's inputs while a model reads a text."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: Any) -> None:
            found[name] = (inputs[0] ** 2).reshape(-1, inputs[0].shape[-1]).mean(dim=0).numpy()

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return found


if __name__ == "__main__":
    guarded(main)
