"""The linear probe of runs on real digits, on photographs."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from fastlsr import analyze
from fastlsr.config import Data
from fastlsr.data.loader import Loader
from fastlsr.data.manifest import read_manifest
from fastlsr.engine.trained import open_run
from fastlsr.inference.features import split_features
from fastlsr.inference.linear_probe import probe
from fastlsr.trials import mean_and_std


def test_a_probe_is_scikit_learns_regression_on_the_features_at_the_networks_resolution(six_runs, both_data):
    run = open_run(six_runs["hard-0"], {"data.dir": str(both_data)})
    found = probe(run, "photos")
    data, cpu = Data(resolution=8), torch.device("cpu")
    files = (both_data / f"photos_{split}.beton" for split in ("train", "test"))
    loaders = (Loader(file, data, train=False, seed=0, device=cpu) for file in files)
    train, test = (split_features(run, loader, "", quiet=True) for loader in loaders)
    scaler = StandardScaler().fit(train.values)
    theirs = LogisticRegression(C=1 / (found["l2"] * len(train.values)), max_iter=1000, tol=1e-6)
    theirs.fit(scaler.transform(train.values), train.labels)
    probabilities = theirs.predict_proba(scaler.transform(test.values))
    own = probabilities[range(len(test.labels)), test.labels]
    assert found["nll"] == pytest.approx(-np.log(own).mean(), rel=0.01)
    assert found["top1"] == pytest.approx(100 * (probabilities.argmax(1) == test.labels.numpy()).mean())


def test_the_command_probes_on_images_of_other_sizes_and_classes(six_runs, both_data, tmp_path, capsys):
    names = ("hard-0", "hard-1", "lsr-0")
    words = ["transfer", *(str(six_runs[name]) for name in names), "--to=photos", f"--data.dir={both_data}"]
    assert read_manifest(both_data / "photos_test.beton").count == 12
    assert analyze.main([*words, f"--out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "transfer.json").read_text())
    assert {label: len(each["runs"]) for label, each in found["settings"].items()} == {"hard": 2, "lsr": 1}
    for each in found["settings"].values():
        for run in each["runs"]:
            assert run["top1"] * 12 / 100 == pytest.approx(round(run["top1"] * 12 / 100))
            assert run["top5"] == 100, "of four classes"
    figures = mean_and_std([run["top1"] for run in found["settings"]["hard"]["runs"]])
    assert figures in capsys.readouterr().out
    assert (tmp_path / "transfer.svg").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [(["--to=flowers"], "flowers_train.beton does not exist"), ([], "transfer needs --to")],
)
def test_data_that_is_not_there_is_an_error_in_one_line(six_runs, words, complaint, capsys):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["transfer", str(six_runs["hard-0"]), *words])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err
