"""config.json of published models, as they are: which network they are read as."""

from __future__ import annotations

from typing import Any

import pytest

from converter.decoder import DecoderSpec
from converter.errors import UnsupportedError
from converter.registry import family_of

# Model -> (config.json without what has no effect, what is said of it). The long and short factors
# of Phi are as many as the config has, not the published numbers.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "microsoft/Phi-4-mini-instruct": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 24, "num_key_value_heads": 8,
            "vocab_size": 200064, "max_position_embeddings": 131072, "rms_norm_eps": 1e-05,
            "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
            "rope_theta": 10000.0, "sliding_window": 262144, "tie_word_embeddings": True,
            "rope_scaling": {
                "type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48,
            },
        },
        {"parameters": 3_836_021_760, "rotated": 96, "tied": True},
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-05,
            "original_max_position_embeddings": 4096, "rope_theta": 10000.0, "rope_scaling": None,
            "sliding_window": 2047, "tie_word_embeddings": False,
        },
        {"parameters": 3_821_079_552, "rotated": 96, "tied": False},
    ),
}  # fmt: skip


def described(spec: DecoderSpec) -> dict[str, Any]:
    count = 0
    for _, shape in spec.weight_shapes():
        count += shape[0] * (shape[1] if len(shape) == 2 else 1)
    mixer = spec.layers[0].mixer
    rotated = 0 if mixer.rope is None else mixer.rope.width or mixer.head_dim
    return {"parameters": count, "rotated": rotated, "tied": spec.tied_head}


@pytest.mark.parametrize("model", PUBLISHED)
def test_it_is_read_as_it_is(model: str) -> None:
    config, said = PUBLISHED[model]
    assert described(family_of(config).spec()) == said


@pytest.mark.parametrize("model", PUBLISHED)
def test_transformers_5_spells_it_anew(model: str) -> None:
    from transformers import AutoConfig

    config, _ = PUBLISHED[model]
    values = {key: value for key, value in config.items() if key != "model_type"}
    new = AutoConfig.for_model(config["model_type"], **values).to_dict()
    assert family_of(new).spec() == family_of(config).spec()


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("microsoft/Phi-4-mini-instruct", {"hidden_act": "relu"}),
        ("microsoft/Phi-4-mini-instruct", {"partial_rotary_factor": 0.01}),
    ],
)
def test_what_would_change_the_numbers_is_refused_by_name(
    model: str, changes: dict[str, Any]
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        family_of({**PUBLISHED[model][0], **changes})
    assert next(iter(changes)) in str(caught.value)
