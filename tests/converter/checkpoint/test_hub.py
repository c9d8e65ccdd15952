"""Downloads with the real huggingface_hub client, from a hub on loopback."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest

from converter.checkpoint import hub_repository
from converter.checkpoint.gguf import check_head
from converter.checkpoint.hub import choose_files, download
from converter.errors import LiteRTLMError, OutputError, SourceError, UnsupportedError
from tests.gguf_files import write_gguf
from tests.hub_server import HubServer

ROOT = Path(__file__).parents[3]
CONFIG = {"model_type": "llama"}
SAFETENSORS = (2).to_bytes(8, "little") + b"{}"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setattr("converter.checkpoint.hub.sleep", lambda _: None)
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")  # no file HF_TOKEN here, and none above
        # 10 MB by default, and what has arrived of a piece is lost with its connection.
        monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)
        yield server


def publish(hub: HubServer, repo_id: str, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = hub.root / repo_id / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def model(**more: bytes) -> dict[str, bytes]:
    return {
        "config.json": json.dumps(CONFIG).encode(),
        "model.safetensors": SAFETENSORS + bytes(5000),
        "tokenizer.json": b"{}",
        **more,
    }


def index(**shards: str) -> bytes:
    return json.dumps({"weight_map": shards}).encode()


def files_in(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {path.as_posix() for path in files if path.parts[0] != ".download"}


def refusal(hub: HubServer, target: Path, **options: object) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as caught:
        download("org/m", target, quiet=True, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return caught.value


def test_only_what_is_needed_is_fetched_and_config_comes_first(
    hub: HubServer, tmp_path: Path
) -> None:
    extra = {
        "README.md": b"#",
        "LICENSE": b"do",
        "LICENSE.pdf": b"%PDF",
        "NOTICE.txt": b"\0" * ((1 << 20) + 1),
        "original/LICENSE": b"x",
        "pytorch_model.bin": b"x" * 9000,
        "consolidated.safetensors": b"x" * 9000,
        "original/consolidated.00.pth": b"x",
        "onnx/model.onnx": b"x",
        "generation_config.json": b"{}",
        "chat_template.jinja": b"{{ messages }}",
    }
    publish(hub, "org/m", {**model(), **extra})
    result = download("org/m", tmp_path / "out", quiet=True)
    assert (result.kind, result.path, result.notes) == ("safetensors", tmp_path / "out", ())
    assert result.commit == hub.commit("org/m")
    assert hub.fetched()[0] == "config.json"
    expected = {
        *model(),
        "generation_config.json",
        "chat_template.jinja",
        "README.md",
        "LICENSE",
    }
    assert files_in(result.path) == set(hub.fetched()) == expected
    for name in expected:
        assert (result.path / name).read_bytes() == (hub.root / "org/m" / name).read_bytes()
    assert sorted(path.name for path in (result.path / ".download").iterdir()) == [
        "lock",
        "safetensors.json",
    ]


def test_an_unsupported_config_ends_the_download_before_the_weights(
    hub: HubServer, tmp_path: Path
) -> None:
    publish(hub, "org/m", model())
    seen = []

    def check(config: dict[str, object]) -> None:
        seen.append(config)
        raise UnsupportedError("m", "no", "never")

    assert isinstance(refusal(hub, tmp_path / "out", check_config=check), UnsupportedError)
    assert seen == [CONFIG]
    assert hub.fetched() == ["config.json"]


@pytest.mark.parametrize(
    ("card", "original"),
    [
        ({}, "the model that it was made of (base_model in its README names it)"),
        ({"base_model": "org/original"}, "org/original"),
        ({"base_model": ["org/original", "org/other"]}, "org/original"),
    ],
)
def test_quantised_weights_that_are_not_read_are_refused_before_they_are_fetched(
    hub: HubServer, tmp_path: Path, card: dict[str, object], original: str
) -> None:
    config = {**CONFIG, "quantization_config": {"quant_method": "exl2", "bits": 4}}
    publish(hub, "org/m-4bit", model(**{"config.json": json.dumps(config).encode()}))
    hub.cards["org/m-4bit"] = card
    with pytest.raises(UnsupportedError) as caught:
        download("org/m-4bit", tmp_path / "out", quiet=True)
    assert caught.value.why.endswith("in a layout that is not read (exl2, 4 bits)")
    assert original in caught.value.fix
    assert hub.fetched() == ["config.json"]


def test_quantised_weights_are_told_by_a_file_beside_them(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model(**{"hf_quant_config.json": b"{}"}))
    with pytest.raises(UnsupportedError, match=r"NVIDIA ModelOpt: hf_quant_config\.json"):
        download("org/m", tmp_path / "out", quiet=True)
    assert hub.fetched() == ["config.json"]


@pytest.mark.parametrize("folder", ["", "weights/"])
def test_shards_are_those_of_the_index(hub: HubServer, tmp_path: Path, folder: str) -> None:
    one, two, other = (f"{folder}{name}.safetensors" for name in ("model-1", "model-2", "other"))
    files = model(**{one: SAFETENSORS, two: SAFETENSORS, other: SAFETENSORS})
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = index(a=one, b=two)
    publish(hub, "org/m", files)
    result = download("org/m", tmp_path / "out", quiet=True)
    assert files_in(result.path) == set(files) - {other}
    hub.seen.clear()
    assert download("org/m", tmp_path / "out", quiet=True).path == result.path
    assert not hub.fetched()


def test_a_shard_that_the_repository_lacks_is_named(hub: HubServer, tmp_path: Path) -> None:
    files = model(**{"model-1.safetensors": SAFETENSORS})
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = index(a="model-1.safetensors", b="model-2.safetensors")
    publish(hub, "org/m", files)
    assert "does not have: model-2.safetensors" in str(refusal(hub, tmp_path / "out"))
    assert "model-1.safetensors" not in hub.fetched()


def test_a_complete_copy_is_not_fetched_again(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    download("org/m", tmp_path / "out", quiet=True)
    hub.seen.clear()
    download("org/m", tmp_path / "out", quiet=True)
    assert [item.path for item in hub.seen] == ["/api/models/org/m"]


def test_a_commit_that_is_complete_is_not_even_asked_for(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    commit = hub.commit("org/m")
    download("org/m", tmp_path / "out", commit, quiet=True)
    hub.seen.clear()
    assert download("org/m", tmp_path / "out", commit, quiet=True).notes == ()
    assert hub.seen == []


@pytest.mark.parametrize("fault", ["closed", 500, 429])
def test_a_complete_copy_needs_no_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str | int
) -> None:
    publish(hub, "org/m", model())
    download("org/m", tmp_path / "out", quiet=True)
    if isinstance(fault, int):
        hub.status["/api"] = fault
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    result = download("org/m", tmp_path / "out", quiet=True)
    assert result.path == tmp_path / "out"
    assert result.notes == ("the hub cannot be reached: using org/m as it was fetched before",)
    # Another revision, or a copy that lost a file, is not what was asked for.
    with pytest.raises(SourceError):
        download("org/m", tmp_path / "out", "v2", quiet=True)
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(SourceError):
        download("org/m", tmp_path / "out", quiet=True)


def test_a_new_commit_replaces_files_and_removes_stale_weights(
    hub: HubServer, tmp_path: Path
) -> None:
    publish(hub, "org/m", model())
    download("org/m", tmp_path / "out", quiet=True)
    (hub.root / "org/m/model.safetensors").unlink()
    publish(
        hub,
        "org/m",
        {
            "a.safetensors": SAFETENSORS,
            "model.safetensors.index.json": index(x="a.safetensors"),
            "config.json": b'{"model_type": "qwen3"}',
        },
    )
    hub.seen.clear()
    result = download("org/m", tmp_path / "out", quiet=True)
    assert "model.safetensors" not in files_in(result.path)
    assert json.loads((result.path / "config.json").read_text()) == {"model_type": "qwen3"}
    assert "tokenizer.json" not in hub.fetched()  # unchanged


def test_a_mixture_of_two_commits_is_never_called_complete(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    download("org/m", tmp_path / "out", quiet=True)
    publish(hub, "org/m", {"config.json": json.dumps({"model_type": "qwen3"}).encode()})

    def stop(_: object) -> None:
        raise UnsupportedError("m", "no", "never")

    refusal(hub, tmp_path / "out", check_config=stop)  # the new config is there, of the same size
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "cannot be reached" in refusal(hub, tmp_path / "out").why


def test_two_downloads_at_once_fetch_each_file_once(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model(**{"model.safetensors": SAFETENSORS + bytes(300_000)}))
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(download, "org/m", tmp_path / "out", quiet=True) for _ in range(4)]
        assert {run.result().kind for run in runs} == {"safetensors"}
    assert sorted(hub.fetched()) == sorted(model())


def test_a_cut_connection_is_continued_in_the_same_run(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    hub.cut_after["model.safetensors"] = 3000
    download("org/m", tmp_path / "out", quiet=True)
    ranges = [item.range for item in hub.seen if item.path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=3000-"]


def test_an_unfinished_file_is_continued_by_the_next_run(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    target = tmp_path / "out"
    weights = hub.root / "org/m/model.safetensors"
    (target / ".download").mkdir(parents=True)
    digest = hub_repository._hash_file(weights, hub_repository.hashlib.sha256())
    (target / ".download" / f"{digest}.part").write_bytes(weights.read_bytes()[:2500])
    download("org/m", target, quiet=True)
    assert (target / "model.safetensors").read_bytes() == weights.read_bytes()
    ranges = [item.range for item in hub.seen if item.path.endswith("model.safetensors")]
    assert ranges == ["bytes=2500-"]


def test_a_killed_run_leaves_a_part_that_the_next_continues(hub: HubServer, tmp_path: Path) -> None:
    content = SAFETENSORS + os.urandom(100_000)
    publish(hub, "org/m", model(**{"model.safetensors": content}))
    hub.cut_after["model.safetensors"] = 60_000
    target = tmp_path / "out"
    # The client sleeps before it tries again: that is when this process dies.
    code = (
        "import os, sys, time; time.sleep = lambda s: os.kill(os.getpid(), 9)\n"
        "import huggingface_hub.constants as c; c.DOWNLOAD_CHUNK_SIZE = 1000\n"
        "from pathlib import Path; from converter.checkpoint.hub import download\n"
        "download('org/m', Path(sys.argv[1]), quiet=True)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, cwd=ROOT)
    assert dead.returncode == -9
    assert "model.safetensors" not in files_in(target)
    (part,) = (target / ".download").glob("*.part")
    kept = part.stat().st_size
    assert kept > 50_000
    hub.seen.clear()
    download("org/m", target, quiet=True)
    ranges = [item.range for item in hub.seen if item.path.endswith("model.safetensors")]
    assert ranges == [f"bytes={kept}-"]
    assert (target / "model.safetensors").read_bytes() == content


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_hash_is_refused(hub: HubServer, tmp_path: Path, name: str) -> None:
    publish(hub, "org/m", model())
    hub.corrupt.add(name)
    error = refusal(hub, tmp_path / "out")
    assert error.what == f"org/m/{name}"
    assert error.why == "what arrived does not have the hash that the hub lists"
    assert not (tmp_path / "out" / name).exists()
    assert not list((tmp_path / "out/.download").glob("*.part"))
    hub.corrupt.clear()
    assert download("org/m", tmp_path / "out", quiet=True).kind == "safetensors"


def test_converted_files_are_taken_as_they_are(hub: HubServer, tmp_path: Path) -> None:
    names = ["m-gpu.litertlm", "m_sm8550.litertlm", "m.litertlm", "m-Web.litertlm"]
    publish(hub, "org/m", {**model(), **{name: name.encode() for name in names}})
    result = download("org/m", tmp_path / "out", quiet=True)
    assert (result.kind, result.path.read_bytes()) == ("litertlm", b"m.litertlm")
    assert hub.fetched() == ["m.litertlm"]
    assert result.notes == (
        "took m.litertlm; for m-Web.litertlm, m-gpu.litertlm, m_sm8550.litertlm "
        "ask with org/m:FILE",
    )
    other = download("org/m", tmp_path / "out", quiet=True, file="m-gpu.litertlm")
    assert other.path.read_bytes() == b"m-gpu.litertlm"
    weights = download("org/m", tmp_path / "out", quiet=True, prefer_converted=False)
    assert weights.kind == "safetensors"


def test_gguf_repositories(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", {"m-Q4.gguf": b"GGUF4", "mmproj-m.gguf": b"GGUF"})
    result = download("org/m", tmp_path / "out", quiet=True)
    assert (result.kind, result.path.name) == ("gguf", "m-Q4.gguf")
    publish(hub, "org/m", {"m-Q8.gguf": b"GGUF8"})
    several = download("org/m", tmp_path / "out", quiet=True)
    assert several.path.name == "m-Q4.gguf"
    assert several.notes == (
        "took m-Q4.gguf; for m-Q8.gguf ask with org/m:FILE, or a tag like org/m:Q8_0",
    )
    chosen = download("org/m", tmp_path / "out", quiet=True, file="m-Q8.gguf")
    assert chosen.path.read_bytes() == b"GGUF8"
    assert "it has m-Q4.gguf, m-Q8.gguf" in str(refusal(hub, tmp_path / "out", file="x.gguf"))


QUANTS = [
    "m-BF16.gguf", "m-F16.gguf", "m-IQ4_NL.gguf", "m-Q4_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf",
    "m-Q8_0.gguf", "mmproj-m-F16.gguf", "Q6_K/m-Q6_K-00001-of-00002.gguf",
    "Q6_K/m-Q6_K-00002-of-00002.gguf", "Q3_K_L/m.gguf", "m.UD-Q2_K_XL.gguf", "m_q5_k_m.gguf",
]  # fmt: skip


@pytest.mark.parametrize(
    ("tag", "names"),
    [
        (None, ["m-Q4_K_M.gguf"]),
        ("Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("Q4_0", ["m-Q4_0.gguf"]),
        ("F16", ["m-F16.gguf"]),  # not BF16's, and not the vision part's
        ("bf16", ["m-BF16.gguf"]),
        ("Q5_K_M", ["m_q5_k_m.gguf"]),
        ("Q2_K_XL", ["m.UD-Q2_K_XL.gguf"]),
        ("UD-Q2_K_XL", ["m.UD-Q2_K_XL.gguf"]),
        ("Q3_K_L", ["Q3_K_L/m.gguf"]),
        ("Q6_K", ["Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K/m-Q6_K-00002-of-00002.gguf"]),
        ("m-Q8_0.gguf", ["m-Q8_0.gguf"]),
        (
            "Q6_K/m-Q6_K-00002-of-00002.gguf",
            ["Q6_K/m-Q6_K-00001-of-00002.gguf", "Q6_K/m-Q6_K-00002-of-00002.gguf"],
        ),
    ],
)
def test_a_tag_names_a_gguf_as_in_llama_cpp(tag: str | None, names: list[str]) -> None:
    assert choose_files("org/m", QUANTS, tag)[:2] == ("gguf", names)


@pytest.mark.parametrize("tag", ["Q4_K", "Q9_0", "x.gguf", "mmproj"])
def test_a_tag_that_the_repository_lacks_is_refused_with_what_it_has(tag: str) -> None:
    with pytest.raises(SourceError) as caught:
        choose_files("org/m", [name for name in QUANTS if "_m" not in name], tag)
    assert caught.value.why == "the repository has no such file"
    assert "m-Q4_K_S.gguf" in caught.value.fix


def test_without_a_tag_it_is_q4_k_m_then_q8_0_then_the_first() -> None:
    def taken(*names: str) -> str:
        return choose_files("org/m", list(names))[1][0]

    assert taken("a-Q2_K.gguf", "a-Q4_K_M.gguf", "a-Q8_0.gguf") == "a-Q4_K_M.gguf"
    assert taken("a-Q2_K.gguf", "a-Q8_0.gguf") == "a-Q8_0.gguf"
    assert taken("a-Q3_K.gguf", "a-Q2_K.gguf") == "a-Q2_K.gguf"


def test_a_split_gguf_in_a_folder_is_fetched_whole_and_known_again(
    hub: HubServer, tmp_path: Path
) -> None:
    names = [f"Q6_K/m-Q6_K-0000{i}-of-00002.gguf" for i in (1, 2)]
    files = {name: b"GGUF" + name.encode() for name in [*names, "m-Q4_K_M.gguf"]}
    publish(hub, "org/m", files)
    fetched = download("org/m", tmp_path / "out", quiet=True, file="Q6_K")
    assert fetched.path == tmp_path / "out" / names[0]
    assert (tmp_path / "out" / names[1]).read_bytes() == files[names[1]]
    hub.seen.clear()
    again = download("org/m", tmp_path / "out", fetched.commit, quiet=True, file="Q6_K")
    assert (again.path, hub.seen) == (fetched.path, [])
    offline = download("org/m", tmp_path / "out", quiet=True, file="Q6_K", offline=True)
    assert (offline.path, hub.seen) == (fetched.path, [])
    # Another quantisation is not what was asked for.
    for asked in (None, "Q4_K_M"):
        error = refusal(hub, tmp_path / "out", file=asked, offline=True)
        assert "not" in error.why
    assert download("org/m", tmp_path / "out", quiet=True).path.name == "m-Q4_K_M.gguf"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_gguf_of_another_kind_is_refused_before_it_is_fetched(
    hub: HubServer, tmp_path: Path, ranges: bool
) -> None:
    tensors = {"big": np.zeros((1000, 1000), np.float32)}
    hub.knows_ranges = ranges
    for name, arch, said in (
        ("m-Q8_0.gguf", "bloom", "bloom, not a supported architecture"),
        ("m-Q4_0.gguf", "clip", "the vision or audio part (mmproj)"),
    ):
        publish(hub, "org/m", {name: write_gguf(tmp_path / name, {}, tensors, arch).read_bytes()})
        error = refusal(hub, tmp_path / "out", file=name, check_gguf=check_head)
        assert isinstance(error, UnsupportedError)
        assert said in str(error)
    publish(hub, "org/m", {"m-F16.gguf": b"version https://git-lfs.github.com/spec/v1"})
    assert "a Git LFS pointer" in str(
        refusal(hub, tmp_path / "out", file="F16", check_gguf=check_head)
    )
    assert not files_in(tmp_path / "out")


def test_a_gguf_that_can_be_converted_is_fetched_after_its_head(
    hub: HubServer, tmp_path: Path
) -> None:
    content = write_gguf(tmp_path / "m.gguf", {":a.long": "x" * 100_000}).read_bytes()
    publish(hub, "org/m", {"m.gguf": content})
    result = download("org/m", tmp_path / "out", quiet=True, check_gguf=check_head)
    assert result.path.read_bytes() == content
    assert hub.fetched() == ["m.gguf", "m.gguf"]
    assert "bytes=0-65535" in [seen.range for seen in hub.seen]


def test_a_split_gguf_that_lacks_a_part_is_refused(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", {"m-Q8_0-00001-of-00003.gguf": b"GGUF"})
    error = refusal(hub, tmp_path / "out")
    assert error.why == "the repository lacks 2 of its 3 parts: m-Q8_0-00002-of-00003.gguf"
    assert not hub.fetched()


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        (["config.json", "pytorch_model.bin"], UnsupportedError, "pytorch_model.bin"),
        (["adapter_config.json", "adapter_model.safetensors"], UnsupportedError, "LoRA adapter"),
        (["model.safetensors"], SourceError, "config.json is missing"),
        (["config.json"], SourceError, "*.safetensors is missing"),
        (["README.md"], SourceError, "config.json and *.safetensors are missing"),
        ([], SourceError, "config.json and *.safetensors are missing"),
        (["../x.gguf", ".download/b.gguf", "C:evil.gguf", "a/../x.gguf"], SourceError, "missing"),
    ],
)
def test_what_is_not_a_model(names: list[str], kind: type[LiteRTLMError], said: str) -> None:
    with pytest.raises(kind) as caught:
        choose_files("org/m", names)
    assert said in str(caught.value)


def test_an_adapter_is_two_files_and_its_papers(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = {"adapter_config.json": b"{}", "adapter_model.safetensors": SAFETENSORS}
    publish(hub, "org/lora", {**adapter, "README.md": b"#", "optimizer.pt": b"x" * 9000})
    result = download("org/lora", tmp_path / "out", quiet=True, is_adapter=True)
    assert (result.kind, result.path) == ("adapter", tmp_path / "out")
    assert files_in(result.path) == {*adapter, "README.md"}
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    again = download("org/lora", tmp_path / "out", quiet=True, is_adapter=True)
    assert again.path == result.path
    assert "cannot be reached" in again.notes[0]


def test_a_model_is_no_adapter(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    error = refusal(hub, tmp_path / "out", is_adapter=True)
    assert "it has no adapter_config.json and no adapter_model.safetensors" in str(error)


def test_unknown_model_and_private_model(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/secret", model())
    hub.private.add("org/secret")
    for repo_id in ("org/nothing", "org/secret"):
        with pytest.raises(SourceError) as caught:
            download(repo_id, tmp_path / "out", quiet=True)
        assert f"there is no such model on {hub.url}, or it is private" in str(caught.value)
        assert "check the spelling; if it is private, set HF_TOKEN" in str(caught.value)


def test_gated_model(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(hub, "org/m", model())
    hub.gated.add("org/m")
    error = str(refusal(hub, tmp_path / "out"))
    assert "it is gated" in error
    assert f"1) open {hub.url}/org/m and log in, 2) agree to the terms, 3) wait" in error
    way = "set HF_TOKEN, put a file HF_TOKEN here, or run `hf auth login`"
    assert error.endswith(f"4) {way} and run this again")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert download("org/m", tmp_path / "out", quiet=True).kind == "safetensors"


def test_a_model_that_does_not_exist_leaves_no_folder(hub: HubServer, tmp_path: Path) -> None:
    target = tmp_path / "models" / "org" / "nothing" / "checkpoint"
    with pytest.raises(SourceError, match="there is no such model"):
        download("org/nothing", target, quiet=True)
    assert not (tmp_path / "models").exists()


def test_a_model_that_does_not_exist_has_near_names(hub: HubServer, tmp_path: Path) -> None:
    for name in ("Qwen3-0.6B", "Qwen3-0.6B-Base", "Qwen3-30B-A3B", "Other"):
        publish(hub, f"Qwen/{name}", model())
    publish(hub, "someone/Qwen3-0.6B-GGUF", model())
    for asked, near in (
        ("Qwen/Qwen3-0.6", "Qwen/Qwen3-0.6B, Qwen/Qwen3-0.6B-Base or Qwen/Qwen3-30B-A3B?"),
        ("qwen/qwen3-0.6b-bse", "Qwen/Qwen3-0.6B-Base, Qwen/Qwen3-0.6B"),
        ("Qwne/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
    ):
        with pytest.raises(SourceError) as caught:
            download(asked, tmp_path / "out", quiet=True)
        assert f"did you mean {near}" in str(caught.value), asked
    with pytest.raises(SourceError) as caught:
        download("org/nothing-like-it", tmp_path / "out", quiet=True)
    assert "did you mean" not in str(caught.value)


def test_the_first_place_with_a_token_counts(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, this folder, the one above, the login."""
    publish(hub, "org/m", model())
    hub.private.add("org/m")
    login = tmp_path / "login"
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(login))
    places = {
        "the hf tool's login": login,
        "the file HF_TOKEN in the folder above": tmp_path / "HF_TOKEN",
        "the file HF_TOKEN in this folder": tmp_path / "here" / "HF_TOKEN",
    }
    assert "(asked with no token)" in str(refusal(hub, tmp_path / "none"))
    for index, (place, path) in enumerate(places.items()):
        path.write_text("hf_wrongToken\n")
        assert place in str(refusal(hub, tmp_path / f"{index}-wrong"))
        path.write_text(f"  {hub.token}\n\n")
        assert download("org/m", tmp_path / f"{index}", quiet=True).kind == "safetensors"
        path.write_text("hf_wrongToken")  # the next place comes first
    monkeypatch.setenv("HF_TOKEN", "hf_wrongToken")
    assert "HF_TOKEN in the environment" in str(refusal(hub, tmp_path / "4-wrong"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert download("org/m", tmp_path / "4", quiet=True).kind == "safetensors"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it holds no token"),
        (b"hf_secret one\nhf_secret two", "it holds characters that no access token has"),
        (b"hf_secret\xff\x00", "it holds characters that no access token has"),
        (b"hf_secret" * 1000, "it holds no token"),
    ],
)
def test_a_file_that_holds_no_token_is_refused(
    hub: HubServer, tmp_path: Path, content: bytes, said: str
) -> None:
    publish(hub, "org/m", model())
    Path("HF_TOKEN").write_bytes(content)
    error = refusal(hub, tmp_path / "out")
    assert f"the file HF_TOKEN in this folder, {said}" in str(error)
    assert "hf_secret" not in "".join(traceback.format_exception(error))
    assert hub.seen == []


@pytest.mark.parametrize("kind", ["json", "folder"])
def test_what_else_is_called_hf_token_is_no_token(
    hub: HubServer, tmp_path: Path, kind: str
) -> None:
    publish(hub, "org/m", model())
    if kind == "folder":
        Path("HF_TOKEN").mkdir()
        download("org/m", tmp_path / "out", quiet=True)
    else:
        Path("HF_TOKEN").write_text('{"token": "x"}')
        assert "no access token" in str(refusal(hub, tmp_path / "out"))


def test_too_many_requests_are_waited_for_and_said(
    hub: HubServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    publish(hub, "org/m", model())
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            hub.status.clear()  # the listing answers now; a file is what is refused next
            hub.status["/org/m/resolve"] = 429
            hub.retry_after = None
        if len(slept) == 3:
            hub.status.clear()

    monkeypatch.setattr("converter.checkpoint.hub.sleep", sleep)
    hub.status["/api"] = 429
    hub.retry_after = "7"
    download("org/m", tmp_path / "out")
    assert slept == [7, 7, 40]
    said = capfd.readouterr().err.splitlines()
    assert said.count(f"{hub.url} has too many requests: trying again in 7 s") == 2
    assert f"{hub.url} has too many requests: trying again in 40 s" in said
    assert not any("WARNING" in line or "429" in line for line in said)


def test_it_is_not_waited_for_ever(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    slept: list[float] = []
    monkeypatch.setattr("converter.checkpoint.hub.sleep", slept.append)
    hub.status["/api"] = 429
    error = str(refusal(hub, tmp_path / "out"))
    assert f"too many requests to {hub.url} (with no token)" in error
    assert "the limit is higher" in error
    assert slept == [10, 20, 40, 80]
    hub.retry_after = "3600"
    refusal(hub, tmp_path / "out")
    assert len(slept) == 4  # an hour is longer than anybody waits


def test_a_trickle_is_read_and_a_stall_is_continued(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.trickle = 500, 0.05  # the pauses are far below the timeout, their sum is not needed
    hub.stall_after["model.safetensors"] = 2000
    download("org/m", tmp_path / "out", quiet=True)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == SAFETENSORS + bytes(5000)
    ranges = [item.range for item in hub.seen if item.path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=2000-"]


def test_offline_asks_nobody(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    error = str(refusal(hub, tmp_path / "out", offline=True))
    assert "--offline forbids to use the network" in error
    assert hub.seen == []
    assert not (tmp_path / "out").exists()
    fetched = download("org/m", tmp_path / "out", quiet=True)
    hub.seen.clear()
    again = download("org/m", tmp_path / "out", quiet=True, offline=True)
    assert (again.path, again.commit) == (fetched.path, fetched.commit)
    assert "--offline" in str(refusal(hub, tmp_path / "out", offline=True, revision="v2"))
    assert hub.seen == []


def test_what_will_be_fetched_is_announced_once(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    kinds: list[str] = []
    for _ in range(2):
        download("org/m", tmp_path / "out", quiet=True, announce=kinds.append)
    assert kinds == ["safetensors"]


def test_a_refused_token_is_named_by_its_source_only(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    for token in ("hf_wrongToken", "hf_wrongToken\nX: y", "hf_wrongTokén"):
        monkeypatch.setenv("HF_TOKEN", token)
        error = refusal(hub, tmp_path / "out")
        assert "HF_TOKEN" in str(error)
        shown = "".join(traceback.format_exception(error))
        assert "wrongTok" not in shown
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_file() or b"wrongTok" not in path.read_bytes()


def test_the_login_of_the_hf_tool_is_used(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    login = tmp_path / "login"
    login.write_text("hf_wrongToken")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(login))
    error = str(refusal(hub, tmp_path / "out"))
    assert "does not accept the access token from the hf tool's login" in error


def test_the_token_is_not_sent_to_another_host(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    monkeypatch.setenv("HF_TOKEN", hub.token)
    with HubServer(hub.root) as storage:
        hub.files_at = storage.url.replace("127.0.0.1", "localhost")
        download("org/m", tmp_path / "out", quiet=True)
        assert storage.fetched()[0] == "config.json"
        assert {item.authorization for item in storage.seen} == {None}
    assert {item.authorization for item in hub.seen} == {f"Bearer {hub.token}"}


def test_signed_addresses_stay_out_of_tracebacks(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    with HubServer(hub.root) as storage:
        hub.files_at = f"{storage.url}/signed-for-you"
        storage.status["/signed-for-you"] = 403
        error = refusal(hub, tmp_path / "out")
    assert error.why == "the hub forbids to read it (with no token)"
    assert "signed-for-you" not in "".join(traceback.format_exception(error))


def test_unknown_revision(hub: HubServer, tmp_path: Path) -> None:
    publish(hub, "org/m", model())
    error = refusal(hub, tmp_path / "out", revision="v9")
    assert error.why == "it has no revision 'v9'"
    assert error.fix.startswith(f"see {hub.url}/org/m/commits/main")


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (500, "has a fault of its own (HTTP 500)"),
        (403, "forbids to read it (with no token)"),
        (418, "answered HTTP 418"),
        (200, "does not answer like a Hugging Face hub"),
    ],
)
def test_bad_answers(hub: HubServer, tmp_path: Path, status: int, said: str) -> None:
    hub.status["/api"] = status
    assert said in str(refusal(hub, tmp_path / "out"))


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no.such.host.invalid"])
def test_no_network(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    error = str(refusal(hub, tmp_path / "out"))
    assert f"{endpoint} cannot be reached" in error
    assert "local folders, .gguf files and what is in models/ still work" in error


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://x", "http://[::"])
def test_an_endpoint_that_is_no_address(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert endpoint in str(refusal(hub, tmp_path / "out"))


def test_offline_mode(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids to use the network" in str(refusal(hub, tmp_path / "out"))


def test_a_full_disk_is_seen_before_the_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())
    usage = namedtuple("usage", "total used free")(9000, 8000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    error = refusal(hub, tmp_path / "out")
    assert isinstance(error, OutputError)
    assert "it needs 5 kB" in str(error)
    assert "1 kB free" in str(error)
    assert hub.fetched() == ["config.json"]


def test_a_write_error_is_ours(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "org/m", model())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(hub_repository, "http_get", full)
    error = refusal(hub, tmp_path / "out")
    assert isinstance(error, OutputError)
    assert (error.what, error.why) == ("downloading org/m", "no space left on device")


def test_progress_goes_to_stderr_and_quiet_is_quiet(
    hub: HubServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    publish(hub, "org/m", model())
    download("org/m", tmp_path / "loud")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "org/m: 2 files, 5 kB",
        "  [1/2] model.safetensors  5 kB",
        "  [2/2] tokenizer.json  2 bytes",
    ]
    download("org/m", tmp_path / "quiet", quiet=True)
    assert capfd.readouterr() == ("", "")


def test_bars_on_a_terminal(hub: HubServer, tmp_path: Path) -> None:
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    publish(hub, "org/m", model())
    code = (
        "import sys; from pathlib import Path; from converter.checkpoint.hub import download\n"
        "download('org/m', Path(sys.argv[1]))"
    )
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=ROOT,
        stderr=child,
        stdout=subprocess.PIPE,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux's way to say that the other end is closed
        pass
    os.close(parent)
    assert process.communicate()[0] == b""
    assert process.returncode == 0
    assert b"model.safetensors" in shown
    assert b"org/m (2 files)" in shown
