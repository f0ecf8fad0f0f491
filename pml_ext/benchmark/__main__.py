"""`python -m pml_ext.benchmark`."""

import sys

from pml_ext.benchmark import cli, use
from pml_ext.benchmark.parser import MODULE


def main(arguments: list[str], prog: str = MODULE) -> int:
    """Train and compare, or one of the other commands if the first word names it; `prog` is what was called."""
    command = use.COMMANDS.get(arguments[0]) if arguments else None
    return cli.main(arguments, prog) if command is None else command(arguments[1:], prog)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
