"""Tells PyInstaller how to freeze the package; it finds this through the entry point `pyinstaller40`.

Nothing here is imported at run time.
"""

from pathlib import Path


def get_hook_dirs() -> list[str]:
    """Return the directory of the hooks, as PyInstaller asks for it."""
    return [str(Path(__file__).parent)]
