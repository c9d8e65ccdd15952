"""What a network needs when it runs, read off its TFLite model without running it.

Held against the engine's own memory in docs/runtime.md ("Memory").
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# Bits per element of the types that occur; what is not here counts as 32.
BITS = {
    "float32": 32, "float16": 16, "int64": 64, "int8": 8, "uint8": 8, "bool": 8, "int4": 4,
    "int2": 2,
}  # fmt: skip
# Of the engine with its libraries, and of a tokenizer for each token that it knows: measured with
# SmolLM2, Qwen3 and Gemma 3 in 0.18.1 (docs/runtime.md, "Memory").
_ENGINE_BYTES = 150_000_000
_BYTES_PER_PIECE = 800  # of a SentencePiece section
_BYTES_PER_WORD = 2000  # of a tokenizer.json, whose merges have a table of their own


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a network holds in the engine, beside the engine and the tokenizer themselves.

    Attributes:
        weights_bytes: the packed weights, at most. Those that are widened (schemes `int8` and
            `fp16`) are packed as float32; every signature holds a float32 copy of those that were
            int8, and of a table that it looks tokens up in.
        kv_cache_bytes: the KV cache at its full length; it is held from the beginning.
        scratch_bytes: what the longest signature computes with at the same moment, at most; and the
            results of all experts, each of which has memory of its own for them.
        total_bytes: their sum.
    """

    weights_bytes: int
    kv_cache_bytes: int
    scratch_bytes: int
    total_bytes: int


def run_memory(root: Any, weights_bytes: int) -> RunMemory:
    """Of a TFLite model.

    Args:
        root: the schema's `Model`; its weights need not be there.
        weights_bytes: the bytes of its weights in the file.

    Raises:
        ValueError, LookupError: its parts contradict each other.
    """
    graphs = _Graphs(root)
    packed: dict[int, int] = {}  # buffer -> bytes as float32
    copies = cache = 0
    for index in range(root.SignatureDefsLength()):
        signature = root.SignatureDefs(index)
        number = signature.SubgraphIndex()
        for part in (number, *graphs.experts(number)):
            for buffer, nbytes, is_copied in graphs.widened(part):
                packed[buffer] = nbytes
                copies += nbytes * is_copied
        cache = max(cache, graphs.states(signature))
    scratch = max((graphs.peak(number) for number in graphs.extremes()), default=0)
    scratch += max((graphs.results_of_experts(number) for number in graphs.extremes()), default=0)
    weights = weights_bytes + sum(packed.values()) + copies
    return RunMemory(weights, cache, scratch, weights + cache + scratch)


def beside_network(vocab_size: int, is_sentencepiece: bool) -> int:
    """About the bytes that the engine and a tokenizer of so many tokens hold beside a network."""
    return _ENGINE_BYTES + vocab_size * (_BYTES_PER_PIECE if is_sentencepiece else _BYTES_PER_WORD)


class _Graphs:
    """The subgraphs of one model, by their numbers."""

    def __init__(self, root: Any) -> None:
        from ai_edge_litert import schema_py_generated as schema

        self._root = root
        self._schema = schema
        self._dtypes = {value: name.lower() for name, value in vars(schema.TensorType).items()}
        codes = [root.OperatorCodes(i) for i in range(root.OperatorCodesLength())]
        self._operators = [max(code.BuiltinCode(), code.DeprecatedBuiltinCode()) for code in codes]
        names = schema.BuiltinOperator
        self._dequantize, self._if = names.DEQUANTIZE, names.IF
        self._product = names.FULLY_CONNECTED
        self._lookups = (names.EMBEDDING_LOOKUP, names.GATHER)
        self._peaks: dict[int, int | None] = {}

    def extremes(self) -> set[int]:
        """The subgraphs that take most tokens and fewest: the longest prefill, and decode, which
        has logits. The others need less than one of the two.
        """
        root = self._root
        tokens: dict[int, int] = {}
        for index in range(root.SignatureDefsLength()):
            signature = root.SignatureDefs(index)
            subgraph = root.Subgraphs(signature.SubgraphIndex())
            for i in range(signature.InputsLength()):
                entry = signature.Inputs(i)
                if entry.Name() == b"tokens":
                    tensor = subgraph.Tensors(entry.TensorIndex())
                    tokens[signature.SubgraphIndex()] = self._count(tensor)
        by_length = sorted(tokens, key=tokens.__getitem__)
        return {*by_length[:1], *by_length[-1:]}

    def states(self, signature: Any) -> int:
        """Bytes of what goes in and comes out again under the same name."""
        subgraph = self._root.Subgraphs(signature.SubgraphIndex())
        out = {signature.Outputs(i).Name() for i in range(signature.OutputsLength())}
        entries = (signature.Inputs(i) for i in range(signature.InputsLength()))
        return sum(
            self._nbytes(subgraph.Tensors(entry.TensorIndex()))
            for entry in entries
            if entry.Name() in out
        )

    def widened(self, number: int) -> Iterator[tuple[int, int, bool]]:
        """Weights that this subgraph takes as float32: buffer, bytes as float32, and whether it
        keeps them so beside the packed ones.
        """
        subgraph = self._root.Subgraphs(number)
        operators = [subgraph.Operators(i) for i in range(subgraph.OperatorsLength())]
        tables = {
            operator.Inputs(i)
            for operator in operators
            if self._operators[operator.OpcodeIndex()] in self._lookups
            for i in range(operator.InputsLength())
        }
        for operator in operators:
            if self._operators[operator.OpcodeIndex()] == self._dequantize:
                tensor = subgraph.Tensors(operator.Inputs(0))
                if tensor.Buffer():
                    is_int8 = self._dtypes[tensor.Type()] == "int8"
                    is_copied = is_int8 or operator.Outputs(0) in tables
                    yield tensor.Buffer(), 4 * self._count(tensor), is_copied

    def peak(self, number: int) -> int:
        """Most bytes of activations that are alive at once: each from the op that makes it to the
        last that reads it. Inputs and outputs are not counted, branches are.
        """
        if number in self._peaks:
            known = self._peaks[number]
            if known is None:
                raise ValueError("a subgraph is its own branch")
            return known
        self._peaks[number] = None
        subgraph = self._root.Subgraphs(number)
        lasting = {*_numbers(subgraph.InputsAsNumpy()), *_numbers(subgraph.OutputsAsNumpy())}
        operators = [subgraph.Operators(i) for i in range(subgraph.OperatorsLength())]
        reads = [_numbers(operator.InputsAsNumpy()) for operator in operators]
        makes = [_numbers(operator.OutputsAsNumpy()) for operator in operators]
        last = {tensor: i for i, some in enumerate(reads) for tensor in some}
        alive: dict[int, int] = {}
        peak = 0
        for i, operator in enumerate(operators):
            for tensor in makes[i]:
                if tensor not in lasting and not self._is_weight(operator, subgraph):
                    alive[tensor] = self._nbytes(subgraph.Tensors(tensor))
            peak = max(peak, sum(alive.values()) + self._branches(operator))
            for tensor in (*reads[i], *makes[i]):
                if last.get(tensor, i) == i:
                    alive.pop(tensor, None)
        self._peaks[number] = peak
        return peak

    def experts(self, number: int) -> set[int]:
        """Branches of a subgraph that multiply by weights of their own, each body once."""
        subgraph = self._root.Subgraphs(number)
        bodies = {
            self._options(operator).ThenSubgraphIndex()
            for operator in map(subgraph.Operators, range(subgraph.OperatorsLength()))
            if self._operators[operator.OpcodeIndex()] == self._if
        }
        return {body for body in bodies if self._has_product(self._root.Subgraphs(body))}

    def results_of_experts(self, number: int) -> int:
        """Bytes of what they hand on, of which each has its own."""
        results = (
            body.Tensors(i)
            for body in map(self._root.Subgraphs, self.experts(number))
            for i in _numbers(body.OutputsAsNumpy())
        )
        return sum(map(self._nbytes, results))

    def _has_product(self, subgraph: Any) -> bool:
        operators = map(subgraph.Operators, range(subgraph.OperatorsLength()))
        return any(self._operators[o.OpcodeIndex()] == self._product for o in operators)

    def _is_weight(self, operator: Any, subgraph: Any) -> bool:
        """Whether it widens a weight, which is counted with the weights."""
        is_dequantize = self._operators[operator.OpcodeIndex()] == self._dequantize
        return is_dequantize and bool(subgraph.Tensors(operator.Inputs(0)).Buffer())

    def _branches(self, operator: Any) -> int:
        if self._operators[operator.OpcodeIndex()] != self._if:
            return 0
        options = self._options(operator)
        branches = (options.ThenSubgraphIndex(), options.ElseSubgraphIndex())
        return max(self.peak(number) for number in branches)

    def _options(self, operator: Any) -> Any:
        """Those of an IF."""
        options, table = self._schema.IfOptions(), operator.BuiltinOptions()
        options.Init(table.Bytes, table.Pos)
        return options

    def _count(self, tensor: Any) -> int:
        return math.prod(_numbers(tensor.ShapeAsNumpy()))

    def _nbytes(self, tensor: Any) -> int:
        return self._count(tensor) * BITS.get(self._dtypes[tensor.Type()], 32) // 8


def _numbers(array: Any) -> list[int]:
    """A vector of the schema, 0 where it is absent; without -1: absent inputs, open dimensions."""
    return [] if isinstance(array, int) else [n for n in array.tolist() if n >= 0]
