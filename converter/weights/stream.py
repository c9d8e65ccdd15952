"""Every weight's way: read by rows, packed, written where the plan says.

    checkpoint --rows--> _read --> RowFormat.pack --> AtomicFile, at the planned offset
                                       `---> the product that calibration waits for

Threads take blocks of rows. Those that calibration waits for come first, in the order of the
network; between them there is always something else to do, as long as there is anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from converter.checkpoint.base import Checkpoint, ThreadBuffer
from converter.decoder import PER_LAYER_TABLE, DecoderSpec
from converter.kernels import SMALLEST_HALF, multiply_int8
from converter.weights.calibration import Calibration
from converter.weights.inputs import Inputs, to_integers
from converter.weights.planned_weight import PlannedWeight, as_matrix
from converter.weights.quantization import INT8, blocks_met, split_int6
from converter.weights.row_format import Clip, RowFormat, ValueRangeError
from converter.weights.text_calibration import PairedCalibration, TextCalibration
from converter.weights.weight_reader import TOGETHER, WeightReader
from converter.workers import Task, Workers

# `multiply_int8` takes its left side's rows so many at a time.
_ROWS_OF_KERNEL = 4

Progress = Callable[[int], None]
# Told each weight's path, and what is known of its inputs when it is stored.
Watch = Callable[[str, Inputs], None]


class File(Protocol):
    """Where bytes go, in any order, from any thread."""

    def write_at(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Write all of `data` so many bytes from the start."""

    def read_at(self, offset: int, nbytes: int) -> bytes:
        """What was written there."""


def needs_calibration(weights: Iterable[PlannedWeight], clip: Clip) -> bool:
    """Whether anything is chosen by what reaches the weights."""
    return clip is Clip.MSE and any(
        weight.format.takes_importance
        or (weight.format.rounds_inputs and weight.path not in ("embedding", PER_LAYER_TABLE))
        for weight in weights
    )


class WeightStream(WeightReader):
    """Streams the weights of a plan into a file.

    Attributes:
        met: blocks carried over exactly, and all blocks, of each weight that carries blocks.

    Raises (from `run`):
        OutputError, SourceError: see `converter.errors`.
        UnsupportedError: a value that a format cannot hold.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        name: str,
        weights: Sequence[PlannedWeight],
        file: File,
        clip: Clip,
        progress: Progress,
        watch: Watch | None = None,
        text: np.ndarray | None = None,
    ) -> None:
        self.met: dict[str, tuple[int, int]] = {}
        super().__init__(checkpoint, name, weights, clip)
        self._file, self._progress = file, progress
        self._watch, self._text = watch, text
        self._sent: set[str] = set()
        self._counting = threading.Lock()
        self._packed, self._integers = ThreadBuffer(np.int8), ThreadBuffer(np.int8)

    def run(self, spec: DecoderSpec, threads: int, beside: Callable[[], object]) -> None:
        """Write all weights; `beside` is called here while threads are busy."""
        with Workers(threads) as self._workers:
            weights = [weight for pieces in self._pieces.values() for weight in pieces]
            if needs_calibration(weights, self._clip):
                # The largest matrices wait for nothing, but for what goes by importance.
                if not spec.tied_head or not self._whole("embedding").format.takes_importance:
                    self.store(Inputs(), "embedding")
                if spec.per_layer_input is not None:
                    self.store(Inputs(), PER_LAYER_TABLE)
                self._calibrate(spec, weights)
            for path in self._pieces:
                self.store(Inputs(), path)
            beside()
            self._workers.finish()

    # For calibration ------------------------------------------------------------------------------

    def _calibrate(self, spec: DecoderSpec, weights: Sequence[PlannedWeight]) -> None:
        if self._text is None:
            Calibration(spec, self).run()
        elif any(weight.compensated_block is not None for weight in weights):
            PairedCalibration(spec, self, self._text).run()
        else:
            TextCalibration(spec, self, self._text).run()

    def store(self, inputs: Inputs, *paths: str) -> None:
        for path in paths:
            if path not in self._sent:
                self._workers.do_later(self._tasks(path, inputs))

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        x, exact = np.split(x, 2) if inputs.are_paired else (x, x[:0])
        count, padding = len(x), -len(x) % _ROWS_OF_KERNEL
        if padding:
            x = np.pad(x, ((0, padding), (0, 0)))
        integers, scales = to_integers(x, inputs.factors)
        products, tasks = [], []
        for path in paths:
            rows = sum(piece.shape[0] for piece in self._pieces[path])
            product = np.empty((len(x) + len(exact), rows), np.float32)
            products.append(product)
            tasks += self._tasks(path, inputs, Wanted(integers, scales, exact, product))
        self._workers.do(tasks)
        padded = slice(count, count + padding)
        return [np.delete(p, padded, axis=0) if padding else p for p in products]

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        weight = self._whole(path)
        if len(weight.shape) == 1:
            self.store(Inputs(factors=None if factors is None else 1 / factors), path)
        elif factors is not None:
            self._divide_rows(weight, factors)

    def _divide_rows(self, weight: PlannedWeight, factors: np.ndarray) -> None:
        """Divide rows that are in the file: their scales."""
        if (scales := weight.row_scales) is not None:
            weight.set_scales(slice(None), scales / factors)
            return
        assert weight.scales_offset is not None
        content = self._file.read_at(weight.scales_offset, weight.scales_nbytes)
        stored = np.frombuffer(content, np.float16).reshape(len(factors), -1)
        with np.errstate(over="ignore"):
            halves = (stored.astype(np.float32) / factors[:, None]).astype(np.float16)
        if np.isinf(halves).any():
            raise self._out_of_range(weight, "holds values whose scales are beyond float16")
        self._file.write_at(weight.scales_offset, np.maximum(halves, SMALLEST_HALF).data)

    # Blocks ---------------------------------------------------------------------------------------

    def _tasks(self, path: str, inputs: Inputs, wanted: Wanted | None = None) -> list[Task]:
        assert path not in self._sent, f"{path} would be stored twice"
        self._sent.add(path)
        if self._watch is not None:
            self._watch(path, inputs)
        tasks: list[Task] = []
        for weight in self._pieces[path]:
            if weight.format.sees_all_rows:
                tasks.append(partial(self._stream_whole, weight, inputs, wanted))
                continue
            if self._is_compensated(weight, inputs):
                assert inputs.moment is not None
                assert weight.compensated_block is not None
                inputs.moment.compensation(weight.compensated_block)  # here, not by threads
            for block in weight.row_blocks():
                tasks.append(
                    partial(self._stream_block, weight, weight.format, inputs, wanted, *block)
                )
        return tasks

    def _stream_whole(self, weight: PlannedWeight, inputs: Inputs, wanted: Wanted | None) -> None:
        """Stream a weight whose rows share something: they are read twice."""
        blocks = list(weight.row_blocks())
        rows = (self._read(weight, *block, weight.format.takes_bf16) for block in blocks)
        try:
            form, shared = weight.format.settled(rows, inputs.importance)
        except ValueRangeError as error:
            raise self._out_of_range(weight, str(error)) from error
        assert weight.scales_offset is not None
        self._file.write_at(weight.scales_offset, shared.data)
        self._count(weight, shared.nbytes)
        for block in blocks:
            self._stream_block(weight, form, inputs, wanted, *block)

    def _stream_block(
        self,
        weight: PlannedWeight,
        form: RowFormat,
        inputs: Inputs,
        wanted: Wanted | None,
        start: int,
        stop: int,
    ) -> None:
        is_exact_wanted = wanted is not None and len(wanted.exact) > 0
        rows = self._read(weight, start, stop, form.takes_bf16 and not is_exact_wanted)
        as_stored = inputs.moment is not None or form.is_int8
        if wanted is not None and is_exact_wanted:
            wanted.fill_exact(weight.first_row + start, rows)
        try:
            if wanted is not None and not as_stored:
                # `pack` may use the rows as scratch space, but not the one to int8.
                wanted.fill(
                    weight.first_row + start, *self._pack(INT8, rows, inputs, self._integers)
                )
            packed: np.ndarray
            scales: np.ndarray | None
            if self._is_compensated(weight, inputs):
                packed, scales = self._pack_compensated(form, rows, inputs)
            else:
                stored_block = weight.stored_block if weight.carries_blocks else None
                packed, scales = self._pack(form, rows, inputs, self._packed, stored_block)
        except ValueRangeError as error:
            why = f"{error} (rows {start} to {stop - 1})"
            raise self._out_of_range(weight, why, form.wider) from error
        if wanted is not None and form.is_int8:
            wanted.fill(weight.first_row + start, packed, scales)
        elif wanted is not None and as_stored:
            wanted.fill_floats(weight.first_row + start, form.widened(packed, scales))
        written, met, blocks = packed.nbytes, 0, 0
        if weight.rest is not None:
            packed, rest = split_int6(packed)
            self._write_rows(weight, weight.rest.offset, weight.rest.nbytes, rest, start)
        self._write_rows(weight, weight.offset, weight.data_nbytes, packed, start)
        if scales is not None and weight.row_scales is not None:
            weight.set_scales(slice(start, stop), scales)
        elif scales is not None:
            assert weight.scales_offset is not None
            self._write_rows(weight, weight.scales_offset, weight.scales_nbytes, scales, start)
            written += scales.nbytes
            if weight.carries_blocks:
                met, blocks = int(blocks_met(rows, packed, scales).sum()), scales.size
        self._count(weight, written, met, blocks)

    def _write_rows(
        self, weight: PlannedWeight, offset: int, nbytes: int, packed: np.ndarray, start: int
    ) -> None:
        """Write what rows from `start` on became to their place among all, which take `nbytes`.

        They begin with a whole byte; the last rows alone may end within one.
        """
        rows, _ = as_matrix(weight.shape)
        self._file.write_at(offset + start * nbytes // rows, packed.data)

    def _count(self, weight: PlannedWeight, written: int, met: int = 0, blocks: int = 0) -> None:
        with self._counting:
            if blocks:
                before = self.met.get(weight.path, (0, 0))
                self.met[weight.path] = before[0] + met, before[1] + blocks
            try:
                self._progress(written)
            except BaseException as error:
                self._workers.fail(error)  # before another thread may count
                raise

    def _pack_compensated(
        self, form: RowFormat, rows: np.ndarray, inputs: Inputs
    ) -> tuple[np.ndarray, np.ndarray]:
        assert inputs.moment is not None
        assert form.compensated_block is not None
        compensation = inputs.moment.compensation(form.compensated_block)
        room = self._packed.of_size(rows.size)
        return form.pack_compensated(rows, compensation, room, inputs.factors)

    @staticmethod
    def _is_compensated(weight: PlannedWeight, inputs: Inputs) -> bool:
        """Whether columns make up for each other's errors."""
        return inputs.moment is not None and weight.compensated_block is not None


@dataclass(frozen=True)
class Wanted:
    """A product with a weight, filled in by the threads that store the weight.

    Attributes:
        integers, scales: its left side, `(n, columns)` and `(n,)`.
        exact: what meets the weight as it was, float32 `(m, columns)`; none or as many.
        product: `(n + m, rows)`.
    """

    integers: np.ndarray
    scales: np.ndarray
    exact: np.ndarray
    product: np.ndarray

    def fill(self, start: int, packed: np.ndarray, scales: np.ndarray | None) -> None:
        """The columns of the product from `start` on, of packed int8 rows."""
        assert scales is not None
        product = self.product[: len(self.integers), start : start + len(packed)]
        multiply_int8(self.integers, self.scales, packed, scales, product)

    def fill_floats(self, start: int, rows: np.ndarray) -> None:
        """The same of rows in float32."""
        found = self.product[: len(self.integers), start : start + len(rows)]
        for first in range(0, len(self.integers), TOGETHER):  # a copy of all would be large
            some = slice(first, first + TOGETHER)
            product = self.integers[some].astype(np.float32) @ rows.T
            found[some] = product * self.scales[some, None]

    def fill_exact(self, start: int, rows: np.ndarray) -> None:
        """The columns of the product with what is exact, of rows as they were."""
        found = self.product[len(self.integers) :, start : start + len(rows)]
        np.matmul(self.exact, rows.T, out=found)
