"""What Okun costs, beside a bare aiogram echo bot measured in the same run.

    python tests/bench.py            prints the table of README
    python tests/bench.py --check    the same, and exit code 1 with a line for each aim that is missed
    python tests/bench.py --quick    one short round: for a look while optimising
    python tests/bench.py --memory   only the part about a million messages (--history FILE keeps them for the next run)

The fakes and their users run here, on core 0; the bot runs as a process of its own on core 1, on a fresh database, with
pacing off and the log going to a file. Users are a closed loop: each writes again when its reply came. The model
answers at once, streamed, with some 60 characters that carry the message's token. Latency is from the update
leaving in getUpdates to the send arriving. Both bots take turns for several rounds; figures are medians of them.

Talk is compared by CPU time per reply, which holds on a machine that others use, too; commands and overheard messages
by the clock, as the aims say. The other way of comparing stands beside each. A reply that is there within 150 ms shows
no draft; how many drafts went out is printed, since what was not sent did not cost anything.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import gc
import itertools
import logging
import math
import os
import random
import re
import shutil
import sqlite3
import statistics
import sys
import tempfile
import time
import tomllib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import orjson
from fakes import STREAM, STREAM_END, BotProcess, Chat, FakeGemini, FakeTelegram, Json, Reply, Request, chunk_of

import bot

ECHO = """
import asyncio, os
from aiogram import Bot, Dispatcher
from aiogram.client.session.aiohttp import AiohttpSession
from aiogram.client.telegram import TelegramAPIServer
from aiogram.types import Message

dispatcher = Dispatcher()

@dispatcher.message()
async def echo(message: Message) -> None:
    await message.answer(message.text)

async def main() -> None:
    session = AiohttpSession(api=TelegramAPIServer.from_base(os.environ["TELEGRAM_API_URL"]))
    await dispatcher.start_polling(Bot(os.environ["TELEGRAM_BOT_TOKEN"], session=session), polling_timeout=30)

try:
    import uvloop
    uvloop.run(main())
except ImportError:
    asyncio.run(main())
"""
PHRASES = (
    "how is the water in the river today, and do the perch bite?",
    "привіт, що нового в ставку сьогодні ввечері?",
    "расскажи коротко, чем щука отличается от судака",
    "I tried the small hook yesterday and nothing came of it at all",
)
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


# == Aims ==============================================================================================================
# name of a figure, how it is compared, the aim, what it means

AIMS = (
    ("start_s", "<=", 1.5, "start to the first getUpdates, s"),
    ("idle_mb", "<=", 85.0, "memory idle, MB"),
    ("used_mb", "<=", 105.0, "memory after 10,000 messages and 500 answers, MB"),
    ("growth_mb", "<=", 3.0, "growth after as many again, MB"),
    ("talk_cpu", ">=", 1.0, "talk with storage, context and the streamed model, of the echo's rate, by CPU per reply"),
    ("command_clock", ">=", 2.0, "commands, of the echo's rate, by the clock"),
    ("stored_clock", ">=", 5.0, "unaddressed messages stored, of the echo's rate, by the clock"),
    ("over_echo_ms", "<=", 3.0, "p50 over the echo's with 1 user, ms"),
    ("p99_ms", "<=", 60.0, "p99 with 50 users, ms"),
    ("cast_p95_ms", "<=", 100.0, "p95 of the first answer to 500 people who cast within a second, ms"),
    ("context_p99_ms", "<=", 10.0, "p99 of the context of a reply beside recall, among 1,000,000 messages, ms of CPU"),
    ("recall_p99_ms", "<=", 50.0, "p99 of recall among 1,000,000 messages, ms of CPU"),
    ("mood_s", "<=", 1.0, "/mood 30d of a chat with 1,000,000 messages in these days, its picture included, s"),
    ("feel_us", "<=", 50.0, "local analysis of a message, µs of CPU"),
    ("longest_wait_ms", "<=", 100.0, "longest that a commit waited for indexing, forgetting or retention, ms"),
)


def measured_aims(figures: Mapping[str, float]) -> list[tuple[str, str, float, str]]:
    return [aim for aim in AIMS if aim[0] in figures]


def missed(figures: Mapping[str, float]) -> list[str]:
    """A line for each aim that the figures miss."""
    lines = []
    for name, sign, aim, meaning in measured_aims(figures):
        value = figures[name]
        if not (value <= aim if sign == "<=" else value >= aim):
            lines.append(f"missed: {meaning}: {value:.2f}, aim {sign} {aim:g}")
    return lines


# == The servers and the users =========================================================================================


class BenchTelegram(FakeTelegram):
    """Notes when updates leave and replies arrive, and lets users write again."""

    def __init__(self) -> None:
        super().__init__()
        self.keep = 20
        self.left: dict[int, float] = {}  # update id: when it first left
        self.waiting: dict[int, tuple[int, str]] = {}  # chat id: the update a reply is due to, and its token
        self.on_reply: Callable[[int, float], None] = lambda chat_id, took: None
        self.strays = 0
        self.first_poll = 0.0
        self.drafts_sent = 0
        self._handlers |= {"sendMessage": self._replied, "sendMessageDraft": self._drafted}

    async def _wait_for_updates(self, params: Json) -> Json:
        self.first_poll = self.first_poll or time.perf_counter()
        answer = await super()._wait_for_updates(params)
        now = time.perf_counter()
        for update in answer.get("result", ()):
            self.left.setdefault(update["update_id"], now)
        return answer

    def _drafted(self, p: Json) -> bool:
        self.drafts_sent += 1
        return self._do_send_message_draft(p)

    def _replied(self, p: Json) -> Json:
        now, chat_id = time.perf_counter(), p["chat_id"]
        update_id, token = self.waiting.get(chat_id, (0, ""))
        if not update_id or token not in p["text"]:
            self.strays += chat_id > 0
        else:
            del self.waiting[chat_id]
            asyncio.get_running_loop().call_soon(self.on_reply, chat_id, now - self.left.pop(update_id))
        return self._do_send_message(p)


class BenchGemini(FakeGemini):
    """Answers at once and looks at nothing but the token: what it costs here would hide what the bot can do."""

    def handle(self, request: Request) -> Reply:
        if not request.path.endswith(":streamGenerateContent"):
            return super().handle(request)
        if b'"responseJsonSchema"' in request.body:
            text = '{"summary": "They talk of the river and of what bites there.", "facts": []}'
        else:
            last = orjson.loads(request.body)["contents"][-1]["parts"][-1]["text"]
            token = re.findall(r"k\d+z", last)[-1]
            text = f"{token} the perch bites best at dawn, near the old bridge."
        usage = {"promptTokenCount": 400, "candidatesTokenCount": 15, "totalTokenCount": 415}
        events = []
        for at in range(0, len(text), 12):
            candidate: Json = {"content": {"role": "model", "parts": [{"text": text[at : at + 12]}]}, "index": 0}
            if at + 12 >= len(text):
                candidate["finishReason"] = "STOP"
            event = {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m", "responseId": "r"}
            events.append(chunk_of(b"data: %s\r\n\r\n" % orjson.dumps(event)))
        request.write(STREAM + b"".join(events))
        return STREAM_END


class EchoProcess(BotProcess):
    command = (sys.executable, "-c", ECHO)


def pin(pid: int, core: int) -> None:
    with suppress(OSError, AttributeError):
        os.sched_setaffinity(pid, {core})


@dataclass
class Bench:
    """One bot between its servers."""

    telegram: BenchTelegram
    bot: BotProcess
    started_at: float
    tokens: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 60)))

    @property
    def pid(self) -> int:
        assert self.bot.process
        return self.bot.process.pid

    def cpu_s(self) -> float:
        """CPU time of the bot, all threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * TICK_S

    def rss_mb(self) -> float:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())
        assert found
        return int(found[1]) / 1024

    async def quiet(self) -> None:
        """Wait until the bot has not worked for half a second."""
        since, worked = time.monotonic(), self.cpu_s()
        while time.monotonic() - since < 0.5:
            await asyncio.sleep(0.05)
            if self.cpu_s() > worked:
                since, worked = time.monotonic(), self.cpu_s()

    def write(self, chat: Chat, command: str = "") -> None:
        """One message of a user, and what its reply will carry."""
        number = next(self.tokens)
        token = "" if command else f"k{number}z"
        text = command or f"{token} {PHRASES[number % len(PHRASES)]}"
        self.telegram.waiting[chat.id] = (self.telegram.say(chat, self.telegram.users[chat.id], text), token)


@asynccontextmanager
async def running(kind: type[BotProcess]) -> AsyncIterator[Bench]:
    limits = dict.fromkeys(("COMMANDS_PER_MINUTE", "REPLIES_PER_HOUR", "CHAT_REPLIES_PER_HOUR"), 0)
    with tempfile.TemporaryDirectory() as directory:
        async with BenchTelegram() as telegram, BenchGemini() as gemini:
            settings = {"LOG_LEVEL": None, "PYTHONUNBUFFERED": None, "GROUP_POLICY": "mention", **limits}
            bot = kind(telegram, gemini, Path(directory), **settings)
            started_at = time.perf_counter()
            process = await bot.launch()
            pin(process.pid, 1)
            try:
                await telegram.until(lambda: telegram.first_poll or process.returncode is not None, 60)
                if not telegram.first_poll:
                    raise RuntimeError(bot.log())
                bench = Bench(telegram, bot, started_at)
                await bench.quiet()
                yield bench
                await bot.stop()
            finally:
                await bot.kill()


# == Figures ===========================================================================================================


@dataclass
class Span:
    """What happened between two moments: messages dealt with, by the clock and in CPU time."""

    count: int
    seconds: float
    cpu_s: float
    own_share: float
    latencies: list[float] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu_s / self.count

    def latency_ms(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


@contextmanager
def measured(bench: Bench) -> Iterator[Span]:
    span = Span(0, time.perf_counter(), bench.cpu_s(), time.process_time())
    yield span
    span.seconds = time.perf_counter() - span.seconds
    span.cpu_s = bench.cpu_s() - span.cpu_s
    span.own_share = (time.process_time() - span.own_share) / span.seconds


async def talk(bench: Bench, users: int, seconds: float, command: str = "") -> Span:
    """So many users write for so long, after a while of warming up."""
    telegram = bench.telegram
    chats = {n: telegram.private(telegram.user(n, f"User{n}", "en")) for n in range(1, users + 1)}
    running, replies = True, 0
    latencies: list[float] = []

    def again(chat_id: int, took: float) -> None:
        nonlocal replies
        replies += 1
        latencies.append(took)
        if running:
            bench.write(chats[chat_id], command)

    telegram.on_reply = again
    for chat in chats.values():
        bench.write(chat, command)
    await telegram.until(lambda: replies >= 3 * users, 120)
    replies = 0
    latencies.clear()
    with measured(bench) as span:
        await asyncio.sleep(seconds)
        span.count, span.latencies = replies, list(latencies)
        running = False
    await telegram.until(lambda: not telegram.waiting, 60)
    return span


async def answers(bench: Bench, count: int, users: int = 50) -> None:
    """So many answers to users in private chats."""
    telegram = bench.telegram
    chats = {n: telegram.private(telegram.user(n, f"User{n}", "en")) for n in range(1, users + 1)}
    left = count - users

    def again(chat_id: int, took: float) -> None:
        nonlocal left
        if left > 0:
            left -= 1
            bench.write(chats[chat_id])

    telegram.on_reply = again
    for chat in chats.values():
        bench.write(chat)
    await telegram.until(lambda: left <= 0 and not telegram.waiting, 120)


async def overheard(bench: Bench, count: int) -> Span:
    """Messages in groups that are not meant for the bot, all waiting at once; until the last is confirmed."""
    telegram = bench.telegram
    speakers = [telegram.user(10_000 + n, f"Speaker{n}", "uk") for n in range(40)]
    groups = [telegram.group(f"Group{n}", speakers) for n in range(10)]
    with measured(bench) as span:
        for n in range(count):
            telegram.say(groups[n % 10], speakers[n % 40], f"{PHRASES[n % len(PHRASES)]} ({n})")
        begun = time.perf_counter()
        await telegram.until(lambda: not telegram.queue, 120)
        span.count = count
        waited = time.perf_counter() - begun
    span.seconds = waited
    return span


async def casts(bench: Bench, users: int = 500) -> Span:
    """So many people write /cast, the first thing they ever say, evenly within a second; the echo repeats it."""
    telegram, latencies = bench.telegram, list[float]()
    chats = [telegram.private(telegram.user(20_000 + n, f"Angler{n}", "en")) for n in range(users)]
    telegram.on_reply = lambda chat_id, took: latencies.append(took)
    with measured(bench) as span:
        begun = time.perf_counter()
        for n, chat in enumerate(chats):
            await asyncio.sleep(max(0.0, begun + n / users - time.perf_counter()))
            bench.write(chat, "/cast")
        await telegram.until(lambda: len(latencies) == users, 120)
        span.count, span.latencies = users, latencies
    return span


async def speed(kind: type[BotProcess], short: bool) -> dict[str, float]:
    """One round of one bot."""
    figures: dict[str, float] = {}
    async with running(kind) as bench:
        figures["start_s"] = bench.telegram.first_poll - bench.started_at
        span = await casts(bench)
        figures |= {"p50_cast": span.latency_ms(0.5), "p95_cast": span.latency_ms(0.95)}
        await bench.quiet()  # the floats of those casts bob for some seconds
        for users in (1, 50, 500):
            bench.telegram.drafts_sent = 0
            span = await talk(bench, users, (1.0 if users == 1 else 2.0) if short else 4.0)
            figures |= {
                f"rate_{users}": span.per_second,
                f"cpu_ms_{users}": span.cpu_ms,
                f"p50_{users}": span.latency_ms(0.5),
                f"p99_{users}": span.latency_ms(0.99),
                f"own_{users}": span.own_share,
                f"drafts_{users}": bench.telegram.drafts_sent,
            }
        if kind is BotProcess:
            span = await talk(bench, 50, 1.5 if short else 3.0, "/help")
            figures |= {"rate_help": span.per_second, "cpu_ms_help": span.cpu_ms, "own_help": span.own_share}
            span = await overheard(bench, 5000 if short else 20_000)
            figures |= {"rate_stored": span.per_second, "cpu_ms_stored": span.cpu_ms, "own_stored": span.own_share}
        if bench.telegram.strays:
            raise RuntimeError(f"{bench.telegram.strays} messages that nobody waited for:\n{bench.bot.log()[-3000:]}")
    return figures


async def footprint(kind: type[BotProcess]) -> dict[str, float]:
    """Resident memory idle, after 10,000 messages and 500 answers, and after as many again."""
    async with running(kind) as bench:
        figures = {"idle_mb": bench.rss_mb()}
        for name in ("used_mb", "again_mb"):
            await overheard(bench, 10_000)
            await answers(bench, 500)
            await bench.quiet()
            figures[name] = bench.rss_mb()
        return figures


# == A million messages ================================================================================================

MESSAGES, CHATS, GROUP_ID, TALKER = 1_000_000, 200, -1_001_234_567_890, 7
SPAN_S, RETIRED = 1000 * 86400, 100_000  # sent evenly over 1,000 days, of which the first 100 are over
FORGOTTEN = 50_000  # of the group's messages are the talker's
STEMS = 30_000  # of a language
SOUNDS = {
    "en": ("bcdfghjklmnprstvw", "aeiou", ("", "s", "ed", "ing", "er", "ly", "ness")),
    "uk": ("бвгджзклмнпрстфхцчш", "аеиіоу", ("а", "и", "у", "ою", "ам", "ами", "ах", "ів", "ати", "ала", "ий", "ого")),
    "ru": ("бвгджзклмнпрстфхцчш", "аеиоуы", ("а", "ы", "у", "ой", "ам", "ами", "ах", "ов", "ать", "ала", "ый", "ого")),
}


class Tongue:
    """Words of a made-up language: those that every sentence has, and others by Zipf's law, the short ones first.

    The first ranks of the law belong to those of every sentence, which the index leaves out.
    """

    def __init__(self, lang: str, texts: bot.Texts, dice: random.Random) -> None:
        self._dice = dice
        consonants, vowels, endings = SOUNDS[lang]
        self.small: list[str] = texts.words(lang, "words", "stop")
        self.stems = [self._stem(consonants, vowels, rank) for rank in range(STEMS)]
        self.endings = endings
        self._ranks = list(itertools.accumulate(1 / (rank + 2.7) for rank in range(STEMS)))

    def _stem(self, consonants: str, vowels: str, rank: int) -> str:
        length = 3 + self._dice.choice((0, 1)) + (rank > 300) + (rank > 3000) * self._dice.choice((0, 1, 2, 3))
        return "".join(self._dice.choice(vowels if at % 2 else consonants) for at in range(length))

    def common(self, count: int) -> list[str]:
        """Words as they come in talk."""
        return [self._form(stem) for stem in self._dice.choices(self.stems, cum_weights=self._ranks, k=count)]

    def ranked(self, first: int, last: int, count: int = 1) -> list[str]:
        """Words from a part of the table of ranks."""
        return [self._form(self.stems[self._dice.randrange(first, last)]) for _ in range(count)]

    def filler(self, count: int) -> list[str]:
        return self._dice.choices(self.small, k=count)

    def sentence(self, words: int) -> str:
        """Four words of ten are such as every sentence has."""
        return self.shuffled(self.filler(words * 2 // 5) + self.common(words - words * 2 // 5))

    def shuffled(self, words: list[str]) -> str:
        self._dice.shuffle(words)
        return " ".join(words)

    def _form(self, stem: str) -> str:
        return stem + self._dice.choice(self.endings)


def question(tongue: Tongue, kind: str) -> str:
    """A question whose words were said once, by everybody, or never."""
    if kind == "talk":
        return tongue.sentence(9)
    if kind == "long":
        return tongue.sentence(80)
    if kind == "unsaid":
        return tongue.shuffled([*(word[::-1] + "ъq" for word in tongue.ranked(0, STEMS, 3)), *tongue.filler(3)])
    ranks = {"rare": [(3000, STEMS)] * 2, "common": [(0, 60)] * 3, "middling": [(60, 1000)] * 3,
             "short": [(0, 300)], "mixed": [(3000, STEMS), (60, 1000), (0, 60), (0, 60)]}[kind]  # fmt: skip
    return tongue.shuffled([*tongue.filler(4), *(word for part in ranks for word in tongue.ranked(*part))])


KINDS = ("talk", "rare", "mixed", "middling", "common", "short", "long", "unsaid")


@dataclass(frozen=True)
class Pond:
    """A chat of the bench: its people, and the languages they speak."""

    id: int
    people: Sequence[int]
    tongues: Sequence[Tongue]
    thread_id: int = 0

    @property
    def kind(self) -> str:
        return "private" if self.id > 0 else "supergroup"

    @property
    def title(self) -> str:
        return f"User{self.id}" if self.id > 0 else "The pond"


@dataclass
class History:
    """A million messages: who said them where, always the same for the same seed."""

    dice: random.Random = field(default_factory=lambda: random.Random(5))
    now: int = 1_780_000_000

    def __post_init__(self) -> None:
        texts = bot.Texts(bot.HERE / "locales")
        self.tongues = [Tongue(lang, texts, self.dice) for lang in ("uk", "ru", "en")]
        self.group = Pond(GROUP_ID, range(TALKER + 1, 400), (self.tongues[0], *self.tongues))
        self.chats = [self._chat(number) for number in range(CHATS)]
        self.sizes = [1 / (rank + 5) for rank in range(CHATS)]

    def _chat(self, number: int) -> Pond:
        tongue = self.dice.choice(self.tongues)
        if number % 4:
            return Pond(1000 + number, (1000 + number,), (tongue,))
        people = range(10_000 + 20 * number, 10_000 + 20 * number + 15)
        return Pond(-1_002_000_000_000 - number, people, (tongue, tongue, self.dice.choice(self.tongues)))

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """(id, chat, message id, thread, user, time, kind, text, reply to); the group's and the others' take turns."""
        dice, newest = self.dice, defaultdict[int, int](int)
        others = dice.choices(self.chats, weights=self.sizes, k=MESSAGES // 2)
        lengths = [min(80, max(1, round(dice.lognormvariate(1.9, 0.8)))) for _ in range(10_000)]
        for number in range(MESSAGES):
            pond = others[number // 2] if number % 2 else self.group
            newest[pond.id] += 1
            user = self._speaker(pond, number)
            reply = newest[pond.id] - dice.randrange(1, 10) if dice.random() < 0.2 else None
            text = dice.choice(pond.tongues).sentence(lengths[number % 10_000])
            sent_at = self.now - SPAN_S + SPAN_S * number // MESSAGES
            yield number + 1, pond.id, newest[pond.id], 0, user, sent_at, "text", text, reply

    def _speaker(self, pond: Pond, number: int) -> int | None:
        """Now and then the bot, in private every second time; of the group's every tenth is the talker's."""
        if pond is self.group and number % (MESSAGES // FORGOTTEN) == 0:
            return TALKER
        if self.dice.random() < (0.5 if pond.id > 0 else 0.02):
            return None
        return pond.people[int(len(pond.people) * self.dice.random() ** 2)]

    def fill(self, path: Path) -> None:
        bot.prepare_database(str(path), path.parent)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute("BEGIN")
            ponds = [self.group, *self.chats]
            people = {user for pond in ponds for user in pond.people} | {TALKER}
            connection.executemany("INSERT INTO users (user_id, name) VALUES (?, ?)", [(u, f"User{u}") for u in people])
            connection.executemany(
                "INSERT INTO chats (chat_id, kind, title) VALUES (?, ?, ?)", [(p.id, p.kind, p.title) for p in ponds]
            )
            connection.executemany(
                """INSERT INTO messages (id, chat_id, message_id, thread_id, user_id, sent_at, kind, text, reply_to)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                self.rows(),
            )
            self._fill_knowledge(connection, ponds)
            connection.execute("COMMIT")

    def _fill_knowledge(self, connection: sqlite3.Connection, ponds: Sequence[Pond]) -> None:
        facts = [(pond.id, user, pond.tongues[0].sentence(8), 0, self.now, self.now)
                 for pond in ponds for user in pond.people for _ in range(10)]  # fmt: skip
        connection.executemany(
            "INSERT INTO facts (chat_id, user_id, text, told, learned_at, used_at) VALUES (?, ?, ?, ?, ?, ?)", facts
        )
        summaries = [(pond.id, 0, pond.tongues[0].sentence(100), 0, self.now) for pond in ponds]
        connection.executemany(
            "INSERT INTO summaries (chat_id, thread_id, text, until_row, made_at) VALUES (?, ?, ?, ?, ?)", summaries
        )


class BenchClock(bot.Clock):
    """Begins when the history ends."""

    def __init__(self, start: float) -> None:
        self._ahead = start - time.time()

    def now(self) -> float:
        return time.time() + self._ahead


class Took(NamedTuple):
    """Seconds by the clock, and of CPU time in all threads, which holds on a machine that others use, too."""

    clock: float
    cpu: float


async def stopwatch(work: Awaitable[Any]) -> Took:
    began, cpu = time.perf_counter(), time.process_time()
    await work
    return Took(time.perf_counter() - began, time.process_time() - cpu)


@dataclass
class Lake:
    """A bot's App on the million messages."""

    app: bot.App
    history: History
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1, 1 << 60)))

    def heard(self, pond: Pond, text: str) -> tuple[dict[str, Any], bot.Heard]:
        """A new message in a chat."""
        user_id = pond.people[self.history.dice.randrange(len(pond.people))]
        chat = {"id": pond.id, "type": pond.kind, "title": pond.title, "first_name": pond.title}
        sender = {"id": user_id, "is_bot": False, "first_name": f"User{user_id}"}
        message_id, now = 10_000_000 + next(self.numbers), int(self.app.clock.now())
        raw = {"message_id": message_id, "from": sender, "chat": chat, "date": now, "text": text}
        heard = bot.hear(raw)
        assert heard
        return raw, heard

    async def say(self, pond: Pond, text: str) -> tuple[dict[str, Any], bot.Heard]:
        """The same, stored as the bot stores it."""
        raw, heard = self.heard(pond, text)
        await self.app.db.write({bot.PUT_MESSAGE: [bot.message_row(heard, bot.NO_MOOD)]})
        return raw, heard

    async def context(self, pond: Pond, text: str) -> Took:
        """What it takes to find what a model is to know for an answer."""
        raw, heard = await self.say(pond, text)
        turn = bot.Turn([bot.Waiting(heard.message_id, raw, heard, 0.0)])
        who = bot.Who(pond.id, 0, heard.user_id, "uk", pond.id > 0, message_id=heard.message_id)
        bot.changes.set({})  # what it changes goes with the answer
        took = await stopwatch(bot.build_ask(self.app, turn, who))
        bot.changes.set(None)
        return took

    async def recall(self, pond: Pond, text: str) -> Took:
        return await stopwatch(bot.recall(self.app, pond.id, text))

    async def flood(self) -> None:
        """A hundred slices of new messages, stored and indexed."""
        for _ in range(100):
            texts = [self.history.group.tongues[0].sentence(9) for _ in range(bot.INDEX_SLICE)]
            rows = [bot.message_row(self.heard(self.history.group, text)[1], bot.NO_MOOD) for text in texts]
            await self.app.db.write({bot.PUT_MESSAGE: rows})
            await bot.index_messages(self.app)

    async def waits(self, work: Awaitable[Any]) -> list[float]:
        """How long commits of messages took while that was done."""
        task, took = asyncio.ensure_future(work), list[float]()
        while not task.done():
            _, heard = self.heard(self.history.chats[0], "a message of somebody else")
            began = time.perf_counter()
            await self.app.db.write({bot.PUT_MESSAGE: [bot.message_row(heard, bot.NO_MOOD)]})
            took.append(time.perf_counter() - began)
            await asyncio.sleep(0.001)
        await task
        return took


@asynccontextmanager
async def lake(path: Path, kept: Path | None) -> AsyncIterator[Lake]:
    """The million messages, stored and indexed; those of the last run where it kept them."""
    history = History()
    if kept and kept.exists():
        shutil.copy(kept, path)
    else:
        began = time.perf_counter()
        history.fill(path)
        print(f"{MESSAGES:,} messages stored in {time.perf_counter() - began:.0f} s.", end=" ", flush=True)
    settings, faults = bot.read_settings({"DB_PATH": str(path), "TELEGRAM_BOT_TOKEN": "42:BENCH"}, {})
    assert settings, faults
    app = bot.App(replace(settings, retention_days=(SPAN_S // 86400) - 100), clock=BenchClock(history.now))
    await app.db.open()
    try:
        await index_all(app, path, kept)
        with path.open("rb") as file:
            os.fsync(file.fileno())  # what the filling left to be written is no work of the bot
        yield Lake(app, history)
    finally:
        await app.close()


async def index_all(app: bot.App, path: Path, kept: Path | None) -> None:
    began = time.perf_counter()
    if not await bot.index_messages(app):
        return
    while await bot.index_messages(app):  # in slices as it does itself: the index is in as many pieces
        pass
    size = (await app.db.reader.all("SELECT page_count * page_size AS n FROM pragma_page_count, pragma_page_size"))[0]
    print(f"Indexed in {time.perf_counter() - began:.0f} s: {size['n'] / 1e6:,.0f} MB.", flush=True)
    await app.db.truncate_log()
    if kept:
        shutil.copy(path, kept)


async def timed(
    ponds: Callable[[], Pond], one: Callable[[Pond, str], Awaitable[Took]], each: int
) -> dict[str, list[Took]]:
    """So many questions of each kind."""
    found = defaultdict[str, list[Took]](list)
    for kind in KINDS:
        for _ in range(each):
            pond = ponds()
            found[kind].append(await one(pond, question(pond.tongues[0], kind)))
    return found


def share_ms(seconds: Iterable[float], share: float) -> float:
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def summed_up(name: str, timings: dict[str, list[Took]]) -> float:
    """Print a line for each kind of question, and one for all; the p99 of all, in ms of CPU."""
    print(f"\n{name}, ms by the clock (by CPU):")
    timings["all"] = list(itertools.chain.from_iterable(timings.values()))
    for kind, found in timings.items():
        shares = [
            f"{label} {share_ms((took.clock for took in found), share):6.1f}"
            f" ({share_ms((took.cpu for took in found), share):5.1f})"
            for label, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
        ]
        print(f"  {kind:9}", *shares)
    return share_ms((took.cpu for took in timings["all"]), 0.99)


async def remembering(kept: Path | None, short: bool) -> dict[str, float]:
    """The figures of a million messages."""
    logging.disable(logging.WARNING)
    each, context, whole, recall = 20 if short else 100, list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as directory:
        async with lake(Path(directory) / "okun.db", kept) as water:
            history = water.history
            for pond in (history.group, *history.chats):  # warm
                await water.context(pond, question(pond.tongues[0], "common"))
            anywhere = functools.partial(history.dice.choice, history.chats)
            places: list[tuple[str, Callable[[], Pond]]] = [
                ("a group of 500,000", lambda: history.group),
                ("200 chats", anywhere),
            ]
            for name, ponds in places:
                bare = {"greeting": [await water.context(ponds(), "ну ок") for _ in range(4 * each)]}
                context.append(summed_up(f"Context of what asks for nothing, {name}", bare))
                whole.append(summed_up(f"Context with recall, {name}", await timed(ponds, water.context, each)))
                recall.append(summed_up(f"Recall, {name}", await timed(ponds, water.recall, each)))
            mood = await moods(water, short)
            waits = await forgetting(water)
    return {
        "context_p99_ms": max(context),
        "whole_p99_ms": whole[1],
        "group_p99_ms": whole[0],
        "recall_p99_ms": max(recall),
        **mood,
        "longest_wait_ms": max(waits),
    }


async def moods(water: Lake, short: bool) -> dict[str, float]:
    """/mood of the busiest chat there could be, and what it takes to feel one message as people write them."""
    app = water.app
    fill_month(app.db.path, water.history.now)
    took = []
    for _ in range(3 if short else 10):
        app.moods.forget((MONTH_ID, "30d"))
        began = time.perf_counter()
        report = await bot.mood_report(app, MONTH_ID, "30d")
        read = time.perf_counter() - began
        app.drawn.forget_all(MONTH_ID)
        await bot.mood_picture(app, bot.Who(MONTH_ID, 0, 1, "uk", private=False), report)
        took.append((time.perf_counter() - began, read))
    whole_s, read_s = sorted(took)[len(took) // 2]
    texts = [
        one["text"]
        for one in tomllib.loads((Path(__file__).parent / "mood" / "labelled.toml").read_text("utf-8"))["message"]
    ]
    lexicon, rounds = bot.lexicon(app.texts), 20
    for text in texts:
        lexicon.mood(text)
    began = time.process_time()
    for _ in range(rounds):
        for text in texts:
            lexicon.mood(text)
    feel_us = (time.process_time() - began) / rounds / len(texts) * 1e6
    print(f"\n/mood 30d of 1,000,000 messages: {1000 * read_s:.0f} ms to read, {1000 * whole_s:.0f} with the picture.")
    print(f"Local analysis of a message: {feel_us:.1f} µs of CPU.")
    return {"mood_s": whole_s, "feel_us": feel_us}


MONTH_ID, MONTH_PEOPLE, MONTH_HOURS = -1_003_000_000_000, 360, 720


def fill_month(path: str, now: int) -> None:
    """What a million messages of 30 days leave behind for /mood, and of the messages themselves the sample it reads."""
    first = now // 3600 - MONTH_HOURS + 1
    each = 1_000_000 // (MONTH_HOURS * MONTH_PEOPLE)
    hours = [(MONTH_ID, first + hour) for hour in range(MONTH_HOURS)]
    with closing(sqlite3.connect(path, timeout=30)) as connection, connection:
        connection.execute("INSERT INTO chats (chat_id, kind, title) VALUES (?, 'supergroup', 'Month')", (MONTH_ID,))
        people = [user for (user,) in connection.execute("SELECT user_id FROM users LIMIT ?", (MONTH_PEOPLE,))]
        messages = [
            (MONTH_ID, number, people[number % MONTH_PEOPLE], first * 3600 + number * MONTH_HOURS * 3600 // 5000)
            for number in range(5000)
        ]
        connection.executemany(
            """INSERT INTO messages (chat_id, message_id, thread_id, user_id, sent_at, kind, text)
               VALUES (?, ?, 0, ?, ?, 'text', 'the river rose again')""",
            messages,
        )
        connection.execute(
            """INSERT INTO passages (id, chat_key, words)
               SELECT id, 'month', 'river rose' FROM messages WHERE chat_id = ?""",
            (MONTH_ID,),
        )
        connection.execute("DELETE FROM member_hours WHERE chat_id = ?", (MONTH_ID,))
        connection.execute("DELETE FROM mood_hours WHERE chat_id = ?", (MONTH_ID,))
        connection.executemany(
            "INSERT INTO member_hours VALUES (?, ?, ?, ?, ?)",
            [(*hour, user, each, 100 * each) for hour in hours for user in people],
        )
        connection.executemany(
            "INSERT INTO mood_hours VALUES (?, ?, ?, 0, 9, 1, 5, 1, 2, 3, 4, 6)",
            [(*hour, each * MONTH_PEOPLE) for hour in hours],
        )


async def forgetting(water: Lake) -> list[float]:
    """The longest that others' commits took beside each way of changing much, in ms."""
    app, group = water.app, water.history.group
    works: dict[str, Callable[[], Awaitable[Any]]] = {
        "nothing": lambda: asyncio.sleep(2),
        "indexing 20,000": water.flood,
        "forgetting 50,000": lambda: bot.forget_person(app, TALKER, [group.id], everywhere=False),
        "retention of 100,000": lambda: bot.retention_clean(app),
        "taking them out of the bytes": lambda: bot.bytes_clean(app),
    }
    longest: list[float] = []
    print("\nHow long others' commits took beside, ms:")
    for name, work in works.items():
        began = time.perf_counter()
        waits = await water.waits(work())
        took = time.perf_counter() - began
        p50, p99, most = (share_ms(waits, share) for share in (0.5, 0.99, 1.0))
        print(f"  {name:29} {took:5.1f} s, {len(waits):5} commits: p50 {p50:5.1f} p99 {p99:5.1f} max {most:5.1f}")
        longest.append(most)
    return longest


def machine_s() -> float:
    """CPU time of the whole machine so far."""
    return sum(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:4])) * TICK_S


@contextmanager
def watching_others() -> Iterator[None]:
    """Say how busy the machine was beside this process and the bots."""
    began, machine, own = time.perf_counter(), machine_s(), os.times()
    yield
    took, ended = time.perf_counter() - began, os.times()
    others = max(0.0, machine_s() - machine - (sum(ended[:4]) - sum(own[:4]))) / took
    print(f"Other processes took {100 * others:.0f} % of a core meanwhile.")
    if others > 0.2:
        print("The machine was busy: latencies and rates by the clock are worse than they would be alone.")


# == The report ========================================================================================================


def median(rounds: list[dict[str, float]]) -> dict[str, float]:
    values = defaultdict(list)
    for figures in rounds:
        for name, value in figures.items():
            values[name].append(value)
    return {name: statistics.median(found) for name, found in values.items()}


def table(okun: Mapping[str, float], echo: Mapping[str, float]) -> str:
    rows: list[tuple[str, str, str]] = []

    def row(what: str, name: str, form: str) -> None:
        ours, theirs = (form.format(bot[name]) if name in bot else "–" for bot in (okun, echo))
        rows.append((what, ours, theirs))

    for users in (1, 50, 500):
        who = f"{users} user{'s' if users > 1 else ''}"
        row(f"replies per second, {who}", f"rate_{users}", "{:,.0f}")
        row(f"CPU ms per reply, {who}", f"cpu_ms_{users}", "{:.2f}")
        row(f"p50 ms, {who}", f"p50_{users}", "{:.1f}")
        row(f"p99 ms, {who}", f"p99_{users}", "{:.1f}")
    row("commands (/help) per second", "rate_help", "{:,.0f}")
    row("CPU ms per command", "cpu_ms_help", "{:.2f}")
    row("p50 ms, 500 first /cast within a second", "p50_cast", "{:.1f}")
    row("p95 ms, 500 first /cast within a second", "p95_cast", "{:.1f}")
    row("unaddressed group messages stored per second", "rate_stored", "{:,.0f}")
    row("CPU ms per message stored", "cpu_ms_stored", "{:.3f}")
    row("start to the first getUpdates, s", "start_s", "{:.2f}")
    row("memory idle, MB", "idle_mb", "{:.0f}")
    row("memory after 10,000 messages and 500 answers, MB", "used_mb", "{:.0f}")
    row("memory after as many again, MB", "again_mb", "{:.0f}")
    lines = ["| | Okun | bare aiogram echo |", "|---|---:|---:|"]
    return "\n".join(lines + [f"| {what} | {ours} | {theirs} |" for what, ours, theirs in rows])


def compared(okun: Mapping[str, float], echo: Mapping[str, float]) -> dict[str, float]:
    """The figures that the aims are about. Ratios are to the echo with 50 users."""
    return {
        **{name: okun[name] for name in ("start_s", "idle_mb", "used_mb")},
        "growth_mb": okun["again_mb"] - okun["used_mb"],
        "talk_cpu": echo["cpu_ms_50"] / okun["cpu_ms_50"],
        "talk_clock": okun["rate_50"] / echo["rate_50"],
        "command_cpu": echo["cpu_ms_50"] / okun["cpu_ms_help"],
        "command_clock": okun["rate_help"] / echo["rate_50"],
        "stored_cpu": echo["cpu_ms_50"] / okun["cpu_ms_stored"],
        "stored_clock": okun["rate_stored"] / echo["rate_50"],
        "over_echo_ms": okun["p50_1"] - echo["p50_1"],
        "p99_ms": okun["p99_50"],
        "cast_p95_ms": okun["p95_cast"],
    }


async def measure(rounds: int, short: bool) -> tuple[dict[str, float], dict[str, float]]:
    okun: list[dict[str, float]] = []
    echo: list[dict[str, float]] = []
    for _ in range(rounds):
        echo.append(await speed(EchoProcess, short))
        okun.append(await speed(BotProcess, short))
    return median(okun) | await footprint(BotProcess), median(echo) | await footprint(EchoProcess)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where an aim is missed")
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--memory", action="store_true", help="only the part about a million messages")
    parser.add_argument("--history", type=Path, help="keep the million messages in this file, or take them from there")
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        with watching_others():
            figures = runner.run(remembering(options.history, options.quick))
        if not options.memory:
            pin(0, 0)
            with watching_others():
                figures |= runner.run(beside_echo(options.quick))
    print()
    for name, sign, aim, meaning in measured_aims(figures):
        print(f"- {meaning}: **{figures[name]:.2f}** (aim {sign} {aim:g})")
    if not options.check:
        return 0
    misses = missed(figures)
    print("", *misses, sep="\n") if misses else print("\nAll aims are met.")
    return 1 if misses else 0


def loop_factory() -> Any:
    try:
        import uvloop

        return uvloop.new_event_loop
    except ImportError:
        return None


async def beside_echo(short: bool) -> dict[str, float]:
    """The figures beside the echo bot, with the table of README."""
    okun, echo = await measure(1 if short else 3, short)
    figures = compared(okun, echo)
    print("", table(okun, echo), sep="\n", end="\n\n")
    print(
        "The other way: talk by the clock {talk_clock:.2f}, commands by CPU {command_cpu:.2f}, stored by CPU "
        "{stored_cpu:.2f}.".format(**figures)
    )
    drafts = ", ".join(f"{users} users {okun[f'drafts_{users}']:.0f}" for users in (1, 50, 500))
    print(f"Drafts sent in the measured spans: {drafts}.")
    shares = ", ".join(f"{name[4:]} {100 * okun[name]:.0f} %" for name in okun if name.startswith("own_"))
    print(f"The servers' and users' share of their core beside Okun: {shares}.")
    return figures


if __name__ == "__main__":
    sys.exit(main())
