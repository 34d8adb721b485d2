"""Exported weights: what they are, what is said of them, and that timm, torch and ONNX Runtime compute our logits."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import fastlsr.models
from fastlsr import export
from fastlsr.data.manifest import read_manifest
from fastlsr.engine.trained import open_run
from fastlsr.models import build_model, expected_normalization
from fastlsr.runs import RunFolder

# A network of ours, and one of timm's that is built for one size of images; the average is not the last weights.
RUNS = {"ours": {"model.name": "resnet8"}, "timm": {"model.name": "timm/test_vit", "data.resolution": 32,
        "data.augment": "resized_crop", "model.drop_path": 0.2, "model.dropout": 0.1}}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(request, train_digits, tmp_path_factory):
    """A run of two epochs with a moving average; the first is the best: near a new network's uniform predictions."""
    options = RUNS[request.param] | {"train.ema": 0.9, "train.best_by": "ece", "run.keep": 1, "run.keep_best": True}
    folder = RunFolder(train_digits(tmp_path_factory.mktemp("runs") / request.param, options))
    assert folder.read_summary()["best"]["epoch"] == 1
    return folder


def exported(run, out, *words):
    """The file, written by the command."""
    assert export.main([str(run.path), "--out", str(out), *words]) == 0
    return out


def about(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["fastlsr"])


def pixels(resolution):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, resolution, resolution), dtype=np.uint8))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_the_printed_line_builds_a_network_with_the_logits_that_the_run_evaluates(run, tmp_path, capsys):
    path = exported(run, tmp_path / "w.safetensors")
    code = re.search(r"load it by: (.*)", capsys.readouterr().out)[1]
    model = eval(code, {"timm": timm, "fastlsr": fastlsr}).eval()
    trained, told = open_run(run.path), about(path)
    images = pixels(told["resolution"])
    mean, std = (torch.tensor(told[name])[:, None, None] for name in ("mean", "std"))
    with torch.no_grad():
        expected = trained.network(trained.resolution)(images)
        torch.testing.assert_close(model((images / 255 - mean) / std), expected, atol=1e-4, rtol=1e-4)


def test_the_average_is_exported_where_there_is_one_and_the_raw_weights_on_request(run, tmp_path):
    state = open_run(run.path).state
    chosen = {words: exported(run, tmp_path / f"{len(words)}.safetensors", *words)
              for words in ((), ("--weights=ema",), ("--weights", "raw"))}  # fmt: skip
    files = {words: load_file(path) for words, path in chosen.items()}
    assert same(files[()], state["ema"]) and same(files["--weights", "raw"], state["model"])
    assert not same(state["ema"], state["model"])
    assert chosen[()].read_bytes() == chosen["--weights=ema",].read_bytes(), "the same command gives the same bytes"
    assert "test_top1" not in about(chosen["--weights", "raw"]), "which was never evaluated"


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_metadata_tells_the_checkpoint_and_how_to_use_it(run, digits_dir, tmp_path, which):
    told = about(exported(run, tmp_path / "w.safetensors", f"--which={which}"))
    row = run.read_rows()[1 if which == "last" else 0]
    manifest = read_manifest(digits_dir / "digits_train.beton")
    assert (told["epoch"], told["test_top1"]) == (row["epoch"], row["test/top1"])
    assert (told["mean"], told["std"]) == (list(manifest.mean), list(manifest.std))
    assert told["classes"] == list(manifest.classes) and told["dataset"] == "digits"
    assert told["run"] == run.path.name and told["batches"] == 0 and told["fastlsr"] == fastlsr.__version__
    documented = Path(__file__).parents[1] / "docs" / "models.md"
    assert not [key for key in told if f"`{key}`" not in documented.read_text(encoding="utf-8")]
    assert told["model"] == run.read_config().model.name


def test_the_best_checkpoint_s_weights_are_another_epoch_s(run, tmp_path):
    best = load_file(exported(run, tmp_path / "best.safetensors", "--which=best"))
    assert same(best, open_run(run.kept_checkpoint(1)).state["ema"])
    assert not same(best, load_file(exported(run, tmp_path / "last.safetensors")))


def test_a_best_checkpoint_of_another_epoch_than_the_best_row_s_is_an_error(run, tmp_path, capsys):
    """As it stays behind where a run with run.keep_best is resumed without it."""
    stale, out = RunFolder(tmp_path / "run"), tmp_path / "w.safetensors"
    shutil.copytree(run.path, stale.path)
    shutil.copy(run.kept_checkpoint(2), stale.best_checkpoint)
    line = error_of([stale.path, "--out", out, "--which=best"], capsys)
    assert "best.pt is of epoch 2, but the best is 1" in line and not out.exists()
    exported(stale, out)  # the last one, which the line does not concern


def test_an_export_is_what_a_new_run_can_start_from_with_its_normalisation(run, tmp_path):
    path, opened = exported(run, tmp_path / "w.safetensors"), open_run(run.path)
    name, size = opened.config.model.name, opened.resolution
    model = build_model(name, classes=10, resolution=size, pretrained=str(path))
    assert same(model.state_dict(), opened.state["ema"])
    assert list(map(list, expected_normalization(model, str(path)))) == opened.decided["normalization"]


def test_onnx_computes_our_logits_from_pixels(run, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(exported(run, tmp_path / "w.onnx"))
    told, trained = session.get_modelmeta().custom_metadata_map, open_run(run.path)
    images = pixels(trained.resolution)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        expected = trained.network(trained.resolution)(images).numpy()
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=1e-4)
    assert json.loads(told["classes"]) == trained.classes and "uint8" in told["input"]
    assert float(told["test_top1"]) == run.read_rows()[-1]["test/top1"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_package_that_onnx_needs_is_named_where_it_is_missing(run, tmp_path, capsys, monkeypatch, package):
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None if name == package else nn)
    assert f"pip install {package}" in error_of([run.path, "--out", tmp_path / "w.onnx"], capsys)
    assert not list(tmp_path.iterdir())


def error_of(words, capsys):
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        export.main([str(word) for word in words])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert exit.value.code == 2 and line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "usage"),
        (["RUN"], "usage"),
        (["--out=w.safetensors"], "usage"),
        (["RUN", "--out=w.pt"], "ends in .safetensors or .onnx"),
        (["RUN", "--out=absent/w.onnx"], "absent is no folder"),
        (["absent", "--out=w.onnx"], "absent is not the folder of a run"),
        ([".", "--out=w.onnx"], "no checkpoint"),
        ([".", "--out=w.onnx", "--which=best"], "no best.pt, which run.keep_best keeps"),
        (["RUN", "--out=w.onnx", "--which=first"], "last or best"),
        (["RUN", "--out=w.onnx", "--weights=all"], "ema or raw"),
        (["RUN", "--ouf=w.onnx"], "did you mean --out"),
        (["RUN", "--out=w.onnx", "--train.seed=3"], "--train.seed: no such option"),
        (["RUN/checkpoint.pt", "--out=w.onnx", "--which=best"], "is one checkpoint"),
        (["RUN/metrics.jsonl", "--out=w.onnx"], "metrics.jsonl is damaged"),
        (["RUN", "--out=w.onnx", "--cfg=x.yaml"], "--cfg is no option here"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(run, tmp_path, capsys, monkeypatch, words, line):
    monkeypatch.chdir(tmp_path)
    assert line in error_of([word.replace("RUN", str(run.path)) for word in words], capsys)
    assert not list(tmp_path.iterdir())


def test_an_average_that_the_run_has_not_is_an_error(train_digits, tmp_path, capsys):
    folder = train_digits(tmp_path / "run", {"train.epochs": 1})
    words = [folder, "--out", tmp_path / "w.safetensors"]
    assert "train.ema" in error_of([*words, "--weights=ema"], capsys)
    assert export.main([str(word) for word in words]) == 0
    assert about(tmp_path / "w.safetensors")["weights"] == "raw"


def test_a_run_of_an_earlier_version_needs_its_data_for_the_resolution(run, digits_dir, tmp_path, capsys):
    state = torch.load(run.newest_checkpoint, weights_only=True)
    resolution = state["decided"].pop("resolution")
    torch.save(state, tmp_path / "checkpoint.pt")
    out = tmp_path / "w.safetensors"
    assert export.main([str(tmp_path), f"--out={out}"]) == 0 and about(out)["resolution"] == resolution
    assert "absent" in error_of([tmp_path, f"--out={out}", "--data.dir=absent"], capsys)


def test_a_checkpoint_by_itself_is_exported_without_its_accuracy(run, tmp_path):
    shutil.copy(run.best_checkpoint, tmp_path / "alone.pt")
    out = tmp_path / "w.safetensors"
    assert export.main([str(tmp_path / "alone.pt"), f"--out={out}"]) == 0
    assert same(load_file(out), open_run(run.best_checkpoint).state["ema"]) and "test_top1" not in about(out)


def test_help_names_its_options(capsys):
    assert export.main(["--help"]) == 0
    help = capsys.readouterr().out
    assert all(f"--{name}" in help for name in export.OWN)
