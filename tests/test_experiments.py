"The notebooks that compare (folds, ablation, labels), pretrained encoders in training, one line that predicts."

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import PROJECT
from test_faults import FAST, papermill
from test_pretrained import names  # noqa: F401

from vat_nb.model import HEADS


@pytest.fixture(scope="module")
def where(small_dataset, tmp_path_factory):
    "A small data set and a store that all notebooks here share."
    return "dataset=mer23", f"data_dir={small_dataset}", f"store_dir={tmp_path_factory.mktemp('experiments') / 'store'}"


def test_folds_resume_where_they_stopped(where, tmp_path):
    settings = (*where, *FAST, "num_folds=2", "valid_fraction=0.3")
    _, _, out = papermill(tmp_path, *settings, name="crossval", check=True)
    folder = out / "crossval"
    result = json.loads((folder / "crossval.json").read_text())
    assert (
        result["clips"] == 24
        and set(result["tests"]) == {"test1", "test2", "test3"}
        and len(pd.read_csv(folder / "submission_test3.csv")) == 6
    )
    heads, kinds = ("fused head", "all heads"), ("logits", "calibrated probabilities")
    assert result["averaged"] in {f"{h}, {v}, {k}" for h in heads for v in ("one view", "3 views") for k in kinds}
    assert (out / "figures/reliability.png").exists() and (folder / "fold1/model/model.safetensors").exists()
    assert json.loads((folder / "fold0/model/config.json").read_text())["temperature"] != 1.0
    times = {p: p.stat().st_mtime_ns for p in folder.glob("fold*/*.safetensors")}
    (folder / "fold1/done.json").unlink()
    papermill(tmp_path, *settings, name="crossval", check=True)
    changed = {p.parent.name for p, t in times.items() if p.stat().st_mtime_ns != t}
    assert changed == {"fold1"}, "a finished fold was trained again, or an open one was not"
    assert json.loads((folder / "crossval.json").read_text())["out_of_fold"] == result["out_of_fold"], (
        "the same seed gave another fold"
    )


def test_ablation_trains_each_row_once(where, tmp_path):
    settings = (*where, *FAST, "epochs=1", "seeds=2", "pseudo_threshold=0.3", "linear_probe=True")
    _, _, out = papermill(tmp_path, *settings, name="ablation", check=True)
    result = json.loads((out / "ablation.json").read_text())
    ladder = [
        "none",
        "+ contrast (VAC)",
        "+ matching (VAM)",
        "+ distillation",
        "+ masked audio",
        "+ linear probe",
        "+ blend",
        "+ augmentation",
        "+ pseudo-labels",
        "all, uncertainty weighting",
        "all, modality dropout",
        "the recipe",
    ]
    assert [r["row"] for r in result["rows"]] == ladder, "with one epoch, gradient blending cannot be, and all else can"
    trained = len(list((out / "ablation").glob("* clean.safetensors")))
    assert trained == 2 * (len(ladder) - 1), "this recipe is the row + augmentation, and is trained once"
    assert len(list((out / "ablation").glob("pretraining *.safetensors"))) == 2 * 5, (
        "rows that differ in fine-tuning alone share a pretraining"
    )
    for row in result["rows"][1:]:
        assert row["low"] <= row["difference"] <= row["high"]
    times = {p: p.stat().st_mtime_ns for p in (out / "ablation").iterdir()}
    papermill(tmp_path, *settings, name="ablation", check=True)
    assert times == {p: p.stat().st_mtime_ns for p in (out / "ablation").iterdir()}
    assert json.loads((out / "ablation.json").read_text())["rows"][3] == result["rows"][3]


def test_label_sweep_trains_each_run_once(where, tmp_path):
    settings = (*where, *FAST, "epochs=1", "seeds=1", "shares=[0.5, 1.0]", "pseudo_threshold=0.3")
    _, _, out = papermill(tmp_path, *settings, name="semisupervised", check=True)
    table = pd.read_csv(out / "semisupervised.csv")
    assert len(table) == 10 and set(table["share"]) == {0.5, 1.0} and table["variant"].nunique() == 5
    assert ((table["low"] <= table["score"]) & (table["score"] <= table["high"])).all() and (
        out / "figures/semisupervised.png"
    ).exists()
    times = {p: p.stat().st_mtime_ns for p in (out / "semisupervised").iterdir()}
    papermill(tmp_path, *settings, name="semisupervised", check=True)
    assert times == {p: p.stat().st_mtime_ns for p in (out / "semisupervised").iterdir()}
    _, message, _ = papermill(tmp_path, *settings, "ways=plain,none", name="semisupervised", check=False)
    assert "ways has no 'none'; it can be: plain" in message


def test_causes_need_a_synthetic_dataset(tmp_path):
    _, message, _ = papermill(tmp_path, "dataset=manifest", "encoders=none", name="causes", check=False)
    assert "manifest is no synthetic data set" in message


def test_sweep_goes_on_with_a_grid_that_grew(where, tmp_path):
    "One point here; then two, of which a worker of a Dask cluster trains the new one. The test splits take no part."
    from distributed import LocalCluster

    settings = (*where, *FAST, "epochs=1", "selection_fraction=0.4", "valid_fraction=0.0")
    _, _, out = papermill(tmp_path, *settings, "grid={'lr': ['1e-3']}", name="sweep", check=True)
    table, times = pd.read_csv(out / "sweep.csv"), {p: p.stat().st_mtime_ns for p in (out / "sweep_0.4").iterdir()}
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, protocol="tcp", dashboard_address=None
    ) as cluster:
        papermill(
            tmp_path,
            *settings,
            "grid={'lr': [1e-3, 3e-3], 'weight_fused': [1.0, 0]}",
            f"scheduler={cluster.scheduler_address}",
            name="sweep",
            check=True,
        )
    assert all(p.stat().st_mtime_ns == t for p, t in times.items()), "a point was trained again"
    result, grown = json.loads((out / "sweep.json").read_text()), pd.read_csv(out / "sweep.csv")
    assert (
        len(grown) == 2
        and len(result["left_out"]) == 2
        and result["clips"] == 12  # two of the four people
        and (out / "figures/sweep.png").exists()
    )
    assert len(list((out / "sweep_0.4").glob("pretraining *.safetensors"))) == 1, (
        "points that differ in fine-tuning alone share a pretraining"
    )
    assert (
        (grown["low"] <= grown["score"]).all()
        and (grown["score"] <= grown["high"]).all()
        and grown["score"].is_monotonic_decreasing
        and grown["difference"].iloc[0] == 0
    )
    assert grown[grown["lr"] == 1e-3]["score"].item() == table["score"].item()


def test_pretrained_encoders_through_the_notebook(where, names, small_dataset, tmp_path):  # noqa: F811
    "Frozen encoders from videos to scores, predictions of files, folds, panels and a snapshot; nothing computed twice."
    from vat_nb.data.io import ParameterError
    from vat_nb.training.settings_file import read_recipe
    from vat_nb.runs.prepared_clips import check_recipe
    from vat_nb.runs.recognizer import Recognizer
    from vat_nb.runs.snapshots import open_run, run_model, take_snapshot
    from vat_nb.encoders.inputs import build_loader

    encoders = (
        f"video_encoder={names['vit']}",
        f"audio_encoder={names['whisper']}",
        "weight_masked=0.0",
        "augment_image=0.0",
        "augment_blur=0.0",
        "augment_wave=0.0",
        "feature_rate=10.0",
        "joint_heads=True",
        "linear_probe=True",
    )
    with pytest.raises(ParameterError, match="set weight_masked to 0"):
        check_recipe(read_recipe("mer23", encoders="none", audio_encoder=names["large"]))
    _, _, out = papermill(tmp_path, *where, *FAST, *encoders, check=True)
    result = json.loads((out / "metrics.json").read_text())
    assert (
        result["recipe"]["video_encoder"] == names["vit"]
        and 0 <= result["matching_auc"] <= 1
        and set(result["matching"]) >= {"another clip's", "its own, shifted"}
    )
    assert [r["k"] for r in result["retrieval"]] == [1, 5, 10] and result["held_out"] > 0
    models = ("logistic regression", "linear SVM")
    assert set(result["linear"]["test1"]) == {*models, *(f"{m}, per speaker" for m in models)}
    conditions = pd.read_csv(out / "robustness.csv")
    assert len(conditions) == 12 * len(HEADS) and (out / "figures/attention.png").exists()
    cached = {p: p.stat().st_mtime_ns for p in (tmp_path.parent).rglob("features/*/clips/*.safetensors")}
    model = Recognizer.from_pretrained(str(out / "checkpoint"))
    video = next(small_dataset.rglob("*.mp4"))
    row = model.predict([video]).iloc[0]
    assert row["status"] != "failed" and abs(row.filter(like="p(").sum() - 1) < 1e-5
    run = open_run(out)
    for stage in ("pretrain", "finetune"):
        for who in ("student", "teacher"):
            s = take_snapshot(run_model(run, stage, who), build_loader(run.store, run.subset, run.recipe))
            assert len(s.video_embed) == len(run.subset) and np.isfinite(s.match_prob).all()
    for name in ("alignment", "attention"):
        papermill(tmp_path, "dataset=mer23", f"run={out}", name=name, check=True)
    for name in ("folds", "layers"):
        (tmp_path / name).mkdir()
    _, _, folded = papermill(
        tmp_path / "folds",
        *where,
        *FAST,
        *encoders,
        "num_folds=2",
        "valid_fraction=0.3",
        "seeds=2",
        name="crossval",
        check=True,
    )
    summary = json.loads((folded / "crossval/crossval.json").read_text())
    assert summary["clips"] == 24 and len(summary["predictions"]) == 2
    rivals = {f"{m}, {h}" for m in ("logistic regression", "linear SVM", "SVM") for h in ("audio", "video", "fused")}
    assert rivals <= set(summary["out_of_fold"])
    assert "VAT, heads averaged, fused" in summary["predictions"][0]["predicted"]
    nameless = shutil.copytree(small_dataset, tmp_path / "nameless", ignore=shutil.ignore_patterns("speakers.csv"))
    there = (where[0], f"data_dir={nameless}", f"store_dir={tmp_path / 'nameless_store'}")
    code, printed, _ = papermill(tmp_path / "layers", *there, *FAST, *encoders, name="layers")
    assert code != 0 and "clips of three or more speakers" in printed
    assert all(p.stat().st_mtime_ns == t for p, t in cached.items()), "features were computed twice"


def test_one_line_predicts(small_dataset, tmp_path):
    import torch
    from vat_nb.runs.recognizer import Recognizer
    from vat_nb.sizes import ModelConfig, build_vat
    from vat_nb.data.validation import MER23
    from vat_nb.training.config import Recipe

    torch.manual_seed(0)
    recipe = Recipe(model_size="tiny", image_size=64, fps=10.0, num_frames=20, face_detector=None)
    Recognizer(build_vat(ModelConfig("tiny", 64, 10.0, 6, 1)), MER23, recipe).save_pretrained(
        tmp_path / "runs/mine/checkpoint"
    )
    (tmp_path / "settings.ini").write_text((PROJECT / "settings.ini").read_text())
    video = next(small_dataset.rglob("*.mp4"))
    script = tmp_path / "script.py"  # no __main__ guard: a user's script has none
    script.write_text("import sys, vat_nb\nvat_nb.predict(sys.argv[1:]).to_csv('said.csv', index=False)\n")
    subprocess.run(
        [sys.executable, script, video, tmp_path / "gone.mp4"], cwd=tmp_path, check=True, capture_output=True
    )
    message = pd.read_csv(tmp_path / "said.csv")
    assert message["status"].tolist() == ["ok", "failed"] and message["emotion"].isna().tolist() == [False, True]
    assert np.isclose(message.filter(like="p(").loc[0].sum(), 1, atol=1e-5)


SIDE_BY_SIDE = """
import os, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from vat_nb.runs.comparison import _end_with_parent

if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)
    print(pool.submit(os.getpid).result(), flush=True)
    pool.submit(time.sleep, 600)
    time.sleep(600)
"""


def test_runs_side_by_side_end_with_a_killed_notebook(tmp_path):
    script = tmp_path / "side_by_side.py"
    script.write_text(SIDE_BY_SIDE)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, cwd=PROJECT)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    worker.wait(timeout=60)  # raises where it lives on
