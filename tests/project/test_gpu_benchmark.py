"""The benchmark for a GPU that is there for a short time, at toy length on the CPU."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter

from canvas_fm.data.volume.volume import Volume
from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.vit import ViTEncoder
from canvas_fm.models.folder.network_config import EncoderConfig
from tests.benchmarks.gpu import net, pack, pretrain
from tests.benchmarks.gpu.bench_gpu import main
from tests.benchmarks.gpu.data import boxes, draw_phantoms, load_packed, views

ROOT = Path(__file__).parents[2]
CONFIG = EncoderConfig(
    crop_zyx=net.CROP, patch_zyx=net.PATCH, dim=192, depth=2, heads=3, intensity="contrast"
)


def test_its_encoder_is_the_products_with_the_same_weights():
    torch.manual_seed(0)
    ours, product = net.Encoder(192, 2), ViTEncoder(CONFIG)
    product.load_state_dict(ours.state_dict())
    crops = torch.rand(3, 1, *net.CROP)
    torch.testing.assert_close(ours(crops), product(crops, "centre"), rtol=1e-4, atol=1e-5)
    visible = torch.rand(3, net.TOKENS).argsort(dim=1)[:, :16]
    torch.testing.assert_close(
        ours.tokens(crops, visible), product.tokens(crops, visible), rtol=1e-4, atol=1e-5
    )


def test_a_toy_run_leaves_figures_metrics_and_weights_that_the_product_opens(tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("a GPU runs it at full size")
    monkeypatch.setattr(pretrain, "MOST_PART", 200_000)
    main(["--minutes", "0", "--out", str(tmp_path)])
    capsys.readouterr()
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["pretraining"]["steps"] >= 1
    assert (
        min(found[name] for name in ("step_ms_of_small_batch", "embedding_crops_per_s", "share_of_peak")) > 0
    )
    assert found["largest_relative_difference_to_cpu_float32"] < 1e-4
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["views"] == found["pretraining"]["views"]
    assert 2 < len(list(tmp_path.iterdir())) <= 8
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--join", str(tmp_path)])
    runpy.run_module("tests.benchmarks", run_name="__main__")
    weights = load_file(tmp_path / pretrain.WEIGHTS)
    product = ViTEncoder(EncoderConfig(**(CONFIG.model_dump() | {"dim": 96, "depth": 1, "heads": 1})))
    assert not product.load_state_dict({name: value.float() for name, value in weights.items()}).missing_keys


def test_the_loss_falls_on_one_batch():
    torch.manual_seed(0)
    model = net.Hybrid(96, 1)
    generator = torch.Generator().manual_seed(0)
    box = boxes(draw_phantoms(1, generator, (16, 48, 48)), 8, generator)
    batch = torch.cat([views(box, generator) for _ in range(2)])
    assert batch.min() >= 0
    assert batch.max() <= 1
    optimizer, noise, losses = torch.optim.AdamW(model.parameters(), 1e-3), torch.rand(16, net.TOKENS), []
    for _ in range(25):
        losses.append(model(batch, noise))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.3


def test_packed_blocks_are_the_volumes_voxels_around_places(tmp_path):
    spot = np.zeros((20, 40, 44))
    spot[10, 20, 20] = 1
    spot = gaussian_filter(spot, (1, 3, 3))
    noise = np.random.default_rng(0).normal(200, 5, spot.shape)
    voxels = (noise + 3000 * spot / spot.max()).astype(np.uint16)
    with Volume.create(tmp_path / "a.zarr", voxels.shape, voxel_um=(6.0, 1.62, 1.62)) as writer:
        writer.write((0, 0, 0), voxels)
    block = (16, 36, 36)
    written = pack.pack([tmp_path / "a.zarr"], tmp_path / "p.npz", blocks=2, block_zyx=block)
    assert written == (tmp_path / "p.npz").stat().st_size
    data = load_packed(tmp_path / "p.npz", torch.device("cpu"))
    assert data.blocks.shape == (2, *block)
    brightest = np.unravel_index(int(data.blocks[0].argmax()), block)
    strongest = data.places[data.places[:, 0] == 0][:, 1:].numpy()
    assert np.abs(strongest - brightest).max(axis=1).min() <= 1
    assert data.blocks.max() == voxels.max()
    drawn = boxes(data, 4, torch.Generator().manual_seed(0), share=1.0)
    low, high = data.windows[0].tolist()
    assert drawn.max().item() == pytest.approx((float(voxels.max()) - low) / (high - low), rel=1e-5)
    with pytest.raises(CanvasError, match="smaller than a block"):
        pack.pack([tmp_path / "a.zarr"], tmp_path / "q.npz", blocks=1, block_zyx=(24, 36, 36))


def test_an_option_belongs_to_one_benchmark(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "models", "crops", "--minutes", "1"])
    with pytest.raises(SystemExit, match="--minutes is an option of one benchmark"):
        runpy.run_module("tests.benchmarks", run_name="__main__")


def test_it_needs_no_more_than_four_packages():
    """Another machine has torch, numpy, einops and safetensors, and nothing else of ours."""
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'canvas_fm', 'serving', 'zarr', 'faiss', 'bentoml', 'pydantic',"
        " 'timm', 'scipy', 'sklearn', 'jaxtyping', 'rich'}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "import tests.benchmarks.gpu.bench_gpu, tests.benchmarks.timing\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
