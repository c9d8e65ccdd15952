"""`litert-lm-cli run`: chat with a model, or answer one prompt; converts it first where needed."""

from __future__ import annotations

import argparse
import io
import math
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cli.convert import add_conversion_options
from converter.errors import OptionError

if TYPE_CHECKING:
    from runner.conversation import Conversation
    from runner.engine import Model

_INT32_MAX = 2**31 - 1  # what the engine's C interface takes
MAX_THREADS = 256


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        help="chat with a model, or answer one prompt",
        description="Chat with a model on a terminal. From a pipe, all of stdin is one prompt and "
        "only the answer is on stdout. A model that has not been converted yet is converted first.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .litertlm file, a Hugging Face id (org/name), a folder with config.json and "
        "*.safetensors, a .gguf file, a model of Ollama's (NAME:TAG), or demo",
    )
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument("--prompt", metavar="TEXT", help="answer this and exit")
    prompt.add_argument("--system", metavar="TEXT", help="the system message")
    prompt.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    prompt.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="think before the answer, or not (default: what the model's template does)",
    )
    sampling = parser.add_argument_group("sampling", "what is left out comes from the model's file")
    sampling.add_argument(
        "--max-tokens",
        type=integer(1, _INT32_MAX),
        metavar="N",
        help="most tokens of an answer; thoughts are not counted",
    )
    sampling.add_argument(
        "--temperature", type=_real(0, math.inf), metavar="T", help="0 always takes the likeliest"
    )
    sampling.add_argument(
        "--top-k", type=integer(1, _INT32_MAX), metavar="K", help="choose among the K likeliest"
    )
    sampling.add_argument(
        "--top-p",
        type=_real(0, 1, above=True),
        metavar="P",
        help="choose among the likeliest whose probabilities add up to P",
    )
    sampling.add_argument(
        "--seed", type=integer(0, _INT32_MAX), metavar="N", help="the same seed, the same text"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--backend", choices=("cpu", "gpu"), default="cpu", help="cpu (default) or gpu"
    )
    engine.add_argument("--threads", type=integer(1, MAX_THREADS), metavar="N", help="for cpu")
    engine.add_argument("--stats", action="store_true", help="speed of each answer, on stderr")
    engine.add_argument("--verbose", action="store_true", help="the engine's own log, on stderr")
    add_conversion_options(parser)
    return parser


def main(args: argparse.Namespace) -> None:
    _check_combinations(args)
    prompt: str | None = args.prompt
    if prompt is None and (sys.stdin is None or not sys.stdin.isatty()):
        from runner.chat import read_prompt

        prompt = read_prompt(io.BytesIO() if sys.stdin is None else sys.stdin.buffer)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without emoji is no reason to stop

    from cli.obtain import obtain

    path = obtain(args)

    from runner.chat import BASE_MODEL_NOTE, answer, chat
    from runner.engine import Model

    with Model(
        path,
        backend=args.backend,
        threads=args.threads,
        verbose=args.verbose,
        benchmark=args.stats,
    ) as model:
        # Looked up here: while the model is open, sys.stderr is another stream.
        stdout, stderr = sys.stdout, sys.stderr
        conversation = _start(model, args)
        if not args.raw and not model.is_chat and stderr.isatty():
            print(BASE_MODEL_NOTE, file=stderr)
        if prompt is not None:
            answer(conversation, prompt, stdout, stderr, show_statistics=args.stats)
        else:
            chat(conversation, sys.stdin, stdout, stderr, show_statistics=args.stats)


def _start(model: Model, args: argparse.Namespace) -> Conversation:
    from runner.engine import Sampling

    sampling = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    if args.raw or (not model.is_chat and args.system is None and not args.thinking):
        return model.completion(sampling=sampling, max_tokens=args.max_tokens)
    return model.conversation(
        system=args.system,
        sampling=sampling,
        max_tokens=args.max_tokens,
        thinking=args.thinking,
    )


def _check_combinations(args: argparse.Namespace) -> None:
    """Refuse options that another one would leave without effect."""
    if args.raw:
        thinking = "--no-thinking" if args.thinking is False else "--thinking"
        for option, value in (("--system", args.system), (thinking, args.thinking)):
            if value is not None:
                raise OptionError(
                    option, "there is no chat template to carry it with --raw", "leave one out"
                )
    if args.threads is not None and args.backend != "cpu":
        raise OptionError("--threads", f"has no effect on {args.backend}", "leave it out")
    if args.prompt is not None and not args.prompt.strip():
        raise OptionError("--prompt", "is empty", "give it a text")


def integer(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: a whole number in a range."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value

    return parse


def _real(low: float, high: float, above: bool = False) -> Callable[[str], float]:
    """An argparse type: a finite number in a range, which `above` leaves open at its low end."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        inside = math.isfinite(value) and low <= value <= high and not (above and value == low)
        if not inside:
            border = "more than" if above else "at least"
            limit = "" if math.isinf(high) else f" and at most {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a number of {border} {low:g}{limit}")
        return value

    return parse
