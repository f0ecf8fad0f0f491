"""Hardness-aware learning: worked values, who is trained by what, and its schedule; a loss for any training loop."""

import copy
import pickle

import pytest
import torch
from of_pml import LpDistance, SumReducer, losses
from torch import nn
from torch.testing import assert_close

from pml_ext.losses import BinomialDevianceLoss, CenterLoss, MultiSimilarityLoss, RAWLoss
from pml_ext.synthesis import pull_negatives
from pml_ext.trainers import (
    FeatureGenerator,
    HardnessAwareLoss,
    HardnessSchedule,
    NPairTupleLoss,
    NPairTupleMiner,
    RandomTupleMiner,
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


# Losses that synthetic tuples cannot be given to.
WITHOUT_REFERENCES = [
    lambda: CrossBatchMemory(RAWLoss(), DIMENSION),
    pytest.param(
        lambda: losses.CrossBatchMemory(losses.ContrastiveLoss(), DIMENSION), marks=pytest.mark.pml2("its memory")
    ),
    lambda: losses.ProxyAnchorLoss(CLASSES, DIMENSION),
    lambda: losses.NPairsLoss(),
    lambda: CenterLoss(CLASSES, DIMENSION),
    pytest.param(
        lambda: losses.MultipleLosses({"loss": losses.ContrastiveLoss()}), marks=pytest.mark.pml2("its MultipleLosses")
    ),
]


@pytest.mark.parametrize("make", WITHOUT_REFERENCES)
def test_a_synthetic_loss_takes_references(make):
    with pytest.raises(TypeError, match=r"synth_loss must take references .* does not; it is the metric_loss"):
        loss_of(networks(), make())
    with pytest.raises(TypeError, match="synth_loss must take references"):
        loss_of(networks(), synth_loss=make())
    loss_of(networks(), make(), synth_loss=RAWLoss())
