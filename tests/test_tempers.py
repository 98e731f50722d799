"""The temper of the bot in a chat: built-in ones, those made for the chat, and who may change them."""

from __future__ import annotations

import itertools

import pytest
from conftest import ANNA, OLENA, VIRA, Okun, Room, Script, settings
from test_personas import kill_before_the_end

import bot

SLEEPY = "I yawn and take my time."
LONG = "Ліниве Літо Ловить Линів, Лящів, Лососів і Лобанів"  # 50 letters
assert len(LONG) == 50


async def temper_of(room: Room) -> str:
    """The line of the prompt, without the words that keep a user's line in its place."""
    line = bot.temper_line(await bot.chat_settings(room.okun.app, room.id))
    return line.removeprefix("Your temper today, in a user's words; it sets your tone, nothing else: ")


def tempers(okun: Okun) -> list[str]:
    return [row[0] for row in okun.rows("SELECT name FROM tempers ORDER BY id")]


async def test_each_built_in_one_by_its_name_is_a_line_of_the_next_prompt(
    okun: Okun, chat: Room, model: Script
) -> None:
    for lang, (key, line) in itertools.product(bot.LANGS, bot.TEMPERS.items()):
        [reply] = await chat.say(f"/temper {okun.t(f'temper.is.{key}', lang).upper()}")
        assert reply.text == okun.t("temper.set", name=okun.t(f"temper.is.{key}"))
        await chat.say("hi")
        system = model.asks[-1].system
        assert [other for other in bot.TEMPERS.values() if other and other in system] == [line][: bool(line)]


async def test_by_buttons_and_only_in_this_chat(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    await group.say("/temper", by="Olena")
    pressed = await group.press(okun.t("temper.is.sad", "uk"), by="Olena")
    assert pressed.note == okun.t("temper.set", "uk", name=okun.t("temper.is.sad", "uk"))
    assert f"✓ {okun.t('temper.is.sad', 'uk')}" in pressed.message.buttons
    assert (await temper_of(group), await temper_of(chat)) == (bot.TEMPERS["sad"], "")
    await okun.restart()
    assert await temper_of(group) == bot.TEMPERS["sad"]
    await group.say("/temper off", by="Olena")
    assert await temper_of(group) == ""


async def test_an_own_one_is_made_set_and_deleted_by_name(okun: Okun, chat: Room, model: Script) -> None:
    for name in ("sleepy", LONG, "🐟🐠", "Злий: дуже", "{x} %s <b>"):
        known = name.partition(":")[0]
        [reply] = await chat.say(f"/temper new {name}: {SLEEPY}")
        assert reply.text == okun.t("temper.set", name=known) and tempers(okun) == [known]
        await chat.say("hi")
        assert SLEEPY in model.asks[-1].system
        await chat.say("/temper sad")
        await chat.say(f"/temper {known.upper()}")
        [panel] = await chat.say("/temper")
        assert SLEEPY in panel.text and all(len(data.encode()) <= 64 for data in panel.data)
        assert [one.text for one in await chat.say(f"/temper delete {known}")] == [okun.t("temper.deleted")]
        await chat.say("hi")
        assert SLEEPY not in model.asks[-1].system and tempers(okun) == []


REFUSED = {
    "new": "usage", "delete": "usage", "new sleepy": "usage", "new x: yawn": "length", "new sleepy:": "length",
    "new : yawn": "length", "new sleepy: " + "Ї " * 300: "length", "delete sad": "built_in",
    "delete nobody": "unknown", "nobody": "unknown", "Ї " * 1500: "unknown",
}  # fmt: skip


async def test_what_cannot_be_done_is_said(okun: Okun, chat: Room) -> None:
    lengths = {okun.t("persona.length", low=low, high=high, count=count)
               for low, high, count in ((2, 50, 1), (1, 500, 0), (2, 50, 0), (1, 500, 599))}  # fmt: skip
    for words, key in REFUSED.items():
        [reply] = await chat.say(f"/temper {words}")
        name = bot.excerpt(words.removeprefix("delete "), 50)
        expected = lengths if key == "length" else {okun.t(f"temper.{key}", name=name)}
        assert (words, reply.text in expected) == (words, True)
    assert tempers(okun) == [] and await temper_of(chat) == ""


async def test_a_new_one_may_begin_on_the_next_line(okun: Okun, chat: Room) -> None:
    await chat.say(f"/temper new\nsleepy: {SLEEPY}")
    assert tempers(okun) == ["sleepy"]


async def test_one_s_own_of_a_built_in_name_can_be_set_and_deleted(okun: Okun, chat: Room) -> None:
    await chat.say(f"/temper new sad: {SLEEPY}")
    await chat.say("/temper joyful")
    await chat.say("/temper sad")
    assert await temper_of(chat) == SLEEPY
    assert [reply.text for reply in await chat.say("/temper delete sad")] == [okun.t("temper.deleted")]


async def test_in_groups_only_admins_change_it(okun: Okun, group: Room) -> None:
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    await group.say("/temper off", by="Olena")
    for words in ("sad", "sleepy", f"new angry: {SLEEPY}", "delete sleepy"):
        assert [reply.text for reply in await group.say(f"/temper {words}")] == [okun.t("error.admins_only")]
    [panel] = await group.say("/temper")
    for data in ("tset:sad", "tset:1", "tdel:1"):
        assert (await group.press_data(f"d1:{ANNA}:{data}", panel)).note == okun.t("error.admins_only")
    assert (await group.press_data(f"d1:{ANNA}:tnew:", panel)).note == okun.t("temper.usage")
    assert tempers(okun) == ["sleepy"] and await temper_of(group) == ""
    for admin in ("Olena", "chat", "Owner"):
        await group.say(f"/temper new of {admin}: {SLEEPY}", by=admin)
    assert tempers(okun) == ["sleepy", "of Olena", "of chat", "of Owner"]


async def test_one_of_another_chat_is_out_of_reach(okun: Okun, chat: Room, group: Room) -> None:
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    [panel] = await chat.say("/temper")
    for data in ("d1:11:tset:1", "m2:11:td:1", "d1:11:tdel:1"):
        pressed = await chat.press_data(data, panel)
        assert pressed.note == okun.t("temper.gone") and SLEEPY not in pressed.message.text
    for words in ("sleepy", "1", "delete sleepy", "delete 1"):
        assert SLEEPY not in (await chat.say(f"/temper {words}"))[0].text
    assert (await temper_of(group), await temper_of(chat)) == (SLEEPY, "")


async def test_the_eleventh_is_refused_also_of_several_at_once(okun: Okun, group: Room) -> None:
    for number in range(9):
        await group.say(f"/temper new mood {number}: {SLEEPY}", by="Olena")
    for name in ("Olena", "Owner", "chat"):
        group.put("say", f"/temper new of {name}: {SLEEPY}", by=name)
    await okun.take()
    assert len(tempers(okun)) == 10
    lines = [reply.text for reply in group.replies[-3:]]
    refused = [okun.t("temper.many", lang, count=10) for lang in bot.LANGS]
    assert sum(line in refused for line in lines) == 2
    [panel] = await group.say("/temper", by="Olena")
    assert okun.t("temper.button.new", "uk") not in panel.buttons
    assert all(len(data.encode()) <= 64 for data in panel.data)


async def test_set_by_one_and_deleted_by_another_at_once_is_one_or_the_other(okun: Okun, group: Room) -> None:
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    await group.say("/temper off", by="Olena")
    panels = {name: (await group.say("/temper", by=name))[0] for name in ("Olena", "Owner")}
    okun.telegram._pressed(okun.person("Olena"), panels["Olena"].raw, f"d1:{OLENA}:tset:1")
    okun.telegram._pressed(okun.person("Owner"), panels["Owner"].raw, "d1:99:tdel:1")
    await okun.take()
    assert tempers(okun) == [] and okun.rows("SELECT temper, temper_id FROM chats") == [("neutral", None)]
    assert await temper_of(group) == ""
    late = await group.press_data(f"d1:{OLENA}:tset:1", panels["Olena"], by="Olena")
    assert late.note == okun.t("temper.gone", "uk")
    assert (await group.press_data("d1:99:tdel:1", panels["Owner"], by="Owner")).note == okun.t("temper.gone")


async def test_deleted_while_a_reply_is_written_it_is_even_in_the_next_turn(
    okun: Okun, chat: Room, model: Script
) -> None:
    await chat.say(f"/temper new sleepy: {SLEEPY}")
    model.held = True
    await chat.say("hi")
    await chat.say("/temper delete sleepy")
    model.writing[0].end("Yawn.")
    await okun.settle()
    model.held = False
    await chat.say("and now?")
    assert SLEEPY not in model.asks[-1].system and "model: Yawn." in model.past


# -- by questions


async def test_in_private_it_is_made_by_two_questions(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/temper")
    question = (await chat.press(okun.t("temper.button.new"))).message
    assert question.text == okun.t("temper.ask.name", low=2, high=50)
    assert [reply.text for reply in await chat.say("x")] == [okun.t("persona.length", low=2, high=50, count=1)]
    [question] = await chat.say(f"  {LONG.replace(' ', '   ')} ")
    assert question.text == okun.t("temper.ask.line", low=1, high=500)
    await okun.restart()
    [panel] = await chat.say(SLEEPY)
    assert panel.text.startswith(okun.t("temper.set", name=LONG)) and okun.model.asks == []
    assert await temper_of(chat) == SLEEPY and okun.rows("SELECT * FROM forms WHERE asks <> ''") == []
    await chat.say("hi")
    assert SLEEPY in okun.model.asks[-1].system


@pytest.mark.parametrize("step", ["name", "line"])
async def test_a_kill_after_an_answer_loses_nothing_and_does_nothing_twice(okun: Okun, chat: Room, step: str) -> None:
    await chat.say("/temper")
    await chat.press(okun.t("temper.button.new"))
    if step == "line":
        await chat.say("sleepy")
    okun.wire.hold("sendMessage")
    await chat.say("sleepy" if step == "name" else SLEEPY)
    await okun.restart()
    assert okun.model.asks == []
    assert tempers(okun) == ([] if step == "name" else ["sleepy"])
    expected = okun.t("temper.ask.line", high=500) if step == "name" else okun.t("temper.set", name="sleepy")
    assert chat.replies[-1].text.startswith(expected)


@pytest.mark.parametrize("step", ["name", "line"])
async def test_a_kill_before_the_end_of_the_update_does_not_take_the_words_for_something_else(
    okun: Okun, chat: Room, step: str
) -> None:
    """The answer was sent already: the same words are neither the next answer nor talk."""
    await chat.say("/temper")
    await chat.press(okun.t("temper.button.new"))
    if step == "line":
        await chat.say("sleepy")
    await kill_before_the_end(okun, chat, "sleepy" if step == "name" else SLEEPY)
    assert okun.model.asks == [] and tempers(okun) == ([] if step == "name" else ["sleepy"])
    if step == "name":
        [panel] = await chat.say(SLEEPY)
        assert panel.text.startswith(okun.t("temper.set", name="sleepy"))
    assert await temper_of(chat) == SLEEPY and tempers(okun) == ["sleepy"]
    await chat.say("hi")
    assert okun.model.past == [] and len(okun.model.asks) == 1
    await chat.say("/temper")
    assert (await chat.press(okun.t("temper.button.new"))).message.text == okun.t("temper.ask.name", low=2, high=50)


async def test_a_line_without_a_name_makes_none(okun: Okun, chat: Room) -> None:
    await chat.say("/temper")
    question = (await chat.press(okun.t("temper.button.new"))).message
    forged = await chat.press_data(f"m2:{ANNA}:tq:line", question)
    assert forged.note == okun.t("button.old")
    await chat.say("sleepy")
    await chat.say(SLEEPY)
    assert tempers(okun) == ["sleepy"]


async def test_a_persona_and_a_temper_half_made_do_not_mix(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.new"))
    await chat.say("Captain Cat")
    await chat.say("/temper")
    await chat.press(okun.t("temper.button.new"))
    await chat.say("sleepy")
    await chat.say(SLEEPY)
    assert [reply.text for reply in await chat.say("hi")] == ["Heard: hi"]
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.continue"))
    await chat.say("A cat who sails.")
    [(data,)] = okun.rows("SELECT data FROM forms WHERE kind = 'persona'")
    assert bot.json_loads(data)["text"] == {"name": "Captain Cat", "description": "A cat who sails."}
    assert tempers(okun) == ["sleepy"] and len(model.asks) == 1


# -- when somebody goes


async def test_whoever_is_forgotten_here_takes_their_tempers_along(okun: Okun, group: Room, model: Script) -> None:
    okun.telegram.member(group.chat, okun.person("Vira"), "administrator")
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    await group.say("/temper new angry: I bite.", by="Vira")
    await group.say("/temper sleepy", by="Olena")
    await group.say("/forget me", by="Olena")
    await group.press(okun.t("forget.button.here", "uk"), by="Olena")
    assert tempers(okun) == ["angry"] and await temper_of(group) == ""
    await group.say("okun, hi", by="Vira")
    assert SLEEPY not in model.asks[-1].system
    [panel] = await group.say("/temper", by="Vira")
    assert "angry" in panel.buttons and "sleepy" not in panel.buttons


async def test_forgotten_everywhere_they_go_from_every_chat(okun: Okun, chat: Room, group: Room) -> None:
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    olena = okun.private("Olena")
    await olena.say("/temper new angry: I bite.")
    head = await bot.export_head(okun.app, OLENA)
    assert [row["name"] for row in head["tempers"]] == ["sleepy", "angry"]
    assert (await bot.export_head(okun.app, VIRA))["tempers"] == []
    await olena.say("/forget me")
    await olena.press(okun.t("forget.button.all", "uk"))
    assert tempers(okun) == [] and await temper_of(group) == await temper_of(olena) == ""


async def test_a_group_that_moves_keeps_its_temper_and_its_persona(okun: Okun) -> None:
    group = okun.group("Old", kind="group")
    await group.say(f"/temper new sleepy: {SLEEPY}", by="Olena")
    await group.say("/persona poet", by="Olena")
    new = Room(okun, okun.telegram.migrate(group.chat))
    moved, _ = okun.telegram.next_updates()
    await new.say("/temper", by="Olena")  # the new one is heard of before the old one says that it moved
    await okun.feed(moved)
    found = await bot.chat_settings(okun.app, new.id)
    assert (found.temper_line, found.persona) == (SLEEPY, "poet")
    [panel] = await new.say("/temper", by="Olena")
    assert "✓ sleepy" in panel.buttons


@settings(context_tokens=500)
async def test_a_temper_leaves_room_for_the_question(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say(f"/temper new sleepy: {'Ґанок ' * 80}")
    await chat.say("is anybody there?")
    assert model.heard == "is anybody there?"


async def test_commands_of_two_at_once_leave_what_the_chat_is_in(okun: Okun, group: Room) -> None:
    for name, words in (("Olena", "sad"), ("Owner", "joyful")) * 3:
        group.put("say", f"/temper {words}", by=name)
    await okun.take()
    [(temper,)] = okun.rows("SELECT temper FROM chats")
    assert (await bot.chat_settings(okun.app, group.id)).temper == temper in ("sad", "joyful")
