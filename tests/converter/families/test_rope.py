"""Rotary embeddings of every kind, old and new spellings, against transformers' own."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from converter.decoder import Rope
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.families.base import Family
from converter.registry import family_of

TINY: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
YARN: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 1024,
}
LONG: dict[str, Any] = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 3.0],
    "long_factor": [1.0, 2.0, 4.0, 6.0, 8.0, 9.0, 10.0, 12.0],
    "original_max_position_embeddings": 1024,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "llama3": LLAMA3,
    "yarn": YARN,
    "yarn-theta": {**YARN, "rope_theta": 1e6},
    "yarn-integers": {**YARN, "factor": 4, "beta_fast": 32, "beta_slow": 1},
    "yarn-betas": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0},
    "yarn-attention": {**YARN, "attention_factor": 0.7},
    "yarn-not-truncated": {**YARN, "truncate": False},
    "yarn-mscale": {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
    "yarn-mscale-alone": {**YARN, "mscale": 0.7},
    "yarn-without-original": {"rope_type": "yarn", "factor": 2.0},
    "yarn-null-factor": {**YARN, "factor": None},
    "yarn-endless": {**YARN, "factor": 1e20},
    "yarn-factor-1": {**YARN, "factor": 1.0},
    "yarn-short": {**YARN, "original_max_position_embeddings": 16},
    "longrope": LONG,
    "longrope-factor": {**LONG, "factor": 8.0},
    "longrope-attention": {**LONG, "attention_factor": 1.5},
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
    "partial-default": {"rope_type": "default", "partial_rotary_factor": 0.5},
}
# The last two have one set of settings for each kind of layer.
BY_KIND = ("gemma3_text", "olmo3")
MODEL_TYPES = ("llama", "qwen2", "qwen3", *BY_KIND)


def spelled(model_type: str, settings: dict[str, Any], how: str) -> dict[str, Any]:
    """A config with these settings, as one or another version of transformers writes it."""
    old = {k: v for k, v in settings.items() if k != "rope_theta"}
    theta = {"rope_theta": settings["rope_theta"]} if "rope_theta" in settings else {}
    if how == "rope_scaling.type":
        kind = {"type": settings["rope_type"]}
        old = kind | {k: v for k, v in old.items() if k != "rope_type"}
    if how.startswith("rope_scaling"):
        return {**TINY, "model_type": model_type, **theta, "rope_scaling": old}
    parameters = {"rope_theta": 1e4, **settings}
    new = {"full_attention": parameters, "sliding_attention": {**parameters, "rope_theta": 5e3}}
    chosen = new if model_type in BY_KIND else parameters
    return {**TINY, "model_type": model_type, "rope_parameters": chosen}


def expected(config: dict[str, Any], kind: str) -> tuple[list[float], float]:
    """transformers' frequencies, and its factor on cos and sin, in layers of a kind."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = copy.deepcopy({k: v for k, v in config.items() if k != "model_type"})
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values))
    rotary = model.model.rotary_emb
    prefix = f"{kind}_" if config["model_type"] in BY_KIND else ""
    frequencies = getattr(rotary, f"{prefix}inv_freq").tolist()
    return frequencies, getattr(rotary, f"{prefix}attention_scaling")


def assert_same(rope: Rope, config: dict[str, Any], kind: str) -> None:
    frequencies, factor = expected(config, kind)
    assert rope.inverse_frequencies(16) == pytest.approx(frequencies, rel=1e-5, abs=1e-12)
    assert rope.attention_factor == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize("how", ["rope_parameters", "rope_scaling.rope_type", "rope_scaling.type"])
@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_kind_is_that_of_transformers(name: str, model_type: str, how: str) -> None:
    config = spelled(model_type, SETTINGS[name], how)
    kinds = ["full_attention"] * 2
    if model_type in BY_KIND:
        kinds = config["layer_types"] = ["sliding_attention", "full_attention"]
    for kind, layer in zip(kinds, family_of(config).spec().layers, strict=True):
        assert_same(layer.mixer.rope, config, kind)


@pytest.mark.parametrize(
    ("settings", "ignored"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ("rope_scaling.type",)),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "full_attention": None}},
            ("rope_parameters.factor", "rope_parameters.rope_type"),
        ),
    ],
)
@pytest.mark.parametrize("model_type", BY_KIND)
def test_settings_of_no_kind_of_layer_are_ignored_and_said(
    model_type: str, settings: dict[str, Any], ignored: tuple[str, ...]
) -> None:
    kinds = ["sliding_attention", "full_attention"]
    config = {**TINY, "model_type": model_type, "layer_types": kinds, **settings}
    family = family_of(config)
    for kind, layer in zip(kinds, family.spec().layers, strict=True):
        assert layer.mixer.rope.factors == (1.0,)
        assert_same(layer.mixer.rope, config, kind)
    assert family.ignored_keys(config) == ignored


@pytest.mark.parametrize(
    "changes",
    [
        {"original_max_position_embeddings": 256, "rope_scaling": YARN},
        {"original_max_position_embeddings": 256, "rope_scaling": LONG},
        {"partial_rotary_factor": 0.5},
        {"rope_theta": 1000000},
        {"rope_theta": 1e5, "rope_scaling": None},
        {"rope_theta": 1e5, "rope_scaling": {}},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_parameters": YARN},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}},
    ],
)
def test_settings_that_stand_in_odd_places(changes: dict[str, Any]) -> None:
    config = {**TINY, "model_type": "llama", **changes}
    assert_same(family_of(config).spec().layers[0].mixer.rope, config, "full_attention")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_the_context_ends_where_the_frequencies_would_change(model_type: str) -> None:
    layers = {"layer_types": ["full_attention"] * 2}
    dynamic = family_of({**spelled(model_type, SETTINGS["dynamic"], "rope_parameters"), **layers})
    assert dynamic.longest_context == dynamic.max_position_embeddings


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_longer_context_has_the_long_factors_from_its_beginning_on(model_type: str) -> None:
    layers = {"layer_types": ["full_attention"] * 2}
    family = family_of({**spelled(model_type, LONG, "rope_parameters"), **layers})
    assert family.longest_context == family.max_position_embeddings
    for length, factors in ((1024, "short_factor"), (1025, "long_factor")):
        for layer in family.spec().for_context(length).layers:
            assert layer.mixer.rope is not None
            assert layer.mixer.rope.factors == tuple(LONG[factors])


def llama(settings: object, **changes: object) -> Family:
    return family_of({**TINY, "model_type": "llama", "rope_scaling": settings, **changes})


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rope_type": "su", "factor": 2}, UnsupportedError, "rope_scaling.rope_type='su'"),
        ({"rope_type": "mrope"}, UnsupportedError, "longrope, llama3, proportional are"),
        ({"rope_type": ["yarn"]}, UnsupportedError, "rope_scaling.rope_type=['yarn']"),
        ({"full_attention": YARN}, UnsupportedError, "rope_scaling.full_attention="),
        ({**YARN, "partial_rotary_factor": 0.5}, UnsupportedError, "partial_rotary_factor=0.5"),
        ({"rope_type": "linear"}, SourceError, "factor=None is not a positive number"),
        ({"rope_type": "dynamic", "factor": "2"}, SourceError, "factor='2' is not a positive"),
        ({**LLAMA3, "high_freq_factor": 1.0}, SourceError, "another number than low_freq_factor"),
        ({**YARN, "beta_fast": -1}, SourceError, "beta_fast=-1 is not a positive number"),
        ({**YARN, "factor": math.inf}, SourceError, "factor=inf is not a positive number"),
        ({**LONG, "short_factor": [1.0]}, SourceError, "short_factor=[1.0] is not a list of 8"),
        ({**LONG, "long_factor": None}, SourceError, "long_factor=None is not a list of 8"),
        ({**LONG, "original_max_position_embeddings": 1}, SourceError, "is not above 1"),
        ([1], SourceError, "rope_scaling=[1] is not a JSON object"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: object, error: type[LiteRTLMError], said: str
) -> None:
    with pytest.raises(error) as caught:
        llama(settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("model_type", "changes", "said"),
    [
        *((name, {"rope_scaling": "yarn"}, "rope_scaling='yarn'") for name in (*BY_KIND, "phi3")),
        *((name, {"rope_parameters": [1]}, "rope_parameters=[1]") for name in MODEL_TYPES),
        ("olmo3", {"rope_parameters": {"full_attention": 5}}, "rope_parameters.full_attention=5"),
        ("gemma3", {"text_config": "none"}, "text_config='none'"),
        ("gemma3", {"text_config": {"rope_scaling": 8.0}}, "rope_scaling=8.0"),
    ],
)
def test_what_holds_settings_is_an_object(
    model_type: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SourceError, match="is not a JSON object") as caught:
        family_of({**TINY, "model_type": model_type, **changes})
    assert f"{said} is not" in str(caught.value)


@pytest.mark.parametrize(
    ("alpha", "head_dim", "said"),
    [
        ("1000", 16, "alpha='1000' is not a positive number"),
        (-2.0, 16, "alpha=-2.0 is not a positive number"),
        (1000.0, 2, "head_dim=2"),
    ],
)
def test_hunyuans_alpha_makes_a_theta(alpha: object, head_dim: int, said: str) -> None:
    settings = {"type": "dynamic", "factor": 1.0, "alpha": alpha}
    with pytest.raises(LiteRTLMError) as caught:
        family_of(
            {
                **TINY,
                "model_type": "hunyuan_v1_dense",
                "rope_scaling": settings,
                "head_dim": head_dim,
            }
        )
    assert said in str(caught.value)


@pytest.mark.parametrize("part", [math.nan, math.inf, -0.5, 0, "half"])
def test_a_rotated_part_is_a_share_of_the_head(part: object) -> None:
    settings = {"rope_type": "default", "partial_rotary_factor": part}
    with pytest.raises(UnsupportedError, match="phi3: partial_rotary_factor="):
        family_of({**TINY, "model_type": "phi3", "rope_scaling": settings})


def test_a_theta_of_1_is_no_base() -> None:
    with pytest.raises(SourceError, match=r"rope_theta=1\.0 is not above 1"):
        llama(YARN, rope_theta=1.0)


def test_a_gguf_holds_the_outcome_alone() -> None:
    factors = [1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 8.0]
    config = {**TINY, "model_type": "llama"}
    config["rope_scaling"] = {"rope_type": "factors", "factors": factors}
    assert family_of(config, "gguf").spec().layers[0].mixer.rope.factors == tuple(factors)
