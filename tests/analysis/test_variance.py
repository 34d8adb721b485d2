"""TSLA Eq. 4's variances: by hand, in the closed form of a linear softmax model, and of a run on real digits."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastlsr import analyze
from fastlsr.analysis import variance
from fastlsr.engine.trained import open_run
from fastlsr.inference.features import split_features

K, D = 5, 7


def linear_softmax(weight, bias):
    """A linear softmax model of images [B, D, 1, 1], in float64."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(*weight.T.shape))
    model[1].weight, model[1].bias = (nn.Parameter(torch.as_tensor(values)) for values in (weight, bias))
    return model.double()


def measured(model, images, targets, *, batch=4):
    pairs = list(zip(images.split(batch), targets.split(batch), strict=True))
    return variance.squared_distances(model, dict(model.named_parameters()), lambda: pairs)


def closed_form(logits, inputs, targets):
    """float64[2, N, K * (D + 1)]: (p - q) x [x; 1], the gradients of a linear softmax model under both targets."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    extended = np.concatenate([inputs, np.ones((len(inputs), 1))], 1)
    return np.stack([np.einsum("nk,nd->nkd", p - targets[:, at], extended).reshape(len(p), -1) for at in (0, 1)])


def linear_problem(samples, *, seed=0):
    """(model, images, targets, gradients) of a linear softmax model on noise, y_hat tilted towards the first class."""
    random = np.random.default_rng(seed)
    inputs, weight, bias = random.normal(size=(samples, D)), random.normal(size=(K, D)), random.normal(size=K)
    soft = random.dirichlet([9, 1, 1, 1, 1], samples)
    targets = np.stack([np.eye(K)[random.integers(K, size=samples)], soft], 1)
    gradients = closed_form(inputs @ weight.T + bias, inputs, targets)
    images = torch.from_numpy(inputs)[:, :, None, None]
    return linear_softmax(weight, bias), images, torch.from_numpy(targets), gradients


def test_two_samples_are_as_worked_by_hand():
    # With zero weights p = (1/2, 1/2). Under y the gradients by (weight, bias) are -+1/2 (x, 1) for class 0 and its
    # negative for class 1, so grad F = +-(1/2, 0); under the uniform label they are 0.
    model = linear_softmax(np.zeros((2, 1)), np.zeros(2))
    images = torch.tensor([1.0, 3.0]).double().view(2, 1, 1, 1)
    targets = torch.stack([torch.eye(2), torch.full((2, 2), 0.5)], 1).double()
    found = measured(model, images, targets)
    assert found.gradient_squared == 0.5
    assert found.hard.tolist() == [2.5, 2.5]
    assert found.soft.tolist() == [0.5, 0.5]
    assert found.bias_squared == 0.5
    delta, error, _ = variance.delta_with_error(found)
    assert delta == 0.2
    assert error > 0  # through the mean gradient, which another sample would move


@pytest.mark.parametrize("values", [1 << 25, 1, 200])
def test_a_linear_softmax_model_has_its_closed_form_whatever_is_held_at_a_time(values, monkeypatch):
    monkeypatch.setattr(variance, "_VALUES", values)
    model, images, targets, (hard, soft) = linear_problem(30)
    found = measured(model, images, targets, batch=8)
    mean, bias = hard.mean(0), (soft - hard).mean(0)
    np.testing.assert_allclose(found.hard, ((hard - mean) ** 2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.soft, ((soft - mean) ** 2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(found.lever, 2 * (hard - mean) @ bias, rtol=1e-9, atol=1e-12)
    for theta in (0.0, 0.1, 0.7):
        smoothed = (1 - theta) * hard + theta * soft
        assert found.mixed(theta) == pytest.approx(((smoothed - mean) ** 2).sum(1).mean(), rel=1e-9)
    assert found.bias_squared == pytest.approx(bias @ bias, rel=1e-10)
    assert found.gradient_squared == pytest.approx(mean @ mean, rel=1e-10)


def test_a_label_that_is_the_one_hot_label_has_delta_one():
    model, images, targets, _ = linear_problem(20)
    found = measured(model, images, targets[:, :1].expand(-1, 2, -1))
    assert variance.delta_with_error(found) == (1, 0, (1, 1))
    assert found.bias_squared == 0


def test_predictions_that_are_nearly_certain_keep_the_digits_of_their_gradients():
    model = linear_softmax(np.array([[10.0], [-10.0]]), np.zeros(2)).float()
    images = torch.tensor([1.0, 1.5]).view(2, 1, 1, 1)
    targets = torch.stack([torch.eye(2)[[0, 0]], torch.full((2, 2), 0.5)], 1)
    rest = np.exp(-20 * np.array([1, 1.5]))  # 1 - p, far below the resolution of float32 at 1
    hard = np.stack([-rest, -rest * [1, 1.5], rest, rest * [1, 1.5]], 1)
    expected = ((hard - hard.mean(0)) ** 2).sum(1)
    np.testing.assert_allclose(measured(model, images, targets).hard, expected, rtol=1e-4)


def test_the_standard_error_is_that_of_samples_drawn_anew_with_a_mean_gradient_of_their_own():
    # With zero weights and uniform y_hat its gradients are 0, and sigma2_hat moves with the mean gradient alone.
    samples, random = 400, np.random.default_rng(1)
    inputs, labels = random.normal(size=(samples, D)), (random.random(samples) < 0.1).astype(int)
    targets = np.stack([np.eye(2)[labels], np.full((samples, 2), 0.5)], 1)
    hard, soft = closed_form(np.zeros((samples, 2)), inputs, targets)
    deltas = []
    for _ in range(1000):
        chosen = random.integers(samples, size=samples)
        mean = hard[chosen].mean(0)
        deltas.append(((soft[chosen] - mean) ** 2).sum() / ((hard[chosen] - mean) ** 2).sum())
    images = torch.from_numpy(inputs)[:, :, None, None]
    model = linear_softmax(np.zeros((2, D)), np.zeros(2))
    delta, error, (low, high) = variance.delta_with_error(measured(model, images, torch.from_numpy(targets), batch=100))
    assert error == pytest.approx(np.std(deltas), rel=0.1)
    assert low < delta < high
    assert (high - low) / error == pytest.approx(2 * 1.96, rel=0.1)


def test_the_draw_is_the_same_each_time_and_holds_each_sample_once():
    assert variance.drawn(1000, 30).tolist() == sorted(set(variance.drawn(1000, 30).tolist()))
    assert len(variance.drawn(1000, 30)) == 30
    assert variance.drawn(7, 30).tolist() == list(range(7))


@pytest.fixture(scope="module")
def run(train_digits, tmp_path_factory):
    options = {"run.keep": 1, "method.name": "tsla", "method.smoothing": 0.3}
    return train_digits(tmp_path_factory.mktemp("runs") / "a", options)


def found_by_command(folder, runs, *options):
    assert analyze.main(["variance", *map(str, runs), f"--out={folder}", *options]) == 0
    return json.loads((folder / "variance.json").read_text())


def test_the_head_of_a_run_has_the_closed_form_of_its_features(run, tmp_path, capsys):
    (said,) = found_by_command(tmp_path, [run], "--parameters=head", "--samples=100")["checkpoints"]
    opened = open_run(run)
    loader = opened.plain_training_loader(lambda labels: variance.drawn(len(labels), 100))
    features = split_features(opened, loader, "training images")
    targets = np.stack([np.eye(10)[features.labels], np.full((100, 10), 0.1)], 1)
    hard, soft = closed_form(features.logits.double().numpy(), features.values.double().numpy(), targets)
    mean = hard.mean(0)
    sigma2, sigma2_hat = (((each - mean) ** 2).sum(1).mean() for each in (hard, soft))
    assert said["sigma2"] == pytest.approx(sigma2, rel=1e-4)
    assert said["sigma2_hat"] == pytest.approx(sigma2_hat, rel=1e-4)
    assert said["delta"] == pytest.approx(sigma2_hat / sigma2, rel=1e-4)
    assert said["theta"] == pytest.approx(1 / (1 + said["delta"]))
    assert said["samples"] == sum(said["histogram"]["hard"]) == sum(said["histogram"]["soft"]) == 100
    assert f"{said['theta']:.3g}" in capsys.readouterr().out
    assert (tmp_path / "variance.png").exists()


def test_a_run_without_rows_is_analysed_without_an_estimate_of_its_cost(run, tmp_path):
    copied = shutil.copytree(run, tmp_path / "copied")
    (copied / "metrics.jsonl").unlink()
    options = ["--parameters=head", "--samples=20"]
    assert found_by_command(tmp_path, [copied], *options)["checkpoints"][0]["samples"] == 20


def test_all_parameters_have_the_variance_of_gradients_taken_one_by_one(run, tmp_path):
    (said,) = found_by_command(tmp_path, [run], "--samples=10")["checkpoints"]
    opened = open_run(run)
    network = opened.network(8)
    gradients = []
    for batch in opened.plain_training_loader(lambda labels: variance.drawn(len(labels), 10)).epoch(0):
        for image, label in zip(batch.images, batch.labels, strict=True):
            loss = nn.functional.cross_entropy(network(image[None]), label[None])
            of_loss = torch.autograd.grad(loss, list(network.parameters()))
            gradients.append(torch.cat([each.flatten() for each in of_loss]).double())
    distances = torch.stack(gradients) - torch.stack(gradients).mean(0)
    assert said["sigma2"] == pytest.approx(distances.square().sum(1).mean().item(), rel=1e-3)


def test_checkpoints_of_a_run_show_the_theta_that_each_was_trained_with(run, tmp_path):
    kept = sorted((run / "checkpoints").iterdir())
    found = found_by_command(tmp_path, kept, "--parameters=head", "--samples=50")["checkpoints"]
    assert [each["epoch"] for each in found] == [1, 2]
    assert [each["theta_used"] for each in found] == pytest.approx([0.3, 0])


@pytest.mark.parametrize("key", ["sample", "class"])
def test_a_file_of_one_hot_labels_gives_delta_one(run, tmp_path, key):
    opened = open_run(run)
    labels = torch.tensor(opened.plain_training_loader().labels)
    rows = {"by_sample": torch.eye(10)[labels].half(), "by_class": torch.eye(10)}
    save_file(rows, tmp_path / "teacher.safetensors")
    options = [f"--teacher={tmp_path}/teacher.safetensors", f"--teacher_key={key}", "--parameters=head"]
    (said,) = found_by_command(tmp_path, [run], *options)["checkpoints"]
    assert said["delta"] == 1
    assert said["samples"] == 1000


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--parameters=heads"], "did you mean head?"),
        (["--samples=1"], "--samples=1: expected at least 2"),
        (["--teacher=no.safetensors"], "no.safetensors cannot be read"),
    ],
)
def test_options_that_do_not_fit_are_an_error_in_one_line(run, words, complaint, capsys, tmp_path):
    with pytest.raises(SystemExit) as exited:
        analyze.main(["variance", str(run), f"--out={tmp_path}", *words])
    assert exited.value.code == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
