"""`litert-lm-cli completion SHELL`: what makes Tab complete this program's command lines."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "fish")
_PROGRAM = "litert-lm-cli"
ASKED = "_ARGCOMPLETE"  # set where a shell asks


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "completion",
        help="print what makes Tab complete commands, options, models and files",
        description="Print a script for a shell, whose Tab then completes commands, options, "
        'models and files. In bash and zsh: eval "$(litert-lm-cli completion bash)", in fish: '
        "litert-lm-cli completion fish | source",
    )
    parser.add_argument("shell", choices=SHELLS, metavar="|".join(SHELLS))
    return parser


def main(args: argparse.Namespace) -> None:
    import argcomplete

    print(argcomplete.shellcode([_PROGRAM], shell=args.shell), end="")


def answer_the_shell(parser: argparse.ArgumentParser) -> None:
    """Where a shell asks what may come next, say it and end this process."""
    import argcomplete
    from argcomplete.completers import FilesCompleter

    files = FilesCompleter()

    def models(prefix: str, **_: Any) -> list[str]:
        from converter.checkpoint.sources import models_by_name, models_dir

        names = ["demo", *models_by_name(models_dir())]
        return [name for name in names if name.startswith(prefix)] + list(files(prefix))

    def stored(prefix: str, **_: Any) -> list[str]:
        from converter.checkpoint.model_store import stored_models
        from converter.checkpoint.sources import models_dir

        names = [model.name for model in stored_models(models_dir())]
        return [name for name in names if name.startswith(prefix)]

    def outputs(prefix: str, **_: Any) -> list[str]:
        return stored(prefix) + list(files(prefix))

    def schemes(**_: Any) -> list[str]:
        from converter.weights.quantization import SCHEMES

        return list(SCHEMES)

    completers = {
        "model": models, "models": models, "name": stored, "file": outputs, "quantize": schemes,
    }  # fmt: skip
    for action in _actions(parser):
        if action.dest in completers:
            action.completer = completers[action.dest]  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser, always_complete_options="long")


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser, and of those of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in set(action.choices.values()):
                yield from _actions(subparser)
