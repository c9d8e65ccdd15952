"""Receipts: what they say, what they notice, and what an interruption leaves of them."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from gguf import GGMLQuantizationType, GGUFReader

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from converter import receipt
from converter.errors import OutputError, SourceError
from converter.receipt import (
    differences,
    hash_files,
    hash_parts,
    parts_of,
    pending_path,
    read_receipt,
)
from tests.converter.test_base import write_llama_gguf
from tests.gguf_files import Keys, write_gguf
from tests.gguf_models import write_adapter
from tests.hub_server import HubServer
from tests.tiny_models import make_adapter, make_model, write_tokenizer


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("receipt") / "tiny"
    make_model("llama").save_pretrained(folder)
    write_tokenizer(folder)
    return folder


@pytest.fixture
def output(source: Path, tmp_path: Path) -> Path:
    arguments = ["--kv-cache-max-len", "64", "--prefill-seq-len", "8,16", "--quiet"]
    assert main(["convert", str(source), "--output-dir", str(tmp_path), *arguments]) == 0
    return tmp_path / "tiny.litertlm"


def said(output: Path) -> dict[str, Any]:
    return read_receipt(output.with_suffix(".json"))


def test_it_says_what_was_read_and_what_came_out(source: Path, output: Path) -> None:
    found = said(output)
    names = {entry["name"] for entry in found["source"]["files"]}
    assert names == {path.name for path in source.iterdir()}
    for entry in found["source"]["files"]:
        content = (source / entry["name"]).read_bytes()
        assert (entry["size"], entry["blake3"]) == (len(content), blake3(content).hexdigest())
    assert found["source"]["kind"] == "folder"
    assert found["source"]["model"] == str(source)
    content = output.read_bytes()
    end = 0
    for part in found["output"]["parts"]:
        assert part["offset"] == end  # no byte is left out
        end += part["size"]
        assert part["blake3"] == blake3(content[part["offset"] : end]).hexdigest()
    assert end == found["output"]["size"] == len(content)
    kinds = [part["name"] for part in found["output"]["parts"]]
    assert kinds[:3] == ["header", "TFLiteModel", "LlmMetadataProto"]
    assert found["options"] == {
        "quantize": "dynamic_int8_a16",
        "clip": "mse",
        "calibrate": None,
        "bits": None,
        "prefill_lengths": [8, 16],
        "cache_length": 64,
        "kv_cache": "fp32",
        "target": "cpu",
        "draft": "none",
        "engine": "direct",
        "adapters": [],
        "chat_template": None,
    }
    assert found["plan"]["output_bytes"] == len(content)
    assert found["plan"]["source_types"] == {"F32": 21}
    assert found["versions"]["numpy"]
    assert found["check"] is None


def test_a_length_that_a_budget_chose_is_said_as_a_number(source: Path, tmp_path: Path) -> None:
    arguments = ["--kv-cache-max-len", "auto", "--prefill-seq-len", "8,16", "--quiet"]
    output, again = (tmp_path / name / "tiny.litertlm" for name in ("a", "b"))
    assert main(["convert", str(source), "--output-dir", str(output.parent), *arguments]) == 0
    assert said(output)["options"]["cache_length"] == 4096
    receipt = str(output.with_suffix(".json"))
    arguments = ["--from-receipt", receipt, "--output-dir", str(again.parent), "--quiet"]
    assert main(["convert", *arguments, "--memory", "1GB"]) == 2
    assert main(["convert", *arguments]) == 0
    assert again.read_bytes() == output.read_bytes()


def test_it_says_how_the_source_was_quantised(source: Path, tmp_path: Path) -> None:
    path = write_llama_gguf(source, tmp_path / "small.gguf", GGMLQuantizationType.Q4_0)
    assert main(["convert", str(path), "--output-dir", str(tmp_path), "--quiet"]) == 0
    types = said(tmp_path / "small.litertlm")["plan"]["source_types"]
    assert types == {"Q4_0": 16, "F32": 5}  # matrices; norms


def test_two_conversions_have_the_same_receipt(source: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert main(["convert", str(source), "--output-dir", str(tmp_path / name), "--quiet"]) == 0
    assert (tmp_path / "a/tiny.json").read_bytes() == (tmp_path / "b/tiny.json").read_bytes()


def test_every_changed_byte_is_found_and_placed(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["verify", str(output)]) == 0
    assert capsys.readouterr().out == "MATCH\n"
    content = output.read_bytes()
    for part in parts_of(output):
        for place in (part.offset + 64, part.offset + part.size // 2, part.offset + part.size - 1):
            changed = bytearray(content)
            changed[place] ^= 1
            output.write_bytes(changed)
            assert main(["verify", str(output)]) == EXIT_FAILURE
            printed = capsys.readouterr()
            assert part.name in printed.out, place
            assert printed.err.count("\n") == 1
            assert "convert --from-receipt" in printed.err


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda c: c[:-1], "cut off, in or before "),
        (lambda c: c[:20000], "cut off, in or before TFLiteModel"),
        (lambda c: c[:10], "cut off, in or before header"),
        (lambda c: b"", "cut off, in or before header"),
        (lambda c: c + b"x", "something was added at its end"),
        (lambda c: bytes(len(c)), "header: "),
    ],
)
def test_what_is_cut_off_or_added(output: Path, change: Any, line: str) -> None:
    found = said(output)
    output.write_bytes(change(output.read_bytes()))
    assert any(line in difference for difference in differences(found, output))


def test_what_verify_advises_makes_the_file_again(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = output.read_bytes()
    damaged = content[:-1] + bytes([content[-1] ^ 1])
    output.write_bytes(damaged)
    assert main(["verify", str(output)]) == EXIT_FAILURE
    advice = capsys.readouterr().err.partition("litert-lm-cli convert ")[2].split()
    # Without --force, what is there is neither taken for the model nor touched.
    without = [word for word in advice if word != "--force"]
    assert main(["convert", *without]) == EXIT_FAILURE
    assert f"{output}, it exists, and is not what the receipt says" in capsys.readouterr().err
    assert output.read_bytes() == damaged
    assert main(["convert", *advice]) == 0
    assert output.read_bytes() == content
    assert main(["convert", *without]) == 0  # now it is, and is kept
    assert f"keeping {output}" in capsys.readouterr().err


def test_the_same_bytes_again(
    source: Path, output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    again = tmp_path / "again"
    paper = str(output.with_suffix(".json"))
    assert main(["convert", "--from-receipt", paper, "--output-dir", str(again), "--quiet"]) == 0
    assert (again / "tiny.litertlm").read_bytes() == output.read_bytes()
    assert (again / "tiny.json").read_bytes() == Path(paper).read_bytes()
    # The model has another place and another name now.
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in source.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    options = ["--output-dir", str(again), "--force", "--quiet"]
    assert main(["convert", str(moved), "--from-receipt", paper, *options]) == 0
    assert (again / "tiny.litertlm").read_bytes() == output.read_bytes()
    # Another model, though it looks alike.
    capsys.readouterr()
    (moved / "config.json").write_bytes((moved / "config.json").read_bytes() + b" ")
    assert main(["convert", str(moved), "--from-receipt", paper, *options]) == EXIT_FAILURE
    assert "config.json, it is not the file that the receipt names" in capsys.readouterr().err
    assert (again / "tiny.litertlm").read_bytes() == output.read_bytes()


def test_drafts_stand_in_it(source: Path, tmp_path: Path) -> None:
    options = ["--prefill-seq-len", "8,16", "--draft", "lookup:2", "--quiet"]
    assert main(["convert", str(source), "--output-dir", str(tmp_path), *options]) == 0
    output = tmp_path / "tiny.litertlm"
    assert said(output)["options"]["draft"] == "lookup:2"
    kinds = [part["name"] for part in said(output)["output"]["parts"]]
    assert kinds[1:4] == ["TFLiteModel"] * 3
    assert main(["verify", str(output)]) == 0
    again = ["--output-dir", str(tmp_path / "again"), "--quiet"]
    assert main(["convert", "--from-receipt", str(output.with_suffix(".json")), *again]) == 0
    assert (tmp_path / "again/tiny.litertlm").read_bytes() == output.read_bytes()


def test_other_bytes_than_those_of_the_receipt_are_not_kept(
    output: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paper = output.with_suffix(".json")
    found = said(output)
    found["output"]["parts"][1]["blake3"] = "0" * 64
    paper.write_text(json.dumps(found))
    again = tmp_path / "again"
    assert main(["convert", "--from-receipt", str(paper), "--output-dir", str(again)]) == 1
    assert "it would not be the bytes of the receipt (TFLiteModel: " in capsys.readouterr().err
    assert not again.exists()


def test_a_side_file_that_changes_meanwhile(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It was read long before it is hashed."""
    edited = Path(shutil.copytree(source, tmp_path / "source"))
    hash_parts = receipt.hash_parts

    def edit(path: Path) -> list[dict[str, Any]]:
        with (edited / "tokenizer_config.json").open("a") as file:
            file.write(" ")
        return hash_parts(path)

    monkeypatch.setattr(receipt, "hash_parts", edit)
    out = tmp_path / "out"
    assert main(["convert", str(edited), "--output-dir", str(out), "--quiet"]) == EXIT_FAILURE
    assert "tokenizer_config.json, it changed while it was read" in capsys.readouterr().err
    assert not out.exists()


def test_the_receipt_decides_alone(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paper = str(output.with_suffix(".json"))
    for option in (["--quantize", "fp16"], ["--clip", "max"], ["--dry-run"], ["--revision", "x"]):
        assert main(["convert", "--from-receipt", paper, *option]) == EXIT_USAGE
        assert f"the receipt decides, not {option[0]}" in capsys.readouterr().err
    assert main(["convert"]) == EXIT_USAGE
    assert "the following arguments are required: MODEL" in capsys.readouterr().err


def test_a_file_of_that_name_that_is_no_receipt_stays(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "tiny.json"
    mine.write_text('{"mine": 1}')
    assert main(["convert", str(source), "--output-dir", str(tmp_path), "--quiet"]) == 1
    assert "would replace it, and it is none" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.json"]
    assert mine.read_text() == '{"mine": 1}'


def test_a_run_that_was_stopped_between_the_two_names(output: Path) -> None:
    """The output had its name already, or had not: its receipt is completed, or removed."""
    paper, waiting = output.with_suffix(".json"), pending_path(output)
    right = paper.read_bytes()
    wrong = json.loads(right)
    wrong["output"]["parts"][1]["blake3"] = "0" * 64
    paper.write_text(json.dumps(wrong))  # that of the file which was replaced
    waiting.write_bytes(right)
    receipt.settle(output)
    assert paper.read_bytes() == right
    assert not waiting.exists()
    for left in (json.dumps(wrong).encode(), b"", b"{"):
        waiting.write_bytes(left)
        receipt.settle(output)
        assert paper.read_bytes() == right
        assert not waiting.exists()


def test_a_disk_that_fails_between_the_two_names(
    source: Path, output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new output has its name, and its receipt cannot be given one: it waits for the next."""
    output.with_suffix(".json").write_text(json.dumps(said(output) | {"check": {"older": True}}))
    replace = os.replace

    def failing(old: Path, new: Path) -> None:
        if Path(new).suffix == ".json":
            raise OSError(28, "No space left on device")
        replace(old, new)

    arguments = ["convert", str(source), "--output-dir", str(output.parent), "--force", "--quiet"]
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", failing)
        assert main(arguments) == EXIT_FAILURE
        assert "No space left on device" in capsys.readouterr().err
        assert pending_path(output).is_file()
    assert main(["verify", str(output)]) == 0
    assert said(output)["check"] is None
    assert not pending_path(output).exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"null", b"[" * 100_000, b'{"receipt": 2}', b"\xff", b'{"receipt": 1}'],
)
def test_what_is_no_receipt_is_refused(output: Path, content: bytes) -> None:
    paper = output.with_suffix(".json")
    paper.write_bytes(content)
    for arguments in (["verify", str(output)], ["convert", "--from-receipt", str(paper)]):
        assert main(arguments) == EXIT_FAILURE


@pytest.mark.parametrize("name", ["../up", "/tmp/away", "a/b", "C:x", "..", "", "a\nb"])
def test_a_receipt_names_no_other_folder(
    output: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = said(output)
    found["output"]["name"] = name
    paper = tmp_path / "stranger.json"
    paper.write_text(json.dumps(found))
    arguments = ["--output-dir", str(tmp_path / "below"), "--quiet"]
    assert main(["convert", "--from-receipt", str(paper), *arguments]) == EXIT_FAILURE
    assert "the output's name is not a plain one" in capsys.readouterr().err
    assert not (tmp_path / "below").exists()


def test_a_damaged_receipt_is_refused(output: Path) -> None:
    """Each value in turn is replaced by others: a refusal or an answer, never a traceback."""
    whole = said(output)

    def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        keys = value.keys() if isinstance(value, dict) else range(len(value))
        found = []
        for key in list(keys)[:6]:
            found.append((*path, key))
            if isinstance(value[key], dict | list):
                found += places(value[key], (*path, key))
        return found

    paper = output.with_suffix(".json")
    output.write_bytes(bytes(output.stat().st_size))  # so that the receipt alone says what is where
    for place in places({key: whole[key] for key in ("receipt", "output", "source")}):
        for value in (None, [], {}, "x", -1, 1 << 70):
            damaged = copy.deepcopy(whole)
            target = damaged
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value
            paper.write_text(json.dumps(damaged))
            with contextlib.suppress(SourceError):
                differences(read_receipt(paper), output)


@pytest.mark.parametrize("value", [5, ["main"], {}, False])
def test_an_origin_that_is_no_text_is_refused(
    output: Path, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, commit, file = said(output), said(output), said(output)
    adapter["options"]["adapters"] = [
        {"kind": "hub", "model": "org/adapter", "commit": value, "weight": 1.0, "files": []}
    ]
    commit["source"] |= {"kind": "hub", "model": "org/model", "commit": value}
    file["source"] |= {"kind": "hub", "model": "org/model", "file": value}
    paper = output.with_name("stranger.json")
    for damaged in (adapter, commit, file):
        paper.write_text(json.dumps(damaged))
        assert main(["convert", "--from-receipt", str(paper), "--force", "--quiet"]) == EXIT_FAILURE
        assert "a commit or a file's name is no text" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [("prefill_lengths", [-1]), ("prefill_lengths", []), ("prefill_lengths", 5), ("clip", {}),
     ("calibrate", 5), ("calibrate", {}), ("target", []), ("cache_length", None),
     ("draft", "eagle"), ("bits", "many"), ("adapter", "x")],
)  # fmt: skip
def test_damaged_options_are_refused(
    output: Path, option: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = said(output)
    damaged["options"][option] = value
    paper = output.with_name("stranger.json")
    paper.write_text(json.dumps(damaged))
    assert main(["convert", "--from-receipt", str(paper), "--force", "--quiet"]) == EXIT_FAILURE
    assert "its options are damaged" in capsys.readouterr().err


def test_the_same_bytes_again_from_a_hub(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights, and a file that was converted already; the commit of the receipt is asked for."""
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        shutil.copytree(source, hub.root / "org" / "weights")
        ready = ["--output-dir", str(hub.root / "org" / "ready"), "--quiet"]
        assert main(["convert", str(source), *ready]) == 0
        (hub.root / "org" / "ready" / "tiny.json").unlink()
        for name in ("weights", "ready"):
            assert main(["convert", f"org/{name}", "--quiet"]) == 0
            output = tmp_path / "models" / "org" / name / f"{name}.litertlm"
            found = said(output)
            assert found["source"]["kind"] == "hub"
            assert found["source"]["commit"] == hub.commit(f"org/{name}")
            again = ["--output-dir", str(tmp_path / "again"), "--quiet"]
            paper = str(output.with_suffix(".json"))
            assert main(["convert", "--from-receipt", paper, *again]) == 0
            assert (tmp_path / "again" / output.name).read_bytes() == output.read_bytes()


@pytest.mark.parametrize("on_hub", [True, False])
def test_the_same_bytes_again_with_adapters(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_hub: bool
) -> None:
    """A folder of PEFT's, and two GGUFs that lie in one folder or repository."""
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder, ggufs = hub.root / "org" / "a", hub.root / "org" / "b"
        config = make_model("llama").config
        make_adapter(make_model("llama"), folder, target_modules=["q_proj"])
        ggufs.mkdir()
        for alpha in (1, 2):
            write_adapter(config, folder, ggufs / f"{alpha}.gguf", alpha)
        named = ["org/a", "org/b:1.gguf", "org/b:2.gguf"]
        if not on_hub:
            named = [str(folder), f"{ggufs}/1.gguf", f"{ggufs}/2.gguf"]
        adapters = ["--lora", named[0], "--lora", f"{named[1]}:0.5", "--lora", f"{named[2]}:-2"]
        options = ["--quiet", "--output-dir", str(tmp_path / "out")]
        assert main(["convert", str(source), *adapters, *options]) == 0
        output = tmp_path / "out" / "tiny-a-1-0.5-2--2.litertlm"
        found = said(output)["options"]["adapters"]
        assert [adapter["weight"] for adapter in found] == [1.0, 0.5, -2.0]
        files = [
            [folder / "adapter_config.json", folder / "adapter_model.safetensors"],
            *([ggufs / f"{alpha}.gguf"] for alpha in (1, 2)),
        ]
        assert [adapter["files"] for adapter in found] == [hash_files(each) for each in files]
        if on_hub:
            assert [adapter["model"] for adapter in found] == ["org/a", "org/b", "org/b"]
            assert [adapter["file"] for adapter in found] == [None, "1.gguf", "2.gguf"]
            commits = [hub.commit("org/a"), hub.commit("org/b"), hub.commit("org/b")]
            assert [adapter["commit"] for adapter in found] == commits
        else:
            assert [adapter["model"] for adapter in found] == named
        options[-1] = str(tmp_path / "again")
        paper = str(output.with_suffix(".json"))
        assert main(["convert", "--from-receipt", paper, *options]) == 0
        assert (tmp_path / "again" / output.name).read_bytes() == output.read_bytes()
        assert said(tmp_path / "again" / output.name) == said(output)

        write_adapter(config, folder, ggufs / "2.gguf", 3)
        shutil.rmtree(tmp_path / "models", ignore_errors=True)
        assert main(["convert", "--from-receipt", paper, "--force", *options]) == EXIT_FAILURE


def test_every_part_of_an_adapter_counts(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As llama-gguf-split leaves it; whichever part is named."""
    make_adapter(make_model("llama"), tmp_path / "a", target_modules=["q_proj"])
    whole = write_adapter(make_model("llama").config, tmp_path / "a", tmp_path / "a.gguf", 6)
    tensors = [(tensor.name, tensor.data) for tensor in GGUFReader(whole).tensors]
    said_of_all = {
        ":general.type": "adapter",
        ":adapter.type": "lora",
        ":adapter.lora.alpha": 6.0,
    }
    parts = [tmp_path / f"p-0000{number}-of-00002.gguf" for number in (1, 2)]
    for number, part in enumerate(parts):
        keys: Keys = said_of_all | {":split.no": number, ":split.count": 2}
        write_gguf(part, keys, dict(tensors[number::2]))
    command = ["convert", str(source), "--lora", str(parts[1]), "--output-dir", str(tmp_path)]
    assert main(command) == 0
    [output] = tmp_path.glob("*.litertlm")
    assert said(output)["options"]["adapters"][0]["files"] == hash_files(parts)
    for part in parts:
        capsys.readouterr()
        assert main(command) == 0
        assert "older than" not in capsys.readouterr().err
        before, later = part.stat().st_mtime_ns, output.stat().st_mtime_ns + 1_000_000
        os.utime(part, ns=(later, later))
        assert main(command) == 0
        assert "older than what it was made of" in capsys.readouterr().err
        os.utime(part, ns=(before, before))


@pytest.mark.parametrize("kind", ["a", "a.gguf"])
def test_a_kept_output_that_is_older_than_its_adapter_is_called_so(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    config = make_model("llama").config
    make_adapter(make_model("llama"), tmp_path / "a", target_modules=["q_proj"])
    write_adapter(config, tmp_path / "a", tmp_path / "a.gguf", 6)
    command = ["convert", str(source), "--lora", str(tmp_path / kind)]
    command += ["--output-dir", str(tmp_path / "out")]
    for age, is_older in (("", False), ("", False), ("later", True)):
        file = tmp_path / (kind if kind.endswith(".gguf") else f"{kind}/adapter_model.safetensors")
        if age:
            later = (tmp_path / "out" / "tiny-a.litertlm").stat().st_mtime_ns + 1_000_000
            os.utime(file, ns=(later, later))
        assert main(command) == 0
        assert ("older than what it was made of" in capsys.readouterr().err) == is_older


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", "1"), ("weight", None), ("weight", float("nan")), ("model", None), ("kind", 5),
     ("files", None), ("files", {})],
)  # fmt: skip
def test_damaged_adapters_are_refused(
    output: Path, key: str, value: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = said(output)
    adapter = {"kind": "folder", "model": "/a", "weight": 1.0, "files": [], key: value}
    paper = output.with_name("stranger.json")
    for adapters in ([adapter], adapter, "x"):
        damaged["options"]["adapters"] = adapters
        paper.write_text(json.dumps(damaged))
        assert main(["convert", "--from-receipt", str(paper), "--force", "--quiet"]) == EXIT_FAILURE
        assert "its adapters are damaged" in capsys.readouterr().err


def test_an_adapter_that_is_not_here_is_not_looked_at(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`check` and `--dry-run` download none; what was fetched before will do."""
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    commands = (["check", str(source)], ["convert", str(source), "--dry-run"])
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        make_adapter(make_model("llama"), hub.root / "org" / "a", target_modules=["q_proj"])
        for command in commands:
            assert main([*command, "--lora", "org/a:2"]) == EXIT_FAILURE
            assert "--lora org/a, it is not downloaded yet" in capsys.readouterr().err
        options = ["--quiet", "--output-dir", str(tmp_path / "out")]
        assert main(["convert", str(source), "--lora", "org/a:2", *options]) == 0
        for command in commands:
            assert main([*command, "--lora", "org/a:2"]) == 0
            assert "tiny-a-2" in capsys.readouterr().out


def test_a_receipt_that_cannot_be_written(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = receipt.ReceiptWriter(output)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("converter.output.atomic_file.write_at", full)
    before = {path.name for path in output.parent.iterdir()}
    with pytest.raises(OutputError, match="No space left on device"):
        writer.prepare({}, output)
    assert {path.name for path in output.parent.iterdir()} == before


def test_parts_are_hashed_as_they_lie(output: Path) -> None:
    assert [part["name"] for part in hash_parts(output)] == [p.name for p in parts_of(output)]
