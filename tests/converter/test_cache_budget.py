"""The longest cache of a budget: the search against looking at every length, and real plans."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter, Plan
from converter.cache_budget import CacheFit, gigabytes, longest_cache
from converter.check import check
from converter.errors import OptionError
from converter.litertlm.inspection import summarise
from converter.litertlm.run_memory import beside_network
from converter.options import ConvertOptions
from converter.tflite.kv_cache import Target
from tests.tiny_models import TINY_CONFIGS, make_checkpoint

LENGTHS = tuple(range(256, 40960 + 1, 256))
BESIDE = beside_network(TINY_CONFIGS["llama"][1]["vocab_size"], False)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget") / "llama"
    make_checkpoint("llama", folder)  # for 4096 tokens
    return folder


def plan_of(folder: Path, **options: Any) -> Plan:
    chosen = ConvertOptions(**{"prefill_lengths": (8,), **options})
    with open_checkpoint(folder) as checkpoint:
        plan = ModelConverter(checkpoint, "tiny", chosen).plan()
        plan.text()  # ends what runs beside it
    return plan


def needed_by(folder: Path, length: int, target: Target = Target.CPU) -> int:
    plan = plan_of(folder, cache_length=length, target=target)
    return summarise(memoryview(plan.model.flatbuffer)).run_memory.total_bytes + BESIDE


@pytest.mark.parametrize(
    ("needed", "most_asked"),
    [
        (lambda n: 600_000 + 230 * n, 5),
        (lambda n: 600_000 + 230 * min(n, 640) + 30 * n, 10),  # rings, as Gemma has them
        (lambda n: 600_000 + 230 * n + 90 * min(n, 2048), 8),  # what a prefill takes by pieces
        (lambda n: 600_000 + 5 * (n // 4096), 40),
        (lambda n: 600_000 + n * n // 100, 40),
    ],
    ids=["straight", "rings", "pieces", "steps", "square"],
)
def test_the_search_finds_what_looking_at_all_finds(
    needed: Callable[[int], int], most_asked: int
) -> None:
    for share in (0, 1, 3, 10, 50, 90, 99, 100, 110):
        budget = needed(256) + (needed(40960) - needed(256)) * share // 100
        asked: list[int] = []

        def counted(length: int, asked: list[int] = asked) -> int:
            asked.append(length)
            return needed(length)

        fit = longest_cache(LENGTHS, budget, counted)
        longest = max(n for n in LENGTHS if needed(n) <= budget)
        assert fit == CacheFit(budget, longest, needed(longest))
        assert len(asked) <= most_asked
    nothing = longest_cache(LENGTHS, needed(256) - 1, needed)
    assert (nothing.kv_cache_length, nothing.fits) == (256, False)


def test_amounts_have_room_for_what_they_name() -> None:
    assert [gigabytes(n) for n in (3 * 10**9, 2_991_000_001, 1, 10**10)] == [
        "3GB", "3GB", "0.01GB", "10GB",
    ]  # fmt: skip


@pytest.mark.parametrize("target", Target)
def test_a_budget_is_filled_and_not_passed(llama: Path, target: Target) -> None:
    budget = needed_by(llama, 1024, target)
    for more, length in ((0, 1024), (-1, 768)):
        plan = plan_of(llama, memory=budget + more, target=target)
        assert plan.cache_length == plan.metadata.message.max_num_tokens == length
        assert plan.memory_fit == CacheFit(budget + more, length, needed_by(llama, length, target))


def test_no_more_than_the_model_was_made_for(llama: Path, tmp_path: Path) -> None:
    assert plan_of(llama, memory=10**12).cache_length == 4096
    for limit, on_gpu in ((1009, 1008), (100, 100)):  # the first is a prime
        folder = tmp_path / str(limit)
        shutil.copytree(llama, folder)
        config = json.loads((folder / "config.json").read_text())
        changed = config | {"max_position_embeddings": limit}
        (folder / "config.json").write_text(json.dumps(changed))
        assert plan_of(folder, memory=10**12).cache_length == limit
        assert plan_of(folder, memory=10**12, target=Target.GPU).cache_length == on_gpu


def test_a_length_beyond_the_budget_is_refused_with_what_fits(llama: Path) -> None:
    budget = needed_by(llama, 1024) + 10_000
    assert plan_of(llama, memory=budget, cache_length=900).cache_length == 900
    with pytest.raises(OptionError) as caught:
        plan_of(llama, memory=budget, cache_length=2000)
    takes, has = gigabytes(needed_by(llama, 2000)), gigabytes(budget)
    assert str(caught.value) == (
        f"--kv-cache-max-len 2000, tiny takes {takes} with it, engine and tokenizer included, and "
        f"--memory says {has}, choose 1024 or less, or --memory {takes}"
    )


def test_a_budget_for_nothing_says_the_least(llama: Path) -> None:
    for wanted, shortest in ((None, 256), (2000, 256), (100, 100)):
        least = gigabytes(needed_by(llama, shortest))
        with pytest.raises(OptionError) as caught:
            plan_of(llama, memory=10_000_000, cache_length=wanted)
        assert str(caught.value) == (
            f"--memory 0.01GB, tiny takes at least {least}: that is with a KV cache of {shortest}, "
            f"the engine and the tokenizer, say --memory {least}, or choose a smaller --quantize"
        )


def test_a_prefill_that_is_asked_for_has_room(llama: Path) -> None:
    budget = needed_by(llama, 300)
    with pytest.raises(OptionError, match=r"at least .* a KV cache of 768"):
        plan_of(llama, memory=budget, prefill_lengths=(600,))


def test_check_tells_of_other_schemes_and_lengths_all_the_same(llama: Path) -> None:
    options = ConvertOptions(memory=needed_by(llama, 1024), prefill_lengths=(8,))
    with open_checkpoint(llama) as checkpoint:
        report = check(checkpoint, "tiny", options, has_text=False)
    assert report.memory_fit is not None
    assert report.memory_fit.kv_cache_length == 1024
    assert [context.kv_cache_length for context in report.memory] == [1024, 1280, 4096]
    [fp32] = [size for size in report.sizes if size.scheme == "fp32"]
    assert fp32.bytes is not None
