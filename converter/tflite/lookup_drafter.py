"""The two small models beside a network that is drafted for by prompt lookup; see `lookup`.

    embedder: token (1, 1) -> (1, 1, E), its id and nothing else
    drafter: activations (1, 1, 2 E)  input_pos (1,)  the text -> logits (1, 1, V + 1)
             projected_activations (1, 1, E)

The drafter is called once for every draft, with the embedding of the token before it and, after
that, what it handed on itself; in the first call, zeros. `input_pos` is always the position before
that of the last token which is no draft. It compares the last four tokens with all places further
up, and proposes what followed the longest match, of several the latest. A text that ends where the
match began is gone on with from its beginning: what repeats is taken for a loop.

What ends an answer is never proposed: where the engine finds it among drafts that are right, it
leaves it out of the cache, and the next turn would be read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.tflite.graph import DType, Graph, Model, Tensor
from converter.tflite.lookup import COMPARED, WIDTH, History

# A match of one token more outweighs every position, in a context of up to 2 million tokens. Floats
# are exact up to 2^24.
_MATCH = 1 << 21
# One token says little. Of the drafts after two, one in three or four is right in free text, and
# most where something is repeated.
_SHORTEST = 2
# After a match that is shorter than what is compared, no more than these are worth verifying.
_FEW = 3


def build_embedder() -> Model:
    """A token's embedding: its id, as a float."""
    model = Model("litert-lm-cli")
    g = model.add_graph("embed")
    token = g.add_input("token", (1, 1), DType.INT32)
    number = g.make_cast("float32", g.make_reshape("flat", token, (1, 1, 1)), DType.FLOAT32)
    place = np.zeros((1, 1, WIDTH), np.float32)
    place[..., 0] = 1
    g.add_output("embedding", g.make_mul("embedding", number, g.constant("place", place)))
    return model


def build_drafter(
    history: History, cache_length: int, vocab_size: int, drafts: int, stops: Sequence[int]
) -> Model:
    """The drafter.

    Args:
        history: the network's.
        cache_length: tokens that the context holds, C.
        vocab_size: V, which is proposed where nothing is.
        drafts: the most that are proposed one after another.
        stops: tokens that end an answer.
    """
    model = Model("litert-lm-cli")
    g = model.add_graph("draft")
    activations = g.add_input("activations", (1, 1, 2 * WIDTH), DType.FLOAT32)
    before = g.add_input("input_pos", (1,), DType.INT32)
    text = history.state.add_to(g)
    drafter = _Drafter(g, g.make_reshape("text", text, (history.slots,)), before)
    values = g.make_reshape("values", activations, (2 * WIDTH,))
    token = g.make_slice("token", values, (0,), (1,))
    found = drafter.search(token, cache_length, drafts)
    now = drafter.handed_on(values, found)
    draft = drafter.draft(now, vocab_size, stops)
    g.add_output("logits", drafter.make_logits(draft, vocab_size))
    g.add_output("projected_activations", drafter.make_handed(now, draft, vocab_size))
    return model


@dataclass(frozen=True)
class _Found:
    """What is handed on from one draft to the next; float32, (1,) each.

    Attributes:
        done: drafts so far.
        start: the position after the match.
        period: how many tokens stand from there to the last one that is no draft.
        token: that one.
        limit: how many drafts are worth it; 0 where nothing was found.
    """

    done: Tensor
    start: Tensor
    period: Tensor
    token: Tensor
    limit: Tensor

    @property
    def parts(self) -> dict[str, Tensor]:
        return vars(self)


@dataclass(frozen=True)
class _Drafter:
    """The drafter's graph.

    Attributes:
        text: see `History`; (slots,).
        before: position of the token before the last one that is no draft, (1,), int32.
    """

    g: Graph
    text: Tensor
    before: Tensor

    def search(self, token: Tensor, cache_length: int, drafts: int) -> _Found:
        """Where the last tokens stood before: the longest match, of several the latest."""
        g, zero, one = self.g, self.g.constant("zero", 0.0), self.g.constant("one", 1.0)
        before = g.make_cast("before", self.before, DType.FLOAT32)
        positions = g.constant("positions", np.arange(cache_length, dtype=np.float32))
        score = self.match(token, cache_length)
        score = g.make_mul("score/length", score, g.constant("match", float(_MATCH)))
        score = g.make_add("score/all", score, positions)
        # What stands behind the text is of an earlier one, or of drafts that were wrong.
        behind = g.make_minimum("score/behind", g.make_sub("score/ago", before, positions), zero)
        behind = g.make_mul("score/hidden", behind, g.constant("hidden", float(8 * _MATCH)))
        best = g.make_reduce_max("best", g.make_add("score", score, behind))
        best = g.make_cast("best/int32", g.make_maximum("best/any", best, zero), DType.INT32)
        match = g.constant("match/int32", [_MATCH])
        place = g.make_cast("place", g.make_floor_mod("place/int32", best, match), DType.FLOAT32)
        length = g.make_floor_div("length", best, match)
        is_long = g.make_greater_equal("is_long", length, g.constant("long", [COMPARED]))
        is_found = g.make_greater_equal("is_found", length, g.constant("least", [_SHORTEST]))
        few, all_ = (g.constant(f"{n}_drafts", float(n)) for n in (min(_FEW, drafts), drafts))
        none = g.constant("none", np.zeros(1, np.float32))
        limit = g.make_select("limit/found", is_long, all_, few)
        return _Found(
            done=none,
            start=g.make_add("start", place, one),
            period=g.make_sub("period", g.make_add("last", before, one), place),
            token=token,
            limit=g.make_select("limit", is_found, limit, none),
        )

    def match(self, token: Tensor, cache_length: int) -> Tensor:
        """How many of the last tokens end at each position too, at most `COMPARED`; (C,)."""
        g, one = self.g, self.g.constant("one", 1.0)
        wanted = g.make_add("match/token", token, one)
        differs = g.constant("zero", 0.0)
        length = g.constant("match/longest", float(COMPARED))
        for back in range(COMPARED):
            name = f"match/{back}"
            if back:
                slot = g.constant(f"{name}/back", [COMPARED + 1 - back])
                place = g.make_add(f"{name}/place", self.before, slot)
                wanted = g.make_gather(f"{name}/wanted", self.text, place, 0)
            there = g.make_slice(f"{name}/there", self.text, (COMPARED - back,), (cache_length,))
            distance = g.make_sub(f"{name}/distance", there, wanted)
            distance = g.make_mul(f"{name}/square", distance, distance)
            other = g.make_minimum(f"{name}/differs", distance, one)
            differs = g.make_maximum(f"{name}/differs_so_far", differs, other)
            length = g.make_sub(f"{name}/length", length, differs)
        return length

    def handed_on(self, values: Tensor, found: _Found) -> _Found:
        """What the call before handed on; in the first call `found`."""
        g = self.g
        handed = {
            name: g.make_slice(f"handed/{name}", values, (WIDTH + i,), (1,))
            for i, name in enumerate(found.parts)
        }
        is_later = g.make_greater_equal("is_later", handed["done"], g.constant("one", 1.0))
        return _Found(
            **{
                name: g.make_select(f"now/{name}", is_later, handed[name], new)
                for name, new in found.parts.items()
            }
        )

    def draft(self, now: _Found, none: int, stops: Sequence[int]) -> Tensor:
        """The token that is proposed, float32, (1,); `none` for none."""
        g = self.g
        one = g.constant("one", 1.0)
        last = g.make_add(
            "draft/last", g.make_cast("draft/before", self.before, DType.FLOAT32), one
        )
        offset = g.make_floor_mod("draft/offset", now.done, now.period)
        place = g.make_add("draft/place", now.start, offset)
        slot = g.make_cast("draft/position", place, DType.INT32)
        slot = g.make_add("draft/slot", slot, g.constant("draft/before_text", [COMPARED]))
        known = g.make_sub("draft/known", g.make_gather("draft/there", self.text, slot, 0), one)
        is_last = g.make_greater_equal("draft/is_last", place, last)
        token = g.make_select("draft/token", is_last, now.token, known)
        done = g.make_add("draft/number", now.done, one)
        is_worth_it = g.make_greater_equal("draft/is_worth_it", now.limit, done)
        nothing = g.constant("draft/nothing", float(none))
        token = g.make_select("draft/worth_it", is_worth_it, token, nothing)
        ends = g.constant("draft/stops", np.asarray(stops, np.float32))
        distance = g.make_sub("draft/distance", token, ends)
        distance = g.make_mul("draft/square", distance, distance)
        goes_on = g.make_greater_equal("draft/goes_on", g.make_reduce_min("nearest", distance), one)
        return g.make_select("draft", goes_on, token, nothing)

    def make_logits(self, draft: Tensor, vocab_size: int) -> Tensor:
        """1 for the draft, 0 for everything else: (1, 1, V + 1)."""
        g = self.g
        zero = g.constant("logits/zero", [0])
        token = g.make_cast("logits/token", draft, DType.INT32)
        place = g.make_concatenation("logits/place", (zero, zero, token), axis=0)
        place = g.make_reshape("logits/places", place, (1, 3))
        one = g.constant("logits/one", np.ones(1, np.float32))
        return g.make_scatter("logits", place, one, (1, 1, vocab_size + 1))

    def make_handed(self, now: _Found, draft: Tensor, none: int) -> Tensor:
        """What the next call is to know, (1, 1, E); after no draft there is none any more."""
        g, parts = self.g, dict(now.parts)
        parts["done"] = g.make_add("projected/done", now.done, g.constant("one", 1.0))
        is_none = g.make_greater_equal(
            "projected/is_none", draft, g.constant("nothing", float(none))
        )
        zero = g.constant("none", np.zeros(1, np.float32))
        parts["limit"] = g.make_select("projected/limit", is_none, zero, now.limit)
        rest = g.constant("projected/rest", np.zeros(WIDTH - len(parts), np.float32))
        all_ = g.make_concatenation("projected/flat", (*parts.values(), rest), axis=0)
        return g.make_reshape("projected_activations", all_, (1, 1, WIDTH))
