"""adapter_config.json: which of PEFT's keys mean what for merging `W + scaling * B @ A`.

Every key of peft's `LoraConfig` stands here (a test compares the two); a key that does not is
refused by name, unless it is switched off.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from converter.errors import UnsupportedError
from converter.weights.lora_adapter import MERGE, damaged

# About training, or where the adapter is from and what it targets, which its tensors say too.
WITHOUT_EFFECT = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config",
    "ensure_weight_tying",  # what was trained as one is saved under both names
    "eva_config", "exclude_modules",
    "fan_in_fan_out",  # peft switches it off for nn.Linear, which is all that our networks have
    "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout",
    "lora_ga_config", "megatron_core", "merge_weights",  # before peft 0.3
    "modules_to_save", "peft_version", "qalora_group_size", "r",
    "rank_pattern", "revision", "runtime_config", "target_modules", "task_type", "velora_config",
})  # fmt: skip
# "bias" says that biases were trained: where they are, they are among the tensors.
READ = frozenset({
    "alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "peft_type",
    "trainable_token_indices", "use_dora", "use_rslora",
})  # fmt: skip
# What changes the numbers in a way that is no sum of matrices, or is not done here, and why.
REFUSED = {
    "alora_invocation_tokens": "it is active only after its invocation tokens",
    "arrow_config": "it routes between adapters token by token",
    "kasa_config": "it changes the base's singular values",
    "layer_replication": "it repeats layers of the base",
    "lora_bias": "it has biases that the base may lack",
    "megatron_config": "its layers are Megatron's",
    "monteclora_config": "its weights are drawn at random",
    "target_parameters": "it changes parameters that are no layer's weight, as experts",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "it pools the inputs",
}
_NEVER_MERGED = ("alora_invocation_tokens", "arrow_config")
_APART = "no file of one network can do that: take an adapter that is always active"
# Ways to start training that leave the base as it is: true, false and these.
_HARMLESS_STARTS = ("gaussian", "eva", "orthogonal", "mica")
_DEFAULT_ALPHA = 8


def check_config(config: dict[str, Any], path: Path) -> None:
    """Refuse an adapter that is more than low-rank updates of the base as it is.

    Raises:
        UnsupportedError: by key and value.
    """

    def refuse(key: str, why: str, fix: str = MERGE) -> UnsupportedError:
        return UnsupportedError(str(path), f"{key}={config[key]!r:.80}: {why}", fix)

    if config.get("peft_type") != "LORA":
        raise UnsupportedError(
            str(path),
            f"peft_type={config.get('peft_type')!r:.80} is no LoRA adapter of peft",
            MERGE,
        )
    for key, value in config.items():
        if key in REFUSED and value not in (None, False) and value != [] and value != {}:
            raise refuse(key, REFUSED[key], _APART if key in _NEVER_MERGED else MERGE)
        if key not in WITHOUT_EFFECT | READ | REFUSED.keys() and value:
            raise refuse(key, "this key is not known here, and may change the numbers")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower() not in _HARMLESS_STARTS:
        raise refuse(
            "init_lora_weights",
            "the base was changed when this adapter was made, and the adapter does not hold it",
            "save it with save_pretrained(path_initial_model_for_weight_conversion=...), or "
            + MERGE,
        )


def scaling(config: dict[str, Any], module: str, rank: int, path: Path) -> float:
    """The factor on a module's `B @ A`.

    Args:
        module: its name in the adapter, as in `base_model.model.model.layers.0.mlp.up_proj`.
        rank: rows of its A.
        path: the adapter, for messages.

    Raises:
        SourceError: a value is no number, or a pattern no regular expression.
    """
    name = module.removeprefix("base_model.model.")
    alpha = config.get("lora_alpha", _DEFAULT_ALPHA)
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise damaged(path, f"alpha_pattern={patterns!r:.80} is no table")
    for pattern, value in patterns.items():
        try:  # as peft matches: the end of the name, from a dot on; the first pattern counts
            matches = re.match(rf"(.*\.)?({pattern})$", name)
        except (re.error, RecursionError):
            raise damaged(path, f"alpha_pattern holds {pattern!r:.80}, no pattern") from None
        if matches:
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise damaged(path, f"lora_alpha={alpha!r:.80} is not a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
