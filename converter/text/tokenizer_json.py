"""A tokenizer.json, taken apart instead of built.

Nearly all of it is the words of its vocabulary and the merges that make them: to build Gemma's
takes over a second and 400 MB. A conversion asks for ids and looks at special tokens. So the words
stay a table, and the one tokenizer that is built, the outline, knows special tokens and letters.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from converter.errors import SourceError

HF_KIND = "HF_Tokenizer_Zlib"
SAVE_AGAIN = "save it again: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"


class TokenizerJson:
    """A tokenizer.json without what the engine must not do.

    Truncation and padding serve training, and would cut prompts. An added token beyond the
    embedding's last row, such as Gemma's <image_soft_token> in its text models, would be read from
    outside it as soon as a user's text holds it; without the token that text is just text.
    `with_breaks_apart` says what is wrong with line breaks that are bytes.

    Attributes:
        data: the bytes; the file's own where nothing had to be taken out.
        ids: every token's id, added tokens included.
        special: the control tokens, text to id.
        added: other tokens that are matched whole, text to id.
        outline: a tokenizer with the same rules and special tokens, whose words are single letters.

    Args:
        data: the file's bytes.
        rows: of the embedding; None where that is not known.
        name: for errors.
        beside: tokens that stand beside the file, text to flags of an added token. Those that it
            lacks are added, as transformers adds them.

    Raises:
        SourceError: the file is damaged.
    """

    kind = HF_KIND

    def __init__(
        self,
        data: bytes,
        rows: int | None,
        name: str,
        beside: Mapping[str, Mapping[str, bool]] | None = None,
    ) -> None:
        import msgspec

        limit = sys.maxsize if rows is None else rows
        try:
            parts = _parts(data)
            model = _parts(parts["model"])
            cut = [key for key in ("truncation", "padding") if _value(parts.get(key))]
            listed = msgspec.json.decode(
                parts.get("added_tokens", b"[]"), type=list[dict[str, Any]]
            )
            has_letters = _has_letters(model)
            unknown = _value(model.get("unk_token"))
            if has_letters:
                self.ids = msgspec.json.decode(model["vocab"], type=dict[str, int])
            else:
                self.ids = load_tokenizer_json(data, name).get_vocab(with_added_tokens=False)
            known = self.ids.keys() | {token["content"] for token in listed}
            more = [
                added_token(text, **flags)
                for text, flags in (beside or {}).items()
                if text not in known
            ]
            added = listed + more
            numbers = _number(added, self.ids)
            for token in more:
                token["id"] = numbers[token["content"]]
            kept = [token for token in added if numbers[token["content"]] < limit]
            decoder = with_breaks_apart(_value(parts.get("decoder")), self.ids)
        except (msgspec.DecodeError, KeyError, TypeError) as error:
            raise _damaged(name, error) from error
        parts |= dict.fromkeys(cut, msgspec.Raw(b"null"))
        is_changed = kept != listed
        if is_changed:
            parts["added_tokens"] = msgspec.Raw(msgspec.json.encode(kept))
        if decoder is not None:
            parts["decoder"] = msgspec.Raw(msgspec.json.encode(decoder))
        self.data = _joined(parts) if cut or is_changed or decoder is not None else data
        numbers = {token["content"]: numbers[token["content"]] for token in kept}
        self.special = {
            token["content"]: numbers[token["content"]] for token in kept if token.get("special")
        }
        self.added = {text: i for text, i in numbers.items() if text not in self.special}
        self.ids.update(numbers)
        if has_letters:
            letters = {
                text: i
                for text, i in self.ids.items()
                if len(text) == 1 or (len(text) == 6 and text.startswith("<0x")) or text == unknown
            }
            vocabulary = msgspec.Raw(msgspec.json.encode(letters | numbers))
            outlined = model | {"vocab": vocabulary, "merges": msgspec.Raw(b"[]")}
            parts["model"] = msgspec.Raw(_joined(outlined))
            self.outline = load_tokenizer_json(_joined(parts), name)
        else:
            self.outline = load_tokenizer_json(self.data, name)

    @property
    def vocab_size(self) -> int:
        """One more than the highest id."""
        return max(self.ids.values(), default=-1) + 1

    def id(self, text: str) -> int | None:
        """The id of the token that is written exactly `text`, or None."""
        return self.ids.get(text)

    def text(self, token_id: int) -> str | None:
        """The text of a token, or None."""
        return next((text for text, i in self.ids.items() if i == token_id), None)

    def spelling(self, text: str) -> str:
        """The tokens of `text`, joined."""
        return "".join(self.outline.encode(text, add_special_tokens=False).tokens)


def without_first_blank(data: bytes) -> bytes | None:
    """A tokenizer.json that puts no blank before a text; None where this one puts none, or several.

    Metaspace's `first` puts one before a text's first word, unless a special token stands there.
    """
    import msgspec

    try:
        parts = _parts(data)
        cutting = _value(parts.get("pre_tokenizer"))
    except msgspec.DecodeError:  # whoever takes it apart says what is wrong
        return None
    steps = cutting.get("pretokenizers", [cutting]) if isinstance(cutting, dict) else []
    first = [
        step
        for step in steps
        if isinstance(step, dict)
        and (step.get("type"), step.get("prepend_scheme")) == ("Metaspace", "first")
    ]
    if len(first) != 1:
        return None
    first[0]["prepend_scheme"] = "never"
    parts["pre_tokenizer"] = msgspec.Raw(msgspec.json.encode(cutting))
    return _joined(parts)


def with_breaks_apart(decoder: Any, ids: Mapping[str, int]) -> Any:
    """A decoder that reads a line break or a tab, where it is a byte's token, by itself.

    ByteFallback reads a run of bytes' tokens as one text, and as nothing but U+FFFD until its last
    character is whole. With "€", a break and the first byte of an emoji, what the engine has shown
    is then gone: it ends the answer with "Stable text shrunk compared to released".

    Returns:
        The changed decoder, or None where there is nothing to change.
    """
    steps = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    bytes_ = {"type": "ByteFallback"}
    if bytes_ not in steps:
        return None
    at = steps.index(bytes_)
    tokens = {f"<0x{ord(c):02X}>": c for c in "\t\n" if c not in ids}
    apart = [
        {"type": "Replace", "pattern": {"String": token}, "content": c}
        for token, c in tokens.items()
        if token in ids
    ]
    apart = [step for step in apart if step not in steps]  # it was done before
    if not apart:
        return None
    return {"type": "Sequence", "decoders": [*steps[:at], *apart, *steps[at:]]}


def added_token(
    text: str, special: bool = True, lstrip: bool = False, rstrip: bool = False
) -> dict[str, Any]:
    """An entry of `added_tokens`, but for its id."""
    return {
        "content": text,
        "single_word": False,
        "lstrip": lstrip,
        "rstrip": rstrip,
        "normalized": False,
        "special": special,
    }


def load_tokenizer_json(data: bytes, name: str) -> Any:
    """Build a whole tokenizer with the library that the engine uses.

    Raises:
        SourceError: the library refuses it.
    """
    from tokenizers import Tokenizer  # type: ignore[import-untyped]

    try:
        return Tokenizer.from_buffer(data)
    except Exception as error:  # tokenizers raises bare Exception
        raise _damaged(name, error) from error


def _number(added: list[dict[str, Any]], vocabulary: dict[str, int]) -> dict[str, int]:
    """The ids of added tokens: tokenizers looks into the vocabulary, and not at the stated id."""
    ids: dict[str, int] = {}
    following = len(vocabulary)
    for token in added:
        text = token["content"]
        ids[text] = vocabulary.get(text, ids.get(text, following))
        following = max(following, ids[text] + 1)
    return ids


def _has_letters(model: dict[str, Any]) -> bool:
    """Whether words are built from letters that stand in the vocabulary as such: plain BPE."""
    affixes = ("continuing_subword_prefix", "end_of_word_suffix")
    return "merges" in model and not any(_value(model.get(key)) for key in affixes)


def _value(raw: Any) -> Any:
    import msgspec

    return None if raw is None else msgspec.json.decode(raw)


def _parts(data: Any) -> dict[str, Any]:
    """The values of a JSON object as they are written."""
    import msgspec

    return msgspec.json.decode(data, type=dict[str, msgspec.Raw])


def _joined(parts: dict[str, Any]) -> bytes:
    import msgspec

    return msgspec.json.encode(parts)


def _damaged(name: str, error: Exception) -> SourceError:
    return SourceError(name, f"the tokenizer does not load: {error}", SAVE_AGAIN)
