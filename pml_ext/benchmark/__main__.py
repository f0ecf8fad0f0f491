"""`python -m pml_ext.benchmark`."""

import sys

from pml_ext.benchmark import cli, use


def main(arguments: list[str]) -> int:
    """Train and compare, or one of the other commands if the first word names it."""
    command = use.COMMANDS.get(arguments[0]) if arguments else None
    return cli.main(arguments) if command is None else command(arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
