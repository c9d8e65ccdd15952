"""Writes tables of README_MODELS.md and docs/terminal.md from the code: they cannot rot.

venv/bin/python -m docs.tables        # rewrite
tests/test_docs.py                    # fails when this was forgotten
"""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path

from cli.chat.commands import COMMANDS
from cli.main import build_parser
from converter.registry import FAMILIES
from converter.weights.quantization import DEFAULT_SCHEME, DEFAULT_SCHEME_OF_SMALL, SCHEMES, SMALL

ROOT = Path(__file__).resolve().parent.parent
OF_COMMANDS = ("convert", "run", "serve", "eval", "inspect", "push", "package", "upload")
PAGES = (ROOT / "README_MODELS.md", ROOT / "docs/terminal.md")


def families() -> str:
    """Supported families: how a config or a GGUF names them, and what they are."""
    by_class: dict[type, list[str]] = {}
    for model_type, family in FAMILIES.items():
        by_class.setdefault(family, []).append(f"`{model_type}`")
    rows = ["| `model_type` / GGUF architecture | Network |", "|---|---|"]
    for family, names in by_class.items():
        summary = " ".join((family.__doc__ or "").split("\n\n")[0].split())
        rows.append(f"| {', '.join(names)} | {summary} |")
    return "\n".join(rows)


def schemes() -> str:
    """What `--quantize` takes."""
    rows = ["| `--quantize` | |", "|---|---|"]
    defaults = {
        DEFAULT_SCHEME: " (default)",
        DEFAULT_SCHEME_OF_SMALL: f" (default below {SMALL // 10**6}M parameters)",
    }
    for name, scheme in SCHEMES.items():
        rows.append(f"| `{name}`{defaults.get(name, '')} | {scheme.summary} |")
    return "\n".join(rows)


def options(command: str) -> str:
    """The options of one command, as its --help has them."""
    parser = build_parser()
    subparsers = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    rows = [f"| `{command}` | |", "|---|---|"]
    for action in subparsers.choices[command]._actions:
        if action.help in (None, argparse.SUPPRESS) and not action.option_strings:
            continue
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):
            continue
        names = ", ".join(action.option_strings) or str(action.metavar).replace("|", "\\|")
        if action.option_strings and action.nargs != 0:
            choices = "\\|".join(map(str, action.choices)) if action.choices else None
            names += f" {action.metavar or choices or ''}".rstrip()
        rows.append(f"| `{names}` | {action.help or ''} |")
    return "\n".join(rows)


def commands() -> str:
    """What can be typed in a chat, as /help has it."""
    rows = ["| Command | |", "|---|---|"]
    for command in COMMANDS:
        rows.append(f"| `{f'/{command.name} {command.argument}'.strip()}` | {command.help} |")
    return "\n".join(rows)


def filled(page: str) -> str:
    """The page with every `<!-- table: NAME -->` ... `<!-- end -->` block written anew."""
    tables = {
        "families": families,
        "schemes": schemes,
        "commands": commands,
        **{command: partial(options, command) for command in OF_COMMANDS},
    }

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"<!-- table: {name} -->\n{tables[name]()}\n<!-- end -->"

    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", fill, page, flags=re.DOTALL)


def main() -> None:
    for page in PAGES:
        page.write_text(filled(page.read_text("utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
