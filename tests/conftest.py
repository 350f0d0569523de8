"Shared by the tests: where the project lies, where real clips lie, a small data set, a run on it, and warm kernels."

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from browser import lab  # noqa: F401
from filelock import FileLock

PROJECT = Path(__file__).resolve().parents[1]
WARM = Path(__file__).with_name("warm.py")
RELEASE = "R&D videos [1]"  # a name that shells and patterns stumble over


@pytest.fixture(scope="session")
def javased():
    "Java-SED, 144 real clips; tests that need them skip where they are not."
    folder = PROJECT.parent / "shared" / "javased"
    if not folder.is_dir():
        pytest.skip("the real clips of Java-SED are not on this machine")
    return folder


def write_noise(folder, clips):
    "A store of clips of noise, of a second each, that needs no video: one in four in test1, the others in train."
    import numpy as np
    import simplejpeg
    from vat_nb.types import Clip
    from vat_nb.data.streams import DecodedClip
    from vat_nb.data.clip_files import save_clip
    from vat_nb.data.ledger import LedgerRow, append_rows
    from vat_nb.data.store import StoreSettings, write_clips
    from vat_nb.data.validation import MER23

    rng = np.random.default_rng(0)
    made = [
        Clip(
            f"clip{i:02d}",
            f"clip{i:02d}.mp4",
            "train" if i % 4 else "test1",
            MER23.classes[1 + i % 3],
            (0.5,),
            f"p{i % 5}",
        )
        for i in range(clips)
    ]
    for c in made:
        jpegs = [simplejpeg.encode_jpeg(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)) for _ in range(10)]
        audio = rng.integers(-9999, 9999, 16000).astype(np.int16)
        decoded = DecodedClip(jpegs, np.arange(10) / 10 + 0.05, audio, 1.0, (), "")
        save_clip(folder / "clips" / f"{c.id}.safetensors", decoded)
    counts = dict(duration=1.0, frames=10, samples=16000)
    append_rows(folder, [LedgerRow(c.id, split=c.split, **counts) for c in made])
    write_clips(folder, made, MER23, StoreSettings(fps=10.0, size=64, quality=90, faces=None))
    return folder


def modified_ns(path):
    "When a file was last written, 0 where it does not exist: a checkpoint is away for a moment between two renames."
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def keep_stream(path, copy, kind):
    "Copy a clip's video or its audio alone, as it is encoded."
    import av

    with av.open(str(path)) as old, av.open(str(copy), "w") as new:
        chosen = next(stream for stream in old.streams if stream.type == kind)
        added = new.add_stream_from_template(chosen)
        for packet in old.demux(chosen):
            if packet.dts is None:
                continue
            packet.stream = added
            new.mux(packet)


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    "Forty clips of the demo in MER2023's layout: all four splits."
    from vat_nb.data.demo_clips import plan_demo
    from vat_nb.data.demo_data import write_demo

    plans = plan_demo(sizes=dict(train=24, test1=6, test2=4, test3=6), people=dict(train=4, test1=2, test2=1, test3=2))
    return (
        once(tmp_path_factory, "dataset", lambda folder: write_demo(folder / RELEASE, processes=0, plans=plans))
        / RELEASE
    )


def once(tmp_path_factory, name, make):
    "What one process of the tests makes and all of them use."
    own = tmp_path_factory.getbasetemp()
    return once_in((own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / name, make)


def once_in(folder, make):
    "The same, in a folder that all processes of the tests agree on."
    with FileLock(f"{folder}.lock"):
        if not (folder / "made").exists():
            make(folder)
            (folder / "made").touch()
    return folder


@functools.cache
def warm_server():
    "Socket of a process that has imported the package, and is forked for whoever asks: see warm.py. One for all tests."
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"{os.getpid()}-{time.time_ns()}")
    tests = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()

    def start(folder):
        folder.mkdir()
        server = subprocess.Popen([sys.executable, WARM, "serve", folder / "socket", str(tests)], cwd=PROJECT)
        while not (folder / "socket").exists():
            assert server.poll() is None, "the warm server ended"
            time.sleep(0.1)

    return once_in(Path(tempfile.gettempdir(), f"warm-{run}"), start) / "socket"


@functools.cache
def warm_kernel():
    "Name of a kernel that begins with the package imported, which saves each notebook the seconds of its imports."
    command = [sys.executable, str(WARM), "kernel", str(warm_server()), "{connection_file}"]
    spec = dict(argv=command, display_name="warm", language="python")
    folder = warm_server().parent / "kernels/warm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kernel.json").write_text(json.dumps(spec))
    os.environ["JUPYTER_PATH"] = str(warm_server().parent)
    return "warm"


def warm_python(*arguments):
    "What `python` with these arguments does, in a process that begins with the package imported."
    return [sys.executable, str(WARM), "run", str(warm_server()), *map(str, arguments)]


@pytest.fixture(scope="session")
def demo_run(small_dataset, tmp_path_factory):
    "The folder of a short run on the small data set, as the training notebook leaves it."

    def train(folder):
        folder.mkdir()
        settings = dict(
            dataset="demo",
            layout="mer23",
            synthetic=False,
            data_dir=small_dataset,
            store_dir=folder / "store",
            output_dir=folder / "runs/demo",
            num_frames=10,
            batch_size=8,
            pretrain_epochs=2,
            epochs=2,
            snapshot_clips=12,
        )
        command = [sys.executable, "-m", "papermill", "nbs/train.ipynb", folder / "train.ipynb", "--kernel", "python3"]
        subprocess.run(
            [*command, *(x for k, v in settings.items() for x in ("-p", k, str(v)))],
            cwd=PROJECT,
            check=True,
            capture_output=True,
        )

    return once(tmp_path_factory, "demo_run", train) / "runs/demo"
