"""Who the bot is in a chat: built-in and own personas, the wizard, versions, links, and what goes with somebody."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, TEXTS, Dice, Later, Okun, Pressed, Reply, Room, Script, settings

import bot

LONG_NAME = "Ліниве Літо Ловить Линів, Лящів, Лососів і Лобанів"  # 50 letters
QUESTIONS = ("name", "description", "bio", "character", "speech", "likes", "dislikes", "goals", "taboos")
LONGEST = "Ї" * 2500


def at_home(room: Room, name: str | None = None) -> bot.Who:
    """Somebody as the bot sees them in private."""
    user_id = room.okun.person(name or room.by)["id"]
    return bot.Who(user_id, 0, user_id, "en", private=True)


async def make(room: Room, name: str = "Captain Cat", by: str | None = None, **fields: Any) -> int:
    """A persona of whoever speaks here, without the wizard; its id."""
    who = at_home(room, by)
    text = bot.PersonaText(**{"name": name, "description": "A cat who sails.", **fields})
    return await bot.save_persona(room.okun.app, who, who.user_id, None, text)


async def change(room: Room, persona_id: int, by: str | None = None, **fields: Any) -> None:
    """Another version of it."""
    who = at_home(room, by)
    own = await bot.my_persona(room.okun.app, who.user_id, str(persona_id))
    await bot.save_persona(room.okun.app, who, who.user_id, persona_id, own.text._replace(**fields))


async def be(room: Room, persona_id: int | str, by: str | None = None) -> None:
    """Make the bot that persona here, as an administrator by that name would."""
    owner = room.okun.person(by or room.by)["id"]
    async with room.okun.app.db.tx() as tx:
        await tx.run("INSERT INTO chats (chat_id, kind, title) VALUES (?, ?, '?') ON CONFLICT DO NOTHING", room.id,
                     room.chat.card["type"])  # fmt: skip
    who = bot.Who(room.id, 0, owner, "en", private=room.id > 0, anonymous_admin=room.id < 0)
    await bot.bind_persona(room.okun.app, who, owner, str(persona_id))


async def click(room: Room, key: str, **how: Any) -> Pressed:
    return await room.press(room.okun.t(f"persona.button.{key}"), **how)


def choice(form: Reply, field: str) -> str:
    """The data of the button that sets a field to its next value."""
    return next(data for data in form.data if f":pcyc:{field}." in data)


async def kill_before_the_end(okun: Okun, room: Room, text: str) -> None:
    """Somebody says that, all is done and sent, and the bot is killed before the update is over; then it starts."""
    write = okun.app.db.write

    async def killed(writes: Any) -> None:
        if bot.DONE_INBOX in writes:
            await asyncio.Event().wait()
        await write(writes)

    okun.app.db.write = killed  # type: ignore[method-assign]
    await room.say(text)
    assert len(okun.inbox_rows) == 1
    await okun.restart()
    assert okun.inbox_rows == []


async def begin(room: Room) -> Reply:
    """The first question of the wizard."""
    await room.say("/personas")
    return (await click(room, "new")).message


def names(okun: Okun) -> list[tuple[int, str]]:
    """(whose, name) of all personas as they stand."""
    return okun.rows(
        """SELECT p.user_id, v.name FROM personas p JOIN persona_versions v ON v.persona_id = p.id
           AND v.version = p.version ORDER BY p.id"""
    )


def left_in(okun: Okun, words: list[str]) -> list[str]:
    """Those of the words that are in the bytes of the database's files; half a word where a page ends within it."""
    data = b"".join(path.read_bytes() for path in okun.path.parent.glob("okun.db*"))
    return [word for word in words if word[:12].encode() in data or word[12:].encode() in data]


def link_in(panel: Reply) -> str:
    """The token in a panel that shares a persona."""
    return panel.text.split("?start=persona_")[1].split()[0]


# -- the wizard


async def test_the_wizard_asks_nine_things_and_the_next_turn_is_answered_as_that(
    okun: Okun, chat: Room, model: Script
) -> None:
    question = await begin(chat)
    for field in QUESTIONS:
        low, high = bot.LENGTHS[field]
        assert question.text == okun.t(f"persona.ask.{field}", low=low, high=high)
        [question] = await chat.say(f"the {field} of a cat")
    assert model.asks == [] and names(okun) == []
    saved = await click(chat, "save")
    assert saved.note == okun.t("persona.saved") and names(okun) == [(ANNA, "the name of a cat")]
    bound = await click(chat, "use")
    assert bound.note == okun.t("persona.bound", name="the name of a cat")
    await chat.say("hi")
    assert all(f"the {field} of a cat" in model.asks[-1].system for field in QUESTIONS)
    assert "perch" not in model.asks[-1].system


async def test_all_that_may_be_skipped_is(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.say("Cat")
    await chat.say("A cat.")
    for _ in bot.TRAITS:
        pressed = await click(chat, "skip")
    assert okun.t("persona.form") in pressed.message.text
    await click(chat, "save")
    [row] = okun.rows("SELECT * FROM persona_versions")
    assert row == (1, 1, int(NOON), "Cat", "A cat.", *[""] * 7, "natural", "normal", 1, "", "look")


async def test_a_field_changed_after_skipping_the_rest_leads_back_to_the_form(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.say("Cat")
    await chat.say("A cat.")
    await click(chat, "skip_all")
    await chat.press(okun.t("persona.field.name"))
    [reply] = await chat.say("Tomcat")
    assert okun.t("persona.form") in reply.text and "Tomcat" in reply.text


@pytest.mark.parametrize(
    ("field", "bad", "good"),
    [("name", "Ї", "Її"), ("name", "Ї" * 51, "Ї" * 50), ("description", LONGEST + "!", LONGEST), ("bio", "🐟" * 501,
     "🐟" * 500)],
)  # fmt: skip
async def test_what_is_too_short_or_too_long_is_asked_again(
    okun: Okun, chat: Room, field: str, bad: str, good: str
) -> None:
    await begin(chat)
    for word in QUESTIONS[: QUESTIONS.index(field)]:
        await chat.say(f"some {word}")
    low, high = bot.LENGTHS[field]
    assert [reply.text for reply in await chat.say(bad)] == [
        okun.t("persona.length", low=low, high=high, count=len(bad))
    ]
    [reply] = await chat.say(good)
    after = QUESTIONS[QUESTIONS.index(field) + 1]
    assert reply.text == okun.t(f"persona.ask.{after}", low=bot.LENGTHS[after][0], high=bot.LENGTHS[after][1])


async def test_ten_thousand_letters_are_one_answer_that_is_refused(okun: Okun, chat: Room, later: Later) -> None:
    await begin(chat)
    await chat.say("Cat")
    for part in ("Ї " * 2047 + "Її", "Ї " * 2047 + "Її", "Ї " * 903 + "Її"):
        chat.put("say", part)
    await okun.take()
    await later(2)
    assert chat.replies[-1].text == okun.t("persona.length", low=1, high=2500, count=10_002)
    assert okun.rows("SELECT asks FROM forms") == [("description",)]


async def test_what_is_no_text_is_no_answer(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    for kind, content in (("photo", (b"x", "Cat")), ("sticker", ()), ("say", ("\u200b \u2060",))):
        assert [reply.text for reply in await chat.send(kind, *content)] == [okun.t("form.words")]
    assert model.asks == [] and (await chat.say("Cat"))[0].text.startswith(okun.t("persona.ask.description", high=2500))


async def test_answers_are_no_talk_in_no_way(okun: Okun, chat: Room, model: Script) -> None:
    """Not in the window, not in recall; indexed before they were known for what they are, either."""
    await begin(chat)
    sending = okun.wire.hold("sendMessage")
    await chat.say("Qzxcat")
    await bot.index_messages(okun.app)
    sending.set()
    await okun.settle()
    await chat.say("A qzxcat who sails")
    answer = chat.last_id
    while await bot.index_messages(okun.app):
        pass
    await chat.say("/cancel")
    await chat.edit(answer, "A qzxcat who sails indeed")
    await chat.say("hi, is there a qzxcat?")
    assert model.past == [] and "sails" not in model.asks[-1].system
    assert okun.rows("SELECT words FROM passages WHERE words LIKE '%qzx%'") == []


async def test_an_answer_that_was_refused_is_no_talk_either(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    await chat.say("A cat who sails the seven seas and could not be shortened to fit")
    await chat.say("/cancel")
    await chat.say("hi")
    assert model.past == []


async def test_an_answer_whose_next_question_could_not_be_sent_is_still_an_answer(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    await begin(chat)
    okun.wire.down = True
    await chat.say("Cat")
    await later(60)
    okun.wire.down = False
    await later(60)
    assert model.asks == [] and chat.replies[-1].text == okun.t("persona.ask.description", high=2500)


async def test_a_kill_before_the_next_question_asks_it_after_the_start(okun: Okun, chat: Room) -> None:
    await begin(chat)
    okun.wire.hold("sendMessage")
    await chat.say("Cat")
    await okun.restart()
    assert okun.model.asks == [] and chat.replies[-1].text == okun.t("persona.ask.description", high=2500)


async def test_a_kill_between_the_next_question_and_the_end_does_not_take_the_same_words_twice(
    okun: Okun, chat: Room
) -> None:
    await begin(chat)
    await kill_before_the_end(okun, chat, "Cat")
    assert okun.rows("SELECT asks FROM forms") == [("description",)]
    assert [reply.text for reply in chat.replies] == [okun.t("persona.ask.description", high=2500)]
    await kill_before_the_end(okun, chat, "A cat.")
    [reply] = await chat.say("Born at sea")
    assert reply.text == okun.t("persona.ask.character", high=500) and okun.model.asks == []
    await click(chat, "skip_all")
    await click(chat, "save")
    found = okun.rows("SELECT name, description, bio, character FROM persona_versions")
    assert found == [("Cat", "A cat.", "Born at sea", "")]


async def test_a_kill_after_the_last_words_of_a_form_does_not_make_talk_of_them(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    await chat.press(okun.t("persona.field.bio"))
    await kill_before_the_end(okun, chat, "Born at sea")
    assert okun.model.asks == [] and len(chat.replies) == 1
    assert okun.t("persona.form") in chat.replies[0].text and "Born at sea" in chat.replies[0].text
    assert [reply.text for reply in await chat.say("hi")] == ["Heard: hi"] and okun.model.past == []


async def test_a_restart_goes_on_with_the_same_question(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.say("Cat")
    await okun.restart()
    [reply] = await chat.say("A cat.")
    assert reply.text == okun.t("persona.ask.bio", high=500) and okun.model.asks == []
    assert len(chat.replies) == 1  # of the questions only the one that is open stands there


async def test_whoever_cancels_talks_again_and_finds_the_draft(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    await chat.say("Cat")
    assert [reply.text for reply in await chat.say("/cancel")] == [okun.t("cancel.form")]
    assert [reply.text for reply in await chat.say("how are you?")] == ["Heard: how are you?"]
    [panel] = await chat.say("/personas")
    assert okun.t("persona.button.new") not in panel.buttons
    await click(chat, "continue")
    [reply] = await chat.say("A cat.")
    assert reply.text == okun.t("persona.ask.bio", high=500)


async def test_a_question_of_a_former_version_is_answered_kindly(okun: Okun, chat: Room) -> None:
    await begin(chat)
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE forms SET asks = 'former'")
    await okun.restart()
    assert len(await chat.say("Cat")) == 1
    assert [reply.text for reply in await chat.say("/cancel")] == [okun.t("cancel.form")]


async def test_another_menu_or_command_ends_the_asking(okun: Okun, chat: Room) -> None:
    question = await begin(chat)
    await chat.press(okun.t("menu.back"), message=question)
    assert [reply.text for reply in await chat.say("one")] == ["Heard: one"]
    [panel] = await chat.say("/personas")  # nothing was filled in: there is no draft
    assert okun.t("persona.button.continue") not in panel.buttons
    await click(chat, "new")
    await chat.say("/help")
    assert [reply.text for reply in await chat.say("two")] == ["Heard: two"]


async def test_choices_go_round_and_come_with_the_version(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    for field, values in bot.CHOICES.items():
        form, shown = chat.replies[-1], []
        for _ in range(len(values) + 1):
            shown += [label for label in form.buttons if label.startswith(okun.t(f"persona.field.{field}") + ":")]
            form = (await chat.press(choice(form, field), message=form)).message
        assert shown[-1] == shown[0] and len(set(shown)) == len(values) == len(shown) - 1
    assert okun.rows("SELECT count(*) FROM persona_versions") == [(1,)]
    await click(chat, "save")
    found = okun.rows("SELECT style, verbosity, most, group_policy, media_policy FROM persona_versions WHERE version=2")
    assert found == [("playful", "long", 2, "always", "asked")] and persona_id == 1


async def test_a_choice_pressed_twice_at_once_is_made_once(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    form = (await click(chat, "edit")).message
    for field in bot.CHOICES:
        for _ in range(2):
            okun.telegram._pressed(okun.person("Anna"), form.raw, choice(form, field))
    await okun.take()
    shown = next(reply for reply in chat.replies if reply.id == form.id)
    for field in bot.CHOICES:
        assert int(choice(shown, field)[-1]) == (int(choice(form, field)[-1]) + 1) % len(bot.CHOICES[field])
    await click(chat, "save")
    found = okun.rows("SELECT style, verbosity, most, group_policy, media_policy FROM persona_versions WHERE version=2")
    assert found == [("playful", "long", 2, "always", "asked")] and okun.failures == {}


async def test_a_discarded_draft_is_gone(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    await chat.press(okun.t("persona.field.name"))
    await chat.say("Somebody else")
    assert (await click(chat, "drop")).note == okun.t("persona.dropped")
    assert names(okun) == [(ANNA, "Captain Cat")] and okun.rows("SELECT * FROM forms") == []


async def test_a_trait_can_be_cleared_and_a_name_cannot(okun: Okun, chat: Room) -> None:
    await make(chat, bio="Born at sea")
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    form = (await chat.press(okun.t("persona.field.name"))).message
    assert form.buttons == [okun.t("menu.back")] and "Captain Cat" in form.text
    assert (await chat.press_data(f"d1:{ANNA}:pskip:name", form)).note == okun.t("button.old")
    await chat.press(okun.t("menu.back"))
    await chat.press(okun.t("persona.field.bio"))
    assert "Born at sea" not in (await click(chat, "clear")).message.text
    await click(chat, "save")
    assert okun.rows("SELECT name, bio FROM persona_versions WHERE version = 2") == [("Captain Cat", "")]


async def test_saving_twice_at_once_makes_one_persona(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.say("Cat")
    await chat.say("A cat.")
    form = (await click(chat, "skip_all")).message
    for _ in range(3):
        okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("persona.button.save"), form.id)
    await okun.take()
    assert names(okun) == [(ANNA, "Cat")] and okun.rows("SELECT * FROM forms") == []
    notes = [answer.get("text") for answer in okun.telegram.answered.values()]
    assert len(notes) == 5 and notes[2] == okun.t("persona.saved")


async def test_what_is_edited_while_it_is_deleted_is_saved_as_a_new_one(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat, likes="fish")
    await change(chat, persona_id, likes="perch")
    await be(chat, persona_id)
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    await chat.press(okun.t("persona.field.bio"))
    [form] = await chat.say("Born at sea")
    assert await bot.delete_persona(okun.app, ANNA, persona_id)
    assert (await click(chat, "save", message=form)).note == okun.t("persona.saved")
    [row] = okun.rows("SELECT persona_id, version, name, bio, likes FROM persona_versions")
    assert row == (row[0], 1, "Captain Cat", "Born at sea", "perch") and row[0] != persona_id
    assert okun.rows("SELECT * FROM forms") == [] and okun.rows("SELECT persona_id FROM chats") == [(None,)]
    assert (await chat.press_data(f"d1:{ANNA}:psave:", form)).note is None
    assert names(okun) == [(ANNA, "Captain Cat")]


@pytest.mark.parametrize("wait", ["", "deleteMessage", "sendMessage"])
@pytest.mark.parametrize("first", ["words", "save"])
async def test_a_save_while_words_arrive_leaves_nothing_half_made(
    okun: Okun, chat: Room, model: Script, first: str, wait: str
) -> None:
    """Whichever comes first, and wherever the words are when it is saved."""
    await begin(chat)
    await chat.say("Cat")
    question = (await chat.say("A cat."))[0]
    waiting = okun.wire.hold(wait) if wait else asyncio.Event()
    for what in ("words", "save") if first == "words" else ("save", "words"):
        if what == "words":
            chat.put("say", "Born at sea")
        else:
            okun.telegram._pressed(okun.person("Anna"), question.raw, f"d1:{ANNA}:psave:")
        if wait:
            await okun.take()
    await okun.take()
    waiting.set()
    await okun.settle()
    assert okun.rows("SELECT * FROM forms") == [] and okun.inbox_rows == []
    assert names(okun) == [(ANNA, "Cat")]
    await okun.restart()
    assert [reply.text for reply in await chat.say("hi")] == ["Heard: hi"]
    assert okun.t("persona.button.new") in (await chat.say("/personas"))[0].buttons


async def test_what_was_edited_is_kept_where_the_same_one_is_edited_again(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    form = (await click(chat, "edit")).message
    again = await chat.press_data(f"d1:{ANNA}:pedit:1", form)  # nothing is changed so far: this is no draft
    assert again.note is None and okun.t("persona.button.new") in (await chat.say("/personas"))[0].buttons
    await chat.press_data(f"d1:{ANNA}:pedit:1", form)
    await chat.press(okun.t("persona.field.bio"), message=form)
    await chat.say("Born at sea")
    [card] = await chat.say("/personas captain cat")
    assert "Born at sea" not in card.text
    again = await click(chat, "edit", message=card)
    assert again.note == okun.t("persona.unfinished", name="Captain Cat") and "Born at sea" in again.message.text
    await click(chat, "save", message=again.message)
    assert okun.rows("SELECT version, bio FROM persona_versions") == [(1, ""), (2, "Born at sea")]


@pytest.mark.parametrize("place", ["personas", "wizard", "form"])
async def test_a_draft_can_be_discarded_wherever_it_is_met(okun: Okun, chat: Room, model: Script, place: str) -> None:
    question = await begin(chat)
    assert okun.t("persona.button.drop") in question.buttons
    for word in ("Cat", "A cat."):
        [question] = await chat.say(word)
        assert okun.t("persona.button.drop") in question.buttons
    if place == "personas":
        [question] = await chat.say("/personas")
        assert okun.t("persona.button.continue") in question.buttons
    elif place == "form":
        question = (await click(chat, "skip_all")).message
    dropped = await click(chat, "drop", message=question)
    assert dropped.note == okun.t("persona.dropped") and okun.t("persona.button.new") in dropped.message.buttons
    assert okun.t("persona.button.continue") not in dropped.message.buttons
    assert okun.rows("SELECT * FROM forms") == [] and names(okun) == []
    assert [reply.text for reply in await chat.say("hi")] == ["Heard: hi"] and model.past == []


async def test_editing_another_one_does_not_throw_an_unfinished_one_away(okun: Okun, chat: Room) -> None:
    await make(chat)
    await begin(chat)
    await chat.say("A name thought of for an hour")
    await chat.say("/personas captain cat")
    await click(chat, "edit")
    [(data,)] = okun.rows("SELECT data FROM forms")
    assert "A name thought of for an hour" in data


async def test_words_and_presses_at_once_are_all_counted(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    form = (await click(chat, "edit")).message
    question = (await chat.press(okun.t("persona.field.bio"))).message
    chat.put("say", "Born at sea")
    for name in ("style", "verbosity", "most"):
        okun.telegram._pressed(okun.person("Anna"), question.raw, choice(form, name))
    await okun.take()
    await click(chat, "save")
    found = okun.rows("SELECT bio, style, verbosity, most FROM persona_versions WHERE version = 2")
    assert found == [("Born at sea", "playful", "long", 2)]


async def test_there_is_no_wizard_in_groups(okun: Okun, group: Room) -> None:
    await group.say("/personas")
    assert (await click(group, "new")).note == okun.t("form.only_private")
    persona_id = await make(group)
    [panel] = await group.say("/personas Captain Cat")
    for data in (f"d1:{ANNA}:pedit:{persona_id}", f"m2:{ANNA}:pq:name", f"m2:{ANNA}:pform:"):
        assert (await group.press_data(data, panel)).note in (okun.t("form.only_private"), okun.t("form.over"))
    await group.press_data(f"d1:{ANNA}:psave:", panel)
    assert names(okun) == [(ANNA, "Captain Cat")]
    assert okun.rows("SELECT * FROM forms") == []


ANY_NAMES = (LONG_NAME, "🐟" * 50, "{name} %s <b>*_`\\", "Дар'я з «Дніпра»")


async def test_any_name_goes_through_every_panel(okun: Okun) -> None:
    big = 2**52 - 1
    okun.telegram.user(big, "Big", "uk")
    chat = okun.private("Big")
    for name in ANY_NAMES:
        persona_id = await make(chat, name, description="🐟" * 2500, **dict.fromkeys(bot.TRAITS, "🐟" * 500))
        [card] = await chat.say(f"/personas {name}")
        assert card.text.startswith(name)
        seen = {*card.data}
        for panel in (f"ph:{persona_id}", f"pv:{persona_id}.1", f"pd:{persona_id}", "personas:", "persona:"):
            pressed = await chat.press_data(f"m2:{big}:{panel}", card)
            assert pressed.note is None
            seen |= {*pressed.message.data}
        shared = await chat.press_data(f"d1:{big}:plink:{persona_id}", card)
        assert "?startgroup=persona_" in shared.message.text
        [offer] = await chat.say(f"/start persona_{link_in(shared.message)}")
        assert name in offer.text
        assert all(len(data.encode()) <= 64 for data in seen | {*offer.data})
        bound = await chat.press_data(f"d1:{big}:pbind:{persona_id}", card)
        assert bound.note == okun.t("persona.bound", "uk", name=name)


# -- versions


async def test_each_save_is_a_version_and_a_rollback_is_one_more(okun: Okun, chat: Room, model: Script) -> None:
    persona_id = await make(chat)
    await be(chat, persona_id)
    await change(chat, persona_id, name="Captain Dog", description="A dog who sails.")
    await change(chat, persona_id)  # nothing new: no version
    await chat.say("/personas captain dog")
    history = (await click(chat, "history")).message
    assert [label.split(" – ")[1] for label in history.buttons[:-1]] == ["Captain Dog", "Captain Cat"]
    assert okun.t("persona.button.restore") not in (await chat.press(history.buttons[0])).message.buttons
    await chat.press(okun.t("menu.back"))
    await chat.press(history.buttons[1])
    restored = await click(chat, "restore")
    assert restored.note == okun.t("persona.restored", number=1) and "A cat who sails." in restored.message.text
    assert okun.rows("SELECT version, name FROM persona_versions") == [
        (1, "Captain Cat"),
        (2, "Captain Dog"),
        (3, "Captain Cat"),
    ]
    await chat.say("hi")
    assert "A cat who sails." in model.asks[-1].system


async def test_twenty_versions_are_kept_and_the_buttons_of_older_ones_say_so(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat, "Version 1")
    [card] = await chat.say("/personas version 1")
    for number in range(2, 26):
        await change(chat, persona_id, name=f"Version {number}")
    assert okun.rows("SELECT min(version), max(version), count(*) FROM persona_versions") == [(6, 25, 20)]
    for data in (f"m2:{ANNA}:pv:{persona_id}.5", f"d1:{ANNA}:proll:{persona_id}.5"):
        assert (await chat.press_data(data, card)).note == okun.t("persona.version_gone")
    shown = []
    for page in range(4):
        pressed = await chat.press_data(f"m2:{ANNA}:ph:{persona_id}.{page}", card)
        shown += [label.split(" – ")[1] for label in pressed.message.buttons if " – " in label]
    assert shown == [f"Version {number}" for number in range(25, 5, -1)]


async def test_two_who_save_at_once_make_two_versions(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    both = [change(chat, persona_id, name=name) for name in ("Captain Dog", "Captain Cow")]
    await asyncio.gather(*both)
    assert [row[0] for row in okun.rows("SELECT version FROM persona_versions")] == [1, 2, 3]
    assert names(okun) == [
        (ANNA, (await bot.my_persona(okun.app, ANNA, str(persona_id))).text.name)
    ]  # the cache is the truth


# -- limits


async def test_the_eleventh_is_refused_also_of_three_at_once(okun: Okun, chat: Room) -> None:
    for number in range(8):
        await make(chat, f"Cat {number}")
    done = await asyncio.gather(*(make(chat, f"Dog {number}") for number in range(4)), return_exceptions=True)
    assert [type(one) for one in done] == [int, int, bot.BotError, bot.BotError]
    [panel] = await chat.say("/personas")
    assert panel.text == okun.t("personas.list", count=10, most=10)
    assert okun.t("persona.button.new") not in panel.buttons and len(names(okun)) == 10


async def test_a_wizard_that_comes_too_late_keeps_what_was_said(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.say("Cat")
    await chat.say("A cat.")
    form = (await click(chat, "skip_all")).message
    ids = [await make(chat, f"Dog {number}") for number in range(10)]
    assert (await click(chat, "save", message=form)).note == okun.t("persona.many", count=10)
    await bot.delete_persona(okun.app, ANNA, ids[0])
    assert (await click(chat, "save", message=form)).note == okun.t("persona.saved")


# -- binding


WISHES = {
    "skipper bora": "skipper", "ШКІПЕР": "skipper", "Баба Нина": "granny", "coach": "coach", "captain cat": "1",
    "Captain": "1", "матрос  Алена": "2",
}  # fmt: skip


async def test_persona_by_its_name_in_any_language(okun: Okun, chat: Room) -> None:
    await make(chat)
    await make(chat, "Матрос Алёна")
    for wish, key in WISHES.items():
        [reply] = await chat.say(f"/persona {wish}")
        found = await bot.chat_settings(okun.app, chat.id)
        assert (wish, found.persona_key) == (wish, key)
        assert reply.text == okun.t("persona.bound", name=bot.persona_name(okun.app, "en", found))


async def test_persona_off_is_okun_again(okun: Okun, chat: Room, model: Script) -> None:
    await be(chat, await make(chat))
    for word in ("off", "викл"):
        assert [reply.text for reply in await chat.say(f"/persona {word}")] == [okun.t("persona.bound", name="Okun")]
    await chat.say("hi")
    assert model.asks[-1].system.startswith(bot.BUILT_IN["okun"])


async def test_an_unknown_name_says_where_they_are(okun: Okun, chat: Room) -> None:
    for name in ("Nobody", "🐟", "Ї ї " * 900 + "Ї", "{x}", "-1", "'; DROP TABLE personas"):
        for command in ("persona", "personas"):
            [reply] = await chat.say(f"/{command} {name}")
            assert reply.text == okun.t("persona.unknown", name=bot.excerpt(name, 50))
    assert okun.rows("SELECT persona, persona_id FROM chats") == [("okun", None)]


async def test_a_persona_of_somebody_else_is_not_found_by_name_or_number(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat, "Secret", by="Borys")
    [panel] = await chat.say("/persona")
    for name in ("Secret", persona_id):
        assert (await chat.say(f"/persona {name}"))[0].text == okun.t("persona.unknown", name=str(name))
    for act in ("d1:11:pbind", "d1:11:plink", "d1:11:pedit", "d1:11:pdel", "m2:11:p", "m2:11:pd", "m2:11:ph"):
        pressed = await chat.press_data(f"{act}:{persona_id}", panel)
        assert pressed.note == okun.t("persona.gone") or act.endswith("pdel")
        assert "Secret" not in pressed.message.text
    for act in ("m2:11:pv", "d1:11:proll"):
        assert (await chat.press_data(f"{act}:{persona_id}.1", panel)).note == okun.t("persona.gone")
    assert names(okun) == [(BORYS, "Secret")] and okun.rows("SELECT link FROM personas") == [(None,)]


async def test_of_several_with_one_name_it_is_one_s_own(okun: Okun, chat: Room) -> None:
    await make(chat, "Okun")
    await make(chat, "Okun")
    await chat.say("/persona okun")
    assert (await bot.chat_settings(okun.app, chat.id)).persona_key == "1"
    await chat.say("/persona off")
    assert (await bot.chat_settings(okun.app, chat.id)).persona_key == "okun"


async def test_in_a_group_only_admins_choose(okun: Okun, group: Room) -> None:
    await make(group)
    [panel] = await group.say("/persona")
    assert [reply.text for reply in await group.say("/persona skipper")] == [okun.t("error.admins_only")]
    for data in ("d1:11:pbind:skipper", "d1:11:pbind:1", "d1:11:ptake:skipper", "d1:11:plink:here"):
        assert (await group.press_data(data, panel)).note == okun.t("error.admins_only")
    assert okun.rows("SELECT persona, persona_id FROM chats") == [("okun", None)]
    for admin in ("Olena", "chat", "Owner"):
        await group.say("/persona off", by=admin)
        await group.say("/persona skipper", by=admin)
        assert okun.rows("SELECT persona FROM chats") == [("skipper",)]


async def test_a_press_changes_the_very_next_turn_and_only_here(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    await group.say("/persona", by="Olena")
    await group.press(okun.t("persona.is.poet.name", "uk"), by="Olena")
    await group.say("okun, hi")
    assert model.asks[-1].system.startswith(bot.BUILT_IN["poet"])
    await chat.say("hi")
    assert model.asks[-1].system.startswith(bot.BUILT_IN["okun"])


async def test_a_change_by_its_maker_reaches_the_group_at_once(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    await group.say("hi")
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    persona_id = await make(chat)
    await be(group, persona_id, by="Anna")
    await group.say("captain cat, hi")
    await change(chat, persona_id, name="Captain Dog", description="A dog.")
    assert await group.say("captain cat, hi") == []
    await group.say("captain dog, hi")
    assert "A dog." in model.asks[-1].system


@pytest.mark.parametrize("how", ["save", "rollback"])
@pytest.mark.parametrize("status", ["administrator", "member", "left"])
async def test_what_a_former_administrator_changes_takes_the_persona_from_the_group(
    okun: Okun, chat: Room, group: Room, model: Script, later: Later, how: str, status: str
) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    await group.say("hi")
    persona_id = await make(chat, description="A dog.")
    await change(chat, persona_id, description="A cat.")
    await chat.say("/persona captain cat")
    await group.say("/persona captain cat")
    okun.telegram.member(group.chat, okun.person("Anna"), status)
    await later(61)
    if how == "save":
        await chat.say("/personas captain cat")
        await click(chat, "edit")
        await chat.press(okun.t("persona.field.description"))
        await chat.say("A dog.")
        assert (await click(chat, "save")).note == okun.t("persona.saved")
    else:
        pressed = await chat.press_data(f"d1:{ANNA}:proll:{persona_id}.1", (await chat.say("/personas"))[0])
        assert pressed.note == okun.t("persona.restored", number=1)
    await group.say("okun, hi", by="Borys")
    if status == "administrator":
        assert "A dog." in model.asks[-1].system
    else:
        assert model.asks[-1].system.startswith(bot.BUILT_IN["okun"])
        assert await group.say("captain cat, hi", by="Borys") == []
    bound = okun.rows("SELECT chat_id, persona_id FROM chats WHERE persona_id IS NOT NULL ORDER BY chat_id DESC")
    assert bound == [(ANNA, persona_id), (group.id, persona_id)][: 2 if status == "administrator" else 1]
    await chat.say("hi")
    assert "A dog." in model.asks[-1].system


async def test_an_outage_takes_a_persona_from_no_group(
    okun: Okun, chat: Room, group: Room, model: Script, later: Later
) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    await group.say("hi")
    persona_id = await make(chat, description="A dog.")
    await change(chat, persona_id, description="A cat.")
    await group.say("/persona captain cat")
    await later(61)
    [panel] = await chat.say("/personas")
    okun.telegram.fault("500", "getChatMember", times=30)
    okun.telegram._pressed(okun.person("Anna"), panel.raw, f"d1:{ANNA}:proll:{persona_id}.1")
    await okun.take()
    await later(600)
    await group.say("okun, hi", by="Borys")
    assert "A dog." in model.asks[-1].system  # saved when Telegram knew who rules


async def test_two_admins_at_once_leave_one_persona_that_both_see(okun: Okun, group: Room, model: Script) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    persona_id = await make(group, description="A cat who sails.")
    panels = {name: (await group.say("/persona", by=name))[0] for name in ("Anna", "Olena")}
    for name, data in (("Anna", f"d1:{ANNA}:pbind:{persona_id}"), ("Olena", "d1:14:pbind:coach")) * 3:
        okun.telegram._pressed(okun.person(name), panels[name].raw, data)
    await okun.take()
    found = await bot.chat_settings(okun.app, group.id)
    [row] = okun.rows("SELECT persona, persona_id FROM chats")
    assert (found.persona, found.persona_id) == row in [("coach", None), ("okun", persona_id)]
    await group.say("okun, hi")
    assert ("A cat who sails." in model.asks[-1].system) == (row[1] is not None)


async def test_a_persona_that_a_later_okun_has_no_more_is_okun(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("hi")
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE chats SET persona = 'former', temper = 'former'")
    await okun.restart()
    for command in ("/persona", "/temper", "/menu"):
        [panel] = await chat.say(command)
        assert panel.buttons and okun.t("error.sorry") not in panel.text
    await chat.say("hi")
    assert okun.model.asks[-1].system.startswith(bot.BUILT_IN["okun"])


# -- deleted


async def test_a_persona_deleted_while_bound_is_okun_in_the_next_turn_everywhere(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    await group.say("hi")
    persona_id = await make(chat, group_policy="never")
    for room in (chat, group):
        await be(room, persona_id, by="Anna")
    assert await group.say("okun, hi") == []
    await chat.say("/personas captain cat")
    await click(chat, "delete")
    gone = await click(chat, "delete_yes")
    assert gone.note == okun.t("persona.deleted") and gone.message.text == okun.t("personas.none", most=10)
    for room in (chat, group):
        await room.say("okun, hi")
        assert model.asks[-1].system.startswith(bot.BUILT_IN["okun"]) and model.asks[-1].chat_id == room.id
    assert okun.rows("SELECT * FROM persona_versions") == []


async def test_a_reply_that_is_being_written_survives_the_deletion(okun: Okun, chat: Room, model: Script) -> None:
    persona_id = await make(chat, most=3)
    await be(chat, persona_id)
    model.held = True
    await chat.say("hi")
    assert await bot.delete_persona(okun.app, ANNA, persona_id)
    model.writing[0].end("Ahoy!\n|||\nMeow.")
    await okun.settle()
    assert "|||" not in "".join(reply.text for reply in chat.replies)
    assert chat.rows("text, persona", "user_id IS NULL") == [("Ahoy!\n\nMeow.", str(persona_id))]
    model.held = False
    await chat.say("who are you?")
    assert model.past == [
        "user: hi",
        "user: [said by another character, whom you played before: “Ahoy!\n\nMeow.”]",
    ]


@pytest.mark.parametrize("most", [1, 2])
async def test_an_answer_half_sent_is_finished_though_its_persona_is_gone(
    okun: Okun, chat: Room, model: Script, most: int
) -> None:
    """The parts are counted as they were when the first was sent."""
    persona_id = await make(chat, most=3)
    await be(chat, persona_id)
    okun.wire.hold("sendMessage", after=2)
    model.always("one\n|||\ntwo\n|||\nthree")
    assert [reply.text for reply in await chat.say("hi")] == ["one", "two"]
    if most == 1:
        await bot.delete_persona(okun.app, ANNA, persona_id)
    else:
        await change(chat, persona_id, most=2)
    await okun.restart()
    assert [reply.text for reply in chat.replies] == ["one", "two", "three"]


async def test_an_answer_whose_rest_could_not_be_sent_is_finished_though_the_chat_has_another_persona(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    persona_id = await make(chat, most=3)
    await be(chat, persona_id)
    model.always("one\n|||\ntwo\n|||\nthree")
    sending = okun.wire.hold("sendMessage", after=1)
    await chat.say("hi")
    await be(chat, "okun")
    okun.wire.down = True
    sending.set()
    await later(30)
    okun.wire.down = False
    await later(60)
    assert [reply.text for reply in chat.replies] == ["one", "two", "three"]
    assert chat.rows("persona", "user_id IS NULL") == [str(persona_id)]


async def test_deleted_between_two_presses_is_said(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    [panel] = await chat.say("/persona")
    await bot.delete_persona(okun.app, ANNA, persona_id)
    for data in (f"d1:11:pbind:{persona_id}", f"d1:11:plink:{persona_id}", f"m2:11:p:{persona_id}"):
        assert (await chat.press_data(data, panel)).note == okun.t("persona.gone")
    pressed = await chat.press_data(f"d1:11:pdel:{persona_id}", panel)
    assert pressed.note == okun.t("persona.gone") and pressed.message.text == okun.t("personas.none", most=10)


async def test_bound_and_deleted_at_once_is_one_or_the_other(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    await chat.say("hi")
    await asyncio.gather(be(chat, persona_id), bot.delete_persona(okun.app, ANNA, persona_id), return_exceptions=True)
    assert okun.rows("SELECT persona_id FROM chats") == [(None,)]
    assert (await bot.chat_settings(okun.app, chat.id)).persona_key == "okun"


FORGED = [f"{kind}:11:{name}:{arg}"
          for kind, name in (("d1", "pdel"), ("d1", "pbind"), ("d1", "plink"), ("d1", "proll"), ("d1", "pcyc"),
                             ("d1", "pskip"), ("d1", "tset"), ("d1", "tdel"), ("d1", "ptake"), ("m2", "p"),
                             ("m2", "ph"), ("m2", "pv"), ("m2", "pq"), ("m2", "td"), ("m2", "tq"), ("m2", "offer"))
          for arg in ("", "9" * 30, "-1", "²", "١", "1.", "1." + "9" * 30, "__class__", "🐟")]  # fmt: skip


async def test_forged_buttons_are_answered_kindly(okun: Okun, chat: Room) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    panel = (await click(chat, "edit")).message
    before = [okun.rows(f"SELECT * FROM {table}") for table in ("personas", "persona_versions", "chats", "tempers")]
    for data in FORGED:
        await chat.press_data(data, panel)
        assert not okun.failures, data
    after = [okun.rows(f"SELECT * FROM {table}") for table in ("personas", "persona_versions", "chats", "tempers")]
    assert after == before and okun.inbox_rows == []


# -- what it says, and how


async def test_style_length_and_number_of_messages_are_in_the_prompt(okun: Okun, chat: Room, model: Script) -> None:
    await be(chat, await make(chat, style="blunt", verbosity="long", most=2))
    await chat.say("hi")
    system = model.asks[-1].system
    assert bot.STYLES["blunt"] in system and bot.VERBOSITIES["long"] in system
    assert bot.SEVERAL.format(most=2) in system and bot.VERBOSITIES["normal"] not in system


SEVERAL = [
    ("a\n|||\nb\n|||\nc", 3, ["a", "b", "c"]),
    ("a\n|||\nb\n|||\nc", 2, ["a", "b\n\nc"]),
    ("a\n|||\nb", 1, ["a\n\nb"]),
    ("a\n ||| \nb", 2, ["a", "b"]),
    ("a ||| b", 3, ["a ||| b"]),
    ("|||\na\n|||\nb\n|||", 2, ["a", "b"]),
    ("|||\n|||\na", 3, ["a"]),
    ("```\na\n|||\nb\n```", 3, ["```\na\n|||\nb\n```"]),
    ("x\n|||\n```\na\n|||\nb\n```\n|||\ny", 3, ["x", "```\na\n|||\nb\n```", "y"]),
    ("| a | b |\n|---|---|\n| 1 | 2 |", 3, ["| a | b |\n|---|---|\n| 1 | 2 |"]),
]  # fmt: skip


def test_an_answer_comes_apart_where_its_writer_parted_it() -> None:
    found = [(text, most, bot.messages_of_answer(text, most)) for text, most, _ in SEVERAL]
    assert found == SEVERAL


async def test_several_messages_are_one_answer(okun: Okun, group: Room, model: Script) -> None:
    await group.say("hi")
    await be(group, await make(group, most=3), by="Anna")
    model.always("one\n|||\ntwo\n|||\nthree\n|||\nfour")
    replies = await group.say("okun?")
    assert [reply.text for reply in replies] == ["one", "two", "three\n\nfour"]
    assert [reply.reply_to for reply in replies] == [group.last_id, None, None]
    assert group.rows("text", "user_id IS NULL") == ["one\n\ntwo\n\nthree\n\nfour"]


async def test_a_draft_shows_no_bars(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    await be(chat, await make(chat, most=3))
    model.held = True
    await chat.say("hi")
    for text in ("one", "one\n|||", "one\n|||\ntwo"):
        model.writing[0].show(text)
        await later(1)
    model.writing[0].end("one\n|||\ntwo")
    await okun.settle()
    assert okun.drafts(chat) and not any("|" in draft for draft in okun.drafts(chat))
    assert [reply.text for reply in chat.replies] == ["one", "two"]


@settings(context_tokens=500)
async def test_the_longest_persona_leaves_room_for_the_question(okun: Okun, chat: Room, model: Script) -> None:
    await be(chat, await make(chat, description=LONGEST, **dict.fromkeys(bot.TRAITS, "Ґ" * 500)))
    await chat.say("is anybody there?")
    assert model.heard == "is anybody there?"
    assert bot.count_tokens(model.asks[-1].system) <= 500


@pytest.mark.parametrize(
    ("policy", "alone", "asked"), [("look", True, True), ("asked", False, True), ("ignore", False, False)]
)
async def test_the_media_policy_says_what_is_looked_at(
    okun: Okun, chat: Room, model: Script, policy: str, alone: bool, asked: bool
) -> None:
    await be(chat, await make(chat, media_policy=policy))
    await chat.send("photo", b"1")
    assert bool(model.asks[-1].said[-1].media) is alone and "[photo]" in model.heard
    await chat.send("photo", b"2", "what is this?")
    assert bool(model.asks[-1].said[-1].media) is asked
    photo = chat.last_id
    await chat.say("and now?", reply_to=photo)
    assert bool(model.asks[-1].said[-1].media) is asked


# -- groups


@pytest.mark.parametrize("policy", ["always", "mention", "never"])
async def test_the_policy_of_a_persona_holds_where_the_chat_has_none(
    okun: Okun, group: Room, model: Script, policy: str
) -> None:
    await group.say("hi")
    await be(group, await make(group, group_policy=policy), by="Anna")
    assert bool(await group.say("nice weather")) is (policy == "always")
    assert bool(await group.say("okun, hi")) is (policy != "never")
    await bot.set_chat(okun.app, group.id, policy="mention")
    assert await group.say("nice weather") == [] and len(await group.say("okun, hi")) == 1


CALLS = [
    ("Captain Cat", "CAPTAIN CAT, hi", True), ("Captain Cat", "captain catty", False),
    ("Captain Cat", "captain", False), ("🐟🐠", "hi 🐟🐠!", True), ("C++ (v2)", "c++ (v2)?", True),
    (LONG_NAME, LONG_NAME.upper() + "!!", True), ("Алёна", "Алена, привет", True), ("Дар'я", "Дар’я, привіт", True),
]  # fmt: skip


async def test_a_persona_answers_to_its_name(okun: Okun, group: Room) -> None:
    await group.say("hi")
    for name, text, hears in CALLS:
        await be(group, await make(group, name, group_policy="mention"), by="Anna")
        assert (text, bool(await group.say(text))) == (text, hears)
        assert len(await group.say("okun, hi")) == 1
        await be(group, "okun")
        assert await group.say(text) == []


VOCATIVES = [
    ("okun", "Окуню, привіт", True), ("okun", "Слухай, окуне!", True), ("okun", "ОКУНЬ", True),
    ("okun", "Боте, ти тут?", True), ("okun", "бот?", True),
    ("okun", "окунівка ловиться", False), ("okun", "робота кипить", False), ("okun", "боти течуть", False),
    ("okun", "окунями торгують", False), ("okun", "з окунем", False), ("okun", "роботе моя", False),
    ("Баба Ніна", "Бабо Ніно, агов", True), ("Баба Ніна", "баба ніна!", True), ("Баба Ніна", "бабо", False),
    ("Баба Ніна", "бабою ніною", False), ("Марія", "Маріє!", True), ("Марія", "марією", False),
    ("Андрій", "Андрію?", True), ("Капітан Кіт", "капітане кіте", True), ("Капітан Кіт", "капітани", False),
    ("Іван", "диване", False), ("C++", "с++е", False),
]  # fmt: skip


@settings(bot_names=("окунь", "бот"))
async def test_the_vocative_of_a_name_calls_too(okun: Okun, group: Room) -> None:
    await group.say("hi")
    await bot.set_chat(okun.app, group.id, policy="mention")
    for name, text, hears in VOCATIVES:
        await be(group, name if name == "okun" else await make(group, name), by="Anna")
        assert (text, bool(await group.say(text))) == (text, hears)
        await be(group, "okun")
        for persona_id, _ in okun.rows("SELECT id, user_id FROM personas"):
            await bot.delete_persona(okun.app, ANNA, persona_id)


async def test_a_built_in_one_is_called_in_the_vocative(okun: Okun, group: Room) -> None:
    await group.say("hi")
    await bot.set_chat(okun.app, group.id, policy="mention")
    assert await group.say("бабо ніно, як ся маєте?") == []
    await group.say("/persona granny", by="Olena")
    assert len(await group.say("бабо ніно, як ся маєте?")) == 1


async def test_a_built_in_one_answers_to_its_name_in_any_language(okun: Okun, group: Room) -> None:
    await group.say("/settings", by="Olena")
    await bot.set_chat(okun.app, group.id, policy="mention")
    await group.say("/persona comic", by="Olena")
    for lang in bot.LANGS:
        name = okun.t("persona.is.comic.name", lang)
        assert len(await group.say(f"{name}, hi")) == 1
        assert len(await group.say(f"{name.replace('ё', 'е')}, hi")) == 1


async def test_it_joins_in_on_what_it_likes(okun: Okun, group: Room, dice: Dice, later: Later) -> None:
    await group.say("hi")
    persona_id = await make(group, likes="туманні ранки, риболовля")
    dice.load(0.99, 0.1)
    assert await group.say("завтра риболовлю затіємо") == []
    await be(group, persona_id, by="Anna")
    dice.load(0.99, 0.1)
    assert len(await group.say("завтра риболовлю затіємо")) == 1


# -- whose words are whose


async def test_no_persona_takes_another_one_s_words_for_its_own(okun: Okun, chat: Room, model: Script) -> None:
    model.always("I love worms.")
    await chat.say("what do you love?")
    persona_id = await make(chat)
    await be(chat, persona_id)
    model.always("I love fish.")
    await chat.say("and now?")
    assert model.past[1] == "user: [said by another character, whom you played before: “I love worms.”]"
    await change(chat, persona_id, name="Captain Tomcat")  # a new version is the same character
    await chat.say("and now?")
    assert model.past[3] == "model: I love fish."
    await chat.say("/persona off")
    await chat.say("and now?")
    assert [line for line in model.past if line.startswith("model")] == ["model: I love worms."]
    assert chat.rows("persona", "user_id IS NULL AND kind = 'text'") == ["okun", "1", "1", "okun"]


async def test_who_it_was_when_it_began_is_who_it_was(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("hi")
    model.held = True
    await chat.say("who are you?")
    await be(chat, "skipper")
    model.writing[0].end("A perch.")
    await okun.settle()
    model.held = False
    await chat.say("and now?")
    assert model.past[-1].endswith("whom you played before: “A perch.”]")


async def test_what_another_persona_said_long_ago_is_not_recalled_as_its_own(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.always("The treasure lies under the willow.")
    await chat.say("where is it?")
    await bot.index_messages(okun.app)
    await chat.say("/reset")
    await be(chat, "skipper")
    model.always("Hm.")
    await later(90_000)
    await chat.say("what lies under the willow, a treasure?")
    [line] = [line for line in model.asks[-1].system.splitlines() if "treasure lies under" in line]
    assert "you:" not in line


async def test_a_new_persona_is_not_told_that_it_was_replied_to(okun: Okun, chat: Room, model: Script) -> None:
    [reply] = await chat.say("hi")
    await be(chat, "skipper")
    await chat.say("did you say that?", reply_to=reply)
    assert "replying to you" not in model.heard


@settings(gemini_api_key="")
async def test_without_a_model_it_says_that_it_cannot_play_and_its_words_are_marked(okun: Okun, chat: Room) -> None:
    [reply] = await chat.say("/persona skipper")
    assert okun.t("persona.no_llm") in reply.text
    [panel] = await chat.say("/persona")
    assert okun.t("persona.no_llm") in panel.text
    await chat.say("the sea is deep")
    assert chat.rows("persona", "user_id IS NULL AND kind = 'text'") == ["skipper"]


# -- links


async def test_a_link_gives_a_copy_that_its_maker_cannot_change(okun: Okun, chat: Room, model: Script) -> None:
    persona_id = await make(chat)
    await chat.say("/personas captain cat")
    token = link_in((await click(chat, "share")).message)
    borys = okun.private("Borys")
    [offer] = await borys.say(f"/start persona_{token}")
    assert "A cat who sails." in offer.text and names(okun) == [(ANNA, "Captain Cat")]
    for _ in range(2):
        taken = await borys.press(okun.t("persona.button.use", "uk"), message=offer)
        assert taken.note == okun.t("persona.bound", "uk", name="Captain Cat")
        [offer] = await borys.say(f"/start persona_{token}")
    assert names(okun) == [(ANNA, "Captain Cat"), (BORYS, "Captain Cat")]
    await change(chat, persona_id, description="A dog.")
    await bot.delete_persona(okun.app, ANNA, persona_id)
    await borys.say("hi")
    assert "A cat who sails." in model.asks[-1].system
    assert [reply.text for reply in await borys.say(f"/start persona_{token}")] == [okun.t("persona.link_gone", "uk")]
    assert (await borys.press(okun.t("persona.button.use", "uk"), message=offer)).note == okun.t(
        "persona.link_gone", "uk"
    )


async def test_a_link_stays_the_same_and_shows_the_newest_version(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    await chat.say("/personas captain cat")
    token = link_in((await click(chat, "share")).message)
    await change(chat, persona_id, description="A dog.")
    await okun.restart()
    await chat.say("/personas captain cat")
    assert link_in((await click(chat, "share")).message) == token
    [offer] = await okun.private("Borys").say(f"/start persona_{token}")
    assert "A dog." in offer.text


async def test_a_link_that_is_shared_no_more_leads_nowhere(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    await chat.say("/personas captain cat")
    token = link_in((await click(chat, "share")).message)
    borys = okun.private("Borys")
    [offer] = await borys.say(f"/start persona_{token}")
    stopped = await click(chat, "unshare")
    assert stopped.note == okun.t("persona.unshared") and stopped.message.text.startswith("Captain Cat")
    assert okun.rows("SELECT id, link FROM personas") == [(persona_id, None)]
    taken = await borys.press(okun.t("persona.button.use", "uk"), message=offer)
    assert taken.note == okun.t("persona.link_gone", "uk") and names(okun) == [(ANNA, "Captain Cat")]
    gone = await borys.say(f"/start persona_{token}")
    assert [reply.text for reply in gone] == [okun.t("persona.link_gone", "uk")]
    assert link_in((await click(chat, "share")).message) != token


async def test_nobody_stops_the_sharing_of_another_one_s(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat)
    token = await bot.link_of(okun.app, persona_id)
    borys = okun.private("Borys")
    [panel] = await borys.say("/personas")
    shared = (await borys.press_data(f"m2:{BORYS}:pshare:{token}", panel)).message
    assert okun.t("persona.button.unshare", "uk") not in shared.buttons
    pressed = await borys.press_data(f"d1:{BORYS}:punlink:{persona_id}", panel)
    assert pressed.note == okun.t("persona.gone", "uk")
    assert okun.rows("SELECT link FROM personas") == [(token,)]


async def test_a_link_in_a_group_is_for_its_admins(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    await make(chat)
    await chat.say("/personas captain cat")
    token = link_in((await click(chat, "share")).message)
    [offer] = await group.say(f"/start@okun_bot persona_{token}", by="Vira")
    label = okun.t("persona.button.use", "ru")
    assert (await group.press(label, by="Vira", message=offer)).note == okun.t("error.admins_only", "ru")
    await group.say(f"/start@okun_bot persona_{token}", by="Olena")
    await group.press(okun.t("persona.button.use", "uk"), by="Olena")
    await group.say("captain cat, hi")
    assert "A cat who sails." in model.asks[-1].system
    [shared] = (await group.say("/persona", by="Olena"))[:1]
    pressed = await group.press(okun.t("persona.button.share", "uk"), by="Olena", message=shared)
    assert link_in(pressed.message) != token  # Olena's copy


async def test_what_an_anonymous_admin_takes_is_the_group_s_and_serves_any_admin(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    token = await bot.link_of(okun.app, await make(chat))
    [offer] = await group.say(f"/start@okun_bot persona_{token}", by="chat")
    await group.press(okun.t("persona.button.use", "uk"), by="Olena", message=offer)
    assert names(okun) == [(ANNA, "Captain Cat"), (group.id, "Captain Cat")]
    await group.say("captain cat, hi")
    assert "A cat who sails." in model.asks[-1].system
    [card] = await group.say("/personas captain cat", by="chat")
    await group.press(okun.t("persona.button.delete", "uk"), by="Olena", message=card)
    assert (await group.press(okun.t("persona.button.delete_yes", "uk"), by="Anna")).note == okun.t("button.not_yours")
    await group.press(okun.t("persona.button.delete_yes", "uk"), by="Olena")
    assert names(okun) == [(ANNA, "Captain Cat")]


async def test_a_link_that_finds_no_room_says_so(okun: Okun, chat: Room) -> None:
    for number in range(10):
        await make(chat, f"Cat {number}", by="Borys")
    token = await bot.link_of(okun.app, await make(chat))
    borys = okun.private("Borys")
    await borys.say(f"/start persona_{token}")
    assert (await borys.press(okun.t("persona.button.use", "uk"))).note == okun.t("persona.many", "uk", count=10)
    assert len(names(okun)) == 11


async def test_the_same_link_taken_in_two_chats_at_once_makes_one_copy(okun: Okun, chat: Room, group: Room) -> None:
    okun.telegram.member(group.chat, okun.person("Borys"), "administrator")
    token = await bot.link_of(okun.app, await make(chat))
    borys = okun.private("Borys")
    for room in (borys, group):
        [offer] = await room.say(f"/start@okun_bot persona_{token}", by="Borys")
        okun.telegram._pressed(okun.person("Borys"), offer.raw, f"d1:{BORYS}:ptake:{token}")
    await okun.take()
    assert names(okun) == [(ANNA, "Captain Cat"), (BORYS, "Captain Cat")]


async def test_a_built_in_one_can_be_shared_too(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/persona granny")
    [panel] = await chat.say("/persona")
    shared = (await click(chat, "share", message=panel)).message
    links = {"private": "https://t.me/okun_bot?start=persona_granny"}
    links["group"] = links["private"].replace("?start=", "?startgroup=")
    assert link_in(shared) == "granny" and shared.text == okun.t("persona.share_built_in", **links)
    assert okun.t("persona.button.unshare") not in shared.buttons
    borys = okun.private("Borys")
    await borys.say("/start persona_granny")
    await borys.press(okun.t("persona.button.use", "uk"))
    await borys.say("hi")
    assert model.asks[-1].system.startswith(bot.BUILT_IN["granny"])


async def test_rubbish_in_a_link_leads_nowhere(okun: Okun, chat: Room) -> None:
    await make(chat)
    for args in ("persona_", "persona_nothing", "persona_🐟", "persona_" + "x" * 4000, "persona"):
        assert [reply.text for reply in await chat.say(f"/start {args}")] == [okun.t("persona.link_gone")]


# -- when somebody goes


async def test_whoever_is_forgotten_takes_their_personas_along(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    await group.say("hi")
    persona_id = await make(chat, "Qzxcat", description="qzx")
    await change(chat, persona_id, bio="qzx")
    token = await bot.link_of(okun.app, persona_id)
    await be(group, persona_id, by="Anna")
    await begin(chat)
    await chat.say("qzxdraft")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    for table in ("personas", "persona_versions", "forms"):
        assert okun.rows(f"SELECT * FROM {table}") == []
    await group.say("okun, hi", by="Borys")
    assert model.asks[-1].system.startswith(bot.BUILT_IN["okun"])
    assert await group.say("qzxcat, hi", by="Borys") == []
    assert (await chat.say(f"/start persona_{token}"))[0].text == okun.t("persona.link_gone")
    await okun.restart()
    assert [reply.text for reply in await chat.say("a name?")] == ["Heard: a name?"]


async def test_what_personas_of_somebody_forgotten_said_is_in_no_byte_after_the_cleanup(okun: Okun) -> None:
    """Two people save several of theirs in turns: their versions are in one another's pages."""
    rooms, dice = {name: okun.private(name) for name in ("Anna", "Borys")}, random.Random(5)
    said: dict[str, list[str]] = {name: [] for name in rooms}
    ids: dict[str, list[int]] = {name: [] for name in rooms}

    def word(name: str) -> str:
        said[name].append("".join(dice.choices("abcdefghijklmnopqrstuvwxyz", k=24)))
        return said[name][-1]

    for room in rooms.values():
        await room.say("hi")
    for turn in range(20):
        for n in range(3):
            for name, room in rooms.items():
                fields = {trait: " ".join(word(name) for _ in range(dice.randint(1, 20))) for trait in bot.TRAITS[:2]}
                fields["description"] = " ".join(word(name) for _ in range(dice.randint(1, 35)))
                if turn:
                    await change(room, ids[name][n], by=name, **fields)
                else:
                    ids[name].append(await make(room, word(name), by=name, **fields))
    await begin(rooms["Anna"])
    await rooms["Anna"].say(word("Anna"))
    await rooms["Anna"].say(" ".join(word("Anna") for _ in range(90)))
    assert left_in(okun, said["Anna"]) == said["Anna"]
    await rooms["Anna"].say("/forget me")
    await rooms["Anna"].press(okun.t("forget.button.all"))
    await bot.clean(okun.app)
    assert left_in(okun, said["Anna"]) == []
    assert left_in(okun, said["Borys"]) == said["Borys"]
    for persona_id in ids["Borys"]:
        own = await bot.my_persona(okun.app, BORYS, str(persona_id))
        assert own.text == (await bot.versions_of(okun.app.db.reader, persona_id, BORYS))[0][2]


async def test_a_reply_as_the_persona_of_somebody_forgotten_is_not_kept(
    okun: Okun, chat: Room, group: Room, model: Script
) -> None:
    """Also where they were forgotten before, and left nothing but who the bot is."""
    await group.say("hi", by="Borys")
    await group.say("hi")
    await be(group, await make(chat, "Qzxcat"), by="Anna")
    await group.say("/forget me")
    await group.press(okun.t("forget.button.here"))
    model.held = True
    await group.say("okun, hi", by="Borys")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    for writing in model.writing:
        if not writing.ended.done():
            writing.end("I am qzxcat.")
    await okun.settle()
    assert not any("qzx" in str(row) for row in okun.rows("SELECT text FROM messages"))


async def test_forgotten_only_here_they_keep_their_personas(okun: Okun, chat: Room) -> None:
    await be(chat, await make(chat))
    await begin(chat)
    await chat.say("qzxdraft")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.here"))
    assert okun.rows("SELECT * FROM forms") == [] and names(okun) == [(ANNA, "Captain Cat")]
    assert [reply.text for reply in await chat.say("hi")] == ["Heard: hi"]


async def test_words_for_a_form_of_somebody_who_is_being_forgotten_leave_nothing(okun: Okun, chat: Room) -> None:
    await begin(chat)
    [panel] = await chat.say("/forget me")
    await chat.press_data(f"m2:{ANNA}:personas:", chat.replies[0])
    await click(chat, "new", message=chat.replies[0])
    chat.put("say", "qzxcat")
    okun.telegram._pressed(okun.person("Anna"), panel.raw, f"f1:{ANNA}:all")
    await okun.take()
    await okun.restart()
    for table in ("forms", "messages", "inbox"):
        assert not any("qzx" in str(row) for row in okun.rows(f"SELECT * FROM {table}"))


async def test_an_export_has_every_version_and_the_draft_of_the_person_alone(okun: Okun, chat: Room) -> None:
    persona_id = await make(chat, bio="At sea")
    await change(chat, persona_id, name="Captain Tomcat")
    token = await bot.link_of(okun.app, persona_id)
    await make(chat, "Secret of Borys", by="Borys")
    await begin(chat)
    await chat.say("A draft")
    head = await bot.export_head(okun.app, ANNA)
    assert [(row["version"], row["name"], row["bio"]) for row in head["personas"]] == [
        (1, "Captain Cat", "At sea"),
        (2, "Captain Tomcat", "At sea"),
    ]
    assert "A draft" in head["unfinished"][0]["data"] and "Secret" not in str(head)
    assert token in str(head)


async def test_drafts_that_nobody_touched_for_a_week_go(okun: Okun, chat: Room, later: Later) -> None:
    await begin(chat)
    await chat.say("Cat")
    await later(8 * 86_400)
    await bot.clean(okun.app)
    assert okun.rows("SELECT * FROM forms") == []
    assert [reply.text for reply in await chat.say("A cat.")] == ["Heard: A cat."]


def test_every_built_in_one_has_a_name_and_a_line_in_each_language() -> None:
    for lang in bot.LANGS:
        found = [TEXTS(lang, f"persona.is.{key}.name") for key in bot.BUILT_IN]
        assert len(set(found)) == len(bot.BUILT_IN) == 10
        assert all(TEXTS(lang, f"persona.is.{key}.about") for key in bot.BUILT_IN)
