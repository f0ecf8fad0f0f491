"""Why a run does not get on, each reason on a run that is made to have it; the diagnosis of embeddings in a file."""

import numpy as np
import pytest
import torch
from of_pml import LpDistance
from of_pml import losses as pml
from torch import nn

from pml_ext import _pml, losses, wrappers
from pml_ext.analysis import EmbeddingHealth, diagnose
from pml_ext.analysis.geometry import geometry, pairs_of_classes, possible_rank, singular_values
from pml_ext.analysis.stuck import parameters_behind

CLASSES, PER_CLASS, D = 16, 4, 24
LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)


def images(seed, noise=0.7):
    """Samples that a linear map can tell apart by their class."""
    of_class = torch.randn(CLASSES, 32, generator=torch.Generator().manual_seed(0))
    return of_class[LABELS] + noise * torch.randn(len(LABELS), 32, generator=torch.Generator().manual_seed(seed + 1))


def run(
    steps=60, *, loss=None, network=None, prepare=None, see=None, change=None, rate=0.01, trained=None, labels=LABELS
):
    """Train a linear map, and say at the end what is wrong."""
    torch.manual_seed(0)
    loss = losses.RAWLoss() if loss is None else loss
    network = nn.Linear(32, D) if network is None else network
    health = EmbeddingHealth(loss, every=10)
    parameters = [*network.parameters(), *loss.parameters()] if trained is None else trained
    optimizer = torch.optim.SGD(parameters, lr=rate)
    for step in range(steps):
        optimizer.zero_grad()
        x = images(step) if prepare is None else prepare(step)
        embeddings = network(x)
        value = loss(embeddings if see is None else see(embeddings), labels if prepare is None else LABELS)
        value = value if change is None else change(value, step)
        if value.requires_grad:
            value.backward()
        optimizer.step()
        health.step(step)
    return health


def test_a_run_that_gets_on_is_not_named():
    health = run()
    assert {measured.failure for measured in health.history.values()} == {""}
    assert health.latest.loss < health.history[0].loss
    assert health.latest.gradient > 0
    assert health.latest.separation > 0.9


def test_embeddings_that_are_detached_get_no_gradient():
    proxies = pml.SoftTripleLoss(CLASSES, D)
    health = run(3, loss=proxies, see=torch.Tensor.detach)
    assert health.failure == (
        "no gradient reaches the embeddings: they do not require one, as after detach() or under no_grad()"
    )


def test_a_gradient_of_zero_is_no_gradient():
    health = run(3, change=lambda value, _: 0 * value)
    assert health.failure.startswith("no gradient reaches the embeddings: it is 0, at a loss of ")
    satisfied = run(3, loss=pml.FastAPLoss(), change=lambda value, _: 0 * value)
    assert satisfied.latest.gradient == 0


def test_a_loss_of_zero_is_satisfied():
    class Zero(_pml.Loss):
        def loss_dict(self, embeddings, *_):
            return {"loss": {"losses": 0 * embeddings.sum(), "indices": None, "reduction_type": "already_reduced"}}

    failure = run(3, loss=Zero(distance=LpDistance())).failure
    assert failure.startswith("nothing to learn from")


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_parameters_that_are_not_trained_are_named(rate):
    network, other = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, D)), nn.Linear(2, 2)
    health = run(6, network=network, trained=[*(network if rate == 0 else other).parameters()], rate=rate)
    assert health.failure.startswith("nothing moves: none of the 4 parameters of the network has changed since step 0")
    assert health.history[0].failure == ""


def test_proxies_that_are_not_trained_are_named():
    network = nn.Linear(32, D)
    health = run(6, loss=pml.SoftTripleLoss(CLASSES, D), network=network, trained=[*network.parameters()])
    assert health.failure.startswith("nothing moves: none of the 1 parameters of the loss has changed since step 0")
    assert run(6, loss=pml.SoftTripleLoss(CLASSES, D)).failure == ""


def test_parameters_are_found_behind_a_compiled_network_too():
    network = nn.Sequential(nn.Linear(32, 8), nn.Tanh(), nn.Linear(8, D))
    network[0].weight.requires_grad_(False)
    compiled = torch.compile(network, backend="aot_eager")
    for each in (network, compiled):
        found = {id(parameter) for parameter in parameters_behind(each(images(0)))}
        assert found == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}
    assert parameters_behind(images(0)) == []


def test_labels_of_other_images_are_named():
    generator = torch.Generator().manual_seed(5)
    health = run(80, labels=LABELS, prepare=lambda step: images(step)[torch.randperm(len(LABELS), generator=generator)])
    assert "positives no closer than negatives after" in health.failure
    assert all(not measured.failure for step, measured in health.history.items() if step < 50)


def test_thin_embeddings_are_named():
    thin = nn.Sequential(nn.Linear(32, 2), nn.Linear(2, D))
    health = run(80, network=thin)
    assert health.failure == "few dimensions: 3 of 24 are in use, the classes could take 15"


def test_images_that_a_batch_repeats_are_named():
    def twice(step):
        return images(step).view(CLASSES, 2, 2, 32)[:, :, :1].expand(-1, -1, 2, -1).reshape(-1, 32)

    health = run(4, prepare=twice)
    assert health.failure.startswith("repeated images: 33% of the positive pairs are the same image")


def test_a_loss_above_its_start_is_named():
    # The goal is changed on the way, to the opposite.
    health = run(80, change=lambda value, step: value if step < 5 else -value, rate=0.3)
    assert health.failure.startswith("loss above its start")
    assert all(not measured.failure for step, measured in health.history.items() if step < 50)


def test_a_loss_that_is_no_number_is_named():
    class Broken(_pml.Loss):
        def loss_dict(self, embeddings, *_):
            losses = embeddings.sum(1) * torch.nan
            return {"loss": {"losses": losses.mean(), "indices": None, "reduction_type": "already_reduced"}}

    assert run(2, loss=Broken(distance=LpDistance())).history[0].failure == "not finite: the loss is nan"


@pytest.mark.parametrize("steps", [1, 7, 10, 11, 33, 100, 300])
@pytest.mark.parametrize("last", [True, False])
def test_a_run_is_measured_ten_times_and_at_its_end(steps, last):
    loss = losses.RAWLoss()
    x = images(0)[:, :D].requires_grad_()
    health = EmbeddingHealth(loss, every=100, last=steps - 1 if last else None)
    for step in range(steps):
        loss(x, LABELS)
        health.step(step)
    assert health.latest is not None
    assert next(reversed(health.history)) == steps - 1
    assert len(health.history) >= min(steps, 10)
    assert len(health.history) < 70


def test_of_two_calls_in_an_iteration_the_first_is_measured():
    loss = losses.RAWLoss()
    health = EmbeddingHealth(loss)
    for step in range(20):
        for scale in (1.0, 100.0):
            loss((scale * images(step)[:, :D]).requires_grad_(), LABELS)
        health.step(step)
    assert health.latest is health.history[19]
    assert all(measured.norm_mean < 20 for measured in health.history.values())


def test_a_state_is_measured_before_it_moves_or_not_at_all():
    loss = wrappers.CrossBatchMemory(losses.RAWLoss(), D, 200)
    health = EmbeddingHealth(loss, every=100)
    for step in range(18):
        loss(images(step)[:, :D].requires_grad_(), LABELS)
        health.step(step)
    assert health.latest is health.history[16]


# --- The numbers. -----------------------------------------------------------------------------------------------------


def test_separation_counts_comparisons():
    x, labels = torch.randn(30, 5, generator=torch.Generator().manual_seed(0)), torch.arange(30) % 4
    x[4] = x[0]
    cosines = nn.functional.normalize(x) @ nn.functional.normalize(x).T
    pos = [cosines[i, j] for i in range(30) for j in range(30) if i != j and labels[i] == labels[j]]
    neg = [cosines[i, j] for i in range(30) for j in range(30) if labels[i] != labels[j]]
    won = sum((p > n).item() + 0.5 * (p == n).item() for p in pos for n in neg)
    found = pairs_of_classes(x, labels)
    assert found["separation"] == pytest.approx(won / len(pos) / len(neg), abs=1e-5)
    assert found["repeated"] == pytest.approx(2 / len(pos))


def test_a_part_of_the_anchors_of_a_large_set(monkeypatch):
    labels = torch.arange(600) // 4
    x = torch.randn(150, 8, generator=torch.Generator().manual_seed(0))[labels]
    x = x + 0.3 * torch.randn(600, 8, generator=torch.Generator().manual_seed(1))
    whole = pairs_of_classes(x, labels)
    monkeypatch.setattr("pml_ext.analysis.geometry._SCORES", 600 * 150)
    part = pairs_of_classes(x, labels)
    assert part["separation"] == pytest.approx(whole["separation"], abs=0.01)
    assert part != whole


def test_singular_values_of_many_rows():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(singular_values(x), torch.linalg.svdvals(x))
    assert geometry(torch.eye(4).repeat(100, 1))["effective_rank"] == pytest.approx(3, rel=1e-3)


def test_rank_that_is_possible():
    assert possible_rank(32, 128, torch.arange(32) // 4) == 7
    assert possible_rank(32, 4, torch.arange(32) // 4) == 4
    assert possible_rank(0, 4, None) == 0


# --- A diagnosis. -----------------------------------------------------------------------------------------------------


def sound():
    return images(0, noise=0.5)


FOUND = {
    "": lambda x: (x, LABELS),
    "collapsed": lambda x: (1 + 1e-3 * x, LABELS),
    "not finite: 2 of 64 embeddings, the first is row 3": lambda x: (
        torch.where(torch.tensor([i in (3, 9) for i in range(64)]).unsqueeze(1), torch.nan, x),
        LABELS,
    ),
    "positives no closer than negatives: closer in": lambda x: (
        x,
        LABELS[torch.randperm(64, generator=torch.Generator().manual_seed(1))],
    ),
    "few dimensions: 2 of 32 are in use, the classes could take 15": lambda x: (
        x[:, :2] @ torch.ones(2, 32).tril(),
        LABELS,
    ),
    "repeated images: 33% of the positive pairs": lambda x: (
        x.view(16, 2, 2, 32)[:, :, [0, 0]].reshape(64, 32),
        LABELS,
    ),
    "lonely samples: 60 of 61 classes": lambda x: (x, torch.arange(64).clamp(min=3)),
    "no positives": lambda x: (x, torch.arange(64)),
    "no negatives": lambda x: (x, torch.zeros(64)),
    "zero vectors: 1 of 64": lambda x: (torch.where(torch.arange(64).unsqueeze(1) == 5, 0.0, x), LABELS),
    "uneven lengths": lambda x: (torch.where(torch.arange(64).unsqueeze(1) == 5, 1e6, 1.0) * x / 1e3, LABELS),
    "no embeddings": lambda x: (x[:0], []),
}


@pytest.mark.parametrize("finding", FOUND)
def test_findings_have_names(finding):
    found = diagnose(*FOUND[finding](sound()))
    assert [line for line in found.findings if line.startswith(finding)] if finding else found.findings == ()
    assert ("nothing is wrong" in repr(found)) == (not finding)
    assert all(line in repr(found) for line in found.findings)
    assert repr(found).count("\n") < 12


def test_embeddings_and_labels_of_a_file(tmp_path):
    x, names = sound(), np.array([f"class <{i}>" for i in LABELS.tolist()])
    np.save(tmp_path / "x.npy", x.numpy())
    np.save(tmp_path / "y.npy", names)
    expected = diagnose(x, LABELS)
    for given in ((tmp_path / "x.npy", str(tmp_path / "y.npy")), (x.tolist(), names), (x.numpy(), LABELS.tolist())):
        assert diagnose(*given) == expected
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="is not an array of numbers"):
        diagnose(tmp_path / "objects.npy", LABELS)
    with pytest.raises(ValueError, match=r"embeddings must have shape \[n, d\], got \(64,\)"):
        diagnose(x[:, 0], LABELS)
    with pytest.raises(ValueError, match="labels must have one label"):
        diagnose(x, LABELS[1:])
    assert "<pre>64 embeddings of 32 dimensions, 16 classes\n" in expected._repr_html_()
