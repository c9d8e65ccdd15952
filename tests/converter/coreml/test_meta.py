"""Names and meta.yaml, by the rules of those who read them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from converter.coreml.decoder_program import Interface, StateSpec, head_parts
from converter.coreml.meta import (
    COMPILE,
    META,
    Description,
    Names,
    compile_sh,
    config_json,
    default_prefix,
    meta_yaml,
    recommended_sampling,
    user_metadata,
    usual_head_parts,
)
from converter.weights.palettes import Palette
from tests import anemll_rules as anemll

Write = Callable[[Description], dict[str, Any]]


def state(window: int | None, context: int = 1024) -> StateSpec:
    kind = "local" if window else "0"
    return StateSpec(f"model_model_kv_cache_{kind}", (0,), 1, window or context, 64, window)


def described(chunks: int = 2, prefix: str = "qwen", **changes: Any) -> Description:
    names = Names(prefix, None, Palette(4, 8), Palette(6, 0), chunks)
    interface = Interface(1024, 64, (state(None),), head_parts(1600, 16))
    return replace(Description("Qwen/Qwen3-0.6B", "qwen3", names, interface), **changes)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write meta.yaml and stand-ins for packages; what ANEMLL reads there."""

    def write(what: Description) -> dict[str, Any]:
        (tmp_path / META).write_bytes(meta_yaml(what))
        for name in what.names.all:
            (tmp_path / f"{name}.mlpackage").mkdir()
        return anemll.parameters(tmp_path)

    return write


@pytest.mark.parametrize(
    ("model_type", "prefix", "parts"),
    [
        ("llama", "llama", 8),
        ("qwen2", "qwen25", 16),
        ("qwen3", "qwen", 16),
        ("gemma3_text", "gemma3", 16),
        ("gemma3", "gemma3", 16),
        ("phi3", "phi3", 8),
        ("falcon-h1.5", "falcon-h1_5", 8),
    ],
)
def test_a_family_goes_by_anemlls_name_or_its_own(model_type: str, prefix: str, parts: int) -> None:
    assert (default_prefix(model_type), usual_head_parts(model_type)) == (prefix, parts)


def test_meta_yaml_says_everything_that_runtimes_read(write: Write) -> None:
    assert write(described(sampling={"temperature": 0.6, "top_p": 0.95, "top_k": 20})) == {
        "context_length": 1024,
        "batch_size": 64,
        "lut_embeddings": "none",
        "lut_ffn": 4,
        "lut_ffn_per_channel": 8,
        "lut_lmhead": 6,
        "lut_lmhead_per_channel": 0,
        "num_chunks": 2,
        "model_prefix": "qwen",
        "embeddings": "qwen_embeddings.mlmodelc",
        "lm_head": "qwen_lm_head_lut6.mlmodelc",
        "ffn": "qwen_FFN_PF_lut4_chunk_01of02.mlmodelc",
        "split_lm_head": 16,
        "vocab_size": 1600,
        "lm_head_chunk_sizes": [100] * 16,
        "prefill_dynamic_slice": True,
        "recommended_sampling": {
            "do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20,
        },
    }  # fmt: skip


def test_what_is_said_of_the_whole_is_anemlls() -> None:
    what = described(license="apache-2.0", comments={"source": "a\nb: c"})

    text = meta_yaml(what)

    about = yaml.safe_load(text)["model_info"]
    del about["parameters"]
    assert about == {
        "name": "anemll-Qwen3-0.6B-ctx1024",
        "version": "0.3.5",
        "description": "Qwen3-0.6B for Apple's Neural Engine: context 1024, batch 64, 2 chunks",
        "license": "apache-2.0",
        "author": "litert-lm-cli",
        "framework": "Core ML",
        "language": "Python",
        "architecture": "qwen3",
    }
    assert text.endswith(b"\n# source: a b: c\n")
    assert text == meta_yaml(what)


@pytest.mark.parametrize("chunks", [1, 2, 12])
@pytest.mark.parametrize("end", ["mlpackage", "mlmodelc"])
def test_the_python_chats_find_every_file(
    write: Write, tmp_path: Path, chunks: int, end: str
) -> None:
    names = described(chunks).names
    found = write(described(chunks))
    for name in names.all:  # as `compile.sh` leaves them: beside the packages
        (tmp_path / f"{name}.{end}").mkdir(exist_ok=True)

    embeddings, layers, head = (
        anemll.python_path(tmp_path / stem) for stem in anemll.python_stems(found)
    )

    assert embeddings == tmp_path / f"{names.embeddings}.{end}"
    assert head == tmp_path / f"{names.head}.{end}"
    assert anemll.python_chunks(layers) == [
        tmp_path / f"{names.chunk(i)}.{end}" for i in range(chunks)
    ]
    # Swift takes the names as they stand.
    assert [found["embeddings"], found["ffn"], found["lm_head"]] == [
        f"{name}.mlmodelc" for name in (names.embeddings, names.chunk(0), names.head)
    ]


def test_one_package_for_all(write: Write) -> None:
    what = described(chunks=0)
    found = write(what)

    about = yaml.safe_load(meta_yaml(what))["model_info"]
    assert (about["model_type"], about["name"]) == (
        "monolithic",
        "anemll-Qwen3-0.6B-ctx1024-monolithic",
    )
    assert found["monolithic_model"] == "qwen_monolithic_full_lut4.mlmodelc"
    assert (found["lut_bits"], found["functions"]) == (4, ["infer", "prefill"])
    assert (found["lut_embeddings"], found["lut_lmhead"]) == ("none", 6)
    assert not {"num_chunks", "embeddings", "lm_head", "ffn", "lut_ffn"} & set(found)


def test_argmax_says_where_each_part_begins_and_recommends_nothing(write: Write) -> None:
    interface = Interface(1024, 64, (state(None),), head_parts(1601, 16), argmax=True)

    found = write(described(interface=interface, sampling={"temperature": 0.6}))

    assert found["argmax_in_model"] is True
    assert found["lm_head_chunk_sizes"] == [101] + [100] * 15
    assert sum(found["lm_head_chunk_sizes"]) == found["vocab_size"]
    assert anemll.swift_sampling(found) is None


def test_windows_are_said_where_they_are(write: Write) -> None:
    interface = Interface(1024, 64, (state(512), state(None)), head_parts(1600, 16))

    found = write(described(chunks=0, interface=interface, has_windows=True))

    assert anemll.swift_window(found) == 512
    assert found["functions"] == ["infer", "prefill", "infer_rotate", "prefill_rotate"]
    assert "single_cache" not in found


def test_no_window_is_guessed_where_none_is_shorter_than_the_context(write: Write) -> None:
    # A window of 1024 in a context of 1024: Swift would guess 512, and miss functions from there.
    found = write(described(prefix="gemma3", has_windows=True))

    assert anemll.swift_window(found) == 1024
    assert found["single_cache"] is True


def test_other_prefixes_have_no_window(write: Write) -> None:
    assert anemll.swift_window(write(described())) is None


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ({}, None),
        ({"do_sample": True}, (True, 1.0, 1.0, 50)),
        ({"top_k": 64, "top_p": 0.95}, (True, 1.0, 0.95, 64)),
        ({"do_sample": False, "temperature": 0.7}, (False, 0.7, 1.0, 50)),
        ({"temperature": 0.0}, (False, 0.0, 1.0, 50)),
    ],
)
def test_sampling_is_whole_or_not_said(
    said: dict[str, Any], read: tuple[bool, float, float, int] | None
) -> None:
    assert anemll.swift_sampling({"recommended_sampling": recommended_sampling(said)}) == read


def test_packages_describe_themselves_in_numbers() -> None:
    found = user_metadata(described(), Palette(3), ["infer", "prefill"], chunk=2)

    for key in ("context_length", "state_length", "batch_size", "lut_bits", "num_chunks"):
        assert int(found[f"com.anemll.{key}"]) > 0  # chat.py takes them for numbers
    assert found["com.anemll.functions"] == "infer,prefill"
    assert found["com.anemll.chunk_no"] == "2"
    assert found["com.anemll.lut_bits"] == "3"  # the package's own
    assert "com.anemll.lut_bits" not in user_metadata(described(), None, ["main"])


def test_config_json_names_tokens() -> None:
    assert json.loads(config_json("qwen3", "Qwen2Tokenizer", (7, 9), None, 9)) == {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_type": "qwen3",
        "eos_token_id": [7, 9],
        "pad_token_id": 9,
    }
    assert json.loads(config_json("llama", "LlamaTokenizer", (2,), 1, None)) == {
        "tokenizer_class": "LlamaTokenizer",
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


# compile.sh: run with programs that answer as a Mac's do.


def run_compile(folder: Path, system: str, xcode: bool = True) -> subprocess.CompletedProcess[str]:
    tools = folder / "tools"
    tools.mkdir()
    finds = "exit 0" if xcode else "exit 72"
    for name, text in (
        ("uname", f"echo {system}"),
        ("xcrun", f'[ "$1" = --find ] && {finds}; mkdir "$4/$(basename "$3" .mlpackage).mlmodelc"'),
    ):
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    script = folder / "a model" / COMPILE
    script.parent.mkdir()
    names = described().names
    script.write_bytes(compile_sh(names))
    for name in names.all:
        (script.parent / f"{name}.mlpackage").mkdir()
    return subprocess.run(
        ["/bin/sh", script], env={"PATH": f"{tools}:/usr/bin:/bin"}, text=True, capture_output=True
    )  # fmt: skip


def test_compile_sh_compiles_every_package_and_says_how_to_chat(tmp_path: Path) -> None:
    done = run_compile(tmp_path, "Darwin")

    folder = tmp_path / "a model"
    assert (done.returncode, done.stderr) == (0, "")
    names = [*described().names.all]
    assert sorted(path.stem for path in folder.glob("*.mlmodelc")) == sorted(names)
    assert f"python tests/chat.py --meta '{folder}/meta.yaml'" in done.stdout


@pytest.mark.parametrize(
    ("system", "xcode", "error"),
    [
        (
            "Linux",
            True,
            "error: this is Linux, Apple's compiler runs on macOS alone, run compile.sh of a copy "
            "on a Mac\n",
        ),
        (
            "Darwin",
            False,
            "error: no coremlcompiler, it comes with Xcode, install that from the App Store and "
            "open it once\n",
        ),
    ],
)
def test_compile_sh_says_what_is_missing(
    tmp_path: Path, system: str, xcode: bool, error: str
) -> None:
    done = run_compile(tmp_path, system, xcode)

    assert (done.returncode, done.stdout, done.stderr) == (1, "", error)
