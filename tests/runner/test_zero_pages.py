"""Memory of which only zeros are in use."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from converter import kernels
from converter.litertlm.inspection import read_bundle
from litert_lm_cli import convert
from runner import zero_pages
from runner.engine import Model, Sampling
from tests.tiny_models import make_checkpoint

only_linux = pytest.mark.skipif(
    sys.platform != "linux" or not kernels.is_compiled(),
    reason="other systems do not say which memory is whose, and it takes a C compiler",
)
HYBRID = "qwen3_5_text"  # delta nets and attention
PAGE = mmap.PAGESIZE
PAGES = 4096


def in_memory(pages: np.ndarray) -> np.ndarray:
    """Which of these have memory of their own (Linux's pagemap: the highest bit)."""
    with Path("/proc/self/pagemap").open("rb") as file:
        file.seek(pages.ctypes.data // PAGE * 8)
        return np.frombuffer(file.read(len(pages) * 8), np.uint64) >> np.uint64(63) == 1


@only_linux
def test_pages_of_zeros_have_no_memory_and_all_others_stay_as_they_are() -> None:
    room = np.zeros((PAGES + 1) * PAGE, np.uint8)
    begin = -room.ctypes.data % PAGE
    pages = room[begin : begin + PAGES * PAGE].reshape(PAGES, PAGE)
    pages[:] = 0  # now each has memory
    marked = [0, 17, 40, 1023, 1024, 1100, PAGES - 1]
    for i, page in enumerate(marked):  # one byte of it, the first and the last among them
        pages[page, [0, 1, 7, 8, PAGE // 2, PAGE - 8, PAGE - 1][i]] = i + 1
    before = pages.copy()
    assert in_memory(pages).all()
    given = zero_pages.give_back()
    assert given is not None
    kept = in_memory(pages)
    np.testing.assert_array_equal(pages, before)
    assert kept[marked].all()
    # All but rows of fewer than 16, of which two lie between marked ones.
    assert given >= (PAGES - len(marked) - 16) * PAGE
    assert kept.sum() <= len(marked) + 2 * 16
    pages[2000] = 5
    assert (pages[1999:2002].sum(axis=1) == [0, 5 * PAGE, 0]).all()


def test_nothing_is_given_back_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert zero_pages.give_back() is None
    monkeypatch.setattr(kernels, "_compiled", lambda: None)
    assert zero_pages.give_back() is None


@only_linux
def test_a_conversation_goes_on_as_before(smollm2_bundle: Path) -> None:
    """Over turns, and beside another one, which the engine copies caches for."""

    def said(gives_back: bool) -> list[str]:
        texts = []
        with Model(smollm2_bundle, threads=2) as model:
            greedy = Sampling(temperature=0)
            some = [model.conversation(sampling=greedy, max_tokens=12) for _ in range(2)]
            for question in ("Name three animals.", "And three more?", "Which one is largest?"):
                for conversation in some:
                    if gives_back:
                        assert model.give_back_unused()
                    texts.append("".join(piece.text for piece in conversation.ask(question)))
        return texts

    texts = said(True)
    assert texts == said(False)
    assert all(texts)


def test_recurrent_states_count_whole(tmp_path: Path) -> None:
    """Beside caches, which count by their tokens."""
    make_checkpoint(HYBRID, tmp_path / "tiny")
    bundle = convert(
        tmp_path / "tiny", output_dir=tmp_path, quantize="fp32", kv_cache_max_len=64, quiet=True
    )
    model = Model(bundle)
    states = read_bundle(bundle).decode.states
    caches = [one for one in states if one.name.startswith(("kv_cache_k_", "kv_cache_v_"))]
    others = model.state_bytes - sum(one.nbytes for one in caches)
    assert caches
    assert others > 0
    assert {max(one.shape) for one in caches} == {64}
    assert model.held_bytes(16) == others + (model.state_bytes - others) // 4
    assert model.held_bytes(64) == model.held_bytes(100) == model.state_bytes


@only_linux
def test_caches_take_memory_for_what_is_in_them(smollm2_bundle: Path) -> None:
    """`held_bytes` is what a conversation adds to the process, and far less than `state_bytes`."""
    with Model(smollm2_bundle, threads=2) as model:
        assert model.held_bytes(10**6) == model.state_bytes
        some = []
        held = []
        for _ in range(4):
            some.append(model.conversation(sampling=Sampling(temperature=0), max_tokens=4))
            list(some[-1].ask("Say yes."))
            model.give_back_unused()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            held.append(pages * PAGE)
        used = model.held_bytes(64)
        assert used < model.state_bytes / 8
        # The first ones let the engine's own room grow.
        assert held[3] - held[2] < 2 * used + (4 << 20)
