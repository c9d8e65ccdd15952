"""The tokenizer that goes into the bundle.

From a folder it is tokenizer.json or tokenizer.model, changed only in what the engine must not do.
From a GGUF it is rebuilt (`gguf_tokenizer`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import SourceError, UnsupportedError
from converter.tokenizer_json import HF_KIND, SAVE_AGAIN, TokenizerJson, load_tokenizer_json

SENTENCEPIECE_KIND = "SP_Tokenizer"


@dataclass(frozen=True)
class BundleTokenizer:
    """A tokenizer as the engine will run it.

    Attributes:
        kind: the bundle's section type, `HF_Tokenizer_Zlib` or `SP_Tokenizer`.
        data: a tokenizer.json or a SentencePiece model, not compressed.
        vocab_size: one more than the highest id.
        chat_template: the source's own template, unchanged; None where it has none.
        bos_token: the text of the token that starts a text; None where the source has none.
        bos_token_id: its id.
        eos_token_ids: every id that the source says ends a text or a turn, ascending.
        eos_token: the text of the source's main end token.
        adds_bos: whether the source puts `bos_token` before plain text.
        special_tokens: control tokens, text to id.
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


def load_tokenizer(checkpoint: Checkpoint, prefer_sentencepiece: bool = False) -> BundleTokenizer:
    """Load a checkpoint's tokenizer, or rebuild it from a GGUF's metadata.

    Args:
        checkpoint: an open folder or GGUF.
        prefer_sentencepiece: use a folder's tokenizer.model where it agrees with its
            tokenizer.json; the engine starts faster with it.

    Raises:
        SourceError: files are missing or damaged.
        UnsupportedError: the tokenizer cannot be rebuilt exactly.
    """
    if isinstance(checkpoint, GGUFCheckpoint):
        from converter.gguf_tokenizer import rebuild_tokenizer

        return rebuild_tokenizer(checkpoint)
    return _from_folder(checkpoint, prefer_sentencepiece)


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


# ---- A folder -----------------------------------------------------------------------------------


def _from_folder(checkpoint: Checkpoint, prefer_sentencepiece: bool) -> BundleTokenizer:
    folder = checkpoint.path
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    if not json_file.is_file() and not model_file.is_file():
        raise SourceError(
            str(folder), "no tokenizer: looked for tokenizer.json and tokenizer.model", SAVE_AGAIN
        )
    settings = _read_json(folder / "tokenizer_config.json")
    template = _folder_template(folder, settings)
    rows = _embedding_rows(checkpoint.config)
    fast = TokenizerJson(_read(json_file), rows, str(json_file)) if json_file.is_file() else None
    model = None
    if model_file.is_file() and (prefer_sentencepiece or fast is None):
        model = _sentencepiece_file(model_file, settings, template)
    if fast is None:
        if model is None:
            raise UnsupportedError(
                str(model_file), "not a SentencePiece model, and no tokenizer.json", SAVE_AGAIN
            )
        _refuse_lost_tokens(model_file, model, settings)
        return _describe_folder(checkpoint, settings, template, model, None)
    if model and _agree(model, fast, rows):
        return _describe_folder(checkpoint, settings, template, model, fast)
    return _describe_folder(checkpoint, settings, template, fast, fast)


class _PieceModel:
    """A SentencePiece model, loaded."""

    kind = SENTENCEPIECE_KIND

    def __init__(self, data: bytes, name: str, special: dict[str, int]) -> None:
        self.data = data
        self.outline = load_engine(SENTENCEPIECE_KIND, data, name)
        self.special = special
        self.vocab_size = int(self.outline.get_piece_size())

    def text(self, token_id: int) -> str | None:
        if token_id < self.vocab_size:
            return str(self.outline.id_to_piece(token_id))
        return None

    def id(self, text: str) -> int | None:
        found = int(self.outline.piece_to_id(text))
        return found if self.text(found) == text else None

    def spelling(self, text: str) -> str:
        """The pieces of `text`, joined."""
        return "".join(self.outline.encode(text, out_type=str))

    def is_readable(self, text: str) -> bool:
        """Whether `text` is a piece that encoding can give: not a control piece, not unknown."""
        found = self.id(text)
        return found is not None and not (
            self.outline.is_control(found) or self.outline.is_unknown(found)
        )


def _describe_folder(
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    template: str | None,
    chosen: TokenizerJson | _PieceModel,
    fast: TokenizerJson | None,
) -> BundleTokenizer:
    bos, adds_bos = _folder_bos(checkpoint, settings, chosen, fast)
    eos_token = _token_text(settings.get("eos_token"))
    eos_ids = {
        *_ids(checkpoint.generation_config.get("eos_token_id")),
        *_ids(checkpoint.config.get("eos_token_id")),
        *_ids(_mapping(checkpoint.config.get("text_config")).get("eos_token_id")),
        *_ids(chosen.id(eos_token) if eos_token else None),
    }
    if eos_token is None and eos_ids:
        eos_token = chosen.text(min(eos_ids))
    tokenizer = BundleTokenizer(
        kind=chosen.kind,
        data=chosen.data,
        vocab_size=chosen.vocab_size,
        chat_template=template,
        bos_token=bos,
        bos_token_id=chosen.id(bos) if bos else None,
        eos_token_ids=tuple(sorted(eos_ids)),
        eos_token=eos_token,
        adds_bos=adds_bos,
        special_tokens=fast.special if fast else chosen.special,
    )
    return tokenizer.with_outline(chosen.outline)


def _folder_bos(
    checkpoint: Checkpoint,
    settings: dict[str, Any],
    chosen: TokenizerJson | _PieceModel,
    fast: TokenizerJson | None,
) -> tuple[str | None, bool]:
    """The start token and whether it is put before plain text.

    `add_bos_token` decides where it is stated, as in transformers; else what tokenizer.json does.
    A lone SentencePiece model is Llama's, which adds it.
    """
    bos = _token_text(settings.get("bos_token"))
    if "bos_token" not in settings:
        declared = _ids(checkpoint.config.get("bos_token_id"))
        bos = chosen.text(declared[0]) if declared else None
    stated = settings.get("add_bos_token")
    if isinstance(stated, bool):
        return bos, stated and bos is not None
    if fast is None:
        return bos, bos is not None
    plain = fast.outline.encode("a", add_special_tokens=False).tokens
    full = fast.outline.encode("a").tokens
    added = full[0] if full[:1] != plain[:1] else None
    if bos is None or added is None:
        return bos or added, added is not None
    return bos, added == bos


def _folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: its own file first, then tokenizer_config.json."""
    jinja = folder / "chat_template.jinja"
    if jinja.is_file():
        return _text(_read(jinja), jinja)
    template = _read_json(folder / "chat_template.json").get("chat_template")
    template = template or settings.get("chat_template")
    if isinstance(template, list):
        entries = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    return template if isinstance(template, str) and template else None


def _sentencepiece_file(
    path: Path, settings: dict[str, Any], template: str | None
) -> _PieceModel | None:
    """tokenizer.model with readable control pieces; None if the file is of another format."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    data = _read(path)
    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        return None
    if not model.pieces:
        return None
    kinds = model.SentencePiece
    special = {p.piece: i for i, p in enumerate(model.pieces) if p.type == kinds.CONTROL}
    if make_controls_readable(model, _token_text(settings.get("eos_token")), template):
        data = model.SerializeToString(deterministic=True)
    return _PieceModel(data, str(path), special)


def _refuse_lost_tokens(path: Path, model: _PieceModel, settings: dict[str, Any]) -> None:
    added = _mapping(settings.get("added_tokens_decoder")).values()
    lost = [text for token in added if (text := _token_text(token)) and model.id(text) is None]
    if lost:
        raise UnsupportedError(
            str(path),
            f"the added tokens {', '.join(lost[:5])} are not in it, and there is no tokenizer.json",
            SAVE_AGAIN,
        )


_PROBES = (
    "Hello, world!  Two spaces,\ttabs\n\nand 12345 digits.",
    "  naïve café, 日本語, Привет, 🙂👍🏽 — “quoted”",
    "def f(x):\n    return x ** 2  # <b>html</b>\n",
)


def _agree(model: _PieceModel, fast: TokenizerJson, rows: int | None) -> bool:
    """Whether the SentencePiece model can stand in for tokenizer.json.

    It cannot where tokenizer.json has tokens that the model lacks, as fine-tunes add them. A token
    beyond the embedding's last row is no loss: no network could read it.
    """
    limit = sys.maxsize if rows is None else rows
    pieces = {str(model.outline.id_to_piece(i)): i for i in range(model.vocab_size)}
    if pieces != {text.replace(" ", "▁"): i for text, i in fast.ids.items() if i < limit}:
        return False
    readable = (text for text in fast.special if model.is_readable(text))
    # The pieces differ, as an outline has letters alone; what they spell must not.
    return all(model.spelling(text) == fast.spelling(text) for text in (*_PROBES, *readable))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(str(path), error.strerror or str(error), "make it readable") from None


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SourceError(str(path), "is not UTF-8 text", "download the file again") from None


def _read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    return _parse(_read(path), path)


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(data, path))
    except (ValueError, RecursionError) as error:
        raise SourceError(str(path), f"is not JSON: {error}", "download the file again") from None
    if not isinstance(value, dict):
        raise SourceError(str(path), "is not a JSON object", "download the file again")
    return value


def _embedding_rows(config: dict[str, Any]) -> int | None:
    """The number of rows that the config gives the embedding; None where it is silent."""
    rows = {**config, **_mapping(config.get("text_config"))}.get("vocab_size")
    return rows if type(rows) is int else None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _token_text(token: Any) -> str | None:
    """A token's text: configs write it as a string or as an object with `content`."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) and token else None


def _ids(value: Any) -> list[int]:
    """The ids in a config's value: null, a number or a list."""
    values = value if isinstance(value, list) else [value]
    return [item for item in values if type(item) is int and item >= 0]


# ---- SentencePiece ------------------------------------------------------------------------------


def make_controls_readable(model: Any, eos_token: str | None, template: str | None) -> bool:
    """Make control pieces user-defined, so that a rendered template's text becomes their ids.

    The model's own start, end, unknown and padding pieces stay control pieces, which text never
    becomes, unless the template writes them: literally, or as its variable `eos_token`.
    (`bos_token` is rendered empty, and the engine adds that piece.)

    Returns:
        Whether anything changed.
    """
    kinds, spec = model.SentencePiece, model.trainer_spec
    written = template or ""
    own = (spec.bos_piece, spec.eos_piece, spec.unk_piece, spec.pad_piece)
    kept = {piece for piece in own if piece not in written}
    if "eos_token" in written:
        kept.discard(eos_token or spec.eos_piece)
    changed = False
    for piece in model.pieces:
        if piece.type == kinds.CONTROL and piece.piece not in kept:
            piece.type = kinds.USER_DEFINED
            changed = True
    return changed
