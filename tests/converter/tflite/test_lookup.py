"""Drafts by prompt lookup in the engine: greedy text is that without them, in fewer pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.network import read_network
from converter.options import ConvertOptions
from converter.tflite.decoder_graph import build_decoder
from converter.tflite.graph import Weight
from converter.tflite.kv_cache import Target
from converter.tflite.lookup import MOST_DRAFTS, WIDTH, texts, widths
from converter.weights.quantization import FLOAT32
from runner.interpreter import GraphRunner
from tests.edited_bundle import edited_bundle
from tests.reciting import recite
from tests.tiny_models import TINY_CONFIGS, random_model, write_tokenizer

# Whole caches; rings, whose edge is within reach; capped scores; sinks, and experts; two tables of
# embeddings, and caches that layers share.
MODELS = ["llama", "gemma3_text", "gemma2", "gpt_oss", "gemma4_text"]
SPECIAL = ("<s>", "<|im_end|>", "<|im_start|>", "<unused>")
DRAFTS = 3
CONTEXT = 640
_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = ["one two three one two three", "Again, please? " * 12, "And now? ", "Why?"]


class Bundles(NamedTuple):
    plain: Path
    drafting: Path


def write_model(folder: Path, name: str) -> None:
    """Random weights: what they say depends on all that is cached, and runs into loops now and
    then.
    """
    model_type, values = TINY_CONFIGS[name]
    size = 256 + len(SPECIAL)
    values = {key: size if "vocab_size" in key else value for key, value in values.items()}
    model = random_model(model_type, values, seed=4)
    if name.startswith("gemma"):  # their embedding is their head, too: they would stutter
        model.get_input_embeddings().weight.data.mul_(0.1)
    model.save_pretrained(folder)
    write_tokenizer(folder, SPECIAL)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["chat_template"] = _CHATML
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def convert(folder: Path, drafts: int, context: int = CONTEXT) -> Path:
    bundle = folder / f"{drafts}_drafts_{context}.litertlm"
    with open_checkpoint(folder) as checkpoint:
        options = ConvertOptions(
            "fp32", prefill_lengths=(8, 32), cache_length=context, drafts=drafts
        )
        ModelConverter(checkpoint, "tiny", options).convert(bundle)
    return bundle


@pytest.fixture(scope="module", params=MODELS)
def bundles(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Bundles:
    folder = tmp_path_factory.mktemp(request.param)
    write_model(folder, request.param)
    return Bundles(convert(folder, 0), convert(folder, DRAFTS))


class Said(NamedTuple):
    text: str
    tokens: int
    pieces: int
    used: int  # of the cache, after it


class Chat:
    """A greedy conversation in an engine of its own."""

    def __init__(self, bundle: Path, drafts: bool = False) -> None:
        import litert_lm

        litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
        self.stack = ExitStack()
        self.engine = self.stack.enter_context(
            litert_lm.Engine(str(bundle), cache_dir=":nocache", enable_benchmark=True)
        )
        self.settings: dict[str, Any] = {
            "sampler_config": litert_lm.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0, seed=0)
        }
        if drafts:
            self.settings["enable_speculative_decoding"] = True
        self.begin()

    def begin(self, history: Sequence[dict[str, str]] = ()) -> None:
        self.turns = self.stack.enter_context(
            self.engine.create_conversation(messages=list(history), **self.settings)
        )

    def ask(self, question: str, tokens: int = 60) -> Said:
        parts = [*self.turns.send_message_async(question, max_output_tokens=tokens)]
        texts = [text for part in parts for text in (*part.channels.values(), str(part))]
        made = self.turns.get_benchmark_info().last_decode_token_count
        return Said("".join(texts), made, len(parts), self.turns.token_count)

    def __enter__(self) -> Chat:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def compare(plain: Path, drafting: Path, questions: Sequence[str], tokens: int = 60) -> list[Said]:
    """Ask both the same; what was said with drafts, which says how many tokens there are to be."""
    answers = []
    with Chat(plain) as expected, Chat(drafting, drafts=True) as chat:
        for question in questions:
            said = chat.ask(question, tokens)
            assert said.tokens < tokens + DRAFTS + 1
            wanted = expected.ask(question, said.tokens)
            assert (said.text, said.used) == (wanted.text, wanted.used)
            answers.append(said)
    return answers


def test_texts_over_turns(bundles: Bundles) -> None:
    """Past the edge of a ring, where there are some."""
    answers = compare(*bundles, QUESTIONS)
    assert sum(said.pieces for said in answers) < sum(said.tokens for said in answers)
    assert len({said.text for said in answers}) == len(answers)
    assert answers[-1].used > 400


WITHOUT_AND_WITH_RINGS = pytest.mark.parametrize("bundles", ["llama", "gemma3_text"], indirect=True)


@WITHOUT_AND_WITH_RINGS
def test_tokens_that_are_taken_back(bundles: Bundles, tmp_path: Path) -> None:
    """Thoughts, which the engine removes from the cache, and wrong drafts behind them."""

    def think(metadata: Any) -> None:
        metadata.jinja_prompt_template += (
            "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
        )
        metadata.channels.add(channel_name="thought", start="<think>\n", end="\ue000")

    thinkers = [edited_bundle(bundle, tmp_path / bundle.name, think) for bundle in bundles]
    answers = compare(*thinkers, [*QUESTIONS, *"abc"], 40)
    assert answers[-1].used < CONTEXT  # with all thoughts it would be more


@WITHOUT_AND_WITH_RINGS
def test_the_end_of_the_context(bundles: Bundles) -> None:
    """The last drafts lie beyond it, in slots that are there for them."""
    longer = convert(bundles.plain.parent, 0, CONTEXT + 64)
    question = "one two three four five six seven " * 17
    with Chat(longer) as expected, Chat(bundles.drafting, drafts=True) as chat:
        said = chat.ask(question, CONTEXT)
        assert CONTEXT <= said.used <= CONTEXT + DRAFTS
        assert said.text == expected.ask(question, said.tokens).text


def test_the_end_of_an_answer_is_not_lost(tmp_path: Path) -> None:
    """A model that says the same in every turn, and ends: all of it was seen before."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_model(folder, "llama")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    recite(folder, [tokenizer.token_to_id(token) for token in (*"abcdefghijkl", "<|im_end|>")])
    answers = compare(convert(folder, 0), convert(folder, DRAFTS), ["one", "two", "three"])
    assert [said.text for said in answers] == ["abcdefghijkl"] * 3
    assert answers[-1].pieces < 8


def test_only_a_long_text_chooses_columns(tmp_path: Path) -> None:
    """The runtime prepares all branches of a body anew whenever the body is taken."""
    write_model(tmp_path, "llama")
    with open_checkpoint(tmp_path) as checkpoint:
        spec = read_network(checkpoint, "tiny").spec(1280)
    shapes = dict(spec.weight_shapes())

    def weight_of(path: str) -> Weight:
        return FLOAT32.weight(path, shapes[path])

    decoder = build_decoder(spec, (8,), 1280, weight_of, Target.CPU, rings=True, drafts=DRAFTS)
    branches = {
        name.removeprefix("verify/"): [op.operator for op in body.ops].count("IF")
        for name, body in decoder.model.bodies.items()
        if name.startswith("verify/")
    }
    layers = len(spec.layers)
    short = {"1_tokens/1_rows_or_more": 1, "1_tokens/1_rows": 0, "1_tokens/4_rows": 0}
    long = {"1_rows_or_more": 1, "1_rows": layers, "4_rows": layers}
    assert branches == {**short, **{f"257_tokens/{rows}": count for rows, count in long.items()}}


# A short text's last call, the first one that is no longer short, and one in which some levels are
# too few.
LENGTHS = [30, texts(CONTEXT)[0].stop - 1, texts(CONTEXT)[0].stop, 530]


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("bundles", ["gemma3_text", "gpt_oss"], indirect=True)
def test_as_many_rows_as_there_are_drafts(bundles: Bundles, length: int) -> None:
    """Their logits are those of `decode`; no token never wins."""
    bundle = convert(bundles.plain.parent, MOST_DRAFTS)
    text = [*np.random.default_rng(0).integers(0, 256, length).tolist()]
    length = len(text) - MOST_DRAFTS - 1
    expected = GraphRunner(bundle)
    for start in range(0, length, 32):
        expected.prefill(32, text[start : min(start + 32, length)], start)
    caches = dict(expected._caches)
    wanted = [expected.decode(text[p], p) for p in range(length, len(text))]
    no_token = len(wanted[0])
    verify = expected._interpreter.get_signature_runner("verify")
    for rows in range(1, MOST_DRAFTS + 2):
        ids = [*text[length : length + rows], *[no_token] * (MOST_DRAFTS + 1 - rows)]
        embeddings = np.zeros((1, MOST_DRAFTS + 1, WIDTH), np.float32)
        embeddings[0, :, 0] = ids
        positions = np.arange(length, len(text), dtype=np.int32)
        said = verify(embeddings=embeddings, input_pos=positions, **caches)
        logits = said["logits"][0]
        np.testing.assert_allclose(logits[:rows, :no_token], wanted[:rows], atol=2e-5)
        assert (logits[:, no_token] == logits.min()).all()
        assert logits.min() < -1e8
        computed = next(width for width in widths(MOST_DRAFTS) if width >= rows)
        assert (logits[computed:] == logits.min()).all()
        assert not said["activations"].any()
