import re
from pathlib import Path

import pytest

import serving

PAGES = Path(serving.__file__).parent / "ui"


@pytest.mark.parametrize(
    "script", sorted(PAGES.rglob("*.js")), ids=lambda path: path.relative_to(PAGES).as_posix()
)
def test_what_a_script_imports_is_there(script: Path):
    imported = re.findall(
        r"""(?:from|import)\s*\(?\s*["'](\.[^"']+)["']""", script.read_text(encoding="utf-8")
    )
    assert [name for name in imported if not (script.parent / name).is_file()] == []


def test_imports_of_scripts_are_seen():
    assert '"./surroundings.js"' in (PAGES / "review" / "review.js").read_text(encoding="utf-8")
