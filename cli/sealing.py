"""Receipts of what `obtain` makes, and conversions that a receipt asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converter import receipt
from converter.checkpoint.files import adapter_files, check_states, file_states
from converter.errors import OptionError, OutputError, SourceError
from converter.options import ChatTemplate, parse_draft, spelled_draft
from converter.output.atomic_file import Seal
from converter.receipt import Origin
from converter.text import background

if TYPE_CHECKING:
    from converter.base import ModelConverter, Plan
    from converter.checkpoint.sources import AdapterSource
    from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan
    from converter.weights.adapters import WeightedAdapter
    from converter.weights.passages import CalibrationText


class Sealing:
    """Makes the receipt of an output, and holds it against one that says what must come out.

    Raises:
        OutputError, SourceError: see `converter.receipt`.

    Of the converter, it imports what hashing needs: the rest is imported while that has begun.
    """

    def __init__(
        self,
        output: Path,
        origin: Origin,
        adapters: Sequence[tuple[WeightedAdapter, Origin]],
        expected: dict[str, Any] | None,
        drafter: Origin | None = None,
        folder_of: str | None = None,
    ) -> None:
        """
        Args:
            drafter: where it is from, where there is one.
            folder_of: the model's name, where the output is a folder of packages.
        """
        self._name = folder_of or output.stem
        self._writer: receipt.ReceiptWriter | receipt.FolderReceiptWriter = (
            receipt.FolderReceiptWriter() if folder_of else receipt.ReceiptWriter(output)
        )
        self._output, self._expected = output, expected
        self._origin, self._adapters, self._drafter = origin, adapters, drafter

    def begin(self, files: Sequence[Path], of_drafter: Sequence[Path] = ()) -> None:
        """Start to hash what will be read; where a receipt names files, these must be the ones.

        Args:
            files: the model's; those of its adapters are known.
            of_drafter: the drafter's.
        """
        groups = [files, *(adapter_files(adapter.path) for adapter, _ in self._adapters)]
        origins = [self._origin, *(origin for _, origin in self._adapters)]
        if self._drafter is not None:
            groups.append(of_drafter)
            origins.append(self._drafter)
        self._states = file_states([file for group in groups for file in group])

        def read() -> list[dict[str, Any]]:
            from converter.checkpoint.papers import read_papers

            return [
                asdict(origin)
                | {
                    "files": receipt.hash_files(group),
                    # Beside a GGUF of the user's may lie anything.
                    "papers": read_papers(group, of_folder=origin.kind != "gguf").as_json(),
                }
                for origin, group in zip(origins, groups, strict=True)
            ]

        self._read = background.start(read, self._origin.model, is_bounded=False)
        self._versions = receipt.versions()
        if self._expected is None:
            return
        for before, now in zip(receipt.origins_of(self._expected), self._read(), strict=True):
            _require_same(now["model"], before["files"], now["files"])

    def of_conversion(self, converter: ModelConverter, plan: Plan) -> Seal:
        """What is called with the complete file of a conversion."""

        options = options_for_receipt(converter, plan)

        def seal(finished: Path) -> Callable[[], None]:
            return self.seal(finished, options, figures_for_receipt(converter, plan))

        return seal

    def of_packages(self, converter: CoreMLConverter, plan: CoreMLPlan) -> Seal:
        """The same with the complete folder of one."""
        options = coreml_options_for_receipt(converter, plan)

        def seal(finished: Path) -> Callable[[], None]:
            return self.seal(finished, options, coreml_figures_for_receipt(converter, plan))

        return seal

    def seal(
        self, finished: Path, options: dict[str, Any] | None, plan: dict[str, Any] | None
    ) -> Callable[[], None]:
        """Of an output that is complete but has no name yet: what must be there before it has."""
        parts = receipt.hash_parts(finished)  # a process hashes the sources beside it, where it can
        source, *others = self._read()
        if options is not None:
            options["adapters"] = [
                {**found, "weight": adapter.weight}
                for (adapter, _), found in zip(self._adapters, others, strict=False)
            ]
            if self._drafter is not None:
                options["drafter"] = others[-1]
        found: dict[str, Any] = {
            "receipt": receipt.FORMAT,
            "output": {
                "name": self._name,
                "size": sum(part["size"] for part in parts),
                "parts": parts,
            },
            "source": source,
            "options": options,
            "plan": plan,
            "versions": self._versions,
            "check": None,
        }
        if self._expected is not None:
            changed = receipt.differences(self._expected, finished)
            if changed:
                before = self._expected.get("versions")
                raise OutputError(
                    str(self._output),
                    f"it would not be the bytes of the receipt ({'; '.join(changed)}), which was "
                    f"written with {before}; here is {found['versions']}",
                    "use these versions, or convert without --from-receipt",
                )
        check_states(self._states)  # hashed as it was read
        self._writer.prepare(found, finished)
        return self._writer.finish

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Around what gives the output its name."""
        try:
            yield
        except BaseException:  # an interrupt may come just when the output has its name
            receipt.settle(self._output)
            raise


def _require_same(model: str, before: list[dict[str, Any]], now: list[dict[str, Any]]) -> None:
    """Raise SourceError where files are not those that a receipt names, by name, size and hash."""
    said, found = ({entry["name"]: entry for entry in entries} for entries in (before, now))
    for name in sorted(said.keys() | found.keys()):
        if name not in found:
            why = "it is not there"
        elif name not in said:
            why = "the receipt does not name it"
        else:
            why = "it is not the file that the receipt names"
        if said.get(name) != found.get(name):
            raise SourceError(f"{model}: {name}", why, "find the original files")


def options_for_receipt(converter: ModelConverter, plan: Plan) -> dict[str, Any]:
    """What a receipt says of the options but adapters: what they came to, defaults included."""
    from converter.torch.reference import ReferenceConverter

    return {
        "quantize": plan.quantization.name,
        "clip": converter.options.clip.value,
        "calibrate": _calibration_for_receipt(converter.options.calibrate, plan),
        "bits": converter.options.bits,
        "prefill_lengths": list(plan.prefill_lengths),
        "cache_length": plan.cache_length,
        "kv_cache": plan.cache_type.value,
        "target": converter.options.target.value,
        "draft": spelled_draft(converter.options),
        "engine": "torch" if isinstance(converter, ReferenceConverter) else "direct",
        "chat_template": _template_for_receipt(converter.options.chat_template),
    }


def coreml_options_for_receipt(converter: CoreMLConverter, plan: CoreMLPlan) -> dict[str, Any]:
    """The same of a folder of packages; a scale is the one that was found."""
    options = converter.options
    return {
        "target": "coreml",
        **{name: getattr(options, name) for name in _COREML_OPTIONS},
        **{
            name: None if palette is None else [palette.bits, palette.group]
            for name in _PALETTES
            for palette in (getattr(options, name),)
        },
        "fp16_scale": plan.scale,
        "chat_template": _template_for_receipt(options.chat_template),
    }


# Fields of `CoreMLOptions` that a receipt says as they are, with the types that they have there.
_COREML_OPTIONS: dict[str, Any] = {
    "context": int, "batch": int, "chunks": int | None, "max_chunk_mb": int | None,
    "prefix": str | None, "argmax": bool, "split_rotate": bool, "monolithic": bool,
}  # fmt: skip
_PALETTES = ("lut_embeddings", "lut_layers", "lut_head")


def _calibration_for_receipt(text: CalibrationText | None, plan: Plan) -> dict[str, Any] | None:
    """The text's hash, not the text: it may be for nobody else."""
    if text is None or plan.passages is None:
        return None
    from converter.weights.passages import OWN

    digest = receipt.hash_text(text.text)
    return {"file": text.file or OWN, "blake3": digest, "tokens": plan.passages.size}


def _template_for_receipt(template: ChatTemplate | None) -> dict[str, Any] | None:
    if template is None:
        return None
    return asdict(template) | {"blake3": receipt.hash_text(template.text)}


def coreml_figures_for_receipt(converter: CoreMLConverter, plan: CoreMLPlan) -> dict[str, Any]:
    """What a receipt says of a plan of packages."""
    from converter.report import source_bytes, source_types, tensor_groups

    return {
        "model": converter.name,
        "family": plan.family.name,
        "tensors": [asdict(group) for group in tensor_groups(plan.weights)],
        "source_types": source_types(plan.weights),
        "source_bytes": source_bytes(converter.checkpoint, plan.weights),
        "weights_bytes": plan.weights_nbytes,
        "packages": {part.name: part.nbytes for part in plan.parts},
    }


def figures_for_receipt(converter: ModelConverter, plan: Plan) -> dict[str, Any]:
    """What a receipt says of the plan: nothing of the machine, and little that `inspect` says."""
    from converter.report import source_bytes, source_types, tensor_groups, weights_bytes

    return {
        "model": converter.name,
        "family": plan.family.name,
        "tensors": [asdict(group) for group in tensor_groups(plan.weights)],
        "source_types": source_types(plan.weights),
        "source_bytes": source_bytes(converter.checkpoint, plan.weights),
        "weights_bytes": weights_bytes(plan),
        "output_bytes": plan.bundle.nbytes,
    }


def options_of_receipt(found: dict[str, Any]) -> dict[str, Any]:
    """What a receipt says of the options, as `obtain` takes them.

    Raises:
        OptionError: the text that calibrated cannot be read.
        SourceError: it says something that no option has, or that text is another one now.
    """
    from converter.tflite.kv_cache import CacheType, Target
    from converter.weights.row_format import Clip

    said = found.get("options")
    if said is None:  # a file that was converted when it was fetched
        return {}
    try:
        lengths = tuple(int(length) for length in said["prefill_lengths"])
        if min(lengths, default=0) < 1:
            raise ValueError(f"{lengths} are no lengths")
        chosen = {
            "quantize": str(said["quantize"]),
            "clip": Clip(said["clip"]),
            "prefill_lengths": lengths,
            "cache_length": int(said["cache_length"]),
            # Receipts from before there was a choice say nothing of it.
            "kv_cache": CacheType(said.get("kv_cache", "fp32")),
            "target": Target(said["target"]),
        }
        chosen |= _draft_of_receipt(said)
        if (bits := said.get("bits")) is not None:
            chosen["bits"] = float(bits)
        chosen |= _of_both_targets(said)
        if (calibrated := said.get("calibrate")) is not None:
            file, digest = calibrated["file"], calibrated["blake3"]
            if not isinstance(file, str | None):  # older receipts name no file for `self`
                raise TypeError(f"a text's file is {file!r}")
    except (KeyError, OptionError, TypeError, ValueError) as error:
        raise _damaged(error) from error
    if calibrated is not None:
        chosen["calibrate"] = _calibration_of_receipt(file, digest)
    return chosen | ({"engine": "torch"} if said.get("engine") == "torch" else {})


def coreml_options_of_receipt(found: dict[str, Any]) -> dict[str, Any]:
    """What the receipt of a folder of packages says of the options.

    Raises:
        SourceError: it is not of one, or says something that no option has.
    """
    from converter.weights.palettes import Palette

    said = found.get("options") or {}
    try:
        if said.get("target") != "coreml":
            raise ValueError("it is not of a folder of packages")
        chosen: dict[str, Any] = {}
        for name, kind in _COREML_OPTIONS.items():
            if not isinstance(said[name], kind):
                raise TypeError(f"{name} is {said[name]!r}")
            chosen[name] = said[name]
        for name in _PALETTES:
            chosen[name] = None if said[name] is None else Palette(*map(int, said[name]))
        chosen["fp16_scale"] = float(said["fp16_scale"])
        chosen |= _of_both_targets(said)
    except (KeyError, TypeError, ValueError, OptionError) as error:
        raise _damaged(error) from error
    return chosen


def _of_both_targets(said: dict[str, Any]) -> dict[str, Any]:
    """Adapters and a template; see `Request.chosen_for_any_target`."""
    chosen: dict[str, Any] = {}
    if said.get("adapter") is not None:  # an older receipt's, without its files
        raise ValueError("its adapter has no hash")
    if adapters := said.get("adapters"):
        chosen["lora"] = tuple(_adapter_of_receipt(adapter) for adapter in adapters)
    if (template := said.get("chat_template")) is not None:
        text, file = str(template["text"]), template["file"]
        if template["blake3"] != receipt.hash_text(text) or not isinstance(file, str | None):
            raise ValueError("its chat template is not the one that it was written with")
        chosen["chat_template"] = ChatTemplate(text, file)
    return chosen


def _draft_of_receipt(said: dict[str, Any]) -> dict[str, Any]:
    """What drafts, and how much; older receipts say nothing of it."""
    draft, drafter = str(said.get("draft", "none")), said.get("drafter")
    if drafter is None:
        kind, drafts = parse_draft(draft)
        if kind not in ("none", "lookup"):
            raise ValueError(f"there is no drafter {kind}")
        return {"drafts": drafts}
    from converter.checkpoint.sources import parse_drafter

    # The name is for people: where it is stands in the origin.
    _, drafts = parse_draft(f"lookup:{draft.rpartition(':')[2]}")
    return {
        "drafts": drafts,
        "drafter": replace(parse_drafter(drafter["model"]), revision=drafter["commit"]),
    }


def _calibration_of_receipt(file: str | None, digest: str) -> CalibrationText:
    """The text that a receipt names.

    Raises:
        OptionError: it cannot be read.
        SourceError: it is another one now.
    """
    from converter.weights.passages import OWN, read_calibration

    text = read_calibration(file or OWN)
    if text is None or receipt.hash_text(text.text) != digest:
        raise SourceError(
            f"--calibrate {file or OWN}",
            "it is not the text that the receipt names",
            "find the original file" if file else "use the version that the receipt names",
        )
    return text


def _damaged(error: Exception) -> SourceError:
    return SourceError(
        "--from-receipt", f"its options are damaged ({error})", "convert the model again"
    )


def _adapter_of_receipt(said: dict[str, Any]) -> AdapterSource:
    from converter.checkpoint.sources import AdapterSource

    if said["kind"] == "hub":
        return AdapterSource(
            said["weight"], repo_id=said["model"], file=said["file"], commit=said["commit"]
        )
    return AdapterSource(said["weight"], Path(said["model"]))
