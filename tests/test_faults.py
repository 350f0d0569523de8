"What must not stop the work: a killed preprocessing run, a killed training run, bad input."
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT

PREPROCESS = """
import sys
from vat_nb.preprocess import preprocess
from vat_nb.releases import clips, mer23
if __name__ == "__main__":
    release = mer23(sys.argv[1])
    preprocess(clips(release), release.task, sys.argv[2], fps=10.0, size=64, processes=int(sys.argv[3]))
"""


def test_killed_preprocessing_goes_on(small_release, tmp_path):
    from vat_nb.preprocess import open_store, read_ledger
    script = tmp_path / "run.py"
    script.write_text(PREPROCESS)
    store = tmp_path / "store"
    run = subprocess.Popen([sys.executable, script, small_release, store, "1"], start_new_session=True, stderr=subprocess.DEVNULL)
    while run.poll() is None and len(read_ledger(store)) < 5: time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {p: p.stat().st_mtime_ns for p in (store / "clips").iterdir() if not p.name.startswith(".")}
    known = set(read_ledger(store)["id"])
    assert 5 <= len(known) < 40
    subprocess.run([sys.executable, script, small_release, store, "2"], check=True, stderr=subprocess.DEVNULL)
    ledger = read_ledger(store)
    assert len(ledger) == 40 and set(ledger["status"]) == {"ok"} and len(open_store(store).usable()) == 40
    assert all(p.stat().st_mtime_ns == t for p, t in done.items() if p.stem in known), "a finished clip was done again"


def papermill(tmp_path, *parameters, name="train", check=None):
    "Run a notebook as a user does; returns exit code, what was printed, and the results folder."
    out = tmp_path / "out"
    pairs = [x for p in (*parameters, f"out={out}") for x in ("-p", *p.split("=", 1))]
    run = subprocess.run([sys.executable, "-m", "papermill", f"nbs/{name}.ipynb", tmp_path / f"{name}.ipynb", "--kernel", "python3", *pairs], cwd=PROJECT, capture_output=True, text=True)
    assert check is None or (run.returncode == 0) == check, run.stderr[-3000:]
    return run.returncode, run.stderr, out


@pytest.mark.parametrize("wrong, says", [
    ("datset=mer23", "did you mean 'dataset'"), ("dataset=mer32", "did you mean 'mer23'"), ("epochs=ten", "epochs needs a value like"), ("size=tini", "did you mean 'tiny'")])
def test_wrong_parameters_stop_at_once(tmp_path, wrong, says):
    code, printed, out = papermill(tmp_path, wrong)
    assert code != 0 and "ParameterError" in printed and says in printed and not out.exists()


def test_missing_release_says_what_to_do(tmp_path):
    code, printed, _ = papermill(tmp_path, "dataset=mer23", f"root={tmp_path / 'nothing'}", f"store={tmp_path / 'store'}")
    assert code != 0 and "found no clips in" in printed and "EULA" in printed and "Try the demo" in printed


FAST = ("pretrain_epochs=1", "epochs=2", "image=32", "frames=10", "fps=5.0", "size=tiny", "device=cpu", "workers=0", "max_failed=0.2")


def test_the_whole_road(small_release, tmp_path):
    "A release with a corrupt video: trained, scored, a row for every clip asked for; a second run goes on from the end."
    import shutil

    import pandas as pd
    release = shutil.copytree(small_release, tmp_path / "my videos")
    spoilt, blank = sorted((release / "test1").iterdir())[0], sorted((release / "train").iterdir())[0]
    spoilt.write_bytes(spoilt.read_bytes()[:400])
    blank.write_bytes(b"")
    given = ("dataset=mer23", f"root={release}", f"store={tmp_path / 'store'}", *FAST)
    _, _, out = papermill(tmp_path, *given, check=True)
    found = json.loads((out / "metrics.json").read_text())
    assert found["dataset"] == "mer23" and set(found["splits"]) == {"test1", "test2", "test3"}
    assert {"f1", "mse", "combined", "accuracy", "uar"} <= set(found["splits"]["test1"]) and set(found["recall"]) == {"before", "after", "chance"}
    for split in ("test1", "test2", "test3"):
        rows = pd.read_csv(out / f"submission_{split}.csv", dtype=str, keep_default_na=False)
        assert sorted(rows["name"]) == sorted(p.stem for p in (release / split).iterdir()), "one row for every clip asked for"
        assert list(rows) == ["name", "discrete", "valence"] and rows["discrete"].ne("").all()
    before = (out / "checkpoint/model.safetensors").read_bytes()
    papermill(tmp_path, *given, check=True)
    assert (out / "checkpoint/model.safetensors").read_bytes() == before
    code, printed, _ = papermill(tmp_path, *given, "lr=0.5")
    assert code != 0 and "lr: 0.0001 then, 0.5 now" in printed and (out / "checkpoint/finetune.safetensors").exists()


def test_preprocess_notebook_writes_store_and_tree(small_release, tmp_path):
    store = tmp_path / "made" / "store"
    papermill(tmp_path, "dataset=mer23", f"root={small_release}", f"store={store}", "image=32", "fps=5.0", "tree=True", name="preprocess", check=True)
    from vat_nb.preprocess import open_store
    made = open_store(store)
    assert len(made.usable()) == 40 and len(list((store.parent / "audio").glob("*.wav"))) == 40
    for clip in made.usable():
        assert [p.name for p in sorted((store.parent / "frames" / clip.id).iterdir())] == [f"{i + 1:05d}.jpg" for i in range(made.ledger.loc[clip.id, "frames"])]


def test_unknown_class_names_the_row(small_release, tmp_path):
    import shutil
    release = shutil.copytree(small_release, tmp_path / "r")
    labels = release / "train-label.csv"
    labels.write_text(labels.read_text().replace("happy", "jolly", 1))
    code, printed, _ = papermill(tmp_path, "dataset=mer23", f"root={release}", f"store={tmp_path / 'store'}")
    assert code != 0 and "unknown class" in printed and "'jolly'" in printed and "train-label.csv:" in printed


TRAIN = """
import sys, torch
from pathlib import Path
from vat_nb.loading import make_loader
from vat_nb.model import build_vat
from vat_nb.preprocess import open_store
from vat_nb.training import Pretrain, Schedule, fit, make_accelerator, save_tensors
if __name__ == "__main__":
    store, out, epochs = open_store(sys.argv[1]), Path(sys.argv[2]), 6
    accelerator = make_accelerator("cpu", 3)
    torch.use_deterministic_algorithms(True)
    objective = Pretrain(build_vat("tiny", 64, 10.0, 6, 1), queue=13)
    fit(objective, make_loader(store, store.usable("train"), 20, 8, True), accelerator, epochs, Schedule(1e-3, momentum=0.9), checkpoint=out / "run.safetensors", about=dict(a=1))
    save_tensors(out / "end.safetensors", objective.state_dict(), {})
"""


def test_killed_training_ends_with_the_same_weights(small_release, tmp_path):
    from vat_nb.training import load_tensors
    (tmp_path / "pre.py").write_text(PREPROCESS)
    (tmp_path / "train.py").write_text(TRAIN)
    store = tmp_path / "store"
    subprocess.run([sys.executable, tmp_path / "pre.py", small_release, store, "1"], check=True, stderr=subprocess.DEVNULL)
    ends = []
    for kill in (False, True):
        out = Path(tmp_path, str(kill))
        out.mkdir()
        command = [sys.executable, tmp_path / "train.py", store, out]
        if kill:
            run = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            while run.poll() is None and not (out / "run.safetensors").exists(): time.sleep(0.01)
            time.sleep(0.7)
            run.send_signal(signal.SIGKILL)
            run.wait()
            assert not (out / "end.safetensors").exists(), "it was killed too late to test anything"
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        ends.append(load_tensors(out / "end.safetensors")[0])
    assert ends[0].keys() == ends[1].keys() and all((ends[0][k] == ends[1][k]).all() for k in ends[0])
