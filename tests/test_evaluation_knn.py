"""TorchKNN against sorting, against FaissKNN, and in PML's own calculator."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from of_pml import AccuracyCalculator, FaissKNN

from pml_ext import thresholds
from pml_ext.evaluation import TorchKNN, knn


def brute_force(query, k, reference, ref_includes_query):
    """Return rows of (distance, index), equal distances by index, in Python numbers."""
    return [
        sorted(
            (sum((a - b) ** 2 for a, b in zip(q, r, strict=True)), j)
            for j, r in enumerate(reference)
            if not (ref_includes_query and i == j)
        )[:k]
        for i, q in enumerate(query)
    ]


@st.composite
def searches(draw):
    """Integer coordinates, so that ties are exact; some far from zero, some all the same."""
    d = draw(st.integers(1, 3))
    offset = draw(st.sampled_from([0, 0, 3000]))
    width = draw(st.sampled_from([0, 1, 5]))
    rows = st.lists(st.integers(offset - width, offset + width), min_size=d, max_size=d)
    query = draw(st.lists(rows, min_size=1, max_size=30))
    ref_includes_query = draw(st.booleans())
    reference = draw(st.lists(rows, min_size=1, max_size=30))
    if ref_includes_query:
        reference = query + reference
    k = draw(st.integers(1, len(reference) - ref_includes_query))
    return query, k, reference, ref_includes_query


@given(search=searches(), chunk_size=st.none() | st.integers(1, 7))
def test_equals_brute_force(search, chunk_size):
    query, k, reference, ref_includes_query = search
    distances, indices = TorchKNN(chunk_size)(
        torch.tensor(query).float(), k, torch.tensor(reference).float(), ref_includes_query
    )
    assert distances.dtype == torch.float32
    assert indices.dtype == torch.int64
    expected = brute_force(*search)
    assert indices.tolist() == [[j for _, j in row] for row in expected]
    assert distances.tolist() == [[d for d, _ in row] for row in expected]


@pytest.mark.parametrize("n", [5, 60])  # faiss computes few queries in another way
@pytest.mark.parametrize("k", [1, 7, 59])
@pytest.mark.parametrize("ref_includes_query", [False, True])
@pytest.mark.parametrize("kind", ["random", "integers"])
def test_equals_faiss(n, k, ref_includes_query, kind):
    generator = torch.Generator().manual_seed(0)
    if kind == "random":
        reference = torch.randn(70, 16, generator=generator)
    else:
        reference = torch.randint(-1, 2, (70, 3), generator=generator).float()
    query = reference[:n] if ref_includes_query else reference[:n].flip(1)
    distances, indices = TorchKNN(chunk_size=11)(query, k, reference, ref_includes_query)
    faiss_distances, faiss_indices = FaissKNN()(query, k, reference, ref_includes_query)
    torch.testing.assert_close(distances, faiss_distances, rtol=1e-5, atol=1e-5)
    assert torch.equal(indices, faiss_indices)


def test_in_stock_pml():
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(60, 8, generator=generator), torch.randint(5, (60,), generator=generator)
    kwargs = {"exclude": ("NMI", "AMI"), "device": torch.device("cpu")}
    expected = AccuracyCalculator(**kwargs).get_accuracy(embeddings, labels)
    assert AccuracyCalculator(knn_func=TorchKNN(), **kwargs).get_accuracy(embeddings, labels) == expected


def collapsed(n=200, d=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(d, generator=generator) * 100 + torch.randn(n, d, generator=generator) * 0.1


def wrong_neighbours(indices, embeddings, k):
    """Return 1 where a neighbour is not that of float64, otherwise 0."""
    x = embeddings.double()
    truth = (x[:, None] - x).square().sum(-1).fill_diagonal_(math.inf).topk(k, largest=False).indices
    return (indices != truth).double()


def test_embeddings_close_together_and_far_from_zero():
    embeddings = collapsed()
    assert wrong_neighbours(TorchKNN()(embeddings, 5, embeddings, True)[1], embeddings, 5).mean() == 0
    # Expanding the square without a shift, as faiss does where it uses BLAS, finds noise.
    squares = embeddings.square().sum(1)
    naive = (squares[:, None] + squares - 2 * embeddings @ embeddings.T).fill_diagonal_(math.inf)
    assert wrong_neighbours(naive.topk(5, largest=False).indices, embeddings, 5).mean() > 0.5


def test_one_reference_far_away():
    embeddings = collapsed()
    embeddings[0] = 1e6
    assert wrong_neighbours(TorchKNN()(embeddings, 5, embeddings, True)[1], embeddings, 5)[1:].mean() == 0


def clusters(noise, count=2, size=150, d=24):
    """Clusters far apart, in each of which all pairs are near."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.nn.functional.normalize(torch.randn(count, d, generator=generator))
    return centers.repeat(size, 1) + noise * torch.randn(count * size, d, generator=generator)


@pytest.mark.parametrize("noise", [3e-4, 1e-5, 1e-7])
@pytest.mark.parametrize("count", [2, 4])
def test_near_pairs_of_tight_clusters_are_right_and_few_of_them_cost_a_difference(noise, count, monkeypatch):
    x = clusters(noise, count)
    pairs = []
    slow = knn._by_differences
    monkeypatch.setattr(knn, "_by_differences", lambda q, r, i, j: pairs.append(len(i)) or slow(q, r, i, j))
    distances, indices = TorchKNN()(x, len(x) - 1, x, True)
    truth = (x.double()[:, None] - x.double()).square().sum(-1)
    exact = truth.gather(1, indices)
    # By the expansion where a pair is not near: about 1e-7 of the squared norms, of which it has at least 1e-4.
    torch.testing.assert_close(distances.double(), exact, rtol=2e-3, atol=0)
    near = exact < thresholds.NEAR / 4
    torch.testing.assert_close(distances.double()[near], exact[near], rtol=2e-6, atol=0)
    assert sum(pairs) <= thresholds.NEAR_FEW * len(x) < near.sum() / 2


def test_copies_of_near_vectors_are_equally_far():
    x = clusters(1e-3)
    x = torch.cat([x, x[::3], x[::5]])[torch.randperm(460, generator=torch.Generator().manual_seed(1))]
    distances, indices = TorchKNN()(x, len(x) - 1, x, True)
    whole = torch.full((len(x), len(x)), -1.0).scatter_(1, indices, distances)
    _, which = torch.unique(x, dim=0, return_inverse=True)
    for i in range(0, len(x), 7):
        same = (which == which[i]).nonzero()[:, 0]
        others = (which != which[i]).nonzero()[:, 0]
        assert bool((whole[:, same][others] == whole[:, i][others][:, None]).all()), "to all copies of it"


def test_autocast_and_reduced_precision_change_nothing():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(300, 256, generator=generator)
    expected = TorchKNN()(embeddings, 5, embeddings, True)
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend, precision in zip(backends, ("tf32", "bf16"), strict=True):
            backend.fp32_precision = precision
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert (embeddings @ embeddings.T).dtype == torch.bfloat16
            actual = TorchKNN()(embeddings, 5, embeddings, True)
        assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


@pytest.mark.cuda
def test_cuda_equals_cpu():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randint(-3, 4, (500, 64), generator=generator).float()
    expected = TorchKNN()(embeddings, 20, embeddings, True)
    actual = TorchKNN(chunk_size=64)(embeddings.cuda(), 20, embeddings.cuda(), True)
    assert actual[0].is_cuda
    assert torch.equal(actual[0].cpu(), expected[0])
    assert torch.equal(actual[1].cpu(), expected[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_gradients(dtype):
    embeddings = torch.tensor([[0.0], [1.0], [3.0]], dtype=dtype, requires_grad=True)
    distances, indices = TorchKNN()(embeddings, 1, embeddings, True)
    assert distances.dtype == torch.float32
    assert not distances.requires_grad
    assert (distances.tolist(), indices.tolist()) == ([[1.0], [1.0], [4.0]], [[1], [0], [1]])


def test_duplicates():
    """Copies come first, at a distance that rounding does not make negative."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 33, generator=generator).repeat(3, 1)
    distances, indices = TorchKNN()(embeddings, 10, embeddings, True)
    assert distances.min() >= 0
    assert torch.equal(indices[:, :2].sort(dim=1).values % 40, torch.arange(120)[:, None].expand(-1, 2) % 40)
    assert torch.equal(distances, distances.sort(dim=1).values)


def test_inputs_are_left_alone():
    query, reference = torch.ones(2, 2), torch.arange(6.0).reshape(3, 2)
    TorchKNN()(query, 2, reference)
    assert torch.equal(query, torch.ones(2, 2))
    assert torch.equal(reference, torch.arange(6.0).reshape(3, 2))


def test_no_query():
    distances, indices = TorchKNN()(torch.empty(0, 2), 2, torch.eye(2))
    assert distances.shape == indices.shape == (0, 2)


@pytest.mark.parametrize(
    ("chunk_size", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)]
)
def test_bad_chunk_size(chunk_size, error):
    with pytest.raises(error, match=f"chunk_size must be .*{chunk_size}"):
        TorchKNN(chunk_size)


X = torch.eye(4)


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((X, 0, X), ValueError, "k must be at least 1, got 0"),
        ((X, 1.0, X), TypeError, "k must be an integer, got 1.0"),
        ((X, 5, X), ValueError, "k is 5, but each query has only 4 references"),
        ((X, 4, X, True), ValueError, "k is 4, but each query has only 3 references"),
        ((X, 1, X[:2], True), ValueError, "4 queries and only 2 references"),
        ((X, 1, X[:, :2]), ValueError, r"got shapes \(4, 4\) and \(4, 2\)"),
        ((X[0], 1, X), ValueError, r"got shapes \(4,\) and \(4, 4\)"),
        ((X * math.nan, 1, X), ValueError, "query has 4 rows"),
        ((X, 1, X / X[0, 0] * math.inf), ValueError, "reference has 4 rows"),
        ((X, 1, X * 1e19), ValueError, "reference has 4 rows .* too large"),
    ],
)
def test_bad_input(args, error, message):
    with pytest.raises(error, match=message):
        TorchKNN()(*args)


@given(exponent=st.integers(-60, 56))
def test_scale(exponent):
    """Scaling by a power of two changes no neighbour, nearly as far as float32 reaches."""
    embeddings = torch.tensor([[1.0, 3.0], [-2.0, 5.0], [7.0, -7.0], [-8.0, -1.0], [4.0, 4.0]])
    expected = TorchKNN()(embeddings, 3, embeddings, True)
    scaled = embeddings * 2.0**exponent
    distances, indices = TorchKNN()(scaled, 3, scaled, True)
    assert torch.equal(indices, expected[1])
    assert torch.equal(distances, expected[0] * 4.0**exponent)
