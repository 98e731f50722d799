"""Two weeks of life, with the clock on the wall and the monotonic one both moved by the test: what is due happens when
it is due, what is old goes, and neither the file nor the memory grows without end."""

from __future__ import annotations

import gc
import itertools
import sqlite3
from pathlib import Path

import pytest
from conftest import NOON, Later, Okun, Room, settings

import bot

HOUR, DAY = 3600, 86_400
DAYS, RETENTION = 14, 3


def open_caches(app: bot.App) -> int:
    """What is held in memory, counted."""
    caches = sum(len(cache) for cache in (*app.caches.values(), *app.searches.values()))
    return caches + len(app.known) + len(app.shown) + len(app.forms) + len(app.limiter)


async def a_day(okun: Okun, group: Room, anna: Room, later: Later, day: int) -> None:
    """Talk in the morning, at noon and in the evening, by people who come and go."""
    for hour in range(0, 24, 4):
        for number in range(12):
            who = okun.person(f"Guest {day % 5}-{number % 4}")["first_name"]
            group.put("say", f"day {day} hour {hour}: щука номер {number} на озері " + "дуже " * 20, by=who)
        group.put("say", f"Okun, what about {day}-{hour}?")
        anna.put("say", f"my day {day}, hour {hour}")
        await okun.take()
        await later(4 * HOUR)
    async with okun.app.db.tx() as tx:  # as a picture or a speech would
        await bot.take_quota(tx, 11, "images", bot.day_of(okun.clock.now(), okun.settings), 10)


async def live_before(okun: Okun, minutes: int) -> None:
    """Charts of a bot that has been living for so long: what grows only until it is full must not look like growth."""
    first = int(okun.clock.now()) // 60 - minutes
    columns = [row[1] for row in okun.rows("PRAGMA table_info(minutes)")]
    async with okun.app.db.tx() as tx:
        await tx.many(
            f"INSERT INTO minutes VALUES ({', '.join('?' * len(columns))})",
            [(first + n, *(1000 + n % 7 for _ in columns[1:])) for n in range(minutes)],
        )


@settings(backup_hours=24, backup_keep=5, retention_days=RETENTION, replies_per_hour=60, commands_per_minute=10,
          analysis_batch_size=0)  # fmt: skip
async def test_a_fortnight(
    okun: Okun, later: Later, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "INDEX_EVERY_S",
        "LOOK_EVERY_S",
        "JOBS_EVERY_S",
        "DIGEST_LOOK_S",
    ):  # a second is nothing in a fortnight
        monkeypatch.setattr(bot, name, 1800.0)
    group, anna = okun.group(), okun.private("Anna")
    await live_before(okun, DAYS * 24 * 60)
    for name, body in bot.LOOPS.items():
        okun.app.spawn(bot.kept_up(okun.app, name, body), name)
    sizes: list[int] = []
    held: list[int] = []
    for day in range(DAYS):
        await a_day(okun, group, anna, later, day)
        if day == 6:  # a restart in the middle of it, and the clock put right by an hour
            await okun.restart()
            for name, body in bot.LOOPS.items():
                okun.app.spawn(bot.kept_up(okun.app, name, body), name)
            okun.clock.start -= HOUR
        [[pages]] = okun.rows("PRAGMA page_count")
        sizes.append(pages)
        gc.collect()
        held.append(open_caches(okun.app))
    now = okun.clock.now()

    made = sorted(one.made_at - NOON for one in bot.backups_in(tmp_path / "backups"))
    assert len(made) == 5 and all(
        DAY - 2 <= after - before <= DAY + HOUR + 2 for before, after in itertools.pairwise(made)
    )
    assert now - NOON - made[-1] < DAY
    for path in (tmp_path / "backups").iterdir():
        bot.require_sound(sqlite3.connect(path))

    [[oldest, newest, count]] = okun.rows("SELECT min(sent_at), max(sent_at), count(*) FROM messages")
    assert now - RETENTION * DAY - 2 * HOUR <= oldest and now - newest < DAY
    assert count < (RETENTION + 1) * 6 * 16
    days = {row[0] for row in okun.rows("SELECT DISTINCT day FROM quotas")}
    last = {bot.day_of(now - back * DAY, okun.settings) for back in range(4)}
    assert days and days <= last
    assert okun.rows("SELECT count(*) FROM minutes WHERE minute < ?", int(now) // 60 - 14 * 24 * 60 - 60) == [(0,)]
    [[minutes, newest_minute]] = okun.rows("SELECT count(*), max(minute) FROM minutes")
    assert 14 * 24 * 60 - 60 < minutes <= 14 * 24 * 60 + 60 and int(now) // 60 - newest_minute <= 2
    since = (int(now) // 60 - 2 * 24 * 60,)
    [[charted]] = okun.rows("SELECT sum(messages) FROM minutes WHERE minute >= ?", *since)
    [[stored]] = okun.rows("SELECT count(*) FROM messages WHERE user_id IS NOT NULL AND sent_at / 60 >= ?", *since)
    assert abs(charted - stored) <= 16  # the talk at the edge
    seen = okun.rows("SELECT min(seen_at) FROM inbox_seen")[0][0]
    assert now - seen < 2 * DAY + 2 * HOUR and okun.inbox_rows == []
    assert okun.rows("SELECT count(*) FROM passages") <= [(count,)]

    assert max(sizes[9:]) <= 1.1 * max(sizes[RETENTION + 1 : 9])
    assert max(held[9:]) <= 1.1 * max(held[5:9]) + 20
    assert Path(f"{okun.path}-wal").stat().st_size <= 16_777_216
    assert "cleanup failed" not in caplog.text and "loop failed" not in caplog.text
    assert len(await anna.say("still there?")) == 1
