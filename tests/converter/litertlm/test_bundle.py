"""The container: a header as the official builder's."""

from __future__ import annotations

import io
import os
import zlib
from pathlib import Path

import pytest
from litert_lm_builder import litertlm_builder, litertlm_peek
from litert_lm_builder.runtime.proto import executor_metadata_pb2, llm_metadata_pb2

from converter.litertlm.bundle import (
    FIRST_SECTION,
    Section,
    executor_metadata,
    lay_out,
    tokenizer_section,
)
from converter.litertlm.inspection import read_bundle
from converter.output.atomic_file import AtomicFile
from converter.tflite.state import StateBuffer, StateKind

ROOT = Path(__file__).parents[3]
BLOCK = 16 * 1024
SYSTEM = {"producer": "a test", "model": "größe 模型"}


def sections(*sizes: int) -> list[Section]:
    return [Section("TFLiteModel", size, {"model_type": "aux"}) for size in sizes]


def write(path: Path, parts: list[tuple[Section, bytes]], system: dict[str, str]) -> Path:
    layout = lay_out([section for section, _ in parts], system)
    with AtomicFile(path) as file:
        # Any order will do.
        for (_, data), offset in reversed(list(zip(parts, layout.offsets, strict=True))):
            file.write_at(offset, data)
        file.write_at(0, layout.header)
        file.commit()
    return path


# Layout ------------------------------------------------------------------------------------------


def test_sections_start_at_multiples_of_16_kib() -> None:
    layout = lay_out(sections(1, BLOCK, BLOCK + 1, 5), SYSTEM)
    assert layout.offsets == (BLOCK, 2 * BLOCK, 3 * BLOCK, 5 * BLOCK)
    assert layout.nbytes == 5 * BLOCK + 5
    assert int.from_bytes(layout.header[24:32], "little") == len(layout.header)


@pytest.mark.parametrize("count", [1, 4])
def test_the_first_section_has_its_place_before_the_header_is_known(count: int) -> None:
    layout = lay_out(sections(*range(count)), {"model": "x" * 255})
    assert len(layout.header) < layout.offsets[0] == FIRST_SECTION == BLOCK


def test_offsets_do_not_change_the_size_of_the_header() -> None:
    small, large = lay_out(sections(1, 1), SYSTEM), lay_out(sections(1 << 40, 1), SYSTEM)
    assert len(small.header) == len(large.header)
    assert large.offsets[1] == BLOCK + (1 << 40)


def test_the_file_is_what_the_official_builder_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the byte, once the builder is kept from adding its random uuid and the clock."""
    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=77)
    contents = {
        "metadata.pb": metadata.SerializeToString(),
        "model.tflite": os.urandom(BLOCK + 100),
        "tokenizer.json.zlib": tokenizer_section("HF_Tokenizer_Zlib", b'{"a": 1}'),
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(litertlm_builder, "populate_system_metadata", lambda items: items)
    builder = litertlm_builder.LitertLmFileBuilder()
    for key, value in SYSTEM.items():
        builder.add_system_metadata(
            litertlm_builder.Metadata(key, value, litertlm_builder.DType.STRING)
        )
    builder.add_llm_metadata(str(tmp_path / "metadata.pb"))
    builder.add_tflite_model(
        str(tmp_path / "model.tflite"), litertlm_builder.TfLiteModelType.PREFILL_DECODE
    )
    builder.add_hf_tokenizer(str(tmp_path / "tokenizer.json.zlib"))
    official = io.BytesIO()
    builder.build(official)

    kinds = ("LlmMetadataProto", "TFLiteModel", "HF_Tokenizer_Zlib")
    items: tuple[dict[str, str], ...] = ({}, {"model_type": "tf_lite_prefill_decode"}, {})
    ours = write(
        tmp_path / "ours.litertlm",
        [
            (Section(kind, len(data), pairs), data)
            for kind, pairs, data in zip(kinds, items, contents.values(), strict=True)
        ],
        SYSTEM,
    )
    assert ours.read_bytes() == official.getvalue()


def test_the_official_reader_reads_it(tmp_path: Path) -> None:
    metadata = llm_metadata_pb2.LlmMetadata(max_num_tokens=77).SerializeToString()
    executor = executor_metadata(
        [StateBuffer("kv_cache_k_0", (1, 2, 64, 8), StateKind.GLOBAL_KEY, 2, 64)], 64
    )
    path = write(
        tmp_path / "m.litertlm",
        [
            (Section("LlmMetadataProto", len(metadata), {}), metadata),
            (Section("ExecutorMetadataProto", len(executor), {}), executor),
            (Section("TFLiteModel", 4, {"model_type": "tf_lite_prefill_decode"}), b"TFL3"),
        ],
        SYSTEM,
    )
    output = io.StringIO()
    litertlm_peek.peek_litertlm_file(str(path), str(tmp_path / "dump"), output)
    text = output.getvalue()
    assert "Sections (3)" in text
    for expected in (*SYSTEM.values(), "max_num_tokens: 77", "tf_lite_prefill_decode"):
        assert expected in text
    dumped = {file.name: file.read_bytes() for file in (tmp_path / "dump").iterdir()}
    assert b"TFL3" in dumped.values()
    header = litertlm_peek.read_litertlm_header(str(path), io.StringIO())
    kvps = [header.SystemMetadata().Entries(i) for i in range(2)]
    assert {kvp.Key().decode() for kvp in kvps} == set(SYSTEM)  # no uuid, no timestamp


def test_the_same_input_gives_the_same_header() -> None:
    assert lay_out(sections(5, 9), SYSTEM) == lay_out(sections(5, 9), SYSTEM)


# Sections ----------------------------------------------------------------------------------------


def test_a_tokenizer_json_is_compressed_after_its_size() -> None:
    data = b'{"vocab": 1}' * 1000
    packed = tokenizer_section("HF_Tokenizer_Zlib", data)
    assert packed[:8] == len(data).to_bytes(8, "little")
    assert zlib.decompress(packed[8:]) == data
    assert len(packed) < len(data) // 10


def test_a_sentencepiece_model_is_stored_as_it_is() -> None:
    assert tokenizer_section("SP_Tokenizer", b"\x0a\x0b") == b"\x0a\x0b"


def test_executor_metadata_names_every_state_once() -> None:
    states = [
        StateBuffer("kv_cache_v_0", (1, 2, 8, 640), StateKind.GLOBAL_VALUE, 3, 640),
        StateBuffer("kv_cache_k_1", (1, 2, 168, 8), StateKind.LOCAL_KEY, 2, 168, 40),
        StateBuffer("kv_cache_c_2", (1, 130, 64), StateKind.RECURRENT, 1, 130),
    ]
    message = executor_metadata_pb2.ExecutorMetadata.FromString(executor_metadata(states, 640))
    executor = message.llm_executor_metadata
    assert executor.max_history_size == 640
    assert not executor.HasField("attention_mask_settings")  # else the engine feeds local masks
    kinds = executor_metadata_pb2.StateBuffer
    found = []
    for buffer in executor.state_buffers:
        names = {
            buffer.prefill_input_name,
            buffer.prefill_output_name,
            buffer.decode_input_name,
            buffer.decode_output_name,
        }
        assert len(names) == 1
        lengths = buffer.minimum_sequence_length, buffer.maximum_sequence_length
        found.append((names.pop(), buffer.type, buffer.sequence_axis, lengths))
    assert found == [
        ("kv_cache_v_0", kinds.TYPE_GLOBAL_VALUE_CACHE, 3, (0, 640)),
        ("kv_cache_k_1", kinds.TYPE_LOCAL_KEY_CACHE, 2, (40, 168)),
        ("kv_cache_c_2", kinds.TYPE_LINEAR_ATTENTION, 1, (0, 130)),
    ]


def test_what_strangers_wrote_may_be_of_any_length(tmp_path: Path) -> None:
    section = Section("TFLiteModel", 100, {})
    layout = lay_out([section], {"left out": "é" * 100_000, "ignored config keys": "字" * 100_000})
    assert len(layout.header) <= FIRST_SECTION
    path = tmp_path / "m.litertlm"
    path.write_bytes(layout.header.ljust(layout.nbytes, b"\0"))
    assert read_bundle(path).system["left out"] == "é" * 997 + "..."
