"""`@FILE` in a message: the file's text goes before it, in a fenced block under its name."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path

from converter.errors import OptionError

# Not inside a word: an e-mail address stays one.
MENTION = re.compile(r'(?<![^\s(\[])@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))')
_MARKS_BEHIND = ".,;:!?)]}'"  # of the sentence, unless a file's name ends so
_PATH_BEGINS = ("/", "./", "../", "~/")
_CODE = (".c", ".cc", ".cpp", ".cfg", ".go", ".h", ".ini", ".java", ".jsonl", ".log", ".rs", ".rst",
         ".sql", ".toml", ".ts", ".yaml", ".yml")  # fmt: skip
_KNOWN = mimetypes.MimeTypes()  # the same everywhere: nothing of the system's
_MOST_BYTES = 1 << 23  # more than any context holds


def expanded(message: str) -> str:
    """The message behind the text of the files that it mentions.

    A mention is a file where there is one of that name. Where there is none it stays as it is,
    as other people's names do, unless it can be meant for nothing but a file.

    Raises:
        OptionError: a file is missing, is no text, or is too large.
    """
    blocks: dict[str, str] = {}

    def replace(match: re.Match[str]) -> str:
        name, behind = _named(match)
        if name is None:
            return match[0]
        blocks.setdefault(name, _block(name, _read(name)))
        return name + behind

    text = MENTION.sub(replace, message)
    return "\n\n".join([*blocks.values(), text])


def _read(name: str) -> str:
    what, path = f"@{name}", _path(name)
    try:
        if path.is_dir():
            raise OptionError(what, "is a folder", "name a file in it")
        if not path.is_file():
            missing = not path.exists()
            why = "there is no such file" if missing else "is no regular file"
            raise OptionError(what, why, "check the path")
        if path.stat().st_size > _MOST_BYTES:
            size = f"is {path.stat().st_size / 1e6:.1f} MB large"
            raise OptionError(what, f"{size}, more than any context holds", "name a smaller one")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError as error:
        raise OptionError(what, error.strerror or str(error), "check the file") from error
    if "\0" in text:
        raise OptionError(what, "is not text (UTF-8)", "name a text file")
    return text


def _named(match: re.Match[str]) -> tuple[str | None, str]:
    """The file that is meant, None for none, and what stands behind its name."""
    if match["quoted"] is not None:
        return match["quoted"], ""
    whole = match["plain"]
    name = whole
    while name and not _exists(name):
        if name[-1] not in _MARKS_BEHIND:
            break
        name = name[:-1]
    if name and _exists(name) and (_path(name).is_file() or "/" in name):
        return name, whole[len(name) :]
    name = whole.rstrip(_MARKS_BEHIND)
    return (name, whole[len(name) :]) if _must_be_a_file(name) else (None, "")


def _must_be_a_file(name: str) -> bool:
    """`@notes.txt`, `@./x` and `@folder-that-is-here/x`, but not `@property` or `@types/node`."""
    folder = name.rpartition("/")[0]
    suffix = Path(name).suffix.lower()
    return (
        name.startswith(_PATH_BEGINS)
        or bool(folder and _path(folder).is_dir())
        or suffix in _CODE
        or _KNOWN.guess_type(f"x{suffix}")[0] is not None
    )


def _path(name: str) -> Path:
    try:
        return Path(name).expanduser()
    except RuntimeError:  # an unknown ~user
        return Path(name)


def _exists(name: str) -> bool:
    try:
        return _path(name).exists()
    except (OSError, ValueError):  # too long
        return False


def _block(name: str, text: str) -> str:
    """A fence longer than any in the text, so that it ends where the file does."""
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{name}:\n{fence}\n{text.removesuffix(chr(10))}\n{fence}"
