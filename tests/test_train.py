"""Whole runs on real digits: what they leave behind, and that stopping, killing and resuming changes nothing."""

import json
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastlsr import evaluate, train
from fastlsr.config import load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.soft_labels import class_labels
from fastlsr.engine import checkpoint, loop
from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.files import sole_use
from fastlsr.labels.methods import METHODS
from fastlsr.logits import read_logits
from fastlsr.metrics import METRICS
from fastlsr.runs import RunFolder

TIMES = {"images_per_second", "data_wait", "seconds", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def command(digits_dir):
    """Options of a short run on the digits, with more of them."""
    base = {
        "data.dataset": "digits", "data.dir": digits_dir, "data.batch_size": 256, "data.flip": "false",
        "model.name": "resnet8", "optim.lr": 0.05, "train.epochs": 4, "train.device": "cpu", "train.precision": "fp32",
        "train.compile": "off", "log.wandb": "disabled", "optim.schedule": "constant",
    }  # fmt: skip

    def words(folder, **options):
        chosen = base | {"run.dir": folder.parent, "run.name": folder.name}
        chosen |= {key.replace("__", "."): value for key, value in options.items()}
        return [f"--{key}={value}" for key, value in chosen.items()]

    return words


def rows(folder):
    """The rows of a run without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


def weights(folder):
    return checkpoint.load_newest(folder)[0]["model"]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def colam_run(command, tmp_path_factory):
    """An uninterrupted COLAM run of two stages that uses all there is to restore."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    options = {"method__name": "colam", "method__stages": 2, "method__temperature": 2.0, "train__ema": 0.9,
               "optim__accumulate": 2, "optim__warmup_epochs": 1, "run__keep": 3}  # fmt: skip
    assert train.main(command(folder, **options)) == 0
    return folder, options


def test_a_run_leaves_what_design_names(colam_run):
    folder, _ = colam_run
    names = {
        "logits",
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "checkpoint.pt",
        "environment.json",
        "soft_labels",
    }
    assert names <= {path.name for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["last"]["epoch"] == 4
    assert summary["best"]["test/top1"] == max(row["test/top1"] for row in rows(folder))
    assert {*TIMES, "epoch", "phase", "lr", "train/loss", "train/top1", "test/loss", "test/nll", "test/top1",
            "test/top5", "test/ece", "target_entropy"} == set(summary["last"])  # fmt: skip
    assert load(folder / "config.yaml").method.name == "colam"


def test_a_stage_is_a_teacher_for_its_own_data_alone(colam_run, digits_dir, command, tmp_path, capsys):
    path = colam_run[0] / "soft_labels" / "stage_01.safetensors"
    manifest = read_manifest(digits_dir / "digits_train.beton")
    assert class_labels(path, manifest).shape == (10, 10)
    for other in (replace(manifest, digest="0" * 64), replace(manifest, classes=[*manifest.classes[:-1], "other"])):
        with pytest.raises(InputError):
            class_labels(path, other)


def test_each_stage_keeps_soft_labels_whose_rows_sum_to_one(colam_run):
    folder, _ = colam_run
    for stage in (1, 2):
        kept = load_file(folder / "soft_labels" / f"stage_{stage:02d}.safetensors")
        torch.testing.assert_close(kept["soft_labels"].sum(1), torch.ones(10))
        assert kept["count"].sum() == 1438, "every training image was counted once"
    first = load_file(folder / "soft_labels" / "stage_01.safetensors")["soft_labels"]
    entropy = torch.special.entr(first.double()).sum(1)
    assert rows(folder)[0]["target_entropy"] == 0
    assert rows(folder)[2]["target_entropy"] == pytest.approx(entropy.mean().item(), rel=0.02)


def test_evaluate_repeats_the_logged_metrics_exactly(colam_run):
    folder, _ = colam_run
    again = evaluate.evaluate_run(folder, {})
    logged = rows(folder)[-1]
    assert again.pop("batches") == 0
    assert again == {key: logged[key] for key in again} and len(again) == 6


@pytest.mark.parametrize("kind", ["last", "best"])
def test_the_kept_logits_are_those_of_the_last_and_the_best_row(colam_run, digits_dir, kind):
    folder = RunFolder(colam_run[0])
    row, kept = folder.read_summary()[kind], read_logits(folder.logits(kind))
    manifest = read_manifest(digits_dir / "digits_test.beton")
    assert (kept.epoch, kept.data, kept.index.tolist()) == (row["epoch"], manifest.digest, list(range(359)))
    logits, labels = torch.from_numpy(kept.logits).float(), torch.from_numpy(kept.labels)
    for name, metric in METRICS.items():
        tolerance = 3 / 359 if name == "ece" else 1e-3  # float16 moves single samples over the edges of bins
        assert metric.value(metric.sums(logits, labels), 359) == pytest.approx(row[f"test/{name}"], abs=tolerance), name


@pytest.mark.parametrize(("requested", "there"), [("none", set()), ("last", {"last"}), ("best", {"best"})])
def test_a_run_keeps_the_requested_logits_alone(command, tmp_path, requested, there):
    folder = tmp_path / "run"
    assert train.main(command(folder, run__logits=requested, train__epochs=1)) == 0
    assert {path.stem for path in folder.glob("logits/*")} == there
    assert not (folder / "checkpoints").exists()


def test_a_kept_checkpoint_is_opened_as_the_run_was_then(colam_run):
    folder = RunFolder(colam_run[0])
    figures = open_run(folder.kept_checkpoint(3)).evaluate()
    assert {f"test/{name}": value for name, value in figures.items()}.items() <= rows(folder.path)[2].items()


def test_stopping_killing_and_resuming_anywhere_changes_no_bit(colam_run, command, tmp_path):
    whole, options = colam_run
    folder = tmp_path / "stopped"
    words = command(folder, **options)
    assert run_until(words, "epoch 1/4", signal.SIGTERM) == 143
    assert checkpoint.load_newest(folder)[0]["position"] != [4, 0]
    assert run_until(words, "epoch 2/4", signal.SIGINT) == 130
    assert run_until(words, "epoch 3/4", signal.SIGKILL) == -signal.SIGKILL
    assert train.main([*words, "--run.resume=must"]) == 0
    assert rows(folder) == rows(whole)
    assert same(weights(folder), weights(whole))
    state, expected = checkpoint.load_newest(folder)[0], checkpoint.load_newest(whole)[0]
    assert same(state["ema"], expected["ema"]) and same(state["targets"], expected["targets"])
    assert torch.equal(state["learned"], expected["learned"])
    for name in ("logits/last.safetensors", "logits/best.safetensors"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes(), name
    kept = [open_run(RunFolder(each).kept_checkpoint(3)).state for each in (folder, whole)]
    assert all(same(kept[0][name], kept[1][name]) for name in ("model", "ema", "targets"))


def run_until(words, line, number):
    """The exit code of a training process that is sent a signal as soon as it prints `line`."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "fastlsr.train", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    seen = []
    for text in process.stdout:
        seen.append(text)
        if text.startswith(line):
            process.send_signal(number)
            break
    process.stdout.read()
    code = process.wait(timeout=120)
    assert seen[-1].startswith(line), "".join(seen)
    return code


def test_a_damaged_checkpoint_falls_back_and_the_run_ends_the_same(colam_run, command, tmp_path, capsys):
    whole, options = colam_run
    folder = tmp_path / "damaged"
    words = command(folder, **options)
    assert train.main(words) == 0
    (folder / "checkpoint.pt").write_bytes(b"torn")
    assert train.main(words) == 0
    assert "is damaged" in capsys.readouterr().out
    assert rows(folder) == rows(whole) and same(weights(folder), weights(whole))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method__name": "tsla", "method__drop_epoch": 0}, {"method__name": "hard"}),
        ({"method__name": "tsla", "method__drop_epoch": 2}, {"method__name": "lsr"}),
        ({"method__name": "colam", "method__stages": 1}, {"method__name": "hard"}),
        ({"method__name": "lsr", "method__smoothing": 0}, {"method__name": "hard"}),
        ({"data__workers": 2}, {"data__workers": 1}),
    ],
    ids=["tsla(0) is hard", "tsla(E) is lsr", "colam of one stage is hard", "lsr(0) is hard", "any number of workers"],
)
def test_methods_meet_at_their_ends(command, tmp_path, one, other):
    for name, options in (("one", one), ("other", other)):
        assert train.main(command(tmp_path / name, train__epochs=2, **options)) == 0
    assert same(weights(tmp_path / "one"), weights(tmp_path / "other"))
    assert rows(tmp_path / "one") == rows(tmp_path / "other")


@pytest.mark.parametrize(("share", "times"), [(-1, 1), (1, 0)])
def test_a_slow_loader_is_told_of_once_a_run(command, tmp_path, monkeypatch, capsys, share, times):
    monkeypatch.setattr(loop, "WAITING_SHARE", share)
    assert train.main(command(tmp_path / "run", train__epochs=2)) == 0
    assert capsys.readouterr().out.count("waited for data") == times


def test_seeds_and_methods_differ(command, tmp_path):
    runs = [{}, {"train__seed": 1}, {"method__name": "lsr"}]
    for number, options in enumerate(runs):
        assert train.main(command(tmp_path / str(number), train__epochs=1, **options)) == 0
    losses = {rows(tmp_path / str(number))[0]["train/loss"] for number in range(len(runs))}
    assert len(losses) == len(runs)


def test_peers_limit_the_samples_of_each_class(command, tmp_path):
    options = {"method__name": "colam", "method__stages": 1, "train__epochs": 1, "method__peers": 3}
    assert train.main(command(tmp_path / "run", **options)) == 0
    assert load_file(tmp_path / "run" / "soft_labels" / "stage_01.safetensors")["count"].tolist() == [3] * 10


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_checkpoint(command, tmp_path, capsys):
    words = command(tmp_path / "run", optim__lr=1e30, optim__warmup_epochs=0, train__epochs=3)
    good = [*command(tmp_path / "run", train__epochs=3)]
    assert train.main(words) == 1
    said = capsys.readouterr()
    assert "not finite" in said.err and "nan" not in said.out
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    assert train.main(good) == 0, "nothing of the failed run is in the way"


def test_weights_that_break_in_an_epochs_last_step_do_not_become_a_checkpoint(command, tmp_path, capsys):
    words = command(tmp_path / "run", optim__lr=1e30, data__batch_size=1438, train__epochs=2)
    assert train.main(words) == 1
    assert "test/nll is not finite after epoch 1" in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_a_lost_metrics_file_is_written_again_from_the_checkpoint(command, tmp_path):
    words = command(tmp_path / "run", train__epochs=2)
    assert train.main(words) == 0
    before = rows(tmp_path / "run")
    for name in ("summary.json", "metrics.jsonl"):
        (tmp_path / "run" / name).unlink()
    assert train.main(words) == 0
    assert rows(tmp_path / "run") == before and (tmp_path / "run" / "summary.json").exists()


def test_a_finished_run_of_before_a_metric_was_added_is_shown_without_it(command, tmp_path, capsys):
    words = command(tmp_path / "run", train__epochs=1)
    assert train.main(words) == 0
    newest = tmp_path / "run" / "checkpoint.pt"
    state = torch.load(newest, weights_only=True)
    del state["rows"][0]["test/ece"]
    torch.save(state, newest)
    capsys.readouterr()
    assert train.main(words) == 0
    assert re.search(r"test/ece +│ +- │ +- │", capsys.readouterr().out)


def test_a_finished_run_is_not_trained_again(colam_run, command, capsys):
    folder, options = colam_run
    before = (folder / "checkpoint.pt").read_bytes()
    assert train.main(command(folder, **options)) == 0
    assert (folder / "checkpoint.pt").read_bytes() == before
    assert f"results: {folder}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"train__epoch": 3}, "did you mean train.epochs"),
        ({"data__dir": "nowhere"}, "nowhere"),
        ({"model__name": "resnet21"}, "resnet2"),
        ({"method__name": "tlsa"}, "did you mean tsla"),
        ({"method__name": "colam", "method__stages": 3}, "does not divide"),
        ({"method__name": "tsla", "method__drop_epoch": 5}, "drop_epoch"),
        ({"train__device": "cuda:7"}, "CUDA devices"),
        ({"train__device": "tpu"}, "expected auto, cpu"),
        ({"optim__schedule": "multistep"}, "optim.milestones"),
        ({"optim__min_lr": 1e-5}, "optim.schedule=cosine"),
        ({"model__drop_path": 0.1}, "model.drop_path=0.1 is no option of resnet8"),
        ({"optim__nesterov": True, "optim__momentum": 0}, "optim.momentum"),
        ({"data__val": "absent.beton"}, "absent.beton"),
        ({"run__name": "../elsewhere"}, "plain name"),
        ({"run__name": ".."}, "plain name"),
        ({"run__name": "/tmp/x"}, "plain name"),
        ({"data__dataset": "../digits"}, "plain name"),
        ({"run__resume": "must"}, "no checkpoint"),
        ({"model__pretrained": "absent.pth"}, "absent.pth"),
        ({"log__wandb": "online"}, "wandb login"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["train", "dry-run"])
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    command, tmp_path, capsys, monkeypatch, options, line, dry
):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(SystemExit) as exit:
        train.main([*command(tmp_path / "run", **options), *dry])
    said = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and said[-1].startswith("error: ") and line in said[-1]
    assert not (tmp_path / "run").exists()


def test_a_last_batch_of_one_is_an_error_and_not_found_by_batch_norm(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main(command(tmp_path / "run", data__batch_size=479))
    assert exit.value.code == 2 and "last batch of one" in capsys.readouterr().err
    assert train.main(command(tmp_path / "run", data__batch_size=479, data__drop_last=True, train__epochs=1)) == 0


def test_patience_ends_a_run_at_its_best_and_what_is_kept_is_the_best(command, tmp_path, capsys):
    """Against the rows of a run that goes on; in TSLA's second phase, whatever the first one shows."""
    options = {"method__name": "tsla", "method__drop_epoch": 3, "train__epochs": 9, "train__best_by": "nll"}
    assert train.main(command(tmp_path / "on", **options, optim__lr=0.3)) == 0
    patient = command(tmp_path / "off", **options, optim__lr=0.3, train__patience=2, run__keep_best="true")
    assert train.main(patient) == 0
    found, whole = rows(tmp_path / "off"), rows(tmp_path / "on")
    assert found == whole[: len(found)]
    values = [row["test/nll"] for row in whole]
    assert len(found) == next((n for n in range(4, 9) if n - 1 - min(range(3, n), key=values.__getitem__) >= 2), 9)
    best = values.index(min(values[: len(found)]))
    assert json.loads((tmp_path / "off" / "summary.json").read_text())["best"]["epoch"] == best + 1
    figures = evaluate.evaluate_run(tmp_path / "off" / "best.pt", {})
    assert figures["epoch"] == best + 1 and figures["test/nll"] == values[best]
    before = (tmp_path / "off" / "checkpoint.pt").stat().st_mtime_ns
    capsys.readouterr()
    assert train.main(patient) == 0
    assert "finished before" in capsys.readouterr().out
    assert (tmp_path / "off" / "checkpoint.pt").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            {"optim__schedule": "step", "optim__step_epochs": 4},
            "never turns: optim.step_epochs has 4, train.epochs=4; ",
        ),
        ({"optim__schedule": "multistep", "optim__milestones": "2,6"}, "does not turn again: optim.milestones has 6"),
    ],
)
def test_a_turn_of_the_learning_rate_after_the_run_s_end_is_a_warning(command, tmp_path, capsys, options, line):
    assert train.main([*command(tmp_path / "x", **options), "--dry-run"]) == 0
    assert line in capsys.readouterr().err
    assert train.main([*command(tmp_path / "x", **options, train__epochs=8), "--dry-run"]) == 0
    assert "turn" not in capsys.readouterr().err


def test_a_run_is_not_continued_on_other_data(colam_run, command, digits_dir, tmp_path, capsys):
    folder, options = colam_run
    for split in ("train", "test"):  # the same names, the splits exchanged
        other = {"train": "test", "test": "train"}[split]
        for kind in ("beton", "json"):
            (tmp_path / f"digits_{split}.{kind}").write_bytes((digits_dir / f"digits_{other}.{kind}").read_bytes())
    with pytest.raises(SystemExit) as exit:
        train.main(command(folder, **options | {"data__dir": tmp_path}))
    assert exit.value.code == 2 and "other data" in capsys.readouterr().err


def test_two_processes_do_not_train_one_run(command, tmp_path, capsys):
    with sole_use(tmp_path / "run", ""), pytest.raises(SystemExit) as exit:
        train.main(command(tmp_path / "run"))
    assert exit.value.code == 2 and "another process" in capsys.readouterr().err


def test_a_run_is_not_continued_with_other_options(colam_run, command, capsys):
    folder, options = colam_run
    with pytest.raises(SystemExit) as exit:
        train.main(command(folder, **options | {"optim__lr": 0.5}))
    assert exit.value.code == 2 and "other values of optim.lr" in capsys.readouterr().err


def test_dry_run_prints_options_phases_rates_and_size(command, tmp_path, capsys):
    words = command(tmp_path / "run", method__name="tsla", method__drop_epoch=3, optim__schedule="multistep",
                    optim__milestones="2,3")  # fmt: skip
    assert train.main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for text in ("drop_epoch: 3", "epochs 1 to 3: 3 epochs towards 0.9 onehot(y) + 0.1 1/K", "epochs 4 to 4",
                 "from epoch 3: 0.005", "from epoch 4: 0.0005", "parameters"):  # fmt: skip
        assert text in said
    assert re.search(r"memory of a step on \d+ images: at least \d+\.\d MiB", said)
    assert re.search(r"time: about \d+ images a second by 1 x cpu", said)
    assert not (tmp_path / "run").exists()


def test_a_warm_up_longer_than_the_run_is_a_warning(command, tmp_path, capsys):
    for epochs, warnings in ((3, 0), (3.5, 1)):
        assert train.main([*command(tmp_path / "run", train__epochs=3, optim__warmup_epochs=epochs), "--dry-run"]) == 0
        assert capsys.readouterr().err.count("never reaches optim.lr=0.05") == warnings


def test_a_run_removes_what_a_killed_process_left(command, tmp_path):
    done = subprocess.Popen(["true"])
    done.wait()
    leftover = tmp_path / "run" / f".checkpoint.pt.{done.pid}.partial"
    leftover.parent.mkdir()
    leftover.write_bytes(b"half")
    assert train.main(command(tmp_path / "run", train__epochs=1)) == 0
    assert not leftover.exists()


def test_phases_that_are_alike_are_one_line(command, tmp_path, capsys):
    assert train.main([*command(tmp_path / "run", method__name="online", train__epochs=4), "--dry-run"]) == 0
    assert "  1. epochs 1 to 1: 1 epoch towards" in (said := capsys.readouterr().out)
    assert "  2 to 4. epochs 2 to 4: each 1 epoch towards 0.5 onehot(y) + 0.5 S[y]" in said


def test_a_command_without_options_is_answered_with_its_usage(capsys):
    with pytest.raises(SystemExit) as exit:
        train.main([])
    assert exit.value.code == 2 and "usage: python -m fastlsr.train --cfg FILE" in capsys.readouterr().err


def test_dry_run_rejects_pairs_without_the_file_cache(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main([*command(tmp_path / "run", method__name="cs_kd", data__os_cache="false"), "--dry-run"])
    assert exit.value.code == 2 and "data.os_cache=false" in capsys.readouterr().err


def test_dry_run_rejects_a_teacher_that_the_run_would(command, tmp_path, capsys):
    teacher = tmp_path / "text.safetensors"
    teacher.write_text("no teacher")
    with pytest.raises(SystemExit) as exit:
        train.main([*command(tmp_path / "run", method__name="lsr_pre", method__teacher=teacher), "--dry-run"])
    assert exit.value.code == 2 and "cannot be read as safetensors" in capsys.readouterr().err


def test_dry_run_without_the_data_still_prints_the_phases(command, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        train.main([*command(tmp_path / "run", data__dir=tmp_path / "absent", method__name="tsla"), "--dry-run"])
    said = capsys.readouterr()
    assert "phases:" in said.out and "learning rate:" in said.out
    assert exit.value.code == 2 and len(said.err.strip().splitlines()) == 1 and "absent" in said.err


def test_dry_run_prints_the_rates_of_phases_and_generations(command, tmp_path, capsys):
    constant = {"optim__schedule": "constant", "optim__warmup_epochs": 0, "optim__lr": 0.5, "train__epochs": 4}
    halved = {"method__name": "tsla", "method__drop_epoch": 3, "method__second_lr": 0.5}
    assert train.main([*command(tmp_path / "run", **constant, **halved), "--dry-run"]) == 0
    assert "learning rate:\n  from epoch 1: 0.5\n  from epoch 4: 0.25\nrun:" in capsys.readouterr().out
    stepped = {"optim__schedule": "multistep", "optim__milestones": "3", "method__name": "label_refinery"}
    assert train.main([*command(tmp_path / "run", **constant | stepped), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "from epoch 1: 0.5\n  from epoch 4: 0.05\n  from epoch 5: 0.5\n  from epoch 8: 0.05\nrun:" in said


def test_options_that_the_method_does_not_use_are_one_warning(command, tmp_path, capsys):
    words = command(tmp_path / "run", method__name="lsr", method__stages=2, method__temperature=2, method__peers=0)
    assert train.main([*words, "--dry-run"]) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert warnings == ["warning: method lsr does not use method.stages, method.temperature"]


def test_help_names_every_option_and_every_method(capsys):
    assert train.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name}: " in said for name in METHODS)
    assert all(f"--{section}." in said for section in ("data", "model", "optim", "method", "train", "run", "log"))


def test_wandb_offline_mirrors_the_rows(command, tmp_path):
    pytest.importorskip("wandb")
    folder = tmp_path / "run"
    assert train.main(command(folder, train__epochs=1, log__wandb="offline")) == 0
    assert list(Path(folder).glob("wandb/offline-run-*/*.wandb"))


def test_an_agent_that_waits_for_a_run_gets_the_rows_of_one_that_was_finished_before(command, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    folder = tmp_path / "run"
    words = command(folder, train__epochs=2, log__wandb="offline")
    monkeypatch.setenv("WANDB_RUN_ID", "first")
    assert train.main(words) == 0 and train.main(words) == 0
    rows = (folder / "metrics.jsonl").read_text()
    assert [path.name for path in folder.glob("wandb/offline-run-*/*.wandb")] == ["run-first.wandb"]
    monkeypatch.setenv("WANDB_RUN_ID", "second")
    assert train.main(words) == 0
    wandb.teardown()  # its service has then written what it was given
    (kept,) = folder.glob("wandb/offline-run-*/run-second.wandb")
    for row in map(json.loads, rows.splitlines()):
        assert repr(row["test/nll"]).encode() in kept.read_bytes()
    assert b"best/test/top1" in kept.read_bytes() and (folder / "metrics.jsonl").read_text() == rows


@pytest.mark.parametrize(
    ("table", "words", "warns"),
    [
        (torch.eye(4), "4 of 4 peak at their own class, entropy 0.000 of 1.386", False),
        (torch.full((4, 4), 0.25), "1 of 4", True),
        (0.7 * torch.eye(4).roll(1, 0) + 0.075, "0 of 4", True),
    ],
)
def test_soft_labels_that_say_nothing_are_a_warning(table, words, warns):
    line = loop.soft_labels_line(table, advice="longer stages?")
    assert words in line and ("warning" in line) == warns


def test_checkpoints_are_as_far_apart_as_requested_and_the_last_epoch_has_one(train_digits, tmp_path):
    run = RunFolder(train_digits(tmp_path / "run", {"train.epochs": 4, "run.checkpoint_epochs": 2, "run.keep": 3}))
    kept = (run.newest_checkpoint, run.previous_checkpoint, run.kept_checkpoint(3))
    assert [torch.load(path, weights_only=True)["position"] for path in kept] == [[4, 0], [3, 0], [3, 0]]
    assert [row["epoch"] for row in run.read_rows()] == [1, 2, 3, 4]
    sparse = RunFolder(train_digits(tmp_path / "sparse", {"train.epochs": 4, "run.checkpoint_seconds": 1e6}))
    assert not sparse.previous_checkpoint.exists()
    assert sparse.read_rows()[-1]["train/loss"] == run.read_rows()[-1]["train/loss"]
