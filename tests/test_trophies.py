"""Collections, leaderboards and bragging: checked against what the catches come to, reckoned plainly."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import ANNA, BORYS, KYIV, NOON, OLENA, TEXTS, VIRA, Later, Okun, Room

import bot

TODAY = datetime.fromtimestamp(NOON, KYIV).date()  # a Wednesday
PEOPLE = (ANNA, BORYS, VIRA, OLENA)


def epoch(day: date) -> int:
    return (day - date(1970, 1, 1)).days


async def put_catch(okun: Okun, user_id: int, chat_id: int, pnl: float, day: date = TODAY, **columns: Any) -> int:
    """A catch as the game stores it."""
    at = int(datetime(day.year, day.month, day.day, 12, tzinfo=UTC).timestamp())
    row = {
        "line_id": okun.rows("SELECT coalesce(max(line_id), 0) + 1 FROM catches")[0][0], "user_id": user_id,
        "chat_id": chat_id, "fish": "perch", "pair": "TON", "leverage": 2.0, "stake": 1000, "entry": 5.0, "exit": 5.0,
        "practice": 0, "pnl": pnl, "dollars": 0, "cast_at": at - 60, "caught_at": at, "day": epoch(day), "first": 0,
        "experience": 100, "update_id": 0, **columns,
    }  # fmt: skip
    async with okun.app.db.tx() as tx:
        await bot.ensure_person(tx, user_id)
        made = await tx.one(
            f"INSERT INTO catches ({', '.join(row)}) VALUES ({', '.join('?' * len(row))}) RETURNING id", *row.values()
        )
    assert made
    return int(made["id"])


# -- leaderboards


@pytest.mark.parametrize(
    ("period", "first"),
    [("day", TODAY), ("week", TODAY - timedelta(TODAY.weekday())), ("month", TODAY.replace(day=1))],
)
def test_periods_are_those_of_the_calendar(period: str, first: date) -> None:
    assert bot.first_day(period, epoch(TODAY)) == epoch(first)


@pytest.mark.parametrize(("place", "total", "share"), [(1, 1, 0.0), (1, 2, 50.0), (2, 3, 33.3), (1, 1000, 99.9)])
def test_the_percentile_is_the_share_of_those_behind(place: int, total: int, share: float) -> None:
    assert bot.share_behind(place, total) == share


async def test_leaderboards_are_what_the_catches_come_to(okun: Okun, chat: Room, group: Room) -> None:
    await chat.say("/help")
    for name in ("Anna", "Borys", "Vira", "Olena"):
        await group.say("/help", by=name)
    dice = random.Random(3)
    made = []
    for _ in range(150):
        user, room = dice.choice(PEOPLE), dice.choice((chat, group))
        day, pnl = TODAY - timedelta(dice.randrange(40)), round(dice.uniform(-50, 60), 3)
        practice = int(dice.random() < 0.2)
        id_ = await put_catch(okun, user, room.id, pnl, day, practice=practice)
        made.append((id_, user, room.id, day, pnl, practice))
    gone = {entry[0] for entry in made[::10]}
    async with okun.app.db.tx() as tx:
        await tx.many("DELETE FROM catches WHERE id = ?", [(id_,) for id_ in gone])
    for period in bot.PERIODS_OF_TOP:
        since = bot.first_day(period, epoch(TODAY))
        for pond in (0, chat.id, group.id):
            sums: dict[int, float] = defaultdict(float)
            for id_, user, where, day, pnl, practice in made:
                if id_ not in gone and not practice and epoch(day) >= since and pond in (0, where):
                    sums[user] += pnl
            places = await bot.standings_in(okun.app.db.reader, pond, period, since, ANNA)
            wanted = sorted(sums.items(), key=lambda entry: (-entry[1], entry[0]))
            assert [one.user_id for one in places] == [user for user, _ in wanted]
            assert [one.pnl for one in places] == pytest.approx([pnl for _, pnl in wanted], abs=1e-5)
            assert [one.place for one in places] == list(range(1, len(wanted) + 1))
            assert {one.total for one in places} <= {len(wanted)}


def reckoned(okun: Okun) -> dict[tuple[int, str, int, int], tuple[int, int]]:
    """What standings should hold, from the catches alone."""
    sums: dict[tuple[int, str, int, int], tuple[int, int]] = {}
    for user, chat, day, pnl in okun.rows("SELECT user_id, chat_id, day, pnl FROM catches WHERE practice = 0"):
        for period in bot.PERIODS_OF_TOP:
            for pond in (0, chat):
                key = (pond, period, bot.first_day(period, day), user)
                times, total = sums.get(key, (0, 0))
                sums[key] = times + 1, total + bot.rounded_away(max(-1e9, min(1e9, pnl)) * 1e6)
    return sums


@pytest.mark.parametrize("seed", range(5))
async def test_standings_hold_whatever_is_caught_moved_or_forgotten(okun: Okun, seed: int) -> None:
    dice, rooms = random.Random(seed), [okun.group(f"Pond {number}") for number in range(4)]
    for room in rooms:
        await room.say("/help", by="Anna")
    for step in range(120):
        act, known = dice.random(), [row[0] for row in okun.rows("SELECT chat_id FROM chats")]
        one, other = dice.sample(known, 2)
        if act < 0.8:
            pnl = dice.choice([dice.uniform(-50, 50), dice.uniform(-1e-6, 1e-6), 1e12, -1e12, 5e-7, -0.0])
            day = TODAY - timedelta(dice.randrange(70))
            await put_catch(okun, dice.choice(PEOPLE), one, pnl, day, practice=int(dice.random() < 0.2))
        elif act < 0.9:
            await bot.forget_person(okun.app, dice.choice(PEOPLE), [one], everywhere=dice.random() < 0.3)
        elif act < 0.95 or len(known) < 3:
            await bot.chat_migrated(okun.app, one, -1_000_000 - step)
        else:
            await bot.chat_migrated(okun.app, one, other)
        if step % 10 == 9:
            standings = okun.rows("SELECT pond, period, since, user_id, catches, pnl FROM standings")
            assert {tuple(row[:4]): tuple(row[4:]) for row in standings} == reckoned(okun)


async def test_equals_share_a_place_and_ones_own_is_told_wherever_it_is(okun: Okun, group: Room) -> None:
    await group.say("/help")
    for number in range(12):
        await put_catch(okun, 1000 + number, group.id, 10.0)
    await put_catch(okun, ANNA, group.id, 1.0)
    places = await bot.standings_in(okun.app.db.reader, group.id, "day", epoch(TODAY), ANNA)
    assert [one.place for one in places] == [1] * 10 + [13]
    [shown] = await group.say("/top day")
    assert okun.t("trophies.own", place=13, total=13, pnl="+1.0 %") in shown.text


async def test_top_is_of_the_pond_in_groups_and_of_all_waters_in_private(okun: Okun, chat: Room, group: Room) -> None:
    await chat.say("/help")
    await group.say("/help", by="Borys")
    await put_catch(okun, ANNA, chat.id, 5.0)
    await put_catch(okun, BORYS, group.id, 7.0)
    [everywhere] = await chat.say("/top")
    [here] = await group.say("/top")
    assert "Anna" in everywhere.text and "Borys" in everywhere.text
    assert "Anna" not in here.text and "Borys" in here.text
    pressed = await chat.press(okun.t("trophies.button.all"), message=everywhere)
    assert okun.t("trophies.period.all") in pressed.message.text


async def test_practice_is_no_sport(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    await put_catch(okun, ANNA, chat.id, 500.0, practice=1)
    [shown] = await chat.say("/top all")
    assert okun.t("trophies.nobody") in shown.text


class Plans(bot.Queries):
    """Tells how SQLite would go about queries."""

    def __init__(self, okun: Okun) -> None:
        super().__init__()
        self.okun, self.steps = okun, list[str]()

    async def _fetch(self, sql: str, args: tuple[Any, ...]) -> list[Any]:
        self.steps += [row[3] for row in self.okun.rows(f"EXPLAIN QUERY PLAN {sql}", *args)]
        return []


async def test_no_leaderboard_is_copied_or_sorted(okun: Okun) -> None:
    plans = Plans(okun)
    await bot.standings_in(plans, 0, "all", 0, ANNA)
    assert not [step for step in plans.steps if step in ("MATERIALIZE board", "SCAN board")]
    assert sum("standings__best_first" in step for step in plans.steps) == 3  # the best, those before, all


async def test_a_collection_is_counted_in_its_index(okun: Okun) -> None:
    plans = Plans(okun)
    await bot.trophies_of(plans, ANNA)
    assert sum("COVERING INDEX catches__of_person" in step for step in plans.steps) == 2


async def test_of_equal_catches_of_a_kind_the_first_is_the_best(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    made = [await put_catch(okun, ANNA, chat.id, pnl, fish=fish)
            for fish, pnl in (("perch", 5.0), ("carp", 9.0), ("perch", 7.0), ("perch", 7.0))]  # fmt: skip
    found = await bot.trophies_of(okun.app.db.reader, ANNA)
    assert [(one.best.id, one.best.fish, one.times) for one in found] == [(made[1], "carp", 1), (made[2], "perch", 3)]


# -- the collection


async def test_an_empty_collection_leads_to_the_water(okun: Okun, chat: Room) -> None:
    [shown] = await chat.say("/catches")
    assert str(len(bot.FISH)) in shown.text and okun.t("fishing.button.cast") in shown.buttons


async def test_a_collection_has_each_kind_once_at_its_best(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    for fish, pnl in (("perch", 80.0), ("perch", 90.0), ("carp", 12.0), ("boot", -90.0)):
        await put_catch(okun, ANNA, chat.id, pnl, fish=fish)
    await put_catch(okun, BORYS, chat.id, 99.0)
    [shown] = await chat.say("/catches")
    names = {name: words["name"] for name, words in TEXTS.words("en", "fish").items()}
    assert shown.picture and names["perch"] in shown.text and "+90.0 %" in shown.text and "2 times" in shown.text
    seen = []
    for _ in range(3):
        pressed = await chat.press("▶")
        seen.append(next(name for name in names if names[name] in pressed.message.text))
        assert pressed.message.id == shown.id and pressed.message.picture
    assert seen == ["carp", "boot", "perch"]
    for rubbish in ("99999", "-1", "x", ""):
        pressed = await chat.press_data(f"m2:{ANNA}:catches:{rubbish}", shown)
        assert pressed.message.picture


# -- bragging


def bait(okun: Okun) -> int:
    rows = okun.rows("SELECT amount FROM balances WHERE currency = 'bait'")
    return int(rows[0][0]) if rows else 0


async def test_bragging_gives_one_bait_for_a_catch_and_only_once(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    id_ = await put_catch(okun, ANNA, chat.id, 8.0)
    [shown] = await chat.say("/catches")
    pressed = await chat.press_data(f"d1:{ANNA}:share:{id_}", shown)
    assert pressed.note == okun.t("trophies.shared.given") and bait(okun) == 1
    again = await chat.press_data(f"d1:{ANNA}:share:{id_}", shown)
    assert again.note == okun.t("trophies.shared.again") and bait(okun) == 1
    [url] = [button["url"] for row in pressed.message.raw["reply_markup"]["inline_keyboard"] for button in row
             if "url" in button]  # fmt: skip
    asked = parse_qs(urlsplit(url).query)
    assert asked["url"][0].endswith(f"?start=fish_{id_}") and "+8.0 %" in asked["text"][0]


async def test_bragging_gives_so_many_a_day_and_never_more_than_the_tin_holds(
    okun: Okun, chat: Room, later: Later
) -> None:
    await chat.say("/help")
    caught = [await put_catch(okun, ANNA, chat.id, 8.0) for _ in range(bot.SHARES_A_DAY + 2)]
    ways = []
    for id_ in caught:
        catch = await bot.catch_by_id(okun.app.db.reader, id_, ANNA)
        assert catch
        ways.append(await bot.share_catch(okun.app, catch))
    assert ways == ["given"] * bot.SHARES_A_DAY + ["enough"] * 2 and bait(okun) == bot.SHARES_A_DAY
    await later(86_400)
    async with okun.app.db.tx() as tx:
        await bot.post(tx, ANNA, "bait", bot.MOST_GIVEN, "pack", "filled up", NOON)
    catch = await bot.catch_by_id(okun.app.db.reader, await put_catch(okun, ANNA, chat.id, 8.0), ANNA)
    assert catch and await bot.share_catch(okun.app, catch) == "full"


async def test_nobody_brags_with_another_ones_catch(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    id_ = await put_catch(okun, BORYS, chat.id, 8.0)
    [shown] = await chat.say("/catches")
    pressed = await chat.press_data(f"d1:{ANNA}:share:{id_}", shown)
    assert pressed.note == okun.t("button.old") and okun.rows("SELECT shared FROM catches") == [(0,)]


async def test_a_link_shows_a_catch_that_was_bragged_about_and_no_other(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    id_ = await put_catch(okun, BORYS, chat.id, 8.0)
    [hidden] = await chat.say(f"/start fish_{id_}")
    assert hidden.text == okun.t("trophies.gone")
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE catches SET shared = 1")
        await tx.run("UPDATE users SET name = 'Borys' WHERE user_id = ?", BORYS)
    [shown] = await chat.say(f"/start fish_{id_}")
    assert shown.picture and "Borys" in shown.text and okun.t("fishing.button.cast") in shown.buttons
    for rubbish in ("fish_", "fish_x", "fish_99999999999999999999"):
        assert (await chat.say(f"/start {rubbish}"))[0].text == okun.t("trophies.gone")


async def test_a_share_is_offered_without_bait_once_that_was_given(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    id_ = await put_catch(okun, ANNA, chat.id, 8.0)
    [shown] = await chat.say("/catches")
    assert okun.t("fishing.button.share") in shown.buttons
    await chat.press_data(f"d1:{ANNA}:share:{id_}", shown)
    [again] = await chat.say("/catches")
    assert okun.t("fishing.button.brag") in again.buttons and okun.t("fishing.button.share") not in again.buttons


async def test_a_fish_that_left_the_catalogue_goes_on_counting_and_is_shown_no_more(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    gone = await put_catch(okun, ANNA, chat.id, 99.0, fish="mammoth", shared=1)
    [empty] = await chat.say("/catches")
    assert empty.text == okun.t("trophies.empty", all=okun.app.texts.counted("en", "trophies.kinds", len(bot.FISH)))
    await put_catch(okun, ANNA, chat.id, 8.0)
    [shown] = await chat.say("/catches")
    assert shown.picture and f"1 of {len(bot.FISH)}" in shown.text
    for data in (f"m2:{ANNA}:catch:{gone}", f"d1:{ANNA}:share:{gone}"):
        assert (await chat.press_data(data, shown)).note == okun.t("button.old")
    assert (await chat.say(f"/start fish_{gone}"))[0].text == okun.t("trophies.gone")
    assert "+107.0 %" in (await chat.say("/top"))[0].text
    assert (await chat.say("/hook"))[0].text == okun.t("fishing.no_line")


async def test_a_link_of_somebody_who_had_everything_forgotten_leads_nowhere(okun: Okun, chat: Room) -> None:
    await chat.say("/help")
    id_ = await put_catch(okun, BORYS, chat.id, 8.0, shared=1)
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM users WHERE user_id = ?", BORYS)
    assert (await chat.say(f"/start fish_{id_}"))[0].text == okun.t("trophies.gone")
