"The attention notebook in a real browser: every control moves the picture, and the clip that plays moves the cursor."

import json
import re

from browser import ARTEFACTS
from test_faults import papermill

CONTROLS = {
    "layer": "1",
    "head": "3",
    "query": "audio tokens",
    "maps by": "place",
    "method": ("rollout", "gradient"),
    "target": ("same clip", "happy", "valence"),  # first one that is not a prediction, whose picture is there already
    "model": ("pretrained", "fine-tuned, teacher"),
}
FIGURE, HEADS, FACE, FILM = (
    "img[alt^='frames, attention']",
    ".widget-image",
    "[aria-label^='heat on the face']",
    "video[aria-label='the clip']",
)

CURSORS = (
    "[...document.querySelectorAll('[class^=at-]')]"
    ".map(e => [e.style.left, e.style.top, e.style.backgroundPosition].join(' '))"
)


def cursors(page):
    "Where the lines stand, and which part of the face's picture is seen."
    return page.evaluate(CURSORS)


def test_every_control_of_the_attention_notebook(lab, demo_run):
    with lab.open("nbs/attention.ipynb", run=str(demo_run), size=(1500, 1000)) as notebook:
        notebook.run(180)
        assert notebook.errors() == [] and notebook.not_run() == []
        page, figure = notebook.page, f".jupyter-widgets {FIGURE}"
        for words, options in CONTROLS.items():
            for option in [options] if isinstance(options, str) else options:
                what = HEADS if words == "maps by" else figure
                with notebook.changes(what):
                    notebook.pick(words, option)
                if words == "method" and option == "gradient":
                    with notebook.changes(figure):
                        notebook.pick("query", "[CLS]")
        film = page.locator(FILM).first
        before, other = film.get_attribute("src"), notebook.options("clip")[1]
        with notebook.changes(figure):
            notebook.pick("clip", other)
        assert film.get_attribute("src") != before and other.split()[0] in notebook.text()
        windows = notebook.options("window")
        if len(windows) > 1:
            with notebook.changes(figure):
                notebook.pick("window", windows[-1])
        assert all(re.fullmatch(r"\d+\.\d\sto\s\d+\.\d\ss", w) for w in windows), windows

        page.wait_for_function("v => document.querySelector(v).readyState >= 2", arg=FILM)
        script = (
            "v => { const e = document.querySelector(v); "
            "return [e.duration, e.videoWidth, e.webkitAudioDecodedByteCount ?? -1]; }"
        )
        seconds, width, _ = page.evaluate(script, FILM)
        assert seconds > 0.5 and width == 256
        at_start = cursors(page)
        page.evaluate("([v, t]) => { document.querySelector(v).currentTime = t; }", [FILM, seconds / 2])
        page.wait_for_function(
            f"was => JSON.stringify({CURSORS}) !== was", arg=json.dumps(at_start, separators=(",", ":"))
        )
        assert all(a != b for a, b in zip(at_start, cursors(page)))
        left = page.evaluate("parseFloat(document.querySelector('[data-seconds]').style.left)")
        line = page.evaluate("Object.assign({}, document.querySelector('[data-seconds]').dataset)")
        wanted = float(line["from"]) + (float(line["to"]) - float(line["from"])) * seconds / 2 / float(line["seconds"])
        assert abs(left - wanted) < 1  # percent of the picture
        ARTEFACTS.mkdir(exist_ok=True)
        page.locator(".widget-vbox", has=page.locator(FILM)).first.screenshot(path=ARTEFACTS / "attention_panel.png")
        with notebook.changes(figure):
            notebook.pick("method", "raw")
        page.wait_for_function(
            "x => Math.abs(parseFloat(document.querySelector('[data-seconds]').style.left) - x) < 1", arg=wanted
        )  # the cursor stays where the film is

        page.evaluate(
            "v => { const e = document.querySelector(v); e.muted = true; e.currentTime = 0; return e.play(); }", FILM
        )
        page.wait_for_function(
            "v => document.querySelector(v).currentTime > 0.3 && "
            "parseFloat(document.querySelector('[data-seconds]').style.left) > 9",
            arg=FILM,
        )
        _, _, decoded = page.evaluate(script, FILM)
        assert decoded != 0  # bytes of sound; -1 where the browser does not tell
        notebook.press("save PNG, SVG, MP4")
        notebook.wait_text("_raw.mp4")
        saved = {p.name[-8:] for p in (demo_run / "figures").glob("attention_*_raw*")}
        assert {"_raw.png", "_raw.svg", "_raw.mp4"} <= saved
        assert notebook.errors() == []
        notebook.screenshot("attention")


def test_what_cannot_be_shown_is_a_sentence(lab, demo_run, tmp_path):
    with lab.open("nbs/attention.ipynb", run=str(tmp_path)) as notebook:
        notebook.run(120)
        assert "keeps no run to look at" in notebook.text() and "Traceback" not in notebook.text()


def test_attention_headless(demo_run, tmp_path):
    papermill(tmp_path, f"run={demo_run}", name="attention", check=True)
    cells = json.loads((tmp_path / "attention.ipynb").read_text())["cells"]
    shown = "".join("".join(o["data"]["text/plain"]) for c in cells for o in c.get("outputs", []) if "data" in o)
    # how much of its attention each head of both models gives to the mouth, whose place is known
    assert all(word in shown for word in ("ratio", "pretrained", "fine-tuned")) and "nan" not in shown.lower()
