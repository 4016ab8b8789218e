"""Documentation: sentences are short, the map names what exists, measured figures have their commands."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from canvas_fm.cli import build_parser
from tests.benchmarks.figures import FIGURES, UNMEASURED, words_of

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "model_cards").glob("*.md"),
    ]
)
LONGEST = 35
WHERE = ROOT / "docs" / "reference" / "where.md"


def sentences(markdown: str) -> list[str]:
    """The sentences of a page; cells of tables, items and headings end one, code blocks are left out."""
    text = re.sub(r"^```.*?^```$", "", markdown, flags=re.M | re.S)
    text = re.sub(r"^(#.*|\|.*)$", lambda line: "\n\n".join(["", *line[0].split("|"), ""]), text, flags=re.M)
    text = re.sub(r"^\s*([-*]|\d+\.)\s", "\n\n", text, flags=re.M)
    parts = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text))
    return [sentence for part in parts for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`*\[(0-9])", part)]


def test_sentences_are_told_apart():
    page = (
        "# Head\n\nOne is here. Two\nis there.\n\n- an item\n- another\n\n```\nno sentence\n```\n| a | b |\n"
    )
    assert [part for part in sentences(page) if part] == [
        "# Head", "One is here.", "Two is there.", "an item", "another", "a", "b",
    ]  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_sentence_is_long(page):
    lengths = {
        text: len(re.findall(r"\S*\w\S*", text)) for text in sentences(page.read_text(encoding="utf-8"))
    }
    assert {text: words for text, words in lengths.items() if words > LONGEST} == {}


def test_commands_of_workflow_rules_are_understood():
    """Rules of Snakemake and Nextflow call verbs with flags that exist; each variable stands for a word."""
    page = (ROOT / "docs" / "how-to" / "train-and-serve" / "workflows.md").read_text(encoding="utf-8")
    lines = re.findall(r'"canvas-fm ([^"\n]+)"', page)
    assert len(lines) >= 9
    for line in lines:
        build_parser().parse_args(shlex.split(re.sub(r"\$?\{[^}]*\}", "4", line)))


def rows() -> list[tuple[str, str, str]]:
    """Question, path and name of each row of the map."""
    cells = re.findall(
        r"^\| (where|which)(.*?) \| `([^`]+)`.*? \| `([^`]+)` \|$", WHERE.read_text("utf-8"), re.M
    )
    return [(first + rest, path, name) for first, rest, path, name in cells]


def test_the_map_names_files_and_what_they_define():
    table = [
        line for line in WHERE.read_text("utf-8").splitlines() if line.startswith(("| where", "| which"))
    ]
    assert len(rows()) == len(table) >= 40
    for question, path, name in rows():
        assert (ROOT / path).is_file(), question
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        names = {
            node.name
            for node in body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        }
        names |= {
            target.id
            for node in body
            if isinstance(node, ast.Assign | ast.AnnAssign)
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        assert name in names, f"{question} {path} defines no {name}"


def test_every_measured_row_has_its_command_or_says_why_not():
    page = (ROOT / "docs" / "reference" / "measured.md").read_text(encoding="utf-8")
    measured = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| what")]
    measured += [
        line
        for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| .*\| `(detector|refiner)-", line)
    ]
    assert len(measured) >= 18
    quotes = [quote for figure in FIGURES for quote in figure.quotes] + list(UNMEASURED)
    for line in measured:
        assert any(quote in line for quote in quotes), f"no command for: {line}"
    for quote in quotes:
        assert any(quote in line for line in measured), f"no page has {quote}"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_the_command_of_a_figure_is_understood(figure):
    for line in figure.commands:
        program, *words = words_of(line, ROOT, ROOT / "out")
        if program == "canvas-fm":
            build_parser().parse_args(words)
        else:
            assert (program, words[:1]) == ("python", ["-m"])
            module = ROOT / Path(*words[1].split(".")).with_suffix(".py")
            if words[1] == "tests.benchmarks":
                (module,) = (ROOT / "tests" / "benchmarks").rglob(f"bench_{words[2]}.py")
            assert module.is_file(), shlex.join(words)


def test_every_message_on_the_page_of_errors_is_one_of_ours():
    page = (ROOT / "docs" / "help" / "errors.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\| `(.*?)` \|", page.partition("No sentence, but")[0], re.M)
    assert len(messages) >= 14
    code = "\n".join(
        path.read_text(encoding="utf-8")
        for room in ("canvas_fm", "serving")
        for path in (ROOT / room).rglob("*.py")
    )
    # Strings that are written in two lines are one sentence.
    code = re.sub(r"\"\s*\n\s*f?\"", "", code)
    for message in messages:
        for part in message.split("…"):
            assert part.strip() in code, message


def test_every_picture_of_the_page_is_made_by_the_command_and_shown():
    from tests.ui.screenshots import IMAGES
    from tests.ui.screenshots import PAGES as VIEWS

    names = {f"page-{name}.png" for name in VIEWS}
    assert {path.name for path in IMAGES.glob("page-*.png")} == names
    docs = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert names == set(re.findall(r"images/(page-[a-z]+\.png)", docs))
