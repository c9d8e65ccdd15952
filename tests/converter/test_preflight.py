"""What float16 makes of a network's largest numbers, and the scale that is asked for."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from cli.obtain import open_checkpoint
from converter.decoder import DecoderSpec, Norm, NormKind, Placement
from converter.errors import SourceError
from converter.network import read_network
from converter.preflight import TEXT, PreflightReport, Verdict, fp16_scale_for, preflight
from converter.text.tokenizer import load_tokenizer
from converter.weights.peaks import LayerPeaks, Peaks, largest
from tests.tiny_models import make_checkpoint


def reported(path: Path) -> PreflightReport:
    with open_checkpoint(path) as checkpoint:
        network = read_network(checkpoint, path.stem)
        return preflight(network, network.spec(512), threads=2)


def of_peaks(
    peaks: Peaks, placement: Placement = Placement.BEFORE, has_weight: bool = True
) -> PreflightReport:
    norm = Norm(NormKind.RMS, 1e-6, has_weight)
    return PreflightReport("tiny", 10, True, DecoderSpec(8, 8, norm, (), True, placement), peaks)


@pytest.mark.parametrize(
    ("residual", "scale"),
    [
        (410, None),
        (50_000, None),
        (50_001, 0.5),  # 61,000 is Gemma 3 1B's
        (61_000, 0.5),
        (100_000, 0.5),
        (104_061, 0.25),  # Gemma 3 270M's
        (293_000, 0.125),  # Gemma 3 4B's
        (1e9, 2**-15),
    ],
)
def test_the_scale_of_a_residual_stream(residual: float, scale: float | None) -> None:
    report = of_peaks(Peaks((LayerPeaks(), LayerPeaks(residual=residual))))
    assert report.verdict is (Verdict.FITS if scale is None else Verdict.FITS_SCALED)
    assert fp16_scale_for(report) == scale
    if scale is not None:
        assert 25_000 < residual * scale <= 50_000
        assert report.reason == f"the residual stream of layer 1 reaches {residual:,.0f}"


@pytest.mark.parametrize("place", ["attention", "feed_forward"])
@pytest.mark.parametrize("placement", Placement)
def test_behind_a_norm_no_scale_reaches_a_block(place: str, placement: Placement) -> None:
    layer = LayerPeaks(**{place: 60_000.0})
    report = of_peaks(Peaks((layer,)), placement)
    helps = placement in (Placement.BEFORE, Placement.PARALLEL)
    assert report.verdict is (Verdict.FITS_SCALED if helps else Verdict.TOO_LARGE)
    assert fp16_scale_for(report) == (0.5 if helps else None)


@pytest.mark.parametrize("place", ["normed", "projected", "rotated", "scores", "inner"])
def test_nor_what_stands_inside(place: str) -> None:
    report = of_peaks(Peaks((LayerPeaks(**{place: 60_000.0, "residual": 90_000.0}),)))
    assert report.verdict is Verdict.TOO_LARGE
    assert report.reason.endswith("of layer 0 reaches 60,000")


@pytest.mark.parametrize("place", ["last", "logits"])
def test_nor_what_stands_behind(place: str) -> None:
    report = of_peaks(Peaks((LayerPeaks(),), **{place: 60_000.0}))
    assert report.verdict is Verdict.TOO_LARGE


def test_an_embedding_is_scaled() -> None:
    report = of_peaks(Peaks((LayerPeaks(),), embedding=60_000.0))
    assert (report.verdict, fp16_scale_for(report)) == (Verdict.FITS_SCALED, 0.5)
    assert report.reason == "the embedding reaches 60,000"


def test_weights_may_be_as_large_as_float16_goes() -> None:
    """They do not depend on a text."""
    within, beyond = (
        of_peaks(Peaks((LayerPeaks(),), weight=weight, weight_path="layers.0.mlp.up"))
        for weight in (65504.0, 65505.0)
    )
    assert within.verdict is Verdict.FITS
    assert beyond.verdict is Verdict.TOO_LARGE
    assert beyond.reason == "layers.0.mlp.up holds 65,505"


@pytest.mark.parametrize(
    ("placement", "has_weight", "helps"),
    [
        (Placement.BEFORE, True, True),
        (Placement.BEFORE, False, True),  # its last matrices are scaled
        (Placement.PARALLEL, True, True),
        (Placement.BOTH, True, True),
        (Placement.BOTH, False, False),
        (Placement.AFTER, True, False),  # blocks see the stream as it is
    ],
)
def test_where_a_scale_leaves_a_trace_none_is_given(
    placement: Placement, has_weight: bool, helps: bool
) -> None:
    peaks = Peaks((LayerPeaks(residual=60_000.0),))
    report = of_peaks(peaks, placement, has_weight)
    assert report.verdict is (Verdict.FITS_SCALED if helps else Verdict.TOO_LARGE)
    assert fp16_scale_for(report) == (0.5 if helps else None)
    assert report.reason == "the residual stream of layer 0 reaches 60,000"


def test_what_slices_may_cut_is_a_note() -> None:
    quiet, noted = (of_peaks(Peaks((LayerPeaks(rotated=peak),))) for peak in (4094.0, 4095.0))
    assert quiet.notes == ()
    assert noted.verdict is Verdict.FITS
    assert noted.notes[0].startswith("queries and keys reach 4,095")
    assert noted.as_json()["notes"] == list(noted.notes)


def test_a_model_known_to_need_a_scale(gemma3_gguf: Path) -> None:
    """Gemma 3 270M, whose residual stream is known to reach 104k (ANEMLL's preflight)."""
    report = reported(gemma3_gguf)
    assert not report.is_chat
    assert report.scaled.value == pytest.approx(104_000, rel=0.01)
    assert report.scaled.where.startswith("the residual stream")
    assert report.others.value < 1000
    assert (report.verdict, fp16_scale_for(report)) == (Verdict.FITS_SCALED, 0.25)
    said = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert (said["verdict"], said["fp16_scale"]) == ("fits_scaled", 0.25)
    assert len(said["peaks"]["layers"]) == 18


def test_a_model_that_needs_none(smollm2_gguf: Path) -> None:
    report = reported(smollm2_gguf)
    assert report.is_chat
    assert (report.verdict, fp16_scale_for(report)) == (Verdict.FITS, None)
    assert report.as_json()["reason"] is None
    assert 20_000 < report.scaled.value < 30_000


TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"


@pytest.mark.parametrize(
    ("settings", "before", "after"),
    [
        ({}, 0, 0),
        ({"add_bos_token": True}, 1, 0),
        ({"chat_template": TEMPLATE, "add_bos_token": True}, 1, 1),  # the template has its own
        ({"chat_template": "{{ messages[0].content.no.such }}"}, 0, 0),
    ],
)
def test_the_text_is_read_as_the_model_is_used(
    settings: dict[str, object], before: int, after: int, tmp_path: Path
) -> None:
    make_checkpoint("llama", tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with open_checkpoint(tmp_path) as checkpoint:
        text = load_tokenizer(checkpoint).encode(TEXT)
    report = reported(tmp_path)
    assert report.tokens == before + len(text) + after
    assert report.is_chat == (settings.get("chat_template") == TEMPLATE)


def test_a_stranger_s_tokenizer_is_refused(tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path)
    path = tmp_path / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary.update({symbol: i + 1000 for symbol, i in vocabulary.items()})
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(SourceError, match="tokenizer"):
        reported(tmp_path)


def test_a_peak_is_never_no_number() -> None:
    assert largest(np.array([1, np.nan, 2], np.float32)) == math.inf
