"""What a conversion has kept of its model, in numbers.

Perplexity comes from the engine's own scoring of a text. The distance from the source, token by
token, needs whole distributions, which the engine does not give: the bundle's graph runs in the
ai-edge-litert interpreter, with the engine's kernels, beside whatever speaks for the source.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from converter.errors import OptionError
from converter.litertlm.inspection import read_bundle
from runner.conversation import Statistics
from runner.distance import Divergence, divergence_of
from runner.engine import Model, Sampling

# In the public domain.
TEXT_TITLE = "William Morris, News from Nowhere (1890)"
TEXT = Path(__file__).with_name("evaluation_text.txt")
# Of several kinds, each a part: Morris; Whitehead, An Introduction to Mathematics (1911);
# Beethoven's letters in Lady Wallace's translation (1866); the US Army's Infantry Drill Regulations
# (1911); Pinero, The "Mind the Paint" Girl (1913); three sonnets of Shakespeare's; and, written for
# this project, plain talk of today, and code with data.
TEXTS = Path(__file__).with_name("evaluation_texts.txt")
PART = "\f"  # what stands between parts of a text
# Characters of a passage, and of its beginning, which is read and not scored.
PASSAGE, _GIVEN = 1600, 160
# Characters; longer tokens are runs of one sign.
_LONGEST_TOKEN = 16
# Positions over which two bundles are compared, and the most that see each other.
COMPARED = 512
GREEDY_TOKENS = 64
_PROMPT_TOKENS, _RUNS = 512, 3  # whose speed is measured
_CHAT_PROMPT = "Describe a river in five sentences."

Progress = Callable[[int, int], None]


class Tokenizing(Protocol):
    """A model as texts see it.

    Attributes:
        context_length: tokens; None where it is not told.
        start_tokens: what stands before any text.
    """

    @property
    def context_length(self) -> int | None: ...

    @property
    def start_tokens(self) -> Sequence[int]: ...

    def tokenize(self, text: str) -> list[int]:
        """Token ids, without those that start a text."""
        ...


@dataclass(frozen=True)
class Perplexity:
    """exp(-mean log likelihood) of so many tokens of a text."""

    perplexity: float
    tokens: int


@dataclass(frozen=True)
class Sample:
    """What a model says greedily.

    Attributes:
        repetition: the share of its words, in threes, that were said before: 0 to 1.
        prefill_rate, decode_rate: tokens per second; None where what runs it says nothing of them.
    """

    text: str
    repetition: float
    prefill_rate: float | None = None
    decode_rate: float | None = None


def measure_perplexity(
    model: Model, text: str, progress: Progress = lambda _done, _all: None
) -> Perplexity:
    """Score a text in passages that fit the context, each without those before it.

    Where layers keep a state that the engine's steps back (`_with_last_token_twice`) would spoil,
    they go back to the passage's first token: where a text begins, a state begins anew.

    Raises:
        OptionError: the text is too short.
        EngineError: the engine failed.
    """
    parts = list(passages(model, text))
    total, count = 0.0, 0
    for done, (given, scored) in enumerate(parts):
        progress(done, len(parts))
        begin, text = given, scored
        if model.has_recurrent_state:
            begin, text = given[:1], given[1:] + scored
        try:
            with model.engine.create_session(apply_prompt_template=False) as session:
                session.run_prefill([_with_last_token_twice(model, begin)])
                [scores] = session.run_text_scoring([text]).token_scores
        except RuntimeError as error:
            raise model.failure(f"{model.path.name}: scoring a text", error) from error
        scores = scores[-len(model.tokenize(scored)) :]
        total += sum(scores)
        count += len(scores)
    return perplexity_of(total, count)


def perplexity_of(likelihood: float, count: int) -> Perplexity:
    """That of so many tokens, whose log likelihoods have this sum.

    Raises:
        OptionError: there are none, as the text is too short.
    """
    if not count:
        raise too_little()
    return Perplexity(math.exp(min(-likelihood / count, 700.0)), count)


def too_little() -> OptionError:
    """That a text is too short for its purpose."""
    return OptionError("--text", "holds too little to score", "take a text of some paragraphs")


def passages(model: Tokenizing, text: str) -> Iterator[tuple[str, str]]:
    """(given, scored) parts of a text; they are cut at spaces where there are some."""
    # A start token, the last one that is given again, and one that stays free.
    limit = (model.context_length or PASSAGE) - 3
    for part in text.split(PART):
        while part.strip():
            passage = fitting(model, part, PASSAGE, limit)
            part = part[len(passage) :]
            given = _cut(passage, len(passage) * _GIVEN // PASSAGE)
            if given.strip() and passage[len(given) :].strip():
                yield given, passage[len(given) :]


def fitting(model: Tokenizing, text: str, length: int, limit: int) -> str:
    """The beginning of a text: at most `length` characters and, if it can be, `limit` tokens."""
    while len(model.tokenize(_cut(text, length))) > limit and length > 2:
        length //= 2
    return _cut(text, length)


def _with_last_token_twice(model: Model, given: str) -> str:
    """A text with its last token once more, or cut somewhat where no text makes that token again.

    The engine scores as if the token before the last one were not there, because it steps back
    twice (LiteRT-LM's issue 3561, open in 0.18.1). This way it misses the one that is too many.
    """
    cut = given
    while cut.strip():
        tokens = model.tokenize(cut)
        for length in range(1, min(len(cut), _LONGEST_TOKEN) + 1):
            twice = cut + cut[-length:]
            if model.tokenize(twice) == [*tokens, tokens[-1]]:
                return twice
        cut = cut.rpartition(" ")[0]
    return given


def _cut(text: str, length: int) -> str:
    """About the first `length` characters, up to a space if one is near."""
    if len(text) <= length:
        return text
    at = text.rfind(" ", length // 2, length)
    return text[: at if at > 0 else length]


def sample(model: Model, text: str) -> Sample:
    """Let a model speak: answer a question, or go on with a text where it is a base model."""
    greedy = {"sampling": Sampling(temperature=0), "max_tokens": GREEDY_TOKENS}
    if model.is_chat:
        conversation = model.conversation(**greedy)  # type: ignore[arg-type]
        prompt = _CHAT_PROMPT
    else:
        conversation = model.completion(**greedy)  # type: ignore[arg-type]
        prompt = fitting(model, text, _GIVEN, (model.context_length or _GIVEN) // 2)
    said = "".join(piece.text for piece in conversation.ask(prompt))
    rates = conversation.statistics
    return Sample(
        said,
        repetition(said),
        rates.prefill_rate if rates else 0.0,
        rates.decode_rate if rates else 0.0,
    )


def measure_speed(model: Model, text: str) -> Statistics:
    """How fast a model reads a prompt and goes on with it: of each the best of some runs.

    What disturbs a shared machine only ever slows it down.

    Raises:
        EngineError: the engine failed.
    """
    limit = min(_PROMPT_TOKENS, (model.context_length or _PROMPT_TOKENS) // 2)
    prompt = fitting(model, text, _LONGEST_TOKEN * limit, limit)
    runs = []
    for _ in range(_RUNS):
        conversation = model.completion(sampling=Sampling(temperature=0), max_tokens=GREEDY_TOKENS)
        for _piece in conversation.ask(prompt):
            pass
        assert conversation.statistics is not None  # the model was loaded to measure
        runs.append(conversation.statistics)
    return replace(
        runs[0],
        prefill_rate=max(run.prefill_rate for run in runs),
        decode_rate=max(run.decode_rate for run in runs),
        first_token_seconds=min(run.first_token_seconds for run in runs),
    )


def repetition(text: str) -> float:
    """The share of a text's words, in threes, that it holds already: 0 to 1."""
    words = text.split()
    threes = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(threes)) / len(threes) if threes else 0.0


def measure_divergence(
    bundle: Path,
    reference: Iterable[np.ndarray],
    tokens: Sequence[int],
    progress: Progress = lambda _done, _all: None,
) -> Divergence:
    """Compare a bundle with its source over some tokens, each position seeing the true ones.

    Args:
        reference: the source's logits after each token, `(vocabulary,)`.
    """
    return divergence_of(
        graph_logits(bundle, tokens), reference, lambda done: progress(done, len(tokens))
    )


def graph_logits(bundle: Path, *passages: Sequence[int]) -> Iterator[np.ndarray]:
    """What a bundle's graph says after each token of some passages, `(vocabulary,)`."""
    # Imported late: the interpreter costs a third of a second.
    from runner.interpreter import GraphRunner

    # At position 0 a text begins again, which sees nothing before it.
    runner = GraphRunner(bundle, {"decode"})
    for tokens in passages:
        for position, token in enumerate(tokens):
            yield runner.decode(token, position)


def reference_logits(
    bundle: Path, passages: Sequence[Sequence[int]]
) -> tuple[list[list[int]], Iterator[np.ndarray]]:
    """As many tokens of each passage as a bundle's context holds, and its logits after each."""
    limit = read_bundle(bundle).metadata.max_num_tokens or None
    held = [list(tokens[:limit]) for tokens in passages]
    return held, graph_logits(bundle, *held)


def compared_passages(model: Tokenizing, text: str, count: int = COMPARED) -> list[list[int]]:
    """The tokens over which models are compared: as many of each part of a text, from its start.

    Args:
        count: of all tokens together, those that start a text included.

    Raises:
        OptionError: the text is empty.
    """
    parts = [part for part in text.split(PART) if part.strip()]
    longest = min(COMPARED, model.context_length or COMPARED)
    start = list(model.start_tokens)
    found = []
    for number, part in enumerate(parts):
        left = count // len(parts) + (number < count % len(parts))
        tokens = model.tokenize(_cut(part, 8 * left))
        while left and tokens:
            passage = [*start, *tokens][: min(longest, left)]
            tokens = tokens[max(len(passage) - len(start), 0) :]
            left -= len(passage)
            found.append(passage)
    if not found:
        raise too_little()
    return found
