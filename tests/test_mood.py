"""The mood of a chat: what is counted by the hour, what a light model reads in batches, and what /mood tells of it."""

from __future__ import annotations

import itertools
import json
import random
import re
import sqlite3
import zoneinfo
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import ANNA, BORYS, KYIV, NOON, VIRA, Okun, Room, Script, settings

import bot

HOUR, DAY = 3600, 86_400
PEOPLE = ("Anna", "Borys", "Vira")
WORDS = [
    "чудово ❤️",
    "ти ідіот?",
    "мені сумно",
    "good 👍",
    "this is awful",
    "хто йде?",
    "потяг",
    "дуже страшно",
    "😡",
    "ура!!!",
]
EMOTION_COLUMNS = ", ".join(bot.EMOTIONS)


# -- what is counted by the hour


def counted(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The hours of chats and of their members, as they are stored."""
    with closing(sqlite3.connect(path)) as db:
        chats = db.execute(
            f"SELECT chat_id, hour, messages, sentiment, questions, conflicts, {EMOTION_COLUMNS} FROM mood_hours"
        )
        members = db.execute("SELECT chat_id, hour, user_id, messages, sentiment FROM member_hours")
        return {row[:2]: row[2:] for row in chats}, {row[:3]: row[3:] for row in members}


def recounted(path: Path) -> tuple[dict[Any, Any], dict[Any, Any]]:
    """The same, from the messages."""
    chats: dict[Any, list[int]] = defaultdict(lambda: [0] * (4 + len(bot.EMOTIONS)))
    members: dict[Any, list[int]] = defaultdict(lambda: [0, 0])
    with closing(sqlite3.connect(path)) as db:
        for chat_id, user_id, sent_at, sentiment, emotion, question, conflict in db.execute(
            """SELECT chat_id, user_id, sent_at, sentiment, emotion, question, conflict FROM messages
               WHERE user_id IS NOT NULL AND kind <> 'command'"""
        ):
            felt = round(sentiment * 1000)
            told = [1, felt, question, conflict, *(int(emotion == name) for name in bot.EMOTIONS)]
            chats[chat_id, sent_at // HOUR] = [
                a + b for a, b in zip(chats[chat_id, sent_at // HOUR], told, strict=True)
            ]
            said, sum_ = members[chat_id, sent_at // HOUR, user_id]
            members[chat_id, sent_at // HOUR, user_id] = [said + 1, sum_ + felt]
    return {key: tuple(row) for key, row in chats.items()}, {key: tuple(row) for key, row in members.items()}


def agree(path: Path) -> bool:
    return counted(path) == recounted(path)


class Life:
    """What may happen to a chat, by chance."""

    def __init__(self, okun: Okun, seed: int) -> None:
        self.okun, self.dice = okun, random.Random(seed)
        self.rooms = [okun.group("Pond", kind="group"), okun.group("Lake"), okun.private("Anna")]
        self.seen: list[tuple[Room, int]] = []
        okun.model.says = self.reads

    def reads(self, ask: bot.Ask) -> str:
        lines = len(ask.said[-1].text.splitlines())
        felt = [{"n": n, "sentiment": self.dice.uniform(-1, 1), "topic": "fish"} for n in range(1, lines + 1)]
        return json.dumps({"messages": felt})

    async def say(self) -> None:
        room = self.dice.choice(self.rooms)
        by = "Anna" if room.id > 0 else self.dice.choice(PEOPLE)
        for _ in range(self.dice.randrange(1, 4)):
            self.seen.append((room, room.put("say", " ".join(self.dice.choices(WORDS, k=2)), by=by)))
        await self.okun.take()

    async def send_a_picture(self) -> None:
        room = self.dice.choice(self.rooms[:2])
        room.put("photo", b"\xff\xd8", self.dice.choice(WORDS), by="Borys")
        await self.okun.take()

    async def redeliver(self) -> None:
        room, message_id = self.dice.choice(self.seen)
        self.okun.telegram.push({"message": room.chat.messages[message_id]})
        await self.okun.take()

    async def edit(self) -> None:
        room, message_id = self.dice.choice(self.seen)
        await room.edit(message_id, self.dice.choice(WORDS))

    async def answer_a_form(self) -> None:
        room, message_id = self.dice.choice(self.seen)
        await self.okun.app.db.write({bot.NO_TALK: [(room.id, message_id)] * self.dice.randrange(1, 3)})

    async def forget(self) -> None:
        user_id, room = self.dice.choice((ANNA, BORYS, VIRA)), self.dice.choice(self.rooms)
        everywhere = self.dice.random() < 0.3
        chats = await bot.chats_of(self.okun.app.db.reader, user_id) if everywhere else [room.id]
        await bot.forget_person(self.okun.app, user_id, chats, everywhere=everywhere)
        await self.okun.settle()

    async def forget_a_person_at_a_blow(self) -> None:
        async with self.okun.app.db.tx() as tx:
            await tx.run("DELETE FROM users WHERE user_id = ?", self.dice.choice((BORYS, VIRA)))
        self.okun.app.known.clear()

    async def expire(self) -> None:
        await bot.retention_clean(self.okun.app)

    async def pass_time(self) -> None:
        self.okun.clock.passed += self.dice.choice((20, 600, 4000))

    async def be_read(self) -> None:
        batches = bot.Batches(self.okun.app)
        for _ in range(self.dice.randrange(1, 6)):
            await batches.step()

    async def migrate(self) -> None:
        old = self.rooms[0]
        new = Room(self.okun, self.okun.telegram.migrate(old.chat))
        waiting = self.okun.telegram.next_updates()
        if self.dice.random() < 0.6:  # the new one speaks first
            new.put("say", self.dice.choice(WORDS), by="Vira")
            await self.okun.take()
        await self.okun.feed(*waiting)
        self.seen = [(room, id_) for room, id_ in self.seen if room is not old]
        self.rooms[0] = self.okun.group("Pond", kind="group")
        self.rooms[1] = new

    async def restart(self) -> None:
        await self.okun.restart()
        self.okun.model.says = self.reads

    async def go_on(self) -> str:
        often = [self.say] * 8 + [self.edit, self.redeliver, self.answer_a_form] * 3
        rare = [self.send_a_picture, self.forget, self.expire, self.pass_time, self.be_read, self.migrate, self.restart,
                self.forget_a_person_at_a_blow]  # fmt: skip
        what = self.dice.choice([*often, *rare]) if self.seen else self.say
        await what()
        return what.__name__


@settings(group_policy="mention", retention_days=1, analysis_batch_size=1)
@pytest.mark.parametrize("seed", [1, 2])
async def test_the_hours_are_always_what_the_messages_come_to(okun: Okun, seed: int) -> None:
    life, done = Life(okun, seed), Counter[str]()
    for _ in range(100):
        done[name := await life.go_on()] += 1
        assert agree(okun.path), (name, done)
    assert len(done) >= 10 and okun.rows("SELECT count(*) FROM mood_hours") > [(0,)]


async def test_an_answer_to_a_form_is_no_talk_and_has_no_mood(okun: Okun, chat: Room) -> None:
    await chat.say("hello there")
    before = counted(okun.path)
    [reply] = await chat.say("/personas")
    pressed = await chat.press(next(label for label in reply.buttons if label.startswith("➕")))
    assert pressed.replies or pressed.message.text
    await chat.say("Wonderful")
    assert chat.rows("kind", "text = 'Wonderful'") == ["command"]
    assert counted(okun.path) == before and agree(okun.path)


def test_a_database_of_the_second_version_gets_its_hours(tmp_path: Path) -> None:
    path, dice = tmp_path / "okun.db", random.Random(5)
    with closing(sqlite3.connect(path)) as db:
        db.executescript((bot.HERE / "tests" / "schemas" / "v2.sql").read_text("utf-8"))
        db.executemany("INSERT INTO chats (chat_id, kind, title) VALUES (?, 'group', 'Pond')", [(-1,), (-2,)])
        db.executemany("INSERT INTO users (user_id, name) VALUES (?, '?')", [(ANNA,), (BORYS,)])
        for n in range(500):
            user_id, kind = dice.choice((ANNA, BORYS, None)), dice.choice(("text", "photo", "command"))
            db.execute(
                """INSERT INTO messages (chat_id, message_id, thread_id, user_id, sent_at, kind, text, sentiment)
                   VALUES (?, ?, 0, ?, ?, ?, 'x', ?)""",
                (
                    dice.choice((-1, -2)),
                    n,
                    user_id,
                    int(NOON) + dice.randrange(DAY),
                    kind,
                    round(dice.uniform(-1, 1), 3),
                ),
            )
        db.commit()
    bot.prepare_database(str(path), tmp_path)
    assert agree(path) and len(counted(path)[0]) > 40
    with closing(sqlite3.connect(path)) as db:  # and keeps them
        db.execute("UPDATE messages SET emotion = 'joy', question = 1, sentiment = 0.5 WHERE id % 3 = 0")
        db.execute("DELETE FROM messages WHERE id % 5 = 0")
        db.commit()
    assert agree(path)


# -- batches

Felt = Callable[[str], tuple[float, str]]


def reading(model: Script, felt: Felt = lambda text: (0.5, "fish")) -> list[list[str]]:
    """Let the light model answer for each message what `felt` says; the messages it was told, call by call."""
    told: list[list[str]] = []
    other = model.says

    def says(ask: bot.Ask) -> str | bot.Answer | Exception:
        if bot.BATCH_PROMPT not in ask.system:
            return other(ask)
        texts = [line.partition(". ")[2] for line in ask.said[-1].text.splitlines()]
        told.append(texts)
        answers = [felt(text) for text in texts]
        return json.dumps({"messages": [{"n": n, "sentiment": s, "topic": t} for n, (s, t) in enumerate(answers, 1)]})

    model.says = says
    return told


def analysing(okun: Okun) -> None:
    """Let the loop run that has batches read."""
    okun.app.spawn(bot.LOOPS["analysis"](okun.app), "analysis")


async def talk(room: Room, *texts: str, by: str = "Anna") -> None:
    for text in texts:
        room.put("say", text, by=by)
    await room.okun.take()


def lines(count: int, start: int = 0) -> list[str]:
    return [f"line number {n}" for n in range(start, start + count)]


by_five = settings(analysis_batch_size=5, group_policy="mention")


@by_five
async def test_a_full_batch_makes_one_call_and_what_it_read_counts(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model, lambda text: (-0.25, "  Big\n fish ") if "3" in text else (1.0, ""))
    await talk(group, *lines(4))
    await okun.later(60)
    assert told == []
    await talk(group, *lines(8, 4))
    await okun.later(60)
    assert told == [lines(5), lines(5, 5)] and model.kinds["light"] == 2
    assert group.rows("sentiment, topic")[3:5] == [(-0.25, "Big fish"), (1.0, "")]
    assert group.rows("topic")[10:] == [None, None] and agree(okun.path)


@by_five
async def test_a_chat_is_not_mixed_with_another(okun: Okun, group: Room, chat: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model)
    lake = okun.group("Lake")
    for n in range(5):
        await talk(group, f"pond number {n}")
        await talk(lake, f"lake number {n}")
    await okun.later(60)
    assert sorted(told) == [[f"lake number {n}" for n in range(5)], [f"pond number {n}" for n in range(5)]]
    assert sorted(ask.chat_id for ask in model.asks) == sorted([group.id, lake.id])


@by_five
async def test_only_what_people_say_in_words_is_read(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model)
    await talk(group, "ok", "👍👍 😂", "/status now please", "okun, hello there", "12", *lines(3))
    group.put("photo", b"\xff\xd8", "a caption of words")
    await okun.take()
    await okun.later(60)
    assert told == []  # the answer of the bot is none of theirs
    await talk(group, "and one more")
    await okun.later(60)
    assert told == [["okun, hello there", *lines(3), "and one more"]]


@by_five
async def test_the_same_words_again_in_a_chat_cost_no_call(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model, lambda text: (-0.75, "fish"))
    await talk(group, *lines(5))
    await okun.later(60)
    await talk(group, *lines(5), by="Borys")
    await okun.later(60)
    await okun.restart()
    analysing(okun)
    told_after = reading(okun.model)
    await talk(group, *lines(5), by="Vira")
    await okun.later(60)
    assert told == [lines(5)] and told_after == []
    assert group.rows("sentiment, topic") == [(-0.75, "fish")] * 15
    await talk(group, "something new here", *lines(4))
    await okun.later(60)
    assert told_after == [["something new here"]]  # only what nobody read


@by_five
async def test_the_same_words_in_two_chats_are_read_for_each_and_neither_sees_the_others_topics(
    okun: Okun, group: Room, model: Script
) -> None:
    analysing(okun)
    lake = okun.group("Lake")
    told = reading(model, lambda text: (0.5, "a secret of the pond"))
    await talk(group, *lines(5))
    await okun.later(60)
    told_lake = reading(model, lambda text: (-0.5, "boats"))
    await talk(lake, *lines(5), by="Borys")
    await okun.later(60)
    assert told == told_lake == [lines(5)] and [ask.chat_id for ask in model.asks] == [group.id, lake.id]
    assert set(group.rows("sentiment, topic")) == {(0.5, "a secret of the pond")}
    assert set(lake.rows("sentiment, topic")) == {(-0.5, "boats")}
    await talk(lake, *lines(5), by="Vira")
    await okun.later(60)  # of its own, and still no call
    assert set(lake.rows("topic")) == {"boats"} and model.kinds["light"] == 2


@by_five
async def test_forgetting_takes_the_analyses_of_that_chat_only(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told, lake = reading(model), okun.group("Lake")
    await talk(group, *lines(5), by="Borys")
    await talk(lake, *lines(5), by="Borys")
    await okun.later(60)
    assert okun.rows("SELECT chat_id, count(*) FROM analysis_cache GROUP BY 1 ORDER BY 1") == sorted(
        [(group.id, 5), (lake.id, 5)]
    )
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    assert okun.rows("SELECT chat_id, count(*) FROM analysis_cache GROUP BY 1") == [(lake.id, 5)]
    await talk(lake, *lines(5))
    await okun.later(60)
    assert told == [lines(5)] * 2 and set(lake.rows("topic")) == {"fish"}
    await talk(group, *lines(5))
    await okun.later(60)
    assert told == [lines(5)] * 3


async def test_more_analyses_than_a_slice_are_forgotten(okun: Okun, group: Room) -> None:
    lake, count = okun.group("Lake"), 2 * bot.FORGET_SLICE + 7
    rows = [(f"{room.id} {n}", room.id, '[0, "fish"]', 0) for room in (group, lake) for n in range(count)]
    await talk(group, "hello", by="Borys")
    await talk(lake, "hello", by="Borys")
    await okun.app.db.write({bot.PUT_ANALYSIS: rows})
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    assert okun.rows("SELECT chat_id, count(*) FROM analysis_cache GROUP BY 1") == [(lake.id, count)]


@by_five
async def test_a_model_that_reads_the_opposite_takes_the_emotion_of_the_word_lists(
    okun: Okun, group: Room, model: Script
) -> None:
    analysing(okun)
    said = ["чудово ура, як завжди", "чудово ура і дякую", "мені сумно і погано", "мені сумно сьогодні", "йде потяг"]
    felt = dict(zip(said, (-0.9, 0.9, 0.4, 0.0, -0.9), strict=True))
    told = reading(model, lambda text: (felt[text], "x"))
    await talk(group, *said)
    by_words = group.rows("emotion, sentiment")
    assert [emotion for emotion, _ in by_words] == ["joy", "joy", "sadness", "sadness", ""]
    assert [sentiment > 0 for _, sentiment in by_words] == [True, True, False, False, False]
    await okun.later(60)
    assert told == [said] and group.rows("sentiment") == list(felt.values())
    assert group.rows("emotion") == ["", "joy", "", "sadness", ""]  # neither says nor unsays it
    assert agree(okun.path)
    [hour] = okun.rows("SELECT joy, sadness FROM mood_hours")
    assert hour == (1, 1)


@by_five
async def test_words_twice_in_a_batch_are_read_once(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model, lambda text: (0.25, text[:4]))
    await talk(group, *["same thing"] * 3, *lines(2))
    await okun.later(60)
    assert told == [["same thing", *lines(2)]]
    assert group.rows("topic") == ["same"] * 3 + ["line"] * 2


@pytest.mark.parametrize("how", [{"analysis_batch_size": 0}, {"local_analysis": False}, {"gemini_light_model": ()}])
async def test_where_batches_are_switched_off_no_model_is_asked(okun: Okun, how: dict[str, Any]) -> None:
    await okun.restart(**{"analysis_batch_size": 5, "group_policy": "mention", **how})
    analysing(okun)
    group = okun.group()
    await talk(group, *lines(20))
    await okun.later(600)
    assert okun.model.kinds["light"] == 0 and set(group.rows("topic")) == {None}


@by_five
async def test_a_model_that_is_away_is_left_in_peace_for_a_minute(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    model.always(bot.LlmError("overloaded"))
    await talk(group, *lines(5))
    await okun.later(64)
    assert model.kinds["light"] == 1
    await okun.later(10)
    assert model.kinds["light"] == 2
    reading(model)
    await okun.later(70)
    assert set(group.rows("topic")) == {"fish"}


@by_five
@pytest.mark.parametrize("kind", ["server", "network", "quota"])
async def test_what_waits_outlives_an_outage_of_any_kind(okun: Okun, group: Room, model: Script, kind: str) -> None:
    analysing(okun)
    model.always(bot.LlmError(kind, [kind] * 3))
    await talk(group, *lines(15))
    await okun.later(600)
    assert 5 <= model.kinds["light"] <= 11
    reading(model)
    await okun.later(100)
    assert set(group.rows("topic")) == {"fish"}


@by_five
@pytest.mark.parametrize("said", [bot.LlmError("blocked"), "I will not read that."], ids=["blocked", "no JSON"])
async def test_messages_that_no_model_reads_hold_up_nobody(
    okun: Okun, group: Room, model: Script, said: str | Exception
) -> None:
    analysing(okun)
    told = reading(model)
    reads, lake = model.says, okun.group("Lake")
    model.says = lambda ask: said if "poison" in ask.said[0].text else reads(ask)
    await talk(group, *["poison line"] * 5, *[f"poison number {n}" for n in range(5)], *lines(5))
    await talk(lake, *lines(5, 50))
    await okun.later(1800)
    assert sorted(told) == [lines(5), lines(5, 50)]
    assert model.kinds["light"] <= 20  # what was refused a few times is not paid for again and again
    assert group.rows("topic") == [""] * 10 + ["fish"] * 5


@by_five
@pytest.mark.parametrize("faults", [["empty", "empty"], ["malformed"], ["cut", "cut"], ["empty", "empty", "quota"]])
async def test_what_models_only_stammer_at_is_not_paid_for_for_ever(
    okun: Okun, group: Room, model: Script, faults: list[str]
) -> None:
    analysing(okun)
    told = reading(model)
    reads, lake = model.says, okun.group("Lake")
    poison = bot.LlmError(bot.worst(faults), faults)
    model.says = lambda ask: poison if "poison" in ask.said[0].text else reads(ask)
    await talk(group, *["poison line"] * 5, *lines(5))
    await talk(lake, *lines(5, 50))
    await okun.later(1800)
    assert sorted(told) == [lines(5), lines(5, 50)] and model.kinds["light"] == 5
    assert group.rows("topic") == [""] * 5 + ["fish"] * 5


@by_five
async def test_a_chat_that_fails_goes_behind_the_others(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model)
    reads, lake = model.says, okun.group("Lake")
    model.says = lambda ask: bot.LlmError("timeout", ["timeout"]) if ask.chat_id == group.id else reads(ask)
    await talk(group, *lines(5))
    await talk(lake, *lines(5, 50))
    await okun.later(100)
    assert told == [lines(5, 50)] and set(group.rows("topic")) == {None}


@by_five
@pytest.mark.parametrize("said", [bot.LlmError("blocked"), "I will not read that."], ids=["blocked", "no JSON"])
async def test_what_no_model_reads_is_not_asked_for_again_after_a_restart(
    okun: Okun, group: Room, model: Script, said: str | Exception
) -> None:
    analysing(okun)
    model.always(said)
    await talk(group, *lines(5))
    await okun.later(60)
    asked, felt = model.kinds["light"], group.rows("sentiment")
    assert 1 <= asked <= 2 and set(group.rows("topic")) == {""}
    await okun.restart()
    analysing(okun)
    told = reading(okun.model)
    await talk(group, *lines(4, 5))
    await okun.later(60)
    assert told == []
    await talk(group, "and one more")
    await okun.later(60)
    assert told == [[*lines(4, 5), "and one more"]]
    assert group.rows("topic") == [""] * 5 + ["fish"] * 5 and group.rows("sentiment")[:5] == felt
    assert okun.rows("SELECT count(*) FROM analysis_cache") == [(5,)]


@by_five
async def test_what_no_model_read_is_read_when_it_says_something_else(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    model.always(bot.LlmError("blocked"))
    await talk(group, *lines(5))
    await okun.later(60)
    ids = group.rows("message_id")
    await okun.restart()
    for message_id, text in zip(ids, lines(5, 50), strict=True):
        await group.edit(message_id, text)
    assert set(group.rows("topic")) == {None}
    analysing(okun)
    told = reading(okun.model)
    await okun.later(60)
    assert told == [lines(5, 50)]


@by_five
async def test_rubbish_of_a_model_harms_nothing(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    answers: list[Any] = [
        [{"n": n, "sentiment": 1, "topic": "x"} for n in (0, 6, -1, 2**63)],
        [{"n": 10**30, "sentiment": 1, "topic": "x"}, {"n": 1.5, "sentiment": 1, "topic": "x"}],
        [{"n": 1, "sentiment": 7, "topic": "x"}, {"n": 2, "sentiment": -1.001, "topic": "x"}],
        [{"n": 1, "sentiment": float("nan"), "topic": "x"}, {"n": 2, "sentiment": float("inf"), "topic": "x"}],
        [{"n": 1}, {"sentiment": 1}, None, 5, [], "n", {"n": None, "sentiment": None, "topic": None}],
        [{"n": n, "sentiment": 1, "topic": ["x"]} for n in range(1, 6)],
        [],
    ]  # fmt: skip
    for start, answer in enumerate(answers):
        model.always(json.dumps({"messages": answer}))
        await talk(group, *lines(5, start * 5))
        await okun.later(10)
        assert set(group.rows("topic")) == {None} and set(group.rows("sentiment")) == {0.0}, answer
    assert model.kinds["light"] == len(answers) and okun.rows("SELECT count(*) FROM analysis_cache") == [(0,)]
    model.always(json.dumps({"messages": [
        {"n": 1, "sentiment": 0.12345, "topic": "т" * 10_000}, {"n": 2, "sentiment": 1, "topic": "a\0b\ud800 \n c"},
        {"n": 3, "sentiment": -1, "topic": "🏳️‍🌈"}, {"n": 3, "sentiment": 1, "topic": "twice"}, "rubbish",
    ]}))  # fmt: skip
    await talk(group, *lines(5, 100))
    await okun.later(10)
    first, second, third, *rest = group.rows("sentiment, topic")[-5:]
    assert first[0] == 0.123 and len(first[1]) == bot.MAX_TOPIC and "\0" not in second[1] and third[1]
    assert rest == [(0.0, None)] * 2 and agree(okun.path)


@by_five
async def test_what_is_edited_while_it_is_read_is_as_its_new_words_say(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    await talk(group, *lines(5))
    model.held = True
    await okun.later(5)
    [writing] = model.writing
    await group.edit(group.last_id, "this is awful")
    felt = [{"n": n, "sentiment": 0.5, "topic": "fish"} for n in range(1, 6)]
    writing.end(json.dumps({"messages": felt}))
    await okun.settle()
    *others, (sentiment, topic) = group.rows("sentiment, topic")
    assert others == [(0.5, "fish")] * 4
    assert sentiment < 0 and topic is None and agree(okun.path)


@by_five
async def test_what_is_edited_before_it_is_read_is_read_as_it_is_now(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model)
    await talk(group, "a secret word")
    await okun.later(10)
    await group.edit(group.last_id, "never mind that")
    await talk(group, *lines(5))
    await okun.later(10)
    assert "a secret word" not in [text for call in told for text in call]


@by_five
async def test_somebody_forgotten_is_read_no_more(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    told = reading(model)
    await talk(group, "a secret word", "another secret word", by="Borys")
    await okun.later(10)
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    await talk(group, *lines(5))
    await okun.later(10)
    await talk(group, *lines(5, 5))
    await okun.later(10)
    read = [text for call in told for text in call]
    assert read and read == lines(10)[: len(read)]


@by_five
async def test_of_somebody_forgotten_while_a_model_reads_nothing_is_kept(
    okun: Okun, group: Room, model: Script
) -> None:
    analysing(okun)
    await talk(group, *lines(5), by="Borys")
    model.held = True
    await okun.later(5)
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    felt = [{"n": n, "sentiment": 0.5, "topic": "secret"} for n in range(1, 6)]
    model.writing[0].end(json.dumps({"messages": felt}))
    await okun.settle()
    assert okun.rows("SELECT count(*) FROM analysis_cache") == [(0,)] and group.rows() == []
    assert counted(okun.path) == ({}, {})


@by_five
async def test_what_waited_for_its_batch_waits_on_after_a_restart(okun: Okun, group: Room) -> None:
    analysing(okun)
    await talk(group, *lines(3))
    await okun.later(20)
    await okun.restart()
    analysing(okun)
    told = reading(okun.model)
    await okun.later(20)
    await talk(group, *lines(2, 3))
    await okun.later(20)
    assert told == [lines(5)] and set(group.rows("topic")) == {"fish"}


@by_five
async def test_a_migrated_chat_is_read_and_forgotten_on(okun: Okun, model: Script) -> None:
    analysing(okun)
    told, group = reading(model), okun.group(kind="group")
    await talk(group, *lines(5), by="Borys")
    await okun.later(10)
    await talk(group, *lines(3, 5), by="Borys")
    await okun.later(10)
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    await talk(new, *lines(2, 8), by="Borys")
    await okun.later(10)
    assert told == [lines(5), lines(5, 5)] and set(new.rows("topic")) == {"fish"}
    await bot.forget_person(okun.app, BORYS, [new.id], everywhere=False)
    assert okun.rows("SELECT * FROM analysis_cache") == []


@by_five
async def test_what_nobody_said_for_a_month_is_not_cached_on(okun: Okun, group: Room, model: Script) -> None:
    analysing(okun)
    reading(model)
    await talk(group, *lines(5))
    await okun.later(10)
    okun.clock.passed += 29 * DAY
    await bot.analyses_clean(okun.app)
    assert okun.rows("SELECT count(*) FROM analysis_cache") == [(5,)]
    await talk(group, "line number 0", *["line number 1"] * 4)
    await okun.later(10)
    okun.clock.passed += 2 * DAY
    await bot.analyses_clean(okun.app)
    assert okun.rows("SELECT count(*) FROM analysis_cache") == [(2,)] and model.kinds["light"] == 1


# -- the steps of a period


def starts(period: str, *when: int, fold: int = 0, zone: zoneinfo.ZoneInfo = KYIV) -> list[int]:
    now = datetime(*when, tzinfo=zone, fold=fold).timestamp()  # type: ignore[arg-type,misc]
    found = bot.step_starts(bot.PERIODS[period], now, zone)
    assert found[-1] <= now < found[-1] + bot.PERIODS[period].step * HOUR + HOUR
    assert found == sorted(set(found)), "each step begins after the one before"
    return found


def on_the_wall(found: Sequence[int]) -> list[str]:
    return [f"{datetime.fromtimestamp(at, KYIV):%d.%m %H:%M}" for at in found]


def test_steps_begin_at_whole_hours_quarters_of_days_and_midnights() -> None:
    day, week, month = (starts(period, 2026, 5, 13, 12, 59, 59) for period in bot.PERIODS)
    assert (len(day), len(week), len(month)) == (24, 28, 30)
    assert on_the_wall([day[0], day[-1]]) == ["12.05 13:00", "13.05 12:00"]
    assert on_the_wall([week[0], week[1], week[-1]]) == ["06.05 18:00", "07.05 00:00", "13.05 12:00"]
    assert on_the_wall([month[0], month[-1]]) == ["14.04 00:00", "13.05 00:00"]


def test_at_midnight_a_new_day_begins() -> None:
    assert on_the_wall(starts("30d", 2026, 5, 13, 23, 59, 59))[-1] == "13.05 00:00"
    assert on_the_wall(starts("30d", 2026, 5, 14))[-1] == "14.05 00:00"
    assert on_the_wall(starts("24h", 2026, 5, 14))[-2:] == ["13.05 23:00", "14.05 00:00"]


@pytest.mark.parametrize("day", [(2026, 3, 29), (2026, 10, 25)], ids=["spring", "autumn"])
def test_where_clocks_change_days_still_begin_at_midnight_and_24_hours_are_24(day: tuple[int, int, int]) -> None:
    changed = datetime(*day, 12, tzinfo=KYIV)
    for after in (0, 1, 3, 6):
        later = changed + timedelta(days=after)
        assert {words[6:] for words in on_the_wall(starts("30d", *later.timetuple()[:4]))} == {"00:00"}
        week = on_the_wall(starts("7d", *later.timetuple()[:4]))
        assert {words[6:] for words in week} == {"00:00", "06:00", "12:00", "18:00"}
    for hour in range(24):
        for fold in (0, 1):
            found = starts("24h", *day, hour, 30, fold=fold)
            assert [later - earlier for earlier, later in itertools.pairwise(found)] == [HOUR] * 23


def test_every_hour_of_a_period_falls_into_a_step_also_in_zones_of_half_hours() -> None:
    for name in ("Europe/Kyiv", "Asia/Kolkata", "Asia/Kathmandu"):
        zone = zoneinfo.ZoneInfo(name)
        for period in bot.PERIODS:
            found = bot.step_starts(bot.PERIODS[period], NOON, zone)
            first = found[0] // HOUR
            hours = [(hour, 1, 500) for hour in range(first, int(NOON) // HOUR + 1)]
            steps = bot.steps_of(hours, found)
            assert sum(step.messages for step in steps) == len(hours), (name, period)
            assert {step.sentiment for step in steps if step.messages} == {0.5}


def test_a_step_has_the_mean_of_its_messages_not_of_its_hours() -> None:
    found = [0, 6 * HOUR]
    first, second = bot.steps_of([(1, 3, 900), (5, 1, -500), (6, 2, -1000)], found)
    assert first[:2] == (0, 4) and first.sentiment == pytest.approx(0.1) and second == (6 * HOUR, 2, -0.5)
    assert bot.steps_of([], found) == ((0, 0, 0.0), (6 * HOUR, 0, 0.0))


# -- the hours of the week


def plain_averages(hours: Sequence[tuple[int, int]], now_hour: int) -> list[float]:
    """Hour by hour, by the clock on the wall."""
    said, seen, known = Counter[int](), Counter[int](), dict(hours)
    for hour in range(hours[0][0], now_hour):
        there = datetime.fromtimestamp(hour * HOUR, KYIV)
        seen[there.weekday() * 24 + there.hour] += 1
        said[there.weekday() * 24 + there.hour] += known.get(hour, 0)
    return [said[at] / max(1, seen[at]) for at in range(168)]


def hour_of(*when: int) -> int:
    return int(datetime(*when, tzinfo=KYIV).timestamp()) // HOUR  # type: ignore[arg-type,misc]


@pytest.mark.parametrize("change", [(2026, 3, 29, 12), (2026, 10, 25, 12)], ids=["spring", "autumn"])
def test_averages_by_the_hour_of_the_week_go_by_the_clock_on_the_wall(change: tuple[int, ...]) -> None:
    dice, now_hour = random.Random(8), hour_of(*change) + 60
    first = now_hour - 2 * 168 - 5
    hours = [(hour, dice.randrange(1, 20)) for hour in range(first, now_hour) if hour == first or dice.random() < 0.7]
    assert bot.hour_averages(hours, now_hour, KYIV) == pytest.approx(plain_averages(hours, now_hour))


def test_the_hour_that_is_not_over_does_not_count_as_a_whole_one() -> None:
    now_hour = int(NOON) // HOUR
    averages = bot.hour_averages([(now_hour - 168, 10), (now_hour, 7)], now_hour, KYIV)
    assert averages and averages[bot.week_hour(now_hour, KYIV)] == 10 and sum(averages) == 10


def test_of_less_than_a_week_nobody_can_tell() -> None:
    now_hour = int(NOON) // HOUR
    assert bot.hour_averages([], now_hour, KYIV) is None
    assert bot.hour_averages([(now_hour - 167, 9)], now_hour, KYIV) is None
    assert bot.hour_averages([(now_hour - 168, 9)], now_hour, KYIV) is not None


def evenings(*hours: int) -> list[float]:
    return [5.0 if at % 24 in hours else 0.0 for at in range(168)]


def test_awake_are_the_next_two_stretches_above_the_mean() -> None:
    now_hour = hour_of(2026, 5, 13, 12)
    found = bot.awake_times(evenings(9, 18, 19, 20), now_hour, KYIV)
    assert on_the_wall([at for stretch in found for at in stretch]) == [
        "13.05 18:00", "13.05 21:00", "14.05 09:00", "14.05 10:00"
    ]  # fmt: skip
    [now, _] = bot.awake_times(evenings(11, 12, 13), now_hour, KYIV)
    assert on_the_wall(now) == ["13.05 12:00", "13.05 14:00"]


def test_over_midnight_and_over_the_change_of_clocks_a_stretch_is_one() -> None:
    [first, second] = bot.awake_times(evenings(23, 0, 1), hour_of(2026, 5, 13, 12), KYIV)
    assert on_the_wall([*first, *second]) == ["13.05 23:00", "14.05 02:00", "14.05 23:00", "15.05 02:00"]
    [spring, _] = bot.awake_times(evenings(2, 4), hour_of(2026, 3, 28, 12), KYIV)
    assert (on_the_wall(spring), spring[1] - spring[0]) == (["29.03 02:00", "29.03 05:00"], 2 * HOUR)  # no 03:00 then
    [autumn, _] = bot.awake_times(evenings(3), hour_of(2026, 10, 24, 18), KYIV)
    assert (on_the_wall(autumn), autumn[1] - autumn[0]) == (["25.10 03:00", "25.10 04:00"], 2 * HOUR)


def test_a_chat_that_is_always_the_same_is_not_likelier_awake_at_any_time() -> None:
    for average in (0.0, 1.0, 0.1, 1 / 3, 2.7):
        assert bot.awake_times([average] * 168, int(NOON) // HOUR, KYIV) == (), average


# -- topics


def everyday(word: str) -> bool:
    return word in ("this", "дуже")


def labelled(topic: str | None, times: int = 1, words: str = "", by: int = ANNA) -> list[bot.Sampled]:
    return [bot.Sampled(topic, words, by)] * times


def worded(*words: str, by: int = ANNA) -> list[bot.Sampled]:
    return [bot.Sampled(None, one, by) for one in words]


def test_topics_are_a_models_where_it_named_enough_of_them() -> None:
    sample = [*labelled("Fishing", 3, "pike"), *labelled("fishing ", 2, "pike", BORYS), *labelled("weather", 4),
              *labelled("Сад", 2), *labelled("once"), *labelled("", 9)]  # fmt: skip
    assert bot.top_topics(sample, everyday) == ("fishing", "weather", "сад")


def test_else_topics_are_words_in_the_form_said_most() -> None:
    sample = worded("риба дуже", "рибу this", "рибу кіт 12345 дуже this")
    rain = [*worded("дощі"), *worded("дощі", by=BORYS)]
    assert bot.top_topics([*sample, *rain], everyday) == ("рибу", "дощі")
    assert bot.top_topics([*labelled("fish", 2), *rain], everyday) == ("fish", "дощі")
    assert bot.top_topics([*worded("риба"), *labelled("once", 1, "дощ")], everyday) == ()
    assert bot.top_topics([], everyday) == ()


def test_a_topic_was_said_by_two_or_three_times_by_one() -> None:
    assert bot.top_topics(worded("щука", "щуку"), everyday) == ()
    assert bot.top_topics(worded("щука", "щуку", "щуку"), everyday) == ("щуку",)
    assert bot.top_topics([*worded("щука"), *worded("щука", by=BORYS)], everyday) == ("щука",)
    assert bot.top_topics([*worded("щука"), *worded("карась", by=BORYS)], everyday) == ()


def test_a_word_in_three_forms_of_one_message_was_said_once() -> None:
    assert bot.top_topics(worded("риба рибу рибою"), everyday) == ()
    assert bot.top_topics(worded("риба рибу рибою", "риба"), everyday) == ()


def test_no_topic_is_named_twice() -> None:
    sample = [*labelled("рибалка", 2, "рибалка щука"), *worded("рибалка щука", by=BORYS)]
    assert bot.top_topics(sample, everyday) == ("рибалка", "щука")


@pytest.mark.parametrize(
    ("lang", "idle", "topics"),
    [
        ("uk", ["сумно", "чудово", "жах", "боюся", "люблю", "точно", "швидко", "смачно", "дуже"],
         ["щука", "потяг"]),
        ("ru", ["грустно", "прекрасно", "ужас", "боюсь", "медленно", "точно", "быстренько", "очень"],
         ["щука", "поезд"]),
        ("en", ["sadly", "awful", "happy", "love", "quickly", "really", "very"], ["pike", "train"]),
    ],
)  # fmt: skip
async def test_feelings_and_adverbs_are_no_topics(
    okun: Okun, group: Room, lang: str, idle: list[str], topics: list[str]
) -> None:
    said = [" ".join([*idle, *topics])] * 3
    everybody = [(user_id, 1.0, bot.Mood(lang=lang), text) for user_id in (ANNA, BORYS, VIRA) for text in said]
    alone = "качка" if lang != "en" else "duckling"
    await stored(group, *everybody, (ANNA, 2.0, CALM, alone), (ANNA, 3.0, CALM, alone))
    assert (await bot.mood_report(okun.app, group.id, "24h")).topics == tuple(topics)


# -- the report


async def stored(room: Room, *messages: tuple[int, float, bot.Mood, str], people: dict[int, str] | None = None) -> None:
    """Messages as (user, hours before now, mood, text), put where they are stored."""
    okun = room.okun
    names = {ANNA: "Anna", BORYS: "Borys", VIRA: "Vira", **(people or {})}
    now = okun.clock.now()
    rows = [
        (
            room.id,
            1000 + n,
            0,
            user_id,
            int(now - hours * HOUR),
            "text",
            text,
            None,
            None,
            None,
            None,
            *mood,
            None,
            None,
        )
        for n, (user_id, hours, mood, text) in enumerate(messages)
    ]
    users = [(user_id, names[user_id], None, None, None) for user_id in {message[0] for message in messages}]
    chats = [(room.id, "supergroup", room.chat.card.get("title", "Anna"))]
    await okun.app.db.write({bot.PUT_CHAT: chats, bot.PUT_USER: users, bot.PUT_MESSAGE: rows})
    while await bot.index_messages(okun.app, 500):
        pass


JOY, GRIEF, CALM = bot.Mood(0.5, "joy", "uk"), bot.Mood(-0.25, "sadness", "uk", True), bot.Mood()
RAGE = bot.Mood(-0.8, "anger", "uk", conflict=True)
TOLD = [
    (ANNA, 0.5, JOY, "щука клює"), (ANNA, 0.6, JOY, "щука клює"), (ANNA, 1.5, RAGE, "щука"),
    (BORYS, 1.5, GRIEF, "щука"), (BORYS, 5.0, CALM, "щука"), (BORYS, 22.5, JOY, "ліс"), (VIRA, 22.9, RAGE, "ліс"),
    (ANNA, 24.5, JOY, "дощ"),
    (VIRA, 100.0, GRIEF, "дощ"), (VIRA, 400.0, RAGE, "дощ"), (VIRA, 600.0, CALM, "дощ"), (VIRA, 900.0, JOY, "поза"),
    (ANNA, 2.5, JOY, "щуку"), (ANNA, 2.5, JOY, "щуку"), (ANNA, 2.6, JOY, "щуку"), (ANNA, 2.6, JOY, "щуку"),
]  # fmt: skip


async def test_the_figures_of_a_report_are_those_of_its_messages(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD)
    day, week, month = [await bot.mood_report(okun.app, group.id, period) for period in bot.PERIODS]
    assert (day.messages, week.messages, month.messages) == (11, 13, 15)
    assert (day.people, day.members) == (3, (("Anna", 7), ("Borys", 3), ("Vira", 1)))
    assert (month.people, month.members) == (3, (("Anna", 8), ("Vira", 4), ("Borys", 3)))
    assert day.sentiment == pytest.approx((7 * 0.5 - 2 * 0.8 - 0.25) / 11)
    assert month.sentiment == pytest.approx((8 * 0.5 - 3 * 0.8 - 2 * 0.25) / 15)
    assert (day.questions, day.conflicts, month.questions, month.conflicts) == (1, 2, 2, 3)
    assert dict(day.emotions) == pytest.approx({"joy": 7 / 11, "anger": 2 / 11, "sadness": 1 / 11})
    assert [name for name, _ in day.emotions] == ["joy", "anger", "sadness"]
    assert day.topics[0] == "щука" and "поза" not in month.topics  # six times in two forms


async def test_the_steps_of_a_report_hold_its_messages(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD)
    for period in bot.PERIODS:
        report = await bot.mood_report(okun.app, group.id, period)
        assert sum(step.messages for step in report.steps) == report.messages
        mean = sum(step.messages * step.sentiment for step in report.steps) / report.messages
        assert mean == pytest.approx(report.sentiment)
    day = await bot.mood_report(okun.app, group.id, "24h")
    felt = [(step.messages, round(step.sentiment, 9)) for step in day.steps[-4:]]
    assert felt == [(4, 0.5), (2, -0.525), (2, 0.5), (0, 0.0)] and day.steps[-5].messages == 0


@settings(timezone=zoneinfo.ZoneInfo("Asia/Kolkata"))
async def test_the_steps_hold_all_also_where_the_zone_is_half_an_hour_off(okun: Okun, group: Room) -> None:
    await stored(group, *[(ANNA, hours / 4, JOY, "щука") for hours in range(100)])
    for period in bot.PERIODS:
        report = await bot.mood_report(okun.app, group.id, period)
        assert sum(step.messages for step in report.steps) == report.messages


async def test_a_report_knows_no_other_chat_no_command_and_no_bot(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD[:10])
    await stored(okun.group("Lake"), *TOLD)
    await group.say("/status")
    await group.say("okun, hi")
    report = await bot.mood_report(okun.app, group.id, "30d")
    assert report.messages == 11 and report.people == 3


async def test_what_the_chat_expects_is_by_the_hour_of_its_weeks(okun: Okun, group: Room) -> None:
    weeks = [(ANNA, 168.0 * week - 3 + 0.01, JOY, "щука") for week in (1, 2, 3, 4) for _ in range(3)]
    await stored(group, *weeks, (ANNA, 700.0, JOY, "щука"))
    report = await bot.mood_report(okun.app, group.id, "30d")
    assert [hour for hour, expected in enumerate(report.ahead) if expected > 1] == [2]
    assert report.ahead[2] == pytest.approx(3)
    at = int(NOON) + 2 * HOUR
    assert report.awake[0] == (at, at + HOUR)
    [reply] = await group.say("/mood 30d")
    assert "today 14:00–15:00" in okun_text(reply.raw)


def okun_text(raw: dict[str, Any]) -> str:
    return str(raw.get("caption") or raw.get("text"))


# -- /mood


@pytest.mark.parametrize("lang", ["en", "uk", "ru"])
async def test_of_too_little_it_says_so_and_offers_the_other_periods(okun: Okun, group: Room, lang: str) -> None:
    speaker = {"en": "Anna", "uk": "Borys", "ru": "Vira"}[lang]
    await stored(group, (ANNA, 1.0, JOY, "щука"))
    [reply] = await group.say("/mood 24h", by=speaker)
    one = {"en": "1 message", "uk": "1 повідомлення", "ru": "1 сообщение"}[lang]
    assert reply.text == okun.t("mood.little", lang, messages=one, least=bot.LEAST_FELT) and one in reply.text
    assert "photo" not in reply.raw
    assert f"✓ {okun.t('mood.period.24h', lang)}" in reply.buttons and okun.t("mood.period.30d", lang) in reply.buttons


async def test_from_too_little_a_press_leads_to_a_period_with_more(okun: Okun, group: Room) -> None:
    await stored(group, *[(ANNA, 30.0, JOY, "щука")] * 9, (ANNA, 1.0, JOY, "щука"))
    await group.say("/mood 24h")
    [picture] = (await group.press(okun.t("mood.period.7d"))).replies
    assert "photo" in picture.raw and "10 messages" in okun_text(picture.raw)
    little = okun.t("mood.little", messages="1 message", least=bot.LEAST_FELT)
    assert little not in [reply.text for reply in group.replies]


async def test_nine_messages_are_too_few_and_ten_are_enough(okun: Okun, group: Room) -> None:
    await stored(group, *[(ANNA, 1.0, JOY, "щука")] * 9)
    with pytest.raises(bot.BotError):
        await bot.mood_report(okun.app, group.id, "24h")
    await group.say("this is fine")
    await okun.later(301)
    assert (await bot.mood_report(okun.app, group.id, "24h")).messages == 10


async def test_a_period_is_understood_in_words_or_asked_for(okun: Okun, group: Room) -> None:
    understood = {
        "": "7d", "24h": "24h", "24": "24h", "7D": "7d", " 30 d ": "30d", "1d": "24h", "7 днів": "7d",
        "24 години": "24h",
        "30 дней": "30d", "5h": "", "year": "", "-7d": "", "7d.text": "", "🐟": "", "x" * 3000: "", "0d": "",
    }  # fmt: skip
    for said, period in understood.items():
        okun.clock.passed += 60  # no more commands a minute than are allowed
        [reply] = await group.say(f"/mood {said}")
        marks = [label for label in reply.buttons if label.startswith("✓")]
        if period:
            assert marks == [f"✓ {okun.t('mood.period.' + period)}"], said
        else:
            assert (reply.text, marks) == (okun.t("mood.usage"), []), said


@settings(local_analysis=False)
async def test_where_moods_are_not_read_it_says_so(okun: Okun, group: Room) -> None:
    [reply] = await group.say("/mood")
    assert reply.text == okun.t("mood.off")


async def test_the_picture_becomes_text_and_a_picture_again(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD)
    [picture] = await group.say("/mood 24h")
    caption = okun_text(picture.raw)
    [words] = (await group.press(okun.t("mood.button.text"))).replies
    assert "photo" not in words.raw and words.text.startswith(caption)
    steps = words.text.partition(okun.t("mood.steps"))[2].strip().splitlines()
    report = await bot.mood_report(okun.app, group.id, "24h")
    assert len(steps) == sum(step.messages > 0 for step in report.steps)
    assert sum(int(re.findall(r": (\d+)", line)[0]) for line in steps) == report.messages
    pressed = await group.press(okun.t("mood.period.30d"))
    assert "photo" not in pressed.message.raw and "15 messages" in pressed.message.text
    [again] = (await group.press(okun.t("mood.button.picture"))).replies
    assert "photo" in again.raw and okun_text(again.raw) == pressed.message.text.partition("\n\n")[0]


async def test_a_forged_period_harms_nothing(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD)
    [reply] = await group.say("/mood 24h")
    for arg in ("8d", "7d.xyz", "30d.text.text", "24h.🐟", "24h." + "x" * 40):
        await group.press_data(bot.GoPress(owner=ANNA, name="mood", arg=arg).pack(), reply)
        newest = group.replies[-1]
        assert all(len(data.encode()) <= 64 for data in newest.data), arg
        reply = newest


NAMES = {
    501: "Йосипенко-Щербатюк-Ґалаґанівська-Їжакевич-Єрьоменко" * 2,
    502: "🐟🎣",
    503: "👩‍👩‍👧",
    504: "ש" * 50,
    505: "\u202eabc",
}


async def test_members_of_any_name_are_told(okun: Okun, group: Room) -> None:
    await stored(group, *[(user_id, 1.0, JOY, "щука") for user_id in NAMES for _ in range(user_id - 498)], people=NAMES)
    [reply] = await group.say("/mood 24h")
    assert "photo" in reply.raw
    for user_id, name in NAMES.items():
        assert f"{bot.excerpt(name, 24)} ({user_id - 498})" in okun_text(reply.raw)


async def test_somebody_forgotten_is_in_no_mood_at_once(okun: Okun, group: Room) -> None:
    await stored(group, *TOLD, *[(ANNA, 3.0, JOY, "щука")] * 9)
    assert ("Borys", 3) in (await bot.mood_report(okun.app, group.id, "7d")).members
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    report = await bot.mood_report(okun.app, group.id, "7d")
    assert (report.people, report.messages) == (2, 19) and "Borys" not in dict(report.members)


async def test_the_mood_of_a_migrated_group_goes_on(okun: Okun) -> None:
    group = okun.group(kind="group")
    await stored(group, *TOLD)
    migrated = okun.telegram.migrate(group.chat)
    new, waiting = Room(okun, migrated), okun.telegram.next_updates()
    for n in range(10):
        await new.say(f"good evening {n}")
    assert (await bot.mood_report(okun.app, new.id, "24h")).messages == 10
    await okun.feed(*waiting)
    report = await bot.mood_report(okun.app, new.id, "24h")
    assert (report.messages, report.members[0]) == (21, ("Anna", 17))


async def test_a_group_in_which_nobody_spoke_yet_may_migrate(okun: Okun) -> None:
    new = Room(okun, okun.telegram.migrate(okun.group(kind="group").chat))
    await okun.take()
    assert okun.inbox_rows == [] and not okun.failures
    await new.say("good evening")
    assert new.rows() == ["good evening"] and agree(okun.path)
