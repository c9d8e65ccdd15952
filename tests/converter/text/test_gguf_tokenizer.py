"""Tokenizers rebuilt from a GGUF: exactly, or refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from converter.checkpoint.gguf import open_gguf
from converter.errors import LiteRTLMError, SourceError, UnsupportedError
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.pre_tokenizers import PRE_TOKENIZERS
from converter.text.tokenizer import load_tokenizer
from tests.small_tokenizers import (
    GEMMA_SPECIAL,
    SMALL_BPE,
    SMALL_PIECES,
    from_gguf,
    write_tokenizer_gguf,
)

CORPUS = [
    "",
    "Hello, world!",
    " leading",
    "trailing  ",
    "a  b   c    d     e",
    " " * 40 + "x",
    " " * 100,
    "\n" * 50,
    "\n\n\n\nx\n \n",
    "\r\n\r\nx\ry",
    "\t\tif x:\n\t\t\treturn 12345.678e-9  # no\n",
    "def f(x: int) -> str:\n    return {'a': [x ** 2]}\n",
    "1 12 123 1234 12345678901234567890",
    "don't I'LL we've THEY'RE o'clock",
    "$%^&*()_+{}|:\"<>?[];',./`~",
    "<b>html</b><table><tr>",
    "naïve café ﬁ ½ ² Ⅷ straße",
    "cafe\u0301 \u0915\u094d\u0937 a\u030a",  # not in NFC
    "日本語のテキスト 中文 한국어 ไทย العربية עברית",
    "Привет, мир! Γειά σου",  # noqa: RUF001
    "🙂👍🏽👨‍👩‍👧‍👦🇩🇪",
    "\u200b\u00a0\u3000x\ufeff\x00\x01\x7f",
    "\U00013000\U0001f9ff rare",
    "word " * 50,
]
QWEN_SPECIAL = [
    "<|im_start|>user\nHi 1<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    "x<|endoftext|><tool_call><|fim_prefix|>",
]


def gguf_of(folder: Path, path: Path, **more: Any) -> Path:
    """What llama.cpp's converter writes for a tokenizer.json with merges."""
    source = json.loads((folder / "tokenizer.json").read_text())
    tokens = {i: token for token, i in source["model"]["vocab"].items()}
    kinds = {i: 6 if re.fullmatch("<0x[0-9A-F]{2}>", text) else 1 for i, text in tokens.items()}
    for added in source["added_tokens"]:
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = 3 if added["special"] else 4
    ids = sorted(tokens)
    for i in range(len(ids), len(ids) + 3):  # the embedding has more rows than there are tokens
        ids.append(i)
        tokens[i], kinds[i] = f"[PAD{i}]", 5
    return write_tokenizer_gguf(
        path,
        {
            "ggml.model": "gpt2",
            "ggml.tokens": [tokens[i] for i in ids],
            "ggml.token_type": [kinds[i] for i in ids],
            "ggml.merges": [" ".join(pair) for pair in source["model"]["merges"]],
            **more,
        },
    )


@pytest.fixture(scope="module")
def gemma(gemma3_gguf: Path) -> BundleTokenizer:
    return from_gguf(gemma3_gguf)


@pytest.fixture(scope="module")
def gemma_json(gemma3_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(str(gemma3_tokenizer / "tokenizer.json"))


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> BundleTokenizer:
    return from_gguf(smollm2_gguf)


# SentencePiece from a GGUF.


@pytest.mark.parametrize("text", CORPUS + GEMMA_SPECIAL)
def test_rebuilt_gemma_encodes_like_its_tokenizer_json(
    gemma: BundleTokenizer, gemma_json: Tokenizer, text: str
) -> None:
    assert gemma.encode(text) == gemma_json.encode(text, add_special_tokens=False).ids
    assert gemma.decode(gemma.encode(text)) == text


def test_rebuilt_gemma_is_described(gemma: BundleTokenizer) -> None:
    assert gemma.kind == "SP_Tokenizer"
    assert gemma.vocab_size == 262144
    assert (gemma.bos_token, gemma.bos_token_id, gemma.adds_bos) == ("<bos>", 2, True)
    assert (gemma.eos_token, gemma.eos_token_ids) == ("<eos>", (1, 106))
    assert gemma.chat_template is None
    assert gemma.special_tokens["<start_of_turn>"] == 105
    assert gemma.token_id("<end_of_turn>") == 106
    assert gemma.token_id("no such token") is None


def test_gemma_s_own_control_pieces_are_not_parsed_from_text(gemma: BundleTokenizer) -> None:
    for text, i in (("<bos>", 2), ("<eos>", 1), ("<pad>", 0), ("<unk>", 3)):
        assert i not in gemma.encode(text)
        assert gemma.token_id(text) == i


def test_rebuilding_gives_the_same_bytes(gemma: BundleTokenizer, gemma3_gguf: Path) -> None:
    assert from_gguf(gemma3_gguf).data == gemma.data


def test_small_sentencepiece(tmp_path: Path) -> None:
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_PIECES))
    assert tokenizer.encode("ab") == [9]  # Llama's prefix: a blank before the text
    assert tokenizer.encode("<|user|>ab") == [5, 3, 8]
    assert tokenizer.encode("ab  b") == [9, 4, 7]
    assert tokenizer.encode("é") == [5, 10 + 0xC3, 10 + 0xA9]
    # llama.cpp's defaults for what the file does not say
    assert (tokenizer.bos_token_id, tokenizer.eos_token_ids) == (1, (2,))
    assert tokenizer.adds_bos
    assert 2 not in tokenizer.encode("</s>")


def test_space_prefix_is_the_file_s_choice(tmp_path: Path) -> None:
    pieces = SMALL_PIECES | {"ggml.add_space_prefix": False}
    assert from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", pieces)).encode("ab") == [8]


@pytest.mark.parametrize(
    "template", ["{{ message.content + eos_token }}", "{{ message.content }}</s>"]
)
def test_an_end_piece_that_the_template_writes_is_parsed(tmp_path: Path, template: str) -> None:
    pieces = SMALL_PIECES | {"chat_template": template}
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", pieces))
    assert tokenizer.encode("ab</s>") == [9, 2]
    assert tokenizer.chat_template == template


def test_sentencepiece_without_an_unknown_piece(tmp_path: Path) -> None:
    pieces = SMALL_PIECES | {"ggml.token_type": [1] * 266, "ggml.unknown_token_id": 5}
    assert from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", pieces)).vocab_size == 266


def test_stated_bos_wins(tmp_path: Path) -> None:
    pieces = SMALL_PIECES | {"ggml.add_bos_token": False}
    assert not from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", pieces)).adds_bos


# SentencePiece's pieces with merges from a GGUF: Gemma 4's, whose words are Gemma 3's.


@pytest.fixture(scope="module")
def gemma4(gemma3_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleTokenizer:
    more = {
        "ggml.model": "gemma4",
        "ggml.bos_token_id": 2,
        "ggml.eos_token_id": 106,
        "ggml.unknown_token_id": 3,
        "ggml.add_bos_token": False,
        "ggml.add_space_prefix": False,
    }
    path = tmp_path_factory.mktemp("gemma4") / "gemma4.gguf"
    return from_gguf(gguf_of(gemma3_tokenizer, path, **more))


@pytest.mark.parametrize("text", CORPUS + GEMMA_SPECIAL)
def test_rebuilt_gemma4_encodes_like_its_tokenizer_json(
    gemma4: BundleTokenizer, gemma_json: Tokenizer, text: str
) -> None:
    expected = gemma_json.encode(text, add_special_tokens=False).ids
    assert gemma4.encode(text) == expected
    assert gemma4.decode(expected) == gemma_json.decode(expected, skip_special_tokens=False)


def test_rebuilt_gemma4_is_described(gemma4: BundleTokenizer) -> None:
    assert gemma4.kind == "HF_Tokenizer_Zlib"
    assert (gemma4.bos_token, gemma4.bos_token_id) == ("<bos>", 2)
    assert gemma4.adds_bos  # whatever the file states, as in llama.cpp
    assert gemma4.eos_token_ids == (1, 106)


MARKS = ["<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>", "<|tool_response>", '<|"|>', "<unused0>"]
SMALL_GEMMA4: dict[str, Any] = {
    "ggml.model": "gemma4",
    # "abc" may be cut in two ways, of which the first merge decides.
    "ggml.tokens": [*MARKS, *(f"<0x{byte:02X}>" for byte in range(256)), *"\n▁abc", "bc", "ab"],
    "ggml.token_type": [3, 3, 3, 3, 3, 4, 4, 1] + [6] * 256 + [1] * 7,
    "ggml.merges": ["b c", "a b"],
    "ggml.bos_token_id": 1,
    "ggml.eos_token_id": 0,
    "ggml.unknown_token_id": 2,
}


def test_small_gemma4(tmp_path: Path) -> None:
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_GEMMA4))
    newline, blank, a, bc, ab = 264, 265, 266, 269, 270
    assert tokenizer.encode("abc ab") == [a, bc, blank, ab]  # in the order of the merges
    assert tokenizer.encode("\n\n é") == [newline, newline, blank, 8 + 0xC3, 8 + 0xA9]
    assert tokenizer.encode('<|turn>a<|"|>') == [3, a, 6]
    assert 7 not in tokenizer.encode("<unused0>")  # a word, if its file says so
    assert tokenizer.eos_token_ids == (0, 4, 5)
    assert set(tokenizer.special_tokens) >= {"<bos>", "<turn|>", "<|tool_response>"}


# Byte-level BPE from a GGUF.


@pytest.fixture(scope="module")
def qwen_json(qwen3_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(str(qwen3_tokenizer / "tokenizer.json"))


@pytest.fixture(scope="module")
def qwen(qwen3_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> BundleTokenizer:
    more = {
        "ggml.pre": "qwen2",
        "ggml.bos_token_id": 151643,
        "ggml.eos_token_id": 151645,
        "ggml.add_bos_token": False,
    }
    path = tmp_path_factory.mktemp("qwen") / "qwen.gguf"
    return from_gguf(gguf_of(qwen3_tokenizer, path, **more))


@pytest.mark.parametrize("text", CORPUS + QWEN_SPECIAL)
def test_rebuilt_qwen_encodes_like_its_tokenizer_json(
    qwen: BundleTokenizer, qwen_json: Tokenizer, text: str
) -> None:
    expected = qwen_json.encode(text, add_special_tokens=False).ids
    assert qwen.encode(text) == expected
    assert qwen.decode(expected) == qwen_json.decode(expected, skip_special_tokens=False)


def test_rebuilt_qwen_is_described(qwen: BundleTokenizer, qwen_json: Tokenizer) -> None:
    assert qwen.kind == "HF_Tokenizer_Zlib"
    assert qwen.vocab_size == 151672
    assert qwen.eos_token_ids == (151643, 151645)
    assert qwen.eos_token == "<|im_end|>"
    assert not qwen.adds_bos
    assert "<|im_start|>" in qwen.special_tokens
    assert "<think>" not in qwen.special_tokens
    for token, i in qwen_json.get_vocab().items():
        assert qwen.token_id(token) == i


@pytest.mark.parametrize("text", CORPUS)
def test_rebuilt_smollm2_gives_text_back(smollm2: BundleTokenizer, text: str) -> None:
    assert smollm2.decode(smollm2.encode(text)) == text


def test_rebuilt_smollm2_splits_like_gpt2_with_single_digits(smollm2: BundleTokenizer) -> None:
    def pieces(text: str) -> list[str]:
        return [smollm2.decode([i]) for i in smollm2.encode(text)]

    assert pieces("Hello world 2024!") == ["Hello", " world", " ", "2", "0", "2", "4", "!"]
    assert pieces("don't stop") == ["don", "'t", " stop"]
    assert pieces("a   b") == ["a", "  ", " b"]
    assert pieces("<|im_start|>user\nHi<|im_end|>\n") == [
        "<|im_start|>", "user", "\n", "Hi", "<|im_end|>", "\n",
    ]  # fmt: skip


def test_rebuilt_smollm2_is_described(smollm2: BundleTokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_token, smollm2.bos_token_id) == ("<|im_start|>", 1)
    assert not smollm2.adds_bos
    assert smollm2.eos_token_ids == (0, 2)
    assert smollm2.chat_template is not None
    assert "<|im_start|>" in smollm2.chat_template
    assert len(smollm2.special_tokens) == 17
    for token, i in smollm2.special_tokens.items():
        assert smollm2.encode(token) == [i]


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_loads_and_loses_nothing(tmp_path: Path, pre: str) -> None:
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_BPE | {"ggml.pre": pre}))
    for text in CORPUS:
        normal = tokenizer.decode(tokenizer.encode(text))
        assert normal == text or PRE_TOKENIZERS[pre].nfc
    assert tokenizer.encode("ab ab<|im_end|>") == [256, 257, 259]


def cuts(pre: str, text: str, tmp_path: Path) -> list[str]:
    """How a pre-tokenizer cuts text, seen through the rebuilt tokenizer.json."""
    data = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", SMALL_BPE | {"ggml.pre": pre})).data
    pre_tokenizer = Tokenizer.from_buffer(data).pre_tokenizer
    return [text[slice(*span)] for _, span in pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("gpt-2", ["I", "'m", " Bob", "'", "S", " 1234", "!?", "\n\n", " x"]),
        ("default", ["I", "'", "m", " Bob", "'", "S", " ", "123", "4", "!?", "\n\n", " x"]),
        ("smollm", ["I", "'m", " Bob", "'", "S", " ", "1", "2", "3", "4", "!?", "\n\n", " x"]),
        ("qwen2", ["I", "'m", " Bob", "'S", " ", "1", "2", "3", "4", "!?\n\n", " x"]),
        ("llama-bpe", ["I", "'m", " Bob", "'S", " ", "123", "4", "!?\n\n", " x"]),
        ("gpt-4o", ["I'm", " Bob'S", " ", "123", "4", "!?\n\n", " x"]),
        ("tekken", ["I", "'m", " Bob", "'S", " ", "1", "2", "3", "4", "!?\n\n", " x"]),
        (
            "deepseek-coder",
            ["I", "'", "m", " Bob", "'", "S", " ", "1", "2", "3", "4", "!?", "\n", "\n", " x"],
        ),
    ],
)
def test_cuts(tmp_path: Path, pre: str, expected: list[str]) -> None:
    assert cuts(pre, "I'm Bob'S 1234!?\n\n x", tmp_path) == expected


HARD = "I'm Bob'S 12345!?\n\n x 日本語/\ta1  "


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("qwen35", "I|'m| Bob|'S| |1|2|3|4|5|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("ufakzeka", "I|'m| Bob|'S| |1|2|3|4|5|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("seed-coder", "I|'m| Bob|'S| |1|2|3|4|5|!?|\n\n| x| 日本語|/|\ta|1|  "),
        ("laguna", "I|'m| Bob|'S| |1|2|3|4|5|!?|\n\n| x| 日本語|/|\ta|1|  "),
        ("bailingmoe", "I|'m| Bob|'S| |1|2|3|4|5|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("minicpm5", "I|'m| Bob|'S| |123|45|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("jais-2", "I|'m| Bob|'S| |123|45|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("deepseek-v3", "I|'m| Bob|'S| |123|45|!?\n\n| x| |日本語|/|\ta|1|  "),
        ("afmoe", "I|'m| Bob|'S| |12|345|!?\n\n| x| |日本語|/|\ta|1|  "),
        ("spark2_5", "I|'m| Bob|'S| |1|2|3|4|5|!?|\n|\n| x| |日本語|/|\ta|1|  "),
        ("deepseek-llm", "I|'|m| Bob|'|S| |12345|!?|\n|\n| x| |日本語|/|\ta|1|  "),
        ("youtu", "I'm| Bob'S| |1|2|3|4|5|!?\n\n| x| |日本語|/|\ta|1|  "),
        ("kimi-k2", "I'm| Bob'S| |123|45|!?\n\n| x| |日本語|/|\ta|1|  "),
        ("tiny_aya", "I'm| Bob'S| |12|345|!?\n\n| x| 日本語|/|\ta|1|  "),
        ("bloom", "I'm| Bob'S| 12345|!?\n\n| x| 日本語/|\t|a1|  "),
        ("viking", "I'm| Bob'S| |1|2|3|4|5|!?\n\n| x| 日本語/|\t|a|1|  "),
        ("superbpe", "I'm Bob'S |12|345|!?\n\n x 日本語/\ta|1|  "),
        ("exaone-moe", "I|'m| Bob|'S| |1|2|3|4|5|!?\n|\n| x 日本語|/|\ta|1|  "),
        ("falcon", "I|'|m| Bob|'|S| |123|45|!?|\n\n| x| 日本語|/|\t|a|1|  "),
        ("chameleon", "I|'|m| Bob|'|S| |1|2|3|4|5|!|?|\n|\n| x| 日本語|/|\t|a|1|  "),
    ],
)
def test_more_cuts(tmp_path: Path, pre: str, expected: str) -> None:
    assert "|".join(cuts(pre, HARD, tmp_path)) == expected


@pytest.mark.parametrize(
    ("arch", "tokens", "name"),
    [
        ("qwen2", {}, "qwen2"),
        ("qwen3moe", {}, "qwen2"),
        ("llama", {}, "default"),
        ("llama", {300: "<|begin_of_text|>"}, "default"),
        ("llama", {128000: "<|begin_of_text|>"}, "llama-bpe"),
        ("llama", {151644: "<|im_start|>"}, "qwen2"),
        ("llama", {32013: "<\uff5cbegin\u2581of\u2581sentence\uff5c>"}, "deepseek-coder"),
    ],
)
def test_a_missing_pre_tokenizer_is_told_by_architecture_or_ids_and_said(
    tmp_path: Path, arch: str, tokens: dict[int, str], name: str
) -> None:
    size = max((260, *(i + 1 for i in tokens)))
    texts = SMALL_BPE["ggml.tokens"] + [f"[PAD{i}]" for i in range(260, size)]
    for i, text in tokens.items():
        texts[i] = text
    keys = SMALL_BPE | {"ggml.tokens": texts}
    keys["ggml.token_type"] = SMALL_BPE["ggml.token_type"] + [5] * (size - 260)
    told = from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys | {"ggml.pre": name}, arch))
    del keys["ggml.pre"]
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "n.gguf", keys, arch))
    assert tokenizer.data == told.data
    (note,) = tokenizer.notes
    assert f"no tokenizer.ggml.pre; text is cut as {name!r} cuts it" in note
    assert told.notes == ()


@pytest.mark.parametrize(("pre", "ids"), [("gpt-2", [65, 64]), ("llama-bpe", [260])])
def test_llama_takes_a_word_that_is_a_token_whole(tmp_path: Path, pre: str, ids: list[int]) -> None:
    keys = SMALL_BPE | {"ggml.pre": pre, "ggml.tokens": [*SMALL_BPE["ggml.tokens"], "ba"]}
    keys["ggml.token_type"] = [*SMALL_BPE["ggml.token_type"], 1]  # and no merge makes it
    assert from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys)).encode("ba") == ids


@pytest.mark.parametrize(("pre", "adds"), [("gpt-2", False), ("llama-bpe", True), ("tekken", True)])
def test_unstated_bos_is_llama_cpp_s_default(tmp_path: Path, pre: str, adds: bool) -> None:
    keys = SMALL_BPE | {"ggml.pre": pre}
    assert from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys)).adds_bos is adds
    del keys["ggml.bos_token_id"]
    assert not from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys)).adds_bos


def test_declared_turn_ends_are_joined(tmp_path: Path) -> None:
    keys = SMALL_BPE | {"ggml.eos_token_id": 5, "ggml.eot_token_id": 6, "ggml.eom_token_id": 4}
    assert from_gguf(write_tokenizer_gguf(tmp_path / "m.gguf", keys)).eos_token_ids == (
        4,
        5,
        6,
        259,
    )


# A GGUF that is refused.


def refused(path: Path, keys: dict[str, Any], drop: str = "") -> LiteRTLMError:
    keys = {key: value for key, value in keys.items() if key != drop}
    write_tokenizer_gguf(path / "m.gguf", keys)
    with open_gguf(path / "m.gguf") as checkpoint, pytest.raises(LiteRTLMError) as caught:
        load_tokenizer(checkpoint)
    assert caught.value.fix
    return caught.value


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("laser", "only default, gpt-2, phi-2, "),
        ("sarvam-moe", "its tokens are not of bytes, which is not supported"),
    ],
)
def test_unknown_pre_tokenizer(tmp_path: Path, name: str, why: str) -> None:
    error = refused(tmp_path, SMALL_BPE | {"ggml.pre": name})
    assert isinstance(error, UnsupportedError)
    assert error.why.startswith(f"tokenizer.ggml.pre={name}: {why}")


@pytest.mark.parametrize("model", ["t5", "bert", "rwkv", None])
def test_unknown_tokenizer_model(tmp_path: Path, model: str | None) -> None:
    drop = "" if model else "ggml.model"
    error = refused(tmp_path, SMALL_BPE | {"ggml.model": model or ""}, drop)
    assert isinstance(error, UnsupportedError)
    assert error.why == f"tokenizer.ggml.model={model}: only gpt2, llama and gemma4 are supported"


@pytest.mark.parametrize(
    ("keys", "drop", "why"),
    [
        (SMALL_BPE, "ggml.tokens", "metadata key 'tokenizer.ggml.tokens' is missing"),
        (SMALL_BPE, "ggml.merges", "metadata key 'tokenizer.ggml.merges' is missing"),
        (
            SMALL_BPE | {"ggml.merges": [1, 2]},
            "",
            "metadata key 'tokenizer.ggml.merges' is missing",
        ),
        (
            SMALL_BPE | {"ggml.tokens": ["a"] * 260},
            "",
            "metadata key 'tokenizer.ggml.tokens' holds 'a' twice, as 0 and 259",
        ),
        (
            SMALL_BPE | {"ggml.token_type": [1, 2]},
            "",
            "metadata key 'tokenizer.ggml.token_type' has no 260 numbers",
        ),
        (
            SMALL_PIECES | {"ggml.scores": [1.0]},
            "",
            "metadata key 'tokenizer.ggml.scores' has no 266 numbers",
        ),
        (
            SMALL_BPE | {"ggml.eos_token_id": 260},
            "",
            "metadata key 'tokenizer.ggml.eos_token_id' is 260, not a token's id",
        ),
        (
            SMALL_BPE | {"ggml.merges": ["ab"]},
            "",
            "metadata key 'tokenizer.ggml.merges' holds 'ab', not a pair",
        ),
        (
            SMALL_BPE | {"ggml.merges": ["a nowhere"]},
            "",
            "metadata key 'tokenizer.ggml.merges' holds 'a nowhere', not of tokens",
        ),
        (
            SMALL_BPE | {"ggml.model": 3},
            "",
            "metadata key 'tokenizer.ggml.model' is 3, not a name",
        ),
        (
            SMALL_BPE | {"ggml.pre": [1, 2]},
            "",
            "metadata key 'tokenizer.ggml.pre' is array([1, 2], dtype=int32), not a name",
        ),
        (
            SMALL_PIECES | {"ggml.token_type": [7] * 266},
            "",
            "metadata key 'tokenizer.ggml.token_type' holds an unknown type",
        ),
    ],
)
def test_damaged_vocabulary(tmp_path: Path, keys: dict[str, Any], drop: str, why: str) -> None:
    error = refused(tmp_path, keys, drop)
    assert isinstance(error, SourceError)
    assert error.why.startswith(why)
