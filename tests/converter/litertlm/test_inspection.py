"""Bundles read back: ours, the official builder's, and damaged ones, which are refused in words."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from litert_lm_builder import litertlm_builder
from litert_lm_builder.runtime.proto import llm_metadata_pb2

from cli.inspect import as_json
from cli.obtain import open_checkpoint
from converter.base import ModelConverter, Plan
from converter.errors import SourceError
from converter.litertlm.bundle import Section, lay_out
from converter.litertlm.inspection import Bundle, TensorSummary, read_bundle
from converter.options import ConvertOptions
from tests.tiny_models import make_checkpoint

AGAIN = "convert or download it again"


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Plan]:
    folder = tmp_path_factory.mktemp("inspection")
    make_checkpoint("llama", folder / "llama")
    path = folder / "tiny.litertlm"
    options = ConvertOptions(prefill_lengths=(8, 16), cache_length=32)
    with open_checkpoint(folder / "llama") as checkpoint:
        plan = ModelConverter(checkpoint, "tiny", options).convert(path)
    return path, plan


@pytest.fixture(scope="module")
def content(converted: tuple[Path, Plan]) -> bytes:
    return converted[0].read_bytes()


@pytest.fixture
def attempt(tmp_path: Path) -> Callable[[bytes], Bundle | SourceError]:
    """Reads a file of these bytes, all of it; whatever is not a SourceError fails the test."""
    path = tmp_path / "x.litertlm"

    def read(data: bytes) -> Bundle | SourceError:
        path.write_bytes(data)
        try:
            bundle = read_bundle(path)
            as_json(bundle)  # reads metadata and model
            assert bundle.nbytes == len(data)
            return bundle
        except SourceError as refused:
            error = refused
        assert str(error).startswith(f"{path}, ")
        assert str(error).isprintable()
        return error

    return read


def damaged(path: Path, why: str) -> str:
    return f"{path}, damaged: {why}, {AGAIN}"


# Sound files -------------------------------------------------------------------------------------


def test_what_was_planned_is_what_is_read(converted: tuple[Path, Plan]) -> None:
    path, plan = converted
    bundle = read_bundle(path)
    assert bundle.nbytes == plan.bundle.nbytes == path.stat().st_size
    assert bundle.system == {
        "producer": "litert-lm-cli 0.1.0",
        "model": "tiny",
        "family": "llama",
        "quantization": "dynamic_int8_a16",
        "target": "cpu",
        "KV cache": "fp32",
        "chat template": "none, the source has none",
        **{f"{part} weights": "F32 -> int8" for part in ("embedding", "attention", "ffn", "head")},
    }
    assert [(s.kind, s.offset, s.nbytes, s.items) for s in bundle.sections] == [
        (section.kind, offset, section.nbytes, section.items)
        for (section, _), offset in zip(plan.sections, plan.bundle.offsets, strict=True)
    ]
    assert [s.kind for s in bundle.sections] == [
        "TFLiteModel",
        "LlmMetadataProto",
        "ExecutorMetadataProto",
        "HF_Tokenizer_Zlib",
    ]
    assert bundle.metadata == plan.metadata.message


def test_signatures_and_weights(converted: tuple[Path, Plan]) -> None:
    model = read_bundle(converted[0]).model
    signatures = {signature.name: signature for signature in model.signatures}
    assert list(signatures) == ["prefill_8", "prefill_16", "decode"]
    caches = [
        TensorSummary(f"kv_cache_{cache}_{layer}", shape, "float32")
        for layer in range(2)
        for cache, shape in (("k", [1, 2, 32, 16]), ("v", [1, 2, 32, 16]))
    ]

    def by_name(tensors: list[TensorSummary]) -> list[TensorSummary]:
        return sorted(tensors, key=lambda tensor: tensor.name)

    for name, length in (("prefill_8", 8), ("prefill_16", 16), ("decode", 1)):
        assert by_name(signatures[name].inputs) == by_name(
            [
                TensorSummary("tokens", [1, length], "int32"),
                TensorSummary("input_pos", [length], "int32"),
                *caches,
            ]
        )
        logits = [TensorSummary("logits", [1, 1, 320], "float32")] if name == "decode" else []
        assert by_name(signatures[name].outputs) == by_name([*caches, *logits])
    # two layers of q, k, v, o and the three of the feed-forward, the embedding and the head
    layer = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 96
    assert model.weight_bytes["int8"] == 2 * layer + 2 * 320 * 64
    assert model.weight_bytes["float32"] >= 4 * 5 * 64  # the norms, and constants


def test_a_bundle_of_the_official_builder(tmp_path: Path) -> None:
    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=99)
    (tmp_path / "m.pb").write_bytes(metadata.SerializeToString())
    (tmp_path / "s.model").write_bytes(b"sp")
    dtypes = litertlm_builder.DType
    values = {
        "text": ("größe", dtypes.STRING),
        "int": (-5, dtypes.INT32),
        "large": (2**63, dtypes.UINT64),
        "yes": (True, dtypes.BOOL),
        "half": (0.5, dtypes.FLOAT32),
    }
    builder = litertlm_builder.LitertLmFileBuilder()
    for key, (value, dtype) in values.items():
        builder.add_system_metadata(litertlm_builder.Metadata(key, value, dtype))
    builder.add_llm_metadata(str(tmp_path / "m.pb"))
    builder.add_sentencepiece_tokenizer(str(tmp_path / "s.model"))
    path = tmp_path / "official.litertlm"
    with path.open("wb") as file:
        builder.build(file)

    bundle = read_bundle(path)
    system = dict(bundle.system)
    assert len(system.pop("uuid")) == 36
    assert system.pop("creation_timestamp").startswith("20")
    assert system == {key: value for key, (value, _) in values.items()}
    assert [(s.kind, s.offset, s.nbytes) for s in bundle.sections] == [
        ("LlmMetadataProto", 16384, len(metadata.SerializeToString())),
        ("SP_Tokenizer", 32768, 2),
    ]
    assert bundle.metadata == metadata
    assert bundle.model.signatures == []  # there is no model in it
    assert bundle.section("TFLiteModel") is None


def test_a_bundle_without_metadata(tmp_path: Path) -> None:
    layout = lay_out([Section("GenericBinaryData", 2, {})], {})
    path = tmp_path / "x.litertlm"
    path.write_bytes(layout.header.ljust(layout.offsets[0], b"\0") + b"ab")
    bundle = read_bundle(path)
    assert bundle.system == {}
    assert bundle.metadata == llm_metadata_pb2.LlmMetadata()
    assert bundle.model.weight_bytes == {}


# Refusals ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [b"", b"LITERTLM", b"GGUF" + bytes(100), b"LITERTLN" + bytes(100), b"PK\x03\x04" * 20],
    ids=["empty", "short", "gguf", "nearly", "zip"],
)
def test_not_a_bundle(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.litertlm"
    path.write_bytes(data)
    with pytest.raises(SourceError) as caught:
        read_bundle(path)
    fix = "convert a model with litert-lm-cli convert"
    assert str(caught.value) == f"{path}, not a .litertlm file, {fix}"


def test_no_such_file_and_a_folder(tmp_path: Path) -> None:
    fix = "check the path and its permissions"
    for path, why in (
        (tmp_path / "none", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(SourceError) as caught:
            read_bundle(path)
        assert str(caught.value) == f"{path}, {why}, {fix}"


@pytest.mark.parametrize("end", [0, 32, 1 << 25, 1 << 63])
def test_a_header_that_ends_nowhere(tmp_path: Path, content: bytes, end: int) -> None:
    path = tmp_path / "x.litertlm"
    path.write_bytes(content[:24] + end.to_bytes(8, "little") + content[32:])
    with pytest.raises(SourceError) as caught:
        read_bundle(path)
    why = f"its header claims to end at byte {end} of {len(content)}"
    assert str(caught.value) == damaged(path, why)


def test_the_file_ends_within_a_section(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.litertlm"
    path.write_bytes(content[:-1])
    with pytest.raises(SourceError) as caught:
        read_bundle(path)
    begin = len(content) // 16384 * 16384
    why = f"section HF_Tokenizer_Zlib claims bytes {begin} to {len(content)}, the file has "
    assert str(caught.value) == damaged(path, f"{why}{len(content) - 1}")


@pytest.mark.parametrize("begin", [16, 16393])
def test_a_section_within_the_header_or_backwards(tmp_path: Path, begin: int) -> None:
    layout = lay_out([Section("GenericBinaryData", 8, {})], {})
    moved = layout.header.replace((16384).to_bytes(8, "little"), begin.to_bytes(8, "little"))
    assert moved != layout.header
    path = tmp_path / "x.litertlm"
    path.write_bytes(moved.ljust(layout.nbytes, b"\0"))
    with pytest.raises(SourceError) as caught:
        read_bundle(path)
    why = f"section GenericBinaryData claims bytes {begin} to 16392, the file has 16392"
    assert str(caught.value) == damaged(path, why)


def test_metadata_that_cannot_be_parsed(
    tmp_path: Path, converted: tuple[Path, Plan], content: bytes
) -> None:
    section = read_bundle(converted[0]).section("LlmMetadataProto")
    assert section is not None
    path = tmp_path / "x.litertlm"
    path.write_bytes(
        content[: section.offset] + b"\xff" * section.nbytes + content[section.offset :]
    )
    with pytest.raises(SourceError) as caught:
        read_bundle(path).metadata  # noqa: B018 - reading it is the test
    assert str(caught.value) == damaged(path, "its LlmMetadata cannot be parsed")


def test_a_model_that_cannot_be_parsed(
    tmp_path: Path, converted: tuple[Path, Plan], content: bytes
) -> None:
    section = read_bundle(converted[0]).section("TFLiteModel")
    assert section is not None
    path = tmp_path / "x.litertlm"
    for bad in (b"\xff" * 64, bytes(64)):
        path.write_bytes(content[: section.offset] + bad + content[section.offset + 64 :])
        bundle = read_bundle(path)  # the header is sound
        with pytest.raises(SourceError) as caught:
            bundle.model  # noqa: B018
        assert str(caught.value) == damaged(path, "its TFLite model cannot be parsed")


def test_truncated_anywhere(
    content: bytes, attempt: Callable[[bytes], Bundle | SourceError]
) -> None:
    end = int.from_bytes(content[24:32], "little")
    rng = np.random.default_rng(0)
    lengths = [*range(40), *range(40, end, 7), end - 1, end, end + 1]
    lengths += [int(n) for n in rng.integers(end, len(content), 60)]
    for length in lengths:
        assert isinstance(attempt(content[:length]), SourceError), length
    assert isinstance(attempt(content), Bundle)


@pytest.mark.parametrize("seed", range(4))
def test_random_changes(
    converted: tuple[Path, Plan],
    content: bytes,
    attempt: Callable[[bytes], Bundle | SourceError],
    seed: int,
) -> None:
    """Some change nothing that matters; none may end in anything but a refusal."""
    rng = np.random.default_rng(seed)
    end = int.from_bytes(content[24:32], "little")
    sections = {s.kind: s for s in read_bundle(converted[0]).sections}
    model, metadata = sections["TFLiteModel"], sections["LlmMetadataProto"]
    tables = model.offset + len(converted[1].model.flatbuffer)
    places = [(8, end), (model.offset, tables), (metadata.offset, metadata.offset + 60)]
    refused = 0
    for index in range(150):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 60)):
            value = int(rng.choice([0, 1, 127, 128, 255, rng.integers(256)]))
            changed[rng.integers(*places[index % 3])] = value
        refused += isinstance(attempt(bytes(changed)), SourceError)
    assert 30 < refused < 150  # the changes reach what is read, and not all of them hurt


@pytest.mark.parametrize("what", [b"tokens", b"decode"], ids=["a tensor", "a signature"])
def test_a_signature_without_a_name(
    content: bytes, attempt: Callable[[bytes], Bundle | SourceError], what: bytes
) -> None:
    """A vtable entry of 0 means "not there", for a name as for anything else."""
    from ai_edge_litert import schema_py_generated as schema

    changed = bytearray(content)
    start = content.index(b"TFL3") - 4
    root = schema.Model.GetRootAs(changed, start)
    table = root.SignatureDefs(2)
    slot = 8  # the third field of SignatureDef: its key
    if what == b"tokens":
        table, slot = table.Inputs(0), 4  # the first of TensorMap
        assert table.Name() is not None
    else:
        assert table.SignatureKey() == what
    vtable = table._tab.Pos - int.from_bytes(changed[table._tab.Pos :][:4], "little", signed=True)
    changed[vtable + slot : vtable + slot + 2] = bytes(2)
    error = attempt(bytes(changed))
    assert isinstance(error, SourceError)
    assert error.why == "damaged: its TFLite model cannot be parsed"


def test_random_bytes_behind_a_sound_beginning(
    content: bytes, attempt: Callable[[bytes], Bundle | SourceError]
) -> None:
    for _ in range(20):
        assert isinstance(attempt(content[:24] + os.urandom(5000)), SourceError)
