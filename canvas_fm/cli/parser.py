"""An argparse parser that is filled lazily, names replacements of old flags, reports all errors at once."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from canvas_fm.cli.output import OutputPaths
from canvas_fm.cli.renamed_flags import RENAMED

if TYPE_CHECKING:
    from canvas_fm.files.option_sets import Options

Result = dict[str, Any]
Run = Callable[[argparse.Namespace], Result | None]
Check = Callable[[argparse.Namespace], list[str]]
Verbs = argparse._SubParsersAction  # what add_subparsers returns; argparse has no public name for it
ZYX = ("Z", "Y", "X")
_MODELS = ("MODEL", "DETECTOR", "ENCODER", "REFINER")  # which may be addresses
_ADDRESS = re.compile(r"(https?|s3|gs|ftp|file)://")


class Parser(argparse.ArgumentParser):
    """An argparse parser that reports every mistake of a command together.

    `fill` adds the arguments when the parser is first used: what flags are made of is not imported before.
    """

    def __init__(
        self,
        *args: Any,
        fill: Callable[[Parser], None] | None = None,
        check: Check | None = None,
        addresses: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | options)
        self._fill, self._check, self._addresses = fill, check, addresses
        self._sets: list[Any] = []
        self._pending: list[Any] = []
        self._faults: list[str] = []
        self._words: list[str] = []
        self._typed = argparse.Namespace()
        self._outputs = OutputPaths()

    def add_output(self, *names: str, folder: bool = False, **options: Any) -> None:
        """Add an argument that names a file (or a folder) to write, and `--overwrite` with the first one.

        One that is there already is refused before the work begins; `args.outputs` has their names.
        """
        action = self.add_argument(*names, **options)
        if not self._outputs.actions:
            add_switch(self, "--overwrite", "replace what is there already")
        self._outputs.add(action, is_folder=folder)
        self.set_defaults(outputs=(*self._outputs.actions,))

    def add_options(
        self,
        dest: str,
        kind: type[Options],
        *,
        omit: Sequence[str] = (),
        only: Sequence[str] = (),
        title: str | None = None,
    ) -> None:
        """Add flags of an option model, or of some fields; `args.dest` becomes the model."""
        from canvas_fm.cli.flags_from_options import FlagSet

        self._sets.append(FlagSet(self, dest, kind, omit, only, title))

    def add_volumes(self, dest: str, kind: type[Options], help: str) -> None:
        """`--volume NAME=PATH …` with flags of its own; `args.dest` has them by name, each as a `kind`."""
        from canvas_fm.cli.flags_from_options import VolumeFlags

        self._sets.append(VolumeFlags(self, dest, kind, help))

    def filled(self) -> Parser:
        """This parser with its arguments added."""
        if self._fill is not None:
            fill, self._fill = self._fill, None
            fill(self)
        return self

    def filled_through(self) -> Parser:
        """This parser with the arguments of all sub-parsers added."""
        for action in self.filled()._actions:
            if isinstance(action, argparse._SubParsersAction):
                for verb in action.choices.values():
                    verb.filled_through()
        return self

    def format_help(self) -> str:
        self.filled()
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        words = list(sys.argv[1:] if args is None else args)
        self._faults, self._typed, self._pending = [], namespace or argparse.Namespace(), [*self._sets]
        if self._subparsers is None:
            words = [self._known_today(word) for word in words]
        self._words = words
        typed, extras = super().parse_known_args(words, self._typed)
        if self._subparsers is None:
            if extras and not self._unknown():
                self._faults.append(f"unrecognized arguments: {' '.join(extras)}")
            self._conclude()
        return typed, [] if self._subparsers is None else extras

    def error(self, message: str) -> NoReturn:
        """Print the usage and all errors so far; exit code 2."""
        self._take_sets()
        faults = dict.fromkeys([*self._faults, *self._unknown(), message, *self._checked()])
        self.print_usage(sys.stderr)
        self.exit(2, "".join(f"{self.prog}: error: {' '.join(fault.split())}\n" for fault in faults))

    def _get_values(self, action: argparse.Action, words: list[str]) -> Any:
        """Values of an argument; errors are collected for the end."""
        if isinstance(action, argparse._SubParsersAction) and words[0] in RENAMED:
            self.error(f"{words[0]} is called {RENAMED[words[0]]} now")
        reads = isinstance(action, argparse._SubParsersAction) or action.metavar == "ADDRESS"
        reads |= action.metavar in _MODELS and action.dest != "out"
        if not (reads or self._addresses):
            for word in words:
                if _ADDRESS.match(word):
                    self._faults.append(
                        f"{word} is an address; {self.prog} reads files of this machine: download it "
                        "first, or serve a remote volume (canvas-fm serve --volume NAME=ADDRESS "
                        "--allow-remote HOST)"
                    )
        try:
            return super()._get_values(action, words)
        except argparse.ArgumentError as problem:
            if isinstance(action, argparse._SubParsersAction):
                raise
            self._faults.append(str(problem))
            return None if action.nargs in (None, "?") else []

    def _conclude(self) -> None:
        """Report all errors, or put the option models into the namespace."""
        self._take_sets()
        if wrong := [*self._faults, *self._unknown()]:
            self.error(wrong[-1])
        if faults := self._checked():
            self.exit(1, "".join(f"canvas-fm: {' '.join(fault.split())}\n" for fault in faults))

    def _checked(self) -> list[str]:
        """Errors in files that the command names, such as a recipe, or an output that is there already."""
        faults = [] if self._check is None else self._check(self._typed)
        return [*faults, *self._outputs.faults(self._typed)]

    def _take_sets(self) -> None:
        sets, self._pending = self._pending, []
        for each in sets:
            self._faults += each.take(self._typed)

    def _known_today(self, word: str) -> str:
        """The word, or the current spelling of an old one, with an error that names it."""
        flag, equals, value = word.partition("=")
        verb = self.prog.partition(" ")[2]
        new = RENAMED.get(f"{verb} {flag}") or RENAMED.get(flag)
        if new is None or flag in self._option_string_actions:
            return word
        self._faults.append(f"{flag} is called {new} now")
        name, _, given = new.partition(" ")
        if name not in self._option_string_actions:
            return value
        return f"{name}={given}" if given else f"{name}{equals}{value}"

    def _unknown(self) -> list[str]:
        """One message for each unknown flag."""
        known, faults = self._option_string_actions, []
        for word in self._words[: self._words.index("--") if "--" in self._words else None]:
            flag = word.partition("=")[0]
            if flag.startswith("--") and flag not in known:
                matches = difflib.get_close_matches(flag, known, 1)
                faults.append(
                    f"unrecognized arguments: {flag}" + (f"; did you mean {matches[0]}?" if matches else "")
                )
        return [] if self._subparsers is not None else faults


def add_verb(
    verbs: Verbs,
    name: str,
    run: Run,
    help: str,
    description: str = "",
    *,
    fill: Callable[[Parser], None] | None = None,
    check: Check | None = None,
    addresses: bool = False,
    json: bool = True,
) -> None:
    """Add a verb: `fill` adds its arguments, `check` validates its files before the work begins.

    `json` adds `--json`, of the result.
    """

    def filled(parser: Parser) -> None:
        if fill is not None:
            fill(parser)
        if json:
            add_switch(parser, "--json", "print the result as JSON")
        add_logging(parser)

    parser = verbs.add_parser(
        name,
        help=help,
        description=description or f"{help[0].upper()}{help[1:]}.",
        fill=filled,
        check=check,
        addresses=addresses,
    )
    parser.set_defaults(run=run)


def add_group(verbs: Verbs, name: str, help: str, description: str) -> Verbs:
    """Add a verb with sub-verbs, such as `refine`."""
    group: Parser = verbs.add_parser(name, help=help, description=description)
    return group.add_subparsers(dest="action", metavar="ACTION", required=True)


def add_workers(parser: Parser, help: str = "processes; default 1") -> None:
    """Add `--workers` and `--scheduler`: processes of this machine, or of a Dask cluster."""
    parser.add_argument("--workers", type=positive_int, default=1, metavar="N", help=help)
    parser.add_argument("--scheduler", metavar="ADDRESS", help="of a Dask cluster, such as tcp://host:8786")


def add_switch(parser: argparse._ActionsContainer, flag: str, help: str) -> None:
    """Add a flag without a value."""
    parser.add_argument(flag, action="store_true", help=help)


def add_list(parser: argparse._ActionsContainer, flag: str, metavar: str, help: str) -> None:
    """Add a flag of one or more values; an empty list where it is not used."""
    parser.add_argument(flag, nargs="+", default=[], metavar=metavar, help=help)


def add_zyx_um(parser: argparse._ActionsContainer, flag: str, help: str) -> None:
    """Add a flag of three sizes in micrometres, along z, y and x."""
    parser.add_argument(flag, nargs=3, type=positive_float, metavar=ZYX, help=help)


def add_volume_flags(parser: Parser, *, omit: Sequence[str] = ()) -> None:
    """Add the flags for opening a volume, the same on every verb; `omit` are those that it has already."""
    from canvas_fm.data.volume.volume_flags import VolumeOptions

    parser.add_options("volume_options", VolumeOptions, omit=omit, title="opening the volume")


def add_roi(
    parser: Parser, meaning: str, *, several: bool = False, required: bool = False, note: str = ""
) -> None:
    """Add `--roi FILE`, or a file for each of several volumes; `meaning` is of the boxes."""
    each = ", one file a volume" if several else ""
    parser.add_argument(
        "--roi",
        nargs="+" if several else None,
        required=required,
        metavar="FILE",
        help=f"{meaning}{each}: a JSON list of [z0, y0, x0, z1, y1, x1] in voxels, or a meta.json with "
        "octants" + f"; {note}" * bool(note),
    )


def add_logging(parser: argparse.ArgumentParser) -> None:
    """Add `-q`, `-v` and `--log-file`."""
    group = parser.add_argument_group("messages")
    for flags, meaning in (
        (("-q", "--quiet"), "only warnings, no progress"),
        (("-v", "--verbose"), "debug messages too"),
    ):
        group.add_argument(*flags, action="store_true", default=argparse.SUPPRESS, help=meaning)
    group.add_argument(
        "--log-file", metavar="FILE", default=argparse.SUPPRESS, help="also write messages there"
    )


def positive_int(text: str) -> int:
    """argparse type: an integer from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number above 0")
    return value


def positive_float(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value
