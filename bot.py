"""Okun: a companion for Telegram chats in one file and one SQLite database.

    python bot.py              long-polls (or takes a webhook) and answers
    python bot.py --console    the same program with the terminal as the chat
    python bot.py --check      verifies settings, database, token, key and models

The way of an update: Telegram → Inbox (stored before it is confirmed) → a queue of turns for talk, straight on for
everything else → a handler → an action → the answer through the Gate → the inbox row goes in the commit
that stores the answer. What a crash leaves in the inbox is done first at the next start.

Sections, each using only what stands above it (`grep '^# ==' bot.py` lists them):
Settings, Texts, Errors, Logs, Store, Caches, Resilience, Formatting, Telegram, LLM, App, Memory, Analysis, Personas,
Companion, Menu, Web, Console, Inbox, Wiring, Main.

Vocabulary:
    chat, topic   a Telegram chat; a forum topic in it (thread_id, 0 where there is none)
    addressed     meant for the bot: a private chat, a reply, a mention, its name, a command
    turn          what people said to the bot in one topic since its last answer, answered by one reply
    unprompted    said although nobody addressed the bot
    policy        when the bot speaks in a group: always, smart, mention, never
    backlog       messages that came while the bot was down for longer than BACKLOG_MINUTES
    inbox         updates taken from Telegram and not yet dealt with
    gate          the one door for calls to Telegram: pacing, retries, chats that are gone
    draft         a preview of a reply that is still being written (sendMessageDraft)
    lang          "uk", "ru" or "en"
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import bisect
import contextlib
import contextvars
import dataclasses
import difflib
import functools
import gc
import hashlib
import hmac
import io
import itertools
import json
import logging
import logging.handlers
import mimetypes
import os
import random
import re
import secrets
import signal
import sqlite3
import sys
import threading
import time
import tomllib
import zoneinfo
from collections import Counter, defaultdict, deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import IO, Any, ClassVar, Generic, Literal, NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
import aiosqlite
import pydantic
import yarl
from cachetools import TTLCache
from dotenv import dotenv_values

try:  # twice as fast where it is installed, and not needed where it is not
    import orjson

    def json_loads(data: bytes | str) -> Any:
        return orjson.loads(data)

    def json_bytes(value: Any) -> bytes:
        return orjson.dumps(value)
except ImportError:

    def json_loads(data: bytes | str) -> Any:
        return json.loads(data)

    def json_bytes(value: Any) -> bytes:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_dumps(value: Any) -> str:
    return json_bytes(value).decode()


VERSION = "0.1.0"
HERE = Path(__file__).resolve().parent
LANGS = ("uk", "ru", "en")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


# aiogram builds a validator for each of its 500 types while it is imported: 100 MB and 2 s, most of it never used.
# Here building waits until a type is first used. What aiogram passes to model_rebuild (the names its annotations
# mean) is kept for then. SLIM_AIOGRAM=off imports it as it comes; a test builds every type that Okun uses.
_AIOGRAM_NAMES: dict[str, Any] = {}
_model_rebuild = pydantic.BaseModel.__dict__["model_rebuild"].__func__


def _rebuild_later(cls: type[pydantic.BaseModel], *, _types_namespace: Any = None, **_options: Any) -> bool | None:
    if _types_namespace is None:  # not aiogram's own loop: somebody needs this type now
        return bool(_model_rebuild(cls, _types_namespace=_AIOGRAM_NAMES or None, **_options))
    _AIOGRAM_NAMES.update(_types_namespace)
    return None


def read_dotenv() -> dict[str, str | None]:
    """The settings in .env, here or else beside bot.py. Windows editors save it as UTF-16 or with a byte order mark."""
    for path in (Path(".env"), HERE / ".env"):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
            return dotenv_values(stream=io.StringIO(data.decode("utf-16" if utf16 else "utf-8-sig", "replace")))
    return {}


def _slim_wanted() -> bool:
    wish = os.environ.get("SLIM_AIOGRAM") or read_dotenv().get("SLIM_AIOGRAM") or "on"
    return wish.strip().lower() not in ("off", "0", "no", "false")


if _slim_wanted() and "aiogram" not in sys.modules:
    pydantic.BaseModel.model_rebuild = classmethod(_rebuild_later)  # type: ignore[assignment, arg-type]
    from aiogram.client.context_controller import BotContextController
    from aiogram.methods.base import Response

    pydantic.BaseModel.model_rebuild = classmethod(_model_rebuild)  # type: ignore[assignment]
    for _base in (BotContextController, Response):  # of all types and methods; of all answers
        _base.model_rebuild = classmethod(_rebuild_later)  # type: ignore[assignment, arg-type]

from aiogram import Bot  # noqa: E402
from aiogram.client.default import Default  # noqa: E402
from aiogram.client.session.base import BaseSession  # noqa: E402
from aiogram.client.telegram import TelegramAPIServer  # noqa: E402
from aiogram.exceptions import (  # noqa: E402
    ClientDecodeError,
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramNetworkError,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.filters.callback_data import CallbackData  # noqa: E402
from aiogram.methods import (  # noqa: E402
    AnswerCallbackQuery,
    DeleteWebhook,
    GetChatMember,
    GetFile,
    GetMe,
    SendChatAction,
    SetMessageReaction,
    SetMyCommands,
    SetWebhook,
    TelegramMethod,
)
from aiogram.methods.base import Response  # noqa: E402
from aiogram.types import (  # noqa: E402
    BotCommand,
    BotCommandScopeAllGroupChats,
    BotCommandScopeAllPrivateChats,
    BotCommandScopeChat,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InputFile,
    MessageId,
    ReactionTypeEmoji,
    User,
)

# == Settings =========================================================================================================
# Everything that can be set, from the environment and .env. Each setting knows its group, its default, how it is read
# and what it means; a fault is a text key, so that all of them can be told at once and in the reader's language.


class SettingFault(Exception):
    """A value cannot be used. `key` is a text key under `fault.`; units and limits are in `fields`."""

    def __init__(self, key: str, **fields: Any) -> None:
        super().__init__(key)
        self.key, self.fields = key, fields


@dataclass(frozen=True)
class Hours:
    """Hours of the day from `start` up to `end`, over midnight where start > end."""

    start: int
    end: int

    def __contains__(self, hour: int) -> bool:
        if self.start <= self.end:
            return self.start <= hour < self.end
        return hour >= self.start or hour < self.end


def read_text(value: str) -> str:
    return value


def read_token(value: str) -> str:
    if value and not re.fullmatch(r"\d+:[\w-]{3,}", value, re.ASCII):
        raise SettingFault("token")
    return value


def read_number(low: float, high: float, kind: type[int] | type[float]) -> Callable[[str], Any]:
    def read(value: str) -> int | float:
        try:
            number = kind(value)
        except ValueError:
            raise SettingFault("number", low=low, high=high) from None
        if not low <= number <= high:  # false for NaN, too
            raise SettingFault("number", low=low, high=high)
        return number

    return read


def read_count(low: int = 0, high: int = 1_000_000) -> Callable[[str], Any]:
    return read_number(low, high, int)


def read_optional_number(low: float, high: float) -> Callable[[str], Any]:
    number = read_number(low, high, float)
    return lambda value: number(value) if value else None


read_chance = read_number(0.0, 1.0, float)


def read_switch(value: str) -> bool:
    word = value.lower()
    if word in ("on", "1", "yes", "true"):
        return True
    if word in ("off", "0", "no", "false"):
        return False
    raise SettingFault("switch")


def read_ids(value: str) -> frozenset[int]:
    try:
        return frozenset(int(part) for part in re.split(r"[,\s]+", value) if part)
    except ValueError:
        raise SettingFault("ids") from None


def read_names(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def read_choice(*choices: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        for choice in choices:
            if choice.lower() == value.lower():
                return choice
        raise SettingFault("choice", choices=", ".join(choices))

    return read


def read_language(value: str) -> str:
    """uk, ru or en. gettext uses the same name on desktops (LANGUAGE=en_US:en): its lists are understood, too."""
    first = value.split(":")[0].split(".")[0]
    base = first.split("_")[0].lower()
    if base in LANGS:
        return base
    if "_" in first or ":" in value:  # gettext's, in a language that is not ours
        return LANGS[0]
    raise SettingFault("choice", choices=", ".join(LANGS))


def read_url(*schemes: str) -> Callable[[str], str]:
    def read(value: str) -> str:
        if not value:
            return ""
        try:
            parts = urlsplit(value)
            _ = parts.port  # a port out of range is a ValueError
        except ValueError:
            raise SettingFault("url", schemes=", ".join(schemes)) from None
        if parts.scheme not in schemes or not parts.hostname:
            raise SettingFault("url", schemes=", ".join(schemes))
        return value.rstrip("/")

    return read


read_http = read_url("http", "https")


def read_timezone(value: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(value)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise SettingFault("timezone") from None


def read_hours(value: str) -> Hours | None:
    if not value:
        return None
    match = re.fullmatch(r"(\d{1,2})\s*-\s*(\d{1,2})", value)
    if not match or max(int(match[1]), int(match[2])) > 24:
        raise SettingFault("hours")
    return Hours(int(match[1]) % 24, int(match[2]))


def read_secret(value: str) -> str:
    if value and not re.fullmatch(r"[A-Za-z0-9_-]{1,256}", value):
        raise SettingFault("secret")
    return value


def setting(group: str, default: str, read: Callable[[str], Any], meaning: str) -> Any:
    """A field of Settings. `default` is text, as it would stand in .env; `meaning` is its line in .env.example."""
    return field(metadata={"group": group, "default": default, "read": read, "meaning": meaning})


@dataclass(frozen=True)
class Settings:
    """All settings, each under its name in the environment in lower case."""

    telegram_bot_token: str = setting("ESSENTIAL", "", read_token, "the bot's token, from @BotFather; needed")
    gemini_api_key: str = setting("ESSENTIAL", "", read_text, "key for Gemini, from https://aistudio.google.com/apikey")
    admin_ids: frozenset[int] = setting("ESSENTIAL", "", read_ids, "Telegram ids of the owners, comma-separated")
    db_path: str = setting("ESSENTIAL", "okun.db", read_text, "the SQLite file")
    timezone: zoneinfo.ZoneInfo = setting("ESSENTIAL", "Europe/Kyiv", read_timezone, "for quiet hours and dates")
    language: str = setting("ESSENTIAL", "uk", read_language, "uk, ru or en: for users whose own we lack")

    allowed_chats: frozenset[int] = setting("ACCESS", "", read_ids, "ids of the only chats served; empty: all")
    allowed_users: frozenset[int] = setting("ACCESS", "", read_ids, "ids of the only users served; empty: all")

    bot_names: tuple[str, ...] = setting("BEHAVIOR", "окунь,okun", read_names, "words it answers to in groups")
    group_policy: str = setting(
        "BEHAVIOR", "smart", read_choice("always", "smart", "mention", "never"), "always, smart, mention or never"
    )
    random_reply_chance: float = setting("BEHAVIOR", "0.02", read_chance, "smart: chance to join in on any message")
    smart_reply_chance: float = setting(
        "BEHAVIOR", "0.15", read_chance, "smart: chance on open questions and its topics"
    )
    reaction_chance: float = setting("BEHAVIOR", "0.05", read_chance, "chance of an emoji reaction instead of words")
    unprompted_per_hour: int = setting("BEHAVIOR", "4", read_count(), "unasked messages an hour and chat; 0: no limit")
    quiet_hours: Hours | None = setting("BEHAVIOR", "23-8", read_hours, "hours without unasked messages; empty: none")
    spontaneous: bool = setting("BEHAVIOR", "off", read_switch, "may break a long silence in a group, once a day")
    backlog_minutes: int = setting("BEHAVIOR", "10", read_count(), "older messages are read, not answered; 0: no limit")
    rich_messages: bool = setting("BEHAVIOR", "off", read_switch, "tables, headings, formulas as rich messages")

    gemini_api_url: str = setting(
        "LLM", "https://generativelanguage.googleapis.com", read_http, "where the Gemini API is"
    )
    gemini_model: tuple[str, ...] = setting(
        "LLM", "gemini-3.8-flash,gemini-3.5-flash-lite,gemini-2.5-flash-lite", read_names, "models for talk, best first"
    )
    gemini_temperature: float | None = setting(
        "LLM", "", read_optional_number(0, 2), "0 to 2, only sent to models that take it (2.x)"
    )
    gemini_max_output_tokens: int = setting("LLM", "2048", read_count(), "longest answer in tokens; 0: the model's own")
    thinking_level: str = setting(
        "LLM", "low", read_choice("minimal", "low", "medium", "high"), "minimal, low, medium or high"
    )
    openai_api_url: str = setting("LLM", "", read_http, "an OpenAI-compatible API, as https://host/v1")
    openai_api_key: str = setting("LLM", "", read_text, "its key, if it wants one")
    openai_model: tuple[str, ...] = setting("LLM", "", read_names, "its models, best first")
    llm_timeout: int = setting("LLM", "90", read_count(1, 600), "seconds for one answer, all tries together")

    context_messages: int = setting(
        "CONTEXT", "30", read_count(1, 500), "messages of the topic sent with each question"
    )
    context_tokens: int = setting("CONTEXT", "8000", read_count(500, 500_000), "tokens of context, at most")

    max_parallel_updates: int = setting("LIMITS", "75", read_count(1, 1000), "updates at work at once")
    max_parallel_llm: int = setting("LIMITS", "32", read_count(1, 1000), "calls to language models at once")
    sends_per_second: int = setting("LIMITS", "30", read_count(), "messages a second, all chats; 0: no pacing at all")

    telegram_api_url: str = setting("OPS", "https://api.telegram.org", read_http, "a Bot API server of your own")
    proxy_url: str = setting(
        "OPS", "", read_url("http", "https", "socks4", "socks5"), "http://… or socks5://… for all outgoing calls"
    )
    webhook_url: str = setting(
        "OPS", "", read_url("https", "http"), "public address for a webhook; empty: long polling"
    )
    webhook_secret: str = setting("OPS", "", read_secret, "its secret token; empty: a new one at each start")
    web_host: str = setting("OPS", "127.0.0.1", read_text, "address of the web server")
    web_port: int = setting("OPS", "8080", read_count(0, 65535), "its port; 0: off")
    log_level: str = setting(
        "OPS", "INFO", read_choice("DEBUG", "INFO", "WARNING", "ERROR"), "DEBUG, INFO, WARNING or ERROR"
    )
    log_file: str = setting("OPS", "", read_text, "also write the log here: JSON lines, 10 MB × 5")
    log_format: str = setting("OPS", "auto", read_choice("auto", "text", "json"), "auto: text on a terminal, else json")
    backup_dir: str = setting("OPS", "backups", read_text, "where copies of the database go")
    slim_aiogram: bool = setting("OPS", "on", read_switch, "saves 100 MB; off if a new aiogram misbehaves")


SETTINGS = {f.name.upper(): f for f in dataclasses.fields(Settings)}
ALIASES = {"ADMIN_ID": "ADMIN_IDS"}
EMPTY_IS_NONE = {"QUIET_HOURS", "BOT_NAMES"}  # `NAME=` switches these off; elsewhere it means the default


class Fault(NamedTuple):
    """What is wrong with one setting: its name, a text key under `fault.`, and the fields of that text."""

    name: str
    key: str
    fields: Mapping[str, Any]


def read_settings(environ: Mapping[str, str], dotenv: Mapping[str, str | None]) -> tuple[Settings | None, list[Fault]]:
    """Read every setting; the environment goes before .env. Returns (settings or None, all faults)."""
    faults = [unknown_name(name) for name in dotenv if name not in SETTINGS and name not in ALIASES]
    given = {ALIASES.get(name, name): value for source in (dotenv, environ) for name, value in source.items()}
    if dotenv.get("LANGUAGE") and re.search("[_:.]", given["LANGUAGE"] or ""):  # gettext's, not meant for us
        given["LANGUAGE"] = dotenv["LANGUAGE"]
    values: dict[str, Any] = {}
    for name, spec in SETTINGS.items():
        value = (given.get(name) or "").strip()
        if not value and not (name in EMPTY_IS_NONE and name in given):
            value = spec.metadata["default"]
        try:
            values[spec.name] = spec.metadata["read"](value)
        except SettingFault as fault:
            faults.append(Fault(name, fault.key, {**fault.fields, "value": mask(name, value)}))
    return (None, faults) if faults else (Settings(**values), [])


def unknown_name(name: str) -> Fault:
    close = difflib.get_close_matches(name.upper(), SETTINGS, n=1, cutoff=0.6)
    return Fault(name, "unknown_close", {"close": close[0]}) if close else Fault(name, "unknown", {})


def mask(name: str, value: str) -> str:
    """The value as it may be shown: nothing of a secret."""
    return "…" if re.search(r"TOKEN$|KEY$|SECRET$|PROXY", name) and value else value


# == Texts ============================================================================================================
# Every word a user reads, in three languages, from locales/*.toml: dotted keys, {fields}, and word lists beside them.


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """("a.b", value) for each leaf of nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plural(lang: str, n: int, forms: Sequence[str]) -> str:
    """The form of a noun after a number: en (one, many), uk and ru (one, few, many), by CLDR's rules for integers."""
    if lang == "en":
        return forms[0] if n == 1 else forms[-1]
    if n % 10 == 1 and n % 100 != 11:
        return forms[0]
    return forms[1] if 2 <= n % 10 <= 4 and not 12 <= n % 100 <= 14 else forms[2]


class Texts:
    """The locales. `texts(lang, key, **fields)` is a text; `words(lang, key)` is a list or a table as it stands."""

    def __init__(self, folder: Path) -> None:
        self._tables = {lang: tomllib.loads((folder / f"{lang}.toml").read_text("utf-8")) for lang in LANGS}
        self._flat = {lang: dict(flatten(table["text"])) for lang, table in self._tables.items()}

    def __call__(self, lang: str, key: str, **fields: Any) -> str:
        text: str = self._flat[lang][key]
        return text.format(**fields) if fields else text

    def keys(self, lang: str) -> Mapping[str, Any]:
        return self._flat[lang]

    def words(self, lang: str, *path: str) -> Any:
        found: Any = self._tables[lang]
        for name in path:
            found = found[name]
        return found

    def span(self, lang: str, seconds: float) -> str:
        """A duration in words, in its largest unit that does not blur it: "2 години"."""
        sizes = {"days": 86400, "hours": 3600, "minutes": 60, "seconds": 1}
        # "90 minutes" rather than "2 hours", but "1 day"
        fits = (unit for unit, size in sizes.items() if seconds >= 2 * size or round(seconds) == size)
        unit = next(fits, "seconds")
        n = max(1, round(seconds / sizes[unit]))
        return f"{n} {plural(lang, n, self._flat[lang]['span.' + unit])}"


def pick_lang(code: str | None, default: str) -> str:
    """One of our languages for an IETF language tag, else the default."""
    base = (code or "").split("-")[0].lower()
    return base if base in LANGS else default


# == Errors ===========================================================================================================
# What can go wrong, one line each. A BotError carries a text key for the user; nothing of it is shown otherwise.


class BotError(Exception):
    """Something the user should be told: `key` is a text key, `fields` its fields."""

    def __init__(self, key: str, **fields: Any) -> None:
        super().__init__(key)
        self.key, self.fields = key, fields


class Unavailable(BotError):
    """An outside service does not answer now; the same may work later."""


class ChatGone(Exception):
    """Nobody is there to read: blocked, kicked, deactivated, or the topic is deleted. Whatever was meant goes."""


class NotConnected(TelegramNetworkError):
    """No connection could be made: the call was certainly not executed."""


class ConnectionBroke(TelegramNetworkError):
    """The connection ended before any byte of an answer: mostly a stale keep-alive, the call was hardly executed."""


class AnswerLost(TelegramNetworkError):
    """A time-out or a damaged answer: the call may have been executed, so a send must not be repeated."""


class DatabaseTooNew(Exception):
    """The file was written by a later version of Okun."""


# == Logs =============================================================================================================
# JSON lines (or coloured text on a terminal) with the request id of the update at work. Secrets are cut out of every
# line at the last moment, wherever they came from.

log = logging.getLogger("okun")
request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="-")
SLOW_QUERY_S, SLOW_OPERATION_S = 0.1, 1.0


@dataclass
class Tally:
    """What one update cost: database reads and their time; filled while it is handled, logged when it is done."""

    reads: int = 0
    read_ms: float = 0.0


tally: contextvars.ContextVar[Tally | None] = contextvars.ContextVar("tally", default=None)

COLOURS = {"DEBUG": "\x1b[2m", "INFO": "\x1b[36m", "WARNING": "\x1b[33m", "ERROR": "\x1b[31m", "CRITICAL": "\x1b[35m"}


class Redactor:
    """Replaces secrets in a finished log line."""

    def __init__(self, secrets_: Iterable[str]) -> None:
        spellings = {form for secret in secrets_ if len(secret) > 5 for form in (secret, json.dumps(secret)[1:-1])}
        known = [re.escape(spelling) for spelling in sorted(spellings, key=len, reverse=True)]
        # bot tokens in URLs and Google keys are cut out even where they are not ours
        self._pattern = re.compile("|".join([*known, r"\d{6,}:[\w-]{30,}", r"AIza[\w-]{30,}"]))

    def __call__(self, line: str) -> str:
        return self._pattern.sub("[secret]", line)


class TextFormatter(logging.Formatter):
    """Coloured lines for people."""

    def __init__(self, redact: Redactor, *, colour: bool) -> None:
        super().__init__()
        self._redact, self._colour = redact, colour

    def format(self, record: logging.LogRecord) -> str:
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname:7} [{request_id.get()}] {record.getMessage()}"
        more = {key: value for key, value in record.__dict__.items() if key in LOG_FIELDS}
        line += "".join(f" {key}={value}" for key, value in more.items())
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        line = self._redact(line)
        return f"{COLOURS[record.levelname]}{line}\x1b[0m" if self._colour else line


LOG_FIELDS = ("ms", "reads", "read_ms", "model", "chat_id", "kind", "attempt", "wait_s", "operation", "count")


def json_formatter(redact: Redactor) -> logging.Formatter:
    try:  # only when JSON lines are wanted; the first is the faster one
        from pythonjsonlogger.orjson import OrjsonFormatter as JsonFormatter
    except ImportError:
        from pythonjsonlogger.json import JsonFormatter  # type: ignore[assignment]

    class Formatter(JsonFormatter):
        def add_fields(self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]) -> None:
            super().add_fields(log_data, record, message_dict)
            log_data["request_id"] = request_id.get()

        def format(self, record: logging.LogRecord) -> str:
            return redact(super().format(record))

    return Formatter(
        "{asctime}{levelname}{name}{message}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger"},
    )


def setup_logs(settings: Settings) -> None:
    """Configure the root logger as LOG_LEVEL, LOG_FILE and LOG_FORMAT say."""
    redact = Redactor(secrets_of(settings))
    stream = logging.StreamHandler()
    as_text = settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty())
    stream.setFormatter(TextFormatter(redact, colour=sys.stderr.isatty()) if as_text else json_formatter(redact))
    handlers: list[logging.Handler] = [stream]
    if settings.log_file:
        file = logging.handlers.RotatingFileHandler(
            settings.log_file, maxBytes=10_000_000, backupCount=5, encoding="utf-8"
        )
        file.setFormatter(json_formatter(redact))
        handlers.append(file)
    # what no line of ours shows need not be found out for each
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    logging.basicConfig(level=settings.log_level, handlers=handlers, force=True)
    for noisy in ("aiosqlite", "aiogram", "asyncio", "aiohttp.access", "telegramify_markdown"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def secrets_of(settings: Settings) -> list[str]:
    names = ("telegram_bot_token", "gemini_api_key", "openai_api_key", "webhook_secret", "proxy_url")
    return [value for name in names if (value := getattr(settings, name))]


@contextlib.contextmanager
def operation(name: str, **fields: Any) -> Iterator[None]:
    """Log how long the block took: a warning when it was over a second, else only when debugging."""
    started = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - started
        level = logging.WARNING if took > SLOW_OPERATION_S else logging.DEBUG
        if log.isEnabledFor(level):
            text = "slow operation" if took > SLOW_OPERATION_S else "operation"
            log.log(level, text, extra={"operation": name, "ms": round(took * 1000, 1), **fields})


# == Store ============================================================================================================
# One writing connection, one reader that cannot write. Hot small writes share transactions: whoever waits at that
# moment is committed together, in one thread hop. What must be atomic takes `async with db.tx() as tx`.

SCHEMA_VERSION = 1
# version -> script that takes a database from it to the next version
MIGRATIONS: dict[int, str] = {}
BUSY_LIMIT_S = 30.0
PRAGMAS = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",
    "PRAGMA foreign_keys = ON",
    "PRAGMA busy_timeout = 5000",
    "PRAGMA temp_store = MEMORY",
)


@dataclass(frozen=True)
class Hot:
    """A statement for the shared transactions. Lower ranks go first, so that parents precede their children."""

    rank: int
    sql: str


class Submission(NamedTuple):
    writes: Mapping[Hot, Sequence[tuple[Any, ...]]]
    done: asyncio.Future[None]


class Queries:
    """What Reader and Tx share: fetching all rows, counted and timed."""

    def __init__(self) -> None:
        self.reads = 0

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> list[sqlite3.Row]:
        raise NotImplementedError

    async def all(self, sql: str, *args: Any) -> list[sqlite3.Row]:
        started = time.perf_counter()
        rows = await self._fetch(sql, args)
        took = time.perf_counter() - started
        self.reads += 1
        if cost := tally.get():
            cost.reads += 1
            cost.read_ms += took * 1000
        if took > SLOW_QUERY_S:
            log.warning("slow query", extra={"operation": " ".join(sql.split())[:80], "ms": round(took * 1000, 1)})
        return rows

    async def one(self, sql: str, *args: Any) -> sqlite3.Row | None:
        rows = await self.all(sql, *args)
        return rows[0] if rows else None


class Reader(Queries):
    """Queries outside of a transaction, always fetched whole: a half-read cursor would freeze its snapshot.

    Those that wait at one moment go to the thread together: a hop costs more than most of them.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__()
        self._connection = connection
        self._waiting: list[tuple[str, tuple[Any, ...], asyncio.Future[list[sqlite3.Row]]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> list[sqlite3.Row]:
        result: asyncio.Future[list[sqlite3.Row]] = asyncio.get_running_loop().create_future()
        self._waiting.append((sql, args, result))
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())  # not the asker itself: an asker may be cancelled
        return await result

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            queries = [(sql, args) for sql, args, _ in batch]
            results: Sequence[list[sqlite3.Row] | Exception]
            try:
                results = await run_in(self._connection, fetch_rows, queries)
            except ValueError as error:  # closed meanwhile
                results = [error] * len(batch)
            for (_, _, result), rows in zip(batch, results, strict=True):
                settle(result, rows)


def fetch_rows(
    connection: sqlite3.Connection, queries: Sequence[tuple[str, tuple[Any, ...]]]
) -> list[list[sqlite3.Row] | Exception]:
    """The rows, or the error, of each query; runs in the reader's thread."""
    results: list[list[sqlite3.Row] | Exception] = []
    for sql, args in queries:
        try:
            results.append(connection.execute(sql, args).fetchall())
        except Exception as error:  # of sqlite3, or of a value that cannot be bound: whoever asked gets it
            results.append(error)
    return results


class Tx(Queries):
    """Queries inside the transaction that `Db.tx` opened."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        super().__init__()
        self._connection = connection

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> list[sqlite3.Row]:
        return list(await self._connection.execute_fetchall(sql, args))

    async def run(self, sql: str, *args: Any) -> int:
        """Execute a statement; returns the number of rows it changed."""
        cursor = await self._connection.execute(sql, args)
        return cursor.rowcount


class Db:
    """The database file. Errors of sqlite3 pass as they are, SQLITE_BUSY after 30 s of tries."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._waiting: list[Submission] = []
        self._flusher: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, create or migrate the schema. Raises DatabaseTooNew, sqlite3.DatabaseError, OSError."""
        self._lock = asyncio.Lock()
        self._writer = await connect(self.path)
        self.reader = Reader(await connect(self.path, query_only=True))

    async def close(self) -> None:
        if self._flusher:
            await asyncio.wait([self._flusher])
        with contextlib.suppress(sqlite3.Error):
            await self._writer.execute("PRAGMA optimize")
        await self.reader._connection.close()
        await self._writer.close()

    async def write(self, writes: Mapping[Hot, Sequence[tuple[Any, ...]]]) -> None:
        """Commit these rows together, sharing a transaction with whoever else writes now. One thread hop a batch."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(Submission(writes, done))
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())
        await done

    async def _flush(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # whoever is ready in this turn of the loop goes along
            async with self._lock:
                batch, self._waiting = self._waiting, []
                await self._commit(batch)

    async def _commit(self, batch: list[Submission]) -> None:
        try:
            await self._attempt(merge_writes(batch))
        except Exception as error:
            stuck = isinstance(error, sqlite3.OperationalError) and is_busy(error)
            for submission in batch:
                if stuck or len(batch) == 1:
                    settle(submission.done, error)
                else:  # one bad row must not take the others with it
                    await self._commit([submission])
            return
        for submission in batch:
            settle(submission.done, None)

    async def _attempt(self, merged: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
        deadline, pause = time.monotonic() + BUSY_LIMIT_S, 0.05
        while True:
            try:
                await run_in(self._writer, commit_rows, merged)
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                log.warning("database busy", extra={"wait_s": round(pause, 2)})
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 2, 2.0)

    @asynccontextmanager
    async def tx(self) -> AsyncIterator[Tx]:
        """BEGIN IMMEDIATE … COMMIT. Await nothing in it but its own queries; it never nests."""
        async with self._lock:
            try:
                await to_the_end(self._begin())
                yield Tx(self._writer)
                await to_the_end(self._writer.execute("COMMIT"))
            finally:
                # cancelled in BEGIN it would stay open, cancelled in COMMIT it is committed
                if self._writer.in_transaction:
                    await to_the_end(self._writer.execute("ROLLBACK"))

    async def _begin(self) -> None:
        deadline, pause = time.monotonic() + BUSY_LIMIT_S, 0.05
        while True:
            try:
                await self._writer.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error) or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)


async def run_in(connection: aiosqlite.Connection, work: Callable[..., T], *args: Any) -> T:
    """Run `work(sqlite3 connection, *args)` in a connection's thread: its public methods are one hop a statement."""
    execute: Any = connection._execute
    return await execute(work, connection._conn, *args)  # type: ignore[no-any-return]


def merge_writes(batch: Iterable[Submission]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    """One list of rows per statement, parents first."""
    rows: dict[Hot, list[tuple[Any, ...]]] = defaultdict(list)
    for submission in batch:
        for hot, more in submission.writes.items():
            rows[hot].extend(more)
    return [(hot.sql, rows[hot]) for hot in sorted(rows, key=lambda hot: hot.rank)]


def commit_rows(connection: sqlite3.Connection, merged: list[tuple[str, list[tuple[Any, ...]]]]) -> None:
    """One transaction; runs in the writer's thread."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        for sql, rows in merged:
            connection.executemany(sql, rows)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def settle(future: asyncio.Future[T], result: T | BaseException) -> None:
    if future.done():  # whoever waited was cancelled
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
    else:
        future.set_result(result)


async def to_the_end(work: Awaitable[T]) -> T:
    """Await work that a cancellation must not cut in half; however often it comes, it is passed on when all is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled:
        raise cancelled
    return task.result()


def is_busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


READER_CACHE, WRITER_CACHE = "PRAGMA cache_size = -6000", "PRAGMA cache_size = -2000"  # 8 MB in all


async def connect(path: str, *, query_only: bool = False) -> aiosqlite.Connection:
    connection = await aiosqlite.connect(path, isolation_level=None)
    connection.row_factory = sqlite3.Row
    try:
        for pragma in (*PRAGMAS, READER_CACHE if query_only else WRITER_CACHE):
            await connection.execute(pragma)
        if query_only:
            await connection.execute("PRAGMA query_only = ON")
    except BaseException:
        await connection.close()
        raise
    return connection


def prepare_database(path: str, backup_dir: Path) -> None:
    """Create the schema in a new file, migrate an old one (a verified copy first). Runs before any connection.

    Raises DatabaseTooNew; sqlite3.DatabaseError where the file is damaged or no database.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA_VERSION:
            raise DatabaseTooNew(f"{path} has schema {version}, this Okun knows {SCHEMA_VERSION}")
        if version == 0:
            connection.execute("PRAGMA journal_mode = WAL")
            run_script(connection, (HERE / "schema.sql").read_text("utf-8"))
        while 0 < version < SCHEMA_VERSION:
            copy_database(connection, backup_dir / f"before-{version + 1}-{int(time.time())}.db")
            run_script(connection, f"{MIGRATIONS[version]};\nPRAGMA user_version = {version + 1};")
            version += 1
            log.info("database migrated", extra={"count": version})


def run_script(connection: sqlite3.Connection, script: str) -> None:
    """Run a script of several statements in one transaction."""
    try:
        connection.executescript(f"BEGIN IMMEDIATE;\n{script}\nCOMMIT;")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def copy_database(connection: sqlite3.Connection, target: Path) -> None:
    """A complete copy, verified. Raises sqlite3.DatabaseError if the copy is not sound."""
    target.parent.mkdir(parents=True, exist_ok=True)
    connection.execute("VACUUM INTO ?", (str(target),))
    with contextlib.closing(sqlite3.connect(target)) as copy:
        verdict = copy.execute("PRAGMA integrity_check").fetchone()[0]
    if verdict != "ok":
        raise sqlite3.DatabaseError(f"the copy {target} is damaged: {verdict}")


# == Caches ===========================================================================================================
# Bounded, with a time to live; several asking for one missing key at once cause one load. Each counts its hits.


@dataclass
class CacheStats:
    hits: int = 0
    misses: int = 0
    evictions: int = 0


class _Bounded(TTLCache[K, T]):
    """A TTLCache that counts what it had to push out."""

    def __init__(self, size: int, ttl_s: float, clock: Callable[[], float], stats: CacheStats) -> None:
        super().__init__(size, ttl_s, timer=clock)
        self._stats = stats

    def popitem(self) -> tuple[K, T]:
        self._stats.evictions += 1
        return super().popitem()


class Cache(Generic[K, T]):
    """`await get(key, load)` or `peek(key)`; forgotten by key, or by a part of a tuple key (a chat, a user)."""

    def __init__(self, size: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.stats = CacheStats()
        self._items: _Bounded[K, T] = _Bounded(size, ttl_s, clock, self.stats)
        self._loading: dict[K, asyncio.Future[T]] = {}

    def __len__(self) -> int:
        return len(self._items)

    def peek(self, key: K) -> T | None:
        """The value if it is there now. Counts as a hit or a miss."""
        value = self._items.get(key)
        if value is None:
            self.stats.misses += 1
        else:
            self.stats.hits += 1
        return value

    def put(self, key: K, value: T) -> None:
        self._items[key] = value

    async def get(self, key: K, load: Callable[[], Awaitable[T]]) -> T:
        """The cached value, else what `load` returns; whoever asks meanwhile waits for the same load."""
        if (value := self.peek(key)) is not None:
            return value
        if (flight := self._loading.get(key)) is None:
            flight = self._loading[key] = asyncio.ensure_future(self._load(key, load))
        return await asyncio.shield(flight)

    async def _load(self, key: K, load: Callable[[], Awaitable[T]]) -> T:
        try:
            value = await load()
            if self._loading.get(key) is asyncio.current_task():  # forgotten while loading: it is stale already
                self._items[key] = value
            return value
        finally:
            if self._loading.get(key) is asyncio.current_task():
                del self._loading[key]

    def forget(self, key: K) -> None:
        self._items.pop(key, None)
        self._loading.pop(key, None)

    def forget_all(self, part: Hashable) -> None:
        """Forget every tuple key that has this part."""
        for key in [key for key in (*self._items, *self._loading) if isinstance(key, tuple) and part in key]:
            self.forget(key)


class Once(Generic[T]):
    """A thing made on first use, by one builder however many ask; a failed build is tried again by the next."""

    def __init__(self, build: Callable[[], Awaitable[T]], close: Callable[[T], Awaitable[None]] | None = None) -> None:
        self._build, self._close = build, close
        self._lock = asyncio.Lock()
        self._value: T | None = None

    async def __call__(self) -> T:
        if self._value is None:
            async with self._lock:
                if self._value is None:
                    self._value = await self._build()
        return self._value

    async def close(self) -> None:
        value, self._value = self._value, None
        if value is not None and self._close:
            await self._close(value)


# == Resilience =======================================================================================================
# Clock and dice that tests can replace, locks that forget, a circuit breaker, the pauses between tries.


class Clock:
    """Time as the program sees it. `now` is the epoch in seconds."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class KeyedLocks:
    """A lock per key that is forgotten when nobody holds or awaits it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        return len(self._locks)

    @asynccontextmanager
    async def __call__(self, key: Hashable) -> AsyncIterator[None]:
        lock, users = self._locks.get(key, (asyncio.Lock(), 0))
        self._locks[key] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[key]
            if users == 1:
                del self._locks[key]
            else:
                self._locks[key] = lock, users - 1


class Slots:
    """At most `count` at work. Whoever waits for something outside steps out meanwhile, so that others can work."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)

    async def __aenter__(self) -> None:
        await self._free.acquire()
        at_work.set(self)

    async def __aexit__(self, *exc: object) -> None:
        at_work.set(None)
        self._free.release()


# the slots that the work at hand holds a place of
at_work: contextvars.ContextVar[Slots | None] = contextvars.ContextVar("at_work", default=None)


@asynccontextmanager
async def stepped_out() -> AsyncIterator[None]:
    """Give the place up for the block. It is taken again even when cancelled: whoever entered will leave."""
    slots = at_work.get()
    if slots is None:
        yield
        return
    await slots.__aexit__()
    try:
        yield
    finally:
        if slots._free.locked():
            await to_the_end(slots._free.acquire())
        else:  # at once
            await slots._free.acquire()
        at_work.set(slots)


class Breaker:
    """Closed until `limit` failures within `window_s`; then open for `open_s`; then one probe decides.

    `allow()` before a call, then `succeeded()` or `failed()`. Times are of the given monotonic clock, in seconds.
    """

    def __init__(self, clock: Clock, limit: int = 5, window_s: float = 60.0, open_s: float = 30.0) -> None:
        self._clock, self._window_s, self._open_s = clock, window_s, open_s
        self._failures: deque[float] = deque(maxlen=limit)
        self._opened_at: float | None = None
        self._probing = False

    @property
    def state(self) -> Literal["closed", "open", "half-open"]:
        if self._opened_at is None:
            return "closed"
        return "half-open" if self._clock.monotonic() - self._opened_at >= self._open_s else "open"

    def allow(self) -> bool:
        state = self.state
        if state == "half-open" and not self._probing:
            self._probing = True
            return True
        return state == "closed"

    def succeeded(self) -> None:
        self._failures.clear()
        self._opened_at, self._probing = None, False

    def failed(self) -> None:
        now = self._clock.monotonic()
        self._failures.append(now)
        full = len(self._failures) == self._failures.maxlen and now - self._failures[0] <= self._window_s
        if self._probing or full:
            self._opened_at, self._probing = now, False

    def abandoned(self) -> None:
        """The call ended without a verdict (cancelled): somebody else may probe."""
        self._probing = False


def backoff(dice: random.Random, attempt: int, first_s: float = 0.5, most_s: float = 30.0) -> float:
    """Seconds before try number `attempt` (from 1): exponential with full jitter, never less than a tenth."""
    ceiling = min(most_s, first_s * 2 ** (attempt - 1))
    return dice.uniform(ceiling / 10, ceiling)


class Window:
    """At most `count` events in any `period_s` seconds; `take` books the next free moment."""

    def __init__(self, count: int, period_s: float) -> None:
        self._times: deque[float] = deque(maxlen=count)
        self._period_s = period_s

    def free(self, now: float) -> float:
        """The earliest time for one more event."""
        if len(self._times) < (self._times.maxlen or 0):
            return now
        return max(now, self._times[0] + self._period_s)

    def take(self, at: float) -> None:
        self._times.append(at)

    def idle(self, now: float) -> bool:
        return not self._times or self._times[-1] <= now - self._period_s


