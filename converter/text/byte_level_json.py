"""A byte-level BPE vocabulary as a tokenizer.json: of a GGUF, or of vocab.json and merges.txt."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from converter.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from converter.text.tokenizer_json import added_token

# How transformers' classes cut text, where no tokenizer.json says it. These architectures have one
# class, whatever tokenizer_config.json names.
_OF_MODEL_TYPE = {"qwen2": "qwen2", "qwen3": "qwen2", "qwen3_moe": "qwen2"}
_OF_CLASS = {"Qwen2Tokenizer": "qwen2", "GPT2Tokenizer": "gpt-2", "CodeGenTokenizer": "gpt-2"}


def pre_tokenizer_of(model_type: str | None, tokenizer_class: str | None) -> PreTokenizer | None:
    """How transformers cuts text for a vocab.json; None where its class is not known here."""
    name = _OF_MODEL_TYPE.get(model_type or "")
    name = name or _OF_CLASS.get((tokenizer_class or "").removesuffix("Fast"))
    return PRE_TOKENIZERS[name] if name else None


def byte_level_json(
    cut: PreTokenizer,
    vocabulary: Mapping[str, int],
    merges: Iterable[tuple[str, str]],
    added: Mapping[str, Mapping[str, bool]],
) -> bytes:
    """Write a tokenizer.json, the same bytes each time.

    Args:
        vocabulary: text to id; added tokens too, as tokenizers gives an id of its own
            to one that is not.
        merges: pairs of tokens, the best first.
        added: tokens that are matched whole, text to flags of `added_token`.
    """
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": False,
    }
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in cut.patterns
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocabulary[text]} | added_token(text, **flags) for text, flags in added.items()
        ],
        "normalizer": {"type": "NFC"} if cut.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": cut.ignore_merges,
            "vocab": vocabulary,
            "merges": list(merges),
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()
