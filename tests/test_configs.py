"""Every shipped YAML: its header, its options, its phases, its network."""

import functools
import re
from pathlib import Path

import pytest
import torch

from fastlsr.config import load
from fastlsr.data.prepare.sources import SOURCES
from fastlsr.labels.methods import METHODS, make_plan
from fastlsr.models import build_model
from fastlsr.report.papers import quoted_figures

FOLDER = Path(__file__).parents[1] / "configs"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
FIELDS = ["paper", "table", "data", "command", "duration", "expected"]
SHIPPED = (
    "quickstart tsla_cifar100 tsla_dogs tsla_cub colam_cifar10 colam_cifar100 colam_imagenet "
    "colam_flowers102 colam_aircraft colam_dtd colam_cub"
).split()

of_each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


COLAM_TABLES = {  # file -> the networks of its table, with the options by which the header reaches each
    "colam_cifar10": ["preact_resnet34", "wide_resnet_40x4", "resnext29_8x64d", "densenet_bc_100"],
    "colam_cifar100": ["preact_resnet34", "wide_resnet_40x4", "resnext29_8x64d", "densenet_bc_100"],
    "colam_imagenet": ["timm/resnet50", "timm/resnet101"],
}


def header(path):
    """The comment lines that the file begins with, without their marks."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("#").strip() for line in lines if line.startswith("#")]


def test_every_experiment_has_its_config():
    assert set(SHIPPED) <= {path.stem for path in CONFIGS}


@of_each_config
def test_header_has_every_field_in_order(path):
    found = [line.split(":")[0] for line in header(path) if re.match(rf"({'|'.join(FIELDS)}):\s*\S", line)]
    assert found == FIELDS


@of_each_config
def test_header_s_commands_name_this_config_and_its_data_set(path):
    text = "\n".join(header(path))
    assert f"command: python -m fastlsr.train --cfg configs/{path.name}\n" in text
    assert f"data: python data_prep/write_ffcv.py {load(path).data.dataset}" in text


@of_each_config
def test_data_set_has_a_writer(path):
    assert load(path).data.dataset in SOURCES


@of_each_config
def test_method_is_the_one_of_the_file_name_and_quoted_in_the_header(path):
    method = load(path).method.name
    assert path.stem == "quickstart" or path.stem.startswith(method)
    assert any(re.match(rf"{method}\b.*\d\d\.\d", line) for line in header(path))


@of_each_config
@pytest.mark.parametrize("method", sorted(METHODS))
def test_phases_of_every_method_add_up_to_the_epochs(path, method):
    config = load(path, {"method.name": method, "method.teacher": "file"})
    made = make_plan(config.method, config.train.epochs).phases
    assert sum(phase.epochs for phase in made) == config.train.epochs * (1 + sum(phase.fresh for phase in made))
    assert all(phase.hard + phase.uniform + phase.soft == pytest.approx(1) for phase in made)


@of_each_config
def test_learning_rate_falls_within_the_run(path):
    config = load(path)
    falls = [int(epoch) for epoch in config.optim.milestones.split(",") if epoch]
    if config.optim.schedule == "step":
        falls = list(range(config.optim.step_epochs, config.train.epochs, config.optim.step_epochs))
    assert falls == sorted(falls) and all(0 < epoch < config.train.epochs for epoch in falls)
    assert bool(falls) == (config.optim.schedule in ("step", "multistep"))


@of_each_config
def test_network_is_built(path):
    config = load(path, {"model.pretrained": ""})
    with torch.device("meta"):
        model = build_model(config.model.name, classes=7, resolution=config.data.resolution or 32)
    assert next(model.parameters()).is_meta
    assert model.get_classifier().out_features == 7


def variants(path):
    """The options of each line of the header that consists of options."""
    return [dict(word[2:].split("=") for word in line.split()) for line in header(path) if line.startswith("--")]


@pytest.mark.parametrize("name", COLAM_TABLES)
def test_every_row_of_colam_s_tables_is_the_config_or_a_line_of_options_in_its_header(name):
    path = FOLDER / f"{name}.yaml"
    assert {load(path, options).model.name for options in [{}, *variants(path)]} >= set(COLAM_TABLES[name])


@of_each_config
def test_options_in_the_header_make_a_run(path):
    for options in variants(path):
        config = load(path, options)
        falls = [int(epoch) for epoch in config.optim.milestones.split(",") if epoch]
        assert all(0 < epoch < config.train.epochs for epoch in falls)
        lengths = {phase.epochs for phase in make_plan(config.method, config.train.epochs).phases}
        assert len(lengths) == 1 or config.method.name == "tsla", "stages are equal"
        with torch.device("meta"):
            build_model(config.model.name, classes=7, resolution=config.data.resolution or 32)


@pytest.mark.parametrize("name", ["colam_cifar10", "colam_cifar100"])
def test_densenet_has_its_240_epochs_and_falls_at_half_and_three_quarters(name):
    path = FOLDER / f"{name}.yaml"
    (config,) = [load(path, line) for line in variants(path) if line.get("model.name") == "densenet_bc_100"]
    assert (config.train.epochs, config.optim.milestones) == (240, "120,180")


@of_each_config
def test_a_separate_backbone_rate_belongs_to_pretrained_weights(path):
    config = load(path)
    assert not config.optim.backbone_lr or config.model.pretrained


@functools.cache
def quoted(path):
    """(config, figures) of each row of the header: the run that it stands for, and what the paper printed of it.

    A row is `method: figures` or `method, option value: figures`; it stands below the options that it needs besides.
    """
    rows, options = [], {}
    for line in header(path):
        if line.startswith("--"):
            options = dict(word[2:].split("=") for word in line.split())
        for method, option, value, figures in re.findall(r"(\w+)(?:, (\w+) (\d+))?: (\d\d\.\d\d[^;]*)", line):
            own = {f"method.{option}": value} if option else {}
            rows.append((load(path, {**options, "method.name": method, **own}), figures))
    return rows


PAPER_FILES = {("colam", "fgvc_aircraft"): "colam_aircraft", ("tsla", "stanford_dogs"): "tsla_dogs",
               ("tsla", "cub200"): "tsla_cub", ("colam", "cub200"): "colam_cub"}  # fmt: skip


ACCURACIES = [figure for figure in quoted_figures() if figure.metric in ("top1", "top5")]


@pytest.mark.parametrize("figure", ACCURACIES, ids=lambda f: "-".join(map(str, vars(f).values())))
def test_every_accuracy_of_the_papers_tables_is_quoted_where_options_train_it(figure):
    path = FOLDER / f"{PAPER_FILES.get((figure.paper, figure.dataset), f'{figure.paper}_{figure.dataset}')}.yaml"
    selected = {"method.smoothing": load(path).method.smoothing, **figure.options}
    (figures,) = [
        figures
        for config, figures in quoted(path)
        if config.data.dataset == figure.dataset
        and config.model.name.removeprefix("timm/").removesuffix(".tv_in1k") == figure.model
        and all(str(getattr(config.method, key.removeprefix("method."))) == str(selected[key]) for key in selected)
    ]
    assert figures.split(" / ")[figure.metric == "top5"].replace("+-", "±") == str(figure)


@of_each_config
def test_random_crops_of_photographs_are_an_assumption_and_stated(path):
    """Both papers leave the area and the aspect ratio of the crops open."""
    crops = [line for line in header(path) if re.match(r"assumption: RandomResizedCrop\(224\) .*0\.08.*3/4", line)]
    assert len(crops) == (load(path).data.augment == "resized_crop")


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem.startswith("colam")], ids=lambda p: p.stem)
def test_the_misprint_of_colam_s_equation_5_is_stated(path):
    assert any(line.startswith("deviation: Eq. 5") for line in header(path))


@of_each_config
def test_quoted_rows_are_runs(path):
    for config, _ in quoted(path):
        assert make_plan(config.method, config.train.epochs)
