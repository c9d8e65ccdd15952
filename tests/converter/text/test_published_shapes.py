"""Templates of the shapes that models are published with, each by the construct that is its own.

They are short ones, rebuilt: what transformers renders of them, the runtime must render.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from converter.errors import UnsupportedError
from converter.registry import family_class
from converter.text.chat_template import TemplateReport, choose_template
from converter.text.named_templates import join_named
from converter.text.template_reference import (
    TOOL_TURNS,
    TOOLS,
    TURNS,
    as_parts,
    with_languages,
)
from converter.text.template_renderers import render_as_runtime, render_as_source
from tests.edited_bundle import edited_bundle
from tests.family_templates import FAMILY_TEMPLATES, Template

ADAPTED, PARTS = "adapted source", "adapted source with parts"


class Shape(NamedTuple):
    """A template, and what is found of it.

    Attributes:
        differs: of the text after the first turn, from the source's; "" where it is exact.
    """

    family: str
    template: str
    bos: str | None
    eos: str
    chosen: str = ADAPTED
    tools: bool = False
    fences_calls: bool = False
    differs: str = ""


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_HERMES_TOOLS = """{%- macro type_of(spec) %}
{%- set names = {"string": "str", "array": "list"} %}
{%- if names[spec.type] is defined %}{{- names[spec.type] }}{%- else %}{{- "Any" }}{%- endif %}
{%- endmacro %}
{{- bos_token }}{{- '<|im_start|>system\\nTools: ' }}
{%- for tool in tools %}
    {%- set tool = tool.function if tool.function is defined else tool %}
    {%- for name, fields in tool.parameters.properties|items %}
        {{- name + ": " + type_of(fields) }}{%- if not loop.last %}{{- ", " }}{%- endif %}
    {%- endfor %}
    {{- " - " + tool.name + " " + tool.description + tool.parameters|tojson }}
{%- endfor %}
{{- "<|im_end|>\\n" }}
{%- for message in messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined %}
        {{- '<|im_start|>' + message.role }}
        {%- for call in message.tool_calls %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- call.function.arguments|tojson + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>tool\\n' }}
        {%- endif %}
        {{- '<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
_MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if not message.get("tool_calls") and message["role"] not in ["tool", "tool_results"] %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for key, val in tools[0].function.items() if key != "return" %}
                {{- '"' + key + '": ' + val|tojson }}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- set out = message.tool_calls[0].function|tojson %}
        {{- "[TOOL_CALLS] [" + out[:-1] + "}]" + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] ' + message.content|string + "[/TOOL_RESULTS]" }}
    {%- else %}
        {{- " " + message["content"]|trim + eos_token }}
    {%- endif %}
{%- endfor %}
"""
_LLAMA31 = """{{- bos_token }}
{%- if tools_in_user_message is not defined %}{%- set tools_in_user_message = true %}{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none and tools_in_user_message %}
    {%- set first_user_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
    {{- '<|start_header_id|>user<|end_header_id|>\\n\\nGiven the following functions:\\n\\n' }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
    {{- first_user_message + "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'ipython' or message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping %}{{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
        {{- "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("One!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name }}
        {{- '", "parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
_GEMMA_PARTS = (
    "{{ bos_token }}{%- for m in messages -%}"
    "{%- set role = 'model' if m['role'] == 'assistant' else m['role'] -%}"
    "{{ '<start_of_turn>' + role + '\n' }}{%- for item in m['content'] -%}"
    "{%- if item['type'] == 'text' -%}{{ item['text'].strip() }}{%- endif -%}{%- endfor -%}"
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"
)
_R1_WITH_TOOLS = (
    "{%- set ns = namespace(is_tool=false, system_prompt='') -%}{%- for m in messages -%}"
    "{%- if m['role'] == 'system' -%}{%- set ns.system_prompt = m['content'] -%}{%- endif -%}"
    "{%- endfor -%}{{ bos_token }}{{ ns.system_prompt }}{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{ '<User>' + m['content'] }}{%- endif -%}"
    "{%- if m['role'] == 'assistant' and m['content'] is none -%}{%- for t in m['tool_calls'] -%}"
    "{{ '<Assistant><call>' + t['function']['name'] + t['function']['arguments'] }}{%- endfor -%}"
    "{%- endif -%}{%- if m['role'] == 'assistant' and m['content'] is not none -%}"
    "{%- set c = m['content'] -%}{%- if '</think>' in c -%}"
    "{%- set c = c.split('</think>')[-1] -%}{%- endif -%}{{ '<Assistant>' + c + eos_token }}"
    "{%- endif -%}{%- if m['role'] == 'tool' -%}{%- set ns.is_tool = true -%}{{ m['content'] }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt and not ns.is_tool -%}{{ '<Assistant><think>\n' }}{%- endif %}"
)

_GLM4 = (
    "[gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined %}<|system|>\nTools:"
    "{% set tools = item['tools'] %}{% for tool in tools %}{% if tool['type'] == 'function' %}"
    "\n\n## {{ tool['function']['name'] }}\n\n{{ tool['function'] | tojson(indent=4) }}"
    "{% endif %}{% endfor %}{% endif %}{% if item['content'] %}"
    "<|{{ item['role'] }}|>{{ item['metadata'] }}\n{{ item['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

_FUNCTION_GEMMA = """{%- macro argument(value) -%}
    {%- if value is string -%}{{- '<escape>' + value + '<escape>' -}}
    {%- elif value is boolean -%}{{- 'true' if value else 'false' -}}
    {%- elif value is mapping -%}{{- '{' -}}
        {%- for key, inner in value | dictsort -%}
            {{- key -}}:{{- argument(inner) -}}{%- if not loop.last %},{% endif -%}
        {%- endfor -%}{{- '}' -}}
    {%- else -%}{{- value -}}{%- endif -%}
{%- endmacro -%}
{%- macro declaration(tool) -%}
    declaration:{{- tool['function']['name'] -}}
    {description:<escape>{{- tool['function']['description'] -}}<escape>
    {%- set params = tool['function']['parameters'] -%}
    {%- if params -%}
        ,parameters:{properties:{
        {%- for key, value in params['properties'] | dictsort -%}
            {{- key -}}:{type:<escape>{{- value['type'] | upper -}}<escape>}
            {%- if not loop.last %},{% endif -%}
        {%- endfor -%}
        },type:<escape>{{- params['type'] | upper -}}<escape>}
    {%- endif -%}}
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(previous=None) -%}
{%- if (messages[0]['role'] == 'system' or messages[0]['role'] == 'developer') or tools -%}
    {{- '<start_of_turn>developer\n' -}}
    {%- if messages[0]['role'] == 'system' or messages[0]['role'] == 'developer' -%}
        {{- messages[0]['content'] | trim -}}
        {%- set loop_messages = messages[1:] -%}
    {%- else -%}{%- set loop_messages = messages -%}{%- endif -%}
    {%- if tools -%}
        {%- for tool in tools -%}
            <start_function_declaration>{{- declaration(tool) | trim -}}<end_function_declaration>
        {%- endfor -%}
    {%- endif -%}
    {{- '<end_of_turn>\n' -}}
{%- else -%}{%- set loop_messages = messages -%}{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if role != 'tool' -%}
        {%- if ns.previous != 'tool' -%}{{- '<start_of_turn>' + role + '\n' -}}{%- endif -%}
        {%- if 'content' in message and message['content'] is not none -%}
            {{- message['content'] | trim -}}
        {%- endif -%}
        {%- if 'tool_calls' in message and message['tool_calls'] -%}
            {%- for call in message['tool_calls'] -%}
                {%- set function = call['function'] -%}
                {{- '<start_function_call>call:' + function['name'] + '{' -}}
                {%- for key, value in function['arguments'] | dictsort -%}
                    {{- key -}}:{{- argument(value) -}}{%- if not loop.last %},{% endif -%}
                {%- endfor -%}
                {{- '}<end_function_call>' -}}
            {%- endfor -%}
            {%- set ns.previous = 'call' -%}
        {%- else -%}
            {{- '<end_of_turn>\n' -}}{%- set ns.previous = 'turn' -%}
        {%- endif -%}
    {%- else -%}
        {{- '<start_function_response>response:' + message['name'] + '{value:' -}}
        {{- argument(message['content']) -}}{{- '}<end_function_response>' -}}
        {%- set ns.previous = 'tool' -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt and ns.previous != 'tool' -%}
    {{- '<start_of_turn>model\n' -}}
{%- endif -%}"""
_MINICPM5 = """{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
    {{- '# Tools\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson(ensure_ascii=False) }}{%- endfor %}
    {{- '\n</tools>\nCall one so: <function name="n"><param name="p">v</param></function>' }}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\n' }}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for call in message.tool_calls or [] %}
            {{- '<function name="' + call.function.name + '">' }}
            {%- for key, value in call.function.arguments.items() %}
                {{- '<param name="' + key + '">' }}
                {{- value if value is string else value | tojson }}{{- '</param>' }}
            {%- endfor %}
            {{- '</function>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>tool\n' + message.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""

_NEMO = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}

{#- This block checks for alternating messages #}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or message.role == "tool_results" or
        (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("Roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}{{- tool.function | tojson }}{%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
            {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST]" + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST]" + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif (message.tool_calls is defined and message.tool_calls is not none) %}
        {{- "[TOOL_CALLS][" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                {{- raise_exception("An id has 9 characters") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
        {{- "]" + eos_token }}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("There are only users and assistants") }}
    {%- endif %}
{%- endfor %}
"""
_NANBEIGE4 = """
    {%- if tools %}
        {{- '<|im_start|>system\\n' }}
        {%- if messages[0].role == 'system' %}
            {{- messages[0].content + '\\n\\n' }}
        {%- else %}
            {{- '\u4f60\u662f\u5de5\u5177\u4e13\u5bb6\u3002\\n' }}
        {%- endif %}
        {{- "# Tools\\n<tools>" }}
        {%- for tool in tools %}
            {{- "\\n" }}
            {{- tool | tojson }}
        {%- endfor %}
        {{- "\\n</tools>\\n<tool_call>\\n{\\"name\\": ...}\\n</tool_call><|im_end|>\\n" }}
    {%- else %}
        {%- if messages[0].role == 'system' %}
            {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
        {%- else %}
            {{- '<|im_start|>system\\n\u4f60\u662f\u5357\u5317\u9601\u3002<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
    {%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
    {%- for message in messages[::-1] %}
        {%- set index = (messages|length - 1) - loop.index0 %}
        {%- if ns.multi_step_tool and message.role == "user" and message.content is string and
            not(message.content.startswith('<tool_response>') and
            message.content.endswith('</tool_response>')) %}
            {%- set ns.multi_step_tool = false %}
            {%- set ns.last_query_index = index %}
        {%- endif %}
    {%- endfor %}
    {%- for message in messages %}
        {%- if message.content is string %}
            {%- set content = message.content %}
        {%- else %}
            {%- set content = '' %}
        {%- endif %}
        {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
            {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
        {%- elif message.role == "assistant" %}
            {%- set reasoning_content = '' %}
            {%- if message.reasoning_content is string %}
                {%- set reasoning_content = message.reasoning_content %}
            {%- elif '</think>' in content %}
                {%- set reasoning_content =
                    content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
            {%- if loop.index0 > ns.last_query_index and reasoning_content %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' }}
                {{- reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
            {%- if message.tool_calls %}
                {%- for tool_call in message.tool_calls %}
                    {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                    {%- if tool_call.function %}
                        {%- set tool_call = tool_call.function %}
                    {%- endif %}
                    {{- '<tool_call>\\n{"name": "' }}
                    {{- tool_call.name }}
                    {{- '", "arguments": ' }}
                    {%- if tool_call.arguments is string %}
                        {{- tool_call.arguments }}
                    {%- else %}
                        {{- tool_call.arguments | tojson }}
                    {%- endif %}
                    {{- '}\\n</tool_call>' }}
                {%- endfor %}
            {%- endif %}
            {{- '<|im_end|>\\n' }}
        {%- elif message.role == "tool" %}
            {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
                {{- '<|im_start|>user' }}
            {%- endif %}
            {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
            {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
                {{- '<|im_end|>\\n' }}
            {%- endif %}
        {%- endif %}
    {%- endfor %}
    {%- if add_generation_prompt %}
        {{- '<|im_start|>assistant\\n' }}
    {%- endif %}
"""
_QWEN3_CODER = """{% macro extra_keys(json_dict, handled_keys) %}
    {%- if json_dict is mapping %}
        {%- for json_key in json_dict if json_key not in handled_keys %}
            {%- if json_dict[json_key] is mapping or (json_dict[json_key] is sequence and
                json_dict[json_key] is not string) %}
                {{- '\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | tojson | safe) }}
            {%- else %}
                {{-'\\n<' ~ json_key ~ '>' ~ (json_dict[json_key] | string) }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
{% endmacro %}

{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{%- if not tools is defined %}
    {%- set tools = [] %}
{%- endif %}

{%- if system_message is defined %}
    {{- "<|im_start|>system\\n" + system_message }}
{%- elif tools is iterable and tools | length > 0 %}
    {{- "<|im_start|>system\\nYou are Qwen." }}
{%- endif %}
{%- if tools is iterable and tools | length > 0 %}
    {{- "\\n\\n<tools>" }}
    {%- for tool in tools %}
        {%- if tool.function is defined %}
            {%- set tool = tool.function %}
        {%- endif %}
        {{- "\\n<name>" ~ tool.name ~ "</name>" }}
        {%- if tool.description is defined %}
            {{- '\\n<description>' ~ (tool.description | trim) ~ '</description>' }}
        {%- endif %}
        {%- for param_name, param_fields in tool.parameters.properties|items %}
            {{- '\\n<name>' ~ param_name ~ '</name>' }}
            {%- set handled_keys = ['name', 'type', 'description'] %}
            {{- extra_keys(param_fields, handled_keys) }}
        {%- endfor %}
        {% set handled_keys = ['type', 'properties'] %}
        {{- extra_keys(tool.parameters, handled_keys) }}
    {%- endfor %}
    {{- "\\n</tools>" }}
{%- endif %}
{%- if system_message is defined or tools is iterable and tools | length > 0 %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.role == "assistant" and message.tool_calls is defined and
        message.tool_calls is iterable and message.tool_calls | length > 0 %}
        {{- '<|im_start|>' + message.role }}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n<function=' + tool_call.name + '>\\n' }}
            {%- if tool_call.arguments is defined %}
                {%- for args_name, args_value in tool_call.arguments|items %}
                    {{- '<parameter=' + args_name + '>\\n' }}
                    {%- set args_value = args_value | tojson | safe if args_value is mapping or
                        (args_value is sequence and args_value is not string)
                        else args_value | string %}
                    {{- args_value }}
                    {{- '\\n</parameter>\\n' }}
                {%- endfor %}
            {%- endif %}
            {{- '</function>\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if not loop.last and loop.nextitem.role != "tool" %}
            {{- '<|im_end|>\\n' }}
        {%- elif loop.last %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
_TRANSLATE_GEMMA = """{%- set languages = {
    "de": "German",
    "de-DE": "German",
    "en": "English",
}
-%}
{{ bos_token }}
{%- if (messages[0]['role'] != 'user') -%}
    {{ raise_exception("It begins with a question.") }}
{%- endif -%}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate.") }}
    {%- endif -%}
    {%- if (message['role'] == 'assistant') -%}
        {%- if message['content'] is none or message['content'] is not string -%}
            {{ raise_exception("An answer is a string.") }}
        {%- endif -%}
        {{ '<start_of_turn>model\n'}}
        {{ message["content"] | trim }}
    {%- elif (message['role'] == 'user') -%}
        {%- if message['content'] is none or message['content'] is not iterable or
            message['content'] | length != 1 -%}
            {{ raise_exception("A question is one mapping in a list.") }}
        {%- endif -%}
        {%- set content = message["content"][0] -%}
        {%- set source_lang_code = content["source_lang_code"] | replace("_", "-") -%}
        {%- set source_lang = languages[source_lang_code] -%}
        {%- set target_lang_code = content["target_lang_code"] | replace("_", "-") -%}
        {%- set target_lang = languages[target_lang_code] -%}
        {{ '<start_of_turn>user\nYou translate ' + source_lang + ' (' + source_lang_code + ') to ' +
           target_lang + ' (' + target_lang_code + '). Keep to its grammar, '
           'vocabulary, and manners.\n'
        }}
        {%- if content["type"] == 'text' -%}
            {{
                'Translate this into ' + target_lang + ':\n\n\n' +
                content["text"] | trim
            }}
        {%- elif content["type"] == 'image' -%}
            {{ '<start_of_image>' }}
        {%- endif -%}
    {%- else -%}
        {{ raise_exception("There are questions and answers alone.") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\n'}}
{%- endif -%}
"""

_HARMONY = """{{- '<|start|>system<|message|>You are ChatGPT.\nCurrent date: ' }}
{{- strftime_now('%Y-%m-%d') + '\n\n' }}
{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}
{{- 'Reasoning: ' + reasoning_effort + '\n\n# Valid channels: analysis, commentary, final.' }}
{{- '<|end|>' }}
{%- if messages[0].role == 'developer' or messages[0].role == 'system' %}
{%- set developer_message = messages[0].content %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set developer_message = '' %}{%- set loop_messages = messages %}{%- endif %}
{%- if developer_message or tools %}{{- '<|start|>developer<|message|>' }}
{%- if developer_message %}{{- '# Instructions\n\n' + developer_message + '\n\n' }}{%- endif %}
{%- if tools %}{{- '# Tools\n\n' + tools | tojson }}{%- endif %}{{- '<|end|>' }}{%- endif %}
{%- set last_tool_call = namespace(name=none) %}
{%- for message in loop_messages %}{%- if message.role == 'assistant' %}
{%- if 'content' in message and '<|channel|>analysis<|message|>' in message.content %}
{{- raise_exception('channels in the content') }}{%- endif %}
{%- if 'tool_calls' in message %}{%- set tool_call = message.tool_calls[0] %}
{%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
{{- '<|start|>assistant to=functions.' + tool_call.name + '<|channel|>commentary json<|message|>' }}
{{- tool_call.arguments | tojson + '<|call|>' }}{%- set last_tool_call.name = tool_call.name %}
{%- elif loop.last and not add_generation_prompt %}
{%- if 'thinking' in message %}
{{- '<|start|>assistant<|channel|>analysis<|message|>' + message.thinking + '<|end|>' }}{%- endif %}
{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|return|>' }}
{%- else %}{{- '<|start|>assistant<|channel|>final<|message|>' + message.content + '<|end|>' }}
{%- set last_tool_call.name = none %}{%- endif %}
{%- elif message.role == 'tool' %}
{%- if last_tool_call.name is none %}{{- raise_exception('no call before it') }}{%- endif %}
{{- '<|start|>functions.' + last_tool_call.name + ' to=assistant<|channel|>commentary<|message|>' }}
{{- message.content | tojson + '<|end|>' }}
{%- elif message.role == 'user' %}{{- '<|start|>user<|message|>' + message.content + '<|end|>' }}
{%- endif %}{%- endfor %}{%- if add_generation_prompt %}<|start|>assistant{%- endif %}"""
SHAPES = {
    "gpt-oss: channels": Shape(
        "gpt_oss", _HARMONY, "<|startoftext|>", "<|return|>", tools=True
    ),
    "Hermes: a template for tools by name": Shape(
        "llama",
        str(join_named({"default": "{{bos_token}}" + _CHATML, "tool_use": _HERMES_TOOLS}, "")),
        "<s>", "<|im_end|>", tools=True, fences_calls=True,
    ),
    "Mistral: system text and tools before the last question": Shape(
        "llama", _MISTRAL, "<s>", "</s>", tools=True, differs="You answer briefly."
    ),
    "Mistral Nemo: a call must have an id": Shape(
        "mistral", _NEMO, "<s>", "</s>", differs="You answer briefly."
    ),
    "Nanbeige 4: another system prompt with tools": Shape(
        "llama", _NANBEIGE4, "<|im_start|>", "<|im_end|>", tools=True, fences_calls=True
    ),
    "Qwen3-Coder: no tools are not iterable": Shape(
        "qwen3", _QWEN3_CODER, None, "<|im_end|>", tools=True
    ),
    "Llama 3.1: tools as indented JSON": Shape(
        "llama", _LLAMA31, "<|begin_of_text|>", "<|eot_id|>", tools=True
    ),
    "Gemma: parts alone": Shape("gemma3", _GEMMA_PARTS, "<bos>", "<end_of_turn>", PARTS),
    "FunctionGemma: calls in its own words": Shape(
        "gemma3_text", _FUNCTION_GEMMA, "<bos>", "<end_of_turn>", tools=True
    ),
    "TranslateGemma: languages in a part": Shape(
        "gemma3", _TRANSLATE_GEMMA, "<bos>", "<end_of_turn>", "source"
    ),
    "MiniCPM5: calls in XML": Shape("llama", _MINICPM5, "<s>", "<|im_end|>", tools=True),
    "R1: none for calls": Shape("qwen2", _R1_WITH_TOOLS, "<bos>", "<eos>"),
    "Yi: a question ends with the next answer's head": Shape(
        "llama",
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% endif %}"
        "{% if s is defined %}{{ '<|im_start|>system\n' + s + '<|im_end|>\n' }}{% endif %}"
        "{% for m in messages %}{% set content = m['content'] %}{% if m['role'] == 'user' %}"
        "{{ '<|im_start|>user\n' + content + '<|im_end|>\n<|im_start|>assistant\n' }}"
        "{% elif m['role'] == 'assistant' %}{{ content + '<|im_end|>' + '\n' }}{% endif %}"
        "{% endfor %}",
        None, "<|im_end|>",
    ),
    "DPO: the assistant's text is marked": Shape(
        "qwen2",
        "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{%- generation -%}{{ m['content'] + '<|im_end|>' }}{%- endgeneration -%}{{ '\n' }}"
        "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
        "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
        None, "<|im_end|>",
    ),
    "Vicuna: an answer begins with a space": Shape(
        "llama",
        "{{ messages[0]['content'] + ' ' if messages[0]['role'] == 'system' else 'A chat. ' }}"
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'].strip() }}"
        "{% elif m['role'] == 'assistant' %}"
        "{{ ' ASSISTANT: ' + m['content'].strip() + eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}",
        "<s>", "</s>",
    ),
    "GLM-4: the next role ends a turn": Shape("glm", _GLM4, None, "<|endoftext|>"),
    "GLM-Edge: the next role ends a turn": Shape(
        "glm",
        "{% for item in messages %}{% if item['role'] == 'system' %}<|system|>\n"
        "{{ item['content'] }}{% elif item['role'] == 'user' %}<|user|>\n{{ item['content'] }}"
        "{% elif item['role'] == 'assistant' %}<|assistant|>\n{{ item['content'] }}{% endif %}"
        "{% endfor %}<|assistant|>",
        None, "<|endoftext|>",
    ),
    "Granite Code: no end of turn": Shape(
        "llama",
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ 'System:\n' + m['content'] }}"
        "{% elif m['role'] == 'user' %}{{ 'Question:\n' + m['content'] }}"
        "{% else %}{{ 'Answer:\n' + m['content'] }}{% endif %}{{ '\n\n' }}"
        "{% if loop.last and add_generation_prompt %}{{ 'Answer:\n' }}{% endif %}{% endfor %}",
        "<|endoftext|>", "<|endoftext|>",
    ),
    "Falcon 3: the last answer has no newline": Shape(
        "llama",
        "{% for m in messages %}{% if m['role'] != 'assistant' %}"
        "{{ '<|' + m['role'] + '|>\n' + m['content'] + '\n' }}{% elif not loop.last %}"
        "{{ '<|assistant|>\n' + m['content'] + eos_token + '\n' }}{% else %}"
        "{{ '<|assistant|>\n' + m['content'] + eos_token }}{% endif %}"
        "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
        "{% endfor %}",
        None, "<|endoftext|>",
    ),
    "Llama 3: bos in the first turn's text": Shape(
        "llama",
        "{% for m in messages %}{% set c = '<|start_header_id|>' + m['role'] + "
        "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
        "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}",
        "<|begin_of_text|>", "<|eot_id|>",
    ),
}  # fmt: skip


def choose(shape: Shape | Template) -> TemplateReport:
    return choose_template(
        shape.template,
        family=shape.family,
        templates=family_class(shape.family).templates,
        bos_token=shape.bos,
        eos_token=shape.eos,
        has_channel="think>" in shape.template,
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_carried_over(shape: Shape) -> None:
    report = choose(shape)
    assert report.chosen == shape.chosen
    assert (report.tools, report.fences_calls) == (shape.tools, shape.fences_calls)
    assert shape.differs in report.history_difference
    assert bool(shape.differs) == (not report.exact_history)


# --- In the engine ----------------------------------------------------------------------------


@pytest.mark.parametrize("end", [1, 3, 5])
def test_the_engine_prints_translations_as_published(end: int, translator: Any) -> None:
    """A part names the languages, later ones may leave them out."""
    shape = SHAPES["TranslateGemma: languages in a part"]
    turns = with_languages(TURNS[:end])
    expected = render_as_source(
        shape.template, turns, bos_token=shape.bos or "", eos_token=shape.eos
    )
    for form in (turns, [*turns[:1], *as_parts(TURNS[1:end])]):
        *history, question = form
        with translator.create_conversation(
            chat_template=choose(shape).template, messages=history
        ) as conversation:
            assert "<bos>" + conversation.render_message_to_string(question) == expected


def test_a_translator_that_takes_plain_messages_keeps_its_own_words() -> None:
    """Files that others made of TranslateGemma have the languages as settings."""
    shape = SHAPES["Gemma: parts alone"]
    names = "{% set from = source_lang_code %}{% set to = target_lang_code | default('English') %}"
    said = names + "{{ 'To ' ~ to ~ '. ' }}" + shape.template
    report = choose(shape._replace(template=said))
    assert report.runtime_prompt.startswith("To English. ")
    assert not report.translates


def test_a_translator_that_knows_other_languages_is_refused() -> None:
    shape = SHAPES["TranslateGemma: languages in a part"]
    with pytest.raises(UnsupportedError, match="does not render three turns, with languages"):
        choose(shape._replace(template=_TRANSLATE_GEMMA.replace('"en": "English",', "")))


def test_the_engine_prints_the_users_own_words(translator: Any) -> None:
    template = choose(SHAPES["TranslateGemma: languages in a part"]).template
    *history, _ = [{"role": "system", "content": "You answer briefly."}, *TURNS[:3]]
    with translator.create_conversation(chat_template=template, messages=history) as conversation:
        assert conversation.render_message_to_string("Alive?") == (
            "<start_of_turn>user\nYou answer briefly.\n\nWhat is in the box?<end_of_turn>\n"
            "<start_of_turn>model\nA cat.<end_of_turn>\n"
            "<start_of_turn>user\nAlive?<end_of_turn>\n<start_of_turn>model\n"
        )


@pytest.fixture(scope="module")
def translator(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine with the model type that a Gemma gets."""

    def is_gemma(metadata: Any) -> None:
        metadata.llm_model_type.gemma3.SetInParent()

    yield from engine_of(smollm2_bundle, tmp_path_factory, is_gemma)


@pytest.fixture(scope="module")
def caller(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An engine with the model type that fenced tool calls get."""

    def reads_calls(metadata: Any) -> None:
        metadata.llm_model_type.qwen2p5.SetInParent()

    yield from engine_of(smollm2_bundle, tmp_path_factory, reads_calls)


def engine_of(
    bundle: Path, tmp_path_factory: pytest.TempPathFactory, edit: Callable[[Any], None]
) -> Iterator[Any]:
    import litert_lm

    path = tmp_path_factory.mktemp("edited") / "edited.litertlm"
    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(edited_bundle(bundle, path, edit))) as engine:
        yield engine


def open_box(box: str) -> str:
    """Opens a box."""
    return box


WITH_TOOLS = {name: shape for name, shape in {**SHAPES, **FAMILY_TEMPLATES}.items() if shape.tools}


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_the_engine_renders_tools_as_we_do(name: str, caller: Any) -> None:
    """A call in the history, and its result as the next message."""
    *history, result = as_parts(TOOL_TURNS)
    settings: dict[str, Any] = {"tools": [open_box], "automatic_tool_calling": False}
    with caller.create_conversation(chat_template="{{ tools | tojson }}", **settings) as probe:
        tools = json.loads(probe.render_message_to_string("hi"))
    template = choose(WITH_TOOLS[name]).template
    before = datetime.datetime.now(datetime.UTC)
    with caller.create_conversation(
        chat_template=template, messages=history, **settings
    ) as conversation:
        got = conversation.render_message_to_string(result)
    expected = [
        render_as_runtime(
            template, [*history, result], add_generation_prompt=True, tools=tools, now=moment
        )
        for moment in (before, datetime.datetime.now(datetime.UTC))
    ]
    assert "a cat" in got
    assert got in expected


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_call_is_not_fed_again(name: str) -> None:
    """Nor is one behind a result; whatever the function is called."""
    template = choose(WITH_TOOLS[name]).template
    function = {"name": "shake", "arguments": {"how": "gently"}}
    calls = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": function}],
    }
    result = {"role": "tool", "name": "shake", "content": "a noise"}
    history = [TOOL_TURNS[0], calls, result, calls, result]
    for count in (2, 4):
        before, after = (
            render_as_runtime(
                template, as_parts(history[:n]), add_generation_prompt=n > count, tools=TOOLS
            )
            for n in (count, count + 1)
        )
        assert before.count("gently") == count / 2
        assert after.startswith(before)
        assert "gently" not in after[len(before) :]
        assert "a noise" in after[len(before) :]
