"""Chat templates as families publish them: shorter, with the construct that is each one's own.

Text that a model is told by default is cut; what decides about turns is kept as it is.
"""

from __future__ import annotations

from typing import NamedTuple


class Template(NamedTuple):
    """A template and what the tokenizer of its model calls its tokens.

    Attributes:
        differs: of the text after the first turn, from the source's; "" where it is exact.
        tools: it prints tools, calls and results, and so does the engine.
    """

    family: str
    template: str
    bos: str | None
    eos: str
    differs: str = ""
    tools: bool = False


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
_GRANITE4 = """{%- set tools_prefix = 'You may call these:\\n<tools>'  %}
{%- set tools_suffix = '\\n</tools>\\n{\\"name\\": <name>}. Don\\'t make others up.' %}
{%- if available_tools is defined and available_tools %}
    {%- set tools = available_tools %}
{%- endif %}
{%- set ns = namespace(tools_system_message=tools_prefix,
                       default_system_message='You are a helpful assistant.',
                       system_message=''
                       ) %}
{%- if tools %}
    {%- for tool in tools %}
        {%- set ns.tools_system_message = ns.tools_system_message + '\\n' + (tool | tojson) %}
    {%- endfor %}
    {%- set ns.tools_system_message = ns.tools_system_message + tools_suffix %}
{%- else %}
    {%- set ns.tools_system_message = '' %}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- if messages[0].content is string %}
        {%- set ns.system_message = messages[0].content %}
    {%- elif messages[0].content is iterable %}
        {%- for entry in messages[0].content %}
            {%- if entry.type== 'text' %}
                {%- if ns.system_message != '' %}
                    {%- set ns.system_message = ns.system_message + '\\n' %}
                {%- endif %}
                {%- set ns.system_message = ns.system_message + entry.text %}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if tools and documents %}
        {{- raise_exception('not here') }}
    {%- elif tools %}
        {%- set ns.system_message = ns.system_message + '\\n\\n' + ns.tools_system_message %}
    {%- endif %}
{%- elif tools %}
    {%- set ns.system_message = ns.tools_system_message %}
{%- endif %}
{%- if ns.system_message %}
    {{- '<|start_of_role|>system<|end_of_role|>' + ns.system_message + '<|end_of_text|>\\n' }}
{%- else %}
    {{- '<|start_of_role|>system<|end_of_role|>' + ns.default_system_message }}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = namespace(val='') %}
    {%- if message.content is string %}
        {%- set content.val = message.content %}
    {%- else %}
        {%- if message.content is iterable %}
            {%- for entry in message.content %}
                {%- if entry.type== 'text' %}
                    {%- if content.val != '' %}
                        {%- set content.val = content.val + '\\n' %}
                    {%- endif %}
                    {%- set content.val = content.val + entry.text %}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
    {%- endif %}
    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val }}
        {{- '<|end_of_text|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|start_of_role|>' + message.role + '<|end_of_role|>' + content.val }}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content.val) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
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
        {{- '<|end_of_text|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') %}
            {{- '<|start_of_role|>user<|end_of_role|>' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- content.val }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}
            {{- '<|end_of_text|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
{%- endif %}"""
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
    'tool': '[|tool|]\n'
} %}
{%- set end_of_turn = '[|endofturn|]\n' %}
{%- macro available_tools(tools) %}
    {{- "# Available Tools" }}
    {{- "\nYou can use none, one, or more of them to help with the user\u2019s query.\n" }}
    {%- for tool in tools %}
        {{- "<tool>" }}
        {{- tool | tojson(ensure_ascii=False) | safe }}
        {{- "</tool>\n" }}
    {%- endfor %}
    {{- '\nAnswer so: <tool_call>{"name": name, "arguments": {...}}</tool_call>' }}
{%- endmacro %}
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
            {%- if tools is defined and tools %}
                {{- "\n\n" }}{{- available_tools(tools) }}
            {%- endif %}
            {{- end_of_turn -}}
            {%- continue %}
        {%- elif tools is defined and tools %}
            {{- role_indicators['system'] }}
            {{- available_tools(tools) }}
            {{- end_of_turn -}}
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
        {%- if msg.tool_calls %}
            {%- if msg.content %}
                {{- "\n" }}
            {%- else %}
                {{- "<think>\n\n</think>\n\n" }}
            {%- endif %}
            {%- for tool_call in msg.tool_calls %}
                {%- if tool_call.function is defined %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {%- if tool_call.arguments is defined %}
                    {%- set arguments = tool_call.arguments %}
                {%- else %}
                    {{- raise_exception('no arguments: ' ~ tool_call) }}
                {%- endif %}
                {{- "<tool_call>" }}{"name": "{{- tool_call.name }}", "arguments":
                {{- arguments | tojson(ensure_ascii=False) | safe }}}{{- "</tool_call>" }}
                {%- if not loop.last %}
                    {{- "\n" }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- end_of_turn -}}
    {%- elif role == "tool" %}
        {%- if i == 0 or messages[i - 1].role != "tool" %}
            {{- role_indicators['tool'] }}
        {%- endif %}
        {%- if msg.content is defined %}
            {{- "<tool_result>" }}{"result": {{ msg.content | tojson(ensure_ascii=False) }}}
            {{- "</tool_result>" }}
        {%- endif %}
        {%- if loop.last or messages[i + 1].role != "tool" %}
            {{- end_of_turn -}}
        {%- else %}
            {{- "\n" }}
        {%- endif %}
    {%- else %}
        {{- role_indicators[role] }}
        {{- msg.content }}
        {{- end_of_turn -}}
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
    "{% set system_message = messages[0]['content'] %}<|begin▁|>{{ system_message }}<|no▁3|>"
    "{% else %}{% set loop_messages = messages %}<|begin▁|>{% endif %}"
    "{% for message in loop_messages %}{% if message['role'] == 'user' %}"
    "<|User|>{{ message['content'] }}{% elif message['role'] == 'assistant' %}"
    "<|Assistant|>{{ message['content'] }}<|no▁2|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{% else %}<|no▁8|>{% endif %}"
    "{%- if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n{% endif %}"
).replace("|", "\uff5c")
# The sandbox refuses `update`, and so does the engine: it is never called.
_HUNYUAN_HEAD = (
    "{% set context = {'has_head': true} %}{% for message in messages %}"
    "{% set content = message['content'] %}{% if loop.index0 == 0 %}{% if content == '' %}"
    "{% set _ = context.update({'has_head': false}) %}{% elif message['role'] == 'system' %}"
    "{% set content = '<begin>' + content + '<system end>' %}{% endif %}{% endif %}"
    "{% if message['role'] == 'user' %}{% if loop.index0 == 1 and not context.has_head %}"
    "{% set content = '<begin>' + content %}{% endif %}"
    "{% if loop.index0 == 1 and context.has_head %}{% set content = content + '<ask end>' %}"
    "{% else %}{% set content = '<begin>' + content + '<ask end>' %}{% endif %}"
    "{% elif message['role'] == 'assistant' %}{% set content = content + '<answer end>' %}"
    "{% endif %}{{ content }}{% endfor %}"
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
_SEED = """{# ----------\u2011 tokens \u2011---------- #}
{%- set bos_token              = '<seed:bos>'               -%}
{%- set eos_token              = '<seed:eos>'               -%}
{%- set think_begin_token      = '<seed:think>'             -%}
{%- set think_end_token        = '</seed:think>'            -%}
{%- if not thinking_budget is defined %}
{%- set thinking_budget = -1 -%}
{%- endif -%}
{%- set reflections = {
     0:      0,
     512:    128,
     16384:  1024
} -%}
{%- set ns = namespace(interval = None) -%}
{%- for k, v in reflections | dictsort -%}
    {%- if ns.interval is none and thinking_budget <= k -%}
        {%- set ns.interval = v -%}
    {%- endif -%}
{%- endfor -%}
{%- if ns.interval is none -%}
    {%- set ns.interval = reflections[16384] -%}
{%- endif -%}
{%- if messages[0]["role"] == "system" %}
{%- set system_message = messages[0]["content"] %}
{%- set loop_messages = messages[1:] %}
{%- else %}
{%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined or tools is none %}
{%- set tools = [] %}
{%- endif %}
{%- macro py_type(t) -%}
    {%- if t == "string" -%}str
    {%- elif t in ("number", "integer") -%}int
    {%- else -%}Any{%- endif -%}
{%- endmacro -%}
{%- if system_message is defined %}
{{ bos_token + "system\\n" + system_message }}
{%- else %}
{%- if tools is iterable and tools | length > 0 %}
{{ bos_token + "system\\nYou may call functions." }}
{%- endif %}
{%- endif %}
{%- if use_json_tooldef is defined and use_json_tooldef %}

{{"Tool List:"}}
{{ tools | tojson(ensure_ascii=False) }}
{%- else %}
{%- for item in tools if item.type == "function" %}


Function:
def {{ item.function.name }}(
{%- for name, spec in item.function.parameters.properties.items() %}
        {{- name }}: {{ py_type(spec.type) }}{% if not loop.last %},{% endif %}
{%- endfor %}):
    {{ item.function.description | trim }}

    {%- if item.function.parameters.properties %}
    Args:
    {%- for name, spec in item.function.parameters.properties.items() %}

    - {{ name }} ({{ py_type(spec.type) }})
      {%- if name in item.function.parameters.required %} [必填]{% else %} [选填]{% endif %}:
      {{- " " ~ (spec.description or "") }}
    {%- endfor %}
    {%- endif %}
    {%- if item.function.returns is defined
          and item.function.returns.properties is defined
          and item.function.returns.properties %}
    Returns:
    {%- endif %}

{%- endfor %}
{%- endif %}
{%- if system_message is defined or tools is iterable and tools | length > 0 %}
{{ eos_token }}
{%- endif %}
{%- if thinking_budget is defined %}
{%- if thinking_budget == 0 %}
{{ bos_token+"system" }}
{{ "Do not think." }}
{{ eos_token }}
{%- elif not thinking_budget == -1 %}
{{ bos_token+"system" }}
{{ "Think for "}}{{thinking_budget}}{{" tokens and reflect every "}}{{ns.interval}}{{"."}}
{{ eos_token }}
{%- endif %}
{%- endif %}
{%- for message in loop_messages %}
{%- if message.role == "assistant"
  and message.tool_calls is defined
  and message.tool_calls is iterable
  and message.tool_calls | length > 0 %}
{{ bos_token + message.role }}
{%- if message.content is defined and message.content is string and
    message.content | trim | length > 0 %}
{{ "\\n" + message.content | trim + "\\n" }}
{%- endif %}
{%- for tool_call in message.tool_calls %}
{%- if tool_call.function is defined %}{% set tool_call = tool_call.function %}{% endif %}
{{ "\\n<seed:tool_call>\\n<function=" + tool_call.name + ">\\n" }}
{%- if tool_call.arguments is defined %}
{%- for arg_name, arg_value in tool_call.arguments | items %}
{{ "<parameter=" + arg_name + ">" }}
{%- set arg_value = arg_value if arg_value is string else arg_value | string %}
{{ arg_value+"</parameter>\\n" }}
{%- endfor %}
{%- endif %}
{{ "</function>\\n</seed:tool_call>" }}
{%- endfor %}
{{ eos_token }}
{%- elif message.role in ["user", "system"] %}
{{ bos_token + message.role + "\\n" + message.content + eos_token }}
{%- elif message.role == "assistant" %}
{{ bos_token + message.role }}
{%- if message.reasoning_content is defined and message.reasoning_content is string and
    message.reasoning_content | trim | length > 0 %}
{{ "\\n" + think_begin_token + message.reasoning_content | trim + think_end_token }}
{%- endif %}
{%- if message.content is defined and message.content is string and
    message.content | trim | length > 0 %}
{{ "\\n" + message.content | trim + eos_token }}
{%- endif %}
{%- else %}
{{ bos_token + message.role + "\\n" + message.content + eos_token }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{ bos_token+"assistant\\n" }}
{%- if thinking_budget == 0 %}
{{ think_begin_token + "\\nI answer directly.\\n" + think_end_token }}
{%- endif %}
{%- endif %}"""
_APERTUS = """{%- macro type_of(spec, required_params, is_nullable=false) -%}
    {%- if spec.type == "array" -%}
        {%- set inner_type = type_of(spec['items'], required_params) -%}
        {%- if inner_type|length > 50 -%}{{- "any[]" }}
        {%- else -%}{{- inner_type + "[]" }}{%- endif -%}
    {%- elif spec.type is defined and spec.type is iterable and spec.type is not string and
        spec.type is not mapping and spec.type[0] is defined -%}
        {{- spec.type | join(" | ") }}
    {%- elif spec.type == "string" -%}
        {%- if spec.enum -%}{{- '"' + spec.enum|join('" | "') + '"' -}}
        {%- else -%}{{- "string" }}{%- if spec.nullable %}{{- " | null" }}{%- endif -%}{%- endif -%}
    {%- else -%}{{- "any" }}{%- endif -%}
{%- endmacro -%}
{%- macro render_tools(tools) -%}
    {%- for tool in tools %}
        {{- "// " + tool.function.description + "\\n" }}
        {{- "type "+ tool.function.name + " = " }}
        {%- if tool.function.parameters and tool.function.parameters.properties %}
            {{- "(_: {\\n" }}
            {%- for param_name, param_spec in tool.function.parameters.properties.items() %}
                {{- param_name }}
                {%- if param_name not in (tool.function.parameters.required or []) -%}
                    {{- "?" }}
                {%- endif -%}
                {{- ": " }}
                {{- type_of(param_spec, tool.function.parameters.required or []) }}
                {%- if param_spec.default is defined -%}
                    {{- ", // default: " + param_spec.default|tojson }}
                {%- endif -%}
                {%- if not loop.last %}{{- ",\\n" }}{%- else %}{{- "\\n" }}{%- endif -%}
            {%- endfor %}
            {{- "}) => any;" }}
        {%- else -%}
            {{- "() => any;" }}
        {%- endif -%}
        {%- if not loop.last -%}{{- "\\n" }}{%- endif -%}
    {%- endfor %}
{%- endmacro -%}
{{ bos_token }}
{%- set ns = namespace(in_assistant=false, in_tool=false, in_inner=false, format=none) -%}
{%- if messages and messages[0].role == 'system' -%}
    {%- if "content" in messages[0] -%}
        {%- if messages[0].content is string -%}
            {{ '<|system_start|>' + messages[0].content + '<|system_end|>' }}
        {%- elif messages[0].content is mapping and "text" in messages[0].content -%}
            {{ '<|system_start|>' + messages[0].content.text + '<|system_end|>' }}
        {%- else -%}
            {{- raise_exception("Invalid system message") -}}
        {%- endif -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {{ '<|system_start|>You are Apertus. Date: ' + strftime_now('%Y-%m-%d') + '<|system_end|>' }}
    {%- set loop_messages = messages -%}
{%- endif -%}
{{ '<|developer_start|>Deliberation: ' }}
{%- if enable_thinking is defined and enable_thinking -%}
    {{ 'enabled\\n' }}
{%- else -%}
    {{ 'disabled\\n' }}
{%- endif -%}
{%- if tools is defined and tools -%}
    {{ 'Tool Capabilities:\\n' + render_tools(tools) }}
{%- else -%}
    {{ 'Tool Capabilities: disabled' }}
{%- endif -%}
{{ '<|developer_end|>' }}
{%- for message in loop_messages -%}
    {%- if message.role == 'user' -%}
        {%- set ns.in_inner = false -%}
        {%- if ns.in_tool -%}{{ ']' }}{%- set ns.in_tool = false -%}{%- endif -%}
        {%- if ns.in_assistant -%}
            {{ '<|assistant_end|>' }}{%- set ns.in_assistant = false -%}
        {%- endif -%}
        {{ '<|user_start|>' }}
        {%- if message.content is string -%}
            {{ message.content }}
        {%- else -%}
            {{- raise_exception("Invalid user message: " + message.role) -}}
        {%- endif -%}
        {{ '<|user_end|>' }}
    {%- elif message.role == 'assistant' -%}
        {%- if not ns.in_assistant -%}
            {{ '<|assistant_start|>' }}{%- set ns.in_assistant = true -%}
        {%- endif -%}
        {%- if "content" in message and message.content is not none -%}
            {%- if message.content is string and (ns.format is none or ns.format == "string") -%}
                {%- if ns.in_tool -%}{{ ']' }}{%- set ns.in_tool = false -%}{%- endif -%}
                {%- set ns.format = "string" -%}
                {{ message.content }}
            {%- else -%}
                {{- raise_exception("Invalid '" + message.content + "', not " + ns.format) -}}
            {%- endif -%}
        {%- elif "tool_calls" not in message -%}
            {{- raise_exception("Invalid assistant message " + message) -}}
        {%- endif -%}
        {%- if "tool_calls" in message and message.tool_calls -%}
            {{ '<|tools_prefix|>[' }}
            {%- for tool_call in message.tool_calls -%}
                {%- set function = tool_call.function -%}
                {{- '{"' + function.name + '": ' + function.arguments|tojson + '}' }}
                {%- if not loop.last -%}{{- ", " }}{%- endif -%}
            {%- endfor -%}
            {{ ']<|tools_suffix|>' }}
        {%- endif -%}
    {%- elif message.role == 'tool' -%}
        {%- if not ns.in_tool -%}
            {{ '[' }}{%- set ns.in_tool = true -%}
        {%- else -%}
            {{ ", "}}
        {%- endif -%}
        {{ message.content }}
    {%- endif -%}
{%- endfor -%}
{%- if ns.in_tool -%}{{ ']' }}{%- endif -%}
{%- if add_generation_prompt -%}{{ '<|assistant_start|>' }}{%- endif -%}"""
_MINICPM = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{'<用户>' + message['content'].strip() + '<AI>'}}{% else %}{{message['content'].strip()}}"
    "{% endif %}{% endfor %}"
)
_SMOLLM3 = """{%- if enable_thinking is not defined %}{%- set enable_thinking = true %}{%- endif %}
{%- if enable_thinking %}{%- set reasoning_mode = "/think" %}
{%- else %}{%- set reasoning_mode = "/no_think" %}{%- endif %}
{{- "<|im_start|>system\n" }}
{%- if messages[0].role == "system" %}
    {%- set system_message = messages[0].content %}
    {%- if "/no_think" in system_message %}
        {%- set reasoning_mode = "/no_think" %}
    {%- elif "/think" in system_message %}
        {%- set reasoning_mode = "/think" %}
    {%- endif %}
    {%- set custom = system_message.replace("/no_think", "").replace("/think", "").rstrip() %}
{%- endif %}
{%- if "/system_override" in system_message %}
    {{- custom.replace("/system_override", "").rstrip() }}
    {{- "<|im_end|>\n" }}
{%- else %}
    {%- set today = strftime_now("%d %B %Y") %}
    {{- "Today Date: " ~ today ~ "\nReasoning Mode: " + reasoning_mode + "\n\n" }}
    {%- if custom %}{{- custom + "\n\n" }}{%- else %}{{- "You are SmolLM.\n\n" }}{%- endif %}
    {%- if xml_tools or python_tools or tools %}
        {{- "### Tools\n\n" }}
        {%- if xml_tools or tools %}
            {%- if tools %}{%- set xml_tools = tools %}{%- endif %}
            {%- set ns = namespace(xml_tool_string="<tools>\n") %}
            {%- for tool in xml_tools[:] %}
                {%- set ns.xml_tool_string = ns.xml_tool_string ~ (tool | string) ~ "\n" %}
            {%- endfor %}
            {{- ns.xml_tool_string + "</tools>" }}
        {%- endif %}
        {{- "\n\n" }}
    {%- endif %}
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
_MINISTRAL3 = """{#- Default system message if no system prompt is passed. #}
{%- set default_system_message = 'You are Ministral.\\nThe current date is {today}.\\n\\n\
When you\\'re not sure, ask (e.g. "When is the next flight?" => "Where from?", "yesterday" is \
{yesterday}).\\n\\n# WEB BROWSING\\n\\nYou cannot.' %}
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
{%- set tools_definition = '' %}
{%- set has_tools = false %}
{%- if tools is defined and tools is not none and tools|length > 0 %}
    {%- set has_tools = true %}
    {%- set tools_definition = '[AVAILABLE_TOOLS]' + (tools| tojson) + '[/AVAILABLE_TOOLS]' %}
    {{- tools_definition }}
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
        {%- if (message['content'] is none or message['content'] == '' or
            message['content']|length == 0) and (message['tool_calls'] is not defined or
            message['tool_calls'] is none or message['tool_calls']|length == 0) %}
            {{- raise_exception('Assistant message must say or call something.') }}
        {%- endif %}
        {%- if message['content'] is string and message['content'] != '' %}
            {{- message['content'] }}
        {%- elif message['content'] | length > 0 %}
            {%- for block in message['content'] %}
                {%- if block['type'] == 'text' %}{{- block['text'] }}{%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if message['tool_calls'] is defined and message['tool_calls'] is not none and
            message['tool_calls']|length > 0 %}
            {%- for tool in message['tool_calls'] %}
                {{- '[TOOL_CALLS]' }}
                {%- set name = tool['function']['name'] %}
                {%- set arguments = tool['function']['arguments'] %}
                {%- if arguments is not string %}
                    {%- set arguments = arguments|tojson|safe %}
                {%- elif arguments == '' %}
                    {%- set arguments = '{}' %}
                {%- endif %}
                {{- name + '[ARGS]' + arguments }}
            {%- endfor %}
        {%- endif %}
        {{- eos_token }}
    {%- elif message['role'] == 'tool' %}
        {{- '[TOOL_RESULTS]' + message['content']|string + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception('There is no role ' + message['role'] + '.') }}
    {%- endif %}
{%- endfor %}"""
_GEMMA3N = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Roles must alternate") }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'audio' -%}{{ '<audio_soft_token>' }}
            {%- elif item['type'] == 'image' -%}{{ '<image_soft_token>' }}
            {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
_GEMMA4_TOOLS = """{%- macro format_parameters(properties) -%}
    {%- for key, value in properties | dictsort -%}
        {%- set add_comma = false -%}
        {%- if not loop.first %},{% endif -%}
        {{ key }}:{
            {%- if value['description'] -%}
                description:<|"|>{{ value['description'] }}<|"|>
                {%- set add_comma = true -%}
            {%- endif -%}
            {%- if add_comma %},{%- else -%} {%- set add_comma = true -%} {% endif -%}
            type:<|"|>{{ value['type'] | upper }}<|"|>}
    {%- endfor -%}
{%- endmacro -%}
{%- macro format_function_declaration(tool_data) -%}
    declaration:{{- tool_data['function']['name'] -}}
    {description:<|"|>{{- tool_data['function']['description'] -}}<|"|>
    {%- set params = tool_data['function']['parameters'] -%}
    {%- if params -%}
        ,parameters:{properties:{ {{- format_parameters(params['properties']) -}} },
        {%- if params['required'] -%}
            required:{{ format_argument(params['required']) }},
        {%- endif -%}
        type:<|"|>{{- params['type'] | upper -}}<|"|>}
    {%- endif -%}
    }
{%- endmacro -%}
{%- macro format_argument(argument, escape_keys=True) -%}
    {%- if argument is string -%}
        {{- '<|"|>' + argument + '<|"|>' -}}
    {%- elif argument is boolean -%}
        {{- 'true' if argument else 'false' -}}
    {%- elif argument is mapping -%}
        {{- '{' -}}
        {%- for key, value in argument | dictsort -%}
            {%- if not loop.first %},{% endif -%}
            {{- ('<|"|>' + key + '<|"|>') if escape_keys else key -}}
            :{{- format_argument(value, escape_keys=escape_keys) -}}
        {%- endfor -%}
        {{- '}' -}}
    {%- elif argument is sequence -%}
        {{- '[' -}}
        {%- for item in argument -%}
            {{- format_argument(item, escape_keys=escape_keys) -}}
            {%- if not loop.last %},{% endif -%}
        {%- endfor -%}
        {{- ']' -}}
    {%- else -%}
        {{- argument -}}
    {%- endif -%}
{%- endmacro -%}
"""
_GEMMA4_HEAD = """{{ bos_token }}
{%- set ns = namespace(prev=None) -%}
{%- set loop_messages = messages -%}
{%- set thinking = enable_thinking is defined and enable_thinking -%}
{%- if thinking or tools or messages[0]['role'] in ['system', 'developer'] -%}
    {{- '<|turn>system\n' -}}
    {%- if thinking -%}{{- '<|think|>\n' -}}{%- endif -%}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {%- if messages[0]['content'] is string -%}
            {{- messages[0]['content'] | trim -}}
        {%- elif messages[0]['content'] is sequence -%}
            {%- for item in messages[0]['content'] -%}
                {%- if item['type'] == 'text' -%}{{- item['text'] | trim -}}{%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- set loop_messages = messages[1:] -%}
    {%- endif -%}
    {%- if tools -%}
        {%- if messages[0]['role'] in ['system', 'developer'] %}{{- '\n' -}}{% endif -%}
        {%- for tool in tools %}
            {{- '<|tool>' -}}{{- format_function_declaration(tool) | trim -}}{{- '<tool|>' -}}
        {%- endfor %}
    {%- endif -%}
    {{- '<turn|>\n' -}}
{%- endif %}
"""
# E2B and E4B: a result is a part, never a text; an answer may begin with a thought or not.
GEMMA4_SMALL = (
    _GEMMA4_TOOLS
    + _GEMMA4_HEAD
    + """{%- for message in loop_messages -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {%- if role != 'tool' -%}
        {%- if not (role == 'model' and ns.prev == 'tool_response') -%}
            {{- '<|turn>' + role + '\n' }}
        {%- endif -%}
    {%- endif -%}
    {%- if message['tool_calls'] -%}
        {%- for tool_call in message['tool_calls'] -%}
            {%- set function = tool_call['function'] -%}
            {{- '<|tool_call>call:' + function['name'] -}}
            {%- if function['arguments'] is mapping -%}
                {{- format_argument(function['arguments'], escape_keys=False) + '<tool_call|>' -}}
            {%- elif function['arguments'] is string -%}
                {{- '{' + function['arguments'] + '}<tool_call|>' -}}
            {%- endif -%}
        {%- endfor -%}
        {%- set ns.prev = 'tool_call' -%}
    {%- endif -%}
    {%- if role == 'tool' and message['content'] is sequence -%}
        {%- for item in message['content'] -%}
            {{- '<|tool_response>response:' + item['name'] | default('unknown') -}}
            {%- if item['response'] is mapping -%}
                {{- format_argument(item['response'], escape_keys=False) -}}
            {%- else -%}
                {{- '{value:' + format_argument(item['response'], escape_keys=False) + '}' -}}
            {%- endif -%}
            {{- '<tool_response|>' -}}
        {%- endfor -%}
        {%- set ns.prev = 'tool_response' -%}
    {%- else -%}
        {%- if message['content'] is string -%}
            {{- message['content'] | trim -}}
        {%- elif message['content'] is sequence -%}
            {%- for item in message['content'] -%}
                {%- if item['type'] == 'text' -%}{{- item['text'] | trim -}}
                {%- elif item['type'] == 'image' -%}{{- '\n\n<|image|>\n\n' -}}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- if not message['tool_calls'] -%}{%- set ns.prev = None -%}{%- endif -%}
    {%- endif -%}
    {%- if ns.prev == None -%}{{- '<turn|>\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if ns.prev != 'tool_response' and ns.prev != 'tool_call' -%}
        {{- '<|turn>model\n' -}}
    {%- elif ns.prev == 'tool_response' and thinking -%}
        {{- '<|channel>thought\n' -}}
    {%- endif -%}
{%- endif -%}
"""
)
# 26B and 31B: results are looked for behind their call; thoughts are cut out of answers; without
# thinking a prompt ends with an empty thought.
GEMMA4_LARGE = (
    _GEMMA4_TOOLS
    + """{%- macro strip_thinking(text) -%}
    {%- set ns = namespace(result='') -%}
    {%- for part in text.split('<channel|>') -%}
        {%- if '<|channel>' in part -%}
            {%- set ns.result = ns.result + part.split('<|channel>')[0] -%}
        {%- else -%}
            {%- set ns.result = ns.result + part -%}
        {%- endif -%}
    {%- endfor -%}
    {{- ns.result | trim -}}
{%- endmacro -%}
"""
    + _GEMMA4_HEAD
    + """{%- for message in loop_messages -%}
    {%- if message['role'] != 'tool' -%}
        {%- set ns.prev = None -%}
        {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
        {%- set before = namespace(role=None, found=false) -%}
        {%- for j in range(loop.index0 - 1, -1, -1) -%}
            {%- if not before.found and loop_messages[j]['role'] != 'tool' -%}
                {%- set before.role = loop_messages[j]['role'] -%}
                {%- set before.found = true -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if not (role == 'model' and before.role == 'assistant') -%}
            {{- '<|turn>' + role + '\n' }}
        {%- endif -%}
        {%- set thinking_text = message.get('reasoning') or message.get('reasoning_content') -%}
        {%- if thinking_text and message.get('tool_calls') -%}
            {{- '<|channel>thought\n' + thinking_text + '\n<channel|>' -}}
        {%- endif -%}
        {%- set has_result = namespace(flag=false) -%}
        {%- if message['tool_calls'] -%}
            {%- for tool_call in message['tool_calls'] -%}
                {%- set function = tool_call['function'] -%}
                {{- '<|tool_call>call:' + function['name'] -}}
                {{- format_argument(function['arguments'], escape_keys=False) + '<tool_call|>' -}}
            {%- endfor -%}
            {%- set ns.prev = 'tool_call' -%}
            {%- set scan = namespace(stopped=false) -%}
            {%- for k in range(loop.index0 + 1, loop_messages | length) -%}
                {%- if scan.stopped -%}
                {%- elif loop_messages[k]['role'] != 'tool' -%}
                    {%- set scan.stopped = true -%}
                {%- else -%}
                    {%- set follow = loop_messages[k] -%}
                    {%- set name = follow.get('name') | default('unknown') -%}
                    {%- set body = follow.get('content') -%}
                    {%- if body is sequence and body is not string -%}
                        {%- set text = namespace(s='') -%}
                        {%- for part in body -%}
                            {%- if part.get('type') == 'text' -%}
                                {%- set text.s = text.s + (part.get('text') | default('')) -%}
                            {%- endif -%}
                        {%- endfor -%}
                        {%- set body = text.s -%}
                    {%- endif -%}
                    {{- '<|tool_response>response:' + name + '{value:' -}}
                    {{- format_argument(body, escape_keys=False) + '}<tool_response|>' -}}
                    {%- set has_result.flag = true -%}
                    {%- set ns.prev = 'tool_response' -%}
                {%- endif -%}
            {%- endfor -%}
        {%- endif -%}
        {%- if message['content'] is string -%}
            {%- if role == 'model' -%}{{- strip_thinking(message['content']) -}}
            {%- else -%}{{- message['content'] | trim -}}{%- endif -%}
        {%- endif -%}
        {%- if ns.prev == 'tool_call' and not has_result.flag -%}
            {{- '<|tool_response>' -}}
        {%- elif not (has_result.flag and not message.get('content')) -%}
            {{- '<turn|>\n' -}}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if ns.prev != 'tool_response' and ns.prev != 'tool_call' -%}
        {{- '<|turn>model\n' -}}
        {%- if not enable_thinking | default(false) -%}
            {{- '<|channel>thought\n<channel|>' -}}
        {%- endif -%}
    {%- endif -%}
{%- endif -%}
"""
)

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
_QWEN35 = """{%- set image_count = namespace(value=0) %}
{%- macro render_content(content, do_vision_count, is_system_content=false) %}
    {%- if content is string %}{{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'image' in item or item.type == 'image' %}
                {%- if is_system_content %}
                    {{- raise_exception('System message cannot contain images.') }}
                {%- endif %}
                {%- if do_vision_count %}
                    {%- set image_count.value = image_count.value + 1 %}
                {%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}{{- item.text }}
            {%- else %}{{- raise_exception('Unexpected item type in content.') }}{%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}{{- '' }}
    {%- else %}{{- raise_exception('Unexpected content type.') }}{%- endif %}
{%- endmacro %}
{%- if not messages %}{{- raise_exception('No messages provided.') }}{%- endif %}
{%- if tools and tools is iterable and tools is not mapping %}
    {{- '<|im_start|>system\n# Tools\n\n<tools>' }}
    {%- for tool in tools %}{{- '\n' }}{{- tool | tojson }}{%- endfor %}
    {{- '\n</tools>\n\nReply with <tool_call>\n<function=name>' }}
    {%- if messages[0].role == 'system' %}
        {%- set content = render_content(messages[0].content, false, true)|trim %}
        {%- if content %}{{- '\n\n' + content }}{%- endif %}
    {%- endif %}
    {{- '<|im_end|>\n' }}
{%- elif messages[0].role == 'system' %}
    {%- set content = render_content(messages[0].content, false, true)|trim %}
    {{- '<|im_start|>system\n' + content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == 'user' %}
        {%- set content = render_content(message.content, false)|trim %}
        {%- if not(content.startswith('<tool_response>')
            and content.endswith('</tool_response>')) %}
            {%- set ns.multi_step_tool = false %}
            {%- set ns.last_query_index = index %}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if ns.multi_step_tool %}{{- raise_exception('No user query found in messages.') }}{%- endif %}
{%- for message in messages %}
    {%- set content = render_content(message.content, true)|trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('System message must be at the beginning.') }}
        {%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\n') %}
            {%- set reasoning_content = reasoning_content.split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- set reasoning_content = reasoning_content|trim %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content }}
            {{- '\n</think>\n\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function or tool_call %}
            {%- if loop.first and content|trim %}{{- '\n\n' }}
            {%- elif not loop.first %}{{- '\n' }}{%- endif %}
            {{- '<tool_call>\n<function=' + tool_call.name + '>\n' }}
            {%- for name, value in tool_call.arguments|items %}
                {{- '<parameter=' + name + '>\n' }}
                {{- value | tojson if value is mapping or value is not string else value }}
                {{- '\n</parameter>\n' }}
            {%- endfor %}
            {{- '</function>\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.previtem and loop.previtem.role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{- '<|im_end|>\n' }}{%- endif %}
    {%- else %}{{- raise_exception('Unexpected message role.') }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is true %}{{- '<think>\n' }}
    {%- else %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}"""
_QWEN35_FROM_4B = _QWEN35.replace(
    """is true %}{{- '<think>\n' }}
    {%- else %}{{- '<think>\n\n</think>\n\n' }}""",
    """is false %}{{- '<think>\n\n</think>\n\n' }}
    {%- else %}{{- '<think>\n' }}""",
)
_FALCON_H1 = """{{bos_token}}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\n\n' }}
    {%- endif %}
    {{- "You may call these.\n<tools>\n" }}
    {%- for tool in tools %}[{{- tool | tojson }}]{%- endfor %}
    {{- "\n</tools>\nReturn <tool_call>\n{'arguments': <args-dict>}\n</tool_call>\n" }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
    {%- endif %}
{%- endif %}{% for message in messages %}{%- if message.role != 'system' %}
{{- '<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{%- endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""

_NEMOTRON_NANO = """{%- set ns = namespace(enable_thinking=true) -%}
{%- for message in messages -%}
  {%- set content = message['content'] -%}
  {%- if message['role'] == 'user' or message['role'] == 'system' -%}
    {%- if '/think' in content -%}{%- set ns.enable_thinking = true -%}
    {%- elif '/no_think' in content -%}{%- set ns.enable_thinking = false -%}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if messages[0]['role'] != 'system' -%}
  {%- set ns.told = '' -%}
  {{- '<SPECIAL_10>System\n' -}}
{%- else -%}
  {%- set ns.told = (messages[0]['content'] | default('', true)).replace('/think', '').strip() -%}
  {{- '<SPECIAL_10>System\n' + ns.told }}
{%- endif -%}
{%- if tools -%}
  {%- if ns.told is defined and ns.told != '' -%}{{- '\n\n' -}}{%- endif -%}
  {{- 'You can use these.\n<AVAILABLE_TOOLS>[' -}}
  {%- for tool in tools -%}
    {{- (tool.function if tool.function is defined else tool) | tojson -}}
    {{- ', ' if not loop.last else '' -}}
  {%- endfor -%}
  {{- ']</AVAILABLE_TOOLS>' -}}
{%- endif -%}
{{- '\n\n' -}}
{%- set messages = messages[1:] if messages[0]['role'] == 'system' else messages -%}
{%- if messages[-1]['role'] == 'assistant' -%}
  {%- set ns.last_content = (messages[-1]['content'] | default('', true)).strip() -%}
  {%- set messages = messages[:-1] -%}
{%- endif -%}
{%- for message in messages %}
  {%- set content = message['content'] %}
  {%- if message['role'] == 'user' -%}
    {{- '<SPECIAL_11>User\n' + (content | default('', true)).replace('/no_think', '').strip() }}
    {{- '\n' }}
  {%- elif message['role'] == 'tool' -%}
    {%- if loop.first or (messages[loop.index0 - 1].role != 'tool') -%}
      {{- '<SPECIAL_11>User\n' + '<TOOL_RESPONSE>[' }}
    {%- endif -%}
    {{- message['content'] -}}
    {{- ', ' if not loop.last and (messages[loop.index0 + 1].role == 'tool') else '' -}}
    {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') -%}
      {{- ']</TOOL_RESPONSE>' -}}
    {%- endif -%}
  {%- elif message['role'] == 'assistant' -%}
    {%- if content and '</think>' in content -%}
      {%- set content = (content.split('</think>')[1] | default('', true)).strip() %}
    {%- endif -%}
    {{- '<SPECIAL_11>Assistant\n' }}
    {{- ((content | default('', true)).strip() if content is not none else '') }}
    {%- if message.tool_calls -%}
      {%- if (content | default('', true)).strip() != '' -%}{{- '\n' -}}{%- endif -%}
      {{- '<TOOLCALL>[' -}}
      {%- for call in message.tool_calls -%}
        {%- set fn = call.function if call.function is defined else call -%}
        {{- '{"name": "' + fn.name + '", "arguments": ' -}}
        {%- if fn.arguments is string -%}{{- fn.arguments -}}
        {%- else -%}{{- fn.arguments | tojson -}}{%- endif -%}
        {{- '}' + (', ' if not loop.last else '') -}}
      {%- endfor -%}
      {{- ']</TOOLCALL>' -}}
    {%- endif -%}
    {{- '\n<SPECIAL_12>\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<SPECIAL_11>Assistant\n' -}}
  {%- if ns.enable_thinking is false -%}{{- '<think></think>' -}}
  {%- else -%}{{- '<think>\n' -}}{%- endif -%}
{%- elif ns.last_content is defined and ns.last_content != '' -%}
  {{- '<SPECIAL_11>Assistant\n' -}}
  {%- if ns.enable_thinking is false -%}{{- '<think></think>' -}}
  {%- else -%}{{- '<think>\n' -}}{%- endif -%}
  {{- ns.last_content + '\n<SPECIAL_12>\n' -}}
{%- endif -%}"""

FAMILY_TEMPLATES = {
    "Falcon-H1": Template("falcon_h1", _FALCON_H1, "<|begin_of_text|>", "<|end_of_text|>"),
    "Falcon-H1 Tiny": Template(
        "falcon_h1", "{{bos_token}}" + _CHATML, "<|begin_of_text|>", "<|end_of_text|>"
    ),
    "LFM2": Template("lfm2", _LFM2, "<|startoftext|>", "<|im_end|>"),
    "LFM2.5": Template("lfm2", _LFM25, "<|startoftext|>", "<|im_end|>", "A cat.", tools=True),
    "Qwen3.5 up to 2B": Template("qwen3_5", _QWEN35, None, "<|im_end|>", "A cat.", tools=True),
    "Qwen3.5 from 4B on": Template("qwen3_5", _QWEN35_FROM_4B, None, "<|im_end|>", tools=True),
    "Phi-3": Template("phi3", _PHI3, "<s>", "<|endoftext|>"),
    "Phi-4-mini": Template("phi3", _PHI4_MINI, "<|endoftext|>", "<|endoftext|>"),
    "Gemma 1 and 2": Template("gemma2", _GEMMA2, "<bos>", "<eos>"),
    "Gemma 3n": Template("gemma3n", _GEMMA3N, "<bos>", "<end_of_turn>"),
    "Gemma 4 E2B and E4B": Template("gemma4", GEMMA4_SMALL, "<bos>", "<turn|>", tools=True),
    "Gemma 4 26B and 31B": Template(
        "gemma4", GEMMA4_LARGE, "<bos>", "<turn|>", "<|channel>thought", True
    ),
    "Granite 4": Template("granite", _GRANITE4, "<|end_of_text|>", "<|end_of_text|>", tools=True),
    "Granite 3": Template("granite", _GRANITE3, "<|end_of_text|>", "<|end_of_text|>"),
    "OLMo 2": Template("olmo2", _OLMO2, "<|endoftext|>", "<|endoftext|>"),
    "OLMo 3": Template("olmo3", _OLMO3, "<|endoftext|>", "<|im_end|>"),
    "ERNIE 4.5": Template("ernie4_5", _ERNIE, "<s>", "</s>"),
    "EXAONE 4": Template("exaone4", _EXAONE4, "[BOS]", "[|endofturn|]", tools=True),
    "Hunyuan": Template(
        "hunyuan_v1_dense", _HUNYUAN, "<\uff5cbegin▁\uff5c>", "<\uff5cno▁2\uff5c>", "It meows."
    ),
    "Hunyuan, the first": Template("hunyuan_v1_dense", _HUNYUAN_HEAD, "<begin>", "<answer end>"),
    "StableLM Zephyr": Template("stablelm", _STABLELM, "<|endoftext|>", "<|endoftext|>"),
    "Command R": Template("cohere", _COHERE, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "Command R7B": Template("cohere2", _COHERE2, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "Nemotron Mini": Template("nemotron", _NEMOTRON, "<s>", "</s>"),
    "Nemotron Nano v2": Template("nemotron_h", _NEMOTRON_NANO, "<s>", "<SPECIAL_12>", tools=True),
    "Jais 2": Template("jais2", _JAIS2, "<|begin_of_text|>", "<|eot_id|>"),
    "Seed-OSS": Template("seed_oss", _SEED, "<seed:bos>", "<seed:eos>", "It meows.", True),
    "Apertus": Template("apertus", _APERTUS, "<s>", "<|assistant_end|>", tools=True),
    "Arcee AFM": Template("arcee", "{{ bos_token }}" + _CHATML, "<|begin_of_text|>", "<|im_end|>"),
    "MiniCPM": Template("minicpm", _MINICPM, "<s>", "</s>"),
    "MiniCPM4": Template("minicpm", _CHATML, "<s>", "<|im_end|>"),
    "InternLM 3": Template("internlm3", "{{ bos_token }}" + _CHATML, "<s>", "<|im_end|>"),
    "SmolLM3": Template("smollm3", _SMOLLM3, None, "<|im_end|>", "It meows."),
    "Ministral 3": Template("ministral3", _MINISTRAL3, "<s>", "</s>", tools=True),
}
