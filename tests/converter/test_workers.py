"""Tasks that are waited for come first; one that fails ends the work."""

from __future__ import annotations

import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from converter.workers import Workers, map_in_threads


def test_everything_is_done_whatever_the_threads() -> None:
    for threads in (1, 2, 5):
        done: list[int] = []
        with Workers(threads) as workers:
            workers.do_later(partial(done.append, i) for i in range(100))
            for wave in range(1, 4):
                workers.do(partial(done.append, 1000 * wave + i) for i in range(7))
                assert sum(value >= 1000 * wave for value in done) == 7
            workers.finish()
        assert sorted(done) == [
            *range(100),
            *(1000 * wave + i for wave in range(1, 4) for i in range(7)),
        ]


def test_what_is_waited_for_comes_first() -> None:
    done: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait()

    with Workers(1) as workers:
        workers.do_later([hold])
        begun.wait()
        workers.do_later([partial(done.append, "later")] * 3)
        threading.Timer(0.1, go.set).start()
        workers.do([partial(done.append, "now")])
        workers.finish()
    assert done == ["now", "later", "later", "later"]


@pytest.mark.parametrize("waited_for", [True, False])
def test_an_error_comes_out_and_drops_the_rest(waited_for: bool) -> None:
    done: list[int] = []

    def fail() -> None:
        raise ValueError("this one")

    def work() -> None:
        with Workers(1) as workers:
            if waited_for:
                workers.do([fail])
            workers.do_later([fail, *(partial(done.append, i) for i in range(100))])
            workers.finish()

    with pytest.raises(ValueError, match="this one"):
        work()
    assert done == []


def test_what_comes_after_an_error_is_not_begun() -> None:
    done: list[int] = []
    failed = threading.Event()

    def fail() -> None:
        failed.set()
        raise ValueError("this one")

    def work() -> None:
        with Workers(1) as workers:
            workers.do_later([fail])
            failed.wait()
            for i in range(1000):  # some before the error is known, the others after
                workers.do_later([partial(done.append, i)])
            workers.finish()

    with pytest.raises(ValueError, match="this one"):
        work()
    assert done == []


def test_an_error_beside_the_work_ends_it() -> None:
    go = threading.Event()
    done: list[int] = []

    def hold() -> None:
        go.wait()

    def work() -> None:
        with Workers(2) as workers:
            workers.do_later([hold, hold])
            workers.do_later(partial(done.append, i) for i in range(100))
            threading.Timer(0.1, go.set).start()
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == []
    assert threading.active_count() <= before + 1  # the timer may be there still


@pytest.mark.parametrize("what", ["workers", "file", "folder"])
def test_an_interrupt_at_any_step_leaves_nobody_waiting(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.interrupts", what],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100  # steps


def test_a_function_of_many_in_their_order() -> None:
    assert map_in_threads(str, [], 2) == []
    assert map_in_threads(str, range(100), 3) == [str(i) for i in range(100)]
    with pytest.raises(ValueError, match="invalid literal"):
        map_in_threads(int, ["1", "x", "2"], 2)
