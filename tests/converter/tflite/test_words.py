"""Each word of `converter.decoder` is one switch: the graph against a plain decoder in numpy."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from litert_lm_builder.runtime.proto import executor_metadata_pb2
from safetensors.numpy import save_file

from converter.base import ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.decoder import (
    PER_LAYER_TABLE,
    Activation,
    AltUp,
    Attention,
    DecoderSpec,
    Experts,
    FeedForward,
    GatedDeltaNet,
    LayerSpec,
    Mamba2,
    Mixer,
    Norm,
    NormKind,
    PerLayerInput,
    Placement,
    PositionScale,
    QKNorm,
    Rope,
    Router,
    ShortConv,
)
from converter.families.llama import Llama
from converter.litertlm.bundle import Section, lay_out
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.registry import FAMILIES
from converter.tflite.decoder_graph import build_decoder
from converter.tflite.kv_cache import REWIND, Target
from converter.tflite.writer import write
from converter.weights.calibration import Calibration
from converter.weights.quantization import FLOAT32
from runner.interpreter import GraphRunner
from tests.float_weights import FloatWeights
from tests.numpy_decoder import logits
from tests.stored_weights import stored_matrix
from tests.tiny_models import write_tokenizer

TOLERANCE = 2e-4  # of logits whose standard deviation is about 1
VOCABULARY = 100

RMS = Norm(NormKind.RMS, 1e-6)
ROPE = Rope(10_000.0)
ATTENTION = Attention(num_heads=4, num_kv_heads=2, head_dim=8, scale=0.4, rope=ROPE)
MLP = FeedForward(48, Activation.SILU)


def spec_of(*layers: LayerSpec, **switches: Any) -> DecoderSpec:
    return DecoderSpec(
        VOCABULARY, 32, **{"norm": RMS, "layers": layers, "tied_head": False, **switches}
    )


def alike(attention: Attention = ATTENTION, mlp: FeedForward = MLP) -> tuple[LayerSpec, ...]:
    return (LayerSpec(attention, mlp),) * 2


def mixers(*kinds: Mixer) -> DecoderSpec:
    return spec_of(*(LayerSpec(mixer, MLP) for mixer in kinds))


def attention(**switches: Any) -> DecoderSpec:
    return spec_of(*alike(replace(ATTENTION, **switches)))


def mlp(**switches: Any) -> DecoderSpec:
    return spec_of(*alike(mlp=replace(MLP, **switches)))


def experts(**switches: Any) -> DecoderSpec:
    return spec_of(*(LayerSpec(ATTENTION, replace(EXPERTS, **switches)),) * 2)


def whole(**switches: Any) -> DecoderSpec:
    return spec_of(*alike(), **switches)


LAYER_NORM = Norm(NormKind.LAYER, 1e-5, has_bias=True)
OTHER = replace(ATTENTION, num_heads=6, num_kv_heads=3, head_dim=12)
WIDE = replace(MLP, width=80)
EXPERTS = Experts(replace(MLP, width=24), count=6, active=2)
CONV = ShortConv(3)
LENDER = replace(ATTENTION, rope=Rope(100.0))

DELTA = GatedDeltaNet(
    num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=12, kernel=4, norm=RMS
)

MAMBA = Mamba2(num_heads=4, head_dim=12, groups=2, state_dim=8, kernel=4, norm=RMS)
BESIDE = LayerSpec(ATTENTION, MLP, beside=MAMBA)

PER_LAYER = PerLayerInput(12, VOCABULARY, Activation.GELU_TANH)

PLAIN = whole()
WORDS: dict[str, DecoderSpec] = {
    # Norms
    "layer norm": whole(norm=LAYER_NORM),
    "layer norm without bias": whole(norm=Norm(NormKind.LAYER, 1e-5)),
    "layer norm of nothing learned": whole(norm=Norm(NormKind.LAYER, 1e-5, has_weight=False)),
    "rms norm with bias": whole(norm=replace(RMS, has_bias=True)),
    "rms norm without weight": whole(norm=replace(RMS, has_weight=False)),
    "epsilon": whole(norm=replace(RMS, epsilon=0.5)),
    "norms after": whole(placement=Placement.AFTER),
    "norms before and after": whole(placement=Placement.BOTH),
    "layer norms before and after": whole(placement=Placement.BOTH, norm=LAYER_NORM),
    "parallel blocks": whole(placement=Placement.PARALLEL),
    "parallel blocks with layer norms": whole(placement=Placement.PARALLEL, norm=LAYER_NORM),
    # Factors
    "embedding scale": whole(embedding_scale=3.0),
    "residual scale": whole(residual_scale=0.3),
    "residual scale of parallel blocks": whole(residual_scale=0.3, placement=Placement.PARALLEL),
    "logits scale": whole(logits_scale=0.5),
    "logits softcap": whole(logits_softcap=1.5),
    "logits scale and softcap": whole(logits_scale=0.5, logits_softcap=1.5),
    "tied head": whole(tied_head=True),
    "head bias": whole(head_bias=True, logits_scale=0.5),
    "tied head with bias": whole(tied_head=True, head_bias=True),
    # Positions
    "no rope": attention(rope=None),
    "partial rope": attention(rope=replace(ROPE, width=4)),
    "rope with factors": attention(rope=replace(ROPE, factors=(1.0, 2.0, 3.0, float("inf")))),
    "rope with attention factor": attention(rope=replace(ROPE, width=4, attention_factor=1.4)),
    "rope by layer": mixers(
        ATTENTION,
        replace(ATTENTION, rope=None),
        replace(ATTENTION, rope=Rope(100.0, width=4)),
        replace(ATTENTION, rope=Rope(100.0), sliding_window=9),
    ),
    "position scale": attention(position_scale=PositionScale(0.5, 4)),
    "position scale by layer": mixers(
        replace(ATTENTION, position_scale=PositionScale(0.5, 4)),
        ATTENTION,
        replace(ATTENTION, position_scale=PositionScale(0.2, 3), rope=None),
    ),
    # Attention
    "scale": attention(scale=1.0),
    "one head for all": attention(num_kv_heads=1),
    "heads of their own": attention(num_kv_heads=4),
    "window": attention(sliding_window=9),
    "attention biases": attention(biases=("q", "k", "v", "o")),
    "some attention biases": attention(biases=("q", "v")),
    "q/k norm": attention(qk_norm=QKNorm(RMS)),
    "q/k norm without weight": attention(qk_norm=QKNorm(replace(RMS, has_weight=False))),
    "q/k layer norm": attention(qk_norm=QKNorm(LAYER_NORM)),
    "q/k norm of all heads": attention(qk_norm=QKNorm(RMS, is_full_width=True)),
    "q/k norm after rope": attention(qk_norm=QKNorm(RMS, after_rope=True)),
    "softcap": attention(softcap=0.8),
    "gate": attention(is_gated=True),
    "gate with a bias": attention(is_gated=True, biases=("q", "gate")),
    "sinks": attention(has_sinks=True),
    "sinks, softcap and window": attention(has_sinks=True, softcap=0.8, sliding_window=9),
    "value norm": attention(value_norm=RMS),
    "value norm without weight": attention(value_norm=replace(RMS, has_weight=False)),
    "keys are values": attention(keys_are_values=True, biases=("k",), qk_norm=QKNorm(RMS)),
    "keys are values, with a norm": attention(keys_are_values=True, value_norm=RMS),
    # Short convolutions
    "short convolution": mixers(CONV, CONV),
    "short convolution with biases": mixers(replace(CONV, has_bias=True), CONV),
    "short convolutions of other lengths": mixers(ShortConv(2), ShortConv(7), CONV),
    "short convolutions and attention": mixers(
        CONV, ATTENTION, CONV, replace(ATTENTION, sliding_window=9, qk_norm=QKNorm(RMS)), CONV
    ),
    "short convolutions, norms before and after": replace(
        mixers(CONV, ATTENTION), placement=Placement.BOTH
    ),
    "short convolution of parallel blocks": replace(
        mixers(CONV, ATTENTION), placement=Placement.PARALLEL
    ),
    # Delta net
    "delta net": mixers(DELTA, ATTENTION),
    "delta net alone, with tiled heads": mixers(*[replace(DELTA, is_tiled=True)] * 2),
    "delta nets that differ": mixers(
        replace(DELTA, num_key_heads=4, kernel=2),
        ATTENTION,
        replace(DELTA, num_value_heads=6, norm=replace(RMS, epsilon=0.5)),
    ),
    "delta net of parallel blocks": spec_of(
        LayerSpec(DELTA, MLP), LayerSpec(ATTENTION, MLP), placement=Placement.PARALLEL
    ),
    # State space model
    "mamba": mixers(MAMBA, ATTENTION),
    "mamba of one group, with no bias": mixers(*[replace(MAMBA, groups=1, biases=())] * 2),
    "mamba with every bias": mixers(replace(MAMBA, biases=("gate", "xbc", "dt", "conv", "o"))),
    "mamba gated before its norm or without one": mixers(
        replace(MAMBA, gates_last=True), replace(MAMBA, norm=None), replace(MAMBA, norm_groups=4)
    ),
    "mambas that differ": mixers(
        replace(MAMBA, kernel=2, num_heads=2, groups=2, activation=Activation.GELU),
        ATTENTION,
        replace(MAMBA, head_dim=8, state_dim=20, gates_last=True, norm_groups=2),
    ),
    "mamba with steps in limits": mixers(replace(MAMBA, step_limits=(0.4, 0.9))),
    "mamba of parallel blocks": replace(mixers(MAMBA, ATTENTION), placement=Placement.PARALLEL),
    "attention beside mamba": spec_of(BESIDE, BESIDE),
    "attention beside mamba, then alone": spec_of(
        BESIDE, LayerSpec(ATTENTION, MLP), placement=Placement.BOTH
    ),
    "mamba beside delta net": spec_of(LayerSpec(DELTA, MLP), BESIDE),
    # Feed-forward
    "mlp biases": mlp(biases=("gate", "up", "down")),
    "some mlp biases": mlp(biases=("down",)),
    "gelu": mlp(activation=Activation.GELU),
    "gelu by tanh": mlp(activation=Activation.GELU_TANH),
    "relu2": mlp(activation=Activation.RELU2),
    "xielu": mlp(activation=Activation.XIELU),
    "quick gelu": mlp(activation=Activation.QUICK_GELU),
    "limit": mlp(limit=0.4),
    "limit, offset and biases": mlp(limit=0.6, up_offset=1.0, biases=("gate", "up", "down")),
    "cutoff": mlp(cutoff=0.7, activation=Activation.GELU_TANH),
    "no gate": mlp(is_gated=False),
    "no gate, biases": mlp(is_gated=False, activation=Activation.GELU, biases=("up", "down")),
    "no gate, relu2": mlp(is_gated=False, activation=Activation.RELU2),
    "no gate, xielu": mlp(is_gated=False, activation=Activation.XIELU),
    # Experts
    "experts": experts(),
    "one expert": experts(active=1, renormalises=False),
    "all experts": experts(active=6),
    "experts not renormalised": experts(renormalises=False),
    "experts renormalised with an epsilon": experts(router=Router.SIGMOID, epsilon=0.3),
    "sigmoid router": experts(router=Router.SIGMOID),
    "sigmoid router with a bias for choosing": experts(router=Router.SIGMOID, choice_bias=True),
    "softmax router with a bias for choosing": experts(choice_bias=True),
    "router with bias": experts(router_bias=True),
    "experts with biases": experts(expert=replace(MLP, biases=("gate", "up", "down"))),
    "experts scaled": experts(scale=0.4),
    "experts without gate": experts(expert=replace(MLP, is_gated=False)),
    "shared expert": experts(shared=WIDE),
    "shared expert with a gate": experts(shared=WIDE, shared_is_gated=True),
    "experts with scales": experts(has_scales=True),
    "router with a norm": experts(router_norm=RMS),
    "experts with norms of their own": replace(
        experts(own_norms=RMS, shared=WIDE, router_norm=RMS, has_scales=True),
        placement=Placement.BOTH,
    ),
    "experts after a dense layer": spec_of(
        LayerSpec(ATTENTION, MLP), LayerSpec(CONV, EXPERTS), LayerSpec(ATTENTION, EXPERTS)
    ),
    "experts of parallel blocks": replace(
        experts(), placement=Placement.PARALLEL, residual_scale=0.3
    ),
    "experts, norms after": replace(experts(), placement=Placement.AFTER),
    # Beside the blocks
    "per-layer input": whole(per_layer_input=PER_LAYER, embedding_scale=3.0),
    "per-layer input of fewer tokens": whole(per_layer_input=replace(PER_LAYER, rows=60)),
    "per-layer input of parallel blocks": whole(
        per_layer_input=PER_LAYER, placement=Placement.PARALLEL, has_layer_scales=True
    ),
    "layer scales": whole(has_layer_scales=True),
    "laurel": whole(laurel_rank=6),
    "laurel between norms": whole(laurel_rank=6, placement=Placement.BOTH),
    "streams": whole(altup=AltUp(4)),
    "streams, the second active": whole(altup=AltUp(3, active=1), has_layer_scales=True),
    "streams with per-layer input": whole(altup=AltUp(4), per_layer_input=PER_LAYER),
    "streams without a scaled output": whole(
        altup=AltUp(2, active=1, scales_output=False), per_layer_input=PER_LAYER, laurel_rank=6
    ),
    # Layers that differ
    "other heads by layer": mixers(ATTENTION, OTHER, replace(ATTENTION, num_kv_heads=4)),
    "other heads by layer with sinks and partial rope": mixers(
        *(
            replace(mixer, has_sinks=True, rope=replace(ROPE, width=4))
            for mixer in (ATTENTION, OTHER, ATTENTION)
        )
    ),
    "softcaps and sinks by layer": mixers(
        replace(ATTENTION, softcap=0.8),
        replace(ATTENTION, softcap=0.4),
        replace(ATTENTION, has_sinks=True),
        ATTENTION,
    ),
    "widths by layer": spec_of(
        LayerSpec(ATTENTION, MLP),
        LayerSpec(ATTENTION, WIDE),
        LayerSpec(ATTENTION, replace(WIDE, is_gated=False, activation=Activation.RELU2)),
    ),
    # A prefill ends after the third layer, the last that writes a cache.
    "caches of earlier layers": mixers(
        LENDER,
        replace(ATTENTION, sliding_window=9),
        OTHER,
        replace(LENDER, cache_of=0, num_heads=2, biases=("q", "o")),
        replace(ATTENTION, sliding_window=9, cache_of=1, qk_norm=QKNorm(RMS)),
        replace(OTHER, cache_of=2, is_gated=True, has_sinks=True),
    ),
    "caches of earlier layers, per-layer input": replace(
        mixers(
            LENDER,
            replace(LENDER, cache_of=0, value_norm=RMS),
        ),
        per_layer_input=PER_LAYER,
        has_layer_scales=True,
    ),
    "a cache between those of its own": mixers(
        LENDER, replace(LENDER, cache_of=0), ATTENTION, replace(LENDER, cache_of=0)
    ),
    "gated lender of parallel blocks": spec_of(
        *(
            LayerSpec(mixer, MLP)
            for mixer in (
                replace(LENDER, is_gated=True),
                replace(LENDER, cache_of=0),
                replace(LENDER, cache_of=0),
            )
        ),
        placement=Placement.PARALLEL,
    ),
}


def random_weights(spec: DecoderSpec) -> dict[str, np.ndarray]:
    """The same for a path in every spec, as far as shapes allow."""

    def one(path: str, shape: tuple[int, ...]) -> np.ndarray:
        values = np.random.default_rng(zlib.crc32(path.encode())).standard_normal(shape)
        if len(shape) == 2:
            return values / np.sqrt(shape[1]) * (1 if path in ("embedding", "head") else 1.5)
        if path.endswith(".decay"):
            return -np.exp(values)
        return values * 0.4 + (1 if path.endswith("norm") else 0)

    return {path: one(path, shape).astype(np.float32) for path, shape in spec.weight_shapes()}


def run(
    spec: DecoderSpec,
    weights: dict[str, np.ndarray],
    path: Path,
    target: Target = Target.CPU,
    cache_length: int = 400,
    lengths: Sequence[int] = (8, 32),
    rings: bool = True,
) -> GraphRunner:
    """The graph of a spec, with weights, in the interpreter."""
    shapes = dict(spec.weight_shapes())
    decoder = build_decoder(
        spec,
        lengths,
        cache_length,
        lambda name: FLOAT32.weight(name, shapes[name]),
        target,
        rings,
    )
    layout = write(decoder.model)
    network = bytearray(layout.nbytes)
    network[: len(layout.flatbuffer)] = layout.flatbuffer
    for name, values in weights.items():
        at = layout.offsets[name]
        network[at : at + values.nbytes] = values.tobytes()
    bundle = lay_out([Section("TFLiteModel", len(network), {})], {})
    path.write_bytes(bundle.header.ljust(bundle.offsets[0], b"\0") + network)
    return GraphRunner(path)


def compare(
    runner: GraphRunner,
    tokens: list[int],
    prefills: Sequence[tuple[int, int]],
    expected: np.ndarray,
    tolerance: float = TOLERANCE,
) -> None:
    """Prefill, each (signature, tokens), then decode what is left."""
    at = 0
    for length, count in prefills:
        runner.prefill(length, tokens[at : at + count], start=at)
        at += count
    found = np.stack([runner.decode(tokens[i], i) for i in range(at, len(tokens))])
    worst = np.abs(found - expected[at:]).max()
    print(f"max |difference| {worst:.2e}, standard deviation {expected.std():.2f}")
    assert worst < tolerance * max(1, expected.std())


def some_tokens(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, VOCABULARY, count).tolist()


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("word", WORDS)
def test_a_word_is_what_it_says(word: str, target: Target, tmp_path: Path) -> None:
    """A prefill, a padded one after it, and decodes."""
    spec, tokens = WORDS[word], some_tokens(41)
    weights = random_weights(spec)
    expected = logits(spec, weights, tokens)
    plain = logits(PLAIN, random_weights(PLAIN), tokens)
    assert np.abs(expected - plain)[-4:].max() > 50 * TOLERANCE, "the switch changes nothing"
    compare(run(spec, weights, tmp_path / "m", target), tokens, [(32, 32), (8, 5)], expected)


@pytest.mark.parametrize("word", WORDS)
def test_calibration_leaves_the_network_as_it_is(word: str) -> None:
    spec = WORDS[word]
    weights = random_weights(spec)
    rng = np.random.default_rng(1)
    for path in weights:  # columns of many sizes, so that there is something to scale
        if path.endswith(("norm", "norm.bias", ".v", ".v.bias", ".up", ".up.bias")):
            rows = rng.lognormal(0, 1, len(weights[path])).astype(np.float32)
            weights[path] = (weights[path].T * rows).T
    stream = FloatWeights(weights)
    Calibration(spec, stream).run()
    matrices = {path for path, shape in spec.weight_shapes() if len(shape) == 2}
    assert matrices - stream.stored.keys() <= {"embedding", PER_LAYER_TABLE}
    before = logits(spec, weights, range(20))
    after = logits(spec, weights | stream.stored, range(20))
    assert np.abs(after - before).max() < 1e-9 * np.abs(before).max()
    assert any((factors != 1).any() for factors in stream.factors)


@pytest.mark.parametrize(
    "switches",
    [
        {"has_sinks": True},
        {"has_sinks": True, "softcap": 0.8, "num_kv_heads": 1},
        {"has_sinks": True, "sliding_window": 100},
        {"has_sinks": True, "sliding_window": 2200},
        {"position_scale": PositionScale(0.3, 512), "rope": None},
    ],
)
def test_more_columns_than_are_taken_at_once(switches: dict[str, Any], tmp_path: Path) -> None:
    """A long prompt's softmax is merged from pieces, of which the sinks are one."""
    spec, tokens = attention(**switches), some_tokens(2453)
    weights = random_weights(spec)
    runner = run(spec, weights, tmp_path / "m", cache_length=2600, lengths=(8, 1024))
    prefills = [(1024, 1024), (1024, 1024), (1024, 400)]
    compare(runner, tokens, prefills, logits(spec, weights, tokens))


@pytest.mark.parametrize(
    "word", ["experts with norms of their own", "sigmoid router with a bias for choosing"]
)
def test_more_tokens_than_an_expert_takes_at_once(word: str, tmp_path: Path) -> None:
    """All tokens may take the same experts, or nearly none of them."""
    spec = WORDS[word]
    weights = random_weights(spec)
    tokens = [7] * 80 + some_tokens(20)
    runner = run(spec, weights, tmp_path / "m", lengths=(8, 80))
    compare(runner, tokens, [(80, 80), (8, 8)], logits(spec, weights, tokens))


STATES = ["short convolutions and attention", "short convolutions of other lengths"]


@pytest.mark.parametrize("word", ["sinks, softcap and window", "caches of earlier layers", *STATES])
def test_a_call_longer_than_a_ring_and_than_rows_taken_at_once(word: str, tmp_path: Path) -> None:
    spec, tokens = WORDS[word], some_tokens(640)
    weights = random_weights(spec)
    runner = run(spec, weights, tmp_path / "m", cache_length=800, lengths=(8, 600))
    compare(runner, tokens, [(600, 600), (8, 5), (8, 8)], logits(spec, weights, tokens))


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("word", STATES)
def test_a_rewind_and_a_second_conversation_in_the_same_buffers(
    word: str, target: Target, tmp_path: Path
) -> None:
    """What is taken back may be as long as the engine takes; a new one may follow at any time."""
    spec = WORDS[word]
    weights = random_weights(spec)
    runner = run(spec, weights, tmp_path / "m", target, lengths=(8, 32, 200))
    said = np.random.default_rng(3).integers(0, VOCABULARY, (5, 300)).tolist()

    def go_on(text: list[int], start: int, prefills: Sequence[tuple[int, int]]) -> None:
        """From position `start` on, after what stands there."""
        at = start
        for length, count in prefills:
            runner.prefill(length, text[at : at + count], start=at)
            at += count
        found = np.stack([runner.decode(text[i], i) for i in range(at, len(text))])
        assert np.abs(found - logits(spec, weights, text)[at:]).max() < 5 * TOLERANCE

    go_on(said[0][:70], 0, [(32, 32), (32, 28)])
    again = said[0][:20] + said[1][:31]  # 50 tokens are taken back
    go_on(again, 20, [(32, 19), (8, 5)])
    go_on(said[2][:230], 0, [(200, 200), (8, 3)])  # a second conversation
    far = said[2][: 230 - REWIND] + said[3][:REWIND]
    go_on(far, 230 - REWIND, [(8, 8), (8, 3)])
    go_on(said[4][:3], 0, [(8, 1)])  # a third, no longer than the kernels


@pytest.mark.parametrize("target", Target)
@pytest.mark.parametrize("word", STATES)
def test_long_thoughts_are_taken_back(word: str, target: Target, tmp_path: Path) -> None:
    """What was decoded, from the prompt's end on or a little before it, twice; then some of it."""
    spec = WORDS[word]
    weights = random_weights(spec)
    runner = run(spec, weights, tmp_path / "m", target, 800, (1, 8, 32, 64), rings=False)
    said = np.random.default_rng(3).integers(0, VOCABULARY, (4, 300)).tolist()

    def decode(text: list[int], start: int) -> None:
        found = np.stack([runner.decode(text[i], i) for i in range(start, len(text))])
        assert np.abs(found - logits(spec, weights, text)[start:]).max() < 5 * TOLERANCE

    prompt, thought, answer, other = said
    runner.prefill(64, prompt[:59])
    runner.prefill(1, prompt[59:60], start=59)
    decode(prompt[:60] + thought, 60)
    text = prompt[:57] + answer[:40]  # three tokens of the prompt open the thought
    runner.prefill(32, text[57:89], start=57)
    runner.prefill(8, text[89:95], start=89)
    runner.prefill(1, text[95:96], start=95)
    decode(text + thought, 96)
    text = text[:96] + answer[:5]
    runner.prefill(8, text[96:], start=96)
    decode(text + thought[:150], 101)
    text = text + thought[: 150 - REWIND]  # a shorter way back, into what was decoded
    runner.prefill(8, other[:6], start=len(text))
    decode(text + other[:9], len(text) + 6)
    text = text[:98] + other[:30]  # one token is decoded again, as the engine does for scores
    decode(text, 98)


class SharingLlama(Llama):
    """Its second layer looks at what the first one wrote, and so does the last."""

    def layers(self) -> tuple[LayerSpec, ...]:
        own, *_ = super().layers()
        borrowed = replace(own, mixer=replace(own.mixer, cache_of=0))
        return own, borrowed, own, borrowed


@pytest.mark.parametrize("scheme", ["fp32", "dynamic_int8", "dynamic_int4"])
def test_a_layer_without_a_cache_has_no_keys_and_values(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole pipeline: neither in the checkpoint nor in what the engine is told."""
    monkeypatch.setitem(FAMILIES, "llama", SharingLlama)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4}
    config = {"model_type": "llama", "vocab_size": 320, "num_hidden_layers": 4, **sizes}
    family = SharingLlama.from_config(config)
    weights = random_weights(family.spec())
    names = {
        path.replace("{i}", str(layer)): name.replace("{i}", str(layer))
        for path, name, _ in family.names
        for layer in range(4)
    }
    save_file(
        {names[path]: values for path, values in weights.items()}, tmp_path / "model.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    write_tokenizer(tmp_path)
    with open_folder(tmp_path) as checkpoint:
        options = ConvertOptions(scheme, prefill_lengths=(8, 32), cache_length=64)
        plan = ModelConverter(checkpoint, "tiny", options).convert(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    section = read_bundle(tmp_path / "m").section("ExecutorMetadataProto")
    assert section is not None
    metadata = content[section.offset : section.offset + section.nbytes]
    told = executor_metadata_pb2.ExecutorMetadata.FromString(metadata).llm_executor_metadata
    names_of_caches = [buffer.prefill_input_name for buffer in told.state_buffers]
    assert names_of_caches == [f"kv_cache_{part}_{layer}" for layer in (0, 2) for part in "kv"]

    stored = {
        weight.path: stored_matrix(content, plan, weight)
        if len(weight.shape) > 1
        else np.frombuffer(content, np.float32, weight.shape[0], weight.offset)
        for weight in plan.weights
    }
    tokens = some_tokens(41)
    expected = logits(plan.spec, stored, tokens)
    tolerance = TOLERANCE if scheme == "fp32" else 0.4  # activations are rounded, too
    compare(GraphRunner(tmp_path / "m"), tokens, [(32, 32), (8, 5)], expected, tolerance)
