"""What Okun costs, beside a bare aiogram echo bot measured in the same run.

    python tests/bench.py            prints the table of README
    python tests/bench.py --check    the same, and exit code 1 with a line for each aim that is missed
    python tests/bench.py --quick    one short round: for a look while optimising

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
import gc
import math
import os
import re
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fakes import STREAM, STREAM_END, BotProcess, Chat, FakeGemini, FakeTelegram, Json, Reply, Request, chunk_of

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
)


def missed(figures: Mapping[str, float]) -> list[str]:
    """A line for each aim that the figures miss."""
    lines = []
    for name, sign, aim, meaning in AIMS:
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


async def speed(kind: type[BotProcess], short: bool) -> dict[str, float]:
    """One round of one bot."""
    figures: dict[str, float] = {}
    async with running(kind) as bench:
        figures["start_s"] = bench.telegram.first_poll - bench.started_at
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


async def memory(kind: type[BotProcess]) -> dict[str, float]:
    """Idle, after 10,000 messages and 500 answers, and after as many again."""
    async with running(kind) as bench:
        figures = {"idle_mb": bench.rss_mb()}
        for name in ("used_mb", "again_mb"):
            await overheard(bench, 10_000)
            await answers(bench, 500)
            await bench.quiet()
            figures[name] = bench.rss_mb()
        return figures


def others_s() -> float:
    """CPU time of the whole machine so far."""
    return sum(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:4])) * TICK_S


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
    }


async def measure(rounds: int, short: bool) -> tuple[dict[str, float], dict[str, float]]:
    okun: list[dict[str, float]] = []
    echo: list[dict[str, float]] = []
    for _ in range(rounds):
        echo.append(await speed(EchoProcess, short))
        okun.append(await speed(BotProcess, short))
    return median(okun) | await memory(BotProcess), median(echo) | await memory(EchoProcess)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="exit 1 where an aim is missed")
    parser.add_argument("--quick", action="store_true", help="one short round")
    options = parser.parse_args()
    pin(0, 0)
    try:
        import uvloop

        factory: Any = uvloop.new_event_loop
    except ImportError:
        factory = None
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
    began, machine, own = time.perf_counter(), others_s(), os.times()
    with asyncio.Runner(loop_factory=factory) as runner:
        okun, echo = runner.run(measure(1 if options.quick else 3, options.quick))
    took, ended = time.perf_counter() - began, os.times()
    ours = sum(ended[:4]) - sum(own[:4])  # this process and the bots
    figures = compared(okun, echo)
    print(table(okun, echo), end="\n\n")
    for name, sign, aim, meaning in AIMS:
        print(f"- {meaning}: **{figures[name]:.2f}** (aim {sign} {aim:g})")
    print(
        "- the other way: talk by the clock {talk_clock:.2f}, commands by CPU {command_cpu:.2f}, stored by CPU "
        "{stored_cpu:.2f}".format(**figures)
    )
    drafts = ", ".join(f"{users} users {okun[f'drafts_{users}']:.0f}" for users in (1, 50, 500))
    print(f"\nDrafts sent in the measured spans: {drafts}.", end="")
    shares = ", ".join(f"{name[4:]} {100 * okun[name]:.0f} %" for name in okun if name.startswith("own_"))
    print(f"\nThe servers' and users' share of their core beside Okun: {shares}.", end=" ")
    others = max(0.0, others_s() - machine - ours) / took
    print(f"Other processes took {100 * others:.0f} % of a core meanwhile.")
    if others > 0.2:
        print("The machine was busy: latencies and rates by the clock are worse than they would be alone.")
    if not options.check:
        return 0
    misses = missed(figures)
    print("", *misses, sep="\n") if misses else print("\nAll aims are met.")
    return 1 if misses else 0


if __name__ == "__main__":
    sys.exit(main())
