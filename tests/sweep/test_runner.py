"""Whole sweeps: their processes, on real digits, and W&B's own agent on the same file."""

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
from safetensors.torch import load_file

from fastlsr import evaluate
from fastlsr.config import load
from fastlsr.engine import checkpoint
from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.runs import keys
from fastlsr.sweep import __main__ as command
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.plan import finished_run, on_ranks, plan_trials, trainer_config
from fastlsr.sweep.runner import check_devices, cuda_devices, last_line_of_log, trial_environment
from fastlsr.trials import mean_and_std

LIMIT_SECONDS = 120
TOP1 = {"name": "test/top1", "goal": "maximize"}


def test_simultaneous_trials_share_the_cores_and_take_the_devices_in_turn(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    made = [trial_environment(load(), slot, 3, ["4", "5"]) for slot in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["4", "5", "4"]
    assert {(one["OMP_NUM_THREADS"], one["NUMBA_NUM_THREADS"]) for one in made} == {("2", "2")}
    assert trial_environment(load(), 0, 9, [])["OMP_NUM_THREADS"] == "1"
    alone = trial_environment(load(), 0, 1, ["4", "5"])
    assert not {"OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"} & set(alone)
    for device in ("cpu", "cuda:1"):
        chosen = load(overrides={"train.device": device})
        assert "CUDA_VISIBLE_DEVICES" not in trial_environment(chosen, 0, 2, ["4", "5"])


def test_simultaneous_trials_of_several_ranks_have_cores_and_devices_of_their_own(monkeypatch):
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    made = [trial_environment(load(), slot, 2, list("4567"), 2) for slot in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in made] == ["4,5", "6,7"]
    assert {(one["OMP_NUM_THREADS"], one["NUMBA_NUM_THREADS"]) for one in made} == {("3", "6")}
    check_devices(list("4567"), 2, 2)
    check_devices([], 2, 2)
    with pytest.raises(InputError, match="--jobs=3, --devices-per-trial=2 need 6 of 4 devices"):
        check_devices(list("4567"), 3, 2)


def test_trials_run_on_several_ranks_by_the_sweep_or_by_their_own_command(short_options, sweep_file, tmp_path, capsys):
    options = {**short_options, "model.name": "resnet8", "run.dir": str(tmp_path)}
    batch = int(options.pop("data.batch_size"))
    path = sweep_file({"data.batch_size": {"values": [batch, batch + 1]}}, words=words_of(options))
    assert command.main([str(path), "--devices-per-trial=2"]) == 1
    assert f"trial 2 failed: data.batch_size={batch + 1} does not divide by 2 ranks" in capsys.readouterr().out
    (trial, *_), _ = plan_trials(read_sweep(path), None, ranks=2)
    assert finished_run(trial)[0] and trial.folder.read_environment()["ranks"] == [2]
    torchrun = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "fastlsr.train"]
    own = sweep_file({"data.batch_size": {"value": batch}}, command=[*torchrun, *words_of(options), "${args}"])
    (trial,), _ = plan_trials(read_sweep(own), None, ranks=2)
    assert trial.command[:5] == torchrun and finished_run(trial)[0]


@pytest.mark.parametrize("trainer", ["-m fastlsr.train --a=1", "fastlsr/train.py --a=1"])
def test_python_s_options_stay_python_s_where_torchrun_starts_the_trainer(trainer):
    words = trainer.split()
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    started = on_ranks(["env", "python", "-u", *words], 2)
    assert started == ["env", "python", "-u", *torchrun, *words]
    assert on_ranks(started, 2) == started and on_ranks(["python", *words], 1) == ["python", *words]
    with pytest.raises(InputError, match="starts no python"):
        on_ranks(["sh", *words], 2)


def test_visible_devices_are_shared_out_by_their_names(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-8f")
    assert cuda_devices() == ["3", "GPU-8f"]


def test_a_sweep_that_is_running_is_not_started_twice(tmp_path):
    with sole_use(tmp_path / "one", "is still running"), sole_use(tmp_path / "two", "is still running"):
        again = sole_use(tmp_path / "one", "is still running")
        with pytest.raises(InputError, match="is still running"):
            again.__enter__()
    with sole_use(tmp_path / "one", "is still running"):
        pass


def words_that_run(script):
    """A command that is read as the trainer's, and runs a line of shell."""
    return ["sh", "-c", script, "fastlsr.train", "${args}"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            words_that_run("echo loading; echo; kill -KILL $$"),
            "failed with signal SIGKILL; the last line of LOG: loading",
        ),
        (words_that_run("kill -40 $$"), "failed with signal 40; the last line of LOG: (empty)"),
        (words_that_run("echo half a line >&2; exit 3"), "failed with exit code 3; the last line of LOG: half a line"),
        (words_that_run("exit 0"), "failed with exit code 0; the last line of LOG: (empty)"),
        (
            words_that_run("mkdir -p RUN && echo '{' > RUN/summary.json"),
            "failed: RUN/summary.json is damaged: Expecting property name",
        ),
        (["no_such_program", "fastlsr.train", "${args}"], "could not start: [Errno 2] No such file or directory"),
    ],
    ids=["killed", "a real-time signal", "exit code", "nothing done", "damaged", "no program"],
)
def test_a_trial_that_fails_is_one_clear_line_and_the_next_one_runs(sweep_file, tmp_path, capsys, words, line):
    parameters = {"run.dir": {"value": str(tmp_path)}, "train.seed": {"values": [1, 2]}}
    (first, _), _ = plan_trials(read_sweep(sweep_file(parameters, command=words)), None)
    folder = str(first.folder.path)
    path = sweep_file(parameters, command=[word.replace("RUN", folder) for word in words])
    assert command.main([str(path)]) == 1
    said = capsys.readouterr()
    line = line.replace("RUN", folder).replace("LOG", str(tmp_path / "sweeps/trials/trial_001.log"))
    assert any(each.startswith(f"trial 1/2 {line}") for each in said.out.splitlines()), said.out
    assert "trial 2/2 started" in said.out and said.err == ""


def test_a_log_that_cannot_be_written_fails_its_trial_alone(sweep_file, tmp_path, capsys):
    (tmp_path / "sweeps" / "trials" / "trial_001.log").mkdir(parents=True)
    path = sweep_file({"run.dir": {"value": str(tmp_path)}, "train.seed": {"values": [1, 2]}},
                      command=words_that_run("exit 3"))  # fmt: skip
    assert command.main([str(path)]) == 1
    said = capsys.readouterr().out
    assert (
        "trial 1/2 could not start: [Errno 21] Is a directory" in said and "trial 2/2 failed with exit code 3" in said
    )


def test_trials_are_stopped_where_nobody_reads_the_sweep_s_lines_any_more(sweep_file, tmp_path):
    """As in `... | head`. A trial that were left behind would hold the lock of the sweep's folder."""
    command = ["sh", "-c", f'exec cat "{tmp_path}/$1"', "fastlsr.train", "${args}"]
    parameters = {"train.seed": {"values": [1, 2]}}
    path = sweep_file(parameters, command=command)
    for seed in (1, 2):
        os.mkfifo(tmp_path / f"--train.seed={seed}")
    process = subprocess.Popen([sys.executable, "-m", "fastlsr.sweep", str(path), "--jobs=2"], text=True, cwd=tmp_path,
                               stdout=subprocess.PIPE, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})  # fmt: skip
    guard = threading.Timer(LIMIT_SECONDS, process.kill)
    guard.start()
    try:
        lines = [process.stdout.readline() for _ in range(2)]
        process.stdout.close()
        (tmp_path / "--train.seed=1").write_text("this trial ends")
        assert process.wait() == 141
    finally:
        guard.cancel()
    assert all("started" in line for line in lines)
    with sole_use(tmp_path / "runs" / "sweeps" / "trials", "a trial is still running"):
        pass


def test_the_last_line_of_a_long_log_is_found(tmp_path):
    log = tmp_path / "log"
    log.write_bytes(b"x" * 10_000 + b"\n\xff the end \n \n")
    assert last_line_of_log(log) == "\ufffd the end"


@pytest.fixture(scope="module")
def short_options(digits_dir, tmp_path_factory):
    """Options of a run of seconds on the digits, and the folder of its runs."""
    options = {"data.dataset": "digits", "data.dir": str(digits_dir), "data.batch_size": 128, "data.flip": "false",
               "model.name": "resnet8", "train.epochs": 4, "train.device": "cpu", "train.precision": "fp32",
               "train.compile": "off", "log.wandb": "disabled"}  # fmt: skip
    return options | {"run.dir": str(tmp_path_factory.mktemp("sweep") / "runs")}


def words_of(options):
    return [f"--{name}={value}" for name, value in options.items()]


def test_a_sweep_is_stopped_resumed_goes_on_after_failures_and_skips_what_is_finished(
    short_options, sweep_file, capsys
):
    parameters = {"method.name": {"value": "colam"}, "method.stages": {"value": 1},
                  "model.name": {"values": ["resnet8", "resnet9"]}, "data.folds": {"value": 2},
                  "data.fold": {"values": [0, 1]}}  # fmt: skip
    options = {name: value for name, value in short_options.items() if name not in parameters}
    path = sweep_file(parameters, words=words_of(options), metric=TOP1)
    trials, _ = plan_trials(read_sweep(path), None)
    logs = Path(short_options["run.dir"]) / "sweeps" / "trials"

    logs.mkdir(parents=True)
    os.mkfifo(logs / "trial_001.log")  # the trial's lines can then be waited for
    stop_at_first_epoch(path, logs / "trial_001.log")
    (logs / "trial_001.log").unlink()
    position = checkpoint.load_newest(trials[0].folder.path)[0]["position"]
    assert position != [4, 0] and not finished_run(trials[0])[0]
    assert not trials[1].folder.path.exists(), "nothing was started after the signal"

    assert command.main([str(path), "--jobs", "2", "--count", "3"]) == 1
    said = capsys.readouterr().out
    assert all(f"trial {number}/3 started: data.fold={number // 3}" in said for number in (1, 2, 3))
    assert [number for number in (1, 2, 3) if f"trial {number}/3 failed with exit code 2" in said] == [2]
    assert "trial_002.log: error: model.name=resnet9" in said
    assert "resuming after" in (logs / "trial_001.log").read_text()
    summaries = {trial.number: finished_run(trial)[0] for trial in trials}
    assert [number for number, summary in summaries.items() if summary] == [1, 3]
    assert tuple(summaries[1]["last"]) == tuple(key for key in keys() if not key.startswith("val/"))
    top1 = [summaries[number]["last"]["test/top1"] for number in (1, 3)]
    assert "trial 3/3 finished after" in said and f"test/top1 last {top1[1]:.4g}" in said
    assert re.search(rf"resnet8 +│ +2 +│ +{re.escape(mean_and_std(top1))} ", said) and "0 of 1" in said

    newest = trials[0].folder.path / "checkpoint.pt"
    before = newest.stat().st_mtime_ns
    with pytest.raises(SystemExit) as exit:  # one fold of two is no cross-validation
        command.main([str(path), "--count", "1", "--select"])
    said = capsys.readouterr()
    assert "trial 1/1 was finished before" in said.out and "started" not in said.out
    assert exit.value.code == 2 and "no setting has test/top1 of all its trials and folds" in said.err
    assert command.main([str(path), "--count", "3", "--select"]) == 1
    said = capsys.readouterr().out
    assert "trial 3/3 was finished before" in said and "1 settings lack trials or folds" in said
    chosen = trainer_config(shlex.split(said.strip().splitlines()[-1]))
    assert (chosen.model.name, chosen.data.folds) == ("resnet8", 0)
    assert newest.stat().st_mtime_ns == before

    assert "719 of 1,438 training images are held out" in (logs / "trial_003.log").read_text()
    environment = trials[0].folder.path / "environment.json"
    recorded = json.loads(environment.read_text())
    for changed in ({"data": ["0" * 64, "0" * 64]}, {"teacher": "0" * 64}):  # the files were written anew since
        environment.write_text(json.dumps(recorded | changed))
        assert not finished_run(trials[0])[0]
    environment.write_text(json.dumps(recorded))

    kept = load_file(trials[0].folder.path / "soft_labels" / "stage_01.safetensors")
    assert kept["count"].sum() == 719, "every training image was counted once, also across the stop"
    again = evaluate.evaluate_run(trials[2].folder.path, {})
    assert again.pop("batches") == 0
    assert again == {key: summaries[3]["last"][key] for key in again}


def stop_at_first_epoch(path, log):
    """Runs the sweep until its first trial prints that an epoch is over; both must then end by themselves."""
    command = [sys.executable, "-m", "fastlsr.sweep", str(path), "--jobs=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
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


def test_w_and_b_s_own_agent_starts_the_same_command_in_the_same_folder(short_options, sweep_file, tmp_path):
    agent = Path(sys.executable).parent / "wandb"
    if not agent.exists():
        pytest.skip("the wandb command is not installed")
    constant = {**short_options, "train.epochs": 1, "method.name": "tsla", "log.wandb": "offline"}
    parameters = {name: {"value": value} for name, value in constant.items()}
    parameters |= {"data.drop_last": {"value": True}, "method.smoothing": {"values": [0.25, 0.5]}}
    path = sweep_file(parameters, metric=TOP1)
    trials, _ = plan_trials(read_sweep(path), None)
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
    assert finished_run(trials[0])[0], done.stdout + done.stderr
    in_the_sweep_s_project = replace(trials[0].config, log=replace(trials[0].config.log, project="p"))
    assert load(trials[0].folder.path / "config.yaml") == in_the_sweep_s_project
    command = json.loads((trials[0].folder.path / "environment.json").read_text())["command"]
    assert command[3:] == trials[0].command[4:]
    assert list(trials[0].folder.path.glob("wandb/offline-run-*-trial1")), "W&B's run is the agent's"
