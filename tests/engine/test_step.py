"""The training step: its gradient is that of the mean over its samples, and its sums are those of a plain loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from fastlsr.engine.classifier import Classifier, MovingAverage
from fastlsr.engine.step import TrainStep
from fastlsr.engine.totals import Totals
from fastlsr.labels.class_means import ClassMeans
from fastlsr.labels.plan import Phase, Plan
from fastlsr.labels.targets import Targets

CPU = torch.device("cpu")
CLASSES = 5


def images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=generator)
    return pixels, torch.randint(CLASSES, (count,), generator=generator), torch.arange(count)


def network(precision="fp32"):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, CLASSES))
    return Classifier(model, (0.4, 0.5, 0.6), (0.2, 0.2, 0.3), precision=precision, channels_last=True)


SMOOTH = Phase(1, hard=0.9, uniform=0.1)


def step_of(made, phase=SMOOTH, means=None, **options):
    targets = Targets(CLASSES, Plan((phase,), 1), device=CPU)
    targets.enter(phase)
    optimizer = torch.optim.SGD(made.parameters(), lr=0.1, fused=True)
    return TrainStep(made, optimizer, targets, means, compile=False, **options)


def test_pixels_are_normalised_on_the_device_as_torchvision_does():
    from torchvision.transforms.v2 import functional as transforms

    pixels, _, _ = images()
    made = network()
    expected = made.model(transforms.normalize(pixels / 255, [0.4, 0.5, 0.6], [0.2, 0.2, 0.3]))
    torch.testing.assert_close(made(pixels), expected)


def test_a_classifier_around_another_model_keeps_the_normalisation():
    pixels, _, _ = images()
    made, other = network(), nn.Sequential(nn.Flatten(), nn.Linear(48, CLASSES))
    around = made.around(other)
    assert around.model is other and made.model is not other
    torch.testing.assert_close(around(pixels), other(made.normalised(pixels)))


@pytest.mark.parametrize("cuts", [[24], [8, 8, 8], [10, 10, 4], [1] * 24])
def test_accumulated_batches_move_the_weights_like_one_batch_of_all(cuts):
    pixels, labels, index = images()
    whole, parts = network(), network()
    step_whole, step_parts = step_of(whole), step_of(parts)
    step_whole.accumulate(pixels, labels, index, samples=24)
    step_whole.update()
    for batch in zip(pixels.split(cuts), labels.split(cuts), index.split(cuts), strict=True):
        step_parts.accumulate(*batch, samples=24)
    step_parts.update()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_step_is_torchs_own_cross_entropy_and_sgd():
    pixels, labels, index = images()
    made, plain = network(), network()
    step = step_of(made)
    step.accumulate(pixels, labels, index, samples=24)
    step.update()
    functional.cross_entropy(plain(pixels), labels, label_smoothing=0.1).backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()
    for one, other in zip(made.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_totals_and_class_means_are_those_of_a_plain_loop():
    pixels, labels, index = images()
    made, means = network(), ClassMeans(CLASSES, 24, device=CPU)
    step = step_of(made, means=means)
    means.start(torch.ones(24))
    with torch.no_grad():
        logits = made(pixels)
    for batch in zip(pixels.split(7), labels.split(7), index.split(7), strict=True):
        step.accumulate(*batch, samples=24)  # no update: the weights stay
    totals = step.totals.read()
    loss = functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert totals.loss == pytest.approx(loss.item(), rel=1e-5)
    assert totals.top1 == pytest.approx(100 * (logits.argmax(1) == labels).double().mean().item())
    assert (totals.seen, totals.steps, totals.bad_step) == (24, 4, 0)
    for label in labels.unique():
        torch.testing.assert_close(means.logit_sum[label], logits[labels == label].sum(0), rtol=1e-4, atol=1e-4)


def test_a_moving_average_is_the_geometric_one_and_copies_counters():
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, 0.75)
    for value in (4.0, 8.0):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(value)
            model.num_batches_tracked.fill_(int(value))
        average.update()
    # 1 -> 0.75 * 1 + 0.25 * 4 = 1.75 -> 0.75 * 1.75 + 0.25 * 8
    assert average.model.weight.tolist() == [3.3125, 3.3125]
    assert average.model.running_mean.tolist() == [2.75, 2.75]
    assert average.model.num_batches_tracked == 8 and not average.model.weight.requires_grad


def test_a_channel_without_spread_is_shifted_only():
    made = Classifier(nn.Flatten(), (0.5,) * 3, (0.0, 1.0, 1.0), precision="fp32", channels_last=True)
    assert made(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).tolist() == [[0.5, 0.5, 0.5]]


def test_the_first_step_with_a_loss_that_is_no_number_is_remembered():
    totals = Totals(CPU)
    for losses in ([1.0, 2.0], [1.0, torch.nan], [torch.inf, 0.0], [1.0, 1.0]):
        totals.update(torch.tensor(losses), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    assert totals.read().bad_step == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_trains_towards_what_float32_does(precision):
    pixels, labels, index = images()
    low, full = network(precision), network()
    before = [parameter.clone() for parameter in full.parameters()]
    for made in (low, full):
        step = step_of(made)
        step.accumulate(pixels, labels, index, samples=24)
        step.update()
    moved = torch.cat([(p - b).flatten() for p, b in zip(full.parameters(), before, strict=True)])
    moved_low = torch.cat([(p - b).flatten() for p, b in zip(low.parameters(), before, strict=True)])
    assert functional.cosine_similarity(moved, moved_low, dim=0) > 0.99


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_gradient_longer_than_clip_norm_is_cut_to_it_and_a_shorter_one_stays(precision):
    """A step of plain SGD at rate 0.1 then is 0.1 times the norm long."""
    pixels, labels, index = images()
    lengths = {}
    for limit in (0.0, 1e-3, 1e3):
        made = network(precision)
        before = torch.cat([each.detach().flatten() for each in made.parameters()])
        step = step_of(made, clip_norm=limit)
        step.accumulate(pixels, labels, index, samples=24)
        step.update()
        after = torch.cat([each.detach().flatten() for each in made.parameters()])
        lengths[limit] = (after - before).norm().item() / 0.1
    assert lengths[1e-3] == pytest.approx(1e-3, rel=1e-3) and lengths[0.0] > 1e-2
    assert lengths[1e3] == pytest.approx(lengths[0.0], rel=1e-6)
