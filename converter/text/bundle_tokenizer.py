"""A tokenizer as it lies in the bundle, wherever it came from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from converter.errors import SourceError
from converter.text.tokenizer_json import HF_KIND, SAVE_AGAIN, TokenizerJson, load_tokenizer_json

SENTENCEPIECE_KIND = "SP_Tokenizer"


@dataclass(frozen=True)
class BundleTokenizer:
    """A tokenizer as the engine will run it.

    Attributes:
        kind: the bundle's section type, `HF_Tokenizer_Zlib` or `SP_Tokenizer`.
        data: a tokenizer.json or a SentencePiece model, not compressed.
        vocab_size: one more than the highest id.
        chat_template: the source's own template, told of the tokens it asks for; None without one.
        bos_token: the text of the token that starts a text; None where the source has none.
        bos_token_id: its id.
        eos_token_ids: every id that the source says ends a text or a turn, ascending.
        eos_token: the text of the source's main end token.
        adds_bos: whether the source puts `bos_token` before plain text.
        special_tokens: control tokens and marks that the template writes, text to id.
        notes: what a user should know of choices made here, one line each.
        starts_with_blank: whether the source puts a blank before a prompt that begins with text.
            The engine encodes each turn apart, so a tokenizer that did so would do it in each.
    """

    kind: str
    data: bytes = field(repr=False)
    vocab_size: int
    chat_template: str | None
    bos_token: str | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    eos_token: str | None
    adds_bos: bool
    special_tokens: dict[str, int] = field(repr=False)
    notes: tuple[str, ...] = ()
    starts_with_blank: bool = False

    def encode(self, text: str) -> list[int]:
        """Encode as the engine does: special tokens in `text` are parsed, none are added."""
        return _encode(self.kind, self._engine, text)

    def outline(self, text: str) -> list[int]:
        """Encode with the same special tokens as `encode`, but words in pieces as small as may be.

        For what depends on special tokens alone; see `TokenizerJson`.
        """
        return _encode(self.kind, self._outline, text)

    def decode(self, ids: Iterable[int]) -> str:
        """Turn ids into text; special tokens stay visible, save SentencePiece's control pieces."""
        if self.kind == SENTENCEPIECE_KIND:
            return str(self._engine.decode(list(ids)))
        return str(self._engine.decode(list(ids), skip_special_tokens=False))

    def token_id(self, text: str) -> int | None:
        """The id of the token that is written exactly `text`, or None."""
        if self.kind == SENTENCEPIECE_KIND:
            found = self._engine.piece_to_id(text)
            return found if self._engine.id_to_piece(found) == text else None
        return self._engine.token_to_id(text)

    def with_outline(self, engine: Any) -> BundleTokenizer:
        """Keep the result of `load_outline`, where it was loaded already."""
        vars(self)["_outline"] = engine
        return self

    @cached_property
    def _engine(self) -> Any:
        return load_engine(self.kind, self.data, self.kind)

    @cached_property
    def _outline(self) -> Any:
        return load_outline(self.kind, self.data, self.kind)


def load_engine(kind: str, data: bytes, name: str) -> Any:
    """Load `data` with the library that the engine uses, which also proves that it can be."""
    if kind == HF_KIND:
        return load_tokenizer_json(data, name)
    from sentencepiece import SentencePieceProcessor

    try:
        return SentencePieceProcessor(model_proto=data)
    except Exception as error:
        raise SourceError(name, f"the tokenizer does not load: {error}", SAVE_AGAIN) from error


def load_outline(kind: str, data: bytes, name: str) -> Any:
    """Load what is needed to look at special tokens; see `TokenizerJson`."""
    return (
        TokenizerJson(data, None, name).outline
        if kind == HF_KIND
        else load_engine(kind, data, name)
    )


def _encode(kind: str, engine: Any, text: str) -> list[int]:
    if kind == SENTENCEPIECE_KIND:
        return list(engine.encode(text, out_type=int))
    return list(engine.encode(text, add_special_tokens=False).ids)


def make_controls_readable(
    model: Any, bos_token: str | None, eos_token: str | None, template: str | None
) -> None:
    """Make control pieces user-defined, so that a rendered template's text becomes their ids.

    The model's own start, end, unknown and padding pieces stay control pieces, which text never
    becomes, unless the template writes them: literally, or as its variables.
    """
    kinds, spec = model.SentencePiece, model.trainer_spec
    written = template or ""
    own = (spec.bos_piece, spec.eos_piece, spec.unk_piece, spec.pad_piece)
    kept = {piece for piece in own if piece not in written}
    if "bos_token" in written:
        kept.discard(bos_token or spec.bos_piece)
    if "eos_token" in written:
        kept.discard(eos_token or spec.eos_piece)
    for piece in model.pieces:
        if piece.type == kinds.CONTROL and piece.piece not in kept:
            piece.type = kinds.USER_DEFINED
