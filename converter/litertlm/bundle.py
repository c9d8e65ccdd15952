"""The `.litertlm` file: sections and their header.

    "LITERTLM" version header_end | header flatbuffer | section | section | ...

Every section starts at a multiple of 16 KiB. The header is written here and not by
`litert_lm_builder.LitertLmFileBuilder`, because that one stamps a random uuid and the clock into
it, and wants every section as a finished file; schema and constants are the builder's own.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import flatbuffers

from converter.litertlm.schemas import BLOCK_SIZE, HEADER_BEGIN, HEADER_END_AT, MAGIC, VERSION
from converter.litertlm.schemas import executor_metadata_pb2 as proto
from converter.litertlm.schemas import header as schema
from converter.tflite.state import StateBuffer

FIRST_SECTION = 16 * 1024  # where it begins: the header, a few hundred bytes, has room before it
_MOST_VALUE = 1000  # characters of a value in it: what strangers wrote may be of any length
ENGINE_VERSION = "0.18"  # the LiteRT-LM release whose behaviour shared/runtime-contract.md measures


@dataclass(frozen=True)
class Section:
    """One part of the bundle.

    Attributes:
        kind: a name in the schema's `AnySectionDataType`.
        nbytes: its size.
        items: its key-value pairs in the header.
    """

    kind: str
    nbytes: int
    items: Mapping[str, str]


@dataclass(frozen=True)
class BundleLayout:
    """Where everything goes: the header's bytes, each section's offset, and the file's size."""

    header: bytes
    offsets: tuple[int, ...]
    nbytes: int


def lay_out(sections: Sequence[Section], system: Mapping[str, str]) -> BundleLayout:
    """Place the sections one after another and write the header.

    Args:
        sections: in file order.
        system: key-value pairs about the whole file.
    """

    def aligned(position: int) -> int:
        return position + -position % BLOCK_SIZE

    # The header's size does not depend on the offsets in it, as long as none is 0.
    size = len(_header(sections, [(1, 1)] * len(sections), system))
    assert size <= FIRST_SECTION
    ranges, position = [], size
    for section in sections:
        begin = aligned(position)
        position = begin + section.nbytes
        ranges.append((begin, position))
    return BundleLayout(
        _header(sections, ranges, system), tuple(begin for begin, _ in ranges), position
    )


def _header(
    sections: Sequence[Section], ranges: Sequence[tuple[int, int]], system: Mapping[str, str]
) -> bytes:
    def pairs(items: Mapping[str, str]) -> list[schema.KeyValuePairT]:
        return [
            schema.KeyValuePairT(
                key=key,
                value=schema.StringValueT(_shortened(value)),
                valueType=schema.VData.StringValue,
            )
            for key, value in items.items()
        ]

    metadata = schema.LiteRTLMMetaDataT(
        systemMetadata=schema.SystemMetadataT(entries=pairs(system)),
        sectionMetadata=schema.SectionMetadataT(
            objects=[
                schema.SectionObjectT(
                    items=pairs(section.items),
                    dataType=getattr(schema.AnySectionDataType, section.kind),
                    beginOffset=begin,
                    endOffset=end,
                )
                for section, (begin, end) in zip(sections, ranges, strict=True)
            ]
        ),
    )
    builder = flatbuffers.Builder(4096)
    builder.Finish(metadata.Pack(builder))
    packed = bytes(builder.Output())
    head = MAGIC + b"".join(number.to_bytes(4, "little") for number in VERSION)
    head = head.ljust(HEADER_END_AT, b"\0")
    end = HEADER_BEGIN + len(packed)
    return head + end.to_bytes(8, "little") + packed


def _shortened(value: str) -> str:
    return value if len(value) <= _MOST_VALUE else f"{value[: _MOST_VALUE - 3]}..."


def draft_note(drafter: str, drafts: int) -> str:
    """What the header says of drafts, above all to those who write apps."""
    return (
        f"{drafter}, at most {drafts} tokens at once; the engine has them off unless an app turns "
        "speculative decoding on, and then samples greedily, whatever temperature it is given"
    )


def tokenizer_section(kind: str, data: bytes) -> bytes:
    """The bytes of a tokenizer section: a tokenizer.json is compressed, after its size."""
    if kind != "HF_Tokenizer_Zlib":
        return data
    return len(data).to_bytes(8, "little") + zlib.compress(data, level=1)


def executor_metadata(states: Iterable[StateBuffer], cache_length: int) -> bytes:
    """ExecutorMetadata: what the engine keeps between calls.

    Without mask settings the engine makes no mask for a local cache: the graph does.
    """
    message = proto.ExecutorMetadata()
    executor = message.llm_executor_metadata
    executor.max_history_size = cache_length
    for state in states:
        executor.state_buffers.add(
            prefill_input_name=state.name,
            prefill_output_name=state.name,
            decode_input_name=state.name,
            decode_output_name=state.name,
            type=state.kind.value,
            sequence_axis=state.axis,
            minimum_sequence_length=state.least,
            maximum_sequence_length=state.slots,
        )
    return message.SerializeToString(deterministic=True)
