"""A text file that an option names."""

from __future__ import annotations

from converter.errors import OptionError


def read_user_text(path: str, what: str, largest: int, fix: str) -> str:
    """The text of a file in UTF-8.

    Args:
        what, fix: of errors: the option, and what to give it.
        largest: bytes, whole MiB.

    Raises:
        OptionError: there is no such file, it is no text, it is empty, or larger than that.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(largest + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise OptionError(what, (error.strerror or str(error)).lower(), fix) from error
    except UnicodeDecodeError as error:
        raise OptionError(what, "it is not UTF-8 text", fix) from error
    except ValueError as error:  # a name that no file can have
        raise OptionError(what, str(error), fix) from error
    if len(content) > largest:
        raise OptionError(what, f"it is larger than {largest >> 20} MiB", fix)
    if not text.strip():
        raise OptionError(what, "it is empty", fix)
    return text
