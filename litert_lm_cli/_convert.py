"""`convert` and `plan`: the command line's conversion, for programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cli.coreml import CoreMLRequest, obtain_packages, preview_packages, request_kind
from cli.limits import parsed_numbers
from cli.request import Request, flag
from converter.errors import OptionError

if TYPE_CHECKING:
    from converter.coreml_report import CoreMLPlanReport
    from converter.report import PlanReport

AnyPath = str | os.PathLike[str]


def convert(
    model: AnyPath | None = None,
    *,
    output_dir: AnyPath | None = None,
    force: bool = False,
    from_receipt: AnyPath | None = None,
    quantize: str | None = None,
    lora: AnyPath | Sequence[AnyPath] | None = None,
    chat_template: AnyPath | None = None,
    clip: str | None = None,
    calibrate: AnyPath | None = None,
    bits: float | None = None,
    prefill_seq_len: int | str | None = None,
    kv_cache_max_len: int | Literal["auto"] | None = None,
    memory: str | None = None,
    kv_cache: str | None = None,
    target: str | None = None,
    engine: str | None = None,
    draft: str | None = None,
    revision: str | None = None,
    offline: bool = False,
    quiet: bool = False,
    check: bool = False,
    accept: str | None = None,
    context: int | None = None,
    batch: int | None = None,
    lut1: int | str | None = None,
    lut2: int | str | None = None,
    lut3: int | str | None = None,
    chunk: int | str | None = None,
    max_chunk_mb: int | None = None,
    prefix: str | None = None,
    argmax: bool | None = None,
    fp16_scale: float | str | None = None,
    split_rotate: bool | None = None,
    monolithic: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Convert a model; the path of its `.litertlm` file, or of the folder of its Core ML packages.

    What exists is kept without `force`.

    Args:
        model: a folder with config.json and *.safetensors, a .gguf file, a Hugging Face id, demo.
        output_dir: write `output_dir/NAME.litertlm`, or packages into `output_dir` itself; None
            writes to the models folder.
        force: replace an existing output.
        from_receipt: make the same bytes again, as a receipt says; `model` may be left out then.
        quantize: as `--quantize`: dynamic_int4, fp16, ...; where None dynamic_int8, or
            dynamic_int8_a16 below 200M parameters.
        lora: an adapter to merge, or several, in this order: a PEFT folder, a GGUF or an id on the
            hub each, and `ADAPTER:WEIGHT` for so many times its update.
        chat_template: a file with a Jinja template in place of the model's own, or "none".
        clip: mse (where None) or max.
        calibrate: "self", a text file, or "none" (where None): a text by which columns of int4 make
            up for each other's errors.
        bits: with it, that a weight may take on average, as 5.5: matrices of int4 become int6 or
            int8 where that saves most.
        prefill_seq_len: the longest prefill signature, or several as in "64,256".
        kv_cache_max_len: tokens that the KV cache holds, or "auto" for the most that fits into
            `memory`; 1280 where both are None.
        memory: what the result may take when it runs, with engine and tokenizer, as in "3GB"; where
            None any, and 3GB with "auto".
        kv_cache: what it holds keys and values as: fp32 (where None), or for cpu int8 or fp16.
        target: cpu (where None), gpu or coreml.
        engine: direct (where None) or torch.
        draft: "lookup" or "lookup:N", for at most N drafts at once, or "none" (where None).
        revision: branch, tag or commit on the hub.
        offline: use what is on this disk, and no network.
        quiet: no progress and no notes on stderr.
        accept: what the result must hold beside its source, else nothing is written: `kl<=0.08`.
        check: then load the result and ask it easy questions.
        context, batch, lut1, lut2, lut3, chunk, max_chunk_mb, prefix, argmax, fp16_scale,
            split_rotate, monolithic: of target coreml; as `--context` and so on.
        progress: is told `(done_bytes, total_bytes)` of the weights while they are converted, in
            place of stderr; from the threads that convert, one at a time.

    Raises:
        OptionError: an option cannot be used.
        SourceError: the model is missing, damaged or incomplete.
        UnsupportedError: it asks for something that would change the numbers if ignored.
        OutputError: the result cannot be written, or `accept` does not hold. Nothing stays.
        EngineError: the result makes no sense (`check`), or the torch engine failed.
    """
    from cli.obtain import obtain, try_out

    request = request_for(
        model,
        from_receipt,
        output_dir=output_dir,
        force=force,
        quantize=quantize,
        lora=lora,
        chat_template=chat_template,
        clip=clip,
        calibrate=calibrate,
        bits=bits,
        prefill_seq_len=prefill_seq_len,
        kv_cache_max_len=kv_cache_max_len,
        memory=memory,
        kv_cache=kv_cache,
        target=target,
        engine=engine,
        draft=draft,
        revision=revision,
        offline=offline,
        quiet=quiet,
        accept=accept,
        context=context,
        batch=batch,
        lut1=lut1,
        lut2=lut2,
        lut3=lut3,
        chunk=chunk,
        max_chunk_mb=max_chunk_mb,
        prefix=prefix,
        argmax=argmax,
        fp16_scale=fp16_scale,
        split_rotate=split_rotate,
        monolithic=monolithic,
        progress=progress,
        has_coreml=True,
    )
    if isinstance(request, CoreMLRequest):
        return obtain_packages(request, check)
    path = obtain(request, announce_kept=True)
    if check:
        try_out(path)
    return path


def plan(
    model: AnyPath,
    *,
    output_dir: AnyPath | None = None,
    quantize: str | None = None,
    lora: AnyPath | Sequence[AnyPath] | None = None,
    chat_template: AnyPath | None = None,
    clip: str | None = None,
    calibrate: AnyPath | None = None,
    bits: float | None = None,
    prefill_seq_len: int | str | None = None,
    kv_cache_max_len: int | Literal["auto"] | None = None,
    memory: str | None = None,
    kv_cache: str | None = None,
    target: str | None = None,
    draft: str | None = None,
    revision: str | None = None,
    quiet: bool = False,
    context: int | None = None,
    batch: int | None = None,
    lut1: int | str | None = None,
    lut2: int | str | None = None,
    lut3: int | str | None = None,
    chunk: int | str | None = None,
    max_chunk_mb: int | None = None,
    prefix: str | None = None,
    argmax: bool | None = None,
    fp16_scale: float | str | None = None,
    split_rotate: bool | None = None,
    monolithic: bool | None = None,
) -> PlanReport | CoreMLPlanReport:
    """What `convert` would do with the same arguments: `convert --dry-run`.

    Nothing is written, and nothing downloaded. `as_json()` of what is returned has the whole of it
    in plain types.

    Raises:
        OptionError, SourceError, UnsupportedError: as `convert`.
    """
    from cli.obtain import preview

    request = request_for(
        model,
        output_dir=output_dir,
        quantize=quantize,
        lora=lora,
        chat_template=chat_template,
        clip=clip,
        calibrate=calibrate,
        bits=bits,
        prefill_seq_len=prefill_seq_len,
        kv_cache_max_len=kv_cache_max_len,
        memory=memory,
        kv_cache=kv_cache,
        target=target,
        draft=draft,
        revision=revision,
        quiet=quiet,
        context=context,
        batch=batch,
        lut1=lut1,
        lut2=lut2,
        lut3=lut3,
        chunk=chunk,
        max_chunk_mb=max_chunk_mb,
        prefix=prefix,
        argmax=argmax,
        fp16_scale=fp16_scale,
        split_rotate=split_rotate,
        monolithic=monolithic,
        has_coreml=True,
    )
    return preview_packages(request) if isinstance(request, CoreMLRequest) else preview(request)


def request_for(
    model: AnyPath | None,
    from_receipt: AnyPath | None = None,
    has_coreml: bool = False,
    **options: Any,
) -> Request:
    """What was asked for, in the types of the command line.

    Args:
        has_coreml: whether what is made may be packages, which nothing runs here.

    Raises:
        OptionError, SourceError: see `Request`.
    """
    if model is None and from_receipt is None:
        raise OptionError("convert", "no model was named", "name one, or a receipt")
    for name in (
        "quantize", "clip", "kv_cache", "target", "engine", "draft", "revision", "prefix", "accept",
    ):  # fmt: skip
        check_text(name, options.get(name))
    progress = options.get("progress")
    if progress is not None and not callable(progress):
        raise OptionError(
            f"progress={progress!r:.40}", "it cannot be called", "pass a function of two numbers"
        )
    for name in ("prefill_seq_len", "lut1", "lut2", "lut3", "chunk", "fp16_scale"):
        if options.get(name) is not None:
            options[name] = str(options[name])
    for name in ("argmax", "split_rotate", "monolithic"):
        options[name] = options.get(name) or None  # to leave out is not to decide
    options |= parsed_numbers(options)
    if (lora := options.get("lora")) is not None:
        adapters: Any = [lora] if isinstance(lora, str | bytes | os.PathLike) else lora
        if not isinstance(adapters, Sequence):
            adapters = [adapters]  # `_text` says what is wrong with it
        options["lora"] = [_text("lora", adapter) for adapter in adapters]
    for name in ("chat_template", "output_dir"):
        if options.get(name) is not None:
            options[name] = _text(name, options[name])
    if options.get("output_dir") is not None:
        options["output_dir"] = Path(options["output_dir"])
    paper = None if from_receipt is None else Path(_text("from_receipt", from_receipt))
    kind = request_kind({**options, "from_receipt": paper}) if has_coreml else Request
    names = {field.name for field in fields(kind)}
    request = kind(
        model="" if model is None else _text("model", model),
        **{name: value for name, value in options.items() if name in names},
    )
    return request if paper is None else request.by_receipt(paper)


def check_text(name: str, value: object) -> None:
    """Raise OptionError where a text is something else; None is left out."""
    if not isinstance(value, str | None):
        raise OptionError(f"{flag(name)} {value!r:.40}", "it is no text", "pass a str")


def _text(name: str, value: AnyPath) -> str:
    try:
        return os.fsdecode(value)
    except TypeError as error:
        raise OptionError(
            name,
            f"a {type(value).__name__} is not the name of a file or folder",
            "save_pretrained it to a folder, and pass the folder",
        ) from error
