"""The bot as a process on a disk that is full or takes nothing, with a damaged database; backups and the way back."""

from __future__ import annotations

import asyncio
import re
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fakes import BOT, BotProcess, until

from .conftest import PATIENCE, TEXTS, Person, Stage

OWNER = "1"  # the first person of a stage


def spoil(file: Path) -> bytes:
    data = bytearray(file.read_bytes())
    data[9000:30_000] = b"\xff" * 21_000
    file.write_bytes(data)
    return bytes(data)


def lines(bot: BotProcess) -> list[str]:
    """What the process said last."""
    return bot.log().strip().splitlines()


async def fails(bot: BotProcess, *args: str) -> str:
    """Run until it ends with 1; the one line it said."""
    before = len(lines(bot))
    assert await bot.run(*args) == 1
    [line] = lines(bot)[before:]
    assert "Traceback" not in line
    return line


async def talked(stage: Stage, bot: BotProcess, anna: Person, text: str) -> None:
    """Say something and wait until it is answered and dealt with."""
    before = len(stage.replies(anna))
    stage.says(anna, text)
    await stage.replied(anna, before + 1)
    await stage.settled(bot)


def backups(stage: Stage) -> list[Path]:
    return sorted((stage.directory / "backups").glob("okun-*.db"))


# -- backups


async def test_a_backup_while_it_runs_and_the_way_back(stage: Stage) -> None:
    okun, tool = stage.bot(), stage.bot()
    anna = stage.person()
    await okun.start()
    await talked(stage, okun, anna, "before the backup k1z")
    assert await tool.run("--backup") == 0
    [made] = backups(stage)
    await talked(stage, okun, anna, "after the backup k2z")
    assert "Okun is running" in await fails(tool, "--restore", str(made))
    assert await okun.stop(signal.SIGKILL) != 0  # its log is left beside
    assert await tool.run("--restore", str(made)) == 0
    told = okun.rows("SELECT text FROM messages WHERE user_id IS NOT NULL")
    assert told == [("before the backup k1z",)]
    [former] = [path for path in stage.directory.glob("okun.db.before-restore-*") if path.name[-1].isdigit()]
    with closing(sqlite3.connect(former)) as kept:
        assert kept.execute("SELECT count(*) FROM messages WHERE text LIKE 'after%'").fetchone() == (1,)
    await okun.start()
    await talked(stage, okun, anna, "and on it goes k3z")
    assert await okun.stop() == 0


async def test_a_killed_backup_leaves_the_older_ones_and_the_next_one_cleans_up(stage: Stage) -> None:
    okun, tool = stage.bot(), stage.bot()
    await okun.start()
    assert await okun.stop() == 0
    with closing(sqlite3.connect(okun.database)) as big, big:
        big.executemany("INSERT INTO meta (name, value) VALUES (?, ?)", [(f"n{n}", "x" * 2000) for n in range(15_000)])
    assert await tool.run("--backup") == 0
    [older] = backups(stage)
    await tool.launch("--backup")
    await until(lambda: list((stage.directory / "backups").glob("*.part")), PATIENCE)
    await tool.kill()
    assert backups(stage) == [older]
    await asyncio.sleep(1.1)  # names have seconds
    assert await tool.run("--backup") == 0
    assert len(backups(stage)) == 2 and not list((stage.directory / "backups").glob("*.part"))


# -- the start


async def test_a_damaged_database_is_told_and_can_be_restored(stage: Stage) -> None:
    okun = stage.bot()
    anna = stage.person()
    await okun.start()
    await talked(stage, okun, anna, "remember the perch k1z")
    assert await stage.bot().run("--backup") == 0
    assert await okun.stop() == 0
    rubbish = spoil(okun.database)
    line = await fails(okun)
    assert okun.database.read_bytes() == rubbish
    found = re.search(r"cd /.*", line)  # can be pasted anywhere, whether or not there is a `python` in the PATH
    assert found
    bare = {**okun.env, "PATH": "/usr/bin:/bin", "DB_PATH": "okun.db"}
    pasted = await asyncio.create_subprocess_shell(found[0], cwd="/", env=bare)
    assert await pasted.wait() == 0
    await okun.start()
    await talked(stage, okun, anna, "there you are k2z")
    assert await okun.stop() == 0


@pytest.mark.parametrize("content", [b"dear diary " * 900, b"SQLite format 3\0" + b"\xff" * 9000])
async def test_a_file_that_is_no_database_is_left_alone(stage: Stage, content: bytes) -> None:
    okun = stage.bot()
    okun.database.write_bytes(content)
    assert "damaged" in await fails(okun)
    assert okun.database.read_bytes() == content


@pytest.mark.parametrize("beside", ["-wal", "-lock"])
async def test_what_cannot_be_put_beside_the_database_is_one_line(stage: Stage, beside: str) -> None:
    okun = stage.bot(LOG_LEVEL="INFO")
    Path(f"{okun.database}{beside}").mkdir()  # root may write anywhere, but no file where a folder is
    assert str(okun.database) in await fails(okun)


async def test_a_folder_that_is_missing_is_one_line(stage: Stage) -> None:
    okun = stage.bot(DB_PATH=str(stage.directory / "no" / "such" / "okun.db"))
    assert str(stage.directory / "no" / "such") in await fails(okun)


async def test_a_full_disk_at_the_start_is_one_line(stage: Stage) -> None:
    okun = stage.bot(LOG_FILE=None)
    okun.command = limited(8)
    assert "no room" in await fails(okun)


# -- a disk that fills


def limited(blocks: int) -> tuple[str, ...]:
    """The command of a bot whose files may have so many KB."""
    return "bash", "-c", f'ulimit -f {blocks}; exec "$0" "$@"', sys.executable, str(BOT)


async def test_a_disk_that_fills_loses_no_message(stage: Stage) -> None:
    owner, anna = stage.person("Owner"), stage.person()
    okun = stage.bot(ADMIN_IDS=OWNER, LOG_LEVEL="WARNING")
    await okun.start()
    await talked(stage, okun, owner, "hello k1z")
    await talked(stage, okun, anna, "hello k2z")
    assert await okun.stop() == 0
    size = okun.database.stat().st_size // 1024
    tight = stage.bot(ADMIN_IDS=OWNER, LOG_LEVEL="WARNING")
    tight.command = limited(size + 40)
    tight.log_file = stage.directory / "tight.log"  # the log may not grow, either
    await tight.start()
    for number in range(10, 22):
        stage.says(anna, f"k{number}z " + "озеро " * 600)
    sick = TEXTS["owner"]["sick"]
    starts = tuple(sick[word].split("{")[0][:20] for word in ("full", "failing"))
    await stage.telegram.until(lambda: any(text.startswith(starts) for text in stage.replies(owner)), PATIENCE)
    assert tight.process and tight.process.returncode is None  # it lives on
    told = [text for text in stage.replies(owner) if text.startswith(starts)]
    await tight.stop(signal.SIGKILL)
    await okun.start()
    await stage.settled(okun)
    kept = okun.rows("SELECT text FROM messages WHERE user_id IS NOT NULL")
    marks = {text.split()[0] for (text,) in kept}
    assert {f"k{number}z" for number in range(10, 22)} <= marks and len(told) == 1
    assert await okun.stop() == 0


async def test_a_damaged_table_is_no_crash_loop(stage: Stage) -> None:
    """Damage that is met while it runs: it lives on, and the owner hears once how to get back."""
    owner, anna = stage.person("Owner"), stage.person()
    okun = stage.bot(ADMIN_IDS=OWNER, BACKUP_HOURS=None)
    await okun.start()
    await talked(stage, okun, owner, "hello k1z")
    assert await stage.bot().run("--backup") == 0
    [made] = backups(stage)
    [(root,)] = okun.rows("SELECT rootpage FROM sqlite_master WHERE name = 'reminders__due'")
    [(size,)] = okun.rows("PRAGMA page_size")
    with okun.database.open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * size)
    stage.says(anna, "hi k2z")
    await stage.telegram.until(lambda: sum("--restore" in text for text in stage.replies(owner)) == 1, PATIENCE)
    assert str(made) in next(text for text in stage.replies(owner) if "--restore" in text)
    await stage.replied(anna, 1)
    assert okun.process and okun.process.returncode is None
