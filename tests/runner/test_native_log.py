"""What native code writes to fd 2: kept, quoted, and never written into another program's file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runner.native_log import NativeLog


def test_it_is_hidden_and_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    with NativeLog() as log:
        os.write(2, b"it broke\n")
        assert log.reason() == "it broke"
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"


def test_it_goes_where_the_supervisor_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    file = os.memfd_create("litert-lm-log")
    os.write(file, b"of an earlier model\n" * 10)
    monkeypatch.setenv("LITERT_LM_LOG", str(file))
    with NativeLog():
        os.write(2, b"last words\n")
    assert os.pread(file, 100, 0) == b"last words\n"
    os.close(file)


def test_a_variable_that_was_inherited_costs_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (tmp_path / "precious").open("w+b") as file:
        file.write(b"kept")
        file.flush()
        monkeypatch.setenv("LITERT_LM_LOG", str(file.fileno()))
        with NativeLog() as log:
            os.write(2, b"it broke\n")
            assert log.reason() == "it broke"
    assert (tmp_path / "precious").read_bytes() == b"kept"


def test_logs_side_by_side_end_in_any_order(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = NativeLog(), NativeLog()
    first.__enter__()
    os.write(2, b"the first broke\n")
    with second:
        assert second.reason() is None
        os.write(2, b"the second broke\n")
        first.__exit__(None, None, None)
        os.write(2, b"hidden, too\n")
        assert second.reason() == "hidden, too"
        assert first.reason() is None
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"
