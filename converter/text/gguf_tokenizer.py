"""A GGUF's tokenizer, rebuilt.

A GGUF holds neither tokenizer.json nor tokenizer.model, but enough to rebuild one: byte-level BPE
(`gpt2`) becomes a tokenizer.json, SentencePiece (`llama`) becomes a model file, and SentencePiece's
pieces with merges in place of scores (`gemma4`) a tokenizer.json again.
"""

from __future__ import annotations

import re
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
from converter.text.byte_level_json import byte_level_json
from converter.text.control_tokens import (
    control_tokens,
    looks_like_control,
    markers,
    turn_ends,
)
from converter.text.named_templates import DEFAULT, chat_template_of
from converter.text.pieces_json import Prefix, needs_json, pieces_to_json, raw_text_json
from converter.text.pre_tokenizers import (
    PRE_TOKENIZERS,
    RAW_TEXT,
    PreTokenizer,
    guess_pre_tokenizer,
)
from converter.text.sentencepiece_model import make_model
from converter.text.tokenizer_json import HF_KIND, added_token

_RECONVERT = "convert the model to GGUF again with a current llama.cpp"

_BYTE_TOKEN = re.compile("<0x[0-9A-F]{2}>")
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)


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
    vocabulary.mark_controls(template)
    notes: tuple[str, ...] = ()
    if vocabulary.model == "gpt2":
        pre_tokenizer, notes = _pre_tokenizer(vocabulary)
        kind, data = HF_KIND, _rebuild_bpe(vocabulary, pre_tokenizer)
        adds_bos = pre_tokenizer.adds_bos
    elif vocabulary.model == "llama":
        kind, data = _rebuild_sentencepiece(vocabulary, template)
        adds_bos = True
    elif vocabulary.model == "gemma4":
        kind, data = HF_KIND, _rebuild_gemma4(vocabulary)
        adds_bos = True
    else:
        raise UnsupportedError(
            vocabulary.path,
            f"tokenizer.ggml.model={vocabulary.model}: only gpt2, llama and gemma4 are supported",
            "convert from the model's Hugging Face folder instead",
        )
    stated = vocabulary.get("add_bos_token")
    if isinstance(stated, bool) and vocabulary.model != "gemma4":  # where llama.cpp corrects it
        adds_bos = stated
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
        special_tokens=control_tokens(
            vocabulary.of_type(_CONTROL), vocabulary.of_type(_USER_DEFINED), template
        ),
        notes=notes,
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
        ids: the other way round.
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
        # No text becomes an empty token; llama.cpp gives it this name.
        self.tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(tokens)]
        self.ids = {text: i for i, text in enumerate(self.tokens)}
        if len(self.ids) != len(tokens):
            i, text = next((i, t) for i, t in enumerate(self.tokens) if self.ids[t] != i)
            raise self.wrong(
                "tokenizer.ggml.tokens",
                f"holds {text!r:.40} twice, as {i} and {self.ids[text]}",
            )
        self.types = self.numbers("token_type", _NORMAL).copy()
        if not np.isin(self.types, range(_BYTE + 1)).all():
            raise self.wrong("tokenizer.ggml.token_type", "holds an unknown type")
        if self.model == "llama" and self.get("token_type") is None:
            self.types[[i for text, i in self.ids.items() if _BYTE_TOKEN.fullmatch(text)]] = _BYTE
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

    def mark_controls(self, template: str | None) -> None:
        """Correct the types of control tokens that the file calls ordinary words.

        Their text would fall into letters, and a turn would never end. A token that merges make
        is a word all the same, as Qwen's </s>, a tag of HTML, is.
        """
        merges = self.get("merges")
        words = {m.replace(" ", "") for m in merges} if isinstance(merges, list) else set()
        normal = {
            self.tokens[i]: i
            for i in np.flatnonzero(self.types == _NORMAL).tolist()
            if len(self.tokens[i]) > 1 and self.tokens[i] not in words
        }
        written = markers(template, normal)
        declared = (self.bos, *self._declared_ends())
        for text, i in normal.items():
            # The types of a gemma4 vocabulary are those of its tokenizer.json already.
            if i in declared or (looks_like_control(text) and self.model != "gemma4"):
                self.types[i] = _CONTROL
            elif text in written:
                self.types[i] = _USER_DEFINED
        self._ends = turn_ends(
            normal | self.of_type(_CONTROL) | self.of_type(_USER_DEFINED) | self.of_type(_UNUSED)
        )
        self.types[list(self._ends)] = _CONTROL

    def of_type(self, kind: int) -> dict[str, int]:
        """Tokens of one type, text to id."""
        return {self.tokens[i]: i for i in np.flatnonzero(self.types == kind).tolist()}

    def end_ids(self) -> tuple[int, ...]:
        declared = {token_id for token_id in self._declared_ends() if token_id is not None}
        return tuple(sorted(declared | self._ends))

    def _declared_ends(self) -> list[int | None]:
        ends = [self.eos, self.special_id("eot", None), self.special_id("eom", None)]
        listed = self.get("eos_token_ids")  # as Ollama writes generation_config.json's
        if isinstance(listed, np.ndarray) and listed.dtype.kind in "iu":
            ends += [i for i in listed.tolist() if i in range(len(self.tokens))]
        return ends


def _pre_tokenizer(vocabulary: _GGUFVocabulary) -> tuple[PreTokenizer, tuple[str, ...]]:
    """How text is cut, and what a user should know of it."""
    name = vocabulary.name("pre")
    if name is None:
        architecture = str(vocabulary.metadata.get("general.architecture"))
        name = guess_pre_tokenizer(architecture, vocabulary.tokens) or "default"
        why = "is llama.cpp's default" if name == "default" else "its architecture or tokens tell"
        note = (
            f"tokenizer: the file has no tokenizer.ggml.pre; text is cut as {name!r} cuts it, "
            f"which {why}"
        )
        return PRE_TOKENIZERS[name], (note,)
    if name not in PRE_TOKENIZERS:
        why = (
            "its tokens are not of bytes, which is not supported"
            if name in RAW_TEXT
            else f"only {', '.join(PRE_TOKENIZERS)} are supported"
        )
        raise UnsupportedError(
            vocabulary.path,
            f"tokenizer.ggml.pre={name}: {why}",
            "convert from the model's Hugging Face folder instead",
        )
    return PRE_TOKENIZERS[name], ()


def _rebuild_bpe(vocabulary: _GGUFVocabulary, pre_tokenizer: PreTokenizer) -> bytes:
    return byte_level_json(pre_tokenizer, vocabulary.ids, _merges(vocabulary), _added(vocabulary))


def _rebuild_gemma4(vocabulary: _GGUFVocabulary) -> bytes:
    added = [
        {"id": vocabulary.ids[text]} | added_token(text, **flags)
        for text, flags in _added(vocabulary).items()
    ]
    unknown = vocabulary.text(vocabulary.unk)
    return raw_text_json(vocabulary.ids, _merges(vocabulary), added, unknown, None)


def _added(vocabulary: _GGUFVocabulary) -> dict[str, dict[str, bool]]:
    """Tokens that are matched whole, text to flags of `added_token`."""
    kinds = zip(vocabulary.tokens, vocabulary.types.tolist(), strict=True)
    return {
        text: {"special": kind != _USER_DEFINED}
        for text, kind in kinds
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    }


def _merges(vocabulary: _GGUFVocabulary) -> list[tuple[str, str]]:
    """Pairs from `left right`; a token holds no space but as its first character."""
    merges = vocabulary.get("merges")
    if not isinstance(merges, list):
        raise vocabulary.wrong("tokenizer.ggml.merges", "is missing")
    pairs = []
    for merge in merges:
        cut = merge.find(" ", 1)
        if cut < 0:
            raise vocabulary.wrong("tokenizer.ggml.merges", f"holds {merge!r:.40}, not a pair")
        left, right = pair = (merge[:cut], merge[cut + 1 :])
        if not vocabulary.ids.keys() >= {left, right, left + right}:
            raise vocabulary.wrong("tokenizer.ggml.merges", f"holds {merge!r:.40}, not of tokens")
        pairs.append(pair)
    return pairs


def _rebuild_sentencepiece(vocabulary: _GGUFVocabulary, template: str | None) -> tuple[str, bytes]:
    """The section for a `llama` vocabulary, kind and bytes, the same each time.

    A SentencePiece model, which the engine loads faster, unless it would read chat prompts wrongly.
    """
    scores = vocabulary.numbers("scores", 0).tolist()
    types = vocabulary.types.astype(int).tolist()
    if vocabulary.unk is not None:  # Gemma's files call it a control token
        types[vocabulary.unk] = _UNKNOWN
    # llama.cpp took its numbers of token types from SentencePiece; 0 is its "undefined".
    kinds = [kind or _NORMAL for kind in types]
    prefix = vocabulary.get("add_space_prefix")
    model = make_model(
        zip(vocabulary.tokens, scores, kinds, strict=True),
        {role: getattr(vocabulary, role) for role in ("bos", "eos", "unk", "pad")},
        has_bytes=_BYTE in types,
        adds_prefix=prefix if isinstance(prefix, bool) else True,
        strips=vocabulary.get("remove_extra_whitespaces") is True,
    )
    if needs_json(model, template):
        return HF_KIND, pieces_to_json(model, Prefix.PREPENDED)
    bos, eos = vocabulary.text(vocabulary.bos), vocabulary.text(vocabulary.eos)
    make_controls_readable(model, bos, eos, template)
    for piece in model.pieces:
        # llama.cpp stores the blanks of user-defined pieces as they look, SentencePiece as ▁.
        if piece.type == _USER_DEFINED and " " in piece.piece:
            piece.piece = piece.piece.replace(" ", "▁")
    return SENTENCEPIECE_KIND, model.SerializeToString(deterministic=True)
