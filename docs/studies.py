"""Write docs/results.md and the tables of other pages, from the JSON that runs leave.

    python docs/studies.py

A study has a title, a command that anyone can run, the files that this command writes, and a table (docs/tables.py).
Figures of finished runs are copied into docs/results/, which is part of the repository. No number is typed by hand.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tables import (
    VALUES,
    alignment_table,
    audit_table,
    causes_table,
    costs_table,
    demo_table,
    difference_text,
    fits_table,
    fold_predictions,
    folds_table,
    gain_text,
    ladder_table,
    layers_table,
    pairs_table,
    reading_table,
    recipes_table,
    recipe_values_table,
    shares_table,
    sizes_table,
    speed_table,
    system_scores,
    values_table,
)
from vat_nb.data.io import read_json, write_atomically
from vat_nb.model import HEADS
from vat_nb.runs.page import minutes_table
from vat_nb.runs.result_tables import interval_text, markdown_table

TOP = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Study:
    "A command, and the table of its figures."

    name: str  # of its file in docs/results
    title: str
    command: str  # as a user types it
    files: str  # pattern of its JSON files, from the project's folder; several are seeds
    table: Callable[[list[dict[str, Any]]], str]  # contents of the files -> Markdown


def encoder_parameters(
    crop: float,  # share of the store's square that the face network sees
) -> str:
    "Return the encoders of the studies as parameters."
    return (
        "-p audio_encoder hf:whisper-tiny.en-encoder -p video_encoder onnx:emotion.onnx "
        f"-p video_options \\\"{{'crop': {crop}}}\\\" -p face_detector yunet_n_640_640.onnx -p fps 12.5"
    )


JAVASED = f"-p data_dir JAVASED {encoder_parameters(0.7)} -p num_frames 160 -p feature_rate 2.0"
FOLDS = (
    "-p pretrain_epochs 0 -p valid_fraction 0.0 -p fold_all_splits True -p num_folds 6 -p try_layers 2,3,2+3 -p seeds 5"
)
BOTH = (
    f"-p data_dir BOTH {encoder_parameters(0.7)} -p num_frames 160 -p feature_rate 2.0 -p audio_layers 2+3 "
    "-p valid_fraction 0.0 -p pretrain_epochs 10 -p epochs 10"
)
LRWAR = f"-p data_dir LRWAR {encoder_parameters(0.8)} -p audio_layers 1"


DEMO_STUDIES = (
    Study("demo", "The demo", "make train", "runs/demo/metrics.json", demo_table),
    Study(
        "demo_minutes",
        "The demo: where the minutes go",
        "make train",
        "runs/demo/train_minutes.json",
        minutes_table,
    ),
    Study(
        "demo_tiny",
        "The demo with the size tiny",
        'make train P="-p model_size tiny -p output_dir runs/tiny"',
        "runs/tiny/metrics.json",
        demo_table,
    ),
    Study(
        "demo_small",
        "The demo with the size small",
        'make train P="-p model_size small -p output_dir runs/small"',
        "runs/small/metrics.json",
        demo_table,
    ),
    Study(
        "demo_causes",
        "The demo: why it learns",
        'make causes P="-p pretrain_epochs 5 -p epochs 10"',
        "runs/demo/causes.json",
        causes_table,
    ),
    Study(
        "demo_ladder",
        "The demo, part by part",
        'make ablation P="-p seeds 5"',
        "runs/demo/ablation.json",
        ladder_table,
    ),
    Study(
        "demo_shares",
        "The demo, by share of labels",
        "make semisupervised",
        "runs/demo/semisupervised.json",
        shares_table,
    ),
    Study(
        "demo_seeds",
        "The demo, by share of labels, five seeds",
        'make semisupervised P="-p seeds 5 -p ways plain,pretrained -p output_dir runs/seeds"',
        "runs/seeds/semisupervised.json",
        shares_table,
    ),
    Study(
        "demos_shares",
        "Five demos with other people, by share of labels",
        'make semisupervised P="-p demos 5 -p seed 31 -p seeds 1 -p shares [0.1,0.25,1.0] '
        '-p ways plain,pretrained -p output_dir runs/demos"',
        "runs/demos/semisupervised.json",
        shares_table,
    ),
    Study(
        "demo_audit",
        "The demo, the audit",
        "make audit",
        "runs/demo/audit/audit.json",
        audit_table,
    ),
)

# size of the model -> study with the demo's recipe
DEMO_SIZES = dict(mini="demo", tiny="demo_tiny", small="demo_small")


JAVASED_STUDIES = (
    Study(
        "javased",
        "Java-SED, one actor left out",
        f'make crossval DATASET=features P="{JAVASED} {FOLDS} -p output_dir runs/javased"',
        "runs/javased/crossval/crossval.json",
        folds_table,
    ),
    Study(
        "javased_speaker",
        "Java-SED, one actor left out, features set against the speaker's own",
        f'make crossval DATASET=features P="{JAVASED} {FOLDS} -p speaker_normalization True '
        '-p output_dir runs/javased_speaker"',
        "runs/javased_speaker/crossval/crossval.json",
        folds_table,
    ),
    Study(
        "javased_scratch",
        "Java-SED from scratch, one actor left out",
        'make crossval DATASET=javased P="-p data_dir JAVASED -p fold_all_splits True -p num_folds 6 -p seeds 5 '
        '-p output_dir runs/javased_scratch"',
        "runs/javased_scratch/crossval/crossval.json",
        folds_table,
    ),
    Study(
        "javased_unlabelled",
        "Java-SED from scratch, with LRW-AR as unlabelled clips and what made the demo learn",
        'make crossval DATASET=javased P="-p data_dir BOTH -p fold_all_splits True -p num_folds 6 -p seeds 5 '
        "-p pretrain_epochs 3 -p batch_size 16 -p joint_heads True -p projection_norm True -p random_negatives 1.0 "
        '-p linear_probe True -p speaker_directions 3 -p prior_clips 100 -p output_dir runs/javased_unlabelled"',
        "runs/javased_unlabelled/crossval/crossval.json",
        folds_table,
    ),
)
# recipe -> study, on the same clips
JAVASED_RECIPES = {
    "from scratch": "javased_scratch",
    "pretrained on LRW-AR from scratch": "javased_unlabelled",
    "features of pretrained encoders": "javased",
}


LRWAR_STUDIES = (
    Study(
        "lrwar",
        "LRW-AR, contrast and matching",
        f'make train DATASET=features P="-p stage pretrain {LRWAR} -p valid_fraction 0.177 -p output_dir runs/lrwar"',
        "runs/lrwar/metrics.json",
        alignment_table,
    ),
    Study(
        "lrwar_values",
        "LRW-AR, one value changed",
        f"for v in {' '.join(VALUES)}; do make train DATASET=features "
        f'P="-p stage pretrain {LRWAR} -p valid_fraction 0.177 -p ${{v%=*}} ${{v#*=}} '
        '-p output_dir runs/lrwar_values/$v"; done',
        "runs/lrwar_values/*/metrics.json",
        values_table,
    ),
    Study(
        "lrwar_audit",
        "LRW-AR, the audit",
        f'make audit DATASET=features P="{LRWAR} -p pretrain_epochs 25 -p random_negatives 1.0 '
        '-p seed 1 -p output_dir runs/lrwar_audit"',
        "runs/lrwar_audit/audit/audit.json",
        audit_table,
    ),
)


OTHER_STUDIES = (
    Study(
        "ladder",
        "Java-SED with LRW-AR as unlabelled clips, part by part",
        f'make ablation DATASET=features P="{BOTH} -p seeds 10 -p output_dir runs/ladder"',
        "runs/ladder/ablation.json",
        ladder_table,
    ),
    Study(
        "shares",
        "Java-SED with LRW-AR as unlabelled clips, by share of labels",
        f'make semisupervised DATASET=features P="{BOTH} -p seeds 10 -p output_dir runs/shares"',
        "runs/shares/semisupervised.json",
        shares_table,
    ),
    Study(
        "layers",
        "Java-SED, layer by layer",
        f'make layers DATASET=features P="-p data_dir JAVASED {encoder_parameters(0.7)} -p output_dir runs/layers"',
        "runs/layers/layers/layers.json",
        layers_table,
    ),
    Study(
        "costs",
        "What features of pretrained encoders cost",
        'make benchmark DATASET=features P="-p parts features,bounds '
        f'{JAVASED} -p audio_layers 2+3 -p output_dir runs/costs"',
        "runs/costs/benchmark.json",
        costs_table,
    ),
    Study(
        "speed",
        "How fast: each ratio over several starts",
        'make benchmark STARTS=5 P="-p parts step,bounds,loader -p threads 2 -p output_dir runs/speed"',
        "runs/speed/benchmark.json",
        speed_table,
    ),
    Study(
        "gpu",
        "On a GPU",
        'make benchmark STARTS=5 P="-p parts step,gpu,loader -p device cuda -p output_dir runs/gpu"',
        "runs/gpu/benchmark.json",
        speed_table,
    ),
    Study(
        "memory",
        "What fits into memory",
        'make benchmark P="-p parts memory -p output_dir runs/memory"',
        "runs/memory/benchmark.json",
        fits_table,
    ),
    Study(
        "values",
        "What values of the recipe cost",
        'make benchmark P="-p parts values,scaling -p threads 2 -p output_dir runs/values"',
        "runs/values/benchmark.json",
        recipe_values_table,
    ),
    Study(
        "pairs",
        "What the named pairs of encoders cost",
        'make benchmark P="-p parts pairs,bounds -p output_dir runs/pairs"',
        "runs/pairs/benchmark.json",
        pairs_table,
    ),
    Study(
        "reading",
        "What reading clips costs",
        'make benchmark DATASET=manifest P="-p parts reading -p data_dir JAVASED -p face_detector YUNET.onnx '
        '-p output_dir runs/reading"',
        "runs/reading/benchmark.json",
        reading_table,
    ),
)
STUDIES = DEMO_STUDIES + JAVASED_STUDIES + LRWAR_STUDIES + OTHER_STUDIES


def collect(
    top: str | Path,  # folder of the project
    studies: Sequence[Study] = STUDIES,
) -> list[str]:  # names of the studies that have files
    "Copy the figures of finished runs into docs/results; those of other studies stay as they are."
    names = []
    for study in studies:
        files = sorted(Path(top).glob(study.files))
        if not files:
            continue
        runs = [
            {k: v for k, v in read_json(f.read_bytes(), f).items() if k != "recipe"} | dict(folder=f.parent.name)
            for f in files
        ]
        content = json.dumps(dict(command=study.command, runs=runs), indent=1)
        write_atomically(Path(top, "docs/results", f"{study.name}.json"), content.encode())
        names.append(study.name)
    return names


def render_results(
    top: str | Path,  # folder of the project
    studies: Sequence[Study] = STUDIES,
) -> str:  # Markdown
    "Write the page of all studies that have figures."
    blocks = [
        "# Results",
        "Written by `make results` from the JSON in `docs/results/`, which the commands below wrote. Brackets hold "
        "95 % intervals, bootstrapped over clips, and over seeds where there are several. Clips of one person count as "
        "independent. Java-SED is 144 acted clips of six actors, LRW-AR 1 754 clips of news presenters without labels; "
        "neither is part of the kit. Capital letters in a command stand for a folder, $N for a seed.",
    ]
    for study in studies:
        path = Path(top, "docs/results", f"{study.name}.json")
        if not path.is_file():
            continue
        content = read_json(path.read_bytes(), path)
        command = f"```sh\n{content['command']}\n```"
        blocks += [f"## {study.title} {{#{study.name}}}", command, study_text(study, content["runs"])]
    return "\n\n".join(blocks) + "\n"


def study_text(
    study: Study,
    runs: list[dict[str, Any]],  # contents of its files
) -> str:  # Markdown
    "Write a study's table, with machine and date."
    source = runs[0].get("provenance", {})
    return f"{study.table(runs)}\n\n{'; '.join(source.get(k, '') for k in ('machine', 'versions', 'date'))}."


def read_study(
    top: str | Path,  # folder of the project
    name: str,  # of a study
) -> list[dict[str, Any]]:
    "Read the runs of a study from docs/results. Raises ValueError where they are missing."
    path = Path(top, "docs/results", f"{name}.json")
    if not path.is_file():
        raise ValueError(f"there are no figures of the study {name}: run its command, then make results")
    return read_json(path.read_bytes(), path)["runs"]


def _recall_row(clips: str, run: dict[str, Any]) -> list[str]:
    "Write the recall of a run as a row."
    row = next(r for r in run["retrieval"] if r["k"] == 5)
    to_audio, to_video, chance = (f"{row[k]:.2f}" for k in ("v2a_recall", "a2v_recall", "chance"))
    figure = f"{to_audio}; {to_video}; chance {chance}"
    return [clips, f"recall@5 of {run['held_out']} clips, video to audio; audio to video", figure]


def _folds_row(top: str | Path, name: str, suffix: str) -> list[str]:
    "Write the score of a cross-validation, and its difference from logistic regression, as a row."
    rival = f"logistic regression{suffix}, fused"
    scores = system_scores(fold_predictions(read_study(top, name)), [rival])["VAT, fused"]
    figure = f"{interval_text(scores['f1'])}; {gain_text(scores[f'against {rival}'])}"
    what = "the same" if suffix else "weighted F1; minus logistic regression on the same features"
    return [f"Java-SED, unseen actor{suffix}", what, figure]


def readme_table(
    top: str | Path,  # folder of the project
) -> str:  # Markdown
    "Write the table of the README, with a few figures out of several studies."
    demo, shares, lrwar, audit = (read_study(top, k)[0] for k in ("demo", "demos_shares", "lrwar", "lrwar_audit"))
    heads = demo["splits"]["test1"]["head_ci"]
    gains = {r["share"]: difference_text(r) for r in shares["worth"] if r["part"] == "all parts of the recipe"}
    key = dict(score="inconsistency", kind="swapped", judge="student")
    combined = next(r for r in audit["areas"] if key.items() <= r.items())
    rows = [
        _recall_row("demo, unseen people", demo),
        [
            "demo, first test split",
            "weighted F1 of video, audio and fused head; a fifth of faces and of voices are neutral",
            ", ".join(interval_text(heads[h]) for h in HEADS),
        ],
        [
            "five demos, each with new people",
            "weighted F1: the demo's recipe minus plain training, all labels",
            gains[1.0],
        ],
        ["", "the same with a quarter of the labels", gains[0.25]],
        ["", "the same with a tenth of the labels", gains[0.1]],
        _recall_row("LRW-AR (news presenters)", lrwar),
        [
            "",
            "swapped audio, found by the audit (area under the curve)",
            interval_text([combined[k] for k in ("area", "low", "high")]),
        ],
    ]
    rows += [_folds_row(top, "javased", ""), _folds_row(top, "javased_speaker", ", per speaker")]
    return markdown_table(["clips", "what", "score"], rows)


def javased_recipes_table(top: str | Path) -> str:  # top: folder of the project
    "Tabulate the recipes that were tried on Java-SED, from scratch and on features."
    return recipes_table({recipe: read_study(top, study) for recipe, study in JAVASED_RECIPES.items()})


def demo_sizes_table(top: str | Path) -> str:  # top: folder of the project
    "Tabulate the demo's recipe with models of several sizes."
    return sizes_table({size: read_study(top, study)[0] for size, study in DEMO_SIZES.items()})


# tables of several studies
SUMMARIES = dict(summary=readme_table, javased_recipes=javased_recipes_table, demo_sizes=demo_sizes_table)

MARKED = (  # pages with tables of studies
    "nbs/index.ipynb",
    "nbs/7_look/06c_av_consistency.ipynb",
    "README.md",
    "docs/howto/pretrained.md",
    "docs/howto/look.md",
    "docs/howto/small_data.md",
    "docs/howto/speed.md",
    "docs/claims.md",
    "data/README.md",
)


def fill(
    text: str,  # Markdown with lines such as <!-- study lrwar --> ... <!-- end -->
    top: str | Path,  # folder of the project
    studies: Sequence[Study] = STUDIES,
) -> str:  # the same, with the newest figures between the marks
    "Write the tables of studies between the marks of a page. Raises ValueError for a study without figures."
    by_name = {s.name: s for s in studies}

    def block(match: re.Match) -> str:
        name = match[1]
        if name in SUMMARIES:
            content = SUMMARIES[name](top)
        elif name in by_name:
            content = study_text(by_name[name], read_study(top, name))
        else:
            raise ValueError(f"there are no figures of the study {name}: no study has this name")
        return f"<!-- study {name} -->\n\n{content}\n\n<!-- end -->"

    return re.sub(r"<!-- study (\w+) -->.*?<!-- end -->", block, text, flags=re.S)


def fill_file(
    path: Path,  # Markdown, or a notebook whose cells of Markdown have marks
    top: str | Path,  # folder of the project
) -> None:
    "Fill the marks of a file in place."
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        new = fill(text, top)
    else:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = fill("".join(cell["source"]), top).splitlines(keepends=True)
        new = json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"
    if new != text:
        write_atomically(path, new.encode())


def write_results() -> None:
    "Collect figures, and write docs/results.md and the tables of other pages."
    for name in collect(TOP):
        print(f"new figures: {name}")
    write_atomically(TOP / "docs/results.md", render_results(TOP).encode())
    for name in MARKED:
        fill_file(TOP / name, TOP)
    print(f"look at docs/results.md, and at the tables in {', '.join(MARKED)}")


if __name__ == "__main__":
    write_results()
