"""Perplexity through the engine, distances through the interpreter, and the gate of `--check`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from converter.errors import EngineError, OptionError
from runner.check import QUESTIONS, check, require
from runner.engine import Model
from runner.evaluation import (
    PART,
    TEXT,
    TEXTS,
    compared_passages,
    graph_logits,
    measure_divergence,
    measure_perplexity,
    passages,
    repetition,
    sample,
)
from runner.interpreter import GraphRunner
from tests.edited_bundle import edited_bundle, small_context

PROSE = TEXT.read_text(encoding="utf-8")[:1500]


@pytest.fixture(scope="module")
def smollm2(smollm2_bundle: Path) -> Iterator[Model]:
    with Model(smollm2_bundle, benchmark=True) as model:
        yield model


def test_the_text_is_some_thousand_tokens(smollm2: Model) -> None:
    assert 2500 < len(smollm2.tokenize(TEXT.read_text(encoding="utf-8"))) < 5000


def test_the_mixed_text_has_eight_parts_that_are_compared_alike(smollm2: Model) -> None:
    text = TEXTS.read_text(encoding="utf-8")
    parts = text.split(PART)
    assert len(parts) == 8
    assert 6000 < len(smollm2.tokenize(text)) < 12000
    assert TEXT.read_text(encoding="utf-8").startswith(parts[0])
    found = compared_passages(smollm2, text, 515)
    assert [len(passage) for passage in found] == [65] * 3 + [64] * 5
    start = list(smollm2.start_tokens)
    for part, passage in zip(parts, found, strict=True):
        assert passage == [*start, *smollm2.tokenize(part)][: len(passage)]
    for given, scored in passages(smollm2, text):
        assert any(given + scored in part for part in parts)


def test_passages_go_on_where_the_one_before_ended(smollm2: Model) -> None:
    text = TEXT.read_text(encoding="utf-8")
    found = compared_passages(smollm2, text, 1100)
    assert [len(passage) for passage in found] == [512, 512, 76]
    start = list(smollm2.start_tokens)
    together = [token for passage in found for token in passage[len(start) :]]
    assert together == smollm2.tokenize(text)[: len(together)]
    assert compared_passages(smollm2, text) == found[:1]
    # A text may have fewer.
    assert sum(map(len, compared_passages(smollm2, PROSE, 4000))) < 500


def test_a_new_passage_sees_nothing_of_the_last_one(smollm2_bundle: Path) -> None:
    one, other = [1, 338, 3575], [5, 28, 2078, 12]
    alone = list(graph_logits(smollm2_bundle, other))
    behind = list(graph_logits(smollm2_bundle, one, other))
    np.testing.assert_array_equal(behind[len(one) :], alone)


def test_perplexity_is_that_of_the_logits(smollm2_fp32_bundle: Path) -> None:
    """Fails with an engine that no longer misses a token: then it need not be given twice."""
    with Model(smollm2_fp32_bundle) as model:
        found = measure_perplexity(model, PROSE[:250])
        tokens = model.tokenize(PROSE[:250])
    runner = GraphRunner(smollm2_fp32_bundle, {"decode"})
    likelihoods = []
    for position, token in enumerate(tokens[:-1]):
        logits = runner.decode(token, position).astype(np.float64)
        shifted = logits - logits.max()
        likelihoods.append(shifted[tokens[position + 1]] - math.log(np.exp(shifted).sum()))
    assert 30 < found.tokens < len(tokens)  # the beginning is given, not scored
    expected = math.exp(-np.mean(likelihoods[-found.tokens :]))
    assert found.perplexity == pytest.approx(expected, rel=1e-3)


def test_a_text_longer_than_the_context_is_scored_in_passages(
    smollm2_bundle: Path, tmp_path: Path, smollm2: Model
) -> None:
    small = edited_bundle(smollm2_bundle, tmp_path / "small.litertlm", small_context)
    with Model(small) as opened:
        found = measure_perplexity(opened, PROSE)
    whole = measure_perplexity(smollm2, PROSE)
    assert found.tokens > whole.tokens * 0.8
    assert found.perplexity > whole.perplexity  # it sees less before each token


@pytest.mark.parametrize("text", ["", "  \n", "a"])
def test_too_little_text_is_refused(smollm2: Model, text: str) -> None:
    with pytest.raises(OptionError, match="too little to score"):
        measure_perplexity(smollm2, text)


def test_a_sample_is_measured(smollm2: Model) -> None:
    said = sample(smollm2, PROSE)
    assert len(said.text.split()) > 10
    assert 0 <= said.repetition < 0.5
    assert said.prefill_rate > said.decode_rate > 1


def test_repetition() -> None:
    assert repetition("") == repetition("one two") == 0
    assert repetition("one two three four five") == 0
    assert repetition("again and " * 50) > 0.9


def test_a_bundle_is_no_distance_from_itself(smollm2: Model, smollm2_bundle: Path) -> None:
    [tokens] = compared_passages(smollm2, PROSE, 24)
    found = measure_divergence(smollm2_bundle, graph_logits(smollm2_bundle, tokens), tokens)
    assert (found.kl_mean, found.top1_agreement, found.positions) == (0, 1, 24)


def test_int8_is_near_its_float(
    smollm2: Model, smollm2_bundle: Path, smollm2_fp32_bundle: Path
) -> None:
    [tokens] = compared_passages(smollm2, PROSE, 32)
    reference = graph_logits(smollm2_fp32_bundle, tokens)
    found = measure_divergence(smollm2_bundle, reference, tokens)
    assert 0 < found.kl_mean < 0.2
    assert found.kl_mean < found.kl_max
    assert 0.7 < found.top1_agreement <= 1


# The gate


def test_a_sound_chat_model_passes(smollm2: Model) -> None:
    assert require(smollm2.path, check(smollm2, PROSE)).endswith(
        f"of {len(QUESTIONS)} easy questions answered rightly"
    )


def test_random_weights_fail(qwen3_bundle: Path) -> None:
    with Model(qwen3_bundle) as model:
        assert "answers 0 of 8" in (check(model, PROSE).failure or "")
        with pytest.raises(EngineError, match="the check failed: it answers 0 of 8 easy questions"):
            require(model.path, check(model, PROSE))


def test_a_base_model_reads(gemma3_bundle: Path) -> None:
    with Model(gemma3_bundle) as model:
        assert require(model.path, check(model, PROSE)).startswith("perplexity ")
