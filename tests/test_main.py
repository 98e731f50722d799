"""The command line: exit codes, what is said, and the life of the process."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TEXTS, make_settings
from fakes import FakeGemini, FakeTelegram, until

import bot

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, with nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in [*bot.SETTINGS, *bot.ALIASES]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    monkeypatch.setattr(bot, "setup_logs", lambda settings: None)
    return tmp_path


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str, terminal: bool = False) -> None:
    """What stands in standard input."""
    stdin = io.StringIO("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(stdin, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)


# -- the command line


def test_version(home: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        bot.main(["--version"])
    assert end.value.code == 0 and capsys.readouterr().out == f"Okun {bot.VERSION}\n"


def test_as_a_script_it_takes_its_arguments_and_no_module_of_the_folder_it_is_started_in(tmp_path: Path) -> None:
    for name in ("bot", "json", "aiohttp"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(7)")
    command = [sys.executable, "-X", "utf8", str(bot.HERE / "bot.py"), "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Okun {bot.VERSION}\n", "")


def test_help_names_every_option(home: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        bot.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and all(option in out for option in ("--console", "--check", "--version"))


def test_an_unknown_option_is_refused(home: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as end:
        bot.main(["--nonsense"])
    assert end.value.code == 2 and "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize("lang", bot.LANGS)
def test_no_token_without_a_terminal_is_one_line(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    monkeypatch.setenv("LC_ALL", f"{lang}_XX.UTF-8")
    typed(monkeypatch)
    assert bot.main([]) == 2
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", TEXTS(lang, "cli.no_token") + "\n")
    assert len(told.err.splitlines()) == 1 and not (home / "okun.db").exists()


def test_no_token_on_a_terminal_is_explained_in_three_lines_and_goes_on_as_console(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed(monkeypatch, "hello river", terminal=True)
    assert bot.main([]) == 0
    out = capsys.readouterr().out
    guide = TEXTS("en", "cli.guide").strip()
    assert out.strip().startswith(guide) and len(guide.splitlines()) == 3
    assert TEXTS("en", "console.welcome") in out and TEXTS("en", "offline.no_key") in out


def test_a_terminal_without_a_language_of_ours_gets_that_of_the_bot(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    monkeypatch.setenv("LANGUAGE", "ru")
    typed(monkeypatch)
    assert bot.main([]) == 2
    assert capsys.readouterr().err == TEXTS("ru", "cli.no_token") + "\n"


def test_the_console_reads_until_the_end_of_input(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    typed(monkeypatch, "/lang uk", ":group")
    assert bot.main(["--console"]) == 0
    out = capsys.readouterr().out
    assert f"Okun: {TEXTS('uk', 'lang.set')}" in out and TEXTS("en", "console.group") in out
    assert (home / "okun.db").exists()


def test_the_console_needs_no_token_and_does_not_use_one(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    monkeypatch.setenv("TELEGRAM_API_URL", "http://127.0.0.1:9")
    (home / "cat.txt").write_text("meow")
    typed(monkeypatch, "/help", ":file cat.txt")
    assert bot.main(["--console"]) == 0
    assert "/settings — " in capsys.readouterr().out


# -- faults


FAULTY = """
TELEGRAM_BOT_TOKEN=secret-nonsense
TIMEZONE=Europe/Nowhere
RANDOM_REPLY_CHANCE=2
GROUP_POLICI=always
LLM_TIMEOUT=soon
WEB_PORT=99999
"""


def test_all_faults_are_listed_at_once(home: Path, capsys: Capture) -> None:
    (home / ".env").write_text(FAULTY)
    assert bot.main([]) == 2
    told = capsys.readouterr()
    first, *lines = told.err.splitlines()
    assert first == TEXTS("en", "cli.faults") and told.out == ""
    assert sorted(line.split(":")[0].strip() for line in lines) == [
        "GROUP_POLICI", "LLM_TIMEOUT", "RANDOM_REPLY_CHANCE", "TELEGRAM_BOT_TOKEN", "TIMEZONE", "WEB_PORT",
    ]  # fmt: skip
    assert "GROUP_POLICY" in told.err and "secret-nonsense" not in told.err
    assert not (home / "okun.db").exists()


@pytest.mark.parametrize("lang", bot.LANGS)
def test_faults_are_told_in_the_language_of_the_terminal(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, lang: str
) -> None:
    monkeypatch.setenv("LC_ALL", f"{lang}_XX.UTF-8")
    monkeypatch.setenv("WEB_PORT", "x")
    assert bot.main(["--check"]) == 2
    assert capsys.readouterr().err.splitlines()[0] == TEXTS(lang, "cli.faults")


def test_a_database_of_a_later_version_is_left_alone(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with sqlite3.connect(home / "okun.db") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    before = (home / "okun.db").read_bytes()
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    assert bot.main([]) == 1
    told = capsys.readouterr().err
    assert "okun.db" in told and "999" in told and len(told.splitlines()) == 1
    assert (home / "okun.db").read_bytes() == before


def test_a_file_that_is_no_database_is_left_alone(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "okun.db").write_bytes(b"my diary " * 1000)
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    assert bot.main([]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert (home / "okun.db").read_bytes() == b"my diary " * 1000


def test_a_database_that_cannot_be_opened_is_one_line(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").write_text("")
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    for path in (".", "file/okun.db"):
        monkeypatch.setenv("DB_PATH", path)
        assert bot.main([]) == 1
        assert len(capsys.readouterr().err.splitlines()) == 1


# -- --check


@pytest.fixture
async def telegram() -> AsyncIterator[FakeTelegram]:
    async with FakeTelegram() as server:
        yield server


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini(key="good-key") as server:
        yield server


@pytest.fixture
def local(
    telegram: FakeTelegram, gemini: FakeGemini, fresh_database: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Settings for the servers here."""
    monkeypatch.setattr(bot, "MAX_TRIES", 1)
    (home / "okun.db").write_bytes(fresh_database.read_bytes())
    return {
        "telegram_api_url": telegram.url, "gemini_api_url": gemini.url, "gemini_api_key": "good-key",
        "language": "en", "db_path": str(home / "okun.db"), "gemini_model": ("gemini-3.8-flash", "gemini-2.5-flash"),
    }  # fmt: skip


async def check(capsys: Capture, values: dict[str, Any], **more: Any) -> tuple[int, list[str]]:
    code = await bot.check(make_settings(**{**values, **more}))
    return code, capsys.readouterr().out.splitlines()


HEARS = "· " + TEXTS("en", "check.hears" if bot.find_ffmpeg() else "check.hears_less")


async def test_check_says_what_works(capsys: Capture, local: dict[str, Any]) -> None:
    assert await check(capsys, local) == (0, [
        "✓ settings", f"✓ database {local['db_path']}", "✓ token: @okun_bot", "✓ model gemini-3.8-flash",
        "✓ model gemini-2.5-flash", "✓ model gemini-3.5-flash-lite", "✓ model gemini-2.5-flash-lite",
        "✓ model gemini-3.1-flash-image", "✓ model gemini-3.5-transcribe", HEARS,
    ])  # fmt: skip


async def test_check_says_what_privacy_mode_hides(
    capsys: Capture, local: dict[str, Any], telegram: FakeTelegram
) -> None:
    telegram.can_read_all_group_messages = False
    code, lines = await check(capsys, local)
    assert code == 0 and f"  {TEXTS('en', 'check.privacy')}" in lines


async def test_check_says_what_does_not_work(capsys: Capture, local: dict[str, Any], telegram: FakeTelegram) -> None:
    telegram.token = "42:OTHER"
    code, lines = await check(capsys, local, gemini_api_key="bad-key", gemini_model=("gemini-3.8-flash",))
    assert code == 1 and [line[0] for line in lines] == ["✓", "✓", *"✗✗✗✗✗✗", "·"]
    assert "bad-key" not in "".join(lines) and "42:TEST" not in "".join(lines)


async def test_check_names_a_model_that_has_ended(capsys: Capture, local: dict[str, Any]) -> None:
    code, lines = await check(capsys, local, gemini_model=("gemini-1.0-pro", "gemini-3.8-flash"))
    assert code == 1 and lines[3].startswith("✗ model gemini-1.0-pro") and lines[4] == "✓ model gemini-3.8-flash"


async def test_check_says_when_telegram_is_not_reached(capsys: Capture, local: dict[str, Any]) -> None:
    code, lines = await check(capsys, local, telegram_api_url="http://127.0.0.1:9")
    assert code == 1 and lines[2].startswith("✗ ") and lines[3].startswith("✓ ")


async def test_check_without_a_key_is_no_fault(capsys: Capture, local: dict[str, Any]) -> None:
    code, lines = await check(capsys, local, gemini_api_key="")
    assert code == 0 and lines[-1] == f"· {TEXTS('en', 'check.no_llm')}"


async def test_check_says_that_nobody_draws(capsys: Capture, local: dict[str, Any]) -> None:
    told = f"· {TEXTS('en', 'check.no_draw')}"
    assert (await check(capsys, local, gemini_image_model=()))[1][-1] == told
    assert told in (await check(capsys, local, gemini_api_key=""))[1]
    code, lines = await check(capsys, local, gemini_image_model=("gemini-2.5-flash-image",))
    assert code == 1 and any(line.startswith("✗ model gemini-2.5-flash-image") for line in lines) and told not in lines


async def test_check_knows_openai_compatible_models(capsys: Capture, local: dict[str, Any], gemini: FakeGemini) -> None:
    code, lines = await check(
        capsys, local, openai_api_url=gemini.url + "/v1", openai_api_key="good-key", openai_model=("no-such-model",)
    )
    assert code == 1 and any(line.startswith("✗ model no-such-model") for line in lines)


async def test_check_names_what_no_budget_counts(capsys: Capture, local: dict[str, Any], gemini: FakeGemini) -> None:
    strange = {"openai_api_url": "https://models.test/v1", "openai_model": ("gpt-9", "some/model:free")}
    told = f"✗ {TEXTS('en', 'check.unpriced', model='gpt-9', date=bot.PRICES_OF)}"
    code, lines = await check(capsys, local, daily_budget_usd=1.0, **strange)
    assert code == 1 and told in lines and not any("some/model" in line for line in lines if "budget" in line.lower())
    assert told not in (await check(capsys, local, **strange))[1]
    at_home = strange | {"openai_api_url": gemini.url + "/v1"}
    assert told not in (await check(capsys, local, daily_budget_usd=1.0, **at_home))[1]


def test_check_without_a_token_is_a_fault(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bot.main(["--check"]) == 1
    assert f"✗ {TEXTS('en', 'check.no_token')}" in capsys.readouterr().out.splitlines()


# -- the life of the process


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """run_bot may run here: nothing is frozen for good."""
    monkeypatch.setattr(bot, "warm_up", lambda: None)


async def run(values: dict[str, Any], **more: Any) -> asyncio.Task[int]:
    return asyncio.create_task(bot.run_bot(make_settings(**{**values, **more})))


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


async def test_it_answers_until_it_is_told_to_stop(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, gemini: FakeGemini
) -> None:
    chat = telegram.private(telegram.user(7, "Anna", "en"))
    task = await run(local)
    telegram.say(chat, telegram.users[7], "hello")
    await telegram.until(lambda: telegram.sent(chat))
    await telegram.until(lambda: len(telegram.called("setMyCommands")) >= 8)
    terminate()
    assert await task == 0


async def test_a_stop_lets_a_running_answer_finish(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, gemini: FakeGemini
) -> None:
    chat = telegram.private(telegram.user(7, "Anna", "en"))
    task = await run(local)
    telegram.fault("slow", "sendMessage", seconds=0.05)
    telegram.say(chat, telegram.users[7], "hello")
    await telegram.until(lambda: telegram.called("sendMessage"))
    terminate()
    assert await task == 0
    with sqlite3.connect(local["db_path"]) as connection:
        assert connection.execute("SELECT count(*) FROM inbox").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM messages").fetchone() == (2,)
    connection.close()


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_a_refused_token_ends_with_2_and_one_line(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, capsys: Capture, lang: str
) -> None:
    telegram.token = "42:OTHER"
    assert await (await run(local, language=lang)) == 2
    assert capsys.readouterr().err == TEXTS(lang, "cli.token_refused") + "\n"


async def test_a_stop_while_telegram_is_not_reached_is_no_fault(
    alive: None, local: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    task = await run(local, telegram_api_url="http://127.0.0.1:9")
    await until(lambda: "not reached" in caplog.text)
    terminate()
    assert await task == 0


async def test_a_webhook_is_set_and_served(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, unused_port: int
) -> None:
    chat = telegram.private(telegram.user(7, "Anna", "en"))
    task = await run(local, webhook_url="https://okun.example/hook", webhook_secret="s3cret", web_port=unused_port)
    await telegram.until(lambda: telegram.webhook)
    telegram.say(chat, telegram.users[7], "hello")
    [update] = telegram.next_updates()
    assert await telegram.deliver(f"http://127.0.0.1:{unused_port}/hook", "s3cret", update) == 200
    await telegram.until(lambda: telegram.sent(chat))
    terminate()
    assert await task == 0 and telegram.polls == 0


async def test_a_webhook_without_a_secret_gets_one(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, unused_port: int
) -> None:
    task = await run(local, webhook_url="https://okun.example/hook", web_port=unused_port)
    await telegram.until(lambda: telegram.webhook)
    terminate()
    assert await task == 0
    assert len(telegram.webhook["secret_token"]) > 20 and telegram.webhook["allowed_updates"] == bot.ALLOWED_UPDATES


@pytest.mark.parametrize("fault", ["port taken", "port off", "refused"])
async def test_a_webhook_that_cannot_work_ends_with_1_and_one_line(
    alive: None, local: dict[str, Any], telegram: FakeTelegram, unused_port: int, capsys: Capture, fault: str
) -> None:
    port = {"port taken": telegram.port, "port off": 0, "refused": unused_port}[fault]
    if fault == "refused":
        telegram.fault("400", "setWebhook", text="bad webhook")
    assert await (await run(local, webhook_url="https://okun.example/hook", web_port=port)) == 1
    assert capsys.readouterr().err == TEXTS("en", "cli.webhook") + "\n"


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return int(port)


@pytest.mark.parametrize(
    ("lang", "language", "found"),
    [("uk_UA.UTF-8", "", "uk"), ("ru_RU", "uk", "ru"), ("C.UTF-8", "", "en"), ("C.UTF-8", "uk", "uk"),
     ("de_DE", "de_DE:de", "en"), ("", "ru", "ru")],
)  # fmt: skip
def test_whoever_sits_at_the_terminal_is_addressed_in_its_language(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lang: str, language: str, found: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("LC_ALL", ""), ("LANG", lang), ("LANGUAGE", language)):
        monkeypatch.setenv(name, value)
    assert bot.terminal_lang() == found


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_dotenv_is_read_as_editors_save_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, encoding: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes("LANGUAGE=ru\nBOT_NAMES=щука\n".encode(encoding))
    assert bot.read_dotenv() == {"LANGUAGE": "ru", "BOT_NAMES": "щука"}


def test_rubbish_for_a_dotenv_is_no_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    Path(".env").write_bytes(b"\xff\xfe\x00bad")
    _, faults = bot.read_settings({}, bot.read_dotenv())
    assert all(fault.key.startswith("unknown") for fault in faults)
    Path(".env").unlink()
    assert bot.read_dotenv() == {}


def waiting(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM inbox").fetchone()[0])


def test_the_console_leaves_the_inbox_and_the_place_of_the_real_bot_alone(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot.prepare_database("okun.db", home)
    with contextlib.closing(sqlite3.connect("okun.db")) as db, db:
        db.execute("INSERT INTO inbox (update_id, raw, received_at) VALUES (5, '{}', 0)")
        db.execute("INSERT INTO meta (name, value) VALUES ('last_update 42', '5 0')")
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "42:TEST")
    typed(monkeypatch, "hello")
    assert bot.main(["--console"]) == 0
    assert waiting(home / "okun.db") == 1
    with contextlib.closing(sqlite3.connect("okun.db")) as db:
        assert db.execute("SELECT value FROM meta WHERE name = 'last_update 42'").fetchone() == ("5 0",)


async def test_one_process_alone_serves_a_database(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "DRAIN_S", -4.8)  # two looks
    with bot.lock_file("okun.db") as first, bot.lock_file("okun.db") as second:
        assert await bot.take_lock(first, asyncio.Event())
        assert not await bot.take_lock(second, asyncio.Event())
    with bot.lock_file("okun.db") as third:
        assert await bot.take_lock(third, asyncio.Event())
