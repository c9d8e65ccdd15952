"""The bundle's metadata: start token, stop tokens, sampler, and what is claimed of a model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import SourceError, UnsupportedError
from converter.litertlm.metadata import LlmMetadataResult, build_llm_metadata
from converter.text.bundle_tokenizer import BundleTokenizer
from converter.text.tokenizer import load_tokenizer
from tests.converter.text.test_published_shapes import SHAPES
from tests.family_templates import FAMILY_TEMPLATES
from tests.small_tokenizers import Folder
from tests.tiny_models import write_tokenizer

FAMILIES = Path(__file__).parents[3] / "converter" / "families"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BOS_IN_EVERY_TURN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST]' + m['content'] }}"
    "{% else %}{{ m['content'] + eos_token }}{% endif %}{% endfor %}"
)
PLAIN = CHATML.replace("<|im_start|>", "[").replace("<|im_end|>", "]")
THINKS = CHATML.replace(
    "{% endif %}", "{% if enable_thinking is false %}<think>{% endif %}{% endif %}"
)


class FakeTokenizer(BundleTokenizer):
    """One token per special string, one per other character."""

    def outline(self, text: str) -> list[int]:
        ids: list[int] = []
        while text:
            special = next((s for s in self.special_tokens if text.startswith(s)), None)
            ids.append(1000 + ord(text[0]) if special is None else self.special_tokens[special])
            text = text[len(special or "x") :]
        return ids


def tokenizer(**changes: Any) -> FakeTokenizer:
    base = FakeTokenizer(
        kind="HF_Tokenizer_Zlib",
        data=b"",
        vocab_size=100,
        chat_template=CHATML,
        bos_token="<s>",
        bos_token_id=1,
        eos_token_ids=(2,),
        eos_token="</s>",
        adds_bos=True,
        special_tokens={"<s>": 1, "</s>": 2, "<|im_start|>": 3, "<|im_end|>": 4, "<pad>": 5},
    )
    return replace(base, **changes)


def base_text(family: str) -> str:
    return (FAMILIES / f"{family}_base_metadata.textproto").read_text("utf-8")


def build(
    source: BundleTokenizer, family: str = "llama", config: dict[str, Any] | None = None
) -> LlmMetadataResult:
    return build_llm_metadata(
        base_text(family),
        source,
        max_num_tokens=512,
        name=family,
        generation_config=config,
    )


def stops(result: LlmMetadataResult) -> list[list[int]]:
    return [list(token.token_ids.ids) for token in result.message.stop_tokens]


@pytest.mark.parametrize(("family", "oldest"), [("llama", "0.11.0"), ("lfm2", "0.15.0")])
def test_the_oldest_engine_that_runs_it(family: str, oldest: str) -> None:
    assert build(tokenizer(), family).message.min_runtime_version == oldest


# --- Start token ------------------------------------------------------------------------------


def test_a_leading_bos_in_the_source_becomes_the_start_token() -> None:
    result = build(tokenizer(chat_template="{{ bos_token }}" + CHATML))
    assert list(result.message.start_token.token_ids.ids) == [1]


def test_a_template_without_bos_gets_none_whatever_the_tokenizer_adds() -> None:
    """transformers encodes a rendered chat without special tokens."""
    assert not build(tokenizer(adds_bos=True)).message.HasField("start_token")


def test_a_bos_that_the_text_begins_with_is_not_added_twice() -> None:
    """SmolLM2: its bos is <|im_start|>, which every turn begins with."""
    result = build(tokenizer(bos_token="<|im_start|>", bos_token_id=3))
    assert not result.message.HasField("start_token")


def test_a_bos_in_every_turn_stands_in_the_text() -> None:
    result = build(tokenizer(chat_template=BOS_IN_EVERY_TURN))
    assert not result.message.HasField("start_token")
    assert "<s>" in result.message.jinja_prompt_template


@pytest.mark.parametrize("adds_bos", [True, False])
def test_without_a_template_the_tokenizer_decides(adds_bos: bool) -> None:
    result = build(tokenizer(chat_template=None, adds_bos=adds_bos))
    assert result.message.HasField("start_token") is adds_bos
    assert any("completes text" in note for note in result.notes)


def test_a_bos_that_the_tokenizer_spells_out_is_refused() -> None:
    class SpelledOut(FakeTokenizer):
        def outline(self, text: str) -> list[int]:
            return super().outline(text.replace("<s>", "< s >"))

    source = SpelledOut(**vars(tokenizer(chat_template="{{ bos_token }}" + CHATML)))
    with pytest.raises(UnsupportedError, match=r"would read the tokens \[1, 3, .* after 0 that"):
        build(source)


@pytest.fixture
def strips_after(tmp_path: Path) -> Any:
    """A real tokenizer with the template's marks, one of which takes the blanks behind it."""

    def make(mark: str, template: str) -> BundleTokenizer:
        write_tokenizer(tmp_path)
        settings = {
            "bos_token": "<b>",
            "eos_token": "<|im_end|>",
            "added_tokens_decoder": {
                str(258 + i): {"content": text, "special": True, "rstrip": text == mark}
                for i, text in enumerate(("<b>", "<|im_start|>", "<|im_end|>"))
            },
            "chat_template": template,
        }
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        return load_tokenizer(Folder(tmp_path))

    return make


def test_tokens_that_differ_in_a_prompt_are_refused(strips_after: Any) -> None:
    """The engine puts the start token before tokens; what it would strip of the text stays."""
    template = "{{ bos_token }}{{ '\n' }}" + CHATML
    assert build(strips_after("", template)).message.HasField("start_token")
    with pytest.raises(UnsupportedError, match="one user message: the runtime would read the tok"):
        build(strips_after("<b>", template))


def test_tokens_that_differ_where_a_turn_begins_are_told(strips_after: Any) -> None:
    assert build(strips_after("", CHATML)).notes == ()
    [note] = build(strips_after("<|im_end|>", CHATML)).notes
    assert note == (
        "tokens: where a turn begins, the runtime reads other tokens than the source, as it "
        "encodes each turn apart: [198, 259, 84] where the source has [259, 84, 82]"
    )


# --- Stop tokens ------------------------------------------------------------------------------


def test_stop_tokens_are_the_declared_the_familys_and_the_one_seen_in_the_render() -> None:
    special = tokenizer().special_tokens | {"<|eot_id|>": 7, "]": 9}
    result = build(tokenizer(chat_template=PLAIN, special_tokens=special, eos_token_ids=(2, 8)))
    assert stops(result) == [[2], [4], [7], [8], [9]]


def test_pad_and_start_do_not_stop() -> None:
    found = stops(build(tokenizer()))
    assert [5] not in found
    assert [1] not in found


def test_a_start_token_that_the_family_lists_as_a_stop_does_not_stop() -> None:
    special = tokenizer().special_tokens | {"<|endoftext|>": 6}
    source = tokenizer(special_tokens=special, bos_token="<|endoftext|>", bos_token_id=6)
    assert stops(build(source)) == [[2], [4]]


def test_a_start_token_that_is_also_declared_eos_stops() -> None:
    """Granite: bos equals eos."""
    assert [1] in stops(build(tokenizer(eos_token_ids=(1,))))


def test_an_ordinary_piece_spelled_like_a_stop_token_does_not_stop() -> None:
    special = {k: v for k, v in tokenizer().special_tokens.items() if k != "</s>"}
    assert stops(build(tokenizer(eos_token_ids=(), special_tokens=special))) == [[4]]


def test_nothing_that_ends_a_turn_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="which token ends a turn"):
        build(tokenizer(chat_template=PLAIN, eos_token_ids=(), special_tokens={}))


def test_an_end_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(SourceError, match="token 100 is not in the vocabulary of 100"):
        build(tokenizer(eos_token_ids=(100,)))


def test_a_special_token_that_encodes_as_letters_is_refused() -> None:
    class Letters(FakeTokenizer):
        def outline(self, text: str) -> list[int]:
            return [ord(c) for c in text]

    with pytest.raises(SourceError, match=r"the chat template writes '<\|im_start\|>'"):
        build(Letters(**vars(tokenizer())))


# --- Sampler ----------------------------------------------------------------------------------


def sampler(config: dict[str, Any] | None) -> tuple[int, float, float]:
    params = build(tokenizer(), config=config).message.sampler_params
    assert params.type == params.TOP_P
    return params.k, round(params.p, 3), round(params.temperature, 3)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (None, (50, 0.9, 0.6)),
        ({"temperature": 0.2, "top_k": 7, "top_p": 0.5}, (7, 0.5, 0.2)),
        ({"do_sample": True, "top_k": 0}, (50, 0.9, 0.6)),
        ({"do_sample": False, "temperature": 0.2}, (1, 0.9, 1.0)),
        ({"temperature": 0}, (1, 0.9, 1.0)),
    ],
)
def test_generation_config_overrides_the_family(config: Any, expected: Any) -> None:
    assert sampler(config) == expected


# --- What is claimed --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "channels", "thinking"), [(CHATML, [], False), (THINKS, ["thought"], True)]
)
def test_thinking_is_claimed_only_where_the_template_thinks(
    template: str, channels: list[str], thinking: bool
) -> None:
    message = build(tokenizer(chat_template=template), "qwen3").message
    assert [channel.channel_name for channel in message.channels] == channels
    assert message.supports_thinking is thinking
    assert not message.supports_function_calling  # the template has no tools


def test_gemma4() -> None:
    """As models/gemma4 in LiteRT-LM."""
    marks = {"<eos>": 1, "<bos>": 2, "<|tool_response>": 50, "<|turn>": 105, "<turn|>": 106}
    source = tokenizer(
        chat_template=FAMILY_TEMPLATES["Gemma 4 E2B and E4B"].template,
        special_tokens=marks,
        vocab_size=110,
        bos_token="<bos>",
        bos_token_id=2,
        eos_token_ids=(1,),
        eos_token="<turn|>",
    )
    result = build(source, "gemma4")
    message = result.message
    assert list(message.start_token.token_ids.ids) == [2]
    assert stops(result) == [[1], [50], [106]]
    calls = message.llm_model_type.gemma4
    assert (calls.code_fence_start, calls.code_fence_end) == ("<|tool_call>", "<tool_call|>")
    assert calls.function_response_start == "<|tool_response>"
    (channel,) = message.channels
    assert (channel.start, channel.end) == ("<|channel>thought\n", "<channel|>")
    assert message.supports_thinking
    assert message.supports_function_calling
    plain = build(replace(source, chat_template=CHATML), "gemma4").message
    assert not plain.channels
    assert not plain.supports_thinking


@pytest.mark.parametrize("path", sorted(FAMILIES.glob("*_base_metadata.textproto")))
def test_base_metadata_parses_and_leaves_the_derived_fields_alone(path: Path) -> None:
    message = text_format.Parse(path.read_text("utf-8"), llm_metadata_pb2.LlmMetadata())
    assert message.llm_model_type.WhichOneof("model_type")
    assert message.sampler_params.k > 0
    assert not message.stop_tokens
    for derived in ("start_token", "jinja_prompt_template"):
        assert not message.HasField(derived)
    assert message.max_num_tokens == 0


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (
        build(tokenizer()).message.SerializeToString(deterministic=True) for _ in range(2)
    )
    assert first == second


# --- Real models ------------------------------------------------------------------------------


def test_smollm2(smollm2_gguf: Path) -> None:
    with GGUFCheckpoint(smollm2_gguf) as checkpoint:
        result = build(load_tokenizer(checkpoint))
    assert not result.message.HasField("start_token")
    assert stops(result) == [[0], [2]]
    assert result.message.llm_model_type.HasField("generic_model")
    assert not result.message.channels
    assert result.message.max_num_tokens == 512


def real_tokenizer(folder: Path, **fields: Any) -> BundleTokenizer:
    data = (folder / "tokenizer.json").read_bytes()
    template = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"]
    return BundleTokenizer("HF_Tokenizer_Zlib", data, chat_template=template, **fields)


def test_qwen3(qwen3_tokenizer: Path) -> None:
    source = real_tokenizer(
        qwen3_tokenizer,
        vocab_size=151669,
        bos_token=None,
        bos_token_id=None,
        eos_token_ids=(151645,),
        eos_token="<|im_end|>",
        adds_bos=False,
        special_tokens={"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645},
    )
    message = build(source, "qwen3").message
    assert not message.HasField("start_token")
    assert [list(t.token_ids.ids) for t in message.stop_tokens] == [[151643], [151645]]
    assert message.llm_model_type.HasField("qwen3")
    assert message.supports_thinking
    assert message.supports_function_calling
    (channel,) = message.channels
    assert (channel.start, channel.end) == ("<think>\n", "\n</think>")
    assert channel.is_reasoning_channel


def test_gemma3(gemma3_tokenizer: Path) -> None:
    source = real_tokenizer(
        gemma3_tokenizer,
        vocab_size=262145,
        bos_token="<bos>",
        bos_token_id=2,
        eos_token_ids=(1, 106),
        eos_token="<end_of_turn>",
        adds_bos=True,
        special_tokens={"<bos>": 2, "<eos>": 1, "<start_of_turn>": 105, "<end_of_turn>": 106},
    )
    result = build(source, "gemma3", config={"top_k": 64, "top_p": 0.95, "do_sample": True})
    assert list(result.message.start_token.token_ids.ids) == [2]
    assert stops(result) == [[1], [106]]
    assert result.message.llm_model_type.HasField("gemma3")
    assert result.message.sampler_params.k == 64


@pytest.mark.parametrize(
    ("name", "is_said"),
    [("TranslateGemma: languages in a part", True), ("Gemma: parts alone", False)],
)
def test_who_must_write_the_whole_request_is_told(name: str, is_said: bool) -> None:
    shape = SHAPES[name]
    special = {"<bos>": 1, "<end_of_turn>": 2, "<start_of_turn>": 3}
    result = build(
        tokenizer(
            chat_template=shape.template, bos_token=shape.bos, eos_token=shape.eos,
            special_tokens=special,
        ),
        "gemma3",
    )  # fmt: skip
    assert any("source_lang_code" in note for note in result.notes) == is_said
    assert stops(result) == [[2]]
