"""Hardness-aware learning in the main job: by name, on the same batches, resumable, with its picture."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from pml_ext import _pml
from pml_ext.benchmark import Experiment, checkpoint, curves, losses, plots, records
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.learning import MethodLearner
from pml_ext.benchmark.progress import Progress
from pml_ext.benchmark.training import Run
from pml_ext.benchmark.trunks import Conv4
from pml_ext.trainers.methods import methods

SMALL = Experiment(losses=("HDML-Triplet", "HDML-NPair"), data="digits", epochs=2, steps=2, device="cpu")


class KilledError(BaseException):
    pass


def numbers(results):
    return [(r.loss, r.metrics, [{k: v for k, v in e.items() if k != "seconds"} for e in r.history]) for r in results]


def test_names_are_known_and_do_not_hide_losses():
    assert set(methods) <= set(losses.names())
    assert len(losses.names()) == len(set(losses.names()))


@pytest.mark.parametrize("name", methods)
def test_a_run_has_the_parts_of_the_method_on_everybodys_network_and_batches(name, tmp_path):
    data = Data.of(SMALL)
    batches = []
    weights = []
    for each in (name, "RAW"):
        run = Run(SMALL, data, losses.parse(each), 0, tmp_path, Progress(0))
        weights.append([parameter.clone() for parameter in run.learner.network.trunk.parameters()])
        batches.append(run.batches.epoch())
        if each == name:
            assert run.learner.terms.synthesis != name.endswith("real")
            rates = {part: each.param_groups[0]["lr"] for part, each in run.learner.assembled.optimizers.items()}
            assert rates["trunk_optimizer"] == rates["embedder_optimizer"] == SMALL.learning_rate
            given = methods[name].args
            assert rates["classifier_optimizer"] == given.get("classifier_learning_rate", 1e-3)
            assert rates["generator_optimizer"] == given.get("generator_learning_rate", 1e-2)
    assert batches[0] == batches[1]
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))


RATES = (
    {},
    {"learning_rate": 1e-4, "trunk_learning_rate": 1e-5},
    {"trunk_learning_rate": 0.0},
    {"weight_decay": 0.01},
)


@pytest.mark.parametrize("given", RATES, ids=str)
@pytest.mark.parametrize("pretrained", [False, True])
def test_the_network_learns_at_the_rates_at_which_it_learns_by_a_loss(given, pretrained, tmp_path):
    experiment = replace(SMALL, **given)
    if pretrained:
        torch.save(Conv4((3, 8, 8)).state_dict(), tmp_path / "weights.pt")
        experiment = replace(experiment, weights=str(tmp_path / "weights.pt"))
    data = Data.of(experiment)
    assert data.pretrained == pretrained
    method = Run(experiment, data, losses.parse("HDML-NPair"), 0, tmp_path, Progress(0)).learner
    loss = Run(experiment, data, losses.parse("RAW"), 0, tmp_path, Progress(0)).learner
    for part in ("trunk", "embedder"):
        moved = [
            {weight: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for weight in names}
            for network, optimizers in ((method.network, method.assembled.optimizers), (loss.network, loss.optimizers))
            if (optimizer := optimizers.get(f"{part}_optimizer"))
            and (names := [name for name, weight in network.parts()[part].named_parameters() if weight.requires_grad])
        ]
        assert len(moved) == (0 if part == "trunk" and given.get("trunk_learning_rate") == 0 else 2)
        assert all(each == moved[0] for each in moved)


@pytest.mark.skipif(_pml.HAS_TERMS, reason="PML 2's trainer")
@pytest.mark.parametrize("name", ["HDML-Triplet", "HDML-NPair-balanced", "HDML-NPair-real"])
def test_a_step_is_that_of_the_trainer_of_pml_2(name, tmp_path):
    data = Data.of(SMALL)
    run = Run(SMALL, data, losses.parse(name), 0, tmp_path, Progress(0))
    network, example = copy.deepcopy(run.learner.network), torch.stack([data.train[0][0]] * 2)
    torch.manual_seed(1)
    assembled = methods[name].assembled(*network.parts().values(), example, 5)
    learner = MethodLearner(assembled, network)
    theirs = copy.deepcopy(network)
    torch.manual_seed(1)
    trainer = methods[name].trainer(*theirs.parts().values(), data.train, 5, batch_size=125, milestones=())
    trainer.dataloader = ()
    learner.begin(1)
    trainer.set_to_train()
    for step, indices in enumerate(run.batches.epoch()):
        images, labels = default_collate([data.train[i] for i in indices])
        torch.manual_seed(step)  # the triplets are drawn
        learner.step(images, labels, step)
        torch.manual_seed(step)
        trainer.dataloader_iter = iter([(images, labels)])
        trainer.forward_and_backward()
        expected = {each: torch.as_tensor(value) for each, value in trainer.losses.items()}
        torch.testing.assert_close(dict(learner.values()), expected)
    for part, module in trainer.models.items():
        for mine, other in zip(assembled.models[part].parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_interrupted_ends_with_the_same_numbers_and_is_drawn(tmp_path, monkeypatch):
    save, draw = checkpoint.save, plots.draw

    def save_and_die(path, content):
        save(path, content)
        raise KilledError

    monkeypatch.setattr(plots, "draw", lambda *_: [])
    whole = replace(SMALL, out=str(tmp_path / "whole"))
    results = whole.run()
    parts = replace(SMALL, out=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save_and_die)
        for resume in (False, True):
            with pytest.raises(KilledError):
                parts.run(resume=resume)
    assert numbers(parts.run(resume=True)) == numbers(results)

    columns = records.series(run_folder(tmp_path / "whole", "HDML-NPair", 0), "hardness_HardnessSchedule", ("lam",))
    assert columns == {"step": [0, 2], "lam": [1, 1]}
    assert records.series(run_folder(tmp_path / "whole", "untrained", 0), "hardness_HardnessSchedule", ("lam",)) == {}

    for part in ("gallery", "projection", "learning_curves", "recall_curves"):  # they have tests of their own
        monkeypatch.setattr(plots, part, lambda *_: curves._axes("", "", "", None)[0])
    monkeypatch.setattr(plots, "page", lambda *_: "")
    drawn = draw(whole, Data.of(SMALL), tmp_path / "whole", results)
    assert drawn[-1].name == "hardness.png"
    with Image.open(drawn[-1]) as image:
        assert np.asarray(image.convert("L")).std() > 10


def test_hardness_curves_show_the_mean_over_seeds():
    runs = [{key: [1.0, value] for key in curves.HARDNESS} | {"step": [0, 10]} for value in (0.2, 0.4)]
    figure = curves.hardness_curves({"HDML-Triplet": runs})
    assert [len(axes.lines) for axes in figure.axes] == [1, 1, 3]
    assert all(line.get_ydata() == pytest.approx([1, 0.3]) for axes in figure.axes for line in axes.lines)
