"""What a network needs for drafts by prompt lookup: a state with the text, and `verify`.

The engine has a loop for drafts: a drafter proposes G tokens, one after another, and the network
verifies them in one call with the token before them, G + 1 rows. As many drafts as are what the
network says itself are taken, and one token more, which the network says after them: greedy text
stays the same, and comes faster where drafts are right. `lookup_drafter` has the drafter, which
looks for the last tokens further up in the text, and proposes what followed there.

    verify: embeddings (1, G + 1, E)  input_pos (G + 1,)  states
         -> logits (1, G + 1, V + 1)  activations (1, G + 1, E)  states

Of a token the engine hands on nothing but its embedding, which here is its id, as a float; what is
multiplied stays where it is. V is no token: the drafter returns it where it has nothing to propose.
Its logit is lower than any other, so that it is never taken, and rows after it are not computed:
with no draft, a call costs what a decode does.

The contract is that of LiteRT-LM's `llm_litert_mtp_drafter.cc`, which is there for Gemma 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from converter.tflite.attention import LEVELS
from converter.tflite.graph import DType, Graph, Model, Tensor
from converter.tflite.state import StateBuffer, StateKind

# The width of embeddings and activations, E: what the drafter keeps from one draft to the next, how
# many there were and the last token before them.
WIDTH = 2
# How many tokens are compared with those further up.
COMPARED = 4
# Wrong drafts may not reach further into a ring than padding does (`kv_cache`).
MOST_DRAFTS = 7
# Logits that nobody says.
_NEVER = -1e9
# Rows that are computed at once where there are fewer drafts than may be: with four, a processor
# without wide int8 instructions is not much slower than with one.
_SOME_ROWS = 4

# Of a graph, ids and positions, both (rows,), and how many tokens the text may have with them: the
# logits, (1, rows, V), and what a drafter is given beside the tokens, (1, rows, E), where it is
# given something.
EmitRows = Callable[[Graph, Tensor, Tensor, range], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class History:
    """The text: position p holds its token's id plus 1 in slot p + `COMPARED`.

    So an empty slot is no token, and before the first one there are empty ones. It is named like a
    cache, for the engine hands those to the drafter.

    Attributes:
        number: in the state's name, after those of the layers.
        slots: how many it has.
    """

    number: int
    slots: int

    @classmethod
    def of(cls, layers: int, cache_length: int, prefill_lengths: Sequence[int]) -> History:
        """With room for the padding of a last prefill, which may not be moved back over the text,
        and for drafts.
        """
        return cls(layers, COMPARED + cache_length + max(*prefill_lengths, MOST_DRAFTS + 1))

    @property
    def state(self) -> StateBuffer:
        """(1, 1, slots, 1), float32."""
        shape = 1, 1, self.slots, 1
        return StateBuffer(f"kv_cache_k_{self.number}", shape, StateKind.GLOBAL_KEY, 2, self.slots)

    def add(self, g: Graph, ids: Tensor, first: Tensor) -> None:
        """Let a call write its tokens.

        Args:
            ids: (N,), int32.
            first: position of the first of them, (1,).
        """
        zero = g.constant("history/zero", [0])
        slot = g.make_add("history/slot", first, g.constant("history/before", [COMPARED]))
        start = g.make_concatenation("history/start", (zero, zero, slot, zero), axis=0)
        tokens = g.make_cast("history/float32", ids, DType.FLOAT32)
        tokens = g.make_add("history/tokens", tokens, g.constant("history/one", 1.0))
        block = g.make_reshape("history/block", tokens, (1, 1, *ids.shape, 1))
        before = self.state.add_to(g)
        written = g.make_dynamic_update_slice("history", before, block, start)
        g.add_output(self.state.name, written)


def add_no_activations(g: Graph, first: Tensor) -> None:
    """Hand on what begins the first draft, nothing: (1, 1, E).

    Args:
        first: anything, (1,), int32; what comes out of a call may be no constant.
    """
    zeros = g.constant("activations/zeros", np.zeros((1, 1, WIDTH), np.float32))
    number = g.make_cast("activations/float32", first, DType.FLOAT32)
    g.add_output("activations", g.make_mul("activations", zeros, number))


def widths(drafts: int) -> tuple[int, ...]:
    """How many rows `verify` may compute, ascending."""
    return tuple(sorted({1, min(_SOME_ROWS, drafts + 1), drafts + 1}))


def texts(slots: int) -> tuple[range, ...]:
    """How many tokens a text may have with those of a call, in the parts that have own bodies.

    The runtime prepares a body anew whenever it is taken, with all branches in it. Where a text is
    short, and a call quick, that would take a tenth of it: so a short text's bodies have no
    branches, since all of its columns are read.
    """
    short = LEVELS[0]
    if slots <= short:
        return (range(1, slots + 1),)
    return range(1, short + 1), range(short + 1, slots + 1)


def add_verify(
    model: Model,
    drafts: int,
    vocab_size: int,
    slots: int,
    states: Sequence[StateBuffer],
    history: History | None,
    emit: EmitRows,
    width: int = WIDTH,
) -> None:
    """Emit `verify`.

    Args:
        drafts: G, at most `MOST_DRAFTS`.
        vocab_size: V.
        slots: how many tokens the text may have, with wrong drafts.
        states: of the network, in the order in which `emit` declares them.
        history: where the text is kept; None where the drafter needs none.
        emit: adds a call of some rows, with states as inputs and outputs.
        width: E.
    """
    g, rows = model.add_graph("verify"), drafts + 1
    embeddings = g.add_input("embeddings", (1, rows, width), DType.FLOAT32)
    positions = g.add_input("input_pos", (rows,), DType.INT32)
    given = [state.add_to(g) for state in states]
    numbers = g.make_slice("ids/numbers", embeddings, (0, 0, 0), (1, rows, 1))
    ids = g.make_cast("ids", g.make_reshape("ids/flat", numbers, (rows,)), DType.INT32)
    verifier = _Verifier(model, vocab_size, states, rows, emit)
    found = verifier.choose(g, texts(slots), widths(drafts), [ids, positions, *given])
    for name, tensor in found.items():
        g.add_output(name, tensor)
    if history is not None:
        history.add(g, ids, g.make_slice("first", positions, (0,), (1,)))
    if "activations" not in found:
        nothing = g.constant("activations/nothing", 0.0)
        g.add_output("activations", g.make_mul("activations", embeddings, nothing))


@dataclass(frozen=True)
class _Verifier:
    """The bodies of `verify`, each for so many rows; see `add_verify`."""

    model: Model
    vocab_size: int
    states: Sequence[StateBuffer]
    rows: int
    emit: EmitRows

    def choose(
        self,
        g: Graph,
        lengths: Sequence[range],
        counts: Sequence[int],
        inputs: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """As many rows as have tokens, in a text of a length within one of `lengths`.

        Args:
            lengths, counts: `texts` and `widths`, those of them that are still possible.
            inputs: all ids, all positions and the states.
        """
        ids, positions, *_ = inputs
        if len(lengths) > 1:
            latest = g.constant("latest", [lengths[0].stop - 1 - self.rows])
            first = g.make_slice("is_short/first", positions, (0,), (1,))
            is_first = g.make_greater_equal("is_short", latest, first)
            ways = (lengths[:1], counts), (lengths[1:], counts)
        else:
            after = g.make_slice("after", ids, (counts[0],), (1,))
            none = g.constant("no_token", [self.vocab_size])
            is_first = g.make_greater_equal("is_enough", after, none)
            ways = (lengths, counts[:1]), (lengths, counts[1:])
        then, otherwise = (self.choosing(*way) for way in ways)
        return g.make_ifs("verified", is_first, then, otherwise, inputs)

    def choosing(self, lengths: Sequence[range], counts: Sequence[int]) -> Graph:
        """The branch for these."""
        if len(lengths) == len(counts) == 1:
            return self.computing(lengths[0], counts[0])
        body = self.body(f"verify/{lengths[0].start}_tokens/{counts[0]}_rows_or_more")
        for state in self.states:
            state.add_to(body)
        for name, tensor in self.choose(body, lengths, counts, [*body.inputs.values()]).items():
            body.add_output(name, tensor)
        return body

    def computing(self, length: range, count: int) -> Graph:
        """The branch in which so many rows are computed."""
        body = self.body(f"verify/{length.start}_tokens/{count}_rows")
        ids, positions = (
            body.make_slice(f"{name}/taken", body.inputs[name], (0,), (count,))
            for name in ("ids", "positions")
        )
        last = body.constant("last_token", [self.vocab_size - 1])
        known = body.make_minimum("known", ids, last)
        logits, handed = self.emit(body, known, positions, length)
        # One more logit, that of no token; and rows that are not computed.
        after = 0, self.rows - count, 1
        body.add_output("logits", body.make_pad("logits/all", logits, after, _NEVER))
        if handed is not None:
            after = 0, self.rows - count, 0
            body.add_output("activations", body.make_pad("activations", handed, after, 0.0))
        return body

    def body(self, name: str) -> Graph:
        """A branch that is given all ids and positions; the states follow."""
        body = self.model.add_body(name)
        body.add_input("ids", (self.rows,), DType.INT32)
        body.add_input("positions", (self.rows,), DType.INT32)
        return body
