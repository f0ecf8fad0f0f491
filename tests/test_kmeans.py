"""k-means: against scikit-learn from the same centers, against every partition, and by what defines it."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch._subclasses.fake_tensor import FakeTensorMode

from pml_ext import thresholds
from pml_ext.kmeans import Sets, kmeans, lloyd, plus_plus


@pytest.fixture(params=["few", "many"])
def layout(request, monkeypatch):
    """Both ways to compute, whatever the number of points."""
    monkeypatch.setattr(thresholds, "POINTS_PER_CENTER", {"few": 10**6, "many": 0}[request.param])


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def blobs(k, size, d, spread, seed=0):
    return (normal(k, 1, d, seed=seed) + spread * normal(k, size, d, seed=seed + 1)).view(1, k * size, d)


def everywhere(points):
    return torch.ones(points.shape[:2], dtype=torch.bool)


def cluster(points, k, present=None, seed=0, **kwargs):
    present = everywhere(points) if present is None else present
    return kmeans(points, present, k, generator=torch.Generator().manual_seed(seed), **kwargs)


def means(points, clusters):
    """The mean [d] of each cluster of one set, by its number."""
    return {int(c): points[clusters == c].mean(0) for c in clusters.unique()}


def inertia(points, clusters):
    """The sum of squared distances of the points of one set to the means of their clusters."""
    return sum((points[clusters == c] - mean).square().sum().item() for c, mean in means(points, clusters).items())


def partition(clusters):
    """The clusters, by the first of each."""
    clusters = clusters.tolist()
    return [clusters.index(c) for c in clusters]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n", "k", "d"), [(40, 3, 2), (200, 8, 5), (300, 16, 64)])
def test_scikit_learn_from_the_same_centers(layout, n, k, d, seed):
    points = normal(1, n, d, seed=seed) + 3
    sets = Sets.of(points, everywhere(points), k, None, 0.0)
    first = plus_plus(sets, k, torch.Generator().manual_seed(seed))
    theirs = KMeans(k, init=(first[0] @ points[0]).numpy(), n_init=1, tol=0, max_iter=1000).fit(points[0].numpy())
    ours = lloyd(sets, first, 1000)[0]
    assert ours.tolist() == theirs.labels_.tolist()
    assert inertia(points[0], ours) == pytest.approx(theirs.inertia_, rel=1e-10)


def test_it_begins_as_well_as_scikit_learn(layout):
    """Blobs far apart, of which with one candidate for a center half of the seeds miss some, and a cloud."""
    for points, k in ((blobs(16, 8, 32, 0.3)[0], 16), (normal(128, 32), 16)):
        ours = [inertia(points, cluster(points[None], k, seed=seed)[0]) for seed in range(100)]
        theirs = [KMeans(k, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(100)]
        assert sum(ours) < 1.03 * sum(theirs)


@pytest.mark.parametrize("seed", range(3))
def test_the_best_partition_is_found_among_all(layout, seed):
    points = normal(7, 2, seed=seed)
    best = min(inertia(points, torch.tensor(each)) for each in product(range(3), repeat=7))
    found = [inertia(points, cluster(points[None], 3, seed=s)[0]) for s in range(30)]
    assert min(found) == pytest.approx(best, rel=1e-12)


coordinates = st.floats(-5, 5, width=32) | st.sampled_from([0.0, 1.0])


@st.composite
def some_points(draw):
    n, d = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    row = st.lists(coordinates, min_size=d, max_size=d)
    return torch.tensor(draw(st.lists(row, min_size=n, max_size=n)), dtype=torch.float64).unsqueeze(0)


@given(some_points(), st.integers(1, 6), st.integers(0, 3), st.sampled_from([0, 8]))
def test_at_the_end_every_point_is_in_the_cluster_of_its_nearest_mean(points, k, seed, few):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "POINTS_PER_CENTER", few)
        clusters = cluster(points, k, seed=seed, max_iterations=100)[0]
    centers = means(points[0], clusters)
    for point, own in zip(points[0], clusters.tolist(), strict=True):
        distances = {c: (point - mean).square().sum().item() for c, mean in centers.items()}
        assert distances[own] <= min(distances.values()) + 1e-10


@given(some_points(), st.integers(1, 6), st.integers(0, 3))
def test_inertia_never_increases(points, k, seed):
    steps = [inertia(points[0], cluster(points, k, seed=seed, max_iterations=m)[0]) for m in range(1, 8)]
    assert all(after <= before + 1e-10 for before, after in pairwise(steps))


@given(some_points(), st.integers(1, 12), st.integers(0, 3))
def test_few_different_points_have_a_cluster_each(points, k, seed):
    points = points.round()
    different = len(points[0].unique(dim=0))
    clusters = cluster(points, k, seed=seed, max_iterations=100)[0]
    assert clusters.max() < k
    assert len(clusters.unique()) <= min(k, different)
    if different <= k:
        assert inertia(points[0], clusters) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("d", [3, 512])
def test_equal_points_share_a_cluster_in_any_precision(layout, d, dtype):
    """What rounding leaves of the distance of equal points is no distance."""
    points = (normal(5, d) + 2).repeat_interleave(8, 0)[torch.randperm(40, generator=torch.Generator().manual_seed(1))]
    for seed in range(5):
        clusters = cluster(points[None].to(dtype), 8, seed=seed)[0]
        assert inertia(points, clusters) == pytest.approx(0, abs=1e-12)
        assert len(clusters.unique()) == 5


def test_little_is_enough(layout):
    assert cluster(torch.zeros(1, 1, 2), 3).tolist() == [[0]]
    assert cluster(torch.zeros(2, 0, 2), 3).shape == (2, 0)
    assert cluster(torch.zeros(0, 4, 2), 3).shape == (0, 4)
    assert cluster(normal(1, 9, 2), 1).tolist() == [[0] * 9]
    assert len(cluster(torch.full((1, 9, 2), 0.1), 4).unique()) == 1
    assert cluster(normal(2, 9, 2), 4, torch.zeros(2, 9, dtype=torch.bool)).shape == (2, 9)


def test_an_empty_cluster_keeps_its_center(layout):
    """Of two equal centers the first gets all, and leaves; the other then gets what is nearer to it."""
    points = torch.tensor([[[0.0], [1.0], [2.0], [10.0]]])
    sets = Sets.of(points, everywhere(points), 3, None, 0.0)
    first = torch.eye(4)[[0, 0, 3]].unsqueeze(0)
    assert lloyd(sets, first, 1).tolist() == [[0, 0, 0, 2]]
    assert lloyd(sets, first, 9).tolist() == [[1, 0, 0, 2]]


@given(st.integers(0, 100), st.integers(1, 5), st.sampled_from([0, 8]))
def test_padding_has_no_influence(seed, k, few):
    """Neither what stands there, nor where it is, nor how much of it there is; nor do the other sets."""
    generator = torch.Generator().manual_seed(seed)
    points = normal(3, 6, 2, seed=seed)
    padded, present = 100 * normal(3, 11, 2, seed=seed + 1), torch.zeros(3, 11, dtype=torch.bool)
    for row in range(3):
        present[row, torch.randperm(11, generator=generator)[:6]] = True
        padded[row, present[row]] = points[row]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "POINTS_PER_CENTER", few)
        together = cluster(padded, k, present)
        for row in range(3):
            assert torch.equal(together[row, present[row]], cluster(points[row : row + 1], k)[0])


@pytest.mark.parametrize("junk", [1e20, torch.inf, torch.nan])
def test_what_stands_where_no_point_is_has_no_influence(layout, junk):
    points, present = normal(2, 7, 3), torch.arange(7).expand(2, 7) != 3
    other = points.clone()
    other[:, 3] = junk
    assert torch.equal(cluster(points, 3, present)[present], cluster(other, 3, present)[present])


def test_the_seed_decides(layout):
    points = normal(1, 50, 3)
    state = torch.get_rng_state()
    assert torch.equal(cluster(points, 5), cluster(points, 5))
    assert torch.equal(state, torch.get_rng_state())
    assert len({tuple(partition(cluster(points, 5, seed=seed)[0])) for seed in range(10)}) > 1


def test_the_first_center_is_the_better_of_two_drawn_alike(layout):
    points = torch.arange(5.0, dtype=torch.float64).view(1, 5, 1)
    counts = torch.zeros(5)
    for seed in range(2000):
        sets = Sets.of(points, everywhere(points), 1, None, 0.0)
        counts += plus_plus(sets, 1, torch.Generator().manual_seed(seed))[0, 0]
    # The ten pairs of five points, each won by the point nearer to the middle; two are as near in two of them.
    expected = 2000 * torch.tensor([0.5, 2.5, 4, 2.5, 0.5]) / 10
    assert ((counts - expected).square() / expected).sum() < 20


def test_autocast_changes_nothing(layout):
    points = normal(1, 50, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = cluster(points, 5)
    assert torch.equal(found, cluster(points, 5))


def test_far_from_the_origin_float32_is_enough(layout):
    points = blobs(4, 10, 8, 0.2)
    far = (points + 1000).float()
    assert partition(cluster(far, 4)[0]) == partition(cluster(points, 4)[0])


@pytest.mark.parametrize("weight", [0.0, 0.3, 2.0, 1e4])
def test_classes_are_columns(layout, weight):
    points, classes = normal(2, 30, 3), torch.arange(60).view(2, 30) % 7
    columns = torch.cat([points, weight * torch.nn.functional.one_hot(classes)], dim=-1)
    for seed in range(5):
        expected = cluster(columns, 4, seed=seed)
        assert torch.equal(cluster(points, 4, seed=seed, classes=classes, class_weight=weight), expected)


def test_both_ways_agree(monkeypatch):
    points, classes = normal(1, 200, 16), torch.arange(200).unsqueeze(0) % 9
    found = []
    for few in (0, 10**6):
        monkeypatch.setattr(thresholds, "POINTS_PER_CENTER", few)
        found.append(cluster(points, 7, classes=classes, class_weight=0.5))
    assert torch.equal(*found)


def test_nothing_waits_for_the_device(layout):
    """It runs on tensors that have shapes but no values."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        classes = torch.empty(2, 9, dtype=torch.long)
        assert cluster(torch.empty(2, 9, 3), 4, classes=classes, class_weight=1.0).shape == (2, 9)


@pytest.mark.cuda
def test_clusters_on_cuda_are_those_on_cpu(layout):
    points, classes = normal(2, 60, 3), torch.arange(120).view(2, 60) % 7
    expected = cluster(points, 5, classes=classes, class_weight=0.5)
    points, classes = points.cuda(), classes.cuda()
    present = torch.ones_like(classes, dtype=torch.bool)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = cluster(points, 5, present, classes=classes, class_weight=0.5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(found.cpu(), expected)
