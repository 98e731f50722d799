"""Nothing that Telegram delivered is lost or done twice, whatever fails in between."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from conftest import ANNA, BORYS, NOON, OWNER, Later, Okun, Room, Script, settings
from fakes import FakeTelegram, Json

import bot

DAY = 86_400
failing = pytest.mark.failing


# -- stored before it is confirmed, done once


async def test_an_update_is_stored_before_anything_else(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("hi")
    assert okun.inbox_rows == [(0, 0)] and chat.rows() == ["hi"]
    model.writing[0].end("Hello")
    await okun.settle()
    assert okun.inbox_rows == [] and chat.rows() == ["hi", "Hello"]


async def test_where_nothing_could_be_stored_nothing_is_begun(
    okun: Okun, chat: Room, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(writes: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    chat.put("say", "hi")
    updates = okun.telegram.next_updates()
    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "write", full)
        with pytest.raises(sqlite3.OperationalError):
            await okun.feed(*updates)
    await okun.settle()
    assert model.asks == [] and okun.inbox.offset is None
    await okun.feed(*updates)
    assert [reply.text for reply in chat.replies] == ["Heard: hi"]
    assert okun.rows("SELECT name FROM users") == [("Anna",)]


async def test_a_redelivered_update_is_not_done_twice(okun: Okun, chat: Room, model: Script) -> None:
    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    await okun.feed(update, update)
    await okun.feed(update)
    assert len(chat.replies) == 1 and len(model.asks) == 1


async def test_a_redelivery_while_the_first_is_at_work_is_passed_over(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    await okun.feed(update)
    await okun.feed(update)
    model.writing[0].end("Hello")
    await okun.settle()
    assert len(model.asks) == 1


async def test_a_redelivery_after_a_restart_is_passed_over(okun: Okun, chat: Room) -> None:
    chat.put("say", "hi")
    updates = okun.telegram.next_updates()
    await okun.feed(*updates)
    await okun.restart()
    await okun.feed(*updates)
    assert okun.model.asks == [] and len(chat.replies) == 1


async def test_updates_out_of_order_are_each_done_once(okun: Okun) -> None:
    rooms = [okun.private(name) for name in ("Anna", "Borys", "Vira")]
    for room in rooms:
        room.put("say", "hi")
    one, two, three = okun.telegram.next_updates()
    for update in (three, one, two, one, three, two):
        await okun.feed(update)
    assert [len(room.replies) for room in rooms] == [1, 1, 1]


async def test_what_was_seen_is_forgotten_after_48_hours(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("hi")
    await later(48 * 3600)
    await bot.clean(okun.app)
    assert len(okun.rows("SELECT * FROM inbox_seen")) == 1
    await later(1)
    await bot.clean(okun.app)
    assert okun.rows("SELECT * FROM inbox_seen") == []


# -- crash recovery


async def test_what_a_crash_interrupted_is_done_at_the_next_start(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("one")
    await chat.say("two")
    await okun.restart()
    assert [ask.said[-1].text for ask in okun.model.asks] == ["one\ntwo"]
    assert len(chat.replies) == 1 and okun.inbox_rows == []
    await okun.restart()
    assert len(chat.replies) == 1


async def test_topics_are_recovered_each_for_itself(okun: Okun, model: Script) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    model.held = True
    await fish.say("okun, fish")
    await cats.say("okun, cats")
    await okun.restart()
    assert sorted((reply.text, reply.thread) for reply in forum.replies) == [
        ("Heard: Anna: okun, cats", cats.thread), ("Heard: Anna: okun, fish", fish.thread),
    ]  # fmt: skip


async def test_a_command_that_a_crash_interrupted_is_answered_once(okun: Okun, chat: Room) -> None:
    okun.wire.hold("sendMessage")
    await chat.say("/help")
    assert okun.inbox_rows == [(0, 0)]
    await okun.restart()
    assert len(chat.replies) == 1 and okun.inbox_rows == []


async def test_a_press_that_a_crash_interrupted_is_done(okun: Okun, chat: Room) -> None:
    await chat.say("/settings")
    okun.wire.hold("editMessageText")
    okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("settings.rich.on"))
    await okun.take()
    await okun.restart()
    assert f"✓ {okun.t('settings.rich.on')}" in chat.replies[0].buttons


@failing
async def test_a_failure_counts_across_a_crash(okun: Okun, chat: Room, model: Script) -> None:
    model.always(RuntimeError("boom"))
    await chat.say("hi")
    assert okun.inbox_rows == [(1, 0)]
    await okun.restart()
    assert len(chat.replies) == 1 and okun.inbox_rows == []


async def test_a_stop_lets_running_turns_finish(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    draining = asyncio.ensure_future(okun.inbox.drain(20))
    await later(10)
    assert not draining.done()
    model.writing[0].end("Hello")
    await later(1)
    assert draining.done() and len(chat.replies) == 1


async def test_a_stop_waits_20_seconds_at_most_and_the_rest_is_done_later(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.held = True
    await chat.say("hi")
    draining = asyncio.ensure_future(okun.inbox.drain(bot.DRAIN_S))
    await later(20)
    assert draining.done() and chat.replies == []
    await okun.restart()
    assert len(chat.replies) == 1


# -- failures


@failing
async def test_the_third_failure_parks_and_tells_owner_and_user(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    owner = okun.private("Owner")
    model.always(RuntimeError("boom"))
    await chat.say("hi")
    await later(10)
    assert len(model.asks) == 3 and okun.inbox_rows == [(3, 1)]
    [update_id] = okun.rows("SELECT update_id FROM inbox")[0]
    assert [reply.text for reply in owner.replies] == [okun.t("owner.parked", "uk", id=update_id, error="RuntimeError")]
    assert [reply.text for reply in chat.replies] == [okun.t("error.sorry")]
    await later(DAY)
    await okun.restart()
    assert okun.model.asks == [] and len(chat.replies) == 1


@failing
async def test_a_fault_that_passes_is_no_failure(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.says = lambda ask: RuntimeError("boom") if len(model.asks) < 3 else "Hello"
    await chat.say("hi")
    await later(10)
    assert [reply.text for reply in chat.replies] == ["Hello"] and okun.inbox_rows == []


@failing
async def test_after_a_parked_message_the_chat_goes_on(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.always(RuntimeError("boom"))
    await chat.say("hi")
    await later(10)
    model.always("Hello")
    assert [reply.text for reply in await chat.say("again")] == ["Hello"]


@failing
async def test_a_turn_that_is_tried_again_still_takes_turns(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.always(RuntimeError("boom"))
    await chat.say("one")
    model.held = True
    await later(2)
    await chat.say("two")
    assert len(model.writing) == 1
    model.writing[0].end("First")
    await okun.settle()
    model.writing[1].end("Second")
    await okun.settle()
    assert [reply.text for reply in chat.replies] == ["First", "Second"]


@failing
async def test_a_parked_update_is_kept_for_a_week(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.always(RuntimeError("boom"))
    await chat.say("hi")
    await later(7 * DAY)
    await bot.clean(okun.app)
    assert len(okun.inbox_rows) == 1
    await later(DAY)
    await bot.clean(okun.app)
    assert okun.inbox_rows == []


async def test_while_telegram_is_unreachable_an_answer_waits_and_nothing_counts(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    okun.wire.down = True
    await chat.say("hi")
    await later(3600)
    assert okun.inbox_rows == [(0, 0)] and chat.replies == []
    okun.wire.down = False
    await later(60)
    assert [reply.text for reply in chat.replies] == ["Heard: hi"]
    assert len(model.asks) == 1 and okun.inbox_rows == []


async def test_a_command_waits_for_telegram_too(okun: Okun, chat: Room, later: Later) -> None:
    okun.wire.down = True
    await chat.say("/help")
    await later(3600)
    okun.wire.down = False
    await later(60)
    assert len(chat.replies) == 1 and okun.inbox_rows == []


async def test_who_writes_while_telegram_is_unreachable_is_answered_in_order(
    okun: Okun, chat: Room, later: Later
) -> None:
    okun.wire.down = True
    await chat.say("one")
    await later(300)
    await chat.say("two")
    await later(300)
    okun.wire.down = False
    await later(120)
    assert [reply.text for reply in chat.replies] == ["Heard: one", "Heard: two"]
    assert okun.inbox_rows == []


# -- updates that cannot be read

PERSON = {"id": ANNA, "is_bot": False, "first_name": "Anna"}
PLACE = {"id": ANNA, "type": "private", "first_name": "Anna"}
MESSAGE: Json = {"message_id": 900, "date": int(NOON), "chat": PLACE, "from": PERSON, "text": "hi"}
RUBBISH: dict[str, Any] = {
    "empty message": {"message": {}},
    "no message": {"message": None},
    "a list": {"message": []},
    "a text": {"message": "hi"},
    "no chat": {"message": {**MESSAGE, "chat": None}},
    "no sender": {"message": {k: v for k, v in MESSAGE.items() if k != "from"}},
    "no date": {"message": {**MESSAGE, "date": None}},
    "a date in words": {"message": {**MESSAGE, "date": "noon"}},
    "no id": {"message": {**MESSAGE, "message_id": None}},
    "a number for a text": {"message": {**MESSAGE, "text": 5}},
    "an object for a text": {"message": {**MESSAGE, "text": {"a": 1}}},
    "an object for a name": {"message": {**MESSAGE, "from": {**PERSON, "first_name": {}}}},
    "a list for a username": {"message": {**MESSAGE, "from": {**PERSON, "username": ["a"]}}},
    "a text for an id": {"message": {**MESSAGE, "from": {**PERSON, "id": "eleven"}}},
    "a chat of a new kind": {"message": {**MESSAGE, "chat": {"id": -5, "type": "aquarium", "title": "x"}}},
    "a chat id beyond all numbers": {"message": {**MESSAGE, "chat": {**PLACE, "id": 2**63}}},
    "a photo without sizes": {"message": {**MESSAGE, "text": None, "photo": []}},
    "a reply to nonsense": {"message": {**MESSAGE, "reply_to_message": 5}},
    "entities of nonsense": {
        "message": {**MESSAGE, "chat": {"id": -6, "type": "group", "title": "x"}, "entities": [5]}
    },
    "an album of nonsense": {"message": {**MESSAGE, "media_group_id": {"a": 1}}},
    "an edit of nothing": {"edited_message": {"message_id": 1}},
    "an edit without a date": {"edited_message": {**MESSAGE, "edit_date": {}}},
    "a press by nobody": {"callback_query": {"id": "1", "data": "x"}},
    "a press of nonsense": {"callback_query": {"id": "1", "from": PERSON, "data": 5, "message": 7}},
    "a press in words": {"callback_query": "x"},
    "membership of nothing": {"my_chat_member": {}},
    "membership in words": {"my_chat_member": "x"},
    "a stop of nothing": {"stopped_message_generation": {}},
    "a stop by number": {"stopped_message_generation": 5},
}


@failing
@pytest.mark.parametrize("name", RUBBISH)
async def test_rubbish_is_put_aside_and_the_rest_goes_on(
    okun: Okun, chat: Room, later: Later, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    chat.put("say", "good")
    await okun.feed({"update_id": 500, **RUBBISH[name]}, *okun.telegram.next_updates())
    await later(30)
    assert any("good" in reply.text for reply in chat.replies)
    assert "background task failed" not in caplog.text
    assert not okun.rows("SELECT * FROM inbox WHERE parked_at IS NULL")
    await okun.restart()
    assert len([reply for reply in chat.replies if "good" in reply.text]) == 1


@pytest.mark.parametrize("raw", [None, 5, "x", [], {}, {"update_id": None}, {"update_id": "7", "message": MESSAGE}])
async def test_what_is_no_update_at_all_is_passed_over(okun: Okun, chat: Room, raw: Any) -> None:
    chat.put("say", "good")
    await okun.feed(raw, *okun.telegram.next_updates())
    assert len(chat.replies) == 1


@pytest.mark.parametrize("kind", ["channel_post", "poll", "message_reaction", "something_of_the_future"])
async def test_an_update_of_another_kind_is_let_go(okun: Okun, kind: str) -> None:
    await okun.feed({"update_id": 500, kind: {"message_id": 1}})
    assert okun.inbox_rows == [] and okun.inbox.offset == 501


# -- who may talk to it


@settings(allowed_users=frozenset({ANNA}))
async def test_only_listed_users_are_served(okun: Okun, later: Later) -> None:
    anna, borys = okun.private("Anna"), okun.private("Borys")
    assert [reply.text for reply in await anna.say("hi")] == ["Heard: hi"]
    assert [reply.text for reply in await borys.say("привіт")] == [okun.t("error.not_allowed", "uk")]
    assert len(okun.model.asks) == 1


@settings(allowed_users=frozenset({ANNA}))
async def test_a_refused_user_is_told_once_an_hour_and_nothing_is_stored(okun: Okun, later: Later) -> None:
    borys = okun.private("Borys")
    assert [len(await borys.say("hi")), len(await borys.say("/help")), len(await borys.say("hi"))] == [1, 0, 0]
    await borys.edit(borys.last_id, "edited")
    assert borys.rows() == [] and okun.rows("SELECT * FROM users") == [] and okun.inbox_rows == []
    await later(3600)
    assert len(await borys.say("hi")) == 1


@settings(allowed_chats=frozenset({-1_001_000_000_001}))
async def test_only_listed_chats_are_served(okun: Okun) -> None:
    listed, other = okun.group("Listed"), okun.group("Other")
    assert listed.id == -1_001_000_000_001
    assert [reply.text for reply in await listed.say("okun!")] == ["Heard: Anna: okun!"]
    assert await other.say("remark") == []
    assert [reply.text for reply in await other.say("okun!")] == [okun.t("error.not_allowed")]
    assert await other.say("okun?") == []
    assert len(await other.say("okun!", by="Borys")) == 1  # another person, told once as well
    assert other.rows() == []


@settings(allowed_users=frozenset({ANNA}), allowed_chats=frozenset({-5}))
async def test_an_owner_and_a_listed_user_are_served_everywhere(okun: Okun) -> None:
    group = okun.group("Other", "Owner", "Anna", "Borys")
    for who, answers in (("Owner", True), ("Anna", True), ("Borys", False)):
        [reply] = await group.say("okun!", by=who)
        assert reply.text.startswith("Heard") == answers


@settings(allowed_users=frozenset({ANNA}))
async def test_a_press_of_somebody_not_allowed_does_nothing(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    okun.telegram._pressed(okun.person("Borys"), menu.raw, menu.data[0])
    await okun.take()
    assert okun.rows("SELECT rich FROM chats") == [(None,)]


@settings(allowed_chats=frozenset({-5}))
async def test_a_group_that_is_not_allowed_is_not_greeted(okun: Okun) -> None:
    group = okun.group("Other", bot_status="left")
    okun.telegram.membership(group.chat, "member", okun.person("Borys"))
    await okun.take()
    assert okun.t("greeting.hello", "uk", names="окунь, okun") not in [reply.text for reply in group.replies]


async def test_without_a_list_everyone_is_served(okun: Okun) -> None:
    for name in ("Anna", "Borys", "Stranger"):
        assert len(await okun.private(name).say("hi")) == 1


# -- backlog


async def test_of_a_backlog_all_is_stored_and_only_the_newest_in_private_answered(okun: Okun, later: Later) -> None:
    anna, borys, group = okun.private("Anna"), okun.private("Borys"), okun.group()
    for number in range(100):
        anna.put("say", f"a{number}", date=NOON - 3600 + number)
        borys.put("say", f"b{number}", date=NOON - 3600 + number)
        group.put("say", f"okun, g{number}", date=NOON - 3600 + number)
    updates = okun.telegram.next_updates()
    for batch in (updates[:100], updates[100:200], updates[200:]):
        await okun.feed(*batch)
    await later(5)
    assert okun.rows("SELECT count(*) FROM messages WHERE user_id IS NOT NULL") == [(300,)]
    assert [reply.text for reply in anna.replies] == ["Heard: a99"]
    assert [reply.text for reply in borys.replies] == ["Heard: b99"]
    assert group.replies == [] and okun.inbox_rows == []


async def test_batches_of_a_backlog_that_come_apart_are_one(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("one", date=NOON - 3600)
    await later(0.9)
    await chat.say("two", date=NOON - 3000)
    await later(0.9)
    assert chat.replies == []
    await later(0.1)
    assert [reply.text for reply in chat.replies] == ["Heard: two"]


async def test_a_backlog_before_a_new_message_is_only_context(okun: Okun, chat: Room, later: Later) -> None:
    chat.put("say", "old", date=NOON - 3600)
    chat.put("say", "new")
    await okun.take()
    await later(2)
    assert [reply.text for reply in chat.replies] == ["Heard: (1 hour later)\nnew"]
    assert okun.model.past == ["user: old"] and okun.inbox_rows == []


async def test_ten_minutes_are_no_backlog_yet(okun: Okun, group: Room) -> None:
    assert len(await group.say("okun!", date=NOON - 600)) == 1
    assert await group.say("okun!", date=NOON - 601) == []


@settings(backlog_minutes=0)
async def test_without_a_limit_nothing_is_backlog(group: Room) -> None:
    assert len(await group.say("okun!", date=NOON - 9 * DAY)) == 1


async def test_commands_of_a_backlog_are_not_answered_in_groups(group: Room) -> None:
    assert await group.say("/help", date=NOON - 3600) == []
    assert group.rows("kind") == ["command"]


async def test_of_old_commands_only_the_newest_is_answered(okun: Okun, chat: Room, later: Later) -> None:
    for text in ("/start", "/lang", "/help"):
        chat.put("say", text, date=NOON - 3600)
    await okun.take()
    await later(1)
    assert [reply.text.count("/reset") for reply in chat.replies] == [1]
    assert okun.inbox_rows == []


async def test_an_old_command_before_new_talk_is_not_answered(okun: Okun, chat: Room, later: Later) -> None:
    chat.put("say", "/help", date=NOON - 3600)
    chat.put("say", "hello")
    await okun.take()
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Heard: hello"]


async def test_a_migration_is_handled_however_old(okun: Okun) -> None:
    group = okun.group(kind="group")
    await group.say("before")
    migrated = okun.telegram.migrate(group.chat)
    for update in okun.telegram.queue:
        update["message"]["date"] -= DAY
    await okun.take()
    assert Room(okun, migrated).rows() == ["before"]


async def test_a_membership_change_is_handled_however_old(okun: Okun) -> None:
    group = okun.group(bot_status="left")
    okun.telegram.membership(group.chat, "member", okun.person("Anna"))
    okun.telegram.queue[0]["my_chat_member"]["date"] -= DAY
    await okun.take()
    assert len(group.replies) == 1


# -- nobody waits for another


async def test_commands_and_presses_pass_a_running_turn(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("hi")
    await chat.say("/settings")
    assert (await chat.press(okun.t("settings.rich.on"))).note == okun.t("settings.saved")
    assert len(await chat.say("/help")) == 1
    model.writing[0].end("Hello")


async def test_a_flood_of_one_does_not_delay_another(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    borys = okun.private("Borys")
    for number in range(150):
        borys.put("say", f"flood {number}")
    chat.put("say", "hi")
    await okun.take()
    assert {ask.chat_id for ask in model.asks} == {BORYS, ANNA}
    his, hers = sorted(model.writing, key=lambda writing: -writing.ask.chat_id)
    hers.end("Hello")
    await okun.settle()
    assert [reply.text for reply in chat.replies] == ["Hello"]
    model.held = False
    his.end("Enough")
    await okun.settle()
    assert len(borys.replies) <= 3 and okun.inbox_rows == []
    assert len(borys.rows(where="user_id IS NOT NULL")) == 150


@settings(max_parallel_updates=2)
async def test_no_more_updates_at_work_than_allowed(okun: Okun, later: Later) -> None:
    rooms = [okun.private(f"P{number}") for number in range(5)]
    event = okun.wire.hold("sendMessage")
    for room in rooms:
        room.put("say", "/help")
    await okun.take()
    assert okun.wire.waiting["sendMessage"] == 2
    event.set()
    await okun.settle()
    assert [len(room.replies) for room in rooms] == [1] * 5


@settings(max_parallel_updates=2)
async def test_who_waits_for_the_model_holds_no_place(okun: Okun, model: Script) -> None:
    model.held = True
    for number in range(5):
        await okun.private(f"P{number}").say("hi")
    assert len(model.asks) == 5
    assert len(await okun.private("Anna").say("/help")) == 1
    for writing in model.writing:
        writing.end("Hello")
    await okun.settle()
    assert okun.inbox_rows == []


@settings(max_parallel_llm=2)
async def test_no_more_questions_to_models_than_allowed(okun: Okun, model: Script) -> None:
    model.held = True
    for number in range(5):
        await okun.private(f"P{number}").say("hi")
    assert len(model.asks) == 2
    model.writing[0].end("Hello")
    await okun.settle()
    assert len(model.asks) == 3
    for writing in model.writing[1:]:
        writing.end("Hello")


async def test_what_is_done_leaves_nothing_behind(okun: Okun, later: Later) -> None:
    for number in range(20):
        room = okun.private(f"P{number}")
        await room.say("hi")
        await room.say("/help")
    await later(5)
    assert okun.inbox.busy == 0 and not okun.app.generations and not okun.app._tasks


# -- the webhook

HOOK = "https://okun.example/hook"


@pytest.fixture
async def hook(okun: Okun) -> AsyncIterator[str]:
    """The address of a running webhook; okun.healthy says what /healthz thinks."""
    await okun.restart(webhook_url=HOOK, webhook_secret="s3cret")
    web = bot.Web(okun.app, okun.inbox.take, lambda: okun.model.held is False)
    await web.start()
    yield f"http://127.0.0.1:{web._runner.addresses[0][1]}"
    await web.close()


async def post(url: str, body: bytes | io.BytesIO, secret: str | None = "s3cret") -> int:
    headers = {"X-Telegram-Bot-Api-Secret-Token": secret} if secret is not None else {}
    async with aiohttp.ClientSession() as session, session.post(url, data=body, headers=headers) as answer:
        return answer.status


def packed(update: Json) -> bytes:
    return json.dumps(update).encode()


async def test_the_webhook_takes_an_update_once(okun: Okun, chat: Room, hook: str) -> None:
    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    assert await FakeTelegram.deliver(f"{hook}/hook", "s3cret", update) == 200
    assert okun.rows("SELECT text FROM messages")[0] == ("hi",)
    assert await FakeTelegram.deliver(f"{hook}/hook", "s3cret", update) == 200
    await okun.settle()
    assert len(chat.replies) == 1


@pytest.mark.parametrize("secret", [None, "", "wrong", "s3cre", "S3CRET", "секрет"])
async def test_the_webhook_wants_the_secret(okun: Okun, chat: Room, hook: str, secret: str | None) -> None:
    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    assert await post(f"{hook}/hook", packed(update), secret) == 401
    assert okun.inbox_rows == [] and chat.rows() == []


async def test_the_webhook_survives_rubbish(okun: Okun, chat: Room, hook: str) -> None:
    assert await post(f"{hook}/hook", b"{") == 400
    assert await post(f"{hook}/hook", b"\xff\xfe") == 400
    assert await post(f"{hook}/hook", b"[1, 2]") == 200
    assert await post(f"{hook}/hook", b"") == 400
    assert await post(f"{hook}/hook", io.BytesIO(b" " * (bot.MAX_WEBHOOK_BYTES + 1))) == 413
    chat.put("say", "hi")
    assert await post(f"{hook}/hook", packed(okun.telegram.next_updates()[0])) == 200
    await okun.settle()
    assert len(chat.replies) == 1


async def test_the_webhook_lets_telegram_keep_what_is_too_much(
    okun: Okun, chat: Room, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    with monkeypatch.context() as patch:
        patch.setattr(bot, "MAX_WAITING", 0)
        assert await post(f"{hook}/hook", packed(update)) == 503 and okun.inbox_rows == []
    assert await post(f"{hook}/hook", packed(update)) == 200


async def test_the_webhook_confirms_nothing_that_is_not_stored(
    okun: Okun, chat: Room, hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(writes: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    chat.put("say", "hi")
    [update] = okun.telegram.next_updates()
    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "write", full)
        assert await post(f"{hook}/hook", packed(update)) == 500
    assert await post(f"{hook}/hook", packed(update)) == 200
    await okun.settle()
    assert len(chat.replies) == 1


async def test_only_the_hook_and_the_health_are_served(okun: Okun, hook: str) -> None:
    async with aiohttp.ClientSession() as session:
        for path, status in (("/healthz", 200), ("/", 404), ("/hook", 405)):
            async with session.get(hook + path) as answer:
                assert answer.status == status
        okun.model.held = True
        async with session.get(f"{hook}/healthz") as answer:
            assert (answer.status, await answer.json()) == (503, {"ok": False, "sick": ["polling"]})


async def test_a_taken_port_is_no_reason_to_end(okun: Okun, caplog: pytest.LogCaptureFixture) -> None:
    async with await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0) as server:
        await okun.restart(web_port=server.sockets[0].getsockname()[1])
        assert await bot.start_web(okun.app, okun.inbox, bot.Poller(okun.app, okun.inbox)) is None
    assert "no web server" in caplog.text


# -- long polling


@pytest.fixture
async def poller(okun: Okun) -> bot.Poller:
    poller = bot.Poller(okun.app, okun.inbox)
    okun.app.spawn(poller.run(), "poller")
    await okun.settle()
    return poller


async def answered(okun: Okun, room: Room, text: str = "hi") -> bool:
    """Is a message that only the poller can bring answered within a minute?"""
    before = len(room.replies)
    room.put("say", text)
    await okun.later(60)
    return len(room.replies) == before + 1


async def test_polling_brings_updates_and_confirms_them(okun: Okun, chat: Room, poller: bot.Poller) -> None:
    assert await answered(okun, chat) and await answered(okun, chat)
    assert not okun.telegram.queue and poller.healthy


async def test_polling_asks_for_what_handlers_use(okun: Okun, poller: bot.Poller) -> None:
    assert okun.telegram.allowed == frozenset(bot.ALLOWED_UPDATES)


FAULTS = [
    "409",
    "500",
    "502html",
    "malformed",
    "timeout_after",
    "truncated",
    "reset",
    "timeout",
    "401",
    "400",
    "403",
    "429",
]


@pytest.mark.parametrize("kind", FAULTS)
async def test_polling_goes_on_after_any_fault(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later, kind: str
) -> None:
    okun.telegram.fault(kind, "getUpdates", times=4)
    await later(2)
    chat.put("say", "hi")
    await later(1500)
    assert [reply.text for reply in chat.replies] == ["Heard: hi"]


async def test_polling_goes_on_after_the_network_was_gone(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later
) -> None:
    okun.wire.down = True
    await later(600)
    assert not poller.healthy
    chat.put("say", "hi")
    okun.wire.down = False
    await later(120)
    assert poller.healthy and len(chat.replies) == 1


async def test_polling_pauses_between_tries(okun: Okun, poller: bot.Poller, later: Later) -> None:
    okun.telegram.fault("500", "getUpdates", times=1000)
    await later(600)
    assert 10 < 1000 - okun.telegram.faults[0].times < 100


async def test_what_could_not_be_stored_is_asked_for_again(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(writes: object) -> None:
        raise sqlite3.OperationalError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "write", full)
        chat.put("say", "hi")
        await later(40)
        assert chat.replies == [] and len(okun.telegram.queue) == 1
    await later(120)
    assert len(chat.replies) == 1


async def test_what_is_too_much_to_hold_waits_at_telegram(
    okun: Okun, chat: Room, poller: bot.Poller, model: Script, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MAX_WAITING", 3)
    model.held = True
    for text in ("one", "two", "three", "four"):
        chat.put("say", text)
        await later(35)
    assert len(okun.inbox_rows) == 3 and okun.inbox.full
    assert len(okun.telegram.queue) == 2  # the third is stored, and confirmed with the next poll
    model.held = False
    model.writing[0].end("Well")
    await later(60)
    assert not okun.telegram.queue and okun.inbox_rows == [] and not okun.inbox.full
    assert okun.inbox._turns.held == 0 and len(chat.replies) == 3  # the second and the third are one turn


async def test_an_error_nobody_thought_of_does_not_end_polling(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def odd(raws: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(okun.inbox, "take", odd)
        chat.put("say", "hi")
        await later(5)
    await later(200)
    assert len(chat.replies) == 1


async def test_a_poll_that_died_without_a_word_is_begun_anew(okun: Okun, chat: Room, later: Later) -> None:
    okun.wire.hold("getUpdates")
    okun.app.spawn(bot.Poller(okun.app, okun.inbox).run(), "poller")
    await later(60)
    del okun.wire.holds["getUpdates"]
    chat.put("say", "hi")
    await later(29)
    assert chat.replies == []
    await later(120)
    assert len(chat.replies) == 1


@failing
async def test_a_webhook_that_could_not_be_deleted_at_the_start_is_deleted_later(
    okun: Okun, chat: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.asynccontextmanager
    async def open_already(app: bot.App) -> AsyncIterator[bot.Inbox]:
        yield okun.inbox

    monkeypatch.setattr(bot, "running", open_already)
    okun.telegram.webhook = {"url": "https://left.behind"}
    okun.telegram.fault("500", "deleteWebhook", times=20)
    stop = asyncio.Event()
    serving = asyncio.ensure_future(bot.serve(okun.app, stop))
    chat.put("say", "hi")
    await later(3600)
    assert len(chat.replies) == 1 and okun.telegram.commands
    stop.set()
    await serving


async def test_polling_goes_on_where_it_left_off(okun: Okun, chat: Room, poller: bot.Poller) -> None:
    assert okun.inbox.offset is None
    await answered(okun, chat)
    assert okun.inbox.offset == 1002
    await okun.restart()
    assert okun.inbox.offset == 1002


async def test_after_an_idle_day_it_asks_for_whatever_comes(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("hi")
    await later(DAY - 1)
    assert okun.inbox.offset == 1002
    await later(1)
    assert okun.inbox.offset is None


async def test_ids_that_begin_anew_after_an_idle_week_lose_nothing(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later
) -> None:
    await answered(okun, chat)
    await later(8 * DAY)
    okun.telegram._update_id = 5
    assert await answered(okun, chat, "after a week")
    assert await answered(okun, chat, "and again")
    await okun.restart()
    assert okun.inbox.offset == 8


async def test_who_is_told_of_a_parked_update_need_not_have_started(okun: Okun, later: Later) -> None:
    await okun.app.tell_owners("owner.parked", id=1, error="X")
    assert okun.called("sendMessage")[0]["chat_id"] == OWNER and not okun.failures


async def test_the_log_says_what_an_update_cost(okun: Okun, chat: Room, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "okun")
    await chat.say("hi")
    [record] = [record for record in caplog.records if record.message == "handled"]
    assert record.__dict__["reads"] >= 1 and record.__dict__["count"] == 1


async def test_each_bot_has_its_own_place_in_its_own_queue(okun: Okun, chat: Room) -> None:
    await chat.say("hi")
    assert (await bot.last_update(okun.app.db.reader, okun.app.bot.id))[0] > 0
    assert await bot.last_update(okun.app.db.reader, 0) == (0, 0.0)  # the console's bot, say


@failing
async def test_one_who_fails_in_a_turn_of_several_does_not_park_the_others(
    okun: Okun, group: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    talk = bot.on_talk

    async def fragile(app: bot.App, who: bot.Who, turn: bot.Turn) -> None:
        if any("poison" in waiting.heard.text for waiting in turn.waiting):
            raise RuntimeError("poisoned")
        await talk(app, who, turn)

    monkeypatch.setattr(bot, "on_talk", fragile)
    group.put("say", "okun, poison")
    group.put("say", "okun, water", by="Borys")
    await okun.take()
    for _ in range(6):
        await later(10)
    assert any("water" in reply.text for reply in group.replies)
    assert len(okun.rows("SELECT update_id FROM inbox WHERE parked_at IS NOT NULL")) == 1


@failing
async def test_what_a_turn_passed_over_does_not_come_back_where_the_turn_is_taken_one_by_one(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.says = lambda ask: RuntimeError("boom") if len(model.asks) < 3 else "Hello"
    chat.put("say", "old", date=NOON - 3600)
    chat.put("say", "one")
    chat.put("say", "two")
    await okun.take()
    assert len(okun.inbox_rows) == 2  # the old one is dealt with, whatever becomes of the others
    await later(30)
    assert [reply.text for reply in chat.replies] == ["Hello", "Hello"] and okun.inbox_rows == []


@failing
@settings(replies_per_hour=1)
async def test_who_was_refused_in_a_turn_that_fails_is_not_answered_after_a_restart(
    okun: Okun, group: Room, model: Script, later: Later
) -> None:
    await group.say("okun, hi")
    model.says = lambda ask: RuntimeError("boom") if len(model.asks) < 4 else "Hello"
    group.put("say", "okun, and again")
    group.put("say", "okun, water", by="Borys")
    await okun.take()
    await later(30)
    assert len(model.asks) == 4 and group.replies[-1].text == "Hello" and okun.inbox_rows == []


async def test_an_album_with_a_command_leaves_nothing_of_an_older_backlog(okun: Okun, chat: Room, later: Later) -> None:
    chat.put("say", "old", date=NOON - 3600)
    chat.put("say", "new")
    chat.put("album", [b"1", b"2"], "/help")
    await okun.take()
    await later(5)
    assert chat.replies[0].text.endswith("new") and okun.inbox_rows == []


async def test_another_bots_command_is_no_talk(okun: Okun, group: Room) -> None:
    await bot.set_chat(okun.app, group.id, policy="always")
    assert await group.say("/roll@dicebot") == []


async def test_a_full_disk_after_the_answer_does_not_answer_twice(
    okun: Okun, chat: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, fails = okun.app.db.write, [3]

    async def full(writes: Any) -> None:
        if bot.DONE_INBOX in writes and fails[0]:
            fails[0] -= 1
            raise sqlite3.OperationalError("database or disk is full")
        await write(writes)

    monkeypatch.setattr(okun.app.db, "write", full)
    await chat.say("hi")
    await later(60)
    assert [reply.text for reply in chat.replies] == ["Heard: hi"] and okun.inbox_rows == []


async def test_it_says_for_how_long_the_oldest_has_been_waiting(
    okun: Okun, chat: Room, group: Room, model: Script, later: Later
) -> None:
    assert okun.app.stuck() == 0.0
    model.held = True
    await chat.say("one")
    await later(60)
    await chat.say("two")
    held = okun.wire.hold("sendMessage")
    await group.say("/help")
    await later(30)
    assert okun.app.stuck() == okun.inbox.stuck_s == 90.0
    model.writing[0].end("one, then")
    held.set()
    await later(5)
    assert okun.app.stuck() == 35.0  # what was said meanwhile is the turn at work now
    model.writing[1].end("two, then")
    await okun.settle()
    assert okun.app.stuck() == 0.0 and okun.app.backlog() == 0


async def test_a_clock_that_is_set_back_stops_nothing(okun: Okun, chat: Room, group: Room, later: Later) -> None:
    await chat.say("one")
    okun.clock.start -= 3600
    assert [reply.text for reply in await chat.say("two")] == ["Heard: two"]
    assert len(await group.say("/help")) == 1
    await okun.restart()
    assert [reply.text for reply in await chat.say("three")] == ["Heard: three"] and okun.inbox_rows == []


async def test_what_is_asked_while_there_is_no_network_is_answered_when_there_is(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later
) -> None:
    chat.put("say", "one")
    okun.wire.down = True
    await later(3 * 3600)
    assert chat.replies == []
    okun.wire.down = False
    chat.put("say", "two")
    await later(120)
    assert "two" in chat.replies[-1].text and okun.inbox_rows == [] and chat.rows(where="user_id IS NOT NULL") == [
        "one", "two",
    ]  # fmt: skip


async def test_what_somebody_is_refused_waits_for_telegram_too(okun: Okun, chat: Room) -> None:
    okun.telegram.fault("500", "sendMessage", times=30)
    assert await chat.say("/quiet 2h") == [] and okun.inbox_rows == [(0, 0)]
    await okun.later(600)
    assert [reply.text for reply in chat.replies] == [okun.t("error.only_group")]
    assert okun.inbox_rows == []
