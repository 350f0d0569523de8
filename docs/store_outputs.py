"""Execute notebooks and keep what they show, with a digest of their code that a test compares.

    python docs/store_outputs.py            every notebook of the book, and those that ran into a folder of runs/
    python docs/store_outputs.py 07_model   one of them
"""

import base64
import hashlib
import json
import os
import re
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from vat_nb.plotting import shrink_png

TOP = Path(__file__).resolve().parents[1]
LARGEST = 200_000  # bytes of an output as JSON; a larger one is left out
# where a run's clone lay, or a data set elsewhere on its machine: nobody else has it there
CLONE = re.compile(r"/[\w./-]+/(?=(?:runs|data)/)|(?<=[' ])/[\w./-]+/(?=[\w.-]+')")
PROGRESS = re.compile(r"about [\d.]+ \w+ to go\n?")
TEMPORARY = re.compile(r"/[\w/+-]*/tmp\w{8}(?=/)")  # a folder that has another name each time


def digest(notebook):
    "Name the code of a notebook: its outputs belong to this code and to no other."
    sources = "\0".join(c.source for c in notebook.cells if c.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def small(outputs):
    "Keep the outputs that a page can carry: results, figures and short texts, but no progress bars and no widgets."
    chosen = []
    for output in outputs:
        data = output.get("data", {})
        if output.output_type == "error" or output.get("name") == "stderr":
            continue
        if "application/vnd.jupyter.widget-view+json" in data:
            continue
        if "text" in output:
            output.text = PROGRESS.sub("", TEMPORARY.sub("...", output.text))
            if not output.text:
                continue
            if chosen and chosen[-1].get("name") == output.name:
                chosen[-1].text += output.text
                continue
        if "image/png" in data:
            data["image/png"] = base64.b64encode(shrink_png(base64.b64decode(data["image/png"]))).decode()
        if (size := len(json.dumps(output))) > LARGEST:
            print(f"an output of {size} bytes is left out")
            continue
        chosen.append(output)
    return chosen


def store(path):
    "Execute one notebook of the book, or copy what its run showed."
    notebook = nbformat.read(path, 4)
    if path.parent.name == "nbs":
        runs = sorted(TOP.glob(f"runs/*/{path.name}"))
        ran = min(runs, key=lambda p: p.parent.name != "demo", default=None)  # on the demo, or where else it ran
        if ran is None:
            return f"{path.name}: it has not run"
        shown = {c.source: c.outputs for c in nbformat.read(ran, 4).cells if c.cell_type == "code"}
        for cell in notebook.cells:
            if cell.cell_type == "code":
                outputs = json.dumps(small(shown.get(cell.source, [])))
                cell.outputs = nbformat.from_dict(json.loads(CLONE.sub("", outputs)))
    else:
        NotebookClient(notebook, timeout=900, resources=dict(metadata=dict(path=path.parent))).execute()
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [] if cell.source.startswith("#| hide") else small(cell.outputs)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.execution_count = None
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = None
    notebook.metadata["vat_nb"] = dict(digest=digest(notebook))
    notebook.metadata.pop("widgets", None)  # the state of all widgets that there were
    nbformat.write(notebook, path)
    return f"{path.name}: {sum(bool(c.get('outputs')) for c in notebook.cells)} cells show something"


def main(names):
    "Store the outputs of some notebooks, or of all."
    paths = [
        p for p in sorted((TOP / "nbs").rglob("*.ipynb")) if p.stem != "index" and ".ipynb_checkpoints" not in p.parts
    ]
    chosen = [p for p in paths if not names or p.stem in names]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        for line in pool.map(store, chosen):
            print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
