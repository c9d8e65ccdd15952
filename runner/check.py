"""A gate after conversion: does the model still make sense?

It finds what a conversion can break (a wrong template, a bad scheme, damaged weights), and says
nothing about how good a model is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from converter.errors import EngineError
from runner.engine import Model, Sampling
from runner.evaluation import measure_perplexity, repetition

# Question, and what an answer must hold one of, in lower case.
QUESTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("What is the capital of France?", ("paris",)),
    ("What is the capital of Japan?", ("tokyo",)),
    ("How many days are there in a week?", ("seven", "7")),
    ("What is 2 + 2?", ("4", "four")),
    ("Which planet do we live on?", ("earth",)),
    ("What color is the sky on a clear day?", ("blue",)),
    ("What is frozen water called?", ("ice",)),
    ("Who wrote the play Romeo and Juliet?", ("shakespeare",)),
)
# The least that passes. SmolLM2-135M, the smallest model that we know, answers seven in fp16 and
# six in dynamic_int8_a16.
_LEAST_RIGHT = 4
_MOST_REPETITION = 0.6
# Of a base model on English prose of 1890: small ones have some 50 (README_MODELS.md), random
# weights about the size of their vocabulary.
_MOST_PERPLEXITY = 1000.0
_ANSWER_TOKENS = 48
_TEXT_CHARACTERS = 3200


@dataclass(frozen=True)
class Check:
    """What was found.

    Attributes:
        summary: one line for the user.
        failure: why it does not pass; None where it does.
    """

    summary: str
    failure: str | None


def check(model: Model, text: str) -> Check:
    """Ask a chat model the questions; score a part of `text` with a base model.

    Raises:
        EngineError: the engine failed.
    """
    return _ask(model) if model.is_chat else _score(model, text)


def _ask(model: Model) -> Check:
    right, repeated = 0, 0.0
    thinking = False if model.supports_thinking else None
    budget = _ANSWER_TOKENS * (16 if model.has_thoughts and thinking is None else 1)
    for question, answers in QUESTIONS:
        conversation = model.conversation(
            sampling=Sampling(temperature=0), max_tokens=budget, thinking=thinking
        )
        said = "".join(p.text for p in conversation.ask(question) if p.kind == "answer").lower()
        right += any(answer in said for answer in answers)
        repeated = max(repeated, repetition(said))
    summary = f"{right} of {len(QUESTIONS)} easy questions answered rightly"
    if right < _LEAST_RIGHT:
        return Check(summary, f"answers {right} of {len(QUESTIONS)} easy questions rightly")
    if repeated > _MOST_REPETITION:
        return Check(summary, f"repeats itself: {repeated:.0%} of an answer was said before")
    return Check(summary, None)


def _score(model: Model, text: str) -> Check:
    found = measure_perplexity(model, text[:_TEXT_CHARACTERS])
    summary = f"perplexity {found.perplexity:.1f} over {found.tokens} tokens"
    failed = found.perplexity > _MOST_PERPLEXITY
    return Check(summary, f"has a {summary}" if failed else None)


def require(path: Path, found: Check) -> str:
    """The summary of a check that passes.

    Raises:
        EngineError: it does not.
    """
    if found.failure is not None:
        raise EngineError(
            str(path),
            f"the check failed: it {found.failure}",
            "the file is kept: try it with run, compare it with eval --against, or convert with a "
            "wider --quantize",
        )
    return found.summary
