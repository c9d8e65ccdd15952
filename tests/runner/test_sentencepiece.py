"""What the engine makes of SentencePiece vocabularies, as sections of both kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.bundle import tokenizer_section
from converter.options import ConvertOptions
from converter.text.pieces_json import Prefix, pieces_to_json
from converter.text.tokenizer_json import HF_KIND, load_tokenizer_json
from runner.engine import Model
from tests.converter.text.test_pieces_json import TEMPLATES, turns
from tests.edited_bundle import with_section
from tests.small_tokenizers import train_pieces
from tests.tiny_models import make_checkpoint

MARKS = {"control_symbols": ["<control>"], "user_defined_symbols": ["<marked>"]}
TEXTS = [
    "",
    "hello",
    "  hello",
    "<s>hello</s>",
    "<unk><0x41>",
    "hello<control>the\n\n fox",
    "hello<marked>the\n\n fox",
    "<marked>hello",
    "<control>hello<marked>",
    "<marked><marked> hello",
    "</s> é 🙂",
]


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Convert a tiny model with this tokenizer.model, and with these settings."""
    folder = tmp_path_factory.mktemp("pieces") / "m"
    make_checkpoint("llama", folder)
    (folder / "tokenizer.json").unlink()

    def convert(pieces: Any, target: Path, **settings: Any) -> Path:
        (folder / "tokenizer.model").write_bytes(pieces.SerializeToString())
        settings |= {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        with open_checkpoint(folder) as checkpoint:
            options = ConvertOptions(prefill_lengths=(8,), cache_length=256)
            ModelConverter(checkpoint, "m", options).convert(target)
        return folder

    return convert


@pytest.mark.parametrize("has_prefix", [True, False])
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_section_of_pieces_is_read_as_sentencepiece_reads_it(
    convert: Callable[..., Path], tmp_path: Path, model_type: str, has_prefix: bool
) -> None:
    """Control pieces are letters, and the dummy prefix comes before a marked piece too."""
    from sentencepiece import SentencePieceProcessor

    pieces = train_pieces(model_type=model_type, add_dummy_prefix=has_prefix, **MARKS)
    convert(pieces, tmp_path / "m.litertlm")
    data = pieces.SerializeToString()
    bundle = with_section(tmp_path / "m.litertlm", tmp_path / "raw.litertlm", "SP_Tokenizer", data)
    library = SentencePieceProcessor(model_proto=data)
    control, marked = (library.piece_to_id(text) for text in ("<control>", "<marked>"))
    blank = [library.piece_to_id("▁")] * has_prefix
    with Model(bundle) as model:
        assert model.tokenize("<marked>") == [*blank, marked]
        got = {text: model.tokenize(text) for text in TEXTS}
    assert got == {text: library.encode(text) for text in TEXTS}
    assert not {control, 1, 2} & {token for ids in got.values() for token in ids}


@pytest.mark.parametrize("prefix", Prefix)
def test_a_tokenizer_json_is_read_as_the_tokenizers_library_reads_it(
    convert: Callable[..., Path], tmp_path: Path, prefix: Prefix
) -> None:
    """Special tokens of every kind are found in text, and a prefix goes where it is said to go."""
    pieces = train_pieces(**MARKS)
    convert(pieces, tmp_path / "m.litertlm", chat_template=TEMPLATES["bos once"])
    data = pieces_to_json(pieces, prefix)
    raw = tmp_path / "raw.litertlm"
    bundle = with_section(tmp_path / "m.litertlm", raw, HF_KIND, tokenizer_section(HF_KIND, data))
    library = load_tokenizer_json(data, "m")
    ids = {piece.piece: i for i, piece in enumerate(pieces.pieces)}
    with Model(bundle) as model:
        got = {text: model.tokenize(text) for text in TEXTS}
    assert got == {text: library.encode(text, add_special_tokens=False).ids for text in TEXTS}
    blank = [] if prefix is Prefix.NEVER else [ids["▁"]]
    assert got["<s>hello</s>"] == [1, *got["hello"], 2]
    assert got["hello"][: len(blank)] == blank
    assert got["<control>hello<marked>"] == [ids["<control>"], *got["hello"], ids["<marked>"]]


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("has_prefix", [True, False])
def test_the_engine_reads_the_tokens_of_transformers(
    convert: Callable[..., Path], tmp_path: Path, has_prefix: bool, style: str
) -> None:
    """As rendered, over three turns, and with a system message; and counted, as it reads them."""
    from transformers import AutoTokenizer

    bundle = tmp_path / "m.litertlm"
    folder = convert(
        train_pieces(), bundle, chat_template=TEMPLATES[style], add_prefix_space=has_prefix
    )
    source = AutoTokenizer.from_pretrained(folder)
    with Model(bundle) as model:
        start = list(model.metadata.start_token.token_ids.ids)
        for count in (1, 2, 3, 6):
            *history, last = messages = turns(count)
            expected = source.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
            with model.engine.create_conversation(
                messages=history, max_output_tokens=1
            ) as conversation:
                rendered = conversation.render_message_to_string(last["content"])
                conversation.send_message(last["content"])
                fed = conversation.token_count - 1  # one token of the answer
            assert [*start, *model.tokenize(rendered)] == expected
            assert fed == len(expected)
