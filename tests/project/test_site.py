"""The site: every page has its place, nothing is fetched from elsewhere, and the notebooks run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import canvas_fm

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def nav(entries: object) -> set[str]:
    """Pages of the navigation, whatever their depth."""
    if isinstance(entries, str):
        return {entries}
    parts = entries.values() if isinstance(entries, dict) else entries
    return set().union(*map(nav, parts))


def test_every_page_is_in_the_navigation():
    pages = nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in NOTEBOOKS}
    outside = {"CHANGELOG.md", "CONTRIBUTING.md", "recipes/LOG.md", "model_cards/README.md"}
    assert pages == written | notebooks | outside


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_with_its_pictures_and_without_errors(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert path.stat().st_size < 150_000
    assert not re.search(r"/(root|home|tmp|work)/", path.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbclient")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    pictures = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert pictures


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_fetches_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'canvas-fm[docs]'")
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path / "site"),
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        timeout=600,
        check=False,
    )
    print(f"built in {time.monotonic() - begun:.0f} s")
    assert (done.returncode, done.stderr) == (0, "")
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 40
    fetched = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?https?://(?!127\.0\.0\.1)[^>]*")
    for page in pages:
        wanted = [tag for tag in fetched.findall(page.read_text(encoding="utf-8")) if "canonical" not in tag]
        assert wanted == [], page
    python = (tmp_path / "site" / "reference" / "python.html").read_text(encoding="utf-8")
    for name in canvas_fm.__all__:
        assert name == "__version__" or re.search(rf'id="canvas_fm\.[\w.]*\.{name}"', python), name
    verbs = (tmp_path / "site" / "reference" / "verbs.html").read_text(encoding="utf-8")
    assert all(f'id="{verb}"' in verbs for verb in ("count", "export-onnx", "push", "refine-fit"))
    fences = [page for page in pages if re.search("```|no-run", page.read_text(encoding="utf-8"))]
    assert fences == []  # a block of code that Markdown did not take for one
    serve = (tmp_path / "site" / "how-to" / "train-and-serve" / "serve.html").read_text(encoding="utf-8")
    assert "<code>deploy/nginx.conf</code> has TLS" in serve  # a file, not a page: its name without a link
    http = (tmp_path / "site" / "reference" / "http.html").read_text(encoding="utf-8")
    assert "POST /v1/embed" in http
