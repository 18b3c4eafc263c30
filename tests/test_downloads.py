"""Downloads from a real server on this machine that misbehaves in every way we could think of.

Whatever it does, a file with another checksum is never in place or in use, and what is in place is complete.
"""

import dataclasses
import hashlib
import http.server
import os
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
        self.server.requests.append(self.path)
        self.close_connection = True
        try:
            self.server.answers[self.path.split("/")[1]](self, self.server.contents)
        except ConnectionError:  # the client went away
            pass

    def log_message(self, *_):
        pass


def sends(body=lambda contents: contents, status=200, **headers):
    """An answer: a part of the contents, or something else. A header of None is left out."""

    def answer(handler, contents):
        handler.send_response(status)
        for name, value in ({"Content_Length": len(contents), "Connection": "close"} | headers).items():
            if value is not None:
                handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body(contents))
        handler.wfile.flush()

    return answer


def half(contents):
    return contents[: len(contents) // 2]


def wrong(contents):
    return contents[:-1] + bytes([contents[-1] ^ 1])


good, not_found = sends(), sends(half, 404)
WEB_PAGE = b"<html>Sign in to use this network</html>"


def slow(handler, contents):
    """In 20 pieces; notes what lies under the real name meanwhile."""
    sends(lambda contents: b"")(handler, contents)
    for start in range(0, len(contents), len(contents) // 20):
        handler.server.seen.append(handler.server.watched.exists())
        handler.wfile.write(contents[start : start + len(contents) // 20])
        handler.server.half_way.set()
        time.sleep(handler.server.pause)


def stuck_half_way(handler, contents):
    sends(half)(handler, contents)
    handler.server.stop.wait(5)


def reset_half_way(handler, contents):
    sends(half)(handler, contents)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


def not_http(handler, contents):
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.9\r\n")


FAULTS = {  # an answer, and what the user reads about it
    "cut off": (sends(half), "IncompleteRead"),
    "cut off without a length": (sends(half, Content_Length=None), "another checksum"),
    "reset": (reset_half_way, "Connection reset by peer"),
    "stuck": (stuck_half_way, "timed out"),
    "not found": (not_found, "404 Not Found"),
    "wrong bytes": (sends(wrong), "another checksum"),
    "web page": (sends(lambda contents: WEB_PAGE, Content_Length=40), "40 bytes with another checksum"),
    "redirected for ever": (sends(half, 302, Location="/first/again"), "Exceeded 30 redirects"),
    "redirected to nowhere": (sends(half, 302, Location="http://127.0.0.1:1/"), "Connection refused"),
    "not HTTP": (not_http, "SSH-2.0-OpenSSH_9.9"),
    "bad chunks": (sends(lambda contents: b"what?\r\n", Transfer_Encoding="chunked"), "what"),
    "not gzip": (sends(Content_Encoding="gzip"), "incorrect header check"),
    "bad length": (sends(Content_Length="many"), "many"),
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
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


# --- servers ---
def test_first_use_downloads(hopper, server, capsys):
    server.answers |= {"first": sends(half, 302, Location="/good/elsewhere"), "good": slow}
    path = hopper.default_path
    assert len(d4rl.get_dataset(HOPPER)["rewards"]) == 300 and path.read_bytes() == server.contents
    assert server.requests == ["/first/gym_mujoco_v2/hopper_medium-v2.hdf5", "/good/elsewhere"]
    assert len(server.seen) >= 20 and not any(server.seen)  # never half a file under the real name
    assert f"Downloading {hopper.url} to {path}" in capsys.readouterr().err
    assert downloads.fetch(hopper) == path and len(server.requests) == 2  # from now on from the disk
    assert files(path.parent) == [path.name]


@pytest.mark.parametrize(("answer", "message"), FAULTS.values(), ids=FAULTS)
def test_server_fails(answer, message, hopper, server, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2 if answer is stuck_half_way else 20)
    server.answers |= {"first": answer, "mirror": answer}
    said = sentence(hopper)
    assert said.count(message) == 2, said
    for place in (hopper.url, f"{server.address}/mirror/hopper_medium-v2.hdf5", str(hopper.default_path)):
        assert place in said
    assert files(hopper.default_path.parent) == []  # nothing that would spoil the next attempt
    server.answers["mirror"] = good
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert server.requests[-1] == "/mirror/hopper_medium-v2.hdf5"
    assert files(hopper.default_path.parent) == ["hopper_medium-v2.hdf5"]


# --- files that are there ---
def test_file_that_is_there_is_verified_each_time(hopper, server):
    path = downloads.fetch(hopper)
    for changed in (server.contents[:-1], server.contents + b"\0", b""):
        path.write_bytes(changed)
        said = sentence(hopper)
        for part in (path, hopper.sha256, "as published", "delete it", "--dataset-path"):
            assert str(part) in said
        assert sentence(hopper, allow_unverified=True) == said  # consent is for files of unknown checksum
        assert path.read_bytes() == changed and len(server.requests) == 1  # a user's file stays as it is
    with pytest.raises(DatasetError, match="delete it"):
        d4rl.get_dataset(HOPPER)


def test_named_and_bundled_files_are_used_as_they_are(hopper, server, tmp_path):
    assert len(d4rl.get_dataset(HOPPER, dataset(tmp_path / "other.hdf5", rows=200))["rewards"]) == 200
    assert len(d4rl.get_dataset("maze2d-large-demos-v0")["rewards"]) == 2400
    assert not server.requests


def test_file_that_appears_during_the_download_stays(hopper, server):
    def appears(handler, contents):
        hopper.default_path.write_bytes(b"mine")
        good(handler, contents)

    server.answers["first"] = appears
    assert "delete it" in sentence(hopper)
    assert hopper.default_path.read_bytes() == b"mine"
    assert files(hopper.default_path.parent) == [hopper.default_path.name]


def test_link_to_the_file(hopper, server, tmp_path):
    hopper.default_path.parent.mkdir(parents=True)
    hopper.default_path.symlink_to(tmp_path / "original.hdf5")
    assert downloads.fetch(hopper) == hopper.default_path
    (tmp_path / "original.hdf5").unlink()
    assert "No such file" in sentence(hopper) and hopper.default_path.is_symlink() and not server.requests


# --- no published checksum ---
def test_consent(relocate, server, capsys):
    path, sha256 = relocate.default_path, hashlib.sha256(server.contents).hexdigest()
    said = sentence(relocate)
    for part in (f"python -m d4rl fetch {RELOCATE} --allow-unverified", relocate.url, str(path)):
        assert part in said
    assert not server.requests and not path.parent.exists()

    assert downloads.fetch(relocate, allow_unverified=True) == path
    said = capsys.readouterr().err
    assert "UNVERIFIED" in said and sha256 in said
    note = path.with_name(f"{path.name}.sha256")
    assert note.read_text() == f"{sha256}  {path.name}\n"  # as sha256sum has it
    assert len(d4rl.get_dataset(RELOCATE)["rewards"]) == 300  # consent once is enough
    assert len(server.requests) == 1 and capsys.readouterr().err == ""

    path.write_bytes(server.contents[:-1])  # from now on it is verified, whatever the consent
    for consent in (False, True):
        said = sentence(relocate, allow_unverified=consent)
        assert sha256 in said and f"noted in {note}" in said
    path.unlink()
    server.answers["first"] = sends(wrong)  # and so is a new download, which needs no consent
    assert downloads.fetch(relocate).read_bytes() == server.contents
    assert server.requests[-1].startswith("/mirror/")
    for damaged in (b"\xff\xfe\n", b"not a checksum\n"):
        note.write_bytes(damaged)
        assert str(note) in sentence(relocate)
    note.write_bytes(b"")
    assert "--allow-unverified" in sentence(relocate)


def test_consent_to_a_file_put_there_by_hand(relocate, server, capsys):
    server.answers |= {"first": not_found, "mirror": not_found}
    path = relocate.default_path
    said = sentence(relocate, allow_unverified=True)
    assert "404" in said and str(path) in said
    path.write_bytes(server.contents)
    assert f"fetch {RELOCATE} --allow-unverified to accept {path} as it is" in sentence(relocate)
    assert files(path.parent) == [path.name]
    assert downloads.fetch(relocate, allow_unverified=True) == downloads.fetch(relocate) == path
    assert "UNVERIFIED" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["cut off without a length", "web page"])
def test_unverified_download_has_to_hold_data(fault, relocate, server):
    server.answers |= {"first": FAULTS[fault][0], "mirror": FAULTS[fault][0]}
    assert ".part" not in sentence(relocate, allow_unverified=True)
    assert files(relocate.default_path.parent) == []  # no checksum is noted either


def test_unverified_file_of_another_task_is_refused(relocate, server, tmp_path):
    server.contents = dataset(tmp_path / "hopper.hdf5", HOPPER).read_bytes()
    for _ in ("downloaded", "put there by hand"):
        assert "did you mean another --env-id" in sentence(relocate, allow_unverified=True)
        relocate.default_path.write_bytes(server.contents)
    assert files(relocate.default_path.parent) == [relocate.default_path.name]


# --- robomimic ---
def test_robomimic(server, monkeypatch):
    spec = published(LIFT, server.contents, monkeypatch)
    path = downloads.fetch(spec)
    assert path == Path(os.environ["ROBOMIMIC_DATASET_DIR"], "lift", "ph", "low_dim_v15.hdf5")
    assert path.read_bytes() == server.contents
    assert server.requests == ["/robomimic/v1.5/lift/ph/low_dim_v15.hdf5"]
    path.unlink()
    server.answers["robomimic"] = not_found
    assert sentence(spec).count("404") == 1 and files(path.parent) == []


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
    assert "1,000,000,000,000,000,000 bytes" in said and "set D4RL_DATASET_DIR" in said
    assert not server.requests


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_disk_gets_full(hopper, server):
    hopper.default_path.parent.mkdir(parents=True)
    hopper.default_path.with_name("hopper_medium-v2.hdf5.part").symlink_to("/dev/full")
    said = sentence(hopper)
    assert "No space left on device" in said and "D4RL_DATASET_DIR" in said
    assert len(server.requests) == 1  # the mirror would not help
    assert files(hopper.default_path.parent) == [] and Path("/dev/full").exists()


def test_folder_that_cannot_hold_the_file(hopper, server, tmp_path, monkeypatch):
    (tmp_path / "new").write_text("a file in place of a folder")
    assert "Not a directory" in sentence(hopper)
    (tmp_path / "new").unlink()
    hopper.default_path.mkdir(parents=True)
    assert "Is a directory" in sentence(hopper)
    if Path("/sys/kernel").is_dir():  # where even root cannot make files
        monkeypatch.setenv("D4RL_DATASET_DIR", "/sys/kernel")
        said = sentence(dataclasses.replace(hopper, bytes=None))  # (there is no space either)
        assert "ermi" in said and "/sys/kernel" in said  # "Permission denied", "... not permitted"
    assert not server.requests


# --- other processes ---
PROCESS = """
import dataclasses, sys
import d4rl.__main__
from d4rl import downloads, tasks
tasks.D4RL, size, sha256 = sys.argv.pop(1), sys.argv.pop(1), sys.argv.pop(1)
spec = tasks.TASKS["hopper-medium-v2"]
tasks.TASKS["hopper-medium-v2"] = dataclasses.replace(spec, bytes=int(size), sha256=sha256)
d4rl.__main__.main()
"""


@pytest.fixture
def process(hopper, server):
    """A process that fetches the file slowly, half way."""
    server.answers["first"], server.pause = slow, 0.05
    facts = [f"{server.address}/first/", str(hopper.bytes), hopper.sha256]
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell's background jobs ignore it
    command = [sys.executable, "-c", PROCESS, *facts, "fetch", HOPPER]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listening)
    assert server.half_way.wait(30)
    return process


def test_two_processes_download_once(process, hopper, server, capsys):
    assert downloads.fetch(hopper).read_bytes() == server.contents
    assert len(server.requests) == 1 and not any(server.seen)  # this one waited for the first
    assert "Another process downloads" in capsys.readouterr().err
    assert process.wait(30) == 0
    assert files(hopper.default_path.parent) == [hopper.default_path.name]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_process_is_stopped_half_way(process, hopper, server, number):
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number) and "Traceback" not in error
    left = [] if number == signal.SIGINT else ["hopper_medium-v2.hdf5.part"]
    assert files(hopper.default_path.parent) == left
    server.answers["first"] = good
    assert downloads.fetch(hopper).read_bytes() == server.contents  # no lock is left either
    assert files(hopper.default_path.parent) == [hopper.default_path.name]
