"""Answers that are JSON of a schema, and schemas that cannot be kept to."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from converter.errors import OptionError
from runner.engine import Model
from runner.options import ChatOptions
from runner.schema import JsonEscaper, Schema, as_json
from tests.edited_bundle import always_thinks, edited_bundle, small_context

ROOT = Path(__file__).parents[2]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "job": {"enum": ["smith", "baker"]},
    },
    "required": ["name", "age", "job"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(smollm2_bundle: Path) -> Iterator[Model]:
    with Model(smollm2_bundle) as opened:
        yield opened


def asked(model: Model, schema: Any, *prompts: str, **options: Any) -> list[str]:
    chat = ChatOptions(temperature=0, **options).start(model, None, Schema("s", json.dumps(schema)))
    return ["".join(map(str, chat.ask(prompt))) for prompt in prompts]


@pytest.mark.parametrize("raw", [False, True])
def test_every_answer_is_of_the_schema(model: Model, raw: bool) -> None:
    for answer in asked(model, PERSON, "Peter bakes bread.", "And Ann, who is 40?", raw=raw):
        person = json.loads(answer)
        assert person.keys() == PERSON["properties"].keys()  # type: ignore[attr-defined]
        assert len(person["name"]) <= 20
        assert person["age"] in range(121)
        assert person["job"] in ("smith", "baker")


def test_line_breaks_in_a_text_are_escaped(model: Model) -> None:
    schema = {"type": "string", "minLength": 30, "maxLength": 160}
    [answer] = asked(model, schema, "Write a poem of four lines, with line breaks.")
    assert "\n" in json.loads(answer)
    assert "\n" not in answer


@pytest.mark.parametrize(
    ("text", "json_text"),
    [
        ('{"a": 1.50}\n', '{"a": 1.50}'),  # as it was written
        ('"\u00e9\n"', '"\u00e9\\n"'),
        ('{"a": 1', None),
        ("", None),
        (r'"\"\n' + "\n" + r'\\"', r'"\"\n\n\\"'),  # what was escaped already stays
        ('{\n"a": "\t\x01"\n}', '{\n"a": "\\t\\u0001"\n}'),  # between strings they may stand
    ],
)
def test_as_json(text: str, json_text: str | None) -> None:
    assert as_json(text) == json_text
    escaper = JsonEscaper()
    if json_text is not None:
        assert "".join(map(escaper.feed, text)).strip() == json_text


def test_an_answer_that_is_cut(smollm2_bundle: Path, tmp_path: Path) -> None:
    ones = {"type": "array", "items": {"const": 1}, "minItems": 200}
    schema = Schema("s", json.dumps(ones))
    with Model(edited_bundle(smollm2_bundle, tmp_path / "m.litertlm", small_context)) as model:
        chat = ChatOptions().start(model, None, schema)
        for _ in range(2):  # a cut answer is no part of the history: the next prompt fits
            with pytest.raises(OptionError, match="its JSON was whole, bound the schema's texts"):
                list(chat.ask("Count."))
        chat = ChatOptions(max_tokens=8).start(model, None, schema)
        with pytest.raises(OptionError, match="its JSON was whole, give it a larger --max-tokens"):
            list(chat.ask("Count."))


def test_a_fixed_text_that_the_engine_cannot_spell(model: Model) -> None:
    """In docs/server.md, too; where this fails, the engine has learnt it."""
    with pytest.raises(OptionError, match="fixed texts with blanks or letters beyond ASCII"):
        asked(model, {"enum": ["New York", "San Jose"]}, "A city?")


REFUSED = {
    "Invalid type: objekt": {"type": "objekt"},
    'Unimplemented keys: ["uniqueItems"]': {"type": "array", "uniqueItems": True},
    "Unsatisfiable schema: minimum (5)": {"type": "integer", "minimum": 5, "maximum": 3},
    "Only absolute $ref's": {"$ref": "http://localhost/x.json"},
}


def test_what_the_engine_cannot_keep_to(smollm2_bundle: Path) -> None:
    with Model(smollm2_bundle) as model:  # of this test alone: pytest takes the log of others
        for reason, schema in REFUSED.items():
            with pytest.raises(OptionError) as caught:
                model.conversation(json_schema=Schema("--schema s.json", json.dumps(schema)))
            said = f"--schema s.json, the engine cannot keep to it: {reason}"
            assert str(caught.value).startswith(said)
        model.conversation(json_schema=Schema("s", json.dumps(PERSON)))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "is not JSON: Expecting property name enclosed in double quotes: line 1 column 2"),
        (b"\xff", "is not JSON: 'utf-8' codec can't decode"),
        (b"[1]", "is not a JSON object, a schema begins like"),
        (b" " * 70000, "is larger than 65536 bytes"),
        (None, "No such file or directory, name a readable file"),
    ],
)
def test_a_file_that_is_no_schema(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, why: str
) -> None:
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_bytes(content)
    assert main(["run", "none.litertlm", "--prompt", "Hi", "--schema", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: --schema {path}, {why}")
    assert printed.err.count("\n") == 1


def test_a_thought_has_no_schema(smollm2_bundle: Path, tmp_path: Path) -> None:
    thinker = Model(edited_bundle(smollm2_bundle, tmp_path / "m.litertlm", always_thinks))
    with pytest.raises(OptionError, match=r"--schema, m\.litertlm always thinks"):
        thinker.conversation(json_schema=Schema("s", "{}"))  # before it is loaded


def test_thoughts_that_can_be_switched_off_are(qwen3_bundle: Path) -> None:
    with Model(qwen3_bundle) as model:
        chat = ChatOptions().start(model, None, Schema("s", '{"const": [7]}'))
        assert [str(piece) for piece in chat.ask("Hi")] == ["[7]"]
        turns, *_ = chat._fit({"role": "user", "content": "Hi"})
        assert "<think>\n\n</think>" in turns.render_message_to_string("Hi")


def test_the_command(smollm2_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(PERSON), "utf-8-sig")
    done = subprocess.run(
        [sys.executable, "-m", "cli", "run", str(smollm2_bundle), "--schema",
         str(tmp_path / "schema.json")],
        cwd=ROOT, input="Peter bakes bread.", capture_output=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout).keys() == {"name", "age", "job"}
    assert done.stdout.count("\n") == 1
