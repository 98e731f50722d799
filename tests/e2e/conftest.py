"""A stage for tests with ``python bot.py`` as a process: fakes over HTTP, people, and what must hold after any run.

After each test: Telegram met no field it does not know, no secret stands in a log, no task died unheard.
"""

from __future__ import annotations

import re
import socket
import sys
import tomllib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes import BOT, Ask, BotProcess, Chat, FakeGemini, FakeTelegram, Json, until

TOKEN = "424242:AAE-this_is_the_secret_part"
KEY = "AIzaSy-this-is-a-secret-key"
SECRET = "this-is-the-secret-of-the-webhook"
TEXTS: Json = tomllib.loads((BOT.parent / "locales" / "en.toml").read_text("utf-8"))["text"]
PATIENCE = 60.0  # a bound for what never comes, not a measure

# Nothing by chance, nothing by the hour of the day, no limits: tests that want them say so.
PLAIN: dict[str, str | int | None] = {
    "RANDOM_REPLY_CHANCE": 0,
    "SMART_REPLY_CHANCE": 0,
    "REACTION_CHANCE": 0,
    "QUIET_HOURS": "",
    "COMMANDS_PER_MINUTE": 0,
    "REPLIES_PER_HOUR": 0,
    "CHAT_REPLIES_PER_HOUR": 0,
}
BAD_SIGNS = ("never retrieved", "was never awaited", "Unclosed", "Fatal Python", "unhandled exception")


def impatient(**constants: Any) -> tuple[str, ...]:
    """The command of a bot that waits less: constants of bot.py that no setting moves."""
    changes = "; ".join(f"bot.{name} = {value}" for name, value in constants.items())
    path = f"import sys; sys.path.insert(0, {str(BOT.parent)!r}); import bot; {changes}; sys.exit(bot.main())"
    return sys.executable, "-c", path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tokens(text: str) -> list[str]:
    """Marks such as k12z in a text; each message of a test has its own."""
    return re.findall(r"\bk\d+z\b", text)


def texts_of(content: Json) -> list[str]:
    return [part["text"] for part in content["parts"] if "text" in part]


def repeat_tokens(ask: Ask) -> str:
    """What the model says: the marks of the messages it answers (they come last), not of those they reply to."""
    return "heard " + " ".join(tokens(re.sub(r"\[[^]]*\]", "", texts_of(ask.contents[-1])[-1])))


def whole_text(ask: Ask) -> str:
    """Everything the model was told but the system instruction."""
    return "\n".join(text for content in ask.contents for text in texts_of(content))


@dataclass(frozen=True)
class Person:
    user: Json
    chat: Chat


class Stage:
    def __init__(self, telegram: FakeTelegram, gemini: FakeGemini, directory: Path) -> None:
        self.telegram, self.gemini, self.directory = telegram, gemini, directory
        self.bots: list[BotProcess] = []

    def bot(self, command: tuple[str, ...] | None = None, **settings: str | int | None) -> BotProcess:
        """A bot, not yet started; all of a test share the directory and so the database."""
        bot = BotProcess(self.telegram, self.gemini, self.directory, **PLAIN | settings)
        if command:
            bot.command = command
        self.bots.append(bot)
        return bot

    def person(self, name: str = "Anna", language: str = "en") -> Person:
        """Somebody who has a private chat with the bot."""
        user = self.telegram.user(len(self.telegram.users) + 1, name, language)
        return Person(user, self.telegram.private(user))

    def says(self, person: Person, text: str, **where: Any) -> int:
        """Write to the bot in private; the message's id."""
        self.telegram.say(person.chat, person.user, text, **where)
        return person.chat.newest

    def replies(self, where: Person | Chat, thread: int | None = None) -> list[str]:
        """Texts of the bot's messages in a chat, oldest first."""
        chat = where.chat if isinstance(where, Person) else where
        sent = self.telegram.sent(chat)
        return [m.get("text", "") for m in sent if thread is None or m.get("message_thread_id") == thread]

    async def replied(self, where: Person | Chat, count: int = 1) -> list[str]:
        """Wait for so many messages of the bot in a chat."""
        await self.telegram.until(lambda: len(self.replies(where)) >= count, PATIENCE)
        return self.replies(where)

    async def settled(self, bot: BotProcess) -> None:
        """Wait until the bot has taken every update and dealt with all of them."""
        await until(lambda: not self.telegram.queue and not self.left(bot), PATIENCE)

    def left(self, bot: BotProcess) -> int:
        """Updates in the inbox that are not parked."""
        return int(bot.rows("SELECT count(*) FROM inbox WHERE parked_at IS NULL")[0][0])

    def parked(self, bot: BotProcess) -> int:
        return int(bot.rows("SELECT count(*) FROM inbox WHERE parked_at IS NOT NULL")[0][0])

    def stored(self, bot: BotProcess, chat: Chat) -> list[int]:
        """Ids of the messages of people in a chat that are stored."""
        sql = "SELECT message_id FROM messages WHERE chat_id = ? AND user_id IS NOT NULL ORDER BY message_id"
        return [row[0] for row in bot.rows(sql, chat.id)]

    def said(self, chat: Chat) -> list[int]:
        """Ids of the messages people wrote in a chat."""
        me = self.telegram.me
        return sorted(n for n, message in chat.messages.items() if message["from"] not in (me,) and "from" in message)


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    async with FakeTelegram(TOKEN) as server:
        yield server


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini(KEY) as server:
        yield server


@pytest.fixture
async def stage(telegram: FakeTelegram, gemini: FakeGemini, tmp_path: Path) -> AsyncIterator[Stage]:
    stage = Stage(telegram, gemini, tmp_path)
    yield stage
    for bot in stage.bots:
        await bot.kill()
    log = (tmp_path / "bot.log").read_text("utf-8", "replace") if stage.bots else ""
    for secret in (TOKEN.partition(":")[2], KEY, SECRET):
        assert secret not in log
    for sign in BAD_SIGNS:
        assert sign not in log
    assert telegram.unknown == []
