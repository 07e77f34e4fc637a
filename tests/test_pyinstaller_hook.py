"""How the package tells PyInstaller what to freeze; `.ci/freeze` builds and runs a frozen program."""

from importlib.metadata import entry_points
from pathlib import Path

from helium_mlx.__pyinstaller import get_hook_dirs


def test_the_hook_lies_where_pyinstaller_is_told_to_look() -> None:
    assert [(Path(directory) / "hook-helium_mlx.py").is_file() for directory in get_hook_dirs()] == [True]


def test_the_installed_package_points_pyinstaller_to_its_hooks() -> None:
    (entry,) = (entry for entry in entry_points(group="pyinstaller40") if entry.value.startswith("helium_mlx"))
    assert entry.load() is get_hook_dirs
