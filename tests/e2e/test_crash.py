"""``kill -9`` at any moment: every message is stored once, everything addressed is answered, hardly anything twice.

A send that was under way at the kill may come again: the Bot API gives no way to know whether it was carried out.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
from fakes import BotProcess, Chat, FakeTelegram, until

from .conftest import PATIENCE, Person, Stage, repeat_tokens, tokens


def hold_model(stage: Stage) -> None:
    """The next two answers never come; later ones do."""
    stage.gemini.rule("", "never said", delay=3600, times=2)


def speak_slowly(stage: Stage) -> None:
    stage.gemini.rule("", "one two three four five six seven " * 9, chunk=4, chunk_delay=0.2, times=2)


def hold_sends(kind: str) -> Callable[[Stage], None]:
    return lambda stage: stage.telegram.fault(kind, "sendMessage", times=2)


def nothing(stage: Stage) -> None:
    pass


Reached = Callable[[Stage, BotProcess, list[Chat]], Any]


def each_sent(stage: Stage, okun: BotProcess, chats: list[Chat]) -> bool:
    return all(stage.telegram.sent(chat) for chat in chats)


# The way of an update: what holds it there, how to see that it has come so far, how often it may be answered in all.
STEPS: dict[str, tuple[Callable[[Stage], None], Reached, int]] = {
    "given out": (nothing, lambda stage, okun, chats: stage.telegram.handed, 2),
    "stored": (hold_model, lambda stage, okun, chats: stage.left(okun) == 2, 1),
    "confirmed": (hold_model, lambda stage, okun, chats: not stage.telegram.queue, 1),
    "the model asked": (hold_model, lambda stage, okun, chats: len(stage.gemini.requests) == 2, 1),
    "half said": (speak_slowly, lambda stage, okun, chats: stage.telegram.drafts(chats[0]), 1),
    "being sent, not carried out": (hold_sends("timeout"), lambda stage, okun, chats: not stage.telegram.faults, 1),
    "being sent, carried out": (hold_sends("timeout_after"), each_sent, 2),
    "sent": (nothing, each_sent, 2),
    "done": (nothing, lambda stage, okun, chats: each_sent(stage, okun, chats) and not stage.left(okun), 1),
}


@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_after_each_step_loses_nothing(stage: Stage, step: str) -> None:
    arrange, reached, most = STEPS[step]
    telegram, anna = stage.telegram, stage.person()
    group = telegram.group("Anglers", [anna.user])
    chats = [anna.chat, group]
    stage.gemini.rule("", repeat_tokens)
    arrange(stage)
    okun = await stage.bot().start()
    stage.says(anna, "k1z hello")
    telegram.say(group, anna.user, "k2z hello, okun")
    await until(lambda: reached(stage, okun, chats), PATIENCE)
    await okun.kill()
    del stage.gemini.rules[:-1], telegram.faults[:]
    telegram.say(group, anna.user, "k3z nobody is asked")
    await okun.start()
    await stage.settled(okun)
    for chat, token in zip(chats, ("k1z", "k2z"), strict=True):
        heard = [tokens(text) for text in stage.replies(chat)]
        assert 1 <= len(heard) <= most and heard == [[token]] * len(heard)
        assert stage.stored(okun, chat) == stage.said(chat)
        [(own,)] = okun.rows("SELECT count(*) FROM messages WHERE chat_id = ? AND user_id IS NULL", chat.id)
        assert own == 1
    assert stage.parked(okun) == 0


async def test_a_long_reply_goes_on_where_the_kill_found_it(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    answer = "\n\n".join(f"word{n} " + "is one of many words in a long tale. " * 20 for n in range(16))
    stage.gemini.rule("tale", answer)
    okun = await stage.bot(GEMINI_MAX_OUTPUT_TOKENS=0).start()
    telegram.fault("slow", "sendMessage", seconds=1.5)
    stage.says(anna, "a long tale, please")
    await stage.replied(anna)
    telegram.fault("timeout", "sendMessage")
    await until(lambda: not telegram.faults, PATIENCE)  # the second part is under way, and is not carried out
    await okun.kill()
    await okun.start()
    await stage.settled(okun)
    sent = " ".join(stage.replies(anna))
    assert [word for word in sent.split() if word.startswith("word") and word != "words"] == [
        f"word{n}" for n in range(16)
    ]
    assert len(stage.gemini.requests) == 1
    assert okun.rows("SELECT text FROM messages WHERE user_id IS NULL") == [(answer,)]


async def test_a_command_under_way_at_the_kill_is_answered_once(stage: Stage) -> None:
    anna = stage.person()
    okun = await stage.bot().start()
    stage.telegram.fault("timeout", "sendMessage")
    stage.says(anna, "/help")
    await until(lambda: not stage.telegram.faults, PATIENCE)
    await okun.kill()
    await okun.start()
    await stage.settled(okun)
    assert len(stage.replies(anna)) == 1
    assert stage.stored(okun, anna.chat) == stage.said(anna.chat)


async def test_an_album_torn_by_a_kill_is_one_turn(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    okun = await stage.bot().start()
    album: dict[str, Any] = {"media_group_id": "7"}
    telegram.photo(anna.chat, anna.user, b"pike", "which is the pike?", **album)
    await until(lambda: stage.left(okun), PATIENCE)
    await okun.kill()
    for data in (b"perch", b"carp"):
        telegram.photo(anna.chat, anna.user, data, **album)
    await okun.start()
    await stage.settled(okun)
    assert len(stage.replies(anna)) == 1
    assert len(set(stage.gemini.requests[-1].media)) == 3


async def test_an_update_that_comes_again_is_not_handled_again(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    async with stage.bot() as okun:
        update_id = telegram.say(anna.chat, anna.user, "hello")
        raw = telegram.queue[-1]
        await stage.replied(anna)
        await stage.settled(okun)
        await okun.stop()
        await okun.start()
        telegram.queue.appendleft(raw)  # as if it had never been confirmed
        stage.says(anna, "and now?")
        await stage.replied(anna, 2)
        await stage.settled(okun)
        assert len(stage.replies(anna)) == 2 and len(stage.gemini.requests) == 2
        assert raw["update_id"] == update_id


class Crowd:
    """People who write while the bot is being killed; each waits for an answer, mostly, before writing again."""

    def __init__(self, stage: Stage, dice: random.Random) -> None:
        self.stage, self.dice, self.written = stage, dice, 0
        self.people = [stage.person(f"Person{n}") for n in range(6)]
        telegram = stage.telegram
        self.group = telegram.group("Anglers", [person.user for person in self.people])
        self.forum = telegram.group("Forum", [person.user for person in self.people], forum=True)
        self.topics = [telegram.topic(self.forum, name) for name in ("Rods", "Boats")]
        self.asked: dict[str, tuple[int, int]] = {}  # token -> (chat, thread)

    def write(self) -> None:
        person, kind = self.dice.choice(self.people), self.dice.random()
        self.written += 1
        token = f"k{self.written}z"
        if kind < 0.55:
            self._ask(person, person.chat, f"{token} how is the water?")
        elif kind < 0.7:
            self._ask(person, self.group, f"{token} okun, how is the water?")
        elif kind < 0.85:
            self._ask(person, self.forum, f"{token} okun, any news?", thread=self.dice.choice(self.topics))
        else:
            self.stage.telegram.say(self.group, person.user, f"{token} nobody is asked")

    def _ask(self, person: Person, chat: Chat, text: str, thread: int | None = None) -> None:
        self.asked[text.split()[0]] = (chat.id, thread or 0)
        self.stage.telegram.say(chat, person.user, text, thread=thread)

    async def write_on(self) -> None:
        while True:
            self.write()
            await asyncio.sleep(self.dice.uniform(0, 0.03))

    @property
    def chats(self) -> list[Chat]:
        return [*(person.chat for person in self.people), self.group, self.forum]


def has_called(telegram: FakeTelegram, count: int) -> bool:
    return len(telegram.calls) >= count


async def test_twenty_kills_under_load_lose_nothing(stage: Stage) -> None:
    dice = random.Random(20261121)
    crowd, telegram = Crowd(stage, dice), stage.telegram
    stage.gemini.rule("", repeat_tokens, chunk_delay=0.005)
    okun = stage.bot(LOG_LEVEL="INFO")
    kills: list[int] = []  # how many calls there had been
    writing = asyncio.create_task(crowd.write_on())
    for _ in range(20):
        await okun.start()
        enough = len(telegram.calls) + dice.randrange(60)
        moment = dice.uniform(0, 0.05)
        await telegram.until(functools.partial(has_called, telegram, enough), PATIENCE)
        await asyncio.sleep(moment)  # between two calls, too
        await okun.kill()
        kills.append(len(telegram.calls))
    writing.cancel()
    await okun.start()
    await stage.settled(okun)

    for chat in crowd.chats:
        opened = crowd.topics if chat is crowd.forum else []
        assert stage.stored(okun, chat) == [n for n in stage.said(chat) if n not in opened]
    answers: dict[str, list[int]] = {token: [] for token in crowd.asked}  # when: as a number of calls
    sends: dict[tuple[int, int], list[int]] = {}
    for n, call in enumerate(telegram.calls):
        if call.method == "sendMessage" and call.ok:
            where = (call.params["chat_id"], call.params.get("message_thread_id", 0))
            sends.setdefault(where, []).append(n)
            for token in tokens(call.params["text"]):
                assert crowd.asked[token] == where
                answers[token].append(n)
    for token, times in answers.items():
        assert times, f"{token} answered 0 times"
        for first, last in itertools.pairwise(times):  # a kill came in while this was being sent in its topic
            assert any(first < kill <= last for kill in kills), f"{token} answered twice without a kill"
            assert not [n for n in sends[crowd.asked[token]] if first < n < last], f"{token} answered twice"
    assert stage.parked(okun) == 0
