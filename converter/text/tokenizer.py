"""The tokenizer that goes into the bundle.

From a folder it is tokenizer.json or tokenizer.model, changed only in what the engine must not do,
or a tokenizer.json that is made of vocab.json and merges.txt. From a GGUF it is rebuilt
(`gguf_tokenizer`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Container
from dataclasses import replace
from pathlib import Path
from typing import Any

from converter.checkpoint.base import Checkpoint
from converter.checkpoint.files import read_file, utf8_of
from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import SourceError, UnsupportedError
from converter.text.bundle_tokenizer import (
    SENTENCEPIECE_KIND,
    BundleTokenizer,
    load_engine,
    make_controls_readable,
)
from converter.text.byte_level_json import byte_level_json, pre_tokenizer_of
from converter.text.control_tokens import control_tokens
from converter.text.named_templates import (
    DEFAULT,
    chat_template_of,
    join_named,
    with_named_tokens,
)
from converter.text.pieces_json import Prefix, is_bpe, needs_json, pieces_to_json
from converter.text.sentencepiece_model import json_to_pieces
from converter.text.tokenizer_json import SAVE_AGAIN, TokenizerJson, without_first_blank

_END = "<|endoftext|>"
DOWNLOAD_AGAIN = "download the file again"


def load_tokenizer(
    checkpoint: Checkpoint,
    prefer_sentencepiece: bool = False,
    chat_template: str | None = None,
) -> BundleTokenizer:
    """Load a checkpoint's tokenizer, or rebuild it from a GGUF's metadata.

    Args:
        checkpoint: an open folder or GGUF.
        prefer_sentencepiece: make a SentencePiece section of a folder's tokenizer.model where it
            agrees with its tokenizer.json, or of a tokenizer.json that says the same as such a
            model; the engine starts faster with it.
        chat_template: what to take for the source's own, "" for none.

    Raises:
        SourceError: files are missing or damaged.
        UnsupportedError: the tokenizer cannot be rebuilt exactly.
    """
    if isinstance(checkpoint, GGUFCheckpoint):
        from converter.text.gguf_tokenizer import rebuild_tokenizer

        return rebuild_tokenizer(checkpoint, chat_template)
    return _from_folder(checkpoint, prefer_sentencepiece, chat_template)


# ---- A folder -----------------------------------------------------------------------------------


def _from_folder(
    checkpoint: Checkpoint, prefer_sentencepiece: bool, chosen_template: str | None
) -> BundleTokenizer:
    folder = checkpoint.path
    json_file, model_file = folder / "tokenizer.json", folder / "tokenizer.model"
    parts = folder / "vocab.json", folder / "merges.txt"
    has_parts = all(path.is_file() for path in parts)
    if not (json_file.is_file() or model_file.is_file() or has_parts):
        raise SourceError(
            str(folder),
            "no tokenizer: looked for tokenizer.json, tokenizer.model, and vocab.json with "
            "merges.txt",
            SAVE_AGAIN,
        )
    settings = read_json(folder / "special_tokens_map.json")
    settings |= read_json(folder / "tokenizer_config.json")
    template = chosen_template
    if template is None:
        template = folder_template(folder, settings)
    if template is not None:
        template = with_named_tokens(template, {k: _token_text(v) for k, v in settings.items()})
    rows = _embedding_rows(checkpoint.config)
    beside = _tokens_beside(folder, settings)
    bare = None
    if json_file.is_file():
        data = _read_utf8(json_file)
        # The engine would put the blank before every turn: here the template begins with it.
        bare = without_first_blank(data) if template else None
        fast = TokenizerJson(bare or data, rows, str(json_file), beside)
    elif model_file.is_file():
        return _from_pieces(checkpoint, model_file, settings, template, rows, beside)
    else:
        data = _from_vocabulary(checkpoint, *parts, settings, beside)
        fast = TokenizerJson(data, rows, str(parts[0]), beside)
    _check_end_token(folder, settings, fast.ids, rows)
    model = None
    if prefer_sentencepiece and model_file.is_file() and (proto := _pieces(model_file)):
        model = _as_section(proto, model_file, settings, template)
        model = model if _agree(model, fast, rows) else None
    if prefer_sentencepiece and model is None:
        roles = {role: _token_text(settings.get(f"{role}_token")) for role in ("bos", "eos", "pad")}
        if proto := json_to_pieces(fast, roles):
            model = _as_section(proto, json_file, settings, template)
    if model:
        return _describe_folder(checkpoint, settings, template, model, fast)
    tokenizer = _describe_folder(checkpoint, settings, template, fast, fast)
    return replace(tokenizer, starts_with_blank=bare is not None).with_outline(fast.outline)


def _from_pieces(
    checkpoint: Checkpoint,
    path: Path,
    settings: dict[str, Any],
    template: str | None,
    rows: int | None,
    beside: dict[str, dict[str, bool]],
) -> BundleTokenizer:
    """A lone tokenizer.model, with the tokens that stand beside it."""
    model = _pieces(path)
    if model is None:
        raise UnsupportedError(
            str(path), "not a SentencePiece model, and no tokenizer.json", SAVE_AGAIN
        )
    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    numbered = ids | {
        text: i for i, text in enumerate((t for t in beside if t not in ids), start=len(ids))
    }
    # A token without a row is left out, as no network could read it.
    limit = sys.maxsize if rows is None else rows
    numbered = {text: i for text, i in numbered.items() if i < limit}
    _check_end_token(path.parent, settings, numbered, rows)
    added = {text: {"id": numbered[text]} | beside[text] for text in beside if text in numbered}
    lost = [text for text in added if text not in ids]
    if settings.get("add_prefix_space") is False:
        model.normalizer_spec.add_dummy_prefix = False
    prefixed = model.normalizer_spec.add_dummy_prefix
    if not is_bpe(model) and (lost or (template and prefixed)):
        what = f"the tokens {', '.join(lost[:5])} beside it" if lost else "a chat template"
        raise UnsupportedError(
            str(path),
            f"it is a Unigram model, in which {what} cannot be read exactly, and there is no "
            "tokenizer.json",
            "use the tokenizer.json of the same model",
        )
    if not lost and not needs_json(model, template):
        chosen = _as_section(model, path, settings, template)
        return _describe_folder(checkpoint, settings, template, chosen, None)
    prefix = Prefix.ALWAYS if prefixed and settings.get("legacy") is True else Prefix.NEVER
    fast = TokenizerJson(pieces_to_json(model, prefix, added), rows, str(path))
    tokenizer = _describe_folder(checkpoint, settings, template, fast, None)
    return replace(tokenizer, starts_with_blank=prefixed).with_outline(fast.outline)


def _from_vocabulary(
    checkpoint: Checkpoint,
    vocab: Path,
    merges: Path,
    settings: dict[str, Any],
    beside: dict[str, dict[str, bool]],
) -> bytes:
    """The tokenizer.json that transformers would make of vocab.json and merges.txt."""
    kind = settings.get("tokenizer_class")
    cut = pre_tokenizer_of(checkpoint.config.get("model_type"), kind)
    if cut is None or settings.get("add_prefix_space") is True:
        why = f"tokenizer_class {kind!r:.40} does not say how its text is cut into words"
        if cut is not None:
            why = "add_prefix_space puts a blank before text, which a vocab.json cannot have here"
        raise UnsupportedError(str(vocab), f"{why}, and there is no tokenizer.json", SAVE_AGAIN)
    ids = _parse(_read_utf8(vocab), vocab)
    if not all(type(i) is int for i in ids.values()) or set(ids.values()) != set(range(len(ids))):
        raise SourceError(str(vocab), "does not number its tokens from 0 up", DOWNLOAD_AGAIN)
    pairs = []
    for line in _text(_read_utf8(merges), merges).split("\n"):
        if not line.strip() or line.startswith("#version"):
            continue
        left, _, right = line.rstrip("\r").partition(" ")
        if not ids.keys() >= {left, right, left + right}:
            raise SourceError(str(merges), f"holds {line!r:.40}, not of tokens", DOWNLOAD_AGAIN)
        pairs.append((left, right))
    # Both classes have this name for the end, and for what is unknown, unless another is given.
    known = {text: beside.get(text, {}) for text in (_END, *beside) if text in ids}
    return byte_level_json(cut, ids, pairs, known)


class _PieceModel:
    """A SentencePiece model, loaded."""

    kind = SENTENCEPIECE_KIND

    def __init__(
        self, data: bytes, name: str, special: dict[str, int], added: dict[str, int]
    ) -> None:
        self.data = data
        self.outline = load_engine(SENTENCEPIECE_KIND, data, name)
        self.special = special
        self.added = added
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
    whole = fast or chosen
    eos_token = _token_text(settings.get("eos_token"))
    config_file = checkpoint.path / "config.json"
    eos_ids = {
        *_ids(
            checkpoint.generation_config, "eos_token_id", checkpoint.path / "generation_config.json"
        ),
        *_ids(checkpoint.config, "eos_token_id", config_file),
        *_ids(_mapping(checkpoint.config.get("text_config")), "eos_token_id", config_file),
    }
    if eos_token and (eos_id := chosen.id(eos_token)) is not None:
        eos_ids.add(eos_id)
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
        special_tokens=control_tokens(whole.special, whole.added, template),
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
        declared = _ids(checkpoint.config, "bos_token_id", checkpoint.path / "config.json")
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


def folder_template(folder: Path, settings: dict[str, Any]) -> str | None:
    """The chat template: files of its own first, then tokenizer_config.json."""
    files = {path.stem: path for path in folder.glob("additional_chat_templates/*.jinja")}
    if (jinja := folder / "chat_template.jinja").is_file():
        files[DEFAULT] = jinja
    if files:
        texts = {name: _text(_read_utf8(path), path) for name, path in sorted(files.items())}
        return join_named(texts, str(folder))
    own = folder / "chat_template.json"
    template = chat_template_of(read_json(own).get("chat_template"), str(own))
    return template or chat_template_of(
        settings.get("chat_template"), str(folder / "tokenizer_config.json")
    )


def _pieces(path: Path) -> Any:
    """tokenizer.model, parsed; None if the file is of another format."""
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    try:
        model.ParseFromString(read_file(path))
    except DecodeError:
        return None
    return model if model.pieces else None


def _as_section(
    model: Any, path: Path, settings: dict[str, Any], template: str | None
) -> _PieceModel:
    """A SentencePiece section with readable control pieces."""
    kinds = model.SentencePiece
    special = {p.piece: i for i, p in enumerate(model.pieces) if p.type == kinds.CONTROL}
    added = {p.piece: i for i, p in enumerate(model.pieces) if p.type == kinds.USER_DEFINED}
    bos, eos = (_token_text(settings.get(f"{role}_token")) for role in ("bos", "eos"))
    make_controls_readable(model, bos, eos, template)
    return _PieceModel(model.SerializeToString(deterministic=True), str(path), special, added)


_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def _tokens_beside(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, bool]]:
    """Tokens that a tokenizer's settings name: text to flags, in the order that transformers adds.

    The ids that are stated there count for the order alone.
    """
    ids: dict[str, int] = {
        text: i for text, i in read_json(folder / "added_tokens.json").items() if type(i) is int
    }
    tokens: dict[str, dict[str, bool]] = {text: {} for text in ids}
    for number, token in _mapping(settings.get("added_tokens_decoder")).items():
        if (text := _token_text(token)) and number.isdecimal():
            ids[text] = int(number)
            tokens[text] = {"special": False} | _flags(token)
    tokens = {text: tokens[text] for text in sorted(tokens, key=lambda text: ids[text])}
    more = settings.get("additional_special_tokens")
    named = [settings.get(f"{role}_token") for role in _ROLES]
    for token in named + (more if isinstance(more, list) else []):
        if text := _token_text(token):
            tokens.setdefault(text, _flags(token) | {"special": True})
    return tokens


def _flags(token: Any) -> dict[str, bool]:
    """What an object says of a token; a string says nothing."""
    names = ("special", "lstrip", "rstrip")
    return {name: token[name] is True for name in names if name in _mapping(token)}


def _check_end_token(
    folder: Path, settings: dict[str, Any], ids: Container[str], rows: int | None
) -> None:
    eos = _token_text(settings.get("eos_token"))
    if eos and eos not in ids:
        raise UnsupportedError(
            str(folder),
            f"eos_token {eos!r} is not in the tokenizer, and the embedding of {rows} rows has none "
            "for it",
            "name a token of the vocabulary as eos_token in tokenizer_config.json",
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


def _read_utf8(path: Path) -> bytes:
    try:
        return utf8_of(read_file(path))
    except ValueError as error:
        raise SourceError(str(path), str(error), DOWNLOAD_AGAIN) from None


def _text(data: bytes, path: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SourceError(str(path), "is not UTF-8 text", DOWNLOAD_AGAIN) from None


def read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; {} where there is no file."""
    if not path.is_file():
        return {}
    return _parse(_read_utf8(path), path)


def _parse(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(data, path))
    except (ValueError, RecursionError) as error:
        raise SourceError(str(path), f"is not JSON: {error}", DOWNLOAD_AGAIN) from None
    if not isinstance(value, dict):
        raise SourceError(str(path), "is not a JSON object", DOWNLOAD_AGAIN)
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


def _ids(config: dict[str, Any], key: str, file: Path) -> list[int]:
    """The ids that a config gives under `key`: a number, a list, null or below 0 for none.

    Raises:
        SourceError: it is anything else, which transformers' own configs refuse, too.
    """
    value = config.get(key)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(item) is int for item in values):
        raise SourceError(
            str(file),
            f"{key}={value!r:.80} is neither a token's id nor a list of them",
            "correct it there",
        )
    return [item for item in values if item >= 0]
