"""Forgetting, retention and export: whatever is asked to go goes from every table and from the bytes of the file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, TEXTS, Later, Okun, Reply, Room, Script, settings
from fakes import Json

import bot

PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
DAY = 86400
# Whatever Xenia says has one of the first marks in it, her name too; what the others say has the last.
HERS, THEIRS = ("qzx", "жщц"), "bkw"
XENIA = 50
ME, HERE, ALL = "/forget me", "Only here", "Everywhere"


# -- where words are


def tables(db: sqlite3.Connection) -> list[str]:
    """Every table but those in which FTS5 keeps the index: they are overwritten by the next cleanup."""
    rows = db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'recall%'")
    return [row[0] for row in rows]


def says(value: object, mark: str) -> bool:
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return mark in text.casefold() or json.dumps(mark)[1:-1] in text


def places(okun: Okun, *marks: str) -> set[str]:
    """Where one of these stands: as table.column, and "index"."""
    found = set()
    with contextlib.closing(sqlite3.connect(okun.path)) as db:
        for table in tables(db):
            cursor = db.execute(f"SELECT * FROM {table}")
            names = [column[0] for column in cursor.description]
            for row in cursor:
                found |= {f"{table}.{name}" for name, value in zip(names, row, strict=True)
                          if any(says(value, mark) for mark in marks)}  # fmt: skip
        db.execute("CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, recall, instance)")
        terms = db.execute("SELECT DISTINCT term FROM temp.vocabulary")
        found |= {"index" for (term,) in terms if any(mark in term for mark in marks)}
    return found


def rows_of(okun: Okun, user_id: int) -> set[str]:
    """The tables with a row of this person. How many calls there were is kept, without words."""
    with contextlib.closing(sqlite3.connect(okun.path)) as db:
        having = [t for t in tables(db) if any(c[1] == "user_id" for c in db.execute(f"PRAGMA table_info({t})"))]
        kept = {t for t in having if db.execute(f"SELECT 1 FROM {t} WHERE user_id = ?", (user_id,)).fetchone()}
    return kept - {"llm_calls"}


def count(okun: Okun, table: str, where: str = "1") -> int:
    return int(okun.rows(f"SELECT count(*) FROM {table} WHERE {where}")[0][0])


# -- somebody's life with the bot


def xenia(okun: Okun) -> Room:
    okun.telegram.user(XENIA, "Qzxenia", "en", "qzxenia")
    return okun.private("Qzxenia")


async def summarise(room: Room, summary: str, **noticed: str) -> None:
    """A rolling summary, and facts by label, by a light model that says this now and no more."""
    model, others = room.okun.model, room.okun.model.says
    found = [{"person": person, "fact": fact} for person, fact in noticed.items()]
    model.says = lambda ask: json.dumps({"summary": summary, "facts": found})
    await bot.update_summary(room.okun.app, room.id, 0, least=1)
    model.says = others


def rebuilt_as(model: Script, summary: str) -> None:
    """Let the light model say this from now on; the other goes on echoing."""
    others = model.says
    model.says = lambda ask: json.dumps({"summary": summary, "facts": []}) if ask.schema else others(ask)


async def speak(room: Room, mark: str, by: str) -> None:
    """All that people leave with the bot: talk and its echo, an edit, files, facts, reminders."""
    room.put("say", f"okun, the {mark}boat is red", by=by)
    room.put("say", f"{mark}first версія", by=by)
    edited = f"{mark}second жщцверсія" if mark in HERS else f"{mark}second"
    room.okun.telegram.edit(room.chat, room.last_id, edited)
    room.put("photo", b"1", f"{mark}photo", by=by)
    room.put("document", b"text", f"{mark}.txt", by=by)
    room.put("poll", f"{mark}tea?", [f"{mark}yes", "no"], by=by)
    room.put("say", f"/remember I own a {mark}boat", by=by)
    room.put("say", f"/reminders tomorrow at 9 paint the {mark}boat", by=by)
    await room.okun.take()


async def derive(okun: Okun, room: Room, mark: str, user_id: int) -> None:
    """What the bot makes of words: the index, a summary with facts, a vector, an analysis, an update given up."""
    await bot.index_messages(okun.app, 1000)
    await summarise(room, f"{mark}summary", P1=f"likes {mark}pike")
    text = f"okun, the {mark}boat is red"
    vector = (bot.text_hash(text), "embedder", b"\0\0\0\0", 0)
    analysis = (bot.text_hash(mark), room.id, json.dumps(f"{mark}notes"), 0)
    parked = {"message_id": 900, "chat": room.chat.card, "from": okun.telegram.users[user_id], "text": f"{mark}parked"}
    await okun.app.db.write({bot.PUT_VECTOR: [vector], bot.PUT_ANALYSIS: [analysis]})
    await okun.feed({"update_id": 5000 + user_id, "message": parked})  # no date: it cannot be read


async def lives(okun: Okun) -> tuple[Room, Room]:
    """Xenia's private chat, and a group of hers and Borys's, after both said all there is to say."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await chat.say("/start")
    await speak(chat, "qzx", "Qzxenia")
    await derive(okun, chat, "qzx", XENIA)
    await speak(group, "qzx", "Qzxenia")
    await speak(group, THEIRS, "Borys")
    await derive(okun, group, "qzx", XENIA)
    await okun.later(61)  # what a word is found in is known for a minute
    return chat, group


async def forget(room: Room, button: str, by: str | None = None) -> str:
    """/forget me, and the button; what it says then."""
    await room.say(ME, by=by)
    return (await room.press(button, by=by)).message.text


lived = settings(context_messages=1)


# -- /forget me


@lived
async def test_the_lives_of_these_tests_leave_words_everywhere(okun: Okun) -> None:
    await lives(okun)
    places_with_words = {"users.name", "users.username", "chats.title", "messages.text", "messages.media",
                         "passages.words", "index", "facts.text", "reminders.text", "summaries.text",
                         "analysis_cache.result", "inbox.raw"}  # fmt: skip
    assert places(okun, *HERS) == places_with_words
    assert rows_of(okun, XENIA) == {"users", "members", "messages", "member_hours", "facts", "reminders"}
    assert count(okun, "embeddings_cache") == 1 and count(okun, "messages", "user_id IS NULL AND text LIKE '%qzx%'") > 3


@lived
async def test_a_forgotten_person_is_in_no_table_and_after_the_cleanup_in_no_byte(okun: Okun) -> None:
    chat, _ = await lives(okun)
    assert await forget(chat, ALL) == okun.t("forget.done_all")
    assert places(okun, *HERS) == set()
    assert rows_of(okun, XENIA) == set()
    assert count(okun, "embeddings_cache") == 0
    await bot.clean(okun.app)
    assert not any(mark.encode() in read_file(okun) for mark in HERS)
    assert THEIRS.encode() in read_file(okun)


@lived
async def test_what_others_said_stays(okun: Okun) -> None:
    chat, group = await lives(okun)
    theirs = "user_id = 12 ORDER BY id"
    before = [okun.rows(f"SELECT * FROM {table} WHERE {theirs}") for table in ("messages", "facts", "reminders")]
    await forget(chat, ALL)
    after = [okun.rows(f"SELECT * FROM {table} WHERE {theirs}") for table in ("messages", "facts", "reminders")]
    assert after == before and all(before)
    assert places(okun, THEIRS) >= {"messages.text", "passages.words", "index", "facts.text", "reminders.text"}
    [found, *_] = await bot.recall(okun.app, group.id, "bkwboat")
    assert THEIRS in found.text


@lived
async def test_forgetting_here_leaves_the_other_chats(okun: Okun) -> None:
    chat, group = await lives(okun)
    kept = okun.rows("SELECT * FROM messages WHERE chat_id = ?", group.id)
    assert await forget(chat, HERE) == okun.t("forget.done_here")
    assert okun.rows("SELECT 1 FROM messages WHERE chat_id = ?", chat.id) == []
    assert okun.rows("SELECT * FROM messages WHERE chat_id = ?", group.id) == kept
    assert {row[0] for row in okun.rows("SELECT chat_id FROM facts WHERE user_id = ?", XENIA)} == {group.id}
    assert {row[0] for row in okun.rows("SELECT chat_id FROM reminders WHERE user_id = ?", XENIA)} == {group.id}
    assert [row[0] for row in okun.rows("SELECT chat_id FROM summaries")] == [group.id]


@lived
async def test_forgetting_in_a_group_leaves_the_private_chat(okun: Okun) -> None:
    chat, group = await lives(okun)
    kept = okun.rows("SELECT * FROM messages WHERE chat_id = ?", chat.id)
    assert await bot.recall(okun.app, group.id, "qzxboat") != []
    assert await forget(group, HERE, by="Qzxenia") == okun.t("forget.done_here")
    assert okun.rows("SELECT * FROM messages WHERE chat_id = ?", chat.id) == kept
    assert okun.rows("SELECT 1 FROM messages WHERE chat_id = ? AND text LIKE '%qzx%'", group.id) == []
    assert okun.rows("SELECT chat_id FROM facts WHERE user_id = ?", XENIA) == [(chat.id,)] * 2
    assert await bot.recall(okun.app, group.id, "qzxboat") == []
    await group.press_data(bot.ForgetPress(owner=XENIA, scope="all").pack(), group.replies[-1], by="Qzxenia")  # forged
    assert okun.rows("SELECT * FROM messages WHERE chat_id = ?", chat.id) == kept


async def test_what_the_bot_said_before_somebody_came_stays(okun: Okun, group: Room) -> None:
    await group.say("okun, one", by="Borys")
    await group.say("okun, two")
    await forget(group, HERE)
    assert group.rows() == ["okun, one", "Heard: Borys: okun, one"]


@lived
async def test_the_summary_is_made_anew_without_the_forgotten(okun: Okun) -> None:
    chat, group = await lives(okun)
    for n in range(5):
        group.put("say", f"bream {n}", by="Borys")
    await okun.take()
    okun.model.asks.clear()
    rebuilt_as(okun.model, "of bream")
    await forget(chat, ALL)
    [ask] = okun.model.asks
    assert ask.schema and "bream 3" in ask.said[-1].text and not any(mark in ask.said[-1].text for mark in HERS)
    assert okun.rows("SELECT chat_id, text FROM summaries") == [(group.id, "of bream")]


@lived
async def test_the_prompt_has_nothing_of_the_forgotten(okun: Okun, model: Script) -> None:
    chat, group = await lives(okun)
    await group.say("okun, whose boat?", by="Borys")
    assert "qzx" in model.asks[-1].system
    await forget(chat, ALL)
    await group.say("okun, whose boat?", by="Borys")
    told = "\n".join([model.asks[-1].system, *(said.text for said in model.asks[-1].said)])
    assert not any(mark in told.casefold() for mark in HERS)


@lived
async def test_who_comes_back_is_a_new_person(okun: Okun, later: Later) -> None:
    chat, _ = await lives(okun)
    await chat.say("/lang ru")
    await forget(chat, okun.t("forget.button.all", "ru"))
    await later(60)
    [reply] = await chat.say("/memory")
    assert reply.text == okun.t("memory.empty", "en")
    [reply] = await chat.say("qzxhello")
    assert (reply.text, okun.model.past) == ("Heard: qzxhello", [])
    [row] = okun.rows("SELECT name, lang, started_at FROM users WHERE user_id = 50")
    assert row == ("Qzxenia", None, int(okun.clock.now()))


async def test_forgetting_asks_first_and_no_means_no(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        room = okun.private(name)
        labels = [okun.t(f"forget.button.{scope}", lang) for scope in ("here", "all", "no")]
        back = okun.t("menu.back", lang)
        [reply] = await room.say(ME)
        assert (reply.text, reply.buttons) == (okun.t("forget.ask", lang), [*labels, back])
        assert (await room.press(labels[2])).message.text == okun.t("forget.kept", lang)
        [reply] = await group.say(ME, by=name)
        assert (reply.text, reply.buttons) == (okun.t("forget.ask_group", lang), [labels[0], labels[2], back])
    assert count(okun, "users") == 3 and count(okun, "messages") == 12


async def test_forgetting_speaks_the_persons_language_to_the_end(okun: Okun) -> None:
    for lang, name in PEOPLE.items():
        room = okun.private(name)
        for scope in ("here", "all"):
            await room.say(ME)
            pressed = await room.press(okun.t(f"forget.button.{scope}", lang))
            assert (pressed.message.text, pressed.message.buttons) == (okun.t(f"forget.done_{scope}", lang), [])
        edits = [call["text"] for call in okun.called("editMessageText", room)]
        assert edits[0] == okun.t("forget.doing", lang)
    assert count(okun, "messages") == 0


async def test_forget_me_is_understood_in_any_language(chat: Room) -> None:
    for words in ("me", "ME", "everything", "мене", "меня", "все", "всё", "про мене", "обо мне"):
        [reply] = await chat.say(f"/forget {words}")
        assert ALL in reply.buttons


async def test_a_strangers_press_forgets_nobody(okun: Okun, group: Room) -> None:
    for name in ("Anna", "Borys", "Vira", "Olena"):
        await group.say(f"I am {name}", by=name)
    await group.say(ME, by="Olena")
    kept = group.rows()
    for lang, name in PEOPLE.items():
        assert (await group.press(okun.t("forget.button.here", "uk"), by=name)).note == okun.t("button.not_yours", lang)
    assert group.rows() == kept


@settings(context_messages=1)
async def test_an_administrator_forgets_what_the_group_itself_said(okun: Okun, group: Room, model: Script) -> None:
    await group.say("qzx as the group", by="chat")
    for n in range(3):
        await group.say(f"bream {n}", by="Olena")
    await summarise(group, "qzx and bream")
    rebuilt_as(model, "of bream")
    await group.say(ME, by="chat")
    here = okun.t("forget.button.here", "uk")
    assert (await group.press(here, by="Anna")).note == okun.t("button.not_yours")
    await group.press(here, by="Olena")
    assert group.rows() == ["bream 0", "bream 1", "bream 2"]
    assert okun.rows("SELECT text FROM summaries") == [("of bream",)]


async def test_pressing_again_does_no_harm(okun: Okun, chat: Room) -> None:
    await chat.say("one")
    [reply] = await chat.say(ME)
    for _ in range(2):
        pressed = await chat.press_data(reply.data[1], reply)
        assert pressed.message.text == okun.t("forget.done_all")
    [reply] = await chat.say("two")
    assert reply.text == "Heard: two"


async def test_somebody_unheard_of_can_be_forgotten(okun: Okun, group: Room) -> None:
    await group.say(ME, by="Borys")
    await group.press(okun.t("forget.button.here", "uk"), by="Borys")
    [reply] = await group.say(ME, by="Borys")
    assert reply.text == okun.t("forget.ask_group", "uk")


async def test_all_topics_of_a_group_are_forgotten(okun: Okun) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    await fish.say("okun, qzxfish")
    await cats.say("okun, qzxcats")
    await forget(fish, HERE)
    assert places(okun, "qzx") == set()


async def test_a_large_life_goes_in_slices(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "FORGET_SLICE", 50)
    group = okun.group()
    for n in range(180):
        group.put("say", f"qzx{n}", by="Anna" if n % 3 else "Borys")
    await okun.take()
    await bot.index_messages(okun.app, 1000)
    await chat.say("hi")
    taken: list[int] = []
    slice_of = bot.forget_slice

    async def counted(tx: bot.Tx, *args: Any) -> int:
        taken.append(await slice_of(tx, *args))
        return taken[-1]

    monkeypatch.setattr(bot, "forget_slice", counted)
    await forget(chat, ALL)
    assert max(taken) == bot.FORGET_SLICE and sum(taken) == 122
    assert count(okun, "messages") == count(okun, "passages") == 60


# -- a parked update


async def test_an_update_given_up_goes_wherever_it_names_the_person(okun: Okun, group: Room) -> None:
    """Telegram promises no order of fields, and the person may be the one who is replied to."""
    hers: Json = {"is_bot": False, "first_name": "Qzxenia", "id": XENIA}
    theirs = okun.person("Borys")
    await xenia(okun).say("/start")
    for n, message in enumerate([
        {"from": hers, "text": "qzxone"},
        {"from": {"id": XENIA, "is_bot": False, "first_name": "Qzxenia"}, "text": "qzxtwo"},
        {"from": theirs, "text": "bkwyes", "reply_to_message": {"from": hers, "text": "qzxthree"}},
        {"from": theirs, "text": "bkwalone"},
    ]):  # fmt: skip
        await okun.feed({"update_id": 5000 + n, "message": {"message_id": n, "chat": group.chat.card, **message}})
    assert count(okun, "inbox") == 4
    await forget(okun.private("Qzxenia"), ALL)
    assert places(okun, *HERS) == set()
    assert [json.loads(raw)["message"]["text"] for (raw,) in okun.rows("SELECT raw FROM inbox")] == ["bkwalone"]


async def test_an_id_that_only_begins_like_theirs_is_another_person(okun: Okun, chat: Room, group: Room) -> None:
    okun.telegram.user(ANNA * 10, "Ten")
    for user in (okun.person("Ten"), {"id": 411, "is_bot": False, "first_name": "X"}):
        await okun.feed({"update_id": user["id"], "message": {"chat": group.chat.card, "from": user, "text": "x"}})
    await chat.say("hi")
    await forget(chat, ALL)
    assert count(okun, "inbox") == 2


# -- a kill in the middle


def hang(patch: pytest.MonkeyPatch, step: str, after: int) -> None:
    """Let a step of forgetting never end, as where a kill comes; so many go through before."""
    done, work = iter(range(after)), getattr(bot, step)

    async def hanging(*args: Any) -> Any:
        if next(done, None) is None:
            await asyncio.Event().wait()
        return await work(*args)

    patch.setattr(bot, step, hanging)


async def killed_while_forgetting(room: Room, button: str, step: str, after: int, patch: pytest.MonkeyPatch) -> None:
    """Press the button, die at this step, start again: Telegram's update is still in the inbox."""
    okun = room.okun
    await room.say(ME)
    with patch.context() as hung:
        hung.setattr(bot, "FORGET_SLICE", 3)
        hang(hung, step, after)
        okun.telegram.press(room.chat, okun.person(room.by), button)
        await okun.take()
        assert rows_of(okun, okun.person(room.by)["id"])  # it has not come to the end
        await okun.crash()
    await okun.open()


STEPS = [("forget_own_slice", 1), ("forget_slice", 2), ("forget_derived", 1), ("forget_inbox", 0)]


@lived
@pytest.mark.parametrize(("step", "after"), STEPS)
async def test_forgetting_goes_on_where_a_kill_interrupted_it(
    okun: Okun, monkeypatch: pytest.MonkeyPatch, step: str, after: int
) -> None:
    chat, _ = await lives(okun)
    await killed_while_forgetting(chat, ALL, step, after, monkeypatch)
    assert places(okun, *HERS) == set() and rows_of(okun, XENIA) == set()
    assert chat.replies[-1].text == okun.t("forget.done_all")
    assert "bkw" in "".join(text for (text,) in okun.rows("SELECT text FROM messages"))


@lived
async def test_a_kill_after_the_last_message_does_not_save_the_summary(
    okun: Okun, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await group.say("bkwboat", by="Borys")
    await summarise(group, "qzxsummary")
    assert "summaries.text" in places(okun, "qzx")
    await killed_while_forgetting(chat, ALL, "forget_derived", 0, monkeypatch)
    assert "summaries.text" not in places(okun, "qzx")


# -- what is at work meanwhile


async def soon(condition: Callable[[], Any]) -> None:
    """Go on when this is so, which `settle` cannot tell while something else waits for it to settle."""
    for _ in range(200_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("still not so")


@settings(context_messages=1)
async def test_a_reply_that_is_being_written_is_dropped(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await chat.say(ME)
    model.held = True
    group.put("say", "okun, what did she say?", by="Borys")
    await okun.take()
    model.writing[0].show("She said qzx")
    await chat.press(ALL)
    assert model.writing[0].ended.cancelled() and group.replies == []
    assert places(okun, *HERS) == set()


@settings(context_messages=1)
async def test_a_rolling_summary_that_is_being_made_is_dropped(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    for n in range(3):
        await group.say(f"qzxboat {n}", by="Qzxenia")
    await chat.say(ME)
    model.held = True
    making = asyncio.create_task(bot.update_summary(okun.app, group.id, 0, least=1))
    await okun.settle()
    await chat.press(ALL)
    model.writing[0].end(json.dumps({"summary": "qzxsummary", "facts": [{"person": "P1", "fact": "qzxfact"}]}))
    await making
    await okun.settle()
    assert places(okun, *HERS) == set() and rows_of(okun, XENIA) == set()


@settings(context_messages=1)
async def test_the_summary_is_made_anew_though_one_is_being_made(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    for n in range(3):
        await group.say(f"bream {n}", by="Borys")
        await group.say(f"qzxboat {n}", by="Qzxenia")
    await summarise(group, "qzxsummary")
    for n in range(3, 6):
        await group.say(f"bream {n}", by="Borys")
    await chat.say(ME)
    model.held = True
    making = asyncio.create_task(bot.update_summary(okun.app, group.id, 0, least=1))
    await okun.settle()
    model.held = False
    rebuilt_as(model, "of bream")
    await chat.press(ALL)
    model.writing[0].end(json.dumps({"summary": "qzxsummary", "facts": []}))
    await making
    await okun.settle()
    assert okun.rows("SELECT text FROM summaries") == [("of bream",)]


@settings(context_messages=1)
async def test_a_rolling_summary_begun_while_forgetting_is_dropped(
    okun: Okun, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    for n in range(3):
        await group.say(f"qzxboat {n}", by="Qzxenia")
    await chat.say(ME)
    model.held = True
    slice_of, making = bot.forget_slice, list[asyncio.Task[Any]]()

    async def while_forgetting(tx: bot.Tx, *args: Any) -> int:
        if not making:  # a tenth reply came just now
            making.append(okun.app.spawn(bot.update_summary(okun.app, group.id, 0, least=1), "summary"))
            await soon(lambda: model.writing)
        return await slice_of(tx, *args)

    monkeypatch.setattr(bot, "forget_slice", while_forgetting)
    await chat.press(ALL)
    model.writing[0].end(json.dumps({"summary": "qzxsummary", "facts": []}))
    await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_catch_up_that_is_being_written_is_not_kept(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await chat.say(ME)
    model.held = True
    group.put("say", "/summary 10", by="Borys")
    await okun.take()
    await chat.press(ALL)
    if not model.writing[0].ended.done():
        model.writing[0].end("She has a qzxboat.")
    await okun.settle()
    assert places(okun, *HERS) == set()


@settings(context_tokens=1000)
async def test_notes_for_a_catch_up_that_is_being_written_are_not_kept(okun: Okun, model: Script) -> None:
    """Of notes that are too long in all, notes are taken again: those begin after the forgetting."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    for n in range(8):
        group.put("say", f"qzxboat {n} " + "long " * 150, by="Qzxenia")
    await okun.take()
    await chat.say(ME)
    model.held = True
    group.put("say", "/summary 10", by="Borys")
    await okun.take()
    await chat.press(ALL)
    for _ in range(3):
        for writing in model.writing:
            if not writing.ended.done():
                writing.end("She has a qzxboat. " + "long " * 200)
        await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_message_that_waits_for_its_turn_is_not_answered_any_more(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await chat.say(ME)
    model.held = True
    group.put("say", "okun, bkw?", by="Borys")
    await okun.take()
    group.put("say", "okun, qzxboat?", by="Qzxenia")
    await okun.take()
    model.held = False
    await chat.press(ALL)
    await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_message_left_unanswered_by_a_kill_is_forgotten_too(
    okun: Okun, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await chat.say("/start")
    model.held = True
    group.put("say", "okun, qzxboat?", by="Qzxenia")
    await okun.take()
    model.held = False
    await killed_while_forgetting(chat, ALL, "forget_slice", 0, monkeypatch)
    assert places(okun, *HERS) == set()


async def test_a_reply_on_its_way_to_telegram_is_not_kept(okun: Okun) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await chat.say(ME)
    sending = okun.wire.hold("sendMessage")
    group.put("say", "okun, qzxboat?", by="Qzxenia")
    await okun.take()
    assert okun.wire.waiting["sendMessage"]
    await chat.press(ALL)
    sending.set()
    await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_reply_that_telegram_was_not_there_for_is_not_kept(okun: Okun, later: Later) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await chat.say(ME)
    sending = okun.wire.hold("sendMessage")
    group.put("say", "okun, qzxboat?", by="Qzxenia")
    await okun.take()
    okun.wire.down = True
    sending.set()
    await later(1)
    okun.wire.down = False
    await chat.press(ALL)
    await later(60)
    assert places(okun, *HERS) == set()


async def test_a_long_reply_that_is_half_sent_is_kept_nowhere(okun: Okun, model: Script) -> None:
    """How far it got is noted between its parts."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await chat.say(ME)
    model.always("She has a qzxboat. " * 400)
    sending = okun.wire.hold("sendMessage", after=1)
    group.put("say", "okun, tell me all", by="Borys")
    await okun.take()
    assert okun.wire.waiting["sendMessage"] and "inbox.reply" in places(okun, "qzx")
    await chat.press(ALL)
    assert places(okun, *HERS) == set()
    sending.set()
    await okun.settle()
    assert places(okun, *HERS) == set()


@settings(gemini_api_key="")
async def test_a_reply_that_is_sent_and_not_yet_stored_is_not_kept(okun: Okun) -> None:
    """After the first one there is a word about the missing key."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("oarlock qzxsails qzxfar", by="Qzxenia")
    await chat.say(ME)
    sending = okun.wire.hold("sendMessage", after=1)
    okun.dice.load(0.1)  # it begins with the word that was asked about
    group.put("say", "okun, oarlock", by="Borys")
    await okun.take()
    assert okun.wire.waiting["sendMessage"] and "qzx" in group.replies[-1].text
    await chat.press(ALL)
    sending.set()
    await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_post_of_its_own_that_is_being_written_is_not_kept(okun: Okun, model: Script) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await chat.say(ME)
    model.held = True
    posting = asyncio.create_task(bot.break_silence(okun.app, group.id))
    await okun.settle()
    await chat.press(ALL)
    if not model.writing[0].ended.done():
        model.writing[0].end("How is the qzxboat?")
    await asyncio.wait([posting])
    await okun.settle()
    assert places(okun, *HERS) == set()


async def test_a_reminder_on_its_way_to_telegram_is_not_kept(okun: Okun, later: Later) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("/reminders tomorrow at 9 qzxboat", by="Qzxenia")
    await chat.say(ME)
    await later(DAY)
    sending = okun.wire.hold("sendMessage")
    saying = asyncio.create_task(bot.say_due(okun.app))
    await okun.settle()
    assert okun.wire.waiting["sendMessage"]
    await chat.press(ALL)
    sending.set()
    await saying
    assert places(okun, *HERS) == set()


async def test_a_question_that_is_being_put_together_has_nothing_of_the_forgotten(okun: Okun, model: Script) -> None:
    """What was said is read before the file is fetched, which may take long."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await chat.say(ME)
    model.says = lambda ask: f"Before: {ask.said[0].text}"
    fetching = okun.wire.hold("getFile")
    group.put("photo", b"1", "okun, look", by="Borys")
    await okun.take()
    assert okun.wire.waiting["getFile"]
    await chat.press(ALL)
    fetching.set()
    await okun.settle()
    assert places(okun, *HERS) == set()
    assert not any("qzx" in reply.text for reply in group.replies)


async def test_facts_read_while_forgetting_are_not_told_again(
    okun: Okun, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("/remember I own a qzxboat", by="Qzxenia")
    await chat.say(ME)
    read, go_on = bot.facts_of, asyncio.Event()

    async def slow(*args: Any) -> list[bot.Fact]:
        found = await read(*args)
        await go_on.wait()
        return found

    with monkeypatch.context() as slowed:
        slowed.setattr(bot, "facts_of", slow)
        reading = asyncio.create_task(bot.known_facts(okun.app, group.id, [XENIA]))
        await okun.settle()
    await chat.press(ALL)
    go_on.set()
    await reading
    await group.say("okun, I am back", by="Qzxenia")
    assert "qzxboat" not in model.asks[-1].system


async def test_a_message_that_comes_while_its_writer_is_forgotten_is_not_lost(
    okun: Okun, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = xenia(okun)
    await chat.say(ME)
    mark, coming = bot.mark_unclean, list[asyncio.Task[Any]]()

    async def meanwhile(tx: bot.Tx) -> None:
        await mark(tx)
        if not okun.rows("SELECT 1 FROM facts") and not coming and not await tx.one("SELECT 1 FROM users"):
            chat.put("say", "hello again")
            coming.append(asyncio.create_task(okun.inbox.take(okun.telegram.next_updates())))
            await soon(lambda: okun.app.db._waiting)

    monkeypatch.setattr(bot, "mark_unclean", meanwhile)
    await chat.press(ALL)
    await okun.settle()
    assert coming and chat.replies[-1].text == "Heard: hello again"


# -- what hangs on the numbers of rows, which SQLite gives out again


async def test_after_forgetting_a_reset_hides_nothing_new(chat: Room, model: Script) -> None:
    for n in range(3):
        await chat.say(f"n{n}")
    await chat.say("/reset")
    await forget(chat, HERE)
    await chat.say("one")
    await chat.say("two")
    assert model.past == ["user: one", "model: Heard: one"]


@settings(retention_days=1)
async def test_after_retention_a_reset_hides_nothing_new(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    for n in range(3):
        await chat.say(f"n{n}")
    await chat.say("/reset")
    await later(3 * DAY)
    await bot.clean(okun.app)
    await chat.say("one")
    await chat.say("two")
    assert model.past == ["user: one", "model: Heard: one"]


@settings(retention_days=1, context_messages=1)
async def test_after_retention_the_summary_goes_on(okun: Okun, group: Room, model: Script, later: Later) -> None:
    rebuilt_as(model, "of pike")
    for text in ("old", "new"):
        for n in range(45):
            group.put("say", f"{text} {n}")
        await okun.take()
        await bot.update_summary(okun.app, group.id, 0)
        assert f"{text} 43" in model.asks[-1].said[-1].text
        await later(3 * DAY)
        await bot.clean(okun.app)


# -- vectors


class Embedder(Script):
    """A script whose vectors are the lengths of the texts."""

    async def embed(self, texts: Any, *, question: bool = False) -> list[list[float]]:
        return [[float(len(text)), 1.0] for text in texts]


@pytest.fixture
def embedder(okun: Okun) -> Embedder:
    okun.model = okun.app.llm = made = Embedder(okun.app)
    return made


@settings(gemini_embedding_model=("embedder",), context_messages=1)
async def test_the_vectors_of_a_forgotten_persons_words_and_questions_go(
    okun: Okun, embedder: Embedder, later: Later
) -> None:
    chat = xenia(okun)
    await chat.say("the boat is red")
    await chat.say("the pike is long")
    await bot.index_messages(okun.app)
    await later(61)
    await chat.say("okun, what of the boat?")
    assert count(okun, "embeddings_cache") > 0
    await forget(chat, ALL)
    assert count(okun, "embeddings_cache") == 0


@settings(gemini_embedding_model=("embedder",), context_messages=1)
async def test_the_vector_of_what_a_message_said_before_an_edit_goes(okun: Okun, embedder: Embedder) -> None:
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("the boat is red", by="Qzxenia")
    said = group.last_id
    await group.say("and so on", by="Borys")
    await bot.index_messages(okun.app)
    await bot.recall(okun.app, group.id, "what of the boat?")
    await group.edit(said, "never mind")
    before = {row[0] for row in okun.rows("SELECT text_hash FROM embeddings_cache")}
    await forget(chat, ALL)
    after = {row[0] for row in okun.rows("SELECT text_hash FROM embeddings_cache")}
    assert bot.text_hash("the boat is red") in before - after


# -- the bytes of the file


def invented(n: int) -> list[str]:
    """Words nobody ever said, all alike in length and unlike in letters."""
    dice = random.Random(n)
    return ["".join(dice.choices("abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрст", k=14)) for _ in range(n)]


def read_file(okun: Okun) -> bytes:
    """All that stands in the database's files."""
    return b"".join(path.read_bytes() for path in okun.path.parent.glob("okun.db*"))


def left_in(okun: Okun, words: list[str]) -> list[str]:
    """Those of the words that are in the bytes; the index leaves out what a word has in common with the one before."""
    data = read_file(okun)
    return [word for word in words if word[4:].encode() in data]


async def tell_tales(okun: Okun, words: list[str], by: tuple[str, ...], room: Room) -> None:
    """Say the words, short and long messages (some of more than a page of the file) in turn, the speakers too."""
    queue, n = list(words), 0
    while queue:
        size = 250 if n % 40 == 7 else 1 + n % 4
        room.put("say", " ".join(queue[:size]), by=by[n % len(by)])
        del queue[:size]
        n += 1
    await okun.take()
    while await bot.index_messages(okun.app, 60):  # in several segments of the index
        pass


async def test_forgotten_words_are_in_no_byte_after_the_cleanup(
    okun: Okun, chat: Room, group: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MERGE_A_LITTLE", 1)  # what comes along with each change must not do it all
    hers, theirs = invented(900), [word[::-1] for word in invented(200)]
    both = [word for pair in zip(hers[:200], theirs, strict=True) for word in pair]
    for n in range(0, 400, 2):
        group.put("say", both[n])
        group.put("say", both[n + 1], by="Borys")
    await okun.take()
    await tell_tales(okun, hers[200:], ("Anna",), group)
    assert left_in(okun, hers) == hers
    await chat.say(ME)
    await chat.press(ALL)
    assert places(okun, *(word.casefold() for word in hers[:5])) == set()
    await bot.clean(okun.app)
    assert left_in(okun, hers) == []
    assert left_in(okun, theirs) == theirs


async def test_a_fact_deleted_by_its_button_is_in_no_byte_after_the_cleanup(okun: Okun, chat: Room) -> None:
    words = invented(3)
    async with okun.app.db.tx() as tx:  # as noticed: /remember itself is a message that stays
        await tx.run("INSERT INTO users (user_id, name) VALUES (11, 'Anna')")
        await tx.run("INSERT INTO chats (chat_id, kind, title) VALUES (11, 'private', 'Anna')")
        for word in words:
            await bot.put_fact(tx, okun.app, chat.id, ANNA, f"has {word}", told=False)
    # the page shows them, and is stored as what the bot said
    who = bot.Who(chat.id, 0, ANNA, "en", private=True)
    for _ in words:
        shown = await bot.panel_for(okun.app, who, "memory", ANNA)
        _, data = shown.rows[0][0]
        assert isinstance(data, bot.DoPress)
        await bot.on_do_press(okun.app, who, bot.Press(1, ""), data)
    assert left_in(okun, words) == words
    await bot.clean(okun.app)
    assert left_in(okun, words) == []


@settings(retention_days=1)
async def test_words_past_their_days_are_in_no_byte_after_the_cleanup(okun: Okun, group: Room, later: Later) -> None:
    old, new = invented(600), [word[::-1] for word in invented(100)]
    await tell_tales(okun, old, ("Anna", "Borys"), group)
    await later(2 * DAY)
    await tell_tales(okun, new, ("Anna", "Borys"), group)
    await bot.clean(okun.app)
    assert (left_in(okun, old), left_in(okun, new)) == ([], new)


async def test_a_cleanup_that_a_reader_held_up_is_done_by_the_next(okun: Okun, chat: Room) -> None:
    words = invented(20)
    await chat.say(" ".join(words))
    await chat.say(ME)
    await okun.app.db._writer.execute("PRAGMA busy_timeout = 0")  # who waits here waits in vain
    with contextlib.closing(sqlite3.connect(okun.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM messages").fetchone()
        await chat.press(ALL)
        await bot.clean(okun.app)
    await bot.clean(okun.app)
    assert left_in(okun, words) == []


async def test_a_cleanup_without_anything_forgotten_leaves_the_index_alone(okun: Okun, group: Room) -> None:
    await bot.clean(okun.app)
    await tell_tales(okun, invented(50), ("Anna",), group)
    before = okun.rows("SELECT id, block FROM recall_data")
    await bot.clean(okun.app)
    assert okun.rows("SELECT id, block FROM recall_data") == before


# -- retention


async def old_and_new(okun: Okun, room: Room, later: Later, old: int) -> None:
    for n in range(old):
        room.put("say", f"qzx{n}")
    await okun.take()
    await later(91 * DAY)
    await room.say("bkw")
    await bot.index_messages(okun.app, 1000)
    await bot.clean(okun.app)


async def test_retention_deletes_what_is_older_in_several_slices(
    okun: Okun, group: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "FORGET_SLICE", 40)
    await old_and_new(okun, group, later, 100)
    assert group.rows() == ["bkw"]
    assert places(okun, "qzx") == set() and places(okun, THEIRS) == {"messages.text", "passages.words", "index"}


@settings(retention_days=0)
async def test_without_retention_all_is_kept(okun: Okun, group: Room, later: Later) -> None:
    await old_and_new(okun, group, later, 20)
    assert len(group.rows()) == 21


async def test_retention_goes_by_the_day_and_takes_the_bots_words_too(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("one")
    await later(10)
    await chat.say("two")
    await later(90 * DAY - 5)
    await bot.clean(okun.app)
    assert chat.rows() == ["two", "Heard: two"]


@lived
async def test_retention_keeps_people_facts_and_reminders_of_later(okun: Okun, later: Later) -> None:
    await lives(okun)
    await later(91 * DAY)
    await bot.clean(okun.app)
    assert count(okun, "messages") == count(okun, "passages") == 0
    assert count(okun, "users") == 2 and count(okun, "facts") == 5


async def export(room: Room, words: str = "/export", by: str | None = None) -> list[Reply]:
    """Ask for it. The file is read in a thread that `settle` does not know of."""
    before = {reply.id for reply in room.replies}
    room.put("say", words, by=by)
    await room.okun.take()
    await soon(lambda: not room.okun.inbox.busy)
    return [reply for reply in room.replies if reply.id not in before]


def documents(okun: Okun, room: Room) -> list[Json]:
    """The files that were sent to a chat, read."""
    cards = [raw["document"] for raw in okun.telegram.sent(room.chat) if "document" in raw]
    return [json.loads(okun.telegram.files[card["file_id"]].data) for card in cards]


@lived
async def test_an_export_holds_all_that_is_of_the_person_and_nothing_else(okun: Okun) -> None:
    chat, group = await lives(okun)
    await export(chat)
    [document] = documents(okun, chat)
    assert THEIRS not in json.dumps(document)
    own = okun.rows("SELECT text FROM messages WHERE user_id = 50 OR (chat_id = 50 AND user_id IS NULL) ORDER BY id")
    assert [(message["text"],) for message in document["messages"]] == own[: len(document["messages"])]
    assert len(document["messages"]) >= len(own) - 2  # the command came before, what it did after
    assert {message["chat_id"] for message in document["messages"]} == {chat.id, group.id}
    assert {message["by"] for message in document["messages"] if message["chat_id"] == group.id} == {"me"}
    assert {message["by"] for message in document["messages"]} == {"me", "Okun"}
    assert sorted(fact["text"] for fact in document["facts"]) == ["I own a qzxboat"] * 2 + ["likes qzxpike"] * 2
    assert [reminder["text"] for reminder in document["reminders"]] == ["paint the qzxboat"] * 2
    assert document["person"]["name"] == "Qzxenia" and document["summaries"][0]["text"] == "qzxsummary"
    by_text = {(message["chat_id"], message["text"]): message for message in document["messages"]}
    assert by_text[chat.id, "qzxphoto"]["media"][0]["kind"] == "photo"
    assert by_text[chat.id, "qzxsecond жщцверсія"]["edited_at"] == int(NOON)
    assert {message["title"] for message in document["messages"]} == {"Qzxenia", "Pond"}


async def test_an_export_is_delivered_with_words_in_each_language(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        private = okun.private(name)
        [reply] = await export(group, by=name)
        assert reply.text == okun.t("private.sent", lang)
        assert private.replies[-1].raw["caption"] == okun.t("export.caption", lang, number=1, count=1)
        assert [message["text"] for message in documents(okun, private)[0]["messages"]] == ["/export"]


async def test_a_button_leads_whoever_never_started_the_bot_to_the_export(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        [reply] = await export(group, by=name)
        assert (reply.text, reply.buttons) == (okun.t("private.start", lang), [okun.t("private.open", lang)])
        [[button]] = reply.raw["reply_markup"]["inline_keyboard"]
        assert button["url"] == f"https://t.me/{okun.telegram.me['username']}?start=export"
        chat = okun.private(name)
        await export(chat, "/start export")
        assert len(documents(okun, chat)) == 1 and chat.replies[0].raw["caption"]


async def test_an_anonymous_administrator_is_told_to_ask_in_private(okun: Okun) -> None:
    for lang in PEOPLE:
        group = okun.group()
        await bot.set_chat(okun.app, group.id, lang=lang)
        await group.say("hi", by="chat")
        await bot.set_chat(okun.app, group.id, lang=lang)
        [reply] = await export(group, by="chat")
        assert reply.text == okun.t("export.anonymous", lang)
    assert okun.called("sendDocument") == []


async def test_a_large_export_comes_in_several_files(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "MAX_EXPORT_BYTES", 2000)
    monkeypatch.setattr(bot, "EXPORT_SLICE", 7)
    for n in range(40):
        chat.put("say", f"/nonsense {n}")
    await okun.take()
    await export(chat)
    found = documents(okun, chat)
    numbers = [m["text"].split()[1] for part in found for m in part["messages"] if m["text"].startswith("/nonsense")]
    assert len(found) > 3 and numbers == [str(n) for n in range(40)]
    assert all(part["person"]["user_id"] == ANNA for part in found)
    captions = [raw["caption"] for raw in okun.telegram.sent(chat.chat) if "document" in raw]
    assert captions == [okun.t("export.caption", number=n, count=len(found)) for n in range(1, len(found) + 1)]
    sizes = [len(okun.telegram.files[call.answer["result"]["document"]["file_id"]].data)
             for call in okun.telegram.called("sendDocument")]  # fmt: skip
    assert max(sizes) < 2000 + 1500  # the head, and the line that went over


async def test_whatever_table_knows_a_person_in_a_chat_the_chat_is_one_of_theirs(okun: Okun, group: Room) -> None:
    """Somebody may have pressed buttons there and said nothing."""
    await group.say("hi", by="Anna")
    await okun.private("Borys").say("hi")
    with contextlib.closing(sqlite3.connect(okun.path)) as database:
        database.execute("PRAGMA ignore_check_constraints = ON")
        for table in tables(database):
            columns = {name: kind for _, name, kind, *_ in database.execute(f"PRAGMA table_info({table})")}
            # what is said makes a member; a call of a model holds no words
            if not {"chat_id", "user_id"} <= columns.keys() or table in ("messages", "member_hours", "llm_calls"):
                continue
            values = {name: 7 if kind in ("INTEGER", "REAL") else "x" for name, kind in columns.items()}
            values |= {"chat_id": group.id, "user_id": BORYS}
            marks = ", ".join("?" * len(values))
            database.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values()))
            database.commit()
            assert set(await bot.chats_of(okun.app.db.reader, BORYS)) == {BORYS, group.id}, table
            database.execute(f"DELETE FROM {table} WHERE user_id = ? AND chat_id = ?", (BORYS, group.id))
            database.commit()


async def test_a_form_filled_in_by_buttons_alone_is_forgotten_everywhere(okun: Okun, group: Room) -> None:
    await group.say("hi", by="Anna")
    borys = okun.private("Borys")
    await borys.say("hi")
    await bot.put_form(okun.app, bot.Who(group.id, 0, BORYS, "en", private=False), bot.Form("draw", {"style": "oil"}))
    await bot.forget_person(okun.app, BORYS, await bot.chats_of(okun.app.db.reader, BORYS), everywhere=True)
    assert okun.app.forms == {}


async def test_what_is_no_message_is_in_one_file_of_an_export_and_counts(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MAX_EXPORT_BYTES", 6000)
    colours = ("red", "blue", "green", "yellow", "white", "black", "brown", "orange", "violet", "grey")
    facts = [f"{colour} {'Ґ' * 140}" for colour in colours]
    for fact in facts:
        await chat.say(f"/remember {fact}")
    for n in range(10):
        chat.put("say", f"/nonsense {n}")
    await okun.take()
    await export(chat)
    found = documents(okun, chat)
    assert len(found) > 1 and all(part["person"]["user_id"] == ANNA for part in found)
    assert [fact["text"] for part in found for fact in part.get("facts", ())] == facts
    sizes = [len(okun.telegram.files[call.answer["result"]["document"]["file_id"]].data)
             for call in okun.telegram.called("sendDocument")]  # fmt: skip
    assert max(sizes) < 6000 + 1500


async def test_an_export_of_nobody_known_is_a_document_all_the_same(okun: Okun, chat: Room) -> None:
    await chat.say("hi")
    await forget(chat, ALL)
    await export(chat)
    [document] = documents(okun, chat)
    assert [message["text"] for message in document["messages"]] == ["/export"]
    assert (document["facts"], document["reminders"], document["summaries"]) == ([], [], [])


async def test_an_export_leaves_no_file_behind(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    folders: list[str] = []
    make = tempfile.TemporaryDirectory

    def noted(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        folders.append(made.name)
        return made

    monkeypatch.setattr(tempfile, "TemporaryDirectory", noted)
    await export(chat)
    assert len(folders) == 1 and not Path(folders[0]).exists()


async def test_an_export_holds_quotes_newlines_and_emoji_as_they_were(okun: Okun, chat: Room) -> None:
    text = 'He said "\\n" — and\nthen 🐟, \u2028 "]}\n'
    await chat.say(text)
    await export(chat)
    [document] = documents(okun, chat)
    assert document["messages"][0]["text"] == text


# -- /privacy


@pytest.mark.parametrize("days", [90, 1, 0])
async def test_privacy_says_what_is_kept_and_for_how_long(okun: Okun, group: Room, days: int) -> None:
    await okun.restart(retention_days=days)
    for lang, name in PEOPLE.items():
        kept = TEXTS.span(lang, days * DAY) if days else okun.t("privacy.for_ever", lang)
        [reply] = await group.say("/privacy", by=name)
        assert kept in reply.text and okun.t("privacy.models", lang) in reply.text
        assert reply.text == okun.t("privacy.text", lang, kept=kept, models=okun.t("privacy.models", lang))


@settings(gemini_api_key="")
async def test_privacy_says_where_no_model_hears_anything(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        [reply] = await group.say("/privacy", by=name)
        assert okun.t("privacy.no_models", lang) in reply.text


@settings(context_messages=1)
async def test_whoever_said_nothing_lately_can_be_forgotten_all_the_same(okun: Okun, later: Later) -> None:
    """Retention took all that she said; what was made of it since is not so old."""
    chat, group = xenia(okun), okun.group("Pond", "Borys", "Qzxenia")
    await group.say("qzxboat", by="Qzxenia")
    await group.say("bkwboat", by="Borys")
    await later(60 * DAY)
    okun.model.says = lambda ask: "She has a qzxboat."
    await group.say("okun, who has a boat?", by="Borys")
    await summarise(group, "qzxsummary")
    await later(31 * DAY)
    await bot.clean(okun.app)
    await forget(chat, ALL)
    assert places(okun, *HERS) == set()
