"What mkdocs (by `on_config` and `on_files`) adds to docs/: notebooks, the reference, recipes, and the order of all."

import ast
import base64
import configparser
import dataclasses
import html
import inspect
import json
import re
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.structure.files import File

TOP = Path(__file__).resolve().parents[1]
PATHS = {
    p.stem: p
    for p in sorted((TOP / "nbs").rglob("*.ipynb"))
    if p.stem != "index" and ".ipynb_checkpoints" not in p.parts
}  # notebook -> its file; names are unique
NBS = {name: json.loads(path.read_text(encoding="utf-8"))["cells"] for name, path in PATHS.items()}
MODULES = {
    m[1]: n
    for n, cells in NBS.items()
    for c in cells
    if (m := re.match(r"#\|\s*default_exp ([\w.]+)", "".join(c["source"])))
}  # module -> its notebook
PARTS = {
    "1_method": "The method",
    "2_data": "Data",
    "3_training": "Training",
    "4_encoders": "Pretrained encoders",
    "5_evaluation": "Evaluation",
    "6_runs": "Runs",
    "7_look": "Looking",
}  # folders of the book, in reading order
FIRST = [
    "train",
    "preprocess",
    "alignment",
    "attention",
    "predict",
    "audit",
    "crossval",
]  # notebooks to run, most wanted first; others follow
METHOD_PATH = {  # the method in 30 minutes, in the words of README and start page: name -> notebook
    "tour": "00_tour",
    "model": "07_model",
    "contrast": "09_contrastive",
    "matching": "10_matching",
    "momentum": "11_momentum",
    "masked audio": "12_masked_audio",
    "pretraining": "16_pretraining",
}
NUMBERED = [n for part in PARTS for n in NBS if PATHS[n].parent.name == part]
RUN = sorted((n for n in NBS if n not in NUMBERED), key=lambda n: (FIRST.index(n) if n in FIRST else len(FIRST), n))


MADE = {}  # path of a page or picture -> what it holds


def head(name):
    "Title and `>` line of a notebook."
    title, _, rest = "".join(NBS[name][0]["source"]).partition("\n")
    summary = re.search(r"^> (.*)", rest, re.M)
    return title.lstrip("# "), summary[1] if summary else ""


def formulas(text):
    "LaTeX to MathML, which browsers draw without a script; code keeps its dollars."

    def draw(m):
        if m[0].startswith("`"):
            return m[0]
        return convert(m[1] or m[2], display="block" if m[1] else "inline").replace("\n", "")

    return re.sub(r"`[^`]*`|\$\$(.+?)\$\$|\$([^$\n]+)\$", draw, text, flags=re.S)


def places(text):
    "Links of a notebook, as links of this site."
    text = re.sub(r"\]\((?:\.\./)*(?:nbs/)?(?:\d_\w+/)?(\w+)\.ipynb", r"](\1.md", text)
    return re.sub(r'(\]\(|src=")(?:\.\./)+figures/', r"\1../figures/", text)


def fence(code, language="python", title="", searchable=True):
    "A block of code, its ticks longer than any inside; what is not `found` stays out of the search, for a small index."
    ticks, title = "`" * max([3, *(len(t) + 1 for t in re.findall(r"`+", code))]), f' title="{title}"' if title else ""
    kind = f"{language}{title}" if searchable else f"{{.{language}{title} data-search-exclude}}"
    return f"{ticks}{kind}\n{code.rstrip()}\n{ticks}\n"


def file_of(module):
    "Where a module lies, from the project's folder."
    return f"vat_nb/{module.replace('.', '/')}.py"


def folded(code):
    "Imports, which nobody needs to see first."
    return '??? quote "imports"\n\n' + re.sub(r"^(?=.)", "    ", fence(code, searchable=False), flags=re.M)


def notebook_page(name):
    "A notebook as a page; returns the path of its richest figure, if it keeps any."
    module, figures, parts, imports = next((m for m, n in MODULES.items() if n == name), None), {}, [], []
    for i, cell in enumerate(NBS[name]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(formulas(places(source)))
            imports = []
        elif cell["cell_type"] == "code" and not re.match(r"#\|\s*(default_exp|hide)\b", source):
            exported = re.match(r"#\|\s*export\b", source)
            code = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
            title = (
                f"{file_of(module)}"
                if exported
                else "parameters"
                if "parameters" in cell["metadata"].get("tags", [])
                else ""
            )
            if not code.strip():
                continue
            imports = [*imports, code] if code.startswith(("import ", "from ")) else []
            if len(imports) > 1:
                parts.pop()  # one fold for cells that follow each other
            parts.append(folded("\n\n".join(imports)) if imports else fence(code, title=title, searchable=False))
        for j, out in enumerate(cell.get("outputs", [])):
            data = out.get("data", {})
            if "image/png" in data:
                path, png = f"notebooks/{name}/{i}_{j}.png", base64.b64decode("".join(data["image/png"]))
                MADE[path] = png
                parts.append(f"![Figure of {name}, cell {i}](../{path})")
                figures[path] = len(png)
            elif "".join(data.get("text/plain", "")).startswith("<IPython.core.display.HTML"):
                parts.append("".join(data["text/html"]))  # a part of a panel
            elif "text/plain" in data or out.get("name") == "stdout":
                parts.append(fence("".join(data.get("text/plain", out.get("text"))), "text"))
    where = f"Notebook `{PATHS[name].relative_to(TOP)}`" + (
        f" · defines [`vat_nb.{module}`](../reference/{module}.md)"
        if module
        else " · you run it: `make lab`, or with papermill"
    )
    parts.insert(1, f"<small>{where}</small>")
    MADE[f"notebooks/{name}.md"] = "\n\n".join(parts)
    return max(figures, key=figures.get, default=None)


def notebooks_index(figures):
    "The list of the notebooks, in reading order."
    row = lambda n: f"| {n.split('_')[0] if n[0].isdigit() else ''} | [{head(n)[0]}]({n}.md) | {places(head(n)[1])} |"
    table = lambda names: "\n".join(["| | notebook | what it tells |", "|---|---|---|", *map(row, names)])
    cards = [
        f'<a class="card" href="{n}.html"><img src="../{f}" alt="" loading="lazy">'
        f"<span>{html.escape(head(n)[0])}</span></a>"
        for n, f in figures.items()
        if f
    ]
    MADE["notebooks/index.md"] = "\n\n".join(
        [
            "# Notebooks",
            "Each idea has a notebook: a little code, why it is so, a figure, a check. "
            "The numbers are the reading order; a notebook uses only those before it. "
            "`make lab` opens them in JupyterLab.",
            f'<div class="cards">{"".join(cards)}</div>',
            "## To run {#run}",
            "These take parameters, train or draw, and write into `runs/<dataset>`.",
            table(RUN),
            "## To read {#read}",
            "*The method in 30 minutes:* " + ", ".join(f"[{name}]({n}.md)" for name, n in METHOD_PATH.items()) + ".",
            *(
                f"### {title} {{#{part}}}\n\n{table([n for n in NUMBERED if PATHS[n].parent.name == part])}"
                for part, title in PARTS.items()
            ),
        ]
    )


def shown(node, lines):
    "A signature as it is written, comments and all."
    inside = node.body[1:] if isinstance(node, ast.ClassDef) else []
    fields = [b for b in inside if isinstance(b, ast.AnnAssign)]
    if fields:
        return "\n".join(
            [lines[node.lineno - 1], *(line for b in fields for line in lines[b.lineno - 1 : b.end_lineno])]
        )
    first, own = node.body[0], lines[node.lineno - 1]
    written = (
        own.split(": return")[0]
        if first.lineno == node.lineno
        else "\n".join(lines[node.lineno - 1 : first.lineno - 1])
    )
    return re.sub(r"\n\s+self(: \w+)?,$|(?<=\()self(: \w+)?(?:, |(?=\)))", "", written, flags=re.M)


def plain(code):
    "Without the indentation that it has in common."
    margin = min(len(line) - len(line.lstrip()) for line in code.splitlines() if line.strip())
    return "\n".join(line[margin:] for line in code.splitlines())


def class_of(node):
    "The class to which fastcore's `patch` adds a function, if it does."
    added = isinstance(node, ast.FunctionDef) and any(getattr(d, "id", "") == "patch" for d in node.decorator_list)
    return node.args.args[0].annotation.id if added else None


def documented(node):
    return isinstance(node, ast.FunctionDef | ast.ClassDef) and not class_of(node)


def known_names():
    "Public name -> page and anchor of the reference."
    return {
        n.name: f"{module}.md#{n.name}"
        for module in MODULES
        if (path := TOP / file_of(module)).exists()
        for n in ast.parse(path.read_text(encoding="utf-8")).body
        if documented(n) and n.name[0] != "_"
    }


def linked(text, names, here):
    "Names in backticks lead to where they are explained."
    return re.sub(r"`(\w+)`", lambda m: f"[{m[0]}]({names[m[1]].removeprefix(here)})" if m[1] in names else m[0], text)


def reference_page(module, names):
    "What a module exports, from its docstrings and the comments beside its parameters."
    source = (TOP / file_of(module)).read_text(encoding="utf-8")
    tree, lines, here = ast.parse(source), source.splitlines(), f"{module}.md"
    public = (
        next(
            (
                ast.literal_eval(n.value)
                for n in tree.body
                if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"
            ),
            [],
        )
        if module != "all"
        else []
    )
    say = lambda node: linked(html.escape(ast.get_docstring(node) or "", quote=False), names, here)
    out = [
        f"# vat_nb.{module}",
        linked(ast.get_docstring(tree) or "", names, here),
        f"Defined and explained in [{MODULES[module]}](../notebooks/{MODULES[module]}.md).",
    ]
    if not public:
        out.append("It defines no names itself; those of each module stand [module by module](index.md).")
    values = [
        "\n".join(lines[n.lineno - 1 : n.end_lineno])
        for n in tree.body
        if isinstance(n, ast.Assign)
        for t in n.targets
        for e in (t.elts if isinstance(t, ast.Tuple) else [t])
        if getattr(e, "id", "") in public
    ]
    if values:
        out += ["## Values {#values}", fence("\n".join(dict.fromkeys(values)))]
    for node in tree.body:
        if not documented(node) or node.name not in public:
            continue
        out += [f"## {node.name} {{#{node.name}}}", say(node)]
        methods = (
            [m for m in node.body if isinstance(m, ast.FunctionDef)]
            + [m for m in tree.body if class_of(m) == node.name]
            if isinstance(node, ast.ClassDef)
            else []
        )
        first = next((m for m in methods if m.name == "__init__"), node)
        out.append(fence(plain(shown(first, lines)).replace("def __init__(", f"{node.name}(", 1)))
        for m in methods:
            if m.name[0] == "_" and m.name != "__call__":
                continue
            out += [f"### {node.name}.{m.name} {{#{node.name}.{m.name}}}", say(m), fence(plain(shown(m, lines)))]
    MADE[f"reference/{module}.md"] = "\n\n".join(out)


def reference_index():
    rows = [f"| [`vat_nb.{m}`]({m}.md) | {head(n)[1]} |" for m, n in MODULES.items()]
    MADE["reference/index.md"] = "\n".join(
        [
            "# Reference",
            "",
            "One page per module, made from the docstrings and from the comment beside each parameter. "
            "`from vat_nb.all import *` brings every name; "
            "what can be passed with `-p` is under [settings](settings.md).",
            "",
            "| module | what it holds |",
            "|---|---|",
            *rows,
        ]
    )


def settings_page():
    "All settings from the fields of `Recipe`, and what each dataset has of its own from settings.ini."
    from vat_nb.training.config import Recipe

    out = [
        "# Settings",
        "Every setting is a field of `vat_nb.training.config.Recipe`. "
        "`settings.ini` says for each dataset what differs, and a notebook takes any of "
        "them: `-p epochs 40`. This page is made from both.",
        "## All settings {#values}",
    ]
    for group in Recipe.__mro__[1:-1]:
        rows = []
        for name in group.__annotations__:
            f = Recipe.__dataclass_fields__[name]
            default = f.default if f.default is not dataclasses.MISSING else f.default_factory()
            kind = inspect.formatannotation(f.type).replace("typing.", "").replace("|", "&#124;")
            rows.append(
                f'| <span id="{name}">`{name}`</span> | `{default}` '
                f"| {html.escape(kind, quote=False)} "
                f'| {html.escape(f.metadata["help"], quote=False).replace("|", "&#124;")} |'
            )
        out += [
            f"### {group.__doc__.rstrip('.')}",
            "\n".join(["| name | default | type | meaning |", "|---|---|---|---|", *rows]),
        ]
    ini = configparser.ConfigParser(default_section="", interpolation=None)
    ini.read_string((TOP / "settings.ini").read_text(encoding="utf-8"))
    out += [
        "## Of each dataset {#datasets}",
        "Only what differs from the defaults, or from the section that it extends.",
    ]
    for name in ini.sections():
        out.append(fence("\n".join([f"[{name}]", *(f"{k} = {v}" for k, v in ini.items(name))]), "ini"))
    MADE["reference/settings.md"] = "\n\n".join(out)


def order():
    "The order of the pages, found from what is there."
    here = [
        "own_data",
        "mer2023",
        "muse_mimic",
        "cheavd2",
        "small_data",
        "pretrained",
        "slurm",
        "gpus",
        "sweeps",
        "look",
        "alignment_matrix",
    ]
    pages = [*here, *sorted(p.stem for p in (TOP / "docs/howto").glob("*.md") if p.stem not in here)]
    entry = lambda n: {f"{n.split('_')[0] + ' ' if n[0].isdigit() else ''}{head(n)[0]}": f"notebooks/{n}.md"}
    return [
        {"Start": ["index.md", "start.md"]},
        {"How to": [f"howto/{n}.md" for n in pages]},
        {
            "Notebooks": [
                "notebooks/index.md",
                {"To run": [*map(entry, RUN)]},
                *[
                    {title: [entry(n) for n in NUMBERED if PATHS[n].parent.name == part]}
                    for part, title in PARTS.items()
                ],
            ]
        },
        {
            "Reference": [
                "reference/index.md",
                {"Settings": "reference/settings.md"},
                {"Data and layouts": "data.md"},
                {"Module by module": [{m: f"reference/{m}.md"} for m in MODULES]},
            ]
        },
        {"Background": ["results.md", "claims.md", "glossary.md"]},
        "faults.md",
    ]


def on_config(config):
    "Say the order of the pages."
    config.nav = order()


def on_page_markdown(markdown, page, config, files):
    "On a page that is written by hand, the path of a notebook leads to its page."
    up = "../" * page.file.src_uri.count("/")
    return (
        markdown
        if page.file.src_uri.startswith("notebooks/")
        else re.sub(
            r"(?<!\[)`nbs/(?:\d_\w+/)?(\w+)\.ipynb`",
            lambda m: f"[{m[0]}]({up}notebooks/{m[1]}.md)" if m[1] in NBS else m[0],
            markdown,
        )
    )


def on_files(files, config):
    "Add what is made."
    MADE["data.md"] = (TOP / "data/README.md").read_text(encoding="utf-8").replace("](../docs/", "](")
    for path in (TOP / "figures").iterdir():
        MADE[f"figures/{path.name}"] = path.read_bytes()
    notebooks_index({name: notebook_page(name) for name in NBS})
    names = known_names()
    for module in MODULES:
        reference_page(module, names)
    reference_index()
    settings_page()
    for path, content in MADE.items():
        files.append(File.generated(config, path, content=content))
