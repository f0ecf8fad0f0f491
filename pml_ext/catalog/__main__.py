"""`python -m pml_ext.catalog` prints the tables of the README; with a file name it writes them into that file."""

import argparse
from pathlib import Path

from pml_ext.catalog.tables import tables, with_tables


def main() -> None:
    """Print the tables, or write them into the README that is named."""
    parser = argparse.ArgumentParser(prog="python -m pml_ext.catalog", description=__doc__)
    parser.add_argument("readme", nargs="?", type=Path, help="the file to bring up to date")
    readme = parser.parse_args().readme
    if readme is None:
        print(tables())
    else:
        readme.write_text(with_tables(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
