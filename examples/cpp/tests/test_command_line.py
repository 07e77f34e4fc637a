"""The program as one calls it: `python test_command_line.py PROGRAM BUNDLE`, the bundle being the demo's.

Every run must end with its code and at most one line of complaint: what a sanitizer reports is more.
"""

# ruff: noqa: D102 - the names of tests are their claims

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

PROGRAM, BUNDLE = sys.argv[1:3]
# Far more than it takes: what runs that long is not ended by a signal.
PATIENCE_S = 60


def run(*words: str | bytes, text: bytes = b"") -> tuple[int, str, str]:
    """Return the code, standard output and standard error of a run that reads `text`."""
    done = subprocess.run([PROGRAM, *words], input=text, capture_output=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def run_in_shell(redirection: str, *words: str) -> tuple[int, str, str]:
    """Return the same of a run whose standard streams a shell has changed."""
    command = ["/bin/sh", "-c", f'exec "$@" {redirection}', "sh", PROGRAM, *words]
    done = subprocess.run(command, capture_output=True, timeout=PATIENCE_S, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def start(*words: str) -> subprocess.Popen[bytes]:
    """Return a run that is under way."""
    pipe = subprocess.PIPE
    return subprocess.Popen([PROGRAM, *words], stdin=pipe, stdout=pipe, stderr=pipe)


def code_after_interrupt(running: subprocess.Popen[bytes]) -> tuple[int, bytes]:
    """Send what Ctrl-C sends; return the code and the standard error."""
    with running:
        running.send_signal(signal.SIGINT)
        try:
            return running.wait(PATIENCE_S), running.stderr.read() if running.stderr else b""
        finally:
            running.kill()


def write_long_check(bundle: Path) -> None:
    """Write a copy of the bundle whose check takes minutes: every vector many times."""
    for source in Path(BUNDLE).iterdir():
        (bundle / source.name).symlink_to(source.absolute())
    vectors = json.loads((bundle / "vectors.json").read_text(encoding="utf-8"))
    manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
    first = min(vectors["vectors"], key=lambda vector: len(json.dumps(vector)))
    vectors["vectors"] = [first] * (10_000_000 // len(json.dumps(first)))
    content = json.dumps(vectors).encode()
    manifest["files"]["vectors.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    for name, changed in (("vectors.json", content), ("manifest.json", json.dumps(manifest).encode())):
        (bundle / name).unlink()
        (bundle / name).write_bytes(changed)


class CommandLine(unittest.TestCase):
    """One claim a test."""

    def assert_refused(self, code: int, complaint: str, done: tuple[int, str, str]) -> None:
        """Demand a code, nothing on standard output, and one line that begins with a complaint."""
        self.assertEqual(done[2].count("\n"), 1, done[2])
        self.assertTrue(done[2].startswith(f"helium: {complaint}"), done[2])
        self.assertEqual(done[:2], (code, ""))

    def test_help_is_given_wherever_it_is_asked_for(self) -> None:
        for words in (("--help",), ("--bundle", BUNDLE, "--help"), ("--tokens", "--help", "--unknown")):
            code, output, complaint = run(*words)
            self.assertEqual((code, complaint), (0, ""))
            self.assertTrue(output.startswith("usage: helium --bundle DIR"))

    def test_wrong_usage_is_found_before_a_bundle_is_opened(self) -> None:
        cases = {
            ("--max-tokens", "99999999999"): "a whole number from 1 to 2147483647",
            ("--max-tokens", "-1"): "a whole number from 1 to 2147483647",
            ("--max-tokens", "0"): "a whole number from 1 to 2147483647",
            ("--max-tokens", "3x"): "a whole number from 1 to 2147483647",
            ("--top-k", "-1"): "a whole number from 0 to 2147483647",
            ("--seed", "-1"): "a whole number from 0 to 18446744073709551615",
            ("--temp", "nan"): "a number that is at least 0",
            ("--temp", "-0.1"): "a number that is at least 0",
            ("--temp", "1e99"): "a number that is at least 0",
            ("--temp", "0.5 "): "a number that is at least 0",
            ("--top-p", "0"): "a number above 0 and at most 1",
            ("--top-p", "1.5"): "a number above 0 and at most 1",
            ("--min-p", "-1"): "a number from 0 to 1",
            ("--stop", ""): "a text of at least one character",
        }
        for (name, value), allowed in cases.items():
            done = run("--bundle", "not there", name, value)
            self.assert_refused(2, f"{name} is {value}; it must be {allowed}; --help lists what there is\n", done)

    def test_unknown_and_unfinished_options_are_wrong_usage(self) -> None:
        self.assert_refused(2, "--unknown is unknown; --help", run("--bundle", BUNDLE, "--unknown", "--help"))
        self.assert_refused(2, "--prompt lacks its value; --help", run("--bundle", BUNDLE, "--prompt"))
        self.assert_refused(2, "no bundle; name the directory", run("--prompt", "Once"))
        self.assert_refused(2, "no bundle; name the directory", run())

    def test_a_bundle_that_is_not_there_is_no_wrong_usage(self) -> None:
        self.assert_refused(1, "not there/manifest.json cannot be read", run("--bundle", "not there", "--prompt", "a"))

    def test_options_change_the_completion(self) -> None:
        words = ("--bundle", BUNDLE, "--prompt", "Once upon a time", "--max-tokens", "12", "--ignore-eos")
        greedy = run(*words, "--temp", "0")[1]
        sampled = ("--temp", "1.5", "--top-p", "0.99", "--top-k", "1000", "--min-p", "1e-9", "--seed")
        first, again, other = (run(*words, *sampled, seed)[1] for seed in ("5", "5", "18446744073709551615"))
        self.assertEqual(first, again)
        self.assertEqual(len({greedy, first, other}), 3)
        stop = greedy[len(greedy) // 2 :][:3]
        self.assertEqual(run(*words, "--temp", "0", "--stop", stop)[1], greedy[: greedy.index(stop)] + "\n")

    def test_a_prompt_is_read_from_standard_input(self) -> None:
        words = ("--bundle", BUNDLE, "--tokens")
        code, ids, complaint = run(*words, text=b"Once upon a time\n")
        self.assertEqual((code, complaint), (0, ""))
        self.assertEqual(ids, run(*words, "--prompt", "Once upon a time")[1])

    def test_standard_input_is_a_text_as_in_python(self) -> None:
        words = ("--bundle", BUNDLE, "--tokens")
        for given, text in (
            (b"\xef\xbb\xbfOnce upon\r\na time\r\n", "Once upon\na time"),
            (b"Once\r\r\n\n", "Once\r\n"),
            (b"\xef\xbb\xbf", ""),
            (b"a\r", "a\r"),
        ):
            self.assertEqual(run(*words, text=given), run(*words, "--prompt", text))

    def test_a_prompt_with_a_zero_byte_is_refused(self) -> None:
        for task in ((), ("--tokens",)):
            done = run("--bundle", BUNDLE, *task, text=b"Once\0 upon a time")
            self.assert_refused(1, "standard input has a zero byte, where the prompt would end; remove it\n", done)

    def test_standard_input_that_cannot_be_read_is_refused(self) -> None:
        cases = {
            "< /": "standard input cannot be read (Is a directory); give a text, or --prompt",
            "<&-": "standard input cannot be read (Bad file descriptor); give a text, or --prompt",
            "< /dev/zero": "standard input has over 64 MB; give a part of it",
        }
        for redirection, complaint in cases.items():
            for task in ((), ("--tokens",)):
                self.assert_refused(1, f"{complaint}\n", run_in_shell(redirection, "--bundle", BUNDLE, *task))

    def test_output_that_cannot_be_written_is_a_failure(self) -> None:
        completion = ("--bundle", BUNDLE, "--prompt", "Once", "--max-tokens", "3")
        for words in (completion, (*completion, "--tokens"), ("--check", BUNDLE), ("--info", BUNDLE), ("--help",)):
            for target, why in (("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
                done = run_in_shell(target, *words)
                self.assert_refused(1, f"standard output cannot be written ({why}); what came before is", done)

    def test_a_closed_pipe_is_silent(self) -> None:
        completion = ("--bundle", BUNDLE, "--prompt", "Once", "--ignore-eos", "--max-tokens", "100")
        for words in (completion, (*completion, "--tokens"), ("--info", BUNDLE), ("--help",)):
            reading, writing = os.pipe()
            os.close(reading)
            with open(writing, "wb") as output:
                done = subprocess.run(
                    [PROGRAM, *words], stdout=output, stderr=subprocess.PIPE, timeout=PATIENCE_S, check=False
                )
            self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_messages_are_short_lines_of_utf8_whatever_was_given(self) -> None:
        bundle = ("--bundle", BUNDLE)
        self.assert_refused(2, "--max-tokens is \ufffd a; it must be", run(*bundle, "--max-tokens", b"\xff\na"))
        self.assert_refused(2, "--\ufffd\ufffd is unknown", run(*bundle, b"--\xff\xfe"))
        self.assert_refused(2, "--stop is \ufffd; it must be UTF-8", run(*bundle, "--stop", b"\xff"))
        self.assert_refused(1, "\ufffd/manifest.json cannot be read", run("--info", b"\xff"))
        self.assert_refused(1, "the text is not UTF-8; convert it first\n", run(*bundle, "--prompt", b"a\xff"))
        self.assert_refused(1, "the text is not UTF-8; convert it first\n", run(*bundle, text=b"a\xff"))
        done = run(*bundle, "--max-tokens", "9" * 100_000)
        self.assert_refused(2, "--max-tokens is 999", done)
        self.assertIn("it must be a whole number from 1", done[2])
        self.assertLess(len(done[2]), 3000)

    def test_an_interrupt_ends_a_program_that_reads_its_prompt(self) -> None:
        running = start("--bundle", BUNDLE)
        assert running.stdin
        # More than a pipe holds: once all is written, reading has begun.
        running.stdin.write(b"a" * 1_000_000)
        self.assertEqual(code_after_interrupt(running), (130, b""))

    def test_an_interrupt_ends_a_completion(self) -> None:
        running = start("--bundle", BUNDLE, "--prompt", "Once", "--ignore-eos", "--max-tokens", "100000")
        assert running.stdout
        running.stdout.read(1)
        self.assertEqual(code_after_interrupt(running), (130, b""))

    def test_an_interrupt_ends_a_check(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            write_long_check(Path(directory))
            running = start("--check", directory)
            time.sleep(3)
            self.assertIsNone(running.poll())
            self.assertEqual(code_after_interrupt(running), (130, b""))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
