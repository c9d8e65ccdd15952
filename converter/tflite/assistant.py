"""A drafter that was trained with the network, as Gemma 4's assistants were; `verify`: `lookup`.

    activations (1, 1, 2 E)  input_pos (1,)  the network's caches
        |
    token's row + projected hidden row -> layers -> norm -> head -> logits (1, 1, V + 1)
                                                      `-> projected_activations (1, 1, E)

E is the network's hidden size. It is given a token and what the network's last layer made of the
text before it, or, from the second draft on, what it made of that itself. It has no keys and values
of its own: its layers look at those of the network, all from one position, the last one in the
caches, as it was trained. So nothing has to be kept for it, and nothing taken back.

What the first projection makes of a token's embedding is looked up: the network's table times that
part of the matrix has as many columns as the drafter is wide, a small part of the network's own.

Of the head there are two kinds. With clusters, logits are computed of the tokens of the likeliest
ones alone, a few thousand in place of all; their rows are looked up, and the head is never read
whole. As in `lookup_drafter`, what ends an answer is not proposed, and nothing after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from converter.decoder import DecoderSpec, Shapes
from converter.tflite.blocks import WeightOf
from converter.tflite.decoder_graph import DecoderGraph
from converter.tflite.graph import DType, Graph, Model, Tensor
from converter.tflite.kv_cache import CacheType, Call, Target
from converter.tflite.lookup_drafter import make_choice

# Paths of what it has beside a decoder's weights.
TOKENS, HIDDEN, PROJECTED, CENTROIDS = "tokens", "hidden", "projected", "centroids"


@dataclass(frozen=True)
class Clusters:
    """The vocabulary in parts of the same size, each around a centroid.

    Attributes:
        active: how many of them are looked at.
        tokens: of each, `(clusters, size)`, int32.
    """

    active: int
    tokens: np.ndarray


@dataclass(frozen=True)
class Assistant:
    """The drafter.

    Attributes:
        spec: its layers, which look at the network's caches (`Attention.cache_of`).
        width: the network's hidden size, E.
        clusters: None where all logits are computed.
    """

    spec: DecoderSpec
    width: int
    clusters: Clusters | None

    def weight_shapes(self) -> Shapes:
        """Every weight, in the order of use."""
        hidden = self.spec.hidden_size
        yield TOKENS, (self.spec.vocab_size, hidden)
        yield HIDDEN, (hidden, self.width)
        embedding, *others = self.spec.weight_shapes()
        yield from others
        if self.clusters is not None:
            yield CENTROIDS, (len(self.clusters.tokens), hidden)
        if self.spec.tied_head:  # it is nothing but the head here
            yield embedding
        yield PROJECTED, (self.width, hidden)


def build_assistant(
    assistant: Assistant,
    slots: int,
    weight_of: WeightOf,
    rings: bool,
    cache_type: CacheType,
    stops: Sequence[int],
) -> Model:
    """The drafter's graph.

    Args:
        slots: what the network's caches were asked for (`decoder_graph.slots_for`); `rings` and
            `cache_type` are the network's, too.
        weight_of: the stored form of each of `Assistant.weight_shapes`.
        stops: tokens that end an answer.
    """
    model = Model("litert-lm-cli")
    for path, _ in assistant.weight_shapes():
        model.declare(weight_of(path))
    g, width = model.add_graph("draft"), assistant.width
    activations = g.add_input("activations", (1, 1, 2 * width), DType.FLOAT32)
    position = g.add_input("input_pos", (1,), DType.INT32)
    fed = g.make_slice("fed", activations, (0, 0, 0), (1, 1, 1))
    fed = g.make_cast("fed/int32", g.make_reshape("fed/id", fed, (1,)), DType.INT32)
    hidden = g.make_slice("hidden/given", activations, (0, 0, width), (1, 1, width))
    hidden = g.make_reshape("hidden/row", hidden, (1, width))
    last = g.constant("last_token", [assistant.spec.vocab_size - 1])
    known = g.make_minimum("known", fed, last)

    call = Call(model, g, 1, position, position, position, None, always_fits=True)
    network = DecoderGraph(
        call, assistant.spec, known, weight_of, slots, Target.CPU, rings, cache_type, borrows=True
    )
    x = g.make_add(
        "entry",
        network.make_rows("tokens", known, TOKENS, None),
        network.blocks.make_projection("hidden", hidden, HIDDEN),
    )
    for i, layer in enumerate(assistant.spec.layers):
        x = network.make_layer(i, layer, x)
    x = network.make_final_norm(x)
    draft = _make_likeliest(network, assistant, x)
    draft = _make_limited(g, draft, fed, stops, assistant.spec.vocab_size)
    g.add_output("logits", make_choice(g, draft, assistant.spec.vocab_size))
    projected = network.blocks.make_projection("projected", x, PROJECTED)
    g.add_output(
        "projected_activations", g.make_reshape("projected_activations", projected, (1, 1, width))
    )
    return model


def _make_likeliest(network: DecoderGraph, assistant: Assistant, x: Tensor) -> Tensor:
    """The token with the largest logit, (1, hidden) -> (1,), int32."""
    g, clusters = network.graph, assistant.clusters
    if clusters is None:
        _, best = g.make_top_k("best", network.make_logits(x), 1)
        return g.make_reshape("likeliest", best, (1,))
    count, size = clusters.active, clusters.tokens.shape[1]
    near = network.blocks.make_projection("centroids", x, CENTROIDS)
    _, chosen = g.make_top_k("nearest", near, count)
    chosen = g.make_reshape("nearest/flat", chosen, (count,))
    tokens = g.make_gather("nearest/tokens", g.constant("clusters", clusters.tokens), chosen, 0)
    tokens = g.make_reshape("nearest/tokens/flat", tokens, (count * size,))
    head = "embedding" if assistant.spec.tied_head else "head"
    rows = network.make_rows("head", tokens, head, None)
    logits = g.make_batch_matmul("head/logits", x, rows)
    _, best = g.make_top_k("best", logits, 1)
    return g.make_gather("likeliest", tokens, g.make_reshape("best/flat", best, (1,)), 0)


def _make_limited(
    g: Graph, draft: Tensor, fed: Tensor, stops: Sequence[int], vocab_size: int
) -> Tensor:
    """The draft; no token, V, where it ends an answer, or where what it follows is none.

    All are (1,), int32.
    """
    none, one = g.constant("no_token", [vocab_size]), g.constant("one", 1.0)
    number = g.make_cast("limited/number", draft, DType.FLOAT32)
    ends = g.constant("stops", np.asarray(stops, np.float32))
    distance = g.make_sub("limited/distance", number, ends)
    distance = g.make_reduce_min("limited/nearest", g.make_abs("limited/abs", distance))
    goes_on = g.make_greater_equal("limited/goes_on", distance, one)
    draft = g.make_select("limited/open", goes_on, draft, none)
    is_over = g.make_greater_equal("limited/is_over", fed, none)
    return g.make_select("limited", is_over, none, draft)
