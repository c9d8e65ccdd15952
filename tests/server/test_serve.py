"""The server under load and under faults: a real one, with a real model."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import SAID
from tests.server.conftest import CLI, Served, serving

QUESTION = "What is the capital of France?"
LONG = "Write a long story about the sea, the mountains and a fox."


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def test_the_next_turn_reads_only_what_is_new_and_says_the_same(served: Served) -> None:
    story = LONG + " Tell it in detail." * 60
    first = served.chat(story, max_tokens=24)
    # Cut by its length: that conversation is not kept, and the next turn reads all.
    said = text_of(first)
    again = served.chat(story, said, QUESTION)
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    answer = text_of(again)
    whole = served.chat(story, said, QUESTION, answer, "And of Spain?")
    usage = whole.json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 300
    # With a seed nothing is taken up again; greedy texts do not depend on it.
    fresh = served.chat(story, said, QUESTION, answer, "And of Spain?", seed=1)
    assert fresh.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert fresh.json()["usage"]["prompt_tokens"] == usage["prompt_tokens"]
    assert text_of(fresh) == text_of(whole)


def test_sixteen_clients_are_all_answered_rightly(served: Served) -> None:
    questions = [f"What is {number} plus one?" for number in range(16)]
    alone = [text_of(served.chat(question, max_tokens=12)) for question in questions]
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        together = list(
            pool.map(lambda question: text_of(served.chat(question, max_tokens=12)), questions)
        )
    assert together == alone


def test_first_come_first_served(smollm2_bundle: Path, tmp_path: Path) -> None:
    """Each is told apart by the length of its answer; the log says who was answered when."""
    model = smollm2_bundle.stem
    with (
        serving(tmp_path, smollm2_bundle, "--threads", "1", model=model) as server,
        concurrent.futures.ThreadPoolExecutor(6) as pool,
    ):
        with busy(server):
            asked = []
            for number in range(6):
                asked.append(pool.submit(server.chat, "Count to ten.", max_tokens=2 + number))
                until(lambda number=number: metrics(server)["waiting"] == number + 1)
        assert all(text_of(one.result()) for one in asked)
        counts = [line["completion_tokens"] for line in answers(server)]
        assert len(server.workers()) == 1
    assert [count for count in counts if count] == [*range(2, 8)]


def test_several_engines_for_several_clients(smollm2_bundle: Path, tmp_path: Path) -> None:
    """One that dies costs one answer; chats find the engine that knows them."""
    model = smollm2_bundle.stem
    capitals = [f"What is the capital of {country}?" for country in ("France", "Spain", "Japan")]
    with (
        serving(tmp_path, smollm2_bundle, "--threads", "2", model=model) as server,
        concurrent.futures.ThreadPoolExecutor(3) as pool,
    ):
        with busy(server) as pieces:
            [first] = server.workers()
            with busy(server):
                [other] = set(server.workers()) - {first}
                health = httpx.get(f"{server.url}/health").json()
                assert health["engines"] == metrics(server)["engines"] == 2
                os.kill(other, signal.SIGKILL)
                until(lambda: metrics(server)["crashes_total"] == 1)
            assert all(next(pieces) for _ in range(10))
        # Where each chat was begun is where it goes on.
        begun = list(pool.map(server.chat, capitals))
        for question, answer in zip(capitals, begun, strict=True):
            again = server.chat(question, text_of(answer), QUESTION, max_tokens=4)
            assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0


@contextlib.contextmanager
def busy(served: Served) -> Iterator[Iterator[str]]:
    """The engine has something to do meanwhile: a long answer, whose reader then leaves."""
    body = {
        "model": served.model,
        "messages": [{"role": "user", "content": LONG}],
        "max_tokens": 1100,
        "stream": True,
    }
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=60) as reply:
        pieces = (line for line in reply.iter_lines() if '"content"' in line)
        next(pieces)
        yield pieces


def answers(served: Served) -> list[dict[str, Any]]:
    """What the log says of chats."""
    lines = [json.loads(line) for line in served.log.read_text().splitlines() if line[:1] == "{"]
    return [line for line in lines if "completion_tokens" in line]


def until(holds: Callable[[], bool]) -> None:
    """Wait for something that must come."""
    for _ in range(600):
        if holds():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come")


def test_a_client_that_leaves_stops_its_work(served: Served) -> None:
    before = metrics(served)
    with busy(served) as pieces:
        for _ in range(4):
            next(pieces)
    begin = time.monotonic()
    assert text_of(served.chat(QUESTION, max_tokens=4))
    assert time.monotonic() - begin < 10  # 1100 tokens take twenty seconds and more
    assert metrics(served)["cancelled_total"] == before["cancelled_total"] + 1


def test_one_that_leaves_while_it_waits_costs_nothing(served: Served) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(served.chat, LONG, max_tokens=60)
        time.sleep(0.5)
        body = {"model": served.model, "messages": [{"role": "user", "content": LONG}]}
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=0.3)
        assert text_of(running.result())
    assert text_of(served.chat(QUESTION, max_tokens=4))


def metrics(served: Served) -> dict[str, float]:
    lines = httpx.get(f"{served.url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
    return {name.removeprefix("litert_lm_"): float(value) for name, value in pairs}


def test_drafts_are_counted(drafting_bundle: Path, tmp_path: Path) -> None:
    with serving(tmp_path, drafting_bundle, model=drafting_bundle.stem) as server:
        question = f"Say:{''.join(SAID)}."
        assert text_of(server.chat(question, max_tokens=8)) == "".join(SAID[:8])
        assert text_of(server.chat(question, temperature=0.01)) == "".join(SAID)
        found = metrics(server)
    assert found["drafted_answers_total"] == 1
    assert found["drafted_tokens_total"] == 8
    assert 2 <= found["drafted_pieces_total"] <= 5


def test_an_engine_that_dies_costs_one_answer(smollm2_bundle: Path, tmp_path: Path) -> None:
    with serving(tmp_path, smollm2_bundle, model=smollm2_bundle.stem) as server:
        assert text_of(server.chat(QUESTION, max_tokens=4))
        [worker] = server.workers()
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            struck = pool.submit(server.chat, LONG, max_tokens=400)
            time.sleep(1)
            waiting = pool.submit(server.chat, QUESTION, max_tokens=4)
            time.sleep(0.2)
            os.kill(worker, signal.SIGKILL)
            assert struck.result().status_code == 500
            assert struck.result().json()["error"]["code"] == "engine_died"
            assert text_of(waiting.result())
        assert metrics(server)["crashes_total"] == 1


def test_a_full_queue_says_when_to_come_again(smollm2_bundle: Path, tmp_path: Path) -> None:
    with (
        serving(
            tmp_path,
            smollm2_bundle,
            *("--max-queue", "1", "--threads", "1"),
            model=smollm2_bundle.stem,
        ) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        with busy(server):
            waiting = pool.submit(server.chat, QUESTION, max_tokens=4)
            until(lambda: metrics(server)["waiting"] == 1)
            refused = server.chat(QUESTION, max_tokens=4)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert text_of(waiting.result())


def test_sigterm_finishes_what_is_under_way(smollm2_bundle: Path, tmp_path: Path) -> None:
    with (
        serving(tmp_path, smollm2_bundle, model=smollm2_bundle.stem) as server,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        text_of(server.chat(QUESTION, max_tokens=4))
        [worker] = server.workers()
        answer = pool.submit(server.chat, LONG, max_tokens=60)
        time.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        assert len(text_of(answer.result())) > 100
        assert server.process.wait(20) == 0
        assert not Path(f"/proc/{worker}").exists()


def test_an_idle_model_is_unloaded_and_loaded_again(smollm2_bundle: Path, tmp_path: Path) -> None:
    with serving(
        tmp_path, smollm2_bundle, "--keep-alive", "1s", model=smollm2_bundle.stem
    ) as server:
        assert server.workers() == []  # until it is asked
        assert text_of(server.chat(QUESTION, max_tokens=4))
        assert len(server.workers()) == 1
        for _ in range(100):
            if not server.workers():
                break
            time.sleep(0.1)
        assert server.workers() == []
        assert text_of(server.chat(QUESTION, max_tokens=4))


def test_packed_weights_are_kept_for_the_next_start_if_that_is_asked_for(
    qwen3_bundle: Path, tmp_path: Path
) -> None:
    bundle = Path(shutil.copy(qwen3_bundle, tmp_path))
    found = []
    for arguments in (["--keep-packed"], []):
        with serving(tmp_path, bundle, *arguments, model=bundle.stem) as server:
            text_of(server.chat(QUESTION, max_tokens=2))
            [kept] = tmp_path.glob(f".{bundle.name}.packed-*")
            assert not list(tmp_path.glob(".litert-lm-weights-*"))
        found += [(file, file.stat().st_mtime_ns) for file in kept.iterdir()]
    assert len(found) == 2
    assert found[0] == found[1]


def test_nothing_of_a_prompt_is_in_the_log(served: Served) -> None:
    secret = "the password is swordfish"
    text_of(served.chat(secret, max_tokens=4))
    served.chat(secret, temperature="hot")
    log = served.log.read_text()
    assert "swordfish" not in log
    last = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {"status", "path", "seconds", "prompt_tokens"} <= set(last[-2])


def test_slow_and_silent_clients_stop_nobody(served: Served) -> None:
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(20)]
    silent[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    try:
        assert text_of(served.chat(QUESTION, max_tokens=4))
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.parametrize(
    "arguments",
    [["--port", "0"], ["--host", "0.0.0.0"], ["--keep-alive", "soon"], ["--max-queue", "-1"]],
)
def test_bad_options(smollm2_bundle: Path, arguments: list[str]) -> None:
    command = [str(CLI), "serve", str(smollm2_bundle), *arguments]
    ended: Any = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert ended.stderr.startswith("error: ")
    assert len(ended.stderr.splitlines()) == 1
