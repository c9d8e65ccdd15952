"""What the user types as MODEL, and where it leads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from converter.checkpoint.sources import (
    AdapterSource,
    list_models,
    models_dir,
    parse_adapter,
    parse_model,
)
from converter.errors import LiteRTLMError, OptionError, SourceError, UnsupportedError
from tests.gguf_files import write_gguf

MODELS = Path("/models")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def folder(path: str, *names: str) -> Path:
    made = Path(path)
    made.mkdir(parents=True, exist_ok=True)
    for name in names:
        (made / name).touch()
    return made


def refusal(text: str) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as caught:
        parse_model(text, MODELS)
    assert str(caught.value).isprintable()
    return caught.value


def test_demo() -> None:
    source = parse_model("demo", MODELS)
    home = MODELS / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    assert (source.kind, source.checkpoint_dir) == ("demo", home / "checkpoint")
    assert source.output_path() == home / "SmolLM2-135M-Instruct.litertlm"


def test_hugging_face_id() -> None:
    source = parse_model("Qwen/Qwen3-0.6B", MODELS)
    assert (source.kind, source.repo_id, source.path) == ("hub", "Qwen/Qwen3-0.6B", None)
    assert source.output_path() == MODELS / "Qwen" / "Qwen3-0.6B" / "Qwen3-0.6B.litertlm"
    assert source.output_path(Path("out")) == Path("out/Qwen3-0.6B.litertlm")
    # What was fetched stays where a second conversion finds it.
    assert source.checkpoint_dir == MODELS / "Qwen" / "Qwen3-0.6B" / "checkpoint"


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("https://huggingface.co/org/m", None),
        ("http://www.huggingface.co/org/m/", None),
        ("huggingface.co/org/m", None),
        ("hf.co/org/m", None),
        ("hf://org/m", None),
        ("https://huggingface.co/models/org/m", None),
        ("https://huggingface.co/org/m?library=transformers#usage", None),
        ("https://huggingface.co/org/m/tree/main", None),
        ("https://huggingface.co/org/m/tree/v2/", "v2"),
        ("https://huggingface.co/org/m/tree/refs%2Fpr%2F1", "refs/pr/1"),
        ("https://huggingface.co/org/m/tree/refs/pr/1", "refs/pr/1"),
        ("https://huggingface.co/org/m/discussions/3", None),
        ("https://huggingface.co/org/m/commits/main", None),
        ("https://huggingface.co/org/m.git", None),
        ("https://user:hf_token@huggingface.co/org/m.git", None),
        ("git@hf.co:org/m", None),
        ("https://mirror.example:8080/hub/org/m/tree/v2", "v2"),
        ("mirror.example:8080/hub/org/m", None),
        ("HTTPS://HF.co/org/m", None),
        ("org/m", None),
        ("org/m/", None),
    ],
)
def test_the_address_of_a_page_is_an_id(
    text: str, revision: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example:8080/hub")
    source = parse_model(text, MODELS)
    assert (source.kind, source.repo_id, source.name) == ("hub", "org/m", "m")
    assert (source.revision, source.file) == (revision, None)


@pytest.mark.parametrize(
    ("text", "revision"),
    [
        ("https://huggingface.co/org/m/blob/main/m-Q4.gguf", None),
        ("https://huggingface.co/org/m/resolve/main/m-Q4.gguf?download=true", None),
        ("https://hf.co/org/m/raw/v2/m-Q4.gguf", "v2"),
        ("https://huggingface.co/org/m?show_file_info=m-Q4.gguf", None),
        ("https://huggingface.co/org/m/tree/v2?show_file_info=m-Q4.gguf", "v2"),
        ("hf.co/org/m/blob/refs/pr/1/m-Q4.gguf", "refs/pr/1"),
        ("hf.co/org/m:m-Q4.gguf", None),
        ("https://huggingface.co/org/m:m-Q4.gguf", None),
    ],
)
def test_the_address_of_a_file(text: str, revision: str | None) -> None:
    source = parse_model(text, MODELS)
    assert (source.repo_id, source.file, source.name) == ("org/m", "m-Q4.gguf", "m-Q4")
    assert source.revision == revision


@pytest.mark.parametrize(
    ("text", "named", "weight", "name"),
    [
        ("org/a", "org/a", 1.0, "a"),
        ("org/a:0.5", "org/a", 0.5, "a-0.5"),
        ("org/a:-2", "org/a", -2.0, "a--2"),
        ("org/a:+.25", "org/a", 0.25, "a-0.25"),
        ("org/a:Q8_0", "org/a:Q8_0", 1.0, "Q8_0"),
        ("org/a:b.gguf", "org/a:b.gguf", 1.0, "b"),
        ("org/a:b.gguf:1.5", "org/a:b.gguf", 1.5, "b-1.5"),
        ("./a.gguf:0", "a.gguf", 0.0, "a-0"),
        ("./not:here:1", "not:here", 1.0, "not:here"),
        ("./x:2", "x:2", 1.0, "x:2"),  # it exists
    ],
)
def test_an_adapter_and_its_weight(text: str, named: str, weight: float, name: str) -> None:
    Path("x:2").mkdir()
    adapter = parse_adapter(text)
    assert (str(adapter), adapter.weight, adapter.name) == (named, weight, name)


def test_a_weight_beyond_all_numbers() -> None:
    with pytest.raises(OptionError, match="its weight is not finite"):
        parse_adapter(f"org/a:{'9' * 400}")


def test_an_adapter_has_no_revision() -> None:
    adapter = parse_adapter("https://huggingface.co/org/a/tree/main")
    assert adapter == AdapterSource(1.0, repo_id="org/a")
    with pytest.raises(SourceError, match="only the main branch is read"):
        parse_adapter("https://huggingface.co/org/a/tree/v2")


HASHES = ("0123456789" * 4, "abcdef0123" * 4)


def cache(*snapshots: str, main: str | None) -> Path:
    """A folder as the hub's cache has it."""
    home = Path("hub/models--org--m")
    for name in snapshots:
        folder(str(home / "snapshots" / name), "config.json", "a.safetensors")
    if main is not None:
        folder(str(home / "refs"))
        (home / "refs" / "main").write_text(main)
    return home


@pytest.mark.parametrize("inside", ["", "snapshots", f"snapshots/{HASHES[1]}"])
def test_a_folder_of_the_hub_s_cache(inside: str) -> None:
    home = cache(*HASHES, main=HASHES[1])
    source = parse_model(str(home / inside), MODELS)
    assert (source.kind, source.name) == ("folder", "m")
    assert source.path is not None
    assert source.path.samefile(home / "snapshots" / HASHES[1])


def test_a_cache_with_one_snapshot_and_no_branch() -> None:
    home = cache(HASHES[0], main=None)
    assert parse_model(str(home), MODELS).name == "m"


@pytest.mark.parametrize(
    ("snapshots", "main", "said"),
    [
        (HASHES, None, "refs/main is not in this cache"),
        (HASHES[:1], HASHES[1], f"the snapshot {HASHES[1]} of refs/main is not in this cache"),
    ],
)
def test_a_cache_that_does_not_say_which(
    snapshots: tuple[str, ...], main: str | None, said: str
) -> None:
    home = cache(*snapshots, main=main)
    assert said in refusal(str(home)).why


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (f"my-model/{HASHES[0]}", "my-model"),
        ("my-run/checkpoint-500", "my-run-checkpoint-500"),
        ("my-run/final", "final"),
        ("snapshots/x", "x"),
        (f"models--gpt2/snapshots/{HASHES[0]}", "gpt2"),
    ],
)
def test_folders_whose_names_say_nothing(path: str, name: str) -> None:
    assert parse_model(str(folder(path, "config.json", "a.safetensors")), MODELS).name == name


@pytest.mark.parametrize("name", ["m.gguf", "m"])
def test_a_link_to_nothing(name: str) -> None:
    Path(name).symlink_to("gone")
    assert refusal(f"./{name}").why == "it is a link to a file that is not there"


def test_one_file_of_a_repository() -> None:
    source = parse_model("org/m-GGUF:m-Q4_K_M.gguf", MODELS)
    assert (source.repo_id, source.file) == ("org/m-GGUF", "m-Q4_K_M.gguf")
    assert source.output_path() == MODELS / "org" / "m-GGUF" / "m-Q4_K_M.litertlm"
    part = parse_model("org/m:Q8_0/m-Q8_0-00002-of-00003.gguf", MODELS)
    assert (part.name, part.file) == ("m-Q8_0", "Q8_0/m-Q8_0-00002-of-00003.gguf")
    assert "after the colon" in refusal("org/m:one two").why


@pytest.mark.parametrize(
    ("text", "file", "name"),
    [
        ("org/m-GGUF:Q4_K_M", "Q4_K_M", "m-Q4_K_M"),
        ("org/m-GGUF:q4_k_m", "Q4_K_M", "m-Q4_K_M"),
        ("hf.co/org/m-GGUF:Q4_K_M", "Q4_K_M", "m-Q4_K_M"),
        ("https://huggingface.co/org/m.gguf:IQ4_NL", "IQ4_NL", "m-IQ4_NL"),
        ("org/m:Q8_0", "Q8_0", "m-Q8_0"),
        ("org/m-GGUF:latest", None, "m-GGUF"),
        ("org/m-GGUF:", None, "m-GGUF"),
    ],
)
def test_a_tag_names_one_gguf_of_a_repository(text: str, file: str | None, name: str) -> None:
    source = parse_model(text, MODELS)
    assert (source.kind, source.file, source.name) == ("hub", file, name)
    assert source.checkpoint_dir.parent.parent == MODELS / "org"


def test_local_folder() -> None:
    path = folder("my-finetune", "config.json", "model.safetensors")
    for text in ("my-finetune", "./my-finetune", "my-finetune/", str(path.absolute())):
        source = parse_model(text, MODELS)
        assert (source.kind, source.name) == ("folder", "my-finetune")
        assert source.output_path() == MODELS / "local/my-finetune/my-finetune.litertlm"
        assert source.path is not None
        assert source.path.samefile(path)


def test_the_folder_one_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder("here", "config.json", "a.safetensors"))
    assert parse_model(".", MODELS).name == "here"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder("m", "config.json", "a.safetensors")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert parse_model("~/m", MODELS).path == tmp_path / "m"


def test_what_exists_wins_over_an_id() -> None:
    folder("Qwen/Qwen3-0.6B", "config.json", "model.safetensors")
    assert parse_model("Qwen/Qwen3-0.6B", MODELS).kind == "folder"


def test_files() -> None:
    folder(".", "m-q4.gguf", "M.GGUF", "done.litertlm")
    assert parse_model("m-q4.gguf", MODELS).output_path() == (
        MODELS / "local" / "m-q4" / "m-q4.litertlm"
    )
    assert parse_model("./M.GGUF", MODELS).kind == "gguf"
    done = parse_model("done.litertlm", MODELS)
    assert (done.kind, done.output_path(Path("out"))) == ("litertlm", Path("done.litertlm"))


@pytest.mark.parametrize(
    ("names", "kind", "said"),
    [
        ([], SourceError, "config.json and *.safetensors are missing"),
        (["config.json"], SourceError, "*.safetensors is missing"),
        (["model.safetensors"], SourceError, "config.json is missing"),
        (["config.json", "pytorch_model.bin"], UnsupportedError, "save_pretrained(FOLDER)"),
        (["config.json", "model.pth"], UnsupportedError, "pickle format (model.pth)"),
        (
            ["adapter_config.json", "adapter_model.safetensors"],
            UnsupportedError,
            "it is merged: convert MODEL --lora",
        ),
    ],
)
def test_folders_that_are_not_models(
    names: list[str], kind: type[LiteRTLMError], said: str
) -> None:
    folder("m", *names)
    error = refusal("./m")
    assert isinstance(error, kind)
    assert said in str(error)
    assert error.what == "./m"


@pytest.mark.parametrize(
    "text",
    [
        "./m",
        "../m/x",
        "/no/such",
        "~/no-such",
        "m.gguf",
        "a/b.GGUF",
        "a/b.litertlm",
        ".\\m",
        "C:/m",
    ],
)
def test_paths_that_do_not_exist(text: str) -> None:
    error = refusal(text)
    assert isinstance(error, SourceError)
    assert error.why == "no such file or folder"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("qwen3", "a Hugging Face id has the form org/name"),
        ("", "a Hugging Face id has the form org/name"),
        ("a/b/c", "neither a file or folder nor a Hugging Face id"),
        ("org/na me", "neither"),
        ("org/..", "neither"),
        ("org/a--b", "neither"),
        ("org/m\x1b[31m", "neither"),
        ("org/m\0", "neither"),
        ("org/" + "x" * 5000, "neither"),
        ("org/m:../../x.gguf", "cannot be named after"),
        ("org/m:.hidden.gguf", "cannot be named after"),
        ("org/m:..\\x.gguf", "cannot be named after"),
        ("https://huggingface.co/", "not the address of a model's page"),
        ("https://huggingface.co/org", "not the address of a model's page"),
        ("https://huggingface.co/datasets/org/m", "not the address of a model's page"),
        ("https://huggingface.co/spaces/org/m", "not the address of a model's page"),
        ("https://huggingface.co/org/m/blob/main/model.safetensors", "model.safetensors in it is"),
        ("https://huggingface.co/org/m/tree/main/onnx", "onnx in it is neither"),
        ("https://huggingface.co/org/na me", "neither"),
        ("https://example.com/org/m", "not an address on huggingface.co"),
        ("https://[/org/m", "not an address on huggingface.co"),
    ],
)
def test_what_is_nothing(text: str, said: str) -> None:
    assert said in refusal(text).why


def test_other_files_are_refused() -> None:
    folder(".", "notes.txt", "model.safetensors")
    for name in ("notes.txt", "model.safetensors"):
        assert refusal(name).why == "it is an empty file"
        Path(name).write_text("a note")
    assert "not a model" in refusal("notes.txt").why
    assert refusal("model.safetensors").fix == "pass its folder"
    Path("blob").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert refusal("./blob").fix == "pass its folder"
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    for name in ("notes.txt", "model.safetensors"):
        Path(name).write_bytes(pointer)
        assert "a Git LFS pointer" in refusal(name).why


def test_a_folder_with_one_gguf_is_that() -> None:
    folder("m", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf", "mmproj-m.gguf")
    source = parse_model("./m", MODELS)
    assert (source.kind, source.name) == ("gguf", "m-Q8_0")
    assert source.path == Path("m/m-Q8_0-00001-of-00002.gguf")
    folder("m", "m-Q4_0.gguf")
    error = refusal("./m")
    assert error.why == "it holds 2 GGUFs: m-Q4_0.gguf, m-Q8_0-00001-of-00002.gguf"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes by name")
def test_a_pipe_is_not_waited_for() -> None:
    os.mkfifo("pipe")
    assert "not a model" in refusal("pipe").why


def test_the_magic_decides_and_not_the_suffix() -> None:
    for name in ("blob", "m.bin", "m.gguf.1", "sha256-" + "7f" * 32):
        Path(name).write_bytes(b"GGUF and more")
        assert parse_model("./" + name, MODELS).kind == "gguf"
    write_gguf(Path("sha256-" + "8f" * 32), {":general.name": "Gemma 3 270m/it"})
    named = parse_model("./sha256-" + "8f" * 32, MODELS)
    assert named.output_path().name == "Gemma-3-270m-it.litertlm"


@pytest.mark.parametrize(
    "name", ["m-00001-of-00003.gguf", "m-00003-of-00003.gguf", "m-00002-of-00003.GGUF"]
)
def test_a_split_model_is_named_after_the_whole(name: str) -> None:
    Path(name).write_bytes(b"GGUF")
    assert parse_model(name, MODELS).name == "m"


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
@pytest.mark.parametrize("name", ["a\nb", "a:b", ".hidden", "a\\b", "a\x1bb"])
def test_names_that_cannot_be_a_file_everywhere(name: str) -> None:
    folder(name, "config.json", "a.safetensors")
    assert "cannot be named after" in refusal("./" + name).why


def test_models_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LITERT_LM_MODELS", raising=False)
    assert models_dir() == Path(__file__).resolve().parents[3] / "models"
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path))
    assert models_dir() == tmp_path


def test_list_models(tmp_path: Path) -> None:
    assert list_models(tmp_path / "none") == []
    kept = [
        folder("org/a", "a.litertlm") / "a.litertlm",
        folder("org/checkpoint", "checkpoint.litertlm") / "checkpoint.litertlm",
        folder("local/z", "z.litertlm") / "z.litertlm",
    ]
    folder("org/a/checkpoint", "fetched.litertlm")
    folder("org/a", ".a.litertlm", "a.gguf")
    folder("org/b/folder.litertlm")
    assert list_models(Path()) == sorted(kept)
