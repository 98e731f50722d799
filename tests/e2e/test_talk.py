"""A talk as people have it: private and in groups, in topics, with albums, long pastes and long answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fakes import Ask, Json, u16len

from .conftest import PATIENCE, TEXTS, Stage, repeat_tokens, texts_of, tokens, whole_text


async def test_private_talk_streams_drafts_then_sends_one_message(stage: Stage) -> None:
    anna, telegram = stage.person(), stage.telegram
    story = "Once upon a time there was a **perch** that lived under an old bridge and counted boats. " * 3
    stage.gemini.rule("story", story, chunk=20, chunk_delay=0.12)
    async with stage.bot() as okun:
        asked = stage.says(anna, "tell me a story")
        await stage.replied(anna)
        await stage.settled(okun)
        [reply] = telegram.sent(anna.chat)
        assert reply["text"] == story.replace("**", "").strip()
        assert reply["reply_to_message"]["message_id"] == asked
        assert {e["type"] for e in reply["entities"]} == {"bold"}
        drafts = telegram.drafts(anna.chat)
        assert len(drafts) >= 2
        assert len({draft["draft_id"] for draft in drafts}) == 1 and all(draft["can_stop"] for draft in drafts)
        shown = [re.sub(r"\W+$", "", draft["text"]) for draft in drafts]
        assert all(reply["text"].startswith(text) for text in shown) and shown == sorted(shown, key=len)
        names = [call.method for call in telegram.calls if call.params.get("chat_id") == anna.chat.id]
        assert names[-1] == "sendMessage" and "sendMessage" not in names[:-1]
        assert okun.rows("SELECT text, user_id FROM messages ORDER BY id") == [
            ("tell me a story", anna.user["id"]),
            (story, None),
        ]


async def test_the_stop_button_keeps_what_was_said(stage: Stage) -> None:
    anna, telegram = stage.person(), stage.telegram
    stage.gemini.rule("numbers", " ".join(map(str, range(1, 400))), chunk=8, chunk_delay=0.1)
    async with stage.bot() as okun:
        stage.says(anna, "all numbers, please")
        await telegram.until(lambda: any(draft["text"] for draft in telegram.drafts(anna.chat)), PATIENCE)
        telegram.stop_draft(anna.chat)
        [reply] = await stage.replied(anna)
        await stage.settled(okun)
        assert reply.startswith("1 2 3") and "399" not in reply
        stage.says(anna, "and now?")
        assert 'echo of "and now?' in (await stage.replied(anna, 2))[1]


async def test_a_group_is_answered_only_when_it_calls(stage: Stage) -> None:
    telegram = stage.telegram
    anna, ben = stage.person(), stage.person("Ben")
    bot_friend = telegram.user(900, "Helper", "en", "helper_bot", is_bot=True)
    group = telegram.group("Anglers", [anna.user, ben.user])
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot(BOT_NAMES="окунь,okun,бот", GROUP_POLICY="smart") as okun:
        silent = [
            "k1z доброго ранку",
            "k2z яка гарна робота",
            "k3z ботаніка!",
            "k4z okuneva street?",
            "k5z @other_bot hi",
        ]
        for text in silent:
            telegram.say(group, anna.user, text)
        telegram.post(group, bot_friend, {"text": "k6z okun, are you there?"})
        await stage.settled(okun)
        assert telegram.calls == [c for c in telegram.calls if c.params.get("chat_id") != group.id]
        assert stage.stored(okun, group) == stage.said(group)

        telegram.say(group, anna.user, "k11z Окунь, ти тут?")
        await stage.replied(group, 1)
        telegram.say(group, ben.user, "k12z hey @okun_bot!")
        await stage.replied(group, 2)
        telegram.say(group, ben.user, "k13z go on", reply_to=telegram.sent(group)[-1]["message_id"])
        await stage.replied(group, 3)
        telegram.photo(group, anna.user, b"fish", "k14z що це, бот?")
        await stage.replied(group, 4)
        await stage.settled(okun)
        replies = telegram.sent(group)
        assert [tokens(m["text"]) for m in replies] == [["k11z"], ["k12z"], ["k13z"], ["k14z"]]
        assert [m["reply_to_message"].get("text", "")[:4] for m in replies] == ["k11z", "k12z", "k13z", ""]
        assert telegram.called("sendChatAction", group) and not telegram.drafts(group)
        assert stage.stored(okun, group) == stage.said(group)
        assert stage.gemini.requests[-1].media


async def test_two_topics_at_once_are_never_mixed(stage: Stage) -> None:
    telegram, anna, ben = stage.telegram, stage.person(), stage.person("Ben")
    forum = telegram.group("Forum", [anna.user, ben.user], forum=True)
    one, two = telegram.topic(forum, "Rods"), telegram.topic(forum, "Boats")
    stage.gemini.rule("", repeat_tokens, delay=0.05)
    async with stage.bot() as okun:
        for n in range(10, 20):
            telegram.say(forum, anna.user, f"okun, k{n}z about rods", thread=one)
            telegram.say(forum, ben.user, f"okun, k{n + 50}z about boats", thread=two)
            telegram.say(forum, ben.user, f"okun, k{n + 80}z about nothing")
        await stage.settled(okun)
        rods, boats = range(10, 20), range(60, 70)
        for thread, numbers in ((one, rods), (two, boats)):
            heard = [token for text in stage.replies(forum, thread) for token in tokens(text)]
            assert heard == [f"k{n}z" for n in numbers]
        for ask in stage.gemini.requests:
            kinds = {int(token[1:-1]) // 10 for token in tokens(whole_text(ask))}
            assert kinds in ({1}, {6}, {9})
        general = [m for m in telegram.sent(forum) if "message_thread_id" not in m]
        assert [token for m in general for token in tokens(m["text"])] == [f"k{n}z" for n in range(90, 100)]


@pytest.mark.parametrize("private", [True, False])
async def test_an_album_is_one_turn(stage: Stage, private: bool) -> None:
    telegram, anna = stage.telegram, stage.person()
    chat = anna.chat if private else telegram.group("Anglers", [anna.user])
    async with stage.bot() as okun:
        first, *rest = (b"pike", b"perch", b"carp")
        album: dict[str, Any] = {"media_group_id": "77"}
        telegram.photo(chat, anna.user, first, "okun, which is the pike?", **album)
        await telegram.until(lambda: not telegram.queue, PATIENCE)  # the rest comes with another poll
        for data in rest:
            telegram.photo(chat, anna.user, data, **album)
        [reply] = await stage.replied(chat)
        await stage.settled(okun)
        assert len(stage.replies(chat)) == 1
        [ask] = stage.gemini.requests
        assert len(ask.media) == 3 and len(set(ask.media)) == 3
        assert all(media.partition(":")[2] in reply for media in ask.media)


@pytest.mark.parametrize("private", [True, False])
async def test_a_text_pasted_in_three_parts_is_answered_once(stage: Stage, private: bool) -> None:
    telegram, anna = stage.telegram, stage.person()
    chat = anna.chat if private else telegram.group("Anglers", [anna.user])
    parts = [(f"okun, {word} " + f"part {word} of a very long letter. " * 200)[:size] for word, size in
             (("first", 4096), ("second", 4096), ("third", 700))]  # fmt: skip
    parts[1:] = [part.removeprefix("okun, ") for part in parts[1:]]
    stage.gemini.rule("", lambda ask: " ".join(w for w in ("first", "second", "third") if w in ask.text))
    async with stage.bot(CONTEXT_TOKENS=20000) as okun:
        for part in parts:
            telegram.say(chat, anna.user, part)
            await telegram.until(lambda: not telegram.queue, PATIENCE)
        assert await stage.replied(chat) == ["first second third"]
        await stage.settled(okun)
        assert len(stage.replies(chat)) == 1 and len(stage.gemini.requests) == 1


def long_answer() -> str:
    """20,000 characters of everything that is hard to split."""
    blocks: list[str] = []
    number = 0
    while sum(map(len, blocks)) < 20_000:
        number += 1
        code = "\n".join(f"    рядок_{number}_{n} = f'{{n}}' # 🎣 <b>&amp;</b>" for n in range(5 + number % 40))
        blocks += [
            f"## Розділ {number}\n\n**Окунь** живе в _тихій_ воді, а щука – ні; див. [тут](https://x.org/{number}). "
            + f"Слово{number} за словом{number} 🐟 " * 20 + "\n\n",
            f"```python\ndef fish_{number}():\n{code}\n```\n\n",
            f"| риба {number} | вага | де |\n|---|---:|---|\n| окунь | 1{number} кг | ставок |\n",
            "| сом | 9 | `Дніпро` |\n\n",
            f"1. перше {number}\n2. друге\n   - вкладене ~~закреслене~~\n\n> цитата {number}\n\n",
        ]  # fmt: skip
    return "".join(blocks)


async def test_a_long_answer_is_delivered_whole_and_refused_nowhere(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    answer = long_answer()
    stage.gemini.rule("everything", answer, chunk=400)
    async with stage.bot(GEMINI_MAX_OUTPUT_TOKENS=0) as okun:
        stage.says(anna, "tell me everything")
        await stage.replied(anna)
        await stage.settled(okun)
        sent = telegram.sent(anna.chat)
        assert [call for call in telegram.calls if not call.ok] == []
        assert "entities refused" not in okun.log()
        assert all(u16len(m["text"]) <= 4096 and len(m.get("entities", ())) <= 100 for m in sent)
        whole = "\n".join(m["text"] for m in sent)
        wanted = re.findall(r"\w+\d+\w*|\w+_\d+_\d+", re.sub(r"\(https?://\S+\)", "", answer))
        heard = re.findall(r"\w+\d+\w*|\w+_\d+_\d+", whole)
        assert heard == wanted
        codes = [text for m in sent for text in pre_texts(m)]
        assert len(re.findall(r"рядок_\d+_\d+ =", "\n".join(codes))) == len(re.findall(r"рядок_\d+_\d+ =", answer))
        [(stored,)] = okun.rows("SELECT text FROM messages WHERE user_id IS NULL")
        assert stored == answer


def pre_texts(message: Json) -> list[str]:
    units = message["text"].encode("utf-16-le")
    marks = [e for e in message.get("entities", ()) if e["type"] == "pre"]
    return [units[2 * e["offset"] : 2 * (e["offset"] + e["length"])].decode("utf-16-le") for e in marks]


async def test_what_comes_during_a_turn_is_the_next_turn_merged(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.rule("k1z", repeat_tokens, delay=1.0, times=1)
    async with stage.bot() as okun:
        stage.says(anna, "k1z hello")
        await stage.gemini.until(lambda: stage.gemini.requests, PATIENCE)
        stage.says(anna, "k2z one more thing")
        stage.says(anna, "k3z and another")
        await stage.replied(anna, 2)
        await stage.settled(okun)
        assert [tokens(text) for text in stage.replies(anna)] == [["k1z"], ["k2z", "k3z"]]
        ask = stage.gemini.requests[-1]
        assert [c["role"] for c in ask.contents] == ["user", "model", "user"]
        assert sorted(tokens(whole_text(ask))) == ["k1z", "k1z", "k2z", "k3z"]  # each once, and the answer


async def test_commands_pass_a_running_turn_and_cancel_ends_it(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("forever", "never said", delay=3600, times=1)
    async with stage.bot() as okun:
        stage.says(anna, "think forever")
        await stage.gemini.until(lambda: stage.gemini.requests, PATIENCE)
        stage.says(anna, "/help")
        [helped] = await stage.replied(anna)
        assert helped.startswith(TEXTS["help"]["private"].strip()[:30])
        stage.says(anna, "/cancel")
        assert (await stage.replied(anna, 2))[1] == TEXTS["cancel"]["stopped"]
        await stage.settled(okun)
        stage.says(anna, "hello again")
        assert "hello again" in (await stage.replied(anna, 3))[2]


async def test_an_edit_changes_what_is_stored(stage: Stage) -> None:
    anna = stage.person()
    async with stage.bot() as okun:
        asked = stage.says(anna, "I caught a pike")
        await stage.replied(anna)
        stage.telegram.edit(anna.chat, asked, "I caught a perch")
        stage.says(anna, "what did I catch?")
        await stage.replied(anna, 2)
        await stage.settled(okun)
        assert okun.rows("SELECT text FROM messages WHERE message_id = ?", asked) == [("I caught a perch",)]
        contents = whole_text(stage.gemini.requests[-1])
        assert "I caught a perch" in contents and contents.count("what did I catch?") == 1
        assert len(stage.replies(anna)) == 2


async def test_without_a_key_it_babbles_and_says_so_once(stage: Stage) -> None:
    anna = stage.person()
    async with stage.bot(GEMINI_API_KEY=None) as okun:
        for n in (1, 2):
            stage.says(anna, f"the perch sleeps under the bridge {n}")
            await stage.settled(okun)
        replies = stage.replies(anna)
        assert len(replies) == 3 and replies.count(TEXTS["offline"]["no_key"]) == 1
        assert stage.gemini.requests == []


def said_by(ask: Ask, role: str) -> list[str]:
    return [text for content in ask.contents if content["role"] == role for text in texts_of(content)]


async def test_model_turns_are_echoed_with_their_signatures(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("riddle", "What swims and never drowns?", signature="c2lnbmVk")
    async with stage.bot():
        stage.says(anna, "a riddle, please")
        await stage.replied(anna)
        stage.says(anna, "a fish?")
        await stage.replied(anna, 2)
        ask = stage.gemini.requests[-1]
        assert "".join(said_by(ask, "model")) == "What swims and never drowns?"
        assert "c2lnbmVk" in str(ask.contents)
