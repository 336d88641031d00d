"""Files: readable errors, atomic writes, locks.

The rest of the project relies on two rules:

* An error that the user can fix (a missing file, a malformed line, no network, a full disk) is raised as
  `InputError`: one sentence that names the file and says what to do. The command lines print it and exit with
  status 2 (`exit_on_input_error`).
* A file under its final name is complete. It is written under a temporary name and then renamed, which the
  operating system does atomically (`write_atomic`).
"""

import errno
import functools
import hashlib
import os
import re
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

CHUNK = 1 << 20  # bytes read at a time
NO_MEMORY = "out of memory|allocate memory|enough memory"  # what PyTorch's errors say, on a CPU or a GPU
MINI = Path(__file__).resolve().parents[1] / "mini"  # the small model and the sample tables in this repository


def is_terminal(stream) -> bool:
    """Is a standard stream a terminal? One that was closed when the program started is None."""
    return stream is not None and stream.isatty()


class InputError(Exception):
    """An error that the user can fix. Its text is one sentence: what is wrong, where, what to do."""


def exit_on_input_error(main):
    """Decorator of a command line's `main`: an `InputError` becomes one line on stderr and exit status 2.

    So do the operating system's errors (disk full, permission denied) and running out of memory.
    """

    @functools.wraps(main)
    def wrapper(*args, **kwargs):
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # GPT-2 may produce characters that a terminal lacks
        try:
            return main(*args, **kwargs)
        except InputError as error:
            message = str(error)
        except BrokenPipeError:  # the reader of our output (`| head`) has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush would fail too
            sys.exit(1)
        except OSError as error:
            message = explain_os_error(error)
        except UnicodeEncodeError as error:  # Python holds a byte that is not UTF-8 as a lone surrogate
            message = f"a path or a flag has characters that cannot be written as {error.encoding}: write it as UTF-8"
        except (MemoryError, RuntimeError) as error:  # PyTorch raises RuntimeError when memory runs out
            if isinstance(error, RuntimeError) and not re.search(NO_MEMORY, str(error)):
                raise
            message = "not enough memory: choose a smaller --batch_size or model, or a larger --grad_accum"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)

    return wrapper


def explain_os_error(error: OSError) -> str:
    """One sentence for an error of the file system."""
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        full = "the file size limit is reached" if error.errno == errno.EFBIG else "the disk is full"
        return f"{full}{where}: free some space and run the command again (with --resume if it was training)"
    if error.errno == errno.ENAMETOOLONG:
        return f"the name is too long{where}: choose a shorter one (of a run's folder, with --out)"
    return f"{error.strerror or error}{where}: check the path and its permissions"


# ----------------------------------------------------------------------------- reading


def read_text(path: Path, may_be_blank: bool = False) -> str:
    """The text of a UTF-8 file, without a byte-order mark, with "\\n" line ends.

    Raises InputError for a file that is missing, unreadable, not UTF-8 (the message names the line), empty, or blank
    unless it may be.
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
    if not (text if may_be_blank else text.strip()):
        raise InputError(f"{path} is empty: restore it or fetch it again, or name another file")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def resolve_path(name: str, inside: str = "") -> Path:
    """The folder that the user names: "mini" is the one in this repository (or its subfolder `inside`), else a path."""
    return MINI / inside if name == "mini" else Path(name)


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ----------------------------------------------------------------------------- writing


@contextmanager
def write_atomic(path: Path, mode: str = "w"):
    """Open `path` for writing; the file appears only when the block ends without an error.

    mode: "w" (UTF-8 text) or "wb". Parent folders are created. The bytes reach the disk before the rename, so a crash
    leaves the old file or the new one, never half of either. Raises InputError when the disk is full.
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
            error.filename = None  # the message names the final file
        raise InputError(f"{path} was not written: {explain_os_error(error)}") from error
    finally:
        with suppress(OSError):  # renamed already, or never created
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Remove what `write_atomic` left in a folder when its process was killed. No other process may be writing."""
    for part in Path(folder).glob("*.part"):
        part.unlink(missing_ok=True)


@contextmanager
def lock_folder(folder: Path, waits: bool = True):
    """Let one process at a time into this block, for each folder: two writers would corrupt each other's files.

    waits    wait for the other process; False: raise InputError if there is one
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
                raise InputError(
                    f"another process is working in {folder}: wait until it ends, or choose another --out"
                ) from None
            print(f"waiting for another process that writes into {folder}", file=sys.stderr)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a network drive without locks
        yield
    finally:
        os.close(handle)  # releases the lock
