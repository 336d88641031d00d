"""Downloads: cached, resumed after a broken connection, verified against every known size and checksum."""

import hashlib
import os
import sys
import time
from pathlib import Path

from harness.files import CHUNK, InputError, explain_os_error, is_terminal, lock_folder, sha256_of

OFFLINE = "Without a network this runs: python train.py --mode prefix --prefix_len 5 --model mini --data mini"


def cache_dir() -> Path:
    """Where downloads are kept: $PREFIX_TUNING_CACHE, or ~/.cache/prefix-tuning."""
    folder = os.environ.get("PREFIX_TUNING_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "prefix-tuning"


def download(url: str, path: Path, size: int | None = None, sha256: str | None = None, tries: int = 5) -> Path:
    """Download `url` to `path` unless the file exists; returns `path`.

    The bytes go to a `.part` file named after the server's version of the file (its ETag), so a later attempt or a
    later run resumes where this one broke off. If two runs want the same file, one downloads and the other waits.
    The file gets its name only after its length and SHA-256 match whatever is known: the arguments, the server's
    Content-Length, and the SHA-256 that the Hugging Face hub states in `X-Linked-ETag`.

    Raises InputError when the server cannot be reached, refuses, or sends something else.
    """
    import requests  # imported here: what needs no network needs no network library

    path = Path(path)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{path.parent} cannot be made ({error.strerror}): set PREFIX_TUNING_CACHE to another folder"
        ) from None
    with lock_folder(path.parent):
        if path.exists():  # another run downloaded it while this one waited
            return path
        for attempt in range(1, tries + 1):
            try:
                return download_once(requests, url, path, size, sha256)
            except requests.HTTPError as error:
                status = error.response.status_code
                problem, passing = f"the server answered {status}", status >= 500 or status == 429
            except requests.RequestException as error:
                problem, passing = failure_of(error)
            if not passing:  # a retry would not help
                break
            if attempt < tries:
                print(f"download of {path.name} broke off ({problem}); try {attempt + 1} of {tries}", file=sys.stderr)
                time.sleep(min(2**attempt, 20))
    raise InputError(
        f"{url} cannot be downloaded ({problem}): check the network, or fetch it elsewhere and save it as {path}"
    )


def download_data(url: str, path: Path, sha256: str) -> Path:
    """`download` of a data set's file, and a check that the copy is still what it was. Raises InputError."""
    try:
        path = download(url, path, sha256=sha256)
    except InputError as error:
        raise InputError(f"{error}. {OFFLINE}") from None
    if sha256_of(path) != sha256:
        raise InputError(
            f"{path} has changed since it was downloaded: delete it, or name your own data with --data FOLDER"
        )
    return path


def failure_of(error: Exception) -> tuple[str, bool]:
    """(what went wrong, whether a retry may help), found in the text of the error."""
    for sign, reason, passing in (
        ("Failed to resolve", "the server's name cannot be resolved", False),
        ("unreachable", "the network is unreachable", False),
        ("certificate", "its certificate is not trusted", False),
        ("refused", "connection refused", True),
        ("timed out", "connection timed out", True),
        ("bytes arrived", str(error), True),
        ("IncompleteRead", "connection lost", True),
        ("aborted", "connection lost", True),
    ):
        if sign in str(error):
            return reason, passing
    return type(error).__name__, True


def download_once(requests, url: str, path: Path, size: int | None, sha256: str | None) -> Path:
    """One attempt; resumes from a `.part` file of the same version."""
    headers = {"Accept-Encoding": "identity"}  # Content-Length then counts the file's own bytes
    with requests.get(url, stream=True, timeout=30, headers=headers) as answer:
        answer.raise_for_status()
        total = int(answer.headers.get("Content-Length", 0)) or None
        for step in [*answer.history, answer]:  # the hub states the checksum in its redirect
            stated = step.headers.get("X-Linked-ETag", "").strip('"').removeprefix("W/").strip('"')
            if sha256 is None and len(stated) == 64:
                sha256 = stated
        if size is not None and total is not None and size != total:
            raise InputError(f"{url} has {total} bytes, but {size} were expected: the file at this address has changed")
        etag = answer.headers.get("ETag", "")
        version = hashlib.sha256((etag or f"{url} {total}").encode()).hexdigest()[:12]
        part = path.with_name(f"{path.name}.{version}.part")
        have = part.stat().st_size if part.exists() else 0
        if have and total and have < total and etag:
            rest = headers | {"Range": f"bytes={have}-", "If-Range": etag}
            with requests.get(answer.url, stream=True, timeout=30, headers=rest) as answer_rest:
                if answer_rest.status_code == 206:  # Partial Content: the server resumes where we stopped
                    append_to(answer_rest, part, "ab", have, total, path.name)
                    return accept(part, path, url, total or size, sha256)
        if not (have and have == total):
            append_to(answer, part, "wb", 0, total, path.name)
    return accept(part, path, url, total or size, sha256)


def append_to(answer, part: Path, mode: str, done: int, total: int | None, name: str) -> None:
    """Append the response's bytes to `part`; on a terminal, draw a progress bar."""
    show = is_terminal(sys.stderr)
    shown_at = 0.0
    try:
        with open(part, mode) as file:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                done += len(chunk)
                if show and time.monotonic() - shown_at > 0.2:
                    shown_at = time.monotonic()
                    bar = "#" * (30 * done // total) if total else ""
                    of = f"/{total / 1e6:.0f}" if total else ""
                    print(f"\r{name} [{bar:<30}] {done / 1e6:.0f}{of} MB ", end="", file=sys.stderr)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno is None:  # requests' own errors are OSErrors too; download retries them
            raise
        raise InputError(f"{part} was not written completely: {explain_os_error(error)}") from error
    finally:
        if show:
            print(file=sys.stderr)


def accept(part: Path, path: Path, url: str, size: int | None, sha256: str | None) -> Path:
    """Verify the finished download and give it its name."""
    have = part.stat().st_size
    if size is not None and have != size:
        import requests

        if have > size:  # resuming cannot fix this
            part.unlink()
        raise requests.ConnectionError(f"{have} of {size} bytes arrived")
    if sha256 is not None and sha256_of(part) != sha256:
        part.unlink()
        raise InputError(
            f"{url} arrived damaged (its SHA-256 is not {sha256[:12]}…): run the command again;"
            " if that does not help, the file at this address has changed: fetch it elsewhere and save it as"
            f" {path}"
        )
    os.replace(part, path)
    return path
