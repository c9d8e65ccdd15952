"""Packages read back: what was planned, and damaged ones, which are refused in words."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from cli.inspect import folder_as_json, package_as_json
from converter.checkpoint.safetensors import open_folder
from converter.coreml.inspection import (
    FunctionSummary,
    Meta,
    Storage,
    TensorSummary,
    packages_of,
    read_meta,
    read_package,
)
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS
from converter.coreml.schema import Model
from converter.coreml_options import CoreMLOptions
from converter.coreml_pipeline import CoreMLConverter, CoreMLPlan
from converter.errors import SourceError
from converter.weights.palettes import Palette
from tests.tiny_models import make_checkpoint


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CoreMLPlan]:
    """Gemma 3 with full windows: four functions a package, and two states."""
    folder = tmp_path_factory.mktemp("inspection")
    make_checkpoint("gemma3", folder / "gemma3")
    config = json.loads((folder / "gemma3/config.json").read_text())
    config["text_config"]["sliding_window"] = 32  # a cache that the Neural Engine takes
    (folder / "gemma3/config.json").write_text(json.dumps(config))
    options = CoreMLOptions(
        context=96, batch=16, lut_embeddings=Palette(8, 0), lut_layers=Palette(4, 16)
    )
    with open_folder(folder / "gemma3") as checkpoint:
        plan = CoreMLConverter(checkpoint, "tiny", options).convert(folder / "packages")
    return folder / "packages", plan


@pytest.fixture
def packages(converted: tuple[Path, CoreMLPlan], tmp_path: Path) -> Path:
    """A copy."""
    return Path(shutil.copytree(converted[0], tmp_path / "packages"))


# Sound packages -----------------------------------------------------------------------------------


def test_what_was_planned_is_what_is_read(converted: tuple[Path, CoreMLPlan]) -> None:
    folder, plan = converted
    meta = read_meta(folder)
    assert meta.name == "anemll-tiny-ctx96"
    assert (meta.scheme, meta.context) == ("lut8/lut4/lut6", 96)
    assert (
        meta.parameters
        == yaml.safe_load((folder / "meta.yaml").read_text("utf-8"))["model_info"]["parameters"]
    )
    paths = packages_of(folder, meta)
    assert [path.name for path in paths] == [part.folder for part in plan.parts]
    found = [read_package(path) for path in paths]
    assert [package.nbytes for package in found] == [part.nbytes for part in plan.parts]
    for package, part in zip(found, plan.parts, strict=True):
        assert [f.name for f in package.functions] == [f.name for f in part.functions]
        for summary, function in zip(package.functions, part.functions, strict=True):
            for read, tensors in (
                (summary.inputs, function.inputs),
                (summary.outputs, function.outputs),
                (summary.states, function.states),
            ):
                assert [(t.name, t.shape, t.dtype) for t in read] == [
                    (t.name, t.shape, t.dtype.name.lower()) for t in tensors
                ]
        records = sum(record.nbytes for record in part.layout.records)
        assert sum(package.weight_bytes.values()) == records
        assert package.specification == 9
        assert package.metadata["com.anemll.context_length"] == "96"


def test_functions_and_choices(converted: tuple[Path, CoreMLPlan]) -> None:
    embeddings, layers, *_ = map(read_package, packages_of(converted[0], read_meta(converted[0])))
    hidden = converted[1].spec.hidden_size
    ids = TensorSummary("input_ids", (1, None), "int32", ((1, 1), (1, 16)))
    rows = TensorSummary("hidden_states", (1, None, hidden), "float16")
    assert embeddings.functions == (FunctionSummary("main", (ids,), (rows,), ()),)
    names = [function.name for function in layers.functions]
    assert names == ["infer", "prefill", "infer_rotate", "prefill_rotate"]
    states = {state.name for state in layers.functions[0].states}
    assert states == {"model_model_kv_cache_local", "model_model_kv_cache_global"}


def test_how_weights_are_stored(converted: tuple[Path, CoreMLPlan]) -> None:
    folder, plan = converted
    embeddings, *layers, head = (read_package(p) for p in packages_of(folder, read_meta(folder)))
    lut = "constexpr_lut_to_dense"
    rows, width = plan.spec.vocab_size, plan.spec.hidden_size
    whole = Storage("matrices", "float16", lut, 8, 0)
    assert embeddings.counts == {whole: 1}
    assert embeddings.weight_bytes == {whole: rows * width + 2 * 256}
    counts: Counter[Storage] = Counter()
    for package in layers:
        counts.update(package.counts)
    of_layers = [weight for weight in plan.weights if weight.path.startswith("layers.")]
    matrices = [weight for weight in of_layers if len(weight.shape) > 1]
    packed = sum(isinstance(weight.format, Palette) for weight in matrices)
    assert counts.pop(Storage("matrices", "float16", lut, 4, 16)) == packed > 0
    assert counts.pop(Storage("matrices", "float16"), 0) == len(matrices) - packed
    # The final norm is in the last chunk.
    assert counts.pop(Storage("vectors", "float16")) == len(of_layers) - len(matrices) + 1
    tables = sum(len(part.constants) for part in plan.parts)
    assert counts.pop(Storage("rope tables", "float16")) == tables == 2 + 4  # of one base, and both
    assert not counts
    assert sum(head.counts.values()) == len(plan.interface.head_parts)


def test_another_writers_types_and_constants(packages: Path) -> None:
    """ANEMLL's have float32 in Qwen 2.5, and tables may be constants of their own."""
    [path] = packages.glob("*_embeddings_*.mlpackage")
    model = Model.FromString((path / MODEL).read_bytes())
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    op = next(one for one in block.operations if one.type == "constexpr_lut_to_dense")
    moved = block.operations.add(type="const")
    moved.attributes["val"].CopyFrom(op.inputs["lut"].arguments[0].value)
    moved.outputs.add(name="tables", type=moved.attributes["val"].type)
    op.inputs["lut"].arguments[0].ClearField("value")
    op.inputs["lut"].arguments[0].name = "tables"
    block.operations.insert(0, block.operations.pop())
    block.operations[-1].outputs[0].type.tensorType.dataType = 11
    (path / MODEL).write_bytes(model.SerializeToString())
    package = read_package(path)
    assert Storage("matrices", "float16", "constexpr_lut_to_dense", 8, 0) in package.counts
    assert package.functions[0].outputs[0].dtype == "float32"


# Damaged packages ---------------------------------------------------------------------------------


def refused(path: Path) -> str:
    read = read_package if path.suffix in (".mlpackage", ".mlmodelc") else folder_as_json
    with pytest.raises(SourceError) as caught:
        read(path)
    assert str(caught.value).isprintable()
    return str(caught.value)


def rewritten(path: Path, change: Callable[[Model], object]) -> None:
    model = Model.FromString((path / MODEL).read_bytes())
    change(model)
    (path / MODEL).write_bytes(model.SerializeToString())


def blob_of(model: Model) -> Model:
    block = model.mlProgram.functions["main"].block_specializations["CoreML8"]
    op = next(one for one in block.operations if one.type == "constexpr_lut_to_dense")
    return op.inputs["indices"].arguments[0].value


MANIFESTS = [
    b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'{"rootModelIdentifier": []}',
    *(
        json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": path}}}).encode()
        for path in ("../../x", "/etc/x", 5)
    ),
]  # fmt: skip


@pytest.mark.parametrize("content", MANIFESTS, ids=range(len(MANIFESTS)))
def test_manifests_that_name_no_model(content: bytes, packages: Path) -> None:
    path = next(packages.glob("*_lm_head_*.mlpackage"))
    (path / MANIFEST).write_bytes(content)
    assert f"{path / MANIFEST}, damaged: it names no model, convert the model again" in refused(
        path
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: m.ClearField("mlProgram"), "it is a model of Core ML's, but no ML Program"),
        (lambda m: setattr(blob_of(m).blobFileValue, "fileName", "/etc/passwd"), "its program"),
        (
            lambda m: setattr(blob_of(m).blobFileValue, "offset", (1 << 64) - 1),
            "weight.bin, damaged: it ends after 21184 bytes, in or before the record at "
            "18446744073709551615",
        ),
        (
            lambda m: setattr(blob_of(m).blobFileValue, "offset", 128),
            "weight.bin, damaged: it has no 20480 bytes of uint8 at 128, as the program says",
        ),
        (
            lambda m: setattr(blob_of(m).type.tensorType, "dataType", 35),
            "weight.bin, damaged: it has no 10240 bytes of uint4 at 64, as the program says",
        ),
        (lambda m: setattr(blob_of(m).type.tensorType, "dataType", 99), "its program cannot be"),
        (lambda m: setattr(m.mlProgram.functions["main"], "opset", "CoreML7"), "its program"),
        (lambda m: m.mlProgram.functions["main"].inputs[0].ClearField("type"), "its program"),
    ],
)
def test_models_that_cannot_be(
    change: Callable[[Model], object], said: str, packages: Path
) -> None:
    path = next(packages.glob("*_embeddings_*.mlpackage"))
    rewritten(path, change)
    assert said in refused(path)


METAS = [
    "", "model_info", "model_info: {}", "model_info: {parameters: 5}", "a: [", "\x00",
    "model_info: {parameters: {a: {b: c}}}", "model_info: {parameters: {a: [[1]]}}",
    "model_info: {parameters: {a: .nan}}", "model_info: {parameters: {a: 0x" + "f" * 99 + "}}",
    "model_info: {name: [[]], parameters: {}}", "- " * 5000,
    "a: &a [x, x]\nb: &b [*a, *a]\nmodel_info: {parameters: {c: [*b, *b]}}",
    "model_info: !!python/object/apply:os.system [true]",
]  # fmt: skip


@pytest.mark.parametrize("text", METAS, ids=range(len(METAS)))
def test_damaged_meta(text: str, packages: Path) -> None:
    (packages / "meta.yaml").write_text(text)
    assert refused(packages) == (
        f"{packages / 'meta.yaml'}, damaged: it is not what ANEMLL's runtimes read, "
        "convert the model again"
    )


def test_what_is_not_there(packages: Path) -> None:
    path = next(packages.glob("*_lm_head_*.mlpackage"))
    (packages / "meta.yaml").write_bytes(b"#" * 70_000)
    assert "damaged: it has more than 65536 bytes" in refused(packages)
    (packages / "meta.yaml").unlink()
    assert f"{packages / 'meta.yaml'}, it is missing, pass a .mlpackage" in refused(packages)
    weights = path / WEIGHTS
    os.truncate(weights, 5000)
    assert f"{weights}, damaged: it ends after 5000 bytes, in or before the record at" in refused(
        path
    )
    weights.unlink()
    assert f"{weights}, damaged: it is missing, and the program has weights in it" in refused(path)
    (path / MODEL).unlink()
    os.mkfifo(path / MODEL)
    assert "model.mlmodel, it is no file" in refused(path)
    (packages / "a.mlmodelc").mkdir()
    assert "it is compiled, for Apple's systems alone" in refused(packages / "a.mlmodelc")


def test_a_package_that_is_named_and_missing(packages: Path) -> None:
    meta = read_meta(packages)
    first, *_, last = (packages / f"{name}.mlpackage" for name in meta.packages)
    shutil.rmtree(last)
    said = f"{last}, it is missing, and meta.yaml names it, convert the model again"
    assert refused(packages) == said
    first.rename(first.with_suffix(".mlmodelc"))
    shutil.copytree(packages / f"{meta.packages[1]}.mlpackage", last)
    assert packages_of(packages, meta)[0].suffix == ".mlmodelc"
    assert f"{first.with_suffix('.mlmodelc')}, it is compiled" in refused(packages)


@pytest.mark.parametrize(
    "said", [{}, {"num_chunks": "2"}, {"ffn": 3}, {"embeddings": "../x"}, {"lm_head": "/x"}]
)
def test_meta_that_names_no_packages(said: dict[str, Any]) -> None:
    sound = {"embeddings": "a.mlmodelc", "num_chunks": 2, "ffn": "b_chunk_01of02.mlmodelc",
             "lm_head": "c.mlmodelc"}  # fmt: skip
    named = ("a", "b_chunk_01of02", "b_chunk_02of02", "c")
    assert Meta("", sound | said).packages == (() if said else named)
    assert len(Meta("", sound | {"num_chunks": 1 << 40}).packages) == 101


@pytest.mark.parametrize("name", [MANIFEST, MODEL, WEIGHTS, "../meta.yaml"])
def test_random_damage_is_refused_or_harmless(name: str, packages: Path) -> None:
    """Cut off, overwritten or flipped anywhere: a description or a SourceError, nothing else."""
    path = next(packages.glob("*_embeddings_*.mlpackage"))
    file = path / name
    sound = file.read_bytes()
    rng = np.random.default_rng(len(sound))
    refusals = 0
    for round_ in range(90):
        content = bytearray(sound)
        at = int(rng.integers(128 if name == WEIGHTS else len(content)))  # of weights, the heads
        if round_ % 3 == 0:
            del content[at:]
        elif round_ % 3 == 1:
            content[at : at + 8] = rng.bytes(8)
        else:
            content[at] ^= 1 << int(rng.integers(8))
        file.write_bytes(content)
        try:
            package_as_json(read_package(path))
            read_meta(packages)
        except SourceError:
            refusals += 1
    assert 20 < refusals < 90
