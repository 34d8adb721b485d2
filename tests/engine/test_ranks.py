"""One run on several ranks: the same samples, steps, soft labels and figures as on one."""

import copy
import functools
import io
import itertools

import numpy as np
import pytest
import torch
from test_faithful_run import CASES, OPTIONS, label_refinery, linear_network, teacher_in
from timm.layers import BatchNormAct2d
from torch import nn

from fastlsr.config import load
from fastlsr.data.prepare.writing import Samples, write_beton
from fastlsr.engine.batchnorm import is_synchronised, running_statistics, synchronise
from fastlsr.engine.evaluation import CollectedLogits
from fastlsr.engine.session import Session
from fastlsr.labels.methods import make_plan
from fastlsr.models import registry
from fastlsr.ranks import ALONE, largest_share, share, share_size

CPU = torch.device("cpu")
COLAM = {"method.name": "colam", "method.stages": 2}


@pytest.mark.parametrize("ranks", range(1, 7))
def test_the_parts_of_a_batch_are_the_batch_and_no_part_is_a_single_sample_of_several(ranks):
    for count in range(1, 80):
        parts = [range(count)[share(count, rank, ranks)] for rank in range(ranks)]
        assert list(itertools.chain(*parts)) == list(range(count))
        sizes = [len(part) for part in parts]
        assert sizes == sorted(sizes, key=lambda size: size == 0), "the first ranks have what there is"
        assert max(sizes) - min(size for size in sizes if size) <= 1
        assert 1 not in sizes or count == 1
        assert sizes == [share_size(count, rank, ranks) for rank in range(ranks)]
        assert largest_share(count, ranks) == max(sizes)


def on_disk(state):
    """The state as a checkpoint gives it back: no tensor is shared with a session."""
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def assert_same_bits(one, other):
    """Checks that two states are equal in all tensors and values."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_bits(one[key], other[key])
    elif isinstance(one, list):
        for each, its in zip(one, other, strict=True):
            assert_same_bits(each, its)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.fixture(autouse=True)
def _without_linear():
    """No test after these knows the network `linear`, which `started` adds in whatever process it runs."""
    yield
    registry.SMALL_IMAGE_NETWORKS.pop("linear", None)


def started(ranks, options, state=None):
    registry.SMALL_IMAGE_NETWORKS["linear"] = linear_network
    config = load(overrides={key: str(value) for key, value in {**OPTIONS, **options}.items()})
    plan = make_plan(config.method, config.train.epochs)
    return Session(config, plan, CPU, state=state, report=lambda text: None, ranks=ranks)


def trained(ranks, options, *, state=None, stop=None):
    """(steps, ends, state): the samples and pixels of each step, the figures of each epoch, the state after `stop`."""
    session, steps, ends = started(ranks, options, state), [], []
    while not session.finished:
        for batch in session.batches():
            halves = 2 if session.plan.pairs else 1  # samples and their peers
            steps.append([part.numpy().copy() for seen in (batch.index, batch.images) for part in seen.chunk(halves)])
            session.train_batch(*batch)
            if (session.position.epochs, session.position.batches) == stop:
                return steps, ends, on_disk(session.state_dict())
        logits = CollectedLogits()
        figures = {"train": session.totals.read().loss, **session.evaluate(collect=logits)}
        kept = logits.on_host(epoch=1, data="")
        learned = session.end_epoch().learned
        ends.append((figures, kept, learned.soft_labels if learned else None))
    return steps, ends, on_disk(session.state_dict())


def steps_of(of_ranks):
    """What the ranks saw in each step, put together: samples and pixels."""
    return [[np.concatenate(part) for part in zip(*parts, strict=True)]
            for parts in zip(*(steps for steps, _, _ in of_ranks), strict=True)]  # fmt: skip


def assert_same_steps(steps, alone):
    for step, its in zip(steps, alone, strict=True):
        for seen, expected in zip(step, its, strict=True):
            np.testing.assert_array_equal(seen, expected)


def assert_same_run(of_ranks, alone):
    """Checks that ranks came to the same figures, logits, soft labels and weights but for rounding."""
    _, (ends, *_), (state, *_) = zip(*of_ranks, strict=True)
    for (figures, kept, table), (its_figures, its_kept, its_table) in zip(ends, alone[1], strict=True):
        assert figures.keys() == its_figures.keys()
        assert figures["top1"] == its_figures["top1"] and figures["top5"] == its_figures["top5"]
        for name, figure in figures.items():
            assert figure == pytest.approx(its_figures[name], abs=2e-6), name
        np.testing.assert_array_equal(kept.index, its_kept.index)
        np.testing.assert_allclose(kept.logits, its_kept.logits, atol=2e-2)
        if its_table is not None:
            torch.testing.assert_close(table, its_table, atol=1e-6, rtol=0)
    for name, weight in alone[2]["model"].items():
        torch.testing.assert_close(state["model"][name], weight, atol=1e-5, rtol=1e-5)
    for other in of_ranks[1:]:  # and to the bit among themselves
        assert other[1][-1][0] == ends[-1][0]
        assert all(torch.equal(other[2]["model"][name], weight) for name, weight in state["model"].items())


@pytest.fixture(scope="module")
def data(digits_dir):
    return {"data.dir": digits_dir}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_method_trains_on_four_ranks_as_on_one(case, data, on_ranks, tmp_path):
    options = data | {f"method.{name}": value for name, value in CASES[case].items()}
    if "method.teacher_key" in options:
        options["method.teacher"] = teacher_in(tmp_path)[0]
    options["train.epochs"] = 1 if case is label_refinery else 2  # of a generation
    of_ranks, alone = on_ranks(4, trained, options), trained(ALONE, options)
    assert_same_steps(steps_of(of_ranks), alone[0])
    assert_same_run(of_ranks, alone)


# 2 batches of 717 and one of 4, which leaves the last of three ranks without a sample.
@pytest.mark.parametrize("more", [{}, {"optim.accumulate": 2}, {"optim.accumulate": 3}, {"train.ema": 0.9}])
def test_a_rank_without_samples_takes_part_in_the_step(more, data, on_ranks):
    options = {**data, **COLAM, **more, "data.batch_size": 717, "train.epochs": 2}
    of_ranks = on_ranks(3, trained, options)
    assert [len(rank[0][2][0]) for rank in of_ranks] == [2, 2, 0]
    alone = trained(ALONE, options)
    assert_same_steps(steps_of(of_ranks), alone[0])
    assert_same_run(of_ranks, alone)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """7 images to train on and 3 to evaluate: less than two for each of four ranks."""
    folder, random = tmp_path_factory.mktemp("few"), np.random.default_rng(0)
    for split, count in (("train", 7), ("test", 3)):
        images = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        samples, classes = Samples(images, np.arange(count) % 10), [str(label) for label in range(10)]
        write_beton(samples, folder / f"few_{split}.beton", dataset="few", split=split, classes=classes)
    return {"data.dir": folder, "data.dataset": "few", "train.epochs": 2}


@pytest.mark.parametrize("os_cache", [True, False])
def test_ranks_that_never_have_a_sample_take_part_and_change_nothing(os_cache, few, on_ranks):
    options = {**few, **COLAM, "data.os_cache": os_cache}
    of_ranks, alone = on_ranks(4, trained, options), trained(ALONE, options)
    assert [len(rank[0][0][0]) for rank in of_ranks] == [2, 2, 3, 0]
    assert_same_steps(steps_of(of_ranks), alone[0])
    assert_same_run(of_ranks, alone)


def test_the_statistics_of_ranks_without_samples_do_not_count(few, on_ranks):
    of_ranks = on_ranks(4, after_two_steps, few)
    *trained_on, idle = [before for _, before, _ in of_ranks]
    assert not idle[0].any() and all(each[0].any() for each in trained_on)
    for number, mean in enumerate(of_ranks[3][2]):
        torch.testing.assert_close(mean, sum(each[number] for each in trained_on) / 3)


def after_two_steps(ranks, options):
    """(weights, batch norm's statistics, the same after an evaluation) of a ResNet-8."""
    session = started(ranks, {**options, "model.name": "resnet8"})
    for batch in itertools.islice(session.batches(), 2):
        session.train_batch(*batch)
    weights = {name: weight.detach().clone() for name, weight in session.network.model.named_parameters()}
    before = [tensor.clone() for tensor in running_statistics(session.network)]
    session.evaluate()
    return weights, before, running_statistics(session.network)


def test_with_synchronised_batch_norm_ranks_make_the_steps_of_one(data, on_ranks):
    """On CPUs it is not compiled, whatever is requested."""
    options = {**data, "data.batch_size": 48, "train.sync_batchnorm": True, "train.compile": "on"}
    of_ranks, alone = on_ranks(3, after_two_steps, options), after_two_steps(ALONE, {**options, "train.compile": "off"})
    for weights, before, after in of_ranks:
        assert weights.keys() == alone[0].keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, alone[0][name], atol=1e-5, rtol=1e-4)
        for one, other in zip(before + after, alone[1] + alone[2], strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_compiled_steps_are_those_of_one_also_where_a_rank_has_no_sample(data, on_ranks):
    options = {**data, "data.batch_size": 718, "train.epochs": 1}  # which leaves a last batch of two
    compiled = on_ranks(2, trained, {**options, "train.compile": "on"})
    assert [len(rank[0][-1][0]) for rank in compiled] == [2, 0]
    assert_same_run(compiled, trained(ALONE, options))


def test_each_rank_normalises_by_its_own_samples_and_is_evaluated_by_the_mean_of_all_statistics(data, on_ranks):
    (weights, first, after), (others_weights, second, others_after) = on_ranks(2, after_two_steps, data)
    assert all(torch.equal(weights[name], others_weights[name]) for name in weights)
    assert not any(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    for one, other, mean, its in zip(first, second, after, others_after, strict=True):
        assert torch.equal(mean, its)
        torch.testing.assert_close(mean, (one + other) / 2)


def test_every_batch_norm_has_a_synchronised_form_that_alone_is_the_same():
    """Also timm's, with an activation of its own; the parameters, statistics and state's names stay."""
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(BatchNormAct2d(4), nn.Conv2d(4, 2, 1)))
    synchronised = copy.deepcopy(plain)
    parameters = list(synchronised.parameters())
    synchronise(synchronised, CPU)
    assert is_synchronised(synchronised) and not is_synchronised(plain)
    assert all(one is other for one, other in zip(parameters, synchronised.parameters(), strict=True))
    assert list(synchronised.state_dict()) == list(plain.state_dict())
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(synchronised.eval()(images), plain.eval()(images))


# Inside the epoch that collects, at its end before it is evaluated, and in the stage after.
STOPS = [(0, 10), (0, 23), (1, 5)]


@pytest.mark.parametrize(("ranks", "stop"), [*((2, stop) for stop in STOPS), (4, STOPS[0])])
def test_as_many_ranks_go_on_to_the_same_bits(ranks, stop, data, on_ranks):
    options = {**data, **COLAM, "train.epochs": 2, "model.name": "resnet8", "train.ema": 0.9}
    whole = on_ranks(ranks, trained, options)
    first, _, state = on_ranks(ranks, functools.partial(trained, stop=stop), options)[0]
    rest = on_ranks(ranks, functools.partial(trained, state=state), options)
    assert len(first) + len(rest[0][0]) == len(whole[0][0])
    for mine, resumed in zip(whole, rest, strict=True):
        assert_same_bits(resumed[2], mine[2])
        assert [each[0] for each in resumed[1]] == [each[0] for each in mine[1]][-len(resumed[1]) :]


@pytest.mark.parametrize("stop", STOPS)
def test_another_number_of_ranks_goes_on_with_the_same_samples_sums_and_figures(stop, data, on_ranks):
    options = {**data, **COLAM, "train.epochs": 2}
    alone = trained(ALONE, options)
    four = on_ranks(4, functools.partial(trained, stop=stop), options)
    again = (stop[0], stop[1] + 3) if stop[1] < 23 else (1, 3)
    two = on_ranks(2, functools.partial(trained, state=four[0][2], stop=again), options)
    last = trained(ALONE, options, state=on_disk(two[0][2]))
    assert_same_steps(steps_of(four) + steps_of(two) + last[0], alone[0])
    assert_same_run([last], (alone[0], alone[1][-len(last[1]) :], alone[2]))
