"""The training loop: equal to PML's trainer and tester, and what optimizers, averages, precision and batches do."""

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from of_pml import GlobalEmbeddingSpaceTester, MetricLossOnly
from of_pml import losses as pml_losses
from of_pml import miners as pml_miners
from torch import nn

from pml_ext.benchmark import Experiment, checkpoint, evaluate, keep, losses, plots
from pml_ext.benchmark.batches import ClassBatches
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.learning import LossLearner, optimizers, schedule
from pml_ext.benchmark.models import Network
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.result import Result, read
from pml_ext.benchmark.training import Run
from pml_ext.evaluation import RetrievalAccuracyCalculator

CPU = torch.device("cpu")
SMALL = Experiment(losses=("RAW",), data="digits", epochs=2, steps=3, batch_size=20, device="cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(plots, "draw", lambda *_: [])


def network(norm=False):
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()] if norm else [nn.Linear(6, 8), nn.Tanh()]
    return Network(nn.Sequential(*layers), nn.Linear(8, 4))


def batch(seed=0):
    labels = torch.arange(4).repeat_interleave(3)
    return torch.randn(12, 6, generator=torch.Generator().manual_seed(seed)) + labels.unsqueeze(1), labels


def learner(experiment=SMALL, loss=None, **kwargs):
    net = kwargs.pop("network", None) or network()
    loss = pml_losses.ContrastiveLoss() if loss is None else loss
    settings: dict[str, Any] = {"pretrained": False, "total": 10, "device": CPU} | kwargs
    return LossLearner(net, loss, None, experiment, **settings)


def weights(module):
    return [value.clone() for value in module.state_dict().values()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- PML's own


class Points(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    def __init__(self):
        self.labels = torch.arange(6).repeat_interleave(5)
        self.x = torch.randn(30, 6, generator=torch.Generator().manual_seed(3)) + self.labels.unsqueeze(1)

    def __len__(self):
        return 30

    def __getitem__(self, i):
        return self.x[i], int(self.labels[i])


@pytest.mark.parametrize("with_weights", [False, True])
def test_pmls_trainer_and_ours_train_to_equal_weights(with_weights):
    def loss():
        torch.manual_seed(1)
        return pml_losses.ProxyAnchorLoss(6, 4) if with_weights else pml_losses.TripletMarginLoss()

    miner = None if with_weights else pml_miners.MultiSimilarityMiner()
    points, steps = Points(), 5
    chosen = ClassBatches(points.labels, classes=3, per_class=4, steps=steps, seed=7).epoch()
    experiment = replace(SMALL, learning_rate=0.01, loss_learning_rate=0.1, weight_decay=1e-3)
    ours = LossLearner(network(), loss(), miner, experiment, pretrained=False, total=steps, device=CPU)
    ours.begin(1)
    for step, indices in enumerate(chosen):
        ours.step(points.x[indices], points.labels[indices], step)

    theirs, their_loss = network(), loss()
    adam = {
        f"{name}_optimizer": torch.optim.Adam(part.parameters(), lr=0.01, weight_decay=1e-3)
        for name, part in theirs.parts().items()
    }
    if with_weights:
        adam["metric_loss_optimizer"] = torch.optim.Adam(their_loss.parameters(), lr=0.1)
    trainer = MetricLossOnly(
        theirs.parts(),
        adam,
        12,
        {"metric_loss": their_loss},
        points,
        mining_funcs={} if miner is None else {"tuple_miner": miner},
        sampler=[i for indices in chosen for i in indices],
        dataloader_num_workers=0,
        iterations_per_epoch=steps,
        data_device=CPU,
        # PML formats the loss for its bar, and torch warns of formatting a tensor that requires a gradient.
        end_of_iteration_hook=lambda t: t.losses.update(total_loss=t.losses["total_loss"].detach()),
    )
    trainer.train()
    assert not same(weights(theirs), weights(network()))
    assert same(weights(ours.network), weights(theirs))
    assert same(weights(ours.loss), weights(their_loss))


def test_pmls_tester_and_ours_measure_the_same():
    points, net = Points(), network()
    embeddings = evaluate.embed(net, points, device=CPU)
    ours = evaluate.measure(embeddings, points, recall_at=(1, 2, 4), device=CPU, clusters=False)
    tester = GlobalEmbeddingSpaceTester(
        dataloader_num_workers=0,
        data_device=CPU,
        accuracy_calculator=RetrievalAccuracyCalculator(recall_at=(1, 2, 4), include=tuple(ours)),
    )
    tester.test({"test": points}, 1, *net.parts().values())
    theirs = {name: tester.all_accuracies["test"][f"{name}_level0"] for name in ours}
    assert dict(ours) == pytest.approx(theirs, rel=1e-6)
    assert 0 < ours["recall_at_1"] < 1


# --- batches


@pytest.mark.parametrize(("classes", "per_class"), [(4, 3), (7, 2), (3, 8)])
def test_batches_deal_classes_and_images_evenly(classes, per_class):
    labels = torch.tensor([0] * 5 + [1] * 9 + [2] * 4 + [3] * 6 + [4] * 5 + [5] * 7 + [6] * 5)[torch.randperm(41)]
    batches = ClassBatches(labels, classes=classes, per_class=per_class, steps=21, seed=0)
    first, second = batches.epoch(), batches.epoch()
    assert first != second
    images: Counter[int] = Counter()
    dealt: Counter[int] = Counter()
    for indices in first:
        groups = [labels[indices[i : i + per_class]].unique().tolist() for i in range(0, len(indices), per_class)]
        assert all(len(group) == 1 for group in groups), "the images of a class stand together"
        assert len({group[0] for group in groups}) == classes, "classes are different"
        dealt.update(group[0] for group in groups)
        images.update(indices)
        for group in (indices[i : i + per_class] for i in range(0, len(indices), per_class)):
            size = int((labels == labels[group[0]]).sum())
            assert len(set(group)) == min(per_class, size), "no image comes twice before all have"
    assert max(dealt.values()) - min(dealt.values()) <= 1
    for label in range(7):
        counts = [images[i] for i in (labels == label).nonzero()[:, 0].tolist()]
        assert max(counts) - min(counts) <= 1


def test_batches_go_on_where_they_stood():
    labels = torch.arange(6).repeat_interleave(4)
    one, other = (ClassBatches(labels, classes=3, per_class=2, steps=4, seed=seed) for seed in (0, 1))
    assert one.epoch() != other.epoch()
    other.load_state_dict(one.state_dict())
    assert one.epoch() == other.epoch()
    with pytest.raises(ValueError, match="at most the number of classes, 6, got 7"):
        ClassBatches(labels, classes=7, per_class=2, steps=1, seed=0)


# --- optimizers


@pytest.mark.parametrize(("pretrained", "trunk"), [(False, 0.003), (True, 0.0003)])
def test_rates_of_the_parts(pretrained, trunk):
    loss = pml_losses.ProxyAnchorLoss(4, 4)
    found = optimizers(network(), loss, replace(SMALL, weight_decay=0.1), pretrained=pretrained)
    groups = {name: optimizer.param_groups[0] for name, optimizer in found.items()}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"trunk_optimizer": trunk, "embedder_optimizer": 0.003, "metric_loss_optimizer": 0.03}
    )
    assert [group["weight_decay"] for group in groups.values()] == [0.1, 0.1, 0]
    still = optimizers(network(), loss, replace(SMALL, trunk_learning_rate=0), pretrained=pretrained)
    assert "trunk_optimizer" not in still


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"), ("rmsprop", "RMSprop")],
)
def test_optimizers_by_name(name, kind):
    found = optimizers(network(), nn.Identity(), replace(SMALL, optimizer=name, momentum=0.5), pretrained=False)
    assert {type(each).__name__ for each in found.values()} == {kind}
    assert all(each.param_groups[0].get("momentum", 0.5) == 0.5 for each in found.values())


def test_schedules():
    cosine, steps = schedule("cosine", 4, 20), schedule("steps", 0, 20)
    assert [cosine(i) for i in range(4)] == [0.25, 0.5, 0.75, 1]
    assert cosine(4) == 1
    assert cosine(12) == pytest.approx(0.5)
    assert cosine(19) == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert [round(steps(i), 4) for i in (0, 11, 12, 16, 17, 19)] == [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert {schedule("constant", 0, 20)(i) for i in range(20)} == {1}


def test_the_schedule_reaches_the_optimizers():
    one = learner(replace(SMALL, schedule="cosine", warmup=2), total=8)
    for step in (0, 1, 5):
        one.step(*batch(step), step)
        rates = [optimizer.param_groups[0]["lr"] for optimizer in one.optimizers.values()]
        assert rates == pytest.approx([0.003 * schedule("cosine", 2, 8)(step)] * 2)


def test_clipping_bounds_what_sgd_moves():
    moved = []
    for clip in (None, 1e-3):
        one = learner(replace(SMALL, optimizer="sgd", momentum=0, learning_rate=1.0, clip=clip))
        before = weights(one.network)
        one.step(*batch(), 0)
        moved.append(
            float(torch.cat([(a - b).flatten() for a, b in zip(weights(one.network), before, strict=True)]).norm())
        )
    assert moved[0] > 1e-2
    assert moved[1] == pytest.approx(1e-3, rel=1e-3)


def test_the_average_of_the_weights():
    one = learner(replace(SMALL, ema=0.5))
    expected: list[torch.Tensor] = []
    for step in range(3):
        one.step(*batch(step), step)
        now = weights(one.network)
        expected = now if not expected else [0.5 * a + 0.5 * b for a, b in zip(expected, now, strict=True)]
    for a, b in zip(weights(one.tested()), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert not same(weights(one.tested()), weights(one.network))
    assert learner().tested() is not None


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision_is_that_of_the_network_alone(amp):
    seen = []

    class Watching(pml_losses.ContrastiveLoss):
        def forward(self, embeddings, *rest):
            seen.append((embeddings.dtype, torch.is_autocast_enabled("cpu")))
            return super().forward(embeddings, *rest)

    one = learner(replace(SMALL, amp=amp), Watching())
    full = learner()
    for step in range(3):
        one.step(*batch(step), step)
        full.step(*batch(step), step)
    assert set(seen) == {(torch.float32, False)}
    assert not same(weights(one.network), weights(full.network)), "it is computed otherwise"
    for a, b in zip(weights(one.network), weights(full.network), strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.05)
    assert one.scaler.is_enabled() == (amp == "fp16")


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norm_stays_as_it_is_bit_for_bit(frozen):
    net = network(norm=True)
    net = Network(net.trunk.network, net.embedder, freeze_batch_norm=frozen)
    before = [value.clone() for value in net.buffers()]
    one = learner(network=net)
    for step in range(4):
        one.begin(step + 1)
        one.step(*batch(step), step)
    assert same(list(net.buffers()), before) == frozen


def test_a_loss_that_is_not_finite_teaches_nothing():
    one = learner(loss=pml_losses.ContrastiveLoss())
    before = weights(one.network)
    images, labels = batch()
    assert not torch.isfinite(one.step(images * float("nan"), labels, 0))
    assert same(weights(one.network), before)


# --- selection


def test_the_epoch_is_chosen_by_validation_classes_and_the_last_one_is_reported_too(tmp_path):
    experiment = replace(SMALL, epochs=4, validation=0.4, out=str(tmp_path / "out"), learning_rate=0.05)
    _, one = experiment.run()
    scores = [epoch["mean_average_precision_at_r"] for epoch in one.history]
    assert one.best_epoch == 1 + int(np.argmax(scores))
    assert one.validation["mean_average_precision_at_r"] == max(scores)
    assert one.last.keys() == one.metrics.keys()
    data = Data.of(experiment)
    assert len({int(x) for x in data.train.labels}) == 3
    saved = checkpoint.load(tmp_path / "out" / "RAW-seed0", CPU, {"loss": "RAW", "seed": 0, "fold": None})
    assert saved is not None
    assert saved["best"]["epoch"] == one.best_epoch
    with np.load(tmp_path / "out" / "RAW-seed0" / "queries.npz", allow_pickle=False) as queries:
        assert queries["recall_at_1"].mean() == pytest.approx(one.metrics["recall_at_1"], abs=1e-6)
        assert len(queries["query_classes"]) == len(data.test)
    assert (tmp_path / "out" / "best" / "model.json").exists()


def test_a_score_that_is_not_a_number_is_never_the_best(tmp_path):
    run = Run(SMALL, Data.of(SMALL), losses.parse("RAW"), 0, tmp_path, Progress(0))
    best = []
    for score in (math.nan, 0.3, math.nan, 0.2, 0.4, 0.4):
        run.history.append({evaluate.CHOSEN_BY: score})
        if run._is_best():
            run.best = {"epoch": len(run.history)}
            best.append(len(run.history))
    assert best == [1, 2, 5], "the first of equals; the first of all stands for a while"


def made(loss, seed, validation, test):
    metrics = {"recall_at_1": test, evaluate.CHOSEN_BY: test}
    return Result(loss, seed, metrics, [], None, {}, validation={evaluate.CHOSEN_BY: validation})


def test_the_model_of_an_experiment_is_chosen_without_the_test():
    runs = [made("A", 0, 0.5, 0.1), made("A", 1, 0.3, 0.9), made("B", 0, 0.6, 0.0), made("B", 1, 0.1, 0.9)]
    chosen = keep.choose(runs)
    assert chosen is not None
    assert chosen.key == ("A", 0, None), "the best mean of a loss, then its best run"
    assert keep.choose([replace(run, validation={}) for run in runs]) is None
    assert keep.choose([made("A", 0, math.nan, 1.0)]) is None


def test_folds_are_runs_whose_models_are_joined_too(tmp_path):
    out = tmp_path / "out"
    replace(SMALL, folds=2, epochs=1, steps=1, out=str(out)).run()
    results = read(out / "results.jsonl")
    assert [one.key for one in results] == [("untrained", 0, None), ("RAW", 0, 0), ("RAW", 0, 1)]
    parts = [set(Data.of(replace(SMALL, folds=2), fold).validation.classes.values()) for fold in range(2)]  # type: ignore[union-attr]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 5
    joined = [np.load(out / f"RAW-seed0-fold{fold}" / "embeddings.npy") for fold in range(2)]
    data = Data.of(SMALL)
    embeddings = torch.from_numpy(np.concatenate(joined, axis=1)) / 2**0.5
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(embeddings)))
    measured = evaluate.measure(embeddings, data.test, recall_at=(1,), device=CPU, clusters=False)
    table = (out / "table.md").read_text()
    assert f"| RAW, 2 folds joined | {100 * measured['recall_at_1']:.1f} |" in table


def test_workers_give_the_same_batches_to_every_loss(tmp_path):
    experiment = replace(SMALL, workers=1)
    seen = []
    for name in ("RAW", "DistWeightBinDeviance"):
        run = Run(experiment, Data.of(experiment), losses.parse(name), 0, tmp_path, Progress(0))
        torch.rand(3 if name == "RAW" else 5)
        seen.append([images for images, _ in run._loaded(run.batches.epoch())])
    assert same(*seen)


class Killed(BaseException):
    """Stands for a kill: nothing catches it, nothing is tidied up."""


@pytest.mark.pml2("its ProxyAnchorLoss")
@pytest.mark.parametrize("amp", ["none", "fp16"])
def test_everything_that_has_a_state_resumes(amp, tmp_path, monkeypatch):
    experiment = replace(
        SMALL, losses=("ProxyAnchorLoss",), validation=0.4, ema=0.8, amp=amp, schedule="cosine", warmup=2, clip=1.0
    )
    whole = replace(experiment, out=str(tmp_path / "whole")).run()
    save = checkpoint.save

    def save_and_die(path, content):
        save(path, content)
        raise Killed

    parts = replace(experiment, out=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        with pytest.raises(Killed):
            parts.run()
    resumed = parts.run(resume=True)
    for a, b in zip(whole, resumed, strict=True):
        assert (a.key, a.metrics, a.last, a.best_epoch) == (b.key, b.metrics, b.last, b.best_epoch)
    identity = {"loss": "ProxyAnchorLoss", "seed": 0, "fold": None}
    saved = [checkpoint.load(tmp_path / name / "ProxyAnchorLoss-seed0", CPU, identity) for name in ("whole", "parts")]
    averages = [weights for each in saved if each is not None for weights in [each["parts"]["average"]["average"]]]
    assert all(torch.equal(averages[0][name], averages[1][name]) for name in averages[0])


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_gradient_that_overflows_moves_no_part_and_lowers_the_scale(clip):
    one = learner(replace(SMALL, amp="fp16", clip=clip))
    before, scale = weights(one.network), one.scaler.get_scale()
    one.network.trunk.network[0].weight.register_hook(lambda gradient: gradient * float("inf"))
    one.step(*batch(), 0)
    assert same(weights(one.network), before), "the embedder's own gradient is finite, and would have moved it"
    assert one.scaler.get_scale() == scale / 2
