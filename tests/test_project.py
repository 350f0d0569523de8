"The project fits together: package and notebooks, README, parameters, imports."

import ast
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from urllib.parse import unquote

import nbformat
from conftest import PROJECT

BIN = PROJECT / ".venv" / "bin" if (PROJECT / ".venv").is_dir() else shutil.os.path.dirname(sys.executable)


def test_package_is_what_the_notebooks_export(tmp_path):
    for name in ("nbs", "vat_nb"):
        shutil.copytree(
            PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
        )
    for name in ("pyproject.toml", "README.md", "settings.ini"):
        shutil.copy(PROJECT / name, tmp_path / name)
    for command in ("nbdev-export", "nbdev-clean"):
        subprocess.run([f"{BIN}/{command}"], cwd=tmp_path, check=True, capture_output=True)
    for name, suffix in (("vat_nb", ".py"), ("nbs", ".ipynb")):
        ours, theirs = (
            {
                str(p.relative_to(top)): p.read_text()
                for p in sorted((top / name).rglob(f"*{suffix}"))
                if ".ipynb_checkpoints" not in p.parts
            }
            for top in (PROJECT, tmp_path)
        )
        assert ours == theirs, f"{name}/ is out of step: run make export and commit what it changes"


def test_readme_is_the_index_notebook():
    text = subprocess.run(
        [f"{BIN}/jupyter", "nbconvert", "--to", "markdown", "--log-level", "ERROR", "--stdout", "nbs/index.ipynb"],
        cwd=PROJECT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert (PROJECT / "README.md").read_text() == text.replace("../", ""), "README.md is out of step: run make readme"
    assert len((PROJECT / "README.md").read_bytes()) <= 6144, "what a README need not say stands in docs/"


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", (PROJECT / "README.md").read_text())
    local = [a or b for a, b in links if not (a or b).startswith("http")]
    assert local and not [x for x in local if not (PROJECT / x).exists()]


def test_notebooks_that_people_run_use_names_that_exist():
    import vat_nb.all

    imports = "from vat_nb.all import " + ", ".join(vat_nb.all.__all__)
    for path in sorted((PROJECT / "nbs").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").splitlines()
        code = "\n".join("" if line.startswith(("%", "!")) else line for line in lines)
        undefined = subprocess.run(
            [f"{BIN}/ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise", "-"],
            input=code.replace("from vat_nb.all import *", imports),
            capture_output=True,
            text=True,
        )
        assert undefined.returncode == 0, f"{path.name}: {undefined.stdout}{undefined.stderr}"
        hidden = set(re.findall(r"^(?:def|class) (\w+)", code, re.MULTILINE)) & set(vat_nb.all.__all__)
        assert not hidden, f"{path.name} defines {hidden}, which the package has too: give it another name"


def test_notebooks_that_people_run_take_parameters_and_export_nothing():
    for name in (
        "train",
        "preprocess",
        "crossval",
        "ablation",
        "semisupervised",
        "sweep",
        "soak",
        "predict",
        "alignment",
        "attention",
        "audit",
        "layers",
        "features",
        "causes",
    ):
        cells = json.loads((PROJECT / "nbs" / f"{name}.ipynb").read_text())["cells"]
        tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
        assert len(tagged) == 1 and "dataset = " in "".join(tagged[0]["source"])
        assert not any("#| export" in "".join(c["source"]) for c in cells)


def test_kept_pictures_are_small():
    for path in (PROJECT / "nbs").rglob("*.ipynb"):
        for cell in json.loads(path.read_text())["cells"]:
            for out in cell.get("outputs", []):
                assert len(json.dumps(out)) < 200_000, f"{path.name} keeps an output of over 150 kB"


def test_import_brings_neither_torch_nor_matplotlib():
    code = "import sys, vat_nb; print([m for m in ('torch', 'matplotlib', 'numpy', 'pandas') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_parameters_of_train_are_recipe_values():
    from vat_nb.training.config import FIELDS

    cells = json.loads((PROJECT / "nbs" / "train.ipynb").read_text())["cells"]
    source = "".join(next(c for c in cells if "parameters" in c["metadata"].get("tags", []))["source"])
    assert set(re.findall(r"^(\w+) = ", source, re.M)) <= set(FIELDS)


def test_jupyterlab_listens_on_this_machine_only_and_keeps_its_token():
    command = next(line for line in (PROJECT / "Makefile").read_text().splitlines() if "jupyter lab" in line)
    assert "--ip=127.0.0.1" in command
    kinds, apart = ("", ".md", ".ini", ".toml", ".py", ".ipynb"), {".venv", ".git", "runs", "data", "tests"}
    shipped = [p for p in PROJECT.rglob("*") if p.suffix in kinds and p.is_file() and not apart & set(p.parts)]
    assert not [p for p in shipped if re.search(r"token\s*=\s*(''|\"\")", p.read_text(errors="ignore"))]


def cells_of_notebooks(prose=False):
    "The path of a notebook, a cell and its text, for every cell of prose, or for every other one."
    for path in sorted((PROJECT / "nbs").rglob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if (cell["cell_type"] == "markdown") == prose:
                yield path, cell, "".join(cell["source"])


def sources():
    "The name of a notebook and the text of a cell, for every cell that is not prose."
    for path, _, source in cells_of_notebooks():
        yield path.name, source


def test_lines_are_short():
    "120 columns in notebooks and package, but for the list of names that nbdev writes; ruff holds the rest."
    package = [p for p in (PROJECT / "vat_nb").rglob("*.py") if p.name != "_modidx.py"]
    texts = [(p.name, re.sub(r"__all__ = \[.*?\]", "", p.read_text(encoding="utf-8"), flags=re.S)) for p in package]
    for name, source in [*sources(), *texts]:
        long = [line for line in source.splitlines() if len(line) > 120]
        assert not long, f"{name}: {long[0][:80]}..."


def only_imports(source):
    "Whether a cell brings names and does nothing."
    return all(isinstance(line, (ast.Import, ast.ImportFrom)) for line in ast.parse(source).body)


def test_the_book_shows_what_it_exports():
    "A demo line for each exported line of the method, two for three in all; most cells of a page show something."
    exported, demo, shows, on_page = Counter(), Counter(), [], []
    for path, cell, source in cells_of_notebooks():
        if not source.startswith(("#| hide", "#| default_exp")) and not only_imports(source):
            on_page.append(bool(cell["outputs"]))
        kind = exported if source.startswith("#| export") else demo
        kind[path.parent.name] += sum(bool(x.strip()) and not x.startswith("#|") for x in source.splitlines())
        if not source.startswith(("#|", "import", "from")):
            shows.append(bool(cell["outputs"]))
    assert demo["1_method"] >= exported["1_method"], (demo, exported)
    assert demo.total() * 1.5 >= exported.total()
    assert sum(shows) > 0.9 * len(shows)
    assert sum(on_page) > 0.6 * len(on_page), f"{sum(on_page)} of {len(on_page)}"


def module_of(cells):
    "The module that a notebook exports, or None."
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    return next((m[1] for s in sources if (m := re.match(r"#\|\s*default_exp ([\w.]+)", s))), None)


def test_no_import_runs_back_up():
    "Reading order is import order: what a module imports stands in an earlier notebook."
    paths = sorted((PROJECT / "nbs").glob("[0-9]_*/*.ipynb"))
    books = {p: json.loads(p.read_text(encoding="utf-8"))["cells"] for p in paths}
    order = {f"vat_nb.{module}": i for i, (p, cells) in enumerate(books.items()) if (module := module_of(cells))}
    for i, (path, cells) in enumerate(books.items()):
        exported = "\n".join("".join(c["source"]) for c in cells if "".join(c["source"]).startswith("#| export"))
        imported = {m for m in re.findall(r"^from (vat_nb[\w.]*) import", exported, re.M)}
        later = {m for m in imported if order.get(m, -1) >= i}
        assert not later, f"{path.name} imports {sorted(later)}, which come later"


def test_the_model_needs_no_decoder():
    code = "import sys, vat_nb.model; print([m for m in ('av', 'cv2', 'simplejpeg', 'soundfile') if m in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_stored_outputs_are_of_this_code():
    "What a notebook shows was shown by the code that stands beside it."
    sys.path.insert(0, str(PROJECT / "docs"))
    from store_outputs import digest

    stale = []
    for path in sorted((PROJECT / "nbs").rglob("*.ipynb")):
        notebook = nbformat.read(path, 4)
        shows = any(c.get("outputs") for c in notebook.cells)
        if shows and notebook.metadata.get("vat_nb", {}).get("digest") != digest(notebook):
            stale.append(path.stem)
    assert not stale, f'these show what other code did: run make notebooks N="{" ".join(stale)}"'


def test_an_exported_cell_fits_on_a_screen():
    "At most thirty lines; one class, such as a whole module, may have more."
    for name, source in sources():
        if source.startswith("#| export") and source.count("\n") > 30:
            parts = [n for n in ast.parse(source).body if not isinstance(n, ast.Assign)]
            assert [type(n) for n in parts] == [ast.ClassDef], (
                f"{name}: over 30 lines, cut {source.splitlines()[1][:80]}"
            )


def test_links_of_notebooks_lead_to_files():
    "In Jupyter, where the site's own test does not look: relative to the notebook's folder."
    wrong = []
    for path, _, text in cells_of_notebooks(prose=True):
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            place = unquote(link.partition("#")[0])
            if place and ":" not in place and not (path.parent / place).exists():
                wrong.append(f"{path.name}: {link}")
    assert not wrong, wrong
