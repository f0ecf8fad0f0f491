"""The README says what is true: its tables are fresh, its code runs, its commands are the ones the CI runs."""

import re
from pathlib import Path

from pml_ext import catalog

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_tables_are_fresh() -> None:
    assert catalog.with_tables(README) == README, "run: python -m pml_ext.catalog README.md"


def test_quickstart_runs_and_is_short_and_so_does_all_other_code() -> None:
    quickstart, *others = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(quickstart.strip().splitlines()) <= 10
    scope: dict[str, object] = {}  # one, as for a reader: what follows may use what came before
    for code in (quickstart, *others):
        exec(code, scope)
        gradient = scope["embeddings"].grad  # type: ignore[attr-defined]
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


def test_the_two_commands() -> None:
    prefix = "python -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    commands = re.findall(r"```sh\n(.*?)\n```", README, re.DOTALL)
    assert commands == [
        f'{prefix}".[benchmark]" && .venv/bin/python -m pml_ext.benchmark',
        f'{prefix}".[test]" && .venv/bin/python -m pytest',
    ]
