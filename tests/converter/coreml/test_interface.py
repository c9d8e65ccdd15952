"""What runtimes see of our packages is what they see of ANEMLL's own, which it traced on Linux.

`tests/anemll_traces.py` made the record.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.anemll_traces import BATCH, CONTEXT, RECORD
from tests.coreml_checks import interface
from tests.coreml_models import build, interface_of, read_checkpoint
from tests.tiny_models import make_checkpoint

THEIRS: Mapping[str, Any] = json.loads(RECORD.read_text())
HEAD_PARTS = {"llama": 8, "qwen2": 16, "qwen3": 16}

# Operations that do a network's work; each must be there as often.
WORK = {
    "conv",
    "gather",
    "layer_norm",
    "matmul",
    "read_state",
    "silu",
    "slice_update",
    "softmax",
    "tile",
    "write_state",
}
# Operations that one of both lacks, and why.
THEIRS_ALONE = {
    "greater_equal": "rows of a table that are counted from its end, which never occur",
    "add": "the same",
    "cast": "the same",
    "select": "the same",
    "identity": "a mask as it is",
    "linear": "Llama's last projection of attention, elsewhere a convolution",
    "exp": "Llama's softmax in parts",
    "real_div": "the same",
    "reduce_max": "the same",
    "reduce_sum": "the same",
}
OURS_ALONE = {
    "softmax": "Llama's, in one",
    "sub": "of the rotary embedding, where Qwen negates a half",
}
# How often more we have an operation that does work, and why.
MORE: Mapping[str, tuple[dict[str, int], str]] = {
    "qwen2 infer 1": ({"layer_norm": -1}, "the last norm, which 0.3.4 has in every chunk"),
    "qwen3 infer 1": ({"layer_norm": -1}, "the same"),
    "llama prefill 2": (
        {"layer_norm": 1, "conv": 3, "silu": 1},
        "the last feed-forward of a prefill, which nobody reads",
    ),
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The parts of a family."""
    import coremltools

    def read(path: Path | None) -> Mapping[str, Any]:
        return interface(coremltools.utils.load_spec(str(path)))

    @cache
    def make(family: str) -> Mapping[str, Any]:
        folder = tmp_path_factory.mktemp(family)
        make_checkpoint(family, folder / "checkpoint")
        spec, values = read_checkpoint(folder / "checkpoint", CONTEXT)
        parts = build(folder, spec, values, interface_of(spec, CONTEXT, BATCH, HEAD_PARTS[family]))
        found = {"embeddings": read(parts.embeddings)["main"], "head": read(parts.head)["main"]}
        for i, path in enumerate(parts.chunks):
            found |= {f"{name} {i + 1}": function for name, function in read(path).items()}
        return found

    return make


@pytest.mark.parametrize("part", THEIRS)
def test_a_part_has_the_same_interface(part: str, ours: Any) -> None:
    family, _, name = part.partition(" ")
    found = ours(family)[name]
    for kind in ("input", "output", "state"):
        assert found[kind] == THEIRS[part][kind]
        assert list(found[kind]) == list(THEIRS[part][kind])


@pytest.mark.parametrize("part", THEIRS)
def test_a_part_does_the_same_work(part: str, ours: Any) -> None:
    family, _, name = part.partition(" ")
    more, _ = MORE.get(part, ({}, ""))
    found, theirs = Counter(ours(family)[name]["ops"]), Counter(THEIRS[part]["ops"])
    assert theirs.keys() - found.keys() <= THEIRS_ALONE.keys()
    assert found.keys() - theirs.keys() <= OURS_ALONE.keys() | more.keys()
    theirs["conv"] += theirs["linear"]
    theirs["softmax"] += theirs["exp"]
    assert {op: found[op] - theirs[op] for op in WORK if found[op] != theirs[op]} == more


def test_every_part_is_there(ours: Any) -> None:
    assert set(THEIRS) == {f"{family} {name}" for family in HEAD_PARTS for name in ours(family)}
