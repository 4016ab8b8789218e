"""The rooms import one way only, and heavy libraries are loaded only when they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import canvas_fm

ROOT = Path(__file__).parents[1]
# Each room may import itself and what stands to its left.
ROOMS = [
    {"errors", "version", "progress"},
    {"files"},
    {"data"},
    {"models"},
    {"prepare"},
    {"inference"},
    {"evaluation"},
    {"heads"},
    {"training"},
    {"analysis"},
    {"viewing"},
    {"pipeline"},
    {"napari"},
    {"serving"},
    {"cli"},
]
RANK = {room: rank for rank, rooms in enumerate(ROOMS) for room in sorted(rooms)}
FILES = sorted(
    path
    for path in [*ROOT.glob("canvas_fm/**/*.py"), *ROOT.glob("serving/**/*.py")]
    if path != ROOT / "canvas_fm" / "__init__.py"  # the public names, each imported when it is first used
)


def room_of(module: str) -> str | None:
    """`data` for `canvas_fm.data.crops.reader`, `serving` for `serving.api.app`, None for others."""
    parts = module.split(".")
    if parts[0] == "canvas_fm":
        return parts[1] if len(parts) > 1 else None
    return "serving" if parts[0] == "serving" else None


def name_of(path: Path) -> str:
    """`canvas_fm.data.crops.reader` of its file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@cache
def imports_of(path: Path) -> tuple[tuple[str, bool], ...]:
    """Every imported module, those inside functions too, and whether it is imported at once."""
    return tuple(_imports_of(path))


def _imports_of(path: Path) -> Iterator[tuple[str, bool]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, id(node) not in later) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} imports relatively"
            assert node.module is not None
            yield node.module, id(node) not in later
            # `from canvas_fm import data` names a room too.
            yield from ((f"{node.module}.{name.name}", id(node) not in later) for name in node.names)


@pytest.mark.parametrize("room", RANK)
def test_imports_go_one_way(room):
    files = [path for path in FILES if room_of(name_of(path)) == room]
    assert files
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in files
        for module, _ in imports_of(path)
        if (other := room_of(module)) in RANK and RANK[other] > RANK[room]
    ]
    assert wrong == []


def test_nothing_imports_the_plugin_for_napari():
    for path in FILES:
        if not path.is_relative_to(ROOT / "canvas_fm" / "napari"):
            assert all(room_of(module) != "napari" for module, _ in imports_of(path)), path


def test_every_room_has_its_place():
    rooms = {room_of(name_of(path)) for path in FILES}
    assert rooms <= set(RANK)


@cache
def graph() -> dict[str, set[str]]:
    """The files of ours that each file imports, inside functions and under TYPE_CHECKING too."""
    names = [name_of(path).removesuffix(".__init__") for path in FILES]
    known = set(names)
    return {
        name: {other for other, _ in imports_of(path) if other in known and other != name}
        for name, path in zip(names, FILES, strict=True)
    }


def test_no_files_import_each_other_in_a_circle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as problem:
        pytest.fail(" imports ".join(reversed(problem.args[1])))


def test_of_the_verbs_only_serve_demo_and_review_import_serving_and_only_when_they_run():
    for path in FILES:
        if path.is_relative_to(ROOT / "canvas_fm"):
            for module, at_once in imports_of(path):
                if room_of(module) == "serving":
                    assert "cli" in path.parts, path
                    assert path.stem in ("serve", "demo", "review", "audit"), path
                    assert not at_once, path


def loaded_after(code: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter holds after some code."""
    script = f"{code}\nimport sys\nsys.stderr.write(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def modules_in(room: str) -> str:
    names = [
        name_of(path).removesuffix(".__init__")
        for path in FILES
        if path.is_relative_to(ROOT / "canvas_fm" / room)
    ]
    assert names
    return "import " + ", ".join(names)


def test_rooms_without_torch():
    """Each room in turn, in one interpreter, so that the first that loads one of them is named."""
    code = ["import sys"]
    for room in ("data", "evaluation", "analysis"):
        heavy = "{'torch', 'timm', 'bentoml'} & set(sys.modules)"
        code += [modules_in(room), f"assert not {heavy}, ({room!r}, {heavy})"]
    assert "numpy" in loaded_after("\n".join(code))


HELP = """
import canvas_fm.cli
try:
    canvas_fm.cli.main(["--help"])
except SystemExit as end:
    assert not end.code
"""


@pytest.mark.parametrize("code", ["import canvas_fm", HELP], ids=["import", "help"])
def test_looking_at_the_package_loads_nothing_heavy(code):
    """A guard for start-up in half a second: what would take longer is not loaded at all."""
    loaded = loaded_after(code)
    assert "canvas_fm" in loaded
    assert loaded.isdisjoint(
        {"torch", "timm", "zarr", "bentoml", "numpy", "scipy", "sklearn", "matplotlib", "rich"}
    )


def test_the_public_names_are_where_they_are_said_to_be():
    for name in canvas_fm.__all__:
        assert getattr(canvas_fm, name) is not None, name
    homes = canvas_fm._HOME
    assert set(homes) == set(canvas_fm.__all__) - {"__version__"}
    for name, home in homes.items():
        assert getattr(sys.modules[home], name) is getattr(canvas_fm, name), name
