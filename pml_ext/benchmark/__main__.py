"""`python -m pml_ext.benchmark`."""

import sys

from pml_ext.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())
