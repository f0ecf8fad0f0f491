"""The plots and the report of an experiment, drawn from what its runs have left in their folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from torch import Tensor

from pml_ext.benchmark import difference, files, records
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.curves import HARDNESS, HEALTH, hardness_curves, health_curves, learning_curves, recall_curves
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.folder import run_folder
from pml_ext.benchmark.pictures import gallery, projection
from pml_ext.benchmark.report import Contents, page
from pml_ext.benchmark.result import BASELINES, UNTRAINED, UNTRAINED_HEAD, Result
from pml_ext.benchmark.table import by_loss
from pml_ext.benchmark.training import embeddings_of
from pml_ext.figures import png

REPORT = "report.html"
PICTURED = 3  # trained losses in the gallery and the map


def draw(experiment: Experiment, data: Data, out: Path, results: Sequence[Result]) -> list[Path]:
    """Draw everything into `out/plots`, write `out/report.html`, and return the files, the report first."""
    folder = out / "plots"
    folder.mkdir(exist_ok=True)
    everything = results
    results = [result for result in results if not result.error]
    shown = embeddings(experiment, data, out, results)
    seen = data.samples is None or data.samples.image is not None
    health = healths(out, results)
    contents = Contents(
        f"{data.name}: {', '.join(name for name in by_loss(everything) if name not in BASELINES)}",
        everything,
        lines=(data.describe(done=True), *data.notes, data.chance()),
        queries=difference.of_losses(out, everything),
        test=data.test,
        embeddings=shown,
        images=seen,
        healths=health,
    )
    report = out / REPORT
    # A path may hold what is no Unicode.
    files.write(report, page(contents).encode("utf-8", "replace"))
    if not shown:
        return [report]
    drawn = [
        report,
        _save(learning_curves(results), folder / "learning_curves.png"),
        _save(recall_curves(results), folder / "recall_at_k.png"),
        *([_save(gallery(data.test, shown), folder / "gallery.png")] if seen else []),
        _save(projection(data.test, shown), folder / "projection.png"),
    ]
    if health:
        drawn.append(_save(health_curves(health), folder / "health.png"))
    schedules = {name: runs for name in by_loss(results) if (runs := _schedules(out, name, results))}
    if schedules:
        drawn.append(_save(hardness_curves(schedules), folder / "hardness.png"))
    return drawn


def embeddings(experiment: Experiment, data: Data, out: Path, results: Sequence[Result]) -> dict[str, Tensor]:
    """Of the best losses and the untrained network, by their first run, the embeddings of the test samples [n, d]."""
    first = {name: runs[0] for name, runs in by_loss(results).items()}
    return {
        name: embeddings_of(experiment, data, run_folder(out, *first[name].key), *first[name].key)
        for name in _best(results)
    }


def healths(out: Path, results: Sequence[Result]) -> dict[str, list[dict[str, list[float]]]]:
    """Of each loss whose health was watched, the recorded columns of its runs."""
    return {name: runs for name in by_loss(results) if (runs := _healths(out, name, results))}


def _healths(out: Path, name: str, results: Sequence[Result]) -> list[dict[str, list[float]]]:
    keys = [result.key for result in results if result.loss == name]
    return [run for key in keys if (run := records.series(run_folder(out, *key), "embedding_health", HEALTH))]


def _schedules(out: Path, name: str, results: Sequence[Result]) -> list[dict[str, list[float]]]:
    keys = [result.key for result in results if result.loss == name]
    runs = [records.series(run_folder(out, *key), "hardness_HardnessSchedule", HARDNESS) for key in keys]
    # Without synthesis there is nothing to see: lambda and the weight are 1, the rest 0.
    return [run for run in runs if run and any(run["hardness_synthetic"])]


def _best(results: Sequence[Result]) -> list[str]:
    # The untrained network first, then the losses with the best recall@1, in the order of the table.
    groups = by_loss(results)
    score = {
        name: mean(run.metrics["recall_at_1"] for run in runs) for name, runs in groups.items() if name not in BASELINES
    }
    chosen = sorted(score, key=lambda name: -score[name])[:PICTURED]
    return [name for name in groups if name in (UNTRAINED, UNTRAINED_HEAD) or name in chosen]


def _save(figure: Figure, path: Path) -> Path:
    files.write(path, png(figure, dpi=130))
    return path
