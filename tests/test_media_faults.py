"Every way one media file can be wrong, made with a real muxer: ledger row, reason, and nothing else changes."

import os
import subprocess
import sys

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe

FPS, SIZE = 4.0, 64


def ffmpeg(*arguments):
    subprocess.run([get_ffmpeg_exe(), "-y", "-loglevel", "error", *map(str, arguments)], check=True)


def picture(seconds=2.0, rate="25", size="320x180"):
    return "-f", "lavfi", "-i", f"testsrc2=size={size}:rate={rate}:duration={seconds}"


def tone(seconds=2.0, rate=48000):
    return "-f", "lavfi", "-i", f"aevalsrc=0.5*sin(440*2*PI*t):s={rate}:d={seconds}"


H264, AAC = ("-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p"), ("-c:a", "aac", "-b:a", "128k")
ODD_NAMES = ["-lead.mp4", "a 'b' \"c\".mp4", "[1] & co.mp4", "情感 表情.mp4", "per%cent;$HOME.mp4"]


def cut(path, share):
    path.write_bytes((raw := path.read_bytes())[: int(len(raw) * share)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Thirty files, each with its own trouble."
    f = tmp_path_factory.mktemp("faults")
    both = (*picture(), *tone())
    ffmpeg(*both, *H264, *AAC, "-movflags", "+faststart", f / "whole.mp4")
    ffmpeg(*both, *H264, *AAC, f / "no index.mp4")
    ffmpeg(*both, "-c:v", "mpeg4", "-vtag", "DIVX", "-c:a", "libmp3lame", f / "whole.avi")
    for name, source in (("cut.mp4", "whole.mp4"), ("cut.avi", "whole.avi")):
        (f / name).write_bytes((f / source).read_bytes())
    for name, share in (("no index.mp4", 0.5), ("cut.mp4", 0.5), ("cut.avi", 0.5)):
        cut(f / name, share)
    (f / "zero.mp4").write_bytes(b"")
    (f / "page.mp4").write_text("<html><body>404 not found</body></html>" * 40)
    ffmpeg(*picture(), *H264, f / "silent.mp4")
    ffmpeg(*tone(), *AAC, f / "blind.mp4")
    ffmpeg(*both, "-vf", "select='lt(n,20)+not(mod(n,4))'", "-fps_mode", "vfr", *H264, *AAC, f / "variable.mp4")
    ffmpeg(*picture(rate="12.5"), *tone(), *H264, *AAC, f / "12.5 fps.mp4")
    ffmpeg(*picture(rate="60000/1001"), *tone(), *H264, *AAC, f / "59.94 fps.mp4")
    ffmpeg(*both, "-output_ts_offset", "5", *H264, *AAC, f / "late.mkv")
    ffmpeg(*both, "-output_ts_offset", "5", *H264, *AAC, f / "late.ts")
    ffmpeg("-display_rotation", "90", "-i", f / "whole.mp4", "-c", "copy", f / "turned.mp4")
    ffmpeg(*picture(), "-frames:v", "1", *H264, f / "one frame.mp4")
    ffmpeg(*picture(0.08), *tone(0.08), *H264, *AAC, f / "blink.mp4")
    for rate in (8000, 22050, 44100):
        ffmpeg(*picture(), *tone(rate=rate), *H264, *AAC, "-ac", "1", f / f"{rate} Hz.mp4")
    ffmpeg(*both, "-af", "pan=stereo|c0=c0|c1=c0", *H264, *AAC, f / "stereo.mp4")
    ffmpeg(
        *both,
        "-af",
        "pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0",
        *H264,
        "-c:a",
        "ac3",
        "-b:a",
        "448k",
        f / "surround.mkv",
    )
    ffmpeg(*picture(2), *tone(3), *H264, *AAC, f / "long sound.mp4")
    for name in ODD_NAMES:
        (f / name).write_bytes((f / "whole.mp4").read_bytes())
    return f


def clips_of(folder):
    from vat_nb.types import Clip

    return [Clip(p.name, str(p), "train") for p in sorted(folder.iterdir()) if p.is_file()] + [
        Clip("gone.mp4", str(folder / "gone.mp4"), "train")
    ]


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    from vat_nb.data.store import open_store
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import Task

    store = tmp_path_factory.mktemp("store")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    ledger = preprocess(clips_of(folder), Task(()), store, fps=FPS, size=SIZE, processes=1)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, "a source was touched"
    return ledger.set_index("id"), open_store(store), store


@pytest.mark.parametrize(
    "name, status, reason",
    [
        ("whole.mp4", "ok", ""),
        ("whole.avi", "ok", ""),
        ("zero.mp4", "failed", "EMPTY"),
        ("page.mp4", "failed", "NOT_MEDIA"),
        ("no index.mp4", "failed", "OPEN_ERROR"),
        ("gone.mp4", "failed", "MISSING"),
        ("cut.mp4", "degraded", "TRUNCATED"),
        ("cut.avi", "degraded", "TRUNCATED"),
        ("silent.mp4", "degraded", "NO_AUDIO"),
        ("blind.mp4", "degraded", "NO_VIDEO"),
        ("one frame.mp4", "degraded", "NO_AUDIO"),
        ("blink.mp4", "degraded", "SHORT"),
        *((n, "ok", "") for n in ODD_NAMES),
    ],
)
def test_status_and_reason(run, name, status, reason):
    row = run[0].loc[name]
    assert row["status"] == status and reason in row["reason"].split() + [""] and (reason or not row["reason"]), dict(
        row
    )


def test_every_file_has_one_row_and_failed_ones_have_no_clip(run, folder):
    ledger, store, path = run
    assert sorted(ledger.index) == sorted(c.id for c in clips_of(folder)) and ledger.index.is_unique
    stored = {p.name.removesuffix(".safetensors") for p in (path / "clips").iterdir()}
    assert stored == set(ledger.index[ledger["status"] != "failed"])


def test_a_rerun_does_nothing(run, folder):
    from vat_nb.data.clip_rows import pending_clips
    from vat_nb.data.store import StoreSettings

    assert pending_clips(clips_of(folder), run[2], StoreSettings(fps=FPS, size=SIZE, quality=90, faces=None)) == []


@pytest.mark.parametrize(
    "name", ["12.5 fps.mp4", "59.94 fps.mp4", "late.mkv", "late.ts", "variable.mp4", "turned.mp4", "whole.avi"]
)
def test_frames_are_picked_by_time(run, name):
    "Whatever the rate and the first timestamp: eight frames of two seconds, and the picture is the one on screen then."
    from vat_nb.data.streams import decode_jpegs

    store = run[1]
    got, whole = (store.media(next(c for c in store.clips if c.id == n)) for n in (name, "whole.mp4"))
    assert (
        np.allclose(got.times, (np.arange(8) + 0.5) / FPS)
        and abs(got.duration - 2) < 0.1
        and abs(len(got.audio) - 32000) < 1700
    )
    if name == "turned.mp4":
        assert (
            np.abs(
                decode_jpegs(got.jpegs).astype(int) - np.rot90(decode_jpegs(whole.jpegs).astype(int), 1, (1, 2))
            ).mean()
            < 12
        )
    elif name not in ("variable.mp4", "whole.avi"):
        a, b = (decode_jpegs(m.jpegs).astype(int) for m in (got, whole))
        assert np.abs(a - b).mean() < np.abs(a - np.roll(b, 1, 0)).mean() / 2, "another moment is shown"


@pytest.mark.parametrize(
    "name", ["whole.mp4", "8000 Hz.mp4", "22050 Hz.mp4", "44100 Hz.mp4", "stereo.mp4", "surround.mkv"]
)
def test_sound_keeps_its_level(run, name):
    wave = run[1].media(next(c for c in run[1].clips if c.id == name)).audio[4000:28000] / 32768
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    assert abs(spectrum.argmax() * 16000 / len(wave) - 440) < 2 and abs(np.sqrt(2 * (wave**2).mean()) - 0.5) < 0.02


def test_short_files_keep_what_they_have(run):
    media = {
        n: run[1].media(next(c for c in run[1].clips if c.id == n))
        for n in ("one frame.mp4", "blink.mp4", "long sound.mp4", "cut.avi")
    }
    assert len(media["one frame.mp4"].jpegs) == 1 and len(media["blink.mp4"].jpegs) >= 1
    long = media[
        "long sound.mp4"
    ]  # a second more of sound than of picture: it is heard, and the row says that nothing is seen
    assert (
        abs(long.duration - 3) < 0.05
        and abs(len(long.audio) - 48000) < 800
        and len(long.jpegs) == 8
        and long.reasons == ("VIDEO_ENDS",)
    )
    assert "of 51 frames" in media["cut.avi"].detail


LONG = """
import sys
from vat_nb.types import Clip
from vat_nb.data.clip_rows import preprocess_clip
from vat_nb.data.store import StoreSettings
settings = StoreSettings(fps=4.0, size=160, quality=90, faces="cascade")
row = preprocess_clip(Clip("long", sys.argv[1], "train"), sys.argv[2], settings)
peak = next(int(line.split()[1]) // 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(row.status, row.frames, row.samples, peak)
"""


def test_ten_minutes_fit_into_600_megabytes(tmp_path):
    ffmpeg(*picture(600, "10", "640x360"), *tone(600), "-ac", "2", *H264, "-c:a", "pcm_s16le", tmp_path / "long.mkv")
    done = subprocess.run(
        [sys.executable, "-c", LONG, tmp_path / "long.mkv", tmp_path],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | dict(OMP_NUM_THREADS="1"),
    )
    status, frames, samples, megabytes = done.stdout.split()
    assert (status, int(frames), int(samples)) == ("degraded", 2400, 9_600_000), "no face is in a test picture"
    assert int(megabytes) < 600


def test_a_clip_has_a_time_limit(folder):
    from vat_nb.data.streams import MediaError
    from vat_nb.data.decoding import read_clip

    with pytest.raises(MediaError) as e:
        read_clip(folder / "whole.mp4", timeout_s=0.0)
    assert e.value.reason == "TIMEOUT"


def spoil(raw: bytes, rng) -> bytes:
    "Flip some bytes anywhere, or cut the end off, or both, or put a hole in."
    data, kind = bytearray(raw), rng.integers(4)
    if kind in (0, 2):
        for at in rng.integers(0, len(data), rng.integers(1, 60)):
            data[at] = rng.integers(256)
    if kind in (1, 2):
        del data[rng.integers(1, len(data)) :]
    if kind == 3:
        del data[(at := rng.integers(0, len(data))) : at + rng.integers(1, 5000)]
    return bytes(data)


def test_hundreds_of_spoilt_files(javased, tmp_path):
    "Never a crash, never a hang, never a wrong length that nobody is told of."
    from vat_nb.types import Clip
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import Task

    rng, sources = np.random.default_rng(0), sorted((javased / "clips").glob("*.mp4"))[::18]
    (tmp_path / "v").mkdir()
    for i in range(320):
        (tmp_path / "v" / f"{i % len(sources)}_{i:03d}.mp4").write_bytes(
            spoil(sources[i % len(sources)].read_bytes(), rng)
        )
    for i, p in enumerate(sources):
        (tmp_path / "v" / f"{i}_whole.mp4").write_bytes(p.read_bytes())
    clips = [Clip(p.stem, str(p), "train") for p in sorted((tmp_path / "v").iterdir())]
    ledger = preprocess(clips, Task(()), tmp_path / "store", size=64, processes=2, timeout_s=30.0).set_index("id")
    assert len(ledger) == len(clips) and set(ledger["status"]) == {"ok", "degraded", "failed"}
    agrees = lambda i, row, whole: (
        abs(row["duration"] - whole["duration"]) < 0.1
        and abs(row["frames"] - whole["frames"]) <= 1
        and abs(row["samples"] - whole["samples"]) < 1700
    )
    assert not [
        (i, row["duration"], row["frames"], row["samples"])
        for i, row in ledger[ledger["status"] == "ok"].iterrows()
        if not agrees(i, row, ledger.loc[f"{i[0]}_whole"])
    ]
