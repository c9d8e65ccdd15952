"""What a network needs when it runs: figures by hand, and the real engine's own memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle, summarise
from converter.litertlm.run_memory import RunMemory, beside_network
from converter.options import ConvertOptions
from converter.tflite.graph import DType, Graph, Model, Tensor, Weight
from converter.tflite.kv_cache import Target
from converter.tflite.writer import write
from tests.tiny_models import TINY_CONFIGS, make_checkpoint

ROOT = Path(__file__).parents[3]
LENGTHS = (8, 16)


def needs(model: Model) -> RunMemory:
    return summarise(memoryview(write(model).flatbuffer)).run_memory


def plan_of(folder: Path, **options: object) -> RunMemory:
    chosen = ConvertOptions(prefill_lengths=LENGTHS, cache_length=64, **options)  # type: ignore[arg-type]
    with open_checkpoint(folder) as checkpoint:
        plan = ModelConverter(checkpoint, "tiny", chosen).plan()
        plan.text()  # ends what runs beside it
    return summarise(memoryview(plan.model.flatbuffer)).run_memory


def test_scratch_is_what_is_alive_at_once() -> None:
    model = Model("test")
    graph = model.add_graph("decode")
    x = graph.add_input("tokens", (1, 100), DType.FLOAT32)  # not counted: the caller's
    a = graph.make_exp("a", x)  # 400 bytes, until it is added
    b = graph.make_neg("b", a)  # with a: 800
    c = graph.make_exp("c", b)  # with a and b: 1200, the most
    d = graph.make_add("d", a, c)  # b is dead: a, c and d
    graph.add_output("logits", graph.make_neg("out", d))  # not counted: the caller's
    assert needs(model) == RunMemory(0, 0, 1200, 1200)


def test_scratch_of_a_branch_is_that_of_the_larger_one() -> None:
    model = Model("test")
    graph = model.add_graph("decode")
    x = graph.add_input("tokens", (1, 100), DType.FLOAT32)

    def body(name: str, steps: int) -> Graph:
        inner = model.add_body(name)
        value: Tensor = inner.add_input("x", (1, 100), DType.FLOAT32)
        for step in range(steps):
            value = inner.make_exp(f"step_{step}", value)
        inner.add_output("y", inner.make_neg("y", value))
        return inner

    flag = graph.make_cast("flag", graph.constant("one", [1]), DType.BOOL)
    small, large = body("small", 1), body("large", 3)
    chosen = graph.make_if("if", flag, small, large, (x,))
    graph.add_output("logits", graph.make_neg("out", chosen))
    # Of a chain of three, two are alive; the branch's result and the flag lie outside.
    assert needs(model).scratch_bytes == 2 * 400 + 400 + 1


def test_every_expert_has_room_for_its_result() -> None:
    model = Model("test")
    graph = model.add_graph("decode")
    x = graph.add_input("tokens", (1, 100), DType.FLOAT32)
    flag = graph.make_cast("flag", graph.constant("one", [1]), DType.BOOL)

    def body(name: str) -> Graph:
        inner = model.add_body(name)
        value = inner.add_input("x", (1, 100), DType.FLOAT32)
        if name != "none":
            weight = inner.weight(Weight(name, (100, 100), DType.FLOAT32))
            value = inner.make_fully_connected("y", value, weight)
        inner.add_output("y", value)
        return inner

    otherwise, total = body("none"), x
    for name in ("first", "second"):
        total = graph.make_if(f"if_{name}", flag, body(name), otherwise, (total,))
    graph.add_output("logits", graph.make_neg("out", total))
    # The flag, what both branches hand on at once, and the results of two experts.
    assert needs(model).scratch_bytes == 1 + 2 * 400 + 2 * 400


@pytest.mark.parametrize("target", Target)
def test_the_cache_is_that_of_the_spec(tmp_path: Path, target: Target) -> None:
    make_checkpoint("llama", tmp_path / "llama")
    config = TINY_CONFIGS["llama"][1]
    slot = 2 * config["num_key_value_heads"] * config["head_dim"] * 4  # k and v, float32
    found = plan_of(tmp_path / "llama", target=target)
    assert found.kv_cache_bytes == config["num_hidden_layers"] * slot * 64
    assert found.total_bytes == found.weights_bytes + found.kv_cache_bytes + found.scratch_bytes


def test_weights_that_are_widened_are_held_as_float32(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "llama")
    config = TINY_CONFIGS["llama"][1]
    hidden, ffn = config["hidden_size"], config["intermediate_size"]
    kv = config["num_key_value_heads"] * config["head_dim"]
    beside_cache = (2 * hidden + 3 * ffn) * hidden  # q, o and the feed-forward of a layer
    layers = config["num_hidden_layers"] * (beside_cache + 2 * kv * hidden)
    head = config["vocab_size"] * hidden
    plain = plan_of(tmp_path / "llama").weights_bytes
    widened = plan_of(tmp_path / "llama", quantize="int8").weights_bytes
    packed = decode = head + layers
    prefill = layers - beside_cache  # its last layer stops when the cache is written
    copies = decode + len(LENGTHS) * prefill
    assert widened - plain == pytest.approx(4 * (packed + copies), rel=0.001)  # but for the graph


def test_weights_of_experts_that_are_widened_are_held_as_float32(tmp_path: Path) -> None:
    make_checkpoint("granitemoe", tmp_path / "moe")
    config = TINY_CONFIGS["granitemoe"][1]
    hidden, experts = config["hidden_size"], config["num_local_experts"]
    in_layer = experts * 3 * hidden * config["intermediate_size"]
    rest = plan_of(tmp_path / "moe", quantize="int8,ffn=dynamic_int8").weights_bytes
    widened = plan_of(tmp_path / "moe", quantize="int8").weights_bytes
    packed = decode = config["num_hidden_layers"] * in_layer
    copies = decode + len(LENGTHS) * (decode - in_layer)  # a prefill ends before the last
    assert widened - rest == pytest.approx(4 * (packed + copies), rel=0.01)


_INTERPRETER = 60e6  # bytes: no app on a phone has it
_HELD = """
import sys
from pathlib import Path
from runner import zero_pages
from runner.engine import Model
zero_pages.give_back = lambda: None  # as in an app, and as where the whole context is in use
with Model(Path(sys.argv[1]), threads=2) as model:
    for _ in model.completion(max_tokens=2).ask("Once upon a time"):
        pass
    status = Path("/proc/self/status").read_text()
held = dict(line.split(":", 1) for line in status.splitlines())
print(*(int(held[key].split()[0]) * 1024 for key in ("RssAnon", "VmHWM")))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_the_engine_needs_as_much_more_as_the_figures_say(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    said, measured = [], []
    for cache_length in (512, 8192):
        options = ConvertOptions(prefill_lengths=(8,), cache_length=cache_length)
        path = tmp_path / f"{cache_length}.litertlm"
        with open_checkpoint(smollm2_gguf) as checkpoint:
            ModelConverter(checkpoint, "smollm2", options).convert(path)
        said.append(read_bundle(path).model.run_memory.total_bytes)
        done = subprocess.run(
            [sys.executable, "-c", _HELD, path],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        anonymous, peak = map(int, done.stdout.split()[-2:])
        measured.append(anonymous)
        with_engine = said[-1] + beside_network(49152, is_sentencepiece=False)
        assert with_engine - 100e6 < peak < with_engine + _INTERPRETER
    more = said[1] - said[0]
    assert more > 300e6
    assert measured[1] - measured[0] == pytest.approx(more, rel=0.1)
