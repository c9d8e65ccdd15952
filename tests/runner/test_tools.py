"""Functions as tools, and models that call them."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.chat.session import Session
from cli.main import main
from converter.errors import OptionError
from runner.engine import Model
from runner.options import ChatOptions
from runner.schema import Schema
from runner.tools import Toolbox, load_tools
from server.openai import messages_of
from tests.edited_bundle import edited_bundle
from tests.family_templates import FAMILY_TEMPLATES
from tests.reciting import reciting_bundle
from tests.terminal import CTRL_C, CTRL_D, Terminal

ROOT = Path(__file__).parents[2]
BOXES = '''
import subprocess
import sys


def open_box(box: str) -> str:
    """Opens a box."""
    print(f"opening {box}")
    subprocess.run([sys.executable, "-c", "print('from a process')"], check=True)
    return f"a cat in the {box} box"


def close_box(box: str) -> None:
    """Closes a box."""
'''


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tools") / "boxes.py"
    path.write_text(BOXES)
    return path


def load(folder: Path, text: str) -> Any:
    """The tools of a file with this text."""
    path = folder / "tools.py"
    path.write_text(text)
    return load_tools(path)


def run(tools: Any, name: str, arguments: Any) -> str:
    return Toolbox(tools, None, sys.stderr, yes=True).run({"name": name, "arguments": arguments})


# What a model is told ---------------------------------------------------------------------------

TYPES = '''
from __future__ import annotations

import enum
from dataclasses import dataclass
from os import path  # no tool: it comes from elsewhere
from typing import Any, Literal, Optional


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Point:
    x: int
    title: str = "here"


def paint(
    where: Point,
    color: Color,
    mode: Literal["wet", "dry"],
    how: dict[str, Any],
    coats: int = 2,
    parts: list[float] = [],
    name: Optional[str] = None,
    secret: bool | str = False,
):
    """Paints something, in
    a color.

    It takes a while.
    """
    return [where.x, color is Color.RED, mode, how, coats, parts, name, secret]


def nothing():
    """Does nothing."""


def _helper(x):
    return x


other = paint
'''


def test_types_become_a_schema_in_plain_words(tmp_path: Path) -> None:
    tools = load(tmp_path, TYPES)
    assert list(tools) == ["paint", "nothing"]
    assert Toolbox(tools, None, sys.stderr).declarations[0] == {
        "type": "function",
        "function": {
            "name": "paint",
            "description": "Paints something, in a color.",
            "parameters": {
                "type": "object",
                "properties": {
                    "where": {
                        "type": "object",
                        "properties": {
                            "x": {"type": "integer"},
                            "title": {"type": "string", "default": "here"},
                        },
                        "required": ["x"],
                    },
                    "color": {"type": "string", "enum": ["blue", "red"]},
                    "mode": {"type": "string", "enum": ["dry", "wet"]},
                    "how": {"type": "object"},
                    "coats": {"type": "integer", "default": 2},
                    "parts": {"type": "array", "items": {"type": "number"}, "default": []},
                    "name": {"type": "string"},
                    "secret": {
                        "anyOf": [{"type": "boolean"}, {"type": "string"}],
                        "default": False,
                    },
                },
                "required": ["where", "color", "mode", "how"],
            },
        },
    }
    assert tools["nothing"].declaration["function"]["parameters"] == {
        "type": "object", "properties": {}, "required": [],
    }  # fmt: skip


def test_arguments_arrive_as_their_types(tmp_path: Path) -> None:
    tools = load(tmp_path, TYPES)
    given = {"where": {"x": 1}, "color": "red", "mode": "wet", "how": {"a": [1]}, "coats": "3"}
    assert json.loads(run(tools, "paint", given)) == [
        1,
        True,
        "wet",
        {"a": [1]},
        3,
        [],
        None,
        False,
    ]
    assert run(tools, "nothing", None) == "null"


@pytest.mark.parametrize(
    "parameters",
    [
        "Args:\n        city: Where it is,\n            in words.\n        days (int): How many.",
        "Parameters\n    ----------\n    city : str\n        Where it is,\n        in words.\n"
        "    days : int\n        How many.",
        ":param city: Where it is,\n        in words.\n    :param int days: How many.",
    ],
    ids=["Google", "NumPy", "Sphinx"],
)
def test_docstrings_describe_parameters(tmp_path: Path, parameters: str) -> None:
    text = (
        f'def rain(city: str, days: int):\n    """Says if it rains.\n\n    {parameters}\n    """\n'
    )
    declared = load(tmp_path, text)["rain"].declaration["function"]
    assert declared["description"] == "Says if it rains."
    assert declared["parameters"]["properties"] == {
        "city": {"type": "string", "description": "Where it is, in words."},
        "days": {"type": "integer", "description": "How many."},
    }


def test_the_example_of_the_documentation(tmp_path: Path) -> None:
    page = (ROOT / "docs/tools.md").read_text("utf-8")
    [example] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert load(tmp_path, example)["weather"].declaration["function"] == {
        "name": "weather",
        "description": "The temperatures of the next days.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Where, in English."},
                "days": {
                    "type": "integer",
                    "description": "How many days from today.",
                    "default": 1,
                },
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
            },
            "required": ["city"],
        },
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(x: int): pass", "f has no docstring that says what it does, add it, or let"),
        ("def f(x):\n  'Is f.'", "x of f has no annotation, add it, or let"),
        ("def f(x: 'Nope'):\n  'Is f.'", "an annotation of f means nothing: name 'Nope' is not"),
        ("def f(*x: int):\n  'Is f.'", "*x: int of f cannot be given by name"),
        ("def f(x: int, /):\n  'Is f.'", "x: int of f cannot be given by name"),
        ("class A: ...\ndef f(x: A):\n  'Is f.'", "a type of f has no JSON: type <class"),
        ("def _f(): ...\nfrom os.path import join", "has no function of its own, define one"),
        ("x = 1\n\n1 / 0", "does not run: ZeroDivisionError: division by zero (line 3)"),
        ("raise SystemExit(3)", "does not run: SystemExit: 3 (line 1)"),
        ("def f(:", "does not run: SyntaxError: "),
        ("import no_such_module", "does not run: ModuleNotFoundError: No module named"),
    ],
)
def test_a_file_that_is_no_toolbox(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "tools.py"
    path.write_text(text)
    assert main(["run", "none.litertlm", "--prompt", "Hi", "--tools", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: --tools {path}, {message}")
    assert printed.err.count("\n") == 1


def test_what_stands_beside_the_file_can_be_imported(tmp_path: Path) -> None:
    (tmp_path / "beside_the_tools.py").write_text("ANSWER = 42")
    tools = load(
        tmp_path, "from beside_the_tools import ANSWER\ndef f():\n  'Is f.'\n  return ANSWER"
    )
    assert run(tools, "f", {}) == "42"


# Calls ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return 'as it is'", "as it is"),
        ("return {'a': (1, None), 'b': Path('/x')}", '{"a":[1,null],"b":"/x"}'),
        ("yield 1\n  yield 2", "[1,2]"),
        ("return 'a\\0b\\ud800'", "ab?"),
        ("raise KeyError('x')", '{"error":"KeyError: \'x\'"}'),
        ("raise SystemExit(1)", '{"error":"SystemExit: 1"}'),
    ],
)
def test_what_a_function_does_becomes_text(tmp_path: Path, body: str, said: str) -> None:
    text = f"from pathlib import Path\ndef f():\n  'Is f.'\n  {body}\n"
    assert run(load(tmp_path, text), "f", {}) == said


def test_a_coroutine_is_awaited(tmp_path: Path) -> None:
    text = "import asyncio\nasync def f(x: int):\n  'Is f.'\n  return await asyncio.sleep(0, x)"
    assert run(load(tmp_path, text), "f", {"x": 5}) == "5"


def test_what_a_function_prints_goes_to_stderr(
    boxes: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(load_tools(boxes), "open_box", {"box": "red"}) == "a cat in the red box"
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err == "tool: open_box(box='red')\nopening red\nfrom a process\n"


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("burn", {"box": "x\x1b[2J"}, "there is no such tool, but open_box, close_box"),
        ("open_box", {}, "wrong arguments: Object missing required field `box`"),
        ("open_box", {"box": 5}, "wrong arguments: Expected `str`, got `int` - at `$.box`"),
        ("open_box", {"box": "a", "lid": 1}, "wrong arguments: Object contains unknown field"),
        ("open_box", "red", "wrong arguments: Expected `object`, got `str`"),
    ],
)
def test_a_wrong_call_is_not_run(
    boxes: Path, capfd: pytest.CaptureFixture[str], name: str, arguments: Any, reason: str
) -> None:
    assert json.loads(run(load_tools(boxes), name, arguments))["error"].startswith(reason)
    shown = capfd.readouterr().err
    assert shown.startswith(f"tool: {name}(")
    assert reason in shown
    assert "opening" not in shown
    assert "\x1b" not in shown


# Models that call -------------------------------------------------------------------------------

CALL = 'call:open_box{box:<|"|>red<|"|>}'
FENCED = f"<|tool_call>{CALL}<tool_call|>"
ANSWER = "It is a cat."


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gemma 4's template: the model opens the red box, and then says what is in it.

    Where a mark ends the prompt for a question (or, always, for a result), it says something else.
    """
    folder = tmp_path_factory.mktemp("caller")
    bundle = reciting_bundle(
        folder / "m",
        ["<|tool_call>", CALL, "<tool_call|>", "<|tool_response>"],
        FAMILY_TEMPLATES["Gemma 4 E2B and E4B"],
        "gemma4_text-keys-are-values",
        ["<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"],
        {
            "<tool_response|>": [ANSWER],
            "@two": ["Wait.", FENCED + FENCED.replace("open", "close")],
            "@broken": [FENCED.replace("red", "").replace('<|"|>', "").replace("}", "")],
        },
    )

    def variant(mark: str = "", always: bool = False) -> Path:
        def ends_with_mark(metadata: Any) -> None:
            when = "" if always else " and messages[-1].role == 'user'"
            metadata.jinja_prompt_template += (
                "{% if add_generation_prompt" + when + " %}{{ '" + mark + "' }}{% endif %}"
            )

        path = folder / f"m{mark.strip('@')}{always}.litertlm"
        if path.exists() or not mark:
            return path if mark else bundle
        return edited_bundle(bundle, path, ends_with_mark)

    return variant


def test_a_call_its_result_and_the_answer(caller: Callable[..., Path], boxes: Path) -> None:
    tools = load_tools(boxes)
    with Model(caller()) as model:
        chat = ChatOptions().start(model, Toolbox(tools, None, sys.stderr, yes=True))
        for _ in range(2):
            pieces = [(piece.kind, piece.text) for piece in chat.ask("What is in it?")]
            assert pieces == [("call", "open_box(box='red')"), ("answer", ANSWER)]
        # The turns as they are kept are read again as the engine has them in its cache.
        follow_up = {"role": "user", "content": "Again."}
        _, _, needed = chat._fit(follow_up)
        chat.close()
        turns, _, needed_anew = chat._fit(follow_up)
        assert needed == needed_anew
        assert '<|"|>a cat in the red box<|"|>' in turns.render_message_to_string(follow_up)


def test_several_calls_of_one_turn(caller: Callable[..., Path], boxes: Path) -> None:
    with Model(caller("@two")) as model:
        chat = ChatOptions().start(model, Toolbox(load_tools(boxes), None, sys.stderr, yes=True))
        assert [(piece.kind, piece.text) for piece in chat.ask("What is in it?")] == [
            ("answer", "Wait."),
            ("call", "open_box(box='red')"),
            ("call", "close_box(box='red')"),
            ("answer", ANSWER),
        ]


def test_a_long_result_is_cut(caller: Callable[..., Path], tmp_path: Path) -> None:
    text = "def open_box(box: str) -> str:\n  'Opens a box.'\n  return 'cat ' * 100_000"
    with Model(caller()) as model:
        box = Toolbox(load(tmp_path, text), None, sys.stderr, yes=True)
        chat = ChatOptions().start(model, box)
        assert [str(piece) for piece in chat.ask("What is in it?")][-1] == ANSWER
        result = chat._history[-2]["content"][0]["response"]
        kept, _, note = result.partition("\n")
        assert 0.9 < len(model.tokenize(kept)) / (model.context_length / 4) <= 1
        assert note == f"[cut: {400_000 - len(kept)} more characters]"


def test_calls_without_end_are_ended(
    caller: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = load(tmp_path, "def open_box(box: str):\n  'Opens a box.'\n  return 1")
    with Model(caller("\\n", always=True)) as model:
        chat = ChatOptions().start(model, Toolbox(tools, None, sys.stderr, yes=True))
        with pytest.raises(OptionError, match="called tools 16 times and did not answer"):
            list(chat.ask("What is in it?"))
        assert capfd.readouterr().err == "tool: open_box(box='red')\n" * 16
        assert chat._history == []  # and the next question has its full context
        _, _, needed = chat._fit({"role": "user", "content": "What is in it?"})
        assert needed < 300


def test_a_call_that_cannot_be_read(caller: Callable[..., Path], boxes: Path) -> None:
    with Model(caller("@broken")) as model:
        chat = ChatOptions().start(model, Toolbox(load_tools(boxes), None, sys.stderr, yes=True))
        for _ in range(2):  # the chat goes on
            with pytest.raises(
                OptionError, match=r"a call that cannot be read: '<\|tool_call>call"
            ):
                list(chat.ask("What is in it?"))


def test_stopped_while_a_tool_runs(caller: Callable[..., Path], tmp_path: Path) -> None:
    text = "def open_box(box: str):\n  'Opens a box.'\n  raise KeyboardInterrupt"
    with Model(caller()) as model:
        box = Toolbox(load(tmp_path, text), None, sys.stderr, yes=True)
        chat = ChatOptions().start(model, box)
        with pytest.raises(KeyboardInterrupt):
            list(chat.ask("What is in it?"))
        assert chat._history == []
        assert next(chat.ask("What is in it?")).kind == "call"


def test_an_answer_in_json_after_calls(caller: Callable[..., Path], boxes: Path) -> None:
    """Each question is free to call, although the answer before was held to the schema."""
    with Model(caller()) as model:
        box = Toolbox(load_tools(boxes), None, sys.stderr, yes=True)
        chat = ChatOptions().start(model, box, Schema("s", '{"const": [7, 42]}'))
        for _ in range(2):
            assert [(piece.kind, piece.text) for piece in chat.ask("What is in it?")] == [
                ("call", "open_box(box='red')"),
                ("answer", "[7,42]"),
            ]
        assert [message["role"] for message in chat._history] == ["user", "assistant", "tool",
                                                                  "assistant"] * 2  # fmt: skip


# The command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        (["--yes"], "\nopening red\nfrom a process\n"),
        ([], ": refused, nobody can be asked (--yes allows all calls)\n"),
    ],
)
def test_only_the_answer_is_on_stdout(
    caller: Callable[..., Path], boxes: Path, options: list[str], shown: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "run", str(caller()), "--tools", str(boxes), *options],
        cwd=ROOT, input="What is in it?", capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"{ANSWER}\n")
    assert done.stderr == f"tool: open_box(box='red'){shown}"


def test_each_call_is_asked_for(caller: Callable[..., Path], boxes: Path) -> None:
    question = "What is in it?\n"
    asked = "tool: open_box(box='red') [y/N/a] "
    opened = "opening red\nfrom a process\n"
    asked_next = asked.replace("open", "close")
    with Terminal(str(caller("@two")), "--tools", str(boxes)) as terminal:
        terminal.read_until(r"\n> $")
        terminal.type(question)
        assert terminal.read_until(r"/a\] $").endswith(f"{question}Wait.\n{asked}")
        terminal.type("y\n")
        assert terminal.read_until(r"/a\] $") == f"y\n{opened}{asked_next}"
        terminal.type("\n")
        assert terminal.read_until(r"\n> $") == f"\n{ANSWER}\n> "

        terminal.type(question)
        terminal.read_until(r"/a\] $")
        terminal.type("a\n")
        terminal.read_until(r"/a\] $")  # of one tool alone
        terminal.type(CTRL_C)
        assert terminal.read_until(r"\n> $").endswith("\n(stopped)\n> ")

        terminal.type(question)
        seen = terminal.read_until(r"/a\] $")
        assert seen.endswith(f"{question}Wait.\n{asked[:-9]}\n{opened}{asked_next}")
        terminal.type(CTRL_D)
        assert terminal.read_until(r"\n> $") == f"\n{ANSWER}\n> "
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_a_model_that_takes_none(
    smollm2_bundle: Path, boxes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(smollm2_bundle), "--prompt", "Hi", "--tools", str(boxes)]) == 2
    assert capsys.readouterr().err == (
        f"error: --tools, the chat template of {smollm2_bundle.name} takes no tools, or writes "
        "calls that the engine does not read, leave it out, or take another model\n"
    )


def test_a_chat_with_calls_is_saved_and_loaded(
    caller: Callable[..., Path], boxes: Path, tmp_path: Path
) -> None:
    """In OpenAI's form; what is loaded is what was said."""
    path = tmp_path / "chat.json"
    toolbox = Toolbox(load_tools(boxes), None, sys.stderr, yes=True)
    options = (ChatOptions(), Path, io.StringIO(), sys.stderr)
    with Session(str(caller("@two")), *options, is_quiet=True, tools=toolbox) as session:
        session.say("What is in it?")
        session.say("And now?")
        said = session._messages
        session.save(str(path))
        session.clear()
        session.load(str(path))
        assert session._messages == said
        session.retry()  # the last question alone
        assert session._messages == said
        session.save(str(tmp_path / "chat.md"))
        assert "a cat in the red box" in (tmp_path / "chat.md").read_text()
    saved = json.loads(path.read_text())["messages"]
    called = [call for message in saved for call in message.get("tool_calls", [])]
    answered = [message for message in saved if message["role"] == "tool"]
    assert [call["id"] for call in called] == [message["tool_call_id"] for message in answered]
    assert json.loads(called[0]["function"]["arguments"]) == {"box": "red"}
    assert answered[0]["content"] == "a cat in the red box"
    # The server takes it.
    assert messages_of({"messages": saved[:4]})[-1]["content"][0]["name"] == "close_box"
