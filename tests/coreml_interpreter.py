"""Runs an ML Program on coremltools' own reference semantics: `value_inference` of each operation.

coremltools uses that to fold constants; here every value is taken for one. Operations for which it
has none (a convolution, silu, states) are added, as its documentation defines them. Types are
checked by the loader: it infers every operation's result anew and compares it with what is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

States = dict[str, np.ndarray]


class Package:
    """A `.mlpackage`, loaded.

    Everything is computed in float32.

    Attributes:
        functions: by name, coremltools' own objects.
        rounds: every result is brought to float16.
    """

    def __init__(self, path: Path, rounds: bool = False) -> None:
        import coremltools
        from coremltools.converters.mil.frontend.milproto.load import load

        self.spec = coremltools.utils.load_spec(str(path))
        weights = path / "Data/com.apple.CoreML/weights"
        self.functions = load(
            self.spec, self.spec.specificationVersion, file_weights_dir=str(weights)
        ).functions
        self.rounds = rounds

    def new_states(self, function: str) -> States:
        """Zeros, as a runtime makes them."""
        return {
            name: np.zeros(var.shape, np.float32)
            for name, var in self.functions[function].inputs.items()
            if _is_state(var)
        }

    def weights(self, function: str) -> dict[str, np.ndarray]:
        """What a function reads of the weight file, by the name of the value."""
        found = {}
        for op in self.functions[function].operations:
            if op.op_type.startswith("constexpr"):
                found[op.outputs[0].name] = op.materialized_val_inference()
            elif op.op_type == "const":
                found[op.outputs[0].name] = op.outputs[0].val
        return found

    def run(
        self, function: str, inputs: Mapping[str, np.ndarray], states: States | None = None
    ) -> dict[str, np.ndarray]:
        """One call; `states` are changed."""
        states = {} if states is None else states
        program = self.functions[function]
        for name, var in program.inputs.items():
            if not _is_state(var):
                value = inputs[name]
                assert _fits(value.shape, var.shape), (name, value.shape, var.shape)
                _set(var, self._as_float(value))
        for op in program.operations:
            result = self._value(op, states)
            if result is not None and op.op_type != "const":
                _set(op.outputs[0], self._as_float(result))
        return {var.name: np.array(var.val) for var in program.outputs}

    def _value(self, op: Any, states: States) -> Any:
        kind = op.op_type
        if kind == "const":
            _set(op.outputs[0], self._as_float(op.outputs[0].val))
            return None
        if kind == "read_state":
            return states[op.input.name].copy()
        if kind == "coreml_update_state":
            states[op.state.name][...] = op.value.val
            return op.value.val
        if kind == "slice_update":
            return _slice_update(op)
        if kind == "conv":
            weight = op.weight.val[:, :, 0, 0]
            result = np.einsum("oi,bihw->bohw", weight, op.x.val)
            return result if op.bias is None else result + op.bias.val[:, None, None]
        if kind == "silu":
            x = op.x.val
            return x / (1 + np.exp(-x))
        if kind == "reduce_max":  # coremltools' own hands numpy a bool that numpy 2 does not take
            return op.x.val.max(tuple(op.axes.val), keepdims=bool(op.keep_dims.val))
        if kind.startswith("constexpr"):
            return op.materialized_val_inference()
        return op.value_inference()

    def _as_float(self, value: Any) -> Any:
        if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "f":
            value = value.astype(np.float16) if self.rounds else value
            return value.astype(np.float32)
        return value


def _slice_update(op: Any) -> np.ndarray:
    result = op.x.val.copy()
    masks = op.end_mask.val
    ends = [
        size if masked else end
        for size, masked, end in zip(result.shape, masks, op.end.val, strict=True)
    ]
    place = tuple(slice(int(b), int(e)) for b, e in zip(op.begin.val, ends, strict=True))
    assert result[place].shape == op.update.val.shape
    result[place] = op.update.val
    return result


def _is_state(var: Any) -> bool:
    from coremltools.converters.mil.mil import types

    return bool(types.is_state(var.sym_type))


def _set(var: Any, value: Any) -> None:
    var._sym_val = SimpleNamespace(val=value)


def _fits(shape: tuple[int, ...], declared: tuple[Any, ...]) -> bool:
    return len(shape) == len(declared) and all(
        not isinstance(wanted, int | np.integer) or size == wanted
        for size, wanted in zip(shape, declared, strict=True)
    )
