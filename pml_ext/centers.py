"""Sources of class centers: the batch, its clusters, a running mean, or parameters.

Every source is a module called with embeddings [n, d] and labels [n] that returns `Centers`. Its state is in buffers
and parameters, so it is in the `state_dict` of the loss that holds it, and follows its `.to(device)`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pml_ext import arguments, thresholds
from pml_ext.gathered_positives import as_array
from pml_ext.kmeans import kmeans
from pml_ext.masked import all_known, is_eager, looks_are_free
from pml_ext.similarity import unit

__all__ = [
    "BatchCenters",
    "CenterSource",
    "Centers",
    "GroupCenters",
    "KMeansCenters",
    "LearnedCenters",
    "RunningCenters",
]


class Centers(NamedTuple):
    """Class centers, with the class of each center and the center of each sample.

    Args:
        points: [c, d], the centers; a class may have several.
        labels: [c], the class of each.
        group: [n], the index of each sample's own center, -1 if it has none.
        used: None, or a mask [c] of the rows that are centers; the other rows repeat one of them, so that shapes need
            not depend on the data.
    """

    points: Tensor
    labels: Tensor
    group: Tensor
    used: Tensor | None = None

    def compact(self) -> "Centers":
        """The same centers without repetitions."""
        if self.used is None:
            return self
        number = self.used.cumsum(0) - 1
        group = torch.where(self.group >= 0, number[self.group], -1)
        rows = self.used.nonzero().squeeze(1)
        return Centers(self.points.index_select(0, rows), self.labels[rows], group)


class CenterSource(nn.Module, ABC):
    """A source of class centers. Subclasses implement `forward`.

    Attributes:
        of_batch: whether each center is the mean of the samples of the batch that belong to it.
    """

    of_batch: ClassVar[bool] = False

    @abstractmethod
    def forward(self, embeddings: Tensor, labels: Tensor) -> Centers:
        """The centers for a batch: embeddings [n, d], labels [n]."""


class GroupCenters(CenterSource):
    """The means of groups of samples of the batch. Subclasses implement `groups`, which may also be fixed.

    Samples of different classes are never in one group. There is one row for each sample, the mean of its group; the
    row of the first sample of each group is used. So groups need not be counted, which would wait for the device.

    Args:
        detach: whether to treat the centers as constants, so that no gradient flows through them. Default False.

    Example:
        >>> class ThirdSampleApart(GroupCenters):
        ...     def groups(self, embeddings, labels):
        ...         return torch.tensor([0, 0, 1])
        >>> centers = ThirdSampleApart()(torch.tensor([[0.0, 0.0], [2.0, 0.0], [5.0, 5.0]]), torch.tensor([4, 4, 4]))
        >>> centers.points[centers.used]
        tensor([[1., 0.],
                [5., 5.]])
        >>> centers.used, centers.group
        (tensor([ True, False,  True]), tensor([0, 0, 2]))
    """

    of_batch: ClassVar[bool] = True

    def __init__(self, *, detach: bool = False) -> None:
        super().__init__()
        self.detach: bool = arguments.flag("detach", detach)

    @abstractmethod
    def groups(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The group of each sample, any integers [n]; they need not differ between classes."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Centers:
        """The means of the groups of the batch."""
        group = first_of_class(labels, self.groups(embeddings, labels).to(labels.device))
        means = group_means(embeddings.detach() if self.detach else embeddings, group, len(labels))
        # Its gradient adds up rows in their order; that of indexing sorts them first.
        points = means.index_select(0, group)
        return Centers(points, labels, group, group == torch.arange(len(labels), device=labels.device))


@final
class BatchCenters(GroupCenters):
    """The mean of each class in the batch.

        c_k = 1/n_k  sum_{i: y_i = k} x_i ,   n_k = the number of samples of class k

    Args:
        detach: whether to treat the centers as constants, so that no gradient flows through them. Default False.

    Example:
        >>> centers = BatchCenters()(torch.tensor([[0.0, 0.0], [5.0, 5.0], [2.0, 0.0]]), torch.tensor([7, 3, 7]))
        >>> centers.compact()
        Centers(points=tensor([[1., 0.], [5., 5.]]), labels=tensor([7, 3]), group=tensor([0, 1, 0]), used=None)
    """

    def groups(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """One group for each class."""
        return torch.zeros_like(labels, dtype=torch.long)


@final
class KMeansCenters(GroupCenters):
    r"""The means of clusters of the batch, computed in every call by seeded k-means.

    By default all samples are clustered at once, by embedding and class: k-means runs on [x_i, w onehot(y_i)], and a
    group is the intersection of a class and a cluster. The center of group g, which has n_g samples, is

        c_g = 1/n_g  sum_{i in g} x_i

    Args:
        n_clusters: the number of clusters of the batch, or of each class with `per_class`, at least 1; fewer if there
            are fewer different samples.
        label_weight: the w above, at least 0: two classes are sqrt(2) w apart. It has no effect with `per_class`.
        per_class: whether to cluster each class separately. Default False.
        detach: whether to treat the centers as constants. The assignment to clusters always is constant. Default False.
        seed: seed of the k-means++ initialization.
        max_iterations: the largest number of k-means iterations; on a GPU, exactly this number. After 10 iterations the
            sum of squares is within 0.1 % of its final value.

    The clusters are computed on the device of the embeddings. On a GPU this needs no synchronization, except with
    `per_class`, where the sizes of the classes are read.

    Example:
        >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.0], [0.0, 1.0], [0.0, 0.9]])
        >>> KMeansCenters(n_clusters=2)(embeddings, torch.tensor([0, 0, 0, 1])).compact().labels
        tensor([0, 0, 1])
    """

    def __init__(
        self,
        *,
        n_clusters: int = 16,
        label_weight: float = 0.5,
        per_class: bool = False,
        detach: bool = False,
        seed: int = 0,
        max_iterations: int = 10,
    ) -> None:
        super().__init__(detach=detach)
        self.n_clusters: int = arguments.count("n_clusters", n_clusters)
        self.label_weight: float = arguments.non_negative("label_weight", label_weight)
        self.per_class: bool = arguments.flag("per_class", per_class)
        self.seed: int = arguments.seed("seed", seed)
        self.max_iterations: int = arguments.count("max_iterations", max_iterations)

    def groups(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The cluster of each sample."""
        # torch.compile takes it for one operation: it neither makes generators nor waits for the sizes of classes.
        clusters = torch.ops.pml_ext.clusters if torch.compiler.is_compiling() else clusters_of
        how = self.n_clusters, float(self.label_weight), self.per_class, self.seed, self.max_iterations
        found: Tensor = clusters(embeddings.detach(), labels, *how)
        return found


def clusters_of(
    embeddings: Tensor,
    labels: Tensor,
    n_clusters: int,
    label_weight: float,
    per_class: bool,
    seed: int,
    max_iterations: int,
) -> Tensor:
    """The cluster of each sample of a batch [n], as `KMeansCenters` says."""

    def clusters(points: Tensor, present: Tensor, classes: Tensor | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        how: dict[str, Any] = {"class_weight": label_weight, "max_iterations": max_iterations}
        return kmeans(points, present, n_clusters, generator=generator, classes=classes, **how)

    with torch.no_grad():
        if not per_class:
            present = torch.ones_like(labels, dtype=torch.bool).unsqueeze(0)
            return clusters(embeddings.unsqueeze(0), present, first_of_class(labels).unsqueeze(0)).squeeze(0)
        found = torch.zeros_like(labels, dtype=torch.long)
        for members, present in _classes(labels):
            found[members[present]] = clusters(embeddings[members], present)[present]
        return found


@torch.library.custom_op("pml_ext::clusters", mutates_args=())
def _clusters(
    embeddings: Tensor,
    labels: Tensor,
    n_clusters: int,
    label_weight: float,
    per_class: bool,
    seed: int,
    max_iterations: int,
) -> Tensor:
    return clusters_of(embeddings, labels, n_clusters, label_weight, per_class, seed, max_iterations).clone()


@_clusters.register_fake
def _clusters_without_values(embeddings: Tensor, labels: Tensor, *how: Any) -> Tensor:
    return torch.empty_like(labels, dtype=torch.long)


@final
class RunningCenters(CenterSource):
    r"""One center for each class, which follows the samples of its class from batch to batch.

    After each call in training mode, with n_k samples x_i of class k in the batch:

        c_k <- c_k - alpha / (1 + n_k)  sum_{i: y_i = k} (c_k - x_i)

    The centers returned are those before this step, and constants. They start at zero. A sample that is not finite is
    left out. In several processes the sums and counts are those of all processes, so that their centers stay equal.

    Args:
        num_classes: the number of classes; labels are in 0..num_classes - 1.
        embedding_size: the dimension of the embeddings.
        alpha: the rate at which the centers follow, in (0, 1].
        all_reduce: whether to sum over the processes of `torch.distributed`, if there are any. None (default) for yes,
            unless each process was given the samples of all, as by PML's `DistributedLossWrapper`; this is detected in
            each step from the sums of each class.

    Raises:
        ValueError: an argument or a label is out of range. On a GPU the labels are checked without a synchronization,
            by an assertion on the device.

    Example:
        >>> source = RunningCenters(num_classes=2, embedding_size=2, alpha=0.5)
        >>> _ = source(torch.tensor([[1.0, 0.0], [0.5, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> source.centers
        tensor([[0.2500, 0.0000],
                [0.0000, 0.2500]])
    """

    centers: Tensor

    def __init__(
        self, num_classes: int, embedding_size: int, *, alpha: float = 0.5, all_reduce: bool | None = None
    ) -> None:
        super().__init__()
        num_classes = arguments.count("num_classes", num_classes)
        embedding_size = arguments.count("embedding_size", embedding_size)
        self.alpha: float = arguments.positive("alpha", alpha)
        if self.alpha > 1:
            raise ValueError(f"alpha must be at most 1, got {alpha!r}")
        self.all_reduce: bool | None = all_reduce if all_reduce is None else arguments.flag("all_reduce", all_reduce)
        self.register_buffer("centers", torch.zeros(num_classes, embedding_size))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Centers:
        """The centers of all classes, as they were before this batch."""
        labels = _class_numbers(labels, len(self.centers))
        _check_dimension(embeddings, self.centers)
        before = self.centers
        if self.training:
            self._follow(embeddings, labels)
        return Centers(before, torch.arange(len(before), device=before.device), labels)

    def _follow(self, embeddings: Tensor, labels: Tensor) -> None:
        # What is made in inference mode could not be saved for a backward pass later.
        with torch.inference_mode(False), torch.no_grad():
            # The last column counts.
            samples = F.pad(embeddings.to(self.centers.dtype), (0, 1), value=1.0)
            if not all_known(samples):
                samples = torch.where(samples.isfinite().all(1, keepdim=True), samples, 0.0)
            sums = samples.new_zeros(len(self.centers), samples.shape[1]).index_add(0, labels, samples)
            if self.all_reduce is not False and dist.is_available() and dist.is_initialized():
                sums = _of_all_processes(sums, samples, may_be_alike=self.all_reduce is None)
            sums, counts = sums[:, :-1], sums[:, -1:]
            moved = self.centers - self.alpha * (counts * self.centers - sums) / (1 + counts)
            # A new tensor: compiled, the backward pass would see a tensor that was written to as it is then.
            self.centers = moved if all_known(moved) else torch.where(moved.isfinite(), moved, self.centers)


def _of_all_processes(sums: Tensor, samples: Tensor, *, may_be_alike: bool) -> Tensor:
    """The sums [c, d] over the samples [n, d] of all processes, which may be the same in each: then they count once."""
    total, number = sums.clone(), dist.get_world_size()
    dist.all_reduce(total)
    if not may_be_alike:
        return total
    # The samples come in another order in each process, which the sums show in their last digits.
    rounding = 1e-4 * samples.abs().sum(0)
    alike = ((total - number * sums).abs() <= number * rounding).all().to(sums.dtype)
    dist.all_reduce(alike, dist.ReduceOp.MIN)
    return total / torch.where(alike > 0, number, 1)


@final
class LearnedCenters(CenterSource):
    """One or several centers for each class, learned by gradient descent.

    They are parameters of the loss that holds this source, so the loss needs an optimizer. If a class has several
    centers, a sample's own center is the nearest of its class.

    Args:
        num_classes: the number of classes; labels are in 0..num_classes - 1.
        embedding_size: the dimension of the embeddings.
        centers_per_class: how many centers a class has, at least 1.
        normalize: whether to normalize the centers to unit length in every call. Only the direction of the parameter
            then matters: an optimizer may let its length grow, which slows learning down and has no other effect.

    Raises:
        ValueError: an argument or a label is out of range. On a GPU the labels are checked without a synchronization,
            by an assertion on the device.

    Example:
        >>> source = LearnedCenters(num_classes=3, embedding_size=8, centers_per_class=2)
        >>> centers = source(torch.randn(5, 8), torch.tensor([0, 0, 1, 2, 2]))
        >>> centers.points.shape, centers.labels
        (torch.Size([6, 8]), tensor([0, 0, 1, 1, 2, 2]))
    """

    def __init__(
        self, num_classes: int, embedding_size: int, *, centers_per_class: int = 1, normalize: bool = True
    ) -> None:
        super().__init__()
        self.num_classes: int = arguments.count("num_classes", num_classes)
        embedding_size = arguments.count("embedding_size", embedding_size)
        self.centers_per_class: int = arguments.count("centers_per_class", centers_per_class)
        self.normalize: bool = arguments.flag("normalize", normalize)
        # Directions are uniformly distributed: not in the positive orthant only, as uniform coordinates are.
        self.centers: nn.Parameter = nn.Parameter(
            F.normalize(torch.randn(self.num_classes * self.centers_per_class, embedding_size))
        )

    def forward(self, embeddings: Tensor, labels: Tensor) -> Centers:
        """The centers of all classes, class by class."""
        numbers = _class_numbers(labels, self.num_classes)
        _check_dimension(embeddings, self.centers)
        points, group = unit(self.centers) if self.normalize else self.centers, numbers
        if self.centers_per_class > 1:
            with torch.no_grad():
                known = points.to(embeddings.dtype)
                half_squares = known.square().sum(-1).div(2).view(self.num_classes, -1)[numbers]
                # One of each class at a time: all of them would be an [n, per class, d] of their own.
                of_class = known.view(self.num_classes, self.centers_per_class, -1).unbind(1)
                products = [torch.linalg.vecdot(each.index_select(0, numbers), embeddings) for each in of_class]
                nearest = (half_squares - torch.stack(products, 1)).argmin(-1)
            group = numbers * self.centers_per_class + nearest
        classes = torch.arange(self.num_classes, device=points.device)
        return Centers(points, classes.repeat_interleave(self.centers_per_class), group)


def first_of_class(labels: Tensor, groups: Tensor | None = None) -> Tensor:
    """The number of the first sample of each sample's class, [n], or of its class and group."""
    keys = [labels] if groups is None else [labels, groups]
    if all(looks_are_free(key) for key in keys):
        return torch.from_numpy(_first_alike([as_array(key) for key in keys]))
    order = torch.arange(len(labels), device=labels.device)
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    differs = torch.zeros_like(order[1:], dtype=torch.bool)
    for key in keys:
        ordered = key[order]
        differs = differs | (ordered[1:] != ordered[:-1])
    place = torch.arange(len(labels), device=labels.device)
    begins = torch.ones_like(place, dtype=torch.bool)
    begins[1:] = differs
    start = torch.where(begins, place, 0).cummax(0).values
    return torch.empty_like(order).scatter_(0, order, order[start])


def _first_alike(keys: list[Any]) -> Any:
    """The same by numpy, whose calls take a fifth of the time."""
    order = np.lexsort(keys[::-1])
    begins = np.ones(len(order), dtype=bool)
    begins[1:] = np.logical_or.reduce([key[order[1:]] != key[order[:-1]] for key in keys])
    start = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
    first = np.empty_like(order)
    first[order] = order[start]
    return first


def _classes(labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples of each class: their numbers [classes, size], and where there are so many.

    Classes of a similar size come together: the padding is at most a few times as large as what is padded.
    """
    _, sizes = (ordered := labels.sort(stable=True)).values.unique_consecutive(return_counts=True)
    first = sizes.cumsum(0) - sizes
    level = torch.bucketize(sizes, thresholds.CLASS_SIZE_RATIO ** torch.arange(1, 16, device=sizes.device))
    for each in level.unique().tolist():
        size, start = sizes[level == each].unsqueeze(1), first[level == each].unsqueeze(1)
        place = torch.arange(int(size.max()), device=sizes.device)
        present = place < size
        yield ordered.indices[start + place * present], present


def group_means(embeddings: Tensor, group: Tensor, size: int) -> Tensor:
    """The mean of the embeddings [n, d] of each group 0..size - 1, by group [n]: [size, d], 0 for an empty one."""
    sums = embeddings.new_zeros(size, embeddings.shape[1]).index_add(0, group, embeddings)
    return sums / group_sizes(group, size).clamp(min=1).unsqueeze(-1)


def group_sizes(group: Tensor, size: int) -> Tensor:
    """How many samples each group 0..size - 1 has, by group [n]: integers [size]."""
    return torch.zeros(size, dtype=torch.long, device=group.device).index_add(0, group, torch.ones_like(group))


def leave_one_out(embeddings: Tensor, centers: Centers) -> tuple[Tensor, Tensor]:
    """For each sample the mean of its group without it [n, d], and whether there is one [n]; 0 if not.

    `centers` are means of groups of these embeddings; constants if those are.
    """
    if not centers.points.requires_grad:
        embeddings = embeddings.detach()
    size = group_sizes(centers.group, len(centers.points))[centers.group]
    share = torch.where(size > 1, 1 / (size - 1).clamp(min=1).to(embeddings.dtype), 0.0).unsqueeze(-1)
    others = _Others.apply if is_eager() else _others
    return others(embeddings, centers.group, share, len(centers.points)), size > 1


def _others(x: Tensor, group: Tensor, share: Tensor, number: int) -> Tensor:
    """The sum of the others of each one's group [n, d] times its share [n, 1], which is the same in a group."""
    sums = x.new_zeros(number, x.shape[1]).index_add(0, group, x)
    return (sums.index_select(0, group) - x) * share


class _Others(torch.autograd.Function):
    """The same map is also its own adjoint, so it is its gradient, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Tensor, share: Tensor, number: int) -> Tensor:
        ctx.save_for_backward(group, share)
        ctx.number = number
        return _others(x, group, share, number)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Others.apply(grad, *ctx.saved_tensors, ctx.number), None, None, None


def _class_numbers(labels: Tensor, num_classes: int) -> Tensor:
    """The labels as indices, after a check: whole numbers of any dtype."""
    numbers = labels.long()  # not every unsigned dtype can be compared
    valid = (numbers >= 0) & (numbers < num_classes)
    if labels.is_floating_point():
        valid &= numbers == labels
    arguments.holds(valid, f"labels must be whole numbers in 0..{num_classes - 1}, those of the classes", labels)
    return numbers


def _check_dimension(embeddings: Tensor, centers: Tensor) -> None:
    if embeddings.shape[1] != centers.shape[1]:
        raise ValueError(f"embeddings have dimension {embeddings.shape[1]}, the centers {centers.shape[1]}")
