"""What a conversion to Core ML has kept of its model: the figures of `runner.evaluation`, in numpy.

The text, its passages and the positions are the same, so that figures of both targets stand beside
each other. Every logit is one that `infer` gives, as on a device.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from runner.coreml_model import Conversation, CoreMLModel
from runner.distance import Divergence, divergence_of, log_softmax
from runner.evaluation import (
    GREEDY_TOKENS,
    PASSAGE,
    Perplexity,
    Progress,
    Sample,
    fitting,
    passages,
    perplexity_of,
    repetition,
    too_little,
)


def measure_perplexity(
    model: CoreMLModel, text: str, progress: Progress = lambda _done, _all: None
) -> Perplexity:
    """Score a text in passages that fit the context, each without those before it.

    Raises:
        OptionError: the text is too short.
        UnsupportedError: numbers were too large for float16.
    """
    parts = [
        ([*model.start_tokens, *model.tokenize(given)], model.tokenize(scored))
        for given, scored in passages(model, text)
    ]
    total, done, count = 0.0, 0, sum(len(scored) for _, scored in parts)
    for given, scored in parts:
        logits = model.logits([*given, *scored[:-1]], len(given) - 1)
        for row, token in zip(logits, scored, strict=True):
            progress(done, count)
            total += float(log_softmax(row)[token])
            done += 1
    return perplexity_of(total, done)


def measure_divergence(
    model: CoreMLModel,
    reference: Iterable[np.ndarray],
    tokens: Sequence[int],
    progress: Progress = lambda _done, _all: None,
) -> Divergence:
    """Compare a model with its source over some tokens, each position seeing the true ones.

    Args:
        reference: the source's logits after each token, `(vocabulary,)`.
    """
    return divergence_of(model.logits(tokens), reference, lambda done: progress(done, len(tokens)))


def sample(model: CoreMLModel, text: str) -> Sample:
    """Let a model go on with the beginning of a text, which is read in batches."""
    count = min(GREEDY_TOKENS, model.context_length // 2)
    limit = model.context_length - count
    beginning = model.tokenize(fitting(model, text, PASSAGE, limit - len(model.start_tokens)))
    if not (model.start_tokens or beginning):
        raise too_little()
    *prompt, last = [*model.start_tokens, *beginning][:limit]
    conversation = Conversation(model)
    conversation.read(prompt)
    said = [last]
    for _ in range(count):
        [logits] = conversation.next_logits(said[-1:])
        said.append(int(logits.argmax()))
    spoken = model.detokenize(said[1:])
    return Sample(spoken, repetition(spoken))
