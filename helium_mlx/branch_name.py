"""What git takes for the name of a branch, as `git check-ref-format --branch` has it."""

import re

from helium_mlx.errors import OptionError
from helium_mlx.json_files import shown

_FORBIDDEN = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]"  # blanks, control characters, and what git has other uses for
    r"|\.\.|@\{|//|/\.|\.lock(/|$)"
    r"|^[-/.]|[/.]$|^(@|HEAD)?$",
)


def require_branch_name(name: str) -> None:
    """Raise OptionError for a revision that can be no branch, nor a reference such as "refs/pr/3"."""
    if _FORBIDDEN.search(name):
        raise OptionError(
            f"revision is {shown(name)}, which git takes for no branch; expected a name such as 4bit or q/4-bit"
        )
