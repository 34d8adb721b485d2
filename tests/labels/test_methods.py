"""Methods are values: lists of phases that can be compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Method
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, Phase, options_of, phases


def of(name, epochs=12, **options):
    return phases(Method(name=name, **options), epochs)


def test_tsla_dropping_at_zero_is_the_baseline():
    assert of("tsla", drop_epoch=0) == of("hard")


def test_tsla_dropping_at_the_end_is_label_smoothing():
    assert of("tsla", drop_epoch=12, smoothing=0.3) == of("lsr", smoothing=0.3)


def test_tsla_smooths_first_and_then_drops_it():
    assert of("tsla", drop_epoch=8, smoothing=0.4) == [Phase(8, hard=0.6, uniform=0.4), Phase(4)]


def test_colam_trains_on_hard_labels_and_then_on_what_each_stage_taught():
    first, *later = of("colam", stages=3, temperature=2.0)
    assert (first.epochs, first.hard, first.soft, first.temperature, first.learns) == (4, 1, 0, 2, "in_pass")
    assert [(p.epochs, p.hard, p.soft, p.temperature) for p in later] == [(4, 0, 1, 2)] * 2


def test_colam_of_one_stage_trains_as_the_baseline_does():
    (only,) = of("colam", stages=1)
    (baseline,) = of("hard")
    assert (only.hard, only.uniform, only.soft, only.temperature) == (
        baseline.hard, baseline.uniform, baseline.soft, baseline.temperature)  # fmt: skip


@given(
    name=st.sampled_from(sorted(METHODS)),
    stages=st.integers(1, 6),
    length=st.integers(1, 5),
    smoothing=st.floats(0, 1),
    share=st.floats(0, 1),
)
def test_phases_fill_the_run_and_their_weights_sum_to_one(name, stages, length, smoothing, share):
    epochs = stages * length
    made = of(name, epochs, stages=stages, smoothing=smoothing, drop_epoch=round(share * epochs))
    assert sum(phase.epochs for phase in made) == epochs
    assert all(phase.epochs > 0 and abs(phase.hard + phase.uniform + phase.soft - 1) < 1e-9 for phase in made)
    assert made[0].soft == 0, "nothing has been learned before the first phase"


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (Method(name="tlsa"), "did you mean tsla"),
        (Method(name="tsla", drop_epoch=13), "drop_epoch=13"),
        (Method(name="colam", stages=5), "these do: 1, 2, 3, 4, 6, 12"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_in_one_line(method, word):
    with pytest.raises(InputError, match=word) as error:
        phases(method, 12)
    assert "\n" not in str(error.value)


def test_every_method_reads_only_options_that_exist():
    known = set(Method.__dataclass_fields__)
    assert all(set(options_of(name)) <= known for name in METHODS)
