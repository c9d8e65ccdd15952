"""A vocabulary of raw text as a tokenizer.json: SentencePiece's, or one with merges of its own.

SentencePiece puts its dummy prefix before every text that it encodes, a lone `</s>` included, so a
SentencePiece section cannot read the special tokens of a chat prompt as the source does. A
tokenizer.json can: it cuts the text at special tokens first, and says where a prefix goes.
"""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

from converter.text.tokenizer_json import added_token, with_breaks_apart


class Prefix(Enum):
    """Where a blank is put before text."""

    PREPENDED = "before each segment between special tokens"  # llama.cpp
    ALWAYS = "the same, unless the segment begins with a blank"  # transformers with `legacy`
    NEVER = "nowhere"


def needs_json(model: Any, template: str | None) -> bool:
    """Whether a SentencePiece section would read this model's chat prompts wrongly."""
    return bool(template) and model.normalizer_spec.add_dummy_prefix and is_bpe(model)


def is_bpe(model: Any) -> bool:
    return bool(model.trainer_spec.model_type == model.trainer_spec.BPE)


def pieces_to_json(
    model: Any, prefix: Prefix, added: dict[str, dict[str, Any]] | None = None
) -> bytes:
    """Write a tokenizer.json for a BPE model, the same bytes each time.

    Args:
        model: a SentencePiece ModelProto.
        prefix: where text gets a blank in front.
        added: tokens that the source adds to the model's, or describes anew: text to `id`, and to
            `special`, `lstrip`, `rstrip`, as tokenizers has them.
    """
    kinds = model.SentencePiece
    vocabulary: dict[str, int] = {}
    scores: dict[str, float] = {}
    tokens: dict[str, tuple[int, bool]] = {}
    unknown = None
    for i, piece in enumerate(model.pieces):
        text = piece.piece
        if piece.type == kinds.USER_DEFINED:
            text = text.replace("▁", " ")  # an added token is looked for in the text as it is
        elif piece.type == kinds.UNKNOWN:
            unknown = text
        elif piece.type == kinds.NORMAL:
            scores[text] = piece.score
        vocabulary[text] = i
        if piece.type in (kinds.USER_DEFINED, kinds.CONTROL, kinds.UNKNOWN):
            tokens[text] = (i, piece.type != kinds.USER_DEFINED)
    added = added or {}
    for text, token in added.items():
        vocabulary.setdefault(text, token["id"])
        tokens[text] = (vocabulary[text], token.get("special", True))
    listed = [
        {"id": i}
        | added_token(
            text,
            special,
            lstrip=added.get(text, {}).get("lstrip", False),
            rstrip=added.get(text, {}).get("rstrip", False),
        )
        for text, (i, special) in sorted(tokens.items(), key=lambda item: item[1])
    ]
    return raw_text_json(vocabulary, _merges(vocabulary, scores), listed, unknown, prefix)


def raw_text_json(
    vocabulary: dict[str, int],
    merges: list[tuple[str, str]],
    added: list[dict[str, Any]],
    unknown: str | None,
    prefix: Prefix | None,
) -> bytes:
    """Write a tokenizer.json whose pieces are text with ▁ for blanks, the same bytes each time.

    Args:
        vocabulary: text to id, added tokens too.
        merges: pairs of pieces, the best first.
        added: tokens that are matched whole, as tokenizers has them.
        unknown: the token for what no piece and no byte stands for.
        prefix: where text gets a blank in front; None for nowhere, as Gemma's files write it.
    """
    blank = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer: dict[str, Any] | None = None
    pre_tokenizer: dict[str, Any] | None = None
    if prefix is None:
        normalizer = blank
    elif prefix is Prefix.PREPENDED:
        prepend = {"type": "Prepend", "prepend": "▁"}
        normalizer = {"type": "Sequence", "normalizers": [prepend, blank]}
    else:
        metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
        pre_tokenizer = metaspace | {"prepend_scheme": prefix.name.lower()}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    decoder = {"type": "Sequence", "decoders": decoders}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": with_breaks_apart(decoder, vocabulary) or decoder,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()


def _merges(vocabulary: dict[str, int], scores: dict[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece; the best piece first, as SentencePiece merges."""
    merges: list[tuple[float, int, int, str, str]] = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((-score, vocabulary[text], vocabulary[left], left, right))
    return [(left, right) for *_, left, right in sorted(merges)]
