"""Types and shapes of canvas_fm's functions, checked at every call: jaxtyping's import hook at less cost.

jaxtyping makes three functions of each and binds the arguments of every call. A function whose signature
names an array is checked within one. One that names none stays as it is: its types are mypy's.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import _decorator, install_import_hook
from jaxtyping._storage import pop_shape_memo, push_shape_memo

# An int may stand for a float (PEP 484).
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
_thorough = _decorator.jaxtyped


def check_types_of(package: str) -> None:
    """Have the functions of modules that are imported from now on check their types."""
    module = types.ModuleType("canvas_fm_tests_checker")
    module.check = check  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    jaxtyping.jaxtyped = _decorator.jaxtyped = _checked  # type: ignore[assignment, misc]
    install_import_hook(package, f"{module.__name__}.check")


def _checked(fn: Any = None, *, typechecker: Any) -> Any:
    """jaxtyping's own decorator where a hint is not known yet; what it checks, in one function, elsewhere."""
    if fn is None:
        return functools.partial(_checked, typechecker=typechecker)
    # A coroutine or generator runs after its call.
    later = inspect.iscoroutinefunction(fn) or inspect.isgeneratorfunction(fn)
    if later or not isinstance(fn, types.FunctionType):
        return _thorough(fn, typechecker=typechecker)
    written = fn.__annotations__
    if any("{" in str(hint) for hint in written.values()):  # a length computed from another argument
        return _thorough(fn, typechecker=typechecker)
    try:
        hints = {
            name: eval(hint, fn.__globals__) if isinstance(hint, str) else hint
            for name, hint in written.items()
        }
        if not any(map(_has_array, hints.values())):
            return fn
        fn.__annotations__ = hints
        once = check(fn)
    except Exception:  # noqa: BLE001
        fn.__annotations__ = written
        return _thorough(fn, typechecker=typechecker)
    fn.__annotations__ = written
    if once is not fn:
        once.__annotations__ = written
    return _with_axes(once)


def _with_axes(fn: Callable[..., Any]) -> Callable[..., Any]:
    """An axis has one length in all arguments and the result of a call."""

    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        push_shape_memo({})
        try:
            return fn(*args, **kwargs)
        finally:
            pop_shape_memo()

    return checked


def _has_array(hint: Any) -> bool:
    if inspect.isclass(hint) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    return any(map(_has_array, typing.get_args(hint)))
