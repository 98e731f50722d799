"""What only owners may do: bans and allow-lists, lists of chats and people, messages to all chats, costs, errors, the
log's level; and that nobody else may."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest
from conftest import ANNA, BORYS, KYIV, NOON, OLENA, OWNER, TEXTS, Later, Okun, Reply, Room, Script, settings
from test_panels import bad_notes, entries_in, walk, way_back

import bot

NASTY = ["'; DROP TABLE users; --", "<b>bold</b> & <a href='x'>", "*bold* _it_ [a](tg://user?id=1) `code", "🐟" * 64,
         "‮مرحبا بالعالم", "Щ" * 128, "\u2060\u200b", "{name} {0} %s", "a\nb\tc"]  # fmt: skip
OWNERS = frozenset({OWNER, OLENA})


@pytest.fixture
def owner(okun: Okun) -> Room:
    return okun.private("Owner")


@pytest.fixture(autouse=True)
def level_kept() -> Iterator[None]:
    before = logging.getLogger().level
    yield
    logging.getLogger().setLevel(before)


def who_of(room: Room) -> bot.Who:
    person = room.okun.person(room.by)
    return bot.Who(room.id, 0, person["id"], person["language_code"], room.chat.private)


async def heard(okun: Okun, *names: str) -> None:
    """Let these people write to the bot in private."""
    for name in names:
        await okun.private(name).say("hello")


async def fill(okun: Okun, people: int = 0, groups: int = 0, *, known: bool = True) -> list[int]:
    """So many more people and groups in the database, and (`known`) at Telegram; their ids."""
    ids = [1000 + n for n in range(people)] + [-1_002_000_000_000 - n for n in range(groups)]
    users = [(id_, f"Person {id_}", f"p{id_}", "en", 1) for id_ in ids if id_ > 0]
    chats = [(id_, "private" if id_ > 0 else "supergroup", f"Chat {id_}") for id_ in ids]
    if known:
        for id_ in ids[:people]:
            okun.telegram.private(okun.telegram.user(id_, f"Person {id_}", "en"))
    await okun.app.db.write({bot.PUT_USER: users, bot.PUT_CHAT: chats})
    return ids


def label(okun: Okun, key: str, **fields: Any) -> str:
    return okun.t(key, **fields)


# -- whose it is


OWNER_COMMANDS = sorted(spec.name for spec in bot.COMMANDS.values() if spec.owner)
ARGUMENTS = ("", "ban 99", "ban 11", "unban 11", "allow 11", "11", "@owner")


def test_there_are_commands_of_owners() -> None:
    assert {"admin", "cost"} <= {*OWNER_COMMANDS}


@pytest.mark.parametrize("name", OWNER_COMMANDS)
async def test_a_command_of_owners_is_unknown_to_everybody_else(okun: Okun, chat: Room, group: Room, name: str) -> None:
    for arguments in ARGUMENTS:
        [reply] = await chat.say(f"/{name} {arguments}")
        assert reply.text == okun.t("command.unknown") and not reply.buttons
        for by in ("Anna", "Olena", "chat"):
            assert await group.say(f"/{name} {arguments}", by=by) == []
        for by, lang in (("Anna", "en"), ("Olena", "uk")):
            [reply] = await group.say(f"/{name}@okun_bot {arguments}", by=by)
            assert reply.text == okun.t("command.unknown", lang)
    assert okun.app.access == {} and okun.rows("SELECT * FROM access") == []


@pytest.mark.parametrize("name", OWNER_COMMANDS)
async def test_in_a_group_an_owner_is_told_where_it_works(okun: Okun, group: Room, name: str) -> None:
    assert [reply.text for reply in await group.say(f"/{name}", by="Owner")] == [okun.t("error.only_private")]


async def test_owners_alone_find_the_way_there(okun: Okun, chat: Room, owner: Room, group: Room) -> None:
    assert okun.t("menu.to.admin") not in (await chat.say("/menu"))[0].buttons
    assert okun.t("menu.to.admin") not in (await group.say("/menu", by="Owner"))[0].buttons
    assert okun.t("menu.to.admin") in (await owner.say("/menu"))[0].buttons
    assert "/admin — " in (await owner.say("/help"))[0].text
    await bot.register_owner_commands(okun.app)
    [own] = [entries for (scope, _), entries in okun.telegram.commands.items() if '"chat"' in scope]
    assert {*OWNER_COMMANDS} <= {entry["command"] for entry in own}


def every_button_of_owners(id_: int) -> list[str]:
    """The data of every panel and act of owners, as if made for this person."""
    panels = [f"m2:{id_}:{name}:" for name, spec in bot.PANELS.items() if spec.owner]
    acts = [f"d1:{id_}:{name}:" for name, spec in bot.ACTS.items() if spec.owner]
    args = {"peer": "u11", "ban": "u99", "unban": "u11", "allow": "u11", "disallow": "u11", "log": "DEBUG",
            "cast_to": "1.all"}  # fmt: skip
    return [data + args.get(data.split(":")[2], "1") for data in (*panels, *acts)]


async def test_every_button_of_owners_is_refused_to_others(okun: Okun, chat: Room, owner: Room, group: Room) -> None:
    await heard(okun, "Borys")
    await owner.say("news")
    async with okun.app.db.tx() as tx:
        await bot.draft_cast(tx, OWNER, owner.last_id, int(NOON))
    before = okun.rows("SELECT * FROM broadcasts"), logging.getLogger().level
    [menu], [theirs] = await chat.say("/menu"), await owner.say("/admin")
    [in_group] = await group.say("/menu")
    assert len(every_button_of_owners(ANNA)) > 15
    for data in every_button_of_owners(ANNA):  # with their own id as the one who may press
        for room, message in ((chat, menu), (group, in_group)):
            pressed = await room.press_data(data, message)
            wrong_place = data.startswith("m2") and room is group
            assert pressed.note == okun.t("error.only_private" if wrong_place else "error.owners_only"), data
            assert pressed.message.raw == message.raw and not pressed.replies, data
    for data in every_button_of_owners(OWNER):  # with the owner's: forged, and under the owner's own menu
        for message in (menu, theirs):
            pressed = await chat.press_data(data, message)
            assert pressed.note == okun.t("button.not_yours") and not pressed.replies, data
    assert (okun.rows("SELECT * FROM broadcasts"), logging.getLogger().level) == before
    assert okun.app.access == {} and okun.rows("SELECT * FROM forms") == []


FORGED = ["m2:99:peer:", "m2:99:peer:x1", "m2:99:peer:u", "m2:99:peer:u0", "m2:99:peer:u--1", "m2:99:peer:c1e9",
          "m2:99:peer:u99999999999999999999999", "m2:99:peer:u١", "m2:99:chats:x", "m2:99:chats:=", "m2:99:chats:<",
          "m2:99:users:=x", "m2:99:users:>5", "m2:99:cast_whom:1'--", "m2:99:cast_sure:9", "d1:99:cast_go:9",
          "d1:99:cast_to:1", "d1:99:cast_to:1.everybody", "d1:99:cast_to:9.all", "d1:99:log:", "d1:99:log:NOTSET",
          "d1:99:log:CRITICAL", "d1:99:ban:", "d1:99:ban:99", "d1:99:ban:u", "d1:99:ban:u99", "d1:99:allow:u99",
          "d1:99:peer:u11", "m2:99:ban:u11", "d1:99:ban"]  # fmt: skip


async def test_forged_and_truncated_buttons_of_owners_change_nothing(okun: Okun, owner: Room) -> None:
    [menu] = await owner.say("/admin")
    kind = {okun.t(key) for key in ("button.old", "broadcast.over", "admin.owner")}
    for data in FORGED:
        pressed = await owner.press_data(data, menu)
        assert pressed.note in kind and pressed.message.raw == menu.raw, data
    assert okun.app.access == {} and okun.rows("SELECT * FROM broadcasts") == []


# -- the walker


async def enrich(okun: Okun) -> None:
    """Something on every panel, and more than a page where there are pages."""
    await heard(okun, "Anna", "Borys")
    await okun.group().say("hello")
    await fill(okun, people=20, groups=20)
    for n in range(12):
        logging.getLogger("okun").error("fault %s", n)
    usage = bot.Usage(1000, 2000, 300, 400)
    for name in ("gemini-3.8-flash", "unheard-of"):
        cost = 5000 if "gemini" in name else None
        bot.store_llm_call(okun.app, bot.LlmCall(int(NOON), "gemini", name, "chat", "ok", 5, usage, 1, 1, cost))
    await okun.settle()


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_every_button_of_an_owner_works_and_leads_back(okun: Okun, owner: Room, lang: str) -> None:
    await enrich(okun)
    await owner.say(f"/lang {lang}")
    walked = await walk(owner)
    assert {spec.name for spec in entries_in("private", owner=True)} <= {data.split(":")[2] for data in walked.parent}
    for data in [*walked.parent]:
        back = walked.shown[data].data[-1]
        if back not in walked.shown and "close" not in back:  # a page that begins with somebody in its middle
            await walked.press(back)
            walked.shown[back] = walked.message
        if not data.startswith("f1"):
            assert way_back(walked, data)[-1] == walked.root, data


async def test_a_click_of_an_owner_costs_one_query_at_most(okun: Okun, owner: Room) -> None:
    await enrich(okun)
    walked, costs = await walk(owner, deepest=0), {}
    for data in walked.parent:
        before = okun.app.db.reader.reads
        await walked.press(data)
        ours = any(spec.home == "admin" for spec in (bot.PANELS.get(data.split(":")[2]),) if spec)
        if ours and (reads := okun.app.db.reader.reads - before) > 1:
            costs[data] = reads
    assert costs == {}


# -- lists


async def pages(room: Room, name: str) -> list[list[str]]:
    """The labels of all pages of a list, from the first to the last."""
    [menu] = await room.say("/admin")
    shown = (await room.press(room.okun.t(f"menu.to.{name}"), message=menu)).message
    found = [[one for one in shown.buttons if one not in "◀▶"][:-1]]
    while "▶" in shown.buttons:
        shown = (await room.press("▶", message=shown)).message
        found.append([one for one in shown.buttons if one not in "◀▶"][:-1])
    back = []
    while "◀" in shown.buttons:
        shown = (await room.press("◀", message=shown)).message
        back.append([one for one in shown.buttons if one not in "◀▶"][:-1])
    assert [*reversed(back)] == found[:-1]
    return found


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 16, 17])
async def test_lists_show_everybody_once_there_and_back(okun: Okun, owner: Room, count: int) -> None:
    await fill(okun, groups=count, known=False)
    shown = await pages(owner, "chats")
    assert sorted([*itertools.chain(*shown)]) == sorted(f"Chat {-1_002_000_000_000 - n}" for n in range(count))
    assert all(len(page) == 8 for page in shown[:-1]) and len(shown) == max(1, -(-count // 8))
    await fill(okun, people=count, known=False)
    shown = await pages(owner, "users")
    names = [f"Person {1000 + n}" for n in reversed(range(count))]
    assert [*itertools.chain(*shown)] == [*names, "Owner"]  # the newest accounts first


async def test_a_list_of_a_hundred_thousand_is_not_read_whole(okun: Okun, owner: Room) -> None:
    for sql in (bot.chats_around, bot.users_around):
        [text] = [const for const in sql.__code__.co_consts if isinstance(const, str) and "SELECT" in const]
        plan = " ".join(str(row[3]) for row in okun.rows(f"EXPLAIN QUERY PLAN {text}", 1, 1, 1, 1))
        assert "SEARCH" in plan and "TEMP B-TREE" not in plan
        assert "SCAN chats" not in plan and "SCAN users" not in plan
    before = okun.app.db.reader.reads
    await bot.list_page(okun.app, "users", "=5")
    assert okun.app.db.reader.reads - before == 1


async def test_names_of_any_kind_are_shown_as_they_are(okun: Okun, owner: Room) -> None:
    for n, name in enumerate(NASTY):
        okun.telegram.user(500 + n, name, "en", f"nasty{n}")
        await okun.private(name).say("hi")
        room = okun.group(name, "Anna")
        await room.say("hi")
    for kind in ("chats", "users"):
        shown = await pages(owner, kind)
        assert sum(map(len, shown)) >= len(NASTY)
        assert all(one.strip() and len(one) <= 42 for page in shown for one in page)
    for n, name in enumerate(NASTY):
        [card] = await owner.say(f"/admin {500 + n}")
        assert " ".join(name.split()) in card.text and not {*card.entities} & {"bold", "italic", "code", "text_link"}
    assert okun.telegram.bugs == [] and not okun.failures


async def test_the_card_of_a_group_says_what_is_known(okun: Okun, owner: Room, group: Room) -> None:
    await group.say("one")
    await group.say("two", by="Borys")
    await group.say("/settings", by="Olena")
    await group.press(okun.t("settings.policy.mention", "uk"), by="Olena")
    [card] = await owner.say(f"/admin {group.id}")
    assert card.text.startswith("Pond\n") and str(group.id) in card.text
    for line in (okun.t("admin.members", n=3), okun.t("admin.messages", n=2), okun.t("admin.is.open"),
                 okun.t("admin.policy", policy=okun.t("settings.policy_is.mention"))):  # fmt: skip
        assert line in card.text
    okun.telegram.membership(group.chat, "kicked", okun.person("Olena"))
    await okun.take()
    [card] = await owner.say(f"/admin {group.id}")
    assert okun.t("admin.left", day="13 May 2026, 12:00") in card.text
    assert f"💤 {'Pond'}" in (await pages(owner, "chats"))[0]


async def test_the_card_of_a_person_says_what_is_known(okun: Okun, owner: Room, chat: Room, group: Room) -> None:
    await chat.say("one")
    await group.say("two")
    [card] = await owner.say("/admin @anna")
    for line in ("Anna (@anna)", okun.t("admin.chats_with", n=2), okun.t("admin.messages", n=2), "id 11",
                 okun.t("admin.started", day="13 May 2026, 12:00")):  # fmt: skip
        assert line in card.text
    okun.telegram.membership(chat.chat, "kicked")
    await okun.take()
    [card] = await owner.say("/admin @ANNA")
    assert okun.t("admin.blocked", day="13 May 2026, 12:00") in card.text
    [card] = await owner.say("/admin 777")
    assert okun.t("admin.unknown") in card.text and okun.t("admin.button.ban") in card.buttons
    for words in ("ban", "ban @nobody", "@nobody", "what is this", "ban 0", "ban 1;DROP TABLE users", "ban '"):
        [reply] = await owner.say(f"/admin {words}")
        assert reply.text == okun.t("admin.usage")
    assert okun.app.access == {}


# -- bans


async def test_a_refusal_is_in_the_language_that_was_chosen(okun: Okun, chat: Room) -> None:
    await chat.say("/lang ru")
    await bot.set_access(okun.app, ANNA, "banned")
    assert [reply.text for reply in await chat.say("hello?")] == [okun.t("error.banned", "ru")]


async def test_a_banned_person_is_refused_kindly_once_an_hour(
    okun: Okun, owner: Room, chat: Room, group: Room, model: Script, later: Later
) -> None:
    await chat.say("before")
    await owner.say("/admin ban @anna")
    assert okun.rows("SELECT id, verdict FROM access") == [(ANNA, "banned")]
    asked = len(model.asks)
    assert [reply.text for reply in await chat.say("hello?")] == [okun.t("error.banned")]
    for text in ("hello??", "/help", "/start", "/cancel"):
        assert await chat.say(text) == []
    assert await group.say("okun, hello") == []  # told already, in the last hour
    assert len(model.asks) == asked and len(chat.rows(where="user_id IS NOT NULL")) == 1 and group.rows() == []
    await chat.edit(chat.last_id, "changed")
    await group.say("okun, and me?", by="Borys")
    assert len(model.asks) == asked + 1
    await later(3601)
    assert [reply.text for reply in await chat.say("and now?")] == [okun.t("error.banned")]
    await okun.restart()
    await later(3601)
    assert [reply.text for reply in await chat.say("still?")] == [okun.t("error.banned")]
    await owner.say("/admin unban 11")
    assert (await chat.say("thanks"))[0].text.endswith("thanks")
    assert okun.rows("SELECT * FROM access") == []


async def test_the_buttons_of_somebody_banned_do_nothing(okun: Okun, owner: Room, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    await owner.say("/admin ban 11")
    pressed = await chat.press(menu.data[0], message=menu)
    assert pressed.note == okun.t("error.banned") and pressed.message.raw == menu.raw
    assert (await chat.press(menu.data[0], message=menu)).note is None  # told once
    assert okun.rows("SELECT rich FROM chats WHERE chat_id = 11") == [(None,)]


async def test_a_banned_group_hears_nothing_and_is_not_kept(
    okun: Okun, owner: Room, group: Room, model: Script, later: Later
) -> None:
    await group.say("okun, hi")
    rows, asked = group.rows(), len(model.asks)
    [menu] = await group.say("/settings", by="Olena")
    rows = group.rows()
    [card] = await owner.say(f"/admin {group.id}")
    pressed = await owner.press(okun.t("admin.button.ban"), message=card)
    assert pressed.note == okun.t("admin.is.banned") and okun.t("admin.button.unban") in pressed.message.buttons
    for by in ("Anna", "Borys", "Olena", "chat"):
        for text in ("okun, are you there?", "/help", "/status@okun_bot"):
            assert await group.say(text, by=by) == []
    assert (await group.press(menu.data[0], by="Olena", message=menu)).note is None
    await later(4000)
    assert await group.say("okun?") == []
    assert group.rows() == rows and len(model.asks) == asked
    assert [reply.text for reply in await group.say("okun, do you hear me?", by="Owner")]  # owners always
    await owner.press(okun.t("admin.button.unban"), message=pressed.message)
    assert (await group.say("okun, welcome back"))[0].text == "Heard: Anna: okun, welcome back"


async def test_a_ban_in_the_middle_stops_what_is_written_and_what_waits(
    okun: Okun, owner: Room, chat: Room, model: Script
) -> None:
    model.held = True
    await chat.say("tell me a tale")
    chat.put("say", "and another")
    await okun.take()
    model.writing[0].show("Once upon")
    await owner.say("/admin ban 11")
    await okun.settle()
    model.held = False
    await okun.settle()
    assert [reply.text for reply in chat.replies] == [] and len(model.asks) == 1
    assert okun.inbox_rows == []


async def test_a_turn_of_several_leaves_the_banned_one_out(okun: Okun, owner: Room, group: Room, model: Script) -> None:
    model.held = True
    await group.say("okun, one", by="Vira")
    group.put("say", "okun, from Anna")
    group.put("say", "okun, from Borys", by="Borys")
    await okun.take()
    await owner.say("/admin ban 11")
    model.held = False
    model.writing[0].end("fine")
    await okun.settle()
    assert "from Borys" in model.heard and "from Anna" not in model.heard
    assert len(group.replies) == 2


async def test_what_somebody_banned_left_in_the_inbox_is_let_go(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("tell me a tale")
    await okun.crash()
    with contextlib.closing(sqlite3.connect(okun.path)) as connection, connection:
        connection.execute("INSERT INTO access VALUES (?, 'banned', 0)", (ANNA,))
    await okun.open()
    assert okun.inbox_rows == [] and okun.app.errors.total == 0
    assert [reply.text for reply in chat.replies] == [okun.t("error.banned")]


async def test_nobody_banned_is_reminded(okun: Okun, owner: Room, chat: Room, later: Later) -> None:
    await chat.say("hi")
    await bot.set_reminder(okun.app, who_of(chat), NOON + 60, "feed the fish")
    await owner.say("/admin ban 11")
    await later(120)
    await bot.say_due(okun.app)
    await okun.settle()
    assert [reply.text for reply in chat.replies] == ["Heard: hi"]
    assert okun.rows("SELECT count(*) FROM reminders") == [(0,)]


@settings(admin_ids=OWNERS)
async def test_owners_cannot_be_banned(okun: Okun, owner: Room) -> None:
    for words in ("ban 99", "ban 14", "ban @owner", "disallow 14", "BAN 14"):
        await heard(okun, "Owner")
        assert [reply.text for reply in await owner.say(f"/admin {words}")] == [okun.t("admin.owner")]
    [card] = await owner.say("/admin 14")
    assert card.buttons == [okun.t("menu.back")]
    assert okun.app.access == {}


async def test_a_ban_goes_along_when_a_group_becomes_a_supergroup(okun: Okun, owner: Room) -> None:
    group = okun.group(kind="group")
    await group.say("hi")
    await owner.say(f"/admin ban {group.id}")
    new = okun.telegram.migrate(group.chat)
    await okun.take()
    assert okun.app.access == {new.id: "banned"}
    await okun.restart()
    assert okun.app.access == {new.id: "banned"} and await Room(okun, new).say("okun?") == []


async def test_a_ban_outlives_being_forgotten(okun: Okun, owner: Room, chat: Room) -> None:
    await chat.say("hi")
    await chat.say("/forget me")
    await owner.say("/admin ban 11")
    await okun.restart()
    assert [reply.text for reply in await chat.say("me again")] == [okun.t("error.banned")]


@settings(allowed_users=frozenset({BORYS}))
async def test_where_only_some_may_others_are_allowed_and_taken_back(okun: Okun, owner: Room, chat: Room) -> None:
    assert [reply.text for reply in await chat.say("may I?")] == [okun.t("error.not_allowed")]
    [card] = await owner.say("/admin 11")
    assert okun.t("admin.is.refused") in card.text
    pressed = await owner.press(okun.t("admin.button.allow"), message=card)
    assert pressed.note == okun.t("admin.is.allowed")
    assert [reply.text for reply in await chat.say("thanks")] == ["Heard: thanks"]
    await okun.restart()
    assert [reply.text for reply in await chat.say("still?")] == ["Heard: still?"]
    pressed = await owner.press(okun.t("admin.button.disallow"), message=pressed.message)
    assert pressed.note == okun.t("admin.is.refused")
    assert [reply.text for reply in await chat.say("may I?")] == [okun.t("error.not_allowed")]
    await owner.say("/admin ban 11")
    await owner.say("/admin disallow 11")  # is no way to unban
    assert okun.app.access == {ANNA: "banned"}
    [card] = await owner.say("/admin 12")
    assert okun.t("admin.is.listed") in card.text and okun.t("admin.button.allow") not in card.buttons


@settings(allowed_chats=frozenset({-5}))
async def test_a_group_can_be_allowed(okun: Okun, owner: Room, group: Room) -> None:
    assert [reply.text for reply in await group.say("okun!")] == [okun.t("error.not_allowed")]
    await owner.say(f"/admin allow {group.id}")
    assert [reply.text for reply in await group.say("okun, hi")] == ["Heard: Anna: okun, hi"]


async def test_where_everybody_may_nobody_has_to_be_allowed(okun: Okun, owner: Room, chat: Room) -> None:
    await chat.say("hi")
    [card] = await owner.say("/admin 11")
    assert card.buttons == [okun.t("admin.button.ban"), okun.t("menu.back")]


@settings(admin_ids=OWNERS)
async def test_two_owners_at_once(okun: Okun, owner: Room) -> None:
    await heard(okun, "Anna")
    other = okun.private("Olena")
    [mine], [theirs] = await owner.say("/admin 11"), await other.say("/admin 11")
    okun.telegram.press(owner.chat, okun.person("Owner"), okun.t("admin.button.ban"), mine.id)
    okun.telegram.press(other.chat, okun.person("Olena"), okun.t("admin.button.ban", "uk"), theirs.id)
    await okun.take()
    assert okun.app.access == {ANNA: "banned"} and okun.rows("SELECT id FROM access") == [(ANNA,)]
    assert okun.t("admin.button.unban") in owner.replies[-1].buttons
    assert okun.t("admin.button.unban", "uk") in other.replies[-1].buttons


# -- costs


def spend(okun: Okun, model: str, micro_usd: int | None, days_ago: int = 0, *, tokens: int = 1000) -> None:
    used = bot.Usage(tokens, 2 * tokens, 500)
    at = int(okun.clock.now()) - days_ago * 86_400
    bot.store_llm_call(okun.app, bot.LlmCall(at, "gemini", model, "chat", "ok", 5, used, 1, 1, micro_usd))


@settings(daily_budget_usd=2.0)
async def test_costs_by_period_and_model(okun: Okun, owner: Room) -> None:
    spend(okun, "gemini-3.8-flash", 500_000, 29)
    spend(okun, "gemini-3.8-flash", 1_000_000, 6)
    spend(okun, "gemini-3.8-flash", 250_000)
    spend(okun, "gemini-3.8-flash", 9_000_000, 30)  # too old
    spend(okun, "mystery-1", None)
    await okun.settle()
    okun.app.spent = "", 0
    await bot.load_spent(okun.app)
    [shown] = await owner.say("/cost")
    for line in ("Today: $0.25", "7 days: $1.25", "30 days: $1.75", okun.t("cost.budget", most="$2.00",
                 left="$1.75"), okun.t("cost.unpriced", n=1), okun.t("cost.prices", date=bot.PRICES_OF),
                 "gemini-3.8-flash – calls: 1, tokens in: 1\u202f000, out: 2\u202f500; $0.25"):  # fmt: skip
        assert line in shown.text
    pressed = await owner.press("30 days", message=shown)
    assert "gemini-3.8-flash – calls: 3, " in pressed.message.text and "✓ 30 days" in pressed.message.buttons
    assert "mystery-1 – calls: 1" in pressed.message.text


@pytest.mark.parametrize("now", [(2026, 3, 30, 0, 30), (2026, 10, 25, 23, 30)])
async def test_seven_days_are_seven_where_the_clock_changes(okun: Okun, owner: Room, now: tuple[int, ...]) -> None:
    okun.clock.set(*now)
    noon = datetime(*now[:3], 12, tzinfo=KYIV)  # type: ignore[arg-type,misc]
    for days in range(9):
        at = (noon - timedelta(days=days)).timestamp()
        usage = bot.Usage(1_000_000)
        bot.store_llm_call(okun.app, bot.LlmCall(int(at), "gemini", "x", "chat", "ok", 5, usage, 1, 1, 1_000_000))
    await okun.settle()
    assert "\n7 days: $7.00" in (await owner.say("/cost"))[0].text


async def test_costs_where_there_are_none(okun: Okun, owner: Room) -> None:
    [shown] = await owner.say("/cost")
    assert okun.t("cost.nothing") in shown.text and okun.t("cost.no_budget") in shown.text


# -- errors


def fail(error: Exception, words: str = "update failed") -> None:
    try:
        raise error
    except Exception as raised:
        logging.getLogger("okun").error(words, exc_info=raised)


async def test_errors_are_counted_by_kind_and_shown(okun: Okun, owner: Room) -> None:
    for _ in range(3):
        fail(ValueError("what Anna said"))
    logging.getLogger("okun").error("polling failed: %s", "connection refused")
    logging.getLogger("okun").warning("no error")
    assert okun.app.errors.total == 4
    assert {name: kind.count for name, kind in okun.app.errors.kinds.items()} == {
        "ValueError": 3, "polling failed: %s": 1
    }  # fmt: skip
    [menu] = await owner.say("/admin")
    shown = (await owner.press(okun.t("menu.to.errors"), message=menu)).message
    assert "ValueError × 3" in shown.text and "polling failed: connection refused" in shown.text
    assert "Anna" not in shown.text  # what an exception quotes may be somebody's words
    cleared = await owner.press(okun.t("errors.button.clear"), message=shown)
    assert cleared.note == okun.t("errors.cleared") and cleared.message.text == okun.t("errors.none")
    assert okun.app.errors.total == 4


async def test_the_error_log_is_bounded_and_holds_no_secret(okun: Okun) -> None:
    for n in range(500):
        logging.getLogger("okun").error(f"of its own kind {n}")
    errors = okun.app.errors
    assert (errors.total, len(errors.kinds), len(errors.entries)) == (500, 200, 100)
    assert [*errors.kinds][-1] == "of its own kind 499" and "of its own kind 0" not in errors.kinds
    token = okun.settings.telegram_bot_token
    logging.getLogger("okun").error(f"{'x' * 298}{token} in the words themselves")
    logging.getLogger("okun").error("calling https://api/bot%s/getMe " + "y" * 400, token)
    fail(OSError(f"no route to {token}"), f"look: {token}")
    kept = [*errors.kinds, *(one.text for one in errors.entries)]
    assert all(token not in text and "TEST" not in text and len(text) <= 300 for text in kept)


async def test_errors_of_other_libraries_count_and_rubbish_harms_nothing(okun: Okun) -> None:
    logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task exception='Anna said'>",
                                       exc_info=KeyError("Anna said"))  # fmt: skip
    okun.app.errors.handle(logging.LogRecord("x", logging.ERROR, "", 1, "%s and %s", ("one",), None))
    logging.getLogger("okun").error({"odd": "message"})
    assert okun.app.errors.total == 3 and "Anna" not in str(okun.app.errors.entries)


async def test_the_error_log_ends_with_its_app(okun: Okun) -> None:
    first = okun.app
    await okun.restart()
    logging.getLogger("okun").error("of the second life")
    assert (first.errors.total, okun.app.errors.total) == (0, 1)
    assert first.errors not in logging.getLogger().handlers


async def test_more_than_ten_in_an_hour_are_critical_once_an_hour(
    okun: Okun, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    def cries() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.levelname == "CRITICAL"]

    for _ in range(10):
        fail(ValueError())
    assert cries() == []
    for _ in range(30):
        fail(ValueError())
    assert cries() == ["more than 10 errors of a kind in an hour: ValueError"]
    fail(KeyError())
    assert len(cries()) == 1
    await later(3700)
    for _ in range(10):
        fail(ValueError())
    assert len(cries()) == 1
    fail(ValueError())
    assert len(cries()) == 2 and okun.app.errors.total == 52


async def test_owners_are_told_of_new_kinds_every_ten_minutes_at_most(okun: Okun, owner: Room, later: Later) -> None:
    def digests() -> list[Reply]:
        return [reply for reply in owner.replies if reply.text.startswith(okun.t("errors.digest"))]

    await owner.say("/lang en")
    okun.app.spawn(bot.digest_loop(okun.app), "digest")
    await later(3600)
    assert len(owner.replies) == 1
    fail(ValueError())
    await later(60)
    assert len(digests()) == 1 and "ValueError × 1" in digests()[0].text
    assert okun.t("menu.to.errors") in digests()[0].buttons
    fail(KeyError())
    fail(ValueError())
    await later(500)
    assert len(digests()) == 1
    await later(100)
    assert len(digests()) == 2 and "KeyError" in digests()[1].text and "ValueError" not in digests()[1].text
    for _ in range(20):
        fail(KeyError())
        await later(1800)
    assert len(digests()) == 2  # nothing new
    await later(86_400)
    for _ in range(11):
        fail(KeyError())
    await later(700)
    assert len(digests()) == 3 and "‼ KeyError × 32" in digests()[2].text


async def test_what_owners_were_told_is_known_after_a_restart(okun: Okun, owner: Room, later: Later) -> None:
    for _ in range(3):
        okun.app.spawn(bot.digest_loop(okun.app), "digest")
        await okun.settle()
        fail(ValueError())
        await later(700)
        await okun.restart()
    assert len(owner.replies) == 1
    await later(86_400)
    okun.app.spawn(bot.digest_loop(okun.app), "digest")
    fail(ValueError())
    await later(700)
    assert len(owner.replies) == 2


@settings(admin_ids=OWNERS)
async def test_a_digest_that_cannot_be_sent_makes_none_about_itself(okun: Okun, owner: Room, later: Later) -> None:
    okun.app.spawn(bot.digest_loop(okun.app), "digest")
    okun.telegram.fault("timeout_after", "sendMessage", times=50)  # the answer is lost: logged as an error
    fail(ValueError())
    await later(60)
    assert len(owner.replies) == 1
    await later(7200)
    assert len(owner.replies) == 1 and okun.app.errors.total > 1


async def test_a_digest_that_reached_nobody_is_sent_later(okun: Okun, owner: Room, later: Later) -> None:
    okun.app.spawn(bot.digest_loop(okun.app), "digest")
    okun.wire.down = True
    fail(ValueError())
    await later(700)
    okun.wire.down = False
    await later(1300)
    assert len(owner.replies) == 1 and "ValueError × 1" in owner.replies[0].text


# -- the log's level


async def test_the_level_of_the_log_changes_at_once(okun: Okun, owner: Room) -> None:
    [menu] = await owner.say("/admin")
    shown = (await owner.press(okun.t("menu.to.log"), message=menu)).message
    assert "LOG_LEVEL" in shown.text
    for level in ("DEBUG", "ERROR", "INFO", "WARNING"):
        pressed = await owner.press(level, message=shown)
        assert pressed.note == okun.t("log.set", level=level)
        assert logging.getLogger("okun").getEffectiveLevel() == getattr(logging, level)
        assert f"✓ {level}" in pressed.message.buttons


# -- messages to all chats


class Casting:
    """An owner who sends something to all chats."""

    def __init__(self, okun: Okun, room: Room) -> None:
        self.okun, self.room = okun, room

    def run(self) -> None:
        self.okun.app.spawn(bot.broadcast_loop(self.okun.app), "broadcast")

    async def ask(self) -> Reply:
        """Up to the question for the message."""
        [menu] = await self.room.say("/admin")
        shown = (await self.room.press(self.okun.t("menu.to.broadcast"), message=menu)).message
        return (await self.room.press(self.okun.t("broadcast.button.new"), message=shown)).message

    async def draft(self, kind: str = "say", *content: Any, **where: Any) -> Reply:
        """Up to the question to whom; the preview comes before it."""
        await self.ask()
        *_, whom = await self.room.send(kind, *(content or ("Great news",)), **where)
        return whom

    async def begin(self, to: str = "all") -> Reply:
        whom = self.room.replies[-1]
        data = next(one for one in whom.data if one.endswith(f".{to}"))
        sure = (await self.room.press_data(data, whom)).message
        return (await self.room.press_data(sure.data[0], sure)).message

    @property
    def state(self) -> Any:
        [row] = self.okun.rows("SELECT state, total, sent, gone, failed FROM broadcasts")
        return row

    def got(self, ids: list[int]) -> list[int]:
        """How many messages each of these chats got."""
        return [len(self.okun.telegram.sent(id_)) for id_ in ids]


@pytest.fixture
def casting(okun: Okun, owner: Room) -> Casting:
    return Casting(okun, owner)


async def test_a_broadcast_reaches_every_chat_once(okun: Okun, owner: Room, casting: Casting, later: Later) -> None:
    casting.run()
    group = okun.group()
    await group.say("hello")
    ids = [*await fill(okun, people=30), group.id]
    whom = await casting.draft()
    assert [reply.text for reply in owner.replies][-2] == "Great news"
    assert okun.t("broadcast.to.all", n=32) in whom.buttons and okun.t("broadcast.to.groups", n=1) in whom.buttons
    shown = await casting.begin()
    assert okun.t("broadcast.is.running", n=0, total=32) in shown.text
    await later(60)
    assert casting.got(ids) == [1] * 31 and okun.telegram.sent(ids[0])[0]["text"] == "Great news"
    assert casting.state == ("done", 32, 32, 0, 0)
    assert okun.t("broadcast.report.done", n=32, total=32) in owner.replies[-1].text


async def test_formatting_and_files_survive(okun: Okun, owner: Room, casting: Casting, later: Later) -> None:
    casting.run()
    [id_] = await fill(okun, people=1)
    await casting.draft("photo", b"x", "Look /here at https://example.org")
    await casting.begin()
    await later(10)
    [got] = okun.telegram.sent(id_)
    source = owner.chat.messages[owner.last_id]
    assert got["photo"] == source["photo"] and got["caption_entities"] == source["caption_entities"]


@pytest.mark.parametrize("kind", ["voice", "video_note", "sticker", "location", "poll", "document"])
async def test_a_message_of_any_kind_can_be_sent_on(okun: Okun, casting: Casting, later: Later, kind: str) -> None:
    casting.run()
    [id_] = await fill(okun, people=1)
    content: dict[str, tuple[Any, ...]] = {
        "location": (50.0, 30.0), "poll": ("Tea?", ["yes", "no"]), "document": (b"x", "a.pdf"), "voice": (b"x",),
        "video_note": (b"x",), "sticker": ("🙂",)
    }  # fmt: skip
    await casting.draft(kind, *content[kind])
    await casting.begin()
    await later(10)
    assert [kind in message for message in okun.telegram.sent(id_)] == [True]


async def test_several_messages_at_once_are_not_one(okun: Okun, owner: Room, casting: Casting) -> None:
    await casting.ask()
    replies = await owner.send("album", [b"a", b"b"])
    await okun.later(1)
    assert [reply.text for reply in owner.replies][-1] == okun.t("form.one") or replies
    assert okun.rows("SELECT * FROM broadcasts") == []
    await owner.say("then this")
    assert casting.state[0] == "draft"


@pytest.mark.parametrize(("to", "reached"), [("all", [1, 1, 1]), ("private", [1, 1, 0]), ("groups", [0, 0, 1])])
async def test_the_audience_is_chosen(
    okun: Okun, owner: Room, casting: Casting, later: Later, to: str, reached: list[int]
) -> None:
    casting.run()
    group = okun.group()
    await group.say("hello")
    ids = [*await fill(okun, people=2), group.id]
    await casting.draft()
    await casting.begin(to)
    await later(30)
    assert casting.got(ids) == reached


async def test_the_banned_the_gone_and_channels_are_left_out(okun: Okun, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=4)
    await bot.set_access(okun.app, ids[0], "banned")
    await bot.chat_left(okun.app, ids[1])
    await okun.app.db.write({bot.PUT_CHAT: [(-777, "channel", "News")]})
    await casting.draft()
    await casting.begin()
    await later(30)
    assert casting.got(ids) == [0, 0, 1, 1] and casting.state == ("done", 3, 3, 0, 0)


async def test_dead_chats_are_pruned_and_refusals_counted(okun: Okun, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=6)
    okun.telegram.fault("403", "copyMessage", chat_id=ids[0])
    okun.telegram.fault("400", "copyMessage", chat_id=ids[1], text="Bad Request: chat not found")
    okun.telegram.fault("400", "copyMessage", chat_id=ids[2], text="Bad Request: VOICE_MESSAGES_FORBIDDEN")
    okun.telegram.fault("429", "copyMessage", chat_id=ids[3], retry_after=7)
    okun.telegram.fault("timeout_after", "copyMessage", chat_id=ids[4])
    await casting.draft()
    await casting.begin()
    await later(90)
    assert casting.state == ("done", 7, 3, 2, 2)  # and the owner
    assert casting.got(ids) == [0, 0, 0, 1, 1, 1]
    gone = okun.rows("SELECT chat_id FROM chats WHERE gone_at IS NOT NULL ORDER BY chat_id")
    assert gone == [(ids[0],), (ids[1],)]


async def test_an_outage_is_waited_out(okun: Okun, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=10)
    await casting.draft()
    release = okun.wire.hold("copyMessage", after=4)
    await casting.begin()
    await later(5)
    okun.wire.down = True
    release.set()
    await later(1800)
    assert casting.state[0] == "running" and casting.state[4] == 0
    okun.wire.down = False
    await later(300)
    assert casting.state == ("done", 11, 11, 0, 0) and casting.got(ids) == [1] * 10


async def test_a_full_disk_sends_nothing_twice(
    okun: Okun, casting: Casting, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    casting.run()
    ids, left, note_cast = await fill(okun, people=3), [None] * 4, bot.note_cast

    async def full(*args: Any) -> Any:
        if left:
            left.pop()
            raise sqlite3.OperationalError("database or disk is full")
        return await note_cast(*args)

    await casting.draft()
    monkeypatch.setattr(bot, "note_cast", full)
    await casting.begin()
    await later(600)
    assert casting.state[0] == "done" and not left and casting.got(ids) == [1] * 3
    assert len(okun.called("copyMessage")) == 1 + 3 + 1  # the preview, three people, the owner


async def test_a_broadcast_goes_on_after_a_crash_where_it_was(okun: Okun, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=20)
    await casting.draft()
    okun.wire.hold("copyMessage", after=7)
    await casting.begin()
    await later(5)
    sent = casting.state[2]
    await okun.restart()
    assert 0 < sent < 10 and sum(casting.got(ids)) <= sent + 1
    casting.run()
    await later(60)
    assert casting.state == ("done", 21, 21, 0, 0) and sorted(casting.got(ids)) == [1] * 20


@settings(sends_per_second=10)
async def test_it_is_paced_and_gives_way(okun: Okun, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=60)
    await casting.draft()
    await later(60)
    await casting.begin()
    done = []
    for _ in range(4):
        await later(1)
        done.append(sum(casting.got(ids)))
    assert max(b - a for a, b in zip([0, *done], done, strict=False)) <= 5 and done[-1] >= 12
    before, start = done[-1], okun.clock.monotonic()
    for n in range(60):  # people talk: more than half of what may be sent
        okun.app.gate.pacing._overall.book(start + n / 8, start)  # type: ignore[union-attr]
    await later(7)
    assert sum(casting.got(ids)) - before <= 3
    await later(60)
    assert casting.state[0] == "done"


async def test_progress_is_shown_in_one_message(okun: Okun, owner: Room, casting: Casting, later: Later) -> None:
    okun.app.settings = okun.app.gate.settings = bot.dataclasses.replace(okun.settings, sends_per_second=4)  # type: ignore[attr-defined]
    casting.run()
    await fill(okun, people=60)
    await casting.draft()
    await casting.begin()
    edits = len(okun.called("editMessageText", owner))
    await later(15)
    texts = [edit["text"] for edit in okun.called("editMessageText", owner)[edits:]]
    assert 2 <= len(texts) <= 5 and "Time left: about " in texts[-1]
    progress = next(reply for reply in owner.replies if reply.text == texts[-1])
    assert progress.buttons == [okun.t("broadcast.button.stop")]
    pressed = await owner.press(okun.t("broadcast.button.stop"), message=progress)
    assert pressed.note == okun.t("broadcast.stopping")
    await later(30)
    assert casting.state[0] == "cancelled" and casting.state[2] < 40
    assert okun.t("broadcast.counts", sent=casting.state[2], gone=0, failed=0) in owner.replies[-1].text


async def test_the_report_of_a_stopped_broadcast_waits_for_telegram(
    okun: Okun, owner: Room, casting: Casting, later: Later
) -> None:
    casting.run()
    await fill(okun, people=10)
    await casting.draft()
    sending = okun.wire.hold("copyMessage", after=4)
    await casting.begin()
    await later(5)
    await owner.press(okun.t("broadcast.button.stop"))
    okun.wire.down = True
    sending.set()
    await later(1800)
    okun.wire.down = False
    await later(300)
    counts = okun.t("broadcast.counts", sent=casting.state[2], gone=0, failed=0)
    reports = [reply for reply in owner.replies if counts in reply.text and not reply.buttons]
    assert casting.state[0] == "cancelled" and len(reports) == 1


@settings(admin_ids=OWNERS)
async def test_one_broadcast_at_a_time(okun: Okun, owner: Room, casting: Casting, later: Later) -> None:
    other = Casting(okun, okun.private("Olena"))
    await other.room.say("/lang en")
    await fill(okun, people=3)
    for one in (casting, other):
        await one.draft()
    whom = other.room.replies[-1]
    sure = (await other.room.press_data(whom.data[0], whom)).message
    await casting.begin()
    refused = await other.room.press_data(sure.data[0], sure)
    assert refused.note == okun.t("broadcast.busy")
    [menu] = await other.room.say("/admin")
    shown = (await other.room.press(okun.t("menu.to.broadcast"), message=menu)).message
    assert okun.t("broadcast.button.new") not in shown.buttons  # but they may stop it
    assert (await other.room.press_data(f"d1:{OLENA}:cast_new:", shown)).note == okun.t("broadcast.busy")
    await other.room.press(okun.t("broadcast.button.stop"), message=shown)
    assert okun.rows("SELECT state FROM broadcasts ORDER BY id") == [("cancelled",), ("draft",)]
    assert (await other.room.press_data(sure.data[0], sure)).note == okun.t("broadcast.begun")


async def test_it_goes_to_whom_the_button_named(okun: Okun, owner: Room, casting: Casting) -> None:
    await fill(okun, people=3)
    whom = await casting.draft()
    everybody, people, _ = whom.data[:3]
    shown = (await owner.press_data(people, whom)).message
    again = (
        await owner.press_data(everybody, whom)
    ).message  # on another device, which still shows the question before
    assert (await owner.press_data(shown.data[0], again)).note == okun.t("button.old")
    assert casting.state[0] == "draft"
    assert (await owner.press_data(again.data[0], again)).note == okun.t("broadcast.begun")


async def test_a_message_that_was_deleted_ends_it(okun: Okun, owner: Room, casting: Casting, later: Later) -> None:
    casting.run()
    ids = await fill(okun, people=5)
    await casting.draft()
    del owner.chat.messages[owner.last_id]
    await casting.begin()
    await later(30)
    assert casting.state[0] == "cancelled" and casting.got(ids) == [0] * 5
    assert okun.t("broadcast.report.lost", n=0, total=6) in owner.replies[-1].text


async def test_a_draft_does_no_harm(okun: Okun, owner: Room, casting: Casting, later: Later, model: Script) -> None:
    casting.run()
    await fill(okun, people=2)
    await casting.ask()
    await owner.say("/cancel")
    assert [reply.text for reply in await owner.say("just talk")] == ["Heard: just talk"]
    await casting.draft()
    whom = owner.replies[-1]
    await okun.restart()
    casting.run()
    sure = (await owner.press_data(whom.data[0], whom)).message
    assert okun.t("broadcast.to.all", n=3) in sure.text
    await owner.say("/forget me")
    await owner.press(okun.t("forget.button.all"))
    pressed = await owner.press_data(sure.data[0], sure)
    assert pressed.note in (okun.t("broadcast.begun"), okun.t("broadcast.over"))
    await later(60)
    assert not okun.failures and okun.inbox_rows == []
    await casting.ask()
    await okun.restart()
    await owner.say("the message after a restart")
    assert okun.rows("SELECT state FROM broadcasts ORDER BY id")[-1] == ("draft",)
    assert model.asks[1:] == []


async def test_old_broadcasts_are_deleted(okun: Okun, casting: Casting, later: Later) -> None:
    await casting.draft()
    await later(31 * 86_400)
    await bot.broadcasts_clean(okun.app)
    assert okun.rows("SELECT * FROM broadcasts") == []


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_every_step_is_said_in_the_owners_language(
    okun: Okun, owner: Room, casting: Casting, later: Later, lang: str
) -> None:
    casting.run()
    await fill(okun, people=1)
    await owner.say(f"/lang {lang}")
    [menu] = await owner.say("/admin")
    shown = (await owner.press(okun.t("menu.to.broadcast", lang), message=menu)).message
    asked = (await owner.press(okun.t("broadcast.button.new", lang), message=shown)).message
    assert asked.text == okun.t("broadcast.ask", lang)
    *_, whom = await owner.say("News")
    assert whom.text == f"{okun.t('broadcast.preview', lang)}\n\n{okun.t('broadcast.whom', lang)}"
    await casting.begin()
    await later(10)
    assert owner.replies[-1].text.startswith(TEXTS(lang, "broadcast.report.done", n=2, total=2))
    assert {okun.t("button.old", lang)} <= bad_notes(okun)
