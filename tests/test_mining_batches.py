"""Batches of mined tuples and of hard classes: what is in them, for any number of processes, from any place on."""

import io
import math
import random
from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nine_samples import X9, Y9
from torch.utils.data import DataLoader, TensorDataset

from pml_ext.mining import (
    BalancedBatchSampler,
    ClassBatchSampler,
    Doubles,
    Greedy,
    Groups,
    MinedBatchSampler,
    Mixed,
    Neighbors,
    Uniform,
    class_graph,
    mine,
)
from pml_ext.mining.rules import greedy

# Twelve classes of 3 to 6 samples in five dimensions, in any order, with names.
NOISE = torch.Generator().manual_seed(0)
NAMES = [f"c{y:02d}" for y in range(12) for _ in range(3 + y % 4)]
ORDER = torch.randperm(len(NAMES), generator=NOISE).tolist()
LABELS = [NAMES[i] for i in ORDER]
X = torch.randn(len(LABELS), 5, generator=NOISE)
SUPER = [int(name[1:]) % 4 for name in LABELS]
MINED = mine(X, LABELS, num_negatives=3, num_positives=2, relative_margin=0.3, reference="min")


def classes(batch):
    return [LABELS[i] for i in batch]


def sampler_of(rule=None, *, refreshed=True, **settings):
    sampler = ClassBatchSampler(LABELS, **{"classes_per_batch": 4, "samples_per_class": 2, "rule": rule} | settings)
    if refreshed:
        sampler.refresh(X)
    return sampler


SAMPLERS = {
    "mined": lambda **kw: MinedBatchSampler(MINED, 12, **kw),
    "filled": lambda **kw: MinedBatchSampler(MINED, 12, fill=True, negatives=2, partners=True, **kw),
    "uniform": lambda **kw: sampler_of(**kw),
    "neighbors": lambda **kw: sampler_of(Neighbors(), **kw),
    "greedy": lambda **kw: sampler_of(Greedy(pool=7), **kw),
    "doubles": lambda **kw: sampler_of(Doubles(k=3), **kw),
    "groups": lambda **kw: sampler_of(Groups(SUPER), **kw),
    "mixed": lambda **kw: sampler_of(Mixed(Neighbors()), **kw),
    "random neighbors": lambda **kw: sampler_of(Neighbors(), refreshed=False, **kw),
    "few": lambda **kw: sampler_of(batches_per_epoch=7, **kw),
}
CLASS_RULES = {
    "uniform": Uniform, "neighbors": Neighbors, "greedy": Greedy, "doubles": Doubles,
    "groups": lambda: Groups(SUPER), "mixed": lambda: Mixed(Doubles(), share=0.5),
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_epoch_is_a_function_of_seed_and_number(name):
    first, second, other = (SAMPLERS[name](seed=seed) for seed in (3, 3, 4))
    epochs = []
    for epoch in range(3):
        for sampler in (first, second, other):
            sampler.set_epoch(epoch)
        random.seed(epoch)
        torch.manual_seed(epoch)
        epochs.append(list(first))
        # Again, without what came before, and not like another seed.
        assert list(first) == epochs[-1] == list(second)
        assert list(other) != epochs[-1]
    assert epochs[0] != epochs[1] != epochs[2]
    first.set_epoch(1)
    assert list(first) == epochs[1]


@pytest.mark.parametrize("name", SAMPLERS)
def test_nothing_global_is_drawn_from(name):
    before, state = torch.get_rng_state(), random.getstate()
    list(SAMPLERS[name]())
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == state


@pytest.mark.parametrize("name", SAMPLERS)
def test_processes_share_the_batches(name):
    whole = list(SAMPLERS[name]())
    for world in (2, 3):
        parts = [SAMPLERS[name](num_replicas=world, rank=rank) for rank in range(world)]
        lists = [list(part) for part in parts]
        assert [len(each) for each in lists] == [len(whole) // world] * world == [len(part) for part in parts]
        assert [batch for step in zip(*lists, strict=True) for batch in step] == whole[: len(whole) // world * world]


@pytest.mark.parametrize("name", SAMPLERS)
def test_resumes_at_every_place_with_any_number_of_processes(name):
    make = SAMPLERS[name]
    whole = list(make(seed=5))
    for consumed in range(0, len(whole) // 2 + 1, 2):
        ranks = [make(seed=5, num_replicas=2, rank=rank) for rank in range(2)]
        passes = [iter(rank) for rank in ranks]
        for _ in range(consumed):
            [next(each) for each in passes]
        saved = io.BytesIO()
        torch.save(ranks[1].state_dict(), saved)
        saved.seek(0)
        state = torch.load(saved, weights_only=True)
        for world in (1, 3):
            resumed = [make(seed=9, num_replicas=world, rank=rank) for rank in range(world)]
            for rank in resumed:
                rank.load_state_dict(state)
                rank.set_epoch(0)
            rest = whole[2 * consumed :]
            assert [len(rank) for rank in resumed] == [len(rest) // world] * world
            lists = [list(rank) for rank in resumed]
            assert [b for step in zip(*lists, strict=True) for b in step] == rest[: len(rest) // world * world]
            # The next pass begins at the beginning.
            assert list(resumed[0]) == whole[::world][: len(whole) // world]


def test_workers_run_ahead_of_what_was_trained_on():
    sampler = sampler_of(Neighbors(), seed=2)
    whole = list(sampler)
    data = TensorDataset(torch.arange(len(LABELS)))
    loader = DataLoader(data, batch_sampler=sampler)
    seen = [batch[0].tolist() for batch in loader]
    assert seen == whole
    # All were given out; three were trained on.
    state = sampler.state_dict(consumed=3)
    resumed = sampler_of(Neighbors(), seed=2, refreshed=False)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[3:]
    # And three more, of which the sampler has given out all.
    state = resumed.state_dict(consumed=3)
    resumed.load_state_dict(state)
    assert list(resumed) == whole[6:]


def test_another_epoch_begins_at_its_beginning():
    sampler = sampler_of(seed=2)
    next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())
    assert len(list(sampler)) == len(sampler) - 1
    next(iter(sampler))
    sampler.load_state_dict(sampler.state_dict())
    sampler.set_epoch(1)
    whole = list(sampler)
    assert len(whole) == sampler.batches_per_epoch
    assert sampler.state_dict()["consumed"] == len(whole)


# Tuples.


def test_worked_batches_of_tuples():
    mined = mine(X9, Y9, num_negatives=2)
    sampler = MinedBatchSampler(mined, 6, negatives=2, shuffle=False)
    assert list(sampler) == [[0, 2, 3, 7, 1, 4], [3, 5, 2, 1, 4, 8], [6, 8, 0, 1, 7], [8, 7, 5, 4]]


@given(st.integers(6, 20), st.integers(1, 3), st.booleans(), st.booleans(), st.integers(0, 99))
def test_every_anchor_comes_once_with_its_tuple(batch_size, negatives, partners, fill, seed):
    tuples = {}
    positives, far = MINED.positives.tolist(), MINED.negatives.tolist()
    for i in MINED.anchors.tolist():
        near = [j for j in positives[i] if j >= 0]
        wrong = [j for j in far[i] if j >= 0][:negatives]
        if near and wrong:
            tuples[i] = {i, *near, *wrong, *(p for j in wrong if partners for p in positives[j][:1] if p >= 0)}
    settings = {"negatives": negatives, "partners": partners, "fill": fill, "seed": seed}
    largest = max(map(len, tuples.values()))
    if batch_size < largest:
        with pytest.raises(ValueError, match=f"batch_size must be at least {largest}, the size of a tuple, got"):
            MinedBatchSampler(MINED, batch_size, **settings)
        return
    batches = list(MinedBatchSampler(MINED, batch_size, **settings))
    for batch in batches:
        assert len(batch) == len(set(batch)) <= batch_size
        assert not fill or len(batch) == batch_size
    # Each complete anchor with all of its tuple, and nobody who is in no tuple.
    assert all(any(each <= set(batch) for batch in batches) for each in tuples.values())
    assert set().union(*batches) == set().union(*tuples.values())
    assert sum(map(len, batches)) <= sum(map(len, tuples.values())) or fill
    assert 0 < len(tuples) < len(LABELS)


def test_a_batch_knows_its_pairs():
    for batch in MinedBatchSampler(MINED, 12, negatives=2):
        a, p, b, n = MINED.local(batch)
        assert len(a) > 0 < len(b)
        labels = classes(batch)
        assert all(labels[i] == labels[j] and i != j for i, j in zip(a.tolist(), p.tolist(), strict=True))
        assert all(labels[i] != labels[j] for i, j in zip(b.tolist(), n.tolist(), strict=True))


def test_tuples_mined_anew():
    sampler = MinedBatchSampler(mine(X, LABELS, num_negatives=1), 6)
    before = list(sampler)
    sampler.refresh(MINED)
    assert list(sampler) != before
    assert list(MinedBatchSampler(mine(X[:3], ["a"] * 3), 4)) == []


# Classes.


@pytest.mark.parametrize("rule", CLASS_RULES)
@pytest.mark.parametrize("refreshed", [True, False])
@pytest.mark.parametrize(("p", "k"), [(4, 2), (2, 3), (12, 1), (6, 6)])
def test_a_batch_has_p_classes_with_k_samples(rule, refreshed, p, k):
    sampler = sampler_of(CLASS_RULES[rule](), refreshed=refreshed, classes_per_batch=p, samples_per_class=k)
    batches = list(sampler)
    assert len(batches) == len(sampler) == sampler.batches_per_epoch
    for batch in batches:
        found = Counter(classes(batch))
        assert set(found.values()) == {k}
        assert len(found) == p
        for name in found:
            own = [i for i in batch if LABELS[i] == name]
            assert len(set(own)) == min(k, LABELS.count(name))


@pytest.mark.parametrize("rule", CLASS_RULES)
def test_samples_of_a_class_take_turns(rule):
    counts = Counter(i for batch in sampler_of(CLASS_RULES[rule](), batches_per_epoch=40) for i in batch)
    for name in set(LABELS):
        own = [counts[i] for i, label in enumerate(LABELS) if label == name]
        assert max(own) - min(own) <= 1


def test_worked_graph():
    # By their first samples the similarities are 0, .6 and -.8 for (0, 2), (0, 1), (1, 2); by means .27, -.61, -.93.
    first = X9[[0, 3, 6]]
    for x, y in ((X9, Y9), (first, [0, 1, 2])):
        assert class_graph(x, y, 1).flatten().tolist() == [1, 0, 0]
        assert class_graph(x, y, 5).tolist() == [[1, 2], [0, 2], [0, 1]]
    means = torch.stack([X9[y == Y9].mean(0) for y in range(3)])
    means /= means.norm(dim=1, keepdim=True)
    values = (means @ means.T)[[0, 0, 1], [1, 2, 2]]
    assert values.tolist() == pytest.approx([0.2701378384, -0.6134836522, -0.9260725560], abs=1e-10)


@given(st.integers(0, 99), st.integers(1, 7), st.sampled_from(["mean", "all"]), st.sampled_from([None, 1, 3]))
def test_graph_equals_a_loop(seed, k, representative, chunk_size):
    noise = torch.Generator().manual_seed(seed)
    x = torch.randn(14, 3, generator=noise, dtype=torch.float64)[torch.randint(9, (14,), generator=noise)]
    labels = torch.randint(6, (14,), generator=noise)
    unit = x / x.norm(dim=1, keepdim=True)
    names = sorted(set(labels.tolist()))
    near = {}
    for a, b in combinations(names, 2):
        if representative == "all":
            value = max(float(u @ v) for u in unit[labels == a] for v in unit[labels == b])
        else:
            u, v = unit[labels == a].mean(0), unit[labels == b].mean(0)
            value = float(u @ v / u.norm() / v.norm())
        near[a, b] = near[b, a] = round(value, 12)
    expected = [
        sorted((c for c in range(len(names)) if c != i), key=lambda j: (-near[names[i], names[j]], j))[:k]
        for i in range(len(names))
    ]
    graph = class_graph(x, labels, k, representative=representative, chunk_size=chunk_size)
    assert graph.dtype == torch.int32
    # Copies of one pair of vectors are as near as those of another one, but for rounding.
    for i, (found, wanted) in enumerate(zip(graph.tolist(), expected, strict=True)):
        assert len(set(found)) == len(wanted)
        assert [near[names[i], names[j]] for j in found] == [near[names[i], names[j]] for j in wanted]


def test_no_class_is_its_own_neighbor():
    # Where all are alike, too.
    for representative in ("mean", "random", "all"):
        graph = class_graph(torch.ones(20, 3), torch.arange(20) // 2, 4, representative=representative)
        own = torch.arange(10).unsqueeze(1)
        assert not (graph == own).any()
        assert graph[3].tolist() == [0, 1, 2, 4]
        with_itself = torch.cat((own.int(), graph), 1)
        with pytest.raises(ValueError, match="graph must not hold a class as its own neighbor, got class 0"):
            ClassBatchSampler(
                torch.arange(20) // 2, classes_per_batch=3, samples_per_class=2, rule=Neighbors(with_itself)
            )


def test_random_representatives():
    graphs = [class_graph(X, LABELS, 3, representative="random", seed=seed) for seed in (0, 0, 1, 2)]
    assert torch.equal(graphs[0], graphs[1])
    assert not torch.equal(graphs[0], graphs[2]) or not torch.equal(graphs[0], graphs[3])
    sampler = sampler_of(Neighbors(), refreshed=False)
    found = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        sampler.refresh(X, representative="random")
        found.append(sampler.rule.graph)
    assert any(not torch.equal(found[0], other) for other in found)


def test_a_graph_of_one_class_is_empty():
    assert class_graph(torch.ones(3, 2), [1, 1, 1], 2).shape == (1, 0)
    assert class_graph(torch.ones(0, 2), [], 2).shape == (0, 0)


def test_neighbors_are_the_seed_and_its_nearest():
    # Every class is a seed once.
    graph = class_graph(X, LABELS, 3)
    names = sorted(set(LABELS))
    expected = Counter(frozenset([names[i], *(names[j] for j in graph[i].tolist())]) for i in range(12))
    assert Counter(frozenset(classes(batch)) for batch in sampler_of(Neighbors())) == expected


def test_worked_greedy():
    a, p = X9[[0, 3, 6]], X9[[1, 4, 7]]
    assert [greedy(a, p, 3, first=first) for first in range(3)] == [[0, 2, 1], [1, 0, 2], [2, 0, 1]]
    angles = torch.deg2rad(torch.tensor([0.0, 30, -35, 45, 62, 120], dtype=torch.float64))
    x = torch.stack((angles.cos(), angles.sin()), 1)
    assert greedy(x, x, 4, first=0) == [0, 1, 3, 4]
    assert class_graph(x, range(6), 3)[0].tolist() == [1, 2, 3]
    # As batches: a class has one sample here, which is anchor and positive, and the pool holds all.
    sampler = ClassBatchSampler(range(6), classes_per_batch=4, samples_per_class=1, rule=Greedy())
    sampler.refresh(x)
    assert [0, 1, 3, 4] in list(sampler)
    assert sorted(batch[0] for batch in sampler) == list(range(6))


@given(st.integers(0, 99), st.integers(1, 8))
def test_greedy_equals_a_loop(seed, count):
    noise = torch.Generator().manual_seed(seed)
    a, p = torch.randn(2, 6, 3, generator=noise, dtype=torch.float64)
    chosen = [seed % 6]
    while len(chosen) < min(count, 6):
        others = [j for j in range(6) if j not in chosen]
        chosen.append(max(others, key=lambda j: max(float(a[i] @ p[j] - a[i] @ p[i]) for i in chosen)))
    assert greedy(a, p, count, first=seed % 6) == chosen


def test_doubles_are_pairs_of_near_classes():
    graph = class_graph(X, LABELS, 2)
    names = sorted(set(LABELS))
    near = {names[i]: {names[j] for j in graph[i].tolist()} for i in range(12)}
    batches = list(sampler_of(Doubles(k=2), classes_per_batch=2))
    assert len(batches) == 12
    assert sorted(classes(batch)[0] for batch in batches) == names
    assert all(classes(batch)[2] in near[classes(batch)[0]] for batch in batches)


def test_groups_come_together_equally_often():
    batches = list(sampler_of(Groups(SUPER), classes_per_batch=4))
    assert len(batches) == math.comb(4, 2) * 4
    found = Counter(frozenset(SUPER[i] for i in batch) for batch in batches)
    assert found == {frozenset(each): 4 for each in combinations(range(4), 2)}
    for batch in batches:
        assert set(Counter(SUPER[i] for i in batch).values()) == {4}
    # Classes take turns.
    counts = Counter(name for batch in batches for name in set(classes(batch)))
    assert set(counts.values()) == {8}


def test_number_of_batches_of_groups():
    for supers, per, expected in ((12, 4, 264), (12, 5, 330), (23, 4, 1012)):
        groups = [g for g in range(supers) for _ in range(2)]
        rule = Groups(groups, batches_per_tuple=per)
        assert len(ClassBatchSampler(groups, classes_per_batch=2, samples_per_class=2, rule=rule)) == expected


def test_a_small_group_is_filled_up():
    # By the others of the combination, then by any: never a short batch, never a class twice.
    labels = [y for y in range(8) for _ in range(2)]
    groups = [0 if y == 0 else 1 if y < 4 else 2 for y in labels]
    sampler = ClassBatchSampler(labels, classes_per_batch=5, samples_per_class=2, rule=Groups(groups))
    for batch in sampler:
        assert len(batch) == 10
        assert len({labels[i] for i in batch}) == 5


def test_groups_go_by_class_not_by_position():
    shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    labels = [i // 2 for i in shuffled]
    groups = [i // 8 for i in shuffled]
    sampler = ClassBatchSampler(labels, classes_per_batch=2, samples_per_class=2, rule=Groups(groups, per_batch=1))
    assert all(len({groups[i] for i in batch}) == 1 for batch in sampler)
    with pytest.raises(ValueError, match="the samples of a class must be of one group"):
        ClassBatchSampler(labels, classes_per_batch=2, samples_per_class=2, rule=Groups(sorted(groups)))


def test_a_share_of_mixed_is_random():
    graph = class_graph(X, LABELS, 11)
    names = sorted(set(LABELS))
    plain, mixed = (
        [classes(batch)[::2] for batch in sampler_of(rule, classes_per_batch=8)]
        for rule in (Neighbors(), Mixed(Neighbors(), share=0.25))
    )
    assert [batch[:6] for batch in plain] == [batch[:6] for batch in mixed]
    assert [batch[6:] for batch in plain] != [batch[6:] for batch in mixed]
    first = plain[0]
    assert first == [first[0], *(names[j] for j in graph[names.index(first[0])][:7].tolist())]
    last = Counter(
        name
        for seed in range(60)
        for b in sampler_of(Mixed(Neighbors(), share=0.5), seed=seed)
        for name in classes(b)[4:]
    )
    assert set(last) == set(names)
    alone = [classes(batch) for batch in sampler_of(Mixed(Neighbors(), share=0.0))]
    assert alone == [classes(batch) for batch in sampler_of(Neighbors())]


def test_small_classes():
    labels = ["a"] * 5 + ["b"] * 2 + ["c"] + ["d"] * 3
    sampler = ClassBatchSampler(labels, classes_per_batch=None, samples_per_class=3)
    assert sampler.dropped == 1
    for batch in sampler:
        assert Counter(labels[i] for i in batch) == {"a": 3, "b": 3, "d": 3}
        assert set(batch) >= {5, 6}
    sampler = ClassBatchSampler(labels, classes_per_batch=None, samples_per_class=3, drop_small=True)
    assert sampler.dropped == 2
    assert all(Counter(labels[i] for i in batch) == {"a": 3, "d": 3} for batch in sampler)
    singles = ClassBatchSampler(labels, classes_per_batch=4, samples_per_class=1)
    assert (singles.dropped, len(next(iter(singles)))) == (0, 4)


def test_the_graph_travels_with_the_state():
    sampler = sampler_of(Mixed(Neighbors()))
    other = sampler_of(Mixed(Neighbors()), refreshed=False)
    assert list(other) != list(sampler)
    other.load_state_dict(sampler_of(Mixed(Neighbors())).state_dict())
    assert list(other) == list(sampler)
    first, second = sampler_of(Greedy(pool=6), refreshed=False), sampler_of(Greedy(pool=6))
    first.load_state_dict(second.state_dict())
    assert list(first) == list(second)
    first.load_state_dict(sampler_of(Greedy(pool=6), refreshed=False).state_dict())
    assert list(first) == list(sampler_of(Greedy(pool=6), refreshed=False))


def test_many_classes_need_no_square():
    # 10,000 classes: their similarities would be 400 MB. No block of them is larger than 16 MB.
    classes_, k = 10_000, 7
    x = torch.randn(classes_, 8, generator=torch.Generator().manual_seed(0))
    graph = class_graph(x, torch.arange(classes_), k)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    for i in (0, 5000, 9999):
        scores = unit @ unit[i]
        scores[i] = -2
        assert graph[i].tolist() == scores.topk(k).indices.tolist()


# Batches that cover everything.


@st.composite
def sizes(draw):
    counts = draw(st.lists(st.integers(1, 9), min_size=2, max_size=14))
    world = draw(st.integers(1, min(3, len(counts))))
    return counts, draw(st.integers(1, len(counts) // world)), draw(st.integers(1, 4)), world, draw(st.integers(0, 9))


@given(sizes())
def test_balanced_batches_cover_everything(case):
    counts, p, k, world, epoch = case
    labels = [y for y, count in enumerate(counts) for _ in range(count)]
    random.Random(epoch).shuffle(labels)
    ranks = [
        BalancedBatchSampler(labels, classes_per_batch=p, samples_per_class=k, num_replicas=world, rank=rank)
        for rank in range(world)
    ]
    for rank in ranks:
        rank.set_epoch(epoch)
    steps = list(zip(*ranks, strict=True))
    assert {len(rank) for rank in ranks} == {len(steps)}
    for step in steps:
        samples = [i for batch in step for i in batch]
        assert len(samples) == len(set(samples))
        found = Counter(labels[i] for i in samples)
        assert len(found) == p * world
        assert all(count == min(k, counts[y]) for y, count in found.items())
        assert all(len({labels[i] for i in batch}) == p for batch in step)
    # Everything, in as few steps as there can be.
    assert {i for step in steps for batch in step for i in batch} == set(range(len(labels)))
    hands = [math.ceil(count / min(k, count)) for count in counts]
    assert len(steps) == max(max(hands), math.ceil(sum(hands) / (p * world)))


def test_balanced_batches_resume_with_another_number_of_processes():
    def ranks(world, seed=3):
        each = {"classes_per_batch": 6 // world, "samples_per_class": 2, "num_replicas": world, "seed": seed}
        return [BalancedBatchSampler(LABELS, rank=rank, **each) for rank in range(world)]

    def steps(parts):
        return [[i for batch in step for i in batch] for step in zip(*parts, strict=True)]

    whole = steps(ranks(1))
    assert steps(ranks(2)) == steps(ranks(3)) == whole
    halves = ranks(2)
    passes = [iter(each) for each in halves]
    [next(each) for each in passes]
    for world in (1, 2, 3):
        resumed = ranks(world, seed=8)
        for each in resumed:
            each.load_state_dict(halves[0].state_dict())
        assert steps(resumed) == whole[1:]
    with pytest.raises(ValueError, match="the state is of 6 classes in a step of all processes, this sampler has 4"):
        BalancedBatchSampler(LABELS, classes_per_batch=4, samples_per_class=2).load_state_dict(halves[0].state_dict())


def test_balanced_epochs_differ():
    sampler = BalancedBatchSampler(LABELS, classes_per_batch=4, samples_per_class=2, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first


# Errors.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"classes_per_batch": 13},
            ValueError,
            "classes_per_batch must be at most the number of classes, 12, got 13",
        ),
        ({"samples_per_class": 0}, ValueError, "samples_per_class must be at least 1, got 0"),
        ({"rule": "neighbors"}, TypeError, "rule must be a ClassRule, got str"),
        ({"rule": Neighbors(torch.zeros(3, 2))}, ValueError, "graph must be integers, one row for each of 12 classes"),
        ({"rule": Neighbors(torch.full((12, 2), 12))}, ValueError, "graph must hold classes in 0..11, got 12 and 12"),
        ({"rule": Doubles(), "classes_per_batch": 3}, ValueError, "classes_per_batch must be even for Doubles, got 3"),
        ({"rule": Greedy(pool=3)}, ValueError, "pool must be at least classes_per_batch = 4, got 3"),
        ({"rule": Groups([1, 2])}, ValueError, "groups must be one for each sample, got 2 and sample"),
        ({"rule": Groups(SUPER, per_batch=5)}, ValueError, "per_batch must be at most the 4 groups and the 4 classes"),
        ({"batches_per_epoch": 0}, ValueError, "batches_per_epoch must be at least 1, got 0"),
        ({"drop_small": 1}, TypeError, "drop_small must be True or False, got 1"),
        ({"seed": -1}, ValueError, "seed must be in 0.*, got -1"),
        ({"rank": 2, "num_replicas": 2}, ValueError, "rank must be below num_replicas = 2, got 2"),
        ({"rank": -1}, ValueError, "rank must be at least"),
        ({"samples_per_class": 7, "drop_small": True}, ValueError, "labels must have at least 2 classes of 7 samples"),
    ],
)
def test_errors_name_argument_and_value(settings, error, message):
    with pytest.raises(error, match=message):
        sampler_of(**{"refreshed": False} | settings)


def test_other_errors():
    with pytest.raises(TypeError, match="rule must be a ClassRule, got str"):
        Mixed("neighbors")
    with pytest.raises(ValueError, match=r"share must be in 0\.\.1, got 2"):
        Mixed(Neighbors(), share=2)
    with pytest.raises(TypeError, match="mined must be MinedTuples, got list"):
        MinedBatchSampler([], 4)
    with pytest.raises(
        ValueError, match="classes_per_batch times num_replicas must be at most the 12 classes, got 5 times"
    ):
        BalancedBatchSampler(LABELS, classes_per_batch=5, samples_per_class=2, num_replicas=3)
    with pytest.raises(ValueError, match=rf"embeddings must be \[{len(LABELS)}, d\], one for each label, got \(3, 5\)"):
        sampler_of(Neighbors(), refreshed=False).refresh(X[:3])
    with pytest.raises(ValueError, match="embeddings must be finite, got nan"):
        sampler_of(Neighbors(), refreshed=False).refresh(X * math.nan)
    with pytest.raises(ValueError, match="representative must be 'mean', 'random' or 'all', got 'median'"):
        sampler_of(refreshed=False).refresh(X, representative="median")
    with pytest.raises(ValueError, match="representative must be 'mean', 'random' or 'all', got 'median'"):
        class_graph(X, LABELS, 2, representative="median")
    with pytest.raises(ValueError, match="epoch must be at least 1, got -1"):
        sampler_of().set_epoch(-1)
