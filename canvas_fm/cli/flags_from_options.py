"""Command-line flags generated from option models, and parsed values turned back into models."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from canvas_fm.files.option_sets import Options, faults, flag_of

ZYX = ("Z", "Y", "X")


class FlagSet:
    """Flags of one option model on a parser: all, all but `omit`, or `only` some."""

    def __init__(
        self,
        parser: argparse.ArgumentParser,
        dest: str,
        kind: type[Options],
        omit: Collection[str] = (),
        only: Collection[str] = (),
        title: str | None = None,
    ) -> None:
        self.dest, self.kind = dest, kind
        self.fields = {
            name: field
            for name, field in kind.model_fields.items()
            if name not in omit and (not only or name in only)
        }
        group = parser if title is None else parser.add_argument_group(title)
        for name, field in self.fields.items():
            _add_flag(group, name, field, dest=self._dest(name))

    def take(self, namespace: argparse.Namespace) -> list[str]:
        """Replace the flags in the namespace by the model; returns a message for each error."""
        typed = vars(namespace)
        values = {name: typed.pop(self._dest(name)) for name in self.fields if self._dest(name) in typed}
        try:
            setattr(namespace, self.dest, self.kind.model_validate(values))
        except ValidationError as problem:
            return _typed_faults(problem, self.kind)
        return []

    def _dest(self, name: str) -> str:
        return f"{self.dest}.{name}"


class VolumeFlags:
    """`--volume NAME=PATH …`, repeatable, each followed by the flags with which those volumes are opened.

    The namespace then holds a model by name; `kind` has the options and the field `path`.
    """

    def __init__(self, parser: argparse.ArgumentParser, dest: str, kind: type[Options], help: str) -> None:
        self.dest, self.kind = dest, kind
        self.fields = {name: field for name, field in kind.model_fields.items() if name != "path"}
        self._groups: list[tuple[list[str], dict[str, Any]]] = []
        self._faults: list[str] = []
        groups, faults = self._groups, self._faults

        class Begin(argparse.Action):
            def __call__(self, parser: object, namespace: object, values: Any, flag: object = None) -> None:
                groups.append((values, {}))

        class Add(argparse.Action):
            def __call__(self, parser: object, namespace: object, values: Any, flag: object = None) -> None:
                if groups:
                    groups[-1][1][self.dest] = values
                else:
                    faults.append(f"{flag} stands before any --volume; give it after the one that it is for")

        parser.add_argument(
            "--volume", action=Begin, nargs="+", default=argparse.SUPPRESS, metavar="NAME=PATH", help=help
        )
        group = parser.add_argument_group("opening a volume: after the --volume that it is for")
        for name, field in self.fields.items():
            _add_flag(group, name, field, dest=name, action=Add)

    def take(self, namespace: argparse.Namespace) -> list[str]:
        """Put the models by name into the namespace; a sentence for each mistake."""
        wrong, volumes, names = self._faults.copy(), {}, set()
        for texts, values in self._groups:
            for text in texts:
                name, equals, path = text.partition("=")
                if not (name and equals and path):
                    wrong.append(f"argument --volume: {text!r} is not NAME=PATH, for example cube=brain.zarr")
                    continue
                if name in names:
                    wrong.append(f"argument --volume: two volumes are called {name!r}")
                names.add(name)
                try:
                    volumes[name] = self.kind.model_validate(values | {"path": path})
                except ValidationError as problem:
                    wrong += [
                        f"--volume {name}: {sentence}" for sentence in _typed_faults(problem, self.kind)
                    ]
        self._groups.clear()
        self._faults.clear()
        setattr(namespace, self.dest, volumes)
        return wrong


def _typed_faults(problem: ValidationError, kind: type[Options]) -> list[str]:
    return faults(problem, kind, lambda name: flag_name(name, kind.model_fields[name]))


def flag_name(name: str, field: FieldInfo) -> str:
    """Flag of a field: `--voxel-um` for `voxel_um`, unless annotated otherwise."""
    return flag_of(field).name or f"--{name.replace('_', '-')}"


def _add_flag(group: argparse._ActionsContainer, name: str, field: FieldInfo, **how: Any) -> None:
    how |= {"default": argparse.SUPPRESS, "help": _help(field), **_shape(field)}
    group.add_argument(flag_name(name, field), **how)


def _help(field: FieldInfo) -> str:
    default = field.default
    if default in (None, False, (), "") or "default" in (text := field.description or ""):
        return (field.description or "").replace("%", "%%")
    default_text = " ".join(
        f"{part:g}" if isinstance(part, float) else str(part) for part in _several(default)
    )
    return f"{text}; default {default_text}".replace("%", "%%")


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shape(field: FieldInfo) -> dict[str, Any]:
    """`nargs` and metavar of a flag."""
    kind, flag = _plain(field.annotation), flag_of(field)
    if kind is bool:
        return {"action": "store_true"}
    if get_origin(kind) is not tuple:
        return {"metavar": flag.metavar or _metavar(kind)}
    parts = get_args(kind)
    if parts[-1] is Ellipsis:
        several = "*" if field.default else "+"
        return {"nargs": several, "metavar": flag.metavar or _metavar(_plain(parts[0]))}
    return {"nargs": len(parts), "metavar": flag.metavar or ZYX}


def _plain(kind: Any) -> Any:
    """The type without None and without annotations."""
    while hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    others = [each for each in get_args(kind) if each is not NoneType]
    if len(others) < len(get_args(kind)) and len(others) == 1:
        return _plain(others[0])
    return kind


def _metavar(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    return {int: "N", float: "N"}.get(kind, "TEXT")
