"""`--chat-template FILE|none`: what the user chose is proven, kept, and said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from converter.litertlm.inspection import read_bundle
from converter.receipt import read_receipt
from tests.hub_server import HubServer
from tests.tiny_models import make_checkpoint

TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() }}: {{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
OPTIONS = ["--kv-cache-max-len", "64", "--prefill-seq-len", "8,16", "--quiet"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template of its own."""
    folder = tmp_path_factory.mktemp("template") / "tiny"
    make_checkpoint("llama", folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("role'].upper()", "role']"))
    return folder


def convert(source: Path, output_dir: Path, *options: str) -> Path:
    assert main(["convert", str(source), "--output-dir", str(output_dir), *OPTIONS, *options]) == 0
    return output_dir / "tiny.litertlm"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = EXIT_FAILURE) -> str:
    assert main([*arguments, "--quiet"]) == code
    printed = capsys.readouterr()
    assert (printed.out, printed.err.count("\n")) == ("", 1)
    return printed.err.removeprefix("error: ").rstrip("\n")


def test_a_file_takes_the_place_of_the_model_s_own(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = read_bundle(convert(llama, tmp_path / "own"))
    assert own.system["chat template"] == "the source's, adapted"

    file = tmp_path / "mine.jinja"
    file.write_bytes(b"\xef\xbb\xbf" + TEMPLATE.encode())  # with the mark that Windows writes
    output = convert(llama, tmp_path / "chosen", "--chat-template", str(file))
    bundle = read_bundle(output)
    assert bundle.system["chat template"] == "--chat-template, adapted"
    assert "| upper" in bundle.metadata.jinja_prompt_template
    assert 257 in [token.token_ids.ids[0] for token in bundle.metadata.stop_tokens]  # </s>
    capsys.readouterr()
    assert main(["inspect", str(output)]) == 0
    assert "\n  chat template: --chat-template, adapted\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    "value", [TEMPLATE, [{"name": "default", "template": TEMPLATE}], {"default": TEMPLATE}]
)
def test_a_json_file_with_a_template(llama: Path, tmp_path: Path, value: Any) -> None:
    """Published as chat_template.json, or in tokenizer_config.json."""
    file = tmp_path / "chat_template.json"
    file.write_text(json.dumps({"chat_template": value}))
    plain = tmp_path / "mine.jinja"
    plain.write_text(TEMPLATE)
    found, wanted = (
        read_bundle(convert(llama, tmp_path / path.stem, "--chat-template", str(path)))
        for path in (file, plain)
    )
    assert found.metadata == wanted.metadata


def test_none_makes_a_model_that_completes(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = read_bundle(convert(llama, tmp_path, "--chat-template", "none"))
    assert bundle.system["chat template"] == "none, by --chat-template"
    completion = Path(__file__).parents[2] / "converter/families/completion.jinja"
    assert bundle.metadata.jinja_prompt_template == completion.read_text("utf-8")


def test_a_receipt_keeps_the_template(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(TEMPLATE)
    output = convert(llama, tmp_path / "first", "--chat-template", str(file))
    said = read_receipt(output.with_suffix(".json"))["options"]["chat_template"]
    assert (said["text"], said["file"]) == (TEMPLATE, str(file))
    file.unlink()  # the receipt is enough
    again = tmp_path / "again"
    paper = str(output.with_suffix(".json"))
    assert main(["convert", "--from-receipt", paper, "--output-dir", str(again), "--quiet"]) == 0
    assert (again / output.name).read_bytes() == output.read_bytes()

    without = convert(llama, tmp_path / "none", "--chat-template", "none")
    paper = str(without.with_suffix(".json"))
    again = tmp_path / "none again"
    assert main(["convert", "--from-receipt", paper, "--output-dir", str(again), "--quiet"]) == 0
    assert (again / output.name).read_bytes() == without.read_bytes()


@pytest.mark.parametrize("change", [{"text": "x"}, {"file": 5}, {"blake3": None}, {"text": 5}])
def test_a_receipt_with_another_template_is_refused(
    llama: Path, tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    output = convert(llama, tmp_path, "--chat-template", "none")
    paper = output.with_suffix(".json")
    said = json.loads(paper.read_text())
    said["options"]["chat_template"] |= change
    stranger = tmp_path / "stranger.json"
    stranger.write_text(json.dumps(said))
    capsys.readouterr()
    line = refused(capsys, "convert", "--from-receipt", str(stranger), "--force")
    assert "its options are damaged" in line


def test_the_receipt_decides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("convert", "--from-receipt", "r.json", "--chat-template", "none")
    line = refused(capsys, *arguments, code=EXIT_USAGE)
    assert "the receipt decides, not --chat-template" in line


def test_a_template_for_tools_comes_from_the_hub_too(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
    with HubServer(tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        published = hub.root / "org" / "model"
        shutil.copytree(llama, published)
        (published / "additional_chat_templates").mkdir()
        for name in ("tool_use", "rag"):
            (published / "additional_chat_templates" / f"{name}.jinja").write_text("{{ tools }}")
        assert main(["convert", "org/model", *OPTIONS]) == 0
        output = tmp_path / "models" / "org" / "model" / "model.litertlm"
        assert "{%- if tools -%}" in read_bundle(output).metadata.jinja_prompt_template
        files = read_receipt(output.with_suffix(".json"))["source"]["files"]
        assert "tool_use.jinja" in [entry["name"] for entry in files]
        fetched = hub.fetched()
        assert main(["convert", "org/model", "--force", *OPTIONS]) == 0
        assert hub.fetched() == fetched  # nothing twice


def test_a_dry_run_says_which(
    llama: Path, smollm2_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source, options, said in (
        (llama, [], "the source's, adapted"),
        (smollm2_gguf, ["--chat-template", "none"], "none, by --chat-template"),
    ):
        assert main(["convert", str(source), "--dry-run", *options]) == 0
        assert f"\n  chat template: {said}\n" in capsys.readouterr().out
        assert main(["convert", str(source), "--dry-run", "--json", *options]) == 0
        assert json.loads(capsys.readouterr().out)["chat_template"] == said


LARGEST = 1 << 20


@pytest.mark.parametrize("command", [["convert"], ["run", "--prompt", "Hi"]])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "no such file or directory"),
        (b"{{ '\xff' }}", "it is not UTF-8 text"),
        (b" \n\n", "it is empty"),
        (b'{"bos_token": "<s>"}', "it is JSON, and has no chat_template"),
        (b"x" * (LARGEST + 1), "it is larger than 1 MiB"),
    ],
    ids=["missing", "not text", "empty", "no template", "huge"],
)
def test_what_cannot_be_a_template(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    content: bytes | None,
    why: str,
) -> None:
    """Before the model is looked at, and even downloaded."""
    file = tmp_path / "mine.jinja"
    if content is not None:
        file.write_bytes(content)
    line = refused(capsys, *command, "org/model", "--chat-template", str(file), code=EXIT_USAGE)
    assert line == f"--chat-template {file}, {why}, pass a file with a Jinja template, or none"


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ '' }}", "it does not print the user's message"),
        ("{% for m in messages %}", "it does not render one user message: Unexpected end"),
        (
            "{{ messages[0].content.find('x') }}{{ messages[-1].content }}",
            "has no method named find",
        ),
        (
            "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
            "not end",
        ),
    ],
)
def test_a_template_that_does_not_do(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], template: str, why: str
) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    out = tmp_path / "out"
    arguments = ("--output-dir", str(out), "--chat-template", str(file))
    line = refused(capsys, "convert", str(llama), *arguments)
    assert line.startswith("llama: chat template, ")
    assert why in line
    assert line.endswith(f", correct {file}")
    assert not out.exists() or not list(out.iterdir())
