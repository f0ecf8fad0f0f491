"""The pictures of pair weights and the pages about methods: what is drawn and printed, and nothing else."""

import math
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace

import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from of_pml import AvgNonZeroReducer, CosineSimilarity
from of_pml import losses as pml
from pytorch_metric_learning.miners import BatchEasyHardMiner, MultiSimilarityMiner
from pytorch_metric_learning.regularizers import LpRegularizer

from pml_ext import catalog, losses, wrappers
from pml_ext.__main__ import main
from pml_ext.analysis import EmbeddingHealth, NoPairWeightsError, pair_weights
from pml_ext.analysis.curves import compares_samples, drawn_pairs
from pml_ext.analysis.explain import explain, parts, signature
from pml_ext.analysis.formulas import composed, formula, is_ours, sections
from pml_ext.analysis.plots import (
    PULL,
    PUSH,
    budget,
    weight_curves,
    weight_matrix,
    weight_scatter,
)
from pml_ext.analysis.pml_parts import FORMULAS
from pml_ext.testing import Batch


@pytest.fixture(autouse=True)
def _nothing_behind_the_users_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert pyplot.get_fignums() == []


def drawn(axis):
    return {to_hex(line.get_color()).upper(): line.get_xydata() for line in axis.get_lines()}


def test_curves_are_the_closed_form():
    contrastive = losses.AnchorContrastiveLoss(pos_margin=1, neg_margin=0.5, average=False, distance=CosineSimilarity())
    state = torch.get_rng_state()
    figure = weight_curves({"contrastive": contrastive, "triplet": pml.TripletMarginLoss()}, points=13)
    assert isinstance(figure, Figure)
    panels = figure.get_axes()
    assert len(panels) == 6
    for axis in panels[:3]:
        assert (drawn(axis)[PULL][:, 1] == 1).all()
    similarity, weight = drawn(panels[0])[PUSH].T
    assert ((similarity > 0.5) == (weight == 1)).all()
    assert (drawn(panels[1])[PUSH][:, 1] == 1).all()  # a contrastive weight depends on the pair alone
    similarity, weight = drawn(panels[5])[PULL].T
    assert (weight[similarity > 0.9] > 0).all()  # while another negative is near, the positive is in a triplet with it
    assert [panels[0].get_ylabel(), panels[3].get_ylabel()] == ["contrastive", "triplet"]
    assert torch.equal(torch.get_rng_state(), state)
    assert list(Path().iterdir()) == []


def test_curves_do_not_depend_on_the_reducer():
    one, other = (weight_curves(losses.RAWLoss(reducer=r), points=5) for r in (None, AvgNonZeroReducer()))
    for a, b in zip(one.get_axes(), other.get_axes(), strict=True):
        assert (drawn(a)[PULL] == drawn(b)[PULL]).all()


def test_which_losses_have_curves():
    assert compares_samples(losses.RAWLoss())
    assert compares_samples(pml.ContrastiveLoss())
    assert compares_samples(wrappers.AnchorWeightedLoss(losses.RAWLoss()))
    assert compares_samples(catalog.build("XBM", embedding_size=8).loss)
    for name in ("CenterNCA", "BinBranch", "NPair"):
        assert not compares_samples(catalog.build(name).loss)
    assert not compares_samples(pml.SoftTripleLoss(4, 8))


def test_a_loss_without_weights_of_pairs_has_no_curves():
    with pytest.raises(NoPairWeightsError):
        compares_samples(pml.AngularLoss())


def test_scatter_shows_every_pair():
    batch = Batch((3, 4, 2), 4, seed=3)
    found = pair_weights(losses.RAWLoss(), batch.embeddings, batch.labels)
    (axis,) = weight_scatter(found, title="RAW").get_axes()
    positive, negative = (points.get_offsets() for points in axis.collections)
    assert len(positive) == found.pos.sum()
    assert sorted(negative[:, 1]) == pytest.approx(sorted(found.weights[found.neg].tolist()))
    assert [c.get_label() for c in axis.collections] == ["positive pair", "negative pair"]


def test_pairs_of_samples_and_proxies_are_pulled_and_pushed():
    batch = Batch((3, 4, 2), 4, seed=3)
    found = pair_weights(pml.ProxyNCALoss(3, 4).double(), batch.embeddings, batch.labels)
    (axis,) = weight_scatter(found).get_axes()
    assert [c.get_label() for c in axis.collections] == ["pulled pair", "pushed pair"]


def test_matrix_is_sorted_by_class_and_signed():
    batch = Batch((3, 4, 2), 4, seed=3)
    found = pair_weights(losses.RAWLoss(), batch.embeddings, batch.labels)
    axis, _bar = weight_matrix(found, batch.labels, title="RAW").get_axes()
    image = torch.as_tensor(axis.get_images()[0].get_array().data)
    order = batch.labels.argsort(stable=True)
    torch.testing.assert_close(image, found.derivative[order][:, order])
    assert [line.get_ydata()[0] for line in axis.get_lines()[:2]] == [2.5, 6.5]
    several = pair_weights(wrappers.BranchLoss(losses.RAWLoss(), 2), batch.embeddings, batch.labels)
    axis, _bar = weight_matrix(several, batch.labels).get_axes()
    with pytest.raises(ValueError, match=r"\(9, 9\) weights need as many labels, got 9 and 3"):
        weight_matrix(found, batch.labels, batch.labels[:3])


def test_budget_of_a_run():
    loss, labels = losses.RAWLoss(), torch.arange(12) // 3
    health = EmbeddingHealth(loss, every=1)
    generator = torch.Generator().manual_seed(0)
    for iteration in range(6):
        x = torch.randn(12, 8, generator=generator) if iteration < 4 else torch.ones(12, 8)
        loss(x.requires_grad_(), labels)
        health.step(iteration)
    figure = budget(health.history, title="RAW")
    pull, _numbers, spread = figure.get_axes()
    assert drawn(pull)[PULL][:, 1].tolist() == [h.pull for h in health.history.values()]
    assert len(spread.patches) == 2  # two measurements with a failure
    assert spread.get_xlabel() == "iteration (gray: collapsed)"
    assert budget({}).get_axes()


def test_a_page_tells_what_the_docstrings_tell():
    page = explain(catalog.build("BinDeviance2018", base=0.4))
    for text in (
        "BinDeviance2018\n===============",
        "Loss: BinomialDevianceLoss(alpha=2, beta=50, base=0.4, scale=2, balance=1)",
        "mean_{p in P_i} log(1 + exp(-alpha (s_ip - base)))",
        "distance: CosineSimilarity(p=2, power=1) of normalized embeddings, larger is closer",
        "reducer: MeanReducer",
        "Miner: HardNegativePairMiner(epsilon=0.05)",
        "BinDeviance is this loss on the pairs of",
    ):
        assert text in page
    assert sections("One line.\n\nArgs:\n    x: a number.") == {"Formula": "One line.", "Args": "x: a number."}


def whole(name):
    needed = {each: {"num_classes": 4, "embedding_size": 8}[each] for each in catalog.required(name)}
    return composed(catalog.build(name, **needed))


def test_the_formula_of_a_method_of_several_parts_is_whole():
    assert whole("CenterPair").split("\n\n") == [
        "    L_i = log sum_{N_i} exp(-min(D_in, neg_margin)) - log sum_{P_i} exp(-max(D_ip, pos_margin))",
        "    P_i = the centers of class y_i ,   N_i = the centers of the other classes",
        "    c_k = 1/n_k  sum_{i: y_i = k} x_i ,   n_k = the number of samples of class k",
    ]
    page = explain(catalog.build("CenterPair"))
    assert page.index("log sum_{N_i}") < page.index("Its parts:") < page.index("Loss: CentersAsReferences")
    assert whole("RAW") == ""
    assert "Its parts" not in explain(catalog.build("RAW"))


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("BinBranch", ("    L = 1/B sum_b L'(x[:, slice b])", "    L'_i = scale (", "    N'_i = { n in N_i")),
        ("XBM", ("    L = mean_{ip}", "    P_i = the samples of class y_i in the queue")),
        ("MCA", ("    L_i = -log(", "The centers c are those of `LearnedCenters`.", "    N'_i = the k negatives")),
        ("ClusterNCA", ("With P^k_i", "    c_g = 1/n_g", "that of the other samples of the group.")),
        ("ABatchAll", ("    L_i = a_i L'_i", "    L' = 1/V", "where L'_i is the share of anchor i in L'.")),
        ("ROADMAP", ("    L = L'_{ranks} + L'_{calibration}", "    L'_{ranks, i} = 1 -", "    L'_{calibration, i} =")),
        ("NPair", ("    L_c = -log(", "0.0015 R is added to L, with", "    R = mean_i")),
        ("DistanceMatch", ("    L_i = 1/J", "`InverseDensityMiner` samples", "    P'_i = the k", "    N'_i = {")),
    ],
)
def test_a_whole_formula_has_every_part_in_order(name, shown):
    text = whole(name)
    places = [text.index(each) for each in shown]
    assert places == sorted(places)
    assert (", without i itself" in text) == (name == "XBM")


def test_a_whole_formula_of_any_loss():
    """Lists, weights, losses and miners without a formula."""
    several = pml.MultipleLosses([pml.CircleLoss(), losses.BatchHardTripletLoss()], weights=[1, 0.5])
    text = composed(catalog.Recipe("mine", several, BatchEasyHardMiner(), "me"))
    assert "    L = L'_{0} + 0.5 L'_{1}\n\n    L'_{0} = CircleLoss(x, y)\n\n" in text
    assert "    L'_{1, i} = [z_i + margin]+" in text
    assert text.endswith("The pairs are those of `BatchEasyHardMiner`.")


@pytest.mark.parametrize("name", catalog.recipes)
def test_explain_any_method(name):
    needed = {each: {"num_classes": 4, "embedding_size": 8}[each] for each in catalog.required(name)}
    page = explain(catalog.build(name, **needed))
    assert page.startswith(name)
    assert "Loss: " in page
    assert "object at 0x" not in page
    assert all(len(line) <= 122 for line in page.splitlines())


def test_every_part_of_pml_has_a_formula():
    built = (
        catalog.build(name, **{each: {"num_classes": 4, "embedding_size": 8}[each] for each in entry.required})
        for name, entry in catalog.recipes.items()
    )
    of_pml = {type(part).__name__: part for recipe in built for _, part in parts(recipe) if not is_ours(part)}
    assert set(of_pml) == set(FORMULAS)
    assert all("\n\n    " in formula(part) for part in of_pml.values())
    assert "its documentation" in formula(pml.CircleLoss())


@pytest.mark.pml2("its numbers")
def test_formulas_of_parts_of_pml_are_what_pml_computes():
    """Each of `FORMULAS` once more, in plain Python."""
    draw = torch.Generator().manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(6, 3, generator=draw, dtype=torch.float64))
    labels = [0, 0, 1, 1, 2, 2]
    y, sim, dist = torch.tensor(labels), (x @ x.T).tolist(), torch.cdist(x, x).tolist()
    pos = [(i, j) for i in range(6) for j in range(6) if i != j and labels[i] == labels[j]]
    neg = [(i, j) for i in range(6) for j in range(6) if labels[i] != labels[j]]

    pulls, pushes = [max(dist[i][p] - 0.3, 0) for i, p in pos], [max(0.9 - dist[i][n], 0) for i, n in neg]
    contrastive = mean(value for value in pulls if value) + mean(value for value in pushes if value)
    assert pml.ContrastiveLoss(0.3, 0.9)(x, y).item() == pytest.approx(contrastive)

    hinges = [
        (max(dist[i][p] - 1.2 + 0.2, 0), max(1.2 - dist[i][n] + 0.2, 0)) for i, p in pos for j, n in neg if i == j
    ]
    positive = sum((a > 0) + (b > 0) for a, b in hinges)
    assert pml.MarginLoss()(x, y).item() == pytest.approx(sum(a + b for a, b in hinges) / positive)

    soft = pml.SoftTripleLoss(3, 3, centers_per_class=2, la=7, gamma=0.4, margin=0.1)
    assert signature(soft) == "SoftTripleLoss(num_classes=3, centers_per_class=2, la=7, gamma=0.4, margin=0.1)"
    centers = torch.nn.functional.normalize(soft.fc.detach().double().T).view(3, 2, 3)
    cosines = torch.einsum("id,ckd->ick", x, centers).tolist()
    costs = []
    for i, own in enumerate(labels):
        shares = [[math.exp(s / 0.4) for s in cosines[i][c]] for c in range(3)]
        of_class = [
            sum(q * s for q, s in zip(shares[c], cosines[i][c], strict=True)) / sum(shares[c]) for c in range(3)
        ]
        raised = [math.exp(7 * (s - 0.1 * (c == own))) for c, s in enumerate(of_class)]
        costs.append(-math.log(raised[own] / sum(raised)))
    assert soft(x, y).item() == pytest.approx(mean(costs))

    given = tuple(torch.tensor(each) for each in ([0, 2, 4], [1, 3, 5], [0], [2]))
    logits = [[sim[a][p] for p in (1, 3, 5)] for a in (0, 2, 4)]
    costs = [-math.log(math.exp(row[c]) / sum(map(math.exp, row))) for c, row in enumerate(logits)]
    assert pml.NPairsLoss()(x, y, given).item() == pytest.approx(mean(costs))

    regularized = LpRegularizer(p=3, power=2)(3 * x).item()
    assert regularized == pytest.approx(mean(sum(abs(3 * v) ** 3 for v in row) ** (2 / 3) for row in x.tolist()))

    a, p, b, n = (each.tolist() for each in MultiSimilarityMiner(epsilon=0.1)(x, y))
    nearest = [max(sim[i][j] for k, j in neg if k == i) for i in range(6)]
    farthest = [min(sim[i][j] for k, j in pos if k == i) for i in range(6)]
    assert set(zip(a, p, strict=True)) == {(i, j) for i, j in pos if sim[i][j] - 0.1 < nearest[i]} != set(pos)
    assert set(zip(b, n, strict=True)) == {(i, j) for i, j in neg if sim[i][j] + 0.1 > farthest[i]} != set(neg)

    weighted = pml.MultipleLosses([pml.ContrastiveLoss(0.3, 0.9), pml.MarginLoss()], weights=[2, 3])
    assert weighted(x, y).item() == pytest.approx(2 * contrastive + 3 * sum(a + b for a, b in hinges) / positive)


@pytest.mark.usefixtures("_few_points")
@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("RAW", "Pair weights drawn in RAW_weights.png"),
        ("DistWeightBinDeviance", "drawn in DistWeightBinDeviance_weights.png"),
        ("MCA", "drawn in MCA_weights.png"),
        ("JSDivBranch", "drawn in JSDivBranch_weights.png"),
        ("XBM", "drawn in XBM_weights.png"),
        ("Center", "No plot: CenterLoss never compares embeddings through its distance, so it has no pair weights."),
    ],
)
def test_explain_on_the_command_line(name, ending, capsys):
    assert main(["explain", name]) == 0
    output = capsys.readouterr().out
    assert output.strip().endswith(ending)
    assert ("Chosen for this page" in output) == bool(catalog.required(name))
    assert [path.name for path in Path().iterdir()] == ([] if name == "Center" else [f"{name}_weights.png"])


@pytest.mark.usefixtures("_few_points")
def test_explain_says_what_is_wrong(capsys):
    assert main(["explain", "RAWW", "--out", "x.png"]) == 2
    assert capsys.readouterr().err == "pml_ext explain: unknown loss 'RAWW'; did you mean RAW or RAWLoss?\n"
    assert main(["explain", "RAW", "--out", "no/such/folder/x.png"]) == 2
    assert "no/such/folder" in capsys.readouterr().err
    assert main(["explain", "RAW", "--out", "weights.doc"]) == 2
    assert "must end in png, svg, pdf" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    assert "a name as in train" in capsys.readouterr().out


@pytest.mark.usefixtures("_few_points")
def test_explain_draws_into_the_file_that_was_named(capsys):
    assert main(["explain", "RAW", "--out", "weights"]) == 0
    assert capsys.readouterr().out.endswith("drawn in weights\n")
    assert Path("weights").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in Path().iterdir()] == ["weights"]


@pytest.mark.usefixtures("_few_points")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_explain_says_that_the_disk_is_full(capsys):
    assert main(["explain", "RAW", "--out", "/dev/full"]) == 2
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.usefixtures("_few_points")
@pytest.mark.parametrize(
    "name", ["RAWLoss", "pml:TripletMarginLoss", "TripletMarginLoss", "own:Mine", "RAW(gamma=0.3)"]
)
def test_explain_takes_what_the_main_job_takes(name, capsys, monkeypatch):
    class Mine(losses.RAWLoss):
        """Mine."""

    monkeypatch.setitem(sys.modules, "own", SimpleNamespace(Mine=Mine))
    assert main(["explain", name]) == 0
    assert capsys.readouterr().out.startswith(name)


@pytest.mark.parametrize("name", ["CenterPair", "CenterNCA", "MCA", "SoftTriple", "BinBranch"])
def test_pairs_that_are_drawn_have_more_than_one_weight(name):
    sizes = {"num_classes": 4, "embedding_size": 8}
    recipe = catalog.build(name, **{need: sizes[need] for need in catalog.recipes[name].required})
    before = torch.random.get_rng_state()
    found = drawn_pairs(recipe, dimension=8)
    assert torch.equal(torch.random.get_rng_state(), before)
    pushed = found.weights[found.neg] / found.weights[found.neg].max()
    assert ((pushed > 0.02) & (pushed < 0.98)).sum() >= 3


def test_pairs_that_are_drawn_lie_on_both_sides_of_each_margin():
    margins = {"pos_margin": 0.15, "neg_margin": 0.6}
    found = drawn_pairs(catalog.build("CenterPair", **margins))
    distance = -found.similarity
    assert torch.equal(found.weights[found.pos] > 0, distance[found.pos] > margins["pos_margin"])
    assert torch.equal(found.weights[found.neg] > 0, distance[found.neg] < margins["neg_margin"])
    for mask in (found.pos, found.neg):
        assert 4 <= (found.weights[mask] > 0).sum() <= mask.sum() - 4
