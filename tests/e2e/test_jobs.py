"""Pictures over HTTP: ``kill -9`` in each state of a job, ten people at three slots, and a model that does not draw.

Whoever paid has the picture or the coins, never both, never neither; what was sent is not sent again, but for a photo
that was under way at the kill.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from fakes import Ask, BotProcess, FakeTelegram, until

from .conftest import PATIENCE, TEXTS, Person, Stage, whole_text

PRICE, COINS = 5, 20
JOB = TEXTS["job"]


def pictures(stage: Stage, person: Person) -> int:
    return sum("photo" in message for message in stage.telegram.sent(person.chat))


def words(stage: Stage, person: Person) -> list[str]:
    return [message["text"] for message in stage.telegram.sent(person.chat) if "text" in message]


def jobs(okun: BotProcess) -> list[tuple[str, int]]:
    return [(row[0], row[1]) for row in okun.rows("SELECT state, attempts FROM jobs ORDER BY id")]


def coins(okun: BotProcess, person: Person) -> int:
    [(amount,)] = okun.rows("SELECT amount FROM balances WHERE user_id = ?", person.user["id"])
    return int(amount)


async def studio(stage: Stage, *people: Person, **settings: Any) -> BotProcess:
    """A bot that draws for coins, and people who have some."""
    okun = await stage.bot(PRICE_IMAGE=PRICE, **settings).start()
    for person in people:
        stage.says(person, "/balance")
        await stage.replied(person)
    with contextlib.closing(sqlite3.connect(okun.database)) as database, database:
        database.executemany(
            """INSERT INTO ledger (user_id, currency, delta, reason, reference, posted_at)
               VALUES (?, 'coins', ?, 'promo', ?, 0)""",
            [(person.user["id"], COINS, f"given {person.user['id']}") for person in people],
        )
    return okun


def hold_model(stage: Stage) -> None:
    """The next picture never comes; later ones do."""
    stage.gemini.rule("pike", [], delay=3600, times=1)


def hold_photo(kind: str) -> Callable[[Stage], None]:
    return lambda stage: stage.telegram.fault(kind, "sendPhoto")


def nothing(stage: Stage) -> None:
    pass


Reached = Callable[[Stage, BotProcess, Person], Any]

# Where a kill finds a job: what holds it there, how to see that it has come so far, how many photos there may be then.
STATES: dict[str, tuple[Callable[[Stage], None], Reached, int]] = {
    "asked for": (nothing, lambda stage, okun, anna: stage.left(okun), 1),
    "queued": (nothing, lambda stage, okun, anna: jobs(okun), 2),
    "the model asked": (hold_model, lambda stage, okun, anna: stage.gemini.requests, 1),
    "shown": (hold_model, lambda stage, okun, anna: okun.rows("SELECT 1 FROM jobs WHERE panel_id > 0"), 1),
    "being sent, not carried out": (hold_photo("timeout"), lambda stage, okun, anna: not stage.telegram.faults, 1),
    "being sent, carried out": (hold_photo("timeout_after"), lambda stage, okun, anna: pictures(stage, anna), 2),
    "sent": (nothing, lambda stage, okun, anna: pictures(stage, anna), 2),
    "done": (nothing, lambda stage, okun, anna: [state for state, _ in jobs(okun)] == ["done"], 1),
}


@pytest.mark.parametrize("state", STATES)
async def test_a_kill_in_each_state_of_a_job_loses_nothing(stage: Stage, state: str) -> None:
    arrange, reached, most = STATES[state]
    anna = stage.person()
    okun = await studio(stage, anna)
    before = len(words(stage, anna))
    arrange(stage)
    stage.says(anna, "/draw a pike")
    await until(lambda: reached(stage, okun, anna), PATIENCE)
    await okun.kill()
    known = okun.rows("SELECT 1 FROM jobs WHERE panel_id > 0") and not stage.left(okun)
    stage.gemini.rules.clear()
    stage.telegram.faults.clear()
    await okun.start()
    await until(lambda: [s for s, _ in jobs(okun)] == ["done"], PATIENCE)
    await until(lambda: okun.rows("SELECT told FROM jobs") == [(1,)], PATIENCE)
    await stage.settled(okun)
    assert 1 <= pictures(stage, anna) <= most
    assert coins(okun, anna) == COINS - PRICE and okun.rows("SELECT used FROM quotas") == [(1,)]
    assert okun.rows("SELECT count(*) FROM pictures") == [(1,)] and stage.parked(okun) == 0
    assert len(words(stage, anna)) <= before + (not known)  # the message about it may have been under way, too


async def test_a_kill_with_a_queue_keeps_its_order(stage: Stage) -> None:
    people = [stage.person(f"P{number}") for number in range(4)]
    okun = await studio(stage, *people, MAX_PARALLEL_IMAGES=1)
    stage.gemini.rule("k0z", [], delay=3600, times=1)
    for number, person in enumerate(people):
        stage.says(person, f"/draw k{number}z")
        await until(lambda number=number: len(jobs(okun)) == number + 1, PATIENCE)  # type: ignore[misc]
    await until(lambda: stage.gemini.requests and not stage.left(okun), PATIENCE)
    assert jobs(okun) == [("running", 1), *[("queued", 0)] * 3]
    await okun.kill()
    await okun.start()
    await until(lambda: [s for s, _ in jobs(okun)] == ["done"] * 4, PATIENCE)
    await until(lambda: all(len(words(stage, person)) == 1 for person in people), PATIENCE)
    assert [pictures(stage, person) for person in people] == [1] * 4
    asked = [whole_text(ask) for ask in stage.gemini.requests]
    assert [next(n for n in range(4) if f"k{n}z" in text) for text in asked] == [0, 0, 1, 2, 3]
    assert [coins(okun, person) for person in people] == [COINS - PRICE] * 4


async def test_what_ended_three_lives_is_given_back(stage: Stage) -> None:
    anna = stage.person()
    okun = await studio(stage, anna)
    stage.gemini.rule("pike", [], delay=3600)
    stage.says(anna, "/draw a pike")
    for life in range(1, 4):
        await until(lambda life=life: len(stage.gemini.requests) == life, PATIENCE)  # type: ignore[misc]
        await until(lambda: okun.rows("SELECT 1 FROM jobs WHERE panel_id > 0"), PATIENCE)
        await okun.kill()
        await okun.start()
    await until(lambda: jobs(okun) == [("refunded", 3)], PATIENCE)
    told = TEXTS["error"]["sorry"] + "\n\n" + JOB["back"].format(price=PRICE)
    await until(lambda: told in words(stage, anna), PATIENCE)
    assert coins(okun, anna) == COINS and len(stage.gemini.requests) == 3 and pictures(stage, anna) == 0
    assert okun.rows("SELECT used FROM quotas") == [(0,)]


async def test_a_kill_between_a_refusal_and_its_words(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    okun = await studio(stage, anna)
    stage.gemini.rule("pike", [], finish="IMAGE_SAFETY", delay=0.5)
    telegram.fault("timeout", "editMessageText", times=9)
    stage.says(anna, "/draw a pike")
    await until(lambda: jobs(okun) == [("refunded", 1)], PATIENCE)
    await okun.kill()
    telegram.faults.clear()
    await okun.start()
    told = TEXTS["draw"]["blocked"] + "\n\n" + JOB["back"].format(price=PRICE)
    await until(lambda: told in words(stage, anna), PATIENCE)
    await until(lambda: okun.rows("SELECT told FROM jobs") == [(1,)], PATIENCE)
    assert coins(okun, anna) == COINS and words(stage, anna).count(told) == 1 and len(stage.gemini.requests) == 1


async def test_a_stop_lets_a_picture_be_finished(stage: Stage) -> None:
    anna = stage.person()
    okun = await studio(stage, anna)
    stage.gemini.rule("pike", picture_of, delay=2.0)
    stage.says(anna, "/draw a pike")
    await until(lambda: stage.gemini.requests, PATIENCE)
    assert await okun.stop() == 0
    assert jobs(okun) == [("done", 1)] and pictures(stage, anna) == 1


def picture_of(ask: Ask) -> list[dict[str, Any]]:
    from fakes import picture

    return [picture(ask)]


async def test_ten_people_draw_at_once_at_three_slots(stage: Stage) -> None:
    people = [stage.person(f"P{number}") for number in range(10)]
    okun = await studio(stage, *people)
    at_once: list[int] = []

    def drawn(ask: Ask) -> list[dict[str, Any]]:
        at_once.append(len([state for state, _ in jobs(okun) if state == "running"]))
        return picture_of(ask)

    stage.gemini.rule("pike", drawn, delay=0.3)
    for number, person in enumerate(people):
        stage.says(person, f"/draw pike {number}")
    await until(lambda: [state for state, _ in jobs(okun)] == ["done"] * 10, PATIENCE)
    await until(lambda: all(len(words(stage, person)) == 1 for person in people), PATIENCE)
    assert [pictures(stage, person) for person in people] == [1] * 10 and max(at_once) == 3
    assert [coins(okun, person) for person in people] == [COINS - PRICE] * 10
    places = [call.params["text"] for call in stage.telegram.called("editMessageText")]
    assert any(text.startswith(JOB["queued"].partition("{")[0]) for text in places)


def two(ask: Ask) -> list[dict[str, Any]]:
    other = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(b"not a picture").decode()}}
    return [{"text": "Two of them:"}, *picture_of(ask), other]


def words_first(stage: Stage) -> None:
    stage.gemini.rule("pike", "It would be a fine pike.", times=1)


# what the model does -> how often it is asked, the text that says what came of it ("": a picture)
MODELS: dict[str, tuple[Callable[[Stage], Any], int, str]] = {
    "two pictures": (lambda stage: stage.gemini.rule("pike", two), 1, ""),
    "words, then a picture": (words_first, 2, ""),
    "words": (lambda stage: stage.gemini.rule("pike", "It would be a fine pike."), 2, TEXTS["llm"]["words"]),
    "a refusal": (lambda stage: stage.gemini.fault("blocked", 9), 1, TEXTS["draw"]["blocked"]),
    "the day's quota": (lambda stage: stage.gemini.fault("429", 9, per_day=True), 1, TEXTS["draw"]["quota"]),
    "faults": (lambda stage: stage.gemini.fault("500", 9), 3, TEXTS["llm"]["server"]),
    "silence": (lambda stage: stage.gemini.rule("pike", [], delay=3600), 1, TEXTS["draw"]["timeout"]),
}


@pytest.mark.parametrize("model", MODELS)
async def test_whatever_the_model_does_there_is_a_picture_or_a_refund(stage: Stage, model: str) -> None:
    arrange, asked, told = MODELS[model]
    anna = stage.person()
    okun = await studio(stage, anna, LLM_TIMEOUT=5)
    arrange(stage)
    stage.says(anna, "/draw a pike")
    await until(lambda: [state for state, _ in jobs(okun)] == ["refunded" if told else "done"], PATIENCE)
    await until(lambda: okun.rows("SELECT told FROM jobs") == [(1,)], PATIENCE)
    assert len(stage.gemini.requests) == asked
    assert pictures(stage, anna) == (0 if told else 1) and coins(okun, anna) == (COINS if told else COINS - PRICE)
    whole = [told + "\n\n" + JOB["back"].format(price=PRICE)] if told else []
    assert words(stage, anna)[1:] == whole


async def test_what_is_called_off_at_work_is_never_sent(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    okun = await studio(stage, anna)
    stage.gemini.rule("pike", picture_of, delay=1.0)
    stage.says(anna, "/draw a pike")
    await until(lambda: okun.rows("SELECT 1 FROM jobs WHERE panel_id > 0"), PATIENCE)
    telegram.press(anna.chat, anna.user, JOB["button"]["cancel"])
    await until(lambda: [state for state, _ in jobs(okun)] == ["cancelled"], PATIENCE)
    stage.says(anna, "/draw a perch")
    await until(lambda: [state for state, _ in jobs(okun)] == ["cancelled", "done"], PATIENCE)
    await asyncio.sleep(1.0)  # as long as the first one would have taken
    assert pictures(stage, anna) == 1 and coins(okun, anna) == COINS - PRICE
    assert isinstance(telegram, FakeTelegram) and JOB["cancelled"] in " ".join(words(stage, anna))
