"""Dataset files: found on disk or downloaded, and in both cases used only if their checksum is the known one.

For most files the checksum is published (`tasks.tsv`). Where none is, `fetch` asks for consent, which is given by
`python -m d4rl fetch ID --allow-unverified`. The checksum that the file has then is noted beside it in `FILE.sha256`,
in the format of the tool sha256sum, and holds from then on.
"""

import hashlib
import os
import shutil
import sys
from functools import cache
from pathlib import Path

import pooch
import requests
from filelock import FileLock, Timeout
from tqdm import tqdm

from d4rl.tasks import DatasetError, Task

MIRROR = "https://huggingface.co/datasets/imone/D4RL/resolve/main/"
OLDER = "low_dim_v141.hdf5"  # robomimic's file of the same demonstrations for robosuite 1.4
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 2**18  # bytes; pooch's own 1,024 make it eight times slower on a fast line


def find(spec: Task) -> Path:
    """Where the task's file is or belongs: `spec.default_path`, or robomimic's older file if only that is there."""
    path = spec.default_path
    older = path.with_name(OLDER)
    return older if spec.is_robomimic and older.exists() and not path.exists() else path


def checksum(spec: Task, path: Path) -> str | None:
    """The sha256 that this file of the task must have: the published or the noted one, None where there is neither."""
    if spec.sha256 and path.name != OLDER:
        return spec.sha256
    note = _note(path)
    words = note.read_text(errors="replace").split() if note.is_file() else []
    return words[0] if words else None


def fetch(spec: Task, allow_unverified: bool = False) -> Path:
    """The task's file with the right checksum, downloaded if it is not there. A file that is there is never changed.

    Args:
        allow_unverified: accept a file without a known checksum, downloaded or found, if the task's data is in it, and
            note its checksum for the next time.

    Raises:
        DatasetError: no server sends the file; no consent for a file without a known checksum; another checksum; the
            disk is full; the file or its folder cannot be read or written.
    """
    path = spec.default_path
    try:
        path = find(spec)
        if not path.exists():
            if not (checksum(spec, path) or allow_unverified):
                raise _needs_consent(spec, f"download {_urls(spec)[0]} to {path}, or to accept a copy put there")
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(spec, path)
        expected = checksum(spec, path)
        if expected:
            found = _sha256(path)
            if found != expected:
                source = "published" if expected == spec.sha256 else f"noted in {_note(path)}"
                raise DatasetError(
                    f"{path} ({path.stat().st_size:,} bytes) has the sha256 {found}, not {expected} as {source}: "
                    "delete it to download it again, or name it with --dataset-path to use it as it is."
                )
        elif allow_unverified:
            _accept(spec, path, path)
        elif spec.is_robomimic:  # from robomimic's own downloader, which leaves no checksum
            _say(f"UNVERIFIED: {path} is used as it is, its checksum is not known")
        else:
            raise _needs_consent(spec, f"accept {path} as it is")
        return path
    except OSError as error:
        reason = error.strerror or error
        raise DatasetError(f"{path} cannot be read or written ({reason}): {_elsewhere(spec)}.") from None


def _download(spec: Task, path: Path):
    """Put the file at `path` in one step, once its checksum or, if none is known, its contents have been checked."""
    free = shutil.disk_usage(path.parent).free
    if free < (spec.bytes or 0):
        needed = f"{path.name} needs {spec.bytes:,} bytes but {path.parent} has {free:,} left"
        raise DatasetError(f"{needed}: make room, or {_elsewhere(spec)}.")
    part = path.with_name(f"{path.name}.part")  # what a killed process leaves behind is overwritten by the next one
    failures = []
    with _alone(path):
        for url in _urls(spec):
            if os.path.lexists(path):  # from the process that this one waited for
                return
            print(f"Downloading {url} to {path}", file=sys.stderr)
            try:
                # disable=None: no bar in log files. The server tells its total, but pooch ignores a bar without any.
                with tqdm(total=spec.bytes or 1, unit="B", unit_scale=True, disable=None) as bar:
                    pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT)(url, part, None)
                expected = checksum(spec, path)
                if not expected:
                    _accept(spec, part, path)
                elif _sha256(part) != expected:
                    raise ValueError(f"it sends {part.stat().st_size:,} bytes with another checksum")
                if not os.path.lexists(path):  # else the user was faster
                    part.replace(path)
                return
            except (requests.RequestException, ValueError) as error:  # other OSErrors are this machine's
                failures.append(f"{url} ({_reason(error).replace(str(part), 'what it sends')})")
            finally:
                part.unlink(missing_ok=True)
    tried = " or ".join(failures)
    advice = "try again, or get the file in another way and put it there"
    raise DatasetError(f"{path} is missing and cannot be downloaded from {tried}: {advice}.")


def _alone(path: Path):
    """Several runs that start at once download the file once: the others wait here."""
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        return lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process downloads {path}: waiting for it", file=sys.stderr)
        return lock.acquire()


def _accept(spec: Task, file: Path, path: Path):
    """Note the checksum of a file that is, or will be, at `path`; DatasetError if it does not fit the task."""
    from d4rl.data import get_dataset

    get_dataset(spec.env_id, file)
    sha256 = _sha256(file)
    _note(path).write_text(f"{sha256}  {path.name}\n")
    _say(f"UNVERIFIED: {path} has the sha256 {sha256}, which nobody has published; it is noted in {_note(path)}")


def _urls(spec: Task) -> list[str]:
    return [spec.url] if spec.is_robomimic else [spec.url, MIRROR + Path(spec.path).name]


def _note(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def _say(message: str):
    """To stderr, once: twenty environments of a robomimic task read its file."""
    print(message, file=sys.stderr)


def _needs_consent(spec: Task, what: str) -> DatasetError:
    command = f"run python -m d4rl fetch {spec.env_id} --allow-unverified"
    return DatasetError(f"Nobody has published the checksum of {spec.env_id}'s file: {command} to {what}.")


def _elsewhere(spec: Task) -> str:
    return f"set {'ROBOMIMIC' if spec.is_robomimic else 'D4RL'}_DATASET_DIR to a folder where files can be written"


def _reason(error: Exception) -> str:
    """What went wrong in a few words: requests wraps the cause several times."""
    if isinstance(error, requests.HTTPError):
        return f"{error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.RequestException):
        while error.__context__:
            error = error.__context__
    return " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
