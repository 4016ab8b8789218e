"""The commands and Python of README and docs run as they stand, in order, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from canvas_fm.cli import VERB_FILES, build_parser, main

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
INDEX = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
# In the order of the documentation's own list, after the README.
PAGES = [ROOT / "README.md"] + [
    ROOT / "docs" / page for page in re.findall(r"^\d+\. \[.*\]\((.*)\)$", INDEX, re.M)
]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def blocks(*kinds: str) -> list[str]:
    """The contents of the fenced blocks of these kinds, in order."""
    return [
        body for kind, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", TEXT, re.M | re.S) if kind in kinds
    ]


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder in which the commands have run, which is the current one meanwhile."""
    folder, before = tmp_path_factory.mktemp("readme"), Path.cwd()
    os.chdir(folder)
    try:
        commands = [line for block in blocks("console") for line in block.splitlines()]
        assert len(commands) >= 5
        for command in commands:
            program, *words = shlex.split(command)
            if program == "echo":  # echo TEXT > FILE
                text, arrow, file = words
                assert arrow == ">"
                Path(file).write_text(f"{text}\n")
                continue
            assert program == "canvas-fm"
            assert main(words) == 0, command  # what it said is shown with the failure
        yield folder
    finally:
        os.chdir(before)


def test_what_later_pages_take_is_made_on_the_site_as_in_the_readme():
    """The site has no README: its first page of commands has those that make `brains/a` and `runs/first`."""
    page = (ROOT / "docs" / "how-to" / "train-and-serve" / "pretrain.md").read_text(encoding="utf-8")
    commands = re.findall(r"^canvas-fm .*$", page.partition("`canvas-fm info")[0], re.M)
    assert [command.split()[1] for command in commands] == ["phantom", "pretrain", "embed"]
    assert not set(commands) - set(README.splitlines())


def test_first_steps_run_as_written(steps: Path):
    names: dict[str, object] = {}
    for snippet in blocks("python"):
        exec(compile(snippet, "README.md", "exec"), names)
    assert (steps / "sweeps" / "gamma" / "results.md").is_file()
    assert (steps / "reconstruction.png").is_file()
    assert (steps / "cells.npz").is_file()


@pytest.fixture
def service(steps: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The first service that is shown, on a free port; its address, and an environment with our commands."""
    (command,) = [line for block in blocks("") for line in block.splitlines() if "--jobs jobs" in line]
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    words = shlex.split(command.replace("--port 3000", "--port 0"))
    words[3:3] = ["base-5", "--volume", "mg=sample:microglia", "--resample"]  # of the service shown before
    output = steps / "serve.txt"
    with output.open("w") as log:
        process = subprocess.Popen([str(programs / words[0]), *words[1:]], stderr=log, env=environment)
    try:
        end, mark = time.monotonic() + 240, "serving on http://"
        while mark not in output.read_text():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < end, output.read_text()
            time.sleep(0.05)
        yield output.read_text().partition(mark)[2].split()[0], environment
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_requests_shown_are_answered(steps: Path, service):
    address, environment = service
    shown = "\n".join(blocks("sh"))
    assert shown.count("curl -s ") >= 8
    script = shown.replace("localhost:3000", address).replace("curl -s ", "curl -s --fail-with-body ")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        cwd=steps,
        env=environment,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert '"embeddings"' in done.stdout
    assert '"p_cell"' in done.stdout
    assert '"hits"' in done.stdout
    by_point, _ = json.JSONDecoder().raw_decode(done.stdout)  # the first reply
    np.testing.assert_allclose(np.load(steps / "vector.npy"), by_point["embeddings"], atol=1e-5)
    assert np.load(steps / "embeddings.npy").shape == (1, 96)
    assert np.load(steps / "rows.npy").shape == (1, 4, 16, 32, 32)
    assert np.load(steps / "grid.npy").shape[1:] == (96,)


def test_every_command_shown_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those too that are not run: their flags exist."""
    monkeypatch.chdir(tmp_path)  # where no command has written yet: what is there is not replaced unasked
    shown = re.findall(r"canvas-fm (?!VERB)([a-z]+ [^`\n|)]*)", "\n".join(blocks("", "console", "sh")))
    assert len(shown) >= 7
    parser = build_parser()
    for words in shown:
        parser.parse_args(shlex.split(words))


def test_every_room_is_in_the_table_of_contributing():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = {path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("canvas_fm/*/__init__.py")}
    assert {room for room in rooms if f"| `{room}` |" not in table} == set()
    named = set(re.findall(r"^\| `((?:canvas_fm|serving)/?\w*)` \|", table, re.M))
    assert {room for room in named if not (ROOT / room).is_dir()} == set()
    for room, inside in re.findall(r"^\| `((?:canvas_fm|serving)/?\w*)` \|.*\| ([^|]*)\|$", table, re.M):
        folders = {path.parent.name for path in (ROOT / room).glob("*/__init__.py")}
        assert set(re.findall(r"`(\w+)`", inside)) - {"ui"} == folders, room


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    linked = {
        (page.parent / link).resolve()
        for page in [*PAGES, ROOT / "docs" / "README.md"]
        for link in re.findall(r"\]\(([^)#]+\.md)\)", page.read_text(encoding="utf-8"))
        if not link.startswith("https://")
    }
    assert {path for path in (ROOT / "docs").rglob("*.md") if path not in linked} == set()


def test_every_verb_is_named():
    for verb in (verb for verbs in VERB_FILES.values() for verb in verbs):
        assert re.search(rf"(`|canvas-fm |make ){verb}\b", README), verb


def test_the_two_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page}: {link}"


def test_the_table_of_held_out_brains_is_that_of_the_reports():
    row = re.compile(
        r"^\| \[([\w ]+)\]\((.*?)\), (\d+) \| `([\w-]+)` \| (\S+) / (\S+) \| (\S+) / (\S+) \|$", re.M
    )
    rows = row.findall(README)
    assert len(rows) >= 6
    for group, path, count, model, *written in rows:
        methods = json.loads((ROOT / path).read_text(encoding="utf-8"))["methods"]
        names = (model, f"{model}-folds", model.removeprefix("detector-"))
        name = next(name for name in names if name in methods)
        parts = [methods[name]["groups"][group], methods["LoG over the median"]["groups"][group]]
        measured = [part[key] for part in parts for key in ("mean", "worst_decile")]
        assert [float(text) for text in written] == [round(value, 3) for value in measured], (group, path)
        assert int(count) == parts[0]["domains"]
