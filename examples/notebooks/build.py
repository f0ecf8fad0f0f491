"""Run the notebooks of this folder and write them beside their texts: `python examples/notebooks/build.py [NAME ...]`.

A notebook is kept as text, NAME.py in cells that begin with %%; NAME.ipynb is made from it, with what its cells show.
"""

import sys
import tempfile
from pathlib import Path

import jupytext
import nbclient

WIDGET = "application/vnd.jupyter.widget-view+json"
FOLDER = Path(__file__).resolve().parent


def build(path: Path) -> None:
    """Run a text in a folder of its own, and write the notebook without times and counters of this run."""
    notebook = jupytext.read(path)
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
        cell.metadata = {}
        if cell.cell_type != "code":
            continue
        # A widget of the bar means nothing without its kernel.
        cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stderr":
                output.text = output.text.replace("\r", "\n").strip().split("\n")[-1] + "\n"  # where the bar ended
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    jupytext.write(notebook, path.with_suffix(".ipynb"), fmt="ipynb")


if __name__ == "__main__":
    names = sys.argv[1:] or [path.stem for path in sorted(FOLDER.glob("*.py")) if path.stem != "build"]
    for name in names:
        build(FOLDER / f"{name}.py")
        print(f"{name}.ipynb")
