"""Folds: a partition of the training split, the same one for every seed, and what a run trains and evaluates on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Data, load
from fastlsr.data.loader import Loader
from fastlsr.data.splits import check_folds, fold_of_sample, held_out_subset, training_count, training_subset
from fastlsr.engine.session import evaluation_loader, training_loader
from fastlsr.errors import InputError

CPU = torch.device("cpu")
some_labels = st.lists(st.integers(0, 6), min_size=1, max_size=200).map(np.array)


@given(labels=some_labels, folds=st.integers(2, 9))
def test_each_class_and_the_whole_are_spread_over_the_folds_within_one_sample(labels, folds):
    fold = fold_of_sample(labels, folds)
    for members in [np.ones(len(labels), bool), *(labels == label for label in range(7))]:
        counts = np.bincount(fold[members], minlength=folds)
        assert len(counts) == folds and counts.max() - counts.min() <= 1


@given(labels=some_labels, folds=st.integers(2, 9))
def test_the_held_out_parts_are_disjoint_from_training_and_make_up_the_split(labels, folds):
    held_out = []
    for fold in range(folds):
        data = Data(folds=folds, fold=fold)
        train, test = training_subset(data)(labels), held_out_subset(data)(labels)
        assert sorted([*train, *test]) == list(range(len(labels)))
        assert len(train) == training_count(len(labels), data)
        held_out += test.tolist()
    assert sorted(held_out) == list(range(len(labels)))


def test_folds_are_no_runs_of_the_file_s_order():
    fold = fold_of_sample(np.zeros(1000, dtype=int), 5)
    assert 650 < (np.diff(fold) != 0).sum() < 950, "four fifths of the neighbours lie in different folds"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"folds": 1}, "at least 2"),
        ({"folds": 5, "fold": 5}, "counted from 0"),
        ({"fold": 2}, "data.folds, which is not set"),
        ({"folds": 5, "val": "test.beton"}, "data.val=test.beton is not read"),
    ],
)
def test_folds_that_do_not_go_together_are_an_error(options, line):
    with pytest.raises(InputError, match=line):
        check_folds(Data(**options))


@pytest.fixture(scope="module")
def loaders(digits_dir):
    """seed, fold -> the loaders to train on and to evaluate on, of five folds of the digits."""

    def make(seed=0, fold=1, **options):
        chosen = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.folds": 5, "data.fold": fold}
        config = load(overrides=chosen | {"train.seed": seed} | options)
        return training_loader(config, CPU), evaluation_loader(config, CPU)

    return make


def indices(loader, epoch=0):
    return torch.cat([batch.index.clone() for batch in loader.epoch(epoch)]).numpy()


def test_every_seed_has_the_same_folds_and_each_its_own_order(loaders):
    (train, test), (other_train, other_test) = loaders(seed=0), loaders(seed=1)
    assert np.array_equal(train.indices, other_train.indices) and np.array_equal(test.indices, other_test.indices)
    assert not np.array_equal(indices(train), indices(other_train))


@pytest.mark.parametrize("order", ["random", "quasi_random"])
def test_an_epoch_is_a_permutation_of_the_other_folds_that_seed_and_epoch_decide(loaders, order):
    train, test = loaders(**{"data.order": order})
    first, second = indices(train, 0), indices(train, 1)
    assert len(train) == 5 and len(first) == training_count(1438, Data(folds=5, fold=1))
    assert np.array_equal(np.sort(first), train.indices) and np.array_equal(np.sort(second), train.indices)
    assert not np.array_equal(first, second)
    again, _ = loaders(**{"data.order": order})
    assert np.array_equal(indices(again, 1), second)
    assert not set(first) & set(test.indices)


def test_evaluation_sees_each_held_out_sample_once_as_it_is_in_the_file(loaders, digits_dir):
    train, test = loaders()
    whole = Loader(digits_dir / "digits_train.beton", Data(), train=False, seed=0, device=CPU)
    images = torch.cat([batch.images.clone() for batch in whole.epoch(0)])
    seen = torch.cat([batch.images.clone() for batch in test.epoch(0)])
    assert np.array_equal(indices(test), test.indices)
    assert torch.equal(seen, images[torch.from_numpy(test.indices)])
    assert (train.class_counts + test.class_counts).tolist() == list(whole.manifest.class_counts)
