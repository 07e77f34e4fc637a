"""The command `upload`: a converted directory onto the Hugging Face Hub. `python -m helium_mlx.upload --help`."""

import argparse
import sys
from typing import TYPE_CHECKING

from helium_mlx.errors import shown, some
from helium_mlx.files.hub_client import DEFAULT_TIMEOUT, TIMEOUT_VARIABLE, prepare_session
from helium_mlx.progress import Progress, note
from helium_mlx.terminal import CommandParser

if TYPE_CHECKING:
    from helium_mlx.publishing.upload import UploadReport


def build_parser() -> CommandParser:
    """Return the parser; option names are those of `helium_mlx.upload`."""
    parser = CommandParser(
        "upload",
        "Publish a directory that `helium-mlx convert` made on the Hugging Face Hub, in one commit, and read it back. "
        "What the Hub has is not sent; the same command resumes an upload that was cut off.",
        examples={
            "--path helium-2b-4bit --repo you/helium-2b-4bit --dry-run": "look first: files, sizes, hashes",
            "--path helium-2b-4bit --repo you/helium-2b-4bit": "publish it",
        },
    )
    parser.add_argument("--path", required=True, help="the converted directory")
    parser.add_argument("--repo", required=True, metavar="USER/NAME", help="the repository; made if there is none")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--dry-run", action="store_true", help="list files, sizes and hashes; send nothing")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch; made if there is none (default: main)")
    parser.add_argument("--create-pr", action="store_true", help="open a pull request instead of writing to the branch")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write to a repository that holds something else than an upload of helium_mlx",
    )
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="SECONDS",
        help=f"give up on a server that is silent for so long (default: {DEFAULT_TIMEOUT:g}, or {TIMEOUT_VARIABLE})",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    return build_parser().run(argv, _upload)


def _upload(*, timeout: float | None, **options: object) -> None:
    from helium_mlx.publishing.upload import upload

    if timeout is not None:
        prepare_session(timeout=timeout)
    report = upload(**options, on_progress=Progress("Uploading", unit="B"))  # pyright: ignore[reportArgumentType]
    for warning in report.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if report.left_out:
        names = some([shown(name) for name in report.left_out])
        note(f"{len(report.left_out)} left out, as no part of a checkpoint: {names}")
    if report.dry_run:
        print("\n".join(_listing(report)))
    else:
        print(report.url)
    if report.unasked:
        print(f"warning: what is there already is not known: {report.unasked}", file=sys.stderr)
    note(_summary(report))


def _listing(report: "UploadReport") -> list[str]:
    """Return a line for each file: its bytes, what would be done, SHA-256, name."""
    width = max(len(str(file.size)) for file in report.files)
    lines = [f"{f.size:>{width}}  {'send' if f.is_sent else 'same':6}  {f.sha256}  {f.name}" for f in report.files]
    return lines + [f"{'':{width}}  remove  {'':64}  {name}" for name in report.removed]


def _summary(report: "UploadReport") -> str:
    where = f"{report.repo}, {report.pull_request or report.revision}"
    if report.is_unchanged and not report.is_new:
        return f"{where}: nothing to send, the Hub has all {len(report.files)} files as they are here"
    sent = sum(file.is_sent for file in report.files)
    removed = f", {len(report.removed)} of an earlier upload removed" if report.removed else ""
    figures = f"{sent} of {len(report.files)} files, {report.sent_bytes / 1e6:.1f} MB{removed}"
    if report.dry_run:
        kind = "private" if report.is_private else "public"
        to = f" to a {'new ' if report.is_new else ''}{kind} repository"
        if report.unasked:
            to = f", to a {kind} repository if it is new"
        return f"{where}: would send {figures}{to}; nothing was sent"
    return f"{where}: {figures}; read back, names and hashes are those of the directory"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0 and below 1,000,000")
    return value


if __name__ == "__main__":
    sys.exit(main())
