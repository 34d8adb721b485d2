"""Methods are values: lists of phases that can be compared."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastlsr.config import Method
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, make_plan, options_of
from fastlsr.labels.plan import FORMER_NETWORK, LEARNED, Phase


def of(name, epochs=12, **options):
    return list(make_plan(Method(name=name, **options), epochs).phases)


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
    drop_epoch = round(share * epochs)
    made = of(name, epochs, stages=stages, smoothing=smoothing, drop_epoch=drop_epoch, teacher="file", generations=3)
    assert sum(phase.epochs for phase in made) == epochs * (1 + sum(phase.fresh for phase in made))
    assert all(phase.epochs > 0 and abs(phase.hard + phase.uniform + phase.soft - 1) < 1e-9 for phase in made)
    assert made[0].source not in (LEARNED, FORMER_NETWORK), "nothing has been learned before the first phase"


@pytest.mark.parametrize(
    ("method", "word"),
    [
        (Method(name="tlsa"), "did you mean tsla"),
        (Method(name="tsla", drop_epoch=13), "drop_epoch=13"),
        (Method(name="colam", stages=5), "these do: 1, 2, 3, 4, 6, 12"),
        (Method(name="lsr_pre"), "needs method.teacher"),
    ],
)
def test_a_method_that_does_not_fit_is_an_error_in_one_line(method, word):
    with pytest.raises(InputError, match=word) as error:
        make_plan(method, 12)
    assert "\n" not in str(error.value)


def test_every_method_reads_only_options_that_exist():
    known = set(Method.__dataclass_fields__)
    assert all(set(options_of(name)) <= known for name in METHODS)


def test_tsla_pre_is_tsla_with_a_teacher_in_the_place_of_the_uniform_distribution():
    options = {"drop_epoch": 8, "smoothing": 0.4, "first_lr": 1.0, "second_lr": 0.5}
    plain, taught = of("tsla", **options), of("tsla_pre", teacher="file", teacher_key="class", **options)
    assert [(p.epochs, p.hard, p.lr_scale) for p in plain] == [(p.epochs, p.hard, p.lr_scale) for p in taught]
    assert plain[0].uniform == taught[0].soft == 0.4 and taught[0].source == "class"
    assert taught == [*of("lsr_pre", 8, teacher="file", teacher_key="class", smoothing=0.4), Phase(4, lr_scale=0.5)]


def test_online_learns_after_each_epoch_what_the_next_is_trained_on():
    first, *later = of("online", 4)
    assert (first.hard, first.uniform, first.soft, first.learns) == (0.5, 0.5, 0, "correct")
    assert [(p.epochs, p.hard, p.soft, p.source, p.learns) for p in later] == [(1, 0.5, 0.5, LEARNED, "correct")] * 3


def test_methods_without_their_strength_are_the_baseline():
    baseline = of("hard")
    assert of("disturb_label", alpha=0.0) == baseline
    assert of("confidence_penalty", beta=0.0) == baseline
    assert of("label_refinery", generations=1) == baseline


def test_label_refinery_trains_each_generation_anew_on_the_former_network():
    first, second, third = of("label_refinery", generations=3)
    assert first == Phase(12) and second == third
    assert (second.epochs, second.soft, second.source, second.fresh) == (12, 1, FORMER_NETWORK, True)


def test_a_method_whose_phases_make_no_run_is_named(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", lambda epochs: [Phase(epochs, uniform=0.1)])
    with pytest.raises(InputError, match=r"^method.name=mine: the weights of phase 1 sum to 1.1"):
        make_plan(Method(name="mine"), 2)


def test_a_method_that_reads_an_unknown_option_is_an_error(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", lambda epochs, *, gamma_rate: [Phase(epochs)])
    with pytest.raises(InputError, match="method.name=mine reads gamma_rate, which Method in fastlsr/config.py lacks"):
        make_plan(Method(name="mine"), 2)
