"""A GPU for a quarter of an hour: `python -m tests.benchmarks gpu --minutes 8 --out DIR --data FILE`.

First the figures of the machine, then the pretraining of contrast and reconstruction for the minutes left.
DIR holds figures.json, metrics.jsonl and the encoder's weights in parts (`--join DIR` makes one file of
them). `--data` is one packed file of real blocks (`python -m tests.benchmarks.gpu.pack`); phantoms are drawn
on the device. Without a GPU all is of toy size.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.benchmarks.gpu.data import BLOCK, draw_phantoms, joined, load_packed
from tests.benchmarks.gpu.measure import Sizes, figures
from tests.benchmarks.gpu.pretrain import join_weights, pretrain

SPARE_S = 20.0  # before the end, for what is written last


def main(words: Sequence[str] = ()) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all, figures and pretraining")
    parser.add_argument("--out", type=Path, default=Path("figures/gpu"))
    parser.add_argument("--data", type=Path, help="packed blocks of real volumes")
    parser.add_argument("--phantoms", type=int, help="blocks of phantoms; 64 on a GPU")
    parser.add_argument(
        "--join", type=Path, metavar="DIR", help="join the weights of an earlier run, no more"
    )
    options = parser.parse_args(list(words))
    if options.join is not None:
        print(join_weights(options.join))
        return
    run(options.out, options.minutes, options.data, options.phantoms)


def run(out: Path, minutes: float, packed: Path | None, phantoms: int | None) -> None:
    """Figures, then the pretraining for the time left; everything that is found is written at once."""
    began = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 is compared with the CPU's
    sizes, block = (Sizes(), BLOCK) if cuda else (Sizes.toy(), (16, 48, 48))
    generator = torch.Generator(device).manual_seed(0)
    data = draw_phantoms(phantoms or (64 if cuda else 2), generator, block)
    if packed is not None:
        real = load_packed(packed, device)
        data = joined([real, data]) if real.blocks.shape[1:] == data.blocks.shape[1:] else real
    found = figures(data, device, sizes)
    _write(out, found)
    until = began + 60 * minutes - (SPARE_S if minutes > 1 else 0)
    places = 512 if cuda else 8
    found["pretraining"] = pretrain(
        data, out, device, until=until, places=places, dim=sizes.dim, depth=sizes.depth
    )
    _write(out, found)
    print(json.dumps(found, indent=1))


def _write(out: Path, found: dict[str, object]) -> None:
    (out / "figures.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
