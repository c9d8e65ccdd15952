"""`litert-lm-cli convert`: a model in, the path of its .litertlm file out."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import Any

from converter.errors import OptionError


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="convert a model to .litertlm",
        description="Convert a model to .litertlm. The path of the file is printed to stdout.",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a Hugging Face id (org/name), a folder with config.json and *.safetensors, "
        "a .gguf file, or demo",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="write DIR/NAME.litertlm (default: models/ORG/NAME/NAME.litertlm)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    add_conversion_options(parser)
    return parser


def add_conversion_options(parser: argparse.ArgumentParser) -> None:
    """The options that shape the result; `run` takes them too, for models it has to convert."""
    parser.add_argument(
        "--quantize",
        metavar="SCHEME",
        help="dynamic_int8 (default), fp16 or fp32",
    )
    parser.add_argument(
        "--prefill-seq-len",
        metavar="N",
        help="longest prefill signature, with the ladder 8, 64, 128, 256, 512, 1024 up to it; "
        "or a comma list, taken as it is (default: 1024)",
    )
    parser.add_argument(
        "--kv-cache-max-len",
        type=_positive,
        metavar="N",
        help="tokens that the KV cache holds (default: 1280)",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def main(args: argparse.Namespace) -> None:
    from cli.obtain import obtain

    output = obtain(args, args.output_dir, args.force, announce_kept=True)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is bytes: out as they came in
    print(output)


def prefill_lengths(text: str) -> tuple[int, ...]:
    """`256` -> the ladder up to 256 and 256 itself; `32,100` -> exactly these.

    Raises:
        OptionError: not positive integers, or one of them twice.
    """
    from converter.base import PREFILL_LADDER

    try:
        numbers = [_positive(part) for part in text.split(",")]
    except argparse.ArgumentTypeError as error:
        raise OptionError(
            f"--prefill-seq-len {text}", str(error), "give one length or a comma list, like 64,256"
        ) from error
    if "," not in text:
        return tuple(sorted({*(n for n in PREFILL_LADDER if n < numbers[0]), numbers[0]}))
    if len(set(numbers)) < len(numbers):
        raise OptionError(f"--prefill-seq-len {text}", "names a length twice", "name each once")
    return tuple(sorted(numbers))


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive integer")
    return value
