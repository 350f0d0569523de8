"The alignment notebook in a real browser: controls, pictures, sound of pairs and clips, ticks into the audit file."

import csv
import shutil

from browser import lab  # noqa: F401

MATRIX, MAP = "img[alt*=matrix]", ".jp-OutputArea img"


def videos(notebook, least):
    "Wait for so many films, and for the first to be decoded; its duration in s."
    notebook.page.wait_for_function("n => document.querySelectorAll('video').length >= n", arg=least, timeout=60_000)
    notebook.page.wait_for_function("document.querySelector('video').readyState >= 1", timeout=60_000)
    return notebook.page.evaluate("document.querySelector('video').duration")


def test_alignment_panel_and_audit(lab, demo_run, tmp_path):  # noqa: F811
    run = tmp_path / "run"
    shutil.copytree(demo_run, run)
    with lab.open("nbs/alignment.ipynb", run=str(run)) as notebook:
        notebook.run(timeout=400)
        assert not notebook.errors() and not notebook.not_run()
        first = lambda kind, words: notebook.page.locator(kind, has_text=words).first
        with notebook.changes(MATRIX):
            notebook.move("moment", "ArrowLeft")
        with notebook.changes(MATRIX):
            first(".widget-toggle-button", "teacher").click()
        with notebook.changes(MATRIX):
            first(".widget-toggle-button", "student").click()
        with notebook.changes(MATRIX):
            notebook.move("moment", "ArrowRight")
        with notebook.changes(MATRIX):
            notebook.pick("cells show", "softmax over audio")
        with notebook.changes(MATRIX):
            notebook.move("temperature", times=4)
        with notebook.changes(MATRIX):
            notebook.pick("cells show", "cosine")
        for order in ("speaker", "clustering", "class"):
            with notebook.changes(MATRIX):
                notebook.pick("order", order)
        with notebook.changes(MATRIX):
            notebook.move("hard negatives", "ArrowLeft", times=3)
        with notebook.changes(MATRIX):
            notebook.move("number of clips", "ArrowLeft", times=2)
        with notebook.changes(MATRIX):
            notebook.tick("matching head beside it", False)
        with notebook.changes(MATRIX):
            notebook.tick("matching head beside it")
        with notebook.changes(MAP):
            notebook.pick("map", "t-SNE")
        with notebook.changes(MAP):
            notebook.pick("coloured by", "speaker")
        with notebook.changes(MAP):
            notebook.tick("lines between partners", False)

        picture, already = notebook.page.locator(MATRIX), notebook.page.locator("video").count()
        box = picture.bounding_box()
        with notebook.changes(MATRIX):
            picture.click(position=dict(x=0.25 * box["width"], y=0.3 * box["height"]))
        assert 1 < videos(notebook, already + 1) < 10  # the first film is the chosen pair's
        with notebook.changes(MATRIX):
            notebook.pick("audio of clip", notebook.other("audio of clip"))
        assert not notebook.errors()
        notebook.screenshot("alignment")

        split = notebook.page.locator(".widget-dropdown", has_text="clips of").first.locator("select")
        with notebook.changes(MATRIX):
            split.select_option(label="test1")
        with notebook.changes():
            notebook.move("inconsistency over", times=2)
        with notebook.changes():
            notebook.move("inconsistency over", "ArrowLeft", times=2)
        with notebook.changes():
            notebook.move("page")
        with notebook.changes():
            notebook.pick("emotion", notebook.other("emotion"))
        with notebook.changes():
            notebook.pick("emotion", "all")
        notebook.pick("speaker", notebook.other("speaker"))
        with notebook.changes():
            notebook.page.locator(".widget-toggle-button", has_text="student").last.click()
        with notebook.changes():
            notebook.pick("judged by", "finished model")
        with notebook.changes():
            notebook.pick("clips of", "snapshot clips")
        notebook.tick("drop")
        notebook.idle()
        notebook.press("save audit file")
        notebook.wait_text("saved 1 clips")
        notebook.screenshot("alignment_audit")
        assert not notebook.errors()
    with open(run / "audit.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [float(r["weight"]) for r in rows] == [0.0]
