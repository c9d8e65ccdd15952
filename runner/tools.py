"""Functions of a Python file as tools: how a model is told of them, and how a call is run.

The types of a function's parameters become JSON schema, and arguments are checked against them, by
msgspec; what a docstring says of a parameter is read by docstring_parser.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import sys
import traceback
import types
import typing
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO

import msgspec

from converter.errors import OptionError

_QUESTION = " [y/N/a] "
_MODULE = "litert_lm_cli_tools"  # what a file of tools is called while it runs
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_JSON_NAMES = {str: "string", int: "integer"}


@dataclass(frozen=True)
class Tool:
    """A function that a model may call.

    Attributes:
        declaration: what the model is told, in OpenAI's form.
        arguments: a type of msgspec with the parameters as fields.
    """

    name: str
    declaration: dict[str, Any]
    function: Callable[..., Any]
    arguments: type[msgspec.Struct]

    def call(self, arguments: msgspec.Struct) -> str:
        """Run the function; what it returns or raises, as text for the model.

        What it prints goes to stderr: stdout is the answer's.
        """
        given = {
            name: value
            for name in arguments.__struct_fields__
            if (value := getattr(arguments, name)) is not msgspec.UNSET
        }
        try:
            with _output_on_stderr():
                result = self.function(**given)
                if inspect.isawaitable(result):
                    result = asyncio.run(_awaited(result))
                return _as_text(result)
        except (Exception, SystemExit) as error:
            return _failure(f"{type(error).__name__}: {error}")


class Toolbox:
    """The tools of a chat: each call is shown, asked for and run.

    Args:
        stdin: where the user answers, if it is a terminal; elsewhere nobody can be asked.
        stderr: where calls are shown.
        yes: every call may run.
    """

    def __init__(
        self, tools: Mapping[str, Tool], stdin: TextIO | None, stderr: TextIO, *, yes: bool = False
    ) -> None:
        self._tools = tools
        self._stdin = stdin
        self._stderr = stderr
        self._yes = yes
        self._allowed: set[str] = set()  # by name, for as long as the chat goes

    @property
    def declarations(self) -> list[dict[str, Any]]:
        """What the model is told."""
        return [tool.declaration for tool in self._tools.values()]

    def describe(self, call: Mapping[str, Any]) -> str:
        """`get_weather(city='Paris')`."""
        given = _arguments(call)
        inside = (
            ", ".join(f"{_printable(name)}={value!r}" for name, value in given.items())
            if isinstance(given, dict)
            else repr(given)
        )
        return f"{_printable(call['name'])}({inside})"

    def run(self, call: Mapping[str, Any]) -> str:
        """Run a call, if it may be; what the model is told of it."""
        shown = f"tool: {self.describe(call)}"
        tool = self._tools.get(call["name"])
        if tool is None:
            return self._refused(shown, f"there is no such tool, but {', '.join(self._tools)}")
        try:
            arguments = msgspec.convert(_arguments(call), tool.arguments, strict=False)
        except msgspec.ValidationError as error:
            return self._refused(shown, f"wrong arguments: {error}")
        if self._yes or tool.name in self._allowed:
            print(shown, file=self._stderr, flush=True)
        elif self._stdin is None or not (self._stdin.isatty() and self._stderr.isatty()):
            return self._refused(shown, "refused, nobody can be asked (--yes allows all calls)")
        else:
            reply = self._ask(self._stdin, shown)
            if reply in ("a", "always"):
                self._allowed.add(tool.name)
            elif reply not in ("y", "yes"):
                return _failure("the user refused this call")
        return tool.call(arguments)

    def _ask(self, stdin: TextIO, shown: str) -> str:
        reply = ""
        try:
            print(shown, end=_QUESTION, file=self._stderr, flush=True)
            reply = stdin.readline()
        finally:
            if not reply:  # Ctrl-C or Ctrl-D: nobody has ended the line
                print(file=self._stderr)
        return reply.strip().lower()

    def _refused(self, shown: str, reason: str) -> str:
        print(f"{shown}: {_printable(reason)}", file=self._stderr, flush=True)
        return _failure(reason)


def load_tools(path: Path) -> dict[str, Tool]:
    """Run a Python file; its public functions, by name.

    Raises:
        OptionError: it cannot be read or run, has no such function, or one that does not say what
            it is for or takes.
    """
    module = _run(path)
    tools = {
        name: _tool(value, path)
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and not inspect.isclass(value)
        and getattr(value, "__module__", None) == _MODULE  # not imported
        and getattr(value, "__name__", None) == name  # no second name of another
    }
    if not tools:
        raise _error(path, "has no function of its own", "define one, with types and a docstring")
    return tools


def _run(path: Path) -> types.ModuleType:
    module = types.ModuleType(_MODULE)
    module.__file__ = str(path)
    try:
        source = path.read_bytes()
    except OSError as error:
        raise _error(path, error.strerror or str(error), "name a readable file") from error
    sys.modules[_MODULE] = module  # dataclasses look up their types there
    sys.path.append(str(path.resolve().parent))  # what stands beside it can be imported
    try:
        with _output_on_stderr():
            exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        lines = [
            frame.lineno
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename == str(path)
        ]
        where = f" (line {lines[-1]})" if lines else ""
        raise _error(
            path, f"does not run: {type(error).__name__}: {error}{where}", "correct it"
        ) from error
    return module


def _tool(function: Callable[..., Any], path: Path) -> Tool:
    import docstring_parser

    name = function.__name__
    fix = "add it, or let the function's name begin with _ if it is no tool"
    docstring = docstring_parser.parse(inspect.getdoc(function) or "")
    # The first paragraph.
    description = " ".join((docstring.description or "").split("\n\n")[0].split())
    if not description:
        raise _error(path, f"{name} has no docstring that says what it does", fix)
    said = {parameter.arg_name: parameter.description for parameter in docstring.params}
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # whatever an annotation's text may do
        raise _error(
            path, f"an annotation of {name} means nothing: {error}", "correct it"
        ) from error
    fields: list[tuple[str, Any, Any]] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in _BY_NAME:
            raise _error(
                path, f"{parameter} of {name} cannot be given by name", "let it be an ordinary one"
            )
        if parameter.name not in hints:
            raise _error(path, f"{parameter.name} of {name} has no annotation", fix)
        fields.append(_field(parameter, hints[parameter.name], said.get(parameter.name)))
    try:
        arguments = msgspec.defstruct(name, fields, kw_only=True, forbid_unknown_fields=True)
        schema = msgspec.json.schema(arguments)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise _error(
            path,
            f"a type of {name} has no JSON: {reason}",
            "use str, int, float, bool, list, dict, Literal, Enum or dataclasses of them",
        ) from error
    declaration = {
        "name": name,
        "description": description,
        "parameters": _parameters(schema["$defs"], name),
    }
    return Tool(name, {"type": "function", "function": declaration}, function, arguments)


def _field(parameter: inspect.Parameter, hint: Any, said: str | None) -> tuple[str, Any, Any]:
    """A parameter as a field of msgspec: name, type, default."""
    shown: dict[str, Any] = {}
    is_required = parameter.default is inspect.Parameter.empty
    if not is_required and parameter.default is not None:
        with contextlib.suppress(TypeError):  # the model needs not know it
            shown["default"] = msgspec.to_builtins(parameter.default)
    described = Annotated[
        hint,
        msgspec.Meta(description=" ".join(said.split()) if said else None, extra_json_schema=shown),
    ]
    if is_required:
        return parameter.name, described, msgspec.NODEFAULT
    # The function's own default is used, which may be no JSON.
    return parameter.name, described | msgspec.UnsetType, msgspec.UNSET


def _parameters(definitions: dict[str, Any], name: str) -> dict[str, Any]:
    """JSON schema in the plain words that chat templates print: each type stands in its place."""

    def plain(schema: Any) -> Any:
        if isinstance(schema, list):
            return [plain(item) for item in schema]
        if not isinstance(schema, dict):
            return schema
        reference = schema.get("$ref")
        if isinstance(reference, str):
            target = definitions[reference.rpartition("/")[2]]
            own = {key: value for key, value in schema.items() if key != "$ref"}
            return plain({**{k: v for k, v in target.items() if k != "title"}, **own})
        made = {key: plain(value) for key, value in schema.items()}
        kinds = {type(value) for value in made["enum"]} if "enum" in made else set()
        if len(kinds) == 1 and "type" not in made:
            [kind] = kinds
            made |= {"type": _JSON_NAMES[kind]} if kind in _JSON_NAMES else {}
        return made

    root = definitions[name]
    required = root.get("required", [])
    properties = {
        key: plain(value) if key in required else _without_null(plain(value))
        for key, value in root.get("properties", {}).items()
    }
    return {"type": "object", "properties": properties, "required": required}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """What may be left out needs no null beside it; many templates know but one type."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0]}


def _arguments(call: Mapping[str, Any]) -> Any:
    return call.get("arguments") or {}


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _as_text(result: Any) -> str:
    """A text as it is, anything else as JSON."""
    if not isinstance(result, str):
        result = msgspec.json.encode(result, enc_hook=_builtin).decode()
    return _clean(result)


def _builtin(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else str(value)


def _failure(reason: str) -> str:
    return msgspec.json.encode({"error": _clean(reason)}).decode()


def _clean(text: str) -> str:
    """Text that the engine can take."""
    return text.encode("utf-8", "replace").decode().replace("\0", "")


def _printable(text: str) -> str:
    """On one line, without what a terminal would obey: a model wrote it."""
    return "".join(c if c.isprintable() else " " for c in text)


@contextlib.contextmanager
def _output_on_stderr() -> Iterator[None]:
    """Send to stderr what is written to stdout, by Python code and by processes it starts."""
    sys.stdout.flush()
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        with contextlib.suppress(OSError):  # one of them is no file
            # While a model is open, descriptor 2 is the engine's.
            target = sys.stderr.fileno()
            for descriptor in (1, 2):
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(target, descriptor)
        yield


def _error(path: Path, why: str, fix: str) -> OptionError:
    return OptionError(f"--tools {path}", why, fix)
