"""How a wheel is made; pyproject.toml has the rest.

In a checkout the packages are `cli`, `converter`, `device`, `publish`, `runner` and `server`. Such
names may not lie in other people's site-packages, so a wheel holds all of them under
`litert_lm_cli`, with every import of them renamed on the way.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
HOME = "litert_lm_cli"
MOVED = ("cli", "converter", "device", "publish", "runner", "server")
LIBRARY = f"{HOME}/converter/libkernels.so"


def renamed(source: str) -> str:
    """A module's text with the moved packages under their new name, wherever they are imported.

    What is renamed is found in the syntax tree, so that neither text nor comments are touched:

        from converter.errors import X    ->  from litert_lm_cli.converter.errors import X
        import runner.engine as engine    ->  import litert_lm_cli.runner.engine as engine
        [python, "-m", "cli"]             ->  [python, "-m", "litert_lm_cli.cli"]
        import_module("cli.run")          ->  import_module("litert_lm_cli.cli.run")

    Raises:
        ValueError: `import converter.errors` without `as`, which gives the module another name in
            the lines that use it, or a module's name that is put together at run time.
    """
    lines = source.encode().split(b"\n")
    # By place, from the last: a change leaves those before it where they are.
    for line, column, name in sorted(set(_mentions(ast.parse(source))), reverse=True):
        text = lines[line - 1]
        at = text.index(name.encode(), column)
        lines[line - 1] = text[:at] + f"{HOME}.".encode() + text[at:]
    return b"\n".join(lines).decode()


def _mentions(tree: ast.AST) -> Iterator[tuple[int, int, str]]:
    """(line, column, name) of every module's name that has to change."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _is_moved(node.module) and node.level == 0:
            yield node.lineno, node.col_offset + len("from "), str(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if not _is_moved(alias.name):
                    continue
                if alias.asname is None:
                    raise ValueError(f"line {node.lineno}: {alias.name} needs a name: as ...")
                yield alias.lineno, alias.col_offset, alias.name
        elif isinstance(node, ast.List | ast.Tuple):
            for option, value in zip(node.elts, node.elts[1:], strict=False):
                if isinstance(option, ast.Constant) and option.value == "-m":
                    yield from _constant(value)
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            if called in ("import_module", "find_spec", "run_module") and node.args:
                yield from _constant(node.args[0])


def _constant(node: ast.expr) -> Iterator[tuple[int, int, str]]:
    """The place of a literal that names a moved module."""
    if isinstance(node, ast.JoinedStr):
        raise ValueError(f"line {node.lineno}: the module's name is put together at run time")
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_moved(node.value):
        yield node.lineno, node.col_offset, node.value


def _is_moved(module: str | None) -> bool:
    return module is not None and re.match(rf"({'|'.join(MOVED)})(\.|$)", module) is not None


class BuildPackages(build_py):
    """Copies the packages under their new name, and compiles the loops where a compiler is."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, HOME), ignore_errors=True)  # of an earlier build
        super().run()
        if self.editable_mode:  # a checkout is used as it stands
            return
        path = ROOT / "converter/compile_kernels.py"
        spec = importlib.util.spec_from_file_location("compile_kernels", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if not module.compile_kernels(Path(self.build_lib, LIBRARY)):
            self.warn("no C compiler: the wheel is for every platform, and somewhat slower")

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        outfile, copied = super().build_module(module, module_file, package)
        text = Path(module_file).read_text(encoding="utf-8")
        Path(outfile).write_text(renamed(text), encoding="utf-8")
        return outfile, copied


class BuildWheel(bdist_wheel):
    """Names the wheel after its platform where it holds compiled loops, which know no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        self.run_command("build_py")
        build = Path(self.get_finalized_command("build").build_lib)
        self.root_is_pure = not (build / LIBRARY).exists()
        _, _, platform = super().get_tag()
        return "py3", "none", platform


class EditableWheel(editable_wheel):
    """`pip install -e`: the checkout's own names, by its folder on the path, as ./setup has it."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.mode = "compat"


if __name__ == "__main__":
    commands = {
        "build_py": BuildPackages,
        "bdist_wheel": BuildWheel,
        "editable_wheel": EditableWheel,
    }
    inside = find_packages(str(ROOT), include=[*MOVED, *(f"{name}.*" for name in MOVED)])
    setup(
        cmdclass=commands,
        packages=[HOME, *(f"{HOME}.{package}" for package in inside)],
        package_dir={HOME: HOME} | {f"{HOME}.{name}": name for name in MOVED},
    )
