"""Every method against an independent, slow version in plain NumPy, written from the papers' formulas."""

import numpy as np
import pytest
import torch

from fastlsr.data.order import peers_of
from fastlsr.labels.class_means import ClassMeans, CorrectMeans
from fastlsr.labels.losses import pair_divergence, redrawn, soft_target_cross_entropy

ONE = torch.ones(())
CPU = torch.device("cpu")


def softmax(row):
    row = np.exp(row - row.max())
    return row / row.sum()


def cross_entropy(target, logits, temperature=1.0):
    """COLAM Eq. 4 (and TSLA Eq. 2 at T = 1), literally."""
    return -sum(t * np.log(p) for t, p in zip(target, softmax(logits / temperature), strict=True))


def one_hot(label, classes):
    return np.eye(classes)[label]


def problem(batch=12, classes=6, seed=0):
    random = np.random.default_rng(seed)
    return 3 * random.standard_normal((batch, classes)), random.integers(classes, size=batch)


def numeric_gradient(loss, logits, step=1e-6):
    gradient = np.zeros_like(logits)
    for at in np.ndindex(*logits.shape):
        moved = logits.copy()
        moved[at] += step
        gradient[at] = (loss(moved) - loss(logits)) / step
    return gradient


def ours(logits, labels, mix, table=None, **options):
    table = None if table is None else torch.tensor(table)
    arguments = torch.tensor(logits), torch.tensor(labels), torch.tensor(mix), table, ONE
    losses, gradients = soft_target_cross_entropy(*arguments, **options)
    return losses.numpy(), gradients.numpy()


TARGETS = {
    "hard": ((1.0, 0.0, 0.0, 1.0), lambda y, k, s, i: one_hot(y, k)),
    "lsr": ((0.9, 0.1, 0.0, 1.0), lambda y, k, s, i: 0.9 * one_hot(y, k) + 0.1 / k),
    "lsr_pre by class": ((0.6, 0.0, 0.4, 1.0), lambda y, k, s, i: 0.6 * one_hot(y, k) + 0.4 * s[y]),
    "colam at T = 2": ((0.0, 0.0, 1.0, 0.5), lambda y, k, s, i: s[y]),
    "online": ((0.5, 0.0, 0.5, 1.0), lambda y, k, s, i: 0.5 * one_hot(y, k) + 0.5 * s[y]),
}


@pytest.mark.parametrize("name", TARGETS)
def test_losses_and_gradients_are_the_formulas(name):
    mix, target = TARGETS[name]
    logits, labels = problem()
    table = np.random.default_rng(1).dirichlet(np.ones(6), size=6)
    reads = mix[2] > 0
    losses, gradients = ours(logits, labels, mix, table if reads else None)

    def plain(z):
        return [cross_entropy(target(y, 6, table, i), row, 1 / mix[3]) for i, (y, row) in enumerate(zip(labels, z))]  # noqa: B905

    np.testing.assert_allclose(losses, plain(logits), rtol=1e-5)
    np.testing.assert_allclose(gradients, numeric_gradient(lambda z: sum(plain(z)), logits), atol=1e-4)


def test_a_teacher_by_sample_is_looked_up_by_sample():
    logits, labels = problem()
    table = np.random.default_rng(1).dirichlet(np.ones(6), size=40)
    index = np.random.default_rng(2).integers(40, size=12)
    losses, _ = ours(logits, labels, (0.6, 0.0, 0.4, 1.0), table, key=torch.tensor(index))
    expected = [cross_entropy(0.6 * one_hot(labels[i], 6) + 0.4 * table[index[i]], logits[i]) for i in range(12)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_label_refinery_is_the_divergence_from_the_former_network_and_the_entropy_of_its_prediction():
    logits, labels = problem()
    former = [softmax(row) for row in problem(seed=3)[0]]
    losses, gradients = ours(logits, labels, (0.0, 0.0, 1.0, 1.0), np.array(former), key=torch.arange(12))

    def plain(z):  # its section 3: KL(former || prediction), whose gradient the entropy does not change
        return [sum(f * np.log(f / p) for f, p in zip(*pair, strict=True))
                for pair in zip(former, map(softmax, z), strict=True)]  # fmt: skip

    entropies = [-sum(f * np.log(f)) for f in former]
    np.testing.assert_allclose(losses, np.add(plain(logits), entropies), rtol=1e-5)
    np.testing.assert_allclose(gradients, numeric_gradient(lambda z: sum(plain(z)), logits), atol=1e-4)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_confidence_penalty_subtracts_the_entropy_of_the_prediction(beta, temperature):
    logits, labels = problem()

    def plain(z):
        predictions = [softmax(row / temperature) for row in z]
        entropies = [-(p * np.log(p)).sum() for p in predictions]
        return [-np.log(p[y]) - beta * h for p, y, h in zip(predictions, labels, entropies, strict=True)]

    losses, gradients = ours(logits, labels, (1.0, 0.0, 0.0, 1 / temperature), penalty=torch.tensor(beta))
    np.testing.assert_allclose(losses, plain(logits), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gradients, numeric_gradient(lambda z: sum(plain(z)), logits), atol=1e-4)


def test_the_penaltys_gradient_passes_gradcheck_in_float64():
    logits, labels = (torch.tensor(value) for value in problem(4, 5))
    mix, beta = torch.tensor([0.7, 0.3, 0.0, 0.5], dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)

    def reference(z):
        p = (z * 0.5).softmax(1)
        rows = 0.7 * torch.nn.functional.one_hot(labels, 5) + 0.3 / 5
        return (-(rows * p.log()).sum(1) + beta * (p * p.log()).sum(1)).sum()

    assert torch.autograd.gradcheck(reference, logits.clone().requires_grad_())
    exact = logits.clone().requires_grad_()
    reference(exact).backward()
    _, gradients = soft_target_cross_entropy(logits, labels, mix.float(), None, ONE, penalty=beta.float())
    torch.testing.assert_close(gradients.double(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cs_kd_is_the_divergence_from_a_peers_prediction_that_gets_no_gradient(temperature):
    logits, _ = problem()
    peers, _ = problem(seed=5)
    weight = 1.5

    def plain(z):
        total = 0.0
        for row, peer in zip(z, peers, strict=True):
            p, q = softmax(peer / temperature), softmax(row / temperature)
            total += weight * temperature**2 * (p * (np.log(p) - np.log(q))).sum()
        return total

    mine, other = torch.tensor(logits), torch.tensor(peers)
    numbers = {"weight": torch.tensor(weight), "inverse_temperature": torch.tensor(1 / temperature)}
    losses, gradients = pair_divergence(mine, torch.zeros(12), other, ONE, **numbers)
    np.testing.assert_allclose(losses.sum().item(), plain(logits), rtol=1e-4)
    np.testing.assert_allclose(gradients.numpy(), numeric_gradient(plain, logits), atol=1e-3)


def test_a_peer_with_the_same_prediction_costs_nothing():
    logits = torch.tensor(problem()[0])
    numbers = {"weight": ONE, "inverse_temperature": torch.tensor(0.25)}
    losses, gradients = pair_divergence(logits, torch.zeros(12), logits, ONE, **numbers)
    assert gradients.abs().max() < 1e-4 and losses.abs().max() < 1e-4


def test_disturb_label_redraws_from_all_classes_with_probability_alpha():
    labels, index = torch.arange(10).repeat(20_000), torch.arange(200_000)
    drawn = redrawn(labels, index, torch.tensor(0.3), 10, torch.tensor(7))
    kept = (drawn == labels).double().mean().item()
    assert kept == pytest.approx(1 - 0.3 + 0.3 / 10, abs=0.005)
    others = torch.bincount(drawn[drawn != labels], minlength=10).double()
    assert (others / others.sum() - 0.1).abs().max() < 0.005
    assert torch.equal(redrawn(labels, index, torch.tensor(0.0), 10, torch.tensor(7)), labels)


def test_disturb_label_is_a_function_of_seed_and_sample_not_of_the_batch():
    labels, index = torch.arange(100) % 7, torch.arange(100)
    whole = redrawn(labels, index, torch.tensor(0.5), 7, torch.tensor(3))
    order = torch.randperm(100)
    parts = [redrawn(labels[part], part, torch.tensor(0.5), 7, torch.tensor(3)) for part in order.split(9)]
    assert torch.equal(torch.cat(parts), whole[order])
    assert not torch.equal(redrawn(labels, index, torch.tensor(0.5), 7, torch.tensor(4)), whole)


def test_the_expected_gradient_of_disturb_label_is_that_of_label_smoothing():
    logits, labels = (torch.tensor(value) for value in problem(8, 5))
    logits = logits.float()
    alpha, draws = torch.tensor(0.4), 20_000
    total = torch.zeros(8, 5)
    hard = torch.tensor([1.0, 0.0, 0.0, 1.0])
    for seed in range(draws // 100):
        many = redrawn(labels.repeat(100), torch.arange(800) + 800 * seed, alpha, 5, torch.tensor(11))
        total += soft_target_cross_entropy(logits.repeat(100, 1), many, hard, None, ONE)[1].view(100, 8, 5).sum(0)
    smooth = torch.tensor([0.6, 0.4, 0.0, 1.0])
    expected = soft_target_cross_entropy(logits, labels, smooth, None, ONE)[1]
    torch.testing.assert_close(total / draws, expected, atol=0.02, rtol=0)


def test_online_label_smoothing_averages_the_predictions_that_were_right():
    logits, labels = problem(60, 5)
    logits[labels == 2] -= 9 * np.eye(5)[2]  # a class that is never right
    means = CorrectMeans(5, 60, device=CPU)
    means.start(torch.ones(60))
    for index in torch.arange(60).split(7):
        means.update(torch.tensor(logits)[index], torch.tensor(labels)[index], index)
    table = means.soft_labels(1.0, former=torch.eye(5))
    for label in range(5):
        right = [softmax(z) for z, y in zip(logits, labels, strict=True) if y == label and z.argmax() == label]
        expected = np.mean(right, axis=0) if right else np.full(5, 0.2)  # as the authors' code resets it
        np.testing.assert_allclose(table[label], expected, rtol=1e-5)
        assert means.seen[label] == bool(right)


def test_colam_soft_labels_minimise_the_squared_distance_to_the_logits():
    """Eq. 6: no other vector is nearer to a class's logits than the one whose softmax we take."""
    logits, labels = problem(60, 5)
    means = ClassMeans(5, 60, device=CPU)
    means.start(torch.ones(60))
    means.update(torch.tensor(logits), torch.tensor(labels), torch.arange(60))
    centre = (means.logit_sum / means.count[:, None]).numpy()
    random = np.random.default_rng(3)
    for label in range(5):
        mine = logits[labels == label]
        best = ((mine - centre[label]) ** 2).sum()
        for _ in range(20):
            assert ((mine - centre[label] - 0.01 * random.standard_normal(5)) ** 2).sum() > best


@pytest.mark.parametrize("epoch", range(3))
def test_a_peer_is_another_sample_of_the_class_and_everyone_is_one_once(epoch):
    labels = np.random.default_rng(0).integers(7, size=200)
    labels[17] = 7  # alone in its class
    peers = peers_of(labels, seed=1, epoch=epoch)
    assert (labels[peers] == labels).all() and sorted(peers) == list(range(200))
    assert np.flatnonzero(peers == np.arange(200)).tolist() == [17]


def test_peers_differ_between_epochs_and_seeds():
    labels = np.arange(200) % 4
    drawn = [peers_of(labels, seed=s, epoch=e) for s, e in ((0, 0), (0, 1), (1, 0))]
    assert not any(np.array_equal(a, b) for a, b in ((drawn[0], drawn[1]), (drawn[0], drawn[2]), (drawn[1], drawn[2])))
    assert np.array_equal(drawn[1], peers_of(labels, seed=0, epoch=1))
