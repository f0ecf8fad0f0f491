"""Tuning: equal trials, judged on validation classes only, the same whether it was interrupted or not."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from of_pml import needs

from pml_ext.__main__ import main as pml_ext_command
from pml_ext.benchmark import BenchmarkError, Experiment, cli, losses, search
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.evaluate import NotFinite
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.search import rounded, suggested, tune
from pml_ext.benchmark.training import Run
from pml_ext.spaces import Range

SMALL = {"data": "digits", "validation": 0.4, "epochs": 1, "steps": 1}


def experiment(out, **arguments):
    return Experiment(**SMALL | {"losses": ("RAW", "NCA"), "out": str(out)} | arguments)


@pytest.fixture
def scored(monkeypatch):
    """Every trial is judged by its text alone; the texts, in order."""
    tried = []

    def score(experiment, data, spec, where):
        tried.append(spec)
        return losses.searched(spec).arguments.get("alpha", 3.0) % 1.0

    monkeypatch.setattr(search, "_score", score)
    monkeypatch.setattr(search, "STARTUP", 2)
    return tried


def test_every_loss_has_the_same_number_of_trials_and_its_own_values_come_first(tmp_path, scored):
    said = []
    found = tune(experiment(tmp_path / "out"), 6, say=said.append)
    assert [each.loss for each in found] == ["RAW", "NCA"]
    assert [each.trials for each in found] == [6, 6]
    assert (scored[0], scored[6], len(scored), len(set(scored))) == ("RAW", "NCA", 12, 12)
    for each, tried in zip(found, (scored[:6], scored[6:]), strict=True):
        scores = [losses.searched(spec).arguments.get("alpha", 3.0) % 1.0 for spec in tried]
        assert each.best == tried[scores.index(max(scores))]
        assert (each.score, each.default) == (max(scores), 0.0)
        assert losses.searched(each.loss).written(each.values) == each.best
    assert said[0] == "digits: 6 trials for each of RAW, NCA, 12 trainings in all"
    assert said[-1] == f"the best values are in {tmp_path / 'out' / 'tuned.json'}"


def test_values_are_in_their_ranges_and_build(tmp_path, scored):
    tune(experiment(tmp_path / "out", losses=("BinDeviance2018", "pml:MarginLoss", "NCA")), 5)
    for spec in scored:
        name = spec.partition("(")[0]
        space, arguments = losses.searched(name).space, losses.searched(spec).arguments
        for key, value in arguments.items():
            assert space[key].low <= value <= space[key].high
            assert isinstance(value, space[key].kind)
        losses.parse(spec).build(classes=4, embedding_size=8)
    assert any("miner.epsilon=" in spec for spec in scored)


@pytest.mark.parametrize("end", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path, scored, monkeypatch, end):
    tune(experiment(tmp_path / "whole"), 4)
    whole, scored[:] = list(scored), []
    score = search._score

    def interrupted(*arguments):
        if len(scored) in (0, 3, 6):
            scored.append("interrupted")
            raise end
        return score(*arguments)

    monkeypatch.setattr(search, "_score", interrupted)
    for _ in range(3):
        with pytest.raises(end):
            tune(experiment(tmp_path / "out"), 4, resume=len(scored) > 0)
    found = tune(experiment(tmp_path / "out"), 4, resume=True)
    assert [spec for spec in scored if spec != "interrupted"] == whole
    assert [each.trials for each in found] == [4, 4]


def test_a_killed_trial_is_made_again(tmp_path, scored):
    tune(experiment(tmp_path / "whole", losses=("NCA",)), 4)
    whole, scored[:] = list(scored), []
    tune(experiment(tmp_path / "out", losses=("NCA",)), 2)
    study = optuna.load_study(study_name="NCA", storage=f"sqlite:///{tmp_path}/out/trials.db")
    study.ask()  # the process that holds this trial is killed
    study._storage._backend.engine.dispose()
    tune(experiment(tmp_path / "out", losses=("NCA",)), 4, resume=True)
    assert scored == whole


def test_a_search_grows(tmp_path, scored):
    tune(experiment(tmp_path / "whole", losses=("NCA",)), 6)
    whole, scored[:] = list(scored), []
    tune(experiment(tmp_path / "out", losses=("NCA",)), 3)
    tune(experiment(tmp_path / "out", losses=("RAW", "NCA")), 6, resume=True)
    assert len(scored) == 12
    assert [spec for spec in scored if spec.startswith("NCA")] == whole
    fewer = tune(experiment(tmp_path / "out", losses=("NCA",)), 2, resume=True)
    assert len(scored) == 12
    assert fewer[0].trials == 2


def test_what_was_found_is_a_config_that_runs(tmp_path, scored):
    found = tune(experiment(tmp_path / "out", folds=2, validation=None, learning_rate=0.01), 3)
    config = tmp_path / "out" / "tuned.json"
    again = Experiment(config=str(config))
    assert again.losses == tuple(each.best for each in found)
    assert (again.data, again.folds, again.learning_rate, again.out) == ("digits", 2, 0.01, None)
    table = (tmp_path / "out" / "tuned.md").read_text()
    assert "| RAW | 0.0000 |" in table


def test_trials_train_and_the_test_classes_are_not_looked_at(tmp_path, monkeypatch):
    def test(self):
        raise AssertionError("the test classes were looked at")

    monkeypatch.setattr(Run, "_test", test)
    (found,) = tune(experiment(tmp_path / "out", losses=("RAW",)), 2)
    assert 0 < found.default <= found.score < 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "trials.db",
        "tune.json",
        "tuned.json",
        "tuned.md",
    ]
    assert not (tmp_path / "out" / ".trial").exists()


def test_a_trial_is_the_mean_over_folds_and_seeds(tmp_path, monkeypatch):
    fits = []

    def fit(self):
        fits.append((self.fold, self.seed))
        key = "mean_average_precision_at_r"
        self.history = [{key: 0.1 * len(fits)}, {key: 0.0}, {key: float("nan")}]

    monkeypatch.setattr(Run, "fit", fit)
    (found,) = tune(experiment(tmp_path / "out", losses=("RAW",), folds=2, validation=None, seeds=(3, 4)), 1)
    assert fits == [(0, 3), (0, 4), (1, 3), (1, 4)]
    assert found.score == pytest.approx(0.25)


def test_a_trial_that_diverges_counts_as_nothing(tmp_path, monkeypatch):
    def fit(self):
        raise NotFinite("nan")

    monkeypatch.setattr(Run, "fit", fit)
    (found,) = tune(experiment(tmp_path / "out", losses=("RAW",)), 2)
    assert (found.score, found.trials, found.best) == (0.0, 2, "RAW")


# ---- what is refused ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"validation": 0}, "digits has no validation classes to judge by: give --validation or --folds"),
        ({"losses": ("RAW(alpha=1, beta=9, gamma=.4, epsilon=.1)",)}, "nothing to tune"),
        ({"losses": ("HDML-Triplet",)}, "HDML-Triplet has nothing to tune"),
        ({"losses": ("pml:VICRegLoss",)}, "VICRegLoss has nothing to tune"),
    ],
)
def test_what_cannot_be_searched(tmp_path, arguments, message):
    if arguments == {"losses": ("pml:VICRegLoss",)}:
        needs("VICRegLoss")
    with pytest.raises(BenchmarkError, match=message):
        tune(experiment(tmp_path / "out", **arguments), 2)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("trials", [0, -1, True, 2.5])
def test_a_wrong_number_of_trials(tmp_path, trials):
    with pytest.raises(BenchmarkError, match=f"trials must be a whole number of at least 1, got {trials}"):
        tune(experiment(tmp_path / "out"), trials)


def test_an_object_cannot_be_searched(tmp_path):
    from pml_ext.losses import RAWLoss

    with pytest.raises(BenchmarkError, match="only a loss that is written as a text"):
        tune(experiment(tmp_path / "out", losses=(RAWLoss(),)), 2)


def test_a_folder_that_holds_something_else(tmp_path, scored):
    tune(experiment(tmp_path / "out"), 1)
    for wrong, arguments, message in (
        ("out", {}, "holds a search already: continue it with --resume"),
        ("nowhere", {"resume": True}, "there is no search in .*nowhere to resume"),
    ):
        with pytest.raises(BenchmarkError, match=message):
            tune(experiment(tmp_path / wrong), 1, **arguments)
    with pytest.raises(
        BenchmarkError, match=r"the search in .*out has epochs 1, not 2; steps 1, not 4: leave that out"
    ):
        tune(experiment(tmp_path / "out", epochs=2, steps=4), 1, resume=True)
    (tmp_path / "out" / "trials.db").write_bytes(b"no database" * 100)
    with pytest.raises(BenchmarkError, match=r"trials\.db cannot be used: .*not a database") as caught:
        tune(experiment(tmp_path / "out"), 1, resume=True)
    assert "\n" not in str(caught.value)


def test_without_optuna(tmp_path, monkeypatch):
    found = search.find_spec
    monkeypatch.setattr(search, "find_spec", lambda name: None if name == "optuna" else found(name))
    with pytest.raises(BenchmarkError, match=r'tune needs optuna: pip install "pml_ext\[benchmark\]"'):
        tune(experiment(tmp_path / "out"), 1)


# ---- what a search may change ----


class MyLoss:
    space = {"weight": Range(0, 1, 0.5)}  # noqa: RUF012 - as a user would write it

    def __init__(self, weight=0.5, margin=0.1):
        self.weight = weight


@pytest.mark.parametrize(
    ("spec", "keys", "written"),
    [
        ("RAW", ["alpha", "beta", "gamma", "epsilon"], "RAW(x=1)"),
        ("RAWLoss(gamma=0.3)", ["alpha", "beta", "epsilon"], "RAWLoss(gamma=0.3, x=1)"),
        ("BinDeviance2018(alpha=3)", ["beta", "base", "balance", "miner.epsilon"], "BinDeviance2018(alpha=3, x=1)"),
        (
            "BinDeviance2018 + pml:DistanceWeightedMiner(cutoff=0.4)",
            ["alpha", "beta", "base", "balance"],
            "BinDeviance2018(x=1) + pml:DistanceWeightedMiner(cutoff=0.4)",
        ),
        ("pml:TripletMarginLoss", ["margin"], "pml:TripletMarginLoss(x=1)"),
        ("my_searched:MyLoss", ["weight"], "my_searched:MyLoss(x=1)"),
    ],
)
def test_what_is_searched_and_how_it_is_written(monkeypatch, spec, keys, written):
    if "DistanceWeightedMiner" in spec:
        needs("DistanceWeightedMiner")
    monkeypatch.setitem(sys.modules, "my_searched", SimpleNamespace(MyLoss=MyLoss))
    found = losses.searched(spec)
    assert list(found.space) == keys
    assert found.written({"x": 1}) == written
    assert found.written({}) == spec


@given(st.floats(1e-6, 1e6), st.floats(1, 1e4), st.booleans(), st.booleans(), st.integers(0, 1000))
def test_suggested_values_lie_in_their_ranges(low, factor, log, whole, seed):
    each = Range(low, low * factor, low, log=log)
    if whole:
        each = Range(int(low) + 1, int(low * factor) + 1, int(low) + 1, log=log, whole=True)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    value = suggested(study.ask(), {"x": each})["x"]
    assert each.low <= value <= each.high
    assert isinstance(value, each.kind)
    if not whole:
        assert rounded(value, each) == value


# ---- learning rates ----


class OwnRate:
    """A loss that has a learning rate itself."""

    def __init__(self, learning_rate=0.5):
        self.learning_rate = learning_rate

    def __call__(self, embeddings, labels, indices_tuple=None):
        return embeddings.sum() * self.learning_rate


def test_rates_of_a_loss_take_the_place_of_the_experiments(tmp_path):
    text = "SoftTriple(learning_rate=0.01, loss_learning_rate=0.2, trunk_learning_rate=0.002)"
    spec = losses.parse(text)
    assert spec.name == text
    given = experiment(tmp_path / "out", learning_rate=0.05, losses=(text, "RAW"))
    data = Data.of(given)
    for loss, wanted in ((text, (0.002, 0.01, 0.2)), ("RAW", (0.05, 0.05))):
        (tmp_path / loss).mkdir()
        run = Run(given, data, losses.parse(loss), 0, tmp_path / loss, Progress(0, shown=False))
        assert tuple(each.param_groups[0]["lr"] for each in run.learner.optimizers.values()) == wanted
    own = losses.parse(f"{__name__}:OwnRate(learning_rate=0.25, trunk_learning_rate=1e-3)")
    assert own.rates == {"trunk_learning_rate": 1e-3}
    assert own.build(classes=2, embedding_size=2).loss.function.learning_rate == 0.25
    with pytest.raises(BenchmarkError, match=r"learning_rate of RAW must be a finite number above 0, got -1"):
        losses.parse("RAW(learning_rate=-1)")


@pytest.mark.parametrize(
    ("loss", "changes", "rates"),
    [
        ("RAW", {}, {"learning_rate": 0.003}),
        ("RAW(learning_rate=0.1)", {}, {}),
        ("SoftTriple", {"loss_learning_rate": 0.5}, {"learning_rate": 0.003, "loss_learning_rate": 0.5}),
        ("RAW", {"pretrained": True}, {"learning_rate": 0.003, "trunk_learning_rate": 0.003 * 0.1}),
        ("RAW", {"pretrained": True, "trunk_learning_rate": 0.0}, {"learning_rate": 0.003}),
        ("RAW", {"pretrained": True, "frozen": True}, {"learning_rate": 0.003}),
    ],
)
def test_which_rates_are_searched(tmp_path, loss, changes, rates):
    changes = dict(changes)
    pretrained = changes.pop("pretrained", False)
    given = experiment(tmp_path / "out", losses=(loss,), **changes)
    data = Data.of(given)
    if pretrained:
        data = replace(data, trunk=replace(data.trunk, pretrained=True))
    known = losses.searched(loss)
    found = search._with_rates(known, given, data).space
    assert {key: each.default for key, each in found.items() if key not in known.space} == rates
    for key in rates:
        assert (found[key].low, found[key].high) == pytest.approx((rates[key] / 10, rates[key] * 10))
        assert found[key].log


def test_a_search_of_rates_has_equal_trials_and_ends_in_a_config_that_runs(tmp_path, scored):
    out = tmp_path / "out"
    said = []
    names = ("RAW", "pml:NPairsLoss", "NCA")  # the second has nothing else to tune
    tune(experiment(out, losses=names), 3, rates=True, say=said.append)
    assert "the learning rates are searched too, for each loss its own" in said
    tune(experiment(out, losses=names), 5, resume=True)
    assert [sum(spec.startswith(name) for spec in scored) for name in names] == [5, 5, 5]
    assert [spec for spec in scored if spec in names] == list(names), "as it is, once for each"
    for spec in scored:
        assert spec in names or 0.0003 <= losses.parse(spec).rates["learning_rate"] <= 0.03
    document = json.loads((out / "tuned.json").read_text())
    tried = Experiment(config=str(out / "tuned.json"), data="digits", out=str(tmp_path / "x"))
    assert list(tried.losses) == document["losses"]
    with pytest.raises(BenchmarkError, match="NPairsLoss has nothing to tune"):
        tune(experiment(tmp_path / "without", losses=names), 3)
    tune(experiment(tmp_path / "plain", losses=("RAW",)), 1)
    with pytest.raises(BenchmarkError, match="has rates False, not True: leave that out"):
        tune(experiment(tmp_path / "plain", losses=("RAW",)), 2, rates=True, resume=True)


# ---- the command ----


def test_the_command(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(search, "tune", lambda *arguments, **named: asked.append((arguments, named)))
    out = tmp_path / "out of it"
    flags = ["--data", "digits", "--losses", "NCA", "--epochs", "2", "--out", str(out)]
    assert cli.main(["tune", *flags, "--trials", "7"]) == 0
    said = capsys.readouterr().out
    assert said == f"run them with: python -m pml_ext.benchmark --config '{out / 'tuned.json'}'\n"
    assert pml_ext_command(["tune", *flags[:-1], str(tmp_path / "other")]) == 0
    assert capsys.readouterr().out == f"run them with: pml-ext train --config {tmp_path / 'other' / 'tuned.json'}\n"
    asked.pop()
    (arguments, trials), named = asked[0]
    assert (arguments.losses, arguments.epochs, trials, named["resume"]) == (("NCA",), 2, 7, False)
    out.mkdir()
    (out / "tune.json").write_text(json.dumps(arguments.arguments() | {"out": None}))
    assert cli.main(["tune", "--resume", "--out", str(out), "--losses", "RAW"]) == 0
    (arguments, trials), named = asked[1]
    assert (arguments.losses, arguments.epochs, trials, named["resume"]) == (("RAW",), 2, 30, True)
    assert [each["rates"] for _, each in asked] == [False, False]
    assert cli.main(["tune", *flags[:-1], str(tmp_path / "rates"), "--rates"]) == 0
    assert asked[2][1]["rates"]
    assert cli.main(["tune", "--resume"]) == 2
    assert "give --out" in capsys.readouterr().err

    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    def begun(experiment, *arguments, **named):
        Path(experiment.out).mkdir(parents=True)
        (Path(experiment.out) / "tune.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(search, "tune", interrupted)
    assert cli.main(["tune", "--resume", "--out", str(out)]) == 130
    assert f"continue with: python -m pml_ext.benchmark tune --resume --out '{out}'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "tune", begun)
    assert pml_ext_command(["tune", *flags[:-2]]) == 130  # whose folder has the date and the time
    assert re.search(r"continue with: pml-ext tune --resume --out runs/digits-\d+-\d+$", capsys.readouterr().err)
    for wrong in (["--trials", "3"], ["tune", "--check"]):
        with pytest.raises(SystemExit):
            cli.main(wrong)


def test_check_names_everything_that_is_wrong(tmp_path, capsys):
    import numpy as np
    from PIL import Image

    for i in range(16):
        path = tmp_path / "photos" / f"class {i // 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(i).integers(0, 256, (24, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    command = ["--data", str(tmp_path / "photos"), "--check"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "8 classes, 16 images; 4 / 4 classes train / test\n"
    (tmp_path / "photos" / "class 1" / "2.png").write_bytes(path.read_bytes()[:300])
    (tmp_path / "photos" / "class 2" / "4.png").write_text("<html>")
    assert cli.main(command) == 1
    first, *wrong = capsys.readouterr().out.splitlines()
    assert first == "8 classes, 16 images; 4 / 4 classes train / test"
    assert ["2.png" in wrong[0], "4.png" in wrong[1], len(wrong)] == [True, True, 2]
