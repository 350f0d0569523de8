"Lists, stores, runs and weights made to escape, to execute, or to fill the memory are refused in a sentence."

import json
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from conftest import write_noise
from safetensors.torch import save

DEEP = '{"a":' * 100_000


class Harm:
    "Unpickled, it makes a folder."

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return Path.mkdir, (self.folder,)


@pytest.fixture
def store(tmp_path):
    return write_noise(tmp_path / "store", 4)


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("name", ["../../out/x", "/tmp/x", "..", "a/../../x", "a\\b", ".hidden"])
def test_names_of_a_label_file_that_lead_out(tmp_path, name):
    "Read, they would be a way to any file; preprocessed, they would be written (or deleted) outside of the store."
    from vat_nb.data.tables import DatasetError
    from vat_nb.data.validation import validate_dataset, build_clips
    from vat_nb.data.datasets import mer23

    (tmp_path / "r/train").mkdir(parents=True)
    (tmp_path / "r/train/good.mp4").write_bytes(b"x")
    (tmp_path / "r/train-label.csv").write_text(f"name,discrete\ngood,happy\n{name},sad\n")
    index = mer23(tmp_path / "r")
    with pytest.raises(DatasetError, match="leads out of .*plain name"):
        build_clips(index)
    with pytest.raises(DatasetError) as e:
        validate_dataset(index)
    assert (
        e.value.report["problem"].iloc[0] == "leaves the folder"
        and e.value.report["source_line"].iloc[0] == "train-label.csv:3"
    )


def test_paths_and_splits_of_a_manifest_that_lead_out(tmp_path):
    from vat_nb.data.tables import DatasetError
    from vat_nb.data.validation import build_clips
    from vat_nb.data.manifest import manifest

    root = tmp_path / "r"
    root.mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (root / "good.mp4").write_bytes(b"x")
    for path, split in (
        ("../secret.mp4", "train"),
        (tmp_path / "secret.mp4", "train"),
        ("link.mp4", "train"),
        ("good.mp4", "../../submission"),
        ("....mp4", "train"),
    ):
        (root / "manifest.csv").write_text(f"path,split\n{path},{split}\n")
        with pytest.raises(DatasetError, match="leads out of .*plain name"):
            build_clips(manifest(root))


@pytest.mark.parametrize("column, wrong", [("id", "../../x"), ("id", "/tmp/x"), ("id", ".."), ("split", "../x")])
def test_a_store_whose_names_lead_out(store, column, wrong):
    import pandas as pd
    from vat_nb.data.store import open_store

    table = pd.read_csv(store / "clips.csv", dtype=str, keep_default_na=False)
    table.loc[1, column] = wrong
    table.to_csv(store / "clips.csv", index=False)
    with pytest.raises(ValueError, match="leads out of the store"):
        open_store(store)


def test_a_stored_clip_that_is_a_link_to_elsewhere(store, tmp_path):
    from vat_nb.data.store import open_store

    clip = open_store(store).usable()[0]
    path = store / "clips" / f"{clip.id}.safetensors"
    shutil.move(path, tmp_path / "secret")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match="is a link that leads out of the store: copy the file in"):
        open_store(store).media(clip)
    path.unlink()
    shutil.move(tmp_path / "secret", store / "clips/other")
    path.symlink_to("other")  # as git-annex stores files
    assert open_store(store).media(clip).jpegs


@pytest.mark.parametrize(
    "old, new, says",
    [
        ('"task": {', '"task": 7, "was": {', "describes no task of this version of vat_nb"),
        ('"classes": [', '"color": 1, "classes": [', "describes no task of this version of vat_nb"),
        ('"fps": 10.0', '"fps": "fast"', "is no store of vat_nb"),
        ('"fps": 10.0', '"fps": NaN', "is no store of vat_nb"),
        ('"size": 64', '"size": 1000000000', "is no store of vat_nb"),
        ('{\n "settings"', DEEP, "settings.json is no JSON (RecursionError"),
        ('{\n "settings"', '[{\n "settings"', "settings.json is no JSON"),
        ('"settings": {', '"seltings": {', "is no store of vat_nb"),
    ],
)
def test_a_store_whose_settings_cannot_be(store, old, new, says):
    from vat_nb.data.store import open_store

    change(store / "settings.json", old, new)
    with pytest.raises(ValueError) as e:
        open_store(store)
    assert says in str(e.value)


def test_a_store_whose_rows_cannot_be(store):
    from vat_nb.data.store import open_store

    ledger = (store / "ledger.csv").read_text()
    for wrong in ("1e18", "inf", "nan", "long"):  # of seconds: all its windows would be listed
        (store / "ledger.csv").write_text(ledger.replace(",1.0,", f",{wrong},", 1))
        with pytest.raises(ValueError, match="is no store of vat_nb"):
            open_store(store)
    (store / "ledger.csv").write_text(ledger)
    clips = (store / "clips.csv").read_text()
    for old, new in ((",angry,", ",jolly,"), ("id,path", "ID,path")):
        (store / "clips.csv").write_text(clips.replace(old, new, 1))
        with pytest.raises(ValueError, match="is no store of vat_nb"):
            open_store(store)


def raw(header, body=b"", n=None):
    "A safetensors file made by hand: n is the length of the header that it claims."
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if n is None else n) + header + body


def tensor(about="{}", **k):
    return dict(__metadata__=dict(about=about), w=dict(dtype="F32", shape=[2], data_offsets=[0, 8]) | k)


ABOUT = dict(
    list="[1]",
    number="7",
    null="null",
    text='"x"',
    deep=DEEP,
    digits='{"a":' + "9" * 5000 + "}",
    cut='{"a":',
    no_digest='{"a": 1}',
    digest_list='{"digest": [1]}',
)
FORGED = dict(
    empty=b"",
    short=b"\1\0",
    page=b"<html>404</html>" * 9,
    huge_header=raw({}, n=2**60),
    header_longer_than_file=raw(tensor(), n=10**7),
    no_json=raw(b"x" * 40),
    deep_header=raw(DEEP.encode()),
    lies_about_end=raw(tensor(data_offsets=[0, 80]), b"x" * 8),
    lies_about_start=raw(tensor(data_offsets=[4, 12]), b"x" * 8),
    negative=raw(tensor(data_offsets=[-8, 0]), b"x" * 8),
    wrong_shape=raw(tensor(shape=[3]), b"x" * 8),
    absurd_shape=raw(tensor(shape=[2**63, 0], data_offsets=[0, 0])),
    nothing_said=save(dict(w=torch.ones(2))),
    unknown_kind=raw(tensor(dtype="OBJECT"), b"x" * 8),
    **{f"about_{k}": raw(tensor(v), b"x" * 8) for k, v in ABOUT.items()},
)


@pytest.mark.parametrize("kind", FORGED)
def test_forged_files_are_no_checkpoints(tmp_path, kind):
    from vat_nb.training.checkpoint import load_tensors
    from vat_nb.runs.recognizer import Recognizer
    from vat_nb.data.clip_files import decode_clip

    path = tmp_path / "model.safetensors"
    path.write_bytes(FORGED[kind])
    with pytest.raises(ValueError, match="model.safetensors is no checkpoint of vat_nb"):
        load_tensors(path)
    with pytest.raises(ValueError, match="model.safetensors is no checkpoint of vat_nb"):
        Recognizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="model.safetensors is no stored clip"):
        decode_clip(path.read_bytes(), path)


@pytest.mark.parametrize("how", ["pickle", "torch", "old torch"])
def test_nothing_is_unpickled(store, tmp_path, how):
    "Under every name that the kit loads, a pickle is a file that it does not know."
    from vat_nb.training.checkpoint import Checkpoints, load_tensors
    from vat_nb.evaluation.ensemble import load_predictions
    from vat_nb.runs.recognizer import Recognizer
    from vat_nb.data.store import open_store
    from vat_nb.training.saved_run import student_weights

    path, harm = tmp_path / "model.safetensors", Harm(tmp_path / "harm")
    if how == "pickle":
        path.write_bytes(pickle.dumps(harm))
    else:
        torch.save(dict(state=harm), path, _use_new_zipfile_serialization=how == "torch")
    for load in (
        load_tensors,
        student_weights,
        lambda p: load_predictions(p, []),
        lambda p: Checkpoints(p).load(),
        lambda p: Recognizer.from_pretrained(p.parent),
    ):
        with pytest.raises(ValueError, match="is no checkpoint of vat_nb"):
            load(path)
    clip = open_store(store).usable()[0]
    shutil.copy(path, store / "clips" / f"{clip.id}.safetensors")
    with pytest.raises(ValueError, match="is no stored clip"):
        open_store(store).media(clip)
    assert not (tmp_path / "harm").exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())
    else:
        torch.load(path.rename(tmp_path / "model.pth"), weights_only=False)
    assert (tmp_path / "harm").exists(), "the pickle was harmless, so the test showed nothing"


@pytest.fixture(scope="module")
def model():
    from vat_nb.sizes import ModelConfig, build_vat

    torch.manual_seed(0)
    return build_vat(ModelConfig("tiny", 64, 10.0, 6, 1))


@pytest.fixture
def saved(model, tmp_path):
    "Writes a model's file with other words or tensors, its digest right, as somebody who knows the format would."
    from dataclasses import asdict

    from vat_nb.data.validation import MER23
    from vat_nb.training.checkpoint import save_tensors
    from vat_nb.training.config import Recipe

    def save_as(recipe={}, tensors={}, **about):
        small = Recipe(model_size="tiny", image_size=64, fps=10.0, num_frames=20, face_detector=None)
        recipe = small.model_part() | recipe
        save_tensors(
            tmp_path / "model.safetensors",
            model.state_dict() | tensors,
            dict(recipe=recipe, task=asdict(MER23), temperature=1.0) | about,
        )
        return tmp_path

    return save_as


def test_a_model_is_loaded_whatever_its_config_json_says(saved):
    from vat_nb.runs.recognizer import Recognizer

    folder = saved()
    for text in ("[]", DEEP, '{"task": 7, "recipe": {"image_size": 1000000000}}'):
        (folder / "config.json").write_text(text)
        assert Recognizer.from_pretrained(folder).recipe.image_size == 64


@pytest.mark.parametrize(
    "recipe, says",
    [
        (dict(image_size=10**9), "image_size cannot be 1000000000"),
        (dict(image_size="big"), "image_size needs a value like 160"),
        (dict(image_size=None), "image_size needs a value like 160"),
        (dict(image_size=0), "image_size cannot be 0"),
        (dict(fps=1e300), "fps cannot be 1e+300"),
        (dict(fps=-1.0), "fps must not be negative"),
        (dict(num_frames=10**15), "num_frames cannot be"),
        (dict(model_size="gigantic"), "model_size cannot be 'gigantic'"),
        (dict(model_size=["tiny"]), "model_size cannot be ['tiny']"),
        (dict(encoder_tuning="hard"), "encoder_tuning cannot be 'hard'"),
        (dict(video_encoder=["hf:x"]), "video_encoder needs"),
        (dict(face_detector=3), "face_detector needs"),
        (dict(tubelet=10**9), "tubelet cannot be 1000000000"),
        (dict(tubelet="two"), "tubelet needs"),
        (dict(size="tiny"), "of an older version"),
    ],
)
def test_recipes_that_no_model_has(saved, recipe, says, monkeypatch):
    import vat_nb.runs.recognizer as recognizer

    monkeypatch.setattr(recognizer, "build_vat", lambda *a, **k: pytest.fail("a model was built from it"))
    with pytest.raises(ValueError) as e:
        recognizer.Recognizer.from_pretrained(saved(recipe))
    assert says in str(e.value) and "model.safetensors" in str(e.value)


@pytest.mark.parametrize(
    "about, says",
    [
        (dict(recipe=[]), "does not say how its model is built"),
        (dict(recipe={}), "does not say how its model is built"),
        (dict(task=[]), "describes no task of this version of vat_nb"),
        (dict(task=dict(classes=["a"] * 10**6)), "describes no task of this version of vat_nb"),
        (dict(task=dict(classes=["a"], evil="x")), "describes no task of this version of vat_nb"),
        (dict(temperature="hot"), "temperature cannot be 'hot'"),
        (dict(temperature=0.0), "temperature cannot be 0.0"),
        (dict(temperature=float("nan")), "temperature cannot be nan"),
    ],
)
def test_descriptions_that_no_model_has(saved, about, says, monkeypatch):
    import vat_nb.runs.recognizer as recognizer

    folder = saved()
    from vat_nb.training.checkpoint import load_tensors, save_tensors

    tensors, message = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", tensors, message | about)
    monkeypatch.setattr(recognizer, "build_vat", lambda *a, **k: pytest.fail("a model was built from it"))
    with pytest.raises(ValueError) as e:
        recognizer.Recognizer.from_pretrained(folder)
    assert says in str(e.value) and "model.safetensors" in str(e.value)


def test_weights_that_are_not_finite_or_of_another_shape(saved, model):
    from vat_nb.runs.recognizer import Recognizer

    name, w = next((k, v) for k, v in model.state_dict().items() if v.ndim == 2)
    for bad in (torch.nan, torch.inf):
        broken = w.clone()
        broken[0, 0] = bad
        with pytest.raises(ValueError, match=f"are broken: not finite in {name}"):
            Recognizer.from_pretrained(saved(tensors={name: broken}))
    for wrong in (w[:1], torch.zeros(0, 10**12)):
        with pytest.raises(ValueError, match="belong to another model"):
            Recognizer.from_pretrained(saved(tensors={name: wrong}))
    with pytest.raises(ValueError, match="more is not known here"):
        Recognizer.from_pretrained(saved(tensors=dict(more=w + 1)))


@pytest.fixture
def run(store, model, tmp_path):
    "A run's folder as training leaves it, with two clips and a first snapshot."
    from vat_nb.training.settings_file import read_recipe
    from vat_nb.data.store import open_store
    from vat_nb.runs.snapshots import start_snapshots

    data = open_store(store)
    recipe = read_recipe("demo", store_dir=str(store), output_dir=str(tmp_path / "run"), num_frames=10, batch_size=2)
    start_snapshots(tmp_path / "run", data, data.usable()[:2], recipe, model)
    return tmp_path / "run"


def test_a_run_whose_description_cannot_be(run):
    from vat_nb.runs.snapshots import open_run, run_model

    assert len(open_run(run).subset) == 2
    good = (run / "run.json").read_text()
    description = json.loads(good)
    other = lambda **values: json.dumps(description | dict(recipe=description["recipe"] | values))
    for wrong, says in (
        (DEEP, "run.json is no JSON"),
        ("[]", "run.json should hold names and values"),
        ("{}", "describes no run"),
        (json.dumps(description | dict(snapshot_clips=["../../secret"])), "names the clip '../../secret'"),
        (json.dumps(description | dict(snapshot_clips=[["a"]])), "describes no run"),
        (other(store_dir=7), "store_dir needs a value like"),
        (other(image_size=10**9), "image_size cannot be 1000000000"),
        (other(store_dir="https://example.org/shards"), None),
    ):
        (run / "run.json").write_text(wrong)
        if says is None:
            assert open_run(run).store.path == run / "clips", (
                "an address in a run from elsewhere was asked for its store"
            )
        else:
            with pytest.raises(ValueError) as e:
                open_run(run)
            assert says in str(e.value)
    (run / "run.json").write_text(good)
    (run / "checkpoint").mkdir()
    (run / "checkpoint/pretrain.safetensors").write_bytes(pickle.dumps(Harm(run / "harm")))
    with pytest.raises(ValueError, match="is no checkpoint of vat_nb"):
        run_model(open_run(run), "pretrain")
    assert not (run / "harm").exists()


def test_a_run_whose_snapshots_or_clips_lead_elsewhere(run, tmp_path):
    from vat_nb.training.checkpoint import load_tensors, save_tensors
    from vat_nb.runs.snapshots import open_run

    path = run / "snapshots/start-0000.safetensors"
    tensors, about = load_tensors(path)
    for change_, message in (
        (dict(), dict(student=7)),
        (dict(), dict(someone=dict(temperature=1.0))),
        ({"student video_embed": torch.zeros(3, 5)}, about),
        ({"student match_prob": torch.full((2,), torch.nan)}, about),
    ):
        save_tensors(path, tensors | change_, message)
        with pytest.raises(ValueError, match="start-0000.safetensors is no snapshot"):
            open_run(run)
    save_tensors(path, tensors, about)
    (run / "snapshots/pretrain.json").write_text(DEEP)
    with pytest.raises(ValueError, match="pretrain.json is no JSON"):
        open_run(run)
    (run / "snapshots/pretrain.json").unlink()
    id = json.loads((run / "run.json").read_text())["snapshot_clips"][0]
    change(run / "clips/clips.csv", f"{id},", "../../../secret,")
    with pytest.raises(ValueError, match="leads out of the store"):
        open_run(run)


def test_a_copy_of_a_store_writes_nothing_outside(store, tmp_path):
    "Names that slipped past the reader (a store made by hand in memory) are written nowhere else."
    from dataclasses import replace

    from vat_nb.data.store import open_store

    data = open_store(store)
    before = names(tmp_path)
    stranger = replace(data.usable()[0], id="../../outside")
    with pytest.raises((FileNotFoundError, ValueError)):
        data._replace(clips=[stranger]).media(stranger)
    assert names(tmp_path) == before
