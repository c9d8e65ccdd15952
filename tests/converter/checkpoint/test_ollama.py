"""Models that Ollama keeps: its folder as it lays it out, and the names by which people ask."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from converter.checkpoint.sources import Source, parse_model
from converter.errors import LiteRTLMError, OptionError, SourceError, UnsupportedError
from tests.gguf_files import write_gguf
from tests.permissions import closed

MODELS = Path("/models")
OWN = "registry.ollama.ai/library"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "ollama"
    (folder / "blobs").mkdir(parents=True)
    (folder / "manifests").mkdir()
    monkeypatch.setenv("OLLAMA_MODELS", str(folder))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def keep(store: Path, name: str, **layers: bytes) -> Path:
    """Store a model as `ollama pull` does; return the blob of its weights."""
    weights = write_gguf(store / "new", {":general.name": name}).read_bytes()
    described = []
    blobs = {}
    for kind, content in {"model": weights, **layers}.items():
        digest = hashlib.sha256(content).hexdigest()
        blobs[kind] = store / "blobs" / f"sha256-{digest}"
        blobs[kind].write_bytes(content)
        described.append(
            {
                "mediaType": f"application/vnd.ollama.image.{kind}",
                "digest": f"sha256:{digest}",
                "size": len(content),
            }
        )
    (store / "new").unlink()
    manifest = store / "manifests" / name
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": described}))
    return blobs["model"]


def refusal(text: str) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as caught:
        parse_model(text, MODELS)
    assert str(caught.value).isprintable()
    return caught.value


def found(text: str) -> tuple[Path | None, str]:
    source: Source = parse_model(text, MODELS)
    assert source.kind == "gguf"
    return source.path, source.name


@pytest.mark.parametrize(
    ("kept", "text", "name"),
    [
        (f"{OWN}/gemma3/270m", "gemma3:270m", "gemma3-270m"),
        (f"{OWN}/gemma3/270m", "Gemma3:270M", "gemma3-270m"),
        (f"{OWN}/gemma3/270m", "library/gemma3:270m", "gemma3-270m"),
        (f"{OWN}/gemma3/270m", f"{OWN}/gemma3:270m", "gemma3-270m"),
        (f"{OWN}/gemma3/latest", "gemma3", "gemma3"),
        (f"{OWN}/gemma3/latest", "gemma3:latest", "gemma3"),
        ("registry.ollama.ai/me/tuned/v2", "me/tuned:v2", "tuned-v2"),
        ("hf.co/org/m-GGUF/Q4_K_M", "hf.co/org/m-GGUF:Q4_K_M", "m-GGUF-Q4_K_M"),
        ("hf.co/org/m-GGUF/latest", "hf.co/org/m-GGUF", "m-GGUF"),
    ],
)
def test_names_as_ollama_reads_them(store: Path, kept: str, text: str, name: str) -> None:
    blob = keep(store, kept)
    assert found(text) == (blob, name)


def test_a_name_with_one_slash_and_no_tag_is_the_hub_s(store: Path) -> None:
    keep(store, "registry.ollama.ai/org/m/latest")
    assert parse_model("org/m", MODELS).kind == "hub"
    assert parse_model("org/m:Q4_K_M", MODELS).kind == "hub"  # Ollama has no such tag of it


def test_the_folder_a_manifest_and_a_blob_name_a_model_too(store: Path) -> None:
    blob = keep(store, f"{OWN}/gemma3/270m")
    for path in (store, store / "manifests" / OWN / "gemma3" / "270m", blob):
        assert found(str(path)) == (blob, "gemma3-270m")
    keep(store, f"{OWN}/qwen3/0.6b")
    error = refusal(str(store))
    assert isinstance(error, OptionError)
    assert error.why == "it holds 2 of Ollama's models: gemma3:270m, qwen3:0.6b"
    assert found(str(blob)) == (blob, "gemma3-270m")
    assert found(f"{store}/manifests/{OWN}/qwen3/0.6b")[1] == "qwen3-0.6b"


def test_a_tag_with_a_dot_does_not_lose_what_follows_it(store: Path) -> None:
    keep(store, f"{OWN}/qwen2.5/0.5b")
    assert parse_model("qwen2.5:0.5b", MODELS).output_path().name == "qwen2.5-0.5b.litertlm"


def test_what_is_not_used_is_told(store: Path) -> None:
    keep(store, f"{OWN}/a/latest", template=b"{{ .Prompt }}", params=b"{}", license=b"MIT")
    assert parse_model("a", MODELS).notes == (
        "a:latest: what Ollama adds to its GGUF is not used (params, template)",
    )
    keep(store, f"{OWN}/b/latest")
    assert parse_model("b", MODELS).notes == ()


def test_a_folder_that_may_not_be_read(store: Path) -> None:
    """It is said of Ollama's names, and keeps nobody from a tag of the hub's."""
    keep(store, f"{OWN}/gemma3/270m")
    assert parse_model("gemma3:270m", MODELS).kind == "gguf"
    assert parse_model("org/name:Q4_K_M", MODELS).kind == "hub"
    with closed(store):
        why = refusal("gemma3:270m").why
        assert parse_model("org/name:Q4_K_M", MODELS).kind == "hub"
    assert why.endswith(f"; and Ollama's folder {store} may not be read")


def test_what_ollama_does_not_have(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Ollama keeps no model here" in refusal("gemma3:4b").why
    keep(store, f"{OWN}/gemma3/270m")
    error = refusal("gemma3:4b")
    assert "Ollama has no model of this name" in error.why
    assert error.fix == "ollama pull it first, or name one that is here: gemma3:270m"
    assert "the form org/name" in refusal("llama3").why
    monkeypatch.setenv("OLLAMA_MODELS", str(store / "elsewhere"))
    assert "Ollama keeps no model here" in refusal("gemma3:270m").why


def test_the_default_folder_is_in_the_home(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(store, f"{OWN}/gemma3/270m")
    monkeypatch.delenv("OLLAMA_MODELS")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / ".ollama").mkdir()
    store.rename(tmp_path / ".ollama" / "models")
    assert found("gemma3:270m")[1] == "gemma3-270m"


def test_models_in_another_form_are_refused(store: Path) -> None:
    keep(store, f"{OWN}/tuned/latest", adapter=b"GGUF")
    error = refusal("tuned")
    assert isinstance(error, UnsupportedError)
    assert "a LoRA adapter" in error.why
    manifest = store / "manifests" / OWN / "tuned" / "latest"
    tensor = {"mediaType": "application/vnd.ollama.image.tensor", "digest": "sha256:" + "0" * 64}
    manifest.write_text(json.dumps({"layers": [tensor, tensor]}))
    assert "another form than one GGUF" in refusal("tuned").why


def test_weights_that_are_not_there_yet(store: Path) -> None:
    keep(store, f"{OWN}/a/latest").unlink()
    error = refusal("a")
    assert isinstance(error, SourceError)
    assert "its weights are missing" in error.why
    assert error.fix == "ollama pull a:latest"


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"layers": 1}',
        '{"layers": [1]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model"}]}',
        '{"layers": [{"mediaType": "application/vnd.ollama.image.model", "digest": "../../x"}]}',
        '{"layers": [{"mediaType": 1, "digest": "sha256:00"}]}',
    ],
)
def test_damaged_manifests(store: Path, content: str) -> None:
    keep(store, f"{OWN}/a/latest")
    (store / "manifests" / OWN / "a" / "latest").write_text(content)
    assert "it is no manifest of Ollama's" in refusal("a").why
