"""Which conversation is gone on with."""

from __future__ import annotations

from server.kept import Kept, Message, Pool, key_of


def said(*texts: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def test_the_one_that_knows_most_is_taken_and_no_other() -> None:
    closed: list[str] = []
    pool = Pool(300, closed.append)
    pool.put(Kept("short", b"k", said("a", "b"), 100))
    pool.put(Kept("long", b"k", said("a", "b", "c", "d"), 100))
    pool.put(Kept("other", b"k", said("a", "x", "c", "d"), 100))
    assert pool.take(b"k", said("a", "b", "c", "d")) is not None  # the short one: c is new
    found = pool.take(b"k", said("a", "b", "c", "d", "e"))
    assert found is not None
    assert found.conversation == "long"
    assert pool.take(b"k", said("a", "b", "c", "d", "e")) is None  # taken, it is kept no more
    assert pool.take(b"another", said("a", "x", "c", "d", "e")) is None
    assert pool.take(b"k", said("a", "x", "c", "d")) is None  # there is nothing new
    assert closed == []


def test_who_has_waited_longest_has_to_go() -> None:
    closed: list[str] = []
    pool = Pool(250, closed.append)
    for name in ("first", "second", "third"):
        pool.put(Kept(name, b"k", said(name, "!"), 100))
    assert closed == ["first"]
    pool.put(Kept("short", b"k", said("a", "b"), 50))
    assert closed == ["first"]  # three of them fit
    pool.clear()
    assert closed == ["first", "short", "third", "second"]


def test_the_latest_is_kept_even_where_there_is_no_room() -> None:
    closed: list[str] = []
    pool = Pool(0, closed.append)
    pool.put(Kept("one", b"k", said("a", "b"), 100))
    assert closed == []
    pool.put(Kept("two", b"k", said("a", "b"), 100))
    assert closed == ["one"]


def test_no_more_than_32_are_kept() -> None:
    closed: list[str] = []
    pool = Pool(100, closed.append)
    for number in range(33):
        pool.put(Kept(str(number), b"k", said("a", "b"), 1))
    assert closed == ["0"]


def test_keys_are_those_of_equal_settings() -> None:
    tools = [{"function": {"name": "f", "parameters": {"a": 1, "b": 2}}}]
    same = [{"function": {"parameters": {"b": 2, "a": 1}, "name": "f"}}]
    assert key_of(tools, None, True) == key_of(same, None, True)
    assert key_of(tools, None, True) != key_of(tools, None, False)
