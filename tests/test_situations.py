"What people's files and machines do, found in public reports of other tools: each is read rightly, or says why not."

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import PROJECT

CLASSES = ("angry", "happy", "sad")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    "Eighteen short clips, one colour and one tone for each class: four of each to train on, two to test."
    from vat_nb.data.demo_data import write_clip

    folder = tmp_path_factory.mktemp("situations") / "my clips"
    (folder / "c").mkdir(parents=True)
    rng, t = np.random.default_rng(0), np.arange(16000) / 16000
    for k, name in enumerate(CLASSES):
        for i in range(6):
            frames = np.full((10, 48, 48, 3), 40 + 80 * k, np.uint8) + rng.integers(
                0, 20, (10, 48, 48, 3), dtype=np.uint8
            )
            split = "train" if i < 4 else "test"
            write_clip(
                folder / f"c/{name}_{split}{i}.mp4", frames, 0.3 * np.sin(2 * np.pi * (300 + 300 * k + 5 * i) * t)
            )
    return folder


def listed(folder, **changes):
    "A manifest of the clips, and columns that replace or join its own."
    paths = sorted(p.relative_to(folder).as_posix() for p in (folder / "c").glob("*.mp4"))
    stem = [Path(p).stem for p in paths]
    table = dict(path=paths, split=[s.split("_")[1][:-1] for s in stem], emotion=[s.split("_")[0] for s in stem])
    return pd.DataFrame(table | changes)


def write(folder, table, **how):
    table.to_csv(folder / "manifest.csv", index=False, **how)
    return folder


def index_of(folder):
    from vat_nb.data.validation import validate_dataset
    from vat_nb.data.manifest import manifest

    index = manifest(folder)
    return index, validate_dataset(index)


def train(folder, out):
    "Train a small model as the notebooks do, and save it; returns its classes."
    from vat_nb.training.settings_file import load_recipe
    from vat_nb.runs.prepared_clips import build_accelerator, check_recipe, prepare_store
    from vat_nb.runs.splits import split_clips
    from vat_nb.runs.pipeline import finetune, new_model, pretrain
    from vat_nb.runs.recognizer import Recognizer

    recipe = check_recipe(
        load_recipe(
            dict(
                dataset="manifest",
                encoders="none",
                data_dir=str(folder),
                store_dir=str(out / "store"),
                output_dir=str(out),
                model_size="mini",
                fps=10.0,
                image_size=48,
                num_frames=8,
                face_detector="none",
                pretrain_epochs=1,
                epochs=2,
                batch_size=4,
                valid_fraction=0.34,
                device="cpu",
                augment_image=0.0,
                augment_blur=0.0,
                queue_size=8,
            )
        )
    )
    accelerator, data = build_accelerator(recipe), prepare_store(recipe)
    split = split_clips(data, recipe)
    model = new_model(recipe, data, split.train)
    pretrain(model, data, split.train, recipe, accelerator, out / "pretrain.safetensors")
    finetune(model, data, split, recipe, accelerator, out / "finetune.safetensors")
    Recognizer(model, data.task, recipe).save_pretrained(out / "checkpoint")
    return data.task.classes


def test_the_order_of_the_rows_changes_nothing(clips, tmp_path):
    "Any permutation of the rows: the same classes, and the same weights bit for bit."
    table, weights = listed(clips), []
    for seed in (0, 1):
        write(clips, table.sample(frac=1, random_state=seed))
        assert train(clips, tmp_path / str(seed)) == CLASSES
        weights.append((tmp_path / f"{seed}/checkpoint/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    write(
        clips, table.sort_values("emotion", ascending=False)
    )  # sorted in a spreadsheet: the run that is there goes on
    train(clips, tmp_path / "0")
    assert (tmp_path / "0/checkpoint/model.safetensors").read_bytes() == weights[0]


def test_corrected_labels_are_never_mixed_with_old_weights(clips, tmp_path):
    "Two classes swapped in train, a class more, another split: each is refused in a sentence that says what changed."
    table = listed(clips)
    write(clips, table)
    train(clips, tmp_path)
    saved = (tmp_path / "checkpoint/model.safetensors").read_bytes()
    swap = table["emotion"].where(table["split"] == "test", table["emotion"].replace(dict(happy="sad", sad="happy")))
    new = table["emotion"].where(table["path"] != "c/sad_train0.mp4", "bored")
    moved = table["split"].where(table["path"] != "c/sad_train0.mp4", "test")
    for change, says in (
        (dict(emotion=swap), "labels of"),
        (dict(emotion=new), "bored"),
        (dict(split=moved), "are gone"),
    ):
        write(clips, table.assign(**change))
        with pytest.raises(ValueError, match="was trained on other clips or labels") as refused:
            train(clips, tmp_path)
        assert says in str(refused.value) and "-p resume False" in str(refused.value)
    assert (tmp_path / "checkpoint/model.safetensors").read_bytes() == saved
    write(clips, table)


@pytest.mark.parametrize(
    "name, change, how, targets",
    [
        (
            "decimal commas",
            dict(valence=[f"{0.1 * i:.2f}".replace(".", ",") for i in range(18)]),
            dict(sep=";"),
            ("valence",),
        ),
        ("whole numbers", dict(arousal=[1 + i % 5 for i in range(18)]), {}, ("arousal",)),
        ("missing", dict(valence=["n/a", "nan", "-", *np.linspace(0, 1, 15).round(2)]), {}, ("valence",)),
        ("a typing error", dict(valence=["0.8O", *np.linspace(0, 1, 17).round(2)]), {}, ("valence",)),
        ("length", dict(duration=np.linspace(1, 2, 18).round(2)), {}, ()),
        ("a count", dict(sentence=range(18)), {}, ()),
    ],
)
def test_numbers(clips, name, change, how, targets):
    index, report = index_of(write(clips, listed(clips, **change), **how))
    assert index.task.targets == targets
    columns = report[report["problem"] == "column"].set_index("id")["detail"]
    column = next(iter(change))
    assert columns[column].startswith("taken as a target" if targets else "not taken:")
    assert ("0.8O" in " ".join(report["detail"])) == (name == "a typing error")


@pytest.mark.parametrize(
    "encoding, word",
    [("utf-8", "colère"), ("utf-8-sig", "愤怒"), ("utf-16", "colère"), ("cp1252", "colère"), ("gb18030", "愤怒")],
)
def test_encodings(clips, encoding, word):
    index, report = index_of(
        write(clips, listed(clips).replace(dict(emotion=dict(angry=word))), encoding=encoding, sep="\t")
    )
    assert word in index.task.classes and len(index.task.classes) == 3
    assert (report["problem"] == "encoding").any() == (encoding in ("cp1252", "gb18030"))


def test_spellings_names_and_splits(clips):
    table = listed(clips)
    mixed = table["emotion"].where(table.index % 2 == 0, table["emotion"].str.upper())
    index, report = index_of(write(clips, table.assign(emotion=mixed)))
    assert len(index.task.classes) == 6 and (report["problem"] == "spellings of one class").sum() == 3
    from vat_nb.data.manifest import manifest

    assert len(manifest(clips, join_spellings=True).task.classes) == 3
    renamed = table.rename(columns=dict(path="File", split="SET", emotion="Label")).replace(
        dict(SET=dict(train="Train", test="Testing"))
    )
    index, report = index_of(write(clips, renamed))
    assert index.task.classes == CLASSES and set(index.labels["split"]) == {"train", "test"} and len(index.videos) == 18
    index, report = index_of(write(clips, table.assign(path=table["path"].str.replace("/", "\\"))))
    assert len(index.videos) == 18
    only = table["emotion"].where(table["split"] == "train", "happy")
    assert "class in one split only" in set(index_of(write(clips, table.assign(emotion=only)))[1]["problem"])
    (clips / "manifest.csv").write_text("path,split,emotion\nc/a,b.mp4,train,happy\n")
    from vat_nb.data.tables import DatasetError

    with pytest.raises(DatasetError, match="more fields than the header"):
        index_of(clips)
    write(clips, table)


def test_parts_of_one_file(clips, tmp_path):
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips

    part = "c/happy_train0.mp4"
    rows = [
        (part, "train", "happy", 0, 0.5),
        (part, "train", "sad", 0.5, 1),
        (part, "test", "sad", 5, 6),
        (part, "test", "sad", 0.8, 0.3),
        (part, "test", "happy", 0.7, 0.9),
    ]
    index, report = index_of(write(clips, pd.DataFrame(rows, columns=["path", "split", "emotion", "start", "end"])))
    assert "part outside the file" in set(report["problem"]) and len({c.id for c in build_clips(index)}) == 5
    preprocess(build_clips(index), index.task, tmp_path, fps=4.0, size=48, processes=1)
    store = open_store(tmp_path)
    assert (
        store.ledger["reason"].to_dict()["happy_train0_5"]
        == store.ledger["reason"].to_dict()["happy_train0_0.8"]
        == "OUTSIDE"
    )
    short = store.media(next(c for c in store.clips if c.start == 0.7))
    assert len(short.jpegs) == 1 and abs(short.duration - 0.2) < 1e-6 and abs(len(short.audio) - 3200) < 5
    write(clips, listed(clips))


def test_twenty_thousand_rows(tmp_path):
    "A large list is read in seconds; the time is printed by pytest --durations."
    from vat_nb.data.validation import build_clips

    n = 20_000
    for i in range(0, n, 40):
        (tmp_path / f"{i}.mp4").write_bytes(b"x")
    table = pd.DataFrame(
        dict(
            path=[f"{i}.mp4" for i in range(n)],
            split="train",
            emotion=np.resize(CLASSES, n),
            valence=np.linspace(0, 1, n),
        )
    )
    index, report = index_of(write(tmp_path, table))
    assert len(build_clips(index)) == n and (report["problem"] == "label without a video").sum() == n - 500


@pytest.mark.parametrize("place", ["beside", "folder", "column"])
def test_sound_in_a_file_of_its_own(clips, tmp_path, place):
    import soundfile
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips
    from conftest import keep_stream

    (tmp_path / "video").mkdir()
    keep_stream(clips / "c/happy_train0.mp4", tmp_path / "video/a.mp4", "video")
    where = dict(beside="video/a.wav", folder="audio/a.wav", column="elsewhere/b.wav")[place]
    (tmp_path / where).parent.mkdir(exist_ok=True)
    tone = 0.4 * np.sin(2 * np.pi * 700 * np.arange(44100) / 44100)
    soundfile.write(tmp_path / where, np.stack([tone, tone], 1), 44100)
    table = pd.DataFrame(
        dict(path=["video/a.mp4"], split="train", emotion="happy") | (dict(audio=[where]) if place == "column" else {})
    )
    index, _ = index_of(write(tmp_path, table))
    preprocess(build_clips(index), index.task, tmp_path / "store", fps=10.0, size=48, processes=1)
    store = open_store(tmp_path / "store")
    media = store.media(store.clips[0])
    spectrum = np.abs(np.fft.rfft(media.audio[2000:14000]))
    assert not media.reasons and len(media.jpegs) == 10 and abs(spectrum.argmax() * 16000 / 12000 - 700) < 2
    assert store.clips[0].audio.endswith(where)


def test_parts_of_a_video_with_sound_of_its_own(clips, tmp_path):
    "Each part has the audio of its own time, out of the file beside the video."
    import soundfile
    from conftest import keep_stream
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips

    keep_stream(clips / "c/happy_train0.mp4", tmp_path / "a.mp4", "video")
    t = np.arange(16000) / 16000
    soundfile.write(tmp_path / "a.wav", 0.4 * np.sin(2 * np.pi * np.where(t < 0.5, 700, 1500) * t), 16000)
    rows = [("a.mp4", "train", "happy", 0, 0.5), ("a.mp4", "train", "sad", 0.5, 1)]
    index, _ = index_of(write(tmp_path, pd.DataFrame(rows, columns=["path", "split", "emotion", "start", "end"])))
    preprocess(build_clips(index), index.task, tmp_path / "store", fps=10.0, size=48, processes=1)
    store = open_store(tmp_path / "store")
    peak_hz = {}
    for clip in store.clips:
        media = store.media(clip)
        assert not media.reasons and len(media.jpegs) == 5
        peak_hz[clip.start] = np.abs(np.fft.rfft(media.audio[1000:7000])).argmax() * 16000 / 6000
    assert abs(peak_hz[0] - 700) < 5 and abs(peak_hz[0.5] - 1500) < 5


def test_names(clips, tmp_path):
    "Very long names, colons, percent signs and bytes that are no UTF-8: each is read, and none ends a run."
    from vat_nb.types import Clip
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import Task

    names = [
        "当" * 80 + ".mp4",
        "12:30.mp4",
        "2024-11-14T22:57:44+02:00.mp4",
        "%03d.mp4",
        os.fsdecode("高兴".encode("gbk") + b".mp4"),
        "[a]*?.mp4",
    ]
    for name in names:
        shutil.copy(clips / "c/happy_train0.mp4", tmp_path / name)
    from vat_nb.data.io import printable

    listing = [Clip(printable(Path(n).stem).replace(":", "_"), str(tmp_path / n), "train") for n in names]
    ledger = preprocess(listing, Task(()), tmp_path / "store", fps=4.0, size=48, processes=1)
    assert set(ledger["status"]) == {"ok"} and len(open_store(tmp_path / "store").usable()) == len(names)
    assert all(len(open_store(tmp_path / "store").media(c).jpegs) == 4 for c in open_store(tmp_path / "store").clips)


def test_predict(clips, tmp_path, monkeypatch, capsys):
    "A folder, a pattern, the home folder, an address, a generator, nothing; odd names; one bad file among good ones."
    from vat_nb.sizes import ModelConfig, build_vat
    from vat_nb.runs.recognizer import Recognizer
    from vat_nb.data.validation import Task
    from vat_nb.training.config import Recipe

    recipe = Recipe(model_size="mini", image_size=48, fps=10.0, num_frames=8, face_detector=None)
    model = Recognizer(build_vat(ModelConfig("mini", 48, 10.0, 3, 0)), Task(CLASSES), recipe)
    assert len(model.predict(clips / "c")) == 18 and set(model.predict(str(clips / "c"))["status"]) == {"ok"}
    assert len(model.predict(str(clips / "c/happy_*.mp4"))) == 6
    monkeypatch.setenv("HOME", str(clips))
    assert model.predict("~/c/sad_test5.mp4")["status"].tolist() == ["ok"]
    assert model.predict(["https://example.org/a.mp4"])["reason"].tolist() == ["ADDRESS"]
    assert (
        list(model.predict([]).columns[:3]) == ["path", "status", "reason"] and len(model.predict(p for p in ())) == 0
    )
    monkeypatch.chdir(tmp_path)
    odd = ["12:30.mp4", "%03d.mp4", os.fsdecode(b"\xb8\xdf.mp4")]
    for name in odd:
        shutil.copy(clips / "c/happy_test4.mp4", tmp_path / name)
    (tmp_path / "page.mp4").write_text("<html>" * 50)
    rows = model.predict(name for name in [*odd, "page.mp4", "gone.mp4"])
    assert rows["status"].tolist() == ["ok"] * 3 + ["failed"] * 2 and rows["reason"].tolist()[3:] == [
        "NOT_MEDIA",
        "MISSING",
    ]
    assert "%B8%DF.mp4" in rows["path"][2]
    assert "grep" not in "".join(capsys.readouterr()), "a hint at a file that is already deleted"


def test_locks_and_cores(tmp_path, monkeypatch):
    "A share without locks is warned of; where one core is allowed, one process works."
    import errno
    import filelock
    from vat_nb.data.io import available_cores, hold_lock

    def none(self, *_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", none)
    with warnings.catch_warnings(record=True) as message:
        warnings.simplefilter("always")
        with hold_lock(tmp_path / "lock"):
            pass
    assert "knows no locks" in str(message[0].message)
    one = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from vat_nb.data.io import available_cores; print(available_cores())"
    )
    if hasattr(os, "sched_setaffinity"):
        assert subprocess.run(
            [sys.executable, "-c", one], capture_output=True, text=True, cwd=PROJECT, check=True
        ).stdout.split() == ["1"]
    assert available_cores() >= 1


def test_blanks_in_what_make_is_given():
    for p, out in (
        ('-p output_dir "/x/my out" -p epochs 3', "/x/my out"),
        ("-p epochs 3", "runs/demo"),
        ("-p epochs 3 -p output_dir /y/z", "/y/z"),
    ):
        message = subprocess.run(
            ["make", "-n", "train", f"P={p}"], cwd=PROJECT, capture_output=True, text=True, check=True
        ).stdout
        assert f'"{out}/train.ipynb"' in message and f'mkdir -p "{out}"' in message


def test_a_store_tells_that_labels_changed(clips, tmp_path, capsys):
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.label_record import labels_digest
    from vat_nb.data.validation import build_clips
    import json

    table = listed(clips)
    for labels in (table, table.assign(emotion=table["emotion"].replace(dict(happy="sad")))):
        index, _ = index_of(write(clips, labels))
        preprocess(build_clips(index), index.task, tmp_path, fps=4.0, size=48, processes=1)
        assert json.loads((tmp_path / "settings.json").read_text())["labels"] == labels_digest(
            open_store(tmp_path).clips
        )
    assert "the labels of 6 clips changed (happy -> sad 6)" in capsys.readouterr().out
    write(clips, table)


def test_a_store_that_was_cut_off_is_finished(clips, tmp_path):
    "Killed between its two tables: the next run writes both, and no dead end is left."
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips

    index, _ = index_of(write(clips, listed(clips)))
    again = lambda: preprocess(build_clips(index), index.task, tmp_path, fps=4.0, size=48, processes=1)
    again()
    (tmp_path / "settings.json").unlink()
    again()
    assert len(open_store(tmp_path).usable()) == 18


def test_sound_of_another_place_is_not_mixed_in(clips, tmp_path):
    "A file of the same name elsewhere, such as the audio that a store exports, is no audio of the video."
    import soundfile
    from vat_nb.data.datasets import cheavd2
    from vat_nb.data.validation import build_clips
    from vat_nb.data.media_files import named_files

    for name in ("film/train/a.mp4", "store/audio/a.wav", "other/a.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(clips / "c/happy_train0.mp4", tmp_path / "film/train/a.mp4")
    for name in ("store/audio/a.wav", "other/a.wav"):
        soundfile.write(tmp_path / name, np.zeros(16000), 16000)
    (tmp_path / "film/train/list.csv").write_text("name,emotion\na,happy\n")
    assert [(Path(c.path).name, c.audio) for c in build_clips(cheavd2(tmp_path))] == [("a.mp4", None)]
    assert len(named_files(tmp_path)) == 3 and not any(files.audio for files in named_files(tmp_path))


def test_an_archive_from_a_chinese_windows(clips, tmp_path):
    "File names in GBK bytes, in a data set's own layout: read, under a printable name, and no clip ends the run."
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import validate_dataset, build_clips
    from vat_nb.data.datasets import mer23

    (tmp_path / "train").mkdir()
    shutil.copy(clips / "c/happy_train0.mp4", tmp_path / "train" / os.fsdecode("高兴".encode("gbk") + b".mp4"))
    shutil.copy(clips / "c/sad_train0.mp4", tmp_path / "train/sad.mp4")
    (tmp_path / "train-label.csv").write_text("name,discrete\nsad,sad\n")
    index = mer23(tmp_path)
    validate_dataset(index)
    ledger = preprocess(build_clips(index), index.task, tmp_path / "store", fps=4.0, size=48, processes=1)
    assert ledger["id"].tolist() == ["%B8%DF%D0%CB", "sad"] and set(ledger["status"]) == {"ok"}
    assert len(open_store(tmp_path / "store").usable()) == 2
