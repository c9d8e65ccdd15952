"""Bundles with other metadata: what a published model may bring and ours do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.litertlm.bundle import Section, lay_out
from converter.litertlm.inspection import read_bundle


def edited_bundle(source: Path, target: Path, edit: Callable[[Any], None]) -> Path:
    """Copy a bundle, with `edit` applied to its LlmMetadata."""
    metadata = read_bundle(source).metadata
    edit(metadata)
    return with_section(source, target, "LlmMetadataProto", metadata.SerializeToString())


def with_section(source: Path, target: Path, kind: str, content: bytes) -> Path:
    """Copy a bundle, with other content in its section of one kind."""
    bundle = read_bundle(source)
    data = source.read_bytes()
    contents = [
        content if section.kind == kind else data[section.offset : section.offset + section.nbytes]
        for section in bundle.sections
    ]
    sections = [
        Section(section.kind, len(content), section.items)
        for section, content in zip(bundle.sections, contents, strict=True)
    ]
    layout = lay_out(sections, bundle.system)
    with target.open("wb") as file:
        file.write(layout.header)
        for offset, content in zip(layout.offsets, contents, strict=True):
            file.seek(offset)
            file.write(content)
    return target


def always_thinks(metadata: Any) -> None:
    """Like R1-Distill: the template opens a thought, which here ends at the first space."""
    metadata.jinja_prompt_template += (
        "{%- if add_generation_prompt -%}{{- '<think>\\n' -}}{%- endif -%}"
    )
    del metadata.channels[:]
    metadata.channels.add(
        channel_name="thought", start="<think>\n", end=" ", is_reasoning_channel=True
    )


def completes_text(metadata: Any) -> None:
    """A base model: its template passes the text through."""
    template = Path(__file__).parents[1] / "converter/families/completion.jinja"
    metadata.jinja_prompt_template = template.read_text("utf-8")


def small_context(metadata: Any) -> None:
    """64 tokens, which the engine observes like a cache of that length."""
    metadata.max_num_tokens = 64
