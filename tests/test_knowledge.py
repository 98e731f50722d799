"""What the bot knows about people and topics: facts, the rolling summary, and the tools that use them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, VIRA, Later, Okun, Room, Script, settings

import bot

PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
DAY = 86400
# facts no two of which share a word
FACTS = ["plays the cello", "hates coriander", "owns two geese", "works nights", "fears spiders", "was born in Lviv",
         "collects stamps", "drives a tractor", "speaks Polish", "paints fences", "bakes bagels", "wears green",
         "studies moths", "sings bass", "repairs watches", "grows melons", "reads Homer"]  # fmt: skip


def facts(okun: Okun, where: str = "1", columns: str = "text") -> list[Any]:
    """Stored facts, the oldest first; plain values for one column."""
    rows = okun.rows(f"SELECT {columns} FROM facts WHERE {where} ORDER BY id")
    return [row[0] if len(row) == 1 else row for row in rows]


async def teach(room: Room, *told: str, by: str | None = None) -> None:
    """Tell the bot facts about oneself, in one batch."""
    for fact in told:
        room.put("say", f"/remember {fact}", by=by)
    await room.okun.take()


def shown(text: str) -> list[str]:
    """The numbered lines of /memory."""
    return [line for line in text.splitlines() if line[:1].isdigit()]


# -- /remember


async def test_remember_says_that_it_does(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        assert [reply.text for reply in await group.say("/remember I fish", by=name)] == [okun.t("remember.done", lang)]
        again = await group.say("/remember I fish!", by=name)
        assert [reply.text for reply in again] == [okun.t("remember.known", lang)]
    assert facts(okun) == ["I fish!"] * 3


async def test_remember_nothing_says_how(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        for nothing in ("", " ", "\u200b"):
            [reply] = await group.say(f"/remember {nothing}", by=name)
            assert reply.text == okun.t("remember.usage", lang)
    assert facts(okun) == []


async def test_a_fact_is_one_line_of_bounded_length(okun: Okun, chat: Room) -> None:
    await teach(chat, "line one\nline two " + "x" * 500)
    [fact] = facts(okun)
    assert fact.startswith("line one line two x") and len(fact) == bot.MAX_FACT_CHARS


async def test_a_fact_belongs_to_whoever_told_it_where_it_was_told(okun: Okun, group: Room) -> None:
    await teach(group, "I am B", by="Borys")
    assert facts(okun, columns="chat_id, user_id, text, told") == [(group.id, BORYS, "I am B", 1)]


SAME = [
    ("My cat is called Murka", "my cat's called Murka!"),
    ("plays the cello", "I play the cello"),
    ("Маю кота Мурчика", "Мій кіт – Мурчик"),
    ("У меня аллергия на орехи", "аллергия на орехи"),
    ("works in a bank in Kyiv", "worked in a bank in Kyiv"),
]


async def test_of_two_facts_that_say_the_same_the_newer_words_stay(okun: Okun, chat: Room) -> None:
    await teach(chat, *(older for older, _ in SAME))
    await teach(chat, *(newer for _, newer in SAME))
    assert facts(okun) == [newer for _, newer in SAME]


async def test_facts_that_only_resemble_each_other_both_stay(okun: Okun, chat: Room) -> None:
    alike = ["loves cats", "loves dogs", "брат у Києві", "сестра у Львові", "lives in Kyiv", "was born in Odesa"]
    await teach(chat, *alike)
    assert facts(okun) == alike


async def test_a_fact_told_stays_told_when_it_is_noticed_again(okun: Okun, chat: Room) -> None:
    await teach(chat, "plays the cello")
    async with okun.app.db.tx() as tx:
        await bot.put_fact(tx, okun.app, chat.id, ANNA, "she plays a cello", told=False)
    assert facts(okun, columns="text, told") == [("she plays a cello", 1)]


async def test_a_fact_noticed_becomes_one_told(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    async with okun.app.db.tx() as tx:
        await bot.put_fact(tx, okun.app, chat.id, ANNA, "plays the cello", told=False)
    await teach(chat, "I play the cello")
    assert facts(okun, columns="told") == [1]


# -- fifteen, and which leaves


async def test_of_too_many_facts_the_oldest_unused_leaves(okun: Okun, chat: Room) -> None:
    await teach(chat, *FACTS[:15])
    await teach(chat, FACTS[15])
    assert facts(okun) == FACTS[1:16]


async def test_a_fact_asked_about_stays_and_the_next_one_leaves(okun: Okun, chat: Room, later: Later) -> None:
    await teach(chat, *FACTS[:15])
    await later(2 * DAY)
    await chat.say("How is my cello?")
    await teach(chat, FACTS[15])
    assert facts(okun) == [FACTS[0], *FACTS[2:16]]


ASKED = [("Мій пес рудий", "Де фото пса?"), ("Маю двох котів", "А мій кіт?"), ("plays the cello", "What do I play?")]


async def test_a_fact_is_asked_about_in_any_form_of_its_word(okun: Okun, chat: Room, later: Later) -> None:
    await teach(chat, *(fact for fact, _ in ASKED))
    await later(2 * DAY)
    for _, question in ASKED:
        await chat.say(question)
    assert facts(okun, columns="used_at") == [int(NOON) + 2 * DAY] * len(ASKED)


async def test_a_fact_heard_again_counts_as_used(okun: Okun, chat: Room, later: Later) -> None:
    await teach(chat, *FACTS[:15])
    await later(1)
    await teach(chat, FACTS[0], FACTS[15])
    assert facts(okun) == [FACTS[0], *FACTS[2:16]]


async def test_the_bound_is_for_each_person_and_each_chat(okun: Okun, chat: Room, group: Room) -> None:
    await teach(chat, *FACTS[:8])
    await teach(group, *FACTS[:8])
    await teach(group, *FACTS[:8], by="Borys")
    assert len(facts(okun)) == 24


async def test_a_fact_is_marked_as_used_at_most_once_a_day(okun: Okun, chat: Room, later: Later) -> None:
    await teach(chat, "plays the cello")
    await later(3600)
    await chat.say("my cello!")
    assert facts(okun, columns="used_at") == [int(NOON)]
    await later(2 * DAY)
    await chat.say("my cello!")
    assert facts(okun, columns="used_at") == [int(NOON) + 2 * DAY + 3600]


# -- what the model is told


async def test_a_fact_is_in_the_prompt_at_once_and_gone_at_once(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("Hi")
    await teach(chat, "plays the cello")
    await chat.say("Hi again")
    assert "Anna: plays the cello" in model.asks[-1].system
    await chat.say("/forget cello")
    await chat.say("And now?")
    assert "cello" not in model.asks[-1].system


async def test_a_fact_of_one_chat_is_in_no_other(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    other = okun.group("Other")
    await teach(chat, "private cello")
    await teach(group, "public drum")
    for room, has, lacks in ((chat, "cello", "drum"), (group, "drum", "cello")):
        await room.say("okun, hi")
        assert has in model.asks[-1].system and lacks not in model.asks[-1].system
    await other.say("okun, hi")
    assert "cello" not in model.asks[-1].system and "drum" not in model.asks[-1].system


@settings(context_messages=3)
async def test_only_what_is_known_about_speakers_in_the_window_is_told(group: Room, model: Script) -> None:
    await teach(group, "plays the cello", by="Borys")
    await teach(group, "hates coriander", by="Vira")
    await teach(group, "fears spiders", by="Olena")
    await group.say("hello", by="Borys")
    await group.say("hello", by="Vira")
    await group.say("okun, hi")
    assert "Borys: plays the cello" in model.asks[-1].system and "Vira: hates" in model.asks[-1].system
    assert "spiders" not in model.asks[-1].system
    await group.say("me too", by="Vira")
    await group.say("okun, hi again")
    assert "cello" not in model.asks[-1].system and "coriander" in model.asks[-1].system


@settings(context_tokens=2000)
async def test_facts_keep_within_their_share_and_the_last_used_come_first(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    await teach(chat, *(f"{FACTS[n]} {chr(97 + n) * 250}" for n in range(15)))
    await chat.say("Hi")
    assert FACTS[14] in model.asks[-1].system and FACTS[0] not in model.asks[-1].system


# -- /memory


async def test_memory_of_somebody_unknown_is_empty(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        [reply] = await group.say("/memory", by=name)
        assert (reply.text, reply.buttons) == (okun.t("memory.empty", lang), [okun.t("menu.back", lang)])


async def test_memory_lists_what_is_known_with_a_button_for_each(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        await teach(group, *FACTS[:2], by=name)
        [reply] = await group.say("/memory", by=name)
        assert reply.text == okun.t("memory.list", lang, facts=f"1. {FACTS[0]}\n2. {FACTS[1]}")
        assert reply.buttons == ["✕ 1", "✕ 2", okun.t("menu.back", lang)]


async def test_memory_shows_five_a_page_and_turns_around(okun: Okun, chat: Room) -> None:
    await teach(chat, *FACTS[:12])
    [reply] = await chat.say("/memory")
    assert reply.buttons == ["✕ 1", "✕ 2", "✕ 3", "✕ 4", "✕ 5", "◀", "1/3", "▶", okun.t("menu.back")]
    last = (await chat.press("◀")).message
    assert shown(last.text) == [f"11. {FACTS[10]}", f"12. {FACTS[11]}"]
    assert last.buttons == ["✕ 11", "✕ 12", "◀", "3/3", "▶", okun.t("menu.back")]
    first = (await chat.press("▶")).message
    assert (first.text, first.buttons) == (reply.text, reply.buttons)
    second = (await chat.press("▶")).message
    assert shown(second.text)[0] == f"6. {FACTS[5]}"
    assert (await chat.press("2/3")).message.text == second.text


async def test_a_fact_is_deleted_by_its_button_once(okun: Okun) -> None:
    for lang, name in PEOPLE.items():
        room = okun.private(name)
        await teach(room, *FACTS[:3])
        [reply] = await room.say("/memory")
        pressed = await room.press("✕ 2")
        assert pressed.note == okun.t("memory.deleted", lang)
        assert shown(pressed.message.text) == [f"1. {FACTS[0]}", f"2. {FACTS[2]}"]
        assert (await room.press_data(reply.data[1], reply)).note == okun.t("memory.gone", lang)
    assert facts(okun) == [FACTS[0], FACTS[2]] * 3


async def test_after_the_last_of_a_page_the_page_before_is_shown(okun: Okun, chat: Room) -> None:
    await teach(chat, *FACTS[:6])
    await chat.say("/memory")
    await chat.press("▶")
    pressed = await chat.press("✕ 6")
    assert len(shown(pressed.message.text)) == 5 and "◀" not in pressed.message.buttons


async def test_after_the_very_last_fact_nothing_is_known(okun: Okun, chat: Room) -> None:
    await teach(chat, FACTS[0])
    await chat.say("/memory")
    message = (await chat.press("✕ 1")).message
    assert (message.text, message.buttons) == (okun.t("memory.empty"), [okun.t("menu.back")])


async def test_a_strangers_press_is_refused(okun: Okun, group: Room) -> None:
    await teach(group, FACTS[0], by="Olena")
    [reply] = await group.say("/memory", by="Olena")
    for lang, name in PEOPLE.items():
        pressed = await group.press("✕ 1", by=name)
        assert (pressed.note, pressed.message.text) == (okun.t("button.not_yours", lang), reply.text)
    assert facts(okun) == [FACTS[0]]


async def test_a_forged_press_deletes_nothing_of_another(okun: Okun, group: Room) -> None:
    await teach(group, FACTS[0])
    await teach(group, FACTS[1], by="Borys")
    [reply] = await group.say("/memory", by="Borys")
    [fact_id] = facts(okun, "user_id = 11", "id")
    forged = bot.DoPress(owner=BORYS, name="mdel", arg=f"{fact_id}.0").pack()
    pressed = await group.press_data(forged, reply, by="Borys")
    assert pressed.note == okun.t("memory.gone", "uk")
    assert FACTS[0] in facts(okun) and FACTS[0] not in pressed.message.text


async def test_a_page_that_is_not_there_is_the_nearest(okun: Okun, chat: Room) -> None:
    await teach(chat, *FACTS[:7])
    [shown] = await chat.say("/memory")
    for page, nearest in (("-7", "1/2"), ("99", "2/2"), ("0", "1/2")):
        shown = (await chat.press_data(bot.GoPress(owner=ANNA, name="memory", arg=page).pack(), shown)).message
        assert shown.buttons[-3] == nearest


async def test_private_memory_is_of_all_chats_with_their_titles(okun: Okun, chat: Room, group: Room) -> None:
    await teach(chat, FACTS[0])
    await teach(group, FACTS[1])
    await teach(group, FACTS[2], by="Borys")
    [reply] = await chat.say("/memory")
    assert sorted(line[3:] for line in shown(reply.text)) == sorted([FACTS[0], f"{FACTS[1]} (Pond)"])
    number = next(n for n, line in enumerate(shown(reply.text), 1) if "Pond" in line)
    await chat.press(f"✕ {number}")
    assert facts(okun) == [FACTS[0], FACTS[2]]


async def test_memory_in_a_group_is_of_that_group_alone(okun: Okun, chat: Room, group: Room) -> None:
    other = okun.group("Other")
    for room, fact in ((chat, FACTS[0]), (group, FACTS[1]), (other, FACTS[2])):
        await teach(room, fact)
    [reply] = await group.say("/memory")
    assert shown(reply.text) == [f"1. {FACTS[1]}"]


async def test_what_the_group_itself_told_any_administrator_may_delete(okun: Okun, group: Room) -> None:
    await teach(group, FACTS[0], by="chat")
    await group.say("/memory", by="chat")
    assert (await group.press("✕ 1", by="Anna")).note == okun.t("button.not_yours")
    assert (await group.press("✕ 1", by="Olena")).note == okun.t("memory.deleted", "uk")
    assert facts(okun) == []


async def test_a_deleted_fact_is_in_no_later_prompt(chat: Room, model: Script) -> None:
    await teach(chat, FACTS[0])
    await chat.say("Hi")
    await chat.say("/memory")
    await chat.press("✕ 1")
    await chat.say("Hi")
    assert FACTS[0] not in model.asks[-1].system


# -- /forget and a few words


async def test_forget_words_names_what_is_forgotten(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        await teach(group, *FACTS[:2], by=name)
        [reply] = await group.say("/forget my cello playing", by=name)
        assert reply.text == okun.t("forget.facts", lang, facts=f"– {FACTS[0]}")
    assert facts(okun) == [FACTS[1]] * 3


async def test_forget_of_nothing_known_says_how(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        await teach(group, FACTS[0], by=name)
        for words in ("", " submarines", " \u200b"):
            [reply] = await group.say(f"/forget{words}", by=name)
            assert reply.text == okun.t("forget.usage", lang)
    assert facts(okun) == [FACTS[0]] * 3


FORMS = [
    ("has a fox", "foxes"),
    ("plays the cello", "that I play"),
    ("Маю рудого кота", "кіт"),
    ("Мій пес рудий", "про пса"),
    ("Живу біля річки", "річка"),
    ("Боюсь пауков", "паук"),
    ("Учу французский", "французского"),
]


async def test_a_fact_is_forgotten_by_another_form_of_its_word(okun: Okun, chat: Room) -> None:
    await teach(chat, *(fact for fact, _ in FORMS))
    for _, words in FORMS:
        chat.put("say", f"/forget {words}")
    await okun.take()
    assert facts(okun) == []


async def test_forget_words_is_for_ones_own_facts_of_this_chat(okun: Okun, chat: Room, group: Room) -> None:
    await teach(chat, FACTS[0])
    await teach(group, FACTS[0])
    await teach(group, FACTS[0], by="Borys")
    await group.say("/forget plays the cello")
    assert facts(okun, columns="chat_id, user_id") == [(chat.id, ANNA), (group.id, BORYS)]


async def test_one_word_that_several_facts_have_forgets_none_of_them(okun: Okun, chat: Room) -> None:
    await teach(chat, "loves cats", "loves dogs")
    [reply] = await chat.say("/forget loves")
    assert reply.text == okun.t("forget.usage") and len(facts(okun)) == 2


# -- the rolling summary


def answer(summary: Any = "They spoke of pike.", **noticed: Any) -> str:
    """What a light model answers: the summary, and facts by label."""
    found = [{"person": person, "fact": fact} for person, fact in noticed.items()]
    return json.dumps({"summary": summary, "facts": found})


def summaries_by(model: Script, said: str | bot.Answer | Exception) -> None:
    """Let the light model say this; the other goes on echoing."""
    echo = model.says
    model.says = lambda ask: said if ask.schema else echo(ask)


def summary_asks(model: Script) -> list[bot.Ask]:
    return [ask for ask in model.asks if ask.schema]


def kept(okun: Okun) -> list[Any]:
    return okun.rows("SELECT chat_id, thread_id, text FROM summaries ORDER BY chat_id, thread_id")


async def chatter(room: Room, count: int, word: str = "chatter", start: int = 0) -> None:
    """Talk that nobody addresses to the bot, by three people in turn, in one batch."""
    for n in range(start, start + count):
        room.put("say", f"{word} number {n}", by=("Anna", "Borys", "Vira")[n % 3])
    await room.okun.take()


async def address(room: Room, times: int) -> None:
    """Let the bot reply so many times."""
    for n in range(times):
        await room.say(f"okun, hi {n}")


async def test_a_summary_is_made_beside_after_some_replies(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer())
    await chatter(group, 70)
    await address(group, bot.SUMMARY_EVERY_REPLIES - 1)
    assert model.kinds["light"] == 0
    await address(group, 1)
    assert model.kinds["light"] == 1
    assert kept(okun) == [(group.id, 0, "They spoke of pike.")]


async def test_a_summary_waits_for_nobody_and_nobody_for_it(okun: Okun, group: Room, model: Script) -> None:
    await chatter(group, 70)
    await address(group, bot.SUMMARY_EVERY_REPLIES - 1)
    model.held = True
    group.put("say", "okun, the tenth")
    await okun.take()
    model.writing[0].end("Yes")
    await okun.settle()
    assert model.asks[-1].schema  # it is being made
    group.put("say", "okun, the eleventh")
    await okun.take()
    model.writing[2].end("Here")
    await okun.settle()
    assert group.replies[-1].text == "Here" and kept(okun) == []
    model.writing[1].end(answer())
    await okun.settle()
    assert kept(okun) != []


@settings(context_messages=5)
async def test_a_summary_is_of_what_fell_out_of_the_window(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer())
    await chatter(group, 50)
    await bot.update_summary(okun.app, group.id, 0)
    [ask] = summary_asks(model)
    told = ask.said[-1].text
    assert ask.schema == bot.SummaryAnswer.model_json_schema() and ask.chat_id == group.id
    assert "P1: Anna: chatter number 0\nP2: Borys: chatter number 1\nP3: Vira: chatter number 2" in told
    assert "chatter number 44" in told and "chatter number 45" not in told


@settings(context_messages=5)
async def test_the_bots_own_words_are_labelled_as_its_own(okun: Okun, chat: Room, model: Script) -> None:
    summaries_by(model, answer())
    for n in range(5):
        await chat.say(f"n{n}")
    await bot.update_summary(okun.app, chat.id, 0, least=1)
    assert "P1: Anna: n0\nYou: Heard: n0\nP1: Anna: n1" in summary_asks(model)[0].said[-1].text


@settings(context_messages=5)
async def test_of_little_no_summary_is_made(okun: Okun, group: Room, model: Script) -> None:
    await chatter(group, bot.SUMMARY_LEAST + 4)
    await bot.update_summary(okun.app, group.id, 0)
    assert model.asks == []
    await chatter(group, 1)
    await bot.update_summary(okun.app, group.id, 0)
    assert model.kinds == {"light": 2}  # the echo is no JSON: asked once more


@settings(context_messages=5)
async def test_the_next_summary_carries_the_former_and_what_is_new(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer("They spoke of pike."))
    await chatter(group, 45)
    await bot.update_summary(okun.app, group.id, 0)
    [first] = group.rows("id", "text = 'chatter number 39'")
    assert okun.rows("SELECT until_row FROM summaries") == [(first,)]
    summaries_by(model, answer("Then of bream."))
    await chatter(group, 40, start=45)
    await bot.update_summary(okun.app, group.id, 0)
    told = summary_asks(model)[-1].said[-1].text
    assert "They spoke of pike." in told and "number 39" not in told and "number 40" in told
    assert kept(okun) == [(group.id, 0, "Then of bream.")]
    [second] = group.rows("id", "text = 'chatter number 79'")
    assert okun.rows("SELECT until_row FROM summaries") == [(second,)]


@settings(context_messages=5, context_tokens=1000)
async def test_what_does_not_fit_into_one_summary_is_in_the_next(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer())
    await chatter(group, 95, word="chatter " * 8)
    await bot.update_summary(okun.app, group.id, 0)
    await bot.update_summary(okun.app, group.id, 0)
    first, second = (ask.said[-1].text for ask in summary_asks(model))
    numbers = [int(line.rpartition(" ")[2]) for line in (first + "\n" + second).splitlines() if "number" in line]
    assert numbers == list(range(len(numbers))) and 40 < len(numbers) <= 90


@settings(context_messages=5)
async def test_the_summary_is_in_the_next_prompt_also_after_a_restart(okun: Okun, group: Room, model: Script) -> None:
    await group.say("okun, hi")
    assert "pike" not in model.asks[-1].system
    summaries_by(model, answer())
    await chatter(group, 50)
    await bot.update_summary(okun.app, group.id, 0)
    await group.say("okun, what was it?")
    assert "They spoke of pike." in model.asks[-1].system
    await okun.restart()
    await group.say("okun, and now?")
    assert "They spoke of pike." in okun.model.asks[-1].system


@settings(context_messages=5)
async def test_each_topic_has_its_own_summary(okun: Okun, model: Script) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    await chatter(fish, 50, word="fish")
    await chatter(cats, 50, word="cats")
    summaries_by(model, answer("They spoke of pike."))
    await bot.update_summary(okun.app, fish.id, fish.thread or 0)
    assert "cats" not in model.asks[-1].said[-1].text
    assert kept(okun) == [(forum.id, fish.thread, "They spoke of pike.")]
    await cats.say("okun, hi")
    assert "pike" not in model.asks[-1].system
    await fish.say("okun, hi")
    assert "pike" in model.asks[-1].system


async def test_replies_are_counted_for_each_topic(okun: Okun, model: Script) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    await chatter(fish, 80)
    await chatter(cats, 80)
    await address(fish, bot.SUMMARY_EVERY_REPLIES - 1)
    await address(cats, 1)
    assert model.kinds["light"] == 0


@settings(context_messages=5)
async def test_reset_deletes_the_summary_of_its_topic_alone(okun: Okun, model: Script) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    summaries_by(model, answer())
    for topic in (fish, cats):
        await chatter(topic, 50)
        await bot.update_summary(okun.app, topic.id, topic.thread or 0)
    await fish.say("/reset", by="Olena")
    assert kept(okun) == [(forum.id, cats.thread, "They spoke of pike.")]
    await fish.say("okun, hi")
    assert "pike" not in model.asks[-1].system


@settings(context_messages=5)
async def test_what_was_said_before_a_reset_comes_into_no_summary(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer())
    await chatter(group, 50, word="old")
    await group.say("/reset", by="Olena")
    await chatter(group, 50, word="new")
    await bot.update_summary(okun.app, group.id, 0)
    told = summary_asks(model)[-1].said[-1].text
    assert "new number 0" in told and "old" not in told


@settings(context_messages=5)
async def test_a_summary_that_is_being_made_does_not_outlive_a_reset(okun: Okun, group: Room, model: Script) -> None:
    await chatter(group, 50)
    model.held = True
    making = asyncio.create_task(bot.update_summary(okun.app, group.id, 0))
    await okun.settle()
    await group.say("/reset", by="Olena")
    model.writing[0].end(answer(P1="plays the cello"))
    await making
    assert (kept(okun), facts(okun)) == ([], [])


@settings(context_messages=5)
async def test_an_older_summary_does_not_replace_a_newer_one(okun: Okun, group: Room, model: Script) -> None:
    model.held = True
    await chatter(group, 50)
    slow = asyncio.create_task(bot.update_summary(okun.app, group.id, 0))
    await okun.settle()
    await chatter(group, 20, start=50)
    quick = asyncio.create_task(bot.update_summary(okun.app, group.id, 0))
    await okun.settle()
    for writing, text in zip(model.writing[::-1], ("The newer one.", "The older one."), strict=False):
        writing.end(answer(text))
        await okun.settle()
    await asyncio.gather(slow, quick)
    assert kept(okun) == [(group.id, 0, "The newer one.")]


# -- what the light model makes of it


@settings(context_messages=5)
async def test_facts_come_with_the_summary_for_whoever_said_them(okun: Okun, group: Room, model: Script) -> None:
    summaries_by(model, answer(P1="plays the cello", P3="hates coriander"))
    await chatter(group, 50)
    await bot.update_summary(okun.app, group.id, 0)
    expected = [(group.id, ANNA, "plays the cello", 0), (group.id, VIRA, "hates coriander", 0)]
    assert facts(okun, columns="chat_id, user_id, text, told") == expected
    await group.say("okun, hi")
    assert "Anna: plays the cello" in model.asks[-1].system
    [reply] = await group.say("/memory")
    assert shown(reply.text) == ["1. plays the cello"]


@settings(context_messages=5)
async def test_facts_about_whoever_did_not_speak_are_dropped(okun: Okun, group: Room, model: Script) -> None:
    labels = ("You", "P4", "Anna", "p1", "", "P1 ")
    summaries_by(model, answer(**dict.fromkeys(labels, "plays the cello")))
    await chatter(group, 50)
    await bot.update_summary(okun.app, group.id, 0)
    assert (len(kept(okun)), facts(okun)) == (1, [])


async def rolled(room: Room, said: str | Exception) -> None:
    """More talk, and a summary of it by a light model that says this."""
    summaries_by(room.okun.model, said)
    await chatter(room, 8)
    room.okun.app.spawn(bot.update_summary(room.okun.app, room.id, 0, least=1), "summary")
    await room.okun.settle()


@settings(context_messages=5)
async def test_json_in_a_fence_is_understood(okun: Okun, group: Room) -> None:
    wraps = ("```json\n{}\n```", "```\n{}\n```", "Here it is:\n{}\nThat's all.")
    for n, wrap in enumerate(wraps):
        await rolled(group, wrap.format(answer(f"Part {n}.")))
        assert kept(okun) == [(group.id, 0, f"Part {n}.")]


NO_JSON = ["", "no JSON at all", '{"summary": "cut o', bot.LlmError("overloaded"), bot.LlmError("quota")]
WRONG_SHAPES = ["[]", "null", "7", '"They spoke."', "{}", '{"facts": []}', '{"summary": null}', '{"summary": ["a"]}']
EMPTY = ['{"summary": "", "facts": []}', '{"summary": " \\n", "facts": []}']


@settings(context_messages=5)
@pytest.mark.parametrize("answers", [NO_JSON, WRONG_SHAPES, EMPTY], ids=["no JSON", "wrong shapes", "empty"])
async def test_a_useless_answer_leaves_all_as_it_was(okun: Okun, group: Room, answers: list[str | Exception]) -> None:
    await rolled(group, answer("They spoke of pike.", P1="plays the cello"))
    before = okun.rows("SELECT * FROM summaries"), facts(okun)
    assert len(before[0]) == 1
    for said in answers:
        await rolled(group, said)
        assert (okun.rows("SELECT * FROM summaries"), facts(okun)) == before


@settings(context_messages=5)
async def test_half_a_character_in_an_answer_harms_nothing(okun: Okun, group: Room) -> None:
    """JSON can spell what no text can hold."""
    await rolled(group, '{"summary": "pike \\ud800", "facts": [{"person": "P1", "fact": "has a \\udc1f cello"}]}')
    [reply] = await group.say("okun, hi")
    assert reply.text == "Heard: Anna: okun, hi"


RUBBISH_FACTS = [
    {"person": "P1", "fact": "plays the cello"}, {"person": "P1"}, {"fact": "x"}, {}, [], None, 7, "P1", ["P1", "x"],
    {"person": 1, "fact": "x"}, {"person": "P1", "fact": ["x"]}, {"person": "P1", "fact": " "},
    {"person": "P1", "fact": "\u200b"}, {"person": ["P1"], "fact": "x"}, {"person": None, "fact": None},
]  # fmt: skip


@settings(context_messages=5)
async def test_rubbish_among_the_facts_harms_nothing(okun: Okun, group: Room) -> None:
    await rolled(group, json.dumps({"summary": "They spoke of pike.", "facts": RUBBISH_FACTS}))
    assert kept(okun) == [(group.id, 0, "They spoke of pike.")]
    assert facts(okun) == ["plays the cello"]


@settings(context_messages=5)
async def test_facts_that_are_no_list_are_asked_for_once_more(okun: Okun, group: Room, model: Script) -> None:
    for n, rubbish in enumerate([{"P1": "x"}, "P1: x", None, 5, True]):
        answers = iter([json.dumps({"summary": "x", "facts": rubbish}), answer(f"Part {n}.")])
        model.says = lambda ask, answers=answers: next(answers) if ask.schema else "Yes"  # type: ignore[misc]
        await chatter(group, 50)
        await bot.update_summary(okun.app, group.id, 0)
        assert "facts: " in model.heard and kept(okun) == [(group.id, 0, f"Part {n}.")]
    assert facts(okun) == []


@settings(context_messages=5)
async def test_a_talkative_model_is_cut_short(okun: Okun, group: Room, model: Script) -> None:
    many = [{"person": "P1", "fact": f"{chr(97 + n) * 500} {n}"} for n in range(26)]
    summaries_by(model, json.dumps({"summary": "x" * 9000, "facts": many}))
    await chatter(group, 50)
    await bot.update_summary(okun.app, group.id, 0)
    [(_, _, text)] = kept(okun)
    assert len(text) == bot.MAX_SUMMARY_CHARS
    assert len(facts(okun)) == bot.MAX_FACTS and max(map(len, facts(okun))) == bot.MAX_FACT_CHARS


@settings(gemini_light_model=())
async def test_without_a_light_model_there_is_no_summary(okun: Okun, group: Room, model: Script) -> None:
    await chatter(group, 80)
    await address(group, bot.SUMMARY_EVERY_REPLIES + 2)
    assert model.kinds["light"] == 0 and kept(okun) == []


async def test_facts_and_summary_go_along_to_the_supergroup(okun: Okun, model: Script) -> None:
    group = okun.group(kind="group")
    summaries_by(model, answer())
    await teach(group, "plays the cello")
    await chatter(group, 80)
    await bot.update_summary(okun.app, group.id, 0)
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    await new.say("okun, hi")
    assert "pike" in model.asks[-1].system and "cello" in model.asks[-1].system


# -- what it costs


@settings(group_policy="mention")
async def test_what_nobody_addresses_to_the_bot_costs_no_call(okun: Okun, group: Room, model: Script) -> None:
    for start in range(0, 300, 100):
        await chatter(group, 100, start=start)
    await bot.index_messages(okun.app, 500)
    assert model.kinds == {}


@settings(group_policy="mention")
async def test_a_day_of_a_large_group_costs_little_more_than_its_answers(okun: Okun, model: Script) -> None:
    names = [f"Member{n}" for n in range(50)]
    group = okun.group("Crowd", *names)
    summaries_by(model, answer(P1="plays the cello"))
    called = 0
    for turn in range(75):
        for n in range(24 if turn % 3 else 26):
            group.put("say", f"talk {turn} {n}", by=names[(turn * 7 + n) % 50])
        if turn % 3 == 0:
            await okun.take()
        calls = model.kinds.total()
        for n in range(2):  # said together they are answered together
            group.put("say", f"okun, what of {turn}.{n}?", by=names[(turn + n) % 50])
        await okun.take()
        assert calls == called < model.kinds.total()  # the talk before cost none
        called = model.kinds.total()
    assert (len(group.rows(where="user_id IS NOT NULL")), len(group.replies)) == (2000, 75)
    assert called <= 1.15 * len(group.replies) and model.kinds["light"] >= 7


# -- tools


def calling(model: Script, tool: str, /, **args: Any) -> None:
    """Let the model use a tool, then say what came of it."""

    def says(ask: bot.Ask) -> bot.Answer:
        if results := ask.said[-1].results:
            return bot.Answer(f"Tool: {results[0].text}")
        return bot.Answer("", calls=(bot.Call(tool, args),))

    model.says = says


async def test_the_model_remembers_for_whoever_asks(okun: Okun, group: Room, model: Script) -> None:
    calling(model, "remember", fact="plays the cello", user_id=ANNA, chat_id=ANNA, person="Anna", name="Anna")
    [reply] = await group.say("okun, note that", by="Borys")
    assert reply.text == "Tool: remembered"
    assert facts(okun, columns="chat_id, user_id, text, told") == [(group.id, BORYS, "plays the cello", 1)]
    [reply] = await group.say("okun, note that", by="Borys")
    assert reply.text == "Tool: known already"


async def test_the_model_forgets_nothing_of_others(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    await teach(chat, "plays the cello")
    await teach(group, "plays the cello")
    for fact in ("plays the cello", "Anna plays the cello", "11: plays the cello", "*", "%"):
        calling(model, "forget", fact=fact, user_id=ANNA, chat_id=ANNA, owner=ANNA)
        [reply] = await group.say("okun, forget Anna's cello", by="Borys")
        assert reply.text == "Tool: nothing of the kind is known about this person here"
    assert len(facts(okun)) == 2


async def test_the_model_forgets_for_whoever_asks(okun: Okun, group: Room, model: Script) -> None:
    await teach(group, *FACTS[:2])
    calling(model, "forget", fact="that she plays the cello")
    [reply] = await group.say("okun, forget the cello")
    assert reply.text == f"Tool: forgotten: {FACTS[0]}" and facts(okun) == [FACTS[1]]


RUBBISH = [None, 7, True, ["x"], {"a": "b"}, " ", "\u200b", "\0", "x" * 20_000, "слово " * 3000, '" OR "', "NEAR(a b)",
           "terms:*", "*", "'; DROP TABLE facts; --"]  # fmt: skip


@pytest.mark.parametrize(("tool", "key"), [("remember", "fact"), ("forget", "fact"), ("search_chat", "query")])
async def test_whatever_a_model_puts_into_a_tool_harms_nothing(
    okun: Okun, group: Room, model: Script, tool: str, key: str
) -> None:
    await teach(group, "plays the cello", by="Borys")
    for rubbish in RUBBISH:
        calling(model, tool, **{key: rubbish, "user_id": BORYS})
        [reply] = await group.say("okun, do it")
        assert reply.text.startswith("Tool: ") and len(reply.text) < 2000
    assert facts(okun, "user_id = 12") == ["plays the cello"]
    assert all(len(fact) <= bot.MAX_FACT_CHARS for fact in facts(okun))


async def test_tools_without_their_argument_say_so(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    who = bot.Who(chat.id, 0, ANNA, "en", private=True)
    with pytest.raises(bot.BotError, match=r"remember\.usage"):
        await bot.TOOLS["remember"].handler(okun.app, who, {})
    assert await bot.TOOLS["search_chat"].handler(okun.app, who, {}) == "nothing found"
    assert (await bot.TOOLS["forget"].handler(okun.app, who, {})).startswith("nothing of the kind")


async def test_the_model_searches_this_chat_and_no_other(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    other = okun.group("Other")
    await group.say("the chainsaw is in the shed", by="Vira")
    await other.say("the chainsaw is in the lake", by="Vira")
    await chat.say("my chainsaw is in the attic")
    await bot.index_messages(okun.app)
    calling(model, "search_chat", query="chainsaw", chat_id=other.id, user_id=ANNA)
    [reply] = await group.say("okun, go and look", by="Borys")
    assert "Vira: the chainsaw is in the shed" in reply.text
    assert "lake" not in reply.text and "attic" not in reply.text


async def test_no_query_reaches_into_another_chat(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    await chat.say("my chainsaw is in the attic")
    await bot.index_messages(okun.app)
    key = bot.chat_key(chat.id)
    for query in (f"{key}xchainsaw", f"{key} chainsaw", f'"{key}xchainsaw" OR {key}x*', f"terms:{key}xchainsaw"):
        calling(model, "search_chat", query=query)
        [reply] = await group.say("okun, go and look", by="Borys")
        assert reply.text == "Tool: nothing found"


async def test_a_search_goes_on_in_what_was_said_before_the_migration(okun: Okun, model: Script) -> None:
    group = okun.group(kind="group")
    await group.say("the chainsaw is in the shed", by="Vira")
    await bot.index_messages(okun.app)
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    calling(model, "search_chat", query="chainsaw")
    [reply] = await new.say("okun, go and look")
    assert "in the shed" in reply.text


async def test_nobody_uses_tools_by_talk_that_is_not_addressed(okun: Okun, group: Room, model: Script) -> None:
    calling(model, "remember", fact="plays the cello")
    await group.say("remember that I play the cello")
    assert facts(okun) == []
