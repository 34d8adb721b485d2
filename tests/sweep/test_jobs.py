"""How many trials run at a time, and on which share of the cores, where the command line leaves it open."""

import os
from dataclasses import dataclass

import pytest

from fastlsr.config import load
from fastlsr.engine import footprint
from fastlsr.runs import run_folder
from fastlsr.sweep import jobs
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.jobs import Jobs, choose_jobs
from fastlsr.sweep.plan import PlannedTrial, plan_trials

GIB = 1 << 30


@dataclass
class Machine:
    """What a test sets of a machine."""

    cores: int = 8
    memory: float = 1000.0
    free: float = 1000.0


@pytest.fixture
def machine(monkeypatch):
    """A machine without the user's own settings."""
    made = Machine()
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: made.cores)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(made.cores)))
    monkeypatch.setattr(footprint, "whole_bytes", lambda: int(made.memory * GIB))
    monkeypatch.setattr(footprint, "free_bytes", lambda device: int(made.free * GIB))
    return made


@pytest.fixture
def trials(tmp_path):
    """Number of trials, options -> trials that have not begun, and whose data are not there."""

    def trials(number, **options):
        overrides = {"run.dir": str(tmp_path), "data.dir": str(tmp_path)} | {
            name.replace("__", "."): value for name, value in options.items()
        }
        made = [load(overrides={**overrides, "train.seed": str(seed)}) for seed in range(number)]
        return [PlannedTrial(at, {}, [], config, run_folder(config)) for at, config in enumerate(made)]

    return trials


@pytest.mark.parametrize(
    ("number", "ranks", "chosen"),
    [(20, 1, 8), (3, 1, 3), (1, 1, 1), (20, 2, 4), (20, 3, 2), (20, 8, 1), (20, 16, 1)],
)
def test_on_a_cpu_each_core_has_a_trial_or_a_rank_of_one(machine, trials, number, ranks, chosen):
    assert choose_jobs(trials(number), ranks, []) == Jobs(chosen, chosen)


def test_memory_carries_fewer_which_then_have_more_threads(machine, trials):
    machine.memory = machine.free = 3.5
    assert choose_jobs(trials(20), 1, []) == Jobs(3, 3)
    assert choose_jobs(trials(20), 2, []) == Jobs(1, 1)
    machine.memory = machine.free = 0.5
    assert choose_jobs(trials(20), 1, []) == Jobs(1, 1)


@pytest.mark.parametrize("free", [0.1, 2.5, 900])
def test_memory_that_is_taken_for_the_moment_changes_no_trial_s_threads(machine, trials, free):
    machine.free = free
    assert choose_jobs(trials(20), 1, []) == Jobs(max(1, min(8, int(free))), 8)


def test_the_user_s_number_of_threads_is_kept_and_counts(machine, trials, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_jobs(trials(20), 1, []) == Jobs(2, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert choose_jobs(trials(20), 1, []) == Jobs(1, 1)


def test_each_cuda_device_has_a_trial_or_a_rank_of_one(machine, trials):
    assert choose_jobs(trials(20), 1, list("4567")) == Jobs(4, 4)
    assert choose_jobs(trials(20), 2, list("4567")) == Jobs(2, 2)
    assert choose_jobs(trials(20), 1, ["0"]) == choose_jobs(trials(20), 8, list("4567")) == Jobs(1, 1)
    assert choose_jobs(trials(20, train__device="cuda:1"), 1, list("4567")) == Jobs(1, 1), "all would share one"
    assert choose_jobs(trials(20, train__device="cpu"), 1, list("4567")) == Jobs(8, 8)


def test_a_larger_batch_needs_more_memory_and_each_rank_its_own_weights(digits_dir, machine):
    def needed(batch, ranks=1):
        options = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.flip": "false", "train.device": "cpu",
                   "model.name": "resnet20", "data.batch_size": str(batch), "train.precision": "fp32",
                   "method.name": "colam", "method.stages": "4", "train.epochs": "4"}  # fmt: skip
        return jobs.needed_bytes(load(overrides=options), ranks)

    one, two, four = needed(64), needed(128), needed(256)  # COLAM in four stages, which one epoch would not have
    assert four - two == 2 * (two - one) > 0
    assert needed(64, ranks=2) - one > GIB


def test_nothing_is_weighed_where_all_is_done(machine, sweep_file, monkeypatch, tmp_path):
    path = sweep_file({"run.dir": {"value": str(tmp_path)}, "train.seed": {"values": [1, 2]}})
    trials, _ = plan_trials(read_sweep(path), None)
    monkeypatch.setattr(jobs, "finished_run", lambda trial: (object(), ""))
    assert choose_jobs(trials, 1, []) == Jobs(1, 1)
