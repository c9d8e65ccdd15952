"""The house: which room stands on which floor, and that nothing imports upwards or in a circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# From the top. A module belongs to the longest of these names that it begins with.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("litert_lm_cli", "reliability", "cli", "benchmarks"),
    ("server", "publish", "device"),
    ("converter.coreml_report",),
    ("converter.report", "converter.check", "converter.torch"),
    ("converter.base", "converter.coreml_pipeline"),
    ("converter.coreml_layout", "converter.drafter"),
    ("runner",),
    ("converter.preflight",),
    (
        "converter.receipt",
        "converter.options",
        "converter.bit_budget",
        "converter.cache_budget",
        "converter.coreml_options",
        "converter.network",
    ),
    ("converter.weights",),
    ("converter.text", "converter.litertlm", "converter.tflite", "converter.coreml"),
    ("converter.checkpoint", "converter.families", "converter.registry"),
    (
        "converter.output",
        "converter.decoder",
        "converter.kernels",
        "converter.compile_kernels",
        "converter.home",
        "converter.errors",
        "converter.memory",
        "converter.user_text",
        "converter.version",
        "converter.workers",
    ),
)
TOPS = {name.partition(".")[0] for floor in FLOORS for name in floor}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in TOPS
    for path in (ROOT / top).rglob("*.py")
}


def imports(module: str) -> Iterator[str]:
    """Every module of ours that `module` imports, wherever in the file; for types alone, too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else node.module for name in inside]
        else:
            continue
        yield from (name for name in names if name in MODULES)


GRAPH = {module: set(imports(module)) for module in MODULES}


def floor_of(module: str) -> int | None:
    """Its number, counted from the top."""
    known = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    parts = module.split(".")
    names = (".".join(parts[:i]) for i in range(len(parts), 0, -1))
    return next((known[name] for name in names if name in known), None)


def test_every_module_stands_on_a_floor() -> None:
    assert [module for module in MODULES if floor_of(module) is None] == ["converter"]  # empty


def test_nothing_imports_upwards() -> None:
    upwards = [
        f"{module} -> {wanted}"
        for module, all_wanted in GRAPH.items()
        for wanted in all_wanted
        if (floor_of(wanted) or 0) < (floor_of(module) or 0)
    ]
    assert not upwards


def test_no_files_import_each_other() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(f"these import each other: {' -> '.join(error.args[1])}")
