"""Calls on their way to a worker: each is answered, taken back or refused."""

import pytest

from helium_mlx import EngineError
from helium_mlx.engine.channels import Inbox


def test_calls_are_answered_in_their_order() -> None:
    inbox, done = Inbox(), list[int]()
    answers = [inbox.put(lambda number=number: done.append(number) or number, queues=False) for number in range(3)]
    inbox.take(wait=True, is_over=lambda: False)
    assert [answer.result() for answer in answers] == done == [0, 1, 2]


def test_an_error_goes_to_the_caller_and_what_ends_a_thread_to_both() -> None:
    inbox = Inbox()
    failed, died = inbox.put(lambda: 1 // 0, queues=False), inbox.put(lambda: exit(3), queues=False)
    with pytest.raises(SystemExit):
        inbox.take(wait=False, is_over=lambda: False)
    with pytest.raises(ZeroDivisionError):
        failed.result()
    with pytest.raises(SystemExit):
        died.result()


def test_what_was_taken_back_is_not_done() -> None:
    inbox, done = Inbox(), list[int]()
    for answer in [inbox.put(lambda: done.append(1), queues=queues) for queues in (False, True)]:
        answer.cancel()
    inbox.take(wait=False, is_over=lambda: False)
    inbox.refuse("closed")
    assert not done


def test_a_wake_ends_a_wait_and_the_end_comes_before_what_is_left() -> None:
    inbox, done = Inbox(), list[int]()
    inbox.wake()
    inbox.take(wait=True, is_over=lambda: False)
    for number in range(3):
        inbox.put(lambda number=number: done.append(number), queues=False)
    inbox.take(wait=True, is_over=lambda: len(done) == 2)
    assert done == [0, 1]


def test_at_the_end_only_requests_are_still_queued() -> None:
    inbox, done = Inbox(), list[str]()
    asked = inbox.put(lambda: done.append("asked"), queues=False)
    inbox.wake()
    queued = inbox.put(lambda: done.append("queued"), queues=True)
    inbox.refuse("the engine is closed")
    with pytest.raises(EngineError, match="the engine is closed"):
        asked.result()
    assert queued.result() is None and done == ["queued"]
