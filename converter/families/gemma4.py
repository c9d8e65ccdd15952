"""Gemma 4: `gemma4` and its text part `gemma4_text`, and `gemma4_unified` (12B) likewise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from converter.decoder import Attention, DecoderSpec, Experts, FeedForward
from converter.errors import SourceError
from converter.families.experts import experts_of
from converter.families.gemma_per_layer import PerLayerGemma
from converter.families.rope import RopeSettings
from converter.families.tensors import Names, WeightSource, with_names

# transformers' default, and what a GGUF's rotary factors say.
_ROPE = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1_000_000.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
}

# Of the layers that have experts beside their dense block, which is the shared one.
_EXPERTS, _STACKED = "layers.{i}.experts", "blk.{i}.ffn_gate_up_exps.weight"
_OF_EXPERTS: Names = (
    ("layers.{i}.mlp.router_norm", "layers.{i}.router.scale", "blk.{i}.ffn_gate_inp.scale"),
    ("layers.{i}.mlp.router", "layers.{i}.router.proj.weight", "blk.{i}.ffn_gate_inp.weight"),
    ("layers.{i}.mlp.scales", "layers.{i}.router.per_expert_scale", "blk.{i}.ffn_down_exps.scale"),
    ("layers.{i}.mlp.shared.gate", "layers.{i}.mlp.gate_proj.weight", "blk.{i}.ffn_gate.weight"),
    ("layers.{i}.mlp.shared.up", "layers.{i}.mlp.up_proj.weight", "blk.{i}.ffn_up.weight"),
    ("layers.{i}.mlp.shared.down", "layers.{i}.mlp.down_proj.weight", "blk.{i}.ffn_down.weight"),
    ("layers.{i}.mlp.shared.post_norm", "layers.{i}.post_feedforward_layernorm_1.weight", "blk.{i}.post_ffw_norm_1.weight"),
    ("layers.{i}.mlp.experts.norm", "layers.{i}.pre_feedforward_layernorm_2.weight", "blk.{i}.pre_ffw_norm_2.weight"),
    ("layers.{i}.mlp.experts.{e}.gate", f"{_EXPERTS}.gate_up_proj", f"{_STACKED}|blk.{{i}}.ffn_gate_exps.weight"),
    ("layers.{i}.mlp.experts.{e}.up", f"{_EXPERTS}.gate_up_proj", f"{_STACKED}|blk.{{i}}.ffn_up_exps.weight"),
    ("layers.{i}.mlp.experts.{e}.down", f"{_EXPERTS}.down_proj", "blk.{i}.ffn_down_exps.weight"),
    ("layers.{i}.mlp.experts.post_norm", "layers.{i}.post_feedforward_layernorm_2.weight", "blk.{i}.post_ffw_norm_2.weight"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gemma4(PerLayerGemma):
    """Wider heads in layers that see everything, a number on each layer, shared caches."""

    name: ClassVar[str] = "gemma4"
    templates: ClassVar[tuple[str, ...]] = ("gemma4.jinja",)
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_bidirectional_attention": (None, "vision"),  # text sees what is before it
    }
    beside: ClassVar[frozenset[str]] = PerLayerGemma.beside | {"expert_intermediate_size"}
    gguf_aliases: ClassVar[Mapping[str, str]] = {"num_experts_per_tok": "top_k_experts"}
    names: ClassVar[Names] = with_names(
        PerLayerGemma.names,
        ("layers.{i}.scale", "layers.{i}.layer_scalar", "blk.{i}.layer_output_scale.weight"),
        *_OF_EXPERTS,
    )

    # Defaults are those of transformers' Gemma4TextConfig.
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 30
    num_key_value_heads: int | None = 4
    max_position_embeddings: int = 131072
    global_head_dim: int | None = 512
    num_global_key_value_heads: int | None = None
    attention_k_eq_v: bool = False
    use_double_wide_mlp: bool = False
    enable_moe_block: bool = False
    num_experts: int | None = None
    top_k_experts: int | None = None
    moe_intermediate_size: int | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], fmt: str = "safetensors") -> Gemma4:
        if fmt == "gguf":  # its factors are of the layers that see everything
            config = dict(config)
            config["enable_moe_block"] = bool(config.get("num_experts"))
            everywhere = config.pop("rope_scaling", None) or {"rope_type": "default"}
            local = {"rope_type": "default"}
            config["rope_parameters"] = {"full_attention": everywhere, "sliding_attention": local}
        return super().from_config(config, fmt)

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        text = config.get("text_config")
        text = dict(text if isinstance(text, dict) else config)
        text.pop("rope_scaling", None)  # transformers' class has no older spelling
        text["rope_parameters"] = {**_ROPE, **(text.get("rope_parameters") or {})}
        return super().resolve_aliases({**config, "text_config": text})

    def spec(self) -> DecoderSpec:
        return dataclasses.replace(super().spec(), has_layer_scales=True)

    def kinds(self) -> Sequence[str]:
        """Every sixth sees everything."""
        count = self.num_hidden_layers
        return ["sliding_attention" if (i + 1) % 6 else "full_attention" for i in range(count)]

    def layers(self) -> tuple[Any, ...]:
        if self.layer_types and self.layer_types[-1] == "sliding_attention":
            # transformers makes the last one see everything, whatever it is called.
            types = (*self.layer_types[:-1], "full_attention")
            return dataclasses.replace(self, layer_types=types).layers()
        return super().layers()

    def mixers(self) -> dict[str, Attention]:
        local = self.rope(self.rope_local_base_freq, self.rope_local_scaling)
        wide = self.global_head_dim or self.attention_head_dim
        settings = RopeSettings(
            self.name, self.rope_scaling or {}, self.rope_theta, wide, self.max_position_embeddings
        )
        kv_heads = self.kv_heads
        if self.attention_k_eq_v:
            kv_heads = self.num_global_key_value_heads or kv_heads
        everywhere = dataclasses.replace(
            self.attention(settings.rope(), None),
            head_dim=wide,
            num_kv_heads=kv_heads,
            keys_are_values=self.attention_k_eq_v,
        )
        return {
            "sliding_attention": self.of_gemma(self.attention(local, self.sliding_window)),
            "full_attention": self.of_gemma(everywhere),
        }

    def feed_forwards(self) -> Sequence[FeedForward | Experts]:
        return [self.with_experts(dense) for dense in self.dense_blocks()]

    def with_experts(self, dense: FeedForward) -> FeedForward | Experts:
        """A layer's dense block, and beside it, with norms of their own, the experts."""
        if not self.enable_moe_block:
            return dense
        sizes = self.num_experts, self.top_k_experts, self.moe_intermediate_size
        if None in sizes:
            raise SourceError(
                f"{self.name} config",
                "enable_moe_block is true, and num_experts, top_k_experts or "
                "moe_intermediate_size is missing",
                "complete config.json",
            )
        count, active, width = (size or 0 for size in sizes)
        return experts_of(
            self.name,
            dataclasses.replace(dense, width=width),
            count,
            active,
            key="top_k_experts",
            shared=dense,
            router_norm=self.norm(),
            own_norms=self.norm(),
            has_scales=True,
        )

    def dense_blocks(self) -> Sequence[FeedForward]:
        own = self.feed_forward()
        if self.widths:  # as a GGUF has them
            pairs = self.by_layer(self.widths, range(self.num_hidden_layers))
            return [dataclasses.replace(own, width=width) for width, _ in pairs]
        wide = dataclasses.replace(own, width=2 * own.width) if self.use_double_wide_mlp else own
        return [wide if i >= self.first_shared else own for i in range(self.num_hidden_layers)]

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        source = super().source_of(path, tensor, fmt)
        if path.endswith("router_norm"):  # transformers divides by it after the norm
            root = self.hidden_size**-0.5
            return dataclasses.replace(source, factors=((self.hidden_size, root),))
        return source


# What transformers' class of the 12B model does not know.
_NOT_UNIFIED = frozenset(
    {
        "enable_moe_block", "hidden_size_per_layer_input", "moe_intermediate_size", "num_experts",
        "top_k_experts", "vocab_size_per_layer_input",
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Gemma4Unified(Gemma4):
    """Gemma 4 12B, which has no per-layer embeddings."""

    max_position_embeddings: int = 262144
    sliding_window: int | None = 1024
    hidden_size_per_layer_input: int | None = None

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        resolved = super().resolve_aliases(config)
        return {key: value for key, value in resolved.items() if key not in _NOT_UNIFIED}

    @classmethod
    def keys(cls) -> frozenset[str]:
        return super().keys() - _NOT_UNIFIED
