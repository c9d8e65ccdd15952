"""Templates of models that think: short ones of the shapes that are published."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from google.protobuf import text_format

from converter.litertlm.metadata import build_llm_metadata
from converter.litertlm.schemas import llm_metadata_pb2
from converter.registry import FAMILIES, family_class
from converter.text.chat_template import TemplateReport, choose_template
from tests.edited_bundle import always_thinks, edited_bundle
from tests.small_tokenizers import SMALL_BPE, from_gguf, published_template, write_tokenizer_gguf

_HEAD = "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
_AS_IT_IS = "{{ m['content'] }}<|im_end|>\n"
_STRIPPED = "{{ m['content'].split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
_LAST = (
    "{% if loop.last %}<think>\n{{ m['content'].split('</think>')[0].split('<think>')[-1]"
    ".strip('\n') if '</think>' in m['content'] else '' }}\n</think>\n\n{% endif %}"
)
_REST = (
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)


class Shape(NamedTuple):
    """A template, and what must be found out about it.

    Attributes:
        opens: the mark that a prompt leaves open.
        switch: whether `enable_thinking` changes the prompt.
        difference: of the text after the first turn, from the source's.
    """

    template: str
    opens: str = ""
    switch: bool = False
    difference: str = ""


_OPENS = "<think>\n{% endif %}"
_OFF = "<think>\n\n</think>\n\n{% endif %}{% endif %}"
SHAPES = {
    "drops old thoughts": Shape(_HEAD + _STRIPPED + _REST + _OPENS, "<think>\n"),
    "keeps the last thought": Shape(_HEAD + _LAST + _STRIPPED + _REST + _OPENS, "<think>\n"),
    "keeps all thoughts": Shape(
        _HEAD + _AS_IT_IS + _REST + _OPENS, "<think>\n", difference="It meows."
    ),
    "opens without a newline": Shape(
        _HEAD + _STRIPPED + _REST + _OPENS.replace("\n", ""), "<think>"
    ),
    "thinks by itself": Shape(_HEAD + _LAST + _STRIPPED + _REST + "{% endif %}"),
    "can be switched off": Shape(
        _HEAD + _LAST + _STRIPPED + _REST
        + "{% if enable_thinking is defined and enable_thinking is false %}" + _OFF,
        switch=True,
    ),
    "off by default": Shape(
        _HEAD + _STRIPPED + _REST
        + "{% if not (enable_thinking is defined and enable_thinking) %}" + _OFF,
        switch=True, difference="feeds",
    ),
    "open by default, can be switched off": Shape(
        _HEAD + _STRIPPED + _REST
        + "{% if enable_thinking is defined and not enable_thinking %}" + _OFF.replace(
            "{% endif %}{% endif %}", "{% else %}<think>\n{% endif %}{% endif %}"),
        "<think>\n", switch=True,
    ),
}  # fmt: skip


# The families whose thoughts have these marks.
THINKING = sorted(name for name, family in FAMILIES.items() if "<think>" in family.base_metadata())


def choose(source: str, family: str = "qwen3") -> TemplateReport:
    return choose_template(
        source,
        family=family,
        templates=family_class(family).templates,
        bos_token=None,
        eos_token="<|im_end|>",
        has_channel=True,
    )


@pytest.mark.parametrize("family", THINKING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_family_takes_every_shape(shape: Shape, family: str) -> None:
    report = choose(shape.template, family)
    assert report.chosen == "adapted source"
    assert (report.opens_thought, report.thinking) == (shape.opens, shape.switch)
    assert shape.difference in report.history_difference
    assert bool(shape.difference) == (not report.exact_history)


@pytest.mark.parametrize("family", THINKING)
@pytest.mark.parametrize("name", ["drops old thoughts", "off by default"])
def test_a_family_template_opens_what_the_source_opens(name: str, family: str) -> None:
    """Where the source's own code cannot be carried over."""
    report = choose("{% set x = 'x'.find('x') %}" + SHAPES[name].template, family)
    assert report.chosen.endswith(".jinja with the source's opening")
    assert (report.opens_thought, report.thinking) == (SHAPES[name].opens, SHAPES[name].switch)


@pytest.mark.parametrize("family", THINKING)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_channel_has_the_marks_of_the_template(
    shape: Shape, family: str, tmp_path: Path
) -> None:
    base = family_class(family).base_metadata()
    [own] = text_format.Parse(base, llm_metadata_pb2.LlmMetadata()).channels
    said = SMALL_BPE | {"chat_template": shape.template, "ggml.eos_token_id": 259}
    tokenizer = from_gguf(write_tokenizer_gguf(tmp_path / "t.gguf", said))
    message = build_llm_metadata(base, tokenizer, 64, family).message
    [channel] = message.channels
    assert (channel.start, channel.end) == (shape.opens or own.start, own.end)
    assert channel.is_reasoning_channel == own.is_reasoning_channel
    assert message.supports_thinking == shape.switch


def test_a_source_that_leaves_the_newlines_of_a_thought_is_adapted() -> None:
    """As MiniMax's: it reads parts by itself, and would pass as it is."""
    source = (
        "{% for m in messages %}{% if m.content is string %}{% set c = m.content %}{% else %}"
        "{% set c %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endset %}{% endif %}"
        "{% if m.role == 'assistant' and '</think>' in c %}"
        "{% set c = c.split('</think>')[-1] %}{% set c = c.lstrip('\\n') %}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ c }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    report = choose(source)
    assert (report.chosen, report.exact_history) == ("adapted source", True)
    [passed_over] = report.rejected
    assert passed_over.candidate == "source"
    assert passed_over.reason.startswith("feeds")


def test_qwen3_2507_by_the_real_template(qwen3_tokenizer: Path) -> None:
    """Thinking-2507 and Instruct-2507 are Qwen3's template with another end."""
    source = published_template(qwen3_tokenizer)
    begin = source.index("    {%- if enable_thinking is defined")
    end = source.rindex("{%- endif %}")
    thinking = choose(source[:begin] + "    {{- '<think>\\n' }}\n" + source[end:])
    instruct = choose(source[:begin] + source[end:])
    for report, opens in ((thinking, "<think>\n"), (instruct, "")):
        assert (report.chosen, report.opens_thought) == ("adapted source", opens)
        assert (report.tools, report.thinking, report.exact_history) == (True, False, True)


# --- In the engine ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thinker(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine whose model has a thought, up to the first space of its answer."""
    import litert_lm

    path = tmp_path_factory.mktemp("thinker") / "thinker.litertlm"
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(edited_bundle(smollm2_bundle, path, always_thinks))) as engine:
        yield engine


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_three_turns_run_in_the_engine(shape: Shape, thinker: Any) -> None:
    """Thoughts are taken out again: the cache then holds the render of the whole conversation,
    which `exact_history` rests on."""
    template = choose(shape.template, "llama").template
    with thinker.create_conversation(
        chat_template=template, automatic_tool_calling=False
    ) as conversation:
        history = ""
        for question in ("Tell me a long story.", "Explain how a ship is built.", "Why?"):
            rendered = conversation.render_message_to_string(question)
            assert rendered, "it does not begin with the history"
            said, thought, before = "", "", conversation.token_count
            for message in conversation.send_message_async(question, max_output_tokens=8):
                said += str(message)
                thought += "".join(message.channels.values())
            prompt = history + rendered
            if shape.opens == "<think>\n":
                assert thought
                assert conversation.token_count == len(thinker.tokenize(prompt)) + 8
            elif not thought:
                assert conversation.token_count == before + len(thinker.tokenize(rendered)) + 8
            history = prompt.removesuffix(shape.opens) + said.lstrip("\n") + "<|im_end|>"
