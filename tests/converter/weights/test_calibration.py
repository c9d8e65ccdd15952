"""Calibration says of inputs what transformers does, and leaves the network as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.decoder import PER_LAYER_TABLE
from converter.families.tensors import WeightSource
from converter.options import ConvertOptions
from converter.output.atomic_file import AtomicFile
from converter.registry import family_of
from converter.weights.calibration import TOKENS, Calibration
from converter.weights.inputs import Inputs, to_integers
from converter.weights.passages import CalibrationText, read_passages
from converter.weights.row_format import Clip
from converter.weights.text_calibration import TextCalibration
from runner.evaluation import graph_logits
from tests.float_weights import FloatWeights
from tests.tiny_models import TINY_CONFIGS, make_model, write_tokenizer

# Weights and inputs are rounded to int8 on the way; the mean is 1. A short convolution multiplies
# three rounded values; and a token may take another expert.
TOLERANCE, TOLERANCE_OF_SOME = 0.1, 0.3
TEXT = "".join(map(chr, range(32, 127))) * 12
IN_FLOAT = 0.01  # the activations are not exactly theirs


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


def parameters_of(model: Any) -> dict[str, tuple[Any, WeightSource]]:
    """The model's own tensor of each weight of the network; of a fused one its rows.

    Where these come in turn with others, their blocks are an axis of their own.
    """
    family, state = family_of(model.config.to_dict()), model.state_dict()
    sources = family.weight_sources(list(state), "safetensors")

    def rows(source: WeightSource, count: int) -> Any:
        tensor, first = _rows(state[source.tensor]), source.first_row
        if source.is_transposed:
            expert, first = divmod(first, state[source.tensor].shape[-1])
            tensor = state[source.tensor][expert].T
        if source.is_flattened:
            tensor = tensor.flatten()
        if source.turns is None:
            return tensor[first:][:count]
        both = tensor[first:][: 2 * count]
        return both.unflatten(0, (-1, 2, source.turns))[:, int(source.is_second)]

    return {
        path: (rows(sources[path], shape[0]), sources[path])
        for path, shape in family.spec().weight_shapes()
    }


def weight(parameter: Any, source: WeightSource) -> np.ndarray:
    """The network's, of what `parameters_of` found."""
    values: np.ndarray = parameter.numpy() * factors(source, parameter.ndim) + source.add
    if source.is_flattened:
        values = values.reshape(-1)
    if source.turns is not None:
        values = values.reshape(-1, *values.shape[2:])
    return -np.exp(values) if source.is_log_of_negative else values


def factors(source: WeightSource, axes: int) -> np.ndarray:
    """What rows are multiplied with."""
    by_row = [factor for rows, factor in source.factors for _ in range(rows)]
    return np.asarray(by_row or [1.0], np.float32).reshape(-1, *[1] * (axes - 1))


def _rows(tensor: Any) -> Any:
    """Those of experts that stand in one tensor are below each other."""
    return tensor.flatten(0, 1) if tensor.ndim == 3 and tensor.shape[1] > 1 else tensor


@pytest.mark.parametrize("test_id", TINY_CONFIGS)
def test_it_is_that_of_transformers_inputs(test_id: str, tmp_path: Path) -> None:
    """With queries and keys of zero, attention is the mean of all values so far.

    Where keys are values, queries alone have to do.
    """
    import torch

    model = make_model(test_id)
    parameters = parameters_of(model)
    has_values = {path.removesuffix("v") for path in parameters if path.endswith("attention.v")}
    for path, (parameter, _) in parameters.items():
        block, _, part = path.removesuffix(".bias").rpartition("attention.")
        if part == "q" or (part == "k" and f"{block}attention." in has_values):
            parameter.zero_()
    model.save_pretrained(tmp_path)
    write_tokenizer(tmp_path)

    expected: dict[str, np.ndarray] = {}
    powers: dict[str, list[np.ndarray]] = {}

    def keep(tensor: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            powers.setdefault(tensor, []).append(
                (inputs[0] ** 2).reshape(-1, inputs[0].shape[-1]).mean(dim=0).numpy()
            )
            power = np.mean(powers[tensor], axis=0)  # of all its calls
            expected[tensor] = (power / power.mean() + 0.1) / 1.1

        return hook

    def of_expert(path: str) -> str:
        parts = path.split(".")
        return f".{parts[4]}" if "experts" in parts and parts[-1] == "down" else ""

    def gated(module: Any, x: Any, e: int) -> Any:
        if hasattr(module, "gate_up_proj_bias"):  # gpt-oss
            return module._apply_gate(x @ module.gate_up_proj[e] + module.gate_up_proj_bias[e])
        gate, up = (x @ module.gate_up_proj[e].T).chunk(2, dim=-1)
        return module.act_fn(gate) * up

    def keep_of_experts(tensor: str) -> Any:
        """Of the last matrix of each that a token takes; of the others what all have."""

        def hook(module: Any, inputs: Any) -> None:
            x, chosen = inputs[0].reshape(-1, inputs[0].shape[-1]), inputs[1]
            keep(f"{tensor}.gate_up_proj")(module, (x,))
            for e in range(len(module.down_proj)):
                own = x[(chosen == e).any(dim=-1)]
                if len(own):
                    keep(f"{tensor}.down_proj.{e}")(module, (gated(module, own, e),))

        return hook

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_pre_hook(keep_of_experts(name))
        if type(module).__name__.endswith("TopKRouter"):
            module.register_forward_pre_hook(keep(f"{name}.weight"))
        if isinstance(module, torch.nn.Linear) and "vision" not in name:
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    vocabulary = model.get_input_embeddings().weight.shape[0]
    tokens = np.arange(1, TOKENS + 1) * 2654435761 % vocabulary
    with torch.no_grad():
        model(torch.tensor([tokens.tolist()]))

    found = calibrated(tmp_path)
    stored = {path: weight(*found) for path, found in parameters.items()}
    matrices = {path for path, values in stored.items() if values.ndim == 2}
    unknown = matrices - found.keys() - {PER_LAYER_TABLE}
    assert {path for path in unknown if not of_expert(path)} == {"embedding"}
    weights = FloatWeights(stored)
    Calibration(family_of(model.config.to_dict()).spec(), weights).run()
    is_rough = any(
        part in path for path in parameters for part in (".conv.", ".experts.", ".mamba.")
    )
    # Of what rounding does, delta nets make more, in some columns; so does a token that takes
    # another expert in an earlier layer.
    is_rougher = any(part in path for path in parameters for part in (".delta.", ".experts."))
    share = 0.9 if is_rougher else 1
    rounded = TOLERANCE_OF_SOME if is_rough or share < 1 else TOLERANCE
    for path, inputs in found.items():
        values = expected[parameters[path][1].tensor + of_expert(path)]
        compared = [(weights.inputs[path], IN_FLOAT, 1.0)]
        if not of_expert(path):  # where inputs are rounded, a token may take another expert
            compared.append((inputs, rounded, share))
        for what, off, of in compared:
            apart = np.abs(importance(what) - values) / (1 + values)
            assert np.quantile(apart, of) <= off, path


@pytest.mark.parametrize("test_id", TINY_CONFIGS)
def test_scaling_leaves_the_network_as_it_is(test_id: str, tmp_path: Path) -> None:
    """Transformers' model says the same with the scaled weights in it."""
    import torch

    model = make_model(test_id)
    rng = np.random.default_rng(0)
    parameters = parameters_of(model)
    for path, (parameter, _) in parameters.items():
        if path.removesuffix(".bias").endswith(("norm", ".v", ".up")) or path.endswith(".bias"):
            count = parameter.numel() if path.endswith(".bias") else len(parameter)
            rows = torch.from_numpy(rng.lognormal(0, 1.5, count).astype(np.float32))
            shape = parameter.shape if path.endswith(".bias") else (-1, *[1] * (parameter.ndim - 1))
            parameter.mul_(rows.reshape(shape))
    tokens = torch.arange(20)[None] * 7 % 50
    spec = family_of(model.config.to_dict()).spec()
    with torch.no_grad():
        before = model(tokens).logits
        weights = FloatWeights({path: weight(*found) for path, found in parameters.items()})
        Calibration(spec, weights).run()
        for path, values in weights.stored.items():
            found, source = parameters[path]
            found.copy_(
                torch.from_numpy((values - source.add) / factors(source, values.ndim)).reshape(
                    found.shape
                )
            )
        after = model(tokens).logits

    # A block has up to two places where columns may be scaled, and one in every family.
    blocks = sum(part is not None for at in spec.layers for part in (at.mixer, at.feed_forward))
    assert len(weights.factors) >= blocks
    assert sum((factors != 1).any() for factors in weights.factors) > blocks / 2
    assert all((np.frexp(factors)[0] == 0.5).all() for factors in weights.factors)
    difference = float((after - before).abs().max() / before.abs().max())
    assert difference < 1e-5


# One of each kind of attention and feed-forward block that a text can be sent through; of those
# whose neighbours are rotated, queries and keys have another order here.
OF_TEXT = (
    "llama", "qwen2", "qwen3", "gemma2", "gemma3_text", "gemma4_unified_text", "olmo2", "phi",
    "smollm3", "hunyuan_v1_dense", "nemotron", "granite",
)  # fmt: skip


@pytest.mark.parametrize("test_id", OF_TEXT)
def test_of_a_text_it_is_what_reaches_transformers_matrices(test_id: str) -> None:
    """Number by number, behind whole attention; passages do not look at each other."""
    import torch

    model = make_model(test_id)
    parameters = parameters_of(model)
    expected: dict[str, np.ndarray] = {}

    def keep(tensor: str) -> Any:
        def hook(_module: Any, inputs: Any) -> None:
            expected[tensor] = inputs[0].reshape(-1, inputs[0].shape[-1]).numpy()

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "vision" not in name:
            module.register_forward_pre_hook(keep(f"{name}.weight"))
    text = np.random.default_rng(0).integers(0, 250, (2, 48))
    with torch.no_grad():
        model(torch.from_numpy(text))
    weights = FloatWeights({path: weight(*found) for path, found in parameters.items()})
    TextCalibration(family_of(model.config.to_dict()).spec(), weights, text).run()
    seen = {path: inputs for path, inputs in weights.inputs.items() if inputs.moment is not None}
    assert len(seen) >= 7
    for path, inputs in seen.items():
        tensor = "lm_head.weight" if path == "embedding" else parameters[path][1].tensor
        assert inputs.moment is not None
        found = inputs.moment.inputs * (1 if inputs.factors is None else inputs.factors)
        scale = np.abs(expected[tensor]).max()
        np.testing.assert_allclose(found / scale, expected[tensor] / scale, atol=2e-3, err_msg=path)


def test_of_a_text_it_is_known_what_rounding_has_lost(uneven: Path) -> None:
    """Beside what reaches matrices in int4, what reaches transformers'."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(uneven)
    spec = family_of(model.config.to_dict()).spec()
    with open_checkpoint(uneven) as checkpoint:
        tokens = read_passages(checkpoint, "tiny", spec, CalibrationText(TEXT))
    expected: dict[str, np.ndarray] = {}
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _, x: expected.update(down=x[0].reshape(-1, x[0].shape[-1]).numpy())
    )
    with torch.no_grad():
        model(torch.from_numpy(tokens))
    hook.remove()
    inputs = calibrated(uneven, "dynamic_int4", calibrate=CalibrationText(TEXT))
    found = inputs["layers.1.mlp.down"]
    assert found.moment is not None
    assert found.moment.exact is not None
    factors_ = 1 if found.factors is None else found.factors
    scale = np.abs(expected["down"]).max()
    off_exact, off_stored = (
        np.abs(x * factors_ - expected["down"]).max() / scale
        for x in (found.moment.exact, found.moment.inputs)
    )
    assert off_exact < 2e-3 < 0.02 < off_stored


def test_scaling_by_a_text_leaves_the_network_as_it_is() -> None:
    """Three query heads to a value head, whose inputs are no more the same."""
    import torch

    model = make_model("llama")
    parameters = parameters_of(model)
    spec = family_of(model.config.to_dict()).spec()
    tokens = torch.arange(20)[None] * 7 % 50
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for path, (parameter, _) in parameters.items():
            if path.endswith((".v", ".up", ".norm")):
                rows = torch.from_numpy(rng.lognormal(0, 1.5, len(parameter)).astype(np.float32))
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.ndim - 1)))
        before = model(tokens).logits
        weights = FloatWeights({path: weight(*found) for path, found in parameters.items()})
        TextCalibration(spec, weights, rng.integers(0, 250, (2, 48))).run()
        assert any((f != 1).any() for f in weights.factors)
        for path, values in weights.stored.items():
            parameters[path][0].copy_(torch.from_numpy(values).reshape(parameters[path][0].shape))
        after = model(tokens).logits
    assert float((after - before).abs().max() / before.abs().max()) < 1e-5


@pytest.mark.parametrize(
    ("scheme", "alpha", "step"),
    [("dynamic_int8", 0.5, 0.25), ("dynamic_int8_a16", 0.25, 1), ("dynamic_int4", 0.25, 1)],
)
def test_by_a_text_int8_is_equalised_fully(
    scheme: str, alpha: float, step: float, uneven: Path
) -> None:
    """A factor is a power of the root mean square, rounded to one of 2 to so many steps."""
    found = calibrated(uneven, scheme, calibrate=CalibrationText(TEXT))
    inputs = found["layers.1.mlp.down"]
    assert inputs.moment is not None
    assert inputs.factors is not None
    size = np.log2(((inputs.moment.inputs * inputs.factors) ** 2).mean(axis=0)) / 2
    known = size > size.max() - 3  # far above the floor
    left = np.log2(inputs.factors[known]) - alpha * size[known]
    assert np.ptp(left) < step + 0.2  # of rounding, and what the floor bends
    exponents = np.log2(inputs.factors) / step
    np.testing.assert_allclose(exponents, np.rint(exponents), atol=1e-5)
    assert np.ptp(np.log2(inputs.factors)) >= 2 * alpha * 2


def test_int8_loses_less_by_a_text(uneven: Path, tmp_path: Path) -> None:
    """In the engine's kernels, of tokens that it has not seen."""
    import torch
    from transformers import AutoModelForCausalLM

    tokens = [i * 7 % 90 + 1 for i in range(24)]
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained(uneven)(torch.tensor([tokens])).logits[0]

    def lost(calibration: CalibrationText | None) -> float:
        chosen = ConvertOptions(
            "dynamic_int8", calibrate=calibration, prefill_lengths=(8,), cache_length=32
        )
        with open_checkpoint(uneven) as checkpoint:
            ModelConverter(checkpoint, "tiny", chosen).convert(tmp_path / "tiny")
        found = np.stack([*graph_logits(tmp_path / "tiny", tokens)])
        return float(((found - whole.numpy()) ** 2).mean())

    assert lost(CalibrationText(TEXT)) < 0.7 * lost(None)


@pytest.fixture
def uneven(tmp_path: Path) -> Path:
    """Some columns' inputs are much larger than others'."""
    import torch

    model, rng = make_model("llama"), np.random.default_rng(0)
    for path, (parameter, _) in parameters_of(model).items():
        if path.endswith((".v", ".up", ".norm")):
            rows = torch.from_numpy(rng.lognormal(0, 1.5, len(parameter)).astype(np.float32))
            parameter.mul_(rows.reshape(-1, *[1] * (parameter.ndim - 1)))
    folder = tmp_path / "uneven"
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    make_model("llama").save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    return tmp_path


def test_threads_and_blocks_do_not_change_a_bit(
    llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = calibrated(llama, threads=1)
    monkeypatch.setattr("converter.weights.planned_weight.BLOCK_VALUES", 1 << 11)
    second = calibrated(llama, threads=3)
    assert first.keys() == second.keys()
    for path, found in first.items():
        np.testing.assert_array_equal(found.importance, second[path].importance)
        np.testing.assert_array_equal(found.factors, second[path].factors)


def test_nor_do_threads_with_a_text(llama: Path, tmp_path: Path) -> None:
    """And all schemes go through it: what is stored, a product is taken of."""
    scheme = "dynamic_int4,layers.0-0.attention=fp16,layers.1-1.ffn=dynamic_int8"

    def written(text: str, threads: int) -> bytes:
        with open_checkpoint(llama) as checkpoint:
            chosen = ConvertOptions(
                scheme,
                calibrate=CalibrationText(text * 12),
                prefill_lengths=(8,),
                cache_length=32,
                threads=threads,
            )
            ModelConverter(checkpoint, "tiny", chosen).convert(tmp_path / "tiny")
        return (tmp_path / "tiny").read_bytes()

    text = "".join(map(chr, range(32, 127)))
    first = written(text, threads=1)
    assert written(text, threads=3) == first
    assert written(text[::-1], threads=3) != first


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
