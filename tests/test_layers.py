"Layers of an audio encoder: chosen in each fold by its training people, and shown one by one; one clip has no video."

import json
import shutil

import pandas as pd
from conftest import keep_stream
from test_faults import FAST, papermill
from test_pretrained import names  # noqa: F401


def test_layers_are_chosen_by_the_people_of_each_fold(names, small_dataset, tmp_path):  # noqa: F811
    top = tmp_path / "mine"
    top.mkdir()
    truth = pd.read_json(small_dataset / "truth.json", dtype=dict(name=str)).query("split == 'train'")
    for file in truth["file"]:
        shutil.copy(small_dataset / file, top)
    audio_only = top / sorted(p.name for p in top.glob("*.mp4"))[0]
    keep_stream(audio_only, tmp_path / "heard.mp4", "audio")
    (tmp_path / "heard.mp4").replace(audio_only)
    rows = dict(
        path=truth["name"] + ".mp4", split="train", emotion=truth["emotion"], speaker=truth["person"].astype(str)
    )
    pd.DataFrame(rows).to_csv(top / "manifest.csv", index=False)
    where = (
        f"data_dir={top}",
        f"store_dir={tmp_path / 'store'}",
        "dataset=features",
        *FAST[1:],
        f"video_encoder={names['vit']}",
        f"audio_encoder={names['whisper']}",
    )
    where = [p for p in where if not p.startswith(("model_size=", "encoders="))]
    folds = (
        "num_folds=2",
        "fold_all_splits=True",
        "valid_fraction=0.0",
        "pretrain_epochs=0",
        "epochs=1",
        "seeds=2",
        "try_layers=1,1+2",
    )
    _, _, out = papermill(tmp_path, *where, *folds, name="crossval", check=True)
    summary = json.loads((out / "crossval/crossval.json").read_text())
    assert (
        summary["clips"] == 24
        and len(summary["predictions"]) == 2
        and set(summary["layers"]) <= {"1", "1+2"}
        and len(summary["layer_losses"]) == 2
    )
    assert (
        summary["predictions"][0]["predicted"]["logistic regression, fused"]
        == summary["predictions"][1]["predicted"]["logistic regression, fused"]
    )
    assert {"SVM, transductive, audio", "linear SVM, per speaker, fused"} <= set(summary["out_of_fold"])
    _, _, probed = papermill(tmp_path, *where, name="layers", check=True)
    rows = {r["features"]: r for r in json.loads((probed / "layers/layers.json").read_text())["rows"]}
    assert {"MFCC", "video encoder", "audio, layer 1", "audio, layer 1+2, and video"} <= set(rows)
    assert all(r["unseen low"] <= r["unseen F1"] <= r["unseen high"] for r in rows.values())
