"""Points between the samples of a class as further negatives: worked values, and what they are not."""

import pytest
import torch
from of_pml import LpDistance
from of_pml import losses as pml_losses
from toy import toy

from pml_ext import thresholds
from pml_ext.losses import (
    BatchHardTripletLoss,
    BinomialDevianceLoss,
    CenterLoss,
    DecoupledContrastiveLoss,
    RAWLoss,
)
from pml_ext.wrappers import ExpandedReferences
from pml_ext.wrappers.expanded_references import points_between


def close(value):
    return pytest.approx(value, abs=1e-9)


def hardest(n=None):
    """Hardest positive against hardest negative, with a margin of .2."""
    loss = BatchHardTripletLoss(margin=0.2)
    return loss if n is None else ExpandedReferences(loss, n=n)


@pytest.mark.parametrize(
    ("batch", "n", "value"),
    [
        (6, None, 0.7230762673),
        (6, 1, 0.7950738794),
        (6, 2, 0.8293810470),
        (6, 4, 0.8314482888),
        (9, 2, 0.7663276226),
    ],
)
def test_values(batch, n, value):
    assert hardest(n)(*toy(batch)).item() == close(value)
    with thresholds.as_on_a_device():
        assert hardest(n)(*toy(batch)).item() == close(value)


def test_the_nearest_negative_of_each_anchor():
    embeddings, labels = toy(6)
    pairs = [(a, b) for c in (0, 3) for a in range(c, c + 3) for b in range(a + 1, c + 3)]
    first, second = torch.tensor(pairs).T
    between = torch.nn.functional.normalize(points_between(embeddings[first], embeddings[second], 2))
    references = torch.cat((embeddings, between))
    apart = labels.unsqueeze(1) != torch.cat((labels, labels[first].repeat(2)))
    nearest = torch.cdist(embeddings, references).masked_fill(~apart, torch.inf).amin(1)
    expected = [0.8944271910, 0.6324555320, 0.0389000656, 0.0388130094, 0.6324555320, 1.1384199577]
    assert nearest.tolist() == close(expected)
    # Those that the loss sees: with the farthest positive of each they make its value.
    same = (labels.unsqueeze(1) == labels) & ~torch.eye(6, dtype=torch.bool)
    farthest = torch.cdist(embeddings, embeddings).masked_fill(~same, 0).amax(1)
    assert hardest(2)(embeddings, labels).item() == close((farthest - nearest + 0.2).relu().mean().item())


def test_points_of_two_samples():
    x, _ = toy(6)
    between = points_between(x[[0, 0]], x[[1, 2]], 2)
    found = torch.nn.functional.normalize(between).tolist()
    assert found[0] == close([0.9955557351, 0.0941741912])
    assert found[2] == close([0.9821022792, 0.1883483823])
    assert found[1] == close([0.9216353751, 0.3880570001])
    assert found[3] == close([0.6305926251, 0.7761140001])
    assert between[1].norm().item() == close(0.8246211251)


def test_derivative_of_a_point_by_its_end():
    x, _ = toy(6)
    first = x[0].clone().requires_grad_()
    point = torch.nn.functional.normalize(points_between(first[None], x[2:3], 2)[:1])[0]
    rows = [torch.autograd.grad(point[k], first, retain_graph=True)[0].tolist() for k in (0, 1)]
    assert rows[0] == close([0.1217433726, -0.2891405098])
    assert rows[1] == close([-0.2891405098, 0.6867087109])


def test_finer_points_contain_coarser_ones():
    values = [hardest(n)(*toy(6)).item() for n in (1, 3, 7)]
    assert values == sorted(values)


def test_the_gradient_reaches_both_ends():
    torch.manual_seed(0)
    loss, labels = ExpandedReferences(RAWLoss(alpha=1, beta=5)), torch.arange(8) // 3
    x = torch.randn(8, 4, dtype=torch.float64)
    copies = x[[0, 0, 2, 3, 3, 5, 6, 6]]
    for each in (x, copies):
        assert torch.autograd.gradcheck(lambda x: loss(x, labels), each.clone().requires_grad_(), rtol=1e-5)


def test_one_sample_a_class_has_no_point_between():
    embeddings, _ = toy(6)
    names = torch.arange(6)
    texts = embeddings.flip(0)
    plain = DecoupledContrastiveLoss()
    expected = plain(embeddings, names, ref_emb=texts, ref_labels=names.clone())
    actual = ExpandedReferences(plain)(embeddings, names, ref_emb=texts, ref_labels=names.clone())
    assert actual.item() == close(expected.item())


def test_points_are_no_positives_and_no_negatives_of_their_own_class():
    """Two far classes: the points between are as far as their ends, and the loss is that without them.

    Binomial deviance takes the mean over the positives, among which no sample is its own.
    """
    x = torch.tensor([[1.0, 0.1], [1, -0.1], [-1, 0.1], [-1, -0.1]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])
    for loss in (RAWLoss(alpha=2), BinomialDevianceLoss(), pml_losses.ContrastiveLoss(), hardest()):
        plain, expanded = loss(x, labels), ExpandedReferences(loss)(x, labels)
        assert expanded.item() == pytest.approx(plain.item(), abs=1e-6)


def test_references_are_expanded_among_themselves():
    embeddings, labels = toy(9)
    loss = hardest(2)
    value = loss(embeddings[:3], labels[:3], ref_emb=embeddings[3:], ref_labels=labels[3:])
    assert value.item() == 0  # no positives among them
    value = loss(embeddings[:2], labels[:2], ref_emb=embeddings[2:], ref_labels=labels[2:])
    ends = [(a, b) for c in (3, 6) for a in range(c, c + 3) for b in range(a + 1, c + 3)]
    between = [points_between(embeddings[[a]], embeddings[[b]], 2) for a, b in ends]
    shown = torch.cat((embeddings[2:], *between))
    distance = LpDistance()(embeddings[:2], shown)
    expected = (distance[:, 0] - distance[:, 1:].amin(1) + 0.2).relu().mean()
    assert value.item() == close(expected.item())


def test_opposite_samples_of_a_class_have_a_point_without_a_direction():
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], requires_grad=True)
    value = ExpandedReferences(RAWLoss(), n=1)(x, torch.tensor([0, 0, 1, 1]))
    assert value.isfinite()
    (gradient,) = torch.autograd.grad(value, x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ExpandedReferences(RAWLoss(), n=0), ValueError, "n must be at least 1, got 0"),
        (lambda: ExpandedReferences(CenterLoss(2, 2)), TypeError, "loss must take references"),
        (lambda: ExpandedReferences(pml_losses.PNPLoss()), TypeError, "loss must take references"),
        (lambda: ExpandedReferences(RAWLoss())(*toy(6), (torch.tensor([0]),) * 3), ValueError, "indices_tuple"),
        (lambda: ExpandedReferences(RAWLoss())(toy(6)[0]), ValueError, "needs labels, and ref_labels with ref_emb"),
    ],
)
def test_what_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
