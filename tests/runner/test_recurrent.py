"""Layers that keep a state of their own, in the engine: every text is that of transformers.

The engine empties a state once, when it is made, and takes nothing out of it where it steps back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from converter.base import ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.options import ConvertOptions
from runner.conversation import Conversation
from runner.engine import Model, Sampling
from runner.evaluation import measure_perplexity
from tests.edited_bundle import edited_bundle
from tests.tiny_models import make_checkpoint, settle_nemotron_h, text_logits, write_tokenizer

# How much larger the row of the head is that ends an answer: some are to end, others not.
MODELS = {
    "qwen3_5_text": 1.0, "granitemoehybrid-mamba-groups": 1.4, "falcon_h1": 1.4, "nemotron_h": 1.1,
}  # fmt: skip
END = 257
# What is rendered of a history is what the cache holds of it, to the token.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GREEDY = Sampling(temperature=0)
QUESTIONS = [f"{word} {i}?" for i in range(12) for word in ("What is", "Who are you,")]

LENGTH = 20
# How much of an answer is worked out.
WHOLE = 60

Turns = list[tuple[str, str]]


@dataclass(frozen=True)
class Remembering:
    """A bundle, and its model in transformers.

    Attributes:
        says: what it answers after some turns, and whether it ends by itself.
    """

    bundle: Path
    model: Any
    tokenizer: Any

    def says(self, turns: Turns, length: int = LENGTH) -> tuple[str, bool]:
        said = [f"<|im_start|>{role}\n{text}<|im_end|>" for role, text in turns]
        tokens = self.tokenizer.encode("".join(said) + "<|im_start|>assistant\n").ids
        said = list(itertools.islice(continued(self.model, tokens), length))
        return self.tokenizer.decode(said), len(said) < length


def continued(model: Any, tokens: list[int]) -> Iterator[int]:
    """The likeliest token after these, the likeliest after that one, and so on to the end."""
    import torch

    cache = None
    while True:
        with torch.inference_mode():
            made = model(torch.tensor([tokens]), past_key_values=cache, use_cache=True)
        cache, tokens = made.past_key_values, [int(made.logits[0, -1].argmax())]
        if tokens == [END]:
            return
        yield tokens[0]


@pytest.fixture(scope="module", params=MODELS)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Remembering:
    """A model that forgets little, and says printable characters alone."""
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp(request.param)
    make_checkpoint(request.param, folder)
    write_tokenizer(folder, ("<|im_start|>", "<|im_end|>"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(settings | {"chat_template": TEMPLATE})
    )
    for file in (folder / "config.json", folder / "generation_config.json"):
        # A family's default may be a printable character here.
        said = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(said | {"eos_token_id": END}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    weights = load_file(folder / "model.safetensors")
    printable = [tokenizer.token_to_id(chr(code)) for code in range(33, 127)]
    others = np.setdiff1d(np.arange(len(weights["lm_head.weight"])), [*printable, END])
    weights["lm_head.weight"][others] = 0
    weights["lm_head.weight"][END] *= MODELS[request.param]
    for name, values in weights.items():
        if name.endswith("A_log"):
            values[:] = -5
        if name.endswith(("out_proj.weight", "o_proj.weight")):
            values *= 6
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with open_folder(folder) as checkpoint:
        options = ConvertOptions("fp32", cache_length=1024, prefill_lengths=(8, 32, 128))
        ModelConverter(checkpoint, "tiny", options).convert(folder / "tiny.litertlm")
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = settle_nemotron_h(model.eval().float())
    return Remembering(folder / "tiny.litertlm", model, tokenizer)


@pytest.fixture(scope="module")
def opened(tiny: Remembering) -> Iterator[Model]:
    with Model(tiny.bundle) as model:
        yield model


def say(conversation: Conversation, prompt: str, most: int = LENGTH) -> str:
    """The first pieces of an answer."""
    with contextlib.closing(conversation.ask(prompt)) as pieces:
        answer = (piece.text for piece in pieces if piece.kind == "answer")
        return "".join(itertools.islice(answer, most))[:most]


def question(
    tiny: Remembering, ends: bool, fits: Callable[[str, str], bool] = lambda *_: True
) -> tuple[str, str]:
    """One whose answer ends by itself, or does not; and the answer."""
    for text in QUESTIONS:
        said, is_end = tiny.says([("user", text)], WHOLE)
        if is_end == ends and len(said) > 4 and fits(text, said):
            return text, said
    raise AssertionError("no question has such an answer")


def test_answers_depend_on_all_that_was_said(tiny: Remembering) -> None:
    """Else the others could not fail."""
    model = Model(tiny.bundle)
    assert model.has_recurrent_state
    assert model.metadata.min_runtime_version == "0.15.0"
    last = [("assistant", "aye"), ("user", "And now?")]
    said = {tiny.says([("user", text), *last], length=8)[0] for text in QUESTIONS[:6]}
    assert len(said) == 6


def test_conversations_in_one_engine(tiny: Remembering, opened: Model) -> None:
    """One after the other, of the same beginning, of one token, and at the same time."""
    for prompt in (QUESTIONS[0], QUESTIONS[0], f"{QUESTIONS[0]} And " * 12, QUESTIONS[1]):
        conversation = opened.conversation(sampling=GREEDY, max_tokens=12)
        assert say(conversation, prompt) == tiny.says([("user", prompt)], 12)[0]
    one, other = (opened.conversation(sampling=GREEDY, max_tokens=12) for _ in range(2))
    first = question(tiny, ends=True)
    ended, cut = opened.conversation(sampling=GREEDY), other
    assert say(ended, first[0], most=100) == first[1]
    assert say(cut, QUESTIONS[3]) == tiny.says([("user", QUESTIONS[3])], 12)[0]
    turns = [("user", first[0]), ("assistant", first[1]), ("user", "Why?")]
    assert say(ended, "Why?") == tiny.says(turns)[0]
    assert say(one, QUESTIONS[4]) == tiny.says([("user", QUESTIONS[4])], 12)[0]


def test_a_prompt_of_one_token(tiny: Remembering, opened: Model) -> None:
    """It is decoded at position 0, without a prefill."""
    said = {say(opened.completion(sampling=GREEDY, max_tokens=8), "I") for _ in range(2)}
    tokens = tiny.tokenizer.encode("I").ids
    for _ in range(8):
        tokens.append(int(text_logits(tiny.model, tokens)[-1].argmax()))
    assert said == {tiny.tokenizer.decode([t for t in tokens[1:] if t < 256])}


@pytest.mark.parametrize("way", ["ends", "length", "closed", "cancelled"])
def test_a_turn_after_an_answer(tiny: Remembering, opened: Model, way: str) -> None:
    prompt, answer = question(tiny, ends=way == "ends")
    limit = 6 if way == "length" else WHOLE  # or a cancellation that is late finds more said
    conversation = opened.conversation(sampling=GREEDY, max_tokens=limit)
    with contextlib.closing(conversation.ask(prompt)) as pieces:
        if way in ("ends", "length"):
            said = "".join(piece.text for piece in pieces)
        else:
            said = "".join(next(pieces).text for _ in range(4))
        if way == "cancelled":
            cancelling = threading.Timer(0, conversation.cancel)
            cancelling.start()
            said += "".join(piece.text for piece in pieces)
            cancelling.join()  # else it may end the next answer
    assert answer.startswith(said)
    turns = [("user", prompt), ("assistant", said), ("user", "Why?")]
    assert say(conversation, "Why?") == tiny.says(turns, min(limit, LENGTH))[0]


def test_a_turn_after_thoughts(tiny: Remembering, tmp_path: Path) -> None:
    """The engine takes them out of its caches, whatever the metadata calls the channel."""

    def then(prompt: str, said: str) -> str:
        shown = said.split(said[3], 1)[1]
        return tiny.says([("user", prompt), ("assistant", shown), ("user", "Why?")])[0]

    prompt, answer = question(
        tiny,
        ends=True,
        fits=lambda text, said: said[0] not in said[1:] + then(text, said),
    )

    def thinks(metadata: Any) -> None:
        del metadata.channels[:]
        metadata.channels.add(channel_name="thought", start=answer[0], end=answer[3])

    thoughtful = edited_bundle(tiny.bundle, tmp_path / "thinks.litertlm", thinks)
    said = answer.split(answer[3], 1)[1]
    with Model(thoughtful) as model:
        conversation = model.conversation(sampling=GREEDY)
        assert say(conversation, prompt, most=100) == said
        again = say(conversation, "Why?")
    assert again == then(prompt, answer)


def test_perplexity_is_that_of_transformers(tiny: Remembering, opened: Model) -> None:
    text = "A state that is written twice is no longer that of the text. " * 4
    found = measure_perplexity(opened, text)
    tokens = tiny.tokenizer.encode(text).ids
    logits = text_logits(tiny.model, tokens).astype(np.float64)
    likelihoods = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    scored = [likelihoods[i, token] for i, token in enumerate(tokens[1:])][-found.tokens :]
    assert len(tokens) * 0.8 < found.tokens < len(tokens)
    assert found.perplexity == pytest.approx(math.exp(-np.mean(scored)), rel=1e-4)
