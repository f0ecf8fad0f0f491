"""The contrastive losses since 2018: worked values, and what they are to each other."""

import math

import pytest
import torch
from of_pml import LpDistance, NTXentLoss
from toy import toy

from pml_ext.losses import (
    DecoupledContrastiveLoss,
    DecoupledNCALoss,
    HardNegativeContrastiveLoss,
    HardnessWeightedContrastiveLoss,
    SelectivelyContrastiveTripletLoss,
)
from pml_ext.pairs import PairMasks
from pml_ext.testing import Rows
from pml_ext.testing.cases import all_pairs
from pml_ext.wrappers import CrossBatchMemory, SelfSupervisedLoss

VIEWS = torch.tensor([0, 1, 2, 0, 1, 2])


def batch(which):
    embeddings, labels = toy(9 if which == "T9" else 6)
    return embeddings, VIEWS if which == "V6" else labels


def value_and_gradient(loss, which):
    embeddings, labels = batch(which)
    value = loss(embeddings.requires_grad_(), labels)
    return value.item(), torch.autograd.grad(value, embeddings)[0]


def rows_of(loss, which="T6"):
    """Losses of the anchors, and their derivatives by the scores."""
    embeddings, labels = batch(which)
    sim = loss.distance(embeddings).detach().requires_grad_()
    losses = loss.per_anchor(sim, *all_pairs(labels))
    return losses.tolist(), torch.autograd.grad(losses.sum(), sim)[0]


def close(value):
    return pytest.approx(value, abs=2e-10, rel=2e-10)


Hard, Weighted, Decoupled = HardNegativeContrastiveLoss, HardnessWeightedContrastiveLoss, DecoupledContrastiveLoss
Selective = SelectivelyContrastiveTripletLoss
INFO_NCE = {"beta": 0, "tau_plus": 0}
# (class, arguments, values on T6, T9 and V6, the norm of the gradient on T6), None where the specification has none
VALUES = [
    (Hard, INFO_NCE, (1.2858273620, 1.4568868170, 2.0820905360), 1.0217914446),
    (Hard, {"beta": 0, "tau_plus": 0.1}, (1.2225623005, 1.3193273184, 2.1092680710), 1.1545980120),
    (Hard, {"tau_plus": 0.1, "detach": False}, (1.5859599449, 1.9846369271, 2.5464109992), 1.3000406143),
    (Hard, {"tau_plus": 0.1}, (1.5859599449, 1.9846369271, 2.5464109992), 1.2967267218),
    (Hard, {"detach": False}, (1.6136766504, 2.0602075220, 2.4889157849), 1.1923927768),
    (Hard, {}, (1.6136766504, 2.0602075220, 2.4889157849), 1.1764138917),
    (Hard, {"tau_plus": 0.5, "detach": False}, (1.3134189889, 1.4695032867, 2.9088822139), 1.3355405172),
    (
        Hard,
        {"temperature": 0.1, "tau_plus": 0.1, "beta": 2, "detach": False},
        (3.0603641220, 3.6068371722, 7.6636728441),
        3.2353018789,
    ),
    (Weighted, {}, (20.1135722289, 20.1251814945, 39.2809340976), 25.8114730308),
    (Weighted, {"alpha": 0}, (14.9494948537, 15.7515178703, 31.0692846577), None),
    (Weighted, {"temperature": 0.05, "alpha": 5}, (8.9740850242, 8.8575946814, 17.0483780578), None),
    (Weighted, {"temperature": 0.5, "alpha": 2}, (2.3073758298, 2.2820576001, 3.5416333229), 1.2651379626),
    (Selective, {"level": None}, (0.4317474439, 0.3660020461, 0.9130666667), 0.9209195707),
    (Selective, {"level": 0.7}, (0.5843813191, 0.4677579630, None), 0.1578193691),
    (Selective, {"temperature": 0.2, "lam": 0.5, "level": 0.5}, (0.3530493675, 0.3213055475, None), None),
    (Decoupled, {}, (2.1904960705, 2.0725705619, 6.4123469654), 6.9177738920),
    (Decoupled, {"temperature": 0.5}, (0.8243013548, 1.0844429927, 1.9166412834), 1.4856295057),
]


@pytest.mark.parametrize(("cls", "arguments", "values", "norm"), VALUES)
def test_values(cls, arguments, values, norm):
    for which, expected in zip(("T6", "T9", "V6"), values, strict=True):
        if expected is None:
            continue
        value, gradient = value_and_gradient(cls(**arguments), which)
        assert value == close(expected), which
        if which == "T6" and norm is not None:
            assert gradient.norm().item() == close(norm)


# (class, arguments, losses of the anchors of T6 or None, {row: pair weights})
ROWS = [
    (
        Selective,
        {"level": None},
        [0.0269570930, 0.1839007409, 0.9360000000, 0.9360000000, 0.5002960074, 0.0073308218],
        {0: [0, -0.2659699358, 0, 0.2659699358, 0, 0], 2: [0, 0, 0, 1, 0, 0]},
    ),
    (Selective, {"level": 0.7}, [0.0269570930, 0.8, 0.936, 0.936, 0.8, 0.0073308218], {}),
    (Selective, {"temperature": 0.2, "lam": 0.5, "level": 0.5}, [0.3, 0.4, 0.468, 0.468, 0.4, 0.0822962053], {}),
    (
        HardNegativeContrastiveLoss,
        INFO_NCE,
        None,
        {0: [0, -0.3706194818, -0.6964479256, 0.8820330920, 0.1313978278, 0.0536364876]},
    ),
    (
        HardNegativeContrastiveLoss,
        {"beta": 0, "tau_plus": 0.1},
        [0.6867430202, 0.7901866904, 1.9871763482, 2.3359606903, 0.8919761357, 0.6433309182],
        {
            0: [0, -0.6608213220, -0.7247157907, 1.1452787099, 0.1706139328, 0.0696444701],
            2: [-0.9255379380, -0.8880174416, 0, 0.8749122663, 0.6665556382, 0.2720874751],
        },
    ),
    (
        HardNegativeContrastiveLoss,
        {"tau_plus": 0.1, "detach": False},
        [1.1993195361, 1.3182388821, 2.1287144078, 2.3901284261, 1.3975880732, 1.0817703442],
        {
            0: [0, -0.8945605750, -0.7820743174, 1.8827445374, -0.1339200489, -0.0721895962],
            2: [-0.9183987286, -0.9247070585, 0, 1.3087527158, 0.5983048764, -0.0639518051],
        },
    ),
    (
        HardNegativeContrastiveLoss,
        {"tau_plus": 0.1},
        None,
        {
            0: [0, -0.8454870813, -0.8311478110, 1.6343216776, 0.0362697159, 0.0060434988],
            2: [-0.9280777421, -0.9150280450, 0, 1.0989604824, 0.6378607478, 0.1062845569],
        },
    ),
    (
        HardNegativeContrastiveLoss,
        {"detach": False},
        None,
        {0: [0, -0.5532308488, -0.8283151745, 1.5513802322, -0.1103500302, -0.0594841787]},
    ),
    (
        HardNegativeContrastiveLoss,
        {},
        None,
        {0: [0, -0.5532308488, -0.8283151745, 1.3466799628, 0.0298862215, 0.0049798390]},
    ),
    (
        HardNegativeContrastiveLoss,
        {"tau_plus": 0.5, "detach": False},
        None,
        {0: [0, -0.0561793074, -0.1882551701, 0, 0, 0]},
    ),
    (
        HardnessWeightedContrastiveLoss,
        {},
        [10.7000016863, 10.3455503337, 34.7843274538, 41.7843274562, 12.6832264426, 10.3840000007],
        {
            0: [0, -0.0000843001, -24.9999999873, 25.0000842874, 0, 0],
            2: [-25, -25, 0, 49.9836299928, 0.0163700072, 0],
        },
    ),
    (
        HardnessWeightedContrastiveLoss,
        {"temperature": 0.05, "alpha": 5},
        None,
        {0: [0, -0.1477403169, -9.9991728278, 10.1469131442, 0.0000000005, 0]},
    ),
    (
        HardnessWeightedContrastiveLoss,
        {"temperature": 0.5, "alpha": 2},
        [1.4935191107, 1.9094044062, 3.4759405864, 3.8416963616, 2.0088339422, 1.1148605714],
        {
            0: [0, -0.6237652712, -0.8659438008, 1.4521133019, 0.0322260530, 0.0053697171],
            2: [-0.9758985671, -0.9602997259, 0, 1.1544673263, 0.6700781365, 0.1116528302],
        },
    ),
    (
        DecoupledContrastiveLoss,
        {},
        [-0.1999258016, 0.5121579549, 5.5027700909, 6.9277238316, 1.0961670514, -0.6959167043],
        {
            0: [0, -5, -5, 9.9992580431, 0.0007336422, 0.0000083147],
            2: [-5, -5, 0, 7.9392197498, 2.0376863094, 0.0230939408],
        },
    ),
    (
        DecoupledContrastiveLoss,
        {"temperature": 0.5},
        [0.1504398494, 0.3128977783, 1.7833208814, 2.1552983443, 0.4608440431, 0.0830072323],
        {0: [0, -1, -1, 1.6531909529, 0.2462784017, 0.1005306454]},
    ),
]


@pytest.mark.parametrize(("cls", "arguments", "losses", "weights"), ROWS)
def test_anchors_and_pair_weights(cls, arguments, losses, weights):
    found, derivatives = rows_of(cls(**arguments))
    if losses is not None:
        assert found == pytest.approx(losses, abs=1e-9)
    for row, expected in weights.items():
        assert derivatives[row].tolist() == pytest.approx(expected, abs=1e-9)


def test_gradients_of_the_first_sample():
    for cls, arguments, expected in (
        (HardnessWeightedContrastiveLoss, {}, [0, -5.0283557826]),
        (DecoupledContrastiveLoss, {}, [0, -0.6974282999]),
        (SelectivelyContrastiveTripletLoss, {"level": None}, [0, -0.0553406925]),
    ):
        assert value_and_gradient(cls(**arguments), "T6")[1][0].tolist() == pytest.approx(expected, abs=1e-9)


def test_gradients_of_nine_samples():
    assert value_and_gradient(DecoupledContrastiveLoss(), "T9")[1].norm().item() == close(7.7999301722)
    # Two negatives of the first anchor are equally near: with the first of them alone it would be 0.7615659373.
    loss = SelectivelyContrastiveTripletLoss(level=None)
    assert value_and_gradient(loss, "T9")[1].norm().item() == close(0.7685213949)
    embeddings, labels = batch("T9")
    embeddings[7] = embeddings[7] + 1e-7 * torch.tensor([-0.8, -0.6], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(loss(embeddings.requires_grad_(), labels), embeddings)
    assert gradient.norm().item() == pytest.approx(0.7615659373, abs=1e-5)


def test_an_anchor_whose_negatives_are_all_explained_is_only_pulled():
    losses, weights = rows_of(HardNegativeContrastiveLoss(tau_plus=0.5, detach=False))
    assert losses[0] == close(0.1331941561)
    _, neg = all_pairs(batch("T6")[1])
    assert [bool(weights[row][neg[row]].any()) for row in range(6)] == [False, True, True, True, True, False]


EQUAL = torch.tensor([[0.6, 0.8]], dtype=torch.float64).expand(4, -1)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (HardNegativeContrastiveLoss(**INFO_NCE), math.log(3)),
        (HardNegativeContrastiveLoss(beta=7, tau_plus=0.3), math.log(3)),
        (HardNegativeContrastiveLoss(beta=7, tau_plus=0.3, detach=False), math.log(3)),
        (HardnessWeightedContrastiveLoss(), 9.6932088836),
        (DecoupledContrastiveLoss(), math.log(2)),
        (SelectivelyContrastiveTripletLoss(level=None), math.log(2)),
        (SelectivelyContrastiveTripletLoss(level=0.7), 1),
    ],
)
def test_four_equal_vectors(loss, expected):
    assert loss(EQUAL, torch.tensor([0, 0, 1, 1])).item() == close(expected)


def test_a_duplicate_in_another_class_is_the_hardest_negative():
    embeddings = torch.tensor([[1, 0], [0.6, 0.8], [1, 0], [0, 1]], dtype=torch.float64)
    loss = SelectivelyContrastiveTripletLoss()
    found = loss.per_anchor(loss.distance(embeddings), *all_pairs(torch.tensor([0, 0, 1, 1])))
    # The nearest negative of the second is at the level, up to rounding: whichever it is, the loss is that or log 2.
    assert found[[0, 2]].tolist() == close([1, 1])
    assert loss(embeddings, torch.tensor([0, 0, 1, 1])).item() == close(0.9)


@pytest.mark.parametrize("power", [1, 2])
def test_the_level_is_one_of_the_distance(power):
    embeddings, labels = toy(9)
    distance = LpDistance(power=power)
    # A cosine of 0.75 is a Euclidean distance of the root of a half.
    loss = SelectivelyContrastiveTripletLoss(level=0.5 ** (power / 2), temperature=0.2, lam=1, distance=distance)
    sim = -distance(embeddings)
    hard = loss.per_anchor(sim, *all_pairs(labels)) < 0
    cosine = SelectivelyContrastiveTripletLoss(level=0.75)
    nearest = cosine.distance(embeddings)
    pos, neg = all_pairs(labels)
    top, best = nearest.masked_fill(~neg, -2).amax(1), nearest.masked_fill(~pos, -2).amax(1)
    assert torch.equal(hard, (top > best) | (top > 0.75))


def test_self_pairs_and_positives_leave_nothing_in_the_sum_of_negatives():
    """Four orthogonal samples in two views: what adds log(1e-45) to their logits in place of a mask has 1.79623."""
    views = torch.eye(4, dtype=torch.float64).repeat(2, 1)
    loss = DecoupledContrastiveLoss(temperature=0.01)
    assert loss(views, torch.arange(4).repeat(2)).item() + 100 == close(math.log(6))


# ---- what they are to each other ----


def test_an_easy_anchor_has_the_softplus_of_its_hardest_pair():
    sim, pos, neg = Rows(40, 9, density=1.0, seed=4).matrix
    both = pos.any(1) & neg.any(1)
    best, worst = (sim.masked_fill(~mask, -torch.inf).amax(1) for mask in (pos, neg))
    for level in (None, 0.3):
        easy = both & (worst <= best) & (worst <= (math.inf if level is None else level))
        found = SelectivelyContrastiveTripletLoss(temperature=0.2, level=level, lam=0.7).per_anchor(sim, pos, neg)
        expected = torch.where(easy, torch.nn.functional.softplus((worst - best) / 0.2), 0.7 * worst)
        assert 0 < easy.sum() < both.sum()
        torch.testing.assert_close(found[both], expected[both], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_info_nce_is_ntxent_where_all_classes_are_equal(temperature):
    embeddings, labels = toy(9)
    expected = NTXentLoss(temperature=temperature)(embeddings, labels).item()
    for loss in (
        HardNegativeContrastiveLoss(temperature=temperature, **INFO_NCE),
        HardnessWeightedContrastiveLoss(temperature=temperature, alpha=0),
    ):
        assert loss(embeddings, labels).item() == close(expected)


def test_info_nce_is_the_softplus_of_the_decoupled_loss_of_one_positive():
    losses, weights = rows_of(DecoupledContrastiveLoss(), "V6")
    coupled, coupled_weights = rows_of(HardnessWeightedContrastiveLoss(temperature=0.1, alpha=0), "V6")
    free = torch.tensor(losses, dtype=torch.float64)
    assert coupled == close(torch.nn.functional.softplus(free).tolist())
    torch.testing.assert_close(coupled_weights, weights * free.sigmoid().unsqueeze(1), rtol=1e-11, atol=1e-12)


def test_decoupled_nca_is_decoupled_otherwise():
    sim, pos, neg = Rows(12, 9, density=1.0, seed=1).matrix

    def weights(loss):
        leaf = sim.clone().requires_grad_()
        return torch.autograd.grad(loss.per_anchor(leaf, pos, neg).sum(), leaf)[0]

    both = pos.any(1) & neg.any(1)
    nca = DecoupledNCALoss(alpha=10, beta=0, k=None, distance=DecoupledContrastiveLoss().distance)
    share = torch.sigmoid(
        (sim * 10).masked_fill(~neg, -torch.inf).logsumexp(1) - (sim * 10).masked_fill(~pos, -torch.inf).logsumexp(1)
    )
    expected = share.unsqueeze(1) * weights(DecoupledContrastiveLoss())
    torch.testing.assert_close(weights(nca)[both], expected[both], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        HardNegativeContrastiveLoss(),
        HardNegativeContrastiveLoss(tau_plus=0.05, detach=False),
        HardnessWeightedContrastiveLoss(),
        DecoupledContrastiveLoss(),
    ],
)
def test_push_equals_pull(loss):
    _, weights = rows_of(loss, "T9")
    assert weights.sum(1).tolist() == pytest.approx([0] * 9, abs=1e-11)


def test_harder_negatives_cost_more_up_to_the_hardest():
    values = [value_and_gradient(HardNegativeContrastiveLoss(beta=b), "T6")[0] for b in (0, 0.3, 1, 3, 30, 1000)]
    assert values == sorted(values)
    assert values[0] == close(1.2858273620)
    assert values[-1] == close(1.7651972963)


def test_a_held_tilt_weighs_negatives_as_hardness_does():
    _, ours = rows_of(HardNegativeContrastiveLoss(beta=1))
    _, theirs = rows_of(HardnessWeightedContrastiveLoss(temperature=0.5, alpha=2))
    _, neg = all_pairs(batch("T6")[1])
    for row in range(6):
        ratios = ours[row][neg[row]] / theirs[row][neg[row]]
        assert ratios.tolist() == pytest.approx([ratios[0].item()] * 3, rel=1e-11)


def test_most_easy_negatives_are_pulled_by_a_tilt_that_moves():
    _, neg = all_pairs(batch("T9")[1])
    shares = []
    for beta in (0.5, 1, 2, 5):
        _, weights = rows_of(HardNegativeContrastiveLoss(beta=beta, detach=False), "T9")
        _, held = rows_of(HardNegativeContrastiveLoss(beta=beta), "T9")
        shares.append(round((weights[neg] < 0).double().mean().item(), 2))
        assert (held[neg] >= 0).all()
        torch.testing.assert_close((weights * neg).sum(1), (held * neg).sum(1), rtol=1e-10, atol=1e-12)
    assert shares == [0.54, 0.69, 0.72, 0.81]


def test_a_reference_without_a_relation_changes_nothing_not_even_the_count():
    sim, pos, neg = Rows(5, 8, density=1.0, seed=2).matrix
    more = [
        torch.cat((x, extra), 1)
        for x, extra in ((sim, sim[:, :2]), (pos, pos[:, :2] & False), (neg, neg[:, :2] & False))
    ]
    for loss in (
        HardNegativeContrastiveLoss(tau_plus=0.2),
        HardnessWeightedContrastiveLoss(),
        DecoupledContrastiveLoss(),
    ):
        rows = pos.any(1) & neg.any(1)
        torch.testing.assert_close(loss.per_anchor(*more)[rows], loss.per_anchor(sim, pos, neg)[rows])


def test_single_precision_at_a_low_temperature_is_finite():
    embeddings, _ = batch("V6")
    for loss in (
        HardNegativeContrastiveLoss(temperature=0.01, tau_plus=0.1),
        HardNegativeContrastiveLoss(temperature=0.01, tau_plus=0.1, detach=False),
        HardnessWeightedContrastiveLoss(temperature=0.01),
        DecoupledContrastiveLoss(temperature=0.01),
    ):
        x = embeddings.float().requires_grad_()
        value = loss(x, VIEWS)
        assert value.item() == pytest.approx(loss(embeddings, VIEWS).item(), rel=1e-5)
        assert torch.autograd.grad(value, x)[0].isfinite().all()


# ---- how people call them ----


def test_two_views():
    embeddings, _ = toy(6)
    for loss, expected in (
        (HardNegativeContrastiveLoss(**INFO_NCE), 2.0820905360),
        (DecoupledContrastiveLoss(), 6.4123469654),
    ):
        assert SelfSupervisedLoss(loss)(embeddings[:3], embeddings[3:]).item() == close(expected)


def test_two_modalities_are_references():
    torch.manual_seed(0)
    images, texts = torch.randn(2, 5, 4, dtype=torch.float64)
    names = torch.arange(5)
    loss = HardnessWeightedContrastiveLoss(temperature=0.05, alpha=0)
    value = loss(images, names, ref_emb=texts, ref_labels=names.clone())
    logits = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T / 0.05
    # One positive for each anchor: the cross entropy of the matrix.
    assert value.item() == close(torch.nn.functional.cross_entropy(logits, names).item())


def test_a_queue_gives_more_negatives():
    torch.manual_seed(0)
    first, second = torch.randn(2, 6, 4, dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    memory = CrossBatchMemory(HardNegativeContrastiveLoss(), embedding_size=4, memory_size=12)
    memory.embedding_memory = memory.embedding_memory.double()
    memory(first, labels)
    refs = torch.cat((first, second))
    own = torch.cat((torch.zeros(6, 6, dtype=torch.bool), torch.eye(6, dtype=torch.bool)), 1)
    same = labels.unsqueeze(1) == labels.repeat(2)
    expected = HardNegativeContrastiveLoss()(second, None, PairMasks(same & ~own, ~same), ref_emb=refs)
    assert memory(second, labels).item() == close(expected.item())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: HardNegativeContrastiveLoss(tau_plus=1), "tau_plus must be below 1, got 1"),
        (lambda: HardNegativeContrastiveLoss(tau_plus=-0.1), "tau_plus must be at least 0, got -0.1"),
        (lambda: HardNegativeContrastiveLoss(beta=-1), "beta must be at least 0, got -1"),
        (lambda: HardnessWeightedContrastiveLoss(alpha=-1), "alpha must be at least 0, got -1"),
        (lambda: DecoupledContrastiveLoss(temperature=0), "temperature must be above 0, got 0"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
