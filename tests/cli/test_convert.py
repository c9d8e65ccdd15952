"""`litert-lm-cli convert`: where results go, what is said, and every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cli.inspect import size
from cli.main import main
from converter.checkpoint.demo import DEMO
from converter.checkpoint.sources import DEMO_ID
from converter.errors import OptionError
from converter.litertlm.inspection import read_bundle
from converter.options import parse_prefill_lengths
from converter.weights.quantization import SCHEMES
from tests.gguf_files import write_gguf
from tests.hub_server import HubServer
from tests.tiny_models import make_checkpoint

ROOT = Path(__file__).parents[2]
WEIGHTS = "model.safetensors"
KEPT = "litert-lm-cli: keeping {}, which exists{} (convert --force replaces it)\n"
AS_MADE = " in dynamic_int8_a16 for cpu with a context of 1280 tokens"


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("convert") / "llama"
    make_checkpoint("llama", folder)
    return folder


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    monkeypatch.setenv("LITERT_LM_MODELS", str(folder))
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        use_hub(server.url, tmp_path, monkeypatch)
        yield server


def use_hub(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", url)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def converted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[Path, str]:
    """The path on stdout, which must be all of it, and what stderr holds."""
    assert main(["convert", *map(str, arguments)]) == 0
    printed = capsys.readouterr()
    path = Path(printed.out.removesuffix("\n"))
    assert printed.out == f"{path}\n"
    assert path.is_file()
    return path, printed.err


def refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str | Path, code: int = 1
) -> str:
    """The one line on stderr. Nothing new is on disk, on stdout nothing at all."""
    before = tree(tmp_path)
    assert main(["convert", "--quiet", *map(str, arguments)]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    assert tree(tmp_path) == before
    return printed.err.removeprefix("error: ").removesuffix("\n")


# Where the result goes ---------------------------------------------------------------------------


def test_a_local_folder(llama: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, said = converted(capsys, llama)
    assert path == models / "local" / "llama" / "llama.litertlm"
    assert tree(models) == [
        "local",
        "local/llama",
        "local/llama/llama.json",
        "local/llama/llama.litertlm",
    ]
    bundle = read_bundle(path)
    assert bundle.system["quantization"] == "dynamic_int8_a16"  # it is small
    assert bundle.metadata.max_num_tokens == 1280
    first, note = said.splitlines()
    about = "llama: llama, dynamic_int8_a16, KV cache 1280, 0 MB"
    assert first == f"litert-lm-cli: {about} -> {path}"
    assert note.startswith("litert-lm-cli: chat template: ")


def test_an_output_folder_is_made(
    llama: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "b"
    assert converted(capsys, llama, "--output-dir", out)[0] == out / "llama.litertlm"
    assert tree(out) == ["llama.json", "llama.litertlm"]
    assert not models.exists()


def test_a_gguf(tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which layers it lacks is told by what it has: the small one is no whole model."""
    gguf = write_gguf(tmp_path / "small.GGUF")
    line = refused(capsys, tmp_path, gguf)
    assert line.startswith("llama checkpoint, lacks ")
    assert "blk.0.attn_k.weight, " in line


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "dynamic_int4_block128"])
def test_schemes_and_lengths(llama: Path, capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    path, _ = converted(
        capsys, llama, "--quantize", scheme, "--prefill-seq-len", "20,10",
        "--kv-cache-max-len", "50",
    )  # fmt: skip
    bundle = read_bundle(path)
    assert bundle.system["quantization"] == scheme
    assert bundle.metadata.max_num_tokens == 50
    assert [s.name for s in bundle.model.signatures] == ["prefill_10", "prefill_20", "decode"]


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("1", (1,)),
        ("8", (8,)),
        ("100", (8, 16, 32, 64, 100)),
        ("1024", (8, 16, 32, 64, 128, 256, 512, 1024)),
        ("5000", (8, 16, 32, 64, 128, 256, 512, 1024, 5000)),
        ("100,", None),
        ("100,7", (7, 100)),
        ("64, 32", (32, 64)),
        ("64,64", None),
        ("0", None),
        ("-8", None),
        ("64,0", None),
        ("1.5", None),
        ("many", None),
        ("", None),
    ],
)
def test_prefill_lengths(text: str, lengths: tuple[int, ...] | None) -> None:
    if lengths is not None:
        assert parse_prefill_lengths(text) == lengths
        return
    with pytest.raises(OptionError):
        parse_prefill_lengths(text)


def test_a_kept_output_that_is_older_than_its_model_is_called_so(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(llama, tuned)
    path, _ = converted(capsys, tuned)
    assert converted(capsys, tuned) == (path, KEPT.format(path, AS_MADE))
    later = path.stat().st_mtime_ns + 1_000_000
    os.utime(tuned / "model.safetensors", ns=(later, later))  # as after more training
    older = f"{AS_MADE}, older than what it was made of"
    assert converted(capsys, tuned) == (path, KEPT.format(path, older))


def test_an_existing_output_is_kept_unless_forced(
    llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = converted(capsys, llama)
    content = path.read_bytes()
    path.write_bytes(b"kept")
    again, said = converted(capsys, llama, "--quantize", "fp32")
    # What it is, nobody can say.
    unknown = ", and nothing says that it was made with --quantize fp32"
    assert (again, said) == (path, KEPT.format(path, unknown))
    assert path.read_bytes() == b"kept"
    assert converted(capsys, llama, "--quiet") == (path, "")
    assert path.read_bytes() == b"kept"
    converted(capsys, llama, "--force")
    assert path.read_bytes() == content
    assert tree(path.parent) == ["llama.json", "llama.litertlm"]


def test_a_failed_replacement_keeps_what_was_there(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(llama, tmp_path / "llama")
    path, _ = converted(capsys, source)
    content = path.read_bytes()
    (source / WEIGHTS).write_bytes((source / WEIGHTS).read_bytes()[:-1])
    refused(capsys, tmp_path, source, "--force")
    assert path.read_bytes() == content


def test_quiet(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert converted(capsys, llama, "--quiet")[1] == ""


def test_progress_adds_up_to_everything(
    llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cli.progress._SECONDS_TO_A_LINE", 0)
    monkeypatch.setattr("cli.progress._MOST_SECONDS_BETWEEN_LINES", 0)
    for options in (["--quantize", "fp16"], ["--quantize", "dynamic_int8", "--force"]):
        lines = converted(capsys, llama, *options)[1].splitlines()
        shown = [line for line in lines if line.endswith(" s left")]
        assert len(shown) == 21  # a line for each of the tiny weights
        done, total = re.findall(r"[\d.]+", shown[-1])[:2]
        assert done == total
        assert shown[-1].endswith("/s, 0 s left")
    assert converted(capsys, llama, "--quiet", "--force")[1] == ""


def test_as_a_program_with_another_hash_seed(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here, _ = converted(capsys, llama)
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-m", "cli", "convert", str(llama), "--output-dir", str(out)],
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": "77"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout == f"{out / 'llama.litertlm'}\n"
    assert all(line.startswith("litert-lm-cli: ") for line in done.stderr.splitlines())
    assert (out / "llama.litertlm").read_bytes() == here.read_bytes()


def test_the_hub_is_asked_for_the_model_alone(hub: HubServer, tmp_path: Path) -> None:
    make_checkpoint("llama", tmp_path / "hub/org/tiny")
    done = subprocess.run(
        [sys.executable, "-m", "cli", "convert", "org/tiny", "--output-dir", str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"HOME": str(tmp_path), "HF_HOME": str(tmp_path / "cache")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert hub.fetched()
    assert all("org/tiny" in item.path for item in hub.seen)


def test_a_path_that_is_no_text(llama: Path, tmp_path: Path) -> None:
    """Bytes in, the same bytes out."""
    out = os.fsencode(tmp_path) + b"/caf\xe9"
    done = subprocess.run(
        [sys.executable, "-m", "cli", "convert", str(llama), "--output-dir", out],
        cwd=ROOT,
        env=os.environ | {"PYTHONUTF8": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, out + b"/llama.litertlm\n")
    assert os.path.isfile(out + b"/llama.litertlm")


# Options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ["--quantize", "int3"],
            "--quantize int3, no such scheme, choose one of: dynamic_int8, dynamic_int8_a16, "
            "dynamic_int6, dynamic_int6_a16, dynamic_int4, dynamic_int4_mixed, "
            "dynamic_int4_block128, int8, fp16, fp32",
        ),
        *(
            (
                ["--draft", text],
                f"--draft {text}, is no kind of drafts, say none, lookup, or a drafter's folder or "
                "Hugging Face id; and :N behind it for at most N drafts at once, N from 1 to 7",
            )
            for text in (
                *("lookup:0", "lookup:8", "lookup:", "lookup:x", "none:3", "eagle"),
                *("org/drafter:0", "org/drafter:8"),
            )
        ),
        (
            ["--draft", "lookup", "--target", "gpu"],
            "--draft lookup, its network stands behind branches, which a GPU does not take, leave "
            "it out, or convert for the CPU: --target cpu",
        ),
        (
            ["--draft", "lookup", "--target", "coreml"],
            "--draft, is not about --target coreml, leave it out: no app that reads packages "
            "drafts",
        ),
        (
            ["--prefill-seq-len", "0"],
            "--prefill-seq-len 0, '0' is not a positive integer, "
            "give one length or a comma list, like 64,256",
        ),
        (
            ["--prefill-seq-len=-64"],
            "--prefill-seq-len -64, '-64' is not a positive integer, "
            "give one length or a comma list, like 64,256",
        ),
        (
            ["--prefill-seq-len", "8,8"],
            "--prefill-seq-len 8,8, names a length twice, name each once",
        ),
        (
            ["--prefill-seq-len", "64,128", "--kv-cache-max-len", "32"],
            "--prefill-seq-len 64,128, every length is beyond the KV cache of 32, "
            "choose a shorter one, or a larger --kv-cache-max-len",
        ),
        (
            ["--kv-cache-max-len", "0"],
            "litert-lm-cli convert, argument --kv-cache-max-len: '0' is neither a positive "
            "integer nor auto, see litert-lm-cli convert --help",
        ),
        (
            ["--kv-cache-max-len", "-5"],
            "litert-lm-cli convert, argument --kv-cache-max-len: '-5' is neither a positive "
            "integer nor auto, see litert-lm-cli convert --help",
        ),
        (
            ["--kv-cache-max-len", "4097"],
            "--kv-cache-max-len 4097, llama was made for at most 4096 positions, "
            "choose 4096 or less",
        ),
    ],
)
def test_bad_options(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    line: str,
) -> None:
    assert refused(capsys, tmp_path, llama, *options, code=2) == line


@pytest.mark.parametrize(
    "option", [["--force"], ["--quantize", "fp16"], ["--output-dir", "out"]], ids=lambda o: o[0]
)
def test_a_converted_model_takes_no_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    path = tmp_path / "m.litertlm"
    path.touch()
    assert refused(capsys, tmp_path, path, *option, code=2) == (
        f"{path}, it is converted already, its scheme and lengths are fixed, "
        "leave the conversion options out, or convert the original model"
    )
    assert converted(capsys, path)[0] == path


# Sources that are no good ------------------------------------------------------------------------


def rewritten(source: Path, edit: Callable[[dict[str, dict]], None], more: bytes = b"") -> None:
    """Change the header of the weights file."""
    path = source / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    packed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(packed)) + packed + content[8 + length :] + more)


def with_tensors(source: Path, **changes: np.ndarray | None) -> None:
    tensors = {**load_file(source / WEIGHTS), **changes}
    save_file({n: a for n, a in tensors.items() if a is not None}, source / WEIGHTS)


def with_config(source: Path, **changes: object) -> None:
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **changes}))


def truncate(source: Path) -> None:
    path = source / WEIGHTS
    os.truncate(path, path.stat().st_size - 100)


def overlap(source: Path) -> None:
    def edit(header: dict[str, dict]) -> None:
        for name in ("model.layers.0.self_attn.k_proj.weight", "model.layers.0.mlp.up_proj.weight"):
            begin, end = header[name]["data_offsets"]
            header[name]["data_offsets"] = [begin - 4, end - 4]

    rewritten(source, edit)


def claim_a_huge_header(source: Path) -> None:
    content = (source / WEIGHTS).read_bytes()
    (source / WEIGHTS).write_bytes(struct.pack("<Q", len(content)) + content[8:])


def lose_a_shard(source: Path) -> None:
    names = load_file(source / WEIGHTS)
    weight_map = dict.fromkeys(names, "model-00001-of-00002.safetensors")
    (source / WEIGHTS).rename(source / "model-00001-of-00002.safetensors")
    weight_map["lm_head.weight"] = "model-00002-of-00002.safetensors"
    index = json.dumps({"weight_map": weight_map})
    (source / "model.safetensors.index.json").write_text(index)


def lose_tensors(source: Path) -> None:
    with_tensors(source, **{"model.norm.weight": None, "lm_head.weight": None})


def turn_a_tensor(source: Path) -> None:
    with_tensors(source, **{"lm_head.weight": np.zeros((64, 320), np.float32)})


def poison(source: Path) -> None:
    tensor = load_file(source / WEIGHTS)["lm_head.weight"]
    tensor[300, 3] = np.nan
    with_tensors(source, **{"lm_head.weight": tensor})


def foreign(source: Path) -> None:
    with_config(source, model_type="mamba")


def no_json(source: Path) -> None:
    (source / "config.json").write_text("{not json")


def no_tokenizer(source: Path) -> None:
    (source / "tokenizer.json").unlink()


def no_config(source: Path) -> None:
    (source / "config.json").unlink()


def only_pickles(source: Path) -> None:
    (source / WEIGHTS).rename(source / "pytorch_model.bin")


def quantised(source: Path) -> None:
    with_config(source, quantization_config={"quant_method": "hqq"})


def unknown_scaling(source: Path) -> None:
    with_config(source, rope_parameters={"rope_type": "mrope", "rope_theta": 1e4})


def stored_as_integers(source: Path) -> None:
    with_tensors(source, **{"lm_head.weight": np.zeros((320, 64), np.int32)})


def escapes(source: Path) -> None:
    with_config(source, model_type="x\x1b[2J\nerror: y\x9b31m")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (truncate, ["/model.safetensors, it ended early: the last 100 bytes of its tensors are"]),
        (overlap, ["/model.safetensors, tensor ", " overlaps the one before it, fetch or copy"]),
        (claim_a_huge_header, ["/model.safetensors, its header claims ", " but the file has "]),
        (lose_a_shard, ["model-00002-of-00002.safetensors is missing, which model.safetensors.in"]),
        (lose_tensors, ["llama checkpoint, lacks 2 tensors: norm.weight, lm_head.weight, "]),
        (
            turn_a_tensor,
            [
                "bad, 1 tensors have the wrong shape: "
                "lm_head.weight is [64, 320], config says [320, 64], check that config.json"
            ],
        ),
        (poison, ["bad: lm_head.weight, holds NaN or infinite values (rows 0 to 319), the check"]),
        (
            foreign,
            [
                "model_type mamba, its layers keep another state than keys and values, which is "
                "not supported yet, use a model of one of these families: "
            ],
        ),
        (no_json, ["/config.json, it is not JSON ("]),
        (no_tokenizer, ["tokenizer"]),
        (no_config, ["bad, config.json is missing, copy it from the original model"]),
        (only_pickles, ["its weights are in PyTorch's pickle format (pytorch_model.bin)"]),
        (quantised, ["quantised already, in a layout that is not read (hqq), convert"]),
        (unknown_scaling, ["llama: rope_scaling.rope_type='mrope', not supported, only "]),
        (stored_as_integers, ["that is not read (tensor lm_head.weight is stored as I32), "]),
        (escapes, ["model_type x [2J error: y 31m, not a supported architecture, "]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_bad_folders(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    expected: list[str],
) -> None:
    source = shutil.copytree(llama, tmp_path / "bad")
    spoil(source)
    line = refused(capsys, tmp_path, source)
    assert line.isprintable()
    for part in expected:
        assert part in line
    # To another folder, too, and after an announcement the error is still the last line.
    out = tmp_path / "new" / "out"
    assert main(["convert", str(source), "--output-dir", str(out)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    *said, last = printed.err.splitlines()
    assert last == f"error: {line}"
    assert all(line.startswith("litert-lm-cli: ") for line in said)
    assert not (tmp_path / "new").exists()


def test_debug_shows_where_it_failed(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(llama, tmp_path / "bad")
    poison(source)
    for arguments in (["--debug", "convert", str(source)], ["convert", str(source), "--debug"]):
        assert main(arguments) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback (most recent call last):" in printed.err
        assert "ValueRangeError" in printed.err
        assert printed.err.splitlines()[-1].startswith("error: bad: lm_head.weight, holds NaN")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.gguf", b"", ".gguf, "),
        ("x.gguf", b"PK\x03\x04" * 30, ".gguf, "),
        ("x.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 40, 1 << 40), ".gguf, "),
        ("x.gguf", b"GGUF" + b"\xff" * 200, ".gguf, "),
        ("x.safetensors", b"{}", "one weight file is not a model: "),
        ("x.txt", b"hello", "it is not a model that can be converted, pass a Hugging Face id "),
        ("x", b"", "it is an empty file, download or copy it again"),
    ],
)
def test_files_that_are_no_models(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    expected: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert expected in refused(capsys, tmp_path, tmp_path / name)


def test_a_truncated_gguf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = write_gguf(tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (len(content) - 1, len(content) // 2, 300, 30, 5):
        path.write_bytes(content[:length])
        assert refused(capsys, tmp_path, path).startswith(f"{path}, ")


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("./none", "./none, no such file or folder, check the path"),
        ("none.gguf", "none.gguf, no such file or folder, check the path"),
        ("none", "none, there is no such file or folder, and a Hugging Face id has the form org/n"),
        ("", "'', there is no such file or folder, "),
        ("a/b/c", "a/b/c, it is neither a file or folder nor a Hugging Face id, "),
        ("a\x1b[2J\nb/c", r"'a\x1b[2J\nb/c', it is neither a file or folder nor a Hugging Face id"),
    ],
)
def test_models_that_do_not_exist(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(capsys, tmp_path, model).startswith(expected)


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    line = refused(capsys, tmp_path, tmp_path / "empty")
    assert "/empty, config.json and *.safetensors are missing, pass a Hugging Face id" in line


# The plan ----------------------------------------------------------------------------------------


def planned(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *arguments: str | Path
) -> tuple[str, str]:
    """stdout and stderr of a dry run. Nothing new is on disk."""
    before = tree(tmp_path)
    assert main(["convert", "--dry-run", *map(str, arguments)]) == 0
    assert tree(tmp_path) == before
    return capsys.readouterr()


def with_free_disk(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    usage = shutil.disk_usage("/")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)


def test_a_dry_run(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    said = planned(
        capsys, tmp_path, llama, "--output-dir", out, "--prefill-seq-len", "8,16",
        "--kv-cache-max-len", "32",
    )  # fmt: skip
    assert said[1] == ""
    path, _ = converted(capsys, llama, "--output-dir", out, "--prefill-seq-len", "8,16",
        "--kv-cache-max-len", "32")  # fmt: skip
    lines = said[0].splitlines()
    assert lines[:11] == [
        f"{path}  {size(path.stat().st_size)}",
        "  model: llama",
        "  family: llama",
        "  quantization: dynamic_int8_a16",
        "  target: cpu",
        "  chat template: none, the source has none",
        "  KV cache: 32 tokens in fp32",
        "  draft: none",
        f"  threads: {os.cpu_count()}",
        "",
        "Signatures",
    ]
    # The signatures are told as `inspect` tells them.
    assert main(["inspect", str(path)]) == 0
    inspected = capsys.readouterr().out
    assert said[0].partition("Signatures\n")[2].partition("\n\n")[0] in inspected
    for line in (
        "  embedding   int8           20.5 kB  x1",
        "  norm        float32         1.3 kB  x5",
        "  linear      int8           61.4 kB  x14",
        "  head        int8           20.5 kB  x1",
        f"  output                {size(path.stat().st_size):>12}",
    ):
        assert line in lines
    assert lines[-1].endswith(" free")


@pytest.mark.parametrize(("options", "target"), [((), "cpu"), (("--target", "gpu"), "gpu")])
def test_inspect_says_the_target(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    target: str,
) -> None:
    path, _ = converted(capsys, llama, "--output-dir", tmp_path / "out", *options)
    assert main(["inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["system"]["target"] == target


def test_a_dry_run_as_json(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    text, said = planned(
        capsys, tmp_path, llama, "--json", "--quantize", "fp16", "--output-dir", out
    )
    assert said == ""
    value = json.loads(text)
    assert list(value) == [
        "model", "family", "scheme", "target", "calibration", "bits", "chat_template",
        "output", "output_exists", "kv_cache_length", "kv_cache", "draft",
        "prefill_lengths", "signatures", "tensors", "source_bytes", "weights_bytes",
        "output_bytes", "memory_bytes", "disk_needed_bytes", "disk_free_bytes", "threads",
        "run_memory", "memory_fit",
    ]  # fmt: skip
    path, _ = converted(capsys, llama, "--quantize", "fp16", "--output-dir", out)
    assert main(["inspect", "--json", str(path)]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert value["signatures"] == inspected["signatures"]
    assert value["output"] == str(path)
    assert value["output_bytes"] == value["disk_needed_bytes"] == inspected["size"]
    assert (value["model"], value["scheme"]) == ("llama", "fp16")
    assert (value["kv_cache_length"], value["prefill_lengths"][-1]) == (1280, 1024)
    assert value["tensors"][0] == {
        "kind": "embedding", "dtype": "float16", "count": 1, "bytes": 320 * 64 * 2,
    }  # fmt: skip
    assert value["disk_free_bytes"] > value["disk_needed_bytes"]


def test_a_dry_run_beside_an_existing_output(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = converted(capsys, llama)
    path.write_bytes(b"kept")
    for options, said in (
        ([], "  this file exists and would be kept (--force replaces it)"),
        (["--force"], "  this file exists and would be replaced"),
    ):
        assert planned(capsys, tmp_path, llama, *options)[0].splitlines()[1] == said
        assert json.loads(planned(capsys, tmp_path, llama, "--json", *options)[0])["output_exists"]
    assert path.read_bytes() == b"kept"


def test_a_dry_run_reads_no_weight(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = shutil.copytree(llama, tmp_path / "bad")
    poison(source)
    assert "float32" in planned(capsys, tmp_path, source)[0]
    assert "holds NaN" in refused(capsys, tmp_path, source)


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_dry_run_on_a_full_disk(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
) -> None:
    with_free_disk(monkeypatch, 1000)
    text, said = planned(capsys, tmp_path, llama, *options)
    assert said == ""
    if options:
        assert json.loads(text)["disk_free_bytes"] == 1000
    else:
        assert text.splitlines()[-1].endswith("  1.0 kB free (too little)")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (foreign, "model_type mamba, its layers keep another state "),
        (no_tokenizer, "tokenizer"),
        (turn_a_tensor, "bad, 1 tensors have the wrong shape: "),
        (truncate, "it ended early: "),
        (unknown_scaling, "rope_scaling.rope_type='mrope', not supported, "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_dry_run_of_a_bad_folder(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    expected: str,
) -> None:
    """It is refused with the same words as a conversion."""
    source = shutil.copytree(llama, tmp_path / "bad")
    spoil(source)
    line = refused(capsys, tmp_path, source, "--dry-run")
    assert expected in line
    assert refused(capsys, tmp_path, source, "--dry-run", "--json") == line
    assert refused(capsys, tmp_path, source) == line


def test_json_needs_a_dry_run(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(capsys, tmp_path, llama, "--json", code=2) == (
        "--json, has no effect without --dry-run, add that, or leave it out"
    )


def test_a_dry_run_of_a_converted_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.litertlm"
    path.touch()
    assert refused(capsys, tmp_path, path, "--dry-run", code=2) == (
        f"--dry-run, {path} is converted already, there is nothing to plan, "
        f"see what is in it with litert-lm-cli inspect {path}"
    )


def test_a_dry_run_downloads_nothing(
    llama: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/tiny", llama)
    for model, repo_id in (("org/tiny", "org/tiny"), ("demo", DEMO_ID)):
        assert refused(capsys, tmp_path, model, "--dry-run") == (
            f"{model}, it is not downloaded yet, and a dry run downloads nothing, "
            f"fetch it first (hf download {repo_id} --local-dir DIR) and pass what arrived, "
            "or leave --dry-run out"
        )
    assert hub.seen == []
    # What was downloaded before is planned, and the hub is not asked.
    path, _ = converted(capsys, "org/tiny", "--quiet")
    count = len(hub.seen)
    text, said = planned(capsys, tmp_path, "org/tiny", "--json")
    assert json.loads(text)["output_bytes"] == path.stat().st_size
    assert said == (
        f"litert-lm-cli: planned with what was downloaded to {path.parent / 'checkpoint'}, "
        "nobody was asked for a newer one\n"
    )
    assert planned(capsys, tmp_path, "org/tiny", "--quiet")[1] == ""
    assert "not downloaded yet" in refused(
        capsys, tmp_path, "org/tiny", "--dry-run", "--revision", "other"
    )
    assert len(hub.seen) == count


def test_a_dry_run_of_a_repository_that_has_both(
    llama: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished file is taken, unless options ask for another: as without --dry-run."""
    ours, _ = converted(capsys, llama, "--output-dir", tmp_path)
    publish(hub, "org/both", llama)
    shutil.copy(ours, hub.root / "org" / "both" / "both.litertlm")
    converted(capsys, "org/both", "--quiet")
    assert "converted already" in refused(capsys, tmp_path, "org/both", "--dry-run", code=2)
    converted(capsys, "org/both", "--quiet", "--force", "--quantize", "fp16")
    assert "converted already" in refused(capsys, tmp_path, "org/both", "--dry-run", code=2)
    text, _ = planned(capsys, tmp_path, "org/both", "--json", "--quantize", "fp32")
    assert json.loads(text)["scheme"] == "fp32"


def test_a_small_models_default_is_for_cpus_alone(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, scheme in (
        ([], "dynamic_int8_a16"),
        (["--target", "gpu"], "dynamic_int8"),
        (["--quantize", "dynamic_int8"], "dynamic_int8"),
        (["--quantize", "dynamic_int8_a16", "--target", "gpu"], "dynamic_int8_a16"),
    ):
        text, _ = planned(capsys, tmp_path, llama, "--json", *options)
        assert json.loads(text)["scheme"] == scheme


def test_the_demo_is_planned_as_it_is_converted(
    smollm2_gguf: Path, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = models.joinpath(*DEMO_ID.split("/"), "checkpoint")
    checkpoint.mkdir(parents=True)
    (checkpoint / Path(DEMO.model).name).symlink_to(smollm2_gguf)
    value = json.loads(planned(capsys, tmp_path, "demo", "--json")[0])
    assert value["scheme"] == "dynamic_int8_a16"
    assert value["output"] == str(checkpoint.parent / "SmolLM2-135M-Instruct.litertlm")


def test_too_little_disk_is_seen_before_the_first_byte(
    llama: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    needed = json.loads(planned(capsys, tmp_path, llama, "--json")[0])["disk_needed_bytes"]
    out = tmp_path / "a" / "b"
    with_free_disk(monkeypatch, needed - 1)
    monkeypatch.setattr(
        "converter.output.atomic_file.AtomicFile.__init__", lambda *_: pytest.fail("opened")
    )
    assert refused(capsys, tmp_path, llama, "--output-dir", out) == (
        f"{out}/llama.litertlm, needs {size(needed)} of disk, {size(needed - 1)} are free, "
        "free some or choose another folder with --output-dir"
    )
    # `run` converts by the same way, and the engine is never reached.
    assert main(["run", str(llama), "--prompt", "hello", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"/llama.litertlm, needs {size(needed)} of disk, " in printed.err
    monkeypatch.undo()
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    with_free_disk(monkeypatch, needed)
    path, _ = converted(capsys, llama, "--output-dir", out)
    assert path.stat().st_size == needed
    # What is replaced makes no room before it is replaced.
    with_free_disk(monkeypatch, needed - 1)
    assert "of disk" in refused(capsys, tmp_path, llama, "--output-dir", out, "--force")
    assert path.stat().st_size == needed


# Targets that are no good ------------------------------------------------------------------------


def test_a_target_that_is_a_file(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"kept")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        assert refused(capsys, tmp_path, llama, "--output-dir", out) == (
            f"{out}/llama.litertlm, Not a directory, "
            "choose a writable folder with enough room with --output-dir"
        )
    assert (tmp_path / "file").read_bytes() == b"kept"


_LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
from cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_disk_without_room(llama: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, "convert", str(llama), "--quiet", "--output-dir", out],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"error: {out}/llama.litertlm, File too large, "
        "choose a writable folder with enough room with --output-dir\n"
    )
    assert not out.exists()


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "error: interrupted, at your request, run it again\n"),
        (signal.SIGTERM, 143, "error: interrupted, by SIGTERM, run it again\n"),
        (signal.SIGHUP, 129, "error: interrupted, by SIGHUP, run it again\n"),
    ],
)
def test_an_interruption(
    smollm2_gguf: Path, tmp_path: Path, number: int, code: int, said: str
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", "convert", str(smollm2_gguf), "--quantize", "fp32",
         "--quiet", "--output-dir", str(out)],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(out.glob(".*.partial")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code
    assert (stdout, stderr) == ("", said)
    assert not out.exists()


# The hub -----------------------------------------------------------------------------------------


def publish(hub: HubServer, repo_id: str, source: Path) -> None:
    shutil.copytree(source, hub.root / repo_id)


def test_an_address_end_to_end(
    llama: Path, models: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/Tiny-1.0", llama)
    commit = hub.commit("org/Tiny-1.0")
    address = f"{hub.url}/org/Tiny-1.0/tree/{commit}"
    said = refused(capsys, tmp_path, address, "--revision", "other", code=2)
    assert said == f"--revision other, the address names {commit}, leave one of them out"
    path, _ = converted(capsys, address)
    assert path == models / "org" / "Tiny-1.0" / "Tiny-1.0.litertlm"
    receipt = json.loads(path.with_suffix(".json").read_text())
    assert (receipt["source"]["model"], receipt["source"]["commit"]) == ("org/Tiny-1.0", commit)


def test_ignored_keys_are_said(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(llama, tmp_path / "odd")
    config = json.loads((llama / "config.json").read_text())
    (tmp_path / "odd" / "config.json").write_text(json.dumps({**config, "logit_scale": 2.0}))
    _, said = converted(capsys, tmp_path / "odd", "--output-dir", tmp_path)
    assert "litert-lm-cli: config.json: ignored, as transformers does: logit_scale\n" in said


def test_a_hub_id_end_to_end(
    llama: Path, models: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/Tiny-1.0", llama)
    path, said = converted(capsys, "org/Tiny-1.0")
    home = models / "org" / "Tiny-1.0"
    assert path == home / "Tiny-1.0.litertlm"
    names = sorted(entry.name for entry in home.iterdir())
    assert names == ["Tiny-1.0.json", "Tiny-1.0.litertlm", "checkpoint"]
    assert (home / "checkpoint" / WEIGHTS).read_bytes() == (llama / WEIGHTS).read_bytes()
    assert said.startswith(
        "litert-lm-cli: Model not found locally. Downloading...\n"
        f"litert-lm-cli: org/Tiny-1.0: then it is converted, to {path}\n"
        "org/Tiny-1.0: "
    )
    about = "Tiny-1.0: llama, dynamic_int8_a16, KV cache 1280, 0 MB"
    assert f"\nlitert-lm-cli: {about} -> {path}\n" in said
    assert read_bundle(path).system["model"] == "Tiny-1.0"
    # Kept, and nobody is asked; --force fetches nothing twice.
    count = len(hub.seen)
    assert converted(capsys, "org/Tiny-1.0") == (path, KEPT.format(path, AS_MADE))
    assert len(hub.seen) == count
    fetched = hub.fetched()
    assert converted(capsys, "org/Tiny-1.0", "--force", "--quiet") == (path, "")
    assert hub.fetched() == fetched


def test_a_hub_id_with_an_output_folder(
    llama: Path, models: Path, tmp_path: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/tiny", llama)
    out = tmp_path / "out"
    path, said = converted(capsys, "org/tiny", "--output-dir", out, "--quiet")
    assert (path, said) == (out / "tiny.litertlm", "")
    assert tree(out) == ["tiny.json", "tiny.litertlm"]
    assert [entry.name for entry in (models / "org" / "tiny").iterdir()] == ["checkpoint"]


def test_a_converted_repository_is_taken_as_it_is(
    llama: Path, models: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    ours, _ = converted(capsys, llama)
    content = ours.read_bytes()
    (hub.root / "community" / "Tiny").mkdir(parents=True)
    (hub.root / "community" / "Tiny" / "tiny_q8.litertlm").write_bytes(content)
    for options in ([], ["--force"]):
        path, _ = converted(capsys, "community/Tiny", "--quiet", *options)
        home = models / "community" / "Tiny"
        assert path == home / "Tiny.litertlm"
        assert path.read_bytes() == content
        names = sorted(entry.name for entry in home.iterdir())
        assert names == ["Tiny.json", "Tiny.litertlm", "checkpoint"]
    assert main(["convert", "community/Tiny", "--force", "--quantize", "fp16", "--quiet"]) == 2
    assert capsys.readouterr().err.startswith("error: community/Tiny, it is converted already, ")


def test_a_damaged_converted_repository_is_refused(
    models: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    (hub.root / "community" / "Tiny").mkdir(parents=True)
    (hub.root / "community" / "Tiny" / "t.litertlm").write_bytes(b"LITERTLM" + b"\xff" * 99)
    assert main(["convert", "community/Tiny", "--quiet"]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {models}/community/Tiny/checkpoint/t.litertlm, damaged:")
    assert printed.err.count("\n") == 1
    assert not (models / "community" / "Tiny" / "Tiny.litertlm").exists()


def test_an_unsupported_hub_model_costs_no_download(
    llama: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/mamba", llama)
    with_config(hub.root / "org" / "mamba", model_type="mamba")
    assert main(["convert", "org/mamba", "--quiet"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: model_type mamba, its layers keep another state than keys ")
    assert hub.fetched() == ["config.json"]


def test_an_unknown_hub_id(
    models: Path, hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "org/none", "--quiet"]) == 1
    assert capsys.readouterr() == (
        "",
        f"error: org/none, there is no such model on {hub.url}, or it is private (asked with no "
        "token), check the spelling; if it is private, set HF_TOKEN, put a file HF_TOKEN here, or "
        "run `hf auth login` with an account that may read it\n",
    )
    assert not list(models.rglob("*.litertlm"))


def test_no_network(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    use_hub("http://127.0.0.1:9", tmp_path, monkeypatch)
    assert main(["convert", "org/none", "--quiet"]) == 1
    assert capsys.readouterr() == (
        "",
        "error: org/none, http://127.0.0.1:9 cannot be reached, run this again later; "
        "without it, local folders, .gguf files and what is in models/ still work\n",
    )
    assert not list(models.rglob("*"))
    # What was converted before is used without it.
    (models / "org" / "none").mkdir(parents=True)
    (models / "org" / "none" / "none.litertlm").touch()
    path = models / "org" / "none" / "none.litertlm"
    assert converted(capsys, "org/none") == (path, KEPT.format(path, ""))
