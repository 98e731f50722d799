"""What is counted and kept by the minute, and what an owner reads of it with /stats."""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
from conftest import NOON, OWNER, TEXTS, Later, Okun, Room, settings

import bot

MINUTE = int(NOON) // 60
COLUMNS = "minute, updates, messages, replies, errors, p50_ms, p95_ms, llm_calls, llm_errors, micro_usd"


@pytest.fixture
def owner(okun: Okun) -> Room:
    return okun.private("Owner")


@pytest.fixture
async def minutes(okun: Okun) -> None:
    """The loop that writes a row for each minute."""
    okun.app.spawn(bot.minutes_loop(okun.app), "minutes")


def rows(okun: Okun, columns: str = COLUMNS) -> list[Any]:
    return okun.rows(f"SELECT {columns} FROM minutes ORDER BY minute")


def call(okun: Okun, outcome: str = "ok", micro_usd: int = 1500) -> None:
    """A call of a model, as it is noted when it ends."""
    used = bot.LlmCall(int(okun.clock.now()), "gemini", "m", "chat", outcome, 5, bot.Usage(), 0, 0, micro_usd)
    bot.store_llm_call(okun.app, used)


# -- rules


@pytest.mark.parametrize(
    ("values", "share", "value"),
    [([], 0.5, None), ([3], 0.95, 3), ([4, 1, 3, 2], 0.5, 2), (range(1, 101), 0.95, 95), ([1, 2], 0.95, 2)],
)
def test_a_percentile_is_one_of_the_values(values: Any, share: float, value: float | None) -> None:
    assert bot.percentile(values, share) == value


def test_latencies_are_counted_by_size_for_ever_and_kept_for_a_while() -> None:
    taken = bot.Latencies()
    for seconds in [0.05] * 1500 + [0.1, 61.0]:
        taken.append(seconds)
    assert len(taken) == 1000 and taken.by_size[0] == 1501 and taken.by_size[-1] == 1
    assert taken.total_s == pytest.approx(1500 * 0.05 + 61.1)


def test_memory_is_known_here() -> None:
    assert 20e6 < bot.rss_bytes() < 2e9


def test_memory_is_told_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda self: b"")
    assert 20e6 < bot.rss_bytes() < 2e9


def test_the_memory_of_a_cache_grows_with_what_it_holds_and_looking_changes_nothing() -> None:
    cache: bot.Cache[int, str] = bot.Cache(3, 60)
    assert bot.bytes_held(cache) == 0
    cache.put(1, "x")
    small = bot.bytes_held(cache)
    cache.put(2, "x" * 100_000)
    assert small < 1000 < 100_000 < bot.bytes_held(cache) < 250_000
    cache.put(3, "x")
    cache.put(4, "x")
    assert cache.peek(1) is None  # still the oldest
    assert cache.stats.hits == 0


# -- minutes


async def test_a_minute_is_a_row(okun: Okun, chat: Room, later: Later, minutes: None) -> None:
    await later(30)
    okun.app.errors.total += 2
    call(okun)
    call(okun, "server", 0)
    await chat.say("hi")
    await later(30)
    assert rows(okun) == [(MINUTE, 1, 1, 1, 2, 0, 0, 2, 1, 1500)]
    [(hits, misses, rss, backlog)] = rows(okun, "cache_hits, cache_misses, rss_kb, backlog")
    assert hits + misses > 0 and rss > 20_000 and backlog == 0
    await later(60)
    assert rows(okun)[1] == (MINUTE + 1, 0, 0, 0, 0, None, None, 0, 0, 0)


async def test_what_takes_time_is_in_the_percentiles_of_its_minute(okun: Okun, later: Later, minutes: None) -> None:
    for seconds in (1.0, 2.0, 9.0):
        okun.app.latencies.append(seconds)
        okun.app.counts["replies"] += 1
    await later(60)
    okun.app.latencies.append(0.5)
    okun.app.counts["replies"] += 1
    await later(60)
    assert rows(okun, "replies, p50_ms, p95_ms") == [(3, 2000, 9000), (1, 500, 500)]


async def test_a_restart_within_a_minute_adds_up(okun: Okun, chat: Room, later: Later, minutes: None) -> None:
    await chat.say("hi")
    await later(20)
    await okun.restart()
    assert rows(okun)[0][:4] == (MINUTE, 1, 1, 1)
    okun.app.spawn(bot.minutes_loop(okun.app), "minutes")
    await chat.say("hi again")
    okun.app.errors.total += 1
    await later(60)
    assert rows(okun)[0][:5] == (MINUTE, 2, 2, 2, 1)
    assert len(rows(okun)) == 1


async def test_the_worse_percentiles_of_a_divided_minute_stay(okun: Okun) -> None:
    okun.app.counts["replies"] += 1
    okun.app.latencies.append(3.0)
    await bot.note_minute(okun.app, MINUTE)
    await bot.note_minute(okun.app, MINUTE)  # nobody was answered in this half
    assert rows(okun, "p50_ms, p95_ms") == [(3000, 3000)]
    okun.app.counts["replies"] += 1
    okun.app.latencies.append(1.0)
    await bot.note_minute(okun.app, MINUTE)
    assert rows(okun, "p50_ms, p95_ms, replies") == [(3000, 3000, 2)]


async def test_a_minute_that_cannot_be_written_is_in_the_next(
    okun: Okun, chat: Room, later: Later, minutes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(writes: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    await chat.say("hi")
    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "write", full)
        await later(60)
    await later(60)
    assert [row[:4] for row in rows(okun)] == [(MINUTE + 1, 1, 1, 1)]


async def test_a_clock_set_back_adds_to_the_minutes_that_were(
    okun: Okun, chat: Room, later: Later, minutes: None
) -> None:
    await chat.say("hi")
    await later(120)
    okun.clock.start -= 3600
    await chat.say("hi", date=int(okun.clock.now()))
    await later(61)
    okun.clock.start += 3600 - 180
    await later(61)
    assert [row[0] - MINUTE for row in rows(okun)] == [-58, 0, 1]
    assert sum(row[2] for row in rows(okun)) == 2


async def test_the_console_keeps_no_minutes(okun: Okun, chat: Room) -> None:
    await chat.say("hi")
    await okun.restart()
    assert rows(okun) == []


async def test_minutes_older_than_two_weeks_go_and_those_of_a_wrong_clock(okun: Okun) -> None:
    ages = (-2000, 0, 14 * 1440, 14 * 1440 + 1, 10**6)
    zeros = "0, 0, 0, 0, NULL, NULL, 0, 0, 0, 0, 0, 0, 0"
    async with okun.app.db.tx() as tx:
        for age in ages:
            await tx.run(f"INSERT INTO minutes VALUES (?, {zeros})", MINUTE - age)
    await bot.clean(okun.app)
    assert [MINUTE - row[0] for row in rows(okun)] == [14 * 1440, 0]


# -- figures


@settings(daily_budget_usd=2.0)
async def test_figures_are_those_of_what_happened(okun: Okun, chat: Room, group: Room, later: Later) -> None:
    okun.app.spawn(bot.minutes_loop(okun.app), "minutes")
    await chat.say("hi")
    await later(61)
    await group.say("okun, hi", by="Borys")
    call(okun)
    call(okun, "timeout", 0)
    before = okun.app.db.reader.reads
    now = await bot.figures(okun.app)
    assert okun.app.db.reader.reads == before + 1
    assert (now.chats, now.users, now.stored) == (2, 2, 4)
    assert (now.updates, now.messages, now.replies) == (2, 2, 2)
    assert (now.messages_today, now.replies_today) == (2, 2)
    assert (now.llm_calls, now.llm_errors, now.outcomes) == (2, 1, {"ok": 1, "timeout": 1})
    assert (now.spent_today, now.budget, now.micro_usd) == (1500, 2_000_000, 1500)
    assert now.uptime_s == pytest.approx(61) and now.backlog == 0
    assert now.p50_s is not None and now.breakers[("gemini", "chat")] == "closed"
    assert now.db_bytes >= okun.path.stat().st_size
    assert now.hit_rate is not None and {cache.name for cache in now.caches} >= {"chats", "drawn", "analyses"}


async def test_what_was_yesterday_is_not_of_today(okun: Okun, chat: Room, later: Later, minutes: None) -> None:
    await chat.say("hi")
    await later(13 * 3600)  # it is one in the morning
    assert (await bot.figures(okun.app)).messages_today == 0
    await chat.say("hi")
    now = await bot.figures(okun.app)
    assert (now.messages_today, now.replies_today, now.messages) == (1, 1, 2)


async def test_a_second_level_counts_what_it_knew(okun: Okun) -> None:
    bot.note_disk(okun.app, "analyses", 5, 3)
    [cache] = [one for one in bot.cache_figures(okun.app) if one.name == "analyses"]
    assert (cache.disk_hits, cache.misses, cache.hit_rate) == (3, 2, 0.6)


async def test_points_are_sums_means_and_gaps(okun: Okun) -> None:
    async with okun.app.db.tx() as tx:
        for minute, replies, p50, rss, backlog in ((0, 1, 100, 50, 1), (1, 3, 200, 70, 5), (2, 0, None, 60, 0),
                                                   (20, 0, None, 10, 0)):  # fmt: skip
            await tx.run(
                "INSERT INTO minutes VALUES (?, 2, 3, ?, 1, ?, ?, 4, 1, 10, 6, 2, ?, ?)",
                MINUTE + minute, replies, p50, p50, rss, backlog,
            )  # fmt: skip
    points = await bot.load_minutes(okun.app.db.reader, MINUTE, MINUTE + 30, 10)
    assert [tuple(row) for row in points] == [
        (0, 6, 9, 4, 3, 175.0, 175.0, 12, 3, 30, 18, 6, 60.0, 5), (2, 2, 3, 0, 1, None, None, 4, 1, 10, 6, 2, 10.0, 0)
    ]  # fmt: skip


# -- /stats


@pytest.mark.parametrize("lang", bot.LANGS)
@settings(daily_budget_usd=2.0)
async def test_stats_tell_the_owner_in_words(okun: Okun, owner: Room, later: Later, lang: str) -> None:
    await owner.say(f"/lang {lang}")
    await owner.say("hi")
    call(okun)
    await later(7200)
    [reply] = await owner.say("/stats")
    for key, fields in (
        ("head", {"uptime": TEXTS.span(lang, 7200, into=True), "version": bot.VERSION}),
        ("today", {"messages": 3, "replies": 1}),
        ("llm", {"calls": 1, "errors": 0}),
        ("breakers_well", {}),
        ("spent_of", {"spent": bot.dollars(lang, 1500), "most": bot.dollars(lang, 2_000_000)}),
    ):
        assert okun.t(f"stats.{key}", lang, **fields) in reply.text
    assert [okun.t(f"stats.button.{name}", lang) for name in ("refresh", "caches")] == reply.buttons[:2]
    assert "{" not in reply.text and "None" not in reply.text


@pytest.mark.parametrize(("lang", "said"), [("uk", "працює вже 1 годину"), ("ru", "работает уже 1 минуту")])
async def test_it_says_in_grammar_how_long_it_runs(okun: Okun, owner: Room, later: Later, lang: str, said: str) -> None:
    await owner.say(f"/lang {lang}")
    await later(3600 if lang == "uk" else 60)
    assert said in (await owner.say("/stats"))[-1].text


async def test_a_bot_that_did_nothing_yet_says_so(okun: Okun, owner: Room) -> None:
    [reply] = await owner.say("/stats")
    assert okun.t("stats.no_answers") in reply.text
    assert okun.t("stats.spent", spent="$0.00") in reply.text


async def test_an_open_breaker_is_named(okun: Okun, owner: Room) -> None:
    for _ in range(5):
        okun.app.llm.breakers["gemini", "chat"].failed()
    [reply] = await owner.say("/stats")
    assert okun.t("stats.breakers", states="gemini chat: open") in reply.text


async def test_stats_are_refreshed_in_place(okun: Okun, owner: Room, later: Later) -> None:
    [menu] = await owner.say("/stats")
    await later(3600)
    pressed = await owner.press(okun.t("stats.button.refresh"))
    assert pressed.message.id == menu.id and TEXTS.span("en", 3600) in pressed.message.text


async def test_each_cache_that_was_asked_is_listed(okun: Okun, owner: Room) -> None:
    await owner.say("/stats")
    pressed = await owner.press(okun.t("stats.button.caches"))
    assert pressed.message.text.startswith(okun.t("stats.caches_head")) and "langs: " in pressed.message.text
    assert (await owner.press(okun.t("menu.back"))).message.text.startswith("Okun " + bot.VERSION)


async def test_stats_are_for_owners_alone(okun: Okun, chat: Room, group: Room, owner: Room) -> None:
    assert [reply.text for reply in await chat.say("/stats")] == [okun.t("command.unknown")]
    assert await group.say("/stats") == []
    [menu] = await owner.say("/stats")
    for name in ("stats", "caches"):
        [own] = await chat.say("/menu")
        pressed = await chat.press_data(f"m2:{chat.okun.person('Anna')['id']}:{name}:", own)
        assert pressed.note == okun.t("error.owners_only") and pressed.replies == []
        assert (await owner.press_data(f"m2:{OWNER}:{name}:", menu)).note is None
