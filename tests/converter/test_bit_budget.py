"""What `--bits` is spent on: losses as transformers has them, and a budget that is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cli.main import EXIT_USAGE, main
from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.bit_budget import Candidate, choose
from converter.errors import OptionError
from converter.litertlm.inspection import read_bundle
from converter.network import read_network
from converter.options import ConvertOptions
from converter.receipt import read_receipt
from converter.weights.passages import LENGTH, CalibrationText
from converter.weights.quantization import INT4_BLOCK32, INT6, INT8, Format
from converter.weights.text_calibration import TextCalibration
from litert_lm_cli import convert
from runner.evaluation import graph_logits
from tests.float_weights import FloatWeights
from tests.tiny_models import make_model, write_tokenizer

TEXT = "".join(f"A text of some pages, whose line {i} is like the others.\n" for i in range(40))
SHORT = ("--kv-cache-max-len", "32", "--prefill-seq-len", "8", "--calibrate", "self")
ROUNDED = [f"layers.0.{name}" for name in ("attention.q", "attention.v", "attention.o", "mlp.gate",
                                           "mlp.up", "mlp.down")]  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("bits") / "tiny"
    model = make_model("llama")
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder, model


def losses(folder: Path, threads: int = 2) -> tuple[dict[str, float], np.ndarray]:
    """What each matrix loses, and the tokens of the text that said so."""
    found: dict[str, float] = {}

    class Watched(ModelConverter):
        def _losses(self, *args: Any) -> dict[str, float]:
            found.update(super()._losses(*args))
            return found

    chosen = ConvertOptions(
        "dynamic_int4", calibrate=CalibrationText(TEXT), bits=6, prefill_lengths=(8,),
        threads=threads,
    )  # fmt: skip
    with open_checkpoint(folder) as checkpoint:
        plan = Watched(checkpoint, "tiny", chosen).plan()
    assert plan.passages is not None
    return found, plan.passages


def test_losses_are_those_of_the_residual_stream(tiny: tuple[Path, Any]) -> None:
    """Beside transformers' model with that one matrix rounded, after the layer that it is in."""
    import torch

    folder, model = tiny
    found, passages = losses(folder)
    text = passages[[0, len(passages) // 2]]
    with open_checkpoint(folder) as checkpoint:
        network = read_network(checkpoint, "tiny")
        spec, sources = network.spec(LENGTH), network.sources
    state = {name: value.detach().numpy() for name, value in model.named_parameters()}
    names = {path: sources[path].tensor for path in ROUNDED}
    parameters = {path: state[source.tensor] for path, source in sources.items()}
    weights = FloatWeights(parameters, are_precise=False)  # int4
    TextCalibration(spec, weights, text).run()

    layer, seen = model.model.layers[0], {}
    layer.post_attention_layernorm.register_forward_pre_hook(
        lambda _, given: seen.update(attention=given[0].numpy())
    )
    layer.register_forward_hook(lambda _module, _, given: seen.update(mlp=given.numpy()))

    def stream(block: str) -> np.ndarray:
        with torch.no_grad():
            model(torch.tensor(text))
        return seen[block]

    for path, name in names.items():
        block = path.split(".")[2]
        exact = stream(block)
        inputs, before = weights.inputs[path], state[name].copy()
        factors = np.ones(before.shape[1], np.float32) if inputs.factors is None else inputs.factors
        packed, scales = INT4_BLOCK32.pack(before * factors, importance=inputs.importance)
        state[name][:] = INT4_BLOCK32.widened(packed, scales) / factors
        noise = ((stream(block) - exact) ** 2).sum(-1) / (exact**2).sum(-1)
        state[name][:] = before
        assert found[path] == pytest.approx(noise.mean(), rel=0.01), path


def test_neither_threads_nor_blocks_change_them(
    tiny: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = losses(tiny[0], threads=1)
    monkeypatch.setattr("converter.weights.planned_weight.BLOCK_VALUES", 1 << 11)
    several, _ = losses(tiny[0], threads=3)
    assert several.keys() == one.keys()
    assert list(several.values()) == pytest.approx(list(one.values()), rel=1e-5)


@pytest.mark.parametrize("wider", [((INT8, 0.0),), ((INT6, 0.2), (INT8, 0.0))])
@pytest.mark.parametrize("bits", [4.5, 4.6, 5, 6.3, 7.9, 8.5, 12])
def test_the_budget_is_kept(bits: float, wider: tuple[tuple[Format, float], ...]) -> None:
    matrices = {
        str(i): Candidate((64 * (1 + i % 5), 96), INT4_BLOCK32, wider if i % 7 else ())
        for i in range(40)
    }
    losses = {path: 1 / (1 + int(path)) for path in matrices}
    chosen = choose(bits, matrices, losses)
    assert all(matrices[path].wider for path in chosen)
    forms = {path: chosen.get(path, INT4_BLOCK32) for path in matrices}
    taken = {path: nbits(matrices[path], form) for path, form in forms.items()}
    left = bits * sum(64 * (1 + i % 5) * 96 for i in range(40)) - sum(taken.values())
    assert left >= 0
    for path, matrix in matrices.items():  # nothing more fits
        known = [form for form, _ in matrix.wider]
        after = known[known.index(forms[path]) + 1 :] if path in chosen else known
        assert not after or nbits(matrix, after[0]) - taken[path] > left


def nbits(matrix: Candidate, form: Format) -> int:
    rows, columns = matrix.shape
    of_row = {INT4_BLOCK32: columns * 4 + columns // 32 * 16, INT6: columns * 6 + 64}
    return rows * of_row.get(form, columns * 8 + 32)


def test_the_one_that_loses_most_for_its_bytes_comes_first() -> None:
    small, large = (Candidate((rows, 64), INT4_BLOCK32, ((INT8, 0.0),)) for rows in (64, 640))
    matrices = {"large": large, "small": small}
    both = {"large": 5.0, "small": 1.0}
    assert choose(4.9, matrices, both) == {"small": INT8}
    assert choose(8.3, matrices, {**both, "large": 50.0}) == {"large": INT8}
    assert choose(9.0, matrices, both) == {"large": INT8, "small": INT8}
    with pytest.raises(OptionError, match=r"--bits 4.49, the matrices take 4.5 bits a weight"):
        choose(4.49, matrices, both)


def test_the_last_bits_of_one_wait_for_the_first_of_another() -> None:
    wider = (INT6, 0.2), (INT8, 0.0)
    matrices = {name: Candidate((64, 640), INT4_BLOCK32, wider) for name in ("more", "less")}
    losses = {"more": 3.0, "less": 1.0}
    assert choose(5.5, matrices, losses) == {"more": INT6}
    assert choose(6.2, matrices, losses) == {"more": INT6, "less": INT6}
    assert choose(7.2, matrices, losses) == {"more": INT8, "less": INT6}
    # Where the first loses far more, its last bits are worth more than another's first.
    assert choose(6.3, matrices, {**losses, "more": 50.0}) == {"more": INT8}


def test_more_bits_lose_less(tiny: tuple[Path, Any], tmp_path: Path) -> None:
    """In files, beside one in float; and none is larger than was said."""
    tokens = [list(range(5, 33))]

    def said(name: str, *options: str) -> np.ndarray:
        command = ["convert", str(tiny[0]), "--quiet", "--output-dir", str(tmp_path / name)]
        command += ["--kv-cache-max-len", "32", "--prefill-seq-len", "8", *options]
        assert main(command) == 0
        return np.stack(list(graph_logits(tmp_path / name / "tiny.litertlm", *tokens)))

    exact = said("float", "--quantize", "fp32")
    lost = [
        float(((said(bits, "--calibrate", "self", "--bits", bits) - exact) ** 2).mean())
        for bits in ("5.4", "6.5", "8.5")
    ]
    assert lost[0] > lost[1] > lost[2]


def test_the_receipt_makes_it_again(
    tiny: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["convert", str(tiny[0]), *SHORT, "--bits", "6", "--output-dir", str(tmp_path)]
    assert main([*command, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [said] = (line for line in lines if line.startswith("  bits of a weight: "))
    assert "  quantization: dynamic_int4,embedding=dynamic_int6_a16" in lines
    assert main([*command, "--quiet"]) == 0
    output = tmp_path / "tiny.litertlm"
    assert f"  bits of a weight: {read_bundle(output).system['bits of a weight']}" == said
    assert 5.9 < float(said.split()[4].rstrip(";")) <= 6
    capsys.readouterr()
    assert main(command) == 0  # what is there is kept, and what that is is said
    kept = f" by a text, {said.split()[4].rstrip(';')} bits a weight, with a context of 32 tokens"
    assert kept in capsys.readouterr().err
    paper = output.with_suffix(".json")
    assert read_receipt(paper)["options"]["bits"] == 6
    again = tmp_path / "again"
    assert main(["convert", "--from-receipt", str(paper), "--output-dir", str(again)]) == 0
    assert (again / output.name).read_bytes() == output.read_bytes()
    assert main(["convert", "--from-receipt", str(paper), "--bits", "7"]) == EXIT_USAGE


def test_check_says_its_size_without_a_look_at_weights(
    tiny: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SHORT, "--bits", "6"]
    assert main(["check", str(tiny[0]), *options, "--json"]) == 0
    first, *others = json.loads(capsys.readouterr().out)["sizes"]
    assert first["scheme"] == "dynamic_int4,embedding=dynamic_int6_a16 --bits 6"
    assert "dynamic_int4" in {size["scheme"] for size in others}
    output = convert(tiny[0], output_dir=tmp_path, calibrate="self", bits=6, quiet=True,
                     kv_cache_max_len=32, prefill_seq_len=8)  # fmt: skip
    [network] = (s for s in read_bundle(output).sections if s.kind == "TFLiteModel")
    assert first["bytes"] == pytest.approx(network.nbytes, rel=0.1)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (("--bits", "6"), "add --calibrate self"),
        (("--bits", "4.5", "--calibrate", "self"), "say --bits 5 or more, or a smaller scheme"),
        (("--bits", "many", "--calibrate", "self"), "is not a number of more than 0"),
        (("--bits", "0", "--calibrate", "self"), "is not a number of more than 0"),
        (("--bits", "nan", "--calibrate", "self"), "is not a number of more than 0"),
        (("--bits", "6", "--calibrate", "self", "--quantize", "int8"), "and nothing is, leave it"),
        (("--bits", "6", "--quantize", "dynamic_int8"), "and nothing is, leave it out"),
        (
            ("--bits", "9", "--calibrate", "self", "--quantize", "dynamic_int8"),
            "is spent on what --quantize has in int4 or int6, and nothing is",
        ),
        (("--bits", "6", "--target", "coreml"), "choose tables with --lut1"),
    ],
)
def test_budgets_that_cannot_be_kept(
    options: tuple[str, ...],
    why: str,
    tiny: tuple[Path, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["convert", str(tiny[0]), "--quiet", "--output-dir", str(tmp_path), *options]
    assert main(command) == EXIT_USAGE
    printed = capsys.readouterr().err
    assert why in printed
    assert printed.count("\n") == 1
    assert not list(tmp_path.iterdir())
