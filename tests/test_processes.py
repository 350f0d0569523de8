"Two real processes train as one would with the whole batch; their state is the same; stopped, they go on."
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from test_faults import papermill
from vat_nb.checkpoint import load_tensors

TRAIN = """
import json, sys, torch
from functools import partial
from pathlib import Path
from torch.utils.data import DataLoader
from vat_nb.augment import Augment
from vat_nb.checkpoint import Checkpoints, save_tensors
from vat_nb.core import Batch, lengths_mask
from vat_nb.loading import Windows
from vat_nb.model import build_vat
from vat_nb.processes import process_count, process_rank
from vat_nb.pseudo import Confidence
from vat_nb.supervise import UncertaintyBlend
from vat_nb.training import *

def clips(n):
    "Clips of different lengths: some without sound, some without a label, some the same clip."
    torch.manual_seed(7)
    video, audio = (torch.rand(n, 4, 3, 32, 32) * 255).to(torch.uint8), (torch.randn(n, 4800) * 3000).to(torch.int16)
    amask = lengths_mask(torch.randint(1600, 4800, (n,)), 4800)
    amask[3] = False
    y, t = torch.arange(n) % 6, torch.randn(n, 1)
    y[::4], t[::5] = -100, torch.nan
    return Batch(video, lengths_mask(torch.randint(1, 5, (n,)), 4), audio, amask, y, t, torch.arange(n) // 2 if repeat else torch.arange(n))

def fill(objective):
    "fp64, and so many vectors in the queue that they matter."
    objective.double()
    if hasattr(objective, "queue"): objective.queue.enqueue(*(torch.nn.functional.normalize(torch.randn(9, objective.queue.v.shape[1], dtype=torch.float64), dim=1) for _ in "va"), torch.arange(9) + 100)
    return objective

out, size, accumulate, draws, repeat, keys = Path(sys.argv[1]), *map(int, sys.argv[2:5]), *sys.argv[5:]
repeat = repeat == "repeat"
torch.set_num_threads(1)
augment = Augment(0.5, 0.5) if draws else Augment()
accelerator = make_accelerator("cpu", 1)
n = 24 if draws else 21  # 24 are the same batches in both ways, an uneven last one is shared differently
data = clips(n)
class Rows(torch.utils.data.Dataset):
    def __getitem__(self, item): return item[0]  # a clip's row
def loader(): return DataLoader(Rows(), size, sampler=Windows([4] * n, 4, shuffle=True, seed=3), collate_fn=lambda items: data.keep(torch.tensor(items)))
masking = 1.0 if draws else 0.0
make = lambda: build_vat("tiny", 32, 12.5, 6, 1, masking=masking)
pre = fill(Pretrain(make(), 30, Goals(1, draws, draws), augment, keys))
tune = fill(Finetune(make(), UncertaintyBlend(), augment=augment, confidence=Confidence(6, 0.2), mixup=0.4 if draws else 0.0))
if not draws: pre, tune = (x.eval() for x in (pre, tune))
if not draws:  # no dropout either
    for m in [*pre.modules(), *tune.modules()]:
        if isinstance(m, torch.nn.Dropout): m.p = 0.0
rows = {}
for name, objective in (("pre", pre), ("tune", tune)):
    rows[name] = fit(objective, loader(), accelerator, 2, Schedule(1e-3, momentum=0.9, accumulate=accumulate), checkpoint=out / f"{name}.safetensors")
save_tensors(out / f"end{process_rank()}.safetensors", {f"{n}.{k}": v for n, o in (("pre", pre), ("tune", tune)) for k, v in o.state_dict().items()}, rows)
"""


def start(tmp_path, name, processes, size, accumulate=1, draws=0, repeat="once", keys="teacher"):
    "Train in a folder of its own; what each process ended with, and the rows of both stages."
    out = tmp_path / name
    out.mkdir()
    (tmp_path / "train.py").write_text(TRAIN)
    command = [sys.executable, *(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)] if processes > 1 else []), tmp_path / "train.py"]
    done = subprocess.run([*command, out, *map(str, (size, accumulate, draws, repeat, keys))], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:200] + done.stderr[-6000:]
    return [load_tensors(out / f"end{r}.safetensors") for r in range(processes)]


def same(ours, theirs, eps):
    "Weights, teachers, queues, blends and thresholds, and the losses of every epoch."
    (tensors, rows), (others, other_rows) = ours, theirs
    assert set(tensors) == set(others)
    loose = 100 * eps  # Adam divides by the size of the gradient, and rounding counts for more where it is next to nothing
    for k, v in tensors.items(): torch.testing.assert_close(v, others[k], atol=loose, rtol=loose, msg=lambda m: f"{k}: {m}")
    for stage in rows:
        for row, other in zip(rows[stage], other_rows[stage], strict=True):
            for k in set(row) - {"seconds", "clips per second"}: assert row[k] == pytest.approx(other[k], abs=eps, rel=eps, nan_ok=True), (stage, k)


@pytest.mark.parametrize("repeat, keys", [("repeat", "teacher"), ("once", "student")])
def test_two_processes_are_one_with_the_whole_batch(tmp_path, repeat, keys):
    "Nothing is drawn here, so one process with twice the batch must do the same, uneven last batch and clips without sound or label included."
    first, second = start(tmp_path, "two", 2, 4, repeat=repeat, keys=keys)
    same(first, second, 0)
    same(first, start(tmp_path, "one", 1, 8, repeat=repeat, keys=keys)[0], 1e-9)


def test_two_processes_draw_as_two_batches_of_a_step_do(tmp_path):
    "Augmentation, masks, dropout, mixing and wrong partners are drawn: the same in two processes as in one that takes two batches a step."
    first, second = start(tmp_path, "two", 2, 4, draws=1)
    same(first, second, 0)
    same(first, start(tmp_path, "one", 1, 4, accumulate=2, draws=1)[0], 1e-9)
