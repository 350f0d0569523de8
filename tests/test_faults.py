"What must not stop the work: a killed preprocessing run, a killed training run, bad input."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROJECT, modified_ns, warm_kernel, warm_python

PREPROCESS = """
import sys
from vat_nb.data.preprocessing import preprocess
from vat_nb.data.validation import build_clips
from vat_nb.data.datasets import mer23
if __name__ == "__main__":
    index = mer23(sys.argv[1])
    preprocess(build_clips(index), index.task, sys.argv[2], fps=10.0, size=64, processes=int(sys.argv[3]))
"""


def test_killed_preprocessing_goes_on(small_dataset, tmp_path):
    from vat_nb.data.ledger import read_ledger
    from vat_nb.data.store import open_store

    script = tmp_path / "run.py"
    script.write_text(PREPROCESS)
    store = tmp_path / "store"
    run = subprocess.Popen(
        [sys.executable, script, small_dataset, store, "1"], start_new_session=True, stderr=subprocess.DEVNULL
    )
    while run.poll() is None and len(read_ledger(store)) < 5:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = {p: p.stat().st_mtime_ns for p in (store / "clips").iterdir() if not p.name.startswith(".")}
    ids = set(read_ledger(store)["id"])
    assert 5 <= len(ids) < 40
    subprocess.run(warm_python(script, small_dataset, store, "2"), check=True, stderr=subprocess.DEVNULL)
    ledger = read_ledger(store)
    assert len(ledger) == 40 and set(ledger["status"]) == {"ok"} and len(open_store(store).usable()) == 40
    assert all(p.stat().st_mtime_ns == t for p, t in done.items() if p.stem in ids), "a finished clip was done again"


def papermill(tmp_path, *parameters, name="train", check=None):
    "Run a notebook in a kernel of its own; returns exit code, what was printed, and the results folder."
    from papermill import PapermillExecutionError, execute_notebook
    from papermill.cli import _resolve_type  # as `papermill -p` reads a value; `demo_run` calls the command itself

    assignments = dict(p.split("=", 1) for p in (*parameters, f"output_dir={tmp_path / 'out'}"))
    source, made = PROJECT / f"nbs/{name}.ipynb", tmp_path / f"{name}.ipynb"
    try:
        execute_notebook(
            source,
            made,
            {k: _resolve_type(v) for k, v in assignments.items()},
            kernel_name=warm_kernel(),
            progress_bar=False,
            cwd=PROJECT,
        )
        code, message = 0, ""
    except PapermillExecutionError as e:
        code, message = 1, str(e)
    assert check is None or (code == 0) == check, message[-3000:]
    return code, message, tmp_path / "out"


@pytest.mark.parametrize(
    "wrong, says",
    [
        ("datset=mer23", "did you mean 'dataset'"),
        ("dataset=mer32", "did you mean 'mer23'"),
        ("epochs=ten", "epochs needs a value like"),
        ("model_size=smal", "did you mean 'small'"),
    ],
)
def test_wrong_parameters_stop_at_once(tmp_path, wrong, says):
    code, printed, out = papermill(tmp_path, wrong)
    assert code != 0 and "ParameterError" in printed and says in printed and not out.exists()


def test_missing_dataset_says_what_to_do(tmp_path):
    code, printed, _ = papermill(
        tmp_path, "dataset=mer23", f"data_dir={tmp_path / 'nothing'}", f"store_dir={tmp_path / 'store'}"
    )
    assert code != 0 and "found no clips in" in printed and "EULA" in printed and "Try the demo" in printed


FAST = (
    "encoders=none",
    "pretrain_epochs=1",
    "epochs=2",
    "image_size=32",
    "num_frames=10",
    "fps=5.0",
    "model_size=tiny",
    "device=cpu",
    "num_workers=0",
    "max_failed=0.2",
)


def test_the_whole_road(small_dataset, tmp_path):
    "A data set with a corrupt video: trained, scored, a row for every clip; a second run goes on from the end."
    import shutil

    import pandas as pd

    root = shutil.copytree(small_dataset, tmp_path / "my videos")
    spoilt, blank = sorted((root / "test1").iterdir())[0], sorted((root / "train").iterdir())[0]
    spoilt.write_bytes(spoilt.read_bytes()[:400])
    blank.write_bytes(b"")
    assignments = ("dataset=mer23", f"data_dir={root}", f"store_dir={tmp_path / 'store'}", *FAST)
    _, _, out = papermill(tmp_path, *assignments, check=True)
    result = json.loads((out / "metrics.json").read_text())
    assert result["dataset"] == "mer23" and set(result["splits"]) == {"test1", "test2", "test3"}
    assert {"f1", "mse", "combined", "accuracy", "uar"} <= set(result["splits"]["test1"]) and set(result["recall"]) == {
        "before",
        "after",
        "chance",
    }
    for split in ("test1", "test2", "test3"):
        rows = pd.read_csv(out / f"submission_{split}.csv", dtype=str, keep_default_na=False)
        assert sorted(rows["name"]) == sorted(p.stem for p in (root / split).iterdir()), (
            "one row for every clip asked for"
        )
        assert list(rows) == ["name", "discrete", "valence"] and rows["discrete"].ne("").all()
    cells = json.loads((tmp_path / "train.ipynb").read_text())["cells"]
    assert sum("image/png" in o.get("data", {}) for c in cells for o in c.get("outputs", [])) >= 9, (
        "the executed notebook must show its figures"
    )
    before = (out / "checkpoint/model.safetensors").read_bytes()
    papermill(tmp_path, *assignments, check=True)
    assert (out / "checkpoint/model.safetensors").read_bytes() == before
    from vat_nb.runs.prepared_clips import build_accelerator, prepare_store
    from vat_nb.runs.splits import split_clips
    from vat_nb.runs.pipeline import finetune, new_model

    from vat_nb.runs.snapshots import open_run

    recipe = open_run(out).recipe.replace(lr=0.5)
    data = prepare_store(recipe)
    split = split_clips(data, recipe)
    model, checkpoint = new_model(recipe, data, split.train), out / "checkpoint/finetune.safetensors"
    with pytest.raises(ValueError, match="lr: 0.0001 then, 0.5 now"):
        finetune(model, data, split, recipe, build_accelerator(recipe), checkpoint)
    assert checkpoint.exists()


def test_preprocess_notebook_writes_store_and_tree(small_dataset, tmp_path):
    store = tmp_path / "made" / "store"
    papermill(
        tmp_path,
        "dataset=mer23",
        f"data_dir={small_dataset}",
        f"store_dir={store}",
        "image_size=32",
        "fps=5.0",
        "export_files=True",
        name="preprocess",
        check=True,
    )
    from vat_nb.data.store import open_store

    made = open_store(store)
    assert len(made.usable()) == 40 and len(list((store.parent / "audio").glob("*.wav"))) == 40
    for clip in made.usable():
        assert [p.name for p in sorted((store.parent / "frames" / clip.id).iterdir())] == [
            f"{i + 1:05d}.jpg" for i in range(made.ledger.loc[clip.id, "frames"])
        ]


def test_unknown_class_names_the_row(small_dataset, tmp_path):
    import shutil

    root = shutil.copytree(small_dataset, tmp_path / "r")
    labels = root / "train-label.csv"
    labels.write_text(labels.read_text().replace("happy", "jolly", 1))
    code, printed, _ = papermill(tmp_path, "dataset=mer23", f"data_dir={root}", f"store_dir={tmp_path / 'store'}")
    assert code != 0 and "unknown class" in printed and "'jolly'" in printed and "train-label.csv:" in printed


TRAIN = """
import os, random, signal, sys, time, torch
from pathlib import Path
from vat_nb.augmentation import Augment
from vat_nb.training.checkpoint import save_tensors
from vat_nb.evaluation.predictions import predict, score
from vat_nb.data.dataloader import make_loader
from vat_nb.sizes import ModelConfig, build_vat
from vat_nb.data.store import open_store
from vat_nb.finetuning import Finetune
from vat_nb.pretraining import Pretrain
from vat_nb.optimizer import OptimConfig
from vat_nb.training.accelerator import make_accelerator
from vat_nb.training.model_selection import Validation
from vat_nb.training.fit import fit

def train(store, out, minutes):
    "Both stages, with a reading process, augmentation, distillation and validation."
    accelerator, augment = make_accelerator("cpu", 3), Augment(0.5, 0.1, 0.5, 0.2)
    model = build_vat(ModelConfig("tiny", 64, 10.0, 6, 1))
    def loader():
        found = make_loader(store, store.usable("train"), 10, 6, True, workers=1)
        found.multiprocessing_context = "fork"  # a spawned process would import torch at each start
        return found
    judge = lambda model: Validation(
        dict(f1=score(predict(model, make_loader(store, store.usable("test1"), 10)), store.task)["f1"]), {}
    )
    kept = dict(checkpoint=out / "run.safetensors", settings=dict(a=1), save_minutes=minutes)
    pretraining = Pretrain(model, queue_size=13, augment=augment)
    logs = fit(pretraining, loader(), accelerator, 3, OptimConfig(1e-3, teacher_momentum=0.9), **kept)
    tuning = Finetune(model, augment=augment, mixup=0.4)
    logs += fit(
        tuning, loader(), accelerator, 3, OptimConfig(1e-3, teacher_momentum=0.9), judge,
        **kept | dict(checkpoint=out / "tune.safetensors"),
    )
    rows = [log.flat() for log in logs]
    measured = {k for row in rows for k in row} - {"seconds", "clips_per_s"}
    rows = torch.tensor([[row.get(k, -1.0) for k in sorted(measured)] for row in rows])
    # the student is tuning's
    state = {f"p.{k}": v for k, v in pretraining.state_dict().items() if not k.startswith("student.")}
    save_tensors(
        out / "end.safetensors", state | {f"t.{k}": v for k, v in tuning.state_dict().items()} | dict(rows=rows), {}
    )

def start(store, out, minutes=0):
    "A process of its own, which need not import torch again."
    out.mkdir(exist_ok=True)
    if pid := os.fork(): return pid
    os.setsid()
    try: train(store, out, minutes)
    except BaseException as e:
        print(repr(e), file=sys.stderr)
        os._exit(e.code if isinstance(e, SystemExit) else 1)
    os._exit(0)

def stamp(out):
    "When each state was last written, 0 for none: between two renames there is no file for a moment."
    times = []
    for name in ("run", "tune", "end"):
        try: times.append((out / f"{name}.safetensors").stat().st_mtime_ns)
        except FileNotFoundError: times.append(0)
    return times

if __name__ == "__main__":
    torch.set_num_threads(1)
    store, there, draw = open_store(sys.argv[1]), Path(sys.argv[2]), random.Random(0)
    assert os.waitpid(start(store, there / "whole"), 0)[1] == 0
    killed = there / "killed"
    for kill in range(10):
        pid, before, states = start(store, killed), stamp(killed), draw.randint(1, 4)
        while states:  # so many states later, and a little
            time.sleep(0.001)
            if stamp(killed) != before: before, states = stamp(killed), states - 1
        time.sleep(0.1 * draw.random())
        os.killpg(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL and not stamp(killed)[2], (
            f"kill {kill} came too late to test anything"
        )
    assert os.waitpid(start(store, killed), 0)[1] == 0
"""


@pytest.fixture(scope="module")
def small_store(small_dataset, tmp_path_factory):
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips
    from vat_nb.data.datasets import mer23

    folder, index = tmp_path_factory.mktemp("store"), mer23(small_dataset)
    preprocess(build_clips(index), index.task, folder, fps=10.0, size=64, processes=1)
    return folder


def test_a_training_killed_ten_times_ends_with_the_same_weights(small_store, tmp_path):
    "SIGKILL at random moments: in an epoch, while a state is saved, between the stages."
    from vat_nb.training.checkpoint import load_tensors

    (tmp_path / "train.py").write_text(TRAIN)
    subprocess.run(warm_python(tmp_path / "train.py", small_store, tmp_path), check=True)
    whole, killed = (load_tensors(tmp_path / f"{name}/end.safetensors")[0] for name in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for k in whole:
        assert (whole[k] == killed[k]).all(), k


def test_a_training_on_two_threads_repeats_to_the_bit(small_store):
    "Partners are drawn several times each, and two threads would add up their gradients in any order."
    import torch
    from vat_nb.data.dataloader import make_loader
    from vat_nb.data.store import open_store
    from vat_nb.pretraining import Pretrain
    from vat_nb.sizes import ModelConfig, build_vat
    from vat_nb.training.accelerator import make_accelerator
    from vat_nb.training.fit import fit

    store, threads, states = open_store(small_store), torch.get_num_threads(), []
    torch.set_num_threads(2)
    for _ in range(2):
        accelerator = make_accelerator("cpu", 3)
        objective = Pretrain(build_vat(ModelConfig("tiny", 64, 10.0, 6, 1)), queue_size=13)
        fit(objective, make_loader(store, store.usable("train"), 16, 6, True), accelerator, epochs=1)
        states.append(objective.state_dict())
    torch.set_num_threads(threads)
    assert [k for k, v in states[0].items() if not torch.equal(v, states[1][k])] == []


def test_a_warned_training_saves_and_goes_on_and_a_stopped_one_ends_after_its_step(small_store, tmp_path):
    from vat_nb.training.checkpoint import load_tensors

    (tmp_path / "train.py").write_text(
        TRAIN.split("if __name__")[0] + "train(open_store(sys.argv[1]), Path(sys.argv[2]), 60)"
    )
    run = subprocess.Popen(warm_python(tmp_path / "train.py", small_store, tmp_path), stderr=subprocess.PIPE, text=True)
    path = tmp_path / "run.safetensors"
    place = lambda: (lambda about: (len(about["history"]), about["state"]["batches_seen"]))(load_tensors(path)[1])
    while run.poll() is None and not modified_ns(path):
        time.sleep(0.01)  # the first epoch is over
    before = modified_ns(path)
    run.send_signal(signal.SIGUSR1)
    while run.poll() is None and modified_ns(path) in (before, 0):
        time.sleep(0.01)
    warned = place()
    run.send_signal(signal.SIGTERM)
    message = run.communicate()[1]
    assert run.returncode == 128 + signal.SIGTERM, message[-2000:]
    assert place() >= warned >= (1, 0)


SLOW = """
import sys
from pathlib import Path
from vat_nb.types import Clip
from vat_nb.data.preprocessing import preprocess
from vat_nb.data.validation import Task
if __name__ == "__main__":
    clips = [Clip(p.stem, str(p), "train") for p in sorted(Path(sys.argv[1]).iterdir())]
    preprocess(clips, Task(()), sys.argv[2], fps=4.0, size=64, processes=2, timeout_s=float(sys.argv[3]))
"""


def children(pid):
    "Worker processes of a run."
    result = subprocess.run(
        ["ps", "-ww", "-o", "pid=,args=", "--ppid", str(pid)], capture_output=True, text=True
    ).stdout
    return [int(line.split()[0]) for line in result.splitlines() if "spawn_main" in line]


def reads_from(pid, folder):
    "Whether a process has a file of a folder open."
    import psutil

    return any(Path(f.path).parent == folder for f in psutil.Process(pid).open_files())


def test_a_stuck_and_a_crashed_decoder_cost_one_clip_each(tmp_path):
    "One worker is stopped in mid-clip, another shot: two rows say so, the run ends, a rerun reads just those two."
    from test_media_faults import AAC, H264, ffmpeg, picture, tone
    from vat_nb.data.ledger import read_ledger

    (tmp_path / "v").mkdir()
    ffmpeg(*picture(8, size="1280x720"), *tone(8), *H264, *AAC, tmp_path / "v" / "0.mp4")
    for i in range(1, 10):
        (tmp_path / "v" / f"{i}.mp4").hardlink_to(tmp_path / "v" / "0.mp4")
    (tmp_path / "run.py").write_text(SLOW)
    command = [sys.executable, tmp_path / "run.py", tmp_path / "v", tmp_path / "store"]
    run = subprocess.Popen([*command, "10"], stderr=subprocess.DEVNULL)
    while run.poll() is None and (len(read_ledger(tmp_path / "store")) < 2 or len(children(run.pid)) < 2):
        time.sleep(0.05)
    stuck, shot = children(run.pid)
    os.kill(stuck, signal.SIGSTOP)
    while not reads_from(stuck, tmp_path / "v"):  # between two clips nothing would be stuck
        os.kill(stuck, signal.SIGCONT)
        time.sleep(0.02)
        os.kill(stuck, signal.SIGSTOP)
    while not reads_from(shot, tmp_path / "v"):
        time.sleep(0.02)
    os.kill(shot, signal.SIGSEGV)
    assert run.wait(120) == 0
    first = read_ledger(tmp_path / "store")
    assert len(first) == 10 and first["reason"].value_counts().to_dict() == {"": 8, "TIMEOUT": 1, "CRASHED": 1}
    times = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store" / "clips").glob("*.safetensors")}
    subprocess.run([*command, "60"], check=True, stderr=subprocess.DEVNULL)
    second = read_ledger(tmp_path / "store")
    assert len(second) == 10 and set(second["status"]) == {"ok"}
    assert len(times) == 8 and all((tmp_path / "store" / "clips" / n).stat().st_mtime_ns == t for n, t in times.items())


def test_two_runs_on_one_store(small_dataset, tmp_path):
    "Started together, they take turns: each clip is read once, and no row is lost."
    from vat_nb.data.ledger import read_ledger
    from vat_nb.data.store import open_store

    (tmp_path / "run.py").write_text(PREPROCESS)
    store = tmp_path / "store"
    runs = [
        subprocess.Popen(
            warm_python(tmp_path / "run.py", small_dataset, store, "1"),
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = ["".join(r.communicate(timeout=300)) for r in runs]
    assert [r.returncode for r in runs] == [0, 0]
    ledger = read_ledger(store)
    assert len(ledger) == 40 and set(ledger["status"]) == {"ok"} and len(open_store(store).usable()) == 40
    assert sum("40 clips: 40 ok" in p for p in printed) == 1, "both did the work"


def test_full_disk(small_dataset, tmp_path, monkeypatch):
    "A small disk, or a failing write where none can be mounted: a message, nothing half-written, a rerun ends well."
    import errno

    import vat_nb.data.preprocessing as preprocess
    import vat_nb.data.clip_files as clip_files
    from vat_nb.data.validation import build_clips
    from vat_nb.data.datasets import mer23

    disk, index = tmp_path / "disk", mer23(small_dataset)
    disk.mkdir()
    mounted = (
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", disk], capture_output=True).returncode == 0
    )
    store = disk / "store"

    def fill(path, raw, flush=False, real=clip_files.write_atomically):
        if Path(path).suffix == ".safetensors" and len(list(store.glob("clips/*"))) >= 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(path, raw, flush)

    try:
        if not mounted:
            monkeypatch.setattr(clip_files, "write_atomically", fill)
        with pytest.raises(OSError, match="is full; what is done is kept") as e:
            preprocess.preprocess(build_clips(index), index.task, store, fps=10.0, size=64, processes=1)
        assert e.value.errno == errno.ENOSPC
        left = {p.name for p in (store / "clips").iterdir()}
        assert 3 < len(left) < 40 and not [n for n in left if n.startswith(".")]
        assert all(clip_files.decode_clip((store / "clips" / n).read_bytes(), n).jpegs for n in left)
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        monkeypatch.undo()
        ledger = preprocess.preprocess(build_clips(index), index.task, store, fps=10.0, size=64, processes=1)
        assert len(ledger) == 40 and set(ledger["status"]) == {"ok"}
    finally:
        if mounted:
            subprocess.run(["umount", disk], check=True)


def test_paths_that_leave_a_manifest_are_refused(tmp_path):
    from vat_nb.data.tables import DatasetError
    from vat_nb.data.validation import validate_dataset
    from vat_nb.data.manifest import manifest

    (tmp_path / "r").mkdir()
    (tmp_path / "secret.mp4").write_bytes(b"x")
    (tmp_path / "r" / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    (tmp_path / "r" / "inside.mp4").write_bytes(b"x")
    (tmp_path / "r" / "good.mp4").symlink_to(tmp_path / "r" / "inside.mp4")
    (tmp_path / "r" / "manifest.csv").write_text(
        f"path,split\ngood.mp4,train\n../secret.mp4,train\nlink.mp4,train\n{tmp_path / 'secret.mp4'},train\n"
    )
    with pytest.raises(DatasetError) as e:
        validate_dataset(manifest(tmp_path / "r"))
    wrong = e.value.report[e.value.report["problem"] == "leaves the folder"]
    assert wrong["source_line"].tolist() == ["manifest.csv:3", "manifest.csv:4", "manifest.csv:5"]


SAVE = """
import sys, torch
from vat_nb.training.checkpoint import save_tensors
for i in range(10**6): save_tensors(sys.argv[1], {"x": torch.full((2_000_000,), float(i))}, dict(i=i))
"""


def test_killed_while_saving_leaves_a_whole_checkpoint(tmp_path):
    from vat_nb.training.checkpoint import load_tensors

    path = tmp_path / "run.safetensors"
    for wait in (0.01, 0.05, 0.1):
        run = subprocess.Popen([sys.executable, "-c", SAVE, path])
        before = modified_ns(path)
        while modified_ns(path) in (before, 0):
            time.sleep(0.01)
        time.sleep(wait)
        run.kill()
        run.wait()
        tensors, about = load_tensors(path)
        assert (tensors["x"] == about["i"]).all() and len(tensors["x"]) == 2_000_000


DASK = """
import sys
from distributed import Client
from vat_nb.data.preprocessing import preprocess
from vat_nb.data.validation import build_clips
from vat_nb.data.datasets import mer23
if __name__ == "__main__":
    index = mer23(sys.argv[1])
    with Client(scheduler_file=sys.argv[3]) as client:
        preprocess(build_clips(index), index.task, sys.argv[2], fps=10.0, size=64, client=client)
"""


def test_a_dask_cluster_that_loses_a_worker_makes_the_same_store(small_dataset, tmp_path):
    from vat_nb.data.ledger import read_ledger
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips
    from vat_nb.data.datasets import mer23

    index, file = mer23(small_dataset), tmp_path / "scheduler.json"
    alone = preprocess(build_clips(index), index.task, tmp_path / "alone", fps=10.0, size=64, processes=1)
    start = lambda *a: subprocess.Popen(
        [sys.executable, "-m", "distributed.cli." + a[0], "--scheduler-file", file, *a[1:]],
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    cluster = [start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")]
    try:
        while not file.exists():
            time.sleep(0.1)
        cluster += [
            start(
                "dask_worker",
                "--nthreads",
                "1",
                "--no-nanny",
                "--no-dashboard",
                "--local-directory",
                tmp_path / f"w{i}",
            )
            for i in range(2)
        ]
        (tmp_path / "run.py").write_text(DASK)
        run = subprocess.Popen(
            warm_python(tmp_path / "run.py", small_dataset, tmp_path / "store", file), stderr=subprocess.DEVNULL
        )
        while run.poll() is None and len(read_ledger(tmp_path / "store")) < 4:
            time.sleep(0.01)
        cluster[1].kill()
        ids = len(read_ledger(tmp_path / "store"))
        assert run.wait(120) == 0 and ids < 40, "the worker was killed too late to test anything"
    finally:
        for p in cluster:
            p.kill()
        for p in cluster:
            p.wait()
    spread = read_ledger(tmp_path / "store")
    assert spread.equals(alone.astype(spread.dtypes.to_dict())) or spread.astype(str).equals(alone.astype(str))
    files = lambda store: {p.name: p.read_bytes() for p in (store / "clips").iterdir()}
    assert files(tmp_path / "store") == files(tmp_path / "alone")
