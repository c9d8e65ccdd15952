"""What jinja2 prints, minijinja prints: a template written again without Python's methods."""

from __future__ import annotations

import pytest

from converter.text.template_dialect import in_runtime_dialect
from converter.text.template_renderers import (
    TemplateFailureError,
    render_as_runtime,
    render_as_source,
)

MESSAGES = [
    {"role": "system", "content": "  Be brief.\n"},
    {"role": "user", "content": "a<think>b</think>\n\nc:d:e", "name": "Ann"},
    {"role": "assistant", "content": "Yes, no", "meta": {"x": 1, "y": [1, 2]}},
]

IDIOMS = [
    # Text, white space and comments
    "  a\n{% if true %}\n  b\n{% endif %}\n c {#- d -#} e {%- if true %} f {% endif -%} g\n",
    "{{ 'q\"\\'\\\\' }}{{ '{{' }}%}{{ '{% x %}' }}",
    "{% raw %}{{ x }}{% endraw %}",
    "{% generation %}x{% endgeneration %}{%- generation -%} y {%- endgeneration -%}",
    # Methods
    "{{ messages[0].content.strip() }}|{{ messages[0]['content'].lstrip() }}",
    "{{ m.rstrip('\\n') if m is defined else messages[0].content.rstrip('\\n') }}",
    "{% set c = messages[1].content %}"
    "{{ c.split('</think>')[0].split('<think>')[-1].strip('\\n') }}|{{ c.split('</think>')[-1] }}",
    "{{ messages[1].content.split(':')[1] }}|{{ messages[1].content.split(':', 1)[1] }}",
    "{{ 'a b  c'.split() | join('+') }}|{{ 'a\\nb'.splitlines() | tojson }}",
    "{{ 'abc'.upper() }}{{ 'ABC'.lower() }}{{ 'abc def'.title() }}{{ 'abc'.capitalize() }}",
    "{{ ', '.join(['a', 'b']) }}|{{ ', '.join(messages | map(attribute='role')) }}",
    "{{ 'aXbXc'.replace('X', '-') }}",
    "{% if messages[1].content.startswith('a<') %}y{% endif %}",
    "{% if 'abc'.startswith(('x', 'a')) and not 'abc'.endswith('b') %}y{% endif %}",
    "{{ messages[1].get('name') }}|{{ messages[0].get('name', 'nobody') }}",
    "{% if messages[0].get('name') %}x{% else %}y{% endif %}",
    "{% for k, v in messages[2].meta.items() %}{{ k }}={{ v | tojson }};{% endfor %}",
    "{% for k in messages[2].meta.keys() %}{{ k }};{% endfor %}",
    "{% for v in messages[2].meta.values() %}{{ v | tojson }};{% endfor %}",
    "{{ messages | tojson(ensure_ascii=False) }}",
    # Tests
    "{{ 'y' if none is none else 'n' }}{{ 'y' if tools is none else 'n' }}",
    "{% if messages is not none and x is not defined and 'a' is string %}y{% endif %}",
    "{% if messages is iterable and messages[2].meta is mapping and 1 is number %}y{% endif %}",
    "{{ missing | length }}|{{ missing | first }}|{{ missing | last }}|{{ messages | count }}",
    "{% if 3 is odd and 4 is divisibleby(2) and 'a' is in('abc') %}y{% endif %}",
    # Operators
    "{{ 1 + 2 * 3 - 4 // 3 }}|{{ 7 % 4 }}|{{ -2 + 5 }}|{{ 2 ** 3 }}",
    "{{ 'a' ~ 1 ~ 'b' }}|{{ ('x' + 'y') ~ [1] | length }}",
    "{% if not (1 < 2 <= 2 and 'a' in 'abc') or 'z' not in 'abc' %}y{% endif %}",
    "{{ 'a' if false }}|{{ messages[1:] | length }}|{{ messages[::-1][0].role }}|{{ 'abcd'[1:3] }}",
    # Statements
    "{% for m in messages if m.role != 'system' %}{{ loop.index }}{{ m.role }}"
    "{{ ',' if not loop.last }}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}none{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role if not loop.first }}>{{ m.role }} {% endfor %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}"
    "{{ ns.n }}",
    "{% set x %}a{{ messages[0].role }}{% endset %}{{ x }}{% set y | upper %}b{% endset %}{{ y }}",
    "{% macro f(a, b='!') %}<{{ a }}{{ b }}>{% endmacro %}{{ f('x') }}{{ f('y', b='?') }}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}x{% endcall %}",
    "{% with a = 1, b = 2 %}{{ a + b }}{% endwith %}{% filter upper %}x{% endfilter %}",
    "{% if false %}a{% elif messages[0].role == 'system' %}b{% else %}c{% endif %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='name') | join(',') }}",
    "{% set messages = messages[1:] %}{{ messages[0].role }}",
    # Loop controls
    "{% for m in messages %}{% if loop.first %}{{ m.role }}!{% continue %}lost{% endif %}"
    "{{ m.role }}{{ '.' if loop.last else ',' }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{% break %}{% else %}{{ m.role }}{% endif %}-"
    "{% endfor %}end",
    "{% for m in messages %}{% for i in range(4) %}{% if i == 1 %}{% continue %}"
    "{% elif loop.last %}{% break %}{% endif %}{{ i }}{% endfor %}"
    "{% if m.name is defined %}{% if loop.index == 2 %}{% set x = m.name %}{{ x }}{% break %}"
    "{% endif %}{% endif %}|{{ m.role }}{% endfor %}",
    "{% for m in messages %}{% with r = m.role %}{% if r == 'user' %}{% continue %}{% endif %}"
    "{{ r }}{% endwith %};{% else %}none{% endfor %}",
    "{{ strftime_now('%d %b %Y') }}",
]  # fmt: skip


@pytest.mark.parametrize("template", IDIOMS)
def test_the_runtime_prints_what_jinja2_does(template: str) -> None:
    expected = render_as_source(template, MESSAGES, bos_token="", eos_token="")
    written = "{%- set tools = none -%}" + in_runtime_dialect(template)
    assert render_as_runtime(written, MESSAGES, add_generation_prompt=True) == expected


VALUES = [None, "ab", "", 3, 1.5, True, False, [1], [], {"a": 1}]


@pytest.mark.parametrize(
    "test",
    ["boolean", "defined", "false", "float", "integer", "iterable", "mapping", "none", "number",
     "sequence", "string", "true", "undefined"],
)  # fmt: skip
def test_every_kind_of_value_is_told_apart_alike(test: str) -> None:
    template = f"{{% for v in messages[0].all %}}{{{{ 1 if v is {test} else 0 }}}}{{% endfor %}}"
    template += f"{{{{ 1 if missing is {test} else 0 }}}}"
    messages = [{"role": "user", "all": VALUES}]
    expected = render_as_source(template, messages, bos_token="", eos_token="")
    got = render_as_runtime(in_runtime_dialect(template), messages, add_generation_prompt=True)
    assert got == expected


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{% break %}", "a Break outside a loop"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{% include 'x' %}", "a Include statement"),
        ("{{ " + "(" * 2000 + "1" + ")" * 2000 + " }}", "recursion"),
        ("{{ " + "1 + " * 5000 + "1 }}", "recursion"),
    ],
)
def test_what_cannot_be_written_again_is_said(template: str, why: str) -> None:
    with pytest.raises(TemplateFailureError, match=why):
        in_runtime_dialect(template)
