"""Chat for hours, to the last token of the context, and interrupt it at any moment.

    venv/bin/python -m reliability.chats                  # a quarter of an hour
    venv/bin/python -m reliability.chats --turns 4 --interrupts 6 --lengths 2   # in CI

The real engine runs SmolLM2-135M on a pseudo-terminal: one chat of many turns; prompts of every
length around the end of the context; answers that fill it to the last token; Ctrl-C and SIGKILL at
random moments of an answer, and Ctrl-C at random moments of a chat, which must go on; and a model
whose file is cut while it is used, which crashes the engine. A loss is a wrong exit code, a
traceback, an error that is not one line of ours, a chat that does not go on, memory that grows with
every turn, or a file that is left behind. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.measure import guarded, note, run
from reliability.trials import command, conclude, hear_signals, wait_until_it_hears
from runner.engine import Model
from tests.conftest import real_model
from tests.terminal import CTRL_C, CTRL_D, Terminal

_PROMPT = r"\n> $"
_CONTEXT = 4096  # tokens of the chat of many turns
_GROWTH = 64 << 20  # bytes, between the first tenth of a chat and its end
LOSSES = ("failed", "traceback", "wrong exit code", "no error line", "left behind", "memory grew")


def measure(work: Path, turns: int, interrupts: int, lengths: int) -> dict[str, dict[str, int]]:
    """What became of each kind of load."""
    gguf = real_model("smollm2-135m-instruct-q4_1.gguf")
    model, small = work / "chat.litertlm", work / "small.litertlm"
    for path, length in ((model, _CONTEXT), (small, 64)):
        options = ["--kv-cache-max-len", str(length), "--output-dir", str(work), "--quiet"]
        run([*command("convert", str(gguf)), *options])
        next(work.glob("smollm2*.litertlm")).rename(path)
        next(work.glob("*.json")).unlink()
    results = {}
    for name, found in (
        ("turns of a chat", lambda: many_turns(model, turns)),
        ("prompts around the limit", lambda: around_the_limit(small, lengths)),
        ("interrupted answers", lambda: ended_answers(model, interrupts, signal.SIGINT)),
        ("killed answers", lambda: ended_answers(model, interrupts, signal.SIGKILL)),
        ("interrupted chats", lambda: interrupted_chats(model, interrupts)),
        ("crashes of the engine", lambda: crashes(model, lengths)),
    ):
        note(name)
        counts = found()
        counts["left behind"] += len(set(work.iterdir()) - {model, small})
        results[name] = dict(+counts)
    return results


def many_turns(model: Path, turns: int) -> Counter[str]:
    """One chat, whose history the engine keeps, or is told again after an answer that was cut."""
    found: Counter[str] = Counter()
    with Terminal(str(model), "--temperature", "0", "--max-tokens", "8") as terminal:
        terminal.read_until(_PROMPT)
        for turn in range(turns):
            terminal.type(f"Say {turn}.\n")
            said = terminal.read_until(_PROMPT, 120)
            found["done"] += 1
            found["failed"] += "error" in said or len(said.splitlines()) < 3
            if turn == turns // 10:
                before = _memory_of(terminal)
        found["memory grew"] += _memory_of(terminal) > before + _GROWTH
        terminal.type(CTRL_D)
        found["wrong exit code"] += terminal.exit_code() != 0
    return found


def around_the_limit(model: Path, lengths: int) -> Counter[str]:
    """Prompts that leave room for some tokens, for one, for none; answers up to the last token."""
    found: Counter[str] = Counter()
    with Model(model) as opened:
        limit = opened.context_length or 0
        single = [word for word in ("word", " word") if len(opened.tokenize(word)) == 1]
        assert single == ["word", " word"]
    for length in range(limit - lengths, limit + lengths):
        prompt = "word" + " word" * (length - 1)
        arguments = ["--raw", "--temperature", "0", "--prompt", prompt, "--max-tokens", "200"]
        with Terminal(str(model), *arguments) as terminal:
            code = terminal.exit_code()
            said = terminal.seen
        found["done"] += 1
        if length < limit:
            found["wrong exit code"] += code != 0
            full = "the answer ends here because the context is full" in said
            found["filled to the last token"] += full
        else:
            found["wrong exit code"] += code != 2
            found["no error line"] += f"is {length} tokens long" not in said
        found["traceback"] += "Traceback" in said
    return found


def ended_answers(model: Path, times: int, number: int) -> Counter[str]:
    """Answers that a signal ends at a random moment, from the start to the last word."""
    found: Counter[str] = Counter()
    arguments = ["--prompt", "Tell me a story.", "--temperature", "0", "--max-tokens", "40"]
    begin = time.monotonic()
    with Terminal(str(model), *arguments) as terminal:
        terminal.exit_code()
    duration = time.monotonic() - begin
    for _ in range(times):
        with Terminal(str(model), *arguments) as terminal:
            wait_until_it_hears(terminal.process)
            time.sleep(random.uniform(0, duration))
            if number == signal.SIGINT:
                terminal.type(CTRL_C)
            else:
                terminal.process.send_signal(number)
            code, said = terminal.exit_code(), terminal.seen
        found["done"] += 1
        found["in time"] += code != 0
        found["traceback"] += "Traceback" in said
        if number == signal.SIGINT:
            found["wrong exit code"] += code not in (0, 130)
            told = len(re.findall(r"error: interrupted, at your request, run it again", said))
            found["no error line"] += (code == 130) != (told == 1)
        else:
            found["wrong exit code"] += code not in (0, -number)
    with Terminal(str(model), *arguments) as terminal:  # sweeps what was left
        terminal.exit_code()
    return found


def interrupted_chats(model: Path, times: int) -> Counter[str]:
    """One chat, whose answers are stopped at a random moment and which goes on after each."""
    found: Counter[str] = Counter()
    with Terminal(str(model), "--temperature", "0", "--max-tokens", "30") as terminal:
        terminal.read_until(_PROMPT)
        for _ in range(times):
            terminal.type("Tell me a story.\n")
            terminal.read_until(r"story\.\n")
            time.sleep(random.uniform(0, 1))
            terminal.type(CTRL_C)
            said = terminal.read_until(_PROMPT, 60)
            found["stopped" if "(stopped)" in said else "too late"] += 1
            if "(stopped)" not in said and "leaves." not in said:
                # The answer was complete, and the prompt has a hint to give.
                terminal.read_until(r"leaves\.\n> $", 60)
            found["done"] += 1
        terminal.type("Say hi.\n")
        found["failed"] += len(terminal.read_until(_PROMPT, 60).splitlines()) < 3
        terminal.type(CTRL_D)
        found["wrong exit code"] += terminal.exit_code() != 0
        found["traceback"] += "Traceback" in terminal.seen
    return found


def crashes(model: Path, times: int) -> Counter[str]:
    """A model whose file is cut while the engine has it mapped: reading the rest is a SIGBUS."""
    found: Counter[str] = Counter()
    copy = model.with_name("cut.litertlm")
    for _ in range(times):
        shutil.copy(model, copy)
        with Terminal(str(copy)) as terminal:
            terminal.read_until(_PROMPT)
            os.truncate(copy, 0)
            terminal.type("Say hi.\n")
            found["wrong exit code"] += terminal.exit_code() != 128 + signal.SIGBUS
            told = "error: litert-lm-cli, native code crashed (SIGBUS)" in terminal.seen
            found["no error line"] += not told
        found["done"] += 1
    copy.unlink(missing_ok=True)
    return found


def _memory_of(terminal: Terminal) -> int:
    """Resident memory of the engine's process in bytes (Linux)."""
    supervisor = terminal.process.pid
    worker = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()[0]
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--turns", type=int, default=100, help="of one chat")
    parser.add_argument("--interrupts", type=int, default=100, help="of each kind")
    parser.add_argument("--lengths", type=int, default=20, help="below and above the limit")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    hear_signals()
    with tempfile.TemporaryDirectory(prefix="litert-lm-chats-") as folder:
        results = measure(Path(folder), args.turns, args.interrupts, args.lengths)
    for name, found in results.items():
        print(f"{name:28} {found}")
    totals = sum((Counter(found) for found in results.values()), Counter[str]())
    losses = sum(totals[kind] for kind in LOSSES)
    conclude(
        "chats",
        ["litert-lm-api"],
        losses,
        seed=args.seed,
        tried=totals["done"],
        by_kind=results,
    )


if __name__ == "__main__":
    guarded(main)
