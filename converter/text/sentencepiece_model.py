"""SentencePiece models: of a GGUF's pieces, or of a tokenizer.json that says the same.

The engine loads one in a fraction of the time and memory that a tokenizer.json of as many tokens
takes (docs/runtime.md, "Starting").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

from converter.text.tokenizer_json import TokenizerJson

_BLANK = "▁"
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
# What cuts nothing where blanks are ▁ by then, as Gemma's files have it.
_NO_CUT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def make_model(
    pieces: Iterable[tuple[str, float, int]],
    roles: Mapping[str, int | None],
    *,
    has_bytes: bool,
    adds_prefix: bool = False,
    strips: bool = False,
) -> Any:
    """A BPE ModelProto.

    Args:
        pieces: text, score and SentencePiece's type of every id.
        roles: the ids of `bos`, `eos`, `unk` and `pad`, None for a role that nobody has.
        has_bytes: whether what no piece stands for is written in pieces of bytes.
        adds_prefix: whether text gets a blank in front.
        strips: whether blanks around text are dropped, and of several in a row all but one.
    """
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    for piece, score, kind in pieces:
        model.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.BPE
    trainer.vocab_size = len(model.pieces)
    trainer.byte_fallback = has_bytes
    for role, token_id in roles.items():
        setattr(trainer, f"{role}_id", -1 if token_id is None else token_id)
        if token_id is not None:
            setattr(trainer, f"{role}_piece", model.pieces[token_id].piece)
    normalizer.name = "identity"
    normalizer.add_dummy_prefix = adds_prefix
    normalizer.remove_extra_whitespaces = strips
    normalizer.escape_whitespaces = True
    return model


def json_to_pieces(source: TokenizerJson, roles: Mapping[str, str | None]) -> Any:
    """A tokenizer.json as a ModelProto that reads every text alike; None where there is none.

    SentencePiece merges whatever two neighbours make a piece, the best piece first. A
    tokenizer.json that was made of such a model lists exactly these pairs, those of one piece
    together. So the merges are counted against all ways to cut every piece in two, and any that
    are missing, too many, or out of order say no. A text that itself holds "▁▁" is read as
    SentencePiece reads it, to which ▁ is a blank.

    Args:
        roles: the tokens of `bos`, `eos` and `pad`.
    """
    import msgspec

    parts = msgspec.json.decode(source.data, type=dict[str, msgspec.Raw])
    model = msgspec.json.decode(parts["model"], type=dict[str, msgspec.Raw])
    added = msgspec.json.decode(parts.get("added_tokens", b"[]"), type=list[dict[str, Any]])
    rules = {
        key: msgspec.json.decode(of[key]) if key in of else None
        for of, keys in (
            (parts, ("normalizer", "pre_tokenizer")),
            (model, ("type", "dropout", "byte_fallback", "ignore_merges", "unk_token")),
        )
        for key in keys
    }
    whole, unknown = source.special.keys() | source.added.keys(), rules.pop("unk_token")
    # Gemma 1 and 2 have a tab in the place of its byte.
    letters = {
        chr(byte): piece
        for byte, piece in enumerate(_BYTES[:128])
        if piece not in source.ids and chr(byte) not in whole
    }
    ids = {letters.get(text, text): i for text, i in source.ids.items()}
    if (
        not isinstance(unknown, str)
        or not _reads_raw_text(rules)
        or not all(map(_is_plain, added))
        or not ids.keys() >= {unknown, *_BYTES}
        or sorted(ids.values()) != list(range(len(ids)))
    ):
        return None
    words = ids.keys() - whole - set(_BYTES) - {unknown}
    scores = _scores(words, whole, _pairs(model["merges"]))
    if scores is None:
        return None

    from sentencepiece import sentencepiece_model_pb2

    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    types = dict.fromkeys(_BYTES, kinds.BYTE)
    types |= dict.fromkeys(source.added, kinds.USER_DEFINED)
    types |= dict.fromkeys(source.special, kinds.CONTROL) | {unknown: kinds.UNKNOWN}
    found = {role: None if text is None else ids.get(text) for role, text in roles.items()}
    return make_model(
        (
            (text.replace(" ", _BLANK), scores.get(text, 0.0), types.get(text, kinds.NORMAL))
            for text in sorted(ids, key=ids.__getitem__)
        ),
        found | {"unk": ids[unknown]},
        has_bytes=True,
    )


def _reads_raw_text(rules: Mapping[str, Any]) -> bool:
    """Whether text is cut nowhere and changed in nothing but its blanks, which become ▁."""
    return (
        rules["normalizer"] == {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
        and rules["pre_tokenizer"] in (None, _NO_CUT)
        and rules["type"] == "BPE"
        and rules["byte_fallback"] is True
        and not rules["dropout"]
        and not rules["ignore_merges"]
    )


def _is_plain(token: Mapping[str, Any]) -> bool:
    """Whether an added token is found wherever its text stands, and takes nothing beside it."""
    return not any(token.get(key) for key in ("lstrip", "rstrip", "single_word", "normalized"))


def _pairs(raw: Any) -> Iterator[tuple[str, str]]:
    """Merges one by one: all of Gemma's at once would take 100 MB."""
    import msgspec

    decoder = msgspec.json.Decoder(str | tuple[str, str])
    for item in msgspec.json.decode(raw, type=list[msgspec.Raw]):
        pair = decoder.decode(item)
        if isinstance(pair, str):
            left, _, right = pair.partition(" ")
            pair = (left, right)
        yield pair


def _scores(
    words: AbstractSet[str], whole: AbstractSet[str], merges: Iterable[tuple[str, str]]
) -> dict[str, float] | None:
    """Scores under which SentencePiece merges words as these merges do; None where none do.

    Args:
        words: what merges make, and letters.
        whole: tokens that are matched in the text before anything is merged. Merges that make them
            are never carried out, but those of several blanks: these are ▁ only after the match.
    """
    runs = {text for text in whole if _BLANK in text}
    longer = {_BLANK * n for n in range(1, len(runs) + 1)}  # what one ▁ more makes a run
    if runs != {run + _BLANK for run in longer}:
        return None
    scores: dict[str, float] = {}
    last, lefts, count = "", set[str](), 0
    for left, right in merges:
        made = left + right
        if made in words and left in words and right in words:
            if made != last:
                if made in scores:
                    return None
                scores[made] = -float(len(scores) + 1)
                last, lefts = made, set()
            if left in lefts:
                return None
            lefts.add(left)
            count += 1
        elif made in runs and not scores:
            # Before any word is made, and before a second run begins, one takes all blanks it can.
            if right == _BLANK:
                longer.discard(left)
                if left == _BLANK and longer:
                    return None
        elif made in runs or made not in whole:
            return None
    is_whole = not longer and set("".join(words)) <= words
    return scores if is_whole and count == sum(map(_cuts_into(words), words)) else None


def _cuts_into(words: AbstractSet[str]) -> Callable[[str], int]:
    """Counts the ways to cut a word into two others."""

    def cuts(word: str) -> int:
        return sum(word[:i] in words and word[i:] in words for i in range(1, len(word)))

    return cuts
