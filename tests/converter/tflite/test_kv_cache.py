"""Compact KV caches against transformers with a cache that rounds what it is given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converter.base import ModelConverter
from converter.checkpoint.safetensors import open_folder
from converter.errors import OptionError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.tflite import attention
from converter.tflite.kv_cache import REWIND, CacheType, Target, hadamard
from runner.interpreter import GraphRunner
from tests.tiny_models import TINY_CONFIGS, make_checkpoint, text_logits

CACHE_LENGTH = 640
LENGTHS = (8, 64, 256)
# Full caches, rings, scores with a cap, scores with sinks; fp16 differs by no more than a type. And
# keys that are cut in pieces even where all are read, as those of a large cache are.
INT8, FP16 = CacheType.INT8, CacheType.FP16
CASES = [
    ("llama", INT8, ""), ("gemma3_text", INT8, ""), ("gemma2", INT8, ""), ("gpt_oss", INT8, ""),
    ("gemma3_text", FP16, ""), ("gpt_oss", INT8, "large"), ("gemma3_text", FP16, "large"),
]  # fmt: skip

# A value halfway between two steps goes to either, as the last bit of a product has it, and what
# sees it is a little different. What rounding itself does is so many times as large.
LEAST_SHARE = 5

# (bundle, tokens, logits of every position, how far these are from those in float)
Case = tuple[Path, list[int], np.ndarray, float]


def _rounded_logits(model: Any, tokens: list[int], type_: CacheType) -> np.ndarray:
    """transformers' logits where every key and value is rounded as it enters the cache."""
    import torch
    from transformers import DynamicCache

    def rounded(x: Any) -> Any:
        if type_ is CacheType.FP16:
            return x.half().float()
        scale = (x.abs().amax(-1, keepdim=True) / 127).clamp(min=1e-20)
        return (x / scale).round() * scale

    def rounded_keys(x: Any) -> Any:
        """Sums and differences of all that a tiny head has are what int8 holds."""
        mixing = torch.from_numpy(hadamard(x.shape[-1]))
        return rounded(x) if type_ is CacheType.FP16 else rounded(x @ mixing) @ mixing

    class Rounded(DynamicCache):
        def update(self, keys: Any, values: Any, *args: Any, **kwargs: Any) -> Any:
            return super().update(rounded_keys(keys), rounded(values), *args, **kwargs)

    with torch.no_grad():
        output = model(torch.tensor([tokens]), past_key_values=Rounded(config=model.config))
    logits: np.ndarray = output.logits[0].float().numpy()
    return logits


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    test_id, type_, is_large = request.param
    folder = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        model_type, values = TINY_CONFIGS[test_id]
        if "num_experts_per_tok" in values:  # a choice of experts may turn on the last bit
            values = {**values, "num_experts_per_tok": values["num_local_experts"]}
            patch.setitem(TINY_CONFIGS, test_id, (model_type, values))
        if is_large:
            patch.setattr(attention, "_LARGE_BYTES", 1)
        model = make_checkpoint(test_id, folder / "checkpoint")
        _convert(folder / "checkpoint", folder / "m", type_)
    tokens = np.random.default_rng(0).integers(0, 256, CACHE_LENGTH).tolist()
    expected = _rounded_logits(model, tokens, type_)
    rounding = float(np.abs(expected - text_logits(model, tokens)).mean())
    return folder / "m", tokens, expected, rounding


def _convert(folder: Path, bundle: Path, type_: CacheType, target: Target = Target.CPU) -> None:
    options = ConvertOptions(
        quantize="fp32",
        prefill_lengths=LENGTHS,
        cache_length=CACHE_LENGTH,
        target=target,
        kv_cache=type_,
    )
    with open_folder(folder) as opened:
        ModelConverter(opened, "tiny", options).convert(bundle)


def test_what_is_seen(case: Case) -> None:
    """Chunks of every way to write: padded, long, beyond a ring's end; tokens taken back; and up to
    the last slot, where padding has no room.
    """
    bundle, tokens, expected, rounding = case
    runner = GraphRunner(bundle)
    differences = []

    def decode(start: int, steps: int) -> int:
        for at in range(start, start + steps):
            differences.append(np.abs(runner.decode(tokens[at], at) - expected[at]).mean())
        return start + steps

    def prefill(start: int, count: int) -> int:
        length = min(n for n in LENGTHS if n >= count)
        runner.prefill(length, tokens[start : start + count], start)
        return start + count

    position = 0
    for count in (3, 64, 40):
        position = decode(prefill(position, count), 4)
    position = prefill(position, 200)
    runner.prefill(256, [7] * (REWIND - 20), position)  # taken back
    position = decode(prefill(position, 250), 12)
    position = prefill(position, CACHE_LENGTH - position - 6)
    assert decode(position, 6) == CACHE_LENGTH
    assert np.mean(differences) * LEAST_SHARE < rounding


def test_not_for_gpus(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "llama")
    with pytest.raises(OptionError) as refusal:
        _convert(tmp_path / "llama", tmp_path / "m", CacheType.INT8, Target.GPU)
    assert str(refusal.value) == (
        "--kv-cache int8, a GPU's delegate is known to take caches in fp32 alone, "
        "convert it for the CPU: --target cpu"
    )


def test_memory_and_engine(case: Case) -> None:
    """A byte for each number and four for each row, or two bytes for each number."""
    bundle = read_bundle(case[0])
    decode = next(s for s in bundle.model.signatures if s.name == "decode")
    caches = [t for t in decode.inputs if t.name.startswith("kv_cache_")]
    scales = [t for t in caches if "scale" in t.name]
    numbers = sum(math.prod(t.shape) for t in caches if t not in scales)
    rows = sum(math.prod(t.shape) for t in scales)
    needs = {"int8": numbers + 4 * rows, "fp16": 2 * numbers}[bundle.system["KV cache"]]
    assert bundle.model.run_memory.kv_cache_bytes == needs
    assert bundle.metadata.min_runtime_version == "0.18.1"
