"""Names: our networks first, then timm's, and the error of every wrong name."""

import pytest
import torch

from fastlsr.errors import InputError
from fastlsr.models import build_model, head_parameters
from fastlsr.models.registry import SMALL_IMAGE_NETWORKS
from fastlsr.models.small import SmallImageNetwork


def error_of(name, *, classes=10, resolution=32, pretrained="", **drops):
    with pytest.raises(InputError) as caught:
        build_model(name, classes=classes, resolution=resolution, pretrained=pretrained, **drops)
    message = str(caught.value)
    assert "\n" not in message
    return message


def on_meta(name, *, classes=10, resolution=224):
    with torch.device("meta"):
        return build_model(name, classes=classes, resolution=resolution)


def test_own_network_wins_and_the_prefix_reaches_timm_s():
    assert isinstance(on_meta("resnet18", resolution=32), SmallImageNetwork)
    assert on_meta("timm/resnet18").conv1.kernel_size == (7, 7)


def test_any_other_name_is_timm_s_with_and_without_prefix_or_tag():
    names = ["resnet34", "timm/resnet34", "timm/resnet34.tv_in1k"]
    assert len({type(on_meta(name)) for name in names}) == 1
    assert all(on_meta(name, classes=7).num_classes == 7 for name in names)


@pytest.mark.parametrize(
    ("name", "millions"), [("timm/resnet18", 11.69), ("timm/resnet50", 25.56), ("timm/resnet101", 44.55)]
)
def test_timm_s_networks_of_the_papers_have_the_parameters_of_the_literature(name, millions):
    count = sum(parameter.numel() for parameter in on_meta(name, classes=1000).parameters())
    assert count == pytest.approx(millions * 1e6, rel=0.01)


@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenetv3_small_050", "convnext_atto", "vit_tiny_patch16_224", "vgg11"]
)
def test_head_of_a_timm_model_is_its_classifier(name):
    model = on_meta(f"timm/{name}", classes=7)
    assert [parameter.shape[0] for parameter in head_parameters(model)] == [7, 7]
    assert len(list(model.parameters())) > 2


def test_head_of_a_distilled_model_is_both_its_classifiers():
    assert [p.shape[0] for p in head_parameters(on_meta("deit_tiny_distilled_patch16_224", classes=7))] == [7] * 4


def test_a_transformer_is_built_for_the_images_it_gets():
    model = build_model("vit_tiny_patch16_224", classes=3, resolution=32)
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("resnet19", "resnet18"),
        ("ResNet20", "resnet20"),
        ("timm/resnet100", "resnet101"),
        ("efficentnet_b0", "efficientnet_b0"),
        ("resnet18.tv", "resnet18.tv_in1k"),
    ],
)
def test_the_error_of_an_unknown_name_has_the_nearest(name, nearest):
    assert nearest in error_of(name)


@pytest.mark.parametrize("name", ["no such thing at all", "hf-hub:timm/resnet18", "../resnet18", "timm/", ""])
def test_a_name_that_is_no_model_is_an_error_without_a_network(name):
    assert "not known" in error_of(name)


@pytest.mark.parametrize("name", SMALL_IMAGE_NETWORKS)
def test_a_small_image_network_takes_no_photographs_and_its_error_names_timm_s(name):
    assert "timm/resnet18" in error_of(name, resolution=224)
    on_meta(name, resolution=64)


def test_timm_s_weights_for_an_own_network_are_an_error():
    assert "timm/resnet18" in error_of("resnet18", pretrained="timm")


@pytest.mark.parametrize(
    ("name", "resolution"), [("vit_tiny_patch16_224", 8), ("vgg11", 16), ("inception_v3", 32), ("mvitv2_tiny", 40)]
)
def test_images_too_small_for_a_model_are_one_line(name, resolution):
    assert f"does not take images of {resolution} pixels" in error_of(name, resolution=resolution)


@pytest.mark.parametrize(("name", "resolution"), [("xcit_nano_12_p8_224", 100), ("gcvit_xxtiny", 8)])
def test_a_size_that_a_model_cannot_take_is_one_line(name, resolution):
    assert f"cannot be built for {resolution} pixels" in error_of(name, resolution=resolution)


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/test_convnext"])
@pytest.mark.parametrize("drop", ["drop_path", "dropout"])
def test_what_is_dropped_is_drawn_anew_in_training_and_nothing_is_in_evaluation(name, drop):
    torch.manual_seed(0)
    images = torch.randn(8, 3, 32, 32)
    model = build_model(name, classes=3, resolution=32, **{drop: 0.5})
    with torch.no_grad():
        for parameter in model.parameters():  # scales of layers that begin near 0 would hide what is dropped
            parameter.normal_(std=0.3)
        assert not torch.equal(model(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize("name", ["timm/test_vit", "timm/resnet18"])
def test_drops_neither_change_the_weights_nor_their_names(name):
    states = []
    for drops in ({}, {"drop_path": 0.0, "dropout": 0.0}, {"drop_path": 0.2, "dropout": 0.1}):
        torch.manual_seed(0)
        states.append(build_model(name, classes=3, resolution=32, **drops).state_dict())
    for other in states[1:]:
        assert list(other) == list(states[0]) and all(torch.equal(other[key], states[0][key]) for key in other)


@pytest.mark.parametrize("pretrained", ["", "timm"])
@pytest.mark.parametrize("name", ["timm/vgg11_bn.tv_in1k", "timm/densenet121.tv_in1k"])
def test_a_drop_that_timm_s_network_does_not_take_is_one_line_before_any_download(name, pretrained):
    line = error_of(name, resolution=64, pretrained=pretrained, drop_path=0.1, dropout=0.2)
    assert line.startswith("model.drop_path=0.1 is no option of ") and "dropout" not in line


@pytest.mark.parametrize("drop", ["drop_path", "dropout"])
def test_a_drop_is_no_option_of_our_networks(drop):
    assert error_of("resnet8", **{drop: 0.1}).startswith(f"model.{drop}=0.1 is no option of resnet8")
