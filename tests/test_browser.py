"The browser harness itself, on a notebook of its own."

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

CELLS = """a = 1
---
import matplotlib.pyplot as plt, ipywidgets as w, io
from IPython.display import display, Image
slider = w.IntSlider(a, 0, 9, description="height", continuous_update=False)
menu = w.Dropdown(options=["red", "blue"], description="colour")
box, said, upload = w.Checkbox(False, description="grid"), w.Label(), w.FileUpload()
def draw(height, colour, grid):
    plt.figure(figsize=(2, 1)); plt.plot([0, height], color=colour); plt.grid(grid); plt.show()
shown = w.interactive_output(draw, dict(height=slider, colour=menu, grid=box))
display(w.VBox([slider, menu, box, shown, upload, said]))
upload.observe(
    lambda change: setattr(said, "value", f"got {change.new[0].name}, {len(change.new[0].content)} bytes"),
    "value",
)
---
button = w.Button(description="break")
button.on_click(lambda b: 1 / 0)
display(button)
broken = w.Checkbox(False, description="fault")
broken.observe(lambda change: [][1], "value")
display(broken)
---
f"a is {a}"
"""


def small(*sources):
    "A notebook of cells, the first of which holds the parameters."
    cells = [new_code_cell(s.strip()) for s in sources]
    cells[0].metadata["tags"] = ["parameters"]
    return nbformat.from_dict(
        new_notebook(
            cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))
        )
    )


def test_controls_move_pictures_and_faults_are_seen(lab, tmp_path):
    with lab.open(small(*CELLS.split("---")), a=4) as notebook:
        notebook.run()
        assert notebook.not_run() == [] and notebook.errors() == [] and "a is 4" in notebook.text()
        assert notebook.options("colour") == ["red", "blue"]
        with notebook.changes():
            notebook.move("height")
        with notebook.changes():
            notebook.pick("colour", "blue")
        with notebook.changes():
            notebook.tick("grid")
        (tmp_path / "my file.bin").write_bytes(b"12345")
        notebook.upload(tmp_path / "my file.bin")
        notebook.wait_text("got my file.bin, 5 bytes")
        assert notebook.errors() == [] and notebook.screenshot("harness").stat().st_size > 10_000
        notebook.press("break")
        assert any("ZeroDivisionError" in e for e in notebook.errors()), "a fault in a control was not seen"
        notebook.tick("fault")
        assert any("IndexError" in e for e in notebook.errors()), "a fault in an observer was not seen"


def test_failing_cell_is_seen(lab):
    # the second cell must be queued before the first fails: the kernel only drops what waits
    with lab.open(small("import time\ntime.sleep(1)\n1 / 0", "2")) as notebook:
        notebook.run()
        assert any("ZeroDivisionError" in e for e in notebook.errors()) and notebook.not_run() == ["2"]
