"""The emitted graph against transformers: every family and target, through the whole pipeline, in
float32."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from converter.base import ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.decoder import GatedDeltaNet, Mamba2
from converter.litertlm.inspection import read_bundle
from converter.options import PREFILL_LADDER, ConvertOptions
from converter.registry import FAMILIES, family_of
from converter.tflite import attention
from converter.tflite.kv_cache import REWIND, RING_SLACK, CacheShape, Target, cache_shape
from runner.interpreter import GraphRunner
from tests.tiny_models import TINY_CONFIGS, WITH_EXPERTS, make_checkpoint, text_logits

TOLERANCE = 1e-3  # of logits whose standard deviation is about 1
CACHE_LENGTH = 1280
DECODE_STEPS = 16


Case = tuple[Path, list[int], np.ndarray]


# Experts are not for GPUs.
PAIRS = [
    (test_id, target)
    for test_id in TINY_CONFIGS
    for target in Target
    if target is Target.CPU or test_id not in WITH_EXPERTS
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every tiny model, on every target where a test is about one."""
    if {"checkpoint", "target"} <= {*metafunc.fixturenames}:
        ids = [f"{test_id}-{target}" for test_id, target in PAIRS]
        fixtures = ("checkpoint", "target")
        metafunc.parametrize(fixtures, PAIRS, indirect=True, ids=ids, scope="module")
    elif "checkpoint" in metafunc.fixturenames:
        metafunc.parametrize("checkpoint", TINY_CONFIGS, indirect=True, scope="module")


@pytest.fixture(scope="module")
def target(request: pytest.FixtureRequest) -> Target:
    found: Target = request.param
    return found


@pytest.fixture(scope="module")
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[int], np.ndarray]:
    """(folder, tokens, transformers' logits of every position)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_checkpoint(request.param, folder)
    count = CACHE_LENGTH
    tokens = np.random.default_rng(0).integers(0, 256, count).tolist()
    return folder, tokens, text_logits(model, tokens)


def _convert(folder: Path, bundle: Path, target: Target, cache_length: int) -> None:
    options = ConvertOptions(quantize="fp32", cache_length=cache_length, target=target)
    with open_folder(folder) as opened:
        ModelConverter(opened, "tiny", options).convert(bundle)


@pytest.fixture(scope="module")
def case(target: Target, checkpoint: Case, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """(bundle, tokens, transformers' logits of every position)."""
    folder, tokens, expected = checkpoint
    bundle = tmp_path_factory.mktemp("bundle") / "model.litertlm"
    _convert(folder, bundle, target, CACHE_LENGTH)
    return bundle, tokens, expected


def _compare(
    runner: GraphRunner,
    tokens: list[int],
    start: int,
    expected: np.ndarray,
    steps: int = DECODE_STEPS,
) -> None:
    """Feed the true tokens one by one from `start` on, and compare all logits."""
    differences = []
    for position in range(start, start + steps):
        logits = runner.decode(tokens[position], position)
        differences.append(np.abs(logits - expected[position]))
        # Of two that are as likely as each other, either is right.
        chosen = expected[position][logits.argmax()]
        assert chosen >= expected[position].max() - 1e-5, f"position {position}"
    worst, mean = np.max(differences), np.mean(differences)
    print(f"max |difference| {worst:.2e}, mean {mean:.2e}")
    assert worst <= TOLERANCE


def test_every_registered_family_is_in_the_table() -> None:
    assert {model_type for model_type, _ in TINY_CONFIGS.values()} == set(FAMILIES)


def test_logits_have_a_scale_of_one(case: Case) -> None:
    """The tolerance means nothing otherwise."""
    assert 0.5 < case[2].std() < 2.5


@pytest.mark.parametrize("length", PREFILL_LADDER)
def test_prefill_then_decode(case: Case, length: int) -> None:
    bundle, tokens, expected = case
    runner = GraphRunner(bundle)
    _compare(runner, tokens, _prefill(runner, tokens, 0, [length]), expected)


def _prefill(runner: GraphRunner, tokens: list[int], start: int, chunks: Sequence[int]) -> int:
    """Feed chunks, each padded to the shortest signature that holds it; the next position.

    What no signature holds is fed in pieces.
    """
    longest = runner.prefill_lengths[-1]
    for count in (min(longest, n - at) for n in chunks for at in range(0, n, longest)):
        length = min(n for n in runner.prefill_lengths if n >= count)
        runner.prefill(length, tokens[start : start + count], start=start)
        start += count
    return start


@pytest.mark.parametrize(
    "chunks",
    [
        (64, 64),
        (128, 8),
        (64, 37),
        (3, 3, 3, 64, 7),  # padding at nearly every position of a ring
        (100, 200, 128, 128, 256, 30),  # past the windows and the rings, and several levels
        (256, 256, 256, 250),
        (1024, 128, 100),
    ],
)
def test_prefill_in_chunks(case: Case, chunks: tuple[int, ...]) -> None:
    """A chunk sees those before it; one that does not fill its signature is padded."""
    bundle, tokens, expected = case
    runner = GraphRunner(bundle)
    _compare(runner, tokens, _prefill(runner, tokens, 0, chunks), expected)


@pytest.mark.parametrize("chunks", [(300, 600, 100), (1024, 200, 40), (1000, 270, 2)])
def test_padding_beyond_the_end_of_the_cache(
    checkpoint: Case, tmp_path: Path, chunks: tuple[int, ...]
) -> None:
    """The runtime moves a block that does not fit over keys that are in use."""
    folder, tokens, expected = checkpoint
    _convert(folder, tmp_path / "m", Target.CPU, CACHE_LENGTH)
    runner = GraphRunner(tmp_path / "m")
    position = _prefill(runner, tokens, 0, chunks)
    _compare(runner, tokens, position, expected, steps=min(DECODE_STEPS, CACHE_LENGTH - position))


def test_turns_up_to_the_last_slot(case: Case) -> None:
    """Prefills and decodes in turn, until the cache is full."""
    bundle, tokens, expected = case
    runner = GraphRunner(bundle)
    position = 0
    for count in (50, 120, 300, 60, 512):
        position = _prefill(runner, tokens, position, [count])
        _compare(runner, tokens, position, expected, steps=20)
        position += 20
    _compare(runner, tokens, position, expected, steps=CACHE_LENGTH - position)


@pytest.mark.parametrize("cache_length", [48, 150, 600])
def test_caches_about_as_long_as_the_windows(
    checkpoint: Case, tmp_path: Path, cache_length: int
) -> None:
    folder, tokens, expected = checkpoint
    _convert(folder, tmp_path / "m", Target.CPU, cache_length)
    runner = GraphRunner(tmp_path / "m")
    position = _prefill(runner, tokens, 0, (8, 5))
    _compare(runner, tokens, position, expected)
    position = _prefill(runner, tokens, position + DECODE_STEPS, (cache_length // 8,))
    _compare(runner, tokens, position, expected, steps=min(60, cache_length - position))


def test_what_the_engine_takes_back_is_still_seen(checkpoint: Case, tmp_path: Path) -> None:
    """It rewinds over thoughts; a ring has more slots than its window for this.

    Of a memory nothing can be taken back: after thoughts `run` begins anew.
    """
    folder, tokens, expected = checkpoint
    layers = family_of(json.loads((folder / "config.json").read_text())).spec().layers
    remembers = any(
        isinstance(mixer, GatedDeltaNet | Mamba2) for layer in layers for mixer in layer.mixers
    )
    _convert(folder, tmp_path / "m", Target.CPU, CACHE_LENGTH)
    runner = GraphRunner(tmp_path / "m")
    position = _prefill(runner, tokens, 0, (256,))
    _prefill(runner, [*tokens[:position], *[7] * REWIND], position, (REWIND,))
    if remembers:
        position = _prefill(runner, tokens, 0, (256,))
    position = _prefill(runner, tokens, position, (30,))
    _compare(runner, tokens, position, expected)


def test_decode_alone(case: Case) -> None:
    bundle, tokens, expected = case
    _compare(GraphRunner(bundle), tokens, 0, expected)


def test_cache_shapes() -> None:
    ring = 512 + RING_SLACK
    cpu, gpu = Target.CPU, Target.GPU
    assert cache_shape(None, 1280, cpu, True) == CacheShape(1280)
    assert cache_shape(512, 1280, cpu, True) == CacheShape(ring, 512, is_ring=True)
    assert cache_shape(512, 1280, cpu, False) == CacheShape(1280, 512)
    assert cache_shape(512, ring, cpu, True) == CacheShape(ring, 512)
    assert cache_shape(512, 512, cpu, True) == CacheShape(512)
    assert cache_shape(512, 1280, gpu, True) == CacheShape(1280, 512, v_axis=3)


@pytest.mark.parametrize(
    ("test_id", "target", "slots"),
    [
        ("gemma3_text", Target.CPU, {40 + RING_SLACK, CACHE_LENGTH}),
        ("gemma3_text", Target.GPU, {CACHE_LENGTH}),
        ("qwen2-window", Target.CPU, {CACHE_LENGTH}),  # R1-Distill is of this family, and thinks
    ],
)
def test_rings_are_for_models_whose_thoughts_are_not_taken_back(
    tmp_path: Path, test_id: str, target: Target, slots: set[int]
) -> None:
    make_checkpoint(test_id, tmp_path / "checkpoint")
    _convert(tmp_path / "checkpoint", tmp_path / "m", target, CACHE_LENGTH)
    bundle = read_bundle(tmp_path / "m")
    decode = next(s for s in bundle.model.signatures if s.name == "decode")
    assert {t.shape[2] for t in decode.inputs if t.name.startswith("kv_cache_k_")} == slots


@pytest.mark.parametrize("test_id", ["llama", "gpt_oss"])
def test_keys_that_no_processor_s_cache_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test_id: str
) -> None:
    """Those of a large cache are cut in pieces even where all are read."""
    model = make_checkpoint(test_id, tmp_path / "checkpoint")
    tokens = np.random.default_rng(0).integers(0, 256, 640).tolist()
    expected = text_logits(model, tokens)
    _convert(tmp_path / "checkpoint", tmp_path / "small", Target.CPU, cache_length=640)
    monkeypatch.setattr(attention, "_LARGE_BYTES", 1)
    _convert(tmp_path / "checkpoint", tmp_path / "large", Target.CPU, cache_length=640)
    assert (tmp_path / "small").read_bytes() != (tmp_path / "large").read_bytes()
    runner = GraphRunner(tmp_path / "large")
    position = _prefill(runner, tokens, 0, (300, 324))
    _compare(runner, tokens, position, expected)


@pytest.mark.parametrize("test_id", ["gemma3_text", "qwen2-window"])
def test_so_many_columns_that_a_prefill_takes_them_by_pieces(tmp_path: Path, test_id: str) -> None:
    model = make_checkpoint(test_id, tmp_path / "checkpoint")
    tokens = np.random.default_rng(0).integers(0, 256, 2500).tolist()
    expected = text_logits(model, tokens)
    _convert(tmp_path / "checkpoint", tmp_path / "m", Target.CPU, cache_length=2600)
    runner = GraphRunner(tmp_path / "m")
    position = _prefill(runner, tokens, 0, (1024, 1024, 300, 77))
    _compare(runner, tokens, position, expected)


def test_a_mask_is_asked_for_where_it_is_needed(
    checkpoint: Case, tmp_path: Path, target: Target
) -> None:
    """The runtime would fill it for every slot, used or not."""
    masks = 1 if target is Target.GPU else 0
    _convert(checkpoint[0], tmp_path / "m", target, CACHE_LENGTH)
    for signature in read_bundle(tmp_path / "m").model.signatures:
        assert [t.name for t in signature.inputs].count("mask") == masks
