"""Locks that forget, slots that can be left, the breaker, the pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

import bot


class Clock(bot.Clock):
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.at = 1000.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# -- KeyedLocks


async def test_one_at_a_time_for_a_key_and_others_beside() -> None:
    locks, inside, most = bot.KeyedLocks(), dict[str, int](), dict[str, int]()

    async def work(key: str) -> None:
        async with locks(key):
            inside[key] = inside.get(key, 0) + 1
            most[key] = max(most.get(key, 0), inside[key])
            most["all"] = max(most.get("all", 0), sum(inside.values()))
            await turns()
            inside[key] -= 1

    await asyncio.gather(*(work(key) for key in "aabbab"))
    assert most == {"a": 1, "b": 1, "all": 2}


async def test_a_lock_nobody_wants_is_forgotten() -> None:
    locks = bot.KeyedLocks()
    async with locks("a"):
        assert len(locks) == 1
        async with locks("b"):
            assert len(locks) == 2
        assert len(locks) == 1
    assert len(locks) == 0


async def test_a_lock_is_forgotten_after_failures_and_cancelled_waiters() -> None:
    locks = bot.KeyedLocks()

    async def wait() -> None:
        async with locks("a"):
            raise AssertionError("not reached")

    with pytest.raises(ZeroDivisionError):
        async with locks("a"):
            waiter = asyncio.create_task(wait())
            await turns()
            waiter.cancel()
            await turns()
            raise ZeroDivisionError
    assert waiter.cancelled() and len(locks) == 0


async def test_a_lock_with_a_waiter_is_kept_for_it() -> None:
    locks, order = bot.KeyedLocks(), list[int]()

    async def work(n: int) -> None:
        async with locks("a"):
            order.append(n)
            await turns()

    tasks = [asyncio.create_task(work(n)) for n in range(3)]
    await turns(1)
    tasks.append(asyncio.create_task(work(3)))
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2, 3] and len(locks) == 0


# -- Slots


class Work:
    """Something in a slot that steps out until told to come back."""

    def __init__(self, slots: bot.Slots) -> None:
        self.back, self.done, self.outside = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(self.run(slots))

    async def run(self, slots: bot.Slots) -> None:
        async with slots:
            async with bot.stepped_out():
                self.outside.set()
                await self.back.wait()
            await self.done.wait()


def free(slots: bot.Slots) -> int:
    return slots._free._value


async def test_no_more_than_so_many_are_at_work() -> None:
    slots, inside, most = bot.Slots(3), 0, 0

    async def work() -> None:
        nonlocal inside, most
        async with slots:
            inside += 1
            most = max(most, inside)
            await turns()
            inside -= 1

    await asyncio.gather(*(work() for _ in range(10)))
    assert most == 3 and free(slots) == 3


async def test_who_steps_out_lets_another_in_and_waits_to_come_back() -> None:
    slots = bot.Slots(1)
    first = Work(slots)
    await first.outside.wait()
    second = Work(slots)
    await second.outside.wait()
    second.back.set()
    await turns()
    first.back.set()
    await turns()
    first.done.set()
    await turns()
    assert not first.task.done()  # the place is taken
    second.done.set()
    await asyncio.gather(first.task, second.task)
    assert free(slots) == 1


async def test_stepping_out_where_there_is_no_slot_changes_nothing() -> None:
    async with bot.stepped_out():
        assert bot.at_work.get() is None


async def test_who_is_back_can_step_out_again() -> None:
    slots = bot.Slots(1)
    async with slots:
        for _ in range(2):
            async with bot.stepped_out():
                assert free(slots) == 1
            assert free(slots) == 0
    assert free(slots) == 1 and bot.at_work.get() is None


async def test_a_failure_outside_takes_the_place_again_and_leaves_it() -> None:
    slots = bot.Slots(1)
    with pytest.raises(ZeroDivisionError):
        async with slots, bot.stepped_out():
            raise ZeroDivisionError
    assert free(slots) == 1


@pytest.mark.parametrize("times", [1, 2])
async def test_who_is_cancelled_outside_leaves_no_place_taken_and_none_too_many(times: int) -> None:
    slots = bot.Slots(1)
    first = Work(slots)
    await first.outside.wait()
    second = Work(slots)
    await second.outside.wait()
    second.back.set()
    await turns()  # the second holds the place
    for _ in range(times):
        first.task.cancel()
        await turns()
    assert free(slots) == 0
    second.done.set()
    await second.task
    with pytest.raises(asyncio.CancelledError):
        await first.task
    await turns()
    assert free(slots) == 1


# -- Breaker

# each letter is a call: f fails, s succeeds, a is abandoned; a number is a pause in seconds
CLOSED, OPEN, HALF = "closed", "open", "half-open"


@pytest.mark.parametrize(
    ("story", "state"),
    [
        ("", CLOSED),
        ("ffff", CLOSED),
        ("fffff", OPEN),
        ("ffff s ffff", CLOSED),
        ("f 30 f 29 fff", OPEN),  # five within a minute
        ("f 30 f 31 fff", CLOSED),  # the first is too long ago
        ("f 30 f 31 ffff", OPEN),
        ("fffff 29.9", OPEN),
        ("fffff 30", HALF),
        ("fffff 30 s", CLOSED),
        ("fffff 30 f", OPEN),  # the probe failed
        ("fffff 30 f 29.9", OPEN),
        ("fffff 100 f", OPEN),  # however long ago the others were
        ("fffff 30 f 30", HALF),
        ("fffff 30 a", HALF),  # the probe said nothing: somebody else may
        ("fffff 30 a s", CLOSED),
        ("fffff 30 s ffff", CLOSED),  # what was before the probe is forgotten
        ("a a a a a a", CLOSED),
    ],
)
def test_five_failures_in_a_minute_open_it_for_half_a_minute(clock: Clock, story: str, state: str) -> None:
    breaker = bot.Breaker(clock)
    calls: dict[str, Callable[[], None]] = {
        "f": breaker.failed,
        "s": breaker.succeeded,
        "a": breaker.abandoned,
    }
    for word in story.split():
        if word[0].isdigit():
            clock.at += float(word)
            continue
        for letter in word:
            assert breaker.allow(), story
            calls[letter]()
    assert breaker.state == state
    assert breaker.allow() == (state != OPEN)


def test_one_probe_at_a_time(clock: Clock) -> None:
    breaker = bot.Breaker(clock)
    for _ in range(5):
        breaker.failed()
    clock.at += 30
    assert [breaker.allow() for _ in range(3)] == [True, False, False]
    breaker.abandoned()
    assert [breaker.allow() for _ in range(2)] == [True, False]
    breaker.succeeded()
    assert [breaker.allow() for _ in range(2)] == [True, True]


def test_failures_of_calls_that_began_before_keep_it_open(clock: Clock) -> None:
    breaker = bot.Breaker(clock)
    for _ in range(9):
        breaker.failed()
    assert breaker.state == "open" and not breaker.allow()


# -- backoff


@pytest.mark.parametrize(
    ("attempt", "low", "high"), [(1, 0.05, 0.5), (2, 0.1, 1.0), (4, 0.4, 4.0), (7, 3.0, 30.0), (500, 3.0, 30.0)]
)
def test_pauses_grow_with_jitter_up_to_a_bound(attempt: int, low: float, high: float) -> None:
    dice = random.Random(1)
    pauses = [bot.backoff(dice, attempt) for _ in range(300)]
    assert low <= min(pauses) < low + (high - low) / 10
    assert high - (high - low) / 10 < max(pauses) <= high


def test_a_pause_may_begin_and_end_elsewhere() -> None:
    pauses = [bot.backoff(random.Random(n), 9, 0.3, 4.0) for n in range(100)]
    assert min(pauses) >= 0.4 and max(pauses) <= 4.0


# -- Window


@pytest.mark.parametrize(
    ("taken", "now", "free"),
    [
        ([], 5.0, 5.0),
        ([0.0, 1.0], 5.0, 5.0),
        ([0.0, 1.0, 2.0], 5.0, 10.0),  # the first of three makes room after ten seconds
        ([0.0, 1.0, 2.0], 12.0, 12.0),
        ([0.0, 1.0, 2.0, 10.0], 5.0, 11.0),
    ],
)
def test_a_window_has_so_many_places(taken: list[float], now: float, free: float) -> None:
    window = bot.Window(3, 10.0)
    for at in taken:
        window.take(at)
    assert window.free(now) == free


def test_a_window_is_idle_when_its_last_event_is_past() -> None:
    window = bot.Window(4, 10.0)
    assert window.idle(0.0)
    window.take(0.0)
    window.take(5.0)
    assert [window.idle(at) for at in (6.0, 14.9, 15.0)] == [False, False, True]
