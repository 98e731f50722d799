"""Caches are bounded, forget in time, and load each missing thing once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import bot


class Time:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def __call__(self) -> float:
        return self.at


class Source:
    """Where a cache loads from; it counts, and answers when told."""

    def __init__(self, *values: Any) -> None:
        self.values, self.loads = list(values), 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Any:
        self.loads += 1
        value = self.values.pop(0) if self.values else f"value {self.loads}"
        await self.gate.wait()
        if isinstance(value, Exception):
            raise value
        return value


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def cache(time: Time) -> bot.Cache[Any, Any]:
    return bot.Cache(3, 60, time)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- Cache


async def test_a_value_is_loaded_once_and_then_found(cache: bot.Cache[Any, Any]) -> None:
    source = Source()
    assert [await cache.get("a", source) for _ in range(3)] == ["value 1"] * 3
    assert source.loads == 1


@pytest.mark.parametrize("value", [0, False, "", (), 0.0])
async def test_an_empty_value_is_a_value(cache: bot.Cache[Any, Any], value: Any) -> None:
    source = Source(value)
    assert await cache.get("a", source) == value
    assert await cache.get("a", source) == value
    assert source.loads == 1 and cache.peek("a") == value


async def test_a_value_lives_so_long_and_no_longer(cache: bot.Cache[Any, Any], time: Time) -> None:
    source = Source()
    await cache.get("a", source)
    time.at += 59.9
    assert await cache.get("a", source) == "value 1"
    time.at += 0.2
    assert cache.peek("a") is None
    assert await cache.get("a", source) == "value 2"


async def test_there_are_never_more_values_than_allowed(cache: bot.Cache[Any, Any]) -> None:
    for n in range(10):
        await cache.get(n, Source())
        assert len(cache) <= 3
    cache.put("more", 1)
    assert len(cache) == 3 and cache.peek("more") == 1


async def test_two_waiters_share_one_load(cache: bot.Cache[Any, Any]) -> None:
    source = Source()
    source.gate.clear()
    waiters = [asyncio.create_task(cache.get("a", source)) for _ in range(5)]
    await turns()
    source.gate.set()
    assert await asyncio.gather(*waiters) == ["value 1"] * 5
    assert source.loads == 1


async def test_different_keys_load_at_the_same_time(cache: bot.Cache[Any, Any]) -> None:
    source = Source()
    source.gate.clear()
    waiters = [asyncio.create_task(cache.get(key, source)) for key in "ab"]
    await turns()
    assert source.loads == 2
    source.gate.set()
    assert sorted(await asyncio.gather(*waiters)) == ["value 1", "value 2"]


async def test_a_failure_reaches_every_waiter_and_is_not_kept(cache: bot.Cache[Any, Any]) -> None:
    source = Source(bot.Unavailable("media.unreachable"), "fine")
    source.gate.clear()
    waiters = [asyncio.create_task(cache.get("a", source)) for _ in range(3)]
    await turns()
    source.gate.set()
    ends = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(end) for end in ends] == [bot.Unavailable] * 3
    assert await cache.get("a", source) == "fine"


async def test_a_waiter_that_is_cancelled_does_not_cancel_the_load(cache: bot.Cache[Any, Any]) -> None:
    source = Source()
    source.gate.clear()
    first, second = (asyncio.create_task(cache.get("a", source)) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    source.gate.set()
    assert first.cancelled() and await second == "value 1"
    assert cache.peek("a") == "value 1"


async def test_a_load_that_fails_when_all_who_asked_are_gone_is_no_error(cache: bot.Cache[Any, Any]) -> None:
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
    source = Source(OSError("no network"))
    source.gate.clear()
    asker = asyncio.create_task(cache.get("k", source))
    await turns()
    asker.cancel()
    await turns()
    source.gate.set()
    await turns()
    del asker
    gc.collect()
    assert not problems


async def test_what_is_forgotten_while_it_loads_is_loaded_again(cache: bot.Cache[Any, Any]) -> None:
    source = Source("stale", "fresh")
    source.gate.clear()
    before = asyncio.create_task(cache.get("a", source))
    await turns()
    cache.forget("a")
    after = asyncio.create_task(cache.get("a", source))
    await turns()
    source.gate.set()
    assert (await before, await after) == ("stale", "fresh")
    assert await cache.get("a", source) == "fresh" and source.loads == 2


async def test_a_stale_load_that_ends_last_does_not_win(cache: bot.Cache[Any, Any]) -> None:
    slow, quick = Source("stale"), Source("fresh")
    slow.gate.clear()
    before = asyncio.create_task(cache.get("a", slow))
    await turns()
    cache.forget("a")
    assert await cache.get("a", quick) == "fresh"
    slow.gate.set()
    await before
    assert cache.peek("a") == "fresh"


async def test_forgetting_a_key_leaves_the_others(cache: bot.Cache[Any, Any]) -> None:
    cache.put("a", 1)
    cache.put("b", 2)
    cache.forget("a")
    cache.forget("never there")
    assert (cache.peek("a"), cache.peek("b")) == (None, 2)


async def test_every_key_with_a_part_is_forgotten(cache: bot.Cache[Any, Any]) -> None:
    source = Source("stale", "fresh")
    source.gate.clear()
    loading = asyncio.create_task(cache.get((7, 3), source))
    await turns()
    cache.put((7, 1), "x")
    cache.put((8, 7), "y")
    cache.put((8, 1), "z")
    cache.forget_all(7)
    source.gate.set()
    await loading
    assert [cache.peek(key) for key in ((7, 1), (8, 7), (7, 3), (8, 1))] == [None, None, None, "z"]


async def test_hits_misses_and_evictions_are_counted(cache: bot.Cache[Any, Any]) -> None:
    for key in "abcab":
        await cache.get(key, Source())
    cache.peek("nothing")
    await cache.get("d", Source())
    assert cache.stats == bot.CacheStats(hits=2, misses=5, evictions=1)


async def test_nothing_is_left_of_a_load_that_is_over(cache: bot.Cache[Any, Any]) -> None:
    await cache.get("a", Source())
    with pytest.raises(KeyError):
        await cache.get("b", Source(KeyError("b")))
    assert not cache._loading


# -- Once


def once(source: Source, closed: list[Any]) -> bot.Once[Any]:
    async def close(value: Any) -> None:
        closed.append(value)

    build: Callable[[], Awaitable[Any]] = source
    return bot.Once(build, close)


async def test_many_who_ask_at_once_get_the_one_thing() -> None:
    source = Source()
    source.gate.clear()
    thing = once(source, [])
    tasks = [asyncio.create_task(thing()) for _ in range(10)]
    await turns()
    source.gate.set()
    assert set(await asyncio.gather(*tasks)) == {"value 1"}
    assert await thing() == "value 1" and source.loads == 1


async def test_nothing_is_built_before_it_is_wanted() -> None:
    source, closed = Source(), list[Any]()
    await once(source, closed).close()
    assert source.loads == 0 and closed == []


async def test_a_failed_build_is_tried_again_by_the_next() -> None:
    source = Source(OSError("no network"), "thing")
    source.gate.clear()
    thing = once(source, [])
    tasks = [asyncio.create_task(thing()) for _ in range(3)]
    await turns()
    source.gate.set()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], OSError) and ends[1:] == ["thing", "thing"]


async def test_a_builder_that_is_cancelled_leaves_the_build_to_the_next() -> None:
    source = Source("first", "second")
    source.gate.clear()
    thing = once(source, [])
    first, second = (asyncio.create_task(thing()) for _ in range(2))
    await turns()
    first.cancel()
    await turns()
    source.gate.set()
    assert await second == "second" and first.cancelled()


async def test_closing_closes_it_once_and_it_can_be_built_again() -> None:
    closed: list[Any] = []
    thing = once(Source(), closed)
    await thing()
    await thing.close()
    await thing.close()
    assert closed == ["value 1"]
    assert await thing() == "value 2"
