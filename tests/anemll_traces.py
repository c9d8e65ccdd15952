"""Trace ANEMLL's own converters on tiny configs, and record the interface of what they make.

    python -m tests.anemll_traces CHECKOUT

writes `tests/converter/coreml/anemll_0_3_4.json`, as it was made from commit 6ecb10d. It needs
torch and coremltools, and no Mac.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.coreml_checks import interface
from tests.tiny_models import TINY_CONFIGS

RECORD = Path(__file__).parent / "converter/coreml/anemll_0_3_4.json"
CONTEXT, BATCH = 256, 64
Traces = Iterator[tuple[str, Any]]


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))  # for a version
    take_arrays_of_one_value()
    lines = [
        f'"{family} {part}": {json.dumps(found)}'
        for family, traces in families()
        for part, found in traces
    ]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def of_config(family: str) -> dict[str, Any]:
    lengths = {"context_length": CONTEXT, "state_length": CONTEXT}
    return {**TINY_CONFIGS[family][1], **lengths}


def take_arrays_of_one_value() -> None:
    """coremltools makes a number of an array of one, which numpy 2.4 has no longer done for it."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch import ops

    cast = ops._cast

    def cast_one(context: Any, node: Any, kind: type, name: str) -> None:
        (x,) = ops._get_inputs(context, node, expected=1)
        if x.can_be_folded_to_const() and getattr(x.val, "size", 0) == 1:
            context.add(Builder.const(val=kind(x.val.item()), name=node.name), node.name)
        else:
            cast(context, node, kind, name)

    ops._cast = cast_one


def families() -> Iterator[tuple[str, Traces]]:
    """Each with its parts: two chunks of a layer."""
    from anemll.ane_converter.llama_converter import LlamaConverter
    from anemll.ane_converter.qwen2_5_converter import Qwen25Converter
    from anemll.ane_converter.qwen_converter import QwenConverter
    from anemll.models.llama_model import LlamaConfig, LlamaForCausalLM
    from anemll.models.qwen2_5_model import Qwen25Config, Qwen25ForCausalLM
    from anemll.models.qwen_model import QwenConfig, QwenForCausalLM

    def of_qwen(family: str, converter: Any, model: Any, config: Any) -> Traces:
        network = (
            model(config(**of_config(family)), enable_coreml=True).eval().requires_grad_(False)
        )
        made = converter(network, context_length=CONTEXT, batch_size=BATCH, lut_bits=None)
        yield "embeddings", described(made.convert("1"))
        for i in range(2):
            yield f"infer {i + 1}", described(made.convert_part_2(network, i, 2))
            yield f"prefill {i + 1}", described(made.convert_part_2_prefill(network, i, 2))
        yield "head", described(made.convert("3"))

    def of_llama() -> Traces:
        network = (
            LlamaForCausalLM(LlamaConfig(**of_config("llama")), enable_coreml=True)
            .eval()
            .requires_grad_(False)
        )
        made = LlamaConverter(
            network,
            context_length=CONTEXT,
            state_length=CONTEXT,
            batch_size=BATCH,
            lut_bits=None,
            num_chunks=2,
        )
        made.preprocess()
        yield "embeddings", described(made.convert_embeddings(network))
        for i in range(2):
            yield f"infer {i + 1}", described(made.convert_FFN(network, i))
            yield f"prefill {i + 1}", described(made.convert_prefill(network, i))
        yield "head", described(made.convert_lm_head(network))

    yield "llama", of_llama()
    yield "qwen2", of_qwen("qwen2", Qwen25Converter, Qwen25ForCausalLM, Qwen25Config)
    yield "qwen3", of_qwen("qwen3", QwenConverter, QwenForCausalLM, QwenConfig)


def described(model: Any) -> Any:
    return interface(model.get_spec())["main"]


if __name__ == "__main__":
    main(*sys.argv[1:])
