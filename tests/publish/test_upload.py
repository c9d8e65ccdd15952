"""Uploads with the real huggingface_hub client, to a hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import huggingface_hub.utils._http
import pytest

from cli.main import EXIT_FAILURE, EXIT_USAGE, main
from converter.receipt import read_receipt
from publish.package import MANIFEST, fill_in, open_package, write_package
from publish.upload import Uploaded, upload
from tests.hub_server import HubServer


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        server.part_size = 100_000  # of the bundle's 230 kB
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setenv("LITERT_LM_MODELS", str(tmp_path / "models"))
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda _: None)  # retries
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")  # no file HF_TOKEN here, and none above
        yield server


@pytest.fixture
def package(output: Path, tmp_path: Path) -> Path:
    write_package(output, tmp_path / "out")
    return tmp_path / "out"


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


def puts(hub: HubServer) -> list[str]:
    return [seen.path for seen in hub.seen if seen.method == "PUT"]


def test_what_arrives_is_what_was_packaged(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", "me/tiny", str(package)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{hub.url}/me/tiny\n"
    assert "litert-lm-cli: me/tiny: 5 files, " in printed.err
    assert files_in(hub.root / "me/tiny") == files_in(package)
    assert hub.received == (package / "tiny.litertlm").stat().st_size
    assert len(puts(hub)) == 3  # in parts
    assert "me/tiny" not in hub.private
    text = (package / "README.md").read_text()
    assert "ORG/NAME" not in text
    assert "litert-lm-cli run me/tiny\n" in text
    [listed] = json.loads((package / "model_allowlist.json").read_text())["models"]
    assert listed["modelId"] == "me/tiny"


def test_once_more_sends_nothing(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    sent = len(puts(hub)), len(hub.commits), hub.received
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    assert (len(puts(hub)), len(hub.commits), hub.received) == sent
    assert capsys.readouterr().err == ""
    (package / "README.md").write_text((package / "README.md").read_text() + "More.\n")
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    assert hub.commits[1:] == [["README.md"]]
    assert hub.received == sent[2]


def test_an_edited_text_goes_as_it_is(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "README.md").write_text("My card of ORG/NAME.\n")
    assert main(["upload", "me/tiny", str(package)]) == 0
    error = capsys.readouterr().err
    assert "README.md was edited since it was packaged" in error
    assert "empty or missing yaml metadata" in error  # what the hub says of it
    assert (hub.root / "me/tiny/README.md").read_text() == "My card of me/tiny.\n"


def test_a_connection_that_breaks_is_tried_again_and_nothing_told_twice(
    hub: HubServer, package: Path
) -> None:
    hub.cut_uploads = [1000, 50_000]
    told: list[int] = []
    done = upload(fill_in(open_package(package), "me/tiny"), "me/tiny", progress=told.append)
    assert done == Uploaded(f"{hub.url}/me/tiny", hub.commit("me/tiny"), ())
    assert files_in(hub.root / "me/tiny") == files_in(package)
    assert sum(told) == sum(len(content) for content in files_in(package).values())
    assert min(told) > 0


@pytest.mark.parametrize("is_multipart", [True, False])
def test_a_network_that_is_gone_is_an_error_and_the_next_run_goes_on(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str], is_multipart: bool
) -> None:
    hub.part_size = 100_000 if is_multipart else 1 << 30
    hub.cut_uploads = [70_000] * 6  # as often as it is tried
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    error = capsys.readouterr().err
    assert error == (
        f"error: upload to me/tiny, {hub.url} cannot be reached, run this again: what has arrived "
        "is not sent again\n"
    )
    assert hub.commits == []  # nothing half
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    assert files_in(hub.root / "me/tiny") == files_in(package)


def test_what_has_arrived_is_not_sent_again(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.fails = {"/api/models/me/tiny/commit": [500] * 6}
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert "answered HTTP 500, run this again: what has arrived" in capsys.readouterr().err
    size = (package / "tiny.litertlm").stat().st_size
    hub.fails.clear()
    assert (hub.received, hub.commits) == (size, [])
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    assert hub.received == size
    assert files_in(hub.root / "me/tiny") == files_in(package)


def test_the_token_goes_to_the_hub_alone(hub: HubServer, package: Path) -> None:
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    for seen in hub.seen:  # signed addresses take none, and may be another host's
        is_signed = seen.path.startswith(("/lfs/put/", "/lfs/complete/"))
        assert seen.authorization == (None if is_signed else f"Bearer {hub.token}")


def test_a_private_repository(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", "me/tiny", str(package), "--private", "--quiet"]) == 0
    assert hub.private == {"me/tiny"}
    assert main(["upload", "me/tiny", str(package), "--private", "--quiet"]) == 0
    hub.private.clear()
    capsys.readouterr()
    before = len(puts(hub))
    assert main(["upload", "me/tiny", str(package), "--private", "--quiet"]) == EXIT_USAGE
    assert "--private me/tiny, it exists, and everybody can see it" in capsys.readouterr().err
    assert len(puts(hub)) == before


def test_a_branch(hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        arguments = ["upload", "me/tiny", str(package), "--revision", "next", "--quiet"]
        assert main(arguments) == 0
        assert capsys.readouterr().out == f"{hub.url}/me/tiny/tree/next\n"
    assert files_in(hub.tree("me/tiny", "next")) == files_in(package)
    assert files_in(hub.root / "me/tiny") == {}
    assert len(hub.commits) == 1


def test_a_model_is_packaged_on_the_way(
    hub: HubServer, output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path.name for path in output.parent.iterdir()}
    assert main(["upload", "me/tiny", str(output), "--quiet"]) == 0
    sent = files_in(hub.root / "me/tiny")
    assert sent["tiny.litertlm"] == output.read_bytes()
    assert b"litert-lm-cli run me/tiny\n" in sent["README.md"]
    assert {path.name for path in output.parent.iterdir()} - {"hub"} == before - {"hub"}
    # The current folder, where nothing is named.
    capsys.readouterr()
    assert main(["upload", "me/tiny", "--quiet"]) == EXIT_FAILURE
    assert "error: ., it is no package, " in capsys.readouterr().err
    assert main(["upload", "me/tiny", str(output.parent), "--quiet"]) == EXIT_FAILURE
    assert f"error: {output.parent}, it is no package, " in capsys.readouterr().err


def test_it_can_be_fetched_and_run_from_there(
    hub: HubServer, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    prompt = ["--prompt", "hello", "--max-tokens", "4", "--raw", "--quiet"]
    assert main(["run", "me/tiny", *prompt]) == 0
    fetched = tmp_path / "models/me/tiny/tiny.litertlm"
    assert fetched.read_bytes() == (package / "tiny.litertlm").read_bytes()
    papers = read_receipt(fetched.with_suffix(".json"))["source"]["papers"]
    assert papers["license_name"] == "tiny_license"
    assert papers["texts"] == {"LICENSE": "Do what you like.\n"}
    capsys.readouterr()
    # And be published once more, as what it is: somebody's conversion.
    assert main(["package", "me/tiny", "--to", str(tmp_path / "again"), "--quiet"]) == 0
    text = (tmp_path / "again" / "README.md").read_text()
    assert "[me/tiny](https://huggingface.co/me/tiny), as its publisher converted it" in text
    assert "Quantization" not in text


def test_a_package_of_another_repository_is_refused(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == 0
    assert main(["upload", "me/other", str(package), "--quiet"]) == EXIT_USAGE
    error = capsys.readouterr().err
    assert "model_allowlist.json names me/tiny, package it again with --repo me/other" in error
    assert not (hub.root / "me/other").exists()


@pytest.mark.parametrize("name", ["tiny.litertlm", "tiny.json"])
def test_a_damaged_package_is_not_sent(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = bytearray((package / name).read_bytes())
    content[-5] ^= 1
    (package / name).unlink()  # a link to the bundle
    (package / name).write_bytes(content)
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert f"{name}, it is not what was packaged, " in capsys.readouterr().err
    assert hub.seen == []
    (package / name).unlink()
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert f"it is not whole: {name}" in capsys.readouterr().err


def test_without_a_token(
    hub: HubServer,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert "wants an access token that may write, and none is set" in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert "does not accept the access token from HF_TOKEN" in capsys.readouterr().err
    assert hub.commits == []


@pytest.mark.parametrize(
    ("statuses", "message"),
    [
        ({"/api/repos/create": [403]}, "the hub forbids to write there (with the token from "),
        ({"/api/repos/create": [404]}, "has no me, or does not show it (with the token from "),
        ({"/api/models/me/tiny/preupload": [403]}, "the hub forbids to write there"),
        ({"/me/tiny.git": [402]}, "answered HTTP 402, check HF_ENDPOINT"),
        ({"/api/models/me/tiny/commit": [409]}, "answered HTTP 409, run this again"),
        ({"/api/models/me/tiny/commit": [413]}, "answered HTTP 413, check HF_ENDPOINT"),
        ({"/api/repos/create": [204]}, "does not answer like a Hugging Face hub"),
    ],
)
def test_refusals_of_the_hub_are_one_line(
    hub: HubServer,
    package: Path,
    capsys: pytest.CaptureFixture[str],
    statuses: dict[str, list[int]],
    message: str,
) -> None:
    hub.fails = statuses
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert hub.token not in printed.err


def test_an_organisation_of_others(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.namespaces = {"me"}
    assert main(["upload", "google/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert "use a token that may write to google: " in capsys.readouterr().err


def test_a_licence_that_the_hub_does_not_know(
    hub: HubServer, package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (package / "README.md").write_text("---\nlicense: my-own\n---\n")
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    error = capsys.readouterr().err
    assert 'Invalid metadata in README.md. - "license" is not my-own, correct README.md' in error
    assert hub.received == 0


def test_no_hub_at_all(
    hub: HubServer,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert main(["upload", "me/tiny", str(package), "--quiet"]) == EXIT_FAILURE
    assert "http://127.0.0.1:9 cannot be reached, run this again" in capsys.readouterr().err
    assert main(["upload", "tiny", str(package)]) == EXIT_USAGE
    assert "tiny, it is no repository's name, write ORG/NAME" in capsys.readouterr().err
