"""What a file is, by its first bytes."""

from __future__ import annotations

import gzip
import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from converter.checkpoint.file_kinds import GGUF, HEAD_BYTES, LITERTLM, what_it_is
from tests.gguf_files import refused, write_gguf


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return buffer.getvalue()


WRONG = {
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "a zip archive, as PyTorch's": zipped(),
    "a Python pickle": pickle.dumps({"a": 1}, protocol=2),
    "a compressed archive": gzip.compress(b"GGUF"),
    "a web page (HTML)": b"\n<!DOCTYPE html><html><head><title>Sign in</title>",
    "an XML document": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "one weight file and not a model": save({"a": np.ones(3, np.float32)}),
    "before GGUF (GGML)": b"tjgg\x03\0\0\0",
    "a TFLite model": b"\x1c\0\0\0TFL3",
    "a file of zeros": bytes(600),
    "an empty file": b"",
}


@pytest.mark.parametrize("said", WRONG)
def test_a_model_s_name_on_something_else(tmp_path: Path, said: str) -> None:
    error = refused(tmp_path / "m.gguf", WRONG[said])
    assert error.why.startswith("not a GGUF file but ")
    assert said in error.why


@pytest.mark.parametrize("content", [b"Hello, world", b'{"error": "not found"}'])
def test_what_is_not_known_is_shown(tmp_path: Path, content: bytes) -> None:
    error = refused(tmp_path / "m.gguf", content)
    assert error.why == f"not a GGUF file: it starts with {content[:4]!r}"


def test_the_magic_of_models(tmp_path: Path) -> None:
    assert what_it_is(write_gguf(tmp_path / "m").read_bytes()[:HEAD_BYTES]) is GGUF
    assert what_it_is(b"LITERTLM\1\0\0\0") is LITERTLM
