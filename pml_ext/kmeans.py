"""k-means of many small sets of points at once, or of a large one: k-means++, then Lloyd's iterations.

A center is a mean of points, so it is written as weights [b, k, s] of them, and all that is asked of points are their
distances: those of a few points are known beforehand, and no iteration sees a coordinate.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from pml_ext import thresholds
from pml_ext.masked import looks_are_free


def kmeans(
    points: Tensor,
    present: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    classes: Tensor | None = None,
    class_weight: float = 0.0,
    max_iterations: int = 10,
) -> Tensor:
    r"""The cluster of each point, from 0 to k - 1: each set of points for itself.

        minimize  sum_i |x_i - m_{a_i}|^2,  m_j the mean of the points with a_i = j

    Centers are drawn by k-means++: the first of all points alike, the next with a probability proportional to the
    squared distance to the nearest center that there is. Then, in turn, each point goes to its nearest center, the
    first of equals, and each center to the mean of its points; one without points stays. This ends when no point goes
    elsewhere. All sets use the same random numbers, so what a set gives does not depend on the others.

    Args:
        points: the sets, [b, s, d], finite; float16 and bfloat16 are computed in float32.
        present: which points there are, [b, s]. Where the others stand has no influence, nor what stands there.
        k: how many clusters, at least 1; fewer if there are fewer different points. Points are different if their
            distance is above about 2e-3 of that to the mean of their set in float32, 1e-7 in float64.
        generator: of the CPU. It gives the same clusters on each device, up to rounding.
        classes: of the points, numbers 0..s - 1 [b, s]. With them, points are [x_i, class_weight onehot(classes_i)].
        class_weight: two classes are sqrt(2) class_weight apart.
        max_iterations: how often points are assigned at most, at least 1.

    Shape:
        points [b, s, d], present [b, s] -> integers [b, s], any of 0..k - 1 where no point is.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0], [9.0], [8.0]], [[5.0], [9.0], [5.0], [0.0]]])
        >>> present = torch.tensor([[True, True, True, True], [True, True, True, False]])
        >>> kmeans(points, present, 2, generator=torch.Generator().manual_seed(0))[present]
        tensor([1, 1, 0, 0, 0, 1, 0])
    """
    if points.shape[1] == 0:
        return torch.zeros_like(present, dtype=torch.long)
    k = min(k, points.shape[1])
    # The distances of half precision would be no smaller than their errors.
    with torch.autocast(points.device.type, enabled=False):
        sets = Sets.of(points, present, k, classes, class_weight)
        return lloyd(sets, plus_plus(sets, k, generator), max_iterations)


class Sets(NamedTuple):
    """Sets of points, and their distances. A distance here is half of its square.

    Args:
        points: [b, s, d], about the mean of those of the set: far from the origin their products would lose digits.
        present: 1 for the points that there are, 0 for others, [b, 1, s].
        sizes: distances of the points to that mean, [b, 1, s].
        between: distances between the points, [b, s, s], or None if they are many.
        classes: [b, 1, s], or None.
        class_weight: two classes add its square to a distance.
    """

    points: Tensor
    present: Tensor
    sizes: Tensor
    between: Tensor | None
    classes: Tensor | None
    class_weight: float

    @staticmethod
    def of(points: Tensor, present: Tensor, k: int, classes: Tensor | None, class_weight: float) -> "Sets":
        """The sets of the points [b, s, d] that are present [b, s], for k centers."""
        points = points.to(torch.promote_types(points.dtype, torch.float32))
        points = points.masked_fill(~present.unsqueeze(-1), 0.0)
        mask = present.to(points.dtype).unsqueeze(1)
        points = points - mask @ points / mask.sum(-1, keepdim=True).clamp_(min=1)
        sizes = points.norm(dim=-1).square_().div_(2).unsqueeze(1)
        classes = None if classes is None or class_weight == 0 else classes.unsqueeze(1)
        between = None
        if points.shape[1] <= thresholds.POINTS_PER_CENTER * k:
            between = torch.baddbmm(sizes + sizes.mT, points, points.mT, alpha=-1)
            if classes is not None:
                between.add_(classes != classes.mT, alpha=class_weight**2)
        return Sets(points, mask, sizes, between, classes, class_weight)

    def to_points(self, index: Tensor) -> Tensor:
        """The distances of the points to some of them, by their index [b, 1, m]: [b, m, s]."""
        if self.between is not None:
            return self.between.gather(1, index.mT.expand(-1, -1, self.between.shape[2]))
        some = self.points.gather(1, index.mT.expand(-1, -1, self.points.shape[2]))
        distances = torch.baddbmm(self.sizes + self.sizes.gather(2, index).mT, some, self.points.mT, alpha=-1)
        if self.classes is None:
            return distances
        return distances.add_(self.classes != self.classes.gather(2, index).mT, alpha=self.class_weight**2)

    def to_means(self, weights: Tensor) -> Tensor:
        """The distances of the points to weighted means of them: weights [b, m, s] -> [b, m, s]."""
        if self.between is not None:
            distances = weights @ self.between
            return distances.sub_((weights * distances).sum(-1, keepdim=True), alpha=0.5)
        products = weights @ self.points @ self.points.mT
        if self.classes is not None:
            # What is added up are equal numbers, in any order.
            classes = self.classes.expand_as(weights)
            shares = torch.zeros_like(weights).scatter_add_(2, classes, weights).gather(2, classes)
            products.add_(shares.sub_(1), alpha=self.class_weight**2)
        return self.sizes + (weights * products).sum(-1, keepdim=True) / 2 - products


def plus_plus(sets: Sets, k: int, generator: torch.Generator) -> Tensor:
    """The centers with which k-means++ begins, as weights [b, k, s]: one point each, none where all have been taken."""
    s = sets.points.shape[1]
    # Of exponential times at these rates times w, the first is that of i with probability w_i / sum w: no sum over
    # points, which rounds differently in another order. The r-th point that is present has the r-th numbers.
    times = torch.rand(s, k, generator=generator, dtype=sets.points.dtype, device=generator.device).log_().neg_()
    rank = sets.present.squeeze(1).long().cumsum(-1).sub_(1).clamp_(min=0)
    rates = sets.present / times.t().to(rank.device, non_blocking=True)[:, rank].unsqueeze(2)  # [k, b, 1, s]
    # What rounding leaves of the distance between equal points.
    nothing = rates * sets.sizes * (-32 * torch.finfo(rates.dtype).eps)
    m = min(2 + int(math.log(k)), s)
    nearest = None
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    for rate, offset in zip(rates, nothing, strict=True):
        score = rate if nearest is None else torch.addcmul(offset, rate, nearest)
        best, index = score.topk(m, dim=-1)  # [b, 1, m]
        distances = sets.to_points(index)  # [b, m, s]
        if nearest is not None:
            distances = torch.minimum(distances, nearest)
        inertia = torch.bmm(distances, sets.present.mT).masked_fill_(best.mT <= 0, torch.inf)
        winner = inertia.min(1, keepdim=True).indices  # [b, 1, 1]
        nearest = distances.gather(1, winner.expand_as(score))
        drawn.append((best, index, winner))
    bests, indices, winners = (torch.cat(each, 1) for each in zip(*drawn, strict=True))
    exists = (bests.gather(2, winners) > 0).to(rates.dtype)  # [b, k, 1]
    return rates.new_zeros(len(rank), k, s).scatter_(2, indices.gather(2, winners), exists)


def lloyd(sets: Sets, centers: Tensor, max_iterations: int) -> Tensor:
    """The clusters [b, s] to which Lloyd's iterations lead from centers, weights [b, k, s]; zeros are no center."""
    missing = centers.sum(-1, keepdim=True) == 0

    def nearest() -> Tensor:
        return sets.to_means(centers).masked_fill_(missing, torch.inf).min(1, keepdim=True).indices

    clusters = nearest()
    for _ in range(max_iterations - 1):
        members = torch.zeros_like(centers).scatter_(1, clusters, sets.present)
        size = members.sum(-1, keepdim=True)
        centers = torch.where(size > 0, members / size, centers)
        before, clusters = clusters, nearest()
        if looks_are_free(clusters) and torch.equal(clusters, before):
            break
    return clusters.squeeze(1)
