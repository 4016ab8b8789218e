"""The README's commands and Python run as they stand, in order, in an empty folder."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from canvas_fm.cli import build_parser, main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(*kinds: str) -> list[str]:
    """The contents of the fenced blocks of these kinds, in order."""
    return [
        body for kind, body in re.findall(r"^```([^\n]*)\n(.*?)^```$", README, re.M | re.S) if kind in kinds
    ]


def test_first_steps_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) >= 5
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "canvas-fm"
        assert main(words) == 0, f"{command}\n{capsys.readouterr().err}"
    (snippet,) = blocks("python")
    names: dict[str, object] = {}
    exec(compile(snippet, "README.md", "exec"), names)
    assert (tmp_path / "reconstruction.png").is_file()
    assert (tmp_path / "cells.npz").is_file()


def test_every_command_shown_is_understood():
    """Those too that are not run: their flags exist."""
    shown = re.findall(r"canvas-fm (?!VERB)([a-z]+ [^`\n|)]*)", "\n".join(blocks("", "console")))
    assert len(shown) >= 7
    for words in shown:
        build_parser().parse_args(shlex.split(words))


def test_every_name_of_the_tree_is_there():
    tree = next(block for block in blocks("") if block.startswith("canvas_fm/"))
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        folder = Path(name) if not line.startswith(" ") else folder
        path = ROOT / (folder / name if line.startswith(" ") else name)
        assert path.exists(), f"the README's tree names {path}"


def test_every_room_is_in_the_tree():
    rooms = {path.parent.name for path in (ROOT / "canvas_fm").glob("*/__init__.py")}
    assert {room for room in rooms if f"  {room}/" not in README} == set()


def test_the_two_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z-]+)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert link.startswith("https://") or (ROOT / link).exists(), link
