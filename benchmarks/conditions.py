"""What batch size, class size, dimension and the k of k-NN losses change, on frozen features.

    python benchmarks/conditions.py cub:CUB_200_2011 omniglot:DIR     # a quarter of an hour each: goes on where it was
    python benchmarks/conditions.py                                   # the page of what has ended

Every condition has the same features, initial heads, seeds and number of steps as the base: 32 classes of 4 images, 128
dimensions. A larger batch therefore sees more images.
"""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import image_options
import numpy as np
import reality_page
import run_lines
from numpy.typing import NDArray

from pml_ext.benchmark import Experiment, run
from pml_ext.benchmark.data import Data
from pml_ext.evaluation import paired_difference

RESULTS = Path(__file__).parent / "results" / "conditions.md"
METHODS = ("RAW", "MultiSimilarity", "BatchHard", "SemiHard", "NCA", "pml:ContrastiveLoss")
BASE = "32 x 4"
CONDITIONS: Mapping[str, Mapping[str, int]] = {
    BASE: {},
    "8 x 4": {"batch_size": 32, "classes_per_batch": 8},
    "16 x 4": {"batch_size": 64, "classes_per_batch": 16},
    "56 x 4": {"batch_size": 224, "classes_per_batch": 56},
    "56 x 2": {"batch_size": 112, "classes_per_batch": 56},
    "16 x 8": {"batch_size": 128, "classes_per_batch": 16},
    "64 dimensions": {"embedding_size": 64},
    "512 dimensions": {"embedding_size": 512},
}
NEAREST = ("NCA(k=1)", "NCA(k=4)", "NCA(k=16)", "NCA(k=None)")
Queries = Mapping[str, NDArray[np.float64]]


def measured(source: str, out: Path, seeds: tuple[int, ...], **arguments: Any) -> None:
    """Train all methods in all conditions."""
    whole = Experiment(data=source, protocol="frozen-head", losses=METHODS, seeds=seeds, **arguments)
    folder = out / Data.of(whole).name
    for name, condition in CONDITIONS.items():
        losses = (*METHODS, *NEAREST) if name == BASE else METHODS
        run(replace(whole, losses=losses, out=str(folder / name), **condition), resume=None, say=print)


def rows(base: Queries, others: Mapping[str, tuple[str, Queries]]) -> list[str]:
    """A row for each condition, a column for each method: its paired difference to the base, in points.

    Args:
        base: average precision of each query and seed [seeds, n], by method.
        others: what a row is called, with the method that it is compared with ("" for each its own) and its values.
    """
    found = {
        (name, method): paired_difference(values[method], base[of or method])
        for name, (of, values) in others.items()
        for method in values
        if (of or method) in base
    }
    corrected = dict(zip(found, reality_page.holm([each.p_value for each in found.values()]), strict=True))
    columns = [method for method in METHODS if method in base]
    out = [f"| | {' | '.join(columns)} |", "|:--|" + "--:|" * len(columns)]
    out.append(f"| {BASE}, MAP@R | {' | '.join(f'{100 * base[method].mean():.1f}' for method in columns)} |")
    for name, (of, values) in others.items():
        cells = dict.fromkeys(columns, "")
        for method in values:
            if (name, method) in found:
                significant = corrected[name, method] < 0.05
                cells[of or method] = reality_page.points(found[name, method], is_significant=significant)
        out.append(f"| {name} | {' | '.join(cells[column] for column in columns)} |")
    return out


def page(out: Path) -> str:
    """Tables of all data sets whose base has ended."""
    lines = []
    for folder in sorted(out.glob("*/")):
        base, *rest = (reality_page.of_queries(folder / name, named=str) for name in CONDITIONS)
        if not base:
            continue
        others = {name: ("", values) for name, values in zip(list(CONDITIONS)[1:], rest, strict=True)}
        others |= {f"k = {each[6:-1]}": ("NCA", {each: base[each]}) for each in NEAREST if each in base}
        lines += [f"## {folder.name}", "", *rows(base, others), ""]
    if not lines:
        raise SystemExit(f"no run of {out} has ended")
    return "\n".join(lines).rstrip() + "\n"


def main() -> None:
    """Read the command line, train, and write the page of what has ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="*", help="as --data of python -m pml_ext.benchmark")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="default: 0 1 2 3 4")
    image_options.add_to(parser, "runs/conditions")
    given = parser.parse_args()
    arguments = image_options.arguments(given)
    for source in given.data:
        measured(source, given.out, tuple(given.seeds), **arguments)
    reality_page.put(RESULTS, page(given.out), "Batch size, class size, dimension")
    folders = sorted(given.out.glob("*/*/"))
    runs = ((folder, line) for folder in folders for line in reality_page.lines(folder))
    run_lines.write(RESULTS, (run_lines.kept(line, folder.parent.name) for folder, line in runs))


if __name__ == "__main__":
    main()
