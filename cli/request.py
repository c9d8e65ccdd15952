"""What is wanted of a model, whether a command line says it or a program in Python."""

from __future__ import annotations

import argparse
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from converter.errors import OptionError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_Options = TypeVar("_Options", bound="DataclassInstance")
_Choice = TypeVar("_Choice", bound=enum.Enum)

BACKENDS = ("cpu", "gpu")
TARGETS = (*BACKENDS, "coreml")
CACHES = ("int8", "fp16", "fp32")
ENGINES = ("direct", "torch")


@dataclass(frozen=True)
class Request:
    """A model, and how to get it. The names are those of the command line's options.

    What shapes the result is as the user spelt it, and None leaves the default.

    Attributes:
        model: whatever `converter.checkpoint.sources.parse_model` takes.
        output_dir: where the result goes, None for the models folder.
        force: replace an existing result.
        backend: what it will run on at once, which chooses the target where nobody else does.
        receipt: what `converter.receipt.read_receipt` read, where the same bytes are wanted again.
        accept: what the result must hold to get its name, as `cli.accept` reads it.
        asks: whether somebody sits at a terminal who may be asked.
        progress: is told `(done_bytes, total_bytes)` of the weights, instead of a bar on stderr;
            from the threads that convert, one at a time.
    """

    model: str
    quantize: str | None = None
    clip: str | None = None
    calibrate: str | None = None
    bits: float | None = None
    lora: Sequence[str] | None = None
    chat_template: str | None = None
    prefill_seq_len: str | None = None
    kv_cache_max_len: int | Literal["auto"] | None = None
    memory: int | None = None
    kv_cache: str | None = None
    target: str | None = None
    engine: str | None = None
    draft: str | None = None
    revision: str | None = None
    offline: bool = False
    quiet: bool = False
    output_dir: Path | None = None
    force: bool = False
    backend: str = "cpu"
    receipt: dict[str, Any] | None = None
    accept: str | None = None
    asks: bool = False
    progress: Callable[[int, int], None] | None = None

    # What a receipt says, so that nobody else may.
    decided_by_receipt: ClassVar[tuple[str, ...]] = (
        "quantize", "clip", "calibrate", "bits", "lora", "chat_template", "prefill_seq_len",
        "kv_cache_max_len", "memory", "kv_cache", "target", "engine", "draft", "revision",
    )  # fmt: skip

    def by_receipt(self, path: Path) -> Self:
        """This request, with everything that the receipt at `path` decides.

        Raises:
            OptionError: an option says something of that, too.
            SourceError: see `converter.receipt.read_receipt`.
        """
        from converter.receipt import read_receipt

        given = [n for n in self.decided_by_receipt if getattr(self, n) not in (None, False, ())]
        if given:
            raise decided_by_receipt(flag(given[0]))
        receipt = read_receipt(path)
        source = receipt["source"]
        file = source.get("file")
        named = f"{source['model']}:{file}" if file else source["model"]
        return replace(
            self, model=self.model or named, revision=source.get("commit"), receipt=receipt
        )

    def chosen(self) -> dict[str, Any]:
        """What shapes the result: fields of `ConvertOptions`, and `engine` where it is not ours.

        Raises:
            OptionError: one of them cannot be used. No work was done for it.
        """
        chosen = self.chosen_for_any_target()
        if self.quantize is not None:
            from converter.weights.quantization import parse_quantization

            chosen["quantize"] = parse_quantization(self.quantize).name
        if self.clip is not None:
            from converter.weights.row_format import Clip

            chosen["clip"] = _member(Clip, "clip", self.clip)
        if self.calibrate is not None:
            from converter.weights.passages import read_calibration

            chosen["calibrate"] = read_calibration(self.calibrate)
        if self.bits is not None:
            chosen["bits"] = self.bits
        if self.prefill_seq_len is not None:
            from converter.options import parse_prefill_lengths

            chosen["prefill_lengths"] = parse_prefill_lengths(self.prefill_seq_len)
        if self.memory is not None:
            chosen["memory"] = self.memory
        if self.kv_cache_max_len == "auto":
            from converter.options import DEFAULT_MEMORY

            chosen.setdefault("memory", DEFAULT_MEMORY)
        elif self.kv_cache_max_len is not None:
            chosen["cache_length"] = self.kv_cache_max_len
        if self.kv_cache is not None:
            from converter.tflite.kv_cache import CacheType

            chosen["kv_cache"] = _member(CacheType, "kv_cache", self.kv_cache)
        if self.target is not None:
            from converter.tflite.kv_cache import Target

            chosen["target"] = _member(Target, "target", self.target)
        if self.engine is not None:
            check_choice("engine", self.engine, ENGINES)
            if self.engine == "torch":
                chosen["engine"] = self.engine
        if self.draft is not None:
            from converter.options import parse_draft

            drafter, chosen["drafts"] = parse_draft(self.draft)
            if drafter not in ("none", "lookup"):
                from converter.checkpoint.sources import parse_drafter

                chosen["drafter"] = parse_drafter(drafter)
        return chosen

    def chosen_for_any_target(self) -> dict[str, Any]:
        """The part of `chosen` that is the same for every target."""
        chosen: dict[str, Any] = {}
        if self.lora:
            from converter.checkpoint.sources import parse_adapter

            chosen["lora"] = tuple(parse_adapter(text) for text in self.lora)
        if self.chat_template is not None:
            from converter.options import read_chat_template

            chosen["chat_template"] = read_chat_template(self.chat_template)
        return chosen


def of_arguments(kind: type[_Options], args: argparse.Namespace, **others: Any) -> _Options:
    """What a parsed command line says of a dataclass of options; `others` wins over it."""
    names = [field.name for field in fields(kind) if hasattr(args, field.name)]
    return kind(**{name: getattr(args, name) for name in names} | others)


def decided_by_receipt(option: str) -> OptionError:
    """An option beside a receipt that leaves it nothing to say."""
    return OptionError(
        "--from-receipt", f"the receipt decides, not {option}", "leave one of them out"
    )


def flag(name: str) -> str:
    """`kv_cache_max_len` -> `--kv-cache-max-len`."""
    return f"--{name.replace('_', '-')}"


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise OptionError unless `value` is one of `choices`."""
    if value not in choices:
        raise OptionError(
            f"{flag(name)} {value}", "there is no such choice", f"use {' or '.join(choices)}"
        )


def _member(kind: type[_Choice], name: str, value: str) -> _Choice:
    check_choice(name, value, tuple(member.value for member in kind))
    return kind(value)
