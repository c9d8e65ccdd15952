"""Storage formats of weights, and the schemes that choose among them: rows in, packed rows out.

A format works on one block of rows at a time and never sees a whole tensor. The result of a row
depends on that row alone, so the bytes do not depend on block size or number of threads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from converter.decoder import EXACT_MATRICES, DecoderSpec
from converter.errors import OptionError, UnsupportedError
from converter.kernels import SMALLEST_NORMAL, pack_int4, pack_int8
from converter.tflite.graph import DType, Weight
from converter.tflite.kv_cache import Target
from converter.weights.compensation import Compensation
from converter.weights.planned_weight import REST_STEPS
from converter.weights.row_format import Clip, RowFormat, ValueRangeError

_FLOAT16_MAX = float(np.finfo(np.float16).max)
_NOT_FINITE = "holds NaN or infinite values"
# Integers to which a block's largest magnitude is taken while its scale is searched. Beyond 8 it is
# clipped; a block that lies on a grid already reaches one of the others. More of them gain nothing
# (benchmarks/README.md).
_REACHES = (9.0, 8.0, 7.0, 6.0, 5.0)
# What 4 times an int4 and an int2 can be, and the same as `_REACHES`, for a row.
_INT6 = (-34, 29)
_INT6_REACHES = (29.0, 31.0, 33.5, 36.5, 40.0, 44.0)
INT2_IN_BYTE = 4


@dataclass(frozen=True)
class Format(RowFormat):
    """How one weight is stored.

    Attributes:
        dtype: element type in the model.
        block: columns that share a scale in int4, a float16; in int8 a row has one float32.
        is_widened: whether the graph makes float32 of it, and multiplies by that.
        takes_two_terms: whether what is multiplied by it comes in two terms, each rounded to int8.
        has_rest: int6, a scale for each row: in int4 first, and in int2 what that lacks.
    """

    dtype: DType
    block: int | None = None
    is_widened: bool = False
    takes_two_terms: bool = False
    has_rest: bool = False

    @property
    def quantized(self) -> bool:
        """Whether each row has a float32 scale."""
        return self.dtype is DType.INT8 or self.has_rest

    def weight(self, path: str, shape: tuple[int, ...]) -> Weight:
        """A weight of this format.

        Raises:
            UnsupportedError: blocks, or bytes, do not divide its rows.
        """
        if self.has_rest:
            _check_columns(path, shape[1], INT2_IN_BYTE, "the bytes of four int2")
            rest = Weight(f"{path}.rest", shape, DType.INT2, quantized=True)
            two = self.takes_two_terms
            return Weight(path, shape, DType.INT4, True, takes_two_terms=two, rest=rest)
        if self.block is None:
            return Weight(
                path,
                shape,
                self.dtype,
                self.quantized,
                is_widened=self.is_widened,
                takes_two_terms=self.takes_two_terms,
            )
        rows, columns = shape
        _check_columns(path, columns, self.block, f"blocks of {self.block}")
        scales = Weight(f"{path}.scales", (rows, columns // self.block), DType.FLOAT16)
        return Weight(path, shape, self.dtype, scales=scales)

    @property
    def dtype_name(self) -> str:
        return "int6" if self.has_rest else self.dtype.name.lower()

    @property
    def rounds_inputs(self) -> bool:
        return self.takes_importance or (self.dtype is DType.INT8 and not self.is_widened)

    @property
    def lacks_inputs(self) -> bool:
        return self.is_int8 and self.rounds_inputs and not self.takes_two_terms

    @property
    def takes_bf16(self) -> bool:
        return self.dtype is DType.INT8

    @property
    def takes_importance(self) -> bool:
        return self.block is not None or self.has_rest

    @property
    def is_int8(self) -> bool:
        return self.dtype is DType.INT8

    @property
    def wider(self) -> str:
        return ", or try --quantize fp32" if self.dtype is DType.FLOAT16 else ""

    @property
    def compensated_block(self) -> int | None:
        return 1 if self.has_rest else self.block

    def carries(self, stored_block: int) -> bool:
        return self.block is not None and stored_block % self.block == 0

    def pack(
        self,
        rows: np.ndarray,
        buffer: np.ndarray | None = None,
        clip: Clip = Clip.MSE,
        importance: np.ndarray | None = None,
        factors: np.ndarray | None = None,
        stored_block: int | None = None,
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """As `RowFormat.pack`; but by int8, rows are used as scratch space and lost.

        Returns:
            The packed rows, `(n, columns)`, or `(n, columns / 2)` in int4, or as `split_int6` takes
            them; and their scales, `(n,)` or `(n, blocks)`, or None.
        """
        if self.has_rest:
            rows = _finite(rows, factors)
            scales = _row_scales(rows, importance if clip is Clip.MSE else None)
            rows /= scales[:, None]
            integers = np.rint(np.clip(rows, *_INT6, out=rows), out=rows).astype(np.int8)
            return _pack_int6(integers), scales * REST_STEPS
        if self.dtype is DType.INT8:
            packed = _room(buffer, rows.shape, np.int8)
            scales = np.empty(len(rows), np.float32)
            if not pack_int8(rows, packed, scales, factors):
                raise ValueRangeError(_NOT_FINITE)
            return packed, scales
        if self.block is not None and stored_block not in (None, self.block):
            return self._pack_pieces(rows, buffer, clip, importance, stored_block)
        if self.block is not None:
            packed = _room(buffer, (len(rows), rows.shape[1] // 2), np.uint8)
            scales = np.empty((len(rows), rows.shape[1] // self.block), np.float16)
            reaches = _REACHES if clip is Clip.MSE else ()
            if importance is None:
                importance = np.ones(rows.shape[1], np.float32)
            if pack_int4(rows, self.block, reaches, importance, packed, scales, factors):
                return packed, scales
        elif factors is not None:
            rows *= factors
        peak = _peak(rows)
        if not np.isfinite(peak):
            raise ValueRangeError(_NOT_FINITE)
        if self.dtype is not DType.FLOAT32 and peak > _FLOAT16_MAX:
            raise _beyond_float16(peak)
        return rows.astype(_NUMPY[self.dtype], copy=False), None

    def pack_compensated(
        self,
        rows: np.ndarray,
        compensation: Compensation,
        buffer: np.ndarray | None = None,
        factors: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = compensation.moved(_finite(rows, factors))
        integers = np.empty(rows.shape, np.int8)
        if self.has_rest:
            steps = _row_scales(rows, compensation.importance)
            compensation.round_rows(rows, steps, _INT6, integers)
            return _pack_int6(integers), steps * REST_STEPS
        assert self.block is not None
        scales = np.empty((len(rows), rows.shape[1] // self.block), np.float16)
        if not compensation.round(rows, integers, scales):
            raise _beyond_float16(_peak(rows))
        packed = _room(buffer, (len(rows), rows.shape[1] // 2), np.uint8)
        np.bitwise_and(integers[:, ::2].view(np.uint8), 15, out=packed)
        packed |= integers[:, 1::2].view(np.uint8) << 4
        return packed, scales

    def widened(self, packed: np.ndarray, scales: np.ndarray | None) -> np.ndarray:
        if scales is None:
            return packed.astype(np.float32, copy=False)
        if self.has_rest:
            return _int6(packed) * (scales / REST_STEPS)[:, None]
        if self.block is None:
            return packed * scales[:, None]
        return _widened_int4(packed, scales).reshape(len(packed), -1)

    def _pack_pieces(
        self,
        rows: np.ndarray,
        buffer: np.ndarray | None,
        clip: Clip,
        importance: np.ndarray | None,
        stored_block: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Pack rows whose stored blocks are several of these.

        A piece alone may not reach far enough to tell the scale that its numbers are multiples of.
        So a stored block is packed as one; where that does not meet it, each of its pieces is.
        """
        assert self.block is not None
        whole = replace(self, block=stored_block)
        packed, scales = whole.pack(rows, buffer, clip, importance)
        assert scales is not None
        met = blocks_met(rows, packed, scales)
        scales = scales.repeat(stored_block // self.block, axis=1)
        if not met.all():
            others, their_scales = self.pack(rows, None, clip, importance)
            assert their_scales is not None
            for mine, theirs in ((packed, others), (scales, their_scales)):
                by_block = (*met.shape, -1)
                np.copyto(mine.reshape(by_block), theirs.reshape(by_block), where=~met[..., None])
        return packed, scales


def split_int6(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Packed rows of int6, `(n, columns * 3 / 4)`: those of int4, and those of int2."""
    columns = packed.shape[1] * 2 // 3
    return np.ascontiguousarray(packed[:, :columns]), np.ascontiguousarray(packed[:, columns:])


def _pack_int6(integers: np.ndarray) -> np.ndarray:
    """Integers of `_INT6` as 4 times an int4 and an int2, the lowest bits of a byte first."""
    rest = ((integers & 3) ^ 2) - 2  # -2 to 1
    most = ((integers - rest) >> 2).view(np.uint8) & 15
    rest = rest.view(np.uint8) & 3
    most = most[:, ::2] | most[:, 1::2] << 4
    rest = rest[:, ::4] | rest[:, 1::4] << 2 | rest[:, 2::4] << 4 | rest[:, 3::4] << 6
    return np.concatenate((most, rest), axis=1)


def _int6(packed: np.ndarray) -> np.ndarray:
    """The integers again, int8 `(n, columns)`."""
    most, rest = split_int6(packed)
    fours = np.stack([most << 4, most & 0xF0], axis=-1).view(np.int8) >> 4
    twos = np.stack([rest << 6, rest << 4, rest << 2, rest], axis=-1).view(np.int8) >> 6
    found: np.ndarray = 4 * fours.reshape(len(packed), -1) + twos.reshape(len(packed), -1)
    return found


def _row_scales(rows: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """Steps of int6 for each row, `(n,)`: of least squared error where importance is known."""
    peak = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    best = np.maximum(peak / np.float32(_INT6[1]), SMALLEST_NORMAL)
    if importance is None:
        return best
    least, error = np.full(len(rows), np.inf, np.float32), np.empty_like(rows)
    for reach in _INT6_REACHES:
        scales = np.maximum(peak / np.float32(reach), SMALLEST_NORMAL)
        np.divide(rows, scales[:, None], out=error)
        np.rint(np.clip(error, *_INT6, out=error), out=error)
        error *= scales[:, None]
        error -= rows
        loss = np.einsum("nc,nc,c->n", error, error, importance)
        best = np.where(loss < least, scales, best)
        least = np.minimum(loss, least)
    return best


def _finite(rows: np.ndarray, factors: np.ndarray | None) -> np.ndarray:
    """Rows times their columns' factors."""
    if factors is not None:
        rows *= factors
    if not np.isfinite(_peak(rows)):
        raise ValueRangeError(_NOT_FINITE)
    return rows


def _check_columns(path: str, columns: int, size: int, what: str) -> None:
    if columns % size:
        raise UnsupportedError(
            path,
            f"has {columns} columns, which {what} do not divide",
            f"choose another scheme for this part: --quantize ...,{part_of(path)}=dynamic_int8",
        )


def blocks_met(rows: np.ndarray, packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Which int4 blocks are, bit for bit, what was packed into them: bool `(n, blocks)`.

    Args:
        rows: `(n, columns)`.
        packed: `(n, columns / 2)`.
        scales: `(n, blocks)`.
    """
    found = _widened_int4(packed, scales)
    same: np.ndarray = (found == rows.reshape(found.shape)).all(axis=-1)
    return same


def _widened_int4(packed: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Packed int4 in float32, `(n, blocks, columns of a block)`."""
    low, high = packed << 4, packed & 0xF0  # each value in the upper half, with its sign
    values = np.stack([low, high], axis=-1).view(np.int8).reshape(*scales.shape, -1)
    found: np.ndarray = values * (scales.astype(np.float32) / 16)[..., None]
    return found


def _peak(rows: np.ndarray) -> float:
    """The largest magnitude; NaN spreads through both."""
    return float(max(rows.max(initial=0), -rows.min(initial=0)))


def _beyond_float16(peak: float) -> ValueRangeError:
    return ValueRangeError(f"holds {peak:.3g}, beyond float16's {_FLOAT16_MAX:.0f}")


def _room(buffer: np.ndarray | None, shape: tuple[int, int], dtype: npt.DTypeLike) -> np.ndarray:
    """An array for packed values, in `buffer` where there is one."""
    count = shape[0] * shape[1]
    flat = buffer if buffer is not None else np.empty(count, np.int8)
    return flat[:count].view(dtype).reshape(shape)


FLOAT32 = Format(DType.FLOAT32)
FLOAT16 = Format(DType.FLOAT16, is_widened=True)
INT8 = Format(DType.INT8)
INT8_TWO_TERMS = Format(DType.INT8, takes_two_terms=True)
INT8_WEIGHT_ONLY = Format(DType.INT8, is_widened=True)
INT6 = Format(DType.INT4, has_rest=True)
INT6_TWO_TERMS = Format(DType.INT4, has_rest=True, takes_two_terms=True)
INT4_BLOCK32 = Format(DType.INT4, block=32)
INT4_BLOCK128 = Format(DType.INT4, block=128)

_NUMPY = {DType.FLOAT32: np.float32, DType.FLOAT16: np.float16}


@dataclass(frozen=True)
class Scheme:
    """A word that `--quantize` takes.

    Attributes:
        matrix: format of all matrices.
        others: of some parts, where the scheme is for the whole model.
    """

    name: str
    matrix: Format
    summary: str
    others: Mapping[str, Format] = field(default_factory=dict)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        Scheme(
            "dynamic_int8", INT8, "int8 weights, one scale per row; activations int8 on the fly"
        ),
        Scheme(
            "dynamic_int8_a16",
            INT8_TWO_TERMS,
            "int8 weights, one scale per row; activations in two terms of int8, as good as 16 bits",
        ),
        Scheme(
            "dynamic_int6",
            INT6,
            "6-bit weights, one scale per row, as int4 and int2; activations int8 on the fly",
        ),
        Scheme(
            "dynamic_int6_a16",
            INT6_TWO_TERMS,
            "the same; activations in two terms of int8, as good as 16 bits",
        ),
        Scheme(
            "dynamic_int4",
            INT4_BLOCK32,
            "int4 weights in blocks of 32, embedding int8; activations int8 on the fly",
            {"embedding": INT8},
        ),
        Scheme(
            "dynamic_int4_mixed",
            INT4_BLOCK32,
            "the same, and int8 where int4 costs most for its bytes: k, v and down",
            dict.fromkeys(("embedding", "k", "v", "down"), INT8),
        ),
        Scheme(
            "dynamic_int4_block128",
            INT4_BLOCK128,
            "int4 weights in blocks of 128, embedding int8; activations int8 on the fly",
            {"embedding": INT8},
        ),
        Scheme("int8", INT8_WEIGHT_ONLY, "int8 weights, one scale per row; float32 arithmetic"),
        Scheme("fp16", FLOAT16, "float16 weights, float32 arithmetic"),
        Scheme("fp32", FLOAT32, "float32 weights and arithmetic"),
    )
}
# Below so many parameters, what int8 activations lose shows in what a model says: README_MODELS.md.
SMALL = 200_000_000
DEFAULT_SCHEME, DEFAULT_SCHEME_OF_SMALL = "dynamic_int8", "dynamic_int8_a16"
# Single matrices, and the parts that they belong to.
MATRICES = {
    **dict.fromkeys(("q", "k", "v", "o"), "attention"),
    **dict.fromkeys(("gate", "up", "down"), "ffn"),
}
PARTS = ("embedding", "attention", "ffn", "per_layer", "head", *MATRICES)
_OF_LAYERS = ("attention", "ffn", *MATRICES)
_RULE = re.compile(r"(?:layers\.(\d+)(?:-(\d+))?\.)?([a-z_]+)=(.+)")


def part_of(path: str) -> str:
    """`layers.0.mlp.up` -> `ffn`; see `DecoderSpec.weight_shapes`."""
    if path.startswith("per_layer") or ".per_layer." in path:
        return "per_layer"
    if path.startswith("altup_"):
        return "attention"
    if not path.startswith("layers."):
        return path
    return "ffn" if ".mlp." in path else "attention"


def is_of(path: str, part: str) -> bool:
    """Whether a weight belongs to one of `PARTS`."""
    if part not in MATRICES:
        return part_of(path) == part
    return part_of(path) == MATRICES[part] and path.rpartition(".")[2] == part


@dataclass(frozen=True)
class Rule:
    """One part in another format, in all layers or in some of them.

    Attributes:
        text: as it was given.
        layers: the first and the last; None for all.
    """

    text: str
    part: str
    layers: tuple[int, int] | None
    format: Format

    def holds_for(self, path: str) -> bool:
        if not is_of(path, self.part):
            return False
        return self.layers is None or self.layers[0] <= int(path.split(".")[1]) <= self.layers[1]


@dataclass(frozen=True)
class Quantization:
    """All that `--quantize` says: a scheme, and rules of which the last that holds counts.

    Attributes:
        name: as it was given.
    """

    name: str
    scheme: Scheme
    rules: tuple[Rule, ...]

    @property
    def has_rest(self) -> bool:
        """Whether anything may be in int6."""
        return any(form.has_rest for form in (self.scheme.matrix, *(r.format for r in self.rules)))

    def format_of(self, path: str, shape: tuple[int, ...]) -> Format:
        """The format of a weight.

        What is no matrix stays float32: norms, biases, convolutions; and a few
        small matrices. They are tiny, and they matter.
        """
        if len(shape) != 2 or path.rpartition(".")[2] in EXACT_MATRICES:
            return FLOAT32
        for rule in reversed(self.rules):
            if rule.holds_for(path):
                return rule.format
        others = (form for part, form in self.scheme.others.items() if is_of(path, part))
        return next(others, self.scheme.matrix)

    def check(self, spec: DecoderSpec, target: Target) -> None:
        """Make sure that every rule is about something that the model has, and can be obeyed.

        Raises:
            OptionError: one is not.
        """
        if target is Target.GPU and self.has_rest:
            raise OptionError(
                f"--quantize {self.name}",
                "a GPU's delegate knows no products with int2",
                "choose dynamic_int8 or dynamic_int4, or convert for the CPU: --target cpu",
            )
        weights = [path for path, _ in spec.weight_shapes()]
        for rule in self.rules:
            if rule.part == "head" and spec.tied_head:
                raise OptionError(
                    f"--quantize {rule.text}",
                    "this model's head is its embedding table",
                    "say embedding= instead",
                )
            if rule.part == "per_layer" and spec.per_layer_input is None:
                raise OptionError(
                    f"--quantize {rule.text}",
                    "this model has no second embedding for its layers",
                    "leave it out",
                )
            if rule.part in MATRICES and not any(is_of(w, rule.part) for w in weights):
                raise OptionError(
                    f"--quantize {rule.text}",
                    f"this model has no matrix {rule.part}",
                    "leave it out",
                )
            if rule.layers and rule.layers[1] >= len(spec.layers):
                raise OptionError(
                    f"--quantize {rule.text}",
                    f"this model's layers are 0 to {len(spec.layers) - 1}",
                    "choose layers among them",
                )


def default_scheme(spec: DecoderSpec, target: Target) -> str:
    """The scheme where the user names none. A GPU does not round activations."""
    parameters = sum(math.prod(shape) for _, shape in spec.weight_shapes())
    is_small = target is Target.CPU and parameters < SMALL
    return DEFAULT_SCHEME_OF_SMALL if is_small else DEFAULT_SCHEME


def smallest_scheme(spec: DecoderSpec, target: Target) -> str:
    """What `--bits` begins with where the user names no scheme. For a GPU there is no int6."""
    if target is Target.GPU:
        return "dynamic_int4"
    is_small = default_scheme(spec, target) == DEFAULT_SCHEME_OF_SMALL
    return f"dynamic_int4,embedding={'dynamic_int6_a16' if is_small else 'dynamic_int6'}"


def parse_quantization(text: str) -> Quantization:
    """`SCHEME` or `SCHEME,PART=SCHEME,layers.A-B.PART=SCHEME`.

    Raises:
        OptionError: it names no scheme or part that there is.
    """
    first, *others = text.split(",")
    return Quantization(text, _scheme(first), tuple(map(_rule, others)))


def _scheme(name: str) -> Scheme:
    if name not in SCHEMES:
        known = ", ".join(SCHEMES)
        raise OptionError(f"--quantize {name}", "no such scheme", f"choose one of: {known}")
    return SCHEMES[name]


def _rule(text: str) -> Rule:
    match = _RULE.fullmatch(text)
    if match is None or match[3] not in PARTS:
        raise OptionError(
            f"--quantize ...,{text}",
            "is not PART=SCHEME",
            f"parts are {', '.join(PARTS)}, with layers.A-B. before what layers have if wanted",
        )
    first, last, part, scheme = match.groups()
    layers = (int(first), int(last or first)) if first else None
    if layers and (part not in _OF_LAYERS or layers[0] > layers[1]):
        raise OptionError(
            f"--quantize ...,{text}",
            "names layers that are none",
            "write layers.A-B.attention= or layers.A-B.ffn= with A not above B",
        )
    return Rule(text, part, layers, _scheme(scheme).matrix)
