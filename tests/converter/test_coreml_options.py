"""Options of Core ML: what ANEMLL's users write, and what is none of it."""

from __future__ import annotations

import pytest

from converter.coreml_options import (
    AUTO_SCALE,
    CoreMLOptions,
    parse_chunks,
    parse_fp16_scale,
    parse_lut,
)
from converter.errors import OptionError
from converter.weights.palettes import Palette


def test_defaults_are_anemlls() -> None:
    options = CoreMLOptions()

    assert (options.context, options.batch, options.chunks) == (512, 64, 2)
    assert options.lut_embeddings is None
    assert options.lut_layers == parse_lut("--lut2", "4")
    assert options.lut_head == parse_lut("--lut3", "6")
    assert options.threads >= 1


@pytest.mark.parametrize(
    ("text", "palette"),
    [
        ("6", Palette(6, 8)),
        ("6,4", Palette(6, 4)),
        (" 4 , 16 ", Palette(4, 16)),
        ("8,0", Palette(8, 0)),
        ("8,tensor", Palette(8, 0)),
        ("8,T", Palette(8, 0)),
        ("none", None),
        ("No", None),
        ("false", None),
        ("", None),
    ],
)
def test_palettes_are_written_as_bits_and_group(text: str, palette: Palette | None) -> None:
    assert parse_lut("--lut1", text) == palette


@pytest.mark.parametrize(
    "text", ["six", "4,", "4,8,8", "-4", "4,-8", "4.0", "4,row", "²", "9" * 99]
)
def test_what_is_no_palette_is_refused(text: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_lut("--lut2", text)

    assert str(caught.value) == (
        f"--lut2 {text}, it is not BITS or BITS,GROUP, give it like 4 or 6,16, or 6,tensor for one "
        "table per tensor, or none for float16"
    )


def test_bits_that_core_ml_lacks_are_refused() -> None:
    with pytest.raises(OptionError) as caught:
        parse_lut("--lut3", "5,8")

    assert str(caught.value) == (
        "--lut3 5,8, a palette of 5 bits is none that Core ML has, choose one of: 1, 2, 3, 4, 6, 8"
    )


def test_chunks_are_a_number_or_auto() -> None:
    assert parse_chunks("3") == 3
    assert parse_chunks("auto") is None
    for text in ("0", "-1", "two", "1.5", ""):
        with pytest.raises(OptionError, match="it is not a positive integer"):
            parse_chunks(text)


def test_a_scale_is_a_number_auto_or_none() -> None:
    assert parse_fp16_scale("0.1875") == 0.1875
    assert parse_fp16_scale("auto") == AUTO_SCALE
    assert parse_fp16_scale("none") == parse_fp16_scale("1") == 1
    for text in ("0", "-1", "1e-4", "1.5", "inf", "nan", "half"):
        with pytest.raises(OptionError, match=r"it is not a number from 0\.000976562 to 1"):
            parse_fp16_scale(text)
