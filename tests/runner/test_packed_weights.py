"""The engine's packed weights: no copy stays on disk, wherever they were put meanwhile."""

from __future__ import annotations

import shutil
import tempfile
from collections import namedtuple
from pathlib import Path

import pytest

from runner.engine import Model
from runner.packed_weights import NO_CACHE, packed_weights_folder

_Usage = namedtuple("_Usage", "total used free")


def test_the_folder_is_beside_the_model_and_goes_with_everything_in_it(tmp_path: Path) -> None:
    model = tmp_path / "m.litertlm"
    model.write_bytes(b"x" * 100)
    with packed_weights_folder(model) as folder:
        assert Path(folder).parent == tmp_path
        (Path(folder) / "m.xnnpack_cache").write_bytes(b"weights")
    assert list(tmp_path.iterdir()) == [model]


def test_it_goes_elsewhere_when_the_models_folder_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "m.litertlm"
    model.write_bytes(b"x")
    real = tempfile.mkdtemp

    def mkdtemp(prefix: str, dir: Path) -> str:
        if dir == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with packed_weights_folder(model) as folder:
        assert Path(folder).parent == Path(tempfile.gettempdir())
    assert not Path(folder).exists()


def test_a_full_disk_means_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "m.litertlm"
    model.write_bytes(b"x" * 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(1000, 800, 200))
    with packed_weights_folder(model) as folder:
        assert folder == NO_CACHE


def test_the_engine_answers_after_its_cache_file_is_gone(
    qwen3_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copy(qwen3_bundle, tmp_path))
    with Model(bundle) as model:
        assert list(tmp_path.iterdir()) == [bundle]
        assert list(model.conversation(max_tokens=4).ask("Hello"))
    assert list(tmp_path.iterdir()) == [bundle]
