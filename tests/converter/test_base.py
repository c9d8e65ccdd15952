"""The pipeline on tiny checkpoints: the same bytes, the right numbers, whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize
from safetensors.numpy import load_file, save_file

import converter.kernels
import converter.weights.planned_weight
from cli.obtain import open_checkpoint
from converter.base import ModelConverter, Plan
from converter.errors import LiteRTLMError, OptionError, SourceError, UnsupportedError
from converter.litertlm.inspection import read_bundle
from converter.options import PREFILL_LADDER, ChatTemplate, ConvertOptions, ladder_of
from converter.output.atomic_file import AtomicFile
from converter.registry import family_of
from converter.tflite.kv_cache import Target
from converter.torch.reference import ReferenceConverter
from converter.weights.quantization import SCHEMES
from converter.weights.row_format import Clip
from runner.interpreter import GraphRunner
from tests.published_configs import PUBLISHED
from tests.small_tokenizers import SMALL_BPE
from tests.stored_weights import stored_matrix
from tests.tiny_models import make_checkpoint

WEIGHTS = "model.safetensors"
# Blocks of 128 do not divide this small model's rows.
FITTING = [name for name in SCHEMES if name != "dynamic_int4_block128"]
SHORT: dict[str, Any] = {"prefill_lengths": (8,), "cache_length": 32}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of 64, four heads, two for keys and values, 320 tokens, float32, untied."""
    folder = tmp_path_factory.mktemp("llama") / "single"
    model = make_checkpoint("llama", folder)
    for name in ("sharded", "bf16", "f16"):
        shutil.copytree(folder, folder.parent / name, ignore=shutil.ignore_patterns(WEIGHTS))
    model.save_pretrained(folder.parent / "sharded", max_shard_size="60KB")
    assert len(list((folder.parent / "sharded").glob("*.safetensors"))) > 3
    import torch

    model.to(torch.bfloat16).save_pretrained(folder.parent / "bf16")
    rounded = {
        name: array.astype(np.float16) for name, array in load_file(folder / WEIGHTS).items()
    }
    save_file(rounded, folder.parent / "f16" / WEIGHTS)
    return folder


def convert(
    source: Path,
    output: Path,
    scheme: str = "fp32",
    progress: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> Plan:
    with open_checkpoint(source) as checkpoint:
        chosen = ConvertOptions(quantize=scheme, **{**SHORT, **options})
        return ModelConverter(checkpoint, "tiny", chosen).convert(output, progress)


def plan_of(source: Path, **options: Any) -> Plan:
    with open_checkpoint(source) as checkpoint:
        return ModelConverter(checkpoint, "tiny", ConvertOptions(**{**SHORT, **options})).plan()


def edited(
    source: Path, target: Path, tensors: dict[str, np.ndarray | None] | None = None, **config: Any
) -> Path:
    """A copy with other tensors (None: without it) and other values in config.json."""
    shutil.copytree(source, target)
    stored = {**load_file(source / WEIGHTS), **(tensors or {})}
    kept = {name: np.ascontiguousarray(a) for name, a in stored.items() if a is not None}
    save_file(kept, target / WEIGHTS)
    values = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**values, **config}))
    return target


def refusal(source: Path, output: Path, **options: Any) -> LiteRTLMError:
    """The error of a conversion, which leaves nothing behind."""
    with pytest.raises(LiteRTLMError) as caught:
        convert(source, output, **options)
    assert not output.parent.exists()
    return caught.value


def section(bundle: Path, kind: str) -> bytes:
    found = read_bundle(bundle).section(kind)
    assert found is not None
    return bundle.read_bytes()[found.offset : found.offset + found.nbytes]


def stored(bundle: Path, plan: Plan, dtype: type) -> dict[str, np.ndarray]:
    """Every matrix by its name in the checkpoint, as it lies in the file."""
    content = bundle.read_bytes()
    return {
        weight.source.tensor: np.frombuffer(
            content, dtype, count=int(np.prod(weight.shape)), offset=weight.offset
        ).reshape(weight.shape)
        for weight in plan.weights
        if len(weight.shape) > 1
    }


# The same bytes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ggufs(llama: Path) -> Path:
    """`llama` as GGUF files: float32, float16 and Q8_0."""
    for name, form in (("f32", "F32"), ("f16", "F16"), ("q8_0", "Q8_0")):
        write_llama_gguf(llama, llama.parent / f"{name}.gguf", GGMLQuantizationType[form])
    return llama.parent


@pytest.mark.parametrize("scheme", FITTING)
@pytest.mark.parametrize(
    "name", ["single", "sharded", "bf16", "f16", "f32.gguf", "f16.gguf", "q8_0.gguf"]
)
def test_the_same_bytes_whatever_the_threads_and_blocks(
    ggufs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, scheme: str
) -> None:
    convert(ggufs / name, tmp_path / "first", scheme, threads=1)
    expected = (tmp_path / "first").read_bytes()
    for threads in (1, 2, 5):
        for block in (1 << 18, 700):
            monkeypatch.setattr(converter.weights.planned_weight, "BLOCK_VALUES", block)
            convert(ggufs / name, tmp_path / "again", scheme, threads=threads)
            assert (tmp_path / "again").read_bytes() == expected


@pytest.mark.parametrize("scheme", FITTING)
def test_the_same_bytes_with_and_without_a_compiler(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name in ("single", "bf16"):
        convert(llama.parent / name, tmp_path / "compiled", scheme)
        with monkeypatch.context() as patch:
            patch.setattr(converter.kernels, "_compiled", lambda: None)
            convert(llama.parent / name, tmp_path / "numpy", scheme)
        assert (tmp_path / "compiled").read_bytes() == (tmp_path / "numpy").read_bytes()


@pytest.mark.parametrize("scheme", FITTING)
def test_shards_do_not_show(llama: Path, tmp_path: Path, scheme: str) -> None:
    for name in ("single", "sharded"):
        convert(llama.parent / name, tmp_path / name, scheme)
    assert (tmp_path / "single").read_bytes() == (tmp_path / "sharded").read_bytes()


def test_more_threads_than_blocks(llama: Path, tmp_path: Path) -> None:
    plan = convert(llama, tmp_path / "one", threads=1)
    convert(llama, tmp_path / "many", threads=3 * len(plan.weights))
    assert (tmp_path / "one").read_bytes() == (tmp_path / "many").read_bytes()


# The right numbers -------------------------------------------------------------------------------


def test_fp32_weights_are_the_checkpoints_own_bits(llama: Path, tmp_path: Path) -> None:
    plan = convert(llama, tmp_path / "m")
    source = load_file(llama / WEIGHTS)
    content = (tmp_path / "m").read_bytes()
    assert {weight.source.tensor for weight in plan.weights} == set(source)
    for weight in plan.weights:  # the vectors, too
        tensor = source[weight.source.tensor]
        assert content[weight.offset : weight.offset + tensor.nbytes] == tensor.tobytes()


@pytest.mark.parametrize("source", ["bf16", "f16"])
def test_16_bit_sources_are_widened_exactly(llama: Path, tmp_path: Path, source: str) -> None:
    import torch
    from safetensors.torch import load_file as load_torch

    plan = convert(llama.parent / source, tmp_path / "m")
    tensors = load_torch(llama.parent / source / WEIGHTS)
    assert {t.dtype for t in tensors.values()} == {
        {"bf16": torch.bfloat16, "f16": torch.float16}[source]
    }
    for name, array in stored(tmp_path / "m", plan, np.float32).items():
        np.testing.assert_array_equal(array, tensors[name].float().numpy())


def test_fp16_weights_are_rounded_once(llama: Path, tmp_path: Path) -> None:
    plan = convert(llama, tmp_path / "m", "fp16")
    source = load_file(llama / WEIGHTS)
    for name, array in stored(tmp_path / "m", plan, np.float16).items():
        np.testing.assert_array_equal(array, source[name].astype(np.float16))


def test_int8_rows_use_their_whole_range(llama: Path, tmp_path: Path) -> None:
    plan = convert(llama, tmp_path / "m", "dynamic_int8", clip=Clip.MAX)
    source = load_file(llama / WEIGHTS)
    for name, array in stored(tmp_path / "m", plan, np.int8).items():
        peaks = np.abs(source[name]).max(axis=1, keepdims=True)
        assert (np.abs(array).max(axis=1) == 127).all()
        assert np.abs(array * (peaks / 127) - source[name]).max() <= peaks.max() / 254 * 1.001


# Measured over the 24 steps below: fp16 0.0075 and 0.999997, dynamic_int8 0.23 and 0.9975.
@pytest.mark.parametrize(
    ("scheme", "worst", "correlation"), [("fp16", 0.02, 0.9999), ("dynamic_int8", 0.5, 0.99)]
)
def test_logits_are_close_to_those_of_fp32(
    llama: Path, tmp_path: Path, scheme: str, worst: float, correlation: float
) -> None:
    tokens = np.random.default_rng(0).integers(0, 320, 32).tolist()
    logits = {}
    for name in ("fp32", scheme):
        convert(llama, tmp_path / name, name)
        runner = GraphRunner(tmp_path / name)
        runner.prefill(8, tokens[:8])
        logits[name] = np.array([runner.decode(tokens[i], i) for i in range(8, 32)])
    difference = np.abs(logits[scheme] - logits["fp32"]).max()
    lowest = min(
        np.corrcoef(a, b)[0, 1] for a, b in zip(logits[scheme], logits["fp32"], strict=True)
    )
    print(f"{scheme}: max |difference| {difference:.2g}, lowest correlation {lowest:.6f}")
    assert 0.5 < logits["fp32"].std() < 2
    assert 0 < difference < worst
    assert lowest > correlation


# GGUF: the same network --------------------------------------------------------------------------

GGUF_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    plain = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    if name in plain:
        return plain[name]
    _, _, layer, rest = name.split(".", 3)
    module, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[module]}.{kind}"


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k: rows of a head from halves to pairs."""
    grouped = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return np.ascontiguousarray(grouped.swapaxes(1, 2).reshape(weights.shape))


def write_llama_gguf(
    folder: Path, path: Path, stored: GGMLQuantizationType = GGMLQuantizationType.F32
) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_context_length(4096)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(SMALL_BPE["ggml.tokens"])
    writer.add_token_types(SMALL_BPE["ggml.token_type"])
    writer.add_token_merges(SMALL_BPE["ggml.merges"])
    writer.add_bos_token_id(258)
    writer.add_eos_token_id(259)
    for name, tensor in load_file(folder / WEIGHTS).items():
        if "q_proj" in name or "k_proj" in name:
            tensor = permute(tensor, 4 if "q_proj" in name else 2)
        form = stored if tensor.ndim > 1 else GGMLQuantizationType.F32
        writer.add_tensor(gguf_name(name), quantize(tensor, form), raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("scheme", FITTING)
@pytest.mark.parametrize("block", [1 << 18, 700], ids=["whole", "blocks"])
def test_a_gguf_gives_the_same_model(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, block: int
) -> None:
    monkeypatch.setattr(converter.weights.planned_weight, "BLOCK_VALUES", block)
    gguf = write_llama_gguf(llama, tmp_path / "m.gguf")
    convert(llama, tmp_path / "safetensors", scheme)
    convert(gguf, tmp_path / "gguf", scheme)
    ours, theirs = (section(tmp_path / name, "TFLiteModel") for name in ("gguf", "safetensors"))
    assert ours == theirs


def test_a_gguf_with_biases_gives_the_same_model(llama: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    biases: dict[str, np.ndarray | None] = {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": rng.standard_normal(size).astype("f4")
        for layer in range(2)
        for name, size in (("q", 64), ("k", 32), ("v", 32), ("o", 64))
    }
    source = edited(llama, tmp_path / "biased", biases, attention_bias=True)
    convert(source, tmp_path / "safetensors")
    plan = convert(write_llama_gguf(source, tmp_path / "m.gguf"), tmp_path / "gguf")
    assert "layers.0.attention.q.bias" in {weight.path for weight in plan.weights}
    assert section(tmp_path / "gguf", "TFLiteModel") == section(
        tmp_path / "safetensors", "TFLiteModel"
    )


def test_an_f16_gguf_gives_the_model_of_f16_safetensors(llama: Path, tmp_path: Path) -> None:
    vectors: dict[str, np.ndarray | None] = {
        name: array for name, array in load_file(llama / WEIGHTS).items() if array.ndim == 1
    }
    source = edited(llama.parent / "f16", tmp_path / "f16", vectors)  # llama.cpp keeps them F32
    convert(source, tmp_path / "safetensors")
    convert(
        write_llama_gguf(llama, tmp_path / "m.gguf", GGMLQuantizationType.F16), tmp_path / "gguf"
    )
    assert section(tmp_path / "gguf", "TFLiteModel") == section(
        tmp_path / "safetensors", "TFLiteModel"
    )


def test_a_q4_0_gguf_goes_in_without_a_second_rounding(llama: Path, tmp_path: Path) -> None:
    """Bit for bit, where its scales are positive: the runtime takes no others."""
    rng = np.random.default_rng(0)
    on_grid: dict[str, np.ndarray | None] = {}
    for name, tensor in load_file(llama / WEIGHTS).items():
        if tensor.ndim > 1:
            q = rng.integers(-7, 8, (tensor.size // 32, 32)).astype(np.float32)
            q[:, 5] = -8
            scales = rng.uniform(1e-3, 0.1, (len(q), 1)).astype(np.float16)
            on_grid[name] = (q * scales.astype(np.float32)).reshape(tensor.shape)
    source = edited(llama, tmp_path / "grid", on_grid)
    gguf = write_llama_gguf(source, tmp_path / "m.gguf", GGMLQuantizationType.Q4_0)
    plan = convert(gguf, tmp_path / "m", "dynamic_int4")
    content = (tmp_path / "m").read_bytes()
    carried = [weight for weight in plan.weights if weight.format.takes_importance]
    assert len(carried) == 2 * 7 + 1
    names = {gguf_name(name): name for name in on_grid}
    for weight in carried:
        expected = on_grid[names[weight.source.tensor]]
        np.testing.assert_array_equal(stored_matrix(content, plan, weight), expected)
    system = read_bundle(tmp_path / "m").system
    all_met = "Q4_0 -> int4, all blocks as they were"
    assert system["attention weights"] == system["ffn weights"] == all_met
    assert system["embedding weights"] == "Q4_0 -> int8, rounded again"


@pytest.mark.parametrize(
    ("form", "scheme", "said"),
    [
        ("Q8_0", "fp32", "Q8_0 -> float32, as they were"),
        ("Q8_0", "dynamic_int8", "Q8_0 -> int8, rounded again"),
        ("F16", "fp16", "F16 -> float16, as they were"),
        ("F16", "dynamic_int8", "F16 -> int8"),
    ],
)
def test_the_file_says_what_became_of_the_weights(
    llama: Path, tmp_path: Path, form: str, scheme: str, said: str
) -> None:
    gguf = write_llama_gguf(llama, tmp_path / "m.gguf", GGMLQuantizationType[form])
    convert(gguf, tmp_path / "m", scheme)
    assert read_bundle(tmp_path / "m").system["ffn weights"] == said


def test_half_of_the_usual_q4_0_blocks_are_rounded_again(llama: Path, tmp_path: Path) -> None:
    """Those with a negative scale, which reach from -7 to 8."""
    gguf = write_llama_gguf(llama, tmp_path / "m.gguf", GGMLQuantizationType.Q4_0)
    convert(gguf, tmp_path / "m", "dynamic_int4")
    said = read_bundle(tmp_path / "m").system["ffn weights"]
    assert 40 < float(said.removeprefix("Q4_0 -> int4, ").partition("%")[0]) < 60


def test_blocks_that_do_not_divide_a_row_are_refused_by_name(llama: Path, tmp_path: Path) -> None:
    error = refusal(llama, tmp_path / "out" / "m", scheme="dynamic_int4_block128")
    assert "layers.0.attention.q, has 64 columns, which blocks of 128 do not divide" in str(error)


# The plan ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", FITTING)
def test_the_plan_is_the_file(llama: Path, tmp_path: Path, scheme: str) -> None:
    written: list[int] = []
    plan = convert(llama, tmp_path / "m", scheme, written.append)
    bundle = read_bundle(tmp_path / "m")
    assert (tmp_path / "m").stat().st_size == plan.bundle.nbytes
    assert tuple(s.offset for s in bundle.sections) == plan.bundle.offsets
    assert [s.nbytes for s in bundle.sections] == [s.nbytes for s, _ in plan.sections]
    model = bundle.section("TFLiteModel")
    assert model is not None
    assert model.nbytes == plan.model.nbytes
    end = model.offset + len(plan.model.flatbuffer)
    for weight in sorted(plan.weights, key=lambda weight: weight.offset):
        assert weight.offset >= end  # no two overlap
        assert (weight.offset - model.offset) % 16 == 0
        end = weight.offset + weight.nbytes - weight.scales_nbytes
    assert end <= model.offset + model.nbytes
    assert sum(written) == sum(weight.nbytes for weight in plan.weights)


def test_a_plan_reads_no_weights(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(llama) as checkpoint:
        monkeypatch.setattr(checkpoint, "read_rows", None)
        plan = ModelConverter(checkpoint, "tiny", ConvertOptions()).plan()
    assert len(plan.weights) == 21
    assert (plan.quantization.name, plan.cache_length) == ("dynamic_int8_a16", 1280)
    assert plan.prefill_lengths == (8, 16, 32, 64, 128, 256, 512, 1024)


def test_a_tied_embedding_is_stored_once(llama: Path, tmp_path: Path) -> None:
    tied = edited(llama, tmp_path / "tied", {"lm_head.weight": None}, tie_word_embeddings=True)
    untied_plan = convert(llama, tmp_path / "untied.litertlm")
    tied_plan = convert(tied, tmp_path / "tied.litertlm")
    assert {w.path for w in untied_plan.weights} - {w.path for w in tied_plan.weights} == {"head"}
    embedding = 320 * 64 * 4
    saved = untied_plan.model.nbytes - tied_plan.model.nbytes
    assert embedding <= saved < embedding + 1000
    table = load_file(llama / WEIGHTS)["model.embed_tokens.weight"].tobytes()
    assert (tmp_path / "tied.litertlm").read_bytes().count(table) == 1


def test_a_head_that_is_the_tied_embedding_is_left_out(llama: Path, tmp_path: Path) -> None:
    without = edited(llama, tmp_path / "a", {"lm_head.weight": None}, tie_word_embeddings=True)
    table = load_file(llama / WEIGHTS)["model.embed_tokens.weight"]
    with_head = edited(llama, tmp_path / "b", {"lm_head.weight": table}, tie_word_embeddings=True)
    convert(without, tmp_path / "a.litertlm")
    convert(with_head, tmp_path / "b.litertlm")
    assert (tmp_path / "a.litertlm").read_bytes() == (tmp_path / "b.litertlm").read_bytes()


# Lengths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_length", [8, 100, 4096])
def test_max_num_tokens_is_the_length_of_the_cache(
    llama: Path, tmp_path: Path, cache_length: int
) -> None:
    plan = convert(llama, tmp_path / "m", "dynamic_int8", cache_length=cache_length)
    bundle = read_bundle(tmp_path / "m")
    assert bundle.metadata.max_num_tokens == plan.cache_length == cache_length
    for signature in bundle.model.signatures:
        shapes = {tensor.name: tensor.shape for tensor in signature.inputs}
        assert shapes["kv_cache_k_0"] == [1, 2, cache_length, 16]
        assert shapes["kv_cache_v_1"] == [1, 2, cache_length, 16]


def test_a_short_model_has_a_short_cache(llama: Path, tmp_path: Path) -> None:
    source = edited(llama, tmp_path / "short", max_position_embeddings=100)
    plan = plan_of(source, cache_length=None, prefill_lengths=(8, 64, 100, 101, 1024))
    assert plan.cache_length == plan.metadata.message.max_num_tokens == 100
    assert plan.prefill_lengths == (8, 64, 100)


def test_the_cache_decides_between_the_frequencies_of_longrope(llama: Path, tmp_path: Path) -> None:
    short, long = [1.0] * 8, [2.0] * 8
    settings = {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "original_max_position_embeddings": 200,
    }
    source = edited(llama, tmp_path / "long", rope_parameters=settings)
    for length, factors in ((200, short), (201, long), (None, long)):
        plan = plan_of(source, cache_length=length, prefill_lengths=(8,))
        rope = plan.spec.layers[0].mixer.rope
        assert rope is not None
        assert rope.factors == tuple(factors)


def test_ignored_keys_of_a_config_stand_in_the_file(llama: Path, tmp_path: Path) -> None:
    source = edited(llama, tmp_path / "odd", residual_multiplier=0.2, sliding_window=8)
    convert(source, tmp_path / "m", "fp32", **SHORT)
    system = read_bundle(tmp_path / "m").system
    assert system["ignored config keys"] == "residual_multiplier, sliding_window"
    convert(llama, tmp_path / "plain", "fp32", **SHORT)
    assert "ignored config keys" not in read_bundle(tmp_path / "plain").system


def test_weights_in_float64_are_rounded_once(llama: Path, tmp_path: Path) -> None:
    source = tmp_path / "f64"
    shutil.copytree(llama, source)
    wide = {name: array.astype(np.float64) for name, array in load_file(llama / WEIGHTS).items()}
    save_file(wide, source / WEIGHTS)
    convert(source, tmp_path / "wide", "fp32", **SHORT)
    convert(llama, tmp_path / "plain", "fp32", **SHORT)
    step = [GraphRunner(tmp_path / name).decode(5, 0) for name in ("wide", "plain")]
    assert np.array_equal(*step)
    assert "F64 -> float32" in read_bundle(tmp_path / "wide").system["attention weights"]


def test_a_cache_beyond_what_the_model_was_made_for(llama: Path, tmp_path: Path) -> None:
    error = refusal(llama, tmp_path / "out" / "m", cache_length=4097)
    assert isinstance(error, OptionError)
    assert str(error) == (
        "--kv-cache-max-len 4097, tiny was made for at most 4096 positions, choose 4096 or less"
    )


@pytest.mark.parametrize("length", [11, 13, 127, 131, 257, 1021])
def test_prime_prefill_lengths_are_refused(llama: Path, tmp_path: Path, length: int) -> None:
    """tests/runner/test_sizes.py asks the engine."""
    sizes = {"prefill_lengths": (8, length), "cache_length": 1280}
    error = refusal(llama, tmp_path / "out" / "m", **sizes)
    assert isinstance(error, OptionError)
    assert str(error) == (
        f"--prefill-seq-len 8,{length}, the engine takes a prime number above 10, as {length} is, "
        f"for a placeholder, choose {length - 1} in its place"
    )


def test_prime_caches_of_a_gpu_are_refused_or_rounded(llama: Path, tmp_path: Path) -> None:
    error = refusal(llama, tmp_path / "out" / "m", target=Target.GPU, cache_length=101)
    assert isinstance(error, OptionError)
    assert str(error) == (
        "--kv-cache-max-len 101, on a GPU the engine takes a prime number for a placeholder, and "
        "shortens it, choose 100"
    )
    source = edited(llama, tmp_path / "short", max_position_embeddings=101)
    assert plan_of(source, target=Target.GPU, cache_length=None).cache_length == 100
    assert plan_of(source, target=Target.CPU, cache_length=None).cache_length == 101
    assert plan_of(source, target=Target.CPU, cache_length=97).cache_length == 97


def test_prefill_lengths_beyond_the_cache_are_dropped(llama: Path, tmp_path: Path) -> None:
    convert(llama, tmp_path / "m", cache_length=64, prefill_lengths=(8, 64, 65, 1024))
    names = [signature.name for signature in read_bundle(tmp_path / "m").model.signatures]
    assert names == ["prefill_8", "prefill_64", "decode"]


@pytest.mark.parametrize(
    ("model", "lengths"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", PREFILL_LADDER),
        ("ibm-granite/granite-3.1-1b-a400m-instruct", (8, 128)),
        ("LiquidAI/LFM2-8B-A1B", (8, 64)),
        ("Qwen/Qwen3-30B-A3B", (8,)),
    ],
)
def test_experts_have_as_many_prefill_lengths_as_memory_has_room_for(
    model: str, lengths: tuple[int, ...]
) -> None:
    assert ladder_of(family_of(PUBLISHED[model][0]).spec()) == lengths


def test_experts_are_not_for_gpus(tmp_path: Path) -> None:
    make_checkpoint("granitemoe", tmp_path / "moe")
    error = refusal(tmp_path / "moe", tmp_path / "out" / "m", target=Target.GPU)
    assert isinstance(error, UnsupportedError)
    assert "its experts stand behind branches, which a GPU does not take" in str(error)
    options = ConvertOptions("fp32", target=Target.GPU)
    with open_checkpoint(tmp_path / "moe") as checkpoint, pytest.raises(UnsupportedError) as found:
        ReferenceConverter(checkpoint, "moe", options).plan()
    assert "which a GPU does not take, leave --engine torch" in str(found.value)


@pytest.mark.parametrize("model", ["lfm2", "qwen3_5_text", "falcon_h1-norm-tied"])
def test_no_drafts_where_none_can_be_taken_back(model: str, tmp_path: Path) -> None:
    """Short convolutions, delta nets, Mamba layers."""
    make_checkpoint(model, tmp_path / "model")
    error = refusal(tmp_path / "model", tmp_path / "out" / "m", drafts=3)
    assert isinstance(error, UnsupportedError)
    assert "its layers keep a state that no wrong draft can be taken out of again" in str(error)


def test_more_branches_than_the_runtime_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its verifier has a limit, which 128 experts in 48 layers meet with two lengths."""
    make_checkpoint("granitemoe", tmp_path / "moe")
    options = {"prefill_lengths": (8, 64), "cache_length": 64}
    tables = plan_of(tmp_path / "moe", quantize="fp32", **options).model.tables
    monkeypatch.setattr("converter.base.MOST_TABLES", tables - 1)
    error = refusal(tmp_path / "moe", tmp_path / "out" / "m", **options)
    assert isinstance(error, OptionError)
    assert str(error) == (
        f"--prefill-seq-len 8,64, the graph has {tables} tables, and the runtime loads at most "
        f"{tables - 1}, choose fewer lengths, or shorter ones"
    )


def test_all_prefill_lengths_beyond_the_cache(llama: Path, tmp_path: Path) -> None:
    error = refusal(llama, tmp_path / "out" / "m", cache_length=16, prefill_lengths=(32, 64))
    assert isinstance(error, OptionError)
    assert str(error) == (
        "--prefill-seq-len 32,64, every length is beyond the KV cache of 16, "
        "choose a shorter one, or a larger --kv-cache-max-len"
    )


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", FITTING)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
def test_values_that_are_no_numbers(
    llama: Path, tmp_path: Path, scheme: str, value: float, name: str
) -> None:
    tensor = load_file(llama / WEIGHTS)[name]
    tensor[-1, ...] = value
    source = edited(llama, tmp_path / "bad", {name: tensor})
    error = refusal(source, tmp_path / "out" / "m", scheme=scheme)
    assert isinstance(error, UnsupportedError)
    rows = "0 to 63" if tensor.ndim == 2 else "0 to 0"
    wider = ", or try --quantize fp32" if scheme == "fp16" and tensor.ndim == 2 else ""
    assert str(error) == (
        f"tiny: {name}, holds NaN or infinite values (rows {rows}), "
        f"the checkpoint is damaged: fetch or make it again{wider}"
    )


def test_beyond_the_range_of_float16(llama: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = load_file(llama / WEIGHTS)[name]
    tensor[3, 5] = -70000
    source = edited(llama, tmp_path / "wide", {name: tensor})
    error = refusal(source, tmp_path / "out" / "m", scheme="fp16")
    assert error.why == "holds 7e+04, beyond float16's 65504 (rows 0 to 95)"
    assert error.fix.endswith(", or try --quantize fp32")
    plan = convert(source, tmp_path / "m", "fp32")
    np.testing.assert_array_equal(stored(tmp_path / "m", plan, np.float32)[name], tensor)


def test_wrong_shapes(llama: Path, tmp_path: Path) -> None:
    first, second = "model.layers.0.mlp.down_proj.weight", "model.norm.weight"
    tensors = load_file(llama / WEIGHTS)
    source = edited(
        llama, tmp_path / "bad", {first: tensors[first].T, second: tensors[second][None]}
    )
    error = refusal(source, tmp_path / "out" / "m")
    assert isinstance(error, SourceError)
    assert str(error) == (
        f"tiny, 2 tensors have the wrong shape: {first} is [96, 64], config says [64, 96]; "
        f"{second} is [1, 64], config says [64], check that config.json belongs to these weights"
    )


def test_missing_tensors_are_all_named(llama: Path, tmp_path: Path) -> None:
    names = ["embed_tokens.weight", "layers.1.self_attn.q_proj.weight", "norm.weight"]
    source = edited(llama, tmp_path / "bad", {f"model.{name}": None for name in names})
    error = refusal(source, tmp_path / "out" / "m")
    assert isinstance(error, SourceError)
    assert error.why == f"lacks 3 tensors: {', '.join(names)}"


def test_tensors_too_many_are_all_named(llama: Path, tmp_path: Path) -> None:
    extra = {f"model.layers.0.adapter.{i}": np.zeros(1, np.float32) for i in range(3)}
    error = refusal(edited(llama, tmp_path / "bad", {**extra}), tmp_path / "out" / "m")
    assert isinstance(error, SourceError)
    assert error.why == (
        f"holds 3 tensors that this network does not have: {', '.join(sorted(extra))}"
    )


def test_a_tokenizer_larger_than_the_embedding(llama: Path, tmp_path: Path) -> None:
    source = edited(llama, tmp_path / "bad")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    bytes_only = tokenizer["model"]["vocab"]
    # Special tokens come last, and those beyond the embedding are left out.
    tokenizer["model"]["vocab"] = bytes_only | {f"word{i}": i for i in range(256, 321)}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    error = refusal(source, tmp_path / "out" / "m")
    assert str(error).startswith(f"{source}, eos_token '</s>' is no")  # it is one of those
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "a"}))
    error = refusal(source, tmp_path / "out" / "m")
    assert isinstance(error, SourceError)
    assert str(error) == (
        "tiny: tokenizer, has 321 tokens, the embedding only 320 rows, "
        "use the tokenizer that belongs to this checkpoint"
    )
    tokenizer["model"]["vocab"] = bytes_only | {f"word{i}": i for i in range(256, 318)}
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    convert(source, tmp_path / "m")
    held = section(tmp_path / "m", "HF_Tokenizer_Zlib")
    assert len(json.loads(zlib.decompress(held[8:]))["model"]["vocab"]) == 318


# Whole or not at all -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("after", [1, 5])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing(
    llama: Path, tmp_path: Path, threads: int, after: int, error: type[BaseException]
) -> None:
    calls: list[int] = []

    def interrupt(nbytes: int) -> None:
        calls.append(nbytes)
        if len(calls) == after:
            assert list((tmp_path / "out").iterdir())  # the temporary file
            raise error

    before = threading.active_count()
    with pytest.raises(error):
        convert(llama, tmp_path / "out" / "m", progress=interrupt, threads=threads)
    assert len(calls) < after + threads  # the others stop, too
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_what_was_there(llama: Path, tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "m").write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        convert(llama, tmp_path / "m", progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m").read_bytes() == b"old"


def test_a_checkpoint_that_changes_while_it_is_read(llama: Path, tmp_path: Path) -> None:
    source = edited(llama, tmp_path / "source")

    def touch(_: int) -> None:
        os.utime(source / WEIGHTS, ns=(0, 0))

    error = refusal(source, tmp_path / "out" / "m", progress=touch, threads=1)
    assert isinstance(error, SourceError)
    assert error.why == "it changed while it was read"


def test_a_checkpoint_that_shrinks_while_it_is_read(llama: Path, tmp_path: Path) -> None:
    source = edited(llama, tmp_path / "source")

    def cut(_: int) -> None:
        os.truncate(source / WEIGHTS, 5000)

    error = refusal(source, tmp_path / "out" / "m", progress=cut, threads=1)
    assert isinstance(error, SourceError)
    assert error.what == str(source / WEIGHTS)
    assert error.why.startswith(("the file ended early: ", "it changed while it was read"))


# A fault of the template ------------------------------------------------------------------------

BAD_OPTIONS = ConvertOptions(
    **SHORT,
    quantize="fp32",
    threads=1,
    chat_template=ChatTemplate(
        "{% for m in messages %}{{ m.content.find('a') }}{{ m.content }}{% endfor %}"
    ),
)


def test_a_bad_template_is_refused_before_the_weights(llama: Path, tmp_path: Path) -> None:
    with open_checkpoint(llama) as checkpoint:
        converter = ModelConverter(checkpoint, "tiny", BAD_OPTIONS)
        plan = converter.plan()
        assert plan.description.is_done(within=60)
        written: list[int] = []
        with pytest.raises(UnsupportedError, match="has no method named find"):
            converter.write(plan, tmp_path / "out" / "tiny.litertlm", written.append)
    assert not written
    assert not list(tmp_path.iterdir())


def test_a_bad_template_ends_the_stream_where_it_shows(llama: Path, tmp_path: Path) -> None:
    """The proof of a large vocabulary may take longer than a conversion waits for it."""
    with open_checkpoint(llama) as checkpoint:
        converter = ModelConverter(checkpoint, "tiny", BAD_OPTIONS)
        plan = converter.plan()
        written: list[int] = []

        def progress(nbytes: int) -> None:
            written.append(nbytes)
            assert plan.description.is_done(within=60)

        with (
            pytest.raises(UnsupportedError, match="has no method named find"),
            AtomicFile(tmp_path / "tiny.litertlm") as file,
        ):
            converter.stream(plan, file, progress)
    assert len(written) == 1 < len(plan.weights)
    assert not list(tmp_path.iterdir())
