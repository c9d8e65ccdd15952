"""`litert-lm-cli convert`: a model in, the path of its .litertlm file out."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.coreml import (
    CoreMLRequest,
    add_coreml_options,
    obtain_packages,
    plan_lines,
    preview_packages,
    request_of,
)
from cli.limits import LIMITS
from cli.request import BACKENDS, CACHES, ENGINES, TARGETS, Request, decided_by_receipt
from converter.errors import OptionError

if TYPE_CHECKING:
    from converter.report import PlanReport

MODEL_HELP = (
    "a Hugging Face id (org/name), a folder with config.json and *.safetensors, a .gguf file, a "
    "model of Ollama's (NAME:TAG), or demo"
)


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "convert",
        help="convert a model to .litertlm, or to Core ML packages",
        description="Convert a model to .litertlm, or with --target coreml to packages for Apple's "
        "Neural Engine. The path of the file or folder is printed to stdout.",
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="write DIR/NAME.litertlm (default: models/ORG/NAME/NAME.litertlm); packages are "
        "written into DIR itself (default: models/ORG/NAME/coreml)",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--from-receipt",
        type=Path,
        metavar="R",
        help="make the same bytes again: the model and the options of a receipt; MODEL says where "
        "the model is now, if it moved",
    )
    add_conversion_options(parser, has_coreml=True)
    parser.add_argument(
        "--check",
        action="store_true",
        help="then load it and ask eight easy questions (a base model reads a text instead); exit "
        "with 1 where it makes no sense",
    )
    parser.add_argument(
        "--accept",
        metavar="CONDITIONS",
        help="compare with the source, as eval --against does, and write nothing where it is too "
        "far, as in kl<=0.08,agree>=0.85 (also kl_median, kl_99, ppl)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print what would be done, and the memory and disk that it needs; write nothing",
    )
    parser.add_argument("--json", action="store_true", help="with --dry-run: one JSON object")
    return parser


def add_conversion_options(parser: argparse.ArgumentParser, has_coreml: bool = False) -> None:
    """The options that shape the result; `run` takes them too, for models it has to convert.

    Args:
        has_coreml: whether what is made may be packages, which nothing runs here.
    """
    parser.add_argument(
        "--quantize",
        metavar="SCHEME",
        help="dynamic_int8 (default), dynamic_int8_a16 (default below 200M parameters, except for "
        "gpu), dynamic_int6, dynamic_int6_a16, dynamic_int4, dynamic_int4_mixed, "
        "dynamic_int4_block128, int8, fp16 or fp32; parts may have another one, as in "
        "dynamic_int8,ffn=dynamic_int4,layers.0-3.down=fp16 (embedding, "
        "attention or q, k, v, o, ffn or gate, up, down, per_layer, head)",
    )
    parser.add_argument(
        "--lora",
        metavar="ADAPTER",
        action="append",
        help="merge a LoRA adapter: a PEFT folder, a GGUF, or one on the hub (org/name); "
        "ADAPTER:WEIGHT takes it so many times; may be given several times",
    )
    parser.add_argument(
        "--chat-template",
        metavar="FILE",
        help="a Jinja template in place of the model's own, or none: the model then completes text",
    )
    parser.add_argument(
        "--clip",
        choices=("mse", "max"),
        help="mse (default): scales of int4 blocks of least squared error, and columns equalised "
        "where activations are rounded; max: plain rounding, which clips nothing",
    )
    parser.add_argument(
        "--calibrate",
        metavar="self|FILE|none",
        help="send a text through the network while it is converted, by which columns of int4 make "
        "up for each other's errors and inputs of int8 are equalised: one that is part of this "
        "program (self), or FILE; none (default) converts faster",
    )
    parser.add_argument(
        "--bits",
        type=LIMITS["bits"],
        metavar="N",
        help="with --calibrate: bits that a weight may take on average, as in 5.5; of what "
        "--quantize has in int4 or int6 (default then: int4, and int6 for the embedding), the "
        "matrices that lose most for their bytes become int6 or int8",
    )
    parser.add_argument(
        "--prefill-seq-len",
        metavar="N",
        help="longest prefill signature, with the ladder 8, 16, 32, 64, 128, 256, 512, 1024 up to "
        "it; or a comma list, taken as it is; no primes above 10 (default: 1024; "
        "with experts, two lengths that memory has room for)",
    )
    parser.add_argument(
        "--kv-cache-max-len",
        type=LIMITS["kv_cache_max_len"],
        metavar="N",
        help="tokens that the KV cache holds, or auto: the most that fits into --memory (default: "
        "1280, or auto with --memory)",
    )
    parser.add_argument(
        "--memory",
        type=LIMITS["memory"],
        metavar="SIZE",
        help="what the model may take when it runs, with engine and tokenizer, as in 3GB or 800MB "
        "(default: any; with --kv-cache-max-len auto 3GB, on whatever machine)",
    )
    parser.add_argument(
        "--kv-cache",
        choices=CACHES,
        help="what the KV cache holds keys and values as: fp32 (default), or for cpu int8 with a "
        "scale for each token and head, a quarter of the memory, or fp16, half of it",
    )
    parser.add_argument(
        "--target",
        choices=TARGETS if has_coreml else BACKENDS,
        type=str if has_coreml else _run_here,
        help="what the model will run on: cpu (default), whose cost follows the context in use, or "
        "gpu, in the plain layout that GPU delegates take and CPUs run more slowly"
        + ("; or coreml, for Apple's Neural Engine" if has_coreml else ""),
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="direct (default), or torch: PyTorch's own export by litert-torch, in the layout for "
        "gpu; it takes minutes, 15 bytes of memory per parameter, and ./setup --reference",
    )
    parser.add_argument(
        "--draft",
        metavar="KIND",
        help="lookup: the file can draft tokens by looking for the last ones further up in the "
        "text; faster where an answer repeats it, for greedy sampling alone; or a drafter's folder "
        "or hub id: an assistant of Gemma 4; :N behind it for at most N tokens at once, N from 1 "
        "to 7 (3 where it is not said); or none (default)",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit on the hub")
    add_fetch_options(parser)
    if has_coreml:
        add_coreml_options(parser)


def _run_here(target: str) -> str:
    """An argparse type: a target that something here runs."""
    if target == "coreml":
        raise argparse.ArgumentTypeError(
            "Core ML packages run on Apple's systems alone: convert MODEL --target coreml makes "
            "them (docs/coreml.md)"
        )
    return target


def add_fetch_options(parser: argparse.ArgumentParser) -> None:
    """What every command takes that may have to download."""
    parser.add_argument(
        "--offline", action="store_true", help="use what is on this disk, and no network"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def main(args: argparse.Namespace) -> None:
    request = request_of(args, model=args.model or "", asks=True)
    if args.from_receipt is not None:
        if args.dry_run:
            raise decided_by_receipt("--dry-run")
        request = request.by_receipt(args.from_receipt)
    elif args.model is None:
        raise OptionError(
            "litert-lm-cli convert",
            "the following arguments are required: MODEL",
            "see litert-lm-cli convert --help",
        )
    if args.dry_run:
        for name in ("check", "accept"):
            if getattr(args, name):
                raise OptionError(
                    f"--{name}", "has no effect with --dry-run", "leave one of them out"
                )
        _dry_run(request, args.json)
        return
    if args.json:
        raise OptionError("--json", "has no effect without --dry-run", "add that, or leave it out")

    if isinstance(request, CoreMLRequest):
        _print_path(obtain_packages(request, args.check))
        return

    from cli.obtain import obtain, try_out

    output = obtain(request, announce_kept=True)
    if args.check:
        summary = try_out(output)
        if not args.quiet:
            print(f"litert-lm-cli: checked: {summary}", file=sys.stderr)
    _print_path(output)


def _print_path(output: Path) -> None:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is bytes: out as they came in
    print(output)


def _dry_run(request: Request, as_json: bool) -> None:
    if isinstance(request, CoreMLRequest):
        of_packages = preview_packages(request)
        found, lines = of_packages.as_json(), plan_lines(of_packages, request.force)
    else:
        from cli.obtain import preview

        report = preview(request)
        found, lines = report.as_json(), _lines(report, request.force)
    if as_json:
        import json

        # In ASCII: names may hold what a terminal obeys, or its encoding lacks.
        print(json.dumps(found, indent=2))
    else:
        print("\n".join(lines))


def _lines(report: PlanReport, force: bool) -> list[str]:
    from cli.inspect import fit_line, printable, run_memory_lines, size, tensor_lines

    lines = [f"{report.output}  {size(report.output_bytes)}"]
    if report.output_exists:
        kept = "would be replaced" if force else "would be kept (--force replaces it)"
        lines.append(f"  this file exists and {kept}")
    lines += [
        f"  model: {report.model}",
        f"  family: {report.family}",
        f"  quantization: {report.scheme}",
        f"  target: {report.target}",
        *([f"  calibration: {report.calibration}"] if report.calibration else []),
        *([f"  bits of a weight: {report.bits}"] if report.bits else []),
        f"  chat template: {report.chat_template}",
        f"  KV cache: {report.kv_cache_length} tokens in {report.kv_cache}",
        f"  draft: {report.draft}",
        f"  threads: {report.threads}",
        "",
        "Signatures",
    ]
    for signature in report.signatures:
        lines.append(f"  {signature.name}")
        lines += [f"    {line}" for line in tensor_lines(signature)]
    lines += ["", "Weights"]
    for group in report.tensors:
        lines.append(f"  {group.kind:12}{group.dtype:12}{size(group.bytes):>10}  x{group.count}")
    short = " (too little)" if report.disk_needed_bytes > report.disk_free_bytes else ""
    lines += ["", "Memory to run", *run_memory_lines(report.run_memory)]
    if report.memory_fit is not None:
        lines.append(f"  {fit_line(report.memory_fit)}")
    lines += ["", "Conversion needs"]
    for what, nbytes, note in (
        ("to read", report.source_bytes, ""),
        ("weights", report.weights_bytes, ""),
        ("output", report.output_bytes, ""),
        ("memory", report.memory_bytes, "about"),
        ("disk", report.disk_needed_bytes, f"{size(report.disk_free_bytes)} free{short}"),
    ):
        lines.append(f"  {what:24}{size(nbytes):>10}  {note}".rstrip())
    return [printable(line) for line in lines]
