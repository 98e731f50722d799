"""Fishing over HTTP, killed at every step: what was settled stays settled, is shown, and is paid for once."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
from fakes import BotProcess, until
from test_fishing import check_all

from bot import JOB_TRIES

from .conftest import PATIENCE, Person, Stage, impatient

NO_SHOWS = impatient(SHOW_FRAMES=0, QUICK_S=0)  # a hook is never too quick
TON = "the-open-network"


def said(stage: Stage, person: Person) -> list[str]:
    """What the bot said to somebody, below pictures, too."""
    return [message.get("text") or message.get("caption", "") for message in stage.telegram.sent(person.chat)]


def told_so_often(stage: Stage, person: Person, times: int) -> bool:
    return len(said(stage, person)) == times


async def fished(stage: Stage, okun: BotProcess, person: Person) -> None:
    """The first cast and hook of a life."""
    for number, command in enumerate(("/cast", "/hook"), 1):
        stage.says(person, command)
        await stage.telegram.until(functools.partial(told_so_often, stage, person, number), PATIENCE)
        await stage.settled(okun)


def count(okun: BotProcess, table: str) -> int:
    return int(okun.rows(f"SELECT count(*) FROM {table}")[0][0])


def nothing(stage: Stage) -> None:
    pass


def hold_sends(kind: str) -> Callable[[Stage], None]:
    def hold(stage: Stage) -> None:
        for method in ("sendMessage", "sendPhoto"):
            stage.telegram.fault(kind, method, times=1)

    return hold


# The way of an update: what holds it there, how to see that it has come so far, how often it may be answered in all.
Reached = Callable[[Stage, BotProcess, Person, int], Any]
STEPS: dict[str, tuple[Callable[[Stage], None], Reached, int]] = {
    "given out": (nothing, lambda stage, okun, anna, before: not stage.telegram.queue, 2),
    "settled": (hold_sends("timeout"), lambda stage, okun, anna, before: changed(okun) != before, 2),
    "being sent": (hold_sends("timeout"), lambda stage, okun, anna, before: len(stage.telegram.faults) == 1, 1),
    "sent, nobody knows": (hold_sends("timeout_after"), lambda stage, okun, anna, before: shown(stage, anna), 2),
    "sent": (nothing, lambda stage, okun, anna, before: shown(stage, anna), 2),
}


def changed(okun: BotProcess) -> int:
    return count(okun, "catches") * 10 + count(okun, "fishing_lines")


def shown(stage: Stage, person: Person) -> bool:
    return len(said(stage, person)) > 2


@pytest.mark.parametrize("command", ["/cast", "/hook"])
@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_after_each_step_loses_nothing_and_pays_once(stage: Stage, step: str, command: str) -> None:
    arrange, reached, most = STEPS[step]
    anna = stage.person()
    okun = await stage.bot(NO_SHOWS).start()
    await fished(stage, okun, anna)
    before = 2
    if command == "/hook":
        stage.says(anna, "/cast")
        await stage.telegram.until(lambda: shown(stage, anna), PATIENCE)
        await stage.settled(okun)
        await okun.kill()
        stage.gemini.prices[TON] *= 1.05
        await okun.start()
        for message_id in [message["message_id"] for message in stage.telegram.sent(anna.chat)][2:]:
            del anna.chat.messages[message_id]  # so that what comes is the third again
    arrange(stage)
    state = changed(okun)
    stage.says(anna, command)
    await until(lambda: reached(stage, okun, anna, state), PATIENCE)
    await okun.kill()
    del stage.telegram.faults[:]
    await okun.start()
    await stage.settled(okun)
    told = said(stage, anna)[before:]
    assert 1 <= len(told) <= most and len({*told}) == 1
    check_all(okun.rows)
    bait = okun.rows("SELECT amount FROM balances WHERE currency = 'bait'")
    if command == "/cast":
        assert (count(okun, "fishing_lines"), count(okun, "catches"), bait) == (1, 1, [(9,)])
    else:
        assert (count(okun, "fishing_lines"), count(okun, "catches"), bait) == (0, 2, [(9,)])
        assert okun.rows("SELECT amount FROM balances WHERE currency = 'dollars'") == [(100,)]
        assert "+10.0 %" in told[0]
    assert stage.parked(okun) == 0


async def test_a_kill_in_the_middle_of_a_show_changes_nothing_and_its_end_is_shown_by_the_next_life(
    stage: Stage,
) -> None:
    anna = stage.person()
    okun = await stage.bot(impatient(FRAME_S=1000, QUICK_S=0, SHOWS_EVERY_S={False: 0, True: 0})).start()
    for messages, (command, end) in enumerate({"/cast": "$5.0000", "/hook": "0.0000 %"}.items(), 1):
        stage.says(anna, command)
        await stage.telegram.until(functools.partial(told_so_often, stage, anna, messages), PATIENCE)
        await stage.settled(okun)
        assert end not in said(stage, anna)[-1]
        tables = [okun.rows(f"SELECT * FROM {table}") for table in ("fishing_lines", "catches", "ledger")]
        await okun.kill()
        await okun.start()
        await until(lambda: not count(okun, "shows"), PATIENCE)
        assert end in said(stage, anna)[-1] and len(said(stage, anna)) == messages
        assert [okun.rows(f"SELECT * FROM {table}") for table in ("fishing_lines", "catches", "ledger")] == tables
    check_all(okun.rows)


async def test_a_stop_in_the_middle_of_a_show_shows_its_end_first(stage: Stage) -> None:
    anna = stage.person()
    okun = await stage.bot(impatient(FRAME_S=0.5, QUICK_S=0, SHOWS_EVERY_S={False: 0, True: 0})).start()
    for command, end in (("/cast", "$5.0000"), ("/hook", "0.0000 %")):
        before = len(said(stage, anna))
        stage.says(anna, command)
        await stage.telegram.until(functools.partial(told_so_often, stage, anna, before + 1), PATIENCE)
        await stage.settled(okun)
        assert await okun.stop() == 0
        assert end in said(stage, anna)[-1]
        await okun.start()
    check_all(okun.rows)


def being_drawn(okun: BotProcess, life: int) -> bool:
    return okun.rows("SELECT state, attempts FROM jobs") == [("running", life)]


async def test_a_kill_while_a_fish_is_drawn_is_no_fault_that_anyone_hears_of(stage: Stage) -> None:
    anna = stage.person()
    okun = await stage.bot(NO_SHOWS).start()
    stage.gemini.delay = 1000
    await fished(stage, okun, anna)
    for life in range(1, JOB_TRIES + 1):
        await until(functools.partial(being_drawn, okun, life), PATIENCE)
        await okun.kill()
        await okun.start()
    await until(lambda: okun.rows("SELECT state FROM jobs") == [("failed",)], PATIENCE)
    stage.says(anna, "/cancel")
    await stage.telegram.until(functools.partial(told_so_often, stage, anna, 3), PATIENCE)
    assert "nothing to stop" in said(stage, anna)[-1]
    check_all(okun.rows)


async def test_a_show_whose_message_is_deleted_ends_in_a_new_one(stage: Stage) -> None:
    anna = stage.person()
    okun = await stage.bot(impatient(FRAME_S=0.5)).start()
    stage.says(anna, "/cast")
    await stage.telegram.until(lambda: said(stage, anna), PATIENCE)
    [frame] = stage.telegram.sent(anna.chat)
    del anna.chat.messages[frame["message_id"]]
    await stage.telegram.until(lambda: "$5.0000" in "".join(said(stage, anna)), PATIENCE)
    await stage.settled(okun)
    assert count(okun, "fishing_lines") == 1
    check_all(okun.rows)


def worked(stage: Stage, okun: BotProcess, sends: int) -> bool:
    """Was so much sent in all, or is there nothing left to do?"""
    sent = sum(call.method.startswith("send") for call in stage.telegram.calls)
    return sent >= sends or not (stage.telegram.queue or stage.left(okun))


async def test_everything_adds_up_after_five_hundred_acts_of_fifty_people_and_twenty_kills(stage: Stage) -> None:
    dice, telegram = random.Random(5), stage.telegram
    people = [stage.person(f"Angler {n}") for n in range(50)]
    group = telegram.group("Pond", [person.user for person in people])
    okun = stage.bot(NO_SHOWS)
    for _ in range(20):
        stage.gemini.prices[TON] = 5.0 * dice.uniform(0.7, 1.6)
        await okun.start()
        before = sum(call.method.startswith("send") for call in telegram.calls)
        for _ in range(25):
            person = dice.choice(people)
            telegram.say(dice.choice([person.chat, group]), person.user, dice.choice(["/cast", "/hook", "/status"]))
        await until(functools.partial(worked, stage, okun, before + dice.randrange(3, 30)), PATIENCE)
        await okun.kill()
        check_all(okun.rows)
    await okun.start()
    await stage.settled(okun)
    check_all(okun.rows)
    assert stage.parked(okun) == 0 and count(okun, "catches") > 30
    assert count(okun, "anglers") > 40


async def test_five_hundred_who_cast_at_once_are_answered_by_one_question_for_prices(stage: Stage) -> None:
    people = [stage.person(f"Angler {n}") for n in range(500)]
    okun = await stage.bot(NO_SHOWS, LOG_LEVEL="WARNING").start()
    for person in people:
        stage.says(person, "/cast")
    await stage.telegram.until(lambda: all(stage.telegram.sent(person.chat) for person in people), PATIENCE)
    await stage.settled(okun)
    assert [len(said(stage, person)) for person in people] == [1] * 500
    assert stage.gemini.price_requests == 1
    assert count(okun, "fishing_lines") == 500
    check_all(okun.rows)
