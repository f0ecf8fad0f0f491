"""What is wrong with given embeddings and labels, for example in a file, without a loss and without a run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pml_ext.analysis import stuck
from pml_ext.analysis.geometry import geometry, pairs_of_classes, possible_rank
from pml_ext.analysis.health import COLLAPSED_SPREAD
from pml_ext.inputs import Array, checked_labels, class_ids, loaded
from pml_ext.shown import preformatted

# The longest embedding, in median lengths: above, a distance that does not normalize sees little else.
UNEVEN = 100.0


@dataclass(frozen=True)
class Diagnosis:
    """Statistics of embeddings and labels, and what is wrong with them. Statistics are over the finite embeddings.

    Args:
        samples: number of embeddings.
        dimension: dimension of the embeddings.
        classes: number of classes.
        norm_mean: mean length.
        norm_max: largest length.
        spread: mean squared distance of the normalized embeddings from their mean, from 0 (all equal) to 1.
        effective_rank: number of dimensions in use, as in `Health`.
        separation: the probability that a positive pair has a larger cosine than a negative one; chance is 1/2.
        repeated: share of the positive pairs with equal embeddings.
        findings: what is wrong, one line each; empty if nothing is.
    """

    samples: int
    dimension: int
    classes: int
    norm_mean: float
    norm_max: float
    spread: float
    effective_rank: float
    separation: float
    repeated: float
    findings: tuple[str, ...]

    def __repr__(self) -> str:
        """A few lines: what is there, its numbers, what is wrong."""
        lines = (
            f"{self.samples} embeddings of {self.dimension} dimensions, {self.classes} classes",
            f"length {self.norm_mean:.4g} on average, {self.norm_max:.4g} at most",
            f"spread {self.spread:.3g} of 1, {self.effective_rank:.1f} dimensions in use",
            f"a positive is closer than a negative in {self.separation:.1%} of the comparisons",
        )
        findings = [f"! {finding}" for finding in self.findings] or ["nothing is wrong with them"]
        return "\n".join((*lines, *findings))

    def _repr_html_(self) -> str:
        return preformatted(repr(self))


def diagnose(embeddings: Array | str | Path, labels: Array | str | Path) -> Diagnosis:
    """Find what is wrong with embeddings: collapse, few dimensions, mixed-up labels, repeated images, NaN.

    Args:
        embeddings: [n, d], a tensor, an array, lists, or a file ``.npy`` of it, in which nothing is executed.
        labels: [n] numbers or strings, or [n, l] rows of them, or a file ``.npy``.

    Returns:
        Statistics and findings, which are shown when printed. For a large set, pairs are those of some anchors with
        all.

    Raises:
        TypeError, ValueError: embeddings or labels of another shape or kind, or a file of another format.

    Example:
        >>> x = torch.eye(4).repeat_interleave(2, 0)
        >>> diagnose(x, [0, 0, 1, 1, 2, 2, 3, 3])
        8 embeddings of 4 dimensions, 4 classes
        length 1 on average, 1 at most
        spread 0.75 of 1, 3.0 dimensions in use
        a positive is closer than a negative in 100.0% of the comparisons
        ! repeated images: 100% of the positive pairs are the same image, from which nothing is learned
    """
    x = torch.as_tensor(loaded("embeddings", embeddings)).detach().to("cpu", torch.float32)
    if x.ndim != 2:
        raise ValueError(f"embeddings must have shape [n, d], got {tuple(x.shape)}")
    (ids,) = class_ids(checked_labels("labels", loaded("labels", labels), len(x)))
    finite = x.isfinite().all(1)
    rows, known = x[finite], ids[finite]
    numbers = geometry(rows) | pairs_of_classes(rows, known)
    rank = possible_rank(len(rows), x.shape[1], known)
    found = (
        _not_finite(finite),
        _classes(ids),
        _lengths(rows),
        *_pairs(numbers, rank, x.shape[1], len(rows)),
    )
    shown = ("norm_mean", "norm_max", "spread", "effective_rank", "separation", "repeated")
    return Diagnosis(
        samples=len(x),
        dimension=x.shape[1],
        classes=len(ids.unique()),
        **{name: numbers[name] for name in shown},
        findings=tuple(line for line in found if line),
    )


def _not_finite(finite: Tensor) -> str:
    if finite.all():
        return ""
    bad = (~finite).nonzero().squeeze(1)
    return (
        f"not finite: {len(bad)} of {len(finite)} embeddings, the first is row {int(bad[0])}; the others are measured"
    )


def _classes(ids: Tensor) -> str:
    if len(ids) == 0:
        return "no embeddings"
    sizes = ids.unique(return_counts=True)[1]
    if len(sizes) == 1:
        return "no negatives: all are of one class"
    alone = int((sizes == 1).sum())
    if alone == len(sizes):
        return "no positives: every class has one sample"
    return f"lonely samples: {alone} of {len(sizes)} classes have one sample, and no positive" if alone else ""


def _lengths(rows: Tensor) -> str:
    if len(rows) == 0:
        return ""
    lengths = rows.norm(dim=1)
    zeros, median, longest = int((lengths == 0).sum()), float(lengths.median()), float(lengths.max())
    if zeros:
        return f"zero vectors: {zeros} of {len(rows)} embeddings are 0 and have no direction"
    return f"uneven lengths: the longest is {longest:.3g}, the median {median:.3g}" if longest > UNEVEN * median else ""


def _pairs(numbers: dict[str, float], rank: int, dimension: int, size: int) -> tuple[str, ...]:
    if size > 1 and numbers["spread"] < COLLAPSED_SPREAD:
        return (f"collapsed: all embeddings point the same way (spread {numbers['spread']:.2g} of 1)",)
    return (
        stuck.mixed([numbers["separation"]]),
        stuck.thin(numbers["effective_rank"], rank, dimension),
        stuck.repeats([numbers["repeated"]]),
    )
