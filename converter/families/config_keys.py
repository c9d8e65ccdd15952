"""Which keys of a config are read, refused or without effect; docs/configs.md has the rule.

A key of a config.json means what it means to transformers' config class of the family. Keys that
the class knows are read, or listed here; tests hold the lists against transformers' own classes.
Keys that it does not know are ignored, as it does, and listed in the result.
"""

from __future__ import annotations

from typing import Any

# Keys of every family's config.json that change the logits, with the values that change nothing.
LIMITS: dict[str, tuple[Any, ...]] = {
    "is_causal": (None, True),
    "is_encoder_decoder": (None, False),
    "per_layer_config": (None, {}),
}
# The same for what `gguf_config` may find in a GGUF: llama.cpp knows these keys everywhere.
GGUF_LIMITS: dict[str, tuple[Any, ...]] = {
    "attention_multiplier": (None,),
    "attn_logit_softcapping": (None, 0),
    "conv_L_cache": (None,),
    "embedding_multiplier": (None, 1),
    "final_logit_softcapping": (None, 0),
    "layer_types": (None,),
    "llama_4_scaling_beta": (None, 0),
    "logits_scaling": (None, 1),
    "num_experts": (None, 0),
    "partial_rotary_factor": (None, 1),
    "residual_multiplier": (None, 1),
    "use_parallel_residual": (None, False),
}
# What transformers reads among the rotary settings; it warns of others and goes on.
ROPE_SETTINGS = frozenset(
    {
        "attention_factor", "beta_fast", "beta_slow", "factor", "full_attention",
        "high_freq_factor", "llama_4_scaling_beta", "long_factor", "low_freq_factor", "mscale",
        "mscale_all_dim", "original_max_position_embeddings", "partial_rotary_factor", "rope_theta",
        "rope_type", "short_factor", "sliding_attention", "truncate", "type",
    }
)  # fmt: skip
# Beside the rotary settings, or among them: transformers takes them from both places.
ROPE_KEYS = frozenset({"original_max_position_embeddings", "partial_rotary_factor"})

# Keys that do not change the logits of a decoder: training, generation, tokens, housekeeping.
WITHOUT_EFFECT = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_commit_hash", "_name_or_path",
        "architectures", "attention_dropout", "attn_implementation", "bad_words_ids",
        "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
        "decoder_start_token_id", "do_sample", "dtype", "embd_pdrop", "embedding_dropout",
        "eod_token_id", "eos_token_id", "forced_bos_token_id", "forced_eos_token_id",
        "hidden_dropout", "id2label", "initializer_range", "label2id", "length_penalty",
        "max_length", "min_length", "model_type", "name_or_path", "no_repeat_ngram_size",
        "num_beams", "num_labels", "num_return_sequences", "output_attentions",
        "output_hidden_states", "pad_token_id", "pretraining_tp", "problem_type",
        "repetition_penalty", "resid_pdrop", "residual_dropout", "return_dict",
        "return_dict_in_generate", "suppress_tokens", "temperature", "tokenizer_class", "top_k",
        "top_p", "torch_dtype", "torchscript", "transformers_version", "typical_p", "use_cache",
    }
)  # fmt: skip
