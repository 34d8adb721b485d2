"""Teachers made of runs and of pre-trained networks on real digits, and runs that learn from them."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fastlsr import teach, train
from fastlsr.cli import read_arguments
from fastlsr.config import load
from fastlsr.data.manifest import read_manifest
from fastlsr.data.splits import fold_of_sample
from fastlsr.engine import checkpoint
from fastlsr.engine.classifier import Classifier
from fastlsr.engine.session import training_loader
from fastlsr.models import build_model

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
BASE = {"data.dataset": "digits", "data.batch_size": 256, "train.device": "cpu", "train.precision": "fp32"}
TRAINING = {"data.flip": "false", "model.name": "resnet8", "optim.lr": 0.05, "train.compile": "off",
            "log.wandb": "disabled"}  # fmt: skip


def words(options):
    return [f"--{key}={value}" for key, value in options.items()]


def trained(folder, digits_dir, **options):
    given = {key.replace("__", "."): value for key, value in options.items()}
    run = {"run.dir": folder.parent, "run.name": folder.name, "data.dir": digits_dir, "optim.schedule": "constant"}
    return train.main(words(BASE | TRAINING | run | given))


@pytest.fixture(scope="module")
def run(digits_dir, tmp_path_factory):
    """A run whose moving average is another network than its last weights."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    assert trained(folder, digits_dir, train__epochs=3, train__ema=0.9) == 0
    return folder


@pytest.fixture(scope="module")
def of_run(run, tmp_path_factory):
    """The teacher that the run makes."""
    path = tmp_path_factory.mktemp("of_run") / "t.safetensors"
    assert teach.main(["--checkpoint", str(run), "--out", str(path)]) == 0
    return path


def from_weights(weights, digits_dir, out, **options):
    given = {key.replace("__", "."): value for key, value in options.items()}
    base = BASE | {"data.dir": digits_dir, "model": "resnet8", "model.pretrained": weights, "out": out}
    return teach.main(words(base | given))


@pytest.fixture(scope="module")
def of_weights(run, digits_dir, tmp_path_factory):
    """The teacher that the run's last weights make, as the pre-trained backbone of a linear head."""
    path = tmp_path_factory.mktemp("of_weights") / "t.safetensors"
    assert from_weights(f"{run}#model", digits_dir, path) == 0
    return path


def said(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["teacher"])


def images_and_labels(digits_dir):
    config = load(overrides={"data.dataset": "digits", "data.dir": str(digits_dir)})
    batches = training_loader(config, CPU, plain=True).epoch(0)
    copies = [(images.clone(), labels.clone()) for images, labels, _ in batches]
    return (torch.cat(column) for column in zip(*copies, strict=True))


def network(state, digits_dir, classes=10):
    manifest = read_manifest(digits_dir / "digits_train.beton")
    model = build_model("resnet8", classes=classes, resolution=8)
    model.load_state_dict(state)
    return Classifier(model, manifest.mean, manifest.std, precision="fp32", channels_last=True).eval()


def test_a_run_teaches_what_the_network_it_evaluates_says(run, of_run, digits_dir):
    images, labels = images_and_labels(digits_dir)
    with torch.no_grad():
        expected = network(checkpoint.load_newest(run)[0]["ema"], digits_dir)(images).softmax(1)
    kept = load_file(of_run)
    torch.testing.assert_close(kept["by_sample"].float(), expected, atol=1e-3, rtol=0)
    means = torch.stack([expected[labels == label].mean(0) for label in range(10)])
    torch.testing.assert_close(kept["by_class"], means, atol=1e-4, rtol=0)


def test_a_teacher_says_what_it_is_and_what_it_is_worth(run, of_run, of_weights, digits_dir):
    manifest = read_manifest(digits_dir / "digits_train.beton")
    last = json.loads((run / "summary.json").read_text())["last"]
    for path, how in ((of_run, "run"), (of_weights, "linear head")):
        made = said(path)
        assert made["data"] == manifest.digest and made["classes"] == list(manifest.classes)
        assert made["model"] == "resnet8" and how in made["how"]
    assert said(of_run)["test_top1"] == pytest.approx(last["test/top1"])
    assert said(of_run)["run"] == "teacher" and said(of_run)["epochs"] == 3
    assert said(of_weights)["train_top1"] > 80, "a linear head on three epochs' features tells digits apart"


def test_a_linear_head_s_predictions_are_a_logistic_regression_s_on_the_frozen_features(run, of_weights, digits_dir):
    images, labels = images_and_labels(digits_dir)
    with torch.no_grad():
        features = (
            network(checkpoint.load_newest(run)[0]["model"], digits_dir).penultimate(images).features.double().numpy()
        )
    x = StandardScaler().fit_transform(features)
    theirs = LogisticRegression(C=1 / (said(of_weights)["l2"] * len(x)), max_iter=10000).fit(x, labels.numpy())
    ours = load_file(of_weights)["by_sample"].float().numpy()
    assert np.abs(ours - theirs.predict_proba(x)).max() < 0.02
    assert said(of_weights)["train_top1"] == pytest.approx(100 * theirs.score(x, labels.numpy()), abs=0.2)


def test_a_timm_network_s_weights_of_other_classes_teach(digits_dir, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "w.safetensors")
    out = tmp_path / "t.safetensors"
    assert from_weights(tmp_path / "w.safetensors", digits_dir, out, model="timm/test_resnet") == 0
    assert said(out)["normalization"][0] == list(timm.get_pretrained_cfg("test_resnet").mean)
    assert said(out)["train_top1"] > 20, "even random features tell digits apart"


def test_the_same_command_gives_the_same_bytes(run, of_run, tmp_path):
    again = tmp_path / "again.safetensors"
    assert teach.main(["--checkpoint", str(run / "checkpoint.pt"), "--model=resnet8", f"--out={again}"]) == 0
    assert again.read_bytes() == of_run.read_bytes()


@pytest.mark.parametrize("key", ["sample", "class"])
@pytest.mark.parametrize("method", ["lsr_pre", "tsla_pre", "table"])
def test_runs_learn_from_it_and_log_the_true_entropy_of_their_targets(of_run, digits_dir, tmp_path, method, key):
    options = {"method__name": method, "method__teacher": of_run, "method__teacher_key": key, "train__epochs": 2}
    assert trained(tmp_path / "run", digits_dir, **options) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    _, labels = images_and_labels(digits_dir)
    kept = load_file(of_run)
    soft = kept["by_sample"].double() if key == "sample" else kept["by_class"].double()[labels]
    soft = soft / soft.sum(1, keepdim=True)
    if method != "table":
        soft = 0.9 * torch.nn.functional.one_hot(labels, 10) + 0.1 * soft
    entropy = torch.special.entr(soft).sum(1).mean().item()
    assert rows[0]["target_entropy"] == pytest.approx(entropy, rel=1e-4)
    assert rows[1]["target_entropy"] == pytest.approx(0 if method == "tsla_pre" else entropy, rel=1e-4, abs=1e-12)


def test_a_run_is_not_continued_with_a_changed_teacher(of_run, of_weights, digits_dir, tmp_path, capsys):
    teacher, folder = tmp_path / "t.safetensors", tmp_path / "run"
    teacher.write_bytes(of_run.read_bytes())
    options = {"method__name": "tsla_pre", "method__teacher": teacher, "train__epochs": 2}
    assert trained(folder, digits_dir, **options) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    teacher.write_bytes(of_weights.read_bytes())
    with pytest.raises(SystemExit) as exit:
        trained(folder, digits_dir, **options)
    line = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and len(line) == 1 and "another teacher" in line[0] and str(teacher) in line[0]
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    teacher.write_bytes(of_run.read_bytes())
    assert trained(folder, digits_dir, **options) == 0
    assert json.loads((folder / "environment.json").read_text())["teacher"]


def test_what_a_fold_holds_out_teaches_nothing_and_other_folds_reject_it(run, digits_dir, tmp_path, capsys):
    path, folds = tmp_path / "t.safetensors", {"data__folds": 5, "data__fold": 1}
    assert from_weights(run / "checkpoint.pt", digits_dir, path, **folds) == 0
    _, labels = images_and_labels(digits_dir)
    out = torch.from_numpy(fold_of_sample(labels.numpy(), 5) == 1)
    kept = load_file(path)["by_sample"].float()
    torch.testing.assert_close(kept[out], torch.full((int(out.sum()), 10), 0.1), atol=1e-4, rtol=0)
    assert (kept[~out].amax(1) > 0.11).all()
    options = {"method__name": "lsr_pre", "method__teacher": path, "train__epochs": 1, "data__folds": 5}
    assert trained(tmp_path / "one", digits_dir, **options, data__fold=1) == 0
    with pytest.raises(SystemExit) as exit:
        trained(tmp_path / "two", digits_dir, **options, data__fold=2)
    assert exit.value.code == 2 and "fold 1 of 5" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"out": ""}, "usage"),
        ({"model": ""}, "usage"),
        ({"modle": "resnet8"}, "did you mean --model"),
        ({"data.resolutoin": 8}, "did you mean --data.resolution"),
        ({"optim.lr": 0.1}, "--optim.lr: no such option of a teacher"),
        ({"out": "t.pt"}, ".safetensors"),
        ({"out": "absent/t.safetensors"}, "absent is no folder"),
        ({"data.dir": "absent"}, "absent"),
        ({"data.val": "absent.beton"}, "absent.beton"),
        ({"model": "resnet9"}, "resnet8"),
        ({"model": "resnet8", "model.pretrained": "timm"}, "not timm's"),
        ({"model.pretrained": "absent.pth"}, "absent.pth"),
        ({"train.device": "tpu"}, "expected auto, cpu"),
        ({"cfg": "absent.yaml"}, "absent.yaml"),
        ({"checkpoint": "absent"}, "no such file or folder"),
        ({"checkpoint": "."}, "no checkpoint"),
        ({"checkpoint": "RUN", "model": "resnet20"}, "the run's network is resnet8"),
        ({"checkpoint": "RUN", "data.resolution": 8}, "the run's own"),
        ({"checkpoint": "RUN", "model.pretrained": "", "data.folds": 3}, "data.folds=0"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    run, digits_dir, tmp_path, capsys, monkeypatch, options, line
):
    monkeypatch.chdir(tmp_path)
    base = {"data.dataset": "digits", "data.dir": digits_dir, "model": "resnet8", "out": "t.safetensors"}
    chosen = {key: run if value == "RUN" else value for key, value in (base | options).items()}
    with pytest.raises(SystemExit) as exit:
        teach.main(words({key: value for key, value in chosen.items() if value != ""}))
    said = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and len(said) == 1 and said[0].startswith("error: ") and line in said[0]
    assert not list(tmp_path.iterdir())


def test_a_run_of_other_data_or_classes_does_not_teach(run, digits_dir, small_photos_dir, tmp_path, capsys):
    for split, other in (("train", "test"), ("test", "train")):  # the same names, the splits exchanged
        for kind in ("beton", "json"):
            (tmp_path / f"digits_{split}.{kind}").write_bytes((digits_dir / f"digits_{other}.{kind}").read_bytes())
    out = tmp_path / "t.safetensors"
    for places, words in (
        ([f"--data.dir={tmp_path}"], "other data"),
        ([f"--data.dir={small_photos_dir}", "--data.dataset=photos"], "other classes"),
    ):
        with pytest.raises(SystemExit) as exit:
            teach.main(["--checkpoint", str(run), "--out", str(out), *places])
        assert exit.value.code == 2 and words in capsys.readouterr().err and not out.exists()


def test_without_a_test_split_it_teaches_all_the_same(run, digits_dir, tmp_path):
    for kind in ("beton", "json"):
        (tmp_path / f"digits_train.{kind}").write_bytes((digits_dir / f"digits_train.{kind}").read_bytes())
    out = tmp_path / "t.safetensors"
    assert teach.main(["--checkpoint", str(run), f"--data.dir={tmp_path}", f"--out={out}"]) == 0
    assert "test_top1" not in said(out) and "train_top1" in said(out)


def test_the_shipped_sweep_s_header_makes_the_teacher_that_it_reads(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (ROOT / "configs/sweeps/tsla_cifar100_pre.yaml").read_text(encoding="utf-8")
    command = shlex.split(re.search(r"^# teacher: ((?:.*\\\n)*.*)", text, re.MULTILINE)[1].replace("\\\n#", ""))
    assert command[:3] == ["python", "-m", "fastlsr.teach"]
    path, options, _ = read_arguments(command[3:])
    model, _, out = (options.pop(name, "") for name in teach.OWN)
    teach.check_teacher_options(options, from_run=False)
    assert teach.config_of_model(path, options, model).model.pretrained == "timm"
    assert out == yaml.safe_load(text)["parameters"]["method.teacher"]["value"]


def test_help_names_its_options(capsys):
    assert teach.main(["--help"]) == 0
    help = capsys.readouterr().out
    assert all(f"--{name}" in help for name in teach.OWN)
