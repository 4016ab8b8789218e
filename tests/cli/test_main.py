"""What all verbs share: exit codes, streams, start-up, flags."""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from canvas_fm import cli
from canvas_fm.cli import VERB_FILES, build_parser, main
from canvas_fm.version import __version__

VERBS = ["info", "phantom", "pretrain", "embed", "export", "reconstruct", "serve", "demo"]


def test_help_names_every_verb(run):
    code, out, _ = run("--help")
    assert code == 0
    assert all(f"\n    {verb}" in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_flag_has_a_line_of_help(verb, run):
    assert run(verb, "--help")[0] == 0
    verbs = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    bare = [
        a.option_strings[0] for a in verbs.choices[verb].filled()._actions if a.option_strings and not a.help
    ]
    assert bare == []


@pytest.mark.parametrize(("file", "names"), VERB_FILES.items())
def test_a_file_adds_the_verbs_of_its_row(file, names):
    verbs = next(a for a in build_parser(names[0])._actions if isinstance(a, argparse._SubParsersAction))
    assert tuple(verbs.choices) == names


def test_a_verb_imports_no_other_verbs():
    code = (
        "import sys; from canvas_fm.cli import main\n"
        "try: main(['points', '--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted(name for name in sys.modules if name.startswith('canvas_fm.cli.verbs.data.')))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "canvas_fm.cli.verbs.data.points"


def test_version(run):
    assert run("--version")[1].strip() == f"canvas-fm {__version__}"


def test_help_is_there_in_half_a_second():
    """In processor time: the wall clock of a busy machine says nothing of ours."""
    took = []
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-m", "canvas_fm.cli", "--help"], check=True, capture_output=True)
        after = os.times()
        took.append(
            after.children_user + after.children_system - before.children_user - before.children_system
        )
    assert min(took) < 0.5


@pytest.mark.parametrize(
    "words",
    [
        ["detect-everything"],
        ["info"],
        ["info", "x", "--jsn"],
        ["info", "x", "--js"],  # no abbreviations: a script keeps its meaning when a flag is added
        ["embed", "m", "v", "--out", "o"],  # neither points nor grid
        ["embed", "m", "v", "--out", "o", "--points", "p", "--grid", "8", "8", "8"],
        ["embed", "m", "v", "--out", "o", "--grid", "8", "0", "8"],
        ["embed", "m", "v", "--out", "o", "--points", "p", "--resample", "--ignore-voxel-size"],
        ["phantom", "o", "--voxel-um", "1", "nan", "1"],
        ["serve", "m", "--volume", "no-name"],
    ],
)
def test_wrong_flags_are_exit_code_2(words, run):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("usage: canvas-fm")


def test_lists_are_several_values_after_one_flag():
    args = build_parser().parse_args(
        [
            "pretrain",
            "phantom",
            "--volumes",
            "a",
            "b",
            "--set",
            "training.steps=1",
            "training.batch=2",
            "--out",
            "o",
            "--held-out",
            "b",
        ]
    )
    assert (args.volumes, args.overrides, args.held_out) == (
        ["a", "b"],
        ["training.steps=1", "training.batch=2"],
        ["b"],
    )
    args = build_parser().parse_args(["serve", "m", "--volume", "a=x", "b=y=z", "--volume", "c=w"])
    assert [(name, served.path) for name, served in args.volumes.items()] == [
        ("a", "x"),
        ("b", "y=z"),
        ("c", "w"),
    ]


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_is_130(run, monkeypatch):
    monkeypatch.setattr("canvas_fm.viewing.info.describe.describe", interrupted)
    code, out, err = run("info", "x")
    assert (code, out, err) == (130, "", "canvas-fm: interrupted\n")


def test_what_the_file_system_refuses_is_a_sentence(refusal, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "x"))

    monkeypatch.setattr("canvas_fm.viewing.info.describe.describe", refuse)
    sentence = f"{tmp_path / 'x'}: permission denied; give another path, or get the right (chmod, chown)"
    assert refusal("info", "x") == sentence


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a device that is always full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_result_that_cannot_be_printed_is_said_as_that(unbuffered):
    command = f"{sys.executable} -m canvas_fm.cli list --json > /dev/full"
    settings = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=settings)
    assert done.returncode == 1
    assert done.stderr == (
        "canvas-fm: the result cannot be printed where standard output goes (No space left on device); files "
        "that the command was to write are written\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux alone has a device that is always full")
def test_a_log_that_cannot_be_written_is_one_warning(capsys):
    handler = cli._LogFile("/dev/full", encoding="utf-8")
    for text in ("one", "two"):
        handler.handle(logging.makeLogRecord({"msg": text}))
    handler.close()
    assert capsys.readouterr().err == (
        "canvas-fm: warning: /dev/full cannot be written ([Errno 28] No space left on device); "
        "it lacks messages\n"
    )


def test_out_of_memory_is_a_sentence_with_the_flags_that_take_less(refusal, monkeypatch):
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 3.2 TiB")

    monkeypatch.setattr("canvas_fm.viewing.info.describe.describe", greedy)
    assert refusal("info", "x") == "not enough memory (Unable to allocate 3.2 TiB); run where there is more"


def test_a_log_file_in_a_folder_that_is_not_there(refusal, brain, tmp_path):
    log = tmp_path / "none" / "a.log"
    message = refusal("info", brain, "--log-file", log)
    assert message == f"{log}: there is no folder {log.parent}; make it or check the path"


def test_our_own_mistakes_are_not_hidden(monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("canvas_fm.viewing.info.describe.describe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["info", "x"])


def test_a_reader_that_has_seen_enough_is_no_error(brain):
    command = f"{sys.executable} -m canvas_fm.cli info {brain} | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_alone_it_prints_its_help(run):
    assert run()[:2] == run("--help")[:2]


def test_old_spellings_are_refused_with_the_new_ones(run):
    code, _, err = run("refine", "fit", "--heat", "--model", "mlp", "--volumes", "v", "--within", "f")
    assert code == 2
    assert "--heat is called --detector-score now" in err
    assert "--model is called --head now" in err
    assert "--within is called --roi now" in err
    assert "BOARD, the first argument" in run("leaderboard", "validate", "s", "--board", "b")[2]
    assert "--encoder is called --encoder-sha256 now" in run("search", "x", "--ids", "1", "--encoder", "a")[2]
    err = run("convert", "a", "b.zarr", "--skip-checksums", "--verify")[2]
    assert "--skip-checksums is called --checksums none now" in err
    assert "expected one argument" not in err
    code, _, err = run("worth", "base", "--volumes", "v")
    assert "--last-look is called --final-test now" in run("domains", "out", "--last-look")[2]
    assert "--own is called --without-children now" in run("groups", "s", "--out", "g", "--own")[2]
    assert (code, "worth is called feature-benchmark now" in err) == (2, True)


def test_all_mistakes_are_told_at_once(run):
    words = ["detect", "m", "v", "--tile", "0", "1", "x", "--precision", "fp8", "--treshold", "1"]
    code, out, err = run(*words, "--resample", "--ignore-voxel-size")
    assert (code, out) == (2, "")
    for part in ("--tile is '0'", "--precision is 'fp8'; expected 'fp32', 'bf16' or 'auto'",
                 "--treshold; did you mean --threshold?"):  # fmt: skip
        assert part in err
    code, _, err = run("detect", "m", "v", "--resample", "--ignore-voxel-size")
    assert "--resample and --ignore-voxel-size exclude each other" in err


def test_an_address_is_refused_as_one(run):
    code, _, err = run("info", "https://example.org/brain.zarr")
    assert code == 2
    assert "https://example.org/brain.zarr is an address" in err
    assert "canvas-fm serve" in err
