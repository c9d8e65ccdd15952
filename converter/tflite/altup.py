"""Several residual streams, of which a layer sees one: see `converter.decoder.AltUp`."""

from __future__ import annotations

from collections.abc import Sequence

from converter.decoder import AltUp, Norm
from converter.tflite.blocks import Blocks
from converter.tflite.graph import Tensor

_LEAST = 1e-5  # a mean square that a stream's length is divided by, as in transformers


class AltUpStreams:
    """The streams of one signature, (N, streams, hidden) between layers."""

    def __init__(self, blocks: Blocks, altup: AltUp, norm: Norm) -> None:
        self.blocks = blocks
        self.graph = blocks.graph
        self.altup = altup
        self.norm = norm

    def begin(self, x: Tensor) -> Tensor:
        """The embedding, (N, hidden), as streams."""
        g = self.graph
        length = g.make_sqrt("altup_begin/length", self.make_mean_square("altup_begin/own", x))
        streams = [x]
        for i in range(self.altup.streams - 1):
            projected = self.blocks.make_projection(f"altup_begin/{i}", x, f"altup_begin.{i}")
            streams.append(self.make_as_long(f"altup_begin/{i}", projected, length))
        return self.stack("altup_begin/streams", streams)

    def end(self, streams: Tensor) -> Tensor:
        """The streams as one, (N, hidden)."""
        g, count = self.graph, self.altup.streams
        x = self.one_of("altup_end/first", streams, 0)
        length = g.make_sqrt("altup_end/length", self.make_mean_square("altup_end/own", x))
        for i in range(count - 1):
            name = f"altup_end/{i}"
            other = self.one_of(f"{name}/stream", streams, i + 1)
            projected = self.blocks.make_projection(name, other, f"altup_end.{i}")
            x = g.make_add(f"{name}/sum", x, self.make_as_long(name, projected, length))
        return g.make_mul("altup_end", x, g.constant("altup/share", 1 / count))

    def predict(self, index: int, streams: Tensor) -> Tensor:
        """The streams before a layer."""
        g, n, name = self.graph, self.altup.streams, f"layers.{index}/altup/predict"
        active = self.one_of(f"{name}/active", streams, self.altup.active)
        routed = self.make_routed(index, f"{name}/routed", active)
        factors = self.blocks.make_projection(name, routed, f"layers.{index}.altup.predict")
        factors = g.make_reshape(f"{name}/factors", factors, (self.blocks.length, n, n))
        change = g.make_batch_matmul(f"{name}/change", factors, streams, transposed=False)
        return g.make_add(f"{name}/predicted", streams, change)

    def correct(self, index: int, predicted: Tensor, made: Tensor) -> Tensor:
        """The streams after a layer, which made `made` of the active one."""
        g, name = self.graph, f"layers.{index}/altup/correct"
        n, tokens = self.altup.streams, self.blocks.length
        active = self.one_of(f"{name}/active", predicted, self.altup.active)
        change = g.make_sub(f"{name}/change", made, active)
        change = g.make_reshape(f"{name}/change/one", change, (tokens, 1, change.shape[1]))
        routed = self.make_routed(index, f"{name}/routed", made)
        factors = self.blocks.make_projection(name, routed, f"layers.{index}.altup.correct")
        factors = g.make_add(f"{name}/above_one", factors, g.constant("altup/one", 1.0))
        factors = g.make_reshape(f"{name}/factors", factors, (tokens, n, 1))
        change = g.make_mul(f"{name}/changes", change, factors)
        return g.make_add(f"{name}/corrected", predicted, change)

    def active_of(self, name: str, streams: Tensor) -> Tensor:
        """The stream that a layer sees, (N, hidden)."""
        return self.one_of(f"{name}/altup/active", streams, self.altup.active)

    def output_of(self, index: int, streams: Tensor) -> Tensor:
        """What the per-layer input is gated by, (N, hidden)."""
        name = f"layers.{index}/altup/output"
        x = self.one_of(name, streams, self.altup.active)
        if not self.altup.scales_output:
            return x
        scale = self.blocks.weight(f"layers.{index}.altup.output_scale")
        return self.graph.make_mul(f"{name}/scaled", x, scale)

    def add_to_others(self, index: int, streams: Tensor, update: Tensor) -> Tensor:
        """`update`, (N, hidden), added to all streams but the first."""
        g, name, (tokens, n, hidden) = self.graph, f"layers.{index}/altup/grown", streams.shape
        first = g.make_slice(f"{name}/first", streams, (0, 0, 0), (tokens, 1, hidden))
        others = g.make_slice(f"{name}/others", streams, (0, 1, 0), (tokens, n - 1, hidden))
        update = g.make_reshape(f"{name}/update", update, (tokens, 1, hidden))
        grown = g.make_add(f"{name}/sum", others, update)
        return g.make_concatenation(name, (first, grown), axis=1)

    # Pieces ---------------------------------------------------------------------------------------

    def make_routed(self, index: int, name: str, x: Tensor) -> Tensor:
        """tanh(router(norm(x) / hidden)), (N, hidden) -> (N, streams)."""
        g, block = self.graph, f"layers.{index}.altup"
        normed = self.blocks.make_norm(f"{name}/norm", x, f"{block}.router_norm", self.norm)
        normed = g.make_mul(f"{name}/shrunk", normed, g.constant("altup/shrunk", 1 / x.shape[1]))
        routed = self.blocks.make_projection(f"{name}/router", normed, f"{block}.router")
        return g.make_tanh(name, routed)

    def make_mean_square(self, name: str, x: Tensor) -> Tensor:
        """(N, hidden) -> (N, 1)."""
        return self.graph.make_mean(f"{name}/mean", self.graph.make_mul(f"{name}/square", x, x))

    def make_as_long(self, name: str, x: Tensor, length: Tensor) -> Tensor:
        """x with another root mean square, (N, 1)."""
        g = self.graph
        own = self.make_mean_square(f"{name}/own", x)
        own = g.make_maximum(f"{name}/least", own, g.constant("altup/least", _LEAST))
        factor = g.make_mul(f"{name}/factor", length, g.make_rsqrt(f"{name}/inverse", own))
        return g.make_mul(f"{name}/as_long", x, factor)

    def one_of(self, name: str, streams: Tensor, number: int) -> Tensor:
        """(N, streams, hidden) -> (N, hidden)."""
        tokens, _, hidden = streams.shape
        one = self.graph.make_slice(f"{name}/one", streams, (0, number, 0), (tokens, 1, hidden))
        return self.graph.make_reshape(name, one, (tokens, hidden))

    def stack(self, name: str, streams: Sequence[Tensor]) -> Tensor:
        """(N, hidden) each -> (N, streams, hidden)."""
        g = self.graph
        rows = [
            g.make_reshape(f"{name}/{i}", x, (x.shape[0], 1, x.shape[1]))
            for i, x in enumerate(streams)
        ]
        return g.make_concatenation(name, rows, axis=1)
