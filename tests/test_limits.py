"""How much of the bot somebody may use: sliding windows, quotas of a day, and what models may cost."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import sqlite3
from typing import Any

import aiogram.methods
import pytest
from conftest import (
    ANNA,
    BORYS,
    NOON,
    OWNER,
    TEXTS,
    Later,
    Okun,
    Reply,
    Room,
    Script,
    TestClock,
    drawn,
    make_settings,
    settings,
)

import bot


def words(okun: Okun, key: str, seconds: float, lang: str = "en") -> str:
    return okun.t(key, lang, left=TEXTS.span(lang, math.ceil(seconds), into=True))


def said(replies: list[Reply]) -> list[str]:
    return [reply.text for reply in replies]


# -- windows


async def used(okun: Okun, user_id: int, name: str, day: str) -> int:
    row = await okun.app.db.reader.one(
        "SELECT used FROM quotas WHERE user_id = ? AND name = ? AND day = ?", user_id, name, day
    )
    return row["used"] if row else 0


@pytest.fixture
def clock() -> TestClock:
    return TestClock()


@pytest.fixture
def limiter(clock: TestClock) -> bot.Limiter:
    return bot.Limiter(clock.monotonic)


def test_a_window_slides(limiter: bot.Limiter, clock: TestClock) -> None:
    taken = []
    for _ in range(5):
        taken.append(limiter.take("x", 1, 3, 60))
        clock.passed += 10
    assert taken == [0, 0, 0, 30, 20]
    clock.passed = 59.9
    assert limiter.wait("x", 1, 3) == pytest.approx(0.1)
    clock.passed = 60.0
    assert [limiter.take("x", 1, 3, 60), limiter.take("x", 1, 3, 60)] == [0, 10]  # one fell out, one came
    clock.passed = 1000.0
    assert [limiter.take("x", 1, 3, 60) for _ in range(4)] == [0, 0, 0, 60]


def test_windows_are_each_ones_own(limiter: bot.Limiter) -> None:
    for key in (1, 2):
        for kind in ("x", "y"):
            assert [limiter.take(kind, key, 1, 60), limiter.take(kind, key, 1, 60)] == [0, 60]


def test_looking_takes_nothing_and_no_limit_is_none(limiter: bot.Limiter) -> None:
    assert [limiter.wait("x", 1, 1) for _ in range(3)] == [0, 0, 0] and len(limiter) == 0
    assert [limiter.take("x", 1, 0, 60) for _ in range(100)] == [0] * 100 and len(limiter) == 0


def test_a_refusal_is_told_once_until_it_ends(limiter: bot.Limiter, clock: TestClock) -> None:
    assert [limiter.tells("x", 1, 300), limiter.tells("x", 1, 299), limiter.tells("x", 2, 300)] == [True, False, True]
    clock.passed = 299
    assert not limiter.tells("x", 1, 1)
    clock.passed = 301
    assert limiter.tells("x", 1, 0.5)
    clock.passed = 330  # a short one, too, is silent for a minute
    assert not limiter.tells("x", 1, 0.5)
    clock.passed = 362
    assert limiter.tells("x", 1, 80_000)
    clock.passed = 362 + 79_000
    assert not limiter.tells("x", 1, 1000)


def test_what_a_limiter_keeps_is_bounded(limiter: bot.Limiter, clock: TestClock) -> None:
    for user in range(20_000):
        limiter.take("commands", user, 3, 60)
        limiter.tells("commands", user, 60)
    assert len(limiter) <= 2 * limiter.MOST
    clock.passed = 2 * 86_400
    limiter.take("commands", 1, 3, 60)
    assert len(limiter) <= 2


# -- commands and buttons


@settings(commands_per_minute=3)
async def test_commands_beyond_the_limit_are_refused_once_and_stored(okun: Okun, chat: Room, later: Later) -> None:
    for _ in range(3):
        assert len(await chat.say("/help")) == 1
    await later(20)
    assert said(await chat.say("/help")) == [words(okun, "limit.commands", 40)]
    for _ in range(5):
        assert await chat.say("/help") == []
    assert chat.rows("text", "user_id IS NOT NULL") == ["/help"] * 9  # stored nevertheless
    await later(41)
    assert "/cancel — " in (await chat.say("/help"))[0].text
    assert okun.inbox_rows == []


@settings(commands_per_minute=2)
async def test_the_spam_of_one_mutes_nobody_else(okun: Okun, group: Room) -> None:
    for _ in range(10):
        await group.say("/help")
    assert len(group.replies) == 3
    assert "/settings — " in (await group.say("/help", by="Borys"))[0].text
    assert "/settings — " in (await okun.private("Vira").say("/help"))[0].text
    assert said(await group.say("okun, hi")) == ["Heard: Anna: okun, hi"]  # talk is counted apart


@settings(commands_per_minute=2)
async def test_a_command_over_an_album_is_a_command(okun: Okun, chat: Room, later: Later) -> None:
    photos = [drawn(bot.Drawing(name)).data for name in ("pike", "perch")]
    for _ in range(5):
        await chat.send("album", photos, "/help")
        await later(1)
    assert len(chat.replies) == 3 and chat.replies[-1].text == words(okun, "limit.commands", 58)
    assert okun.inbox_rows == [] and okun.model.asks == []


@settings(commands_per_minute=2)
async def test_a_limit_is_a_persons_in_all_chats(okun: Okun, chat: Room, group: Room) -> None:
    await chat.say("/help")
    await group.say("/help")
    assert said(await chat.say("/help")) == [words(okun, "limit.commands", 60)]
    assert await group.say("/help") == []  # told already


@settings(commands_per_minute=1)
async def test_the_words_of_a_refusal_are_in_the_language_of_the_chat(okun: Okun, group: Room) -> None:
    for by, lang in (("Borys", "uk"), ("Vira", "ru")):
        await group.say("/help", by=by)
        [refusal] = await group.say("/help", by=by)
        assert refusal.text == words(okun, "limit.commands", 60, lang) and refusal.reply_to == group.last_id


@settings(commands_per_minute=1, buttons_per_minute=1, replies_per_hour=1)
async def test_owners_are_exempt(okun: Okun) -> None:
    owner = okun.private("Owner")
    for n in range(5):
        [menu] = await owner.say("/settings")
        assert (await owner.press(menu.data[0], message=menu)).note == okun.t("settings.saved", "en")
        assert (await owner.say(f"talk {n}"))[-1].text.endswith(f"talk {n}")


@settings(commands_per_minute=1, replies_per_hour=1)
async def test_cancel_is_never_refused(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/help")
    await chat.say("/help")
    for _ in range(3):
        assert said(await chat.say("/cancel")) == [okun.t("cancel.nothing")]
    model.held = True
    await chat.say("a tale, please")
    assert said(await chat.say("/cancel")) == [okun.t("cancel.stopped")]


@settings(commands_per_minute=12, sends_per_second=30)
async def test_cancelling_without_end_mutes_nobody(okun: Okun, group: Room, later: Later) -> None:
    for _ in range(40):  # Telegram takes 20 messages a minute
        group.put("say", "/cancel")
    await okun.take()
    group.put("say", "/help", by="Borys")
    await okun.take()
    assert "/settings — " in group.replies[-1].text and len(group.replies) == 14
    assert words(okun, "limit.commands", 60) in said(group.replies)


@settings(commands_per_minute=2)
async def test_what_is_no_command_of_ours_counts_nothing(okun: Okun, group: Room) -> None:
    for text in ("/help@other_bot", "/nonsense", "just talk") * 4:
        await group.say(text)
    assert len(await group.say("/help")) == 1 and len(await group.say("/help")) == 1


@settings(buttons_per_minute=3)
async def test_presses_beyond_the_limit_are_answered_and_do_nothing(okun: Okun, chat: Room, later: Later) -> None:
    [menu] = await chat.say("/settings")
    on, off = menu.data[:2]
    for data in (on, off, on):
        assert (await chat.press_data(data, menu)).note == okun.t("settings.saved")
    await later(15)
    assert (await chat.press_data(off, menu)).note == words(okun, "limit.buttons", 45)
    assert (await chat.press_data(off, menu)).note is None  # answered, without a word
    assert okun.rows("SELECT rich FROM chats") == [(1,)]
    await later(46)
    assert (await chat.press_data(off, menu)).note == okun.t("settings.saved")
    assert okun.rows("SELECT rich FROM chats") == [(0,)]


@settings(commands_per_minute=3, buttons_per_minute=60, sends_per_second=30)
async def test_a_button_that_sends_something_is_a_command(okun: Okun, group: Room, chat: Room) -> None:
    await chat.say("/start")
    [menu] = await group.say("/balance")
    buy = next(data for data, text in zip(menu.data, menu.buttons, strict=True) if text == okun.t("balance.button.buy"))
    for _ in range(25):  # more messages than Telegram takes in a minute
        await group.press_data(buy, menu)
    assert said(group.replies)[1:] == [okun.t("private.sent")]
    await group.say("/help", by="Borys")
    assert "/settings — " in said(group.replies)[-1]


@settings(commands_per_minute=1, buttons_per_minute=1)
async def test_what_a_crash_left_is_neither_counted_nor_refused(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    hold = okun.wire.hold("sendMessage")
    await later_put(okun, chat, "/help")
    await okun.crash()
    hold.set()
    okun.wire.holds.clear()
    await okun.open()
    assert "/cancel — " in chat.replies[-1].text
    assert len(await chat.say("/help")) == 1 and chat.replies[-1].text != okun.t("limit.commands")
    assert (await chat.press(menu.data[0], message=menu)).note == okun.t("settings.saved")


@settings(commands_per_minute=2, buttons_per_minute=1)
async def test_what_could_not_be_stored_is_counted_once(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    [menu] = await chat.say("/settings")
    okun.app.limiter = bot.Limiter(okun.clock.monotonic)
    write = okun.app.db.write
    locked = [True, True]

    async def shaky(writes: Any) -> Any:
        if locked:
            locked.pop()
            raise sqlite3.OperationalError("database is locked")
        return await write(writes)

    monkeypatch.setattr(okun.app.db, "write", shaky)
    okun.telegram.press(chat.chat, okun.person("Anna"), menu.buttons[0])
    chat.put("say", "/help")
    chat.put("say", "/balance")
    raws = okun.telegram.next_updates()
    for _ in range(2):  # the poller comes with the same again
        with pytest.raises(sqlite3.OperationalError):
            await okun.inbox.take(raws)
    await okun.feed(*raws)
    assert len(chat.replies) == 3 and okun.rows("SELECT rich FROM chats") == [(1,)]
    assert said(await chat.say("/help")) == [words(okun, "limit.commands", 60)]


@settings(commands_per_minute=2)
async def test_what_comes_with_something_unstorable_is_counted_once(okun: Okun, chat: Room) -> None:
    await chat.say("hi")
    okun.app.limiter = bot.Limiter(okun.clock.monotonic)
    for text in ("/help", "/balance"):
        chat.put("say", text)
    odd = chat.put("say", "a number beyond 64 bits")
    raws = okun.telegram.next_updates()
    assert odd and raws[-1]["message"]["text"].startswith("a number")
    raws[-1]["message"]["date"] = 1 << 70
    okun.may_fail = True
    await okun.feed(*raws)
    assert len(chat.replies) == 3 and okun.t("balance.nothing") in said(chat.replies)


async def later_put(okun: Okun, chat: Room, text: str) -> None:
    okun.app.limiter = bot.Limiter(okun.clock.monotonic)
    chat.put("say", text)
    await okun.take()


# -- replies


@settings(replies_per_hour=2)
async def test_talk_beyond_the_limit_is_stored_and_refused_once(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    for n in range(2):
        await chat.say(f"talk {n}")
    await later(600)
    [refusal] = await chat.say("talk 2")
    assert refusal.text == words(okun, "limit.replies", 3000) and refusal.reply_to == chat.last_id
    assert await chat.say("talk 3") == [] and await chat.say("talk 4") == []
    assert len(model.asks) == 2 and okun.inbox_rows == []
    assert chat.rows("text", "user_id IS NOT NULL") == [f"talk {n}" for n in range(5)]
    assert len(await chat.say("/help")) == 1  # commands are counted apart
    await later(3001)
    assert (await chat.say("talk 5"))[0].text.endswith("talk 5")
    assert "talk 4" in " ".join(model.past) or "talk 4" in model.heard  # what was not answered is remembered


@settings(replies_per_hour=1)
async def test_others_go_on_talking(okun: Okun, group: Room) -> None:
    await group.say("okun, one")
    assert said(await group.say("okun, two")) == [words(okun, "limit.replies", 3600)]
    assert said(await group.say("okun, three", by="Borys")) == ["Heard: Borys: okun, three"]


@settings(replies_per_hour=1)
async def test_a_merged_turn_leaves_out_who_is_beyond_the_limit(okun: Okun, group: Room, model: Script) -> None:
    await group.say("okun, from Anna first")
    model.held = True
    await group.say("okun, from Vira", by="Vira")
    for text, by in (("okun, from Anna again", "Anna"), ("okun, from Borys", "Borys")):
        group.put("say", text, by=by)
        await okun.take()
    anna = group.last_id - 1
    model.held = False
    model.writing[0].end("to Vira")
    await okun.settle()
    assert "from Borys" in model.heard and "from Anna again" not in model.heard
    refusal, answer = group.replies[-2:]
    assert refusal.text == words(okun, "limit.replies", 3600) and refusal.reply_to == anna
    assert "from Borys" in answer.text and okun.inbox_rows == []


@settings(chat_replies_per_hour=2)
async def test_a_group_has_its_own_limit(okun: Okun, group: Room, chat: Room, later: Later) -> None:
    for by in ("Anna", "Borys"):
        assert len(await group.say("okun, hi", by=by)) == 1
    await later(60)
    assert said(await group.say("okun, hi", by="Vira")) == [words(okun, "limit.chat", 3540, "ru")]
    assert await group.say("okun, hi", by="Olena") == []
    for n in range(4):
        assert (await chat.say(f"talk {n}"))[0].text.endswith(f"talk {n}")  # no group
    assert len(await okun.group("Lake").say("okun, hi")) == 1
    assert len(await group.say("okun, hi", by="Owner")) == 1


@settings(chat_replies_per_hour=1, group_policy="always", unprompted_per_hour=10, quiet_hours=None)
async def test_who_did_not_ask_is_not_refused(okun: Okun, group: Room) -> None:
    assert len(await group.say("hello all")) == 1
    assert await group.say("hello again", by="Borys") == []


@settings(chat_replies_per_hour=1, replies_per_hour=2)
async def test_what_the_group_refuses_costs_nobody_a_reply(okun: Okun, group: Room, chat: Room) -> None:
    await group.say("okun, hi")
    for _ in range(3):
        await group.say("okun, hi")
    assert (await chat.say("one more"))[0].text.endswith("one more")


@settings(total_replies_per_hour=2)
async def test_all_chats_together_have_a_limit(okun: Okun, group: Room, chat: Room, later: Later) -> None:
    await chat.say("one")
    await group.say("okun, two")
    assert said(await chat.say("three")) == [words(okun, "limit.total", 3600)]
    assert said(await group.say("okun, four")) == [words(okun, "limit.total", 3600)]  # each chat is told once
    assert await group.say("okun, five") == [] and await chat.say("six") == []
    await later(3601)
    assert len(await chat.say("seven")) == 1


@settings(replies_per_hour=3, chat_replies_per_hour=2)
async def test_a_second_try_is_not_a_second_reply(
    okun: Okun, group: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    think = bot.think
    broken = [True, True]

    async def shaky(*args: Any) -> Any:
        if broken:
            broken.pop()
            raise bot.NotConnected(method=aiogram.methods.GetMe(), message="connection refused")
        return await think(*args)

    monkeypatch.setattr(bot, "think", shaky)
    await group.say("okun, hi")
    await later(60)
    assert said(group.replies) == ["Heard: Anna: okun, hi"] and okun.failures == {}
    assert len(await group.say("okun, again")) == 1
    assert said(await group.say("okun, more"))[0].startswith("I've said all I may")


@settings(replies_per_hour=1)
async def test_talk_that_a_crash_left_is_answered_and_not_counted(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("from before")
    await okun.restart()
    assert said(chat.replies) == ["Heard: from before"]
    assert (await chat.say("after"))[0].text.endswith("after")
    assert said(await chat.say("more")) == [words(okun, "limit.replies", 3600)]


@settings(replies_per_hour=2)
async def test_reminders_are_replies_too(okun: Okun, group: Room) -> None:
    for n in range(5):
        await group.say(f"okun, remind me tomorrow at 9:1{n} to call mom")
    assert len(okun.rows("SELECT * FROM reminders")) == 2
    assert said(group.replies)[2:] == [words(okun, "limit.replies", 3600)]


@settings(replies_per_hour=1)
async def test_an_answer_to_a_form_is_no_reply(okun: Okun, chat: Room) -> None:
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.new"))
    for text in ("Captain Cat", "A cat who sails."):
        await chat.say(text)
    assert chat.replies[-1].text.startswith("What's their story?")


# -- quotas of a day


async def quota(app: bot.App, most: int, user_id: int = ANNA, name: str = "images") -> bool:
    now = app.clock.now()
    async with app.db.tx() as tx:
        return await bot.take_quota(tx, user_id, name, bot.day_of(now, app.settings), most)


async def test_a_quota_outlives_a_restart_and_ends_with_the_day(okun: Okun, later: Later) -> None:
    assert [await quota(okun.app, 3) for _ in range(2)] == [True, True]
    await okun.restart()
    assert [await quota(okun.app, 3) for _ in range(3)] == [True, False, False]
    assert await used(okun, ANNA, "images", "2026-05-13") == 3
    assert await quota(okun.app, 3, BORYS) and await quota(okun.app, 3, name="speeches")
    await later(11.9 * 3600)
    assert not await quota(okun.app, 3)
    await later(0.2 * 3600)  # midnight in Kyiv
    assert await quota(okun.app, 3)


async def test_of_the_last_of_a_quota_two_at_once_take_one(okun: Okun) -> None:
    taken = await asyncio.gather(*(quota(okun.app, 3) for _ in range(10)))
    assert sum(taken) == 3


async def test_no_limit_is_counted_all_the_same(okun: Okun) -> None:
    assert all([await quota(okun.app, 0) for _ in range(5)])
    assert await used(okun, ANNA, "images", "2026-05-13") == 5
    assert await used(okun, ANNA, "images", "2026-05-14") == 0


async def test_a_quota_that_is_used_up_says_until_when_and_owners_have_none(okun: Okun) -> None:
    async def use(user_id: int) -> None:
        async with okun.app.db.tx() as tx:
            await bot.use_quota(tx, okun.app, user_id, "images", 1)

    await use(ANNA)
    with pytest.raises(bot.BotError) as error:
        await use(ANNA)
    assert (error.value.key, error.value.fields) == ("limit.day.images", {"most": 1, "left_s": 12 * 3600})
    for _ in range(3):
        await use(OWNER)


async def test_what_was_begun_and_failed_gives_the_quota_back(okun: Okun) -> None:
    with pytest.raises(RuntimeError):
        async with okun.app.db.tx() as tx:
            await bot.use_quota(tx, okun.app, ANNA, "images", 1)
            raise RuntimeError
    assert await quota(okun.app, 1)


async def test_old_quotas_are_deleted_and_those_of_today_stay(okun: Okun, later: Later) -> None:
    await quota(okun.app, 3)
    await later(3 * 86_400)
    await quota(okun.app, 3)
    await bot.quotas_clean(okun.app)
    assert okun.rows("SELECT day, used FROM quotas") == [("2026-05-16", 1)]


# -- prices

DAY = "2026-11-21"


def micro(model: str, usage: bot.Usage, day: str = DAY) -> int | None:
    price = bot.price_of(model, day)
    return bot.cost_of(price, usage) if price else None


COSTS = [
    ("gemini-3.8-flash", bot.Usage(1_000_000), 750_000),
    ("gemini-3.8-flash", bot.Usage(0, 1_000_000), 3_750_000),
    ("gemini-3.8-flash", bot.Usage(0, 600_000, 400_000), 3_750_000),  # thoughts are output
    ("gemini-3.8-flash", bot.Usage(1_000_000, cached=400_000), 600_000 * 0.75 + 400_000 * 0.075),
    ("gemini-2.5-flash-lite", bot.Usage(1_000_000, sound=200_000), 800_000 * 0.10 + 200_000 * 0.30),
    ("gemini-2.5-flash-lite", bot.Usage(1000, 0, 0, 300, 500), 200 * 0.10 + 300 * 0.01 + 500 * 0.30),
    ("gemini-2.5-flash-lite", bot.Usage(1000, 0, 0, 800, 500), 800 * 0.01 + 200 * 0.30),  # some of the sound is cached
    ("gemini-2.5-flash-lite", bot.Usage(1000, 0, 0, 5000, 5000), 1000 * 0.01),  # rubbish is no credit
    ("gemini-3.8-flash", bot.Usage(1_000_000, sound=1_000_000), 750_000),  # sound costs as the rest
    ("gemini-3.8-flash", bot.Usage(), 0),
    ("gemini-3.1-flash-image", bot.Usage(1000, 1200, 100, picture=1120), 1000 * 0.5 + 180 * 3 + 1120 * 60),
    ("gemini-3.1-flash-image", bot.Usage(0, 100, picture=5000), 100 * 60),  # rubbish again
    ("gemini-3.8-flash", bot.Usage(0, 1_000_000, picture=1_000_000), 3_750_000),
]


@pytest.mark.parametrize(("model", "usage", "cost"), COSTS)
def test_what_a_call_costs(model: str, usage: bot.Usage, cost: float) -> None:
    assert micro(model, usage) == round(cost)


@pytest.mark.parametrize(("day", "cost"), [("2026-12-31", 750_000), ("2027-01-01", 1_500_000), ("2026-09-01", 750_000)])
def test_the_price_changes_with_the_year(day: str, cost: int) -> None:
    assert micro("gemini-3.8-flash", bot.Usage(1_000_000), day) == cost


NAMES = [
    ("gemini-3.8-flash", "gemini-3.8-flash"), ("models/gemini-3.8-flash", "gemini-3.8-flash"),
    ("google/gemini-2.5-flash-lite", "gemini-2.5-flash-lite"), ("gemini-2.5-flash-001", "gemini-2.5-flash"),
    ("gemini-2.5-flash-lite-preview-09-2025", "gemini-2.5-flash-lite"), ("gemini-3-flash-latest", "gemini-3-flash"),
    ("gemini-3-flash-preview", "gemini-3-flash"), ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
    ("gemini-2.5-flash-preview-tts", "gemini-2.5-flash-preview-tts"), ("gemini-2.5-pro-preview-tts", None),
    ("gemini-3.8-flash-image", None), ("gemini-3.8-flashy", None), ("gemini-9", None), ("", None), ("llama", None),
    ("gpt-4o-mini-audio-preview", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "price"), NAMES)
def test_a_model_is_known_by_its_name(name: str, price: str | None) -> None:
    found = bot.price_of(name, DAY)
    assert (found.model if found else None) == price


USUAL = make_settings()


@pytest.mark.parametrize("name", sorted({*USUAL.gemini_model, *USUAL.gemini_light_model, *USUAL.gemini_image_model}))
def test_the_models_that_are_set_by_default_have_a_price(name: str) -> None:
    assert bot.price_of(name, DAY) and bot.price_of(name, "2027-06-01")


@pytest.mark.parametrize(
    ("url", "local"),
    [("http://localhost:11434/v1", True), ("http://127.0.0.1/v1", True), ("http://192.168.1.5:8000", True),
     ("http://[::1]:1/v1", True), ("http://ollama:11434/v1", True), ("http://box.local/v1", True),
     ("https://api.openai.com/v1", False), ("https://8.8.8.8/v1", False), ("https://openrouter.ai/api/v1", False)],
)  # fmt: skip
def test_what_answers_on_the_machine_itself_is_free(url: str, local: bool) -> None:
    assert bot.is_local(url) == local


def test_openai_counts_thoughts_once() -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 30},
             "prompt_tokens_details": {"cached_tokens": 40}}  # fmt: skip
    used = bot.openai_usage(usage)
    assert used and (used.input, used.output, used.thoughts, used.cached) == (100, 20, 30, 40)
    for details, output in ((None, 5), ({"reasoning_tokens": 9}, 0)):
        used = bot.openai_usage({"completion_tokens": 5, "completion_tokens_details": details})
        assert used and used.output == output


RUBBISH = ["12", -5, 10**30, 1e300, float("nan"), float("inf"), 12.5, None, [], {}, True]


@pytest.mark.parametrize("odd", RUBBISH)
def test_rubbish_for_a_number_of_tokens_is_no_fault_and_no_credit(odd: Any) -> None:
    meta = dict.fromkeys(("promptTokenCount", "candidatesTokenCount", "cachedContentTokenCount"), odd)
    usage = {"prompt_tokens": odd, "completion_tokens": odd, "prompt_tokens_details": {"cached_tokens": odd},
             "completion_tokens_details": {"reasoning_tokens": odd}}  # fmt: skip
    sound = [{"modality": "AUDIO", "tokenCount": odd}]
    for used in (bot.gemini_usage({**meta, "promptTokensDetails": sound}), bot.openai_usage(usage)):
        assert used and all(type(count) is int and 0 <= count <= 10**9 for count in dataclasses.astuple(used))
        assert (micro(BEST, used) or 0) >= 0


def test_gemini_says_how_much_of_it_was_sound() -> None:
    meta = {"promptTokenCount": 900, "candidatesTokenCount": 20, "thoughtsTokenCount": 7, "cachedContentTokenCount": 5,
            "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 100},
                                    {"modality": "AUDIO", "tokenCount": 800}]}  # fmt: skip
    assert bot.gemini_usage(meta) == bot.Usage(900, 20, 7, 5, 800)


# -- the budget of a day


class Provider:
    """Models that answer with their name and use a million tokens each time: 0.75 $ of the best."""

    def __init__(self, name: str, *models: str) -> None:
        self.name, self.asked = name, list[str]()
        self.models: dict[str, tuple[str, ...]] = {"chat": models, "light": models}
        self.usage = bot.Usage(1_000_000)

    async def stream(self, model: str, ask: bot.Ask, on_text: Any, on_usage: Any) -> bot.Answer:
        self.asked.append(model)
        await asyncio.sleep(0)
        on_usage(self.usage)
        return bot.Answer(f"I am {model}", model=model)


def real_models(okun: Okun, *providers: Provider) -> None:
    """Models behind the bot's own Llm, with its budget."""
    app = okun.app
    llm = bot.Llm(app.settings, app.http, app.clock, app.dice)
    llm.on_call, llm.may_pay = (lambda call: bot.store_llm_call(app, call)), (lambda: bot.budget_left(app))
    llm.providers = list(providers)  # type: ignore[arg-type]
    app.llm = llm


BEST = "gemini-3.8-flash"


@settings(daily_budget_usd=1.0)
async def test_a_used_up_budget_ends_paid_talk_for_the_day(okun: Okun, chat: Room, later: Later) -> None:
    owner, paid = okun.private("Owner"), Provider("gemini", BEST)
    await owner.say("/lang en")
    real_models(okun, paid)
    assert said(await chat.say("one")) == [f"I am {BEST}"]
    assert said(await chat.say("two")) == [f"I am {BEST}"]  # begun with 0.25 $ left, and finished
    assert said(owner.replies)[1:] == [okun.t("owner.budget", most="1.00")]
    babble, why = await chat.say("three")
    assert paid.asked == [BEST, BEST] and babble.text
    assert why.text == words(okun, "limit.budget", 12 * 3600)
    assert len(await chat.say("four")) == 1  # said once a day
    await later(5 * 3600)
    assert len(await chat.say("five")) == 1
    assert bot.spent_today(okun.app) == 1_500_000
    await okun.restart()
    real_models(okun, paid)
    assert bot.spent_today(okun.app) == 1_500_000
    await chat.say("six")
    assert paid.asked == [BEST, BEST] and len(said(owner.replies)) == 2
    await later(7.1 * 3600)  # the next day
    assert said(await chat.say("seven")) == [f"I am {BEST}"]
    await chat.say("eight")
    assert said(owner.replies)[1:] == [okun.t("owner.budget", most="1.00")] * 2
    assert okun.rows("SELECT day, calls, micro_usd FROM costs ORDER BY day") == [
        ("2026-05-13", 2, 1_500_000), ("2026-05-14", 2, 1_500_000)
    ]  # fmt: skip


@settings(daily_budget_usd=0.5, openai_api_url="http://127.0.0.1:1/v1", openai_model=("llama",))
async def test_free_models_are_asked_when_the_budget_is_used_up(okun: Okun, chat: Room) -> None:
    paid, own = Provider("gemini", BEST), Provider("openai", "llama")
    real_models(okun, paid, own)
    assert [said(await chat.say(text)) for text in ("one", "two", "three")] == [
        [f"I am {BEST}"], ["I am llama"], ["I am llama"]
    ]  # fmt: skip
    assert okun.rows("SELECT model, calls, unpriced, micro_usd FROM costs ORDER BY model") == [
        (BEST, 1, 0, 750_000), ("llama", 2, 0, 0)
    ]  # fmt: skip


@settings(daily_budget_usd=0.5, openai_api_url="http://127.0.0.1:1/v1", openai_model=("llama",))
async def test_where_the_free_model_fails_the_chats_own_words_have_to_do(okun: Okun, chat: Room) -> None:
    own = Provider("openai", "llama")
    real_models(okun, Provider("gemini", BEST), own)
    await chat.say("one")

    async def fail(*args: Any) -> bot.Answer:
        raise bot.LlmFault("request")

    own.stream = fail  # type: ignore[method-assign, assignment]
    [babbled, why] = said(await chat.say("two"))
    assert babbled and babbled != okun.t("llm.request") and why.startswith(okun.t("limit.budget", left="")[:40])
    assert said(await chat.say("three")) != [okun.t("llm.request")]


@settings(daily_budget_usd=0.5)
async def test_a_model_that_is_called_free_is_free(okun: Okun, chat: Room) -> None:
    paid = Provider("gemini", BEST, "some/model:free")
    real_models(okun, paid)
    assert [said(await chat.say(text)) for text in ("one", "two")] == [[f"I am {BEST}"], ["I am some/model:free"]]


@settings(daily_budget_usd=0.5)
async def test_a_model_without_a_known_price_is_counted_as_such(okun: Okun, chat: Room) -> None:
    strange = Provider("gemini", "gemini-9-ultra")
    real_models(okun, strange)
    for text in ("one", "two"):
        assert said(await chat.say(text)) == ["I am gemini-9-ultra"]
    assert okun.rows("SELECT calls, failed, unpriced, micro_usd FROM costs") == [(2, 0, 2, 0)]


@settings(daily_budget_usd=0.5)
async def test_what_a_budget_cannot_count_is_said_at_the_start(okun: Okun, caplog: pytest.LogCaptureFixture) -> None:
    await okun.restart()
    assert "DAILY_BUDGET_USD" not in caplog.text
    await okun.restart(gemini_model=(BEST, "gemini-9-ultra"))
    assert "DAILY_BUDGET_USD does not count them: gemini-9-ultra" in caplog.text
    caplog.clear()
    await okun.restart(daily_budget_usd=0.0)
    assert "DAILY_BUDGET_USD" not in caplog.text


@settings(daily_budget_usd=0.5)
async def test_batches_and_summaries_stop_with_the_budget(okun: Okun, chat: Room) -> None:
    real_models(okun, Provider("gemini", BEST))
    assert okun.app.llm.affords("light") and okun.app.llm.affords("chat")
    await chat.say("one")
    assert not okun.app.llm.affords("light") and not okun.app.llm.affords("chat")
    with pytest.raises(bot.LlmError) as error:
        await okun.app.llm.chat(bot.Ask("", (bot.Said("user", "hi"),)), capability="light")
    assert error.value.kind == "budget"
    asked = len(okun.app.llm.providers[0].asked)  # type: ignore[union-attr]
    for n in range(30):
        await chat.say(f"a message {n}")
    assert said(await chat.say("/summary 30")) == [okun.t("llm.budget")]
    assert len(okun.app.llm.providers[0].asked) == asked  # type: ignore[union-attr]


@settings(daily_budget_usd=0.5)
async def test_calls_at_once_when_it_ends_are_all_counted_and_told_once(okun: Okun) -> None:
    real_models(okun, Provider("gemini", BEST))
    rooms = [okun.private(f"Person{n}") for n in range(5)]
    owner = okun.private("Owner")
    await owner.say("/lang en")
    for room in rooms:
        room.put("say", "hi")
    await okun.take()
    assert bot.spent_today(okun.app) == 5 * 750_000
    assert said(owner.replies)[1:] == [okun.t("owner.budget", most="0.50")]


async def test_without_a_budget_nothing_ends(okun: Okun, chat: Room) -> None:
    paid = Provider("gemini", BEST)
    paid.usage = bot.Usage(10**9)
    real_models(okun, paid)
    for n in range(4):
        assert said(await chat.say(str(n))) == [f"I am {BEST}"]
    assert okun.app.llm.affords("light")


@settings(daily_budget_usd=5.0)
async def test_costs_by_day_model_and_capability(okun: Okun, later: Later) -> None:
    real_models(okun, Provider("gemini", BEST))
    ask = bot.Ask("", (bot.Said("user", "hi"),), 5, 6)
    for capability in ("chat", "light", "chat"):
        await okun.app.llm.chat(ask, capability=capability)
    await later(86_400)
    await okun.app.llm.chat(ask)
    await okun.settle()
    assert okun.rows("SELECT day, capability, calls, input_tokens, micro_usd FROM costs ORDER BY day, capability") == [
        ("2026-05-13", "chat", 2, 2_000_000, 1_500_000), ("2026-05-13", "light", 1, 1_000_000, 750_000),
        ("2026-05-14", "chat", 1, 1_000_000, 750_000)
    ]  # fmt: skip
    assert bot.spent_today(okun.app) == 750_000
    await later(401 * 86_400)
    await bot.usage_clean(okun.app)
    assert okun.rows("SELECT count(*) FROM costs") == [(0,)]


@pytest.mark.failing
async def test_what_a_call_cost_counts_though_the_answer_never_came(okun: Okun, chat: Room, later: Later) -> None:
    real_models(okun, Provider("gemini", BEST))
    okun.telegram.fault("400", "sendMessage", times=9, text="Bad Request: of an odd kind")
    await chat.say("hi")
    await later(120)
    assert okun.inbox_rows == [(3, 1)]
    [(spent,)] = okun.rows("SELECT sum(micro_usd) FROM costs")
    assert spent == bot.spent_today(okun.app) > 0


async def test_what_a_call_cost_counts_though_the_answer_cannot_be_stored(okun: Okun, chat: Room) -> None:
    real_models(okun, Provider("gemini", BEST))
    hold = okun.wire.hold("sendMessage")
    await chat.say("hi")
    async with okun.app.db.tx() as tx:  # the chat goes while the answer is on its way
        for statement in ("DELETE FROM messages", "DELETE FROM members", "DELETE FROM chats"):
            await tx.run(statement)
    hold.set()
    await okun.settle()
    assert said(chat.replies) == [f"I am {BEST}"] and okun.inbox_rows == []
    assert okun.rows("SELECT calls, micro_usd FROM costs") == [(1, bot.spent_today(okun.app))]
    assert okun.rows("SELECT count(*) FROM llm_calls") == [(1,)]


async def test_a_failed_call_costs_nothing_and_is_counted(okun: Okun) -> None:
    bot.store_llm_call(okun.app, bot.LlmCall(int(NOON), "gemini", BEST, "chat", "server", 5, bot.Usage(), 1, 1, 0))
    bot.store_llm_call(okun.app, bot.LlmCall(int(NOON), "gemini", "odd", "chat", "server", 5, bot.Usage(), 1, 1, None))
    await okun.settle()
    assert okun.rows("SELECT model, calls, failed, unpriced, micro_usd FROM costs ORDER BY model") == [
        (BEST, 1, 1, 0, 0), ("odd", 1, 1, 0, 0)
    ]  # fmt: skip
