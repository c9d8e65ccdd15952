"""The engine behind `runner.engine`: real bundles, real runs."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import EngineError, OptionError, SourceError
from converter.options import ConvertOptions
from converter.tflite.kv_cache import Target
from runner.conversation import Conversation
from runner.engine import Model, Sampling
from runner.native_log import find_reason
from tests.edited_bundle import always_thinks, completes_text, edited_bundle, small_context

GREEDY = Sampling(temperature=0)
QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def smollm2(smollm2_bundle: Path) -> Iterator[Model]:
    with Model(smollm2_bundle, benchmark=True) as model:
        yield model


@pytest.fixture(scope="module")
def qwen3(qwen3_bundle: Path) -> Iterator[Model]:
    with Model(qwen3_bundle, benchmark=True) as model:
        yield model


@pytest.fixture(scope="module")
def thinker(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("thinker")
    path = edited_bundle(smollm2_bundle, folder / "thinker.litertlm", always_thinks)
    with Model(path, benchmark=True) as model:
        yield model
    shutil.rmtree(folder)


def say(conversation: Conversation, prompt: str, kind: str = "answer") -> str:
    return "".join(piece.text for piece in conversation.ask(prompt) if piece.kind == kind)


def prefill_tokens(conversation: Conversation) -> int:
    assert conversation.statistics is not None
    return conversation.statistics.prefill_tokens


# What the bundle says


def test_describes_a_chat_model(smollm2: Model) -> None:
    assert smollm2.context_length == 1280
    assert smollm2.is_chat
    assert not smollm2.supports_thinking
    assert not smollm2.has_thoughts
    assert not smollm2.has_recurrent_state


def test_describes_a_thinking_model(qwen3: Model) -> None:
    assert qwen3.is_chat
    assert qwen3.supports_thinking
    assert qwen3.has_thoughts


def test_takes_the_context_from_the_mask_where_the_metadata_is_silent(
    qwen3_bundle: Path, tmp_path: Path
) -> None:
    """Other programs' bundles may be silent, and ours for a GPU have a mask as theirs do."""
    plain = tmp_path / "plain.litertlm"
    with open_checkpoint(qwen3_bundle.with_suffix("")) as opened:
        ModelConverter(opened, "tiny", ConvertOptions(target=Target.GPU)).convert(plain)

    def forget(metadata: Any) -> None:
        metadata.ClearField("max_num_tokens")

    silent = edited_bundle(plain, tmp_path / "silent.litertlm", forget)
    assert Model(silent).context_length == Model(plain).context_length == 1280


def test_leaves_nothing_beside_the_model(qwen3_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.litertlm"
    shutil.copyfile(qwen3_bundle, path)
    with Model(path) as model:
        say(model.conversation(max_tokens=1), "Hi")
    assert list(tmp_path.iterdir()) == [path]


# Answers and history


def test_counts_the_tokens_of_an_answer(smollm2: Model) -> None:
    conversation = smollm2.conversation(sampling=GREEDY, max_tokens=5)
    pieces = list(conversation.ask("Tell me a long story."))
    assert [piece.kind for piece in pieces] == ["answer"] * 5
    assert conversation.finish == "length"
    statistics = conversation.statistics
    assert statistics is not None
    assert statistics.decode_tokens == 5
    assert statistics.prefill_tokens == len(
        smollm2.tokenize(
            "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
            "Face<|im_end|>\n<|im_start|>user\nTell me a long story.<|im_end|>\n"
            "<|im_start|>assistant\n"
        )
    )
    assert statistics.prefill_rate > 0
    assert statistics.decode_rate > 0
    assert 0 < statistics.first_token_seconds < 60


def test_an_answer_that_ends_by_itself(smollm2: Model) -> None:
    conversation = smollm2.conversation(sampling=GREEDY)
    assert say(conversation, "Say hi.")
    assert conversation.finish == "stop"


def test_the_second_turn_adds_to_the_first(smollm2: Model) -> None:
    conversation = smollm2.conversation(sampling=GREEDY)
    say(conversation, "Say hi.")
    first = prefill_tokens(conversation)
    say(conversation, "Say hi.")
    assert prefill_tokens(conversation) < first  # the system line and the history are there


@pytest.mark.parametrize("max_tokens", [4, None])
def test_history_survives_a_cut_answer(smollm2: Model, max_tokens: int | None) -> None:
    fresh = smollm2.conversation(sampling=GREEDY, max_tokens=1)
    say(fresh, "What is my name?")
    conversation = smollm2.conversation(sampling=GREEDY, max_tokens=max_tokens)
    with contextlib.closing(conversation.ask("My name is Bob. Tell me a story.")) as pieces:
        said = [next(pieces).text for _ in range(4)]
        if max_tokens:
            assert list(pieces) == []
    assert conversation.finish == ("length" if max_tokens else "cancelled")
    assert say(conversation, "What is my name?")
    turn = "My name is Bob. Tell me a story.<|im_end|>\n<|im_start|>assistant\n" + "".join(said)
    turn += "<|im_end|>\n<|im_start|>user\n"
    assert prefill_tokens(conversation) == prefill_tokens(fresh) + len(smollm2.tokenize(turn))


def test_cancel_from_another_thread(smollm2: Model) -> None:
    conversation = smollm2.conversation(sampling=GREEDY)
    pieces = conversation.ask("Tell me a long story.")
    next(pieces)
    threading.Timer(0.2, conversation.cancel).start()
    begin = time.monotonic()
    assert len(list(pieces)) < 200
    assert time.monotonic() - begin < 20
    assert conversation.finish == "cancelled"
    assert say(conversation, "Say hi.")


_CANCELLED_WHILE_CLOSED = """
import sys, threading
from pathlib import Path
from runner.engine import Model

with Model(Path(sys.argv[1])) as model:
    for _ in range(10):
        conversation = model.conversation(max_tokens=4)
        is_closed = threading.Event()

        def cancel():
            while not is_closed.is_set():
                conversation.cancel()

        thread = threading.Thread(target=cancel)
        pieces = conversation.ask("Hi")
        next(pieces, None)
        thread.start()
        pieces.close()
        conversation.close()
        is_closed.set()
        thread.join()
"""


def test_a_conversation_that_is_closed_while_others_cancel_it(smollm2_bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CANCELLED_WHILE_CLOSED, smollm2_bundle],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.DEVNULL,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0  # a segmentation fault, once


def test_the_system_message_is_in_the_prompt(smollm2: Model) -> None:
    said = []
    for system in (None, "Be brief.", "Be brief. " * 20):
        conversation = smollm2.conversation(system=system, sampling=GREEDY, max_tokens=1)
        say(conversation, "Hi")
        said.append(prefill_tokens(conversation))
    assert said[1] < said[0] < said[2]  # the template's own system line is longer than ours


def test_completion_has_neither_template_nor_history(smollm2: Model) -> None:
    completion = smollm2.completion(sampling=GREEDY, max_tokens=3)
    text = "The capital of France is"
    first = say(completion, text)
    assert "Paris" in first
    assert prefill_tokens(completion) == len(smollm2.tokenize(text))
    assert say(completion, text) == first
    assert prefill_tokens(completion) == len(smollm2.tokenize(text))


def test_characters_arrive_whole(smollm2: Model) -> None:
    completion = smollm2.completion(sampling=GREEDY, max_tokens=40)
    prompt = "Emoji list: \U0001f600 \U0001f601 \U0001f602 \U0001f923 \U0001f603"
    pieces = [piece.text for piece in completion.ask(prompt)]
    assert "\ufffd" not in "".join(pieces[:-1])
    assert any(len(text.encode()) == 4 for text in pieces)


def test_a_base_model_completes(smollm2_bundle: Path, tmp_path: Path) -> None:
    path = edited_bundle(smollm2_bundle, tmp_path / "base.litertlm", completes_text)
    with Model(path) as model:
        assert not model.is_chat
        assert "Paris" in say(
            model.completion(sampling=GREEDY, max_tokens=3), "The capital of France is"
        )
        with pytest.raises(OptionError, match=r"--system, .* is a base model"):
            model.conversation(system="Be brief.")


# Sampling


def test_the_same_seed_gives_the_same_text(smollm2: Model) -> None:
    def story(seed: int) -> str:
        sampling = Sampling(temperature=1.2, top_k=100, top_p=1.0, seed=seed)
        return say(smollm2.completion(sampling=sampling, max_tokens=16), "Once upon a time")

    assert story(1) == story(1)
    assert len({story(1), story(2), story(3)}) == 3


def test_temperature_zero_is_greedy(smollm2: Model) -> None:
    texts = {
        say(smollm2.completion(sampling=sampling, max_tokens=16), "Once upon a time")
        for sampling in (
            Sampling(temperature=0, seed=1),
            Sampling(temperature=0, top_k=40, seed=2),
            Sampling(top_k=1, temperature=1.0, seed=3),
        )
    }
    assert len(texts) == 1


def _sampler(k: int, p: float, temperature: float, type_name: str = "TOP_P") -> Any:
    def edit(metadata: Any) -> None:
        own = metadata.sampler_params
        own.Clear()
        own.type = getattr(own, type_name)
        own.k, own.p, own.temperature, own.seed = k, p, temperature, 7

    return edit


@pytest.mark.parametrize(
    ("own", "chosen", "expected"),
    [
        ((50, 0.5, 0.75), Sampling(temperature=1.5), (50, 0.5, 1.5, 7)),
        ((50, 0.5, 0.75), Sampling(top_k=3), (3, 0.5, 0.75, 7)),
        ((50, 0.5, 0.75), Sampling(top_p=0.25, seed=0), (50, 0.25, 0.75, 0)),
        ((50, 0.5, 0.75), Sampling(temperature=0), (1, 0.5, 0.75, 7)),
        # A bundle that decodes greedily must not swallow the user's wish to sample.
        ((1, 0.5, 1.0), Sampling(temperature=0.75), (50, 0.5, 0.75, 7)),
        ((1, 0.5, 1.0), Sampling(top_k=20), (20, 0.5, 1.0, 7)),
        ((1, 0.5, 1.0), Sampling(seed=3), (1, 0.5, 1.0, 3)),
        ((0, 0, 0, "GREEDY"), Sampling(temperature=0.75), (50, 1.0, 0.75, 7)),
        ((0, 0, 0, "GREEDY"), Sampling(seed=3), (1, 1.0, 1.0, 3)),
        ((40, 0, 0.75, "TOP_K"), Sampling(seed=3), (40, 1.0, 0.75, 3)),
    ],
)
def test_options_are_merged_with_the_bundle(
    qwen3_bundle: Path, tmp_path: Path, own: Any, chosen: Sampling, expected: Any
) -> None:
    path = edited_bundle(qwen3_bundle, tmp_path / "model.litertlm", _sampler(*own))
    config = Model(path).sampler(chosen)
    assert (config.top_k, config.top_p, config.temperature, config.seed) == expected


def test_without_options_the_engine_reads_the_bundle(qwen3_bundle: Path) -> None:
    assert Model(qwen3_bundle).sampler(None) is None
    assert Model(qwen3_bundle).sampler(Sampling()) is None


# The end of the context


@pytest.fixture(scope="module")
def small(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("small")
    path = edited_bundle(smollm2_bundle, folder / "small.litertlm", small_context)
    with Model(path, benchmark=True) as model:
        yield model
    shutil.rmtree(folder)


def words(count: int) -> str:
    return "word" + " word" * (count - 1)


def test_one_token_fits_after_the_longest_prompt(small: Model) -> None:
    completion = small.completion(sampling=GREEDY)
    assert len(small.tokenize(words(63))) == 63
    assert len(list(completion.ask(words(63)))) == 1
    assert completion.finish == "context"


@pytest.mark.parametrize("count", [64, 65, 500])
def test_a_longer_prompt_is_refused_with_both_numbers(small: Model, count: int) -> None:
    completion = small.completion(sampling=GREEDY)
    with pytest.raises(OptionError, match=f"is {count} tokens long .* context of 64 must"):
        list(completion.ask(words(count)))
    assert list(completion.ask(words(60)))


def test_a_start_token_takes_its_place(smollm2_bundle: Path, tmp_path: Path) -> None:
    def begin(metadata: Any) -> None:
        small_context(metadata)
        metadata.start_token.token_ids.ids.append(1)

    path = edited_bundle(smollm2_bundle, tmp_path / "begins.litertlm", begin)
    with Model(path, benchmark=True) as model:
        completion = model.completion(sampling=GREEDY)
        with pytest.raises(OptionError, match="is 64 tokens long"):
            list(completion.ask(words(63)))
        list(completion.ask(words(62)))
        assert prefill_tokens(completion) == 63


def test_an_answer_ends_at_the_end_of_the_context(small: Model) -> None:
    conversation = small.conversation(sampling=GREEDY)
    pieces = list(conversation.ask("Tell me a very long story."))
    assert pieces
    assert conversation.finish == "context"


def test_a_later_turn_is_refused_with_its_history(small: Model) -> None:
    conversation = small.conversation(sampling=GREEDY, max_tokens=2)
    say(conversation, "Hi")
    with pytest.raises(OptionError, match=r"is (\d+) tokens long .* context of 64 must") as refusal:
        say(conversation, words(20))
    [alone] = [20 + len(small.tokenize("<|im_start|>user\n<|im_end|>\n<|im_start|>assistant\n"))]
    needed = re.search(r"is (\d+) tokens", str(refusal.value))
    assert needed is not None
    assert int(needed[1]) > alone + 30  # system line, first turn
    assert say(conversation, "Hi")


@pytest.mark.parametrize(
    ("prompt", "why"),
    [("", "is empty"), (" \n", "is empty"), ("a\0b", "NUL"), ("\udc80", "is not UTF-8")],
)
def test_what_is_no_text_is_refused(qwen3: Model, prompt: str, why: str) -> None:
    with pytest.raises(OptionError, match=why):
        list(qwen3.conversation(max_tokens=1).ask(prompt))


# Thoughts


def test_thoughts_are_told_from_the_answer(thinker: Model) -> None:
    conversation = thinker.conversation(sampling=GREEDY, max_tokens=6)
    pieces = list(conversation.ask("Tell me about Paris."))
    kinds = [piece.kind for piece in pieces]
    assert set(kinds) == {"answer", "thought"}
    assert kinds == sorted(kinds, reverse=True)  # thoughts first
    answer = "".join(piece.text for piece in pieces if piece.kind == "answer")
    assert len(thinker.tokenize(answer)) == 6  # thoughts are not counted
    assert conversation.finish == "length"


def test_thoughts_leave_the_history(thinker: Model) -> None:
    fresh = thinker.conversation(sampling=GREEDY, max_tokens=1)
    say(fresh, "And on?")
    conversation = thinker.conversation(sampling=GREEDY, max_tokens=3)
    said = say(conversation, "Tell me about Paris.")
    say(conversation, "And on?")
    turn = "Tell me about Paris.<|im_end|>\n<|im_start|>assistant\n" + said
    turn += "<|im_end|>\n<|im_start|>user\n"
    assert prefill_tokens(conversation) == prefill_tokens(fresh) + len(thinker.tokenize(turn))


def test_thinking_is_switched_off_in_the_prompt(qwen3: Model) -> None:
    lengths = {}
    for thinking in (None, True, False):
        conversation = qwen3.conversation(thinking=thinking, max_tokens=1)
        list(conversation.ask("Hi"))
        lengths[thinking] = prefill_tokens(conversation)
    empty_thought = qwen3.tokenize("<think>\n\n</think>\n\n")
    assert lengths[None] == lengths[True]
    assert lengths[False] == lengths[True] + len(empty_thought)


def test_thinking_needs_a_model_that_can(smollm2: Model, thinker: Model) -> None:
    with pytest.raises(OptionError, match=r"--thinking, .* has no thinking to switch on"):
        smollm2.conversation(thinking=True)
    with pytest.raises(OptionError, match=r"--no-thinking, .* always thinks"):
        thinker.conversation(thinking=False)
    smollm2.conversation(thinking=False)


# Damage


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        Model(tmp_path / "none.litertlm")
    (tmp_path / "text.litertlm").write_text("hello " * 100)
    with pytest.raises(SourceError, match=r"not a \.litertlm file"):
        Model(tmp_path / "text.litertlm")


def test_a_truncated_bundle_is_refused(qwen3_bundle: Path, tmp_path: Path) -> None:
    data = qwen3_bundle.read_bytes()
    (tmp_path / "half.litertlm").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match="damaged"):
        Model(tmp_path / "half.litertlm")


def test_the_engines_reason_is_in_the_error(qwen3_bundle: Path, tmp_path: Path) -> None:
    from converter.litertlm.inspection import read_bundle

    section = read_bundle(qwen3_bundle).section("TFLiteModel")
    assert section is not None
    data = bytearray(qwen3_bundle.read_bytes())
    data[section.offset : section.offset + 4096] = b"\xff" * 4096
    path = tmp_path / "damaged.litertlm"
    path.write_bytes(data)
    with pytest.raises(EngineError) as failure, Model(path):
        pass
    assert failure.value.what == str(path)
    assert failure.value.why == "Invalid flatbuffer"
    assert "--verbose" in failure.value.fix


def test_a_template_that_fails(qwen3_bundle: Path, tmp_path: Path) -> None:
    def fail(metadata: Any) -> None:
        metadata.jinja_prompt_template = "{{ raise_exception('no way') }}"

    path = edited_bundle(qwen3_bundle, tmp_path / "fails.litertlm", fail)
    with (
        Model(path) as model,
        pytest.raises(EngineError, match=r"Failed to render message: .*no way"),
    ):
        list(model.conversation().ask("Hi"))


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", None),
        ("INFO: [a.cc:1] fine\nWARNING: [b.cc:2] hm\n", None),
        ("W0000 00:00:1.5    77 a.cc:391] Section not found: X\n", None),
        ("E0000 00:00:1.5    77 a.cc:4] Failed: NOT_FOUND: nothing here\n",
         "Failed: NOT_FOUND: nothing here"),
        ("E0000 00:00:1.5    77 a.cc:4] Failed: ERROR: [b.cc:1]\n└ ERROR: [c.cc:2]\n└ Bad thing\n"
         "=== Source Location Trace: ===\nthird_party/d.cc:3\n    @ 0x7f  f()\n", "Bad thing"),
        ("E0000 00:00:1.5    77 a.cc:4] Failed to start: No adapters found\n"
         "INFO: [b.cc:43] DestroyAccelerator\n"
         "E0000 00:00:1.6    77 a.cc:5] Failed to create engine: UNKNOWN: ERROR: [b.cc:1]\n"
         "└ ERROR: [c.cc:2]\n", "Failed to start: No adapters found"),
        ("E0000 00:00:1.6    77 a.cc:5] Failed to create engine: UNKNOWN: ERROR: [b.cc:1]\n",
         "Failed to create engine: UNKNOWN"),
        ("ERROR: a/weight_cache.cc:474: could not open file ('/b/c')\nterminate called\n"
         "ERROR: XNNPack weight cache could neither be loaded\n", "terminate called"),
        ("thread '<unnamed>' (7) panicked at a/lib.rs:26:50:\nno such regex\n"
         "fatal runtime error: failed to initiate panic, error 5, aborting\n", "no such regex"),
    ],
)  # fmt: skip
def test_finds_the_reason_in_a_log(log: str, reason: str | None) -> None:
    assert find_reason(log) == reason
