"""The runs that a page of results keeps beside it: a line of JSON for each loss, its runs as columns."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pml_ext.benchmark.evaluate import CHOSEN_BY

# What one run of a loss has and another has not.
_OF_A_RUN = ("seed", "metrics", "seconds_per_epoch", "failure", "error", "fold", "best_epoch", "validation", "date")
_DIGITS = 6


def kept(line: Mapping[str, Any], data: str) -> dict[str, Any]:
    """What a page keeps of a run: no history, no last epoch, and nothing of the machine on which it ran.

    Of the metrics of validation only the one that chooses the epoch is kept; an argument that is not there is None.
    """
    found = {key: value for key, value in line.items() if key not in ("history", "last", "arguments", "hardware")}
    found["metrics"] = {name: round(value, _DIGITS) for name, value in line["metrics"].items()}
    validation = line.get("validation") or {}
    found["validation"] = {CHOSEN_BY: round(validation[CHOSEN_BY], _DIGITS)} if CHOSEN_BY in validation else {}
    if line.get("seconds_per_epoch"):
        found["seconds_per_epoch"] = round(line["seconds_per_epoch"], 4)
    unsaid = ("losses", "cache", "out", "data")
    arguments = {k: _without_folder(v) for k, v in line["arguments"].items() if k not in unsaid and v is not None}
    return found | {"data": data, "arguments": arguments}


def _without_folder(value: Any) -> Any:
    """The name of a file that is given by where it lies on a machine.

    >>> _without_folder("/home/me/weights.pt"), _without_folder("conv4")
    ('weights.pt', 'conv4')
    """
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A list for each key of some rows, None where a row has none; of a key that holds a mapping, one for each of its.

    >>> columns([{"seed": 0, "metrics": {"NMI": 0.5}}, {"seed": 1}])
    {'seed': [0, 1], 'metrics': {'NMI': [0.5, None]}}
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(key) for row in rows]
        nested = any(isinstance(value, Mapping) for value in values)
        found[key] = columns([value or {} for value in values]) if nested else values
    return found


def rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of some columns.

    >>> rows({"seed": [0, 1], "metrics": {"NMI": [0.5, None]}})
    [{'seed': 0, 'metrics': {'NMI': 0.5}}, {'seed': 1}]
    """
    lists = {key: rows(value) if isinstance(value, Mapping) else value for key, value in found.items()}
    length = max(map(len, lists.values()), default=0)
    return [
        {key: values[i] for key, values in lists.items() if i < len(values) and values[i] not in (None, {})}
        for i in range(length)
    ]


def write(page: Path, runs: Iterable[Mapping[str, Any]]) -> None:
    """Write runs beside their page."""
    found: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    for line in runs:
        common = {key: value for key, value in line.items() if key not in _OF_A_RUN}
        one = {key: value for key, value in line.items() if key in _OF_A_RUN and value not in (None, "", {})}
        found.setdefault(json.dumps(common, sort_keys=True), (common, []))[1].append(one)
    lines = ({**common, "runs": columns(each)} for common, each in found.values())
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    page.with_suffix(".jsonl").write_text(text, encoding="utf-8")


def read(page: Path) -> list[dict[str, Any]]:
    """Read the runs that stand beside a page, one mapping each; none if there is no such file yet."""
    path = page.with_suffix(".jsonl")
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        common = json.loads(line)
        runs = common.pop("runs")
        found += [{**common, **one} for one in rows(runs)]
    return found
