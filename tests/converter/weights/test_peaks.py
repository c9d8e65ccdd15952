"""The largest numbers on a text's way through a network are those that transformers meets."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.checkpoint.safetensors import open_folder
from converter.coreml import words
from converter.decoder import Attention, DecoderSpec, FeedForward, LayerSpec
from converter.errors import SourceError, UnsupportedError
from converter.families.base import Family
from converter.network import read_network
from converter.weights import attention
from converter.weights import peaks as peaks_module
from converter.weights.adapters import WeightedAdapter
from converter.weights.peaks import Peaks, find_peaks
from tests.tiny_models import make_adapter, make_checkpoint

TOKENS = np.random.default_rng(0).integers(3, 250, 60).tolist()  # further than every window
# Every word that Core ML's emitter has.
WORDS = (
    "llama",
    "qwen3-tied-bias",  # q/k norm per head, biases
    "gemma3_text",  # norms on both sides, a window in some layers, a scaled embedding
    "gemma2",  # softcaps
    "olmo2",  # norms after the blocks alone, q/k norm over all heads
    "exaone4",  # layers without rope
    "cohere",  # both blocks side by side, layer norm, pairs of neighbours, scaled logits
    "phi",  # biases of norms and of the head, part of a head is rotated, gelu, no gate
    "phi3-longrope-tied",  # fused matrices, factors of frequencies and on scores
    "nemotron",  # relu squared
    "granite",  # scaled additions
    "glm4",  # norms on both sides, another way round
    "hunyuan_v1_dense",  # q/k norm behind the rope
    "gemma4_text-keys-are-values",  # that, normalised values, factors on layers
)


def found(folder: Path, lora: tuple[WeightedAdapter, ...] = (), threads: int = 2) -> Peaks:
    """Of a folder; every weight is read, once."""
    read: list[int] = []
    with open_folder(folder) as checkpoint:
        network = read_network(checkpoint, "tiny", lora)
        peaks = find_peaks(
            network.spec(64),
            checkpoint,
            network.name,
            network.sources,
            network.updates,
            TOKENS,
            threads,
            read.append,
        )
        assert sum(read) == sum(int(np.prod(shape)) for shape in network.shapes.values())
    return peaks


def largest(*values: Any) -> float:
    return max(float(value.abs().max()) for value in values)


class Watched:
    """A model of transformers, and what its modules were given and gave for a text.

    Modules go by the paths of weights: `layers.0.attention.q`.
    """

    def __init__(self, model: Any, family: Family) -> None:
        from transformers.masking_utils import AttentionMaskInterface, eager_mask
        from transformers.modeling_utils import AttentionInterface

        self.family, self.spec = family, family.spec()
        self.given: dict[str, Any] = {}
        self.gave: dict[str, Any] = {}
        self.met: dict[int, tuple[Any, Any, Any, Any]] = {}  # queries, keys, values, scores
        self.modules = {
            name.removeprefix("model."): module for name, module in model.named_modules()
        }
        for name, module in self.modules.items():
            module.register_forward_hook(self.hook(name), with_kwargs=True)
        AttentionMaskInterface.register("watched", eager_mask)
        AttentionInterface.register("watched", self.attend)
        model.set_attn_implementation("watched")
        self.run(model)

    def run(self, model: Any) -> None:
        import torch

        with torch.no_grad():
            model(torch.tensor([TOKENS]))

    def hook(self, name: str) -> Callable[..., None]:
        def keep(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
            self.given[name] = args[0] if args else kwargs.get("hidden_states")
            self.gave[name] = output[0] if isinstance(output, tuple) else output

        return keep

    def attend(self, module: Any, query: Any, key: Any, value: Any, mask: Any, **rest: Any) -> Any:
        """Attention of the model's own file, whose scores are seen before they are softened."""
        mixer = self.mixer(module.layer_idx)
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        scores = query @ keys.transpose(2, 3) * rest["scaling"] / (mixer.softcap or 1)
        self.met[module.layer_idx] = query, key, value, scores
        eager = sys.modules[type(module).__module__].eager_attention_forward
        return eager(module, query, key, value, mask, **rest)

    def mixer(self, layer: int) -> Attention:
        mixer = self.spec.layers[layer].mixer
        assert isinstance(mixer, Attention)
        return mixer

    def name(self, path: str) -> str:
        return self.family.stored_name(path, "safetensors").removesuffix(".weight")

    def layer(self, i: int) -> dict[str, float]:
        block = f"layers.{i}"
        attention, mlp = f"{block}.attention", f"{block}.mlp"
        gave = {path: self.gave[self.name(path)] for path in self.paths(i)}
        firsts = [part for part in gave if part.endswith((".up", ".gate"))]
        query, key, value, scores = self.met[i]
        return {
            "normed": largest(*(self.given[self.name(p)] for p in (f"{attention}.q", f"{mlp}.up"))),
            "projected": largest(*(gave[p] for p in gave if p[-2:] in (".q", ".k", ".v")), value),
            "rotated": largest(query, key, *self.before_rope(i)),
            "scores": largest(scores),
            "attention": largest(gave[f"{attention}.o"]),
            "inner": largest(*(gave[p] for p in firsts), self.given[self.name(f"{mlp}.down")]),
            "feed_forward": largest(gave[f"{mlp}.down"]),
            **self.stream(i, gave[f"{attention}.o"], gave[f"{mlp}.down"]),
        }

    def paths(self, i: int) -> list[str]:
        block = f"layers.{i}"
        known = {path for path, _ in self.spec.weight_shapes()}
        parts = (*(f"attention.{part}" for part in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
        return [f"{block}.{part}" for part in parts if f"{block}.{part}" in known]

    def before_rope(self, i: int) -> list[Any]:
        """Queries and keys, normalised where that comes first."""
        norm, block = self.mixer(i).qk_norm, f"layers.{i}.attention"
        parts = "qk" if norm is None or norm.after_rope else ("q_norm", "k_norm")
        if self.name(f"{block}.q") == self.name(f"{block}.v"):  # they stand in one row
            width = self.mixer(i).num_heads + self.mixer(i).num_kv_heads
            return [self.gave[self.name(f"{block}.q")][..., : width * self.mixer(i).head_dim]]
        return [self.gave[self.name(f"{block}.{part}")] for part in parts]

    def stream(self, i: int, mixed: Any, fed: Any) -> dict[str, float]:
        """The residual stream in a layer, whose end is what the layer gave."""
        import torch

        x, end = self.given[f"layers.{i}"], self.gave[f"layers.{i}"]
        if self.spec.placement.has_post_norms:
            mixed, fed = (
                self.gave[self.name(f"layers.{i}.{block}.post_norm")]
                for block in ("attention", "mlp")
            )
        scale = self.spec.residual_scale or 1
        between = x + mixed * scale
        both = between + fed * scale
        own = getattr(self.modules[f"layers.{i}"], "layer_scalar", 1)
        assert torch.allclose(both * own, end, atol=1e-5)
        return {
            "added": largest(mixed * scale, fed * scale),
            "residual": largest(between, both, end),
        }


def assert_same(peaks: Peaks, watched: Watched) -> None:
    for i, layer in enumerate(peaks.layers):
        assert asdict(layer) == pytest.approx(watched.layer(i), rel=1e-3)
    ends = {
        "embedding": largest(watched.given["layers.0"]),
        "last": largest(watched.gave["norm" if "norm" in watched.gave else "final_layernorm"]),
        "logits": largest(watched.gave["lm_head"]),
    }
    assert {name: getattr(peaks, name) for name in ends} == pytest.approx(ends, rel=1e-3)


@pytest.mark.parametrize("test_id", WORDS)
def test_as_transformers_meets_them(test_id: str, tmp_path: Path) -> None:
    model = make_checkpoint(test_id, tmp_path)
    peaks = found(tmp_path)
    with open_folder(tmp_path) as checkpoint:
        family = read_network(checkpoint, "tiny").family
    assert_same(peaks, Watched(model, family))


# Sizes that weights have themselves; what stands behind the logits, and begins behind every text.
OTHERS = {
    "vocab_size", "hidden_size", "num_heads", "width",
    "logits_scale", "logits_softcap", "position_scale",
}  # fmt: skip


def test_no_word_is_passed_over() -> None:
    """What Core ML's emitter learns, and no longer refuses, must be learned here, too."""
    read = (Path(module.__file__).read_text("utf-8") for module in (peaks_module, attention))
    known = {word for text in read for word in re.findall(r"\.(\w+)", text)}
    for kind in (DecoderSpec, LayerSpec, Attention, FeedForward):
        names = {field.name for field in fields(kind)}
        assert names - words._FIELDS[kind].keys() - OTHERS <= known


def test_neither_threads_nor_blocks_change_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint("cohere", tmp_path)  # whose rows go by heads
    once = found(tmp_path, threads=1)
    assert found(tmp_path, threads=3) == once
    monkeypatch.setattr("converter.weights.peaks.BLOCK_VALUES", 700)
    pieces = found(tmp_path, threads=3)
    for one, other in zip(pieces.layers, once.layers, strict=True):
        assert asdict(one) == pytest.approx(asdict(other), rel=1e-5)
    assert pieces.logits == pytest.approx(once.logits, rel=1e-5)
    assert (pieces.weight, pieces.weight_path) == (once.weight, once.weight_path)


def test_adapters_are_merged(tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path)
    merged = make_adapter(model, tmp_path / "adapter")
    peaks = found(tmp_path, (WeightedAdapter(tmp_path / "adapter", 1.0),))
    assert peaks.layers != found(tmp_path).layers
    with open_folder(tmp_path) as checkpoint:
        family = read_network(checkpoint, "tiny").family
    assert_same(peaks, Watched(merged, family))


def changed(folder: Path, tensor: str, change: Callable[[Any], Any]) -> None:
    """Change one tensor of a folder."""
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors[tensor])
    save_file(tensors, path)


def test_the_largest_weight_is_named(tmp_path: Path) -> None:
    make_checkpoint("gemma3_text", tmp_path)

    def enlarge(norm: Any) -> None:
        norm[5] = -70001

    changed(tmp_path, "model.layers.2.post_feedforward_layernorm.weight", enlarge)
    peaks = found(tmp_path)
    assert (peaks.weight, peaks.weight_path) == (70000, "layers.2.mlp.post_norm")  # stored less 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("tensor", ["embed_tokens.weight", "layers.1.mlp.up_proj.weight"])
def test_what_is_no_number_is_refused(tensor: str, value: float, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)

    def spoil(matrix: Any) -> None:
        matrix[1, 3] = value  # token 1 is not in the text

    changed(tmp_path, f"model.{tensor}", spoil)
    with pytest.raises(SourceError, match=rf"{tensor}, holds NaN or infinite values"):
        found(tmp_path)


def test_numbers_beyond_float32_are_refused(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    for part in ("gate", "up"):
        changed(
            tmp_path, f"model.layers.0.mlp.{part}_proj.weight", lambda matrix: matrix.mul_(1e30)
        )
    with pytest.raises(UnsupportedError, match="grow beyond float32"):
        found(tmp_path)
