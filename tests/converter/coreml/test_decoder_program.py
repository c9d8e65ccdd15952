"""The functions' numbers on Apple's reference semantics, against transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from converter.coreml import decoder_program
from converter.coreml.words import check_words
from converter.decoder import DecoderSpec
from converter.errors import UnsupportedError
from converter.weights.palettes import Palette
from tests.coreml_checks import check_package
from tests.coreml_models import (
    Parts,
    Runtime,
    Values,
    build,
    interface_of,
    palettized,
    read_checkpoint,
)
from tests.numpy_decoder import logits
from tests.tiny_models import TINY_CONFIGS, make_checkpoint, text_logits

CONTEXT, BATCH = 64, 10  # which divides the windows of 40 and 50 that tiny models have
# Greatest errors of logits whose standard deviation is about 1. Nemotron squares activations, and
# stores norms less 1, which rounds them elsewhere.
FLOAT32, FLOAT16, SQUARES = 8e-3, 3e-2, 2e-2
TOKENS = np.random.default_rng(0).integers(3, 250, CONTEXT).tolist()

# What families lack; all others are written.
REFUSED = {
    "apertus": "the activation xIELU",
    "granitemoe": "mixtures of experts",
    "granitemoehybrid-mamba": "Mamba layers",
    "olmoe": "mixtures of experts",
    "lfm2": "short convolutions",
    "lfm2_moe": "short convolutions, mixtures of experts",
    "mixtral": "mixtures of experts",
    "qwen2_moe": "mixtures of experts",
    "qwen3_moe": "mixtures of experts",
    "gpt_oss": "attention sinks, mixtures of experts",
    "gemma3n": "an embedding for each layer",
    "gemma3n_text": "an embedding for each layer",
    "gemma4": "an embedding for each layer",
    "gemma4_text": "an embedding for each layer",
    "falcon_h1": "two mixers in a layer",
    "nemotron_h": "layers of one block, Mamba layers",
    "qwen3_5": "a gated delta net",
    "qwen3_5_text": "a gated delta net",
}
_FIRST = {model_type: test_id for test_id, (model_type, _) in reversed(TINY_CONFIGS.items())}
TAKEN = [
    *(
        _FIRST[model_type]
        for model_type in _FIRST
        if not {model_type, _FIRST[model_type]} & set(REFUSED)
    ),
    "gemma4_text-keys-are-values",
    "lfm2-attention",
    "llama-biases",
    "llama-rope-llama3",
    "llama-tied-mqa",
    "qwen2-rope-yarn",
    "qwen2-window",
]


@dataclass(frozen=True)
class Model:
    """A tiny checkpoint's network and weights, and what transformers says of `TOKENS`."""

    spec: DecoderSpec
    values: Values
    expected: np.ndarray


MakeModel = Callable[[str], Model]


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """By test id."""

    @cache
    def make(test_id: str) -> Model:
        import torch

        folder = tmp_path_factory.mktemp(test_id)
        model = make_checkpoint(test_id, folder)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.half())
        spec, values = read_checkpoint(folder, CONTEXT)
        return Model(spec, values, text_logits(model, TOKENS))

    return make


def parts_of(model: Model, folder: Path, **more: float | bool) -> Parts:
    """In two chunks."""
    return build(folder, model.spec, model.values, interface_of(model.spec, CONTEXT, BATCH, **more))


def compare(found: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    """The logits of the last positions."""
    expected = expected[-len(found) :]
    worst = np.abs(found - expected).max()
    print(f"max |difference| {worst:.2e}, standard deviation {expected.std():.2f}")
    assert worst < tolerance * max(1, expected.std())


@pytest.mark.parametrize("test_id", TAKEN)
def test_a_family(test_id: str, model_of: MakeModel, tmp_path: Path) -> None:
    """Batches, past the window where there is one, then single tokens."""
    model = model_of(test_id)
    interface = interface_of(model.spec, CONTEXT, BATCH)
    parts = build(tmp_path, model.spec, model.values, interface, is_monolithic=True)
    check_package(parts.chunks[0])
    runtime = Runtime(parts)
    exact = SQUARES if test_id == "nemotron" else FLOAT32
    compare(runtime.run(TOKENS, prompt=60), model.expected, exact)
    compare(runtime.run(TOKENS, prompt=60, rounds=True), model.expected, FLOAT16)


@pytest.mark.parametrize("test_id", REFUSED)
def test_a_family_with_other_words_is_refused(test_id: str, model_of: MakeModel) -> None:
    spec = model_of(_FIRST.get(test_id, test_id)).spec
    with pytest.raises(UnsupportedError, match="--target cpu") as caught:
        check_words(spec, CONTEXT)
    assert REFUSED[test_id] in str(caught.value)


def test_every_family_is_taken_or_refused() -> None:
    tried = {TINY_CONFIGS[_FIRST.get(name, name)][0] for name in (*TAKEN, *REFUSED)}
    assert tried == {model_type for model_type, _ in TINY_CONFIGS.values()}


# Forms ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gemma(model_of: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    """Gemma 3: two caches, a window of 40 positions, in parts."""
    return Runtime(parts_of(model_of("gemma3_text"), tmp_path_factory.mktemp("gemma")))


@pytest.mark.parametrize("prompt", [0, 40, 60])
def test_the_window_of_gemma_3(prompt: int, gemma: Runtime, model_of: MakeModel) -> None:
    """Token by token through its end; batches up to it; batches beyond, each of which is causal."""
    compare(gemma.run(TOKENS, prompt), model_of("gemma3_text").expected, FLOAT32)


def test_batches_past_the_window_leave_what_single_tokens_leave(gemma: Runtime) -> None:
    assert np.abs(gemma.run(TOKENS, 60) - gemma.run(TOKENS, 40)[-4:]).max() < 1e-4


@pytest.mark.parametrize("test_id", ["llama", "qwen3-tied-bias"])
def test_parts_are_the_whole(test_id: str, model_of: MakeModel, tmp_path: Path) -> None:
    """Chunks of one conversation, and a head that names the largest logit."""
    model = model_of(test_id)
    parts = parts_of(model, tmp_path / "parts")
    for path in (*parts.chunks, parts.embeddings, parts.head):
        assert path is not None
        check_package(path)
    found = Runtime(parts).run(TOKENS, prompt=50)
    compare(found, model.expected, FLOAT32)
    uneven = parts_of(model, tmp_path / "argmax", argmax=True, head_parts=3)
    assert uneven.interface.head_parts == (107, 107, 106)
    argmax = Runtime(uneven)
    assert argmax.run(TOKENS, prompt=50).tolist() == found.argmax(-1).tolist()


def test_a_cache_longer_than_the_context(model_of: MakeModel, tmp_path: Path) -> None:
    """As ANEMLL has it: at least 256 positions for Qwen, 512 for Llama."""
    model = model_of("llama")
    states = decoder_program.states_of(model.spec, CONTEXT, least_slots=96)
    assert [state.slots for state in states] == [96]
    interface = replace(interface_of(model.spec, CONTEXT, BATCH), states=states)
    runtime = Runtime(build(tmp_path, model.spec, model.values, interface))
    compare(runtime.run(TOKENS, prompt=60), model.expected, FLOAT32)


@pytest.mark.parametrize("num_chunks", [1, 3, 4])
def test_any_number_of_chunks(num_chunks: int, model_of: MakeModel, tmp_path: Path) -> None:
    """The first ones have one layer more; each names all caches, though some use one of them."""
    model = model_of("gemma3_text")
    interface = interface_of(model.spec, CONTEXT, BATCH)
    parts = build(tmp_path, model.spec, model.values, interface, num_chunks=num_chunks)
    for path in parts.chunks:
        check_package(path)
    compare(Runtime(parts).run(TOKENS, prompt=60), model.expected, FLOAT32)


def test_chunks_and_parts_are_all_that_there_is() -> None:
    assert decoder_program.chunks(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert decoder_program.head_parts(262144, 16) == (16384,) * 16
    assert decoder_program.head_parts(128257, 8) == (16033, *(16032,) * 7)


def test_a_conversation_begins_anew(gemma: Runtime) -> None:
    """The same states, whatever was said before."""
    gemma.run(TOKENS[::-1], prompt=60)
    first = gemma.run(TOKENS, prompt=60)
    assert np.array_equal(first, gemma.run(TOKENS, prompt=60))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
def test_palettes(bits: int, model_of: MakeModel, tmp_path: Path) -> None:
    """The network of the weights that were stored."""
    model, palette = model_of("qwen3"), Palette(bits, 8)
    stored = palettized(model.values, palette)
    interface = interface_of(model.spec, CONTEXT, BATCH)
    parts = build(tmp_path, model.spec, model.values, interface, num_chunks=1, palette=palette)
    for path in (*parts.chunks, parts.embeddings, parts.head):
        assert path is not None
        check_package(path)
    found, wanted = Runtime(parts).run(TOKENS, prompt=60), logits(model.spec, stored, TOKENS)
    compare(found, wanted, FLOAT32)
    assert np.abs(wanted - model.expected)[60:].max() > 2 * np.abs(found - wanted[60:]).max()


# The scale of the residual stream ---------------------------------------------------------------


def scaled(spec: DecoderSpec, values: Values, scale: float) -> Values:
    """Weights of what is added to the stream, scaled."""
    names = (
        ("post_norm",) if spec.placement.has_post_norms else ("o", "down", "o.bias", "down.bias")
    )
    return {
        path: rows * np.float32(scale if path.endswith(tuple(f".{name}" for name in names)) else 1)
        for path, rows in values.items()
    }


@pytest.mark.parametrize("test_id", ["gemma3_text", "llama-biases", "starcoder2", "granite"])
def test_a_scaled_stream_is_the_same_network(
    test_id: str, model_of: MakeModel, tmp_path: Path
) -> None:
    """Norms before and after, before alone, of LayerNorm, and with a factor of the family's own."""
    model, scale = model_of(test_id), 0.125
    interface = interface_of(model.spec, CONTEXT, BATCH, residual_scale=scale)
    values = scaled(model.spec, model.values, scale)
    runtime = Runtime(build(tmp_path, model.spec, values, interface))
    compare(runtime.run(TOKENS, prompt=60), model.expected, FLOAT32)
    unscaled = replace(interface, residual_scale=1.0)
    wrong = Runtime(build(tmp_path / "wrong", model.spec, values, unscaled))
    assert np.abs(wrong.run(TOKENS, prompt=60) - model.expected[60:]).max() > 0.1


def test_a_scale_keeps_the_stream_in_float16(model_of: MakeModel, tmp_path: Path) -> None:
    """Beyond 65504 it is infinite, and a norm of that is no number."""
    model = model_of("gemma3_text")
    values = scaled(model.spec, model.values, 2.0**14)
    spec = replace(model.spec, embedding_scale=(model.spec.embedding_scale or 1) * 2.0**10)
    expected = logits(spec, values, TOKENS)
    interface = interface_of(spec, CONTEXT, BATCH)
    with np.errstate(all="ignore"):
        found = Runtime(build(tmp_path / "plain", spec, values, interface)).run(TOKENS, 60, True)
    assert not np.isfinite(found).all()
    scale = 2.0**-10
    interface = interface_of(spec, CONTEXT, BATCH, residual_scale=scale)
    runtime = Runtime(build(tmp_path / "scaled", spec, scaled(spec, values, scale), interface))
    compare(runtime.run(TOKENS, 60, rounds=True), expected, FLOAT16)
