"""Which folder of the package may import which, and what may be loaded without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import corit_cli

PACKAGE = Path(corit_cli.__file__).parent
#: From the bottom up. A folder may import from itself and from those on lines above its own, here, and no others.
ORDER = (
    ("errors", "version", "config", "progress", "files", "texts", "seeds"),
    ("metrics",),
    ("data",),
    ("model",),
    ("features",),
    ("detection",),
    ("bulk",),
    ("training",),
    ("evaluation", "gsnr", "cor"),
    ("cluster",),
    ("report",),
    ("serve",),
    ("cli",),
)
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line}
HEAVY = ("torch", "safetensors.torch", "open_clip")


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(node: ast.AST, path: Path) -> list[str]:
    """The modules that one statement imports, by their full names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0 and node.module, f"{path}:{node.lineno} imports by a relative name"
    names = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in FILES else node.module for name in names]


def when_loaded(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is imported: those in functions do not, nor those for type checkers alone."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from when_loaded(node.orelse)
            continue
        yield node
        for part in ("body", "orelse", "finalbody"):
            yield from when_loaded(getattr(node, part, []))
        for handler in getattr(node, "handlers", []):
            yield from when_loaded(handler.body)


@cache
def all_imports(module: str) -> frozenset[str]:
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return frozenset(name for node in ast.walk(tree) for name in imported(node, FILES[module]))


@cache
def needed(module: str) -> frozenset[str]:
    """What importing a module imports at once, the packages above those among it."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    found = [name for node in when_loaded(tree.body) for name in imported(node, FILES[module])]
    return frozenset(".".join(name.split(".")[:n]) for name in found for n in range(1, name.count(".") + 2))


def chains(module: str) -> dict[str, tuple[str, ...]]:
    """All that importing a module imports, each with a chain of modules that leads to it."""
    reached: dict[str, tuple[str, ...]] = {module: (module,)}
    queue = [module]
    while queue:
        here = queue.pop(0)
        for name in sorted(needed(here)) if here in FILES else ():
            if name not in reached:
                reached[name] = (*reached[here], name)
                queue.append(name)
    return reached


def folder_of(module: str) -> str:
    """The part after ``corit_cli.``; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def test_every_folder_has_a_place() -> None:
    assert len(FILES) > 60
    assert {folder_of(name) for name in FILES} - {"", "__main__"} == set(RANK)


@pytest.mark.parametrize("folder", RANK)
def test_a_folder_imports_only_from_those_below(folder: str) -> None:
    wrong = []
    for module in (name for name in FILES if folder_of(name) == folder):
        for name in sorted(all_imports(module)):
            if name.partition(".")[0] != PACKAGE.name:
                continue
            other = folder_of(name)
            assert other, f"{module} imports from the package itself: name the module"
            both_at_the_bottom = RANK[folder] == RANK[other] == 0
            if other != folder and not both_at_the_bottom and RANK[other] >= RANK[folder]:
                wrong.append(f"{module} imports {name}")
    assert not wrong


def test_the_order_is_the_one_that_is_meant() -> None:
    assert RANK["detection"] < RANK["training"] and RANK["metrics"] < RANK["data"]
    assert RANK["evaluation"] == RANK["gsnr"] == RANK["cor"] > RANK["training"]


@pytest.mark.parametrize("module", [name for name in FILES if folder_of(name) == "report"])
def test_reports_need_no_torch(module: str) -> None:
    reached = chains(module)
    assert not [" -> ".join(reached[name]) for name in HEAVY if name in reached]


def test_the_heavy_libraries_are_seen_where_they_are_needed() -> None:
    """Else the test above would prove nothing."""
    assert "torch" in chains("corit_cli.detection.detector") and "torch" in chains("corit_cli.training.head")
    assert chains("corit_cli.evaluation.evaluate")["torch"]


def test_reports_load_without_torch() -> None:
    modules = [name for name in FILES if folder_of(name) == "report"]
    code = f"import sys, importlib; [importlib.import_module(m) for m in {modules}]; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


def test_what_the_package_offers_is_there() -> None:
    assert {"Detector", "evaluate", "train"} <= set(corit_cli.__all__)
    assert all(getattr(corit_cli, name) is not None for name in corit_cli.__all__)
    with pytest.raises(AttributeError, match="oracle"):
        _ = corit_cli.oracle
