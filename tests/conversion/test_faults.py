"""Real faults of the command `convert`: full disks, missing permissions, signals, kills, sources that change.

After each of them the output is there whole or not at all, or under --overwrite the old one or the new one, and the
next run leaves nothing else. What needs a file system of its own mounts one in a namespace, where the system lets us.
"""

import errno
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import TypeVar

import pytest
from tiny_checkpoints import write_checkpoint
from tokenizer_samples import SPARE_IDS, vocabulary, write_json_checkpoint

import helium_mlx
from helium_mlx.checkpoint.checkpoint import open_checkpoint
from helium_mlx.files.hashes import file_hashes

# A byte-code file written while operations are counted would count.
PYTHON = [sys.executable, "-B"]

# Runs the command, and does something at the n-th operation that changes a directory or opens a file for writing.
AT_OPERATION = """
import os, signal, sys
from helium_mlx.conversion import conversion
from helium_mlx import terminal
from helium_mlx.files import atomic
from helium_mlx.convert import main

action, number, *arguments = sys.argv[1:]
count = 0

def count_operations(event, values):
    global count
    is_write = event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR)
    if is_write or event in {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}:
        count += 1
        if count == int(number):
            os.kill(os.getpid(), signal.Signals[action])

if arguments[0] == "--without-exchange":
    del arguments[0]
    atomic.exchange = lambda first, second: False
sys.addaudithook(count_operations)
status = main(arguments)
print(count)
sys.exit(status)
"""

# Runs the command, and does something at the n-th call of or in our functions; says how many there were until it began
# to write, and in all. In Python's own, Ctrl-C can leave a lock of its threads held.
AT_CALL = """
import os, signal, sys
import helium_mlx
from helium_mlx.convert import main

action, number, *arguments = sys.argv[1:]
package = os.path.dirname(helium_mlx.__file__)
count = until_work = 0

def count_calls(frame, event, value):
    global count
    if event in ("call", "c_call") and frame.f_code.co_filename.startswith(package):
        count += 1
        if count == int(number):
            os.kill(os.getpid(), signal.Signals[action])

def note_work(event, values):
    global until_work
    if event == "os.mkdir":
        until_work = until_work or count

sys.addaudithook(note_work)
sys.setprofile(count_calls)
try:
    status = main(arguments)
finally:
    sys.setprofile(None)
print(until_work, count)
sys.exit(status)
"""

# Runs code once for each list of words, in a fork that has imported what a conversion needs; prints what came of each.
IN_FORKS = """
import json, os, signal, sys, tempfile
import tokenizers, yaml
import helium_mlx.progress
from helium_mlx.conversion import conversion, verification

def become(words, files):
    for number, file in enumerate(files, start=1):
        os.dup2(file.fileno(), number)
    sys.argv[1:] = words
    status = 0
    try:
        exec(code, {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

def run(words):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            become(words, (out, errors))
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [os.pread(file.fileno(), 1_000_000, 0).decode() for file in (out, errors)]
    return [status, *texts]

code = sys.argv[1]
print(json.dumps([run(words) for words in json.load(sys.stdin)]))
"""

# Runs the command on a disk that looks empty, with files of at most so many bytes if that is said.
ON_FULL_DISK = """
import resource, shutil, sys
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**15, 0, 10**15)
limit, *arguments = sys.argv[1:]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))
from helium_mlx.convert import main
sys.exit(main(arguments))
"""

# Runs the command and changes the source's weights, once they were looked at or once the first tensor is written.
WITH_CHANGED_SOURCE = """
import os, sys
from pathlib import Path
from helium_mlx.conversion import conversion
from helium_mlx.files import safetensors_writer
from helium_mlx.convert import main

moment, change, path, *arguments = sys.argv[1:]
path, is_changed = Path(path), False

def change_source():
    global is_changed
    if is_changed:
        return
    is_changed = True
    if change == "shrinks":
        os.truncate(path, path.stat().st_size // 3)
    elif change == "grows":
        path.open("ab").write(bytes(1000))
    elif change == "vanishes":
        path.unlink()
    elif change == "is written to":
        with path.open("r+b") as file:
            file.seek(-100, 2)
            file.write(bytes(range(100)))
    else:
        other = path.with_suffix(".other")
        other.write_bytes(path.read_bytes()[:-50] + bytes(50))
        other.rename(path)

if moment == "opened":
    sys.addaudithook(lambda event, values: change_source() if event == "os.mkdir" else None)
else:
    write = safetensors_writer.SafetensorsWriter.write
    def change_and_write(*arguments, **options):
        change_source()
        return write(*arguments, **options)
    safetensors_writer.SafetensorsWriter.write = change_and_write
sys.exit(main(arguments))
"""

# Permission bits bind root, too, once the capability to override them is gone, which it is after the next exec.
WITHOUT_PRIVILEGES = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
if os.geteuid() == 0:
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""

T = TypeVar("T")
U = TypeVar("U")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_json_checkpoint(tmp_path_factory.mktemp("source") / "source")
    return write_checkpoint(
        directory, vocab_size=len(vocabulary()) + SPARE_IDS, intermediate_size=128, num_hidden_layers=2
    )


@pytest.fixture(scope="module")
def old(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is there before the command comes with --overwrite."""
    directory = tmp_path_factory.mktemp("old") / "x"
    helium_mlx.convert(str(source), str(directory))
    return directory


@pytest.fixture(scope="module")
def new(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of `source`."""
    directory = tmp_path_factory.mktemp("new") / "x"
    convert(source, directory)
    return directory


def convert(source: Path, output: Path, *, overwrite: bool = False) -> None:
    helium_mlx.convert(str(source), str(output), dtype="bfloat16", overwrite=overwrite, verify=False)


def arguments(source: Path, output: Path, *, overwrite: bool) -> list[str]:
    given = ["--hf-path", str(source), "--mlx-path", str(output), "--dtype", "bfloat16"]
    return [*given, "--overwrite"] if overwrite else given


def command(source: Path, output: Path, *, overwrite: bool) -> list[str]:
    return [*PYTHON, "-m", "helium_mlx.convert", *arguments(source, output, overwrite=overwrite)]


def run(words: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)


def run_each(code: str, jobs: list[list[str]]) -> "list[subprocess.CompletedProcess[str]]":
    """Run code once for each list of words: in forks where MLX outlives them, else in processes from scratch."""
    if sys.platform != "linux":
        return in_parallel(lambda words: run([*PYTHON, "-c", code, *words]), jobs)
    done = subprocess.run(
        [*PYTHON, "-c", IN_FORKS, code],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [
        subprocess.CompletedProcess(words, *result) for words, result in zip(jobs, json.loads(done.stdout), strict=True)
    ]


def in_parallel(function: Callable[[T], U], values: Iterable[T]) -> list[U]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, values))


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def error_of(result: "subprocess.CompletedProcess[str]") -> str:
    """The one line that a refused conversion says, progress aside."""
    lines = [line for line in result.stderr.splitlines() if not line.startswith(("Converting: ", "Verifying: "))]
    assert result.returncode == 1, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def require_named(errors: str, number: int) -> None:
    last = errors.splitlines()[-1]
    assert last.startswith("error: ")
    assert os.strerror(number) in last


def prepared(parent: Path, old: Path, *, overwrite: bool) -> Path:
    """Return the destination in `parent`, which is new; it is there if it is to be overwritten."""
    parent.mkdir(parents=True)
    if overwrite:
        shutil.copytree(old, parent / "x")
    return parent / "x"


def require_untouched(parent: Path, old: Path, *, overwrite: bool) -> None:
    assert listing(parent) == (["x"] if overwrite else [])
    assert not overwrite or contents(parent / "x") == contents(old)


def is_new(output: Path, old: Path, new: Path) -> bool:
    """Return which of the two an output is; it is one of them, whole."""
    record = json.loads((output / "conversion.json").read_text())
    assert record["files"] == file_hashes(output / name for name in record["files"])
    assert listing(output) == listing(new)
    open_checkpoint(output)
    if record["dtype"] == "bfloat16":
        assert (output / "model.safetensors").read_bytes() == (new / "model.safetensors").read_bytes()
        return True
    assert contents(output) == contents(old)
    return False


def require_sound(parent: Path, source: Path, old: Path, new: Path, *, overwrite: bool) -> None:
    """The output is whole, or absent if nothing was there; the next run succeeds and leaves nothing else."""
    output = parent / "x"
    assert {name for name in listing(parent) if not name.startswith(".")} <= {"x"}
    if overwrite or output.exists():
        is_new(output, old, new)
    require_next_run(parent, source, old, new, overwrite=output.exists())


def require_next_run(parent: Path, source: Path, old: Path, new: Path, *, overwrite: bool) -> None:
    convert(source, parent / "x", overwrite=overwrite)
    assert listing(parent) == ["x"]
    assert is_new(parent / "x", old, new)


# Disk full


@cache
def namespace() -> tuple[str, ...]:
    """Return the words that run a command where it may mount; none if that is forbidden, or there is no such thing."""
    words = ("unshare", "-m") if os.geteuid() == 0 else ("unshare", "-r", "-m")
    is_there = shutil.which("unshare") and shutil.which("mount")
    mount = [*words, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return words if is_there and run(mount).returncode == 0 else ()


def run_mounted(directory: Path, options: str, words: list[str], setup: str = "true") -> tuple[int, str, Path]:
    """Run a command while `directory` is on a small disk; return status, standard error, and a copy of the disk.

    What is in `directory` is copied to the disk before; `setup` is a shell command, run then.
    """
    if not namespace():
        pytest.skip("file systems cannot be mounted here")
    before, after = directory.with_suffix(".before"), directory.with_suffix(".after")
    directory.rename(before)
    directory.mkdir()
    script = (
        'mount -t tmpfs -o "$1" tmpfs "$2" && cp -R "$3/." "$2" && eval "$5" || exit 99; '
        'disk=$2 after=$4; shift 5; "$@"; status=$?; cp -R "$disk/." "$after" || exit 98; exit $status'
    )
    after.mkdir()
    paths = map(str, (directory, before, after))
    result = run([*namespace(), "sh", "-c", script, "sh", options, *paths, setup, *words])
    assert result.returncode < 98, result.stderr
    return result.returncode, result.stderr, after


def pages(path: Path) -> int:
    return -(-path.stat().st_size // 4096)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_full_at_any_file_keeps_what_was_there(
    tmp_path: Path, source: Path, old: Path, new: Path, overwrite: bool
) -> None:
    files = sorted(new.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    taken = sum(map(pages, old.iterdir())) if overwrite else 0
    ends = [sum(map(pages, files[: i + 1])) for i in range(len(files))]
    # Each file lacks a page, and the weights all but some of theirs, too; the last disk has room, and some to spare.
    sizes = sorted({*(end - 1 for end in ends), ends[-1] // 3, ends[-1] // 2, ends[-1] + 8})

    def fill(size: int) -> tuple[int, str, Path]:
        directory = tmp_path / str(size)
        output = prepared(directory, old, overwrite=overwrite)
        words = [*PYTHON, "-c", ON_FULL_DISK, "", *arguments(source, output, overwrite=overwrite)]
        return run_mounted(directory, f"size={(taken + size) * 4}k", words)

    *failures, (status, errors, after) = in_parallel(fill, sizes)
    assert status == 0, errors
    assert is_new(after / "x", old, new)
    for status, errors, after in failures:
        assert status == 1, errors
        require_named(errors, errno.ENOSPC)
        require_untouched(after, old, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_without_room_for_the_weights_is_refused(
    tmp_path: Path, source: Path, old: Path, overwrite: bool
) -> None:
    output = prepared(tmp_path / "disk", old, overwrite=overwrite)
    size = 4 * sum(map(pages, old.iterdir() if overwrite else ())) + 100
    words = command(source, output, overwrite=overwrite)
    status, errors, after = run_mounted(tmp_path / "disk", f"size={size}k", words)
    assert status == 1
    assert errors.splitlines()[-1].startswith(f"error: {output}: ")
    require_untouched(after, old, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_without_inodes_keeps_what_was_there(
    tmp_path: Path, source: Path, old: Path, new: Path, overwrite: bool
) -> None:
    # The root of the disk has one, and the old directory and each file in it.
    taken = 1 + (1 + len(listing(old)) if overwrite else 0)

    def fill(count: int) -> tuple[int, str, Path]:
        directory = tmp_path / str(count)
        output = prepared(directory, old, overwrite=overwrite)
        words = command(source, output, overwrite=overwrite)
        return run_mounted(directory, f"size=4m,nr_inodes={taken + count}", words)

    for status, errors, after in in_parallel(fill, [0, 1, 3, len(listing(new))]):
        assert status == 1, errors
        require_named(errors, errno.ENOSPC)
        require_untouched(after, old, overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_may_not_grow_keep_what_was_there(
    tmp_path: Path, source: Path, old: Path, new: Path, overwrite: bool
) -> None:
    weights = (new / "model.safetensors").stat().st_size

    def fill(limit: int) -> tuple[str, Path]:
        output = prepared(tmp_path / str(limit), old, overwrite=overwrite)
        words = [*PYTHON, "-c", ON_FULL_DISK, str(limit), *arguments(source, output, overwrite=overwrite)]
        return error_of(run(words)), output.parent

    for error, parent in in_parallel(fill, [100, 700, 30_000, weights - 1]):
        require_named(error, errno.EFBIG)
        require_untouched(parent, old, overwrite=overwrite)


# No permission


@cache
def unprivileged() -> tuple[str, ...]:
    """Return the words that run a command for which permission bits count."""
    words = (*PYTHON, "-c", WITHOUT_PRIVILEGES)
    code = "import os, tempfile; d = tempfile.mkdtemp(); os.chmod(d, 0); print(os.access(d, os.W_OK)); os.rmdir(d)"
    if run([*words, sys.executable, "-c", code]).stdout.strip() != "False":
        pytest.skip("permissions do not count here")
    return words


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, source: Path, old: Path, overwrite: bool) -> None:
    output = prepared(tmp_path / "parent", old, overwrite=overwrite)
    output.parent.chmod(0o555)
    result = run([*unprivileged(), *command(source, output, overwrite=overwrite)])
    output.parent.chmod(0o755)
    assert error_of(result) == f"error: {output}: cannot be written ({os.strerror(errno.EACCES)})"
    require_untouched(output.parent, old, overwrite=overwrite)


def test_a_directory_that_can_be_written_but_not_listed_will_do(
    tmp_path: Path, source: Path, old: Path, new: Path
) -> None:
    output = prepared(tmp_path / "parent", old, overwrite=True)
    output.parent.chmod(0o333)
    result = run([*unprivileged(), *command(source, output, overwrite=True)])
    output.parent.chmod(0o755)
    assert result.returncode == 0, result.stderr
    assert listing(output.parent) == ["x"]
    assert is_new(output, old, new)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_is_read_only_is_named(tmp_path: Path, source: Path, old: Path, overwrite: bool) -> None:
    output = prepared(tmp_path / "disk", old, overwrite=overwrite)
    words = command(source, output, overwrite=overwrite)
    remount = f"mount -o remount,ro {shlex.quote(str(output.parent))}"
    status, errors, after = run_mounted(output.parent, "size=2m", words, remount)
    assert status == 1
    assert errors == f"error: {output}: cannot be written ({os.strerror(errno.EROFS)})\n"
    require_untouched(after, old, overwrite=overwrite)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, source: Path, name: str) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    (copy / name).chmod(0)
    error = error_of(run([*unprivileged(), *command(copy, tmp_path / "x", overwrite=False)]))
    assert name in error
    assert os.strerror(errno.EACCES) in error
    assert listing(tmp_path) == ["source"]


@pytest.mark.parametrize("name", ["file/x", "file", "n" * 300, "link", "new/deep/" + "n" * 300])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_impossible_place_is_refused_in_one_line(tmp_path: Path, source: Path, name: str, overwrite: bool) -> None:
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to("nowhere")
    error_of(run(command(source, tmp_path / name, overwrite=overwrite)))
    assert listing(tmp_path) == ["file", "link"]
    assert (tmp_path / "file").read_text() == "a file"


# Kills


@pytest.mark.parametrize(
    ("action", "flags"),
    [
        ("SIGKILL", ()),
        ("SIGKILL", ("--overwrite",)),
        ("SIGKILL", ("--overwrite", "--without-exchange")),
        ("SIGINT", ("--overwrite", "--without-exchange")),
    ],
)
def test_a_signal_at_any_operation_on_files_leaves_old_or_new(
    tmp_path: Path, source: Path, old: Path, new: Path, action: str, flags: tuple[str, ...]
) -> None:
    overwrite, has_exchange = "--overwrite" in flags, "--without-exchange" not in flags

    def struck(numbers: Iterable[int]) -> "list[tuple[Path, subprocess.CompletedProcess[str]]]":
        patches = [] if has_exchange else ["--without-exchange"]
        outputs = {number: prepared(tmp_path / str(number), old, overwrite=overwrite) for number in numbers}
        jobs = [
            [action, str(number), *patches, *arguments(source, output, overwrite=overwrite), "--no-verify"]
            for number, output in outputs.items()
        ]
        return list(zip(outputs.values(), run_each(AT_OPERATION, jobs), strict=True))

    [(output, whole)] = struck([0])
    assert whole.returncode == 0, whole.stderr
    assert is_new(output, old, new)
    results = struck(range(1, int(whole.stdout) + 1))
    assert len(results) > len(listing(new))
    for output, result in results:
        assert result.returncode == {"SIGKILL": -9, "SIGINT": 130}[action]
        if action != "SIGKILL":
            assert listing(output.parent) in ([[], ["x"]] if not overwrite else [["x"]])
        if overwrite and (has_exchange or output.exists()):
            is_new(output, old, new)
        elif overwrite:
            # Between two renames: the next run puts the old one back, even if it then fails itself.
            error = error_of(run(command(source, output, overwrite=False)))
            assert error.endswith("x is there already; choose another name, or replace it with --overwrite")
            assert contents(output) == contents(old)
        require_sound(output.parent, source, old, new, overwrite=overwrite)


def calls_of_a_run(directory: Path, source: Path, old: Path) -> tuple[int, int]:
    """Return how many calls a run that overwrites makes until it begins to write, and until it ends."""
    output = prepared(directory, old, overwrite=True)
    [whole] = run_each(AT_CALL, [["SIGKILL", "0", *arguments(source, output, overwrite=True)]])
    assert whole.returncode == 0, whole.stderr
    first, last = map(int, whole.stdout.split())
    return first, last


def moments(seed: int, first: int, last: int, count: int) -> list[int]:
    """Return calls to be struck at: one of four before the run begins to write, the others after."""
    draw = random.Random(seed)
    return [draw.randint(1, first) if n % 4 == 0 else draw.randint(first + 1, last) for n in range(count)]


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_at_random_calls_the_output_is_old_or_new(
    tmp_path: Path, source: Path, old: Path, new: Path, overwrite: bool
) -> None:
    first, last = calls_of_a_run(tmp_path / "whole", source, old)
    outputs = {n: prepared(tmp_path / str(n), old, overwrite=overwrite) for n in moments(1, first, last, 20)}
    jobs = [["SIGKILL", str(n), *arguments(source, outputs[n], overwrite=overwrite)] for n in outputs]
    statuses = [result.returncode for result in run_each(AT_CALL, jobs)]
    # A run that overwrites nothing makes fewer calls.
    assert {-signal.SIGKILL} <= set(statuses) <= {0, -signal.SIGKILL}
    n_at_work = sum(is_at_work(output.parent) for output in outputs.values())
    for output in outputs.values():
        require_sound(output.parent, source, old, new, overwrite=overwrite)
    assert n_at_work >= 5, f"{n_at_work} runs were killed while they wrote"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_at_random_calls_nothing_is_left(
    tmp_path: Path, source: Path, old: Path, new: Path, number: signal.Signals, status: int
) -> None:
    first, last = calls_of_a_run(tmp_path / "whole", source, old)
    outputs = {n: prepared(tmp_path / str(n), old, overwrite=n % 2 == 0) for n in moments(2, first, last, 20)}
    jobs = [[number.name, str(n), *arguments(source, outputs[n], overwrite=n % 2 == 0)] for n in outputs]
    n_interrupted = 0
    for (n, output), result in zip(outputs.items(), run_each(AT_CALL, jobs), strict=True):
        n_interrupted += result.returncode == status
        # The last two are for a signal that comes when all is done, or before the command is prepared for it.
        assert result.returncode in (status, 0, -number), result.stderr
        assert result.returncode != status or "Traceback" not in result.stderr
        if output.exists():
            is_new(output, old, new)
        assert listing(output.parent) == (["x"] if n % 2 == 0 or output.exists() else [])
    assert n_interrupted >= 10, "hardly any run was interrupted"


def is_at_work(parent: Path) -> bool:
    return any(name.startswith(".") for name in os.listdir(parent))


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_runs_to_one_place_do_not_disturb_each_other(
    tmp_path: Path, source: Path, old: Path, new: Path, overwrite: bool
) -> None:
    output = prepared(tmp_path / "parent", old, overwrite=overwrite)
    words = [*PYTHON, "-c", AT_OPERATION, "SIGSTOP", "4", *arguments(source, output, overwrite=overwrite)]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as slow:
        os.waitid(os.P_PID, slow.pid, os.WSTOPPED | os.WNOWAIT)
        [hidden] = [name for name in listing(output.parent) if name.startswith(".")]
        convert(source, output, overwrite=overwrite)
        fast, after = contents(output), listing(output.parent)
        # Before anything is asserted: the end of the block waits for a process that has stopped.
        slow.send_signal(signal.SIGCONT)
        _, errors = slow.communicate()
    assert after == [hidden, "x"]
    assert listing(output.parent) == ["x"]
    if overwrite:
        assert slow.returncode == 0, errors
        assert is_new(output, old, new)
    else:
        assert slow.returncode == 1
        assert (
            errors.splitlines()[-1]
            == f"error: {output} is there already; choose another name, or replace it with --overwrite"
        )
        assert contents(output) == fast


# Sources that change


@pytest.mark.parametrize(
    ("moment", "change"),
    [
        *(("opened", change) for change in ("shrinks", "grows", "vanishes")),
        *(("writing", change) for change in ("shrinks", "grows", "vanishes", "is written to", "is replaced")),
    ],
)
def test_a_source_that_changes_while_it_is_read_is_named(
    tmp_path: Path, source: Path, old: Path, moment: str, change: str
) -> None:
    copy = shutil.copytree(source, tmp_path / "source")
    output = prepared(tmp_path / "parent", old, overwrite=True)
    words = [moment, change, str(copy / "model.safetensors"), *arguments(copy, output, overwrite=True)]
    assert "model.safetensors" in error_of(run([*PYTHON, "-c", WITH_CHANGED_SOURCE, *words]))
    require_untouched(output.parent, old, overwrite=True)
