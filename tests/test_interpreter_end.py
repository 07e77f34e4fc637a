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
    end = time.monotonic() + 20
    while not is_ending() and time.monotonic() < end:
        time.sleep(0.01)
    print(is_ending())
go_on = threading.Event()
{STARTS[start]}
go_on.wait()
"""
    ended = run_code(code)
    assert (ended.stdout, ended.stderr) == ("False\nTrue\n", "")
