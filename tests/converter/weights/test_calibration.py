"""Calibration says of inputs what transformers does, and leaves the network as it is."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from converter.output.atomic_file import AtomicFile
from converter.weights.calibration import TOKENS, Inputs, calibrate, to_integers
from converter.weights.quantization import Clip
from tests.tiny_models import TINY_CONFIGS, make_model, write_tokenizer

# Weights and inputs are rounded to int8 on the way; the mean is 1.
TOLERANCE = 0.1


def calibrated(folder: Path, scheme: str = "dynamic_int4", **options: Any) -> dict[str, Inputs]:
    """What a conversion finds of the inputs of matrices."""
    inputs: dict[str, Inputs] = {}
    with open_checkpoint(folder) as checkpoint:
        chosen = ConvertOptions(scheme, prefill_lengths=(8,), cache_length=32, **options)
        converter = ModelConverter(checkpoint, "tiny", chosen)
        plan = converter.plan()
        with AtomicFile(folder / "tiny.litertlm") as file:
            converter.stream(plan, file, lambda _: None, inputs.__setitem__)
    return {path: found for path, found in inputs.items() if found.importance is not None}


def importance(found: Inputs) -> np.ndarray:
    """That of the columns before they were scaled."""
    assert found.importance is not None
    return found.importance * (1 if found.factors is None else found.factors**2)


class FloatWeights:
    """The stream's part played in float: every weight as it would be stored, unrounded."""

    def __init__(self, parameters: dict[str, np.ndarray]) -> None:
        self.parameters = parameters
        self.stored: dict[str, np.ndarray] = {}
        self.factors: list[np.ndarray] = []

    def embed(self, tokens: np.ndarray) -> np.ndarray:
        return self.parameters["embedding"][tokens]

    def vector(self, path: str) -> np.ndarray:
        return self.parameters[path]

    def may_scale(self, *paths: str) -> bool:
        return True

    def store(self, inputs: Inputs, *paths: str) -> None:
        for path in paths:
            factors = 1 if inputs.factors is None else inputs.factors
            self.stored[path] = self.parameters[path] * factors

    def multiply(self, inputs: Inputs, x: np.ndarray, *paths: str) -> list[np.ndarray]:
        self.store(inputs, *paths)
        return [x @ self.parameters[path].T for path in paths]

    def divide(self, path: str, factors: np.ndarray | None) -> None:
        if factors is not None:
            self.factors.append(factors)
            before = self.stored.get(path, self.parameters[path])
            self.stored[path] = (before.T / factors).T


@pytest.mark.parametrize("test_id", TINY_CONFIGS)
def test_it_is_that_of_transformers_inputs(test_id: str, tmp_path: Path) -> None:
    """With queries and keys of zero, attention is the mean of all values so far."""
    import torch

    model = make_model(test_id)
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        plan = ModelConverter(checkpoint, "tiny", ConvertOptions(cache_length=32)).plan()
        state = {_plain(name): value for name, value in model.state_dict().items()}
        paths: dict[str, list[str]] = {}
        for weight in plan.weights:
            name = _plain(weight.source.tensor)
            paths.setdefault(name, []).append(weight.path)
            if re.search(r"attention\.[qk](\.bias)?$", weight.path):
                first = weight.source.first_row
                state[name][first : first + weight.shape[0]] = 0
    model.save_pretrained(tmp_path)

    expected: dict[str, np.ndarray] = {}

    def keep(path: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            power = (inputs[0] ** 2).reshape(-1, inputs[0].shape[-1]).mean(dim=0).numpy()
            expected[path] = (power / power.mean() + 0.1) / 1.1

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "vision" not in name:
            for path in paths.get(_plain(f"{name}.weight"), ["lm_head"]):
                module.register_forward_pre_hook(keep(path))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = np.arange(1, TOKENS + 1) * 2654435761 % vocabulary
    with torch.no_grad():
        model(torch.tensor([tokens.tolist()]))

    found = calibrated(tmp_path)
    if "head" not in found:
        tied = [path for path in ("lm_head", "embedding") if path in expected]
        expected["embedding"] = expected.pop(tied[0])
    expected = {path: values for path, values in expected.items() if path in found}
    assert expected.keys() == found.keys()
    for path, values in expected.items():
        np.testing.assert_allclose(
            importance(found[path]), values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=path
        )


@pytest.mark.parametrize("test_id", TINY_CONFIGS)
def test_scaling_leaves_the_network_as_it_is(test_id: str, tmp_path: Path) -> None:
    """Transformers' model says the same with the scaled weights in it."""
    import torch

    model = make_model(test_id)
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or ".bias" in name or ".v_proj" in name or ".up_proj" in name:
                rows = torch.from_numpy(rng.lognormal(0, 1.5, len(parameter)).astype(np.float32))
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.ndim - 1)))
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    tokens = torch.arange(20)[None] * 7 % 50
    with open_checkpoint(tmp_path) as checkpoint, torch.no_grad():
        plan = ModelConverter(checkpoint, "tiny", ConvertOptions(cache_length=32)).plan()
        before = model(tokens).logits
        state = {_plain(name): value for name, value in model.state_dict().items()}
        added = {weight.path: weight.source.add for weight in plan.weights}
        own = {
            weight.path: state[_plain(weight.source.tensor)][
                weight.source.first_row : weight.source.first_row + weight.shape[0]
            ]
            for weight in plan.weights
        }
        weights = FloatWeights({path: own[path].numpy() + added[path] for path in own})
        calibrate(plan.spec, weights)
        for path, values in weights.stored.items():
            own[path].copy_(torch.from_numpy(values - added[path]))
        after = model(tokens).logits

    # A layer has up to four places where columns may be scaled, and two in every family.
    layers = len(plan.spec.layers)
    assert len(weights.factors) >= 2 * layers
    assert sum((factors != 1).any() for factors in weights.factors) > layers
    assert all((np.frexp(factors)[0] == 0.5).all() for factors in weights.factors)
    difference = float((after - before).abs().max() / before.abs().max())
    assert difference < 1e-5


def _plain(name: str) -> str:
    return name.replace("language_", "").replace("model.", "")


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path


def test_threads_and_blocks_do_not_change_a_bit(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrated(llama, threads=1)
    monkeypatch.setattr("converter.weights.stream.BLOCK_VALUES", 1 << 11)
    second = calibrated(llama, threads=3)
    assert first.keys() == second.keys()
    for path, found in first.items():
        np.testing.assert_array_equal(found.importance, second[path].importance)
        np.testing.assert_array_equal(found.factors, second[path].factors)


@pytest.mark.parametrize(
    ("scheme", "clip"),
    [
        ("dynamic_int4", Clip.MAX),
        ("dynamic_int8", Clip.MAX),
        ("int8", Clip.MSE),
        ("fp16", Clip.MSE),
    ],
)
def test_what_is_rounded_plainly_needs_none(llama: Path, scheme: str, clip: Clip) -> None:
    assert calibrated(llama, scheme, clip=clip) == {}


def test_only_what_takes_rounded_inputs_is_scaled(llama: Path) -> None:
    found = calibrated(llama, "dynamic_int4,layers.0-0.attention=fp16,layers.1-1.ffn=int8")
    scaled = {path for path, inputs in found.items() if inputs.factors is not None}
    assert {path.rpartition(".")[0] for path in scaled if path != "head"} == {
        "layers.0.mlp",
        "layers.1.attention",
    }


def test_integers_and_scales() -> None:
    x = np.array([[1.0, -2.0, 0.5], [0, 0, 0]], np.float32)
    integers, scales = to_integers(x)
    assert integers.tolist() == [[64, -127, 32], [0, 0, 0]]
    assert scales[0] == np.float32(2 / 127)
