"""A hundred short questions with known answers: what a model still knows, and still can do.

A bundle and its source, or two bundles of one model, are asked the same; the figure of one model
alone says more about the model than about its conversion.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.engine import Model, Sampling

# Lines: `# kind`, then `question | answer | another way to say it`.
FILE = Path(__file__).with_name("questions.txt")
_ANSWER_TOKENS = 24
# How many times as many where thoughts come first, and cannot be switched off.
_THOUGHTS = 16
# A base model goes on with it.
_OF_BASE_MODEL = "Question: {}\nAnswer:"
# Whose answers are meant to the letter.
_EXACT = "copying"


@dataclass(frozen=True)
class Question:
    """What is asked; an answer is right that holds one of `answers` as whole words."""

    kind: str
    text: str
    answers: tuple[str, ...]

    def is_answered_by(self, said: str) -> bool:
        flags = 0 if self.kind == _EXACT else re.IGNORECASE
        return any(
            # 4 is neither in 14 nor in 4.5.
            re.search(rf"(?<!\w)(?<!\d[.,]){re.escape(answer)}(?!\w)(?![.,]\d)", said, flags)
            for answer in self.answers
        )


def read_questions() -> list[Question]:
    """All questions, in the file's order."""
    questions, kind = [], ""
    for line in FILE.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            kind = line[2:]
        elif line:
            text, *answers = (part.strip() for part in line.split("|"))
            questions.append(Question(kind, text, tuple(answers)))
    return questions


def ask(
    model: Model,
    questions: Sequence[Question],
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[bool]:
    """Which questions a model answers rightly, greedily and each on its own.

    Raises:
        EngineError: the engine failed.
    """
    greedy = Sampling(temperature=0)
    thinking = False if model.supports_thinking else None
    tokens = _ANSWER_TOKENS * (_THOUGHTS if model.has_thoughts and thinking is None else 1)
    right = []
    for number, question in enumerate(questions):
        progress(number, len(questions))
        if model.is_chat:
            asked = model.conversation(sampling=greedy, max_tokens=tokens, thinking=thinking)
            prompt = question.text
        else:
            asked = model.completion(sampling=greedy, max_tokens=_ANSWER_TOKENS)
            prompt = _OF_BASE_MODEL.format(question.text)
        said = "".join(piece.text for piece in asked.ask(prompt) if piece.kind == "answer")
        asked.close()
        if not model.is_chat:  # which then asks itself something else
            said = said.strip().partition("\n")[0]
        right.append(question.is_answered_by(said))
    return right
