"""The engine where it matters how a batch falls into blocks, who else is differentiated, and what is kept."""

import gc
from contextlib import nullcontext
from functools import partial

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance
from registry import LOSSES

from pml_ext import losses, miners, thresholds
from pml_ext.base import RowLoss, StaticDivisorReducer
from pml_ext.centers import BatchCenters
from pml_ext.closed_form import ABSENT, Sides
from pml_ext.losses.multi_similarity import multi_similarity
from pml_ext.miners.base import PairMiner
from pml_ext.pairs import ByLabels, ByMasks, Narrowed, PairMasks, Pairs, label_masks, pairs_from_host
from pml_ext.scores import Space
from pml_ext.seeded import Seeded
from pml_ext.similarity import Similarity
from pml_ext.testing.law import by_autograd
from pml_ext.wrappers import BranchLoss, CentersAsReferences, MinedLoss

SPARSE = ("BatchHardTripletLoss", "EasyPositiveTripletLoss", "SemiHardTripletLoss")


def gradient(loss, embeddings, labels, **options):
    x = embeddings.clone().requires_grad_()
    return torch.autograd.grad(loss(x, labels), x, **options)[0].detach()


@pytest.mark.parametrize("name", SPARSE)
def test_blocks_with_equals_and_without_may_be_mixed(name):
    """Where negatives are equal autograd takes over, for the block that holds them only."""
    torch.manual_seed(0)
    labels = torch.arange(600) // 3
    embeddings = torch.randn(600, 8, dtype=torch.float64)
    # The nearest negative of the first anchor twice; the last blocks have no equals near.
    embeddings[7] = embeddings[4] = embeddings[0] + 1e-3
    embeddings[300:] += 100 * torch.eye(8, dtype=torch.float64)[labels[300:] % 8]
    loss = getattr(losses, name)(distance=LpDistance(normalize_embeddings=False))
    torch.testing.assert_close(
        gradient(loss, embeddings, labels), gradient(by_autograd(loss), embeddings, labels), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_gradients_to_be_differentiated_again_count_references_made_of_the_batch_once(chunk_size):
    torch.manual_seed(0)
    labels, embeddings = torch.arange(12) // 4, torch.randn(12, 4, dtype=torch.float64)
    loss = CentersAsReferences(losses.MultiSimilarityLoss(chunk_size=chunk_size), BatchCenters())
    expected = gradient(loss, embeddings, labels)
    torch.testing.assert_close(gradient(loss, embeddings, labels, create_graph=True), expected)
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), embeddings.requires_grad_())


def test_backward_frees_the_pair_weights_though_the_loss_is_kept():
    labels, embeddings = torch.arange(311) // 2, torch.randn(311, 4, requires_grad=True)
    value = losses.MultiSimilarityLoss()(embeddings, labels)
    value.backward()
    assert value.grad_fn is not None
    assert not any(type(x) is torch.Tensor and x.shape == (311, 311) for x in gc.get_objects())


@pytest.mark.parametrize("shift", [0.0, 2e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_clamped_nca_far_beyond_its_levels(shift, dtype):
    """What is absent is nowhere near the level, even if all that is there is far beyond it."""
    torch.manual_seed(0)
    labels = torch.tensor([0] * 6 + [1] * 6)
    embeddings = 1e3 * torch.randn(12, 4, dtype=dtype) + shift
    loss = losses.ClampedNCALoss(distance=LpDistance(normalize_embeddings=False))
    plain = by_autograd(loss)
    torch.testing.assert_close(loss(embeddings, labels), plain(embeddings, labels), rtol=1e-5, atol=0)
    expected = gradient(plain, embeddings, labels)
    assert expected.abs().max() > 0
    torch.testing.assert_close(gradient(loss, embeddings, labels), expected, rtol=1e-4, atol=1e-6)


SELECTIVE = ["DecoupledNCALoss", "SemiHardTripletLoss", "BatchHardTripletLoss", "EasyPositiveTripletLoss"]
SELECTIVE += ["KNNSoftmaxLoss", "RankedPullDevianceLoss", "LargeMarginNearestNeighborLoss"]


@pytest.mark.parametrize("name", [*SELECTIVE, "HistogramLoss", "MeanGapLoss", "LiftedStructureLoss"])
@pytest.mark.parametrize("distance", [CosineSimilarity(), LpDistance()], ids=["cosine", "distance"])
@pytest.mark.parametrize("per_class", [4, 12])
def test_nan_in_an_embedding_is_seen_in_the_loss_and_in_the_gradient(name, distance, per_class):
    embeddings = torch.randn(24, 4)
    embeddings[5, 2] = torch.nan
    loss, labels = getattr(losses, name)(distance=distance), torch.arange(24) // per_class
    with thresholds.replaced(GATHERED_COLUMNS=0):
        assert loss(embeddings, labels).isnan()
        assert gradient(loss, embeddings, labels).isnan().any()


@pytest.mark.parametrize("name", SELECTIVE)
def test_nan_in_a_reference_is_seen_in_the_loss(name):
    embeddings, references = torch.randn(5, 4), torch.randn(24, 4)
    references[1] = torch.nan
    loss = getattr(losses, name)(distance=CosineSimilarity())
    assert loss(embeddings, torch.zeros(5), None, references, torch.arange(24) // 4).isnan()


@pytest.mark.parametrize("name", ["BinomialDevianceLoss", "LiftedStructureLoss"])
def test_a_label_that_is_no_number_is_that_of_no_other_sample(name):
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, torch.nan, torch.nan, 5, 5])
    embeddings, loss = torch.randn(12, 4, dtype=torch.float64), getattr(losses, name)()
    torch.testing.assert_close(loss(embeddings, labels), by_autograd(loss)(embeddings, labels))


def test_ranks_of_equals_are_those_of_autograd_on_given_pairs():
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 12, dtype=torch.float64)
    labels = torch.tensor([0] * 14 + [1] * 10)
    loss = losses.RankedPullDevianceLoss(
        distance=DotProductSimilarity(normalize_embeddings=False), margins=(0.1,) * 4, alphas=(1, 2, 3, 4)
    )
    torch.testing.assert_close(gradient(loss, embeddings, labels), gradient(by_autograd(loss), embeddings, labels))


def test_gradients_of_unit_vectors_are_exact_under_autocast():
    labels, embeddings = torch.arange(24) // 4, torch.randn(24, 6, requires_grad=True)
    loss = BranchLoss(losses.BinomialDevianceLoss(), 2)
    expected = gradient(loss, embeddings, labels)
    value = loss(embeddings, labels)
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = torch.autograd.grad(value, embeddings)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_the_mean_over_more_than_float32_can_count():
    count, losses_ = 2**24 + 1, torch.ones(2, dtype=torch.float64)
    reducer = StaticDivisorReducer()
    assert reducer.sum_and_divide(losses_, losses_, torch.tensor(count)) * count == 2
    assert reducer.sum_and_divide(losses_.half(), losses_, torch.tensor(10**5)).dtype == torch.float16
    assert reducer.sum_and_divide(losses_, losses_, torch.tensor(0)) == 0


@pytest.mark.parametrize(("spread", "normalize"), [(1e-3, True), (1e-4, True), (1e-2, False)])
@pytest.mark.parametrize("name", ["BatchAllTripletLoss", "BatchHardTripletLoss", "BinomialDevianceLoss"])
def test_gradient_of_a_batch_that_has_all_but_collapsed(name, spread, normalize):
    """Far from the origin and close together, where products of float32 vectors alone keep no distance."""
    torch.manual_seed(0)
    labels = torch.arange(64) // 4
    embeddings = (1 if normalize else 10) + spread * torch.randn(64, 32)
    loss = getattr(losses, name)(distance=LpDistance(normalize_embeddings=normalize))
    expected = gradient(by_autograd(loss), embeddings.double(), labels)
    torch.testing.assert_close(
        gradient(loss, embeddings, labels).double(), expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item()
    )


DISTANCES = {
    "cosine": CosineSimilarity(),
    "product": DotProductSimilarity(normalize_embeddings=False),
    "distance": LpDistance(),
    "distance of vectors as they are": LpDistance(normalize_embeddings=False),
    "square": LpDistance(power=2),
    "square of vectors as they are": LpDistance(power=2, normalize_embeddings=False),
}


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "BatchAllTripletLoss", "SemiHardTripletLoss"])
def test_mirrored_scores_are_those_of_all_pairs(name, distance):
    """A batch of several blocks on either side of the diagonal, the last one shorter."""
    torch.manual_seed(0)
    n = 4 * thresholds.SYMMETRIC_ROWS + 7
    labels, embeddings = torch.randint(n // 5, (n,)), torch.randn(n, 6, dtype=torch.float64)
    loss = getattr(losses, name)(distance=distance)
    plain = by_autograd(loss)
    torch.testing.assert_close(loss(embeddings, labels), plain(embeddings, labels))
    torch.testing.assert_close(gradient(loss, embeddings, labels), gradient(plain, embeddings, labels))


def a_batch_with_private_references():
    torch.manual_seed(0)
    n, m = 9, 5
    x, refs = (torch.randn(k, 3, dtype=torch.float64, requires_grad=True) for k in (n, m + n))
    kind = torch.randint(3, (n, m + 1))
    return x, refs, ByMasks(PairMasks(kind == 0, kind == 1), private=True)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "SemiHardTripletLoss", "BatchHardTripletLoss"])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_private_references_are_columns_that_only_one_anchor_sees(name, distance, chunk_size):
    x, refs, masks = a_batch_with_private_references()
    labels, ref_labels = torch.zeros(len(x)), torch.zeros(len(refs))
    loss = getattr(losses, name)(distance=distance, chunk_size=chunk_size)
    expected = loss(x, labels, masks.wide(), refs, ref_labels)
    for each in (loss, by_autograd(loss)):
        value = each(x, labels, masks, refs, ref_labels)
        torch.testing.assert_close(value, expected)
        for found, wanted in zip(
            torch.autograd.grad(value, (x, refs)),
            torch.autograd.grad(expected, (x, refs), retain_graph=True),
            strict=True,
        ):
            torch.testing.assert_close(found, wanted)


def test_gradients_by_private_references_can_be_differentiated_again():
    x, refs, masks = a_batch_with_private_references()
    labels, ref_labels = torch.zeros(len(x)), torch.zeros(len(refs))
    loss = losses.MultiSimilarityLoss()
    assert torch.autograd.gradgradcheck(lambda a, r: loss(a, labels, masks, r, ref_labels), (x, refs))


def test_private_masks_must_have_one_column_more_than_shared_references():
    x, refs, masks = a_batch_with_private_references()
    with pytest.raises(ValueError, match=r"must have shape \(9, 6\), got \(9, 5\)"):
        losses.MultiSimilarityLoss()(
            x, torch.zeros(9), ByMasks(PairMasks(*(mask[:, 1:] for mask in masks.given)), private=True), refs
        )


def assert_same_sides(found, wanted):
    for kind in ("pos_count", "neg_count"):
        torch.testing.assert_close(getattr(found, kind), getattr(wanted, kind))
    k = found.pos.shape[1]
    in_order = [found.pos.sort(1).values, found.neg]
    expected = [wanted.pos.sort(1).values[:, :k], wanted.neg]
    for values, others in zip(in_order, expected, strict=True):
        # Absent scores need only be out of reach.
        torch.testing.assert_close(values.clamp(-1e9, 1e9), others.clamp(-1e9, 1e9))
    if found.columns is not None:
        back = torch.zeros_like(wanted.neg).scatter_add_(1, found.columns, (found.pos < 1e9) * found.pos)
        torch.testing.assert_close(back, torch.where(wanted.pos < 1e9, wanted.pos, 0.0))


@pytest.mark.parametrize("selves", ["the batch", "others", "some"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.bfloat16, torch.bool])
def test_sides_are_the_same_however_pairs_are_given(selves, dtype):
    """By labels, masks and index tensors; positives gathered and in place; in blocks of rows."""
    torch.manual_seed(0)
    for n, classes, equal in (
        (1, 1, 0),
        (2, 1, 0),
        (7, 3, 0),
        (40, 12, 0),
        (40, 40, 0),
        (33, 2, 0),
        (40, 10, 1),
        (6, 2, 1),
    ):
        labels = torch.randint(1 if dtype == torch.bool else classes, (n,)).to(dtype)
        if equal:
            labels = (torch.arange(n) % classes)[torch.randperm(n)].to(dtype)
        order = torch.randperm(2 * n)
        refs = labels if selves == "the batch" else labels.repeat(2)[order]
        m = len(refs)
        x, others = torch.randn(n, 3), torch.randn(m, 3)
        own = torch.where(torch.rand(n) < 0.7, order.argsort()[:n], -1) if selves == "some" else None
        pos, neg = (mask.clone() for mask in label_masks(labels, refs))
        if selves == "the batch":
            own, others = None, x
            pos.fill_diagonal_(False)
        elif own is not None:
            pos[own >= 0, own[own >= 0]] = False
        sim, masks = torch.randn(n, m, dtype=torch.float64), PairMasks(pos, neg)
        by_labels = ByLabels(labels, refs, same=others is x, own=own)
        kinds = [by_labels, *(Pairs.of(x, None, given, others, None) for given in (masks, masks.indices()))]
        with thresholds.replaced(INDEXED_MASKS=0):
            kinds.append(Pairs.of(x, None, masks.indices(), others, None))
        wanted = [torch.where(pos, sim, 1e30), torch.where(neg, sim, -1e30)]
        wanted += [mask.sum(1, keepdim=True).double() for mask in masks]
        for pairs in kinds:
            for share in (0.0, 0.25, 1.0):
                pairs.gathered = pairs.ids = None
                pairs.was_looked_at = False
                with thresholds.replaced(GATHERED_SHARE=share, GATHERED_COLUMNS=0):
                    for start in range(0, n, 16):
                        rows = slice(start, start + 16)
                        part = type(pairs.sides(sim, 0, thresholds.LOOKS))(*(side[rows] for side in wanted))
                        assert_same_sides(pairs.sides(sim[rows], start, thresholds.LOOKS), part)
                        for found, mask in zip(pairs.masks(sim[rows], start), masks, strict=True):
                            assert torch.equal(found, mask[rows])
                if pairs.complete:
                    assert bool((pos.any(1) & neg.any(1)).all())


@pytest.mark.parametrize(("n", "classes", "is_few"), [(64, 2, True), (256, 2, True), (260, 2, False), (520, 4, True)])
@pytest.mark.parametrize("others", [0, 1])
def test_the_positives_of_a_small_batch_are_gathered_however_large_its_classes_are(n, classes, is_few, others):
    """Forms that need few columns run there, too; `others` makes the classes unequal, and so does giving references."""
    labels = torch.arange(n) % classes
    labels[:others] = classes
    sim, masks = torch.randn(n, n), label_masks(labels, labels)
    by_labels = ByLabels(labels, labels, same=not others)
    found = [pairs.sides(sim, 0, True) for pairs in (by_labels, ByMasks(masks, same=True))]
    assert [sides.gathered for sides in found] == [is_few, is_few]
    for sides in found:
        with pytest.raises(RuntimeError) if sides is found[0] and is_few and not others else nullcontext():
            sides.pos_count.add_(1)  # those of equal classes belong to all batches of the size


BY_ROWS = [name for name, make in LOSSES.items() if isinstance(make(), RowLoss) and make().closed_form is not None]


@pytest.mark.parametrize("name", BY_ROWS)
@pytest.mark.parametrize("sizes", [(3, 3, 3, 3, 3), (1, 2, 3, 4, 5)], ids=str)
def test_a_closed_form_looks_at_nothing_where_only_labels_are_on_the_host(name, sizes):
    """Positives are gathered there before PML moves the labels; the scores are on a device that one would wait for."""
    torch.manual_seed(0)
    labels = torch.repeat_interleave(torch.arange(5), torch.tensor(sizes))[torch.randperm(15)]
    loss, embeddings = LOSSES[name](), torch.randn(15, 6, dtype=torch.float64)
    expected = loss(embeddings, labels), gradient(loss, embeddings, labels)
    with thresholds.replaced(GATHERED_SHARE=0.6):
        pairs = pairs_from_host(labels, embeddings.device)
    assert pairs.gathered is not None
    x = embeddings.clone().requires_grad_()
    with thresholds.replaced(LOOKS=False):
        value = loss(x, labels, pairs)
        value.backward()
    torch.testing.assert_close((value.detach(), x.grad), expected, rtol=1e-9, atol=1e-12)
    x = embeddings.clone()
    x[3, 1] = torch.nan
    with thresholds.replaced(LOOKS=False):
        x.requires_grad_()
        value = loss(x, labels, pairs)
        value.backward()
    assert value.isnan()
    assert x.grad.isnan().any()


@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("n", [24, 600])
def test_rows_that_a_closed_form_leaves_to_autograd_have_their_own_scores(n, looks, chunk_size):
    """A form may overwrite its sides, which may be the scores themselves, and then leave the rows to autograd."""

    class Leaving(RowLoss):
        needs, closed_form = "either", staticmethod(lambda sides: [None, sides.neg.fill_(9)][0])

        def get_default_distance(self):
            return CosineSimilarity()

        def per_anchor(self, sim, pos, neg):
            return multi_similarity(sim, pos, neg, alpha=2, beta=50, base=0.5)

    torch.manual_seed(0)
    labels, x = torch.arange(n) // 4, torch.randn(n, 6, dtype=torch.float64)
    pairs, usual = pairs_from_host(labels, x.device), losses.MultiSimilarityLoss(chunk_size=chunk_size)
    with thresholds.replaced(LOOKS=looks):
        leaf = x.clone().requires_grad_()
        (found,) = torch.autograd.grad(Leaving(chunk_size=chunk_size)(leaf, labels, pairs), leaf)
    torch.testing.assert_close(found, gradient(usual, x, labels), rtol=1e-9, atol=1e-12)


def test_labels_on_the_host_are_looked_at_there_and_then_moved():
    labels, x = torch.arange(24) // 4, torch.randn(24, 4, device="meta", requires_grad=True)
    pairs = pairs_from_host(labels, x.device)
    assert pairs.complete
    assert {tensor.device.type for tensor in (pairs.labels, *pairs.gathered[:1], *pairs.gathered[2:5])} == {"meta"}
    assert pairs_from_host(labels.to("meta"), x.device) is None
    seen = []
    with pytest.MonkeyPatch.context() as patch:  # the engine asks for autocast, of which this device knows nothing
        patch.setattr(RowLoss, "of_pairs", lambda loss, pairs, x, ref: seen.append(pairs) or dict(loss.zero_losses()))
        losses.RAWLoss()(x, labels)
        losses.RAWLoss()(x, labels.to("meta"))
    assert [pairs.gathered is not None for pairs in seen] == [True, False]


@pytest.mark.parametrize("start", [0, 16])
def test_the_positives_of_a_selection_are_gathered(start):
    """So a closed form that needs few columns runs in a mined loss, too."""
    torch.manual_seed(0)
    labels, sim = torch.arange(40) // 4, torch.randn(40, 40)
    pairs = Narrowed(ByLabels(labels, labels, same=True), lambda sim, pos, neg: (pos & (sim < 1), neg & (sim > -1)))
    rows = slice(start, start + 16)
    found, wanted = (pairs.sides(sim[rows], start, looks) for looks in (True, False))
    assert found.gathered
    assert not wanted.gathered
    assert torch.equal(found.neg.clamp(min=-1e9), wanted.neg.clamp(min=-1e9))
    assert torch.equal(found.pos.clamp(max=1e9).sort(1).values, wanted.pos.clamp(max=1e9).sort(1).values[:, :3])
    for counts, others in zip(found[2:4], wanted[2:4], strict=True):
        assert torch.equal(counts, others)


@pytest.mark.parametrize("power", [1, 2])
def test_references_that_need_no_gradient_get_none(power):
    torch.manual_seed(0)
    x, ref, columns, weights = torch.randn(6, 4), torch.randn(9, 4), torch.randint(9, (6, 2)), torch.randn(6, 2)
    space, grad = Space(Similarity(True, True, power), x, ref, False, True), torch.rand(6)
    by_both, by_ref = space.gradients([columns, weights], grad, (True, True))
    alone, none = space.gradients([columns, weights], grad, (True, False))
    assert by_ref is not None
    assert none is None
    assert torch.equal(alone, by_both)


@pytest.mark.parametrize("name", ["LiftedStructureLoss", "HistogramLoss", "MeanGapLoss"])
@pytest.mark.parametrize(
    "labels", [[0] * 4 + [1] * 3 + [2] + [3] * 2, [0] * 5 + [1] * 5, [0] * 10, list(range(10))], ids=str
)
def test_a_loss_of_the_whole_batch_through_the_engine(name, labels):
    torch.manual_seed(0)
    labels, embeddings = torch.tensor(labels), torch.randn(10, 4, dtype=torch.float64)
    loss = getattr(losses, name)()
    plain = by_autograd(loss)
    torch.testing.assert_close(loss(embeddings, labels), plain(embeddings, labels))
    torch.testing.assert_close(gradient(loss, embeddings, labels), gradient(plain, embeddings, labels))
    # Of torch.cdist there is no second derivative. Each number costs as many passes as there are others.
    loss = getattr(losses, name)(distance=CosineSimilarity())
    assert torch.autograd.gradgradcheck(lambda x: loss(x, labels), embeddings[:, :3].clone().requires_grad_())


def mined(loss, miner):
    """The two without anything in common."""
    return lambda x, y: loss(x, y, miner.masks(x, y, x, y))


SELECTIONS = [
    miners.HardNegativePairMiner(),
    miners.KNearestNegativeMiner(k=5, distance=CosineSimilarity()),
    miners.ChainedMiner(
        distance=CosineSimilarity(),
        miners=[miners.KNearestPositiveMiner(k=1, distance=CosineSimilarity()), miners.HardNegativePairMiner()],
    ),
]


@pytest.mark.parametrize("miner", SELECTIONS, ids=lambda miner: type(miner).__name__)
@pytest.mark.parametrize("chunk_size", [None, 7])
@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: BranchLoss(loss, 2)], ids=["whole", "slices"])
def test_a_loss_makes_the_selection_of_a_miner_among_its_own_scores(monkeypatch, miner, chunk_size, wrap):
    torch.manual_seed(0)
    labels, embeddings = torch.randint(6, (30,)), torch.randn(30, 6, dtype=torch.float64)
    loss = losses.BinomialDevianceLoss(chunk_size=chunk_size)
    parts = [embeddings] if wrap(loss) is loss else list(embeddings.split(3, dim=1))
    expected = torch.stack([mined(loss, miner)(x, labels) for x in parts]).mean()
    wanted = torch.cat([gradient(mined(loss, miner), x, labels) for x in parts], 1) / len(parts)
    joined = wrap(MinedLoss(loss, miner))
    monkeypatch.setattr(miner, "masks", None)
    torch.testing.assert_close(joined(embeddings, labels), expected)
    torch.testing.assert_close(gradient(joined, embeddings, labels), wanted)
    torch.testing.assert_close(gradient(joined, embeddings, labels, create_graph=True), wanted)


@pytest.mark.parametrize(
    "miner",
    [
        lambda: miners.InverseDensityMiner(distance=CosineSimilarity()),
        lambda: miners.HardNegativePairMiner(distance=LpDistance()),
        pytest.param(
            lambda: miners.HardNegativePairMiner(collect_stats=True), marks=pytest.mark.pml2("it counts what is mined")
        ),
        lambda: miners.ChainedMiner(
            distance=CosineSimilarity(), miners=[miners.InverseDensityMiner(distance=CosineSimilarity())]
        ),
    ],
    ids=["random", "another distance", "statistics", "a chain with a random link"],
)
def test_a_miner_that_has_scores_of_its_own_or_is_counted_mines_by_itself(monkeypatch, miner):
    calls = []
    miner = miner()
    masks = miner.masks
    monkeypatch.setattr(miner, "masks", lambda *batch, **given: calls.append(1) or masks(*batch, **given))
    MinedLoss(losses.BinomialDevianceLoss(), miner)(torch.randn(12, 4), torch.arange(12) // 3)
    assert calls


class Coins(Seeded, PairMiner):
    """Draws with an engine's blocks in no one's mind."""

    def get_default_distance(self):
        return CosineSimilarity()

    def select(self, sim, pos, neg):
        return pos, neg & (torch.rand(sim.shape, generator=self.generator(sim.device)) < 0.5)


class WholeBatch(PairMiner):
    """The hardest five pairs of the batch: not a function of rows."""

    def get_default_distance(self):
        return CosineSimilarity()

    def select(self, sim, pos, neg):
        return pos, neg & (sim >= sim[neg].topk(5).values.min())


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_selections_of_ones_own_are_asked_for_once(chunk_size):
    labels, embeddings = torch.arange(12) // 3, torch.randn(12, 4, dtype=torch.float64)
    loss = losses.BinomialDevianceLoss(chunk_size=chunk_size)
    for make in (partial(Coins, seed=3), WholeBatch):
        expected = gradient(mined(losses.BinomialDevianceLoss(), make()), embeddings, labels)
        torch.testing.assert_close(gradient(MinedLoss(loss, make()), embeddings, labels), expected)


def test_a_loss_with_a_way_of_its_own_to_take_pairs_is_given_masks():
    class Unpacking(RowLoss):
        def per_anchor(self, sim, pos, neg):
            return (sim * neg).sum(-1)

        def loss_dict(self, embeddings, labels, indices_tuple, ref_emb, ref_labels):
            pos, neg = indices_tuple
            return super().loss_dict(embeddings, labels, PairMasks(pos, neg), ref_emb, ref_labels)

    miner = miners.HardNegativePairMiner()
    assert MinedLoss(Unpacking(distance=CosineSimilarity()), miner)(torch.randn(12, 4), torch.arange(12) // 3) != 0


def test_private_references_have_columns_of_their_own():
    *_, pairs = a_batch_with_private_references()
    for found, mask in zip(pairs.wide(), pairs.given, strict=True):
        assert torch.equal(found[:, :5], mask[:, :-1])
        assert torch.equal(found[:, 5:], torch.diag(mask[:, -1]))


def test_the_hardest_negative_by_its_old_name():
    neg = torch.tensor([[0.5, -ABSENT, 0.25], [-ABSENT, -0.5, 0.75]])
    ones = torch.ones(2, 1)
    sides = Sides(ones.clone(), neg, ones, 2 * ones, torch.tensor([[1], [0]]))
    with pytest.warns(DeprecationWarning, match="only_hardest_neg is called on_hardest_neg now"):
        found = sides.only_hardest_neg()
    assert [x.tolist() for x in found] == [[[0.5], [0.75]], [[0], [2]]]
    with pytest.warns(DeprecationWarning, match="only_hardest_neg"):
        assert sides._replace(neg=torch.zeros(2, 3)).only_hardest_neg() is None, "equals have to share"
