"""The benchmark of what came since 2018: false negatives are made as it says, and its page says what its runs hold."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.models import Network
from pml_ext.benchmark.result import BASELINES
from pml_ext.datasets.samples import Samples
from pml_ext.miners import GuidedMiner

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import since_2018
import since_2018_page as page_of


def part(classes, of_each, first):
    labels = torch.arange(classes).repeat_interleave(of_each)
    vectors = torch.arange(first, first + len(labels)).unsqueeze(1).expand(-1, 3).float()
    return Samples("x", labels, tuple(map(str, range(classes))), vectors=vectors)


def test_a_share_of_the_training_classes_is_split_and_nothing_else():
    parts = {"train": part(8, 6, 0), "validation": part(3, 5, 100), "test": part(4, 5, 200)}
    data = SimpleNamespace(name="x", **parts)
    plain, split = (since_2018.with_split_classes(data, share, seed=0) for share in (0.0, 0.25))
    for made, classes in ((plain, 15), (split, 17)):
        assert len(made.classes) == classes
        assert torch.equal(made.vectors, torch.cat([each.vectors for each in parts.values()]))
        for name, each in parts.items():
            labels = made.labels[torch.tensor([where == name for where in made.split])]
            # Those of one class were of one class before, and where nothing was split the other way round.
            pairs = set(zip(labels.tolist(), each.labels.tolist(), strict=True))
            assert len({new for new, _ in pairs}) == len(pairs)
            assert len(pairs) - len(each.classes) == (2 if name == "train" and made is split else 0)
    again = since_2018.with_split_classes(data, 0.25, seed=0)
    assert torch.equal(again.labels, split.labels)


def test_what_is_composed_is_new_for_every_experiment():
    first, second = since_2018.composed(), since_2018.composed()
    assert [recipe.name for recipe in first] == [recipe.name for recipe in second]
    assert not {id(recipe.loss) for recipe in first} & {id(recipe.loss) for recipe in second}


def test_the_guide_is_what_the_network_was_given_last():
    torch.manual_seed(0)
    network, labels = Network(torch.nn.Identity(), torch.nn.Linear(5, 3)), torch.arange(12) // 3
    handle = torch.nn.modules.module.register_module_forward_pre_hook(since_2018.GuidedByFeatures.watch)
    try:
        network(torch.randn(12, 5))
        features = torch.randn(12, 5)
        embeddings = network(features)
    finally:
        handle.remove()
    found = since_2018.GuidedByFeatures()(embeddings, labels)
    for ours, expected in zip(found, GuidedMiner()(embeddings, labels, guide=features), strict=True):
        assert torch.equal(ours, expected)


def write_runs(folder, methods):
    """Runs of methods whose queries have a value around a number; of 40 classes."""
    rng, rows = np.random.default_rng(0), []
    of_query = rng.normal(0, 0.05, 200)
    for loss, level in methods.items():
        for seed in range(3):
            values = of_query + rng.normal(0, 0.01, 200)
            values = (level + values - values.mean()).astype(np.float32)
            where = run_folder(folder, loss, seed)
            where.mkdir(parents=True)
            metrics = dict.fromkeys(page_of.METRICS, values)
            np.savez(where / "queries.npz", query_classes=np.arange(200) // 5, **metrics)
            scores = {name: float(values.mean()) for name in metrics}
            trained = {} if loss in BASELINES else scores
            rows.append({"loss": loss, "seed": seed, "error": "", "metrics": scores, "validation": trained})
    rows.append(rows[-1] | {"loss": "RS@k", "error": "diverged: at step 3", "metrics": {}})
    losses = [name for name in (*methods, "RS@k") if name not in BASELINES]
    for row in rows:
        row["arguments"] = {"epochs": 5, "out": "somewhere", "sampler": "classes", "losses": losses, "seeds": [0, 1, 2]}
        row |= dict.fromkeys(("best_epoch", "seconds_per_epoch", "date", "commit")) | {"hardware": {}, "versions": {}}
    rows += [rows[-1] | {"seed": seed} for seed in (1, 2)]
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(page_of, "RESULTS", tmp_path / "since_2018.md")
    trunk = {"frozen trunk": 0.1}
    for data, better in (("A", 0.5), ("B", 0.45)):
        known = {"RAW": 0.4, "MultiSimilarity": 0.42}
        write_runs(tmp_path / data / "clean" / "classes", trunk | known | {"SCT": better, "PNP(b=3)": 0.42})
        write_runs(tmp_path / data / "clean" / "mined", trunk | {name: level - 0.1 for name, level in known.items()})
    write_runs(tmp_path / "A" / "split" / "classes", trunk | known)
    (tmp_path / "C" / "clean" / "classes").mkdir(parents=True)  # nothing has begun there yet
    write_runs(tmp_path / "D" / "clean" / "classes", trunk | known)  # and this has not ended
    runs = tmp_path / "D" / "clean" / "classes" / "results.jsonl"
    runs.write_text("\n".join(runs.read_text().splitlines()[:-1]))
    return tmp_path


def cells(text, heading, name):
    """The cells of a row of the first table below a heading."""
    table = text.partition(f"{heading}\n\n")[2].partition("\n\n")[0].splitlines()
    (row,) = [line for line in table if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in row.strip("|").split("|")][1:]


def test_the_page_says_what_its_runs_hold(out):
    (out / "since_2018.md").write_text("# Read this\n\nby hand\n\n<!-- measured -->\nold numbers\n")
    page_of.write(out)
    page = (out / "since_2018.md").read_text()
    assert page.startswith("# Read this\n\nby hand\n")
    assert "old numbers" not in page
    clean, split = page.split("## A quarter of the training classes split in two")
    assert [cell.split(" ")[0] for cell in cells(clean, "### MAP@R, in per cent", "RAW")] == ["40.0", "40.0"]
    assert [cell.split(" ")[0] for cell in cells(clean, "### MAP@R, in per cent", "RAW, mined")] == ["30.0", "30.0"]
    more = "### MAP@R: how much more than MultiSimilarity with random classes"
    assert [cell.split(" ")[0] for cell in cells(clean, more, "SCT")] == ["**+8.0", "**+3.0"]
    assert [cell.split(" ")[0] for cell in cells(clean, more, "MultiSimilarity, mined")] == ["**-10.0"] * 2
    assert not any(cell.startswith("**") for cell in cells(clean, more, "PNP"))
    assert "| MultiSimilarity |" not in clean.partition(f"{more}\n\n")[2].partition("\n\n")[0]
    ahead = "MAP@R, significantly ahead of MultiSimilarity or behind it, on how many data sets:"
    assert cells(clean, ahead, "SCT") == ["2", "0", "2"]
    assert cells(clean, ahead, "RAW, mined") == ["0", "2", "2"]
    assert "| PNP |" not in clean.partition(ahead)[2].partition("### ")[0]
    assert cells(clean, "### What the validation classes would choose", "A")[0] == "SCT"
    assert "frozen trunk, mined" not in page
    assert cells(split, "### What the validation classes would choose", "A")[:2] == ["MultiSimilarity", "it is"]
    kept = [json.loads(line) for line in (out / "since_2018.jsonl").read_text().splitlines()]
    # Two sets of 5 methods and of 2, and one of 3; three seeds each.
    assert len(kept) == 3 * (2 * 7 + 3)
    assert kept[0]["arguments"] == {"epochs": 5, "seeds": [0, 1, 2]}
    assert {(line["data"], line["condition"], line["sampler"]) for line in kept} == {
        *((data, "clean", sampler) for data in "AB" for sampler in ("classes", "mined")),
        ("A", "split", "classes"),
    }


def test_differences_are_over_classes(out):
    parts = page_of.folders(out, "clean")
    queries = {data: page_of.of_samplers(each, page_of.CHOSEN_BY) for data, each in parts.items()}
    of_class = {data: page_of.classes(each) for data, each in parts.items()}
    assert all(len(set(each.tolist())) == 40 for each in of_class.values())
    found, significant = page_of.differences(queries, of_class, "RAW")
    expected = queries["A"]["SCT"].mean() - queries["A"]["RAW"].mean()
    assert found["SCT", "A"].mean == pytest.approx(expected)
    assert ("SCT", "A") in significant
    assert ("frozen trunk", "A") not in found


def test_without_a_run_there_is_no_page(tmp_path):
    with pytest.raises(SystemExit, match="has ended"):
        page_of.write(tmp_path)
