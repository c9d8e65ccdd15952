"""Adapters: the merged bundle against peft's own merge, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors.numpy import load_file, save_file

from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.weights.adapters import WeightedAdapter
from converter.weights.lora_config import READ, REFUSED, WITHOUT_EFFECT
from runner.interpreter import GraphRunner
from tests.converter.test_base import write_llama_gguf
from tests.tiny_models import make_adapter, make_checkpoint, make_model, text_logits


def convert(
    checkpoint: Path, adapter: Path | list[WeightedAdapter], output: Path, **options: Any
) -> Path:
    adapters = [WeightedAdapter(adapter)] if isinstance(adapter, Path) else adapter
    chosen = ConvertOptions(quantize="fp32", lora=adapters, prefill_lengths=(8, 64), **options)
    with open_checkpoint(checkpoint) as opened:
        ModelConverter(opened, "tiny", chosen).convert(output)
    return output


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("qwen3", {"use_rslora": True}),
        ("gemma3_text", {"target_modules": ["q_proj", "down_proj"]}),
        ("qwen2", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"up_proj": 16}}),
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]}),
        ("gemma4_text-experts", {}),  # of its dense blocks, too
    ],
)
def test_as_peft_merges(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    model = make_checkpoint(family, tmp_path / "base")
    tokens = np.random.default_rng(0).integers(0, 256, 40).tolist()
    before = text_logits(model, tokens)
    merged = make_adapter(model, tmp_path / "adapter", **options)
    expected = text_logits(merged, tokens)
    assert np.abs(expected - before).max() > 0.05  # it does something
    runner = GraphRunner(convert(tmp_path / "base", tmp_path / "adapter", tmp_path / "m"))
    runner.prefill(8, tokens[:8])
    for position in range(8, 40):
        logits = runner.decode(tokens[position], position)
        np.testing.assert_allclose(logits, expected[position], atol=1e-3)


def train(base: Path, folder: Path, seed: int = 0, **options: Any) -> None:
    """Save an adapter of a checkpoint, with some training in all that it trains."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], **options}
    adapted = get_peft_model(model, LoraConfig(**settings))
    with torch.no_grad():
        for _, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.eval().save_pretrained(folder)


def peft_logits(base: Path, adapter: Path, tokens: list[int]) -> Any:
    """What peft makes of the two files; not merged, as it merges into both uses of a tied table."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return text_logits(PeftModel.from_pretrained(model, adapter).eval(), tokens)


def assert_as_peft(tmp_path: Path, base: Path, adapter: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 256, 12).tolist()
    assert_logits(
        convert(base, adapter, tmp_path / "m"), tokens, peft_logits(base, adapter, tokens)
    )


def assert_logits(bundle: Path, tokens: list[int], expected: Any) -> None:
    runner = GraphRunner(bundle)
    found = np.stack([np.ravel(runner.decode(token, i)) for i, token in enumerate(tokens)])
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        # Heads and embeddings, tied or not: each use of a tied table may change alone.
        ("llama", {"target_modules": ["q_proj", "lm_head"]}),
        ("qwen2-tied", {"target_modules": ["q_proj", "lm_head"]}),
        ("qwen2-tied", {"target_modules": ["q_proj", "embed_tokens"]}),
        ("qwen2-tied", {"target_modules": ["embed_tokens", "lm_head"]}),
        ("gemma3_text", {"target_modules": ["embed_tokens", "o_proj"]}),
        ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("qwen2-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("qwen2-tied", {"modules_to_save": ["embed_tokens"]}),
        ("qwen2-tied", {"modules_to_save": ["lm_head"]}),
        ("qwen2-tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
        ("qwen2-tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
        # Other weights saved whole; Gemma stores a norm less 1.
        ("gemma3_text", {"modules_to_save": ["norm"]}),
        ("llama", {"modules_to_save": ["up_proj"], "target_modules": ["q_proj"]}),
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only"}),
        ("llama", {"bias": "lora_only"}),
        # Rows set to a length, and single rows of a table; tied uses of it change together.
        ("llama", {"use_dora": True}),
        ("qwen2-tied", {"use_dora": True, "target_modules": ["k_proj", "lm_head"]}),
        ("gemma3_text", {"use_dora": True, "use_rslora": True}),
        ("llama", {"trainable_token_indices": [3, 1, 200]}),
        ("qwen2-tied", {"trainable_token_indices": [3, 1, 200]}),
        ("llama", {"trainable_token_indices": {"lm_head": [7], "embed_tokens": [200, 2]}}),
        # Modules whose weights the network has apart, and heads in an order of their own.
        ("phi3", {"target_modules": "all-linear"}),
        ("phi3", {"target_modules": ["qkv_proj"], "use_dora": True}),
        ("phi3", {"modules_to_save": ["qkv_proj"], "target_modules": ["gate_up_proj"]}),
        ("phi3-longrope-tied", {"target_modules": ["gate_up_proj"], "use_rslora": True}),
        ("glm", {"target_modules": "all-linear", "use_dora": True}),
        ("helium", {"target_modules": ["q_proj", "k_proj"], "bias": "lora_only"}),
        ("cohere", {"target_modules": ["q_proj"], "modules_to_save": ["k_proj"]}),
        ("ernie4_5-biases", {"target_modules": ["k_proj"], "bias": "all"}),
        ("lfm2", {"target_modules": "all-linear", "bias": "all"}),
        ("lfm2-biases-untied", {"target_modules": ["in_proj", "w1"], "use_dora": True}),
        ("lfm2-biases-untied", {"target_modules": ["in_proj"], "bias": "all"}),
        ("lfm2", {"target_modules": ["q_proj"], "modules_to_save": ["conv.conv"]}),
        # Matrices whose rows are multiplied with factors.
        ("falcon_h1", {"target_modules": ["q_proj", "o_proj", "in_proj", "gate_proj"]}),
        ("falcon_h1-norm-first-biases", {"target_modules": ["in_proj", "k_proj"], "bias": "all"}),
        ("falcon_h1", {"target_modules": ["in_proj", "down_proj"], "use_dora": True}),
        ("granitemoehybrid-mamba-groups", {"target_modules": "all-linear", "bias": "all"}),
        ("nemotron_h-biases", {"target_modules": ["in_proj", "up_proj", "q_proj"], "bias": "all"}),
        # What a run started from, where that leaves the base as it is.
        ("llama", {"init_lora_weights": "gaussian"}),
        ("llama", {"init_lora_weights": "orthogonal"}),
        ("llama", {"init_lora_weights": "mica"}),
        ("llama", {"init_lora_weights": False}),
        # Which modules have which rank and factor.
        ("llama", {"alpha_pattern": {r"layers\.[01]\.self_attn\.q_proj": 20}}),
        ("llama", {"alpha_pattern": {"q_proj": 3, "layers.0.self_attn.q_proj": 30}}),
        ("llama", {"alpha_pattern": {"proj": 30}}),
        ("llama", {"use_rslora": True, "rank_pattern": {"^model.*down_proj": 2}}),
        ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
        # Queries and gates, in turn.
        ("qwen3_5_text", {"target_modules": ["q_proj", "in_proj_qkv", "in_proj_a", "out_proj"]}),
        ("qwen3_5_text-biases-tied", {"target_modules": ["q_proj"], "use_dora": True}),
        ("llama", {"target_modules": "all-linear", "exclude_modules": ["v_proj"]}),
        ("llama", {"target_modules": r".*\.1\..*up_proj", "fan_in_fan_out": True}),
    ],
)
def test_as_peft_computes(tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    make_checkpoint(family, tmp_path / "base")
    train(tmp_path / "base", tmp_path / "adapter", **options)
    assert_as_peft(tmp_path, tmp_path / "base", tmp_path / "adapter")


def several(base: Path, *adapters: Path) -> Any:
    """A base with adapters under the names 0, 1, ..., none of them merged."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    for number, adapter in enumerate(adapters):
        if number == 0:
            model = PeftModel.from_pretrained(model, adapter, adapter_name="0")
        else:
            model.load_adapter(adapter, str(number))
    return model.eval()


TOKENS = [3, 1, 200, 7, 90, 14]


@pytest.mark.parametrize(
    ("family", "first", "second"),
    [
        ("llama", {}, {"target_modules": ["q_proj", "up_proj"], "r": 2, "use_rslora": True}),
        ("phi3", {"target_modules": ["qkv_proj"]}, {"target_modules": "all-linear"}),
        # Values that one of them sets, where the other changes nothing.
        ("llama", {"modules_to_save": ["lm_head"]}, {"target_modules": ["v_proj"]}),
        ("llama", {"target_modules": ["v_proj"]}, {"use_dora": True}),
    ],
)
def test_several_one_after_the_other(
    tmp_path: Path, family: str, first: dict[str, Any], second: dict[str, Any]
) -> None:
    base, folders = tmp_path / "base", [tmp_path / "a", tmp_path / "b"]
    make_checkpoint(family, base)
    for seed, options in enumerate((first, second)):
        train(base, folders[seed], seed, **options)
    merged = several(base, *folders).merge_and_unload(adapter_names=["0", "1"])
    bundle = convert(base, [WeightedAdapter(folder) for folder in folders], tmp_path / "m")
    assert_logits(bundle, TOKENS, text_logits(merged, TOKENS))


@pytest.mark.parametrize("weights", [(1.0, 0.5), (0.25, -2.0), (0.0, 1.0)])
def test_several_with_weights(tmp_path: Path, weights: tuple[float, ...]) -> None:
    """The sum that peft calls cat."""
    base, folders = tmp_path / "base", [tmp_path / "a", tmp_path / "b"]
    make_checkpoint("llama", base)
    train(base, folders[0], 0, target_modules=["down_proj", "q_proj", "lm_head"])
    train(base, folders[1], 1, r=2, target_modules=["embed_tokens", "q_proj", "lm_head"])
    model = several(base, *folders)
    model.add_weighted_adapter(["0", "1"], list(weights), "sum", combination_type="cat")
    model.set_adapter("sum")
    adapters = [WeightedAdapter(*each) for each in zip(folders, weights, strict=True)]
    bundle = convert(base, adapters, tmp_path / "m")
    assert_logits(bundle, TOKENS, text_logits(model, TOKENS))


@pytest.mark.parametrize(
    ("options", "tensor"),
    [
        ({"use_dora": True}, "q_proj.weight"),
        ({"modules_to_save": ["lm_head"]}, "lm_head.weight"),
        ({"bias": "all"}, "q_proj.bias"),
        ({"trainable_token_indices": [3]}, "embed_tokens.weight"),
    ],
)
def test_what_is_set_has_no_weight(tmp_path: Path, options: dict[str, Any], tensor: str) -> None:
    make_checkpoint("qwen2", tmp_path / "base")
    train(tmp_path / "base", tmp_path / "adapter", **options)
    with pytest.raises(UnsupportedError) as error:
        convert(tmp_path / "base", [WeightedAdapter(tmp_path / "adapter", 0.5)], tmp_path / "m")
    assert "it sets values (" in str(error.value)
    assert f"{tensor}: they cannot be taken 0.5 times" in str(error.value)


@pytest.mark.parametrize("options", [{"bias": "all"}, {"use_dora": True}])
@pytest.mark.parametrize("swapped", [False, True])
def test_what_is_set_is_changed_by_one_alone(
    tmp_path: Path, options: dict[str, Any], swapped: bool
) -> None:
    make_checkpoint("qwen2", tmp_path / "base")
    train(tmp_path / "base", tmp_path / "a", target_modules=["q_proj"], **options)
    train(tmp_path / "base", tmp_path / "b", **{**options, "use_dora": False})
    adapters = [WeightedAdapter(tmp_path / name) for name in ("ba" if swapped else "ab")]
    with pytest.raises(UnsupportedError, match="it and another adapter change"):
        convert(tmp_path / "base", adapters, tmp_path / "m")


@pytest.mark.parametrize("family", ["llama", "qwen2-tied"])
@pytest.mark.parametrize("change", [0.0, 0.3])
def test_an_embedding_that_was_saved_whole(tmp_path: Path, family: str, change: float) -> None:
    """As axolotl and peft's save_embedding_layers leave it; a tied one is still one table."""
    base, folder = tmp_path / "base", tmp_path / "adapter"
    make_checkpoint(family, base)
    train(base, folder)
    table = load_file(base / "model.safetensors")["model.embed_tokens.weight"]
    table = table + np.float32(change) * np.random.default_rng(1).standard_normal(
        table.shape, np.float32
    )
    edit_weights(folder, {"base_model.model.model.embed_tokens.weight": table})
    assert_as_peft(tmp_path, base, folder)
    if family == "qwen2-tied":
        assert (tmp_path / "m").read_bytes().count(table.tobytes()) == 1


def test_each_expert_by_itself(tmp_path: Path) -> None:
    """As peft saved it before transformers 5, whose experts are no modules any more."""
    model, folder = make_checkpoint("mixtral", tmp_path / "base"), tmp_path / "adapter"
    make_adapter(make_model("mixtral"), folder, target_modules=["q_proj"])
    rng, state = np.random.default_rng(3), model.state_dict()
    changes: dict[str, np.ndarray] = {}
    for part, name, rows in (("w3", "gate_up_proj", slice(96, None)), ("w2", "down_proj", ...)):
        weight = state[f"model.layers.1.mlp.experts.{name}"][4][rows].numpy()
        b, a = (rng.standard_normal(shape, np.float32) for shape in ((64, 4), (4, 96)))
        b, a = (b, a) if part == "w2" else (a.T.copy(), b.T.copy())
        module = f"base_model.model.model.layers.1.block_sparse_moe.experts.4.{part}"
        changes |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
        weight += 6 / 4 * b @ a
    edit_weights(folder, changes, without="lora_")
    tokens = rng.integers(0, 256, 12).tolist()
    assert_logits(
        convert(tmp_path / "base", folder, tmp_path / "m"), tokens, text_logits(model, tokens)
    )


def test_all_experts_at_once(tmp_path: Path) -> None:
    make_checkpoint("mixtral", tmp_path / "base")
    train(
        tmp_path / "base",
        tmp_path / "adapter",
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj"],
    )
    assert "target_parameters=['mlp.experts" in str(refusal(tmp_path / "adapter"))


def test_the_gate_of_a_shared_expert_is_no_matrix(tmp_path: Path) -> None:
    make_checkpoint("qwen2_moe", tmp_path / "base")
    train(tmp_path / "base", tmp_path / "adapter", target_modules=["shared_expert_gate"])
    error = refusal(tmp_path / "adapter")
    assert isinstance(error, UnsupportedError)
    assert "it changes what cannot be merged: " in str(error)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda name: name.replace(".weight", ".default.weight"),
        lambda name: name.removeprefix("base_model.model."),
        lambda name: name.replace("base_model.model.", "base_model.model._orig_mod."),
    ],
)
def test_names_that_older_versions_and_wrappers_give(
    tmp_path: Path, adapter: Path, wrap: Callable[[str], str]
) -> None:
    expected = convert(tmp_path / "base", adapter, tmp_path / "first").read_bytes()
    path = adapter / "adapter_model.safetensors"
    save_file({wrap(name): value for name, value in load_file(path).items()}, path)
    assert convert(tmp_path / "base", adapter, tmp_path / "again").read_bytes() == expected


def test_every_key_of_peft_is_known() -> None:
    from peft import LoraConfig

    fields = {field.name for field in dataclasses.fields(LoraConfig)}
    assert fields | {"merge_weights"} == WITHOUT_EFFECT | READ | REFUSED.keys()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of the tiny Llama, whose checkpoint lies beside it."""
    make_adapter(make_checkpoint("llama", tmp_path / "base"), tmp_path / "adapter")
    return tmp_path / "adapter"


def refusal(adapter: Path) -> LiteRTLMError:
    output = adapter.parent / "out" / "m"
    with pytest.raises(LiteRTLMError) as error:
        convert(adapter.parent / "base", adapter, output)
    assert not output.parent.exists()
    return error.value


def edit_config(adapter: Path, **changes: Any) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(adapter: Path, changes: dict[str, np.ndarray], without: str = "nothing") -> None:
    path = adapter / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if without not in name}
    save_file(kept | changes, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3' is no LoRA adapter"),
        ({"peft_type": None}, "peft_type=None is no LoRA adapter"),
        *(
            ({"init_lora_weights": start}, f"init_lora_weights='{start}': the base was changed")
            for start in ("pissa", "pissa_niter_16", "olora", "OLoRA", "corda", "loftq", "lora_ga")
        ),
        ({"init_lora_weights": "some_day"}, "init_lora_weights='some_day'"),
        *(({key: [1]}, f"{key}=[1]: {why}") for key, why in REFUSED.items()),
        ({"key_of_next_year": {"a": 1}}, "key_of_next_year={'a': 1}: this key is not known"),
    ],
)
def test_what_is_more_than_an_update_is_refused(
    adapter: Path, changes: dict[str, Any], message: str
) -> None:
    edit_config(adapter, **changes)
    error = refusal(adapter)
    assert isinstance(error, UnsupportedError)
    assert message in str(error)
    apart = changes.keys() & {"alora_invocation_tokens", "arrow_config"}
    assert ("take an adapter that is always active" if apart else "convert the result") in str(
        error
    )


def test_keys_that_are_switched_off_do_no_harm(adapter: Path) -> None:
    base = adapter.parent / "base"
    expected = convert(base, adapter, adapter.parent / "first").read_bytes()
    for off in (None, False, [], {}):
        edit_config(adapter, **dict.fromkeys([*REFUSED, "key_of_next_year"], off))
        assert convert(base, adapter, adapter.parent / "again").read_bytes() == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora_alpha": "6"}, "lora_alpha='6' is not a number"),
        ({"alpha_pattern": {"q_proj": None}}, "lora_alpha=None is not a number"),
        ({"alpha_pattern": {"q_proj(": 3}}, "alpha_pattern holds 'q_proj(', no pattern"),
        ({"alpha_pattern": [3]}, "alpha_pattern=[3] is no table"),
        ({"use_dora": True}, "use_dora and the tensors of base_model.model.model.layers.0"),
    ],
)
def test_values_that_make_no_sense(adapter: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(adapter, **changes)
    error = refusal(adapter)
    assert isinstance(error, SourceError)
    assert message in str(error)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "model.layers.0.mlp.gate",
            "it changes weights that this llama has not: layers.0.mlp.gate",
        ),
        ("transformer.h.1.attn.c_attn", "this llama has not: transformer.h.1.attn.c_attn.weight"),
        ("model.layers.31.mlp.up_proj", "for a model of 32 layers or more, and this one has 2"),
    ],
)
def test_layers_of_another_model_are_no_matter_of_merging(
    adapter: Path, module: str, message: str
) -> None:
    edit_config(adapter, base_model_name_or_path="org/larger")
    edit_weights(
        adapter, {f"base_model.model.{module}.lora_A.weight": np.zeros((4, 64), np.float32)}
    )
    error = refusal(adapter)
    assert isinstance(error, SourceError)
    assert message in error.why
    assert error.fix == "take the model that the adapter was made for: org/larger"


@pytest.mark.parametrize(
    "module", ["embed_tokens", "vision_tower.layers.9.up", "lm_head_2", "score"]
)
def test_other_modules_are_refused_by_name(adapter: Path, module: str) -> None:
    name = f"base_model.model.model.{module}.lora_A.weight"
    edit_weights(adapter, {name: np.zeros((4, 64), np.float32)})
    error = refusal(adapter)
    assert isinstance(error, UnsupportedError)
    assert name in str(error)


def test_an_adapter_of_another_model_is_refused(adapter: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    edit_weights(adapter, {name: np.zeros((97, 4), np.float32)})
    assert "layers.1.mlp.up_proj.weight is [97, 4] x [4, 64], the model's is [96, 64]" in str(
        refusal(adapter)
    )


def test_half_an_update_is_refused(adapter: Path) -> None:
    edit_weights(adapter, {}, without="layers.1.mlp.up_proj.lora_B")
    error = refusal(adapter)
    assert isinstance(error, SourceError)
    assert "up_proj.lora_A.weight has no counterpart" in str(error)


@pytest.mark.parametrize(
    ("weights_are_now", "message"),
    [
        ("adapter_model.gguf", "it has no adapter_model.safetensors, if its adapter_model.gguf is"),
        ("adapter_model.bin", "its weights are in PyTorch's pickle format (adapter_model.bin)"),
        ("adapters.safetensors", "it is an adapter of mlx-lm (adapters.safetensors), not of peft"),
    ],
)
def test_a_folder_without_an_adapter_is_refused(
    adapter: Path, weights_are_now: str, message: str
) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / weights_are_now)
    assert message in str(refusal(adapter))


def test_the_folder_of_a_run_names_its_last_checkpoint(adapter: Path) -> None:
    for step in (20, 100):
        shutil.copytree(adapter, adapter.parent / f"run/checkpoint-{step}")
    adapter.rename(adapter.parent / "moved")
    (adapter.parent / "run").rename(adapter)
    assert "pass one of them, for example its checkpoint-100" in str(refusal(adapter))


def test_a_gguf_gets_the_same_update(adapter: Path) -> None:
    """Its queries and keys stand in another order, and its names are others."""
    folder = adapter.parent
    gguf = write_llama_gguf(folder / "base", folder / "base.gguf")
    found = []
    for source in (folder / "base", gguf):
        bundle = convert(source, adapter, folder / f"{source.stem}{source.suffix}.litertlm")
        section = read_bundle(bundle).section("TFLiteModel")
        assert section is not None
        found.append(bundle.read_bytes()[section.offset : section.offset + section.nbytes])
    assert found[0] == found[1]


def test_blocks_that_an_adapter_changes_are_not_the_checkpoints(adapter: Path) -> None:
    """Those of a Q4_0 go in as they are; with an update they are on no grid any more."""
    folder, chosen = adapter.parent, {"quantize": "dynamic_int4", "prefill_lengths": (8,)}
    gguf = write_llama_gguf(folder / "base", folder / "q.gguf", GGMLQuantizationType.Q4_0)
    make_adapter(make_model("llama"), adapter, target_modules=["gate_proj", "up_proj", "down_proj"])
    said = []
    for adapters in ([], [WeightedAdapter(adapter)]):
        with open_checkpoint(gguf) as opened:
            options = ConvertOptions(lora=adapters, **chosen)
            ModelConverter(opened, "tiny", options).convert(folder / "m")
        said.append(read_bundle(folder / "m").system)
    assert [each["attention weights"] for each in said] == [said[0]["attention weights"]] * 2
    assert "% of the blocks as they were" in said[0]["ffn weights"]
    assert said[1]["ffn weights"] == "Q4_0 -> int4, rounded again"


def test_the_current_folder_has_a_name(
    adapter: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapter)
    assert main(["convert", "../base", "--lora", ".", "--output-dir", "../out", "--quiet"]) == 0
    assert capsys.readouterr().out == "../out/base-adapter.litertlm\n"


def test_on_the_command_line(adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The result has a name of its own, so that the plain model beside it stays what it is."""
    folder = adapter.parent
    options = ["--output-dir", str(folder / "out"), "--lora", str(adapter), "--quiet"]
    assert main(["convert", str(folder / "base"), *options]) == 0
    assert capsys.readouterr().out == f"{folder}/out/base-adapter.litertlm\n"
    assert main(["convert", str(folder / "base"), *options, "--dry-run"]) == 0
    assert "base-adapter.litertlm" in capsys.readouterr().out
    options[3] = f"{adapter}:0.5"
    assert main(["convert", str(folder / "base"), "--lora", str(adapter), *options]) == 0
    assert capsys.readouterr().out == f"{folder}/out/base-adapter-adapter-0.5.litertlm\n"
    options[3] = str(folder / "nothing")
    assert main(["convert", str(folder / "base"), *options]) == 1
    assert capsys.readouterr().err == (
        f"error: --lora {folder}/nothing, it has no adapter_config.json and no "
        "adapter_model.safetensors, pass a PEFT adapter's folder, or its id on the hub\n"
    )
