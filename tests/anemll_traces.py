"""Trace ANEMLL's own converters on tiny configs, and record the interface of what they make.

    python -m tests.anemll_traces CHECKOUT

writes `tests/converter/coreml/anemll_0_3_4.json`, once, from a checkout of ANEMLL 0.3.4; it needs
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

RECORD = Path(__file__).parent / "converter/coreml/anemll_0_3_4.json"
CONTEXT, BATCH = 256, 64
CONFIG = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "context_length": CONTEXT,
    "state_length": CONTEXT,
}


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    sys.modules.setdefault("pkg_resources", types.ModuleType("pkg_resources"))  # for a version
    record = {family: dict(traces) for family, traces in families()}
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def families() -> Iterator[tuple[str, Iterator[tuple[str, Any]]]]:
    from anemll.ane_converter.llama_converter import LlamaConverter
    from anemll.ane_converter.qwen2_5_converter import Qwen25Converter
    from anemll.ane_converter.qwen_converter import QwenConverter
    from anemll.models.llama_model import LlamaConfig, LlamaForCausalLM
    from anemll.models.qwen2_5_model import Qwen25Config, Qwen25ForCausalLM
    from anemll.models.qwen_model import QwenConfig, QwenForCausalLM

    def of_qwen(converter: type, model: type, config: type, **more: Any) -> Any:
        network = model(config(**CONFIG, **more), enable_coreml=True).eval()
        made = converter(network, context_length=CONTEXT, batch_size=BATCH, lut_bits=None)
        yield "embeddings", described(made.convert("1"))
        for i in range(2):
            yield f"infer {i + 1}", described(made.convert_part_2(network, i, 2))
            yield f"prefill {i + 1}", described(made.convert_part_2_prefill(network, i, 2))
        yield "head", described(made.convert("3"))

    def of_llama() -> Any:
        network = LlamaForCausalLM(LlamaConfig(**CONFIG), enable_coreml=True).eval()
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
    yield "qwen2", of_qwen(Qwen25Converter, Qwen25ForCausalLM, Qwen25Config)
    yield "qwen3", of_qwen(QwenConverter, QwenForCausalLM, QwenConfig)


def described(model: Any) -> Any:
    return interface(model.get_spec())["main"]


if __name__ == "__main__":
    main(*sys.argv[1:])
