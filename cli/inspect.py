"""`litert-lm-cli inspect`: what is inside a .litertlm file, or a folder of Core ML packages."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cli.outputs import FILE_HELP, output_of
from converter.errors import SourceError

if TYPE_CHECKING:
    from converter.cache_budget import CacheFit
    from converter.coreml.inspection import PackageSummary, Storage, TensorSummary
    from converter.litertlm.inspection import Bundle, SignatureSummary
    from converter.litertlm.run_memory import RunMemory


# What a target means, below its line.
_WHY = {
    "cpu": "every call reads no more of the KV cache than is in use; branches, so not for GPUs",
    "gpu": "no branches, as GPU delegates need it; every call reads the whole KV cache",
}


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inspect",
        help="show what is inside a .litertlm file, or a folder of Core ML packages",
        description="Show the sections, metadata and signatures of a .litertlm file; of Core ML "
        "packages, their functions, how their weights are stored, and what meta.yaml says.",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help=f"{FILE_HELP}; or one .mlpackage")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(args: argparse.Namespace) -> None:
    file = output_of(args.file)
    if file.is_dir():
        _show_packages(file, args.json)
        return
    from converter.litertlm.inspection import read_bundle

    bundle = read_bundle(file)
    if args.json:
        # In ASCII: a model's strings may hold what a terminal obeys, or its encoding lacks.
        print(json.dumps(as_json(bundle), indent=2))
    else:
        print("\n".join(_lines(bundle)))


def as_json(bundle: Bundle) -> dict[str, Any]:
    """The whole of a bundle's description, in plain types."""
    from google.protobuf import json_format

    return {
        "path": str(bundle.path),
        "size": bundle.nbytes,
        "format_version": bundle.version,
        "system": bundle.system,
        "sections": [
            {"type": s.kind, "offset": s.offset, "size": s.nbytes, "items": s.items}
            for s in bundle.sections
        ],
        "metadata": json_format.MessageToDict(bundle.metadata, preserving_proto_field_name=True),
        "signatures": [dataclasses.asdict(s) for s in bundle.model.signatures],
        "weight_bytes": bundle.model.weight_bytes,
        "run_memory": dataclasses.asdict(bundle.model.run_memory),
        "drafts": bundle.drafts,
    }


def _lines(bundle: Bundle) -> list[str]:
    from google.protobuf import text_format

    lines = [f"{bundle.path}  {size(bundle.nbytes)}, format {bundle.version}"]
    for key, value in bundle.system.items():
        lines.append(f"  {key}: {value}")
        if key == "target" and value in _WHY:
            lines.append(f"    {_WHY[value]}")
    if bundle.drafts and "draft" not in bundle.system:
        lines.append(f"  draft: {bundle.drafts} tokens at once; greedy where an app turns it on")
    lines += ["", "Sections"]
    for section in bundle.sections:
        items = "  ".join(f"{key}={value}" for key, value in section.items.items())
        lines.append(f"  {section.kind:24}{size(section.nbytes):>10}  {items}".rstrip())
    lines += ["", "Signatures"]
    for signature in bundle.model.signatures:
        lines.append(f"  {signature.name}")
        lines += [f"    {line}" for line in tensor_lines(signature)]
    lines += ["", "Weights"]
    for dtype, nbytes in sorted(bundle.model.weight_bytes.items(), key=lambda item: -item[1]):
        # Of int6, which the engine does not know (`quantization.SCHEMES`); others have int2 itself.
        is_of_int6 = dtype == "int2" and "quantization" in bundle.system
        note = "  of int6: its other four bits are in int4" if is_of_int6 else ""
        lines.append(f"  {dtype:24}{size(nbytes):>10}{note}")
    lines += ["", "Memory to run", *run_memory_lines(bundle.model.run_memory), "", "Metadata"]
    metadata = type(bundle.metadata)()
    metadata.CopyFrom(bundle.metadata)
    template = metadata.jinja_prompt_template
    metadata.ClearField("jinja_prompt_template")
    text = text_format.MessageToString(metadata, as_utf8=True)
    lines += [f"  {line}" for line in text.splitlines()]
    lines += ["", "Chat template", *(f"  {line}" for line in template.splitlines())]
    return [printable(line) for line in lines]


def tensor_lines(signature: SignatureSummary) -> list[str]:
    """One line per tensor; the caches, alike in every layer, in and out, share one."""
    directions: dict[str, set[str]] = {}
    counts: dict[str, set[str]] = {}
    for direction, tensors in (("in", signature.inputs), ("out", signature.outputs)):
        for tensor in tensors:
            stem = tensor.name.rstrip("0123456789")
            is_of_layer = stem.startswith("kv_cache_") and stem != tensor.name
            name = stem + "*" if is_of_layer else tensor.name
            line = f"{name:16}{tensor.dtype} {tensor.shape}"
            directions.setdefault(line, set()).add(direction)
            counts.setdefault(line, set()).add(tensor.name)
    return [
        f"{'+'.join(sorted(directions[line])):8}{line}"
        + (f"  x{len(names)}" if len(names) > 1 else "")
        for line, names in counts.items()
    ]


def fit_line(fit: CacheFit) -> str:
    """What a budget of memory comes to."""
    return (
        f"A KV cache of {fit.kv_cache_length} fits into {size(fit.memory_bytes)}: about "
        f"{size(fit.needed_bytes)} with the engine and the tokenizer"
    )


def run_memory_lines(needs: RunMemory) -> list[str]:
    """What a network needs in the engine, a line each."""
    return [
        f"  {what:24}{size(nbytes):>10}"
        for what, nbytes in (
            ("weights", needs.weights_bytes),
            ("KV cache", needs.kv_cache_bytes),
            ("scratch, at most", needs.scratch_bytes),
            ("beside the engine", needs.total_bytes),
        )
    ]


# Packages -----------------------------------------------------------------------------------------


def _show_packages(path: Path, in_json: bool) -> None:
    """Print what is there.

    Raises:
        SourceError: it is damaged, or is something else.
    """
    from converter.coreml.inspection import COMPILED, ENDING, read_package

    if path.suffix in (ENDING, COMPILED):
        package = read_package(path)
        found = {"path": str(path), **package_as_json(package)}
        lines = _package_lines(package)
    else:
        found = folder_as_json(path)
        lines = _folder_lines(path)
    # In ASCII: a model's strings may hold what a terminal obeys, or its encoding lacks.
    print(json.dumps(found, indent=2) if in_json else "\n".join(map(printable, lines)))


def package_as_json(package: PackageSummary) -> dict[str, Any]:
    """A package, in plain types."""
    return {
        "name": package.path.name,
        "size": package.nbytes,
        "specification_version": package.specification,
        "metadata": dict(package.metadata),
        "functions": [dataclasses.asdict(function) for function in package.functions],
        "weights": [
            {**dataclasses.asdict(storage), "count": count, "bytes": package.weight_bytes[storage]}
            for storage, count in package.counts.items()
        ],
    }


def folder_as_json(path: Path) -> dict[str, Any]:
    """A folder of packages, in plain types.

    Raises:
        SourceError: it is damaged, or holds none.
    """
    from converter.coreml.inspection import folder_bytes, read_meta

    meta = read_meta(path)
    return {
        "path": str(path),
        "size": folder_bytes(path),
        "source": _source_of(path),
        "name": meta.name,
        "scheme": meta.scheme,
        "parameters": dict(meta.parameters),
        "packages": [package_as_json(package) for package in _packages(path)],
    }


def _packages(path: Path) -> list[PackageSummary]:
    from converter.coreml.inspection import packages_of, read_meta, read_package

    return [read_package(package) for package in packages_of(path, read_meta(path))]


def _source_of(path: Path) -> dict[str, Any] | None:
    """What a folder's receipt says of its source but the files; None without one."""
    from converter.receipt import read_receipt, receipt_path

    try:
        source = read_receipt(receipt_path(path))["source"]
    except SourceError:
        return None
    return {key: source.get(key) for key in ("kind", "model", "revision", "commit", "file")}


def _folder_lines(path: Path) -> list[str]:
    from converter.coreml.inspection import folder_bytes, read_meta

    meta, source = read_meta(path), _source_of(path)
    where = "no receipt says it"
    if source is not None:
        where = ", ".join(str(source[key]) for key in ("model", "file", "commit") if source[key])
    lines = [
        f"{path}  {size(folder_bytes(path))}",
        f"  name: {meta.name}",
        f"  source: {where}",
        f"  scheme: {meta.scheme}",
        "",
        "Parameters of meta.yaml",
    ]
    for key, value in meta.parameters.items():
        shown = value
        if isinstance(value, list):
            shown = ", ".join(f"{count} of {each}" for each, count in Counter(value).items())
        lines.append(f"  {key}: {shown}")
    for package in _packages(path):
        title, *more = _package_lines(package)
        lines += ["", title]
        if meta.packages and package.path.stem not in meta.packages:
            lines.append("  no part of this model: meta.yaml does not name it")
        lines += more
    return lines


def _package_lines(package: PackageSummary) -> list[str]:
    lines = [f"{package.path.name}  {size(package.nbytes)}"]
    for function in package.functions:
        lines.append(f"  {function.name}")
        for direction, tensors in (
            ("in", function.inputs),
            ("out", function.outputs),
            ("state", function.states),
        ):
            lines += [f"    {direction:8}{_tensor(tensor)}" for tensor in tensors]
    lines.append("  weights")
    for storage, count in package.counts.items():
        nbytes = size(package.weight_bytes[storage])
        lines.append(f"    {storage.kind:12}{_how(storage):32}{nbytes:>10}  x{count}")
    return lines


def _tensor(tensor: TensorSummary) -> str:
    shapes = tensor.choices or (tensor.shape,)
    shown = " or ".join(
        f"[{', '.join('?' if length is None else str(length) for length in shape)}]"
        for shape in shapes
    )
    return f"{tensor.name:24}{tensor.dtype} {shown}"


def _how(storage: Storage) -> str:
    if storage.operation is None:
        return storage.dtype
    if storage.bits is None:
        return f"{storage.operation}, {storage.dtype}"
    return f"tables of {storage.bits} bits, " + (
        f"{storage.group} rows each" if storage.group else "one each"
    )


# Text ---------------------------------------------------------------------------------------------


def printable(text: str) -> str:
    """Text from a model's files as one line, with nothing in it that a terminal would obey."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def size(nbytes: int) -> str:
    """1234567 -> `1.2 MB`, decimal as disks are sold and shown."""
    value = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} GB"
