"""A tokenizer.json as a SentencePiece model: the same ids for every text, or no model."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from converter.text.pieces_json import Prefix, pieces_to_json
from converter.text.sentencepiece_model import json_to_pieces
from converter.text.tokenizer import load_tokenizer
from converter.text.tokenizer_json import TokenizerJson, added_token, load_tokenizer_json
from tests.converter.text.test_gguf_tokenizer import CORPUS
from tests.small_tokenizers import GEMMA_SPECIAL, Folder, train_pieces

ROOT = Path(__file__).resolve().parents[3]
BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
ROLES = {"bos": "<s>", "eos": "</s>", "pad": None}
LETTERS = ["a", "b", "\n", " ", "  ", "\t", "-", "é", "日", "🙂", "the", " the", "<b>", "1"]


def random_texts(count: int, letters: list[str]) -> list[str]:
    """Of few letters, so that the same pieces overlap in many ways."""
    chance = random.Random(0)
    return [
        "".join(chance.choices(letters[: chance.choice((2, 4, len(letters)))], k=24))
        for _ in range(count)
    ]


def test_gemma_s_tokenizer_json_becomes_pieces_that_read_alike(gemma3_tokenizer: Path) -> None:
    folder = Folder(gemma3_tokenizer, {"vocab_size": 262144, "eos_token_id": [1, 106]})
    made = load_tokenizer(folder, prefer_sentencepiece=True)
    source = load_tokenizer(folder)
    assert (made.kind, source.kind) == ("SP_Tokenizer", "HF_Tokenizer_Zlib")
    assert len(made.data) < len(source.data) / 6
    pages = [path.read_text("utf-8") for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"))]
    texts = CORPUS + GEMMA_SPECIAL + random_texts(2000, LETTERS)
    texts += [text for page in pages for text in page.split("\n\n") if "▁▁" not in text]
    assert [text for text in texts if made.encode(text) != source.encode(text)] == []
    assert [text for text in texts if made.decode(made.encode(text)) != text] == []
    for name in ("vocab_size", "bos_token", "bos_token_id", "eos_token", "eos_token_ids",
                 "adds_bos", "chat_template", "special_tokens"):  # fmt: skip
        assert getattr(made, name) == getattr(source, name)


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """The tokenizer.json of a small model, which puts no blank before a text."""
    marks = {"control_symbols": ["<control>"], "user_defined_symbols": ["<marked>", "\n\n"]}
    found: dict[str, Any] = json.loads(pieces_to_json(train_pieces(**marks), Prefix.NEVER))
    return found | {"normalizer": BLANKS, "pre_tokenizer": None}


def pieces_of(tokenizer: dict[str, Any]) -> Any:
    source = TokenizerJson(json.dumps(tokenizer).encode(), None, "small")
    return json_to_pieces(source, ROLES)


def with_runs(tokenizer: dict[str, Any], longest: int) -> dict[str, Any]:
    """With runs of blanks as Gemma's files have them: added tokens that merges make."""
    model = tokenizer["model"]
    runs = ["▁" * n for n in range(2, longest + 1)]
    first = len(model["vocab"])
    added = [{"id": first + i} | added_token(run, special=False) for i, run in enumerate(runs)]
    merges = [
        ("▁" * left, "▁" * right)
        for left in range(longest - 1, 0, -1)
        for right in range(1, longest - left + 1)
    ]
    return tokenizer | {
        "added_tokens": tokenizer["added_tokens"] + added,
        "model": model
        | {
            "vocab": model["vocab"] | {run: first + i for i, run in enumerate(runs)},
            "merges": [*merges, *model["merges"]],
        },
    }


@pytest.mark.parametrize("longest", [1, 2, 7])
def test_small_models_read_alike(small: dict[str, Any], longest: int) -> None:
    tokenizer = with_runs(small, longest)
    model = pieces_of(tokenizer)
    assert (model.trainer_spec.bos_id, model.trainer_spec.eos_id) == (1, 2)
    library = SentencePieceProcessor(model_proto=model.SerializeToString())
    source = load_tokenizer_json(json.dumps(tokenizer).encode(), "small")
    texts = CORPUS + random_texts(500, ["t", "h", "e", " ", "o", "<marked>", "\n", "q", "the "])
    for text in texts:
        assert library.encode(text) == source.encode(text, add_special_tokens=False).ids


def test_a_tab_in_the_place_of_its_byte(small: dict[str, Any]) -> None:
    """As transformers writes Gemma 1's and 2's."""
    ids = small["model"]["vocab"]
    tabbed = of_the_model(vocab={"\t" if t == "<0x09>" else t: i for t, i in ids.items()})(small)
    library = SentencePieceProcessor(model_proto=pieces_of(tabbed).SerializeToString())
    source = load_tokenizer_json(json.dumps(tabbed).encode(), "small")
    for text in ("\t", "the\t\tfox\t", " \t the"):
        assert library.encode(text) == source.encode(text, add_special_tokens=False).ids
        assert library.decode(library.encode(text)) == text


def merged_otherwise(change: Callable[[list[Any]], list[Any]]) -> Callable[[Any], Any]:
    return lambda t: t | {"model": t["model"] | {"merges": change(t["model"]["merges"])}}


def of_the_model(**values: Any) -> Callable[[Any], Any]:
    return lambda t: t | {"model": t["model"] | values}


def flagged(**flags: bool) -> Callable[[Any], Any]:
    def change(tokenizer: Any) -> Any:
        *others, last = tokenizer["added_tokens"]
        return tokenizer | {"added_tokens": [*others, last | flags]}

    return change


def without(word: str) -> Callable[[Any], Any]:
    def change(tokenizer: Any) -> Any:
        ids = {text: i for text, i in tokenizer["model"]["vocab"].items() if text != word}
        merges = [pair for pair in tokenizer["model"]["merges"] if word not in pair]
        merges = [pair for pair in merges if "".join(pair) != word]
        numbered = {text: i for i, text in enumerate(ids)}
        return of_the_model(vocab=numbered, merges=merges)(tokenizer)

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t | {"normalizer": None},
        lambda t: t | {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}},
        of_the_model(byte_fallback=False),
        of_the_model(ignore_merges=True),
        of_the_model(dropout=0.1),
        of_the_model(unk_token=None),
        merged_otherwise(lambda merges: merges[1:]),
        merged_otherwise(lambda merges: [*merges[:-1], merges[0]]),
        merged_otherwise(lambda merges: [*merges[1:], merges[0]]),
        merged_otherwise(lambda merges: [*merges, merges[-1]]),
        flagged(normalized=True),
        flagged(lstrip=True),
        without("<0x41>"),
        without("▁"),
    ],
    ids=[
        "text as it is", "a blank in front", "no bytes", "words first", "by chance", "no unknown",
        "a merge less", "another merge", "out of order", "twice", "normalised", "strips",
        "no byte of A", "no blank alone",
    ],
)  # fmt: skip
def test_what_reads_otherwise_has_no_model(
    small: dict[str, Any], change: Callable[[Any], Any]
) -> None:
    runs = with_runs(small, 3)
    assert pieces_of(runs) is not None
    assert pieces_of(change(runs)) is None


def test_a_letter_that_is_no_piece_has_no_model(small: dict[str, Any]) -> None:
    """SentencePiece would merge it all the same."""
    ids = small["model"]["vocab"]
    more = {"äö": len(ids), "ä": len(ids) + 1}
    assert pieces_of(of_the_model(vocab=ids | more)(small)) is None


def test_one_run_of_blanks_that_merges_do_not_make_has_no_model(small: dict[str, Any]) -> None:
    tokenizer = with_runs(small, 4)
    for lost in (("▁", "▁"), ("▁▁▁", "▁")):
        changed = merged_otherwise(lambda merges, lost=lost: [m for m in merges if m != lost])  # type: ignore[misc]
        assert pieces_of(changed(tokenizer)) is None
    late = merged_otherwise(lambda merges: [m for m in merges if m != ("▁", "▁")] + [("▁", "▁")])
    assert pieces_of(late(tokenizer)) is None


def test_ways_to_make_one_word_must_stand_together(small: dict[str, Any]) -> None:
    """SentencePiece knows one score for them."""
    model = small["model"]
    ids = model["vocab"] | {word: len(model["vocab"]) + i for i, word in enumerate(("qz", "zq"))}
    ids["qzq"] = len(ids)
    parts = [("q", "z"), ("z", "q")]
    for more, is_one in (
        ([*parts, ("qz", "q"), ("q", "zq")], True),
        ([("qz", "q"), *parts, ("q", "zq")], False),
        ([*parts, ("qz", "q")], False),
    ):
        made = pieces_of(of_the_model(vocab=ids, merges=[*model["merges"], *more])(small))
        assert (made is not None) == is_one
