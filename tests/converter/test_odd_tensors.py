"""Weights as publishers and trainers leave them, against transformers of the same folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter, Plan
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from runner.interpreter import GraphRunner
from tests.converter.test_base import write_llama_gguf
from tests.tiny_models import make_checkpoint, text_logits

Tensors = dict[str, torch.Tensor]
WEIGHTS = "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOKENS = np.random.default_rng(0).integers(0, 256, 10).tolist()


def convert(source: Path, output: Path, scheme: str = "fp32") -> Plan:
    options = ConvertOptions(quantize=scheme, prefill_lengths=(8,), cache_length=32)
    with open_checkpoint(source) as checkpoint:
        return ModelConverter(checkpoint, "tiny", options).convert(output)


def refusal(source: Path) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as error:
        convert(source, source / "out" / "m")
    assert not (source / "out").exists()
    return error.value


def logits(bundle: Path) -> np.ndarray:
    runner = GraphRunner(bundle)
    return np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(TOKENS)])


def transformers_logits(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return text_logits(model.eval(), TOKENS)


def assert_as_transformers(folder: Path) -> Plan:
    plan = convert(folder, folder / "m")
    np.testing.assert_allclose(logits(folder / "m"), transformers_logits(folder), atol=1e-3)
    return plan


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> Tensors:
    tensors = change(load_file(folder / WEIGHTS))
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    return tensors


def noise(table: torch.Tensor) -> torch.Tensor:
    return table + 0.3 * table.std() * torch.randn(table.shape, generator=torch.manual_seed(1))


def last_row_doubled(table: torch.Tensor) -> torch.Tensor:
    return torch.cat([table[:-1], 2 * table[-1:]])


# A tied head -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-tied-mqa", "qwen2-tied", "gemma3_text"])
@pytest.mark.parametrize(
    ("head_of", "tables"),
    [
        (torch.clone, 1),
        (noise, 2),
        (last_row_doubled, 2),  # new tokens alone were trained
        (lambda table: table.to(torch.bfloat16), 2),
    ],
)
def test_a_tied_head_that_is_there_is_compared(
    tmp_path: Path, family: str, head_of: Callable[[torch.Tensor], torch.Tensor], tables: int
) -> None:
    make_checkpoint(family, tmp_path)
    edit(tmp_path, lambda stored: {**stored, HEAD: head_of(stored[EMBEDDING])})
    plan = assert_as_transformers(tmp_path)
    assert sum(weight.path in ("embedding", "head") for weight in plan.weights) == tables
    system = read_bundle(tmp_path / "m").system
    assert ("head" in system) == (tables == 2)


def test_a_tied_table_under_the_heads_name(tmp_path: Path) -> None:
    make_checkpoint("qwen2-tied", tmp_path)
    edit(tmp_path, lambda stored: {HEAD: stored.pop(EMBEDDING), **stored})
    assert_as_transformers(tmp_path)


def test_a_tied_head_of_another_shape_is_refused(tmp_path: Path) -> None:
    make_checkpoint("qwen2-tied", tmp_path)
    edit(tmp_path, lambda stored: {**stored, HEAD: stored[EMBEDDING][:-8]})
    assert "lm_head.weight is [312, 64], config says [320, 64]" in str(refusal(tmp_path))


def test_an_untied_head_that_is_missing_is_refused(tmp_path: Path) -> None:
    """transformers draws one at random."""
    make_checkpoint("llama", tmp_path)
    edit(tmp_path, lambda stored: {name: t for name, t in stored.items() if name != HEAD})
    assert str(refusal(tmp_path)) == (
        "llama checkpoint, lacks 1 tensors: lm_head.weight, if the head is the embedding, say so "
        "in config.json: tie_word_embeddings=true"
    )


def test_a_ggufs_head_is_its_own(tmp_path: Path) -> None:
    """llama.cpp takes output.weight wherever it is there, whatever config.json said."""
    make_checkpoint("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    expected = transformers_logits(tmp_path)
    convert(write_llama_gguf(tmp_path, tmp_path / "m.gguf"), tmp_path / "m")
    np.testing.assert_allclose(logits(tmp_path / "m"), expected, atol=1e-3)


# Tensors that the network does not have ----------------------------------------------------------


def beside(**extra: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda stored: {**stored, **{n.replace("__", "."): t for n, t in extra.items()}}


def another_layer(stored: Tensors) -> Tensors:
    more = {k.replace("layers.1.", "layers.2."): v for k, v in stored.items() if "layers.1." in k}
    return {**stored, **more}


BUFFERS = {
    "model.layers.0.self_attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.bool),
    "model.layers.0.self_attn.masked_bias": torch.tensor(-1e9),
    "model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(8),
    "model.rotary_emb.inv_freq": torch.ones(8),
    "model.position_ids": torch.arange(4).reshape(1, 4),
    "step": torch.zeros(0),
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            beside(mtp__fc__weight=torch.ones(4, 4), mtp__norm__weight=torch.ones(4)),
            "mtp.* (2 tensors)",
        ),
        (another_layer, "model.layers.2.* (9 tensors)"),
        (beside(v_head__summary__bias=torch.ones(1)), "v_head.summary.bias"),
        (beside(score__weight=torch.ones(2, 64)), "score.weight"),
        (beside(model__mtp__layers__0__norm__weight=torch.ones(64)), "norm.weight"),
        (lambda stored: {**stored, **BUFFERS}, "model.position_ids"),
    ],
)
def test_what_has_no_place_is_left_out_and_said(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Tensors], Tensors],
    said: str,
) -> None:
    make_checkpoint("llama", tmp_path / "m")
    edit(tmp_path / "m", change)
    assert_as_transformers(tmp_path / "m")
    assert said in read_bundle(tmp_path / "m/m").system["left out"]
    assert main(["convert", str(tmp_path / "m"), "--output-dir", str(tmp_path)]) == 0
    output = capsys.readouterr()
    assert "litert-lm-cli: left out: " in output.err
    assert main(["inspect", output.out.strip()]) == 0
    assert "  left out: " in capsys.readouterr().out


def test_a_complete_checkpoint_leaves_nothing_out(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    assert not convert(tmp_path, tmp_path / "m").found


LAYER = "model.layers.0."


@pytest.mark.parametrize(
    ("extra", "kind", "message"),
    [
        (LAYER + "self_attn.q_proj.bias", SourceError, "what it says about biases and norms"),
        (LAYER + "self_attn.q_norm.weight", SourceError, "what it says about biases and norms"),
        (LAYER + "self_attn.sinks", SourceError, "1 tensors that this network does not have"),
        (LAYER + "pre_feedforward_layernorm.weight", SourceError, "does not have"),
        ("lm_head.bias", SourceError, "lm_head.bias"),
        ("model.norm.bias", SourceError, "model.norm.bias"),
        (LAYER + "mlp.up_proj.lora_A.weight", UnsupportedError, "an adapter that is not merged"),
        ("lm_head.modules_to_save.weight", UnsupportedError, "an adapter that is not merged"),
        (LAYER + "mlp.up_proj.weight_scale_inv", UnsupportedError, "are quantised already"),
        (LAYER + "mlp.up_proj.weight.absmax", UnsupportedError, "are quantised already"),
        (LAYER + "mlp.up_proj.scale", UnsupportedError, "holds quantised weights"),
    ],
)
def test_what_would_change_the_numbers_is_refused(
    tmp_path: Path, extra: str, kind: type[LiteRTLMError], message: str
) -> None:
    make_checkpoint("llama-tied-mqa", tmp_path)
    edit(tmp_path, lambda stored: {**stored, extra: torch.ones(1)})
    error = refusal(tmp_path)
    assert isinstance(error, kind)
    assert message in str(error)
    assert extra in str(error)


# The first: Qwen as a llama, whose config has a bias for every projection of attention or for none.
@pytest.mark.parametrize(
    ("family", "absent", "said"),
    [
        ("llama-biases", r"o_proj.bias", "o in 2 layers"),
        ("llama-biases", r"(gate|up)_proj.bias", "gate in 2 layers, up in 2 layers"),
        ("llama-biases", r"1\.mlp.down_proj.bias", "down in 1 layers"),
        ("qwen2", r"0\.self_attn.(q|v)_proj.bias", "q in 1 layers, v in 1 layers"),
        ("qwen3-tied-bias", r"bias", "q in 2 layers, k in 2 layers, v in 2 layers, o in 2 layers"),
    ],
)
def test_a_bias_that_is_not_there_is_zero(
    tmp_path: Path, family: str, absent: str, said: str
) -> None:
    """transformers starts them so."""
    make_checkpoint(family, tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    gone = {name for name in whole if re.search(absent, name)}
    edit(tmp_path, lambda stored: {n: t for n, t in stored.items() if n not in gone})
    plan = assert_as_transformers(tmp_path)
    assert plan.found == {"biases": f"zero where the checkpoint has none: {said}"}
    # The rounding of everything else, which looks at what the biases do, is that of zeros.
    convert(tmp_path, tmp_path / "m", "dynamic_int8")
    edit(tmp_path, lambda _: {n: t * 0 if n in gone else t for n, t in whole.items()})
    convert(tmp_path, tmp_path / "zeros", "dynamic_int8")
    np.testing.assert_array_equal(logits(tmp_path / "m"), logits(tmp_path / "zeros"))


def test_a_classifier_writes_no_text(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    edit(tmp_path, lambda stored: {"score.weight": stored.pop(HEAD)[:2], **stored})
    error = refusal(tmp_path)
    assert isinstance(error, UnsupportedError)
    assert error.why == "has a classifier's head (score.weight) and none that writes text"


def test_an_adapters_own_names_are_told_before_what_is_missing(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    edit(
        tmp_path,
        lambda stored: {
            name.replace("q_proj.weight", "q_proj.base_layer.weight"): tensor
            for name, tensor in stored.items()
        },
    )
    assert "holds an adapter that is not merged" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: f"module.{name}",
        lambda name: f"module._orig_mod.{name}",
        lambda name: f"base_model.model.{name}",
        lambda name: f"_forward_module.{name}",
        lambda name: f"language_model.{name}",
        lambda name: name.removeprefix("model."),
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        lambda name: name.replace("layers.1.", "layers.1._checkpoint_wrapped_module."),
        lambda name: f"_fsdp_wrapped_module.{name}",
    ],
)
def test_wrappers_change_names_alone(tmp_path: Path, wrap: Callable[[str], str]) -> None:
    make_checkpoint("llama", tmp_path)
    convert(tmp_path, tmp_path / "first")
    edit(tmp_path, lambda stored: {wrap(name): tensor for name, tensor in stored.items()})
    convert(tmp_path, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()


# Files -------------------------------------------------------------------------------------------


def shard(folder: Path, **index: str | None) -> None:
    """Two shards and their index; `index` changes entries (None: without it)."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(tensors)
    entries: dict[str, str | None] = {}
    for number, part in ((1, names[::2]), (2, names[1::2])):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        entries |= dict.fromkeys(part, file)
    entries |= {name.replace("__", "."): file for name, file in index.items()}
    kept = {name: file for name, file in entries.items() if file is not None}
    content = json.dumps({"metadata": {}, "weight_map": kept})
    (folder / "model.safetensors.index.json").write_text(content)


SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize(
    "index",
    [
        {},
        {"mtp__fc__weight": SECOND},  # which no shard has
        {"model__norm__weight": None},  # which a shard has all the same
        dict.fromkeys(("model__norm__weight", "lm_head__weight"), SECOND),  # one of them is not
    ],
)
def test_an_index_names_files_and_no_more(tmp_path: Path, index: dict[str, str | None]) -> None:
    make_checkpoint("llama", tmp_path)
    shard(tmp_path, **index)
    assert_as_transformers(tmp_path)


def test_an_index_may_name_files_in_folders_below(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    shard(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-0000", "weights/model-0000"))
    (tmp_path / "weights").mkdir()
    for file in tmp_path.glob("*.safetensors"):
        file.rename(tmp_path / "weights" / file.name)
    assert_as_transformers(tmp_path)


def test_a_tensor_that_the_index_alone_has_is_missing(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    edit(tmp_path, lambda stored: {n: t for n, t in stored.items() if n != "model.norm.weight"})
    shard(tmp_path, model__norm__weight=SECOND)
    assert "lacks 1 tensors: norm.weight" in str(refusal(tmp_path))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0,), "up_proj.weight is [0], config says [96, 64], save it whole: DeepSpeed ZeRO-3"),
        ((96, 32), "is [96, 32], config says [96, 64], check that config.json belongs"),
    ],
)
def test_weights_of_another_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...], message: str
) -> None:
    make_checkpoint("llama", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    edit(tmp_path, lambda stored: {**stored, name: torch.zeros(shape)})
    assert message in str(refusal(tmp_path))
