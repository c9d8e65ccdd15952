"""A GGUF's tokenizer, rebuilt.

A GGUF holds neither tokenizer.json nor tokenizer.model, but enough to rebuild one: byte-level BPE
(`gpt2`) becomes a tokenizer.json, SentencePiece (`llama`) becomes a model file.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import SourceError, UnsupportedError
from converter.text.bundle_tokenizer import (
    SENTENCEPIECE_KIND,
    BundleTokenizer,
    load_outline,
    make_controls_readable,
)
from converter.text.named_templates import DEFAULT, chat_template_of
from converter.text.pieces_json import Prefix, needs_json, pieces_to_json
from converter.text.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from converter.text.tokenizer_json import HF_KIND

_RECONVERT = "convert the model to GGUF again with a current llama.cpp"

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)

# Older files declare only one end token, and chat models end their turns with another.
_TURN_ENDS = (
    "<end_of_turn>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>",
    "<|end_of_text|>",
)  # fmt: skip


def rebuild_tokenizer(
    checkpoint: GGUFCheckpoint, chosen_template: str | None = None
) -> BundleTokenizer:
    """Rebuild the tokenizer that a GGUF's metadata describes.

    Args:
        chosen_template: a chat template in place of its own, "" for none.

    Raises:
        SourceError: metadata is missing or damaged.
        UnsupportedError: the tokenizer cannot be rebuilt exactly.
    """
    vocabulary = _GGUFVocabulary(checkpoint)
    template = chosen_template
    if template is None:
        template = _gguf_template(checkpoint.metadata, vocabulary.path)
    if vocabulary.model == "gpt2":
        pre_tokenizer = _pre_tokenizer(vocabulary)
        kind, data = HF_KIND, _rebuild_bpe(vocabulary, pre_tokenizer)
        adds_bos = pre_tokenizer.adds_bos
    elif vocabulary.model == "llama":
        kind, data = _rebuild_sentencepiece(vocabulary, template)
        adds_bos = True
    else:
        raise UnsupportedError(
            vocabulary.path,
            f"tokenizer.ggml.model={vocabulary.model}: only gpt2 and llama are supported",
            "convert from the model's Hugging Face folder instead",
        )
    stated = vocabulary.get("add_bos_token")
    adds_bos = stated if isinstance(stated, bool) else adds_bos
    tokenizer = BundleTokenizer(
        kind=kind,
        data=data,
        vocab_size=len(vocabulary.tokens),
        chat_template=template,
        bos_token=vocabulary.text(vocabulary.bos),
        bos_token_id=vocabulary.bos,
        eos_token_ids=vocabulary.end_ids(),
        eos_token=vocabulary.text(vocabulary.eos),
        adds_bos=adds_bos and vocabulary.bos is not None,
        special_tokens={
            vocabulary.tokens[i]: i for i in np.flatnonzero(vocabulary.types == _CONTROL).tolist()
        },
    )
    return tokenizer.with_outline(load_outline(kind, data, vocabulary.path))


def _gguf_template(metadata: dict[str, Any], path: str) -> str | None:
    """The chat template; llama.cpp writes those that have names under a key of their own."""
    key = "tokenizer.chat_template"
    prefix = f"{key}."
    named = {n.removeprefix(prefix): metadata[n] for n in metadata if n.startswith(prefix)}
    if default := metadata.get(key):
        named[DEFAULT] = default
    return chat_template_of(named, path)


_NO_TOKEN = (-1, 0xFFFFFFFF)  # -1 as a number without a sign, as converters write "there is none"


class _GGUFVocabulary:
    """The tokenizer metadata of a GGUF, checked.

    Attributes:
        tokens: text of every id.
        types: llama.cpp's token type of every id.
        bos, eos, unk, pad: ids or None.
    """

    def __init__(self, checkpoint: GGUFCheckpoint) -> None:
        self.path = str(checkpoint.path)
        self.metadata = checkpoint.metadata
        self.model = self.name("model")
        tokens = self.get("tokens")
        if not isinstance(tokens, list) or not tokens:
            raise self.wrong("tokenizer.ggml.tokens", "is missing")
        if len(set(tokens)) != len(tokens):
            raise self.wrong("tokenizer.ggml.tokens", "holds a token twice")
        self.tokens: list[str] = tokens
        self.types = self.numbers("token_type", _NORMAL)
        if not np.isin(self.types, range(_BYTE + 1)).all():
            raise self.wrong("tokenizer.ggml.token_type", "holds an unknown type")
        # llama.cpp's ids for a SentencePiece vocabulary that declares none.
        defaults = (1, 2, 0) if self.model == "llama" else (None, None, None)
        self.bos = self.special_id("bos", defaults[0])
        self.eos = self.special_id("eos", defaults[1])
        self.unk = self.special_id("unknown", defaults[2])
        self.pad = self.special_id("padding", None)

    def get(self, key: str) -> Any:
        return self.metadata.get(f"tokenizer.ggml.{key}")

    def name(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.wrong(f"tokenizer.ggml.{key}", f"is {value!r:.40}, not a name")
        return value

    def wrong(self, key: str, why: str) -> SourceError:
        return SourceError(self.path, f"metadata key {key!r} {why}", _RECONVERT)

    def numbers(self, key: str, default: int) -> np.ndarray:
        """One number for each token."""
        values = self.get(key)
        if values is None:
            return np.full(len(self.tokens), default)
        if not isinstance(values, np.ndarray) or len(values) != len(self.tokens):
            raise self.wrong(f"tokenizer.ggml.{key}", f"has no {len(self.tokens)} numbers")
        return values

    def special_id(self, role: str, default: int | None) -> int | None:
        key = f"{role}_token_id"
        token_id = self.get(key)
        if token_id is None:
            return default if default is None or default < len(self.tokens) else None
        if token_id in _NO_TOKEN:
            return None
        if type(token_id) is not int or not 0 <= token_id < len(self.tokens):
            raise self.wrong(f"tokenizer.ggml.{key}", f"is {token_id!r:.40}, not a token's id")
        return token_id

    def text(self, token_id: int | None) -> str | None:
        return None if token_id is None else self.tokens[token_id]

    def end_ids(self) -> tuple[int, ...]:
        declared = (self.eos, self.special_id("eot", None), self.special_id("eom", None))
        ends = {token_id for token_id in declared if token_id is not None}
        listed = self.get("eos_token_ids")  # as Ollama writes generation_config.json's
        if isinstance(listed, np.ndarray) and listed.dtype.kind in "iu":
            ends.update(i for i in listed.tolist() if i in range(len(self.tokens)))
        for i in np.flatnonzero(np.isin(self.types, (_CONTROL, _USER_DEFINED))).tolist():
            if self.tokens[i] in _TURN_ENDS:
                ends.add(i)
        return tuple(sorted(ends))


def _pre_tokenizer(vocabulary: _GGUFVocabulary) -> PreTokenizer:
    name = vocabulary.name("pre")
    if name is None or name not in PRE_TOKENIZERS:
        raise UnsupportedError(
            vocabulary.path,
            f"tokenizer.ggml.pre={name}: only {', '.join(PRE_TOKENIZERS)} are supported",
            "convert from the model's Hugging Face folder instead",
        )
    return PRE_TOKENIZERS[name]


def _rebuild_bpe(vocabulary: _GGUFVocabulary, pre_tokenizer: PreTokenizer) -> bytes:
    """A tokenizer.json for a byte-level BPE vocabulary, the same bytes each time."""
    byte_level = {"add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    cuts = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre_tokenizer.patterns
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": {"type": "NFC"} if pre_tokenizer.nfc else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*cuts, {"type": "ByteLevel", **byte_level}],
        },
        "post_processor": {"type": "ByteLevel", **byte_level},
        "decoder": {"type": "ByteLevel", **byte_level},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            # Added tokens too: tokenizers gives an id of its own to one that is not in here.
            "vocab": {token: i for i, token in enumerate(vocabulary.tokens)},
            "merges": _merges(vocabulary),
        },
    }
    return json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")).encode()


def _added_tokens(vocabulary: _GGUFVocabulary) -> list[dict[str, Any]]:
    added = np.isin(vocabulary.types, (_UNKNOWN, _CONTROL, _USER_DEFINED))
    return [
        {
            "id": i,
            "content": vocabulary.tokens[i],
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": bool(vocabulary.types[i] != _USER_DEFINED),
        }
        for i in np.flatnonzero(added).tolist()
    ]


def _merges(vocabulary: _GGUFVocabulary) -> list[tuple[str, str]]:
    """Pairs from `left right`; a byte-level token holds no space but as its first character."""
    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise vocabulary.wrong("tokenizer.ggml.merges", "is missing")
    known = set(vocabulary.tokens)
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut < 0:
            raise vocabulary.wrong("tokenizer.ggml.merges", f"holds {merge!r:.40}, not a pair")
        left, right = pair = (merge[:cut], merge[cut + 1 :])
        if not known.issuperset((left, right, left + right)):
            raise vocabulary.wrong("tokenizer.ggml.merges", f"holds {merge!r:.40}, not of tokens")
        pairs.append(pair)
    return pairs


def _rebuild_sentencepiece(vocabulary: _GGUFVocabulary, template: str | None) -> tuple[str, bytes]:
    """The section for a `llama` vocabulary, kind and bytes, the same each time.

    A SentencePiece model, which the engine loads faster, unless it would read chat prompts wrongly.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    kinds = model.SentencePiece
    scores = vocabulary.numbers("scores", 0).tolist()
    types = vocabulary.types.astype(int).tolist()
    if vocabulary.unk is not None:  # Gemma's files call it a control token
        types[vocabulary.unk] = _UNKNOWN
    # llama.cpp took its numbers of token types from SentencePiece; 0 is its "undefined".
    for token, score, kind in zip(vocabulary.tokens, scores, types, strict=True):
        model.pieces.add(piece=token, score=score, type=kind or kinds.NORMAL)
    _set_specs(model, vocabulary, has_bytes=_BYTE in types)
    if needs_json(model, template):
        return HF_KIND, pieces_to_json(model, Prefix.PREPENDED)
    make_controls_readable(model, vocabulary.text(vocabulary.eos), template)
    for piece in model.pieces:
        # llama.cpp stores the blanks of user-defined pieces as they look, SentencePiece as ▁.
        if piece.type == kinds.USER_DEFINED and " " in piece.piece:
            piece.piece = piece.piece.replace(" ", "▁")
    return SENTENCEPIECE_KIND, model.SerializeToString(deterministic=True)


def _set_specs(model: Any, vocabulary: _GGUFVocabulary, has_bytes: bool) -> None:
    """Training and normalisation settings that matter to a reader of the model."""
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(vocabulary.tokens)
    trainer.byte_fallback = has_bytes
    for role in ("bos", "eos", "unk", "pad"):
        token_id = getattr(vocabulary, role)
        setattr(trainer, f"{role}_id", -1 if token_id is None else token_id)
        if token_id is not None:
            setattr(trainer, f"{role}_piece", vocabulary.tokens[token_id])
    prefix = vocabulary.get("add_space_prefix")
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = prefix if isinstance(prefix, bool) else True
    normalizer.remove_extra_whitespaces = vocabulary.get("remove_extra_whitespaces") is True
    normalizer.escape_whitespaces = True
