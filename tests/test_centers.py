"""Class centers: where they come from, and the losses and methods that use them.

The oracles are the formulas for one sample in plain Python. They take complex numbers and decide by real parts, so that
a step along the imaginary axis gives the derivative to the last digit: f(x + ih) = f(x) + ih f'(x), for tiny h.
"""

import cmath

import pytest
import torch
from of_pml import (
    ContrastiveLoss,
    CosineSimilarity,
    DivisorReducer,
    LpDistance,
    NCALoss,
    PairMarginMiner,
    ProxyNCALoss,
    SumReducer,
    TripletMarginLoss,
)
from toy import toy

from pml_ext.catalog import build, required
from pml_ext.centers import (
    BatchCenters,
    Centers,
    CenterSource,
    GroupCenters,
    KMeansCenters,
    LearnedCenters,
    RunningCenters,
    group_means,
)
from pml_ext.losses import (
    BinomialDevianceLoss,
    CenterLoss,
    ClampedNCALoss,
    ClassCenterMarginLoss,
    KNNSoftmaxLoss,
    RAWLoss,
)
from pml_ext.miners import HardNegativePairMiner, KNearestNegativeMiner
from pml_ext.testing import Batch, check_loss
from pml_ext.testing.contract_laws import check_compiled
from pml_ext.wrappers import AnchorWeightedLoss, CentersAsReferences, MinedLoss

(X6, Y6), (X9, Y9) = toy(6), toy(9)
# Three classes of 1, 3 and 4, and three of 3.
BATCHES = [((1, 3, 4), 0), ((3, 3, 3), 1), ((2, 5), 2), ((1, 1, 2), 3)]


def batch(sizes, seed, dimension=3):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    y = y[torch.randperm(len(y), generator=generator)]
    return torch.randn(len(y), dimension, generator=generator, dtype=torch.float64), y


class Fixed(GroupCenters):
    """Groups that are given."""

    def __init__(self, groups, **kwargs):
        super().__init__(**kwargs)
        self.given = torch.as_tensor(groups)

    def groups(self, embeddings, labels):
        return self.given


def by_label(centers):
    """The centers [c, d] in the order of their labels, one for each."""
    centers = centers.compact()
    return centers.points[centers.labels.argsort()]


def squared():
    return LpDistance(power=2, normalize_embeddings=False)


def plain(name, **overrides):
    """The loss of a recipe on the embeddings as they are."""
    return build(name, normalize_embeddings=False, **overrides).loss


def mca(centers, per_class, k=32):
    source = LearnedCenters(len(centers) // per_class, centers.shape[1], centers_per_class=per_class).double()
    source.centers.data.copy_(centers)
    return CentersAsReferences(
        MinedLoss(KNNSoftmaxLoss(alpha=16, k=None), KNearestNegativeMiner(k=k)), source, normalize_embeddings=True
    )


MCA_CENTERS = torch.tensor([(1, 0), (0, 1), (-0.6, 0.8), (-1, 0)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("loss", "x", "y", "expected"),
    [
        (build("CenterNCA").loss, X6, Y6, 1.9024827626),
        (build("CenterNCA").loss, X9, Y9, 1.2683218666),
        (build("CenterPair").loss, X6, Y6, -0.0334580113),
        (plain("CenterPair"), 0.3 * X9, Y9, 0.4689192394),
        (build("ClusterNCA", centers=Fixed([0, 0, 1, 2, 2, 2])).loss, X6, Y6, 5.7896784106),
        (build("ClusterNCA", centers=Fixed([0, 0, 0, 1, 2, 2, 3, 3, 4])).loss, X9, Y9, 4.7880014196),
        (mca(MCA_CENTERS, 2), X6, Y6, 2.8371352470),
        (ClassCenterMarginLoss(center_margin=0.7, sample_margin=0.3), X6, Y6, 0.9030545676),
        (CenterLoss(2, 2, centers=BatchCenters()), X6, Y6, 0.1578666667),
        (CenterLoss(2, 2, centers=BatchCenters(), reducer=SumReducer()), X6, Y6, 0.9472000000),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_worked_values(loss, x, y, expected):
    assert loss(x, y).item() == pytest.approx(expected, abs=2e-10)


def test_norm_of_the_gradient_of_center_nca():
    x = X6.clone().requires_grad_()
    plain("CenterNCA")(x, Y6).backward()
    assert x.grad.norm().item() == pytest.approx(7.4873376032, abs=2e-10)


# The formulas for one sample. Centers are given, so that they can be held.


def real(value):
    return complex(value).real


def largest(*values):
    return max(values, key=real)


def smallest(*values):
    return min(values, key=real)


def q(a, b):
    return sum((s - t) ** 2 for s, t in zip(a, b, strict=True))


def lse(values):
    top = largest(*values)
    return top + cmath.log(sum(cmath.exp(v - top) for v in values))


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def means(x, groups):
    return {g: mean([row for row, h in zip(x, groups, strict=True) if h == g]) for g in groups}


def center_nca(x, y, i, centers, alpha=16):
    if len(centers) < 2:
        return 0.0
    return alpha * q(x[i], centers[y[i]]) + lse([-alpha * q(x[i], c) for c in centers.values()])


def center_pair(x, y, i, centers):
    others = [-smallest(cmath.sqrt(q(x[i], c)), 0.6) for k, c in centers.items() if k != y[i]]
    return largest(cmath.sqrt(q(x[i], centers[y[i]])), 0.15) + lse(others) if others else 0.0


def cluster_nca(x, y, i, centers, sizes, group, alpha=16):
    """Centers by (class, group); the squared distance to the own one is that to the mean of the others."""
    terms = {}
    for name, c in centers.items():
        if name != group:
            terms[name] = -alpha * q(x[i], c)
        elif sizes[name] > 1:
            terms[name] = -alpha * q(x[i], c) * (sizes[name] / (sizes[name] - 1)) ** 2
    own = [t for name, t in terms.items() if name[0] == y[i]]
    return lse(list(terms.values())) - lse(own) if own and len(own) < len(terms) else 0.0


def mca_loss(x, y, i, centers, labels, k, alpha=16):
    pos = [-alpha * q(x[i], c) for c, label in zip(centers, labels, strict=True) if label == y[i]]
    neg = [-alpha * q(x[i], c) for c, label in zip(centers, labels, strict=True) if label != y[i]]
    return lse(pos + sorted(neg, key=real)[-k:]) - lse(pos)


def class_center_margin(x, y, center_margin=1.0, sample_margin=0.3):
    centers, total = means(x, y), 0.0
    for k, c in centers.items():
        others = [cmath.sqrt(q(c, other)) for label, other in centers.items() if label != k]
        farthest = largest(*(cmath.sqrt(q(row, c)) for row, label in zip(x, y, strict=True) if label == k))
        total += largest(center_margin - smallest(*others), 0) if others else 0
        total += largest(farthest - sample_margin, 0)
    return total


def slope(f, x, step=1e-30):
    """The gradient of a function of a list of lists."""
    gradient = []
    for row in x:
        for j, value in enumerate(row):
            row[j] = value + step * 1j
            gradient.append(complex(f(x)).imag / step)
            row[j] = value
    return torch.tensor(gradient, dtype=torch.float64).view(len(x), -1)


def agrees(loss, x, y, oracle):
    """Value and gradient of the loss against an oracle of lists."""
    leaf = x.clone().requires_grad_()
    value = loss(leaf, y)
    rows = x.tolist()
    assert value.item() == pytest.approx(real(oracle(rows)), rel=1e-10, abs=1e-10)
    value.backward()
    torch.testing.assert_close(leaf.grad, slope(oracle, rows), rtol=1e-10, atol=1e-10)


def average(f, y):
    return lambda x: sum(f(x, y, i) for i in range(len(y))) / len(y)


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_center_nca_is_its_formula_with_centers_held(sizes, seed):
    x, y = batch(sizes, seed)
    centers = means(x.tolist(), y.tolist())
    agrees(plain("CenterNCA"), x, y, average(lambda x, y, i: center_nca(x, y, i, centers), y.tolist()))


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_center_pair_is_its_formula(sizes, seed):
    x, y = batch(sizes, seed)
    agrees(plain("CenterPair"), 0.4 * x, y, average(lambda x, y, i: center_pair(x, y, i, means(x, y)), y.tolist()))


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_cluster_nca_is_its_formula(sizes, seed):
    x, y = batch(sizes, seed)
    groups = torch.arange(len(y)) % 2
    names = list(zip(y.tolist(), groups.tolist(), strict=True))

    def one(x, y, i):
        sizes = {name: names.count(name) for name in names}
        return cluster_nca(x, y, i, means(x, names), sizes, names[i])

    agrees(plain("ClusterNCA", centers=Fixed(groups)), 0.4 * x, y, average(one, y.tolist()))


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_mca_is_its_formula(sizes, seed):
    x, y = batch(sizes, seed)
    x = torch.nn.functional.normalize(x)
    centers = torch.nn.functional.normalize(batch((2,) * len(sizes), 9 + seed)[0])
    labels = [0, 0, 1, 1, 2, 2][: len(centers)]
    loss = mca(centers, 2, k=3)
    loss.normalize_embeddings = False
    loss.loss.loss.distance = squared()
    agrees(loss, x, y, average(lambda x, y, i: mca_loss(x, y, i, centers.tolist(), labels, 3), y.tolist()))


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_class_center_margin_is_its_formula(sizes, seed):
    x, y = batch(sizes, seed)
    loss = ClassCenterMarginLoss(distance=LpDistance(normalize_embeddings=False))
    agrees(loss, 0.4 * x, y, lambda x: class_center_margin(x, y.tolist()))


@pytest.mark.parametrize(("sizes", "seed"), BATCHES)
def test_center_loss_is_its_formula(sizes, seed):
    x, y = batch(sizes, seed)
    loss = CenterLoss(len(sizes), 3, centers="learned").double()
    centers = loss.centers.centers.tolist()
    agrees(loss, x, y, average(lambda x, y, i: q(x[i], centers[y[i]]) / 2, y.tolist()))


# What must move where


def test_center_pair_pushes_other_centers_away():
    """The reference code pulls a sample to the centers of other classes."""
    x, y = 0.1 * X9.clone(), Y9
    x.requires_grad_()
    loss, distance = plain("CenterPair"), LpDistance(normalize_embeddings=False)

    def wrong():
        centers = BatchCenters()(x, y).compact()
        return distance(x, centers.points)[y.unsqueeze(1) != centers.labels].mean().item()

    before = wrong()
    for _ in range(200):
        (gradient,) = torch.autograd.grad(loss(x, y), x)
        x.data -= 0.05 * gradient
    assert wrong() > max(2 * before, 0.5)


def test_class_center_margin_pushes_centers_and_pulls_samples():
    x, y = 0.3 * X9.clone(), Y9
    x.requires_grad_()
    loss = ClassCenterMarginLoss(distance=LpDistance(normalize_embeddings=False), sample_margin=0.1)

    def apart_and_within():
        centers = BatchCenters()(x, y).compact()
        within = (x - centers.points[centers.group]).norm(dim=1).max()
        return torch.pdist(centers.points).min().item(), within.item()

    before = apart_and_within()
    for _ in range(100):
        (gradient,) = torch.autograd.grad(loss(x, y), x)
        x.data -= 0.01 * gradient
    after = apart_and_within()
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


@pytest.mark.parametrize("name", ["CenterNCA", "CenterPair", "ClusterNCA", "KmeanNCA", "MCA"])
def test_own_centers_pull_and_others_push(name):
    """By the references themselves, that is with the centers moved too."""
    x, y = batch((3, 4, 3), 5)
    wrapper = build(name, **dict.fromkeys(required(name), 3)).loss
    x = torch.nn.functional.normalize(x)
    centers = wrapper.centers.double()(x, y).compact()
    refs = centers.points.detach().clone().requires_grad_()
    for i in range(len(y)):
        (gradient,) = torch.autograd.grad(wrapper.loss(x[i : i + 1], y[i : i + 1], None, refs, centers.labels), refs)
        toward = (gradient * (x[i] - refs)).sum(1)  # how the loss changes as a reference moves to the sample
        assert (toward[centers.labels == y[i]] <= 1e-12).all()
        assert (toward[centers.labels != y[i]] >= -1e-12).all()


# Identities


@pytest.mark.parametrize("detach", [False, True])
def test_leave_one_out_is_the_factor_of_the_squared_distance(detach):
    """The mean of the others is s / (s - 1) times as far; by value and by gradient."""
    x, y = batch((2, 4, 3), 3)
    loss = CentersAsReferences(
        KNNSoftmaxLoss(alpha=2, k=None, distance=squared()), BatchCenters(detach=detach), leave_one_out=True
    )
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    centers, sizes = by_label(BatchCenters(detach=detach)(second, y)), torch.bincount(y)[y].double()
    scores = -2 * squared()(second, centers)
    factor = torch.where(y.unsqueeze(1) == torch.arange(3), (sizes / (sizes - 1)).square().unsqueeze(1), 1.0)
    if detach:  # then the mean of the others, not the own center, is what is held
        others = (sizes.unsqueeze(1) * centers[y] - x) / (sizes - 1).unsqueeze(1)
        own = -2 * (second - others).square().sum(1, keepdim=True)
        scores = torch.where(y.unsqueeze(1) == torch.arange(3), own, scores)
    else:
        scores = scores * factor
    expected = torch.nn.functional.cross_entropy(scores, y)
    actual = loss(first, y)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    actual.backward(), expected.backward()
    torch.testing.assert_close(first.grad, second.grad, rtol=1e-10, atol=1e-10)


def test_one_cluster_per_class_is_nca_on_the_means_of_the_others():
    x, y = batch((2, 4, 3), 4)
    loss = plain("KmeanNCA", n_clusters=1)
    total = 0.0
    for i in range(len(y)):
        rest = torch.arange(len(y)) != i
        references = torch.stack([x[rest & (y == k)].mean(0) if k == y[i] else x[y == k].mean(0) for k in range(3)])
        total += KNNSoftmaxLoss(k=None, distance=squared())(
            x[i : i + 1], y[i : i + 1], None, references, torch.arange(3)
        )
    torch.testing.assert_close(loss(x, y), total / len(y), rtol=1e-12, atol=1e-12)


def test_mca_with_one_center_and_all_negatives_is_proxy_nca_with_its_denominator_completed():
    """PML's ProxyNCALoss has the positive in its denominator as well."""
    x, y = batch((3, 3, 3), 6)
    pml = ProxyNCALoss(3, 3, softmax_scale=16).double()
    ours = build("MCA", num_classes=3, embedding_size=3, centers_per_class=1).loss.double()
    ours.centers.centers.data.copy_(pml.proxies.data)
    torch.testing.assert_close(ours(x, y), pml(x, y), rtol=1e-12, atol=1e-12)


def test_nearest_negatives_are_counted_without_the_positives():
    """With k = 1 a positive that is nearer must not take the place of the negative."""
    assert mca(MCA_CENTERS, 2, k=1)(X6, Y6) != KNNSoftmaxLoss(k=1)(
        X6, Y6, None, MCA_CENTERS, torch.tensor([0, 0, 1, 1])
    )
    assert mca(MCA_CENTERS, 2, k=2)(X6, Y6).item() == pytest.approx(2.8371352470, abs=2e-10)


def test_leave_one_out_of_a_source_with_more_centers_than_samples():
    class AsManyAsThereMayBe(CenterSource):
        of_batch = True

        def forward(self, embeddings, labels):
            return Centers(group_means(embeddings, labels, 10), torch.arange(10), labels)

    x, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([9, 9, 9, 3, 3, 3])
    loss = KNNSoftmaxLoss(k=None)
    expected = CentersAsReferences(loss, BatchCenters(), leave_one_out=True)(x, y)
    only = torch.zeros(10, dtype=torch.bool).index_fill_(0, y, True)
    source = AsManyAsThereMayBe()
    source.register_forward_hook(lambda module, batch, centers: centers._replace(used=only))
    torch.testing.assert_close(CentersAsReferences(loss, source, leave_one_out=True)(x, y), expected)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_centers_of_the_batch_wait_for_nothing(leave_one_out):
    """No operation asks for the value of a tensor, and the whole is one graph."""
    loss = CentersAsReferences(KNNSoftmaxLoss(k=None), BatchCenters(), leave_one_out=leave_one_out)
    check_loss(loss, only=["nothing_waits_for_the_device"])
    check_compiled(loss, Batch((3, 4, 2), seed=7), "aot_eager")


# Losses of PML


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_the_loss_may_be_of_pml(leave_one_out):
    x, y = batch((3, 4, 2), 7)
    pml = CentersAsReferences(NCALoss(distance=squared()), BatchCenters(), leave_one_out=leave_one_out)
    if not leave_one_out:
        ours = CentersAsReferences(KNNSoftmaxLoss(alpha=1, k=None, distance=squared()), BatchCenters())
        torch.testing.assert_close(pml(x, y), ours(x, y), rtol=1e-12, atol=1e-12)
    for loss in (TripletMarginLoss(), ContrastiveLoss()):
        leaf = x.clone().requires_grad_()
        CentersAsReferences(loss, BatchCenters(), leave_one_out=leave_one_out)(leaf, y).backward()
        assert leaf.grad.isfinite().all()
        assert leaf.grad.any()


def test_pairs_of_leave_one_out_are_the_same_for_pml():
    x, y = batch((3, 4, 1), 8)
    source = Fixed([0, 0, 1, 0, 0, 1, 1, 0])
    triplets = TripletMarginLoss(margin=5, distance=squared(), reducer=SumReducer())
    wrapped = CentersAsReferences(triplets, source, leave_one_out=True)
    names = list(zip(y.tolist(), source.given.tolist(), strict=True))
    groups = means(x.tolist(), names)
    expected = 0.0
    for i, row in enumerate(x.tolist()):
        mates = [r for r, name in zip(x.tolist(), names, strict=True) if name == names[i]]
        pos = [q(row, c) for name, c in groups.items() if name[0] == names[i][0] and name != names[i]]
        if len(mates) > 1:
            pos.append(q(row, groups[names[i]]) * (len(mates) / (len(mates) - 1)) ** 2)
        neg = [q(row, c) for name, c in groups.items() if name[0] != names[i][0]]
        expected += sum(max(p - n + 5, 0) for p in pos for n in neg)
    assert wrapped(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_a_wrapped_loss_may_be_wrapped():
    x, y = batch((3, 4, 2), 7)
    inner = AnchorWeightedLoss(KNNSoftmaxLoss(k=None, distance=squared()))
    assert CentersAsReferences(inner, BatchCenters(), leave_one_out=True)(x, y) > 0


def test_a_mined_loss_is_its_parts():
    x, y = batch((3, 4, 2), 7)
    for loss in (BinomialDevianceLoss(), TripletMarginLoss()):
        for miner in (HardNegativePairMiner(), PairMarginMiner()):
            torch.testing.assert_close(MinedLoss(loss, miner)(x, y), loss(x, y, miner(x, y)), rtol=0, atol=1e-14)
            expected = loss(x, y, miner(x, y, x + 1, y), x + 1, y)
            torch.testing.assert_close(MinedLoss(loss, miner)(x, y, None, x + 1, y), expected, rtol=0, atol=1e-14)


# Degenerate batches


EMPTY = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
DEGENERATE = {
    "empty": EMPTY,
    "one sample": (X6[:1], Y6[:1]),
    "one class": (X6[:3], Y6[:3]),
    "all different": (X6, torch.arange(6)),
    "duplicates": (X6[[0, 0, 1, 3, 3, 3]], Y6),
    "collapsed": (X6[[0] * 6], Y6),
    "zeros": (0 * X6, Y6),
}
NOTHING_TO_COMPARE = {
    "CenterNCA": {"empty", "one sample", "one class"},
    "CenterPair": {"empty", "one sample", "one class"},
    "ClusterNCA": {"empty", "one sample", "one class", "all different"},
    "KmeanNCA": {"empty", "one sample", "one class", "all different"},
    "MCA": {"empty"},
    "Center": {"empty"},
    "ClassCenterMargin": {"empty", "one sample"},
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", NOTHING_TO_COMPARE)
def test_degenerate_batches(name, case):
    known = {"num_classes": 6, "embedding_size": 2}
    loss = build(name, **{each: known[each] for each in required(name)}).loss
    for dtype in (torch.float64, torch.float32):
        x, y = DEGENERATE[case]
        x = x.to(dtype, copy=True).requires_grad_()
        value = loss(x, y)
        value.backward()
        assert value.shape == ()
        assert value.isfinite()
        assert x.grad.isfinite().all()
        if case in NOTHING_TO_COMPARE[name]:
            assert value == 0
            assert not x.grad.any()


# Sources


def test_batch_centers_are_class_means():
    x, y = batch((1, 3, 4), 0)
    centers = BatchCenters()(x, 10 - 3 * y)
    assert centers.used.sum() == 3
    compact = centers.compact()
    assert sorted(compact.labels.tolist()) == [4, 7, 10]
    for found in (centers, compact):
        for point, label in zip(found.points, found.labels, strict=True):
            torch.testing.assert_close(point, x[10 - 3 * y == label].mean(0))
        assert (found.labels[found.group] == 10 - 3 * y).all()


def test_groups_of_different_classes_are_different():
    centers = Fixed([-5, -5, 2, 2, 2, 2])(X6, Y6)
    assert centers.labels[centers.used].tolist() == [0, 0, 1]
    assert centers.group.tolist() == [0, 0, 2, 3, 3, 3]
    assert centers.compact().group.tolist() == [0, 0, 1, 2, 2, 2]


def test_detached_centers_are_constants():
    assert not BatchCenters(detach=True)(X6.clone().requires_grad_(), Y6).points.requires_grad
    assert BatchCenters()(X6.clone().requires_grad_(), Y6).points.requires_grad


def test_k_means_is_seeded_and_local():
    x, y = batch((20, 20), 0)
    state = torch.get_rng_state()
    first, again = (KMeansCenters(n_clusters=5)(x, y) for _ in range(2))
    assert torch.equal(first.group, again.group)
    assert torch.equal(state, torch.get_rng_state())
    assert any(not torch.equal(first.group, KMeansCenters(n_clusters=5, seed=s)(x, y).group) for s in (1, 2, 3))


@pytest.mark.parametrize("per_class", [False, True])
def test_k_means_finds_clusters(per_class):
    """Two far blobs in each of two classes, each blob in the same place in both."""
    x = torch.tensor([[0.0, 0.0], [10.0, 0.0]], dtype=torch.float64).repeat(6, 1) + 0.01 * batch((12,), 1, 2)[0]
    y = torch.arange(12) // 2 % 2
    centers = KMeansCenters(n_clusters=2 if per_class else 4, label_weight=1.0, per_class=per_class)(x, y).compact()
    assert len(centers.points) == 4
    for group in range(4):
        members = centers.group == group
        assert len(set(y[members].tolist())) == 1
        assert x[members, 0].std() < 1


def test_a_large_label_weight_separates_the_classes():
    x, y = batch((10, 10), 2)
    for weight, mixed in ((0.0, True), (100.0, False)):
        clusters = KMeansCenters(n_clusters=2, label_weight=weight).groups(x, y)
        assert any(len(set(y[clusters == c].tolist())) > 1 for c in (0, 1)) is mixed


@pytest.mark.parametrize("per_class", [False, True])
def test_more_clusters_than_samples(per_class):
    """Every sample a cluster of its own; equal ones, also up to rounding, share one, without a warning."""
    source = KMeansCenters(n_clusters=100, per_class=per_class)
    assert source(X6, Y6).used.sum() == 6
    assert source(X6[[0, 0, 0, 3, 3, 3]], Y6).used.sum() == 2
    assert source(X6[[0, 0, 0, 3, 3, 3]] * (1 + 1e-16 * torch.arange(6)).unsqueeze(1), Y6).used.sum() >= 2


def test_k_means_of_each_class_is_that_of_the_class_alone():
    """Classes of very different sizes, in no order, whatever they are called."""
    x, y = batch((1, 3, 17, 70, 4, 5, 300, 1), 3)
    source = KMeansCenters(n_clusters=3, per_class=True)
    clusters = source.groups(x, 7 - y)
    for k in range(8):
        assert torch.equal(clusters[y == k], source.groups(x[y == k], y[y == k]))


def test_k_means_takes_the_class_as_columns():
    x, y = batch((10, 10, 5), 3)
    columns = torch.cat([x, 0.7 * torch.nn.functional.one_hot(y)], dim=1)
    expected = KMeansCenters(n_clusters=4, label_weight=0).groups(columns, y)
    assert torch.equal(KMeansCenters(n_clusters=4, label_weight=0.7).groups(x, y - 1), expected)


def test_running_centers_follow_the_rule():
    source = RunningCenters(3, 2, alpha=0.4).double()
    expected = torch.zeros(3, 2, dtype=torch.float64)
    for x, y in ((X6, Y6), (X9, Y9), (-X6, 2 - Y6)):
        before = source(x, y).points
        assert torch.equal(before, expected)
        delta = torch.zeros_like(expected)
        for k in range(3):
            members = x[y == k]
            delta[k] = (expected[k] - members).sum(0) / (1 + len(members))
        expected = expected - 0.4 * delta
        torch.testing.assert_close(source.centers, expected, rtol=0, atol=1e-14)
        assert not torch.equal(before, source.centers)


def test_running_centers_rest_in_evaluation_and_are_saved():
    loss = CenterLoss(2, 2)
    loss(X6.float(), Y6)
    other = CenterLoss(2, 2)
    other.load_state_dict(loss.state_dict())
    other.eval()
    values = [other(X6.float(), Y6) for _ in range(2)]
    assert values[0] == values[1] == loss(X6.float(), Y6)
    assert not list(loss.parameters())


def test_running_centers_approach_the_means():
    source = RunningCenters(2, 2).double()
    for _ in range(50):
        source(X6, Y6)
    torch.testing.assert_close(source.centers, by_label(BatchCenters()(X6, Y6)), atol=1e-6, rtol=0)


def test_learned_centers_are_of_unit_length_and_learn():
    loss = build("MCA", num_classes=3, embedding_size=2).loss
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    before = loss(X9.float(), Y9).item()
    for _ in range(50):
        optimizer.zero_grad()
        loss(X9.float(), Y9).backward()
        optimizer.step()
    assert loss(X9.float(), Y9).item() < before / 2
    centers = loss.centers(X9.float(), Y9)
    torch.testing.assert_close(centers.points.norm(dim=1), torch.ones(9))
    copy = build("MCA", num_classes=3, embedding_size=2).loss
    copy.load_state_dict(loss.state_dict())
    assert copy(X9.float(), Y9) == loss(X9.float(), Y9)


def test_own_center_of_several_is_the_nearest_of_the_class():
    source = LearnedCenters(2, 2, centers_per_class=2).double()
    source.centers.data.copy_(MCA_CENTERS)
    assert source(X6, Y6).group.tolist() == [0, 0, 1, 2, 2, 2]
    loss = CenterLoss(2, 2, centers=source)
    expected = (X6 - MCA_CENTERS[[0, 0, 1, 2, 2, 2]]).square().sum() / 12
    torch.testing.assert_close(loss(X6, Y6), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NOTHING_TO_COMPARE)
def test_half_precision_and_other_dtypes(name, dtype):
    known = {"num_classes": 3, "embedding_size": 2}
    loss = build(name, **{each: known[each] for each in required(name)}).loss.eval()
    expected = loss(X9.to(dtype).float(), Y9)
    torch.testing.assert_close(loss(X9.to(dtype), Y9).float(), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(loss(X9.to(dtype).double(), Y9).float(), expected, rtol=1e-4, atol=1e-4)


# Class-center margin and center loss: reductions, levels


def test_class_center_margin_counts_classes():
    total = ClassCenterMarginLoss(center_margin=0.7)(X9, Y9)
    mean = ClassCenterMarginLoss(center_margin=0.7, reducer=DivisorReducer())(X9, Y9)
    torch.testing.assert_close(mean, total / 3)


def test_class_center_margin_takes_a_similarity():
    """Its margins are then levels of the similarity."""
    loss = ClassCenterMarginLoss(center_margin=0.5, sample_margin=0.9, distance=CosineSimilarity())
    points = by_label(BatchCenters()(X6, Y6))
    between = (points @ points.T)[0, 1].item()
    own = (X6 * points[Y6]).sum(1).view(2, 3).min(1).values
    expected = 2 * max(between - 0.5, 0) + (0.9 - own).relu().sum().item()
    assert loss(X6, Y6).item() == pytest.approx(expected, abs=1e-12)


def test_means_are_not_normalized_again():
    """Longer embeddings change nothing under a distance that normalizes, and the means stay inside the sphere."""
    expected = ClassCenterMarginLoss(center_margin=0.7)(X6, Y6)
    torch.testing.assert_close(ClassCenterMarginLoss(center_margin=0.7)(3 * X6, Y6), expected)
    torch.testing.assert_close(build("CenterNCA").loss(3 * X6, Y6).item(), 1.9024827626, atol=2e-10, rtol=0)


def test_clamps_have_a_zero_gradient_beyond():
    x = torch.tensor([[0.0], [0.1], [5.0], [5.1]], dtype=torch.float64, requires_grad=True)
    ClampedNCALoss(distance=LpDistance(normalize_embeddings=False))(x, torch.tensor([0, 0, 1, 1])).backward()
    assert not x.grad.any()


# Errors


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: CentersAsReferences(KNNSoftmaxLoss(), "batch"), TypeError, "CenterSource, got str"),
        (lambda: CentersAsReferences(RAWLoss(), RunningCenters(2, 2), leave_one_out=True), ValueError, "Running"),
        (lambda: CentersAsReferences("nca", BatchCenters()), TypeError, "got str"),
        (lambda: MinedLoss(KNNSoftmaxLoss(), KNNSoftmaxLoss()), TypeError, "got KNNSoftmaxLoss"),
        (lambda: RunningCenters(2, 2, alpha=1.5), ValueError, "at most 1, got 1.5"),
        (lambda: RunningCenters(0, 2), ValueError, "num_classes must be at least 1, got 0"),
        (lambda: LearnedCenters(2, 2, centers_per_class=0), ValueError, "centers_per_class"),
        (lambda: KMeansCenters(n_clusters=0), ValueError, "n_clusters"),
        (lambda: KMeansCenters(label_weight=-1), ValueError, "label_weight"),
        (lambda: KMeansCenters(max_iterations=0), ValueError, "max_iterations"),
        (lambda: CenterLoss(2, 2, centers="batch"), ValueError, "got 'batch'"),
        (lambda: CenterLoss(2, 2, distance=CosineSimilarity()), ValueError, "got CosineSimilarity"),
        (lambda: CenterLoss(2, 2)(X6, Y6 + 1), ValueError, "in 0..1"),
        (lambda: CenterLoss(2, 2, centers="learned")(X6, -Y6), ValueError, "in 0..1"),
        (lambda: CenterLoss(2, 2)(X6, Y6 + 0.5), ValueError, "whole numbers in 0..1.*got 0.5"),
        (lambda: CenterLoss(2, 3)(X6, Y6), ValueError, "dimension 2, the centers 3"),
        (lambda: CenterLoss(2, 2)(X6, Y6, ref_emb=-X6, ref_labels=Y6), ValueError, "ref_emb"),
        (lambda: CenterLoss(2, 2)(X6, Y6, (Y6, Y6, Y6)), ValueError, "indices_tuple"),
        (lambda: CenterLoss(2, 2)(X6, None), ValueError, "labels"),
        (lambda: build("CenterNCA").loss(X6), ValueError, "labels"),
        (lambda: build("CenterNCA").loss(X6, Y6, (Y6, Y6, Y6)), ValueError, "indices_tuple"),
        (lambda: build("CenterNCA").loss(X6, Y6, None, -X6, Y6), ValueError, "ref_emb"),
        (lambda: MinedLoss(KNNSoftmaxLoss(), HardNegativePairMiner())(X6), ValueError, "labels"),
        (lambda: build("MCA", num_classes=2), TypeError, "MCA needs embedding_size"),
        (lambda: build("CenterNCA", gamma=2), TypeError, "gamma"),
    ],
)  # fmt: skip
def test_errors_say_what_is_wrong(make, error, text):
    with pytest.raises(error, match=text):
        make()


def test_overrides_reach_the_part_that_names_them():
    assert build("ClusterNCA", n_clusters=4, alpha=20).loss.centers.n_clusters == 4
    assert build("MCA", num_classes=4, embedding_size=2, k=5).loss.loss.loss.k == 5
    assert required("Center") == required("MCA") == ("num_classes", "embedding_size")
    assert required("ClusterNCA") == ()
