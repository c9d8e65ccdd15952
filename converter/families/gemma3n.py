"""Gemma 3n: `gemma3n` and its text part `gemma3n_text`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from converter.decoder import AltUp, Attention, DecoderSpec, FeedForward
from converter.errors import SourceError
from converter.families.gemma_per_layer import PerLayerGemma
from converter.families.tensors import Names, with_names


@dataclass(frozen=True, kw_only=True)
class Gemma3n(PerLayerGemma):
    """Four residual streams, a path beside attention, and gates of which few are left."""

    name: ClassVar[str] = "gemma3n"
    names: ClassVar[Names] = with_names(
        PerLayerGemma.names,
        ("altup_begin.{i}", "altup_projections.{i}.weight", "altup_proj.weight"),
        ("altup_end.{i}", "altup_unembed_projections.{i}.weight", "altup_unembd_proj.weight"),
        ("layers.{i}.altup.router", "layers.{i}.altup.modality_router.weight", "blk.{i}.altup_router.weight"),
        ("layers.{i}.altup.router_norm", "layers.{i}.altup.router_norm.weight", "blk.{i}.altup_router_norm.weight"),
        ("layers.{i}.altup.predict", "layers.{i}.altup.prediction_coefs.weight", "blk.{i}.altup_predict_coef.weight"),
        ("layers.{i}.altup.correct", "layers.{i}.altup.correction_coefs.weight", "blk.{i}.altup_correct_coef.weight"),
        ("layers.{i}.altup.output_scale", "layers.{i}.altup.correct_output_scale", "blk.{i}.altup_correct_scale.weight"),
        ("layers.{i}.laurel.left", "layers.{i}.laurel.linear_left.weight", "blk.{i}.laurel_l.weight"),
        ("layers.{i}.laurel.right", "layers.{i}.laurel.linear_right.weight", "blk.{i}.laurel_r.weight"),
        ("layers.{i}.laurel.post_norm", "layers.{i}.laurel.post_laurel_norm.weight", "blk.{i}.laurel_post_norm.weight"),
    )  # fmt: skip

    # Defaults are those of transformers' Gemma3nTextConfig.
    vocab_size: int = 262400
    hidden_size: int = 2048
    intermediate_size: int = 16384
    num_hidden_layers: int = 35
    num_key_value_heads: int | None = 2
    max_position_embeddings: int = 32768
    final_logit_softcapping: float | None = 30.0
    num_kv_shared_layers: int = 15
    altup_active_idx: int = 0
    altup_correct_scale: bool = True
    altup_num_inputs: int = 4
    laurel_rank: int = 64
    activation_sparsity_pattern: Sequence[float] | None = None
    # What a GGUF holds in its place: how many standard deviations a gate must be above the mean.
    gguf_cutoffs: Sequence[float] | None = None

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() | {"altup_coef_clip"}  # of training

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(
            super().spec(),
            laurel_rank=self.laurel_rank,
            altup=AltUp(self.altup_num_inputs, self.altup_active_idx, self.altup_correct_scale),
        )

    def kinds(self) -> Sequence[str]:
        """Every fifth sees everything."""
        count = self.num_hidden_layers
        return ["sliding_attention" if (i + 1) % 5 else "full_attention" for i in range(count)]

    def mixers(self) -> dict[str, Attention]:
        local = self.rope(self.rope_local_base_freq, self.rope_local_scaling)
        everywhere = self.rope(self.rope_theta, self.rope_scaling)
        return {
            "sliding_attention": self.of_gemma(self.attention(local, self.sliding_window)),
            "full_attention": self.of_gemma(self.attention(everywhere, None)),
        }

    def feed_forwards(self) -> Sequence[FeedForward]:
        widths = self.widths or [self.intermediate_size] * self.num_hidden_layers
        blocks = []
        for width, cutoff in self.by_layer(widths, self.cutoffs()):
            own = dataclasses.replace(self, intermediate_size=width).feed_forward()
            blocks.append(dataclasses.replace(own, cutoff=cutoff))
        return blocks

    def cutoffs(self) -> Sequence[float | None]:
        """Of each layer: a share of a normal distribution lies below so many deviations."""
        if self.gguf_cutoffs is not None:
            return [cutoff if abs(cutoff) < 1e3 else None for cutoff in self.gguf_cutoffs]
        shares = self.activation_sparsity_pattern
        if shares is None:
            sparse = 10 if self.num_hidden_layers > 10 else 0
            shares = [0.95] * sparse + [0.0] * (self.num_hidden_layers - sparse)
        if not all(0 <= share < 1 for share in shares):
            raise SourceError(
                f"{self.name} config",
                f"activation_sparsity_pattern={list(shares)!r:.60} is not shares below 1",
                "check config.json",
            )
        return [NormalDist().inv_cdf(share) if share else None for share in shares]

    def _is_ignored(self, plain: str, head: str) -> bool:
        """What scales the output is in every checkpoint."""
        is_scale = plain.endswith((".correct_output_scale", ".altup_correct_scale.weight"))
        return (is_scale and not self.altup_correct_scale) or super()._is_ignored(plain, head)
