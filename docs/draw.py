"Pictures for `make figures` that no notebook draws: the method, people of the demo, and alignment matrices."

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch
from vat_nb.types import Clip
from vat_nb.look.alignment_figures import plot_alignment, plot_people
from vat_nb.evaluation.predictions import Predictions, predict
from vat_nb.data.dataloader import make_loader
from vat_nb.evaluation.metrics import retrieval_recall
from vat_nb.data.store import open_store
from vat_nb.runs.recognizer import Recognizer
from vat_nb.data.validation import MER23, Task
from vat_nb.plotting import new_axes, save_figure, set_style
from vat_nb.sizes import SIZES
from vat_nb.data.demo_faces import render_frames
from vat_nb.data.demo_people import EXPRESSIONS, make_identity, write_script
from vat_nb.training.checkpoint import load_weights
from vat_nb.runs.splits import thin_out
from vat_nb.training.settings_file import read_recipe
from vat_nb.training.saved_run import student_weights

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


def plot_identities(seeds=(1, 5, 8)):  # one person each
    "Some people of the demo with each emotion."
    fig, axs = plt.subplots(len(seeds), 6, figsize=(9, 1.6 * len(seeds)), layout="constrained", squeeze=False)
    for row, seed in zip(axs, seeds):
        identity = make_identity(np.random.default_rng(seed))
        script = write_script(np.random.default_rng(seed), 4, 0.6)
        for ax, e in zip(row, MER23.classes):
            ax.imshow(render_frames(script, identity, EXPRESSIONS[e], np.random.default_rng(seed)).frames[3])
            ax.set(xticks=[], yticks=[], title=e if seed == seeds[0] else "", frame_on=False)
    return axs


def explained(sim, groups):  # [N, N] cosines, [N] what each clip belongs to
    "Share of the variance of a similarity matrix that lies between its blocks, the diagonal left out."
    names, off = sorted(set(groups)), ~np.eye(len(sim), dtype=bool)
    rows = np.array([names.index(g) for g in groups])
    block = (rows[:, None] * len(names) + rows)[off]
    means = np.bincount(block, sim[off]) / np.bincount(block).clip(1)
    return float(means[block].var() / sim[off].var())


def plot_by_person(run, store):  # a run of the demo, its store
    "The alignment matrix of the demo's first test split after pretraining: by emotion, and by who is seen and heard."
    data, recognizer = open_store(store), Recognizer.from_pretrained(str(run / "checkpoint"))
    load_weights(recognizer.model, student_weights(run / "checkpoint/pretrain.safetensors"), run)
    clips = thin_out(data.usable("test1"), read_recipe("demo").report_clips)
    p = predict(recognizer.model, make_loader(data, clips, recognizer.recipe.num_frames, batch_size=16))
    who = [int(c.speaker) for c in p.clips]
    fig, axs = plt.subplots(1, 2, figsize=(9.5, 4), layout="constrained")
    share = {
        name: explained(p.video_embed @ p.audio_embed.T, of)
        for name, of in (("emotion", [c.emotion for c in p.clips]), ("person", who))
    }
    plot_alignment(p, data.task, f"by emotion: blocks explain {share['emotion']:.0%}", ax=axs[0])
    plot_people(p, who, f"means over people: blocks explain {share['person']:.0%}", axs[1])
    return axs


def _box(
    ax: Axes, x: float, y: float, w: float, h: float, text: str, colour: str, dashed: bool = False, round_: bool = False
) -> None:
    "Draw a box with a text around its centre."
    ax.add_patch(FancyBboxPatch(
        (x - w / 2, y - h / 2), w, h, boxstyle=f"round,pad=0,rounding_size={h / 2 if round_ else 0.08}",
        facecolor=colour, edgecolor="0.25", linewidth=1.1, linestyle="--" if dashed else "-",
    ))
    ax.text(x, y, text, ha="center", va="center", fontsize=9.5)


def _arrow(ax: Axes, *points: tuple[float, float], dashed: bool = False) -> None:
    "Draw an arrow through points."
    line = dict(color="0.25", linewidth=1.2, linestyle="--" if dashed else "-")
    if len(points) > 2: ax.plot(*zip(*points[:-1]), **line)
    ax.annotate("", points[-1], points[-2], arrowprops=dict(arrowstyle="-|>", shrinkA=0, shrinkB=1, **line))


def _pipeline_arrows(ax: Axes) -> None:
    "Draw the arrows of the pipeline and their labels."
    for y in (4.9, 2.3): _arrow(ax, (1.9, y), (2.55, y))
    _arrow(ax, (3.7, 4.35), (3.7, 3.95))  # both [CLS] into contrast
    _arrow(ax, (3.7, 2.85), (3.7, 3.25))
    _arrow(ax, (4.85, 4.75), (6.4, 4.1))  # tokens into the multimodal encoder
    _arrow(ax, (4.85, 2.45), (6.4, 3.1))
    _arrow(ax, (4.85, 5.3), (10.2, 5.6))  # [CLS] into the heads of one stream
    _arrow(ax, (4.85, 1.9), (10.2, 1.6))
    for y, start in ((4.6, 4.1), (3.6, 3.6), (2.6, 3.1)): _arrow(ax, (9.2, start), (10.2, y))
    _arrow(ax, (3.7, 1.75), (3.7, 0.9), dashed=True)  # all weights into the teacher
    _arrow(ax, (2.2, 0.6), (1.1, 0.6), (1.1, 1.05), dashed=True)
    _arrow(ax, (0.2, 1.35), (0.05, 1.35), (0.05, 3.45), (2.62, 3.45), dashed=True)
    _arrow(ax, (2.2, 0.3), (-0.15, 0.3), (-0.15, 3.75), (2.62, 3.75), dashed=True)
    _arrow(ax, (5.2, 0.45), (8.5, 0.45), dashed=True)
    _arrow(ax, (4.8, 3.6), (6.4, 3.6))  # which pairs the matching gets
    for y in (1.6, 2.6, 4.6, 5.6): _arrow(ax, (11.1, 0.45), (13.5, 0.45), (13.5, y), (13.15, y), dashed=True)
    for x, y, text in (
        (4.02, 4.08, "[CLS]"), (4.02, 3.0, "[CLS]"), (5.55, 4.62, "tokens"), (5.55, 2.45, "tokens"),
        (8.0, 5.62, "[CLS]"), (8.0, 1.88, "[CLS]"), (9.6, 4.62, "tokens"), (9.72, 3.68, "[CLS]"), (9.6, 2.48, "[CLS]"),
        (1.25, 3.85, "keys, soft targets"), (1.25, 3.2, "earlier keys"), (5.62, 3.7, "hard negatives"),
        (4.45, 1.22, "moving average"), (1.65, 0.7, "keys"),
    ): ax.text(x, y, text, ha="center", fontsize=8, color="0.25")


def plot_pipeline() -> Axes:
    "Draw VAT in the size of the papers: encoders, multimodal encoder, losses, momentum teacher and queue."
    video_layers, audio_layers, fusion_layers = SIZES["base"].layers
    ax = new_axes(11, 5.6)
    ax.set(xlim=(-0.3, 13.7), ylim=(-0.85, 6.1), aspect="equal")
    ax.axis("off")
    video, audio, fused = "#cfe3f5", "#f8dcc0", "#d6ecd2"
    pretraining, finetuning, teacher = "#fff3b8", "#f6cfd8", "#eeeeee"
    _box(ax, 1.05, 4.9, 1.7, 0.9, "video\nframes", "white")
    _box(ax, 1.05, 2.3, 1.7, 0.9, "audio\nlog-mel", "white")
    _box(ax, 3.7, 4.9, 2.3, 1.1, f"video encoder\n{video_layers} layers (base)", video)
    _box(ax, 3.7, 2.3, 2.3, 1.1, f"audio encoder\n{audio_layers} layers (base)", audio)
    layers = f"multimodal encoder\n{fusion_layers} layers: self-attention,\ncross-attention to video,\nfeed-forward"
    _box(ax, 7.8, 3.6, 2.8, 1.7, layers, fused)
    _box(ax, 3.7, 3.6, 2.2, 0.7, "contrast (VAC)", pretraining, round_=True)
    for y, text, colour in (
        (5.6, "emotion: video head", finetuning), (4.6, "masked audio", pretraining),
        (3.6, "matching (VAM)", pretraining), (2.6, "emotion: fused head", finetuning),
        (1.6, "emotion: audio head", finetuning),
    ): _box(ax, 11.7, y, 2.9, 0.65, text, colour, round_=True)
    _box(ax, 3.7, 0.45, 3.0, 0.85, "momentum teacher\n(a slow copy of all)", teacher, dashed=True)
    _box(ax, 1.05, 1.35, 1.7, 0.6, "queue of keys", teacher, dashed=True)
    _box(ax, 9.8, 0.45, 2.6, 0.85, "soft targets", teacher, dashed=True)
    for x, colour, dashed, round_, text in (
        (0.5, teacher, True, False, "not trained: follows or remembers"),
        (5.4, pretraining, False, True, "loss of pretraining, without labels"),
        (10.0, finetuning, False, True, "loss of fine-tuning, with labels"),
    ):
        _box(ax, x, -0.55, 0.5, 0.3, "", colour, dashed, round_)
        ax.text(x + 0.4, -0.55, text, va="center", fontsize=8.5)
    _pipeline_arrows(ax)
    return ax


if __name__ == "__main__":
    set_style()
    here, run = Path(__file__).parent, TOP / "runs/demo"
    save_figure(plot_pipeline(), TOP / "figures/pipeline.png")
    save_figure(plot_patterns(list(PATTERNS)), here / "assets/patterns.png")
    save_figure(plot_identities(), TOP / "figures/demo.png")
    if (run / "checkpoint/pretrain.safetensors").exists():
        save_figure(plot_by_person(run, TOP / "data/demo/store"), here / "assets/by_person.png")
