"""What people have: never negative, changed once for each reference, always the sum of its changes."""

from __future__ import annotations

import asyncio
import random
import sqlite3

import pytest
from conftest import ANNA, BORYS, NOON, Okun, Room

import bot

SUMS = "SELECT user_id, currency, sum(delta) FROM ledger GROUP BY user_id, currency"
BALANCES = "SELECT user_id, currency, amount FROM balances"


@pytest.fixture(autouse=True)
async def people(okun: Okun) -> None:
    async with okun.app.db.tx() as tx:
        for user_id in (ANNA, BORYS):
            await bot.ensure_person(tx, user_id)


async def give(okun: Okun, amount: int, reference: str, user_id: int = ANNA, currency: str = "coins") -> bool:
    async with bot.money(okun.app, user_id) as tx:
        return await bot.post(tx, user_id, currency, amount, "pack", reference, NOON)


async def have(okun: Okun, user_id: int = ANNA) -> dict[str, int]:
    return {**await bot.balance_of(okun.app, user_id)}


async def test_a_change_is_made_once_for_its_reference(okun: Okun) -> None:
    assert await give(okun, 100, "a") and not await give(okun, 100, "a") and not await give(okun, -5, "a")
    assert await have(okun) == {"coins": 100}
    assert okun.rows("SELECT delta, reason, reference, posted_at FROM ledger") == [(100, "pack", "a", int(NOON))]


async def test_currencies_and_people_are_kept_apart(okun: Okun) -> None:
    await give(okun, 100, "a")
    await give(okun, 7, "b", currency="bait")
    await give(okun, 3, "c", BORYS)
    assert (await have(okun), await have(okun, BORYS)) == ({"coins": 100, "bait": 7}, {"coins": 3})


@pytest.mark.parametrize("start", [0, 4])
async def test_nobody_spends_what_is_not_there(okun: Okun, start: int) -> None:
    if start:
        await give(okun, start, "a")
    with pytest.raises(bot.BotError) as caught:
        await give(okun, -5, "b")
    assert caught.value.key == "ledger.short"
    assert bot.error_text(okun.app, "en", caught.value) == okun.t("ledger.short", need=5, have=start, icon="🪙")
    assert (await have(okun)).get("coins", 0) == start and len(okun.rows("SELECT * FROM ledger")) == bool(start)


async def test_a_transaction_goes_on_after_a_spend_that_fell_short(okun: Okun) -> None:
    async with bot.money(okun.app, ANNA) as tx:
        with pytest.raises(bot.BotError):
            await bot.post(tx, ANNA, "coins", -5, "pack", "a", NOON)
        assert await bot.post(tx, ANNA, "coins", 5, "pack", "b", NOON)
    assert await have(okun) == {"coins": 5} and okun.rows("SELECT reference FROM ledger") == [("b",)]


async def test_a_spend_and_its_effect_go_together(okun: Okun) -> None:
    await give(okun, 5, "a")
    with pytest.raises(RuntimeError):
        async with bot.money(okun.app, ANNA) as tx:
            await bot.post(tx, ANNA, "coins", -5, "pack", "b", NOON)
            raise RuntimeError
    assert await have(okun) == {"coins": 5}


@pytest.mark.parametrize(
    ("user_id", "currency", "delta", "reason", "kind"),
    [(ANNA, "gold", 1, "pack", ValueError), (ANNA, "coins", 1, "because", ValueError),
     (ANNA, "coins", 0, "pack", sqlite3.IntegrityError), (404, "coins", 1, "pack", sqlite3.IntegrityError),
     (ANNA, "coins", 2**63 - 1, "pack", sqlite3.IntegrityError)],
)  # fmt: skip
async def test_what_makes_no_sense_is_a_fault_and_no_lack_of_money(
    okun: Okun, user_id: int, currency: str, delta: int, reason: str, kind: type[Exception]
) -> None:
    await give(okun, 5, "a")
    with pytest.raises(kind):
        async with bot.money(okun.app, user_id) as tx:
            await bot.post(tx, user_id, currency, delta, reason, "b", NOON)
    assert okun.rows(BALANCES) == [(ANNA, "coins", 5)] and len(okun.rows("SELECT * FROM ledger")) == 1


async def test_of_two_spends_at_once_one_wins(okun: Okun) -> None:
    await give(okun, 10, "a")
    done = await asyncio.gather(*(give(okun, -7, f"spend {n}") for n in range(2)), return_exceptions=True)
    assert [one for one in done if one is True] == [True]
    assert [one.key for one in done if isinstance(one, bot.BotError)] == ["ledger.short"]
    assert await have(okun) == {"coins": 3}


async def test_twenty_spends_at_once_never_go_below_nothing(okun: Okun) -> None:
    await give(okun, 50, "a")
    done = await asyncio.gather(*(give(okun, -7, f"spend {n}") for n in range(20)), return_exceptions=True)
    assert done.count(True) == 7 and await have(okun) == {"coins": 1}


async def test_a_loss_stops_at_nothing(okun: Okun) -> None:
    await give(okun, 5, "a")
    taken = []
    for reference in ("b", "b", "c", "d"):
        async with bot.money(okun.app, ANNA) as tx:
            taken.append(await bot.post_loss(tx, ANNA, "coins", 3, "pack", reference, NOON))
    assert taken == [3, 0, 2, 0] and await have(okun) == {"coins": 0}


async def test_somebody_unknown_has_nothing_to_lose(okun: Okun) -> None:
    async with bot.money(okun.app, 404) as tx:
        assert await bot.post_loss(tx, 404, "coins", 3, "pack", "a", NOON) == 0


async def test_a_change_is_undone_at_most_once(okun: Okun) -> None:
    await give(okun, 10, "a")
    await give(okun, -4, "b")

    async def undo() -> bool:
        async with bot.money(okun.app, ANNA) as tx:
            return await bot.refund(tx, "b", NOON)

    assert sorted(await asyncio.gather(undo(), undo(), undo())) == [False, False, True]
    assert await have(okun) == {"coins": 10}
    assert okun.rows("SELECT delta, reference FROM ledger")[-1] == (4, "refund:b")


async def test_what_never_happened_is_not_undone(okun: Okun) -> None:
    async with bot.money(okun.app, ANNA) as tx:
        assert not await bot.refund(tx, "nothing", NOON)


async def test_what_was_given_and_spent_cannot_be_undone(okun: Okun) -> None:
    await give(okun, 10, "a")
    await give(okun, -4, "b")
    with pytest.raises(bot.BotError, match=r"ledger\.short"):
        async with bot.money(okun.app, ANNA) as tx:
            await bot.refund(tx, "a", NOON)
    assert await have(okun) == {"coins": 6}


async def test_balances_are_the_sums_of_the_ledger_after_300_random_operations(okun: Okun) -> None:
    dice, references = random.Random(5), [f"r{n}" for n in range(200)]  # some come twice

    async def operate() -> None:
        user_id, currency = dice.choice((ANNA, BORYS)), dice.choice([*bot.ICONS])
        reference, amount, what = dice.choice(references), dice.randint(1, 40), dice.randrange(4)
        async with bot.money(okun.app, user_id) as tx:
            if what == 0:
                await bot.post_loss(tx, user_id, currency, amount, "pack", reference, NOON)
            elif what == 1:
                await bot.refund(tx, reference, NOON)
            else:
                await bot.post(tx, user_id, currency, dice.choice((1, -1)) * amount, "pack", reference, NOON)

    done = await asyncio.gather(*(operate() for _ in range(300)), return_exceptions=True)
    assert {type(one) for one in done} == {type(None), bot.BotError}
    assert sorted(okun.rows(BALANCES)) == sorted(okun.rows(SUMS))
    assert len(okun.rows("SELECT * FROM ledger")) > 100 and min(row[2] for row in okun.rows(BALANCES)) >= 0
    assert all(reference.startswith(("r", "refund:r")) for (reference,) in okun.rows("SELECT reference FROM ledger"))


async def test_what_is_cached_of_a_balance_is_forgotten_with_each_change(okun: Okun) -> None:
    await give(okun, 10, "a")
    assert await have(okun) == {"coins": 10}
    reads = okun.app.db.reader.reads
    assert await have(okun) == {"coins": 10} and okun.app.db.reader.reads == reads
    await give(okun, 5, "b")
    assert await have(okun) == {"coins": 15}


async def test_a_balance_that_is_being_read_during_a_change_is_not_kept(okun: Okun) -> None:
    reading = asyncio.ensure_future(have(okun))
    await asyncio.sleep(0)
    await give(okun, 10, "a")
    await reading
    assert await have(okun) == {"coins": 10}


async def test_the_last_changes_come_newest_first_and_in_pages(okun: Okun) -> None:
    for n in range(5):
        await give(okun, n + 1, f"a{n}", BORYS if n == 2 else ANNA)
    first = await bot.operations_of(okun.app.db.reader, ANNA, 1 << 62, 3)
    second = await bot.operations_of(okun.app.db.reader, ANNA, first[-1]["id"], 3)
    assert [[row["delta"] for row in page] for page in (first, second)] == [[5, 4, 2], [1]]


async def test_a_ledger_outlives_a_restart(okun: Okun, chat: Room) -> None:
    await give(okun, 10, "a")
    await okun.restart()
    assert not await give(okun, 10, "a") and await have(okun) == {"coins": 10}


async def test_what_somebody_has_is_said_without_what_they_have_nothing_of() -> None:
    assert bot.amount_words({"dollars": 3, "coins": 5, "bait": 0}) == "5 🪙, 3 💵"
    assert (bot.amount_words({}), bot.signed(3), bot.signed(-3)) == ("", "+3", "−3")
    assert bot.amount_words({"dollars": 9999, "coins": 10_000}) == "10\u202f000 🪙, 9999 💵"
    assert (bot.signed(-1234567), bot.with_spaces(-12_000)) == ("−1\u202f234\u202f567", "-12\u202f000")


# -- a power cut


async def synchronous(okun: Okun) -> int:
    """0 off, 1 normal, 2 full, of the connection that writes."""
    [(level,)] = await okun.app.db._writer.execute_fetchall("PRAGMA synchronous")
    return int(level)


async def test_money_is_synced_and_nothing_else(okun: Okun) -> None:
    async with bot.money(okun.app, ANNA):
        assert await synchronous(okun) == 2
    assert await synchronous(okun) == 1
    async with okun.app.db.tx():
        assert await synchronous(okun) == 1


async def test_after_an_error_nothing_is_synced_any_more(okun: Okun) -> None:
    with pytest.raises(RuntimeError):
        async with bot.money(okun.app, ANNA):
            raise RuntimeError
    assert await synchronous(okun) == 1


@pytest.mark.parametrize("turns", range(12))
async def test_after_a_cancellation_nothing_is_synced_any_more(okun: Okun, turns: int) -> None:
    task = asyncio.ensure_future(give(okun, 10, "a"))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert await synchronous(okun) == 1 and not okun.app.db._writer.in_transaction
    assert await have(okun) == dict.fromkeys(["coins"] * len(okun.rows("SELECT * FROM ledger")), 10)
    assert await give(okun, 1, "b")
