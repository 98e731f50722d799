"""Copies of the database in turn, the way back to one, and what is done about a file or a disk that is sick."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import NOON, OWNER, TEXTS, Later, Okun, Room, Script, settings

import bot

HOUR, DAY = 3600, 86_400
Capture = pytest.CaptureFixture[str]
MALFORMED = sqlite3.DatabaseError("database disk image is malformed")
FULL = sqlite3.OperationalError("database or disk is full")


@pytest.fixture
def home(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to start in, with a database that knows a secret, and nothing set."""
    monkeypatch.chdir(tmp_path)
    for name in [*bot.SETTINGS, *bot.ALIASES]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LC_ALL", "en_US.UTF-8")
    monkeypatch.setattr(bot, "setup_logs", lambda settings: None)
    shutil.copy(fresh_database, tmp_path / "okun.db")
    note(tmp_path / "okun.db", "before")
    return tmp_path


def note(file: Path, value: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        connection.execute("INSERT OR REPLACE INTO meta (name, value) VALUES ('note', ?)", (value,))


def noted(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        return str(connection.execute("SELECT value FROM meta WHERE name = 'note'").fetchone()[0])


def backup_of(home: Path, now: float = NOON, keep: int = 7) -> Path:
    return bot.make_backup(str(home / "okun.db"), home / "backups", keep, now).path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def spoil(file: Path) -> None:
    """Overwrite pages in the middle."""
    data = bytearray(file.read_bytes())
    data[9000:30_000] = b"\xff" * 21_000
    file.write_bytes(data)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str = "VACUUM") -> None:
    """Statements that begin so fail on new connections."""

    class Failing(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            if sql.startswith(words):
                raise error
            return super().execute(sql, *args)

    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **how: connect(*args, **{"factory": Failing, **how}))


# -- one backup


def test_a_backup_holds_what_is_committed_and_only_its_owner_may_read_it(home: Path) -> None:
    with contextlib.closing(sqlite3.connect("okun.db")) as writing:
        writing.execute("PRAGMA journal_mode = WAL")
        writing.execute("UPDATE meta SET value = 'in the log' WHERE name = 'note'")
        writing.commit()  # not yet in the file itself
        made = backup_of(home)
    assert made.name == "okun-20260513-090000.db" and noted(made) == "in the log"
    assert stat.S_IMODE(made.stat().st_mode) == 0o600 and stat.S_IMODE(made.parent.stat().st_mode) == 0o700
    assert names(made.parent) == [made.name]


def test_a_backup_is_made_while_another_connection_writes(home: Path) -> None:
    with contextlib.closing(sqlite3.connect("okun.db", isolation_level=None)) as writing:
        writing.execute("BEGIN IMMEDIATE")
        writing.execute("UPDATE meta SET value = 'not yet' WHERE name = 'note'")
        assert noted(backup_of(home)) == "before"
        writing.execute("COMMIT")


def test_the_newest_are_kept_and_no_other_file_is_touched(home: Path) -> None:
    folder = home / "backups"
    folder.mkdir()
    others = [
        "diary.db",
        "okun-2026.db",
        "okun-20260101-000000.db.gz",
        "okun-20261332-000000.db",
        "xokun-20260101-000000.db",
    ]
    for name in others:
        (folder / name).write_text("mine")
    for number in range(5):
        (folder / f"before-{number}-{1_000_000 + number}.db").write_text("")
    made = [backup_of(home, NOON + day * DAY, keep=3).name for day in range(6)]
    assert names(folder) == sorted([*others, *made[-3:], *(f"before-{n}-{1_000_000 + n}.db" for n in (2, 3, 4))])


def test_what_a_killed_backup_left_is_removed_by_the_next(home: Path) -> None:
    folder = home / "backups"
    folder.mkdir()
    for name in ("okun-20260101-000000.db.part", "okun-20260101-000000.db.part-journal", "before-4-99.db.part"):
        (folder / name).write_text("half")
    made = backup_of(home)
    assert names(folder) == sorted([made.name, "before-4-99.db.part"])  # a migration may be under way
    os.utime(folder / "before-4-99.db.part", (0, 0))
    assert names(backup_of(home, NOON + 1).parent) == sorted([made.name, "okun-20260513-090001.db"])


def test_one_backup_at_a_time(home: Path) -> None:
    (home / "backups").mkdir()
    with bot.backup_lock(home / "backups"), pytest.raises(bot.BotError) as told:
        backup_of(home)
    assert told.value.key == "backup.busy" and names(home / "backups") == []
    backup_of(home)


FAILURES: dict[str, tuple[str, Callable[[Path, pytest.MonkeyPatch], Any]]] = {
    "no room before": ("backup.no_room", lambda home, patch: patch.setattr(
        shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))),
    "no room meanwhile": ("backup.full", lambda home, patch: failing(patch, FULL)),
    "the copy is bad": ("backup.damaged", lambda home, patch: patch.setattr(
        bot, "require_sound", lambda connection, check="": (_ for _ in ()).throw(MALFORMED))),
    "the database is bad": ("backup.damaged", lambda home, patch: spoil(home / "okun.db")),
    "no database": ("backup.failed", lambda home, patch: (home / "okun.db").unlink()),
    "fsync": ("backup.folder", lambda home, patch: patch.setattr(
        os, "fsync", lambda file: (_ for _ in ()).throw(OSError(5, "Input/output error")))),
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
def test_where_none_can_be_made_the_older_ones_stay(home: Path, monkeypatch: pytest.MonkeyPatch, failure: str) -> None:
    older = [backup_of(home, NOON - day * DAY).name for day in (1, 2)]
    key, break_it = FAILURES[failure]
    with monkeypatch.context() as patch, pytest.raises(bot.BotError) as told:
        break_it(home, patch)
        backup_of(home, keep=1)
    assert told.value.key == key and TEXTS("uk", key, **told.value.fields)
    assert names(home / "backups") == sorted(older)


def test_a_file_where_the_folder_should_be_is_told(home: Path) -> None:
    (home / "backups").write_text("")
    with pytest.raises(bot.BotError) as told:
        backup_of(home)
    assert told.value.key == "backup.folder"


def test_a_backup_that_is_told_to_stop_leaves_nothing(home: Path) -> None:
    with contextlib.closing(sqlite3.connect("okun.db")) as big, big:
        rows = [(f"name {number}", "value") for number in range(20_000)]
        big.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", rows)
    with pytest.raises(bot.BotError):
        bot.make_backup("okun.db", home / "backups", 7, NOON, lambda: True)
    assert names(home / "backups") == []


# -- when


def made_at(*times: float) -> list[bot.Backup]:
    return [bot.Backup(Path("x"), time, 1) for time in times]


@pytest.mark.parametrize(
    ("times", "wait"),
    [((), 0), ((NOON,), DAY), ((NOON - HOUR,), DAY - HOUR), ((NOON - 2 * DAY,), 0),
     ((NOON - HOUR, NOON - DAY), DAY - HOUR),
     # the clock was ahead: what was made then says nothing
     ((NOON + HOUR,), 0), ((NOON + 5 * DAY, NOON - HOUR), DAY - HOUR)],
)  # fmt: skip
def test_the_next_is_due_by_the_newest_there_is(times: tuple[float, ...], wait: float) -> None:
    assert bot.backup_wait(made_at(*times), NOON, DAY) == wait


def test_a_name_says_when(tmp_path: Path) -> None:
    assert bot.stamped_at(f"okun-{bot.stamp(NOON)}.db") == NOON
    assert bot.stamped_at("okun-20261332-000000.db") is None and bot.stamped_at("okun.db") is None


@pytest.fixture
async def looping(okun: Okun) -> AsyncIterator[Path]:
    """The loop runs; its folder."""
    okun.app.spawn(bot.backup_loop(okun.app), "backup")
    yield Path(okun.settings.backup_dir)


@pytest.fixture
def folder(okun: Okun) -> Path:
    return Path(okun.settings.backup_dir)


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(folder: Path) -> list[float]:
    return sorted(one.made_at - NOON for one in bot.backups_in(folder))


@settings(backup_hours=24)
async def test_backups_come_a_minute_after_the_start_and_then_in_turn(okun: Okun, looping: Path, later: Later) -> None:
    await later(59)
    assert made(looping) == []
    await later(3 * DAY)
    assert made(looping) == [60, 60 + DAY, 60 + 2 * DAY]


@settings(backup_hours=24)
async def test_a_restart_neither_repeats_nor_postpones_it(okun: Okun, later: Later, folder: Path) -> None:
    for _ in range(5):
        okun.app.spawn(bot.backup_loop(okun.app), "backup")
        await later(7 * HOUR)
        await okun.restart()
    assert made(folder) == [60, 60 + 24 * HOUR]


@settings(backup_hours=0)
async def test_none_are_made_where_none_are_wanted(okun: Okun, looping: Path, later: Later) -> None:
    await later(3 * DAY)
    assert made(looping) == []


@settings(backup_hours=24, backup_keep=3)
async def test_a_clock_that_is_set_back_stops_nothing(okun: Okun, looping: Path, later: Later) -> None:
    await later(HOUR)
    okun.clock.start -= 400 * DAY
    await later(3 * DAY)
    past = [at for at in made(looping) if at < 0]
    assert len(past) == 3 and len(made(looping)) == 3  # and that of the wrong time was the first to go
    assert [round(b - a) for a, b in itertools.pairwise(past)] == [DAY, DAY]


@settings(backup_hours=24)
async def test_the_owner_hears_once_that_there_is_no_room(
    okun: Okun, looping: Path, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = okun.private("Owner")
    owner.put("say", "hi")
    await okun.take()
    before = len(owner.replies)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        await later(5 * HOUR)
    assert len(owner.replies) == before + 1 and "MB of room" in owner.replies[-1].text and made(looping) == []
    await later(HOUR)
    assert len(made(looping)) == 1 and len(owner.replies) == before + 1
    (looping / made_name(looping)).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
        await later(2 * DAY)
    assert len(owner.replies) == before + 2


def made_name(folder: Path) -> str:
    return bot.backups_in(folder)[0].path.name


@settings(backup_hours=24)
async def test_damage_that_a_backup_finds_is_told_with_the_way_back(
    okun: Okun, folder: Path, later: Later, caplog: pytest.LogCaptureFixture
) -> None:
    owner = okun.private("Owner")
    good = (await bot.back_up(okun.app)).path
    bad = folder / "okun-20260513-100000.db"
    bad.write_bytes(good.read_bytes())
    spoil(bad)  # newer, but it went bad on the disk
    okun.app.db.note(MALFORMED)
    await later(2 * HOUR)
    assert okun.app.db.sick == "malformed"
    [told] = owner.replies
    assert f"bot.py --restore {good.absolute()}" in told.text
    okun.app.db.note(MALFORMED)
    okun.app.db.note(None)
    await later(2 * HOUR)
    assert len(owner.replies) == 1 and okun.app.db.sick == "malformed"


async def test_a_backup_folder_that_cannot_be_written_is_a_warning(
    okun: Okun, folder: Path, later: Later, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    await okun.restart(backup_hours=24, backup_dir=str(okun.path.parent / "file" / "backups"))
    (okun.path.parent / "file").write_text("")
    okun.app.spawn(bot.backup_loop(okun.app), "backup")
    await later(2 * HOUR)
    chat = okun.private("Anna")
    assert "BACKUP_DIR cannot be written" in caplog.text and [reply.text for reply in await chat.say("hi")] == [
        "Heard: hi"
    ]


# -- the menu of the owner


async def test_the_owner_looks_at_backups_and_makes_one(okun: Okun, later: Later, folder: Path) -> None:
    owner = okun.private("Owner")
    [panel] = await owner.say("/backup")
    assert okun.t("backup.none") in panel.text
    pressed = await owner.press(okun.t("backup.button.now"))
    assert len(made(folder)) == 1 and made_name(folder) in pressed.message.text and "KB" in pressed.message.text
    await later(2 * HOUR)
    await owner.press(okun.t("backup.button.now"))
    assert len(made(folder)) == 2
    [panel] = await owner.say("/backup")
    lines = panel.text.splitlines()
    assert "1 second ago" in lines[2] and "2 hours ago" in lines[3]


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_the_menu_speaks_each_language(okun: Okun, folder: Path, lang: str) -> None:
    owner = okun.private("Owner")
    await owner.say(f"/lang {lang}")
    await bot.back_up(okun.app)
    [panel] = await owner.say("/backup")
    assert panel.text.startswith(okun.t("backup.list", lang, folder=folder, lines="").split("\n")[0])
    assert {"uk": "тому", "ru": "назад", "en": "ago"}[lang] in panel.text


async def test_a_backup_that_fails_is_told_to_who_asked(okun: Okun, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = okun.private("Owner")
    await owner.say("/backup")
    Path("backups").write_text("")
    pressed = await owner.press(okun.t("backup.button.now"))
    assert pressed.replies[-1].text.startswith("No backup: I can't write to backups")


async def test_nobody_else_may(okun: Okun, chat: Room, group: Room, folder: Path) -> None:
    owner = okun.private("Owner")
    [panel] = await owner.say("/backup")
    [reply] = await chat.say("/backup")
    assert reply.text == okun.t("command.unknown")
    [panel] = await chat.say("/menu")
    for data in ("d1:11:backup:", "m2:11:backups:"):
        assert (await chat.press_data(data, panel)).note == okun.t("error.owners_only")
    assert made(folder) == []


# -- a disk that is full, a file that is locked or damaged


async def limit(okun: Okun, *, full: bool) -> None:
    """No page can be added any more; or again as many as there is room for."""
    [pages] = await okun.app.db._writer.execute_fetchall("PRAGMA page_count")
    await okun.app.db._writer.execute(f"PRAGMA max_page_count = {pages[0] if full else 1 << 30}")


async def fill(okun: Okun) -> None:
    """Leave no room at all."""
    await limit(okun, full=True)
    with contextlib.suppress(sqlite3.OperationalError):
        for number in range(1000):
            await okun.app.db.write({bot.PUT_META: [(f"filler {number}", "x" * 500)]})


def long(number: int) -> str:
    return f"message {number}: " + "ля" * 1900


@pytest.fixture
async def poller(okun: Okun) -> bot.Poller:
    poller = bot.Poller(okun.app, okun.inbox)
    okun.app.spawn(poller.run(), "poller")
    await okun.settle()
    return poller


async def test_on_a_full_disk_nothing_is_lost_and_the_owner_hears_once(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later
) -> None:
    owner = okun.private("Owner")
    owner.put("say", "hello")
    chat.put("say", "hello")
    await later(1)
    await limit(okun, full=True)
    for number in range(8):
        chat.put("say", long(number))
        await later(20)
    assert okun.app.db.sick == "full" and len(okun.telegram.queue) > 0  # not confirmed before they are stored
    await later(2 * HOUR)
    assert [reply.text for reply in owner.replies[1:]] == [okun.t("owner.sick.full", path=okun.path.resolve())]
    await limit(okun, full=False)
    await later(10 * 60)
    assert okun.app.db.sick is None and not okun.telegram.queue and okun.inbox_rows == []
    assert [text[:10] for text in chat.rows(where="user_id IS NOT NULL")][1:] == [
        f"message {n}:"[:10] for n in range(8)
    ]
    assert owner.replies[-1].text == okun.t("owner.well") and len(owner.replies) == 3
    assert any(reply.text.startswith("Heard: message") for reply in chat.replies)
    await later(HOUR)
    assert len(owner.replies) == 3


async def test_a_disk_that_fills_while_an_answer_is_made_costs_neither_the_answer_nor_a_second_one(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    await chat.say("hello")
    model.held = True
    await chat.say("what now?")
    await fill(okun)
    await later(60)
    model.writing[-1].end("Heard: " + "long " * 700)
    await okun.settle()
    model.held = False
    await later(5 * 60)
    assert okun.app.db.sick == "full" and len(model.asks) <= 3  # a model is not asked for ever
    await limit(okun, full=False)
    await later(5 * 60)
    answers = [reply.text for reply in chat.replies[1:]]
    assert len(answers) == 1 and okun.inbox_rows == [] and okun.app.db.sick is None


async def test_a_command_whose_work_cannot_be_stored_waits_and_is_done_once(
    okun: Okun, group: Room, later: Later
) -> None:
    await group.say("hello")
    asked = okun.wire.hold("getChatMember")
    assert await group.say("/reset", by="Olena") == []  # taken, and not yet at its work
    await okun.app.db._writer.execute("PRAGMA query_only = ON")
    asked.set()
    await later(30 * 60)
    assert okun.app.db.sick == "read-only" and group.replies == [] and len(okun.inbox_rows) == 1
    await okun.app.db._writer.execute("PRAGMA query_only = OFF")
    await later(10 * 60)
    assert [reply.text for reply in group.replies] == [okun.t("reset.done", "uk")]
    assert okun.inbox_rows == [] and okun.app.db.sick is None


async def test_a_database_that_is_locked_for_ten_seconds_is_waited_for(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("hello")
    await okun.app.db._writer.execute("PRAGMA busy_timeout = 0")
    with contextlib.closing(sqlite3.connect(okun.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        chat.put("say", "are you there?")
        taking = asyncio.create_task(okun.inbox.take(okun.telegram.next_updates()))
        await later(10)
        assert not taking.done()
        other.execute("ROLLBACK")
    await later(5)
    await taking
    assert chat.replies[-1].text == "Heard: are you there?" and okun.app.db.sick is None
    assert okun.private("Owner").replies == []


async def test_a_database_that_stays_locked_is_told_once_and_nothing_is_lost(
    okun: Okun, chat: Room, poller: bot.Poller, later: Later
) -> None:
    owner = okun.private("Owner")
    owner.put("say", "hello")
    await later(1)
    await okun.app.db._writer.execute("PRAGMA busy_timeout = 0")
    with contextlib.closing(sqlite3.connect(okun.path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        chat.put("say", "are you there?")
        await later(10 * 60)
        assert okun.app.db.sick == "locked" and len(owner.replies) == 2
        other.execute("ROLLBACK")
    await later(5 * 60)
    assert [reply.text for reply in chat.replies] == ["Heard: are you there?"]
    assert owner.replies[-1].text == okun.t("owner.well") and len(owner.replies) == 3


async def test_updates_of_a_damaged_database_are_neither_parked_nor_confirmed(
    okun: Okun, chat: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(writes: object) -> None:
        raise MALFORMED

    chat.put("say", "one")
    chat.put("say", "two")
    updates = okun.telegram.next_updates()
    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "write", broken)
        with pytest.raises(sqlite3.DatabaseError):
            await okun.feed(*updates)
    assert okun.inbox_rows == [] and okun.inbox.offset is None
    await okun.feed(*updates)
    assert chat.rows(where="user_id IS NOT NULL") == ["one", "two"]


@pytest.mark.failing
async def test_a_read_that_meets_damage_is_noted(okun: Okun, later: Later, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = okun.private("Owner")
    monkeypatch.setattr(bot, "fetch_rows", lambda connection, queries: [MALFORMED] * len(queries))
    with pytest.raises(sqlite3.DatabaseError):
        await okun.app.db.reader.all("SELECT 1")
    await okun.settle()
    assert okun.app.db.sick == "malformed"
    [told] = owner.replies  # though the language they chose cannot be read
    assert TEXTS("uk", "restore.no_backup", folder=Path("backups").absolute()) in told.text


@pytest.mark.parametrize(
    ("error", "word"),
    [(FULL, "full"), (sqlite3.OperationalError("attempt to write a readonly database"), "read-only"),
     (sqlite3.OperationalError("database is locked"), "locked"),
     (sqlite3.OperationalError("disk I/O error"), "failing"),
     (MALFORMED, "malformed"), (sqlite3.DatabaseError("file is not a database"), "malformed"),
     (sqlite3.IntegrityError("CHECK constraint failed: is full"), None),
     (sqlite3.OperationalError("no such table: x"), None), (ValueError("is full"), None), (None, None)],
)  # fmt: skip
def test_what_an_error_says_of_the_disk(error: Exception | None, word: str | None) -> None:
    assert bot.sickness(error) == word


async def test_a_commit_that_changes_nothing_does_not_mean_that_there_is_room(okun: Okun) -> None:
    okun.app.db.note(FULL)
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM meta WHERE name = 'nothing such'")
    assert okun.app.db.unwritable
    async with okun.app.db.tx() as tx:
        await tx.run("INSERT INTO meta (name, value) VALUES ('something', '')")
    assert not okun.app.db.unwritable


async def test_a_bad_row_is_no_sickness(okun: Okun) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await okun.app.db.write({bot.PUT_META: [(None, "x")]})
    assert okun.app.db.sick is None and okun.app.db.failures == 0


# -- the command line


def run(capsys: Capture, *argv: str) -> tuple[int, str, str]:
    code = bot.main(argv)
    told = capsys.readouterr()
    return code, told.out, told.err


def test_backup_prints_where_it_is(home: Path, capsys: Capture) -> None:
    code, out, err = run(capsys, "--backup")
    [made] = bot.backups_in(home / "backups")
    assert (code, err) == (0, "") and str(made.path) in out and "MB" in out and noted(made.path) == "before"


def test_backup_without_a_database_makes_none(home: Path, capsys: Capture) -> None:
    (home / "okun.db").unlink()
    code, out, err = run(capsys, "--backup")
    assert (code, out) == (1, "") and "okun.db" in err and names(home) == []


def test_restore_puts_the_copy_in_place_and_keeps_the_former(home: Path, capsys: Capture) -> None:
    copy = backup_of(home)
    note(home / "okun.db", "after")
    writing = sqlite3.connect(home / "okun.db")  # what a kill leaves beside: a log that was not moved
    writing.execute("PRAGMA journal_mode = WAL")
    writing.execute("UPDATE meta SET value = 'in the log' WHERE name = 'note'")
    writing.commit()
    for ending in ("-wal", "-shm"):
        shutil.copy(f"okun.db{ending}", f"kept{ending}")
    shutil.copy("okun.db", "kept")
    writing.close()
    for ending in ("", "-wal", "-shm"):
        Path(f"kept{ending}").rename(f"okun.db{ending}")
    code, out, err = run(capsys, "--restore", str(copy))
    assert (code, err) == (0, "") and noted(home / "okun.db") == "before"
    [former] = [path for path in home.glob("okun.db.before-restore-*") if path.name[-1].isdigit()]
    assert str(former) in out and noted(former) == "in the log"
    assert stat.S_IMODE((home / "okun.db").stat().st_mode) == 0o600
    assert not list(home.glob("*.restoring*"))


def test_restore_where_there_is_no_database(home: Path, capsys: Capture) -> None:
    copy = backup_of(home)
    (home / "okun.db").unlink()
    code, out, err = run(capsys, "--restore", str(copy))
    assert (code, err) == (0, "") and noted(home / "okun.db") == "before" and "former" not in out


def test_restore_over_a_damaged_database(home: Path, capsys: Capture) -> None:
    copy = backup_of(home)
    (home / "okun.db").write_bytes(b"rubbish")
    code, _, _ = run(capsys, "--restore", str(copy))
    [former] = home.glob("okun.db.before-restore-*")
    assert code == 0 and noted(home / "okun.db") == "before" and former.read_bytes() == b"rubbish"


def too_new(home: Path) -> Path:
    copy = backup_of(home)
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        connection.execute(f"PRAGMA user_version = {bot.SCHEMA_VERSION + 1}")
    return copy


def foreign(home: Path) -> Path:
    with contextlib.closing(sqlite3.connect(home / "other.db")) as connection:
        connection.execute("CREATE TABLE notes (a)")
        connection.execute("PRAGMA user_version = 1")
    return home / "other.db"


def written(home: Path, content: bytes) -> Path:
    (home / "given").write_bytes(content)
    return home / "given"


def spoilt(home: Path) -> Path:
    copy = backup_of(home)
    spoil(copy)
    return copy


def cut(home: Path) -> Path:
    copy = backup_of(home)
    copy.write_bytes(copy.read_bytes()[:50_000])
    return copy


REFUSED: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "nothing there": ("missing", lambda home: home / "nothing.db"),
    "a folder": ("missing", lambda home: home),
    "the database itself": ("itself", lambda home: home / "okun.db"),
    "empty": ("empty", lambda home: written(home, b"")),
    "no database": ("not_sqlite", lambda home: written(home, b"dear diary " * 1000)),
    "damaged": ("damaged", spoilt),
    "truncated": ("damaged", cut),
    "another program's": ("foreign", foreign),
    "too new": ("too_new", too_new),
}


@pytest.mark.parametrize("what", REFUSED)
def test_restore_refuses_a_bad_file_and_changes_nothing(home: Path, capsys: Capture, what: str) -> None:
    key, make = REFUSED[what]
    source = make(home)
    before = {path.name: path.read_bytes() for path in home.glob("*") if path.is_file()}
    code, out, err = run(capsys, "--restore", str(source))
    known = {"version": bot.SCHEMA_VERSION + 1, "known": bot.SCHEMA_VERSION, "reason": ""}
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert err.startswith(TEXTS("en", f"restore.{key}", file=source, **known).split("()")[0].split(" (")[0])
    after = {path.name: path.read_bytes() for path in home.glob("*") if path.is_file()}
    assert after.pop("okun.db-lock") == b"" and after == before


@pytest.mark.parametrize("step", ["is_file", "open"])
def test_restore_says_that_a_file_may_not_be_read(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    copy = backup_of(home)
    real = getattr(Path, step)

    def refuse(path: Path, *args: Any, **how: Any) -> Any:
        if path == copy:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **how)

    monkeypatch.setattr(Path, step, refuse)
    told = TEXTS("en", "restore.unreadable", file=copy, reason="Permission denied")
    assert run(capsys, "--restore", str(copy)) == (1, "", told + "\n")


def test_what_root_backs_up_belongs_to_the_bot(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[Path, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "chown", lambda path, user, group: given.append((path, user)))
    made, owner = backup_of(home), (home / "okun.db").stat().st_uid
    assert given == [(made.parent, owner), (made, owner)]  # a folder of root's would be closed to the bot


def test_restore_refuses_while_a_bot_runs(home: Path, capsys: Capture) -> None:
    copy = backup_of(home)
    with bot.lock_file(str(home / "okun.db")) as lock:
        assert bot.try_lock(lock)
        code, out, err = run(capsys, "--restore", str(copy))
    assert (code, out) == (1, "") and "Stop it first" in err and not list(home.glob("*before-restore*"))


@pytest.mark.parametrize("step", ["VACUUM", "PRAGMA integrity"])
def test_a_restore_that_fails_leaves_the_database(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    copy = backup_of(home)
    note(home / "okun.db", "after")
    with monkeypatch.context() as patch:
        failing(patch, FULL, step)
        code, out, err = run(capsys, "--restore", str(copy))
    assert (code, out) == (1, "") and err and noted(home / "okun.db") == "after"
    assert names(home) == ["backups", "okun.db", "okun.db-lock"]


def test_an_older_copy_is_restored_and_migrated_at_the_next_start(home: Path, capsys: Capture) -> None:
    old = home / "old.db"
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.executescript((Path(__file__).parent / "schemas" / "v2.sql").read_text("utf-8"))
    code, out, _ = run(capsys, "--restore", str(old))
    assert code == 0 and "schema 2" in out
    bot.prepare_database(str(home / "okun.db"), home / "backups")
    with contextlib.closing(sqlite3.connect(home / "okun.db")) as connection:
        assert connection.execute("PRAGMA user_version").fetchone()[0] == bot.SCHEMA_VERSION


# -- the start


def damaged(home: Path) -> bytes:
    spoil(home / "okun.db")
    return (home / "okun.db").read_bytes()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "rubbish": lambda data: b"rubbish " * 5000,
    "the wrong magic": lambda data: b"S" + data[1:][::-1],
    "cut off": lambda data: data[:60_000],
    "cut within a page": lambda data: data[:60_100],
    "pages overwritten": lambda data: data[:9000] + b"\xff" * 21_000 + data[30_000:],
}


@pytest.mark.parametrize("lang", bot.LANGS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_told_with_the_way_back_and_left_as_it_is(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, damage: str, lang: str
) -> None:
    good, bad = backup_of(home), backup_of(home, NOON + DAY)
    spoil(bad)
    rubbish = DAMAGES[damage]((home / "okun.db").read_bytes())
    (home / "okun.db").write_bytes(rubbish)
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    monkeypatch.setenv("LC_ALL", f"{lang}_XX.UTF-8")
    code, out, err = run(capsys)
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert f"cd {home} && " in err and f"bot.py --restore {good}" in err and (home / "okun.db").read_bytes() == rubbish
    assert run(capsys, "--restore", str(good))[0] == 0 and noted(home / "okun.db") == "before"


def test_a_damaged_database_without_a_backup_is_told_so(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "okun.db").write_bytes(b"rubbish" * 100)
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    _, _, err = run(capsys)
    assert TEXTS("en", "restore.no_backup", folder=home / "backups") in err and "--restore" not in err


@pytest.mark.parametrize(
    ("error", "key"),
    [(OSError(28, "No space left on device"), "cli.full"), (OSError(27, "File too large"), "cli.full"),
     (OSError(30, "Read-only file system"), "cli.read_only"),
     (PermissionError(13, "Permission denied"), "cli.read_only"),
     (FULL, "cli.full"), (sqlite3.OperationalError("attempt to write a readonly database"), "cli.read_only")],
)  # fmt: skip
@pytest.mark.parametrize("lang", bot.LANGS)
def test_a_disk_that_takes_nothing_is_one_line(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: Exception, key: str, lang: str
) -> None:
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    monkeypatch.setenv("LC_ALL", f"{lang}_XX.UTF-8")

    def refuse(path: Path) -> None:
        raise error

    before = (home / "okun.db").read_bytes()
    monkeypatch.setattr(bot, "try_writing", refuse)
    assert run(capsys) == (1, "", TEXTS(lang, key, path=home / "okun.db") + "\n")
    assert (home / "okun.db").read_bytes() == before


@pytest.mark.parametrize("version", [0, 1, 3, 99])
def test_another_programs_database_is_told_and_left_as_it_is(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    with contextlib.closing(sqlite3.connect(foreign(home))) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    before = (home / "other.db").read_bytes()
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    monkeypatch.setenv("DB_PATH", "other.db")
    assert run(capsys, "--check") == (1, "", TEXTS("en", "cli.foreign", path=home / "other.db") + "\n")
    assert (home / "other.db").read_bytes() == before


def test_a_folder_is_made_where_it_alone_is_missing(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bot.try_writing(home / "data" / "okun.db")
    assert (home / "data").is_dir()
    monkeypatch.setenv("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH")
    monkeypatch.setenv("DB_PATH", "mnt/disk/okun.db")
    assert run(capsys) == (1, "", TEXTS("en", "cli.no_folder", path=home / "mnt" / "disk") + "\n")
    assert not (home / "mnt").exists()


def test_a_log_that_cannot_be_written_is_one_line(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(home)
    for name, value in (
        ("TELEGRAM_BOT_TOKEN", "123456:ABCDEFGH"),
        ("LOG_FILE", "no/such/okun.log"),
        ("LC_ALL", "uk_UA"),
    ):
        monkeypatch.setenv(name, value)
    code, out, err = run(capsys)
    assert (code, out) == (1, "") and err == TEXTS(
        "uk", "cli.log_file", path="no/such/okun.log", error="No such file or directory"
    ) + "\n"


# -- the hourly cleanup


@pytest.mark.failing
async def test_a_fault_in_one_step_of_the_cleanup_stops_no_other(
    okun: Okun, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    done: list[str] = []

    def step(name: str) -> Callable[[bot.App], Any]:
        async def work(app: bot.App) -> None:
            done.append(name)
            raise (ZeroDivisionError, sqlite3.OperationalError("disk I/O error"), bot.BotError("x"))[len(done) % 3]

        return work

    monkeypatch.setattr(bot, "CLEANUPS", {name: step(name) for name in bot.CLEANUPS})
    await bot.clean(okun.app)
    assert done == list(bot.CLEANUPS) and caplog.text.count("cleanup failed") == len(done)


async def test_the_cleanup_bounds_the_write_ahead_log(okun: Okun) -> None:
    log = Path(f"{okun.path}-wal")
    with contextlib.closing(sqlite3.connect(okun.path, isolation_level=None)) as reading:
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM meta").fetchall()  # as a backup does: the log cannot be begun anew
        for number in range(30):
            await okun.app.db.write({bot.PUT_META: [(f"big {number}", "x" * 1_000_000)]})
        assert log.stat().st_size > 20_000_000
    await bot.clean(okun.app)
    await okun.app.db.write({bot.PUT_META: [("small", "x")]})
    assert log.stat().st_size <= 16_777_216


async def test_what_a_killed_export_left_is_removed_after_a_day(
    okun: Okun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name, age in (("okun-export-old", 0), ("okun-export-new", None), ("other", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "okun-1.json").write_text("words")
        if age is not None:
            os.utime(tmp_path / name, (age, age))
    await bot.clean(okun.app)
    assert {"okun-export-new", "other"} <= set(names(tmp_path)) and not (tmp_path / "okun-export-old").exists()


@pytest.mark.failing
async def test_a_loop_that_fails_begins_again(okun: Okun, later: Later, caplog: pytest.LogCaptureFixture) -> None:
    lives: list[float] = []

    async def body(app: bot.App) -> None:
        lives.append(app.clock.now())
        if len(lives) < 3:
            raise sqlite3.OperationalError("disk I/O error")

    okun.app.spawn(bot.kept_up(okun.app, "body", body), "body")
    await later(HOUR)
    assert [at - NOON for at in lives] == [0, 60, 120] and caplog.text.count("loop failed: body") == 2


# -- a group that becomes a supergroup


@pytest.mark.parametrize("verdict", ["banned", "allowed"])
async def test_what_was_decided_of_a_group_holds_for_its_supergroup(okun: Okun, group: Room, verdict: str) -> None:
    await bot.set_access(okun.app, group.id, verdict)
    await bot.chat_migrated(okun.app, group.id, -1_000_777)
    assert okun.app.access == {-1_000_777: verdict}
    assert okun.rows("SELECT id, verdict FROM access") == [(-1_000_777, verdict)]


async def test_what_was_decided_later_of_the_supergroup_stays(okun: Okun, group: Room, later: Later) -> None:
    await bot.set_access(okun.app, group.id, "banned")
    await later(60)
    await bot.set_access(okun.app, -1_000_777, "allowed")
    await bot.chat_migrated(okun.app, group.id, -1_000_777)
    assert okun.app.access == {-1_000_777: "allowed"}
    assert okun.rows("SELECT id, verdict FROM access") == [(-1_000_777, "allowed")]


async def test_a_group_that_is_listed_is_served_as_a_supergroup(okun: Okun, group: Room) -> None:
    await okun.restart(allowed_chats=frozenset({group.id}))
    await bot.chat_migrated(okun.app, group.id, -1_000_777)
    assert bot.allowed(okun.app, -1_000_777, 5) and okun.rows("SELECT id FROM access") == [(-1_000_777,)]
    assert OWNER in okun.settings.admin_ids
