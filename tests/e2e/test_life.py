"""Starting, stopping, a backlog, a crowd, the webhook and ``--check``."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Any

import aiohttp
import pytest
from fakes import Chat, until

from .conftest import KEY, PATIENCE, SECRET, TOKEN, Person, Stage, free_port, impatient, repeat_tokens, tokens

# == Stopping ==========================================================================================================


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
async def test_a_running_turn_is_finished_before_the_end(stage: Stage, name: str) -> None:
    telegram, anna, ben = stage.telegram, stage.person(), stage.person("Ben")
    stage.gemini.rule("", repeat_tokens, chunk=4, chunk_delay=0.1)
    okun = await stage.bot().start()
    stage.says(anna, "k1z hello")
    await stage.gemini.until(lambda: stage.gemini.requests, PATIENCE)
    polls = telegram.polls
    ending = asyncio.create_task(okun.stop(signal.Signals[name]))
    await telegram.until(lambda: telegram._poll is None or telegram._poll.done() or ending.done(), PATIENCE)
    assert await ending == 0
    assert telegram.polls == polls
    assert [tokens(text) for text in stage.replies(anna)] == [["k1z"]]
    assert stage.left(okun) == 0

    stage.says(ben, "k2z while you were away")
    await okun.start()
    await stage.replied(ben)
    await stage.settled(okun)
    assert (len(stage.replies(anna)), len(stage.replies(ben))) == (1, 1)
    assert await okun.stop() == 0


async def test_a_turn_that_takes_too_long_is_left_for_the_next_start(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.rule("", "never said", delay=3600, times=1)
    okun = await stage.bot(impatient(DRAIN_S=1)).start()
    stage.says(anna, "k1z hello")
    await stage.gemini.until(lambda: stage.gemini.requests, PATIENCE)
    assert await okun.stop() == 0
    assert stage.replies(anna) == [] and stage.left(okun) == 1
    await okun.start()
    assert [tokens(text) for text in await stage.replied(anna)] == [["k1z"]]
    await stage.settled(okun)
    assert len(stage.replies(anna)) == 1


async def test_a_restart_says_nothing_unasked(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    group = telegram.group("Anglers", [anna.user])
    okun = stage.bot(SPONTANEOUS="on", GROUP_POLICY="always", QUIET_HOURS="0-23", ADMIN_IDS=anna.user["id"])
    day_ago = time.time() - 86_400
    for n in range(20):
        telegram.say(group, anna.user, f"yesterday {n}?", date=day_ago + n)
    for _ in range(3):
        async with okun:
            await stage.settled(okun)
            assert await okun.stop() == 0
    assert telegram.called("send*") == [] and telegram.called("setMessageReaction") == []
    assert stage.stored(okun, group) == stage.said(group)


# == Much at once ======================================================================================================


async def test_of_a_backlog_groups_hear_nothing_and_people_one_answer(stage: Stage) -> None:
    telegram = stage.telegram
    people = [stage.person(f"Person{n}") for n in range(5)]
    groups = [telegram.group(f"Group{n}", [p.user for p in people]) for n in range(3)]
    stage.gemini.rule("", repeat_tokens)
    old = time.time() - 3600
    for n in range(60):
        for group in groups:
            telegram.say(group, people[n % 5].user, f"k{n}z okun, are you there?", date=old + n)
        for person in people[:2]:
            telegram.say(person.chat, person.user, f"k{n}z are you there?", date=old + n)
    assert len(telegram.queue) == 300
    async with stage.bot(GROUP_POLICY="always") as okun:
        await stage.settled(okun)
        for chat in (*groups, people[0].chat, people[1].chat):
            assert stage.stored(okun, chat) == stage.said(chat) and len(stage.said(chat)) == 60
        assert okun.rows("SELECT count(*) FROM messages WHERE user_id IS NOT NULL") == [(300,)]
        for group in groups:
            assert not [call for call in telegram.calls if call.params.get("chat_id") == group.id]
        for person in people[:2]:
            assert [tokens(text) for text in stage.replies(person)] == [["k59z"]]
        telegram.say(groups[0], people[0].user, "k99z okun, and now?")
        await stage.replied(groups[0])
        assert [tokens(text) for text in stage.replies(groups[0])] == [["k99z"]]


async def test_a_hundred_people_at_once_are_all_answered(stage: Stage) -> None:
    people = [stage.person(f"Person{n}") for n in range(100)]
    stage.gemini.rule("", repeat_tokens, delay=1.0)
    async with stage.bot() as okun:
        for n, person in enumerate(people):
            stage.says(person, f"k{n}z hello")
        for n, person in enumerate(people):
            assert [tokens(text) for text in await stage.replied(person)] == [[f"k{n}z"]]
        await stage.settled(okun)
        assert all(len(stage.replies(person)) == 1 for person in people)
        assert okun.rows("SELECT count(*) FROM messages") == [(200,)]


def order_of_replies(stage: Stage, people: list[Person], flooded: Chat) -> tuple[int, int]:
    """At which call the last of the people had an answer, and the flooder the last one."""
    ids = {person.chat.id for person in people}
    sends = [(n, call.params["chat_id"]) for n, call in enumerate(stage.telegram.calls) if call.method == "sendMessage"]
    return max(n for n, chat in sends if chat in ids), max(n for n, chat in sends if chat == flooded.id)


async def test_one_who_floods_with_talk_does_not_starve_others(stage: Stage) -> None:
    flooder, people = stage.person("Flooder"), [stage.person(f"Person{n}") for n in range(10)]
    forum = stage.telegram.group("Forum", [flooder.user], forum=True)
    topics = [stage.telegram.topic(forum, f"Topic{n}") for n in range(5)]
    stage.gemini.rule("", repeat_tokens, delay=0.1)
    async with stage.bot(MAX_PARALLEL_LLM=8) as okun:
        for n in range(300):  # in several topics, and more than one turn holds in each
            stage.telegram.say(forum, flooder.user, f"k{n}z okun!", thread=topics[n % 5])
            stage.says(flooder, f"k{n + 300}z hello")
        for n, person in enumerate(people):
            stage.says(person, f"k{n + 1000}z hello")
        for n, person in enumerate(people):
            assert [tokens(text) for text in await stage.replied(person)] == [[f"k{n + 1000}z"]]
        await stage.settled(okun)
        heard = [token for chat in (forum, flooder.chat) for text in stage.replies(chat) for token in tokens(text)]
        assert sorted(heard, key=lambda token: int(token[1:-1])) == [f"k{n}z" for n in range(600)]
        served, flooded = order_of_replies(stage, people, flooder.chat)
        assert served < flooded


async def test_one_who_floods_with_commands_does_not_starve_others(stage: Stage) -> None:
    telegram, flooder = stage.telegram, stage.person("Flooder")
    people = [stage.person(f"Person{n}") for n in range(10)]
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot(MAX_PARALLEL_UPDATES=20) as okun:
        telegram.fault("slow", "sendMessage", times=10_000, chat_id=flooder.chat.id, seconds=0.03)
        for _ in range(150):
            stage.says(flooder, "/help")
        for n, person in enumerate(people):
            stage.says(person, f"k{n}z hello")
        for person in people:
            await stage.replied(person)
        await stage.settled(okun)
        assert len(stage.replies(flooder)) >= 1
        served, flooded = order_of_replies(stage, people, flooder.chat)
        assert served < flooded


# == The webhook =======================================================================================================


async def test_the_webhook_takes_what_carries_its_secret(stage: Stage) -> None:
    telegram, anna, port = stage.telegram, stage.person(), free_port()
    stage.gemini.rule("", repeat_tokens)
    url = f"http://127.0.0.1:{port}/hook"
    async with stage.bot(WEBHOOK_URL=url, WEBHOOK_SECRET=SECRET, WEB_PORT=port) as okun:
        await telegram.until(lambda: telegram.webhook, PATIENCE)
        assert (telegram.webhook["url"], telegram.webhook["secret_token"]) == (url, SECRET)
        assert telegram.polls == 0
        stage.says(anna, "k1z hello")
        [update] = telegram.next_updates()
        for wrong in (None, "", "wrong", SECRET + "x"):
            assert await telegram.deliver(url, wrong, update) in (401, 403, 404)
        assert okun.rows("SELECT count(*) FROM messages") == [(0,)]
        for _ in range(2):  # it comes twice when the first answer was lost
            assert await telegram.deliver(url, SECRET, update) == 200
        await stage.replied(anna)
        await stage.settled(okun)
        assert [tokens(text) for text in stage.replies(anna)] == [["k1z"]]
        assert await telegram.deliver(url, SECRET, {"update_id": "?"}) in (200, 400)
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/healthz") as answer:
            assert answer.status == 200
        stage.says(anna, "k2z hello")
        [update] = telegram.next_updates()
        assert await telegram.deliver(url, SECRET, update) == 200
        await stage.replied(anna, 2)
        assert await okun.stop() == 0


async def test_what_a_webhook_took_survives_a_kill(stage: Stage) -> None:
    telegram, anna, port = stage.telegram, stage.person(), free_port()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.rule("", "never said", delay=3600, times=1)
    url = f"http://127.0.0.1:{port}/hook"
    okun = await stage.bot(WEBHOOK_URL=url, WEBHOOK_SECRET=SECRET, WEB_PORT=port).start()
    stage.says(anna, "k1z hello")
    [update] = telegram.next_updates()
    assert await telegram.deliver(url, SECRET, update) == 200
    await stage.gemini.until(lambda: stage.gemini.requests, PATIENCE)
    await okun.kill()
    await okun.start()
    assert [tokens(text) for text in await stage.replied(anna)] == [["k1z"]]


async def test_polling_removes_a_webhook_that_was_left(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    telegram.webhook = {"url": "https://example.org/old"}
    async with stage.bot():
        stage.says(anna, "hello")
        await stage.replied(anna)
        assert telegram.webhook == {}


# == The command line ==================================================================================================


async def test_check_passes_where_all_is_well(stage: Stage) -> None:
    okun = stage.bot(LANGUAGE="en")
    assert await okun.run("--check") == 0
    said = okun.log()
    assert "@okun_bot" in said and "gemini-3.8-flash" in said and "✗" not in said
    assert stage.telegram.called("send*") == [] and stage.telegram.polls == 0


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "a wrong token": ({"TELEGRAM_BOT_TOKEN": "1:wrong-token"}, "✗"),
    "no token": ({"TELEGRAM_BOT_TOKEN": None}, "✗"),
    "a wrong key": ({"GEMINI_API_KEY": "AIza-wrong"}, "✗"),
    "a retired model": ({"GEMINI_MODEL": "gemini-1.0-pro"}, "gemini-1.0-pro"),
    "nobody at the other end": ({"GEMINI_API_URL": "http://127.0.0.1:9"}, "✗"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_check_names_what_is_wrong(stage: Stage, name: str) -> None:
    settings, sign = FAULTS[name]
    okun = stage.bot(LANGUAGE="en", **settings)
    assert await okun.run("--check") == 1
    assert any("✗" in line and sign in line for line in okun.log().splitlines())
    for value in ("wrong-token", "AIza-wrong"):
        assert value not in okun.log()


async def test_a_database_of_the_future_is_not_touched(stage: Stage) -> None:
    import sqlite3

    okun = stage.bot(LANGUAGE="en")
    with sqlite3.connect(okun.database) as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    assert await okun.run() == 1
    assert "okun.db" in okun.log()


async def test_all_faults_of_the_settings_are_listed_at_once(stage: Stage) -> None:
    okun = stage.bot(LANGUAGE="xx", WEB_PORT=99999, TIMEZONE="Mars/Base", TELEGRAM_BOT_TOKEN="nonsense")
    (stage.directory / ".env").write_text("GEMINI_API_KYE=x\n")
    assert await okun.run() == 2
    for name in ("LANGUAGE", "WEB_PORT", "TIMEZONE", "TELEGRAM_BOT_TOKEN", "GEMINI_API_KYE", "GEMINI_API_KEY"):
        assert name in okun.log()


async def test_without_a_token_and_a_terminal_it_ends_with_one_line(stage: Stage) -> None:
    okun = stage.bot(TELEGRAM_BOT_TOKEN=None)
    assert await okun.run() == 2
    [line] = okun.log().strip().splitlines()
    assert "TELEGRAM_BOT_TOKEN" in line


async def test_a_refused_token_ends_the_start(stage: Stage) -> None:
    okun = stage.bot(TELEGRAM_BOT_TOKEN="1:not-the-right-one")
    assert await okun.run() == 2
    assert "not-the-right-one" not in okun.log()


async def test_version_and_help(stage: Stage) -> None:
    okun = stage.bot()
    assert (await okun.run("--version"), await okun.run("--help")) == (0, 0)
    assert "Okun" in okun.log() and "--console" in okun.log()


async def test_secrets_in_what_servers_say_do_not_reach_the_log(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    stage.gemini.fault("400", text=f"API key {KEY} is not what it was")
    okun = stage.bot()
    async with okun:
        stage.telegram.fault("400", "sendMessage", text=f"no such thing as /bot{TOKEN}/sendMessage")
        stage.says(anna, "k1z hello")
        await until(lambda: not stage.telegram.faults, PATIENCE)
        await until(lambda: "is not what it was" in okun.log() and "no such thing" in okun.log(), PATIENCE)
        assert TOKEN not in okun.log() and KEY not in okun.log()
