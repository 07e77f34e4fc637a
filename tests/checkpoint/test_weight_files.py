import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from helium_mlx.errors import CheckpointError
from helium_mlx.files import atomic
from helium_mlx.files.atomic import exchange, files_into, new_directory


def write(destination: Path, text: str, *, replace: bool = False) -> None:
    with new_directory(destination, replace=replace) as directory:
        (directory / "a").write_text(text)


def listing(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def leftover(directory: Path, name: str, text: str = "left over") -> Path:
    path = directory / name
    path.mkdir()
    (path / "a").write_text(text)
    return path


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "exchange", lambda first, second: False)


def test_exchange_swaps_two_directories(tmp_path: Path) -> None:
    first, second = leftover(tmp_path, "first", "1"), leftover(tmp_path, "second", "2")
    assert exchange(first, second)
    assert ((first / "a").read_text(), (second / "a").read_text()) == ("2", "1")


def test_exchange_with_nothing_does_nothing(tmp_path: Path) -> None:
    first = leftover(tmp_path, "first", "1")
    assert not exchange(first, tmp_path / "second")
    assert (first / "a").read_text() == "1"


@pytest.mark.parametrize("is_atomic", [True, False])
def test_a_directory_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_atomic: bool) -> None:
    if not is_atomic:
        without_exchange(monkeypatch)
    (leftover(tmp_path, "x", "old") / "b").write_text("old too")
    write(tmp_path / "x", "new", replace=True)
    assert listing(tmp_path) == ["x"]
    assert listing(tmp_path / "x") == ["a"]
    assert (tmp_path / "x/a").read_text() == "new"


def test_without_exchange_a_replacement_interrupted_at_any_rename_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_exchange(monkeypatch)
    original = os.rename
    left = []
    for interrupted in range(1, 4):
        for comes_first in (True, False):
            calls: list[object] = []

            def rename(source: Path, target: Path) -> None:
                calls.append(target)  # noqa: B023
                if len(calls) == interrupted and comes_first:  # noqa: B023
                    raise KeyboardInterrupt
                original(source, target)
                if len(calls) == interrupted:  # noqa: B023
                    raise KeyboardInterrupt

            shutil.rmtree(tmp_path / "x", ignore_errors=True)
            leftover(tmp_path, "x", "old")
            monkeypatch.setattr(os, "rename", rename)
            with pytest.raises(KeyboardInterrupt):
                write(tmp_path / "x", "new", replace=True)
            monkeypatch.setattr(os, "rename", original)
            assert listing(tmp_path) == ["x"]
            left.append((tmp_path / "x/a").read_text())
    assert left == ["old", "old", "old", "new", "new", "new"]


def test_an_interrupted_removal_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    original = os.rmdir

    def rmdir(path: str, *, dir_fd: int | None = None) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        original(path, dir_fd=dir_fd)

    leftover(tmp_path, "x", "old")
    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", "new", replace=True)
    assert listing(tmp_path) == ["x"]


@pytest.mark.parametrize("name", ["", ".", "..", "/", "there/..", "x\0y"])
def test_what_is_no_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    with pytest.raises(CheckpointError, match="is not a name for a new directory"):
        write(Path(name), "new", replace=True)
    assert listing(tmp_path) == ["there"]
    assert listing(tmp_path / "there") == []


def test_a_trailing_slash_changes_nothing(tmp_path: Path) -> None:
    write(Path(f"{tmp_path}/x/"), "new")
    assert listing(tmp_path) == ["x"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", ["file", "link", "dangling link"])
def test_what_is_no_directory_is_left_alone(tmp_path: Path, kind: str, replace: bool) -> None:
    if kind == "file":
        (tmp_path / "x").write_text("a file")
    else:
        (tmp_path / "x").symlink_to(leftover(tmp_path, "y") if kind == "link" else tmp_path / "nowhere")
    before = listing(tmp_path)
    with pytest.raises(CheckpointError, match=r"x is there already and not a directory; choose another name$"):
        write(tmp_path / "x", "new", replace=replace)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file/x", r"x: cannot be written \(Not a directory\)$"),
        ("file/y/x", r"file/y: Not a directory$"),
        ("n" * 300, r"n: cannot be written \(File name too long\)$"),
        (f"{'n' * 300}/x", r"n: File name too long$"),
        ("new/deep/" + "n" * 300, r"n: cannot be written \(File name too long\)$"),
    ],
)
def test_an_impossible_place_is_named_in_one_line_and_nothing_is_left(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("a file")
    for context in (new_directory(tmp_path / name, replace=False), files_into(tmp_path / name)):
        with pytest.raises(CheckpointError, match=message) as caught, context:
            pass
        assert "\n" not in str(caught.value)
        assert listing(tmp_path) == ["file"]


def test_a_failure_removes_the_parents_that_it_made_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ZeroDivisionError), new_directory(tmp_path / "there/new/deep/x", replace=False):
        raise ZeroDivisionError
    assert listing(tmp_path) == ["there"]
    assert listing(tmp_path / "there") == []


def test_an_error_of_the_system_names_the_file_that_it_is_about(tmp_path: Path) -> None:
    for failing, named in ((tmp_path / "source", "source: No such file"), (None, "x: cannot be written (No space")):
        with pytest.raises(CheckpointError) as caught, new_directory(tmp_path / "x", replace=False):
            if failing is None:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            failing.read_text()
        assert str(caught.value).startswith(f"{tmp_path}/{named}")


def test_two_runs_to_one_new_place_leave_the_first_result(tmp_path: Path) -> None:
    with (
        pytest.raises(
            CheckpointError, match=r"x is there already; choose another name, or replace it with overwrite=True"
        ),
        new_directory(tmp_path / "x", replace=False) as slow,
    ):
        (slow / "a").write_text("slow")
        write(tmp_path / "x", "fast")
        assert (slow / "a").read_text() == "slow"
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x/a").read_text() == "fast"


@pytest.mark.parametrize("is_atomic", [True, False])
def test_two_runs_that_replace_one_place_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_atomic: bool
) -> None:
    if not is_atomic:
        without_exchange(monkeypatch)
    leftover(tmp_path, "x", "old")
    with new_directory(tmp_path / "x", replace=True) as slow:
        (slow / "a").write_text("slow")
        write(tmp_path / "x", "fast", replace=True)
        assert (tmp_path / "x/a").read_text() == "fast"
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x/a").read_text() == "slow"


def test_a_file_that_appears_in_place_of_the_directory_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a directory"), new_directory(tmp_path / "x", replace=True):
        (tmp_path / "x").write_text("a file")
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x").read_text() == "a file"


def test_the_next_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    for run in (new_directory(tmp_path / "x", replace=False), files_into(tmp_path / "x")):
        leftover(tmp_path, ".x.01234567.partial")
        with run as directory:
            assert listing(tmp_path) == sorted({directory.name, *(["x"] if (tmp_path / "x").exists() else [])})
    assert listing(tmp_path) == ["x"]


def test_the_next_run_leaves_alone_what_others_own(tmp_path: Path) -> None:
    others = [".x.0123456.partial", ".x.01234567.partially", ".xx.01234567.partial", ".x.y.01234567.replaced", ".x"]
    for name in others:
        leftover(tmp_path, name)
    (tmp_path / ".x.76543210.partial").symlink_to(leftover(tmp_path, "y"))
    (tmp_path / ".x.76543211.partial").write_text("a file")
    before = listing(tmp_path)
    write(tmp_path / "x", "new")
    assert listing(tmp_path) == sorted([*before, "x"])
    assert listing(tmp_path / "y") == ["a"]


def test_a_replaced_directory_comes_back_if_its_place_is_empty(tmp_path: Path) -> None:
    leftover(tmp_path, ".x.01234567.partial", "new")
    leftover(tmp_path, ".x.01234567.replaced", "old")
    with pytest.raises(CheckpointError, match="is there already"):
        write(tmp_path / "x", "newer")
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x/a").read_text() == "old"


def test_a_replaced_directory_goes_if_its_place_is_taken(tmp_path: Path) -> None:
    leftover(tmp_path, "x", "new")
    leftover(tmp_path, ".x.01234567.replaced", "old")
    write(tmp_path / "x", "newer", replace=True)
    assert listing(tmp_path) == ["x"]
    assert (tmp_path / "x/a").read_text() == "newer"


def test_without_locks_nothing_is_reclaimed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", flock)
    leftover(tmp_path, ".x.01234567.partial")
    write(tmp_path / "x", "new")
    assert listing(tmp_path) == [".x.01234567.partial", "x"]


def test_every_file_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        flushed.append(os.fstat(descriptor).st_ino)
        original(descriptor)
        if not os.path.lexists(tmp_path / "x"):
            flushed_before.update(flushed)

    flushed_before: set[int] = set()
    monkeypatch.setattr(os, "fsync", fsync)
    write(tmp_path / "x", "new")
    assert flushed_before == {(tmp_path / "x").stat().st_ino, (tmp_path / "x/a").stat().st_ino}
    assert flushed[-1] == tmp_path.stat().st_ino


@pytest.mark.parametrize("replace", [False, True])
def test_a_disk_that_fails_at_the_last_moment_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    if replace:
        leftover(tmp_path, "x", "old")
    before = listing(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"x: cannot be written \(Input/output error\)"):
        write(tmp_path / "x", "new", replace=replace)
    assert listing(tmp_path) == before
    assert not replace or (tmp_path / "x/a").read_text() == "old"


def test_files_move_into_the_current_directory_and_through_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = leftover(tmp_path, "target")
    (tmp_path / "link").symlink_to(target)
    monkeypatch.chdir(target)
    for name, destination in (("b", Path()), ("c", tmp_path / "link")):
        with files_into(destination) as directory:
            (directory / name).write_text("new")
    assert listing(target) == ["a", "b", "c"]
    assert listing(tmp_path) == ["link", "target"]
