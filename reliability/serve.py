"""Ask a server ten thousand times, rightly and wrongly, and kill its engine meanwhile.

    venv/bin/python -m reliability.serve                  # 10 000 requests, a quarter of an hour
    venv/bin/python -m reliability.serve --requests 60 --quick   # half a minute less

The real server offers a tiny real model to many clients at once, more than its queue takes. Some
clients leave in the middle of an answer or of the queue, some send garbage, a body that comes
slowly, in part, or not at all, and some kill the engine's process. Every other request has its
answer: the same greedy text as alone, or 429 with Retry-After and then that text, or an error that
fits what is wrong with it; and of each killed engine one request is told 500. A loss is any other
answer, none, or one that does not come in time; a count in /metrics that differs from the clients';
an engine that is left over; a traceback; memory or file descriptors of the server that grow. The
last line is one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from benchmarks.measure import guarded, note, run
from reliability.trials import command, conclude
from tests.server.conftest import Served, serving
from tests.tiny_models import make_model, write_tokenizer

CLIENTS = 24
_QUEUE = 16
_CONTEXT = 1024  # tokens, which are bytes here
_TOKENS, _LONG = 24, 400  # of an answer
_PATIENCE = 120.0  # seconds after which an answer does not come any more
_GROWTH = 16 << 20  # bytes
_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
LOSSES = (
    "wrong text", "wrong answer", "no answer", "hung", "miscounted", "left over", "traceback",
    "memory grew", "descriptors grew", "more told of a dead engine than were killed",
)  # fmt: skip
# What a request is, how many of a hundred.
KINDS = {
    "chat": 24, "streamed chat": 18, "second turn": 16, "Ollama's chat": 10,
    "leaves its answer": 7, "leaves the queue": 7, "garbage": 8, "slow body": 4,
    "half a body": 2, "no body": 1, "killed engine": 2, "engine killed at any moment": 1,
}  # fmt: skip
_CHAT_PATH = "/v1/chat/completions"
_BROKEN_BODIES: tuple[tuple[int, bytes], ...] = (
    (400, b"{"), (400, b"[]"), (400, b"\xff\xfe"), (400, b"[" * 10_000), (400, b"null"),
    (400, b'{"model": "tiny", "messages": "hello"}'),
    (400, b'{"model": "tiny", "messages": [{"role": "king", "content": "?"}]}'),
    (400, b'{"model": "tiny", "messages": [{"role": "user", "content": "?"}], "n": 1e99}'),
    (400, b'{"model": "tiny", "messages": [{"role": "user", "content": "?"}], "min_p": 1}'),
    (404, b'{"model": "/etc/passwd", "messages": [{"role": "user", "content": "?"}]}'),
    (400, json.dumps({"model": "tiny",
                      "messages": [{"role": "user", "content": "?" * _CONTEXT}]}).encode()),
)  # fmt: skip

Messages = tuple[str, ...]  # the user's and the assistant's, in turn


class Clients:
    """All that asks a server, and what became of it.

    Attributes:
        found: how often each ending of each kind was seen.
        statuses: of the answers that were seen.
        unseen: answers that nobody waited for.
        kills: of engines.
    """

    def __init__(self, served: Served) -> None:
        self.found: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self.statuses: Counter[int] = Counter()
        self.unseen = 0
        self.kills = 0
        self._served = served
        self._texts: dict[Messages, str] = {}
        self._story = ""
        self._http = self._connected()
        self._ways: dict[str, Callable[[], Awaitable[str]]] = {
            "chat": self._chat,
            "streamed chat": self._streamed,
            "second turn": self._second_turn,
            "Ollama's chat": self._ollama,
            "leaves its answer": self._leave_answer,
            "leaves the queue": self._leave_queue,
            "garbage": self._garbage,
            "slow body": self._slow_body,
            "half a body": self._half_body,
            "no body": self._no_body,
            "killed engine": self._kill_own,
            "engine killed at any moment": self._kill_any,
        }

    async def ask_alone(self) -> None:
        """What is said to each question when nothing disturbs; a seed forbids to go on with one."""
        for number in range(10):
            question = f"What is {number}?"
            text = self._texts[(question,)] = await self._alone((question,))
            if len(text) < _TOKENS:  # it ended by itself: a chat may go on
                second = (question, text, "Why?")
                self._texts[second] = await self._alone(second)
        # Of some, the one that has most to say.
        stories = [f"Tell me {'the long story ' * number}" for number in range(8)]
        told = {story: await self._alone((story,), max_tokens=_LONG) for story in stories}
        self._story = max(told, key=lambda story: len(told[story]))

    async def _alone(self, messages: Messages, **more: Any) -> str:
        answer = await self._http.post(_CHAT_PATH, json=self._body(messages, seed=1, **more))
        self.statuses[answer.status_code] += 1
        return _text_of(answer.json())

    async def ask(self, kinds: list[str]) -> None:
        """Ask in each of these ways, many at once."""
        waiting = iter(kinds)

        async def client() -> None:
            for kind in waiting:
                self.found[kind][await self._one(kind)] += 1

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def settle(self) -> None:
        """No more connections, and an engine that is loaded.

        One that was killed while it was idle or loading is told of to whoever asks next.
        """
        ending = await self._chat()
        for _ in range(self.kills):
            if ending != "told that the engine died":
                break
            ending = await self._chat()
        assert ending == "right", ending
        await self._http.aclose()
        self._http = self._connected()
        await asyncio.sleep(0.5)  # until the server has closed its ends

    def _connected(self) -> httpx.AsyncClient:
        # Shorter than the server's, which otherwise closes a connection just as it is used again.
        limits = httpx.Limits(keepalive_expiry=2.0)
        return httpx.AsyncClient(base_url=self._served.url, timeout=_PATIENCE, limits=limits)

    async def _one(self, kind: str) -> str:
        try:
            return await asyncio.wait_for(self._ways[kind](), 2 * _PATIENCE)
        except (TimeoutError, httpx.TimeoutException):
            return "hung"
        except (httpx.TransportError, ConnectionError, asyncio.IncompleteReadError):
            return "no answer"

    async def metrics(self) -> dict[str, float]:
        """What the server has counted; this question is not in it yet."""
        lines = (await self._http.get("/metrics")).text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("litert_lm_"): float(value) for name, value in pairs}

    async def engines(self) -> int:
        """How many the server says it has."""
        answer = await self._http.get("/health")
        return int(answer.json()["engines"])

    async def close(self) -> None:
        await self._http.aclose()

    # Good requests --------------------------------------------------------------------------------

    def _body(self, messages: Messages, **more: Any) -> dict[str, Any]:
        roles = ("user", "assistant")
        said = [{"role": roles[i % 2], "content": text} for i, text in enumerate(messages)]
        settings = {"temperature": 0, "max_tokens": _TOKENS}
        return {"model": self._served.model, "messages": said, **settings, **more}

    def _some(self, turns: int) -> Messages:
        return random.choice([messages for messages in self._texts if len(messages) == turns])

    async def _chat(self) -> str:
        return await self._whole(self._some(1))

    async def _second_turn(self) -> str:
        """As a user's program does: the first turn, then all of it again with one more."""
        messages = self._some(3)
        first = await self._whole(messages[:1])
        return first if first != "right" else await self._whole(messages)

    async def _whole(self, messages: Messages) -> str:
        async def once() -> httpx.Response:
            return await self._http.post(_CHAT_PATH, json=self._body(messages))

        answer = await self._until_taken(once)
        if answer.status_code == 200:
            return self._judged(messages, _text_of(answer.json()))
        return _struck(answer.status_code, answer.text)

    async def _streamed(self) -> str:
        messages = self._some(1)

        async def once() -> httpx.Response:
            return await self._http.post(_CHAT_PATH, json=self._body(messages, stream=True))

        answer = await self._until_taken(once)
        if answer.status_code != 200:
            return _struck(answer.status_code, answer.text)
        if "data: [DONE]" not in answer.text:
            return _struck(500, answer.text)
        chunks = [json.loads(part[6:]) for part in answer.text.split("\n\n")[:-2]]
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in chunks)
        return self._judged(messages, text)

    async def _ollama(self) -> str:
        messages = self._some(1)
        body = self._body(messages) | {"options": {"temperature": 0, "num_predict": _TOKENS}}
        del body["temperature"], body["max_tokens"]

        async def once() -> httpx.Response:
            return await self._http.post("/api/chat", json=body)

        answer = await self._until_taken(once)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        if answer.status_code != 200 or not lines[-1].get("done"):
            return _struck(500 if "error" in lines[-1] else answer.status_code, answer.text)
        return self._judged(messages, "".join(line["message"]["content"] for line in lines))

    async def _until_taken(self, once: Callable[[], Awaitable[httpx.Response]]) -> httpx.Response:
        """Ask again for as long as there is no room, when it is told to."""
        while True:
            answer = await once()
            self.statuses[answer.status_code] += 1
            if answer.status_code != 429:
                return answer
            await asyncio.sleep(int(answer.headers["Retry-After"]))

    def _judged(self, messages: Messages, text: str) -> str:
        return "right" if text == self._texts[messages] else "wrong text"

    # Those that leave -----------------------------------------------------------------------------

    async def _leave_answer(self) -> str:
        status = await self._first_piece(random.randrange(1, 6))
        return "left" if status == 200 else _struck(status, "engine_died")

    async def _first_piece(self, pieces: int = 1) -> int:
        """Stream a long answer, and leave after so many pieces; the status, 500 for a dead one."""
        body = self._body((self._story,), stream=True, max_tokens=_LONG)
        while True:
            async with self._http.stream("POST", _CHAT_PATH, json=body) as answer:
                self.statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    await asyncio.sleep(int(answer.headers["Retry-After"]))
                    continue
                seen = 0
                async for line in answer.aiter_lines():
                    if "engine_died" in line:
                        return 500
                    seen += line.startswith("data: {")
                    if seen > pieces:
                        break
                return answer.status_code

    async def _leave_queue(self) -> str:
        """Ask, and leave before there can be an answer; in a stream or not."""
        is_stream = random.random() < 0.5
        body = self._body((self._story,), stream=is_stream, max_tokens=_LONG)
        return await self._left_behind(_request(_CHAT_PATH, json.dumps(body).encode()), 0.05)

    async def _left_behind(self, content: bytes, most_seconds: float) -> str:
        """Send this, and leave a little later."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._served.port)
        writer.write(content)
        await writer.drain()
        await asyncio.sleep(random.uniform(0, most_seconds))
        await _closed(writer)
        self.unseen += 1
        return "left"

    # What is no request ---------------------------------------------------------------------------

    async def _garbage(self) -> str:
        choice = random.randrange(len(_BROKEN_BODIES) + 5)
        if choice < len(_BROKEN_BODIES):
            expected, body = _BROKEN_BODIES[choice]
            # The one that is too long is found so by the engine: it waits its turn.
            is_long = len(body) > _CONTEXT and b"messages" in body
            status = await self._raw(_request(_CHAT_PATH, body))
            while status == 429 and is_long:
                await asyncio.sleep(1)
                status = await self._raw(_request(_CHAT_PATH, body))
            if is_long and status == 500:
                return "told that the engine died"
        else:
            expected, content = (
                (403, _request(_CHAT_PATH, b"{}", host="evil.example")),
                (415, _request(_CHAT_PATH, b"{}", kind="text/plain")),
                (413, _request(_CHAT_PATH, b"{}", length=1 << 40)),
                (404, _request("/v1/nothing", b"{}")),
                (400, random.randbytes(200) + b"\r\n\r\n"),
            )[choice - len(_BROKEN_BODIES)]
            status = await self._raw(content, is_http=expected != 400)
        return "refused" if status == expected else "wrong answer"

    async def _raw(self, content: bytes, is_http: bool = True) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._served.port)
        writer.write(content)
        status = await self._status(reader, counts=is_http)
        await _closed(writer)
        return status

    async def _status(self, reader: asyncio.StreamReader, counts: bool = True) -> int:
        line = await asyncio.wait_for(reader.readuntil(b"\r\n"), _PATIENCE)
        status = int(line.split(b" ")[1])
        if counts:  # what is not HTTP does not get as far as our own counting
            self.statuses[status] += 1
        return status

    # Bodies that do not come as they should -------------------------------------------------------

    async def _slow_body(self) -> str:
        """In ten parts, over one or two seconds: it is waited for, and answered."""
        messages = self._some(1)
        content = _request(_CHAT_PATH, json.dumps(self._body(messages)).encode())
        while True:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._served.port)
            size = len(content) // 10 + 1
            for begin in range(0, len(content), size):
                writer.write(content[begin : begin + size])
                await writer.drain()
                await asyncio.sleep(random.uniform(0.1, 0.2))
            status = await self._status(reader)
            rest = await asyncio.wait_for(reader.read(), _PATIENCE)
            await _closed(writer)
            if status != 429:
                break
            await asyncio.sleep(1)
        body = rest.partition(b"\r\n\r\n")[2].decode()
        if status != 200:
            return _struck(status, body)
        return self._judged(messages, _text_of(json.loads(body)))

    async def _half_body(self) -> str:
        """One that ends in the middle, with its client."""
        content = _request(_CHAT_PATH, json.dumps(self._body(self._some(1))).encode())
        return await self._left_behind(content[: -random.randrange(1, 60)], 0.2)

    async def _no_body(self) -> str:
        """One that never comes, while its client stays."""
        status = await self._raw(_request(_CHAT_PATH, b"", length=100))
        return "refused" if status == 408 else "wrong answer"

    # Engines that die -----------------------------------------------------------------------------

    async def _kill_own(self) -> str:
        """The one that is answering, and all others: its client is told."""
        body = self._body((self._story,), stream=True, max_tokens=_LONG)
        has_killed = is_over = False
        while True:
            async with self._http.stream("POST", _CHAT_PATH, json=body) as answer:
                self.statuses[answer.status_code] += 1
                if answer.status_code == 429:
                    await asyncio.sleep(int(answer.headers["Retry-After"]))
                    continue
                if answer.status_code != 200:
                    return _struck(answer.status_code, (await answer.aread()).decode())
                async for line in answer.aiter_lines():
                    if not has_killed and '"content": ""' not in line and line:
                        has_killed = self._kill(self._served.workers())
                    if "engine_died" in line:
                        return "told that the engine died"
                    is_over |= "[DONE]" in line
                return "killed too late" if is_over else "no answer"

    async def _kill_any(self) -> str:
        """One of them, whatever it does: it answers another one, it loads, it is idle."""
        await asyncio.sleep(random.uniform(0, 0.5))
        self._kill(random.sample(workers := self._served.workers(), min(len(workers), 1)))
        return await self._chat()

    def _kill(self, workers: list[int]) -> bool:
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
                self.kills += 1
        return True


def _text_of(answer: dict[str, Any]) -> str:
    text: str = answer["choices"][0]["message"]["content"]
    return text


def _struck(status: int, said: str) -> str:
    """An answer that is none: right only for one whose engine died."""
    is_told = status == 500 and ("engine_died" in said or "the engine ended" in said)
    return "told that the engine died" if is_told else "wrong answer"


def _request(
    path: str,
    body: bytes,
    host: str = "localhost",
    kind: str = "application/json",
    length: int | None = None,
) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {size}\r\nConnection: close\r\n\r\n".encode() + body


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


def make_bundle(work: Path) -> Path:
    """A tiny model with random weights that says ASCII and ends by itself more often than not."""
    folder = work / "tiny"
    model = make_model("llama")
    folder.mkdir()
    write_tokenizer(folder)
    symbols = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    rows = model.get_output_embeddings().weight.data
    # A logit of 0 is never the largest. What is no ASCII would come out as parts of characters.
    said = [i for symbol, i in symbols.items() if "!" <= symbol <= "~"]
    end = len(symbols) + 1  # </s>, after <s>
    rows[[i for i in range(len(rows)) if i not in (*said, end)]] = 0
    rows[end] *= 2
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    model.save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    with_template = json.loads(settings.read_text()) | {"chat_template": _TEMPLATE}
    settings.write_text(json.dumps(with_template))
    options = ["--quantize", "fp32", "--kv-cache-max-len", str(_CONTEXT)]
    options += ["--output-dir", str(work), "--quiet"]
    run([*command("convert", str(folder)), *options])
    return work / "tiny.litertlm"


def measure(bundle: Path, work: Path, requests: int, quick: bool = False) -> dict[str, Any]:
    """What became of so many requests.

    Args:
        quick: leave out what takes half a minute, a body that never comes.
    """
    kinds = [kind for kind in KINDS if not (quick and kind == "no body")]
    weights = [KINDS[kind] for kind in kinds]
    asked = kinds + random.choices(kinds, weights, k=requests - len(kinds))
    random.shuffle(asked)
    with serving(work, bundle, "--max-queue", str(_QUEUE), model=bundle.stem) as served:
        return asyncio.run(_measured(served, asked))


async def _measured(served: Served, asked: list[str]) -> dict[str, Any]:
    clients, begin = Clients(served), time.monotonic()
    await clients.ask_alone()
    warm = len(asked) // 10  # a server grows to what it needs for many at once
    await clients.ask(asked[:warm])
    await clients.settle()
    before = _footprint(served)
    for first in range(warm, len(asked), 1000):
        await clients.ask(asked[first : first + 1000])
        note(f"{min(first + 1000, len(asked))} asked, {clients.kills} engines killed")
    await clients.settle()
    after = _footprint(served)
    losses: Counter[str] = Counter()
    losses["memory grew"] = int(after["bytes"] > before["bytes"] + _GROWTH)
    losses["descriptors grew"] = int(after["descriptors"] > before["descriptors"])
    losses["left over"] = max(len(served.workers()) - await clients.engines(), 0)
    losses["traceback"] = served.log.read_text().count("Traceback")
    counted = await clients.metrics()
    told = sum(found["told that the engine died"] for found in clients.found.values())
    losses["more told of a dead engine than were killed"] = max(told - clients.kills, 0)
    wrong = miscounted(clients, counted)
    if not told <= counted["crashes_total"] <= clients.kills:
        wrong.append(f"{counted['crashes_total']:.0f} crashes counted, {told} told of one")
    for difference in wrong:
        note(difference)
    losses["miscounted"] = len(wrong)
    await clients.close()
    return {
        "by_kind": {kind: dict(+found) for kind, found in clients.found.items() if +found},
        "server": dict(+losses),
        "kills": clients.kills,
        "told 429": clients.statuses[429],
        "before": before,
        "after": after,
        "metrics": {name: value for name, value in counted.items() if not name.startswith("r")},
        "seconds": round(time.monotonic() - begin, 1),
    }


def miscounted(clients: Clients, counted: dict[str, float]) -> list[str]:
    """Where the server's counts are not the clients'."""
    statuses: Counter[int] = Counter()
    for name, value in counted.items():
        if name.startswith("requests_total") and "/health" not in name:
            statuses[int(name.rpartition('status="')[2][:3])] += int(value)
    seen, unseen = clients.statuses, clients.unseen
    wrong = [
        f"{status}: {statuses[status]} counted, {seen[status]} seen, {unseen} left unseen"
        for status in sorted({*seen, *statuses} - {499})
        if not seen[status] <= statuses[status] <= seen[status] + unseen
    ]
    if sum(statuses.values()) != sum(seen.values()) + unseen:
        wrong.append(f"{sum(statuses.values())} counted, {sum(seen.values()) + unseen} asked")
    return wrong


def _footprint(served: Served) -> dict[str, int]:
    """Memory and open files of the server itself when nobody asks (Linux).

    The two ends of the pipes to each engine are left out: there may be more or fewer of them.
    """
    workers = served.workers()
    homes = [Path(f"/proc/{pid}") for pid in set(served.processes()) - set(workers)]
    pages = sum(int((home / "statm").read_text().split()[1]) for home in homes)
    return {
        "bytes": pages * os.sysconf("SC_PAGE_SIZE"),
        "descriptors": sum(len(list((home / "fd").iterdir())) for home in homes) - 2 * len(workers),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--quick", action="store_true", help="no bodies that never come")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory(prefix="litert-lm-serve-") as folder:
        work = Path(folder)
        found = measure(make_bundle(work), work, args.requests, args.quick)
    for kind, counts in found["by_kind"].items():
        print(f"{kind:28} {counts}")
    totals = sum((Counter(counts) for counts in found["by_kind"].values()), Counter[str]())
    totals += Counter(found["server"])
    losses = sum(totals[kind] for kind in LOSSES)
    conclude(
        "serve",
        ["litert-lm-api", "starlette", "uvicorn", "httpx"],
        losses,
        seed=args.seed,
        requests=args.requests,
        clients=CLIENTS,
        **found,
    )


if __name__ == "__main__":
    guarded(main)
