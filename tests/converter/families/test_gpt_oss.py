"""What of gpt-oss no other family has: layouts of its experts, and its rotary embedding."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from converter.checkpoint.safetensors import open_folder
from converter.registry import family_of
from converter.weights.placed_rows import read_placed
from tests.tiny_models import make_checkpoint


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    """Every weight of the network, read whole."""
    found = {}
    with open_folder(folder) as checkpoint:
        family = family_of(checkpoint.config)
        sources = family.weight_sources(list(checkpoint.tensors), "safetensors")
        for path, shape in family.spec().weight_shapes():
            source = sources[path]
            rows = read_placed(checkpoint, source.tensor, source, 0, shape[0])
            assert rows.size == math.prod(shape), path
            found[path] = rows.copy()
    return found


def test_a_matrix_for_each_expert(tmp_path: Path) -> None:
    """Unsloth's layout: outputs are rows, gates and ups still come in turn."""
    make_checkpoint("gpt_oss", tmp_path)
    expected = weights_of(tmp_path)
    split: dict[str, Any] = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        stem, _, part = name.rpartition(".")
        if ".experts." in name:
            module, kind = (
                part.removesuffix("_bias"),
                "bias" if part.endswith("_bias") else "weight",
            )
            for e, values in enumerate(tensor):
                split[f"{stem}.{module}s.{e}.{kind}"] = values.T.contiguous()
        else:
            split[name.replace(".router.", ".router.linear.")] = tensor
    save_file(split, tmp_path / "model.safetensors")
    found = weights_of(tmp_path)
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        np.testing.assert_array_equal(found[path], values, err_msg=path)


YARN = {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize("scaling", [None, YARN, {**YARN, "truncate": False}])
def test_the_ends_of_yarn_are_rounded_as_in_transformers(scaling: Any) -> None:
    from transformers import AutoConfig
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssRotaryEmbedding

    stated = {} if scaling is None else {"rope_parameters": {**scaling, "rope_theta": 150000.0}}
    config = AutoConfig.for_model("gpt_oss", num_hidden_layers=2, **stated)
    family = family_of({"model_type": "gpt_oss", "num_hidden_layers": 2, **stated})
    [rope] = {layer.mixer.rope for layer in family.spec().layers}  # type: ignore[union-attr]
    assert rope is not None
    expected = GptOssRotaryEmbedding(config).inv_freq.double().numpy()
    np.testing.assert_allclose(rope.inverse_frequencies(64), expected, rtol=1e-6)
