"""GPTQ and AWQ by llm-compressor, in an environment of its own: FOLDER TOKENS METHOD OUTPUT.

TOKENS is a JSON file with lists of tokens, which calibrate. Matrices of layers become four bits in
blocks of 32, symmetric, as ours do; the embedding and the head stay as they are.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.awq import AWQModifier
from llmcompressor.modifiers.quantization import GPTQModifier
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

_METHODS = {"GPTQ": GPTQModifier, "AWQ": AWQModifier}
_BLOCK = 32


if not torch.accelerator.is_available():  # AWQ pins memory for one, whether there is one or not
    torch.Tensor.pin_memory = lambda tensor: tensor


def main(folder: str, tokens: str, method: str, output: str) -> None:
    chunks = json.loads(Path(tokens).read_text("utf-8"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weights = QuantizationArgs(num_bits=4, group_size=_BLOCK, strategy="group", symmetric=True)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    recipe = _METHODS[method](config_groups={"group_0": scheme}, ignore=["lm_head"])
    rows = [{"input_ids": chunk, "attention_mask": [1] * len(chunk)} for chunk in chunks]
    oneshot(
        model=model,
        dataset=Dataset.from_list(rows),
        recipe=recipe,
        max_seq_length=max(map(len, chunks)),
        num_calibration_samples=len(chunks),
        processor=PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json"),
        output_dir=output,
        save_compressed=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
