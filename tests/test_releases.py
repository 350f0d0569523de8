"The other two layouts, from videos on disk to a prediction file."

import json

import pandas as pd
import pytest
from test_faults import FAST, papermill


@pytest.fixture(scope="module")
def releases(tmp_path_factory):
    from vat_nb.data.demo_clips import plan_demo
    from vat_nb.data.demo_data import write_demo

    sizes = dict(muse_mimic=dict(train=16, devel=6, test=4), cheavd2=dict(train=32, val=8, test=4))
    return {
        name: write_demo(
            tmp_path_factory.mktemp(name) / "R & D",
            processes=0,
            layout=name,
            plans=plan_demo(sizes=s, people=dict.fromkeys(s, 2), layout=name),
        )
        for name, s in sizes.items()
    }


def run(releases, tmp_path, name, *more):
    _, _, out = papermill(
        tmp_path,
        f"dataset={name}",
        f"data_dir={releases[name]}",
        f"store_dir={tmp_path / 'store'}",
        *FAST,
        *more,
        check=True,
    )
    return json.loads((out / "metrics.json").read_text()), out


def test_muse_mimic_end_to_end(releases, tmp_path):
    result, out = run(releases, tmp_path, "muse_mimic", "num_processes=2")
    assert set(result["splits"]) == {"devel"}, "test labels are kept back"
    assert {"pearson", "mse", "undefined"} <= set(result["splits"]["devel"]) and result["splits"]["devel"][
        "ranking_metric"
    ] == "pearson"
    names = ("Approval", "Disappointment", "Uncertainty")
    devel, test = (
        pd.read_csv(out / f"predictions_{s}.csv", dtype=str, keep_default_na=False) for s in ("devel", "test")
    )
    assert list(devel) == ["File_ID", *(f"pred_{n}_" for n in names), *(f"gs_{n}_" for n in names)] and list(test) == [
        "File_ID",
        *(f"pred_{n}_" for n in names),
    ]
    assert (
        devel["File_ID"].tolist() == [f"{k:05d}" for k in range(17, 23)]
        and len(test) == 4
        and test.iloc[:, 1:].astype(float).stack().between(0, 1).all()
    )
    assert (out / "predictions_devel.csv").read_bytes() == (out / "submission_devel.csv").read_bytes()


def test_cheavd2_end_to_end(releases, tmp_path):
    result, out = run(releases, tmp_path, "cheavd2", "valid_split=val")
    assert (
        set(result["splits"]) == {"val"}
        and {"macro_precision", "accuracy"} <= set(result["splits"]["val"])
        and result["splits"]["val"]["ranking_metric"] == "macro_precision"
    )
    table = pd.read_csv(out / "submission_test.csv")
    assert list(table) == ["name", "emotion"] and len(table) == 4
    assert set(table["emotion"]) <= {"neutral", "angry", "sad", "happy", "surprise", "worried", "anxious", "disgust"}
