"""Products with quantized weights whose inputs are as good as 16 bits.

XNNPACK rounds the input of such a product row by row to 255 steps between its smallest and its
largest value. A few large values make the steps wide for all others, and small models show it.
Here the input is the sum of two rows, each rounded by the engine on its own:

    x (N, in) --+-- coarse: x on the engine's own 255 steps, which it then rounds to themselves --.
                `-- fine: x - coarse, half a step at most, rounded to a 255th of that ------------+
                                       sum (N, out) <-- product (2N, out) <-- terms (2N, in) <----'

Decoding waits for weights, and these are read once for both rows. The products of a prefill are
twice as many.
"""

from __future__ import annotations

from converter.tflite.graph import Graph, Tensor

_STEPS = 255.0
# The least largest value: it keeps the steps of a row of zeros above 0.
_TINY = 1e-30


def make_terms(g: Graph, name: str, x: Tensor) -> Tensor:
    """Coarse rows and then fine ones whose sum is x, (N, in) -> (2N, in).

    Steps are counted from the smallest value, so that the coarse row reaches over 255 of them and
    no rounding makes it 254 or 256: the engine, which measures it again, finds the same steps.
    """
    # As XNNPACK chooses them: 0 is always one of the steps.
    low = g.make_minimum(
        f"{name}/low", g.make_reduce_min(f"{name}/min", x), g.constant("zero", 0.0)
    )
    high = g.make_maximum(
        f"{name}/high", g.make_reduce_max(f"{name}/max", x), g.constant("tiny", _TINY)
    )
    steps = g.constant("steps", _STEPS)
    reach = g.make_sub(f"{name}/reach", high, low)  # (N, 1)
    per_step, step = (
        g.make_div(f"{name}/per_step", steps, reach),
        g.make_div(f"{name}/step", reach, steps),
    )
    first = g.make_round(f"{name}/first", g.make_mul(f"{name}/low/steps", low, per_step))
    above = g.make_mul(f"{name}/above/steps", g.make_sub(f"{name}/above", x, low), per_step)
    counted = g.make_add(f"{name}/counted", g.make_round(f"{name}/rounded", above), first)
    coarse = g.make_mul(f"{name}/coarse", counted, step)
    fine = g.make_sub(f"{name}/fine", x, coarse)
    return g.make_concatenation(f"{name}/terms", (coarse, fine), axis=0)


def add_terms(g: Graph, name: str, product: Tensor) -> Tensor:
    """The product of x from that of its two terms, (2N, out) -> (N, out)."""
    n, width = product.shape[0] // 2, product.shape[1]
    coarse = g.make_slice(f"{name}/coarse", product, (0, 0), (n, width))
    fine = g.make_slice(f"{name}/fine", product, (n, 0), (n, width))
    return g.make_add(name, coarse, fine)
