"Shards on a server: only the bytes asked for, only one's own shards, the same batches, and a server that goes."

import http.server
import json
import re
import subprocess
import sys
import tarfile
import threading

import pytest
from conftest import write_noise


class Handler(http.server.BaseHTTPRequestHandler):
    "Files of a folder, in part where asked for, and a note of each request; after /as/NAME/ comes an ordinary path."

    def do_GET(self):
        server, name = self.server, re.sub("^/(as/[^/]*/)?", "", self.path)
        byte_range = self.headers.get("Range")
        server.requests.append((self.path, byte_range))
        if server.broken:
            server.broken -= 1
            return self.send_error(503)
        try:
            raw = (server.folder / name).read_bytes()
        except FileNotFoundError:
            return self.send_error(404)
        if byte_range and server.ranges:
            first, last = map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", byte_range).groups())
            raw = raw[first : last + 1]
        self.send_response(206 if byte_range and server.ranges else 200)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(written):
    result = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    result.folder, result.requests, result.broken, result.ranges, result.address = (
        written[1],
        [],
        0,
        True,
        f"http://127.0.0.1:{result.server_port}",
    )
    threading.Thread(target=result.serve_forever, daemon=True).start()
    yield result
    result.shutdown()
    result.server_close()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "A store of 24 clips, and its shards: six of training clips."
    from vat_nb.data.store import open_store
    from vat_nb.data.shards import write_shards

    folder = tmp_path_factory.mktemp("far")
    store = open_store(write_noise(folder / "store", 24))
    write_shards(store, folder / "shards", 3)
    return store, folder / "shards"


def test_only_the_bytes_of_a_clip_are_read(written, server):
    from vat_nb.data.store import open_store

    store, folder = written
    far = open_store(server.address)
    assert sorted(p for p, _ in server.requests) == ["/clips.csv", "/index.json", "/ledger.csv", "/settings.json"]
    index = json.loads((folder / "index.json").read_text())
    for clip in far.usable()[::5]:
        server.requests.clear()
        media, same = far.media(clip), store.media(clip)
        shard, start, size = index["members"][clip.id]
        assert server.requests == [(f"/{index['shards'][shard]}", f"bytes={start}-{start + size - 1}")]
        assert media.jpegs == same.jpegs and (media.audio == same.audio).all() and media[3:] == same[3:]
        assert size == (store.path / "clips" / f"{clip.id}.safetensors").stat().st_size


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_batches_are_those_of_the_store(written, server, start):
    "Read by a worker process, which inherits or is sent a store that this process has read from before."
    from vat_nb.data.dataloader import make_loader
    from vat_nb.data.store import open_store

    store, far = written[0], open_store(server.address)
    far.media(far.usable()[0])
    there = make_loader(far, far.usable("train"), 6, 5, True, workers=1, seed=3)
    there.multiprocessing_context = start
    here = make_loader(store, store.usable("train"), 6, 5, True, seed=3)
    for epoch in range(2):
        for loader in (here, there):
            loader.sampler.set_epoch(epoch)
        for a, b in zip(here, there, strict=True):
            assert all(x.equal(y) for x, y in zip(a.tensors().values(), b.tensors().values()))


READ = """
import sys
from vat_nb.data.store import open_store
from vat_nb.data.dataloader import assign_shards
address, rank, processes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
store = open_store(f"{address}/as/{rank}")
clips = store.usable("train")
for clip, owner in zip(clips, assign_shards(store, clips, processes)):
    if owner == rank: print(clip.id, len(store.media(clip).jpegs))
"""


def test_each_process_reads_its_own_shards_only(written, server):
    store, folder = written
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", READ, server.address, str(rank), "2"], stdout=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    ids = [{line.split()[0] for line in r.communicate()[0].splitlines()} for r in runs]
    assert (
        [r.returncode for r in runs] == [0, 0]
        and not ids[0] & ids[1]
        and ids[0] | ids[1] == {c.id for c in store.usable("train")}
        and len(ids[0]) == len(ids[1]) == 9
    )
    shards = [{p for p, part in server.requests if p.startswith(f"/as/{rank}/") and part} for rank in range(2)]
    assert [len(s) for s in shards] == [3, 3] and not {p.split("/")[-1] for p in shards[0]} & {
        p.split("/")[-1] for p in shards[1]
    }


def test_parts_are_even_and_follow_the_clips(written):
    from vat_nb.data.store import open_store
    from vat_nb.data.dataloader import assign_shards

    far = open_store(written[1])
    clips = far.usable()
    for processes in (1, 2, 3, 4):
        owner = dict(zip([c.id for c in clips], assign_shards(far, clips, processes)))
        counts = [list(owner.values()).count(p) for p in range(processes)]
        assert max(counts) - min(counts) <= 3 and sum(counts) == 24
        assert all(
            len({owner[i] for i, (s, *_) in far.shards.members.items() if s == n}) == 1
            for n in range(len(far.shards.files))
        )
        assert assign_shards(far, clips[::-1], processes) == list(owner.values())[::-1]
    with pytest.raises(ValueError, match="too few for 9 processes"):
        assign_shards(far, clips, 9)


def test_a_server_that_errs_is_asked_again_and_one_that_is_gone_ends_in_words(written, server, monkeypatch):
    import vat_nb.data.remote_files as remote_files
    from vat_nb.data.store import open_store

    monkeypatch.setattr(remote_files, "RETRY_DELAYS_S", (0.01, 0.01))
    far = open_store(server.address)
    clip = far.usable()[0]
    server.requests.clear()
    server.broken = 2
    assert far.media(clip).jpegs and len(server.requests) == 3
    server.ranges = False
    with pytest.raises(OSError, match="a server that sends parts of a file"):
        far.media(clip)
    server.ranges = True
    with pytest.raises(FileNotFoundError, match="there is no .*is the address right"):
        far._replace(shards=far.shards._replace(files=["gone.tar"] * 9)).media(clip)
    server.broken = 10**9
    with pytest.raises(OSError, match="cannot be read .*is the server there"):
        far.media(clip)
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="cannot be read .*is the server there") as e:
        far.media(clip)
    assert "\n" not in str(e.value)


def test_an_index_from_elsewhere_leads_nowhere(written, server, tmp_path):
    import shutil

    from vat_nb.data.store import open_store

    server.folder = shutil.copytree(written[1], tmp_path / "served")
    index = json.loads((written[1] / "index.json").read_text())
    (tmp_path / "secret.tar").write_bytes(b"x" * 10**6)
    wrong = [
        index | dict(shards=[name, *index["shards"][1:]])
        for name in ("../secret.tar", "/etc/passwd", "a.tar?b", "file::x.tar")
    ]
    wrong += [
        index | dict(members=index["members"] | {"clip01": at})
        for at in ([99, 0, 5], [0, -9, 5], [0, 0, 10**15], [0, 0, 0], 7)
    ]
    for text in (*map(json.dumps, wrong), "[]", '{"a":' * 100_000):
        (server.folder / "index.json").write_text(text)
        server.requests.clear()
        with pytest.raises(ValueError, match="index.json"):
            open_store(server.address)
        with pytest.raises(ValueError, match="index.json"):
            open_store(server.folder)
        assert len(server.requests) == 4 and not [p for p, _ in server.requests if "secret" in p]
    (server.folder / "index.json").write_text(
        json.dumps(index | dict(members={k: v for k, v in index["members"].items() if k != "clip07"}))
    )
    with pytest.raises(ValueError, match="lack 1 of its clips, such as clip07"):
        open_store(server.address)


def test_a_writing_that_was_cut_off_goes_on(written, tmp_path, monkeypatch):
    import vat_nb.data.shards as shards
    from vat_nb.data.store import open_store

    store, left = written[0], [3]

    def full(path, raw, real=shards.write_atomically):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(path, raw)

    with monkeypatch.context() as m:
        m.setattr(shards, "write_atomically", full)
        with pytest.raises(OSError):
            shards.write_shards(store, tmp_path / "s", 3)
    done = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").glob("*.tar")}
    assert len(done) == 3 and not (tmp_path / "s/index.json").exists()
    (tmp_path / "s" / sorted(p.name for p in done)[0]).write_bytes(b"half a tar file")
    result = shards.write_shards(store, tmp_path / "s", 3)
    assert sum(p.stat().st_mtime_ns != t for p, t in done.items()) == 1, (
        "a finished shard was written again, or a broken one was not"
    )
    assert {p.name: p.read_bytes() for p in (tmp_path / "s").iterdir()} == {
        p.name: p.read_bytes() for p in written[1].iterdir()
    }
    assert [result.read_bytes(c) for c in result.usable()] == [store.read_bytes(c) for c in store.usable()]
    assert open_store(tmp_path / "s").shards == result.shards


def test_others_read_the_shards(written):
    "tarfile, and the webdataset package where it is installed: each clip with what is known of it."
    from vat_nb.data.clip_files import decode_clip

    store, folder = written
    result = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            result |= {m.name: tar.extractfile(m).read() for m in tar}
    assert len(result) == 48 and all(result[f"{c.id}.safetensors"] == store.read_bytes(c) for c in store.usable())
    clip = store.usable("train")[0]
    assert {k: v for k, v in json.loads(result[f"{clip.id}.json"]).items() if k != "made"} == dict(
        id=clip.id, split="train", emotion=clip.emotion, targets=[0.5], speaker=clip.speaker, duration=1.0
    )
    wds = pytest.importorskip("webdataset", reason='webdataset is not installed: pip install "vat_nb[dev]"')
    samples = list(wds.WebDataset([str(p) for p in sorted(folder.glob("train-*.tar"))], shardshuffle=False))
    assert {s["__key__"] for s in samples} == {c.id for c in store.usable("train")}
    for s in samples:
        assert (
            json.loads(s["json"])["id"] == s["__key__"] and len(decode_clip(s["safetensors"], s["__key__"]).jpegs) == 10
        )
