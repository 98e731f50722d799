"""What is heard is stored once, with its speaker and its place, and found again as the context of a reply."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from conftest import ANNA, NOON, TEXTS, Later, Okun, Room, Script
from fakes import FakeTelegram, Json

import bot


def raw(**fields: Any) -> Json:
    """A raw message of Anna in her private chat."""
    sender = {"id": ANNA, "is_bot": False, "first_name": "Anna", "last_name": "Perch", "language_code": "en"}
    chat = {"id": ANNA, "type": "private", "first_name": "Anna"}
    return {"message_id": 5, "date": int(NOON), "chat": chat, "from": sender, **fields}


def heard(**fields: Any) -> bot.Heard:
    found = bot.hear(raw(**fields))
    assert found
    return found


FILE = {"file_id": "f1", "file_unique_id": "u1", "file_size": 7}
SIZED = FILE | {"width": 90, "height": 60}


# -- what a message says

CONTENTS = [
    ({"text": "hi"}, "text", "hi", []),
    ({"text": "/quiet 2h"}, "command", "/quiet 2h", []),
    ({"photo": [SIZED]}, "photo", "", ["image/jpeg"]),
    ({"photo": [SIZED], "caption": "my cat"}, "photo", "my cat", ["image/jpeg"]),
    ({"sticker": SIZED | {"emoji": "😂", "is_animated": False, "is_video": False}}, "sticker", "😂", ["image/webp"]),
    ({"sticker": SIZED | {"emoji": "😂", "is_animated": True, "is_video": False}}, "sticker", "😂", []),
    ({"sticker": SIZED | {"is_animated": False, "is_video": True}}, "sticker", "", []),
    ({"voice": FILE | {"duration": 3}}, "voice", "", ["audio/ogg"]),
    ({"audio": FILE | {"duration": 3, "performer": "Cream", "title": "Badge"}}, "audio", "Cream – Badge",
    ["audio/mpeg"]),
    ({"audio": FILE | {"duration": 3, "file_name": "a.mp3", "mime_type": "audio/mp3"}}, "audio", "a.mp3",
    ["audio/mp3"]),
    ({"video": SIZED | {"duration": 3}, "caption": "look"}, "video", "look", ["video/mp4"]),
    ({"video_note": FILE | {"duration": 3, "length": 240}}, "video_note", "", ["video/mp4"]),
    ({"animation": SIZED | {"duration": 3}, "document": FILE}, "animation", "", ["video/mp4"]),
    ({"document": FILE | {"file_name": "a.py", "mime_type": "text/x-python"}}, "document", "a.py", ["text/x-python"]),
    ({"document": FILE}, "document", "", ["application/octet-stream"]),
    ({"poll": {"question": "Tea?", "options": [{"text": "yes"}, {"text": "no"}]}}, "poll", "Tea? — yes / no", []),
    ({"location": {"latitude": 50.45, "longitude": 30.523456}}, "location", "50.45000, 30.52346", []),
    ({"venue": {"title": "Bar", "address": "Pier 1"}, "location": {"latitude": 1, "longitude": 2}}, "venue",
     "Bar, Pier 1", []),
    ({"contact": {"first_name": "Ann", "last_name": "Lee", "phone_number": "1"}}, "contact", "Ann Lee", []),
    ({"dice": {"emoji": "🎲", "value": 6}}, "dice", "🎲 6", []),
]  # fmt: skip


@pytest.mark.parametrize(("content", "kind", "text", "mimes"), CONTENTS)
def test_every_kind_of_content_is_heard(content: Json, kind: str, text: str, mimes: list[str]) -> None:
    found = heard(**content)
    assert (found.kind, found.text, [entry["mime"] for entry in found.media]) == (kind, text, mimes)


@pytest.mark.parametrize("service", ["new_chat_members", "pinned_message", "forum_topic_created", "video_chat_started"])
def test_a_service_message_says_nothing(service: str) -> None:
    assert bot.hear(raw(**{service: {}})) is None


def test_of_a_photo_the_largest_size_is_kept() -> None:
    small, large = SIZED | {"file_id": "small"}, {**SIZED, "file_id": "large", "width": 900, "height": 600}
    assert heard(photo=[large, small]).media[0]["file_id"] == "large"


def test_of_a_photo_a_size_too_big_to_fetch_is_passed_over() -> None:
    huge = {**SIZED, "file_id": "huge", "width": 9000, "height": 6000, "file_size": 21 * 2**20}
    assert heard(photo=[SIZED, huge]).media[0]["file_id"] == "f1"
    assert heard(photo=[huge]).media[0]["file_id"] == "huge"


def test_media_are_kept_as_ids_and_facts_only() -> None:
    [entry] = heard(document=FILE | {"file_name": "a.pdf", "mime_type": "application/pdf", "thumbnail": SIZED}).media
    assert entry == FILE | {"kind": "document", "mime": "application/pdf", "file_name": "a.pdf"}


def test_a_text_of_any_length_is_stored_up_to_a_bound() -> None:
    assert len(heard(text="x" * 50_000).text) == bot.MAX_STORED_TEXT


@pytest.mark.parametrize("broken", [{"chat": None}, {"from": {}}, {"photo": []}, {"photo": [{}]}, {"voice": {}},
                                    {"poll": {}}, {"dice": {}}])  # fmt: skip
def test_rubbish_is_an_error_that_the_inbox_knows(broken: Json) -> None:
    content = {} if {"photo", "voice", "poll", "dice"} & broken.keys() else {"text": "hi"}
    with pytest.raises((KeyError, TypeError, ValueError)):
        bot.hear(raw(**(content | broken)))


# -- who says it


def test_a_user_is_heard_with_full_name_and_language() -> None:
    found = heard(text="hi")
    assert (found.user_id, found.name, found.language_code, found.silent) == (ANNA, "Anna Perch", "en", False)


GROUP = {"id": -100, "type": "supergroup", "title": "Pond"}
AS_GROUP = {"id": 1087968824, "is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}


def test_an_anonymous_admin_is_the_group_itself() -> None:
    found = heard(text="hi", chat=GROUP, sender_chat=GROUP, author_signature="boss", **{"from": AS_GROUP})
    assert (found.user_id, found.name, found.anonymous_admin, found.silent) == (-100, "boss", True, False)


def test_a_channel_speaks_as_itself() -> None:
    channel = {"id": -200, "type": "channel", "title": "News", "username": "news"}
    found = heard(text="hi", chat=GROUP, sender_chat=channel, **{"from": AS_GROUP})
    assert (found.user_id, found.name, found.username) == (-200, "News", "news")
    assert (found.anonymous_admin, found.silent) == (False, False)


def test_an_automatic_forward_is_never_answered() -> None:
    channel = {"id": -200, "type": "channel", "title": "News"}
    assert heard(text="hi", chat=GROUP, sender_chat=channel, is_automatic_forward=True).silent


def test_another_bot_is_never_answered() -> None:
    assert heard(text="hi", **{"from": {"id": 7, "is_bot": True, "first_name": "Other"}}).silent


ORIGINS = [
    ({"type": "user", "sender_user": {"id": 1, "first_name": "Ann", "last_name": "Lee"}}, "Ann Lee"),
    ({"type": "hidden_user", "sender_user_name": "Hidden"}, "Hidden"),
    ({"type": "chat", "sender_chat": {"id": -1, "title": "Club"}}, "Club"),
    ({"type": "channel", "chat": {"id": -1, "title": "News"}, "message_id": 3}, "News"),
    ({"type": "unheard of"}, "?"),
]


@pytest.mark.parametrize(("origin", "name"), ORIGINS)
def test_a_forward_names_its_origin(origin: Json, name: str) -> None:
    assert heard(text="hi", forward_origin=origin).origin == name


def test_a_thread_counts_only_in_a_forum() -> None:
    assert heard(text="hi", message_thread_id=9, is_topic_message=True).thread_id == 9
    assert heard(text="hi", message_thread_id=9).thread_id == 0  # a chain of replies in an ordinary group


def test_the_message_that_opened_a_topic_is_no_reply() -> None:
    opening = {"message_id": 9, "forum_topic_created": {"name": "Fish"}}
    assert heard(text="hi", reply_to_message=opening).reply_to is None
    assert heard(text="hi", reply_to_message={"message_id": 4, "text": "no"}).reply_to == 4


# -- how it is stored


async def test_all_that_is_seen_is_stored_once_with_the_answer(chat: Room) -> None:
    await chat.say("Hi")
    assert chat.rows("text, user_id, kind") == [("Hi", ANNA, "text"), ("Heard: Hi", None, "text")]


async def test_what_nobody_addressed_is_stored_too(okun: Okun, group: Room) -> None:
    await group.say("just talking")
    okun.telegram.user(500, "Robo", is_bot=True)
    await group.say("beep", by="Robo")
    await group.say("as the group", by="chat")
    assert group.rows() == ["just talking", "beep", "as the group"]


async def test_a_command_and_its_answer_are_stored_as_no_talk(chat: Room) -> None:
    [reply] = await chat.say("/lang en")
    assert chat.rows("kind, text") == [("command", "/lang en"), ("notice", reply.text)]


async def test_an_update_delivered_twice_is_stored_once(okun: Okun, group: Room) -> None:
    group.put("say", "once")
    update = okun.telegram.next_updates()
    await okun.feed(*update)
    await okun.feed(*update)
    await okun.feed({**update[0], "update_id": update[0]["update_id"] + 1})  # the same message again
    assert group.rows() == ["once"]


async def test_a_person_is_known_by_the_newest_name(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    okun.person("Anna")["first_name"] = "Hanna"
    await chat.say("It's me", by="Hanna")
    assert okun.rows("SELECT name FROM users WHERE user_id = ?", ANNA) == [("Hanna",)]


async def test_who_never_wrote_in_private_has_not_started_the_bot(okun: Okun, group: Room) -> None:
    await group.say("hi")
    assert okun.rows("SELECT started_at FROM users WHERE user_id = ?", ANNA) == [(None,)]
    await okun.private("Anna").say("hi")
    await group.say("hi again")
    assert okun.rows("SELECT started_at FROM users WHERE user_id = ?", ANNA) == [(int(NOON),)]


async def test_an_edit_changes_the_stored_text_and_mood(okun: Okun, group: Room, later: Later) -> None:
    await group.say("this is awful")
    await later(5)
    await group.edit(group.last_id, "this is great")
    [(text, mood, edited_at)] = group.rows("text, sentiment, edited_at")
    assert (text, mood > 0, edited_at) == ("this is great", True, int(NOON) + 5)


async def test_an_edit_is_not_answered(chat: Room) -> None:
    await chat.say("Hi")
    await chat.edit(chat.last_id, "Hello")
    assert len(chat.replies) == 1
    assert chat.rows()[0] == "Hello"


async def test_an_edit_of_something_never_seen_changes_nothing(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    await okun.feed({"update_id": 9000, "edited_message": raw(message_id=777, text="who?", edit_date=int(NOON))})
    assert chat.rows() == ["Hi", "Heard: Hi"]


async def test_an_edited_caption_keeps_the_file(okun: Okun, chat: Room) -> None:
    await chat.send("photo", b"cat", "cat")
    await chat.edit(chat.last_id, "kitten")
    [(text, media)] = chat.rows("text, media", "kind = 'photo'")
    assert text == "kitten" and "photo-" in media


async def test_replies_forwards_threads_and_albums_keep_their_place(okun: Okun) -> None:
    group = okun.group(forum=True)
    fish = group.topic("Fish")
    await fish.say("one")
    first = fish.last_id
    await fish.say("two", reply_to=first, forward_origin={"type": "hidden_user", "sender_user_name": "Ghost"})
    await fish.send("album", [b"1", b"2"])
    rows = fish.rows("thread_id, reply_to, origin, album IS NOT NULL")
    assert rows == [(fish.thread, None, None, 0), (fish.thread, first, "Ghost", 0), *[(fish.thread, None, None, 1)] * 2]


async def test_no_bytes_of_a_file_are_stored_or_fetched_unasked(okun: Okun, group: Room) -> None:
    await group.send("photo", b"SECRETBYTES")
    assert okun.wire.downloads == []
    assert b"SECRETBYTES" not in okun.path.read_bytes()


# -- the window


def past(**fields: Any) -> bot.Past:
    plain = bot.Past(1, 1, ANNA, int(NOON), "text", "hi", None, None, None, "Anna", None, None, None, None)
    return plain._replace(**fields)


LINES = [
    (past(), "Anna: hi"),
    (past(name=None), "?: hi"),
    (past(kind="photo", text="my cat", media='[{"kind": "photo"}]'), "Anna: [photo] my cat"),
    (past(kind="voice", text="", media='[{"duration": 3}]'), "Anna: [voice 3 s]"),
    (past(kind="video_note", text="", media='[{"duration": 3}]'), "Anna: [video note 3 s]"),
    (past(kind="sticker", text="😂"), "Anna: [sticker] 😂"),
    (past(kind="document", text="a.py", media='[{"file_name": "a.py"}]'), "Anna: [document a.py] a.py"),
    (past(origin="News"), "Anna: [forwarded from News] hi"),
    (past(reply_row=3, reply_text="What?", reply_user_id=12, reply_name="Borys"),
     "Anna: [replying to Borys: “What?”] hi"),
    (past(reply_row=3, reply_text="Me.", reply_user_id=None), "Anna: [replying to you: “Me.”] hi"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "line"), LINES)
def test_a_line_tells_speaker_reply_and_file(row: bot.Past, line: str) -> None:
    assert bot.line_of(row, names=True) == line
    assert bot.line_of(row, names=False) == line.partition(": ")[2]


@pytest.mark.parametrize(("seconds", "words"), [(0, ""), (3599, ""), (3600, "1 hour later"), (3 * 3600,
                                                "3 hours later"),
                                                (86400, "1 day later"), (3 * 86400 + 5, "3 days later")])  # fmt: skip
def test_gaps_are_told_in_words(seconds: int, words: str) -> None:
    assert bot.gap_words(seconds) == words


async def test_the_window_has_names_replies_and_gaps(group: Room, later: Later, model: Script) -> None:
    await group.say("Who has bait?")
    await later(3 * 3600)
    await group.say("I do", by="Borys", reply_to=group.last_id)
    await group.say("okun, tell them")
    assert model.past == [
        "user: Anna: Who has bait?",
        "user: (3 hours later)\nBorys: [replying to Anna: “Who has bait?”] I do",
    ]
    assert model.heard == "Anna: okun, tell them"


async def test_the_current_message_is_said_exactly_once(chat: Room, model: Script) -> None:
    await chat.say("one")
    await chat.say("two")
    assert (model.past, model.heard) == (["user: one", "model: Heard: one"], "two")


async def test_an_excerpt_of_a_reply_is_short(group: Room, model: Script) -> None:
    await group.say("long " * 50)
    await group.say("okun: this", reply_to=group.last_id)
    line = model.heard.splitlines()[-1]
    assert len(line) < 150 and line.endswith("…”] okun: this")


async def test_commands_and_notices_are_no_context(chat: Room, model: Script) -> None:
    await chat.say("/help")
    await chat.say("Hi")
    assert model.past == []


@pytest.mark.settings(context_messages=4)
async def test_the_window_is_bounded_in_messages(chat: Room, model: Script) -> None:
    for number in range(5):
        await chat.say(f"n{number}")
    assert model.past == ["user: n2", "model: Heard: n2", "user: n3", "model: Heard: n3"]


def test_the_window_is_bounded_in_tokens_newest_first() -> None:
    rows = [past(message_id=9 - n, text="x" * 40, sent_at=int(NOON)) for n in range(9)]
    entries, now = bot.conversation(rows, frozenset({9}), 11 * 4, names=False, persona="okun")
    assert (len(entries), len(now)) == (3, 1)


def test_the_current_message_comes_first_in_any_budget() -> None:
    rows = [past(text="now " * 50), past(message_id=0, text="before " * 50)]
    entries, now = bot.conversation(rows, frozenset({1}), 60, names=False, persona="okun")
    assert (entries, now) == ([], ["now " * 50])
    entries, [line] = bot.conversation(rows, frozenset({1}), 5, names=False, persona="okun")
    assert entries == [] and line.startswith("now")


async def test_a_models_own_parts_come_back_unchanged(chat: Room, model: Script) -> None:
    parts = ({"text": "Hm", "thoughtSignature": "c2ln"},)
    model.always(bot.Answer("Hm", model="gemini-x", raw=parts))
    await chat.say("one")
    await chat.say("two")
    assert model.asks[-1].said[1] == bot.Said("model", "Hm", (), parts, "gemini-x")


async def test_the_prompt_tells_time_place_and_speaker(group: Room, model: Script) -> None:
    await group.say("okun, hi", by="Vira")
    system = model.asks[-1].system
    assert "“Pond”" in system and "Vira" in system and "Wednesday, 2026-05-13 12:00" in system


async def test_reset_begins_anew_and_forgets_nothing(chat: Room, model: Script) -> None:
    await chat.say("old")
    await chat.say("/reset")
    await chat.say("new")
    assert (model.past, model.heard) == ([], "new")
    assert "old" in chat.rows()


async def test_reset_of_one_topic_leaves_the_others(okun: Okun, model: Script) -> None:
    group = okun.group(forum=True)
    fish, cats = group.topic("Fish"), group.topic("Cats")
    await fish.say("okun, about fish")
    await cats.say("okun, about cats")
    await fish.say("/reset", by="Olena")
    await cats.say("okun, more")
    assert model.past[0] == "user: Anna: okun, about cats"
    await fish.say("okun, more")
    assert model.past == []


async def test_a_reset_outlives_a_restart(okun: Okun, chat: Room) -> None:
    await chat.say("old")
    await chat.say("/reset")
    await okun.restart()
    await chat.say("new")
    assert okun.model.past == []


# -- a group becomes a supergroup


async def test_a_language_chosen_while_the_old_one_is_read_is_the_one_that_stays(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat.say("hello")
    read, read_out = okun.app.db.reader.one, asyncio.Event()

    async def slowly(sql: str, *args: Any) -> Any:
        row = await read(sql, *args)
        await read_out.wait()
        return row

    monkeypatch.setattr(okun.app.db.reader, "one", slowly)
    okun.app.langs.clear()
    asked = [asyncio.create_task(bot.lang_of(okun.app, ANNA)) for _ in range(2)]
    await okun.settle()
    await bot.set_lang(okun.app, ANNA, "ru")
    read_out.set()
    await asyncio.gather(*asked)
    assert await bot.lang_of(okun.app, ANNA) == "ru"


async def test_migration_takes_history_settings_and_resets_along(okun: Okun, later: Later) -> None:
    group = okun.group(kind="group")
    await group.say("okun, before")
    await group.say("/quiet 2h")
    await group.say("/reset", by="Olena")
    await group.say("okun, after the reset")
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    await new.say("okun, in the new one")
    assert group.rows() == []
    assert okun.model.past == ["user: Anna: okun, after the reset", "model: Heard: Anna: okun, after the reset"]
    [(kind, quiet)] = okun.rows("SELECT kind, quiet_until FROM chats WHERE chat_id = ?", new.id)
    assert (kind, quiet) == ("supergroup", int(NOON) + 7200)


async def test_after_migration_no_form_knows_a_message_of_the_old_group(okun: Okun) -> None:
    group = okun.group(kind="group")
    await group.say("okun, before", by="Anna")
    who = bot.Who(group.id, 0, ANNA, "en", private=False)
    await bot.put_form(okun.app, who, bot.Form("draw", {}, "prompt", 77))
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    await okun.restart()
    assert okun.app.forms[new.id, ANNA, "draw"].message_id is None  # there it would be somebody else's


async def test_migration_also_where_the_new_group_spoke_first(okun: Okun) -> None:
    group = okun.group(kind="group")
    await group.say("before")
    await group.say("/quiet 2h")
    await group.say("/reset", by="Olena")
    await group.say("okun, after the reset")
    migrated = okun.telegram.migrate(group.chat)
    new, waiting = Room(okun, migrated), okun.telegram.next_updates()
    await new.say("okun, first")
    await okun.feed(*waiting)
    await new.say("okun, second")
    assert [line for line in okun.model.past if "before" in line] == []
    assert sorted(new.rows(where="kind = 'text' AND user_id IS NOT NULL")) == sorted(
        ["before", "okun, after the reset", "okun, first", "okun, second"]
    )
    assert okun.rows("SELECT quiet_until FROM chats WHERE chat_id = ?", new.id) == [(int(NOON) + 7200,)]


async def test_a_send_into_a_migrated_group_finds_the_new_one(okun: Okun, model: Script) -> None:
    group = okun.group(kind="group")
    model.held = True
    await group.say("okun?")
    new = Room(okun, okun.telegram.migrate(group.chat))
    model.writing[0].end("Here")
    await okun.settle()
    assert [reply.text for reply in new.replies] == ["Here"]
    assert new.rows(where="user_id IS NULL") == ["Here"]


def test_the_texts_and_the_fake_are_in_one_mind() -> None:
    assert FakeTelegram().me["id"] == 42 and TEXTS("en", "lang.name") == "English"
