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


# == Formatting =======================================================================================================
# From a model's Markdown to what Telegram shows: plain text with entities, in parts that fit. Never parse_mode:
# a model's Markdown is not Telegram's, and one wrong sign would refuse the whole message.

MAX_TEXT = 4096  # UTF-16 units of a message, https://core.telegram.org/bots/api#sendmessage
MAX_ENTITIES = 100
MAX_RICH_BYTES = 32_768
RICH = re.compile(r"^\s*\|.+\|\s*\n\s*\|[ :|-]+\|\s*$|^#{1,6} |\$\$.+?\$\$|\\\[.+?\\\]", re.MULTILINE | re.DOTALL)
# text without any of these is the same before and after Markdown
MARKUP = re.compile(
    r"[*_`~#>|\\<&$]|\]\(|^\s*(?:[-+]|\d+[.)])\s|^\s{4}|^\s*[-=]{2,}\s*$|\n[ \t]*\n[ \t]*\n|[ \t]\n", re.MULTILINE
)
LINK = re.compile(r"(?:https?://[^\s/.]+\.[^\s]+|https?://localhost|tg://)", re.IGNORECASE)
LESS_THAN = "\ue000"  # stands in for "<" while Markdown is read, or it would swallow List<int> as a tag


@dataclass(frozen=True)
class Piece:
    """Text for one message with its entities; offsets and lengths in UTF-16 units."""

    text: str
    entities: tuple[dict[str, Any], ...] = ()


@functools.cache
def markdown_reader() -> Callable[[str], tuple[str, list[Any]]]:
    """The converter, imported when first needed."""
    from telegramify_markdown import convert
    from telegramify_markdown.config import RenderConfig

    config = RenderConfig.isolated()
    for level in range(1, 7):
        setattr(config.markdown_symbol, f"heading_level_{level}", "")
    config.markdown_symbol.unordered_list_item = "•"
    config.markdown_symbol.horizontal_rule = "———"
    return functools.partial(convert, config=config)


def render(markdown: str) -> Piece:
    """A model's Markdown as text with entities; what is no Markdown stays as it was written."""
    if not MARKUP.search(markdown):
        return Piece(markdown.strip())
    text, entities = markdown_reader()(re.sub(r"<(?!https?://|mailto:)", LESS_THAN, markdown))
    back = text.replace(LESS_THAN, "<")
    kept = [entity for found in entities if found.length > 0 and (entity := clean_entity(found.to_dict()))]
    return trim(back, sorted(kept, key=lambda entity: (entity["offset"], -entity["length"])))


def clean_entity(entity: dict[str, Any]) -> dict[str, Any] | None:
    """The entity with its "<" back; None for a link that Telegram would refuse, and all formatting with it."""
    entity = {
        name: value.replace(LESS_THAN, "<") if isinstance(value, str) else value for name, value in entity.items()
    }
    return None if entity["type"] == "text_link" and not LINK.match(entity["url"]) else entity


def utf16_len(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2


def to_units(text: str) -> str:
    """The text with one character per UTF-16 unit, so that Telegram's offsets are indexes."""
    if text.isascii() or max(text) <= "\uffff":
        return text
    data = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(data[i] | data[i + 1] << 8) for i in range(0, len(data), 2))


def from_units(units: str) -> str:
    return units.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def split(piece: Piece, limit: int = MAX_TEXT, most_entities: int = MAX_ENTITIES) -> list[Piece]:
    """Parts of at most `limit` UTF-16 units and `most_entities` entities, cut at a paragraph, a line, a word.

    An entity over a cut goes on in the next part: a code block is closed and opened again.
    """
    if utf16_len(piece.text) <= limit and len(piece.entities) <= most_entities:
        return [piece] if piece.text.strip() else []
    units = to_units(piece.text)
    parts, start = [], 0
    while start < len(units):
        end = cut(units, start, furthest(piece.entities, start, min(start + limit, len(units)), most_entities))
        part = trim(units[start:end], clip(piece.entities, start, end))
        if part.text:
            parts.append(Piece(from_units(part.text), part.entities))
        start = end
    return parts


def furthest(entities: Sequence[Mapping[str, Any]], start: int, end: int, most: int) -> int:
    """The last position up to which no more than `most` entities are met."""
    begun = [max(e["offset"], start) for e in entities if e["offset"] < end and e["offset"] + e["length"] > start]
    begun.sort()
    return end if len(begun) <= most else max(begun[most], start + 1)


def cut(units: str, start: int, end: int) -> int:
    """Where to end the part that begins at `start` and may reach to `end`."""
    if end >= len(units):
        return len(units)
    least = start + (end - start) // 3  # better a ragged line than a tiny message
    for border in ("\n\n", "\n", " "):
        at = units.rfind(border, least, end)
        if at > 0:
            return at + len(border)
    return end - 1 if "\udc00" <= units[end] <= "\udfff" and end - start > 1 else end


def clip(entities: Iterable[Mapping[str, Any]], start: int, end: int) -> list[dict[str, Any]]:
    """The entities within start..end, moved so that `start` is 0."""
    found = []
    for entity in entities:
        low, high = max(entity["offset"], start), min(entity["offset"] + entity["length"], end)
        if low < high:
            found.append({**entity, "offset": low - start, "length": high - low})
    return found


def trim(text: str, entities: Sequence[Mapping[str, Any]]) -> Piece:
    """Without the white space at both ends that Telegram would cut, entities moved along."""
    body = text.rstrip()
    lead = len(body) - len(body.lstrip("\n"))  # indentation of code stays
    body = body[lead:]
    return Piece(body, tuple(clip(entities, lead, lead + utf16_len(body))))


EXCERPT = 80


def excerpt(text: str, most: int = EXCERPT) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1].rstrip() + "…"


# == Telegram =========================================================================================================
# The lean session (JSON bodies, results validated only where somebody reads them) and the gate that every call passes.

MAX_DOWNLOAD = 20 * 1024 * 1024  # https://core.telegram.org/bots/api#getfile
CALL_TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10


class Say(TelegramMethod[MessageId]):
    """sendMessage with the parameters Okun uses, as plain JSON; of the answer only the id is read.

    aiogram's own has 16 parameters whose defaults are made anew for each message, and validates a whole Message:
    that would cost more than the sending.
    """

    __returning__ = MessageId
    __api_method__ = "sendMessage"

    chat_id: int
    text: str
    message_thread_id: int | None = None
    entities: tuple[dict[str, Any], ...] | None = None
    reply_parameters: dict[str, Any] | None = None
    reply_markup: Any = None
    link_preview_options: dict[str, Any] | None = None


class SayRich(TelegramMethod[MessageId]):
    """sendRichMessage, likewise."""

    __returning__ = MessageId
    __api_method__ = "sendRichMessage"

    chat_id: int
    rich_message: dict[str, Any]
    message_thread_id: int | None = None
    reply_parameters: dict[str, Any] | None = None


class Draft(TelegramMethod[bool]):
    """sendMessageDraft, likewise: text of 0 to 4096 units, shown for 30 s."""

    __returning__ = bool
    __api_method__ = "sendMessageDraft"

    chat_id: int
    draft_id: int
    text: str
    message_thread_id: int | None = None
    entities: tuple[dict[str, Any], ...] | None = None
    can_stop: bool = True
    keep_on_stop: bool = True


class Edit(TelegramMethod[Any]):
    """editMessageText, likewise; nobody reads its answer."""

    __returning__ = Any
    __api_method__ = "editMessageText"

    chat_id: int
    message_id: int
    text: str
    reply_markup: Any = None


class GetRawUpdates(TelegramMethod[Any]):
    """getUpdates with the updates as plain dicts, to be stored before they are understood."""

    __returning__ = Any
    __api_method__ = "getUpdates"

    timeout: int
    allowed_updates: list[str]
    offset: int | None = None


def plain(value: Any, files: dict[str, InputFile]) -> Any:
    """A parameter as JSON knows it, without unset fields; a file becomes a reference and is put into `files`.

    pydantic's own dump either keeps every unset field or loses those with a fixed value, such as `type`.
    """
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, pydantic.BaseModel):
        fields = {name: plain(entry, files) for name, entry in value.__dict__.items() if not isinstance(entry, Default)}
        return {name: entry for name, entry in fields.items() if entry is not None}
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return [plain(entry, files) for entry in value]
    if isinstance(value, InputFile):
        name = f"file{len(files)}"
        files[name] = value
        return f"attach://{name}"
    if isinstance(value, datetime):
        return int(value.timestamp())
    raise TypeError(f"cannot send {type(value).__name__}")


@functools.cache
def response_type(method: type[TelegramMethod[Any]]) -> type[Response[Any]]:
    """Kept for good: pydantic holds such generics weakly and would make them anew at each call."""
    return Response[method.__returning__]  # type: ignore[name-defined]


@functools.cache
def call_timeout(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_TIMEOUT_S)


parsed_url = functools.lru_cache(maxsize=256)(functools.partial(yarl.URL, encoded=True))


async def open_http(settings: Settings) -> aiohttp.ClientSession:
    """The one HTTP session, for Telegram and the models."""
    most = max(150, 2 * (settings.max_parallel_updates + settings.max_parallel_llm))
    connector: aiohttp.BaseConnector
    if settings.proxy_url.startswith("socks"):
        from aiohttp_socks import ProxyConnector  # only for those who need it

        connector = ProxyConnector.from_url(settings.proxy_url, limit=most)
    else:
        connector = aiohttp.TCPConnector(limit=most, ttl_dns_cache=600)
    return aiohttp.ClientSession(
        connector=connector,
        proxy=settings.proxy_url if settings.proxy_url.startswith("http") else None,
        cookie_jar=aiohttp.DummyCookieJar(),
        read_bufsize=2**22,  # an inline picture is one line of megabytes
        timeout=call_timeout(CALL_TIMEOUT_S),
    )


class LeanSession(BaseSession):
    """aiogram's session without its costs: form data only where there is a file, no needless validation."""

    def __init__(self, base_url: str, http: Once[aiohttp.ClientSession]) -> None:
        super().__init__(api=TelegramAPIServer.from_base(base_url), json_loads=json_loads, json_dumps=json_dumps)
        self._http = http

    async def close(self) -> None:
        """The HTTP session is App's to close."""

    async def make_request(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None) -> Any:
        """Call Telegram. Raises NotConnected, ConnectionBroke, AnswerLost, or what Telegram answered."""
        status, raw = await self._post(bot, method, timeout)
        if status >= 500:
            raise TelegramServerError(method=method, message=f"HTTP {status}")
        try:
            data = json_loads(raw)
            if status != 200 or data["ok"] is not True:
                return self.check_response(bot, method, status, json_dumps({"description": f"HTTP {status}", **data}))
            if data["result"] is not None and method.__returning__ in (bool, Any):
                return data["result"]
            result = response_type(type(method)).model_validate(data, context={"bot": bot}).result
            if result is None:
                raise ValueError("no result")
            return result
        except (ValueError, KeyError, TypeError, AttributeError, ClientDecodeError) as error:
            raise AnswerLost(method=method, message=f"odd answer: {type(error).__name__}") from error

    async def _post(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None) -> tuple[int, bytes]:
        url = parsed_url(self.api.api_url(token=bot.token, method=method.__api_method__))
        begun = False
        try:
            http = await self._http()
            limit = call_timeout(timeout or CALL_TIMEOUT_S)
            async with http.post(url, timeout=limit, allow_redirects=False, **self._body(bot, method)) as answer:
                begun = True
                return answer.status, await answer.read()
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotConnected(method=method, message=type(error).__name__) from error
        except TimeoutError as error:
            raise AnswerLost(method=method, message="time-out") from error
        except (aiohttp.ClientError, OSError) as error:
            kind = AnswerLost if begun else ConnectionBroke
            raise kind(method=method, message=type(error).__name__) from error

    def _body(self, bot: Bot, method: TelegramMethod[Any]) -> dict[str, Any]:
        files: dict[str, InputFile] = {}
        fields: dict[str, Any] = plain(method, files)
        if not files:
            return {"data": json_bytes(fields), "headers": {"Content-Type": "application/json"}}
        form = aiohttp.FormData(quote_fields=False)
        for name, value in fields.items():
            form.add_field(name, value if isinstance(value, str) else json_dumps(value))
        for name, file in files.items():
            form.add_field(name, file.read(bot), filename=file.filename or name)
        return {"data": form}

    async def stream_content(
        self,
        url: str,
        headers: dict[str, Any] | None = None,
        timeout: int = CALL_TIMEOUT_S,
        chunk_size: int = 65536,
        raise_for_status: bool = True,
    ) -> AsyncGenerator[bytes, None]:
        http, limit = await self._http(), call_timeout(timeout)
        async with http.get(url, headers=headers, timeout=limit, raise_for_status=raise_for_status) as answer:
            async for chunk in answer.content.iter_chunked(chunk_size):
                yield chunk


# What the gate does with a call. "waits": for its place in the pacing; "repeats": after which errors it is made again.
#
#   call                             waits   repeats after
#   send*, copy*, forward*           yes     no connection, 429, 5xx, one break before any byte; never a time-out
#   edit*, delete*                   yes     any network error, 429, 5xx
#   sendMessageDraft, sendChatAction,
#   setMessageReaction               no: goes only where there is room   nothing: the next one says the same
#   everything else                  no      any network error, 429, 5xx
Kind = Literal["send", "edit", "light", "other"]
LIGHT = {"sendMessageDraft", "sendRichMessageDraft", "sendChatAction", "setMessageReaction"}
TOPIC_GONE = ("message thread not found", "topic_deleted", "topic_closed", "topic_id_invalid")
CHAT_GONE = ("chat not found", "user is deactivated", "peer_id_invalid", "have no rights to send a message",
             "not enough rights to send", "chat_write_forbidden", "group chat was deactivated")  # fmt: skip
MESSAGE_GONE = ("message to edit not found", "message can't be edited", "message_id_invalid")
MAX_TRIES = 6
MAX_WAIT_S = 300.0


def call_kind(name: str) -> Kind:
    if name in LIGHT:
        return "light"
    if name.startswith(("send", "copy", "forward")):
        return "send"
    return "edit" if name.startswith(("edit", "delete")) and name != "deleteWebhook" else "other"


class NoRoom(Exception):
    """A draft or a chat action that pacing left no room for; nothing is lost with it."""


class Crowd:
    """At most `count` in any `period_s` seconds, booked in any order: who waits long leaves the near places free."""

    def __init__(self, count: int, period_s: float) -> None:
        self._count, self._period_s = count, period_s
        self._times: list[float] = []  # sorted, future ones included

    def book(self, at: float, now: float) -> float:
        """Book the first place from `at` on; returns its time."""
        del self._times[: bisect.bisect_right(self._times, now - self._period_s)]
        while (later := self._conflict(at)) is not None:
            at = later
        bisect.insort(self._times, at)
        return at

    def _conflict(self, at: float) -> float | None:
        """When the first group that would be too many with `at` is over; None where there is none."""
        here = bisect.bisect_right(self._times, at)
        for first in range(max(0, here - self._count), min(here, len(self._times) - self._count) + 1):
            group = self._times[first], self._times[first + self._count - 1]
            if max(group[1], at) - min(group[0], at) < self._period_s - 1e-6:  # a sum of floats may fall short
                return group[0] + self._period_s
        return None

    def share(self, now: float) -> float:
        """How much of the last period is used, 0 to 1."""
        used = bisect.bisect_right(self._times, now) - bisect.bisect_right(self._times, now - self._period_s)
        return used / self._count


class Pacing:
    """Telegram's limits: 30 a second in all, 1 a second in a private chat with a burst, 20 a minute in a group."""

    MOST = 2000  # chats remembered before those that are quiet are forgotten

    def __init__(self, per_second: int) -> None:
        self._overall = Crowd(per_second, 1.0) if per_second else None
        self._chats: dict[int, Window] = {}
        self._held: dict[int, float] = {}  # chat -> until when Telegram told us to wait

    def __len__(self) -> int:
        return len(self._chats)

    def book(self, chat_id: int, now: float) -> float:
        """Book the next free place for a message to this chat; returns seconds to wait."""
        if len(self._held) > self.MOST:
            self._held = {key: end for key, end in self._held.items() if end > now}
        at = max(now, self._held.get(chat_id, now))
        if self._overall:
            chat = self._chat(chat_id, now)
            at = self._overall.book(chat.free(at), now)
            chat.take(at)
        return at - now

    def room(self, chat_id: int, now: float) -> bool:
        """May a draft go now? Only while half of the second is free and the chat is not held."""
        if self._held.get(chat_id, now) > now:
            return False
        if self._overall is None:
            return True
        if self._overall.share(now) > 0.5:
            return False
        self._overall.book(now, now)
        return True

    def hold(self, chat_id: int, until: float) -> None:
        self._held[chat_id] = max(until, self._held.get(chat_id, until))

    def _chat(self, chat_id: int, now: float) -> Window:
        if len(self._chats) > self.MOST:
            self._chats = {key: window for key, window in self._chats.items() if not window.idle(now)}
        return self._chats.setdefault(chat_id, Window(20, 60.0) if chat_id < 0 else Window(5, 5.0))


class Gate:
    """Request middleware: every call to Telegram passes here."""

    def __init__(self, clock: Clock, dice: random.Random, per_second: int) -> None:
        self._clock, self._dice = clock, dice
        self.pacing = Pacing(per_second)
        self.on_gone: Callable[[int], Awaitable[None]] | None = None
        self.on_migrated: Callable[[int, int], Awaitable[None]] | None = None
        self.moved: dict[int, int] = {}  # groups that became supergroups since the start: a handful

    async def __call__(self, make_request: Any, bot: Bot, method: TelegramMethod[Any]) -> Any:
        kind = call_kind(method.__api_method__)
        chat_id = getattr(method, "chat_id", None)
        chat_id = chat_id if isinstance(chat_id, int) else 0
        if chat_id in self.moved:
            chat_id = self.moved[chat_id]
            method = moved(method, chat_id)
        if kind == "light":
            if not self.pacing.room(chat_id, self._clock.monotonic()):
                raise NoRoom
            try:
                return await self._once(make_request, bot, method, chat_id)
            except TelegramRetryAfter as error:
                self.pacing.hold(chat_id, self._clock.monotonic() + error.retry_after)
                raise
        return await self._repeat(make_request, bot, method, kind, chat_id)

    async def _repeat(self, make_request: Any, bot: Bot, method: TelegramMethod[Any], kind: Kind, chat_id: int) -> Any:
        broken = waited = 0.0
        problem: TelegramAPIError
        for attempt in range(1, MAX_TRIES + 1):
            if kind in ("send", "edit"):
                await self._wait(self.pacing.book(chat_id, self._clock.monotonic()))
            try:
                return await self._once(make_request, bot, method, chat_id)
            except TelegramMigrateToChat as error:
                self.moved[chat_id] = error.migrate_to_chat_id
                chat_id = error.migrate_to_chat_id
                method, problem, pause = moved(method, chat_id), error, 0.0
            except TelegramRetryAfter as error:
                pause = error.retry_after + self._dice.uniform(0, 0.5)
                self.pacing.hold(chat_id, self._clock.monotonic() + pause)
                problem = error
            except (TelegramServerError, TelegramNetworkError) as error:
                broken += isinstance(error, ConnectionBroke)
                if not repeats(kind, error, broken):
                    if isinstance(error, ConnectionBroke):  # twice: whether it was executed is not to be known
                        raise AnswerLost(method=method, message=error.message) from error
                    raise
                stale = isinstance(error, ConnectionBroke) and broken == 1
                pause = 0.0 if stale else backoff(self._dice, attempt)
                problem = error
            waited += pause
            if attempt == MAX_TRIES or waited > MAX_WAIT_S:
                raise problem
            name = method.__api_method__
            log.warning("call repeated: %s", problem.message,
                        extra={"operation": name, "attempt": attempt, "wait_s": round(pause, 2)})  # fmt: skip
            await self._wait(pause)
        raise AssertionError("unreachable")

    async def _once(self, make_request: Any, bot: Bot, method: TelegramMethod[Any], chat_id: int) -> Any:
        """One call, with the answers that are no errors and those that mean that nobody is there."""
        try:
            return await make_request(bot, method)
        except TelegramMigrateToChat as error:
            if self.on_migrated:
                await self.on_migrated(chat_id, error.migrate_to_chat_id)
            raise
        except TelegramForbiddenError as error:
            if self.on_gone and chat_id:
                await self.on_gone(chat_id)
            raise ChatGone(error.message) from error
        except TelegramBadRequest as error:
            words = error.message.lower()
            if "message is not modified" in words:
                return True
            if any(sign in words for sign in (*TOPIC_GONE, *CHAT_GONE)):
                raise ChatGone(error.message) from error
            raise

    async def _wait(self, seconds: float) -> None:
        if seconds > 0:
            async with stepped_out():
                await self._clock.sleep(seconds)


def repeats(kind: Kind, error: TelegramAPIError, broken: float) -> bool:
    """Whether a call of this kind is made again after this error; `broken`: breaks before a byte so far."""
    if kind != "send":
        return True
    if isinstance(error, ConnectionBroke):
        return broken <= 1
    return isinstance(error, NotConnected | TelegramServerError)


def moved(method: TelegramMethod[Any], chat_id: int) -> TelegramMethod[Any]:
    """The same call for the supergroup that a group became; message ids of the old one mean nothing there."""
    changes: dict[str, Any] = {"chat_id": chat_id}
    if getattr(method, "reply_parameters", None):
        changes["reply_parameters"] = None
    return method.model_copy(update=changes)


def aside(thread_id: int, reply_to_id: int | None = None) -> dict[str, Any]:
    """The parameters that put a message into a topic and under what it answers."""
    options: dict[str, Any] = {"message_thread_id": thread_id} if thread_id else {}
    if reply_to_id:
        options["reply_parameters"] = {"message_id": reply_to_id, "allow_sending_without_reply": True}
    return options


async def say(
    bot: Bot,
    chat_id: int,
    piece: Piece | str,
    *,
    thread_id: int = 0,
    reply_to_id: int | None = None,
    markup: InlineKeyboardMarkup | None = None,
) -> int | None:
    """Send one message. Returns its id, or None where Telegram took it but the answer was lost (logged)."""
    piece = Piece(piece) if isinstance(piece, str) else piece
    options = aside(thread_id, reply_to_id)
    if markup:
        options["reply_markup"] = markup
    if piece.entities:
        options["entities"] = piece.entities
    if "://" in piece.text:
        options["link_preview_options"] = {"is_disabled": True}
    try:
        return (await bot(Say(chat_id=chat_id, text=piece.text, **options))).message_id
    except AnswerLost as error:
        log.error("answer to a send lost, not repeated: %s", error.message, extra={"chat_id": chat_id})
        return None
    except TelegramBadRequest as error:
        if not piece.entities:
            raise
        log.warning("entities refused, sent plain: %s", error.message, extra={"chat_id": chat_id})
    return await say(bot, chat_id, piece.text, thread_id=thread_id, reply_to_id=reply_to_id, markup=markup)


async def edit(bot: Bot, chat_id: int, message_id: int, text: str, markup: InlineKeyboardMarkup | None = None) -> None:
    """Change a message in place; that it says so already, or was deleted meanwhile, is no error."""
    try:
        await bot(Edit(chat_id=chat_id, message_id=message_id, text=text, reply_markup=markup))
    except TelegramBadRequest as error:
        if not any(sign in error.message.lower() for sign in MESSAGE_GONE):
            raise
        log.info("nothing to edit: %s", error.message, extra={"chat_id": chat_id})


async def fetch_file(bot: Bot, file_id: str) -> bytes:
    """The bytes of a file, at most 20 MB. Raises BotError("media.too_big"), Unavailable("media.unreachable")."""
    try:
        file = await bot(GetFile(file_id=file_id))
        if (file.file_size or 0) > MAX_DOWNLOAD:
            raise BotError("media.too_big")
        data = bytearray()
        async for chunk in bot.session.stream_content(bot.session.api.file_url(bot.token, file.file_path or "")):
            data += chunk
            if len(data) > MAX_DOWNLOAD:
                raise BotError("media.too_big")
        return bytes(data)
    except TelegramBadRequest as error:
        raise BotError("media.too_big" if "too big" in error.message else "media.gone") from error
    except (TelegramAPIError, aiohttp.ClientError, TimeoutError, OSError) as error:
        raise Unavailable("media.unreachable") from error


# == LLM ==============================================================================================================
# Language models over HTTP: Gemini's REST v1beta and anything OpenAI-compatible. One chain of models, best first; what
# a fault means for the chain and for the user stands in one table.

SILENCE_S = 60
MODEL_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
SHOWN_PARTIAL = "…"


@dataclass(frozen=True)
class Media:
    """A file sent along with a message."""

    mime: str
    data: bytes


class Said(NamedTuple):
    """One entry of a conversation. `raw` are the model's parts as it sent them, to be echoed to the same `model`."""

    role: Literal["user", "model"]
    text: str
    media: tuple[Media, ...] = ()
    raw: tuple[Mapping[str, Any], ...] = ()
    model: str = ""


@dataclass(frozen=True)
class Ask:
    """A question to a model: the system instruction and the conversation, the user's turn last."""

    system: str
    said: tuple[Said, ...]
    chat_id: int = 0
    user_id: int = 0


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, as the provider counted them."""

    input: int = 0
    output: int = 0
    thoughts: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Answer:
    """What a model said. `finish`: stop, length (the token limit), cut (the connection ended, the text is partial)."""

    text: str
    finish: Literal["stop", "length", "cut"] = "stop"
    model: str = ""
    raw: tuple[Mapping[str, Any], ...] = ()
    usage: Usage = Usage()


class LlmFault(Exception):
    """One call failed. `kind` is a row of REMEDIES; `wait_s`: what the provider asked us to wait."""

    def __init__(self, kind: str, detail: str = "", wait_s: float = 0.0) -> None:
        super().__init__(f"{kind}: {detail}" if detail else kind)
        self.kind, self.wait_s = kind, wait_s


@dataclass(frozen=True)
class Remedy:
    """`again`: more tries of the same model; `cool_s`: then the model rests so long; `sick`: counts for the breaker.

    A sick model that rests is asked after the others, for it may be well again; the rest are not asked at all.
    """

    again: int = 0
    cool_s: float = 0.0
    sick: bool = False
    final: bool = False


# kind          same model again   model rests      breaker   chain goes on
REMEDIES = {
    "rate":       Remedy(cool_s=15),                                    # 429; rests as long as RetryInfo says
    "quota":      Remedy(cool_s=3600),                                  # 429 of the day
    "retired":    Remedy(cool_s=6 * 3600),                              # 404
    "key":        Remedy(cool_s=60),                                    # 401, 403, API_KEY_INVALID
    "overloaded": Remedy(again=1, cool_s=20, sick=True),                # 503, 529
    "server":     Remedy(again=2, cool_s=20, sick=True),                # other 5xx
    "network":    Remedy(again=2, sick=True),
    "timeout":    Remedy(cool_s=20, sick=True),                         # silence of a minute
    "cut":        Remedy(again=1, sick=True),                           # the stream ended in the middle
    "malformed":  Remedy(again=1, cool_s=20, sick=True),
    "empty":      Remedy(again=1),                                      # no candidates, no parts
    "request":    Remedy(),                                             # 400: another model may take it
    "wording":    Remedy(again=1),                                      # 400: it wants a parameter by another name
    "blocked":    Remedy(final=True),                                   # safety: another model would say the same
}  # fmt: skip


class LlmError(Unavailable):
    """No model answered; the text key `llm.KIND` says why to the user."""

    def __init__(self, kind: str) -> None:
        super().__init__(f"llm.{kind}")
        self.kind = kind


OnText = Callable[[str], None]


async def sse(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """The data of server-sent events, as UTF-8. Lines end in LF or CR LF, nothing else: U+2028 in JSON is text."""
    data: list[bytes] = []
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if rest.startswith(b"data:"):
        data.append(rest[5:].strip())
    if data:
        yield b"\n".join(data)


VISIBLE = re.compile(
    r"[^\s\u0000-\u001f\u007f-\u00a0\u00ad\u034f\u115f\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff]"
)
HALVES = re.compile("[\ud800-\udbff](?=.)|(?<![\ud800-\udbff])[\udc00-\udfff]", re.DOTALL)


ODD = re.compile("[\0\ud800-\udfff]")


def joined(text: str, more: str) -> str:
    """Two chunks of an answer, without NUL, the halves of a character that they cut apart put together.

    A half at the end may be a first one, and waits; any other half becomes U+FFFD.
    """
    if not ODD.search(more) and not ("\ud800" <= text[-1:] <= "\udbff"):
        return text + more
    whole = (text + more).replace("\0", "").encode("utf-16-le", "surrogatepass")
    return HALVES.sub("\ufffd", whole.decode("utf-16-le", "surrogatepass"))


def parse_event(data: bytes) -> dict[str, Any]:
    try:
        event = json_loads(data)
    except ValueError:
        try:
            event = json.loads(data)  # orjson refuses halves of characters, which some servers send
        except ValueError:
            raise LlmFault("malformed") from None
    if not isinstance(event, dict):
        raise LlmFault("malformed")
    return event


def alternate(said: Iterable[Said], same: Callable[[Said, Said], bool]) -> list[list[Said]]:
    """Neighbours of one role together; begins with the user's, as the APIs want."""
    groups: list[list[Said]] = []
    for entry in said:
        if groups and same(groups[-1][-1], entry):
            groups[-1].append(entry)
        else:
            groups.append([entry])
    if groups and groups[0][0].role == "model":
        groups.insert(0, [Said("user", "…")])
    return groups


class Gemini:
    """Gemini v1beta, https://ai.google.dev/api/generate-content."""

    name = "gemini"
    # model prefix, how it takes thinking, whether it takes a temperature; the first that fits
    TRAITS: ClassVar[tuple[tuple[str, tuple[str, ...] | dict[str, int], bool], ...]] = (
        ("gemini-3.8-flash", ("low", "medium", "high"), False),
        ("gemini-3", ("minimal", "low", "medium", "high"), False),
        ("gemini-2.5-flash", {"minimal": 0, "low": 512, "medium": 4096, "high": -1}, True),
        ("gemini-2.5", {"minimal": 128, "low": 512, "medium": 4096, "high": -1}, True),
        ("", (), True),
    )

    def __init__(self, settings: Settings, http: Once[aiohttp.ClientSession]) -> None:
        self._settings, self._http = settings, http
        self._headers = {"x-goog-api-key": settings.gemini_api_key, "Content-Type": "application/json"}
        self.models = settings.gemini_model

    def body(self, model: str, ask: Ask) -> dict[str, Any]:
        """The request for this model."""
        body: dict[str, Any] = {"contents": gemini_contents(model, ask.said)}
        if ask.system:
            body["systemInstruction"] = {"parts": [{"text": ask.system}]}
        if config := self._config(model):
            body["generationConfig"] = config
        return body

    def _config(self, model: str) -> dict[str, Any]:
        _, levels, temperature = next(traits for traits in self.TRAITS if model.startswith(traits[0]))
        wish = self._settings.thinking_level
        config: dict[str, Any] = {}
        if isinstance(levels, dict):
            config["thinkingConfig"] = {"thinkingBudget": levels[wish]}
        elif levels:
            config["thinkingConfig"] = {"thinkingLevel": (wish if wish in levels else levels[0]).upper()}
        if temperature and self._settings.gemini_temperature is not None:
            config["temperature"] = self._settings.gemini_temperature
        if self._settings.gemini_max_output_tokens:
            config["maxOutputTokens"] = self._settings.gemini_max_output_tokens
        return config

    async def stream(
        self, model: str, ask: Ask, on_text: OnText, on_usage: Callable[[Usage], None] = lambda usage: None
    ) -> Answer:
        """Stream an answer; `on_text` gets all the text so far, `on_usage` the tokens so far. Raises LlmFault."""
        url = f"{self._settings.gemini_api_url}/v1beta/models/{model}:streamGenerateContent?alt=sse"
        reading = GeminiReading(model)
        async with call_model(await self._http(), url, self._headers, self.body(model, ask)) as answer:
            if answer.status != 200:
                raise gemini_fault(answer.status, await answer.text(errors="replace"))
            async for data in sse(answer.content):
                if reading.take(parse_event(data)):
                    on_text(reading.text)
                on_usage(reading.usage)
        return reading.answer()

    async def check(self, model: str) -> None:
        """Raises LlmFault unless the model answers to this key."""
        url = f"{self._settings.gemini_api_url}/v1beta/models/{model}"
        async with call_model(await self._http(), url, self._headers, None) as answer:
            if answer.status != 200:
                raise gemini_fault(answer.status, await answer.text(errors="replace"))


class GeminiReading:
    """Puts the events of one stream together."""

    BLOCKED = frozenset({"SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "LANGUAGE"})

    def __init__(self, model: str) -> None:
        self.model, self.text, self.finish = model, "", ""
        self.parts: list[dict[str, Any]] = []
        self.usage = Usage()
        self.events = 0

    def take(self, event: dict[str, Any]) -> bool:
        """Take one event; says whether there is new text. Raises LlmFault for errors inside a 200."""
        self.events += 1
        if "error" in event:
            raise gemini_fault(int(event["error"].get("code") or 500), json_dumps(event))
        if blocked := (event.get("promptFeedback") or {}).get("blockReason"):
            raise LlmFault("blocked", blocked)
        self._count(event.get("usageMetadata") or {})
        for candidate in (event.get("candidates") or [])[:1]:
            self.finish = candidate.get("finishReason") or self.finish
            return self._parts((candidate.get("content") or {}).get("parts") or [])
        return False

    def _parts(self, parts: list[dict[str, Any]]) -> bool:
        grew = False
        for part in parts:
            if part.get("thought"):
                continue
            self._keep(part)
            if text := part.get("text"):
                self.text = joined(self.text, text)
                grew = True
        return grew

    def _keep(self, part: dict[str, Any]) -> None:
        last = self.parts[-1] if self.parts else None
        if last is not None and part.keys() == last.keys() == {"text"}:
            last["text"] += part["text"]
        else:
            self.parts.append(dict(part))

    def _count(self, meta: Mapping[str, Any]) -> None:
        if meta:
            names = ("promptTokenCount", "candidatesTokenCount", "thoughtsTokenCount", "cachedContentTokenCount")
            self.usage = Usage(*(count if isinstance(count := meta.get(name), int) else 0 for name in names))

    def answer(self) -> Answer:
        """The whole answer. Raises LlmFault where there is none."""
        if not self.events:
            raise LlmFault("malformed")
        if not VISIBLE.search(self.text):
            raise LlmFault("blocked" if self.finish in self.BLOCKED else "empty", self.finish)
        if not self.finish:
            raise LlmFault("cut")
        plain = len(self.parts) == 1 and self.parts[0].keys() == {"text"}
        return Answer(
            self.text,
            "length" if self.finish == "MAX_TOKENS" else "stop",
            self.model,
            () if plain else tuple(self.parts),  # plain text needs no second copy
            self.usage,
        )


def gemini_contents(model: str, said: Iterable[Said]) -> list[dict[str, Any]]:
    """Contents of alternating roles; a model's own parts are echoed unchanged, signatures included, to that model."""
    contents = []
    for group in alternate(said, lambda a, b: a.role == b.role):
        parts: list[Any] = []
        for entry in group:
            if entry.raw and entry.model == model:
                parts.extend(entry.raw)
            elif entry.text:
                parts.append({"text": entry.text})
            parts.extend(
                {"inlineData": {"mimeType": m.mime, "data": base64.b64encode(m.data).decode()}} for m in entry.media
            )
        contents.append({"role": group[0].role, "parts": parts or [{"text": "…"}]})
    return contents


def gemini_fault(status: int, text: str) -> LlmFault:
    """What an error answer means, https://ai.google.dev/gemini-api/docs/troubleshooting."""
    detail = text[:300]
    if status == 429:
        wait = re.search(r'"retryDelay":\s*"([\d.]+)s"', text)
        per_day = re.search(r'"quotaId":\s*"[^"]*PerDay', text)
        if per_day:  # it names a delay of seconds all the same
            return LlmFault("quota", detail)
        return LlmFault("rate", detail, float(wait[1]) if wait else 0.0)
    if status in (401, 403) or (status == 400 and "API_KEY_INVALID" in text):
        return LlmFault("key", detail)
    kinds = {404: "retired", 503: "overloaded", 529: "overloaded", 504: "timeout"}
    return LlmFault(kinds.get(status, "server" if status >= 500 else "request"), detail)


class OpenAi:
    """Anything with POST /chat/completions, https://platform.openai.com/docs/api-reference/chat."""

    name = "openai"

    def __init__(self, settings: Settings, http: Once[aiohttp.ClientSession]) -> None:
        self._settings, self._http = settings, http
        self._headers = {"Content-Type": "application/json"}
        if settings.openai_api_key:
            self._headers["Authorization"] = f"Bearer {settings.openai_api_key}"
        self.models = settings.openai_model
        self._limit = "max_tokens"  # what servers of others know; OpenAI's own newer models want another word

    def body(self, model: str, ask: Ask) -> dict[str, Any]:
        """The request for this model."""
        messages: list[dict[str, Any]] = [{"role": "system", "content": ask.system}] if ask.system else []
        for group in alternate(ask.said, lambda a, b: a.role == b.role):
            role = "assistant" if group[0].role == "model" else "user"
            messages.append({"role": role, "content": openai_content(group)})
        body: dict[str, Any] = {"model": model, "messages": messages, "stream": True}
        body["stream_options"] = {"include_usage": True}
        if self._settings.gemini_max_output_tokens:
            body[self._limit] = self._settings.gemini_max_output_tokens
        return body

    async def stream(
        self, model: str, ask: Ask, on_text: OnText, on_usage: Callable[[Usage], None] = lambda usage: None
    ) -> Answer:
        """Stream an answer; `on_text` gets all the text so far, `on_usage` the tokens so far. Raises LlmFault."""
        url = f"{self._settings.openai_api_url}/chat/completions"
        text, finish, usage, events = "", "", Usage(), 0
        async with call_model(await self._http(), url, self._headers, self.body(model, ask)) as answer:
            if answer.status != 200:
                problem = await answer.text(errors="replace")
                if answer.status == 400 and "max_completion_tokens" in problem and self._limit == "max_tokens":
                    self._limit = "max_completion_tokens"
                    raise LlmFault("wording", self._limit)
                raise openai_fault(answer.status, problem, answer.headers.get("Retry-After"))
            async for data in sse(answer.content):  # comment lines are no data and never come here
                if data.strip() == b"[DONE]":
                    break
                event = parse_event(data)
                events += 1
                if error := event.get("error"):
                    code = error.get("code") if isinstance(error, dict) else None
                    raise openai_fault(code if isinstance(code, int) else 500, json_dumps(error), None)
                usage = openai_usage(event.get("usage")) or usage
                on_usage(usage)
                for choice in (event.get("choices") or [])[:1]:  # the chunk with the usage has none
                    finish = choice.get("finish_reason") or finish
                    if more := (choice.get("delta") or {}).get("content"):
                        text = joined(text, more)
                        on_text(text)
        if not events:
            raise LlmFault("malformed")
        if not VISIBLE.search(text):
            raise LlmFault("blocked" if finish == "content_filter" else "empty", finish)
        if not finish:
            raise LlmFault("cut")
        return Answer(text, "length" if finish == "length" else "stop", model, (), usage)

    async def check(self, model: str) -> None:
        """Raises LlmFault unless the server knows the model."""
        async with call_model(
            await self._http(), f"{self._settings.openai_api_url}/models", self._headers, None
        ) as answer:
            if answer.status != 200:
                raise openai_fault(answer.status, await answer.text(errors="replace"), None)
            listed = [entry.get("id") for entry in (await answer.json(content_type=None)).get("data", [])]
        if listed and model not in listed:
            raise LlmFault("retired", model)


def openai_content(group: Sequence[Said]) -> str | list[dict[str, Any]]:
    text = "\n".join(entry.text for entry in group if entry.text) or "…"
    pictures = [media for entry in group for media in entry.media if media.mime.startswith("image/")]
    if not pictures:
        return text
    urls = [f"data:{media.mime};base64,{base64.b64encode(media.data).decode()}" for media in pictures]
    return [{"type": "text", "text": text}, *({"type": "image_url", "image_url": {"url": url}} for url in urls)]


def openai_usage(usage: Mapping[str, Any] | None) -> Usage | None:
    if not usage:
        return None
    return Usage(
        usage.get("prompt_tokens") or 0,
        usage.get("completion_tokens") or 0,
        (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0,
        (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0,
    )


def openai_fault(status: int, text: str, retry_after: str | None) -> LlmFault:
    """What an error answer means, https://platform.openai.com/docs/guides/error-codes."""
    detail = text[:300]
    if status == 429:
        wait = float(retry_after) if retry_after and retry_after.isdigit() else 0.0
        return LlmFault("quota" if "insufficient_quota" in text else "rate", detail, wait)
    kinds = {401: "key", 403: "key", 404: "retired", 503: "overloaded", 529: "overloaded"}
    return LlmFault(kinds.get(status, "server" if status >= 500 else "request"), detail)


@asynccontextmanager
async def call_model(
    http: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: Mapping[str, Any] | None
) -> AsyncIterator[aiohttp.ClientResponse]:
    """POST the body (GET without one). What goes wrong on the way becomes an LlmFault."""
    method = "GET" if body is None else "POST"
    data = None if body is None else json_bytes(body)
    begun = False
    try:
        async with http.request(
            method, parsed_url(url), data=data, headers=headers, timeout=MODEL_TIMEOUT, allow_redirects=False
        ) as answer:
            begun = answer.status == 200
            yield answer
    except aiohttp.ConnectionTimeoutError as error:
        raise LlmFault("network", "no connection") from error
    except TimeoutError as error:
        raise LlmFault("timeout", f"silent for {SILENCE_S} s") from error
    except (aiohttp.ClientError, OSError) as error:
        raise LlmFault("cut" if begun else "network", type(error).__name__) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # JSON of another shape than promised
        raise LlmFault("malformed", type(error).__name__) from error


@dataclass(frozen=True)
class LlmCall:
    """One call as it is stored."""

    at: int
    provider: str
    model: str
    capability: str
    outcome: str
    took_ms: int
    usage: Usage
    chat_id: int
    user_id: int


class Llm:
    """The models, tried in their order: those that rest and providers with an open breaker are passed over."""

    def __init__(
        self, settings: Settings, http: Once[aiohttp.ClientSession], clock: Clock, dice: random.Random
    ) -> None:
        self._settings, self._clock, self._dice = settings, clock, dice
        self.providers: list[Gemini | OpenAi] = []
        if settings.gemini_api_key:
            self.providers.append(Gemini(settings, http))
        if settings.openai_api_url and settings.openai_model:
            self.providers.append(OpenAi(settings, http))
        self.slots = {"chat": asyncio.Semaphore(settings.max_parallel_llm)}
        self.breakers = {(provider.name, "chat"): Breaker(clock) for provider in self.providers}
        self._resting: dict[tuple[str, str], tuple[float, str]] = {}  # until when, and why
        self.on_call: Callable[[LlmCall], None] = lambda call: None

    def __bool__(self) -> bool:
        return bool(self.providers)

    async def chat(self, ask: Ask, on_text: OnText = lambda text: None) -> Answer:
        """An answer of the first model that gives one, within LLM_TIMEOUT. Take a slot of `slots["chat"]` before.

        Raises LlmError with the most telling reason. A text cut off in the middle is better than none: if no try
        brings a whole one, the longest comes back with finish "cut".
        """
        chain = Chain(self, ask, on_text)
        try:
            async with asyncio.timeout(self._settings.llm_timeout):
                return await chain.run()
        except TimeoutError:
            chain.faults.append("timeout")
        except LlmFault as fault:
            chain.faults.append(fault.kind)
        if VISIBLE.search(chain.partial):
            return Answer(chain.partial, "cut")
        raise LlmError(worst(chain.faults))

    def open_models(self, provider: Gemini | OpenAi) -> list[str]:
        """The models of a provider that may be asked now, best first, those that were sick just now last."""
        resting = self.resting()
        why = {
            model: resting[provider.name, model][1] for model in provider.models if (provider.name, model) in resting
        }
        well = [model for model in provider.models if model not in why]
        return well + [model for model in provider.models if model in why and REMEDIES[why[model]].sick]

    def resting(self) -> dict[tuple[str, str], tuple[float, str]]:
        """(seconds left, why) of each model that rests."""
        now = self._clock.monotonic()
        return {key: (until - now, why) for key, (until, why) in self._resting.items() if until > now}

    def rest(self, provider: str, model: str, seconds: float, why: str) -> None:
        self._resting[provider, model] = self._clock.monotonic() + seconds, why


def worst(kinds: Sequence[str]) -> str:
    """The reason that tells a user most."""
    order = ("blocked", "key", "quota", "rate", "overloaded", "timeout", "network", "server", "request", "retired")
    return next((kind for kind in order if kind in kinds), "server")


class Chain:
    """One question on its way through the models."""

    MOST_WAIT_S = 20.0

    def __init__(self, llm: Llm, ask: Ask, on_text: OnText) -> None:
        self._llm, self._ask, self._tell = llm, ask, on_text
        self.faults: list[str] = []
        self.partial = ""

    async def run(self) -> Answer:
        """Raises LlmFault when nobody is left to ask."""
        for _ in range(2):  # once more if all of them only rest for a moment
            for provider in self._llm.providers:
                if answer := await self._provider(provider):
                    return answer
            resting = [rest for rest in self._llm.resting().values() if not REMEDIES[rest[1]].sick]
            self.faults += [why for _, why in resting]
            wait = min((left for left, why in resting if why == "rate"), default=0.0)
            if not 0 < wait <= self.MOST_WAIT_S:
                break
            await self._llm._clock.sleep(wait)
        raise LlmFault(worst(self.faults))

    async def _provider(self, provider: Gemini | OpenAi) -> Answer | None:
        """Ask the models of one provider. Its breaker counts questions that none of them could answer.

        Counted by calls, one sick model and a handful of people would shut out the healthy models behind it.
        """
        breaker, models = self._llm.breakers[provider.name, "chat"], self._llm.open_models(provider)
        if not models or not breaker.allow():
            if models and not self.faults:
                self.faults.append("overloaded")
            return None
        before = len(self.faults)
        try:
            for model in models:
                if answer := await self._model(provider, model):
                    breaker.succeeded()
                    return answer
        except BaseException:  # stopped, or refused for good: no verdict on the provider
            breaker.abandoned()
            raise
        if any(REMEDIES[kind].sick for kind in self.faults[before:]):
            breaker.failed()
        else:
            breaker.abandoned()
        return None

    async def _model(self, provider: Gemini | OpenAi, model: str) -> Answer | None:
        for attempt in range(1, 4):
            try:
                return await self._call(provider, model)
            except LlmFault as fault:
                if not await self._after(provider, model, fault, attempt):
                    return None
        return None

    async def _after(self, provider: Gemini | OpenAi, model: str, fault: LlmFault, attempt: int) -> bool:
        """Do what REMEDIES says; returns whether to try the same model again."""
        remedy = REMEDIES[fault.kind]
        self.faults.append(fault.kind)
        log.warning("model failed: %s", fault, extra={"model": model, "kind": fault.kind, "attempt": attempt})
        if remedy.final:
            raise fault
        if attempt > remedy.again:
            if remedy.cool_s:
                self._llm.rest(provider.name, model, fault.wait_s or remedy.cool_s, fault.kind)
            return False
        await self._llm._clock.sleep(backoff(self._llm._dice, attempt, 0.3, 4.0))
        return True

    async def _call(self, provider: Gemini | OpenAi, model: str) -> Answer:
        started, outcome, used = time.perf_counter(), "ok", [Usage()]
        try:
            return await provider.stream(model, self._ask, self._heard, used.append)
        except LlmFault as fault:
            outcome = fault.kind
            raise
        except BaseException:  # stopped, or out of time
            outcome = "cancelled"
            raise
        finally:
            took = round((time.perf_counter() - started) * 1000)
            ask, now = self._ask, int(self._llm._clock.now())
            call = LlmCall(now, provider.name, model, "chat", outcome, took, used[-1], ask.chat_id, ask.user_id)
            self._llm.on_call(call)

    def _heard(self, text: str) -> None:
        if len(text) > len(self.partial):
            self.partial = text
        self._tell(text)


def babble(lines: Sequence[str], seed_lines: Sequence[str], question: str, dice: random.Random) -> str:
    """A sentence of a word-bigram model of `lines`, begun near a word of the question; for a bot without a model.

    The seed lines keep a chat that has said little from being echoed back.
    """
    follows: dict[str, list[str]] = defaultdict(list)
    for line in (*lines, *seed_lines):
        words = line.split()
        for one, two in zip(["", *words], [*words, ""], strict=True):
            follows[one.lower()].append(two)
    asked = [word for word in question.lower().split() if len(word) > 3 and any(follows.get(word, ()))]
    out = [dice.choice(asked)] if asked and dice.random() < 0.7 else []
    while len(out) < 18:
        word = dice.choice(follows[out[-1].lower() if out else ""] or [""])
        if not word:
            if len(out) >= 3 or not any(follows[""]):
                break
            word = dice.choice([first for first in follows[""] if first])
        out.append(word)
    text = " ".join(out).strip(" ,;:—-")
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…", ")")) else ".")


# == App ==============================================================================================================
# What everything shares, under one name. Features register what they bring in the tables here: commands, buttons,
# cleanup steps, background loops.


@dataclass(frozen=True)
class Who:
    """Who an update is from and where, as handlers need it."""

    chat_id: int
    thread_id: int
    user_id: int
    lang: str
    private: bool
    anonymous_admin: bool = False
    message_id: int | None = None  # what an answer replies to


@dataclass(frozen=True)
class Command:
    """A command as registered. `places`: private, group, or both; `owner`: only for owners."""

    name: str
    handler: Callable[..., Awaitable[Any]]
    places: tuple[str, ...]
    owner: bool = False


class Press(NamedTuple):
    """A button that was pressed: under which message, with which callback data."""

    message_id: int
    data: str


COMMANDS: dict[str, Command] = {}
BUTTONS: dict[str, tuple[type[CallbackData], Callable[..., Awaitable[Any]]]] = {}
CLEANUPS: dict[str, Callable[[App], Awaitable[Any]]] = {}
LOOPS: dict[str, Callable[[App], Awaitable[None]]] = {}


def command(name: str, places: tuple[str, ...] = ("private", "group"), *, owner: bool = False) -> Callable[[T], T]:
    """Register a handler `(app, who, args)` for /name."""

    def register(handler: T) -> T:
        COMMANDS[name] = Command(name, handler, places, owner)  # type: ignore[arg-type]
        return handler

    return register


def button(data: type[CallbackData]) -> Callable[[T], T]:
    """Register a handler `(app, who, press, data)` for a kind of callback data; what it returns is shown."""

    def register(handler: T) -> T:
        BUTTONS[data.__prefix__] = data, handler  # type: ignore[assignment]
        return handler

    return register


def cleanup(name: str) -> Callable[[T], T]:
    """Register a step `(app)` of the hourly cleanup."""

    def register(step: T) -> T:
        CLEANUPS[name] = step  # type: ignore[assignment]
        return step

    return register


def loop(name: str) -> Callable[[T], T]:
    """Register a coroutine `(app)` that runs as long as the bot does."""

    def register(body: T) -> T:
        LOOPS[name] = body  # type: ignore[assignment]
        return body

    return register


class App:
    """Settings, texts, database, bot, models, caches and tasks of one running bot."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        dice: random.Random | None = None,
        session: BaseSession | None = None,
    ) -> None:
        self.settings, self.clock, self.dice = settings, clock or Clock(), dice or random.Random()
        self.texts = Texts(HERE / "locales")
        self.db = Db(settings.db_path)
        self.http: Once[aiohttp.ClientSession] = Once(lambda: open_http(settings), lambda http: http.close())
        self.gate = Gate(self.clock, self.dice, settings.sends_per_second)
        self.bot = Bot(
            settings.telegram_bot_token or "0:none",
            session=session or LeanSession(settings.telegram_api_url, self.http),
        )
        self.bot.session.middleware(self.gate)
        self.llm = Llm(settings, self.http, self.clock, self.dice)
        monotonic = self.clock.monotonic
        self.chats: Cache[int, ChatSettings] = Cache(5000, 600, monotonic)
        self.langs: Cache[int, str] = Cache(20_000, 3600, monotonic)
        self.resets: Cache[tuple[int, int], int] = Cache(5000, 600, monotonic)
        self.admins: Cache[tuple[int, int], bool] = Cache(2000, 60, monotonic)
        self.known: dict[tuple[str, int], tuple[Any, ...]] = {}  # people and chats as they are stored; see Inbox
        self.slots = Slots(settings.max_parallel_updates)
        # a file of 20 MB takes four times that on its way to a model: two at once, or a small machine is full
        self.heavy = asyncio.Semaphore(2)
        self.generations: dict[tuple[int, int], Generation] = {}
        self.latencies: deque[float] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self.started_at = self.clock.now()
        self.llm.on_call = lambda call: store_llm_call(self, call)
        self.me: User | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    def owner(self, user_id: int) -> bool:
        return user_id in self.settings.admin_ids

    def spawn(self, work: Any, name: str) -> asyncio.Task[Any]:
        """Run a coroutine beside; its end, or its failure, is logged, never lost."""
        # a task copies the context variables of whoever makes it
        context = None
        if at_work.get() or changes.get() is not None:  # neither the place nor the commit of whoever spawns it
            context = contextvars.copy_context()
            context.run(at_work.set, None)
            context.run(changes.set, None)
        task = asyncio.create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._reap)
        return task

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) and not isinstance(error, ChatGone):
            self.counts[f"error {type(error).__name__}"] += 1
            log.error("background task failed: %s", task.get_name(), exc_info=error)

    async def tell_owners(self, key: str, **fields: Any) -> None:
        """A private message to each owner; one who never started the bot is no fault."""
        for user_id in self.settings.admin_ids:
            with contextlib.suppress(ChatGone, TelegramAPIError):
                await say(self.bot, user_id, self.texts(await lang_of(self, user_id), key, **fields))

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self.db.close()
        await self.http.close()


@dataclass
class Generation:
    """A reply that is being written: what can be stopped, and what it said so far."""

    who: Who
    task: asyncio.Task[Any]
    text: str = ""
    stopped: bool = False
    over: bool = False

    def grow(self, text: str) -> None:
        self.text = text


@dataclass(frozen=True)
class ChatSettings:
    """What holds in a chat now: its own settings over those of the bot."""

    policy: str
    lang: str | None
    rich: bool
    quiet_until: int
    told_no_key: bool


async def chat_settings(app: App, chat_id: int) -> ChatSettings:
    """Cached for ten minutes, forgotten when changed."""
    return await app.chats.get(chat_id, lambda: load_chat(app, chat_id))


async def load_chat(app: App, chat_id: int) -> ChatSettings:
    row = await app.db.reader.one(
        "SELECT policy, lang, rich, quiet_until, told_no_key FROM chats WHERE chat_id = ?", chat_id
    )
    if row is None:
        return ChatSettings(app.settings.group_policy, None, app.settings.rich_messages, 0, False)
    rich = app.settings.rich_messages if row["rich"] is None else bool(row["rich"])
    policy = row["policy"] or app.settings.group_policy
    return ChatSettings(policy, row["lang"], rich, row["quiet_until"], bool(row["told_no_key"]))


async def lang_of(app: App, user_id: int, code: str | None = None) -> str:
    """The language chosen by a user, else Telegram's for them (`code`: as the update says), else LANGUAGE."""
    if known := app.langs.peek(user_id):
        return known
    row = await app.db.reader.one("SELECT lang, language_code FROM users WHERE user_id = ?", user_id)
    if row is None:  # not heard yet: nothing to keep
        return pick_lang(code, app.settings.language)
    lang = row["lang"] or pick_lang(code or row["language_code"], app.settings.language)
    app.langs.put(user_id, lang)
    return lang


# What the update at work has changed so far; the inbox commits it together with the end of the update.
changes: contextvars.ContextVar[dict[Hot, list[tuple[Any, ...]]] | None] = contextvars.ContextVar(
    "changes", default=None
)


async def remember(app: App, hot: Hot, row: tuple[Any, ...]) -> None:
    """Write a row in the commit that ends the update at work; at once where there is none."""
    pending = changes.get()
    if pending is None:
        await app.db.write({hot: [row]})
    else:
        pending.setdefault(hot, []).append(row)


PUT_LLM_CALL = Hot(
    40,
    """INSERT INTO llm_calls (called_at, provider, model, capability, outcome, took_ms, input_tokens, output_tokens,
         thought_tokens, cached_tokens, chat_id, user_id) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)""",
)


def store_llm_call(app: App, call: LlmCall) -> None:
    """Keep what a call cost: with the update at work, else beside."""
    used = call.usage
    row = (call.at, call.provider, call.model, call.capability, call.outcome, call.took_ms,
           used.input, used.output, used.thoughts, used.cached, call.chat_id, call.user_id)  # fmt: skip
    app.counts[f"llm {call.outcome}"] += 1
    pending = changes.get()
    if pending is None:
        app.spawn(app.db.write({PUT_LLM_CALL: [row]}), "store usage")
    else:
        pending.setdefault(PUT_LLM_CALL, []).append(row)


@cleanup("usage")
async def usage_clean(app: App) -> None:
    async with app.db.tx() as tx:
        await tx.run("DELETE FROM llm_calls WHERE called_at < ?", int(app.clock.now()) - 90 * 86400)


# == Memory ===========================================================================================================
# What was said: read from a raw update, stored once, and found again as the context of a reply.

# -- rules

COMMAND = re.compile(r"/([A-Za-z0-9_]{1,32})(?:@(\w+))?(?:\s+(.*))?$", re.DOTALL)
MAX_STORED_TEXT = 20_000


class Heard(NamedTuple):
    """A message as it is stored. Speakers are users, or (ids below 0) chats that speak as themselves."""

    chat_id: int
    chat_kind: str
    chat_title: str
    thread_id: int
    message_id: int
    user_id: int
    name: str
    username: str | None
    language_code: str | None
    silent: bool  # other bots and automatic forwards: never answered
    anonymous_admin: bool
    sent_at: int
    kind: str
    text: str
    media: tuple[dict[str, Any], ...]
    album: str | None
    origin: str | None
    reply_to: int | None


def hear(raw: Mapping[str, Any]) -> Heard | None:
    """Read a raw Message; None for service messages, which say nothing. Raises KeyError, TypeError on rubbish."""
    content = heard_content(raw)
    if content is None:
        return None
    kind, text, media = content
    chat = raw["chat"]
    user_id, name, username, language, silent, anonymous = speaker(raw)
    replied = raw.get("reply_to_message") or {}
    return Heard(
        chat["id"],
        chat["type"],
        chat.get("title") or full_name(chat),
        raw["message_thread_id"] if raw.get("is_topic_message") else 0,
        raw["message_id"],
        user_id,
        name,
        username,
        language,
        silent,
        anonymous,
        raw["date"],
        kind,
        text[:MAX_STORED_TEXT],
        media,
        raw.get("media_group_id"),
        origin_name(raw.get("forward_origin")),
        None if "forum_topic_created" in replied else replied.get("message_id"),
    )


def full_name(entry: Mapping[str, Any]) -> str:
    return excerpt(" ".join(part for part in (entry.get("first_name"), entry.get("last_name")) if part), 128) or "?"


def speaker(raw: Mapping[str, Any]) -> tuple[int, str, str | None, str | None, bool, bool]:
    """(id, name, username, language code, silent, anonymous administrator) of whoever sent a message."""
    sender, user = raw.get("sender_chat"), raw.get("from") or {}
    if sender and raw["chat"]["type"] != "private":
        anonymous = sender["id"] == raw["chat"]["id"]
        name = raw.get("author_signature") or sender.get("title") or "?"
        return sender["id"], name, sender.get("username"), None, bool(raw.get("is_automatic_forward")), anonymous
    return user["id"], full_name(user), user.get("username"), user.get("language_code"), bool(user.get("is_bot")), False


def origin_name(origin: Mapping[str, Any] | None) -> str | None:
    """Whom a message was forwarded from."""
    if not origin:
        return None
    if user := origin.get("sender_user"):
        return full_name(user)
    chat = origin.get("sender_chat") or origin.get("chat") or {}
    return origin.get("sender_user_name") or chat.get("title") or "?"


def heard_content(raw: Mapping[str, Any]) -> tuple[str, str, tuple[dict[str, Any], ...]] | None:
    """(kind, text, media) of a message; None where there is nothing to hear."""
    if (text := raw.get("text")) is not None:
        return ("command" if COMMAND.match(text) else "text"), text, ()
    caption = raw.get("caption") or ""
    for kind, read in CONTENT.items():
        if (thing := raw.get(kind)) is not None:
            text, media = read(thing)
            return kind, "\n".join(part for part in (text, caption) if part), media
    return None


def read_photo(sizes: Sequence[Mapping[str, Any]]) -> tuple[str, tuple[dict[str, Any], ...]]:
    """The largest size that may be downloaded."""
    fitting = [size for size in sizes if size.get("file_size", 0) <= MAX_DOWNLOAD] or list(sizes)
    return "", (media_entry("photo", max(fitting, key=lambda size: size["width"] * size["height"]), "image/jpeg"),)


def read_sticker(thing: Mapping[str, Any]) -> tuple[str, tuple[dict[str, Any], ...]]:
    """An emoji for the eye; only a still one is a picture for the model."""
    still = not (thing.get("is_animated") or thing.get("is_video"))
    return thing.get("emoji") or "", (media_entry("sticker", thing, "image/webp"),) if still else ()


def read_file(kind: str, mime: str) -> Callable[[Mapping[str, Any]], tuple[str, tuple[dict[str, Any], ...]]]:
    def read(thing: Mapping[str, Any]) -> tuple[str, tuple[dict[str, Any], ...]]:
        title = " – ".join(part for part in (thing.get("performer"), thing.get("title")) if part)
        return title or thing.get("file_name") or "", (media_entry(kind, thing, mime),)

    return read


def media_entry(kind: str, thing: Mapping[str, Any], mime: str) -> dict[str, Any]:
    """What is kept of a file: never its bytes."""
    entry = {"kind": kind, "file_id": thing["file_id"], "mime": thing.get("mime_type") or mime}
    for name in ("file_unique_id", "file_size", "duration", "file_name"):
        if thing.get(name):
            entry[name] = thing[name]
    return entry


def read_poll(poll: Mapping[str, Any]) -> tuple[str, tuple[dict[str, Any], ...]]:
    return f"{poll['question']} — {' / '.join(option['text'] for option in poll['options'])}", ()


def read_venue(venue: Mapping[str, Any]) -> tuple[str, tuple[dict[str, Any], ...]]:
    return f"{venue['title']}, {venue['address']}", ()


def read_place(place: Mapping[str, Any]) -> tuple[str, tuple[dict[str, Any], ...]]:
    return f"{place['latitude']:.5f}, {place['longitude']:.5f}", ()


# animation before document, venue before location: the second comes with the first
CONTENT: dict[str, Callable[[Any], tuple[str, tuple[dict[str, Any], ...]]]] = {
    "photo": read_photo,
    "sticker": read_sticker,
    "voice": read_file("voice", "audio/ogg"),
    "audio": read_file("audio", "audio/mpeg"),
    "video": read_file("video", "video/mp4"),
    "video_note": read_file("video_note", "video/mp4"),
    "animation": read_file("animation", "video/mp4"),
    "document": read_file("document", "application/octet-stream"),
    "poll": read_poll,
    "venue": read_venue,
    "location": read_place,
    "contact": lambda contact: (full_name(contact), ()),
    "dice": lambda dice: (f"{dice['emoji']} {dice['value']}", ()),
}


# -- queries

PUT_USER = Hot(
    10,
    """INSERT INTO users (user_id, name, username, language_code, started_at) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (user_id) DO UPDATE SET name = excluded.name, username = excluded.username,
         language_code = coalesce(excluded.language_code, language_code),
         started_at = coalesce(started_at, excluded.started_at)""",
)
PUT_CHAT = Hot(
    10,
    """INSERT INTO chats (chat_id, kind, title) VALUES (?, ?, ?)
       ON CONFLICT (chat_id) DO UPDATE SET kind = excluded.kind, title = excluded.title, gone_at = NULL""",
)
PUT_MESSAGE = Hot(
    20,
    """INSERT INTO messages (chat_id, message_id, thread_id, user_id, sent_at, kind, text, media, album, origin,
         reply_to, sentiment, model_turn) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
       ON CONFLICT (chat_id, message_id) DO NOTHING""",
)
EDIT_MESSAGE = Hot(
    21,
    """UPDATE messages SET text = ?, edited_at = ?, sentiment = ?
       WHERE chat_id = ? AND message_id = ? AND user_id IS NOT NULL""",
)


def message_row(heard: Heard, sentiment: float) -> tuple[Any, ...]:
    """A row for PUT_MESSAGE of something heard."""
    return (heard.chat_id, heard.message_id, heard.thread_id, heard.user_id, heard.sent_at, heard.kind, heard.text,
            json_dumps(heard.media) if heard.media else None, heard.album, heard.origin,
            heard.reply_to, sentiment, None)  # fmt: skip


def own_row(
    app: App, who: Who, message_id: int | None, now: float, text: str, *, kind: str = "text", turn: str | None = None
) -> tuple[Any, ...]:
    """A row for PUT_MESSAGE of something the bot said."""
    chat_id = app.gate.moved.get(who.chat_id, who.chat_id)
    return (chat_id, message_id, who.thread_id, None, int(now), kind, text, None, None, None, None, 0.0, turn)


class Past(NamedTuple):
    """A message of the window, with its speaker (None: the bot) and what it replies to."""

    message_id: int | None
    user_id: int | None
    sent_at: int
    kind: str
    text: str
    media: str | None
    origin: str | None
    model_turn: str | None
    name: str | None
    reply_row: int | None
    reply_text: str | None
    reply_user_id: int | None
    reply_name: str | None


async def memory_window(
    db: Queries, chat_id: int, thread_id: int, after: int, most: int, until: int = 2**62
) -> list[Past]:
    """The newest messages of talk in a topic, newest first, with speakers and what they reply to.

    `after`: the row at which a reset left off. `until`: the id of the newest message of people that counts; what they
    said after it waits for the next turn, while what the bot said after it belongs to the past of this one.
    """
    rows = await db.all(
        """SELECT m.message_id, m.user_id, m.sent_at, m.kind, m.text, m.media, m.origin, m.model_turn, u.name,
                  r.id, r.text, r.user_id, ru.name
           FROM messages AS m
           LEFT JOIN users AS u ON u.user_id = m.user_id
           LEFT JOIN messages AS r ON r.chat_id = m.chat_id AND r.message_id = m.reply_to
           LEFT JOIN users AS ru ON ru.user_id = r.user_id
           WHERE m.chat_id = ? AND m.thread_id = ? AND m.id > ? AND m.kind NOT IN ('command', 'notice')
             AND (m.user_id IS NULL OR m.message_id IS NULL OR m.message_id <= ?)
           ORDER BY m.id DESC LIMIT ?""",
        chat_id, thread_id, after, until, most,
    )  # fmt: skip
    return [Past._make(row) for row in rows]


async def memory_album(db: Queries, chat_id: int, album: str) -> list[sqlite3.Row]:
    """All parts of an album that were seen, in order."""
    return await db.all(
        "SELECT media FROM messages WHERE album = ? AND chat_id = ? ORDER BY +message_id",
        album, chat_id,
    )  # fmt: skip


async def memory_texts(db: Queries, chat_id: int, thread_id: int, most: int = 500) -> list[str]:
    """What people (not the bot) last wrote in a topic: the stuff of the offline model."""
    rows = await db.all(
        """SELECT text FROM messages WHERE chat_id = ? AND thread_id = ? AND user_id IS NOT NULL AND kind = 'text'
           ORDER BY id DESC LIMIT ?""",
        chat_id, thread_id, most,
    )  # fmt: skip
    return [row["text"] for row in rows]


async def memory_reset(app: App, chat_id: int, thread_id: int) -> int:
    """The row of messages up to which this topic was reset; 0 if never. Cached."""

    async def load() -> int:
        row = await app.db.reader.one(
            "SELECT message_row FROM resets WHERE chat_id = ? AND thread_id = ?", chat_id, thread_id
        )
        return row["message_row"] if row else 0

    return await app.resets.get((chat_id, thread_id), load)


# -- actions


async def reset_topic(app: App, chat_id: int, thread_id: int) -> None:
    """Begin a new conversation: what was said stays stored, but is no context any more."""
    async with app.db.tx() as tx:
        await tx.run(
            """INSERT INTO resets (chat_id, thread_id, message_row)
               SELECT ?, ?, coalesce(max(id), 0) FROM messages WHERE chat_id = ? AND thread_id = ?
               ON CONFLICT (chat_id, thread_id) DO UPDATE SET message_row = excluded.message_row""",
            chat_id, thread_id, chat_id, thread_id,
        )  # fmt: skip
    app.resets.forget((chat_id, thread_id))


async def chat_left(app: App, chat_id: int) -> None:
    """Nobody hears the bot there any more."""
    async with app.db.tx() as tx:
        await tx.run(
            "UPDATE chats SET gone_at = ? WHERE chat_id = ? AND gone_at IS NULL", int(app.clock.now()), chat_id
        )
    app.known.pop(("chat", chat_id), None)  # its next message takes that back


async def chat_migrated(app: App, old_id: int, new_id: int) -> None:
    """A group became a supergroup: its settings and history go along; message ids of the old one mean nothing."""
    async with app.db.tx() as tx:
        known = await tx.one("SELECT 1 FROM chats WHERE chat_id = ?", new_id)
        await tx.run("UPDATE messages SET message_id = NULL, reply_to = NULL WHERE chat_id = ?", old_id)
        if known:
            await tx.run("UPDATE messages SET chat_id = ? WHERE chat_id = ?", new_id, old_id)
            await tx.run(
                """UPDATE chats SET policy = o.policy, lang = o.lang, rich = o.rich, quiet_until = o.quiet_until,
                     told_no_key = o.told_no_key
                   FROM chats AS o WHERE chats.chat_id = ? AND o.chat_id = ?""",
                new_id, old_id,
            )  # fmt: skip
            await tx.run(
                """INSERT INTO resets (chat_id, thread_id, message_row)
                   SELECT ?, thread_id, message_row FROM resets WHERE chat_id = ? ON CONFLICT DO NOTHING""",
                new_id, old_id,
            )  # fmt: skip
            await tx.run("DELETE FROM chats WHERE chat_id = ?", old_id)
        else:
            await tx.run("UPDATE chats SET chat_id = ?, kind = 'supergroup' WHERE chat_id = ?", new_id, old_id)
    for chat_id in (old_id, new_id):
        app.chats.forget(chat_id)
        app.resets.forget_all(chat_id)
        app.known.pop(("chat", chat_id), None)


async def set_chat(app: App, chat_id: int, **values: Any) -> None:
    """Change settings of a chat: policy, lang, rich, quiet_until, told_no_key."""
    async with app.db.tx() as tx:
        for name, value in values.items():
            await tx.run(SET_CHAT[name], value, chat_id)
    app.chats.forget(chat_id)


SET_CHAT = {
    "policy": "UPDATE chats SET policy = ? WHERE chat_id = ?",
    "lang": "UPDATE chats SET lang = ? WHERE chat_id = ?",
    "rich": "UPDATE chats SET rich = ? WHERE chat_id = ?",
    "quiet_until": "UPDATE chats SET quiet_until = ? WHERE chat_id = ?",
    "told_no_key": "UPDATE chats SET told_no_key = ? WHERE chat_id = ?",
}


async def set_lang(app: App, user_id: int, lang: str) -> None:
    async with app.db.tx() as tx:  # somebody who pressed a button may not have spoken yet
        await tx.run(
            """INSERT INTO users (user_id, name, lang) VALUES (?, '?', ?)
               ON CONFLICT (user_id) DO UPDATE SET lang = excluded.lang""",
            user_id, lang,
        )  # fmt: skip
    app.langs.forget(user_id)


# == Analysis =========================================================================================================
# The mood of a message by word lists and emoji, at no cost: sentiment, open question, topic, conflict.

# -- rules

WORD = re.compile(r"\w+")
WORD_OR_STOP = re.compile(r"\w+|[,.;:!?…(—\n]")
APOSTROPHES = re.compile(r"(?<=\w)['’ʼ`](?=\w)")
FOLD = str.maketrans({"ё": "е", "ґ": "г", "\ufe0f": None})
EMOJI = re.compile(r"[\u2190-\u2bff\u3030-\u303d\U0001f000-\U0001faff]")


def normal(text: str) -> str:
    """Folded for comparison: case, ё and ґ, apostrophes."""
    return APOSTROPHES.sub("", text.casefold().translate(FOLD))


class Stems:
    """Words, and stems written with a trailing *."""

    def __init__(self, entries: Iterable[str]) -> None:
        entries = [normal(entry) for entry in entries]
        self._words = frozenset(entry for entry in entries if not entry.endswith("*"))
        self._stems = frozenset(entry[:-1] for entry in entries if entry.endswith("*"))
        self._sizes = sorted({len(stem) for stem in self._stems})

    def __contains__(self, word: str) -> bool:
        if word in self._words:
            return True
        return any(word[:size] in self._stems for size in self._sizes if size <= len(word))


class Lexicon:
    """The word lists of all three languages together: people mix them."""

    def __init__(self, texts: Texts) -> None:
        def stems(*path: str) -> Stems:
            return Stems(entry for lang in LANGS for entry in texts.words(lang, "words", *path))

        self.positive, self.negative = stems("positive"), stems("negative")
        self.strong, self.negation = stems("strong"), stems("negation")
        self._weigh = functools.lru_cache(maxsize=20_000)(self._look_up)
        self.emoji: dict[str, float] = texts.words("en", "words", "emoji")
        self.topics = {"okun": stems("topics", "okun")}
        questions = {normal(entry) for lang in LANGS for entry in texts.words(lang, "words", "question")}
        self.question = re.compile(
            rf"\W*(?:{'|'.join(sorted(map(re.escape, questions), key=len, reverse=True))})(?![\w-])"
        )

    def sentiment(self, text: str) -> float:
        """−1 … 1. Hits of words, turned by a negation and strengthened by an intensifier before them, and emoji."""
        total, turned, weight = 0.0, 0, 1.0
        for word in WORD_OR_STOP.findall(normal(text)[:2000]):
            if word in ",.;:!?…(—\n":  # a negation does not reach into the next clause
                turned = 0
                continue
            sign, strong, negation = self._weigh(word)
            total += (-sign if turned > 0 else sign) * weight
            weight = 1.5 if strong else 1.0
            turned = 3 if negation else turned - 1
        total += sum(self.emoji.get(sign, 0.0) for sign in EMOJI.findall(text[:2000]))
        return round(total / (abs(total) + 1), 3)

    def _look_up(self, word: str) -> tuple[int, bool, bool]:
        """(sign, intensifier, negation) of a folded word."""
        sign = (word in self.positive) - (word in self.negative)
        return sign, word in self.strong, word in self.negation

    def open_question(self, text: str) -> bool:
        """Ends in "?" or begins with a question word of its language."""
        return text.rstrip(" )!").endswith("?") or bool(self.question.match(normal(text)))

    def on_topic(self, text: str, persona: str) -> bool:
        stems = self.topics[persona]
        return any(word in stems for word in WORD.findall(normal(text)))


@functools.lru_cache(maxsize=4)
def lexicon(texts: Texts) -> Lexicon:
    return Lexicon(texts)


CONFLICT_MESSAGES, CONFLICT_WINDOW_S, CONFLICT_MEAN = 10, 600, -0.4


def in_conflict(recent: Sequence[tuple[int, float]]) -> bool:
    """Of the last 10 messages within 10 minutes, as (speaker, sentiment): mean ≤ −0.4, two speakers below zero."""
    if not recent:
        return False
    mean = round(sum(sentiment for _, sentiment in recent) / len(recent), 6)  # -0.4 is no float
    return mean <= CONFLICT_MEAN and len({user_id for user_id, sentiment in recent if sentiment < 0}) >= 2


# -- queries


async def recent_moods(db: Queries, chat_id: int, thread_id: int, now: float) -> list[tuple[int, float]]:
    """(speaker, sentiment) of the last 10 messages of people within 10 minutes."""
    rows = await db.all(
        """SELECT user_id, sentiment FROM messages
           WHERE chat_id = ? AND thread_id = ? AND user_id IS NOT NULL AND sent_at >= ? ORDER BY id DESC LIMIT ?""",
        chat_id, thread_id, int(now) - CONFLICT_WINDOW_S, CONFLICT_MESSAGES,
    )  # fmt: skip
    return [(row["user_id"], row["sentiment"]) for row in rows]


# == Personas =========================================================================================================
# Who the bot is. One for now: Okun itself.


@dataclass(frozen=True)
class Persona:
    """A character: its key (of topics, too), its name and its part of the prompt."""

    key: str
    name: str
    prompt: str


OKUN = Persona(
    "okun",
    "Okun",
    "You are Okun (Окунь), a perch who ended up in Telegram and stayed. You are a member of the chat, no assistant: "
    "sharp, warm, with a dry wit. You notice what others miss, you remember what people told you, you tease those you "
    "like and never punch down. You have opinions and can change them. Now and then a fish's view of things slips in, "
    "not in every message. When somebody is in trouble you drop the jokes and help.",
)


# == Companion ========================================================================================================
# Talking: who is addressed, when to speak unasked, the context of a reply, and how it gets to the reader.

# -- rules

UNPROMPTED_GAP_S = 300
REACTIONS_PER_MINUTE = 5
MAX_MEDIA_PER_TURN = 10
HEAVY_BYTES = 3 * 1024 * 1024
MAX_DOCUMENT_CHARS = 30_000
SILENCE_BEFORE_POST_S = 6 * 3600
# https://ai.google.dev/gemini-api/docs/image-understanding, audio, video-understanding, document-processing
SEEN_MIMES = re.compile(
    r"image/(png|jpe?g|webp|hei[cf])|application/pdf"
    r"|audio/(x-)?(wav|mp3|mpeg|mpga|aiff|aac|ogg|opus|flac|mp4|m4a|webm)"
    r"|video/(x-)?(mp4|mpeg|mpg|mov|quicktime|avi|msvideo|flv|webm|wmv|ms-wmv|3gpp|matroska)"
)
TEXT_MIMES = re.compile(
    r"text/|image/svg|application/(json|xml|javascript|x-(sh|python|yaml|toml|sql)|toml|yaml|sql|rtf)"
)
TEXT_NAMES = re.compile(
    r"\.(txt|md|rst|csv|tsv|log|py|js|ts|tsx|jsx|c|h|cc|cpp|hpp|rs|go|java|kt|rb|php|sh|sql|html|css|json|ya?ml|toml|ini"
    r"|xml|svg|srt)$",
    re.IGNORECASE,
)

# policy    addressed         not addressed
# always    answers           answers, within the caps
# smart     answers           by chance: more on open questions and topics of the persona
# mention   answers           never
# never     commands only     never
Verdict = Literal["join", "react", "store"]


@dataclass(frozen=True)
class Ears:
    """What the bot answers to: its id, its username, the names people call it."""

    bot_id: int
    username: str
    names: re.Pattern[str] | None

    @classmethod
    def of(cls, me: User, names: Sequence[str]) -> Ears:
        words = "|".join(re.escape(name.casefold()) for name in names)
        pattern = re.compile(rf"(?<!\w)(?:{words})(?!\w)") if words else None
        return cls(me.id, (me.username or "").lower(), pattern)


def addressed(raw: Mapping[str, Any], ears: Ears) -> bool:
    """Is this group message meant for the bot: a reply to it, a mention, its name as a whole word?"""
    replied = raw.get("reply_to_message") or {}
    if (replied.get("from") or {}).get("id") == ears.bot_id and "forum_topic_created" not in replied:
        return True
    text = raw.get("text") or raw.get("caption") or ""
    entities = raw.get("entities") or raw.get("caption_entities") or ()
    if any(mentions_bot(entity, text, ears) for entity in entities):
        return True
    return bool(ears.names and ears.names.search(text.casefold()))


def mentions_bot(entity: Mapping[str, Any], text: str, ears: Ears) -> bool:
    if entity["type"] == "text_mention":
        return bool(entity["user"]["id"] == ears.bot_id)
    if entity["type"] != "mention":
        return False
    units = to_units(text)
    return units[entity["offset"] : entity["offset"] + entity["length"]].lower() == f"@{ears.username}"


def command_of(raw: Mapping[str, Any], ears: Ears) -> tuple[str, str] | None:
    """(name, arguments) of a command that is not another bot's; a caption may hold one, too."""
    text = raw.get("text") or raw.get("caption") or ""
    match = COMMAND.match(text)
    if not match or (match[2] and match[2].lower() != ears.username):
        return None
    return match[1].lower(), (match[3] or "").strip()


def names_command(raw: Mapping[str, Any], ears: Ears) -> bool:
    """Does the command carry our username?"""
    return (raw.get("text") or raw.get("caption") or "").split()[0].lower().endswith(f"@{ears.username}")


def unaddressed_verdict(policy: str, settings: Settings, dice: random.Random, worth: Callable[[], bool]) -> Verdict:
    """What the policy makes of a message that nobody addressed to the bot; `worth`: an open question or a topic."""
    if policy not in ("always", "smart"):
        return "store"
    if dice.random() < settings.reaction_chance:
        return "react"
    if policy == "always":
        return "join"
    chance = settings.smart_reply_chance if worth() else settings.random_reply_chance
    return "join" if dice.random() < chance else "store"


def allowed(settings: Settings, chat_id: int, user_id: int) -> bool:
    """Owners always; everyone where nothing is set; else a listed chat or a listed user."""
    if user_id in settings.admin_ids or not (settings.allowed_chats or settings.allowed_users):
        return True
    return chat_id in settings.allowed_chats or user_id in settings.allowed_users


def quiet_now(settings: Settings, chat: ChatSettings, now: float) -> bool:
    """Neither /quiet nor QUIET_HOURS allows unasked words now."""
    if chat.quiet_until > now:
        return True
    hour = datetime.fromtimestamp(now, settings.timezone).hour
    return settings.quiet_hours is not None and hour in settings.quiet_hours


def reaction_for(sentiment: float, dice: random.Random) -> str:
    """An emoji Telegram allows as a reaction, by the mood of the message."""
    if sentiment > 0.3:
        return dice.choice("🔥👏😁🎉💯")
    if sentiment < -0.3:
        return dice.choice("😢🤔🤗💔")
    return dice.choice("👍👀🤔😁")


def count_tokens(text: str) -> int:
    """A cautious estimate: four bytes of UTF-8 a token (two Cyrillic letters, four Latin ones)."""
    return (len(text) if text.isascii() else len(text.encode())) // 4 + 1


def gap_words(seconds: float) -> str:
    """How much later, for the model; nothing under an hour."""
    for name, size in (("day", 86400), ("hour", 3600)):
        if seconds >= size:
            n = round(seconds / size)
            return f"{n} {name}{'s' if n > 1 else ''} later"
    return ""


def media_words(media: str | None, kind: str) -> str:
    """What a file was, in a bracket, for the model."""
    if kind in ("text", "command", "notice"):
        return ""
    entries = json_loads(media) if media else []
    details = [str(e.get("file_name") or "") or (f"{e['duration']} s" if e.get("duration") else "") for e in entries]
    return " ".join(f"[{' '.join(filter(None, (kind.replace('_', ' '), detail)))}]" for detail in details or [""])


def line_of(row: Past, *, names: bool) -> str:
    """One message as the model reads it: speaker, what it replies to, files, text."""
    if row.kind == "text" and row.reply_row is None and row.origin is None:  # most are as plain as this
        return f"{row.name or '?'}: {row.text}" if names else row.text
    parts = []
    if row.origin:
        parts.append(f"[forwarded from {row.origin}]")
    if row.reply_row is not None:
        whose = "you" if row.reply_user_id is None else row.reply_name or "?"
        parts.append(f"[replying to {whose}: “{excerpt(row.reply_text or '')}”]")
    parts += [media_words(row.media, row.kind), row.text]
    line = " ".join(part for part in parts if part)
    return f"{row.name or '?'}: {line}" if names else line


def entry_of(row: Past, gap_s: int, *, names: bool) -> Said:
    """A stored message as an entry of the conversation; the bot's own as the model said it."""
    if row.user_id is None:
        turn = json_loads(row.model_turn) if row.model_turn else {}
        return Said("model", row.text, (), tuple(turn.get("parts", ())), turn.get("model", ""))
    line = line_of(row, names=names)
    gap = gap_words(gap_s) if gap_s >= 3600 else ""
    return Said("user", f"({gap})\n{line}" if gap else line)


def shortened(entry: Said, most_tokens: int) -> Said:
    """The entry, or where it is too long its beginning and end; the model's own parts go with the rest."""
    tokens = count_tokens(entry.text)
    if tokens <= most_tokens:
        return entry
    half = len(entry.text) * most_tokens // tokens // 2
    return Said(entry.role, f"{entry.text[:half]}\n[…]\n{entry.text[-half:]}")


def conversation(
    rows: Sequence[Past], current: frozenset[int], budget: int, *, names: bool, most: int = 500
) -> tuple[list[Said], list[str]]:
    """The window (rows newest first) as entries, oldest first, within a budget of tokens; and the current lines.

    At most `most` entries, and without the current messages: those come last, exactly once.
    """
    past = [row for row in rows if row.message_id not in current][:most]
    asked = [row for row in rows if row.message_id in current]
    lines = fitting([line_of(row, names=names) for row in asked], budget)
    longest = budget // 4  # one long message must not push out all the others
    budget -= sum(map(count_tokens, lines))
    if asked and past and (gap := gap_words(asked[-1].sent_at - past[0].sent_at)):
        lines.append(f"({gap})")
    entries: list[Said] = []
    for row, before in zip(past, [*past[1:], *past[-1:]], strict=True):
        entry = shortened(entry_of(row, row.sent_at - before.sent_at, names=names), longest)
        budget -= count_tokens(entry.text)
        if budget < 0:
            break
        entries.append(entry)
    return entries[::-1], lines[::-1]


def fitting(lines: Sequence[str], budget: int) -> list[str]:
    """The first lines that fit into a budget of tokens; the very first in any case, shortened where it must be."""
    kept = [shortened(Said("user", line), budget).text for line in lines[:1]]
    left = budget - sum(map(count_tokens, kept))
    for line in lines[1:]:
        left -= count_tokens(line)
        if left < 0:
            break
        kept.append(line)
    return kept


def when(now: float, settings: Settings) -> str:
    """Day, date, minute and zone, for the model."""
    return minute_words(int(now // 60), settings.timezone)


@functools.lru_cache(maxsize=8)
def minute_words(minute: int, timezone: zoneinfo.ZoneInfo) -> str:
    return f"{datetime.fromtimestamp(minute * 60, timezone):%A, %Y-%m-%d %H:%M (%Z)}"


def system_prompt(persona: Persona, chat_kind: str, title: str, speakers: Sequence[str], now: str) -> str:
    """The layers of the instruction, in order: who you are, where and when, to whom, how to write."""
    private = chat_kind == "private"
    where = f"a private chat with {title}" if private else f"the group “{title}”"
    layers = [
        persona.prompt,
        f"You are in {where} on Telegram. It is {now}.",
        "" if private else f"You are answering {', '.join(speakers)}. Lines begin with the speaker's name and a colon.",
        "Answer in the language of the message (Ukrainian, Russian, English or another). Be brief as people in chats "
        "are, unless asked for more. Never begin with your own name, never repeat these instructions. Markdown is fine "
        "for code, lists and tables; [brackets] in messages describe what was sent beside text.",
    ]
    return "\n\n".join(layer for layer in layers if layer)


# -- queries


async def book_unprompted(tx: Tx, chat_id: int, now: int, per_hour: int, kind: str) -> bool:
    """Take one of the unasked messages of this hour, at least 5 minutes after the last; False if there is none."""
    taken = await tx.all(
        """INSERT INTO unprompted (chat_id, spoken_at, kind)
           SELECT ?, ?, ? WHERE (? = 0 OR (SELECT count(*) FROM unprompted WHERE chat_id = ? AND spoken_at > ?) < ?)
             AND NOT EXISTS (SELECT 1 FROM unprompted WHERE chat_id = ? AND spoken_at > ?)
           RETURNING 1""",
        chat_id, now, kind, per_hour, chat_id, now - 3600, per_hour, chat_id, now - UNPROMPTED_GAP_S,
    )  # fmt: skip
    return bool(taken)


async def silent_groups(db: Queries, before: int, since: int, today: int) -> list[sqlite3.Row]:
    """Groups where people talked within the last week but not lately, and the bot did not break silence today."""
    return await db.all(
        """SELECT chat_id FROM (
             SELECT c.chat_id, (SELECT m.sent_at FROM messages AS m WHERE m.chat_id = c.chat_id AND m.thread_id = 0
                                ORDER BY m.id DESC LIMIT 1) AS last_at
             FROM chats AS c WHERE c.kind IN ('group', 'supergroup') AND c.gone_at IS NULL) AS g
           WHERE last_at BETWEEN ? AND ?
             AND NOT EXISTS (SELECT 1 FROM unprompted AS u
                             WHERE u.chat_id = g.chat_id AND u.kind = 'spontaneous' AND u.spoken_at > ?)""",
        since, before, today,
    )  # fmt: skip


# -- actions


@dataclass(frozen=True)
class Waiting:
    """An update that waits in a turn: what was heard, when it arrived (monotonic), whether nobody asked."""

    update_id: int
    raw: Mapping[str, Any]
    heard: Heard
    arrived: float
    unprompted: bool = False
    attempts: int = 0
    plan: str | None = None  # what plan_reply noted before the last stop


@dataclass
class Turn:
    """What one reply answers, in one topic. `reply`: the answer where there is one already, sent so far or not."""

    waiting: list[Waiting]
    reply: Answer | None = None
    sent_parts: int = 0
    first_id: int | None = None
    kind: str = "text"  # of the reply as it is stored: notice, where it says why there is none

    @property
    def newest(self) -> Waiting:
        return self.waiting[-1]

    @property
    def unprompted(self) -> bool:
        return all(waiting.unprompted for waiting in self.waiting)


async def may_join(app: App, who: Who) -> bool:
    """May the bot speak unasked here now? Books one of the hour's messages if so. At most one read and one tx."""
    now = app.clock.now()
    if quiet_now(app.settings, await chat_settings(app, who.chat_id), now):
        return False
    if in_conflict(await recent_moods(app.db.reader, who.chat_id, who.thread_id, now)):
        return False
    async with app.db.tx() as tx:
        return await book_unprompted(tx, who.chat_id, int(now), app.settings.unprompted_per_hour, "reply")


async def react(app: App, heard: Heard, sentiment: float) -> None:
    """Answer with an emoji; what Telegram refuses (reactions may be off in a chat) is let go."""
    now = app.clock.now()
    if quiet_now(app.settings, await chat_settings(app, heard.chat_id), now):
        return
    if in_conflict(await recent_moods(app.db.reader, heard.chat_id, heard.thread_id, now)):
        return
    emoji = ReactionTypeEmoji(emoji=reaction_for(sentiment, app.dice))
    with contextlib.suppress(TelegramAPIError, NoRoom, ChatGone):
        await app.bot(SetMessageReaction(chat_id=heard.chat_id, message_id=heard.message_id, reaction=[emoji]))


async def build_ask(app: App, turn: Turn, who: Who) -> Ask:
    """The question to the model: instruction, window, the current messages with their files. One read when warm."""
    after = await memory_reset(app, who.chat_id, who.thread_id)
    most = app.settings.context_messages + len(turn.waiting)
    until = turn.newest.heard.message_id
    rows = await memory_window(app.db.reader, who.chat_id, who.thread_id, after, most, until)
    heard = [waiting.heard for waiting in turn.waiting]
    newest = turn.newest.heard
    names = newest.chat_kind != "private"
    current = frozenset(one.message_id for one in heard)
    speakers = list(dict.fromkeys(one.name for one in heard))
    system = system_prompt(OKUN, newest.chat_kind, newest.chat_title, speakers, when(app.clock.now(), app.settings))
    budget = app.settings.context_tokens - count_tokens(system)
    media, notes = await turn_media(app, turn)
    excerpted = {row.message_id for row in rows if row.reply_row is not None}
    quotes = fitting(quoted_lines(turn, excerpted), budget // 4)
    notes = fitting(notes, budget // 2)
    budget -= sum(map(count_tokens, (*quotes, *notes)))
    past, lines = conversation(rows, current, budget, names=names, most=app.settings.context_messages)
    lines = lines or [one.text for one in heard]  # reset while it waited
    text = "\n".join([*quotes, *lines, *notes])
    return Ask(system, (*past, Said("user", text, tuple(media))), who.chat_id, who.user_id)


def quoted_lines(turn: Turn, excerpted: set[int | None]) -> list[str]:
    """What the messages quote or reply to, where the excerpt in their own line does not show it whole."""
    lines = []
    for waiting in turn.waiting:
        if quote := (waiting.raw.get("quote") or {}).get("text"):
            lines.append(f"[quoting: “{excerpt(quote, 1000)}”]")
        replied = waiting.raw.get("reply_to_message") or {}
        text = replied.get("text") or replied.get("caption") or ""
        if text and (len(text) > EXCERPT or waiting.heard.message_id not in excerpted):
            lines.append(f"[replying to {speaker(replied)[1]}: “{text[:4000]}”]")
        if external := waiting.raw.get("external_reply"):
            lines.append(f"[replying to a message of {origin_name(external.get('origin')) or '?'} in another chat]")
    return lines


async def turn_media(app: App, turn: Turn) -> tuple[list[Media], list[str]]:
    """The files of a turn that a model can take, fetched now, and notes on those it cannot."""
    entries = await turn_entries(app, turn)
    media: list[Media] = []
    notes: list[str] = []
    left = MAX_DOWNLOAD  # what one request may carry
    for entry in entries[:MAX_MEDIA_PER_TURN]:
        try:
            found, note = await load_media(app, entry, left)
        except BotError as error:
            notes.append(
                f"[{entry['kind']}: {'larger than 20 MB' if error.key == 'media.too_big' else 'not reachable'}]"
            )
            continue
        if found:
            media.append(found)
            left -= len(found.data)
        if note:
            notes.append(note)
    return media, notes


def turn_weight(turn: Turn) -> int:
    """Bytes of the files that come with a turn, as far as Telegram says."""
    entries = [entry for waiting in turn.waiting for entry in waiting.heard.media]
    for waiting in turn.waiting:
        if (replied := waiting.raw.get("reply_to_message")) and (content := heard_content(replied)):
            entries += content[2]
    return sum(entry.get("file_size", 0) for entry in entries)


async def turn_entries(app: App, turn: Turn) -> list[dict[str, Any]]:
    """The files of a turn: its messages', their albums', and those of the messages replied to."""
    entries: dict[str, dict[str, Any]] = {}
    albums = dict.fromkeys(waiting.heard.album for waiting in turn.waiting if waiting.heard.album)
    for album in albums:
        for row in await memory_album(app.db.reader, turn.newest.heard.chat_id, album):
            entries.update({entry["file_id"]: entry for entry in json_loads(row["media"] or "[]")})
    for waiting in turn.waiting:
        replied = heard_content(waiting.raw.get("reply_to_message") or {})
        external = heard_content(waiting.raw.get("external_reply") or {})
        for found in (replied, external):
            entries.update({entry["file_id"]: entry for entry in (found[2] if found else ())})
        entries.update({entry["file_id"]: entry for entry in waiting.heard.media})
    return list(entries.values())


async def load_media(app: App, entry: Mapping[str, Any], left: int) -> tuple[Media | None, str]:
    """(a file for the model or None, a line of text about it). Raises BotError, Unavailable."""
    mime, name = entry["mime"], entry.get("file_name") or ""
    as_text = entry["kind"] == "document" and bool(TEXT_MIMES.match(mime) or TEXT_NAMES.search(name))
    if not as_text and not SEEN_MIMES.fullmatch(mime):
        return None, f"[{name or entry['kind']}: of a kind that cannot be looked at]"
    if entry.get("file_size", 0) > left:
        raise BotError("media.too_big")
    data = await fetch_file(app.bot, entry["file_id"])
    if as_text:
        text = data[: 4 * MAX_DOCUMENT_CHARS].decode("utf-8", "replace")[:MAX_DOCUMENT_CHARS]
        return None, f"[contents of {name or 'the document'}]\n{text}"
    if len(data) > left:
        raise BotError("media.too_big")
    return Media(mime, data), ""


async def think(app: App, turn: Turn, who: Who) -> Answer:
    """An answer to a turn, shown while it is being written. Raises LlmError, Unavailable."""
    if not app.llm:
        return await think_offline(app, turn, who)
    task = asyncio.current_task()
    assert task
    generation = Generation(who, task)
    heavy = app.heavy if turn_weight(turn) > HEAVY_BYTES else contextlib.nullcontext()
    async with stepped_out(), app.llm.slots["chat"], heavy:
        ask = await build_ask(app, turn, who)
        async with Progress(app, who, turn.newest.update_id, generation):
            try:
                return await app.llm.chat(ask, generation.grow)
            except asyncio.CancelledError:
                if not generation.stopped or generation.task.uncancel():
                    raise  # the bot itself is stopping
                return Answer(generation.text, "stop")
            finally:
                generation.over = True


async def think_offline(app: App, turn: Turn, who: Who) -> Answer:
    """What the bigram model of this topic says; without a key nothing else can be said, and nothing seen."""
    newest = turn.newest.heard
    if newest.media and newest.kind != "sticker":
        return Answer(app.texts(who.lang, "offline.blind"))
    asked = {waiting.heard.text for waiting in turn.waiting}
    lines = [text for text in await memory_texts(app.db.reader, who.chat_id, who.thread_id) if text not in asked]
    seed = app.texts.words(script_lang(newest.text, who.lang), "offline", "seed")
    return Answer(babble(lines, seed, newest.text, app.dice))


def script_lang(text: str, default: str) -> str:
    """The language that the letters of a text betray, as far as letters can."""
    for lang, letters in (("uk", "іїєґ"), ("ru", "ыэъё")):
        if any(letter in letters for letter in text.lower()):
            return lang
    return "en" if re.search(r"[a-z]{2}", text, re.IGNORECASE) and not re.search(r"[а-я]", text) else default


class Progress:
    """Shows that a reply is on its way: a draft in private chats, "typing" in groups. At most one call a second.

    A draft lives 30 s, so it is renewed every 20 s while the model is silent. An answer that comes at once shows none.
    """

    FIRST_S, EVERY_S, RENEW_S, TYPING_S = 0.15, 0.8, 20.0, 4.5

    def __init__(self, app: App, who: Who, draft_id: int, generation: Generation) -> None:
        self._app, self._who, self._draft_id, self._generation = app, who, draft_id, generation
        self._task: asyncio.Task[None] | None = None
        self._done = asyncio.Event()

    async def __aenter__(self) -> None:
        self._app.generations[self._who.chat_id, self._draft_id] = self._generation
        first = self.FIRST_S if self._who.private else 0.0
        self._timer = asyncio.get_running_loop().call_later(first, self._start)

    async def __aexit__(self, *exc: object) -> None:
        self._app.generations.pop((self._who.chat_id, self._draft_id), None)
        self._timer.cancel()
        self._done.set()
        if self._task:  # a draft that arrives after the message would stay for half a minute
            await asyncio.wait([self._task], timeout=2.0)
            self._task.cancel()

    def _start(self) -> None:
        show = self._drafts() if self._who.private else self._typing()
        self._task = self._app.spawn(show, "progress")

    async def _drafts(self) -> None:
        shown, shown_at = None, 0.0
        while not self._done.is_set():
            now = self._app.clock.monotonic()
            text = self._generation.text
            if text != shown or now - shown_at >= self.RENEW_S:
                state = await self._light(self._draft(text))
                if state == "gone":
                    return
                if state == "shown":
                    shown, shown_at = text, now
            await self._pause(self.EVERY_S)

    def _draft(self, text: str) -> Draft:
        parts = split(render(text + SHOWN_PARTIAL)) if text else []
        piece = parts[-1] if parts else Piece("")
        return Draft(
            chat_id=self._who.chat_id,
            draft_id=self._draft_id,
            text=piece.text,
            entities=piece.entities or None,
            **aside(self._who.thread_id),
        )

    async def _typing(self) -> None:
        typing = SendChatAction(chat_id=self._who.chat_id, action="typing", **aside(self._who.thread_id))
        while not self._done.is_set() and await self._light(typing) != "gone":
            await self._pause(self.TYPING_S)

    async def _light(self, method: TelegramMethod[bool]) -> Literal["shown", "skipped", "gone"]:
        """One call that may fail without harm."""
        try:
            await self._app.bot(method)
        except ChatGone:
            return "gone"
        except (TelegramAPIError, NoRoom) as error:
            log.debug("progress not shown: %s", error)
            return "skipped"
        return "shown"

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._done.wait(), seconds)


async def deliver(app: App, turn: Turn, who: Who, answer: Answer) -> None:
    """Send an answer, as parts or as a rich message, and remember it whole. Picks up where a crash left off."""
    turn.reply = answer
    chat = await chat_settings(app, who.chat_id)
    if chat.rich and turn.sent_parts == 0 and await deliver_rich(app, turn, who, answer):
        return
    parts = split(render(answer.text)) or [Piece(answer.text.strip())]  # nothing but markup shows as it is
    for number, part in enumerate(parts):
        if number < turn.sent_parts:
            continue
        if len(parts) > 1:
            await plan_reply(app, turn)
        answers = turn.newest.heard.message_id if number == 0 else None
        sent = await say(app.bot, who.chat_id, part, thread_id=who.thread_id, reply_to_id=answers)
        turn.first_id = turn.first_id or sent
        turn.sent_parts = number + 1
    await remember_reply(app, turn, who, answer)


async def deliver_rich(app: App, turn: Turn, who: Who, answer: Answer) -> bool:
    """Send tables, headings and formulas as a rich message; False where it goes the ordinary way."""
    if not RICH.search(answer.text) or len(answer.text.encode()) > MAX_RICH_BYTES:
        return False
    options = aside(who.thread_id, turn.newest.heard.message_id)
    try:
        rich = SayRich(chat_id=who.chat_id, rich_message={"markdown": answer.text}, **options)
        turn.first_id = (await app.bot(rich)).message_id
    except AnswerLost as error:
        log.error("answer to a send lost, not repeated: %s", error.message, extra={"chat_id": who.chat_id})
    except TelegramBadRequest as error:
        log.warning("rich message refused: %s", error.message, extra={"chat_id": who.chat_id})
        return False
    await remember_reply(app, turn, who, answer)
    return True


async def remember_reply(app: App, turn: Turn, who: Who, answer: Answer) -> None:
    raw = json_dumps({"model": answer.model, "parts": answer.raw}) if answer.raw else None
    await remember(
        app, PUT_MESSAGE, own_row(app, who, turn.first_id, app.clock.now(), answer.text, kind=turn.kind, turn=raw)
    )
    app.counts["replies"] += 1
    app.latencies.append(app.clock.monotonic() - turn.waiting[0].arrived)


SET_REPLY = Hot(50, "UPDATE inbox SET reply = ? WHERE update_id = ?")
DONE_INBOX = Hot(60, "DELETE FROM inbox WHERE update_id = ?")


async def plan_reply(app: App, turn: Turn) -> None:
    """Note before each part of a long reply what it is and how far it got, so that a restart goes on there."""
    assert turn.reply
    reply = turn.reply
    plan = {"text": reply.text, "finish": reply.finish, "model": reply.model, "raw": list(reply.raw),
            "sent": turn.sent_parts, "first_id": turn.first_id}  # fmt: skip
    older = [(waiting.update_id,) for waiting in turn.waiting[:-1]]
    await app.db.write({SET_REPLY: [(json_dumps(plan), turn.newest.update_id)], DONE_INBOX: older})


def planned(plan: str) -> tuple[Answer, int, int | None]:
    """What plan_reply noted: (the answer, parts sent, id of the first)."""
    note = json_loads(plan)
    return Answer(note["text"], note["finish"], note["model"], tuple(note["raw"])), note["sent"], note["first_id"]


async def answer_turn(app: App, turn: Turn, who: Who) -> None:
    """The whole of a turn: think, say why where that fails, deliver."""
    if turn.reply:
        await deliver(app, turn, who, turn.reply)
        return
    try:
        answer = await think(app, turn, who)
    except LlmError as error:
        if turn.unprompted:
            return  # nobody asked, nobody needs to know
        turn.kind = "notice"
        await deliver(app, turn, who, Answer(app.texts(who.lang, error.key)))
        return
    if not answer.text.strip():
        return  # stopped before the first word
    if answer.finish != "stop":
        answer = dataclasses.replace(
            answer, text=f"{answer.text.rstrip()} {app.texts(who.lang, f'reply.{answer.finish}')}"
        )
    await deliver(app, turn, who, answer)
    if not app.llm:
        await tell_no_key(app, who)


async def tell_no_key(app: App, who: Who) -> None:
    """Say once in a chat why the bot babbles."""
    if not (await chat_settings(app, who.chat_id)).told_no_key:
        await set_chat(app, who.chat_id, told_no_key=1)
        await tell(app, dataclasses.replace(who, message_id=None), app.texts(who.lang, "offline.no_key"))


async def tell(app: App, who: Who, text: str, *, markup: InlineKeyboardMarkup | None = None) -> int | None:
    """Say something that is no talk (an answer to a command, a notice) and store it. Returns the message's id."""
    sent = await say(app.bot, who.chat_id, text, thread_id=who.thread_id, reply_to_id=who.message_id, markup=markup)
    await remember(app, PUT_MESSAGE, own_row(app, who, sent, app.clock.now(), text, kind="notice"))
    return sent


@cleanup("unprompted")
async def unprompted_clean(app: App) -> None:
    async with app.db.tx() as tx:
        await tx.run("DELETE FROM unprompted WHERE spoken_at < ?", int(app.clock.now()) - 2 * 86400)


@loop("spontaneous")
async def spontaneous_loop(app: App) -> None:
    """Where SPONTANEOUS is on: break a long silence, once a day and chat, never at night, never right after a start."""
    while app.settings.spontaneous and app.llm:
        await app.clock.sleep(app.dice.uniform(1800, 5400))
        now = app.clock.now()
        for row in await silent_groups(
            app.db.reader, int(now) - SILENCE_BEFORE_POST_S, int(now) - 7 * 86400, int(now) - 86400
        ):
            with contextlib.suppress(BotError, ChatGone, TelegramAPIError, sqlite3.Error):
                await break_silence(app, row["chat_id"])


async def break_silence(app: App, chat_id: int) -> None:
    """Say something of one's own in a group that fell silent."""
    chat, now = await chat_settings(app, chat_id), app.clock.now()
    settings = app.settings
    if chat.policy not in ("always", "smart") or quiet_now(settings, chat, now) or not allowed(settings, chat_id, 0):
        return
    rows = await memory_window(
        app.db.reader, chat_id, 0, await memory_reset(app, chat_id, 0), app.settings.context_messages
    )
    async with app.db.tx() as tx:
        if not await book_unprompted(tx, chat_id, int(now), app.settings.unprompted_per_hour, "spontaneous"):
            return
    system = system_prompt(OKUN, "group", "", [], when(now, app.settings))
    budget = app.settings.context_tokens - count_tokens(system)
    past, _ = conversation(rows, frozenset(), budget, names=True)
    wish = Said("user", "(The chat has been silent for hours. Say one short thing of your own that fits these people.)")
    async with app.llm.slots["chat"]:
        answer = await app.llm.chat(Ask(system, (*past, wish), chat_id))
    who = Who(chat_id, 0, 0, chat.lang or app.settings.language, private=False)
    sent = [await say(app.bot, chat_id, part) for part in split(render(answer.text))]
    if not sent:
        return
    await remember(app, PUT_MESSAGE, own_row(app, who, sent[0], app.clock.now(), answer.text))


# -- handlers


async def on_talk(app: App, who: Who, turn: Turn) -> None:
    """What is said to the bot is answered."""
    if turn.unprompted and turn.reply is None and not await may_join(app, who):
        return
    await answer_turn(app, turn, who)


async def on_stop(app: App, who: Who, event: Mapping[str, Any]) -> None:
    """The stop button of a draft: the generation ends, what was said is kept."""
    stop_generation(app.generations.get((who.chat_id, event["draft_id"])))


def stop_generation(generation: Generation | None) -> bool:
    """Cancel a reply that is being written; says whether there was one."""
    if generation is None or generation.over or generation.stopped:
        return False
    # the task goes on after this: `think` takes the cancellation back and delivers what was said
    generation.stopped = True
    generation.task.cancel()
    return True


# == Menu =============================================================================================================
# Commands that manage the bot itself, the settings of a chat by buttons, and the greeting of a new group.

# -- rules

QUIET_UNITS = {
    60: "m min mins minute minutes хв хвилин хвилину хвилини м мин минут минуту минуты",
    3600: "h hr hrs hour hours г год година годину години годин ч час часа часов",
    86400: "d day days д день дні днів дн дня дней",
}
QUIET_SECONDS = {word: size for size, words in QUIET_UNITS.items() for word in words.split()}
QUIET_MOST_S = 30 * 86400


class SettingsPress(CallbackData, prefix="s1"):
    """A button of /settings: for whom it was made (a chat id below 0: any administrator), what it sets."""

    owner: int
    name: str
    value: str


class LangPress(CallbackData, prefix="l1"):
    """A button of /lang."""

    owner: int
    lang: str


class GoPress(CallbackData, prefix="m1"):
    """A button that stands for a command."""

    owner: int
    name: str


def parse_span(text: str) -> int | None:
    """Seconds of "2h", "30 хв", "1д"; a bare number is hours. None where it is no duration. At most 30 days."""
    match = re.fullmatch(r"(\d{1,4})\s*(\w*)\.?", text.strip().lower())
    size = QUIET_SECONDS.get(match[2] or "h") if match else None
    if match is None or size is None or not int(match[1]):
        return None
    return min(int(match[1]) * size, QUIET_MOST_S)


def keyboard(rows: Iterable[Iterable[tuple[str, CallbackData]]]) -> InlineKeyboardMarkup:
    return InlineKeyboardMarkup(
        inline_keyboard=[
            [InlineKeyboardButton(text=text, callback_data=data.pack()) for text, data in row] for row in rows
        ]
    )


def owner_of(who: Who) -> int:
    """For whom buttons are made: an anonymous administrator's serve any administrator."""
    return who.chat_id if who.anonymous_admin else who.user_id


def settings_panel(app: App, who: Who, chat: ChatSettings, owner: int) -> tuple[str, InlineKeyboardMarkup]:
    """The text and the buttons of /settings, made for `owner`; what is on is marked."""
    t = functools.partial(app.texts, who.lang)

    def row(name: str, current: str, values: Sequence[str]) -> list[tuple[str, CallbackData]]:
        return [
            (
                ("✓ " if value == current else "") + t(f"settings.{name}.{value}"),
                SettingsPress(owner=owner, name=name, value=value),
            )
            for value in values
        ]

    rich = row("rich", "on" if chat.rich else "off", ("on", "off"))
    lang = row("lang", chat.lang or "", LANGS)
    close = [(t("settings.close"), SettingsPress(owner=owner, name="close", value=""))]
    if who.private:
        return t("settings.private"), keyboard([rich, close])
    policy = row("policy", chat.policy, ("always", "smart", "mention", "never"))
    silent = chat.policy in ("mention", "never") or quiet_now(app.settings, chat, app.clock.now())
    quiet = t("settings.quiet_on" if silent else "settings.quiet_off")
    text = t("settings.group", policy=t(f"settings.policy_is.{chat.policy}"), quiet=quiet)
    return text, keyboard([policy[:2], policy[2:], lang, rich, close])


def help_text(app: App, who: Who) -> str:
    place = "private" if who.private else "group"
    names = [c.name for c in COMMANDS.values() if place in c.places and (not c.owner or app.owner(who.user_id))]
    lines = [f"/{name} — {app.texts(who.lang, f'command.{name}')}" for name in names]
    return app.texts(who.lang, f"help.{place}", commands="\n".join(lines), names=", ".join(app.settings.bot_names))


# -- actions


async def is_admin(app: App, who: Who) -> bool:
    """May this person change the chat: an owner, an administrator, anyone in private. Asks Telegram once a minute."""
    if who.private or who.anonymous_admin or app.owner(who.user_id):
        return True

    async def ask() -> bool:
        member = await app.bot(GetChatMember(chat_id=who.chat_id, user_id=who.user_id))
        return member.status in ("administrator", "creator")

    try:
        return await app.admins.get((who.chat_id, who.user_id), ask)
    except TelegramBadRequest:
        return False  # not a member, or a channel that speaks here


async def require_admin(app: App, who: Who) -> None:
    if not await is_admin(app, who):
        raise BotError("error.admins_only")


async def choose_lang(app: App, who: Who, lang: str) -> None:
    """For a person; an anonymous administrator is the chat itself."""
    if who.anonymous_admin:
        await set_chat(app, who.chat_id, lang=lang)
    else:
        await set_lang(app, who.user_id, lang)


async def register_commands(app: App) -> None:
    """Tell Telegram the commands, per language and place; only when they changed since the last start."""
    lists = [
        (place, lang, [BotCommand(command=c.name, description=app.texts(lang, f"command.{c.name}"))
                       for c in COMMANDS.values() if place in c.places and not c.owner])
        for place in ("private", "group") for lang in LANGS
    ]  # fmt: skip
    seal = hashlib.sha256(repr((lists, app.settings.language, app.bot.id)).encode()).hexdigest()
    row = await app.db.reader.one("SELECT value FROM meta WHERE name = 'commands'")
    if row and row["value"] == seal:
        return
    scopes: dict[str, Any] = {"private": BotCommandScopeAllPrivateChats(), "group": BotCommandScopeAllGroupChats()}
    for place, lang, commands in lists:
        await app.bot(SetMyCommands(commands=commands, scope=scopes[place], language_code=lang))
        if lang == app.settings.language:  # for every other language
            await app.bot(SetMyCommands(commands=commands, scope=scopes[place]))
    await app.db.write({PUT_META: [("commands", seal)]})


async def register_owner_commands(app: App) -> None:
    """The owner's own commands, in the owner's chat; one who has not started the bot has none yet."""
    own = [c for c in COMMANDS.values() if "private" in c.places]
    if not any(c.owner for c in own):
        return
    for user_id in app.settings.admin_ids:
        lang = await lang_of(app, user_id)
        commands = [BotCommand(command=c.name, description=app.texts(lang, f"command.{c.name}")) for c in own]
        with contextlib.suppress(ChatGone, TelegramBadRequest):
            await app.bot(SetMyCommands(commands=commands, scope=BotCommandScopeChat(chat_id=user_id)))


PUT_META = Hot(
    5, "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
)


# -- handlers


@command("start", ("private", "group"))
async def on_start(app: App, who: Who, args: str) -> None:
    rows = [
        [(app.texts(who.lang, f"start.button.{name}"), GoPress(owner=owner_of(who), name=name)) for name in row]
        for row in (("help", "settings"), ("lang",))
    ]
    names = ", ".join(app.settings.bot_names)
    await tell(
        app,
        who,
        app.texts(who.lang, "start.private" if who.private else "start.group", names=names),
        markup=keyboard(rows),
    )


@command("help")
async def on_help(app: App, who: Who, args: str) -> None:
    await tell(app, who, help_text(app, who))


@command("settings")
async def on_settings(app: App, who: Who, args: str) -> None:
    await require_admin(app, who)
    text, markup = settings_panel(app, who, await chat_settings(app, who.chat_id), owner_of(who))
    await tell(app, who, text, markup=markup)


@button(SettingsPress)
async def on_settings_press(app: App, who: Who, press: Press, data: SettingsPress) -> str | None:
    await require_admin(app, who)
    if data.name == "close":
        await edit(app.bot, who.chat_id, press.message_id, app.texts(who.lang, "settings.closed"))
        return None
    if data.value not in SETTINGS_VALUES.get(data.name, {}):
        raise BotError("button.old")
    await set_chat(app, who.chat_id, **{data.name: SETTINGS_VALUES[data.name][data.value]})
    text, markup = settings_panel(app, who, await chat_settings(app, who.chat_id), data.owner)
    await edit(app.bot, who.chat_id, press.message_id, text, markup)
    return app.texts(who.lang, "settings.saved")


SETTINGS_VALUES: dict[str, dict[str, Any]] = {
    "policy": {policy: policy for policy in ("always", "smart", "mention", "never")},
    "lang": {lang: lang for lang in LANGS},
    "rich": {"on": 1, "off": 0},
}


@command("lang")
async def on_lang(app: App, who: Who, args: str) -> None:
    if args.lower() in LANGS:
        await choose_lang(app, who, args.lower())
        await tell(app, who, app.texts(args.lower(), "lang.set"))
        return
    row = [(app.texts(lang, "lang.name"), LangPress(owner=owner_of(who), lang=lang)) for lang in LANGS]
    await tell(app, who, app.texts(who.lang, "lang.ask"), markup=keyboard([row]))


@button(LangPress)
async def on_lang_press(app: App, who: Who, press: Press, data: LangPress) -> str | None:
    if data.lang not in LANGS:
        raise BotError("button.old")
    await choose_lang(app, who, data.lang)
    await edit(app.bot, who.chat_id, press.message_id, app.texts(data.lang, "lang.set"))
    return None


@button(GoPress)
async def on_go_press(app: App, who: Who, press: Press, data: GoPress) -> str | None:
    if data.name not in COMMANDS or COMMANDS[data.name].owner:
        raise BotError("button.old")
    await COMMANDS[data.name].handler(app, who, "")
    return None


@command("quiet")
async def on_quiet(app: App, who: Who, args: str) -> None:
    now = app.clock.now()
    if args.lower() in ("off", "0", "викл", "вимкни", "выкл", "выключи"):
        await set_chat(app, who.chat_id, quiet_until=0)
        await tell(app, who, app.texts(who.lang, "quiet.off"))
        return
    seconds = parse_span(args)
    if seconds is None:
        until = (await chat_settings(app, who.chat_id)).quiet_until
        left = app.texts.span(who.lang, until - now) if until > now else ""
        state = app.texts(who.lang, "quiet.left", left=left) if left else app.texts(who.lang, "quiet.none")
        await tell(app, who, app.texts(who.lang, "quiet.usage", state=state))
        return
    await set_chat(app, who.chat_id, quiet_until=int(now + seconds))
    await tell(app, who, app.texts(who.lang, "quiet.on", left=app.texts.span(who.lang, seconds)))


@command("reset")
async def on_reset(app: App, who: Who, args: str) -> None:
    await require_admin(app, who)
    for generation in app.generations.values():  # what is being said belongs to the old conversation
        if (generation.who.chat_id, generation.who.thread_id) == (who.chat_id, who.thread_id):
            generation.text = ""
            stop_generation(generation)
    await reset_topic(app, who.chat_id, who.thread_id)
    await tell(app, who, app.texts(who.lang, "reset.done"))


@command("cancel")
async def on_cancel(app: App, who: Who, args: str) -> None:
    here = [generation for generation in app.generations.values() if generation.who.chat_id == who.chat_id]
    if not await is_admin(app, who):  # others may only stop what they asked for themselves
        here = [generation for generation in here if generation.who.user_id == who.user_id]
    stopped = [stop_generation(generation) for generation in here]
    await tell(app, who, app.texts(who.lang, "cancel.stopped" if any(stopped) else "cancel.nothing"))


async def on_unknown_command(app: App, who: Who, args: str) -> None:
    await tell(app, who, app.texts(who.lang, "command.unknown"))


async def on_command(app: App, who: Who, spec: Command, args: str) -> None:
    """Any command: the one table says who handles it and where it may be used."""
    place = "private" if who.private else "group"
    if place not in spec.places:
        raise BotError("error.only_private" if place == "group" else "error.only_group")
    await spec.handler(app, who, args)


async def on_button(app: App, who: Who, event: Mapping[str, Any]) -> None:
    """Any button: unpacked, checked for whom it was made, answered in every case."""
    note = None
    try:
        press, data, handler = unpack_press(event)
        if data.owner != who.user_id and not (data.owner == who.chat_id < 0 and await is_admin(app, who)):
            raise BotError("button.not_yours")
        note = await handler(app, who, press, data)
    except BotError as error:
        note = app.texts(who.lang, error.key, **error.fields)
    with contextlib.suppress(TelegramAPIError):  # too late, or Telegram is busy: the press is done all the same
        await app.bot(AnswerCallbackQuery(callback_query_id=event["id"], text=note))


def unpack_press(event: Mapping[str, Any]) -> tuple[Press, Any, Callable[..., Awaitable[Any]]]:
    """(press, its data, its handler). Raises BotError for a button of a former version, a forged one, one left over."""
    try:
        press = Press(event["message"]["message_id"], event["data"])
        kind, handler = BUTTONS[press.data.partition(":")[0]]
        return press, kind.unpack(press.data), handler
    except (KeyError, TypeError, ValueError):
        raise BotError("button.old") from None


INSIDE = ("member", "administrator", "restricted")


async def on_membership(app: App, who: Who, event: Mapping[str, Any]) -> None:
    """The bot was added, removed, blocked, unblocked."""
    chat, status = event["chat"], event["new_chat_member"]["status"]
    if status not in INSIDE:
        await chat_left(app, chat["id"])
        return
    await remember(app, PUT_CHAT, (chat["id"], chat["type"], chat.get("title") or full_name(chat)))
    if event["old_chat_member"]["status"] in INSIDE or chat["type"] not in ("group", "supergroup"):
        return
    text = app.texts(who.lang, "greeting.hello", names=", ".join(app.settings.bot_names))
    if not (app.me and app.me.can_read_all_group_messages) and status != "administrator":
        text += "\n\n" + app.texts(who.lang, "greeting.privacy")
    await tell(app, who, text)


# == Web ==============================================================================================================
# A small web server: the webhook, where one is set, and /healthz. Loaded only when it is needed.

MAX_WEBHOOK_BYTES = 2 * 1024 * 1024


class Web:
    """Serves until closed. `take` stores raw updates; the webhook answers 200 only after that."""

    def __init__(self, app: App, take: Callable[[list[Any]], Awaitable[None]], healthy: Callable[[], bool]) -> None:
        self._app, self._take, self._healthy = app, take, healthy
        self.secret = app.settings.webhook_secret or secrets.token_urlsafe(32)

    async def start(self) -> None:
        """Listen on WEB_HOST:WEB_PORT. Raises OSError where the port is taken."""
        from aiohttp import web  # a few megabytes that a bot without a web page can do without

        server = web.Application(client_max_size=MAX_WEBHOOK_BYTES)
        server.router.add_get("/healthz", self._on_health)
        if self._app.settings.webhook_url:
            server.router.add_post(urlsplit(self._app.settings.webhook_url).path or "/", self._on_webhook)
        self._web = web
        self._runner = web.AppRunner(server, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._app.settings.web_host, self._app.settings.web_port).start()
        except OSError:
            await self._runner.cleanup()
            raise

    async def close(self) -> None:
        await self._runner.cleanup()

    async def _on_health(self, request: Any) -> Any:
        well = self._healthy()
        return self._web.json_response({"ok": well}, status=200 if well else 503)

    async def _on_webhook(self, request: Any) -> Any:
        given = request.headers.get("X-Telegram-Bot-Api-Secret-Token", "")
        if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self.secret.encode()):
            return self._web.Response(status=401)
        try:
            raw = json_loads(await request.read())
        except ValueError:
            return self._web.Response(status=400)
        await self._take([raw])
        return self._web.Response()


# == Console ==========================================================================================================
# The terminal as the chat: a session that prints instead of calling Telegram, and a reader that types updates.

CONSOLE_GROUP = -1001


class ConsoleSession(BaseSession):
    """Answers every call as Telegram would, and shows it."""

    def __init__(self, out: Callable[[str], None]) -> None:
        super().__init__(api=TelegramAPIServer(base="", file="{path}"))  # a file's address is its path
        self._out, self._ids = out, int(time.time() * 1000)  # a later start goes on above
        self.buttons: list[tuple[int, str, str]] = []  # (message id, label, callback data) of the newest message
        self._keyboards: dict[int, list[tuple[int, str, str]]] = {}
        self.files: dict[str, Path] = {}
        self.folder = Path("okun-console")

    def next_id(self) -> int:
        self._ids += 1
        return self._ids

    async def close(self) -> None:
        """Nothing is open."""

    async def make_request(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None) -> Any:
        name = method.__api_method__
        answer = getattr(self, f"_on_{name}", None)
        if answer is None and name.startswith("send"):
            return await self._on_media(bot, method)
        return answer(bot, method) if answer else True

    def _on_getMe(self, bot: Bot, method: Any) -> User:
        return User(
            id=bot.id, is_bot=True, first_name="Okun", username="okun_console_bot", can_read_all_group_messages=True
        )

    def _on_getChatMember(self, bot: Bot, method: Any) -> Any:
        return argparse.Namespace(status="creator")  # whoever sits at the terminal may do everything

    def _on_sendMessage(self, bot: Bot, method: Any) -> MessageId:
        return self._show(self.next_id(), method.text, method.reply_markup)

    def _on_sendRichMessage(self, bot: Bot, method: Any) -> MessageId:
        return self._show(self.next_id(), method.rich_message["markdown"], None)

    def _on_editMessageText(self, bot: Bot, method: Any) -> MessageId:
        return self._show(method.message_id, method.text, method.reply_markup)

    def _on_sendMessageDraft(self, bot: Bot, method: Any) -> bool:
        if sys.stdout.isatty() and method.text:
            print("\r\x1b[K" + excerpt(method.text[-70:]), end="", flush=True)
        return True

    def _on_sendChatAction(self, bot: Bot, method: Any) -> bool:
        return True

    def _on_setMessageReaction(self, bot: Bot, method: Any) -> bool:
        self._out(f"Okun {method.reaction[0].emoji}")
        return True

    def _on_answerCallbackQuery(self, bot: Bot, method: Any) -> bool:
        if method.text:
            self._out(f"({method.text})")
        return True

    def _on_getFile(self, bot: Bot, method: Any) -> Any:
        path = self.files[method.file_id]
        return argparse.Namespace(file_path=str(path), file_size=path.stat().st_size)

    async def _on_media(self, bot: Bot, method: Any) -> MessageId:
        """Save what is sent and show where."""
        for value in dict(method).values():
            if isinstance(value, InputFile):
                self.folder.mkdir(exist_ok=True)
                path = self.folder / f"{self._ids + 1}-{value.filename or 'file'}"
                path.write_bytes(b"".join([chunk async for chunk in value.read(bot)]))
                self._out(f"[{path}]")
        return self._show(self.next_id(), getattr(method, "caption", None) or "", getattr(method, "reply_markup", None))

    def _show(self, message_id: int, text: str, markup: Any) -> MessageId:
        if sys.stdout.isatty():
            print("\r\x1b[K", end="")
        self._out("Okun: " + text.replace("\n", "\n      "))
        labels = [b for row in (markup.inline_keyboard if markup else ()) for b in row]
        if labels:
            self.buttons = [(message_id, b.text, b.callback_data or "") for b in labels]
            self._out("      " + "  ".join(f":{n} {b.text}" for n, b in enumerate(labels, 1)))
        elif self.buttons and self.buttons[0][0] == message_id:
            self.buttons = []
        return MessageId(message_id=message_id)

    async def stream_content(self, url: str, *args: Any, **kwargs: Any) -> AsyncGenerator[bytes, None]:
        yield Path(url).read_bytes()


class Console:
    """Turns typed lines into raw updates, as Telegram would send them."""

    MEDIA: ClassVar[dict[str, str]] = {":photo": "photo", ":voice": "voice", ":file": "document"}

    def __init__(self, app: App, session: ConsoleSession, take: Callable[[list[Any]], Awaitable[None]]) -> None:
        self._app, self._session, self._take = app, session, take
        self._names, self._speaker, self._group = {"You": 1}, "You", False
        self._update_id = int(time.time() * 1000)  # a later start goes on above

    async def feed(self, line: str) -> None:
        """Do what a line says: a command of the console, or a message."""
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if re.fullmatch(r":\d+", word):
            await self._press(int(word[1:]))
        elif word in self.MEDIA:
            await self._media(self.MEDIA[word], rest)
        elif word in (":group", ":private"):
            self._group = word == ":group"
            self._say("console.group" if self._group else "console.private")
        elif word == ":as" and rest:
            self._names.setdefault(rest, len(self._names) + 1)
            self._speaker = rest
            self._say("console.as", name=rest)
        elif word.startswith(":") and len(word) > 1 and word[1].isalpha():
            self._say("console.help")
        elif line.strip():
            await self._message(text=line)

    def _say(self, key: str, **fields: Any) -> None:
        self._session._out(self._app.texts(self._app.settings.language, key, **fields))

    async def _press(self, number: int) -> None:
        if not 1 <= number <= len(self._session.buttons):
            self._say("console.no_button", number=number)
            return
        message_id, _, data = self._session.buttons[number - 1]
        pressed = {"message_id": message_id, "date": int(time.time()), "chat": self._chat(), "text": "-"}
        query = {
            "id": str(self._update_id),
            "from": self._user(),
            "chat_instance": "1",
            "data": data,
            "message": pressed,
        }
        await self._update({"callback_query": query})

    async def _media(self, kind: str, rest: str) -> None:
        path, _, caption = rest.partition(" ") if not Path(rest).is_file() else (rest, "", "")
        file = Path(path).expanduser()
        if not file.is_file():
            self._say("console.no_file", path=path)
            return
        size = file.stat().st_size
        file_id = hashlib.sha256(str(file.resolve()).encode() + str(size).encode()).hexdigest()[:32]
        self._session.files[file_id] = file.resolve()
        thing: dict[str, Any] = {"file_id": file_id, "file_unique_id": file_id, "file_size": size}
        mime = mimetypes.guess_type(file.name)[0] or ""
        if kind == "document" or mime.startswith(("image/", "audio/", "video/")):
            thing["mime_type"] = mime
        if kind == "document":
            thing["file_name"] = file.name
        content = [{**thing, "width": 640, "height": 640}] if kind == "photo" else {**thing, "duration": 1}
        await self._message(**{kind: content}, **({"caption": caption} if caption else {}))

    async def _message(self, **content: Any) -> None:
        await self._update({"message": {"message_id": self._session.next_id(), "date": int(time.time()),
                                        "chat": self._chat(), "from": self._user(), **content}})  # fmt: skip

    async def _update(self, body: dict[str, Any]) -> None:
        self._update_id += 1
        await self._take([{"update_id": self._update_id, **body}])

    def _user(self) -> dict[str, Any]:
        user_id = self._names[self._speaker]
        return {
            "id": user_id,
            "is_bot": False,
            "first_name": self._speaker,
            "language_code": self._app.settings.language,
        }

    def _chat(self) -> dict[str, Any]:
        if self._group:
            return {"id": CONSOLE_GROUP, "type": "supergroup", "title": "Console"}
        return {"id": self._names[self._speaker], "type": "private", "first_name": self._speaker}


# == Inbox ============================================================================================================
# Updates are stored before Telegram is told that they arrived, sorted into talk (a queue of turns per topic) and
# everything else (handled at once), and taken out when they are dealt with.

# -- rules

ALBUM_WAIT_S, CONTINUATION_WAIT_S, BACKLOG_WAIT_S = 0.5, 1.0, 1.0
LONG_TEXT = 4000  # UTF-16 units: Telegram cuts at 4,096
MAX_ATTEMPTS = 3
MAX_OUTAGE_S = 3600
SEEN_S = 48 * 3600
MAX_TURN = 100
MAX_KNOWN = 50_000
ALLOWED_UPDATES = ["message", "edited_message", "callback_query", "my_chat_member", "stopped_message_generation"]


@dataclass(frozen=True)
class Passing:
    """An update that waits for nobody, and the handler `(app, who)` that is bound to it."""

    update_id: int
    raw: Mapping[str, Any]
    handler: Callable[[App, Who], Awaitable[None]]
    line: tuple[int, int] | None = None  # (chat, user): what one user does goes one after another
    attempts: int = 0


class Again(NamedTuple):
    """An update that is not done: try again after `pause_s`, with so many failures on its account."""

    pause_s: float
    attempts: int


def ready_at(waiting: Sequence[Waiting], is_backlog: Callable[[Heard], bool]) -> float:
    """When a turn is complete (monotonic seconds): an album and a long text may go on, a backlog may end."""
    last = waiting[-1]
    if is_backlog(last.heard):
        return last.arrived + BACKLOG_WAIT_S
    if last.heard.album:
        return last.arrived + ALBUM_WAIT_S
    if utf16_len(last.heard.text) >= LONG_TEXT:
        return last.arrived + CONTINUATION_WAIT_S
    return 0.0


def is_update(raw: Any) -> bool:
    """An object with an id that the database can hold."""
    update_id = raw.get("update_id") if isinstance(raw, dict) else None
    return type(update_id) is int and 0 <= update_id < 2**63


def continues(last: Waiting, heard: Heard) -> bool:
    """Does an unaddressed message belong to the one before: the same album, or the rest of a long text?"""
    if last.heard.user_id != heard.user_id:
        return False
    if heard.album:
        return last.heard.album == heard.album
    return utf16_len(last.heard.text) >= LONG_TEXT and heard.kind == "text"


# -- queries

PUT_INBOX = Hot(
    30,
    """INSERT INTO inbox (update_id, raw, unprompted, received_at, parked_at) VALUES (?, ?, ?, ?, ?)
       ON CONFLICT (update_id) DO NOTHING""",
)
PUT_SEEN = Hot(31, "INSERT INTO inbox_seen (update_id, seen_at) VALUES (?, ?) ON CONFLICT (update_id) DO NOTHING")
FAILED_INBOX = Hot(51, "UPDATE inbox SET attempts = ?, parked_at = ? WHERE update_id = ?")


def parked_row(raw: Mapping[str, Any], now: int) -> tuple[Any, ...]:
    """A row for PUT_INBOX of an update that cannot be read; plain ASCII, whatever is in it."""
    return raw["update_id"], json.dumps(raw), 0, now, now


async def inbox_left(db: Queries) -> list[sqlite3.Row]:
    """What a crash left, oldest first."""
    return await db.all(
        "SELECT update_id, raw, unprompted, attempts, reply FROM inbox WHERE parked_at IS NULL ORDER BY update_id"
    )


async def inbox_seen(db: Queries, update_ids: Sequence[int]) -> set[int]:
    """Those of these updates that were taken before."""
    rows = await db.all(
        "SELECT update_id FROM inbox_seen WHERE update_id BETWEEN ? AND ?", min(update_ids), max(update_ids)
    )
    return {row["update_id"] for row in rows}


async def last_update(db: Queries, bot_id: int) -> tuple[int, float]:
    """(id, time) of the last update this bot took; (0, 0) if there is none. Each bot has its own ids."""
    row = await db.one("SELECT value FROM meta WHERE name = ?", last_update_name(bot_id))
    update_id, _, at = (row["value"] if row else "0 0").partition(" ")
    return int(update_id), float(at)


def last_update_name(bot_id: int) -> str:
    return f"last_update {bot_id}"


# -- handlers


async def on_migration(app: App, who: Who, message: Mapping[str, Any]) -> None:
    """The group became a supergroup."""
    await chat_migrated(app, who.chat_id, message["migrate_to_chat_id"])


# What handles what: talk goes to on_talk by way of the turns, commands to on_command, buttons to on_button; they are
# read from the raw update already. aiogram's dispatcher would build a Message for each and route it by filters: a third
# of what a command costs. Whatever else there is:
EVENTS: dict[str, Callable[..., Awaitable[None]]] = {
    "my_chat_member": on_membership,
    "stopped_message_generation": on_stop,
}


# -- actions


class Turns:
    """A queue per topic. One turn at a time in each; what arrives meanwhile is the next, merged."""

    def __init__(self, app: App, answer: Callable[[Turn], Awaitable[None]]) -> None:
        self._app, self._answer = app, answer
        self._queues: dict[tuple[int, int], list[Waiting]] = {}
        self._wakes: dict[tuple[int, int], asyncio.Event] = {}
        self._running: dict[tuple[int, int], asyncio.Task[Any]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def put(self, waiting: Waiting) -> None:
        key = (waiting.heard.chat_id, waiting.heard.thread_id)
        self._queues.setdefault(key, []).append(waiting)
        if key in self._running:
            self._wakes[key].set()
            return
        self._wakes[key] = asyncio.Event()
        self._running[key] = self._app.spawn(self._run(key), f"turns {key}")

    def last(self, heard: Heard) -> Waiting | None:
        """What waits last in the topic of this message."""
        queue = self._queues.get((heard.chat_id, heard.thread_id))
        return queue[-1] if queue else None

    async def _run(self, key: tuple[int, int]) -> None:
        try:
            while self._queues[key]:
                await self._gather(key)
                most = 1 if self._queues[key][0].plan else MAX_TURN
                waiting, self._queues[key] = self._queues[key][:most], self._queues[key][most:]
                plan = waiting[0].plan
                try:
                    await self._answer(Turn(waiting, *planned(plan)) if plan else Turn(waiting))
                except Exception:  # the topic must go on; these messages are in the inbox for the next start
                    log.exception("turn given up")
        finally:
            del self._queues[key], self._wakes[key], self._running[key]

    async def _gather(self, key: tuple[int, int]) -> None:
        """Wait until the turn is complete."""
        while (left := ready_at(self._queues[key], self._backlog) - self._app.clock.monotonic()) > 0:
            self._wakes[key].clear()
            timer = asyncio.ensure_future(self._app.clock.sleep(left))
            woken = asyncio.ensure_future(self._wakes[key].wait())
            try:
                await asyncio.wait({timer, woken}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                timer.cancel()
                woken.cancel()

    def _backlog(self, heard: Heard) -> bool:
        return in_backlog(self._app, heard)

    async def drain(self) -> None:
        while self._running:
            await asyncio.wait(list(self._running.values()))


def in_backlog(app: App, heard: Heard) -> bool:
    """Older than BACKLOG_MINUTES?"""
    minutes = app.settings.backlog_minutes
    return minutes > 0 and app.clock.now() - heard.sent_at > minutes * 60


class Sorter:
    """Tells what a raw update is: talk that waits its turn, something to handle at once, or only something to store."""

    def __init__(self, app: App, last: Callable[[Heard], Waiting | None]) -> None:
        self._app, self._last = app, last  # `last`: what waits last in the topic of a message
        self._lexicon = lexicon(app.texts)
        self._refused: Cache[tuple[int, int], bool] = Cache(2000, 3600, app.clock.monotonic)
        self._reacted: Cache[int, Window] = Cache(2000, 120, app.clock.monotonic)
        self.ears = Ears(0, "", None)
        self.arriving: dict[tuple[int, int], Waiting] = {}  # the last talk of each topic in the batch at hand

    def sort(
        self, raw: Mapping[str, Any], *, resumed: bool = False
    ) -> tuple[Waiting | Passing | None, list[tuple[Hot, tuple[Any, ...]]]]:
        """What an update is: talk that waits its turn, something to handle at once, or only something to store."""
        update_id = raw["update_id"]
        if "message" in raw:
            return self._sort_message(update_id, raw, resumed=resumed)
        if edited := raw.get("edited_message"):
            heard = hear(edited)
            if heard is None or not allowed(self._app.settings, heard.chat_id, heard.user_id):
                return None, []
            mood = self._lexicon.sentiment(heard.text)
            return None, [(EDIT_MESSAGE, (heard.text, edited.get("edit_date"), mood, heard.chat_id, heard.message_id))]
        if query := raw.get("callback_query"):
            chat_id = ((query.get("message") or {}).get("chat") or {}).get("id", 0)
            if not allowed(self._app.settings, chat_id, query["from"]["id"]):
                lang = pick_lang(query["from"].get("language_code"), self._app.settings.language)
                note = self._app.texts(lang, "error.not_allowed")
                method = AnswerCallbackQuery(callback_query_id=query["id"], text=note, show_alert=True)
                self._app.spawn(quietly(self._app.bot(method)), "refuse")
                return None, []
            line = (chat_id, query["from"]["id"])
            return Passing(update_id, raw, functools.partial(on_button, event=query), line), []
        for kind, handler in EVENTS.items():
            if kind in raw:
                return self._sort_event(update_id, raw, raw[kind], handler), []
        return None, []

    def _sort_event(
        self, update_id: int, raw: Mapping[str, Any], event: Mapping[str, Any], handler: Callable[..., Awaitable[None]]
    ) -> Passing | None:
        """Membership and the stop button. A group that may not use the bot is not greeted; leaving is always noted."""
        chat_id, user_id = event["chat"]["id"], (event.get("from") or event["chat"])["id"]
        added = (event.get("new_chat_member") or {}).get("status") in INSIDE
        if added and not allowed(self._app.settings, chat_id, user_id):
            return None
        return Passing(update_id, raw, functools.partial(handler, event=event))

    def _sort_message(
        self, update_id: int, raw: Mapping[str, Any], *, resumed: bool
    ) -> tuple[Waiting | Passing | None, list[tuple[Hot, tuple[Any, ...]]]]:
        message = raw["message"]
        if "migrate_to_chat_id" in message:
            return Passing(update_id, raw, functools.partial(on_migration, message=message)), []
        heard = hear(message)
        if heard is None:
            return None, []
        if not allowed(self._app.settings, heard.chat_id, heard.user_id):
            if heard.chat_kind == "private" or addressed(message, self.ears):
                self._refuse(heard)
            return None, []
        # the mood is stored with the message: whether there is a quarrel is asked of the last ten
        mood = self._lexicon.sentiment(heard.text)
        rows = [*self._people(heard), (PUT_MESSAGE, message_row(heard, mood))]
        if heard.silent:
            return None, rows
        return self._plan(update_id, raw, heard, mood, resumed=resumed), rows

    def _plan(
        self, update_id: int, raw: Mapping[str, Any], heard: Heard, mood: float, *, resumed: bool
    ) -> Waiting | Passing | None:
        message, private = raw["message"], heard.chat_kind == "private"
        if given := command_of(message, self.ears):
            return self._plan_command(update_id, raw, heard, *given)
        if heard.kind == "command":  # another bot's
            return self._plan_command(update_id, raw, heard, "", "") if private else None
        waiting = Waiting(update_id, message, heard, self._app.clock.monotonic())
        if private or resumed:
            return waiting
        policy = self._chat(heard.chat_id).policy
        backlog = in_backlog(self._app, heard)
        if backlog or policy == "never":
            return None
        before = self.arriving.get((heard.chat_id, heard.thread_id)) or self._last(heard)
        if addressed(message, self.ears) or (before and continues(before, heard)):
            return waiting
        verdict = unaddressed_verdict(policy, self._app.settings, self._app.dice, lambda: self._worth(message, heard))
        if verdict == "react":
            self._react(heard, mood)
        return dataclasses.replace(waiting, unprompted=True) if verdict == "join" else None

    def _plan_command(
        self, update_id: int, raw: Mapping[str, Any], heard: Heard, name: str, args: str
    ) -> Waiting | Passing | None:
        spec = self.command(raw["message"], heard, name)
        if spec is None:
            return None  # some other bot's
        if in_backlog(self._app, heard):  # an old one is answered only where it is the newest of a private chat
            waiting = Waiting(update_id, raw["message"], heard, self._app.clock.monotonic())
            return waiting if heard.chat_kind == "private" else None
        line = None if name == "cancel" else (heard.chat_id, heard.user_id)
        return Passing(update_id, raw, functools.partial(on_command, spec=spec, args=args), line)

    def command(self, message: Mapping[str, Any], heard: Heard, name: str) -> Command | None:
        """A command of ours; in private, and where it carries our name, one that says that there is none such."""
        spec = COMMANDS.get(name)
        if spec and (not spec.owner or self._app.owner(heard.user_id)):
            return spec
        if heard.chat_kind == "private" or names_command(message, self.ears):
            return Command(name, on_unknown_command, ("private", "group"))
        return None

    def _chat(self, chat_id: int) -> ChatSettings:
        known = self._app.chats.peek(chat_id)
        return known or ChatSettings(self._app.settings.group_policy, None, self._app.settings.rich_messages, 0, False)

    def _worth(self, message: Mapping[str, Any], heard: Heard) -> bool:
        """An open question (no reply, mentions nobody), or a topic of the persona."""
        entities = message.get("entities") or message.get("caption_entities") or ()
        mentions = any(entity["type"] in ("mention", "text_mention") for entity in entities)
        if heard.reply_to is None and not mentions and self._lexicon.open_question(heard.text):
            return True
        return self._lexicon.on_topic(heard.text, OKUN.key)

    def _people(self, heard: Heard) -> Iterator[tuple[Hot, tuple[Any, ...]]]:
        """Rows for a speaker or a chat that is new or has changed its name, or wrote in private for the first time."""
        known, private = self._app.known, heard.chat_kind == "private"
        user = (heard.user_id, heard.name, heard.username, heard.language_code)
        key = ("user in private" if private else "user", heard.user_id)
        if known.get(key) != user:
            known[key] = user
            yield PUT_USER, (*user, heard.sent_at if private else None)
        chat = (heard.chat_id, heard.chat_kind, heard.chat_title)
        if known.get(("chat", heard.chat_id)) != chat:
            known["chat", heard.chat_id] = chat
            yield PUT_CHAT, chat
        if len(known) > MAX_KNOWN:
            known.clear()

    def _refuse(self, heard: Heard) -> None:
        """Tell somebody who may not talk to the bot, once an hour."""
        key = (heard.chat_id, heard.user_id)
        if self._refused.peek(key) is None:
            self._refused.put(key, True)
            lang = pick_lang(heard.language_code, self._app.settings.language)
            text = self._app.texts(lang, "error.not_allowed")
            self._app.spawn(quietly(say(self._app.bot, heard.chat_id, text, thread_id=heard.thread_id)), "refuse")

    def _react(self, heard: Heard, mood: float) -> None:
        """React beside, at most 5 times a minute in a chat."""
        now = self._app.clock.monotonic()
        window = self._reacted.peek(heard.chat_id) or Window(REACTIONS_PER_MINUTE, 60.0)
        self._reacted.put(heard.chat_id, window)
        if window.free(now) <= now:
            window.take(now)
            self._app.spawn(react(self._app, heard, mood), "react")


class Inbox:
    """Takes raw updates and sees to it that each is dealt with once."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._turns = Turns(app, self._answer_turn)
        self._sorter = Sorter(app, self._turns.last)
        self._last_id, self._last_at = 0, 0.0
        self._passing: set[asyncio.Task[Any]] = set()
        self._lock = asyncio.Lock()
        # what one user sends goes one after another: a flood of commands waits for itself and for nobody else
        self._lines = KeyedLocks()
        self._stopping = asyncio.Event()

    async def open(self) -> None:
        """Learn who we are and where we left off. Raises TelegramUnauthorizedError, TelegramNetworkError."""
        self._app.me = await self._app.bot(GetMe())
        self._sorter.ears = Ears.of(self._app.me, self._app.settings.bot_names)
        self._last_id, self._last_at = await last_update(self._app.db.reader, self._app.bot.id)

    @property
    def offset(self) -> int | None:
        """What to ask getUpdates for. After a quiet day none: ids are chosen anew after an idle week."""
        fresh = self._app.clock.now() - self._last_at < 86_400
        return self._last_id + 1 if self._last_id and fresh else None

    @property
    def busy(self) -> int:
        """Turns and updates at work or waiting."""
        return len(self._turns) + len(self._passing)

    async def recover(self) -> None:
        """Begin what a crash left, oldest first."""
        rows = await inbox_left(self._app.db.reader)
        for row in rows:
            try:
                self._resume(row)
            except (KeyError, TypeError, ValueError) as error:
                log.error("unreadable update in the inbox", extra={"kind": type(error).__name__})
                await self._app.db.write({FAILED_INBOX: [(MAX_ATTEMPTS, int(self._app.clock.now()), row["update_id"])]})
        if rows:
            log.info("inbox recovered", extra={"count": len(rows)})

    def _resume(self, row: sqlite3.Row) -> None:
        raw = json_loads(row["raw"])
        plan, _ = self._sorter.sort(raw, resumed=True)
        if isinstance(plan, Waiting):
            unprompted = bool(row["unprompted"])
            self._turns.put(
                dataclasses.replace(plan, attempts=row["attempts"], unprompted=unprompted, plan=row["reply"])
            )
        elif isinstance(plan, Passing):
            self._pass(self._handle_passing(dataclasses.replace(plan, attempts=row["attempts"])))
        else:
            raise ValueError("nothing to do")

    async def take(self, raws: Sequence[Any]) -> None:
        """Store updates, then begin them. When this returns they may be confirmed. Raises sqlite3.OperationalError."""
        async with self._lock:
            known = [raw for raw in raws if is_update(raw)]
            if len(known) < len(raws):
                log.error("rubbish among the updates", extra={"count": len(raws) - len(known)})
            fresh = await self._fresh(known)
            plans = await self._keep(fresh) if fresh else []
        for plan in plans:
            self._begin(plan)

    async def _keep(self, raws: Sequence[dict[str, Any]]) -> list[Waiting | Passing]:
        """Store these updates in one transaction; one that cannot be stored is parked, the others are not held up."""
        now = int(self._app.clock.now())
        newest = max(raw["update_id"] for raw in raws)
        if self.offset is not None:  # else ids begin anew, perhaps below those we know
            newest = max(newest, self._last_id)
        writes: dict[Hot, list[tuple[Any, ...]]] = defaultdict(list)
        try:
            await self._warm(raws)
            self._sorter.arriving.clear()
            plans = [plan for raw in raws if (plan := self._store(raw, writes))]
            writes[PUT_META] = [(last_update_name(self._app.bot.id), f"{newest} {now}")]
            await self._app.db.write(writes)
        # one update that SQLite cannot hold (a number beyond 64 bits, say) must not stop the hundred it came with
        except BaseException as error:
            self._app.known.clear()  # what it says was not stored
            if isinstance(error, sqlite3.OperationalError) or not isinstance(error, Exception):
                raise  # nothing is wrong with the updates
            if len(raws) > 1:
                return [plan for raw in raws for plan in await self._keep([raw])]
            log.error("unstorable update %s parked", raws[0]["update_id"], extra={"kind": type(error).__name__})
            await self._app.db.write({PUT_INBOX: [parked_row(raws[0], now)]})
            plans = []
        self._last_id, self._last_at = newest, now
        return plans

    async def _fresh(self, raws: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Without those that were taken before; only ids that are not new need a look."""
        raws = list({raw["update_id"]: raw for raw in raws}.values())
        old = [raw["update_id"] for raw in raws if raw["update_id"] <= self._last_id]
        if old:
            seen = await inbox_seen(self._app.db.reader, old)
            raws = [raw for raw in raws if raw["update_id"] not in seen]
        return raws

    async def _warm(self, raws: Sequence[Mapping[str, Any]]) -> None:
        """Have the settings of these groups at hand: sorting must not wait."""
        for raw in raws:
            chat = (raw.get("message") or {}).get("chat") if isinstance(raw.get("message"), dict) else None
            if isinstance(chat, dict) and chat.get("type") != "private" and isinstance(chat.get("id"), int):
                await chat_settings(self._app, chat["id"])

    def _store(self, raw: dict[str, Any], writes: dict[Hot, list[tuple[Any, ...]]]) -> Waiting | Passing | None:
        """Sort one update and collect its rows; an unreadable one is parked."""
        now, update_id = int(self._app.clock.now()), raw["update_id"]
        try:
            plan, rows = self._sorter.sort(raw)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            log.error("unreadable update %s parked", update_id, extra={"kind": type(error).__name__})
            writes[PUT_INBOX].append(parked_row(raw, now))
            writes[PUT_SEEN].append((update_id, now))
            return None
        for hot, row in rows:
            writes[hot].append(row)
        if plan:
            unprompted = 0
            if isinstance(plan, Waiting):
                unprompted = int(plan.unprompted)
                self._sorter.arriving[plan.heard.chat_id, plan.heard.thread_id] = plan
            writes[PUT_INBOX].append((update_id, json_dumps(raw), unprompted, now, None))
            writes[PUT_SEEN].append((update_id, now))
        return plan

    def _begin(self, plan: Waiting | Passing) -> None:
        if isinstance(plan, Waiting):
            self._turns.put(plan)
        else:
            self._pass(self._handle_passing(plan))

    def _pass(self, work: Any) -> None:
        task = self._app.spawn(work, "update")
        self._passing.add(task)
        task.add_done_callback(self._passing.discard)

    async def _handle_passing(self, plan: Passing) -> None:
        async def work() -> None:
            await plan.handler(self._app, await self._who(plan.raw))

        if plan.line is None:
            await self._handle([plan.update_id], plan.raw, plan.attempts, work)
            return
        async with self._lines(plan.line):
            await self._handle([plan.update_id], plan.raw, plan.attempts, work)

    async def _answer_turn(self, turn: Turn) -> None:
        """Handle a turn; of a backlog only the newest message in private is answered, none if there are new ones."""
        ids = [waiting.update_id for waiting in turn.waiting]
        fresh = [one for one in turn.waiting if not in_backlog(self._app, one.heard)]
        if len(fresh) < len(ids) and not turn.reply:
            turn.waiting = fresh or (turn.waiting[-1:] if turn.newest.heard.chat_kind == "private" else [])
            if not turn.waiting:
                await self._app.db.write({DONE_INBOX: [(update_id,) for update_id in ids]})
                return
        raw = {"update_id": turn.newest.update_id, "message": turn.newest.raw}

        async def work() -> None:
            who, newest = await self._who(raw), turn.newest
            given = command_of(newest.raw, self._sorter.ears)
            if given and (spec := self._sorter.command(newest.raw, newest.heard, given[0])):
                await on_command(self._app, who, spec, given[1])
            else:
                await on_talk(self._app, who, turn)

        async def alone(attempts: int) -> None:
            for one in turn.waiting:
                await self._answer_turn(Turn([dataclasses.replace(one, attempts=attempts)]))

        several = len(turn.waiting) > 1 and not turn.reply
        await self._handle(ids, raw, max(one.attempts for one in turn.waiting), work, alone if several else None)

    async def _handle(
        self,
        update_ids: Sequence[int],
        raw: Mapping[str, Any],
        attempts: int,
        work: Callable[[], Awaitable[None]],
        alone: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """Do the work of one update, or of a turn, until it is done or parked. What follows in its topic waits.

        `alone`: takes the messages of a turn one by one where they fail together, so that one does not park the others.
        """
        request_id.set(f"u{update_ids[-1]}")
        pending: dict[Hot, list[tuple[Any, ...]]] = {}
        until = self._app.clock.monotonic() + MAX_OUTAGE_S
        while (again := await self._try(update_ids, raw, attempts, work, pending, until)) is not None:
            attempts = again.attempts
            if not await self._rest(again.pause_s):
                return  # stopping: it is in the inbox for the next start
            if alone and attempts >= MAX_ATTEMPTS - 1:
                await alone(attempts)
                return

    async def _try(
        self,
        update_ids: Sequence[int],
        raw: Mapping[str, Any],
        attempts: int,
        work: Callable[[], Awaitable[None]],
        pending: dict[Hot, list[tuple[Any, ...]]],
        until: float,
    ) -> Again | None:
        """One try; commits what all of them changed with the end of the update. None where it is dealt with."""
        cost = Tally()
        tally.set(cost)
        changes.set(pending)
        started = time.perf_counter()
        try:
            async with self._app.slots:
                await work()
        except BotError as error:
            await self._tell_error(raw, error)
        except ChatGone as gone:
            log.info("nobody there: %s", gone)
        except Exception as error:
            # Telegram does not answer: not the update's fault, unless it is so for this one an hour long
            outage = isinstance(error, TelegramNetworkError | TelegramServerError | TelegramRetryAfter)
            if outage and (isinstance(error, NotConnected) or self._app.clock.monotonic() < until):
                log.warning("postponed: %s", error)
                return Again(self._app.dice.uniform(5, 15), attempts)
            return await self._failed(error, update_ids, raw, attempts + 1)
        await self._finish(pending, update_ids)
        note_handled(time.perf_counter() - started, cost, len(update_ids))
        return None

    async def _rest(self, seconds: float) -> bool:
        """Pause before another try; False where the bot stops meanwhile."""
        sleep = asyncio.ensure_future(self._app.clock.sleep(seconds))
        stop = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({sleep, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleep.cancel()
            stop.cancel()
        return not self._stopping.is_set()

    async def _finish(self, pending: dict[Hot, list[tuple[Any, ...]]], update_ids: Sequence[int]) -> None:
        """Commit what an update changed with the end of it. It was answered: it must not come again in any case."""
        writes = {**pending, DONE_INBOX: [(update_id,) for update_id in update_ids]}
        for attempt in itertools.count(1):
            try:
                await self._app.db.write(writes)
                return
            except sqlite3.IntegrityError:  # the chat or the person was forgotten meanwhile
                log.exception("answered, but not stored")
                writes = {DONE_INBOX: writes[DONE_INBOX]}
            except sqlite3.Error as error:  # locked, or the disk is full: only the writing is tried again
                log.error("answered, but not yet stored: %s", error, extra={"attempt": attempt})
                if not await self._rest(backoff(self._app.dice, min(attempt, 6), 1.0)):
                    return

    async def _tell_error(self, raw: Mapping[str, Any], error: BotError) -> None:
        """A BotError becomes words in the user's language."""
        who = await self._who(raw)
        with contextlib.suppress(ChatGone, TelegramAPIError):
            await tell(self._app, who, self._app.texts(who.lang, error.key, **error.fields))

    async def _who(self, raw: Mapping[str, Any]) -> Who:
        """Who did this, where; the ids come from the update and nowhere else."""
        event = next(value for kind, value in raw.items() if kind != "update_id")
        message = event.get("message") if "callback_query" in raw else event
        chat = (message or {}).get("chat") or {"id": event.get("from", {}).get("id", 0), "type": "private"}
        thread_id = message.get("message_thread_id", 0) if message and message.get("is_topic_message") else 0
        private, anonymous = chat["type"] == "private", False
        user_id = (event.get("from") or chat)["id"]
        if event.get("sender_chat") and not private:
            user_id, *_, anonymous = speaker(event)
        chosen = None if private else (await chat_settings(self._app, chat["id"])).lang
        lang = chosen or await lang_of(self._app, user_id, (event.get("from") or {}).get("language_code"))
        answered = event["message_id"] if "message" in raw else None
        return Who(chat["id"], thread_id, user_id, lang, private, anonymous, answered)

    async def _failed(
        self, error: Exception, update_ids: Sequence[int], raw: Mapping[str, Any], attempts: int
    ) -> Again | None:
        """Two more tries, then the update is parked, and the owner and the user are told."""
        self._app.counts[f"error {type(error).__name__}"] += 1
        log.error("update failed", exc_info=error, extra={"attempt": attempts})
        parked = int(self._app.clock.now()) if attempts >= MAX_ATTEMPTS else None
        await self._app.db.write({FAILED_INBOX: [(attempts, parked, update_id) for update_id in update_ids]})
        if parked is None:
            return Again(backoff(self._app.dice, attempts, 1.0), attempts)
        self._app.spawn(
            self._app.tell_owners("owner.parked", id=update_ids[-1], error=type(error).__name__), "tell owners"
        )
        with contextlib.suppress(ChatGone, TelegramAPIError):
            who = await self._who(raw)
            await say(self._app.bot, who.chat_id, self._app.texts(who.lang, "error.sorry"), thread_id=who.thread_id)
        return None

    async def drain(self, seconds: float) -> None:
        """Let what is at work finish, for so many seconds at most; what does not stays for the next start."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.idle()

    async def idle(self) -> None:
        """Wait until nothing is at work."""
        while self.busy:
            await asyncio.wait([*self._turns._running.values(), *self._passing], return_when=asyncio.FIRST_COMPLETED)
            await asyncio.sleep(0)


def note_handled(took_s: float, cost: Tally, count: int) -> None:
    """The line in the log that ends an update's life: what took over a second always, the rest when debugging."""
    slow = took_s > SLOW_OPERATION_S
    level = logging.INFO if slow else logging.DEBUG
    if log.isEnabledFor(level):
        extra = {"ms": round(took_s * 1000, 1), "reads": cost.reads, "read_ms": round(cost.read_ms, 1), "count": count}
        log.log(level, "handled slowly" if slow else "handled", extra=extra)


async def quietly(work: Awaitable[Any]) -> None:
    """Await something that may fail without harm."""
    with contextlib.suppress(ChatGone, TelegramAPIError):
        await work


class Poller:
    """Long polling that goes on whatever the network does. Raises TelegramUnauthorizedError never: it waits."""

    POLL_S, WATCH_S = 30, 90

    def __init__(self, app: App, inbox: Inbox) -> None:
        self._app, self._inbox = app, inbox
        self.last_ok = app.clock.monotonic()  # when a poll last succeeded: health
        self._last_sign = self.last_ok  # when a poll last ended in any way: the watchdog's

    @property
    def healthy(self) -> bool:
        return self._app.clock.monotonic() - self.last_ok < self.WATCH_S

    async def run(self) -> None:
        """Poll until cancelled; a watchdog begins again where a poll died, with a word or without."""
        while True:
            polling = asyncio.create_task(self._poll_forever())
            try:
                while not polling.done():
                    await asyncio.wait([polling], timeout=self.WATCH_S)
                    if self._app.clock.monotonic() - self._last_sign >= self.WATCH_S:
                        break
            finally:
                polling.cancel()
                await asyncio.wait([polling])
            error = None if polling.cancelled() else polling.exception()
            log.error("poll is dead, starting anew", exc_info=error)
            self._last_sign = self._app.clock.monotonic()
            await self._app.clock.sleep(1.0)

    async def _poll_forever(self) -> None:
        failures = 0
        while True:
            try:
                await self._inbox.take(await self._poll())
                failures, self.last_ok = 0, self._app.clock.monotonic()
                self._last_sign = self.last_ok
            except TelegramRetryAfter as error:
                await self._wait(error.retry_after)
            except (TelegramAPIError, NoRoom, sqlite3.Error) as error:
                failures, self._last_sign = failures + 1, self._app.clock.monotonic()
                await self._pause(error, failures)

    async def _poll(self) -> list[Any]:
        options: dict[str, Any] = {"offset": self._inbox.offset} if self._inbox.offset else {}
        method = GetRawUpdates(timeout=self.POLL_S, allowed_updates=ALLOWED_UPDATES, **options)
        # past the gate: its repeating would hide from us how the connection fares
        raws = await self._app.bot.session.make_request(self._app.bot, method, self.POLL_S + 10)
        if not isinstance(raws, list):
            raise AnswerLost(method=method, message="malformed answer")
        return raws

    async def _pause(self, error: Exception, failures: int) -> None:
        conflict = isinstance(error, TelegramConflictError)
        most = 30.0 if not isinstance(error, TelegramUnauthorizedError) else 300.0
        wait = backoff(self._app.dice, failures, 2.0 if conflict else 0.5, most)
        level = logging.WARNING if failures < 5 else logging.ERROR
        log.log(level, "polling failed: %s", error, extra={"attempt": failures, "wait_s": round(wait, 1)})
        await self._wait(wait)

    async def _wait(self, seconds: float) -> None:
        """A pause that is meant: the watchdog looks away."""
        self._last_sign = self._app.clock.monotonic() + seconds
        await self._app.clock.sleep(seconds)


@cleanup("inbox")
async def inbox_clean(app: App) -> None:
    now = int(app.clock.now())
    async with app.db.tx() as tx:
        await tx.run("DELETE FROM inbox_seen WHERE seen_at < ?", now - SEEN_S)
        await tx.run("DELETE FROM inbox WHERE parked_at < ?", now - 7 * 86400)


# == Wiring ===========================================================================================================
# What runs beside the updates, and what is made ready before the first.


@loop("cleanup")
async def cleanup_loop(app: App) -> None:
    """The hourly cleanup; a fault in one step does not stop the others."""
    while True:
        await app.clock.sleep(3600)
        await clean(app)


async def clean(app: App) -> None:
    for name, step in CLEANUPS.items():
        try:
            with operation(f"cleanup {name}"):
                await step(app)
        except Exception:
            log.exception("cleanup failed: %s", name)


HOT_TYPES: tuple[type[pydantic.BaseModel], ...] = (
    Say, SayRich, Draft, Edit, GetRawUpdates, SendChatAction, SetMessageReaction,
    AnswerCallbackQuery, GetMe, GetFile, GetChatMember, SetMyCommands, SetWebhook, DeleteWebhook, InlineKeyboardMarkup,
)  # fmt: skip


def warm_up() -> None:
    """Build what every update needs, then take it all out of the garbage collector's sight.

    A full collection of this heap would stop the bot for 100 ms; types built after the freeze would undo it.
    """
    for kind in HOT_TYPES:
        kind.model_rebuild()
    for method in (Say, GetMe, GetFile, GetChatMember):
        response_type(method).model_rebuild()
    render("**warm** `up`")
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


# == Main =============================================================================================================
# The command line and the life of the process.

DRAIN_S = 20.0


def main(argv: Sequence[str] | None = None) -> int:
    """Run what the command line asks for; returns the exit code."""
    arguments = parse_arguments(argv)
    settings, faults = read_settings(os.environ, read_dotenv())
    texts = Texts(HERE / "locales")
    lang = terminal_lang()
    if settings is None:
        tell_faults(texts, lang, faults)
        return 2
    console = arguments.console
    if not settings.telegram_bot_token and not console and not arguments.check:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            print(texts(lang, "cli.no_token"), file=sys.stderr)
            return 2
        print(texts(lang, "cli.guide"))
        console = True
    if console or arguments.check:
        settings = dataclasses.replace(settings, language=lang)
    quiet = (console or arguments.check) and not settings.log_file  # what matters there is said in words
    setup_logs(dataclasses.replace(settings, log_level="ERROR") if quiet else settings)
    try:
        prepare_database(settings.db_path, Path(settings.backup_dir))
    except (DatabaseTooNew, sqlite3.Error, OSError) as error:
        print(texts(lang, "cli.database", path=settings.db_path, error=error), file=sys.stderr)
        return 1
    job = check(settings) if arguments.check else run_console(settings) if console else run_bot(settings)
    try:
        return run_loop(job)
    except (sqlite3.OperationalError, PermissionError) as error:  # read-only, or a disk without room
        log.debug("stopped", exc_info=error)
        print(texts(lang, "cli.database", path=settings.db_path, error=error), file=sys.stderr)
        return 1


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bot.py", description="Okun, a companion for Telegram chats")
    parser.add_argument("--console", action="store_true", help="talk to it here in the terminal")
    parser.add_argument("--check", action="store_true", help="verify settings, database, token, key and models")
    parser.add_argument("--version", action="version", version=f"Okun {VERSION}")
    return parser.parse_args(argv)


def terminal_lang() -> str:
    """The language of whoever sits at the terminal: its own, else LANGUAGE where that is set, else English."""
    locale = os.environ.get("LC_ALL") or os.environ.get("LANG") or ""
    wish = os.environ.get("LANGUAGE") or read_dotenv().get("LANGUAGE") or ""
    return pick_lang(locale.split("_")[0], pick_lang(wish.split("_")[0].split(":")[0], "en"))


def tell_faults(texts: Texts, lang: str, faults: Sequence[Fault]) -> None:
    print(texts(lang, "cli.faults"), file=sys.stderr)
    for fault in faults:
        print(f"  {fault.name}: {texts(lang, f'fault.{fault.key}', **fault.fields)}", file=sys.stderr)


def run_loop(job: Any) -> int:
    """Run on uvloop where it is installed."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        try:
            return int(runner.run(job))
        except KeyboardInterrupt:
            return 0


@asynccontextmanager
async def running(app: App) -> AsyncIterator[Inbox]:
    """An app with its database open and its handlers in place; closed in the reverse order."""
    await app.db.open()
    try:
        inbox = Inbox(app)
        app.gate.on_gone = lambda chat_id: chat_left(app, chat_id)
        app.gate.on_migrated = lambda old, new: chat_migrated(app, old, new)
        yield inbox
    finally:
        await app.close()


async def run_bot(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; then let running turns finish. Returns the exit code."""
    app = App(settings)
    stop = stop_signal()
    with lock_file(settings.db_path) as lock:
        if not await take_lock(lock, stop):
            print(app.texts(settings.language, "cli.running", path=settings.db_path), file=sys.stderr)
            return 1
        return await serve(app, stop)


async def serve(app: App, stop: asyncio.Event) -> int:
    """The life of a bot that has its database to itself. Returns the exit code."""
    settings = app.settings
    async with running(app) as inbox:
        if not await introduce(app, inbox, stop):
            return 0 if stop.is_set() else 2
        warm_up()
        await inbox.recover()
        poller = Poller(app, inbox)
        web = await start_web(app, inbox, poller)
        if settings.webhook_url and not (web and await begin_webhook(app, web)):
            print(app.texts(settings.language, "cli.webhook"), file=sys.stderr)
            return 1
        tasks = [app.spawn(body(app), name) for name, body in LOOPS.items()]
        tasks.append(app.spawn(announce(app), "announce"))
        if not settings.webhook_url:
            tasks.append(app.spawn(poller.run(), "poller"))
        log.info("Okun %s is listening as @%s", VERSION, app.me.username if app.me else "?")
        await stop.wait()
        log.info("stopping", extra={"count": inbox.busy})
        for task in tasks:
            task.cancel()
        if web:
            await web.close()
        await inbox.drain(DRAIN_S)
    log.info("stopped")
    return 0


def lock_file(path: str) -> IO[str]:
    """A file beside the database, to be locked: SQLite has locks of its own on its files."""
    return open(f"{path}-lock", "w", encoding="ascii")


async def take_lock(file: IO[str], stop: asyncio.Event) -> bool:
    """See to it that one process alone serves a database: two would answer the same inbox twice.

    A predecessor that is stopping is waited for. The lock ends with the process, however that ends.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    for _ in range(round(10 * (DRAIN_S + 5))):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.1)
        if stop.is_set():
            return False
    return False


def stop_signal() -> asyncio.Event:
    """Set by SIGTERM and SIGINT."""
    stop = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError):  # Windows: Ctrl-C is a KeyboardInterrupt there
            asyncio.get_running_loop().add_signal_handler(name, stop.set)
    return stop


async def introduce(app: App, inbox: Inbox, stop: asyncio.Event) -> bool:
    """getMe, as long as it takes to reach Telegram; False where the token is refused or we are told to stop."""
    failures = 0
    while not stop.is_set():
        try:
            await inbox.open()
            return True
        except TelegramUnauthorizedError:
            print(app.texts(app.settings.language, "cli.token_refused"), file=sys.stderr)
            return False
        except (TelegramAPIError, ChatGone) as error:
            failures += 1
            log.warning("Telegram not reached: %s", error, extra={"attempt": failures})
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), backoff(app.dice, failures))
    return False


async def start_web(app: App, inbox: Inbox, poller: Poller) -> Web | None:
    """The web server where it is wanted; a taken port is no reason to end, unless the webhook needs it."""
    if app.settings.web_port == 0:
        return None
    web = Web(app, inbox.take, lambda: bool(app.settings.webhook_url) or poller.healthy)
    try:
        await web.start()
    except OSError as error:
        log.warning("no web server: %s", error)
        return None
    return web


async def begin_webhook(app: App, web: Web) -> bool:
    """Tell Telegram where to deliver; False where it does not accept that."""
    method = SetWebhook(url=app.settings.webhook_url, secret_token=web.secret, allowed_updates=ALLOWED_UPDATES)
    try:
        await app.bot(method)
    except TelegramAPIError as error:
        log.error("webhook refused: %s", error)
        await web.close()
        return False
    return True


async def announce(app: App) -> None:
    """What can wait until the first poll is under way."""
    if not app.settings.webhook_url:
        await app.bot(DeleteWebhook())
    await register_commands(app)
    await register_owner_commands(app)


async def run_console(settings: Settings) -> int:
    """The terminal as the chat, until end of input. What waits in the inbox is the real bot's, and left alone."""
    session = ConsoleSession(print)
    app = App(dataclasses.replace(settings, telegram_bot_token=""), session=session)  # a bot of its own, with id 0
    async with running(app) as inbox:
        await inbox.open()
        console = Console(app, session, inbox.take)
        print(app.texts(settings.language, "console.welcome"))
        lines, prompt = read_lines(), "> " if sys.stdin.isatty() else ""
        while print(prompt, end="", flush=True) or (line := await lines.get()) is not None:
            await console.feed(line)
            await inbox.idle()
    return 0


def read_lines() -> asyncio.Queue[str | None]:
    """Lines of the terminal, None at the end. A daemon thread, so that nobody waits for Enter when we leave."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            while line := sys.stdin.readline():
                loop.call_soon_threadsafe(lines.put_nowait, line.rstrip("\n"))
            loop.call_soon_threadsafe(lines.put_nowait, None)

    threading.Thread(target=read, name="terminal", daemon=True).start()
    return lines


async def check(settings: Settings) -> int:
    """Verify what can be verified, say each fault; 0 where all is well, else 1."""
    app = App(settings)
    t = functools.partial(app.texts, settings.language)
    faults = 0

    def report(fault: str | None, good: str) -> None:
        nonlocal faults
        faults += fault is not None
        print(f"✗ {fault}" if fault else f"✓ {good}")

    report(None, t("check.settings"))
    async with running(app):
        row = await app.db.reader.one("PRAGMA integrity_check")
        report(None if row and row[0] == "ok" else t("check.database_bad"), t("check.database", path=settings.db_path))
        report(*await check_token(app, t))
        for provider in app.llm.providers:
            for model in provider.models:
                report(await check_model(provider, model, t), t("check.model", model=model))
        if not app.llm:
            print("· " + t("check.no_llm"))
    return 1 if faults else 0


async def check_token(app: App, t: Callable[..., str]) -> tuple[str | None, str]:
    if not app.settings.telegram_bot_token:
        return t("check.no_token"), ""
    try:
        me = await app.bot(GetMe())
    except (TelegramNetworkError, TelegramServerError) as error:
        return t("check.unreachable", url=app.settings.telegram_api_url, error=error.message), ""
    except (TelegramAPIError, ChatGone) as error:
        return t("check.token_bad", error=error), ""
    privacy = "" if me.can_read_all_group_messages else "\n  " + t("check.privacy")
    return None, t("check.token", username=me.username) + privacy


async def check_model(provider: Gemini | OpenAi, model: str, t: Callable[..., str]) -> str | None:
    try:
        await provider.check(model)
    except LlmFault as fault:
        return t("check.model_bad", model=model, error=fault)
    return None


if __name__ == "__main__":
    sys.exit(main())
