"""Laws of number formats: the dtype of labels, the default device, float32 far from the origin."""

from typing import Any

import torch
from pytorch_metric_learning.distances import LpDistance
from torch import Tensor

from pml_ext.testing.cases import Batch, all_pairs, as_pairs
from pml_ext.testing.law import (
    assert_close,
    assert_same,
    by_autograd,
    evaluate,
    is_matrix_loss,
    is_ours_and_repeatable,
    law,
    outcome,
    takes_pairs,
    with_attributes,
)
from pml_ext.testing.miner_laws import mine, pairs_of

LABELS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
OTHERS = tuple(dtype for dtype in LABELS if dtype != torch.int64)


@law("loss", "once")
def every_dtype_of_labels_will_do(loss: Any, case: Batch) -> None:
    """Labels of any integer or floating dtype or bool, also of references, give the same loss as int64."""
    refs = (None, case.embeddings + 0.25) if takes_pairs(loss) else None
    for labels, dtypes in ((case.labels, OTHERS), ((case.labels > 0).long(), (torch.bool,))):
        expected = outcome(loss, case) if labels is case.labels else evaluate(loss, case.embeddings, labels)
        against = None if refs is None else _unless_refused(loss, case.embeddings, labels, *refs, labels)
        for dtype in dtypes:
            other = labels.to(dtype)
            try:
                assert_same(evaluate(loss, case.embeddings, other), expected, f"labels of {dtype}")
                if refs is not None and against is not None:
                    actual = evaluate(loss, case.embeddings, other, *refs, other)
                    assert_same(actual, against, f"labels of {dtype}, references")
            except Exception as error:
                raise AssertionError(f"labels of {dtype}: {error}") from error


def _unless_refused(loss: Any, *batch: Any) -> Any:
    """What a loss makes of references, None if it takes none."""
    try:
        return evaluate(loss, *batch)
    except (TypeError, ValueError, NotImplementedError):
        return None


@law("loss", "once")
def every_default_device_will_do(loss: Any, case: Batch) -> None:
    """With another default device, every tensor is created on the device of the embeddings.

    The other device is "meta", on which tensors have no values.
    """
    pairs = as_pairs(all_pairs(case.labels))
    for given in ((), (pairs,)) if is_matrix_loss(loss) else ((),):
        expected = evaluate(loss, case.embeddings, case.labels, *given) if given else outcome(loss, case)
        with torch.device("meta"):
            actual = evaluate(loss, case.embeddings, case.labels, *given)
        assert_same(actual, expected, "another default device")


def one_long(case: Batch) -> Tensor:
    """The embeddings, of which one is a thousand times as long."""
    embeddings = case.embeddings.clone()
    embeddings[4] *= 1000
    return embeddings


def far_clusters(case: Batch) -> Tensor:
    """The embeddings in two clusters, far from one another for their width; classes are in both."""
    return 0.02 * case.embeddings + 100 * (torch.arange(len(case.labels)) % 2 - 0.75).unsqueeze(1)


def far_classes(case: Batch) -> Tensor:
    """The same with each class in one of them."""
    return 0.02 * case.embeddings + 100 * (case.labels % 2 - 0.75).unsqueeze(1)


_LAYOUTS = {"one long embedding": one_long, "two far clusters": far_clusters, "far classes": far_classes}


# Where one has to wait for numbers, nobody looks which pairs are near.
@law("loss", "once", is_matrix_loss, as_shipped_only=True)
def float32_keeps_small_distances_among_large_ones(loss: Any, case: Batch) -> None:
    """With one long embedding, or two distant clusters, and no normalization, float32 agrees with float64."""
    for power in (1, 2):
        far = with_attributes(loss, distance=LpDistance(normalize_embeddings=False, power=power))
        for name, layout in _LAYOUTS.items():
            embeddings = layout(case).float()
            actual = evaluate(far, embeddings, case.labels)
            expected = evaluate(by_autograd(far), embeddings.double(), case.labels)
            what = f"{name}, distances to the power of {power}"
            # Distances have a relative error of 1e-6 or so; steep losses scale it.
            assert_close(actual.value, expected.value, what, 1e-3)
            assert_close(
                actual.gradient / _size(expected.gradient), expected.gradient / _size(expected.gradient), what, 1e-2
            )


def _size(gradient: Tensor) -> Tensor:
    return gradient.abs().max().clamp(min=torch.finfo(torch.float32).tiny)


@law("miner", "once", is_ours_and_repeatable, as_shipped_only=True)
def float32_keeps_small_distances_among_large_ones_of_a_miner(miner: Any, case: Batch) -> None:
    """With one long embedding, or two distant clusters, and no normalization, float32 mines the same pairs."""
    far = with_attributes(miner, distance=LpDistance(normalize_embeddings=False))
    for name, layout in _LAYOUTS.items():
        embeddings = layout(case).float()
        found, expected = (pairs_of(mine(far, x, case.labels)) for x in (embeddings, embeddings.double()))
        assert found == expected, f"other pairs than in float64: {name}"


@law("miner", "once")
def every_dtype_of_labels_will_do_to_mine(miner: Any, case: Batch) -> None:
    """Labels of any integer or floating dtype or bool give the same pairs as int64."""
    for labels, dtypes in ((case.labels, OTHERS), ((case.labels > 0).long(), (torch.bool,))):
        expected = pairs_of(mine(miner, case.embeddings, labels))
        for dtype in dtypes:
            try:
                found = pairs_of(mine(miner, case.embeddings, labels.to(dtype)))
            except Exception as error:
                raise AssertionError(f"labels of {dtype}: {error}") from error
            assert found == expected, f"other pairs with labels of {dtype}"


@law("miner", "once")
def every_default_device_will_do_to_mine(miner: Any, case: Batch) -> None:
    """With another default device, the same pairs are mined."""
    expected = pairs_of(mine(miner, case.embeddings, case.labels))
    with torch.device("meta"):
        found = pairs_of(mine(miner, case.embeddings, case.labels))
    assert found == expected, "other pairs under another default device"
