"""Tokenizers of a folder: taken as they are, but for what the engine must not do, or refused."""

from __future__ import annotations

import codecs
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer

from converter.errors import SourceError, UnsupportedError
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.tokenizer import load_tokenizer
from tests.odd_files import LFS_POINTER
from tests.small_tokenizers import (
    GEMMA_SPECIAL,
    SMALL_BPE,
    SMALL_PIECES,
    Folder,
    from_gguf,
    write_tokenizer_gguf,
)

GEMMA_CONFIG = {"vocab_size": 262144, "eos_token_id": [1, 106]}


@pytest.fixture(scope="module")
def gemma(gemma3_gguf: Path) -> BundleTokenizer:
    return from_gguf(gemma3_gguf)


# A folder.


def test_a_folder_s_tokenizer_json_is_taken_as_it_is(qwen3_tokenizer: Path) -> None:
    checkpoint = Folder(
        qwen3_tokenizer, {"eos_token_id": 151645}, {"eos_token_id": [151645, 151643]}
    )
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.kind == "HF_Tokenizer_Zlib"
    assert tokenizer.data == (qwen3_tokenizer / "tokenizer.json").read_bytes()
    assert tokenizer.vocab_size == 151669
    assert (tokenizer.bos_token, tokenizer.adds_bos) == (None, False)
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.eos_token_ids == (151643, 151645)
    assert tokenizer.chat_template is not None
    assert "<|im_start|>" in tokenizer.chat_template
    assert tokenizer.encode("<|im_end|>") == [151645] == [tokenizer.token_id("<|im_end|>")]
    assert tokenizer.decode([151645]) == "<|im_end|>"


@pytest.fixture
def folder(qwen3_tokenizer: Path, tmp_path: Path) -> Path:
    """A small tokenizer.json that adds <s> to the front, in a folder of its own."""
    path = tmp_path / "model"
    path.mkdir()
    source = Tokenizer.from_buffer(
        from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_BPE)).data
    )
    source.add_special_tokens(["<s>", "</s>"])
    saved = json.loads(source.to_str())
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    saved["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [260], "tokens": ["<s>"]}},
    }  # fmt: skip
    (path / "tokenizer.json").write_text(json.dumps(saved))
    return path


def configure(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("settings", "bos", "adds"),
    [
        ({}, "<s>", True),
        ({"bos_token": "<s>"}, "<s>", True),
        ({"bos_token": {"content": "<s>"}}, "<s>", True),
        ({"bos_token": "<s>", "add_bos_token": False}, "<s>", False),
        ({"bos_token": "<|bos|>", "add_bos_token": True}, "<|bos|>", True),
        ({"bos_token": "<|bos|>"}, "<|bos|>", False),
        ({"bos_token": None, "add_bos_token": True}, None, False),
    ],
)
def test_bos_of_a_folder(folder: Path, settings: dict[str, Any], bos: str, adds: bool) -> None:
    configure(folder, **settings)
    tokenizer = load_tokenizer(Folder(folder))
    assert (tokenizer.bos_token, tokenizer.adds_bos) == (bos, adds)
    assert tokenizer.bos_token_id == (tokenizer.token_id(bos) if bos else None)
    assert tokenizer.encode("ab") == [256]


def test_bos_of_a_folder_that_only_its_config_names(folder: Path) -> None:
    tokenizer = load_tokenizer(Folder(folder, {"bos_token_id": 258}))
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|bos|>", 258)


def test_end_ids_of_a_folder_are_joined(folder: Path) -> None:
    configure(folder, eos_token="</s>")
    checkpoint = Folder(
        folder,
        {"eos_token_id": 3, "text_config": {"eos_token_id": [4]}},
        {"eos_token_id": [5, 3, -1]},
    )
    tokenizer = load_tokenizer(checkpoint)
    assert tokenizer.eos_token_ids == (3, 4, 5, 261)
    assert tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("declared", ["30", [30, "2"], [30, None], 30.0, True, {"id": 30}])
def test_a_declared_token_that_is_no_id_is_refused(folder: Path, declared: Any) -> None:
    end = {"eos_token_id": declared}
    for checkpoint, file in (
        (Folder(folder, end), "config.json"),
        (Folder(folder, {"text_config": end}), "config.json"),
        (Folder(folder, {}, end), "generation_config.json"),
        (Folder(folder, {"bos_token_id": declared}), "config.json"),
    ):
        with pytest.raises(SourceError, match="is neither a token's id nor a list of") as caught:
            load_tokenizer(checkpoint)
        assert caught.value.what == str(folder / file)


def test_end_token_of_a_folder_that_only_its_config_names(folder: Path) -> None:
    tokenizer = load_tokenizer(Folder(folder, {"eos_token_id": 261}))
    assert tokenizer.eos_token == "</s>"


def test_chat_template_s_own_file_comes_first(folder: Path) -> None:
    assert load_tokenizer(Folder(folder)).chat_template is None
    configure(folder, chat_template="from config")
    assert load_tokenizer(Folder(folder)).chat_template == "from config"
    (folder / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert load_tokenizer(Folder(folder)).chat_template == "from json"
    (folder / "chat_template.jinja").write_text("from jinja")
    assert load_tokenizer(Folder(folder)).chat_template == "from jinja"


def test_truncation_is_switched_off(folder: Path) -> None:
    path = folder / "tokenizer.json"
    saved = Tokenizer.from_file(str(path))
    saved.enable_truncation(2)
    saved.enable_padding(length=8)
    saved.save(str(path))
    tokenizer = load_tokenizer(Folder(folder))
    stored = json.loads(tokenizer.data)
    assert stored["truncation"] is None
    assert stored["padding"] is None
    assert Tokenizer.from_buffer(tokenizer.data).encode("ab ab ab ab").ids == [260, 256] + [257] * 3


def without(tokenizer_json: dict[str, Any], *texts: str) -> dict[str, Any]:
    added = [token for token in tokenizer_json["added_tokens"] if token["content"] not in texts]
    return tokenizer_json | {"added_tokens": added}


@pytest.mark.parametrize(
    "config",
    [
        {"vocab_size": 261},
        {"text_config": {"vocab_size": 261}},
        {"vocab_size": 999, "text_config": {"vocab_size": 261}},
    ],
)
def test_added_tokens_beyond_the_embedding_are_removed(
    folder: Path, config: dict[str, Any]
) -> None:
    source = json.loads((folder / "tokenizer.json").read_bytes())
    tokenizer = load_tokenizer(Folder(folder, config))
    assert list(json.loads(tokenizer.data).items()) == list(without(source, "</s>").items())
    assert tokenizer.vocab_size == 261
    assert tokenizer.special_tokens == {"<|bos|>": 258, "<|im_end|>": 259, "<s>": 260}
    assert tokenizer.token_id("</s>") is None
    assert 261 not in tokenizer.encode("ab</s>")
    assert tokenizer.decode(tokenizer.encode("ab</s><s>")) == "ab</s><s>"
    stored = Tokenizer.from_buffer(tokenizer.data)
    assert stored.encode("ab</s><s>", add_special_tokens=False).ids == tokenizer.encode("ab</s><s>")


@pytest.mark.parametrize("config", [{}, {"vocab_size": 262}, {"text_config": {"vocab_size": 300}}])
def test_a_tokenizer_that_fits_is_taken_byte_for_byte(folder: Path, config: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(Folder(folder, config))
    assert tokenizer.data == (folder / "tokenizer.json").read_bytes()
    assert tokenizer.vocab_size == 262


def test_truncation_and_added_tokens_are_removed_together(folder: Path) -> None:
    path = folder / "tokenizer.json"
    source = json.loads(path.read_bytes())
    saved = Tokenizer.from_file(str(path))
    saved.enable_truncation(2)
    saved.save(str(path))
    stored = json.loads(load_tokenizer(Folder(folder, {"vocab_size": 260})).data)
    assert stored == without(source, "<s>", "</s>")


def test_a_base_vocabulary_beyond_the_embedding_is_kept_to_be_refused(folder: Path) -> None:
    # <|im_end|> is an added token, but it is in the base vocabulary too: it cannot be taken out.
    assert load_tokenizer(Folder(folder, {"vocab_size": 259})).vocab_size == 260


def test_gemma_s_image_token_is_removed_from_a_text_model(gemma3_tokenizer: Path) -> None:
    source = (gemma3_tokenizer / "tokenizer.json").read_bytes()
    tokenizer = load_tokenizer(Folder(gemma3_tokenizer, GEMMA_CONFIG))
    assert tokenizer.kind == "HF_Tokenizer_Zlib"
    assert tokenizer.vocab_size == 262144
    assert "<image_soft_token>" not in tokenizer.special_tokens
    assert json.loads(tokenizer.data) == without(json.loads(source), "<image_soft_token>")
    text = "a <image_soft_token> b"
    ids = tokenizer.encode(text)
    assert max(ids) < 262144
    assert tokenizer.decode(ids) == text
    whole = Tokenizer.from_buffer(source)
    assert 262144 in whole.encode(text, add_special_tokens=False).ids
    for other in GEMMA_SPECIAL:
        assert tokenizer.encode(other) == whole.encode(other, add_special_tokens=False).ids


def test_gemma_s_image_token_stays_where_it_has_a_row(gemma3_tokenizer: Path) -> None:
    tokenizer = load_tokenizer(Folder(gemma3_tokenizer, {"text_config": {"vocab_size": 262208}}))
    assert tokenizer.data == (gemma3_tokenizer / "tokenizer.json").read_bytes()
    assert tokenizer.vocab_size == 262145
    assert tokenizer.encode("<image_soft_token>") == [262144]


def test_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(SourceError) as caught:
        load_tokenizer(Folder(tmp_path))
    assert caught.value.why == (
        "no tokenizer: looked for tokenizer.json, tokenizer.model, and vocab.json with merges.txt"
    )


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("tokenizer.json", b"{}", "the tokenizer does not load: "),
        ("tokenizer.json", b"\xff", "the tokenizer does not load: "),
        ("tokenizer_config.json", b"{", "is not JSON: "),
        ("tokenizer_config.json", b"[]", "is not a JSON object"),
        ("tokenizer_config.json", b"[" * 100000, "is not JSON: "),
        ("chat_template.json", b"nonsense", "is not JSON: "),
        ("chat_template.jinja", b"{{ \xff\xfe", "is not UTF-8 text"),
        ("chat_template.jinja", "{{ 1 }}".encode("utf-16"), "it is UTF-16 text"),
        ("tokenizer_config.json", "{}".encode("utf-16-le"), "it is UTF-16 text"),
        ("tokenizer.json", LFS_POINTER, "it is a Git LFS pointer, which stands for"),
        ("chat_template.jinja", LFS_POINTER, "it is a Git LFS pointer, which stands for"),
        ("tokenizer_config.json", b"<!doctype html>", "it is a web page (HTML)"),
    ],
)
def test_damaged_files(folder: Path, name: str, data: bytes, why: str) -> None:
    (folder / name).write_bytes(data)
    with pytest.raises(SourceError) as caught:
        load_tokenizer(Folder(folder))
    assert caught.value.what == str(folder / name)
    assert caught.value.why.startswith(why)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_byte_order_mark_is_no_part_of_a_file(folder: Path, name: str) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    (folder / "tokenizer_config.json").write_text("{}")
    expected = load_tokenizer(Folder(folder))
    (folder / name).write_bytes(codecs.BOM_UTF8 + (folder / name).read_bytes())
    found = load_tokenizer(Folder(folder))
    assert (found.data, found.chat_template) == (expected.data, expected.chat_template)


# A folder with a SentencePiece model.


@pytest.fixture
def gemma_folder(gemma: BundleTokenizer, gemma3_tokenizer: Path, tmp_path: Path) -> Path:
    """Gemma's tokenizer.json with the tokenizer.model that its rebuilt pieces stand for."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(gemma3_tokenizer / name, tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(gemma.data)
    return tmp_path


def test_sentencepiece_is_used_where_it_is_preferred_and_agrees(
    gemma_folder: Path, gemma: BundleTokenizer
) -> None:
    checkpoint = Folder(gemma_folder, GEMMA_CONFIG)
    tokenizer = load_tokenizer(checkpoint, prefer_sentencepiece=True)
    assert tokenizer.kind == "SP_Tokenizer"
    prompt = GEMMA_SPECIAL[0]
    assert tokenizer.encode("<bos>" + prompt) == [2, *gemma.encode(prompt)]  # its template says it
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (2, True)
    assert tokenizer.eos_token_ids == (1, 106)
    assert "<image_soft_token>" not in tokenizer.special_tokens
    assert load_tokenizer(checkpoint).kind == "HF_Tokenizer_Zlib"


def test_a_tokenizer_model_is_not_used_where_tokens_would_be_lost(gemma_folder: Path) -> None:
    # With 262145 rows, <image_soft_token> is a token of the network, and the model lacks it.
    checkpoint = Folder(gemma_folder, {"vocab_size": 262145})
    tokenizer = load_tokenizer(checkpoint, prefer_sentencepiece=True)
    assert tokenizer.encode("<image_soft_token>") == [262144]  # as tokenizer.json's pieces have it


def without_a_merge(folder: Path) -> bytes:
    """A tokenizer.json that is no SentencePiece model."""
    source = json.loads((folder / "tokenizer.json").read_bytes())
    del source["model"]["merges"][-1]
    return json.dumps(source).encode()


def test_a_tokenizer_model_is_not_used_where_it_encodes_otherwise(gemma_folder: Path) -> None:
    path = gemma_folder / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.normalizer_spec.add_dummy_prefix = True
    path.write_bytes(model.SerializeToString())
    (gemma_folder / "tokenizer.json").write_bytes(without_a_merge(gemma_folder))
    checkpoint = Folder(gemma_folder, GEMMA_CONFIG)
    assert load_tokenizer(checkpoint, prefer_sentencepiece=True).kind == "HF_Tokenizer_Zlib"


@pytest.mark.parametrize("data", [b"not a model", b""])
def test_a_tokenizer_model_of_another_format_is_passed_over(folder: Path, data: bytes) -> None:
    (folder / "tokenizer.model").write_bytes(data)
    tokenizer = load_tokenizer(Folder(folder), prefer_sentencepiece=True)
    assert tokenizer.kind == "HF_Tokenizer_Zlib"
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedError) as caught:
        load_tokenizer(Folder(folder))
    assert caught.value.why == "not a SentencePiece model, and no tokenizer.json"


@pytest.fixture
def piece_folder(tmp_path: Path) -> Path:
    """A folder with only a SentencePiece model, whose <|user|> is a control piece."""
    path = tmp_path / "pieces"
    path.mkdir()
    data = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_PIECES)).data
    model = sentencepiece_model_pb2.ModelProto.FromString(data)
    model.pieces[3].type = model.SentencePiece.CONTROL
    (path / "tokenizer.model").write_bytes(model.SerializeToString())
    return path


def test_a_lone_sentencepiece_model_has_its_controls_made_readable(piece_folder: Path) -> None:
    configure(piece_folder, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer = load_tokenizer(Folder(piece_folder))
    assert tokenizer.kind == "SP_Tokenizer"
    assert tokenizer.encode("<|user|>ab") == [5, 3, 8]
    assert tokenizer.special_tokens == {"<s>": 1, "</s>": 2, "<|user|>": 3}
    assert (tokenizer.bos_token_id, tokenizer.adds_bos) == (1, True)
    assert tokenizer.eos_token_ids == (2,)


def test_a_lone_sentencepiece_model_gets_its_added_tokens(piece_folder: Path) -> None:
    new = {"content": "<new>", "special": True}
    configure(piece_folder, added_tokens_decoder={"3": {"content": "<|user|>"}, "266": new})
    tokenizer = load_tokenizer(Folder(piece_folder))
    assert tokenizer.encode("<|user|><new>") == [3, 266]


def test_a_damaged_sentencepiece_model(piece_folder: Path) -> None:
    path = piece_folder / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
    model.pieces[6].piece = "b"  # twice
    path.write_bytes(model.SerializeToString())
    with pytest.raises(SourceError, match="the tokenizer does not load"):
        load_tokenizer(Folder(piece_folder))


def test_heavy_libraries_are_imported_late() -> None:
    heavy = {"tokenizers", "sentencepiece", "google.protobuf", "gguf", "torch", "transformers"}
    program = f"import sys, converter.text.tokenizer; print({heavy!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_tokenizer_is_shown_without_its_bytes(gemma: BundleTokenizer) -> None:
    assert len(repr(gemma)) < 1000


def test_a_tokenizer_can_be_used_without_the_files_it_came_from(gemma: BundleTokenizer) -> None:
    again = BundleTokenizer(**{name: getattr(gemma, name) for name in gemma.__dataclass_fields__})
    assert again == gemma
    assert again.encode("Hi") == gemma.encode("Hi")
