"""The rotary embedding that a config asks for, by the rules of transformers' `modeling_rope_utils`.

Every kind of scaling comes down to one divisor per frequency, and one factor on cos and sin.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard, cast

from converter.decoder import Rope
from converter.errors import SourceError, UnsupportedError

_KINDS_OF_LAYERS = frozenset({"full_attention", "sliding_attention"})
# Bounds on what a damaged config can ask for. A GGUF says 1e30 of what does not turn.
_MOST = 1e31


def _is_number(value: object) -> TypeGuard[float]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 1 / _MOST < cast(float, value) < _MOST


@dataclass(frozen=True)
class RopeSettings:
    """What the kinds are computed from.

    Attributes:
        family: for error messages.
        values: the config's `rope_parameters` or `rope_scaling`; {} where it has none.
        theta: base of the frequencies.
        head_dim: how much of a head is rotated.
        max_positions: `max_position_embeddings` of the config.
        rotates_part: whether the family heeds `partial_rotary_factor`; `head_dim` is by it then.
    """

    family: str
    values: Mapping[str, Any]
    theta: float
    head_dim: int
    max_positions: int
    rotates_part: bool = False

    def rope(self) -> Rope:
        """Raises SourceError for numbers that make no sense, UnsupportedError for other kinds."""
        if not 1 < self.theta < _MOST:
            raise SourceError(
                f"{self.family} config",
                f"rope_theta={self.theta!r} is not above 1",
                "check config.json",
            )
        kind = self.kind
        known = isinstance(kind, str) and kind in _KINDS
        nested = [key for key, value in self.values.items() if isinstance(value, dict)]
        if not known or nested:
            what, value = ("rope_type", kind) if not known else (nested[0], self.values[nested[0]])
            raise UnsupportedError(
                f"{self.family}: rope_scaling.{what}={value!r}",
                f"not supported, only the types {', '.join(k for k in _KINDS if k != _FACTORS)} are",
                "use another checkpoint of this model, or one of a supported family",
            )
        partial = 1.0 if self.rotates_part else self.number("partial_rotary_factor", 1.0)
        # transformers turns the whole head in "default", whatever it says, and fails in the others.
        if partial != 1 and kind not in ("default", "proportional"):
            raise UnsupportedError(
                f"{self.family}: rope_scaling.partial_rotary_factor={partial!r}",
                f"not supported together with rope_type {kind}",
                "use another checkpoint of this model",
            )
        return _KINDS[kind](self)

    @property
    def kind(self) -> Any:
        """`rope_type`, or `type` in the older spelling."""
        return self.values.get("rope_type", self.values.get("type", "default"))

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number; one that is missing or null is `default`, or an error."""
        value = self.values.get(key)
        value = default if value is None else value
        if not _is_number(value):
            raise self.wrong(key, value, "a positive number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """One positive number for each frequency."""
        values, half = self.values.get(key), self.head_dim // 2
        if not isinstance(values, list) or len(values) != half or not all(map(_is_number, values)):
            raise self.wrong(key, values, f"a list of {half} positive numbers")
        return tuple(map(float, values))

    def wrong(self, key: str, value: object, wanted: str) -> SourceError:
        return SourceError(
            f"{self.family} config",
            f"rope_scaling.{key}={value!r:.60} is not {wanted}",
            "check config.json",
        )

    @property
    def original_positions(self) -> float:
        """Positions of the training before the context was stretched."""
        return self.number("original_max_position_embeddings", self.max_positions)

    def stretch(self) -> float:
        """`factor`, or what the two lengths make of it."""
        return self.number("factor", self.max_positions / self.original_positions)


def by_kind_of_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose class has one set of rotary parameters for each kind of layer, as fields.

    Those of layers that see everything become `rope_theta` and `rope_scaling`, those of layers with
    a window `rope_local_base_freq` and `rope_local_scaling`. Sets that belong to neither are ignored,
    as is `truncate` in them: transformers looks for it beside the sets.
    """
    resolved = dict(config)
    sets = resolved.pop("rope_parameters", None) or {"full_attention": {"rope_type": "default"}}
    everywhere = {**(sets.get("full_attention") or {}), **(resolved.get("rope_scaling") or {})}
    local = dict(sets.get("sliding_attention") or {})
    for scaling, key in ((everywhere, "rope_theta"), (local, "rope_local_base_freq")):
        scaling.pop("truncate", None)
        if scaling.get("rope_theta") is not None:
            resolved[key] = scaling["rope_theta"]
    return resolved | {"rope_scaling": everywhere, "rope_local_scaling": local}


def lost_by_kind(config: Mapping[str, Any]) -> set[str]:
    """The rotary settings of such a config that transformers passes over.

    Those beside the sets; and a kind under its old name, `type`: the default has been put into
    `rope_type` before it is looked for.
    """
    scaling, sets = config.get("rope_scaling") or {}, config.get("rope_parameters") or {}
    lost = {f"rope_parameters.{key}" for key in sets.keys() - _KINDS_OF_LAYERS}
    is_type_lost = "type" in scaling and "rope_type" not in scaling and not sets
    return lost | {"rope_scaling.type"} if is_type_lost else lost


def _default(settings: RopeSettings) -> Rope:
    return Rope(settings.theta)


def _linear(settings: RopeSettings) -> Rope:
    return Rope(settings.theta, (settings.number("factor"),))


def _dynamic(settings: RopeSettings) -> Rope:
    """NTK scaling by the length of the text, which begins beyond the trained length."""
    settings.number("factor")
    return Rope(settings.theta, positions=settings.max_positions)


def _llama3(settings: RopeSettings) -> Rope:
    """`factor` for low frequencies, 1 for high ones, and a ramp between."""
    factor = settings.number("factor")
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    if low == high:
        raise settings.wrong("high_freq_factor", high, "another number than low_freq_factor")
    factors = []
    for frequency in Rope(settings.theta).inverse_frequencies(settings.head_dim):
        wavelength = 2 * math.pi / frequency  # in positions
        turns = settings.original_positions / wavelength
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return Rope(settings.theta, tuple(factors))


def _yarn(settings: RopeSettings) -> Rope:
    """Like llama3 with a ramp over dimensions; queries and keys grow with the factor's logarithm.

    The ramp goes from the dimension that turns `beta_fast` times in the trained length to the one
    that turns `beta_slow` times.
    """
    dim, factor = settings.head_dim, settings.stretch()

    def dimension(turns: float) -> float:
        ratio = settings.original_positions / (turns * 2 * math.pi)
        return dim * math.log(ratio) / (2 * math.log(settings.theta))

    low = dimension(settings.number("beta_fast", 32.0))
    high = dimension(settings.number("beta_slow", 1.0))
    if settings.values.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # as transformers does, against a division by zero
    ramp = [min(max((i - low) / (high - low), 0.0), 1.0) for i in range(dim // 2)]
    factors = tuple(1 / (share / factor + (1 - share)) for share in ramp)
    return Rope(settings.theta, factors, _yarn_attention_factor(settings, factor))


def _yarn_attention_factor(settings: RopeSettings, factor: float) -> float:
    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1 if factor > 1 else 1.0

    if settings.values.get("attention_factor") is not None:
        return settings.number("attention_factor")
    if settings.values.get("mscale") and settings.values.get("mscale_all_dim"):
        return scale(settings.number("mscale")) / scale(settings.number("mscale_all_dim"))
    return scale(1.0)


def _longrope(settings: RopeSettings) -> Rope:
    """A divisor for each frequency: `short_factor` within the trained length, else `long_factor`.

    transformers changes over when a text outgrows that length, with a cache full of keys that were
    turned by the short ones. A network has one list for its whole context, as in llama.cpp.
    """
    original, factor = settings.original_positions, settings.stretch()
    if original <= 1:
        raise settings.wrong("original_max_position_embeddings", original, "above 1")
    attention = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    attention = settings.number("attention_factor", attention)
    return Rope(
        settings.theta,
        settings.numbers("short_factor"),
        attention,
        positions=int(original),
        longer=Rope(settings.theta, settings.numbers("long_factor"), attention),
    )


def _proportional(settings: RopeSettings) -> Rope:
    """Linear scaling of the first dimensions; the others do not turn."""
    half, factor = settings.head_dim // 2, settings.number("factor", 1.0)
    partial = settings.number("partial_rotary_factor", 1.0)
    turning = min(int(partial * settings.head_dim // 2), half)
    return Rope(settings.theta, (factor,) * turning + (math.inf,) * (half - turning))


def _factors(settings: RopeSettings) -> Rope:
    """What a GGUF holds of llama3: the outcome, not the settings."""
    return Rope(settings.theta, settings.numbers("factors"))


_FACTORS = "factors"  # which no config.json says
_KINDS: dict[str, Callable[[RopeSettings], Rope]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
    "proportional": _proportional,
    _FACTORS: _factors,
}
