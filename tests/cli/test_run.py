"""`litert-lm-cli run` as a program: what is on stdout, what on stderr, and the exit code."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.main import build_parser, main
from converter.litertlm.inspection import read_bundle
from tests.conftest import SAID
from tests.edited_bundle import always_thinks, edited_bundle
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).parents[2]


def run(
    *arguments: str, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cli", "run", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL if stdin is None else None,
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def thinker(smollm2_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("thinker")
    yield str(edited_bundle(smollm2_bundle, folder / "thinker.litertlm", always_thinks))
    shutil.rmtree(folder)


def test_a_pipe_is_one_prompt(smollm2_bundle: Path) -> None:
    done = run(str(smollm2_bundle), "--temperature", "0", "--raw", "--max-tokens", "3",
               stdin="The capital of France is\n")  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith(" Paris")
    assert done.stdout.count("\n") == 1
    assert done.stdout.endswith("\n")
    assert done.stderr == ""  # nothing of the engine's log


def test_stdin_comes_before_the_prompt(smollm2_bundle: Path) -> None:
    arguments = [str(smollm2_bundle), "--temperature", "0", "--raw", "--max-tokens", "6"]
    both = run(*arguments, "--prompt", "The capital of France is", stdin="1. Paris\n")
    assert (both.returncode, both.stderr) == (0, "")
    assert both.stdout == run(*arguments, stdin="1. Paris\n\nThe capital of France is").stdout


def test_a_file_in_a_prompt(smollm2_bundle: Path, tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("word " * 3000)
    done = run(str(smollm2_bundle), "--prompt", f"Sum up @{file}")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(
        r"error: the prompt, is 3\d\d\d tokens long .* of 1280 must hold it", done.stderr
    )


def test_statistics_say_of_drafts(drafting_bundle: Path) -> None:
    asked = [str(drafting_bundle), "--stats", "--temperature", "0", "--prompt"]
    done = run(*asked, f"Say:{''.join(SAID)}.", "--max-tokens", "7")
    assert done.stdout == "".join(SAID[:7]) + "\n"
    assert re.search(
        r"decode: 7 tokens at .* tok/s, [1-4]\.\d at a time with drafts\n$", done.stderr
    )
    assert build_parser().parse_args(["run", *asked, "x"]).drafts
    assert not build_parser().parse_args(["run", *asked, "x", "--no-drafts"]).drafts


def test_statistics_are_on_stderr(smollm2_bundle: Path) -> None:
    done = run(str(smollm2_bundle), "--prompt", "Say hi.", "--max-tokens", "4", "--stats",
               "--seed", "1", "--threads", "1")  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.strip()
    [line] = done.stderr.splitlines()
    assert line.startswith("prefill: ")
    assert "decode: 4 tokens at " in line


def test_a_narrow_encoding_does_not_stop_it(smollm2_bundle: Path) -> None:
    emoji = "Emoji list: \U0001f600 \U0001f601 \U0001f602 \U0001f923 \U0001f603"
    done = run(str(smollm2_bundle), "--prompt", emoji, "--raw", "--temperature", "0",
               "--max-tokens", "12", PYTHONIOENCODING="ascii", PYTHONUTF8="0")  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


def test_verbose_shows_the_engines_log(qwen3_bundle: Path) -> None:
    done = run(str(qwen3_bundle), "--prompt", "Hi", "--max-tokens", "2", "--verbose")
    assert done.returncode == 0
    assert "XNNPACK" in done.stderr


def test_thoughts_are_marked_in_a_pipe(thinker: str) -> None:
    done = run(thinker, "--prompt", "Tell me about Paris.", "--temperature", "0",
               "--max-tokens", "3")  # fmt: skip
    assert done.returncode == 0
    begin, thought, end, *answer = done.stdout.splitlines()
    assert (begin, end) == ("<think>", "</think>")
    assert thought
    assert answer
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize(
    "arguments", [["--no-thinking"], ["--thinking"], ["--system", "Be brief."]]
)
def test_a_thinking_model_takes_its_options(qwen3_bundle: Path, arguments: list[str]) -> None:
    done = run(str(qwen3_bundle), "--prompt", "Hi", "--max-tokens", "2", *arguments)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_reader_that_leaves_ends_it_quietly(smollm2_bundle: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "run", str(smollm2_bundle), "--prompt", "Tell me a story."],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    with process.stderr as stderr:
        assert stderr.read() == b""
    assert process.wait(30) == 141


def test_too_long_a_prompt(smollm2_bundle: Path) -> None:
    done = run(str(smollm2_bundle), "--raw", stdin="word " * 3000)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: the prompt, is 3001 tokens long with its template and history, and the context of "
        "1280 must hold it and an answer, shorten it, start a new chat, or convert --force with a "
        "larger --kv-cache-max-len\n"
    )


def test_a_damaged_model(qwen3_bundle: Path, tmp_path: Path) -> None:
    data = qwen3_bundle.read_bytes()
    path = tmp_path / "half.litertlm"
    path.write_bytes(data[: len(data) // 2])
    done = run(str(path), "--prompt", "Hi")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {path}, damaged: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("stdin", ["", "\n", " \n\n"])
def test_empty_stdin(stdin: str) -> None:
    done = run("none.litertlm", stdin=stdin)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: the prompt on stdin, is empty, ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens", "0"], "argument --max-tokens: '0' is not a whole number from 1 to"),
        (["--max-tokens", "1.5"], "argument --max-tokens: '1.5' is not a whole number"),
        (["--top-k", "-1"], "argument --top-k: '-1' is not a whole number from 1"),
        (["--seed", "-1"], "argument --seed: '-1' is not a whole number from 0"),
        (["--seed", "2147483648"], "argument --seed: '2147483648' is not a whole number"),
        (["--threads", "0"], "argument --threads: '0' is not a whole number from 1 to 256"),
        (["--temperature", "-0.1"], "'-0.1' is not a number of at least 0,"),
        (["--temperature", "nan"], "'nan' is not a number of at least 0,"),
        (["--temperature", "inf"], "'inf' is not a number of at least 0,"),
        (["--temperature", "hot"], "'hot' is not a number of at least 0,"),
        (["--top-p", "0"], "'0' is not a number of more than 0 and at most 1,"),
        (["--top-p", "1.01"], "'1.01' is not a number of more than 0 and at most 1,"),
        (["--top-p", "nan"], "'nan' is not a number of more than 0 and at most 1,"),
        (["--backend", "npu"], "argument --backend: invalid choice: 'npu'"),
        (["--prompt", " "], "error: --prompt, is empty,"),
        (["--prompt", "@./gone"], "error: @./gone, there is no such file, check the path"),
        (["--raw", "--system", "Be brief."], "error: --system, there is no chat template"),
        (["--raw", "--thinking"], "error: --thinking, there is no chat template"),
        (["--raw", "--no-thinking"], "error: --no-thinking, there is no chat template"),
        (["--yes"], "error: --yes, has no effect without --tools,"),
        (["--raw", "--tools", "x.py"], "error: --tools, there is no chat template"),
        (["--thinking", "--schema", "x.json"], "error: --schema, leaves no room for thoughts,"),
        (["--backend", "gpu", "--threads", "2"], "error: --threads, has no effect on gpu,"),
        (["--quantize", "int3"], "int3"),
    ],
)
def test_bad_options(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    if "--prompt" not in arguments:
        arguments = ["--prompt", "Hi", *arguments]
    assert main(["run", "none.litertlm", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thinking"], "error: --thinking, {name} has no thinking to switch on, leave it out\n"),
        (["--prompt", "\udc80"], "error: the prompt, is not UTF-8, give it as UTF-8 text\n"),
    ],
)
def test_what_the_model_cannot_do(
    smollm2_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert main(["run", str(smollm2_bundle), "--prompt", "Hi", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == message.format(name=smollm2_bundle.name)


def test_without_a_gpu_it_says_so_in_a_line(smollm2_bundle: Path) -> None:
    arguments = ["--prompt", "Hi", "--backend", "gpu", "--max-tokens", "2"]
    ended = run(str(smollm2_bundle), *arguments)
    if ended.returncode == 0:  # there is one
        assert ended.stdout
        return
    assert re.fullmatch(
        "error: --backend gpu, the engine finds no GPU here .*, use --backend cpu, or .*\n",
        ended.stderr,
    )


def test_chat_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("run", "chat"):
        assert main([command, str(tmp_path / "none.litertlm"), "--prompt", "Hi"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert first == second


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(tmp_path / "none.litertlm"), "--prompt", "Hi"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert "none.litertlm" in printed.err
    assert printed.err.count("\n") == 1


def test_help_names_every_option() -> None:
    args = build_parser().parse_args(["run", "demo"])
    assert vars(args).keys() >= {
        "model", "prompt", "system", "raw", "thinking", "max_tokens", "temperature", "top_k",
        "top_p", "seed", "backend", "threads", "stats", "verbose", "quantize", "kv_cache_max_len",
        "tools", "yes", "schema",
    }  # fmt: skip


def test_a_conversion_for_the_gpu_backend_is_for_a_gpu(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "tiny")
    done = run(str(tmp_path / "tiny"), "--backend", "gpu", "--prompt", "Hi", "--max-tokens", "1",
               LITERT_LM_MODELS=str(tmp_path / "models"))  # fmt: skip
    assert "Traceback" not in done.stderr  # with a GPU it answers, without one it says so
    [bundle] = (tmp_path / "models").rglob("*.litertlm")
    assert read_bundle(bundle).system["target"] == "gpu"
