"""The torch engine beside the direct one: two ways to the same model."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.sources import GEMMA3_270M, widen_gguf
from cli.main import main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.errors import EngineError, OptionError, UnsupportedError
from converter.litertlm.inspection import Bundle, read_bundle
from converter.options import ConvertOptions
from converter.tflite.kv_cache import Target
from converter.torch import reference
from converter.torch.reference import ReferenceConverter
from converter.weights.adapters import WeightedAdapter
from converter.weights.row_format import Clip
from runner.engine import Model, Sampling
from runner.interpreter import GraphRunner
from tests.quantized_checkpoints import bnb_int8, quantize
from tests.tiny_models import make_checkpoint

PROMPT = [5, 17, 120, 33, 64, 9, 200, 31, 7, 90, 4]
# Largest difference of logits, whose own scale is about 1. Both round weights to the same int8,
# activations in another order.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-4, "int8": 1e-3, "dynamic_int8": 0.1}


pytestmark = pytest.mark.usefixtures("reference_environment")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name in ("qwen3", "gemma3_text"):
        found[name] = tmp_path_factory.mktemp("sources") / name
        make_checkpoint(name, found[name])
    return found


def convert(kind: type[ModelConverter], source: Path, output: Path, **options: object) -> Path:
    chosen = {"target": Target.GPU, "prefill_lengths": (16,), "cache_length": 64, **options}
    with open_checkpoint(source) as checkpoint:
        kind(checkpoint, "model", ConvertOptions(**chosen)).convert(output)  # type: ignore[arg-type]
    return output


def contract(bundle: Bundle) -> dict[str, object]:
    """All that the engine goes by, but not the order of a signature's tensors."""
    return {
        "signatures": {
            signature.name: [
                sorted((t.name, tuple(t.shape), t.dtype) for t in tensors)
                for tensors in (signature.inputs, signature.outputs)
            ]
            for signature in bundle.model.signatures
        },
        "sections": [section.kind for section in bundle.sections],
        "metadata": bundle.metadata,
        "system": {k: v for k, v in bundle.system.items() if k in ("model", "family", "target")},
    }


def compare(ours: Path, theirs: Path, tokens: list[int], tolerance: float) -> None:
    """Signatures and metadata, the logits after a prefill and while decoding, greedy text."""
    assert contract(read_bundle(ours)) == contract(read_bundle(theirs))
    runners = [GraphRunner(bundle) for bundle in (ours, theirs)]
    for runner in runners:
        runner.prefill(16, tokens[:-4])
    for position in range(len(tokens) - 4, len(tokens)):
        found, expected = (runner.decode(tokens[position], position) for runner in runners)
        np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def greedy(bundle: Path, prompt: str) -> str:
    with Model(bundle) as model:
        conversation = model.completion(sampling=Sampling(temperature=0), max_tokens=16)
        return "".join(piece.text for piece in conversation.ask(prompt))


@pytest.mark.parametrize(
    ("family", "scheme"),
    [("gemma3_text", "fp32"), *(("qwen3", scheme) for scheme in reference.SCHEMES)],
)
def test_both_engines_make_the_same_model(
    family: str, scheme: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    ours, theirs = (
        convert(kind, folders[family], tmp_path / f"{kind.__name__}.litertlm", quantize=scheme)
        for kind in (ModelConverter, ReferenceConverter)
    )
    compare(ours, theirs, PROMPT, TOLERANCES[scheme])
    said = [greedy(bundle, "some text") for bundle in (ours, theirs)]
    if scheme != "dynamic_int8":  # whose activations are rounded in another order
        assert said[0] == said[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ModelConverter.litertlm",
        "ReferenceConverter.litertlm",
    ]


def test_gemma3_270m_by_the_builder_of_litert_torch(
    gemma3_gguf: Path, gemma3_tokenizer: Path, tmp_path: Path
) -> None:
    widen_gguf(gemma3_gguf, GEMMA3_270M, gemma3_tokenizer, tmp_path / "source")
    theirs, ours = tmp_path / "torch.litertlm", tmp_path / "ours.litertlm"
    options = ConvertOptions("fp32", prefill_lengths=(16,), cache_length=64, target=Target.GPU)
    stages: list[str] = []
    with open_checkpoint(tmp_path / "source") as checkpoint:
        ReferenceConverter(checkpoint, "model", options, stages.append).convert(theirs)
        ModelConverter(checkpoint, "model", options).convert(ours)
    # Its own module for this model; what transformers' model goes through is called otherwise.
    assert "Torch Export: prefill_16" in stages
    assert not any("GenAI Export" in stage for stage in stages)
    tokens = [2, 818, 5279, 529, 7001, 563, 9079, 236761, 107]
    compare(ours, theirs, tokens, 1e-3)
    assert greedy(ours, "The capital of France is") == greedy(theirs, "The capital of France is")


def test_eval_against_transformers(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = convert(ModelConverter, folders["qwen3"], tmp_path / "model.litertlm", quantize="fp32")
    text = "Some words of no meaning, but enough of them. " * 2
    (tmp_path / "text.txt").write_text(text)
    options = ["--against", str(folders["qwen3"]), "--engine", "torch", "--json", "--quiet"]
    assert main(["eval", str(bundle), "--text", str(tmp_path / "text.txt"), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    tokens = Tokenizer.from_file(str(folders["qwen3"] / "tokenizer.json")).encode(text).ids
    assert found["positions"] == len(tokens) > 64  # the context: in passages
    assert abs(found["kl_mean"]) < 1e-6
    assert found["top1_agreement"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "dynamic_int4"}, "--quantize dynamic_int4, the torch engine makes"),
        ({"quantize": "fp32,ffn=fp16"}, "--quantize fp32,ffn=fp16, the torch engine makes"),
        ({"target": Target.CPU}, "--target cpu, the torch engine makes"),
        ({"lora": [WeightedAdapter(Path("adapter"))]}, "--lora, the torch engine makes"),
        ({"clip": Clip.MAX}, "--clip max, the torch engine makes"),
    ],
)
def test_what_it_cannot_do_is_refused(
    folders: dict[str, Path], tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        convert(ReferenceConverter, folders["qwen3"], tmp_path / "out" / "model", **options)
    assert not list(tmp_path.iterdir())


def test_a_gguf_is_refused(smollm2_gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="reads folders of safetensors, and this is a GGUF"):
        convert(ReferenceConverter, smollm2_gguf, tmp_path / "out" / "model")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}
    quantize(make_checkpoint("qwen3", tmp_path), tmp_path, config, bnb_int8)
    with pytest.raises(UnsupportedError, match=r"and these are quantised \(bitsandbytes\)"):
        convert(ReferenceConverter, tmp_path, tmp_path / "out" / "model")


def test_a_multimodal_model_is_refused(tmp_path: Path) -> None:
    make_checkpoint("gemma3", tmp_path)
    with pytest.raises(UnsupportedError, match="the text part of a multimodal model"):
        convert(ReferenceConverter, tmp_path, tmp_path / "out" / "model")


def test_too_little_memory_is_said_before_it_starts(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "free_memory", lambda: 10**6)
    with pytest.raises(UnsupportedError, match=r"15 bytes per parameter.*the direct engine needs"):
        convert(ReferenceConverter, folders["qwen3"], tmp_path / "out" / "model")


def test_so_it_is_for_eval(
    folders: dict[str, Path],
    smollm2_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before anything is scored, which may take minutes."""
    monkeypatch.setattr(reference, "free_memory", lambda: 1000)
    options = ["--against", str(folders["qwen3"]), "--engine", "torch"]
    assert main(["eval", str(smollm2_bundle), *options]) == 1
    assert "4 bytes per parameter, and 0.0 GB are free" in capsys.readouterr().err


def test_the_workers_failure_is_one_line_and_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The direct engine does not read `dtype`; transformers stops at one that is not torch's."""
    folder = shutil.copytree(folders["qwen3"], tmp_path / "folder")
    config = (folder / "config.json").read_text().replace('"float32"', '"float31"')
    (folder / "config.json").write_text(config)
    with pytest.raises(EngineError, match=r"--engine torch, .*float31"):
        convert(ReferenceConverter, folder, tmp_path / "out" / "model")
    assert not (tmp_path / "out").exists()


def test_an_interrupt_ends_the_worker_and_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    def interrupt(_stage: str) -> None:
        raise KeyboardInterrupt

    with open_checkpoint(folders["qwen3"]) as checkpoint:
        options = ConvertOptions("fp32", target=Target.GPU, cache_length=64)
        converter = ReferenceConverter(checkpoint, "model", options, interrupt)
        with pytest.raises(KeyboardInterrupt):
            converter.convert(tmp_path / "out" / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_it_asks_before_it_installs(
    answer: str,
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    installed: list[bool] = []
    monkeypatch.setattr(reference, "is_installed", lambda: False)
    monkeypatch.setattr(reference, "install", lambda: installed.append(True))
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    command = ["convert", str(folders["qwen3"]), "--output-dir", str(tmp_path), "--engine", "torch"]
    # A scheme that is refused, so that nothing else needs to be there.
    assert main([*command, "--quantize", "dynamic_int4"]) == 2
    asked = sys.stderr.getvalue()
    assert "needs PyTorch and litert-torch in" in asked
    assert "Install them now? [y/N]" in asked
    assert bool(installed) == (answer == "y")
    assert ("run ./setup --reference" in asked) == (answer == "n")


def test_an_environment_that_is_not_there_is_named(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reference, "is_installed", lambda: False)
    command = ["convert", str(folders["qwen3"]), "--output-dir", str(tmp_path), "--engine", "torch"]
    assert main(command) == 2
    assert capsys.readouterr().err == (
        "error: --engine torch, PyTorch and litert-torch are not installed, run ./setup --reference"
        "\n"
    )
