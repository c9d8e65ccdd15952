"""A source's template in the runtime's dialect of Jinja.

Templates are written for jinja2, where strings and dicts have Python's methods; the runtime's
minijinja has filters instead, and rewrites a few methods as text, which breaks where two of them
meet in a line. So a template is parsed as jinja2 does and written again without methods. Whatever
has no counterpart is written as it is: the proof in `chat_template` says what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, TemplateError, nodes

from converter.text.template_renderers import (
    TemplateFailureError,
    literal,
    without_generation_marks,
)

# {0} is the object, {1}, {2} ... are the arguments. Named here are the calls with that many.
_METHODS: dict[tuple[str, int], str] = {
    ("strip", 0): "{0} | trim",
    ("strip", 1): "{0} | trim({1})",
    ("lstrip", 0): "{0} | lstrip",
    ("lstrip", 1): "{0} | lstrip({1})",
    ("rstrip", 0): "{0} | rstrip",
    ("rstrip", 1): "{0} | rstrip({1})",
    ("split", 0): "{0} | split | list",
    ("split", 1): "{0} | split({1}) | list",
    ("split", 2): "{0} | split({1}, {2}) | list",
    ("splitlines", 0): "{0} | lines",
    ("replace", 2): "{0} | replace({1}, {2})",
    ("join", 1): "{1} | join({0})",
    ("upper", 0): "{0} | upper",
    ("lower", 0): "{0} | lower",
    ("title", 0): "{0} | title",
    ("capitalize", 0): "{0} | capitalize",
    ("items", 0): "{0} | items",
    ("keys", 0): "{0} | list",
    ("values", 0): "{0} | items | map('last') | list",
    ("get", 1): "{0}[{1}] if {1} in {0} else none",
    ("get", 2): "{0}[{1}] if {1} in {0} else {2}",
}
# A macro of that name stands before what uses it: families/indented_json.jinja.
INDENTED_JSON = "indented_json"
# Tests that the runtime answers otherwise: its `none` asks for undefined values, its `iterable` is
# true of none, its `sequence` false of strings and mappings, its `number` false of booleans.
_TESTS = {
    "none": "{0} == none",
    "iterable": "{0} is iterable and {0} != none",
    "sequence": "{0} is iterable and {0} != none",
    "number": "{0} is number or {0} is boolean",
}
# What jinja2 makes of an undefined value, too.
_OF_UNDEFINED = frozenset({"count", "first", "last", "length"})
_AFFIX_TESTS = {"startswith": "startingwith", "endswith": "endingwith"}
_OPERATORS = {
    nodes.Add: "+", nodes.Sub: "-", nodes.Mul: "*", nodes.Div: "/", nodes.FloorDiv: "//",
    nodes.Mod: "%", nodes.Pow: "**", nodes.And: "and", nodes.Or: "or",
}  # fmt: skip
_COMPARISONS = {
    "eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in",
    "notin": "not in",
}  # fmt: skip


@lru_cache(maxsize=8)
def in_runtime_dialect(template: str) -> str:
    """Write a jinja2 template as a minijinja one that prints the same.

    Raises:
        TemplateFailureError: it is no template, or has a statement that minijinja lacks; loop
            controls, which it lacks too, become conditions.
    """
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    try:
        return _statements(environment.parse(without_generation_marks(template)).body)
    except (TemplateError, RecursionError) as error:
        raise TemplateFailureError(str(error).partition("\n")[0]) from error


# --- Statements -------------------------------------------------------------------------------


def _statements(body: Sequence[nodes.Node]) -> str:
    return "".join(_statement(node) for node in body)


def _tag(code: str) -> str:
    return f"{{%- {code} -%}}\n"


def _block(head: str, body: Sequence[nodes.Node], end: str) -> str:
    return _tag(head) + _statements(body) + _tag(end)


def _statement(node: Any) -> str:
    match node:
        case nodes.Output():
            return "".join(f"{{{{- {_expression(part)} -}}}}\n" for part in node.nodes)
        case nodes.If():
            branches = _tag(f"if {_expression(node.test)}") + _statements(node.body)
            for branch in node.elif_:
                branches += _tag(f"elif {_expression(branch.test)}") + _statements(branch.body)
            if node.else_:
                branches += _tag("else") + _statements(node.else_)
            return branches + _tag("endif")
        case nodes.For():
            return _for(node)
        case nodes.Assign():
            return _tag(f"set {_target(node.target)} = {_expression(node.node)}")
        case nodes.AssignBlock():
            head = f"set {_target(node.target)}"
            head += f" | {_filters(node.filter)}" if node.filter else ""
            return _block(head, node.body, "endset")
        case nodes.FilterBlock():
            return _block(f"filter {_filters(node.filter)}", node.body, "endfilter")
        case nodes.Macro():
            return _block(f"macro {node.name}({_parameters(node)})", node.body, "endmacro")
        case nodes.CallBlock():
            parameters = f"({_parameters(node)})" if node.args else ""
            head = f"call{parameters} {_expression(node.call)[1:-1]}"
            return _block(head, node.body, "endcall")
        case nodes.With():
            pairs = zip(node.targets, node.values, strict=True)
            head = ", ".join(f"{_target(name)} = {_expression(value)}" for name, value in pairs)
            return _block(f"with {head}", node.body, "endwith")
        case nodes.Break() | nodes.Continue():
            raise TemplateFailureError(f"it has a {type(node).__name__} outside a loop")
        case _:
            raise TemplateFailureError(f"it has a {type(node).__name__} statement")


def _for(node: nodes.For) -> str:
    """A loop. One that is left or cut short asks before each step whether it still goes on."""
    head = f"for {_target(node.target)} in {_expression(node.iter)}"
    head += f" if {_expression(node.test)}" if node.test else ""
    before = body = ""
    if any(map(_jumps, node.body)):
        # Of two loops, one inside the other, the inner one has fewer loops inside.
        flow = f"flow_{len(list(node.find_all(nodes.For)))}"
        before = _tag(f"set {flow} = namespace(goes = true, is_left = false)")
        body = _tag(f"set {flow}.goes = not {flow}.is_left")
        node.body = _guarded([nodes.If(_goes(flow), node.body, [], [])], flow)
    body += _statements(node.body)
    loop = _tag(head + (" recursive" if node.recursive else "")) + body
    if node.else_:
        loop += _tag("else") + _statements(node.else_)
    return before + loop + _tag("endfor")


def _jumps(node: nodes.Node) -> bool:
    """Whether a statement leaves the loop that it stands in, or cuts this step of it short."""
    if isinstance(node, nodes.Break | nodes.Continue):
        return True
    return not isinstance(node, nodes.For) and any(map(_jumps, node.iter_child_nodes()))


def _guarded(body: Sequence[nodes.Node], flow: str) -> list[nodes.Node]:
    """The body of a loop without jumps: they are noted, and what follows asks."""
    guarded: list[nodes.Node] = []
    for at, node in enumerate(body):
        if isinstance(node, nodes.Break | nodes.Continue):
            guarded.append(_note(flow, "goes", False))
            if isinstance(node, nodes.Break):
                guarded.append(_note(flow, "is_left", True))
            break
        guarded.append(node)
        if _jumps(node):
            blocks: list[Any] = [node, *(node.elif_ if isinstance(node, nodes.If) else ())]
            for block in blocks:
                block.body = _guarded(block.body, flow)
            if isinstance(node, nodes.If):
                node.else_ = _guarded(node.else_, flow)
            if rest := _guarded(body[at + 1 :], flow):
                guarded.append(nodes.If(_goes(flow), rest, [], []))
            break
    return guarded


def _goes(flow: str) -> nodes.Expr:
    return nodes.Getattr(nodes.Name(flow, "load"), "goes", "load")


def _note(flow: str, name: str, value: bool) -> nodes.Assign:
    return nodes.Assign(nodes.NSRef(flow, name), nodes.Const(value))


def _target(node: Any) -> str:
    match node:
        case nodes.Name():
            return str(node.name)
        case nodes.NSRef():
            return f"{node.name}.{node.attr}"
        case nodes.Tuple():
            return f"({', '.join(_target(item) for item in node.items)})"
        case _:
            raise TemplateFailureError(f"it assigns to a {type(node).__name__}")


def _parameters(node: nodes.Macro | nodes.CallBlock) -> str:
    names = [argument.name for argument in node.args]
    plain = len(names) - len(node.defaults)
    defaults = [f" = {_expression(value)}" for value in node.defaults]
    return ", ".join(map(str.__add__, names, [""] * plain + defaults))


# --- Expressions ------------------------------------------------------------------------------


def _expression(node: Any) -> str:
    """An expression that stands for itself: a name, a literal, or in parentheses."""
    match node:
        case nodes.Name():
            return str(node.name)
        case nodes.Const():
            return literal(node.value)
        case nodes.TemplateData():
            return literal(node.data)
        case nodes.List() | nodes.Tuple():
            return f"[{_listed(node.items)}]"
        case nodes.Dict():
            pairs = (f"{_expression(p.key)}: {_expression(p.value)}" for p in node.items)
            return f"{{{', '.join(pairs)}}}"
        case nodes.Getattr():
            return f"{_expression(node.node)}.{node.attr}"
        case nodes.Getitem():
            return f"{_expression(node.node)}[{_index(node.arg)}]"
        case nodes.Filter() if node.node is not None:
            value = _expression(node.node)
            if (width := _json_indent(node)) is not None:
                return f"{INDENTED_JSON}({value}, {_expression(width)}, '')"
            if node.name in _OF_UNDEFINED:
                value += " | default([])"
            return f"({value} | {_filter(node)})"
        case _:
            return f"({_operation(node)})"


def _operation(node: Any) -> str:
    match node:
        case nodes.CondExpr():
            otherwise = f" else {_expression(node.expr2)}" if node.expr2 else ""
            return f"{_expression(node.expr1)} if {_expression(node.test)}{otherwise}"
        case nodes.BinExpr():
            left, right = _expression(node.left), _expression(node.right)
            return f"{left} {_OPERATORS[type(node)]} {right}"
        case nodes.Not():
            return f"not {_expression(node.node)}"
        case nodes.Neg():
            return f"-{_expression(node.node)}"
        case nodes.Pos():
            return _expression(node.node)
        case nodes.Concat():
            return " ~ ".join(_expression(part) for part in node.nodes)
        case nodes.Compare():
            return _comparison(node)
        case nodes.Test():
            return _test(node)
        case nodes.Call():
            return _call(node)
        case _:
            raise TemplateFailureError(f"it has a {type(node).__name__} expression")


def _comparison(node: nodes.Compare) -> str:
    """`a < b < c` as `a < b and b < c`."""
    terms, left = [], _expression(node.expr)
    for operand in node.ops:
        right = _expression(operand.expr)
        terms.append(f"{left} {_COMPARISONS[operand.op]} {right}")
        left = right
    return " and ".join(terms)


def _test(node: nodes.Test) -> str:
    left = _expression(node.node)
    if (pattern := _TESTS.get(node.name)) is not None:
        return pattern.format(left)
    arguments = f"({_listed(node.args)})" if node.args else ""
    return f"{left} is {node.name}{arguments}"


def _call(node: nodes.Call) -> str:
    if isinstance(node.node, nodes.Getattr) and not node.kwargs:
        name, value = node.node.attr, _expression(node.node.node)
        if (pattern := _METHODS.get((name, len(node.args)))) is not None:
            return pattern.format(value, *map(_expression, node.args))
        if name in _AFFIX_TESTS and len(node.args) == 1:
            [affix] = node.args
            several = affix.items if isinstance(affix, nodes.Tuple) else [affix]
            test = f"{value} is {_AFFIX_TESTS[name]}"
            return " or ".join(f"{test}({_expression(each)})" for each in several)
    return f"{_expression(node.node)}({_arguments(node)})"


def _index(node: Any) -> str:
    if not isinstance(node, nodes.Slice):
        return _expression(node)
    parts = [_expression(part) if part else "" for part in (node.start, node.stop)]
    return ":".join([*parts, *([_expression(node.step)] if node.step else [])])


def _filters(node: nodes.Filter) -> str:
    """The filters of a block, which begin with no value."""
    before = f"{_filters(node.node)} | " if isinstance(node.node, nodes.Filter) else ""
    return before + _filter(node)


def _json_indent(node: nodes.Filter) -> Any | None:
    if node.name != "tojson":
        return None
    return next((pair.value for pair in node.kwargs if pair.key == "indent"), None)


def _filter(node: nodes.Filter) -> str:
    # The runtime's tojson takes no arguments, and escapes no Unicode.
    plain = node.name == "tojson" and all(pair.key == "ensure_ascii" for pair in node.kwargs)
    arguments = "" if plain and not node.args else _arguments(node)
    return f"{node.name}({arguments})" if arguments else str(node.name)


def _arguments(node: nodes.Call | nodes.Filter) -> str:
    named = [f"{pair.key}={_expression(pair.value)}" for pair in node.kwargs]
    return ", ".join([*map(_expression, node.args), *named])


def _listed(items: Sequence[Any]) -> str:
    write: Callable[[Any], str] = _expression
    return ", ".join(map(write, items))
