"""Gemma 4's assistants: what they draft against transformers, and in the engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions, DrafterSource
from converter.tflite.kv_cache import CacheType
from runner.interpreter import GraphRunner
from tests.assistants import CLUSTERS, make_assistant, random_assistant
from tests.converter.tflite.test_lookup import QUESTIONS, Chat, compare, write_model
from tests.reciting import recite
from tests.tiny_models import make_checkpoint

DRAFTS = 3
CONTEXT = 240
WINDOW = 40
# Within the window, and beyond it: caches of Gemma 4 are no rings, for its thoughts are taken back.
LENGTHS = [12, 70]

Drafting = Callable[[int, np.ndarray], tuple[int, np.ndarray]]


class Models(NamedTuple):
    """A model and its assistant by transformers, and both in a bundle."""

    model: Any
    assistant: Any
    bundle: Path


def convert(folder: Path, bundle: Path, **options: Any) -> Path:
    """What stands in `folder`: a model, and its assistant."""
    with open_checkpoint(folder / "model") as model, open_checkpoint(folder / "drafter") as drafter:
        values = {"quantize": "fp32", "prefill_lengths": (8, 32), "cache_length": CONTEXT}
        source = DrafterSource(drafter, "tiny-assistant")
        chosen = ConvertOptions(**{**values, "drafts": DRAFTS, "drafter": source, **options})
        ModelConverter(model, "tiny", chosen).convert(bundle)
    return bundle


@pytest.fixture(
    scope="module",
    params=[
        # Caches that the model's own last layers share, capped scores; a head of clusters.
        ("gemma4_text", CLUSTERS),
        # Values that are keys, of another number of heads; biases; a head of its own.
        ("gemma4_text-keys-are-values", {}),
        ("gemma4_unified_text", CLUSTERS),
    ],
    ids=lambda param: f"{param[0]}{'-clusters' if param[1] else ''}",
)
def models(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Models:
    test_id, values = request.param
    folder = tmp_path_factory.mktemp(test_id)
    model = make_checkpoint(test_id, folder / "model")
    assistant = make_assistant(model.config, folder / "drafter", **values)
    return Models(model, assistant, convert(folder, folder / "m.litertlm"))


def drafter_of(bundle: Path, position: int, caches: dict[str, np.ndarray]) -> Drafting:
    """A step of the engine's loop, from a token and a hidden row to the next ones."""
    info, data = read_bundle(bundle), bundle.read_bytes()
    runners = []
    for kind in ("tf_lite_embedder", "tf_lite_mtp_drafter"):
        [section] = (s for s in info.sections if s.items.get("model_type") == kind)
        content = data[section.offset : section.offset + section.nbytes]
        interpreter = Interpreter(model_content=content)
        [name] = interpreter.get_signature_list()
        runners.append(interpreter.get_signature_runner(name))
    embed, draft = runners
    seen = {name: caches[name] for name in draft.get_input_details() if name in caches}
    assert seen

    def step(token: int, hidden: np.ndarray) -> tuple[int, np.ndarray]:
        embedding = embed(token=np.array([[token]], np.int32))["embedding"][0, 0]
        row = np.concatenate([embedding, hidden])[None, None]
        said = draft(activations=row, input_pos=np.array([position], np.int32), **seen)
        return int(said["logits"].argmax()), said["projected_activations"][0, 0]

    return step


def run(bundle: Path, text: list[int]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The caches after a text, and the network's last hidden row."""
    runner = GraphRunner(bundle)
    before = len(text) - 1
    for start in range(0, before, 32):
        runner.prefill(32, text[start : min(start + 32, before)], start)
    said = runner._call("decode", 1, text[-1:], before)
    return runner._caches, said["activations"][0, 0]


def reference(model: Any, assistant: Any, text: list[int]) -> tuple[np.ndarray, Drafting]:
    """The same by transformers: the last hidden row, and a step of the assistant."""
    import torch

    with torch.no_grad():
        said = model.model(torch.tensor([text]), return_shared_kv_states=True)
    # Its mask lets one key more in than the model's own layers see, and than other engines do.
    k, v = said.shared_kv_states["sliding_attention"]
    seen = {**said.shared_kv_states, "sliding_attention": (k[:, :, -WINDOW:], v[:, :, -WINDOW:])}
    table = model.get_input_embeddings()

    def step(token: int, hidden: np.ndarray) -> tuple[int, np.ndarray]:
        with torch.no_grad():
            row = torch.cat([table(torch.tensor([[token]])), torch.tensor(hidden[None, None])], -1)
            position = torch.tensor([[len(text) - 1]])
            made = assistant(inputs_embeds=row, position_ids=position, shared_kv_states=seen)
        return int(made.logits.argmax()), made.last_hidden_state[0, 0].numpy()

    return said.last_hidden_state[0, -1].numpy(), step


@pytest.mark.parametrize("length", LENGTHS)
def test_drafts_are_those_of_transformers(models: Models, length: int) -> None:
    text = np.random.default_rng(length).integers(0, 256, length).tolist()
    caches, hidden = run(models.bundle, text)
    wanted_hidden, wanted_step = reference(models.model, models.assistant, text)
    np.testing.assert_allclose(hidden, wanted_hidden, atol=2e-4)
    step = drafter_of(models.bundle, length - 1, caches)
    no_token = models.model.config.vocab_size
    stops = {n for s in read_bundle(models.bundle).metadata.stop_tokens for n in s.token_ids.ids}
    drafts = []
    for token in (17, 99, 200):
        given, wanted_given = hidden, wanted_hidden
        for _ in range(DRAFTS):
            draft, given = step(token, given)
            token, wanted_given = wanted_step(token, wanted_given)
            np.testing.assert_allclose(given, wanted_given, atol=5e-4)
            # What ends an answer is no draft.
            assert draft == (no_token if token in stops else token)
            drafts.append(token)
    assert len(set(drafts)) > 4
    assert step(no_token, given)[0] == no_token  # nothing follows what is no draft


@pytest.mark.parametrize("scheme", ["dynamic_int8", "dynamic_int8_a16", "int8", "fp16"])
def test_schemes(scheme: str, tmp_path: Path) -> None:
    """What the drafter hands on is near to that in float: tables, matrices and clusters."""
    model = make_checkpoint("gemma4_text", tmp_path / "model")
    make_assistant(model.config, tmp_path / "drafter", **CLUSTERS)
    in_float = convert(tmp_path, tmp_path / "float.litertlm")
    rounded = convert(tmp_path, tmp_path / "rounded.litertlm", quantize=scheme)
    caches, hidden = run(in_float, [*range(40, 80)])
    (_, wanted), (_, found) = (
        drafter_of(bundle, 39, caches)(17, hidden) for bundle in (in_float, rounded)
    )
    assert not np.array_equal(found, wanted)
    assert np.linalg.norm(found - wanted) < 0.05 * np.linalg.norm(wanted)


# In the engine ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", CacheType)
def test_texts_over_turns(cache: CacheType, tmp_path: Path) -> None:
    """A drafter that is hardly ever right, in caches of every kind."""
    from transformers import AutoConfig

    (tmp_path / "model").mkdir()
    write_model(tmp_path / "model", "gemma4_text")
    config = AutoConfig.from_pretrained(tmp_path / "model")
    make_assistant(config, tmp_path / "drafter", **{**CLUSTERS, "num_centroids": 13})
    bundles = [
        convert(tmp_path, tmp_path / f"{i}.litertlm", kv_cache=cache, cache_length=640, **options)
        for i, options in enumerate(({"drafts": 0, "drafter": None}, {}))
    ]
    answers = compare(bundles[0], bundles[1], QUESTIONS)
    assert answers[-1].used > 400


class Reciting(NamedTuple):
    """A model that says a chain of tokens, with something in its caches, and an assistant's."""

    model: Any
    folder: Path
    chain: list[int]


CHAIN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@pytest.fixture(scope="module")
def reciting(tmp_path_factory: pytest.TempPathFactory) -> Reciting:
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("reciting")
    (folder / "model").mkdir()
    write_model(folder / "model", "gemma4_text-keys-are-values")
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    chain = [tokenizer.token_to_id(token) for token in (*CHAIN, "<|im_end|>")]
    recite(folder / "model", chain)
    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", attn_implementation="eager", dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder / "model")
    return Reciting(model.eval(), folder, chain)


def knowing_assistant(model: Any, noise: float, layers: float) -> Any:
    """An assistant that knows the chain by the token that it is given.

    Args:
        noise: how much it heeds the hidden row, which says nothing of that.
        layers: how much its layers do beside.
    """
    import torch

    assistant = random_assistant(model.config, hidden_size=model.config.hidden_size)
    with torch.no_grad():
        for name, parameter in assistant.named_parameters():
            if name.endswith("q_norm.weight"):
                parameter.fill_(4)  # for what it looks at to depend on where it stands
            elif parameter.ndim == 1:
                parameter.fill_(layers if "post" in name else 1)
        for name, buffer in assistant.named_buffers():
            if name.endswith("layer_scalar"):
                buffer.fill_(1)
        assistant.pre_projection.weight *= noise
        assistant.pre_projection.weight[:, : model.config.hidden_size] = torch.eye(
            model.config.hidden_size
        )
        assistant.lm_head.weight.copy_(model.lm_head.weight)
    return assistant


def test_drafts_that_are_right(reciting: Reciting) -> None:
    """Four tokens in a step, and the last of them, which ends the answer, on its own."""
    assistant = knowing_assistant(reciting.model, 0.0, 0.0)
    assistant.save_pretrained(reciting.folder / "drafter")
    plain = convert(reciting.folder, reciting.folder / "p.litertlm", drafts=0, drafter=None)
    drafting = convert(reciting.folder, reciting.folder / "d.litertlm")
    answers = compare(plain, drafting, ["one", "two"], 80)
    assert [said.text for said in answers] == [CHAIN] * 2
    assert [said.pieces for said in answers] == [len(CHAIN) // (DRAFTS + 1) + 1] * 2


def test_as_many_drafts_are_right_as_by_transformers(reciting: Reciting) -> None:
    """With layers that look at the caches, and hidden rows: some are, and these very ones."""
    from tokenizers import Tokenizer

    model, folder = reciting.model, reciting.folder
    assistant = knowing_assistant(model, noise=1, layers=8)
    assistant.save_pretrained(folder / "drafter")
    bundle = convert(folder, folder / "some.litertlm")
    question = "one two three four five six seven eight nine ten"
    with Chat(bundle, drafts=True) as chat:
        pieces = [str(part) for part in chat.turns.send_message_async(question)]
    assert "".join(pieces) == CHAIN
    prompt = (
        Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        .encode(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        .ids
    )
    # A step says the token that it continues, and the drafts after it that are right.
    wanted, count = [], 1
    while count <= len(CHAIN) / 2:
        *before, token = [*prompt, *reciting.chain[:count]]
        hidden, step = reference(model, assistant, before)
        start = count - 1
        for right in reciting.chain[count : count + DRAFTS]:
            token, hidden = step(token, hidden)
            if token != right or token == reciting.chain[-1]:
                break
            count += 1
        wanted.append(CHAIN[start:count])
        count += 1
    assert {1, 2, DRAFTS + 1} <= {len(piece) for piece in wanted}
    assert pieces[: len(wanted)] == wanted
