"""Files: read with a clear complaint, written whole or not at all, downloaded once.

Three promises that every other file of this project relies on:

* what the user can put right (a missing file, a broken line, no network, a full disk) is raised
  as `InputError`, one sentence that names the file and says what to do; the command lines print
  it and exit with status 2 (`exit_on_input_error`);
* a file that stands under its final name is complete: it was written beside it first and then
  renamed, which the operating system does in one indivisible step (`write_whole`);
* a download is kept in a cache folder under the same rule, goes on where a broken connection
  left it, and is checked against every size and checksum that is known (`download`).
"""

import errno
import functools
import hashlib
import os
import re
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
MINI = Path(__file__).resolve().parent / "mini"  # the small model and the sample tables that come with the code
OFFLINE = "Without a network this runs: python train.py --mode prefix --prefix_len 5 --model mini --data mini"


class InputError(Exception):
    """Something the user can put right. Its text is one sentence: what, where, what to do."""


def exit_on_input_error(main):
    """Decorator of a command line's `main`: an `InputError` becomes one line and exit status 2.

    The operating system's own complaints (disk full, no permission) are of that kind too.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        if hasattr(sys.stdout, "reconfigure"):  # GPT-2 may write any character; a terminal that lacks one shows \u1234
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            return main(*args, **kwargs)
        except InputError as error:
            message = str(error)
        except BrokenPipeError:  # whoever read our output (`| head`) has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's last flush does not complain
            sys.exit(1)
        except OSError as error:
            message = explain_os_error(error)
        except (MemoryError, RuntimeError) as error:  # PyTorch's are RuntimeErrors, of the GPU's memory too
            if isinstance(error, RuntimeError) and not re.search("out of memory|allocate memory|enough memory", str(error)):
                raise
            message = "there is not enough memory for this: choose a smaller --batch_size or model, or a larger --grad_accum"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    return wrapper


def explain_os_error(error: OSError) -> str:
    """One sentence for an error of the file system."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        full = "a file may not grow so large here" if error.errno == errno.EFBIG else "the disk is full"
        return f"{full}{where}: free some space and run the command again (with --resume if it was training)"
    return f"{error.strerror or error}{where}: check the path and its permissions"


# ----------------------------------------------------------------------------- reading


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped), line ends as "\\n".

    Raises InputError for a file that is missing, unreadable, empty, or not UTF-8 (the message
    then names the line of the first bad byte).
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, but a file is needed here")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not UTF-8 text; save the file as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path} is empty: fetch it again, or name another file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


# ----------------------------------------------------------------------------- writing


@contextmanager
def write_whole(path: Path, mode: str = "w"):
    """Open `path` for writing so that it appears only when the block has ended without an error.

    mode: "w" (UTF-8 text) or "wb". Folders on the way are made. The bytes are flushed to the disk
    before the rename: a crash leaves the old file or the new one, never half of either.
    Raises InputError when the disk is full.
    """
    path = Path(path)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, **({} if "b" in mode else {"encoding": "utf-8", "newline": "\n"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.filename == str(part):
            error.filename = None  # the sentence names the file that was to be
        raise InputError(f"{path} was not written: {explain_os_error(error)}") from error
    finally:
        with suppress(OSError):  # not there, or never could be: what the sentence above says
            part.unlink()


@contextmanager
def alone_in(folder: Path, waits: bool = True):
    """Let one process at a time into this block, for each folder: two that write the same file would spoil it.

    waits    for its turn; else InputError where another process is inside
    """
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not waits:
                raise InputError(f"another process is at work in {folder}: wait until it has ended, or choose another --out") from None
            print(f"waiting for another process that writes into {folder}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a network drive without locks
        yield
    finally:
        os.close(handle)  # and with it the lock


# ----------------------------------------------------------------------------- downloading


def cache_dir() -> Path:
    """Where downloads are kept: $PREFIX_TUNING_CACHE, or ~/.cache/prefix-tuning."""
    folder = os.environ.get("PREFIX_TUNING_CACHE")
    return Path(folder).expanduser() if folder else Path.home() / ".cache" / "prefix-tuning"


def bundled(name: str, inside: str = "") -> Path:
    """The folder that the user names: "mini" is the one in this repository (or its folder `inside`), all else a path."""
    return MINI / inside if name == "mini" else Path(name)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def download(url: str, path: Path, size: int | None = None, sha256: str | None = None, tries: int = 5) -> Path:
    """Fetch `url` into `path` unless it is there already; returns `path`.

    The bytes go to a `.part` file named after the server's version of the file (its ETag), so that
    a later try, or a later run, goes on behind the bytes that are there; of two runs that want the
    same file at the same time, one fetches it and the other waits. The file gets its name
    only after its length and its SHA-256 have been compared with those that are known: the ones
    given here, the server's Content-Length, and the SHA-256 that the Hugging Face hub states in
    `X-Linked-ETag`.

    Raises InputError when the server cannot be reached, refuses, or sends something else.
    """
    import requests  # here, so that whatever needs no network needs no network library either

    path = Path(path)
    if path.exists():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent} cannot be made ({error.strerror}): set PREFIX_TUNING_CACHE to another folder") from None
    with alone_in(path.parent):
        if path.exists():  # another run has fetched it while we waited
            return path
        for attempt in range(1, tries + 1):
            try:
                return _download_once(requests, url, path, size, sha256)
            except requests.HTTPError as error:
                status = error.response.status_code
                problem, passing = f"the server answered {status}", status >= 500 or status == 429
            except requests.RequestException as error:
                problem, passing = _reason(error)
            if not passing:  # asking again would not change it
                break
            if attempt < tries:
                print(f"download of {path.name} broke off ({problem}); try {attempt + 1} of {tries}", file=sys.stderr)
                time.sleep(min(2**attempt, 20))
    raise InputError(f"{url} cannot be downloaded ({problem}): check the network, or fetch it elsewhere and save it as {path}")


def _reason(error: Exception) -> tuple[str, bool]:
    """(what went wrong, whether it may pass). The cause stands somewhere in the error's text, as does the address."""
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


def _download_once(requests, url: str, path: Path, size: int | None, sha256: str | None) -> Path:
    headers = {"Accept-Encoding": "identity"}  # Content-Length then counts the file's own bytes
    with requests.get(url, stream=True, timeout=30, headers=headers) as answer:
        answer.raise_for_status()
        total = int(answer.headers.get("Content-Length", 0)) or None
        for step in [*answer.history, answer]:  # the hub states the checksum where it redirects from
            stated = step.headers.get("X-Linked-ETag", "").strip('"').removeprefix("W/").strip('"')
            if sha256 is None and len(stated) == 64:
                sha256 = stated
        if size is not None and total is not None and size != total:
            raise InputError(f"{url} has {total} bytes, but {size} were expected: the file behind this address has changed")
        etag = answer.headers.get("ETag", "")
        version = hashlib.sha256((etag or f"{url} {total}").encode()).hexdigest()[:12]
        part = path.with_name(f"{path.name}.{version}.part")
        have = part.stat().st_size if part.exists() else 0
        if have and total and have < total and etag:
            rest = headers | {"Range": f"bytes={have}-", "If-Range": etag}
            with requests.get(answer.url, stream=True, timeout=30, headers=rest) as answer_rest:
                if answer_rest.status_code == 206:  # Partial Content: the server goes on where we stopped
                    _stream(answer_rest, part, "ab", have, total, path.name)
                    return _accept(part, path, url, total or size, sha256)
        if not (have and have == total):
            _stream(answer, part, "wb", 0, total, path.name)
    return _accept(part, path, url, total or size, sha256)


def _stream(answer, part: Path, mode: str, done: int, total: int | None, name: str) -> None:
    """Append the answer's bytes to `part`, drawing a progress bar on a terminal."""
    show = sys.stderr.isatty()
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
        if error.errno is None:  # requests' own errors are OSErrors too; they are tried again
            raise
        raise InputError(f"{part} was not written whole: {explain_os_error(error)}") from error
    finally:
        if show:
            print(file=sys.stderr)


def _accept(part: Path, path: Path, url: str, size: int | None, sha256: str | None) -> Path:
    """Give the finished download its name, if it is what it should be."""
    have = part.stat().st_size
    if size is not None and have != size:
        import requests

        if have > size:  # cannot be mended by going on
            part.unlink()
        raise requests.ConnectionError(f"{have} of {size} bytes arrived")
    if sha256 is not None and sha256_of(part) != sha256:
        part.unlink()
        raise InputError(
            f"{url} arrived damaged (its SHA-256 is not {sha256[:12]}…): run the command again;"
            f" if that does not help, the file behind this address has changed: fetch it elsewhere and save it as {path}"
        )
    os.replace(part, path)
    return path
