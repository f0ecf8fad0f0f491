"""Batches of the main job that look at the embeddings: near classes and mined tuples, refreshed and resumed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pml_ext.benchmark import Experiment, checkpoint, losses, plots
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.sampled import RefreshedBatches, batches_of
from pml_ext.benchmark.training import Run
from pml_ext.mining import Neighbors

# Twelve classes in pairs that are near one another, on the circle.
CLASSES, EACH = 12, 6
LABELS = torch.arange(CLASSES).repeat_interleave(EACH)


def circle():
    angles = torch.arange(CLASSES) // 2 * (2 * torch.pi / 6) + torch.arange(CLASSES) % 2 * 0.1
    spread = torch.linspace(-0.02, 0.02, EACH)
    angle = (angles.unsqueeze(1) + spread).flatten()
    return torch.stack((angle.cos(), angle.sin()), 1)


def refreshed(sampler="neighbors", steps=6, seed=0):
    rule = None if sampler == "mined" else Neighbors()
    return RefreshedBatches(LABELS, rule, classes=2, per_class=3, steps=steps, seed=seed)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: [])


def pairs_of_near_classes(batches):
    """How many of the batches hold two classes that are near one another."""
    found = [sorted({int(LABELS[i]) for i in batch}) for batch in batches]
    return sum(len(each) == 2 and each[0] // 2 == each[1] // 2 for each in found)


def test_before_it_has_looked_classes_come_at_random_and_then_with_their_nearest():
    batches = refreshed(steps=12)
    assert pairs_of_near_classes(batches.epoch()) < 6
    batches.refresh(circle())
    assert pairs_of_near_classes(batches.epoch()) == 12


def test_mined_batches_hold_anchors_with_their_hardest_negatives():
    batches = refreshed("mined", steps=80)
    batches.refresh(circle())
    nearest = (circle() @ circle().T).masked_fill(LABELS.unsqueeze(1) == LABELS, -2).argmax(1)
    chosen = batches.epoch()
    assert [len(batch) for batch in chosen] == [6] * 80
    with_hardest = sum(int(nearest[i]) in batch for batch in chosen for i in batch)
    assert with_hardest > 100
    # Every sample is an anchor once in a pass over all tuples, which is shorter than this epoch.
    assert {i for batch in chosen for i in batch} == set(range(72))


@pytest.mark.parametrize("sampler", ["neighbors", "mined"])
def test_an_epoch_is_a_function_of_seed_number_and_embeddings(sampler):
    def epochs(seed):
        batches = refreshed(sampler, seed=seed)
        first = batches.epoch()
        batches.refresh(circle())
        return [first, batches.epoch(), batches.epoch()]

    assert epochs(0) == epochs(0)
    assert epochs(0) != epochs(1)
    assert len({str(each) for each in epochs(0)}) == 3


@pytest.mark.parametrize("sampler", ["neighbors", "mined"])
def test_it_goes_on_where_it_stood(sampler, tmp_path):
    batches = refreshed(sampler)
    batches.epoch()
    batches.refresh(circle())
    batches.epoch()
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    other = refreshed(sampler)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.epoch() == batches.epoch()


def vectors(folder):
    """Vectors of classes that are near one another in pairs, as a file."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(12, 8, generator=generator).repeat_interleave(2, 0)
    labels = torch.arange(24).repeat_interleave(6)
    x = centers[labels] + 0.5 * torch.randn(len(labels), 8, generator=generator)
    path = folder / "vectors.npz"
    np.savez(path, embeddings=x.numpy(), labels=labels.numpy())
    return str(path)


def experiment(folder, **arguments):
    given: dict[str, object] = {"losses": ("RAW",), "epochs": 3, "steps": 2, "batch_size": 16, "device": "cpu"}
    given |= {"classes_per_batch": 4, "embedding_size": 4, "data": vectors(folder)}
    return Experiment(**(given | arguments))


def run(experiment, folder):
    folder.mkdir(exist_ok=True)
    return Run(experiment, Data.of(experiment), losses.parse("RAW"), 0, folder, Progress(False))


# What is kept of a rule is a graph, pairs of samples, or tuples.
@pytest.mark.parametrize("sampler", ["mixed", "greedy", "mined"])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(sampler, tmp_path):
    whole = experiment(tmp_path, sampler=sampler)
    expected = run(whole, tmp_path / "whole")
    expected.fit()
    run(replace(whole, epochs=1), tmp_path / "parts").fit()
    resumed = run(whole, tmp_path / "parts")
    resumed.fit()
    assert [{**epoch, "seconds": 0} for epoch in resumed.history] == [
        {**epoch, "seconds": 0} for epoch in expected.history
    ]
    assert checkpoint.load(tmp_path / "parts", torch.device("cpu"), expected.identity)


def looks(sampler, refresh, folder, monkeypatch, **arguments):
    """After how many epochs a run has looked at the embeddings of its training set."""
    seen: list[int] = []
    made = run(experiment(folder, sampler=sampler, refresh=refresh, **arguments), folder / "run")
    original = RefreshedBatches.refresh

    def refresh_and_note(self, embeddings):
        seen.append(self.passed)
        assert len(embeddings) == len(self.labels)
        original(self, embeddings)

    monkeypatch.setattr(RefreshedBatches, "refresh", refresh_and_note)
    made.fit()
    return seen


@pytest.mark.parametrize(
    ("sampler", "refresh", "expected"), [("neighbors", 1, [0, 1, 2]), ("mined", 2, [0, 2]), ("mixed", 0, [])]
)
def test_it_looks_as_often_as_it_is_told(sampler, refresh, expected, tmp_path, monkeypatch):
    assert looks(sampler, refresh, tmp_path, monkeypatch) == expected


def test_a_network_without_weights_trains_one_epoch_first(tmp_path, monkeypatch):
    assert looks("neighbors", 1, tmp_path, monkeypatch, data="digits", epochs=2) == [1]


def test_images_are_looked_at_without_augmentation():
    data = Data.of(Experiment(data="digits", device="cpu"))
    assert data.plain is not None
    assert torch.equal(data.plain.labels, data.train.labels)
    assert torch.equal(data.plain[3][0], data.plain[3][0])
    assert not torch.equal(data.train[3][0], data.train[3][0])


def test_groups_need_a_column(tmp_path):
    given = experiment(tmp_path, sampler="groups")
    with pytest.raises(BenchmarkError, match="sampler groups: the data have no groups"):
        batches_of(given, Data.of(given), 3, 0)


def test_unknown_samplers_are_refused():
    with pytest.raises(BenchmarkError, match="sampler"):
        Experiment(sampler="neighbours")
    with pytest.raises(BenchmarkError, match="refresh must be a whole number of at least 0"):
        Experiment(refresh=-1)


def test_a_sum_of_losses_is_trained_and_recorded(tmp_path):
    given = experiment(tmp_path, losses=("ROADMAP",), sampler="neighbors", epochs=1)
    made = Run(given, Data.of(given), losses.parse("ROADMAP"), 0, tmp_path, Progress(False))
    made.fit()
    assert made.history[0]["loss"] > 0
