"""Runs under torchrun: nodes, stops, resuming on fewer ranks, restarts, and ranks that die."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastlsr import train
from fastlsr.engine import checkpoint
from fastlsr.runs import RunFolder

pytestmark = pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
LIMIT_SECONDS = 180
END_SECONDS = 30  # after which a run must have ended of which a rank has died

# `python -m fastlsr.train`, in which one rank kills itself in the second epoch where it is told to, in the ranks' first
# life: in the 10th step; where the others add up the class means; where they evaluate; and over half a checkpoint.
DYING = """
import os, pathlib, signal, sys
from fastlsr.engine import checkpoint, session, step
from fastlsr.labels import class_means
from fastlsr.train import main

PLACES = {"step": (step.TrainStep, "update", 1, 10), "class means": (class_means.ClassMeans, "stop", 1, 2),
          "evaluation": (session, "evaluate", 1, 2), "writing": (checkpoint, "replace_file", 0, 2)}
where = sys.argv.pop(1)
owner, name, rank, last = PLACES[where]
former, calls = getattr(owner, name), 0

def half(path):
    path.write_bytes(b"PK half of it")
    os.kill(os.getpid(), signal.SIGKILL)

def die(*arguments, **options):
    global calls
    calls += 1
    if calls == last:
        if where == "writing":
            return former(arguments[0], half)
        os.kill(os.getpid(), signal.SIGKILL)
    return former(*arguments, **options)

first_life = pathlib.Path(__file__).with_suffix(".begun")
if int(os.environ["RANK"]) == rank and not first_life.exists():
    first_life.touch()
    setattr(owner, name, die)
sys.exit(main())
"""


def words_of(digits_dir, folder, **more):
    given = {"data.dataset": "digits", "data.dir": digits_dir, "data.batch_size": 200, "model.name": "resnet8",
             "train.epochs": 4, "train.compile": "off", "train.precision": "fp32", "log.wandb": "disabled",
             "method.name": "colam", "method.stages": 4, "run.dir": folder, "run.name": "run", **more}  # fmt: skip
    return [f"--{name.replace('__', '.')}={value}" for name, value in given.items()]


def torchrun(*words, ranks=2):
    """torchrun, started; its output is one stream."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def ended(process):
    """(exit code, output)."""
    try:
        said, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)  # torchrun ends its ranks
        raise
    return process.returncode, said


def rows_of(folder):
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in ("seconds", "images_per_second",
             "data_wait", "peak_memory_bytes")} for line in lines]  # fmt: skip


def on_two_nodes(*words):
    """What two of torchrun's agents with a rank each, which meet at an address, print when they have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = f"--rdzv-endpoint=127.0.0.1:{free.getsockname()[1]}"
    words = ["--nnodes=2", "--rdzv-backend=c10d", meeting, "--local-addr=127.0.0.1", *words]
    nodes = [torchrun(*words, ranks=1) for _ in range(2)]
    said = [ended(node) for node in nodes]
    assert [code for code, _ in said] == [0, 0], said
    return [text for _, text in said]


@pytest.fixture(scope="module")
def uninterrupted(digits_dir, tmp_path_factory):
    """The rows of a run on two nodes."""
    folder = tmp_path_factory.mktemp("two nodes")
    said = on_two_nodes("-m", "fastlsr.train", *words_of(digits_dir, folder, **{"log.wandb": "offline"}))
    assert sum(text.count("epoch 4/4") for text in said) == 1, "the main rank alone prints"
    assert len(list(folder.glob("run/wandb/offline-run-*"))) == 1, "and talks to W&B"
    return rows_of(folder)


def test_a_run_that_is_stopped_on_two_ranks_goes_on_to_the_same_bits_on_as_many_and_on_one(
    uninterrupted, digits_dir, tmp_path, capsys
):
    words = words_of(digits_dir, tmp_path)
    process = torchrun("--max-restarts=1", "-m", "fastlsr.train", *words)
    seen = ""
    while "epoch 1/4" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    _, rank = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for _ in range(2):  # as where Slurm signals each process, and torchrun passes its own on
        os.kill(int(rank), signal.SIGTERM)
    code, said = ended(process)
    assert code != 0 and "stopped by SIGTERM; the same command goes on" in said
    assert "torchrun has started again what was stopped" in said
    position = checkpoint.load_newest(tmp_path / "run")[0]["position"]
    assert position < [4, 0]
    code, said = ended(torchrun("-m", "fastlsr.train", *words))
    assert code == 0 and rows_of(tmp_path) == uninterrupted
    assert RunFolder(tmp_path / "run").read_environment()["ranks"] == [2, 2]
    assert train.main(words) == 0  # on one rank: it is finished
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["class means", "evaluation", "writing"])
def test_a_rank_that_is_killed_ends_all_and_leaves_a_good_checkpoint(where, digits_dir, tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    process = torchrun(tmp_path / "dying.py", where, *words_of(digits_dir, tmp_path))
    seen = ""
    while "epoch 1/4" not in seen:
        line = process.stdout.readline()
        assert line, seen
        seen += line
    start = time.monotonic()
    code, said = ended(process)
    assert code == 1 and "(SIGKILL)" in said and time.monotonic() - start < END_SECONDS
    assert said.count("failed: another rank has ended") <= 1
    state, remark = checkpoint.load_newest(tmp_path / "run")
    assert state["position"] == [1, 0] and not remark


def test_ranks_that_torchrun_starts_again_on_two_nodes_go_on_from_the_checkpoint(uninterrupted, digits_dir, tmp_path):
    """Each node counts its own restarts: the second one's is 1, the first one's stays 0."""
    (tmp_path / "dying.py").write_text(DYING)
    words = words_of(digits_dir, tmp_path, run__resume="never")
    said = on_two_nodes("--max-restarts=1", tmp_path / "dying.py", "step", *words)
    assert re.search(r"resuming after \d epochs", "".join(said)) and rows_of(tmp_path) == uninterrupted


def test_never_resuming_is_meant_of_torchrun_s_first_start(digits_dir, tmp_path, monkeypatch, capsys):
    """torchrun's store, which tells a restart from a new start, is this process's."""
    words = words_of(digits_dir, tmp_path, train__epochs=1, method__stages=1, run__resume="never")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    assert [train.main(words) for _ in range(2)] == [0, 0]  # the second is a restart
    new_store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_PORT", str(new_store.port))
    with pytest.raises(SystemExit) as refused:
        train.main(words)
    assert refused.value.code == 2 and "run.resume=never" in capsys.readouterr().err
