"""Split GGUFs read as one, and GGUFs that are no language model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from converter.checkpoint.gguf import open_gguf
from converter.errors import SourceError, UnsupportedError
from tests.gguf_files import Keys, refused, tensors_of_a_model, write_gguf

PARTS = 3


def write_split(folder: Path, tensor_first: bool = True) -> list[Path]:
    """A model in three files, as llama-gguf-split writes it: the keys stand in the first."""
    tensors = list(tensors_of_a_model().items())
    shares = (
        [tensors[:2], tensors[2:3], tensors[3:]] if tensor_first else [[], tensors[:3], tensors[3:]]
    )
    paths = []
    for number, share in enumerate(shares):
        path = folder / f"m-{number + 1:05}-of-{PARTS:05}.gguf"
        keys: Keys = {":split.no": number, ":split.count": PARTS}
        keys[":split.tensors.count"] = len(tensors)
        drop = () if number == 0 else ("block_count", "embedding_length", "attention.head_count")
        paths.append(write_gguf(path, keys, dict(share), drop=drop))
    return paths


@pytest.mark.parametrize("tensor_first", [True, False])
@pytest.mark.parametrize("named", range(PARTS))
def test_a_split_model_reads_as_one_whichever_part_is_named(
    tmp_path: Path, named: int, tensor_first: bool
) -> None:
    paths = write_split(tmp_path, tensor_first)
    with open_gguf(write_gguf(tmp_path / "whole.gguf")) as whole, open_gguf(paths[named]) as split:
        assert split.config == whole.config
        assert split.files == tuple(paths)
        assert split.tensors.keys() == whole.tensors.keys()
        for name, info in whole.tensors.items():
            rows = info.shape[0] if len(info.shape) > 1 else 1
            np.testing.assert_array_equal(
                split.read_rows(name, 0, rows), whole.read_rows(name, 0, rows)
            )
        paths[2].write_bytes(paths[2].read_bytes() + b"x")
        with pytest.raises(SourceError, match="it changed while it was read"):
            split.check_unchanged()


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    paths[1].unlink()
    error = refused(paths[0])
    assert isinstance(error, SourceError)
    assert error.why == ("it is one of 3 parts of a model, and m-00002-of-00003.gguf is missing")
    paths[2].unlink()
    assert "m-00002-of-00003.gguf, m-00003-of-00003.gguf are missing" in refused(paths[0]).why


def test_a_part_under_another_name(tmp_path: Path) -> None:
    path = write_split(tmp_path)[0].rename(tmp_path / "renamed.gguf")
    error = refused(path)
    assert error.why == "it is one of 3 parts of a model, and its name does not say which"
    assert error.fix.endswith("NAME-00001-of-00003.gguf and so on")


def test_parts_that_do_not_belong_together(tmp_path: Path) -> None:
    paths = write_split(tmp_path)
    second = paths[1].read_bytes()
    paths[1].write_bytes(paths[2].read_bytes())
    assert refused(paths[0]).why == "it says that it is part 2 (from 0) of 3"
    paths[1].write_bytes(second)
    more = {name: np.ones(8, np.float32) for name in "xy"}
    write_gguf(paths[2], {":split.no": 2, ":split.count": 3}, more)
    assert refused(paths[0]).why == "its parts hold 5 tensors, not 4"
    twice = {"token_embd.weight": tensors_of_a_model()["token_embd.weight"]}
    write_gguf(paths[2], {":split.no": 2, ":split.count": 3}, twice)
    assert "is in another part too" in refused(paths[0]).why


def test_a_whole_file_may_have_the_name_of_a_part(tmp_path: Path) -> None:
    with open_gguf(write_gguf(tmp_path / "m-00001-of-00001.gguf")) as checkpoint:
        assert len(checkpoint.files) == 1


@pytest.mark.parametrize(
    ("arch", "keys", "said"),
    [
        ("clip", {}, "the vision or audio part (mmproj)"),
        ("clip", {":general.type": "mmproj"}, "the vision or audio part (mmproj)"),
        ("llama", {":general.type": "adapter", ":adapter.type": "lora"}, "a LoRA adapter"),
        ("llama", {":adapter.type": "lora"}, "a LoRA adapter"),
        ("controlvector", {}, "a control vector"),
        ("imatrix", {":general.type": "imatrix"}, "an importance matrix"),
    ],
)
def test_what_is_no_language_model_is_told_what_it_is(
    tmp_path: Path, arch: str, keys: Keys, said: str
) -> None:
    drop = ("block_count", "embedding_length", "attention.head_count")
    tensors = {"blk.0.attn_q.weight.lora_a": np.ones((4, 8), np.float32)}
    error = refused(write_gguf(tmp_path / "m.gguf", keys, tensors, arch, drop))
    assert isinstance(error, UnsupportedError)
    assert said in error.why


def test_a_vocabulary_alone(tmp_path: Path) -> None:
    keys: Keys = {":tokenizer.ggml.model": "gpt2", ":tokenizer.ggml.tokens": ["a", "b"]}
    error = refused(write_gguf(tmp_path / "m.gguf", keys, {}))
    assert error.why == "it holds a vocabulary and no weights, as llama.cpp's tests use it"
    assert error.fix == "pass the GGUF of the language model itself"
