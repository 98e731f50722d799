"""The language of the tests: a whole bot in this process, with time, dice, Telegram and the model in the test's hands.

    async def test_it_answers(chat: Room) -> None:
        [reply] = await chat.say("Hi")              # what the bot sent in that chat, in answer
        assert reply.text == "Heard: Hi"            # the scripted model answers from the question

`okun` is the bot with its world, `chat` a private chat with Anna, `group` a group of Anna, Borys, Vira and the
administrator Olena. Settings: `@settings(group_policy="always")`. Time stands still until `await later(60)`: it goes
from timer to timer, and each time everything runs until the bot waits for time or for the test. By default the dice
never favour the bot; `dice.load(0.01)` and `dice.always = 0.0` do.
"""

from __future__ import annotations

# before aiogram, which it slims
import bot

# isort: split
import asyncio
import contextlib
import hashlib
import io
import random
import shutil
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast
from zoneinfo import ZoneInfo

import aiosqlite
import pytest
from aiogram.methods import TelegramMethod
from aiogram.types import InputFile
from fakes import Broken, Chat, FakeTelegram, Json, heard_in
from PIL import Image

KYIV = ZoneInfo("Europe/Kyiv")
NOON = datetime(2026, 5, 13, 12, tzinfo=KYIV).timestamp()  # a Wednesday
TEXTS = bot.Texts(bot.HERE / "locales")
ANNA, BORYS, VIRA, OLENA, OWNER = 11, 12, 13, 14, 99
settings = pytest.mark.settings
NO_LIMITS = dict.fromkeys(
    (
        "commands_per_minute",
        "buttons_per_minute",
        "replies_per_hour",
        "chat_replies_per_hour",
        "backup_hours",
        "images_per_day",
        "speeches_per_day",
    ),
    0,
)
Later = Callable[[float], Awaitable[None]]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "settings(**values): settings of the bot in this test")
    config.addinivalue_line("markers", "failing: the bot is made to fail in this test")
    config.addinivalue_line("markers", "shows: casts and hooks are shown frame by frame in this test")


# -- time and chance


class TestClock(bot.Clock):
    """Stands still until the test moves it; the event loop's timers go by it, too."""

    __test__ = False

    def __init__(self, now: float = NOON) -> None:
        self.start, self.passed = now, 0.0

    def now(self) -> float:
        return self.start + self.passed

    def monotonic(self) -> float:
        return 1000.0 + self.passed

    def set(self, *when: int) -> None:
        """Be at this time of Kyiv, without running what would have happened until then."""
        self.start = datetime(*when, tzinfo=KYIV).timestamp() - self.passed  # type: ignore[arg-type,misc]


class Dice(random.Random):
    """Loaded throws first, then always the same, or (`always = None`) those of the seed."""

    def __init__(self) -> None:
        super().__init__(7)
        self.loaded: deque[float] = deque()
        self.always: float | None = 0.999

    def load(self, *throws: float) -> None:
        self.loaded.extend(throws)

    def random(self) -> float:
        if self.loaded:
            return self.loaded.popleft()
        return super().random() if self.always is None else self.always


@dataclass
class Idle:
    """Knows whether a query is in a database thread, or anything else in one beside."""

    running: int = 0
    event: asyncio.Event = field(default_factory=asyncio.Event)

    def ended(self, _: object = None) -> None:
        self.running -= 1
        if not self.running:
            self.event.set()


# -- Telegram without a network


class Wire(bot.LeanSession):
    """The bot's own session, with a function call where the network would be."""

    def __init__(self, telegram: FakeTelegram) -> None:
        super().__init__("http://telegram.test", bot.Once(self._no_network))
        self.telegram = telegram
        self.down = False
        self.downloads: list[str] = []
        self.waiting: Counter[str] = Counter()  # calls that are held now
        self.holds: dict[str, tuple[asyncio.Event, list[None]]] = {}

    @staticmethod
    async def _no_network() -> Any:
        raise AssertionError("a test must not use the network")

    def hold(self, method: str, after: int = 0) -> asyncio.Event:
        """Let calls of this method wait until the event is set; so many go through before."""
        self.holds[method] = asyncio.Event(), [None] * after
        return self.holds[method][0]

    async def _held(self, name: str) -> None:
        event, free = self.holds[name]
        if free:
            free.pop()
            return
        self.waiting[name] += 1
        try:
            await event.wait()
        finally:
            self.waiting[name] -= 1

    async def _post(self, api: Any, method: TelegramMethod[Any], timeout: int | None) -> tuple[int, bytes]:
        await asyncio.sleep(0)
        name = method.__api_method__
        if name in self.holds:
            await self._held(name)
        if self.down:
            raise bot.NotConnected(method=method, message="connection refused")
        try:
            answer = await self._call(name, *await self._read(api, method))
        except Broken as broken:
            return self._broken(method, broken)
        return (200 if answer["ok"] else answer["error_code"]), bot.json_dumps(answer).encode()

    async def _read(self, api: Any, method: TelegramMethod[Any]) -> tuple[Json, dict[str, bytes]]:
        files: dict[str, InputFile] = {}
        fields = bot.json_loads(bot.json_dumps(bot.plain(method, files)))
        return fields, {name: b"".join([part async for part in file.read(api)]) for name, file in files.items()}

    async def _call(self, name: str, fields: Json, files: dict[str, bytes]) -> Json:
        answer = self.telegram.call(name, fields, files)
        if name == "getUpdates" and answer["ok"] and not answer["result"]:
            answer = await self.telegram._wait_for_updates(fields)
        return answer

    def _broken(self, method: TelegramMethod[Any], broken: Broken) -> tuple[int, bytes]:
        if broken.kind == "502html":
            return 502, b"<html>502 Bad Gateway</html>"
        if broken.kind == "malformed":
            return 200, bot.json_dumps(broken.answer).encode()[:-1] + b","
        kind = bot.ConnectionBroke if broken.kind.startswith("reset") else bot.AnswerLost
        raise kind(method=method, message=broken.kind)

    async def stream_content(self, url: str, *args: Any, **kwargs: Any) -> AsyncIterator[bytes]:  # type: ignore[override]
        await asyncio.sleep(0)
        path = url.partition(self.telegram.token + "/")[2]
        self.downloads.append(path)
        if self.telegram._take_fault("download"):
            raise TimeoutError
        yield next(file.data for file in self.telegram.files.values() if file.path == path)


# -- a model that says what the test wants


@dataclass
class Writing:
    """An answer that the model is writing: `show` what it wrote so far, then `end` or `fail`."""

    ask: bot.Ask
    show: Callable[[str], None]
    ended: asyncio.Future[Any]

    def end(self, text: str, **facts: Any) -> None:
        self.ended.set_result(bot.Answer(text, **facts))

    def fail(self, kind: str) -> None:
        self.ended.set_result(bot.LlmError(kind))


def echo(ask: bot.Ask) -> str:
    """The default answer: the question, with the mark of each file that came along."""
    marks = [f" [{media.mime} {mark(media.data)}]" for media in ask.said[-1].media]
    return f"Heard: {ask.said[-1].text}{''.join(marks)}"


def drawn(wish: bot.Drawing) -> bot.Media:
    """The default picture: of the format that was asked for, its colour by everything else that was."""
    width, _, height = (wish.ratio or "1:1").partition(":")
    seen = hashlib.sha1(repr((wish.prompt, [mark(media.data) for media in wish.references])).encode()).digest()
    out = io.BytesIO()
    Image.new("RGB", (int(width) * 20, int(height) * 20), tuple(seen[:3])).save(out, "PNG")
    return bot.Media("image/png", out.getvalue())


def written_down(file: bot.SoundFile) -> bot.Transcript:
    """The default transcript: the words of voice_of, as the fake hears them."""
    said, length = heard_in(file.path.read_bytes())
    words = tuple(bot.SpokenWord(*word) for word in said)
    return bot.Transcript(" ".join(word.text for word in words), words, (), "en", max(file.duration_s, length))


def mark(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()[:8]


class Script(bot.Llm):
    """`says(ask)` gives the answer: a text, an Answer, or an exception to raise. While `held`, the test writes it."""

    def __init__(self, app: bot.App) -> None:
        super().__init__(app.settings, app.http, app.clock, app.dice)
        self.on_call = app.llm.on_call
        self.says: Callable[[bot.Ask], str | bot.Answer | Exception] = echo
        self.held = False
        self.asks: list[bot.Ask] = []
        self.kinds: Counter[str] = Counter()  # how often each capability was asked
        self.writing: list[Writing] = []
        self.draws: Callable[[bot.Drawing], bot.Media | Exception] = drawn
        self.wishes: list[bot.Drawing] = []  # pictures that were asked for
        self.easel: asyncio.Event | None = None  # while there is one, nothing is drawn before it is set
        self.hears: Callable[[bot.SoundFile], bot.Transcript | Exception] = written_down
        self.recordings: list[bot.SoundFile] = []  # that were to be written down
        self.ear: asyncio.Event | None = None  # while there is one, nothing is heard before it is set

    async def hear(self, file: bot.SoundFile, chat_id: int = 0, user_id: int = 0) -> bot.Transcript:
        self.recordings.append(file)
        self.kinds["hear"] += 1
        await (self.ear.wait() if self.ear else asyncio.sleep(0))
        heard = self.hears(file)
        if isinstance(heard, Exception):
            raise heard
        return heard

    async def draw(self, wish: bot.Drawing) -> bot.Media:
        self.wishes.append(wish)
        self.kinds["draw"] += 1
        await (self.easel.wait() if self.easel else asyncio.sleep(0))
        said = self.draws(wish)
        if isinstance(said, Exception):
            raise said
        return said

    async def chat(
        self, ask: bot.Ask, on_text: bot.OnText = lambda text: None, capability: bot.Capability = "chat"
    ) -> bot.Answer:
        self.asks.append(ask)
        self.kinds[capability] += 1
        said: Any = await (self._write(ask, on_text) if self.held else self._say(ask, on_text))
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, bot.Answer) else bot.Answer(said)

    async def _write(self, ask: bot.Ask, on_text: bot.OnText) -> Any:
        writing = Writing(ask, on_text, asyncio.get_running_loop().create_future())
        self.writing.append(writing)
        return await writing.ended

    async def _say(self, ask: bot.Ask, on_text: bot.OnText) -> Any:
        await asyncio.sleep(0)
        said = self.says(ask)
        if isinstance(said, str):
            on_text(said)
        return said

    def always(self, said: str | bot.Answer | Exception) -> None:
        self.says = lambda ask: said

    @property
    def heard(self) -> str:
        """The newest question: the user's turn that came last."""
        return self.asks[-1].said[-1].text

    @property
    def past(self) -> list[str]:
        """What came before the newest question, as lines with the role."""
        return [f"{said.role}: {said.text}" for said in self.asks[-1].said[:-1]]


# -- a market that moves as the test wants


class Exchange:
    """Answers for PRICE_API_URL: `prices` by pair; a `fault` is an HTTP status, or an exception to raise."""

    def __init__(self) -> None:
        self.prices = {"TON": 5.0, "BTC": 60_000.0, "ETH": 3000.0, "SOL": 150.0, "DOGE": 0.2}
        self.asked = 0
        self.fault: int | Exception | None = None
        self.retry_after = ""
        self.body: bytes | None = None  # instead of the prices
        self.open: asyncio.Event | None = None  # while there is one, nothing is answered before it is set

    async def answer(self, app: bot.App) -> tuple[int, str, bytes]:
        self.asked += 1
        await (self.open.wait() if self.open else asyncio.sleep(0))
        if isinstance(self.fault, Exception):
            raise self.fault
        if self.fault:
            return self.fault, self.retry_after, b"{}"
        said = {bot.PAIRS[name].coin: {"usd": usd} for name, usd in self.prices.items()}
        return 200, "", bot.json_bytes(said) if self.body is None else self.body


# -- what a chat sees


@dataclass(frozen=True)
class Reply:
    """A message of the bot."""

    raw: Json

    @property
    def id(self) -> int:
        return int(self.raw["message_id"])

    @property
    def text(self) -> str:
        """Its words: the caption of a picture, the Markdown of a rich message."""
        rich = self.raw.get("rich_message", {}).get("markdown", "")
        return str(self.raw.get("text") or self.raw.get("caption") or rich)

    @property
    def picture(self) -> bool:
        return "photo" in self.raw

    @property
    def thread(self) -> int:
        return int(self.raw.get("message_thread_id", 0))

    @property
    def reply_to(self) -> int | None:
        replied = self.raw.get("reply_to_message")
        return int(replied["message_id"]) if replied else None

    @property
    def entities(self) -> list[str]:
        return [entity["type"] for entity in self.raw.get("entities", ())]

    @property
    def buttons(self) -> list[str]:
        rows = self.raw.get("reply_markup", {}).get("inline_keyboard", ())
        return [button["text"] for row in rows for button in row]

    @property
    def data(self) -> list[str]:
        """The callback data behind the buttons."""
        rows = self.raw.get("reply_markup", {}).get("inline_keyboard", ())
        return [button["callback_data"] for row in rows for button in row if "callback_data" in button]


@dataclass(frozen=True)
class Pressed:
    """What came of a press: the note that popped up, new messages, and the message with the button as it is now (as it
    was, where the bot deleted it)."""

    note: str | None
    replies: list[Reply]
    message: Reply


@dataclass
class Room:
    """A chat, or one topic of it, seen by its people."""

    okun: Okun
    chat: Chat
    thread: int | None = None
    by: str = "Anna"
    last_id: int = 0  # of the last message that somebody sent through this room

    @property
    def id(self) -> int:
        return self.chat.id

    @property
    def replies(self) -> list[Reply]:
        """All that the bot sent here, as it is now."""
        return [Reply(raw) for raw in self.okun.telegram.sent(self.chat)]

    async def say(self, text: str, by: str | None = None, **where: Any) -> list[Reply]:
        """A text; `by` a name (or "chat": an anonymous administrator), `reply_to` an id or a Reply."""
        return await self.send("say", text, by=by, **where)

    async def send(self, kind: str, *content: Any, by: str | None = None, **where: Any) -> list[Reply]:
        """Anything the fake can send: photo, voice, document, album, poll …"""
        before = {reply.id for reply in self.replies}
        self.put(kind, *content, by=by, **where)
        await self.okun.take()
        return [reply for reply in self.replies if reply.id not in before]

    def put(self, kind: str, *content: Any, by: str | None = None, **where: Any) -> int:
        """The same, but it stays with Telegram until the bot takes it. Returns the message's id."""
        if isinstance(where.get("reply_to"), Reply):
            where["reply_to"] = where["reply_to"].id
        if self.thread is not None:
            where.setdefault("thread", self.thread)
        by = by or self.by
        speaker: Any = self.chat if by == "chat" else self.okun.person(by)
        getattr(self.okun.telegram, kind)(self.chat, speaker, *content, **where)
        self.last_id = self.chat.newest
        return self.last_id

    async def edit(self, message_id: int, text: str) -> None:
        self.okun.telegram.edit(self.chat, message_id, text)
        await self.okun.take()

    async def press(self, label: str, by: str | None = None, message: Reply | None = None) -> Pressed:
        """Press a button by its label or its data, on that message or on the newest that has it."""
        telegram = self.okun.telegram
        before = {reply.id for reply in self.replies}
        telegram.press(self.chat, self.okun.person(by or self.by), label, message.id if message else None)
        query = telegram.queue[-1]["callback_query"]
        await self.okun.take()
        pressed = Reply(self.chat.messages.get(query["message"]["message_id"], query["message"]))
        new = [reply for reply in self.replies if reply.id not in before]
        return Pressed(self.okun.note(query["id"]), new, pressed)

    async def press_data(self, data: str, message: Reply, by: str | None = None) -> Pressed:
        """Press a forged button: any callback data."""
        before = {reply.id for reply in self.replies}
        self.okun.telegram._pressed(self.okun.person(by or self.by), message.raw, data)
        query = self.okun.telegram.queue[-1]["callback_query"]
        await self.okun.take()
        new = [reply for reply in self.replies if reply.id not in before]
        return Pressed(self.okun.note(query["id"]), new, Reply(self.chat.messages.get(message.id, message.raw)))

    def topic(self, name: str) -> Room:
        return replace(self, thread=self.okun.telegram.topic(self.chat, name))

    def rows(self, columns: str = "text", where: str = "1") -> list[Any]:
        """Stored messages of this chat, oldest first; plain values for one column."""
        found = self.okun.rows(f"SELECT {columns} FROM messages WHERE chat_id = ? AND {where} ORDER BY id", self.id)
        return [row[0] if len(row) == 1 else row for row in found]


class Okun:
    """A running bot and the world around it."""

    def __init__(self, path: Path, values: Json) -> None:
        self.path, self.values = path, values
        self.clock, self.dice = TestClock(), Dice()
        self.telegram = FakeTelegram(clock=self.clock.now)
        self.idle = Idle()
        self.exchange = Exchange()
        self.problems: list[Any] = []  # what only the event loop heard of
        self.may_fail = False
        for id_, name, lang in ((ANNA, "Anna", "en"), (BORYS, "Borys", "uk"), (VIRA, "Vira", "ru"),
                                (OLENA, "Olena", "uk"), (OWNER, "Owner", "en")):  # fmt: skip
            self.telegram.user(id_, name, lang, name.lower())

    # -- running

    async def open(self, **values: Any) -> None:
        """Start the bot (again) on the same database; what the last life left is begun."""
        self.values |= values
        self.settings = make_settings(db_path=str(self.path), **self.values)
        self.wire = Wire(self.telegram)
        self.app = bot.App(self.settings, clock=self.clock, dice=self.dice, session=self.wire)
        self.model = self.app.llm = Script(self.app)
        self._running = bot.running(self.app)
        self.inbox = await self._running.__aenter__()
        await self.inbox.open()
        await self.inbox.recover()
        await self.settle()

    async def crash(self) -> None:
        """End without letting anything finish, as a kill would."""
        await self._running.__aexit__(None, None, None)

    async def restart(self, **values: Any) -> None:
        await self.crash()
        await self.open(**values)

    async def settle(self) -> None:
        """Let everything run until it waits for time, for the test, or for nothing."""
        loop: Any = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(0)
            if loop._ready:
                continue
            if not self.idle.running:
                return
            self.idle.event.clear()
            await self.idle.event.wait()

    async def later(self, seconds: float) -> None:
        """Let time pass, from timer to timer."""
        loop: Any = asyncio.get_running_loop()
        start, until = self.clock.passed, self.clock.passed + seconds
        await self.settle()
        while due := [h._when for h in loop._scheduled if not h._cancelled and h._when <= 1000.0 + until]:
            self.clock.passed = max(self.clock.passed, start, min(due) - 1000.0)
            await self.settle()
        self.clock.passed = until
        await self.settle()

    async def take(self) -> None:
        """Give the bot what waits for it at Telegram, and let it work."""
        await self.inbox.take(self.telegram.next_updates())
        await self.settle()

    async def feed(self, *raws: Any) -> None:
        """Give the bot updates as they stand."""
        await self.inbox.take(raws)
        await self.settle()

    # -- people, chats, what can be seen

    def person(self, name: str) -> Json:
        """The user of this name; made when first named."""
        known = next((user for user in self.telegram.users.values() if user["first_name"] == name), None)
        return known or self.telegram.user(100 + len(self.telegram.users), name, "en")

    def private(self, name: str = "Anna") -> Room:
        return Room(self, self.telegram.private(self.person(name)), by=name)

    def group(self, title: str = "Pond", *names: str, **how: Any) -> Room:
        people = [self.person(name) for name in names or ("Anna", "Borys", "Vira", "Olena")]
        chat = self.telegram.group(title, people, **how)
        if not names:
            self.telegram.member(chat, self.person("Olena"), "administrator")
        return Room(self, chat)

    def note(self, query_id: str) -> str | None:
        """What the bot answered to a press; fails where it did not."""
        answer = self.telegram.answered[query_id]
        return answer.get("text")

    def t(self, key: str, lang: str = "en", **fields: Any) -> str:
        """A text of ours."""
        return str(TEXTS(lang, key, **fields)).strip()

    def rows(self, sql: str, *args: Any) -> list[Any]:
        """Rows of the database, read beside the bot."""
        with contextlib.closing(sqlite3.connect(self.path)) as connection:
            return connection.execute(sql, args).fetchall()

    @property
    def inbox_rows(self) -> list[Any]:
        """(attempts, is it parked) of what is not dealt with."""
        return self.rows("SELECT attempts, parked_at IS NOT NULL FROM inbox ORDER BY update_id")

    def called(self, method: str, room: Room | None = None) -> list[Json]:
        """The parameters of the bot's calls of a method."""
        return [call.params for call in self.telegram.called(method, room.chat if room else None)]

    def drafts(self, room: Room) -> list[str]:
        return [draft["text"] for draft in self.telegram.drafts(room.chat)]

    @property
    def failures(self) -> dict[str, int]:
        return {name: n for name, n in self.app.counts.items() if name.startswith("error ")}


def make_settings(**values: Any) -> bot.Settings:
    """The defaults, with a token, a key, an owner, no pacing and no limits, and what is given."""
    defaults, faults = bot.read_settings({"TELEGRAM_BOT_TOKEN": "42:TEST", "GEMINI_API_KEY": "test-key"}, {})
    assert defaults, faults
    return replace(
        defaults, **{"admin_ids": frozenset({OWNER}), "sends_per_second": 0, "web_port": 0, **NO_LIMITS, **values}
    )


# -- fixtures


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("database") / "fresh.db"
    bot.prepare_database(str(path), path.parent)
    return path


@pytest.fixture
def idle_counter(monkeypatch: pytest.MonkeyPatch) -> Idle:
    """Counts what is at work in threads: queries, and what the event loop's executor was given."""
    idle, execute = Idle(), cast(Any, aiosqlite.Connection._execute)
    run_in_executor = asyncio.BaseEventLoop.run_in_executor

    async def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        idle.running += 1
        try:
            return await execute(self, *args, **kwargs)
        finally:
            idle.ended()

    def counted_beside(self: Any, *args: Any) -> Any:
        idle.running += 1
        future = run_in_executor(self, *args)
        future.add_done_callback(idle.ended)
        return future

    monkeypatch.setattr(aiosqlite.Connection, "_execute", counted)
    monkeypatch.setattr(asyncio.BaseEventLoop, "run_in_executor", counted_beside)
    return idle


@pytest.fixture
async def okun(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    fresh_database: Path,
    idle_counter: Idle,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Okun]:
    monkeypatch.setattr(bot, "Texts", lambda folder: TEXTS)  # reading them anew for each test takes longer than it
    shutil.copy(fresh_database, tmp_path / "okun.db")
    values: Json = {}
    for marker in reversed([*request.node.iter_markers("settings")]):
        values |= marker.kwargs
    okun = Okun(tmp_path / "okun.db", values)
    monkeypatch.setattr(bot, "ask_exchange", okun.exchange.answer)
    if not request.node.get_closest_marker("shows"):  # answers come at once
        monkeypatch.setattr(bot, "SHOW_FRAMES", 0)
    okun.idle, okun.may_fail = idle_counter, bool(request.node.get_closest_marker("failing"))
    loop: Any = asyncio.get_running_loop()
    loop.time = okun.clock.monotonic
    loop.set_exception_handler(lambda _, context: okun.problems.append(context))
    try:
        await okun.open()
        yield okun
        await okun.settle()
        failures = okun.failures
    finally:
        with contextlib.suppress(ValueError):
            await okun.crash()
        del loop.time
    assert not okun.problems
    assert not okun.telegram.unknown and not okun.telegram.bugs
    assert okun.may_fail or not failures


@pytest.fixture
def later(okun: Okun) -> Later:
    return okun.later


@pytest.fixture
def dice(okun: Okun) -> Dice:
    return okun.dice


@pytest.fixture
def model(okun: Okun) -> Script:
    return okun.model


@pytest.fixture
def chat(okun: Okun) -> Room:
    return okun.private("Anna")


@pytest.fixture
def group(okun: Okun) -> Room:
    return okun.group()


@pytest.fixture
def lexicon() -> bot.Lexicon:
    return bot.lexicon(TEXTS)
