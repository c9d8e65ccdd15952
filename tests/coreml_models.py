"""Tiny networks as Core ML packages, with weights in memory, and a runtime that calls them.

The runtime does what ANEMLL's do: which function for which position, its mask, its states.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.checkpoint.safetensors import open_folder
from converter.coreml import decoder_program
from converter.coreml.blob import BlobLayout, DType, Record, indices
from converter.coreml.decoder_program import Interface
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS, manifest, model_message
from converter.coreml.program import Function, Tensor
from converter.coreml.words import check_words
from converter.coreml_options import CoreMLOptions
from converter.coreml_pipeline import CoreMLConverter
from converter.decoder import DecoderSpec
from converter.network import Network, read_network
from converter.weights.palettes import Palette
from converter.weights.placed_rows import read_placed
from tests.coreml_interpreter import Package, States

Values = Mapping[str, np.ndarray]


def read_checkpoint(folder: Path, context: int) -> tuple[DecoderSpec, dict[str, np.ndarray]]:
    """A checkpoint's network, and its weights in float32."""
    network = read_network(open_folder(folder), str(folder))
    spec = network.spec(context)
    return spec, {path: _read(network, path, shape) for path, shape in spec.weight_shapes()}


def _read(network: Network, path: str, shape: tuple[int, ...]) -> np.ndarray:
    source = network.sources[path]
    if source.is_absent:
        return np.zeros(shape, np.float32)
    buffer = np.empty(np.prod(shape), np.float32)
    rows = (0, shape[0])
    read = read_placed(
        network.checkpoint, source.tensor, source, *rows, buffer=buffer, keep_bf16=False
    )
    return read.reshape(shape) + np.float32(source.add)


class Weights:
    """What gives the functions of one package their weights, and then writes the file of them.

    Args:
        values: of the network; a path may name some of a matrix's rows, `head[20:40]`.
        palette: for every matrix; None for float16.
    """

    def __init__(self, values: Values, palette: Palette | None = None) -> None:
        self._values = values
        self._palette = palette
        self._records: dict[tuple[str, tuple[int, ...]], tuple[Record, ...]] = {}
        self._data: list[bytes] = []
        self._layout = BlobLayout()

    def __call__(self, f: Function, path: str, shape: tuple[int, ...]) -> Tensor:
        key = (path, shape)
        if key not in self._records:
            self._records[key] = self._add(rows_of(self._values, path).reshape(shape), path)
        records = self._records[key]
        if len(records) == 1:
            return f.weight(path, *records)
        return f.palettized_weight(path, *records)

    def _add(self, values: np.ndarray, path: str) -> tuple[Record, ...]:
        if self._palette is None or values.ndim == 1 or path.startswith("rope."):
            return (self._place(DType.FLOAT16, values.shape, values.astype(np.float16)),)
        matrix = np.ascontiguousarray(values.reshape(len(values), -1))
        packed, tables = self._palette.pack(matrix)
        ones = (1,) * (values.ndim - 1)
        return (
            self._place(indices(self._palette.bits), values.shape, packed),
            self._place(DType.FLOAT16, (len(tables), *ones, tables.shape[1], 1), tables),
        )

    def _place(self, dtype: DType, shape: tuple[int, ...], data: np.ndarray) -> Record:
        self._data.append(data.tobytes())
        return self._layout.add(dtype, shape)

    def content(self) -> bytes:
        """The file, header and all."""
        content = bytearray(self._layout.nbytes)
        for at, head in self._layout.heads():
            content[at : at + len(head)] = head
        for record, data in zip(self._layout.records, self._data, strict=True):
            assert len(data) == record.nbytes
            content[record.data_offset : record.data_offset + len(data)] = data
        return bytes(content)


def rows_of(values: Values, path: str) -> np.ndarray:
    """A weight, or some of its rows: `head[20:40]`; a tied head's are those of the embedding."""
    part = re.fullmatch(r"(.*)\[(\d+):(\d+)\]", path)
    if part is None:
        return values[path]
    whole = "embedding" if part[1] == "head" and "head" not in values else part[1]
    return values[whole][int(part[2]) : int(part[3])]


def palettized(values: Values, palette: Palette) -> dict[str, np.ndarray]:
    """What is read of weights that are stored so."""

    def one(path: str, rows: np.ndarray) -> np.ndarray:
        if rows.ndim == 1:
            return rows
        packed, tables = palette.pack(np.ascontiguousarray(rows))
        bits = np.unpackbits(packed, bitorder="little")[: rows.size * palette.bits]
        numbers = bits.reshape(-1, palette.bits) @ (1 << np.arange(palette.bits))
        found = np.take_along_axis(tables, numbers.reshape(len(tables), -1), axis=1)
        return found.reshape(rows.shape).astype(np.float32)

    return {path: one(path, rows) for path, rows in values.items()}


def write_package(
    folder: Path,
    weights: Weights,
    functions: Sequence[Function],
    shapes: Mapping[str, Sequence[Sequence[int]]] = {},
    described: Mapping[str, Sequence[int]] = {},
) -> Path:
    """A `.mlpackage`."""
    message = model_message(functions, {}, shapes, described)
    (folder / WEIGHTS).parent.mkdir(parents=True)
    (folder / MODEL).write_bytes(message)
    (folder / MANIFEST).write_bytes(manifest(message))
    (folder / WEIGHTS).write_bytes(weights.content())
    return folder


@dataclass(frozen=True)
class Parts:
    """The packages of one network: in parts, or all in one."""

    interface: Interface
    chunks: Sequence[Path]
    embeddings: Path | None = None
    head: Path | None = None


def build(
    folder: Path,
    spec: DecoderSpec,
    values: Values,
    interface: Interface,
    *,
    num_chunks: int = 2,
    is_monolithic: bool = False,
    palette: Palette | None = None,
) -> Parts:
    """Write a network's packages into a folder."""
    check_words(spec, interface.context, interface.residual_scale)
    values = dict(values)
    tables = decoder_program.rope_tables(spec, interface.context).values()
    for i, (cos, sin) in enumerate(tables):
        values |= {f"rope.{i}.cos": cos, f"rope.{i}.sin": sin}

    calls = decoder_program.calls(interface)
    if is_monolithic:
        weights = Weights(values, palette)
        functions = [decoder_program.monolithic(spec, interface, call, weights) for call in calls]
        return Parts(interface, [write_package(folder / "all.mlpackage", weights, functions)])
    weights = Weights(values, palette)
    embeddings = write_package(
        folder / "embeddings.mlpackage",
        weights,
        [decoder_program.embeddings(spec, interface, weights)],
        {"input_ids": [(1, 1), (1, interface.batch)]},
        {"hidden_states": ()},
    )
    chunks = []
    for i, which in enumerate(decoder_program.chunks(len(spec.layers), num_chunks)):
        weights = Weights(values, palette)
        functions = [
            decoder_program.layers(spec, interface, call, weights, which) for call in calls
        ]
        chunks.append(write_package(folder / f"chunk{i}.mlpackage", weights, functions))
    weights = Weights(values, palette)
    functions = [decoder_program.head(spec, interface, weights)]
    head = write_package(folder / "head.mlpackage", weights, functions)
    return Parts(interface, chunks, embeddings, head)


def convert(checkpoint: Path, folder: Path, options: CoreMLOptions) -> Parts:
    """The same by the pipeline, from a checkpoint."""
    plan = CoreMLConverter(open_folder(checkpoint), "tiny", options).convert(folder)
    paths: dict[str, list[Path]] = {}
    for part in plan.parts:
        paths.setdefault(part.kind, []).append(folder / part.folder)
    if options.monolithic:
        return Parts(plan.interface, paths["monolithic"])
    return Parts(plan.interface, paths["layers"], *paths["embeddings"], *paths["head"])


def interface_of(
    spec: DecoderSpec,
    context: int = 64,
    batch: int = 8,
    head_parts: int = 4,
    **more: float | bool,
) -> Interface:
    """The interface of a tiny network."""
    states = decoder_program.states_of(spec, context)
    parts = decoder_program.head_parts(spec.vocab_size, head_parts)
    return Interface(context, batch, states, parts, **more)


class Runtime:
    """Loaded packages, which hold one conversation after the other."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        paths = (*parts.chunks, parts.embeddings, parts.head)
        self.packages = {path: Package(path) for path in paths if path is not None}

    def stored(self, spec: DecoderSpec) -> dict[str, np.ndarray]:
        """The network's weights as packages have them; of a tied head, too."""
        found: dict[str, np.ndarray] = {}
        for path, package in self.packages.items():
            is_layers = path in self.parts.chunks
            found |= package.weights("infer" if is_layers else "main")
        values = {path: found[_name(path)].reshape(shape) for path, shape in _shapes(spec)}
        sizes = self.parts.interface.head_parts
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        for path in ("head", *(("head.bias",) if spec.head_bias else ())):
            pieces = [
                found[_name(f"{path}[{start}:{start + size}]")]
                for start, size in zip(starts, sizes, strict=True)
            ]
            values[path] = np.concatenate(pieces).squeeze()
        return values

    def run(self, tokens: Sequence[int], prompt: int, rounds: bool = False) -> np.ndarray:
        """Batches as long as they are whole in the prompt, the rest one by one.

        Args:
            rounds: see `Package`.

        Returns:
            What the head says of each of the rest: `(n, vocabulary)` logits, or with an argmax
            head `(n,)` tokens.
        """
        for package in self.packages.values():
            package.rounds = rounds
        states = self.packages[self.parts.chunks[0]].new_states("infer")
        batch, found, at = self.parts.interface.batch, [], 0
        while at < len(tokens):
            count = batch if at + batch <= prompt else 1
            outputs = self._step(tokens[at : at + count], at, states)
            if count == 1:
                found.append(self._said(outputs))
            at += count
        return np.array(found)

    def _step(self, tokens: Sequence[int], at: int, states: States) -> dict[str, np.ndarray]:
        interface, count = self.parts.interface, len(tokens)
        ids = np.array([tokens], np.int32)
        seen = np.arange(interface.context) <= at + np.arange(count)[:, None]
        shared = {
            "position_ids": np.arange(at, at + count, dtype=np.int32),
            "causal_mask": np.where(seen, 0, -np.inf).astype(np.float16)[None, None],
            "current_pos": np.array([at], np.int32),
        }
        name = "infer" if count == 1 else "prefill"
        windows = [state.window for state in interface.states if state.window is not None]
        if windows and at >= windows[0]:
            name += "_rotate"
        if self.parts.embeddings is None:
            package = self.packages[self.parts.chunks[0]]
            return package.run(name, {"input_ids": ids, **shared}, states)
        outputs = self.packages[self.parts.embeddings].run("main", {"input_ids": ids})
        x = outputs["hidden_states"]
        for path in self.parts.chunks:
            outputs = self.packages[path].run(name, {"hidden_states": x, **shared}, states)
            x = outputs["output_hidden_states"]
        if count > 1:
            return outputs
        assert self.parts.head is not None
        return self.packages[self.parts.head].run("main", {"hidden_states": x})

    def _said(self, outputs: Mapping[str, np.ndarray]) -> np.ndarray | int:
        sizes = self.parts.interface.head_parts
        if not self.parts.interface.argmax:
            return np.concatenate([outputs[f"logits{i + 1}"][0, 0] for i in range(len(sizes))])
        best = int(outputs["argmax_val"].argmax())
        return sum(sizes[:best]) + int(outputs["argmax_idx"][best])


def _name(path: str) -> str:
    """Of a weight in a program."""
    return re.sub(r"\W", "_", path)


def _shapes(spec: DecoderSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Of every weight but the head."""
    return [(path, shape) for path, shape in spec.weight_shapes() if "head" not in path]
