"""The game: a cast takes the price, a hook makes a fish of it, and what it brought is booked once."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, Later, Okun, Reply, Room, drawn, settings

import bot

SUMS = "SELECT user_id, currency, sum(delta) FROM ledger GROUP BY user_id, currency ORDER BY 1, 2"
BALANCES = "SELECT user_id, currency, amount FROM balances ORDER BY 1, 2"
PLAIN_CARD = drawn(bot.Drawing("a card")).data
ENTRY = 5.0  # dollars for a TON, before the test moves it


@pytest.fixture(autouse=True)
def no_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor cards that take time to draw: how those look is another matter."""

    async def plain_card(*args: Any) -> bytes:
        return PLAIN_CARD

    monkeypatch.setattr(bot, "SHOW_FRAMES", 0)
    monkeypatch.setattr(bot, "card_of", plain_card)


def moved(okun: Okun, percent: float, pair: str = "TON") -> None:
    """Let the price stand so much above where it began."""
    okun.exchange.prices[pair] = ENTRY * (1 + percent / 100)


def have(okun: Okun, currency: str = "bait", user_id: int = ANNA) -> int:
    rows = okun.rows("SELECT amount FROM balances WHERE user_id = ? AND currency = ?", user_id, currency)
    return int(rows[0][0]) if rows else 0


def lines(okun: Okun) -> int:
    return len(okun.rows("SELECT 1 FROM fishing_lines"))


def changes(okun: Okun, user_id: int = ANNA) -> list[tuple[str, str, int]]:
    """What somebody's balances changed for, oldest first."""
    return okun.rows("SELECT currency, reason, delta FROM ledger WHERE user_id = ? ORDER BY id", user_id)


async def give(okun: Okun, amount: int, currency: str = "bait", user_id: int = ANNA) -> None:
    """Bought, as it were."""
    async with bot.money(okun.app, user_id) as tx:
        await bot.ensure_person(tx, user_id)
        await bot.post(tx, user_id, currency, amount, "pack", f"gift {random.random()}", NOON)


async def begin(okun: Okun, room: Room) -> None:
    """The first cast and hook of a life, which are free and a lesson."""
    await room.say("/cast")
    await okun.later(60)
    await room.say("/hook")


def who(room: Room, user_id: int = ANNA, update_id: int = 1) -> bot.Who:
    return bot.Who(room.id, 0, user_id, "en", room.id > 0, update_id=update_id)


def text(replies: list[Reply]) -> str:
    [reply] = replies
    return reply.text


# -- the formulas


@pytest.mark.parametrize(
    ("entry", "now", "leverage", "pnl"),
    [
        (100, 100, 2, 0), (100, 101, 2, 2), (100, 99, 2, -2), (100, 101, -2, -2), (100, 99, -2, 2),
        (100, 110, 2.5, 25), (100, 90, -2.5, 25), (100, 110, 3, 30), (100, 90, 3, -30), (100, 110, 4, 40),
        (100, 110, -4, -40), (100, 50, 2, -100), (100, 0, 2, -200), (100, 0, -2, 200), (100, 0, 4, -400),
        (100, 600, 2, 1000), (100, 600, -2, -1000), (5, 5.0005, 2, 0.02), (0.2, 0.1999, 2, -0.1),
        (0, 100, 2, 0), (-1, 100, 2, 0), (0, 0, 4, 0), (-5, -6, -4, 0), (1e-9, 1, 2, 2e11 - 200),
    ],
)  # fmt: skip
def test_profit_and_loss(entry: float, now: float, leverage: float, pnl: float) -> None:
    assert bot.pnl_of(entry, now, leverage) == pytest.approx(pnl)


@pytest.mark.parametrize(
    ("stake", "pnl", "dollars"),
    [
        (1000, 0, 0), (1000, 1, 10), (1000, -1, -10), (1000, 0.04, 0), (1000, 0.05, 1), (1000, -0.05, -1),
        (1000, -0.04, 0), (1000, 0.15, 2), (1000, -0.15, -2), (1000, 0.25, 3), (1000, 100, 1000), (1000, -100, -1000),
        (1000, 1000, 10_000), (1000, -400, -4000), (7000, 1.2345, 86), (1000, 0.29 - 0.24, 1), (1000, 1e20, 10**12),
        (1000, -1e20, -(10**12)), (1000, 0.0499, 0),
    ],
)  # fmt: skip
def test_dollars_of_a_stake(stake: int, pnl: float, dollars: int) -> None:
    assert bot.dollars_of(stake, pnl) == dollars


@pytest.mark.parametrize(
    ("value", "whole"),
    [(0.5, 1), (-0.5, -1), (1.5, 2), (-1.5, -2), (2.5, 3), (-2.5, -3), (0.49999999999999994, 0), (-0.49, 0), (0.0, 0),
     (-0.0, 0), (1e15 + 0.5, 10**15 + 1)],
)  # fmt: skip
def test_halves_are_rounded_away_from_zero(value: float, whole: int) -> None:
    assert bot.rounded_away(value) == whole


@pytest.mark.parametrize(
    ("experience", "level"),
    [(0, 1), (19, 1), (20, 2), (59, 2), (60, 3), (119, 3), (120, 4), (199, 4), (200, 5), (899, 9), (900, 10),
     (98_999, 99), (99_000, 100)],
)  # fmt: skip
def test_levels(experience: int, level: int) -> None:
    assert bot.level_of(experience) == level


def test_a_level_begins_with_just_what_it_needs() -> None:
    for level in range(1, 2000):
        assert bot.needed_for(level) == 10 * level * (level - 1)
        assert bot.level_of(bot.needed_for(level)) == level
        assert level == 1 or bot.level_of(bot.needed_for(level) - 1) == level - 1


@pytest.mark.parametrize(
    ("in_water", "pnl", "quick"),
    [(0, 0, True), (59, 0.0999, True), (59, -0.0999, True), (59.9, 0, True), (60, 0, False), (61, 0.01, False),
     (59, 0.1, False), (59, -0.1, False), (0, 0.1, False), (0, -5, False), (-3, 0, True), (-59, 0, True),
     (-60, 0, False), (-86_400, 0, False)],
)  # fmt: skip
def test_quick_is_under_a_minute_and_under_a_tenth_of_a_percent(in_water: float, pnl: float, quick: bool) -> None:
    assert bot.too_quick(in_water, pnl) is quick


@pytest.mark.parametrize(
    ("pnl", "words"),
    [(0, "0.0000 %"), (0.00994, "+0.0099 %"), (-0.00994, "−0.0099 %"), (0.01, "+0.010 %"), (0.0994, "+0.099 %"),
     (0.1, "+0.10 %"), (-0.994, "−0.99 %"), (1, "+1.0 %"), (-12.34, "−12.3 %"), (1000, "+1000.0 %")],
)  # fmt: skip
def test_the_smaller_the_more_digits(pnl: float, words: str) -> None:
    assert bot.pnl_words("en", pnl) == words
    assert bot.pnl_words("uk", pnl) == bot.pnl_words("ru", pnl) == words.replace(".", ",")


@pytest.mark.parametrize(
    ("usd", "words"),
    [
        (61234.5, "$61\u202f234.50"),
        (9999.999, "$10000.00"),
        (99_999.999, "$100\u202f000.00"),
        (3000, "$3000.00"),
        (5.1234, "$5.1234"),
        (0.2, "$0.200000"),
        (0.00001234, "$0.0000123400"),
    ],
)
def test_prices_are_told_with_digits_that_say_something(usd: float, words: str) -> None:
    assert bot.usd_words("en", usd) == words


@pytest.mark.parametrize(
    ("gift", "there", "taken"),
    [(10, 0, 10), (3, 0, 3), (3, 27, 3), (3, 28, 2), (3, 29, 1), (3, 30, 0), (3, 130, 0), (1, 29, 1), (1, 30, 0)],
)
def test_gifts_fill_up_to_thirty(gift: int, there: int, taken: int) -> None:
    assert bot.gift_left(gift, there) == taken


def test_experience_stands_for_each_rarity() -> None:
    assert [bot.EXPERIENCE[rarity] for rarity in bot.RARITIES] == [1, 3, 8, 20, 60]


# -- cast, look, hook


async def test_a_cast_and_a_hook_make_a_catch(okun: Okun, chat: Room, later: Later) -> None:
    line = text(await chat.say("/cast"))
    assert "$5.0000" in line and "long ×2" in line
    await later(60)
    moved(okun, 2)
    status = text(await chat.say("/status"))
    assert "+4.0 %" in status and "+40" in status and "1 minute" in status and "$5.0000 → $5.1000" in status
    caught = text(await chat.say("/hook"))
    assert "+4.0 %" in caught and "+40 💵" in caught
    [(pnl, *rest)] = okun.rows("SELECT pnl, dollars, stake, leverage, entry, exit, cast_at, caught_at FROM catches")
    assert pnl == pytest.approx(4) and rest == [40, 1000, 2.0, 5.0, 5.1, NOON, NOON + 60]
    assert have(okun, "dollars") == 40 and lines(okun) == 0


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_by_buttons_alone(okun: Okun, chat: Room, later: Later, lang: str) -> None:
    await chat.say(f"/lang {lang}")
    await chat.say("/menu")
    await chat.press(okun.t("menu.to.pond", lang))
    pressed = await chat.press(okun.t("fishing.button.cast", lang))
    assert lines(okun) == 1 and okun.t("fishing.lesson.1", lang) in pressed.message.text
    await later(61)
    moved(okun, -1)
    pressed = await chat.press(okun.t("fishing.button.refresh", lang))
    assert pressed.note is None and bot.pnl_words(lang, -2.0) in pressed.message.text
    await chat.press(okun.t("fishing.button.hook", lang))
    caught = chat.replies[-1]
    assert bot.pnl_words(lang, -2.0) in caught.text and okun.t("fishing.first", lang) in caught.text
    pressed = await chat.press(okun.t("fishing.button.again", lang))
    assert lines(okun) == 1 and len(pressed.replies) == 1
    assert caught.id in [reply.id for reply in chat.replies]  # the catch stays where it is


async def test_all_of_the_game_is_to_be_had_from_one_command(okun: Okun, chat: Room) -> None:
    [pond] = await chat.say("/fish")
    assert okun.t("fishing.pond", pair="TON") in pond.text
    assert {okun.t(f"fishing.button.{name}") for name in ("cast", "buy", *bot.FROM_POND)} <= set(pond.buttons)


async def test_a_short_rod_wins_where_the_price_falls(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/menu")
    await chat.press(okun.t("menu.to.pond"))
    await chat.press(okun.t("fishing.button.rods"))
    pressed = await chat.press(okun.t("fishing.button.short"))
    assert pressed.note == okun.t("fishing.rod_taken", rod="short ×2")
    await chat.say("/cast")
    await later(100)
    moved(okun, -10)
    assert "+20.0 %" in text(await chat.say("/hook"))


async def test_without_a_line_there_is_nothing_to_look_at_or_pull(okun: Okun, chat: Room) -> None:
    status = text(await chat.say("/status"))
    assert status == okun.t("fishing.nothing_in") and "/stats" in status and "/cast" in status
    assert text(await chat.say("/hook")) == okun.t("fishing.no_line")
    assert okun.exchange.asked == 0


async def test_a_second_cast_is_shown_the_first(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    again = text(await chat.say("/cast"))
    assert again.startswith(okun.t("fishing.has_line")) and lines(okun) == 1 and have(okun) == 9


async def test_a_refresh_that_changes_nothing_says_so(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    await later(20)
    [status] = await chat.say("/status")
    edits = len(okun.called("editMessageText"))
    pressed = await chat.press(okun.t("fishing.button.refresh"), message=status)
    assert pressed.note == okun.t("fishing.same") and len(okun.called("editMessageText")) == edits
    moved(okun, 1)
    await later(11)
    pressed = await chat.press(okun.t("fishing.button.refresh"), message=status)
    assert pressed.note is None and "+2.0 %" in pressed.message.text and pressed.message.id == status.id


@pytest.mark.parametrize("seconds", [0, 30, 59])
async def test_a_hook_that_is_too_quick_changes_nothing(okun: Okun, chat: Room, later: Later, seconds: int) -> None:
    await chat.say("/cast")
    await later(seconds)
    before = okun.rows("SELECT * FROM fishing_lines"), okun.rows(BALANCES), okun.rows("SELECT * FROM anglers")
    asked = okun.exchange.asked
    joke = text(await chat.say("/hook"))
    left = okun.app.texts.span("en", 60 - seconds)
    assert joke in [okun.t(f"fishing.quick.{n}", left=left) for n in range(1, 5)]
    assert (okun.rows("SELECT * FROM fishing_lines"), okun.rows(BALANCES), okun.rows("SELECT * FROM anglers")) == before
    assert okun.exchange.asked - asked == (seconds > 10)  # what is ten seconds old is no price any more


@pytest.mark.parametrize("percent", [0.05, -0.05])
async def test_a_wave_may_be_pulled_at_once(okun: Okun, chat: Room, later: Later, percent: float) -> None:
    await chat.say("/cast")
    await later(11)
    moved(okun, percent * 1.0001)
    await chat.say("/hook")
    assert lines(okun) == 0


async def test_no_change_is_no_loss(okun: Okun, chat: Room) -> None:
    await chat.say("/cast")
    assert "0.0000 % (0 💵)" in text(await chat.say("/status"))


async def test_the_jokes_are_several(okun: Okun, chat: Room) -> None:
    okun.dice.always = None
    await chat.say("/cast")
    assert len({text(await chat.say("/hook")) for _ in range(30)}) == bot.QUICK_JOKES


async def test_the_line_keeps_its_rod_and_its_pair(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    await bot.take_up_rod(okun.app, ANNA, "-2")
    await bot.set_chat(okun.app, chat.id, pair="BTC")
    await later(100)
    moved(okun, 5)
    assert "+10.0 %" in text(await chat.say("/hook"))
    line = text(await chat.say("/cast"))
    assert "BTC" in line and "short ×2" in line and "$60\u202f000.00" in line


async def test_only_the_one_who_cast_may_pull(okun: Okun, group: Room, later: Later) -> None:
    await group.say("/cast", by="Anna")
    await later(100)
    pressed = await group.press(okun.t("fishing.button.hook"), by="Borys")
    assert pressed.note == okun.t("button.not_yours", "uk") and lines(okun) == 1
    assert text(await group.say("/hook", by="Borys")) == okun.t("fishing.no_line", "uk")


async def test_a_pond_holds_a_line_of_each(okun: Okun, group: Room, later: Later) -> None:
    for name in ("Anna", "Borys", "Vira"):
        [line] = await group.say("/cast", by=name)
        assert name in line.text  # whose it is
    await okun.private("Anna").say("/cast")
    assert lines(okun) == 4 and okun.exchange.asked == 1


async def test_an_anonymous_admin_does_not_fish(okun: Okun, group: Room) -> None:
    for command in ("/cast", "/hook", "/status"):
        assert text(await group.say(command, by="chat")) == okun.t("fishing.anonymous", "uk")
    await group.say("/menu", by="chat")
    pressed = await group.press(okun.t("menu.to.pond", "uk"), by="Olena")
    assert pressed.note == okun.t("fishing.anonymous", "uk")
    assert okun.rows("SELECT * FROM anglers") == []


# -- bait


async def test_ten_to_begin_with_and_the_first_cast_is_free(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    assert changes(okun) == [("bait", "bait_start", 10)]
    await chat.say("/cast")
    assert changes(okun)[-1] == ("bait", "cast", -1) and have(okun) == 9


@pytest.mark.parametrize("start", [0, 26, 29, 30, 55])
async def test_three_a_day_up_to_thirty(okun: Okun, chat: Room, start: int) -> None:
    await begin(okun, chat)
    if start != 10:
        async with bot.money(okun.app, ANNA) as tx:
            await bot.post(tx, ANNA, "bait", start - 10, "undone", "test", NOON)
    okun.clock.set(2026, 5, 13, 23, 59)
    await chat.say("/status")
    assert have(okun) == start
    okun.clock.set(2026, 5, 14, 0, 0)  # in TIMEZONE
    pond = await bot.panel_for(okun.app, who(chat), "pond", ANNA)
    given = max(0, min(3, 30 - start))
    assert (okun.t("fishing.bait_due", gift=given) in pond.text) is (given > 0)
    for _ in range(2):
        await chat.say("/cast")
        await okun.later(60)
        await chat.say("/hook")
    casts = min(2, start + given)
    assert have(okun) == start + given - casts
    assert [delta for _, reason, delta in changes(okun) if reason == "bait_day"] == ([given] if given else [])


async def test_missed_days_are_not_made_up_for(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    okun.clock.set(2026, 5, 23, 12)
    await chat.say("/cast")
    assert have(okun) == 12


async def test_without_bait_nothing_is_cast(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    async with bot.money(okun.app, ANNA) as tx:
        await bot.post(tx, ANNA, "bait", -10, "undone", "test", NOON)
    assert text(await chat.say("/cast")) == okun.t("fishing.no_bait", left="12 hours")
    assert lines(okun) == 0 and have(okun) == 0
    await give(okun, 1)
    await chat.say("/cast")
    assert lines(okun) == 1 and have(okun) == 0


async def test_what_is_bought_is_not_capped(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await chat.say("/buy")
    await chat.press("100 🪱 – 800 ⭐")
    okun.telegram.pay(chat.chat, okun.person("Anna"))
    await okun.take()
    await okun.take()
    assert have(okun) == 110
    okun.clock.set(2026, 5, 14, 12)
    await chat.say("/cast")
    assert have(okun) == 109  # there was no room for a gift


async def test_the_beginning_is_given_once_in_a_lifetime(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await bot.forget_person(okun.app, ANNA, [chat.id], everywhere=True)
    assert okun.rows("SELECT * FROM anglers") == okun.rows("SELECT * FROM catches") == []
    assert text(await chat.say("/cast")) == okun.t("fishing.no_bait", left="12 hours")
    okun.clock.set(2026, 5, 14, 9)
    await chat.say("/cast")
    assert changes(okun) == [("bait", "bait_day", 3), ("bait", "cast", -1)]  # and it is not free again
    assert okun.t("fishing.lesson.1") not in chat.replies[-1].text


async def test_a_clock_that_was_wrong_takes_nobodys_bait_and_line(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    okun.clock.set(2031, 5, 12, 12)
    await chat.say("/cast")
    okun.clock.set(2026, 5, 14, 12)
    await chat.say("/hook")
    assert lines(okun) == 0
    for day in (15, 16, 15, 16):
        okun.clock.set(2026, 5, day, 12)
        await chat.say("/cast")
        await okun.later(60)
        await chat.say("/hook")
    assert [delta for _, reason, delta in changes(okun) if reason == "bait_day"] == [3] * 4  # one for each of four days


async def test_a_gift_is_taken_once_for_its_reference(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    given = []
    for reference in ("a", "a", "b"):
        async with bot.money(okun.app, ANNA) as tx:
            given.append(await bot.give_bait(tx, ANNA, bot.SHARE_BAIT, "bait_share", reference, NOON))
    assert given == [1, 0, 1] and have(okun) == 12


# -- dollars, experience


async def test_losses_stop_at_nothing_and_say_so(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await give(okun, 30, "dollars")
    for percent, left, due in ((-1, 10, ""), (-1, 0, "−20"), (-50, 0, "−1000")):
        moved(okun, 0)
        await later(11)
        await chat.say("/cast")
        await later(60)
        moved(okun, percent)
        caught = text(await chat.say("/hook"))
        assert have(okun, "dollars") == left
        assert ("below zero" in caught, okun.t("fishing.spared", due=due) in caught) == (bool(due), bool(due))
    assert okun.rows("SELECT dollars FROM catches ORDER BY id") == [(0,), (-20,), (-10,), (0,)]


async def test_a_level_raises_the_stake_and_is_celebrated(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE anglers SET experience = 19")
    await chat.say("/cast")
    await later(60)
    caught = text(await chat.say("/hook"))
    assert okun.t("fishing.levelled", level=2, stake="2000") in caught
    await chat.say("/cast")
    assert okun.rows("SELECT stake FROM fishing_lines") == [(2000,)]
    await later(60)
    moved(okun, 0.5)
    caught = text(await chat.say("/hook"))
    assert "+20 💵" in caught and "Level" not in caught


async def test_the_first_of_its_kind_is_celebrated(okun: Okun, chat: Room, later: Later) -> None:
    celebrated = []
    for _ in range(12):
        await chat.say("/cast")
        await later(60)
        celebrated.append(okun.t("fishing.first") in text(await chat.say("/hook")))
        await give(okun, 1)
    kinds = [fish for (fish,) in okun.rows("SELECT fish FROM catches ORDER BY id")]
    assert celebrated == [fish not in kinds[:at] for at, fish in enumerate(kinds)] and not all(celebrated)


async def test_experience_goes_by_rarity(okun: Okun, chat: Room, later: Later) -> None:
    okun.dice.always = None
    percents = (-30, 1, 20, 30, 100)
    for percent in percents:
        moved(okun, 0)
        await later(11)
        await chat.say("/cast")
        await later(60)
        moved(okun, percent)
        await chat.say("/hook")
    total = 0
    for fish, experience in okun.rows("SELECT fish, experience FROM catches ORDER BY id"):
        total += bot.EXPERIENCE[bot.FISH[fish].rarity]
        assert experience == total
    assert okun.rows("SELECT experience FROM anglers") == [(total,)]


# -- rods


async def rods(okun: Okun, chat: Room) -> None:
    await chat.say("/menu")
    await chat.press(okun.t("menu.to.pond"))
    await chat.press(okun.t("fishing.button.rods"))


async def test_a_rod_is_bought_and_taken_up(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await give(okun, 150, "dollars")
    await rods(okun, chat)
    asked = await chat.press(okun.t("fishing.button.rod", times="2.5", price=100))
    assert asked.message.text == okun.t("fishing.rod_ask", times="2.5", price=100, have=150)
    bought = await chat.press(okun.t("fishing.button.pay", price=100))
    assert bought.note == okun.t("fishing.rod_bought") and "✓ ×2.5" in bought.message.buttons
    assert have(okun, "dollars") == 50 and changes(okun)[-1] == ("dollars", "rod", -100)
    assert okun.rows("SELECT rod, rods FROM anglers") == [("2.5", "2,2.5")]
    await chat.press(okun.t("fishing.button.short"))
    assert okun.rows("SELECT rod FROM anglers") == [("-2.5",)]
    await chat.press("×2")
    assert okun.rows("SELECT rod FROM anglers") == [("-2",)]  # the side stays


async def test_a_rod_that_is_too_dear_stays_in_the_shop(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await give(okun, 499, "dollars")
    await rods(okun, chat)
    await chat.press(okun.t("fishing.button.rod", times="3", price=500))
    pressed = await chat.press(okun.t("fishing.button.pay", price=500))
    assert pressed.note == okun.t("ledger.short", need=500, have=499, icon="💵")
    assert okun.rows("SELECT rods FROM anglers") == [("2",)] and have(okun, "dollars") == 499


async def test_a_rod_is_paid_for_once(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    await give(okun, 5000, "dollars")
    await asyncio.gather(*(bot.rod_buy_act(okun.app, who(chat), ANNA, "4") for _ in range(5)))
    assert have(okun, "dollars") == 3000 and okun.rows("SELECT rods FROM anglers") == [("2,4",)]


@pytest.mark.parametrize("arg", ["3", "-3", "", "2,", "--2", "2.0", "5", "9" * 40, "nan"])
async def test_forged_rods_are_refused(okun: Okun, chat: Room, arg: str) -> None:
    await begin(okun, chat)
    with pytest.raises(bot.BotError, match=r"button\.old"):
        await bot.rod_act(okun.app, who(chat), ANNA, arg)
    if arg != "3":
        with pytest.raises(bot.BotError, match=r"button\.old"):
            await bot.rod_buy_act(okun.app, who(chat), ANNA, arg)


# -- the pond


async def test_only_admins_choose_the_water(okun: Okun, group: Room) -> None:
    await group.say("/menu", by="Anna")
    await group.press(okun.t("menu.to.pond"), by="Anna")
    await group.press(okun.t("fishing.button.pair"), by="Anna")
    pressed = await group.press("SOL", by="Anna")
    assert pressed.note == okun.t("error.admins_only") and okun.rows("SELECT DISTINCT pair FROM chats") == [("TON",)]
    await group.say("/menu", by="Olena")
    await group.press(okun.t("menu.to.pond", "uk"), by="Olena")
    await group.press(okun.t("fishing.button.pair", "uk"), by="Olena")
    pressed = await group.press("SOL", by="Olena")
    assert pressed.note == okun.t("fishing.pair_set", "uk", pair="SOL") and "✓ SOL" in pressed.message.buttons
    assert "SOL" in text(await group.say("/cast", by="Anna"))


async def test_the_water_is_chosen_from_the_settings_too(okun: Okun, chat: Room) -> None:
    [shown] = await chat.say("/settings")
    pressed = await chat.press(okun.t("fishing.button.pair"), message=shown)
    assert okun.t("fishing.pair", pair="TON") in pressed.message.text
    back = await chat.press(okun.t("menu.back"), message=pressed.message)
    assert okun.t("settings.private") in back.message.text
    pressed = await chat.press(okun.t("fishing.button.pair"), message=back.message)
    await chat.press("SOL", message=pressed.message)
    assert (await bot.chat_settings(okun.app, chat.id)).pair == "SOL"


@pytest.mark.parametrize("arg", ["", "XRP", "ton", "TON'"])
async def test_forged_pairs_are_refused(okun: Okun, chat: Room, arg: str) -> None:
    await chat.say("/help")
    with pytest.raises(bot.BotError, match=r"button\.old"):
        await bot.pair_act(okun.app, who(chat), ANNA, arg)


@pytest.mark.parametrize("what", ["", "menu", "admin", "catch", "nonsense"])
async def test_forged_buttons_of_the_game_are_refused(okun: Okun, chat: Room, what: str) -> None:
    [line] = await chat.say("/cast")
    pressed = await chat.press_data(bot.PondPress(owner=ANNA, what=what).pack(), line)
    assert pressed.note == okun.t("button.old") and not pressed.replies


async def test_a_catch_is_shown_to_nobody_else(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    [(catch_id,)] = okun.rows("SELECT id FROM catches")
    for forged in (str(catch_id), "0", "x", "9" * 30):
        with pytest.raises(bot.BotError, match=r"button\.old"):
            await bot.panel_for(okun.app, who(chat, BORYS), "catch", BORYS, forged)


@pytest.mark.parametrize("name", ["pond", "line", "rods", "rodbuy", "pair"])
async def test_the_menus_cost_one_read_at_most(okun: Okun, chat: Room, name: str) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    for _ in range(2):
        before = okun.app.db.reader.reads
        await bot.panel_for(okun.app, who(chat), name, ANNA, "3" if name == "rodbuy" else "")
    assert okun.app.db.reader.reads - before <= 1


async def test_what_the_game_costs_the_database(
    okun: Okun, chat: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begin(okun, chat)
    await give(okun, 100)
    ways: list[Any] = []
    execute: Any = okun.app.db._writer._execute

    async def counted(work: Any, *args: Any) -> Any:
        ways.append(work)
        return await execute(work, *args)

    async def no_drawing(*args: Any) -> None:
        """What a model draws beside it is paid for by nobody who waits."""

    monkeypatch.setattr(okun.app.db._writer, "_execute", counted)
    monkeypatch.setattr(bot, "want_drawing", no_drawing)
    costs = {}
    for command in ("/cast", "/status", "/hook", "/catches", "/top"):
        if command == "/hook":
            await later(70)
            moved(okun, 5)
        ways.clear()
        before = okun.app.db.reader.reads
        await chat.say(command)
        costs[command] = okun.app.db.reader.reads - before, len(ways)
    # the inbox and the answer are a way to the writer each; a deal is five, however many share it
    assert costs == {"/cast": (1, 7), "/status": (1, 2), "/hook": (3, 7), "/catches": (1, 2), "/top": (1, 2)}


# -- prices that fail


async def test_without_a_price_the_water_is_for_practice(okun: Okun, chat: Room, later: Later) -> None:
    okun.exchange.fault = OSError("unreachable")
    chat.put("say", "/cast")
    await okun.take()
    await later(20)
    assert okun.t("fishing.practice") in chat.replies[-1].text
    assert okun.rows("SELECT practice FROM fishing_lines") == [(1,)]
    okun.exchange.fault = None
    await later(60)
    [entry] = okun.rows("SELECT entry FROM fishing_lines")[0]
    status = text(await chat.say("/status"))
    assert okun.t("fishing.practice") in status
    expected = bot.pnl_of(entry, bot.made_up_price(okun.app, "TON").usd, 2.0)
    assert bot.pnl_words("en", expected) in status
    asked = okun.exchange.asked
    caught = text(await chat.say("/hook"))
    assert okun.t("fishing.practice") in caught and okun.exchange.asked == asked
    [(practice, pnl)] = okun.rows("SELECT practice, pnl FROM catches")
    assert practice == 1 and pnl == expected


async def test_a_practice_line_goes_on_after_a_restart(okun: Okun, chat: Room, later: Later) -> None:
    okun.exchange.fault = 404
    await chat.say("/cast")
    await later(600)
    before = text(await chat.say("/status"))
    await okun.restart()
    assert text(await chat.say("/status")) == before


async def test_a_real_line_is_never_pulled_against_practice(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    before = okun.rows("SELECT * FROM fishing_lines"), okun.rows(BALANCES)
    okun.exchange.fault = 404
    await later(61)
    assert text(await chat.say("/hook")) == okun.t("fishing.no_price")
    status = text(await chat.say("/status"))
    assert okun.t("fishing.no_price") in status and "$5.0000" in status and "%" not in status
    pressed = await chat.press(okun.t("fishing.button.hook"))
    assert pressed.note == okun.t("fishing.no_price")
    assert (okun.rows("SELECT * FROM fishing_lines"), okun.rows(BALANCES)) == before
    okun.exchange.fault = None
    await later(11)
    moved(okun, 3)
    assert "+6.0 %" in text(await chat.say("/hook"))


async def test_a_line_whose_price_never_comes_back_can_be_given_up(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    okun.exchange.prices.pop("TON")
    await later(bot.CUT_S - 100)
    [blind] = await chat.say("/status")
    cut = f"d1:{ANNA}:cut:"
    assert cut not in blind.data and (await chat.press_data(cut, blind)).note == okun.t("button.old")
    await later(100)
    [stuck] = await chat.say("/status")
    assert okun.t("fishing.stuck") in stuck.text
    okun.exchange.prices["TON"] = 5.0
    await later(11)
    assert (await chat.press_data(cut, stuck)).note == okun.t("fishing.answers_again") and lines(okun) == 1
    okun.exchange.prices.pop("TON")
    await later(100)
    before = have(okun)
    pressed = await chat.press_data(cut, stuck)
    assert pressed.note == okun.t("fishing.cut") and lines(okun) == 0
    assert have(okun) == before + 1 and changes(okun)[-1] == ("bait", "undone", 1)
    assert (await chat.press_data(cut, stuck)).note == okun.t("fishing.no_line")


async def test_who_sees_no_price_is_not_taught_to_read_it(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/cast")
    okun.exchange.prices.pop("TON")
    await later(100)
    assert "🐣" not in text(await chat.say("/status")) and okun.rows("SELECT lessons FROM anglers") == [(1,)]


async def test_an_old_price_says_how_old_it_is(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/cast")
    okun.exchange.fault = 404
    await later(40)
    assert okun.t("fishing.old_price", age="40 seconds") in text(await chat.say("/status"))


@settings(max_parallel_updates=1)
async def test_nobody_else_waits_while_the_exchange_is_silent(okun: Okun, chat: Room) -> None:
    okun.exchange.open = asyncio.Event()
    borys = okun.private("Borys")
    chat.put("say", "/cast")
    await okun.take()
    assert lines(okun) == 0 and len(await borys.say("/help")) == 1
    okun.exchange.open.set()
    await okun.settle()
    assert lines(okun) == 1 and "$5.0000" in chat.replies[-1].text


# -- at once


async def test_two_casts_at_once_make_one_line(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    casts = (bot.cast(okun.app, who(chat, update_id=n)) for n in (101, 102))
    done = await asyncio.gather(*casts, return_exceptions=True)
    assert [type(one) for one in done] == [bot.Line, bot.BotError]
    assert lines(okun) == 1 and have(okun) == 9


async def test_ten_casts_with_one_bait_spend_one(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    async with bot.money(okun.app, ANNA) as tx:
        await bot.post(tx, ANNA, "bait", -9, "undone", "test", NOON)
    ponds = [okun.group(f"Pond {n}") for n in range(10)]
    for pond in ponds:
        await pond.say("/help")
    casts = (bot.cast(okun.app, who(pond, update_id=n)) for n, pond in enumerate(ponds, 100))
    done = await asyncio.gather(*casts, return_exceptions=True)
    assert Counter(type(one) for one in done) == {bot.Line: 1, bot.BotError: 9}
    assert lines(okun) == 1 and have(okun) == 0


@pytest.mark.parametrize("hooks", [2, 10])
async def test_two_hooks_at_once_pay_once(okun: Okun, chat: Room, later: Later, hooks: int) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    await later(60)
    moved(okun, 10)
    await later(11)
    pulls = (bot.hook(okun.app, who(chat, update_id=n)) for n in range(200, 200 + hooks))
    done = await asyncio.gather(*pulls, return_exceptions=True)
    assert Counter(type(one) for one in done) == {bot.Catch: 1, bot.BotError: hooks - 1}
    assert have(okun, "dollars") == 200 and len(okun.rows("SELECT * FROM catches")) == 2


async def test_a_hook_and_a_cast_at_once_do_not_mix(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    await later(60)
    await asyncio.gather(bot.hook(okun.app, who(chat, update_id=300)), bot.cast(okun.app, who(chat, update_id=301)),
                         return_exceptions=True)  # fmt: skip
    assert have(okun) + lines(okun) + len(okun.rows("SELECT * FROM catches")) == 11  # one catch was free


async def test_five_hundred_who_cast_within_a_second_ask_once(okun: Okun) -> None:
    rooms = [okun.private(f"Angler {n}") for n in range(500)]
    for room in rooms:
        room.put("say", "/cast")
    await okun.take()
    assert [len(room.replies) for room in rooms] == [1] * 500
    assert lines(okun) == 500 and okun.exchange.asked == 1
    assert okun.rows("SELECT sum(amount) FROM balances") == [(5000,)]


async def test_one_that_fails_takes_nobody_along(okun: Okun, chat: Room) -> None:
    for n in range(5):
        await give(okun, 1, user_id=1000 + n)

    async def spend(tx: bot.Tx, user_id: int) -> int:
        await bot.post(tx, user_id, "bait", -1, "cast", f"spend {user_id}", NOON)
        if user_id == 1002:
            raise RuntimeError("odd")
        return user_id

    def deal(user_id: int) -> Any:
        return bot.deal(okun.app, user_id, lambda tx: spend(tx, user_id))

    done = await asyncio.gather(*(deal(1000 + n) for n in range(5)), return_exceptions=True)
    assert [one if isinstance(one, int) else type(one) for one in done] == [1000, 1001, RuntimeError, 1003, 1004]
    assert [have(okun, "bait", 1000 + n) for n in range(5)] == [0, 0, 1, 0, 0]


async def test_many_deals_are_one_way_to_the_database(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    await chat.say("/help")
    for n in range(50):
        await give(okun, 1, user_id=1000 + n)
    ways: list[Any] = []
    execute: Any = okun.app.db._writer._execute

    async def counted(work: Any, *args: Any) -> Any:
        ways.append(work)
        return await execute(work, *args)

    monkeypatch.setattr(okun.app.db._writer, "_execute", counted)

    def cast(user_id: int) -> Any:
        water = bot.Quote(ENTRY)
        return bot.deal(okun.app, user_id, lambda tx: bot.take_cast(tx, who(chat, user_id), "TON", water, NOON, 1))

    made: list[Any] = await asyncio.gather(*(cast(1000 + n) for n in range(50)))
    assert all(isinstance(line, bot.Line) for line in made)
    assert len(ways) <= 6  # were it one for each query, it would be hundreds


async def test_a_deal_may_wait_for_nothing_but_its_queries(okun: Okun, chat: Room) -> None:
    await give(okun, 1)

    async def slow(tx: bot.Tx) -> None:
        await bot.post(tx, ANNA, "bait", -1, "cast", "slow", NOON)
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits for something else"):
        await bot.deal(okun.app, ANNA, slow)
    assert have(okun) == 1


# -- after a crash


@pytest.mark.parametrize("command", ["/cast", "/hook"])
async def test_what_was_settled_before_a_crash_is_shown_after_it(
    okun: Okun, chat: Room, later: Later, command: str
) -> None:
    await begin(okun, chat)
    await give(okun, 100, "dollars")
    if command == "/hook":
        await chat.say("/cast")
        await later(61)
        moved(okun, 5)
        await later(11)
    shown = len(chat.replies)
    okun.wire.hold("sendMessage")
    okun.wire.hold("sendPhoto")
    chat.put("say", command)
    await okun.take()
    before = okun.rows(BALANCES), okun.rows("SELECT * FROM fishing_lines"), okun.rows("SELECT * FROM catches")
    await okun.restart()
    after = okun.rows(BALANCES), okun.rows("SELECT * FROM fishing_lines"), okun.rows("SELECT * FROM catches")
    assert before == after and len(before[2]) == (2 if command == "/hook" else 1)
    [reply] = chat.replies[shown:]
    assert ("+10.0 %" if command == "/hook" else "$5.0000") in reply.text
    assert okun.t("fishing.has_line") not in reply.text
    assert okun.inbox_rows == []


async def test_a_cast_before_a_crash_that_took_the_last_bait_is_shown_too(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    async with bot.money(okun.app, ANNA) as tx:
        await bot.post(tx, ANNA, "bait", -9, "undone", "test", NOON)
    okun.wire.hold("sendMessage")
    chat.put("say", "/cast")
    await okun.take()
    await okun.restart()
    assert have(okun) == 0 and "Plop" in chat.replies[-1].text


async def test_a_hook_does_not_overtake_a_cast_that_a_stop_left_unsaid(okun: Okun, chat: Room) -> None:
    await begin(okun, chat)
    okun.wire.down = True
    chat.put("say", "/cast")
    await okun.take()
    moved(okun, 5)
    okun.app.looks.forget("")
    chat.put("say", "/hook")
    await okun.take()
    shown = len(chat.replies)
    draining = asyncio.ensure_future(okun.inbox.drain(20))
    await okun.later(21)
    await draining
    assert (lines(okun), have(okun)) == (1, 9)
    await okun.crash()
    okun.telegram.calls.clear()
    await okun.open()
    await okun.later(20)
    assert (lines(okun), have(okun), len(okun.rows("SELECT * FROM catches"))) == (0, 9, 2)
    assert ["+10.0 %" in reply.text for reply in chat.replies[shown:]] == [False, True]
    assert okun.inbox_rows == []


@settings(commands_per_minute=3)
async def test_what_comes_as_a_new_message_counts_as_a_command(okun: Okun, chat: Room, later: Later) -> None:
    await begin(okun, chat)
    await later(61)
    caught = chat.replies[-1]
    pressed = [await chat.press(okun.t("fishing.button.pond"), message=caught) for _ in range(5)]
    assert [len(one.replies) for one in pressed] == [1, 1, 1, 0, 0] and pressed[3].note


def check_all(rows: Callable[..., list[Any]]) -> None:
    """What must hold of all rows, whatever happened."""
    assert rows(SUMS) == rows(BALANCES)
    assert rows("SELECT * FROM balances WHERE amount < 0") == []
    taken = {row[0] for row in rows("SELECT reference FROM ledger WHERE reason = 'cast'")}
    in_water = {row[0] for row in rows("SELECT id FROM fishing_lines")}
    out = [row[0] for row in rows("SELECT line_id FROM catches")]
    assert len(out) == len({*out}) and not in_water & {*out}
    cast = in_water | {*out}
    assert taken <= {f"cast {line_id}" for line_id in cast}
    free = len(cast) - len(taken)
    assert free == rows("SELECT count(*) FROM anglers WHERE lessons > 0")[0][0]  # the first of each
    posted = dict(rows("SELECT reference, delta FROM ledger WHERE reason = 'catch'"))
    caught = rows("SELECT line_id, dollars, stake, pnl, entry, exit, leverage FROM catches")
    assert posted == {f"catch {line_id}": dollars for line_id, dollars, *_ in caught if dollars}
    for _, dollars, stake, pnl, entry, exit_, leverage in caught:
        due = bot.dollars_of(stake, pnl)
        assert pnl == bot.pnl_of(entry, exit_, leverage) and (dollars == due or due < dollars <= 0)
    gained: Counter[int] = Counter()
    for user_id, fish in rows("SELECT user_id, fish FROM catches"):
        gained[user_id] += bot.EXPERIENCE[bot.FISH[fish].rarity]
    assert {user_id: n for user_id, n in rows("SELECT user_id, experience FROM anglers") if n} == gained
    given = rows("SELECT user_id, count(*), sum(delta) FROM ledger WHERE reason = 'bait_start' GROUP BY 1")
    assert all(row[1:] == (1, 10) for row in given)
    kinds = rows("SELECT user_id, fish, sum(first) FROM catches GROUP BY 1, 2")
    assert all(first == 1 for *_, first in kinds)


async def test_everything_adds_up_after_five_hundred_acts_and_twenty_kills(okun: Okun) -> None:
    dice = random.Random(11)
    okun.dice.always = None
    people = [okun.private(f"Angler {n}") for n in range(50)]
    group = okun.group("Pond", *(room.by for room in people))
    for kill in range(20):
        for _ in range(25):
            room = dice.choice(people)
            pond = dice.choice([room, group])
            pond.put("say", dice.choice(["/cast", "/hook", "/cast", "/hook", "/status"]), by=room.by)
        moved(okun, dice.uniform(-30, 30))
        okun.exchange.fault = 404 if dice.random() < 0.15 else None
        taking = asyncio.create_task(okun.take())
        for _ in range(dice.randrange(400)):
            await asyncio.sleep(0)
        if dice.random() < 0.3:
            await taking
        await asyncio.gather(taking, return_exceptions=True) if taking.done() else taking.cancel()
        await okun.restart()
        check_all(okun.rows)
        okun.clock.passed += dice.choice([5, 61, 3600, 90_000 if kill % 7 == 0 else 100])
    await okun.settle()
    check_all(okun.rows)
    assert okun.inbox_rows == []
    assert len(okun.rows("SELECT * FROM catches")) > 25 and len(okun.rows("SELECT DISTINCT user_id FROM catches")) > 20


# -- moving, forgetting, export


async def test_a_line_goes_along_when_the_group_becomes_a_supergroup(okun: Okun, group: Room, later: Later) -> None:
    await group.say("/cast", by="Anna")
    await bot.set_chat(okun.app, group.id, pair="ETH")
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    await later(100)
    moved(okun, 5)
    assert "+10.0 %" in text(await new.say("/hook", by="Anna"))
    assert "ETH" in text(await new.say("/cast", by="Anna"))
    assert okun.rows("SELECT user_id, catches FROM standings WHERE pond = ?", new.id) == [(ANNA, 1)] * 4
    assert okun.rows("SELECT DISTINCT pond FROM standings") == [(new.id,), (0,)]


async def test_a_hook_goes_on_when_the_group_becomes_a_supergroup_meanwhile(
    okun: Okun, group: Room, later: Later
) -> None:
    await begin(okun, group)
    await group.say("/cast", by="Anna")
    await later(61)
    moved(okun, 5)
    okun.exchange.open = asyncio.Event()
    group.put("say", "/hook", by="Anna")
    await okun.take()
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    okun.exchange.open.set()
    await okun.settle()
    assert "+10.0 %" in new.replies[-1].text and lines(okun) == 0
    assert okun.rows("SELECT chat_id FROM catches") == [(new.id,)] * 2 and okun.inbox_rows == []


async def test_a_cast_into_a_group_that_is_no_more_costs_nothing(okun: Okun, group: Room, later: Later) -> None:
    await begin(okun, group)
    await later(61)
    before = okun.rows(BALANCES)
    okun.exchange.open = asyncio.Event()
    group.put("say", "/cast", by="Anna")
    await okun.take()
    new = Room(okun, okun.telegram.migrate(group.chat))
    await okun.take()
    okun.exchange.open.set()
    await okun.settle()
    assert new.replies[-1].text == okun.t("button.old") and okun.inbox_rows == []
    assert okun.rows(BALANCES) == before and lines(okun) == 0
    okun.exchange.open = None
    await new.say("/cast", by="Anna")
    assert lines(okun) == 1


async def test_of_two_lines_in_what_becomes_one_pond_one_stays_and_the_other_is_paid_back(
    okun: Okun, group: Room, later: Later
) -> None:
    await begin(okun, group)
    await group.say("/cast", by="Anna")
    migrated = okun.telegram.migrate(group.chat)
    new, waiting = Room(okun, migrated), okun.telegram.next_updates()
    await new.say("/cast", by="Anna")
    await later(61)
    await new.say("/hook", by="Anna")
    await new.say("/cast", by="Anna")
    assert have(okun) == 7
    await okun.feed(*waiting)
    assert lines(okun) == 1 and have(okun) == 8 and changes(okun)[-1] == ("bait", "undone", 1)
    assert okun.rows("SELECT catches FROM standings WHERE pond <> 0 AND period = 'day'") == [(2,)]
    assert okun.rows("SELECT count(*) FROM catches WHERE chat_id = ?", new.id) == [(2,)]


async def test_forgetting_here_takes_the_line_and_the_catches_of_this_pond(okun: Okun, group: Room) -> None:
    await begin(okun, group)
    await begin(okun, okun.private("Anna"))
    await group.say("/cast", by="Anna")
    await group.say("/cast", by="Borys")
    await bot.forget_person(okun.app, ANNA, [group.id], everywhere=False)
    assert okun.rows("SELECT user_id FROM fishing_lines") == [(BORYS,)]
    assert okun.rows("SELECT chat_id FROM catches") == [(ANNA,)]
    assert okun.rows("SELECT pond FROM standings WHERE pond <> 0 AND period = 'day'") == [(ANNA,)]
    assert okun.rows("SELECT catches FROM standings WHERE pond = 0 AND period = 'all'") == [(1,)]
    assert have(okun) == 8


async def test_forgetting_everywhere_leaves_the_mark_alone(okun: Okun, group: Room, chat: Room) -> None:
    await begin(okun, group)
    await chat.say("/cast")
    await bot.forget_person(okun.app, ANNA, [group.id, chat.id], everywhere=True)
    for table in ("fishing_lines", "catches", "standings", "anglers", "ledger", "balances"):
        assert okun.rows(f"SELECT * FROM {table}") == [], table
    assert okun.rows("SELECT user_id FROM starting_grants") == [(ANNA,)]
    assert text(await group.say("/hook", by="Anna")) == okun.t("fishing.no_line")


async def test_the_export_holds_the_fishing(okun: Okun, chat: Room, tmp_path: Any) -> None:
    await begin(okun, chat)
    await chat.say("/cast")
    [path] = await bot.write_export(okun.app, ANNA, tmp_path)
    fishing = json.loads(path.read_text())["fishing"]
    assert fishing["angler"]["rod"] == "2" and fishing["first_bait"] == NOON
    [caught], [line] = fishing["catches"], fishing["lines_in_the_water"]
    assert caught["entry"] == line["entry"] == ENTRY and caught["fish"] in bot.FISH


# -- the introduction


async def test_the_introduction_goes_on_with_each_step(okun: Okun, chat: Room, later: Later) -> None:
    def lessons() -> int:
        return int(okun.rows("SELECT lessons FROM anglers")[0][0])

    assert okun.t("fishing.lesson.1") in text(await chat.say("/cast")) and lessons() == 1
    assert okun.t("fishing.lesson.2") in text(await chat.say("/status")) and lessons() == 2
    assert okun.t("fishing.lesson.2") in text(await chat.say("/status"))
    await later(60)
    await chat.say("/hook")
    assert lessons() == bot.LESSONS
    assert "🐣" not in text(await chat.say("/cast")) and "🐣" not in text(await chat.say("/status"))


@pytest.mark.parametrize(("rod", "wager"), [("2", "If TON goes up you win"), ("-2", "If TON goes down you win")])
async def test_whoever_casts_for_the_first_time_is_told_what_wins(okun: Okun, chat: Room, rod: str, wager: str) -> None:
    await bot.take_up_rod(okun.app, ANNA, rod)
    first = text(await chat.say("/cast"))
    assert wager in first and "×2" in first
    assert wager not in text(await chat.say("/status"))


async def test_only_the_free_cast_is_called_free(okun: Okun, group: Room, chat: Room) -> None:
    assert okun.t("fishing.lesson.1") in text(await group.say("/cast"))
    second = text(await chat.say("/cast"))
    assert have(okun) == 9 and okun.t("fishing.lesson.1") not in second and "you win" not in second
    assert okun.t("fishing.lesson.2") in text(await chat.say("/status"))
