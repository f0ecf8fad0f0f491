"""Mining over a data set, against a loop over one anchor at a time."""

import math
import pickle
import random
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nine_samples import X9, Y9
from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity, LpDistance, SNRDistance

from pml_ext import _pml, mining
from pml_ext.mining import MinedTuples, chunks, mine
from pml_ext.mining.draws import keys
from pml_ext.mining.scores import _topk
from pml_ext.testing import run_as_ranks


def test_worked_values():
    # In blocks of any size.
    for chunk_size in (None, 1, 4, 9):
        mined = mine(X9, Y9, num_negatives=2, chunk_size=chunk_size)
        assert mined.positives[:, 0].tolist() == [2, 2, 0, 5, 3, 3, 8, 8, 7]
        assert mined.negatives.tolist() == [[3, 7], [3, 7], [3, 4], [2, 1], [2, 8], [8, 2], [0, 1], [0, 1], [5, 4]]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"one_per_class": True}, [[3, 7], [3, 7], [3, 7], [2, 7], [2, 8], [8, 2], [0, 5], [0, 3], [5, 2]]),
        (
            {"one_per_class": True, "num_negatives": 3},
            [
                [3, 7, -1],
                [3, 7, -1],
                [3, 7, -1],
                [2, 7, -1],
                [2, 8, -1],
                [8, 2, -1],
                [0, 5, -1],
                [0, 3, -1],
                [5, 2, -1],
            ],
        ),
        (
            {"range_min": 1, "range_max": 3},
            [[7, 6], [7, 4], [4, 5], [1, 0], [8, 1], [2, 1], [1, 5], [1, 3], [4, 2]],
        ),
        ({"relative_margin": 0.05}, [[3, 7], [3, 7], [5, 7], [7, 6], [2, 8], [8, 2], [0, 1], [0, 1], [4, 2]]),
        (
            {"relative_margin": 0.05, "reference": "min"},
            [[6, 4], [7, 4], [7, 8], [7, 6], [8, 1], [1, 6], [0, 1], [2, 5], [2, 3]],
        ),
    ],
)
def test_worked_values_of_the_filters(settings, expected):
    assert mine(X9, Y9, **{"num_negatives": 2} | settings).negatives.tolist() == expected


def test_the_window_comes_before_the_filters():
    mined = mine(X9, Y9, relative_margin=0.05, range_min=1, num_negatives=1)
    assert mined.negatives[:, 0].tolist() == [7, 7, 5, 7, 8, 2, 1, 1, 4]


def test_worked_values_of_pairs():
    # FaceNet's semi-hard negatives: those of a pair, margin 0, one of them.
    expected = {
        (0, 1): 3, (0, 2): 4, (1, 0): 3, (1, 2): 4, (2, 0): -1, (2, 1): 5,
        (3, 4): -1, (3, 5): -1, (4, 3): 1, (4, 5): 2, (5, 3): 1, (5, 4): 2,
    }  # fmt: skip
    for margin in ({"absolute_margin": 0}, {"relative_margin": 0.05}):
        mined = mine(X9[:6], Y9[:6], per="pair", positives="all", num_negatives=1, **margin)
        pairs = zip(mined.anchors.tolist(), mined.positives[:, 0].tolist(), strict=True)
        assert dict(zip(pairs, mined.negatives[:, 0].tolist(), strict=True)) == expected


def score(distance, a, b):
    """Larger is closer, by plain arithmetic."""
    a, b = a.tolist(), b.tolist()
    if isinstance(distance, LpDistance):
        if _pml.facts(distance).normalize_embeddings:
            a, b = ([value / math.hypot(*v) for value in v] for v in (a, b))
        return -math.dist(a, b)
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.hypot(*a) / math.hypot(*b) if isinstance(distance, CosineSimilarity) else dot


def by_loops(x, labels, refs, ref_labels, *, distance, settings):
    """Positives and negatives of every anchor: lists of (reference, score)."""
    own = refs is x
    groups = settings.get("groups", [-1] * len(x))
    sign = -1 if isinstance(distance, LpDistance) else 1
    result = []
    for i in range(len(x)):
        ranked = []
        for j in range(len(refs)):
            in_group = own and groups[i] >= 0 and groups[i] == groups[j]
            if not in_group and not (own and i == j):
                ranked.append((-round(score(distance, x[i], refs[j]), 12), j))
        ranked.sort()
        ranked = [(j, -s) for s, j in ranked]
        positives = [(j, s) for j, s in ranked if ref_labels[j] == labels[i]]
        negatives = [(j, s) for j, s in ranked if ref_labels[j] != labels[i]]
        ceiling = math.inf
        if "absolute_margin" in settings or "relative_margin" in settings:
            if not positives:
                result.append(([], []))
                continue
            values = [s for _, s in positives]
            r = {"max": max(values), "min": min(values), "mean": sum(values) / len(values)}[settings["reference"]]
            if "absolute_margin" in settings:
                ceiling = min(ceiling, r - settings["absolute_margin"])
            if "relative_margin" in settings:
                ceiling = min(ceiling, r - settings["relative_margin"] * abs(r))
        if "max_score" in settings:
            ceiling = min(ceiling, sign * settings["max_score"])
        floor = sign * settings["min_score"] if "min_score" in settings else -math.inf
        taken, seen = [], set()
        for j, s in negatives[settings.get("range_min", 0) : settings.get("range_max")]:
            if floor <= s < ceiling and not (settings.get("one_per_class") and int(ref_labels[j]) in seen):
                taken.append((j, s))
                seen.add(int(ref_labels[j]))
        if settings.get("positives", "hardest") != "easiest":
            positives = sorted(positives, key=lambda each: (each[1], each[0]))
        count = len(positives) if settings.get("positives") == "all" else settings.get("num_positives", 1)
        result.append((positives[:count], taken[: settings.get("num_negatives", 5)]))
    return result


@st.composite
def cases(draw):
    n, m = draw(st.integers(0, 14)), draw(st.integers(1, 14))
    noise = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    x = torch.randn(max(n, m), 3, generator=noise, dtype=torch.float64)
    # Copies, of whatever label.
    x = x[torch.randint(draw(st.integers(1, max(n, m))), (max(n, m),), generator=noise)]
    labels = torch.randint(draw(st.integers(1, 5)), (max(n, m),), generator=noise)
    settings = {"num_negatives": draw(st.integers(1, 4)), "reference": draw(st.sampled_from(["max", "min", "mean"]))}
    for name, values in {
        "num_positives": st.integers(0, 3),
        "positives": st.sampled_from(["hardest", "easiest", "all"]),
        "range_min": st.integers(0, 3),
        "absolute_margin": st.sampled_from([0, 0.1371, 0.73]),
        "relative_margin": st.sampled_from([0, 0.0531, 0.21]),
        "max_score": st.sampled_from([0.611, 0.23]),
        "min_score": st.sampled_from([-0.317, 0.43]),
        "one_per_class": st.just(True),
    }.items():
        if draw(st.booleans()):
            settings[name] = draw(values)
    if settings["reference"] == "mean":  # of copies it is equal to each of them but for rounding
        settings |= {name: 0.0917 for name in ("absolute_margin", "relative_margin") if settings.get(name) == 0}
    if draw(st.booleans()):
        settings["range_max"] = settings.get("range_min", 0) + settings["num_negatives"] + draw(st.integers(0, 4))
    own = draw(st.booleans())
    if own and draw(st.booleans()):
        settings["groups"] = torch.randint(-1, 3, (n,), generator=noise).tolist()
    distance = draw(
        st.sampled_from([CosineSimilarity(), DotProductSimilarity(normalize_embeddings=False), LpDistance()])
    )
    if isinstance(distance, LpDistance):  # levels of a distance: the larger one is farther
        for name in ("max_score", "min_score"):
            if name in settings:
                settings[name] = 1 - settings[name]
    return x, labels, n, (None if own else m), distance, settings, draw(st.sampled_from([None, 1, 3, 20]))


@given(cases())
def test_equals_a_loop(case):
    x, labels, n, m, distance, settings, chunk_size = case
    rows, references = x[:n], {} if m is None else {"references": x[-m:], "reference_labels": labels[-m:]}
    mined = mine(rows, labels[:n], distance=distance, chunk_size=chunk_size, **settings, **references)
    refs, ref_labels = (rows, labels[:n]) if m is None else (x[-m:], labels[-m:])
    expected = by_loops(rows, labels[:n], refs, ref_labels, distance=distance, settings=settings)
    assert mined.anchors.tolist() == list(range(n))
    sign = -1 if isinstance(distance, LpDistance) else 1
    for i, (positives, negatives) in enumerate(expected):
        for found, scores, wanted in (
            (mined.positives[i], mined.positive_scores[i], positives),
            (mined.negatives[i], mined.negative_scores[i], negatives),
        ):
            assert found[found >= 0].tolist() == [j for j, _ in wanted]
            values = [sign * s for _, s in wanted]
            assert scores[: len(values)].tolist() == pytest.approx(values, abs=1e-9)
            assert scores[len(values) :].isnan().all()


def test_a_window_after_the_filters_would_be_seen():
    # The same by a wrong order: what sentence-transformers does.
    after = mine(X9, Y9, relative_margin=0.05, num_negatives=2).negatives[:, 1].tolist()
    assert after == [7, 7, 7, 6, 8, 2, 1, 1, 2]
    assert after != mine(X9, Y9, relative_margin=0.05, range_min=1, num_negatives=1).negatives[:, 0].tolist()


def test_copies_are_ordered_by_index_in_blocks_of_any_size():
    # In float32 the product rounds copies apart, by the place where they stand.
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(7, 67, generator=noise)[torch.arange(301) % 7]
    labels = torch.arange(301) % 3
    mined = [mine(x, labels, num_negatives=20, num_positives=30, chunk_size=size) for size in (None, 1, 5, 64)]
    for name in ("positives", "negatives", "positive_scores", "negative_scores"):
        for other in mined[1:]:
            assert torch.equal(getattr(mined[0], name), getattr(other, name)), name
    first = mined[0].negatives[0]
    assert first.tolist() == [j for j in range(301) if j % 7 == 0 and j % 3 != 0][:20]


def test_the_relative_margin_lowers_a_negative_ceiling():
    # At -.5 it is -.525, not -.475.
    angles = torch.deg2rad(torch.tensor([0, 120, 118.5, 121.7], dtype=torch.float64))
    x = torch.stack((angles.cos(), angles.sin()), 1)
    labels = torch.tensor([0, 0, 1, 2])
    assert mine(x, labels, anchors=[0], num_negatives=3, relative_margin=0.05).negatives.tolist() == [[3, -1, -1]]


def test_a_copy_of_the_positive_is_dropped_at_margin_zero():
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, 0.8], [0.0, 1.0]])
    labels = torch.tensor([0, 0, 1, 1])
    assert mine(x, labels, anchors=[0], absolute_margin=0.0).negatives[0].tolist() == [3, -1, -1, -1, -1]


@given(st.integers(0, 99), st.sampled_from([None, 1, 4]), st.booleans())
def test_all_candidates_are_no_candidates(seed, chunk_size, by_distance):
    noise = torch.Generator().manual_seed(seed)
    x, labels = torch.randn(12, 3, generator=noise), torch.randint(4, (12,), generator=noise)
    settings = {
        "relative_margin": 0.1,
        "num_negatives": 3,
        "range_min": 1,
        "range_max": 6,
        "groups": torch.randint(-1, 3, (12,), generator=noise),
        "distance": LpDistance() if by_distance else None,
    }
    anchors = torch.randperm(12, generator=noise)[:7]
    everything = torch.stack([torch.randperm(12, generator=noise) for _ in range(7)])
    # Any order, repetitions and what an index fills up with.
    everything = torch.cat((everything, everything[:, :4], torch.full((7, 2), -1)), 1)
    exact = mine(x, labels, anchors=anchors, **settings)
    found = mine(x, labels, anchors=anchors, candidates=everything, chunk_size=chunk_size, **settings)
    assert torch.equal(found.negatives, exact.negatives)
    assert torch.equal(found.positives, exact.positives)
    assert found.statistics() == pytest.approx(exact.statistics(), nan_ok=True, abs=1e-6)


def test_few_candidates():
    candidates = torch.tensor([[5, 0, 1, 3], [-1, -1, -1, -1]])
    mined = mine(X9, Y9, anchors=[0, 4], candidates=candidates, num_negatives=3)
    assert mined.negatives.tolist() == [[3, 5, -1], [-1, -1, -1]]
    assert mined.positives.tolist() == [[2], [3]]
    assert len(mined) == 1
    assert mined.statistics()["without_negative"] == 0.5


def test_parts_of_the_anchors_are_parts_of_the_whole():
    settings = {"num_negatives": 2, "strategy": "random", "range_max": 5, "positives": "random"}
    whole = mine(X9, Y9, generator=torch.Generator().manual_seed(3), **settings)
    for rank in range(2):
        anchors = torch.arange(rank, 9, 2)
        part = mine(X9, Y9, anchors=anchors, generator=torch.Generator().manual_seed(3), **settings)
        for name in ("anchors", "positives", "negatives", "positive_scores", "negative_scores"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[anchors]), name


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {"num_negatives": 2},
        {"num_negatives": 3, "relative_margin": 0.05, "max_score": 0.7, "positives": "all"},
        {"per": "pair", "positives": "all", "absolute_margin": 0.1, "one_per_class": True},
        {"strategy": "random", "range_max": 5, "num_negatives": 2, "positives": "random", "min_score": -0.5},
    ],
)
def test_processes_mine_together_what_one_mines(size, settings):
    def mined(**of_process):
        return mine(X9, Y9, generator=torch.Generator().manual_seed(3), **settings, **of_process)

    def of_rank(group):
        return mined(anchors=torch.arange(group.rank, 9, group.size))

    whole, parts = mined(), run_as_ranks(size, of_rank)
    # As `torch.distributed.all_gather_object` hands them over.
    joined = MinedTuples.joined([pickle.loads(pickle.dumps(each)) for each in parts])
    for name in ("anchors", "positives", "negatives", "positive_scores", "negative_scores"):
        torch.testing.assert_close(getattr(joined, name), getattr(whole, name), equal_nan=True, rtol=0, atol=0)
    assert joined.statistics() == pytest.approx(whole.statistics(), nan_ok=True, abs=1e-12)
    assert joined.looked_at == whole.looked_at > 0
    assert len(joined) == len(whole)


def test_parts_of_other_settings_are_not_joined():
    parts = [mine(X9, Y9, anchors=[k], num_negatives=k + 1) for k in range(2)]
    for wrong, message in ((parts, "parts must be mined with the same settings"), ([], "parts must not be empty")):
        with pytest.raises(ValueError, match=message):
            MinedTuples.joined(wrong)
    nothing = mine(X9, Y9, anchors=[], relative_margin=0.1)
    assert math.isnan(MinedTuples.joined([nothing, nothing]).dropped["relative_margin"])
    some = mine(X9, Y9, anchors=[4], relative_margin=0.1)
    assert MinedTuples.joined([nothing, some]).dropped == some.dropped


def test_draws_are_uniform():
    # Of 5 positives and of 6 negatives that pass, each equally often: chi-square below its 99.99 % point.
    x = torch.tensor([[1.0, 0.0]] + [[0.9, 0.1 * i] for i in range(5)] + [[0.0, 1.0]] * 6)
    labels = torch.tensor([0] * 6 + [1] * 6)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(2, 12)
    runs = 600
    for _ in range(runs):
        mined = mine(
            x, labels, anchors=[0], positives="random", strategy="random", num_negatives=2, num_positives=2,
            generator=generator,
        )  # fmt: skip
        for row, found in enumerate((mined.positives[0], mined.negatives[0])):
            assert found.unique().numel() == 2
            counts[row, found[0]] += 1  # the order is random too
    for observed, m, limit in ((counts[0, 1:6], 5, 23.5), (counts[1, 6:], 6, 25.7)):
        assert observed.sum() == runs
        assert float(((observed - runs / m) ** 2 / (runs / m)).sum()) < limit


def test_keys_belong_to_the_pair():
    a, r = torch.arange(5).unsqueeze(1), torch.arange(7)
    whole = keys(3, a, r)
    assert torch.equal(whole[2:3, 4:], keys(3, a[2:3], r[4:]))
    assert whole.min() >= 0
    assert whole.unique().numel() == 35
    assert not torch.equal(whole, keys(4, a, r))


def test_random_negatives_are_those_that_pass():
    for seed in range(20):
        mined = mine(
            X9, Y9, num_negatives=2, strategy="random", relative_margin=0.05, range_min=1, range_max=4,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        allowed = mine(X9, Y9, num_negatives=3, relative_margin=0.05, range_min=1, range_max=4).negatives
        for found, those in zip(mined.negatives.tolist(), allowed.tolist(), strict=True):
            assert {j for j in found if j >= 0} <= set(those)
            assert sum(j >= 0 for j in found) == min(2, sum(j >= 0 for j in those))


def test_pairs_triplets_and_places_in_a_batch():
    mined = mine(X9, Y9, num_negatives=2)
    a, p, b, n = mined.pairs()
    assert list(zip(a.tolist(), p.tolist(), strict=True)) == list(enumerate([2, 2, 0, 5, 3, 3, 8, 8, 7]))
    assert list(zip(b.tolist(), n.tolist(), strict=True))[:4] == [(0, 3), (0, 7), (1, 3), (1, 7)]
    triplets = list(zip(*(index.tolist() for index in mined.triplets()), strict=True))
    assert triplets[:3] == [(0, 2, 3), (0, 2, 7), (1, 2, 3)]
    assert len(triplets) == 18
    batch = [7, 0, 2, 3, 2]
    a, p, b, n = mined.local(batch)
    names = torch.tensor(batch)
    assert set(zip(names[a].tolist(), names[p].tolist(), strict=True)) == {(0, 2), (2, 0)}
    assert set(zip(names[b].tolist(), names[n].tolist(), strict=True)) == {(0, 3), (0, 7), (2, 3), (3, 2), (7, 0)}
    assert [len(index) for index in mined.local([])] == [0, 0, 0, 0]
    with pytest.raises(ValueError, match=r"batch must be a list of indices, got shape \(1, 2\)"):
        mined.local([[1, 2]])


def test_an_anchor_without_negatives_drops_out_with_its_positives():
    mined = mine(X9[:6], Y9[:6], relative_margin=0.05, num_negatives=1)
    assert mined.negatives[3].tolist() == [-1]
    assert mined.positives[3].tolist() != [-1]
    assert len(mined) == 5
    assert 3 not in mined.pairs()[0]


def test_statistics():
    mined = mine(X9, Y9, relative_margin=0.05, num_negatives=2, max_score=0.7)
    # By hand: down to the second that passes, of anchors 2, 3, 4, 5 and 8 two, three, one, one and none are too near.
    statistics = mined.statistics()
    assert statistics["without_negative"] == statistics["without_positive"] == 0
    scores = X9 @ X9.T
    expected = scores[range(9), mined.negatives[:, 0]].mean()
    assert statistics["negative_score"] == pytest.approx(float(expected))
    looked_at, margin, level = 0, 0, 0
    for i in range(9):
        r = max(float(scores[i, j]) for j in range(9) if Y9[j] == Y9[i] and j != i)
        ranked = sorted((-float(scores[i, j]), j) for j in range(9) if Y9[j] != Y9[i])
        last = [j for _, j in ranked].index(int(mined.negatives[i, 1]))
        for s, _ in ranked[: last + 1]:
            looked_at += 1
            margin += -s >= r - 0.05 * abs(r)
            level += -s >= 0.7
    assert statistics["dropped_by_relative_margin"] == pytest.approx(margin / looked_at)
    assert statistics["dropped_by_max_score"] == pytest.approx(level / looked_at)
    assert "MinedTuples(9 of 9 anchors, 1 positives, 2 negatives; without_positive 0" in repr(mined)


@pytest.mark.parametrize("positives", ["hardest", "all"])
def test_nothing_there(positives):
    empty = mine(torch.zeros(0, 3), [], positives=positives)
    assert (len(empty), empty.negatives.shape) == (0, (0, 5))
    assert math.isnan(empty.statistics()["without_negative"])
    one_class = mine(torch.randn(4, 3), [1, 1, 1, 1], positives=positives)
    assert (len(one_class), [len(index) for index in one_class.pairs()]) == (0, [0, 0, 0, 0])
    singletons = mine(torch.eye(3), [1, 2, 3], positives=positives, per="pair")
    assert (len(singletons), singletons.positives.tolist()) == (0, [[-1], [-1], [-1]])
    negatives_only = mine(torch.eye(3), [1, 2, 3], num_positives=0, num_negatives=1)
    assert (len(negatives_only), negatives_only.negatives.tolist()) == (3, [[1], [0], [0]])
    no_reference = mine(torch.eye(2), [1, 2], references=torch.zeros(0, 2), reference_labels=[])
    assert len(no_reference) == 0


def test_labels_and_arrays_of_any_kind():
    expected = mine(X9, Y9, num_negatives=2)
    names = np.array(["x", "aa", "07"])[Y9]
    for labels in (Y9.tolist(), Y9.float() - 5, names, names.tolist()):
        mined = mine(X9.numpy(), labels, num_negatives=2)
        assert torch.equal(mined.negatives, expected.negatives)
    halves = mine(X9.half(), Y9, num_negatives=2)
    assert halves.negative_scores.dtype == torch.float32
    assert torch.equal(halves.negatives[:8], expected.negatives[:8])
    assert isinstance(expected.to("cpu"), MinedTuples)


def test_any_distance():
    distance = SNRDistance()
    mined = mine(X9.float(), Y9, num_negatives=2, distance=distance)
    matrix = distance(X9.float(), X9.float())
    for i in range(9):
        others = [j for j in range(9) if Y9[j] != Y9[i]]
        nearest = min(float(matrix[i, j]) for j in others)
        assert float(mined.negative_scores[i, 0]) == pytest.approx(nearest, rel=1e-5)


def test_the_generator_decides_and_nothing_else():
    settings = {"strategy": "random", "range_max": 6, "num_negatives": 2}
    first = mine(X9, Y9, generator=torch.Generator().manual_seed(1), **settings)
    before = torch.get_rng_state()
    random.seed(5)
    again = mine(X9, Y9, generator=torch.Generator().manual_seed(1), **settings)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.negatives, again.negatives)
    others = [mine(X9, Y9, generator=torch.Generator().manual_seed(seed), **settings) for seed in range(2, 6)]
    assert any(not torch.equal(first.negatives, other.negatives) for other in others)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"range_min": 3, "range_max": 5},
            ValueError,
            "range_max must be at least range_min [+] num_negatives = 8, got 5",
        ),
        ({"num_negatives": 0}, ValueError, "num_negatives must be at least 1, got 0"),
        ({"num_positives": -1}, ValueError, "num_positives must be at least 0, got -1"),
        ({"range_min": 1.5}, TypeError, "range_min must be an integer, got 1.5"),
        ({"positives": "hard"}, ValueError, "positives must be one of 'hardest', .*, got 'hard'"),
        ({"strategy": 1}, ValueError, "strategy must be one of 'top', 'random', got 1"),
        ({"reference": "median"}, ValueError, "reference must be one of .*, got 'median'"),
        ({"per": "class"}, ValueError, "per must be one of 'anchor', 'pair', got 'class'"),
        ({"per": "pair", "num_positives": 0}, ValueError, "per='pair' needs positives, got num_positives=0"),
        ({"relative_margin": -0.1}, ValueError, "relative_margin must be at least 0, got -0.1"),
        ({"max_score": math.nan}, ValueError, "max_score must be finite, got nan"),
        ({"one_per_class": "no"}, TypeError, "one_per_class must be True or False, got 'no'"),
        ({"distance": "cosine"}, TypeError, "distance must be a PML distance .*, got 'cosine'"),
        ({"chunk_size": 0}, ValueError, "chunk_size must be at least 1, got 0"),
        ({"anchors": [9]}, ValueError, "anchors must be in 0..8, got 9"),
        ({"anchors": [0.5]}, TypeError, "anchors must be integers, got torch.float32"),
        ({"anchors": [[1]]}, ValueError, "anchors must be a list of indices, got shape"),
        ({"candidates": [[1]]}, ValueError, "candidates must be one row of indices for each of 9 anchors"),
        ({"candidates": torch.full((9, 1), 9)}, ValueError, "candidates must be in -1..8, got 9"),
        ({"groups": [1, 2]}, ValueError, "groups must be one integer for each of 9 embeddings"),
        ({"references": X9}, ValueError, "references need reference_labels, got None"),
        ({"reference_labels": Y9}, ValueError, "reference_labels was given without references"),
        ({"references": X9[:, :1], "reference_labels": Y9}, ValueError, "dimension of the embeddings, got 1 and 2"),
        (
            {"references": X9, "reference_labels": Y9, "groups": Y9},
            ValueError,
            "groups must be None with references: they are those of one data set",
        ),
    ],
)
def test_errors_name_argument_and_value(settings, error, message):
    with pytest.raises(error, match=message):
        mine(X9, Y9, **settings)


def test_embeddings_that_are_no_numbers():
    x = X9.clone()
    x[4, 1] = math.inf
    with pytest.raises(ValueError, match="embeddings has 1 rows that are NaN or infinite; the first is 4"):
        mine(x, Y9)
    with pytest.raises(ValueError, match=r"embeddings must be embeddings of shape \[n, d\], got shape \(9,\)"):
        mine(X9[:, 0], Y9)
    with pytest.raises(ValueError, match="labels must have one label"):
        mine(X9, Y9[:3])


@pytest.mark.parametrize("m", [3, 100, 2304, 2319])
def test_the_largest_by_groups_are_those_of_topk(m):
    x = torch.randn(5, m, generator=torch.Generator().manual_seed(m))
    x[1], x[2, 1:] = 0.5, -torch.inf
    for k in (1, 3, 9):
        values, columns = _topk(x, min(k, m))
        assert torch.equal(values, x.topk(min(k, m)).values)
        assert torch.equal(x.gather(1, columns), values)
        assert all(row.unique().numel() == len(row) for row in columns)


@pytest.mark.parametrize("per", ["anchor", "pair"])
def test_nothing_of_a_chunk_is_kept_but_a_copy(per, monkeypatch):
    """Small tensors that stay among the blocks of scores keep the heap from taking these places again."""
    chunk, before = chunks.Search.chunk, []

    def watched(*given):
        assert not any(each() is not None for each in before)
        found = chunk(*given)
        before.extend(weakref.ref(each) for each in found.tuples)
        return found

    settings = {"per": per, "positives": "all", "absolute_margin": 0.1}
    whole = mine(X9, Y9, **settings)
    monkeypatch.setattr(chunks.Search, "chunk", watched)
    mined = mine(X9, Y9, chunk_size=2, **settings)
    assert len(before) == 25
    for name in ("anchors", "positives", "negatives", "positive_scores", "negative_scores"):
        found = getattr(mined, name)
        torch.testing.assert_close(found, getattr(whole, name), equal_nan=True, rtol=0, atol=0)
        assert found.untyped_storage().nbytes() == found.numel() * found.element_size()
    assert mined.statistics() == whole.statistics()


def test_what_is_exported():
    assert set(mining.__all__) <= set(vars(mining))
