"""The wheel holds all that it needs: installed alone into an empty environment, it runs the demo."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]


def run(*words: object, cwd: Path) -> str:
    done = subprocess.run([str(word) for word in words], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


def test_what_travels(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = run("git", "ls-files", "canvas_fm", "serving", "recipes", "model_cards", cwd=ROOT).split()
    moved = {"recipes/": "canvas_fm/_recipes/", "model_cards/": "canvas_fm/_cards/"}
    for path in tracked:
        for old, new in moved.items():
            path = path.replace(old, new, 1) if path.startswith(old) else path
        if not path.endswith(".gitkeep"):
            assert path in names
    assert not any(name.startswith(("tests/", "demo/")) for name in names)


def test_an_empty_environment_runs_the_demo(wheel, tmp_path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python, program = (tmp_path / "env" / "bin" / name for name in ("python", "canvas-fm"))
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, "--constraint", ROOT / "constraints" / "cpu.txt", wheel, cwd=tmp_path)
    assert "demo" in run(program, "--help", cwd=tmp_path)
    shown = run(
        python, "-c", "from canvas_fm.files.shipped import shipped; print(*shipped('recipe'))", cwd=tmp_path
    )
    assert {"phantom", "canvas_all_markers", "real_small"} <= set(shown.split())
    result = json.loads(run(program, "demo", "--out", "demo", "--steps", "60", "--json", cwd=tmp_path))
    assert max(result["differences"].values()) <= 1e-5
    assert Path(result["page"]) == tmp_path / "demo" / "index.html"
    assert Path(result["page"]).is_file()
