"""The options of a run: frozen dataclasses, and how defaults, a YAML file and the command line become them.

Each section is declared once, as a dataclass whose fields carry help and constraint. fastargs checks and merges
the values; what it would let pass in silence (unknown keys, `--x=False` being true, environment variables, exit
status 0 on errors) is closed here, and nowhere else is fastargs known.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import fastargs
import yaml
from fastargs.validation import Checker

from fastlsr.cli import read_arguments
from fastlsr.errors import InputError, unknown
from fastlsr.plugins import Plugin, load_plugins, named_plugins
from fastlsr.shipped import CONFIGS, file_or_shipped

TEST, VAL = "test", "val"  # splits that `data.val` can name; what an evaluation's columns of a row begin with
LARGEST_SMALL_IMAGE = 64  # pixels: up to here equal images are used at their own size, by networks of their own


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float = -math.inf,
    high: float = math.inf,
    plain: bool = False,
    scales: bool = False,
) -> Any:
    """A dataclass field with its help text and the values it admits.

    Args:
        choices: the only texts it may be.
        low, high: the closed range of a number.
        plain: whether it names a file or folder inside another, and so may hold no path.
        scales: whether it counts epochs from the run's beginning, and so follows `train.scale_to`.
    """
    metadata = {
        "help": help, "choices": tuple(choices), "low": low, "high": high, "plain": plain, "scales": scales
    }  # fmt: skip
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Data:
    """Where the images are and how batches are made of them."""

    dataset: str = option("cifar100", "name of the data set; its files are DIR/DATASET_SPLIT.beton", plain=True)
    dir: str = option("data", "folder of the .beton files")
    train: str = option("", "training .beton, instead of DIR/DATASET_train.beton")
    val: str = option("", "what each epoch is evaluated on: test (the default), val (then test once, at the end), "
                      "or a .beton file, instead of DIR/DATASET_test.beton")  # fmt: skip
    batch_size: int = option(256, "images in a batch, in training and in evaluation", low=1)
    workers: int = option(0, "loader threads; 0 chooses from the cores", low=0)
    order: str = option("random", "order of an epoch", choices=("random", "quasi_random", "sequential"))
    os_cache: bool = option(True, "let the operating system cache the file; false reads pages (with quasi_random)")
    drop_last: bool = option(False, "leave out the last batch of an epoch when it is not full")
    resolution: int = option(
        0, "side of the network's input; 0: the images' own up to 64 pixels, else 224", low=0, high=4096
    )
    augment: str = option("auto", "training crop; auto: pad_crop for equal images up to 64 pixels, else resized_crop",
                          choices=("auto", "pad_crop", "resized_crop", "none"))  # fmt: skip
    flip: bool = option(True, "random horizontal flips in training")
    folds: int = option(0, "cross-validation: cut the training split into so many parts; 0: none", low=0)
    fold: int = option(0, "the part, from 0, that is held out of training and evaluated on", low=0)

    @property
    def selects_on_val(self) -> bool:
        """Whether epochs are evaluated on a validation split, and the test split is left for the end."""
        return self.val == VAL

    @property
    def evaluated_split(self) -> str:
        """What the columns of an epoch's evaluation begin with: "val" if the run `selects_on_val`, else "test"."""
        return VAL if self.selects_on_val else TEST


@dataclass(frozen=True)
class Model:
    """The network."""

    name: str = option(
        "resnet18",
        "one of our networks for small images, as docs/models.md lists them, or any timm model (timm/NAME)",
    )
    pretrained: str = option(
        "",
        "weights to start from: a file (FILE#KEY where it holds several state dicts), a run, `timm` for timm's own "
        "download, or nothing",
    )
    drop_path: float = option(
        0.0, "timm's networks: stochastic depth, the probability that the last block is skipped (drop_path_rate); "
        "0: the network's own", low=0, high=0.999999,
    )  # fmt: skip
    dropout: float = option(
        0.0, "timm's networks: dropout, mostly before the classifier (drop_rate); 0: the network's own",
        low=0, high=0.999999,
    )  # fmt: skip


@dataclass(frozen=True)
class Optim:
    """The optimizer, and the learning rate as a function of the step."""

    name: str = option("sgd", "sgd (fused), or one of timm's optimizers, such as adamw, lamb, lion or muon")
    lr: float = option(0.1, "peak learning rate (of the head, where backbone_lr is set)", low=0)
    backbone_lr: float = option(0.0, "peak learning rate of all but the classifier; 0: the same as lr", low=0)
    min_lr: float = option(0.0, "schedule=cosine: learning rate that it falls to, of what has the peak rate lr", low=0)
    layer_decay: float = option(
        1.0, "fine-tuning: factor of the peak learning rate from each layer to the one before it; 1: none",
        low=1e-3, high=1,
    )  # fmt: skip
    momentum: float = option(0.9, "momentum, where the optimizer has one", low=0, high=1)
    betas: str = option("", "betas of the optimizer, as 0.9,0.999; empty: its own")
    eps: float = option(0.0, "epsilon of the optimizer; 0: its own", low=0)
    weight_decay: float = option(1e-4, "L2 penalty on the parameters; of adamw and its kin: their decay", low=0)
    clip_norm: float = option(0.0, "largest norm of the gradient, which is scaled down to it; 0: any", low=0)
    decay_norm_bias: bool = option(True, "weight decay on biases and normalisations, too, as in the papers")
    nesterov: bool = option(False, "Nesterov momentum")
    schedule: str = option("step", "shape of the learning rate", choices=("constant", "step", "multistep", "cosine"))
    step_epochs: int = option(30, "schedule=step: multiply by gamma every so many epochs", low=1, scales=True)
    milestones: str = option(
        "", "schedule=multistep: epochs at which to multiply by gamma, as 80,120, or fractions of all, as 0.5,0.75",
        scales=True,
    )  # fmt: skip
    gamma: float = option(0.1, "factor of step and multistep", low=0, high=1)
    warmup_epochs: float = option(0.0, "epochs of linear warm-up from zero", low=0, scales=True)
    accumulate: int = option(1, "batches whose gradients are added up before each optimizer step", low=1)


@dataclass(frozen=True)
class Method:
    """What the network is trained towards; `--help` lists the options of each method."""

    name: str = option("hard", "one of the methods of labels.methods, which `--help` lists with the options they read")
    smoothing: float = option(0.1, "weight of the uniform distribution, or the teacher's (TSLA's theta)", low=0, high=1)
    drop_epoch: int = option(
        -1, "epochs with smoothing before it is dropped (TSLA's s); -1: half of the epochs", low=-1, scales=True
    )
    stages: int = option(10, "stages of equal length (COLAM's m)", low=1)
    temperature: float = option(1.0, "temperature of the loss and of the soft labels (COLAM's T)", low=1e-3, high=1e3)
    peers: int = option(0, "random samples of each class whose logits are averaged; 0: all", low=0)
    label_pass: str = option("in_pass", "class means from the stage's last epoch, or from an evaluation pass after it",
                             choices=("in_pass", "extra"))  # fmt: skip
    first_lr: float = option(1.0, "factor of the learning rate while TSLA smooths (eta1)", low=0)
    second_lr: float = option(1.0, "factor of the learning rate once it does not (eta2)", low=0)
    teacher: str = option("", "file of soft labels: of fastlsr.teach, a run's soft_labels/stage_NN, or your own")
    teacher_key: str = option("sample", "which of the file's soft labels: one a sample, or one a class",
                              choices=("sample", "class"))  # fmt: skip
    alpha: float = option(0.1, "probability of redrawing a label (DisturbLabel)", low=0, high=1)
    beta: float = option(0.1, "weight of the confidence penalty", low=0)
    kd_weight: float = option(1.0, "weight of CS-KD's divergence between samples of a class (lambda)", low=0)
    kd_temperature: float = option(4.0, "temperature of that divergence", low=1e-3, high=1e3)
    generations: int = option(2, "generations of Label Refinery, each of train.epochs epochs", low=1)


@dataclass(frozen=True)
class Train:
    """How long, from which seed, and with what arithmetic."""

    epochs: int = option(200, "epochs; Label Refinery has so many in each generation", low=1)
    scale_to: int = option(
        0, "train in so many epochs instead, and scale with them all that is counted in epochs: steps and milestones "
        "of the learning rate, warm-up, drop_epoch, patience; 0: as they are", low=0,
    )  # fmt: skip
    patience: int = option(
        0, "end after so many epochs of the last phase without a better train.best_by; 0: train all", low=0, scales=True
    )
    best_by: str = option("top1", "test metric that decides which epoch is the best: top1, top5, nll, ece, ...")
    seed: int = option(0, "seed of weights, order and augmentation", low=0, high=2**31 - 1)
    precision: str = option("auto", "autocast type; auto: bf16 where the device computes in it, else fp32",
                            choices=("auto", "bf16", "fp32", "fp16"))  # fmt: skip
    compile: str = option(
        "auto", "torch.compile; auto takes what is faster on this device", choices=("auto", "on", "off")
    )
    cuda_graphs: str = option(
        "auto", "whole training steps as CUDA graphs; auto: where one repeats the step's own numbers",
        choices=("auto", "on", "off"),
    )  # fmt: skip
    channels_last: bool = option(True, "channels-last memory format")
    sync_batchnorm: bool = option(
        False, "several ranks: batch norm's statistics over the whole batch, not over each rank's part of it"
    )
    tf32: bool = option(False, "CUDA: float32 convolutions and products in TF32, faster and with 10 bits instead of 23")
    deterministic: bool = option(False, "only deterministic kernels (slower on CUDA; the CPU always is)")
    device: str = option("auto", "auto | cpu | cuda | cuda:N")
    ema: float = option(0.0, "decay of an exponential moving average of the weights, which is then evaluated; 0: none",
                        low=0, high=0.999999)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where the results go."""

    dir: str = option("runs", "folder of all runs")
    name: str = option(
        "", "folder of this run in it; empty: made from data set, model, method, seed and a digest", plain=True
    )
    resume: str = option("auto", "auto continues a run that is there; must: fails if none is; never: fails if one is",
                         choices=("auto", "must", "never"))  # fmt: skip
    logits: str = option("both", "keep the evaluation split's logits of the last epoch, of the best, of both, or none",
                         choices=("both", "last", "best", "none"))  # fmt: skip
    keep_best: bool = option(False, "keep the weights of the best epoch, as best.pt")
    keep: int = option(0, "keep a checkpoint for analyses every so many epochs; 0: none", low=0)
    checkpoint_epochs: int = option(1, "epochs between the checkpoints that a run goes on from", low=1)
    checkpoint_seconds: float = option(0.0, "seconds that lie between them at least", low=0)


@dataclass(frozen=True)
class Log:
    """Where progress is logged."""

    wandb: str = option(
        "auto", "auto: online with an account, else disabled", choices=("auto", "online", "offline", "disabled")
    )
    project: str = option("fastlsr", "W&B project; WANDB_PROJECT wins over this default")
    tensorboard: bool = option(False, "write TensorBoard's files into the run's folder")
    every: int = option(
        50, "batches between figures of the running loss, on the terminal, for W&B and TensorBoard", low=1
    )


# By name, in order; `add_option` replaces one by a class with further options.
SECTIONS: dict[str, type] = {
    "data": Data, "model": Model, "optim": Optim, "method": Method, "train": Train, "run": Run, "log": Log
}  # fmt: skip
PLUGIN = "plugin"  # the only option without a section


@dataclass(frozen=True)
class Config:
    """All options of a run.

    Attributes:
        plugins: what was loaded for it.
        given: the `section.key` names that a file or the command line set.
    """

    data: Data = field(default_factory=lambda: SECTIONS["data"]())
    model: Model = field(default_factory=lambda: SECTIONS["model"]())
    optim: Optim = field(default_factory=lambda: SECTIONS["optim"]())
    method: Method = field(default_factory=lambda: SECTIONS["method"]())
    train: Train = field(default_factory=lambda: SECTIONS["train"]())
    run: Run = field(default_factory=lambda: SECTIONS["run"]())
    log: Log = field(default_factory=lambda: SECTIONS["log"]())
    plugins: tuple[Plugin, ...] = field(default=(), compare=False)
    given: frozenset[str] = field(default=frozenset(), compare=False)

    def as_dict(self) -> dict[str, Any]:
        """Sections to keys to plain values, and the plugins if there are any, as a YAML file would hold them."""
        sections: dict[str, Any] = {name: asdict(getattr(self, name)) for name in SECTIONS}
        return {**sections, PLUGIN: [plugin._asdict() for plugin in self.plugins]} if self.plugins else sections

    def flat(self) -> dict[str, Any]:
        """`section.key` to plain value."""
        return {f"{name}.{key}": value for name in SECTIONS for key, value in asdict(getattr(self, name)).items()}

    def as_yaml(self) -> str:
        """The resolved options as a YAML document that `load` reads back."""
        return yaml.safe_dump(self.as_dict(), sort_keys=False)

    def decisive(self) -> dict[str, Any]:
        """`section.key` to value, in order, of all options that decide a run's numbers, and the plugins' digests."""
        values = {key: value for key, value in self.flat().items() if not is_incidental(key)}
        values |= {"data.val": ""} if self.data.val == TEST else {}  # the default by its name
        return values | {PLUGIN: ",".join(plugin.digest[:12] for plugin in self.plugins)}

    def run_name(self) -> str:
        """`run.name`, or DATASET-MODEL-METHOD-seedN-DIGEST, where the digest tells apart what changes the result."""
        if self.run.name:
            return self.run.name
        # Not of defaults: an option that a later version adds leaves the names of runs as they are.
        defaults = Config().decisive()
        changed = {key: value for key, value in self.decisive().items() if value != defaults[key]}
        digest = hashlib.sha256(json.dumps(changed).encode()).hexdigest()[:6]
        model = self.model.name.replace("/", "-").replace(":", "-")
        return f"{self.data.dataset}-{model}-{self.method.name}-seed{self.train.seed}-{digest}"


def add_option(section: str, name: str, kind: type, declared: Any) -> None:
    """Adds a plugin's option, as `add_option("method", "power", float, option(2.0, "exponent of the fall", low=0))`.

    Args:
        kind: int, float, bool or str.
        declared: of `option`.

    Raises:
        InputError: if there is one of that name, or no such section.
    """
    if section not in SECTIONS:
        raise InputError(unknown("section", section, SECTIONS))
    if name in {item.name for item in fields(SECTIONS[section])}:
        raise InputError(f"there is an option {section}.{name} already; take another name")
    base = SECTIONS[section]
    extended = make_dataclass(base.__name__, [(name, kind, declared)], bases=(base,), frozen=True)
    extended.__doc__ = base.__doc__
    SECTIONS[section] = extended


_INCIDENTAL = {"data.dir", "data.workers", "data.os_cache", "train.cuda_graphs"}


def is_incidental(key: str) -> bool:
    """Whether a `section.key` leaves a run's numbers as they are (places, threads, launches, logging)."""
    return key in _INCIDENTAL or key.split(".")[0] in ("run", "log")


# What may differ where a trained run is opened again: where its data is, and what computes.
FOLDS = ("data.folds", "data.fold")
PLACES = ("data.dataset", "data.dir", "data.train", "data.val", "data.batch_size", "data.workers", "data.os_cache",
          "train.device")  # fmt: skip


def check_places(overrides: Mapping[str, Any]) -> None:
    """Checks options that are to change where a trained run is opened.

    Raises:
        InputError: for one that is not of `PLACES`, or its value.
    """
    for key in overrides:
        if tuple(key.split(".")) not in _declare().entries:
            raise InputError(f"--{unknown('option', key, PLACES)}")
        if key not in PLACES:
            raise InputError(f"--{key} is the run's own and cannot change; {', '.join(PLACES)} can")
    load(overrides=overrides)


def differences(one: Config, other: Config) -> list[str]:
    """`section.key` names, in order, in which two configurations would give different numbers."""
    left, right = one.decisive(), other.decisive()
    return [key for key in left if left[key] != right[key]]


class _Value(Checker):
    """Reads one option: strict about type, range and choice, whether it comes as a YAML value or as text."""

    def __init__(self, kind: type, choices: tuple[str, ...], low: float, high: float, plain: bool):
        self.kind, self.choices, self.low, self.high, self.plain = kind, choices, low, high, plain

    def check(self, value: Any) -> Any:
        if isinstance(value, bool) and "on" in self.choices:
            value = "on" if value else "off"  # YAML reads a bare on or off as a boolean
        value = _READERS[self.kind](value)
        if self.choices and value not in self.choices:
            raise ValueError
        if self.kind in (int, float) and not self.low <= value <= self.high:
            raise ValueError
        if self.plain and ("/" in value or "\0" in value or value in (".", "..")):
            raise ValueError
        return value

    def help(self) -> str:
        if self.choices:
            return "one of " + ", ".join(self.choices)
        if self.plain:
            return "a plain name, without a folder"
        name = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[self.kind]
        if self.low > -math.inf and self.high < math.inf:
            return f"{name} from {self.low:.10g} to {self.high:.10g}"
        return f"{name} of at least {self.low:g}" if self.low > -math.inf else name


def _read_int(value: Any) -> int:
    if isinstance(value, (bool, float)):
        raise ValueError
    return int(value)


def _read_float(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _read_bool(value: Any) -> bool:
    return {"true": True, "false": False}[str(value).lower()]


def _read_str(value: Any) -> str:
    if isinstance(value, (Mapping, list)):
        raise ValueError
    return str(value)


_READERS = {int: _read_int, float: _read_float, bool: _read_bool, str: _read_str}


def _declare() -> fastargs.Config:
    """A fastargs configuration with every section and option of the dataclasses, and no value yet."""
    declared = fastargs.config.Config()
    for section, kind in SECTIONS.items():
        types = get_type_hints(kind)
        fastargs.Section(section, kind.__doc__, config_descriptor=declared).params(**{
            item.name: fastargs.Param(
                _Value(types[item.name], *(item.metadata[name] for name in ("choices", "low", "high", "plain"))),
                item.metadata["help"],
                default=item.default,
            )
            for item in fields(kind)
        })  # fmt: skip
    return declared


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def read_yaml(path: str | Path, shipped: Path = CONFIGS) -> Any:
    """What a YAML file holds.

    Args:
        path: the file, or the name of one in `shipped`.
        shipped: a folder of files that come with the package.

    Raises:
        InputError: if it cannot be read, or is not YAML.
    """
    try:
        return yaml.safe_load(file_or_shipped(path, shipped).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the config {path}: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from None


def _read_file(path: str | Path) -> dict[str, Any]:
    """`section.key` to value from a YAML file."""
    tree = read_yaml(path)
    if tree is None:
        return {}
    if not isinstance(tree, Mapping) or not all(isinstance(key, str) for key in tree):
        raise InputError(f"{path}: expected sections of options, such as `train: {{epochs: 10}}`")
    return _flat(tree)


def load(path: str | Path = "", overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """The configuration: defaults, under the YAML file, under the overrides. Environment variables are ignored.

    Args:
        path: a YAML file of sections, or the name of one that comes with the package, or "" for none.
        overrides: `section.key` to value, or a command line such as `["--train.epochs=3"]`.

    Raises:
        InputError: for an unknown key (names the nearest), a wrong type, a value out of range, an unreadable file.
    """
    if not isinstance(overrides, Mapping):
        _, overrides, _ = read_arguments(overrides)
    given, overrides = _read_file(path) if path else {}, dict(overrides)
    plugins = _load_plugins(given.pop(PLUGIN, ()), overrides.pop(PLUGIN, ()))
    declared = _declare()
    known = [".".join(entry) for entry in declared.entries]
    for source, values in ((f"{path}: ", given), ("", overrides)):
        for key, value in values.items():
            _check_known(source, key, value, known)
    given = {**given, **overrides}
    declared.collect(given)
    for entry in declared.validate("errordict"):
        key = ".".join(entry)
        source = "" if key in overrides else f"{path}: "
        raise InputError(f"{source}{key}={given[key]!s}: expected {declared.entries[entry].checker.help()}")
    sections = {
        section: kind(**{item.name: declared[(section, item.name)] for item in fields(kind)})
        for section, kind in SECTIONS.items()
    }
    return _scaled(Config(**sections, plugins=plugins, given=frozenset(given)))


def _load_plugins(*given: Any) -> tuple[Plugin, ...]:
    """Loads the plugins of a file and of the command line, before the options are read that they may add."""
    found = [named_plugins(each) for each in given]
    names = [name for named, _ in found for name in named]
    return load_plugins(names, [plugin for _, recorded in found for plugin in recorded])


def _scaled(config: Config) -> Config:
    """The same recipe in `train.scale_to` epochs."""
    if not config.train.scale_to:
        return config
    factor = config.train.scale_to / config.train.epochs
    scaled = {section: replace(part, **_scaled_options(part, factor)) for section, part in vars(config).items()
              if section in SECTIONS}  # fmt: skip
    train = replace(scaled["train"], epochs=config.train.scale_to, scale_to=0)
    return replace(config, **{**scaled, "train": train}, given=config.given | {"train.epochs"})


def _scaled_options(part: Any, factor: float) -> dict[str, Any]:
    """The options of a section that count epochs, times `factor`; whole ones above 0 stay whole and above 0."""
    values = {item.name: getattr(part, item.name) for item in fields(part) if item.metadata["scales"]}
    return {name: _scaled_value(value, factor) for name, value in values.items()}


def scaled_by_recipe(config: Config) -> dict[str, Any]:
    """`section.key` to value of the options that `train.scale_to` has scaled; empty without it."""
    if "train.scale_to" not in config.given:
        return {}
    parts = {section: _scaled_options(part, 1.0) for section, part in vars(config).items() if section in SECTIONS}
    return {
        f"{section}.{name}": value for section, options in parts.items() for name, value in options.items() if value
    }


def _scaled_value(value: Any, factor: float) -> Any:
    if isinstance(value, str):  # a list of epochs; what is none stays, and is an error where it is read
        return ",".join(str(_scaled_value(int(part), factor)) if part.strip().isdecimal() else part
                        for part in value.split(","))  # fmt: skip
    if isinstance(value, float):
        return value * factor
    return max(1, round(value * factor)) if value > 0 else value


def from_dict(tree: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Config:
    """The configuration that `Config.as_dict` gave, as from a checkpoint, under the overrides of `load`."""
    return load(overrides={**_flat(tree), **(overrides or {})})


def _check_known(source: str, key: str, value: Any, known: Sequence[str]) -> None:
    if key not in known:
        last = {name.split(".")[-1]: name for name in known}
        close = difflib.get_close_matches(key, known, 1) or [
            last[name] for name in difflib.get_close_matches(key.split(".")[-1], last, 1)
        ]
        hint = f"; did you mean {close[0]}?" if close else f"; sections are {', '.join(SECTIONS)}"
        raise InputError(f"{source}unknown option {key}{hint}")
    if value is None:
        raise InputError(f"{source}{key} has no value; leave it out for its default")


def usage() -> str:
    """A line for each option: its name, its default, what it admits, what it means."""
    lines = list[str]()
    for entry, param in _declare().entries.items():
        if lines and not lines[-1].startswith(f"  --{entry[0]}."):
            lines.append("")  # between sections
        default = str(param.default).lower() if isinstance(param.default, bool) else str(param.default)
        lines.append(f"  --{'.'.join(entry)}={default or '...'}\n      {param.desc} ({param.checker.help()})")
    return "\n".join(lines)
