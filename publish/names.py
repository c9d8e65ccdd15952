"""Names of a repository on the hub."""

from __future__ import annotations

import re

from converter.errors import OptionError

# What stands in a package's texts until it is known where it goes.
PLACEHOLDER = "ORG/NAME"
_REPO = re.compile(r"\w(?:[\w.-]*\w)?/\w(?:[\w.-]*\w)?", re.ASCII)
_LONGEST = 96


def is_repo_id(text: str) -> bool:
    """Whether it can be a repository's name (`huggingface_hub.utils.validate_repo_id`)."""
    is_name = _REPO.fullmatch(text) and "--" not in text and ".." not in text
    return bool(is_name) and not text.endswith(".git") and len(text) <= _LONGEST


def check_repo_id(text: str) -> str:
    """Return `text` where it can be a repository's name.

    Raises:
        OptionError: it cannot.
    """
    if not is_repo_id(text) or text == PLACEHOLDER:
        why = "it is no repository's name"
        raise OptionError(text, why, "write ORG/NAME: your name on the hub, and the model's")
    return text
