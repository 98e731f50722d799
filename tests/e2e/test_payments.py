"""Stars over HTTP: a purchase, a kill between the payment and the thanks, a refund whose answer is lost."""

from __future__ import annotations

from fakes import until

from .conftest import PATIENCE, TEXTS, Person, Stage

LABEL = "100 🪙 – 50 ⭐"


async def invoice(stage: Stage, person: Person) -> None:
    """Ask for one."""
    count = len(stage.replies(person))
    stage.says(person, "/buy")
    await stage.replied(person, count + 1)
    stage.telegram.press(person.chat, person.user, LABEL)
    await stage.telegram.until(lambda: any("invoice" in message for message in stage.telegram.sent(person.chat)))


def thanks(stage: Stage, person: Person, have: int) -> int:
    """How often it thanked for a payment after which there was so much."""
    return stage.replies(person).count(TEXTS["buy"]["thanks"].format(given="100 🪙", have=f"{have} 🪙"))


async def test_a_kill_between_a_payment_and_the_thanks_costs_nothing_and_gives_nothing(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    okun = await stage.bot().start()
    await invoice(stage, anna)
    telegram.fault("timeout", "sendMessage")
    telegram.pay(anna.chat, anna.user)
    await until(lambda: not telegram.faults and okun.rows("SELECT * FROM payments"), PATIENCE)
    assert okun.rows("SELECT amount FROM balances") == [(100,)] and thanks(stage, anna, 100) == 0
    await okun.kill()
    await okun.start()
    await stage.settled(okun)
    assert okun.rows("SELECT amount FROM balances") == [(100,)] and thanks(stage, anna, 100) == 1
    assert stage.parked(okun) == 0


async def test_a_payment_that_came_while_the_bot_was_down_counts(stage: Stage) -> None:
    telegram, anna = stage.telegram, stage.person()
    okun = await stage.bot().start()
    await invoice(stage, anna)
    telegram.fault("slow", "answerPreCheckoutQuery", seconds=1.0)  # it says yes, and hears no more
    telegram.pay(anna.chat, anna.user)
    await telegram.until(lambda: telegram.payments, PATIENCE)
    await okun.kill()
    await okun.start()
    await telegram.until(lambda: thanks(stage, anna, 100), PATIENCE)
    await stage.settled(okun)
    assert okun.rows("SELECT amount FROM balances") == [(100,)] and thanks(stage, anna, 100) == 1


async def test_a_refund_goes_on_after_a_kill(stage: Stage) -> None:
    telegram, anna, owner = stage.telegram, stage.person(), stage.person("Owner")
    okun = await stage.bot(ADMIN_IDS=owner.user["id"]).start()
    stage.says(owner, "/lang en")
    await invoice(stage, anna)
    telegram.pay(anna.chat, anna.user)
    await telegram.until(lambda: thanks(stage, anna, 100), PATIENCE)
    stage.says(anna, "/paysupport")
    ask = TEXTS["paysupport"]["button"].format(number=1)
    await telegram.until(lambda: TEXTS["paysupport"]["text"] in " ".join(stage.replies(anna)), PATIENCE)
    telegram.press(anna.chat, anna.user, ask)
    await telegram.until(lambda: len(stage.replies(owner)) == 2, PATIENCE)
    buttons = TEXTS["payment"]["button"]
    for label in (buttons["open"], buttons["refund"]):
        telegram.press(owner.chat, owner.user, label)
        await stage.settled(okun)
    telegram.fault("timeout_after", "refundStarPayment")  # carried out, but who knows
    telegram.press(owner.chat, owner.user, buttons["yes"].format(stars=50))
    await until(lambda: not telegram.faults, PATIENCE)
    await okun.kill()
    await okun.start()
    await until(lambda: okun.rows("SELECT state, taken_back FROM payments") == [("refunded", 100)], PATIENCE)
    told = TEXTS["payment"]["refunded_taken"].format(stars=50, taken="100 🪙")
    await stage.telegram.until(lambda: told in stage.replies(anna), PATIENCE)
    await stage.settled(okun)
    assert stage.replies(anna).count(told) == 1
    assert okun.rows("SELECT amount FROM balances") == [(0,)] and [*telegram.payments.values()] == ["refunded"]
