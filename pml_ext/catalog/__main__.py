"""`python -m pml_ext.catalog` prints the tables of the documentation; a file name writes them into that file."""

import argparse
from pathlib import Path

from pml_ext.catalog.tables import tables, with_tables


def main() -> None:
    """Print the tables, or write them into the page that is named."""
    parser = argparse.ArgumentParser(prog="python -m pml_ext.catalog", description=__doc__)
    parser.add_argument("page", nargs="?", type=Path, help="the file to bring up to date")
    page = parser.parse_args().page
    if page is None:
        print(tables())
    else:
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
