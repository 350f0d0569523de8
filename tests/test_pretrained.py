"Pretrained encoders in the whole model: training, checkpoints, caches of the libraries, and no network."
import copy
import time
from functools import partial

import pytest
import torch
from torch import nn

SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64)
SPEECH = dict(conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2, **SMALL)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    "Tiny checkpoints in Hugging Face's format."
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()
    top, made = tmp_path_factory.mktemp("models"), {}
    vit, speech = transformers.ViTImageProcessor(size=dict(height=32, width=32)), transformers.Wav2Vec2FeatureExtractor()
    for name, model, processor in (("vit", transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **SMALL)), vit),
                                   ("mae", transformers.VideoMAEModel(transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, **SMALL)),
                                    transformers.VideoMAEImageProcessor(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))),
                                   ("base", transformers.Wav2Vec2Model(transformers.Wav2Vec2Config(**SPEECH)), speech),
                                   ("large", transformers.HubertModel(transformers.HubertConfig(**SPEECH, feat_extract_norm="layer", do_stable_layer_norm=True, layerdrop=0.0)), speech)):
        model.save_pretrained(top / name)
        processor.save_pretrained(top / name)
        made[name] = f"hf:{top / name}"
    return made


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    from vat_nb.preprocess import open_store, preprocess
    from vat_nb.releases import clips, mer23
    from vat_nb.synth import plan_demo, write_demo
    top = tmp_path_factory.mktemp("store")
    release = mer23(write_demo(top / "demo", processes=0, plans=[p for p in plan_demo() if p.split == "train"][:6]))
    preprocess(clips(release), release.task, top / "store", fps=12.5, size=32, processes=1)
    return open_store(top / "store")


def vat(video, audio, dim=32):
    from vat_nb.model import VAT, Fusion
    return VAT(video, audio, Fusion(dim, 4, 1, context=dim), classes=6, targets=1, project=16)


def batch_of(store, frames=24):
    from vat_nb.loading import make_loader
    return next(iter(make_loader(store, store.usable(), frames=frames, batch_size=6)))


@pytest.mark.parametrize("tune", ["frozen", "lora", "full"])
@pytest.mark.parametrize("video, audio, grid", [("vit", "large", 2), ("mae", "base", 1)])
def test_training_teaches_what_it_should(names, store, video, audio, grid, tune):
    "One step of pretraining and one of fine-tuning: what is fixed stays, what is trained moves, the teacher follows, a checkpoint comes back."
    from vat_nb.momentum import update_teacher
    from vat_nb.pretrained import audio_encoder, video_encoder
    from vat_nb.training import Finetune, Goals, Pretrain, make_optimizer
    torch.manual_seed(0)
    make = lambda: vat(video_encoder(names[video], 12.5, 32, 4, tune=tune, grid=grid), audio_encoder(names[audio], 32, 4, tune=tune))
    batch = batch_of(store)
    for objective in (Pretrain(make(), queue=8, goals=Goals(masked=0.0)), Finetune(make())):
        student, teacher = objective.student.train(), objective.teacher
        before, taught = {k: v.detach().clone() for k, v in student.named_parameters()}, {k: v.detach().clone() for k, v in teacher.named_parameters()}
        optimizer = make_optimizer(student)
        for _ in range(2):  # LoRA's first matrices move once the second ones are not zero
            optimizer.zero_grad()
            objective(batch, alpha=0.4).loss.backward()
            optimizer.step()
            update_teacher(teacher, student, 0.5)
        now, teacher_now = dict(student.named_parameters()), dict(teacher.named_parameters())
        moved = {k for k in before if not torch.equal(before[k], now[k])}
        backbone = {k for k in before if ".backbone." in k}
        if tune == "frozen": assert not moved & backbone
        if tune == "lora": assert moved & backbone and all("lora_" in k for k in moved & backbone)
        if tune == "full": assert len(moved & backbone) > 0.8 * len(backbone)
        assert all(("lora_" in k or tune == "full") == (now[k] is not teacher_now[k]) for k in backbone), "frozen weights are shared, trained ones are not"
        assert all(not torch.equal(taught[k], teacher_now[k]) for k in moved)
        state = objective.state_dict()
        assert sum(".backbone." in k for k in state) == dict(frozen=0, lora=2 * sum("lora_" in k for k in backbone), full=2 * sum(".backbone." in k for k in student.state_dict()))[tune]
        other = type(objective)(make(), **(dict(queue=8, goals=Goals(masked=0.0)) if isinstance(objective, Pretrain) else {}))
        other.load_state_dict({k: v.clone() for k, v in state.items()})
        with torch.no_grad(): assert torch.equal(other.student.eval()(batch).fusion.logits, student.eval()(batch).fusion.logits)


def test_attention_can_be_drawn(names, store):
    from vat_nb.saliency import averaged, lay_out, look, raw, show_attention
    from vat_nb.pretrained import audio_encoder, video_encoder
    one = batch_of(store).keep(torch.tensor([0]))
    for video, audio, grid, moments in (("vit", "large", 2, 1), ("mae", "base", 2, 2)):
        model = vat(video_encoder(names[video], 12.5, 32, 4, grid=grid), audio_encoder(names[audio], 32, 4))
        seen = look(model, one)
        heat, frames = lay_out(seen, averaged(raw(seen))), int(one.vmask.sum())
        assert heat.places.shape == (-(-frames // moments), grid, grid) and heat.time.shape == (int(one.amask.sum() - 80) // 320, len(heat.places))
        show_attention(model, one)


def test_small_model_trains_on_cached_features(names, store, tmp_path):
    from vat_nb.pretrained import cache_features, feature_encoders, feature_loader, load_audio, load_video
    from vat_nb.training import Finetune, Schedule, fit, make_accelerator
    clips = store.usable()
    assert cache_features(load_video(names["vit"], 12.5, grid=2), load_audio(names["large"]), store, clips, tmp_path) == len(clips)
    accelerator = make_accelerator("cpu", seed=0)
    objective, loader = Finetune(vat(*feature_encoders(tmp_path, 32, 4))), feature_loader(tmp_path, store, clips, frames=24, batch_size=3, shuffle=True)
    history = fit(objective, loader, accelerator, epochs=20, how=Schedule(lr=3e-3))
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_a_cache_goes_on_and_knows_what_is_old(names, store, tmp_path):
    from vat_nb.pretrained import cache_features, load_audio, load_video
    eye, ear, clips = load_video(names["mae"], 12.5), load_audio(names["base"]), store.usable()
    assert cache_features(eye, ear, store, clips[:2], tmp_path) == 2
    assert cache_features(eye, ear, store, clips, tmp_path) == len(clips) - 2
    (store.path / "clips" / f"{clips[0].id}.safetensors").touch()
    assert cache_features(eye, ear, store, clips, tmp_path) == 1
    assert not [p for p in (tmp_path / "clips").iterdir() if p.name.startswith(".")]
    again = load_video(names["mae"], 12.5)
    with torch.no_grad(): next(again.parameters())[0] += 1e-3
    with pytest.raises(ValueError, match="were made with another video"): cache_features(again, ear, store, clips, tmp_path)
    with pytest.raises(ValueError, match="were made with another audio"): cache_features(eye, load_audio(names["large"]), store, clips, tmp_path)


def test_without_a_network_it_says_so_at_once():
    "Only where there is none: the names are real."
    from vat_nb.pretrained import load_audio, load_video
    import huggingface_hub
    try: huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=5)
    except Exception: pass
    else: pytest.skip("there is a network")
    for load, name in ((partial(load_video, fps=4), "hf:google/vit-base-patch16-224"), (load_audio, "hf:TencentGameMate/chinese-hubert-large"), (partial(load_video, fps=4), "timm:vit_small_patch16_224"),
                       (partial(load_video, fps=4), "torchvision:vit_b_16"), (load_audio, "torchaudio:WAV2VEC2_BASE")):
        started = time.perf_counter()
        with pytest.raises(ConnectionError, match=r"is not on this machine and could not be fetched .* copy it here by other means and name the copy, such as"): load(name)
        assert time.perf_counter() - started < 20, name  # the libraries alone take up to 47 s here


def test_what_a_library_has_cached_needs_no_network(names, tmp_path, monkeypatch):
    import huggingface_hub
    import timm
    import torchaudio
    import torchvision
    from safetensors.torch import save_file
    from vat_nb.pretrained import load_audio, load_video
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.file_download.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def cached(repo, files):
        "As huggingface_hub lays a repository out."
        top = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        (top / "snapshots" / "abc").mkdir(parents=True)
        (top / "refs").mkdir()
        (top / "refs" / "main").write_text("abc")
        for name, write in files.items(): write(top / "snapshots" / "abc" / name)

    source = names["large"].removeprefix("hf:")
    cached("someone/hubert", {n: partial(lambda n, to: to.write_bytes(open(f"{source}/{n}", "rb").read()), n) for n in ("config.json", "preprocessor_config.json", "model.safetensors")})
    wave, mask = torch.randn(1, 4000), torch.ones(1, 4000, dtype=bool)
    with torch.no_grad(): assert torch.equal(load_audio("hf:someone/hubert")(wave, mask)[0], load_audio(names["large"])(wave, mask)[0])

    net = timm.create_model("test_vit")
    cached(timm.get_pretrained_cfg("test_vit").hf_hub_id, {"model.safetensors": lambda to: save_file(net.state_dict(), to)})
    ours = load_video("timm:test_vit", fps=4).model
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in ours.state_dict().items())

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    (tmp_path / "torch" / "checkpoints").mkdir(parents=True)
    net = torchvision.models.vit_b_32()
    torch.save(net.state_dict(), tmp_path / "torch" / "checkpoints" / torchvision.models.ViT_B_32_Weights.DEFAULT.url.rsplit("/")[-1])
    assert torch.equal(load_video("torchvision:vit_b_32", fps=4).model.conv_proj.weight, net.conv_proj.weight)
    params = dict(torchaudio.pipelines.HUBERT_BASE._params, encoder_num_layers=1)
    monkeypatch.setitem(torchaudio.pipelines.HUBERT_BASE._params, "encoder_num_layers", 1)
    net = torchaudio.models.wav2vec2_model(**params)
    torch.save(net.state_dict(), tmp_path / "torch" / "checkpoints" / torchaudio.pipelines.HUBERT_BASE._path.rsplit("/")[-1])
    heard = load_audio("torchaudio:HUBERT_BASE")
    assert heard.apart and heard.eps is None and heard.dim == 768
    with torch.no_grad(): assert torch.allclose(heard(wave, mask)[0], net.eval()(wave)[0], atol=1e-5)


def test_half_precision_checkpoints_are_read_in_full(names, tmp_path):
    import transformers
    from vat_nb.pretrained import load_audio
    transformers.AutoModel.from_pretrained(names["base"].removeprefix("hf:")).half().save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)
    assert {p.dtype for p in load_audio(f"hf:{tmp_path}").parameters()} == {torch.float32}


def test_a_checkpoint_with_holes_is_refused(names, tmp_path):
    import shutil
    from safetensors.torch import load_file, save_file
    from vat_nb.pretrained import load_video
    shutil.copytree(names["vit"].removeprefix("hf:"), tmp_path / "vit")
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    save_file({k: v for k, v in weights.items() if ".1." not in k}, tmp_path / "vit" / "model.safetensors", metadata=dict(format="pt"))
    with pytest.raises(ValueError, match="do not fit: .* are missing"): load_video(f"hf:{tmp_path / 'vit'}", fps=4)


def test_mixed_precision_and_dropped_frames(names):
    "Under bf16 the shapes and masks stay; a frame that is not real in the middle of a clip changes nothing."
    from vat_nb.pretrained import load_audio, load_video
    video, mask = (torch.rand(2, 7, 3, 32, 32) * 255).to(torch.uint8), torch.ones(2, 7, dtype=bool)
    mask[0, 3], mask[1, 5:] = False, False
    for name in ("vit", "mae"):
        eye, other = load_video(names[name], 12.5).requires_grad_(False), video.clone()
        other[~mask] = 7
        plain, real = eye(video, mask)
        assert torch.equal(eye(other, mask)[0], plain)
        with torch.autocast("cpu", torch.bfloat16): rough, _ = eye(video, mask)
        assert rough.dtype == torch.float32 and (rough - plain)[real].abs().max() < 0.2
    sound, amask = torch.randn(2, 5000), torch.arange(5000) < torch.tensor([[5000], [3000]])
    for name in ("base", "large"):
        ear = load_audio(names[name]).requires_grad_(False)
        with torch.autocast("cpu", torch.bfloat16): rough, real = ear(sound, amask)
        assert (rough - ear(sound, amask)[0])[real].abs().max() < 0.3


def test_a_copy_of_a_copy_and_a_move_keep_sharing(names):
    from vat_nb.pretrained import audio_encoder
    student = audio_encoder(names["large"], 32, 4)
    teacher = copy.deepcopy(copy.deepcopy(nn.ModuleList([student])))[0]
    student.to(torch.float64).to(torch.float32)
    for k, p in student.backbone.named_parameters(): assert dict(teacher.backbone.named_parameters())[k] is p
    assert teacher.state_dict().keys() == student.state_dict().keys()
