"""Models that say what a test wants them to say."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

WEIGHTS = "model.safetensors"


def recite(folder: Path, tokens: list[int]) -> None:
    """Weights of a model that says these tokens, each once, whatever it is asked."""
    weights = {name: np.zeros_like(array) for name, array in load_file(folder / WEIGHTS).items()}
    for name in weights:
        if "norm" in name:
            weights[name] += 1
    table, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    table += np.random.default_rng(0).choice([-1.0, 1.0], table.shape).astype(table.dtype)
    table[:, 0] = 4  # a part that all tokens have leads to the first
    head[tokens[0], 0] = 9
    for before, after in itertools.pairwise(tokens):
        head[after, 1:] = table[before, 1:]
    save_file(weights, folder / WEIGHTS)
