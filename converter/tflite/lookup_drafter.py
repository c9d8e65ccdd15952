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
leaves it out of the cache, and the next turn would be read without it. That is left of an answer
without a word: its first token comes in one step with what is drafted after it.
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


def build_embedder(width: int = WIDTH) -> Model:
    """A token's embedding: its id, as a float, and zeros, (1, 1, width)."""
    model = Model("litert-lm-cli")
    g = model.add_graph("embed")
    token = g.add_input("token", (1, 1), DType.INT32)
    number = g.make_cast("float32", g.make_reshape("flat", token, (1, 1, 1)), DType.FLOAT32)
    place = np.zeros((1, 1, width), np.float32)
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
    text = g.make_reshape("text", history.state.add_to(g), (history.slots,))
    fed, _, done, kept = (
        g.make_reshape(
            f"values/{i}", g.make_slice(f"value/{i}", activations, (0, 0, i), (1, 1, 1)), (1,)
        )
        for i in range(2 * WIDTH)
    )
    is_later = g.make_greater_equal("is_later", done, g.constant("one", 1.0))
    token = g.make_select("token", is_later, kept, fed)
    drafter = _Drafter(g, text, before, token)
    place, limit = drafter.search(cache_length, drafts)
    draft = drafter.following(place, done)
    done, draft = drafter.limited(draft, done, limit, stops, vocab_size)
    g.add_output("logits", make_choice(g, draft, vocab_size))
    handed = g.make_concatenation("handed", (done, token), axis=0)
    handed = g.make_reshape("projected_activations", handed, (1, 1, WIDTH))
    g.add_output("projected_activations", handed)
    return model


@dataclass(frozen=True)
class _Drafter:
    """The drafter's graph; numbers in it are float32, (1,), where nothing else is said.

    Attributes:
        text: see `History`; (slots,).
        before: position of the token before `token`, (1,), int32.
        token: the last one that is no draft, and not yet in the text.
    """

    g: Graph
    text: Tensor
    before: Tensor
    token: Tensor

    def search(self, cache_length: int, drafts: int) -> tuple[Tensor, Tensor]:
        """Where the longest match ends, of several the latest; and how many drafts it is worth."""
        g, zero = self.g, self.g.constant("zero", 0.0)
        positions = g.constant("positions", np.arange(cache_length, dtype=np.float32))
        score = self.match(cache_length)
        score = g.make_mul("score/length", score, g.constant("match", float(_MATCH)))
        score = g.make_add("score/all", score, positions)
        # What stands behind the text is of an earlier one, or of drafts that were wrong.
        before = g.make_cast("before", self.before, DType.FLOAT32)
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
        limit = g.make_select("limit/found", is_long, all_, few)
        return place, g.make_select("limit", is_found, limit, zero)

    def match(self, cache_length: int) -> Tensor:
        """How many of the last tokens end at each position too, at most `COMPARED`; (C,)."""
        g, one = self.g, self.g.constant("one", 1.0)
        wanted = g.make_add("match/token", self.token, one)
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

    def following(self, place: Tensor, done: Tensor) -> Tensor:
        """The token so many places after the match, from the text as if it went on in a loop."""
        g, one = self.g, self.g.constant("one", 1.0)
        first = g.make_add("following/first", place, one)
        last = g.make_cast("following/before", self.before, DType.FLOAT32)
        last = g.make_add("following/last", last, one)
        period = g.make_sub("following/period", last, place)
        place = g.make_add("following", first, g.make_floor_mod("following/offset", done, period))
        slot = g.make_cast("following/position", place, DType.INT32)
        slot = g.make_add("following/slot", slot, g.constant("following/before_text", [COMPARED]))
        known = g.make_gather("following/known", self.text, slot, 0)
        known = g.make_sub("following/token", known, one)
        is_last = g.make_greater_equal("following/is_last", place, last)
        return g.make_select("following/draft", is_last, self.token, known)

    def limited(
        self, draft: Tensor, done: Tensor, limit: Tensor, stops: Sequence[int], none: int
    ) -> tuple[Tensor, Tensor]:
        """How many drafts there were then, and the draft; `none` where there is to be none now.

        Args:
            done: how many there were before.
        """
        g, one = self.g, self.g.constant("one", 1.0)
        number = g.make_add("limited/number", done, one)
        room = g.make_sub("limited/room", limit, done)
        # 0 for what ends an answer; ids are whole numbers.
        distance = g.make_sub(
            "limited/distance", draft, g.constant("stops", np.asarray(stops, np.float32))
        )
        distance = g.make_mul("limited/square", distance, distance)
        worth = g.make_minimum(
            "limited/worth", room, g.make_reduce_min("limited/nearest", distance)
        )
        is_worth_it = g.make_greater_equal("limited/is_worth_it", worth, one)
        nothing, over = g.constant("nothing", float(none)), g.constant("over", float(_MATCH))
        return (
            g.make_select("limited/done", is_worth_it, number, over),
            g.make_select("limited/draft", is_worth_it, draft, nothing),
        )


def make_choice(g: Graph, token: Tensor, vocab_size: int) -> Tensor:
    """1 for one token, (1,), which may be V, and 0 for everything else: (1, 1, V + 1)."""
    zero = g.constant("choice/zero", [0])
    token = g.make_cast("choice/token", token, DType.INT32)
    place = g.make_concatenation("choice/place", (zero, zero, token), axis=0)
    place = g.make_reshape("choice/places", place, (1, 3))
    one = g.constant("choice/one", np.ones(1, np.float32))
    return g.make_scatter("choice", place, one, (1, 1, vocab_size + 1))
