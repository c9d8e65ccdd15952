"""What a file is, by its first bytes: names lie, and blobs have none.

The point is a message that is true of the file in hand. A download that went wrong is a web page or
a Git LFS pointer under a model's name, and calling it damaged sends the user nowhere.
"""

from __future__ import annotations

from typing import NamedTuple

HEAD_BYTES = 512


class FileKind(NamedTuple):
    """What a file is (`what`, as in "it is WHAT"), and what its owner should do."""

    what: str
    fix: str


GGUF = FileKind("a GGUF file", "pass it to convert")
LITERTLM = FileKind("a .litertlm file", "give it a name that ends with .litertlm")
SAFETENSORS = FileKind(
    "one weight file and not a model: config.json and the tokenizer are beside it",
    "pass its folder",
)
_TFLITE = FileKind("a TFLite model without a tokenizer", "convert the original model")
EMPTY = FileKind("an empty file", "download or copy it again")
_ZEROS = FileKind("a file of zeros", "download or copy it again")
_LFS_POINTER = FileKind(
    "a Git LFS pointer, which stands for a file that was not fetched",
    "fetch the file itself: git lfs pull, or hf download ORG/NAME FILE",
)
_OLD_GGML = FileKind(
    "in a format that llama.cpp had before GGUF (GGML)", "get a GGUF of this model"
)
_PAGE = FileKind(
    "a web page (HTML)", "download the file itself: its page on the hub has a download button"
)
_PACKED = FileKind("a compressed archive", "unpack it and pass what is inside")
_PICKLE = FileKind(
    "a zip archive, as PyTorch's pickle format is one",
    "use the safetensors or the GGUF of this model",
)
_BY_MAGIC = (
    (b"GGUF", GGUF),
    (b"LITERTLM", LITERTLM),
    (b"version https://git-lfs.github.com/spec/", _LFS_POINTER),
    (b"PK\x03\x04", _PICKLE),
    (b"\x80\x02", FileKind("a Python pickle, which can run code when it is read", _PICKLE.fix)),
    *((magic, _OLD_GGML) for magic in (b"lmgg", b"fmgg", b"tjgg", b"algg")),
    *(
        (magic, _PACKED)
        for magic in (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"(\xb5/\xfd")
    ),
)
_BY_TEXT = (
    (b"<!doctype html", _PAGE),
    (b"<html", _PAGE),
    (b"<?xml", FileKind("an XML document, as servers send instead of a file", _PAGE.fix)),
)


def what_it_is(head: bytes) -> FileKind | None:
    """Tell what a file is from its first `HEAD_BYTES` bytes, or all there are; None if unknown."""
    for magic, kind in _BY_MAGIC:
        if head.startswith(magic):
            return kind
    if head[4:8] == b"TFL3":
        return _TFLITE
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 28:
        return SAFETENSORS
    if not head.strip(b"\0"):
        return _ZEROS if head else EMPTY
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((kind for start, kind in _BY_TEXT if text.startswith(start)), None)
