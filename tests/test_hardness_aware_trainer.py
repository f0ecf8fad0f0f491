"""The trainer of hardness-aware learning on PML 2's: its step, resuming, the ablation, hooks and records."""

import copy
import logging
import sqlite3
from typing import Any

import pytest

pytest.importorskip("pytorch_metric_learning.trainers", reason="about PML 2: its trainers")

import torch
from of_pml import GlobalEmbeddingSpaceTester, c_f, logging_presets, losses, miners, trainers
from test_hardness_aware import (
    CLASSES,
    DIMENSION,
    FEATURES,
    NETWORKS,
    WITHOUT_REFERENCES,
    batch,
    in_the_middle,
    loss_of,
    networks,
    triplet_sum,
)
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from pml_ext.evaluation import RetrievalAccuracyCalculator
from pml_ext.losses import BinomialDevianceLoss, RAWLoss
from pml_ext.miners import HardNegativePairMiner
from pml_ext.trainers import (
    FeatureGenerator,
    HardnessAwareTrainer,
    NPairTupleLoss,
    RandomTupleMiner,
    hardness_aware_trainer,
)
from pml_ext.wrappers import CrossBatchMemory


class InOrder(torch.utils.data.Sampler[int]):
    """The same batches in every epoch."""

    def __init__(self, length):
        self.length = length

    def __iter__(self):
        return iter(range(self.length))

    def __len__(self):
        return self.length


STEPS, PER_BATCH = 4, 18


def dataset():
    batches = [batch(seed) for seed in range(STEPS)]
    return TensorDataset(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))


def optimizers_of(models):
    return {f"{name}_optimizer": torch.optim.Adam(model.parameters(), lr=1e-2) for name, model in models.items()}


def trainer_of(models, cls=HardnessAwareTrainer, **kwargs):
    loss_funcs = {"metric_loss": triplet_sum()} | kwargs.pop("loss_funcs", {})
    mining_funcs = kwargs.pop("mining_funcs", {"tuple_miner": RandomTupleMiner(seed=0)})
    return cls(
        models,
        optimizers_of(models),
        PER_BATCH,
        loss_funcs,
        dataset(),
        mining_funcs=mining_funcs,
        iterations_per_epoch=STEPS,
        data_device=torch.device("cpu"),
        sampler=InOrder(STEPS * PER_BATCH),
        dataloader_num_workers=0,
        **kwargs,
    )


def states(trainer):
    kinds = ("models", "optimizers", "loss_funcs", "mining_funcs")
    return {f"{k}.{n}": copy.deepcopy(v.state_dict()) for k in kinds for n, v in getattr(trainer, k).items()}


def assert_same(one, other, where=""):
    """Equal bit for bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for x, y in zip(one, other, strict=True):
            assert_same(x, y, where)
    elif isinstance(one, Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


@pytest.mark.parametrize("make", WITHOUT_REFERENCES)
def test_a_synthetic_loss_takes_references(make):
    with pytest.raises(TypeError, match="synth_loss must take references"):
        trainer_of(networks(), loss_funcs={"metric_loss": make()})
    trainer_of(networks(), loss_funcs={"metric_loss": make()}, synthesis=False)


def test_trainer_takes_the_step_of_the_loss_and_three_optimizers():
    trainer, models = trainer_of(networks(), period=2, alpha=30, beta=3e4), networks()
    loss = loss_of(models, period=2, alpha=30, beta=3e4)
    metric = torch.optim.Adam([*models["trunk"].parameters(), *models["embedder"].parameters()], lr=1e-2)
    others = [torch.optim.Adam(models[name].parameters(), lr=1e-2) for name in ("generator", "classifier")]
    data, labels = dataset().tensors
    records = []
    for epoch in range(2):
        trainer.train(epoch + 1, epoch + 1)
        for x, y in zip(data.split(PER_BATCH), labels.split(PER_BATCH), strict=True):
            features = models["trunk"](x)
            terms = loss(features, models["embedder"](features), y)
            for optimizer in (metric, *others):
                optimizer.zero_grad()
            terms.total.backward()
            for optimizer in (metric, *others):
                optimizer.step()
            records.append((terms.lam.item(), terms.mixing_weight.item()))
    for name, model in models.items():
        assert_close(trainer.models[name].state_dict(), model.state_dict(), rtol=1e-4, atol=1e-6)
    # The comparison has seen real and synthetic tuples mixed, and negatives pulled.
    assert records[0] == (1, 1)
    assert 0.01 < records[-1][0] < 0.99
    assert 0.01 < records[-1][1] < 0.99


@pytest.mark.parametrize("variant", ["triplet", "n_pair"])
def test_no_synthesis_is_metric_loss_only_step_for_step(variant):
    steps: list[dict[str, list[Any]]] = []
    for cls, kwargs in ((trainers.MetricLossOnly, {}), (HardnessAwareTrainer, {"synthesis": False})):
        seen: list[Any] = []
        models = networks()
        if cls is trainers.MetricLossOnly:
            models = {name: models[name] for name in ("trunk", "embedder")}

        def note(trainer, seen=seen):
            total = torch.as_tensor(trainer.losses["total_loss"]).detach()
            trainer.losses["total_loss"] = total
            names = ("trunk", "embedder")
            seen.append((total, copy.deepcopy([trainer.models[name].state_dict() for name in names])))

        triplet = variant == "triplet"
        trainer = trainer_of(
            models,
            cls,
            loss_funcs={"metric_loss": triplet_sum() if triplet else NPairTupleLoss()},
            mining_funcs={"tuple_miner": RandomTupleMiner(seed=0)} if triplet else {},
            end_of_iteration_hook=note,
            **kwargs,
        )
        trainer.train(1, 3)
        steps.append(seen)
    assert len(steps[0]) == 3 * STEPS
    assert_same(steps[0], steps[1])


def test_no_synthesis_leaves_generator_and_classifier_alone_and_does_not_need_them():
    trainer, before = trainer_of(networks(), synthesis=False), networks()
    trainer.train(1, 1)
    for name in ("generator", "classifier"):
        assert_same(trainer.models[name].state_dict(), before[name].state_dict())
    models = {name: model for name, model in networks().items() if name in ("trunk", "embedder")}
    trainer_of(models, synthesis=False).train(1, 1)
    with pytest.raises(AssertionError, match="generator"):
        trainer_of(models)


@pytest.mark.parametrize("epoch", [1, 2])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, epoch):
    # A period of 3 does not divide an epoch of 4 steps: the checkpoint falls into the middle of an average.
    hyperparameters = {"period": 3, "alpha": 30, "beta": 3e4}
    folder = str(tmp_path / "models")
    hooks = logging_presets.HookContainer(None)
    uninterrupted = trainer_of(networks(), **hyperparameters)
    uninterrupted.train(1, epoch)
    (tmp_path / "models").mkdir()
    hooks.save_models(uninterrupted, folder, epoch)
    uninterrupted.train(epoch + 1, epoch + 2)

    resumed = trainer_of(networks(seed=5), **hyperparameters)
    assert hooks.load_latest_saved_models(resumed, folder, torch.device("cpu")) == epoch + 1
    resumed.train(epoch + 1, epoch + 2)
    assert_same(states(resumed), states(uninterrupted))
    lam, weight = (float(x) for x in resumed.schedule.factors())
    assert 0.01 < lam < 0.99
    assert 0.01 < weight < 0.99


def test_hooks_tester_and_record_keeper(tmp_path):
    folder, models = tmp_path / "records", networks()
    keeper, _, tensorboard = logging_presets.get_record_keeper(str(folder), str(tmp_path / "tensorboard"))
    hooks = logging_presets.get_hook_container(keeper, primary_metric="recall_at_1", log_freq=1)
    calculator = RetrievalAccuracyCalculator(
        recall_at=(1,), include=("recall_at_1",), device=torch.device("cpu"), k="max_bin_count"
    )
    tester = GlobalEmbeddingSpaceTester(
        end_of_testing_hook=hooks.end_of_testing_hook,
        accuracy_calculator=calculator,
        dataloader_num_workers=0,
        data_device=torch.device("cpu"),
    )
    trainer = trainer_of(
        models,
        period=2,
        end_of_iteration_hook=hooks.end_of_iteration_hook,
        end_of_epoch_hook=hooks.end_of_epoch_hook(tester, {"val": dataset()}, str(tmp_path / "models")),
    )
    trainer.train(1, 2)
    tensorboard.close()
    saved = {path.name for path in (tmp_path / "models").iterdir()}
    assert {f"{name}_2.pth" for name in (*NETWORKS, "hardness", "metric_loss", "tuple_miner")} <= saved
    assert {f"{name}_optimizer_2.pth" for name in NETWORKS} <= saved
    with sqlite3.connect(folder / "logs.db") as database:
        columns = ("j_m", "j_syn", "j_gen", "j_recon", "j_soft", "j_ce", "lam", "mixing_weight", "hardness_synthetic")
        rows = database.execute(f"SELECT {', '.join(columns)} FROM hardness_HardnessSchedule").fetchall()
        names = "metric_loss, synth_loss, recon_loss, soft_loss, classifier_loss, total_loss"
        recorded = database.execute(f"SELECT {names} FROM loss_histories").fetchall()
    database.close()
    assert len(rows) == len(recorded) == 2 * STEPS
    assert rows[0][6:8] == (1, 1)
    for row, losses_ in zip(rows, recorded, strict=True):
        values = dict(zip(columns, row, strict=True))
        assert values["j_gen"] == pytest.approx(values["j_recon"] + values["j_soft"])
        w = values["mixing_weight"]
        weighted = [w * values["j_m"], (1 - w) * values["j_syn"], values["j_recon"], values["j_soft"], values["j_ce"]]
        assert losses_ == pytest.approx((*weighted, sum(weighted)), rel=1e-5)


def test_loss_weights_are_the_users_times_the_schedules():
    weights = {"metric_loss": 2, "synth_loss": 3, "recon_loss": 0, "soft_loss": 0, "classifier_loss": 0.5}
    seen = []

    def note(trainer):
        w = float(trainer.schedule.mixing_weight)
        seen.append(w)
        assert trainer.losses["metric_loss"] == pytest.approx(2 * w * float(trainer.schedule.j_m))
        assert trainer.losses["synth_loss"] == pytest.approx(3 * (1 - w) * float(trainer.schedule.j_syn))
        assert trainer.losses["recon_loss"] == trainer.losses["soft_loss"] == 0

    trainer = trainer_of(networks(), loss_weights=weights, period=64, end_of_iteration_hook=note)
    in_the_middle(trainer.schedule)
    trainer.train(1, 1)
    assert len(seen) == STEPS
    assert weights["metric_loss"] == 2


@pytest.mark.parametrize(
    ("metric_loss", "miner"),
    [
        (RAWLoss(), RandomTupleMiner(seed=0, negatives=3)),
        (RAWLoss(), None),
        (BinomialDevianceLoss(), HardNegativePairMiner()),
        (BinomialDevianceLoss(), HardNegativePairMiner(as_masks=True)),
        (losses.ContrastiveLoss(), miners.MultiSimilarityMiner()),
        (losses.TripletMarginLoss(), miners.TripletMarginMiner()),
        (losses.MarginLoss(learn_beta=True), None),
    ],
)
def test_any_loss_and_miner(metric_loss, miner):
    models = networks()
    trainer = trainer_of(
        models, loss_funcs={"metric_loss": metric_loss}, mining_funcs={} if miner is None else {"tuple_miner": miner}
    )
    in_the_middle(trainer.schedule)
    before = copy.deepcopy({name: model.state_dict() for name, model in models.items()})
    trainer.train(1, 1)
    assert trainer.schedule.j_syn > 0
    for name, model in models.items():
        state = model.state_dict()
        assert all(value.isfinite().all() for value in state.values())
        assert any(not torch.equal(state[key], before[name][key]) for key in state)


def test_a_loss_of_its_own_for_synthetic_tuples():
    trainer = trainer_of(
        networks(), loss_funcs={"metric_loss": losses.NPairsLoss(), "synth_loss": NPairTupleLoss()}, mining_funcs={}
    )
    trainer.train(1, 1)
    assert trainer.schedule.j_syn > 0


def test_a_queue_may_be_the_metric_loss():
    loss_funcs = {"metric_loss": CrossBatchMemory(RAWLoss(), DIMENSION, 64), "synth_loss": RAWLoss()}
    trainer = trainer_of(networks(), loss_funcs=loss_funcs, mining_funcs={})
    trainer.train(1, 1)
    assert trainer.schedule.j_syn > 0
    assert loss_funcs["metric_loss"].has_been_filled


@pytest.mark.parametrize("sampler", [None, InOrder(30)])
def test_an_epoch_without_a_step_is_refused(sampler):
    trainer = trainer_of(networks())
    trainer.sampler, trainer.batch_size, trainer.iterations_per_epoch = sampler, 100, None
    with pytest.raises(ValueError, match=f"batch_size must be .* got 100 and {72 if sampler is None else 30}"):
        trainer.train(1, 10)


def test_caller_keeps_its_dictionaries():
    loss_funcs = {"metric_loss": triplet_sum()}
    trainer = trainer_of(networks(), loss_funcs=loss_funcs)
    assert list(loss_funcs) == ["metric_loss"]
    assert trainer.schedule is trainer.loss_funcs["hardness"]


# The assembly.


@pytest.mark.parametrize(("variant", "alpha", "size"), [("triplet", 7, 120), ("n_pair", 90, 128)])
def test_assembly_in_one_call(variant, alpha, size):
    models = networks()
    state = torch.get_rng_state()
    trainer = hardness_aware_trainer(
        variant,
        models["trunk"],
        models["embedder"],
        dataset(),
        CLASSES,
        iterations_per_epoch=2,
        sampler=InOrder(STEPS * PER_BATCH),
        dataloader_num_workers=0,
        seed=0,
    )
    assert models["trunk"][1].num_batches_tracked == 0  # looking for the sizes leaves no trace
    assert models["trunk"].training
    assert (trainer.schedule.alpha, trainer.schedule.beta, trainer.batch_size) == (alpha, 1e4, size)
    assert trainer.models["generator"].layers[0].out_features == 512
    assert trainer.models["classifier"].out_features == CLASSES
    rates = {name: optimizer.param_groups[0]["lr"] for name, optimizer in trainer.optimizers.items()}
    assert rates["trunk_optimizer"] == rates["embedder_optimizer"] == 7e-5
    assert (rates["generator_optimizer"], rates["classifier_optimizer"]) == (1e-2, 1e-3)
    assert trainer.separate_anchors == (variant == "n_pair")
    trainer.batch_size = PER_BATCH
    trainer.train(1, 1)
    assert trainer.schedule.j_syn > 0
    assert not torch.equal(state, torch.get_rng_state())


def test_assembly_takes_parts_and_refuses_nonsense():
    models = networks()
    generator = FeatureGenerator(DIMENSION, FEATURES, 3)
    trainer = hardness_aware_trainer(
        "triplet",
        models["trunk"],
        models["embedder"],
        dataset(),
        CLASSES,
        models={"generator": generator},
        loss_funcs={"metric_loss": losses.MarginLoss(learn_beta=True)},
        milestones=(),
        alpha=3,
    )
    assert trainer.models["generator"] is generator
    assert (trainer.schedule.alpha, trainer.lr_schedulers) == (3, {})
    assert "metric_loss_optimizer" in trainer.optimizers
    with pytest.raises(ValueError, match="variant must be one of triplet, n_pair, got 'npair'"):
        hardness_aware_trainer("npair", models["trunk"], models["embedder"], dataset(), CLASSES)
    with pytest.raises(ValueError, match=r"Unflatten must return one vector per sample, got \(2, 2, 4\)"):
        hardness_aware_trainer("triplet", nn.Unflatten(1, (2, 4)), models["embedder"], dataset(), CLASSES)


@pytest.fixture(autouse=True)
def _quiet():
    """PML's progress bars and advice."""
    c_f.LOGGER.setLevel(logging.ERROR)
