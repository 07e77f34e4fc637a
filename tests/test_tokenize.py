"""The command `tokenize`, against the tokenizers library and transformers' files."""

import json
import subprocess
import sys

from processes import run_command
from tokenizers import Tokenizer

from helium_mlx.files.hub import DEMO_DIRECTORY

TEXT = "Il était une fois\nun 🐑"


def test_ids_and_pieces_are_those_of_the_tokenizers_library() -> None:
    encoding = Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json")).encode(TEXT)
    printed = run_command("tokenize", "--model", "demo", "--text", TEXT, "--json")
    assert json.loads(printed.stdout) == {"ids": encoding.ids, "pieces": encoding.tokens}


def test_a_line_a_token_and_their_number() -> None:
    printed = run_command("tokenize", "--model", "demo", "--text", TEXT)
    ids = Tokenizer.from_file(str(DEMO_DIRECTORY / "tokenizer.json")).encode(TEXT).ids
    assert [int(line.split()[0]) for line in printed.stdout.splitlines()] == ids
    assert printed.stderr == f"{len(ids)} tokens\n"
    assert run_command("tokenize", "--model", "demo", "--text", TEXT, "--quiet").stderr == ""


def test_standard_input_is_read_as_files_are() -> None:
    command = [sys.executable, "-m", "helium_mlx", "tokenize", "--model", "demo", "--text", "-", "--json"]
    plain = subprocess.run(command, input=b"Once upon\na\n", capture_output=True, check=True)
    dos = subprocess.run(command, input=b"\xef\xbb\xbfOnce upon\r\na\r\n", capture_output=True, check=True)
    assert dos.stdout == plain.stdout
    latin = subprocess.run(command, input=b"caf\xe9", capture_output=True, check=False)
    said = "error: --text -: standard input is not UTF-8 (byte 0xe9 at position 3); convert it first\n"
    assert (latin.returncode, latin.stderr.decode()) == (1, said)
