"Decoding real clips: the frames are those that a full decode shows, and the sound is the file's."

import av
import numpy as np
import pytest
from scipy.signal import resample_poly

from vat_nb.data.streams import decode_jpegs
from vat_nb.data.decoding import read_clip


@pytest.fixture(scope="module")
def files(javased):
    return sorted((javased / "clips").glob("*.mp4"))[::12]


def test_leaving_packets_out_changes_no_frame(files, monkeypatch):
    import vat_nb.data.packets as media

    for path in files:
        fast = read_clip(path)
        with monkeypatch.context() as m:
            m.setattr(media, "is_disposable", lambda packet, length_size: False)
            full = read_clip(path)
        assert (
            fast.jpegs == full.jpegs
            and np.array_equal(fast.times, full.times)
            and np.array_equal(fast.audio, full.audio)
        )


def test_frames_are_those_on_screen(files):
    for path in files[:4]:
        with av.open(str(path)) as c:
            every = [(f.time, f.to_ndarray(format="gray")) for f in c.decode(video=0)]
        got = read_clip(path, fps=4, size=90)
        for t, frame in zip(got.times, decode_jpegs(got.jpegs)):
            shown = max((f for f in every if f[0] <= t + 1e-9), key=lambda f: f[0])[1].astype(float)
            side, left = shown.shape[0], (shown.shape[1] - shown.shape[0]) // 2
            small = shown[:, left : left + side].reshape(90, side // 90, 90, side // 90).mean((1, 3))
            assert np.abs(small - frame.mean(2)).mean() < 8


def test_sound_keeps_its_level_and_its_place(files):
    for path in files[:4]:
        with av.open(str(path)) as c:
            parts = [f.to_ndarray() for f in c.decode(audio=0)]
            rate = c.streams.audio[0].rate
        theirs = resample_poly(np.concatenate(parts, 1).mean(0), 160, rate // 100)
        mine = read_clip(path).audio / 32768
        n = min(len(mine), len(theirs)) - 800
        assert abs(np.sqrt((mine[:n] ** 2).mean()) / np.sqrt((theirs[:n] ** 2).mean()) - 1) < 0.02
        assert np.corrcoef(mine[800:n], theirs[800:n])[0, 1] > 0.99


def test_two_detectors_find_the_same_faces(files, javased):
    "The cascade and YuNet were made apart: where they agree on real clips, both are right."
    from vat_nb.data.faces import face_locator, iou

    weights = javased.parent / "models" / "yunet_n_640_640.onnx"
    if not weights.is_file():
        pytest.skip("YuNet's weights are not on this machine")
    for path in files:
        a, b = (read_clip(path, fps=1, size=64, locate=face_locator(name)) for name in ("cascade", str(weights)))
        assert (
            a.reasons == b.reasons == () and iou(*(np.array([x, y, side, side]) for x, y, side in (a.box, b.box))) > 0.4
        ), path


def test_a_finished_store_is_opened_without_its_detector(files, javased, tmp_path):
    "Weights are only needed where there is a face to look for."
    from vat_nb.data import faces
    from vat_nb.types import Clip
    from vat_nb.data.preprocessing import preprocess
    from vat_nb.data.validation import Task

    weights = javased.parent / "models" / "yunet_n_640_640.onnx"
    if not weights.is_file():
        pytest.skip("YuNet's weights are not on this machine")
    here = tmp_path / weights.name
    here.write_bytes(weights.read_bytes())
    clips = [Clip(path.stem, str(path), "train") for path in files[:3]]
    task, store = Task((), ()), tmp_path / "store"
    done = preprocess(clips[:2], task, store, fps=1, size=64, faces=str(here), processes=1)
    here.unlink()
    faces.face_locator.cache_clear()  # as in a new process
    again = preprocess(clips[:2], task, store, fps=1, size=64, faces=str(here), processes=1)
    assert again.equals(done)
    with pytest.raises(FileNotFoundError, match="no YuNet weights"):
        preprocess(clips, task, store, fps=1, size=64, faces=str(here), processes=1)
