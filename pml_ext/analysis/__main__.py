"""`python -m pml_ext.analysis explain NAME`: what a method of the catalog is, and the picture of its pair weights."""

import argparse
import sys
from pathlib import Path

from pml_ext import catalog
from pml_ext.analysis.explain import explain
from pml_ext.analysis.plots import weight_curves


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m pml_ext.analysis", description=__doc__)
    command = parser.add_subparsers(dest="command", required=True)
    page = command.add_parser("explain", help="formula, parts, defaults, source, differences, and the weight plot")
    page.add_argument("name", help="a name of the catalog, such as RAW")
    page.add_argument("--out", type=Path, help="where to write the plot; default NAME_weights.png")
    given = parser.parse_args(arguments)
    out = given.out or Path(f"{given.name}_weights.png")
    try:
        recipe = catalog.build(given.name)
        print(explain(recipe))
        weight_curves({recipe.name: recipe.loss}).savefig(out, dpi=120)
    except (ValueError, TypeError, ImportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"\nPair weights drawn in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
