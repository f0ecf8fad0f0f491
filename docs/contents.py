"""What the pages show of the package itself, as Markdown: its methods, its laws, and files of the top level."""

import ast
import inspect
import posixpath
import re
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

from formulas import with_formulas
from markdown.extensions.toc import slugify
from measured import of_method
from torch import nn

from pml_ext import catalog, losses, miners, wrappers
from pml_ext.analysis.explain import parts, settings, signature
from pml_ext.analysis.formulas import composed, formula, is_ours, sections
from pml_ext.testing import LOSS_LAWS, MINER_LAWS, Law
from pml_ext.testing.law import STAGES, Stage

TOP = Path(__file__).parent.parent
_SIZES = {"num_classes": 4, "embedding_size": 8}
_API = {"losses": "losses", "miners": "miners", "wrappers": "wrappers", "centers": "centers"}
# Files of the top level that are pages too.
_PAGES = {"EXTENDING.md": "extending.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changes.md"}


def methods() -> str:
    """Every method of the catalog, by the file that it stands in."""
    keys = [f"**{key}** is {meaning}." for key, meaning in catalog.KEYS.items()]
    return "\n\n".join([*keys, *(block for title, names in families() for block in _family(title, names))])


def families() -> Iterator[tuple[str, list[str]]]:
    """The files of the catalog, each as the sentence that it begins with, and the methods in it."""
    for module in vars(catalog).values():
        if inspect.ismodule(module) and (
            names := re.findall(r'^@?recipe\(\s*"([^"]+)"', inspect.getsource(module), re.MULTILINE)
        ):
            yield (module.__doc__ or "").rstrip("."), names


def _family(title: str, names: list[str]) -> Iterator[str]:
    yield f"## {title}"
    for name in names:
        yield from _method(name)


def _method(name: str) -> Iterator[str]:
    entry = catalog.recipes[name]
    recipe = catalog.build(name, **{need: _SIZES[need] for need in entry.required})
    needs = "".join(f", {need}=.." for need in entry.required)
    yield f"### {name}"
    yield f"{entry.source[0].upper()}{entry.source[1:].rstrip('.')}."
    yield f'`pml_ext.catalog.build("{name}"{needs})`'
    made = list(dict.fromkeys(signature(part) for _, part in parts(recipe)))
    yield "\n".join(f"- `{call}`" for call in made)
    if weights := picture(name):
        yield weights
    if measured := "\n".join(of_method(name)):
        yield measured
    searched = ", ".join(f"`{keyword}` {values}" for keyword, values in entry.space.items())
    if searched:
        yield f"A search changes {searched}."
    if whole := composed(recipe):
        yield with_formulas(f"**The whole formula**, of the parts below:\n\n{whole}\n")
    for kind, part in {type(part): (kind, part) for kind, part in parts(recipe)}.values():
        yield from _part(kind, part)


def citation() -> str:
    """The BibTeX that stands in `CITATION.cff` as a comment."""
    lines = (TOP / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    entry = [line.removeprefix("# ") for line in lines[lines.index("# As BibTeX:") + 2 :]]
    return "\n".join(["```bibtex", *entry, "```"])


def picture(name: str) -> str:
    """The pair weights of a method as they were drawn by `docs/pictures.py`; "" for one that has none."""
    path = TOP / "docs" / "assets" / "weights" / f"{name}.svg"
    return f"<figure>\n{path.read_text(encoding='utf-8')}</figure>" if path.exists() else ""


def _part(kind: str, part: nn.Module) -> Iterator[str]:
    cls = type(part)
    module = cls.__module__.removeprefix("pml_ext.")
    topic = _API.get(module.partition(".")[0])
    linked = f"[`{cls.__name__}`](api/{topic}.md#pml_ext.{topic}.{cls.__name__})" if topic else f"`{cls.__name__}`"
    title = linked if is_ours(part) else f"{linked} of PML"
    yield with_formulas(f"**{kind} {title}.** {formula(part)}".replace("::\n", ":\n"))
    doc = sections(cls.__doc__ or "")
    if not is_ours(part):
        doc = {"Defaults": "\n".join(f"- {name}: {value}" for name, value in settings(part).items())}
    for heading, name in (("Source, and what differs from it", "Source"), ("Defaults", "Defaults")):
        if doc.get(name):
            yield f'??? note "{heading}"\n\n{textwrap.indent(doc[name], "    ")}'


def laws() -> str:
    """Tables of the laws of losses and of miners, from cause to symptom."""
    return "\n\n".join(
        [
            f"## Losses: {len(LOSS_LAWS)} laws",
            *_stages(LOSS_LAWS.values()),
            f"## Miners: {len(MINER_LAWS)} laws",
            *_stages(MINER_LAWS.values()),
        ]
    )


def _stages(stated: Iterable[Law]) -> Iterator[str]:
    stages: dict[Stage, list[Law]] = {stage: [] for stage in STAGES}
    for law in stated:
        stages[law.stage].append(law)
    for stage, of_stage in stages.items():
        if of_stage:
            rows = (f"| `{law.name}` | {_sentence(law)} |" for law in of_stage)
            yield "\n".join((f"| of the {stage} | what holds |", "|---|---|", *rows))


def _sentence(law: Law) -> str:
    text = " ".join((inspect.getdoc(law.check) or "").partition("\n\n")[0].split())
    return text.replace("|", "\\|")


def as_a_page(markdown: str) -> str:
    """What a source of a page, which can be read as a file and whose links lead on in the repository, is as a page.

    A link on a line of its own becomes what it leads to, if that is a Markdown file of the top level or a file of
    `examples/`. What is only for readers of the file stands between the marks `as a file` and `to here`.
    """
    markdown = re.sub(r"<!-- as a file -->\n.*?<!-- to here -->\n\n", "", markdown, flags=re.DOTALL)
    markdown = markdown.replace("](../benchmarks/results/", "](results/")
    markdown = linked_tables(markdown) if "<!-- tables:" in markdown else markdown
    markdown = re.sub(r"^\[(\w+\.md)\]\(\.\./\1\)$", lambda found: included(found[1]), markdown, flags=re.MULTILINE)
    of_example = r"^\[`examples/(\S+)`\]\(\.\./examples/\1\)$"
    return re.sub(of_example, lambda found: example(found[1]), markdown, flags=re.MULTILINE)


def linked_tables(markdown: str) -> str:
    """The tables of everything, each class with a link to its reference, each method to its section."""
    topics = {name: topic for topic in (losses, miners, wrappers) for name in topic.__all__}

    def of_class(found: re.Match[str]) -> str:
        topic = topics[found[1]].__name__.removeprefix("pml_ext.")
        return f"| [`{found[1]}`](api/{topic}.md#pml_ext.{topic}.{found[1]})`{found[2]}"

    def of_method(found: re.Match[str]) -> str:
        return f"| [{found[1]}](methods.md#{slugify(found[1], '-')}) |"

    markdown = re.sub(rf"^\| `({'|'.join(topics)})(\()", of_class, markdown, flags=re.MULTILINE)
    names = "|".join(re.escape(name) for name in catalog.recipes)
    return re.sub(rf"^\| ({names}) \|", of_method, markdown, flags=re.MULTILINE)


def included(name: str) -> str:
    """A file of the top level without its title; links to what is no page become the name of the file."""
    path = TOP / name
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\A# .*\n", "", text)
    return re.sub(r"\[([^\]]+)\]\(([^)#:]+)\)", _link, text)


def example(name: str) -> str:
    """A file of `examples/` as a block of code, below what its docstring says."""
    source = (TOP / "examples" / name).read_text(encoding="utf-8")
    tree = ast.parse(source)
    told = ast.get_docstring(tree) or ""
    code = "\n".join(source.splitlines()[tree.body[0].end_lineno :]).strip()
    return f'{told}\n\n```python title="examples/{name}"\n{code}\n```'


def _link(found: re.Match[str]) -> str:
    text, target = found[1], posixpath.normpath(found[2])
    if target in _PAGES:
        return f"[{text}]({_PAGES[target]})"
    return f"[{text}]({target.removeprefix('docs/')})" if target.startswith("docs/") else text
