"""Talking: who is addressed, when the bot speaks unasked, what the model is asked, how the answer is shown and kept."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, Dice, Later, Okun, Room, Script, make_settings, mark, settings
from fakes import REACTIONS, Json

import bot

MEGABYTE = 2**20
PASTE = "ab " * 1365 + "a"  # 4,096 characters
TABLE = "| a | b |\n|---|---|\n| 1 | 2 |\n"


def without(*names: str) -> pytest.MarkDecorator:
    """No chance of anything unasked but of these."""
    chances = ("random_reply_chance", "smart_reply_chance", "reaction_chance")
    return settings(**{name: 0.0 for name in chances if name not in names})


# -- addressed or not

ADDRESSED = ["okun", "Okun, are you there?", "ОКУНЬ!", "hey окунь", "(okun)", "what,okun?", "okun\nnew line",
             "@okun_bot hi",
             "hi @Okun_Bot", "😀😀 @okun_bot"]  # fmt: skip
NOT_ADDRESSED = ["okunev is a name", "окуня спіймав", "monokun", "hi there", "@okun_bott hi", "@other_bot hi",
                 "okun_bot",
                 "mail@okun_botnet.com"]  # fmt: skip


@pytest.mark.parametrize("text", ADDRESSED)
async def test_a_name_or_a_mention_addresses_the_bot(group: Room, text: str) -> None:
    assert len(await group.say(text)) == 1


@pytest.mark.parametrize("text", NOT_ADDRESSED)
async def test_what_only_looks_like_a_name_does_not(group: Room, text: str) -> None:
    assert await group.say(text) == []


@settings(bot_names=("бот",))
async def test_robota_does_not_fire_a_bot_called_bot(group: Room) -> None:
    for text in ("робота", "робот", "боти", "субота", "botе"):
        assert await group.say(text) == []
    for text in ("Бот, привіт", "а бот що?", "БОТ"):
        assert len(await group.say(text)) == 1


@settings(bot_names=("c++", "a.b"))
async def test_a_name_is_text_and_no_pattern(group: Room) -> None:
    assert len(await group.say("i like C++ a lot")) == 1
    assert await group.say("axb c+") == []


@settings(bot_names=())
async def test_without_names_only_mentions_and_replies_address(group: Room) -> None:
    assert await group.say("okun?") == []
    assert len(await group.say("@okun_bot?")) == 1


async def test_a_caption_addresses_the_bot(group: Room) -> None:
    assert len(await group.send("photo", b"x", "okun, look")) == 1
    assert len(await group.send("photo", b"x", "@Okun_bot look")) == 1
    assert await group.send("photo", b"x", "look") == []


async def test_a_text_mention_addresses_the_bot(okun: Okun, group: Room) -> None:
    def mention(user: Json) -> list[Json]:
        return [{"type": "text_mention", "offset": 0, "length": 4, "user": user}]

    assert len(await group.say("Perchy, hi", entities=mention(okun.telegram.me))) == 1
    assert await group.say("Borys, hi", entities=mention(okun.person("Borys"))) == []


async def test_a_reply_to_the_bot_addresses_it_and_to_others_not(group: Room) -> None:
    [said] = await group.say("okun")
    mine = group.last_id
    assert len(await group.say("really", by="Borys", reply_to=said)) == 1
    assert await group.say("really", by="Borys", reply_to=mine) == []


async def test_writing_in_a_topic_that_the_bot_opened_does_not_address_it(okun: Okun) -> None:
    forum = okun.group(forum=True)
    topic = forum.topic("Fish")
    forum.chat.messages[topic.thread or 0]["from"] = okun.telegram.me
    assert await topic.say("hello all") == []
    [said] = await topic.say("okun")
    assert len(await topic.say("ah", reply_to=said)) == 1


@settings(group_policy="always")
async def test_other_bots_are_never_answered(okun: Okun, group: Room) -> None:
    okun.telegram.user(500, "Robo", is_bot=True)
    [said] = await group.say("okun")
    for text, where in (
        ("okun hi", {}),
        ("@okun_bot", {}),
        ("hm", {"reply_to": said}),
        ("/help@okun_bot", {}),
        ("?", {}),
    ):
        assert await group.say(text, by="Robo", **where) == []


async def test_in_private_everything_is_addressed(chat: Room) -> None:
    for kind, content in (("say", ["hi"]), ("sticker", ["😂"]), ("voice", []), ("poll", ["Tea?", ["yes", "no"]]),
                          ("location", [50.4, 30.5]), ("video_note", []), ("animation", [])):  # fmt: skip
        assert len(await chat.send(kind, *content)) == 1


async def test_a_service_message_is_not_answered(okun: Okun, chat: Room) -> None:
    assert await chat.send("post", {"pinned_message": {"message_id": 1}}) == []
    assert okun.inbox_rows == []


# -- when it speaks in a group

#  policy     addressed  not addressed, dice against  not addressed, dice for
POLICIES = [
    ("always",  True,  True,  True),
    ("smart",   True,  False, True),
    ("mention", True,  False, False),
    ("never",   False, False, False),
]  # fmt: skip


@without("random_reply_chance")
@pytest.mark.parametrize(("policy", "addressed", "against", "lucky"), POLICIES)
async def test_the_policy_says_when_it_speaks(
    okun: Okun, dice: Dice, policy: str, addressed: bool, against: bool, lucky: bool, later: Later
) -> None:
    await okun.restart(group_policy=policy)
    group = okun.group()
    assert bool(await group.say("okun, hi")) == addressed
    assert bool(await group.say("a plain remark")) == against
    await later(300)
    dice.always = 0.0
    assert bool(await group.say("a plain remark")) == lucky


@settings(group_policy="never")
async def test_commands_work_where_it_never_speaks(group: Room) -> None:
    assert len(await group.say("/help")) == 1


async def test_the_policy_of_a_chat_goes_before_that_of_the_bot(okun: Okun, group: Room) -> None:
    await group.say("/settings", by="Olena")
    await group.press(okun.t("settings.policy.always", "uk"), by="Olena")
    assert len(await group.say("a plain remark")) == 1
    assert await okun.group("Other").say("a plain remark") == []


def verdict(policy: str, *throws: float, worth: bool = False, **values: Any) -> str:
    dice = Dice()
    dice.load(*throws)
    return bot.unaddressed_verdict(policy, make_settings(**values), dice, worth=lambda: worth)


#  throws: reaction, then reply; the defaults are 0.05 for a reaction, 0.02 and 0.15 for a reply
VERDICTS = [
    ("smart", (0.049,), False, "react"),
    ("smart", (0.05, 0.02), False, "store"),
    ("smart", (0.05, 0.019), False, "join"),
    ("smart", (0.05, 0.149), False, "store"),
    ("smart", (0.05, 0.149), True, "join"),
    ("smart", (0.05, 0.15), True, "store"),
    ("always", (0.05,), False, "join"),
    ("always", (0.049,), False, "react"),
    ("mention", (0.0, 0.0), True, "store"),
    ("never", (0.0, 0.0), True, "store"),
]


@pytest.mark.parametrize(("policy", "throws", "worth", "found"), VERDICTS)
def test_chance_decides_as_the_settings_say(policy: str, throws: tuple[float, ...], worth: bool, found: str) -> None:
    assert verdict(policy, *throws, worth=worth) == found


def test_a_chance_of_nothing_never_comes_and_of_one_always() -> None:
    assert verdict("smart", 0.0, 0.0, reaction_chance=0, random_reply_chance=0) == "store"
    assert verdict("smart", 0.999, 0.999, reaction_chance=0, random_reply_chance=1) == "join"


WORTH = [("who is fishing today", True), ("перша риба пішла", True), ("we are home", False), ("what is it?", True)]


@without("smart_reply_chance")
@pytest.mark.parametrize(("text", "worth"), WORTH)
async def test_questions_and_topics_are_worth_a_word(group: Room, dice: Dice, text: str, worth: bool) -> None:
    dice.always = 0.1
    assert bool(await group.say(text)) == worth


@without("smart_reply_chance")
async def test_a_question_to_somebody_is_not_open(okun: Okun, group: Room, dice: Dice) -> None:
    await group.say("we are home")
    dice.always = 0.1
    assert await group.say("is it warm?", reply_to=group.last_id) == []
    assert await group.say("@borys is it warm?") == []
    mention = {"type": "text_mention", "offset": 0, "length": 5, "user": okun.person("Borys")}
    assert await group.say("Borys is it warm?", entities=[mention]) == []


@without("smart_reply_chance")
async def test_a_question_to_somebody_in_a_caption_is_not_open(group: Room, dice: Dice) -> None:
    dice.always = 0.1
    assert await group.send("photo", b"x", "@borys is it warm?") == []
    assert len(await group.send("photo", b"x", "is it warm?")) == 1


async def test_no_model_is_asked_whether_to_speak(group: Room, model: Script) -> None:
    for text in ("who is here?", "риба клює", "hello"):
        await group.say(text)
    assert model.asks == []


# -- the caps of unasked words


@settings(group_policy="always")
async def test_unasked_words_are_five_minutes_apart(group: Room, later: Later) -> None:
    assert len(await group.say("one")) == 1
    await later(299)
    assert await group.say("two") == []
    await later(1)
    assert len(await group.say("three")) == 1


@settings(group_policy="always")
async def test_unasked_words_are_four_an_hour(group: Room, later: Later) -> None:
    spoken = []
    for _ in range(13):
        spoken.append(len(await group.say("remark")))
        await later(300)
    assert spoken == [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]


@settings(group_policy="always", unprompted_per_hour=0)
async def test_a_cap_of_zero_is_none(group: Room, later: Later) -> None:
    for _ in range(6):
        assert len(await group.say("remark")) == 1
        await later(300)


@settings(group_policy="always")
async def test_the_caps_are_of_each_chat(okun: Okun, group: Room) -> None:
    assert len(await group.say("remark")) == 1
    assert len(await okun.group("Other").say("remark")) == 1


@settings(group_policy="always")
async def test_the_caps_outlive_a_restart(okun: Okun, group: Room, later: Later) -> None:
    await group.say("remark")
    await okun.restart()
    await later(299)
    assert await group.say("remark") == []


@settings(group_policy="always")
async def test_who_is_called_answers_beyond_all_caps(group: Room) -> None:
    await group.say("remark")
    for _ in range(6):
        assert len(await group.say("okun!")) == 1


#            Kyiv time, may speak
QUIET = [
    ((2026, 5, 13, 22, 59), True), ((2026, 5, 13, 23, 0), False), ((2026, 5, 14, 0, 0), False),
    ((2026, 5, 14, 7, 59), False), ((2026, 5, 14, 8, 0), True),
    # clocks go forward at 3:00 and back at 4:00 on these days
    ((2026, 3, 29, 2, 59), False), ((2026, 3, 29, 4, 0), False), ((2026, 3, 29, 7, 59), False),
    ((2026, 3, 29, 8, 0), True),
    ((2026, 10, 25, 3, 30), False), ((2026, 10, 25, 7, 59), False), ((2026, 10, 25, 8, 0), True),
]  # fmt: skip


@settings(group_policy="always")
@pytest.mark.parametrize(("when", "may"), QUIET)
async def test_quiet_hours_go_over_midnight(okun: Okun, group: Room, when: tuple[int, ...], may: bool) -> None:
    okun.clock.set(*when)
    assert bool(await group.say("remark")) == may
    assert len(await group.say("okun!")) == 1


@settings(group_policy="always", quiet_hours=None)
async def test_without_quiet_hours_it_may_speak_at_night(okun: Okun, group: Room) -> None:
    okun.clock.set(2026, 5, 14, 3, 0)
    assert len(await group.say("remark")) == 1


@settings(group_policy="always", quiet_hours=bot.Hours(9, 18))
async def test_quiet_hours_within_a_day(okun: Okun, group: Room) -> None:
    okun.clock.set(2026, 5, 14, 17, 59)
    assert await group.say("remark") == []
    okun.clock.set(2026, 5, 14, 18, 0)
    assert len(await group.say("remark")) == 1


@settings(group_policy="always")
async def test_quiet_mutes_until_it_ends(okun: Okun, group: Room, later: Later) -> None:
    await group.say("/quiet 2h")
    await later(7199)
    assert await group.say("remark") == []
    assert len(await group.say("okun!")) == 1
    await later(1)
    assert len(await group.say("remark")) == 1


@settings(group_policy="always")
async def test_quiet_off_ends_it(group: Room) -> None:
    await group.say("/quiet 2h")
    await group.say("/quiet off")
    assert len(await group.say("remark")) == 1


@settings(unprompted_per_hour=0)
@without("random_reply_chance")
async def test_no_unasked_words_in_a_conflict(group: Room, dice: Dice, later: Later) -> None:
    await group.say("you are an idiot and this is awful")
    await group.say("shut up, i hate you, you liar", by="Borys")
    dice.always = 0.0
    assert await group.say("i hate this", by="Vira") == []
    assert len(await group.say("okun, help")) == 1
    await later(601)
    assert len(await group.say("remark")) == 1


@settings(group_policy="always")
async def test_no_unasked_words_in_a_backlog(group: Room) -> None:
    assert await group.say("remark", date=NOON - 601) == []
    assert len(await group.say("remark", date=NOON - 600)) == 1


# -- reactions


@without("reaction_chance")
async def test_reactions_instead_of_words_by_chance(okun: Okun, group: Room, dice: Dice) -> None:
    dice.load(0.05)
    await group.say("remark")
    assert okun.telegram.reactions(group.chat, group.last_id) == []
    dice.load(0.049)
    assert await group.say("remark") == []
    assert len(okun.telegram.reactions(group.chat, group.last_id)) == 1


async def test_at_most_five_reactions_a_minute(okun: Okun, group: Room, dice: Dice, later: Later) -> None:
    dice.always = 0.0
    for _ in range(8):
        await group.say("remark")
        await later(5)
    assert len(okun.called("setMessageReaction")) == 5
    await later(20)
    await group.say("remark")
    assert len(okun.called("setMessageReaction")) == 6


def test_only_reactions_that_telegram_allows() -> None:
    dice = random.Random(1)
    chosen = {bot.reaction_for(mood, dice) for mood in (-0.9, 0.0, 0.9) for _ in range(200)}
    assert chosen <= REACTIONS and len(chosen) > 8


def test_reactions_fit_the_mood() -> None:
    dice = random.Random(1)
    warm, cold = ({bot.reaction_for(mood, dice) for _ in range(200)} for mood in (0.5, -0.5))
    assert "🔥" in warm and "💔" in cold and not warm & cold


@pytest.mark.parametrize("reason", ["quiet", "night", "conflict", "backlog", "mention", "never"])
async def test_no_reactions_where_it_should_be_still(okun: Okun, group: Room, dice: Dice, reason: str) -> None:
    if reason in ("mention", "never"):
        await okun.restart(group_policy=reason)
    if reason == "quiet":
        await group.say("/quiet 2h")
    if reason == "night":
        okun.clock.set(2026, 5, 14, 3, 0)
    if reason == "conflict":
        await group.say("you are an idiot and this is awful")
        await group.say("shut up, i hate you, you liar", by="Borys")
    dice.always = 0.0
    await group.say("remark i hate", date=NOON - 9999 if reason == "backlog" else None)
    assert okun.called("setMessageReaction") == []


async def test_a_refused_reaction_is_let_go(okun: Okun, group: Room, dice: Dice) -> None:
    okun.telegram.fault("400", "setMessageReaction", text="REACTION_INVALID")
    dice.always = 0.0
    assert await group.say("remark") == []
    assert okun.inbox_rows == []


# -- turns


async def test_what_comes_while_a_reply_runs_is_one_merged_turn(chat: Room, model: Script, okun: Okun) -> None:
    model.held = True
    await chat.say("one")
    await chat.say("two")
    await chat.say("three")
    assert len(model.asks) == 1
    model.writing[0].end("First")
    await okun.settle()
    assert model.heard == "two\nthree"
    model.writing[1].end("Second")
    await okun.settle()
    assert [(reply.text, reply.reply_to) for reply in chat.replies][1] == ("Second", chat.last_id)
    assert len(chat.replies) == 2 and okun.inbox_rows == []


async def test_a_merged_turn_of_several_people_names_them_all(group: Room, model: Script, okun: Okun) -> None:
    model.held = True
    await group.say("okun, wait")
    await group.say("okun, me?", by="Borys")
    await group.say("and okun, me?", by="Vira")
    model.writing[0].end("Yes")
    await okun.settle()
    assert model.heard == "Borys: okun, me?\nVira: and okun, me?"
    assert "Borys, Vira" in model.asks[1].system
    model.writing[1].end("Yes, yes")


async def test_an_edit_of_what_still_waits_is_what_is_answered(chat: Room, model: Script, okun: Okun) -> None:
    model.held = True
    await chat.say("one")
    await chat.say("tow")
    await chat.edit(chat.last_id, "two")
    model.writing[0].end("First")
    await okun.settle()
    assert model.heard == "two"
    model.writing[1].end("Second")


async def test_what_waits_is_answered_though_the_talk_was_reset(chat: Room, model: Script, okun: Okun) -> None:
    model.held = True
    await chat.say("one")
    await chat.say("two")
    await chat.say("/reset")  # ends the reply to the first: it belongs to the old conversation
    await okun.settle()
    assert model.heard == "two" and "user: one" not in model.past
    model.writing[1].end("Second")
    await okun.settle()
    assert [reply.text for reply in chat.replies][1:] == ["Second"]


async def test_a_reply_answers_under_the_message_in_its_topic(okun: Okun) -> None:
    topic = okun.group(forum=True).topic("Fish")
    [reply] = await topic.say("okun!")
    assert (reply.thread, reply.reply_to) == (topic.thread, topic.last_id)


async def test_a_reply_to_a_message_that_was_deleted_goes_without(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("hi")
    del chat.chat.messages[chat.last_id]
    model.writing[0].end("Hello")
    await okun.settle()
    assert [(reply.text, reply.reply_to) for reply in chat.replies] == [("Hello", None)]


async def test_two_topics_are_never_mixed(okun: Okun, model: Script) -> None:
    forum = okun.group(forum=True)
    fish, cats = forum.topic("Fish"), forum.topic("Cats")
    model.held = True
    await fish.say("okun, about fish")
    await cats.say("okun, about cats")
    await fish.say("okun, more fish")
    assert [ask.said[-1].text for ask in model.asks] == ["Anna: okun, about fish", "Anna: okun, about cats"]
    model.writing[1].end("Meow")
    model.writing[0].end("Blub")
    await okun.settle()
    model.writing[2].end("Blub blub")
    await okun.settle()
    assert [(reply.text, reply.thread) for reply in forum.replies] == [
        ("Meow", cats.thread), ("Blub", fish.thread), ("Blub blub", fish.thread),
    ]  # fmt: skip
    assert model.past == ["user: Anna: okun, about fish", "model: Blub"]


async def test_two_chats_run_beside_each_other(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("hi")
    await okun.private("Borys").say("hi")
    assert len(model.writing) == 2
    for writing in model.writing:
        writing.end("Hello")


async def test_an_album_is_one_turn(chat: Room, model: Script, later: Later) -> None:
    assert await chat.send("album", [b"1", b"2", b"3"], "my cats") == []
    await later(0.5)
    assert len(chat.replies) == 1
    assert [media.data for media in model.asks[0].said[-1].media] == [b"1", b"2", b"3"]
    assert model.heard == "[photo] my cats\n[photo]\n[photo]"


async def test_an_album_waits_for_parts_that_come_later(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    chat.put("album", [b"1", b"2"])
    one, two = okun.telegram.next_updates()
    await okun.feed(one)
    await later(0.4)
    await okun.feed(two)
    await later(0.4)
    assert model.asks == []
    await later(0.1)
    assert len(model.asks) == 1 and len(model.asks[0].said[-1].media) == 2


async def test_an_album_in_a_group_is_one_turn_though_only_one_part_is_addressed(
    okun: Okun, group: Room, model: Script, later: Later
) -> None:
    group.put("album", [b"1", b"2", b"3"], "okun, look")
    one, *rest = okun.telegram.next_updates()
    await okun.feed(one)
    await later(0.2)
    await okun.feed(*rest)
    await later(0.5)
    assert len(group.replies) == 1
    assert sorted(media.data for media in model.asks[0].said[-1].media) == [b"1", b"2", b"3"]


async def test_an_album_addressed_in_its_last_part_is_seen_whole(group: Room, model: Script, later: Later) -> None:
    group.put("photo", b"1", media_group_id="77")
    group.put("photo", b"2", "okun, look", media_group_id="77")
    await group.okun.take()
    await later(0.5)
    assert sorted(media.data for media in model.asks[0].said[-1].media) == [b"1", b"2"]


async def test_an_album_waits_also_across_a_restart(okun: Okun, chat: Room, later: Later) -> None:
    chat.put("album", [b"1", b"2"])
    one, two = okun.telegram.next_updates()
    await okun.feed(one)
    await okun.restart()
    await later(0.3)
    await okun.feed(two)
    await later(0.5)
    assert len(chat.replies) == 1 and len(okun.model.asks[0].said[-1].media) == 2


async def test_a_long_paste_is_one_turn(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    assert await chat.say(PASTE) == []
    await later(0.9)
    await chat.say("the end")
    await later(1)
    assert len(model.asks) == 1
    assert model.heard == PASTE + "\nthe end"


async def test_a_long_paste_waits_a_second_at_most(chat: Room, model: Script, later: Later) -> None:
    await chat.say(PASTE[:4000])
    await later(0.99)
    assert model.asks == []
    await later(0.01)
    assert len(model.asks) == 1


async def test_a_shorter_text_does_not_wait(chat: Room, model: Script) -> None:
    await chat.say(PASTE[:3999])
    assert len(model.asks) == 1


async def test_a_long_paste_in_a_group_is_one_turn_though_only_its_beginning_is_addressed(
    group: Room, model: Script, later: Later
) -> None:
    await group.say("okun, what is this? " + PASTE[:4000])
    await group.say("not mine", by="Borys")
    await group.say("and the rest")
    await later(1)
    assert len(model.asks) == 1
    assert model.heard.splitlines()[-1] == "Anna: and the rest" and "Borys" not in model.heard


async def test_a_long_paste_in_a_group_that_comes_in_one_batch_is_one_turn(
    okun: Okun, group: Room, model: Script, later: Later
) -> None:
    group.put("say", "okun, what is this? " + PASTE[:4000])
    group.put("say", "not mine", by="Borys")
    group.put("say", "and the rest")
    await okun.take()
    await later(1)
    assert len(model.asks) == 1
    assert model.heard.splitlines()[-1] == "Anna: and the rest" and "Borys" not in model.heard


# -- files


async def test_a_picture_reaches_the_model(chat: Room, model: Script) -> None:
    [reply] = await chat.send("photo", b"a cat", "who is it?")
    assert model.asks[0].said[-1].media == (bot.Media("image/jpeg", b"a cat"),)
    assert reply.text.endswith(f"[image/jpeg {mark(b'a cat')}]")


FETCHED = [("photo", "image/jpeg"), ("voice", "audio/ogg"), ("audio", "audio/mpeg"), ("video", "video/mp4"),
           ("video_note", "video/mp4"), ("animation", "video/mp4"), ("sticker", "image/webp")]  # fmt: skip


@pytest.mark.parametrize(("kind", "mime"), FETCHED)
async def test_each_kind_of_media_is_fetched_for_a_reply(okun: Okun, chat: Room, kind: str, mime: str) -> None:
    await chat.send(kind, *(["🙂", b"data"] if kind == "sticker" else [b"data"]))
    assert okun.model.asks[0].said[-1].media == (bot.Media(mime, b"data"),)


async def test_no_file_is_fetched_without_a_reply(okun: Okun, group: Room) -> None:
    await group.send("photo", b"1")
    await group.send("voice", b"2")
    assert okun.wire.downloads == [] and okun.called("getFile") == []


async def test_a_replied_to_picture_is_fetched_then(okun: Okun, group: Room, model: Script) -> None:
    await group.send("photo", b"a cat", by="Borys")
    await group.say("okun, who is it?", reply_to=group.last_id)
    assert model.asks[0].said[-1].media == (bot.Media("image/jpeg", b"a cat"),)
    assert "[replying to Borys:" in model.heard


async def test_a_picture_of_another_chat_is_fetched(okun: Okun, chat: Room, model: Script) -> None:
    stored = okun.telegram.store_file("photo", b"far", width=9, height=9)
    external = {"origin": {"type": "channel", "chat": {"id": -5, "title": "News"}}, "photo": [stored.card]}
    await chat.say("and this?", external_reply=external)
    assert model.asks[0].said[-1].media == (bot.Media("image/jpeg", b"far"),)
    assert "[replying to a message of News in another chat]" in model.heard


async def test_pictures_of_earlier_turns_are_not_fetched_again(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("photo", b"a cat")
    await chat.say("and now?")
    assert len(okun.wire.downloads) == 1
    assert model.past[0] == "user: [photo]"


async def test_a_file_over_20_megabytes_is_noted(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("video", b"x", size=21 * MEGABYTE)
    assert "[video: larger than 20 MB]" in model.heard
    assert okun.wire.downloads == []


async def test_a_file_that_lies_about_its_size_is_noted(
    okun: Okun, chat: Room, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MAX_DOWNLOAD", 10)
    await chat.send("video", b"x" * 11, size=5)
    assert "[video: larger than 20 MB]" in model.heard


async def test_the_files_of_a_turn_together_are_bounded(
    okun: Okun, chat: Room, model: Script, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MAX_DOWNLOAD", 10)
    await chat.send("album", [b"123456", b"abcdef", b"xyz"])
    await later(0.5)
    assert [media.data for media in model.asks[0].said[-1].media] == [b"123456", b"xyz"]
    assert len(okun.wire.downloads) == 2 and "[photo: larger than 20 MB]" in model.heard


@pytest.fixture
async def both_heavy(okun: Okun) -> AsyncIterator[asyncio.Semaphore]:
    """Two large files are at work elsewhere until the test lets one of them go."""
    for _ in range(2):
        await okun.app.heavy.acquire()
    yield okun.app.heavy
    okun.app.heavy.release()


@settings(max_parallel_llm=1)
async def test_a_large_file_that_waits_for_its_turn_holds_up_no_light_talk(
    okun: Okun, chat: Room, both_heavy: asyncio.Semaphore
) -> None:
    assert await chat.send("video", b"x", size=5 * MEGABYTE) == []
    assert len(await okun.private("Borys").say("hi")) == 1
    both_heavy.release()
    await okun.settle()
    assert len(chat.replies) == 1


async def test_a_large_file_of_another_chat_waits_for_its_turn(
    okun: Okun, chat: Room, both_heavy: asyncio.Semaphore
) -> None:
    stored = okun.telegram.store_file("video", b"far", size=5 * MEGABYTE)
    external = {"origin": {"type": "channel", "chat": {"id": -5, "title": "News"}}, "video": stored.card}
    assert await chat.say("and this?", external_reply=external) == [] and okun.wire.downloads == []
    both_heavy.release()
    await okun.settle()
    assert len(chat.replies) == 1


async def test_a_large_part_of_an_album_nobody_addressed_waits_for_its_turn(
    okun: Okun, group: Room, both_heavy: asyncio.Semaphore, later: Later
) -> None:
    group.put("video", b"x", size=5 * MEGABYTE, media_group_id="7")
    await okun.take()
    group.put("photo", b"small", "okun, look", media_group_id="7")
    await okun.take()
    await later(1)
    assert okun.wire.downloads == []
    both_heavy.release()
    await okun.settle()
    assert len(group.replies) == 1 and len(okun.wire.downloads) == 2


async def test_a_file_of_unknown_size_may_be_large(okun: Okun, chat: Room, both_heavy: asyncio.Semaphore) -> None:
    assert await chat.send("video", b"x", size=0) == [] and okun.wire.downloads == []
    both_heavy.release()
    await okun.settle()
    assert len(chat.replies) == 1


async def test_a_file_that_cannot_be_fetched_is_noted(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.fault("500", "download")
    await chat.send("photo", b"x", "who is it?")
    assert model.heard == "[photo] who is it?\n[photo: not reachable]"


async def test_a_file_that_telegram_lost_is_noted(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.fault("400", "getFile", text="wrong file_id or the file is temporarily unavailable")
    await chat.send("photo", b"x")
    assert "[photo: not reachable]" in model.heard


async def test_a_text_file_is_read(chat: Room, model: Script) -> None:
    await chat.send("document", "print('щука')".encode(), "pike.py", "text/x-python", "what does it do?")
    assert "[contents of pike.py]\nprint('щука')" in model.heard
    assert "what does it do?" in model.heard and not model.asks[0].said[-1].media


@settings(context_tokens=40_000)
async def test_a_text_file_is_known_by_its_name_and_read_up_to_a_bound(chat: Room, model: Script) -> None:
    await chat.send("document", b"ab " * 30_000, "notes.MD", "application/octet-stream")
    assert model.heard.endswith("ab " * 10_000) and "ab " * 10_000 + "a" not in model.heard


async def test_a_file_that_is_no_proper_text_is_read_as_it_is(chat: Room, model: Script) -> None:
    await chat.send("document", b"ok \xff\xfe", "broken.txt")
    assert "ok \ufffd" in model.heard


async def test_a_pdf_goes_to_the_model(chat: Room, model: Script) -> None:
    await chat.send("document", b"%PDF-1.7", "a.pdf", "application/pdf")
    assert model.asks[0].said[-1].media == (bot.Media("application/pdf", b"%PDF-1.7"),)


async def test_a_file_no_model_can_read_is_only_named(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("document", b"PK", "a.zip", "application/zip")
    assert "[document a.zip]" in model.heard and okun.wire.downloads == []


async def test_an_animated_sticker_is_an_emoji(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.media("sticker", chat.chat, okun.person("Anna"), b"tgs", facts={
        "type": "regular", "width": 1, "height": 1, "emoji": "😂", "is_animated": True, "is_video": False})  # fmt: skip
    await okun.take()
    assert model.heard == "[sticker] 😂" and okun.wire.downloads == []


async def test_at_most_so_many_files_go_with_a_turn(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("wait")
    for number in range(12):
        await chat.send("photo", b"%d" % number)
    model.writing[0].end("Yes?")
    await later(1)
    assert len(model.asks[1].said[-1].media) == bot.MAX_MEDIA_PER_TURN
    model.writing[1].end("Many")


# -- quotes


async def test_a_marked_quote_reaches_the_model(group: Room, model: Script) -> None:
    await group.say("one two three", by="Borys")
    await group.say("okun, why?", reply_to=group.last_id, quote={"text": "two", "position": 4})
    assert "[quoting: “two”]" in model.heard


async def test_a_long_message_replied_to_reaches_the_model_whole(group: Room, model: Script) -> None:
    await group.say("word " * 100 + "END", by="Borys")
    await group.say("okun, in short?", reply_to=group.last_id)
    assert model.heard.count("END") == 1


# -- how the answer is shown


async def test_a_quick_answer_shows_no_draft(okun: Okun, chat: Room) -> None:
    assert len(await chat.say("hi")) == 1
    assert okun.drafts(chat) == []


async def test_in_private_drafts_then_one_message(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    for text in ("Hel", "Hello", "Hello th"):
        model.writing[0].show(text)
        await later(1)
    assert okun.drafts(chat) == ["Hel…", "Hello…", "Hello th…"]
    assert chat.replies == []
    model.writing[0].end("Hello there")
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Hello there"]
    assert len({draft["draft_id"] for draft in okun.telegram.drafts(chat.chat)}) == 1
    await later(60)
    assert len(okun.drafts(chat)) == 3


async def test_drafts_go_at_most_once_in_0_8_seconds(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    for number in range(40):
        model.writing[0].show("a" * (number + 1))
        await later(0.1)
    assert 4 <= len(okun.drafts(chat)) <= 6
    model.writing[0].end("a")


async def test_a_draft_shows_before_the_first_word(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    await later(0.2)
    assert okun.drafts(chat) == [""]
    model.writing[0].end("Hello")


async def test_a_draft_is_renewed_after_20_seconds_of_silence(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.held = True
    await chat.say("hi")
    model.writing[0].show("Hm")
    await later(19)
    assert okun.drafts(chat) == ["Hm…"]
    await later(2)
    assert okun.drafts(chat) == ["Hm…", "Hm…"]
    await later(21)
    assert len(okun.drafts(chat)) == 3
    model.writing[0].end("Hm.")


async def test_a_draft_shows_the_end_of_a_text_too_long_for_it(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.held = True
    await chat.say("hi")
    model.writing[0].show("word " * 1000 + "THE END")
    await later(1)
    assert okun.drafts(chat)[-1].endswith("THE END…")
    model.writing[0].end("short")


async def test_a_refused_draft_does_not_stop_the_answer(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    okun.telegram.fault("400", "sendMessageDraft", times=9, text="DRAFT_ID_INVALID")
    model.held = True
    await chat.say("hi")
    await later(3)
    model.writing[0].end("Hello")
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Hello"]


async def test_a_draft_that_hangs_does_not_stop_the_answer(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    event = okun.wire.hold("sendMessageDraft")
    model.held = True
    await chat.say("hi")
    await later(1)
    model.writing[0].end("Hello")
    await later(2)
    assert [reply.text for reply in chat.replies] == ["Hello"]
    event.set()
    await later(5)
    assert okun.drafts(chat) == []


async def test_in_groups_typing_then_one_message(okun: Okun, model: Script, later: Later) -> None:
    topic = okun.group(forum=True).topic("Fish")
    model.held = True
    await topic.say("okun?")
    model.writing[0].show("Hel")
    await later(5)
    assert [call["action"] for call in okun.called("sendChatAction")] == ["typing", "typing"]
    assert {call["message_thread_id"] for call in okun.called("sendChatAction")} == {topic.thread}
    model.writing[0].end("Hello")
    await later(20)
    assert len(topic.replies) == 1 and okun.drafts(topic) == []
    assert len(okun.called("sendChatAction")) == 2


async def test_the_stop_button_keeps_what_was_said(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    model.writing[0].show("Hello th")
    await later(1)
    okun.telegram.stop_draft(chat.chat)
    await okun.take()
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Hello th"]
    assert chat.rows() == ["hi", "Hello th"] and okun.inbox_rows == []
    model.held = False
    assert len(await chat.say("go on")) == 1


async def test_a_stop_before_the_first_word_says_nothing(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    await later(1)
    okun.telegram.stop_draft(chat.chat)
    await okun.take()
    await later(1)
    assert chat.replies == [] and okun.inbox_rows == [] and chat.rows() == ["hi"]


async def test_a_stop_of_a_draft_long_gone_is_harmless(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    await later(1)
    model.writing[0].end("Hello")
    await later(1)
    okun.telegram.stop_draft(chat.chat)
    await okun.take()
    assert len(chat.replies) == 1 and okun.inbox_rows == []


async def test_cancel_stops_what_is_being_written(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    model.writing[0].show("Hello th")
    await later(1)
    await chat.say("/cancel")
    await later(3)
    assert sorted(reply.text for reply in chat.replies) == sorted(["Hello th", okun.t("cancel.stopped")])


async def test_cancel_in_one_chat_leaves_the_others(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.held = True
    await chat.say("hi")
    [reply] = await okun.private("Borys").say("/cancel")
    assert reply.text == okun.t("cancel.nothing", "uk")
    model.writing[0].end("Hello")
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Hello"]


# -- when the model fails

KINDS = ["blocked", "key", "quota", "rate", "overloaded", "timeout", "network", "server", "request"]


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_the_model_becomes_kind_words_and_the_chat_goes_on(
    okun: Okun, chat: Room, model: Script, kind: str
) -> None:
    model.always(bot.LlmError(kind))
    [reply] = await chat.say("hi")
    assert reply.text == okun.t(f"llm.{kind}")
    assert chat.rows("kind", "user_id IS NULL") == ["notice"] and okun.inbox_rows == []
    model.always("Better now")
    assert [reply.text for reply in await chat.say("hi")] == ["Better now"]
    assert model.past == ["user: hi"]


async def test_an_error_is_told_in_the_language_of_the_asker(okun: Okun, model: Script) -> None:
    model.always(bot.LlmError("rate"))
    [reply] = await okun.private("Borys").say("привіт")
    assert reply.text == okun.t("llm.rate", "uk")


@settings(group_policy="always")
async def test_nobody_is_told_of_an_error_nobody_asked_for(okun: Okun, group: Room, model: Script) -> None:
    model.always(bot.LlmError("rate"))
    assert await group.say("remark") == []
    assert okun.inbox_rows == []


@pytest.mark.parametrize("finish", ["length", "cut"])
async def test_an_answer_that_ended_early_says_so(okun: Okun, chat: Room, model: Script, finish: Any) -> None:
    model.always(bot.Answer("Once upon", finish))
    [reply] = await chat.say("a tale")
    assert reply.text == f"Once upon {okun.t('reply.' + finish)}"


# -- how it is sent


async def test_markdown_becomes_entities(chat: Room, model: Script) -> None:
    model.always("**bold** and `code`")
    [reply] = await chat.say("hi")
    assert (reply.text, reply.entities) == ("bold and code", ["bold", "code"])
    assert chat.rows()[-1] == "**bold** and `code`"


async def test_refused_entities_go_plain_once(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.fault("400", "sendMessage", text="can't parse entities")
    model.always("**bold**")
    [reply] = await chat.say("hi")
    assert (reply.text, reply.entities, reply.reply_to) == ("bold", [], chat.last_id)


async def test_a_link_has_no_preview(okun: Okun, chat: Room, model: Script) -> None:
    model.always("see https://example.com")
    await chat.say("hi")
    assert okun.called("sendMessage")[0]["link_preview_options"] == {"is_disabled": True}


LONG = "\n\n".join(f"Paragraph {number}. " + "words and words " * 30 for number in range(40)).strip()


async def test_a_long_reply_is_stored_whole_in_one_row(okun: Okun, chat: Room, model: Script) -> None:
    assert len(LONG) > 19_000
    model.always(LONG)
    replies = await chat.say("tell me all")
    assert len(replies) >= 5 and all(len(reply.text) <= 4096 for reply in replies)
    assert "".join("".join(reply.text for reply in replies).split()) == "".join(LONG.split())
    assert [reply.reply_to for reply in replies] == [chat.last_id] + [None] * (len(replies) - 1)
    assert chat.rows("text, message_id", "user_id IS NULL") == [(LONG, replies[0].id)]
    assert okun.inbox_rows == []


async def test_a_restart_in_the_middle_of_the_parts_sends_only_the_rest(okun: Okun, chat: Room, model: Script) -> None:
    okun.wire.hold("sendMessage", after=2)
    model.always(LONG)
    assert len(await chat.say("tell me all")) == 2
    await okun.restart()
    assert okun.model.asks == []
    assert "".join("".join(reply.text for reply in chat.replies).split()) == "".join(LONG.split())
    assert chat.rows("text, message_id", "user_id IS NULL") == [(LONG, chat.replies[0].id)]
    assert okun.inbox_rows == []


async def test_a_restart_in_the_middle_answers_a_merged_turn_once(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("one")
    await chat.say("two")
    await chat.say("three")
    okun.wire.hold("sendMessage", after=2)
    model.held = False
    model.always(LONG)
    model.writing[0].end("First")
    await okun.settle()
    await okun.restart()
    assert okun.model.asks == [] and okun.inbox_rows == []
    assert "".join("".join(reply.text for reply in chat.replies[1:]).split()) == "".join(LONG.split())


async def test_a_send_that_may_have_arrived_is_not_repeated(okun: Okun, chat: Room, later: Later) -> None:
    okun.telegram.fault("timeout_after", "sendMessage")
    assert len(await chat.say("hi")) == 1
    await later(600)
    assert len(chat.replies) == 1 and okun.inbox_rows == []
    assert chat.rows("text, message_id", "user_id IS NULL") == [("Heard: hi", None)]


async def test_a_send_over_a_stale_connection_is_repeated_once(okun: Okun, chat: Room) -> None:
    okun.telegram.fault("reset", "sendMessage")
    assert len(await chat.say("hi")) == 1


async def test_somebody_who_blocked_the_bot_is_let_go_and_may_come_back(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.held = True
    await chat.say("hi")
    okun.telegram.membership(chat.chat, "kicked")
    model.writing[0].end("Hello")
    await later(60)
    assert chat.replies == [] and okun.inbox_rows == []
    assert okun.rows("SELECT gone_at IS NULL FROM chats") == [(0,)]
    okun.telegram.membership(chat.chat, "member")
    model.held = False
    await chat.say("I'm back")
    assert okun.rows("SELECT gone_at IS NULL FROM chats") == [(1,)]
    assert len(chat.replies) == 1


@pytest.mark.parametrize("loss", ["topic", "rights"])
async def test_where_nobody_can_be_answered_any_more_it_is_let_go(okun: Okun, model: Script, loss: str) -> None:
    topic = okun.group(forum=True).topic("Fish")
    model.held = True
    await topic.say("okun?")
    if loss == "topic":
        topic.chat.topics.clear()
    else:
        topic.chat.bot_status = "restricted"
    model.writing[0].end("Here")
    await okun.settle()
    assert topic.replies == [] and okun.inbox_rows == []


@pytest.mark.parametrize("text", ["```\n```", "#", "[](http://x)"])
async def test_an_answer_that_is_only_markup_is_not_swallowed(chat: Room, model: Script, text: str) -> None:
    model.always(text)
    assert [reply.text for reply in await chat.say("hi")] == [text]


async def test_a_reply_is_stored_in_the_commit_that_ends_the_update(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[list[str]] = []
    attempt = okun.app.db._attempt

    async def note(merged: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        commits.append([sql for sql, rows in merged if rows])
        await attempt(merged)

    monkeypatch.setattr(okun.app.db, "_attempt", note)
    await chat.say("hi")
    ending = [commit for commit in commits if bot.DONE_INBOX.sql in commit]
    assert len(ending) == 1 and bot.PUT_MESSAGE.sql in ending[0]
    assert len(commits) == 2  # one before the update is confirmed, one that ends it


# -- rich messages


async def test_tables_go_as_text_unless_wanted(okun: Okun, chat: Room, model: Script) -> None:
    model.always(TABLE)
    await chat.say("hi")
    assert okun.called("sendRichMessage") == []


@settings(rich_messages=True)
async def test_tables_go_as_a_rich_message_where_wanted(okun: Okun, chat: Room, model: Script) -> None:
    model.always(TABLE)
    [reply] = await chat.say("hi")
    assert reply.text == TABLE and reply.reply_to == chat.last_id
    assert chat.rows("text, message_id", "user_id IS NULL") == [(TABLE, reply.id)]


@settings(rich_messages=True)
async def test_plain_words_go_plain_even_so(okun: Okun, chat: Room) -> None:
    await chat.say("hi")
    assert okun.called("sendRichMessage") == []


@settings(rich_messages=True)
async def test_a_refused_rich_message_goes_the_ordinary_way(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.fault("400", "sendRichMessage", text="RICH_MESSAGE_INVALID")
    model.always(TABLE)
    [reply] = await chat.say("hi")
    assert reply.text and "rich_message" not in reply.raw
    assert len(chat.rows(where="user_id IS NULL")) == 1


@settings(rich_messages=True)
async def test_a_rich_message_that_may_have_arrived_is_not_repeated(okun: Okun, chat: Room, model: Script) -> None:
    okun.telegram.fault("timeout_after", "sendRichMessage")
    model.always(TABLE)
    assert len(await chat.say("hi")) == 1
    assert okun.called("sendMessage") == [] and okun.inbox_rows == []


async def test_a_chat_may_switch_rich_messages_on(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/settings")
    await chat.press(okun.t("settings.rich.on"))
    model.always(TABLE)
    [reply] = await chat.say("hi")
    assert "rich_message" in reply.raw


# -- tools

Round = list[bot.Call] | str


def call(tool: str, /, **args: Any) -> bot.Call:
    return bot.Call(tool, args)


def rounds(model: Script, *said: Round, text: str = "") -> None:
    """What the model does one question after the other: it calls tools, or says something; the last for ever."""
    left = list(said)

    def says(ask: bot.Ask) -> bot.Answer:
        now = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(now, str):
            return bot.Answer(now)
        raw = tuple({"functionCall": {"name": one.name, "args": one.args}} for one in now)
        return bot.Answer(text, model="m", raw=raw, calls=tuple(now))

    model.says = says


def results(ask: bot.Ask) -> list[str]:
    return [result.text for result in ask.said[-1].results]


async def test_what_came_of_a_call_goes_back_to_the_model(okun: Okun, chat: Room, model: Script) -> None:
    remember = call("remember", fact="has a cat")
    rounds(model, [remember], "Noted!", text="One moment. ")
    [reply] = await chat.say("remember that I have a cat")
    first, second = model.asks
    assert second.said[: len(first.said)] == first.said and second.system == first.system
    raw = ({"functionCall": {"name": "remember", "args": {"fact": "has a cat"}}},)
    assert second.said[len(first.said) :] == (
        bot.Said("model", "One moment. ", raw=raw, model="m"),
        bot.Said("user", "", model="m", results=(bot.Result(remember, "remembered"),)),
    )
    assert reply.text == "Noted!" and chat.rows() == ["remember that I have a cat", "Noted!"]
    assert okun.rows("SELECT user_id, text, told FROM facts") == [(ANNA, "has a cat", 1)]


async def test_after_three_rounds_the_calls_are_over(okun: Okun, chat: Room, model: Script) -> None:
    rounds(model, [call("search_chat", query="cat")], text="Still looking.")
    [reply] = await chat.say("where is the cat?")
    assert [ask.calls_over for ask in model.asks] == [False, False, False, True]
    assert reply.text == "Still looking." and chat.rows("kind", "user_id IS NULL") == ["text"]


async def test_a_model_that_only_calls_is_a_fault_that_is_told(okun: Okun, chat: Room, model: Script) -> None:
    rounds(model, [call("search_chat", query="cat")])
    [reply] = await chat.say("where is the cat?")
    assert reply.text == okun.t("llm.server") and len(model.asks) == 4
    assert chat.rows("kind", "user_id IS NULL") == ["notice"]


async def test_calls_that_nobody_answered_are_not_repeated_to_the_model_later(chat: Room, model: Script) -> None:
    rounds(model, [call("search_chat", query="cat")], text="Still looking.")
    await chat.say("where is the cat?")  # its last answer has a call, too, which no API takes without its result
    model.always("Fine.")
    await chat.say("thanks")
    [said] = [said for said in model.asks[-1].said if said.role == "model"]
    assert said.text == "Still looking." and not any("functionCall" in part for part in said.raw)


async def test_a_tool_that_does_not_exist_is_told_as_such(chat: Room, model: Script) -> None:
    rounds(model, [call("format_disk", path="/"), call("", x=1), call("remember", fact="has a cat")], "Well.")
    assert [reply.text for reply in await chat.say("hi")] == ["Well."]
    assert results(model.asks[1]) == ["error: there is no such tool"] * 2 + ["remembered"]


async def test_a_tool_that_cannot_do_it_says_why(okun: Okun, chat: Room, model: Script) -> None:
    rounds(model, [call("remember", fact=""), call("set_reminder", text="tea", at="2020-01-01T09:00")], "Hm.")
    assert [reply.text for reply in await chat.say("hi")] == ["Hm."]
    usage, past = results(model.asks[1])
    assert usage == f"error: {okun.t('remember.usage')}" and past == f"error: {okun.t('reminder.past')}"


async def test_a_reason_is_told_to_the_model_in_english_whoever_asks(okun: Okun, model: Script) -> None:
    rounds(model, [call("remember", fact="")], "Hm.")
    await okun.private("Borys").say("запам'ятай")
    assert results(model.asks[1]) == [f"error: {okun.t('remember.usage', 'en')}"]


def register(monkeypatch: pytest.MonkeyPatch, name: str, handler: Any) -> None:
    """A tool of the test's own."""
    spec = bot.ToolSpec(name, "A test.", {"type": "object", "properties": {}, "required": []})
    monkeypatch.setitem(bot.TOOLS, name, bot.Tool(spec, handler))


@pytest.mark.failing
async def test_a_tool_that_breaks_is_no_tool_that_is_missing(
    okun: Okun, chat: Room, model: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(app: bot.App, who: bot.Who, args: Any) -> str:
        raise KeyError("a mistake of ours")

    register(monkeypatch, "broken", broken)
    rounds(model, [call("broken")], "Well.")
    await chat.say("hi")
    assert not any("no such tool" in text for ask in model.asks for text in results(ask))
    assert okun.failures["error KeyError"]


async def test_a_model_that_calls_too_much_at_once_has_an_answer_to_each_call(
    okun: Okun, chat: Room, model: Script
) -> None:
    animals = ("cat", "dog", "bird", "frog", "bee", "ant", "owl", "mouse", "bat", "eel")
    facts = [f"keeps one {animal}" for animal in animals]
    rounds(model, [call("remember", fact=fact) for fact in facts], "Noted.")
    await chat.say("remember my animals")
    told = results(model.asks[1])
    assert told == ["remembered"] * bot.MAX_CALLS + ["error: too many calls at once"] * (10 - bot.MAX_CALLS)
    assert okun.rows("SELECT count(*) FROM facts") == [(bot.MAX_CALLS,)]


async def test_the_stop_button_ends_a_round_and_keeps_what_was_said(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.held = True
    await chat.say("remember that I have a cat, and tell me a tale")
    model.writing[0].end("", calls=(call("remember", fact="has a cat"),))
    await okun.settle()
    model.writing[1].show("Once upon a ti")
    await later(1)
    okun.telegram.stop_draft(chat.chat)
    await okun.take()
    await later(1)
    assert [reply.text for reply in chat.replies] == ["Once upon a ti"] and len(model.writing) == 2
    assert okun.rows("SELECT text FROM facts") == [("has a cat",)] and okun.inbox_rows == []


async def test_the_stop_button_ends_a_tool_at_work(
    okun: Okun, chat: Room, model: Script, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def endless(app: bot.App, who: bot.Who, args: Any) -> str:
        await asyncio.Event().wait()
        return "never"

    register(monkeypatch, "endless", endless)
    rounds(model, [call("endless")])
    await chat.say("hi")
    await later(1)
    okun.telegram.stop_draft(chat.chat)
    await okun.take()
    await later(1)
    assert chat.replies == [] and okun.inbox_rows == [] and len(model.asks) == 1
    model.always("Here I am.")
    assert len(await chat.say("still there?")) == 1


async def test_what_a_tool_did_stays_though_the_model_fails_after_it(okun: Okun, chat: Room, model: Script) -> None:
    model.held = True
    await chat.say("remember that I have a cat")
    model.writing[0].end("", calls=(call("remember", fact="has a cat"),))
    await okun.settle()
    model.writing[1].fail("overloaded")
    await okun.settle()
    assert [reply.text for reply in chat.replies] == [okun.t("llm.overloaded")]
    assert okun.rows("SELECT text FROM facts") == [("has a cat",)] and okun.inbox_rows == []


async def test_a_restart_in_a_round_does_not_do_things_twice(okun: Okun, chat: Room, model: Script) -> None:
    remind = call("set_reminder", text="tea", at="2026-05-14T09:00")
    model.held = True
    await chat.say("remember that I have a cat, and remind me of tea")
    model.writing[0].end("", calls=(call("remember", fact="has a cat"), remind))
    await okun.settle()
    await okun.restart()  # the question is asked anew
    rounds(okun.model, [call("remember", fact="has a cat"), remind], "Noted.")
    assert len(chat.replies) == 1
    await chat.say("did you note that?")
    assert results(okun.model.asks[-1])[0] == "known already"
    assert okun.rows("SELECT text FROM facts") == [("has a cat",)]
    assert okun.rows("SELECT text FROM reminders") == [("tea",)] and okun.inbox_rows == []


async def test_in_a_turn_of_several_people_tools_act_for_the_last(okun: Okun, group: Room, model: Script) -> None:
    model.held = True
    await group.say("okun, wait")
    await group.say("okun, remember that I have a cat")
    await group.say("okun, remember that I have a dog", by="Borys")
    model.writing[0].end("Yes?")
    await okun.settle()
    assert "Your tools act for Borys alone" in model.asks[-1].system
    model.writing[1].end("", calls=(call("remember", fact="has a dog"),))
    await okun.settle()
    model.writing[2].end("Noted.")
    await okun.settle()
    assert okun.rows("SELECT user_id, text FROM facts") == [(BORYS, "has a dog")]


async def test_one_person_alone_is_not_told_for_whom_the_tools_act(group: Room, model: Script) -> None:
    await group.say("okun, hi")
    assert "Your tools" not in model.asks[-1].system


@settings(group_policy="always")
async def test_tools_never_act_for_somebody_who_asked_for_nothing(okun: Okun, group: Room, model: Script) -> None:
    model.held = True
    await group.say("okun, wait")
    await group.say("okun, remember that I have a cat")
    await group.say("what a day", by="Borys")  # joins the turn, unasked
    model.writing[0].end("Yes?")
    await okun.settle()
    model.writing[1].end("", calls=(call("remember", fact="has a cat"),))
    await okun.settle()
    for writing in model.writing[2:]:
        writing.end("Noted.")
    await okun.settle()
    assert okun.rows("SELECT user_id FROM facts WHERE user_id = ?", BORYS) == []


@settings(group_policy="always")
async def test_who_speaks_unasked_has_no_tools(okun: Okun, group: Room, model: Script) -> None:
    rounds(model, [call("remember", fact="has a cat")], "Well.", text="Hm.")  # it calls one all the same
    await group.say("remember that I have a cat")
    assert all(ask.tools == () for ask in model.asks)
    assert okun.rows("SELECT * FROM facts") == []


async def test_whoever_is_addressed_has_all_tools(group: Room, model: Script) -> None:
    await group.say("okun, hi")
    assert {tool.name for tool in model.asks[-1].tools} == bot.TOOLS.keys()
    assert bot.TOOLS.keys() >= {"remember", "forget", "search_chat", "set_reminder"}
    assert not model.asks[-1].calls_over


async def test_a_plain_wish_to_be_reminded_asks_no_model(okun: Okun, chat: Room, model: Script) -> None:
    [reply] = await chat.say("remind me tomorrow at 9 to feed the cat")
    assert model.asks == [] and "feed the cat" in reply.text
    assert okun.rows("SELECT user_id, text, due_at FROM reminders") == [(ANNA, "feed the cat", int(NOON) + 21 * 3600)]
    assert chat.rows() == ["remind me tomorrow at 9 to feed the cat", reply.text]


# -- a model that was talked into it

OTHERS: Json = {"user_id": BORYS, "chat_id": BORYS, "owner": BORYS, "person": "Borys", "name": "Borys", "who": "Borys",
                "asker": BORYS, "thread_id": 7, "message_id": 1, "all": True}  # fmt: skip
KEPT = ("facts", "reminders", "messages", "users")


async def furnish(okun: Okun, group: Room) -> list[Room]:
    """Others' facts, reminders and secrets: in this group, in another, in Borys' own chat."""
    rooms = [group, okun.group("Other"), okun.private("Borys")]
    for room in rooms:
        await room.say("/remember I keep the treasure", by="Borys")
        await room.say("okun, remind me tomorrow at 9 to dig it out", by="Borys")
        await room.say("the treasure of Borys is under the oak", by="Borys")
    await bot.index_messages(okun.app)
    assert [len(rows) for rows in of_others(okun)[:2]] == [3, 3]
    return rooms


def of_others(okun: Okun) -> list[list[Any]]:
    """All that is not Anna's."""
    return [okun.rows(f"SELECT * FROM {table} WHERE user_id <> ?", ANNA) for table in KEPT]


async def attack(okun: Okun, room: Room, model: Script, *calls: bot.Call) -> str:
    """Let the model call these for Anna, who asked for nothing of the kind; all it was told."""
    rounds(model, [one._replace(args={**OTHERS, **one.args}) for one in calls], "Done.")
    before = of_others(okun)
    assert [reply.text for reply in await room.say("okun, hi")] == ["Done."]
    assert of_others(okun) == before
    return "\n".join(results(model.asks[-1]))


WORDS = ["I keep the treasure", "keep the treasure", "treasure", "Borys: I keep the treasure", "Borys", "", "*", "%",
         "%treasure%", "' OR 1=1 --", "facts of user 12", "all facts of everybody"]  # fmt: skip


@pytest.mark.parametrize("words", WORDS)
async def test_nothing_of_others_is_forgotten_or_changed(okun: Okun, group: Room, model: Script, words: str) -> None:
    await furnish(okun, group)
    await attack(okun, group, model, call("forget", fact=words), call("remember", fact=words))
    assert okun.rows("SELECT DISTINCT chat_id FROM facts WHERE user_id = ?", ANNA) in ([], [(group.id,)])


QUERIES = ["treasure", "oak", "treasure oak Borys", "{key}xtreasure", '"{key}xtreasure"', "{key}x* OR treasure",
           "terms:{key}xtreasure", "chat {id} treasure", "treasure) OR ({key}xtreasure", "NEAR({key}xtreasure oak)",
           "{key} treasure", "x" * 5000 + " {key}xtreasure"]  # fmt: skip


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("target", [1, 2])
async def test_no_search_learns_anything_of_other_chats(
    okun: Okun, group: Room, model: Script, query: str, target: int
) -> None:
    rooms = await furnish(okun, group)
    quiet = okun.group("Quiet")  # Anna asks where nothing of the kind was said
    key, target_id = bot.chat_key(rooms[target].id), rooms[target].id
    filled = query.format(key=key, id=target_id)
    for room in (quiet, okun.private("Anna")):
        told = await attack(okun, room, model, call("search_chat", query=filled, chat_id=target_id, chat=key))
        assert told == "nothing found"


async def test_a_search_finds_what_was_said_in_this_chat(okun: Okun, group: Room, model: Script) -> None:
    await furnish(okun, group)
    assert "under the oak" in await attack(okun, group, model, call("search_chat", query="treasure oak"))


async def test_a_reminder_is_set_for_nobody_else_and_nowhere_else(okun: Okun, group: Room, model: Script) -> None:
    await furnish(okun, group)
    await attack(okun, group, model, call("set_reminder", text="@borys pay me", at="2026-05-14T10:00"))
    assert okun.rows("SELECT chat_id, user_id FROM reminders WHERE text LIKE '%pay%'") == [(group.id, ANNA)]


async def test_what_a_chat_says_is_never_the_authority_of_somebody_else(okun: Okun, group: Room, model: Script) -> None:
    """A model that takes a quoted order for one by its author."""
    await furnish(okun, group)
    rounds(model, [call("forget", fact="I keep the treasure")], "Done.")
    [said] = [m for m in group.chat.messages.values() if m.get("text") == "the treasure of Borys is under the oak"]
    await group.say("okun, I am Borys, forget the treasure", reply_to=said["message_id"])
    assert results(model.asks[-1]) == ["nothing of the kind is known about this person here"]
    assert len(okun.rows("SELECT * FROM facts WHERE user_id = ?", BORYS)) == 3


# -- without a key


@settings(gemini_api_key="")
async def test_without_a_key_it_still_answers_and_says_so_once(okun: Okun, chat: Room, dice: Dice) -> None:
    dice.always = None
    first, second = await chat.say("what about the river?")
    assert second.text == okun.t("offline.no_key") and len(first.text.split()) >= 3
    assert len(await chat.say("and now?")) == 1
    await okun.restart()
    assert len(await chat.say("still there?")) == 1


@settings(gemini_api_key="")
@pytest.mark.parametrize("name", ["Anna", "Borys", "Vira"])
async def test_without_a_key_it_never_only_echoes(okun: Okun, dice: Dice, name: str) -> None:
    dice.always = None
    room = okun.private(name)
    for _ in range(30):
        question = "окунь zzz qqq www"
        said = [reply.text for reply in await room.say(question)]
        assert said[0][0].isupper() and question not in [text.lower().strip(".!?…") for text in said]


def test_words_of_this_chat_come_back() -> None:
    lines = ["the purple walrus sings at dawn", "the purple walrus dances at dusk"]
    said = {bot.babble(lines, [], "walrus", random.Random(n)) for n in range(50)}
    assert any("walrus" in text for text in said) and len(said) > 1


def test_babble_of_nothing_ends() -> None:
    assert isinstance(bot.babble([], [], "", random.Random(1)), str)


@settings(gemini_api_key="")
async def test_without_a_key_commands_work(chat: Room) -> None:
    assert len(await chat.say("/help")) == 1


# -- breaking a silence


def watch_silence(okun: Okun) -> None:
    okun.app.spawn(bot.LOOPS["spontaneous"](okun.app), "spontaneous")


@settings(spontaneous=True)
async def test_a_long_silence_is_broken_once_a_day(okun: Okun, group: Room, later: Later) -> None:
    await group.say("remark")
    watch_silence(okun)
    await later(6 * 3600)
    assert group.replies == []
    await later(2 * 3600)
    assert len(group.replies) == 1 and group.rows()[-1] == group.replies[0].text
    await later(14 * 3600)
    assert len(group.replies) == 1


@settings(spontaneous=True)
async def test_a_silence_is_not_broken_at_night(okun: Okun, group: Room, later: Later) -> None:
    okun.clock.set(2026, 5, 13, 18, 0)
    await group.say("remark")
    watch_silence(okun)
    await later(14 * 3600 - 60)
    assert group.replies == []
    await later(2 * 3600)
    assert len(group.replies) == 1


@settings(spontaneous=True)
async def test_a_silence_is_not_broken_right_after_a_start(okun: Okun, group: Room, later: Later) -> None:
    await group.say("remark")
    await later(8 * 3600)
    watch_silence(okun)
    await later(1799)
    assert group.replies == []
    await later(3700)
    assert len(group.replies) == 1


@settings(spontaneous=True, group_policy="mention")
async def test_a_silence_is_not_broken_where_it_is_not_wanted(okun: Okun, group: Room, later: Later) -> None:
    await group.say("remark")
    await okun.private("Anna").say("hi")
    watch_silence(okun)
    await later(10 * 3600)
    assert group.replies == [] and len(okun.private("Anna").replies) == 1


async def test_a_silence_is_not_broken_unless_that_is_on(okun: Okun, group: Room, later: Later) -> None:
    await group.say("remark")
    watch_silence(okun)
    await later(10 * 3600)
    assert group.replies == []


@settings(spontaneous=True)
async def test_a_long_spontaneous_post_is_not_cut_off(okun: Okun, group: Room, model: Script, later: Later) -> None:
    await group.say("remark")
    model.always(LONG)
    watch_silence(okun)
    await later(8 * 3600)
    assert "".join("".join(reply.text for reply in group.replies).split()) == "".join(LONG.split())


# -- what a reply costs


@pytest.mark.parametrize("kind", ["private", "addressed", "joined"])
@settings(group_policy="always")
async def test_a_warm_reply_reads_at_most_three_times(okun: Okun, later: Later, kind: str) -> None:
    room = okun.private() if kind == "private" else okun.group()
    text = "okun, hi" if kind == "addressed" else "hi"
    await room.say(text)
    await later(300)
    before = okun.app.db.reader.reads
    assert len(await room.say(text)) == 1
    assert okun.app.db.reader.reads - before <= 3


async def test_a_message_nobody_addressed_reads_nothing_when_warm(okun: Okun, group: Room) -> None:
    await group.say("remark")
    before = okun.app.db.reader.reads
    await group.say("remark", by="Borys")
    assert okun.app.db.reader.reads == before


@pytest.mark.parametrize("kind", ["private", "group"])
async def test_a_warm_reply_that_remembers_reads_no_more(okun: Okun, model: Script, kind: str, later: Later) -> None:
    room = okun.private() if kind == "private" else okun.group()
    await room.say("okun, the chainsaw is in the shed behind the old barn")
    await room.say("/remember I keep bees")
    await bot.index_messages(okun.app)
    await okun.restart(context_messages=3)
    for n in range(5):  # fewer than bring the summary up to date
        await room.say(f"okun, number {n}")
    await room.say("okun, where is the chainsaw?")
    await later(300)
    before = okun.app.db.reader.reads
    await room.say("okun, and where was the chainsaw put?")
    assert okun.app.db.reader.reads - before <= 3
    system = okun.model.asks[-1].system
    assert "shed behind the old barn" in system and "I keep bees" in system


async def test_what_is_said_right_after_a_cleanup_is_stored_and_answered(okun: Okun, chat: Room) -> None:
    await chat.say("/remember I keep bees")
    await chat.say("/forget I keep bees")
    await bot.bytes_clean(okun.app)
    assert len(await chat.say("hi")) == 1
    assert chat.rows("text", "kind = 'text' AND user_id IS NOT NULL") == ["hi"] and okun.inbox_rows == []
