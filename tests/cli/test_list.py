"""`litert-lm-cli list`: what is in models/."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.main import main
from converter.litertlm.bundle import Section, lay_out


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("LITERT_LM_MODELS", str(folder))
    return folder


def add(path: Path, scheme: str | None, context: int | None) -> None:
    """A bundle that is all metadata."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2

    data = llm_metadata_pb2.LlmMetadata(max_num_tokens=context or 0).SerializeToString()
    sections = [Section("LlmMetadataProto", len(data), {})] if context else []
    layout = lay_out(sections, {"quantization": scheme} if scheme is not None else {})
    content = layout.header
    if context:
        content = content.ljust(layout.offsets[0], b"\0") + data
    path.parent.mkdir(parents=True)
    path.write_bytes(content)


def test_no_models(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    assert capsys.readouterr() == ("", "no models yet: try litert-lm-cli run demo\n")
    assert not models.exists()


def test_a_table_in_order(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add(models / "Qwen" / "Qwen3-0.6B" / "Qwen3-0.6B.litertlm", "fp16", 4096)
    add(models / "local" / "mine" / "mine.litertlm", "dynamic_int8", 1280)
    add(models / "org" / "x" / "x.litertlm", None, None)  # somebody else's
    # What was fetched as a source, and what is being written, are no models.
    add(models / "org" / "y" / "checkpoint" / "y.litertlm", "fp32", 1)
    add(models / "org" / "z" / ".z.litertlm", "fp32", 1)
    (models / "Qwen" / "Qwen3-0.6B" / "checkpoint").mkdir()
    (models / "Qwen" / "Qwen3-0.6B" / "checkpoint" / "config.json").write_bytes(bytes(1234))
    (models / "org" / "w.litertlm").mkdir()
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out == (
        "MODEL            SIZE     SCHEME        CONTEXT  CHECKPOINT\n"
        "Qwen/Qwen3-0.6B  16.4 kB  fp16          4096     1.2 kB\n"
        "local/mine       16.4 kB  dynamic_int8  1280     -\n"
        "org/x            88 B     -             0        -\n"
        "org/y            -        -             -        16.4 kB\n"
    )


def test_a_damaged_file_does_not_hide_the_others(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(models / "a" / "good" / "good.litertlm", "fp16", 4096)
    add(models / "b" / "bad" / "bad.litertlm", "fp16", 4096)
    bad = models / "b" / "bad" / "bad.litertlm"
    bad.write_bytes(bad.read_bytes()[:100])
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    assert printed.out == (
        "MODEL   SIZE     SCHEME  CONTEXT  CHECKPOINT\n"
        "a/good  16.4 kB  fp16    4096     -\n"
        "b/bad   damaged  -       -        -\n"
    )
    assert printed.err.startswith(f"litert-lm-cli: {bad}, damaged: its header claims to end at ")
    assert printed.err.count("\n") == 1


def test_what_a_model_says_cannot_drive_the_terminal(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(models / "a" / "x\x1b[2J\ny" / "m.litertlm", "\x1b]0;pwned\x07", 1)
    (models / "a" / "\x1b[31m").mkdir()
    (models / "a" / "\x1b[31m" / "m.litertlm").write_bytes(b"no")
    assert main(["list"]) == 0
    printed = capsys.readouterr()
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))
    assert printed.out.splitlines()[1:] == [
        "a/?[31m    damaged  -           -        -",
        "a/x?[2J?y  16.4 kB  ?]0;pwned?  1        -",
    ]
    assert printed.err.count("\n") == 1


def test_a_scheme_that_is_no_text(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The container allows numbers, too."""
    from litert_lm_builder import litertlm_builder as builder

    (models / "a" / "b").mkdir(parents=True)
    metadata = builder.Metadata("quantization", 8, builder.DType.INT32)
    with (models / "a" / "b" / "b.litertlm").open("wb") as file:
        builder.LitertLmFileBuilder().add_system_metadata(metadata).build(file)
    assert main(["list"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["a/b", "332", "B", "8", "0", "-"]
