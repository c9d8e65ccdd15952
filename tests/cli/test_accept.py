"""`convert --accept`: conditions as they are read, and a gate that leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.accept import Condition, parse_accept
from cli.main import main
from converter.errors import OptionError
from converter.receipt import read_receipt
from tests.tiny_models import make_checkpoint


def test_conditions_are_read() -> None:
    assert parse_accept("kl<=0.08") == (Condition("kl", 0.08),)
    assert parse_accept(" kl <= .5 ,agree>=85%,kl_99<=2,kl_median<=0.01,ppl<=40") == (
        Condition("kl", 0.5),
        Condition("agree", 0.85),
        Condition("kl_99", 2),
        Condition("kl_median", 0.01),
        Condition("ppl", 40),
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is no condition"),
        ("kl<=0.08,", "is no condition"),
        ("kl<0.08", "is no condition"),
        ("kl<=", "is no condition"),
        ("kl<=-1", "is no condition"),
        ("kl<=nan", "is no condition"),
        ("kl<=1e-2", "is no condition"),
        ("kl<=0.1 ppl<=3", "is no condition"),
        ("kl=0.08", "is no condition"),
        ("loss<=1", "loss is no figure: there are kl, kl_median, kl_99, ppl, agree"),
        ("kl>=0.08", "kl is better when it is less"),
        ("agree<=0.9", "agree is better when it is more"),
        ("kl<=0.1,kl<=0.2", "kl is there twice"),
        ("agree>=85", "agree is at most 1, or 100%"),
        ("kl<=8%", "kl is no share"),
        (f"ppl<={'9' * 400}", "is too large"),
    ],
)
def test_conditions_that_say_nothing_are_refused(text: str, why: str) -> None:
    with pytest.raises(OptionError) as refused:
        parse_accept(text)
    assert why in refused.value.why


def test_the_bound_itself_passes_and_what_is_no_number_does_not() -> None:
    assert Condition("kl", 0.1).holds(0.1)
    assert not Condition("kl", 0.1).holds(0.1001)
    assert Condition("agree", 0.9).holds(0.9)
    assert not Condition("agree", 0.9).holds(0.8999)
    assert not any(Condition(figure, 1).holds(float("nan")) for figure in ("kl", "agree"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accept") / "tiny"
    make_checkpoint("qwen3", folder)
    return folder


def test_a_gate(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "out"
    command = ["convert", str(source), "--output-dir", str(folder), "--quantize", "dynamic_int4"]
    # Of random weights every distribution is nearly flat, and so is the one of four bits.
    assert main([*command, "--accept", "agree>=100%,kl<=1"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    *_, last = printed.err.splitlines()
    assert last.startswith(f"error: {folder}/tiny.litertlm, its share of the same likeliest token ")
    assert last.endswith(
        "and --accept wants at least 1, "
        "nothing was written, add --calibrate self, or choose a wider --quantize"
    )
    assert not folder.parent.exists()

    assert main([*command, "--accept", "kl<=1,ppl<=1000", "--quiet"]) == 0
    assert capsys.readouterr().out == f"{folder}/tiny.litertlm\n"
    made = (folder / "tiny.litertlm").read_bytes()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["tiny.json", "tiny.litertlm"]
    noted = read_receipt(folder / "tiny.json")["accept"]
    assert list(noted) == ["kl<=1", "ppl<=1000"]
    assert 0 < noted["kl<=1"] < 1 < noted["ppl<=1000"] < 1000

    # What is there stays, whether it is kept or would be replaced.
    for more in ([], ["--force"]):
        assert main([*command, "--accept", "kl<=0", *more]) == 1
        printed = capsys.readouterr()
        assert "its KL divergence is " in printed.err
        assert ("it was there before and is kept" in printed.err) is not bool(more)
        assert (folder / "tiny.litertlm").read_bytes() == made
        assert sorted(path.name for path in folder.iterdir()) == names


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--accept", "kl<0.1"], "error: --accept kl<0.1, is no condition, as in kl<=0.08,agree>="),
        (["--accept", "kl<=1", "--dry-run"], "error: --accept, has no effect with --dry-run, "),
        (["--accept", "kl<=1", "--target", "coreml"], "error: --accept, the engine runs no pack"),
    ],
)
def test_before_any_work(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    assert main(["convert", str(source), "--output-dir", str(tmp_path / "out"), *more]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_converted_model_has_no_source(
    source: Path, qwen3_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(qwen3_bundle), "--accept", "kl<=1"]) == 2
    assert "it is converted already" in capsys.readouterr().err
