"""A service of a tiny encoder, a volume with spots and two indexes, and a Chromium to look at its page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import canvas_fm as cf
from canvas_fm.data.points.points import Points
from canvas_fm.heads.features.extractor import Extractor
from canvas_fm.heads.labels.candidates import label_brains
from canvas_fm.heads.refine.fit.fit import fit_labelled
from canvas_fm.heads.refine.refiner import Refiner
from canvas_fm.inference.embed.embed import embed_to_store
from canvas_fm.inference.embed.store.embedding_store import Embeddings, write_store
from canvas_fm.models.load_model import Encoder
from tests.serving.conftest import (  # noqa: F401  fixtures of the service's own tests
    CROP,
    VOXEL_UM,
    Served,
    encoder,
    model,
    serve_command,
)
from tests.ui.browser import Browser, Page, find_chromium

SHAPE = (40, 160, 160)
CELLS = 300
MANY = 100_000
KEY = "0123456789abcdef-of-the-tests"
ABSENT = "no Chromium was found; apt-get install chromium, or name one by the environment variable CHROMIUM"


@pytest.fixture(scope="session")
def spots(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A volume with bright spots, and where they are: z, y, x."""
    rng = np.random.default_rng(0)
    centres = np.stack([rng.integers(4, size - 4, CELLS) for size in SHAPE], axis=1)
    voxels = rng.integers(200, 600, SHAPE).astype(np.uint16)
    for number, (z, y, x) in enumerate(centres):
        half = 1 + number % 3
        voxels[z - 1 : z + 2, y - half : y + half + 1, x - half : x + half + 1] += 1000 + 8 * number
    path = tmp_path_factory.mktemp("volumes") / "spots.zarr"
    with cf.Volume.create(path, SHAPE, voxel_um=VOXEL_UM, marker="NeuN") as writer:
        writer.write((0, 0, 0), voxels)
    return path, centres.astype(float)


@pytest.fixture(scope="session")
def index(encoder: Encoder, spots, tmp_path_factory: pytest.TempPathFactory) -> cf.Index:  # noqa: F811
    """The spots, with a score, a region and a label."""
    folder = tmp_path_factory.mktemp("index")
    path, centres = spots
    names = np.array(["CTX", "HPF", "TH"])
    columns = {
        "score": np.linspace(0, 1, CELLS).astype(np.float32),
        "region": names[np.arange(CELLS) % 3],
        "label": np.arange(CELLS) % 2,
    }
    volume = cf.Volume.open(path)
    made = embed_to_store(encoder, volume, Points(centres, columns), folder / "a.emb.zarr", device="cpu")
    return cf.Index.build(made, folder / "spots.index")


@pytest.fixture(scope="session")
def refiner(encoder: Encoder, spots, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """P(spot) by the encoder's features, fitted on both halves of the volume as if they were two brains."""
    folder = tmp_path_factory.mktemp("refiner")
    volume, rng = cf.Volume.open(spots[0]), np.random.default_rng(3)
    brains = []
    for half in (0, 1):
        near = spots[1][half::2]
        other = rng.uniform(5, 35, (80, 3)) * (1, 4, 4)
        labels = np.repeat([1, 0], [len(near), len(other)])
        brains.append(Points(np.concatenate([near, other]), {"label": labels}))
    extractor = Extractor(encoder=encoder, pool="centre", device="cpu")
    second = cf.Volume.open(shutil.copytree(spots[0], folder / "second.zarr"))
    trained = label_brains([volume, second], brains, labels="label")
    fit_labelled(Refiner("mae", C=0.01), trained, extractor, folder / "spot", show=False)
    return folder / "spot"


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of a hundred thousand vectors in clumps, of some other encoder."""
    return many_cells(tmp_path_factory.mktemp("many"), MANY)


def many_cells(folder: Path, count: int) -> Path:
    rng = np.random.default_rng(1)
    group = rng.integers(0, 6, count)
    vectors = (rng.normal(size=(6, 8))[group] * 3 + rng.normal(size=(count, 8))).astype(np.float32)
    about = {"encoder_sha256": "ab" * 32, "encoder": "none", "pool": "mean", "precision": "fp32"}
    about |= {"voxel_um": list(VOXEL_UM), "window": [0, 1], "volume": "brain", "marker": None, "inputs": {}}
    columns = {
        "marker": np.array(["NeuN", "cFos", "TH", "PV", "GFAP", "IBA1"])[group],
        "score": rng.random(count).astype(np.float32),
    }
    write_store(folder / "many.emb.zarr", vectors, Points(rng.random((count, 3)) * 100, columns), about)
    cf.Index.build(Embeddings.open(folder / "many.emb.zarr"), folder / "many.index", metric="l2")
    return folder / "many.index"


@pytest.fixture(scope="session")
def arguments(
    model: Path,  # noqa: F811
    spots,
    index: cf.Index,
    many: Path,
    refiner: Path,
) -> list[str]:
    """What `canvas-fm serve` is started with."""
    named = [f"spots={index.path}", f"many={many}"]
    return [
        str(model),
        "--volume",
        f"spots={spots[0]}",
        "--index",
        *named,
        "--refiner",
        f"spot={refiner}",
        "--port",
        "0",
    ]


@pytest.fixture(scope="session")
def url(serve_command: Callable[..., Served], arguments: list[str]) -> str:  # noqa: F811
    return serve_command(*arguments).url()


@pytest.fixture(scope="session")
def guarded_url(
    serve_command: Callable[..., Served],  # noqa: F811
    arguments: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """The same service behind a key."""
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text(f"lab {KEY}\n")
    keys.chmod(0o600)
    return serve_command(*arguments, "--keys", str(keys)).url()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A Chromium, or a skip where there is none."""
    program = find_chromium()
    if program is None:
        pytest.skip(ABSENT)
    browser = Browser(program)
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window; whatever goes wrong in its console fails the test."""
    with browser.page() as page:
        yield page
        assert [each for each in page.problems if page.tolerates not in each] == []


__all__ = ["CROP"]
