"""The importance of columns is what transformers' inputs say, and the same on every machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.base import ConvertOptions, ModelConverter
from converter.importance import TOKENS, integer_product, to_integers
from converter.quantization import Clip
from converter.report import weights_bytes
from tests.tiny_models import TINY_CONFIGS, make_model, write_tokenizer

# Weights and inputs are rounded to int8 on the way; the mean is 1.
TOLERANCE = 0.1
_NAMES = {"self_attn.": "attention.", "_proj": "", "model.": "", "language_": ""}


def measured(folder: Path, **options: Any) -> tuple[dict[str, np.ndarray], list[int], int]:
    """The importance, what a conversion's progress was told, and what it should add up to."""
    told: list[int] = []
    with open_checkpoint(folder) as checkpoint:
        chosen = ConvertOptions("dynamic_int4", prefill_lengths=(8,), cache_length=32, **options)
        converter = ModelConverter(checkpoint, "tiny", chosen)
        plan = converter.convert(folder / "tiny.litertlm", told.append)
        return converter.measure_importance(plan), told, weights_bytes(plan)


@pytest.mark.parametrize("test_id", TINY_CONFIGS)
def test_it_is_that_of_transformers_inputs(test_id: str, tmp_path: Path) -> None:
    """With queries and keys of zero, attention is the mean of all values so far."""
    import torch

    model = make_model(test_id)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".q_proj" in name or ".k_proj" in name:
                parameter.zero_()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)

    expected: dict[str, np.ndarray] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            power = (inputs[0] ** 2).reshape(-1, inputs[0].shape[-1]).mean(dim=0).numpy()
            expected[path] = (power / power.mean() + 0.1) / 1.1

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "vision" not in name:
            path = name
            for theirs, ours in _NAMES.items():
                path = path.replace(theirs, ours)
            module.register_forward_pre_hook(keep(path))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = np.arange(1, TOKENS + 1) * 2654435761 % vocabulary
    with torch.no_grad():
        model(torch.tensor([tokens.tolist()]))

    found, _, _ = measured(tmp_path)
    if "head" not in found:
        expected["embedding"] = expected.pop("lm_head")
    else:
        expected["head"] = expected.pop("lm_head")
    expected = {path: values for path, values in expected.items() if path in found}
    assert expected.keys() == found.keys()
    for path, values in expected.items():
        np.testing.assert_allclose(
            found[path], values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=path
        )


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path


def test_threads_and_blocks_do_not_change_a_bit(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _, _ = measured(llama, threads=1)
    monkeypatch.setattr("converter.base.BLOCK_VALUES", 1 << 11)
    second, _, _ = measured(llama, threads=3)
    assert first.keys() == second.keys()
    for path, values in first.items():
        np.testing.assert_array_equal(values, second[path])


def test_progress_ends_at_all_bytes(llama: Path) -> None:
    _, told, total = measured(llama)
    assert sum(told) == total


def test_without_a_search_nothing_is_measured(llama: Path) -> None:
    assert measured(llama, clip=Clip.MAX)[0] == {}


def test_products_are_exact() -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-127, 128, (4, 5000)).astype(np.float32)
    rows = rng.integers(-127, 128, (6, 5000)).astype(np.int8)
    x[0], rows[0] = 127, 127  # the largest sum
    expected = x.astype(np.int64) @ rows.astype(np.int64).T
    np.testing.assert_array_equal(integer_product(x, rows), expected)


def test_integers_and_scales() -> None:
    x = np.array([[1.0, -2.0, 0.5], [0, 0, 0]], np.float32)
    integers, scales = to_integers(x)
    assert integers.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales[0, 0] == np.float32(2 / 127)
