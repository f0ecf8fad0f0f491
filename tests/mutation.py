"""Whether the tests notice when the core is changed: `python tests/mutation.py [--only TEXT] [--jobs N]`.

Each mutation of `tests/mutations.py` is made in a copy of the tree, and its tests are run at the quick profile of
hypothesis until one fails. What survives is printed; the exit status is 1 if something survives without a reason, or a
text is no longer in the code. It takes a quarter of an hour of a core or so, and is no part of the suite.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutations import MUTATIONS

ROOT = Path(__file__).resolve().parent.parent
COPIED = (
    *("pml_ext", "tests", "benchmarks", "examples", "docs"),
    *("pyproject.toml", "README.md", "EXTENDING.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff"),
    *(".github", "constraints.txt"),
)
TIMEOUT = 300


def copied(folder):
    """A copy of the tree in a folder."""
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, Path(folder, name))
    return Path(folder)


def red(tests):
    """The first of some tests that fails without any mutation, or an empty string."""
    with tempfile.TemporaryDirectory() as folder:
        return failed(copied(folder), tests)


def where(package, mutation):
    """The file in which the text stands once: that of the mutation, or the only other one, if code has moved."""
    first = package / mutation.path
    others = sorted(set(package.rglob("*.py")) - {first})
    for files in ([first] if first.exists() else [], others):
        found = [file for file in files if file.read_text(encoding="utf-8").count(mutation.old) == 1]
        if len(found) == 1:
            return found[0]
    return None


def outcome(mutation):
    """What comes of a mutation: "killed by ...", "survived" or "stale"."""
    with tempfile.TemporaryDirectory() as folder:
        root = copied(folder)
        file = where(root / "pml_ext", mutation)
        if file is None:
            return "stale"
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
        for tests in mutation.tests:
            killed = failed(root, tests)
            if killed:
                return f"killed by {killed}"
    return "survived"


def failed(root, tests):
    """The first test that fails in a tree, or an empty string."""
    path, *selection = tests.split(" -k ")
    names = ["-k", selection[0].replace("_or_", " or ")] if selection else []
    command = [sys.executable, "-m", "pytest", "-n", "0", "-x", "-q", "--show-capture=no", "--tb=no"]
    # No file of another run's: cases that failed before would be tried first.
    command += ["-p", "no:cacheprovider", path, *names]
    environment = os.environ | {"HYPOTHESIS_PROFILE": "dev", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"{shlex.join(command[9:])}: no end"
    if run.returncode in (0, 5):
        return ""
    return next((line.split(" - ")[0][7:] for line in run.stdout.splitlines() if line.startswith("FAILED")), path)


def main():
    """Try the mutations that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="mutations whose file or text contains this")
    parser.add_argument("--jobs", type=int, default=1, help="how many at a time")
    given = parser.parse_args()
    chosen = [each for each in MUTATIONS if given.only in f"{each.path} {each.old} {each.new}"]
    start, survivors, killed = time.monotonic(), [], 0
    with ThreadPoolExecutor(given.jobs) as pool:
        # A test that fails anyway would notice everything.
        for failure in filter(None, pool.map(red, sorted({tests for each in chosen for tests in each.tests}))):
            print(f"fails without a mutation: {failure}")
            return 1
        for mutation, found in zip(chosen, pool.map(outcome, chosen), strict=True):
            killed += found.startswith("killed")
            print(f"{mutation.path}: {mutation.old!r} -> {mutation.new!r}: {found}", flush=True)
            if not found.startswith("killed"):
                survivors.append((mutation, found))
    print(f"\n{killed} of {len(chosen)} mutations are noticed, in {time.monotonic() - start:.0f} s")
    for mutation, found in survivors:
        print(f"{found}: {mutation.path}: {mutation.new!r}: {mutation.reason or 'NO REASON'}")
    return int(any(found == "stale" or not mutation.reason for mutation, found in survivors))


if __name__ == "__main__":
    sys.exit(main())
