"""What a family is: a typed config, and the network that it describes (its tensors: `tensors`).

`Family` itself is the plain Llama decoder (RMSNorm before attention and feed-forward, full rotary
embedding, grouped-query attention, SwiGLU, no biases). A family is a frozen dataclass whose fields
are its config, under Hugging Face's own keys; it overrides the few hooks in which it differs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from converter.decoder import (
    ATTENTION_PROJECTIONS,
    MLP_PROJECTIONS,
    Activation,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    LayerSpec,
    Norm,
    NormKind,
    Rope,
)
from converter.errors import SourceError, UnsupportedError
from converter.families.config_keys import (
    GGUF_LIMITS,
    LIMITS,
    ROPE_KEYS,
    ROPE_SETTINGS,
    WITHOUT_EFFECT,
)
from converter.families.rope import RopeSettings
from converter.families.tensors import StoredWeights, WeightSource

FamilyT = TypeVar("FamilyT", bound="Family")

# By the names of transformers' ACT2FN, of which several stand for one function.
ACTIVATIONS: dict[str, Activation] = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_python": Activation.GELU,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_python_tanh": Activation.GELU_TANH,
    "gelu_new": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "gelu_accurate": Activation.GELU_TANH,
    "relu2": Activation.RELU2,
}

_MAY_BE_ZERO = (
    "altup_active_idx",
    "hidden_size_per_layer_input",
    "max_window_layers",
    "num_dense_layers",
    "num_experts_per_tok",
    "num_local_experts",
    "num_kv_shared_layers",
)
_SAYS_NOTHING: tuple[Any, ...] = (None, False, 0, "", [], {})

# Bounds on what a damaged config can ask for.
_MOST = {
    "vocab_size": 1 << 24, "hidden_size": 1 << 20, "intermediate_size": 1 << 22,
    "num_hidden_layers": 10_000, "num_attention_heads": 1 << 14, "num_key_value_heads": 1 << 14,
    "head_dim": 1 << 16, "num_experts": 1 << 12, "num_local_experts": 1 << 12,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family(StoredWeights):
    """A plain Llama decoder, and the base of every family; see the module's docstring."""

    # Keys of transformers' class that it calls otherwise than the fields here: its name -> field.
    aliases: ClassVar[Mapping[str, str]] = {}
    # The same for the keys that `gguf_config` finds in a GGUF.
    gguf_aliases: ClassVar[Mapping[str, str]] = {}
    # The formats in which the rotary embedding turns neighbours, (0, 1), (2, 3), ..., and not halves:
    # rows of q and k are reordered when they are read, and the network turns halves in all families.
    # llama.cpp's converter has made pairs of halves in llama and its kin; see docs/adding-a-family.md.
    interleaved: ClassVar[frozenset[str]] = frozenset()
    # Whether transformers' class heeds `partial_rotary_factor`; most do not.
    rotates_part: ClassVar[bool] = False
    # What is read among the rotary settings.
    rotary_settings: ClassVar[frozenset[str]] = ROPE_SETTINGS
    # Keys that transformers' class of this family knows, the network here does not, and the values
    # that change nothing; any other is refused.
    limits: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    activations: ClassVar[Mapping[str, Activation]] = ACTIVATIONS
    # What transformers calls `hidden_act` in this family, for messages.
    activation_key: ClassVar[str] = "hidden_act"
    # Keys of a larger model that the decoder sits in.
    beside: ClassVar[frozenset[str]] = frozenset()
    # Files here: templates to try where the source's own, made to fit the runtime, does not pass.
    templates: ClassVar[tuple[str, ...]] = ("chatml.jinja",)
    # Whether its SentencePiece model goes into the bundle where there is one: it starts faster.
    prefers_sentencepiece: ClassVar[bool] = False

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    # A GGUF has no keys for biases: its tensors say which projections have one.
    gguf_biases: Sequence[str] | None = None

    # Reading a config ----------------------------------------------------------------------------

    @classmethod
    def from_config(
        cls: type[FamilyT], config: Mapping[str, Any], fmt: str = "safetensors"
    ) -> FamilyT:
        """Read and check a config.

        Args:
            fmt: the checkpoint's format. In a config.json, keys that transformers' class does not
                have are ignored, as it does; a GGUF's come from a table that knows them all.

        Raises:
            SourceError: a value is missing or of the wrong type.
            UnsupportedError: it asks for something that this family cannot do.
        """
        if fmt == "gguf":
            config = {cls.gguf_aliases.get(key, key): value for key, value in config.items()}
        _check_objects(cls.name, config)
        if fmt != "gguf":  # where a key is called otherwise, a field's name is no key of the class
            known, fields_of_others = cls.keys(), cls.aliases.values()
            config = {
                key: value
                for key, value in config.items()
                if key in known or key not in fields_of_others
            }
        config = cls.resolve_aliases(config)
        if fmt != "gguf":
            for key in [key for key in config if key.startswith("gguf_")]:
                del config[key]
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key, neutral in (GGUF_LIMITS if fmt == "gguf" else {**LIMITS, **cls.limits}).items():
            if key in config and key not in fields and config[key] not in neutral:
                raise cls.unsupported(key, config[key], f"only {neutral[-1]!r} is")
        values = {
            name: _checked(cls.name, field, config[name])
            for name, field in fields.items()
            if name in config and (config[name] is not None or "None" in str(field.type))
        }
        missing = [
            name
            for name, field in fields.items()
            if field.default is dataclasses.MISSING and name not in values
        ]
        if missing:
            raise SourceError(
                f"{cls.name} config", f"has no {', '.join(missing)}", "complete config.json"
            )
        family = cls(**values)
        family.validate()
        return family

    @classmethod
    def resolve_aliases(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """Bring a config to the keys that the fields use; transformers 5 renamed some."""
        resolved = {cls.aliases.get(key, key): value for key, value in config.items()}
        rope = resolved.get("rope_scaling") or resolved.get("rope_parameters")
        if isinstance(rope, dict):
            rope = {**rope}
            for key in ROPE_KEYS & resolved.keys():  # transformers looks for them there, too
                rope[key] = resolved[key]
            if rope.get("rope_theta") is not None:
                resolved["rope_theta"] = rope["rope_theta"]
            resolved["rope_scaling"] = rope
        return resolved

    @classmethod
    def keys(cls) -> frozenset[str]:
        """The keys of a config.json that this family reads, as transformers spells them."""
        fields = {field.name for field in dataclasses.fields(cls)}
        spelled = fields - set(cls.aliases.values()) | cls.aliases.keys() | {"rope_parameters"}
        return frozenset(key for key in spelled if not key.startswith("gguf_"))

    @classmethod
    def ignored_keys(cls, config: Mapping[str, Any]) -> tuple[str, ...]:
        """The keys of a config.json that say something and are not read, sorted.

        transformers' class has no such key, or does nothing with it. Of a larger model that the
        decoder sits in, its text part is looked at.
        """
        config = _decoder_part(config)
        known = cls.keys() | LIMITS.keys() | cls.limits.keys() | cls.beside | WITHOUT_EFFECT
        found = {key: value for key, value in config.items() if key not in known}
        for name in ("rope_scaling", "rope_parameters"):
            settings = config.get(name)
            if isinstance(settings, dict):
                unread = settings.keys() - cls.rotary_settings
                found.update({f"{name}.{key}": settings[key] for key in unread})
        return tuple(sorted(key for key, value in found.items() if value not in _SAYS_NOTHING))

    def validate(self) -> None:
        """Refuse what the graph cannot represent.

        Raises:
            SourceError: the numbers contradict each other.
            UnsupportedError: they make sense but are not supported.
        """
        for key, most in _MOST.items():
            value = getattr(self, key, None)
            if value is not None and value > most:
                raise SourceError(
                    f"{self.name} config",
                    f"{key}={value} is more than any model has",
                    "check config.json",
                )
        if self.num_attention_heads % self.kv_heads:
            raise SourceError(
                f"{self.name} config",
                f"num_attention_heads={self.num_attention_heads} is no multiple of "
                f"num_key_value_heads={self.kv_heads}",
                "check config.json",
            )
        if self.attention_head_dim < 2:
            raise SourceError(
                f"{self.name} config",
                f"hidden_size={self.hidden_size} leaves num_attention_heads="
                f"{self.num_attention_heads} no width",
                "check config.json",
            )
        if self.attention_head_dim % 2:
            raise self.unsupported("head_dim", self.attention_head_dim, "only even numbers are")
        self.spec()  # runs every other check a family has

    @classmethod
    def unsupported(cls, key: str, value: object, supported: str) -> UnsupportedError:
        """The refusal of one config value, by name."""
        return UnsupportedError(
            f"{cls.name}: {key}={value!r}",
            f"not supported, {supported}",
            "use another checkpoint of this model, or one of a supported family",
        )

    # The network ---------------------------------------------------------------------------------

    @property
    def kv_heads(self) -> int:
        """Key-value heads; as many as there are heads unless the config says otherwise."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def attention_head_dim(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def spec(self) -> DecoderSpec:
        """The network that this config describes."""
        if self.hidden_act not in self.activations:
            supported = f"only {', '.join(self.activations)} are"
            raise self.unsupported(self.activation_key, self.hidden_act, supported)
        return DecoderSpec(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            norm=self.norm(),
            layers=self.layers(),
            tied_head=self.tie_word_embeddings,
        )

    def norm(self) -> Norm:
        """The norm of every block."""
        return Norm(NormKind.RMS, self.rms_norm_eps)

    def layer(self, rope: Rope | None, sliding_window: int | None = None) -> LayerSpec:
        """A layer with this rotary embedding and window."""
        return LayerSpec(self.attention(rope, sliding_window), self.block())

    def attention(self, rope: Rope | None, sliding_window: int | None) -> Attention:
        """The mixer of a layer."""
        return Attention(
            num_heads=self.num_attention_heads,
            num_kv_heads=self.kv_heads,
            head_dim=self.attention_head_dim,
            scale=self.attention_head_dim**-0.5,
            rope=rope,
            sliding_window=sliding_window,
            biases=self._biases_among(ATTENTION_PROJECTIONS),
        )

    def block(self) -> FeedForward | Experts:
        """What follows the mixer of a layer."""
        return self.feed_forward()

    def feed_forward(self) -> FeedForward:
        """A feed-forward block; where there are experts, one of them."""
        return FeedForward(
            self.intermediate_size,
            self.activations[self.hidden_act],
            biases=self._biases_among(MLP_PROJECTIONS),
        )

    def _biases_among(self, projections: Sequence[str]) -> tuple[str, ...]:
        found = self.biases() if self.gguf_biases is None else self.gguf_biases
        return tuple(part for part in projections if part in found)

    def biases(self) -> tuple[str, ...]:
        """The projections to which the config gives a bias: q, k, v, o, gate, up, down."""
        return ()

    def layers(self) -> tuple[LayerSpec, ...]:
        """One entry per layer."""
        return (self.layer(self.rope(self.rope_theta, self.rope_scaling)),) * self.num_hidden_layers

    def layers_of(
        self, kinds: Sequence[str], by_kind: Mapping[str, LayerSpec]
    ) -> tuple[LayerSpec, ...]:
        """The layers that a config's `layer_types` name."""
        if len(kinds) != self.num_hidden_layers:
            raise SourceError(
                f"{self.name} config",
                f"layer_types names {len(kinds)} layers, "
                f"num_hidden_layers says {self.num_hidden_layers}",
                "check config.json",
            )
        for kind in kinds:
            if kind not in by_kind:
                raise self.unsupported("layer_types", kind, f"only {', '.join(by_kind)} are")
        return tuple(by_kind[kind] for kind in kinds)

    def by_layer(self, *columns: Sequence[Any]) -> Iterable[tuple[Any, ...]]:
        """What a config says of each layer in several lists, layer by layer."""
        for values in columns:
            if len(values) != self.num_hidden_layers:
                raise SourceError(
                    f"{self.name} config",
                    f"a list of layers has {len(values)} entries, "
                    f"num_hidden_layers says {self.num_hidden_layers}",
                    "check config.json",
                )
        return zip(*columns, strict=True)

    def rope(self, theta: float, scaling: Mapping[str, Any] | None) -> Rope:
        """The rotary embedding that a theta and a `rope_scaling` ask for."""
        rope = self.rope_settings(theta, scaling).rope()
        is_part = self.rotary_width < self.attention_head_dim
        if not is_part:
            return rope
        longer = rope.longer and dataclasses.replace(rope.longer, width=self.rotary_width)
        return dataclasses.replace(rope, width=self.rotary_width, longer=longer)

    def rope_settings(self, theta: float, scaling: Mapping[str, Any] | None) -> RopeSettings:
        """What the rotary embedding is worked out from."""
        return RopeSettings(
            self.name,
            scaling or {},
            theta,
            self.rotary_width,
            self.max_position_embeddings,
            self.rotates_part,
        )

    @property
    def rotary_width(self) -> int:
        """How much of a head is rotated."""
        if not self.rotates_part:
            return self.attention_head_dim
        factor = (self.rope_scaling or {}).get("partial_rotary_factor")
        if factor is None:
            factor = getattr(self, "partial_rotary_factor", 1.0)
        share = factor if isinstance(factor, int | float) and 0 < factor <= 1 else 0
        width = int(self.attention_head_dim * share)
        if width < 2 or width % 2:
            raise self.unsupported(
                "partial_rotary_factor", factor, "only an even number of a head's values is"
            )
        return width

    @property
    def longest_context(self) -> int:
        """For how many positions the network is right.

        For those that it was made for, or fewer: some rotary embeddings change with the length.
        """
        mixers = [layer.mixer for layer in self.layers()]
        ropes = {mixer.rope for mixer in mixers if isinstance(mixer, Attention)}
        limits = [rope.positions for rope in ropes if rope and rope.positions and not rope.longer]
        return min([self.max_position_embeddings, *limits])

    # The weights ---------------------------------------------------------------------------------

    def source_of(self, path: str, tensor: str, fmt: str) -> WeightSource:
        """How a weight is stored; see `StoredWeights.source_of`. Rows of q and k may be reordered."""
        if fmt in self.interleaved and (".attention.q" in path or ".attention.k" in path):
            width = self.attention_head_dim, self.rotary_width
            return WeightSource(tensor, interleaved=width)
        return WeightSource(tensor)

    # The bundle ----------------------------------------------------------------------------------

    @classmethod
    def base_metadata(cls) -> str:
        """The family's LlmMetadata in text form: stop tokens, sampler, model type."""
        return (Path(__file__).parent / f"{cls.name}_base_metadata.textproto").read_text("utf-8")

    @classmethod
    def has_thoughts(cls) -> bool:
        """Whether the engine may take thoughts out of the history again."""
        return "channels {" in cls.base_metadata()


def _decoder_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of the decoder, where it stands in that of a larger model; else the whole."""
    text = config.get("text_config")
    return text if isinstance(text, dict) else config


def _check_objects(family: str, config: Mapping[str, Any]) -> None:
    """Refuse a config in which what is read as an object is none: keys are looked for in them."""
    text = _decoder_part(config)
    rope = text.get("rope_parameters")
    sets = rope if isinstance(rope, dict) else {}
    for key, value in {
        "text_config": config.get("text_config"),
        "rope_scaling": text.get("rope_scaling"),
        "rope_parameters": rope,
        "rope_parameters.full_attention": sets.get("full_attention"),
        "rope_parameters.sliding_attention": sets.get("sliding_attention"),
    }.items():
        if value is not None and not isinstance(value, dict):
            raise SourceError(
                f"{family} config", f"{key}={value!r:.60} is not a JSON object", "check config.json"
            )


def _checked(family: str, field: dataclasses.Field[Any], value: Any) -> Any:
    """The value of a config key, if it has the type that the field declares."""
    if value is None:
        return None
    kind = str(field.type).removesuffix(" | None")
    least = 0 if field.name in _MAY_BE_ZERO else 1
    ok = {
        "int": isinstance(value, int) and not isinstance(value, bool) and value >= least,
        "float": isinstance(value, int | float)
        and not isinstance(value, bool)
        and 0 < value < 1e300,
        "bool": isinstance(value, bool),
        "str": isinstance(value, str),
        "dict[str, Any]": isinstance(value, dict),
        "Sequence[int]": isinstance(value, list) and all(type(v) is int for v in value),
        "Sequence[float]": isinstance(value, list) and all(type(v) in (int, float) for v in value),
        "Sequence[str]": isinstance(value, list) and all(isinstance(v, str) for v in value),
    }[kind]
    if not ok:
        wanted = {
            "int": "a positive integer",
            "float": "a positive number",
            "bool": "true or false",
            "str": "a text",
            "dict[str, Any]": "a JSON object",
            "Sequence[int]": "a list of whole numbers",
            "Sequence[float]": "a list of numbers",
            "Sequence[str]": "a list of texts",
        }[kind]
        raise SourceError(
            f"{family} config", f"{field.name}={value!r} is not {wanted}", "check config.json"
        )
    if kind == "float":  # 1000000 in JSON is an integer, and would be one in the graph
        return float(value)
    return tuple(value) if isinstance(value, list) else value
