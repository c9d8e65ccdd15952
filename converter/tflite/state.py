"""What the engine keeps between calls: buffers that go into every signature and come out again."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from converter.tflite.graph import DType, Graph, Tensor

# What short convolutions share (`short_conv`): where the text of their first rings ends. In a model
# that has it, all states survive that tokens are taken back.
CONVOLUTIONS_END = "kv_cache_c_end"


class StateKind(StrEnum):
    """The engine's own words. It sees to none of them being empty again in a new conversation."""

    GLOBAL_KEY = "TYPE_GLOBAL_KEY_CACHE"
    GLOBAL_VALUE = "TYPE_GLOBAL_VALUE_CACHE"
    LOCAL_KEY = "TYPE_LOCAL_KEY_CACHE"
    LOCAL_VALUE = "TYPE_LOCAL_VALUE_CACHE"
    RECURRENT = "TYPE_LINEAR_ATTENTION"


@dataclass(frozen=True)
class StateBuffer:
    """One buffer; input and output have its name.

    Attributes:
        slots: how many positions it has room for, along `axis`.
        least: fewer than these it may not have; None where the engine is to say.
    """

    name: str
    shape: tuple[int, ...]
    kind: StateKind
    axis: int
    slots: int
    least: int | None = None
    dtype: DType = DType.FLOAT32

    def add_to(self, graph: Graph) -> Tensor:
        """Declare it as a signature's input."""
        return graph.add_input(self.name, self.shape, self.dtype)
