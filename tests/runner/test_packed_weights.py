"""The engine's packed weights: no copy stays unasked, and what is kept fits what it is used for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from converter.errors import OptionError
from runner import packed_weights
from runner.engine import Model
from runner.options import ChatOptions
from runner.packed_weights import NO_CACHE, PackedWeights, check_keeping

_Usage = namedtuple("_Usage", "total used free")


def test_the_folder_is_beside_the_model_and_goes_with_everything_in_it(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with PackedWeights(model) as packed:
        assert Path(packed.folder).parent == tmp_path
        _pack(packed)
        packed.loaded()
    assert list(tmp_path.iterdir()) == [model]


def test_it_goes_elsewhere_when_the_models_folder_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path)
    real = tempfile.mkdtemp

    def mkdtemp(prefix: str, dir: Path) -> str:
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with PackedWeights(model) as packed:
        assert Path(packed.folder).parent == Path(tempfile.gettempdir())
    assert not Path(packed.folder).exists()


def test_a_full_disk_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(1000, 800, 200))
    with PackedWeights(model, keep=True) as packed:
        assert packed.folder == NO_CACHE
        packed.loaded()
    assert list(tmp_path.iterdir()) == [model]


def test_the_engine_answers_after_its_cache_file_is_gone(
    qwen3_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copy(qwen3_bundle, tmp_path))
    with Model(bundle) as model:
        assert list(tmp_path.iterdir()) == [bundle]
        assert list(model.conversation(max_tokens=4).ask("Hello"))
    assert list(tmp_path.iterdir()) == [bundle]


def test_what_is_kept_is_used_by_every_later_start(qwen3_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copy(qwen3_bundle, tmp_path))
    answers, files = [], []
    for keep in (True, False, True):
        with Model(bundle, keep_packed=keep) as model:
            assert model.has_kept_packed is (not files)
            answers.append("".join(p.text for p in model.conversation(max_tokens=4).ask("Hello")))
        [kept] = [path for path in tmp_path.iterdir() if path != bundle]
        [file] = kept.iterdir()
        status = file.stat()
        assert status.st_size > bundle.stat().st_size / 4
        files.append((file, status.st_ino, status.st_mtime_ns))
    assert len(set(answers)) == len(set(files)) == 1


def test_a_damaged_file_is_packed_anew(qwen3_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copy(qwen3_bundle, tmp_path))
    answers = []
    for nbytes in (None, 0, 50_000):
        for file in tmp_path.glob(f".{bundle.name}.packed-*/*"):
            os.truncate(file, nbytes or 0)
        with Model(bundle, keep_packed=True) as model:
            answers.append("".join(p.text for p in model.conversation(max_tokens=4).ask("Hello")))
        [kept] = tmp_path.glob(f".{bundle.name}.packed-*/*")
        assert kept.stat().st_size > 50_000
    assert len(set(answers)) == 1


def test_another_model_under_the_same_name_size_and_time_is_packed_anew(tmp_path: Path) -> None:
    model = _model(tmp_path, b"one")
    _keep(model)
    status = model.stat()
    _model(tmp_path, b"two")
    os.utime(model, ns=(status.st_atime_ns, status.st_mtime_ns))
    with PackedWeights(model) as packed:
        assert not list(Path(packed.folder).iterdir())
    assert list(tmp_path.iterdir()) == [model]  # what was packed of the other one is of no use


@pytest.mark.parametrize("what", ["_engine", "_processor"])
def test_another_engine_or_processor_packs_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    model = _model(tmp_path)
    _keep(model)
    monkeypatch.setattr(packed_weights, what, lambda: "another")
    with PackedWeights(model) as packed:
        assert not list(Path(packed.folder).iterdir())


def test_the_mark_sees_the_processor() -> None:
    flags = packed_weights._processor().split()
    assert {"sse2", "asimd"} & set(flags), "neither x86's nor ARM's"
    assert any(name.startswith("liblitert-lm") for name, _, _ in packed_weights._engine())


def test_of_two_that_keep_at_once_one_does(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with PackedWeights(model, keep=True) as first, PackedWeights(model, keep=True) as second:
        assert first.folder != second.folder
        for packed in (first, second):
            _pack(packed)
            packed.loaded()
    assert (first.has_kept, second.has_kept) == (True, False)
    assert sorted(path.is_dir() for path in tmp_path.iterdir()) == [False, True]


def test_a_load_that_fails_keeps_nothing(tmp_path: Path) -> None:
    model = _model(tmp_path)
    with PackedWeights(model, keep=True) as packed:
        _pack(packed)  # and the engine gives up
    assert list(tmp_path.iterdir()) == [model]


def test_what_somebody_else_put_there_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path)
    _keep(model)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with PackedWeights(model) as packed:
        assert not list(Path(packed.folder).iterdir())


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    model = _model(tmp_path)
    _keep(model)
    [kept] = [path for path in tmp_path.iterdir() if path != model]
    kept.rename(tmp_path / "elsewhere")
    kept.symlink_to(tmp_path / "elsewhere")
    with PackedWeights(model) as packed:
        assert not list(Path(packed.folder).iterdir())


def test_what_cannot_be_kept_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = _model(tmp_path)
    check_keeping(model)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: _Usage(1000, 990, 10))
        with pytest.raises(OptionError, match="GB are free in"):
            check_keeping(model)
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        with pytest.raises(OptionError, match="may not be written"):
            check_keeping(model)
        _keep(model)
        check_keeping(model)  # it is there, and need not be written
        _model(tmp_path, b"another")
        with pytest.raises(OptionError, match="may not be written"):
            check_keeping(model)
    with pytest.raises(OptionError, match="has no effect on gpu"):
        ChatOptions(backend="gpu", keep_packed=True).check()


def test_run_says_once_that_it_keeps_them(qwen3_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copy(qwen3_bundle, tmp_path)
    command = [sys.executable, "-m", "cli", "run", bundle, "--prompt", "Hello", "--max-tokens", "4"]
    first, second = (
        subprocess.run([*command, "--keep-packed"], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert "packed weights are kept beside the model" in first.stderr
    assert "packed weights" not in second.stderr
    assert first.stdout == second.stdout


def _model(folder: Path, start: bytes = b"") -> Path:
    model = folder / "m.litertlm"
    model.write_bytes(start.ljust(100, b"x"))
    return model


def _keep(model: Path) -> None:
    with PackedWeights(model, keep=True) as packed:
        _pack(packed)
        packed.loaded()
    assert packed.has_kept


def _pack(packed: PackedWeights) -> None:
    (Path(packed.folder) / "m.xnnpack_cache").write_bytes(b"weights")
