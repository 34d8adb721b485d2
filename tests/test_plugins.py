"""Plugins: what they register is used like ours, their digest is kept, and a run is opened with no other code."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastlsr import analyze, evaluate, train, write
from fastlsr.analysis import OWN_KINDS
from fastlsr.config import Config, add_option, differences, from_dict, load, option
from fastlsr.engine.trained import open_run
from fastlsr.errors import InputError
from fastlsr.labels.methods import METHODS, make_plan
from fastlsr.metrics import METRICS
from fastlsr.models import build_model, head_parameters, network
from fastlsr.plugins import Plugin, load_named, load_plugins, named_plugins
from fastlsr.report import __main__ as report
from fastlsr.runs import RunFolder, keys
from fastlsr.sweep import __main__ as sweep
from fastlsr.sweep.file import read_sweep
from fastlsr.sweep.overrides import override
from fastlsr.sweep.plan import plan_trials, trainer_config

pytestmark = pytest.mark.usefixtures("registries")

IDEAS = """
import torch
from fastlsr.analysis import Finding, analysis
from fastlsr.config import add_option, option
from fastlsr.labels.methods import method
from fastlsr.labels.plan import Phase
from fastlsr.metrics import metric
from fastlsr.models import network

add_option("method", "power", float, option(2.0, "exponent of the fall", low=0))

@method
def falling(epochs, *, smoothing, power):
    "Smoothing that falls."
    return [Phase(1, hard=1 - t, uniform=t) for t in (smoothing * (1 - e / epochs) ** power for e in range(epochs))]

@metric("", "share of samples of class 0", best=max, format=".3f")
def zeros(logits, labels):
    return (labels == 0).sum().double()[None]

@network
def linear(classes, resolution):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * resolution**2, classes))

@analysis
def epochs_of(run, *, times: int = 1) -> Finding:
    "How many epochs a run has."
    return Finding({"epochs": times * run.position.epochs}, "counted")
"""


MORE = """
from fastlsr.config import add_option, option
add_option("train", "more", int, option(0, "more", low=0))
"""


@pytest.fixture
def ideas(tmp_path):
    path = tmp_path / "ideas.py"
    path.write_text(IDEAS, encoding="utf-8")
    return path


def test_what_a_plugin_registers_is_trained_evaluated_and_analysed_and_other_code_is_not(
    ideas, tmp_path, train_digits, registries, capsys
):
    options = {"plugin": ideas, "method.name": "falling", "method.power": 3, "model.name": "linear",
               "train.best_by": "zeros"}  # fmt: skip
    run = train_digits(tmp_path / "run", options)
    row = RunFolder(run).read_rows()[-1]
    assert set(row) == {key for key in keys() if not key.startswith("val/")} and 0.05 < row["test/zeros"] < 0.15
    opened = open_run(run)
    assert (opened.config.method.power, opened.plan) == (3, make_plan(opened.config.method, 2))
    assert [round(phase.uniform, 4) for phase in opened.plan.phases] == [0.1, 0.0125]
    figures = evaluate.evaluate_run(run, {})
    assert figures["test/zeros"] == row["test/zeros"] and figures["test/nll"] == row["test/nll"]
    assert analyze.main(["epochs_of", str(run), "--times=4", "--plugin", str(ideas)]) == 0
    finding = json.loads((run / "analysis" / "epochs_of.json").read_text())
    assert finding["epochs"] == 8 and f"--plugin {ideas}" in finding["command"]
    ideas.write_text(IDEAS + "# another line\n", encoding="utf-8")
    assert evaluate.evaluate_run(run, {}) == figures, "what was loaded is what is recorded"
    registries()
    with pytest.raises(InputError, match="has changed since the run began"):
        open_run(run)
    capsys.readouterr()
    assert evaluate.main([str(run), "--plugin", str(RunFolder(run).plugin(*opened.config.plugins))]) == 0
    assert json.loads(capsys.readouterr().out) == figures
    registries()
    ideas.unlink()
    with pytest.raises(InputError, match="cannot be read: No such file or directory; --plugin names it"):
        RunFolder(run).read_config()


def test_a_report_holds_runs_with_and_without_plugins_whatever_comes_first(
    ideas, tmp_path, train_digits, registries, capsys
):
    options = {"train.epochs": 1, "model.name": "linear", "plugin": ideas}
    runs = [train_digits(tmp_path / f"own{seed}", options | {"method.name": "falling", "train.seed": seed})
            for seed in range(4)]  # fmt: skip
    registries()
    runs.append(train_digits(tmp_path / "plain", {"train.epochs": 1}))
    for order in (runs, runs[::-1]):
        registries()
        capsys.readouterr()
        assert report.main([*map(str, order), "--out", str(tmp_path / "report")]) == 0
        shown = capsys.readouterr()
        assert "set aside" not in shown.out + shown.err and "falling" in shown.out
        (row,) = [line.split() for line in shown.out.splitlines() if line.startswith("falling")][:1]
        assert "4" in row[:4]


def test_a_sweep_knows_the_options_and_metrics_of_its_plugins(ideas, tmp_path, monkeypatch, registries, capsys):
    monkeypatch.chdir(tmp_path)
    lines = ["method: grid", "metric: {name: test/zeros, goal: maximize}", "parameters:",
             "  method.name: {values: [falling, hard]}", "command: [python, -m, fastlsr.train, '${args}']"]  # fmt: skip
    (tmp_path / "sweep.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert sweep.main(["sweep.yaml", f"--plugin={ideas}", "--method.power=3", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("--method.power=3") == shown.count(f"--plugin={ideas}") == 2
    registries()
    lines[-1] = f"command: [python, -m, fastlsr.train, --plugin, {ideas}, '${{args}}']"
    (tmp_path / "sweep.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert sweep.main(["sweep.yaml", "--method.power=3", "--dry-run"]) == 0


@pytest.mark.parametrize("where", ["word", "two words", "parameter", "environment", "config"])
def test_a_further_plugin_of_a_sweep_s_command_line_is_beside_the_file_s_own(
    ideas, tmp_path, monkeypatch, registries, where
):
    (tmp_path / "more.py").write_text(MORE, encoding="utf-8")
    (tmp_path / "own.yaml").write_text(f"plugin: {ideas}\n", encoding="utf-8")
    monkeypatch.setenv("OWN", str(ideas))
    words = {"word": [f"--plugin={ideas}"], "two words": ["--plugin", str(ideas)],
             "environment": ["--plugin=${envvar:OWN}"], "config": ["--cfg", str(tmp_path / "own.yaml")]}  # fmt: skip
    parameters = {"method.name": {"values": ["falling", "hard"]}}
    if where == "parameter":
        parameters["plugin"] = {"value": str(ideas)}
    tree = {"method": "grid", "parameters": parameters,
            "command": ["python", "-m", "fastlsr.train", *words.get(where, []), "${args}"]}  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(json.dumps(tree), encoding="utf-8")
    added = {"plugin": str(tmp_path / "more.py"), "method.power": "3", "train.more": "7"}
    planned, rejected = plan_trials(override(read_sweep(tmp_path / "sweep.yaml"), added), None)
    assert (len(planned), rejected) == (2, [])
    for trial in planned:
        registries()  # a trial's process knows what its words name, and no more
        config = trainer_config(trial.command)
        assert [Path(plugin.name).name for plugin in config.plugins] == ["ideas.py", "more.py"]
        assert (config.method.power, config.train.more) == (3, 7)


def test_options_and_plugins_of_a_run_read_back_and_another_plugin_makes_another_run(ideas, tmp_path):
    made = load(overrides={"plugin": str(ideas), "method.power": "4"})
    again = from_dict(made.as_dict())
    assert again == made and again.plugins == made.plugins and again.method.power == 4
    assert "exponent of the fall" in type(made.method).__dataclass_fields__["power"].metadata["help"]
    (tmp_path / "x.yaml").write_text(f"plugin: [{ideas}]\nmethod: {{power: 4}}\n", encoding="utf-8")
    assert differences(load(tmp_path / "x.yaml"), made) == []
    (tmp_path / "other.py").write_text("", encoding="utf-8")
    other = load(tmp_path / "x.yaml", ["--plugin", str(tmp_path / "other.py")])
    assert [plugin.name for plugin in other.plugins] == [str(ideas), str(tmp_path / "other.py")]
    assert differences(other, made) == ["plugin"] and other.run_name() != made.run_name()


def test_a_plugin_is_loaded_once_a_process_and_its_names_stay_its_own(ideas, tmp_path):
    assert load_plugins([str(ideas)]) == load_plugins([str(ideas)])
    former = METHODS["falling"]
    ideas.write_text(IDEAS.replace("Smoothing that falls", "Another"), encoding="utf-8")
    with pytest.raises(InputError, match=r"ideas.py, line 10: there is an option method.power already"):
        load_plugins([str(ideas)])
    assert METHODS["falling"] is former


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import nothing_of_the_kind", "line 1: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
        ("x = 1\ny = x / 0", "line 2: ZeroDivisionError: division by zero"),
        ("def (", "SyntaxError: "),
        ("from fastlsr.labels.methods import method\n@method\ndef hard(epochs): ...", "is a method hard already"),
        ("from fastlsr.models import network\n@network\ndef resnet8(classes): ...", "is a network resnet8 already"),
        ("from fastlsr.config import add_option\nadd_option('nets', 'a', int, 0)", "nets: no such section"),
    ],
)
def test_a_plugin_that_fails_is_one_line_and_exit_code_2(tmp_path, capsys, text, line):
    path = tmp_path / "bad.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as exit:
        train.main([f"--plugin={path}", "--dry-run"])
    said = capsys.readouterr().err.strip()
    assert exit.value.code == 2 and line in said and "\n" not in said and str(path) in said


def test_a_command_s_other_words_stay_as_they_are(ideas):
    assert load_named(["run", "--plugin", str(ideas), "--data.dir", "x", f"--plugin={ideas}", "-h"]) == [
        "run", "--data.dir", "x", "-h"
    ]  # fmt: skip
    assert "falling" in METHODS
    with pytest.raises(InputError, match="--plugin needs a value"):
        load_named(["run", "--plugin"])


def test_a_plugin_that_is_not_there_is_an_error_that_names_those_that_are(ideas, monkeypatch):
    with pytest.raises(InputError, match="mine: no such file or installed plugin"):
        load_plugins(["mine"])
    with pytest.raises(InputError, match=r"plugin x/mine.py cannot be read"):
        load_plugins(["x/mine.py"])
    monkeypatch.chdir(ideas.parent)
    with pytest.raises(InputError, match=r"plugin ideas: no such installed plugin; did you mean ideas.py\?"):
        load_plugins(["ideas"])


def test_an_installed_plugin_is_found_by_its_entry_point_and_its_digest_is_that_of_all_its_files(
    tmp_path, monkeypatch, registries
):
    package = tmp_path / "my_plugin_package"
    package.mkdir()
    (package / "__init__.py").write_text("from my_plugin_package import inner\n", encoding="utf-8")
    (package / "inner.py").write_text(IDEAS, encoding="utf-8")
    info = tmp_path / "my_plugin_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugin-package\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text("[fastlsr.plugins]\nmine = my_plugin_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (plugin,) = load_plugins(["mine"])
    assert plugin.name == "mine" and "falling" in METHODS and "epochs_of" in OWN_KINDS and "zeros" in METRICS
    (package / "inner.py").write_text(IDEAS + "# more", encoding="utf-8")
    registries()
    with pytest.raises(InputError, match="plugin mine has changed"):
        load_plugins([], [plugin])
    for name in [name for name in sys.modules if name.startswith("my_plugin_package")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("given", "names", "recorded"),
    [
        ("a.py,b.py", ["a.py", "b.py"], []),
        (["a.py", {"name": "b", "digest": "0"}], ["a.py"], [Plugin("b", "0")]),
        ("", [], []),
    ],
)
def test_the_ways_to_name_plugins(given, names, recorded):
    assert named_plugins(given) == (names, recorded)


@pytest.mark.parametrize("given", [3, [3], {"name": "a"}, [{"name": "a"}], [{"name": "a", "digest": 3}]])
def test_what_names_no_plugin_is_an_error(given):
    with pytest.raises(InputError, match="expected the names of files or of installed plugins"):
        named_plugins(given)


def test_an_option_s_name_is_new():
    with pytest.raises(InputError, match="an option optim.lr already"):
        add_option("optim", "lr", float, option(1.0, "x"))
    assert Config() == Config()


def test_a_data_set_of_a_plugin_is_written(tmp_path, photo_tree):
    path = tmp_path / "source.py"
    path.write_text(
        "from fastlsr.data.prepare.sources import SOURCES, add_source\nadd_source('tree', SOURCES['folder'])\n",
        encoding="utf-8",
    )
    write.main(["tree", f"--plugin={path}", "--data-dir", str(photo_tree), "--out", str(tmp_path / "data")])
    assert (tmp_path / "data" / "tree_train.beton").is_file()


def test_a_network_of_a_plugin_is_checked_as_ours_are():
    @network
    def linear(classes, resolution):
        outputs = classes - (classes == 5)
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8**2, outputs))

    made = build_model("linear", classes=6, resolution=8)
    assert made.training and head_parameters(made) == list(made[1].parameters())
    with pytest.raises(InputError, match="model.name=linear has 4 outputs for 5 classes"):
        build_model("linear", classes=5, resolution=8)
    with pytest.raises(InputError, match="model.name=linear does not take images of 9 pixels"):
        build_model("linear", classes=6, resolution=9)

    @network
    def broken(classes, resolution):
        return torch.nn.Linear(classes, nothing)  # noqa: F821

    line = broken.__code__.co_firstlineno + 2
    with pytest.raises(InputError, match=f"{Path(__file__).name}, line {line}: NameError: name 'nothing' is not"):
        build_model("broken", classes=6, resolution=8)


def test_a_run_keeps_the_files_of_two_plugins_of_one_name(tmp_path, train_digits):
    for folder in "ab":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(f"NAME = {folder!r}", encoding="utf-8")
    files = f"{tmp_path}/a/mine.py,{tmp_path}/b/mine.py"
    run = RunFolder(train_digits(tmp_path / "run", {"train.epochs": 1, "plugin": files}))
    kept = [run.plugin(plugin).read_text() for plugin in run.read_config().plugins]
    assert kept == ["NAME = 'a'", "NAME = 'b'"]
