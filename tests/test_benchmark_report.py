"""The report of an experiment: what it says is what the results say, and nothing from users gets out of its place."""

import base64
import html
import io
import math
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pml_ext.benchmark.report import Contents, page
from pml_ext.benchmark.report.maps import chosen, maps, projected
from pml_ext.benchmark.report.markup import figure, name, table, text
from pml_ext.benchmark.report.retrievals import chosen as queries_of
from pml_ext.benchmark.report.retrievals import gallery, nearest
from pml_ext.benchmark.report.summary import summarize
from pml_ext.benchmark.result import FROZEN_TRUNK, UNTRAINED, Result
from pml_ext.evaluation import bootstrap_interval, mean_interval, paired_difference, standings

NASTY = '<script>alert("1")</script><img src=x onerror=alert(2)> & $b^2$ \u202e\x00 </style></title>'


def result(loss, seed, recall, **more):
    metrics = {"recall_at_1": recall, "recall_at_2": min(1.0, recall + 0.1), "mean_average_precision_at_r": recall / 2}
    history = [] if loss in (UNTRAINED, FROZEN_TRUNK) else [{"epoch": 1, "seconds": 1.0, **metrics}] * 2
    arguments = {"data": "glyphs", "losses": [loss], "image_size": None}
    return Result(loss, seed, metrics, history, 1.0, arguments, **more)


def failed(loss, seed, error="diverged: the loss is nan"):
    return Result(loss, seed, {}, [], None, {}, error=error)


def queries(*recalls, n=200):
    """One row a run: the first of 200 queries are right."""
    return np.stack([np.full(n, np.nan) if r is None else (np.arange(n) < r * n).astype(float) for r in recalls])


class Photos:
    """Test images of one color each."""

    def __init__(self, n=20, classes=4, side=200):
        self.labels = torch.arange(n) % classes
        self.classes = ["cat", NASTY, "日本語 🐦", "x" * 500][:classes]
        self.side = side

    def __len__(self):
        return len(self.labels)

    def image(self, i):
        return Image.new("RGB", (self.side, self.side), (10 * i, 255 - 10 * i, 77))


def embeddings(n=20, seed=0):
    return torch.nn.functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(seed)))


class Reader(HTMLParser):
    """Elements and attributes as a browser sees them; whether all that is opened is closed."""

    EMPTY = frozenset({"input", "meta", "img", "path", "use", "circle", "br"})

    def __init__(self, document):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(document)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.texts.append(data)


def assert_harmless(document):
    """No element runs or loads anything, and no address of another host is in the page."""
    reader = Reader(document)
    for tag, attributes in reader.elements:
        assert tag not in ("script", "iframe", "object", "embed", "link", "base", "form"), tag
        assert not [each for each in attributes if each.startswith("on")], attributes
        assert attributes.get("src", "data:").startswith("data:"), attributes
        for each in ("href", "xlink:href"):
            assert attributes.get(each, "#").startswith("#"), attributes
    assert not re.findall(r"//\w", re.sub(r"data:[^\"]*", "", document))
    assert not re.search(r"url\((?!#|data:image/)|@import", document)
    return reader


# ---------------------------------------------------------------------------------------------------------- summary


def test_rows_say_what_the_results_say():
    recalls = {"A": (0.5, 0.6), "B": (0.7, None, 0.75), UNTRAINED: (0.1, 0.12), "C": (0.2, 0.22)}
    results = [
        failed(loss, seed) if recall is None else result(loss, seed, recall)
        for loss, each in recalls.items()
        for seed, recall in enumerate(each)
    ]
    values = {loss: queries(*each) for loss, each in recalls.items()}
    rows = summarize(results, values)
    assert [row.loss for row in rows] == ["B", "A", "C", UNTRAINED]
    assert [row.trained for row in rows] == [True, True, True, False]
    expected = standings(values)
    for row in rows:
        recall = [np.nan if x is None else x for x in recalls[row.loss]]
        assert row.intervals["recall_at_1"] == mean_interval(recall)
        assert row.standing == expected[row.loss]
        if row.trained:
            assert row.gain == paired_difference(values[row.loss], values[UNTRAINED])
    assert rows[0].failures == ("seed 1: diverged: the loss is nan",)
    assert rows[-1].gain is None


def test_one_run_has_the_interval_of_its_queries():
    (row,) = summarize([result("A", 0, 0.5)], {"A": queries(0.5)})
    expected = bootstrap_interval(queries(0.5)[0])
    assert row.intervals["recall_at_1"][:3] == (0.5, expected.low, expected.high)
    assert math.isnan(row.intervals["recall_at_2"].low)
    assert row.standing is None


def test_without_queries_nothing_is_compared():
    rows = summarize([result("A", 0, 0.5), result("B", 0, 0.6), result(UNTRAINED, 0, 0.1)], {})
    assert all(row.standing is None and row.gain is None for row in rows)


def test_training_is_compared_with_the_frozen_trunk():
    results = [result("A", 0, 0.5), result(UNTRAINED, 0, 0.1), result(FROZEN_TRUNK, 0, 0.4)]
    rows = {row.loss: row for row in summarize(results, {"A": queries(0.5), FROZEN_TRUNK: queries(0.4)})}
    assert rows["A"].gain.mean == pytest.approx(0.1)


def test_folds_and_health_are_named():
    (row,) = summarize([result("A", 1, 0.5, fold=2, failure="collapsed: one direction")], {})
    assert row.failures == ("fold 2, seed 1: collapsed: one direction",)


# ----------------------------------------------------------------------------------------------------------- markup


@given(st.text())
def test_text_stays_text(value):
    shown = text(value)
    reader = Reader(f'<p title="{shown}">{shown}</p>')
    assert [tag for tag, _ in reader.elements] == ["p"]
    assert reader.elements[0][1]["title"] == html.unescape(shown) == "".join(reader.texts)
    assert len(html.unescape(shown)) <= 300
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", shown)


def test_names_are_cut():
    assert name("x" * 500).count("x") == 2 * 299
    assert "…" in name("x" * 500)


def test_table():
    reader = Reader(table(("a", "b"), [("1", "<b>2</b>")], caption="c"))
    assert [tag for tag, _ in reader.elements] == [
        *("div", "table", "caption", "thead", "tr", "th", "th", "tbody", "tr", "th", "td", "b"),
    ]


def test_figures_take_the_color_of_the_page():
    from matplotlib.figure import Figure

    def draw():
        drawn = Figure()
        axes = drawn.add_subplot()
        axes.plot([1, 10], [1, 1000], color="#000000", label=NASTY.replace("\x00", ""))
        axes.set_yscale("log")
        axes.set_title("gone", loc="left")
        axes.legend()
        return drawn

    svg = figure(draw, NASTY)
    assert_harmless(svg)
    assert "#000000" not in svg
    assert "currentColor" in svg
    assert "gone" not in svg
    assert "mathdefault" not in svg
    assert "$b^2$" in svg
    assert svg == figure(draw, NASTY)


# ---------------------------------------------------------------------------------------------------------- gallery


def test_gallery_marks_right_and_wrong():
    test, vectors = Photos(), embeddings()
    document = gallery(test, {"A": vectors})
    reader = assert_harmless(document)
    marks = [attributes["class"] for tag, attributes in reader.elements if tag == "li"]
    expected = []
    for query in queries_of(test):
        by_distance = sorted(
            (float((vectors[query] - vectors[j]).square().sum()), j) for j in range(len(test)) if j != query
        )
        expected += ["right" if test.labels[j] == test.labels[query] else "wrong" for _, j in by_distance[:8]]
    assert marks == expected


def test_nearest_respects_the_protocol():
    test, vectors = Photos(), embeddings()
    test.gallery, test.sequences = torch.arange(20) < 12, torch.arange(20) // 3
    for query in (0, 13, 19):
        found = nearest(test, vectors, query)
        assert len(found) == 8
        assert all(i < 12 and i != query and i // 3 != query // 3 for i in found)
    test.gallery = torch.arange(20) < 2
    assert sorted(nearest(test, vectors, 5)) == [0, 1]


def test_queries_are_those_that_ask():
    test = Photos()
    test.query = torch.arange(20) >= 17
    assert queries_of(test) == [17, 18, 19]
    assert len(queries_of(Photos())) == 6


def pictures(document):
    codes = re.findall(r'src="data:image/(png|jpeg);base64,([^"]*)"', document)
    return [(kind, Image.open(io.BytesIO(base64.b64decode(code)))) for kind, code in codes]


def test_pictures_have_the_colors_of_the_files():
    test = Photos(n=4, classes=2)
    shown = pictures(gallery(test, {"A": embeddings(4)}))
    assert len(shown) == 4 + 4 * 3
    colors = {(10 * i, 255 - 10 * i, 77) for i in range(4)}
    for kind, image in shown:
        assert (kind, image.size) == ("jpeg", (112, 112))
        pixel = image.getpixel((50, 50))
        assert any(max(abs(a - b) for a, b in zip(pixel, color, strict=True)) < 6 for color in colors)


def test_pictures_of_the_data_stay_as_they_are():
    test = Photos(n=4, classes=2)
    own = [test.image(i) for i in range(4)]
    test.image = own.__getitem__
    gallery(test, {"A": embeddings(4)})
    assert {image.size for image in own} == {(200, 200)}


def test_small_pictures_stay_exact():
    """Tensors in 0..1 of the data sets that come with the package."""

    class Glyphs(Photos):
        image = property()

        def __getitem__(self, i):
            return torch.full((1, 28, 28), i / 10), int(self.labels[i])

    shown = pictures(gallery(Glyphs(n=4, classes=2), {"A": embeddings(4)}))
    assert {image.getpixel((0, 0)) for _, image in shown} == {0, 26, 51, 76}
    assert {(kind, image.size) for kind, image in shown} == {("png", (28, 28))}


# -------------------------------------------------------------------------------------------------------------- map


def test_map_has_a_mark_for_each_sample():
    test = Photos(n=24)
    reader = assert_harmless(maps(test, {"A": embeddings(24), NASTY: embeddings(24, 1)}))
    tags = [tag for tag, _ in reader.elements]
    points = [each for tag, each in reader.elements if tag == "a" and each.get("class", "").startswith("dot")]
    assert len(points) == 2 * 24
    lists = {each["id"] for tag, each in reader.elements if each.get("class") == "near"}
    assert {each["href"].removeprefix("#") for each in points} == lists, "each has its list of neighbors"
    assert tags.count("figure") == 2
    assert tags.count("style") == 1, "one sheet of pictures"


def test_a_point_of_the_map_says_whether_its_nearest_is_right():
    test = Photos(n=24)
    vectors = embeddings(24)
    reader = assert_harmless(maps(test, {"A": vectors}))
    points = [each["class"].split()[-1] for tag, each in reader.elements if each.get("class", "").startswith("dot k")]
    scores = vectors @ vectors.T
    scores.fill_diagonal_(-2)
    _, index = chosen(test)
    right = (test.labels[scores.argmax(1)] == test.labels)[index].tolist()
    assert points[-24:] == ["right" if each else "wrong" for each in right]


def test_a_map_of_vectors_has_no_pictures():
    document = maps(Photos(n=24), {"A": embeddings(24)}, images=False)
    assert "tile" not in document
    assert "<style" not in document


@pytest.mark.slow
def test_the_map_answers_in_a_browser(tmp_path):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium")
    test = Photos(n=24)
    contents = Contents("a map", [result("A", 0, 0.5)], test=test, embeddings={"A": embeddings(24)})
    (tmp_path / "report.html").write_text(page(contents), encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            tab = browser.new_page(color_scheme=scheme, java_script_enabled=False)
            asked = []
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto((tmp_path / "report.html").as_uri())
            point = tab.locator(".map .dot").nth(3)
            assert not point.locator(".card").is_visible()
            point.hover()
            assert point.locator(".card").is_visible()
            assert "nearest: " in point.locator(".card").inner_text()
            tab.mouse.move(0, 0)
            point.focus()
            assert point.locator(".card").is_visible()
            assert not tab.locator("#m0-3").is_visible()
            tab.keyboard.press("Enter")
            assert tab.locator("#m0-3").is_visible()
            assert tab.locator("#m0-3 li").count() == 6
            before = point.evaluate("e => getComputedStyle(e).backgroundColor")
            tab.locator(".by-verdict").check()
            assert point.evaluate("e => getComputedStyle(e).backgroundColor") != before
            assert all(url.startswith(("file:", "data:")) for url in asked)
            tab.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        browser.close()


def test_map_of_many_classes_shows_some():
    test = Photos(n=300, classes=4)
    test.labels, test.classes = torch.arange(300) % 30, [str(i) for i in range(30)]
    shown, index = chosen(test)
    assert len(shown) == 12
    assert len(index) == 120
    assert set(test.labels[index].tolist()) == set(shown.tolist())


def test_map_fits_its_frame():
    for vectors in (embeddings(), torch.ones(20, 5)):
        places = projected(vectors)
        assert places.shape == (20, 2)
        assert places.min() >= 12
        assert places.max() <= 388
    assert maps(Photos(n=2, classes=2), {"A": embeddings(2)}) == ""


# ------------------------------------------------------------------------------------------------------------- page


def contents(**more):
    results = [
        *(result("A", seed, 0.5 + seed / 50) for seed in range(3)),
        *(result(NASTY, seed, 0.3 + seed / 50, failure=f"collapsed {NASTY}") for seed in range(3)),
        result(UNTRAINED, 0, 0.1),
        failed("B", 0, f"raised: {NASTY}"),
    ]
    values = {"A": queries(0.5, 0.52, 0.54), NASTY: queries(0.3, 0.32, 0.34), UNTRAINED: queries(0.1)}
    steps = [0.0, 10.0, 20.0]
    health = {"step": steps, "pull": [0.5] * 3, "push": [0.6] * 3, "effective_pairs": [3.0, 2.0, None]}
    health |= {"effective_rank": [5.0] * 3, "spread": [0.5, 0.1, 0.01]}
    arguments = {
        "results": results,
        "lines": (f"training on {NASTY}",),
        "queries": values,
        "test": Photos(),
        "embeddings": {"A": embeddings(), NASTY: embeddings(seed=1)},
        "healths": {"A": [health], NASTY: [health]},
    }
    return Contents(f"glyphs {NASTY}", **(arguments | more))


def sections(document):
    return re.findall(r"<h2>(\w+)</h2>", document)


def test_page_is_harmless_and_whole():
    document = page(contents())
    reader = assert_harmless(document)
    assert sections(document) == ["Results", "Curves", "Retrievals", "Map", "Health", "Arguments"]
    links = [attributes["href"] for tag, attributes in reader.elements if tag == "a"]
    ids = [attributes["id"] for tag, attributes in reader.elements if tag == "section" and "id" in attributes]
    assert links[: len(ids)] == [f"#{each}" for each in ids]
    targets = {attributes["id"] for _, attributes in reader.elements if "id" in attributes}
    assert {each.removeprefix("#") for each in links} <= targets, "no link leads nowhere"
    assert "default-src 'none'" in document
    assert "prefers-color-scheme: dark" in document
    assert 'name="viewport"' in document
    assert "x" * 299 in document
    document.encode("utf-8")


def test_page_says_the_numbers():
    document = page(contents())
    interval = mean_interval([0.5, 0.52, 0.54])
    assert f'52.0 <span class="muted">{100 * interval.low:.1f}&ndash;{100 * interval.high:.1f}</span>' in document
    assert document.count('<span class="best">≈ best</span>') == 1
    assert "0 of 1" in document  # of B, which failed
    gain = paired_difference(queries(0.5, 0.52, 0.54), queries(0.1))
    assert f"{100 * gain.mean:+.1f} <span" in document
    assert "gain over<br>untrained" in document


def test_the_note_says_what_intervals_are_of():
    one, several = [result("A", 0, 0.5)], [result("B", seed, 0.5 + seed / 50) for seed in range(3)]
    assert "over runs (Student)." in page(Contents("x", several))
    mixed = page(Contents("x", [*one, *several]))
    assert "over runs (Student); of a single run, of recall@1 over queries (bootstrap)." in mixed
    assert "one run says nothing about seeds" in page(Contents("x", one))


def test_intervals_end_at_the_ends_of_a_share():
    document = page(Contents("x", [result("A", 0, 0.99), result("A", 1, 0.6)]))
    assert "0.0&ndash;100.0" in document


def test_page_without_the_optional_parts():
    document = page(Contents("x", [result("A", 0, 0.5)]))
    assert sections(document) == ["Results", "Curves", "Arguments"]
    assert "gain over" not in document
    assert "≈" not in document
    vectors = page(contents(images=False))
    assert sections(vectors) == ["Results", "Curves", "Map", "Health", "Arguments"]


@pytest.mark.parametrize("chosen", [True, False])
def test_curves_say_of_which_classes_they_are(chosen):
    validation = {"recall_at_1": 0.7} if chosen else {}
    document = page(Contents("x", [result("A", 0, 0.5, validation=validation)]))
    assert f"Recall@1 after each epoch, {'validation' if chosen else 'test'} classes" in document


def test_page_of_nothing_but_failures():
    document = page(Contents("x", [failed("A", 0), failed("B", 0)]))
    assert_harmless(document)
    assert sections(document) == ["Results", "Arguments"]
    assert document.count("diverged: the loss is nan") == 2


def test_many_losses_have_few_curves():
    results = [result(f"loss{i}", 0, i / 50) for i in range(40)]
    document = page(Contents("x", results))
    assert "33 more are in the table" in document
    svg = document[document.index("<svg") :]
    assert "loss39" in svg[: svg.rindex("</svg>")]
    assert "loss3 " not in svg[: svg.rindex("</svg>")]
