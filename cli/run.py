"""`litert-lm-cli run`: chat with a model, or answer one prompt; converts it first where needed."""

from __future__ import annotations

import argparse
import io
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.convert import MODEL_HELP, add_conversion_options
from cli.limits import LIMITS
from cli.request import BACKENDS, Request, of_arguments
from converter.errors import OptionError
from runner.options import ChatOptions

if TYPE_CHECKING:
    from runner.schema import Schema
    from runner.tools import Tool, Toolbox


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "run",
        aliases=["chat"],
        help="chat with a model, or answer one prompt",
        description="Chat with a model on a terminal, where /help lists the commands. From a pipe, "
        "all of stdin is one prompt, or comes before that of --prompt; only the answer is on "
        "stdout. A model that has not been converted yet is converted first.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help=f"a .litertlm file, {MODEL_HELP}",
    )
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "--prompt", metavar="TEXT", help="answer this and exit; @FILE puts in a text"
    )
    prompt.add_argument("--system", metavar="TEXT", help="the system message")
    prompt.add_argument("--raw", action="store_true", help="no chat template: continue the text")
    prompt.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="think before the answer, or not (default: what the model's template does)",
    )
    tools = parser.add_argument_group("tools and schemas")
    tools.add_argument(
        "--tools",
        metavar="FILE.py",
        type=Path,
        help="the model may call the functions of this file, which is run as your own code; each "
        "call is shown and asked for",
    )
    tools.add_argument("--yes", action="store_true", help="run every call without asking")
    tools.add_argument(
        "--schema", metavar="FILE.json", type=Path, help="answer in JSON of this JSON schema alone"
    )
    sampling = parser.add_argument_group("sampling", "what is left out comes from the model's file")
    sampling.add_argument(
        "--max-tokens",
        type=LIMITS["max_tokens"],
        metavar="N",
        help="most tokens of an answer; thoughts are not counted",
    )
    sampling.add_argument(
        "--temperature",
        type=LIMITS["temperature"],
        metavar="T",
        help="0 always takes the likeliest",
    )
    sampling.add_argument(
        "--top-k", type=LIMITS["top_k"], metavar="K", help="choose among the K likeliest"
    )
    sampling.add_argument(
        "--top-p",
        type=LIMITS["top_p"],
        metavar="P",
        help="choose among the likeliest whose probabilities add up to P",
    )
    sampling.add_argument(
        "--seed", type=LIMITS["seed"], metavar="N", help="the same seed, the same text"
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument("--backend", choices=BACKENDS, default="cpu", help="cpu (default) or gpu")
    engine.add_argument("--threads", type=LIMITS["threads"], metavar="N", help="for cpu")
    engine.add_argument(
        "--no-drafts",
        dest="drafts",
        action="store_false",
        help="leave the file's drafter alone, which speeds up what --temperature 0 says",
    )
    add_keep_packed(engine)
    engine.add_argument("--stats", action="store_true", help="speed of each answer, on stderr")
    engine.add_argument("--verbose", action="store_true", help="the engine's own log, on stderr")
    add_conversion_options(parser)
    return parser


def add_keep_packed(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--keep-packed",
        action="store_true",
        help="keep the weights as the engine packs them beside the model: later starts are "
        "quicker, for as many bytes again",
    )


def main(args: argparse.Namespace) -> None:
    options = of_arguments(ChatOptions, args)
    options.check()
    tools, json_schema = _read_tools(args), _read_schema(args)
    prompt: str | None = args.prompt
    if prompt is not None and not prompt.strip():
        raise OptionError("--prompt", "is empty", "give it a text")
    if prompt is not None:
        from cli.chat.attachments import expanded
        from cli.chat.piped import joined_prompt

        prompt = prompt if args.raw else expanded(prompt)
        prompt = joined_prompt(prompt, sys.stdin, sys.stderr)
    elif sys.stdin is None or not sys.stdin.isatty():
        from cli.chat.piped import read_prompt

        prompt = read_prompt(io.BytesIO() if sys.stdin is None else sys.stdin.buffer)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a locale without emoji is no reason to stop

    request = of_arguments(Request, args, asks=True)
    if prompt is None:
        _chat(request, options, args, tools, json_schema)
        return
    from cli.obtain import obtain

    path = obtain(request)

    from cli.progress import passing_line
    from runner.chat import BASE_MODEL_NOTE, KEPT_NOTE, answer

    with ExitStack() as stack:
        with passing_line("Loading the model ...", args.quiet or args.verbose):
            model = stack.enter_context(options.model(path, benchmark=args.stats))
        # Looked up here: while the model is open, sys.stderr is another stream.
        stdout, stderr = sys.stdout, sys.stderr
        if model.has_kept_packed and not args.quiet:
            print(KEPT_NOTE, file=stderr)
        conversation = options.start(model, _toolbox(tools, args), json_schema)
        if not args.raw and not model.is_chat and stderr.isatty():
            print(BASE_MODEL_NOTE, file=stderr)
        answer(conversation, prompt, stdout, stderr, show_statistics=args.stats)


def _chat(
    request: Request,
    options: ChatOptions,
    args: argparse.Namespace,
    tools: dict[str, Tool] | None,
    json_schema: Schema | None,
) -> None:
    """Answer what is typed, until the user leaves."""
    from cli.chat.loop import chat, reader_of
    from cli.chat.session import Session
    from cli.obtain import obtain
    from runner.native_log import NativeLog

    def obtained(name: str) -> Path:
        if name == request.model:
            return obtain(request)
        # What was said of the first model's conversion is not said of another's.
        return obtain(Request(name, offline=request.offline, quiet=request.quiet,
                              backend=request.backend, asks=True))  # fmt: skip

    # Open longer than any model, so that sys.stderr stays one stream while they change.
    with NativeLog(hidden=not args.verbose):
        session = Session(
            request.model, options, obtained, sys.stdout, sys.stderr,
            shows_statistics=args.stats, is_quiet=args.quiet, tools=_toolbox(tools, args),
            json_schema=json_schema,
        )  # fmt: skip
        with session:
            chat(session, reader_of(sys.stdin, sys.stdout, sys.stderr))


def _read_tools(args: argparse.Namespace) -> dict[str, Tool] | None:
    """What --tools names, before a model is fetched for it."""
    if args.tools is None:
        if args.yes:
            raise OptionError("--yes", "has no effect without --tools", "leave it out")
        return None
    if args.raw:
        raise OptionError(
            "--tools", "there is no chat template to carry it with --raw", "leave one out"
        )
    from runner.tools import load_tools

    return load_tools(args.tools)


def _toolbox(tools: dict[str, Tool] | None, args: argparse.Namespace) -> Toolbox | None:
    """Made while fd 2 is the engine's already: sys.stderr is another stream then."""
    if tools is None:
        return None
    from runner.tools import Toolbox

    return Toolbox(tools, sys.stdin, sys.stderr, yes=args.yes)


def _read_schema(args: argparse.Namespace) -> Schema | None:
    """What --schema names, before a model is fetched for it."""
    if args.schema is None:
        return None
    if args.thinking:
        raise OptionError("--schema", "leaves no room for thoughts", "leave out --thinking")
    from runner.schema import read_schema

    return read_schema(args.schema)
