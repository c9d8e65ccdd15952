"""What becomes of a process that dies, does not listen, or is told to end; all of it for real."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cli.main import main
from tests.terminal import CTRL_C, CTRL_D, Terminal, worker_of

ROOT = Path(__file__).parents[2]


def is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_crash_of_the_engine_is_an_error_of_ours(smollm2_bundle: Path, tmp_path: Path) -> None:
    """The model's file is cut while the engine has it mapped: reading the rest is a SIGBUS."""
    model = Path(shutil.copy(smollm2_bundle, tmp_path))
    with Terminal(str(model)) as terminal:
        terminal.read_until(r"\n> $")
        os.truncate(model, 0)
        terminal.type("Say hi.\n")
        assert terminal.exit_code() == 128 + signal.SIGBUS
        [line] = terminal.shown.partition("Say hi.")[2].strip().splitlines()
    assert line.startswith(
        "error: litert-lm-cli, native code crashed (SIGBUS), the file may be damaged"
    )


def run_with_pattern(bundle: Path, work: Path, pattern: str) -> subprocess.CompletedProcess[str]:
    """Convert the model of `bundle` with a pattern before its own, and ask it something."""
    source = Path(shutil.copytree(bundle.with_suffix(""), work / "bomb"))
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    parts = [split, tokenizer["pre_tokenizer"]]
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
    assert main(["convert", str(source), "--quiet", "--output-dir", str(work)]) == 0
    prompt = ["--prompt", "a" * 400, "--max-tokens", "3"]
    return subprocess.run(
        [sys.executable, "-m", "cli", "run", str(work / "bomb.litertlm"), *prompt],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def test_the_engines_last_words_are_in_the_error(qwen3_bundle: Path, tmp_path: Path) -> None:
    """The library that reads the tokenizer here takes this pattern; the engine's gives up."""
    done = run_with_pattern(qwen3_bundle, tmp_path, "(a{1,30000}){1,30000}b")
    assert (done.returncode, done.stdout) == (128 + signal.SIGABRT, "")
    assert done.stderr.startswith("error: litert-lm-cli, native code crashed (SIGABRT: ")
    assert "Error compiling regex" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_pattern_that_takes_for_ever_does_not(qwen3_bundle: Path, tmp_path: Path) -> None:
    done = run_with_pattern(qwen3_bundle, tmp_path, "(a|aa)+b")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, "it was killed (SIGKILL), by somebody or because memory ran out, close"),
        (signal.SIGSEGV, "native code crashed (SIGSEGV), the file may be damaged"),
        (signal.SIGUSR1, "interrupted by SIGUSR1, run it again"),
    ],
)
def test_its_death_is_reported(qwen3_bundle: Path, number: int, said: str) -> None:
    with Terminal(str(qwen3_bundle)) as terminal:
        terminal.read_until(r"\n> $")
        os.kill(worker_of(terminal.process.pid), number)
        assert terminal.exit_code() == 128 + number
        assert f"error: litert-lm-cli, {said}" in terminal.seen


def test_it_does_not_outlive_its_supervisor(qwen3_bundle: Path) -> None:
    with Terminal(str(qwen3_bundle)) as terminal:
        terminal.read_until(r"\n> $")
        worker = worker_of(terminal.process.pid)
        terminal.process.kill()
        terminal.process.wait()
        deadline = time.monotonic() + 10
        while is_alive(worker):
            assert time.monotonic() < deadline


@contextmanager
def answering(model: Path) -> Iterator[subprocess.Popen[str]]:
    """One that has begun to answer, in a session without a terminal that would tell every one."""
    with subprocess.Popen(
        [sys.executable, "-m", "cli", "run", model, "--prompt", "Tell me a long story."],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(10)
        yield process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_are_passed_on(smollm2_bundle: Path, number: int) -> None:
    with answering(smollm2_bundle) as process:
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    why = "at your request" if number == signal.SIGINT else f"by {signal.Signals(number).name}"
    assert said == f"error: interrupted, {why}, run it again\n"


def test_a_closed_terminal_ends_it_once(smollm2_bundle: Path) -> None:
    """The system tells every process of the group, and the supervisor tells its own once more."""
    with answering(smollm2_bundle) as process:
        os.killpg(process.pid, signal.SIGHUP)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGHUP
    assert said == "error: interrupted, by SIGHUP, run it again\n"


def test_three_interrupts_end_what_does_not_listen(qwen3_bundle: Path) -> None:
    with Terminal(str(qwen3_bundle)) as terminal:
        terminal.read_until(r"\n> $")
        worker = worker_of(terminal.process.pid)
        terminal.type("Tell me a story.\n")
        terminal.read_until(r"story\.\n.")
        os.kill(worker, signal.SIGSTOP)  # deafer than any native code
        for _ in range(3):
            assert is_alive(worker)
            terminal.type(CTRL_C)
            time.sleep(0.1)
        assert terminal.exit_code() == 130
        assert "error: litert-lm-cli, interrupted by SIGINT, run it again" in terminal.seen


def test_interrupts_that_are_heard_end_nothing(qwen3_bundle: Path) -> None:
    with Terminal(str(qwen3_bundle)) as terminal:
        terminal.read_until(r"\n> $")
        for _ in range(5):
            terminal.type(CTRL_C)
            terminal.read_until(r"leaves\.\n> $")
        terminal.type(CTRL_D)
        assert terminal.exit_code() == 0


def test_an_exit_code_is_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "run"], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 2


def test_the_mark_does_not_travel() -> None:
    """A process that the worker starts is no worker, whatever its parent's number is."""
    environment = os.environ | {"LITERT_LM_SUPERVISOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cli", "--version"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
