"""The optimizer: which parameters it moves at which rate and decay, and that a checkpoint holds all of it."""

import io
import warnings

import pytest
import timm
import timm.optim
import torch

from fastlsr.config import Optim
from fastlsr.engine.optimizers import build_optimizer, parse_betas, set_learning_rate
from fastlsr.errors import InputError
from fastlsr.models import head_parameters


def built(**options):
    """(a small network, its optimizer)."""
    torch.manual_seed(0)
    model = network_with_norm()
    return model, build_optimizer(model, model[3].parameters(), Optim(**options))


def network_with_norm():
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1, bias=False),  # a bias here would have gradients of rounding alone
        torch.nn.BatchNorm2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )


def take_steps(model, optimizer, count):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        images = torch.randn(8, 3, 1, 1, generator=generator)
        torch.nn.functional.cross_entropy(model(images), torch.arange(8) % 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "muon", "adafactorbv", "nadamw", "kron"])
def test_a_checkpoint_holds_all_of_an_optimizer(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # timm's own, on what is experimental
        model, optimizer = built(name=name, lr=0.01)
        take_steps(model, optimizer, 3)
        file = io.BytesIO()
        torch.save([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()], file)
        expected = take_steps(model, optimizer, 3)
        other, restored = built(name=name, lr=0.01)
        weights, state, draws = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        other.load_state_dict(weights)
        restored.load_state_dict(state)
        torch.set_rng_state(draws)
        assert all(map(torch.equal, take_steps(other, restored, 3), expected))


@pytest.mark.filterwarnings("ignore")  # timm's own, on what is experimental
def test_every_optimizer_of_timm_is_built_but_those_of_cuda_and_of_second_derivatives():
    for name in map(str, timm.optim.list_optimizers()):
        if timm.optim.get_optimizer_info(name).second_order:
            with pytest.raises(InputError, match="second derivatives"):
                built(name=name)
        elif not name.startswith(("bnb", "fused")):  # those of packages for CUDA
            built(name=name)


def test_nesterov_without_momentum_is_an_error():
    with pytest.raises(InputError, match="optim.momentum above 0"):
        built(nesterov=True, momentum=0.0)


def test_a_skipped_first_step_leaves_no_garbage_in_the_momentum():
    # fp16's scaler skips a step with infinite gradients, and the fused kernel then returns before it fills its buffers
    for _ in range(10):
        model = torch.nn.Linear(200, 50)
        before = [parameter.clone() for parameter in model.parameters()]
        optimizer = build_optimizer(model, model.parameters(), Optim(lr=1.0, weight_decay=0.0))
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for gradient in (torch.inf, 0.0):
            for parameter in model.parameters():
                parameter.grad = torch.full_like(parameter, gradient)
            scaler.scale(torch.zeros(1))
            scaler.step(optimizer)
            scaler.update()
        assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))


def test_backbone_and_head_have_rates_of_their_own_and_every_parameter_one():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(model, model[1].parameters(), Optim(lr=0.1, backbone_lr=0.01))
    set_learning_rate(optimizer, 0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rate[id(p)] for p in model.parameters()] == pytest.approx([0.005, 0.005, 0.05, 0.05])


def test_without_a_backbone_rate_all_parameters_move_at_lr():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    optimizer = build_optimizer(model, model[1].parameters(), Optim(lr=0.1))
    assert {group["peak_lr"] for group in optimizer.param_groups} == {0.1}


def decay_by_name(**options):
    model = network_with_norm()
    optimizer = build_optimizer(model, model[3].parameters(), Optim(weight_decay=0.5, backbone_lr=0.01, **options))
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    return {name: (groups[id(p)]["weight_decay"], groups[id(p)]["peak_lr"]) for name, p in model.named_parameters()}


def test_every_parameter_decays_unless_asked_otherwise():
    assert {decay for decay, _ in decay_by_name().values()} == {0.5}


def test_without_decay_norm_bias_only_weights_of_layers_decay_and_rates_stay():
    found = decay_by_name(decay_norm_bias=False)
    assert {name for name, (decay, _) in found.items() if decay} == {"0.weight", "3.weight"}
    assert {decay for decay, _ in found.values()} == {0.0, 0.5}
    assert {name: rate for name, (_, rate) in found.items()} == {n: rate for n, (_, rate) in decay_by_name().items()}


def test_a_step_at_zero_gradient_shrinks_exactly_what_decays():
    model = network_with_norm()
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(model, model[3].parameters(), Optim(lr=0.1, weight_decay=0.5, decay_norm_bias=False)).step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, before[name] * (0.95 if parameter.ndim > 1 else 1))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_timm_s_optimizer_is_timm_s(name):
    """On parameters given as a plain list, with the same rate and decay."""
    model, optimizer = built(name=name, lr=0.01, weight_decay=0.1)
    ours = take_steps(model, optimizer, 4)
    torch.manual_seed(0)
    other = network_with_norm()
    theirs = timm.optim.create_optimizer_v2(list(other.parameters()), opt=name, lr=0.01, weight_decay=0.1)
    torch.testing.assert_close(ours, take_steps(other, theirs, 4))


def test_each_layer_before_the_last_moves_slower_by_layer_decay_and_the_classifier_at_lr():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, embed_dim=24, num_heads=2, num_classes=5)
    optimizer = build_optimizer(
        model, head_parameters(model), Optim(name="adamw", lr=1.0, layer_decay=0.5, decay_norm_bias=False)
    )
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    found = {name: groups[id(p)] for name, p in model.named_parameters()}
    rates = {name: group["peak_lr"] for name, group in found.items()}
    blocks = [{rate for name, rate in rates.items() if name.startswith(f"blocks.{n}.")} for n in range(3)]
    assert blocks == [{blocks[0].copy().pop() * 2**n} for n in range(3)]
    assert rates["head.weight"] == 1 and rates["patch_embed.proj.weight"] == min(rates.values())
    assert found["pos_embed"]["weight_decay"] == found["cls_token"]["weight_decay"] == 0
    assert found["blocks.0.attn.qkv.weight"]["weight_decay"] == Optim().weight_decay


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"name": "adamx"}, "optim.name=adamx: no such optimizer of timm; did you mean"),
        ({"name": "AdamW"}, "optim.name=AdamW: no such optimizer of timm; did you mean adamw?"),
        ({"name": "nonsense"}, "there are sgd, adamw, lamb, lion, muon, "),
        ({"name": "adahessian"}, "second derivatives"),
        ({"name": "fusedadam"}, "optim.name=fusedadam: "),
        ({"name": "lion", "eps": 1e-6}, "optim.eps is no option of lion"),
        ({"betas": "0.9,0.99"}, "optim.betas is no option of sgd"),
        ({"name": "adamw", "betas": "0.9"}, "optim.betas=0.9: adamw takes another number of them"),
        ({"name": "adamw", "nesterov": True}, "optim.nesterov is an option of sgd alone"),
        ({"layer_decay": 0.5}, "optim.layer_decay=0.5: only timm's models name their layers"),
    ],
)
def test_an_option_that_an_optimizer_does_not_take_is_one_line(options, line):
    with pytest.raises(InputError) as error:
        built(**options)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "a", "1,0.9", "-0.1", "0.9;0.99"])
def test_betas_that_are_none_are_an_error(text):
    with pytest.raises(InputError, match="optim.betas"):
        parse_betas(text)
