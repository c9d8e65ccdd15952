"""What the engine's Android programs print, and how it is read."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from converter.errors import OptionError
from device.runner import Figures, _check_machine, answer_alone, read_report

# As a user of litert_lm_main 0.10.2 has published it.
REPORT = """BenchmarkInfo:
  Init Phases (7):
    - Init Conversation: 0.09 ms
    - Init Executor: 577.30 ms
    - Init LLM metadata: 0.15 ms
    - Init Model assets: 0.49 ms
    - Init Tokenizer: 101.68 ms
    - Init Total: 580.10 ms
--------------------------------------------------
  Time to first token: 0.92 s
--------------------------------------------------
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 16 tokens in 819.9514ms duration.
      Prefill Speed: 19.51 tokens/sec.
--------------------------------------------------
  Decode Turns (Total 1 turns):
    Decode Turn 1: Processed 88 tokens in 8.7038005s duration.
      Decode Speed: 10.11 tokens/sec.
--------------------------------------------------
  TextToTokenIds Turns (Total 2 turns):
    Turn 1: 11.2us, 1 tokens
    Turn 2: 46.1us, 15 tokens
--------------------------------------------------
--------------------------------------------------
"""
PROMPT = "Hello.\nWrite one short paragraph."
ANSWER = "The old lighthouse stood.\n\nBenchmarkInfo: is a word, too.\n\n- Init"


def test_a_published_report() -> None:
    assert read_report(REPORT) == pytest.approx(Figures(16, 88, 19.51, 10.11, 0.92, 0.5801))


def test_a_report_in_a_log_and_of_an_older_version() -> None:
    older = REPORT.replace("- Init Total", "Total init time").replace("  Time to first", "  Any")
    logged = f"I0000 00:00:1732646400.1  4711 litert_lm_lib.cc:339] {older}I0000 done\n"
    found = read_report(logged)
    assert found is not None
    assert (found.prompt, found.new) == (16, 88)
    assert found.load_seconds == pytest.approx(0.5801)
    assert found.first_token_seconds is None


def test_turns_are_added_up() -> None:
    """A system message may be a turn of its own."""
    second = (
        "    Prefill Turn 2: Processed 4 tokens in 2s duration.\n"
        "      Prefill Speed: 2.00 tokens/sec.\n"
    )
    found = read_report(REPORT.replace("sec.\n---", f"sec.\n{second}---", 1))
    assert found is not None
    assert found.prompt == 20
    assert found.prefill == pytest.approx(20 / (16 / 19.51 + 2))


@pytest.mark.parametrize("kind", ["Prefill", "Decode"])
def test_a_report_without_a_turn(kind: str) -> None:
    lines = [line for line in REPORT.splitlines() if not line.strip().startswith(f"{kind} Turn 1")]
    assert read_report("\n".join(lines)) is None
    assert read_report("") is None


@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
@pytest.mark.parametrize("echo", [f"input_prompt: {PROMPT}\n", ""])
@pytest.mark.parametrize("behind", [f"\n\n{REPORT}\n", "\n"])
def test_an_answer_alone(size: int, echo: str, behind: str) -> None:
    printed = f"{echo}{ANSWER}{behind}"
    chunks = (printed[i : i + size] for i in range(0, len(printed), size))
    report: list[str] = []
    assert "".join(answer_alone(chunks, PROMPT, report)).rstrip("\n") == ANSWER
    assert ("".join(report).strip() == REPORT.strip()) == (len(behind) > 1)


def test_an_answer_comes_as_it_is_written() -> None:
    """Nothing waits that cannot be the report."""
    said: list[str] = []
    pieces = ["input_prompt: Hi\n", "Hel", "lo\n", "you.\n"]

    def printed() -> Iterator[str]:
        for piece in pieces:
            said.append(piece)
            yield piece

    seen = [(len(said), text) for text in answer_alone(printed(), "Hi") if text]
    assert seen == [(2, "Hel"), (3, "lo"), (4, "\nyou."), (4, "\n")]


def _elf(bits: int, machine: int) -> bytes:
    return b"\x7fELF" + bytes([bits, 1, 1]) + bytes(9) + struct.pack("<HH", 3, machine) + bytes(44)


@pytest.mark.parametrize(
    ("content", "abi", "said"),
    [
        (_elf(2, 183), "arm64-v8a", None),
        (_elf(2, 62), "x86_64", None),
        (_elf(1, 40), "armeabi-v7a", None),
        (b"#!/system/bin/sh\n", "arm64-v8a", None),
        (_elf(2, 62), "arm64-v8a", "it is built for x86_64, the device is arm64-v8a"),
        (_elf(2, 183), "armeabi-v7a", "it is built for arm64-v8a, the device is armeabi-v7a"),
        (_elf(2, 243), "arm64-v8a", "it is built for another processor, the device is arm64-v8a"),
        (_elf(2, 243), "riscv64", "it is built for another processor, the device is riscv64"),
        (b"\x7fELF", "arm64-v8a", "it is no program for Android"),
        (b"PK\3\4", "arm64-v8a", "it is no program for Android"),
        (None, "arm64-v8a", "No such file or directory"),
    ],
)
def test_programs_are_for_the_device(
    content: bytes | None, abi: str, said: str | None, tmp_path: Path
) -> None:
    file = tmp_path / "litert_lm_main"
    if content is not None:
        file.write_bytes(content)
    if said is None:
        _check_machine(file, abi)
        return
    with pytest.raises(OptionError) as caught:
        _check_machine(file, abi)
    assert str(caught.value).startswith(
        f"--runner {file}, {said}, get litert_lm_main.android_arm64"
    )
