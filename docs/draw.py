"Pictures that no notebook draws, for `make figures`: what an alignment matrix can look like."

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from vat_nb.types import Clip
from vat_nb.look.alignment_figures import plot_alignment, plot_people
from vat_nb.evaluation.predictions import Predictions, predict
from vat_nb.data.dataloader import make_loader
from vat_nb.evaluation.metrics import retrieval_recall
from vat_nb.data.store import open_store
from vat_nb.runs.recognizer import Recognizer
from vat_nb.data.validation import MER23, Task
from vat_nb.plotting import save_figure, set_style
from vat_nb.data.demo_data import people_seen
from vat_nb.training.checkpoint import load_weights
from vat_nb.runs.splits import spread
from vat_nb.training.config import read_recipe
from vat_nb.training.fit import student_weights

TOP = Path(__file__).resolve().parents[1]
TASK = Task(MER23.classes[:4])  # four emotions, fifteen clips of each


def made_up(pull, each=15, dim=32, seed=0):  # pull(own, kind, common) -> what a video and an audio have beside noise
    "Predictions of clips that were never filmed: vectors with something of their own, of their emotion, and of all."
    rng, n = np.random.default_rng(seed), len(TASK.classes) * each
    draw = lambda rows: rng.normal(size=(rows, dim)) / np.sqrt(dim)
    y = np.repeat(range(len(TASK.classes)), each)
    own, kind, common, noise = draw(n), draw(len(TASK.classes))[y], draw(2), [draw(n), draw(n)]
    v, a = (x + e for x, e in zip(pull(own, kind, common), noise))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)
    return Predictions(
        [Clip(f"{i:03d}", "", "test", TASK.classes[k]) for i, k in enumerate(y)], {}, {}, unit(v), unit(a)
    )


def stripes(own, kind, common):
    "A few audios that are near every video, and a few videos that are near every audio."
    v, a = 1.4 * own + 1.2 * common[0], 1.4 * own + 1.2 * common[1]
    a[[20, 21, 37]], v[[8, 48, 49]] = 6 * common[0], 6 * common[1]
    return v, a


PATTERNS = {
    "untrained": lambda own, kind, common: (0 * own, 0 * own),
    "diagonal": lambda own, kind, common: (1.6 * own, 1.6 * own),
    "blocks": lambda own, kind, common: (1.6 * kind, 1.6 * kind),
    "diagonal in blocks": lambda own, kind, common: (1.6 * own + 1.6 * kind, 1.6 * own + 1.6 * kind),
    "stripes": stripes,
    "collapsed": lambda own, kind, common: (9 * common[0] + 0 * own, 9 * common[0] + 0 * own),
}  # name -> pull


def plot_patterns(names, columns=3):  # names of PATTERNS
    "Draw alignment matrices of made-up clips, each with how often a video finds its audio."
    rows = -(-len(names) // columns)
    fig, axs = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.9 * rows), layout="constrained", squeeze=False)
    for name, ax in zip(names, axs.flat):
        p = made_up(PATTERNS[name])
        plot_alignment(
            p,
            TASK,
            f"{name}: recall at 1 is {retrieval_recall(p.video_embed @ p.audio_embed.T, 1)['v2a_recall']:.2f}",
            ax=ax,
        ).images[0].colorbar.set_label("cosine")
    return axs


def explained(sim, groups):  # [N, N] cosines, [N] what each clip belongs to
    "Share of the variance of a similarity matrix that lies between its blocks, the diagonal left out."
    names, off = sorted(set(groups)), ~np.eye(len(sim), dtype=bool)
    rows = np.array([names.index(g) for g in groups])
    block = (rows[:, None] * len(names) + rows)[off]
    means = np.bincount(block, sim[off]) / np.bincount(block).clip(1)
    return float(means[block].var() / sim[off].var())


def plot_by_person(run, release, store):  # a run of the demo, its release, its store
    "The alignment matrix of the demo's first test split after pretraining: by emotion, and by who is seen and heard."
    data, recognizer = open_store(store), Recognizer.from_pretrained(str(run / "checkpoint"))
    load_weights(recognizer.model, student_weights(run / "checkpoint/pretrain.safetensors"), run)
    clips = spread(data.usable("test1"), read_recipe("demo").report_clips)
    p = predict(recognizer.model, make_loader(data, clips, recognizer.recipe.num_frames, batch_size=16))
    who = people_seen(release, p.clips)
    fig, axs = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    share = {
        name: explained(p.video_embed @ p.audio_embed.T, of)
        for name, of in (("emotion", [c.emotion for c in p.clips]), ("person", who))
    }
    plot_alignment(p, data.task, f"by emotion: blocks explain {share['emotion']:.0%}", ax=axs[0])
    plot_people(p, who, f"means over people: blocks explain {share['person']:.0%}", axs[1])
    return axs


if __name__ == "__main__":
    set_style()
    here, run, release = Path(__file__).parent, TOP / "runs/demo", TOP / "data/demo"
    save_figure(plot_patterns(list(PATTERNS)), here / "assets/patterns.png")
    if (run / "checkpoint/pretrain.safetensors").exists():
        save_figure(plot_by_person(run, release, release / "store"), here / "assets/by_person.png")
