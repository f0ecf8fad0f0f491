"""The command `pml-ext`: its words are the functions of the door, every error is one line, and it starts at once."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses

import pml_ext
from pml_ext import commands
from pml_ext.__main__ import EXIT_CODES, WORDS, main, script
from pml_ext.benchmark import cli
from pml_ext.losses import RAWLoss
from pml_ext.miners import HardNegativePairMiner

ROOT = Path(pml_ext.__file__).parent.parent


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 6
    good = np.eye(6)[labels] + 0.1 * draw.normal(size=(60, 6))
    np.save("good.npy", good)
    np.save("bad.npy", good + draw.normal(size=(60, 6)))
    np.save("labels.npy", np.array([f"class {label}" for label in labels]))


@pytest.mark.parametrize("word", commands.WORDS)
def test_a_word_is_a_function_of_the_door_with_the_same_arguments(word):
    parameters = inspect.signature(getattr(pml_ext, word)).parameters
    for flag in commands.WORDS[word].flags:
        in_keywords = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        assert flag.name in parameters or flag.name in commands.WORDS[word].alone or in_keywords, flag.name
    needed = {
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    }
    assert {flag.name for flag in commands.WORDS[word].flags if flag.first or flag.needed} == needed


def test_every_word_is_in_the_door():
    of_python = {"train": "Experiment", "query": "load", "completion": None}
    for word in WORDS:
        name = of_python.get(word, word)
        assert name is None or callable(getattr(pml_ext, name))


def test_evaluate_and_compare(capsys):
    good, bad = np.load("good.npy"), np.load("bad.npy")
    labels = np.load("labels.npy")
    assert main(["evaluate", "good.npy", "labels.npy", "--k", "1", "5", "--normalize"]) == 0
    assert capsys.readouterr().out == f"{pml_ext.evaluate(good, labels, k=(1, 5), normalize=True)!r}\n"
    assert main(["compare", "--first", "good.npy", "--second", "bad.npy", "--labels", "labels.npy"]) == 0
    printed = capsys.readouterr().out
    assert printed == f"{pml_ext.compare(good, bad, labels)!r}\n"
    assert printed.splitlines()[1].endswith("first")


def test_diagnose_ends_with_1_where_something_is_wrong(capsys):
    assert main(["diagnose", "good.npy", "labels.npy"]) == 0
    np.save("collapsed.npy", np.ones((60, 6)))
    assert main(["diagnose", "collapsed.npy", "labels.npy"]) == commands.FOUND == 1
    assert "! collapsed" in capsys.readouterr().out


def test_laws_by_name_and_as_an_object(capsys):
    only = ["--only", "it_learns", "--examples", "3"]
    assert main(["laws", "RAW(gamma=0.3)", *only]) == 0
    assert capsys.readouterr().out.startswith("RAW(gamma=0.3): 1 law, 1 passed")
    from pml_ext.testing import LOSS_LAWS, MINER_LAWS

    law = next(iter(MINER_LAWS))
    assert main(["laws", "HardNegativePairMiner(epsilon=0.2)", "--only", law, "--examples", "3"]) == 0
    assert not pml_ext.laws(HardNegativePairMiner(), only=[law], examples=3).bad
    assert not pml_ext.laws(RAWLoss(), only=["it_learns"], examples=3).bad
    broken = pml_ext.laws(pml_losses.ContrastiveLoss(), only=list(LOSS_LAWS)[:3], examples=3)
    assert len(broken) == 3
    assert "<table>" in broken._repr_html_()


def test_a_loss_in_the_current_folder_is_found_after_all_packages(monkeypatch, capsys):
    Path("own_of_this_folder.py").write_text(
        "from pml_ext.losses import RAWLoss\nclass Own(RAWLoss): ...\n", encoding="utf-8"
    )
    Path("hypothesis.py").write_text("raise RuntimeError('not the package')", encoding="utf-8")
    # As where the installed command runs, whose path has its own folder in place of the current one.
    monkeypatch.setattr(sys, "path", [str(ROOT), *(where for where in sys.path if where not in ("", str(Path.cwd())))])
    asked = ["pml-ext", "laws", "own_of_this_folder:Own", "--only", "it_learns", "--examples", "2"]
    monkeypatch.setattr(sys, "argv", asked)
    assert main(asked[1:]) == 2
    assert "No module named 'own_of_this_folder'" in capsys.readouterr().err
    assert script() == 0
    assert capsys.readouterr().out.startswith("own_of_this_folder:Own: 1 law, 1 passed")


def test_a_broken_law_ends_with_1(monkeypatch, capsys):
    class Pushes(torch.nn.Module):
        def forward(self, x, y, indices_tuple=None):
            return (x.sum() * 0 + 1).log() * float("nan")

    import types

    monkeypatch.setitem(sys.modules, "own", types.SimpleNamespace(Pushes=Pushes))  # type: ignore[arg-type]
    assert main(["laws", "own:Pushes", "--only", "it_learns", "--examples", "2"]) == 1
    assert "1 failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evalute"], "pml_ext: unknown command 'evalute'; did you mean evaluate?"),
        (["evaluate", "good.npy", "labels.npy", "--norm"], "unrecognized arguments: --norm"),
        (["evaluate", "good.npy", "labels.npy", "--metrics", "recal"], "recal"),
        (["evaluate", "gone.npy", "labels.npy"], "cannot read or write gone.npy: No such file or directory"),
        (["evaluate", "good.npy", "labels.npy", "--k", "0"], "each of k must be a whole number of at least 1, got 0"),
        (["compare", "--first", "good.npy", "--second", "bad.npy"], "required: --labels"),
        (["compare", "--first", "good.npy", "--second", "bad.npy", "--labels", "labels.npy", "--over", "x"], "over"),
        (["explain", "RAWW"], "unknown loss 'RAWW'; did you mean RAW"),
        (["laws", "RAWW"], "unknown loss 'RAWW'; did you mean RAW"),
        (["laws", "RAW", "--only", "it_lerns"], "it_lerns"),
        (["laws", "HardNegativPairMiner"], "did you mean HardNegativePairMiner"),
        (["completion", "fish"], "invalid choice: 'fish'"),
    ],
)
def test_a_mistake_is_one_line_and_2(words, said, capsys):
    try:
        code = main(words)
    except SystemExit as end:
        code = int(str(end.code))
    printed = capsys.readouterr()
    assert code == 2
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.count("\n") == 1


def test_the_help_starts_without_anything_heavy():
    for words in (["--help"], ["evaluate", "--help"], ["train", "--help"]):
        code = (
            "import sys; from pml_ext.__main__ import main\n"
            f"try: main({words!r})\nexcept SystemExit: pass\n"
            "heavy = {'torch', 'numpy', 'matplotlib', 'pytorch_metric_learning'} & set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
        assert "usage: " in done.stdout
        assert done.stderr == ""


def test_exit_codes_are_told(capsys):
    assert main(["--help"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert EXIT_CODES in printed
    assert all(word in printed for word in WORDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"pml-ext {pml_ext.__version__}\n"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_knows_words_and_flags(shell, capsys):
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in WORDS)
    assert all(f"--{flag.name.replace('_', '-')}" in script for flag in cli.config.flags())
    if shell == "bash":
        ask = "COMP_WORDS=(pml-ext ex); COMP_CWORD=1; _shtab_pml_ext pml-ext ex pml-ext; echo ${COMPREPLY[@]}"
        asked = f"{script}\n{ask}"
        done = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True)
        assert sorted(done.stdout.split()) == ["explain", "export"]


def test_arrays_of_every_kind_are_the_same():
    embeddings, labels = torch.tensor(np.load("bad.npy")), torch.arange(60) % 6
    expected = pml_ext.evaluate(embeddings, labels, k=(1, 5))
    weights = pml_ext.pair_weights(RAWLoss(), embeddings, labels).weights
    found = pml_ext.diagnose(embeddings, labels)
    names = [f"class {label}" for label in labels.tolist()]
    for given, of in (
        (embeddings.numpy(), labels.numpy()),
        (embeddings.tolist(), labels.tolist()),
        (embeddings.clone().requires_grad_(), names),
        (embeddings.numpy(), np.array(names)),
    ):
        assert dict(pml_ext.evaluate(given, of, k=(1, 5))) == dict(expected)
        assert pml_ext.diagnose(given, of) == found
        got = pml_ext.pair_weights(RAWLoss(), given, of).weights
        torch.testing.assert_close(got, weights.to(got.dtype), atol=1e-6, rtol=1e-4)
    half = pml_ext.evaluate(embeddings.to(torch.bfloat16), labels, k=1)
    assert half["recall_at_1"] == pytest.approx(expected["recall_at_1"], abs=0.1)


@pytest.mark.usefixtures("_few_points")
def test_explain_shows_itself():
    found = pml_ext.explain("RAW")
    assert len(repr(found).splitlines()) <= 40
    assert str(found).startswith(repr(found).splitlines()[0])
    page = found._repr_html_()
    assert "data:image/png" in page
    assert "RAWLoss(" in page
    assert str(pml_ext.explain(RAWLoss(gamma=0.3))).startswith("RAWLoss(gamma=0.3)\n")
    assert pml_ext.explain("Center").figure is None


def test_evaluate_says_nothing_on_stderr():
    code = (
        "import pml_ext; print(pml_ext.evaluate([[0.0], [1.0], [5.0], [6.0]], [0, 0, 1, 1], k=(1, 5))['recall_at_1'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1.0\n"
    assert done.stderr == ""


WRONG = {
    "evaluate, shape": (lambda x, y: pml_ext.evaluate(x[0], y), r"embeddings must be .* got shape \(6,\)"),
    "evaluate, number": (lambda x, y: pml_ext.evaluate(x, y[1:]), r"labels must have .* got shape \(59,\)"),
    "evaluate, typo": (lambda x, y: pml_ext.evaluate(x, y, metrics=["recal"]), "metrics must be .*recal"),
    "compare, number": (lambda x, y: pml_ext.compare(x, x[1:], y), r"labels must have .* got shape \(60,\)"),
    "compare, typo": (lambda x, y: pml_ext.compare(x, x, y, over="class"), "over must be .* got 'class'"),
    "diagnose, shape": (lambda x, y: pml_ext.diagnose(x[0], y), r"embeddings must have shape .* got \(6,\)"),
    "explain, typo": (lambda x, y: pml_ext.explain("raww"), "unknown loss 'raww'; did you mean RAW"),
    "explain, type": (lambda x, y: pml_ext.explain(3), "a loss must be a name, .* got 3"),
    "laws, typo": (lambda x, y: pml_ext.laws("RAW", only=["it_lerns"]), "it_lerns"),
    "choose, type": (lambda x, y: pml_ext.choose(classes="9", images_per_class=5), "classes must be .* got '9'"),
    "pair_weights, shape": (
        lambda x, y: pml_ext.pair_weights(RAWLoss(), x[0], y),
        r"embeddings must have shape .* \(6,\)",
    ),
    "pair_weights, type": (lambda x, y: pml_ext.pair_weights("RAW", x, y), "loss must be a PML loss, got str"),
    "Experiment, typo": (
        lambda x, y: pml_ext.Experiment(data="digit"),
        "unknown data set 'digit'; did you mean digits",
    ),
    "Experiment, type": (lambda x, y: pml_ext.Experiment(epochs="3"), "epochs must be a whole number .* got '3'"),
    "Experiment, choice": (
        lambda x, y: pml_ext.Experiment(optimizer="adm"),
        "unknown optimizer 'adm'; did you mean adam",
    ),
    "load, gone": (lambda x, y: pml_ext.load("gone"), "gone has no model"),
    "tune, type": (lambda x, y: pml_ext.tune(pml_ext.Experiment(), trials=0), "trials must be .* got 0"),
}


@pytest.mark.parametrize("door", WRONG)
def test_a_mistake_at_any_door_is_one_sentence_that_names_it(door):
    do, said = WRONG[door]
    with pytest.raises((ValueError, TypeError), match=said) as caught:
        do(torch.tensor(np.load("good.npy")), torch.arange(60) % 6)
    assert "\n" not in str(caught.value)
