"""What the bot keeps, as a process: tools over HTTP, reminders and forgetting through kills, an old database."""

from __future__ import annotations

import base64
import functools
import itertools
import random
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from fakes import BOT, Ask, BotProcess, Chat, Json, until

from .conftest import PATIENCE, TEXTS, Person, Stage, impatient, repeat_tokens, tokens

SCHEMAS = BOT.parent / "tests" / "schemas"


def write(database: Path, sql: str, rows: Iterable[Sequence[Any]]) -> None:
    """Rows for the database of a bot that is not running."""
    with closing(sqlite3.connect(database)) as connection:
        connection.executemany(sql, rows)
        connection.commit()


# == Tools =============================================================================================================


def called(tool: str, **args: Any) -> Json:
    return {"functionCall": {"name": tool, "args": args}}


def results(ask: Ask) -> list[str]:
    """What the model was told of its calls."""
    parts = [part["functionResponse"]["response"]["result"] for part in ask.contents[-1]["parts"] if len(part) == 1]
    return [str(result) for result in parts]


def repeat_results(ask: Ask) -> str:
    return "The tool says: " + "; ".join(results(ask))


async def test_a_fact_is_remembered_over_http_and_known_from_then_on(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("^$", repeat_results)
    stage.gemini.rule("remember that", called("remember", fact="has a cat", user_id=99))
    async with stage.bot() as okun:
        stage.says(anna, "remember that I have a cat")
        assert await stage.replied(anna) == ["The tool says: remembered"]
        asked, told = stage.gemini.requests
        assert [content["role"] for content in told.contents] == ["user", "model", "user"]
        assert told.contents[0] == asked.contents[0] and told.contents[1]["parts"][0]["thoughtSignature"]
        assert okun.rows("SELECT chat_id, user_id, text, told FROM facts") == [
            (anna.chat.id, anna.user["id"], "has a cat", 1)
        ]
        stage.says(anna, "what do you know?")
        await stage.replied(anna, 2)
        assert "Anna: has a cat" in stage.gemini.requests[-1].system
        await stage.settled(okun)
        calls = okun.rows("SELECT outcome, capability, user_id FROM llm_calls")
        assert calls == [("ok", "chat", anna.user["id"])] * 3


async def test_a_round_goes_on_with_another_model_where_the_first_fails(stage: Stage) -> None:
    anna = stage.person()

    def call_and_fail(ask: Ask) -> Json:
        stage.gemini.fault("429", 9, ask.model, retry_delay=99)
        return called("remember", fact="has a cat")

    stage.gemini.rule("remember that", call_and_fail, model="gemini-3.8-flash")
    stage.gemini.rule(r"\[remember: remembered\]", "Noted.", model="gemini-3.5-flash-lite")
    async with stage.bot() as okun:
        stage.says(anna, "remember that I have a cat")
        assert await stage.replied(anna) == ["Noted."]
        assert okun.rows("SELECT text FROM facts") == [("has a cat",)]


async def test_the_web_is_searched_beside_the_tools_where_that_is_on(stage: Stage) -> None:
    anna = stage.person()
    search = {"toolType": "GOOGLE_SEARCH_WEB", "id": "s1"}
    found: list[Json] = [
        {"toolCall": search | {"args": {"queries": ["rain"]}}},
        {"toolResponse": search | {"response": {}}},
        {"text": "It rains."},
    ]
    stage.gemini.rule("does it rain", found, chunk=99)
    async with stage.bot(WEB_SEARCH="on"):
        stage.says(anna, "does it rain?")
        assert await stage.replied(anna) == ["It rains."]
        stage.says(anna, "and tomorrow?")
        await stage.replied(anna, 2)
        for ask in stage.gemini.requests:
            declared, searching = ask.body["tools"]
            assert {tool["name"] for tool in declared["functionDeclarations"]} >= {"remember", "search_chat"}
            assert searching == {"googleSearch": {}} and ask.body["toolConfig"]["includeServerSideToolInvocations"]
        assert stage.gemini.requests[-1].contents[1]["parts"] == found  # its own parts, as they were


OGG = b"OggS" + bytes(200)  # a voice note as it stands: no ffmpeg is needed


async def test_whatever_a_model_is_asked_for_is_counted_as_such(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    group = telegram.group("Anglers", [anna.user])
    voice = {"inlineData": {"mimeType": "audio/ogg;codecs=opus", "data": base64.b64encode(OGG).decode()}}
    stage.gemini.rule("", voice, model="gemini-2.5-flash-preview-tts")
    okun = stage.bot(
        CONTEXT_MESSAGES=2,
        CONTEXT_TOKENS=1500,
        GEMINI_EMBEDDING_MODEL="gemini-embedding-001",
        GEMINI_TTS_MODEL="gemini-2.5-flash-preview-tts",
    )
    async with okun:
        for text in ("the chainsaw hangs in the shed", *(f"{n} " + "lovely weather " * 150 for n in range(8))):
            telegram.say(group, anna.user, text)
        await until(lambda: okun.rows("SELECT count(*) FROM passages") == [(9,)], PATIENCE)
        telegram.say(group, anna.user, "okun, where does the chainsaw hang?")
        await stage.replied(group)
        telegram.say(group, anna.user, "/summary 10")  # more than fits: a light model reads it in parts
        await stage.replied(group, 2)
        stage.says(anna, "/voice on")
        await stage.replied(anna)
        stage.says(anna, "hello")
        [note] = await telegram.until(lambda: telegram.called("sendVoice"), PATIENCE)
        await stage.settled(okun)
        assert note.params["chat_id"] == anna.chat.id
        capabilities = {name for (name,) in okun.rows("SELECT capability FROM llm_calls WHERE outcome = 'ok'")}
        assert capabilities == {"chat", "light", "embed", "speak"}
        assert okun.rows("SELECT DISTINCT model FROM llm_calls WHERE capability = 'embed'") == [
            ("gemini-embedding-001",)
        ]
        assert okun.rows("SELECT count(*) FROM embeddings_cache") == [(1,)]  # of what was found


# == Reminders =========================================================================================================

REMIND = "INSERT INTO reminders (chat_id, thread_id, user_id, message_id, text, due_at) VALUES (?, 0, ?, NULL, ?, ?)"
NOW, LATE = (TEXTS["reminder"][name].split("{")[0].lower() for name in ("now", "late"))
ATTENTIVE = impatient(LATELY_S=0.1)  # looks at the clock often


async def known(stage: Stage, okun: BotProcess, person: Person) -> None:
    """Let the bot meet somebody, then stop it: its database is free to be written."""
    await okun.start()
    stage.says(person, "hello")
    await stage.replied(person)
    await stage.settled(okun)
    await okun.stop()


def remind(okun: BotProcess, person: Person, seconds: float, text: str = "feed the cat") -> int:
    due = int(time.time() + seconds)
    write(okun.database, REMIND, [(person.chat.id, person.user["id"], text, due)])
    return due


def reminded(stage: Stage, person: Person) -> list[str]:
    return [text for text in stage.replies(person) if "feed the cat" in text and text.lower().startswith((NOW, LATE))]


async def test_a_reminder_set_in_talk_is_said_by_the_process_at_its_time(stage: Stage) -> None:
    anna = stage.person()
    okun = await stage.bot(ATTENTIVE).start()
    stage.says(anna, "remind me tomorrow at 9 to feed the cat")
    [promise] = await stage.replied(anna)
    await stage.settled(okun)
    assert "feed the cat" in promise and stage.gemini.requests == []
    await okun.stop()
    due = int(time.time()) + 2
    write(okun.database, "UPDATE reminders SET due_at = ?", [(due,)])
    await okun.start()
    await stage.replied(anna, 2)
    await until(lambda: not okun.rows("SELECT * FROM reminders"), PATIENCE)
    said = stage.telegram.sent(anna.chat)[-1]
    assert said["text"].lower() == f"{NOW}feed the cat" and said["date"] >= due
    assert okun.rows("SELECT text FROM messages WHERE user_id IS NULL") == [(promise,), (said["text"],)]


async def test_a_reminder_that_the_model_sets_is_kept(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("^$", repeat_results)
    stage.gemini.rule("do not let me forget", called("set_reminder", text="feed the cat", at="2031-05-14T09:00"))
    async with stage.bot() as okun:
        stage.says(anna, "do not let me forget the cat")
        [reply] = await stage.replied(anna)
        await stage.settled(okun)
        assert reply.startswith("The tool says: set for") and "2031" in reply
        assert okun.rows("SELECT user_id, text FROM reminders") == [(anna.user["id"], "feed the cat")]


def being_sent(kind: str) -> Callable[[Stage, BotProcess, Person], Any]:
    """Arranges that the send hangs; true when it does."""

    def reached(stage: Stage, okun: BotProcess, person: Person) -> bool:
        return not stage.telegram.faults and (kind == "timeout" or bool(reminded(stage, person)))

    return reached


# where the kill finds a reminder: how its send goes, when that point is reached, how often it is said in all
MOMENTS: dict[str, tuple[str, Callable[[Stage, BotProcess, Person], Any], int]] = {
    "before its time": ("", lambda stage, okun, person: True, 1),
    "being sent, not carried out": ("timeout", being_sent("timeout"), 1),
    "being sent, carried out": ("timeout_after", being_sent("timeout_after"), 2),
    "said": ("", lambda stage, okun, person: reminded(stage, person), 2),
    "done": ("", lambda stage, okun, person: not okun.rows("SELECT * FROM reminders"), 1),
}


@pytest.mark.parametrize("moment", MOMENTS)
async def test_a_kill_around_its_time_loses_no_reminder(stage: Stage, moment: str) -> None:
    kind, reached, most = MOMENTS[moment]
    anna, okun = stage.person(), stage.bot(ATTENTIVE)
    await known(stage, okun, anna)
    remind(okun, anna, 30 if moment == "before its time" else 0)
    if kind:
        stage.telegram.fault(kind, "sendMessage")
    await okun.start()
    await until(lambda: reached(stage, okun, anna), PATIENCE)
    await okun.kill()
    if moment == "before its time":
        write(okun.database, "UPDATE reminders SET due_at = ?", [(int(time.time()),)])
    await okun.start()
    await until(lambda: not okun.rows("SELECT * FROM reminders"), PATIENCE)
    assert await okun.stop() == 0
    assert 1 <= len(reminded(stage, anna)) <= most
    assert okun.rows("SELECT count(*) FROM messages WHERE text LIKE '%feed the cat'") == [(1,)]


async def test_kills_at_any_moment_repeat_only_what_was_being_said(stage: Stage) -> None:
    telegram, dice = stage.telegram, random.Random(20261121)
    people = [stage.person(f"Person{n}") for n in range(4)]
    okun = await stage.bot(ATTENTIVE).start()
    for person in people:
        stage.says(person, "hello")
    await stage.settled(okun)
    await okun.stop()
    wanted = [f"k{n}z feed the cat" for n in range(24)]
    for n, text in enumerate(wanted):
        remind(okun, people[n % 4], 0, text)
    telegram.fault("slow", "sendMessage", times=999, seconds=0.02)
    kills: list[int] = []  # how many sends there had been
    for _ in range(4):
        await okun.start()
        enough = len(said_in_order(stage)) + dice.randrange(1, 7)
        await telegram.until(functools.partial(has_said, stage, enough), PATIENCE)
        await okun.kill()
        kills.append(len(said_in_order(stage)))
    await okun.start()
    await until(lambda: not okun.rows("SELECT * FROM reminders"), PATIENCE)
    sends = said_in_order(stage)
    assert set(sends) == {tokens(text)[0] for text in wanted}
    for token in set(sends):
        times = [n for n, other in enumerate(sends) if other == token]
        for first, again in itertools.pairwise(times):
            assert any(first < kill <= again for kill in kills), f"{token} said twice without a kill"


def said_in_order(stage: Stage) -> list[str]:
    """The tokens of the reminders that were carried out."""
    calls = stage.telegram.called("sendMessage")
    return [tokens(call.params["text"])[0] for call in calls if call.ok and "feed the cat" in call.params["text"]]


def has_said(stage: Stage, count: int) -> bool:
    return len(said_in_order(stage)) >= count


async def test_a_reminder_that_is_late_says_so(stage: Stage) -> None:
    anna, okun = stage.person(), stage.bot(ATTENTIVE)
    await known(stage, okun, anna)
    remind(okun, anna, -3600)
    await okun.start()
    await stage.replied(anna, 2)
    await until(lambda: not okun.rows("SELECT * FROM reminders"), PATIENCE)
    [text] = reminded(stage, anna)
    assert text.lower().startswith(LATE)


# == Forgetting ========================================================================================================

MESSAGE = """INSERT INTO messages (chat_id, message_id, thread_id, user_id, sent_at, kind, text)
             VALUES (?, ?, 0, ?, ?, 'text', ?)"""
PASSAGE = """INSERT INTO passages (id, chat_key, words)
             SELECT id, replace(chat_id, '-', 'n'), lower(text) FROM messages WHERE id > ?"""


def fill(okun: BotProcess, chat: Chat, people: Sequence[Person], count: int) -> None:
    """So many messages of these people, in turns, as if they had been heard and indexed."""
    now = int(time.time())
    rows = [(chat.id, 10_000 + n, people[n % len(people)].user["id"], now, f"treasure word{n}") for n in range(count)]
    [(last,)] = okun.rows("SELECT coalesce(max(id), 0) FROM messages")
    write(okun.database, MESSAGE, rows)
    write(okun.database, PASSAGE, [(last,)])


def count(okun: BotProcess, table: str, person: Person) -> int:
    return int(okun.rows(f"SELECT count(*) FROM {table} WHERE user_id = ?", person.user["id"])[0][0])


def found(okun: BotProcess, chat: Chat) -> int:
    """How many passages of a chat the index finds by a word of all."""
    query = f'"{str(chat.id).replace("-", "n")}xtreasure"'
    return int(okun.rows("SELECT count(*) FROM recall WHERE recall MATCH ?", query)[0][0])


async def test_a_kill_in_the_middle_of_forgetting_leaves_nothing_unforgotten(stage: Stage) -> None:
    anna, ben, okun = stage.person(), stage.person("Ben"), stage.bot()
    group = stage.telegram.group("Anglers", [anna.user, ben.user])
    await known(stage, okun, anna)
    await known(stage, okun, ben)
    stage.telegram.say(group, anna.user, "hello all")
    await okun.start()
    stage.says(anna, "/remember I have a cat")
    await stage.replied(anna, 2)
    await stage.settled(okun)
    await okun.stop()
    fill(okun, group, [anna, ben], 20_000)
    fill(okun, anna.chat, [anna], 5000)
    assert found(okun, group) == 20_000
    await okun.start()
    stage.says(anna, "/forget me")
    await stage.replied(anna, 3)
    whole = count(okun, "messages", anna)
    stage.telegram.press(anna.chat, anna.user, TEXTS["forget"]["button"]["all"])
    await until(lambda: count(okun, "messages", anna) < whole - 1000, PATIENCE)
    await okun.kill()
    assert count(okun, "messages", anna) > 0  # it was in the middle
    await okun.start()
    done = TEXTS["forget"]["done_all"]
    await stage.telegram.until(lambda: done in stage.replies(anna), PATIENCE)
    await stage.settled(okun)
    assert [count(okun, table, anna) for table in ("messages", "facts", "reminders", "users")] == [0, 0, 0, 0]
    assert (found(okun, group), found(okun, anna.chat)) == (10_000, 0)
    assert count(okun, "messages", ben) == 10_001
    assert okun.rows("SELECT count(*) FROM passages WHERE id NOT IN (SELECT id FROM messages)") == [(0,)]


# == An older database =================================================================================================


async def test_a_database_of_the_first_version_is_migrated_and_its_words_are_found(stage: Stage) -> None:
    anna, ben, okun = stage.person(), stage.person("Ben"), stage.bot(CONTEXT_MESSAGES=5, BACKUP_DIR="copies")
    group = stage.telegram.group("Anglers", [anna.user, ben.user])
    with closing(sqlite3.connect(okun.database)) as connection:
        connection.executescript((SCHEMAS / "v1.sql").read_text("utf-8"))
        connection.execute("INSERT INTO chats (chat_id, kind, title) VALUES (?, 'group', 'Anglers')", (group.id,))
        connection.execute("INSERT INTO users (user_id, name) VALUES (?, 'Ben')", (ben.user["id"],))
        connection.commit()
    old = [(group.id, n, ben.user["id"], 1_700_000_000 + n, f"nothing of note {n}") for n in range(1, 300)]
    old[3] = (*old[3][:4], "the chainsaw hangs in the shed behind the mill")
    write(okun.database, MESSAGE, old)
    stage.gemini.rule("^$", repeat_results)
    stage.gemini.rule("search", called("search_chat", query="chainsaw"))
    async with okun:
        await until(lambda: okun.rows("SELECT count(*) FROM passages") == [(len(old),)], PATIENCE)
        stage.telegram.say(group, anna.user, "okun, where is the chainsaw?")
        await stage.replied(group)
        assert "Ben: the chainsaw hangs in the shed behind the mill" in stage.gemini.requests[-1].system
        stage.telegram.say(group, anna.user, "okun, search the whole chat, please")
        assert "in the shed behind the mill" in (await stage.replied(group, 2))[1]
        assert okun.rows("SELECT count(*) FROM messages WHERE sent_at < 1700001000") == [(len(old),)]
    copies = sorted((stage.directory / "copies").glob("*.db"))
    assert [copy.name.rpartition("-")[0] for copy in copies] == [f"before-{n}" for n in range(2, 8)]
    for version, copy in enumerate(copies, 1):
        with closing(sqlite3.connect(copy)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert connection.execute("PRAGMA user_version").fetchall() == [(version,)]
            assert connection.execute("SELECT count(*) FROM messages").fetchall() == [(len(old),)]


async def test_a_migrated_database_is_as_good_as_a_fresh_one(stage: Stage) -> None:
    anna, okun = stage.person(), stage.bot()
    with closing(sqlite3.connect(okun.database)) as connection:
        connection.executescript((SCHEMAS / "v1.sql").read_text("utf-8"))
    stage.gemini.rule("", repeat_tokens)
    for n in range(2):
        async with okun:
            stage.says(anna, f"k{n}z hello")
            assert tokens((await stage.replied(anna, n + 1))[n]) == [f"k{n}z"]
            await stage.settled(okun)
            assert await okun.stop() == 0
    copies = sorted((stage.directory / "backups").glob("*.db"))  # the second start had nothing to migrate
    assert [copy.name.rpartition("-")[0] for copy in copies] == [f"before-{n}" for n in range(2, 8)]
