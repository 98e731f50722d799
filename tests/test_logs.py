"""Log lines carry the request id and never a secret."""

from __future__ import annotations

import contextvars
import json
import logging
import logging.handlers
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bot

TOKEN = "123456:AAbcdefghijklmnop"
KEY = "my-own-gemini-key"
PROXY = "socks5://user:pass-word@proxy:1080"
SECRETS = {
    "WEB_TOKEN": "a-password-of-the-page",
    "TELEGRAM_BOT_TOKEN": TOKEN,
    "GEMINI_API_KEY": KEY,
    "OPENAI_API_KEY": "sk-openai-1234",
    "WEBHOOK_SECRET": "hook-secret",
    "PROXY_URL": PROXY,
}


def settings(**given: str) -> bot.Settings:
    found, faults = bot.read_settings({**SECRETS, **given}, {})
    assert found is not None, faults
    return found


def record(message: str, *args: Any, error: BaseException | None = None, **extra: Any) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.getLogger("okun").makeRecord("okun", logging.INFO, "", 0, message, args, info, extra=extra)


def as_json(message: str, *args: Any, **more: Any) -> dict[str, Any]:
    formatter = bot.json_formatter(bot.Redactor(bot.secrets_of(settings())))
    line = formatter.format(record(message, *args, **more))
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def as_text(message: str, *args: Any, **more: Any) -> str:
    formatter = bot.TextFormatter(bot.Redactor(bot.secrets_of(settings())), colour=False)
    return formatter.format(record(message, *args, **more))


def raised(error: Exception) -> Exception:
    """The error with a traceback of a chain."""
    try:
        try:
            raise ValueError(f"first {KEY}")
        except ValueError as first:
            raise error from first
    except Exception as found:
        return found


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, left as it was found."""
    root, flags = logging.getLogger(), ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks")
    kept = root.handlers[:], root.level, {name: getattr(logging, name, None) for name in (*flags, "_srcfile")}
    levels = {name: log.level for name, log in root.manager.loggerDict.items() if isinstance(log, logging.Logger)}
    root.handlers = []
    yield root
    for handler in root.handlers:
        handler.close()
    root.handlers, root.level = kept[0], kept[1]
    for name, value in kept[2].items():
        setattr(logging, name, value)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    for noisy in ("aiosqlite", "aiogram", "aiohttp.access", "telegramify_markdown"):
        logging.getLogger(noisy).setLevel(levels.get(noisy, logging.NOTSET))


# -- lines


def test_a_json_line_carries_the_request_id() -> None:
    def handled() -> dict[str, Any]:
        bot.request_id.set("u77")
        return as_json("handled %s", "it", ms=12.5, reads=3)

    line = contextvars.copy_context().run(handled)
    assert line["request_id"] == "u77"
    assert (line["message"], line["level"], line["logger"]) == ("handled it", "INFO", "okun")
    assert (line["ms"], line["reads"]) == (12.5, 3)
    assert line["time"]


def test_a_line_outside_of_any_update_says_so() -> None:
    assert as_json("started")["request_id"] == "-"


def test_a_json_line_keeps_letters_as_they_are() -> None:
    formatter = bot.json_formatter(bot.Redactor([]))
    assert "Окунь 🐟" in formatter.format(record("Окунь 🐟"))


def test_a_traceback_is_one_json_line() -> None:
    line = as_json("failed", error=raised(RuntimeError("boom")))
    assert "RuntimeError: boom" in line["exc_info"] and "test_logs.py" in line["exc_info"]


def test_a_text_line_shows_the_request_id_and_the_fields() -> None:
    def handled() -> str:
        bot.request_id.set("u78")
        return as_text("model failed", model="gemini-3.8-flash", attempt=2, secret_thing="not ours to show")

    line = contextvars.copy_context().run(handled)
    assert "INFO" in line and "[u78] model failed" in line
    assert "model=gemini-3.8-flash" in line and "attempt=2" in line
    assert "not ours" not in line and "\x1b" not in line


def test_a_text_line_shows_the_traceback() -> None:
    assert "\nTraceback" in as_text("failed", error=raised(RuntimeError("boom")))


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL])
def test_a_coloured_line_ends_its_colour(level: int) -> None:
    formatter = bot.TextFormatter(bot.Redactor([]), colour=True)
    made = record("hello")
    made.levelno, made.levelname = level, logging.getLevelName(level)
    line = formatter.format(made)
    assert line.startswith("\x1b[") and line.endswith("\x1b[0m")


# -- secrets


@pytest.mark.parametrize("secret", [*SECRETS.values(), "987654321:" + "A" * 35, "AIza" + "b" * 35])
@pytest.mark.parametrize("show", [as_json, as_text])
def test_a_secret_never_appears(secret: str, show: Any) -> None:
    shown = [
        show(f"https://api.telegram.org/bot{secret}/getMe"),
        show("calling %s", secret),
        show("calling %(url)s", {"url": f"http://x/?key={secret}"}),
        show("failed", error=raised(RuntimeError(f"cannot connect to {secret}"))),
        show("fields", operation=f"get {secret}", kind=secret),
    ]
    for line in shown:
        assert secret not in str(line)
        assert "[secret]" in str(line)


@pytest.mark.parametrize("show", [as_json, as_text])
def test_a_secret_in_an_older_error_of_a_chain_never_appears(show: Any) -> None:
    line = str(show("failed", error=raised(RuntimeError("boom"))))
    assert "ValueError: first [secret]" in line and KEY not in line


@pytest.mark.parametrize("show", [as_json, as_text])
def test_a_secret_that_json_would_escape_never_appears(show: Any) -> None:
    secret = 'quo"ted\\key-value'
    redact = bot.Redactor([secret])
    formatter = bot.json_formatter(redact) if show is as_json else bot.TextFormatter(redact, colour=False)
    line = formatter.format(record("key %s", secret))
    assert "quo" not in line and "key-value" not in line


def test_every_setting_that_is_masked_in_faults_is_cut_out_of_the_log() -> None:
    masked = {name for name in bot.SETTINGS if bot.mask(name, "x") != "x"}
    given = {name: f"{SECRETS.get(name, 'a-longer-' + name.lower())}" for name in masked}
    found, faults = bot.read_settings(given, {})
    assert found is not None, faults
    assert sorted(bot.secrets_of(found)) == sorted(given.values())


def test_what_is_no_secret_stays() -> None:
    assert as_json("chat 123456: hello")["message"] == "chat 123456: hello"
    assert bot.Redactor(["", "short"])("a short line") == "a short line"


# -- where they go


@pytest.mark.parametrize(
    ("wish", "terminal", "text"),
    [
        ("auto", True, True),
        ("auto", False, False),
        ("text", False, True),
        ("json", True, False),
    ],
)
def test_the_form_on_the_terminal_is_as_set(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch, wish: str, terminal: bool, text: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    bot.setup_logs(settings(LOG_FORMAT=wish))
    [handler] = root.handlers
    assert isinstance(handler.formatter, bot.TextFormatter) == text


def test_the_level_is_as_set(root: logging.Logger, capsys: pytest.CaptureFixture[str]) -> None:
    bot.setup_logs(settings(LOG_LEVEL="WARNING", LOG_FORMAT="json"))
    bot.log.info("quiet")
    bot.log.warning("loud")
    assert [json.loads(line)["message"] for line in capsys.readouterr().err.splitlines()] == ["loud"]


def test_the_file_holds_json_lines_and_is_rotated(
    root: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "okun.log"
    bot.setup_logs(settings(LOG_FILE=str(path), LOG_FORMAT="text"))
    [file] = [handler for handler in root.handlers if isinstance(handler, logging.handlers.RotatingFileHandler)]
    assert (file.maxBytes, file.backupCount) == (10_000_000, 5)
    file.maxBytes = 300
    for n in range(20):
        bot.log.warning("line %s of Окунь with %s", n, KEY)
    kept = sorted(tmp_path.iterdir())
    assert len(kept) == 6
    lines = [json.loads(line) for each in kept for line in each.read_text("utf-8").splitlines()]
    assert "line 19 of Окунь with [secret]" in {line["message"] for line in lines}
    assert KEY not in "".join(each.read_text("utf-8") for each in kept) + capsys.readouterr().err


def test_chatty_libraries_are_kept_quiet(root: logging.Logger) -> None:
    bot.setup_logs(settings(LOG_LEVEL="DEBUG"))
    assert not logging.getLogger("aiosqlite").isEnabledFor(logging.INFO)
    assert bot.log.isEnabledFor(logging.DEBUG)


# -- operations


def test_a_slow_operation_warns(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(bot, "SLOW_OPERATION_S", -1.0)
    with caplog.at_level(logging.INFO, "okun"), bot.operation("cleanup users", count=3):
        pass
    [made] = caplog.records
    assert (made.levelname, made.message) == ("WARNING", "slow operation")
    assert made.__dict__["operation"] == "cleanup users" and made.__dict__["count"] == 3


@pytest.mark.parametrize(("level", "lines"), [(logging.INFO, 0), (logging.DEBUG, 1)])
def test_a_quick_operation_is_only_told_when_debugging(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, level: int, lines: int
) -> None:
    monkeypatch.setattr(bot, "SLOW_OPERATION_S", 1e9)
    with caplog.at_level(level, "okun"), bot.operation("cleanup users"):
        pass
    assert len(caplog.records) == lines


def test_an_operation_that_fails_is_timed_and_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bot, "SLOW_OPERATION_S", -1.0)
    with pytest.raises(KeyError), bot.operation("lookup"):
        raise KeyError("gone")
    assert [made.message for made in caplog.records] == ["slow operation"]
