"""Stop strings, whatever pieces they come in."""

from __future__ import annotations

import itertools

import pytest

from server.stops import StopFinder


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two three", ["two"], "one "),
        ("one two three", ["three", "two"], "one "),
        ("aab", ["ab"], "a"),
        ("one two", ["twofold"], "one two"),
        ("ab", ["ab"], ""),
        ("abc", [""], "abc"),
        ("été\n\nUser:", ["\n\nUser:"], "été"),
        ("xyxyz", ["xyz"], "xy"),
    ],
)
def test_text_ends_before_a_stop_string(text: str, stops: list[str], expected: str) -> None:
    for cuts in itertools.chain.from_iterable(
        itertools.combinations(range(1, len(text)), count) for count in range(3)
    ):
        finder, said = StopFinder(stops), ""
        for begin, end in itertools.pairwise([0, *cuts, len(text)]):
            said += finder.feed(text[begin:end])
        said += finder.rest()
        assert said == expected
        assert (finder.found is not None) == (expected != text)
