"Pretrained encoders in the whole model: training, checkpoints, caches, features, real weights, and no network."

import copy
import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PROJECT
from torch import nn

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
SPEECH = dict(conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **SMALL)
WHISPER = dict(
    vocab_size=8,
    d_model=32,
    encoder_layers=2,
    encoder_attention_heads=4,
    encoder_ffn_dim=64,
    decoder_layers=1,
    decoder_attention_heads=1,
    decoder_ffn_dim=8,
    max_target_positions=8,
    pad_token_id=0,
)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    "Tiny checkpoints in Hugging Face's format."
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    top, made = tmp_path_factory.mktemp("models"), {}
    vit, speech = (
        transformers.ViTImageProcessor(size=dict(height=32, width=32)),
        transformers.Wav2Vec2FeatureExtractor(),
    )
    mae = transformers.VideoMAEImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    large = transformers.HubertConfig(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True, layerdrop=0.0)
    for name, model, processor in (
        ("vit", transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **SMALL)), vit),
        (
            "mae",
            transformers.VideoMAEModel(
                transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, **SMALL)
            ),
            mae,
        ),
        ("base", transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SPEECH)), speech),
        ("large", transformers.HubertModel(large), speech),
        (
            "whisper",
            transformers.WhisperModel(transformers.WhisperConfig(**WHISPER)),
            transformers.WhisperFeatureExtractor(),
        ),
    ):
        model.save_pretrained(top / name)
        processor.save_pretrained(top / name)
        made[name] = f"hf:{top / name}"
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import build_clips
    from vat_nb.data.datasets import mer23
    from vat_nb.data.demo_clips import plan_demo
    from vat_nb.data.demo_data import write_demo

    top = tmp_path_factory.mktemp("store")
    index = mer23(write_demo(top / "demo", processes=0, plans=[p for p in plan_demo() if p.split == "train"][:6]))
    preprocess(build_clips(index), index.task, top / "store", fps=12.5, size=32, processes=1)
    return open_store(top / "store")


@pytest.fixture(scope="session")
def weights():
    "Real weights: Whisper's encoder and an emotion network; tests that need them skip where they are not."
    folder = PROJECT.parent / "shared" / "models"
    if not folder.is_dir():
        pytest.skip("the real weights are not on this machine")
    pytest.importorskip("onnxruntime")
    return folder


def vat(video, audio, dim=32):
    from vat_nb.model import VAT, Fusion

    return VAT(video, audio, Fusion(dim, 4, 1, context=dim), classes=6, targets=1, project=16)


def video_encoder(name, tuning="frozen", grid=1):
    from vat_nb.encoders.tuning import tuned_encoder
    from vat_nb.encoders.video_backbones import load_video_backbone

    return tuned_encoder(load_video_backbone(name, 12.5, grid), 32, 4, tuning=tuning)


def audio_encoder(name, tuning="frozen"):
    from vat_nb.encoders.audio_backbones import load_audio_backbone
    from vat_nb.encoders.tuning import tuned_encoder

    return tuned_encoder(load_audio_backbone(name), 32, 4, tuning=tuning)


def batch_of(store, frames=24):
    from vat_nb.data.dataloader import make_loader

    return next(iter(make_loader(store, store.usable(), frames=frames, batch_size=6)))


@pytest.mark.parametrize("tuning", ["frozen", "lora", "full"])
@pytest.mark.parametrize("video, audio, grid", [("vit", "large", 2), ("mae", "base", 1), ("vit", "whisper", 1)])
def test_training_teaches_what_it_should(names, store, video, audio, grid, tuning):
    "A step of pretraining and of fine-tuning: fixed stays, trained moves, the teacher follows, a checkpoint returns."
    from vat_nb.momentum import update_teacher
    from vat_nb.finetuning import Finetune
    from vat_nb.pretraining import PretrainWeights, Pretrain
    from vat_nb.optimizer import make_optimizer

    torch.manual_seed(0)
    make = lambda: vat(video_encoder(names[video], tuning, grid), audio_encoder(names[audio], tuning))
    batch = batch_of(store)
    for objective in (Pretrain(make(), queue_size=8, weights=PretrainWeights(masked=0.0)), Finetune(make())):
        student, teacher = objective.student.train(), objective.teacher
        before, taught = (
            {k: v.detach().clone() for k, v in student.named_parameters()},
            {k: v.detach().clone() for k, v in teacher.named_parameters()},
        )
        optimizer = make_optimizer(student)
        for _ in range(2):  # LoRA's first matrices move once the second ones are not zero
            optimizer.zero_grad()
            objective.single_step(batch, alpha=0.4).loss.backward()
            optimizer.step()
            update_teacher(teacher, student, 0.5)
        now, teacher_now = dict(student.named_parameters()), dict(teacher.named_parameters())
        moved = {k for k in before if not torch.equal(before[k], now[k])}
        backbone = {k for k in before if ".backbone." in k}
        if tuning == "frozen":
            assert not moved & backbone
        if tuning == "lora":
            assert moved & backbone and all("lora_" in k for k in moved & backbone)
        if tuning == "full":
            assert len(moved & backbone) > 0.7 * len(backbone)
        assert all(("lora_" in k or now[k].requires_grad) == (now[k] is not teacher_now[k]) for k in backbone), (
            "frozen weights are shared, trained ones are not"
        )
        assert all(not torch.equal(taught[k], teacher_now[k]) for k in moved)
        state = objective.state_dict()
        saved = {k for k in state if ".backbone." in k}
        if tuning == "frozen":
            assert not saved
        if tuning == "lora":
            assert saved and all("lora_" in k for k in saved)
        other = type(objective)(
            make(),
            **(dict(queue_size=8, weights=PretrainWeights(masked=0.0)) if isinstance(objective, Pretrain) else {}),
        )
        other.load_state_dict({k: v.clone() for k, v in state.items()})
        with torch.no_grad():
            assert torch.equal(other.student.eval()(batch).fused.logits, student.eval()(batch).fused.logits)


def test_places_of_the_picture_can_be_told_apart(names, store):
    "With video_grid a recipe reads places: another cache, four tokens a moment, and attention over them."
    from vat_nb.data.io import ParameterError
    from vat_nb.runs.pipeline import new_model
    from vat_nb.encoders.inputs import build_loader, feature_records, prepare_features
    from vat_nb.look.attention_record import compute_attention
    from vat_nb.look.attention_maps import average_maps, to_heatmap, raw

    recipe = recipe_of(names, store, video_grid=2)
    whole, places = prepare_features(store, recipe.replace(video_grid=1)), prepare_features(store, recipe)
    assert whole["audio"] == places["audio"] and whole["video"] != places["video"]
    assert feature_records(store.path, recipe)["video"].layout.grid == 2
    one = next(iter(build_loader(store, store.usable()[:1], recipe)))
    record = compute_attention(new_model(recipe, store, store.usable()), one)
    heat = to_heatmap(record, average_maps(raw(record)))
    assert heat.places.shape[1:] == (2, 2) and np.isclose(float(heat.places.sum()) + heat.cls, 1, atol=1e-4)
    for wrong, says in ((0, "1 to 16, not 0"), (2, "set video_grid to 1")):
        with pytest.raises(ParameterError, match=says):
            recipe.replace(
                video_grid=wrong, **(dict(video_encoder=None, linear_probe=False, dataset="demo") if wrong else {})
            )


def test_wrong_partners_are_drawn_uniformly_first(store, monkeypatch):
    from vat_nb import pretraining

    record, real = [], pretraining.matching_pairs

    def spy(*args, uniform, **more):
        record.append(uniform)
        return real(*args, uniform=uniform, **more)

    monkeypatch.setattr(pretraining, "matching_pairs", spy)
    from vat_nb.sizes import ModelConfig, build_vat

    model = build_vat(ModelConfig("tiny", 32, 12.5, 6))
    objective = pretraining.Pretrain(
        model, queue_size=8, weights=pretraining.PretrainWeights(masked=0.0, random_negatives=0.33)
    )
    for objective.progress in (0.0, 0.32, 0.34, 0.99):
        objective.single_step(batch_of(store), alpha=0.0)
    assert record == [True, True, False, False]


def test_attention_can_be_drawn(names, store):
    from vat_nb.look.attention_record import compute_attention
    from vat_nb.look.attention_maps import average_maps, to_heatmap, raw
    from vat_nb.look.attention_figure import plot_attention

    one = batch_of(store).select(torch.tensor([0]))
    for video, audio, grid, moments in (("vit", "large", 2, 1), ("mae", "base", 2, 2)):
        model = vat(video_encoder(names[video], grid=grid), audio_encoder(names[audio]))
        record = compute_attention(model, one)
        heat, frames = to_heatmap(record, average_maps(raw(record))), int(one.video_mask.sum())
        assert heat.places.shape == (-(-frames // moments), grid, grid) and heat.time.shape == (
            int(one.audio_mask.sum() - 80) // 320,
            len(heat.places),
        )
        plot_attention(model, one)


def recipe_of(names, store, **more):
    from vat_nb.training.settings_file import read_recipe

    values = dict(
        video_encoder=names["vit"],
        audio_encoder=names["whisper"],
        store_dir=str(store.path),
        fps=12.5,
        image_size=32,
        num_frames=24,
        batch_size=3,
    )
    return read_recipe("features", **values | more)


def test_small_model_trains_on_cached_features(names, store):
    from vat_nb.runs.pipeline import new_model
    from vat_nb.encoders.inputs import build_loader, prepare_features
    from vat_nb.finetuning import Finetune
    from vat_nb.optimizer import OptimConfig
    from vat_nb.training.accelerator import make_accelerator
    from vat_nb.training.fit import fit

    recipe = recipe_of(names, store, feature_dropout=0.0, dropout=0.0)
    folders = prepare_features(store, recipe)
    assert set(folders) == {"video", "audio"} and all(len(list((f / "clips").iterdir())) == 6 for f in folders.values())
    torch.manual_seed(0)
    objective, loader = (
        Finetune(new_model(recipe, store, store.usable())),
        build_loader(store, store.usable(), recipe, shuffle=True),
    )
    history = fit(objective, loader, make_accelerator("cpu", seed=0), epochs=20, config=OptimConfig(lr=3e-3))
    assert history[-1].losses["loss"] < 0.7 * history[0].losses["loss"]


def test_a_cache_goes_on_and_knows_what_is_old(names, store, tmp_path):
    from vat_nb.encoders.feature_cache import CachedSource, EncoderSpec, cache_folder
    from vat_nb.encoders.feature_extraction import cache_features

    spec, clips = EncoderSpec("video", names["mae"]), store.usable()
    cache_features(spec, store, clips[:2], tmp_path)
    first = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "clips").iterdir()}
    assert len(first) == 2
    cache_features(spec, store, clips, tmp_path)
    now = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "clips").iterdir()}
    assert len(now) == len(clips) and first.items() <= now.items(), "what was done was done again"
    (store.path / "clips" / f"{clips[0].id}.safetensors").touch()
    cache_features(spec, store, clips, tmp_path)
    later = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "clips").iterdir()}
    assert {n for n, t in later.items() if t != now[n]} == {f"{clips[0].id}.safetensors"}
    assert not [p for p in (tmp_path / "clips").iterdir() if p.name.startswith(".")]
    for other, what in ((replace(spec, layers="last"), "layers"), (EncoderSpec("video", names["vit"]), "digest")):
        with pytest.raises(ValueError, match=f"were made with another .*{what}"):
            cache_features(other, store, clips, tmp_path)
    assert cache_folder(store.path, spec) != cache_folder(store.path, replace(spec, rate=2.0))
    broken = tmp_path / "clips" / f"{clips[1].id}.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    with pytest.raises(ValueError, match="is no file of features .* delete it and run again"):
        CachedSource(tmp_path).read(clips[1])


def test_it_says_how_much_there_is_to_do(names, tmp_path, capsys):
    "Before the first clip: how many clips and bytes; after some: how many minutes."
    from conftest import write_noise
    from vat_nb.encoders.feature_cache import EncoderSpec
    from vat_nb.encoders.feature_extraction import cache_features
    from vat_nb.data.store import open_store

    store = open_store(write_noise(tmp_path / "store", 20))
    cache_features(EncoderSpec("video", names["vit"]), store, store.usable(), processes=1)
    printed = capsys.readouterr().out
    assert f"video features by {names['vit']}: 20 clips, 0.0 MB in" in printed and "minutes to go" in printed


def test_two_processes_write_what_one_does(names, store, tmp_path):
    from vat_nb.encoders import feature_extraction
    from vat_nb.encoders.feature_cache import CachedSource, EncoderSpec
    from vat_nb.encoders.feature_extraction import cache_features

    spec, clips = EncoderSpec("audio", names["whisper"], rate=12.5), store.usable()
    cache_features(spec, store, clips, tmp_path / "one")
    (tmp_path / "two").mkdir()
    assert sum(feature_extraction._in_processes(spec, store, clips, tmp_path / "two", 2)) == len(clips)
    (tmp_path / "two" / "settings.json").write_bytes((tmp_path / "one" / "settings.json").read_bytes())
    for c in clips:
        one, two = (CachedSource(tmp_path / k).read(c) for k in ("one", "two"))
        assert torch.allclose(one.values, two.values, atol=2e-3) and torch.equal(one.times, two.times)


def test_no_room_no_start(names, store, tmp_path, monkeypatch):
    from collections import namedtuple
    from vat_nb.encoders import feature_extraction
    from vat_nb.encoders.feature_cache import EncoderSpec
    from vat_nb.encoders.feature_extraction import cache_features

    monkeypatch.setattr(
        feature_extraction.shutil,
        "disk_usage",
        lambda folder: namedtuple("usage", "total used free")(2**30, 2**30 - 2**20, 2**20),
    )
    with pytest.raises(OSError, match="would take .* MB, and the disk of .* has 1 MB: make room, lower feature_rate"):
        cache_features(EncoderSpec("audio", names["whisper"]), store, store.usable(), tmp_path)
    assert not list((tmp_path / "clips").iterdir())


def test_clips_without_a_stream_and_too_short_ones(names, tmp_path, capsys):
    "A silent clip, one without a picture, and one too short for a token: nothing is lost, and it is said."
    import simplejpeg
    from vat_nb.types import Clip
    from vat_nb.runs.pipeline import new_model
    from vat_nb.evaluation.predictions import predict
    from vat_nb.encoders.inputs import build_loader, prepare_features
    from vat_nb.data.streams import DecodedClip
    from vat_nb.data.clip_files import save_clip
    from vat_nb.data.ledger import LedgerRow, append_rows
    from vat_nb.data.store import StoreSettings, open_store, write_clips
    from vat_nb.data.validation import MER23

    jpeg, rows = simplejpeg.encode_jpeg(np.full((32, 32, 3), 99, np.uint8)), []
    clips = [Clip(n, n, "train", "happy", (0.5,)) for n in ("whole", "silent", "blind", "short")]
    for clip, frames, samples in zip(clips, (10, 10, 0, 2), (16000, 0, 16000, 200)):
        media = DecodedClip(
            [jpeg] * frames,
            (np.arange(frames) + 0.5) / 10,
            (np.random.default_rng(0).normal(size=samples) * 3000).astype(np.int16),
            max(frames / 10, samples / 16000),
            (),
            "",
            None,
        )
        save_clip(tmp_path / "clips" / f"{clip.id}.safetensors", media)
        rows.append(LedgerRow(clip.id, split="train", duration=media.duration, frames=frames, samples=samples))
    append_rows(tmp_path, rows)
    write_clips(tmp_path, clips, MER23, StoreSettings(fps=10.0, size=32, quality=90, faces=None))
    store = open_store(tmp_path)
    recipe = recipe_of(names, store, fps=10.0)
    prepare_features(store, recipe)
    assert "1 clips are too short for one feature" in "".join(capsys.readouterr())
    batch = next(iter(build_loader(store, clips, recipe.replace(batch_size=4))))
    assert batch.video_mask.any(1).tolist() == [True, True, False, True] and batch.audio_mask.any(1).tolist() == [
        True,
        False,
        True,
        False,
    ]
    result = predict(new_model(recipe, store, clips), build_loader(store, clips, recipe))
    assert np.isfinite(result.logits["fused"]).all() and len(result.clips) == 4


def test_garbage_in_padding_and_company_change_nothing(names, store):
    "Through the cache, the loader and the model: other clips in the batch, more padding, garbage in it."
    from vat_nb.runs.pipeline import new_model
    from vat_nb.encoders.inputs import build_loader, prepare_features

    recipe = recipe_of(names, store, audio_layers="mix", video_layers="mix")
    prepare_features(store, recipe)
    model = new_model(recipe, store, store.usable()).eval()
    batch = next(iter(build_loader(store, store.usable(), recipe.replace(batch_size=6))))
    spoil = lambda x, m: torch.where(m.reshape(*m.shape, *[1] * (x.ndim - 2)), x, torch.full_like(x, torch.nan))
    with torch.no_grad():
        plain = model(batch).fused.logits
        spoilt = model(
            batch._replace(video=spoil(batch.video, batch.video_mask), audio=spoil(batch.audio, batch.audio_mask))
        ).fused.logits
        alone = torch.cat([model(next(iter(build_loader(store, [c], recipe)))).fused.logits for c in store.usable()])
        turned = model(batch.select(torch.arange(5, -1, -1))).fused.logits.flip(0)
    assert (
        torch.allclose(plain, spoilt, atol=1e-5)
        and torch.allclose(plain, alone, atol=1e-5)
        and torch.allclose(plain, turned, atol=1e-5)
    )


def test_a_saved_model_finds_its_encoders_again(names, store, tmp_path):
    "On another machine the encoder lies elsewhere; another of the same name is refused, and a missing one is named."
    import shutil
    from vat_nb.runs.pipeline import new_model
    from vat_nb.evaluation.predictions import predict
    from vat_nb.encoders.inputs import build_loader, prepare_features
    from vat_nb.runs.recognizer import Recognizer

    recipe = recipe_of(names, store)
    for stream in ("vit", "whisper"):
        shutil.copytree(names[stream].removeprefix("hf:"), tmp_path / "here" / stream)
    recipe = recipe.replace(video_encoder=f"hf:{tmp_path}/here/vit", audio_encoder=f"hf:{tmp_path}/here/whisper")
    prepare_features(store, recipe)
    model = new_model(recipe, store, store.usable())
    Recognizer(model, store.task, recipe).save_pretrained(tmp_path / "checkpoint")
    expected = predict(model, build_loader(store, store.usable(), recipe)).logits["fused"]
    again = Recognizer.from_pretrained(str(tmp_path / "checkpoint")).predict_store(store)
    assert np.allclose(again.logits["fused"], expected, atol=0.02)
    (tmp_path / "here").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="the encoder .*vit is not on this machine: copy vit into one of"):
        Recognizer.from_pretrained(str(tmp_path / "checkpoint")).predict_store(store)
    (tmp_path / "gone").rename(tmp_path / "checkpoint" / "models")
    again = Recognizer.from_pretrained(str(tmp_path / "checkpoint")).predict_store(store)
    assert np.allclose(again.logits["fused"], expected, atol=0.02)
    other = Recognizer.from_pretrained(str(tmp_path / "checkpoint"), audio_encoder=names["base"])
    with pytest.raises(ValueError, match="has other weights .* than the encoder that this model was trained with"):
        other.predict_store(store)


@pytest.mark.parametrize("tuning", ["frozen", "lora"])
def test_a_saved_model_knows_encoders_that_compute_as_it_reads(names, store, tmp_path, tuning):
    "Without cached features, too: both missing encoders are named, moved ones are found, others are refused."
    import shutil
    from vat_nb.runs.pipeline import new_model
    from vat_nb.evaluation.predictions import predict
    from vat_nb.encoders.inputs import build_loader
    from vat_nb.runs.recognizer import Recognizer

    for stream in ("vit", "large"):
        shutil.copytree(names[stream].removeprefix("hf:"), tmp_path / "here" / stream)
    recipe = recipe_of(
        names,
        store,
        video_encoder=f"hf:{tmp_path}/here/vit",
        audio_encoder=f"hf:{tmp_path}/here/large",
        encoder_tuning=tuning,
        cache_features=False,
    )
    model = new_model(recipe, store, store.usable())
    Recognizer(model, store.task, recipe).save_pretrained(tmp_path / "checkpoint")
    expected = predict(model, build_loader(store, store.usable(), recipe)).logits["fused"]
    (tmp_path / "here").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="copy vit into one of .*; and .* copy large into one of"):
        Recognizer.from_pretrained(str(tmp_path / "checkpoint"))
    (tmp_path / "gone").rename(tmp_path / "checkpoint" / "models")
    result = Recognizer.from_pretrained(str(tmp_path / "checkpoint")).predict_store(store).logits["fused"]
    assert np.allclose(result, expected, atol=1e-4)
    with pytest.raises(ValueError, match="has other weights"):
        Recognizer.from_pretrained(str(tmp_path / "checkpoint"), video_encoder=other_weights(names["vit"], tmp_path))


def other_weights(name, folder):
    "A copy of a checkpoint with one weight changed."
    import shutil
    from safetensors.torch import load_file, save_file

    copy = Path(shutil.copytree(name.removeprefix("hf:"), folder / "other"))
    weights = load_file(copy / "model.safetensors")
    key = sorted(k for k in weights if k.endswith("query.weight"))[0]
    save_file(weights | {key: weights[key] + 0.01}, copy / "model.safetensors", metadata=dict(format="pt"))
    return f"hf:{copy}"


def test_features_that_others_computed(names, store, tmp_path):
    "Train on a folder of .npy, with lacking, broken and mixed files each told in a sentence."
    from vat_nb.data.io import ParameterError
    from vat_nb.runs.pipeline import new_model
    from vat_nb.evaluation.predictions import predict
    from vat_nb.encoders.inputs import build_loader, can_corrupt, prepare_features
    from vat_nb.runs.recognizer import Recognizer

    rng = np.random.default_rng(0)
    for c in store.usable():
        np.save(tmp_path / f"{c.id}.npy", rng.normal(size=(30, 7)).astype("f"))
    recipe = recipe_of(names, store, audio_encoder=f"features:{tmp_path}")
    prepare_features(store, recipe)
    model = new_model(recipe, store, store.usable())
    assert len(predict(model, build_loader(store, store.usable(), recipe)).clips) == 6 and not can_corrupt(recipe)
    with pytest.raises(ValueError, match="somebody else computed .* reads no videos"):
        Recognizer(model, store.task, recipe).predict_store(store)
    with pytest.raises(ParameterError, match="name a pretrained encoder for both streams"):
        recipe.replace(video_encoder=None)
    (tmp_path / f"{store.usable()[2].id}.npy").unlink()
    with pytest.raises(ValueError, match="another digest"):
        prepare_features(store, recipe)


def test_whisper_equals_the_library_on_real_weights(weights, javased):
    "Token by token, at a clip's own length, every layer; and a batch of clips says what each says alone."
    import transformers
    from vat_nb.encoders.audio_backbones import load_audio_backbone
    from vat_nb.data.decoding import read_clip

    folder = weights / "whisper-tiny.en-encoder"
    library = transformers.WhisperModel.from_pretrained(folder, dtype=torch.float32).get_encoder().eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(folder)
    waves = [
        torch.from_numpy(read_clip(p, fps=1, size=16).audio) for p in sorted((javased / "clips").glob("*.mp4"))[:3]
    ]
    batch = nn.utils.rnn.pad_sequence(waves, batch_first=True)
    mask = torch.arange(batch.shape[1]) < torch.tensor([[len(w)] for w in waves])
    positions = library.embed_positions
    with torch.no_grad():
        ours = {k: load_audio_backbone(f"hf:{folder}", k) for k in (1, 2, "last")}
        for row, wave in enumerate(waves):
            mel = extractor(
                wave.numpy() / 32768, sampling_rate=16000, padding="do_not_pad", return_tensors="pt"
            ).input_features
            tokens = mel.shape[2] // 2
            library.config.max_source_positions, library.embed_positions = (
                tokens,
                nn.Embedding.from_pretrained(positions.weight[:tokens]),
            )
            message = library(mel[..., : 2 * tokens], output_hidden_states=True)
            for layer, expected in (
                (1, message.hidden_states[1]),
                (2, message.hidden_states[2]),
                ("last", message.last_hidden_state),
            ):
                features, real = ours[layer](batch, mask)
                assert int(real[row].sum()) == tokens
                assert torch.allclose(
                    features[row][real[row]], expected[0], atol=2e-3 * float(expected.abs().max()) + 1e-3
                ), layer


def test_the_emotion_network_equals_onnxruntime_by_hand(weights):
    import onnxruntime
    from vat_nb.encoders.video_backbones import load_video_backbone

    frames = torch.randint(0, 256, (2, 5, 3, 64, 64), dtype=torch.uint8)
    eye = load_video_backbone(f"onnx:{weights / 'emotion.onnx'}", 5.0)
    session = onnxruntime.InferenceSession(str(weights / "emotion.onnx"))
    expected = session.run(["features"], dict(frames=frames.flatten(0, 1).numpy().astype(np.float32) / 255))[0]
    result, real = eye(frames, torch.ones(2, 5, dtype=torch.bool))
    assert np.allclose(result.flatten(0, 1).numpy(), expected, atol=1e-4) and real.all()
    assert load_video_backbone(f"onnx:{weights / 'emotion.onnx'}", 5.0, options=dict(output="probabilities")).dim == 7


def test_pretraining_needs_no_label(names, store, tmp_path):
    "A data set without one label: a block of neighbours is held out, and nothing is fine-tuned."
    from vat_nb.data.io import ParameterError
    from vat_nb.runs.pipeline import pretrain
    from vat_nb.runs.splits import split_clips

    clips = [replace(c, emotion=None, targets=(np.nan,), speaker=None) for c in store.clips]
    bare = store._replace(clips=clips)
    recipe = recipe_of(names, store, stage="pretrain", valid_fraction=0.34)
    split = split_clips(bare, recipe)
    assert (
        [c.id for c in split.held_out] == sorted(c.id for c in clips)[-2:]
        and len(split.unlabelled) == 4
        and not split.test_splits
    )
    silent = bare._replace(ledger=bare.ledger.assign(samples=0))
    with pytest.raises(ParameterError, match="0 of 6 clips have both video and audio: there is nothing to train on"):
        pretrain(None, silent, clips, recipe, None)
    named = store._replace(clips=[replace(c, split="test" if i == 1 else "train") for i, c in enumerate(clips)])
    assert [c.id for c in split_clips(named, recipe).held_out] == [clips[1].id]


def test_named_pairs_say_what_they_need():
    "Without a network and without the files: one sentence, with the way out. Every pair says its size and licence."
    from vat_nb.training.settings_file import encoder_pairs, read_recipe

    pairs = encoder_pairs(PROJECT / "settings.ini")
    assert {"small", "chinese", "multilingual"} <= set(pairs)
    for name, message in pairs.items():
        assert (
            message["megabytes"] > 0 and message["licence"] and message["audio_encoder"] and message["video_encoder"]
        ), name
        assert read_recipe("mer23", encoders=name).reads_features
    for dataset in ("mer23", "cheavd2", "muse_mimic", "manifest"):
        assert read_recipe(dataset).reads_features and not read_recipe(dataset, encoders="none").reads_features
    assert not read_recipe("demo").reads_features


def test_without_a_network_it_says_so_at_once():
    "Only where there is none: the names are real."
    import huggingface_hub
    from vat_nb.encoders.audio_backbones import load_audio_backbone
    from vat_nb.encoders.video_backbones import load_video_backbone

    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception:
        pass
    else:
        pytest.skip("there is a network")
    for load, name in (
        (partial(load_video_backbone, fps=4), "hf:openai/clip-vit-large-patch14"),
        (load_audio_backbone, "hf:TencentGameMate/chinese-hubert-large"),
        (load_audio_backbone, "hf:openai/whisper-small"),
        (partial(load_video_backbone, fps=4), "timm:vit_small_patch16_224"),
    ):
        started = time.perf_counter()
        with pytest.raises(
            ConnectionError,
            match=r"is not on this machine and could not be fetched .* copy it here by other means .* -p encoders none",
        ):
            load(name)
        assert time.perf_counter() - started < 20, name  # the libraries alone take up to 47 s here


def test_what_a_library_has_cached_needs_no_network(names, tmp_path, monkeypatch):
    import huggingface_hub
    import timm
    from safetensors.torch import save_file
    from vat_nb.encoders.audio_backbones import load_audio_backbone
    from vat_nb.encoders.video_backbones import load_video_backbone

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def cached(repo, files):
        "As huggingface_hub lays a repository out."
        top = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (top / "snapshots" / "abc").mkdir(parents=True)
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text("abc")
        for name, write in files.items():
            write(top / "snapshots" / "abc" / name)

    source = Path(names["large"].removeprefix("hf:"))
    copied = {
        n: partial(lambda n, to: to.write_bytes((source / n).read_bytes()), n)
        for n in ("config.json", "preprocessor_config.json", "model.safetensors")
    }
    cached("someone/hubert", copied)
    wave, mask = torch.randn(1, 4000), torch.ones(1, 4000, dtype=bool)
    with torch.no_grad():
        assert torch.equal(
            load_audio_backbone("hf:someone/hubert")(wave, mask)[0], load_audio_backbone(names["large"])(wave, mask)[0]
        )
    net = timm.create_model("test_vit")
    cached(
        timm.get_pretrained_cfg("test_vit").hf_hub_id, {"model.safetensors": lambda to: save_file(net.state_dict(), to)}
    )
    ours = load_video_backbone("timm:test_vit", fps=4, layers="last").model
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in ours.state_dict().items())


def test_half_precision_checkpoints_are_read_in_full(names, tmp_path):
    import transformers
    from vat_nb.encoders.audio_backbones import load_audio_backbone

    transformers.AutoModel.from_pretrained(names["base"].removeprefix("hf:")).half().save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert {p.dtype for p in load_audio_backbone(f"hf:{tmp_path}").parameters()} == {torch.float32}


def test_a_checkpoint_with_holes_is_refused(names, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    from vat_nb.encoders.video_backbones import load_video_backbone

    shutil.copytree(names["vit"].removeprefix("hf:"), tmp_path / "vit")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if ".1." not in k},
        tmp_path / "vit" / "model.safetensors",
        metadata=dict(format="pt"),
    )
    with pytest.raises(ValueError, match="do not fit: .* are missing"):
        load_video_backbone(f"hf:{tmp_path / 'vit'}", fps=4)


def test_mixed_precision_and_dropped_frames(names):
    "Under bf16 the shapes and masks stay; a frame that is not real in the middle of a clip changes nothing."
    from vat_nb.encoders.audio_backbones import load_audio_backbone
    from vat_nb.encoders.video_backbones import load_video_backbone

    video, mask = (torch.rand(2, 7, 3, 32, 32) * 255).to(torch.uint8), torch.ones(2, 7, dtype=bool)
    mask[0, 3], mask[1, 5:] = False, False
    for name in ("vit", "mae"):
        eye, other = load_video_backbone(names[name], 12.5).requires_grad_(False), video.clone()
        other[~mask] = 7
        plain, real = eye(video, mask)
        assert torch.equal(eye(other, mask)[0], plain)
        with torch.autocast("cpu", torch.bfloat16):
            rough, _ = eye(video, mask)
        assert rough.dtype == torch.float32 and (rough - plain)[real].abs().max() < 0.2
    sound, audio_mask = torch.randn(2, 5000), torch.arange(5000) < torch.tensor([[5000], [3000]])
    for name in ("base", "large", "whisper"):
        ear = load_audio_backbone(names[name]).requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16):
            rough, real = ear(sound, audio_mask)
        assert (rough - ear(sound, audio_mask)[0])[real].abs().max() < 0.3


def test_a_copy_of_a_copy_and_a_move_keep_sharing(names):
    student = audio_encoder(names["large"])
    teacher = copy.deepcopy(copy.deepcopy(nn.ModuleList([student])))[0]
    student.to(torch.float64).to(torch.float32)
    for k, p in student.backbone.named_parameters():
        assert dict(teacher.backbone.named_parameters())[k] is p
    assert teacher.state_dict().keys() == student.state_dict().keys()


def test_exported_features_are_read_back(names, store, tmp_path):
    from vat_nb.encoders.feature_cache import EncoderSpec, CachedSource, export_features
    from vat_nb.encoders.feature_extraction import cache_features
    from vat_nb.encoders.folder_features import FolderSource

    folder = cache_features(
        EncoderSpec("audio", names["large"], "last4", 12.5), store, store.usable(), tmp_path / "cache"
    )
    assert export_features(folder, tmp_path / "npy") == 6
    assert json.loads((tmp_path / "npy" / "times.json").read_text())["layers"] == "last4"
    for c in store.usable():
        assert torch.equal(FolderSource(tmp_path / "npy", store).read(c).values, CachedSource(folder).read(c).values)
