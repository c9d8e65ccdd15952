"""Drafts by prompt lookup in the engine: the text is that without them, and comes in fewer pieces.

Compared are three ways to say it: a bundle without drafts, one with them that are off, and on.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from tests.edited_bundle import edited_bundle
from tests.tiny_models import TINY_CONFIGS, random_model, write_tokenizer

# Whole caches; rings, their edge within reach; capped scores; sinks and experts; two kinds of
# embedding and caches that layers share.
MODELS = ["llama", "gemma3_text", "gemma2", "gpt_oss", "gemma4_text"]
DRAFTS = 3
CONTEXT = 512
QUESTIONS = ["Say it: one two three one two three. ", "Again, please? " * 12, "And now? ", "Why?"]
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Bundles(NamedTuple):
    plain: Path
    drafting: Path
    longer: Path  # without drafts, in a longer context


def convert(folder: Path, name: str, drafts: int = 0, context: int = CONTEXT) -> Path:
    bundle = folder / f"{name}.litertlm"
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions("fp32", None, (8, 32, 128), context, drafts=drafts)
        options = ConvertOptions(
            "fp32", prefill_lengths=(8, 32, 128), cache_length=context, drafts=drafts
        )
        ModelConverter(checkpoint, name, options).convert(bundle)
    return bundle


@pytest.fixture(scope="module", params=MODELS)
def bundles(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    """Random weights: what they say depends on all that is cached, and runs into loops."""
    folder: Path = tmp_path_factory.mktemp("drafts")
    model_type, values = TINY_CONFIGS[request.param]
    special = ("<s>", "<|im_end|>", "<|im_start|>", "<unused>")
    values = {**values, "vocab_size": 256 + len(special)}
    if "vocab_size_per_layer_input" in values:
        values["vocab_size_per_layer_input"] = values["vocab_size"]
    random_model(model_type, values, seed=4).save_pretrained(folder)
    write_tokenizer(folder, special)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = _CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return Bundles(
        convert(folder, "plain"),
        convert(folder, "drafting", DRAFTS),
        convert(folder, "longer", context=CONTEXT + 64),
    )


class Said(NamedTuple):
    text: str
    pieces: int
    used: int  # tokens in the cache after it


class Chat:
    """A greedy conversation in an engine of its own."""

    def __init__(self, bundle: Path, drafts: bool = False) -> None:
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
        self.stack = ExitStack()
        self.engine = self.stack.enter_context(litert_lm.Engine(str(bundle), cache_dir=":nocache"))
        self.settings = {
            "sampler_config": litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0),
            **({"enable_speculative_decoding": True} if drafts else {}),
        }
        self.begin()

    def begin(self, history: Sequence[dict[str, str]] = ()) -> None:
        turns = self.engine.create_conversation(messages=list(history), **self.settings)
        self.turns = self.stack.enter_context(turns)

    def ask(self, question: str, tokens: int = 60) -> Said:
        parts = [*self.turns.send_message_async(question, max_output_tokens=tokens)]
        texts = [part for message in parts for part in (*message.channels.values(), str(message))]
        return Said("".join(texts), len(parts), self.turns.token_count)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def test_texts_are_the_same_over_turns(bundles: Bundles) -> None:
    """Past the edge of a ring, and to the same places of the cache."""
    with Chat(bundles.plain) as plain, Chat(bundles.drafting, drafts=True) as drafting:
        for question in QUESTIONS:
            expected, found = plain.ask(question), drafting.ask(question)
            print(repr(expected), repr(found))
