"""pytest on the double of PML 3: `python tests/double.py [--other SWITCHES] [PYTEST ARGUMENTS]`, the suite without any.

The double stands in place of PML in a process of its own. `--other` names the open questions that it is to give the
other answer to (`pml3/double/pytorch_metric_learning/switches.py`), separated by commas, or "all". What is about PML 2
itself, or about losses of PML's own that the double has not, is skipped with its reason (`of_pml.py`).
"""

import argparse
import ast
import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent
DOUBLE = TESTS / "pml3" / "double"
SWITCHES = [
    ast.literal_eval(key)
    for node in ast.walk(ast.parse((DOUBLE / "pytorch_metric_learning" / "switches.py").read_text(encoding="utf-8")))
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SWITCHES"
    for key in node.value.keys
]


# Each run is a fork of a process that has imported what takes seconds and knows nothing of PML.
RUNS = """
import gc, json, os, sys
gc.disable()
import pytest, sklearn.cluster, torch, torch._dynamo
codes = []
for flipped, arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.environ["PML3_DOUBLE"] = flipped
        code = int(pytest.main(arguments))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
sys.exit(max(codes, key=abs))
"""


def run_on_the_double(*runs, capture=False, **environment):
    """Run pytest once for each pair of switches and arguments, and give the process when all have ended."""
    paths = [str(DOUBLE), str(TESTS.parent), *filter(None, [os.environ.get("PYTHONPATH", "")])]
    always = ["-p", "no:cacheprovider", "--tb=short", "-q"]
    return subprocess.run(
        [sys.executable, "-c", RUNS, json.dumps([(flipped, [*always, *given]) for flipped, given in runs])],
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.STDOUT if capture else None,
        text=True,
        check=False,
        cwd=TESTS.parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)} | environment,
    )


def main():
    parser = argparse.ArgumentParser(description="pytest on the double of PML 3", allow_abbrev=False)
    parser.add_argument("--other", default="", help=f"any of {','.join(SWITCHES)}, or all")
    known, arguments = parser.parse_known_args()
    flipped = ",".join(SWITCHES) if known.other == "all" else known.other
    return run_on_the_double((flipped, arguments)).returncode


if __name__ == "__main__":
    sys.exit(main())
