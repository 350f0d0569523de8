"The tables of docs/results.md: a function for each kind of study turns the JSON of its runs into Markdown."

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vat_nb.data.validation import Task
from vat_nb.evaluation.ensemble import compare, mean_score
from vat_nb.evaluation.predictions import Predictions
from vat_nb.model import HEADS
from vat_nb.runs.result_tables import (
    HEADS_AVERAGED,
    PredictedClasses,
    comparable_starts,
    interval_text,
    markdown_table,
    ratio_ranges,
)
from vat_nb.types import Clip


def counted(
    number: int,
    noun: str,  # in the singular
    plural: str | None = None,  # where it is more than the noun with an s
) -> str:
    "Format a number with its noun in the right form."
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def gain_text(
    value: Sequence[float],  # difference, low, high
    digits: int = 2,  # after the point
) -> str:
    "Format a difference with its interval; empty where there is none."
    signed = [f"{x:+.{digits}f}" for x in value]
    return "" if np.isnan(value).any() else f"{signed[0]} ({signed[1]} to {signed[2]})"


def difference_text(row: dict[str, Any]) -> str:
    "Format the difference of a row with its interval; empty where there is none."
    return gain_text([row["difference"], row["low"], row["high"]], 3)


def sure_predictions(
    run: PredictedClasses,
    name: str,  # of a system and head, such as "VAT, fused"
) -> Predictions:
    "Convert the classes of a system and head to predictions of high confidence."
    clips = [Clip(i, "", "", emotion) for i, emotion in zip(run.ids, run.labels)]
    logits = np.eye(len(run.classes), dtype=np.float32)[run.predicted[name]] * 9
    none = np.zeros((len(clips), 1), np.float32)
    return Predictions(clips, dict.fromkeys(HEADS, logits), dict.fromkeys(HEADS, none[:, :0]), none, none)


def system_scores(
    runs: Sequence[PredictedClasses],  # of the same clips, one for each seed
    against: Sequence[str] = (),  # systems that every other one is compared with
) -> dict[str, dict[str, tuple[float, float, float]]]:  # system -> "f1" and "against ..." -> value, low, high
    "Compute the weighted F1 of every system over clips and seeds, and paired differences."
    task = Task(tuple(runs[0].classes), ())
    predictions = {name: [sure_predictions(r, name) for r in runs] for name in runs[0].predicted}
    scores = {name: dict(f1=mean_score(ps, task, "f1")) for name, ps in predictions.items()}
    for name in predictions:
        for other in against:
            if name.partition(", ")[0] == other.partition(", ")[0]:
                continue
            scores[name][f"against {other}"] = compare(predictions[name], predictions[other], task, "f1")
    return scores


def fold_predictions(runs: list[dict[str, Any]]) -> list[PredictedClasses]:
    "Read what the systems of a cross-validation predict, one entry for each seed."
    return [PredictedClasses(**p) for r in runs for p in r["predictions"]]


def folds_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the weighted F1 of VAT and of linear models on the same features, by stream."
    folds = fold_predictions(runs)
    rivals = [n for n in folds[0].predicted if n.startswith("logistic regression") and n.endswith(", fused")]
    scores = system_scores(folds, rivals)
    systems = list(dict.fromkeys(name.rpartition(", ")[0] for name in scores))

    def cell(name: str) -> str:
        return interval_text(scores[name]["f1"]) if name in scores else ""

    rows = [[s, *(cell(f"{s}, {h}") for h in ("audio", "video", "fused"))] for s in systems]
    size = f"{counted(len(folds[0].ids), 'clip')}, {counted(len(folds), 'seed')}."
    chosen = f"Audio layers that the folds chose by their training people: {', '.join(runs[0]['layers'])}."
    layers = chosen if runs[0].get("layer_losses") else ""  # from scratch there are none
    table = markdown_table(["", "audio", "video", "fused"], rows)
    return "\n\n".join(filter(None, [table, _gain_sentences(scores), f"{size} {layers}".strip()]))


def recipes_table(studies: dict[str, list[dict[str, Any]]]) -> str:  # recipe -> runs of its cross-validation
    "Tabulate VAT under several recipes, on the same clips and with as many seeds; differences are from the first one."
    folds = {recipe: fold_predictions(runs) for recipe, runs in studies.items()}
    first = next(iter(folds.values()))[0]
    seeds = []
    for one_seed in zip(*folds.values()):
        predicted = {}
        for recipe, p in zip(folds, one_seed):
            position = {clip: i for i, clip in enumerate(p.ids)}
            for head in HEADS:
                names = [p.classes[p.predicted[f"VAT, {head}"][position[clip]]] for clip in first.ids]
                predicted[f"{recipe}, {head}"] = [first.classes.index(name) for name in names]
        seeds.append(replace(first, predicted=predicted))
    reference = f"{next(iter(folds))}, fused"
    scores = system_scores(seeds, [reference])
    rows = []
    for recipe in folds:
        cells = [interval_text(scores[f"{recipe}, {head}"]["f1"]) for head in ("audio", "video", "fused")]
        gain = scores[f"{recipe}, fused"].get(f"against {reference}")
        rows.append([recipe, *cells, gain_text(gain) if gain else ""])
    return markdown_table(["", "audio", "video", "fused", "fused, minus the first"], rows)


def _gain_sentences(scores: dict[str, dict[str, tuple[float, float, float]]]) -> str:
    "Write the differences of VAT from linear models as sentences."
    gains = []
    for system, title in (("VAT", "Fused head"), (HEADS_AVERAGED, "Heads averaged")):
        for name, value in scores.get(f"{system}, fused", {}).items():
            if name == "f1":
                continue
            rival = name.removeprefix("against ").removesuffix(", fused")
            gains.append(f"{title} against {rival}: {gain_text(value)}.")
    return " ".join(gains)


def both_ways(row: dict[str, float]) -> list[str]:
    "Format the recall of a row of `retrieval`, from video to audio and back."
    return [interval_text([row[d], row[f"{d} low"], row[f"{d} high"]]) for d in ("v2a_recall", "a2v_recall")]


def both_scores(row: dict[str, float]) -> list[str]:
    "Format the areas of the matching head and of the cosine, of a row of `matching`."
    keys = ("matching", "low", "high"), ("cosine", "cosine low", "cosine high")
    return [interval_text([row[k] for k in names]) for names in keys]


def alignment_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate recall and matching of held-out clips."
    r = runs[0]
    recall = [[str(x["k"]), f"{x['chance']:.3f}", *both_ways(x)] for x in r["retrieval"]]
    wrong = [[name, f"{m['clips']:.0f}", *both_scores(m)] for name, m in r["matching"].items()]
    size = f"{counted(r['held_out'], 'held-out clip')}; pretraining took {r['pretrain_seconds'] / 60:.1f} minutes."
    return "\n\n".join(
        [
            markdown_table(["recall at", "chance", "video to audio", "audio to video"], recall),
            markdown_table(["wrong audio", "clips", "matching head", "cosine"], wrong),
            size,
        ]
    )


# settings that the study lrwar_values changes
VALUES = (
    "seed=0",
    "random_negatives=0.0",
    "random_negatives=1.0",
    "contrast_keys=teacher",
    "joint_heads=False",
    "feature_dropout=0.0",
    "distill_alpha=0.4",
)


def values_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate recall and matching of runs with one changed value, after which their folders are named."
    by_folder = {r["folder"]: r for r in runs}
    rows = []
    for value in filter(by_folder.get, VALUES):
        recall = next(x for x in by_folder[value]["retrieval"] if x["k"] == 10)
        name = "the recipe" if value == "seed=0" else value.replace("=", " ")
        rows.append([name, *both_ways(recall), *both_scores(by_folder[value]["matching"]["another clip's"])])
    names = ["", "recall at 10, video to audio", "audio to video", "matching head", "cosine"]
    return "\n\n".join([markdown_table(names, rows), f"{counted(runs[0]['held_out'], 'held-out clip')}."])


def fused_against(
    splits: dict[str, dict[str, Any]],  # of metrics.json
) -> str:  # empty where there is no score, or an older run did not compare
    "Write a sentence on how much better the fused head of the first split is than the single ones."
    if not splits:
        return ""
    split, result = next(iter(splits.items()))
    differences = result.get("fused_against", {}).items()
    pairs = [f"{head} {gain_text(difference)}" for head, difference in differences]
    return f"The fused head of {split} minus the single ones, on the same clips: {', '.join(pairs)}." if pairs else ""


def results_table(
    path: str | Path,  # a run's metrics.json
) -> str:  # Markdown
    "Write the scores of every split and head, with intervals, and recall."
    metrics = json.loads(Path(path).read_text())
    heads = list(dict.fromkeys(h for r in metrics["splits"].values() for h in r["head_ci"]))
    names = ["most frequent class" if h == "majority" else h for h in heads]
    lines = [f"| split | clips | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for split, r in metrics["splits"].items():
        cells = [interval_text(v) for v in r["head_ci"].values()]
        lines.append(f"| {split} | {r['clips']} | {' | '.join(cells)} |")
    if against := fused_against(metrics["splits"]):
        lines += ["", against]
    after, chance = (metrics["recall"][k]["@5"] for k in ("after", "chance"))
    names = {"v2a_recall": "video to audio", "a2v_recall": "audio to video"}
    recall = [f"{name} {after[k]:.2f}" for k, name in names.items()]
    recall = f"Recall at 5 after pretraining: {', '.join(recall)}; chance {chance['v2a_recall']:.2f}."
    return "\n".join([*lines, "", recall])


def demo_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the scores of every split, the results of pretraining, and how well holes in the audio are filled."
    r = runs[0]
    rows = [[s, str(x["clips"]), *(interval_text(v) for v in x["head_ci"].values())] for s, x in r["splits"].items()]
    names = ["split", "clips", *next(iter(r["splits"].values()))["head_ci"]]
    against = fused_against(r["splits"])
    return "\n\n".join(
        [
            markdown_table(names, rows),
            *([against] if against else []),
            alignment_table(runs),
            _pair_kinds(r["blocks"]),
            _masked_errors(r["masked"]),
            _under_conditions(r["robustness"]),
        ]
    )


def sizes_table(
    runs: dict[str, dict[str, Any]],  # size of the model -> metrics of the demo
) -> str:
    "Tabulate recall, matching and scores of the demo by the size of the model."
    rows = []
    for size, run in runs.items():
        recall = next(x for x in run["retrieval"] if x["k"] == 5)
        matching = both_scores(run["matching"]["another clip's"])[0]
        scores = [interval_text(run["splits"]["test1"]["head_ci"][head]) for head in HEADS]
        rows.append([size, *both_ways(recall), matching, *scores])
    names = ["size", "recall at 5, video to audio", "audio to video", "matching head", *(f"test1, {h}" for h in HEADS)]
    return markdown_table(names, rows)


def _pair_kinds(rows: list[dict[str, Any]]) -> str:  # of `pair_table`
    "Tabulate pairs that share person or emotion."
    blocks = [
        [
            x["pairs"],
            f"{x['number']:.0f}",
            f"{x['cosine']:.2f}",
            "" if np.isnan(x["area"]) else interval_text([x["area"], x["low"], x["high"]]),
        ]
        for x in rows
    ]
    return markdown_table(["pairs that share", "number", "mean cosine", "own pairs told from them"], blocks)


def _masked_errors(rows: list[dict[str, Any]]) -> str:  # of the masked report
    "Tabulate the error of masked audio, by what fills the holes."
    holes = [
        [
            x["filled with"],
            f"{x['error']:.3f}",
            gain_text([x["more"], x["low"], x["high"]], 3),
        ]
        for x in rows
    ]
    return markdown_table(["holes of the audio filled with", "squared error", "more than with its own video"], holes)


def _under_conditions(rows: list[dict[str, Any]]) -> str:
    "Tabulate the fused head against the better single one under noise, blur and without a stream."
    table = [[x["condition"], x["better"], gain_text([x["difference"], x["low"], x["high"]])] for x in rows]
    return markdown_table(["clips", "better single head", "fused head minus it"], table)


CONSISTENCY_TITLES = dict(
    matching="matching head",
    cosine="cosine of the two vectors",
    rank="rank among all audios",
    sync="loudness follows the lips",
    inconsistency="combined",
)


def audit_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the area under the ROC curve of each consistency score, by kind of fault."
    run, kinds = runs[0], ("swapped", "shifted")
    cell = {(r["score"], r["kind"]): r for r in run["areas"] if r["judge"] == "student"}
    rows = [
        [title, *(interval_text([cell[name, k][x] for x in ("area", "low", "high")]) for k in kinds)]
        for name, title in CONSISTENCY_TITLES.items()
    ]
    faults = " and ".join(f"{cell['cosine', k]['clips']} {k}" for k in kinds)
    minutes = f"pretraining took {run['pretrain_seconds'] / 60:.1f} minutes"
    size = f"{counted(run['clips'], 'clip')}, of which {faults}; {minutes}."
    lips = f"The loudness that faces foretell has a correlation of {run['lips']:.2f} with the one that is heard"
    return "\n\n".join(
        [
            markdown_table(["score", *kinds], rows),
            f"{size} {lips}: below 0.2 the lips do not count in the combined score.",
        ]
    )


def ladder_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate each row of an ablation, with the paired difference from the row above."
    run = runs[0]
    rows = [
        [
            r["row"],
            f"{r['score']:.2f}",
            difference_text(r),
            *(f"{r[k]:.2f}" for k in ("video", "audio", "no_audio", "no_video")),
        ]
        for r in run["rows"]
    ]
    total = "\n".join(f"- {name}: {gain_text(v, 3)}" for name, v in run["whole"].items())
    missing = [f"Left out: {name.removeprefix('+ ')} ({why})." for name, why in run["left_out"].items()]
    size = f"{counted(run['clips'], 'scored clip')}, {counted(len(run['seeds']), 'seed')}."
    if wider := run.get("wider"):
        low, high = min(wider.values()), max(wider.values())
        size += f" Drawing people instead of clips changes the width of these intervals by {low:+.0%} to {high:+.0%}."
    heads = ["video head", "audio head", "fused without audio", "fused without video"]
    names = ["", "fused", "difference to the row above or its reference", *heads]
    return "\n\n".join([markdown_table(names, rows), total, " ".join([size, *missing])])


def causes_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the cost of each cause, and the scores where fine-tuning starts."
    r = runs[0]

    def gain(row: dict[str, Any], measure: str) -> str:
        return gain_text(row["gain"][measure])

    rows = [
        [
            x["row"],
            f"{x['v2a_recall']:.2f}, {x['a2v_recall']:.2f}",
            gain(x, "v2a_recall"),
            f"{x['matching']:.2f}",
            gain(x, "matching"),
        ]
        for x in r["rows"]
    ]
    names = ["", "recall at 5, both ways", "lost, video to audio", "matching head", "lost"]
    starts = [
        [f"{x['share']:.0%}", x["start"], *(f"{x[h]:.2f}" for h in HEADS), gain_text(x["gain"]) if x["gain"] else ""]
        for x in r["starts"]
    ]
    return "\n\n".join(
        [
            markdown_table(names, rows),
            markdown_table(["labels", "fine-tuning starts", *HEADS, "fused, minus pretrained"], starts),
            f"{counted(r['clips'], 'clip')} of people who are in no split, {counted(len(r['seeds']), 'seed')}.",
        ]
    )


def shares_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate scores by share of labels, and the worth of each part there."
    run = runs[0]
    shares = sorted({r["share"] for r in run["scores"]})

    def lines(rows: list[dict[str, Any]], key: str, text: Callable[[dict[str, Any]], str]) -> list[list[str]]:
        cells = {(r[key], r["share"]): text(r) for r in rows}
        return [[n, *(cells.get((n, s), "") for s in shares)] for n in dict.fromkeys(r[key] for r in rows)]

    scores = lines(run["scores"], "variant", lambda r: f"{r['score']:.2f}")
    worth = lines(run["worth"], "part", difference_text)
    names = ["share of labels", *(f"{s:.0%}" for s in shares)]
    size = f"{counted(run['clips'], 'scored clip')}, {counted(len(run['seeds']), 'seed')}."
    if run.get("demos"):
        demos = counted(run["demos"], "demo")
        size = f"{counted(run['clips'], 'scored clip')} of {demos}, each with people of its own."
    blocks = [markdown_table(names, scores), markdown_table(names, worth)]
    if "heads" in run:
        heads = [[name, *map(interval_text, row.values())] for name, row in run["heads"]["rows"].items()]
        blocks.append(markdown_table([f"heads, {run['heads']['share']:.0%} of the labels", *HEADS], heads))
    return "\n\n".join([*blocks, size])


def layers_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate logistic regression on each layer."

    def cell(row: dict[str, Any], kind: str) -> str:
        return interval_text([row[f"{kind} {k}"] for k in ("F1", "low", "high")])

    rows = [[r["features"], *(cell(r, kind) for kind in ("unseen", "per speaker"))] for r in runs[0]["rows"]]
    size = f"{counted(runs[0]['clips'], 'clip')} of {counted(runs[0]['people'], 'person', 'people')}."
    return "\n\n".join([markdown_table(["features", "unseen person", "per speaker"], rows), size])


def costs_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the cost of features, and of epochs on them."
    run = runs[0]["features"]
    rows = [
        [
            r["stream"],
            f"{r['encoder']}, {r['layers']}",
            r["way"],
            f"{r['ms_per_clip']:.0f}",
            f"{r['clips_per_core_minute']:.0f}",
            f"{r['times_ours']:.1f}",
        ]
        for r in run["extraction"]
    ]
    names = ["", "encoder, layers", "way", "ms of a core for a clip", "clips in a minute of a core", "times ours"]
    epochs = [
        f"an epoch of {r['stage']} on {counted(r['clips'], 'clip')} {r['seconds']:.1f} s of a core"
        for r in run["epochs"]
    ]
    memory = [f"{name} {value:.0f} MB" for name, value in run["memory"].items()]
    text = (
        f"Clips of {run['clip_seconds']:.1f} s; {'; '.join(epochs)}. "
        f"Most memory: {', '.join(memory)}. {_extraction_bounds(runs[0].get('bounds', []))}For 74 000 such clips:"
    )
    return "\n\n".join([markdown_table(names, rows), text, _plan_table(run["plan"])])


def _extraction_bounds(bounds: list[dict[str, Any]]) -> str:
    "Say which share of extraction the encoder's own products take."
    names = {f"extraction, {stream}": stream for stream in ("video", "audio")}
    shares = [f"{r['products']:.2f} of {names[r['step']]}" for r in bounds if r["step"] in names]
    if not shares:
        return ""
    return f"The encoder's own products, or its ONNX graph, take {' and '.join(shares)}. "


def _plan_table(plan: list[dict[str, Any]]) -> str:
    "Tabulate time and room for a large data set, by the number of cores."
    keys = [k for k in plan[0] if k.endswith("_epoch_minutes")]
    rows = [
        [str(r["cores"]), f"{r['feature_hours']:.2g}", f"{r['cache_GB']:.1f}", *(f"{r[k]:.0f}" for k in keys)]
        for r in plan
    ]
    titles = [f"minutes of an epoch ({k.removesuffix('_epoch_minutes')})" for k in keys]
    return markdown_table(["cores", "hours of features", "GB of cache", *titles], rows)


def speed_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the ratios over the starts on each machine, and what does not depend on the machine."
    run = runs[0]
    starts = comparable_starts(run["starts"])
    names, blocks = ["ratio", "median", "range", "starts", "of them quiet", "days"], []
    for machine in dict.fromkeys(s["machine"] for s in starts):
        here = [s for s in starts if s["machine"] == machine]
        rows = [
            [r.Index, f"{r.median:.2f}", f"{r.lowest:.2f} to {r.highest:.2f}", *map(str, (r.starts, r.quiet, r.days))]
            for r in ratio_ranges(here).itertuples()
        ]
        blocks += [f"On {machine}:", markdown_table(names, rows), *_step_seconds(here)]
    if run.get("differences"):
        most = " and ".join(f"{max(d):.0e} in {precision}" for precision, d in run["differences"].items())
        blocks.append(f"The losses differ from those of the plain way by at most {most}.")
    if "step" in run:
        counts = [
            [r["way"], f"{r['peak_MiB']:.0f}", str(r["operations"]), str(r["synchronisations"])]
            for r in run["step"]["table"]
        ]
        names = ["each change adds to those before", "peak memory (MiB)", "operations", "waits of the host"]
        blocks.append(markdown_table(names, counts))
    if "table" in run.get("gpu", {}):
        blocks.append(_gpu_table(run))
    return "\n\n".join(blocks)


def _step_seconds(
    starts: list[dict[str, Any]],  # of one machine
) -> list[str]:  # a sentence; empty where no start kept its seconds
    "Say from the fastest to the slowest start how long a step took, the plain way and ours."
    seconds = [s["seconds"] for s in starts if s.get("seconds")]
    if not seconds:
        return []
    columns = {way: [s[way] for s in seconds] for way in seconds[0]}
    spans = [f"{way} {min(column):.1f} to {max(column):.1f} s" for way, column in columns.items()]
    return [f"A step took, from the fastest to the slowest start: {', '.join(spans)}."]


def _gpu_table(run: dict[str, Any]) -> str:
    "Tabulate the epochs on a GPU."
    rows = [
        [
            r["stage"] + (", compiled" if r["compiled"] else ""),
            f"{r['ms']:.0f}",
            f"{r['MFU']:.2f}",
            f"{r['clips_per_s']:.0f}",
            f"{r['peak_GiB']:.1f}",
        ]
        for r in run["gpu"]["table"]
    ]
    names = ["", "ms of a step", "MFU", "clips per second", "GiB"]
    text = (
        f"{run['device']}, bf16, {counted(run['gpu']['batch'], 'clip')} in a step; matrix products reach "
        f"{run['gpu']['peak_TFLOP_per_s']:.0f} TFLOP/s."
    )
    return "\n\n".join([markdown_table(names, rows), text])


def fits_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the memory of a step at the paper's size."
    shape, table = runs[0]["fits"]["shape"], runs[0]["fits"]["table"]
    names = [k for k in table[0] if k.startswith("clips")]
    rows = [[r["value"], f"{r['held_GB']:.1f}", f"{r['clip_GB']:.2f}", *(str(r[k]) for k in names)] for r in table]
    size = f"{counted(shape['frames'], 'frame')} of {shape['side']} px and {shape['seconds']} s of audio."
    return "\n\n".join([markdown_table(["value", "GB held", "GB for each clip, fp32", *names], rows), size])


def recipe_values_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate what values of the recipe do to a step, and how its time grows with its sizes."
    values, scaling = runs[0]["values"], runs[0]["scaling"]
    rows = [[f"`{r['value']}`", f"{r['time']:.2f}", f"{r['memory']:.2f}"] for r in values["table"][1:]]
    shape = values["shape"]
    size = (
        f"A step of {counted(shape['batch'], 'clip')} with {counted(shape['frames'], 'frame')} of {shape['side']} px "
        f"and {shape['seconds']} s of audio, {shape['width']} wide; 1 is the step as it is."
    )
    slopes = markdown_table(
        ["a step grows with", "slope of the logarithms"], [[k, f"{v:.2f}"] for k, v in scaling["slopes"].items()]
    )
    return "\n\n".join([markdown_table(["value", "time", "memory"], rows), size, slopes])


def pairs_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the cost of the named pairs of encoders."
    names = [
        "pair",
        "MB of audio weights that are read",
        "MB of video weights",
        "s of a core: audio",
        "s of a core: video",
    ]
    sizes, times = ("audio_MB", "video_MB"), ("audio_s", "video_s")
    rows = [[r["pair"], *(f"{r[k]:.0f}" for k in sizes), *(f"{r[k]:.1f}" for k in times)] for r in runs[0]["pairs"]]
    shares = {r["step"].partition(", ")[2]: r["products"] for r in runs[0]["bounds"] if "extraction" in r["step"]}
    bounds = [[name.partition(":")[2], f"{share:.2f}"] for name, share in shares.items()]
    text = "From the store to features, the share of the time that the encoder's own products take:"
    return "\n\n".join([markdown_table(names, rows), text, markdown_table(["encoder", "share"], bounds)])


def reading_table(runs: list[dict[str, Any]]) -> str:
    "Tabulate the time to read clips against a plain decode, and a plan for a large data set."
    run = runs[0]["reading"]
    costs = {(r["files"], r["way"]): r["over_plain_decode"] for r in run["reading"]}
    ways = {"read_clip": "whole frames", "with the cascade": "faces by the cascade", "with YuNet": "faces by YuNet"}
    rows = []
    for way, words in ways.items():
        plan = {r["cores"]: r for r in run["plan"] if r["way"] == way}
        hours = [f"{plan[n]['hours']:.2g}" for n in (2, 16, 64)]
        times = [f"{costs[files, way]:.2f}" for files in ("as they are", "720p")]
        rows.append([words, *times, *hours, f"{plan[2]['store_GB']:.0f} GB"])
    names = ["way", "over a plain decode", "the same, 720p", "hours on 2 cores", "on 16", "on 64", "store"]
    moviepy = [costs[files, "moviepy, no audio"] for files in ("as they are", "720p")]
    text = (
        f"Frames through moviepy cost {moviepy[0]:.1f} and {moviepy[1]:.1f} of a plain decode. Two processes read "
        f"{run['gain']:.2f} times as many clips as one."
    )
    return "\n\n".join([markdown_table(names, rows), text])
