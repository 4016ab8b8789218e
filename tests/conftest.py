"""What tests share: the one finder of real data, volumes that encode their position, checked shapes."""

from __future__ import annotations

import gc
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.real_data import ABSENT, REAL_DATA
from tests.support.typechecking import check_types_of

# The hook below has whatever is imported inside canvas_fm compiled anew where no bytecode may be written: a
# worker that runs hundreds of tests takes the large libraries from their own bytecode first.
# What is imported stays: the garbage collector passes over it neither now nor in the tests.
if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()
    for name in ("torch", "scipy.ndimage", "scipy.stats", "sklearn.linear_model", "pandas", "zarr"):
        importlib.import_module(name)
    importlib.import_module("matplotlib.backends.backend_agg")

# OpenVINO's telemetry would fork a process for each event where a test imports it before canvas_fm does.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

# Comparisons to the last digits hold in fp32, here and in the processes that tests start; tests of bf16 and
# of what `auto` takes on this processor say so. Its name is not imported: that module loads torch, which a
# process that only hands out tests does not need.
os.environ["CANVAS_FM_PRECISION"] = "fp32"

# Shapes and types of the signatures are executed in tests.
check_types_of("canvas_fm")

# Where an instruction set below the processor's is asked for, OpenVINO is refused; its tests are skipped.
if os.environ.get("ONEDNN_MAX_CPU_ISA"):
    from canvas_fm.inference.backends.openvino import lowered_instruction_set

    if lowered_instruction_set() is not None:
        sys.modules.update(dict.fromkeys(("openvino", "nncf")))  # type: ignore[arg-type]


# Files that take longest go first, so that no process is left with one of them when the others are done.
_LONGEST = (
    "tests/project/test_readme.py",
    "tests/serving/launch/",
    "tests/cli/verbs/score/test_probe.py",
    "tests/heads/test_quantise.py",
    "tests/training/",
    "tests/heads/",
)


def pytest_xdist_auto_num_workers() -> int:
    """Workers that fill all cores with their threads, and one more: a test that waits leaves a core to it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return max(1, cores // max(1, int(threads or 1))) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, path in enumerate(_LONGEST) if item.nodeid.startswith(path)), len(_LONGEST))

    items.sort(key=place)


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tests neither read nor fill the user's cache folder."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data: the environment variable CANVAS_FM_DATA, else ../shared/data, else a skip."""
    if not REAL_DATA.is_dir():
        pytest.skip(ABSENT)
    return REAL_DATA


def position_values(shape_zyx: tuple[int, int, int], dtype: str = "uint16") -> np.ndarray:
    """Every voxel holds 1 + its running index (modulo the type), so that any slip of axis or offset shows."""
    count = np.arange(1, 1 + int(np.prod(shape_zyx)), dtype=np.int64)
    top = 65_521 if np.dtype(dtype).itemsize <= 2 else 2**31 - 1
    return (count % top).astype(dtype).reshape(shape_zyx)


@pytest.fixture
def position_volume(tmp_path: Path) -> Callable[..., tuple[Path, np.ndarray]]:
    """`make(shape_zyx, **options of Volume.create)` writes such a volume; returns its path and its voxels."""

    def make(
        shape_zyx: tuple[int, int, int] = (40, 70, 50), name: str = "brain.zarr", **options
    ) -> tuple[Path, np.ndarray]:
        from canvas_fm.data.volume.volume import Volume

        settings = {"voxel_um": (4.0, 1.8, 1.8), "dtype": "uint16", "chunk_zyx": (8, 16, 16)} | options
        voxels = position_values(shape_zyx, str(settings["dtype"]))
        with Volume.create(tmp_path / name, shape_zyx, **settings) as writer:
            writer.write((0, 0, 0), voxels)
        return tmp_path / name, voxels

    return make
