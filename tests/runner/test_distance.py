"""Figures of every position, and what they say of two models, by hand and by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest

from runner.distance import courses, divergence_of, log_softmax, paired_difference, sign_test

RANDOM = np.random.default_rng(5)
REFERENCE = RANDOM.normal(size=(40, 9))


def test_a_course_is_what_each_position_says() -> None:
    passages = [[3, 1, 4, 1], [5, 2]]
    near, far = (REFERENCE[:6] + spread * RANDOM.normal(size=(6, 9)) for spread in (0.1, 2))
    seen: list[int] = []
    one, other = courses([near, far], REFERENCE[:6], passages, seen.append)
    assert seen == [0, 1, 2, 3, 4, 5]
    expected = [log_softmax(near[p])[token] for p, token in ((0, 1), (1, 4), (2, 1), (4, 2))]
    np.testing.assert_allclose(one.likelihoods, expected)  # none where a passage ends
    for position in range(6):
        truth = np.exp(REFERENCE[position]) / np.exp(REFERENCE[position]).sum()
        ours = np.exp(far[position]) / np.exp(far[position]).sum()
        kl = float((truth * np.log(truth / ours)).sum())
        assert other.divergences[position] == pytest.approx(kl)
        assert other.agreements[position] == (truth.argmax() == ours.argmax())
    assert one.summary().kl_mean < other.summary().kl_mean


def test_without_a_reference_there_are_likelihoods_alone() -> None:
    [course] = courses([REFERENCE[:3]], None, [[0, 1, 2]])
    assert [len(course.likelihoods), len(course.divergences), len(course.agreements)] == [2, 0, 0]


def test_a_divergence_has_its_percentiles() -> None:
    logits = REFERENCE.copy()
    logits[7] = -REFERENCE[7]
    found = divergence_of(logits, REFERENCE)
    assert found.kl_median == 0 < found.kl_mean < found.kl_99 < found.kl_max
    assert found.kl_mean == pytest.approx(found.kl_max / 40)
    # Between the two largest of 40, linearly: 39 * 0.99 = 38.61.
    assert found.kl_99 == pytest.approx(0.61 * found.kl_max)
    assert (found.top1_agreement, found.positions) == (39 / 40, 40)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = []
    for _ in range(200):
        hard = RANDOM.exponential(size=512)  # the same for both, and larger than the difference
        found = paired_difference(hard, hard + RANDOM.normal(0.05, 0.3, 512))
        assert found.low < found.mean < found.high
        held.append(found.low <= 0.05 <= found.high)
    assert 0.88 < np.mean(held) < 0.99


def test_an_interval_knows_that_neighbours_are_alike() -> None:
    independent = RANDOM.normal(size=512)
    alike = np.repeat(RANDOM.normal(size=32), 16)
    zeros = np.zeros(512)
    narrow, wide = paired_difference(zeros, independent), paired_difference(zeros, alike)
    assert wide.high - wide.low > 2.5 * (narrow.high - narrow.low)


def test_what_shows() -> None:
    noise = RANDOM.normal(0, 0.1, 256)
    assert not paired_difference(np.ones(256), np.ones(256)).shows
    assert paired_difference(np.zeros(256), 0.1 + noise).shows
    assert not paired_difference(np.zeros(256), noise - noise.mean()).shows


@pytest.mark.parametrize("together", [0, 1, 2, 9, 30])
def test_the_sign_test_counts_coins(together: int) -> None:
    for first in range(together + 1):
        as_unequal = [
            math.comb(together, heads)
            for heads in range(together + 1)
            if abs(2 * heads - together) >= abs(2 * first - together)
        ]
        expected = sum(as_unequal) / 2**together
        assert sign_test(first, together - first) == pytest.approx(expected)
