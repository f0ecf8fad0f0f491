"""The table of hardness-aware methods of `results/hdml.md` from the folder of a run, and the lines that it keeps.

``python benchmarks/hdml_table.py runs/hdml_cars --data "frozen: Cars196"`` prints the table; ``--add`` puts its lines
into ``results/hdml_frozen.jsonl``, in the place of those of the same data.
"""

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import run_lines
from numpy.typing import NDArray
from reality_page import cell, holm, lines, of_queries, points, row

from pml_ext.benchmark.evaluate import CHOSEN_BY
from pml_ext.benchmark.result import BASELINES
from pml_ext.evaluation.intervals import Difference, paired_difference

HERE = Path(__file__).parent
RUNS = HERE / "results" / "hdml_frozen.jsonl"
SHOWN = {"recall_at_1": "recall@1", "mean_average_precision_at_r": "MAP@R", "NMI": "NMI"}
# Each family: the loss over all tuples, J(T) over the same tuples as synthesis, and what is compared with both.
FAMILIES = {
    "Triplet": ("HDML-Triplet-real", "HDML-Triplet", "HDML-Triplet-rescaled"),
    "NPair": ("HDML-NPair-real", "HDML-NPair", "HDML-NPair-rescaled", "HDML-NPair-balanced"),
}


def comparisons(measured: Collection[str]) -> list[tuple[str, str]]:
    """Synthesis against its J(T), and all of a family against the plain loss, of what was measured.

    >>> comparisons(["NPair", "HDML-NPair-real", "HDML-NPair"])
    [('HDML-NPair', 'HDML-NPair-real'), ('HDML-NPair-real', 'NPair'), ('HDML-NPair', 'NPair')]
    """
    found = []
    for plain, (real, *synthesis) in FAMILIES.items():
        found += [(name, real) for name in synthesis]
        found += [(name, plain) for name in (real, *synthesis)]
    return [pair for pair in found if set(pair) <= set(measured)]


def differences(queries: Mapping[str, NDArray[np.float64]]) -> dict[tuple[str, str], tuple[Difference, bool]]:
    """Each comparison, over queries and seeds, and whether it stands Holm's correction over all of them."""
    found = {pair: paired_difference(*(queries[name] for name in pair)) for pair in comparisons(queries)}
    corrected = holm([each.p_value for each in found.values()])
    return {pair: (each, p < 0.05) for (pair, each), p in zip(found.items(), corrected, strict=True)}


def table(
    runs: Sequence[Mapping[str, Any]], found: Mapping[tuple[str, str], tuple[Difference, bool]], metric: str
) -> list[str]:
    """A row for each method: the mean over seeds with its interval, and a metric against J(T) and the plain loss."""
    out = [f"| loss | {' | '.join(SHOWN.values())} | {SHOWN[metric]} against its J(T) | against the plain loss |"]
    out += ["| :-- " + "| --: " * 5 + "|"]
    for name in (*BASELINES, *(each for plain, others in FAMILIES.items() for each in (plain, *others))):
        own = [run for run in runs if run["loss"] == name]
        family = next(((others[0], plain) for plain, others in FAMILIES.items() if name in (plain, *others)), ("", ""))
        cells = [cell(own, key) for key in SHOWN]
        for other in family:
            difference = found.get((name, other))
            cells.append(points(difference[0], is_significant=difference[1]) if difference else "")
        if own:
            out.append(row(name, *cells).rstrip())
    return out


def main() -> None:
    """Print, and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="the folder of an experiment with methods of the table")
    parser.add_argument("--data", required=True, help="what its lines are called in the file")
    parser.add_argument("--add", action="store_true", help=f"put the lines into {RUNS.name}")
    parser.add_argument("--metric", choices=[*SHOWN][:2], default=CHOSEN_BY, help="that is compared (default MAP@R)")
    options = parser.parse_args()
    runs = lines(options.runs)
    print("\n".join(table(runs, differences(of_queries(options.runs, options.metric)), options.metric)))
    if options.add:
        others = [line for line in run_lines.read(RUNS) if line["data"] != options.data]
        run_lines.write(RUNS, [*others, *(run_lines.kept(line, options.data) for line in runs)])


if __name__ == "__main__":
    main()
