"""The arguments: flags made of fields, checked before anything heavy is imported, and protocols as files."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pml_ext import catalog
from pml_ext import losses as our_losses
from pml_ext.benchmark import BenchmarkError, Experiment, cli, config, losses, names
from pml_ext.benchmark.kinds import Number, Several, Text, Whole
from pml_ext.trainers.methods import methods


def heavy_modules_after(arguments):
    """What a process has imported when the command has ended: exit code, heavy packages, what was printed."""
    code = f"""
import sys
from pml_ext.benchmark.cli import main
try:
    ended = main({arguments!r})
except SystemExit as stop:
    ended = stop.code
print(ended, *({{"torch", "pytorch_metric_learning", "numpy", "matplotlib", "sklearn"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    last = done.stdout.splitlines()[-1].split()
    return int(last[0]), set(last[1:]), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "--frozen"),
        (["--losses", "RAWW"], 2, "unknown loss 'RAWW'; did you mean RAW"),
        (["--losses", "pml:Triplet"], 2, "did you mean"),
        (["--lossess", "RAW"], 2, "unrecognized arguments: --lossess RAW; did you mean --losses?"),
        (["--data", "glyph"], 2, "unknown data set 'glyph'; did you mean glyphs?"),
        (["--data", "nowhere/at/all"], 2, "there is no data at 'nowhere/at/all'"),
        (["--data", "cub"], 2, "needs the folder it was unpacked to: cub:FOLDER"),
        (["--optimizer", "adamm"], 2, "unknown optimizer 'adamm'; did you mean adam"),
        (["--protocol", "deep_metric"], 2, "unknown protocol 'deep_metric'; did you mean deep-metric"),
        (["--resume", "--out", "/nowhere/at/all"], 2, "there is no experiment in /nowhere/at/all"),
    ],
)
def test_a_mistake_is_known_before_torch_is(arguments, code, said):
    ended, heavy, printed = heavy_modules_after(arguments)
    assert (ended, heavy) == (code, set())
    assert said in " ".join(printed.split())


def test_names_that_are_read_are_those_that_are_imported():
    assert names.catalog() == tuple(catalog.recipes)
    assert names.methods() == tuple(methods)
    assert list(names.ours()) == our_losses.__all__
    assert set(losses.names()) <= set(names.losses())


@pytest.mark.parametrize(
    "spec", ["RAW", "RAW(gamma=0.3, alpha=4)", "RAWLoss", "pml:TripletMarginLoss", "my_losses:MyLoss", "HDML-NPair"]
)
def test_forms_of_a_loss(spec):
    assert Experiment(losses=spec).losses == (spec,)


def test_every_field_is_documented_and_a_flag(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    text = capsys.readouterr().out
    for flag in config.flags():
        assert f"--{flag.name.replace('_', '-')}" in text
        assert f"\n        {flag.name}: " in str(Experiment.__doc__)
        assert flag.metadata["help"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image-size", "128", "96"], {"image_size": (128, 96)}),
        (["--image-size", "224"], {"image_size": (224,)}),
        (["--frozen", "--no-freeze-batch-norm"], {"frozen": True, "freeze_batch_norm": False}),
        (["--learning-rate", "1e-4", "--clip", "5"], {"learning_rate": 1e-4, "clip": 5.0}),
        (["--crop-scale", "0.5", "--flip", "0"], {"crop_scale": 0.5, "flip": 0.0}),
        (["--dataset", "digits"], {"data": "digits"}),
    ],
)
def test_flags_become_arguments(arguments, expected):
    given = vars(cli.parser().parse_args(arguments))
    experiment = Experiment(**{k: v for k, v in given.items() if k != "resume"})
    assert {name: getattr(experiment, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (Whole(1), [1, 7], [0, -1, True, 1.0, "1", None]),
        (Whole(0, below=8), [0, 7], [8]),
        (Number(above=0), [1e-9, 3], [0, -1.0, float("nan"), float("inf"), True, "1"]),
        (Number(least=0, below=1), [0, 0.99], [1, -0.1]),
        (Number(above=0, most=1), [1e-9, 1], [0, 1.01, float("inf")]),
        (Text(("a", "b")), ["a"], ["c", 1, None]),
        (Several(Whole(0)), [(1, 2), [3], 4], [(), (1, 1), (1, -1)]),
        (Several(Whole(1), distinct=False, most=2), [(8, 8)], [(1, 2, 3)]),
    ],
)
def test_kinds(kind, good, bad):
    for value in good:
        kind.check("x", value)
    for value in bad:
        with pytest.raises(BenchmarkError, match="x"):
            kind.check("x", value)


# --- protocols and configuration files


@pytest.mark.parametrize("name", config.protocols())
def test_a_protocol_is_a_whole_set_of_arguments_with_a_source(name):
    document = json.loads((config.PROTOCOLS / f"{name}.json").read_text())
    assert set(document) == {"about", "source", "arguments", "data"}
    for data in ("glyphs", *document["data"]):
        source = data if data == "glyphs" else f"{data}:/somewhere"
        experiment = Experiment(protocol=name, data=source)
        for key, value in (document["arguments"] | document["data"].get(data, {})).items():
            assert experiment.arguments()[key] == value


def test_numbers_of_the_protocols():
    meant, run = (Experiment(protocol=name, data="cub:/x") for name in ("deep-metric", "deep-metric-as-run"))
    assert (meant.batch_size // meant.classes_per_batch, meant.classes_per_batch) == (5, 16)
    assert meant.trunk_learning_rate == pytest.approx(meant.learning_rate / 10)
    assert run.trunk_learning_rate == run.learning_rate == 1e-5
    check = Experiment(protocol="reality-check", data="sop:/x")
    assert [(each.shorter_side, each.image_size) for each in (meant, run, check)] == [
        (256, (224,)),
        (256, (224,)),
        (256, (227,)),
    ]
    assert (check.folds, check.embedding_size, check.batch_size, check.classes_per_batch) == (4, 128, 32, 8)
    assert (check.optimizer, check.learning_rate, check.recall_at) == ("rmsprop", 1e-6, (1, 10, 100, 1000))


def test_what_is_given_comes_before_a_file_and_that_before_a_protocol(tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps({"epochs": 7, "batch_size": 24, "protocol": "frozen-head"}))
    experiment = Experiment(protocol="reality-check", config=str(path), batch_size=16)
    assert (experiment.batch_size, experiment.epochs, experiment.optimizer) == (16, 7, "rmsprop")
    assert Experiment(protocol="reality-check", epochs=12).epochs == 12, "the default, but given"
    assert Experiment(config=path).batch_size == 24


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"epoch": 3}', "unknown argument 'epoch'; did you mean epochs"),
        ('{"epochs": "many"}', "epochs must be a whole number"),
        (None, "cannot read"),
    ],
)
def test_wrong_configuration_files(content, said, tmp_path):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BenchmarkError, match=said):
        Experiment(config=str(path))


# --- the layout: arrows point down


def imports(path):
    """The modules of the benchmark that a file imports when it is imported itself."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and node.module == "pml_ext.benchmark":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("pml_ext.benchmark."):
            found.add(str(node.module).split(".")[2])
    return found


def test_the_benchmark_has_no_circles():
    graph = {path.stem: imports(path) for path in Path(config.__file__).parent.glob("*.py") if path.stem != "__init__"}
    done: set[str] = set()
    while len(done) < len(graph):
        ready = {name for name in graph if name not in done and not (graph[name] & set(graph)) - done}
        assert ready, f"a circle among {sorted(set(graph) - done)}"
        done |= ready


LIGHT = ("config", "kinds", "names", "errors", "folder", "files", "streams", "lock", "parser", "processes")


@pytest.mark.parametrize("name", [*LIGHT, "cli", "use"])
def test_what_checks_a_command_stands_on_light_modules(name):
    assert imports(Path(config.__file__).parent / f"{name}.py") <= set(LIGHT)
