"""One optimizer step: the loss over parts and ranks, the schedule, what decays."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from canvas_fm.errors import CanvasError
from canvas_fm.models.encoder.vit import patchify
from canvas_fm.training.mae.optimizer_step import MaeStep, new_model
from canvas_fm.training.recipe.recipe import Recipe
from canvas_fm.training.run.batch_order import Batch
from canvas_fm.training.run.distributed import Ranks
from canvas_fm.training.run.optimizer import OptimizerState

from ..pair import together, two_ranks  # isort: skip

Tiny = Callable[..., Recipe]
UNITS = [
    [],
    ["model.encoder.intensity=contrast", "loss.error=contrast"],
    ["model.decoder.targets=patch", "loss.error=patch"],
    ["distil.layers=1"],
]


def alone() -> Ranks:
    return Ranks(0, 1, torch.device("cpu"))


def batch(n: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Raw crops, some of them ten times brighter, so that the patches' variances differ."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 3000, (n, 8, 16, 16), generator=generator)
    raw[::3] = raw[::3] // 10
    return raw.to(torch.int16), torch.tensor([[0.0, 1 / 3000]]).repeat(n, 1)


def run(stepper: MaeStep, steps: int = 3) -> tuple[list[float], list[torch.Tensor]]:
    losses = [stepper(batch(), step)[0].reshape(-1).tolist() for step in range(steps)]
    return [each for of_step in losses for each in of_step], [
        p.detach().clone() for p in stepper.mae.parameters()
    ]


def test_an_error_in_contrast_counts_dim_crops_like_bright_ones(tiny: Tiny) -> None:
    """The loss of crops at half their brightness is the same, but for the floor under a crop's deviation."""
    settings = ["augment.noise=0", "model.encoder.intensity=contrast", "loss.error=contrast"]
    raw, windows = batch()
    dim = windows * torch.tensor([1.0, 0.5])
    losses = [float(MaeStep(tiny(*settings), alone())((raw, w), 0)[0]) for w in (windows, dim)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    in_window = [float(MaeStep(tiny(*settings[:2]), alone())((raw, w), 0)[0]) for w in (windows, dim)]
    assert in_window[1] < 0.3 * in_window[0]


def test_cells_weigh_gamma_more_than_the_background_s_alpha(tiny: Tiny) -> None:
    """A background that outweighs γ by far makes the loss uniform, as γ = 0 does."""
    outweighed, uniform, weighted = (
        float(MaeStep(tiny(f"loss.alpha={alpha}", f"loss.gamma={gamma}"), alone())(batch(), 0)[0])
        for alpha, gamma in ((1e6, 9), (1, 0), (1, 9))
    )
    assert outweighed == pytest.approx(uniform, rel=1e-4)
    assert uniform > 0
    assert weighted != pytest.approx(uniform, rel=0.01)


def test_an_error_in_contrast_needs_an_encoder_of_contrast(tiny: Tiny) -> None:
    with pytest.raises(CanvasError, match=r"goes with model\.encoder\.intensity: contrast"):
        tiny("loss.error=contrast")


@pytest.mark.parametrize("unit", UNITS, ids=["window", "contrast", "patch", "distilled"])
@pytest.mark.parametrize("size", [1, 3, 4])
def test_micro_batches_give_the_step_of_the_whole_batch(tiny: Tiny, size: int, unit: list[str]) -> None:
    """Clipping and the batch's own scale are on: both have to see the whole batch."""
    losses, weights = run(MaeStep(tiny("training.clip=0.05", *unit), alone()))
    parts = MaeStep(tiny("training.clip=0.05", *unit, f"training.micro_batch={size}"), alone())
    part_losses, part_weights = run(parts)
    assert part_losses == pytest.approx(losses, rel=1e-5)
    for whole, part in zip(weights, part_weights, strict=True):
        torch.testing.assert_close(part, whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("unit", UNITS, ids=["window", "contrast", "patch", "distilled"])
def test_two_ranks_make_the_step_of_one(tiny: Tiny, unit: list[str]) -> None:
    """Augmentation, masks, σ̄², clipping and the average of weights are those of the whole batch."""
    recipe = tiny("training.clip=0.05", "training.ema=0.5", "training.micro_batch=3", *unit)
    alone_, *pair = (MaeStep(recipe, ranks) for ranks in (alone(), *two_ranks()))
    raw, windows = batch()
    for step in range(2):
        whole = alone_((raw, windows), step)
        halves = together(
            [lambda s=s: s((raw[s.rows], windows[s.rows]), step) for s in pair]  # noqa: B023
        )
        for half in halves:
            for found, expected in zip(half, whole, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)
    for each in pair:
        for found, expected in zip(each.result.parameters(), alone_.result.parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_a_step_is_adamw_by_hand_on_clipped_gradients(tiny: Tiny) -> None:
    """Loshchilov and Hutter's formula, two steps, with the recipe's rates, betas, decay and clipping."""
    stepper = MaeStep(
        tiny("training.clip=0.05", "training.warmup_steps=3", "training.weight_decay=0.3",
             "training.betas=[0.7, 0.8]", "training.learning_rate=0.01"),
        alone(),
    )  # fmt: skip
    names = [name for name, _ in stepper.mae.named_parameters()]
    weights = [p.detach().double().clone() for p in stepper.mae.parameters()]
    first, second = ([torch.zeros_like(w) for w in weights] for _ in range(2))
    gradients: list[torch.Tensor] = []
    stepper.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.double().clone() for p in stepper.mae.parameters())
    )
    for step in range(2):
        gradients.clear()
        _, norm = stepper(batch(seed=step), step)
        rate = 1e-6 + (0.01 - 1e-6) * step / 3
        assert norm > 0.05
        assert sum(g.square().sum() for g in gradients) ** 0.5 == pytest.approx(0.05, rel=1e-4)
        for k, gradient in enumerate(gradients):
            spared = names[k].endswith(("bias", "_token")) or "norm" in names[k]
            first[k] = 0.7 * first[k] + 0.3 * gradient
            second[k] = 0.8 * second[k] + 0.2 * gradient.square()
            ratio = (first[k] / (1 - 0.7 ** (step + 1))) / (
                (second[k] / (1 - 0.8 ** (step + 1))).sqrt() + 1e-8
            )
            weights[k] = weights[k] * (1 - rate * (0.0 if spared else 0.3)) - rate * ratio
    for found, expected in zip(stepper.mae.parameters(), weights, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    assert all(p.grad is None for p in stepper.mae.parameters())


def test_without_clipping_gradients_stay_as_they_are_and_chance_is_the_seed_s(tiny: Tiny) -> None:
    free, same, other = (
        MaeStep(tiny(*more), alone())
        for more in (["training.clip=null"], ["training.clip=1e9"], ["training.clip=null", "seed=3"])
    )
    crops = [stepper._draw(*batch()) for stepper in (free, same, other)]
    for one, two in zip(*crops[:2], strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(crops[0][1], crops[2][1])
    norms = [stepper(batch(), 0)[1] for stepper in (free, same)]
    assert torch.equal(*norms)
    for one, two in zip(free.mae.parameters(), same.mae.parameters(), strict=True):
        assert torch.equal(one, two)


def test_bf16_rounds_the_model_and_not_the_loss(tiny: Tiny) -> None:
    exact, rough = (
        MaeStep(tiny(f"training.precision={p}"), alone())(batch(), 0)[0] for p in ("fp32", "bf16")
    )
    assert rough != exact
    torch.testing.assert_close(rough, exact, rtol=0.02, atol=0)


def test_a_fixed_scale_is_used_as_given(tiny: Tiny) -> None:
    """The batch's own mean variance gives the batch's loss; one far below every patch's the uniform loss."""
    crops, _ = MaeStep(tiny(), alone())._draw(*batch())
    own = patchify(crops, (2, 4, 4)).var(dim=-1, unbiased=False).mean().item()

    def loss(*overrides: str) -> float:
        return run(MaeStep(tiny(*overrides), alone()), 1)[0][0]

    def fixed(scale: float) -> float:
        return loss("loss.scale=fixed", f"loss.mean_variance={scale!r}")

    assert fixed(own) == pytest.approx(loss(), rel=1e-5)
    assert fixed(1e-9) == pytest.approx(loss("loss.gamma=0"), rel=1e-5)
    assert loss() != pytest.approx(loss("loss.gamma=0"), rel=1e-2)


def test_the_schedule_warms_up_and_then_follows_a_cosine(tiny: Tiny) -> None:
    stepper = MaeStep(tiny("training.steps=20", "training.warmup_steps=5"), alone())
    rates = []
    for step in range(20):
        stepper._update(step)
        rates.append(stepper.learning_rate)
    top, low = 1e-3, 1e-6
    assert rates[:5] == pytest.approx([low + (top - low) * step / 5 for step in range(5)])
    cosine = [low + (top - low) * (1 + math.cos(math.pi * step / 15)) / 2 for step in range(15)]
    assert rates[5:] == pytest.approx(cosine)


def test_norms_biases_and_tokens_do_not_decay(tiny: Tiny) -> None:
    stepper = MaeStep(tiny(), alone())
    names = {id(p): name for name, p in stepper.mae.named_parameters()}
    for group in stepper.optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            spared = name.endswith(("bias", "_token")) or "norm" in name
            assert group["weight_decay"] == (0.0 if spared else 0.05), name


def test_it_overfits_one_crop(tiny: Tiny) -> None:
    recipe = tiny(
        "training.steps=60", "training.learning_rate=0.03", "model.mask_ratio=0.25", "loss.gamma=0",
        "augment.flip=0", "augment.rotate=false", "augment.noise=0",
    )  # fmt: skip
    stepper = MaeStep(recipe, alone())
    ramp = torch.linspace(0, 3000, 8 * 16 * 16).reshape(1, 8, 16, 16).to(torch.int16).repeat(8, 1, 1, 1)
    losses = [float(stepper((ramp, batch()[1]), step)[0]) for step in range(60)]
    assert losses[-1] < 0.01 < losses[0]  # the mean of the ramp alone gives .08


def test_the_average_trails_the_weights(tiny: Tiny) -> None:
    stepper = MaeStep(tiny("training.ema=0.5"), alone())
    start = new_model(tiny()).encoder.patch_embed.weight
    stepper(batch(), 0)
    now = stepper.mae.encoder.patch_embed.weight
    torch.testing.assert_close(stepper.result.encoder.patch_embed.weight, (start + now) / 2)
    assert MaeStep(tiny(), alone()).result is not stepper.result


def test_a_run_too_short_for_its_average_is_warned_of(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    MaeStep(tiny("training.ema=0.9", "training.steps=60"), alone())
    assert not caplog.records
    MaeStep(tiny("training.ema=0.9", "training.steps=40"), alone())
    assert "about 10 steps, and the run has only 40" in caplog.text


@pytest.mark.parametrize("more", [[], ["distil.layers=1", "distil.momentum=0.6"]], ids=["plain", "distilled"])
def test_state_is_all_that_the_next_step_depends_on(tiny: Tiny, more: list[str]) -> None:
    recipe = tiny("training.ema=0.9", *more)
    one = MaeStep(recipe, alone())
    run(one, 2)
    saved = {k: v for k, v in one.state().items()}
    other = MaeStep(recipe, alone())
    other.load_state(torch.load(_through_disk(saved), weights_only=True))
    losses = [[stepper(batch(), step)[0] for step in (2, 3)] for stepper in (one, other)]
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))
    for a, b in zip(one.result.parameters(), other.result.parameters(), strict=True):
        assert torch.equal(a, b)


def _through_disk(state: dict) -> object:
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_another_device_cannot_go_on(tiny: Tiny) -> None:
    stepper = MaeStep(tiny(), alone())
    with pytest.raises(CanvasError, match="give --device cuda"):
        stepper.load_state(stepper.state() | {"device": "cuda"})


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_generator(tiny: Tiny) -> None:
    before = torch.random.get_rng_state()
    first, again, other = new_model(tiny()), new_model(tiny()), new_model(tiny("seed=1"))
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(first.encoder.patch_embed.weight, again.encoder.patch_embed.weight)
    assert not torch.equal(first.encoder.patch_embed.weight, other.encoder.patch_embed.weight)


def test_a_batch_has_to_divide_among_the_ranks() -> None:
    assert Ranks(1, 2, torch.device("cpu")).local_rows(8) == slice(4, 8)
    with pytest.raises(CanvasError, match="batch 8 does not divide among 3 processes"):
        Ranks(0, 3, torch.device("cpu")).local_rows(8)


def test_a_net_that_comes_in_evaluation_mode_is_trained_in_training_mode(tiny: Tiny) -> None:
    """As that of a loaded encoder does, from which a detector starts."""

    class Step(OptimizerState):
        def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
            raise AssertionError("no step is taken")

    assert Step(tiny(), alone(), torch.nn.Linear(2, 2).eval()).module.training
