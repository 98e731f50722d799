"""Servers that refuse, stall, break off and talk rubbish: people get an answer or a kind reason, and can go on."""

from __future__ import annotations

import functools
from typing import Any

import pytest
from fakes import FakeGemini, Fault, until

from .conftest import KEY, PATIENCE, TEXTS, Person, Stage, impatient, repeat_tokens, tokens

ALWAYS = 10_000


async def next_is_answered(stage: Stage, person: Person, token: str = "k99z") -> None:
    """The talk goes on."""
    already = len(stage.replies(person))
    stage.says(person, f"{token} are you there?")
    replies = await stage.replied(person, already + 1)
    assert tokens(replies[-1])[-1:] == [token]


# == The model =========================================================================================================

# One fault, and the answer comes all the same: from the same model again, or from the next one.
PASSING: dict[str, dict[str, Any]] = {
    "429": {"retry_delay": 30},
    "503": {},
    "500": {},
    "404": {},
    "403": {},
    "400": {},
    "malformed": {},
    "reset": {},
    "cut": {"chunks": 2},
    "error": {},
    "empty": {},
    "no_parts": {},
}


@pytest.mark.parametrize("kind", PASSING)
async def test_one_fault_of_the_model_is_not_noticed(stage: Stage, kind: str) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.fault(kind, **PASSING[kind])
    async with stage.bot() as okun:
        stage.says(anna, "k1z hello")
        assert [tokens(text) for text in await stage.replied(anna)] == [["k1z"]]
        await next_is_answered(stage, anna)
        await stage.settled(okun)
        assert len(stage.replies(anna)) == 2 and not stage.parked(okun)
        outcomes = [row[0] for row in okun.rows("SELECT outcome FROM llm_calls ORDER BY id")]
        assert outcomes[0] != "ok" and outcomes[-1] == "ok"


# A fault that stays: kind, its options, settings, and the text that says why.
LASTING: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "too many requests": ("429", {"retry_delay": 3600}, {}, "rate"),
    "the quota of the day": ("429", {"per_day": True}, {}, "quota"),
    "overloaded": ("503", {}, {}, "overloaded"),
    "a fault of theirs": ("500", {}, {}, "server"),
    "a stalled stream": ("stall", {"chunks": 0}, {"LLM_TIMEOUT": 2}, "timeout"),
    "no answer at all": ("hang", {}, {"LLM_TIMEOUT": 2}, "timeout"),
    "a broken connection": ("reset", {}, {}, "network"),
    "no candidates": ("empty", {}, {}, "server"),
    "blocked": ("blocked", {}, {}, "blocked"),
    "safety": ("safety", {}, {}, "blocked"),
    "malformed": ("malformed", {}, {}, "server"),
    "a key that is refused": ("403", {}, {}, "key"),
    "a bad request": ("400", {}, {}, "request"),
}


@pytest.mark.parametrize("name", LASTING)
async def test_a_lasting_fault_of_the_model_gets_a_kind_reason(stage: Stage, name: str) -> None:
    kind, options, settings, why = LASTING[name]
    anna, ben = stage.person(), stage.person("Ben")
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.fault(kind, times=ALWAYS, **options)
    async with stage.bot(**settings) as okun:
        stage.says(anna, "k1z hello")
        assert await stage.replied(anna) == [TEXTS["llm"][why]]
        stage.gemini.faults.clear()
        await okun.stop()  # what models and breakers remember is forgotten: nobody waits a minute here
        await okun.start()
        await next_is_answered(stage, anna)
        await next_is_answered(stage, ben)
        await stage.settled(okun)
        assert len(stage.replies(anna)) == 2 and not stage.parked(okun)
        assert okun.rows(
            "SELECT kind FROM messages WHERE user_id IS NULL AND chat_id = ? ORDER BY id", anna.chat.id
        ) == [
            ("notice",),
            ("text",),
        ]


async def test_a_chat_goes_on_at_once_after_a_block(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.fault("blocked")
    stage.gemini.fault("safety")
    async with stage.bot():
        for count in (1, 2):
            stage.says(anna, "something dreadful")
            assert await stage.replied(anna, count) == [TEXTS["llm"]["blocked"]] * count
        await next_is_answered(stage, anna)


@pytest.mark.parametrize(("kind", "settings"), [("stall", {"LLM_TIMEOUT": 2}), ("cut", {})])
async def test_what_was_said_before_a_stream_broke_is_kept(stage: Stage, kind: str, settings: dict[str, Any]) -> None:
    anna = stage.person()
    stage.gemini.rule("story", "Once upon a time there was a perch and it never came to an end.")
    stage.gemini.fault(kind, times=ALWAYS, chunks=3)
    async with stage.bot(**settings):
        stage.says(anna, "a story")
        [reply] = await stage.replied(anna)
        assert reply.startswith("Once upon a time there was a perch") and reply.endswith(TEXTS["reply"]["cut"].strip())


async def test_an_answer_that_is_too_long_says_so(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.rule("story", "Once upon a time there was a perch. " * 40)
    stage.gemini.fault("max_tokens")
    async with stage.bot():
        stage.says(anna, "a story")
        [reply] = await stage.replied(anna)
        assert reply.startswith("Once upon a time") and reply.endswith(TEXTS["reply"]["length"].strip())
        await next_is_answered(stage, anna)


async def test_a_wrong_key_is_told_and_another_provider_steps_in(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    okun = stage.bot(GEMINI_API_KEY="AIza-not-the-right-one")
    async with okun:
        stage.says(anna, "k1z hello")
        assert await stage.replied(anna) == [TEXTS["llm"]["key"]]
        await okun.stop()
    okun.env |= {"OPENAI_API_URL": stage.gemini.url + "/v1", "OPENAI_API_KEY": KEY, "OPENAI_MODEL": "gpt-5-mini"}
    async with okun:
        await next_is_answered(stage, anna)
        assert stage.gemini.requests[-1].method == "chat.completions"
    assert "AIza-not-the-right-one" not in okun.log()


async def test_a_retired_model_is_passed_over_and_not_asked_again(stage: Stage, gemini: FakeGemini) -> None:
    anna = stage.person()
    gemini.rule("", repeat_tokens)
    gemini.models.remove("gemini-3.8-flash")
    async with stage.bot() as okun:
        for n in (1, 2, 3):
            stage.says(anna, f"k{n}z hello")
            await stage.replied(anna, n)
        await stage.settled(okun)
        models = [row[0] for row in okun.rows("SELECT model FROM llm_calls ORDER BY id")]
        assert models == ["gemini-3.8-flash"] + ["gemini-3.5-flash-lite"] * 3


async def test_the_model_that_asks_for_a_pause_rests(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.fault("429", model="gemini-3.8-flash", retry_delay=3600)
    async with stage.bot():
        for n in (1, 2):
            stage.says(anna, f"k{n}z hello")
            await stage.replied(anna, n)
        assert [ask.model for ask in stage.gemini.requests] == ["gemini-3.8-flash"] + ["gemini-3.5-flash-lite"] * 2


# == Telegram: sending =================================================================================================

# kind of fault, its options, how many messages may stand in the chat at the end
SENDING: dict[str, tuple[dict[str, Any], int]] = {
    "429": ({"retry_after": 1}, 1),
    "500": ({}, 1),
    "502html": ({}, 1),
    "reset": ({}, 1),  # not carried out
    "reset_after": ({}, 2),  # carried out, which nobody can know
    "truncated": ({}, 1),
    "malformed": ({}, 1),
    "slow": ({}, 1),
}


async def test_a_reply_survives_a_fault_of_telegram(stage: Stage) -> None:
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot() as okun:
        for n, (kind, (options, most)) in enumerate(SENDING.items(), 1):
            anna = stage.person(f"Anna {n}")
            stage.telegram.fault(kind, "sendMessage", **options)
            stage.says(anna, "k1z hello")
            await stage.replied(anna)
            await stage.settled(okun)
            replies = [tokens(text) for text in stage.replies(anna)]
            assert replies == [["k1z"]] * len(replies) and len(replies) <= most, kind
            await next_is_answered(stage, anna)
            await stage.settled(okun)
            own = okun.rows("SELECT count(*) FROM messages WHERE user_id IS NULL AND chat_id = ?", anna.chat.id)
            assert own == [(2,)], kind


async def test_a_timeout_after_the_send_was_carried_out_makes_no_second_one(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot(impatient(CALL_TIMEOUT_S=2)) as okun:
        stage.telegram.fault("timeout_after", "sendMessage")
        stage.says(anna, "k1z hello")
        await stage.replied(anna)
        await stage.settled(okun)
        assert [tokens(text) for text in stage.replies(anna)] == [["k1z"]]
        assert "answer to a send lost, not repeated" in okun.log()
        await next_is_answered(stage, anna)
        await stage.settled(okun)
        assert okun.rows("SELECT message_id IS NULL FROM messages WHERE user_id IS NULL ORDER BY id") == [(1,), (0,)]


async def test_entities_that_telegram_refuses_go_as_plain_text(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("bold", "a **bold** perch and `code`")
    async with stage.bot() as okun:
        stage.telegram.fault("400", "sendMessage", text="can't parse entities: unsupported start tag")
        stage.says(anna, "something bold")
        await stage.replied(anna)
        await stage.settled(okun)
        [reply] = stage.telegram.sent(anna.chat)
        assert reply["text"] == "a bold perch and code" and "entities" not in reply


async def test_somebody_who_blocked_the_bot_comes_back(stage: Stage) -> None:
    telegram, anna, ben = stage.telegram, stage.person(), stage.person("Ben")
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot() as okun:
        telegram.fault("403", "sendMessage", chat_id=anna.chat.id)
        stage.says(anna, "k1z hello")
        await until(lambda: not telegram.faults, PATIENCE)
        await stage.settled(okun)
        assert stage.replies(anna) == []
        assert okun.rows("SELECT gone_at IS NULL FROM chats WHERE chat_id = ?", anna.chat.id) == [(0,)]
        await next_is_answered(stage, ben, "k2z")
        await next_is_answered(stage, anna, "k3z")
        await stage.settled(okun)
        assert okun.rows("SELECT gone_at IS NULL FROM chats WHERE chat_id = ?", anna.chat.id) == [(1,)]
        assert not stage.parked(okun)


@pytest.mark.parametrize("told", [True, False], ids=["told by an update", "told by the refusal"])
async def test_a_group_that_became_a_supergroup_meanwhile_gets_its_answer_there(stage: Stage, told: bool) -> None:
    telegram, anna = stage.telegram, stage.person()
    group = telegram.group("Anglers", [anna.user], kind="group")
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.rule("k2z", repeat_tokens, delay=1, times=1)
    async with stage.bot() as okun:
        telegram.say(group, anna.user, "k1z okun, hello")
        await stage.replied(group)
        telegram.say(group, anna.user, "k2z okun, are you there?")
        await stage.gemini.until(lambda: len(stage.gemini.requests) == 2, PATIENCE)
        new = telegram.migrate(group)
        if not told:
            telegram.queue.clear()
        assert [tokens(text) for text in await stage.replied(new)] == [["k2z"]]
        telegram.say(new, anna.user, "k3z okun, and now?")
        await stage.replied(new, 2)
        await stage.settled(okun)
        assert [tokens(text) for text in stage.replies(new)] == [["k2z"], ["k3z"]]
        texts = okun.rows("SELECT text FROM messages WHERE chat_id = ? AND user_id IS NOT NULL ORDER BY id", new.id)
        assert [tokens(text)[0] for (text,) in texts] == ["k1z", "k2z", "k3z"]
        assert okun.rows("SELECT chat_id FROM chats WHERE chat_id = ?", group.id) == []
        assert not stage.parked(okun)


async def test_a_topic_that_is_gone_harms_nobody(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    forum = telegram.group("Forum", [anna.user], forum=True)
    topic = telegram.topic(forum, "Rods")
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot() as okun:
        telegram.say(forum, anna.user, "k1z okun, hello", thread=topic)
        del forum.topics[topic]
        await stage.settled(okun)
        telegram.say(forum, anna.user, "k2z okun, hello")
        await stage.replied(forum)
        await stage.settled(okun)
        assert tokens(stage.replies(forum)[-1]) == ["k2z"] and not stage.parked(okun)


async def test_drafts_that_fail_do_not_hold_up_the_answer(stage: Stage) -> None:
    stage.gemini.rule("", repeat_tokens, delay=0.6)
    async with stage.bot() as okun:
        for kind in ("429", "500", "reset", "malformed", "400"):
            anna = stage.person(kind)
            stage.telegram.fault(
                kind, "sendMessageDraft", times=ALWAYS, **({"retry_after": 1} if kind == "429" else {})
            )
            stage.says(anna, "k1z hello")
            assert [tokens(text) for text in await stage.replied(anna)] == [["k1z"]], kind
            await stage.settled(okun)
            assert len(stage.replies(anna)) == 1, kind
            stage.telegram.faults.clear()


async def test_a_photo_that_cannot_be_fetched_is_answered_all_the_same(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    async with stage.bot() as okun:
        telegram.fault("400", "getFile", text="file is too big")
        telegram.photo(anna.chat, anna.user, b"pike", "what is it?")
        await stage.replied(anna)
        telegram.fault("truncated", "download", times=ALWAYS)
        telegram.photo(anna.chat, anna.user, b"carp", "and this?")
        await stage.replied(anna, 2)
        telegram.faults.clear()
        telegram.photo(anna.chat, anna.user, b"perch", "and that?")
        await stage.replied(anna, 3)
        await stage.settled(okun)
        assert [len(ask.media) for ask in stage.gemini.requests] == [0, 0, 1]
        assert "and that?" in stage.replies(anna)[-1]


# == Telegram: asking ==================================================================================================


def is_down_to(fault: Fault, times: int) -> bool:
    return fault.times <= times


async def test_polling_goes_on_whatever_it_gets(stage: Stage) -> None:
    telegram = stage.telegram
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot() as okun:
        for kind in ("409", "500", "502html", "429", "reset", "reset_after", "truncated", "malformed"):
            anna = stage.person(kind)
            telegram.fault(kind, "getUpdates", times=2)
            [fault] = telegram.faults
            for n in (1, 2, 3):  # the poll that is spoilt is the one that waits for the next message
                await until(functools.partial(is_down_to, fault, 3 - n), PATIENCE)
                stage.says(anna, f"k{n}z hello")
            await stage.settled(okun)
            heard = [token for text in stage.replies(anna) for token in tokens(text)]
            assert heard == ["k1z", "k2z", "k3z"], kind
            await next_is_answered(stage, anna)


async def test_a_poll_that_died_without_a_word_is_begun_anew(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.telegram.fault("timeout", "getUpdates")
    async with stage.bot(impatient(**{"Poller.POLL_S": 1, "Poller.WATCH_S": 2})) as okun:
        assert "poll is dead" in okun.log()
        await next_is_answered(stage, anna)


async def test_it_waits_for_a_telegram_that_is_down_at_the_start(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    for kind in ("reset", "500", "502html", "malformed"):
        telegram.fault(kind, "getMe")
    telegram.fault("500", "setMyCommands", times=3)
    stage.says(anna, "hello")
    async with stage.bot() as okun:
        await stage.replied(anna)
        await stage.settled(okun)
        assert len(stage.replies(anna)) == 1


async def test_rubbish_among_the_updates_harms_nobody(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot():
        rubbish: list[Any] = [
            {"message": {"message_id": 1}},
            {"message": None},
            {"message": {"message_id": "x", "date": "y", "chat": {"id": []}}},
            {"callback_query": {"id": "1"}},
            {"edited_message": {"message_id": 7, "chat": 5}},
            {"my_chat_member": {}},
            {
                "message": {
                    "message_id": 5,
                    "date": 1,
                    "chat": {"id": 1, "type": "private", "first_name": "A"},
                    "text": 7,
                }
            },
            {"kind_of_the_future": {"a": 1}},
        ]
        telegram.allowed = None
        for raw in rubbish:
            telegram.queue.append({"update_id": telegram.push({"message": {}}), **raw})
        stage.says(anna, "k1z hello")
        await next_is_answered(stage, anna)
        await until(lambda: not telegram.queue, PATIENCE)
        assert {token for text in stage.replies(anna) for token in tokens(text)} == {"k1z", "k99z"}
