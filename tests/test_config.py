"""Options: defaults under YAML under the command line, and one clear line for whatever is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlsr import train
from fastlsr.cli import read_arguments
from fastlsr.config import Config, differences, from_dict, is_incidental, load, scaled_by_recipe
from fastlsr.errors import InputError


def written(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_command_line_wins_over_yaml_which_wins_over_defaults(tmp_path):
    path = written(tmp_path, "optim: {lr: 0.5, momentum: 0.8}\n")
    made = load(path, ["--optim.lr=0.25"])
    assert (made.optim.lr, made.optim.momentum, made.optim.gamma) == (0.25, 0.8, 0.1)
    assert made.given == {"optim.lr", "optim.momentum"}


def test_environment_variables_have_no_say(monkeypatch):
    monkeypatch.setenv("optim.lr", "7")
    assert load().optim.lr == 0.1


@pytest.mark.parametrize("words", [["--data.flip=False"], ["--data.flip", "false"], ["--data.flip=FALSE"]])
def test_false_is_false_in_every_spelling_of_an_agent(words):
    assert load(overrides=words).data.flip is False


@pytest.mark.parametrize("text", ["optim: {lr: 5e-4}", "optim: {lr: '5e-4'}", "optim:\n  lr: 0.0005"])
def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path, text):
    assert load(written(tmp_path, text)).optim.lr == 5e-4


@pytest.mark.parametrize(("text", "value"), [("off", "off"), ("on", "on"), ("auto", "auto"), ("'off'", "off")])
def test_bare_on_and_off_in_yaml_are_choices(tmp_path, text, value):
    assert load(written(tmp_path, f"train: {{compile: {text}}}")).train.compile == value


def test_the_resolved_yaml_reads_back_as_itself(tmp_path):
    made = load(overrides=["--method.name=tsla", "--optim.milestones=3,5", "--data.flip=false", "--optim.lr=1e-7"])
    assert load(written(tmp_path, made.as_yaml())) == made == from_dict(made.as_dict())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--train.epoch=3"], "unknown option train.epoch; did you mean train.epochs"),
        (["--smoothing=0.1"], "unknown option smoothing; did you mean method.smoothing"),
        (["--nonsense.key=1"], "sections are data, model"),
        (["--train.epochs=many"], "train.epochs=many: expected a whole number of at least 1"),
        (["--train.epochs=1.5"], "train.epochs=1.5"),
        (["--train.epochs=0"], "train.epochs=0"),
        (["--optim.lr=nan"], "optim.lr=nan"),
        (["--optim.lr=-1"], "at least 0"),
        (["--method.smoothing=1.5"], "from 0 to 1"),
        (["--train.ema=1"], "from 0 to 0.999999"),  # it would never leave the first weights
        (["--data.flip=maybe"], "true or false"),
        (["--train.precision=fp8"], "one of auto, bf16, fp32, fp16"),
        (["--train.epochs"], "needs a value"),
        (["epochs=3"], "not an option"),
    ],
)
def test_a_wrong_word_is_one_clear_line(words, line):
    with pytest.raises(InputError, match=line) as error:
        load(overrides=words)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("train: {epoch: 3}", "did you mean train.epochs"),
        ("train: {epochs: true}", "train.epochs=True"),
        ("train: {epochs: null}", "train.epochs has no value"),
        ("train: [1, 2]", "unknown option train"),
        ("- a\n- b", "expected sections"),
        ("train: {epochs: 3", "is not YAML"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, text, line):
    with pytest.raises(InputError, match=line) as error:
        load(written(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="absent.yaml"):
        load(tmp_path / "absent.yaml")


def test_flags_and_the_config_are_told_from_options():
    assert read_arguments(["--cfg", "a.yaml", "--dry-run", "--a.b", "1"], flags=("dry-run",)) == (
        "a.yaml", {"a.b": "1"}, {"dry-run"})  # fmt: skip


@given(st.sampled_from(["optim.lr", "train.seed", "method.name", "data.batch_size", "model.name"]))
def test_runs_that_differ_in_what_decides_have_other_names(key):
    value = {"optim.lr": "0.3", "train.seed": "5", "method.name": "tsla", "data.batch_size": "7", "model.name": "x"}[
        key
    ]
    other = load(overrides={key: value})
    assert differences(Config(), other) == [key] and other.run_name() != Config().run_name()


@pytest.mark.parametrize("word", ["--data.workers=3", "--data.dir=elsewhere", "--log.every=7", "--run.dir=there"])
def test_places_threads_and_logging_leave_the_name_and_the_numbers_alone(word):
    other = load(overrides=[word])
    assert differences(Config(), other) == [] and other.run_name() == Config().run_name()
    assert all(is_incidental(key) for key in other.given)


def test_a_recipe_in_other_epochs_keeps_its_shape():
    """What counts epochs is scaled with them, to whole ones that are not 0; what does not stays."""
    words = ["--train.epochs=200", "--method.drop_epoch=180", "--optim.step_epochs=60", "--optim.milestones=80,0.5,120",
             "--optim.warmup_epochs=5", "--train.patience=10", "--optim.lr=0.3", "--method.stages=4"]  # fmt: skip
    made = load(overrides=[*words, "--train.scale_to=50"])
    assert (made.train.epochs, made.train.scale_to, made.method.drop_epoch, made.optim.step_epochs) == (50, 0, 45, 15)
    assert (made.optim.milestones, made.optim.warmup_epochs, made.train.patience) == ("20,0.5,30", 1.25, 2)
    assert (made.optim.lr, made.method.stages, made.run.keep) == (0.3, 4, 0)
    assert load(overrides=[*words, "--train.scale_to=2"]).optim.step_epochs == 1


def test_what_was_scaled_is_told_and_a_drop_that_is_not_reached_warned_of():
    words = {"train.epochs": "200", "method.name": "tsla", "method.drop_epoch": "180", "train.scale_to": "2"}
    made = load(overrides=words)
    assert scaled_by_recipe(made)["method.drop_epoch"] == 2 and scaled_by_recipe(load()) == {}
    lines = list(train.warnings(made, words))
    assert lines == ["method.drop_epoch=2 of train.epochs=2: nothing is dropped"]


@settings(max_examples=20)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(-1, 400))
def test_scaling_to_the_epochs_there_are_changes_nothing_and_is_done_once(epochs, to, drop):
    given = {"train.epochs": epochs, "method.drop_epoch": drop}
    assert differences(load(overrides=given | {"train.scale_to": epochs}), load(overrides=given)) == []
    scaled = load(overrides=given | {"train.scale_to": to})
    assert from_dict(scaled.as_dict()) == scaled and scaled.train.epochs == to
    assert (scaled.method.drop_epoch <= to) == (drop <= epochs) or abs(drop - epochs) * to < epochs


def test_a_run_s_name_depends_on_what_is_not_the_default_alone():
    """So that an option of a later version leaves it as it is."""
    names = [
        load(overrides=words).run_name() for words in ([], ["--optim.lr=0.1"], ["--optim.lr=0.2"], ["--data.dir=x"])
    ]
    assert names[0] == names[1] == names[3] != names[2]
