"A video of one's own in the browser: sent, named, a folder, bad files; and the training notebook while it runs."

import shutil

import pandas as pd
import pytest
from test_faults import papermill
from test_media_faults import AAC, H264, ffmpeg, picture, tone

from vat_nb.model import HEADS


@pytest.fixture(scope="module")
def videos(small_dataset, tmp_path_factory):
    "A folder with two videos, one that is none, and one of 12 MB that is none."
    folder = tmp_path_factory.mktemp("my own videos")
    for name, source in zip(("a clip.mp4", "b.mp4"), sorted(small_dataset.rglob("*.mp4"))):
        shutil.copy(source, folder / name)
    (folder / "letter.mp4").write_text("Dear reader")
    (folder / "large.mp4").write_bytes(b"no video " * 1_400_000)
    return folder


def test_predict_in_the_browser(lab, demo_run, videos, tmp_path):
    settings = dict(model=str(demo_run / "checkpoint"), hop=0.2, output_dir=str(tmp_path))
    with lab.open("nbs/predict.ipynb", **settings) as notebook:
        notebook.run()
        assert notebook.not_run() == [] and notebook.errors() == []
        with notebook.changes(".widget-image"):
            notebook.upload(videos / "a clip.mp4", words="Choose")
        notebook.wait_text("a clip.mp4:")
        assert len([s for s in notebook.sources(".widget-image") if s]) == 3
        with notebook.changes(".widget-image"):
            notebook.move("window")
        notebook.screenshot("predict")
        notebook.upload(videos / "letter.mp4", words="Choose")
        notebook.wait_text("this is no media file")
        notebook.upload(videos / "large.mp4", words="Choose")
        notebook.wait_text("large.mp4: this is no media file")
        notebook.type("or a path", str(videos))
        notebook.wait_text("4 files of")
        notebook.wait_text("letter.mp4")
        notebook.press("Write files")
        notebook.wait_text("Written to")
        notebook.screenshot("predict_folder")
        assert len(pd.read_csv(tmp_path / "predictions.csv")) == 4
        notebook.type("or a path", "not/there.mp4")
        notebook.wait_text("there is no such file")
        assert notebook.errors() == []


def test_curves_while_training(lab, demo_run, small_dataset, tmp_path):
    settings = dict(
        dataset="demo",
        synthetic=False,
        data_dir=str(small_dataset),
        store_dir=str(demo_run.parents[1] / "store"),
        output_dir=str(tmp_path / "run"),
        num_frames=10,
        batch_size=8,
        pretrain_epochs=200,
        snapshot_clips=0,
    )
    with lab.open("nbs/train.ipynb", **settings) as notebook:
        notebook.start()
        live = "img.widget-image"
        notebook.wait_change([], live, 120)
        notebook.wait_change(notebook.sources(live), live, 60)
        notebook.wait_text("to go (until", 30)
        assert "learning rate" in notebook.text() and "clips/s" in notebook.text()
        notebook.screenshot("train")
        notebook.interrupt()
        assert notebook.errors() and all("KeyboardInterrupt" in e for e in notebook.errors()), notebook.errors()


def test_ten_minutes(demo_run, tmp_path):
    from vat_nb.look.predict_panel import PredictPanel

    ffmpeg(*picture(600, "10", "64x64"), *tone(600, 16000), *H264, *AAC, tmp_path / "long.mp4")
    panel = PredictPanel(demo_run / "checkpoint", demo_run, tmp_path)
    panel.path.value = str(tmp_path / "long.mp4")
    assert (
        100 < len(panel.windowed.start) <= 300
        and panel.windowed.end[-1] == pytest.approx(600, abs=0.5)
        and "600.0 s" in panel.status.value
    )


def test_predict_headless(demo_run, videos, tmp_path):
    _, _, out = papermill(
        tmp_path, f"model={demo_run / 'checkpoint'}", f"path={videos / 'a clip.mp4'}", name="predict", check=True
    )
    assert len(pd.read_csv(out / "predictions.csv")) == 1 and set(pd.read_csv(out / "over_time.csv")["head"]) == set(
        HEADS
    )
    assert {p.name for p in (out / "figures").iterdir()} == {
        f"{n}.{kind}" for n in ("summary", "over_time", "attention") for kind in ("png", "svg")
    }
    code, printed, _ = papermill(tmp_path, "modell=x", name="predict")
    assert code != 0 and "did you mean 'model'" in printed
    # a job that predicted nothing has failed, and says why
    code, printed, _ = papermill(tmp_path, f"model={tmp_path}", f"path={videos / 'a clip.mp4'}", name="predict")
    assert code != 0 and str(tmp_path) in printed
