"""Which loss: the rules, their command, and the words of the package on the command line."""

import html
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pml_ext.__main__ import WORDS, main
from pml_ext.benchmark import Experiment
from pml_ext.benchmark.advice import choose
from pml_ext.benchmark.advice_rules import LOSSES, SETTINGS, WARNINGS
from pml_ext.benchmark.cli import parser
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.losses import parse_all

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("classes", [2, 10, 57, 1000, 11000])
@pytest.mark.parametrize("images", [2, 5, 500])
@pytest.mark.parametrize("batch", [4, 32, 256])
def test_every_situation_has_a_batch_and_a_command_that_runs(classes, images, batch):
    choice = choose(classes=classes, images_per_class=images, batch=batch)
    situation = choice.situation
    assert 2 <= situation.per_class <= images
    assert situation.per_class * situation.per_batch <= batch
    assert 2 <= situation.per_batch <= classes
    assert 2 <= len(choice.losses) <= 4
    specs = parse_all([advice.what for advice in choice.losses])
    for spec in specs:
        assert spec.build(classes=max(classes, 2), embedding_size=8).loss is not None
    words = shlex.split(choice.command)
    assert words[:2] == ["pml-ext", "train"]
    given = vars(parser().parse_args(words[2:]))
    assert given["trunk"] == "efficientnet_lite0"  # photographs are not for a network without weights
    assert given["batch_size"] == batch
    assert given["classes_per_batch"] == situation.per_batch


def test_every_rule_holds_somewhere_and_has_evidence():
    situations = [
        choose(classes=classes, images_per_class=images, batch=batch).situation
        for classes in (2, 57, 11000)
        for images in (1, 2, 5)
        for batch in (16, 256)
    ]
    for rule in (*LOSSES, *SETTINGS, *WARNINGS):
        assert any(rule.when(situation) for situation in situations)
        for situation in situations:
            if rule.when(situation):
                advice = rule.advice(situation)
                assert advice.what
                assert advice.why
                assert advice.evidence


def test_numbers_of_the_evidence_stand_in_the_results_that_it_names():
    choice = choose(classes=57, images_per_class=58)
    found = 0
    for advice in (*choice.losses, *choice.settings, *choice.avoid, *choose(classes=11000, images_per_class=5).losses):
        for clause in advice.evidence.split(";"):
            named = re.search(r"benchmarks/results/\w+\.md", clause)
            page = (ROOT / named[0]).read_text(encoding="utf-8") if named else ""
            for number in re.findall(r"\b\d\d\.\d\b", clause) if named else ():
                assert re.search(rf"\b{re.escape(number)}\b", page), (advice.what, number)
                found += 1
    assert found > 10


def test_evidence_is_whole_in_a_notebook():
    choice = choose(classes=57, images_per_class=58)
    shown = choice._repr_html_()
    for advice in (*choice.losses, *choice.settings, *choice.avoid):
        assert f'<td class="words">{html.escape(advice.evidence)}</td>' in shown


def test_classes_of_one_image_have_no_pairs():
    choice = choose(classes=100, images_per_class=1)
    assert choice.losses == ()
    assert choice.command == ""
    assert "SelfSupervisedLoss" in str(choice)


def test_costs_are_those_of_the_page_of_speed():
    lines = [json.loads(line) for line in (ROOT / "benchmarks/results/speed.jsonl").read_text().splitlines()]
    measured = {
        x["job"]: x.get("ratio") for x in lines if (x["n"], x["d"], x["per_class"], x["mode"]) == (1024, 512, 4, "full")
    }
    chosen = {loss for classes in (100, 10_000) for loss in choose(classes=classes, images_per_class=5).losses}
    assert len(chosen) >= 4
    for loss in chosen:
        said = re.search(r"with large batches ([\d.]+) of the matrix products", loss.cost)[1]
        assert f"{measured[loss.what.partition('(')[0]]:.{len(said) - 2}f}" == said, loss


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give classes and images_per_class, or data"),
        ({"classes": 1, "images_per_class": 5}, "classes must be a whole number of at least 2, got 1"),
        ({"classes": 5, "images_per_class": True}, "images_per_class must be a whole number"),
        ({"classes": 5, "images_per_class": 5, "batch": 3}, "batch must be a whole number of at least 4, got 3"),
    ],
)
def test_a_wrong_number_is_named(given, message):
    with pytest.raises(BenchmarkError, match=message):
        choose(**given)


def test_the_command_prints_what_the_function_says(capsys):
    assert main(["choose", "--classes", "11000", "--images-per-class", "5", "--batch", "256"]) == 0
    assert capsys.readouterr().out == f"{choose(classes=11000, images_per_class=5, batch=256)}\n"
    assert main(["choose"]) == 2
    assert capsys.readouterr().err.startswith("pml_ext choose: give classes")


def test_classes_are_counted_in_data(capsys):
    assert main(["choose", "--data", "digits"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("5 classes with ")  # the others are for the test
    assert "pml-ext train --data digits --batch-size 128" in out


def test_a_pretrained_trunk_is_for_images(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(2):
            image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / name / f"{number}.png")
    choice = choose(data=str(tmp_path), batch=4)
    assert (choice.situation.classes, choice.situation.images_per_class) == (2, 2)
    assert f"--data {tmp_path} --trunk efficientnet_lite0" in choice.command
    np.savez(tmp_path / "vectors.npz", embeddings=np.eye(4, dtype=np.float32), labels=np.arange(4) // 2)
    assert "--trunk" not in choose(data=str(tmp_path / "vectors.npz"), batch=4).command


def test_classes_are_counted_as_a_run_trains_on_them(tmp_path):
    labels = np.repeat(np.arange(24), 6)
    np.savez(tmp_path / "vectors.npz", embeddings=np.eye(144, dtype=np.float32), labels=labels)
    choice = choose(data=str(tmp_path / "vectors.npz"))
    trained = Data.of(Experiment(data=str(tmp_path / "vectors.npz"))).train_classes
    assert choice.situation.classes == trained < 24
    assert f"--classes-per-batch {trained}" in choice.command


def test_words_of_the_package(capsys):
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in WORDS)
    assert main(["chose"]) == 2
    assert capsys.readouterr().err == "pml_ext: unknown command 'chose'; did you mean choose or compare?\n"
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert "--losses" in capsys.readouterr().out
