"""What a source says of its licence, and what cannot be read of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from converter.checkpoint.papers import LARGEST, Papers, are_papers, papers_of, read_papers
from tests.gguf_files import tensors_of_a_model, write_gguf


def folder(tmp_path: Path, card: str | bytes, **texts: str) -> list[Path]:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_bytes(card if isinstance(card, bytes) else card.encode())
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    return [tmp_path / "config.json"]


@pytest.mark.parametrize(
    ("front", "wanted"),
    [
        ("license: apache-2.0", Papers(("apache-2.0",), stated_in="README.md")),
        ("license: 'mit'  # so far", Papers(("mit",), stated_in="README.md")),
        ("license:\n- mit\n- apache-2.0", Papers(("mit", "apache-2.0"), stated_in="README.md")),
        (
            "license: other\nlicense_name: tongyi\nlicense_link: >-\n  https://a.b/LICENSE",
            Papers(("other",), "tongyi", "https://a.b/LICENSE", "README.md"),
        ),
        ("base_model: [org/a, org/b]", Papers(base_model=("org/a", "org/b"))),
        ("license: ''\nbase_model: 3", Papers()),
        ("license: [unclosed", Papers()),
        ("- license: mit", Papers()),
        ("a: &a [*a, *a]\nlicense: mit", Papers(("mit",), stated_in="README.md")),
        (f"{'[' * 5000}\nlicense: mit", Papers()),
    ],
)
def test_front_matter(tmp_path: Path, front: str, wanted: Papers) -> None:
    assert read_papers(folder(tmp_path, f"---\n{front}\n---\nlicense: gpl\n"), True) == wanted


@pytest.mark.parametrize(
    "card",
    [b"---\r\nlicense: mit\r\n---\r\ntext", b"\xef\xbb\xbf---\nlicense: mit\n---"],
)
def test_a_card_of_another_editor(tmp_path: Path, card: bytes) -> None:
    assert read_papers(folder(tmp_path, card), True).license == ("mit",)


@pytest.mark.parametrize(
    "card", [b"license: mit\n", b"---\nlicense: mit\n", b"---\nlicense: \xff\n---"]
)
def test_what_is_no_front_matter_says_nothing(tmp_path: Path, card: bytes) -> None:
    assert read_papers(folder(tmp_path, card), True) == Papers()


def test_texts_come_as_they_are(tmp_path: Path) -> None:
    files = folder(tmp_path, "", LICENSE="Do.\r\n", NOTICE="ours\n")
    (tmp_path / "LICENSE-2.txt").write_bytes(b"x" * (LARGEST + 1))
    (tmp_path / "COPYING").write_bytes(b"\xff\xfe")
    assert read_papers(files, True).texts == {"LICENSE": "Do.\r\n", "NOTICE": "ours\n"}
    assert read_papers(files, False) == Papers()


def test_which_files_are_papers() -> None:
    names = ["README.md", "LICENSE", "License.txt", "LICENCE.md", "NOTICE", "USE_POLICY.md"]
    names += ["LICENSE-MODEL", "LICENSE_Llama.md", "Acceptable-Use-Policy.txt", "COPYING"]
    others = ["README", "readme.md", "LICENSE.pdf", "licenses.json", "my-license", "a/LICENSE"]
    assert are_papers(names + others) == names


def test_a_gguf_says_it_by_its_keys(tmp_path: Path) -> None:
    keys = {
        ":general.license": "other",
        ":general.license.name": "gemma",
        ":general.license.link": "https://a.b",
        ":general.base_model.0.repo_url": "https://huggingface.co/org/base",
        ":general.base_model.1.repo_url": "https://example.com/org/other",
    }
    path = tmp_path / "m.gguf"
    write_gguf(path, keys, tensors_of_a_model())
    stated = Papers(("other",), "gemma", "https://a.b", "the GGUF's metadata", ("org/base",))
    folder(tmp_path, "---\nbase_model: org/a\n---", LICENSE="Do.")
    assert read_papers([path], False) == stated
    both = read_papers([path], True)
    assert (both.license, both.base_model, both.texts) == (
        ("other",),
        ("org/a",),
        {"LICENSE": "Do."},
    )
    folder(tmp_path, "---\nlicense: mit\n---")  # the publisher's own word counts
    assert read_papers([path], True).license == ("mit",)


def test_a_receipt_keeps_it(tmp_path: Path) -> None:
    found = read_papers(folder(tmp_path, "---\nlicense: mit\n---", LICENSE="Do."), True)
    assert papers_of(found.as_json()) == found


@pytest.mark.parametrize(
    "change",
    [
        {"license": "mit"},
        {"license": [1]},
        {"license_link": []},
        {"texts": {"../LICENSE": ""}},
        {"texts": {"LICENSE": None}},
        {"texts": {"run.sh": "rm"}},
        {"more": 1},
    ],
)
def test_what_else_a_receipt_may_say_is_refused(change: dict[str, Any]) -> None:
    assert papers_of(Papers().as_json() | change) is None
