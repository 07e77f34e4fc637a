"""The names of branches, against git itself."""

import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helium_mlx.errors import UsageError
from helium_mlx.publishing.upload import require_branch_name

PIECES = ["a", "é", "4bit", ".", "..", "/", "-", "@", "{", "}", "~", "^", ":", "?", "*", "[", "]", "\\", " ", "\t",
          "\x7f", ".lock", ".locks", "HEAD", "_", "+", "'"]  # fmt: skip


def is_taken(name: str) -> bool:
    try:
        require_branch_name(name)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize(
    "name", ["main", "4bit", "q/4-bit", "v1.0", "refs/pr/3", "é", "a@b", "x.locked", "a-", "HEADS"]
)
def test_what_git_takes_is_taken(name: str) -> None:
    assert is_taken(name)


@pytest.mark.parametrize(
    "name",
    ["", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "[a]", "a\\b", "-a", "/a", "a/", "a//b", "a.lock", "a.lock/b",
     "a@{1}", "@", ".a", "a/.b", "a.", "a\n", "\n", "a\x7f", "HEAD"],
)  # fmt: skip
def test_what_git_refuses_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=r"^revision is ") as caught:
        require_branch_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).map("".join))
def test_each_name_is_judged_as_git_judges_it(name: str) -> None:
    # Alone, "@{-1}" and the like would be looked up.
    asked = subprocess.run(["git", "check-ref-format", f"refs/heads/{name}"], check=False)
    is_branch = asked.returncode == 0 and not name.startswith("-") and name not in ("HEAD", "@")
    assert is_taken(name) == is_branch, name
