"""The command line as a whole: help, exit codes, and errors in one line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import convert, inspect
from cli.main import main
from converter.errors import EngineError, LiteRTLMError, OptionError, OutputError, SourceError
from converter.errors import UnsupportedError as Unsupported
from converter.version import __version__
from converter.weights.quantization import SCHEMES
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).parents[2]
COMMANDS = (
    "run", "serve", "convert", "check", "preflight", "eval", "package", "upload", "push", "inspect",
    "list", "rm", "verify", "completion",
)  # fmt: skip


def program(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
        **options,  # type: ignore[call-overload]
    )


def raiser(error: BaseException) -> Callable[[object], None]:
    def handler(_: object) -> None:
        raise error

    return handler


# Help and usage ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.startswith(f"usage: litert-lm-cli {command} ")


@pytest.mark.parametrize("command", ["run", "convert"])
def test_help_names_every_scheme(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = set(re.findall(r"\w+", capsys.readouterr().out))
    assert set(SCHEMES) <= words


@pytest.mark.parametrize("command", ["run", "convert", "check", "preflight"])
def test_help_names_every_source(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "(org/name), a folder" in printed
    assert "a .gguf file, a model of Ollama's (NAME:TAG), or demo" in printed


def test_help_of_the_whole_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    for command in COMMANDS:
        assert f"\n    {command} " in out
    assert "litert-lm-cli run demo" in out
    assert out.count("(chat)") == 1  # run's other name


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"litert-lm-cli {__version__}\n"


def test_help_starts_in_a_blink() -> None:
    """Nothing heavy is imported for it: numpy alone costs more than all of this."""
    code = (
        "import sys\n"
        "from cli.main import main\n"
        "try: main(['convert', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = 'numpy', 'huggingface_hub', 'tokenizers', 'rich', 'prompt_toolkit'\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            [],
            "error: litert-lm-cli, the following arguments are required: COMMAND, "
            "see litert-lm-cli --help\n",
        ),
        (
            ["convert"],
            "error: litert-lm-cli convert, the following arguments are required: MODEL, "
            "see litert-lm-cli convert --help\n",
        ),
        (
            ["convert", "demo", "--fast"],
            "error: litert-lm-cli, unrecognized arguments: --fast, see litert-lm-cli --help\n",
        ),
        (
            ["list", "all"],
            "error: litert-lm-cli, unrecognized arguments: all, see litert-lm-cli --help\n",
        ),
    ],
)
def test_usage_errors(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", line)


def test_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["talk"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("error: litert-lm-cli, argument COMMAND: invalid choice: 'talk' ")
    assert all(command in printed.err for command in COMMANDS)


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [(OptionError, 2), (SourceError, 1), (Unsupported, 1), (OutputError, 1), (EngineError, 1)],
)
def test_every_error_is_one_line_and_a_code(
    error: type[LiteRTLMError],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(convert, "main", raiser(error("what", "why", "fix")))
    assert main(["convert", "x"]) == code
    assert capsys.readouterr() == ("", "error: what, why, fix\n")


def test_an_unexpected_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "main", raiser(KeyError("a\nb")))
    assert main(["convert", "x"]) == 1
    assert capsys.readouterr() == (
        "",
        "error: unexpected KeyError, 'a\\nb', "
        "this is a bug: run again with --debug and report what it prints\n",
    )


def test_an_interruption(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(convert, "main", raiser(KeyboardInterrupt()))
    assert main(["convert", "x"]) == 130
    assert capsys.readouterr() == ("", "error: interrupted, at your request, run it again\n")


def test_a_message_cannot_drive_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Parts of it come from a model's files: escape sequences, C1 controls, direction marks."""
    hostile = "a\x1b[2Jb\nerror: c\rd\x07\x9b31me\u202ef\x7f\u2028g\udc80h"
    monkeypatch.setattr(convert, "main", raiser(SourceError(hostile, "größe 模型", "x")))
    assert main(["convert", "x"]) == 1
    assert capsys.readouterr().err == "error: a [2Jb error: c d 31me f g h, größe 模型, x\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--debug", "inspect", "none.litertlm"],
        ["inspect", "--debug", "none.litertlm"],
        ["inspect", "none.litertlm", "--debug"],
        ["inspect", "none.litertlm", "--deb"],
    ],
)
def test_debug_adds_the_traceback(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    *traceback, line = printed.err.splitlines()
    assert line.startswith("error: none.litertlm, there is no such file, pass ")
    assert traceback[0].startswith("Traceback (most recent call last):")
    assert any("outputs.py" in entry for entry in traceback)
    # and without it, there is none
    assert main([argument for argument in arguments if not argument.startswith("--")]) == 1
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_a_usage_errors_traceback(
    place: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["convert", "x"]
    arguments.insert(place, "--debug")
    assert main([*arguments, "--quantize", "int3"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert printed.splitlines()[-1].startswith("error: --quantize int3, no such scheme, ")


def test_as_a_program() -> None:
    done = program("inspect", "none.litertlm")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "error: none.litertlm, there is no such file, pass a .litertlm file, a folder of Core ML "
        "packages, or a model's name in list\n"
    )


def test_a_reader_that_leaves(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "cli", "--debug", "list"],
            cwd=ROOT,
            env=os.environ | {"LITERT_LM_MODELS": str(models_with_one(tmp_path))},
            stdout=stdout,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (141, b"")


def models_with_one(folder: Path) -> Path:
    from converter.litertlm.bundle import Section, lay_out

    layout = lay_out([Section("GenericBinaryData", 1, {})], {})
    (folder / "local" / "m").mkdir(parents=True)
    content = layout.header.ljust(layout.nbytes, b"\0")
    (folder / "local" / "m" / "m.litertlm").write_bytes(content)
    return folder


def test_a_narrow_encoding_does_not_stop_it(tmp_path: Path) -> None:
    models = models_with_one(tmp_path / "größe")
    done = program(
        "inspect",
        str(models / "local" / "m" / "m.litertlm"),
        env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/gr??e/local/m/m.litertlm  " in done.stdout


def test_every_command_is_tried_here() -> None:
    from cli.main import _COMMANDS

    assert [command.__name__ for command in _COMMANDS] == [f"cli.{name}" for name in COMMANDS]
    assert inspect in _COMMANDS


def test_a_closed_stdout_is_no_error(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "{sys.executable}" -m cli list >&-'],
        cwd=ROOT,
        env=os.environ | {"LITERT_LM_MODELS": str(models_with_one(tmp_path))},
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


_DROPPED = """
import signal, sys, time, weakref
from cli import list, main
def work(_):
    class Thing: pass
    thing = Thing()
    number = getattr(signal, sys.argv[1])
    called = weakref.ref(thing, lambda _: signal.raise_signal(number))
    del thing  # Python drops what the callback raises
    time.sleep(30)
list.main = work
sys.exit(main.main(["list"]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_where_python_drops_exceptions(name: str, code: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _DROPPED, name],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )
    assert done.returncode == code
    assert re.fullmatch("error: interrupted, .*, run it again\n", done.stderr)


def test_what_was_printed_before_a_failure_arrives(tmp_path: Path) -> None:
    """Into a pipe, where the system writes nothing until it is told to."""
    make_checkpoint("llama", tmp_path / "llama")
    environment = os.environ | {"LITERT_LM_MODELS": str(tmp_path / "models")}
    command = [sys.executable, "-m", "cli"]
    done = subprocess.run(
        [*command, "convert", tmp_path / "llama", "--quiet"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    path = Path(done.stdout.strip())
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = subprocess.run(
        [*command, "verify", path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout.startswith("DIFFERS ")
    assert done.stderr.startswith("error: ")
