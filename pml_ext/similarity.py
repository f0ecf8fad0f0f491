"""How scores come from vectors, from a PML distance, or not at all.

`Similarity.of` a PML distance is what the engine knows of it, and None for a distance that has to be asked.
"""

from abc import ABC
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.distances import (
    CosineSimilarity,
    DotProductSimilarity,
    LpDistance,
    SNRDistance,
)
from torch import Tensor

from pml_ext import _pml, arguments, thresholds
from pml_ext.hyperparameters import Configured
from pml_ext.masked import is_eager, looks_are_free, not_self
from pml_ext.vectors import (
    LARGEST,
    NOTHING,
    at_least_single,
    in_full,
    normalize,
    origin_of,
    unit_vectors,
    with_direction,
    without_autocast,
)

_is_enabled = True


@contextmanager
def disabled() -> Iterator[None]:
    """Until the end of the block, losses and miners of all threads compute by ordinary operations and autograd.

    Values and gradients are the same up to rounding: for tests, and to find out where a difference comes from.

    Example:
        >>> from pml_ext import engine
        >>> with engine.disabled():
        ...     engine.is_enabled()
        False
    """
    global _is_enabled
    before, _is_enabled = _is_enabled, False
    try:
        yield
    finally:
        _is_enabled = before


def is_enabled() -> bool:
    """Whether no `disabled` block is being run."""
    return _is_enabled


class Similarity(NamedTuple):
    """How scores come from embeddings: <a, r>, or -|a - r|^power, of embeddings normalized or as they are."""

    normalize: bool
    euclidean: bool
    power: int

    @staticmethod
    def of(distance: Any) -> "Similarity | None":
        """How the engine computes the scores of a PML distance, or None for a distance that it does not know.

        A distance that somebody listens to (a hook, statistics) is called as PML calls it, as is any while the engine
        is disabled.
        """
        if not _is_enabled:
            return None
        if distance._forward_hooks or distance._forward_pre_hooks or distance.collect_stats or distance.p != 2:
            return None
        kind = type(distance)
        if kind in (CosineSimilarity, DotProductSimilarity) and distance.power == 1:
            return Similarity(distance.normalize_embeddings, euclidean=False, power=1)
        if kind is LpDistance and distance.power in (1, 2):
            return Similarity(distance.normalize_embeddings, euclidean=True, power=distance.power)
        return None

    @property
    def is_centered(self) -> bool:
        """Whether scores are computed about an origin, and small distances once more.

        Squares of unit vectors' distances are exact enough as they are: nothing is divided by them, and a
        normalization removes the share that a vector has in its own gradient by itself.
        """
        return self.euclidean and not (self.normalize and self.power == 2)


def has_own_shapes(distance: Any) -> bool:
    """Whether a PML distance says itself which embeddings it takes: several vectors for each sample, say."""
    return _pml.has_own(distance, "check_shapes")


def unit(x: Tensor) -> Tensor:
    """Vectors [n, d] of unit length in at least single precision. One that is 0 stays 0, and has a gradient of 0."""
    return unit_vectors(x) if is_eager() and is_enabled() else normalize(x)


def normalized(distance: Any, x: Tensor) -> Tensor:
    """Vectors [n, d] as a PML distance normalizes them; one that is 0 has a gradient of 0."""
    if not _pml.has_own(distance, "normalize"):
        return unit(x) if distance.p == 2 else normalize(x, distance.p)
    by_distance: Tensor = distance.normalize(x)
    return by_distance


def normalizable(distance: Any, x: Tensor | None) -> Any:
    """Vectors [n, d] for a PML distance, which may normalize them: one that is 0 has a gradient of 0 then."""
    is_usual = distance.normalize_embeddings and not _pml.has_own(distance, "normalize")
    return with_direction(x, distance.p) if is_usual and x is not None and x.ndim == 2 else x


def scores_by(distance: Any, x: Tensor, ref: Tensor | None) -> Tensor:
    """The scores [n, m] by a PML distance, larger is closer, not a number where none can be told from an absent pair's.

    By operations that autograd follows.
    """
    similarity = Similarity.of(distance)
    if similarity is not None:
        return scores_of(x, ref, similarity)
    dtype = x.dtype
    if type(distance) is LpDistance and distance.p == 2 and x.device.type == "cpu" and is_eager() and is_enabled():
        # Somebody listens. In single precision torch.cdist loses small distances.
        x, ref = x.double(), None if ref is None else ref.double()
    if isinstance(distance, SNRDistance):
        _has_signal(distance, x)
    matrix = _safe_power(distance, normalizable(distance, x), normalizable(distance, ref))
    return representable(matrix if distance.is_inverted else -matrix).to(dtype)


def _safe_power(distance: Any, x: Any, ref: Any) -> Tensor:
    """The matrix of a PML distance. Its power has a gradient of 0 at 0, where below 1 it has none."""
    if not (type(distance) is LpDistance and 0 < distance.power < 1):
        matrix: Tensor = distance(x, ref)
        return matrix
    matrix = _pml.with_facts(distance, power=1)(x, ref)
    is_some = matrix.detach() != 0
    return torch.where(is_some, torch.where(is_some, matrix, 1.0) ** distance.power, 0.0)


def _has_signal(distance: Any, x: Tensor) -> None:
    variance = normalized(distance, x.detach()).var(1) if distance.normalize_embeddings else x.detach().var(1)
    message = "SNRDistance divides by the variance of an embedding, and {} has none: all its numbers are equal"
    which = "one of the batch"
    if looks_are_free(x) and bool((variance == 0).any()):
        which = f"embedding {int((variance == 0).nonzero()[0])}"
    arguments.holds(variance != 0, message.format(which))


def scores_of(x: Tensor, ref: Tensor | None, similarity: Similarity) -> Tensor:
    """The scores of all pairs by operations that autograd follows, any number of times: [n, d], [m, d] -> [n, m].

    What the engine computes, for a derivative of its derivative, function transforms and graphs.
    """
    base_a = normalize(x) if similarity.normalize else x
    base_r = base_a if ref is None else normalize(ref) if similarity.normalize else ref
    a, r = base_a, base_r
    if similarity.is_centered and len(r):
        origin = origin_of(r)
        a, r = a - origin, r - origin
    products = a @ r.t()
    if not similarity.euclidean:
        return representable(products)
    squares = (a.square().sum(1, keepdim=True) + r.square().sum(1)) / 2
    half = squares - products  # D^2 / 2
    with torch.no_grad():
        looks = similarity.is_centered and looks_are_free(half)
        roundings = thresholds.NEAR_ROUNDINGS if looks else NOTHING
        near = half <= roundings * torch.finfo(half.dtype).eps * squares
        if ref is None:
            near.diagonal().fill_(True)
    if similarity.power == 2:
        scores = torch.where(near, 0.0, -2 * half) if looks else -2 * half.clamp_min(0)
    else:
        scores = -torch.where(near, 0.0, (2 * torch.where(near, 1.0, half)).sqrt())
    if looks:
        rows, columns = (near & not_self(0, len(near), len(near), near.device) if ref is None else near).nonzero(
            as_tuple=True
        )
        if len(rows):
            again = _safe_length(base_a[rows] - base_r[columns]) ** similarity.power
            scores = scores.index_put((rows, columns), -again)
    return representable(scores)


def _safe_length(x: Tensor) -> Tensor:
    """The lengths [n] of vectors [n, d], with all derivatives 0 at 0."""
    square = x.square().sum(1)
    is_some = square.detach() > 0
    return torch.where(is_some, torch.where(is_some, square, 1.0).sqrt(), 0.0)


def representable(scores: Tensor) -> Tensor:
    """The scores, not a number where they are as large as those of absent pairs, or infinite."""
    if looks_are_free(scores) and scores.numel():
        least, greatest = scores.detach().aminmax()
        if least > -LARGEST and greatest < LARGEST:
            return scores
    # A factor, so that the gradient is none, either.
    return scores * torch.where(scores.detach().abs() < LARGEST, 1.0, torch.nan)


class PairModule(Configured, ABC):
    """What losses and miners share: hyperparameters and the matrix of scores."""

    _given: Tensor | None = None  # the scores, for the time of a call

    @contextmanager
    def given(self, mat: Any, embeddings: Tensor, ref_emb: Tensor | None) -> Iterator[None]:
        """Until the end of the block, the scores are those of a matrix that the distance has made."""
        self._given = self.scores_of_matrix(mat, len(embeddings), len(embeddings if ref_emb is None else ref_emb))
        try:
            yield
        finally:
            self._given = None

    def scores_of_matrix(self, mat: Any, n: int, m: int) -> Tensor:
        """Scores [n, m], larger is closer, of a matrix that the distance has made."""
        if not isinstance(mat, Tensor) or not mat.is_floating_point() or mat.shape != (n, m):
            kind = f"{mat.dtype} of shape {tuple(mat.shape)}" if isinstance(mat, Tensor) else type(mat).__name__
            raise ValueError(
                f"mat must be the matrix of the distance between embeddings and references, {(n, m)}, got {kind}"
            )
        mat = at_least_single(mat)
        return representable(mat if self.distance.is_inverted else -mat)

    def known_similarity(self) -> Similarity | None:
        """How the engine computes the scores, or None if it cannot: they are of one's own making, say."""
        usual = type(self).similarity is PairModule.similarity and is_eager() and self._given is None
        return Similarity.of(self.distance) if usual else None

    def similarity(self, embeddings: Tensor, ref_emb: Tensor | None) -> Tensor:
        """Scores [n, m], larger is closer; None for the references means the embeddings themselves.

        Half precision is computed in float32, also under autocast: exponents follow, and PML's `LpDistance` would
        build n * m * d numbers for float16. A distance that the engine knows is not asked, for it has no second
        derivative, and no small distances far from the origin. Scores that are given are not computed.
        """
        if self._given is not None:
            return self._given
        embeddings, ref_emb = in_full(embeddings, ref_emb)
        with without_autocast(embeddings):
            return scores_by(self.distance, embeddings, ref_emb)
