"""Folders that are whole or absent, and replace nothing that is not theirs."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from converter.errors import OutputError
from converter.output.atomic_file import unfinished
from converter.output.atomic_folder import AtomicFolder


def never(_: Path) -> str | None:
    return "it is a user's"


def always(_: Path) -> str | None:
    return None


def content_of(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_folder_appears_when_it_is_committed(tmp_path: Path) -> None:
    target = tmp_path / "new" / "packages"
    with AtomicFolder(target, never) as folder:
        folder.create("a/b.bin")
        folder.write_at("a/b.bin", 4, b"yz")
        folder.write_at("a/b.bin", 1, memoryview(b"x"))
        assert folder.read_at("a/b.bin", 3, 3) == b"\0yz"
        folder.write("run.sh", b"#!/bin/sh\n", is_program=True)
        assert [path.name for path in target.parent.iterdir()] == [".packages.partial"]
        folder.commit()
        assert content_of(target) == {"a/b.bin": b"\0x\0\0yz", "run.sh": b"#!/bin/sh\n"}
    assert list(target.parent.iterdir()) == [target]
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) & 0o111
    assert not stat.S_IMODE((target / "a/b.bin").stat().st_mode) & 0o111


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing_and_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    def fail(target: Path) -> None:
        with AtomicFolder(target, always) as folder:
            folder.write("x", b"new")
            raise error

    with pytest.raises(error):
        fail(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "x").write_bytes(b"old")
    with pytest.raises(error):
        fail(tmp_path / "old")
    assert content_of(tmp_path) == {"old/x": b"old"}


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path) -> None:
    left = unfinished(tmp_path / "m")
    (left / "sub").mkdir(parents=True)
    (left / "sub" / "stale").write_bytes(b"stale")
    with AtomicFolder(tmp_path / "m", never) as folder:
        folder.write("fresh", b"fresh")
        folder.commit()
    assert content_of(tmp_path) == {"m/fresh": b"fresh"}


def test_two_writers_of_one_folder(tmp_path: Path) -> None:
    with AtomicFolder(tmp_path / "m", never) as first:
        first.write("x", b"1")
        with (
            pytest.raises(OutputError, match="another conversion is writing it"),
            AtomicFolder(tmp_path / "m", never),
        ):
            pass
        first.commit()
    assert content_of(tmp_path) == {"m/x": b"1"}


@pytest.mark.parametrize("refusal", [never, always])
def test_a_folder_is_replaced_only_where_it_may_or_is_empty(
    tmp_path: Path, refusal: Callable[[Path], str | None]
) -> None:
    target = tmp_path / "m"
    target.mkdir()
    with AtomicFolder(target, refusal) as folder:
        folder.write("x", b"1")
        folder.commit()
    assert content_of(target) == {"x": b"1"}
    if refusal is always:
        with AtomicFolder(target, refusal) as folder:
            folder.write("y", b"2")
            folder.commit()
        assert content_of(tmp_path) == {"m/y": b"2"}
        return
    with (
        pytest.raises(OutputError, match=r"m, it is a user's, choose a new or an empty folder"),
        AtomicFolder(target, refusal),
    ):
        pass
    assert content_of(tmp_path) == {"m/x": b"1"}


def test_a_file_in_its_place_is_kept(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"a user's")
    for target in (tmp_path / "m", tmp_path / "m" / "below"):
        with pytest.raises(OutputError), AtomicFolder(target, always):
            pass
    assert content_of(tmp_path) == {"m": b"a user's"}


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for content in (b"1", b"2"):
        with AtomicFolder(tmp_path / "link", always) as folder:
            folder.write("x", content)
            folder.commit()
        assert (tmp_path / "link").is_symlink()
        assert content_of(tmp_path / "real") == {"x": content}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_a_folder_that_cannot_get_its_name_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "m"
    target.mkdir()
    (target / "x").write_bytes(b"old")
    rename = Path.rename

    def fail(path: Path, to: Path) -> Path:
        if path == unfinished(target):
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", fail)
    with AtomicFolder(target, always) as folder:
        folder.write("x", b"new")
        with pytest.raises(OutputError, match="No space left on device"):
            folder.commit()
    assert content_of(tmp_path) == {"m/x": b"old"}


def test_a_seal_sees_the_finished_folder_before_it_has_its_name(tmp_path: Path) -> None:
    target, seen = tmp_path / "m", []

    def seal(finished: Path) -> Callable[[], None]:
        (finished / "receipt.json").write_bytes(b"{}")
        seen.append((content_of(finished), target.exists()))
        return lambda: seen.append((content_of(target), True))

    with AtomicFolder(target, never) as folder:
        folder.write("x", b"1")
        folder.commit(seal)
    both = {"x": b"1", "receipt.json": b"{}"}
    assert seen == [(both, False), (both, True)]


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with AtomicFolder(tmp_path / "m", never) as folder:
        folder.create("x")
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="No space left on device"):
            folder.write_at("x", 0, b"1")
    assert list(tmp_path.iterdir()) == []
