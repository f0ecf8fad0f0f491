"""Which losses of an experiment can be told apart, from what every query of their tests has."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pml_ext.benchmark import folder
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.table import by_loss
from pml_ext.evaluation import Standing, standings

QUERIES = "queries.npz"
COMPARED = "recall_at_1"


def standing(out: Path, results: Sequence[Result]) -> dict[str, Standing]:
    """How each loss stands among all by recall@1, over the queries and the runs that it has.

    A run that failed counts as diverged; a loss of which a file is gone is left out.
    """
    methods = of_losses(out, results)
    return standings(methods) if len(methods) > 1 else {}


def of_losses(out: Path, results: Sequence[Result]) -> dict[str, NDArray[np.float32]]:
    """What each query has in each run of each loss [runs, n]: NaN of a run that failed; {} of different tests.

    A loss of which a file is gone is left out.
    """
    methods: dict[str, NDArray[np.float32]] = {}
    for loss, runs in by_loss(results).items():
        values = {one.key: queries(folder.run_folder(out, *one.key)) for one in runs if not one.error}
        there = [each for each in values.values() if each is not None]
        if not there or len(there) < len(values):
            continue
        failed = [np.full_like(there[0], np.nan) for one in runs if one.error]
        methods[loss] = np.stack([*there, *failed])
    return methods if len({each.shape[1] for each in methods.values()}) == 1 else {}


def queries(run: Path) -> NDArray[np.float32] | None:
    """What each query of the test of a run has, None where that is not known."""
    try:
        with np.load(io.BytesIO((run / QUERIES).read_bytes()), allow_pickle=False) as found:
            return np.asarray(found[COMPARED], dtype=np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
