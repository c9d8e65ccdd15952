"""Control tokens that a source calls something else, and the ends of turns among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from converter.litertlm.metadata import build_llm_metadata
from converter.text.control_tokens import control_tokens, looks_like_control, turn_ends
from converter.text.tokenizer import load_tokenizer
from tests.small_tokenizers import SMALL_BPE, SMALL_PIECES, Folder, from_gguf, write_tokenizer_gguf

GEMMA_TURNS = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n{{ m['content'] }}"
    "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def ids(*texts: str) -> dict[str, int]:
    return {text: i for i, text in enumerate(texts)}


@pytest.mark.parametrize(
    ("texts", "ends"),
    [
        (("<|im_end|>", "<|im_start|>", "<|endoftext|>"), {0, 2}),
        (("<end_of_turn>", "<start_of_turn>", "<eos>", "</s>"), {0, 2}),  # Gemma: </s> is HTML
        (("</s>", "<s>"), {0}),
        (("<|end|>", "<|user|>"), {0}),
        (("<|end|>", "<|return|>", "<|call|>"), {1, 2}),  # Harmony: <|end|> ends a message
        (("<|end|>", "<|flush|>", "<|calls|>"), {1, 2}),  # Solar
        (("<EOT>", "_<EOT>", "[EOT]", "[EOS]", "EOT"), {0, 1, 2, 3}),
        (("<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>"), {0}),
        (("[e~[", "]~b]"), {0}),
        (("word", "<b>"), set()),
    ],
)
def test_turn_ends(texts: tuple[str, ...], ends: set[int]) -> None:
    assert turn_ends(ids(*texts)) == ends


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("<|im_start|>", True),
        ("<\uff5cAssistant\uff5c>", True),
        ("<unused7>", True),
        ("<pad>", True),
        ("<|", False),
        ("<|>", False),
        ("<||>", False),
        ("<b>", False),
        ("[INST]", False),
        ("", False),
    ],
)
def test_looks_like_control(text: str, looks: bool) -> None:
    assert looks_like_control(text) is looks


def test_what_a_template_writes_as_marks_counts() -> None:
    added = ids("<start_of_turn>", "[INST]", "[/INST]", "<b>", "user")
    template = "{% if messages[0] %}[INST] {{ x }} [/INST]<start_of_turn>user{% endif %}"
    found = control_tokens({"<s>": 9}, added, template)
    assert set(found) == {"<s>", "<start_of_turn>", "[INST]", "[/INST]"}
    assert set(control_tokens({"<s>": 9}, added, None)) == {"<s>"}


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
def test_turns_of_a_sentencepiece_gguf_whatever_their_type(tmp_path: Path, kind: int) -> None:
    keys = SMALL_PIECES | {
        "ggml.tokens": [*SMALL_PIECES["ggml.tokens"], "<start_of_turn>", "<end_of_turn>"],
        "ggml.token_type": [*SMALL_PIECES["ggml.token_type"], 4 if kind == 5 else kind, kind],
        "ggml.scores": [*SMALL_PIECES["ggml.scores"], 0.0, 0.0],
        "ggml.add_space_prefix": False,
        "chat_template": GEMMA_TURNS,
    }
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys))
    assert tokenizer.encode("<start_of_turn>ab<end_of_turn>") == [266, 8, 267]
    assert tokenizer.eos_token_ids == (2, 267)
    assert tokenizer.special_tokens.keys() >= {"<start_of_turn>", "<end_of_turn>"}


def bpe(tmp_path: Path, *texts: str, kind: int = 1, **more: Any) -> Any:
    keys = SMALL_BPE | {
        "ggml.tokens": [*SMALL_BPE["ggml.tokens"][:-1], *texts],
        "ggml.token_type": [*SMALL_BPE["ggml.token_type"][:-1], *[kind] * len(texts)],
        **more,
    }
    return from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys))


@pytest.mark.parametrize("kind", [1, 3, 4, 5])
@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("<|im_start|>", "<|im_end|>"),
        ("<|start_header_id|>", "<|eot_id|>"),
        ("<|user|>", "<|end|>"),
        ("<|user|>", "<|endoftext|>"),
        ("<\uff5cUser\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
    ],
)
def test_turns_of_a_byte_level_gguf_whatever_their_type(
    tmp_path: Path, kind: int, start: str, end: str
) -> None:
    if kind == 5:  # llama.cpp forces the ends alone
        tokenizer = bpe(tmp_path, end, kind=kind)
        assert tokenizer.encode(f"ab{end}") == [256, 259]
    else:
        tokenizer = bpe(tmp_path, end, start, kind=kind)
        assert tokenizer.encode(f"{start}ab{end}") == [260, 256, 259]
    assert tokenizer.eos_token_ids == (259,)


def test_a_mark_that_merges_make_is_a_word(tmp_path: Path) -> None:
    """Qwen's vocabulary has </s>, a tag of HTML."""
    merges = [*SMALL_BPE["ggml.merges"], "< /", "</ s", "</s >"]
    tokenizer = bpe(tmp_path, "</", "</s", "</s>", **{"ggml.merges": merges})
    assert 261 not in tokenizer.encode("ab</s>")  # as in transformers: </ s >
    assert tokenizer.eos_token_ids == ()
    assert "</s>" not in tokenizer.special_tokens


def test_a_declared_end_is_a_control_token(tmp_path: Path) -> None:
    tokenizer = bpe(tmp_path, "[STOP]", **{"ggml.eos_token_id": 259})
    assert tokenizer.encode("ab[STOP]") == [256, 259]
    assert tokenizer.special_tokens["[STOP]"] == 259


def test_an_empty_token_is_no_text(tmp_path: Path) -> None:
    tokenizer = bpe(tmp_path, "", "")
    assert tokenizer.vocab_size == 261
    assert tokenizer.token_id("[EMPTY_260]") == 260
    assert tokenizer.encode("ab") == [256]


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_added_but_not_special_turn_ends_of_a_folder_stop(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    built = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(alphabet)}, merges=[]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_tokens(["<|im_start|>", "<|im_end|>", "<b>"])
    built.add_special_tokens(["</s>"])
    built.save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "bos_token": None, "chat_template": CHATML}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(Folder(tmp_path))
    assert set(tokenizer.special_tokens) == {"<|im_start|>", "<|im_end|>", "</s>"}
    base = (
        Path(__file__).parents[3] / "converter" / "families" / "llama_base_metadata.textproto"
    ).read_text("utf-8")
    message = build_llm_metadata(base, tokenizer, 512, "llama").message
    assert [list(token.token_ids.ids) for token in message.stop_tokens] == [[257], [259]]
