"""Stars, promo codes, balances and refunds: each payment counts once, nothing that was paid is lost, and nobody gets
what they did not pay for, whatever comes twice, at once, forged, or in between two lives of the bot."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, cast

import pytest
from conftest import ANNA, BORYS, NOON, OWNER, TEXTS, Later, Okun, Reply, Room, settings
from fakes import Json

import bot

langs = pytest.mark.parametrize("lang", ["en", "uk", "ru"])
PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
DAY = 86_400


@pytest.fixture(autouse=True)
async def people(okun: Okun) -> None:
    """Everybody has a private chat that the bot remembers."""
    for user in [*okun.telegram.users.values()]:
        row = user["id"], user["first_name"], user["username"], user["language_code"], 1
        await okun.app.db.write({bot.PUT_USER: [row], bot.PUT_CHAT: [(user["id"], "private", user["first_name"])]})


@pytest.fixture
def owner(okun: Okun) -> Room:
    return okun.private("Owner")


def label(pack_id: str) -> str:
    pack = bot.PACKS[pack_id]
    return f"{pack.units} {bot.ICONS[pack.currency]} – {pack.stars} ⭐"


async def order(chat: Room, pack_id: str = "coins100") -> Reply:
    """Have an invoice sent."""
    await chat.say("/buy")
    [invoice] = (await chat.press(label(pack_id))).replies
    return invoice


async def pay(chat: Room, invoice: Reply, by: str | None = None) -> list[Reply]:
    """Press "pay"; what the bot says to that. The payment itself stays with Telegram where the bot refuses."""
    before = {reply.id for reply in chat.replies}
    chat.okun.telegram.pay(chat.chat, chat.okun.person(by or chat.by), invoice.id)
    await chat.okun.take()  # the question before
    await chat.okun.take()  # the payment
    return [reply for reply in chat.replies if reply.id not in before]


async def buy(chat: Room, pack_id: str = "coins100") -> bot.Payment:
    await pay(chat, await order(chat, pack_id))
    return (await payments(chat.okun))[0]


async def payments(okun: Okun) -> list[bot.Payment]:
    return [paid.payment for paid in await bot.payments_newest(okun.app.db.reader, 0, 100)]


def given(okun: Okun, what: str, have: str, lang: str = "en") -> str:
    """What it says to a code that works."""
    return f"{okun.t('promo.given', lang, given=what)} {okun.t('balance.have', lang, have=have)}"


def answers(okun: Okun) -> list[Json]:
    """What the bot said to those who were about to pay."""
    return okun.called("answerPreCheckoutQuery")


async def have(okun: Okun, user_id: int = ANNA) -> int:
    """Coins of somebody, as they are stored."""
    rows = okun.rows("SELECT amount FROM balances WHERE user_id = ? AND currency = 'coins'", user_id)
    [(summed,)] = okun.rows("SELECT coalesce(sum(delta), 0) FROM ledger WHERE user_id = ?", user_id)
    assert rows in ([(summed,)], [] if not summed else None)
    return int(summed)


async def spend(okun: Okun, amount: int, reference: str = "spent", user_id: int = ANNA) -> None:
    async with bot.money(okun.app, user_id) as tx:
        await bot.post(tx, user_id, "coins", -amount, "pack", reference, NOON)


def message_of(okun: Okun, person: str, content: Json, message_id: int = 900, date: float | None = None) -> Json:
    """A service message in somebody's private chat."""
    user = okun.person(person)
    chat = {"id": user["id"], "type": "private", "first_name": person}
    return {"message_id": message_id, "date": int(date or okun.clock.now()), "chat": chat, "from": user, **content}


def paid_update(
    okun: Okun, update_id: int, payload: str = "pack:coins100:1", stars: int = 50, charge: str = "c1", **more: Any
) -> Json:
    paid = {"currency": "XTR", "total_amount": stars, "invoice_payload": payload,
            "telegram_payment_charge_id": charge, "provider_payment_charge_id": ""}  # fmt: skip
    person, date = more.pop("person", "Anna"), more.pop("date", None)
    message = message_of(okun, person, {"successful_payment": paid | more}, date=date)
    return {"update_id": update_id, "message": message}


# -- buying


@langs
async def test_a_pack_is_bought_with_stars(okun: Okun, lang: str) -> None:
    chat = okun.private(PEOPLE[lang])
    [menu] = await chat.say("/buy")
    assert menu.text == okun.t("buy.text_idle", lang)  # nothing costs coins yet, and it says so
    [invoice] = (await chat.press(label("coins500"))).replies
    title = TEXTS.counted(lang, "ledger.name.coins", 500)
    assert invoice.raw["invoice"]["title"] == title and invoice.raw["invoice"]["total_amount"] == 225
    assert okun.called("sendInvoice") == [
        {"chat_id": chat.id, "title": title, "description": okun.t("buy.invoice", lang, units=title),
         "payload": "pack:coins500:1", "currency": "XTR", "prices": [{"label": title, "amount": 225}],
         "start_parameter": "buy"}
    ]  # fmt: skip
    [thanks] = await pay(chat, invoice)
    assert thanks.text == okun.t("buy.thanks", lang, given="500 🪙", have="500 🪙")
    assert await have(okun, chat.id) == 500 and answers(okun)[0]["ok"] is True
    assert okun.rows("SELECT user_id, pack, stars, currency, units, state FROM payments") == [
        (chat.id, "pack:coins500:1", 225, "coins", 500, "paid")
    ]
    assert okun.inbox_rows == []


async def test_one_invoice_may_be_paid_twice_and_counts_twice(okun: Okun, chat: Room) -> None:
    invoice = await order(chat)
    await pay(chat, invoice)
    await pay(chat, invoice)
    assert await have(okun) == 200


@pytest.mark.parametrize(("name", "lang"), [("Anna", "en"), ("Borys", "uk"), ("Vira", "ru")])
@settings(price_avatar=20, price_image=5)
async def test_when_something_costs_coins_the_shop_says_what(okun: Okun, name: str, lang: str) -> None:
    picture, avatar = okun.t("buy.price_image", lang, price=5), okun.t("buy.price_avatar", lang, price=20)
    [shop] = await okun.private(name).say("/buy")
    assert shop.text == f"{okun.t('buy.text', lang)}\n\n{okun.t('buy.costs', lang, what=f'{picture}, {avatar}')}"


async def test_in_a_group_the_shop_opens_in_private(okun: Okun, group: Room) -> None:
    anna = okun.private("Anna")
    [told] = await group.say("/buy")
    assert told.text == okun.t("private.sent") and anna.replies[-1].text == okun.t("buy.text_idle")
    await group.say("/balance")
    pressed = await group.press(okun.t("balance.button.buy"))
    assert [reply.text for reply in pressed.replies] == [okun.t("private.sent")]
    assert len(anna.replies) == 2


async def test_who_never_started_the_bot_gets_a_button_that_leads_to_the_shop(okun: Okun, group: Room) -> None:
    [told] = await group.say("/buy")
    [[link]] = told.raw["reply_markup"]["inline_keyboard"]
    assert link["url"].endswith("?start=buy") and told.text == okun.t("private.start")
    assert (await okun.private("Anna").say("/start buy"))[0].text == okun.t("buy.text_idle")


async def test_an_anonymous_administrator_is_asked_to_come_as_a_person(okun: Okun, group: Room) -> None:
    for command in ("/buy", "/balance", "/promo GIFT"):
        [told] = await group.say(command, by="chat")
        assert told.text == okun.t("balance.anonymous", "uk"), command


# -- the question before a payment


def checkout(okun: Okun, **changes: Any) -> Json:
    okun.private("Anna")
    query: Json = {"id": f"q{changes}", "from": okun.person("Anna"), "currency": "XTR", "total_amount": 50,
             "invoice_payload": "pack:coins100:1"} | changes  # fmt: skip
    okun.telegram.queries[query["id"]] = {"id": query["id"], "order": {}, "chat": ANNA, "from": query["from"]}
    return {"pre_checkout_query": query}


@pytest.mark.parametrize(
    "changes",
    [{"invoice_payload": "pack:gone:1"}, {"invoice_payload": "pack:coins100:2"}, {"invoice_payload": "bait:coins100:1"},
     {"invoice_payload": ""}, {"invoice_payload": "pack:coins100:1\n"}, {"invoice_payload": "pack:" + "x" * 120},
     {"invoice_payload": "pack:__class__:1"}, {"total_amount": 49}, {"total_amount": 51}, {"total_amount": 0},
     {"total_amount": -50}, {"currency": "USD"}],
)  # fmt: skip
@langs
async def test_what_is_not_sold_is_not_paid(okun: Okun, lang: str, changes: Json) -> None:
    okun.private("Anna")
    await okun.feed({"update_id": 5000, **checkout(okun, **(changes | {"from": okun.person(PEOPLE[lang])}))})
    [answer] = answers(okun)
    assert not answer["ok"] and answer["error_message"] == okun.t("buy.gone", lang)
    assert okun.rows("SELECT * FROM payments") == [] and okun.inbox_rows == []


async def test_a_pack_that_is_gone_by_the_time_of_the_payment_is_not_paid(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    invoice = await order(chat)
    monkeypatch.delitem(bot.PACKS, "coins100")
    assert await pay(chat, invoice) == []
    assert answers(okun)[0]["error_message"] == okun.t("buy.gone") and okun.telegram.payments == {}


async def test_who_is_banned_does_not_pay(okun: Okun, chat: Room) -> None:
    invoice = await order(chat)
    await bot.set_access(okun.app, ANNA, "banned")
    assert await pay(chat, invoice) == []
    assert answers(okun)[0]["error_message"] == okun.t("error.not_allowed") and okun.telegram.payments == {}


async def test_the_question_is_answered_while_a_reply_is_being_written(okun: Okun, chat: Room) -> None:
    invoice = await order(chat)
    okun.model.held = True
    await chat.say("A long story, please")
    okun.telegram.pay(chat.chat, okun.person("Anna"), invoice.id)
    await okun.take()
    await okun.take()
    assert answers(okun)[0]["ok"] and await have(okun) == 100 and okun.model.writing
    okun.model.writing[0].end("Once upon a time")
    await okun.settle()


async def test_a_question_that_is_answered_too_late_is_let_go(okun: Okun) -> None:
    await okun.feed({"update_id": 5000, **checkout(okun)})
    okun.telegram.queries.clear()
    stale = checkout(okun, id="stale")
    okun.telegram.queries.clear()
    await okun.feed({"update_id": 5001, **stale})
    assert okun.inbox_rows == [] and not okun.failures


# -- payments that are odd


async def test_a_payment_delivered_twice_counts_once(okun: Okun, chat: Room) -> None:
    await okun.feed(paid_update(okun, 5000), paid_update(okun, 5001))
    await okun.feed(paid_update(okun, 5000))  # the same update again
    await okun.restart()
    await okun.feed(paid_update(okun, 5002))
    assert await have(okun) == 100 and len(await payments(okun)) == 1
    assert chat.replies[-1].text == okun.t("buy.thanks", given="100 🪙", have="100 🪙")


async def test_a_payment_that_was_given_up_is_taken_at_the_next_start(
    okun: Okun, chat: Room, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(bot, "take_payment", fail)
        await okun.feed(paid_update(okun, 5000))
        await later(60)
        assert okun.rows("SELECT parked_at IS NULL FROM inbox") == [(0,)]
    await bot.forget_person(okun.app, ANNA, [chat.id], everywhere=True)
    await later(8 * 86_400)
    await bot.clean(okun.app)
    await okun.restart()
    await okun.settle()
    assert len(await payments(okun)) == 1 and await have(okun) == 100
    assert okun.rows("SELECT count(*) FROM inbox") == [(0,)]


@pytest.mark.parametrize(
    ("payload", "stars", "more"),
    [("pack:gone:1", 50, {}), ("something else", 50, {}), ("pack:coins100:1", 49, {}), ("pack:coins100:1", 5000, {}),
     ("pack:coins100:1", 50, {"currency": "USD"}), ("'; DROP TABLE payments; --", 50, {}), ("_*[`<b>", 1, {})],
)  # fmt: skip
async def test_a_payment_for_what_we_do_not_know_is_kept_and_told(
    okun: Okun, chat: Room, owner: Room, payload: str, stars: int, more: Json
) -> None:
    await okun.feed(paid_update(okun, 5000, payload, stars, **more))
    assert okun.rows("SELECT user_id, pack, stars, currency, units, state FROM payments") == [
        (ANNA, payload, stars, "", 0, "paid")
    ]
    assert await have(okun) == 0 and okun.rows("SELECT * FROM ledger") == []
    assert chat.replies[-1].text == okun.t("buy.strange", stars=stars)
    [told] = owner.replies
    assert told.text == okun.t("payment.strange", name="Anna (11)", stars=stars, pack=payload)
    pressed = await owner.press(okun.t("payment.button.open"))
    assert payload in pressed.message.text and okun.t("payment.unknown") in pressed.message.text


async def test_a_payment_for_nothing_we_know_can_be_given_back(okun: Okun, chat: Room, owner: Room) -> None:
    okun.telegram.payments["c1"] = "paid"
    okun.telegram.paid["c1"] = {"order": {"currency": "XTR", "total_amount": 7, "invoice_payload": "x"}, "chat": ANNA,
                                "from": okun.person("Anna")}  # fmt: skip
    await okun.feed(paid_update(okun, 5000, "x", 7))
    await owner.press(okun.t("payment.button.open"))
    pressed = await owner.press(okun.t("payment.button.refund"))
    assert pressed.message.text == okun.t("payment.ask_plain", stars=7, name="Anna (11)")
    await owner.press(okun.t("payment.button.yes", stars=7))
    await okun.take()
    assert okun.telegram.payments == {"c1": "refunded"} and (await payments(okun))[0].state == "refunded"
    assert chat.replies[-1].text == okun.t("payment.refunded", stars=7)


async def test_whoever_pays_gets_it(okun: Okun, chat: Room) -> None:
    invoice = await order(chat)  # Anna's
    await pay(chat, invoice, by="Borys")
    assert (await have(okun, ANNA), await have(okun, BORYS)) == (0, 100)


@settings(backlog_minutes=10, allowed_users=frozenset({BORYS}))
async def test_a_payment_counts_however_old_it_is_and_whoever_may_use_the_bot(okun: Okun, chat: Room) -> None:
    await bot.set_access(okun.app, ANNA, "banned")
    await okun.feed(paid_update(okun, 5000, date=NOON - 30 * DAY))
    assert await have(okun) == 100


async def test_somebody_who_was_forgotten_gets_what_they_paid_for(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    await bot.forget_person(okun.app, ANNA, [ANNA], everywhere=True)
    await okun.feed(paid_update(okun, 5000))
    assert await have(okun) == 100


@pytest.mark.failing
async def test_a_payment_that_cannot_be_read_is_put_aside_and_told(okun: Okun, owner: Room, later: Any) -> None:
    okun.private("Anna")
    broken = paid_update(okun, 5000)
    del broken["message"]["successful_payment"]["telegram_payment_charge_id"]
    await okun.feed(broken)
    await later(60)
    assert okun.inbox_rows == [(3, 1)] and "KeyError" in owner.replies[-1].text


# -- the balance


@langs
async def test_the_balance_shows_what_there_is_and_why(okun: Okun, lang: str) -> None:
    chat = okun.private(PEOPLE[lang])
    [empty] = await chat.say("/balance")
    assert empty.text == okun.t("balance.nothing", lang)
    await buy(chat)
    await spend(okun, 30, user_id=chat.id)
    [shown] = await chat.say("/balance")
    head, _, spent, bought = shown.text.split("\n")
    assert head == okun.t("balance.have", lang, have="70 🪙")
    assert "−30 🪙" in spent and bought.endswith(f"+100 🪙 – {okun.t('ledger.reason.pack', lang)}")


async def test_operations_are_paged(okun: Okun, chat: Room) -> None:
    await chat.say("Hi")
    async with bot.money(okun.app, ANNA) as tx:
        for n in range(25):
            await bot.post(tx, ANNA, "coins", n + 1, "promo", f"p{n}", NOON)
    [first] = await chat.say("/balance")
    second = (await chat.press(okun.t("balance.older"))).message
    third = (await chat.press(okun.t("balance.older"))).message
    sums = [[line.partition(": +")[2].partition(" ")[0] for line in page.text.split("\n")[2:]]
            for page in (first, second, third)]  # fmt: skip
    assert [*itertools.chain(*sums)] == [str(n) for n in range(25, 0, -1)] and [*map(len, sums)] == [10, 10, 5]
    assert okun.t("balance.older") not in third.buttons
    assert (await chat.press(okun.t("balance.newest"))).message.text == first.text


async def test_a_balance_in_a_group_is_of_who_asked_and_only_they_may_turn_its_pages(okun: Okun, group: Room) -> None:
    await okun.feed(paid_update(okun, 5000))
    [annas] = await group.say("/balance")
    [boryses] = await group.say("/balance", by="Borys")
    assert okun.t("balance.have", have="100 🪙") in annas.text
    assert boryses.text == okun.t("balance.nothing", "uk")
    pressed = await group.press(okun.t("balance.button.buy"), by="Borys", message=annas)
    assert pressed.note == okun.t("button.not_yours", "uk")


async def test_the_profile_shows_a_balance_where_there_is_one(okun: Okun, chat: Room) -> None:
    [before] = await chat.say("/profile")
    await buy(chat)
    reads = okun.app.db.reader.reads
    [after] = await chat.say("/profile")
    line = okun.t("balance.have", have="100 🪙")
    assert line not in before.text and line in after.text
    assert okun.app.db.reader.reads - reads <= 1


# -- refunds


async def open_payment(owner: Room, payment: bot.Payment) -> Reply:
    """The panel of a payment, as an owner gets to it."""
    okun = owner.okun
    await bot.tell_owners_of(okun.app, "payment.asked", payment)
    await okun.settle()
    lang = okun.person(owner.by)["language_code"]
    return (await owner.press(okun.t("payment.button.open", lang))).message


async def give_back(owner: Room, payment: bot.Payment) -> Reply:
    """Press all buttons up to the refund; the panel after it."""
    okun = owner.okun
    await open_payment(owner, payment)
    await owner.press(okun.t("payment.button.refund"))
    pressed = await owner.press(okun.t("payment.button.yes", stars=payment.stars))
    await okun.take()
    return pressed.message


async def test_an_owner_gives_stars_back(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    shown = await open_payment(owner, payment)
    assert "Anna (11)" in shown.text and payment.charge_id in shown.text and okun.t("payment.state.paid") in shown.text
    asked = (await owner.press(okun.t("payment.button.refund"))).message
    assert asked.text == okun.t("payment.ask", stars=50, name="Anna (11)", units="100 🪙")
    done = (await owner.press(okun.t("payment.button.yes", stars=50))).message
    await okun.take()
    assert okun.t("payment.state.refunded") in done.text and okun.t("payment.button.refund") not in done.buttons
    assert await have(okun) == 0 and okun.telegram.payments == {payment.charge_id: "refunded"}
    assert [reply.text for reply in chat.replies].count(okun.t("payment.refunded_taken", stars=50, taken="100 🪙")) == 1
    [row] = await payments(okun)
    assert (row.state, row.taken_back) == ("refunded", 100)


async def test_what_is_spent_needs_a_second_yes(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    await spend(okun, 40)
    asked = await give_back(owner, payment)
    assert asked.text == okun.t("payment.ask_spent", units="100 🪙", spent=40, left=60)
    assert await have(okun) == 60 and okun.called("refundStarPayment") == []
    await spend(okun, 10, "more")  # meanwhile: it is asked again
    asked = (await owner.press(okun.t("payment.button.anyway", stars=50))).message
    assert asked.text == okun.t("payment.ask_spent", units="100 🪙", spent=50, left=50)
    await owner.press(okun.t("payment.button.anyway", stars=50))
    await okun.take()
    assert await have(okun) == 0 and (await payments(okun))[0].taken_back == 50
    assert chat.replies[-1].text == okun.t("payment.refunded_taken", stars=50, taken="50 🪙")


async def test_two_owners_at_once_give_back_once(okun: Okun, chat: Room) -> None:
    await okun.restart(admin_ids=frozenset({OWNER, BORYS}))
    rooms = [okun.private("Owner"), okun.private("Borys")]
    payment = await buy(chat)
    await buy(chat)  # something else to take from
    for room in rooms:
        await open_payment(room, payment)
        await room.press(okun.t("payment.button.refund", str(okun.person(room.by)["language_code"])))
    for room in rooms:
        lang = okun.person(room.by)["language_code"]
        okun.telegram.press(room.chat, okun.person(room.by), okun.t("payment.button.yes", lang, stars=50))
    await okun.take()
    await okun.take()
    assert len(okun.called("refundStarPayment")) == 1 and await have(okun) == 100
    notes = {reply.text for room in rooms for reply in room.replies}
    assert notes & {okun.t("payment.not_paid"), okun.t("payment.not_paid", "uk")}


async def test_a_refund_is_begun_once_however_many_ask(okun: Okun, chat: Room) -> None:
    payment = await buy(chat)
    await buy(chat)
    done = await asyncio.gather(*(bot.begin_refund(okun.app, payment, 0) for _ in range(5)), return_exceptions=True)
    assert sum(not isinstance(one, BaseException) for one in done) == 1 and await have(okun) == 100
    await asyncio.gather(*(bot.settle_refund(okun.app, payment) for _ in range(5)))
    assert len(okun.called("refundStarPayment")) == 1


async def test_a_refund_whose_answer_is_lost_is_asked_for_again_and_done(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    okun.telegram.fault("500", "refundStarPayment", times=6)
    await give_back_slowly(owner, payment)
    assert (await payments(okun))[0].state == "refunding" and await have(okun) == 0
    okun.telegram.refund(payment.charge_id)  # it was carried out all the same
    okun.telegram.queue.clear()
    await run_refunds(okun)
    assert (await payments(okun))[0].state == "refunded" and await have(okun) == 0
    assert chat.replies[-1].text == okun.t("payment.refunded_taken", stars=50, taken="100 🪙")
    calls = len(okun.called("refundStarPayment"))
    await okun.later(3 * 3600)
    assert len(okun.called("refundStarPayment")) == calls


async def give_back_slowly(owner: Room, payment: bot.Payment) -> None:
    """The same where Telegram does not answer: time goes by between the tries."""
    await give_back(owner, payment)
    await owner.okun.later(120)


async def run_refunds(okun: Okun) -> None:
    """What runs beside the bot does its round."""
    okun.app.spawn(bot.LOOPS["refunds"](okun.app), "refunds")
    await okun.settle()
    await okun.later(120)


async def test_a_refund_that_telegram_did_not_confirm_can_be_pressed_again(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    okun.telegram.fault("500", "refundStarPayment", times=6)
    await give_back_slowly(owner, payment)
    assert okun.t("payment.button.again") in owner.replies[-1].buttons
    await owner.press(okun.t("payment.button.again"))
    assert (await payments(okun))[0].state == "refunded"
    assert okun.telegram.payments == {payment.charge_id: "refunded"}


async def test_a_refund_is_tried_each_hour_while_telegram_is_away(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    await bot.begin_refund(okun.app, payment, 0)
    okun.telegram.fault("500", "refundStarPayment", times=6)
    await run_refunds(okun)
    assert (await payments(okun))[0].state == "refunding"
    await okun.later(3600)
    assert (await payments(okun))[0].state == "refunded"


@pytest.mark.parametrize("words", ["CHARGE_NOT_FOUND", "USER_ID_INVALID", "PEER_ID_INVALID"])
async def test_a_refund_that_telegram_refuses_is_undone_and_told(
    okun: Okun, chat: Room, owner: Room, words: str
) -> None:
    payment = await buy(chat)
    await spend(okun, 10)
    okun.telegram.fault("400", "refundStarPayment", text=words)
    await give_back(owner, payment)
    await owner.press(okun.t("payment.button.anyway", stars=50))
    assert (await payments(okun))[0]._replace(changed_at=0) == payment._replace(changed_at=0)
    assert await have(okun) == 90
    assert any(words in reply.text and "Anna (11)" in reply.text for reply in owner.replies)
    assert not any("⭐ have been given back" in reply.text for reply in chat.replies)
    shown = await open_payment(owner, payment)  # and then it may be tried anew, in the same second
    assert okun.t("payment.button.refund") in shown.buttons
    await owner.press(okun.t("payment.button.refund"))
    await owner.press(okun.t("payment.button.yes", stars=50))
    await owner.press(okun.t("payment.button.anyway", stars=50))
    await okun.take()
    assert await have(okun) == 0 and (await payments(okun))[0].state == "refunded"


@pytest.mark.parametrize("taken", [0, 30])
async def test_a_refund_that_we_did_not_start_is_booked(okun: Okun, chat: Room, taken: int) -> None:
    payment = await buy(chat)
    if taken:
        await spend(okun, taken)
    okun.telegram.refund(payment.charge_id)
    await okun.take()
    [row] = await payments(okun)
    assert (row.state, row.taken_back) == ("refunded", 100 - taken) and await have(okun) == 0
    assert chat.replies[-1].text == okun.t("payment.refunded_taken", stars=50, taken=f"{100 - taken} 🪙")
    okun.telegram.refund(payment.charge_id)
    await okun.take()  # once more
    assert len(okun.rows("SELECT * FROM ledger WHERE reason = 'stars_back'")) == 1
    with pytest.raises(bot.BotError, match="not_paid"):
        await bot.begin_refund(okun.app, payment, 0)


async def test_a_refund_that_comes_before_its_payment_leaves_nothing_to_give(okun: Okun, chat: Room) -> None:
    refunded = {"currency": "XTR", "total_amount": 50, "invoice_payload": "pack:coins100:1",
                "telegram_payment_charge_id": "c1"}  # fmt: skip
    await okun.feed({"update_id": 5000, "message": message_of(okun, "Anna", {"refunded_payment": refunded})})
    await okun.feed(paid_update(okun, 5001))
    assert await have(okun) == 0 and [row.state for row in await payments(okun)] == ["refunded"]


async def test_a_refund_of_somebody_who_was_forgotten_takes_nothing(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    await bot.forget_person(okun.app, ANNA, [ANNA], everywhere=True)
    assert (await give_back(owner, payment)).text == okun.t("payment.ask_spent", units="100 🪙", spent=100, left=0)
    await owner.press(okun.t("payment.button.anyway", stars=50))
    await okun.take()
    assert okun.telegram.payments == {payment.charge_id: "refunded"}
    assert okun.rows("SELECT taken_back, state FROM payments") == [(0, "refunded")]


async def test_payments_are_listed_for_owners_newest_first(okun: Okun, chat: Room, owner: Room) -> None:
    for n in range(10):
        await okun.feed(paid_update(okun, 5000 + n, charge=f"c{n}", date=NOON + n))
    who = bot.Who(OWNER, 0, OWNER, "en", private=True)
    await bot.open_panel(okun.app, who, "payments")
    first = owner.replies[-1]
    assert first.text.count("Anna (11)") == 8 and first.buttons[-2:] == ["▶", okun.t("menu.back")]
    second = (await owner.press("▶")).message
    assert second.text.count("Anna (11)") == 2 and "10. " in second.text
    assert (await owner.press("10")).message.text.count("c0") == 1
    await okun.later(1)


# -- who may


FORGED = ("", "0", "1", "-", "0-", "9" * 20, f"{int(NOON)}-", f"{int(NOON)}-xxxxxxxxxx", "' OR 1=1 --", "x.1", "🐟")


async def test_only_owners_see_and_refund_payments_and_make_codes(okun: Okun, chat: Room) -> None:
    payment = await buy(chat)
    await bot.make_promo(okun.app, "GIFT 5")
    [menu] = await chat.say("/menu")
    before = [okun.rows(f"SELECT * FROM {name}") for name in ("payments", "ledger", "promos", "forms")]
    for data in (f"m2:{ANNA}:payments:", f"m2:{ANNA}:payment:{payment.key}", f"m2:{ANNA}:payback:{payment.key}",
                 f"m2:{ANNA}:promos:", f"m2:{ANNA}:promodel:GIFT", f"m2:{ANNA}:newpromo:",
                 f"d1:{ANNA}:payback:{payment.key}", f"d1:{ANNA}:payback:{payment.key}.100",
                 f"d1:{ANNA}:promodel:GIFT", f"d1:{ANNA}:promonew:"):  # fmt: skip
        assert (await chat.press_data(data, menu)).note == okun.t("error.owners_only"), data
    for data in (f"d1:{OWNER}:payback:{payment.key}", f"m2:{OWNER}:payments:"):
        assert (await chat.press_data(data, menu)).note == okun.t("button.not_yours"), data
    [told] = await chat.say("/promo new HACK 100000")
    assert told.text == okun.t("promo.unknown")
    assert [okun.rows(f"SELECT * FROM {name}") for name in ("payments", "ledger", "promos", "forms")] == before
    assert okun.called("refundStarPayment") == []


@pytest.mark.parametrize("arg", FORGED)
async def test_forged_buttons_do_nothing(okun: Okun, chat: Room, owner: Room, arg: str) -> None:
    await buy(chat)
    [menu] = await owner.say("/menu")
    for name in ("m2:{}:payment", "m2:{}:payback", "d1:{}:payback", "d1:{}:promodel", "d1:{}:buy", "d1:{}:askback"):
        await owner.press_data(f"{name.format(OWNER)}:{arg}", menu)
    await owner.press_data(f"m2:{OWNER}:payments:{arg}", menu)
    await owner.press_data(f"m2:{OWNER}:balance:{arg}", menu)
    assert okun.called("refundStarPayment") == [] and [row.state for row in await payments(okun)] == ["paid"]
    assert len(okun.called("sendInvoice")) == 1 and not okun.failures and okun.inbox_rows == []


async def test_nobody_asks_for_the_stars_of_another(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    borys = okun.private("Borys")
    [menu] = await borys.say("/paysupport")
    await borys.press_data(f"d1:{BORYS}:askback:{payment.key}", menu)
    assert owner.replies == [] and borys.replies[-1].text == okun.t("button.old", "uk")


# -- /paysupport and /terms


@langs
async def test_who_wants_their_stars_back_is_passed_on_once_a_day(okun: Okun, owner: Room, lang: str) -> None:
    chat = okun.private(PEOPLE[lang])
    [empty] = await chat.say("/paysupport")
    assert okun.t("paysupport.none", lang) in empty.text
    payment = await buy(chat)
    [shown] = await chat.say("/paysupport")
    assert bot.payment_line(okun.app, lang, payment) in shown.text
    ask = okun.t("paysupport.button", lang, number=1)
    await chat.press(ask)
    assert chat.replies[-1].text == okun.t("paysupport.sent", lang)
    assert [reply.text for reply in owner.replies] == [
        okun.t("payment.asked", name=f"{PEOPLE[lang]} ({chat.id})", stars=50)
    ]
    await okun.restart()
    await chat.press(ask, message=shown)
    assert chat.replies[-1].text == okun.t("paysupport.asked", lang) and len(owner.replies) == 1
    await okun.later(DAY)
    await chat.press(ask, message=shown)
    assert len(owner.replies) == 2
    assert okun.t("payment.button.refund") in (await owner.press(okun.t("payment.button.open"))).message.buttons


async def test_without_an_owner_within_reach_it_says_so(okun: Okun, chat: Room) -> None:
    await buy(chat)
    await chat.say("/paysupport")
    await chat.press(okun.t("paysupport.button", number=1))
    assert chat.replies[-1].text == okun.t("paysupport.nobody")
    owner = okun.private("Owner")
    await chat.say("/paysupport")
    await chat.press(okun.t("paysupport.button", number=1))
    assert [reply.text for reply in owner.replies] == [okun.t("payment.asked", stars=50, name="Anna (11)")]
    assert okun.t("paysupport.sent") in [reply.text for reply in chat.replies]


async def test_every_payment_can_be_asked_back_however_old(okun: Okun, chat: Room, owner: Room) -> None:
    for _ in range(7):
        await buy(chat)
        await okun.later(60)
    first = (await payments(okun))[-1]
    [shown] = await chat.say("/paysupport")
    assert [text for text in shown.buttons if "refund" in text] == [
        okun.t("paysupport.button", number=number) for number in range(1, 6)
    ]
    shown = (await chat.press("▶")).message
    assert shown.buttons[:3] == [okun.t("paysupport.button", number=6), okun.t("paysupport.button", number=7), "◀"]
    await chat.press(shown.buttons[1])
    assert (await owner.press(okun.t("payment.button.open"))).message.text.count(first.charge_id) == 1


@settings(allowed_users=frozenset({BORYS}))
@pytest.mark.parametrize("verdict", ["banned", None])
async def test_who_is_shut_out_can_still_ask_for_their_stars(
    okun: Okun, chat: Room, owner: Room, verdict: str | None
) -> None:
    await bot.set_access(okun.app, ANNA, "allowed")
    await buy(chat)
    await bot.set_access(okun.app, ANNA, verdict)
    assert okun.t("terms.text") in (await chat.say("/terms"))[0].text
    await chat.say("/paysupport")
    await chat.press(okun.t("paysupport.button", number=1))
    assert [reply.text for reply in owner.replies] == [okun.t("payment.asked", stars=50, name="Anna (11)")]
    assert chat.replies[-1].text == okun.t("paysupport.sent")
    assert (await chat.press(okun.t("menu.back"))).message.text != okun.t("balance.have", have="100 🪙")
    refusal = okun.t("error.banned" if verdict else "error.not_allowed")
    assert [reply.text for reply in await chat.say("/balance")] in ([], [refusal])
    group = okun.group()
    assert okun.t("paysupport.text") not in [reply.text for reply in await group.say("/paysupport")]


async def test_a_refunded_payment_is_not_asked_for(okun: Okun, chat: Room, owner: Room) -> None:
    payment = await buy(chat)
    [shown] = await chat.say("/paysupport")
    okun.telegram.refund(payment.charge_id)
    await okun.take()
    await chat.press(okun.t("paysupport.button", number=1), message=shown)
    assert okun.t("payment.not_paid") in [reply.text for reply in chat.replies] and owner.replies == []
    [shown] = await chat.say("/paysupport")
    assert okun.t("paysupport.button", number=1) not in shown.buttons


async def test_payments_are_nobody_elses_business_in_a_group(okun: Okun, group: Room) -> None:
    await okun.feed(paid_update(okun, 5000))
    [told] = await group.say("/paysupport")
    assert okun.t("paysupport.in_private") in told.text and "⭐" not in told.text


@langs
async def test_the_terms_of_sale_are_told(okun: Okun, lang: str) -> None:
    chat = okun.private(PEOPLE[lang])
    assert (await chat.say("/terms"))[0].text == okun.t("terms.text", lang)
    await chat.say("/buy")
    pressed = await chat.press(okun.t("buy.button.terms", lang))
    assert pressed.message.text == okun.t("terms.text", lang)


# -- promo codes


async def test_a_code_gives_what_it_is_for_once(okun: Okun, chat: Room, owner: Room) -> None:
    [made] = await owner.say("/promo new summer 50 100 30")
    assert made.text.startswith("SUMMER: 50 🪙") and "0 of 100" in made.text
    [told] = await chat.say("/promo  sUmmer ")
    assert told.text == given(okun, "50 🪙", "50 🪙")
    [told] = await chat.say("/promo SUMMER")
    assert told.text == okun.t("promo.used") and await have(okun) == 50
    assert okun.rows("SELECT used FROM promos") == [(1,)]


async def test_a_code_is_asked_for_in_private_and_taken_from_the_next_words(okun: Okun, chat: Room) -> None:
    await bot.make_promo(okun.app, "GIFT 5 2")
    [asked] = await chat.say("/promo")
    assert asked.text == okun.t("promo.ask")
    assert [reply.text for reply in await chat.say("GIFTT")] == [okun.t("promo.unknown")]
    [told] = await chat.say("gift")
    assert told.text.startswith(okun.t("promo.given", given="5 🪙") + "\n\n" + okun.t("balance.have", have="5 🪙"))
    assert await have(okun) == 5 and okun.model.asks == []
    assert [reply.text for reply in await chat.say("Thanks!")] == ["Heard: Thanks!"]


async def test_in_a_group_it_says_how(okun: Okun, group: Room) -> None:
    assert [reply.text for reply in await group.say("/promo")] == [okun.t("promo.usage")]
    await bot.make_promo(okun.app, "GIFT 5")
    assert given(okun, "5 🪙", "5 🪙") in (await group.say("/promo gift"))[0].text


@langs
async def test_a_code_that_gives_nothing_says_why(okun: Okun, lang: str) -> None:
    chat = okun.private(PEOPLE[lang])
    await bot.make_promo(okun.app, "SHORT 5 9 1")
    await bot.make_promo(okun.app, "TAKEN 5 1")
    await okun.private("Olena").say("/promo TAKEN")
    await okun.later(DAY)
    for code, key in (("NEVER", "unknown"), ("SHORT", "expired"), ("TAKEN", "used_up")):
        assert (await chat.say(f"/promo {code}"))[0].text == okun.t(f"promo.{key}", lang)
    assert await have(okun, chat.id) == 0


async def test_of_twenty_people_at_once_as_many_get_it_as_it_is_for(okun: Okun) -> None:
    await bot.make_promo(okun.app, "FIVE 7 5")
    done = await asyncio.gather(
        *(bot.use_promo(okun.app, 200 + n, "five", 1) for n in range(20)), return_exceptions=True
    )
    assert sum(isinstance(one, bot.Promo) for one in done) == 5
    assert {str(one) for one in done if isinstance(one, Exception)} == {"promo.used_up"}
    assert okun.rows("SELECT used FROM promos") == [(5,)] and len(okun.rows("SELECT * FROM promo_uses")) == 5
    assert okun.rows("SELECT count(*), sum(amount) FROM balances") == [(5, 35)]


async def test_one_person_many_times_at_once_gets_it_once(okun: Okun) -> None:
    await bot.make_promo(okun.app, "FIVE 7 5")
    await asyncio.gather(*(bot.use_promo(okun.app, ANNA, "FIVE", n + 1) for n in range(9)), return_exceptions=True)
    assert await have(okun) == 7 and okun.rows("SELECT used FROM promos") == [(1,)]


@pytest.mark.parametrize("asked", [False, True])
async def test_who_is_answered_late_hears_what_the_code_gave(okun: Okun, chat: Room, asked: bool) -> None:
    await bot.make_promo(okun.app, "GIFT 5")
    if asked:
        await chat.say("/promo")
    okun.wire.down = True
    await chat.say("GIFT" if asked else "/promo GIFT")
    await okun.later(600)
    okun.wire.down = False
    await okun.later(60)
    text = okun.t("promo.given", given="5 🪙") if asked else given(okun, "5 🪙", "5 🪙")
    assert chat.replies[-1].text.startswith(text) and await have(okun) == 5
    assert okun.rows("SELECT used FROM quotas WHERE name = 'promo'") == [(1,)]
    assert (await chat.say("/promo GIFT"))[0].text == okun.t("promo.used")


async def test_codes_cannot_be_guessed(okun: Okun, chat: Room) -> None:
    await bot.make_promo(okun.app, "GIFT 5")
    texts = [(await chat.say(f"/promo A{n}"))[0].text for n in range(10)]
    assert {*texts} == {okun.t("promo.unknown")}
    [told] = await chat.say("/promo GIFT")
    assert told.text == okun.t("limit.day.promo", most=10, left="12 hours") and await have(okun) == 0
    assert (await chat.say("/promo"))[0].text == okun.t("promo.ask")  # nor by the form
    assert (await chat.say("GIFT"))[0].text == told.text
    assert (await chat.say("How are you?"))[0].text == "Heard: How are you?"  # no code, and not taken for one
    await okun.restart()
    assert (await chat.say("/promo GIFT"))[0].text == told.text
    assert (await okun.private("Borys").say("/promo GIFT"))[0].text.startswith(given(okun, "5 🪙", "5 🪙", "uk"))
    await bot.make_promo(okun.app, "GIFT2 5")
    await okun.later(DAY)
    await chat.say("/promo GIFT2")
    assert await have(okun) == 5


ODD = ("'; DROP TABLE promos; --", "<b>GIFT</b>", "*GIFT*", "`GIFT`", "GIFT\u200b", "ＧＩＦＴ", "GІFT", "%", "_",
       "GIFT GIFT", "{code}", "{0}", "\ud83d", "x" * 4000, "🐟" * 100, "GIFT;", "new GIFT 5")  # fmt: skip


@pytest.mark.parametrize("code", ODD)
async def test_an_odd_code_is_no_code(okun: Okun, chat: Room, code: str) -> None:
    await bot.make_promo(okun.app, "GIFT 5")
    with pytest.raises(bot.BotError, match=r"promo\.unknown"):
        await bot.use_promo(okun.app, ANNA, code, 1)
    with pytest.raises(bot.BotError, match=r"promo\.usage_new"):
        await bot.make_promo(okun.app, f"{code} 5")
    if code.isprintable():
        assert (await chat.say(f"/promo {code}"))[0].text == okun.t("promo.unknown")
    assert len(okun.rows("SELECT * FROM promos")) == 1 and await have(okun) == 0


@pytest.mark.parametrize(
    "line",
    ["", "GIFT", "GIFT 0", "GIFT -5", "GIFT x", "GIFT 1.5", "GIFT 5 0", "GIFT 5 1 0", "GIFT 5 1 9999", "GIFT 5 1 1 1",
     "GI 5", "GIFT 1000001", "GIFT 5 1000001", "X" * 25 + " 5", "GIFT ²", "ГІФТ 5"],
)  # fmt: skip
async def test_a_code_that_makes_no_sense_is_not_made(okun: Okun, owner: Room, line: str) -> None:
    assert [reply.text for reply in await owner.say(f"/promo new {line}".strip())] == [okun.t("promo.usage_new")]
    assert okun.rows("SELECT * FROM promos") == []


@pytest.mark.parametrize(
    ("line", "row"),
    [("a-b 5", ("A-B", "coins", 5, 1, None)), ("C_1 5 20", ("C_1", "coins", 5, 20, None)),
     ("GIFT 5 20 30", ("GIFT", "coins", 5, 20, int(NOON) + 30 * DAY))],
)  # fmt: skip
async def test_what_is_left_out_is_once_and_for_ever(okun: Okun, line: str, row: Any) -> None:
    await bot.make_promo(okun.app, line)
    assert okun.rows("SELECT code, currency, amount, uses, expires_at FROM promos") == [row]


async def promos(owner: Room) -> Reply:
    okun = owner.okun
    await bot.open_panel(okun.app, bot.Who(OWNER, 0, OWNER, "en", private=True), "promos")
    return owner.replies[-1]


async def test_an_owner_makes_and_deletes_codes_by_buttons(okun: Okun, owner: Room, chat: Room) -> None:
    assert (await promos(owner)).text == okun.t("promo.none")
    assert (await owner.press(okun.t("promo.button.new"))).message.text == okun.t("promo.ask_new")
    assert [reply.text for reply in await owner.say("nonsense")] == [okun.t("promo.usage_new")]
    [shown] = await owner.say("gift 5 3")
    assert shown.text.startswith(okun.t("promo.made")) and "GIFT: 5 🪙" in shown.text
    await chat.say("/promo gift")
    assert "1 of 3" in (await promos(owner)).text
    assert (await owner.press("✕ 1")).message.text == okun.t("promo.delete", code="GIFT")
    deleted = await owner.press(okun.t("promo.button.delete"))
    assert deleted.note == okun.t("promo.deleted") and deleted.message.text == okun.t("promo.none")
    assert okun.rows("SELECT * FROM promo_uses") == [] and await have(okun) == 5
    await bot.make_promo(okun.app, "GIFT 6")
    assert (await chat.say("/promo GIFT"))[0].text == okun.t("promo.used")  # in the same second
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM promos")
    await okun.later(1)
    await bot.make_promo(okun.app, "GIFT 6")
    assert (await chat.say("/promo GIFT"))[0].text == given(okun, "6 🪙", "11 🪙")


async def test_a_code_is_not_made_twice(okun: Okun, owner: Room) -> None:
    await owner.say("/promo new GIFT 5")
    assert (await owner.say("/promo new gift 7"))[0].text == okun.t("promo.exists", code="GIFT")
    assert okun.rows("SELECT amount FROM promos") == [(5,)]


@pytest.mark.parametrize("line", ["SUMMER 5", "SUMMER 5 100 30"])
async def test_an_owner_who_is_answered_late_hears_that_the_code_is_made(okun: Okun, owner: Room, line: str) -> None:
    okun.wire.down = True
    await owner.say(f"/promo new {line}")
    await okun.later(60)
    okun.wire.down = False
    await okun.later(60)
    [promo] = await bot.promos_newest(okun.app.db.reader)
    assert [reply.text for reply in owner.replies] == [bot.promo_line(okun.app, "en", promo)]
    await bot.use_promo(okun.app, ANNA, "SUMMER", 1)
    assert (await owner.say(f"/promo new {line}"))[0].text == okun.t("promo.exists", code="SUMMER")


# -- privacy


async def test_being_forgotten_costs_the_balance_and_says_so_before(okun: Okun, chat: Room, owner: Room) -> None:
    await owner.say("/promo new GIFT 5 9")
    [asked] = await chat.say("/forget me")
    assert "🪙" not in asked.text
    await buy(chat)
    await chat.say("/promo GIFT")
    [asked] = await chat.say("/forget me")
    assert asked.text.endswith(okun.t("forget.balance", have="105 🪙"))
    await chat.press(okun.t("forget.button.all"))
    assert okun.rows("SELECT * FROM ledger") == [] == okun.rows("SELECT * FROM balances")
    assert len(await payments(okun)) == 1 and len(okun.rows("SELECT * FROM promo_uses")) == 1
    assert (await chat.say("/balance"))[0].text == okun.t("balance.nothing")
    assert (await chat.say("/promo GIFT"))[0].text == okun.t("promo.used")
    assert await have(okun) == 0


async def test_only_here_leaves_the_balance(okun: Okun, chat: Room) -> None:
    await buy(chat)
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.here"))
    assert await have(okun) == 100


async def test_an_export_has_all_that_is_ones_own(okun: Okun, chat: Room, tmp_path: Any) -> None:
    await bot.make_promo(okun.app, "GIFT 5")
    payment = await buy(chat)
    await chat.say("/promo GIFT")
    await okun.feed(paid_update(okun, 5000, charge="other", person="Borys"))
    await bot.set_access(okun.app, ANNA, "allowed")
    for user_id in (ANNA, ANNA, BORYS):
        used = bot.Usage(3, 4, 5)
        bot.store_llm_call(okun.app, bot.LlmCall(int(NOON), "gemini", "m", "chat", "ok", 5, used, 1, user_id, 0))
    await okun.settle()
    head = await bot.export_head(okun.app, ANNA)
    assert head["balances"] == {"coins": 105} and [row["delta"] for row in head["ledger"]] == [100, 5]
    assert [row["charge_id"] for row in head["payments"]] == [payment.charge_id]
    assert [row["code"] for row in head["promo_codes"]] == ["GIFT"]
    assert [(row["name"], row["used"]) for row in head["limits"]] == [("promo", 1)] and head["access"] == "allowed"
    assert head["model_calls"] == [
        {"model": "m", "capability": "chat", "calls": 2, "input_tokens": 6, "output_tokens": 18}
    ]
    assert bot.json_loads(bot.json_dumps(head))


# -- killed between any two steps


class Killed:
    """Ends a bot at a step: from there on nothing reaches its database or Telegram. A step is a statement or a call."""

    def __init__(self, okun: Okun, at: int) -> None:
        self.left = at
        self.writer, self.wire = cast(Any, okun.app.db._writer), cast(Any, okun.wire)
        self.execute, self.post = self.writer._execute, self.wire._post
        self.writer._execute, self.wire._post = self._statement, self._call

    @property
    def dead(self) -> bool:
        return self.left < 0

    def bury(self) -> None:
        """Let the connections be closed: whatever was at work has ended."""
        self.writer._execute, self.wire._post = self.execute, self.post

    def step(self) -> None:
        self.left -= 1
        if self.dead:
            raise asyncio.CancelledError

    async def _statement(self, work: Any, *args: Any, **kwargs: Any) -> Any:
        words = str(args[0]) if args else ""
        if not (self.dead and ("ROLLBACK" in words or "PRAGMA" in words or not args)):  # SQLite does that itself
            self.step()
        return await self.execute(work, *args, **kwargs)

    async def _call(self, *args: Any) -> Any:
        self.step()
        return await self.post(*args)


async def lives_through(okun: Okun, at: int) -> bool:
    """Take what waits at Telegram, be killed at a step of that, and live again; False where it has fewer steps."""
    killed = Killed(okun, at)
    okun.app.spawn(okun.inbox.take(okun.telegram.next_updates()), "take")
    await okun.settle()
    killed.bury()
    await okun.restart()
    await run_refunds(okun)
    await okun.take()
    await okun.take()
    return killed.dead


async def test_a_payment_counts_once_wherever_the_bot_is_killed(okun: Okun, chat: Room) -> None:
    for at in itertools.count():
        update = paid_update(okun, 5000 + at, charge=f"c{at}")
        okun.telegram.queue.append(update)
        if not await lives_through(okun, at):
            break
        # Telegram gives again what was not confirmed
        await okun.feed(update)
        assert await have(okun) == 100 * (at + 1), at
        assert chat.replies[-1].text == okun.t("buy.thanks", given="100 🪙", have=f"{100 * (at + 1)} 🪙"), at
        assert okun.inbox_rows == []
    assert at > 8


async def test_stars_are_given_back_once_wherever_the_bot_is_killed(okun: Okun, chat: Room, owner: Room) -> None:
    for at in itertools.count():
        payment = await buy(chat)
        await okun.later(1)
        await open_payment(owner, payment)
        await owner.press(okun.t("payment.button.refund"))
        okun.telegram.press(owner.chat, okun.person("Owner"), okun.t("payment.button.yes", stars=50))
        press = okun.telegram.queue[-1]
        if not await lives_through(okun, at):
            break
        await okun.feed(press)
        await okun.take()
        assert okun.telegram.payments[payment.charge_id] == "refunded", at
        row = next(one for one in await payments(okun) if one.charge_id == payment.charge_id)
        assert (row.state, row.taken_back) == ("refunded", 100), at
        assert await have(okun) == 0, at
        assert okun.inbox_rows == []
    assert at > 12
    carried_out = [call for call in okun.telegram.called("refundStarPayment") if call.answer["ok"]]
    assert len(carried_out) == len(okun.telegram.payments)


async def test_a_code_is_used_once_wherever_the_bot_is_killed(okun: Okun, chat: Room) -> None:
    for at in itertools.count():
        await okun.later(DAY)  # there are only so many tries a day
        await bot.make_promo(okun.app, f"CODE{at} 5")
        chat.put("say", f"/promo CODE{at}")
        update = okun.telegram.queue[-1]
        if not await lives_through(okun, at):
            break
        await okun.feed(update)
        assert await have(okun) == 5 * (at + 1), at
        assert okun.rows("SELECT used FROM promos WHERE code = ?", f"CODE{at}") == [(1,)]
        assert chat.replies[-1].text == given(okun, "5 🪙", f"{5 * (at + 1)} 🪙"), at
    assert at > 8


async def test_an_answer_in_private_is_stored_for_whom_this_database_never_heard_there(okun: Okun, group: Room) -> None:
    anna = okun.private("Anna")  # who started the bot, and then its database was lost
    await group.say("/buy", by="Anna")
    assert okun.t("buy.text_idle") in anna.replies[-1].text
    assert okun.rows("SELECT count(*) FROM messages WHERE chat_id = ?", anna.id) == [(1,)]
