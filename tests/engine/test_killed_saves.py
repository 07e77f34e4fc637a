"""Prompt caches and states of streams, killed while they are saved: the old file or the new one, and nothing beside."""

import signal
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import run_code

import helium_mlx
from helium_mlx import HeliumEngine, PromptCache

# Saves once without a kill, then again and kills itself at the operation on files that is asked for; 0 is none.
SAVING = """
import os, signal, sys
from pathlib import Path
import mlx.core as mx
import helium_mlx
from helium_mlx import HeliumEngine, PromptCache

kind, path, number = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
count, is_counting = 0, False

def strike():
    global count
    count += is_counting
    if is_counting and count == number:
        os.kill(os.getpid(), signal.SIGKILL)

def count_operations(event, values):
    is_write = event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR)
    if is_write or event in {"os.rename", "os.remove", "os.chmod"}:
        strike()

flush = os.fsync
os.fsync = lambda descriptor: (strike(), flush(descriptor))
sys.addaudithook(count_operations)
model, tokenizer = helium_mlx.load("demo")
if kind == "cache":
    prompts = PromptCache.open(path.with_name("new.safetensors"), model, tokenizer)
    prompts.path = path
    ids = tokenizer.encode("Once upon a time")
    cache, _ = prompts.prepare(ids)
    mx.eval(model(mx.array([ids]), past_key_values=cache).logits)
    is_counting = True
    prompts.store(cache, ids)
else:
    with HeliumEngine("demo") as engine:
        stream = engine.stream("Once upon a time", max_tokens=30)
        next(stream)
        is_counting = True
        stream.save(path)
        is_counting = False
print(count)
"""


def require_complete(kind: str, path: Path) -> None:
    model, tokenizer = helium_mlx.load("demo")
    if kind == "cache":
        assert len(PromptCache.open(path, model, tokenizer).tokens) > 3
        return
    with HeliumEngine("demo") as engine:
        assert engine.continue_stream(path).result().text


@pytest.mark.parametrize("kind", ["cache", "state"])
def test_killed_at_any_operation_on_files_a_save_leaves_old_or_new(tmp_path: Path, kind: str) -> None:
    whole = tmp_path / "whole"
    operations = int(run_code(SAVING, kind, whole, 0, check=True).stdout)
    assert operations > 3

    def strike(number: int) -> tuple[int, Path]:
        path = tmp_path / str(number) / "saved"
        path.parent.mkdir()
        path.write_bytes(b"old")
        path.chmod(0o640)
        return run_code(SAVING, kind, path, number).returncode, path

    with ThreadPoolExecutor(2) as pool:
        struck = list(pool.map(strike, range(1, operations + 1)))
    n_new = 0
    for status, path in struck:
        assert status == -signal.SIGKILL
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        if path.read_bytes() != b"old":
            require_complete(kind, path)
            n_new += 1
    assert n_new < operations
    # The next save of the same file removes what is beside it.
    leftovers = [path for _, path in struck if len(list(path.parent.iterdir())) > 1]
    assert leftovers
    for path in (leftovers[0], leftovers[-1]):
        run_code(SAVING, kind, path, 0, check=True)
        assert list(path.parent.iterdir()) == [path]
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        require_complete(kind, path)
