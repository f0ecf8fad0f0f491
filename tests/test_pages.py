"""What the pages are made of, read anew for every build: rules, measurements and the commands behind them."""

import ast
import importlib
import json
import math
import re
from pathlib import Path

import pytest

import pml_ext
from pml_ext import catalog
from pml_ext.analysis import Health, NoPairWeightsError
from pml_ext.benchmark.advice_rules import LOSSES, SETTINGS, WARNINGS
from pml_ext.benchmark.result import BASELINES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@pytest.fixture
def module(monkeypatch):
    """A module of the pages by name; they are not of the package."""
    monkeypatch.syspath_prepend(str(DOCS))

    def find(name):
        return importlib.import_module(name)

    return find


def test_what_is_not_trained_is_no_method(module):
    rows = {row.split("]")[0][3:]: row for row in module("measured").highest("recall_at_1", 3).splitlines()[2:]}
    for data, before in (("frozen: CUB", "frozen trunk 82"), ("scratch: Omniglot", "untrained 22")):
        assert before in rows[data].split("|")[-2], data
    assert ", 20 methods," in rows["scratch: Omniglot"]


def test_every_rule_of_choose_is_shown(module):
    choices = module("choices")
    situations = [case.choice.situation for case in choices.CASES]
    page = choices.situations()
    for rule in (*LOSSES, *SETTINGS, *WARNINGS):
        held = [situation for situation in situations if rule.when(situation)]
        assert held, "a situation in which it holds is missing"
        assert any(rule.advice(situation).why in page for situation in held)
    assert re.findall(r"^## (.+)$", page, re.MULTILINE) == [case.name for case in choices.CASES]


def test_stars_stand_for_what_is_recommended(module):
    choices = module("choices")
    head, _, *rows = choices.at_a_glance().splitlines()
    names = re.findall(r"\[`(\w+)`\]", head)
    assert set(names) <= set(catalog.recipes)
    for row, case in zip(rows, choices.CASES, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")][1:-1]
        starred = {name for name, cell in zip(names, cells, strict=True) if cell}
        assert starred == {advice.what.partition("(")[0] for advice in case.choice.losses}


def test_links_of_the_evidence_lead_on(module):
    measured, choices = module("measured"), module("choices")
    pages = {path.name for path in measured.pages()}
    text = "\n".join([choices.situations(), measured.highest("recall_at_1", 3), *measured.of_method("RAW")])
    linked = re.findall(r"\(results/([\w.]+)\)", text)
    assert "frozen_cub.md" in linked
    assert set(linked) <= pages


def test_every_page_of_results_says_what_repeats_it(module, tmp_path):
    measured = module("measured")
    for path in measured.pages():
        assert measured.title(path)
        said = measured.command(path)
        for script in re.findall(r"benchmarks/\w+\.py", said):
            assert (ROOT / script).exists(), script
    assert "`python benchmarks/speed.py`" in measured.results()
    (tmp_path / "x.md").write_text("# A table\n\n| 1 |\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"x\.md has no command"):
        measured.command(tmp_path / "x.md")


def test_results_of_a_method_are_those_of_the_table(module):
    measured = module("measured")
    table = (measured.RESULTS / "frozen_cub.md").read_text(encoding="utf-8")
    methods = measured.retrieval("frozen_cub")["CUB"]
    assert measured.retrieval("no_such_file") == {}
    for name in ("frozen trunk", "RAW", "BatchHard", "MCA"):
        (row,) = re.findall(rf"^\| {name} \| (.*)$", table, re.MULTILINE)
        cells = row.split(" | ")
        assert f"{methods[name]['mean_average_precision_at_r'].mean:.1f}" == cells[6].split(" ")[0]
        assert measured._interval(methods[name]["recall_at_1"]) == cells[0]


def test_tables_of_everything_lead_to_each(module):
    """The build checks that the links lead to what they name."""
    page = (DOCS / "catalog.md").read_text(encoding="utf-8")
    linked = module("contents").as_a_page(page)
    assert "| [`RAWLoss`](api/losses.md#pml_ext.losses.RAWLoss)`(alpha=2, beta=50" in linked
    assert "| [RS@k](methods.md#rsk) | `RecallAtKLoss" in linked
    assert linked.count("](methods.md#") == len(catalog.recipes)
    assert linked.count("](api/") == sum(
        len(part.__all__) for part in (pml_ext.losses, pml_ext.miners, pml_ext.wrappers)
    )


@pytest.mark.pml2("which it accelerates")
def test_sizes_from_which_stock_losses_are_accelerated():
    from pml_ext.stock.forms import FORMS
    from pml_ext.stock.miners import MINERS

    page = (DOCS / "stock.md").read_text(encoding="utf-8")
    said = {}
    for number, names in re.findall(r"^\| (\d+)(?: samples)? \| (.*)$", page, re.MULTILINE):
        said |= dict.fromkeys(re.findall(r"`(\w+)`", names), int(number))
    always, *_ = re.findall(r"^(.*?), which form most tuples", page, re.MULTILINE)
    said |= dict.fromkeys(re.findall(r"`(\w+)`", always), 0)
    measured = {each.__name__: form.pays_from for each, form in FORMS.items()}
    measured |= {each.__name__: way.pays_from for each, way in MINERS.items()}
    found = {name: math.ceil(math.sqrt(scores)) for name, scores in measured.items()}
    assert {name: said.get(name, 64) for name in found} == found
    assert set(said) <= set(found)


def test_the_citation_is_that_of_the_package(module):
    """Its BibTeX says what its fields say."""
    fields = dict(
        re.findall(r'^\W*([\w-]+): "?(.+?)"?$', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert module("contents").citation().splitlines() == [
        "```bibtex",
        f"@{fields['type']}{{pml_ext,",
        f"  title = {{{fields['title']}}},",
        f"  author = {{{{{fields['name']}}}}},",
        f"  version = {{{fields['version']}}},",
        f"  year = {{{fields['date-released'][:4]}}},",
        "}",
        "```",
    ]


def test_results_of_ordinary_labels_and_batches_only(module):
    """Of the runs since 2018 those with clean labels and random classes."""
    measured = module("measured")
    found = measured.retrieval("since_2018")
    page = (measured.RESULTS / "since_2018.md").read_text(encoding="utf-8")
    head, _, *rows = (
        page.partition("## Clean labels\n\n### MAP@R, in per cent\n\n")[2].partition("\n\n")[0].splitlines()
    )
    sets = [cell.strip() for cell in head.strip("|").split("|")][1:]
    assert set(sets) == set(found)
    means = {}
    for row in rows:
        name, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        means |= {(data, name): cell.split(" ")[0] for data, cell in zip(sets, cells, strict=True)}
    for data, methods in found.items():
        for name, metrics in methods.items():
            assert f"{metrics['mean_average_precision_at_r'].mean:.1f}" == means[data, name], (data, name)


def test_results_of_several_data_sets(module, monkeypatch, tmp_path):
    measured = module("measured")
    metrics = {"recall_at_1": 0.5, "mean_average_precision_at_r": 0.25}
    lines = [
        {
            "loss": loss,
            "seed": seed,
            "data": data,
            "metrics": {name: value + seed / 10 for name, value in metrics.items()},
        }
        for data in ("cub", "emoji")
        for loss in ("RAW(gamma=0.3)", "untrained head")
        for seed in range(3)
    ]
    (tmp_path / "reality.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    monkeypatch.setattr(measured, "RESULTS", tmp_path)
    for cached in (measured.retrieval, measured.speed):
        cached.cache_clear()
    try:
        cub, emoji = measured.of_method("RAW")
        assert "recall@1 **60.0 ± 24.8** (untrained head 60.0)" in cub
        assert "3 seeds on frozen features of emoji, every method tuned alike" in emoji
        assert [*measured.of_method("NCA")] == []
        assert measured.highest("recall_at_1", 3).count("RAW 60.0 ± 24.8") == 2
    finally:
        for cached in (measured.retrieval, measured.speed):
            cached.cache_clear()


def test_speed_is_that_of_the_table(module):
    measured = module("measured")
    (row,) = re.findall(
        r"^\| RAW \| (.*) \|$", (measured.RESULTS / "speed.md").read_text(encoding="utf-8"), re.MULTILINE
    )[:1]
    ms, ratio, megabytes, stock, *_ = row.split(" | ")
    told = measured._speed("RAW")
    assert told.startswith(f"**{ms} ms** and {megabytes} MB")
    assert f"{ratio} of the matrix products" in told
    assert f"PML takes {stock.split(' ')[0]} times as long" in told


def coordinates(picture):
    written = re.findall(r"(?:points|d)=\"([^\"]+)\"", picture)
    return [float(number) for found in written for number in re.findall(r"[\d.]+", found)]


def test_pictures_are_those_of_the_losses(module):
    """Of a few; the rest is drawn anew by `python docs/pictures.py`."""
    pictures, contents = module("pictures"), module("contents")
    drawn = {path.stem for path in pictures.WEIGHTS.glob("*.svg")}
    assert drawn <= set(catalog.recipes), "run: python docs/pictures.py"
    for name in set(catalog.recipes) - drawn:
        with pytest.raises(NoPairWeightsError):
            pictures.weights(name)
    for name in ("RAW", "CenterNCA"):
        there = (pictures.WEIGHTS / f"{name}.svg").read_text(encoding="utf-8")
        assert coordinates(pictures.weights(name)) == pytest.approx(coordinates(there), abs=0.2), "docs/pictures.py"
        assert there in contents.picture(name)
    assert contents.picture("Center") == ""


def test_examples_are_shown_whole(module):
    contents = module("contents")
    page = (DOCS / "trainer.md").read_text(encoding="utf-8")
    names = re.findall(r"^\[`examples/(\S+)`\]\(\.\./examples/\1\)$", page, re.MULTILINE)
    assert {path.name for path in (ROOT / "examples/trainers").glob("*.py")} <= {Path(name).name for name in names}
    for name in names:
        shown = contents.example(name)
        source = (ROOT / "examples" / name).read_text(encoding="utf-8")
        told, code = re.fullmatch(r'(.*?)\n\n```python title="examples/\S+"\n(.*)\n```', shown, re.DOTALL).groups()
        assert source.replace('"', "").split() == f"{told} {code}".replace('"', "").split()


def test_the_readme_recommends_the_same(module):
    choices = module("choices")
    (table,) = re.findall(
        r"^\| training data .*\n\|.*\n((?:\|.*\n)+)", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE
    )
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()]
    assert len(rows) == 5
    cases = {case.name: case for case in choices.CASES}
    for name, losses, _ in rows:
        recommended = [advice.what.partition("(")[0] for advice in cases[name].choice.losses]
        assert losses == (", ".join(recommended) or "two views and `SelfSupervisedLoss`")


@pytest.mark.parametrize(
    ("written", "html"),
    [
        ("D_ip - base", "<i>D</i><sub><i>ip</i></sub> − base"),
        ("mean_{p in P_i} s_ip", "mean<sub><i>p</i> ∈ <i>P</i><sub><i>i</i></sub></sub> <i>s</i><sub><i>ip</i></sub>"),
        ("exp(-alpha (s - gamma))", "exp(−α (<i>s</i> − γ))"),
        ("[J_ij]+^2", "[<i>J</i><sub><i>ij</i></sub>]<sub>+</sub><sup>2</sup>"),
        ("S+ + S-", "<i>S</i><sup>+</sup> + <i>S</i><sup>−</sup>"),
        ("sigma-_i", "σ<sup>−</sup><sub><i>i</i></sub>"),
        ("P^k_i != N'_i", "<i>P</i><sup><i>k</i></sup><sub><i>i</i></sub> ≠ <i>N</i>′<sub><i>i</i></sub>"),
        ("min(k, k_temperature, tau_plus, neg_base)", "min(<i>k</i>, k_temperature, tau_plus, neg_base)"),
        ("D_(j) x_(W-1) (1 + B)^-alpha", None),
        ('with a triplet, variant="O" <b>', "with a triplet, variant=&quot;O&quot; &lt;<i>b</i>&gt;"),
    ],
)
def test_formulas(module, written, html):
    shown = module("formulas").typeset(written)
    assert html is None or shown == html
    assert not re.search(r"[_^][{(]|<(?!/?(?:i|sub|sup)>)", shown)


def test_formulas_of_a_docstring_and_nothing_else(module):
    formulas = module("formulas")
    text = "One:\n\n    L_i = 1\n\n    b = 2\n\nCode:\n\n    x = f()\n\nArgs:\n    x: one.\n\n        z_i = 1\n"
    shown = formulas.with_formulas(text)
    assert shown.count('<pre class="formula">') == 1
    assert "<sub><i>i</i></sub> = 1\n\n<i>b</i> = 2</pre>\n\n" in shown
    assert shown.endswith("    x = f()\n\nArgs:\n    x: one.\n\n        z_i = 1\n")


def shown_raw(doc):
    """Lines of a docstring that its page would show as they are: rules of tables, formulas with a name in backticks."""
    return re.findall(r"^ *={4,}.*$|^ {4}[^\n]* = [^\n]*`.*$", doc, re.MULTILINE)


def test_docstrings_are_written_as_the_pages_render_them():
    found = {}
    for path in (ROOT / "pml_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
                before, *_ = re.split(r"^\w+:$", ast.get_docstring(node) or "", maxsplit=1, flags=re.MULTILINE)
                if raw := shown_raw(before):
                    found[f"{path.name}: {node.name}"] = raw
    assert not found
    assert len(shown_raw("====  ====\na     b\n\n    z = `pull`(x)\n\n    L = 1\n\nwhere `a` = 1")) == 2


def test_latex_becomes_mathml(module):
    pytest.importorskip("latex2mathml")
    formulas = module("formulas")
    latex = "    a &= \\text{r\\_p} \\\\\n    b &= 2"
    shown = formulas.with_formulas(f"Of :math:`v_q`.\n\n.. math::\n\n{latex}\n\nArgs:\n    x: y\n")
    assert shown.count("<math ") == 2
    assert "<mtext>r_p</mtext>" in shown
    assert shown.count("<mtr>") == 2
    shown = formulas.with_formulas("Of these.\n\n.. math:: A = \\lVert x \\rVert^2\n\nArgs:\n    x: y\n")
    assert shown.count("<math ") == 1
    assert ".. math::" not in shown
    assert shown.endswith("\n\nArgs:\n    x: y\n")


def test_every_failure_has_a_row():
    told = re.search(r'failure: "" or (.*?)\n {8}separation', Health.__doc__, re.DOTALL)[1]
    named = {" ".join(name.split()) for name in re.findall(r'"([^"]+)"', told)}
    page = (DOCS / "failures.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| ([a-z ]+?) \| ", page, re.MULTILINE)) - {"failure"} == named


def test_intervals_are_drawn_in_the_order_of_their_means(module):
    measured, intervals = module("measured"), module("intervals")
    drawn = intervals.picture("frozen_cub", "CUB", "recall_at_1", "recall@1", 5)
    names = re.findall(r'text-anchor="end">([^<]+)<', drawn)
    means = {name: found["recall_at_1"].mean for name, found in measured.retrieval("frozen_cub")["CUB"].items()}
    trained = sorted(set(means) - set(BASELINES), key=lambda name: -means[name])
    assert names[:5] == trained[:5]
    assert names[5:] == [name for name in BASELINES if name in means] == ["frozen trunk", "untrained head"]
    places = [float(x) for x in re.findall(r'mean" d="M([\d.]+) ', drawn)]
    assert places[:5] == sorted(places[:5], reverse=True)
    assert max(places) == places[5], "the frozen trunk"
    ends = re.findall(r'solid" d="M([\d.]+) \d+H([\d.]+)"', drawn)
    assert all(float(left) <= mean <= float(right) for (left, right), mean in zip(ends, places, strict=True))


def test_sources_of_the_pages_can_be_read_as_files(module):
    """Their links lead on where they stand, and what is for their readers alone is in no page."""
    contents, filled = module("contents"), {}
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        assert not [link for link in links if not (page.parent / link).exists()], page
        filled[page.name] = re.findall(r"^<!-- (?!table|end of|as a file|to here)(.+) -->$", text, re.MULTILINE)
        if filled[page.name]:
            assert text.index("<!-- as a file -->\n> `mkdocs build`") < text.index("<!-- to here -->"), page
    assert {name for name, marks in filled.items() if marks} == {"which.md", "laws.md", "methods.md", "index.md"}
    for name in ("which", "laws", "trainer", "changes"):
        made = contents.as_a_page((DOCS / f"{name}.md").read_text(encoding="utf-8"))
        assert "`mkdocs build` fills in" not in made
        assert "](../" not in made
