"Data sets that lack something, through the notebooks: without one label, without audio."

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import keep_stream
from test_faults import FAST, papermill
from test_pretrained import names  # noqa: F401


def tiny_graph(path):
    "A face network of one matrix, as an ONNX file that says its own scale."
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    weights = numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32), "weights")
    nodes = [
        helper.make_node("GlobalAveragePool", ["frames"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["features"]),
    ]
    input_info = helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["n", 3, 16, 16])
    result = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", 8])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [input_info], [result], [weights]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    helper.set_model_props(model, dict(mean="[0.5, 0.5, 0.5]", std="[0.5, 0.5, 0.5]"))
    onnx.save(model, path)
    return f"onnx:{path}"


def test_a_dataset_without_one_label(names, small_dataset, tmp_path):  # noqa: F811
    "From clips without labels to recall and matching of those held out; features alone; the audit of the same clips."
    pytest.importorskip("onnxruntime")
    clips = sorted((small_dataset / "train").glob("*.mp4"))[:16]
    (tmp_path / "mine").mkdir()
    for c in clips:
        shutil.copy(c, tmp_path / "mine")
    pd.DataFrame(dict(path=[c.name for c in clips], split="train")).to_csv(tmp_path / "mine/manifest.csv", index=False)
    where = (
        f"data_dir={tmp_path / 'mine'}",
        f"store_dir={tmp_path / 'store'}",
        "dataset=features",
        "face_detector=none",
        "image_size=32",
    )
    encoders = f"audio_encoder={names['whisper']}", f"video_encoder={tiny_graph(tmp_path / 'face.onnx')}"
    _, _, out = papermill(
        tmp_path, *where, *encoders, "stage=pretrain", "pretrain_epochs=2", "valid_fraction=0.4", check=True
    )
    result = json.loads((out / "metrics.json").read_text())
    assert result["held_out"] == 6 and 0 <= result["matching_auc"] <= 1 and result["matching_chance"] == 0.5
    assert [(r["k"], r["chance"]) for r in result["retrieval"]] == [(1, 1 / 6), (5, 5 / 6), (10, 1.0)]
    assert not result["splits"] and (out / "checkpoint/model.safetensors").exists()
    cached = {p: p.stat().st_mtime_ns for p in (tmp_path / "store").rglob("features/*/clips/*.safetensors")}
    papermill(tmp_path, *where, *encoders, f"export={tmp_path / 'shared'}", name="features", check=True)
    assert len(list((tmp_path / "shared").rglob("*.npy"))) == 32
    assert all(p.stat().st_mtime_ns == t for p, t in cached.items()), "features were computed twice"
    (tmp_path / "audit_hash").mkdir()
    _, _, out = papermill(tmp_path / "audit_hash", *where, *encoders, "pretrain_epochs=1", name="audit", check=True)
    areas = json.loads((out / "audit/audit.json").read_text())["areas"]
    assert {r["kind"] for r in areas} == {"swapped", "shifted"} and all(0 <= r["area"] <= 1 for r in areas)
    times = {p: p.stat().st_mtime_ns for p in (out / "audit").rglob("*.safetensors")}
    papermill(tmp_path / "audit_hash", *where, *encoders, "pretrain_epochs=1", name="audit", check=True)
    assert times and times == {p: p.stat().st_mtime_ns for p in (out / "audit").rglob("*.safetensors")}
    assert json.loads((out / "audit/audit.json").read_text())["areas"] == areas


AUDIO_SUFFIX = {".mp4": ".m4a", ".avi": ".mp3"}


@pytest.mark.parametrize("kind", ["video only", "audio only", "silent test"])
def test_a_dataset_that_lacks_a_stream(small_dataset, tmp_path, kind):
    "Without audio or without video, or with a silent test split: training, scores, a row for every clip."
    root = tmp_path / "dataset"
    for path in small_dataset.rglob("*"):
        if path.is_dir():
            continue
        copy = root / path.relative_to(small_dataset)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix not in AUDIO_SUFFIX or kind == "silent test" and path.parent.name != "test1":
            shutil.copy(path, copy)
        elif kind == "audio only":
            keep_stream(path, copy.with_suffix(AUDIO_SUFFIX[path.suffix]), "audio")
        else:
            keep_stream(path, copy, "video")
    where = "dataset=mer23", f"data_dir={root}", f"store_dir={tmp_path / 'store'}"
    _, _, out = papermill(tmp_path, *where, *FAST, "snapshot_clips=6", check=True)
    result = json.loads((out / "metrics.json").read_text())
    assert set(result["splits"]) == {"test1", "test2", "test3"} and result["held_out"] == (
        4 if kind == "silent test" else 0
    )
    assert set(result["recall"]) == ({"before", "after", "chance"} if kind == "silent test" else set())
    assert len(pd.read_csv(out / "submission_test3.csv")) == 6
    if kind != "audio only":
        return
    for name in ("alignment", "attention"):
        papermill(tmp_path, "dataset=mer23", f"run={out}", name=name, check=True)
        assert "both video and audio" in printed(tmp_path / f"{name}.ipynb")
    papermill(tmp_path, *where, *FAST[:2], *FAST[3:6], name="audit", check=True)
    assert "nothing to audit: 0 of 40 clips" in printed(tmp_path / "audit.ipynb")


def printed(notebook):
    "What the cells of an executed notebook printed."
    outputs = [o for c in json.loads(notebook.read_text())["cells"] for o in c.get("outputs", [])]
    return "".join("".join(o.get("text", "")) for o in outputs)
