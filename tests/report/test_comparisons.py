"""Paired comparisons: the test by enumeration, Holm's correction by hand, and what may be claimed."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fastlsr.errors import InputError
from fastlsr.report.comparisons import (
    ALPHA,
    all_pairs,
    carried_winners,
    compare,
    holm,
    intervals,
    is_exact,
    needed_differences,
    notes,
    planned_pairs,
    sign_flip_p,
)

tenths = st.integers(-50, 50).map(lambda value: value / 10)


@pytest.fixture(autouse=True)
def no_warning():
    """A degenerate case warns of NaN in scipy; here it is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize(("comparisons", "seeds"), [(1, 6), (2, 7), (3, 7), (4, 8), (5, 8), (6, 8), (7, 9), (15, 10)])
def test_so_many_seeds_can_decide(comparisons, seeds):
    assert needed_differences([3] * comparisons, 0) == seeds


@pytest.mark.parametrize(
    ("counts", "needed"),
    [((8, 8, 8, 8, 6), (8, 8, 8, 8, 6)), ((7, 7, 7, 7, 6), (8, 8, 8, 8, 8)), ((10, 3), (10, 6)), ((5, 5), (7, 7))],
)
def test_with_unequal_seeds_the_last_step_of_holm_is_what_the_fewest_need(counts, needed):
    assert tuple(needed_differences(counts, at) for at in range(len(counts))) == needed


@given(st.integers(1, 500))
def test_one_seed_less_could_not_decide_even_if_all_differences_had_one_sign(comparisons):
    n = needed_differences([0] * comparisons, 0)
    assert comparisons * 2 / 2**n <= ALPHA < comparisons * 2 / 2 ** (n - 1)


@settings(max_examples=40)
@given(st.integers(2, 7).flatmap(lambda n: st.lists(st.lists(tenths, min_size=n, max_size=n), min_size=1, max_size=3)))
def test_p_is_the_share_of_signs_that_are_as_extreme(rows):
    for row, p in zip(rows, sign_flip_p(np.array(rows)), strict=True):
        whole = [round(10 * value) for value in row]  # exact sums, so that ties are ties
        sums = [abs(sum(s * v for s, v in zip(signs, whole, strict=True)))
                for signs in itertools.product((-1, 1), repeat=len(row))]  # fmt: skip
        assert p == pytest.approx(sum(each >= abs(sum(whole)) for each in sums) / len(sums))


@pytest.mark.parametrize("tenths", [[-4, 6, -13, 22, 1, -29, 21], [20, 9, -7, -12, 18, -20, -14]])
def test_sums_that_are_equal_but_for_rounding_count_as_equal(tenths):
    differences = np.array([[(50 + each / 10) - 50 for each in tenths]])
    assert sign_flip_p(differences) == sign_flip_p(np.array([tenths], dtype=float))


@pytest.mark.parametrize("n", [2, 6, 8, 13])
def test_differences_of_one_sign_have_the_smallest_p_there_is(n):
    differences = np.random.default_rng(n).uniform(0.1, 1, (1, n))
    assert sign_flip_p(differences) == sign_flip_p(-differences) == [2 / 2**n]


def test_with_many_seeds_p_is_estimated_close_to_the_exact_one_and_the_same_every_time():
    differences = np.random.default_rng(0).normal(0.4, 1, (1, 18))
    assert is_exact(16) and not is_exact(18)
    (p,) = sign_flip_p(differences)
    signs = np.array(list(itertools.product((-1, 1), repeat=18)))
    exact = (np.abs(signs @ differences[0]) >= abs(differences.sum()) - 1e-9).mean()
    assert p == pytest.approx(exact, abs=5 * math.sqrt(exact * (1 - exact) / 9999))
    assert sign_flip_p(differences) == [p]


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([], []),
        ([0.03], [0.03]),
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.6, 0.001, 0.7], [1.0, 0.003, 1.0]),
        ([0.01, 0.011, 0.5, 0.9], [0.04, 0.04, 1.0, 1.0]),
    ],
)
def test_holm_s_correction_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1), max_size=8), st.randoms(use_true_random=False))
def test_holm_is_at_most_bonferroni_never_below_p_and_keeps_the_order(p, random):
    corrected = holm(p)
    assert all(one <= other <= min(1, len(p) * one) + 1e-12 for one, other in zip(p, corrected, strict=True))
    shuffled = random.sample(range(len(p)), len(p))
    assert holm([p[at] for at in shuffled]) == pytest.approx([corrected[at] for at in shuffled])


def bca_over_all_resamples(sample):
    """The BCa interval of the mean (Efron 1987), over all n^n resamples instead of random ones."""
    n = len(sample)
    means = np.array([np.mean(each) for each in itertools.product(sample, repeat=n)])
    below = (np.sum(means < sample.mean() - 1e-12) + np.sum(means <= sample.mean() + 1e-12)) / (2 * len(means))
    bias = stats.norm.ppf(below)
    left_out = np.array([np.delete(sample, at).mean() for at in range(n)])
    spread = left_out.mean() - left_out
    acceleration = (spread**3).sum() / (6 * (spread**2).sum() ** 1.5)
    z = bias + stats.norm.ppf([0.025, 0.975])
    return np.quantile(means, stats.norm.cdf(bias + z / (1 - acceleration * z)))


@pytest.mark.parametrize("sample", [[0.1, 0.9, 0.4, -0.2, 0.5], [0.0, 0.0, 0.1, 0.1, 2.0], [-3.0, -1.0, -2.5, 0.2, 1]])
def test_the_interval_is_that_of_all_resamples(sample):
    sample = np.array(sample)
    assert intervals(sample[None])[0] == pytest.approx(bca_over_all_resamples(sample), abs=0.08 * np.ptp(sample))


@settings(max_examples=20)
@given(st.lists(st.integers(-20, 20), min_size=3, max_size=9), st.integers(-9, 9), st.sampled_from([0.5, 2, 8]))
def test_a_shift_or_a_scale_of_all_differences_is_one_of_the_interval(whole, shift, scale):
    differences = np.array([whole], dtype=float)
    low, high = intervals(differences)[0]
    assert low <= differences.mean() <= high
    assert intervals(differences + shift)[0] == pytest.approx((low + shift, high + shift), abs=1e-6)
    assert intervals(differences * scale)[0] == pytest.approx((low * scale, high * scale), abs=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.1, -2.5])
def test_equal_differences_have_their_value_as_the_interval(value):
    differences = np.array([[value] * 5, [0.1, 0.2, 0.3, 0.4, 0.6]])
    first, second = intervals(differences)
    assert first == (value, value) and second[0] < second[1]
    assert sign_flip_p(differences)[0] == (1.0 if value == 0 else 2 / 2**5)


def three(make_setting, n=8, gains=(0.0, 1.0, 3.0), **figures):
    """Settings `hard`, `lsr` and `tsla` of n seeds each, above one another by the gains."""
    noise = np.random.default_rng(5).uniform(0, 0.2, (3, n))
    return [
        make_setting(label, dict(enumerate(50 + gain + noise[at])), {"method.name": label}, **figures)
        for at, (label, gain) in enumerate(zip(("hard", "lsr", "tsla"), gains, strict=True))
    ]


def test_settings_are_compared_by_the_seeds_that_both_have(make_setting):
    one = make_setting("one", {0: 50.0, 1: 51.0, 2: 53.0, 7: 90.0})
    other = make_setting("other", {2: 52.5, 0: 50.5, 1: 50.0, 5: 10.0})
    (found,) = compare([(one, other)], "top1")
    assert found.seeds == (0, 1, 2)
    np.testing.assert_allclose(found.differences, [-0.5, 1.0, 0.5])
    assert (found.mean, found.p) == (pytest.approx(1 / 3), 0.75)


def test_settings_without_a_common_seed_or_with_one_alone_cannot_be_decided(make_setting):
    one, other, third = (make_setting(str(seed), {seed: 50.0, 9: 60.0} if seed else {0: 1.0}) for seed in (0, 1, 2))
    none, single = compare([(one, other), (other, third)], "top1")
    assert none.mean is None and none.interval is None and none.p == none.p_holm == 1
    assert len(single.differences) == 1 and single.interval is None
    assert none.claim == single.claim == "n cannot decide; 7 seeds could"


def test_a_difference_that_the_test_carries_is_claimed_with_size_interval_and_p(make_setting):
    hard, lsr, tsla = three(make_setting, nll=2.0)
    (above,) = compare([(tsla, lsr)], "top1")
    assert above.claim.startswith(f"tsla above lsr by {above.mean:.2f} (95%") and above.claim.endswith(
        "p 0.0078 after Holm"
    )
    assert above.better == "tsla" and above.interval[0] < above.mean < above.interval[1]
    (below,) = compare([(hard, lsr)], "top1")
    assert below.claim.startswith(f"hard below lsr by {-below.mean:.2f} (95%") and below.better == "lsr"
    low, high = map(float, below.claim.partition("interval ")[2].partition(")")[0].split(" to "))
    assert 0 < low < high, "the interval is of the size that is named"


def test_lower_is_better_of_a_score(make_setting):
    one, other = (make_setting(name, dict.fromkeys(range(6), 1.0), nll=nll) for name, nll in (("one", 2.0), ("o", 1.0)))
    (found,) = compare([(one, other)], "nll")
    assert found.better == "o" and found.claim.startswith("one above o by 1.0000")


def test_the_sign_of_a_comparison_turns_with_its_order_and_nothing_else(make_setting):
    hard, lsr, _ = three(make_setting)
    (one,), (other,) = compare([(hard, lsr)], "top1"), compare([(lsr, hard)], "top1")
    assert one.mean == -other.mean and one.p == other.p and one.better == other.better
    assert one.interval == pytest.approx([-end for end in reversed(other.interval)], abs=0.03)


@pytest.mark.parametrize(
    ("n", "pairs", "claim"), [(5, 1, "6 seeds"), (6, 2, "7 seeds"), (7, 3, None), (6, 3, "7 seeds")]
)
def test_too_few_seeds_cannot_decide_whatever_they_show(make_setting, n, pairs, claim):
    found = compare(all_pairs(three(make_setting, n))[:pairs], "top1")
    expected = f"n cannot decide; {claim} could"
    assert all((each.claim == expected) == (claim is not None) == (not each.decided) for each in found)


def test_enough_seeds_that_do_not_agree_are_not_decided(make_setting):
    one = make_setting("one", dict(enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])))
    other = make_setting("other", dict(enumerate([2.0, 1.0, 4.0, 3.0, 6.0, 4.0])))
    (found,) = compare([(one, other)], "top1")
    assert found.claim.startswith("not decided: one above other by 0.17") and found.better is None


def test_every_further_comparison_costs(make_setting):
    hard, lsr, tsla = three(make_setting, 6)
    assert compare([(tsla, lsr)], "top1")[0].decided
    assert not any(each.decided for each in compare([(tsla, lsr), (tsla, hard)], "top1"))


def test_only_who_beats_every_other_setting_of_the_table_is_set_in_bold(make_setting):
    settings = three(make_setting)
    hard, lsr, tsla = settings
    assert carried_winners(settings, compare(all_pairs(settings), "top1")) == {"tsla"}
    assert carried_winners(settings, compare([(hard, tsla), (tsla, lsr)], "top1")) == {"tsla"}
    assert carried_winners(settings, compare([(tsla, lsr)], "top1")) == set(), "it is not compared with hard"
    assert carried_winners(settings, compare([(lsr, hard)], "top1")) == set()
    few = three(make_setting, 5)
    assert carried_winners(few, compare(all_pairs(few), "top1")) == set()
    assert carried_winners([hard], []) == set(), "alone, it has beaten nobody"


def test_a_setting_that_is_not_decided_against_one_other_is_not_set_in_bold(make_setting):
    settings = three(make_setting, gains=(0.0, 3.0, 3.05))
    found = compare(all_pairs(settings), "top1")
    assert [each.decided for each in found] == [True, True, False]
    assert carried_winners(settings, found) == set()


def test_settings_trained_or_evaluated_on_other_data_are_never_compared(make_setting):
    one, other = make_setting("one", {0: 1.0}), make_setting("other", {0: 1.0})
    elsewhere = make_setting("elsewhere", {0: 1.0}, data=("a", "c"))
    from_elsewhere = make_setting("from elsewhere", {0: 1.0}, data=("c", "b"))
    folds = make_setting("folds", {0: 1.0}, {"data.folds": 3})
    assert all_pairs([one, other, elsewhere, from_elsewhere, folds]) == [(one, other)]
    with pytest.raises(InputError, match="one:elsewhere were trained or evaluated on different data"):
        planned_pairs("one:elsewhere", [one, elsewhere])


def test_a_pair_named_without_a_data_set_is_one_on_each(make_setting):
    here, there = {"data.dataset": "here"}, {"data.dataset": "there"}
    found = [make_setting(f"{name} dataset={where['data.dataset']}", {0: 1.0}, where, data=(where["data.dataset"], "b"))
             for where in (here, there) for name in ("hard", "lsr")]  # fmt: skip
    hard, lsr, hard_there, lsr_there = found
    assert planned_pairs("lsr:hard", found) == [(lsr, hard), (lsr_there, hard_there)]
    assert planned_pairs("lsr:hard", found[:3]) == [(lsr, hard)], "only where both are"
    assert planned_pairs("lsr dataset=there:hard dataset=there", found) == [(lsr_there, hard_there)]
    with pytest.raises(InputError, match="different data"):
        planned_pairs("lsr:hard", found[1:3])


def test_the_folds_of_a_seed_count_as_one(make_setting):
    repeats = {(seed, fold): 50.0 + seed + fold for seed in (0, 1) for fold in (0, 1, 2)}
    one = make_setting("one", repeats, {"data.folds": 3})
    other = make_setting("other", {key: value - 1 for key, value in repeats.items()}, {"data.folds": 3})
    found = compare([(one, other)], "top1")
    assert found[0].seeds == (0, 1) and found[0].differences.tolist() == [1, 1] and not found[0].decided
    assert any("Folds share training data" in line for line in notes([one, other], found))
    whole = make_setting("whole", {0: 1.0})
    assert not any("Folds" in line for line in notes([whole, whole], compare([(whole, whole)], "top1")))


def test_float32_accuracies_tie_as_the_counts_behind_them():
    hard, lsr = [454, 467, 444, 474, 453, 449, 461, 475], [449, 462, 443, 475, 449, 446, 457, 476]
    exact, rounded = (
        np.array([kind(one / 10) - kind(other / 10) for one, other in zip(hard, lsr, strict=True)], dtype=float)
        for kind in (float, lambda value: float(np.float32(value)))
    )
    assert sign_flip_p(np.stack([exact, rounded])) == [0.0546875, 0.0546875]


def test_more_seeds_than_are_tried_exactly_are_stated(make_setting):
    for n, stated in ((8, False), (17, True)):
        settings = three(make_setting, n)
        said = notes(settings, compare(all_pairs(settings), "top1"))
        assert any("random signs" in line for line in said) == stated


@pytest.mark.parametrize(
    "labels", [("tsla", "hard", "colam"), ("a:b", "b", "a"), ("x milestones=80,120", "x", "y:z, w")]
)
def test_planned_comparisons_are_named_by_labels_whatever_marks_these_have(make_setting, labels):
    settings = [make_setting(label, {0: 1.0}) for label in labels]
    one, other, third = settings
    text = f"{labels[0]}:{labels[1]},{labels[2]}:{labels[1]}"
    assert planned_pairs(text, settings) == [(one, other), (third, other)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("tsla:lsrr", "lsrr: no such setting; did you mean lsr?"),
        ("tsla:lsr,colam:hard", "colam: no such setting"),
        ("tsla", "tsla is no pair"),
        ("tsla:lsr:hard", "tsla:lsr:hard is no pair"),
        ("tsla:tsla", "are one setting"),
        ("tsla:lsr,lsr:tsla", "is there twice"),
        ("tsla:", "no such setting"),
        ("tsla:lsr,", "no such setting"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_one_line(make_setting, text, complaint):
    settings = [make_setting(label, {0: 1.0}) for label in ("tsla", "lsr", "hard")]
    with pytest.raises(InputError, match="--compare") as error:
        planned_pairs(text, settings)
    assert complaint in str(error.value) and "\n" not in str(error.value)
