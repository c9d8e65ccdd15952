"""Tiny networks as whole folders: packages under their names, meta.yaml and a tokenizer.

`CoreMLConverter` makes such folders; what it refuses is made here: windows of 40 positions.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from converter.coreml.meta import META, Description, Names, meta_yaml
from tests.coreml_models import build, interface_of, read_checkpoint


def make_folder(
    checkpoint: Path,
    folder: Path,
    *,
    is_monolithic: bool = False,
    argmax: bool = False,
    scale: float = 1.0,
) -> Path:
    """Packages of a checkpoint, as a conversion leaves them.

    Args:
        scale: of the embedding, to make numbers too large.
    """
    spec, values = read_checkpoint(checkpoint, 64)
    values["embedding"] = values["embedding"] * scale
    interface = interface_of(spec, argmax=argmax)
    parts = build(folder, spec, values, interface, is_monolithic=is_monolithic)
    names = Names("tiny", None, None, None, 0 if is_monolithic else len(parts.chunks))
    paths = [path for path in (parts.embeddings, *parts.chunks, parts.head) if path]
    for path, name in zip(paths, names.all, strict=True):
        path.rename(folder / f"{name}.mlpackage")
    (folder / META).write_bytes(meta_yaml(Description("tiny", "gemma3_text", names, interface)))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, folder / name)
    return folder
