"""What is drafted for a text, by the models themselves, in the interpreter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from converter.tflite.graph import Model
from converter.tflite.lookup import COMPARED, WIDTH, History
from converter.tflite.lookup_drafter import build_drafter, build_embedder
from converter.tflite.writer import write

CONTEXT, VOCABULARY, STOP = 64, 300, 7
NONE = VOCABULARY
HISTORY = History.of(2, CONTEXT, (8,))


def runner_of(model: Model) -> tuple[Interpreter, object]:
    interpreter = Interpreter(model_content=bytes(write(model).flatbuffer))
    [signature] = interpreter.get_signature_list()
    return interpreter, interpreter.get_signature_runner(signature)


class Drafter:
    """The engine's loop; see `llm_litert_mtp_drafter.cc`."""

    def __init__(self, drafts: int) -> None:
        self.drafts = drafts
        self._models = (
            runner_of(build_embedder()),
            runner_of(build_drafter(HISTORY, CONTEXT, VOCABULARY, drafts, [STOP, 299])),
        )

    def drafts_for(self, text: Sequence[int], left_over: Sequence[int] = ()) -> list[int]:
        """What is drafted after a text; behind it the state has what was there before."""
        (_, embed), (_, draft) = self._models
        state = np.zeros(HISTORY.state.shape, np.float32)
        # The last token is not in it yet: `verify` will write it.
        written = np.asarray([*text[:-1], *left_over], np.float32) + 1
        state[0, 0, COMPARED : COMPARED + len(written), 0] = written
        found, token = [], text[-1]
        activations = np.zeros((1, 1, WIDTH), np.float32)
        for _ in range(self.drafts):
            embedding = embed(token=np.asarray([[token]], np.int32))["embedding"]
            said = draft(
                activations=np.concatenate((embedding, activations), axis=2),
                input_pos=np.asarray([len(text) - 2], np.int32),
                **{HISTORY.state.name: state},
            )
            assert said["logits"].shape == (1, 1, VOCABULARY + 1)
            token = int(said["logits"].argmax())
            found.append(token)
            activations = said["projected_activations"]
        return found


@pytest.fixture(scope="module")
def five() -> Drafter:
    return Drafter(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Four tokens are the same: all that followed them.
        ([1, 2, 3, 4, 50, 51, 52, 53, 54, 55, 1, 2, 3, 4], [50, 51, 52, 53, 54]),
        # Two or three: no more than three drafts.
        ([9, 3, 4, 50, 51, 52, 53, 54, 55, 1, 3, 4], [50, 51, 52, NONE, NONE]),
        # One is none.
        ([9, 4, 50, 51, 52, 3, 4], [NONE] * 5),
        ([1, 2, 3, 4, 5, 6], [NONE] * 5),
        ([1, 2], [NONE] * 5),
        # The longest match, though a shorter one is later; of several the latest.
        ([2, 3, 4, 60, 61, 62, 9, 3, 4, 70, 71, 72, 2, 3, 4], [60, 61, 62, NONE, NONE]),
        ([3, 4, 60, 61, 62, 9, 3, 4, 70, 71, 72, 8, 3, 4], [70, 71, 72, NONE, NONE]),
        # A loop goes on: of one token, of two, of three.
        ([9, 5, 5, 5, 5, 5], [5, 5, 5, 5, 5]),
        ([5, 6, 5, 6, 5, 6], [5, 6, 5, 6, 5]),
        ([5, 6, 8, 5, 6, 8, 5, 6], [8, 5, 6, 8, 5]),
        # What ends an answer is not drafted, nor what follows it.
        ([1, 2, 3, 4, 50, STOP, 52, 53, 54, 1, 2, 3, 4], [50, NONE, NONE, NONE, NONE]),
        # Token 0 is a token.
        ([0, 1, 0, 0, 50, 0, 52, 0, 1, 0, 0], [50, 0, 52, 0, 1]),
        # At the beginning nothing is before the text.
        ([0, 0], [NONE] * 5),
    ],
)
def test_drafts(five: Drafter, text: list[int], expected: list[int]) -> None:
    assert five.drafts_for(text) == expected


def test_what_stands_behind_the_text_is_not_seen(five: Drafter) -> None:
    """Of a longer text before, or of drafts that were wrong."""
    text = [1, 2, 3, 4, 50, 51, 52, 53, 54, 55, 1, 2, 3, 4]
    expected = five.drafts_for(text)
    assert five.drafts_for(text, [1, 2, 3, 4, 90, 91, 92, 93, 94]) == expected
    assert five.drafts_for([1, 2, 3, 4], [1, 2, 3, 4, 90, 91]) == [NONE] * 5


def test_the_last_place_of_the_context(five: Drafter) -> None:
    text = [*range(100, 100 + CONTEXT - 4), 100, 101, 102, 103]
    assert len(text) == CONTEXT
    assert five.drafts_for(text) == [104, 105, 106, 107, 108]


def test_one_draft() -> None:
    assert Drafter(1).drafts_for([3, 4, 50, 51, 3, 4]) == [50]
