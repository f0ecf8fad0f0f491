"""The losses on ranks: worked values of the specification, what they are to each other and to PML's."""

import math

import pytest
import torch
from of_pml import CosineSimilarity, LpDistance
from of_pml import losses as pml_losses
from toy import toy

from pml_ext import thresholds
from pml_ext.losses import AnchorContrastiveLoss, PNPLoss, RecallAtKLoss, SmoothAPLoss, SupAPLoss
from pml_ext.pairs import PairMasks
from pml_ext.rank_counts import Step
from pml_ext.testing import Rows
from pml_ext.testing.cases import all_pairs
from pml_ext.testing.law import by_autograd

UNEQUAL = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3])


def batch(which):
    embeddings, labels = toy(6 if which == "T6" else 9)
    return embeddings, UNEQUAL if which == "T9u" else labels


def value(loss, which):
    return loss(*batch(which)).item()


def own_value(loss, which):
    """With each anchor among its own positives, as reference codes have it: references that are a set of its own."""
    embeddings, labels = batch(which)
    same = labels.unsqueeze(1) == labels
    return loss(embeddings, None, PairMasks(same, ~same), ref_emb=embeddings.clone()).item()


def rows_of(loss, which="T6"):
    embeddings, labels = batch(which)
    sim = loss.distance(embeddings).requires_grad_()
    losses = loss.per_anchor(sim, *all_pairs(labels))
    return losses.tolist(), torch.autograd.grad(losses.sum(), sim)[0]


def close(value):
    return pytest.approx(value, abs=2e-10, rel=2e-10)


Smooth, Sup, Recall, PNP = SmoothAPLoss, SupAPLoss, RecallAtKLoss, PNPLoss
AS_CONFIGURED, NATURALIST = {"offset": 1.44}, {"start": 0, "offset": 1}
WIDE = {"temperature": 0.1, "rho": 10, "delta": 0.2}
# (class, arguments, values on T6, T9 and T9u), None where the specification has none
VALUES = [
    (Smooth, {}, (0.3302311675, 0.3250923834, 0.2150404619)),
    (Smooth, {"temperature": 0.1}, (0.3584050570, 0.3559771761, 0.2673377212)),
    (Sup, {}, (0.6389688034, 0.5911011915, 0.3325439495)),
    (Sup, AS_CONFIGURED, (0.6389139285, 0.5910579594, 0.3325266517)),
    (Sup, NATURALIST, (0.6384525846, 0.5906932470, 0.3323813527)),
    (Sup, WIDE, (0.5082614685, 0.4981655969, 0.3338450918)),
    (Recall, {}, (0.2968887019, 0.2945333340, 0.2149786368)),
    (Recall, {"temperature": 0.1}, (0.2977028393, 0.2976051899, 0.2267290453)),
    (Recall, {"temperature": 0.1, "k": 1}, (0.5724545921, 0.5579339498, None)),
    (Recall, {"ranks": "upper"}, (0.6879758557, 0.6389989022, 0.3923212659)),
    (PNP, {}, (1.2508694458, 1.2505796307, 0.8903917498)),
    (PNP, {"variant": "Ds"}, (0.6702042483, 0.6609946464, 0.4297149456)),
    (PNP, {"variant": "Dq"}, (0.4107878111, 0.3968744138, 0.2453355475)),
    (PNP, {"variant": "Dq", "alpha": 4}, (0.6480623528, 0.5997526286, 0.3631961554)),
    (PNP, {"variant": "Iu"}, (2.1236111900, 2.1316233838, 1.6169339766)),
    (PNP, {"variant": "Ib"}, (0.3782105479, 0.3837867414, 0.2909626401)),
    (PNP, {"temperature": 0.1}, (1.2232490034, 1.2527555560, 0.9677614420)),
    (PNP, {"temperature": 0.1, "variant": "Ds"}, (0.6888156722, None, None)),
    (PNP, {"temperature": 0.1, "variant": "Dq"}, (0.4398529384, None, None)),
    (PNP, {"temperature": 0.1, "variant": "Dq", "alpha": 4}, (0.7519043022, None, None)),
    (PNP, {"temperature": 0.1, "variant": "Iu"}, (2.0108150357, None, None)),
    (PNP, {"temperature": 0.1, "variant": "Ib"}, (0.3526167076, None, None)),
]


@pytest.mark.parametrize(("cls", "arguments", "values"), VALUES)
def test_values(cls, arguments, values):
    for which, expected in zip(("T6", "T9", "T9u"), values, strict=True):
        if expected is not None:
            assert value(cls(**arguments), which) == close(expected), which
            assert by_autograd(cls(**arguments))(*batch(which)).item() == close(expected), which
            with thresholds.replaced(GATHERED_SHARE=0.6):  # positives are gathered, those that lack some too
                assert cls(**arguments)(*batch(which)).item() == close(expected), which


# With the anchor among its own positives: the values of the reference codes.
OWN = [
    (Smooth, {}, (0.1727563402, 0.1702775153, None)),
    (Smooth, {"temperature": 0.1}, (0.2287028485, 0.2142418101, None)),
    (Sup, {}, (0.4162217916, 0.3860160315, 0.1890349982)),
    (Sup, AS_CONFIGURED, (0.4161685161, 0.3859712589, None)),
    (Sup, NATURALIST, (0.4157208586, 0.3855937208, None)),
    (Recall, {"ranks": "upper"}, (0.4331940416, 0.4053949738, None)),
    (Recall, {}, (0.2059031629, 0.2031732570, None)),
    (PNP, {}, (0.8340972756, None, 0.4868736651)),
    (PNP, {"variant": "Ds"}, (0.4469869912, None, None)),
    (PNP, {"variant": "Dq"}, (0.2740425472, None, None)),
    (PNP, {"variant": "Dq", "alpha": 4}, (0.4327757681, None, None)),
    (PNP, {"variant": "Iu"}, (1.4159252578, None, None)),
    (PNP, {"variant": "Ib"}, (0.2521405178, None, None)),
]


@pytest.mark.parametrize(("cls", "arguments", "values"), OWN)
def test_values_of_the_reference_codes(cls, arguments, values):
    for which, expected in zip(("T6", "T9", "T9u"), values, strict=True):
        if expected is not None:
            assert own_value(cls(**arguments), which) == close(expected), which


def competing(loss, which):
    """With each anchor in its own list, as one more that is no answer, as the code of recall at k has it."""
    embeddings, labels = batch(which)
    same, own = labels.unsqueeze(1) == labels, torch.eye(len(labels), dtype=torch.bool)
    return loss(embeddings, None, PairMasks(same & ~own, ~same | own), ref_emb=embeddings.clone()).item()


def test_values_of_the_code_of_recall_at_k():
    # It does not look beyond the batch, and so at its size twice.
    for which, k, values in (
        ("T6", (1, 2, 4, 6, 6), (0.4659268502, 0.4485195572)),
        ("T9", (1, 2, 4, 8, 9), (0.4079931549, 0.4003214187)),
    ):
        for temperature, expected in zip((0.01, 0.1), values, strict=True):
            assert competing(RecallAtKLoss(k=k, temperature=temperature), which) == close(expected)


WIDER = {"temperature": 0.1}
ANCHORS = [
    (Smooth, {}, [0.1666666667, 0.1666667229, 0.6333034882, 0.6749391560, 0.1731443048, 0.1666666667]),
    (
        Smooth,
        WIDER,
        [0.1754664354, 0.2310658037, 0.6184785101, 0.6594539667, 0.2985693433, 0.1673962824],
    ),
    (Sup, {}, [0.4672059185, 0.4595687466, 0.9830759714, 0.9875953403, 0.4660463285, 0.4703205151]),
    (Recall, {}, [0.2085567919, 0.2085568002, 0.4463151647, 0.4998139215, 0.2095327413, 0.2085567919]),
    (
        Recall,
        WIDER,
        [0.2082629785, 0.2173820308, 0.4394116521, 0.4784104177, 0.2352346478, 0.2075153089],
    ),
]
WEIGHTS = [
    (
        Smooth,
        {"temperature": 0.1},
        {
            0: [0, -0.1231770243, -0.0444793317, 0.1655797876, 0.0020532160, 0.0000233525],
            2: [-0.1314276840, -0.0811405324, 0, 0.0105097920, 0.0371615580, 0.1648968664],
        },
    ),
    (
        Sup,
        {},
        {
            0: [0, 0, -0.1075451782, 0.1075451782, 0, 0],
            2: [-0.0221876750, -0.0277162006, 0, 0.0212539919, 0.0212539919, 0.0073958918],
            4: [0, 0, 0.7944489725, -0.1634690800, 0, -0.6309798925],
        },
    ),
    (Sup, WIDE, {0: [0, -0.1228365339, -0.4770462146, 0.5990093918, 0.0008635353, 0.0000098213]}),
    (
        Recall,
        {"temperature": 0.1},
        {
            0: [0, -0.0194673910, -0.0241443876, 0.0424933338, 0.0011058670, 0.0000125778],
            2: [-0.0714789575, -0.1311605744, 0, 0.0111431828, 0.0393480236, 0.1521483254],
        },
    ),
    (
        PNP,
        {"variant": "Dq", "temperature": 0.1},
        {0: [0, -0.1228365339, -0.0512015112, 0.1716739614, 0.0023374979, 0.0000265858]},
    ),
]


@pytest.mark.parametrize(("cls", "arguments", "losses"), ANCHORS)
def test_anchors(cls, arguments, losses):
    assert rows_of(cls(**arguments))[0] == pytest.approx(losses, abs=1e-9)


@pytest.mark.parametrize(("cls", "arguments", "weights"), WEIGHTS)
def test_signed_pair_weights(cls, arguments, weights):
    _, found = rows_of(cls(**arguments))
    for row, expected in weights.items():
        assert found[row].tolist() == pytest.approx(expected, abs=1e-9)


def one_row(pos, neg):
    sim = torch.tensor([[*pos, *neg]], dtype=torch.float64, requires_grad=True)
    is_pos = torch.tensor([[True] * len(pos) + [False] * len(neg)])
    return sim, is_pos, ~is_pos


def test_a_positive_in_front_of_another():
    sim, pos, neg = one_row([0.5, 0.45], [0.48, 0.1])
    loss = SmoothAPLoss(temperature=0.1).per_anchor(sim, pos, neg)
    assert loss.item() == close(0.2624241235)
    expected = [[-0.5178265011, -0.4650504472, 0.9005916117, 0.0822853366]]
    assert torch.autograd.grad(loss.sum(), sim)[0].tolist() == [pytest.approx(expected[0], abs=1e-9)]


def test_a_tie_with_a_negative_is_half_a_place():
    sim, pos, neg = one_row([0.5], [0.5, 0.1])
    assert SupAPLoss().per_anchor(sim, pos, neg).item() == close(1 / 3)


@pytest.mark.parametrize(
    ("number", "floor"), [(1, 0.163456), (2, 0.140107), (3, 0.102081), (7, 0.076577), (15, 0.079905)]
)
def test_the_least_value_of_the_recall_surrogate_is_not_zero(number, floor):
    sim, pos, neg = one_row([1 - 0.5 * p / number for p in range(number)], [-0.5])
    loss = RecallAtKLoss(temperature=1e-4)
    assert loss.per_anchor(sim, pos, neg).item() == pytest.approx(floor, abs=5e-7)


@pytest.mark.parametrize(
    ("number", "floor"), [(1, 0.270547), (2, 0.285208), (3, 0.285092), (7, 0.310252), (15, 0.332275)]
)
def test_the_least_value_is_higher_with_the_anchor_in_its_own_list(number, floor):
    sim, pos, neg = one_row([0.8 - 0.5 * p / number for p in range(number)], [1.0, -0.5])
    assert RecallAtKLoss(temperature=1e-4).per_anchor(sim, pos, neg).item() == pytest.approx(floor, abs=5e-7)


def test_the_rising_step_goes_on_where_the_soft_one_ends():
    step = Step.rising(0.01, rho=100, delta=0.05, start=0.5, offset=None)
    assert step.offset == close(1.4933071491)
    assert step.value(torch.tensor([0.05, 0.06], dtype=torch.float64)).tolist() == [
        close(1.4933071491),
        close(2.4933071491),
    ]


# ---- calibration ----


def test_calibration_is_a_contrastive_loss():
    ours = AnchorContrastiveLoss(pos_margin=0.9, neg_margin=0.6, distance=CosineSimilarity())
    assert [value(ours, which) for which in ("T6", "T9", "T9u")] == [
        close(each) for each in (0.4653777778, 0.4861037037, 0.3908158730)
    ]
    # -s is no distance, so the hinges are those of similarities.
    assert rows_of(ours)[0] == close([0.31, 0.2478666667, 0.6698666667, 0.8098666667, 0.2762666667, 0.4784])
    as_coded = pml_losses.ContrastiveLoss(pos_margin=0.9, neg_margin=0.6, distance=CosineSimilarity())
    assert [value(as_coded, which) for which in ("T6", "T9")] == [close(0.7056533333), close(0.7615333333)]


# ---- PML's ----


@pytest.mark.parametrize("variant", ["O", "Iu", "Ib", "Ds", "Dq"])
def test_pnp_is_that_of_pml_with_the_anchor_in_its_own_mask(variant):
    torch.manual_seed(0)
    for sizes, which in (((4, 4, 4), None), ((5, 2, 3), None), ((3, 3, 3), "T9")):
        labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        embeddings = torch.nn.functional.normalize(torch.randn(sum(sizes), 5, dtype=torch.float64))
        if which:
            embeddings, labels = batch(which)
        labels = labels[torch.randperm(len(labels))]
        x, y = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
        same = labels.unsqueeze(1) == labels
        references = y.clone()
        ours = PNPLoss(variant=variant, b=3, alpha=2)(y, None, PairMasks(same, ~same), ref_emb=references)
        theirs = pml_losses.PNPLoss(variant=variant, b=3, alpha=2)(x, labels)
        assert ours.item() == close(theirs.item())
        expected = torch.autograd.grad(theirs, x)[0]
        torch.testing.assert_close(torch.autograd.grad(ours, y)[0], expected, rtol=1e-8, atol=1e-10)


def test_pml_takes_the_mean_over_anchors_that_have_a_positive():
    embeddings, labels = batch("T9u")
    assert pml_losses.PNPLoss()(embeddings, labels).item() == close(0.5477328730)
    assert own_value(PNPLoss(), "T9u") * 9 / 8 == pytest.approx(0.5477328730, abs=1e-9)


@pytest.mark.skipif(not hasattr(pml_losses, "SmoothAPLoss"), reason="of PML 2.9")
def test_smooth_ap_of_pml_is_right_for_as_many_classes_as_samples_of_each_only():
    theirs = pml_losses.SmoothAPLoss()
    # It cuts exponents off at 50.
    assert own_value(SmoothAPLoss(), "T9") == pytest.approx(value(theirs, "T9"), abs=1e-8)
    assert value(theirs, "T6") == pytest.approx(0.0005434315, abs=1e-8)
    assert value(pml_losses.SmoothAPLoss(temperature=0.1), "T6") == pytest.approx(0.0797483021, abs=1e-8)
    embeddings, labels = batch("T9")
    order = [3, 0, 6, 4, 1, 7, 5, 2, 8]
    # It counts in single precision.
    assert theirs(embeddings[order], labels[order]).item() == pytest.approx(0.3342649800, abs=5e-8)
    assert SmoothAPLoss()(embeddings[order], labels[order]).item() == close(0.3250923834)
    clusters = torch.eye(8, dtype=torch.float64).repeat_interleave(4, 0)
    labels = torch.arange(8).repeat_interleave(4)
    assert theirs(clusters, labels).item() > 0.3
    assert SmoothAPLoss()(clusters, labels).item() == pytest.approx(0, abs=1e-9)


# ---- what they are to each other, and to the measures ----


def random_row(seed, positives=4, negatives=12):
    generator = torch.Generator().manual_seed(seed)
    sim = 2 * torch.rand(1, positives + negatives, generator=generator, dtype=torch.float64) - 1
    pos = (torch.arange(positives + negatives) < positives).unsqueeze(0)
    return sim, pos, ~pos


def average_precision(sim, pos):
    order = sim[0].argsort(descending=True)
    hits = pos[0][order]
    places = torch.arange(1, len(order) + 1)[hits]
    return (torch.arange(1, len(places) + 1) / places).double().mean().item()


@pytest.mark.parametrize("seed", range(20))
def test_without_softness_it_is_average_precision_and_supap_is_an_upper_bound(seed):
    sim, pos, neg = random_row(seed)
    exact = 1 - average_precision(sim, pos)
    assert SmoothAPLoss(temperature=1e-6).per_anchor(sim, pos, neg).item() == pytest.approx(exact, abs=1e-6)
    assert SupAPLoss().per_anchor(sim, pos, neg).item() >= exact - 1e-12
    before = (sim[neg].unsqueeze(1) > sim[pos]).double().sum(0).mean().item()
    assert PNPLoss(temperature=1e-6).per_anchor(sim, pos, neg).item() == pytest.approx(before, abs=1e-6)


def test_answers_in_front_of_all_others_cost_nothing():
    sim, pos, neg = one_row([0.9, 0.7, 0.7], [0.1, -0.2])
    for loss in (SmoothAPLoss(), SupAPLoss(), *(PNPLoss(variant=each) for each in ("O", "Iu", "Ib", "Ds", "Dq"))):
        leaf = sim.clone().requires_grad_()
        value = loss.per_anchor(leaf, pos, neg)
        assert value.item() == pytest.approx(0, abs=1e-20)
        assert torch.autograd.grad(value.sum(), leaf)[0].abs().max() < 1e-20


def test_smooth_ap_is_no_bound():
    below = [
        SmoothAPLoss(temperature=0.1).per_anchor(*row).item() < 1 - average_precision(*row[:2])
        for row in map(random_row, range(100))
    ]
    assert any(below)
    assert not all(below)


def test_smooth_ap_of_one_positive_is_pnp():
    sim, pos, neg = random_row(0, positives=1)
    for temperature in (0.01, 0.1):
        ours = SmoothAPLoss(temperature=temperature).per_anchor(sim, pos, neg)
        assert ours.item() == close(PNPLoss(variant="Dq", temperature=temperature).per_anchor(sim, pos, neg).item())


ALL = [
    SmoothAPLoss(temperature=0.1),
    SupAPLoss(**WIDE),
    RecallAtKLoss(temperature=0.1),
    RecallAtKLoss(ranks="upper"),
    *(PNPLoss(variant=each, temperature=0.1) for each in ("O", "Iu", "Ib", "Ds", "Dq")),
]


@pytest.mark.parametrize("loss", ALL)
def test_only_differences_count(loss):
    sim, pos, neg = Rows(6, 10, density=0.8, seed=3).matrix
    leaf = sim.clone().requires_grad_()
    losses = loss.per_anchor(leaf, pos, neg)
    gradient = torch.autograd.grad(losses.sum(), leaf)[0]
    assert gradient.sum(1).tolist() == pytest.approx([0] * 6, abs=1e-12)
    assert gradient.any()
    torch.testing.assert_close(loss.per_anchor(sim + 0.7, pos, neg), losses.detach())


def test_positives_push_each_other_where_they_compete_for_ranks_only():
    def share(loss):
        pushed = []
        for seed in range(60):
            sim, pos, neg = random_row(seed, positives=8, negatives=32)
            leaf = sim.clone().requires_grad_()
            gradient = torch.autograd.grad(loss.per_anchor(leaf, pos, neg).sum(), leaf)[0]
            pushed.append((gradient[pos] > 1e-6).double().mean())
            assert (gradient[neg] >= 0).all()
        return torch.stack(pushed).mean().item()

    assert 0.001 < share(SmoothAPLoss()) < 0.2
    assert 0.001 < share(RecallAtKLoss()) < 0.2
    for loss in (SupAPLoss(), RecallAtKLoss(ranks="upper"), PNPLoss(), PNPLoss(variant="Dq", alpha=4)):
        assert share(loss) == 0


@pytest.mark.parametrize("loss", ALL)
def test_kept_slopes_and_those_computed_again_are_those_of_autograd(loss):
    torch.manual_seed(0)
    x, labels = torch.randn(24, 5, dtype=torch.float64, requires_grad=True), torch.arange(24) // 4
    (expected,) = torch.autograd.grad(by_autograd(loss)(x, labels), x)
    for limit in (0, 1 << 20):
        with thresholds.replaced(RANK_SLOPES=limit):
            (found,) = torch.autograd.grad(loss(x, labels), x)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_a_class_with_fewer_positives_than_another_where_no_negative_is_near():
    """What fills up its row has no rank, and nothing before it: the gradient is a number nonetheless."""
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1], [-1.0, 0.2]])
    labels, found = torch.tensor([0, 0, 1, 1, 1]), []
    loss = SupAPLoss(temperature=1e-3, distance=LpDistance())
    for each in (loss, by_autograd(loss)):
        leaf = x.clone().requires_grad_()
        each(leaf, labels).backward()
        found.append(leaf.grad)
    assert found[1].isfinite().all()
    torch.testing.assert_close(*found)


def test_second_derivatives_through_the_steps():
    sim, pos, neg = Rows(2, 6, density=1.0, seed=5).matrix
    for loss in (
        SmoothAPLoss(temperature=0.3),
        SupAPLoss(temperature=0.3, rho=4, delta=0.2),
        RecallAtKLoss(temperature=0.3),
    ):

        def losses(scores, loss=loss):
            return loss.per_anchor(scores, pos, neg)

        assert torch.autograd.gradgradcheck(losses, sim.clone().requires_grad_(), rtol=1e-4, atol=1e-6)


def test_function_transforms_see_the_same_derivative():
    sim, pos, neg = Rows(3, 7, density=1.0, seed=6).matrix
    loss = SmoothAPLoss(temperature=0.2)
    leaf = sim.clone().requires_grad_()
    expected = torch.autograd.grad(loss.per_anchor(leaf, pos, neg).sum(), leaf)[0]
    found = torch.func.grad(lambda scores: loss.per_anchor(scores, pos, neg).sum())(sim)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)


def test_memory_grows_with_pairs_not_with_triplets():
    """Classes of 64: three matrices of all triplets would be 100 MB."""
    torch.manual_seed(0)
    embeddings, labels = torch.randn(256, 8), torch.arange(256) // 64
    values = [SmoothAPLoss(chunk_size=size)(embeddings, labels).item() for size in (None, 60)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SmoothAPLoss(temperature=0), "temperature must be above 0, got 0"),
        (lambda: SupAPLoss(rho=-1), "rho must be at least 0, got -1"),
        (lambda: SupAPLoss(offset=math.nan), "offset must be finite, got nan"),
        (lambda: RecallAtKLoss(k=0), "k must be at least 1, got 0"),
        (lambda: RecallAtKLoss(k=()), r"k must have at least one length, got \(\)"),
        (lambda: RecallAtKLoss(ranks="soft"), "ranks must be 'smooth' or 'upper', got 'soft'"),
        (lambda: PNPLoss(variant="I"), "variant must be one of O, Iu, Ib, Ds, Dq, got 'I'"),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
