"""Counted ranks and the scores made of them, against sorting and against the nearest-neighbour path."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pml_ext import thresholds, watched
from pml_ext.evaluation import RetrievalAccuracyCalculator, TorchKNN, scores
from pml_ext.evaluation.knn import shifted
from pml_ext.evaluation.ranks import counted_ranks
from pml_ext.evaluation.scores import retrieval_scores
from pml_ext.evaluation.selected import selected_ranks, smallest_values

# Drawn references can begin with the queries by chance.
pytestmark = pytest.mark.filterwarnings("ignore:the references begin with")

CPU = torch.device("cpu")
METRICS = (
    "precision_at_1",
    "r_precision",
    "mean_average_precision_at_r",
    "mean_average_precision",
    "mean_reciprocal_rank",
    *(f"recall_at_{k}" for k in (1, 2, 5, 20)),
)


def brute_force(query, query_labels, reference, reference_labels, ref_includes_query):
    """Return for each query its matches as (rank, whether as close as another reference), in Python numbers."""
    result = []
    for i, (q, label) in enumerate(zip(query, query_labels, strict=True)):
        order = sorted(
            (sum((a - b) ** 2 for a, b in zip(q, r, strict=True)), j)
            for j, r in enumerate(reference)
            if not (ref_includes_query and i == j)
        )
        others = {distance for distance, j in order if reference_labels[j] != label}
        result.append(
            [(rank, distance in others) for rank, (distance, j) in enumerate(order) if reference_labels[j] == label]
        )
    return result


@st.composite
def searches(draw, max_size=40):
    """Integer coordinates, so that ties are exact; some all the same, some far from zero; labels from few to many."""
    d = draw(st.integers(1, 3))
    width, offset = draw(st.sampled_from([0, 1, 5, 100])), draw(st.sampled_from([0, 0, 1000]))
    label = draw(
        st.sampled_from([st.just(0), st.integers(0, 2), st.integers(0, 30), st.sampled_from([0] * 20 + [1, 2])])
    )
    row = st.tuples(st.lists(st.integers(offset - width, offset + width), min_size=d, max_size=d), label)
    query = draw(st.lists(row, min_size=1, max_size=max_size))
    kind = draw(st.sampled_from(["self", "self and more", "gallery"]))
    more = [] if kind == "self" else draw(st.lists(row, min_size=1, max_size=max_size))
    reference = more if kind == "gallery" else query + more
    return (*map(list, zip(*query, strict=True)), *map(list, zip(*reference, strict=True)), kind != "gallery")


def tensors(search):
    query, query_labels, reference, reference_labels, ref_includes_query = search
    return (
        torch.tensor(query).float(),
        torch.tensor(query_labels),
        torch.tensor(reference).float(),
        torch.tensor(reference_labels),
        ref_includes_query,
    )


@given(search=searches(), tile_size=st.integers(1, 50), all_matches=st.booleans())
def test_counted_ranks_equal_sorting(search, tile_size, all_matches):
    query, query_labels, reference, reference_labels, ref_includes_query = tensors(search)
    expected = brute_force(*search)
    rows = torch.tensor([i for i, matches in enumerate(expected) if matches], dtype=torch.long)
    if not len(rows):
        return
    slots = torch.tensor([len(expected[i]) if all_matches else 1 for i in rows])
    # The order of the queries is free.
    shuffled = torch.randperm(len(rows))
    rows, slots = rows[shuffled], slots[shuffled]
    seen = []
    own = rows if ref_includes_query else None
    queries, references = shifted(query[rows], reference)
    for found in counted_ranks(
        queries, query_labels[rows], references, reference_labels, own, slots, tile_size=tile_size
    ):
        for place, ranked, tied in zip(found.rows.tolist(), found.ranks.tolist(), found.tied.tolist(), strict=True):
            seen.append(place)
            matches = expected[rows[place]][: slots[place]]
            assert tied == any(tie for _, tie in matches)
            if not tied:
                assert ranked[: len(matches)] == [rank for rank, _ in matches]
            assert all(rank == len(reference) for rank in ranked[len(expected[rows[place]]) :])
    assert sorted(seen) == list(range(len(rows)))


@given(search=searches(), depth=st.integers(1, 30), length=st.integers(1, 200), threads=st.sampled_from([1, 1, 3]))
def test_selected_ranks_equal_sorting(search, depth, length, threads):
    """As far as the depth; beyond it a match is not found."""
    query, query_labels, reference, reference_labels, ref_includes_query = tensors(search)
    rows = torch.tensor([i for i, matches in enumerate(brute_force(*search)) if matches], dtype=torch.long)
    own = torch.arange(len(query)) if ref_includes_query else None
    queries, references = shifted(query, reference)
    m, seen = len(reference), []
    with thresholds.replaced(SELECTED=length, SELECTED_ROWS=1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: threads)
        found = list(
            selected_ranks(
                queries,
                query_labels,
                references,
                reference_labels,
                own,
                rows[torch.randperm(len(rows))],
                torch.full((len(query),), depth),
            )
        )
    for group in found:
        for row, ranked, tied in zip(group.rows.tolist(), group.ranks.tolist(), group.tied.tolist(), strict=True):
            seen.append(row)
            distances = (reference - query[row]).square().sum(dim=1).tolist()
            own_class = [label == query_labels[row] for label in reference_labels]
            others = [x for x, match in zip(distances, own_class, strict=True) if not match]
            levels = sorted(
                x
                for j, (x, match) in enumerate(zip(distances, own_class, strict=True))
                if match and not (ref_includes_query and j == row)
            )
            closer = [sum(x < level for x in others) for level in levels]
            inside = [slot + count for slot, count in enumerate(closer) if count < depth]
            assert tied == any(level in others for level in levels[: len(inside)])
            if not tied:
                assert ranked == inside + [m] * (len(ranked) - len(inside))
    assert sorted(seen) == rows.tolist()


@pytest.mark.parametrize("k", [1, 5, 39, 40])
@pytest.mark.parametrize("threads", [1, 3, 64])
def test_smallest_values(k, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    x = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    x[2, 5:20], x[3] = torch.inf, x[3].round()
    expected = x.sort(dim=1).values[:, :k]
    assert torch.equal(smallest_values(x, k), expected)


@pytest.mark.parametrize("avg", [{}, {"avg_of_avgs": True}, {"return_per_class": True}])
def test_a_thousand_recalls_are_one_histogram(avg):
    """They take as many operations as one, and each is what it is alone."""
    embeddings, labels = long_tail()
    counts, values = [], []
    for ks in ((3,), tuple(range(1, 1001))):
        calculator = RetrievalAccuracyCalculator(ks, include=tuple(f"recall_at_{k}" for k in ks), device=CPU, **avg)
        with Operations() as watch:
            values.append(calculator.get_accuracy(embeddings, labels))
        counts.append(watch.count)
    assert counts[0] == counts[1]
    assert list(values[1]) == [f"recall_at_{k}" for k in range(1, 1001)]
    for k in (1, 2, 3, 17, 200, 1000):
        (alone,) = (
            RetrievalAccuracyCalculator((k,), include=(f"recall_at_{k}",), device=CPU, knn_func=TorchKNN(), **avg)
            .get_accuracy(embeddings, labels)
            .values()
        )
        assert values[1][f"recall_at_{k}"] == pytest.approx(alone, abs=1e-15)
    assert values[0]["recall_at_3"] == values[1]["recall_at_3"]


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def accuracies(search, knn_func, **kwargs):
    calculator = RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, knn_func=knn_func, **kwargs)
    return calculator.get_accuracy(*tensors(search))


def assert_equal_accuracies(actual, expected):
    assert set(actual) == set(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-12, rel=0, nan_ok=True), name


@pytest.mark.parametrize("way", ["counted", "searched", "as estimated"])
@given(
    search=searches(),
    tile_size=st.integers(1, 50),
    k=st.sampled_from([None, "max_bin_count", 1, 4, 100]),
    avg=st.sampled_from([{}, {"avg_of_avgs": True}, {"return_per_class": True}]),
)
def test_equals_the_neighbour_path(way, search, tile_size, k, avg):
    """Whichever way the ranks are found, with ties and without, every metric is that of sorted neighbours."""
    expected = accuracies(search, TorchKNN(), k=k, **avg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "TILE_CPU", tile_size)
        patch.setattr(thresholds, "DISTANCES", 8 * tile_size)
        if way != "as estimated":
            patch.setattr(scores, "_counting_limit", lambda *_: math.inf if way == "counted" else -1)
        actual = accuracies(search, None, k=k, **avg)
    assert_equal_accuracies(actual, expected)


@given(search=searches(), include=st.lists(st.sampled_from(METRICS), min_size=1, max_size=3, unique=True))
def test_any_selection_of_metrics(search, include):
    """Only what is asked for is computed, which changes the way but no number."""
    calculator = RetrievalAccuracyCalculator((1, 2, 5, 20), device=CPU)
    everything = accuracies(search, None)
    actual = calculator.get_accuracy(*tensors(search), include=include)
    assert_equal_accuracies(actual, {name: everything[name] for name in include})


def test_first_matches_beyond_the_searched_depth():
    """Large classes, of which only one neighbour is searched, and most first matches are farther away."""
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(400, 8, generator=generator), torch.arange(400) % 20
    expected, actual = (
        RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, k=1, knn_func=f).get_accuracy(
            embeddings, labels
        )
        for f in (TorchKNN(), None)
    )
    assert expected["recall_at_1"] < 0.2 < expected["recall_at_20"]
    assert_equal_accuracies(actual, expected)


def long_tail(seed=0, d=16):
    """Classes of 1 to 90, shuffled."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [90, 50, 30, 20, 12, 8, 5, *[4] * 5, *[3] * 8, *[2] * 20, *[1] * 10]
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    centers = torch.randn(len(sizes), d, generator=generator)
    return centers[labels] + torch.randn(len(labels), d, generator=generator), labels


@pytest.mark.parametrize("tile_size", [1, 7, 64, 100, 1000])
@pytest.mark.parametrize("k", [None, "max_bin_count", 10])
def test_long_tail(tile_size, k, monkeypatch):
    embeddings, labels = long_tail()
    if tile_size == 1:
        embeddings, labels = embeddings[:60], labels[:60]
    monkeypatch.setattr(thresholds, "TILE_CPU", tile_size)
    for data in (
        (embeddings, labels),
        (embeddings[:50], labels[:50], embeddings[50:], labels[50:]),
        (embeddings[:50], labels[:50], embeddings, labels, True),
    ):
        expected, actual = (
            RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, k=k, knn_func=f).get_accuracy(*data)
            for f in (TorchKNN(), None)
        )
        assert_equal_accuracies(actual, expected)


def test_long_tail_is_not_padded():
    """A row of the counted ranks has as many slots as the classes beside it in the order, not as the largest one."""
    embeddings, labels = long_tail()
    sizes = labels.bincount()[labels]
    rows = (sizes > 1).nonzero()[:, 0]
    queries, references = shifted(embeddings[rows], embeddings)
    found = list(counted_ranks(queries, labels[rows], references, labels, rows, sizes[rows] - 1, tile_size=20))
    assert sum(x.ranks.numel() for x in found) < 1.3 * int((sizes - 1).sum())
    assert max(x.ranks.shape[1] for x in found) == 89


# ------------------------------------------------------------------------------------------------------------ precision


def double_loop_knn(query, k, reference, ref_includes_query):
    """Neighbours by the differences in float64, one query at a time, equal ones by index."""
    rows = [(q.double() - reference.double()).square().sum(1) for q in query]
    distances = torch.stack(rows)
    if ref_includes_query:
        distances.fill_diagonal_(math.inf)
    ordered = distances.sort(dim=1, stable=True)
    return ordered.values[:, :k], ordered.indices[:, :k]


def layout(name):
    """Embeddings whose distances cancel in the expansion, and labels: about 200 of them."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    labels = torch.arange(200) % 20
    if name == "far from zero":
        return randn(32) * 100 + randn(200, 32) * 0.1, torch.randint(40, (200,), generator=generator)
    if name == "far clusters on a line":
        x = torch.cat([torch.zeros(35), torch.tensor([10000.0, 10003.0, 10001.0, 10004.0])])
        return x[:, None], torch.tensor([9] * 35 + [1, 2, 1, 2])
    if name == "two directions":
        centers = torch.nn.functional.normalize(randn(2, 16), dim=1)
        x = centers[labels % 2] + 1e-3 * randn(20, 16)[labels] + 7e-4 * randn(200, 16)
        return torch.nn.functional.normalize(x, dim=1), labels
    if name == "three directions, narrow":
        x = torch.eye(3, 16)[labels % 3] + 1e-6 * (randn(20, 16)[labels] + 0.7 * randn(200, 16))
        return x, labels
    assert name == "two clusters and one far away"
    x = 50 * torch.eye(2, 8)[labels % 2] + 0.02 * (randn(20, 8)[labels] + 0.7 * randn(200, 8))
    x[17] = 1e5
    return x, labels


LAYOUTS = (
    "far from zero",
    "far clusters on a line",
    "two directions",
    "three directions, narrow",
    "two clusters and one far away",
)


@pytest.mark.parametrize("way", [33, 512, "searched", "torch"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_distances_that_cancel(name, way, monkeypatch):
    """Every metric is that of a double loop in float64, whichever way the ranks are found."""
    embeddings, labels = layout(name)
    if way == "searched":
        monkeypatch.setattr(scores, "_counting_limit", lambda *_: -1)
    elif way != "torch":
        monkeypatch.setattr(scores, "_counting_limit", lambda *_: math.inf)
        monkeypatch.setattr(thresholds, "TILE_CPU", way)
    expected, actual = (
        RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, knn_func=f).get_accuracy(
            embeddings, labels
        )
        for f in (double_loop_knn, TorchKNN() if way == "torch" else None)
    )
    assert_equal_accuracies(actual, expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_squared_distances_that_cancel(name):
    embeddings, _ = layout(name)
    distances, _ = TorchKNN(chunk_size=30)(embeddings, 38, embeddings, True)
    torch.testing.assert_close(
        distances.double(), double_loop_knn(embeddings, 38, embeddings, True)[0], rtol=2e-3, atol=0
    )


@pytest.mark.parametrize("copies", [2, 3])
def test_copies_are_ordered_by_index(copies):
    """Copies, of the same class or not, are equally close whatever the rounding."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(80, 33, generator=generator).repeat(copies, 1)
    labels = torch.randint(30, (len(embeddings),), generator=generator)
    expected, actual = (
        RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, knn_func=f).get_accuracy(
            embeddings, labels
        )
        for f in (TorchKNN(), None)
    )
    assert_equal_accuracies(actual, expected)


def test_collapsed_embeddings():
    """All at one point: the neighbours are the first references."""
    embeddings, labels = torch.full((30, 4), 0.3), torch.arange(30) % 3
    expected, actual = (
        RetrievalAccuracyCalculator((1, 2, 5, 20), include=METRICS, device=CPU, knn_func=f).get_accuracy(
            embeddings, labels
        )
        for f in (TorchKNN(), None)
    )
    assert_equal_accuracies(actual, expected)


@pytest.mark.parametrize("m", [96, 97, 99])
def test_grouped_search_finds_every_column(m, monkeypatch):
    monkeypatch.setattr(thresholds, "COLUMNS_FOR_EACH", 4)
    line = torch.arange(float(m))[torch.randperm(m)][:, None]
    distances, indices = TorchKNN()(line, 4, line)
    assert torch.equal(indices[:, 0], torch.arange(m))
    assert torch.equal((line[indices] - line[:, None]).square()[..., 0], distances)
    assert distances[:, :2].tolist() == [[0.0, 1.0]] * m


@given(search=searches(), k=st.integers(1, 8))
def test_grouped_search(search, k):
    """The k smallest by groups of columns: ties at the last place, and columns beyond the last whole group."""
    query, _, reference, _, ref_includes_query = search
    k = min(k, len(reference) - ref_includes_query)
    if k < 1:
        return
    query, reference = torch.tensor(query).float(), torch.tensor(reference).float()
    expected = TorchKNN()(query, k, reference, ref_includes_query)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thresholds, "COLUMNS_FOR_EACH", 2)
        actual = TorchKNN()(query, k, reference, ref_includes_query)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


# ---------------------------------------------------------------------------------------------------- which way is used


def test_no_neighbours_are_searched(monkeypatch):
    def never(*_):
        raise AssertionError("searched neighbours")

    calculator = RetrievalAccuracyCalculator(exclude=("NMI", "AMI"), device=CPU)
    monkeypatch.setattr(type(calculator.knn_func), "__call__", never)
    calculator.get_accuracy(*long_tail())


def counting_knn():
    calls = []

    def knn_func(query, k, reference, ref_includes_query):
        calls.append(k)
        return TorchKNN()(query, k, reference, ref_includes_query)

    return knn_func, calls


def test_a_function_set_later_is_used():
    embeddings, labels = long_tail()
    calculator = RetrievalAccuracyCalculator((1,), include=("recall_at_1",), device=CPU)
    calculator.knn_func, calls = counting_knn()
    calculator.get_accuracy(embeddings, labels)
    assert calls == [1]


def test_metrics_of_a_subclass_get_neighbours():
    """Both a metric of its own and one of PML's that it redefines."""

    class Columns(RetrievalAccuracyCalculator):
        def calculate_columns(self, knn_labels, **kwargs):
            return knn_labels.shape[1]

        def requires_knn(self):
            return [*super().requires_knn(), "columns"]

    class Redefined(RetrievalAccuracyCalculator):
        def calculate_precision_at_1(self, knn_labels, **kwargs):
            return float(knn_labels.shape[1])

    embeddings, labels = long_tail()
    own = Columns((1,), k=7, include=("columns", "precision_at_1"), device=CPU).get_accuracy(embeddings, labels)
    assert own["columns"] == 7
    redefined = Redefined((1,), k=7, include=("precision_at_1", "recall_at_1"), device=CPU)
    accuracies = redefined.get_accuracy(embeddings, labels)
    assert accuracies == {"precision_at_1": 7.0, "recall_at_1": own["precision_at_1"]}


# --------------------------------------------------------------------------------------------------------------- memory


def allocations(function):
    """The bytes of each storage that an operation makes while a function runs."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.found = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            given = {
                x.untyped_storage().data_ptr()
                for x in torch.utils._pytree.tree_leaves((args, kwargs))
                if isinstance(x, torch.Tensor)
            }
            for x in torch.utils._pytree.tree_leaves(result):
                if isinstance(x, torch.Tensor) and x.untyped_storage().data_ptr() not in given:
                    self.found.append(x.untyped_storage().nbytes())
            return result

    with Watch() as watch:
        function()
    return watch.found


def largest_allocation(function):
    """The most bytes of any storage that an operation makes while a function runs."""
    return max(allocations(function))


def test_a_gallery_is_copied_once(monkeypatch):
    """Beside one copy of the references there is nothing of their size, where their ranks are counted."""
    monkeypatch.setattr(thresholds, "DISTANCES", 2**16)
    monkeypatch.setattr(thresholds, "TILE_CPU", 128)
    generator = torch.Generator().manual_seed(0)
    gallery, labels = torch.randn(20_000, 32, generator=generator), torch.arange(20_000) // 4
    calculator = RetrievalAccuracyCalculator((1, 1000), include=("recall_at_1", "recall_at_1000"), device=CPU)
    sizes = allocations(lambda: calculator.get_accuracy(gallery[:50] + 0.1, labels[:50], gallery, labels))
    assert sorted(sizes)[-1] == 4 * 20_000 * 34
    assert sorted(sizes)[-2] < gallery.nbytes / 4


@pytest.mark.parametrize("way", ["counted", "selected", "searched"])
def test_a_long_ranking_has_a_bar(way, monkeypatch, capsys):
    embeddings, labels = long_tail()
    calculator = RetrievalAccuracyCalculator(exclude=("NMI", "AMI"), device=CPU)
    if way == "searched":  # a tie for everybody
        embeddings = torch.zeros_like(embeddings)
    monkeypatch.setattr(scores, "_counting_limit", lambda *_: -1 if way == "selected" else math.inf)
    expected = calculator.get_accuracy(embeddings, labels)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(watched, "watched", lambda: True)
    assert calculator.get_accuracy(embeddings, labels) == expected
    assert capsys.readouterr().err == "", "it takes no time"
    monkeypatch.setattr(watched, "LONG", 1)
    assert calculator.get_accuracy(embeddings, labels) == expected
    shown = capsys.readouterr().err
    assert ("searching" if way == "searched" else "ranking") in shown
    assert "100%" in shown or "0%" in shown


@pytest.mark.parametrize("avg", [{}, {"avg_of_avgs": True}, {"return_per_class": True}])
def test_memory_grows_with_n_only(avg):
    """No n x n matrix, no n x c matrix, no list of n neighbours for each query."""
    generator = torch.Generator().manual_seed(0)
    n, d = 4000, 8
    embeddings, labels = torch.randn(n, d, generator=generator), torch.arange(n) // 4
    calculator = RetrievalAccuracyCalculator(
        (1, 10, 100, 1000),
        include=("precision_at_1", "mean_reciprocal_rank", "recall_at_1000"),
        k=None,
        device=CPU,
        **avg,
    )
    # Two tiles of 640 x 640 at most; n x c are 4 million.
    assert largest_allocation(lambda: calculator.get_accuracy(embeddings, labels)) <= 2 * 4 * 640**2
    calculator = RetrievalAccuracyCalculator(exclude=("NMI", "AMI"), k=None, device=CPU, **avg)
    assert largest_allocation(lambda: calculator.get_accuracy(embeddings, labels)) <= 2 * 4 * 640**2


def test_memory_of_large_classes(monkeypatch):
    monkeypatch.setattr(thresholds, "DISTANCES", 2**16)
    generator = torch.Generator().manual_seed(0)
    embeddings, labels = torch.randn(2000, 8, generator=generator), torch.arange(2000) // 200
    calculator = RetrievalAccuracyCalculator(exclude=("NMI", "AMI"), device=CPU)
    assert largest_allocation(lambda: calculator.get_accuracy(embeddings, labels)) <= 8 * 2**16


# ---------------------------------------------------------------------------------------------------------------- other


def test_scores_that_are_not_asked_for():
    embeddings, labels = long_tail()
    result = retrieval_scores(
        embeddings, labels, embeddings, labels, torch.arange(len(labels)), 5, at_r=False, at_k=False
    )
    assert result.r_precision is result.average_precision is result.average_precision_at_r is None
    lone = labels.bincount()[labels] == 1
    assert torch.equal(result.first_match_rank == len(labels), lone)


@pytest.mark.cuda
@pytest.mark.parametrize("include", [("recall_at_20", "mean_reciprocal_rank"), METRICS])
def test_cuda_equals_cpu(include):
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randint(-3, 4, (6000, 64), generator=generator).float()
    labels = torch.randint(900, (6000,), generator=generator)
    on_cpu, on_gpu = (
        RetrievalAccuracyCalculator((1, 2, 5, 20), include=include, device=device).get_accuracy(embeddings, labels)
        for device in ("cpu", "cuda")
    )
    assert_equal_accuracies(on_gpu, on_cpu)
