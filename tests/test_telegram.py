"""The lean session over HTTP, and the gate that every call passes: pacing, repeats, chats that are gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot
from aiogram.exceptions import (
    TelegramAPIError,
    TelegramBadRequest,
    TelegramConflictError,
    TelegramForbiddenError,
    TelegramMigrateToChat,
    TelegramRetryAfter,
    TelegramServerError,
    TelegramUnauthorizedError,
)
from aiogram.methods import (
    DeleteMessage,
    GetFile,
    GetMe,
    SendChatAction,
    SendMediaGroup,
    SendPhoto,
    SetMessageReaction,
    SetMyCommands,
)
from aiogram.types import (
    BotCommand,
    BotCommandScopeChat,
    BufferedInputFile,
    InlineKeyboardButton,
    InlineKeyboardMarkup,
    InputMediaDocument,
    Message,
    ReactionTypeEmoji,
)
from fakes import FakeTelegram, Reply, Request, Server, response

import bot

FISH = "🐟"
ANNA = 7


class Clock(bot.Clock):
    """Sleeping moves it at once; `on_sleep` happens meanwhile."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.slept: list[float] = []
        self.on_sleep: list[Callable[[], Any]] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if self.on_sleep:
            done = self.on_sleep.pop(0)()
            if asyncio.iscoroutine(done):
                await done
        self.at += seconds
        await asyncio.sleep(0)


class Counting(FakeTelegram):
    """Counts requests, those without an answer, too."""

    tries = 0

    def handle(self, request: Request) -> Reply:
        self.tries += 1
        return super().handle(request)


@pytest.fixture
async def telegram() -> AsyncIterator[Counting]:
    async with Counting() as server:
        server.private(server.user(ANNA, "Anna"))
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


def settings(**given: str) -> bot.Settings:
    found, faults = bot.read_settings({"TELEGRAM_BOT_TOKEN": "42:TEST", **given}, {})
    assert found, faults
    return found


@pytest.fixture
async def http() -> AsyncIterator[bot.Once[Any]]:
    once: bot.Once[Any] = bot.Once(lambda: bot.open_http(settings()), lambda session: session.close())
    yield once
    await once.close()


@pytest.fixture
def bare(telegram: Counting, http: bot.Once[Any]) -> Bot:
    """A bot without the gate."""
    return Bot("42:TEST", session=bot.LeanSession(telegram.url, http))


@pytest.fixture
def gate(clock: Clock) -> bot.Gate:
    return bot.Gate(clock, random.Random(1), 0)


@pytest.fixture
def api(bare: Bot, gate: bot.Gate) -> Bot:
    """A bot with the gate, without pacing."""
    bare.session.middleware(gate)
    return bare


def hello(text: str = "Привіт", chat_id: int = ANNA) -> bot.Say:
    return bot.Say(chat_id=chat_id, text=text)


# -- the session


async def test_a_message_arrives_as_it_was_meant(bare: Bot, telegram: Counting) -> None:
    bold = ({"type": "bold", "offset": 0, "length": 2},)
    row = [InlineKeyboardButton(text="Тисни", callback_data="s1:1")]
    markup = InlineKeyboardMarkup(inline_keyboard=[row])
    sent = await bare(bot.Say(chat_id=ANNA, text=f"{FISH} hi", entities=bold, reply_markup=markup))
    [message] = telegram.sent(ANNA)
    assert sent.message_id == message["message_id"]
    assert (message["text"], message["entities"]) == (f"{FISH} hi", list(bold))
    assert message["reply_markup"] == {"inline_keyboard": [[{"text": "Тисни", "callback_data": "s1:1"}]]}
    assert telegram.unknown == []


async def test_a_call_carries_no_unset_fields(bare: Bot, telegram: Counting) -> None:
    await bare(hello())
    await bare(SendChatAction(chat_id=ANNA, action="typing"))
    await bare(SetMyCommands(commands=[BotCommand(command="start", description="go")], language_code="uk"))
    assert [call.params for call in telegram.calls] == [
        {"chat_id": ANNA, "text": "Привіт"},
        {"chat_id": ANNA, "action": "typing"},
        {"commands": [{"command": "start", "description": "go"}], "language_code": "uk"},
    ]


async def test_a_file_goes_as_form_data(bare: Bot, telegram: Counting) -> None:
    from test_fakes import png

    data = png(9, 5)
    sent = await bare(SendPhoto(chat_id=ANNA, photo=BufferedInputFile(data, "риба.png"), caption="ловись"))
    assert isinstance(sent, Message) and sent.photo and (sent.photo[-1].width, sent.photo[-1].height) == (9, 5)
    assert telegram.files[sent.photo[-1].file_id].data == data
    assert telegram.sent(ANNA)[0]["caption"] == "ловись"


async def test_several_files_go_in_one_call(bare: Bot, telegram: Counting) -> None:
    media: Any = [InputMediaDocument(media=BufferedInputFile(text.encode(), f"{text}.txt")) for text in ("one", "two")]
    await bare(SendMediaGroup(chat_id=ANNA, media=media))
    files = [telegram.files[message["document"]["file_id"]].data for message in telegram.sent(ANNA)]
    assert files == [b"one", b"two"]


@pytest.mark.parametrize(
    ("value", "json_value"),
    [
        (None, None),
        (datetime(2026, 1, 1, tzinfo=UTC), 1767225600),
        ([BotCommand(command="a", description="b")], [{"command": "a", "description": "b"}]),
        (({"type": "bold"},), [{"type": "bold"}]),
        (BotCommandScopeChat(chat_id=5), {"type": "chat", "chat_id": 5}),
        (True, True),
    ],
)
def test_a_parameter_becomes_json(value: Any, json_value: Any) -> None:
    assert bot.plain(value, {}) == json_value


def test_what_cannot_be_sent_is_an_error_of_ours() -> None:
    with pytest.raises(TypeError, match="set"):
        bot.plain({1, 2}, {})


@pytest.mark.parametrize(
    ("fault", "error", "executed"),
    [
        ("429", TelegramRetryAfter, 0),
        ("500", TelegramServerError, 0),
        ("502html", TelegramServerError, 0),
        ("400", TelegramBadRequest, 0),
        ("401", TelegramUnauthorizedError, 0),
        ("403", TelegramForbiddenError, 0),
        ("409", TelegramConflictError, 0),
        ("migrate", TelegramMigrateToChat, 0),
        ("reset", bot.ConnectionBroke, 0),
        ("reset_after", bot.ConnectionBroke, 1),
        ("timeout", bot.AnswerLost, 0),
        ("timeout_after", bot.AnswerLost, 1),
        ("truncated", bot.AnswerLost, 1),
        ("malformed", bot.AnswerLost, 1),
    ],
)
async def test_each_fault_becomes_its_exception(
    bare: Bot, telegram: Counting, fault: str, error: type[Exception], executed: int
) -> None:
    telegram.fault(fault, "sendMessage", to=-100500, seconds=3600)
    with pytest.raises(error) as caught:
        await bare(hello(), request_timeout=0.05 if "timeout" in fault else 10)  # type: ignore[arg-type]
    assert type(caught.value) is error
    assert len(telegram.sent(ANNA)) == executed and telegram.tries == 1


def test_every_fault_of_the_fake_is_tried_above() -> None:
    [table] = list(test_each_fault_becomes_its_exception.pytestmark)  # type: ignore[attr-defined]
    assert {row[0] for row in table.args[1]} | {"slow"} == FakeTelegram.KINDS


async def test_what_telegram_wants_us_to_know_is_in_the_exception(bare: Bot, telegram: Counting) -> None:
    telegram.fault("429", retry_after=17)
    with pytest.raises(TelegramRetryAfter) as late:
        await bare(hello())
    telegram.fault("migrate", to=-100500)
    with pytest.raises(TelegramMigrateToChat) as moved:
        await bare(hello())
    assert (late.value.retry_after, moved.value.migrate_to_chat_id) == (17, -100500)


async def test_where_nobody_listens_the_call_was_not_made(http: bot.Once[Any], telegram: Counting) -> None:
    url = telegram.url
    await telegram.stop()
    with pytest.raises(bot.NotConnected):
        await Bot("42:TEST", session=bot.LeanSession(url, http))(hello())


class Odd(Server):
    """Answers everything alike, as no Telegram would: a portal, a proxy, a server half up."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer

    def handle(self, request: Request) -> Reply:
        return self.answer


@pytest.mark.parametrize("status", [200, 400, 403, 404, 429])
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"ok"',
        b"{}",
        b'{"ok": true}',
        b'{"ok": true, "result": null}',
        b'{"ok": true, "result": {"id": 1}}',
        b'{"ok": false}',
        b'{"ok": false, "error_code": 400}',
        b'{"message": "no Route matched with those values"}',
        b"<html>portal</html>",
        b"\xff\xfe",
    ],
)
async def test_an_odd_answer_is_an_error_of_the_call_and_nothing_worse(
    http: bot.Once[Any], gate: bot.Gate, status: int, body: bytes
) -> None:
    async with Odd(response(body, status)) as server:
        api = Bot("42:TEST", session=bot.LeanSession(server.url, http))
        with pytest.raises(TelegramAPIError):
            await api(hello())
        with contextlib.suppress(TelegramAPIError):  # the poller looks at what it gets
            await api.session.make_request(api, bot.GetRawUpdates(timeout=0, allowed_updates=[]), 10)
        api.session.middleware(gate)
        with pytest.raises((TelegramAPIError, bot.ChatGone)):
            await api(hello())


# -- the gate: what is repeated
# fault, how often it comes -> how many requests were made, and what came of it ("ok" or the exception)

TABLE: dict[str, list[tuple[str, int, int, Any]]] = {
    "send": [
        ("429", 2, 3, "ok"),
        ("500", 2, 3, "ok"),
        ("502html", 1, 2, "ok"),
        ("500", 99, 6, TelegramServerError),
        ("reset", 1, 2, "ok"),
        ("reset", 2, 2, bot.AnswerLost),
        ("timeout", 1, 1, bot.AnswerLost),
        ("truncated", 1, 1, bot.AnswerLost),
        ("malformed", 1, 1, bot.AnswerLost),
        ("400", 1, 1, TelegramBadRequest),
        ("403", 1, 1, bot.ChatGone),
        ("401", 1, 1, TelegramUnauthorizedError),
    ],
    "edit": [
        ("429", 2, 3, "ok"),
        ("500", 2, 3, "ok"),
        ("reset", 4, 5, "ok"),
        ("timeout", 2, 3, "ok"),
        ("malformed", 1, 2, "ok"),
        ("timeout", 99, 6, bot.AnswerLost),
        ("reset", 99, 6, bot.ConnectionBroke),
        ("400", 1, 1, TelegramBadRequest),
    ],
    "other": [
        ("429", 1, 2, "ok"),
        ("500", 3, 4, "ok"),
        ("reset", 3, 4, "ok"),
        ("timeout", 1, 2, "ok"),
        ("truncated", 1, 2, "ok"),
        ("401", 1, 1, TelegramUnauthorizedError),
    ],
    "light": [
        ("429", 1, 1, TelegramRetryAfter),
        ("500", 1, 1, TelegramServerError),
        ("reset", 1, 1, bot.ConnectionBroke),
        ("timeout", 1, 1, bot.AnswerLost),
        ("403", 1, 1, bot.ChatGone),
    ],
}


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in TABLE.items() for row in rows])
async def test_what_is_repeated_depends_on_what_it_is_and_what_went_wrong(
    api: Bot, telegram: Counting, monkeypatch: pytest.MonkeyPatch, kind: str, row: tuple[str, int, int, Any]
) -> None:
    fault, times, tries, outcome = row
    monkeypatch.setattr(bot, "CALL_TIMEOUT_S", 0.05 if fault == "timeout" else 10)
    message_id = telegram.call("sendMessage", {"chat_id": ANNA, "text": "old"})["result"]["message_id"]
    calls: dict[str, Any] = {
        "send": hello(),
        "edit": bot.Edit(chat_id=ANNA, message_id=message_id, text="new"),
        "other": GetMe(),
        "light": bot.Draft(chat_id=ANNA, draft_id=1, text="dra"),
    }
    telegram.fault(fault, calls[kind].__api_method__, times)
    if outcome == "ok":
        assert await api(calls[kind])
    else:
        with pytest.raises(outcome):
            await api(calls[kind])
    assert telegram.tries == tries
    if kind == "send":
        assert len(telegram.sent(ANNA)) - 1 == (outcome == "ok" or fault in telegram.SPOILT)  # never twice


async def test_a_refused_connection_is_tried_again_until_somebody_listens(
    telegram: Counting, http: bot.Once[Any], gate: bot.Gate, clock: Clock
) -> None:
    api = Bot("42:TEST", session=bot.LeanSession(telegram.url, http))
    api.session.middleware(gate)
    await telegram.stop()
    clock.on_sleep = [lambda: None, lambda: telegram.start(telegram.port)]
    await api(hello())
    assert len(clock.slept) == 2 and len(telegram.sent(ANNA)) == 1


async def test_what_telegram_asked_to_wait_is_waited(api: Bot, telegram: Counting, clock: Clock) -> None:
    telegram.fault("429", "sendMessage", retry_after=17)
    await api(hello())
    assert 17 <= sum(clock.slept) <= 18 and len(telegram.sent(ANNA)) == 1


async def test_too_long_a_wait_is_given_up(api: Bot, telegram: Counting, clock: Clock) -> None:
    telegram.fault("429", "sendMessage", retry_after=3600)
    with pytest.raises(TelegramRetryAfter):
        await api(hello())
    assert clock.slept == [] and telegram.tries == 1


async def test_the_rest_of_a_chat_waits_too_and_other_chats_do_not(
    api: Bot, gate: bot.Gate, telegram: Counting, clock: Clock
) -> None:
    waits: list[float] = []
    telegram.fault("429", "sendMessage", retry_after=17)
    clock.on_sleep = [lambda: waits.extend(gate.pacing.book(chat_id, clock.at) for chat_id in (ANNA, 8))]
    await api(hello())
    assert 17 <= waits[0] <= 18 and waits[1] == 0
    assert gate.pacing.book(ANNA, clock.at) == 0


async def test_a_break_is_repeated_at_once_and_a_refusal_after_a_pause(
    api: Bot, telegram: Counting, clock: Clock
) -> None:
    telegram.fault("reset", "sendMessage")
    await api(hello())
    assert clock.slept == []
    telegram.fault("reset", "sendMessage")
    telegram.fault("500", "sendMessage", 3)
    await api(hello())
    assert len(clock.slept) == 3 and min(clock.slept) >= 0.05


async def test_repeats_are_logged_without_the_token(
    api: Bot, telegram: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    telegram.fault("500", "sendMessage")
    await api(hello())
    [line] = [record for record in caplog.records if record.name == "okun"]
    assert line.__dict__["operation"] == "sendMessage" and line.__dict__["attempt"] == 1
    assert "42:TEST" not in caplog.text


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("sendMessage", "send"), ("sendPhoto", "send"), ("copyMessage", "send"), ("forwardMessage", "send"),
        ("sendInvoice", "send"), ("editMessageText", "edit"), ("editMessageReplyMarkup", "edit"),
        ("deleteMessage", "edit"), ("sendMessageDraft", "light"), ("sendRichMessageDraft", "light"),
        ("sendChatAction", "light"), ("setMessageReaction", "light"), ("getMe", "other"), ("getFile", "other"),
        ("deleteWebhook", "other"), ("setMyCommands", "other"), ("answerCallbackQuery", "other"),
        ("answerPreCheckoutQuery", "other"), ("refundStarPayment", "other"),
    ],
)  # fmt: skip
def test_each_call_is_of_one_kind(method: str, kind: str) -> None:
    assert bot.call_kind(method) == kind


# -- the gate: who is there


@pytest.mark.parametrize("status", ["kicked", "left"])
@pytest.mark.parametrize("private", [True, False])
async def test_a_chat_that_is_gone_is_told_once_and_is_no_failure(
    api: Bot, gate: bot.Gate, telegram: Counting, status: str, private: bool
) -> None:
    gone: list[int] = []

    async def on_gone(chat_id: int) -> None:
        gone.append(chat_id)

    gate.on_gone = on_gone
    chat = telegram.chats[ANNA] if private else telegram.group("Pond")
    chat.bot_status = status
    with pytest.raises(bot.ChatGone):
        await api(hello("anyone?", chat.id))
    assert gone == [chat.id] and telegram.tries == 1


@pytest.mark.parametrize(
    "text",
    [
        "message thread not found",
        "TOPIC_DELETED",
        "TOPIC_CLOSED",
        "chat not found",
        "user is deactivated",
        "PEER_ID_INVALID",
        "not enough rights to send text messages to the chat",
        "have no rights to send a message",
        "CHAT_WRITE_FORBIDDEN",
        "group chat was deactivated",
    ],
)
async def test_a_topic_or_chat_without_readers_is_gone(api: Bot, telegram: Counting, text: str) -> None:
    telegram.fault("400", "sendMessage", text=text)
    with pytest.raises(bot.ChatGone):
        await api(hello())
    assert telegram.tries == 1


async def test_a_deleted_topic_does_not_end_the_chat(api: Bot, gate: bot.Gate, telegram: Counting) -> None:
    gone: list[int] = []

    async def on_gone(chat_id: int) -> None:
        gone.append(chat_id)

    gate.on_gone = on_gone
    group = telegram.group("Pond", forum=True)
    with pytest.raises(bot.ChatGone):
        await bot.say(api, group.id, "hi", thread_id=999)
    assert gone == []


async def test_a_group_that_moved_gets_its_message_in_the_new_place(
    api: Bot, gate: bot.Gate, telegram: Counting
) -> None:
    moves: list[tuple[int, int]] = []

    async def on_migrated(old: int, new: int) -> None:
        moves.append((old, new))

    gate.on_migrated = on_migrated
    old = telegram.group("Pond", kind="group")
    asked = telegram._store(old, {"from": telegram.users[ANNA], "text": "?"})
    new = telegram.migrate(old)
    await bot.say(api, old.id, "still here", reply_to_id=asked["message_id"])
    await bot.say(api, old.id, "and again")
    assert [message["text"] for message in telegram.sent(new)] == ["still here", "and again"]
    assert moves == [(old.id, new.id)]
    assert "reply_to_message" not in telegram.sent(new)[0]
    assert telegram.tries == 3  # the second one knew the way


@pytest.mark.parametrize("known", [False, True])
async def test_what_moved_touches_no_message_that_happens_to_have_the_same_number(
    api: Bot, gate: bot.Gate, telegram: Counting, known: bool
) -> None:
    old = telegram.group("Pond", kind="group")
    new = telegram.migrate(old)
    new.bot_status = "administrator"  # who may delete what others said
    theirs = telegram._store(new, {"from": telegram.users[ANNA], "text": "mine"})["message_id"]
    ours = await bot.say(api, new.id, "ours")
    assert ours
    if known:
        await bot.say(api, old.id, "this found the way")
    before = {id_: dict(message) for id_, message in new.messages.items()}
    await bot.edit(api, old.id, ours, "something else")  # gone, which is no error
    methods: list[Any] = [
        DeleteMessage(chat_id=old.id, message_id=theirs),
        bot.Frame(chat_id=old.id, message_id=ours, text="a frame"),
        SetMessageReaction(chat_id=old.id, message_id=theirs, reaction=[ReactionTypeEmoji(emoji="👍")]),
    ]
    for method in methods:
        with pytest.raises(TelegramBadRequest, match="MESSAGE_ID_INVALID"):
            await api(method)
    assert new.messages == before and not telegram.called("setMessageReaction")


async def test_a_copy_into_a_group_that_moved_arrives(api: Bot, telegram: Counting) -> None:
    mine = telegram._store(telegram.private(telegram.users[ANNA]), {"from": telegram.users[ANNA], "text": "news"})
    old = telegram.group("Pond", kind="group")
    new = telegram.migrate(old)
    await api(bot.Copy(chat_id=old.id, from_chat_id=ANNA, message_id=mine["message_id"]))
    assert [message["text"] for message in telegram.sent(new)] == ["news"]


async def test_a_group_that_never_arrives_is_an_error(api: Bot, telegram: Counting) -> None:
    telegram.fault("migrate", "sendMessage", 99, to=-100500)
    with pytest.raises(TelegramAPIError):
        await api(hello())


# -- pacing


def times_of(pacing: bot.Pacing, chats: list[int]) -> list[tuple[float, int]]:
    """When each of these messages goes, if all want to go now."""
    return [(pacing.book(chat_id, 0.0), chat_id) for chat_id in chats]


def busiest(times: list[float], period: float) -> int:
    """The most messages in any period of that length."""
    return max((sum(start <= at < start + period - 1e-6 for at in times) for start in times), default=0)


@pytest.mark.parametrize(
    ("chat_id", "count", "last"),
    [(7, 5, 0.0), (7, 6, 5.0), (7, 11, 10.0), (-5, 20, 0.0), (-5, 21, 60.0), (-5, 41, 120.0)],
)
def test_a_chat_has_its_pace(chat_id: int, count: int, last: float) -> None:
    assert times_of(bot.Pacing(1000), [chat_id] * count)[-1][0] == last


@pytest.mark.parametrize(("count", "last"), [(30, 0.0), (31, 1.0), (61, 2.0)])
def test_all_chats_together_have_a_pace(count: int, last: float) -> None:
    assert times_of(bot.Pacing(30), list(range(1, count + 1)))[-1][0] == last


@pytest.mark.parametrize("seed", range(10))
def test_no_limit_is_broken_whoever_writes_when(seed: int) -> None:
    dice, pacing, now = random.Random(seed), bot.Pacing(10), 0.0
    sent: list[tuple[float, int]] = []
    for _ in range(400):
        now += dice.choice([0, 0, 0, 0.01, 0.5, 7])
        chat_id = dice.choice([-1, -1, -2, 1, 1, 2, 3, 4, 5, 6])
        sent.append((now + pacing.book(chat_id, now), chat_id))
    assert busiest([at for at, _ in sent], 1.0) <= 10
    for chat in {chat_id for _, chat_id in sent}:
        most, period = (20, 60.0) if chat < 0 else (5, 5.0)
        assert busiest([at for at, chat_id in sent if chat_id == chat], period) <= most


@pytest.mark.parametrize("crowded", [-5, 5])
def test_a_chat_with_a_long_queue_does_not_hold_up_the_others(crowded: int) -> None:
    pacing = bot.Pacing(30)
    times_of(pacing, [crowded] * 60)
    assert [wait for wait, _ in times_of(pacing, [7, 8, 9])] <= [3.0] * 3


@pytest.mark.parametrize("power", [3, 10, 17, 24])
def test_booking_comes_to_an_end_at_any_time(power: int) -> None:
    at = 2.0**power
    for _ in range(60):  # where a sum of two times is rounded
        at = math.nextafter(at, 0.0)
        crowd = bot.Crowd(1, 1.0)
        crowd.book(at, at)
        later = crowd._conflict(at)
        assert later is not None and later > at
        assert (crowd._conflict(later) or math.inf) > later


def test_a_crowd_books_in_any_order() -> None:
    crowd = bot.Crowd(2, 1.0)
    assert [crowd.book(at, 0.0) for at in (9.0, 9.0, 0.0, 0.0, 0.0, 8.5, 0.0)] == [9.0, 9.0, 0.0, 0.0, 1.0, 10.0, 1.0]
    assert [crowd.share(now) for now in (0.0, 0.9, 1.0, 2.0)] == [1.0, 1.0, 1.0, 0.0]


def test_without_pacing_nothing_waits_but_where_telegram_said_so() -> None:
    pacing = bot.Pacing(0)
    assert times_of(pacing, [7] * 100)[-1][0] == 0.0
    pacing.hold(7, 30.0)
    assert pacing.book(7, 10.0) == 20.0 and pacing.book(8, 10.0) == 0.0
    assert pacing.book(7, 31.0) == 0.0


def test_pacing_forgets_chats_that_are_quiet() -> None:
    pacing = bot.Pacing(1000)
    for n in range(1, 6000):
        pacing.book(n, n * 1.0)
    assert len(pacing) <= 2001


@pytest.mark.parametrize("per_second", [0, 30])
def test_pacing_forgets_what_telegram_said_long_ago(per_second: int) -> None:
    pacing = bot.Pacing(per_second)
    for n in range(1, 6000):
        pacing.hold(n, n + 1.0)
        pacing.book(n, n + 2.0)
    assert len(pacing._held) <= 2001


async def test_the_gate_waits_for_the_place_it_booked(bare: Bot, telegram: Counting, clock: Clock) -> None:
    bare.session.middleware(bot.Gate(clock, random.Random(1), 30))
    start = clock.at
    for n in range(7):
        await bare(hello(str(n)))
    assert clock.at - start == 5.0
    assert [message["text"] for message in telegram.sent(ANNA)] == [str(n) for n in range(7)]


async def test_edits_are_paced_and_questions_are_not(bare: Bot, telegram: Counting, clock: Clock) -> None:
    bare.session.middleware(bot.Gate(clock, random.Random(1), 30))
    sent = await bare(hello())
    for n in range(6):
        await bot.edit(bare, ANNA, sent.message_id, str(n))
    assert sum(clock.slept) >= 5.0
    slept = len(clock.slept)
    for _ in range(50):
        await bare(GetMe())
    assert len(clock.slept) == slept


async def test_drafts_are_dropped_before_messages_have_to_wait(bare: Bot, telegram: Counting, clock: Clock) -> None:
    bare.session.middleware(bot.Gate(clock, random.Random(1), 10))
    draft = bot.Draft(chat_id=ANNA, draft_id=1, text="dra")
    dropped = 0
    for _ in range(20):
        try:
            await bare(draft)
        except bot.NoRoom:
            dropped += 1
    assert 5 <= len(telegram.drafts(ANNA)) <= 6 and dropped >= 14
    await bare(hello("final"))
    assert clock.slept == []
    clock.at += 1.1
    assert await bare(draft)


async def test_no_draft_goes_to_a_chat_that_has_to_wait(api: Bot, gate: bot.Gate, clock: Clock) -> None:
    gate.pacing.hold(ANNA, clock.at + 10)
    for light in (bot.Draft(chat_id=ANNA, draft_id=1, text="d"), SendChatAction(chat_id=ANNA, action="typing")):
        with pytest.raises(bot.NoRoom):
            await api(light)
    clock.at += 11
    await api(bot.Draft(chat_id=ANNA, draft_id=1, text="d"))


async def test_who_waits_at_the_gate_gives_up_its_slot(bare: Bot, telegram: Counting, clock: Clock) -> None:
    bare.session.middleware(bot.Gate(clock, random.Random(1), 30))
    slots, free = bot.Slots(1), list[int]()
    clock.on_sleep = [lambda: free.append(slots._free._value)]
    async with slots:
        for _ in range(6):
            await bare(hello())
        free.append(slots._free._value)
    assert free == [1, 0]


# -- say, edit


async def test_a_message_goes_into_its_topic_under_what_it_answers(api: Bot, telegram: Counting) -> None:
    group = telegram.group("Pond", forum=True)
    thread = telegram.topic(group, "Bait")
    asked = telegram._store(group, {"from": telegram.users[ANNA], "text": "?"}, thread)
    await bot.say(api, group.id, "!", thread_id=thread, reply_to_id=asked["message_id"])
    await bot.say(api, group.id, "?", thread_id=thread, reply_to_id=12345)  # deleted meanwhile
    first, second = telegram.sent(group)
    assert first["message_thread_id"] == second["message_thread_id"] == thread
    assert first["reply_to_message"]["message_id"] == asked["message_id"]
    assert second["reply_to_message"]["message_id"] == thread


async def test_refused_entities_cost_the_formatting_and_not_the_message(api: Bot, telegram: Counting) -> None:
    bad = bot.Piece("hi", ({"type": "bold", "offset": 0, "length": 99},))
    sent = await bot.say(api, ANNA, bad)
    [message] = telegram.sent(ANNA)
    assert (message["text"], message["message_id"]) == ("hi", sent) and "entities" not in message
    assert telegram.tries == 2


async def test_a_refused_message_is_sent_plain_only_once(api: Bot, telegram: Counting) -> None:
    telegram.fault("400", "sendMessage", 9, text="MESSAGE_REFUSED")
    with pytest.raises(TelegramBadRequest):
        await bot.say(api, ANNA, bot.Piece("hi", ({"type": "bold", "offset": 0, "length": 2},)))
    assert telegram.tries == 2
    with pytest.raises(TelegramBadRequest):
        await bot.say(api, ANNA, "plain")
    assert telegram.tries == 3


async def test_a_lost_answer_is_no_message_id_and_no_second_message(
    api: Bot, telegram: Counting, caplog: pytest.LogCaptureFixture
) -> None:
    telegram.fault("truncated", "sendMessage")
    assert await bot.say(api, ANNA, "once") is None
    assert len(telegram.sent(ANNA)) == 1
    assert [record.levelname for record in caplog.records if record.name == "okun"] == ["ERROR"]


async def test_links_in_a_message_show_no_preview(api: Bot, telegram: Counting) -> None:
    await bot.say(api, ANNA, "see https://example.com")
    assert telegram.calls[-1].params["link_preview_options"] == {"is_disabled": True}


async def test_a_message_that_says_so_already_is_no_fault(api: Bot, telegram: Counting) -> None:
    sent = await bot.say(api, ANNA, "same")
    assert sent
    await bot.edit(api, ANNA, sent, "same")
    await bot.edit(api, ANNA, sent, "other")
    assert telegram.sent(ANNA)[0]["text"] == "other"


# -- files


async def test_a_file_is_fetched_whole(api: Bot, telegram: Counting) -> None:
    data = random.Random(1).randbytes(300_000)
    stored = telegram.store_file("document", data, name="my file.bin")
    assert await bot.fetch_file(api, stored.card["file_id"]) == data


async def test_a_file_that_telegram_does_not_give_is_too_big(api: Bot, telegram: Counting) -> None:
    stored = telegram.store_file("document", b"x", size=21 << 20)
    with pytest.raises(bot.BotError) as error:
        await bot.fetch_file(api, stored.card["file_id"])
    assert error.value.key == "media.too_big"


async def test_a_file_larger_than_it_said_is_not_read_to_the_end(
    api: Bot, telegram: Counting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "MAX_DOWNLOAD", 100_000)
    stored = telegram.store_file("document", b"x" * 300_000, size=10)
    with pytest.raises(bot.BotError) as error:
        await bot.fetch_file(api, stored.card["file_id"])
    assert error.value.key == "media.too_big"
    assert await bot.fetch_file(api, telegram.store_file("document", b"x" * 100_000).card["file_id"])


async def test_a_file_that_is_not_there_is_gone(api: Bot) -> None:
    with pytest.raises(bot.BotError) as error:
        await bot.fetch_file(api, "never-was")
    assert error.value.key == "media.gone" and not isinstance(error.value, bot.Unavailable)


@pytest.mark.parametrize(
    ("fault", "target"),
    [("500", "getFile"), ("reset", "getFile"), ("timeout", "getFile"), ("500", "download"), ("reset", "download"),
     ("401", "download"), ("502html", "download")],
)  # fmt: skip
async def test_a_file_that_cannot_be_had_now_may_be_later(
    api: Bot, telegram: Counting, monkeypatch: pytest.MonkeyPatch, fault: str, target: str
) -> None:
    monkeypatch.setattr(bot, "CALL_TIMEOUT_S", 0.02 if fault == "timeout" else 10)
    stored = telegram.store_file("document", b"x" * 1000)
    telegram.fault(fault, target, 6)
    with pytest.raises(bot.Unavailable) as error:
        await bot.fetch_file(api, stored.card["file_id"])
    assert error.value.key == "media.unreachable"


async def test_a_download_that_breaks_off_is_not_half_a_file(http: bot.Once[Any]) -> None:
    class Half(Server):
        def handle(self, request: Request) -> Reply:
            if b"getFile" in request.path.encode():
                file = {"file_id": "f", "file_unique_id": "u", "file_size": 1000, "file_path": "a/b.bin"}
                return response(bot.json_dumps({"ok": True, "result": file}).encode())
            request.write(response(b"x" * 1000)[:-500])
            return b""

    async with Half() as server:
        api = Bot("42:TEST", session=bot.LeanSession(server.url, http))
        with pytest.raises(bot.Unavailable):
            await bot.fetch_file(api, "f")


# -- the slim import

PROBE = """
import json, sys
import bot, pydantic
from aiogram.methods import TelegramMethod

def kinds():
    for name, thing in vars(bot).items():
        if isinstance(thing, type) and issubclass(thing, pydantic.BaseModel) and thing.__module__ != "bot":
            yield name, thing
    for thing in bot.HOT_TYPES:
        yield thing.__name__, thing

built = {}
for name, kind in kinds():
    kind.model_rebuild()
    built[name] = bool(kind.__pydantic_complete__)
    if issubclass(kind, TelegramMethod) and isinstance(getattr(kind, "__returning__", None), (type, object)):
        if name != "TelegramMethod" and kind.__returning__ is not None:
            bot.response_type(kind).model_rebuild()
bot.warm_up()

user = {"id": 1, "is_bot": False, "first_name": "A"}
chat = {"id": -100, "type": "supergroup", "title": "P"}
message = {"message_id": 5, "date": 1, "chat": chat, "from": user, "text": "hi",
           "entities": [{"type": "bold", "offset": 0, "length": 2}],
           "reply_to_message": {"message_id": 4, "date": 1, "chat": chat, "photo": [
               {"file_id": "f", "file_unique_id": "u", "width": 1, "height": 1}]}}
member = {"status": "administrator", "user": user, "is_anonymous": False, "can_be_edited": False}
member |= dict.fromkeys(("can_manage_chat can_delete_messages can_manage_video_chats can_restrict_members "
    "can_promote_members can_change_info can_invite_users can_post_stories can_edit_stories "
    "can_delete_stories can_send_welcome_messages").split(), True)
answers = {
    "Say": {"message_id": 5}, "GetMe": user | {"can_join_groups": True},
    "GetFile": {"file_id": "f", "file_unique_id": "u", "file_path": "a/b"}, "GetChatMember": member,
}
read = {}
for name, result in answers.items():
    answer = bot.response_type(getattr(bot, name)).model_validate({"ok": True, "result": result})
    read[name] = type(answer.result).__name__
from aiogram.types import Update
from aiogram.methods import SendInvoice, SendPhoto, SetMyCommands
for body in ({"message": message}, {"edited_message": message},
             {"callback_query": {"id": "1", "from": user, "chat_instance": "1", "message": message, "data": "x"}}):
    update = Update.model_validate({"update_id": 1, **body})
    read[update.event_type] = type(update.event).__name__
commands = bot.SetMyCommands(commands=[bot.BotCommand(command="a", description="b")],
                             scope=bot.BotCommandScopeChat(chat_id=1))
row = [bot.InlineKeyboardButton(text="a", callback_data="b")]
markup = bot.InlineKeyboardMarkup(inline_keyboard=[row])
read["plain"] = bot.plain([commands, bot.Say(chat_id=1, text="a", reply_markup=markup),
    bot.SetMessageReaction(chat_id=1, message_id=2, reaction=[bot.ReactionTypeEmoji(emoji="x")])], {})
print(json.dumps({"built": built, "read": read, "slim": bool(bot._AIOGRAM_NAMES)}))
"""


def probe(folder: Path, slim: str) -> subprocess.Popen[str]:
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(bot.HERE), "SLIM_AIOGRAM": slim, "PYTHONWARNINGS": "error"}
    (folder / slim).mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", PROBE], cwd=folder / slim, env=env, text=True, stdout=-1, stderr=-1, stdin=-3
    )


def test_every_type_that_okun_uses_builds_with_and_without_the_slim_import(tmp_path: Path) -> None:
    found = {}
    for slim, process in [(slim, probe(tmp_path, slim)) for slim in ("on", "off")]:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        found[slim] = json.loads(out)
        assert found[slim].pop("slim") == (slim == "on")
    assert found["on"]["read"] == found["off"]["read"]
    built = found["on"]["built"]
    assert found["off"]["built"].items() <= built.items()
    assert all(built.values()) and {kind.__name__ for kind in bot.HOT_TYPES} <= built.keys()
    assert found["on"]["read"]["GetChatMember"] == "ChatMemberAdministrator"


async def test_the_http_session_has_room_for_everything_at_work() -> None:
    session = await bot.open_http(settings(MAX_PARALLEL_UPDATES="500", MAX_PARALLEL_LLM="100"))
    assert session.connector and session.connector.limit >= 600
    await session.close()


def test_a_file_id_is_asked_for_by_its_own_type() -> None:
    assert bot.plain(GetFile(file_id="f"), {}) == {"file_id": "f"}
