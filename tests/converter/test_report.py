"""The plan as numbers, held against what a conversion then does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cli.obtain import open_checkpoint
from converter.base import ModelConverter
from converter.checkpoint.base import Checkpoint
from converter.errors import OutputError
from converter.litertlm.inspection import read_bundle
from converter.options import ConvertOptions
from converter.report import PlanReport, disk_free, report, weights_bytes
from converter.weights.quantization import SCHEMES
from tests.tiny_models import TINY_CONFIGS, make_checkpoint

ROOT = Path(__file__).parents[2]
# Blocks of 128 do not divide these rows; a mixture is of the others.
ONE_FORMAT = [s for s in SCHEMES if s not in ("dynamic_int4_block128", "dynamic_int4_mixed")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    for name in TINY_CONFIGS:
        make_checkpoint(name, folder / name)
    return folder


def reported(source: Path, output: Path, **options: Any) -> tuple[PlanReport, int]:
    """The report of a conversion, and the bytes that its progress then added up to."""
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count

    with open_checkpoint(source) as checkpoint:
        converter = ModelConverter(checkpoint, source.name, ConvertOptions(**options))
        plan = converter.plan()
        before = report(converter, plan, output)
        converter.write(plan, output, progress)
    return before, done


@pytest.mark.parametrize("scheme", ONE_FORMAT)
@pytest.mark.parametrize("name", TINY_CONFIGS)
def test_the_numbers_are_those_of_the_conversion(
    checkpoints: Path, tmp_path: Path, name: str, scheme: str
) -> None:
    output = tmp_path / "m.litertlm"
    before, done = reported(checkpoints / name, output, quantize=scheme, prefill_lengths=(8, 32))
    assert before.weights_bytes == done
    assert before.output_bytes == before.disk_needed_bytes == output.stat().st_size
    assert not before.output_exists
    assert before.source_bytes < (checkpoints / name / "model.safetensors").stat().st_size
    assert sum(group.bytes for group in before.tensors) == before.weights_bytes
    bundle = read_bundle(output)
    assert before.signatures == bundle.model.signatures
    assert (before.model, before.family, before.scheme) == (
        name, bundle.system["family"], bundle.system["quantization"],
    )  # fmt: skip
    for dtype in {group.dtype for group in before.tensors} - {"float32"}:  # constants are float32
        packed = sum(group.bytes for group in before.tensors if group.dtype == dtype)
        stored = {"int4": ("int4", "float16"), "int6": ("int4", "int2")}.get(dtype, (dtype,))
        assert packed == sum(bundle.model.weight_bytes[part] for part in stored)


def test_kinds_of_tensors(checkpoints: Path, tmp_path: Path) -> None:
    before, _ = reported(checkpoints / "llama-biases", tmp_path / "m.litertlm")
    assert [(g.kind, g.dtype, g.count, g.bytes) for g in before.tensors] == [
        ("embedding", "int8", 1, 320 * 64),
        ("norm", "float32", 5, 5 * 64 * 4),
        ("linear", "int8", 14, 2 * (64 * 64 * 2 + 2 * 32 * 64 + 3 * 96 * 64)),
        ("bias", "float32", 14, 2 * 4 * (64 + 32 + 32 + 64 + 96 + 96 + 64)),
        ("head", "int8", 1, 320 * 64),
    ]
    tied, _ = reported(checkpoints / "qwen2-tied", tmp_path / "m2.litertlm", quantize="fp16")
    assert [(g.kind, g.dtype, g.count) for g in tied.tensors] == [
        ("embedding", "float16", 1), ("norm", "float32", 5), ("linear", "float16", 14),
        ("bias", "float32", 6),
    ]  # fmt: skip


def test_no_weight_is_read(
    checkpoints: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Checkpoint, *_: object) -> None:
        raise AssertionError("a weight was read")

    with open_checkpoint(checkpoints / "llama") as checkpoint:
        monkeypatch.setattr(type(checkpoint), "read_rows", refuse)
        converter = ModelConverter(checkpoint, "llama", ConvertOptions(threads=3))
        plan = converter.plan()
        value = report(converter, plan, tmp_path / "no" / "m.litertlm")
    assert value.threads == 3
    assert weights_bytes(plan) == value.weights_bytes
    assert json.loads(json.dumps(value.as_json())) == value.as_json() | {
        "prefill_lengths": list(value.prefill_lengths)
    }
    assert list(tmp_path.iterdir()) == []


def test_source_bytes_of_a_gguf(smollm2_gguf: Path, tmp_path: Path) -> None:
    """All but the header, to the padding between tensors."""
    with open_checkpoint(smollm2_gguf) as checkpoint:
        converter = ModelConverter(checkpoint, "m", ConvertOptions())
        value = report(converter, converter.plan(), tmp_path / "m.litertlm")
    assert 0.97 < value.source_bytes / smollm2_gguf.stat().st_size < 1


def test_free_space_is_that_of_the_nearest_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    disk_usage = os.statvfs

    def record(path: Path) -> Any:
        asked.append(path)
        return type("Usage", (), {"free": disk_usage(path).f_bavail})

    monkeypatch.setattr("shutil.disk_usage", record)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for output, folder in (
        (tmp_path / "a" / "b" / "m", tmp_path),
        (tmp_path / "m", tmp_path),
        (tmp_path / "file" / "m", tmp_path / "file"),
        (Path("new/m"), Path(".")),
        (Path("/none/m"), Path("/")),
    ):
        disk_free(output)
        assert asked.pop() == folder


def test_a_disk_that_does_not_say_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shutil.disk_usage", fail)
    with pytest.raises(OutputError) as caught:
        disk_free(tmp_path / "m")
    assert str(caught.value) == (
        f"{tmp_path / 'm'}, Input/output error, choose another folder with --output-dir"
    )


_MEASURED = """
import json, re, resource, sys
from cli.main import main
assert main(["convert", "--quiet", *sys.argv[1:]]) == 0
# Not its ru_maxrss: that begins with what the process that started this one held.
[own] = re.findall(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
helper = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(json.dumps([int(own) * 1024, helper * 1024]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the estimate was measured on Linux")
@pytest.mark.parametrize("model", ["llama", "smollm2_gguf", "gemma3_gguf"])
def test_memory_is_about_what_a_conversion_takes(
    checkpoints: Path, tmp_path: Path, request: pytest.FixtureRequest, model: str
) -> None:
    """At least the larger of the two processes; at most both, which have pages in common."""
    source = checkpoints / model if model == "llama" else request.getfixturevalue(model)

    with open_checkpoint(source) as checkpoint:
        converter = ModelConverter(checkpoint, "m", ConvertOptions())
        estimate = report(converter, converter.plan(), tmp_path / "m").memory_bytes
    command = [sys.executable, "-c", _MEASURED, str(source), "--output-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=60, check=True)
    peaks = json.loads(done.stdout.splitlines()[-1])
    assert 0.9 * max(peaks) < estimate < 1.1 * sum(peaks), peaks
