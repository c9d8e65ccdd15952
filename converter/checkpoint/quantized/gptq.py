"""GPTQ and AWQ: matrices stored as `[in, out]`, several codes in a word of 32 bits.

GPTQ packs codes along the input, AWQ along the output. Sources: AutoGPTQ's and GPTQModel's
`QuantLinear`, AutoAWQ's `WQLinear_GEMM`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from converter.checkpoint.base import TensorInfo
from converter.checkpoint.quantized.affine import Affine, Columns, PackedRows
from converter.checkpoint.quantized.base import (
    Layout,
    LayoutError,
    Matrix,
    Settings,
    StoredCheckpoint,
    as_rows,
    part_of,
    wrong_shape,
)
from converter.checkpoint.quantized.numbers import FLOATS, Codebook, unsigned

# Of the eight outputs in a word, which one each code is of.
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_WIDTHS = (2, 3, 4, 8)
# GPTQ stores a zero less 1; added to whole words, as GPTQModel does, so that 15 is 0 of the next.
_ADDED = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


class _WordsOfColumns(Layout):
    """What the two have in common: names, groups along the input, float scales."""

    def matrices(self, stored: StoredCheckpoint) -> Iterator[Matrix]:
        for name in stored.tensors:
            if name.endswith(".qweight"):
                module = name.removesuffix(".qweight")
                yield self._matrix(stored, module, stored.tensors[name])

    def is_beside(self, stored: StoredCheckpoint, name: str) -> bool:
        """Biases of zeros, which AutoGPTQ gave to every module; transformers leaves them out."""
        module, _, own = name.rpartition(".")
        if own != "bias" or f"{module}.qweight" not in stored.tensors:
            return False
        return not stored.read_stored(name).any()

    @abstractmethod
    def _matrix(self, stored: StoredCheckpoint, module: str, codes: TensorInfo) -> Matrix:
        """The matrix of a module whose `qweight` is `codes`."""

    def _group(
        self, stored: StoredCheckpoint, weight: str, scales: TensorInfo, columns: int
    ) -> int:
        """Columns that share a scale."""
        group = self.settings.get("group_size", 128)
        groups = scales.shape[0] if len(scales.shape) == 2 else 0
        if group == -1:
            group = columns
        if not isinstance(group, int) or group < 1 or -(-columns // group) != groups:
            raise wrong_shape(
                stored, weight, scales, f"one row for each group_size={group!r} of {columns}"
            )
        return group


class GPTQ(_WordsOfColumns):
    """`qweight` int32 `[in * bits / 32, out]`, `qzeros`, `scales` `[groups, out]`, `g_idx` `[in]`.

    `scales[g] * (q - z)`, where g is that of the column in `g_idx`; with `desc_act` groups are not
    in order. The width of codes is told by the shapes, as some modules may have another.
    """

    title = "GPTQ"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        form = settings.get("checkpoint_format") or settings.get("format") or "gptq"
        if settings.get("is_marlin_format"):
            form = "marlin"
        if str(form).lower() not in ("gptq", "gptq_v2"):
            raise LayoutError(f"checkpoint_format={form!r:.40}")
        self._is_less_1 = str(form).lower() == "gptq"

    def _matrix(self, stored: StoredCheckpoint, module: str, codes: TensorInfo) -> Matrix:
        weight = f"{module}.weight"
        zeros, scales = (part_of(stored, weight, f"{module}.{p}") for p in ("qzeros", "scales"))
        index = stored.tensors.get(f"{module}.g_idx")
        if len(codes.shape) != 2 or codes.dtype != "I32":
            raise wrong_shape(stored, weight, codes, "I32 [in * bits / 32, out]")
        words, rows = codes.shape
        if index is not None:
            if index.dtype != "I32" or len(index.shape) != 1 or not index.shape[0]:
                raise wrong_shape(stored, weight, index, "I32 [in]")
            columns = index.shape[0]
            group = -(-columns // max(1, as_rows(scales.shape)[0]))
        else:
            columns, group = self._columns(stored, weight, codes, zeros)
        bits = words * 32 // columns
        if bits not in _WIDTHS or words * 32 != columns * bits:
            raise wrong_shape(stored, weight, codes, f"[{columns} * bits / 32, {rows}]")
        count = scales.shape[0] if scales.shape else 0
        if scales.shape != (count, rows) or count == 0 or scales.dtype not in FLOATS:
            raise wrong_shape(stored, weight, scales, f"floats [groups, {rows}]")
        if zeros.shape != (count, -(-rows * bits // 32)) or zeros.dtype != "I32":
            raise wrong_shape(stored, weight, zeros, f"I32 [{count}, {-(-rows * bits // 32)}]")
        # Of an index in order, which is what all but desc_act have, nothing has to be looked up.
        in_order = not self.settings.get("desc_act", False)
        parts = [part for part in (codes, zeros, scales, index) if part is not None]
        return Affine(
            TensorInfo(
                weight,
                (rows, columns),
                f"{self.title} {bits}-bit",
                sum(part.nbytes for part in parts),
                group if bits == 4 and in_order and self.settings.get("sym") is True else None,
            ),
            codes=Columns(codes.name, columns, unsigned(bits)),
            scale=Columns(scales.name, count),
            group=group,
            zero=PackedRows(
                zeros.name,
                self._zeros(bits),
                add=_ADDED.get(bits, 0) if self._is_less_1 else 0,
            ),
            index=None if index is None else index.name,
        )

    def _columns(
        self,
        stored: StoredCheckpoint,
        weight: str,
        codes: TensorInfo,
        zeros: TensorInfo,
    ) -> tuple[int, int]:
        """Columns, and those that share a scale, where no index says how many there are.

        The width of a row of zeros tells the bits, which with the words tell the columns; modules
        may differ from the config (`dynamic`) in the size of a group, too.
        """
        rows, (groups, width) = codes.shape[1], as_rows(zeros.shape)
        said = self.settings.get("bits")
        for bits in sorted(_WIDTHS, key=lambda bits: bits != said):
            columns, rest = divmod(codes.shape[0] * 32, bits)
            if rest or width != -(-rows * bits // 32) or not groups:
                continue
            group = self.settings.get("group_size", 128)
            if isinstance(group, int) and group > 0 and -(-columns // group) == groups:
                return columns, group
            if columns % groups == 0:
                return columns, columns // groups
        expected = f"I32 [groups, {rows} * bits / 32] beside {list(codes.shape)} words"
        raise wrong_shape(stored, weight, zeros, expected)

    def _zeros(self, bits: int) -> Codebook:
        book = unsigned(bits)
        if bits == 3 and self._is_less_1:  # codes lie across words: each is taken by itself
            return Codebook(bits, (book.values + 1) % 8)
        return book


class AWQ(_WordsOfColumns):
    """`qweight` int32 `[in, out / 8]`, `qzeros` `[groups, out / 8]`, `scales` `[groups, out]`.

    `(q - z) * scale` in groups of columns that are always in order.
    """

    title = "AWQ"

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        form = settings.get("version") or settings.get("format") or "gemm"
        if not isinstance(form, str) or form.lower() != "gemm":
            raise LayoutError(f"version={form!r:.40}")
        bits = settings.get("bits", settings.get("w_bit", 4))
        if bits != 4:
            raise LayoutError(f"bits={bits!r:.40}")

    def _matrix(self, stored: StoredCheckpoint, module: str, codes: TensorInfo) -> Matrix:
        weight = f"{module}.weight"
        zeros, scales = (part_of(stored, weight, f"{module}.{p}") for p in ("qzeros", "scales"))
        if len(codes.shape) != 2 or codes.dtype != "I32":
            raise wrong_shape(stored, weight, codes, "I32 [in, out / 8]")
        columns, rows = codes.shape[0], codes.shape[1] * 8
        group = self._group(stored, weight, scales, columns)
        count = scales.shape[0]
        if scales.shape != (count, rows) or scales.dtype not in FLOATS:
            raise wrong_shape(stored, weight, scales, f"floats [{count}, {rows}]")
        if zeros.shape != (count, codes.shape[1]) or zeros.dtype != "I32":
            raise wrong_shape(stored, weight, zeros, f"I32 [{count}, {codes.shape[1]}]")
        return Affine(
            TensorInfo(
                weight,
                (rows, columns),
                f"{self.title} 4-bit",
                codes.nbytes + zeros.nbytes + scales.nbytes,
                group if self.settings.get("zero_point") is False else None,
            ),
            codes=PackedRows(codes.name, unsigned(4), _AWQ_ORDER),
            scale=Columns(scales.name, count),
            group=group,
            zero=PackedRows(zeros.name, unsigned(4), _AWQ_ORDER),
        )


def auto_round(settings: Settings) -> Layout:
    """AutoRound's checkpoints, which are in one of these layouts.

    Raises:
        LayoutError: they are not.
    """
    form = settings.get("packing_format")
    match form:
        case "auto_round:auto_awq":
            is_symmetric = settings.get("sym") is True
            return AWQ({**settings, "version": "gemm", "zero_point": not is_symmetric})
        case "auto_round:auto_gptq":
            return GPTQ({**settings, "checkpoint_format": "gptq"})
        case "auto_round" | "auto_round:gptqmodel":  # which store zeros as they are
            return GPTQ({**settings, "checkpoint_format": "gptq_v2"})
    raise LayoutError(f"packing_format={form!r:.40}")
