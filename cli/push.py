"""`litert-lm-cli push`: a model onto an Android device, run and measured there."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.convert import MODEL_HELP, add_conversion_options
from cli.limits import LIMITS
from cli.request import BACKENDS, Request, of_arguments
from converter.errors import OptionError

if TYPE_CHECKING:
    from device.adb import Device
    from device.runner import Figures, Program

FOLDER = "/data/local/tmp/litert-lm"
_LENGTHS = (256, 64)
_PROMPT_CHARACTERS = 1000  # of the text that is read where a runner takes no lengths
_WITH_RUN_OR_BENCH = ("prompt", "threads", "max_tokens", "verbose")
_WITH_BENCH = ("prompt_tokens", "new_tokens", "rounds", "json")


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "push",
        help="copy a model to an Android device, and run it there",
        description="Copy a model to an Android device with adb, and run it there with the "
        "engine's own program. A model that has not been converted yet is converted first. The "
        "path on the device is printed to stdout; with --run the answer, with --bench the speed.",
    )
    parser.add_argument("model", metavar="MODEL", help=f"a .litertlm file, {MODEL_HELP}")
    device = parser.add_argument_group("device")
    device.add_argument(
        "--serial", metavar="S", help="which of several (default: $ANDROID_SERIAL); see adb devices"
    )
    device.add_argument(
        "--to", metavar="DIR", default=FOLDER, help=f"a folder on the device (default: {FOLDER})"
    )
    device.add_argument(
        "--adb",
        metavar="PATH",
        help="Android's adb (default: on PATH, or in $ANDROID_HOME/platform-tools)",
    )
    device.add_argument(
        "--runner",
        type=Path,
        metavar="FILE",
        help="LiteRT-LM's litert_lm_main or litert_lm_advanced_main for Android, which goes to DIR "
        "with the engine's libraries beside it; once it is there, it is found",
    )
    there = parser.add_argument_group("running it there")
    what = there.add_mutually_exclusive_group()
    what.add_argument("--run", action="store_true", help="answer --prompt, or stdin")
    what.add_argument("--bench", action="store_true", help="measure it")
    there.add_argument("--prompt", metavar="TEXT", help="what to answer")
    there.add_argument("--backend", choices=BACKENDS, default="cpu", help="cpu (default) or gpu")
    there.add_argument("--threads", type=LIMITS["threads"], metavar="N", help="for cpu")
    there.add_argument(
        "--max-tokens", type=LIMITS["max_tokens"], metavar="N", help="most tokens of an answer"
    )
    there.add_argument(
        "--prompt-tokens",
        type=LIMITS["max_tokens"],
        metavar="N",
        help=f"with --bench: read so many (default: {_LENGTHS[0]})",
    )
    there.add_argument(
        "--new-tokens",
        type=LIMITS["max_tokens"],
        metavar="N",
        help=f"with --bench: write so many (default: {_LENGTHS[1]})",
    )
    there.add_argument(
        "--rounds",
        type=LIMITS["max_tokens"],
        metavar="N",
        help="with --bench: run it so often, the fastest counts (default: 2)",
    )
    there.add_argument("--json", action="store_true", help="with --bench: one JSON object")
    there.add_argument("--verbose", action="store_true", help="the engine's own log, on stderr")
    add_conversion_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    _check(args)
    prompt = _prompt(args)
    from cli.fetch import say
    from cli.inspect import size
    from cli.obtain import obtain
    from device.adb import choose, find_adb
    from device.files import deliver
    from device.runner import install

    request = of_arguments(Request, args, asks=True)
    show = not args.quiet and sys.stderr.isatty()
    folder = args.to.rstrip("/")
    # What may be refused comes before what takes minutes.
    device = choose(find_adb(args.adb), args.serial or os.environ.get("ANDROID_SERIAL") or None)
    program = None
    if args.run or args.bench or args.runner is not None:
        program = install(device, folder, args.runner, show)
        _check_lengths(args, program)
    path = obtain(request)
    target = f"{folder}/{path.name}"
    say(request, f"{path} ({size(path.stat().st_size)}) -> {device.serial}:{target}")
    if not deliver(device, path, target, show=show):
        say(request, "it is there already, with the same hash")
    if program is None or not (args.run or args.bench):
        print(target)
    elif args.run:
        assert prompt is not None
        _answer(program, target, prompt, args)
    else:
        _measure(device, program, path, target, prompt, args)


def _check(args: argparse.Namespace) -> None:
    """Raise OptionError where an option would have no effect, or the folder is none."""
    for names, allowed, wanted in (
        (_WITH_RUN_OR_BENCH, args.run or args.bench, "--run or --bench"),
        (_WITH_BENCH, args.bench, "--bench"),
    ):
        for name in names:
            if getattr(args, name) not in (None, False) and not allowed:
                option = f"--{name.replace('_', '-')}"
                raise OptionError(option, f"has no effect without {wanted}", f"add {wanted}")
    if args.threads is not None and args.backend != "cpu":
        raise OptionError("--threads", f"has no effect on {args.backend}", "leave it out")
    if not args.to.strip("/") or not args.to.startswith("/"):
        raise OptionError(
            f"--to {args.to}", "it is no folder with its whole path", f"choose one, as {FOLDER}"
        )


def _prompt(args: argparse.Namespace) -> str | None:
    if args.prompt is not None:
        if not args.prompt.strip():
            raise OptionError("--prompt", "is empty", "give it a text")
        return str(args.prompt)
    if not args.run:
        return None
    if sys.stdin is None or sys.stdin.isatty():
        raise OptionError("--run", "there is no prompt", "add --prompt TEXT, or pipe one in")
    from cli.chat.piped import read_prompt

    return read_prompt(sys.stdin.buffer)


def _check_lengths(args: argparse.Namespace, program: Program) -> None:
    """Raise OptionError unless the runner can do what --bench was asked for."""
    wants_lengths = args.prompt_tokens is not None or args.new_tokens is not None
    if wants_lengths and args.prompt is not None:
        raise OptionError(
            "--prompt", "--prompt-tokens and --new-tokens need none", "leave one of them out"
        )
    if wants_lengths and not program.is_advanced:
        raise OptionError(
            "--prompt-tokens and --new-tokens",
            f"the runner on {program.device.serial} takes none",
            "leave them out, or push litert_lm_advanced_main with --runner",
        )


def _options(args: argparse.Namespace) -> dict[str, str | int | None]:
    return {"backend": args.backend, "threads": args.threads, "max_tokens": args.max_tokens}


def _answer(program: Program, model: str, prompt: str, args: argparse.Namespace) -> None:
    from runner.chat import AnswerWriter
    from runner.limit import Piece

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    with AnswerWriter(sys.stdout) as writer:
        for text in program.answer(model, prompt, _options(args), args.verbose):
            writer.write(Piece(text, "answer"))


def _measure(
    device: Device,
    program: Program,
    file: Path,
    model: str,
    prompt: str | None,
    args: argparse.Namespace,
) -> None:
    lengths: tuple[int, int] | str
    if program.is_advanced and prompt is None:
        lengths = (args.prompt_tokens or _LENGTHS[0], args.new_tokens or _LENGTHS[1])
    else:
        from runner.evaluation import TEXT

        lengths = prompt or TEXT.read_text(encoding="utf-8")[:_PROMPT_CHARACTERS]
    rounds = args.rounds or 2
    found = [program.measure(model, _options(args), lengths, args.verbose) for _ in range(rounds)]
    fastest = max(found, key=lambda figures: figures.decode)
    document = {
        "benchmark": "push",
        "machine": _machine(device),
        "job": {"backend": args.backend, "threads": args.threads, "bytes": file.stat().st_size},
        "rounds": rounds,
        "models": {file.stem: {"title": file.stem, "cases": [_case(fastest)]}},
    }
    print(json.dumps(document) if args.json else table(document))


def _machine(device: Device) -> dict[str, str]:
    """What Android says of the device; of whose it is, nothing."""
    names = {
        "device": ("ro.product.manufacturer", "ro.product.model"),
        "soc": ("ro.soc.manufacturer", "ro.soc.model"),
        "abi": ("ro.product.cpu.abi",),
        "android": ("ro.build.version.release",),
    }
    return {
        what: " ".join(value for name in properties if (value := device.property(name)))
        for what, properties in names.items()
    }


def _case(figures: Figures) -> dict[str, Any]:
    """As in the result of benchmarks.run, whose tables read it."""
    measured = figures._asdict()
    return {
        "prompt": measured.pop("prompt"),
        "new": measured.pop("new"),
        "subjects": {"ours": measured},
    }


def table(document: dict[str, Any]) -> str:
    """The table of benchmarks.run in Markdown, with what else the device has said."""
    machine, job = document["machine"], document["job"]
    name = f"{machine['device'] or 'device'}, {machine['soc'] or machine['abi']}, {job['backend']}"
    rows = [["prefill / decode, tok/s", "prompt + new tokens", name, "first token", "load"]]
    rows.append(["---"] * len(rows[0]))
    for model in document["models"].values():
        for case in model["cases"]:
            figures = case["subjects"]["ours"]
            rows.append(
                [
                    model["title"],
                    f"{case['prompt']} + {case['new']}",
                    f"{figures['prefill']:.0f} / {figures['decode']:.1f}",
                    _seconds(figures["first_token_seconds"]),
                    _seconds(figures["load_seconds"]),
                ]
            )
    return "\n".join("| " + " | ".join(_cell(text) for text in row) + " |" for row in rows)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _cell(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text).replace("|", "\\|")
