"""Decode speed with drafts and without, over eight tasks, beside llama.cpp's own lookup decoding.

    venv/bin/python -m benchmarks.drafts | tee RESULT.txt     # both models: half an hour
    venv/bin/python -m benchmarks.drafts --only smollm2-135m --draft lookup:3 --draft lookup:7
    venv/bin/python -m benchmarks.drafts --core               # of one thread, on a busy machine

Four tasks repeat what they are given, one sums it up, three are free. Each task is answered
greedily by a bundle without drafts, and by one with them, off and on; then the next round begins
with another one of these. All are loaded once, in processes of their own, with two threads. Ratios
of tokens per second are taken within a round, and their median counts. With --core they are tokens
per second of one core's time, with one thread, which other processes hardly disturb. In
float32 the text must be the same with drafts as without. llama.cpp decodes Q8_0 of the same weights
in its server, without and with its two kinds of lookup. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.draft_tasks import FREE, REPEATING, TASKS, Task
from benchmarks.engine import THREADS
from benchmarks.measure import commit, guarded, machine, note, run
from benchmarks.peers import LLAMA_CPP_SOURCE, PeerUnavailableError, llama_cpp_programs
from benchmarks.serve import Server, running
from converter.version import __version__
from tests.conftest import real_model

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "litert-lm-cli"
QUANTIZE = "dynamic_int8"
CONTEXT = 1280
NEW_TOKENS = 160
# llama.cpp's ways to look up: by default its simple one looks for 12 tokens, which is rare.
_LLAMA_CPP = {
    "llama.cpp": (),
    "llama.cpp ngram-simple": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3",
        "--spec-ngram-simple-size-m", "8",
    ),
    "llama.cpp ngram-cache": ("--spec-type", "ngram-cache"),
}  # fmt: skip
# What is to be reached: geometric means, and the worst task.
TARGETS = {"repeating": 1.8, "free": 1.1, "worst": 0.97}


@dataclass(frozen=True)
class Model:
    """What answers.

    Attributes:
        is_chat: it is asked; a base model has the beginning of the answer to go on with.
    """

    title: str
    gguf: str
    is_chat: bool


MODELS = {
    "smollm2-135m": Model("SmolLM2-135M-Instruct", "smollm2-135m-instruct-q4_1.gguf", True),
    "gemma3-270m": Model("Gemma 3 270M (base)", "gemma3-270m-q4_k_m.gguf", False),
}


@dataclass(frozen=True)
class Answer:
    """One answer: its text, tokens per second after the first, and tokens per call."""

    text: str
    rate: float
    tokens: int
    tokens_per_call: float = 1.0


# Answers a task; the second one with drafts or without.
Subject = Callable[[Task], Answer]
Ask = Callable[[Task, bool], Answer]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="default: 5")
    parser.add_argument("--only", action="append", choices=MODELS, help="may be given again")
    parser.add_argument(
        "--draft", action="append", metavar="DRAFT", help="of convert; may be given again"
    )
    parser.add_argument("--quantize", default=QUANTIZE, metavar="SCHEME", help="of convert")
    parser.add_argument("--core", action="store_true", help="count the time of one core")
    parser.add_argument("--answers", metavar="BUNDLE", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answers:
        _answer_tasks(args.answers, args.core)
        return
    document: dict[str, Any] = {
        "benchmark": "drafts",
        "litert_lm_cli": __version__,
        "commit": commit(),
        "machine": machine("litert-lm-api"),
        "llama.cpp": LLAMA_CPP_SOURCE,
        "job": {"quantize": args.quantize, "kv_cache_max_len": CONTEXT,
                "threads": 1 if args.core else THREADS, "new_tokens": NEW_TOKENS},
        "clock": "core" if args.core else "wall",
        "rounds": args.rounds,
        "targets": TARGETS,
        "models": {},
    }  # fmt: skip
    for name in args.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="litert-lm-bench-") as work:
            bench = _Bench(name, Path(work), args)
            document["models"][name] = bench.measure(args.rounds)
    print(tables(document))
    print(json.dumps(document))


class _Bench:
    """Everything about one model; what it needs is made in `work`."""

    def __init__(self, name: str, work: Path, args: argparse.Namespace) -> None:
        self.model = MODELS[name]
        self.work = work
        self.drafts: Sequence[str] = args.draft or ["lookup"]
        self.quantize: str = args.quantize
        self.core: bool = args.core
        self.threads = 1 if args.core else THREADS
        self.source = real_model(self.model.gguf)

    def measure(self, rounds: int) -> dict[str, Any]:
        left_out = {}
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(self.answering("none", self.quantize))
            subjects: dict[str, Subject] = {"plain": lambda task: plain(task, False)}
            for draft in self.drafts:
                ask = stack.enter_context(self.answering(draft, self.quantize))
                subjects[f"{draft} off"] = lambda task, ask=ask: ask(task, False)  # type: ignore[misc]
                subjects[draft] = lambda task, ask=ask: ask(task, True)  # type: ignore[misc]
            try:
                subjects |= self.llama_cpp(stack)
            except PeerUnavailableError as reason:
                left_out["llama.cpp"] = str(reason)
            tasks = {task.name: self.rates(task, subjects, rounds) for task in TASKS}
        return {
            "title": self.model.title,
            "left_out": left_out,
            "tasks": tasks,
            "means": _means(tasks),
            "same_text_in_float": self.same_texts(),
        }

    def rates(
        self, task: Task, subjects: dict[str, Subject], rounds: int
    ) -> dict[str, dict[str, Any]]:
        """All subjects in turn, after one answer that only warms up."""
        note(f"{self.model.title}: {task.name}")
        answers: dict[str, list[Answer]] = {name: [] for name in subjects}
        names = list(subjects)
        for number in range(rounds + 1):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                answers[name].append(subjects[name](task))
        answers = {name: given[1:] for name, given in answers.items()}
        figures = {}
        for name, given in answers.items():
            base = answers["llama.cpp" if name.startswith("llama.cpp") else "plain"]
            ratios = [one.rate / other.rate for one, other in zip(given, base, strict=True)]
            figures[name] = {
                "tokens_per_second": max(one.rate for one in given),
                "ratio": statistics.median(ratios),
                "tokens_per_call": given[-1].tokens_per_call,
                "tokens": given[-1].tokens,
                "text": given[-1].text,
            }
        print(json.dumps({task.name: figures}), file=sys.stderr, flush=True)
        return figures

    def same_texts(self) -> dict[str, bool]:
        """Whether drafts leave each answer as it is, in float32."""
        note(f"{self.model.title}: texts in float32")
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(self.answering("none", "fp32"))
            drafting = stack.enter_context(self.answering(self.drafts[0], "fp32"))
            return {t.name: plain(t, False).text == drafting(t, True).text for t in TASKS}

    def answering(self, draft: str, quantize: str) -> contextlib.AbstractContextManager[Ask]:
        """A process with our bundle with drafts of a kind."""
        output = self.work / f"{draft.replace(':', '-')}-{quantize}"
        options = ["--quantize", quantize, "--kv-cache-max-len", str(CONTEXT), "--draft", draft]
        run([CLI, "convert", self.source, "--output-dir", output, "--quiet", *options])
        [bundle] = output.glob("*.litertlm")
        return _answering(bundle, self.core)

    def llama_cpp(self, stack: contextlib.ExitStack) -> dict[str, Subject]:
        programs, weights = llama_cpp_programs(), self.work / "q8_0.gguf"
        quantize: list[str | Path] = [programs / "llama-quantize", "--allow-requantize"]
        run([*quantize, self.source, weights, "Q8_0", str(THREADS)])
        command = [str(programs / "llama-server"), "--model", str(weights), "--parallel", "1"]
        command += ["--threads", str(self.threads), "--ctx-size", str(CONTEXT)]
        subjects: dict[str, Subject] = {}
        for name, options in _LLAMA_CPP.items():
            server = stack.enter_context(running([*command, *options], self.model.title))
            subjects[name] = lambda task, server=server: self.ask_llama_cpp(server, task)  # type: ignore[misc]
        return subjects

    def ask_llama_cpp(self, server: Server, task: Task) -> Answer:
        begin = _core_seconds(server.pid)
        if self.core:  # what comes before the second token counts in neither clock
            self.complete(server, task, 1)
        between = _core_seconds(server.pid)
        text, timings = self.complete(server, task, NEW_TOKENS)
        seconds = (_core_seconds(server.pid) - between) - (between - begin)
        made = timings["predicted_n"]
        rate = (made - 1) / seconds if self.core else timings["predicted_per_second"]
        calls = made - timings.get("draft_n_accepted", 0)
        return Answer(text, rate, made, made / max(calls, 1))

    def complete(self, server: Server, task: Task, most: int) -> tuple[str, dict[str, Any]]:
        body: dict[str, Any] = {"temperature": 0, "top_k": 1, "cache_prompt": False}
        body |= {"max_tokens": most, "n_predict": most}
        if self.model.is_chat:
            body["messages"] = [{"role": "user", "content": task.question}]
            reply = server.http.post("/v1/chat/completions", json=body).raise_for_status().json()
            return reply["choices"][0]["message"]["content"], reply["timings"]
        body["prompt"] = task.beginning
        reply = server.http.post("/completion", json=body).raise_for_status().json()
        return reply["content"], reply["timings"]


def _core_seconds(pid: int) -> float:
    """Of processors' time that a process has had (Linux); 0 where nobody says."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _means(tasks: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of the ratios of each subject: geometric means over kinds of tasks, and the worst task."""
    means = {}
    for subject in next(iter(tasks.values())):
        ratios = {name: figures[subject]["ratio"] for name, figures in tasks.items()}
        means[subject] = {
            "repeating": _geometric([ratios[task.name] for task in REPEATING]),
            "free": _geometric([ratios[task.name] for task in FREE]),
            "worst": min(ratios.values()),
            "worst_task": min(ratios, key=lambda name: ratios[name]),
        }
    return means


def _geometric(ratios: Sequence[float]) -> float:
    return math.exp(statistics.fmean(map(math.log, ratios)))


def tables(document: dict[str, Any]) -> str:
    """What is in a document, as Markdown."""
    lines = []
    for model in document["models"].values():
        subjects = [name for name in model["means"] if name not in ("plain", "llama.cpp")]
        lines += [f"### {model['title']}", ""]
        lines += [f"| Task | plain, tok/s | {' | '.join(subjects)} |"]
        lines += ["|---" * (len(subjects) + 2) + "|"]
        for name, figures in model["tasks"].items():
            cells = [
                f"{figures[s]['ratio']:.2f} ({figures[s]['tokens_per_call']:.1f})" for s in subjects
            ]
            plain = figures["plain"]["tokens_per_second"]
            lines.append(f"| {name} | {plain:.1f} | {' | '.join(cells)} |")
        for key in ("repeating", "free", "worst"):
            cells = [f"{model['means'][s][key]:.2f}" for s in subjects]
            lines.append(f"| **{key}** | | {' | '.join(cells)} |")
        same = model["same_text_in_float"]
        parted = [name for name, is_same in same.items() if not is_same]
        lines += ["", f"In float32 parted: {', '.join(parted) or 'no text'}.", ""]
    return "\n".join(lines)


# A process with a bundle ------------------------------------------------------------------------


@contextlib.contextmanager
def _answering(bundle: Path, core: bool) -> Iterator[Ask]:
    """A process that answers tasks, with drafts or without."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.drafts", "--answers", str(bundle), *["--core"] * core],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asked, said = process.stdin, process.stdout

    def ask(task: Task, drafts: bool) -> Answer:
        print(json.dumps({"task": task.name, "drafts": drafts}), file=asked, flush=True)
        return Answer(**json.loads(said.readline()))

    try:
        yield ask
    finally:
        asked.close()
        process.wait()


def _answer_tasks(bundle: Path, core: bool) -> None:
    """The other side of it: a JSON object for each that is read."""
    from runner.engine import Model as LoadedModel
    from runner.engine import Sampling

    tasks = {task.name: task for task in TASKS}
    with LoadedModel(bundle, threads=1 if core else THREADS, benchmark=True) as model:
        for line in sys.stdin:
            asked = json.loads(line)
            task = tasks[asked["task"]]
            options: dict[str, Any] = {
                "sampling": Sampling(temperature=0),
                "max_tokens": NEW_TOKENS,
                "drafts": asked["drafts"],
            }
            if model.is_chat:
                conversation = model.conversation(**options)
                prompt = task.question
            else:
                conversation, prompt = model.completion(**options), task.beginning
            text, begin = "", 0.0
            for piece in conversation.ask(prompt):
                text, begin = text + piece.text, begin or time.process_time()
            seconds = time.process_time() - begin
            measured = conversation.statistics
            conversation.close()
            assert measured is not None
            made = measured.decode_tokens
            rate = (made - 1) / seconds if core else measured.decode_rate
            calls = measured.drafted_pieces or made
            answer = Answer(text, rate, made, made / max(calls, 1))
            print(json.dumps(asdict(answer)), flush=True)


if __name__ == "__main__":
    guarded(main)
