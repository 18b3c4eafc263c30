"""Downloads from a real server on this machine that misbehaves in every way we could think of.

Whatever it does, a file with another checksum is never in place and never in use, and what is in place is complete.
"""

import dataclasses
import hashlib
import http.server
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from common import HOPPER, dataset

import d4rl
from d4rl import DatasetError, downloads, tasks

RELOCATE = "relocate-human-v1"  # nobody has published its checksum
LIFT = "robomimic/lift-ph"


# --- the server ---
class Handler(http.server.BaseHTTPRequestHandler):
    """GET /PLACE/...: what `server.answers[PLACE]`, a function of this module, does with the file's bytes."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        place = self.path.split("/")[1]
        self.server.requests.append(self.path)
        self.close_connection = True
        try:
            self.server.answers[place](self, self.server.contents)
        except ConnectionError:  # the client went away
            pass

    def head(self, length, status=200, **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": length, "Connection": "close"} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def log_message(self, *_):
        pass


def good(handler, contents):
    handler.head(len(contents))
    handler.wfile.write(contents)


def slow(handler, contents):
    """In 20 pieces; notes what lies under the real name meanwhile."""
    handler.head(len(contents))
    for start in range(0, len(contents), len(contents) // 20):
        handler.server.seen.append(handler.server.watched.exists())
        handler.wfile.write(contents[start : start + len(contents) // 20])
        handler.wfile.flush()
        handler.server.half_way.set()
        time.sleep(handler.server.pause)


def cut_off(handler, contents):
    handler.head(len(contents))
    handler.wfile.write(contents[: len(contents) // 2])


def cut_off_without_length(handler, contents):
    handler.head(None)
    handler.wfile.write(contents[: len(contents) // 2])


def reset(handler, contents):
    cut_off(handler, contents)
    handler.wfile.flush()
    reset_on_close = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset_on_close)
    handler.connection.close()


def status(code):
    return lambda handler, contents: handler.head(0, status=code)


def wrong_bytes(handler, contents):
    good(handler, contents[:-1] + bytes([contents[-1] ^ 1]))


def too_long(handler, contents):
    good(handler, contents + b"\0")


def too_short(handler, contents):
    good(handler, contents[:-1])


def empty(handler, contents):
    handler.head(0)


def web_page(handler, contents):
    good(handler, b"<html>Sign in to use this network</html>")


def redirect(handler, contents):
    handler.head(0, status=302, Location="/good/elsewhere")


def redirect_for_ever(handler, contents):
    handler.head(0, status=302, Location=handler.path)


def redirect_to_nowhere(handler, contents):
    handler.head(0, status=302, Location="http://127.0.0.1:1/")


def silent(handler, contents):
    handler.server.stop.wait(5)


def stuck_half_way(handler, contents):
    cut_off(handler, contents)
    handler.wfile.flush()
    handler.server.stop.wait(5)


IMPATIENT = {silent: 0.5, stuck_half_way: 0.5}  # TIMEOUT in s


def not_http(handler, contents):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


def bad_chunks(handler, contents):
    handler.head(None, Transfer_Encoding="chunked")
    handler.wfile.write(b"what?\r\n")


def not_gzip(handler, contents):
    handler.head(len(contents), Content_Encoding="gzip")
    handler.wfile.write(contents)


def bad_length(handler, contents):
    handler.head("many")
    handler.wfile.write(contents[:-1])


FAULTS = {  # what the user reads about it
    cut_off: "IncompleteRead",
    cut_off_without_length: "another checksum",
    reset: "Connection reset by peer",
    status(403): "403 Forbidden",
    status(404): "404 Not Found",
    status(429): "429 Too Many Requests",
    status(500): "500 Internal Server Error",
    status(503): "503 Service Unavailable",
    status(204): "another checksum",
    wrong_bytes: "another checksum",
    too_long: "another checksum",
    too_short: "another checksum",
    empty: "0 bytes with another checksum",
    web_page: "40 bytes with another checksum",
    redirect_for_ever: "Exceeded 30 redirects",
    redirect_to_nowhere: "Connection refused",
    silent: "timed out",
    stuck_half_way: "timed out",
    not_http: "SSH-2.0-OpenSSH_9.9",
    bad_chunks: "what",
    not_gzip: "incorrect header check",
    bad_length: "many",
}


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The server; its /first/ stands for D4RL's, /mirror/ for the mirror, /robomimic/ for robomimic's."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.stop, server.half_way = True, threading.Event(), threading.Event()
    server.contents = dataset(tmp_path / "original.hdf5").read_bytes()
    server.answers = {"first": good, "mirror": good, "robomimic": good, "good": good}
    server.requests, server.seen, server.pause = [], [], 0.005
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    monkeypatch.setattr(tasks, "D4RL", f"{server.address}/first/")
    monkeypatch.setattr(downloads, "MIRROR", f"{server.address}/mirror/")
    monkeypatch.setattr(tasks, "ROBOMIMIC", f"{server.address}/robomimic/")
    monkeypatch.setattr(downloads, "TIMEOUT", 20)  # the machine may be busy
    monkeypatch.setenv("D4RL_DATASET_DIR", str(tmp_path / "new" / "datasets"))
    monkeypatch.setenv("ROBOMIMIC_DATASET_DIR", str(tmp_path / "new" / "robomimic"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    downloads._say.cache_clear()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def hopper(server, monkeypatch):
    """The task whose published file is the one that the server has."""
    spec = published(HOPPER, server.contents, monkeypatch)
    server.watched = spec.default_path
    return spec


@pytest.fixture
def relocate(server, tmp_path):
    """The task without a published checksum, whose file the server has."""
    server.contents = dataset(tmp_path / "original.hdf5", RELOCATE).read_bytes()
    return d4rl.task(RELOCATE)


def published(env_id, contents, monkeypatch):
    sha256 = hashlib.sha256(contents).hexdigest()
    spec = dataclasses.replace(d4rl.task(env_id), bytes=len(contents), sha256=sha256)
    monkeypatch.setitem(tasks.TASKS, env_id, spec)
    return spec


def sentence(spec, **kwargs):
    """What `fetch` raises, after a look at its form."""
    with pytest.raises(DatasetError) as error:
        downloads.fetch(spec, **kwargs)
    said = str(error.value)
    assert "\n" not in said and said.endswith((".", "?")) and ".." not in said, said
    return said


def files(folder):
    """All but the empty lock files."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def name(answer):
    return getattr(answer, "__name__", None)


# --- servers ---
def test_first_use_downloads(hopper, server, capsys):
    data = d4rl.get_dataset(HOPPER)
    assert len(data["rewards"]) == 300 and hopper.default_path.read_bytes() == server.contents
    assert server.requests == ["/first/gym_mujoco_v2/hopper_medium-v2.hdf5"]
    assert f"Downloading {hopper.url} to {hopper.default_path}" in capsys.readouterr().err
    assert downloads.fetch(hopper) == hopper.default_path and len(d4rl.get_dataset(HOPPER)["rewards"]) == 300
    assert len(server.requests) == 1  # from now on from the disk
    assert files(hopper.default_path.parent) == ["hopper_medium-v2.hdf5"]


@pytest.mark.parametrize("answer", FAULTS, ids=[f"{name(a)}-{said[:3]}" for a, said in FAULTS.items()])
def test_first_server_fails(answer, hopper, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", IMPATIENT.get(answer, 20))
    server.answers["first"] = answer
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert server.requests[-1] == "/mirror/hopper_medium-v2.hdf5"
    assert files(hopper.default_path.parent) == ["hopper_medium-v2.hdf5"]


@pytest.mark.parametrize("answer", FAULTS, ids=[f"{name(a)}-{said[:3]}" for a, said in FAULTS.items()])
def test_both_servers_fail(answer, hopper, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", IMPATIENT.get(answer, 20))
    server.answers |= {"first": answer, "mirror": answer}
    said = sentence(hopper)
    assert said.count(FAULTS[answer]) == 2, said
    for place in (hopper.url, f"{server.address}/mirror/hopper_medium-v2.hdf5", str(hopper.default_path)):
        assert place in said
    assert files(hopper.default_path.parent) == []
    server.answers["first"] = good  # nothing is left that would spoil the next attempt
    assert downloads.fetch(hopper).read_bytes() == server.contents


def test_redirect(hopper, server):
    server.answers["first"] = redirect
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert server.requests[1:] == ["/good/elsewhere"]


def test_slow_server(hopper, server):
    server.answers["first"] = slow
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert len(server.seen) >= 20 and not any(server.seen)  # never half a file under the real name


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("http://127.0.0.1:1/", "Connection refused"),
        ("http://no-such-host.invalid/", "ame "),  # "Name or service not known", "failure in name resolution"
        ("http://127.0.0.1:99999/", "Failed to parse"),
        ("no-scheme/", "No scheme supplied"),
    ],
)
def test_no_server(hopper, server, monkeypatch, base, message):
    monkeypatch.setattr(tasks, "D4RL", base)
    assert downloads.fetch(hopper).read_bytes() == server.contents  # from the mirror
    hopper.default_path.unlink()
    monkeypatch.setattr(downloads, "MIRROR", base)
    said = sentence(hopper)
    assert said.count(message) == 2 and str(hopper.default_path) in said and hopper.url in said
    assert files(hopper.default_path.parent) == []


def test_bundled_file_needs_no_server(server):
    assert len(d4rl.get_dataset("maze2d-large-demos-v0")["rewards"]) == 2400
    assert not server.requests


# --- files that are there ---
@pytest.mark.parametrize(
    "change", [lambda b: b[:-1], lambda b: b + b"\0", lambda b: b[:99] + b"?" + b[100:], lambda b: b""]
)
def test_file_that_is_there_is_verified_each_time(hopper, server, change):
    path = downloads.fetch(hopper)
    path.write_bytes(changed := change(server.contents))
    for _ in range(2):
        said = sentence(hopper)
        assert str(path) in said and hopper.sha256 in said and "delete it" in said and "--dataset-path" in said
        with pytest.raises(DatasetError, match="delete it"):
            d4rl.get_dataset(HOPPER)
    assert sentence(hopper, allow_unverified=True) == said  # consent is for files without a published checksum
    assert path.read_bytes() == changed and len(server.requests) == 1  # a user's file stays as it is
    path.unlink()
    assert downloads.fetch(hopper).read_bytes() == server.contents


def test_named_file_is_used_as_it_is(hopper, server, tmp_path):
    other = dataset(tmp_path / "other.hdf5", rows=200)
    assert len(d4rl.get_dataset(HOPPER, other)["rewards"]) == 200 and not server.requests


def test_file_that_appears_during_the_download_stays(hopper, server):
    def appears(handler, contents):
        hopper.default_path.write_bytes(b"mine")
        good(handler, contents)

    server.answers["first"] = appears
    assert "delete it" in sentence(hopper)
    assert hopper.default_path.read_bytes() == b"mine" and files(hopper.default_path.parent) == [
        hopper.default_path.name
    ]


def test_link_to_the_file(hopper, server, tmp_path):
    hopper.default_path.parent.mkdir(parents=True)
    hopper.default_path.symlink_to(tmp_path / "original.hdf5")
    assert downloads.fetch(hopper) == hopper.default_path and not server.requests
    (tmp_path / "original.hdf5").unlink()
    assert "No such file" in sentence(hopper) and hopper.default_path.is_symlink() and not server.requests


def test_leftover_of_a_killed_process(hopper, server):
    part = hopper.default_path.with_name("hopper_medium-v2.hdf5.part")
    part.parent.mkdir(parents=True)
    part.write_bytes(server.contents * 2)
    server.answers |= {"first": status(404), "mirror": status(404)}
    assert "404" in sentence(hopper) and files(part.parent) == []
    part.write_bytes(server.contents * 2)
    server.answers["first"] = good
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert files(part.parent) == ["hopper_medium-v2.hdf5"]


# --- no published checksum ---
def test_consent(relocate, server, capsys):
    path = relocate.default_path
    said = sentence(relocate)
    for part in (f"python -m d4rl fetch {RELOCATE} --allow-unverified", relocate.url, str(path)):
        assert part in said
    assert not server.requests and not path.parent.exists()
    with pytest.raises(DatasetError, match="--allow-unverified"):
        d4rl.get_dataset(RELOCATE)

    sha256 = hashlib.sha256(server.contents).hexdigest()
    assert downloads.fetch(relocate, allow_unverified=True) == path
    said = capsys.readouterr().err
    assert "UNVERIFIED" in said and sha256 in said
    checked = subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], cwd=path.parent, capture_output=True)
    assert checked.returncode == 0
    assert len(d4rl.get_dataset(RELOCATE)["rewards"]) == 300  # consent once is enough
    assert len(server.requests) == 1 and capsys.readouterr().err == ""

    path.write_bytes(server.contents[:-1])  # from now on it is verified, whatever the consent
    for consent in (False, True):
        assert sha256 in sentence(relocate, allow_unverified=consent)
    path.unlink()
    server.answers["first"] = wrong_bytes  # and so is a new download, which needs no consent
    assert downloads.fetch(relocate).read_bytes() == server.contents
    assert server.requests[-1].startswith("/mirror/")


def test_consent_to_a_file_put_there_by_hand(relocate, server, monkeypatch, tmp_path, capsys):
    for base in ((tasks, "D4RL"), (downloads, "MIRROR")):  # offline
        monkeypatch.setattr(*base, "http://127.0.0.1:1/")
    path = relocate.default_path
    said = sentence(relocate, allow_unverified=True)
    assert "Connection refused" in said and str(path) in said
    path.write_bytes(server.contents)
    assert f"fetch {RELOCATE} --allow-unverified to accept {path} as it is" in sentence(relocate)
    with pytest.raises(DatasetError, match="--allow-unverified"):
        d4rl.get_dataset(RELOCATE)
    assert files(path.parent) == [path.name]
    assert downloads.fetch(relocate, allow_unverified=True) == path
    assert "UNVERIFIED" in capsys.readouterr().err
    assert downloads.fetch(relocate) == path
    assert path.with_name(f"{path.name}.sha256").read_text().split() == [
        hashlib.sha256(server.contents).hexdigest(),
        path.name,
    ]


@pytest.mark.parametrize("answer", [cut_off, cut_off_without_length, web_page, empty, silent, status(404)], ids=name)
def test_unverified_download_has_to_hold_the_task(answer, relocate, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", IMPATIENT.get(answer, 20))
    server.answers |= {"first": answer, "mirror": answer}
    said = sentence(relocate, allow_unverified=True)
    assert ".part" not in said
    assert files(relocate.default_path.parent) == []  # no checksum is noted either
    server.answers["mirror"] = good
    assert downloads.fetch(relocate, allow_unverified=True).read_bytes() == server.contents


def test_unverified_file_of_another_task_is_refused(relocate, server, tmp_path):
    server.contents = dataset(tmp_path / "hopper.hdf5", HOPPER).read_bytes()
    assert "did you mean another --env-id" in sentence(relocate, allow_unverified=True)
    relocate.default_path.write_bytes(server.contents)
    assert "did you mean another --env-id" in sentence(relocate, allow_unverified=True)
    assert files(relocate.default_path.parent) == [relocate.default_path.name]
    assert "--allow-unverified" in sentence(relocate)


@pytest.mark.parametrize("note", [b"", b"\xff\xfe\n", b"not a checksum\n"])
def test_damaged_note(relocate, server, note):
    path = downloads.fetch(relocate, allow_unverified=True)
    path.with_name(f"{path.name}.sha256").write_bytes(note)
    said = sentence(relocate)
    assert f"{path.name}.sha256" in said if note else "--allow-unverified" in said


# --- robomimic ---
def test_robomimic(server, monkeypatch):
    spec = published(LIFT, server.contents, monkeypatch)
    path = downloads.fetch(spec)
    assert path == Path(os.environ["ROBOMIMIC_DATASET_DIR"], "lift", "ph", "low_dim_v15.hdf5")
    assert path.read_bytes() == server.contents
    assert server.requests == ["/robomimic/v1.5/lift/ph/low_dim_v15.hdf5"]
    path.write_bytes(b"another version of it")
    assert "delete it" in sentence(spec)
    path.unlink()
    server.answers["robomimic"] = status(500)
    assert "500" in sentence(spec) and files(path.parent) == []


@pytest.mark.parametrize("name", ["low_dim_v141.hdf5", "low_dim_v15.hdf5"])
def test_robomimic_file_without_a_known_checksum(server, monkeypatch, capsys, name):
    spec = dataclasses.replace(d4rl.task(LIFT), bytes=None, sha256=None)
    assert f"{server.address}/robomimic/{spec.path}" in sentence(spec)
    path = spec.default_path.with_name(name)  # where robomimic's own downloader puts it
    path.parent.mkdir(parents=True)
    path.write_bytes(b"whatever")
    for _ in range(3):
        assert downloads.fetch(spec) == path
    assert capsys.readouterr().err.count(f"UNVERIFIED: {path}") == 1  # once per process
    spec = published(LIFT, server.contents, monkeypatch)
    if name == "low_dim_v141.hdf5":  # what is published is the checksum of the other one
        assert downloads.fetch(spec) == path
        spec.default_path.write_bytes(server.contents)
        assert downloads.fetch(spec) == spec.default_path
    else:
        assert "delete it" in sentence(spec)
    assert not server.requests


# --- disk ---
def test_disk_is_too_small(hopper, server):
    said = sentence(dataclasses.replace(hopper, bytes=10**18))
    assert "1,000,000,000,000,000,000 bytes" in said and "D4RL_DATASET_DIR" in said and not server.requests
    assert files(hopper.default_path.parent) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_gets_full(hopper, server):
    hopper.default_path.parent.mkdir(parents=True)
    hopper.default_path.with_name("hopper_medium-v2.hdf5.part").symlink_to("/dev/full")
    said = sentence(hopper)
    assert "No space left on device" in said and "D4RL_DATASET_DIR" in said
    assert len(server.requests) == 1  # the mirror would not help
    assert files(hopper.default_path.parent) == [] and Path("/dev/full").exists()


def test_folder_cannot_be_made(hopper, server, tmp_path, monkeypatch):
    (tmp_path / "new").write_text("a file in place of a folder")
    assert "Not a directory" in sentence(hopper) and not server.requests
    assert (tmp_path / "new").read_text() == "a file in place of a folder"


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="no /sys, where even root cannot make files")
@pytest.mark.parametrize("folder", ["/sys/kernel", "/sys/kernel/datasets"])
def test_folder_cannot_be_written(hopper, server, monkeypatch, folder):
    monkeypatch.setenv("D4RL_DATASET_DIR", folder)
    said = sentence(dataclasses.replace(hopper, bytes=None))  # (there is no space either)
    assert "ermi" in said and folder in said and "D4RL_DATASET_DIR" in said  # "Permission denied", "... not permitted"
    assert not server.requests


def test_folder_in_place_of_the_file(hopper, server):
    hopper.default_path.mkdir(parents=True)
    assert "Is a directory" in sentence(hopper) and not server.requests


# --- processes ---
PROCESS = """
import dataclasses, sys
import d4rl.__main__
from d4rl import downloads, tasks
address, size, sha256, *arguments = sys.argv[1:]
tasks.D4RL, downloads.MIRROR = f"{address}/first/", f"{address}/mirror/"
tasks.TASKS["hopper-medium-v2"] = dataclasses.replace(
    tasks.TASKS["hopper-medium-v2"], bytes=int(size), sha256=sha256
)
sys.argv[1:] = arguments
d4rl.__main__.main()
"""


def start(server, spec, **kwargs):
    command = [sys.executable, "-c", PROCESS, server.address, str(spec.bytes), spec.sha256, "fetch", spec.env_id]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs)


def test_three_processes_at_once(hopper, server):
    server.answers["first"], server.pause = slow, 0.1
    processes = [start(server, hopper) for _ in range(3)]
    said = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert all(out == f"{HOPPER}: {hopper.default_path}\n" for out, _ in said)
    assert len(server.requests) == 1 and not any(server.seen)  # the others waited for the first
    assert hopper.default_path.read_bytes() == server.contents
    assert files(hopper.default_path.parent) == [hopper.default_path.name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_process_is_stopped_half_way(hopper, server, number):
    server.answers["first"], server.pause = slow, 1
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs would ignore it
    process = start(server, hopper, preexec_fn=listening)
    assert server.half_way.wait(30)
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    server.pause = 0
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    left = [] if number == signal.SIGINT else ["hopper_medium-v2.hdf5.part"]
    assert files(hopper.default_path.parent) == left and "Traceback" not in error
    server.answers["first"] = good
    assert downloads.fetch(hopper).read_bytes() == server.contents  # no lock is left either
    assert files(hopper.default_path.parent) == [hopper.default_path.name]


def test_limit_on_file_size(hopper, server):
    limit = len(server.contents) // 2
    process = start(server, hopper, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2 and "File too large" in error and "Traceback" not in error
    assert error.splitlines()[-1].startswith("error: ") and files(hopper.default_path.parent) == []
