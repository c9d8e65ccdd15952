"""Tiny networks as whole folders: packages under their names, meta.yaml and a tokenizer."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import yaml

from tests.coreml_models import build, interface_of, read_checkpoint


def make_folder(
    checkpoint: Path, folder: Path, *, context: int = 64, scale: float = 1.0, **options: Any
) -> Path:
    """Packages of a checkpoint, as a conversion leaves them.

    Args:
        scale: of the embedding, to make numbers too large.
        options: of `build` and `interface_of`.
    """
    spec, values = read_checkpoint(checkpoint, context)
    values["embedding"] = values["embedding"] * scale
    argmax = {"argmax": True} if options.pop("argmax", False) else {}
    interface = interface_of(spec, context, **argmax)
    parts = build(folder, spec, values, interface, **options)
    parameters: dict[str, Any] = {"context_length": context, "batch_size": interface.batch}
    windows = [state.window for state in interface.states if state.window]
    if windows:
        parameters["sliding_window"] = windows[0]
    if parts.embeddings is None:
        parameters["monolithic_model"] = "all.mlmodelc"
    else:
        count = len(parts.chunks)
        for i, path in enumerate(parts.chunks):
            path.rename(folder / f"t_FFN_PF_chunk_{i + 1:02}of{count:02}.mlpackage")
        parameters |= {
            "num_chunks": count,
            "embeddings": "embeddings.mlmodelc",
            "ffn": f"t_FFN_PF_chunk_01of{count:02}.mlmodelc",
            "lm_head": "head.mlmodelc",
        }
    (folder / "meta.yaml").write_text(yaml.safe_dump({"model_info": {"parameters": parameters}}))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    return folder
