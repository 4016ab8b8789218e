"""Hooks of MkDocs: pages from outside `docs`, reference made from the code, notebooks with their pictures."""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# Pages outside `docs`, by their place in the repository and in the site.
OUTSIDE = ["CHANGELOG.md", "CONTRIBUTING.md", "recipes/LOG.md", *sorted(f"model_cards/{path.name}" for path in
           (ROOT / "model_cards").glob("*.md"))]  # fmt: skip
_FILE = re.compile(r"\[([^\[\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")
_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)]*)?\)")
_NO_RUN = re.compile(r"^(```\w+) no-run$", re.M)  # for the tests; Markdown takes one word behind the fence
_MARK = re.compile(r"<!-- made from the code: (\w+) -->")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages from outside and one page a notebook."""
    for place in OUTSIDE:
        files.append(File.generated(config, place, content=(ROOT / place).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        for file in notebook_files(notebook, config):
            files.append(file)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Fill what is made from the code, and lead links out of `docs` to where they are in the site."""
    markdown = _MARK.sub(lambda match: MADE[match[1]](), _NO_RUN.sub(r"\1", markdown))
    uri = page.file.src_uri
    home = uri if uri in OUTSIDE else f"docs/{uri}"
    markdown = _FILE.sub(lambda match: _file(match, home), markdown)
    return _LINK.sub(lambda match: _link(match, home, uri), markdown)


def _target(link: str, home: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(home), link))


def _file(match: re.Match[str], home: str) -> str:
    """The name in place of a link to a file of the repository that is no page of the site."""
    target = _target(match[2], home)
    page = target in ("README.md", *OUTSIDE) or re.match(r"(docs|recipes)(/|$)", target)
    if page or not (ROOT / target).exists():
        return match[0]
    name = f"`{target}`"
    return name if match[1].strip("`") == target else f"{match[1]} ({name})"


def _link(match: re.Match[str], home: str, uri: str) -> str:
    """The link as it has to be in the site."""
    target = _target(match[1], home)
    if target == "README.md":
        place = "README.md"
    elif target.startswith("docs/"):
        place = re.sub(r"^(notebooks/.*)\.ipynb$", r"\1.md", target.removeprefix("docs/"))
    elif target in OUTSIDE:
        place = target
    elif re.fullmatch(r"recipes(/[\w./]*)?", target):
        place = "reference/recipes.md"
    else:
        return match[0]
    return f"]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{match[2] or ''})"


def notebook_files(notebook: Path, config: Any) -> Iterator[File]:
    """A notebook as a page, and its pictures."""
    lines: list[str] = []
    pictures: list[tuple[str, bytes]] = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            lines.append(source)
            continue
        lines.append(f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            if "image/png" in data:
                name = f"{notebook.stem}-{len(pictures)}.png"
                pictures.append((name, base64.b64decode("".join(data["image/png"]))))
                lines.append(f"![output of the cell above]({name})")
            elif text := "".join(output.get("text", data.get("text/plain", []))).strip():
                lines.append(f"```text\n{text}\n```")
    lines.append(
        f"*This page is the notebook `docs/notebooks/{notebook.name}` of the repository; "
        f"`pip install jupyterlab` and `jupyter lab docs/notebooks/{notebook.name}` open it.*"
    )
    yield File.generated(config, f"notebooks/{notebook.stem}.md", content="\n\n".join(lines) + "\n")
    for name, picture in pictures:
        yield File.generated(config, f"notebooks/{name}", content=picture)


def verbs() -> str:
    """Help of every verb."""
    import argparse

    from canvas_fm.cli import build_parser

    def through(parser: Any) -> Iterator[Any]:
        for action in parser.filled()._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb in action.choices.values():
                    yield verb
                    yield from through(verb)

    def part(verb: Any) -> str:
        return f"## {verb.prog.removeprefix('canvas-fm ')}\n\n```text\n{verb.format_help().strip()}\n```\n"

    return "\n".join(map(part, through(build_parser())))


def http() -> str:
    """A row for each route, from the OpenAPI document."""
    from serving.api.app import OTHERS, ROUTES
    from serving.api.description.openapi import document

    rows = ["| request | for | replies |", "|---|---|---|"]
    for path, methods in document(ROUTES, OTHERS)["paths"].items():
        for method, route in methods.items():
            replies = sorted(
                {kind for reply in route["responses"].values() for kind in reply.get("content", {})}
            )
            summary = route.get("summary") or route.get("description", "").split("\n")[0]
            rows.append(f"| `{method.upper()} {path}` | {summary} | {', '.join(replies)} |")
    return "\n".join(rows)


def recipes() -> str:
    """Shipped recipes and every key of a recipe with its default."""
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    from canvas_fm.files.shipped import catalogue
    from canvas_fm.training.recipe.recipe import Recipe

    rows = ["| recipe | what it is |", "|---|---|"]
    rows += [f"| `{name}` | {line} |" for name, line in catalogue()["recipe"].items()]
    keys = ["\n## Keys of a pretraining\n\n| key | default |", "|---|---|"]
    for name, field in Recipe.model_fields.items():
        kind = field.annotation
        section = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        for key, each in {name: field}.items() if section is None else section.items():
            default = each.get_default(call_default_factory=True)
            value = "required" if each.is_required() else json.dumps(to_jsonable_python(default))
            keys.append(f"| `{name if section is None else f'{name}.{key}'}` | `{value}` |")
    return "\n".join([*rows, *keys])


def python() -> str:
    """The public names, each by its docstring and signature."""
    import canvas_fm

    names = [name for name in canvas_fm.__all__ if name != "__version__"]
    return "\n\n".join(f"::: {canvas_fm._HOME[name]}.{name}" for name in names)


MADE: dict[str, Callable[[], str]] = {"verbs": verbs, "http": http, "recipes": recipes, "python": python}
