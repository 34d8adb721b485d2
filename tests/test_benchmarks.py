"""Every benchmark runs to its end at tiny sizes and answers with its figures; `run` puts them into one report."""

import ast
import json
import math
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import colam
import growth
import imagenet_plan
import loader
import loss
import numpy as np
import pytest
import run
import shared_cores
import step
import timing
import trainer
import writer

TINY = {
    writer: ["--images=8", "--arrays=64", "--workers=1", "--rounds=1"],
    loss: ["--batch=16", "--rounds=1"],
    colam: ["--images=256", "--rounds=1"],
    step: ["--images=256", "--epochs=3"],
}


@pytest.fixture
def answer(monkeypatch, capsys):
    """The JSON object on the last line of what a benchmark prints, for some options."""

    def answer(benchmark, options):
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *options])
        benchmark.main()
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return answer


@pytest.mark.parametrize("benchmark", TINY, ids=lambda benchmark: benchmark.__name__)
def test_a_benchmark_answers_with_every_figure_that_has_a_bar(benchmark, answer):
    figures = answer(benchmark, TINY[benchmark])
    assert all(math.isfinite(figures[key]) for key in figures["bars"])
    assert {"device", "python", "versions", "commit"} <= set(figures)


def test_what_a_gpu_would_launch_is_counted_without_one():
    """The loss stays one pass and few launches; in a process of its own, since it pretends to have a GPU."""
    pytest.importorskip("triton")
    program = Path(timing.__file__).with_name("codegen.py")
    command = [sys.executable, program, "--tiny", "--models=resnet8", "--methods=colam"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    (table,) = json.loads(done.stdout.splitlines()[-1])["tables"]
    found = {row["step"]: row for row in table}
    for name in (f"loss {size}, {table} table" for size in ("64x1000", "8x4096") for table in ("a", "no")):
        assert int(found[name]["triton"]) <= 3 and (found[name]["cudnn"], found[name]["passes"]) == ("0", "1")
    parts = [found[f"resnet8, colam, {graph}"] for graph in ("forward", "backward")]
    assert [int(part["cudnn"]) for part in parts] == [8, 9], "7 convolutions and a product; an input has no gradient"
    assert int(found["resnet8, colam"]["triton"]) == sum(int(part["triton"]) for part in parts)


def test_the_loader_is_held_against_the_others_on_photographs():
    """In a process of its own, for FFCV's operations are compiled in it; DALI is no requirement."""
    command = [sys.executable, loader.__file__, "--tiny", "--rounds=1", "--parts=photographs"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads(done.stdout.splitlines()[-1])
    others = ("jpeg_vs_torchvision", "jpeg_vs_decode", "raw_vs_torchvision", "raw_vs_ffcv")
    assert all(math.isfinite(figures[key]) for key in others)


def test_a_ratio_is_that_of_medians_and_its_spread_that_of_rounds():
    report = timing.Report({})
    report.ratio("key", [2.0, 8.0, 4.0], [1.0, 2.0, 8.0])
    assert report._ratios["key"] == 2.0
    assert report._spread["key"] == [0.5, 4.0]


def test_contenders_take_turns_and_none_always_follows_the_same_other():
    order = []
    tasks = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = timing.in_turns(tasks, rounds=4, warm=0)
    rounds = ["".join(order[at : at + 3]) for at in range(0, 12, 3)]
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert {each[each.index("a") - 1] for each in rounds if each[0] != "a"} == {"b", "c"}
    assert all(len(taken) == 4 for taken in seconds.values())


def test_a_step_of_the_plan_takes_the_longest_of_its_parts():
    """2 GPUs send their gradients once, many twice; a larger batch, a slower network or a slower host can bound it."""
    assert imagenet_plan.ring(100, 1) == 0 and imagenet_plan.ring(100, 2) == 100 and imagenet_plan.ring(100, 4) == 150
    assumed = imagenet_plan.Assumed(gpu_speed=1000, least_step=0.02, inside=1e9, between=1e8, per_node=8)
    assert imagenet_plan.step_seconds(8, 8000, 10**6, assumed) == (1.0, "computing")
    assert imagenet_plan.step_seconds(8, 8, 10**6, assumed) == (0.02, "starting kernels")
    seconds, why = imagenet_plan.step_seconds(16, 16, 10**7, assumed)
    assert why == "network" and seconds == pytest.approx(2 * 15 / 16 * 10**7 / 1e8)


STARTS_ANOTHER = """
import signal, subprocess, sys, tempfile, timing
signal.signal(signal.SIGTERM, timing.end_with_descendants)
script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True); input()"
with tempfile.TemporaryDirectory() as folder:
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True,
                             start_new_session=True)
    print(folder, child.pid, child.stdout.readline(), flush=True)
    child.wait()
"""


def test_a_benchmark_that_is_terminated_ends_what_it_has_started_and_removes_its_files():
    """A child in a session of its own, and the child's own child."""
    command = [sys.executable, "-c", STARTS_ANOTHER]
    environment = os.environ | {"PYTHONPATH": str(Path(timing.__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        folder, *started = process.stdout.readline().split()
        assert Path(folder).is_dir() and set(map(int, started)) == set(timing.descendants(process.pid))
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert not Path(folder).exists()
    assert not any(running(int(each)) for each in started)


def running(process):
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_every_benchmark_is_ended_so():
    """Those that are started, by their import of `timing`."""
    for path in Path(timing.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name == "timing.py" or "__main__" not in text:
            continue
        imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
        names = {getattr(node, "module", None) for node in imports}
        names |= {alias.name for node in imports for alias in node.names}
        assert "timing" in names, path


def test_steps_beside_a_neighbour_are_timed_and_it_ends(monkeypatch, capsys):
    started = []
    neighbours = shared_cores.neighbours

    @contextmanager
    def noting(number):
        with neighbours(number) as processes:
            started.extend(processes)
            yield processes

    monkeypatch.setattr(shared_cores, "neighbours", noting)
    monkeypatch.setattr(shared_cores, "TRIES", 1)
    words = ["--batch=8", "--neighbours=0,1", "--rounds=1", "--steps=1"]
    monkeypatch.setattr(sys, "argv", ["shared_cores", *words])
    shared_cores.main()
    times, figures = json.loads(capsys.readouterr().out.splitlines()[-1])["tables"]
    assert [row["neighbours"] for row in times] == ["0", "1"] and len(started) == 1 and not running(started[0])
    assert {row["figure"] for row in figures} >= {"in parts / whole, quiet", "in parts, beside 1 / quiet"}


def test_tables_are_printed_and_given_as_json(capsys):
    timing.print_tables([{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], [])
    said = capsys.readouterr().out
    assert "| a | b |\n| ---: | ---: |\n| 1 | 2 |\n| 3 | 4 |" in said
    assert json.loads(said.splitlines()[-1])["tables"] == [[{"a": "1", "b": "2"}, {"a": "3", "b": "4"}], []]


def test_a_contender_may_time_itself():
    assert timing.in_turns({"own": lambda: 7.0}, rounds=2) == {"own": [7.0, 7.0]}


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    sizes = [10, 100, 1000]
    assert growth.exponent(sizes, [3 * size**power for size in sizes]) == pytest.approx(power)


def test_the_growth_of_a_run_is_watched_epoch_by_epoch(tmp_path):
    ends, memory = growth.watched_run(growth.data_set(tmp_path, growth.BATCH), 10)
    assert len(ends) == 10 and np.all(np.diff(ends) > 0)
    assert list(memory) == [10]


@pytest.mark.parametrize("loop", ["plain", "timm"])
def test_the_loops_that_the_trainer_is_held_against_train(loop, tmp_path):
    trainer.write_data(None, tmp_path, {"train": 128, "test": 64})
    trainer.use_files_without_checksums()
    train, finish = getattr(trainer, loop)(trainer.Job(tmp_path, "resnet8", 64), tmp_path)
    assert sum(1 for _ in train()) == 2
    finish()
    assert list(tmp_path.rglob("*.pt*")) + list(tmp_path.rglob("*.tar")), "no checkpoint"


@pytest.fixture
def reported(monkeypatch, tmp_path):
    """(exit code, report, figures) of `run` over small scripts in the place of benchmarks."""

    def reported(scripts, *options):
        for name, script in scripts.items():
            Path(tmp_path, f"{name}.py").write_text(script, encoding="utf-8")
        monkeypatch.setattr(run, "FOLDER", tmp_path)
        monkeypatch.setattr(run, "BENCHMARKS", {name: [] for name in scripts})
        monkeypatch.setattr(sys, "argv", ["run", f"--reports={tmp_path / 'reports'}", *options])
        code = run.main()
        (text,), (figures,) = (list((tmp_path / "reports").glob(f"*.{kind}")) for kind in ("md", "json"))
        return code, text.read_text(encoding="utf-8"), json.loads(figures.read_text(encoding="utf-8"))

    return reported


GOOD = """print("a table")
print('{"fast": 3, "slow": 1.5, "spread": {"fast": [2, 4]}, "bars": {"fast": ">= 2", "slow": "<= 1"}, "work": {}, '
      '"device": "here", "commit": "c0ffee"}')
"""


def test_the_report_holds_what_was_measured_against_the_bars(reported):
    code, text, figures = reported({"good": GOOD})
    assert code == 0
    assert "| good | `fast` | 3 | 2 to 4 | >= 2 |" in text
    assert "| good | `slow` | 1.5 |  | <= 1, **not met** |" in text
    assert "a table" in text and figures["good"]["fast"] == 3


def test_a_benchmark_that_fails_is_in_the_report_and_the_rest_goes_on(reported):
    code, text, figures = reported({"bad": "raise SystemExit('no disk')", "good": GOOD})
    assert code == 1
    assert "no disk" in text and "It failed." in text
    assert "fast" in figures["good"] and "fast" not in figures["bad"]


def test_what_is_run_again_on_the_same_day_takes_its_former_part_and_leaves_the_others(reported, tmp_path):
    reported({"good": GOOD, "other": GOOD.replace("3", "5")})
    (report,) = (tmp_path / "reports").glob("*.md")
    report.write_text(report.read_text() + f"\n{run.REASONS}\n\nbecause\n")
    code, text, figures = reported({"good": GOOD.replace("3", "4"), "other": GOOD}, "--only=good")
    assert code == 0
    assert figures["good"]["fast"] == 4 and figures["other"]["fast"] == 5
    assert "| good | `fast` | 4 |" in text and "| other | `fast` | 5 |" in text
    assert text.endswith(f"\n{run.REASONS}\n\nbecause\n")


def test_one_that_does_not_end_is_given_up(reported, monkeypatch):
    monkeypatch.setattr(run, "MOST_SECONDS", 0.5)
    code, text, _ = reported({"hung": "import time; time.sleep(60)"})
    assert code == 1 and "not done after 0.5 s" in text


def test_an_unknown_name_is_an_error(reported):
    with pytest.raises(SystemExit) as refused:
        reported({"good": GOOD}, "--only=quick")
    assert refused.value.code == 2
