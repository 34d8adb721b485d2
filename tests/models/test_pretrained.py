"""Weights from files, runs and timm: what is loaded, what stays as initialised, and the error of every bad input."""

import argparse
import builtins
import os
import pathlib
import subprocess
import sys
from collections import OrderedDict, defaultdict

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from fastlsr.engine import checkpoint
from fastlsr.errors import InputError
from fastlsr.models import build_model, expected_normalization
from fastlsr.models.pretrained import network_of

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HEAD = {"fc.weight", "fc.bias"}


def small(*, classes=10, seed=0, pretrained="", name="resnet8"):
    torch.manual_seed(seed)
    return build_model(name, classes=classes, resolution=32, pretrained=str(pretrained))


def write(path, state):
    (save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    return path


def trained_state(**options):
    """A state dict that differs from any initialisation in every entry."""
    return {key: value + 1 for key, value in small(seed=1, **options).state_dict().items()}


def differing(one, other):
    return {key for key in one if not torch.equal(one[key], other[key])}


def error_of(path, **options):
    with pytest.raises(InputError) as caught:
        small(pretrained=path, **options)
    message = str(caught.value)
    assert "\n" not in message and "\x1b" not in message and str(path) in message
    return message


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_file_of_each_kind_gives_the_model_its_weights(tmp_path, suffix):
    state = trained_state()
    assert not differing(small(pretrained=write(tmp_path / f"w{suffix}", state)).state_dict(), state)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.",
                                    "model._orig_mod.", "network.", "net."])  # fmt: skip
def test_wrapper_and_prefixes_are_stripped(tmp_path, wrapper, prefix):
    state = trained_state()
    wrapped = {wrapper: {prefix + key: value for key, value in state.items()}, "epoch": 3}
    assert not differing(small(pretrained=write(tmp_path / "w.pt", wrapped)).state_dict(), state)


def test_a_prefix_that_some_of_the_network_s_names_lack_stays(tmp_path):
    state = {f"model.{key}" if at % 2 else key: value for at, (key, value) in enumerate(trained_state().items())}
    assert "unexpected (model." in error_of(write(tmp_path / "w.ckpt", {"state_dict": state}))


class Saved(torch.nn.Module):
    pass


def timm_file(folder, *, average=False, **args):
    """(file, state dict, average) that timm's own `CheckpointSaver` wrote of `test_resnet`."""
    model, ema = (timm.create_model("test_resnet", num_classes=7) for _ in range(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    options = argparse.Namespace(model="test_resnet", output=folder, **args)
    saver = timm.utils.CheckpointSaver(
        model, optimizer, args=options, model_ema=ema if average else None, checkpoint_dir=folder, recovery_dir=folder
    )
    saver.save_checkpoint(0, metric=np.float64(50))
    return folder / "last.pth.tar", model.state_dict(), ema.state_dict()


def of_timm(pretrained):
    return build_model("timm/test_resnet", classes=7, pretrained=str(pretrained), resolution=32)


def test_a_checkpoint_of_timm_s_script_loads_with_its_options_and_optimizer_inside(tmp_path):
    path, state, _ = timm_file(tmp_path, mean=None, std=None)
    model = of_timm(path)
    assert not differing(state, model.state_dict())
    assert expected_normalization(model, str(path)) == ((0.5,) * 3, (0.5,) * 3), "timm's own for this network"


def test_the_normalisation_that_timm_s_script_was_given_is_kept(tmp_path):
    path, *_ = timm_file(tmp_path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6])
    assert expected_normalization(of_timm(path), str(path)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_of_several_sets_of_weights_one_must_be_chosen(tmp_path):
    path, state, average = timm_file(tmp_path, average=True)
    with pytest.raises(InputError, match="state_dict and state_dict_ema: choose one, as in FILE#state_dict_ema"):
        of_timm(path)
    assert not differing(state, of_timm(f"{path}#state_dict").state_dict())
    assert not differing(average, of_timm(f"{path}#state_dict_ema").state_dict())
    with pytest.raises(InputError, match="no state dict ema; it holds state_dict, state_dict_ema"):
        of_timm(f"{path}#ema")


def test_a_name_with_a_hash_is_a_file_where_there_is_one(tmp_path):
    state = trained_state()
    assert not differing(small(pretrained=write(tmp_path / "run#3.pt", state)).state_dict(), state)


def test_torch_s_averaged_model_loads(tmp_path):
    average = torch.optim.swa_utils.AveragedModel(small(seed=1))
    content = {"model_ema": average.state_dict(), "epoch": 3}
    loaded = small(pretrained=write(tmp_path / "w.pth", content)).state_dict()
    assert not differing(loaded, average.module.state_dict())


def test_objects_beside_the_weights_are_dropped_unread(tmp_path):
    others = {"hyper_parameters": {"act": torch.nn.ReLU, "path": pathlib.Path("x"), "best": np.float64(3)},
              "history": np.zeros(3), "saved": Saved(), "callbacks": {"best": torch.tensor(3.0)}}  # fmt: skip
    state = trained_state()
    path = write(tmp_path / "w.ckpt", {"state_dict": {f"model.{key}": value for key, value in state.items()}, **others})
    assert not differing(small(pretrained=path).state_dict(), state)


@pytest.mark.parametrize("classes", [2, 9, 11])
def test_only_a_classifier_for_another_number_of_classes_stays_fresh(tmp_path, classes):
    state = trained_state()
    fresh = small(classes=classes).state_dict()
    loaded = small(classes=classes, pretrained=write(tmp_path / "w.pt", state)).state_dict()
    assert differing(loaded, fresh) == set(loaded) - HEAD
    assert not differing({key: loaded[key] for key in set(loaded) - HEAD}, state)


def test_a_classifier_of_the_same_number_of_classes_is_loaded(tmp_path):
    state = trained_state()
    assert torch.equal(small(pretrained=write(tmp_path / "w.pt", state)).fc.weight, state["fc.weight"])


def test_half_precision_weights_are_loaded_into_float32(tmp_path):
    state = {key: value.half() if value.is_floating_point() else value for key, value in trained_state().items()}
    loaded = small(pretrained=write(tmp_path / "w.safetensors", state)).state_dict()
    assert all(torch.equal(loaded[key], state[key].to(loaded[key].dtype)) for key in loaded)


def test_torchvision_s_file_loads_into_timm_s_network(tmp_path):
    state = torchvision.models.resnet18(num_classes=1000).state_dict()
    path = write(tmp_path / "w.pth", state)
    model = build_model("timm/resnet18", classes=7, pretrained=str(path), resolution=64)
    assert model.fc.out_features == 7
    assert not differing({key: value for key, value in state.items() if key not in HEAD}, model.state_dict())


def test_an_old_file_without_batch_counters_loads(tmp_path):
    state = OrderedDict((key, value) for key, value in trained_state().items() if "num_batches" not in key)
    path = write(tmp_path / "w.pt", state)
    assert differing(state, small(pretrained=path).state_dict()) == set()


def test_a_timm_file_loads_into_its_timm_model(tmp_path):
    source = timm.create_model("mobilenetv3_small_050", num_classes=5)
    path = write(tmp_path / "w.safetensors", source.state_dict())
    model = build_model("mobilenetv3_small_050", classes=5, pretrained=str(path), resolution=64)
    assert not differing(source.state_dict(), model.state_dict())


def test_missing_file_is_an_error(tmp_path):
    assert "no such file" in error_of(tmp_path / "none.pt")


def test_a_folder_that_is_no_run_is_an_error(tmp_path):
    assert "a folder without the checkpoint of a run" in error_of(tmp_path)


def test_other_suffix_is_an_error(tmp_path):
    (tmp_path / "w.npz").write_bytes(b"x")
    assert ".safetensors, .pt, .pth" in error_of(tmp_path / "w.npz")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", bytes(range(256)) * 9])
def test_a_file_that_is_no_weights_is_an_error(tmp_path, suffix, content):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    assert "not readable" in error_of(path)


def test_a_flipped_bit_is_an_error(tmp_path):
    path = write(tmp_path / "w.pt", trained_state())
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "checksum" in error_of(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_an_error(tmp_path, suffix, share):
    path = write(tmp_path / f"w{suffix}", trained_state())
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert "not readable" in error_of(path)


class Harmful:
    def __init__(self, function):
        self.function = function

    def __reduce__(self):
        return self.function, ("exit(1)",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(("module", "name"), [(os, "system"), (builtins, "eval"), (subprocess, "getoutput")])
def test_code_in_a_file_does_not_run(tmp_path, monkeypatch, module, name, zipped):
    state, path = trained_state(), tmp_path / "w.pt"
    torch.save({"state_dict": state, "x": Harmful(getattr(module, name))}, path, _use_new_zipfile_serialization=zipped)
    ran = []
    monkeypatch.setattr(module, name, ran.append)
    if zipped and module is not os:
        assert not differing(small(pretrained=path).state_dict(), state)
    else:  # torch never admits os, and of its old format the names cannot be listed
        assert f"Python objects other than tensors ({'posix.' if module is os else ''}" in error_of(path)
    assert ran == []


def test_a_pickled_module_is_named(tmp_path):
    path = tmp_path / "w.pt"
    torch.save(Saved(), path)
    assert "no state dict (names of parameters and their tensors), but a " in (line := error_of(path))
    assert line.endswith(".Saved")


def test_what_torch_cannot_read_is_named(tmp_path):
    others = defaultdict(list, {"a": [1]})
    line = error_of(write(tmp_path / "w.pt", {"state_dict": trained_state(), "log": others}))
    assert "collections.defaultdict" in line and "save its state dict alone" in line


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    """A run whose moving average is another network than its last weights."""
    return train_digits(tmp_path_factory.mktemp("runs") / "a", {"train.ema": 0.9, "train.epochs": 1})


@pytest.mark.parametrize("name", ["", "checkpoint.pt"])
def test_a_run_gives_the_weights_that_it_evaluates_and_their_normalisation(run, name):
    state, _ = checkpoint.load_newest(run)
    model = small(pretrained=run / name)
    assert differing(state["model"], state["ema"]) and not differing(state["ema"], model.state_dict())
    assert not differing(state["model"], small(pretrained=f"{run / name}#model").state_dict())
    assert list(map(list, expected_normalization(model, str(run)))) == state["decided"]["normalization"]


def test_a_run_of_another_network_is_an_error_that_names_it_and_other_classes_are_not(run):
    assert error_of(run, name="resnet20").endswith("(weights of resnet8)")
    state, _ = checkpoint.load_newest(run)
    assert differing(state["ema"], small(classes=7, pretrained=run).state_dict()) == HEAD


def test_a_damaged_checkpoint_of_a_run_is_an_error_and_not_the_one_before(run, tmp_path):
    (tmp_path / "checkpoint.previous.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes()[:-9999])
    assert "not readable" in error_of(tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], 3, {"epoch": 3}, {"model": {}}, {"state_dict": 5}, torch.zeros(2)])
def test_a_file_of_something_else_is_an_error(tmp_path, content):
    assert "no state dict" in error_of(write(tmp_path / "w.pt", content))


def test_missing_keys_are_named(tmp_path):
    state = trained_state()
    del state["features.stem.0.weight"]
    assert "1 missing (features.stem.0.weight)" in error_of(write(tmp_path / "w.pt", state))


def test_a_file_without_classifier_is_an_error(tmp_path):
    state = {key: value for key, value in trained_state().items() if key not in HEAD}
    assert "missing (fc.weight, fc.bias)" in error_of(write(tmp_path / "w.pt", state))


def test_unexpected_keys_are_named(tmp_path):
    state = trained_state() | {"extra.weight": torch.ones(1)}
    assert "unexpected (extra.weight)" in error_of(write(tmp_path / "w.pt", state))


def test_only_the_first_keys_are_named(tmp_path):
    message = error_of(write(tmp_path / "w.pt", small(name="resnet20").state_dict()))
    assert "unexpected" in message and ", ...)" in message and len(message) < 400


def test_another_shape_is_named_with_both_shapes(tmp_path):
    state = trained_state() | {"features.stem.0.weight": torch.zeros(16, 3, 7, 7)}
    expected = "features.stem.0.weight has shape (16, 3, 7, 7), the model's (16, 3, 3, 3)"
    assert expected in error_of(write(tmp_path / "w.pt", state))


def test_a_classifier_of_another_width_is_an_error_and_not_replaced(tmp_path):
    state = trained_state() | {"fc.weight": torch.zeros(7, 128)}
    assert "fc.weight has shape (7, 128)" in error_of(write(tmp_path / "w.pt", state))


def test_timm_s_weights_want_imagenet_s_statistics_and_a_new_network_the_data_s_own():
    with torch.device("meta"):
        of_timm = build_model("timm/resnet18", classes=3, resolution=224)
        own = build_model("resnet18", classes=3, resolution=32)
    assert expected_normalization(of_timm, "timm") == expected_normalization(of_timm, "w.pth") == IMAGENET
    assert expected_normalization(of_timm, "") is None
    assert expected_normalization(own, "w.pth") is None


def test_statistics_are_the_tag_s_own():
    with torch.device("meta"):
        model = build_model("inception_v3.tf_in1k", classes=3, resolution=299)
    assert expected_normalization(model, "timm") == ((0.5,) * 3, (0.5,) * 3)


def test_a_model_for_which_timm_has_no_weights_is_an_error():
    with pytest.raises(InputError, match="timm has no weights for coatnet_0_224 .it has: none"):
        build_model("coatnet_0_224", classes=3, pretrained="timm", resolution=224)


OFFLINE = """
from fastlsr.cli import exit_on_input_error
from fastlsr.models import build_model
with exit_on_input_error():
    build_model("timm/resnet18", classes=3, pretrained="timm", resolution=64)
"""


def test_no_network_is_one_line_and_no_random_weights(tmp_path):
    # In a subprocess, because the Hugging Face client reads its environment only when it is imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", OFFLINE], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith("error: model.pretrained=timm: no weights for resnet18: ")
    assert done.stderr.count("\n") == 1


WRAPPERS = ["module", "_orig_mod", "model", "net", "backbone", "0"]
EXTRAS = [
    ("arcface.fc.weight", torch.ones(4, 4)),  # a name of the network below another prefix
    ("fc.weight", torch.ones(4, 4)),
    ("criterion.weight", torch.ones(4)),
    ("model.criterion.fc.bias", torch.ones(4)),
    ("n_averaged", torch.zeros((), dtype=torch.int64)),
]


def below(prefix, state):
    return {f"{prefix}.{name}": value for name, value in state.items()}


@settings(max_examples=50)
@given(
    wrappers=st.lists(st.sampled_from(WRAPPERS), min_size=1, max_size=4),
    extras=st.lists(st.sampled_from(EXTRAS), unique_by=lambda extra: extra[0]),
    first=st.booleans(),
)
def test_the_network_is_found_below_any_prefix_beside_any_other_tensors(wrappers, extras, first):
    own = small().state_dict()
    inside, others = below(prefix := ".".join(wrappers), own), dict(extras)
    assume(not any(name.startswith(f"{prefix}.") for name in others))  # which would be the network's own
    found = network_of(others | inside if first else inside | others, own)
    assert found.keys() == own.keys() and not differing(own, found)


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(["student", "teacher", "model", "ema_model", "_orig_mod"]), min_size=1,
                         max_size=3).map(".".join), min_size=2, max_size=3, unique=True))  # fmt: skip
def test_of_several_parts_that_fit_all_are_named_and_none_is_taken(prefixes):
    own = small().state_dict()
    state = {name: value for prefix in prefixes for name, value in below(prefix, own).items()}
    with pytest.raises(InputError) as caught:
        network_of(state, own)
    assert str(caught.value) == f"holds the network in {' and '.join(prefixes)}: choose one, as in FILE#{prefixes[-1]}"


def test_the_key_chooses_a_part_of_a_checkpoint_s_only_state_dict_or_of_a_named_one(tmp_path):
    """Its part may be wrapped, too: `FILE#model` of `model._orig_mod.`."""
    one, other = trained_state(), {name: value + 1 for name, value in trained_state().items()}
    parts = below("model._orig_mod", one) | below("ema_model.module", other) | {"ema_model.n_averaged": torch.ones(())}
    for content, under in ((parts, ""), ({"state_dict": parts}, ""), ({"a": parts, "b": one}, "a."),
                           ({"state_dict": below("net", parts)}, "net.")):  # fmt: skip
        path = write(tmp_path / "w.ckpt", content)
        for key, state in (("model", one), ("model._orig_mod", one), ("ema_model", other)):
            assert not differing(state, small(pretrained=f"{path}#{under}{key}").state_dict())
        whole = f"{path}#{under}".rstrip("#.")
        line = error_of(whole) if whole else ""
        assert line.endswith(f"{under}model._orig_mod and {under}ema_model.module: choose one, as in "
                             f"FILE#{under}ema_model.module")  # fmt: skip
        assert "holds no state dict other; it holds " in error_of(f"{path}#other")


def test_a_network_beside_its_own_copy_is_not_taken_silently(tmp_path):
    state = trained_state()
    path = write(tmp_path / "w.pt", below("ema", state) | state)
    assert "in its top level and ema: choose one, as in FILE#ema" in error_of(path)
    assert not differing(state, small(pretrained=f"{path}#ema").state_dict())


def test_of_no_part_that_fits_the_nearest_one_s_keys_are_named(tmp_path):
    state = trained_state()
    del state["features.stem.0.weight"]
    path = write(tmp_path / "w.ckpt", {"state_dict": below("net.backbone", state) | {"loss.fc.weight": torch.ones(3)}})
    assert error_of(path).endswith("its keys are not the model's: 1 missing (features.stem.0.weight)")


@pytest.mark.parametrize("extra", ["criterion.weight", "metric.fc.weight"])
def test_a_lightning_checkpoint_loads_with_a_loss_beside_the_compiled_network(tmp_path, extra):
    """Of another number of classes, and without BatchNorm's counters."""
    state = {name: value for name, value in trained_state(classes=4).items() if "num_batches" not in name}
    inside = below("model._orig_mod", state) | {extra: torch.ones(4)}
    loaded = small(pretrained=write(tmp_path / "w.ckpt", {"state_dict": inside, "epoch": 3})).state_dict()
    assert differing(state, loaded) == HEAD
