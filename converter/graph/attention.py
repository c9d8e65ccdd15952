"""Attention: softmax(q @ keys^T + mask) @ values, over as many columns as are in use.

N tokens in this call, kv key-value heads, group = attention heads / kv, d = head_dim. Queries are
(1, kv, group * N, d): the heads of a group stand in the rows of one matrix, so that keys and values
are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence

from converter.graph.tflite import Graph, Model, Tensor

# A call attends to the first of these numbers of columns that holds all it sees, where there are
# more: at most half as many again as are in use, but for the shortest.
LEVELS = (128, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 24576)
# Cutting columns off copies them; to read more than this share of all, read all.
_WORTH_CUTTING = 0.7


def levels_below(columns: int, least: int) -> list[int]:
    """How many columns, at least `least`, may be read instead of all of them."""
    return [level for level in LEVELS if least <= level <= _WORTH_CUTTING * columns]


def make_attention(
    g: Graph,
    name: str,
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    mask: Tensor,
    are_columns: bool = False,
) -> Tensor:
    """softmax(q @ keys^T + mask) @ values, the shape of q.

    Args:
        q: (1, kv, group * N, d).
        keys, values: (1, kv, columns, d).
        mask: (1, 1, group * N, columns), or (1, 1, N, columns) for all the heads of a group.
        are_columns: whether values are (1, kv, d, columns).
    """
    _, kv, rows, _ = q.shape
    n, columns = mask.shape[2:]
    scores = g.make_batch_matmul(f"{name}/scores", q, keys)
    if n != rows:
        scores = g.make_reshape(f"{name}/scores/groups", scores, (kv, rows // n, n, columns))
    scores = g.make_add(f"{name}/masked", scores, mask)
    weights = g.make_softmax(f"{name}/softmax", scores)
    if n != rows:
        weights = g.make_reshape(f"{name}/softmax/rows", weights, (1, kv, rows, columns))
    return g.make_batch_matmul(f"{name}/attended", weights, values, transposed=are_columns)


class AttentionByLevel:
    """Attention over the first columns that are in use, up to the next level.

    Each level has a body of its own, behind nested IFs: a binary search. The bodies serve all
    layers. They are handed all keys and values, which the runtime does not copy, and cut off what
    they read.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        name: str,
        mask: Tensor,
        needed: Tensor,
        levels: Sequence[int],
    ) -> None:
        """Prepare what all layers share.

        Args:
            mask: over all columns, (1, 1, N, columns).
            needed: how many of the columns are in use, (1,); may be more than there are.
            levels: ascending; to read all columns is one more.
        """
        self.model = model
        self.graph = graph
        self.name = name
        self.mask = mask
        self.needed = needed
        self.levels = (*levels, mask.shape[-1])
        self.bodies: dict[tuple[int, ...], Graph] = {}

    def attend(self, name: str, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """One layer's attention, as `make_attention`."""
        inputs = (q, keys, values, self.mask, self.needed)
        return self._attend(self.graph, name, self.levels, inputs)

    def _attend(
        self, g: Graph, name: str, levels: tuple[int, ...], inputs: Sequence[Tensor]
    ) -> Tensor:
        """Attention over the first of `levels` that is enough."""
        q, keys, values, mask, needed = inputs
        if len(levels) == 1:
            return self._attend_to(g, name, levels[0], q, keys, values, mask)
        lower, upper = levels[: len(levels) // 2], levels[len(levels) // 2 :]
        most = g.constant(f"{name}/most_{lower[-1]}", [lower[-1]])
        is_enough = g.make_greater_equal(f"{name}/up_to_{lower[-1]}", most, needed)
        then, otherwise = self._body(lower, inputs), self._body(upper, inputs)
        return g.make_if(name, is_enough, then, otherwise, inputs)

    def _body(self, levels: tuple[int, ...], inputs: Sequence[Tensor]) -> Graph:
        """The branch in which one of `levels` is read."""
        if levels not in self.bodies:
            body = self.model.add_body(f"{self.graph.name}/{self.name}/{levels[0]}-{levels[-1]}")
            names = ("q", "keys", "values", "mask", "needed")
            copies = [
                body.add_input(name, tensor.shape, tensor.dtype)
                for name, tensor in zip(names, inputs, strict=True)
            ]
            body.add_output("context", self._attend(body, "attention", levels, copies))
            self.bodies[levels] = body
        return self.bodies[levels]

    def _attend_to(
        self,
        g: Graph,
        name: str,
        columns: int,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        if columns < mask.shape[-1]:
            start, (_, kv, _, d) = (0, 0, 0, 0), keys.shape
            keys = g.make_slice(f"{name}/keys", keys, start, (1, kv, columns, d))
            values = g.make_slice(f"{name}/values", values, start, (1, kv, columns, d))
            mask = g.make_slice(f"{name}/mask", mask, start, (*mask.shape[:3], columns))
        return make_attention(g, name, q, keys, values, mask)
