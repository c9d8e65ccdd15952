"""The one place that knows which families there are.

A family goes by `model_type` of a config.json, and by `general.architecture` of a GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from converter.errors import SourceError, UnsupportedError
from converter.families.apertus import Apertus
from converter.families.arcee import Arcee
from converter.families.base import Family
from converter.families.cohere2 import Cohere, Cohere2
from converter.families.ernie4_5 import Ernie45
from converter.families.exaone4 import Exaone4
from converter.families.falcon_h1 import FalconH1
from converter.families.gemma import Gemma
from converter.families.gemma2 import Gemma2
from converter.families.gemma3 import Gemma3
from converter.families.gemma3n import Gemma3n
from converter.families.gemma4 import Gemma4, Gemma4Unified
from converter.families.glm import Glm, Glm4
from converter.families.gpt_oss import GptOss
from converter.families.granite import Granite
from converter.families.granite_hybrid import GraniteHybrid
from converter.families.granite_moe import GraniteMoe
from converter.families.helium import Helium
from converter.families.hunyuan_v1_dense import HunyuanV1Dense
from converter.families.internlm3 import InternLM3
from converter.families.jais2 import Jais2
from converter.families.lfm2 import Lfm2
from converter.families.lfm2_moe import Lfm2Moe
from converter.families.llama import Llama
from converter.families.matching import OTHER_GGUF
from converter.families.minicpm import MiniCPM
from converter.families.ministral import Ministral
from converter.families.ministral3 import Ministral3
from converter.families.mistral import Mistral
from converter.families.mixtral import Mixtral
from converter.families.nemotron import Nemotron
from converter.families.nemotron_h import NemotronH
from converter.families.olmo2 import Olmo2
from converter.families.olmo3 import Olmo3
from converter.families.olmoe import Olmoe
from converter.families.phi import Phi
from converter.families.phi3 import Phi3
from converter.families.qwen2 import Qwen2
from converter.families.qwen2_moe import Qwen2Moe
from converter.families.qwen3 import Qwen3
from converter.families.qwen3_5 import Qwen35
from converter.families.qwen3_moe import Qwen3Moe
from converter.families.seed_oss import SeedOss
from converter.families.smollm3 import SmolLM3
from converter.families.stablelm import StableLM
from converter.families.starcoder2 import Starcoder2
from converter.families.unsupported import why_unsupported
from converter.families.vaultgemma import VaultGemma

FAMILIES: dict[str, type[Family]] = {
    "apertus": Apertus,
    "arcee": Arcee,
    "cohere": Cohere,
    "cohere2": Cohere2,
    "ernie4_5": Ernie45,
    "exaone4": Exaone4,
    "falcon_h1": FalconH1,
    "gemma": Gemma,
    "gemma2": Gemma2,
    "gemma3": Gemma3,
    "gemma3_text": Gemma3,
    "gemma3n": Gemma3n,
    "gemma3n_text": Gemma3n,
    "gemma4": Gemma4,
    "gemma4_text": Gemma4,
    "gemma4_unified": Gemma4Unified,
    "gemma4_unified_text": Gemma4Unified,
    "glm": Glm,
    "glm4": Glm4,
    "gpt_oss": GptOss,
    "granite": Granite,
    "granitemoe": GraniteMoe,
    "granitemoehybrid": GraniteHybrid,
    "helium": Helium,
    "hunyuan_v1_dense": HunyuanV1Dense,
    "internlm3": InternLM3,
    "jais2": Jais2,
    "lfm2": Lfm2,
    "lfm2_moe": Lfm2Moe,
    "llama": Llama,
    "minicpm": MiniCPM,
    "ministral": Ministral,
    "ministral3": Ministral3,
    "mistral": Mistral,
    "mixtral": Mixtral,
    "nemotron": Nemotron,
    "nemotron_h": NemotronH,
    "olmo2": Olmo2,
    "olmo3": Olmo3,
    "olmoe": Olmoe,
    "phi": Phi,
    "phi3": Phi3,
    "qwen2": Qwen2,
    "qwen2_moe": Qwen2Moe,
    "qwen3": Qwen3,
    "qwen3_5": Qwen35,
    "qwen3_5_text": Qwen35,
    "qwen3_moe": Qwen3Moe,
    "seed_oss": SeedOss,
    "smollm3": SmolLM3,
    "stablelm": StableLM,
    "starcoder2": Starcoder2,
    "vaultgemma": VaultGemma,
}

# The architectures of llama.cpp that are not called as the `model_type` is.
ARCHITECTURES: dict[str, str] = {
    "chatglm": "glm",
    "command-r": "cohere",
    "falcon-h1": "falcon_h1",
    "gpt-oss": "gpt_oss",
    "granitehybrid": "granitemoehybrid",
    "hunyuan-dense": "hunyuan_v1_dense",
    "lfm2moe": "lfm2_moe",
    "mistral3": "ministral3",
    "phi2": "phi",
    "qwen2moe": "qwen2_moe",
    "qwen35": "qwen3_5",
    "qwen3moe": "qwen3_moe",
}
# The one of these that has windows is another family.
_WITH_WINDOWS = {"olmo2": "olmo3"}
# The one of these that has experts, too.
_WITH_EXPERTS = {"llama": "mixtral"}
# Classes in the code of a repository, which finds its config without a model_type.
_OWN_CODE = {"InternLM3ForCausalLM": "internlm3", "MiniCPMForCausalLM": "minicpm"}
# Larger models whose decoder is what their `text_config` says, a family of its own.
_WRAPPERS = ("mistral3",)


def family_of(config: Mapping[str, Any], fmt: str = "safetensors") -> Family:
    """The family of a config, read and validated; `fmt` is the checkpoint's format.

    Raises:
        SourceError: the config has no `model_type`, or values that make no sense.
        UnsupportedError: no family here covers it, or it asks for something that its family lacks.
    """
    text = config.get("text_config")
    if config.get("model_type") in _WRAPPERS and isinstance(text, dict):
        # The head is the larger model's.
        tied = config.get("tie_word_embeddings", True)
        config = {"model_type": "mistral", **text, "tie_word_embeddings": tied}
    model_type = _model_type(config, fmt)
    family = family_class(model_type, fmt, config=config)
    try:
        return family.from_config(config, fmt)
    except SourceError as error:
        if fmt != "gguf":
            raise
        # Its metadata was put into the words of a config.json, which is not there to be mended.
        raise SourceError(error.what, error.why, OTHER_GGUF) from error


def _model_type(config: Mapping[str, Any], fmt: str) -> str:
    model_type = config.get("model_type")
    if model_type is None and isinstance(classes := config.get("architectures"), list):
        model_type = next((_OWN_CODE[name] for name in classes if name in _OWN_CODE), None)
    if not isinstance(model_type, str):
        raise SourceError("config.json", "has no model_type", "is this a language model's folder?")
    if fmt == "gguf" and config.get("sliding_window"):
        model_type = _WITH_WINDOWS.get(model_type, model_type)
    if fmt == "gguf" and config.get("num_experts"):
        model_type = _WITH_EXPERTS.get(model_type, model_type)
    return model_type


def text_model_type(config: Mapping[str, Any], fmt: str = "safetensors") -> str:
    """What transformers calls the decoder of a config that a family has read.

    Raises:
        SourceError: the config has no `model_type`.
    """
    model_type = _model_type(config, fmt)
    if fmt == "gguf":
        return ARCHITECTURES.get(model_type, model_type)
    text = config.get("text_config")
    own = text.get("model_type") if isinstance(text, dict) else None
    return own if isinstance(own, str) else model_type


def is_variant(model_type: str, architecture: str) -> bool:
    """Whether GGUFs of an architecture hold these models, too: by what else their metadata says."""
    return model_type in (_WITH_EXPERTS.get(architecture), _WITH_WINDOWS.get(architecture))


def family_class(
    architecture: str,
    fmt: str = "safetensors",
    key: str = "model_type",
    config: Mapping[str, Any] | None = None,
) -> type[Family]:
    """The family of an architecture.

    Args:
        fmt: the format of the checkpoint that names it.
        key: what named it, for the message.
        config: what else is known of the model, for the reason why it is not covered.

    Raises:
        UnsupportedError: no family here covers it.
    """
    model_type = ARCHITECTURES.get(architecture, architecture) if fmt == "gguf" else architecture
    if model_type not in FAMILIES:
        why = why_unsupported(architecture, config or {})
        own = " (its own code, in auto_map, is not run)" if config and "auto_map" in config else ""
        names = {family.name for family in FAMILIES.values()}
        raise UnsupportedError(
            f"{key} {architecture}",
            f"{why}{own}",
            f"use a model of one of these families: {', '.join(sorted(names))}",
        )
    return FAMILIES[model_type]
