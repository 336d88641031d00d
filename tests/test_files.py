"""Files are written completely or not at all; downloads survive broken connections and refuse damaged content."""

import errno
import hashlib
import io
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from local_server import Server

import e2e_data
import weights
from gpt2 import CONFIGS, GPT2Config
from harness import download as downloads
from harness import files
from harness.download import cache_dir, download
from harness.files import InputError, exit_on_input_error, read_text, write_atomic
from harness.safetensors import write_safetensors

ROOT = Path(__file__).resolve().parents[1]
TENSORFLOW = Path(__file__).parent / "fixtures" / "tensorflow"
CONTENT = bytes(range(256)) * 400  # 102,400 bytes


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """Connect to the local server directly, also on a machine that is set up with a proxy."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(downloads, "CHUNK", 1000)
    with Server() as server:
        server.files["/file"] = CONTENT
        yield server


@pytest.fixture
def waits(monkeypatch):
    """The seconds of each pause between tries; nothing sleeps."""
    waited = []
    monkeypatch.setattr(downloads.time, "sleep", waited.append)
    return waited


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# ----------------------------------------------------------------------------- downloads that succeed


def test_a_download_is_complete_and_leaves_no_other_file(server, tmp_path):
    path = download(f"{server.address}/file", tmp_path / "new" / "folder" / "file", len(CONTENT), sha256(CONTENT))
    assert path.read_bytes() == CONTENT
    assert names(tmp_path) == ["file"]
    assert server.seen == [("/file", None, None)]


def test_an_existing_file_is_not_downloaded_again(server, tmp_path):
    (tmp_path / "file").write_bytes(b"mine")
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == b"mine"
    assert server.seen == []


def test_no_file_has_the_final_name_before_it_is_complete(server, tmp_path):
    existed = []  # when half of the bytes had been sent
    server.half_way = lambda: existed.append((tmp_path / "file").exists())
    download(f"{server.address}/file", tmp_path / "file")
    assert existed == [False] and names(tmp_path) == ["file"]


def test_a_broken_download_resumes_where_it_broke_off(server, tmp_path, waits, capsys):
    server.cuts = [50_000]
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT
    assert [ranged for _, ranged, _ in server.seen] == [None, None, "bytes=50000-"]
    assert server.seen[-1][2] == server.etag  # If-Range: resume only if the file is still the same
    assert names(tmp_path) == ["file"] and len(waits) == 1
    assert "try 2 of 5" in capsys.readouterr().err


def test_a_download_resumes_after_the_bytes_that_an_earlier_program_left(server, tmp_path, waits):
    server.cuts = [70_000]
    with pytest.raises(InputError):
        download(f"{server.address}/file", tmp_path / "file", tries=1)
    [part] = names(tmp_path)
    assert part.endswith(".part") and (tmp_path / part).read_bytes() == CONTENT[:70_000]
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT
    assert server.seen[-1][1] == "bytes=70000-" and names(tmp_path) == ["file"]


def test_a_download_that_breaks_off_several_times_completes(server, tmp_path, waits):
    server.cuts = [30_000, 999_999, 30_000, 999_999, 20_000]  # every other request only learns the ETag
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT
    assert [r for _, r, _ in server.seen if r] == ["bytes=30000-", "bytes=60000-", "bytes=80000-"]


def test_a_file_that_changed_on_the_server_is_downloaded_from_its_start(server, tmp_path, waits):
    server.cuts = [50_000]
    with pytest.raises(InputError):
        download(f"{server.address}/file", tmp_path / "file", tries=1)
    server.files["/file"], server.etag = CONTENT[::-1], '"version-2"'
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("lacking", ["ranges", "etag"])
def test_a_server_that_cannot_resume_sends_the_whole_file_again(server, tmp_path, waits, lacking):
    server.knows_ranges = lacking != "ranges"
    server.etag = None if lacking == "etag" else server.etag
    server.cuts = [50_000]
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT
    assert names(tmp_path) == ["file"] and len(waits) == 1
    if lacking == "etag":  # the rest might belong to another version, so it is not requested
        assert [ranged for _, ranged, _ in server.seen] == [None, None]


def test_a_size_that_only_the_caller_states_is_checked(server, tmp_path, waits):
    server.states_length = False
    server.cuts = [50_000]
    assert download(f"{server.address}/file", tmp_path / "file", size=len(CONTENT)).read_bytes() == CONTENT
    assert len(waits) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_temporary_server_error_is_retried(server, tmp_path, waits, status):
    server.statuses = [status, status]
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT
    assert len(server.seen) == 3 and waits == [2, 4]


def test_two_downloads_at_the_same_time_send_one_request(server, tmp_path):
    server.half_way = lambda: time.sleep(0.2)
    paths = []
    threads = [
        threading.Thread(target=lambda: paths.append(download(f"{server.address}/file", tmp_path / "file")))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert len(server.seen) == 1 and names(tmp_path) == ["file"]


# ----------------------------------------------------------------------------- downloads that fail


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_retried(server, tmp_path, waits, status):
    server.statuses = [status]
    with pytest.raises(InputError, match=f"/file cannot be downloaded .*{status}"):
        download(f"{server.address}/file", tmp_path / "file")
    assert len(server.seen) == 1 and waits == [] and names(tmp_path) == []


def test_a_lasting_server_error_ends_after_five_tries(server, tmp_path, waits):
    server.statuses = [500] * 9
    with pytest.raises(InputError, match="the server answered 500.*save it as"):
        download(f"{server.address}/file", tmp_path / "file")
    assert len(server.seen) == 5 and names(tmp_path) == []


def test_a_file_with_fewer_bytes_than_stated_never_gets_the_name(server, tmp_path, waits):
    server.promise = 7
    with pytest.raises(InputError, match="connection lost"):
        download(f"{server.address}/file", tmp_path / "file")
    assert not (tmp_path / "file").exists()


def test_a_wrong_size_is_refused_before_the_download(server, tmp_path, waits):
    with pytest.raises(InputError, match=f"has {len(CONTENT)} bytes, but 5 were expected"):
        download(f"{server.address}/file", tmp_path / "file", size=5)
    assert len(server.seen) == 1 and names(tmp_path) == []


def test_a_wrong_checksum_is_refused(server, tmp_path, waits):
    with pytest.raises(InputError, match="arrived damaged .*save it as"):
        download(f"{server.address}/file", tmp_path / "file", sha256=sha256(b"something else"))
    assert names(tmp_path) == []  # a later run must not resume after damaged bytes


@pytest.mark.parametrize("stated, accepted", [(CONTENT, True), (b"something else", False)])
def test_the_hubs_checksum_is_read_from_its_redirect(server, tmp_path, stated, accepted):
    server.redirects["/hub"] = ("/file", {"X-Linked-ETag": f'"{sha256(stated)}"'})
    if accepted:
        assert download(f"{server.address}/hub", tmp_path / "file").read_bytes() == CONTENT
    else:
        with pytest.raises(InputError, match="arrived damaged"):
            download(f"{server.address}/hub", tmp_path / "file")
        assert names(tmp_path) == []


def test_a_refused_connection_is_retried_and_named(tmp_path, waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, without listening
        address = f"http://127.0.0.1:{taken.getsockname()[1]}/openai-community/gpt2/resolve/main/model.safetensors"
        with pytest.raises(
            InputError, match=r"connection refused\): check the network, or fetch it elsewhere and save it as"
        ):
            download(address, tmp_path / "file")
    assert len(waits) == 4


@pytest.mark.parametrize(
    "error, said",
    [
        (socket.gaierror(-2, "Name or service not known"), "name cannot be resolved"),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), "network is unreachable"),
    ],
    ids=["no name server", "no route"],
)
def test_without_a_network_there_is_no_retry(tmp_path, waits, monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(InputError, match=said):
        download("https://example.invalid/resolve/main/file", tmp_path / "file")
    assert waits == [] and names(tmp_path) == []


def test_a_cache_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(InputError, match="cache.* cannot be made .*PREFIX_TUNING_CACHE"):
        download(f"{server.address}/file", tmp_path / "cache" / "gpt2" / "file")


LIMITED = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from pathlib import Path
from harness.download import download
from harness.files import exit_on_input_error, write_atomic
@exit_on_input_error
def main():
    {code}
main()
"""


def run_with_little_room(code: str, limit: int) -> subprocess.CompletedProcess:
    """Run a line of code in a process whose files the operating system limits to `limit` bytes."""
    text = LIMITED.format(root=str(ROOT), tests=str(ROOT / "tests"), limit=limit, code=code)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)


def test_a_download_without_disk_space_is_reported_and_its_bytes_are_kept(server, tmp_path):
    ended = run_with_little_room(f"download('{server.address}/file', Path({str(tmp_path / 'file')!r}))", limit=40_000)
    assert ended.returncode == 2 and ended.stderr.startswith("error: ") and ended.stderr.count("\n") == 1
    assert "was not written" in ended.stderr and "free some space" in ended.stderr and str(tmp_path) in ended.stderr
    [part] = names(tmp_path)
    assert part.endswith(".part")
    assert download(f"{server.address}/file", tmp_path / "file").read_bytes() == CONTENT  # the limit is gone


# ----------------------------------------------------------------------------- GPT-2's weights and E2E's files


@pytest.fixture
def published(server, tmp_path, monkeypatch):
    """The published addresses point to the local server, "gpt2" has the fixture's size, and the cache is empty."""
    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(weights, "HUB", server.address + "/{name}/resolve/main/model.safetensors")
    monkeypatch.setattr(weights, "OPENAI", server.address + "/models/{size}/{file}")
    monkeypatch.setattr(e2e_data, "PAPER_FILES", server.address + "/e2e/{file}")
    monkeypatch.setitem(CONFIGS, "gpt2", GPT2Config(n_layer=2, n_head=2, n_embd=8, n_positions=16, vocab_size=31))
    for file in weights.TF_FILES:
        server.files[f"/models/124M/{file}"] = (TENSORFLOW / file).read_bytes()
    return server


def safetensors_of_the_fixture(folder: Path) -> bytes:
    tensors = weights.read_checkpoint(TENSORFLOW / weights.TF_FILES[0])
    write_safetensors(folder / "made.safetensors", tensors, {})
    return (folder / "made.safetensors").read_bytes()


def test_weights_are_downloaded_from_the_hub(published, tmp_path):
    published.files["/gpt2/resolve/main/model.safetensors"] = safetensors_of_the_fixture(tmp_path)
    weights.load_gpt2("gpt2")
    weights.load_gpt2("gpt2")  # from the cache
    assert [path for path, _, _ in published.seen] == ["/gpt2/resolve/main/model.safetensors"]
    assert names(tmp_path / "cache") == ["model.safetensors"]


def test_weights_are_downloaded_from_openai_if_the_hub_has_none(published, tmp_path):
    model = weights.load_gpt2("gpt2")
    wanted = weights.read_checkpoint(TENSORFLOW / weights.TF_FILES[0])
    assert all((wanted[key] == tensor).all() for key, tensor in model.state_dict().items())
    asked = len(published.seen)
    weights.load_gpt2("gpt2")
    assert len(published.seen) == asked  # both files are in the cache now
    assert names(tmp_path / "cache") == sorted(weights.TF_FILES)


def test_one_of_openais_two_files_is_not_a_checkpoint(published, tmp_path):
    """An index without its data file: the data file is downloaded before the checkpoint is read."""
    folder = tmp_path / "cache" / "gpt2"
    folder.mkdir(parents=True)
    (folder / weights.TF_FILES[0]).write_bytes((TENSORFLOW / weights.TF_FILES[0]).read_bytes())
    weights.load_gpt2("gpt2")
    assert f"/models/124M/{weights.TF_FILES[1]}" in [path for path, _, _ in published.seen]


def test_weights_that_no_server_has_give_one_sentence_with_the_alternative(published):
    published.files.clear()
    with pytest.raises(InputError, match=r"no weights for gpt2: .*model\.safetensors.*404.*--weights PATH"):
        weights.load_gpt2("gpt2")


def test_after_a_full_disk_no_other_server_is_tried(published, tmp_path, monkeypatch):
    published.files["/gpt2/resolve/main/model.safetensors"] = CONTENT

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InputError, match="the disk is full: free some space"):
        weights.load_gpt2("gpt2")
    assert [path for path, _, _ in published.seen] == ["/gpt2/resolve/main/model.safetensors"]


def test_data_are_downloaded_verified_and_cached(published, tmp_path, monkeypatch):
    text = b"name : A | food : B||A has B . \nname : C||C is here . \n"
    published.files["/e2e/src1_test.txt"] = text
    monkeypatch.setitem(e2e_data.SHA256, "src1_test.txt", sha256(text))
    for _ in range(2):
        assert e2e_data.load_split(None, "test") == [
            ("name : A | food : B", "A has B . "),
            ("name : C", "C is here . "),
        ]
    assert len(published.seen) == 1 and names(tmp_path / "cache") == ["src1_test.txt"]

    (tmp_path / "cache" / "e2e" / "src1_test.txt").write_bytes(text + b"one||more\n")
    with pytest.raises(InputError, match=r"src1_test\.txt has changed since it was downloaded: delete it"):
        e2e_data.load_split(None, "test")


def test_data_with_a_wrong_checksum_are_refused(published, tmp_path):
    published.files["/e2e/src1_valid.txt"] = b"name : A||not the paper's file\n"
    with pytest.raises(InputError, match="arrived damaged"):
        e2e_data.load_split(None, "valid")
    assert names(tmp_path / "cache") == []


def test_the_cache_folder_is_the_environments_or_in_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("PREFIX_TUNING_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.setenv("PREFIX_TUNING_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("PREFIX_TUNING_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "prefix-tuning"


# ----------------------------------------------------------------------------- writing


@pytest.mark.parametrize("mode, content", [("w", "£ 20\né\n"), ("wb", b"\x00\xff\r\n")])
def test_write_atomic_creates_folders_and_writes_exactly_these_bytes(tmp_path, mode, content):
    with write_atomic(tmp_path / "a" / "b" / "file", mode) as file:
        file.write(content)
    assert (tmp_path / "a" / "b" / "file").read_bytes() == (content.encode() if mode == "w" else content)
    assert names(tmp_path) == ["file"]


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    (tmp_path / "file").write_text("old")
    with open(tmp_path / "file") as reader:
        with write_atomic(tmp_path / "file") as file:
            file.write("new")
            file.flush()
            assert (tmp_path / "file").read_text() == "old"
        assert reader.read() == "old"  # an open handle keeps the old content: replaced, not overwritten
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize(
    "error", [ValueError("a mistake"), KeyboardInterrupt(), InputError("a complaint"), SystemExit(3)], ids=repr
)
def test_an_error_while_writing_keeps_the_old_file_and_propagates(tmp_path, error):
    (tmp_path / "file").write_text("old")
    with pytest.raises(type(error)) as raised, write_atomic(tmp_path / "file") as file:
        file.write("half of the n")
        raise error
    assert raised.value is error
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize("amount", [10, 1_000_000])
def test_a_full_disk_keeps_the_old_file_and_is_reported(tmp_path, monkeypatch, amount):
    (tmp_path / "file").write_text("old")
    if Path("/dev/full").exists():  # Linux's file that behaves like one on a full disk
        (tmp_path / f"file.{os.getpid()}.part").symlink_to("/dev/full")
    else:
        monkeypatch.setattr(
            files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
        )
    with pytest.raises(InputError, match=r"/file was not written: the disk is full: free some space"):
        with write_atomic(tmp_path / "file") as file:
            file.write("n" * amount)
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_a_file_size_limit_keeps_the_old_file_and_exits_with_2(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    ended = run_with_little_room(
        f"with write_atomic(Path({str(path)!r})) as file: file.write('n' * 100_000)", limit=20_000
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"error: {path} was not written: ") and ended.stderr.count("\n") == 1
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "place, remedy", [("taken/file", "check the path"), ("folder", "check the path"), ("n" * 300, "a shorter one")]
)
def test_a_path_that_cannot_be_written_is_named(tmp_path, place, remedy):
    (tmp_path / "taken").write_text("a file where a folder should be")
    (tmp_path / "folder" / "inside").mkdir(parents=True)
    with pytest.raises(InputError, match=f"was not written: .*{remedy}"):
        with write_atomic(tmp_path / place) as file:
            file.write("new")
    assert names(tmp_path) == ["taken"]


# ----------------------------------------------------------------------------- reading, and how a command line ends


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, "file does not exist: check the path"),
        (b"", "file is empty"),
        (b"\xef\xbb\xbf \r\n\n", "file is empty"),
        ("a\nb\ncafé\n".encode("latin-1"), "file, line 3: not UTF-8 text; save the file as UTF-8"),
        ("a\nb\n".encode("utf-16"), "file, line 1: not UTF-8"),
        ("a\né".encode()[:-1], "file, line 2: not UTF-8"),
    ],
)
def test_a_file_that_is_not_text_is_named_with_the_line(tmp_path, content, complaint):
    if content is not None:
        (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError, match=complaint):
        read_text(tmp_path / "file")


def test_a_folder_is_not_text(tmp_path):
    with pytest.raises(InputError, match="is a folder, but a file is needed"):
        read_text(tmp_path)


def test_line_ends_are_normalised_and_a_byte_order_mark_is_dropped(tmp_path):
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_text(tmp_path / "file") == "a\nb\nc\n"


@pytest.mark.parametrize(
    "error, line",
    [
        (InputError("x.txt, line 3: no"), "error: x.txt, line 3: no\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "x.txt"),
            "error: Permission denied at x.txt: check the path and its permissions\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.txt"),
            "error: the disk is full at x.txt: free some space and run the command again"
            " (with --resume if it was training)\n",
        ),
    ],
    ids=["input", "permission", "full disk"],
)
def test_an_error_that_the_user_can_fix_ends_with_one_line_and_status_2(capsys, error, line):
    @exit_on_input_error
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and capsys.readouterr() == ("", line)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
        ),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nIf reserved but unallocated ..."),
    ],
    ids=["Python's", "PyTorch's on a CPU", "on a GPU"],
)
def test_running_out_of_memory_ends_with_one_line_and_status_2(capsys, error):
    with pytest.raises(SystemExit) as ended:
        exit_on_input_error(lambda: (_ for _ in ()).throw(error).send(None))()
    complaint = capsys.readouterr().err
    assert ended.value.code == 2
    assert (
        complaint.startswith("error: not enough memory: choose a smaller --batch_size") and complaint.count("\n") == 1
    )


@pytest.mark.parametrize("error", [ZeroDivisionError(), RuntimeError("shapes differ"), KeyError("a")], ids=repr)
def test_an_error_in_the_program_itself_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        exit_on_input_error(lambda: (_ for _ in ()).throw(error).send(None))()


def test_a_character_that_the_terminal_lacks_is_escaped(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True))
    exit_on_input_error(lambda: print("café £ 20"))()
    assert sys.stdout.buffer.getvalue() == b"caf\\xe9 \\xa3 20" + os.linesep.encode()
