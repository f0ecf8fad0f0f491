"""The sigmoid pair loss: worked values, its two scalars, and what it is beside binomial deviance."""

import copy
import math

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from toy import toy

from pml_ext.analysis import pair_weights
from pml_ext.losses import BinomialDevianceLoss, SigmoidPairLoss


def close(value):
    return pytest.approx(value, abs=5e-9, rel=1e-9)


def doubled(**arguments):
    """In double precision, as the specification computes, the slope too."""
    loss = SigmoidPairLoss(**arguments).double()
    loss.log_slope.data.fill_(math.log(loss.temperature))
    if loss.bias != "prior":
        loss.offset.data.fill_(loss.bias)
    return loss


@pytest.mark.parametrize(
    ("n", "reduction", "value"),
    [
        (6, "sum", 9.9452480866),
        (6, "positives", 4.9726240433),
        (6, "mean", 5.0888003488),
        (9, "sum", 11.3941672347),
        (9, "positives", 5.6970836174),
        (9, "mean", 5.7778172532),
    ],
)
def test_values(n, reduction, value):
    assert doubled(bias=-10, reduction=reduction)(*toy(n)).item() == close(value)


@pytest.mark.parametrize(("n", "bias", "value"), [(6, -0.4054651081, 11.4039945560), (9, -1.0986122887, 10.5665142935)])
def test_the_level_of_as_many_positives_as_there_are(n, bias, value):
    loss = doubled()
    assert loss(*toy(n)).item() == close(value)
    assert loss.offset.item() == close(bias)
    # It is set once.
    loss(*toy(9 if n == 6 else 6))
    assert loss.offset.item() == close(bias)


@pytest.mark.parametrize(("bias", "value"), [(-10, 5.9023952671), (-2.71, 18.2917102492), (0, 27.2941333551)])
def test_two_modalities_with_one_partner_each(bias, value):
    images, _ = toy(6)
    texts, names = images[[1, 2, 0, 4, 5, 3]], torch.arange(6)
    for reduction in ("sum", "positives", "mean"):
        loss = doubled(bias=bias, reduction=reduction)
        assert loss(images, names, ref_emb=texts, ref_labels=names.clone()).item() == close(value)
    loss = doubled(bias=bias)
    assert loss(texts, names, ref_emb=images, ref_labels=names.clone()).item() == close(value)


@pytest.mark.parametrize(
    ("n", "by_log_slope", "by_offset"), [(6, -6.9727495652, -1.6009218519), (9, -6.3363794872, -1.7005990989)]
)
def test_gradients_of_the_scalars(n, by_log_slope, by_offset):
    for chunk_size in (None, 2):
        loss = doubled(bias=-10, chunk_size=chunk_size)
        loss(*toy(n)).backward()
        assert loss.log_slope.grad.item() == close(by_log_slope)
        assert loss.offset.grad.item() == close(by_offset)


def test_pair_weights_and_gradient():
    embeddings, labels = toy(6)
    loss = doubled(bias=-10, distance=CosineSimilarity())
    found = 6 * pair_weights(loss, embeddings, labels).derivative
    expected = {
        0: [0, -5.9868766011, -9.9925397117, 0.1798620996, 0.0000134381, 0.0000001523],
        2: [-9.9925397117, -9.9028190458, 0, 3.4524653939, 1.1920292202, 0.0153146171],
    }
    for row, weights in expected.items():
        assert found[row].tolist() == pytest.approx(weights, abs=1e-8)
    assert ((found + found.T) @ embeddings / 6).norm().item() == close(12.3545998732)
    values = loss.per_anchor(loss.similarity(embeddings, None), labels[:, None] == labels, labels[:, None] != labels)
    assert values[3].item() > 15.2  # with the pair of itself, which costs next to nothing


def test_losses_of_the_anchors():
    embeddings, labels = toy(6)
    loss = doubled(bias=-10)
    loss(embeddings, labels)
    same = (labels[:, None] == labels) & ~torch.eye(6, dtype=torch.bool)
    values = loss.per_anchor(loss.similarity(embeddings, None), same, labels[:, None] != labels)
    expected = [8.1319128466, 5.6737302661, 12.3864690884, 15.2023854724, 6.5180644644, 11.7589263817]
    assert values.tolist() == close(expected)


def test_it_is_binomial_deviance_where_classes_are_equal():
    for n, positives, negatives in ((6, 2, 3), (9, 2, 6)):
        embeddings, labels = toy(n)
        ours = doubled(bias=-4)(embeddings, labels).item()
        theirs = BinomialDevianceLoss(alpha=10, beta=10, base=0.4, scale=10 * positives, balance=negatives / positives)
        assert ours == close(theirs(embeddings, labels).item())


def test_at_the_best_level_as_many_positives_are_expected_as_there_are():
    embeddings, labels = toy(9)
    loss = doubled()
    optimizer = torch.optim.LBFGS(
        [loss.offset], max_iter=50, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-14
    )

    def step():
        optimizer.zero_grad()
        value = loss(embeddings, labels)
        value.backward()
        return value

    optimizer.step(step)
    assert loss.offset.grad.item() == pytest.approx(0, abs=1e-6)
    expected = torch.sigmoid(loss.similarity(embeddings, None))[~torch.eye(9, dtype=torch.bool)].sum().item()
    assert expected == pytest.approx(18, abs=1e-4)


def test_a_slope_above_the_limit_has_no_gradient_and_counts_as_the_limit():
    embeddings, labels = toy(6)
    loss = doubled(temperature=30, max_temperature=10, bias=-10)
    value = loss(embeddings, labels)
    assert value.item() == close(9.9452480866)
    value.backward()
    assert loss.log_slope.grad.item() == 0
    assert doubled(temperature=30, max_temperature=None, bias=-10)(embeddings, labels).item() != close(9.9452480866)


def test_without_a_level_every_pair_weighs_half_the_slope():
    embeddings, labels = toy(6)
    loss = doubled(temperature=1e-9, bias=0)
    found = 6 * pair_weights(loss, embeddings, labels).weights
    assert found[~torch.eye(6, dtype=torch.bool)].tolist() == pytest.approx([0.5e-9] * 30, rel=1e-6)


def test_columns_may_be_split_in_any_way():
    embeddings, labels = toy(9)
    loss, queries = doubled(bias=-3), toy(6)
    whole = loss(*queries, ref_emb=embeddings, ref_labels=labels).item()
    parts = [
        loss(*queries, ref_emb=embeddings[part], ref_labels=labels[part]).item()
        for part in (slice(0, 1), slice(1, 4), slice(4, 9))
    ]
    assert whole == close(sum(parts))


def test_a_look_at_a_batch_does_not_set_the_level():
    loss = doubled().eval()
    assert loss(*toy(6)).item() == close(11.4039945560)
    assert (loss.offset.item(), bool(loss.is_known)) == (0, False)
    loss.train()
    loss(toy(6)[0], torch.arange(6))  # negatives only
    assert not loss.is_known
    loss(*toy(9))
    saved = copy.deepcopy(loss.state_dict())
    again = doubled()
    again.load_state_dict(saved)
    assert again(*toy(6)).item() == loss(*toy(6)).item()
    assert again.offset.item() == close(math.log(18 / 54))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="reduction must be 'sum', 'positives' or 'mean', got 'total'"):
        SigmoidPairLoss(reduction="total")
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        SigmoidPairLoss(temperature=0)
    with pytest.raises(TypeError, match="bias must be a number, got 'posterior'"):
        SigmoidPairLoss(bias="posterior")
    with pytest.raises(AttributeError, match="temperature cannot be set later"):
        SigmoidPairLoss().temperature = 3
