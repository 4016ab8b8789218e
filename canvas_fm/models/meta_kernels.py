"""`import torch` without its meta kernels, which only compilers and tracers of shapes need.

They are a third of what torch's import takes. A process of our own, such as a command, defers them before
torch is imported; as a library this package leaves torch as it is. Whoever imports what builds on them
(torch.compile, torch.export's decompositions, any optimizer) gets them first, in torch's own order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_NAME = "torch._meta_registrations"  # imported by torch for what it registers, not for what it holds
_BUILD_ON_IT = {"torch._decomp", "torch._dynamo", "torch._inductor", "torch._prims", "torch._refs"}


class _Deferred(ModuleType):
    """Placeholder of the module in `sys.modules`."""


class _LoadFirst(MetaPathFinder):
    """Loads the meta kernels before a module that builds on them; finds nothing itself."""

    def find_spec(
        self, name: str, path: Iterable[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name in _BUILD_ON_IT:
            load_meta_kernels()
        return None


def defer_meta_kernels() -> None:
    """Leave them out of the coming `import torch`; nothing where torch is imported already."""
    if "torch" not in sys.modules:
        sys.modules[_NAME] = _Deferred(_NAME)
        sys.meta_path.insert(0, _LoadFirst())


def load_meta_kernels() -> None:
    """Register them now if they were deferred."""
    if not isinstance(sys.modules.get(_NAME), _Deferred):
        return
    del sys.modules[_NAME]
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _LoadFirst)]
    spec = sys.modules["torch"].__spec__
    if not getattr(spec, "_initializing", False):  # else torch's own import has yet to come to them
        import_module(_NAME)
