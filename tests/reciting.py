"""Models that say what a test wants them to say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Container, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.options import ConvertOptions
from tests.family_templates import Template
from tests.tiny_models import make_checkpoint

WEIGHTS = "model.safetensors"


def reciting_bundle(
    folder: Path,
    said: list[str],
    template: Template,
    checkpoint: str = "llama",
    special: Container[str] = (),
    after: dict[str, list[str]] | None = None,
    drafts: int = 0,
) -> Path:
    """A bundle of a model that says these tokens, each once, with the template's chat.

    Args:
        folder: for the model; the bundle stands beside it.
        checkpoint: the tiny model.
        special: tokens that its tokenizer marks as special.
        after: what it says instead where a prompt ends with one of these tokens.
        drafts: how many tokens the bundle can draft at once.
    """
    after = after or {}
    make_checkpoint(checkpoint, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = dict.fromkeys(
        [template.bos or "<s>", *said, *after, *itertools.chain(*after.values()), template.eos]
    )
    tokenizer.add_tokens([AddedToken(text, special=text in special) for text in texts])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": template.bos or "<s>",
        "eos_token": template.eos,
        "chat_template": template.template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    recite(
        folder,
        [tokenizer.token_to_id(text) for text in [*said, template.eos]],
        [
            [tokenizer.token_to_id(text) for text in [mark, *texts, template.eos]]
            for mark, texts in after.items()
        ],
    )
    bundle = folder.with_suffix(".litertlm")
    with open_checkpoint(folder) as source:
        options = ConvertOptions("fp32", prefill_lengths=(8,), cache_length=1024, drafts=drafts)
        ModelConverter(source, "m", options).convert(bundle)
    return bundle


def recite(folder: Path, tokens: list[int], chains: Sequence[list[int]] = ()) -> None:
    """Weights of a model that says these tokens, each once, whatever it is asked.

    Args:
        chains: where a prompt ends with the first token of one of these, it says the others.
    """
    weights = {name: np.zeros_like(array) for name, array in load_file(folder / WEIGHTS).items()}
    for name in weights:
        if "norm" in name or name.endswith("layer_scalar"):
            weights[name] += 1
    table, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    table += np.random.default_rng(0).choice([-1.0, 1.0], table.shape).astype(table.dtype)
    table[:, 0] = 4  # a part that all tokens have leads to the first
    head[tokens[0], 0] = 9
    for chain in [tokens, *chains]:
        for before, after in itertools.pairwise(chain):
            head[after, 1:] += table[before, 1:]
    save_file(weights, folder / WEIGHTS)
