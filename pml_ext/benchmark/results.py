"""The results of an experiment: its runs as a table, with pictures, mistakes and the best model."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, overload

import torch
from torch import Tensor

from pml_ext import shown
from pml_ext.benchmark import difference, folder, keep, mistakes, table
from pml_ext.benchmark.config import Experiment
from pml_ext.benchmark.data import Data
from pml_ext.benchmark.errors import BenchmarkError
from pml_ext.benchmark.index import Index
from pml_ext.benchmark.kinds import did_you_mean
from pml_ext.benchmark.result import Result
from pml_ext.benchmark.saved import EmbeddingModel, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pml_ext.benchmark.report.summary import Row

LOSSES = 20  # rows of a table that fits on a screen


@dataclass(frozen=True, repr=False, eq=False)
class Results(Sequence[Result]):
    """The runs of an experiment: a sequence of `Result` that is shown as a table with intervals.

    Args:
        runs: one for each seed, fold and loss, untrained networks first; a failed one has an `error`.
        experiment: the arguments, with the folder in `out`.
        data: of each fold.
        interrupted: whether it was stopped before its end; running it again continues.
        joined: rows of the folds' models together.

    Example:
        >>> results = Experiment(data="digits", losses="RAW", epochs=1).run()    # doctest: +SKIP
        >>> results.curves().savefig("curves.png")                               # doctest: +SKIP
        >>> results.best().query("new.jpg", k=8)                                 # doctest: +SKIP
    """

    runs: tuple[Result, ...]
    experiment: Experiment
    data: tuple[Data, ...]
    interrupted: bool = False
    joined: tuple[Result, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def __iter__(self) -> Iterator[Result]:
        return iter(self.runs)

    @overload
    def __getitem__(self, key: int) -> Result: ...

    @overload
    def __getitem__(self, key: slice | str) -> Results: ...

    def __getitem__(self, key: int | slice | str) -> Result | Results:
        """A run by its position, or those of a loss by its name."""
        if isinstance(key, str):
            return self._part([one for one in self.runs if one.loss == self._known(key)])
        return self._part(self.runs[key]) if isinstance(key, slice) else self.runs[key]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, (Results, list, tuple)) else NotImplemented

    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def _part(self, runs: Sequence[Result]) -> Results:
        return Results(tuple(runs), self.experiment, self.data, self.interrupted)

    @property
    def out(self) -> Path:
        """The folder where everything is written."""
        return Path(str(self.experiment.out))

    @property
    def losses(self) -> tuple[str, ...]:
        """The names of the losses that were trained, as the table has them."""
        return tuple(dict.fromkeys(one.loss for one in self.runs if one.trained))

    def __repr__(self) -> str:
        rows, left_out = self._rows()
        lines = [
            table.text(rows, difference.standing(self.out, self.runs), self._chance)
            if rows
            else f"no run of {self.out} has ended",
            f"{left_out} more losses, of a lower recall@1: to_frame() has all" if left_out else "",
            self._ending(),
        ]
        return shown.on_a_screen("\n".join(line for line in lines if line), "to_frame()")

    def _repr_html_(self) -> str:
        from pml_ext.benchmark.report.page import Contents, results_table

        if not self.runs:
            return shown.preformatted(repr(self))
        kept, left_out = self._rows()
        names = {one.loss for one in kept}
        contents = Contents("", self.runs, queries=difference.of_losses(self.out, self.runs))
        body = results_table(contents, [row for row in self._summary if row.loss in names])
        more = [f"{left_out} more losses: to_frame() has all"] if left_out else []
        lines = [*self._chance, *more, *self._ending().splitlines()]
        return shown.framed(body + "".join(f"<p>{shown.text(line)}</p>" for line in lines))

    def _rows(self) -> tuple[list[Result], int]:
        """The runs of the rows of a table: all, or those of the best losses where they are too many for a screen."""
        trained = [row.loss for row in self._summary if row.trained]
        if len(trained) <= LOSSES:
            return [*self.runs, *self.joined], 0
        kept = set(trained[:LOSSES])
        return [one for one in self.runs if not one.trained or one.loss in kept], len(trained) - LOSSES

    @cached_property
    def _chance(self) -> list[str]:
        return [self.data[0].chance()] if self.data else []

    def _ending(self) -> str:
        return "interrupted: run it again to continue" if self.interrupted else ""

    @cached_property
    def _summary(self) -> list[Row]:
        from pml_ext.benchmark.report.summary import summarize

        return summarize(self.runs, difference.of_losses(self.out, self.runs))

    @cached_property
    def _embeddings(self) -> dict[str, Tensor]:
        from pml_ext.benchmark import plots

        return plots.embeddings(self.experiment, self.data[0], self.out, self._done())

    def _done(self) -> list[Result]:
        done = [one for one in self.runs if not one.error]
        if not any(one.trained for one in done):
            raise BenchmarkError("there is nothing to draw: no run has succeeded")
        return done

    def curves(self, *, ax: Any = None) -> Figure:
        """Recall@1 after each epoch, every loss a line.

        Args:
            ax: matplotlib axes to draw on. Default: those of a new figure, which a notebook shows and `savefig` writes.
        """
        from pml_ext.benchmark.curves import learning_curves

        return learning_curves(self._done(), ax=ax)

    def recall(self, *, ax: Any = None) -> Figure:
        """Recall at every k, every loss a line.

        Args:
            ax: matplotlib axes to draw on. Default: those of a new figure, which a notebook shows and `savefig` writes.
        """
        from pml_ext.benchmark.curves import recall_curves

        return recall_curves(self._done(), ax=ax)

    def gallery(self) -> Figure:
        """For a few random test images, the nearest images under the best losses.

        Raises:
            BenchmarkError: the samples are not images.
        """
        from pml_ext.benchmark.pictures import gallery

        if not self._has_images:
            raise BenchmarkError("the samples are vectors: there are no images for a gallery")
        return gallery(self.data[0].test, self._embeddings)

    def projection(self) -> Figure:
        """Some test classes in two dimensions by t-SNE, under each of the best losses."""
        from pml_ext.benchmark.pictures import projection

        return projection(self.data[0].test, self._embeddings)

    def health(self) -> Figure:
        """What the losses do to pairs, and how the embeddings look, by step.

        Raises:
            BenchmarkError: nothing was recorded, as for methods with a trainer of their own.
        """
        from pml_ext.benchmark import plots
        from pml_ext.benchmark.curves import health_curves

        found = plots.healths(self.out, self._done())
        if not found:
            raise BenchmarkError("no health was recorded for these runs")
        return health_curves(found)

    def mistakes(self, k: int = 10, *, loss: str | None = None) -> mistakes.Mistakes:
        """The worst retrievals: queries whose nearest sample is of another class, much nearer than any match.

        Args:
            k: how many. Default 10.
            loss: which loss. Default: the one with the best recall@1.
        """
        if isinstance(k, bool) or not isinstance(k, int) or k < 1:
            raise BenchmarkError(f"k must be a whole number of at least 1, got {k!r}")
        one = self._one(loss)
        name = one.loss
        vectors = self._embeddings.get(name)
        if vectors is None:
            from pml_ext.benchmark.training import embeddings_of

            where = folder.run_folder(self.out, *one.key)
            vectors = embeddings_of(self.experiment, self.data[one.fold or 0], where, *one.key)
        return mistakes.worst(self.data[0].test, vectors, k, f"{name}, seed {one.seed}", pictured=self._has_images)

    def to_frame(self) -> Any:
        """A pandas DataFrame with a row for each run.

        Raises:
            BenchmarkError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            raise BenchmarkError("to_frame needs pandas: pip install pandas") from None
        return pd.DataFrame([one.row() for one in self.runs])

    def best(self, loss: str | None = None) -> EmbeddingModel:
        """The model that the validation classes chose: images -> embeddings, ready to be queried.

        Args:
            loss: name of the loss whose model is returned. Default: the best of all.

        Raises:
            BenchmarkError: nothing was validated, or no model was kept.
        """
        chosen = keep.choose(self.runs if loss is None else self[loss].runs)
        if chosen is None and loss is None:
            raise BenchmarkError("no validation classes have chosen a model: name a loss, as in best('RAW')")
        if chosen is None:
            chosen = self._one(loss)
        where = (self.out if loss is None else folder.run_folder(self.out, *chosen.key)) / keep.BEST
        if not where.is_dir():
            raise BenchmarkError(
                f"no model of {chosen.loss} was kept, as of frozen trunks, of which best() is the only"
            )
        trunk = None if isinstance(self.experiment.trunk, str) else copy.deepcopy(self.experiment.trunk)
        model = load(where, trunk=trunk)
        model.gallery = self.experiment.data if self.data[0].samples is not None else _indexed(model, self.data[0].test)
        return model

    @property
    def _has_images(self) -> bool:
        data = self.data[0]
        return data.samples is None or data.samples.image is not None

    def _known(self, loss: str) -> str:
        names = tuple(dict.fromkeys(one.loss for one in self.runs))
        if loss not in names:
            raise BenchmarkError(did_you_mean("loss", loss, names))
        return loss

    def _one(self, loss: str | None) -> Result:
        """The first run of a loss, or of the best one."""
        done = self._done()
        name = self._known(loss) if loss is not None else next(r.loss for r in self._summary if r.trained)
        found = next((one for one in done if one.loss == name), None)
        if found is None:
            raise BenchmarkError(f"no run of {name} has succeeded")
        return found


def _indexed(model: EmbeddingModel, test: Any) -> Index:
    """The test samples of a set that comes with the package, which are tensors."""
    embeddings = model.embed(torch.stack([test[i][0] for i in range(len(test))]))
    return Index(embeddings, labels=tuple(test.classes[label] for label in test.labels.tolist()))
