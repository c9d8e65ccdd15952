"""What runtimes and the engine do not take is refused, with what they would."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from converter.checkpoint.sources import shown
from converter.coreml.chunks import MIB
from converter.coreml.decoder_program import StateSpec, states_of
from converter.coreml.limits import (
    check_batch,
    check_context,
    check_groups,
    check_package,
    check_prefix,
    check_states,
    notes,
)
from converter.coreml.meta import default_prefix
from converter.errors import LiteRTLMError, OptionError, UnsupportedError
from converter.registry import FAMILIES, family_of
from tests.published_configs import PUBLISHED


def refusal(call: Callable[[], None], kind: type[LiteRTLMError] = OptionError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def state(window: int | None, name: str = "s", slots: int = 4096) -> StateSpec:
    return StateSpec(name, (0,), 1, window or slots, 64, window)


def test_contexts_are_multiples_of_32_up_to_16384() -> None:
    for context in (32, 512, 992, 16384):
        check_context(context, 40960, "tiny")

    assert refusal(lambda: check_context(1000, 40960, "tiny")) == (
        "--context 1000, the Neural Engine takes caches in steps of 32 positions, choose 992 or "
        "1024"
    )
    assert refusal(lambda: check_context(2040, 2047, "tiny")).endswith("choose 2016")
    assert refusal(lambda: check_context(10, 2048, "tiny")).endswith("choose 32")
    assert refusal(lambda: check_context(0, 2048, "tiny")).endswith("choose 32")
    assert refusal(lambda: check_context(16416, 40960, "tiny")) == (
        "--context 16416, the Neural Engine takes tables of at most 16384 positions, choose 16384 "
        "or less"
    )
    assert refusal(lambda: check_context(4096, 2048, "tiny")) == (
        "--context 4096, tiny was made for at most 2048 positions, choose 2048 or less"
    )


def test_batches_are_powers_of_two_within_the_context() -> None:
    for batch in (16, 32, 64, 512):
        check_batch(batch, 512)

    assert refusal(lambda: check_batch(100, 512)) == (
        "--batch 100, it is not 16, 32, 64, .., choose 64 or 128"
    )
    assert refusal(lambda: check_batch(8, 512)).endswith("choose 16 or 32")
    assert refusal(lambda: check_batch(0, 32)).endswith("choose 16 or 32")
    assert refusal(lambda: check_batch(64, 32)) == (
        "--batch 64, it is more than --context 32, choose 32"
    )


def test_a_batch_does_not_lie_across_the_end_of_a_window() -> None:
    check_states([state(512), state(None)], 64, "tiny")

    assert refusal(lambda: check_states([state(96)], 64, "tiny")) == (
        "--batch 64, it does not divide the sliding window of 96, past whose end a batch would be "
        "written, choose 32"
    )
    assert refusal(lambda: check_states([state(100)], 16, "tiny"), UnsupportedError) == (
        "tiny, its sliding window of 100 is no multiple of 32, as the Neural Engine wants of a "
        "cache, choose a --context of at most 96"
    )


def test_there_are_at_most_two_states() -> None:
    three = [state(512, "a"), state(1024, "b"), state(None, "c")]

    assert refusal(lambda: check_states(three, 64, "tiny"), UnsupportedError) == (
        "tiny, its caches have 3 lengths, and more than 2 states fail on the Neural Engine, choose "
        "a --context of at most 512"
    )


def test_a_window_beyond_the_context_is_none() -> None:
    spec = family_of(PUBLISHED["google/gemma-3-1b-it"][0]).spec()

    states = states_of(spec, 512)

    assert [(s.window, s.slots) for s in states] == [(None, 512)]
    check_states(states, 512, "gemma")


def test_groups_divide_the_rows_of_every_matrix() -> None:
    check_groups("--lut2 4,0", 0, {"a": 7})
    check_groups("--lut2 4,8", 8, {"a": 64, "b": 24})

    assert refusal(lambda: check_groups("--lut2 4,8", 8, {"a": 64, "b": 36, "c": 12})) == (
        "--lut2 4,8, groups of 8 do not divide the 36 rows of b, and of 1 others, choose groups of "
        "1, 2, 4 rows, or 0 for one table"
    )


@pytest.mark.parametrize("prefix", ["my-model_2", "q25", *map(default_prefix, FAMILIES)])
def test_prefixes_are_plain_words(prefix: str) -> None:
    check_prefix(prefix)


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("qwen2.5", "it is no plain word"),  # chat.py would replace `.5_lm_head` by `.mlmodelc`
        ("", "it is no plain word"),
        ("a b", "it is no plain word"),
        ("../a", "it is no plain word"),
        ("a*", "it is no plain word"),
        ("25", "it is no plain word"),
        ("No", "it is no plain word"),
        ("my_chunk_1of2", "runtimes look for chunk_ in names of files"),
        ("a_lut4", "runtimes look for _lut in names of files"),
        ("embeddings", "runtimes look for embeddings in names of files"),
    ],
)
def test_prefixes_that_runtimes_take_apart_are_refused(prefix: str, why: str) -> None:
    assert refusal(lambda: check_prefix(prefix)) == (
        f"--prefix {shown(prefix)}, {why}, "
        "choose one of letters, digits, - and _, like qwen or my-model"
    )


def test_one_package_for_all_keeps_the_limit() -> None:
    check_package("tiny", 950 * MIB, 950)

    assert refusal(lambda: check_package("tiny", 950 * MIB + 1, 950)) == (
        "--monolithic, tiny would have 951 MiB, more than --max-chunk-mb 950: the Neural Engine "
        "takes no such package, leave it out, choose fewer bits, or a limit of 951 to try"
    )


def test_what_is_slow_is_a_note() -> None:
    spec = family_of(PUBLISHED["Qwen/Qwen2.5-0.5B-Instruct"][0]).spec()

    assert notes(spec, 512, 64, {"--lut2": 8, "--lut3": 0}, 950 * MIB) == [
        "7 heads share keys: the Neural Engine may leave their repetition to the CPU"
    ]
    found = notes(spec, 4096, 128, {"--lut1": 4}, 950 * MIB + 1, argmax=True, split_rotate=True)
    assert found[:-1] == [
        "a package of 951 MiB: others report that the Neural Engine leaves more than 950 to the "
        "GPU; --chunk auto keeps below",
        "--batch 128: others report that the Neural Engine fails above 64",
        "--lut1: groups of 4 make many tables, which are slow; 8 or more",
        "--argmax: runtimes get the likeliest token alone, and cannot sample",
        "--split-rotate: left out: no runtime reads such files as they are meant, and here all "
        "functions of a part share its weights",
        "--context 4096: every step takes time for all of it, used or not",
    ]
