"""Chat templates as families publish them: shorter, with the construct that is each one's own.

Text that a model is told by default is cut; what decides about turns is kept as it is.
"""

from __future__ import annotations

from typing import NamedTuple


class Template(NamedTuple):
    """A template and what the tokenizer of its model calls its tokens.

    Attributes:
        differs: of the text after the first turn, from the source's; "" where it is exact.
    """

    family: str
    template: str
    bos: str | None
    eos: str
    differs: str = ""


_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_PHI3 = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
    "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_PHI4_MINI = (
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + "
    "'<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)
_GEMMA2 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if (message['role'] == 'assistant') %}{% set role = 'model' %}"
    "{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
_GRANITE3 = """{%- if messages[0]['role'] == 'system' %}
     {%- set system_message = messages[0]['content'] %}
     {%- set loop_messages = messages[1:] %}
 {%- else %}
     {%- set system_message = "Date: " + strftime_now('%B %d, %Y') + ".\nYou are Granite." %}
     {%- if tools and documents %}
         {%- set system_message = system_message + " You have tools and documents." %}
     {%- elif tools %}
         {%- set system_message = system_message + " You have tools." %}
     {%- else %}
         {%- set system_message = system_message + " You are a helpful AI assistant." %}
     {%- endif %}
     {%- set loop_messages = messages %}
 {%- endif %}
 {{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\n' }}
 {%- if documents %}
     {{- '<|start_of_role|>documents<|end_of_role|>' }}
     {%- for document in documents %}{{- document['text'] }}{%- endfor %}
     {{- '<|end_of_text|>\n' }}
 {%- endif %}
 {%- for message in loop_messages %}
     {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}
     {{- message['content'] + '<|end_of_text|>\n' }}
     {%- if loop.last and add_generation_prompt %}
         {{- '<|start_of_role|>assistant' }}
             {%- if controls %}
                 {{- ' ' + controls | tojson()}}
             {%- endif %}
         {{- '<|end_of_role|>' }}
     {%- endif %}
 {%- endfor %}"""
_OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}"
    "{% else %}{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
_OLMO3 = """{%- set systems = messages|selectattr('role', 'equalto', 'system')|list -%}
{%- set has_system = systems|length > 0 -%}
{%- if not has_system -%}
    {{- '<|im_start|>system\nYou are Olmo. ' -}}
    {%- if tools is none -%}
        {{- 'You do not currently have access to any functions. <functions></functions>' -}}
    {%- else -%}
        {{- 'You have functions. <functions>' -}}{{- tools | tojson -}}{{- '</functions>' -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {{- '<|im_start|>system\n' + message['content'] -}}
        {%- if message.get('functions', none) is not none -%}
            {{- ' <functions>' + message['functions'] + '</functions>' -}}
        {%- endif -%}
        {{- '<|im_end|>\n' -}}
    {%- elif message['role'] == 'user' -%}
        {{- '<|im_start|>user\n' + message['content'] + '<|im_end|>\n' -}}
    {%- elif message['role'] == 'assistant' -%}
        {{- '<|im_start|>assistant\n' -}}
        {%- if message.get('content', none) is not none -%}{{- message['content'] -}}{%- endif -%}
        {%- if not loop.last -%}{{- '<|im_end|>' + '\n' -}}
        {%- else -%}{{- eos_token -}}{%- endif -%}
    {%- endif -%}
    {%- if loop.last and add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}
{%- endfor -%}"""
_ERNIE = """{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}{%- set cls_token = "<|begin_of_sentence|>" -%}{%- endif -%}
{%- if not eos_token is defined -%}{%- set eos_token = "</s>" -%}{%- endif -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " + message["content"] + "\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "Assistant: " + message["content"] + eos_token -}}
    {%- elif message["role"] == "system" -%}
        {{- message["content"] + "\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "Assistant: " -}}{%- endif -%}"""
_EXAONE4 = """{%- if not skip_think is defined %}{%- set skip_think = true %}{%- endif %}
{%- set role_indicators = {
    'user': '[|user|]\n', 'assistant': '[|assistant|]\n', 'system': '[|system|]\n',
} %}
{%- set end_of_turn = '[|endofturn|]\n' %}
{%- for i in range(messages | length) %}
    {%- set msg = messages[i] %}
    {%- set role = msg.role %}
    {%- if role not in role_indicators %}
        {{- raise_exception('Unknown role: ' ~ role) }}
    {%- endif %}
    {%- if i == 0 %}
        {%- if role == 'system' %}
            {{- role_indicators['system'] }}
            {{- msg.content }}
            {{- end_of_turn -}}
            {%- continue %}
        {%- endif %}
    {%- endif %}
    {%- if role == 'assistant' %}
        {{- role_indicators['assistant'] }}
        {%- if msg.content %}
            {%- if "</think>" in msg.content %}
                {%- set content = msg.content.split('</think>')[-1].strip() %}
                {%- set reasoning_content = msg.content.split('</think>')[0].strip() %}
            {%- else %}
                {%- set content = msg.content %}
            {%- endif %}
            {%- if (not skip_think and loop.last) and reasoning_content is defined %}
                {{- "<think>\n" }}{{- reasoning_content }}{{- "\n</think>\n\n" }}
            {%- else %}
                {{- "<think>\n\n</think>\n\n" }}
            {%- endif %}
            {{- content }}
        {%- endif %}
        {{- end_of_turn }}
    {%- else %}
        {{- role_indicators[role] }}
        {{- msg.content }}
        {{- end_of_turn }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- role_indicators['assistant'] }}
    {%- if enable_thinking is defined and enable_thinking is true %}
        {{- "<think>\n" }}
    {%- else %}
        {{- "<think>\n\n</think>\n\n" }}
    {%- endif %}
{%- endif %}"""
_HUNYUAN = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}<begin>{{ system_message }}<system end>"
    "{% else %}{% set loop_messages = messages %}<begin>{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "<User>{{ message['content'] }}{% elif message['role'] == 'assistant' %}"
    "<Assistant>{{ message['content'] }}<answer end>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<Assistant>{% else %}<end>{% endif %}"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
)
_STABLELM = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
_COHERE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% elif false == true %}"
    "{% set loop_messages = messages %}{% set system_message = 'You are Command-R.' %}{% else %}"
    "{% set loop_messages = messages %}{% set system_message = false %}{% endif %}"
    "{% if system_message != false %}"
    "{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endif %}{% for message in loop_messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% set content = message['content'] %}{% if message['role'] == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"
)
_COHERE2 = (
    "{{ bos_token }}{% for message in messages %}"
    "{%- if message.role|lower == 'system' %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' }}"
    "{{ message.content + '<|END_OF_TURN_TOKEN|>' }}{%- elif message.role|lower == 'user' %}"
    "{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message.content + '<|END_OF_TURN_TOKEN|>' }}"
    "{%- elif message.role|lower in ['assistant', 'chatbot'] %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' + message.content }}"
    "{{ '<|END_RESPONSE|><|END_OF_TURN_TOKEN|>' }}{%- endif %}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"
)
_NEMOTRON = (
    "{{'<extra_id_0>System'}}{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{'\n' + message['content'].strip()}}{% if tools %}{{'\n'}}{% endif %}{% endif %}{% endfor %}"
    "{% if tools %}{% for tool in tools %}{{ '\n<tool> ' + tool|tojson + ' </tool>' }}{% endfor %}"
    "{% endif %}{{'\n\n'}}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '<extra_id_1>User\n' + message['content'].strip() + '\n' }}"
    "{% elif message['role'] == 'assistant' %}"
    "{{ '<extra_id_1>Assistant\n' + message['content'].strip() + '\n' }}"
    "{% elif message['role'] == 'tool' %}"
    "{{ '<extra_id_1>Tool\n' + message['content'].strip() + '\n' }}{% endif %}{% endfor %}"
    "{%- if add_generation_prompt %}{{'<extra_id_1>Assistant\n'}}{%- endif %}"
)
# Its repository is gated: the marks of Llama 3 with a role of its own, as those who ran it tell.
_JAIS2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% set role = 'ai' %}{% else %}{% set role = message['role'] %}{% endif %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>' + message['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>ai<|end_header_id|>' }}{% endif %}"
)
_SEED = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}"
    "{%- endif %}{%- if system_message %}{{ bos_token + 'system\n' + system_message + eos_token }}"
    "{%- endif %}{%- for message in loop_messages %}"
    "{%- if message.role in ['user', 'system'] %}"
    "{{ bos_token + message.role + '\n' + message.content + eos_token }}"
    "{%- elif message.role == 'assistant' %}{{ bos_token + message.role }}"
    "{%- if message.content is defined and message.content is string and "
    "message.content|trim|length > 0 %}{{ '\n' + message.content|trim + eos_token }}{%- endif %}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ bos_token + 'assistant\n' }}{%- endif %}"
)
_APERTUS = """{{ bos_token }}
{%- if messages and messages[0].role == 'system' -%}
    {{- '<|system_start|>' + messages[0].content + '<|system_end|>' -}}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {{- '<|system_start|>You are Apertus.<|system_end|>' -}}
    {%- set loop_messages = messages -%}
{%- endif -%}
{{- '<|developer_start|>Deliberation: disabled\nTool Capabilities: disabled<|developer_end|>' -}}
{%- set ns = namespace(in_assistant=false) -%}
{%- for message in loop_messages -%}
    {%- if message.role == 'user' -%}
        {%- if ns.in_assistant -%}
            {{- '<|assistant_end|>' -}}{%- set ns.in_assistant = false -%}
        {%- endif -%}
        {{- '<|user_start|>' + message.content + '<|user_end|>' -}}
    {%- elif message.role == 'assistant' -%}
        {%- if not ns.in_assistant -%}
            {{- '<|assistant_start|>' -}}{%- set ns.in_assistant = true -%}
        {%- endif -%}
        {{- message.content -}}
    {%- endif -%}
{%- endfor -%}
{%- if ns.in_assistant -%}{{- '<|assistant_end|>' -}}{%- endif -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}"""
_MINICPM = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{'<user>' + message['content'].strip() + '<AI>'}}{% else %}{{message['content'].strip()}}"
    "{% endif %}{% endfor %}"
)
_SMOLLM3 = """{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- if enable_thinking %}{%- set reasoning_mode = "/think" %}
{%- else %}{%- set reasoning_mode = "/no_think" %}{%- endif %}
{{- "<|im_start|>system\n" }}
{%- if messages[0].role == "system" %}
    {%- set system_message = messages[0].content %}
    {%- if "/no_think" in system_message %}{%- set reasoning_mode = "/no_think" %}{%- endif %}
    {%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() %}
{%- endif %}
{%- if "/system_override" in system_message %}
    {{- custom.replace("/system_override", "").rstrip() }}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- set today = strftime_now("%d %B %Y") %}
    {{- "Today Date: " ~ today ~ "\nReasoning Mode: " + reasoning_mode + "\n\n" }}
    {%- if custom %}{{- custom + "\n\n" }}{%- else %}{{- "You are SmolLM.\n\n" }}{%- endif %}
    {{- "<|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else "" %}
    {%- if message.role == "user" %}
        {{- "<|im_start|>" + message.role + "\n"  + content + "<|im_end|>\n" }}
    {%- elif message.role == "assistant" %}
        {%- generation %}
        {%- if reasoning_mode == "/think" %}
            {{- "<|im_start|>assistant\n" + content.lstrip("\n") + "<|im_end|>\n" }}
        {%- else %}
            {{- "<|im_start|>assistant\n" + "<think>\n\n</think>\n" + content.lstrip("\n") }}
            {{- "<|im_end|>\n" }}
        {%- endif %}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {%- if reasoning_mode == "/think" %}
        {{- "<|im_start|>assistant\n" }}
    {%- else %}
        {{- "<|im_start|>assistant\n" + "<think>\n\n</think>\n" }}
    {%- endif %}
{%- endif %}"""
_MINISTRAL3 = """{%- set default_system_message = 'You are Ministral. Today is ' + today + '.' %}
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{- '[SYSTEM_PROMPT]' -}}
    {%- if messages[0]['content'] is string %}
        {{- messages[0]['content'] -}}
    {%- else %}
        {%- for block in messages[0]['content'] %}
            {%- if block['type'] == 'text' %}{{- block['text'] }}
            {%- else %}{{- raise_exception('Only text chunks are supported.') }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '[/SYSTEM_PROMPT]' -}}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
    {%- if default_system_message != '' %}
        {{- '[SYSTEM_PROMPT]' + default_system_message + '[/SYSTEM_PROMPT]' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(index=0) %}
{%- for message in loop_messages %}
    {%- if message.role == 'user' or (message.role == 'assistant' and (message.tool_calls is not
        defined or message.tool_calls is none or message.tool_calls | length == 0)) %}
        {%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}
            {{- raise_exception('Roles must alternate.') }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{%- for message in loop_messages %}
    {%- if message['role'] == 'user' %}
        {%- if message['content'] is string %}
            {{- '[INST]' + message['content'] + '[/INST]' }}
        {%- elif message['content'] | length > 0 %}
            {{- '[INST]' }}
            {%- for block in message['content'] | sort(attribute='type', reverse=true) %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}{%- endif %}
            {%- endfor %}
            {{- '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {%- if message['content'] is string and message['content'] != '' %}
            {{- message['content'] }}
        {%- elif message['content'] | length > 0 %}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- eos_token }}
    {%- endif %}
{%- endfor %}""".replace("+ today +", "+ strftime_now('%Y-%m-%d') +")

_LFM2 = """{{- bos_token -}}
{%- set system_prompt = "" -%}
{%- set ns = namespace(system_prompt="") -%}
{%- if messages[0]["role"] == "system" -%}
    {%- set ns.system_prompt = messages[0]["content"] -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + ("\n" if ns.system_prompt else "") +
        "List of tools: <|tool_list_start|>[" -%}
    {%- for tool in tools -%}
        {%- if tool is not string -%}{%- set tool = tool | tojson -%}{%- endif -%}
        {%- set ns.system_prompt = ns.system_prompt + tool -%}
        {%- if not loop.last -%}{%- set ns.system_prompt = ns.system_prompt + ", " -%}{%- endif -%}
    {%- endfor -%}
    {%- set ns.system_prompt = ns.system_prompt + "]<|tool_list_end|>" -%}
{%- endif -%}
{%- if ns.system_prompt -%}
    {{- "<|im_start|>system\n" + ns.system_prompt + "<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message["role"] + "\n" -}}
    {%- set content = message["content"] -%}
    {%- if content is not string -%}{%- set content = content | tojson -%}{%- endif -%}
    {%- if message["role"] == "tool" -%}
        {%- set content = "<|tool_response_start|>" + content + "<|tool_response_end|>" -%}
    {%- endif -%}
    {{- content + "<|im_end|>\n" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}"""
_LFM25 = """{{- bos_token -}}
{%- set keep_past_thinking = keep_past_thinking | default(false) -%}
{%- macro parse_content(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- set _ns = namespace(result="") -%}
        {%- for item in content -%}
            {%- if item.type == "text" -%}{%- set _ns.result = _ns.result + item.text -%}
            {%- else -%}{%- set _ns.result = _ns.result + item | tojson -%}{%- endif -%}
        {%- endfor -%}
        {{- _ns.result -}}
    {%- endif -%}
{%- endmacro -%}
{%- macro format_arg_value(arg_value) -%}
    {%- if arg_value is string -%}{{- '"' + arg_value + '"' -}}
    {%- elif arg_value is mapping -%}{{- arg_value | tojson -}}
    {%- else -%}{{- arg_value | string -}}{%- endif -%}
{%- endmacro -%}
{%- macro render_tool_calls(tool_calls) -%}
    {%- set calls_ns = namespace(calls=[]) -%}
    {%- for call in tool_calls -%}
        {%- set args_ns = namespace(args=[]) -%}
        {%- for name, value in call.function.arguments.items() -%}
            {%- set args_ns.args = args_ns.args + [name + "=" + format_arg_value(value)] -%}
        {%- endfor -%}
        {%- set calls_ns.calls = calls_ns.calls +
            [call.function.name + "(" + (args_ns.args | join(", ")) + ")"] -%}
    {%- endfor -%}
    {{- "<|tool_call_start|>[" + (calls_ns.calls | join(", ")) + "]<|tool_call_end|>" -}}
{%- endmacro -%}
{%- set ns = namespace(system_prompt="", last_assistant_index=-1) -%}
{%- if messages[0].role == "system" -%}
    {%- set ns.system_prompt = parse_content(messages[0].content) -%}
    {%- set messages = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {%- set ns.system_prompt = ns.system_prompt + ("\n\n" if ns.system_prompt else "") +
        "Today's date: " + strftime_now("%Y-%m-%d") + "\n\nList of tools: " + (tools | tojson) -%}
{%- endif -%}
{%- if ns.system_prompt -%}
    {{- "<|im_start|>system\n" + ns.system_prompt + "<|im_end|>\n" -}}
{%- endif -%}
{%- for message in messages -%}
    {%- if message.role == "assistant" -%}
        {%- set ns.last_assistant_index = loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- "<|im_start|>" + message.role + "\n" -}}
    {%- if message.role == "assistant" -%}
        {%- generation -%}
        {%- if message.tool_calls is defined -%}
            {{- render_tool_calls(message.tool_calls) -}}
        {%- endif -%}
        {%- if message.content is defined -%}
            {%- set content = parse_content(message.content) -%}
            {%- if not keep_past_thinking and loop.index0 != ns.last_assistant_index -%}
                {%- if "</think>" in content -%}
                    {%- set content = content.split("</think>")[-1] | trim -%}
                {%- endif -%}
            {%- endif -%}
            {{- content + ("" if (continue_final_message and loop.last) else "<|im_end|>\n") -}}
        {%- endif -%}
        {%- endgeneration -%}
    {%- elif message.content is defined -%}
        {{- parse_content(message.content) + "<|im_end|>\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|im_start|>assistant\n" -}}{%- endif -%}"""

FAMILY_TEMPLATES = {
    "LFM2": Template("lfm2", _LFM2, "<|startoftext|>", "<|im_end|>"),
    "LFM2.5": Template("lfm2", _LFM25, "<|startoftext|>", "<|im_end|>", "A cat."),
    "Phi-3": Template("phi3", _PHI3, "<s>", "<|endoftext|>"),
    "Phi-4-mini": Template("phi3", _PHI4_MINI, "<|endoftext|>", "<|endoftext|>"),
    "Gemma 1 and 2": Template("gemma2", _GEMMA2, "<bos>", "<eos>"),
    "Granite 3": Template("granite", _GRANITE3, "<|end_of_text|>", "<|end_of_text|>"),
    "OLMo 2": Template("olmo2", _OLMO2, "<|endoftext|>", "<|endoftext|>"),
    "OLMo 3": Template("olmo3", _OLMO3, "<|endoftext|>", "<|im_end|>"),
    "ERNIE 4.5": Template("ernie4_5", _ERNIE, "<s>", "</s>"),
    "EXAONE 4": Template("exaone4", _EXAONE4, "[BOS]", "[|endofturn|]"),
    "Hunyuan": Template("hunyuan_v1_dense", _HUNYUAN, "<begin>", "<answer end>", "It meows."),
    "StableLM Zephyr": Template("stablelm", _STABLELM, "<|endoftext|>", "<|endoftext|>"),
    "Command R": Template("cohere", _COHERE, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "Command R7B": Template("cohere2", _COHERE2, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "Nemotron Mini": Template("nemotron", _NEMOTRON, "<s>", "</s>"),
    "Jais 2": Template("jais2", _JAIS2, "<|begin_of_text|>", "<|eot_id|>"),
    "Seed-OSS": Template("seed_oss", _SEED, "<seed:bos>", "<seed:eos>"),
    "Apertus": Template("apertus", _APERTUS, "<s>", "<|assistant_end|>"),
    "Arcee AFM": Template("arcee", "{{ bos_token }}" + _CHATML, "<|begin_of_text|>", "<|im_end|>"),
    "MiniCPM": Template("minicpm", _MINICPM, "<s>", "</s>"),
    "MiniCPM4": Template("minicpm", _CHATML, "<s>", "<|im_end|>"),
    "InternLM 3": Template("internlm3", "{{ bos_token }}" + _CHATML, "<s>", "<|im_end|>"),
    "SmolLM3": Template("smollm3", _SMOLLM3, None, "<|im_end|>", "It meows."),
    "Ministral 3": Template("ministral3", _MINISTRAL3, "<s>", "</s>"),
}
