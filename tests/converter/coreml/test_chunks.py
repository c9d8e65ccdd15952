"""ANEMLL's calculator, what exact bytes make of it, and how a head is cut."""

from __future__ import annotations

import pytest

from converter.coreml.chunks import (
    MIB,
    MOST_ROWS,
    figures,
    layer_bytes,
    settle_chunks,
    settle_head,
)
from converter.errors import OptionError
from converter.registry import family_of
from tests.published_configs import PUBLISHED


def layers_of(model: str) -> list[int]:
    return layer_bytes(family_of(PUBLISHED[model][0]).spec())


# Layers -----------------------------------------------------------------------------------------


def test_layers_are_counted_in_float16_with_their_norms() -> None:
    sizes = layers_of("Qwen/Qwen3-0.6B")

    q, kv, mlp, norms = 2048 * 1024 * 2, 1024 * 1024 * 2, 3 * 3072 * 1024, 2 * 1024 + 2 * 128
    assert sizes == [2 * (q + kv + mlp + norms)] * 28


def test_the_calculator_ends_at_the_first_count_that_fits() -> None:
    sizes = layers_of("deepseek-ai/DeepSeek-R1-Distill-Llama-8B")
    layer = sizes[0]

    found = list(figures(sizes, 4, 950))

    # 32 layers in 1, 2, 3, .. chunks: the first ones have one more.
    assert [(f.count, f.layers) for f in found] == [(1, 32), (2, 16), (3, 11), (4, 8)]
    assert [f.nbytes for f in found] == [int(n * layer * (4 / 16) * 1.10) for n in (32, 16, 11, 8)]
    assert [f.nbytes <= 950 * MIB for f in found] == [False, False, False, True]
    assert str(found[-1]) == "4 chunks: 8 layers, about 915 MiB"


def test_auto_goes_on_where_packages_are_larger_than_the_estimate() -> None:
    sizes = [100 * MIB] * 6

    def exact(which: range) -> int:
        return len(which) * 60 * MIB

    assert settle_chunks(None, sizes, 8, 120, exact) == [range(2), range(2, 4), range(4, 6)]
    assert len(settle_chunks(None, sizes, 8, 119, exact)) == 6


def test_auto_refuses_a_limit_that_one_layer_does_not_keep() -> None:
    with pytest.raises(OptionError) as caught:
        settle_chunks(None, [MIB] * 2, 16, 9, lambda which: len(which) * 10 * MIB - 1)

    assert str(caught.value) == (
        "--max-chunk-mb 9, a package of one layer has 10 MiB, choose 10 or more"
    )


def test_chunks_by_hand_are_held_against_their_exact_bytes() -> None:
    sizes = [MIB] * 7

    def exact(which: range) -> int:
        return len(which) * 100 * MIB

    assert list(map(len, settle_chunks(3, sizes, 4, 300, exact))) == [3, 2, 2]
    with pytest.raises(OptionError) as caught:
        settle_chunks(2, sizes, 4, 300, exact)
    assert str(caught.value) == (
        "--chunk 2, the largest package has 400 MiB, more than --max-chunk-mb 300, choose "
        "--chunk 3, --chunk auto or a limit of 400"
    )


def test_chunks_by_hand_keep_no_limit_that_nobody_set() -> None:
    def exact(which: range) -> int:
        return len(which) * 500 * MIB

    assert list(map(len, settle_chunks(2, [MIB] * 7, 4, None, exact))) == [4, 3]
    # The calculator's own limit is for auto.
    assert list(map(len, settle_chunks(None, [MIB] * 7, 4, None, exact))) == [1] * 7


def test_there_are_at_most_as_many_chunks_as_layers() -> None:
    assert settle_chunks(2, [MIB], 4, 950, lambda _: MIB) == [range(1)]  # 2 is the default
    with pytest.raises(OptionError, match="--chunk 5, the network has 4 layers, choose 4 or fewer"):
        settle_chunks(5, [MIB] * 4, 4, 950, lambda _: MIB)


# Head -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocab_size", "usual", "group", "parts"),
    [
        (151936, 16, 8, (16, 9496)),  # Qwen
        (128256, 8, 8, (8, 16032)),  # Llama
        (262144, 16, 8, (16, 16384)),  # Gemma 3 1B just fits
        (262208, 16, 8, (17, 15424)),  # Gemma 3 4B: ANEMLL's 16388 is too wide for the engine
        (49155, 8, None, (5, 9831)),
        (49155, 16, 29, (15, 3277)),
        (49152, 8, 0, (8, 6144)),
        (300, 16, 4, (15, 20)),  # as near as can be
    ],
)
def test_parts_have_one_size(
    vocab_size: int, usual: int, group: int | None, parts: tuple[int, int]
) -> None:
    count, size = parts

    assert settle_head(vocab_size, usual, group, argmax=False) == (size,) * count


@pytest.mark.parametrize(
    ("vocab_size", "group"), [(151936, 16), (262208, 32), (128256, 96), (128257, None), (50257, 29)]
)
def test_argmax_takes_parts_that_differ_by_a_group(vocab_size: int, group: int | None) -> None:
    parts = settle_head(vocab_size, 16, group, argmax=True)

    assert sum(parts) == vocab_size
    assert max(parts) - min(parts) in (0, group or 1)
    assert max(parts) <= MOST_ROWS
    assert not any(n % (group or 1) for n in parts)


@pytest.mark.parametrize(
    ("vocab_size", "group", "argmax", "message"),
    [
        (
            151936,
            16,
            False,
            "--lut3, groups of 16 do not divide the head's 151936 rows, cut into parts of one "
            "size, choose a group of 2 or 4 or 8, or 0 for a table per part, or --argmax",
        ),
        (
            128257,
            8,
            True,
            "--lut3, groups of 8 do not divide the head's 128257 rows, choose a group of 1, or 0 "
            "for a table per part",
        ),
        (
            262144,
            262144,
            False,
            "--lut3, a part of the head has at most 16384 rows, choose a group of 16 or 32 or 64, "
            "or 0 for a table per part",
        ),
        (
            50261,  # a prime
            None,
            False,
            "a head of 50261 rows, no 128 or fewer parts of one size have at most 16384 rows each, "
            "and runtimes that choose among all tokens need one size, add --argmax, with which "
            "they are greedy",
        ),
    ],
)
def test_a_head_that_cannot_be_cut_is_refused(
    vocab_size: int, group: int | None, argmax: bool, message: str
) -> None:
    with pytest.raises(OptionError) as caught:
        settle_head(vocab_size, 16, group, argmax)

    assert str(caught.value) == message
