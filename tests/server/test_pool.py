"""Which engines there are to be, and by what a chat finds the one that knows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from server import wire
from server.engine_process import EngineProcess, WorkerDiedError
from server.pool import Pool, Seat, trail_of
from tests.server.test_kept import said


def ask(*texts: str, **more: object) -> wire.Ask:
    return wire.Ask(0, messages=said(*texts), **more)  # type: ignore[arg-type]


def test_a_seat_knows_the_chats_that_it_has_answered() -> None:
    seat = Seat(EngineProcess(Path("m.litertlm"), 1, 0, ""), has_all=False)
    seat.heard.extend(trail_of(ask("a"))[-1:])
    seat.heard.extend(trail_of(ask("a", "b", "c"))[-1:])
    assert seat.known(trail_of(ask("a", "x", "y"))) == 1
    assert seat.known(trail_of(ask("a", "b", "c", "d", "e"))) == 3
    assert seat.known(trail_of(ask("a"))) == 0  # nothing is new
    assert seat.known(trail_of(ask("b", "b", "c"))) == 0
    assert seat.known(trail_of(ask("a", "x", "y", thinking=True))) == 0


@pytest.mark.parametrize(
    "more",
    [
        {"sampler": wire.Sampler(seed=1)},
        {"constraint": wire.Constraint("regex", "a")},
        {"prompt": "a"},
        {"keep": False},
    ],
)
def test_what_is_not_kept_leaves_no_trail(more: dict[str, object]) -> None:
    assert trail_of(ask("a", **more)) == ()


async def _added(pool: Pool) -> None:
    with pytest.raises(WorkerDiedError, match="could not load"):
        await pool.add()


def test_an_engine_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    import asyncio

    bundle = tmp_path / "m.litertlm"
    bundle.write_bytes(b"no model")
    pool = Pool("m", bundle, 2, 0)
    assert pool.lacks(is_awaited=False)
    asyncio.run(_added(pool))
    assert pool.engines == 0
    assert list(tmp_path.iterdir()) == [bundle]
