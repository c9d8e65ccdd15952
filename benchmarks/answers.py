"""What a bundle says in chats, beside its reference: words, distributions, and cost.

Right answers are few: a model that knows half of them by a hair gains or loses some with any change
of its numbers. So the reference's own answers are gone through token by token, which gives hundreds
of distributions to compare.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runner.check import QUESTIONS
from runner.distance import Divergence, divergence_of
from runner.engine import Model, Sampling
from runner.interpreter import GraphRunner

# Besides the questions of `convert --check`.
_PROMPTS = (
    "Name three fruits.",
    "Write one sentence about the sea.",
    "What is the largest ocean?",
    "How do I boil an egg?",
    "Why do leaves fall in autumn?",
    "Give me a recipe for pancakes.",
    "What is photosynthesis?",
    "Who was Albert Einstein?",
    "Translate to French: Good morning.",
    "List the months of the year.",
    "What do bees make?",
    "Explain gravity to a child.",
    "Write a haiku about winter.",
    "What is the opposite of hot?",
    "Name a famous river in Africa.",
    "How many legs does a spider have?",
)
_ANSWER_TOKENS = 48
_COMPARED = 24  # of an answer's first tokens
_TIMED, _ROUNDS = 100, 3


@dataclass(frozen=True)
class Turn:
    """A prompt with its template and the beginning of the reference's answer.

    Attributes:
        tokens: of both.
        given: of the prompt; what is said after the last of them is the answer's first token.
    """

    tokens: list[int]
    given: int


def answer(model: Model) -> list[str]:
    """What a chat model says to each prompt, greedily."""
    said = []
    for prompt in (*(question for question, _ in QUESTIONS), *_PROMPTS):
        conversation = model.conversation(
            sampling=Sampling(temperature=0), max_tokens=_ANSWER_TOKENS
        )
        said.append("".join(p.text for p in conversation.ask(prompt) if p.kind == "answer"))
        conversation.close()
    return said


def turns(model: Model, said: list[str]) -> list[Turn]:
    """The tokens of all prompts with their answers, as the engine feeds them."""
    start = list(model.metadata.start_token.token_ids.ids)
    prompts = (*(question for question, _ in QUESTIONS), *_PROMPTS)
    found = []
    for prompt, answer in zip(prompts, said, strict=True):
        with model.create_conversation() as conversation:
            rendered = conversation.render_message_to_string(prompt)
        given = [*start, *model.tokenize(rendered)]
        found.append(Turn([*given, *model.tokenize(answer)[: _COMPARED - 1]], len(given)))
    return found


def turn_logits(bundle: Path, asked: list[Turn]) -> Iterator[np.ndarray]:
    """What a bundle's graph says at each token of the answers, `(vocabulary,)`."""
    # At position 0 a chat begins again, which sees nothing before it.
    runner = GraphRunner(bundle, {"decode"})
    for turn in asked:
        for position, token in enumerate(turn.tokens):
            logits = runner.decode(token, position)
            if position >= turn.given - 1:
                yield logits


def turn_divergence(bundle: Path, reference: np.ndarray, asked: list[Turn]) -> Divergence:
    """Compare a bundle with its reference at each token of the reference's answers.

    Args:
        reference: `turn_logits` of it, `(positions, vocabulary)`.
    """
    return divergence_of(turn_logits(bundle, asked), reference)


def core_milliseconds(bundle: Path) -> float:
    """Of one core's time that a decoded token takes, which other processes hardly disturb."""
    with Model(bundle, threads=1) as model:
        seconds = {n: min(_core_seconds(model, n) for _ in range(_ROUNDS)) for n in (1, 1 + _TIMED)}
    return 1000 * (seconds[1 + _TIMED] - seconds[1]) / _TIMED


def _core_seconds(model: Model, tokens: int) -> float:
    completion = model.completion(max_tokens=tokens, sampling=Sampling(temperature=0))
    begin = time.process_time()
    for _ in completion.ask("Once upon a time there was a little dog"):
        pass
    return time.process_time() - begin
