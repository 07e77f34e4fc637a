"""The end of the interpreter is noticed in the threads that it waits for, and not before."""

import pytest
from processes import run_code

STARTS = {
    "thread": "threading.Thread(target=look).start()",
    "executor": "concurrent.futures.ThreadPoolExecutor().submit(look)",
    "executor from before": "executor.submit(look)",
}


@pytest.mark.parametrize("start", STARTS)
def test_threads_that_the_interpreter_waits_for_notice_its_end(start: str) -> None:
    code = f"""
import concurrent.futures, threading, time
executor = concurrent.futures.ThreadPoolExecutor()
from helium_mlx.interpreter_end import is_ending, watch_end
watch_end()
def look():
    print(is_ending(), flush=True)
    go_on.set()
    end = time.monotonic() + 60
    while not is_ending() and time.monotonic() < end:
        time.sleep(0.01)
    print(is_ending())
go_on = threading.Event()
{STARTS[start]}
go_on.wait()
"""
    ended = run_code(code)
    assert (ended.stdout, ended.stderr) == ("False\nTrue\n", "")


@pytest.mark.parametrize("stream", ["stream_generate", "batch"])
def test_a_daemon_thread_inside_a_stream_does_not_take_the_process_down(stream: str) -> None:
    calls = {
        "stream_generate": "helium_mlx.stream_generate(model, tokenizer, 'A', max_kv_size=64, **options)",
        "batch": "batch_generate(model, tokenizer, ['A', 'B'] * 200, batch_size=2, max_tokens=8, ignore_eos=True)",
    }
    code = f"""
import threading, helium_mlx
from helium_mlx.generation.batching import batch_generate
model, tokenizer = helium_mlx.load("demo")
options = dict(max_tokens=100_000, ignore_eos=True)
begun = threading.Event()
def run():
    for _ in {calls[stream]}:
        begun.set()
threading.Thread(target=run, daemon=True).start()
begun.wait()
"""
    ended = run_code(code, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
