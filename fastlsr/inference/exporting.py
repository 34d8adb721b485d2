"""A run's weights as a file for other programs: safetensors for torch and timm, or ONNX."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fastlsr import __version__
from fastlsr.config import TEST, VAL
from fastlsr.engine.session import Position, build_network
from fastlsr.engine.trained import TrainedRun
from fastlsr.errors import InputError
from fastlsr.files import replace_file
from fastlsr.models.registry import FORCE_TIMM, OWN_NETWORKS, SMALL_IMAGE_NETWORKS, size_option
from fastlsr.models.weight_files import METADATA, evaluated_weights, plain_line
from fastlsr.runs import Row

_NEEDED = ("onnx", "onnxscript")  # by torch.onnx; the extra `export` of pyproject.toml
_PIXELS = "uint8 [batch, 3, {0}, {0}], RGB; the normalisation is part of the graph"


class FromPixels(nn.Module):
    """A network with its normalisation before it: uint8 [B, 3, H, W] to logits float32 [B, K].

    Of plain operations, unlike `Classifier`, so that any exporter knows them.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", 255 * torch.tensor(mean)[:, None, None])
        self.register_buffer("std", 255 * torch.tensor([s or 1.0 for s in std])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the images."""
        return self.model((images.float() - self.mean) / self.std)


def export(run: TrainedRun, out: Path, weights: str = "") -> str:
    """Writes the run's weights to `out`, .safetensors or .onnx; returns a line on how to load it.

    Args:
        weights: "raw", "ema" or, for what the run evaluates, "".

    Raises:
        InputError: for a moving average that the run has not, or where a package is missing; nothing is written then.
    """
    state = chosen_weights(run, weights)
    about = description(run, state)
    if out.suffix == ".onnx":
        write_onnx(run, state, about, out)
        return f"exported to {out}; load it by: onnxruntime.InferenceSession({str(out)!r}), images are {about['input']}"
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    # One JSON value: safetensors would write several in a random order.
    content = save(tensors, metadata={METADATA: json.dumps(about)})
    replace_file(out, lambda part: part.write_bytes(content))  # save_file's would be readable by its owner only
    return f"exported to {out}; load it by: {how_to_load(run, out)}"


def check_is_best(run: TrainedRun) -> None:
    """Checks that the run's kept best checkpoint, which was opened, is of its best row.

    Raises:
        InputError: if it is of another epoch, as after a resumption without `run.keep_best`.
    """
    best = run.folder.read_summary()["best"]["epoch"]
    if run.position != Position(best, 0):
        path, epoch = run.folder.best_checkpoint, run.position.epochs
        raise InputError(
            f"--which=best: {path} is of epoch {epoch}, but the best is {best}; run.keep_best was not on all the time"
        )


def chosen_weights(run: TrainedRun, weights: str) -> dict[str, Tensor]:
    """The state dict that `weights` names.

    Raises:
        InputError: for a moving average that the run has not.
    """
    if weights == "ema" and not run.state["ema"]:
        raise InputError("--weights=ema: the run has no moving average (train.ema)")
    return evaluated_weights(run.state) if weights != "raw" else run.state["model"]


def description(run: TrainedRun, state: dict[str, Tensor]) -> dict[str, Any]:
    """What the weights are, in plain values.

    `test_top1` and `val_top1` are there for weights that the run evaluated on these splits: its own, or their average,
    after a whole epoch.
    """
    mean, std = run.decided["normalization"]
    about = {
        "model": run.config.model.name,
        "weights": "moving average" if state is run.state["ema"] else "raw",
        "classes": run.classes,
        "mean": mean,
        "std": std,
        "resolution": run.resolution,
        "dataset": run.config.data.dataset,
        "run": run.config.run_name(),
        "epoch": run.position.epochs,
        "batches": run.position.batches,
        "fastlsr": __version__,
    }
    row = row_of(run)
    if row and state is evaluated_weights(run.state):
        about |= {
            f"{split}_top1": row[f"{split}/top1"] for split in (VAL, TEST) if row.get(f"{split}/top1") is not None
        }
    return about


def row_of(run: TrainedRun) -> Row | None:
    """The row of the checkpoint that was opened; None inside an epoch, or where a checkpoint lies by itself."""
    rows = run.state.get("rows", [])  # checkpoints for analyses have none
    if not rows and (run.folder.path / "metrics.jsonl").exists():
        rows = run.folder.read_rows()
    at = None if run.position.batches else run.position.epochs
    return next((row for row in rows if row["epoch"] == at), None)


def how_to_load(run: TrainedRun, out: Path) -> str:
    """Python that builds the network with the exported weights: timm's for one of its networks, else ours."""
    name, classes, resolution = run.config.model.name, len(run.classes), run.resolution
    if name in SMALL_IMAGE_NETWORKS or name in OWN_NETWORKS:
        options = f"{name!r}, classes={classes}, resolution={resolution}, pretrained={str(out)!r}"
        plugin = " (its plugin loaded before)" if name in OWN_NETWORKS else ""
        return f"fastlsr.models.build_model({options}){plugin}"
    name = name.removeprefix(FORCE_TIMM)
    size = "".join(f", {key}={value}" for key, value in size_option(name, resolution).items())
    return f"timm.create_model({name!r}, num_classes={classes}{size}, checkpoint_path={str(out)!r})"


def write_onnx(run: TrainedRun, state: dict[str, Tensor], about: dict[str, Any], out: Path) -> None:
    """Writes the network as ONNX, in float32: "images" to "logits", for any number of images.

    Raises:
        InputError: where a package is missing, or torch cannot export the network.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"--out={out}: ONNX needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    model = build_network(run.config, len(run.classes), run.resolution, pretrained="")
    model.load_state_dict(state)
    network = FromPixels(model, about["mean"], about["std"]).eval()
    images = torch.zeros(2, 3, run.resolution, run.resolution, dtype=torch.uint8)
    about["input"] = _PIXELS.format(run.resolution)
    try:
        program = torch.onnx.export(
            network, (images,), input_names=["images"], output_names=["logits"], verbose=False, dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )  # fmt: skip
    except Exception as error:  # exporters raise almost anything
        raise InputError(f"--out={out}: torch cannot export {about['model']} to ONNX: {plain_line(error)}") from None
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in about.items()}
    assert program is not None  # as it would be if torch wrote the file itself
    program.model.metadata_props.update(texts)
    replace_file(out, lambda part: program.save(part, external_data=False))
