"""Packages: what is in them, and what they are kept from."""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import EXIT_FAILURE, EXIT_USAGE, build_parser, main
from converter.errors import LiteRTLMError, OutputError, SourceError
from converter.litertlm.inspection import Bundle, read_bundle
from converter.receipt import read_receipt
from publish import gallery
from publish.package import MANIFEST, open_package, write_package
from tests.publish.conftest import OPTIONS
from tests.tiny_models import make_adapter, make_model

FILES = ["tiny.litertlm", "tiny.json", "README.md", "model_allowlist.json", "LICENSE"]


def front_matter(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])
    return found


def rewrite(output: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The bundle with another receipt."""
    path = output.with_suffix(".json")
    receipt = json.loads(path.read_text())
    change(receipt)
    path.write_text(json.dumps(receipt))
    return output


def card(output: Path) -> str:
    folder = output.parent / "out"
    write_package(output, folder, force=True)
    return (folder / "README.md").read_text()


def refusal(output: Path, **options: Any) -> LiteRTLMError:
    with pytest.raises(LiteRTLMError) as caught:
        write_package(output, output.parent / "out", **options)
    return caught.value


def test_what_is_in_it(
    output: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(["package", str(output), "--to", str(out), "--repo", "me/tiny"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert "no figures: add --eval" in printed.err
    assert {path.name for path in out.iterdir()} == {*FILES, MANIFEST}
    assert (out / "tiny.litertlm").samefile(output)  # no second copy
    assert (out / "LICENSE").read_bytes() == (source / "LICENSE").read_bytes()
    package = open_package(out)
    assert list(package.files) == FILES
    for name, said in package.files.items():
        content = (out / name).read_bytes()
        assert (said.size, said.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert main(["verify", str(out / "tiny.litertlm")]) == 0
    assert capsys.readouterr().out == "MATCH\n"


def test_nothing_of_this_machine_is_in_it(output: Path, source: Path, tmp_path: Path) -> None:
    write_package(output, tmp_path / "out")
    receipt = read_receipt(tmp_path / "out" / "tiny.json")
    assert receipt["source"]["model"] == "tiny"
    for name in FILES:
        assert str(source.parent).encode() not in (tmp_path / "out" / name).read_bytes()
    again = ["convert", "--from-receipt", str(tmp_path / "out" / "tiny.json"), str(source)]
    assert main([*again, "--output-dir", str(tmp_path / "again"), "--quiet"]) == 0
    assert (tmp_path / "again" / "tiny.litertlm").read_bytes() == output.read_bytes()


def test_the_card(output: Path, tmp_path: Path) -> None:
    said = card(output)
    assert front_matter(tmp_path / "out") == {
        "license": "other",
        "license_name": "tiny_license",
        "license_link": "LICENSE",
        "base_model": "org/base",  # as its own card has it: the folder is nowhere on the hub
        "library_name": "litert-lm",
        "pipeline_tag": "text-generation",
        "tags": ["litertlm", "on-device"],
    }
    for line in (
        "| Source | tiny |",
        f"| SHA-256 | `{hashlib.sha256(output.read_bytes()).hexdigest()}` |",
        "| Weights there | F32 |",
        "| Quantization | `dynamic_int8_a16`: int8 weights, ",
        "| Context | 256 tokens, prompt and answer together |",
        "tiny states `other`, tiny_license ([text](<LICENSE>)) in README.md. "
        "With it came [LICENSE](<LICENSE>).",
        "litert-lm-cli run ORG/NAME\n",
        "litert-lm run --from-huggingface-repo=ORG/NAME tiny.litertlm ",
        "backend = Backend.CPU()",
        "It is a base model",
        "litert-lm-cli convert --from-receipt tiny.json MODEL\n",
    ):
        assert line in said
    assert "## Figures" not in said


def of_the_hub(receipt: dict[str, Any]) -> None:
    receipt["source"] |= {"kind": "hub", "model": "org/tiny", "commit": "0123456789" * 4}


def test_a_source_on_the_hub_is_named_and_linked(output: Path, tmp_path: Path) -> None:
    said = card(rewrite(output, of_the_hub))
    front = front_matter(tmp_path / "out")
    assert (front["base_model"], front["base_model_relation"]) == ("org/tiny", "quantized")
    source = f"[org/tiny](https://huggingface.co/org/tiny), commit `{'0123456789' * 4}`"
    assert f"| Source | {source} |" in said
    assert "litert-lm-cli convert --from-receipt tiny.json\n" in said
    rewrite(output, lambda receipt: receipt["options"].update(quantize="fp16"))
    card(output)
    assert "base_model_relation" not in front_matter(tmp_path / "out")


@pytest.mark.parametrize(
    ("papers", "front", "line"),
    [
        ({"license": []}, {}, "The files of tiny that were converted state no licence."),
        (None, {}, "What tiny states was not noted when it was converted."),
        (
            {"license": ["Apache-2.0"], "license_name": None, "license_link": None},
            {"license": "apache-2.0"},
            "tiny states `Apache-2.0` in README.md.",
        ),
        (
            {"license": ["mit", "gemma"], "license_name": None, "license_link": "javascript:x"},
            {"license": ["mit", "gemma"]},
            "tiny states `mit, gemma` in README.md.",
        ),
        (
            {"license": ["My own terms"], "license_name": None, "license_link": "https://a.b/c"},
            {
                "license": "other",
                "license_name": "My own terms",
                "license_link": "https://a.b/c",
            },
            "tiny states `My own terms` ([text](<https://a.b/c>)) in README.md.",
        ),
    ],
)
def test_the_licence_is_what_the_source_states(
    output: Path, tmp_path: Path, papers: dict[str, Any] | None, front: dict[str, Any], line: str
) -> None:
    def change(receipt: dict[str, Any]) -> None:
        if papers is None:
            del receipt["source"]["papers"]  # of an older release
        else:
            receipt["source"]["papers"] |= papers

    said = card(rewrite(output, change))
    found = front_matter(tmp_path / "out")
    assert {key: value for key, value in found.items() if key.startswith("license")} == front
    assert line in said
    assert ("Ask the model's makers" in said) == ("license" not in front)


def test_an_adapter_brings_its_own_licence(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "lora"
    make_adapter(make_model("llama"), adapter)
    (adapter / "README.md").write_text("---\nlicense: mit\n---\n")
    (adapter / "LICENSE").write_text("Mine.\n")
    arguments = [str(source), "--lora", str(adapter), "--output-dir", str(tmp_path / "made")]
    assert main(["convert", *arguments, *OPTIONS]) == 0
    output = Path(capsys.readouterr().out.strip())
    write_package(output, tmp_path / "out")
    said = (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "out" / "LICENSE").read_text() == "Do what you like.\n"
    assert (tmp_path / "out" / "adapter1-LICENSE").read_text() == "Mine.\n"
    assert "lora states `mit` in README.md. With it came [adapter1-LICENSE]" in said
    assert "| Merged LoRA adapters | lora |" in said
    assert front_matter(tmp_path / "out")["license"] == ["other", "mit"]


def test_nothing_that_a_stranger_wrote_is_markup(output: Path, tmp_path: Path) -> None:
    evil = "x|y](http://evil) <script>\n# head `code` _so_ a_b"

    def change(receipt: dict[str, Any]) -> None:
        receipt["source"]["model"] = evil
        receipt["source"]["papers"] |= {"license": [evil], "license_name": evil}

    said = card(rewrite(output, change))
    text = re.sub(r"(?<!\\)`[^`\n]*`", "", said.split("---\n", 2)[2])  # without what is verbatim
    assert text.count("evil") > 3
    for markup in (r"\]\(http://evil", "<script", "`code", "# head", r"\|y", "_so", "_ a"):
        assert re.search(rf"(?<!\\){markup}", text) is None
    assert front_matter(tmp_path / "out")["license_name"] == evil


def test_the_gallerys_list(output: Path, tmp_path: Path) -> None:
    write_package(output, tmp_path / "out", "me/tiny")
    assert json.loads((tmp_path / "out" / gallery.FILE).read_text()) == {
        "models": [
            {
                "name": "tiny",
                "modelId": "me/tiny",
                "modelFile": "tiny.litertlm",
                "commitHash": "main",
                "description": "tiny in dynamic_int8_a16, for LiteRT-LM",
                "sizeInBytes": output.stat().st_size,
                "defaultConfig": {
                    "topK": 50,
                    "topP": 0.9,
                    "temperature": 0.6,
                    "maxTokens": 256,
                    "accelerators": "cpu",
                },
                "taskTypes": ["llm_prompt_lab"],
            }
        ]
    }


def bundle_with(output: Path, target: str | None, template: str, **sampler: Any) -> Bundle:
    read = read_bundle(output)
    system = read.system | {"chat template": template, "target": target}
    bundle = Bundle(read.path, read.nbytes, read.version, system, read.sections)
    metadata = bundle.metadata
    metadata.supports_thinking = True
    metadata.sampler_params.Clear()
    for key, value in sampler.items():
        setattr(metadata.sampler_params, key, value)
    return bundle


def test_settings_of_other_bundles(output: Path) -> None:
    greedy = gallery.allowlist(bundle_with(output, "gpu", "the source's", type=3), "a/b", "")
    [model] = greedy["models"]
    assert model["defaultConfig"] == {"topK": 1, "maxTokens": 256, "accelerators": "gpu,cpu"}
    assert model["taskTypes"] == ["llm_chat", "llm_prompt_lab"]
    assert model["capabilities"] == ["llm_thinking"]
    unknown = gallery.allowlist(bundle_with(output, None, "the source's"), "a/b", "")
    assert unknown["models"][0]["defaultConfig"] == {"maxTokens": 256}


def test_figures_are_measured_kept_and_shown(
    output: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, against = str(tmp_path / "out"), ["--eval", "--against", str(source)]
    assert main(["package", str(output), "--to", out, *against, "--quiet"]) == 0
    said = read_receipt(output.with_suffix(".json"))["eval"]
    assert said["perplexity"] > 100  # random weights
    assert said["against"] == "tiny"
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"| Perplexity | {said['perplexity']:.2f} over {said['tokens']} tokens of " in text
    assert f"A prompt of {said['prefill_tokens']} tokens | {said['prefill_rate']:,.0f} tok" in text
    assert f"from tiny in float over {said['positions']} positions" in text
    assert f"Measured on {said['date']}, on " in text
    assert main(["package", str(output), "--to", out]) == 0  # from the receipt, from now on
    assert (tmp_path / "out" / "README.md").read_text() == text
    assert "--eval" not in capsys.readouterr().err
    for damaged in (said | {"perplexity": "2"}, said | {"more": 1}, said | {"kl_mean": None}, 3):
        rewrite(output, lambda receipt, found=damaged: receipt.update(eval=found))
        assert isinstance(refusal(output), SourceError)


def test_a_receipt_that_is_not_the_bundles_is_refused(output: Path) -> None:
    with output.open("r+b") as file:
        file.seek(100_000)
        file.write(b"\1\2\3\4")
    assert "it is not what tiny.json says" in str(refusal(output))
    output.with_suffix(".json").unlink()
    assert "no receipt is beside it" in str(refusal(output))
    assert not (output.parent / "out").exists()


def test_a_folder_with_something_else_is_left_alone(output: Path) -> None:
    out = output.parent / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    error = refusal(output, force=True)
    assert isinstance(error, OutputError)
    assert "thesis.txt" in str(error)
    assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    out = output.parent / "file"
    out.write_text("")
    with pytest.raises(OutputError):
        write_package(output, out)


def test_a_package_is_made_anew_but_not_over_what_was_edited(output: Path) -> None:
    out = output.parent / "out"
    out.mkdir()
    write_package(output, out)  # an empty folder will do
    (out / "README.md").write_text("mine\n")
    assert "README.md, it was edited, add --force" in str(refusal(output))
    assert (out / "README.md").read_text() == "mine\n"
    write_package(output, out, force=True)
    assert (out / "README.md").read_text() != "mine\n"

    def without_texts(receipt: dict[str, Any]) -> None:
        receipt["source"]["papers"]["texts"] = {}

    write_package(rewrite(output, without_texts), out)
    assert not (out / "LICENSE").exists()
    assert "LICENSE" not in open_package(out).files


@pytest.mark.parametrize("failing", ["README.md", "LICENSE", MANIFEST])
def test_an_interrupted_one_is_no_package_until_it_is_made_again(
    output: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    from publish import package

    out = output.parent / "out"
    write_package(output, out)
    before, write = (out / "LICENSE").read_bytes(), package._write
    rewrite(output, lambda receipt: receipt["source"]["papers"]["texts"].update(LICENSE="New.\n"))
    written = []

    def interrupted(path: Path, text: str) -> Any:
        written.append(path.name)
        if path.name == failing and len(written) > 1:
            raise KeyboardInterrupt
        return write(path, text)

    monkeypatch.setattr(package, "_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_package(output, out)
    assert (out / "LICENSE").read_bytes() in (before, b"New.\n")
    with pytest.raises(SourceError, match="it is not whole"):
        open_package(out)
    monkeypatch.undo()
    (out / ".README.md.partial").write_text("of a process that was killed")
    write_package(output, out)
    assert list(open_package(out).files) == FILES
    assert {path.name for path in out.iterdir()} == {*FILES, MANIFEST}


def test_a_manifest_of_something_else_is_refused(output: Path) -> None:
    out = output.parent / "out"
    write_package(output, out)
    for text in ("", "[]", '{"package": 2}', '{"package": 1, "files": {"../x": null}}', "{"):
        (out / MANIFEST).write_text(text)
        with pytest.raises(SourceError, match="no manifest"):
            open_package(out)
    shutil.rmtree(out)
    with pytest.raises(SourceError, match="there is no such folder"):
        open_package(out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--against", "x"], EXIT_USAGE, "--against, has no effect without --eval"),
        (["--threads", "2"], EXIT_USAGE, "--threads, has no effect without --eval"),
        (["--repo", "me"], EXIT_USAGE, "me, it is no repository's name"),
        (["--repo", "a/b--c"], EXIT_USAGE, "a/b--c, it is no repository's name"),
        (["--quantize", "int8"], EXIT_USAGE, "it is converted already"),
        (["--to", "{file}"], EXIT_FAILURE, "choose another folder with --to"),
        (
            ["--to", "{file}/out"],
            EXIT_FAILURE,
            "choose a writable folder with enough room with --to",
        ),
    ],
)
def test_errors_are_one_line(
    output: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    given = [argument.format(file=output) for argument in arguments]
    assert main(["package", str(output), "--to", str(output.parent / "out"), *given]) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("command", ["package", "upload"])
def test_the_page_names_every_option(command: str) -> None:
    page = Path(__file__).parents[2].joinpath("docs/publishing.md").read_text("utf-8")
    known = options_of("convert")  # which README_MODELS.md has
    assert [n for n in options_of(command) - known if not re.search(rf"{n}\b", page)] == []


def options_of(command: str) -> set[str]:
    actions = build_parser()._actions
    [commands] = (a for a in actions if isinstance(a, argparse._SubParsersAction))
    return {name for action in commands.choices[command]._actions for name in action.option_strings}
