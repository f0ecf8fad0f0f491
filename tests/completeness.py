"""Of how many public symbols the types are known: `python tests/completeness.py`, never run by the tests.

Public is what `tests/public_names.py` says, with the members of its classes. `pyright --verifytypes` counts the symbols
of all modules whose names have no underscore.
"""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import public_names

ROOT = Path(__file__).resolve().parent.parent
KNOWN, MOST = 0.98, 500


def report():
    """All symbols that pyright finds, in a copy of the package that is installed nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder, "site")
        shutil.copytree(ROOT / "pml_ext", site / "pml_ext", ignore=shutil.ignore_patterns("__pycache__"))
        bin_folder = Path(sys.executable).parent
        environment = {**os.environ, "PYTHONPATH": str(site), "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"}
        command = [bin_folder / "pyright", "--verifytypes", "pml_ext", "--ignoreexternal", "--outputjson"]
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return json.loads(run.stdout)["typeCompleteness"]["symbols"]


def public():
    """The full names of what is public, each where it is defined."""
    sys.path.insert(0, str(ROOT))
    import pml_ext

    places = {"pml_ext": pml_ext, **public_names.public_modules()}
    names = {(place, name): getattr(module, name) for place, module in places.items() for name in module.__all__}
    return {
        f"{value.__module__}.{value.__qualname__}"
        if inspect.isclass(value) or inspect.isfunction(value)
        else f"{place}.{name}"
        for (place, name), value in names.items()
        if not inspect.ismodule(value)
    }


def main():
    """Print the figures, and what is not known; 1 if they are worse than they may be."""
    names, symbols = public(), report()
    ours = [each for each in symbols if any(f"{each['name']}.".startswith(f"{name}.") for name in names)]
    known = sum(each["isTypeKnown"] for each in ours)
    for each in ours:
        if not each["isTypeKnown"]:
            why = " ".join(line for message in each["diagnostics"] for line in message["message"].split())
            print(f"{each['name']}: {why or 'a member of it is not known'}")
    print(f"{len(names)} public names, {len(ours)} symbols with their members, {known / max(1, len(ours)):.1%} known")
    return int(not ours or known < KNOWN * len(ours) or len(names) > MOST)


if __name__ == "__main__":
    sys.exit(main())
