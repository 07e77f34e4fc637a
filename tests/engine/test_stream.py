"""The channel between worker and reader: bounded, and never silent."""

import asyncio
import threading

import pytest
from waiting import LONGEST_WAIT

from helium_mlx import EngineError, GenerationChunk
from helium_mlx.engine import channels
from helium_mlx.engine.channels import Channel


def chunk(number: int, *, last: bool = False) -> GenerationChunk:
    reason = "length" if last else None
    return GenerationChunk(str(number), number, None, {}, False, reason, 1, number, 0.0, 0.0, 0.0)


class Wakes:
    """Counts how often the worker is woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def make(bound: int = 4, *, alive: bool = True) -> tuple[Channel, Wakes]:
    wakes = Wakes()
    return Channel(bound, wake=wakes, silence=lambda: None if alive else "gone"), wakes


def test_chunks_come_in_order_and_then_none() -> None:
    channel, _ = make()
    for number in range(3):
        channel.put(chunk(number, last=number == 2))
    assert [found.token for found in iter(channel.get, None)] == [0, 1, 2]
    assert channel.get() is None


def test_a_full_channel_stays_full_until_half_of_it_was_read() -> None:
    channel, wakes = make(6)
    for number in range(4):
        channel.put(chunk(number))
    assert not channel.is_full
    channel.put(chunk(4))
    assert channel.is_full
    channel.get()
    assert channel.is_full and wakes.count == 0
    channel.get()
    assert not channel.is_full and wakes.count == 1
    channel.get()
    assert wakes.count == 1


def test_an_error_comes_behind_the_chunks() -> None:
    channel, _ = make()
    channel.put(chunk(0))
    channel.fail(KeyError("why"))
    channel.put(chunk(1))
    channel.fail(ValueError("later"))
    assert channel.get() == chunk(0)
    for _ in range(2):
        with pytest.raises(KeyError, match="why"):
            channel.get()


def test_a_waiting_thread_is_woken() -> None:
    channel, _ = make()
    found: list[GenerationChunk | None] = []
    reader = threading.Thread(target=lambda: found.extend([channel.get(), channel.get()]))
    reader.start()
    channel.put(chunk(0))
    channel.put(chunk(1, last=True))
    reader.join()
    assert found == [chunk(0), chunk(1, last=True)]


def test_a_waiting_task_is_woken_and_lets_others_run() -> None:
    channel, _ = make()

    async def main() -> tuple[list[GenerationChunk | None], bool]:
        readers = [asyncio.ensure_future(channel.get_async()) for _ in range(2)]
        await asyncio.sleep(0)
        waited = not any(reader.done() for reader in readers)
        writer = threading.Thread(target=lambda: [channel.put(chunk(0)), channel.put(chunk(1))])
        writer.start()
        found = await asyncio.gather(*readers)
        writer.join()
        return found, waited

    found, waited = asyncio.run(main())
    assert waited
    assert sorted(each.token for each in found if each) == [0, 1]


def test_a_wait_that_is_cancelled_loses_no_chunk() -> None:
    channel, _ = make()

    async def main() -> GenerationChunk | None:
        reader = asyncio.ensure_future(channel.get_async())
        await asyncio.sleep(0)
        assert len(channel._tasks) == 1
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        channel.put(chunk(0))
        return await channel.get_async()

    assert asyncio.run(main()) == chunk(0)


def test_a_loop_that_is_gone_is_no_trouble() -> None:
    channel, _ = make()

    async def main() -> None:
        task = asyncio.ensure_future(channel.get_async())
        await asyncio.sleep(0)
        left.extend(channel._tasks)
        task.cancel()

    left: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
    asyncio.run(main())
    channel._tasks = left
    assert left[0][0].is_closed()
    channel.put(chunk(0))
    assert channel.get() == chunk(0)


def test_a_worker_that_is_gone_without_a_word_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "_LOOK", 0.01)
    with pytest.raises(EngineError, match="gone"):
        make(alive=False)[0].get()
    with pytest.raises(EngineError, match="gone"):
        asyncio.run(make(alive=False)[0].get_async())


def test_chunks_of_a_worker_that_is_gone_can_still_be_read() -> None:
    channel, _ = make(alive=False)
    channel.put(chunk(0, last=True))
    assert channel.get() == chunk(0, last=True)
    assert channel.get() is None


def test_cancelling_wakes_and_takes_no_lock() -> None:
    channel, wakes = make()
    with channel._condition:
        canceller = threading.Thread(target=channel.cancel)
        canceller.start()
        canceller.join(LONGEST_WAIT)
    assert channel.cancelled and wakes.count == 1
