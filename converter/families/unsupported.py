"""Why a model of no supported family is not converted, as its config says it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keys that say how many experts there are, in transformers and, behind the architecture, in GGUF.
_EXPERT_COUNTS = (
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
    "expert_count",
)
# The same for the width of a latent, from which keys and values are made again at every step.
_LATENTS = ("kv_lora_rank", "attention.kv_lora_rank")
# Names, in either spelling, of networks whose layers keep something else than keys and values.
_WITH_STATE = re.compile(
    r"mamba|rwkv|jamba|zamba|recurrent|qwen3_?5|qwen3_?next|"
    r"hybrid|xlstm|^minimax|plamo2"
)  # fmt: skip
# Those of which no release of transformers has numbers that ours could be held against.
_UNPROVED = {
    "bamba": "transformers 5 rotates whole heads, and it was trained with half of each rotated",
    "lfm3": "transformers does not have it yet, and numbers are proved against its",
}
# Keys of encoders, and of models that write something else than text.
_NO_DECODER = re.compile(r"bert|t5|bart|whisper|clip|wav2vec|electra|marian|pegasus|siglip|vit")


def why_unsupported(model_type: str, config: Mapping[str, Any]) -> str:
    """Half a sentence, without full stop.

    Args:
        config: what is known of the model, in the words of a config.json or of a GGUF.
    """
    text = config.get("text_config")
    config = {**(text if isinstance(text, dict) else {}), **config}
    for key in _EXPERT_COUNTS:
        if isinstance(config.get(key), int) and config[key] > 1:
            return (
                f"its feed-forward blocks are {config[key]} experts, a kind that is not supported"
            )
    if any(config.get(key) for key in _LATENTS):
        return "its attention caches a latent (MLA), which is not supported"
    if config.get("is_encoder_decoder") or _NO_DECODER.search(model_type):
        return "no decoder that writes text, which is all that the runtime runs"
    if model_type.endswith("_assistant"):
        return "it drafts for another model and says nothing itself: that one takes it with --draft"
    if model_type in _UNPROVED:
        return _UNPROVED[model_type]
    if _WITH_STATE.search(model_type):
        return "its layers keep another state than keys and values, which is not supported yet"
    if isinstance(text, dict) and "vision_config" in config:
        return (
            f"a model of text and images; its text part, {text.get('model_type')}, is not read yet"
        )
    return "not a supported architecture"
