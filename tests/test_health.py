"""The health of a run: its numbers, the names of failures, and that a run is the same with and without a look at it."""

import copy
import math
import pickle
import sqlite3
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
import torch
from of_pml import MetricLossOnly, MPerClassSampler, distances, logging_presets, miners
from of_pml import losses as pml
from torch import nn

from pml_ext import _pml, catalog, losses, wrappers
from pml_ext.analysis import EmbeddingHealth, Health, pair_weights
from pml_ext.analysis.geometry import NAN
from pml_ext.analysis.health import measure
from pml_ext.benchmark import Experiment, checkpoint, plots, records, training
from pml_ext.datasets import Digits, Glyphs
from pml_ext.miners import HardNegativePairMiner, InverseDensityMiner
from pml_ext.testing import Batch

LABELS = torch.arange(12) // 3


def healthy_batch():
    return Batch((3, 3, 3, 3), 8, seed=3).embeddings.float()


def test_numbers_of_a_batch_worked_by_hand():
    # Two classes on two axes, and lengths of 1 and 2: cosines 1 within and 0 between.
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    health = measure(losses.BinomialDevianceLoss(), x, torch.tensor([0, 0, 1, 1]))
    assert (health.positive_mean, health.positive_std) == (pytest.approx(1), pytest.approx(0, abs=1e-6))
    assert (health.negative_mean, health.negative_std) == (0, 0)
    assert (health.norm_mean, health.norm_std, health.norm_max) == (1.5, 0.5, 2)
    assert health.spread == pytest.approx(0.5)  # the mean is (1/2, 1/2), at a distance of 1/sqrt(2) from all
    assert health.effective_rank == pytest.approx(1, abs=1e-3)  # centered, they lie on one line
    assert health.active_pairs == pytest.approx(4 / 12)  # the negatives' weights are of the order exp(-25)
    assert health.effective_pairs == pytest.approx(1, abs=1e-6)
    assert health.pull == pytest.approx(2 / (1 + math.e), rel=1e-5)
    assert 0 < health.push < 1e-8
    assert health.failure == ""


def test_effective_pairs_count_equal_weights():
    x = nn.functional.normalize(torch.eye(8))
    health = measure(pml.ContrastiveLoss(pos_margin=0, neg_margin=2), x, torch.arange(8) // 2)
    found = pair_weights(
        losses.AnchorContrastiveLoss(average=False, pos_margin=0, neg_margin=2), x, torch.arange(8) // 2
    )
    assert found.weights.sum() == pytest.approx(7)  # 1/8 for every pair
    assert measure(
        losses.AnchorContrastiveLoss(average=False, pos_margin=0, neg_margin=2), x, torch.arange(8) // 2
    ).effective_pairs == pytest.approx(7)
    assert health.active_pairs == 1
    assert health.effective_rank == pytest.approx(7, rel=1e-5)


FAR = Health(*[0.0] * 6, pull=1.0, push=1.0, norm_mean=1.0, norm_std=0.0, norm_max=1.0, spread=0.5, effective_rank=4.0)
UNNORMALIZED = distances.LpDistance(normalize_embeddings=False)


@pytest.mark.parametrize(
    ("name", "loss", "x", "labels", "first"),
    [
        ("", losses.RAWLoss(), healthy_batch(), LABELS, None),
        ("collapsed", losses.RAWLoss(), 1 + 0.01 * healthy_batch(), LABELS, None),
        ("collapsed", losses.RAWLoss(distance=UNNORMALIZED), 1e-5 * healthy_batch(), LABELS, FAR),
        ("", losses.RAWLoss(), 1e-5 * healthy_batch(), LABELS, FAR),  # the distance normalizes
        ("exploding norms", losses.RAWLoss(distance=UNNORMALIZED), 1e3 * healthy_batch(), LABELS, FAR),
        ("", losses.RAWLoss(), 1e3 * healthy_batch(), LABELS, FAR),  # the distance normalizes
        ("", losses.RAWLoss(distance=UNNORMALIZED), 1e3 * healthy_batch(), LABELS, replace(FAR, norm_mean=900.0)),
        ("", losses.RAWLoss(), 3 * healthy_batch(), LABELS, replace(FAR, norm_mean=1e-4)),
        ("no positives", losses.RAWLoss(), healthy_batch(), torch.arange(12), None),
        ("no negatives", losses.RAWLoss(), healthy_batch(), torch.zeros(12).long(), None),
        ("no negatives", losses.RAWLoss(), torch.ones(12, 8), torch.zeros(12).long(), None),
        ("no negatives", losses.RAWLoss(), healthy_batch()[:1], LABELS[:1], None),
        ("nothing to learn from", pml.ContrastiveLoss(), torch.eye(4)[LABELS] * 9, LABELS, None),
        ("nothing to learn from", losses.RAWLoss(), torch.eye(4)[LABELS], LABELS, replace(FAR, pull=1e9)),
        ("not finite", losses.RAWLoss(), healthy_batch() * float("inf"), LABELS, None),
        ("not finite", losses.RAWLoss(), torch.full((12, 8), float("nan")), LABELS, None),
        ("not finite", pml.NCALoss(distance=UNNORMALIZED), 1e30 * healthy_batch(), LABELS, None),
    ],
)
def test_failures_have_names(name, loss, x, labels, first):
    failure = measure(loss, x, labels, first=first).failure
    assert failure.startswith(name) if name else failure == "", failure
    assert "\n" not in failure


def test_a_miner_that_leaves_nothing_is_told_from_a_batch_without_pairs():
    x = torch.eye(4)[LABELS] + 0.001 * healthy_batch()[:, :4]
    expected = "nothing to learn from: the miner left no pair"
    mined = miners.MultiSimilarityMiner()(x, LABELS)
    assert measure(losses.RAWLoss(), x, LABELS, mined).failure == expected
    inside = wrappers.MinedLoss(losses.RAWLoss(), HardNegativePairMiner())
    assert measure(inside, x, LABELS).failure == expected


def test_pairs_may_be_in_a_memory_and_not_in_the_batch():
    loss = wrappers.CrossBatchMemory(losses.RAWLoss(), embedding_size=8, memory_size=24)
    x, labels = healthy_batch()[::3], torch.arange(4)
    assert measure(loss, x, labels).failure.startswith("no positives")
    loss(x, labels)
    assert measure(loss, healthy_batch()[1::3], labels).failure == ""


@pytest.mark.parametrize(
    "loss", [pml.ArcFaceLoss(4, 8), pml.AngularLoss(), losses.ClassCenterMarginLoss(), losses.CenterLoss(4, 8)]
)
def test_a_loss_without_pairs_of_samples_has_scores_and_lengths(loss):
    health = measure(loss, healthy_batch(), LABELS)
    cosine = isinstance(loss.distance, distances.CosineSimilarity)
    assert -1 < health.negative_mean < 1 if cosine else health.negative_mean < 0
    assert health.failure == ""
    assert health.norm_mean > 0
    assert math.isnan(health.pull) == (not isinstance(loss, pml.ArcFaceLoss))
    assert measure(loss, torch.ones(12, 8), LABELS).failure.startswith("collapsed")


@pytest.mark.parametrize("name", catalog.recipes)
def test_every_method_of_the_catalog_has_a_health(name):
    needed = {"num_classes": 4, "embedding_size": 8}
    recipe = catalog.build(name, **{each: needed[each] for each in catalog.required(name)})
    x = healthy_batch()
    mined = None if recipe.miner is None else recipe.miner(x, LABELS)
    assert measure(recipe.loss, x, LABELS, mined).failure == ""
    collapsed = torch.ones(12, 8) + 1e-3 * x
    mined = None if recipe.miner is None else recipe.miner(collapsed, LABELS)
    assert measure(recipe.loss, collapsed, LABELS, mined).failure.startswith("collapsed")


def test_half_precision_is_measured():
    assert measure(losses.RAWLoss(), healthy_batch().half(), LABELS).failure == ""


STATEFUL = {
    "a seeded miner inside": lambda: wrappers.MinedLoss(pml.ContrastiveLoss(), InverseDensityMiner(seed=1)),
    "a miner on torch's generator": lambda: wrappers.MinedLoss(pml.ContrastiveLoss(), InverseDensityMiner()),
    "random slices": lambda: wrappers.RandomSliceLoss(losses.RAWLoss(), 2, seed=1),
    "a memory": lambda: wrappers.CrossBatchMemory(losses.RAWLoss(), embedding_size=4, memory_size=64),
    "running centers": lambda: losses.CenterLoss(num_classes=10, embedding_size=4),
    "proxies": lambda: pml.SoftTripleLoss(10, 4),
    "statistics": lambda: pml.ContrastiveLoss(**{} if _pml.HAS_TERMS else {"collect_stats": True}),
    "a graph of the last call": lambda: pml.DynamicSoftMarginLoss(),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_run_is_the_same_with_and_without_a_look_at_it(name):
    def run(watched):
        torch.manual_seed(3)
        loss, network = STATEFUL[name](), nn.Linear(8, 4)
        health = EmbeddingHealth(loss, every=2, last=100) if watched else None
        optimizer = torch.optim.Adam([*network.parameters(), *loss.parameters()], lr=0.01)
        values = []
        for iteration in range(1 if "graph" in name else 5):  # that loss fails when it is trained twice
            optimizer.zero_grad()
            value = loss(network(torch.randn(12, 8)), LABELS)
            value.backward()
            optimizer.step()
            values.append(value.detach())
            if health:
                health.step(iteration)
        if health:
            assert list(health.history) == list(range(0, len(values), 2))
        state = {k: v for k, v in loss.state_dict().items() if isinstance(v, torch.Tensor)}
        return [*values, *network.parameters(), *state.values(), torch.rand(3)]

    for with_it, without in zip(run(True), run(False), strict=True):
        assert torch.equal(with_it, without)


@pytest.mark.cuda
def test_a_look_leaves_the_generator_of_the_device():
    loss = wrappers.MinedLoss(pml.ContrastiveLoss(), InverseDensityMiner()).cuda()
    health = EmbeddingHealth(loss, every=1)
    x = healthy_batch().cuda().requires_grad_()
    torch.cuda.manual_seed(0)
    watched = loss(x, LABELS.cuda())
    after = torch.rand(3, device="cuda")
    health.close()
    torch.cuda.manual_seed(0)
    assert torch.equal(watched, loss(x, LABELS.cuda()))
    assert torch.equal(after, torch.rand(3, device="cuda"))


def test_it_measures_what_the_loss_is_about_to_see():
    loss = wrappers.CrossBatchMemory(losses.RAWLoss(), embedding_size=8, memory_size=64)
    health = EmbeddingHealth(loss, every=3, last=100)
    for iteration in range(5):
        x = healthy_batch().requires_grad_()
        expected = measure(loss, x, LABELS, first=next(iter(health.history.values()), None))
        with torch.no_grad():
            loss.loss(x, LABELS)  # an evaluation is not an iteration
        loss(x, labels=LABELS)
        measured = health.step(iteration)
        if iteration in (0, 3):
            assert replace(measured, loss=NAN) == expected
            assert measured.loss > 0
        else:
            assert measured is None
    assert list(health.history) == [0, 3]
    assert health.latest == health.history[3]
    health.close()
    assert not loss._forward_pre_hooks
    assert not loss._forward_hooks


def test_a_run_that_continues_keeps_its_rhythm_and_its_history():
    loss = losses.RAWLoss()
    health = EmbeddingHealth(loss, every=4, last=100)
    assert health.failure == ""
    assert health.step(0) is None  # the loss was not called
    health.load_state_dict({"history": {"4": vars(FAR)}})
    for iteration in range(6, 13):  # it cannot know that 6 comes first, and leaves it out
        loss(healthy_batch().requires_grad_(), LABELS)
        health.step(iteration)
    assert list(health.history) == [4, 8, 12]
    other = EmbeddingHealth(loss)
    other.load_state_dict(health.state_dict())
    assert other.history == health.history


def test_copies_of_a_watched_loss_are_not_watched():
    loss = losses.RAWLoss()
    health = EmbeddingHealth(loss, every=1)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        other(healthy_batch().requires_grad_(), LABELS)
        assert health.step(0) is None
    loss(healthy_batch().requires_grad_(), LABELS)
    assert health.step(0) is not None


def test_a_compiled_loss_is_measured():
    loss = torch.compile(losses.RAWLoss(), backend="aot_eager")
    health = EmbeddingHealth(loss, every=1)
    x = healthy_batch().requires_grad_()
    loss(x, LABELS).backward()
    seen = health.step(0)
    assert replace(seen, loss=NAN, gradient=NAN) == measure(losses.RAWLoss(), healthy_batch(), LABELS)
    assert seen.loss == pytest.approx(losses.RAWLoss()(healthy_batch(), LABELS).item())
    assert seen.gradient == pytest.approx(x.grad.norm(dim=1).mean().item())


def test_a_watched_loss_compiles_as_one_graph():
    loss = losses.RAWLoss()
    EmbeddingHealth(loss, every=1)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(healthy_batch(), LABELS), losses.RAWLoss()(healthy_batch(), LABELS))


@pytest.mark.pml2("it collects statistics")
def test_statistics_of_a_distance_stay_as_they_are():
    loss = pml.AngularLoss(distance=distances.LpDistance(collect_stats=True), collect_stats=True)
    before = vars(loss.distance).copy()
    measure(loss, healthy_batch(), LABELS)
    assert vars(loss.distance) == before


def test_errors():
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        EmbeddingHealth(losses.RAWLoss(), every=0)
    with pytest.raises(TypeError, match="loss must be a PML loss, got str"):
        EmbeddingHealth("RAW")


_WITHOUT_PAIRS = ("active_pairs", "effective_pairs", "pull", "push")


# PML's trainer prints its loss without detaching it.
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")  # PML 2's trainers show losses
@pytest.mark.parametrize(("loss", "pairs"), [(losses.RAWLoss(), True), (pml.AngularLoss(), False)])
def test_in_the_trainer_of_pml_with_its_hooks_and_its_record_keeper(loss, pairs, tmp_path):
    train = Digits("train")
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    keeper, _, _ = logging_presets.get_record_keeper(str(tmp_path / "csv"), str(tmp_path / "tensorboard"))
    hooks = logging_presets.get_hook_container(keeper, save_models=False)
    health = EmbeddingHealth(loss, every=3, record_keeper=keeper)
    seen = []
    MetricLossOnly(
        {"trunk": network},
        {"trunk_optimizer": torch.optim.Adam(network.parameters(), lr=1e-3)},
        40,
        {"metric_loss": loss},
        train,
        sampler=MPerClassSampler(train.labels, m=8, length_before_new_iter=len(train)),
        iterations_per_epoch=5,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
        end_of_iteration_hook=health.after(lambda trainer: seen.append(hooks.end_of_iteration_hook(trainer))),
    ).train(num_epochs=2)
    keeper.save_records()
    keeper.tensorboard_writer.close()
    assert len(seen) == 10
    assert list(health.history) == list(range(10)), "also a short run is measured ten times"
    with closing(sqlite3.connect(tmp_path / "csv" / "logs.db")) as database:
        database.row_factory = sqlite3.Row
        rows = [dict(row) for row in database.execute("SELECT * FROM embedding_health")]
        assert database.execute("SELECT COUNT(*) FROM loss_histories").fetchone()[0]
    assert [row["~iteration~"] for row in rows] == list(range(10))
    for row, measured in zip(rows, health.history.values(), strict=True):
        numbers = {k: v for k, v in vars(measured).items() if k not in ("failure", *_WITHOUT_PAIRS * (not pairs))}
        assert {k: row[k] for k in numbers} == numbers
        assert pairs or all(row[name] is None for name in _WITHOUT_PAIRS)


@pytest.mark.parametrize("name", ["DistWeightBinDeviance", "EnsembleDWNeighbour"])
def test_the_benchmark_records_it_and_has_the_same_results_without_it(name, tmp_path, monkeypatch):
    class NotLooking(EmbeddingHealth):
        def before_call(self, loss, args, kwargs):
            pass

    def run(folder):
        monkeypatch.setattr(plots, "draw", lambda *_: [])
        settings = {"losses": (name,), "data": "digits", "epochs": 2, "steps": 3, "device": "cpu"}
        experiment = Experiment(**settings, out=str(tmp_path / folder))
        _untrained, result = experiment.run()
        saved = checkpoint.load(
            tmp_path / folder / f"{name}-seed0", torch.device("cpu"), {"loss": name, "seed": 0, "fold": None}
        )
        return result, [weight for model in saved["parts"]["models"].values() for weight in model.values()]

    monkeypatch.setattr(training, "HEALTH_EVERY", 2)
    result, weights = run("with")
    assert result.failure == ""
    recorded = records.series(tmp_path / "with" / f"{name}-seed0", "embedding_health", ("pull", "spread"))
    assert recorded["step"] == [0, 1, 2, 3, 4, 5], "at least ten times, as far as there are steps"
    assert min(recorded["pull"] + recorded["spread"]) > 0
    monkeypatch.setattr(training, "EmbeddingHealth", NotLooking)
    other, other_weights = run("without")
    assert not records.series(tmp_path / "without" / f"{name}-seed0", "embedding_health", ("pull",))
    assert other.metrics == result.metrics
    assert all(torch.equal(a, b) for a, b in zip(weights, other_weights, strict=True))


def train_on_glyphs(loss, *, learning_rate, steps, classes, every=10):
    """A small network on warped glyphs: 8 classes of 4 in a batch."""
    torch.manual_seed(0)
    train = Glyphs("train")
    images = torch.stack([train[i][0] for i in range(16 * classes)])
    network = nn.Sequential(
        *(nn.Conv2d(1, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(512, 32)),
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=learning_rate)
    health = EmbeddingHealth(loss, every=every)
    for iteration in range(steps):
        chosen = torch.randperm(classes)[:8]
        index = (16 * chosen.unsqueeze(1) + torch.randint(16, (8, 4))).flatten()
        optimizer.zero_grad()
        loss(network(images[index]), train.labels[index]).backward()
        optimizer.step()
        health.step(iteration)
    return health


# Batch-hard with a hinge, trained too fast, is the collapse that its authors warn of.
COLLAPSING = {
    "batch-hard": (lambda: losses.BatchHardTripletLoss(margin=0.2), 0.03),
    "batch-hard, not normalized": (lambda: losses.BatchHardTripletLoss(margin=0.2, distance=UNNORMALIZED), 0.05),
    "positives only": (lambda: pml.ContrastiveLoss(neg_margin=0), 0.003),
}
HEALTHY = ("RAW", "BatchAll", "Contrastive2018", "NCA", "Histogram")


@pytest.mark.parametrize("name", COLLAPSING)
def test_a_collapsing_run_is_named(name):
    make, learning_rate = COLLAPSING[name]
    health = train_on_glyphs(make(), learning_rate=learning_rate, steps=31, classes=16)
    assert health.history[0].failure == ""
    assert health.failure.startswith("collapsed"), health.history


def separation(health):
    """Mean positive less mean negative score, in standard deviations."""
    return (health.positive_mean - health.negative_mean) / math.hypot(health.positive_std, health.negative_std)


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_not_named(name):
    health = train_on_glyphs(catalog.build(name).loss, learning_rate=0.003, steps=31, classes=16)
    assert {measured.failure for measured in health.history.values()} == {""}
    assert separation(health.latest) > 2 * separation(health.history[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", COLLAPSING)
def test_a_long_collapsing_run_stays_named(name):
    make, learning_rate = COLLAPSING[name]
    health = train_on_glyphs(make(), learning_rate=learning_rate, steps=300, classes=250)
    assert all(h.failure.startswith("collapsed") for i, h in health.history.items() if i >= 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_a_long_healthy_run_is_never_named(name):
    health = train_on_glyphs(catalog.build(name).loss, learning_rate=0.003, steps=300, classes=250)
    assert {measured.failure for measured in health.history.values()} == {""}


MINED = partial(wrappers.MinedLoss, losses.RAWLoss(), InverseDensityMiner())


@pytest.mark.parametrize("make", [losses.RAWLoss, MINED], ids=["loss", "mined"])
def test_a_compiled_loss_is_watched_from_outside(make):
    embeddings, labels = torch.randn(9, 4, requires_grad=True), torch.arange(9) // 3
    torch._dynamo.reset()
    compiled = torch.compile(make(), fullgraph=True, backend="eager")
    watched = EmbeddingHealth(compiled)
    assert compiled(embeddings, labels).isfinite()
    assert watched.step(0).spread > 0
