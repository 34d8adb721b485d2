"""Sweeps: every shipped file, the plan of trials, whole sweeps on real digits, and W&B's own agent on the same file."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from fastlsr import evaluate
from fastlsr.config import load
from fastlsr.engine import checkpoint
from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.labels.methods import make_plan
from fastlsr.sweep import __main__ as command
from fastlsr.sweep import runner as sweep
from fastlsr.sweep.file import read_sweep

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
FIELDS = ["paper", "table", "data", "command", "command", "trials"]
NEEDED = (
    "tsla_dogs tsla_cub tsla_cifar100 tsla_cifar100_pre tsla_cifar100_theta colam_cifar10_models "
    "colam_cifar10_densenet colam_cifar100_models colam_cifar100_densenet colam_cifar100_peers "
    "colam_cifar100_temperature colam_cifar100_seeds colam_cifar10_folds colam_cifar100_folds colam_imagenet_folds"
).split()
LIMIT_SECONDS = 120

of_each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def plan_of(path, monkeypatch):
    """The trials of a shipped file; skipped where its method is not there yet."""
    monkeypatch.chdir(ROOT)
    planned = read_sweep(path)
    trials, refused = sweep.plan(planned, None)
    assert refused == []
    return planned, trials


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
def test_a_shipped_sweep_s_trials_are_runs_of_their_own_with_valid_phases(path, monkeypatch):
    planned, trials = plan_of(path, monkeypatch)
    assert len({trial.folder for trial in trials}) == len(trials) == len(planned.trials())
    for trial in trials:
        made = make_plan(trial.config.method, trial.config.train.epochs).phases
        generations = 1 + sum(phase.fresh for phase in made)
        assert sum(phase.epochs for phase in made) == trial.config.train.epochs * generations
    runs = re.search(r"^# trials: .*?(\d+) runs of (\d+) epochs", path.read_text(), re.MULTILINE)
    assert (int(runs[1]), {int(runs[2])}) == (len(trials), {trial.config.train.epochs for trial in trials})


@of_each_file
def test_a_shipped_sweep_counts_on_repeats_only_where_it_says_so(path, monkeypatch):
    """Trials of one setting differ in seed or fold, and in no other decisive option."""
    _, trials = plan_of(path, monkeypatch)
    settings = sweep.settings_of(trials, {})
    sizes = {len(setting.trials) for setting in settings}
    repeats = {(trial.config.train.seed, trial.config.data.fold) for trial in trials}
    assert sizes == {len(repeats)}


def written(folder, parameters, words=(), **keys):
    """The path of a sweep file over the trainer with these parameters."""
    path = folder / "trials.yaml"
    command = ["${env}", "python", "-m", "fastlsr.train", *words, "${args}"]
    path.write_text(yaml.safe_dump({"method": "grid", "command": command, "parameters": parameters} | keys))
    return path


def test_a_metric_that_no_run_has_is_refused_before_anything_starts(tmp_path, capsys):
    path = written(tmp_path, {"optim.lr": {"value": 1}}, metric={"name": "best/test/acc", "goal": "maximize"})
    with pytest.raises(SystemExit) as exit:
        command.main([str(path), "--dry-run"])
    said = capsys.readouterr().err
    assert (
        exit.value.code == 2
        and "trials.yaml: metric: best/test/acc is none of a run's; did you mean best/test/" in said
    )


def test_one_typing_error_refuses_the_whole_sweep_before_it_starts(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {"method.smothing": {"values": [0.1, 0.2]}})
    with pytest.raises(SystemExit) as exit:
        command.main([str(path)])
    said = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and len(said) == 1 and "did you mean method.smoothing?" in said[0]
    assert not (tmp_path / "runs").exists()


def test_a_trial_that_cannot_run_is_set_apart_and_the_others_stay(tmp_path):
    parameters = {"method.name": {"value": "colam"}, "method.stages": {"value": 2}, "train.epochs": {"value": 4}}
    for name, values, line in [
        ("method.smoothing", [0.1, 7, 0.3], "method.smoothing=7: expected a number from 0 to 1"),
        ("method.stages", [1, 3, 2], "method.stages=3 does not divide train.epochs=4; these do: 1, 2, 4"),
    ]:
        trials, refused = sweep.plan(read_sweep(written(tmp_path, {**parameters, name: {"values": values}})), None)
        assert [trial.number for trial in trials] == [1, 3]
        assert [(trial.number, trial.line) for trial in refused] == [(2, line)]


def test_trials_that_are_one_run_are_run_once(tmp_path):
    planned = read_sweep(written(tmp_path, {"optim.lr": {"values": [1, 1.0, 2]}}))
    assert [trial.number for trial in sweep.plan(planned, None)[0]] == [1, 3]


def test_different_options_in_one_folder_are_refused(tmp_path):
    planned = read_sweep(written(tmp_path, {"optim.lr": {"values": [1, 2]}}, words=["--run.name=mine"]))
    with pytest.raises(InputError, match="trials 1 and 2 differ in optim.lr and share"):
        sweep.plan(planned, None)


def test_a_command_without_the_trainer_is_refused(tmp_path):
    planned = read_sweep(written(tmp_path, {"optim.lr": {"value": 1}}))
    with pytest.raises(InputError, match="does not start fastlsr.train"):
        sweep.plan(replace(planned, command=("python", "other.py", "${args}")), None)
    assert sweep.trainer_config(["torchrun", "-m", "fastlsr.train", "--optim.lr=2"]).optim.lr == 2
    assert sweep.trainer_config(["python", "fastlsr/train.py", "--optim.lr", "3"]).optim.lr == 3


def test_simultaneous_trials_share_the_cores_and_take_the_devices_in_turn(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    made = [sweep.environment(load(), slot, 3, ["4", "5"]) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["4", "5", "4"]
    assert {(one["OMP_NUM_THREADS"], one["NUMBA_NUM_THREADS"]) for one in made} == {("2", "2")}
    assert sweep.environment(load(), 0, 9, [])["OMP_NUM_THREADS"] == "1"
    alone = sweep.environment(load(), 0, 1, ["4", "5"])
    assert not {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & set(alone)
    for device in ("cpu", "cuda:1"):
        chosen = load(overrides={"train.device": device})
        assert "CUDA_VISIBLE_DEVICES" not in sweep.environment(chosen, 0, 2, ["4", "5"])


def test_visible_devices_are_shared_out_by_their_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    assert sweep.cuda_devices() == ["3", "GPU-8f"]


@pytest.fixture
def results(tmp_path):
    """metric, numbers by setting and fold -> (sweep, settings) as if these had been trained."""

    def make(metric, last, best=None, **keys):
        parameters = {"method.temperature": {"values": list(last)}, "data.folds": {"value": 3},
                      "data.fold": {"values": [0, 1, 2]}, "model.name": {"value": "resnet8"}}  # fmt: skip
        planned = read_sweep(written(tmp_path, parameters, metric=metric, **keys))
        trials, _ = sweep.plan(planned, None)
        summaries = {}
        for trial in trials:
            at = trial.values["method.temperature"], trial.values["data.fold"]
            if last[at[0]][at[1]] is not None:
                rows = {"last": {"test/top1": last[at[0]][at[1]]}, "best": {"test/top1": (best or last)[at[0]][at[1]]}}
                summaries[trial.number] = rows
        return planned, sweep.settings_of(trials, summaries)

    return make


def rows_of(table):
    return list(zip(*(column._cells for column in table.columns), strict=True))


TOP1 = {"name": "test/top1", "goal": "maximize"}
NUMBERS = {1: [90.0, 91.0, 92.0], 2: [95.0, 95.0, 95.0], 3: [99.0, None, None]}


def test_the_table_has_mean_deviation_and_n_of_each_setting_best_first(results):
    planned, settings = results(TOP1, NUMBERS, best={**NUMBERS, 1: [91.0, 92.0, 94.0]})
    table = sweep.results_table(planned, settings)
    assert [column.header for column in table.columns] == ["method.temperature", "n", "last", "best"]
    assert rows_of(table) == [
        ("3", "1 of 3", "99.00", "99.00"),
        ("2", "3", "95.00 ± 0.0", "95.00 ± 0.0"),
        ("1", "3", "91.00 ± 1.0", "92.33 ± 1.5"),
    ]  # fmt: skip


def test_selection_takes_the_best_mean_of_complete_settings_and_prints_their_command(results):
    planned, settings = results(TOP1, NUMBERS)
    warning, line, command = sweep.selection(planned, settings).splitlines()
    assert warning == "warning: 1 settings lack trials or folds and were not considered"
    assert line == "selected: highest mean test/top1 (last) 95.00 ± 0.0, n = 3"
    assert command == "python -m fastlsr.train --method.temperature=2 --model.name=resnet8"


@pytest.mark.parametrize(
    ("metric", "best"),
    [({"name": "test/top1", "goal": "minimize"}, 1), ({"name": "best/test/top1", "goal": "maximize"}, 1)],
    ids=["lowest", "best epoch"],
)
def test_selection_follows_the_file_s_metric(results, metric, best):
    planned, settings = results(metric, NUMBERS, best={**NUMBERS, 1: [96.0, 97.0, 98.0]})
    assert f"--method.temperature={best} " in sweep.selection(planned, settings)


def test_a_selection_without_folds_says_what_it_selects_on(results, tmp_path):
    planned = read_sweep(written(tmp_path, {"train.seed": {"values": [0, 1]}}))
    trials, _ = sweep.plan(planned, None)
    settings = sweep.settings_of(trials, {n: {kind: {"test/top1": 50.0} for kind in ("last", "best")} for n in (1, 2)})
    assert "on the evaluation split itself" in sweep.selection(planned, settings)


def test_folds_set_in_the_command_do_not_reach_the_selected_command(results, tmp_path):
    words = ["--data.folds", "3", "--data.fold=1", "--train.seed=4"]
    planned = read_sweep(written(tmp_path, {"optim.lr": {"value": 1}}, words=words))
    trials, _ = sweep.plan(planned, None)
    config = sweep.trainer_config(sweep.command_without_folds(planned, trials[0]))
    assert (config.data.folds, config.data.fold, config.train.seed, config.optim.lr) == (0, 0, 0, 1)


def test_nothing_complete_is_no_selection(results):
    planned, settings = results(TOP1, {1: [90.0, None, 92.0]})
    with pytest.raises(InputError, match="no setting has test/top1 of all its trials"):
        sweep.selection(planned, settings)


def test_a_sweep_that_is_running_is_not_started_twice(tmp_path):
    with sole_use(tmp_path / "one", "is still running"), sole_use(tmp_path / "two", "is still running"):
        with pytest.raises(InputError, match="is still running"):
            with sole_use(tmp_path / "one", "is still running"):
                pass
    with sole_use(tmp_path / "one", "is still running"):
        pass


@pytest.fixture(scope="module")
def short_options(digits_dir, tmp_path_factory):
    """Options of a run of seconds on the digits, and the folder of its runs."""
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.batch_size": 128, "data.flip": "false",
               "model.name": "resnet8", "train.epochs": 4, "train.device": "cpu", "train.precision": "fp32",
               "train.compile": "off", "log.wandb": "disabled"}  # fmt: skip
    return options | {"run.dir": str(tmp_path_factory.mktemp("sweep") / "runs")}


def words_of(options):
    return [f"--{name}={value}" for name, value in options.items()]


def test_a_sweep_is_stopped_resumed_goes_on_after_failures_and_skips_what_is_finished(short_options, tmp_path, capsys):
    parameters = {"method.name": {"value": "colam"}, "method.stages": {"value": 1},
                  "model.name": {"values": ["resnet8", "resnet9"]}, "data.folds": {"value": 2},
                  "data.fold": {"values": [0, 1]}}  # fmt: skip
    options = {name: value for name, value in short_options.items() if name not in parameters}
    path = written(tmp_path, parameters, words=words_of(options), metric=TOP1)
    trials, _ = sweep.plan(read_sweep(path), None)
    logs = Path(short_options["run.dir"]) / "sweeps" / "trials"

    logs.mkdir(parents=True)
    os.mkfifo(logs / "trial_001.log")  # what the trial says can then be waited for
    stop_at_first_epoch(path, logs / "trial_001.log")
    (logs / "trial_001.log").unlink()
    position = checkpoint.load(trials[0].folder)[0]["position"]
    assert position != [4, 0] and not sweep.finished(trials[0])
    assert not trials[1].folder.exists(), "nothing was started after the signal"

    assert command.main([str(path), "--jobs", "2", "--count", "3"]) == 1
    said = capsys.readouterr().out
    assert all(f"trial {number}/3 started: data.fold={number // 3}" in said for number in (1, 2, 3))
    assert [number for number in (1, 2, 3) if f"trial {number}/3 failed with exit code 2" in said] == [2]
    assert "trial_002.log: error: model.name=resnet9" in said
    assert "resuming after" in (logs / "trial_001.log").read_text()
    summaries = {trial.number: sweep.finished(trial) for trial in trials}
    assert [number for number, summary in summaries.items() if summary] == [1, 3]
    assert tuple(summaries[1]["last"]) == sweep.METRICS
    top1 = [summaries[number]["last"]["test/top1"] for number in (1, 3)]
    assert "trial 3/3 finished after" in said and f"test/top1 last {top1[1]:.4g}" in said
    assert re.search(rf"resnet8 +│ +2 +│ +{re.escape(sweep.mean_and_std(top1))} ", said) and "0 of 1" in said

    newest = trials[0].folder / "checkpoint.pt"
    before = newest.stat().st_mtime_ns
    with pytest.raises(SystemExit) as refused:  # one fold of two is no cross-validation
        command.main([str(path), "--count", "1", "--select"])
    said = capsys.readouterr()
    assert "trial 1/1 was finished before" in said.out and "started" not in said.out
    assert refused.value.code == 2 and "no setting has test/top1 of all its trials and folds" in said.err
    assert command.main([str(path), "--count", "3", "--select"]) == 1
    said = capsys.readouterr().out
    assert "trial 3/3 was finished before" in said and "1 settings lack trials or folds" in said
    chosen = sweep.trainer_config(shlex.split(said.strip().splitlines()[-1]))
    assert (chosen.model.name, chosen.data.folds) == ("resnet8", 0)
    assert newest.stat().st_mtime_ns == before

    assert "719 of 1,438 training images are held out" in (logs / "trial_003.log").read_text()
    environment = trials[0].folder / "environment.json"
    recorded = json.loads(environment.read_text())
    for changed in ({"data": ["0" * 64, "0" * 64]}, {"teacher": "0" * 64}):  # the files were written anew since
        environment.write_text(json.dumps(recorded | changed))
        assert not sweep.finished(trials[0])
    environment.write_text(json.dumps(recorded))

    kept = load_file(trials[0].folder / "soft_labels" / "stage_01.safetensors")
    assert kept["count"].sum() == 719, "every training image was counted once, also across the stop"
    again = evaluate.evaluate_run(trials[2].folder, {})
    assert again.pop("batches") == 0
    assert again == {key: summaries[3]["last"][key] for key in again}


def stop_at_first_epoch(path, log):
    """Runs the sweep until its first trial says that an epoch is over; both must then end by themselves."""
    process = subprocess.Popen([sys.executable, "-m", "fastlsr.sweep", str(path)], stdout=subprocess.PIPE, text=True)
    guard = threading.Timer(LIMIT_SECONDS, process.kill)
    guard.start()
    try:
        with open(log) as lines:
            for line in lines:
                if line.startswith("epoch 1/4"):
                    process.send_signal(signal.SIGTERM)
        said, _ = process.communicate()
    finally:
        guard.cancel()
    assert process.returncode == 143, said
    assert "trial 1/4 stopped; the same sweep goes on with it" in said and "trial 2/4" not in said


class Server(ThreadingHTTPServer):
    """What `wandb agent` needs of W&B's server: one sweep whose one trial has the values `values`."""

    daemon_threads = True

    def __init__(self, config, values):
        super().__init__(("127.0.0.1", 0), Handler)
        self.config, self.values, self.asked, self.handed_out = config, values, [], False

    def answer(self, query):
        """The data that a GraphQL query gets; any that is not known gets none."""
        name = re.match(r"\s*(?:query|mutation)\s+(\w+)", query)
        self.asked.append(name[1] if name else "")
        if "SweepWithRuns" in query:
            return {"project": {"sweep": {"id": "s", "name": "s", "method": "grid", "state": "RUNNING",
                                          "config": self.config, "runs": {"edges": []}}}}  # fmt: skip
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "Heartbeat" in query:
            args = {name: {"value": value} for name, value in self.values.items()}
            run = {"type": "run", "run_id": "trial1", "program": "fastlsr/train.py", "args": args}
            commands = [] if self.handed_out else [run]
            self.handed_out = True
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {"viewer": {"id": "v", "entity": "e", "username": "e", "flags": "{}", "teams": {"edges": []}}}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        query = json.loads(body).get("query", "") if self.path.endswith("/graphql") else ""
        answer = json.dumps({"data": self.server.answer(query)} if query else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


def test_w_and_b_s_own_agent_starts_the_same_command_in_the_same_folder(short_options, tmp_path):
    agent = Path(sys.executable).parent / "wandb"
    if not agent.exists():
        pytest.skip("the wandb command is not installed")
    constant = {**short_options, "train.epochs": 1, "method.name": "tsla", "log.wandb": "offline"}
    parameters = {name: {"value": value} for name, value in constant.items()}
    parameters |= {"data.drop_last": {"value": True}, "method.smoothing": {"values": [0.25, 0.5]}}
    path = written(tmp_path, parameters, metric=TOP1)
    trials, _ = sweep.plan(read_sweep(path), None)
    server = Server(path.read_text(), trials[0].values)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    variables |= {"WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "a" * 40,
                  "WANDB_DIR": str(tmp_path), "HOME": str(tmp_path),
                  "PATH": f"{agent.parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    try:
        done = subprocess.run([agent, "agent", "--count", "1", "e/p/s"], env=variables, cwd=tmp_path, text=True,
                              capture_output=True, timeout=LIMIT_SECONDS)  # fmt: skip
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.returncode == 0, done.stderr
    assert {"SweepWithRuns", "CreateAgent", "Heartbeat"} <= set(server.asked)
    assert sweep.finished(trials[0]), done.stdout + done.stderr
    assert load(trials[0].folder / "config.yaml") == trials[0].config
    command = json.loads((trials[0].folder / "environment.json").read_text())["command"]
    assert command[1:] == trials[0].command[4:]
    assert list(trials[0].folder.glob("wandb/offline-run-*-trial1")), "W&B's run is the agent's"
