"""`make figures`: the commands behind the figures of README, docs and cards; those named, else all.

    python -m tests.benchmarks.figures cfos peaks --out figures

What a command prints is the figure, below the machine, its command and the date. Folders that it writes
stay in `--out`, and a training that is there already is resumed. Real volumes are looked for as in the tests.
"""

from __future__ import annotations

import argparse
import datetime
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.timing import machine
from tests.support.real_data import ABSENT, REAL_DATA

_CFOS = "{data}/delivr_cFos/{{695,1008}}"
_SEVEN = "{data}/delivr_microglia/{{1874,2433,3941,4923,6506,6742,6871}}"
_NINE = "{data}/delivr_microglia/{{1874,2433,3941,4150,4923,6506,6742,6871,7095}}"
_ELEVEN = (
    "{data}/{{delivr_cFos/{{695,1008}},delivr_microglia/{{1874,2433,3941,4150,4923,6506,6742,6871,7095}}}}"
)
_TEST = "{data}/delivr_microglia/{{6003,7082,9758}}"
_LABELLED = "--volumes %s/raw.zarr --points %s/centroids.csv --roi %s/meta.json"
_ALL = "{data}/delivr_cFos/{{695,753,1008,1230}}/raw.zarr " + _SEVEN + "/raw.zarr"


class Figure(NamedTuple):
    """The commands of one measurement; `quotes` are the texts on the pages that it measures."""

    name: str
    quotes: tuple[str, ...]
    commands: tuple[str, ...]


FIGURES = (
    Figure(
        "points",
        ("| 6 and 27 files, 46 and 458 MB",),
        ("python -m tests.benchmarks points",),
    ),
    Figure(
        "cfos",
        ("| .711 / .568 |", "| .694 / .034 |"),
        (
            "canvas-fm domains {out}/cfos --train detector_cfos --fold 695 --fold 1008 "
            "--detector phantoms detector-phantoms --only cFos 'phantom nuclei' --tolerance-um cFos=8 "
            "--phantoms 40 " + _LABELLED % ((_CFOS,) * 3),
        ),
    ),
    Figure(
        "cfos-71",
        ("| .724 / .120 |",),
        (
            "canvas-fm domains {out}/cfos_71 --train detector_cfos --fold 695 --fold 1008 "
            "--only cFos 'phantom nuclei' --tolerance-um cFos=8 --phantoms 120 " + _LABELLED % ((_CFOS,) * 3),
        ),
    ),
    Figure(
        "microglia",
        ("| .949 / .870 |", "| .703 / .125 |"),
        (
            "canvas-fm domains {out}/microglia --train detector_microglia_relative "
            "--fold 1874 4923 6742 --fold 2433 6506 --fold 3941 6871 4150 --never-train-on 7095 --cross-fit "
            "--pool-small 4150 --only microglia 'phantom somata' --tolerance-um microglia=12 --phantoms 40 "
            + _LABELLED
            % ((_NINE,) * 3),
        ),
    ),
    Figure(
        "microglia-test",
        ("| .947 / .932 |", "| .711 / .042 |"),
        (
            "canvas-fm domains {out}/microglia_test --detector detector-microglia detector-microglia "
            "--test 6003 7082 9758 --final-test --only microglia 'phantom somata' "
            "--tolerance-um microglia=12 --phantoms 50 " + _LABELLED % ((_TEST,) * 3),
        ),
    ),
    Figure(
        "phantoms",
        ("| .932 / .809 |", "| .711 / .566 |"),
        (
            "canvas-fm domains {out}/phantoms --detector phantoms detector-phantoms --pool-small 4150 "
            "--tolerance-um cFos=8 microglia=12 --phantoms 40 " + _LABELLED % ((_ELEVEN,) * 3),
        ),
    ),
    Figure(
        "phantoms-test",
        ("| .883 / .839 |",),
        (
            "canvas-fm domains {out}/phantoms_test --detector phantoms detector-phantoms "
            "--test 6003 7082 9758 --final-test --only microglia 'phantom nuclei' 'phantom somata' "
            "--tolerance-um microglia=12 --phantoms 50 " + _LABELLED % ((_TEST,) * 3),
        ),
    ),
    Figure(
        "all",
        ("| .936 / .836 |", "| .706 / .564 |"),
        (
            "canvas-fm domains {out}/all --train detector_all --fold 1874 4923 6742 695 1008 "
            "--fold 2433 6506 695 1008 --fold 3941 6871 4150 695 1008 --never-train-on 7095 --cross-fit "
            "--pool-small 4150 --only cFos microglia --tolerance-um cFos=8 microglia=12 "
            + _LABELLED
            % ((_ELEVEN,) * 3),
        ),
    ),
    Figure(
        "cells-small",
        ("| 28.1 to 31.1 and 20.3 to 25.3 dB |",),
        (
            f"canvas-fm pretrain cells_small --volumes {_ALL} "
            "--held-out 1008 1874 4923 6742 3941 6871 --out {out}/e0",
            "canvas-fm info {out}/e0 --all",
            f"canvas-fm pretrain cells_small --volumes {_ALL} --held-out 695 2433 6506 --out {{out}}/e1",
            "canvas-fm info {out}/e1 --all",
        ),
    ),
    Figure(
        "real-small",
        ("| 17.47 and 19.55 dB |", "| 24.92 and 22.25 dB |"),
        (
            f"canvas-fm pretrain real_small --volumes {_ALL} "
            "--held-out 1874 1230 --device cpu --out {out}/small",
            "canvas-fm info {out}/small --all",
        ),
    ),
    Figure(
        "real-small-uniform",
        ("| 18.08, 20.22, 27.21, 23.38 dB |",),
        (
            f"canvas-fm pretrain real_small --volumes {_ALL} "
            "--held-out 1874 1230 --device cpu --set loss.gamma=0 --out {out}/uniform",
            "canvas-fm info {out}/uniform --all",
        ),
    ),
    Figure(
        "models",
        ("| 41 crops/s a core |", "| 2.4 s a core |", "| .64 s a thread |"),
        ("python -m tests.benchmarks models",),
    ),
    Figure("peaks", ("| 220 Mvoxel/s a core |",), ("python -m tests.benchmarks peaks",)),
    Figure(
        "convert",
        ("| 3.9 to 4.2 CPU s, peak memory .48 GB", "| 2.2 to 2.6 and 4.1 to 4.3 CPU s, peak memory .28 GB"),
        ("python -m tests.benchmarks convert",),
    ),
    Figure(
        "backends",
        ("| 277 and 428 crops/s a thread |",),
        ("python -m tests.benchmarks backends",),
    ),
    Figure(
        "service",
        ("| 125 crops/s |", "| 76, 86 ms |"),
        ("python -m tests.benchmarks.service.bench_service --encoder canvas_fm/weights/base",),
    ),
    Figure("search", ("| 2.2 ms |",), ("python -m tests.benchmarks search",)),
)
# Not of minutes: encoders and detectors of every fold are trained first; recipes/LOG.md has their commands.
UNMEASURED = ("| .962 / .931; .962 / .952 |", "| .692, .965 |", "| .666 |", "| .958 |")


def words_of(command: str, data: Path, out: Path) -> list[str]:
    """The words of a command, with its folders and with braces expanded as a shell does."""
    words = shlex.split(command.format(data=shlex.quote(str(data)), out=shlex.quote(str(out))))
    return [word for each in words for word in _expanded(each)]


def _expanded(word: str) -> list[str]:
    brace = re.search(r"\{([^{}]*)\}", word)
    if brace is None:
        return [word]
    parts = (word[: brace.start()] + part + word[brace.end() :] for part in brace[1].split(","))
    return [found for part in parts for found in _expanded(part)]


def main(arguments: Sequence[str]) -> None:
    known = {figure.name: figure for figure in FIGURES}
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}; default all")
    parser.add_argument(
        "--out", type=Path, default=Path("figures"), help="folder of the runs; default figures"
    )
    parsed = parser.parse_args(arguments)
    if unknown := sorted(set(parsed.names) - set(known)):
        parser.error(f"no figure called {', '.join(unknown)}; there are {', '.join(known)}")
    parsed.out.mkdir(parents=True, exist_ok=True)
    print(f"{datetime.date.today()}, {machine()}")
    for name in parsed.names or known:
        for command in known[name].commands:
            if "{data}" in command and not REAL_DATA.is_dir():
                print(f"{name}: {ABSENT}")
                continue
            _run(words_of(command, REAL_DATA, parsed.out))


def _run(words: list[str]) -> None:
    program, *rest = words
    if program == "canvas-fm":
        run = Path(rest[rest.index("--out") + 1]) if rest[0] == "pretrain" else None
        resume = ["--resume"] if run is not None and (run / "last.pt").is_file() else []
        words = [sys.executable, "-m", "canvas_fm.cli", *rest, *resume]
    else:
        words = [sys.executable, *rest]
    print(f"$ {shlex.join([program, *rest])}", flush=True)
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main(sys.argv[1:])
