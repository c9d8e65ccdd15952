"""The text that `--calibrate` sends through a network, in passages of tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from converter.checkpoint.base import Checkpoint
from converter.coreml.words import unwritten
from converter.decoder import Attention, DecoderSpec
from converter.errors import OptionError, SourceError, UnsupportedError
from converter.text.tokenizer import load_tokenizer
from converter.user_text import read_user_text

# Tokens of a passage, passages that are taken of a text, and how many it must have.
LENGTH, MOST, FEWEST = 256, 8, 4
OWN = "self"
# Prose in the public domain, and what was written for this: questions, code, tables, letters.
_OWN_TEXT = Path(__file__).with_name("calibration_text.txt")
# Bytes of a file; passages are spread over all of it.
_LARGEST = 1 << 22
_FIX = f"pass a text file of a few pages, or {OWN}"


@dataclass(frozen=True)
class CalibrationText:
    """A text.

    Attributes:
        file: where it is from; None for the one that is part of this program.
    """

    text: str
    file: str | None = None


def read_calibration(named: str) -> CalibrationText | None:
    """What `--calibrate` names: `self`, a file, or `none`.

    Raises:
        OptionError: there is no such file, or it is no text.
    """
    if named == "none":
        return None
    if named == OWN:
        return CalibrationText(_OWN_TEXT.read_text(encoding="utf-8"))
    text = read_user_text(named, f"--calibrate {named}", _LARGEST, _FIX)
    return CalibrationText(text, os.path.abspath(named))


def check_calibration(spec: DecoderSpec, name: str) -> None:
    """Raise UnsupportedError where no text can be sent through a network."""
    attention = [layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention)]
    scales = [mixer.position_scale for mixer in attention if mixer.position_scale is not None]
    lacking = list(dict.fromkeys(unwritten(spec)))
    if min((scale.length for scale in scales), default=LENGTH) < LENGTH:  # up to there it is 1
        lacking.append("queries that grow with the position")
    if lacking:
        raise UnsupportedError(
            f"{name}: --calibrate",
            f"sends no text through a network with {', '.join(lacking)}",
            "leave it out",
        )


def read_passages(
    checkpoint: Checkpoint, name: str, spec: DecoderSpec, calibration: CalibrationText
) -> np.ndarray:
    """Passages of a text, spread over it, each behind the tokens that start one: `(n, LENGTH)`.

    Raises:
        OptionError: it has too few tokens.
        SourceError: see `converter.text.tokenizer.load_tokenizer`.
    """
    tokenizer = load_tokenizer(checkpoint)
    tokens = tokenizer.encode(calibration.text)
    if max(tokens) >= spec.vocab_size:
        raise SourceError(
            f"{name}: tokenizer",
            f"gives token {max(tokens)}, the embedding has only {spec.vocab_size} rows",
            "use the tokenizer that belongs to this checkpoint",
        )
    start = []
    if tokenizer.adds_bos and tokenizer.bos_token_id is not None:
        start.append(tokenizer.bos_token_id)
    length = LENGTH - len(start)
    count = min(len(tokens) // length, MOST)
    if count < FEWEST:
        raise OptionError(
            f"--calibrate {calibration.file or OWN}",
            f"has {len(tokens)} tokens, and {FEWEST * LENGTH} are the least that says enough",
            _FIX,
        )
    places = [i * (len(tokens) - length) // (count - 1) for i in range(count)]
    return np.array([start + tokens[place : place + length] for place in places])
