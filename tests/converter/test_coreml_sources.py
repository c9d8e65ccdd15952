"""Packages of every kind of source, run on Apple's reference semantics, and their bytes."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from converter.checkpoint.gguf import open_gguf
from converter.checkpoint.safetensors import open_folder
from converter.coreml.package import WEIGHTS
from converter.coreml_options import CoreMLOptions
from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan
from converter.weights import planned_weight
from converter.weights.adapters import WeightedAdapter
from converter.weights.palettes import Palette
from tests import gguf_models
from tests.coreml_models import Parts, Runtime
from tests.quantized_checkpoints import awq, gptq, quantize
from tests.tiny_models import (
    TINY_CONFIGS,
    make_adapter,
    make_checkpoint,
    make_model,
    random_model,
    text_logits,
    write_tokenizer,
)

CONTEXT, BATCH = 64, 16
TOKENS = np.random.default_rng(0).integers(3, 250, CONTEXT).tolist()
PROMPT = 50  # three batches, then tokens one by one
FLOAT16: Mapping[str, Any] = {"lut_layers": None, "lut_head": None}
# Greatest errors beside the standard deviation of logits: of float16 tables of cosines, and of
# weights that are rounded to float16.
TABLES, WEIGHTS_TOO = 8e-3, 3e-2


def convert(source: Path, output: Path, **options: Any) -> CoreMLPlan:
    opened = open_gguf(source) if source.is_file() else open_folder(source)
    options = {"context": CONTEXT, "batch": BATCH, "threads": 2} | options
    with opened as checkpoint:
        return CoreMLConverter(checkpoint, "tiny", CoreMLOptions(**options)).convert(output)


def said(
    plan: CoreMLPlan, folder: Path, tokens: Sequence[int] = TOKENS, prompt: int = PROMPT
) -> np.ndarray:
    """What the packages say behind a prompt."""
    paths: dict[str, list[Path]] = {}
    for part in plan.parts:
        paths.setdefault(part.kind, []).append(folder / part.folder)
    [embeddings], [head] = paths.get("embeddings", [None]), paths.get("head", [None])
    chunks = paths.get("layers") or paths["monolithic"]
    return Runtime(Parts(plan.interface, chunks, embeddings, head)).run(tokens, prompt)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def error(found: np.ndarray, model: Any, tokens: Sequence[int] = TOKENS) -> float:
    """The largest, beside the standard deviation of what transformers says."""
    expected = text_logits(model, list(tokens))[-len(found) :]
    return float(np.abs(found - expected).max() / expected.std())


def halved(model: Any) -> Any:
    """A model of numbers that float16 holds."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model


def saved(model: Any, folder: Path) -> Any:
    """The same, and a tokenizer, in a folder."""
    halved(model).save_pretrained(folder)
    write_tokenizer(folder)
    return model


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A Qwen2 with biases and a tied head: parts of 41 rows, whose bits are no whole bytes."""
    model_type, values = TINY_CONFIGS["qwen2-tied"]
    folder = tmp_path_factory.mktemp("tied")
    odd = {**values, "hidden_size": 60, "vocab_size": 287}
    return folder, saved(random_model(model_type, odd), folder)


# Sources ------------------------------------------------------------------------------------------


def test_a_folder_in_parts_and_all_in_one(tied: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = tied

    parts = said(convert(folder, tmp_path / "parts", **FLOAT16), tmp_path / "parts")
    options = {**FLOAT16, "monolithic": True, "argmax": True}
    tokens = said(convert(folder, tmp_path / "one", **options), tmp_path / "one")

    assert error(parts, model) < TABLES
    np.testing.assert_array_equal(tokens, parts.argmax(axis=-1))


def test_a_gguf(tmp_path: Path) -> None:
    """A Llama's, whose heads lie there in pairs."""
    model = halved(make_model("llama"))
    source = gguf_models.write_model(model, tmp_path / "m.gguf")

    plan = convert(source, tmp_path / "out", **FLOAT16)

    assert error(said(plan, tmp_path / "out"), model) < TABLES


@pytest.mark.parametrize(("method", "pack"), [("gptq", gptq), ("awq", awq)])
def test_weights_that_are_quantised_already(method: str, pack: Any, tmp_path: Path) -> None:
    model = make_checkpoint("llama", tmp_path / "in")
    settings = {"bits": 4, "group_size": 32, "quant_method": method, "version": "gemm"}
    quantize(model, tmp_path / "in", {"quantization_config": settings}, pack, "lm_head")

    plan = convert(tmp_path / "in", tmp_path / "out", **FLOAT16)

    assert error(said(plan, tmp_path / "out"), model) < WEIGHTS_TOO


@pytest.mark.parametrize("modules", [["q_proj", "embed_tokens"], ["down_proj", "lm_head"]])
def test_adapters(modules: list[str], tied: tuple[Path, Any], tmp_path: Path) -> None:
    """Where one changes the embedding or the head alone, these are tied no more."""
    folder, model = tied
    apart = copy.deepcopy(model)
    apart.lm_head.weight = torch.nn.Parameter(apart.lm_head.weight.detach().clone())
    merged = make_adapter(apart, tmp_path / "adapter", target_modules=modules)

    lora = [WeightedAdapter(tmp_path / "adapter")]
    plan = convert(folder, tmp_path / "out", lora=lora, **FLOAT16)

    assert error(said(plan, tmp_path / "out"), merged) < WEIGHTS_TOO


# Windows ------------------------------------------------------------------------------------------


def test_a_context_below_the_window(tmp_path: Path) -> None:
    """A Gemma 3's, in a cache that never is full: its layers differ in their cosines alone."""
    model_type, values = TINY_CONFIGS["gemma3_text-linear"]
    model = saved(random_model(model_type, {**values, "sliding_window": 64}), tmp_path / "in")

    plan = convert(tmp_path / "in", tmp_path / "out", context=32, **FLOAT16)

    found = said(plan, tmp_path / "out", TOKENS[:32], 16)
    assert error(found, model, TOKENS[:32]) < TABLES


# Bytes --------------------------------------------------------------------------------------------


TABLES_OF_ALL: Mapping[str, Any] = {
    "lut_embeddings": Palette(6, 7),
    "lut_layers": Palette(4, 4),
    "lut_head": Palette(1, 0),
}


@pytest.mark.parametrize("options", [FLOAT16, TABLES_OF_ALL], ids=["float16", "tables"])
@pytest.mark.parametrize("monolithic", [False, True], ids=["parts", "one"])
def test_the_planned_bytes_by_any_number_of_threads_and_blocks(
    options: Mapping[str, Any],
    monolithic: bool,
    tied: tuple[Path, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, _ = tied
    chosen = {**options, "monolithic": monolithic}
    plan = convert(folder, tmp_path / "1", threads=1, **chosen)
    whole = contents(tmp_path / "1")
    assert {part.folder: part.nbytes for part in plan.parts} == {
        part.folder: sum(len(data) for name, data in whole.items() if name.startswith(part.folder))
        for part in plan.parts
    }

    monkeypatch.setattr(planned_weight, "BLOCK_VALUES", 300)
    for threads in (2, 3):
        convert(folder, tmp_path / str(threads), threads=threads, **chosen)
        assert contents(tmp_path / str(threads)) == whole


def test_tables_go_by_what_reaches_the_weights(tied: tuple[Path, Any], tmp_path: Path) -> None:
    """In layers, which calibration's text goes through; not in the embedding."""
    folder, model = tied
    plan = convert(folder, tmp_path / "out", **TABLES_OF_ALL)

    def stored(path: str) -> np.ndarray:
        [weight] = (weight for weight in plan.weights if weight.path == path)
        [part] = (
            part
            for part in plan.parts
            if part.start <= weight.offset < part.start + part.layout.nbytes
        )
        content = (tmp_path / "out" / part.folder / WEIGHTS).read_bytes()
        assert weight.scales_offset is not None
        at = weight.scales_offset - part.start
        return np.frombuffer(content[at : at + weight.scales_nbytes], np.float16)

    def plain(name: str, palette: Palette) -> np.ndarray:
        return palette.pack(model.state_dict()[f"model.{name}.weight"].numpy())[1].reshape(-1)

    np.testing.assert_array_equal(stored("embedding"), plain("embed_tokens", Palette(6, 7)))
    down = plain("layers.0.mlp.down_proj", Palette(4, 4))
    assert (stored("layers.0.mlp.down") != down).mean() > 0.2


def test_progress_is_told_all_that_is_streamed(tied: tuple[Path, Any], tmp_path: Path) -> None:
    told: list[int] = []

    with open_folder(tied[0]) as checkpoint:
        options = CoreMLOptions(context=CONTEXT, batch=BATCH, threads=2, **TABLES_OF_ALL)
        plan = CoreMLConverter(checkpoint, "tiny", options).convert(tmp_path / "out", told.append)

    assert sum(told) == plan.weights_nbytes
