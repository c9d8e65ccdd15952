"""Chat templates: what the proof accepts, what it refuses, and that it renders as the engine does.

The templates below are rebuilt, shorter, from what the named models publish: each keeps the
constructs that trip the runtime. Qwen3's, Gemma 3's and SmolLM2's are the real ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from converter.base import ModelConverter
from converter.checkpoint.gguf import GGUFCheckpoint
from converter.errors import UnsupportedError
from converter.options import ConvertOptions
from converter.registry import FAMILIES as REGISTERED
from converter.registry import family_class
from converter.text.chat_template import TemplateReport, choose_template
from converter.text.template_candidates import FAMILIES
from converter.text.template_reference import CONVERSATIONS, as_parts, render_reference
from converter.text.template_renderers import (
    OutOfFuelError,
    TemplateFailureError,
    render_as_runtime,
    render_as_source,
)
from tests.small_tokenizers import published_template

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TINYLLAMA = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n' + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA32 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
# The bars in its tokens are full-width.
R1_DISTILL = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}"
    "{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}"
    "{%- endif %}{%- endfor %}{{bos_token}}{{ns.system_prompt}}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<|User|>' + message['content']}}{%- endif %}"
    "{%- if message['role'] == 'assistant' and message['content'] is not none %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{'<|Assistant|>' + content + '<|end▁of▁sentence|>'}}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{'<|Assistant|><think>\\n'}}{% endif %}"
).replace("|", "\uff5c")
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen.' }}
    {%- endif %}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou are Qwen.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- set tool_call = tool_call.function %}
            {{- '\\n<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
LLAMA2 = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'].strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('no system messages') }}{% endif %}{% endfor %}"
)


def choose(
    source: str | None, family: str = "llama", bos: str | None = None, eos: str | None = None
) -> TemplateReport:
    return choose_template(
        source,
        family=family,
        templates=family_class(family).templates,
        bos_token=bos,
        eos_token=eos,
        has_channel=True,
        fix="correct it",
    )


def runtime(template: str, **extra: Any) -> str:
    """Render one user message as the runtime hands it over."""
    messages = as_parts([{"role": "user", "content": "hi"}])
    return render_as_runtime(template, messages, add_generation_prompt=True, extra=extra)


# --- The runtime's renderer -------------------------------------------------------------------

# What the engine gives for each, seen with litert-lm-api 0.18.1; "" stands for an error.
ENGINE_FACTS = {
    "{{ ' a '.strip() }}|{{ 'a:b'.split(':') | list }}": 'a|["a", "b"]',
    "{{ 'a:b'.split(':')[1] }}": "",
    "{{ 'x</t>\\n\\ny'.split('</t>')[-1].lstrip('\\n') }}": "y",
    "{{ missing | lstrip }}|{{ 'xxa' | lstrip('x') }}|{{ ' a ' | rstrip }}": "|a| a",
    "{{ 'abc'.startswith('a') }}": "true",
    "{{ 'abc'.upper() }}": "",
    "{{ messages[0].get('role') }}": "",
    "{{ messages.append(1) }}": "",
    "{% for i in range(3) %}{% break %}{% endfor %}": "",
    "{{ tools is none }}|{{ tools is not none }}": "true|false",
    "{% set t = none %}{{ t is none }}|{{ t == none }}": "false|true",
    "{{ none is iterable }}|{{ missing is iterable }}": "true|true",
    "{{ 'a' is sequence }}|{{ {} is sequence }}|{{ true is number }}": "false|false|false",
    "{{ missing | length }}": "",
    "{{ 'is none' if messages is not none else '' }}": "is none",
    "{{ bos_token }}|{{ eos_token is defined }}": "|true",
    "{{ {'b': '<é>', 'a': [1, none]} | tojson }}": '{"b": "<é>", "a": [1, null]}',
    "{{ {'a': 1} | tojson(indent=2) }}": "",
    "{{ 'abc' | truncate(2) }}": "",
    "{{ '<b>&' }}\n": "<b>&\n",
    "{{ messages[0].content is string }}|{{ messages[0].content is sequence }}": "false|true",
    "{{ 'a' + messages[0].content }}": "",
    "{{ messages[0].content }}": '[{"type": "text", "text": "hi"}]',
    "{{ messages[1:] }}|{{ messages[::-1] | length }}": "[]|1",
    "{{ missing.attribute }}": "",
    "{% generation %}x{% endgeneration %}": "x",
    "{{ raise_exception('no') }}": "",
}


@pytest.mark.parametrize(("template", "expected"), ENGINE_FACTS.items())
def test_our_renderer_knows_every_fact(template: str, expected: str) -> None:
    if expected:
        assert runtime(template) == expected
    else:
        with pytest.raises(TemplateFailureError):
            runtime(template)


@pytest.fixture(scope="module")
def render_in_engine(
    smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., str]]:
    """The engine's own render of a first message, under any template."""
    import litert_lm

    bundle = tmp_path_factory.mktemp("engine") / "smollm2.litertlm"
    with GGUFCheckpoint(smollm2_gguf) as checkpoint:
        options = ConvertOptions(prefill_lengths=(64,), cache_length=256)
        ModelConverter(checkpoint, "SmolLM2", options).convert(bundle)
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(bundle)) as engine:

        def render(template: str | None, text: str, history: list[Any]) -> str:
            with engine.create_conversation(
                chat_template=template, messages=history
            ) as conversation:
                return str(conversation.render_message_to_string(text))

        yield render


def test_the_engine_itself_agrees_on_every_fact(render_in_engine: Callable[..., str]) -> None:
    got = {template: render_in_engine(template, "hi", []) for template in ENGINE_FACTS}
    assert got == ENGINE_FACTS


@pytest.mark.parametrize("source", [CHATML, TINYLLAMA, QWEN25, R1_DISTILL, LLAMA2])
def test_the_engine_renders_a_chosen_template_as_we_do(
    source: str, render_in_engine: Callable[..., str]
) -> None:
    template = choose(source, bos="<s>", eos="</s>").template
    for name, messages in CONVERSATIONS.items():
        if source == LLAMA2 and messages[0]["role"] == "system":
            continue
        ours = render_as_runtime(template, as_parts(messages), add_generation_prompt=True)
        *history, last = messages
        assert render_in_engine(template, last["content"], history) == ours, name


# --- Real templates ---------------------------------------------------------------------------


def test_gemma3_keeps_its_own_template_and_needs_the_start_token(gemma3_tokenizer: Path) -> None:
    report = choose(published_template(gemma3_tokenizer), "gemma3", "<bos>", "<end_of_turn>")
    assert (report.chosen, report.start_token_needed, report.exact_history) == (
        "source",
        True,
        True,
    )
    assert report.cases[0].expected == "<bos>" + report.runtime_prompt


def test_a_result_that_is_printed_as_data_is_not_read() -> None:
    """A template that fails on a text, and prints a part as jinja2 prints a dict."""
    source = (
        "{% for t in tools or [] %}{{ t.function.description + t.function.name }}{% endfor %}"
        "{% for m in messages %}{{ '<' + m.role + '>' }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name }}{% endfor %}{% if m.role == 'tool' and m.content is string %}"
        "{{ raise_exception('no') }}{% endif %}{{ m.content or '' }}{% endfor %}<assistant>"
    )
    assert render_reference(source, "", "").tool_case is None
    reads_parts = source.replace("{{ m.content or '' }}", "{{ (m.content or ' ')[0].response }}")
    assert render_reference(reads_parts, "", "").tool_case is not None


def test_qwen3_keeps_its_own_text_with_thinking_and_tools(qwen3_tokenizer: Path) -> None:
    report = choose(published_template(qwen3_tokenizer), "qwen3", None, "<|im_end|>")
    assert report.chosen == "adapted source"
    assert [r.candidate for r in report.rejected] == ["source"]
    assert (report.thinking, report.tools, report.exact_history) == (True, True, True)
    assert runtime(report.template, enable_thinking=False).endswith("<think>\n\n</think>\n\n")
    assert runtime(report.template, enable_thinking=True).endswith("<|im_start|>assistant\n")


def test_smollm2_is_adapted_to_typed_content(smollm2_gguf: Path) -> None:
    with GGUFCheckpoint(smollm2_gguf) as checkpoint:
        from converter.text.tokenizer import load_tokenizer

        source = load_tokenizer(checkpoint).chat_template
    report = choose(source, "llama", "<|im_start|>", "<|im_end|>")
    assert report.chosen == "adapted source"
    assert not report.start_token_needed
    assert report.runtime_prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")


def test_tinyllama_writes_the_eos_token_that_the_runtime_leaves_empty() -> None:
    report = choose(TINYLLAMA, bos="<s>", eos="</s>")
    assert report.chosen == "adapted source"
    assert report.runtime_prompt == "<|user|>\nWhat is in the box?</s>\n<|assistant|>\n"


def test_llama32_prints_the_day_of_the_conversation_and_no_tools() -> None:
    report = choose(LLAMA32, bos="<|begin_of_text|>", eos="<|eot_id|>")
    assert report.chosen == "adapted source"
    assert report.prints_date
    assert "Today Date: 05 Jul 2024" in report.runtime_prompt
    assert "ipython" not in report.runtime_prompt
    assert "ipython" in report.rejected[0].reason  # `tools is not none` is true of none
    assert report.start_token_needed


def test_r1_distill_opens_a_thought_that_the_runtime_takes_out_again() -> None:
    report = choose(R1_DISTILL, "qwen2")
    assert report.chosen == "adapted source"
    assert report.runtime_prompt.endswith("<\uff5cAssistant\uff5c><think>\n")
    assert report.opens_thought == "<think>\n"
    assert report.exact_history


def test_qwen25_keeps_its_default_system_prompt_and_tools() -> None:
    report = choose(QWEN25, "qwen2", None, "<|im_end|>")
    assert (report.chosen, report.tools, report.thinking) == ("adapted source", True, False)
    assert report.runtime_prompt.startswith("<|im_start|>system\nYou are Qwen.<|im_end|>\n")


def test_a_template_with_bos_in_every_turn_writes_all_of_them_itself() -> None:
    report = choose(LLAMA2, bos="<s>", eos="</s>")
    assert report.chosen == "adapted source with its bos"
    assert not report.start_token_needed
    assert any("no system messages" in line for line in report.refused)


@pytest.mark.parametrize("source", [None, "", " \n"])
def test_base_models_get_the_text_and_nothing_else(source: str | None) -> None:
    report = choose(source)
    assert (report.chosen, report.runtime_prompt) == ("completion", "What is in the box?")


# --- One construct, one answer ----------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "m.content.strip()",
        "m.content.split('###')[0]",
        "(m.content if m.content is string else 'lost')",
        "m['content'][0:400]",
        "(m.content if m.content is not none else '')",
    ],
)
def test_python_idioms_that_can_be_carried_over(content: str) -> None:
    source = CHATML.replace("m['content']", content)
    assert choose(source).chosen == "adapted source"


def test_a_template_that_drops_typed_content_is_caught() -> None:
    """LiteRT-LM#3688: the user's text is gone, and nothing fails."""
    source = CHATML.replace("m['content']", "(m.content if m.content is string else '')")
    assert "where the source has" in choose(source).rejected[0].reason


def test_a_template_that_reads_the_first_part_only_is_caught() -> None:
    first_part = "(m.content if m.content is string else m.content[0].text)"
    report = choose(CHATML.replace("m['content']", first_part))
    assert report.chosen == "adapted source"
    assert report.rejected[0].reason == "two parts in one message: it drops one of them"


def test_the_newline_that_jinja2_drops_at_the_end() -> None:
    report = choose(CHATML.replace("{% endif %}", "{{ '' }}{% endif %}{{ '' }}\n"))
    assert report.chosen == "adapted source"
    assert report.runtime_prompt.endswith("<|im_start|>assistant\n")


def test_the_next_turn_begins_with_what_follows_the_end_token() -> None:
    """The engine's cache ends with <|im_end|>; the newline after it must not be lost."""
    template = choose(CHATML).template
    turns = as_parts(CONVERSATIONS["three turns"])
    history = render_as_runtime(template, turns[:2], add_generation_prompt=False)
    longer = render_as_runtime(template, turns[:3], add_generation_prompt=True)
    assert history.endswith("A cat.<|im_end|>")
    assert longer[len(history) :].startswith("\n<|im_start|>user\n")


@pytest.mark.parametrize(
    ("family", "file", "source", "eos"),
    [
        ("qwen3", "qwen3.jinja", CHATML, ""),
        ("qwen2", "chatml.jinja", CHATML, ""),
        ("llama", "zephyr.jinja", TINYLLAMA, "</s>"),
        ("qwen2", "deepseek_r1.jinja", R1_DISTILL, ""),
        (
            "llama",
            "llama3.jinja",
            "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + "
            "'<|end_header_id|>\n\n' + (m.content | trim) + '<|eot_id|>' }}{% endfor %}{% if "
            "add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
            "{% endif %}",
            "",
        ),
    ],
)
def test_family_templates_replace_one_that_cannot_be_carried_over(
    family: str, file: str, source: str, eos: str
) -> None:
    report = choose("{% set x = 'x'.find('x') %}" + source, family, "<s>", eos)
    assert report.chosen == file
    assert "has no method named find" in report.rejected[1].reason


def test_gemma3_family_template(gemma3_tokenizer: Path) -> None:
    source = "{% set x = 'x'.find('x') %}" + published_template(gemma3_tokenizer)
    assert choose(source, "gemma3", "<bos>", "<eos>").chosen == "gemma3.jinja"


def test_every_family_template_is_in_the_table() -> None:
    """Each must be offered somewhere; the preludes and completion are used by name."""
    listed = {file for family in REGISTERED.values() for file in family.templates}
    on_disk = {path.name for path in FAMILIES.glob("*.jinja")}
    used_by_name = {"flatten.jinja", "as_parts.jinja", "indented_json.jinja", "completion.jinja"}
    used_by_name.add("translategemma.jinja")
    assert on_disk == listed | used_by_name


# --- Refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ 'x'.find('x') }}" + CHATML, "has no method named find"),
        (CHATML.replace("{% for", "{% break %}{% for"), "it does not render"),
        ("{% for m in messages %}", "it does not render"),
        ("{{ raise_exception('closed') }}", "closed"),
        ("{{ 'is_appending_to_prefill' }}" + CHATML, "single-turn mode"),
        ("Hello!", "it does not print the user's message"),
        (
            "{% for m in messages %}[{{ m.role }}{{ messages | length }}]{{ m.content }}"
            "{% endfor %}",
            "is not how the next turn begins",
        ),
    ],
)
def test_refusals_say_why(source: str, why: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        choose(source)
    assert caught.value.what == "llama: chat template"
    assert why in caught.value.why
    assert caught.value.fix == "correct it"


def test_an_endless_template_is_refused_before_it_is_run_without_a_limit() -> None:
    endless = "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}"
    start = time.monotonic()
    with pytest.raises(UnsupportedError) as caught:
        choose(endless + CHATML)
    assert caught.value.why == "it does not end"
    assert time.monotonic() - start < 3  # jinja2 alone would take longer


def test_a_bos_token_in_some_conversations_only_is_text() -> None:
    """The runtime adds its start token always or never."""
    source = "{% if messages | length == 1 %}{{ bos_token }}{% endif %}" + CHATML
    report = choose(source, bos="<s>")
    assert (report.chosen, report.start_token_needed) == ("adapted source with its bos", False)
    assert "the bos token in some conversations only" in report.rejected[1].reason


@pytest.mark.parametrize("code", ["{{ 'a' * 10 ** 9 }}", "{{ 'a' * 9 }}", "{{ 10 ** 10 ** 8 }}"])
def test_the_reference_multiplies_small_numbers_only(code: str) -> None:
    with pytest.raises(TemplateFailureError):
        render_as_source(code, [], bos_token="", eos_token="")


def test_the_reference_stops_an_endless_print() -> None:
    code = "{% for i in range(9999) %}{% for j in range(999) %}xxxxxxxx{% endfor %}{% endfor %}"
    with pytest.raises(OutOfFuelError):
        render_as_source(code, [], bos_token="", eos_token="")


def test_the_reference_is_sandboxed() -> None:
    with pytest.raises(TemplateFailureError):
        render_as_source("{{ ''.__class__.__mro__ }}", [], bos_token="", eos_token="")
