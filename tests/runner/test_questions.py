"""The hundred questions: their form, what counts as an answer, and who answers them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from runner.engine import Model
from runner.questions import Question, ask, read_questions

KINDS = ("facts", "arithmetic", "copying", "words", "reasoning")


def test_there_are_twenty_of_each_kind() -> None:
    questions = read_questions()
    assert Counter(question.kind for question in questions) == dict.fromkeys(KINDS, 20)
    assert len({question.text for question in questions}) == 100


@pytest.mark.parametrize("question", read_questions(), ids=lambda question: question.text)
def test_the_form_of_a_question(question: Question) -> None:
    assert question.answers
    assert all(question.answers), "an empty answer is in everything"
    assert question.text == " ".join(question.text.split())
    for answer in question.answers:
        assert question.is_answered_by(f"Well: {answer}.")
    if question.kind in ("facts", "arithmetic"):  # whoever repeats the question knows nothing
        assert not question.is_answered_by(question.text)


@pytest.mark.parametrize(
    ("said", "is_right"),
    [
        ("4", True),
        ("2 + 2 = 4.", True),
        ("That makes FOUR!", True),
        ("**4**", True),
        ("14", False),
        ("4.5", False),
        ("1,4", False),
        ("fourteen", False),
        ("", False),
    ],
)
def test_an_answer_is_whole_words(said: str, is_right: bool) -> None:
    assert Question("arithmetic", "What is 2 + 2?", ("4", "four")).is_answered_by(said) is is_right


def test_what_is_copied_is_copied_to_the_letter() -> None:
    question = Question("copying", "Write the word stone in capital letters.", ("STONE",))
    assert question.is_answered_by("STONE")
    assert not question.is_answered_by("The word stone")


def test_a_chat_model_and_a_base_model_are_asked(smollm2_bundle: Path, gemma3_bundle: Path) -> None:
    questions = [read_questions()[0], Question("facts", "What is the capital of France?", ("$",))]
    told: list[tuple[int, int]] = []
    for bundle in (smollm2_bundle, gemma3_bundle):
        with Model(bundle) as model:
            found = ask(model, questions, lambda done, everything: told.append((done, everything)))
        assert found == [True, False], bundle.name
    assert told == [(0, 2), (1, 2)] * 2
