"""One writer that shares its transactions, one reader that cannot write, and a file that is never lost."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import stat
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from fakes import until

import bot

SCHEMAS = Path(__file__).parent / "schemas"
PARENT = bot.Hot(10, "INSERT INTO parent (id, name) VALUES (?, ?)")
CHILD = bot.Hot(20, "INSERT INTO child (id, parent_id) VALUES (?, ?)")
TABLES = """
CREATE TABLE parent (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE child (id INTEGER PRIMARY KEY, parent_id INTEGER NOT NULL REFERENCES parent (id)) STRICT;
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A database file with a parent and a child table."""
    file = str(tmp_path / "test.db")
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(TABLES)
    return file


@pytest.fixture
async def db(path: str) -> AsyncIterator[bot.Db]:
    opened = bot.Db(path)
    await opened.open()
    await opened._writer.execute("PRAGMA busy_timeout = 0")  # tests hold the lock; nobody waits in a thread
    yield opened
    await opened.close()


@pytest.fixture
def other(path: str) -> Iterator[sqlite3.Connection]:
    """Another program's connection, which sees only what is committed and may hold the lock."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


def count(connection: sqlite3.Connection, table: str = "parent") -> int:
    found: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    return found


async def turns(count: int = 5) -> None:
    """Let everything that is ready go on."""
    for _ in range(count):
        await asyncio.sleep(0)


async def traced(db: bot.Db) -> list[str]:
    """What the writing connection executes from now on, its transactions to be counted."""
    seen: list[str] = []
    await db._writer.set_trace_callback(seen.append)
    return seen


# -- shared transactions


async def test_several_writers_share_one_transaction(db: bot.Db, other: sqlite3.Connection) -> None:
    seen = await traced(db)
    await asyncio.gather(*(db.write({PARENT: [(n, f"name {n}")]}) for n in range(50)))
    assert count(other) == 50
    assert sum(sql.startswith("BEGIN") for sql in seen) == 1
    assert sum(sql.startswith("COMMIT") for sql in seen) == 1


async def test_what_comes_during_a_commit_shares_the_next_one(db: bot.Db, other: sqlite3.Connection) -> None:
    seen = await traced(db)
    first = asyncio.create_task(db.write({PARENT: [(1, "first")]}))
    await until(lambda: seen)
    await asyncio.gather(*(db.write({PARENT: [(n, "later")]}) for n in range(2, 20)), first)
    assert count(other) == 19
    assert sum(sql.startswith("BEGIN") for sql in seen) == 2


async def test_a_write_has_returned_only_when_it_is_committed(db: bot.Db, other: sqlite3.Connection) -> None:
    for n in range(5):
        await db.write({PARENT: [(n, "x")]})
        assert count(other) == n + 1


async def test_one_bad_row_takes_no_other_with_it(db: bot.Db, other: sqlite3.Connection) -> None:
    rows: list[Any] = ["good", None, "good", "good", None]
    ends = await asyncio.gather(
        *(db.write({PARENT: [(n, name)]}) for n, name in enumerate(rows)), return_exceptions=True
    )
    assert [isinstance(end, sqlite3.IntegrityError) for end in ends] == [name is None for name in rows]
    assert count(other) == 3
    assert not db._writer.in_transaction


async def test_a_row_that_cannot_be_bound_takes_no_other_with_it(db: bot.Db, other: sqlite3.Connection) -> None:
    ends = await asyncio.gather(
        db.write({PARENT: [(2**70, "too large")]}),
        db.write({PARENT: [(1, object())]}),
        db.write({PARENT: [(2, "good")]}),
        return_exceptions=True,
    )
    assert [type(end) for end in ends] == [OverflowError, sqlite3.ProgrammingError, type(None)]
    assert count(other) == 1


async def test_rows_of_one_writer_stand_or_fall_together(db: bot.Db, other: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await db.write({PARENT: [(1, "good"), (2, None)], CHILD: [(1, 1)]})
    assert (count(other), count(other, "child")) == (0, 0)


async def test_parents_go_before_their_children(db: bot.Db, other: sqlite3.Connection) -> None:
    await asyncio.gather(
        db.write({CHILD: [(1, 1)], PARENT: [(1, "own")]}), db.write({CHILD: [(2, 2)]}), db.write({PARENT: [(2, "x")]})
    )
    assert (count(other), count(other, "child")) == (2, 2)


async def test_foreign_keys_hold(db: bot.Db) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await db.write({CHILD: [(1, 99)]})


async def test_a_writer_that_is_cancelled_takes_no_other_with_it(db: bot.Db, other: sqlite3.Connection) -> None:
    tasks = [asyncio.create_task(db.write({PARENT: [(n, "x")]})) for n in range(3)]
    await turns(1)
    tasks[0].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {1, 2} <= {row[0] for row in other.execute("SELECT id FROM parent")}
    await db.write({PARENT: [(9, "still at work")]})


async def test_what_waits_is_written_before_the_database_closes(path: str) -> None:
    db = bot.Db(path)
    await db.open()
    task = asyncio.create_task(db.write({PARENT: [(1, "x")]}))
    await turns()
    await db.close()
    await task
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert count(connection) == 1


# -- the reader


@pytest.mark.parametrize(
    "sql", ["INSERT INTO parent VALUES (1, 'x')", "DELETE FROM parent", "CREATE TABLE t (a)", "DROP TABLE child"]
)
async def test_the_reader_cannot_write(db: bot.Db, sql: str) -> None:
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        await db.reader.all(sql)


async def test_rows_are_read_by_name_and_by_place(db: bot.Db) -> None:
    await db.write({PARENT: [(1, "Anna"), (2, "Borys")]})
    rows = await db.reader.all("SELECT id, name FROM parent ORDER BY id")
    assert [(row["id"], row[1]) for row in rows] == [(1, "Anna"), (2, "Borys")]
    assert await db.reader.one("SELECT 1 FROM parent WHERE id = ?", 3) is None


async def test_the_reader_sees_each_commit(db: bot.Db) -> None:
    for n in range(3):
        await db.write({PARENT: [(n, "x")]})
        assert len(await db.reader.all("SELECT id FROM parent")) == n + 1


async def test_readers_at_one_moment_each_get_their_own_rows(db: bot.Db) -> None:
    await db.write({PARENT: [(n, f"name {n}") for n in range(30)]})
    rows = await asyncio.gather(*(db.reader.one("SELECT name FROM parent WHERE id = ?", n) for n in range(30)))
    assert [row and row["name"] for row in rows] == [f"name {n}" for n in range(30)]


async def test_a_bad_query_does_not_spoil_its_neighbours(db: bot.Db) -> None:
    async with asyncio.timeout(10):
        bad, good = await asyncio.gather(
            db.reader.all("SELECT nothing FROM nowhere"), db.reader.all("SELECT 7"), return_exceptions=True
        )
    assert isinstance(bad, sqlite3.OperationalError)
    assert not isinstance(good, BaseException) and good[0][0] == 7


async def test_a_query_that_cannot_be_bound_does_not_spoil_its_neighbours(db: bot.Db) -> None:
    async with asyncio.timeout(10):
        bad, good = await asyncio.gather(
            db.reader.all("SELECT ?", 2**70), db.reader.all("SELECT 7"), return_exceptions=True
        )
    assert isinstance(bad, OverflowError)
    assert not isinstance(good, BaseException) and good[0][0] == 7


@pytest.mark.parametrize("cancelled", [[0], [1], [0, 1], [0, 1, 2]])
async def test_a_cancelled_reader_does_not_leave_the_others_waiting(db: bot.Db, cancelled: list[int]) -> None:
    tasks = [asyncio.create_task(db.reader.all("SELECT ?", n)) for n in range(5)]
    await turns(1)
    for n in cancelled:
        tasks[n].cancel()
    left = [n for n in range(5) if n not in cancelled]
    async with asyncio.timeout(5):
        rows = await asyncio.gather(*(tasks[n] for n in left))
    assert [each[0][0] for each in rows] == left


async def test_reads_are_counted_for_the_update_at_work(db: bot.Db) -> None:
    cost = bot.Tally()
    bot.tally.set(cost)
    await db.reader.all("SELECT 1")
    async with db.tx() as tx:
        await tx.one("SELECT 1")
    assert cost.reads == 2 and cost.read_ms > 0


async def test_a_slow_query_warns(
    db: bot.Db, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bot, "SLOW_QUERY_S", -1.0)
    await db.reader.all("SELECT  1,\n  2")
    [line] = [record for record in caplog.records if record.name == "okun"]
    assert (line.message, line.__dict__["operation"]) == ("slow query", "SELECT 1, 2")


# -- transactions of one's own


async def test_a_transaction_commits(db: bot.Db, other: sqlite3.Connection) -> None:
    async with db.tx() as tx:
        assert await tx.run("INSERT INTO parent VALUES (1, 'x'), (2, 'y')") == 2
        assert len(await tx.all("SELECT * FROM parent")) == 2
        assert count(other) == 0
    assert count(other) == 2


async def test_a_transaction_returns_what_it_inserted(db: bot.Db) -> None:
    async with db.tx() as tx:
        row = await tx.one("INSERT INTO parent (name) VALUES (?) RETURNING id", "x")
    assert row and row["id"] == 1


async def test_a_transaction_that_fails_leaves_nothing(db: bot.Db, other: sqlite3.Connection) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.tx() as tx:
            await tx.run("INSERT INTO parent VALUES (1, 'x')")
            raise ZeroDivisionError
    assert count(other) == 0 and not db._writer.in_transaction
    await db.write({PARENT: [(1, "x")]})


async def test_a_statement_that_fails_takes_its_transaction_with_it(db: bot.Db, other: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        async with db.tx() as tx:
            await tx.run("INSERT INTO parent VALUES (1, 'x')")
            await tx.run("INSERT INTO parent VALUES (2, NULL)")
    assert count(other) == 0 and not db._writer.in_transaction


async def usable(db: bot.Db, other: sqlite3.Connection) -> None:
    """No transaction was left open, and the next writers get on."""
    assert not db._writer.in_transaction
    before = count(other)
    async with asyncio.timeout(10), db.tx() as tx:
        await tx.run("INSERT INTO parent (name) VALUES ('next')")
    await db.write({bot.Hot(1, "INSERT INTO parent (name) VALUES (?)"): [("and the next",)]})
    assert count(other) == before + 2


async def insert(db: bot.Db, began: asyncio.Event | None = None, go_on: asyncio.Event | None = None) -> None:
    async with db.tx() as tx:
        await tx.run("INSERT INTO parent VALUES (100, 'x')")
        if began and go_on:
            began.set()
            await go_on.wait()


async def cancel(task: asyncio.Task[Any], times: int = 1) -> None:
    for _ in range(times):
        task.cancel()
        await turns()


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_transaction_cancelled_in_begin_leaves_nothing_open(
    db: bot.Db, other: sqlite3.Connection, times: int
) -> None:
    await db._writer.execute("PRAGMA busy_timeout = 20000")
    other.execute("BEGIN IMMEDIATE")
    seen = await traced(db)
    task = asyncio.create_task(insert(db))
    await until(lambda: seen)  # the thread waits in BEGIN
    await cancel(task, times)
    other.execute("ROLLBACK")
    with pytest.raises(asyncio.CancelledError):
        await task
    await db._writer.execute("SELECT 1")  # whatever the thread was told before is done
    await usable(db, other)


async def test_a_transaction_cancelled_in_its_body_is_undone(db: bot.Db, other: sqlite3.Connection) -> None:
    began = asyncio.Event()
    task = asyncio.create_task(insert(db, began, asyncio.Event()))
    await began.wait()
    await cancel(task, 2)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert count(other) == 0
    await usable(db, other)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_transaction_cancelled_in_commit_is_committed(
    db: bot.Db, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    execute, committing, go_on = db._writer.execute, asyncio.Event(), asyncio.Event()

    async def slowly(sql: str, *args: Any) -> Any:
        if sql == "COMMIT":
            committing.set()
            await go_on.wait()
        return await execute(sql, *args)

    monkeypatch.setattr(db._writer, "execute", slowly)
    task = asyncio.create_task(insert(db))
    await committing.wait()
    await cancel(task, times)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert count(other) == 1
    await usable(db, other)


async def test_a_transaction_cancelled_while_it_waits_for_its_turn_does_nothing(
    db: bot.Db, other: sqlite3.Connection
) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(insert(db, began, go_on))
    await began.wait()
    second = asyncio.create_task(insert(db))
    await cancel(second)
    assert second.cancelled()
    go_on.set()
    await first
    assert count(other) == 1
    await usable(db, other)


async def test_a_transaction_never_sees_half_of_a_write(db: bot.Db) -> None:
    found: list[int] = []

    async def look() -> None:
        for _ in range(20):
            async with db.tx() as tx:
                for _ in range(2):
                    row = await tx.one("SELECT (SELECT count(*) FROM parent) - (SELECT count(*) FROM child)")
                    found.append(row[0] if row else -1)

    async def write(start: int) -> None:
        for n in range(start, start + 20):
            await db.write({PARENT: [(n, "x")], CHILD: [(n, n)]})

    await asyncio.gather(look(), write(0), write(100), look())
    assert found == [0] * 80


async def test_writers_wait_for_a_transaction(db: bot.Db, other: sqlite3.Connection) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()
    first = asyncio.create_task(insert(db, began, go_on))
    await began.wait()
    writer = asyncio.create_task(db.write({PARENT: [(1, "x")]}))
    await turns()
    assert not writer.done()
    go_on.set()
    await asyncio.gather(first, writer)
    assert count(other) == 2


# -- a busy database


async def held(other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch, tries: int) -> list[float]:
    """Hold the lock until somebody has slept that often; the pauses."""
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == tries:
            other.execute("ROLLBACK")
        await sleep(0)

    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(asyncio, "sleep", pause)
    return pauses


async def test_a_write_to_a_busy_database_is_tried_again(
    db: bot.Db, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = await held(other, monkeypatch, 7)
    await db.write({PARENT: [(1, "x")]})
    assert count(other) == 1
    assert len(pauses) == 7 and pauses[5] > pauses[0] and max(pauses) <= 3


async def test_a_transaction_on_a_busy_database_is_tried_again(
    db: bot.Db, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = await held(other, monkeypatch, 7)
    async with db.tx() as tx:
        await tx.run("INSERT INTO parent VALUES (1, 'x')")
    assert count(other) == 1 and len(pauses) == 7


async def test_a_database_that_stays_busy_fails_every_writer_at_once(
    db: bot.Db, other: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = 0
    commit = bot.commit_rows

    def counted(*args: Any) -> None:
        nonlocal tries
        tries += 1
        commit(*args)

    monkeypatch.setattr(bot, "BUSY_LIMIT_S", -1.0)
    monkeypatch.setattr(bot, "commit_rows", counted)
    other.execute("BEGIN IMMEDIATE")
    ends = await asyncio.gather(*(db.write({PARENT: [(n, "x")]}) for n in range(5)), return_exceptions=True)
    assert [type(end) for end in ends] == [sqlite3.OperationalError] * 5
    assert tries == 1  # else each of them would wait half a minute alone, and everybody after it
    other.execute("ROLLBACK")
    await usable(db, other)


# -- the file


def tables(file: Path | str) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").fetchall()
    return dict(rows)


def version(file: Path | str) -> int:
    with contextlib.closing(sqlite3.connect(file)) as connection:
        found: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return found


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "data" / "okun.db"


def prepare(file: Path) -> None:
    bot.prepare_database(str(file), file.parent / "backups")


def copies(file: Path) -> list[Path]:
    return sorted((file.parent / "backups").glob("*.db"))


def test_a_new_file_is_for_its_owner_alone(file: Path) -> None:
    prepare(file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_new_file_gets_the_schema(file: Path) -> None:
    prepare(file)
    assert version(file) == bot.SCHEMA_VERSION
    assert {"meta", "users", "chats", "messages", "inbox"} <= tables(file).keys()
    assert copies(file) == []


def test_a_file_that_is_up_to_date_is_left_alone(file: Path) -> None:
    prepare(file)
    before = file.read_bytes()
    prepare(file)
    assert file.read_bytes() == before and copies(file) == []


async def test_each_connection_is_set_up(db: bot.Db) -> None:
    pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout", "temp_store", "query_only")
    caches = 0
    await db._writer.execute("PRAGMA busy_timeout = 5000")  # the fixture had changed it
    for connection in (db._writer, db.reader._connection):
        found = {}
        for name in pragmas:
            [row] = await connection.execute_fetchall(f"PRAGMA {name}")
            found[name] = row[0]
        assert tuple(found.values()) == ("wal", 1, 1, 5000, 2, int(connection is not db._writer))
        [row] = await connection.execute_fetchall("PRAGMA cache_size")
        caches += row[0]
    assert caches == -8000  # KiB, both together


def test_a_half_made_file_is_not_left_behind(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "schema.sql").write_text("CREATE TABLE a (b) STRICT;")  # a type is missing
    monkeypatch.setattr(bot, "HERE", tmp_path)
    with pytest.raises(sqlite3.OperationalError):
        prepare(file)
    assert (tables(file), version(file)) == ({}, 0)


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """An Okun two versions later than the file."""
    now = bot.SCHEMA_VERSION
    steps = {
        now: "CREATE TABLE one (a INTEGER) STRICT; INSERT INTO one VALUES (41)",
        now + 1: "UPDATE one SET a = a + 1; CREATE TABLE two (b TEXT) STRICT;",
    }
    monkeypatch.setattr(bot, "MIGRATIONS", steps)
    return steps


def test_a_newer_file_is_refused_and_not_touched(file: Path) -> None:
    prepare(file)
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute(f"PRAGMA user_version = {bot.SCHEMA_VERSION + 1}")
    before = file.read_bytes()
    with pytest.raises(bot.DatabaseTooNew, match=str(bot.SCHEMA_VERSION + 1)):
        prepare(file)
    assert file.read_bytes() == before


def test_an_old_file_is_migrated_step_by_step_after_a_copy_each(
    file: Path, newer: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(file)
    first = bot.SCHEMA_VERSION
    monkeypatch.setattr(bot, "SCHEMA_VERSION", first + 2)
    prepare(file)
    assert version(file) == first + 2 and {"one", "two"} <= tables(file).keys()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT a FROM one").fetchall() == [(42,)]
    assert sorted(version(copy) for copy in copies(file)) == [first, first + 1]


def test_a_failing_migration_leaves_the_old_file(
    file: Path, newer: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(file)
    before = tables(file)
    first = bot.SCHEMA_VERSION
    newer[first] += "; INSERT INTO nowhere VALUES (1)"
    monkeypatch.setattr(bot, "SCHEMA_VERSION", first + 2)
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        prepare(file)
    assert (tables(file), version(file)) == (before, first)
    [copy] = copies(file)
    assert (tables(copy), version(copy)) == (before, first)


def test_nothing_is_migrated_without_a_sound_copy(
    file: Path, newer: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(file)
    before = tables(file)
    (file.parent / "backups").write_text("a file where the folder should be")
    monkeypatch.setattr(bot, "SCHEMA_VERSION", bot.SCHEMA_VERSION + 2)
    with pytest.raises(OSError, match="backups"):
        prepare(file)
    assert tables(file) == before


def cut_off(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-4096] + b"\xff" * 4096)


def unsound(copy: Path) -> None:
    """Readable, but its rows are not what the schema says."""
    with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET sql = replace(sql, 'TEXT', 'REAL') WHERE name = 'parent'")


@pytest.mark.parametrize("damage", [cut_off, unsound])
def test_a_damaged_copy_is_an_error(tmp_path: Path, path: str, damage: Callable[[Path], None]) -> None:
    class Damaging(sqlite3.Connection):
        def execute(self, sql: str, args: Any = ()) -> sqlite3.Cursor:
            cursor = super().execute(sql, args)
            if sql.startswith("VACUUM INTO"):
                damage(Path(args[0]))
            return cursor

    with contextlib.closing(sqlite3.connect(path, factory=Damaging, isolation_level=None)) as connection:
        connection.executemany("INSERT INTO parent (name) VALUES (?)", [("x" * 500,)] * 100)
        with pytest.raises(sqlite3.DatabaseError):
            bot.copy_database(connection, tmp_path / "copy.db")


def test_a_copy_holds_everything(tmp_path: Path, path: str, other: sqlite3.Connection) -> None:
    other.executemany("INSERT INTO parent (name) VALUES (?)", [("x",)] * 100)
    bot.copy_database(other, tmp_path / "deep" / "copy.db")
    with contextlib.closing(sqlite3.connect(tmp_path / "deep" / "copy.db")) as copy:
        assert count(copy) == 100


@pytest.mark.parametrize("rubbish", [b"this is no database, " * 300, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_file_is_told_and_left_alone(file: Path, rubbish: bytes) -> None:
    file.parent.mkdir()
    file.write_bytes(rubbish)
    with pytest.raises(sqlite3.DatabaseError):
        prepare(file)
    assert file.read_bytes() == rubbish


@pytest.mark.parametrize("schema", sorted(SCHEMAS.glob("v*.sql")), ids=lambda schema: str(schema.stem))
def test_each_older_schema_is_migrated_to_the_newest(file: Path, schema: Path) -> None:
    file.parent.mkdir()
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.executescript(schema.read_text("utf-8"))
    assert version(file) == int(schema.stem[1:])
    prepare(file)
    fresh = file.with_name("fresh.db")
    bot.prepare_database(str(fresh), file.parent)
    assert version(file) == bot.SCHEMA_VERSION
    assert columns(file) == columns(fresh)


def columns(file: Path) -> dict[str, Any]:
    """Tables with their columns, and indexes; comments and the order of ALTER TABLE aside."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        names = connection.execute("SELECT type, name, tbl_name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'")
        return {
            name: (kind, table, sorted(row[1:4] for row in connection.execute(f"PRAGMA table_xinfo({name})")))
            for kind, name, table in names.fetchall()
        }


def test_every_version_has_its_schema_here_and_a_way_to_the_next() -> None:
    kept = {int(schema.stem[1:]) for schema in SCHEMAS.glob("v*.sql")}
    assert kept == set(range(1, bot.SCHEMA_VERSION + 1))
    assert set(bot.MIGRATIONS) == set(range(1, bot.SCHEMA_VERSION))


async def test_where_the_second_connection_fails_the_first_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = bot.connect

    async def refuse(path: str, *, query_only: bool = False) -> aiosqlite.Connection:
        if query_only:
            raise sqlite3.OperationalError("unable to open database file")
        return await connect(path)

    monkeypatch.setattr(bot, "connect", refuse)
    before = {*threading.enumerate()}
    with pytest.raises(sqlite3.OperationalError):
        await bot.Db(str(tmp_path / "okun.db")).open()
    left = {*threading.enumerate()} - before
    for thread in left:  # a moment after it was told to end
        thread.join(10)
    # one that is left keeps the process from ending, SIGTERM or not
    assert not [thread for thread in left if thread.is_alive()]
