"""What Tab makes of a command line: in a real bash, and what the other shells are given."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import main
from converter.weights.quantization import SCHEMES

ROOT = Path(__file__).parents[2]
# Does what bash does on Tab: takes the word's function, tells it the line, and shows the answers.
_TAB = """
eval "$(litert-lm-cli completion bash)"
complete -p litert-lm-cli > /dev/null || exit 1
for line in "$@"; do
    COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete litert-lm-cli 2> /dev/null
    echo "${COMPREPLY[*]}"
done
"""


def offered(work: Path, *lines: str) -> list[set[str]]:
    """What bash is offered for each line."""
    program = work / "bin/litert-lm-cli"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m cli "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "LITERT_LM_MODELS": str(work / "models"),
    }
    done = subprocess.run(
        ["bash", "--norc", "-c", _TAB, "bash", *lines],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return [set(line.split()) for line in done.stdout.split("\n")[: len(lines)]]


def test_bash(tmp_path: Path) -> None:
    model = tmp_path / "models/org/tiny/tiny.litertlm"
    model.parent.mkdir(parents=True)
    model.touch()
    (tmp_path / "weights.gguf").touch()
    (tmp_path / "models/org/packs/coreml").mkdir(parents=True)  # which run does not take
    commands, options, choices, names, files, schemes, results, removed = offered(
        tmp_path,
        "litert-lm-cli c",
        "litert-lm-cli run --te",
        "litert-lm-cli run --backend ",
        "litert-lm-cli run o",
        "litert-lm-cli convert w",
        "litert-lm-cli convert weights.gguf --quantize ",
        "litert-lm-cli inspect o",
        "litert-lm-cli rm o",
    )
    assert commands == {"chat", "check", "completion", "convert"}
    assert options == {"--temperature"}
    assert choices == {"cpu", "gpu"}
    assert names == {"org/tiny"}
    assert files == {"weights.gguf"}
    assert schemes == set(SCHEMES)
    assert results == removed == {"org/tiny", "org/packs"}


@pytest.mark.parametrize(
    ("shell", "line"),
    [
        ("bash", "-F _python_argcomplete litert-lm-cli\n"),
        ("zsh", "#compdef litert-lm-cli\n"),
        ("zsh", "compdef _python_argcomplete litert-lm-cli\n"),
        ("fish", "complete --command litert-lm-cli -f -a '(__fish_litert-lm-cli_complete)'\n"),
    ],
)
def test_each_shell_is_told_of_the_program(
    shell: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    printed = capsys.readouterr()
    assert line in printed.out
    assert printed.err == ""


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "invalid choice: 'tcsh'" in capsys.readouterr().err
