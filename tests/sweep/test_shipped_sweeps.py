"""Every sweep file in configs/sweeps: its header, its trials, and which of them are repeats."""

import re
from pathlib import Path

import pytest
import yaml

from fastlsr.labels.methods import make_plan
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.plan import plan_trials
from fastlsr.sweep.results import outcomes_of

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
FIELDS = ["paper", "table", "data", "command", "command", "trials"]
NEEDED = (
    "tsla_dogs tsla_cub tsla_cifar100 tsla_cifar100_pre tsla_cifar100_theta colam_cifar10_models "
    "colam_cifar10_densenet colam_cifar100_models colam_cifar100_densenet colam_cifar100_peers "
    "colam_cifar100_temperature colam_cifar100_seeds colam_cifar10_folds colam_cifar100_folds colam_imagenet_folds"
).split()

of_each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


@pytest.fixture
def plan_of(monkeypatch):
    """path of a shipped file -> (sweep, planned trials); all of them can run."""

    def plan(path):
        monkeypatch.chdir(ROOT)
        sweep = read_sweep(path)
        planned, rejected = plan_trials(sweep, None)
        assert rejected == []
        return sweep, planned

    return plan


def test_every_experiment_has_its_sweep():
    assert set(NEEDED) <= {path.stem for path in FILES}


@of_each_file
def test_header_has_every_field_in_order_and_names_the_file(path):
    text = path.read_text(encoding="utf-8")
    found = re.findall(rf"^# ({'|'.join(sorted(set(FIELDS)))}): \S", text, re.MULTILINE)
    assert found == FIELDS
    assert f"fastlsr.sweep configs/sweeps/{path.name} " in text and f"wandb sweep configs/sweeps/{path.name}," in text
    assert yaml.safe_load(text)["name"] == path.stem


@of_each_file
def test_a_shipped_sweep_s_trials_are_runs_of_their_own_with_valid_phases(path, plan_of):
    sweep, planned = plan_of(path)
    assert len({trial.folder for trial in planned}) == len(planned) == len(sweep.combinations())
    for trial in planned:
        made = make_plan(trial.config.method, trial.config.train.epochs).phases
        generations = 1 + sum(phase.fresh for phase in made)
        assert sum(phase.epochs for phase in made) == trial.config.train.epochs * generations
    runs = re.search(r"^# trials: .*?(\d+) runs of (\d+) epochs", path.read_text(), re.MULTILINE)
    assert (int(runs[1]), {int(runs[2])}) == (len(planned), {trial.config.train.epochs for trial in planned})


@of_each_file
def test_a_shipped_sweep_counts_on_repeats_only_where_it_says_so(path, plan_of):
    """Trials of one setting differ in seed or fold, and in no other decisive option."""
    _, planned = plan_of(path)
    sizes = {len(outcome.setting.trials) for outcome in outcomes_of(planned, {})}
    repeats = {(trial.config.train.seed, trial.config.data.fold) for trial in planned}
    assert sizes == {len(repeats)}
