"Files whose streams begin, end, stop and jump, muxed at random: a reason tells every change, the rest is right."

# Frames and sounds carry their own number, so what is dropped, invented, silenced or shown at another time can be told.

import subprocess
from dataclasses import dataclass, field
from fractions import Fraction

import av
import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

FPS, BLOCK_S, LEVEL, TICKS = 8.0, 0.05, 0.3, 60000


@dataclass
class Spec:
    "What one file is like; times in s."

    container: str
    video_codec: str
    audio_codec: str
    frame_rate: Fraction
    rate: int
    layout: str
    where: str  # which channels sound
    video_start: float
    audio_start: float
    video_length: float
    audio_length: float
    gap: float = 0.0  # of the sound, in its middle
    still: float = 0.0  # the middle frame stands for as long
    jump: float = 0.0  # of both clocks, a second after the beginning
    sizes: tuple = ((64, 48),)
    other_tracks: int = 0  # before the one that counts
    frames: list = field(default_factory=list)  # s of each frame on the file's clock
    pieces: list = field(default_factory=list)  # (s on the file's clock, first sample, last sample)


def draw(rng) -> Spec:
    pick = lambda *options: options[rng.integers(len(options))]
    container = pick("mkv", "mkv", "mp4", "ts")
    codecs = dict(
        mkv=(("mjpeg", "libx264"), ("pcm_s16le", "flac", "ac3")),
        mp4=(("libx264", "mpeg4"), ("aac",)),
        ts=(("libx264",), ("aac", "ac3")),
    )
    video, audio = (pick(*c) for c in codecs[container])
    layout = pick("mono", "stereo", "5.1") if audio in ("ac3", "pcm_s16le") else pick("mono", "stereo")
    where = dict(mono=("all",), stereo=("all", "opposite"))
    where["5.1"] = ("centre", "fronts", "all")
    spec = Spec(
        container,
        video,
        audio,
        Fraction(pick(10, 25, "30000/1001")),
        pick(16000, 44100, 48000) if audio != "ac3" else pick(44100, 48000),
        layout,
        pick(*where[layout]),
        pick(0, 0, 0, 0.05, 0.5),
        pick(0, 0, 0, 0.05, 0.4),
        rng.uniform(0.6, 3),
        rng.uniform(0.6, 3),
    )
    if rng.random() < 0.4:
        spec.audio_length = spec.video_length
    if rng.random() < 0.2:
        spec.gap = pick(0.05, 0.4)
    if rng.random() < 0.2:
        spec.still = 0.7
    if rng.random() < 0.15 and container != "ts":
        spec.jump = pick(30, 3600)
    if rng.random() < 0.3 and video == "mjpeg":
        spec.sizes = ((64, 48), (48, 64), (96, 72))
    if rng.random() < 0.2 and container == "mkv":
        spec.other_tracks = 1
    return spec


def write(spec: Spec, path, rng) -> None:
    "Mux a file; the gray of a frame and the pitch of a sound say how far each stream has come."
    n = max(round(spec.video_length * spec.frame_rate), 3)
    times = [spec.video_start + float(i / spec.frame_rate) for i in range(n)]
    times = [t + (spec.still if i > n // 2 else 0) for i, t in enumerate(times)]
    spec.frames = [t + (spec.jump if spec.jump and t > 1 else 0) for t in times]
    samples = round(spec.audio_length * spec.rate)
    half = samples // 2
    cuts = sorted(
        {0, half, samples, *([k] if spec.jump and 0 < (k := round((1 - spec.audio_start) * spec.rate)) < half else [])}
    )
    for a, b in zip(cuts, cuts[1:]):
        at = spec.audio_start + a / spec.rate + (spec.gap if a >= half else 0)
        spec.pieces.append((at + (spec.jump if spec.jump and at > 1 else 0), a, b))
    phase = 2 * np.pi * np.cumsum(300 + 700 * np.arange(samples) / samples) / spec.rate
    voice = (LEVEL * np.sin(phase)).astype(np.float32)
    with av.open(str(path), "w") as file:
        picture = file.add_stream(
            spec.video_codec,
            spec.frame_rate,
            width=64,
            height=48,
            pix_fmt="yuvj420p" if spec.video_codec == "mjpeg" else "yuv420p",
        )
        picture.codec_context.time_base = Fraction(1, TICKS)
        if spec.video_codec == "libx264":
            picture.options = dict(preset="ultrafast", tune="zerolatency")
        others = [file.add_stream("pcm_s16le", 16000, layout="mono") for _ in range(spec.other_tracks)]
        sound = file.add_stream(spec.audio_codec, spec.rate, layout=spec.layout)
        if others:
            sound.disposition = av.stream.Disposition.default
            for o in others:
                o.disposition = av.stream.Disposition(0)
        packets = []
        for i, t in enumerate(spec.frames):
            width, height = spec.sizes[i * len(spec.sizes) // n]
            gray = np.full((height, width, 3), round(30 + 190 * i / n), np.uint8)
            if spec.video_codec == "mjpeg":  # each frame by itself, so that the size may change
                one = av.CodecContext.create("mjpeg", "w")
                one.width, one.height, one.pix_fmt, one.time_base = width, height, "yuvj420p", Fraction(1, TICKS)
                encode = one.encode
            else:
                encode = picture.encode
            frame = av.VideoFrame.from_ndarray(gray, "rgb24")
            frame.pts, frame.time_base = round(t * TICKS), Fraction(1, TICKS)
            for p in encode(frame):
                p.stream, p.time_base = picture, Fraction(1, TICKS)
                if spec.video_codec == "mjpeg":
                    p.pts = p.dts = round(t * TICKS)
                packets.append(p)
        if spec.video_codec != "mjpeg":
            packets += picture.encode()
        for at, a, b in spec.pieces:
            for k in range(a, b, 1024):
                x = voice[k : min(k + 1024, b)]
                lines = dict(mono=[x], stereo=[x, -x if spec.where == "opposite" else x])
                none = 0 * x
                six = dict(centre=[none, none, x, none, none, none], fronts=[x, x, none, none, none, none])
                lines["5.1"] = six.get(spec.where, [x] * 6)
                frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(lines[spec.layout]), "fltp", spec.layout)
                frame.sample_rate, frame.time_base = spec.rate, Fraction(1, spec.rate)
                frame.pts = round((at + (k - a) / spec.rate) * spec.rate)
                for f in (
                    av.AudioResampler(sound.format, spec.layout, spec.rate).resample(frame)
                    if spec.audio_codec in ("pcm_s16le", "flac")
                    else [frame]
                ):
                    packets += sound.encode(f)
        packets += sound.encode()
        for o in others:
            quiet = av.AudioFrame.from_ndarray((rng.normal(size=(1, 16000)) * 3000).astype(np.int16), "s16", "mono")
            quiet.sample_rate, quiet.pts = 16000, 0
            packets += [*o.encode(quiet), *o.encode()]
        for p in sorted((p for p in packets if p.dts is not None), key=lambda p: p.dts * p.time_base):
            file.mux(p)


def progress_of_sound(x) -> float:
    "How far the sound has come, 0..1, from its pitch; NaN where it is silent."
    if len(x) < 400 or np.sqrt(np.mean(x**2)) < 0.02:
        return np.nan
    spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x)), 8192))
    return (spectrum.argmax() * 16000 / 8192 - 300) / 700


def differences(spec: Spec, media) -> dict:
    "s of each stream that are dropped, invented or at another time, against what was muxed."
    from vat_nb.data.streams import decode_jpegs

    origin = spec.video_start if spec.video_start - spec.audio_start <= 0.05 else spec.audio_start
    n, frame_s = len(spec.frames), float(1 / spec.frame_rate)
    levels = [decode_jpegs([j])[0].mean() for j in media.jpegs]
    positions = {round(t * FPS - 0.5): (v - 30) / 190 * n for t, v in zip(media.times, levels)}
    picture_end = spec.frames[-1] + frame_s - origin
    wrong_picture, invented_picture = 0, max(spec.video_start - origin, 0)
    for k in range(int(picture_end * FPS + 0.5)):
        t = (k + 0.5) / FPS + origin
        if t < spec.video_start:
            continue
        i = np.searchsorted(spec.frames, t + 1e-6) - 1
        near = [j for j in (i - 1, i, i + 1) if 0 <= j < n and abs(spec.frames[j] - t) < 0.06 + frame_s] + [i]
        wrong_picture += k not in positions or min(abs(positions[k] - j) for j in near) > 0.08 * n / 3 + 1
    wave, samples = media.audio / 32768, sum(b - a for _, a, b in spec.pieces)
    dropped = silent = 0
    end = max(at + (b - a) / spec.rate for at, a, b in spec.pieces) - origin
    for k in range(round(end / BLOCK_S)):
        t = (k + 0.5) * BLOCK_S + origin
        block = wave[round(k * BLOCK_S * 16000) : round((k + 1) * BLOCK_S * 16000)]
        expected = next(
            ((a + (t - at) * spec.rate) / samples for at, a, b in spec.pieces if at <= t < at + (b - a) / spec.rate),
            np.nan,
        )
        got = progress_of_sound(block)
        if np.isnan(expected):
            silent += len(block) > 400
        else:
            dropped += np.isnan(got) or abs(got - expected) * samples / spec.rate > 0.12
    return dict(
        picture=wrong_picture / FPS + invented_picture,
        sound=(dropped + silent) * BLOCK_S,
        lost=max(wrong_picture / FPS, dropped * BLOCK_S),
    )


def decoded_by_ffmpeg(path, *how) -> bytes:
    return subprocess.run(
        [get_ffmpeg_exe(), "-loglevel", "error", "-i", path, *how, "-"], capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("seed", range(4))
def test_ffmpeg_sees_and_hears_the_same(seed, tmp_path):
    "The oracle is FFmpeg's own program: the grays of its frames, the length and the level of its sound."
    from vat_nb.data.streams import decode_jpegs
    from vat_nb.data.decoding import read_clip

    rng, positions = np.random.default_rng(100 + seed), 0
    while positions < 5:
        spec = draw(rng)
        if spec.jump or spec.gap or len(spec.sizes) > 1 or spec.where == "opposite" or spec.other_tracks:
            continue
        path, positions = tmp_path / f"{positions}.{spec.container}", positions + 1
        write(spec, path, rng)
        media = read_clip(path, fps=FPS, size=32)
        raw = decoded_by_ffmpeg(
            path, "-map", "0:v:0", "-fps_mode", "passthrough", "-vf", "scale=8:8,format=gray", "-f", "rawvideo"
        )
        grays = np.frombuffer(raw, np.uint8).reshape(-1, 64).mean(1)
        assert len(grays) == len(spec.frames)
        origin = spec.video_start if spec.video_start - spec.audio_start <= 0.05 else spec.audio_start
        at = np.searchsorted(spec.frames, media.times + origin + 1e-6, side="right") - 1
        ours = np.array([decode_jpegs([j])[0].mean() for j in media.jpegs])
        near = np.min([np.abs(ours - grays[np.clip(at + d, 0, len(grays) - 1)]) for d in (-1, 0, 1)], 0)
        assert near.max() < 12, (spec, near)  # ranges of TV and of JPEG differ a little
        channels = {"mono": 1, "stereo": 2, "5.1": 6}[spec.layout]
        sound = np.frombuffer(
            decoded_by_ffmpeg(path, "-map", "0:a:0", "-f", "f32le", "-c:a", "pcm_f32le"), np.float32
        ).reshape(-1, channels)
        assert abs(len(sound) / spec.rate - spec.audio_length) < 0.1
        line = sound[:, 2 if spec.where == "centre" else 0]
        loud = lambda x: np.sqrt(np.mean(x[np.abs(x) > 0.01] ** 2))
        assert abs(loud(media.audio / 32768) / loud(line) - 1) < 0.05, spec


@pytest.mark.parametrize("seed", range(10))
def test_what_is_not_as_it_was_muxed_is_told(seed, tmp_path):
    from vat_nb.data.decoding import read_clip

    rng, num_degraded = np.random.default_rng(seed), 0
    for i in range(30):
        spec = draw(rng)
        path = tmp_path / f"{i}.{spec.container}"
        write(spec, path, rng)
        media = read_clip(path, fps=FPS, size=32)
        num_degraded += bool(media.reasons)
        if spec.jump:
            held = (
                max(spec.video_length + spec.still, spec.audio_length + spec.gap) + spec.video_start + spec.audio_start
            )
            assert media.duration < held + 3, (spec, media.duration, media.reasons)  # no hour out of a few frames
            if spec.frames[-1] > 10:
                assert "JUMP" in media.reasons, (spec, media.reasons)
            continue
        result = differences(spec, media)
        assert result["lost"] <= 0.2, (spec, result, media.reasons, media.duration)  # read rightly
        if max(result["picture"], result["sound"]) > 0.2:
            assert media.reasons, (spec, result, media.duration)
        odd = (
            spec.gap
            or spec.where == "opposite"
            or abs(spec.video_start - spec.audio_start) > 0.03
            or abs(spec.video_length - spec.audio_length) > 0.05
            or spec.still
        )
        if not odd:
            assert not media.reasons, (spec, media.reasons, media.detail)
        assert ("CANCELS" in media.reasons) == (spec.where == "opposite"), (spec, media.reasons)
        loud = media.audio[np.abs(media.audio) > 300] / 32768
        assert abs(np.sqrt(np.mean(loud**2)) - LEVEL / 2**0.5) < 0.15 * LEVEL, (spec, np.sqrt(np.mean(loud**2)))
        if spec.other_tracks:
            assert "audio track 2 of 2" in media.detail, media.detail
    assert 3 < num_degraded < 30


def test_a_clock_that_starts_again(tmp_path):
    "Two transport streams glued together: all pictures and all sound, one after the other, and the row says so."
    from vat_nb.data.streams import decode_jpegs
    from vat_nb.data.decoding import read_clip

    rng = np.random.default_rng(0)
    for i in (0, 1):
        spec = Spec("ts", "libx264", "aac", Fraction(25), 44100, "mono", "all", 0, 0, 2.0, 2.0)
        write(spec, tmp_path / f"{i}.ts", rng)
    (tmp_path / "both.ts").write_bytes((tmp_path / "0.ts").read_bytes() + (tmp_path / "1.ts").read_bytes())
    media = read_clip(tmp_path / "both.ts", fps=FPS, size=32)
    grays = [decode_jpegs([j])[0].mean() for j in media.jpegs]
    assert "JUMP" in media.reasons and abs(media.duration - 4) < 0.2 and abs(len(media.audio) / 16000 - 4) < 0.2
    assert (
        np.argmax(np.diff(grays) < -50) in range(14, 18) and sum(np.diff(grays) < -50) == 1
    )  # the second begins where the first ends
    sound = [progress_of_sound(media.audio[round(t * 16000) :][:800] / 32768) for t in (0.5, 1.5, 2.5, 3.5)]
    assert np.allclose(sound, [0.25, 0.75, 0.25, 0.75], atol=0.08), sound


def test_each_size_has_a_square_of_its_own(tmp_path):
    "Where the size changes in mid-stream, the face is looked for again, and its square lies inside the picture."
    from vat_nb.data.decoding import read_clip

    spec = Spec(
        "mkv",
        "mjpeg",
        "pcm_s16le",
        Fraction(10),
        16000,
        "mono",
        "all",
        0,
        0,
        3.0,
        3.0,
        sizes=((64, 48), (48, 64), (160, 120)),
    )
    write(spec, tmp_path / "a.mkv", np.random.default_rng(0))
    shapes = []

    def corner(frames):
        shapes.append(frames[0].shape[:2])
        return 0.5 * frames[0].shape[1], 0.5 * frames[0].shape[0], 0.5 * min(frames[0].shape[:2])

    media = read_clip(tmp_path / "a.mkv", fps=FPS, size=32, locate=corner)
    assert shapes == [(48, 64), (64, 48), (120, 160)] and len(media.jpegs) == 24 and not media.reasons
