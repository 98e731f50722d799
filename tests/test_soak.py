"""Memory is bounded under any load: 200,000 messages, and every cache, queue and table of the process at its bound."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiogram.client.session.base import BaseSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Chat as TelegramChat
from aiogram.types import ChatMemberMember, File, MessageId, User
from conftest import OWNER, TEXTS, Script, make_settings

import bot

MESSAGES, USERS, CHATS, BATCH = 200_000, 20_000, 3_000, 100
GROWTH_MB = 15
WORDS = (
    "щука", "вода", "риба", "човен", "вечір", "дякую", "класно", "погано", "чому", "де", "коли", "озеро", "вудка",
    "рыба", "лодка", "вечер", "спасибо", "плохо", "почему", "когда", "дождь", "солнце", "pike", "water", "boat",
    "evening", "thanks", "great", "awful", "why", "where", "when", "lake", "rain", "sun",
)  # fmt: skip

# What may hold how much. A container that is not named here, or grows beyond, fails the test: give it a bound.
BOUNDS: dict[str, int] = {
    "app.answered": 1000, "app.replaced": 1000, "app.shown": 1000, "app.forms": bot.MAX_FORMS,
    "app.replies_in": bot.MAX_COUNTED, "app.epochs": 10_000, "app.forgotten": 10_000, "app.known": bot.MAX_KNOWN,
    "app.latencies": 1000, "app.gate.moved": 5000, "app.originals": 8,
    "app.gate.pacing._chats": bot.Pacing.MOST + 1, "app.gate.pacing._held": bot.Pacing.MOST + 1,
    "app.counts": 100,  # kinds of errors and outcomes: names in the code
    "app.errors.kinds": bot.MOST_KINDS, "app.errors.entries": bot.MOST_ERRORS, "app.errors.told": bot.MOST_KINDS,
    "app.errors.filters": 10, "app.last_prices": len(bot.PAIRS), "app.shows": 1000,
    "inbox._sorter._counted": 2000, "inbox._sorter._limits": 3, "inbox._sorter.arriving": BATCH,  # the batch at hand
}  # fmt: skip
# Empty when nothing is at work.
AT_WORK = {
    "app.summarising", "app.reminded", "app.reminding", "app.refunding", "app.working", "app.handing",
    "app.hearings", "app.deals", "app.playing", "app.telling._locks", "app.generations", "inbox._passing",
    "inbox._turns._queues", "inbox._turns._wakes", "inbox._turns._running", "inbox._turns._at_work",
    "inbox._lines._locks", "app.db._waiting", "app.db.reader._waiting", "app._tasks",
}  # fmt: skip
# As large as what somebody decided, or wrote into a file.
GIVEN = {"app.access"}
SEEN_INTO = (bot.App, bot.Inbox, bot.Sorter, bot.Turns, bot.Gate, bot.Pacing, bot.Db, bot.Reader, bot.KeyedLocks,
             bot.Limiter, bot.Cache, bot.ErrorLog)  # fmt: skip
CONTAINERS = (dict, list, set, deque, Counter, OrderedDict, bot.Recent)


def containers(thing: Any, name: str, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Every container that belongs to the bot, by the way that leads there; caches know their own bound."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    for key, value in sorted(vars(thing).items()):
        where = f"{name}.{key}"
        if isinstance(value, bot.Cache):
            assert len(value) <= value._items.maxsize and not value._loading, where
        elif isinstance(value, CONTAINERS):
            yield where, value
        elif isinstance(value, SEEN_INTO):
            yield from containers(value, where, seen)


def rss_mb() -> float:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1_000_000


class Silent(BaseSession):
    """Telegram that takes everything and keeps nothing."""

    def __init__(self) -> None:
        super().__init__(api=TelegramAPIServer(base="", file=""))
        self.calls: Counter[str] = Counter()

    async def close(self) -> None:
        pass

    async def make_request(self, bot_: Any, method: Any, timeout: int | None = None) -> Any:
        name = method.__api_method__
        self.calls[name] += 1
        if name == "getMe":
            return User(id=42, is_bot=True, first_name="Okun", username="okun_bot", can_read_all_group_messages=True)
        if name == "getChatMember":
            return ChatMemberMember(user=User(id=1, is_bot=False, first_name="x"))
        if name == "getFile":
            return File(file_id="F", file_unique_id="U", file_size=15, file_path="photos/1.jpg")
        return MessageId(message_id=self.calls.total()) if name.startswith(("send", "edit")) else True

    async def stream_content(self, *args: Any, **kwargs: Any) -> Any:
        yield b"text of a file"


class Crowd:
    """20,000 people in 3,000 chats, who say all kinds of things."""

    def __init__(self) -> None:
        self.dice, self.update_id, self.message_id = random.Random(5), 0, 0

    def updates(self, count: int) -> list[dict[str, Any]]:
        return [self.update() for _ in range(count)]

    def update(self) -> dict[str, Any]:
        self.update_id += 1
        kind, thrown = "message", self.dice.random()
        if thrown < 0.04:
            return {"update_id": self.update_id, "edited_message": {**self.message(self.words()), "edit_date": now()}}
        if thrown < 0.05:
            return {"update_id": self.update_id, "callback_query": self.press()}
        return {"update_id": self.update_id, kind: self.said(thrown)}

    def said(self, thrown: float) -> dict[str, Any]:
        if thrown < 0.07:
            return self.message(
                self.dice.choice(("/help", "/menu", "/persona", "/settings", "/status@other_bot", "/nonsense"))
            )
        if thrown < 0.075:
            return self.message(f"Okun, {self.words()}")
        if thrown < 0.08:
            return self.message(self.words(), private=True)
        if thrown < 0.085:
            return self.message(self.words() * 150)
        if thrown < 0.11:
            photo = [
                {"file_id": f"F{self.message_id}", "file_unique_id": f"U{self.message_id}", "width": 9, "height": 9}
            ]
            message = self.message("")
            del message["text"]
            return {**message, "photo": photo, "caption": self.words()}
        return self.message(self.words())

    def words(self) -> str:
        return " ".join(self.dice.choices(WORDS, k=self.dice.randint(1, 6))) + f" {self.dice.randint(0, 99_999)}"

    def person(self) -> dict[str, Any]:
        number = (
            min(int(self.dice.paretovariate(0.4)), USERS) if self.dice.random() < 0.7 else self.dice.randint(1, USERS)
        )
        return {
            "id": 1000 + number,
            "is_bot": False,
            "first_name": f"P{number}",
            "language_code": bot.LANGS[number % 3],
        }

    def message(self, text: str, *, private: bool = False) -> dict[str, Any]:
        self.message_id += 1
        person, number = self.person(), min(int(self.dice.paretovariate(0.5)), CHATS)
        if self.dice.random() < 0.3:
            number = self.dice.randint(1, CHATS)
        chat = {"id": -1_000_000 - number, "type": "supergroup", "title": f"Pond {number}"}
        if private:
            chat = {"id": person["id"], "type": "private", "first_name": person["first_name"]}
        message = {"message_id": self.message_id, "date": now(), "chat": chat, "from": person, "text": text}
        if text.startswith("/"):
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": len(text)}]
        return message

    def press(self) -> dict[str, Any]:
        message = self.message("menu")
        name = self.dice.choice(("menu", "help", "settings", "lang", "persona", "nothing"))
        data = f"m2:{message['from']['id']}:{name}:"
        return {
            "id": str(self.update_id),
            "from": message["from"],
            "chat_instance": "1",
            "data": data,
            "message": message,
        }


def now() -> int:
    return int(time.time())


async def live(inbox: bot.Inbox, crowd: Crowd, count: int) -> None:
    for _ in range(count // BATCH):
        await inbox.take(crowd.updates(BATCH))
        if inbox.busy > 200:
            await inbox.idle()
    await inbox.idle()


async def test_memory_is_bounded_under_any_load(
    tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "Texts", lambda folder: TEXTS)
    (tmp_path / "okun.db").write_bytes(fresh_database.read_bytes())
    settings = make_settings(
        db_path=str(tmp_path / "okun.db"), group_policy="mention", reaction_chance=0.0, local_analysis=False,
        commands_per_minute=10, buttons_per_minute=60, replies_per_hour=60, chat_replies_per_hour=300,
        admin_ids=frozenset({OWNER}),
    )  # fmt: skip
    session, crowd = Silent(), Crowd()
    app = bot.App(settings, session=session)
    app.llm = Script(app)
    app.llm.says = lambda ask: "Indeed."
    async with bot.running(app) as inbox:
        await inbox.open()
        await app.db._writer.execute("PRAGMA synchronous = OFF")  # how fast the disk is, is not asked here
        await live(inbox, crowd, MESSAGES // 2)
        await bot.clean(app)
        app.llm.asks.clear()
        halfway = rss_mb()
        await live(inbox, crowd, MESSAGES // 2)
        await bot.clean(app)
        app.llm.asks.clear()
        grown = rss_mb() - halfway
        await settled(app)
        rows = await app.db.reader.one("SELECT count(*) AS n FROM messages WHERE user_id IS NOT NULL")
        found = {**dict(containers(app, "app", set())), **dict(containers(inbox, "inbox", {id(app)}))}
        failed = {name: count for name, count in app.counts.items() if name.startswith("error ")}
    assert rows and rows["n"] > 0.9 * MESSAGES and failed == {}
    assert session.calls["sendMessage"] > 0.01 * MESSAGES  # they were answered, too
    assert {name for name in found if name not in BOUNDS and name not in AT_WORK | GIVEN} == set()
    assert set(BOUNDS) | AT_WORK | GIVEN <= found.keys()
    assert {name: len(found[name]) for name in BOUNDS if len(found[name]) > BOUNDS[name]} == {}
    assert {name: len(found[name]) for name in AT_WORK if found[name]} == {}
    assert len(found["app.known"]) > 1000 and len(found["app.answered"]) == 1000  # what is bounded was reached
    assert grown < GROWTH_MB, f"{grown:.1f} MB more"


async def settled(app: bot.App) -> None:
    """Nothing is at work beside."""
    while app._tasks:
        await asyncio.wait(app._tasks)
        await asyncio.sleep(0)


def test_a_container_without_a_bound_is_found() -> None:
    class Sorter(bot.Sorter):
        def __init__(self) -> None:
            self.seen: dict[int, str] = {}
            self.chat = TelegramChat(id=1, type="private")

    assert dict(containers(Sorter(), "inbox._sorter", set())) == {"inbox._sorter.seen": {}}
