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
from tests.assistants import CLUSTERS, make_assistant
from tests.tiny_models import TINY_CONFIGS, make_checkpoint

DRAFTS = 3
CONTEXT = 240
WINDOW = 40
# Beyond the window, and where its ring has gone round.
LENGTHS = [12, 70, 190]

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
    assistant = make_assistant(model, folder / "drafter", **values)
    return Models(model, assistant, convert(folder, folder / "m.litertlm"))


def drafter_of(bundle: Path, position: int, caches: dict[str, np.ndarray]) -> Drafting:
    """A step of the engine's: token and hidden row to the next ones; `llm_litert_mtp_drafter.cc`."""
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


def reference(models: Models, text: list[int]) -> tuple[np.ndarray, Drafting]:
    """The same by transformers: the last hidden row, and a step of the assistant."""
    import torch

    with torch.no_grad():
        said = models.model.model(torch.tensor([text]), return_shared_kv_states=True)
    # Its mask lets one key more in than the model's own layers see, and than other engines do.
    k, v = said.shared_kv_states["sliding_attention"]
    seen = {**said.shared_kv_states, "sliding_attention": (k[:, :, -WINDOW:], v[:, :, -WINDOW:])}
    table = models.model.get_input_embeddings()

    def step(token: int, hidden: np.ndarray) -> tuple[int, np.ndarray]:
        with torch.no_grad():
            row = torch.cat([table(torch.tensor([[token]])), torch.tensor(hidden[None, None])], -1)
            made = models.assistant(
                inputs_embeds=row,
                position_ids=torch.tensor([[len(text) - 1]]),
                shared_kv_states=seen,
            )
        return int(made.logits.argmax()), made.last_hidden_state[0, 0].numpy()

    return said.last_hidden_state[0, -1].numpy(), step


@pytest.mark.parametrize("length", LENGTHS)
def test_drafts_are_those_of_transformers(models: Models, length: int) -> None:
    text = np.random.default_rng(length).integers(0, 256, length).tolist()
    caches, hidden = run(models.bundle, text)
    wanted_hidden, wanted_step = reference(models, text)
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
