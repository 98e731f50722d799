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


