"""Gemma 3 270M by the torch engine: a program, so that its minutes pass beside other tests.

python -m tests.torch_export FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.sources import GEMMA3_270M, widen_gguf
from converter.base import ConvertOptions
from converter.checkpoint.safetensors import open_folder
from converter.graph.kv_cache import Target
from converter.reference import ReferenceConverter
from tests.conftest import real_model

OPTIONS = ConvertOptions("fp32", prefill_lengths=(16,), cache_length=64, target=Target.GPU)


def main(folder: Path) -> None:
    """Write `source/`, `torch.litertlm` and, a line each, the stages of its export."""
    tokenizer = real_model("gemma3-tokenizer")
    widen_gguf(real_model("gemma3-270m-q4_k_m.gguf"), GEMMA3_270M, tokenizer, folder / "source")
    with (
        open_folder(folder / "source") as checkpoint,
        (folder / "stages").open("w", encoding="utf-8", buffering=1) as stages,
    ):
        converter = ReferenceConverter(
            checkpoint, "model", OPTIONS, lambda stage: print(stage, file=stages)
        )
        converter.convert(folder / "torch.litertlm")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
