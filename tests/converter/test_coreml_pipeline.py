"""Packages by the pipeline: their numbers against transformers, and their bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from converter.coreml_options import CoreMLOptions
from converter.errors import UnsupportedError
from converter.weights.palettes import Palette
from tests.coreml_checks import check_package
from tests.coreml_models import Parts, Runtime, convert, read_checkpoint
from tests.numpy_decoder import logits
from tests.tiny_models import (
    TINY_CONFIGS,
    make_checkpoint,
    random_model,
    text_logits,
    write_tokenizer,
)

PLAIN = CoreMLOptions(
    context=64, batch=16, lut_layers=None, lut_head=None, chunks=2, fp16_scale=None, threads=1
)
TOKENS = np.random.default_rng(0).integers(3, 250, 60).tolist()
Source = Callable[[str], tuple[Path, np.ndarray]]
# Families, with the norms, biases and factors that a scale of the stream has to do with.
FAMILIES = ("llama-biases", "gemma3_text", "qwen3-tied-bias", "granite", "stablelm-parallel")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A checkpoint's folder, and what transformers says of `TOKENS`."""

    @cache
    def make(test_id: str) -> tuple[Path, np.ndarray]:
        folder = tmp_path_factory.mktemp(test_id)
        model_type, values = TINY_CONFIGS[test_id]
        model = random_model(model_type, values | {"sliding_window": 32})  # as engines want it
        model.save_pretrained(folder)
        write_tokenizer(folder)
        return folder, text_logits(model, TOKENS)

    return make


def check(parts: Parts, expected: np.ndarray, tolerance: float = 2e-2) -> np.ndarray:
    """Every package, and what they say of the last tokens."""
    for path in (*parts.chunks, parts.embeddings, parts.head):
        if path is not None:
            check_package(path)
    found = Runtime(parts).run(TOKENS, prompt=48)
    assert np.abs(found - expected[48:]).max() < tolerance * max(1, expected.std())
    return found


@pytest.mark.parametrize("test_id", FAMILIES)
def test_parts(test_id: str, source: Source, tmp_path: Path) -> None:
    """As the model is, and with a scaled stream, which is the same to the last bits."""
    folder, expected = source(test_id)
    found = check(convert(folder, tmp_path / "plain", PLAIN), expected)
    scaled = replace(PLAIN, fp16_scale=0.125)
    again = check(convert(folder, tmp_path / "scaled", scaled), expected)
    assert np.abs(found - again).max() < 5e-3


def test_everything_in_one_package(source: Source, tmp_path: Path) -> None:
    folder, expected = source("gemma3_text")
    check(convert(folder, tmp_path / "one", replace(PLAIN, monolithic=True)), expected)


@pytest.mark.parametrize("is_monolithic", [False, True])
def test_palettes(is_monolithic: bool, source: Source, tmp_path: Path) -> None:
    """The network of the weights that are stored, which are near the model's."""
    folder, expected = source("qwen3-tied-bias")
    options = replace(
        PLAIN,
        lut_embeddings=Palette(6, 4),
        lut_layers=Palette(4, 8),
        lut_head=Palette(8, 0),
        monolithic=is_monolithic,
    )
    spec, values = read_checkpoint(folder, PLAIN.context)
    parts = convert(folder, tmp_path / "palettes", options)
    stored = Runtime(parts).stored(spec)
    found = check(parts, logits(replace(spec, tied_head=False), stored, TOKENS))
    assert np.corrcoef(found.ravel(), expected[48:].ravel())[0, 1] > 0.95
    assert len(np.unique(stored["embedding"][:4])) <= 64
    assert len(np.unique(stored["layers.1.mlp.down"][8:16])) <= 16
    for path, rows in values.items():
        assert np.corrcoef(stored[path].ravel(), rows.ravel())[0, 1] > 0.98, path


def test_bytes_depend_on_nothing_but_the_model(source: Source, tmp_path: Path) -> None:
    """Neither on the number of threads nor on the day."""
    folder, _ = source("llama-biases")
    options = replace(PLAIN, lut_layers=Palette(4, 8), lut_embeddings=Palette(6, 0))
    for threads in (1, 3):
        convert(folder, tmp_path / str(threads), replace(options, threads=threads))
    first, again = tmp_path / "1", tmp_path / "3"
    files = {path.relative_to(first) for path in first.rglob("*") if path.is_file()}
    assert files == {path.relative_to(again) for path in again.rglob("*") if path.is_file()}
    assert len(files) >= 3 * 4  # a manifest, a model and weights of embeddings, chunks and head
    differ = [path for path in files if (first / path).read_bytes() != (again / path).read_bytes()]
    assert not differ


def test_a_family_without_words_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_checkpoint("lfm2", tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match="a network with short convolutions"):
        convert(tmp_path / "tiny", tmp_path / "out", PLAIN)
    assert not (tmp_path / "out").exists()
