"""What the layers of every kind are built with: norms, projections, activations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from converter.decoder import QUICK_GELU_SLOPE, XIELU_BETA, Activation, Norm, NormKind
from converter.tflite.graph import Model, Tensor, Weight
from converter.tflite.kv_cache import Call
from converter.tflite.two_terms import add_terms, make_terms

WeightOf = Callable[[str], Weight]


class Blocks:
    """Building blocks of one signature.

    Attributes:
        call: the signature, and the inputs that its layers share.
        length: tokens of this call, N.
    """

    def __init__(self, call: Call, weight_of: WeightOf) -> None:
        """
        Args:
            weight_of: the stored form of each weight path in `DecoderSpec.weight_shapes`.
        """
        self.call = call
        self.model: Model = call.model
        self.graph = call.graph
        self.length = call.length
        self.weight_of = weight_of
        self.widened: dict[str, Tensor] = {}
        self.terms: dict[int, Tensor] = {}  # of inputs that several projections share

    def weight(self, path: str) -> Tensor:
        """A weight as it is stored."""
        return self.graph.weight(self.weight_of(path))

    def make_norm(self, name: str, x: Tensor, path: str, norm: Norm) -> Tensor:
        """(x - mean) / sqrt(variance + epsilon) * weight + bias over the last axis; see `Norm`.

        Plain ops: the runtime's own composite was measured slower (runtime-contract.md).
        """
        g = self.graph
        if norm.kind is NormKind.LAYER:
            x = g.make_sub(f"{name}/centred", x, g.make_mean(f"{name}/centre", x))
        mean = g.make_mean(f"{name}/mean", g.make_mul(f"{name}/square", x, x))
        epsilon = g.constant(f"norm/epsilon_{norm.epsilon:g}", norm.epsilon)
        scale = g.make_rsqrt(f"{name}/rsqrt", g.make_add(f"{name}/variance", mean, epsilon))
        x = g.make_mul(f"{name}/normed", x, scale)
        if norm.has_weight:
            x = g.make_mul(f"{name}/weighted", x, self.weight(path))
        if norm.has_bias:
            x = g.make_add(f"{name}/biased", x, self.weight(f"{path}.bias"))
        return x

    def make_part(self, block: str, part: str, biases: Sequence[str], x: Tensor) -> Tensor:
        """One of a block's projections, (N, in) -> (N, out)."""
        path = f"{block}.{part}"
        bias = f"{path}.bias" if part in biases else None
        return self.make_projection(f"{at(block)}/{part}", x, path, bias)

    def make_projection(
        self, name: str, x: Tensor, path: str, bias_path: str | None = None
    ) -> Tensor:
        """x @ weight.T [+ bias], (N, in) -> (N, out)."""
        g = self.graph
        bias = None if bias_path is None else self.weight(bias_path)
        weight = self.weight_of(path)
        if not weight.takes_two_terms:
            return self._multiply(name, x, path, bias)
        if x.index not in self.terms:
            self.terms[x.index] = make_terms(g, f"{name}/input", x)
        products = self._multiply(f"{name}/terms", self.terms[x.index], path, None)
        product = add_terms(g, name, products)
        return product if bias is None else g.make_add(f"{name}/biased", product, bias)

    def _multiply(self, name: str, x: Tensor, path: str, bias: Tensor | None) -> Tensor:
        """x @ weight.T [+ bias], with what the weight lacks, where that is a matrix of its own."""
        g, rest = self.graph, self.weight_of(path).rest
        if rest is None:
            return g.make_fully_connected(name, x, self.matrix(path), bias)
        most = g.make_fully_connected(f"{name}/most", x, self.matrix(path), bias)
        return g.make_add(name, most, g.make_fully_connected(f"{name}/rest", x, g.weight(rest)))

    def matrix(self, path: str) -> Tensor:
        """A matrix to multiply by; some are widened, once per graph."""
        weight = self.weight_of(path)
        tensor = self.graph.weight(weight)
        if not weight.is_widened:
            return tensor
        name = f"{weight.name}/float32"
        if name not in self.widened:
            self.widened[name] = self.graph.make_dequantize(name, tensor)
        return self.widened[name]

    def make_activation(self, block: str, activation: Activation, x: Tensor) -> Tensor:
        """Value by value."""
        g, name = self.graph, at(block)
        if activation is Activation.SILU:
            return g.make_mul(f"{name}/silu", x, g.make_logistic(f"{name}/logistic", x))
        if activation is Activation.QUICK_GELU:
            slope = g.constant("quick_gelu/slope", QUICK_GELU_SLOPE)
            open_ = g.make_logistic(f"{name}/logistic", g.make_mul(f"{name}/steeper", x, slope))
            return g.make_mul(f"{name}/quick_gelu", x, open_)
        if activation is Activation.RELU2:
            positive = g.make_maximum(f"{name}/relu", x, g.constant("relu/zero", 0.0))
            return g.make_mul(f"{name}/relu2", positive, positive)
        if activation is Activation.XIELU:
            return self.make_xielu(block, x)
        return g.make_gelu(f"{name}/gelu", x, activation is Activation.GELU_TANH)

    def make_xielu(self, block: str, x: Tensor) -> Tensor:
        """See `Activation.XIELU`; exp(x) - 1 - x is 0 where x is."""
        g, name = self.graph, f"{at(block)}/xielu"
        zero, one = g.constant("xielu/zero", 0.0), g.constant("xielu/one", 1.0)
        beta = g.constant("xielu/beta", XIELU_BETA)
        slopes = []
        for part in ("alpha_p", "alpha_n"):
            grown = g.make_exp(f"{name}/{part}/exp", self.weight(f"{block}.{part}"))
            above = g.make_add(f"{name}/{part}/above_one", grown, one)
            slopes.append(g.make_log(f"{name}/{part}/softplus", above))
        positive = g.make_maximum(f"{name}/positive", x, zero)
        negative = g.make_minimum(f"{name}/negative", x, zero)
        bent = g.make_sub(f"{name}/expm1", g.make_exp(f"{name}/exp", negative), one)
        bent = g.make_sub(f"{name}/bent", bent, negative)
        slope = g.make_add(f"{name}/slope", slopes[1], beta)
        below = g.make_mul(f"{name}/below", bent, slope)
        square = g.make_mul(f"{name}/square", positive, positive)
        curved = g.make_add(f"{name}/curved", g.make_mul(f"{name}/above", square, slopes[0]), below)
        return g.make_add(name, curved, g.make_mul(f"{name}/straight", x, beta))


def at(path: str) -> str:
    """`layers.0.attention` -> `layers.0/attention`: how tensors of the graph are named."""
    block, _, part = path.rpartition(".")
    return f"{block}/{part}" if block else part
