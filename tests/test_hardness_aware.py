"""Hardness-aware learning: worked values, who is trained by what, resuming, the ablation, and PML's machinery."""

import copy
import logging
import pickle
import sqlite3
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses, miners, trainers
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.reducers import SumReducer
from pytorch_metric_learning.testers import GlobalEmbeddingSpaceTester
from pytorch_metric_learning.utils import common_functions as c_f
from pytorch_metric_learning.utils import logging_presets
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import TensorDataset

from pml_ext.evaluation import RetrievalAccuracyCalculator
from pml_ext.losses import BinomialDevianceLoss, CenterLoss, MultiSimilarityLoss, RAWLoss
from pml_ext.miners import HardNegativePairMiner
from pml_ext.synthesis import pull_negatives
from pml_ext.trainers import (
    FeatureGenerator,
    HardnessAwareLoss,
    HardnessAwareTrainer,
    HardnessSchedule,
    NPairTupleLoss,
    NPairTupleMiner,
    RandomTupleMiner,
    hardness_aware_trainer,
)
from pml_ext.trainers.tuples import n_pair_tuples
from pml_ext.wrappers import CrossBatchMemory

CLASSES, FEATURES, DIMENSION = 6, 10, 4
NETWORKS = ("trunk", "embedder", "generator", "classifier")


def triplet_sum():
    distance = LpDistance(normalize_embeddings=False, power=2)
    return losses.TripletMarginLoss(margin=1, distance=distance, reducer=SumReducer())


def networks(seed=0, head=None):
    torch.manual_seed(seed)
    return {
        "trunk": nn.Sequential(nn.Linear(8, FEATURES), nn.BatchNorm1d(FEATURES), nn.ReLU()),
        "embedder": nn.Linear(FEATURES, DIMENSION) if head is None else head,
        "generator": FeatureGenerator(DIMENSION, FEATURES, 12),
        "classifier": nn.Linear(FEATURES, CLASSES),
    }


def batch(seed=1, per_class=3):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    return torch.randn(len(labels), 8, generator=generator) + labels.unsqueeze(1) % 3, labels


def in_the_middle(schedule):
    """A schedule under which real and synthetic tuples both count, and negatives are half pulled."""
    schedule.metric_average.fill_(schedule.alpha / 0.7)
    schedule.generator_average.fill_(schedule.beta / 0.7)
    return schedule


def loss_of(models, metric_loss=None, **kwargs):
    kwargs = {"miner": RandomTupleMiner(seed=0)} | kwargs
    parts = (models["embedder"], models["generator"], models["classifier"])
    return HardnessAwareLoss(*parts, triplet_sum() if metric_loss is None else metric_loss, **kwargs)


def gradients(value, models):
    """The gradient by each parameter, None where there is no path to it at all."""
    named = [(f"{m}.{p}", w) for m, model in models.items() for p, w in model.named_parameters()]
    found = torch.autograd.grad(value, [w for _, w in named], retain_graph=True, allow_unused=True)
    return {name: gradient for (name, _), gradient in zip(named, found, strict=True)}


# Worked values.


class Identity(nn.Module):
    """An identity that one can freeze."""

    def forward(self, x):
        return x


@pytest.mark.parametrize(("j_gen", "expected"), [(1e6, 0.4117799284), (1e4, 0.4744204186), (1e3, 0.5114541717)])
def test_worked_n_pairs(j_gen, expected):
    a, p = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [-0.6, 0.8]]
    embeddings, labels = torch.tensor([*a, *p], dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    loss = HardnessAwareLoss(
        Identity(), Identity(), nn.Linear(2, 2), NPairTupleLoss(), alpha=1, miner=NPairTupleMiner(), beta=1e4
    ).double()
    loss.schedule.metric_average.fill_(1)
    loss.schedule.generator_average.fill_(j_gen)
    terms = loss(embeddings, embeddings, labels)
    assert_close(terms.j_m.item(), 0.4107781397, rtol=0, atol=1e-10)
    assert_close(terms.j_syn.item(), 0.5114587426, rtol=0, atol=1e-10)
    assert_close(terms.j_metric.item(), expected, rtol=0, atol=1e-10)
    assert terms.j_recon == 0  # the identity recovers every feature


@pytest.mark.parametrize(("alpha", "expected"), [(7, 7.0), (90, 7.9995062999)])
def test_worked_triplets(alpha, expected):
    z, pos, neg = [[0, 0], [1, 1], [0, 0]], [[1, 0], [1, 4], [2, 0]], [[0, 3], [3, 1], [0, 2]]
    embeddings = torch.tensor([*z, *pos, *neg], dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 3, 4, 5])
    loss = HardnessAwareLoss(Identity(), Identity(), nn.Linear(2, 6), triplet_sum(), alpha=alpha).double()
    loss.schedule.metric_average.fill_(10)
    triplets = tuple(torch.arange(9).view(3, 3))
    terms = loss(embeddings, embeddings, labels, triplets)
    assert_close(terms.j_m.item(), 7.0, rtol=0, atol=1e-10)
    assert_close(terms.j_syn.item(), expected, rtol=0, atol=1e-9)


def test_generator_losses_are_those_of_the_formula():
    models, (data, labels) = networks(), batch()
    features = models["trunk"](data)
    embeddings = models["embedder"](features)
    anchors, positives, negatives = n_pair_tuples(labels)
    loss = loss_of(models, NPairTupleLoss(), miner=NPairTupleMiner(), soft_factor=100, soft_share=0.2)
    in_the_middle(loss.schedule)
    for separate in (False, True):
        loss.separate_anchors = separate
        terms = loss(features, embeddings, labels)
        pulled = pull_negatives(embeddings[anchors], embeddings[positives], embeddings[negatives], terms.lam)
        first = torch.arange(0, len(anchors), CLASSES - 1)  # one row for each pair
        rows = torch.cat([embeddings, embeddings[anchors[first]], embeddings[positives[first]], pulled])
        classes = torch.cat([labels[anchors[first]], labels[positives[first]], labels[negatives]])
        generated = copy.deepcopy(models["generator"])(rows)
        recovered, synthetic = generated[: len(labels)], generated[len(labels) :]
        assert_close(terms.j_recon, 0.8 * ((features - recovered) ** 2).sum())
        entropy = nn.functional.cross_entropy(models["classifier"](synthetic), classes, reduction="none")
        mean = entropy[:CLASSES].mean() + entropy[CLASSES:].mean() if separate else entropy.mean()
        assert_close(terms.j_soft, 20 * mean)
        assert_close(terms.j_ce, nn.functional.cross_entropy(models["classifier"](features), labels))
        regenerated = models["embedder"](synthetic)
        columns = torch.arange(len(anchors)) + CLASSES
        pair = torch.arange(CLASSES).repeat_interleave(CLASSES - 1)
        j_syn = NPairTupleLoss()(
            regenerated[:CLASSES], indices_tuple=(pair, pair, columns), ref_emb=regenerated[CLASSES:]
        )
        assert_close(terms.j_syn, j_syn)


def test_n_pair_loss_is_pmls_plus_the_norms():
    embeddings, (_, labels) = torch.randn(18, DIMENSION), batch()
    plain = NPairTupleLoss(regularization=0)
    pml = losses.NPairsLoss(distance=plain.distance)
    assert_close(plain(embeddings, labels), pml(embeddings, labels))
    assert_close(plain(embeddings, labels, n_pair_tuples(labels)), pml(embeddings, labels))
    triplets = n_pair_tuples(labels)
    norms = embeddings[triplets[0]].square().sum(1).mean() + embeddings[triplets[1]].square().sum(1).mean()
    assert_close(NPairTupleLoss()(embeddings, labels), pml(embeddings, labels) + 3e-3 / 4 * norms)
    assert NPairTupleLoss()(embeddings, torch.arange(18)) == 0
    with pytest.raises(ValueError, match="regularization must be at least 0, got -1"):
        NPairTupleLoss(regularization=-1)


@pytest.mark.parametrize("labels", [[], [3], [3, 3], [0, 1, 2], [2, 1, 2, 1, 1, 5], [4, 4, 0, 4, 0, 0]])
def test_n_pair_tuples(labels):
    found = list(zip(*(x.tolist() for x in n_pair_tuples(torch.tensor(labels, dtype=torch.long))), strict=True))
    where = {y: [i for i, label in enumerate(labels) if label == y] for y in sorted(set(labels))}
    pairs = [indices[:2] for indices in where.values() if len(indices) > 1]
    assert found == [(a, p, q) for a, p in pairs for b, q in pairs if b != a]


def test_random_tuples_are_uniform_and_repeat_with_their_seed():
    labels = torch.tensor([0, 0, 0, 1, 1, 2])
    embeddings = torch.zeros(6, 2)
    miner = RandomTupleMiner(seed=3, negatives=2)
    first = miner(embeddings, labels)
    again = RandomTupleMiner(seed=3, negatives=2)(embeddings, labels)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert first[0].tolist() == [0, 1, 2, 3, 4]  # the sample alone in its class has no positive
    drawn = [miner(embeddings, labels) for _ in range(600)]
    positives = torch.stack([p[0] for _, p, _, _ in drawn]).bincount(minlength=6)
    negatives = torch.cat([n[:2] for _, _, _, n in drawn]).bincount(minlength=6)
    # 600 draws: five standard deviations of a binomial count are below 62.
    assert_close(positives, torch.tensor([0, 300, 300, 0, 0, 0]), rtol=0, atol=62)
    assert_close(negatives, torch.tensor([0, 0, 0, 400, 400, 400]), rtol=0, atol=62)


# Who is trained by what.


@pytest.mark.parametrize(
    ("metric_loss", "miner"), [(triplet_sum(), RandomTupleMiner(seed=0)), (NPairTupleLoss(), NPairTupleMiner())]
)
def test_each_term_reaches_its_own_parameters_and_no_others(metric_loss, miner):
    models, (data, labels) = networks(), batch()
    loss = loss_of(models, metric_loss, miner=miner)
    in_the_middle(loss.schedule)
    features = models["trunk"](data)
    terms = loss(features, models["embedder"](features), labels)
    trained_by = {
        "j_m": {"trunk", "embedder"},
        "j_syn": {"trunk", "embedder"},
        "j_metric": {"trunk", "embedder"},
        "j_recon": {"generator"},
        "j_soft": {"generator"},
        "j_gen": {"generator"},
        "j_ce": {"classifier"},
        "total": set(NETWORKS),
    }
    for term, trained in trained_by.items():
        for name, gradient in gradients(getattr(terms, term), models).items():
            if name.split(".")[0] in trained:
                # A shift before a normalization or a margin has no effect, so a gradient may be 0 up to rounding.
                assert gradient is not None, f"{term} does not reach {name}"
            else:
                assert gradient is None, f"{term} reaches {name}"
        reached = gradients(getattr(terms, term), models)
        for network in trained:
            assert any((g != 0).any() for n, g in reached.items() if n.startswith(network)), (term, network)


def test_one_backward_gives_each_network_the_gradient_of_its_own_loss():
    models, (data, labels) = networks(), batch()
    loss = in_the_middle_loss = loss_of(models)
    in_the_middle(in_the_middle_loss.schedule)
    features = models["trunk"](data)
    terms = loss(features, models["embedder"](features), labels)
    own = {"trunk": terms.j_metric, "embedder": terms.j_metric, "generator": terms.j_gen, "classifier": terms.j_ce}
    total = gradients(terms.total, models)
    for network, term in own.items():
        for name, gradient in gradients(term, {network: models[network]}).items():
            assert_close(total[name], gradient, rtol=0, atol=0)


def test_synthetic_gradients_flow_through_the_generator_and_the_pull():
    """The gradient of J_syn by the features equals that of the formula written out, generator included."""
    models, (data, labels) = networks(), batch()
    features = models["trunk"](data).detach().requires_grad_()
    embeddings = models["embedder"](features)
    loss = loss_of(models, NPairTupleLoss(), miner=NPairTupleMiner())
    in_the_middle(loss.schedule)
    terms = loss(features, embeddings, labels)
    (found,) = torch.autograd.grad(terms.j_syn, features)

    a, p, n = n_pair_tuples(labels)
    first = torch.arange(0, len(a), CLASSES - 1)
    z = models["embedder"](features)
    pulled = pull_negatives(z[a], z[p], z[n], terms.lam)
    rows = torch.cat([z, z[a[first]], z[p[first]], pulled])
    again = models["embedder"](copy.deepcopy(models["generator"])(rows)[len(labels) :])
    pair = torch.arange(CLASSES).repeat_interleave(CLASSES - 1)
    columns = torch.arange(len(a)) + CLASSES
    j_syn = NPairTupleLoss()(again[:CLASSES], indices_tuple=(pair, pair, columns), ref_emb=again[CLASSES:])
    (expected,) = torch.autograd.grad(j_syn, features)
    assert_close(found, expected)
    assert (found != 0).any()


def test_generator_statistics_move_once_a_step():
    models, (data, labels) = networks(), batch()
    norm = models["generator"].layers[2]
    loss = loss_of(models)
    features = models["trunk"](data)
    loss(features, models["embedder"](features), labels)
    assert norm.num_batches_tracked == 1


def test_identity_networks_without_pull_give_the_metric_loss_twice():
    data, labels = batch()
    for metric_loss, miner in (
        (triplet_sum(), RandomTupleMiner(seed=0, negatives=3)),
        (NPairTupleLoss(), NPairTupleMiner()),
        (losses.ContrastiveLoss(), RandomTupleMiner(seed=0)),
        (MultiSimilarityLoss(), RandomTupleMiner(seed=0, negatives=4)),
        (losses.MultiSimilarityLoss(), RandomTupleMiner(seed=0, negatives=4)),
        (BinomialDevianceLoss(), RandomTupleMiner(seed=0, negatives=4)),
    ):
        loss = HardnessAwareLoss(Identity(), Identity(), nn.Linear(8, CLASSES), metric_loss, miner=miner)
        terms = loss(data, data, labels)  # lambda is 1
        assert_close(terms.j_syn, terms.j_m, msg=type(metric_loss).__name__)
        assert_close(terms.hardness_synthetic, terms.hardness_real)


# The schedule.


def test_schedule_refreshes_every_period():
    schedule = HardnessSchedule(alpha=2, beta=10, period=3)
    assert schedule.factors() == (1, 1)
    for value in (1.0, 2.0, 6.0):
        assert schedule.metric_average.isinf()
        schedule.update(torch.tensor(value), torch.tensor(10 * value))
    assert (schedule.metric_average.item(), schedule.generator_average.item()) == (3, 30)
    for value in (100.0, 100.0):
        schedule.update(torch.tensor(value), torch.tensor(value))
    assert schedule.metric_average == 3
    lam, weight = schedule.factors()
    assert_close(torch.stack([lam, weight]), torch.tensor([-2 / 3, -1 / 3]).exp())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, 1])
def test_schedule_leaves_out_what_is_not_finite(bad, which):
    schedule = HardnessSchedule(alpha=2, beta=10, period=3)
    for value in (1.0, bad, 2.0, 6.0):
        schedule.update(*(torch.tensor(value if i == which else min(value, 6.0)) for i in range(2)))
    assert (schedule.metric_average.item(), schedule.generator_average.item()) == (3, 3)
    schedule.update(torch.tensor(100.0), torch.tensor(100.0))
    assert schedule.metric_average == 3


def test_schedule_survives_state_dict_pickle_and_copy():
    schedule = HardnessSchedule(period=3)
    for value in range(5):
        schedule.update(torch.tensor(float(value)), torch.tensor(2.0))
    loaded = HardnessSchedule(period=3)
    loaded.load_state_dict(schedule.state_dict())
    for other in (loaded, pickle.loads(pickle.dumps(schedule)), copy.deepcopy(schedule)):
        for each in (schedule, other):
            copied = copy.deepcopy(each)
            copied.update(torch.tensor(7.0), torch.tensor(7.0))
            assert copied.metric_average == 14 / 3


def test_averages_stand_still_out_of_training_and_without_tuples():
    models, (data, labels) = networks(), batch()
    loss = loss_of(models, period=1)
    features = models["trunk"](data)
    embeddings = models["embedder"](features)
    terms = loss(features, embeddings, torch.zeros_like(labels))
    assert (terms.j_syn, terms.j_gen) == (0, 0)
    terms.total.backward()
    loss.eval()
    loss(features, embeddings, labels)
    assert loss.schedule.metric_average.isinf()
    loss.train()
    loss(features, embeddings, labels)
    assert loss.schedule.metric_average.isfinite()


@pytest.mark.parametrize("kwargs", [{"alpha": -1}, {"beta": float("nan")}, {"period": 0}, {"soft_share": 2}])
def test_bad_arguments_are_refused(kwargs):
    with pytest.raises(ValueError, match=next(iter(kwargs))):
        loss_of(networks(), **kwargs)


def test_bad_batches_are_refused():
    models, (data, labels) = networks(), batch()
    features, loss = models["trunk"](data), loss_of(models)
    with pytest.raises(ValueError, match="needs labels"):
        loss(features, models["embedder"](features), None)
    with pytest.raises(ValueError, match="one label for each of 18 embeddings"):
        loss(features, models["embedder"](features), labels[1:])
    with pytest.raises(ValueError, match="must have shape"):
        loss(features[..., None], models["embedder"](features), labels)

    with pytest.raises(TypeError, match=r"labels must be integers, .* got torch.float32"):
        loss(features, models["embedder"](features), labels.float())


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.uint8])
def test_labels_may_be_any_integers(dtype):
    models, (data, labels) = networks(), batch()
    features = models["trunk"](data)
    embeddings = models["embedder"](features)
    values = [
        in_the_middle_of(loss_of(models))(features, embeddings, each).total for each in (labels, labels.to(dtype))
    ]
    assert_close(*values)


def in_the_middle_of(loss):
    in_the_middle(loss.schedule)
    return loss


@pytest.mark.parametrize("whole", [True, False])
def test_half_precision_sums_in_single(whole):
    """300 squares of 20 are 120,000, more than float16 has; as under autocast, the networks run in half precision."""
    n, size = 12, 25
    labels = torch.arange(6).repeat_interleave(2)
    features = 20 * torch.ones(n, size)
    embedder, generator, classifier = nn.Linear(size, 2), nn.Linear(2, size), nn.Linear(size, 6)
    nn.init.zeros_(generator.weight)
    nn.init.zeros_(generator.bias)
    loss = HardnessAwareLoss(embedder, generator, classifier, RAWLoss(), miner=RandomTupleMiner(seed=0))
    if whole:
        loss, features = loss.half(), features.half()
        terms = loss(features, embedder(features), labels)
    else:
        with torch.autocast("cpu", dtype=torch.float16):
            terms = loss(features.half(), embedder(features), labels)
    assert terms.j_recon.item() == 0.5 * n * size * 400
    assert all(value.isfinite() for value in terms.records().values())


@pytest.mark.parametrize(
    "make",
    [
        lambda: CrossBatchMemory(RAWLoss(), DIMENSION),
        lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), DIMENSION),
        lambda: losses.ProxyAnchorLoss(CLASSES, DIMENSION),
        losses.NPairsLoss,
        lambda: CenterLoss(CLASSES, DIMENSION),
        lambda: losses.MultipleLosses([losses.ContrastiveLoss()]),
    ],
)
def test_a_synthetic_loss_takes_references(make):
    with pytest.raises(TypeError, match=r"synth_loss must take references .* does not; it is the metric_loss"):
        loss_of(networks(), make())
    with pytest.raises(TypeError, match="synth_loss must take references"):
        loss_of(networks(), synth_loss=make())
    with pytest.raises(TypeError, match="synth_loss must take references"):
        trainer_of(networks(), loss_funcs={"metric_loss": make()})
    loss_of(networks(), make(), synth_loss=RAWLoss())
    trainer_of(networks(), loss_funcs={"metric_loss": make()}, synthesis=False)


# The trainer.


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
