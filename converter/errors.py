"""The errors this project raises on purpose.

Every one carries three parts, because a user needs all three: what failed, why, and what to do
next. Library code raises them; `cli.main` is the only place that prints them and exits.
"""

from __future__ import annotations


class LiteRTLMError(Exception):
    """Base of all expected failures: prints as `what, why, what to do next`."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        super().__init__(f"{what}, {why}, {fix}")
        self.what = what
        self.why = why
        self.fix = fix


def one_line(text: str) -> str:
    """In one line, and without what a terminal would obey: parts may come from a model's files."""
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())


class OptionError(LiteRTLMError):
    """An option's value cannot be used."""


class SourceError(LiteRTLMError):
    """The model that was asked for is missing, unreadable, damaged or incomplete."""


class UnsupportedError(LiteRTLMError):
    """The model is sound, but it asks for something that would change the numbers if ignored."""


class OutputError(LiteRTLMError):
    """The result cannot be written."""


class EngineError(LiteRTLMError):
    """The LiteRT-LM engine refused the model or failed while it ran."""


class DeviceError(LiteRTLMError):
    """An Android device cannot be reached, or did not take what it was given."""
