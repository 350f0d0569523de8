"Two real processes train as one would with the whole batch; their state is the same; stopped, they go on."

import json
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import torch
from conftest import modified_ns, warm_python
from vat_nb.training.checkpoint import load_tensors

TRAIN = """
import json, os, sys, torch
from functools import partial
from pathlib import Path
from torch.utils.data import DataLoader
from vat_nb.augmentation import Augment
from vat_nb.training.checkpoint import Checkpoints, save_tensors
from vat_nb.types import Batch, lengths_mask
from vat_nb.data.windows import WindowSampler
from vat_nb.sizes import ModelConfig, build_vat
from vat_nb.distributed import process_count, process_rank
from vat_nb.pseudo_labels import FlexMatchThresholds
from vat_nb.supervision import UncertaintyWeighting
from vat_nb.finetuning import Finetune
from vat_nb.pretraining import Pretrain, PretrainWeights
from vat_nb.optimizer import OptimConfig
from vat_nb.training.accelerator import make_accelerator
from vat_nb.training.fit import fit

def clips(n):
    "Clips of different lengths: some without audio, some without a label, some the same clip."
    torch.manual_seed(7)
    video, audio = (torch.rand(n, 4, 3, 32, 32) * 255).to(torch.uint8), (torch.randn(n, 4800) * 3000).to(torch.int16)
    audio_mask = lengths_mask(torch.randint(1600, 4800, (n,)), 4800)
    audio_mask[3] = False
    y, t = torch.arange(n) % 6, torch.randn(n, 1)
    y[::4], t[::5] = -100, torch.nan
    video_mask = lengths_mask(torch.randint(1, 5, (n,)), 4)
    return Batch(video, video_mask, audio, audio_mask, y, t, torch.arange(n) // 2 if repeat else torch.arange(n))

def fill(objective):
    "fp64, and so many vectors in the queue that they matter."
    objective.double()
    if hasattr(objective, "queue"):
        width = objective.queue.video_embed.shape[1]
        draw = lambda: torch.nn.functional.normalize(torch.randn(9, width, dtype=torch.float64), dim=1)
        objective.queue.enqueue(draw(), draw(), torch.arange(9) + 100)
    return objective

class Rows(torch.utils.data.Dataset):
    def __getitem__(self, item): return item[0]  # a clip's row

out, size, accumulate, draws, repeat, keys, spread = Path(sys.argv[1]), *map(int, sys.argv[2:5]), *sys.argv[5:]
(out / f"process{os.environ.get('RANK', 0)}.pid").write_text(str(os.getpid()))
repeat = repeat == "repeat"
torch.set_num_threads(1)
augment = Augment(0.5, 0.1, 0.5) if draws else Augment()
accelerator = make_accelerator("cpu", 1)
n = 24 if draws else 21  # 24 are the same batches in both ways, an uneven last one is shared differently
data = clips(n)
def loader():
    sampler = WindowSampler([4] * n, 4, shuffle=True, seed=3)
    return DataLoader(Rows(), size, sampler=sampler, collate_fn=lambda items: data.select(torch.tensor(items)))
spec_augment = 1.0 if draws else 0.0
make = lambda: build_vat(ModelConfig("tiny", 32, 12.5, 6, 1, spec_augment=spec_augment))
pre = fill(Pretrain(make(), 30, PretrainWeights(1, draws, draws), augment, keys))
tune = fill(
    Finetune(
        make(),
        UncertaintyWeighting(),
        augment=augment,
        thresholds=FlexMatchThresholds(6, 0.2),
        mixup=0.4 if draws else 0.0,
    )
)
if not draws: pre, tune = (x.eval() for x in (pre, tune))
if not draws:  # no dropout either
    for m in [*pre.modules(), *tune.modules()]:
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
rows = {}
for name, objective in (("pre", pre), ("tune", tune)):
    optim = OptimConfig(
        1e-3, teacher_momentum=0.9, grad_accumulation=accumulate, shard_encoders=spread == "spread"
    )
    checkpoint = out / f"{name}.safetensors"
    minutes = 0 if out.name == "run" else 60  # a run that is stopped saves after each step
    logs = fit(objective, loader(), accelerator, 2, optim, checkpoint=checkpoint, save_minutes=minutes)
    rows[name] = [log.flat() for log in logs]
state = {f"{n}.{k}": v for n, o in (("pre", pre), ("tune", tune)) for k, v in o.state_dict().items()}
save_tensors(out / f"end{process_rank()}.safetensors", state, rows)
accelerator.end_training()  # gloo's threads, left alone, can crash when Python ends
"""

LAUNCH = """
repeat = False
def train():
    torch.set_num_threads(1)
    data, accelerator = clips(8), make_accelerator("cpu", 1)
    rows_of = lambda items: data.select(torch.tensor(items))
    loader = DataLoader(Rows(), 2, sampler=WindowSampler([4] * 8, 4), collate_fn=rows_of)
    log = fit(Pretrain(build_vat(ModelConfig("tiny", 32, 12.5, 6, 1)), 9), loader, accelerator, 1)[0]
    said = [process_rank(), process_count(), log.losses["loss"]]
    Path(sys.argv[1], f"process {process_rank()}.json").write_text(json.dumps(said))
    accelerator.end_training()

from accelerate import notebook_launcher
notebook_launcher(train, num_processes=2)
"""


def command(folder, name, processes, size, accumulate=1, draws=0, repeat="repeat", keys="teacher", spread="whole"):
    "What trains in a folder of its own; processes that have imported the package already."
    (folder / name).mkdir(exist_ok=True)
    (folder / "train.py").write_text(TRAIN)
    one = warm_python(folder / "train.py", folder / name, size, accumulate, draws, repeat, keys, spread)
    several = ("--standalone", "--nproc-per-node", processes, "--no-python", *one)
    return one if processes == 1 else warm_python("-m", "torch.distributed.run", *several)


def ended(folder, name, processes):
    "What each process ended with, and the rows of both stages."
    return [load_tensors(folder / name / f"end{r}.safetensors") for r in range(processes)]


def train(folder, name, processes, *more, **how):
    done = subprocess.run(command(folder, name, processes, *more, **how), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return ended(folder, name, processes)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    "Two processes with batches of four."
    first, second = train(tmp_path_factory.mktemp("two"), "two", 2, 4)
    same(first, second, 0)
    return first


def same(ours, theirs, eps):
    "Weights, teachers, queues, blends and thresholds, and the losses of every epoch."
    (tensors, rows), (others, other_rows) = ours, theirs
    assert set(tensors) == set(others)
    loose = (
        100 * eps
    )  # Adam divides by the size of the gradient, and rounding counts for more where it is next to nothing
    for k, v in tensors.items():
        torch.testing.assert_close(v, others[k], atol=loose, rtol=loose, msg=lambda m: f"{k}: {m}")
    for stage in rows:
        for row, other in zip(rows[stage], other_rows[stage], strict=True):
            for k in set(row) - {"seconds", "clips_per_s"}:
                assert row[k] == pytest.approx(other[k], abs=eps, rel=eps, nan_ok=True), (stage, k)


def test_two_processes_are_one_with_the_whole_batch(two, tmp_path):
    "Nothing is drawn: one process with twice the batch does the same, with repeats, gaps and an uneven last batch."
    same(two, train(tmp_path, "one", 1, 8)[0], 1e-9)


def test_gradients_flow_between_processes(tmp_path):
    "As in CLIP: the student's vectors of both processes are compared with each other."
    first, second = train(tmp_path, "two", 2, 4, keys="student")
    same(first, second, 0)
    same(first, train(tmp_path, "one", 1, 8, keys="student")[0], 1e-9)


def test_two_processes_draw_as_two_batches_of_a_step_do(tmp_path):
    "Augmentation, masks, dropout, mixing, wrong partners: drawn as in one process that takes two batches a step."
    first, second = train(tmp_path, "two", 2, 4, draws=1)
    same(first, second, 0)
    same(first, train(tmp_path, "one", 1, 4, accumulate=2, draws=1)[0], 1e-9)


def stop(folder, number):
    "Start two processes, and stop or kill them when they have saved."
    started, file = command(folder, "run", 2, 4), folder / "run/pre.safetensors"
    before = modified_ns(file)
    run = psutil.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while modified_ns(file) in (before, 0):
        time.sleep(0.01)
    workers = [psutil.Process(int(p.read_text())) for p in file.parent.glob("process*.pid")]
    for process in [*workers, run] if number == signal.SIGKILL else [run]:
        process.send_signal(number)
    run.wait()
    psutil.wait_procs(workers, timeout=60)
    assert not (folder / "run/end0.safetensors").exists(), "it was stopped too late to test anything"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    "A run that the scheduler ended: it saved and went."
    folder = tmp_path_factory.mktemp("stopped")
    stop(folder, signal.SIGTERM)
    return folder / "run"


def test_two_processes_that_were_stopped_and_killed_go_on(two, stopped, tmp_path):
    "In the end all numbers are those of the run that nobody touched."
    shutil.copytree(stopped, tmp_path / "run")
    stop(tmp_path, signal.SIGKILL)
    same(train(tmp_path, "run", 2, 4)[0], two, 0)


def test_spread_encoders_learn_what_whole_ones_do(two, stopped, tmp_path):
    "FSDP2, half of every block each: takes up a run begun whole, and ends with its weights, in the checkpoint too."
    shutil.copytree(stopped, tmp_path / "run")
    first, second = train(tmp_path, "run", 2, 4, spread="spread")
    same(first, second, 0)
    same(first, two, 1e-9)
    saved = {
        k.removeprefix("objective."): v
        for k, v in load_tensors(tmp_path / "run/tune.safetensors")[0].items()
        if k.startswith("objective.")
    }
    assert all(torch.equal(v, first[0][f"tune.{k}"]) for k, v in saved.items())


def test_launched_from_a_notebook(tmp_path):
    "accelerate's notebook_launcher forks; `fit` is the same there."
    (tmp_path / "launch.py").write_text(TRAIN.split("out, size")[0] + LAUNCH)
    done = subprocess.run(warm_python(tmp_path / "launch.py", tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    # each process writes a file of its own: lines of two processes in one pipe can run into each other
    (rank, processes, loss), other = (json.loads(p.read_text()) for p in sorted(tmp_path.glob("process *.json")))
    assert (rank, processes) == (0, 2) and other == [1, 2, loss]
