"""Runs the graph of a converted bundle as the engine does, in the ai-edge-litert interpreter."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from converter.litertlm.inspection import read_bundle
from runner.native_log import NativeLog

_OPERATORS = 10  # where a SubGraph's table says where its operators are


class GraphRunner:
    """One conversation with the model inside a `.litertlm` file.

    The caches live outside the graph, masks are additive and made only where the graph takes them,
    and prefills are padded with zeros, as in the engine.

    Args:
        signatures: those that will be called; None for any. XNNPACK packs all weights anew for each
            signature that there is: of a model in fp32 gigabytes that nothing reads.
    """

    def __init__(self, bundle: Path, signatures: Collection[str] | None = None) -> None:
        info = read_bundle(bundle)
        section = info.section("TFLiteModel")
        assert section is not None
        with bundle.open("rb") as file:
            file.seek(section.offset)
            model = bytearray(section.nbytes)
            file.readinto(model)
        if signatures is not None:
            _empty_others(model, signatures)
        self._interpreter = Interpreter(model_content=bytes(model))
        self._runners: dict[str, Any] = {}  # made when they are used: each takes a second
        decode = next(s for s in info.model.signatures if s.name == "decode")
        self._caches = {
            tensor.name: np.zeros(tensor.shape, tensor.dtype)
            for tensor in decode.inputs
            if tensor.name.startswith("kv_cache_")
        }
        self._masked = next((t.shape[3] for t in decode.inputs if t.name == "mask"), None)
        self.prefill_lengths = sorted(
            int(signature.name.split("_")[1])
            for signature in info.model.signatures
            if signature.name.startswith("prefill_")
        )

    def prefill(self, length: int, tokens: list[int], start: int = 0) -> None:
        """Put `tokens`, `length` of them or fewer, into the caches from position `start` on."""
        self._call(f"prefill_{length}", length, tokens, start)

    def decode(self, token: int, position: int) -> np.ndarray:
        """The logits after `token`, shape `(vocabulary,)`."""
        return self._call("decode", 1, [token], position)["logits"][0, 0]

    def _call(
        self, signature: str, length: int, tokens: list[int], start: int
    ) -> dict[str, np.ndarray]:
        padding = length - len(tokens)
        positions = [*range(start, start + len(tokens)), *[0] * padding]
        masks = {}
        if self._masked:
            mask = np.full(
                (1, 1, length, self._masked), -0.7 * np.finfo(np.float32).max, np.float32
            )
            for row, position in enumerate(positions[: len(tokens)]):
                mask[0, 0, row, : position + 1] = 0
            masks["mask"] = mask
        with NativeLog():  # the first call says that there is a delegate
            if signature not in self._runners:
                self._runners[signature] = self._interpreter.get_signature_runner(signature)
            result: dict[str, np.ndarray] = self._runners[signature](
                tokens=np.array([[*tokens, *[0] * padding]], np.int32),
                input_pos=np.array(positions, np.int32),
                **masks,
                **self._caches,
            )
        for name in self._caches:
            self._caches[name] = result[name]
        return result


def _empty_others(model: bytearray, signatures: Collection[str]) -> None:
    """Take operators out of all graphs that these signatures do not reach, in place.

    The first one stays: XNNPACK's delegate takes no model with a graph that has none.
    """
    root = schema.Model.GetRootAs(model, 0)
    known = [root.SignatureDefs(i) for i in range(root.SignatureDefsLength())]
    ahead = [s.SubgraphIndex() for s in known if s.SignatureKey().decode() in signatures]
    reached: set[int] = set()
    while ahead:
        index = ahead.pop()
        if index not in reached:
            reached.add(index)
            ahead += _called(root.Subgraphs(index))
    for index in set(range(root.SubgraphsLength())) - reached:
        graph = root.Subgraphs(index)
        if graph.OperatorsLength() > 1:
            start = graph._tab.Vector(graph._tab.Offset(_OPERATORS))
            model[start - 4 : start] = (1).to_bytes(4, "little")  # the vector's length


def _called(graph: Any) -> Iterator[int]:
    """The graphs that branches, loops, composites and the like of one call."""
    for operator in map(graph.Operators, range(graph.OperatorsLength())):
        for kind, union, options in (
            (operator.BuiltinOptionsType(), schema.BuiltinOptions, operator.BuiltinOptions()),
            (operator.BuiltinOptions2Type(), schema.BuiltinOptions2, operator.BuiltinOptions2()),
        ):
            if options is None:
                continue
            [name] = (n for n, number in vars(union).items() if n[0] != "_" and number == kind)
            said = getattr(schema, name)()
            said.Init(options.Bytes, options.Pos)
            fields = [field for field in dir(said) if field.endswith(("SubgraphIndex", "Subgraph"))]
            yield from (getattr(said, field)() for field in fields)
