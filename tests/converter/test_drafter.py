"""A trained drafter on its way into a bundle: what is refused, and what stands there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import LiteRTLMError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions, DrafterSource
from converter.report import weights_bytes
from converter.tflite.assistant import TOKENS
from publish.package import write_package
from tests.assistants import CLUSTERS, make_assistant
from tests.gguf_models import write_model
from tests.hub_server import HubServer
from tests.reciting import WEIGHTS
from tests.tiny_models import make_checkpoint

BEFORE, ORDER = "pre_projection.weight", "masked_embedding.token_ordering"
OPTIONS = ["--quantize", "fp32", "--prefill-seq-len", "8,16", "--quiet"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and its assistant."""
    folder = tmp_path_factory.mktemp("models")
    model = make_checkpoint("gemma4_text", folder / "model")
    make_assistant(model.config, folder / "drafter", **CLUSTERS)
    return folder


@pytest.fixture
def drafter(folder: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    return Path(shutil.copytree(folder / "drafter", tmp_path / "drafter"))


def convert(model: Path, drafter: Path, output: Path, **options: Any) -> list[int]:
    """What was told of its progress, after what there is to be."""
    told: list[int] = []
    with open_checkpoint(model) as checkpoint, open_checkpoint(drafter) as drafts:
        values = {"quantize": "fp32", "prefill_lengths": (8,), "cache_length": 64, "drafts": 2}
        chosen = ConvertOptions(
            **{**values, "drafter": DrafterSource(drafts, "org/drafter"), **options}
        )
        converter = ModelConverter(checkpoint, "m", chosen)
        plan = converter.plan()
        converter.write(plan, output, told.append)
    return [weights_bytes(plan), *told]


def test_its_section(folder: Path, tmp_path: Path) -> None:
    wanted, *told = convert(folder / "model", folder / "drafter", tmp_path / "m.litertlm")
    assert sum(told) == wanted
    bundle = read_bundle(tmp_path / "m.litertlm")
    kinds = [section.items.get("model_type") for section in bundle.sections[:3]]
    assert kinds == ["tf_lite_prefill_decode", "tf_lite_embedder", "tf_lite_mtp_drafter"]
    assert bundle.drafts == 2
    assert bundle.system["draft"].startswith("org/drafter, at most 2 tokens at once; ")
    # Every weight is there once, beside a graph of some 50 kB.
    drafter = load_file(folder / "drafter" / WEIGHTS)
    table = drafter["model.embed_tokens.weight"].nbytes  # of what tokens become, as large as this
    floats = sum(array.nbytes for array in drafter.values() if array.dtype == np.float32)
    half = drafter["pre_projection.weight"].nbytes // 2
    assert 0 < bundle.sections[2].nbytes - (floats + table - half) < 200_000


def test_of_a_model_in_a_gguf(folder: Path, tmp_path: Path) -> None:
    """What tokens become is made of the model's embedding, wherever that is stored."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    gguf = write_model(model, tmp_path / "m.gguf")
    with open_checkpoint(gguf) as checkpoint, open_checkpoint(folder / "drafter") as drafts:
        options = ConvertOptions("fp32", drafts=2, drafter=DrafterSource(drafts, "x"))
        drafter = ModelConverter(checkpoint, "m", options).plan().drafter
        assert drafter is not None
        found = drafter.tensors.read_rows(TOKENS, 20, 320)
    table = model.get_input_embeddings().weight.detach().numpy() * 8  # the root of its width
    before = load_file(folder / "drafter" / WEIGHTS)[BEFORE]
    np.testing.assert_allclose(found, table[20:] @ before[:, :64].T, atol=1e-5)


def settings(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """A change of a drafter's config."""

    def changed(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return changed


def tensors(change: Callable[[dict[str, np.ndarray]], object]) -> Callable[[Path], None]:
    """The same of its tensors."""

    def changed(folder: Path) -> None:
        arrays = load_file(folder / WEIGHTS)
        change(arrays)
        save_file(arrays, folder / WEIGHTS)

    return changed


@pytest.mark.parametrize(
    ("change", "what", "why"),
    [
        (
            settings(lambda c: c.update(backbone_hidden_size=128)),
            "--draft org/drafter",
            "it was made for a hidden size of 128, and m has 64",
        ),
        (
            settings(lambda c: c["text_config"].update(vocab_size=640)),
            "--draft org/drafter",
            "it was made for a vocabulary of 640, and m has 320",
        ),
        (
            settings(lambda c: c["text_config"].update(global_head_dim=64)),
            "--draft org/drafter",
            "it looks at 2 heads of 64 values in a layer that sees everything, and this model has "
            "no such layer",
        ),
        (
            settings(lambda c: c["text_config"].update(sliding_window=50)),
            "--draft org/drafter",
            "it looks at 2 heads of 16 values in a layer that sees a window, and this model has no "
            "such layer",
        ),
        (
            settings(lambda c: c.update(num_centroids=7)),
            "gemma4_assistant: num_centroids=7",
            "not supported, only what divides vocab_size is",
        ),
        (
            settings(lambda c: c.update(model_type="llama", architectures=["LlamaEagle3"])),
            "--draft: model_type llama (LlamaEagle3)",
            "an EAGLE head has keys and values of its own, which nobody keeps for it",
        ),
        (
            settings(lambda c: c.update(model_type="qwen3")),
            "--draft: model_type qwen3",
            "it is no drafter that can be used",
        ),
        (
            tensors(lambda t: t.pop(BEFORE)),
            f"--draft org/drafter: {BEFORE}",
            "it is not there",
        ),
        (
            tensors(lambda t: t.update({BEFORE: np.zeros((32, 64), np.float32)})),
            f"--draft org/drafter: {BEFORE}",
            "it is [32, 64], and must be [32, 128]",
        ),
        (
            tensors(lambda t: t.update({ORDER: np.zeros(320, np.int64)})),
            f"--draft org/drafter: {ORDER}",
            "it is no order of 320 tokens, or has fewer than 3 clusters",
        ),
        (
            tensors(lambda t: t.update({"model.norm.weight": np.zeros(16, np.float32)})),
            "--draft org/drafter",
            "1 tensors have the wrong shape: model.norm.weight is [16], config says [32]",
        ),
        (
            tensors(lambda t: t.pop("model.layers.1.self_attn.o_proj.weight")),
            "gemma4_assistant checkpoint",
            "lacks 1 tensors: layers.1.self_attn.o_proj.weight",
        ),
    ],
)
def test_what_is_no_drafter_of_this_model(
    change: Callable[[Path], None], what: str, why: str, drafter: Path, folder: Path, tmp_path: Path
) -> None:
    change(drafter)
    with pytest.raises(LiteRTLMError) as error:
        convert(folder / "model", drafter, tmp_path / "m.litertlm")
    assert (error.value.what, error.value.why) == (what, why)
    assert error.value.fix
    assert not (tmp_path / "m.litertlm").exists()


def test_blocks_that_do_not_divide_it(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(LiteRTLMError) as error:
        convert(folder / "model", folder / "drafter", tmp_path / "m", quantize="dynamic_int4")
    assert error.value.what == "--draft org/drafter: layers.0.mlp.down"


# By the command line ------------------------------------------------------------------------------


def test_receipt(folder: Path, tmp_path: Path) -> None:
    """It names the drafter and its files, and makes the same bytes again."""
    draft = ["--draft", f"{folder / 'drafter'}:2"]
    out = ["--output-dir", str(tmp_path)]
    assert main(["convert", str(folder / "model"), *draft, *out, *OPTIONS]) == 0
    output = tmp_path / "model.litertlm"
    said = json.loads(output.with_suffix(".json").read_text())["options"]
    assert said["draft"] == "drafter:2"
    assert said["drafter"]["model"] == str(folder / "drafter")
    assert {file["name"] for file in said["drafter"]["files"]} >= {"config.json", WEIGHTS}
    assert main(["verify", str(output)]) == 0
    again = ["--output-dir", str(tmp_path / "again"), "--quiet"]
    assert main(["convert", "--from-receipt", str(output.with_suffix(".json")), *again]) == 0
    assert (tmp_path / "again/model.litertlm").read_bytes() == output.read_bytes()


def test_package(drafter: Path, folder: Path, tmp_path: Path) -> None:
    """Its card names the drafter, whose licence is beside it."""
    (drafter / "README.md").write_text("---\nlicense: mit\n---\n")
    (drafter / "LICENSE").write_text("Mine.\n")
    out = ["--output-dir", str(tmp_path), *OPTIONS]
    assert main(["convert", str(folder / "model"), "--draft", str(drafter), *out]) == 0
    write_package(tmp_path / "model.litertlm", tmp_path / "package")
    card = (tmp_path / "package" / "README.md").read_text()
    assert "| Drafter | drafter |" in card
    assert "drafter states `mit` in README.md. With it came [drafter-LICENSE]" in card
    assert (tmp_path / "package" / "drafter-LICENSE").read_text() == "Mine.\n"
    assert str(tmp_path) not in (tmp_path / "package" / "model.json").read_text()


def test_another_drafter_than_the_receipt_s(
    drafter: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output-dir", str(tmp_path), *OPTIONS]
    assert main(["convert", str(folder / "model"), "--draft", str(drafter), *out]) == 0
    tensors(lambda t: t["model.norm.weight"].__iadd__(1))(drafter)
    paper = str(tmp_path / "model.json")
    assert main(["convert", "--from-receipt", paper, "--output-dir", str(tmp_path / "x")]) == 1
    assert f"{drafter}: {WEIGHTS}, it is not the file that the receipt names" in (
        capsys.readouterr().err
    )


def test_from_a_hub(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Fetched by its id; what is none is refused by its config alone."""
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    model, out = str(folder / "model"), ["--output-dir", str(tmp_path), *OPTIONS]
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        shutil.copytree(folder / "drafter", hub.root / "org" / "drafter")
        shutil.copytree(folder / "model", hub.root / "org" / "model")
        for command in (["check", model], ["convert", model, "--dry-run"]):
            assert main([*command, "--draft", "org/drafter"]) == 1
            assert "--draft org/drafter, it is not downloaded yet" in capsys.readouterr().err
        assert main(["convert", model, "--draft", "org/model", *out]) == 1
        assert "model_type gemma4_text, it is no drafter" in capsys.readouterr().err
        assert not (tmp_path / "models/org/model/checkpoint" / WEIGHTS).exists()
        assert main(["convert", model, "--draft", "org/drafter", *out]) == 0
        assert read_bundle(tmp_path / "model.litertlm").system["draft"].startswith("org/drafter, ")
        for command in (["check", model], ["convert", model, "--dry-run", *out]):
            capsys.readouterr()
            assert main([*command, "--draft", "org/drafter:2"]) == 0
            assert "\n  draft: org/drafter:2\n" in capsys.readouterr().out
        paper = ["--from-receipt", str(tmp_path / "model.json")]
        again = ["--output-dir", str(tmp_path / "again"), "--quiet"]
        assert main(["convert", *paper, *again]) == 0
    outputs = (tmp_path / "model.litertlm", tmp_path / "again" / "model.litertlm")
    assert len({output.read_bytes() for output in outputs}) == 1


def test_an_assistant_is_no_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(folder / "drafter")]) == 1
    assert "it drafts for another model and says nothing itself" in capsys.readouterr().err
