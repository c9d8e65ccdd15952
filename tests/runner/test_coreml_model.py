"""Folders of packages as models: what they say, and how texts score them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from converter.coreml.blob import BlobLayout, DType
from converter.coreml.package import MODEL, WEIGHTS, model_message
from converter.coreml.program import Function
from converter.errors import LiteRTLMError, OptionError
from runner.coreml_evaluation import measure_divergence, measure_perplexity, sample
from runner.coreml_model import Conversation, CoreMLModel
from runner.distance import log_softmax
from runner.evaluation import PASSAGE, compared_passages, fitting, passages
from tests.coreml_folders import make_folder
from tests.tiny_models import make_checkpoint, text_logits

TOKENS = np.random.default_rng(0).integers(3, 250, 60).tolist()
TEXT = (
    "When he had come back to his house by the river, he said that it was a fine night. "
    "The moon was up, and all was still but for the water."
)


@dataclass(frozen=True)
class Made:
    """A tiny checkpoint of Gemma 3, whose windows the context exceeds, and transformers' model."""

    folder: Path
    model: Any

    def logits(self, tokens: list[int]) -> np.ndarray:
        return np.asarray(text_logits(self.model, tokens))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("gemma3")
    return Made(folder, make_checkpoint("gemma3_text", folder))


@pytest.fixture(scope="module")
def parts(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(made.folder, tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="module")
def monolithic(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(made.folder, tmp_path_factory.mktemp("one"), is_monolithic=True)


# Batches are of 8 tokens, windows of 40: none is read at once, some within a window, some past it.
@pytest.mark.parametrize("given", [0, 21, 57])
@pytest.mark.parametrize("kind", ["parts", "monolithic"])
def test_logits_are_those_of_the_model(
    made: Made, kind: str, given: int, request: pytest.FixtureRequest
) -> None:
    model = CoreMLModel(request.getfixturevalue(kind))
    found = np.stack(list(model.logits(TOKENS, given)))
    expected = made.logits(TOKENS)[given:]
    assert np.abs(found - expected).max() < 0.03 < 0.5 < expected.std()


@pytest.mark.parametrize("kind", ["parts", "monolithic"])
def test_calls_at_once_are_calls_one_by_one(kind: str, request: pytest.FixtureRequest) -> None:
    model = CoreMLModel(request.getfixturevalue(kind), rounds=False)
    one_by_one = Conversation(model)
    expected = np.concatenate([one_by_one.next_logits([token]) for token in TOKENS])
    for first in (0, 16, 39, 40):  # within a window, into a full one, and in full ones
        conversation = Conversation(model)
        conversation.read(TOKENS[:first])
        found = conversation.next_logits(TOKENS[first:])
        np.testing.assert_allclose(found, expected[first:], 1e-4, 1e-5)


def test_float32_is_nearer_than_float16(made: Made, parts: Path) -> None:
    expected = made.logits(TOKENS[:20])
    rounded, exact = (
        np.abs(np.stack(list(CoreMLModel(parts, rounds).logits(TOKENS[:20]))) - expected).mean()
        for rounds in (True, False)
    )
    assert exact < 0.8 * rounded


def test_a_package_stands_for_its_folder(parts: Path) -> None:
    assert CoreMLModel(parts / "tiny_lm_head.mlpackage").folder == parts


# Figures ------------------------------------------------------------------------------------------


def test_perplexity_is_that_of_the_model(made: Made, parts: Path) -> None:
    model = CoreMLModel(parts)
    said: list[tuple[int, int]] = []
    found = measure_perplexity(
        model, TEXT, lambda done, everything: said.append((done, everything))
    )
    likelihoods = []
    for given, scored in passages(model, TEXT):
        first = [*model.start_tokens, *model.tokenize(given)]
        tokens = [*first, *model.tokenize(scored)]
        rows = made.logits(tokens)[len(first) - 1 : -1]
        likelihoods += [
            float(log_softmax(row)[token])
            for row, token in zip(rows, tokens[len(first) :], strict=True)
        ]
    assert found.tokens == len(likelihoods) > 100
    assert found.perplexity == pytest.approx(math.exp(-np.mean(likelihoods)), rel=5e-3)
    assert said[0] == (0, found.tokens)
    assert said == sorted(said)


def test_distance_from_the_model_and_from_another(made: Made, parts: Path) -> None:
    model = CoreMLModel(parts)
    [tokens] = compared_passages(model, TEXT, 30)
    expected = made.logits(tokens)
    near = measure_divergence(model, expected, tokens)
    far = measure_divergence(model, expected[::-1], tokens)
    assert near.positions == len(tokens)
    assert near.kl_mean < 1e-4 < 0.1 < far.kl_mean


def test_what_it_says_is_what_the_model_says(made: Made, parts: Path) -> None:
    model = CoreMLModel(parts)
    said = sample(model, TEXT)
    text = fitting(model, TEXT, PASSAGE, 32 - len(model.start_tokens))
    tokens = [*model.start_tokens, *model.tokenize(text)]
    count = len(tokens)
    for _ in range(8):
        tokens.append(int(made.logits(tokens)[-1].argmax()))
    assert said.text.startswith(model.detokenize(tokens[count:]).rstrip("\ufffd"))
    assert (said.prefill_rate, said.decode_rate) == (None, None)


def test_a_text_too_short_is_refused(parts: Path) -> None:
    with pytest.raises(OptionError, match="holds too little to score"):
        measure_perplexity(CoreMLModel(parts), "a")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"add_bos_token": True, "bos_token": "7"}, "7"),
        ({"add_bos_token": True, "bos_token": {"content": "7"}}, "7"),
        ({"add_bos_token": False, "bos_token": "7"}, ""),
    ],
)
def test_what_stands_before_a_text(
    parts: Path, tmp_path: Path, settings: dict[str, Any], text: str
) -> None:
    folder = copied(parts, tmp_path)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    model = CoreMLModel(folder)
    assert model.start_tokens == model.tokenize(text)


# Refusals -----------------------------------------------------------------------------------------


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(LiteRTLMError) as caught:
        action()
    return str(caught.value)


def test_numbers_beyond_float16_are_named(made: Made, tmp_path: Path) -> None:
    folder = make_folder(made.folder, tmp_path / "large", scale=1e5)
    model = CoreMLModel(folder)
    assert refusal(lambda: list(model.logits(TOKENS[:5], 2))) == (
        f"{folder}, its numbers exceed float16's 65504 at position 2, "
        "convert the model with --fp16-scale auto"
    )


def test_a_head_without_logits_is_refused(made: Made, tmp_path: Path) -> None:
    folder = make_folder(made.folder, tmp_path / "argmax", argmax=True)
    assert refusal(lambda: CoreMLModel(folder)) == (
        f"{folder / 'tiny_lm_head.mlpackage'}, gives argmax_idx, argmax_val, no logits to compare, "
        "convert the model without --argmax"
    )


def test_a_large_model_is_refused_before_it_is_read(parts: Path, tmp_path: Path) -> None:
    folder = copied(parts, tmp_path)
    f, layout = Function("main"), BlobLayout()
    x = f.add_input("hidden_states", (1, 65536, 1, 1), DType.FLOAT16)
    record = layout.add(DType.FLOAT16, (7000, 65536, 1, 1))
    f.add_output("logits1", f.make_conv(x, f.weight("w", record)))
    head = folder / "tiny_lm_head.mlpackage"
    (head / MODEL).write_bytes(model_message([f], {}, {}, {}))
    with (head / WEIGHTS).open("wb") as file:  # almost all of it is a hole
        for offset, content in layout.heads():
            file.seek(offset)
            file.write(content)
        file.truncate(layout.nbytes)
    assert refusal(lambda: CoreMLModel(folder)) == (
        f"{folder}, has 459 million weights, and the interpreter is for small models, of at most "
        "400 million, measure a smaller model, or this one's .litertlm file"
    )


def _without(key: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        meta = yaml.safe_load((folder / "meta.yaml").read_text())
        del meta["model_info"]["parameters"][key]
        (folder / "meta.yaml").write_text(yaml.safe_dump(meta))

    return edit


def _writes(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: (f / "meta.yaml").unlink(), "meta.yaml, it is missing, pass a .mlpackage or a"),
        (_writes("meta.yaml", "a: ["), "meta.yaml, damaged: it is not what ANEMLL's runtimes read"),
        (_without("context_length"), "meta.yaml, does not say 'context_length'"),
        (_without("ffn"), "meta.yaml, does not say what its packages are called"),
        (
            lambda f: shutil.rmtree(f / "tiny_FFN_PF_chunk_02of02.mlpackage"),
            "tiny_FFN_PF_chunk_02of02.mlpackage, it is missing, and meta.yaml names it",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json, no such file or directory"),
        (_writes("tokenizer.json", "{}"), "the tokenizer does not load"),
    ],
)
def test_what_is_missing_is_named(
    parts: Path, tmp_path: Path, edit: Callable[[Path], object], message: str
) -> None:
    folder = copied(parts, tmp_path)
    edit(folder)
    assert message in refusal(lambda: CoreMLModel(folder).tokenize("a"))


def test_a_package_of_another_model_is_refused(parts: Path, tmp_path: Path) -> None:
    folder = copied(parts, tmp_path)
    shutil.copytree(folder / "tiny_lm_head.mlpackage", folder / "other.mlpackage")
    assert refusal(lambda: CoreMLModel(folder / "other.mlpackage")) == (
        f"{folder / 'other.mlpackage'}, is no part of the model of meta.yaml beside it, "
        "name one of its parts"
    )
