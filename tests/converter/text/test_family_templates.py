"""Every family's chat template, as it is published: what the source prints, the engine prints."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import pytest

from converter.registry import FAMILIES
from converter.text.template_reference import TURNS, as_parts
from converter.text.template_renderers import render_as_source
from tests.converter.text.test_published_shapes import SHAPES, choose
from tests.family_templates import FAMILY_TEMPLATES, Template

# Base models; and those whose template is that of the family named.
WITHOUT_ONE = {"helium", "phi", "starcoder2", "vaultgemma"}
AS_ANOTHER = {
    "gemma": "gemma2", "gemma3n_text": "gemma3n", "gemma4_text": "gemma4",
    "gemma4_unified": "gemma4", "gemma4_unified_text": "gemma4", "glm4": "glm",
    "granitemoe": "granite", "granitemoehybrid": "granite", "lfm2_moe": "lfm2",
    "ministral": "ministral3", "mixtral": "mistral", "olmoe": "olmo2", "qwen2_moe": "qwen2",
    "qwen3_5_text": "qwen3_5", "qwen3_moe": "qwen3",
}  # fmt: skip


def test_every_family_has_one() -> None:
    shown = {source.family for source in FAMILY_TEMPLATES.values()}
    shown |= {shape.family for shape in SHAPES.values()}
    assert set(AS_ANOTHER.values()) <= shown
    assert FAMILIES.keys() - WITHOUT_ONE - AS_ANOTHER.keys() == shown


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_the_sources_own_is_carried_over(name: str) -> None:
    source = FAMILY_TEMPLATES[name]
    report = choose(source)
    assert report.chosen.removeprefix("adapted ").startswith("source")
    assert report.tools == source.tools
    assert source.differs in report.history_difference
    assert bool(source.differs) == (not report.exact_history)


@pytest.fixture(scope="module")
def engine(smollm2_bundle: Any) -> Iterator[Any]:
    import litert_lm

    litert_lm.set_min_log_severity(litert_lm.LogSeverity.FATAL)
    with litert_lm.Engine(str(smollm2_bundle)) as engine:
        yield engine


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_the_engine_prints_three_turns_as_the_source_does(name: str, engine: Any) -> None:
    source = FAMILY_TEMPLATES[name]
    report = choose(source)
    for end in (1, 3, 5):
        *history, question = as_parts(TURNS[:end])
        before = now()
        with engine.create_conversation(
            chat_template=report.template, messages=history
        ) as conversation:
            got = conversation.render_message_to_string(question)
        # The day may change in between; on any other day both are the same.
        expected = [printed(source, end, moment) for moment in (before, now())]
        if report.start_token_needed and source.bos:
            expected = [text.removeprefix(source.bos) for text in expected]
        assert got in expected


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def printed(source: Template, end: int, moment: datetime.datetime) -> str:
    """What the source prints of the first turns at a moment."""
    return render_as_source(
        source.template,
        TURNS[:end],
        bos_token=source.bos or "",
        eos_token=source.eos,
        extra={"strftime_now": moment.strftime},
    )
