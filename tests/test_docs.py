"The documentation site: it builds, links lead somewhere, code is real, a browser opens every page without complaint."

import ast
import builtins
import configparser
import csv
import dataclasses
import html
import importlib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args
from urllib.parse import unquote, urldefrag

import pytest
from browser import ARTEFACTS, FLAGS, find_chromium
from conftest import PROJECT

DOCS = PROJECT / "docs"
sys.path.insert(0, str(DOCS))  # its scripts are tested here
PAGES = {str(p.relative_to(DOCS)): p.read_text(encoding="utf-8") for p in sorted(DOCS.rglob("*.md"))} | {
    "data.md": (PROJECT / "data/README.md").read_text(encoding="utf-8")
}
ELSEWHERE = {"dask_jobqueue"}  # imports of the pages that are no dependency here


def blocks(language):
    "(page, code) of every fenced block of a language, indented ones too."
    result = [
        (page, re.sub(rf"^{m[1]}", "", m[2], flags=re.M))
        for page, text in PAGES.items()
        for m in re.finditer(rf"^( *)```{language}\b[^\n]*\n(.*?)^\1```", text, re.M | re.S)
    ]
    return [(page, code) for page, code in result if "--8<--" not in code]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    "The site, built as `make docs` does."
    for name in ("material", "latex2mathml"):
        pytest.importorskip(name, reason='the site is not built: pip install "vat_nb[docs]"')
    folder = tmp_path_factory.mktemp("site")
    quiet = dict(NO_MKDOCS_2_WARNING="1", DISABLE_MKDOCS_2_WARNING="true")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=PROJECT,
        env=os.environ | quiet,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr[-3000:] + built.stdout[-3000:]
    return folder


class PageLinks(HTMLParser):
    "What a page links to, what it loads, and the anchors it has."

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], {"", "__skip"}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.anchors |= {v for k in ("id", "name") if (v := attrs.get(k))}
        if tag == "a" and attrs.get("href"):
            self.links.append(attrs["href"])
        elif tag == "link" and attrs.get("rel") not in ("canonical", "next", "prev"):
            self.loads.append(attrs["href"])
        elif attrs.get("src"):
            self.loads.append(attrs["src"])


@pytest.fixture(scope="session")
def page_links(site):
    return {p: PageLinks(p.read_text(encoding="utf-8")) for p in site.rglob("*.html") if p.name != "404.html"}


def test_links_lead_to_pages_and_anchors_that_are_there(site, page_links):
    wrong = []
    for page, s in page_links.items():
        for href in s.links:
            if re.match(r"(https?|mailto):", href):
                continue
            place, anchor = urldefrag(unquote(href))
            to = (page.parent / place).resolve() if place else page
            if to not in page_links and not to.is_file():
                wrong.append((page.name, href))
            elif to in page_links and anchor not in page_links[to].anchors:
                wrong.append((page.name, href))
    assert len(page_links) > 60 and sum(len(s.links) for s in page_links.values()) > 2000 and not wrong, wrong[:10]


def test_pages_load_nothing_from_outside(site, page_links):
    for page, s in page_links.items():
        for src in s.loads:
            assert not re.match(r"(https?:)?//", src), f"{page.name} asks for {src}"
            assert src.startswith("data:") or (page.parent / unquote(src.split("?")[0])).is_file(), (
                f"{page.name} has no {src}"
            )
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), sheet.name


def test_every_notebook_is_a_page_with_its_figures(site):
    for path in (PROJECT / "nbs").rglob("*.ipynb"):
        if path.stem == "index":
            continue
        page = (site / "notebooks" / f"{path.stem}.html").read_text()
        outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
        count = sum("image/png" in o.get("data", {}) for o in outputs)
        assert len(re.findall(rf'src="(?:\.\./notebooks/)?{path.stem}/', page)) == count, path.stem
        assert "IPython.core.display.HTML" not in page, f"{path.stem} shows the name of an object"
        for printed in ("".join(o["text"]) for o in outputs if o.get("name") == "stdout"):
            assert html.escape(printed.strip().splitlines()[0], quote=False) in page, f"{path.stem} lacks {printed!r}"
    text = (site / "notebooks/09_contrastive.html").read_text()
    assert "<math" in text and "$" not in re.sub(r"<(pre|code).*?</\1>|<script.*?</script>", "", text, flags=re.S), (
        "a formula stayed as it was typed"
    )


def test_reference_has_every_public_name(page_links):
    pages = {p.stem: s.anchors for p, s in page_links.items() if p.parent.name == "reference"}
    for path in (PROJECT / "vat_nb").rglob("*.py"):
        if path.stem.startswith("_") or path.stem == "all":
            continue
        module = ".".join(path.relative_to(PROJECT / "vat_nb").with_suffix("").parts)
        tree = ast.parse(path.read_text())
        public = next(
            ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
        )
        missing = [
            n.name
            for n in tree.body
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in public and n.name not in pages[module]
        ]
        assert not missing, f"{module}: {missing}"


def test_reference_says_what_fastcore_reads(site):
    "The comments beside parameters, as fastcore's docments finds them, all stand on the page of their module."
    from fastcore.docments import docments

    count = 0
    for path in sorted((site / "reference").glob("*.html")):
        if not (PROJECT / "vat_nb" / f"{path.stem.replace('.', '/')}.py").exists() or path.stem == "all":
            continue
        text = html.unescape(re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8")))
        module = importlib.import_module(f"vat_nb.{path.stem}")
        for name in module.__all__:
            if (
                not (inspect.isfunction(f := getattr(module, name)) or dataclasses.is_dataclass(f))
                or f.__module__ != module.__name__
            ):
                continue
            comments = [d.strip() for d in docments(f).values() if d]
            assert not (missing := [d for d in comments if d not in text]), f"{path.stem}.{name}: {missing}"
            count += len(comments)
    assert count > 500


def resolved(node, scope):
    "What a name or a dotted name of a page stands for; None where it is not known before it runs."
    if isinstance(node, ast.Name):
        return scope.get(node.id)
    if isinstance(node, ast.Attribute):
        base = resolved(node.value, scope)
        if base is None or not (inspect.ismodule(base) or inspect.isclass(base)):
            return None
        assert hasattr(base, node.attr), f"{base.__name__} has no {node.attr}"
        return getattr(base, node.attr)


@pytest.mark.parametrize("page, code", blocks("python"))
def test_python_of_the_pages_is_real(page, code):
    tree, scope = ast.parse(code), dict(vars(builtins))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            name = node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            if name.split(".")[0] in ELSEWHERE:
                scope |= {a.asname or a.name: None for a in node.names}
            else:
                exec(compile(ast.Module([node], []), page, "exec"), scope)
    bound = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)} | {"__name__"}
    scope = {k: v for k, v in scope.items() if k not in bound}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id in scope or node.id in bound, f"{page}: {node.id} comes from nowhere"
        if isinstance(node, ast.Subscript):
            assert not ast.unparse(node.value).endswith("recipe"), f"{page}: a recipe has fields: {ast.unparse(node)}"
        if (
            isinstance(node, ast.Call)
            and callable(f := resolved(node.func, scope))
            and getattr(f, "__module__", "").startswith("vat_nb")
            and not any(isinstance(a, ast.Starred) for a in node.args)
        ):
            inspect.signature(f).bind(*node.args, **{k.arg: k.value for k in node.keywords})


def test_pictures_of_the_pages_are_drawn(demo_run):
    "The pictures of docs/draw.py, of a run that is there."
    from draw import plot_by_person, plot_patterns, plot_pipeline

    axs = plot_by_person(demo_run, demo_run.parents[1] / "store")
    assert ["blocks explain" in ax.get_title() for ax in axs] == [True, True]
    assert plot_patterns(["diagonal"]).flat[0].images
    assert "12 layers" in " ".join(text.get_text() for text in plot_pipeline().texts)


def test_python_of_my_own_data_runs(tmp_path):
    "The list of the page, with clips of the demo under its names, and the page's lines on it."
    from vat_nb.data.demo_clips import plan_demo
    from vat_nb.data.demo_data import render

    (page,) = (c for p, c in blocks("python") if p == "howto/own_data.md")
    (listed,) = (c for p, c in blocks("csv") if p == "howto/own_data.md")
    for folder in ("mine/clips", "train"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "mine/manifest.csv").write_text(listed)
    plan = plan_demo(sizes=dict(train=1), people=dict(train=1))[0]
    render(tmp_path, plan)
    for row in csv.DictReader(listed.splitlines()):
        shutil.copy(tmp_path / plan.file, tmp_path / "mine" / row["path"])
    scope = {}
    exec(page.replace("/data/mine", str(tmp_path / "mine")), scope)
    assert (
        len(scope["ledger"]) == 4
        and set(scope["ledger"]["status"]) <= {"ok", "degraded"}
        and not len(scope["report"][scope["report"]["level"] == "error"])
    )


@pytest.fixture(scope="session")
def own_sections():
    "Sections that the pages tell a reader to write, read as settings.ini is."
    result = {}
    for page, code in blocks("ini"):
        ini = configparser.ConfigParser(interpolation=None)
        ini.read_string(code)
        result |= {name: (page, dict(ini.items(name))) for name in ini.sections()}
    return result


def test_ini_of_the_pages_is_a_recipe(own_sections, tmp_path):
    from vat_nb.data.datasets import LAYOUTS
    from vat_nb.training.config import FIELDS
    from vat_nb.training.settings_file import read_recipe

    assert set(get_args(FIELDS["layout"].type)) == set(LAYOUTS)
    text = (PROJECT / "settings.ini").read_text(encoding="utf-8")
    for name, (page, values) in own_sections.items():
        path = tmp_path / name / "settings.ini"
        path.parent.mkdir()
        path.write_text(
            re.sub(rf"\n\[{name}\]\n.*?(?=\n\[|\Z)", "\n", text, flags=re.S)
            + "\n"
            + "\n".join([f"[{name}]", *(f"{k} = {v}" for k, v in values.items())])
            + "\n",
            encoding="utf-8",
        )
        recipe = read_recipe(name, path)
        assert set(recipe.layout_options or {}) <= set(inspect.signature(LAYOUTS[recipe.layout]).parameters) - {
            "root"
        }, page


def parameters_of(notebook):
    "Names that a notebook takes, with the values that stand in its parameters cell."
    cells = json.loads((PROJECT / "nbs" / f"{notebook}.ipynb").read_text())["cells"]
    source = "".join(next(c for c in cells if "parameters" in c["metadata"].get("tags", []))["source"])
    return set(re.findall(r"^(\w+) = ", source, re.M))


def commands():
    "(page, words) of every command of a shell block, and of every `make ...` in the text."
    lines = [(page, line) for page, code in blocks("sh") for line in code.replace("\\\n", " ").splitlines()]
    lines += [(page, m) for page, text in PAGES.items() for m in re.findall(r"`(make [^`]*)`", text)]
    return [(page, words) for page, line in lines if (words := shlex.split(line, comments=True))]


def check_given(page, dataset, notebook, pairs, own_sections):
    "The pairs of -p are parameters of this notebook, of the right kind, and fit together."
    from papermill.cli import _resolve_type
    from vat_nb.data.io import parse_value
    from vat_nb.training.config import FIELDS
    from vat_nb.training.settings_file import read_recipe

    assert (PROJECT / "nbs" / f"{notebook}.ipynb").is_file(), f"{page}: no nbs/{notebook}.ipynb"
    section = "demo" if "$" in dataset else dataset
    if dataset in own_sections and dataset.startswith("mine"):
        section = own_sections[dataset][1].get("extends", "demo")
    assignments = {k: _resolve_type(v) for k, v in pairs if k != "dataset"}
    strangers = set(assignments) - set(FIELDS) - parameters_of(notebook)
    assert not strangers, f"{page}: {notebook} takes no {strangers}"
    values = {k: parse_value(v) if isinstance(v, str) else v for k, v in assignments.items() if "$" not in str(v)}
    read_recipe(section, **{k: v for k, v in values.items() if k in FIELDS})


def test_commands_of_the_pages_are_real(own_sections):
    makefile, checked = (PROJECT / "Makefile").read_text(), 0
    targets = {t for line in re.findall(r"^([a-z ]+):", makefile, re.M) for t in line.split()}
    for page, words in commands():
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]  # VARIABLE=value before a command
        if words and words[0].startswith(".venv/bin/"):
            program = words[0].removeprefix(".venv/bin/")
            assert program == "pip" or (Path(sys.executable).parent / program).exists(), (
                f"{page}: no program {program}"
            )  # pip comes with a venv that is made by hand
        if words[:1] == ["make"] and len(words) > 1:
            assert words[1] in targets, f"{page}: no target {words[1]}"
            assignments = dict(w.split("=", 1) for w in words[2:] if "=" in w)
            variables = {"DATASET", "P"} | ({"STARTS"} if words[1] == "benchmark" else set())
            assert set(assignments) <= variables, f"{page}: {words}"
            if (PROJECT / "nbs" / f"{words[1]}.ipynb").is_file():
                flat = shlex.split(assignments.get("P", ""))
                if flat == ["-p", "name", "value", "..."] or assignments.get("DATASET") in ("NAME", "..."):
                    continue
                check_given(
                    page, assignments.get("DATASET", "demo"), words[1], list(zip(flat[1::3], flat[2::3])), own_sections
                )
                checked += 1
        elif words[:1] == [".venv/bin/papermill"]:
            pairs = [(words[i + 1], words[i + 2]) for i, w in enumerate(words) if w == "-p"]
            check_given(page, dict(pairs)["dataset"], Path(words[1]).stem, pairs, own_sections)
            checked += 1
    assert checked > 30


def test_shell_of_the_pages_parses():
    for page, code in blocks("sh"):
        assert subprocess.run(["bash", "-n"], input=code, text=True, capture_output=True).returncode == 0, (
            f"{page}:\n{code}"
        )


def test_names_after_p_in_the_text_are_recipe_values():
    from vat_nb.training.config import FIELDS

    settings = set(FIELDS) | set().union(
        *(
            parameters_of(n)
            for n in ("train", "preprocess", "crossval", "ablation", "semisupervised", "sweep", "soak", "benchmark")
        )
    )
    for page, text in PAGES.items():
        for inline in re.findall(r"`(-p [^`]*)`", re.sub(r"```.*?```", "", text, flags=re.S)):
            assert (names := set(re.findall(r"-p (\w+)", inline)) - {"name"}) <= settings, f"{page}: {names}"


def test_faults_are_sentences_that_exist():
    "Every sentence of the page stands in the code, and every reason of the ledger stands on the page."
    from vat_nb.data.streams import ERROR_CODES

    sources = [p.read_text(encoding="utf-8") for p in (PROJECT / "vat_nb").rglob("*.py")]
    for path in (PROJECT / "nbs").glob("[a-z]*.ipynb"):
        sources += ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    code = re.sub(r'"\s*\\?\n\s*f?"', "", "\n".join(sources))  # sentences that go on in the next line
    rows = [m for m in re.findall(r"^\| (`.*?) \|", PAGES["faults.md"], re.M)]
    sentences = [s for row in rows if "torch's words" not in row for s in re.findall(r"`([^`]+)`", row)]
    missing = [
        part for s in sentences for part in s.split("...") if part.strip(" :;(),") and part.strip(" :;(),") not in code
    ]
    assert len(sentences) > 60 and not missing, missing
    assert not [r for r in ERROR_CODES if f"`{r}`" not in PAGES["faults.md"]]


def test_patterns_are_what_the_page_says():
    "What is drawn is the cosine of the vectors, and each pattern has the recall that its name promises."
    import numpy as np

    from draw import PATTERNS, TASK, explained, made_up, plot_patterns
    from vat_nb.look.alignment_figures import alignment_order
    from vat_nb.evaluation.metrics import retrieval_recall

    predictions = {name: made_up(pull) for name, pull in PATTERNS.items()}
    recall = {
        name: retrieval_recall(p.video_embed @ p.audio_embed.T, 1)["v2a_recall"] for name, p in predictions.items()
    }
    assert (
        recall["diagonal"] > 0.9
        and recall["diagonal in blocks"] > 0.9
        and max(recall[n] for n in ("untrained", "blocks", "collapsed")) < 0.2
    )
    kinds = [c.emotion for c in predictions["blocks"].clips]
    assert (
        explained(predictions["blocks"].video_embed @ predictions["blocks"].audio_embed.T, kinds)
        > 0.5
        > 0.1
        > explained(predictions["diagonal"].video_embed @ predictions["diagonal"].audio_embed.T, kinds)
    )
    assert not [n for n in PATTERNS if n not in PAGES["howto/alignment_matrix.md"].replace("stripe ", "stripes ")], (
        "the page explains each of them"
    )
    axs = plot_patterns(["diagonal"], columns=1)
    p = predictions["diagonal"]
    rows = alignment_order(p, TASK)
    assert np.allclose(axs.flat[0].images[0].get_array(), p.video_embed[rows] @ p.audio_embed[rows].T)
    axs.flat[0].figure.clear()


@pytest.fixture
def page():
    "A tab of a browser as wide as a laptop."
    program = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=program, args=FLAGS)
        yield browser.new_page(viewport=dict(width=1366, height=768))
        browser.close()


def test_every_page_opens_in_a_browser(site, page):
    "From the disk: no error, no request failed or to the outside, nothing empty; screenshots into artefacts/docs."
    shots, trouble = ARTEFACTS / "docs", []
    shutil.rmtree(shots, ignore_errors=True)
    page.on("console", lambda m: m.type == "error" and trouble.append((page.url, m.text)))
    page.on("pageerror", lambda e: trouble.append((page.url, str(e))))
    page.on("requestfailed", lambda r: trouble.append((page.url, f"failed: {r.url}")))
    page.on(
        "request",
        lambda r: (
            r.url.startswith(("file:", "data:", "blob:", "about:")) or trouble.append((page.url, f"outside: {r.url}"))
        ),
    )
    for path in sorted(site.rglob("*.html")):
        if path.name == "404.html":
            continue
        page.goto(path.as_uri())
        name = str(path.relative_to(site)).removesuffix(".html")
        if len(page.inner_text("article")) < 150:
            trouble.append((name, "is empty"))
        if blank := page.evaluate("[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"):
            trouble.append((name, f"no picture {blank}"))
        if page.evaluate("document.documentElement.scrollWidth > innerWidth + 1"):
            trouble.append((name, "is wider than the screen"))
        page.screenshot(path=shots / f"{name.replace('/', '_')}.png")
    assert not trouble, trouble[:10]
    page.goto((site / "index.html").as_uri())
    page.fill("input.md-search__input", "hard negatives")
    page.wait_for_selector(".md-search-result__item", timeout=20000)
    page.screenshot(path=shots / "search.png")
    assert not trouble, trouble[:10]


def test_start_page_on_a_phone_in_the_dark(site, page):
    "The start page fits a phone, its text stands out from a dark ground, and figures keep their white one."
    page.set_viewport_size(dict(width=390, height=844))
    page.emulate_media(color_scheme="dark")
    page.goto((site / "index.html").as_uri())
    assert page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), "wider than a phone"

    def luminance(selector, style):
        rgb = re.findall(r"[\d.]+", page.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{style}"))
        return sum(w * (int(float(x)) / 255) ** 2.2 for w, x in zip((0.2126, 0.7152, 0.0722), rgb))

    text, ground = luminance("article p", "color"), luminance("body", "backgroundColor")
    assert (text + 0.05) / (ground + 0.05) > 4.5, "WCAG AA"
    assert luminance("article img", "backgroundColor") > 0.99
    assert page.evaluate("document.querySelector('article img').getBoundingClientRect().width <= innerWidth")
    page.screenshot(path=ARTEFACTS / "docs" / "phone.png")


def test_reading_path_has_the_same_words_everywhere():
    "README, start page, first steps and the list of notebooks name the same stops in the same order."
    from generate import METHOD_PATH, PATHS

    words = ", ".join(METHOD_PATH)
    for name in ("README.md", "docs/index.md", "docs/start.md"):
        text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", (PROJECT / name).read_text())
        assert words in text and "method in 30 minutes" in text, name
    cells = [c for stem in METHOD_PATH.values() for c in json.loads(PATHS[stem].read_text())["cells"]]
    words = sum(len("".join(c["source"]).split()) for c in cells if c["cell_type"] == "markdown")
    demos = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    demos = [x for x in demos if not re.match(r"#\| *(export|hide|default_exp)|import |from ", x)]
    lines = sum(bool(line.strip()) for x in demos for line in x.splitlines())
    minutes = words / 200 + lines / 90  # a demonstration is skimmed beside its figure; exported cells are looked up
    assert minutes < 30, f"{words} words and {lines} lines of demonstrations take {minutes:.0f} minutes"


def test_results_are_of_the_kept_json():
    "The page of results is what its command writes from the figures that are kept."
    from studies import MARKED, fill, render_results

    assert (DOCS / "results.md").read_text(encoding="utf-8") == render_results(PROJECT), (
        "run make results and commit what it changes"
    )
    for name in MARKED:
        if name.endswith(".md"):
            assert (text := (PROJECT / name).read_text(encoding="utf-8")) == fill(text, PROJECT), (
                f"run make results: {name} has other figures"
            )


# numbers in prose that look measured and are not: page -> reason -> numbers
NOT_MEASURED = {
    "claims.md": {
        "published by the organisers": "0.25, 0.5707, 0.4182, 0.8675, 0.7005, 0.6846, 0.8911, 0.8855, 0.8511"
    },
    "faults.md": {"entropy of one in three": "0.64"},
    "glossary.md": {"an example of calibration": "80 %"},
    "howto/gpus.md": {"version of Python": "3.11", "default of Kubernetes": "64 MB"},
    "howto/look.md": {"by how much the audit shifts": "0.4, 0.8 s"},
    "howto/pretrained.md": {"a name": "2.0", "window of Whisper": "30 s", "clips of the benchmark": "3.5 s"},
    "howto/speed.md": {"clips of the benchmark": "2 s, 4 s"},
    "index.md": {"reading path": "30 minutes"},
    "start.md": {"version of Python": "3.11", "reading path": "30 minutes"},
}


def measured_numbers(text):
    "(line, number) of decimals, shares, times and sizes outside of blocks, code and addresses; intervals are of 95 %."
    hidden = r"<!-- study \w+ -->.*?<!-- end -->|^( *)```.*?^\1```|`[^`\n]*`|\]\([^)]*\)"
    text = re.sub(hidden, lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    unit = r"(?:s|ms|seconds|minutes|hours|kB|MB|MiB|GB|GiB|%|times)(?!\w)"
    number = rf"(?<![\w.])(?<![A-Za-z]-)(?:\d+\.\d+(?: {unit})?|\d+ ?{unit})"
    lines = enumerate(text.splitlines(), 1)
    return [(i, found) for i, line in lines for found in re.findall(number, line) if found != "95 %"]


def test_prose_has_no_measured_number():
    "Measured numbers stand in blocks that a command writes; prose says in words what was found."
    sample = "A\n<!-- study x -->\n0.81\n<!-- end -->\n`lr = 0.1` gave 0.74 (95 %), in 3 minutes, by 5 % and 2.5 times."
    assert measured_numbers(sample) == [(5, "0.74"), (5, "3 minutes"), (5, "5 %"), (5, "2.5 times")]
    contributing = (PROJECT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    pages = {p: t for p, t in PAGES.items() if p not in ("results.md", "data.md")} | {"CONTRIBUTING.md": contributing}
    for page, text in pages.items():
        known = {n for numbers in NOT_MEASURED.get(page, {}).values() for n in numbers.split(", ")}
        found = measured_numbers(text)
        wrong = [f"{page}, line {i}: {number}" for i, number in found if number not in known]
        assert not wrong, f"{wrong}: let a study print it, say it in words, or add it to NOT_MEASURED with its reason"
        gone = known - {number for _, number in found}
        assert not gone, f"{page} has no {gone} any more: take it out of NOT_MEASURED"


def test_numbers_have_the_right_form_of_their_noun():
    from tables import counted

    assert [counted(1, "clip"), counted(2, "clip")] == ["1 clip", "2 clips"]
    assert counted(1, "person", "people") == "1 person" and counted(6, "person", "people") == "6 people"
    assert not re.search(r"\b1 (clips|people|seeds|demos|frames)\b", PAGES["results.md"])


def test_a_study_is_collected_and_fills_the_marks_of_a_page(tmp_path):
    "Figures of a run are copied without its recipe, and stand between the marks; a study without figures is told."
    from studies import Study, collect, fill, read_study, render_results
    from tables import layers_table

    figures = json.loads((DOCS / "results/layers.json").read_text())["runs"][0]
    path = tmp_path / "runs/mine/layers.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(figures | dict(recipe=dict(epochs=3))))
    mine, other = (
        Study(name, "An example", "make layers", f"runs/{name}/layers.json", layers_table) for name in ("mine", "other")
    )
    assert collect(tmp_path, [mine, other]) == ["mine"]
    assert "recipe" not in (tmp_path / "docs/results/mine.json").read_text()
    page = render_results(tmp_path, [mine, other])
    assert "# Results" in page and layers_table([figures]) in page and page.count("## ") == 1
    page = fill("Before.\n<!-- study mine -->\nyesterday\n<!-- end -->\nAfter.", tmp_path, [mine])
    assert layers_table([figures]) in page and "yesterday" not in page
    assert page.startswith("Before.\n") and page.endswith("\nAfter.") and fill(page, tmp_path, [mine]) == page
    with pytest.raises(ValueError, match="no figures of the study mine"):
        fill(page, tmp_path, [])
    with pytest.raises(ValueError, match="no figures of the study nothing"):
        read_study(tmp_path, "nothing")


def test_the_table_of_a_run_has_its_heads_its_recall_and_what_fusion_gains(tmp_path):
    from tables import fused_against, results_table

    recall = {k: {"@5": {"v2a_recall": r, "a2v_recall": r}} for k, r in (("after", 0.5), ("chance", 0.1))}
    against = dict(video=(0.08, 0.02, 0.14), audio=(0.03, -0.01, 0.07))
    head_ci = dict(video=(0.6, 0.5, 0.7), audio=(0.5, 0.4, 0.6), fused=(0.8, 0.7, 0.9))
    splits = dict(test1=dict(clips=7, head_ci=head_ci, fused_against=against))
    (tmp_path / "metrics.json").write_text(json.dumps(dict(splits=splits, recall=recall)))
    assert results_table(tmp_path / "metrics.json").splitlines() == [
        "| split | clips | video | audio | fused |",
        "|---|---|---|---|---|",
        "| test1 | 7 | 0.60 (0.50 to 0.70) | 0.50 (0.40 to 0.60) | 0.80 (0.70 to 0.90) |",
        "",
        "The fused head of test1 minus the single ones, on the same clips: "
        "video +0.08 (+0.02 to +0.14), audio +0.03 (-0.01 to +0.07).",
        "",
        "Recall at 5 after pretraining: video to audio 0.50, audio to video 0.50; chance 0.10.",
    ]
    assert not fused_against({}) and not fused_against(dict(test1={}))


def test_scores_of_systems():
    "Scores over seeds are means of each seed's own; a system is compared with the rival alone."
    import numpy as np
    from tables import gain_text, system_scores

    from vat_nb.data.validation import Task
    from vat_nb.evaluation.metrics import weighted_f1
    from vat_nb.evaluation.predictions import Predictions
    from vat_nb.model import HEADS
    from vat_nb.runs.result_tables import HEADS_AVERAGED, PredictedClasses, average_heads, predicted_classes
    from vat_nb.types import Clip

    rng, task = np.random.default_rng(0), Task(("sad", "happy", "angry"), ())
    clips = [Clip(f"c{i}", "", "test", task.classes[i % 3]) for i in range(60)]

    def fake_predictions(accuracy):
        y = np.where(rng.random(60) < accuracy, np.arange(60) % 3, rng.integers(0, 3, 60))
        logits = np.eye(3, dtype=np.float32)[y]
        return Predictions(clips, dict.fromkeys(HEADS, logits), dict.fromkeys(HEADS, logits[:, :0]), logits, logits)

    runs = []
    for _ in range(3):
        ours = fake_predictions(0.8)
        systems = {"VAT": ours, HEADS_AVERAGED: average_heads(ours), "logistic regression": fake_predictions(0.6)}
        runs.append(PredictedClasses(**json.loads(json.dumps(dataclasses.asdict(predicted_classes(systems, task))))))
    np.testing.assert_allclose(
        average_heads(ours).probabilities(), np.mean([ours.probabilities(h) for h in HEADS], 0), 1e-6
    )
    scores = system_scores(runs, ["logistic regression, fused"])
    by_hand = [weighted_f1(np.arange(60) % 3, np.eye(3)[r.predicted["VAT, fused"]]) for r in runs]
    assert abs(scores["VAT, fused"]["f1"][0] - np.mean(by_hand)) < 1e-6
    assert scores["VAT, fused"]["against logistic regression, fused"][0] > 0
    assert "against logistic regression, fused" not in scores["logistic regression, fused"]
    assert gain_text([-0.0412, -0.1, 0.02], 3) == "-0.041 (-0.100 to +0.020)"
    assert gain_text([0.04, np.nan, np.nan]) == ""  # of one run, which has no interval
