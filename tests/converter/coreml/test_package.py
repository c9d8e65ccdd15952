"""The folder and its model: what coremltools takes, and that the checks of these tests can fail."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from converter.coreml.blob import DType
from converter.coreml.package import MANIFEST, MODEL, WEIGHTS, manifest, model_message
from converter.coreml.program import Function
from converter.weights.palettes import Palette
from tests.converter.coreml.test_program import VALUES, columns
from tests.coreml_checks import check_model, check_package
from tests.coreml_interpreter import Package
from tests.coreml_models import Weights, write_package


def functions_of(weights: Weights) -> list[Function]:
    """Two that share a weight and a state."""
    made = []
    for name in ("infer", "prefill"):
        f = Function(name)
        x = f.add_input("x", (1, 6, 4), DType.FLOAT16)
        f.add_input("unused", (1,), DType.INT32)
        state = f.add_state("cache", (1, 6, 4))
        f.write_state(state, f.make_binary("add", f.read_state(state), x))
        y = f.make_layer_norm(f.read_state(state), 1e-6)
        f.add_output("y", f.make_conv(columns(f, y), weights(f, "w", (16, 6, 1, 1))))
        made.append(f)
    return made


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weights = Weights(VALUES, Palette(4, 8))
    folder = tmp_path_factory.mktemp("package") / "a.mlpackage"
    return write_package(folder, weights, functions_of(weights))


def test_a_package_is_taken_by_coremltools(package: Path) -> None:
    """Its own reader of packages, its loader of programs, and ours of what that one misses."""
    from coremltools.models import MLModel

    check_package(package)
    model = MLModel(str(package), skip_model_load=True)
    assert model.weights_dir is not None
    assert Path(model.weights_dir, "weight.bin").read_bytes() == (package / WEIGHTS).read_bytes()
    assert set(Package(package).functions) == {"infer", "prefill"}


def test_the_manifest_names_both_files(package: Path) -> None:
    content = json.loads((package / MANIFEST).read_text())
    entries = content["itemInfoEntries"]
    assert entries[content["rootModelIdentifier"]]["path"] == "com.apple.CoreML/model.mlmodel"
    assert len(entries) == 2
    for entry in entries.values():
        assert (package / "Data" / entry["path"]).exists()
    assert manifest(b"a") != manifest(b"b")


def test_the_same_model_has_the_same_bytes(package: Path) -> None:
    message = model_message(functions_of(Weights(VALUES, Palette(4, 8))), {}, {}, {})
    assert message == (package / MODEL).read_bytes()


def test_coremltools_writes_the_same_manifest(package: Path, tmp_path: Path) -> None:
    """It does whenever it opens a package; what was written must still be what its receipt says."""
    from coremltools.models import MLModel

    copy = Path(shutil.copytree(package, tmp_path / "a.mlpackage"))
    content = manifest((copy / MODEL).read_bytes())
    (copy / MANIFEST).write_bytes(content)
    changed = (copy / MANIFEST).stat().st_mtime_ns
    MLModel(str(copy), skip_model_load=True)
    assert (copy / MANIFEST).stat().st_mtime_ns > changed
    assert (copy / MANIFEST).read_bytes() == content


def test_flexible_inputs_metadata_and_described_shapes(tmp_path: Path) -> None:
    weights = Weights(VALUES)
    f = Function("main")
    ids = f.add_input("ids", (1, None), DType.INT32)
    f.add_output("rows", f.make_gather(weights(f, "w", (16, 6)), ids))
    folder = write_package(
        tmp_path / "a.mlpackage", weights, [f], {"ids": [(1, 1), (1, 8)]}, {"rows": ()}
    )
    check_package(folder)
    import coremltools

    description = coremltools.utils.load_spec(str(folder)).description
    array = description.input[0].type.multiArrayType
    assert list(array.shape) == [1, 1]
    assert [list(one.shape) for one in array.enumeratedShapes.shapes] == [[1, 1], [1, 8]]
    assert not description.output[0].type.multiArrayType.shape
    metadata = {"com.anemll.context_length": "64"}
    described = model_message([f], metadata, {"ids": [(1, 1)]}, {"rows": ()})
    model = coremltools.proto.Model_pb2.Model.FromString(described)
    assert model.description.metadata.userDefined == metadata


# That checks can fail ---------------------------------------------------------------------------

Mutate = Callable[[Any], Any]


def block(model: Any, name: str = "infer") -> Any:
    return model.mlProgram.functions[name].block_specializations["CoreML8"]


def operation(model: Any, kind: str) -> Any:
    return next(op for op in block(model).operations if op.type == kind)


def argument(model: Any, kind: str, name: str) -> Any:
    """The constant that an operation is given."""
    wanted = operation(model, kind).inputs[name].arguments[0].name
    return next(op for op in block(model).operations if op.outputs and op.outputs[0].name == wanted)


def retype(op: Any, dtype: int) -> None:
    """Another element type of a constant, which its result has, too."""
    op.outputs[0].type.tensorType.dataType = dtype
    op.attributes["val"].type.tensorType.dataType = dtype


def described(model: Any, kind: str) -> Any:
    return getattr(model.description.functions[1], kind)


def resize(array: Any) -> None:
    array.shape[0] += 1


def add_state(model: Any) -> None:
    """One more, that nothing reads or writes."""
    model.mlProgram.functions["infer"].inputs.add().CopyFrom(
        next(one for one in model.mlProgram.functions["infer"].inputs if one.name == "cache")
    )
    model.mlProgram.functions["infer"].inputs[-1].name = "other"
    state = model.description.functions[0].state
    state.add().CopyFrom(state[0])
    state[-1].name = "other"


# What coremltools' loader takes, though it is wrong.
MISSED: dict[str, Mutate] = {
    "an input is not described": lambda m: described(m, "input").pop(),
    "an input that is not there": lambda m: described(m, "input").add(name="other"),
    "an input of another shape": lambda m: resize(described(m, "input")[0].type.multiArrayType),
    "an output of another name": lambda m: setattr(described(m, "output")[0], "name", "z"),
    "an output of another type": lambda m: setattr(
        described(m, "output")[0].type.multiArrayType, "dataType", 131104
    ),
    "a state is not described": lambda m: described(m, "state").pop(),
    "a state of another shape": lambda m: resize(described(m, "state")[0].type.stateType.arrayType),
    "a function is not described": lambda m: m.description.functions.pop(),
    "another default function": lambda m: setattr(m.description, "defaultFunctionName", "prefill"),
    "no default function": lambda m: m.description.ClearField("defaultFunctionName"),
    "an operation without a name": lambda m: operation(m, "conv").attributes.pop("name"),
    "a table of another type": lambda m: setattr(
        operation(m, "constexpr_lut_to_dense").outputs[0].type.tensorType, "dataType", 23
    ),
    "a state that is not used": add_state,
    "a constant of another type": lambda m: setattr(
        argument(m, "conv", "groups").outputs[0].type.tensorType, "dataType", 10
    ),
}
# What one of both refuses.
WRONG: dict[str, Mutate] = {
    "a result of another shape": lambda m: setattr(
        operation(m, "conv").outputs[0].type.tensorType.dimensions[1].constant, "size", 17
    ),
    "a result of another type": lambda m: setattr(
        operation(m, "add").outputs[0].type.tensorType, "dataType", 23
    ),
    "an operation that there is not": lambda m: setattr(operation(m, "conv"), "type", "convv"),
    "an input is missing": lambda m: operation(m, "conv").inputs.pop("x"),
    "an epsilon of another type": lambda m: retype(argument(m, "layer_norm", "epsilon"), 22),
    "a value that is not made": lambda m: setattr(
        operation(m, "conv").inputs["x"].arguments[0], "name", "nobody"
    ),
    "a value that is made later": lambda m: block(m).operations.insert(
        0, block(m).operations.pop()
    ),
    "two values of a name": lambda m: block(m).operations.append(operation(m, "conv")),
    "a name that is none": lambda m: setattr(
        m.mlProgram.functions["infer"].inputs[0], "name", "a.b"
    ),
    "a record elsewhere": lambda m: setattr(
        operation(m, "constexpr_lut_to_dense").inputs["lut"].arguments[0].value.blobFileValue,
        "offset",
        128,
    ),
}


@pytest.mark.parametrize("mutation", MISSED)
def test_what_the_loader_misses_is_found(mutation: str, package: Path, tmp_path: Path) -> None:
    model = mutated(package, MISSED[mutation])
    load(model, package, tmp_path)
    with pytest.raises(AssertionError):
        check_model(model, (package / WEIGHTS).read_bytes())


@pytest.mark.parametrize("mutation", WRONG)
def test_what_is_wrong_is_found(mutation: str, package: Path, tmp_path: Path) -> None:
    model = mutated(package, WRONG[mutation])
    try:
        check_model(model, (package / WEIGHTS).read_bytes())
        load(model, package, tmp_path)
    except Exception as error:
        print(repr(error))
    else:
        pytest.fail("nobody minds")


def mutated(package: Path, mutate: Mutate) -> Any:
    import coremltools

    model = coremltools.utils.load_spec(str(package))
    before = model.SerializeToString(deterministic=True)
    mutate(model)
    assert model.SerializeToString(deterministic=True) != before
    return model


def load(model: Any, package: Path, folder: Path) -> None:
    """What the interpreter does."""
    weights = folder / "a.mlpackage" / WEIGHTS
    weights.parent.mkdir(parents=True)
    weights.write_bytes((package / WEIGHTS).read_bytes())
    (folder / "a.mlpackage" / MODEL).write_bytes(model.SerializeToString())
    (folder / "a.mlpackage" / MANIFEST).write_bytes((package / MANIFEST).read_bytes())
    Package(folder / "a.mlpackage")
