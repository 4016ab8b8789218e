"""Commands import torch without its meta kernels; what needs them gets them."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

from canvas_fm.models.meta_kernels import _LoadFirst

DEFERRED = """
import sys
from canvas_fm.models.meta_kernels import defer_meta_kernels
defer_meta_kernels()
import torch
def registered():
    return "torch._decomp" in sys.modules and isinstance(torch._meta_registrations.activate_meta, object)
assert "torch._decomp" not in sys.modules
layer = torch.nn.Linear(3, 2)
layer(torch.ones(4, 3)).sum().backward()
assert layer.weight.grad.tolist() == [[4, 4, 4]] * 2
assert "torch._decomp" not in sys.modules
"""
OPTIMIZER = """
torch.optim.AdamW(layer.parameters(), lr=1).step()
assert registered()
"""
EXPORT = """
exported = torch.export.export(layer, (torch.ones(4, 3),)).run_decompositions()
assert torch.equal(exported.module()(torch.ones(4, 3)), layer(torch.ones(4, 3)))
assert registered()
"""


@pytest.mark.parametrize(
    "needs_them",
    [pytest.param(OPTIMIZER, id="optimizer"), pytest.param(EXPORT, id="export", marks=pytest.mark.slow)],
)
def test_what_builds_on_the_meta_kernels_gets_them(needs_them: str) -> None:
    done = subprocess.run([sys.executable, "-c", DEFERRED + needs_them], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_torch_that_is_there_is_left_alone() -> None:
    code = (
        "import torch, sys; before = torch._meta_registrations, list(sys.meta_path)\n"
        "from canvas_fm.models.meta_kernels import defer_meta_kernels, load_meta_kernels\n"
        "defer_meta_kernels(); load_meta_kernels()\n"
        "assert (sys.modules['torch._meta_registrations'], sys.meta_path) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_packages_without_an_init_file_are_passed_over(tmp_path, monkeypatch):
    """Their path is no sequence, and signatures are checked in tests."""
    (tmp_path / "spaced_package" / "inner").mkdir(parents=True)
    (tmp_path / "spaced_package" / "inner" / "module.py").write_text("x = 1\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [_LoadFirst(), *sys.meta_path])
    assert importlib.import_module("spaced_package.inner.module").x == 1
