"""Slow work as rows: what each state looks like, what it costs and gives back, what a kill, a full disk, a Telegram
that is away do to it, and people who change their minds. The work is a picture of a word, done when the test says."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from aiogram.types import BufferedInputFile
from conftest import ANNA, BORYS, OWNER, Later, Okun, Room, drawn, settings

import bot

KIND = "draw"  # its words are there in three languages
FULL = sqlite3.OperationalError("database or disk is full")
one_slot = settings(max_parallel_images=1)


class Studio:
    """Does the jobs of the tests: each waits until the test says what comes of it, unless it is `quick`."""

    def __init__(self) -> None:
        self.quick = False
        self.begun: list[str] = []
        self.under_way: dict[str, asyncio.Future[Any]] = {}
        self.most = 0  # that were under way at once
        self.said: str | None = None
        self.ended: list[tuple[str, str]] = []  # told by `failed`: (what, its new state)
        self.gone: set[str] = set()  # what cannot be done any more
        self.moves: list[str] = []  # told by `after`

    async def run(self, app: bot.App, job: bot.Job) -> bot.JobEnd:
        what = job.data["what"]
        self.begun.append(what)
        if not self.quick:
            self.under_way[what] = asyncio.get_running_loop().create_future()
            self.most = max(self.most, len(self.under_way))
            try:
                await self.under_way[what]
            finally:
                del self.under_way[what]
        png = drawn(bot.Drawing(what)).data
        photo = BufferedInputFile(png + what.encode(), "okun.png")
        options = bot.aside(job.thread_id, job.message_id)
        await bot.patiently(app, lambda: app.bot(bot.DrawnPhoto(chat_id=job.chat_id, photo=photo, **options)))

        async def effect(tx: bot.Tx) -> None:
            await tx.run("INSERT INTO meta (name, value) VALUES (?, ?)", f"drawn {what}", str(job.id))

        return bot.JobEnd(effect, self.said)

    async def failed(self, tx: bot.Tx, job: bot.Job, state: str) -> None:
        assert job.state == state and bool(job.error) == (state != "cancelled")
        self.ended.append((job.data["what"], state))

    async def queued(self, tx: bot.Tx, job: bot.Job) -> None:
        if job.data["what"] in self.gone:
            raise bot.BotError("promo.unknown")

    async def after(self, app: bot.App, job: bot.Job) -> None:
        self.moves.append(f"{job.data['what']} {job.state}")

    def finish(self, what: str) -> None:
        self.under_way[what].set_result(None)

    def fail(self, what: str, error: Exception | None = None) -> None:
        self.under_way[what].set_exception(error or bot.BotError("llm.blocked"))


@pytest.fixture(autouse=True)
def studio(monkeypatch: pytest.MonkeyPatch) -> Studio:
    """One kind of job, and /paint, which asks for it."""
    studio = Studio()
    spec = bot.JobSpec(
        studio.run,
        "images",
        "images",
        lambda settings: settings.images_per_day,
        lambda settings: settings.price_image,
        "image",
        studio.failed,
        studio.queued,
        studio.after,
        None,
        bot.once,
    )
    monkeypatch.setitem(bot.JOBS, KIND, spec)

    async def on_paint(app: bot.App, who: bot.Who, args: str) -> None:
        await bot.open_panel(app, who, "job", str(await bot.queue_job(app, who, KIND, {"what": args})))

    monkeypatch.setitem(bot.COMMANDS, "paint", bot.Command("paint", on_paint, ("private", "group")))
    return studio


async def give(okun: Okun, coins: int, user_id: int = ANNA) -> None:
    async with bot.money(okun.app, user_id) as tx:
        await bot.ensure_person(tx, user_id)
        await bot.post(tx, user_id, "coins", coins, "promo", f"given {user_id}", 0)


def have(okun: Okun, user_id: int = ANNA) -> int:
    found = okun.rows("SELECT amount FROM balances WHERE user_id = ? AND currency = 'coins'", user_id)
    return int(found[0][0]) if found else 0


def used(okun: Okun, user_id: int = ANNA) -> int:
    found = okun.rows("SELECT used FROM quotas WHERE user_id = ? AND name = 'images'", user_id)
    return int(found[0][0]) if found else 0


def states(okun: Okun) -> list[str]:
    return [row[0] for row in okun.rows("SELECT state FROM jobs ORDER BY id")]


def pictures(room: Room) -> list[str]:
    """The pictures that were sent there."""
    files = room.okun.telegram.files
    found = [files[reply.raw["photo"][-1]["file_id"]].data for reply in room.replies if reply.picture]
    return [data.rpartition(b"IEND")[2][4:].decode() for data in found]


def words(room: Room) -> list[str]:
    return [reply.text for reply in room.replies if not reply.picture]


async def resume(okun: Okun) -> None:
    """A round of the loop, which does not run by itself here."""
    await bot.jobs_resume(okun.app)
    await bot.begin_jobs(okun.app)
    await okun.settle()


def doing(okun: Okun, lang: str = "en") -> str:
    return okun.t("job.doing.draw", lang)


def queued(okun: Okun, place: int, lang: str = "en") -> str:
    return okun.t("job.queued", lang, place=place)


@contextlib.contextmanager
def full_disk(okun: Okun, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No transaction begins."""

    @contextlib.asynccontextmanager
    async def no_tx(**how: Any) -> AsyncIterator[Any]:
        raise FULL
        yield

    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db, "tx", no_tx)
        yield


# -- a job's life


async def test_a_job_is_shown_done_and_gone(okun: Okun, chat: Room, studio: Studio) -> None:
    [shown] = await chat.say("/paint pike")
    assert shown.text == doing(okun) and shown.buttons == [okun.t("job.button.cancel")]
    assert shown.reply_to == chat.last_id and states(okun) == ["running"]
    studio.finish("pike")
    await okun.settle()
    [picture] = chat.replies
    assert pictures(chat) == ["pike"] and picture.reply_to == chat.last_id
    assert okun.rows("SELECT state, attempts, told, ended_at FROM jobs") == [("done", 1, 1, int(okun.clock.now()))]
    assert okun.rows("SELECT value FROM meta WHERE name = 'drawn pike'") == [("1",)]
    assert not okun.app.working and not okun.app.handing and not okun.app.telling._locks and okun.inbox_rows == []
    assert studio.moves == ["pike queued", "pike done"]
    assert len(okun.called("editMessageText")) == 0  # it said so from the beginning


async def test_a_job_may_end_with_words(okun: Okun, chat: Room, studio: Studio) -> None:
    studio.said = "Here you are."
    await chat.say("/paint pike")
    studio.finish("pike")
    await okun.settle()
    assert words(chat) == ["Here you are."] and chat.replies[0].buttons == []
    pressed = await chat.press_data(f"d1:{ANNA}:job_cancel:1", chat.replies[0])
    assert pressed.note == okun.t("job.over") and pressed.message.text == "Here you are."


@pytest.mark.parametrize("name", ["Anna", "Borys", "Vira"])
async def test_a_failure_says_why_in_the_speakers_language(okun: Okun, studio: Studio, name: str) -> None:
    room = okun.private(name)
    lang = okun.person(name)["language_code"]
    await room.say("/paint pike")
    studio.fail("pike", bot.BotError("limit.day.images", most=3, left_s=7200.0))
    await okun.settle()
    left = okun.app.texts.span(lang, 7200, into=True)
    [shown] = room.replies
    assert shown.text == okun.t("limit.day.images", lang, most=3, left=left)
    assert shown.buttons == [okun.t("job.button.again", lang)] and states(okun) == ["failed"]


async def test_those_who_wait_see_their_place_change(okun: Okun, chat: Room, studio: Studio, later: Later) -> None:
    okun.app.settings = dataclasses.replace(okun.app.settings, max_parallel_images=1)
    borys, vira = okun.private("Borys"), okun.private("Vira")
    await chat.say("/paint pike")
    assert words(borys) == [] and (await borys.say("/paint perch"))[0].text == queued(okun, 1, "uk")
    assert (await vira.say("/paint carp"))[0].text == queued(okun, 2, "ru")
    studio.finish("pike")
    await okun.settle()
    assert words(borys) == [doing(okun, "uk")] and words(vira) == [queued(okun, 1, "ru")]
    assert len(okun.called("editMessageText", borys)) == len(okun.called("editMessageText", vira)) == 1
    await resume(okun)
    assert len(okun.called("editMessageText", vira)) == 1  # nothing new to say
    studio.finish("perch")
    await okun.settle()
    studio.finish("carp")
    await okun.settle()
    assert [pictures(room) for room in (chat, borys, vira)] == [["pike"], ["perch"], ["carp"]]


async def test_ten_people_share_three_slots_in_their_order(okun: Okun, studio: Studio) -> None:
    rooms = {f"P{number}": okun.private(f"P{number}") for number in range(10)}
    for name, room in rooms.items():
        room.put("say", f"/paint {name}")
    await okun.take()
    order = list(rooms)
    assert studio.begun == order[:3] and states(okun).count("running") == 3
    while studio.under_way:
        studio.finish(next(iter(studio.under_way)))
        await asyncio.gather(*(bot.begin_jobs(okun.app) for _ in range(5)))  # who hires twice must not
        await okun.settle()
    assert studio.begun == order and studio.most == 3
    assert [pictures(room) for room in rooms.values()] == [[name] for name in order]
    assert states(okun) == ["done"] * 10 and all(words(room) == [] for room in rooms.values())


@pytest.mark.failing
async def test_a_fault_of_ours_is_told_and_the_next_begins(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    studio.fail("pike", RuntimeError("odd"))
    await okun.settle()
    assert words(chat) == [okun.t("error.sorry")] and okun.failures == {"error RuntimeError": 1}
    await chat.say("/paint perch")
    assert studio.begun == ["pike", "perch"]


async def test_where_nobody_is_any_more_it_has_failed(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    okun.telegram.fault("403", "sendPhoto")
    studio.finish("pike")
    await okun.settle()
    assert states(okun) == ["failed"] and okun.rows("SELECT error FROM jobs") == [('{"key":"job.gone"}',)]
    assert used(okun) == 1  # the work was done


@one_slot
async def test_a_job_that_another_one_lets_begin_is_of_its_own_time(okun: Okun, group: Room, studio: Studio) -> None:
    seen = []

    async def run(app: bot.App, job: bot.Job) -> bot.JobEnd:
        seen.append(bot.outdated(app, job.chat_id))
        return await studio.run(app, job)

    bot.JOBS[KIND] = bot.JOBS[KIND]._replace(run=run)
    await group.say("/paint pike")
    await group.say("/forget me", by="Borys")
    await group.press(okun.t("forget.button.here", "uk"), by="Borys")
    await group.say("/paint perch", by="Vira")
    studio.finish("pike")
    await okun.settle()
    assert studio.begun == ["pike", "perch"] and seen == [False, False]


# -- what it costs


@settings(price_image=5, images_per_day=2)
async def test_it_is_paid_once_and_given_back_once(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 12)
    await chat.say("/paint pike")
    assert have(okun) == 7 and used(okun) == 1
    studio.fail("pike")
    await okun.settle()
    assert have(okun) == 12 and used(okun) == 0 and states(okun) == ["refunded"]
    assert words(chat) == [okun.t("llm.blocked") + "\n\n" + okun.t("job.back", price=5)]
    job = await bot.job_by_id(okun.app.db.reader, 1)
    assert job and not await bot.end_job(okun.app, job, "failed", bot.BotError("error.sorry"))
    assert not await bot.cancel_job(okun.app, job)
    assert have(okun) == 12 and studio.ended == [("pike", "refunded")]
    assert okun.rows("SELECT delta, reason, reference FROM ledger WHERE delta <> 12") == [
        (-5, "image", "job 1"), (5, "undone", "refund:job 1"),
    ]  # fmt: skip


@settings(price_image=5)
async def test_what_is_done_is_not_given_back(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 12)
    studio.quick = True
    await chat.say("/paint pike")
    assert have(okun) == 7 and used(okun) == 1 and states(okun) == ["done"] and studio.ended == []


@settings(price_image=5, images_per_day=2)
async def test_who_cannot_pay_gets_nothing_and_loses_nothing(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 4)
    [refused] = await chat.say("/paint pike")
    assert refused.text == okun.t("job.short", need=5, have=4)
    assert have(okun) == 4 and used(okun) == 0 and states(okun) == [] and studio.begun == []


@settings(price_image=5)
async def test_what_goes_with_it_is_stored_with_it_or_neither(okun: Okun, chat: Room) -> None:
    await give(okun, 12)
    await chat.say("hi")

    async def with_it(tx: bot.Tx, job_id: int) -> None:
        raise bot.BotError("button.old")

    who = bot.Who(chat.id, 0, ANNA, "en", True)
    with pytest.raises(bot.BotError):
        await bot.queue_job(okun.app, who, KIND, {"what": "pike"}, with_it=with_it)
    assert have(okun) == 12 and used(okun) == 0 and states(okun) == []


@settings(images_per_day=2)
async def test_the_day_has_so_many(okun: Okun, chat: Room, studio: Studio) -> None:
    studio.quick = True
    for what in ("pike", "perch"):
        await chat.say(f"/paint {what}")
    [refused] = await chat.say("/paint carp")
    assert refused.text.startswith(okun.t("limit.day.images", most=2, left="12 hours"))
    assert pictures(chat) == ["pike", "perch"]
    boss = okun.private("Owner")
    for what in ("a", "b", "c"):
        await boss.say(f"/paint {what}")
    assert pictures(boss) == ["a", "b", "c"]  # owners are exempt
    assert used(okun, OWNER) == 0


async def test_an_update_that_is_taken_twice_is_one_job(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("hi")
    who = bot.Who(chat.id, 0, ANNA, "en", True, update_id=77)
    first = await bot.queue_job(okun.app, who, KIND, {"what": "pike"})
    assert await bot.queue_job(okun.app, who, KIND, {"what": "pike"}) == first
    assert used(okun) == 1 and states(okun) == ["running"] and studio.begun == ["pike"]


async def test_a_kill_before_the_answer_makes_no_second_job(okun: Okun, chat: Room, studio: Studio) -> None:
    okun.wire.hold("sendMessage")
    chat.put("say", "/paint pike")
    await okun.take()
    assert states(okun) == ["running"] and chat.replies == []
    await okun.restart()
    await resume(okun)
    [shown] = chat.replies
    assert shown.text == doing(okun) and states(okun) == ["running"]
    studio.finish("pike")
    await okun.settle()
    assert pictures(chat) == ["pike"] and words(chat) == []


@one_slot
async def test_nobody_fills_the_queue_alone(okun: Okun, chat: Room, studio: Studio) -> None:
    for number in range(bot.MOST_QUEUED):
        await chat.say(f"/paint {number}")
    [refused] = await chat.say("/paint more")
    assert refused.text == okun.t("job.many", most=bot.MOST_QUEUED) and len(states(okun)) == bot.MOST_QUEUED


# -- calling it off


@one_slot
@settings(price_image=5, images_per_day=9)
async def test_what_waits_is_called_off_and_the_others_move_up(okun: Okun, chat: Room, studio: Studio) -> None:
    borys, vira = okun.private("Borys"), okun.private("Vira")
    for user_id in (ANNA, BORYS, vira.chat.id):
        await give(okun, 5, user_id)
    for room, what in ((chat, "pike"), (borys, "perch"), (vira, "carp")):
        await room.say(f"/paint {what}")
    assert words(vira) == [queued(okun, 2, "ru")]
    pressed = await borys.press(okun.t("job.button.cancel", "uk"))
    back = okun.t("job.cancelled", "uk") + "\n\n" + okun.t("job.back", "uk", price=5)
    assert pressed.note is None and pressed.message.text == back and pressed.replies == []
    assert pressed.message.buttons == [okun.t("job.button.again", "uk")]
    assert len(okun.called("editMessageText", borys)) == 1  # once is enough
    assert have(okun, BORYS) == 5 and used(okun, BORYS) == 0 and studio.ended == [("perch", "cancelled")]
    assert words(vira) == [queued(okun, 1, "ru")]
    studio.finish("pike")
    await okun.settle()
    assert studio.begun == ["pike", "carp"]


@one_slot
@settings(price_image=5, images_per_day=9)
async def test_what_is_at_work_is_called_off_and_the_next_begins(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 10)
    await chat.say("/paint pike")
    await chat.say("/paint perch")
    first = chat.replies[0]
    pressed = await chat.press(okun.t("job.button.cancel"), message=first)
    assert pressed.message.text == okun.t("job.cancelled") + "\n\n" + okun.t("job.back", price=5)
    assert studio.begun == ["pike", "perch"] and list(studio.under_way) == ["perch"]
    assert have(okun) == 5 and used(okun) == 2  # the model was asked: the day's share is used
    assert states(okun) == ["cancelled", "running"] and pictures(chat) == []


async def test_what_is_over_cannot_be_called_off(okun: Okun, chat: Room, studio: Studio) -> None:
    [shown] = await chat.say("/paint pike")
    studio.fail("pike")
    await okun.settle()
    pressed = await chat.press_data(shown.data[0], shown)
    assert pressed.note == okun.t("job.over") and states(okun) == ["failed"]
    assert pressed.message.text == okun.t("llm.blocked")


@settings(price_image=5)
async def test_a_picture_on_its_way_cannot_be_called_off(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 5)
    [shown] = await chat.say("/paint pike")
    sending = okun.wire.hold("sendPhoto")
    studio.finish("pike")
    await okun.settle()
    pressed = await chat.press(okun.t("job.button.cancel"), message=shown)
    assert pressed.note == okun.t("job.sending") and states(okun) == ["running"]
    assert (await chat.say("/cancel"))[0].text == okun.t("cancel.nothing")
    sending.set()
    await okun.settle()
    assert pictures(chat) == ["pike"] and have(okun) == 0 and states(okun) == ["done"]


async def test_another_person_cannot_touch_it(okun: Okun, group: Room, studio: Studio) -> None:
    [shown] = await group.say("/paint pike", by="Anna")
    pressed = await group.press(okun.t("job.button.cancel"), by="Borys")
    assert pressed.note == okun.t("button.not_yours", "uk") and states(okun) == ["running"]
    for act in ("job_cancel", "job_again"):  # a button of one's own with another's number
        forged = await group.press_data(f"d1:{BORYS}:{act}:1", shown, by="Borys")
        assert forged.note == okun.t("button.old", "uk")
    forged = await group.press_data(f"m2:{BORYS}:job:1", shown, by="Borys")
    assert forged.note == okun.t("button.old", "uk")
    assert states(okun) == ["running"] and words(group) == [doing(okun)]


@pytest.mark.parametrize("arg", ["", "0", "-1", "x", "9" * 18, "2", "1 OR 1"])
@pytest.mark.parametrize("data", ["d1:{}:job_cancel:{}", "d1:{}:job_again:{}", "m2:{}:job:{}"])
async def test_a_forged_number_is_an_old_button(okun: Okun, chat: Room, studio: Studio, data: str, arg: str) -> None:
    [shown] = await chat.say("/paint pike")
    pressed = await chat.press_data(data.format(ANNA, arg), shown)
    assert pressed.note == okun.t("button.old") and states(okun) == ["running"]


async def test_a_job_of_another_chat_is_not_shown_here(okun: Okun, chat: Room, group: Room, studio: Studio) -> None:
    [shown] = await chat.say("/paint pike")
    [other] = await group.say("/lang", by="Anna")
    for data in (f"m2:{ANNA}:job:1", f"d1:{ANNA}:job_cancel:1"):
        assert (await group.press_data(data, other, by="Anna")).note == okun.t("button.old")
    assert states(okun) == ["running"] and okun.rows("SELECT panel_id FROM jobs") == [(shown.id,)]


async def test_cancel_ends_what_one_asked_for_here(okun: Okun, chat: Room, group: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    await group.say("/paint perch", by="Anna")
    await group.say("/paint carp", by="Borys")
    assert okun.t("cancel.stopped") in [reply.text for reply in await group.say("/cancel", by="Anna")]
    assert states(okun) == ["running", "cancelled", "running"] and sorted(studio.under_way) == ["carp", "pike"]
    [nothing] = await group.say("/cancel", by="Vira")
    assert nothing.text == okun.t("cancel.nothing", "ru")


async def test_an_anonymous_administrators_job_is_any_administrators(okun: Okun, group: Room, studio: Studio) -> None:
    [shown] = await group.say("/paint pike", by="chat")
    assert (await group.press(shown.buttons[0], by="Borys")).note == okun.t("button.not_yours", "uk")
    assert (await group.press(shown.buttons[0], by="Olena")).note is None and states(okun) == ["cancelled"]


# -- once more


@settings(price_image=5)
async def test_again_asks_and_pays_once_more(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 7)
    await chat.say("/paint pike")
    asked = chat.last_id
    studio.fail("pike")
    await okun.settle()
    [failed] = chat.replies
    pressed = await chat.press(okun.t("job.button.again"))
    assert pressed.message.id == failed.id and pressed.message.text == doing(okun) and have(okun) == 2
    twice = await chat.press_data(failed.data[0], failed)  # tapped twice: the second tap finds the first one's
    assert twice.note is None and have(okun) == 2 and states(okun) == ["refunded", "running"]
    studio.finish("pike")
    await okun.settle()
    assert [reply.reply_to for reply in chat.replies] == [asked] and pictures(chat) == ["pike"]
    forged = await chat.press_data("d1:11:job_again:2", failed)
    assert forged.note == okun.t("job.over") and have(okun) == 2


async def test_what_cannot_be_done_any_more_is_not_paid_again(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    studio.fail("pike")
    await okun.settle()
    studio.gone.add("pike")
    assert (await chat.press(okun.t("job.button.again"))).note == okun.t("promo.unknown")
    assert states(okun) == ["failed"] and words(chat) == [okun.t("llm.blocked")] and used(okun) == 0
    assert studio.moves == ["pike queued", "pike failed"]


# -- a message that is right


async def test_a_job_that_ends_before_its_message_is_there(okun: Okun, chat: Room, studio: Studio) -> None:
    sending = okun.wire.hold("sendMessage")
    chat.put("say", "/paint pike")
    await okun.take()
    studio.finish("pike")
    await okun.settle()
    assert pictures(chat) == ["pike"] and states(okun) == ["done"]
    sending.set()
    await okun.settle()
    assert words(chat) == []


async def test_a_failure_before_the_message_is_there_is_told_once(okun: Okun, chat: Room, studio: Studio) -> None:
    sending = okun.wire.hold("sendMessage")
    chat.put("say", "/paint pike")
    await okun.take()
    studio.fail("pike")
    await okun.settle()
    sending.set()
    await okun.settle()
    assert words(chat) == [okun.t("llm.blocked")] and chat.replies[0].buttons == [okun.t("job.button.again")]


@one_slot
async def test_a_job_that_begins_before_its_message_is_there(okun: Okun, chat: Room, studio: Studio) -> None:
    borys = okun.private("Borys")
    await chat.say("/paint pike")
    sending = okun.wire.hold("sendMessage")
    borys.put("say", "/paint perch")
    await okun.take()
    studio.finish("pike")
    await okun.settle()
    assert studio.begun == ["pike", "perch"]
    sending.set()
    await okun.settle()
    assert words(borys) == [doing(okun, "uk")]


@one_slot
async def test_a_slow_edit_does_not_overwrite_what_came_later(okun: Okun, chat: Room, studio: Studio) -> None:
    borys = okun.private("Borys")
    await chat.say("/paint pike")
    await borys.say("/paint perch")
    editing = okun.wire.hold("editMessageText")
    studio.finish("pike")
    await okun.settle()
    assert okun.wire.waiting["editMessageText"] == 1  # "drawing"
    studio.fail("perch")
    await okun.settle()
    assert states(okun) == ["done", "failed"]
    editing.set()
    await okun.settle()
    assert words(borys) == [okun.t("llm.blocked", "uk")]


async def test_work_does_not_wait_for_its_message(okun: Okun, chat: Room, studio: Studio) -> None:
    okun.app.settings = dataclasses.replace(okun.app.settings, max_parallel_images=1)
    borys = okun.private("Borys")
    await chat.say("/paint pike")
    await borys.say("/paint perch")
    okun.wire.hold("editMessageText")
    studio.finish("pike")
    await okun.settle()
    studio.finish("perch")
    await okun.settle()
    assert pictures(borys) == ["perch"]


async def test_why_it_failed_is_said_anew_where_the_message_is_gone(okun: Okun, chat: Room, studio: Studio) -> None:
    [shown] = await chat.say("/paint pike")
    del chat.chat.messages[shown.id]
    studio.fail("pike")
    await okun.settle()
    [told] = chat.replies
    assert told.text == okun.t("llm.blocked") and told.reply_to == chat.last_id and told.id != shown.id
    assert (await chat.press(okun.t("job.button.again"))).message.text == doing(okun)


async def test_a_message_that_cannot_be_deleted_says_that_it_is_done(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    okun.telegram.fault("400", "deleteMessage", text="message can't be deleted")
    studio.finish("pike")
    await okun.settle()
    assert words(chat) == [okun.t("job.done")]
    [shown] = [reply for reply in chat.replies if not reply.picture]
    assert shown.buttons == [] and okun.rows("SELECT told FROM jobs") == [(1,)]


async def test_a_message_that_is_deleted_already_is_not_missed(okun: Okun, chat: Room, studio: Studio) -> None:
    [shown] = await chat.say("/paint pike")
    del chat.chat.messages[shown.id]  # by a person, or by us before a kill
    studio.finish("pike")
    await okun.settle()
    assert pictures(chat) == ["pike"] and words(chat) == [] and okun.rows("SELECT told FROM jobs") == [(1,)]


# -- Telegram is away


async def test_an_end_that_could_not_be_shown_is_shown_later(
    okun: Okun, chat: Room, studio: Studio, later: Later
) -> None:
    await chat.say("/paint pike")
    okun.wire.down = True
    studio.fail("pike")
    await later(300)
    assert words(chat) == [doing(okun)] and okun.rows("SELECT state, told FROM jobs") == [("failed", 0)]
    await okun.restart()
    await resume(okun)
    assert words(chat) == [okun.t("llm.blocked")]
    await bot.clean(okun.app)
    calls = len(okun.telegram.calls)
    await resume(okun)
    assert len(okun.telegram.calls) == calls  # once


async def test_what_nobody_could_be_told_for_a_day_is_let_go(
    okun: Okun, chat: Room, studio: Studio, later: Later
) -> None:
    await chat.say("/paint pike")
    okun.wire.down = True
    studio.fail("pike")
    await later(bot.DAY_S + 60)
    await bot.jobs_clean(okun.app)
    okun.wire.down = False
    await resume(okun)
    assert words(chat) == [doing(okun)] and okun.rows("SELECT told FROM jobs") == [(1,)]


@pytest.mark.parametrize("minutes", [3, 40])
async def test_a_picture_waits_for_telegram(okun: Okun, chat: Room, studio: Studio, later: Later, minutes: int) -> None:
    await chat.say("/paint pike")
    okun.wire.down = True
    studio.finish("pike")
    await later(minutes * 60)
    assert states(okun) == ["running"] and pictures(chat) == []
    okun.wire.down = False
    await later(400)
    assert pictures(chat) == ["pike"] and states(okun) == ["done"] and studio.begun == ["pike"]


@settings(price_image=5)
async def test_after_an_hour_it_is_given_back(okun: Okun, chat: Room, studio: Studio, later: Later) -> None:
    await give(okun, 5)
    await chat.say("/paint pike")
    okun.wire.down = True
    studio.finish("pike")
    await later(2 * bot.JOB_OUTAGE_S)
    assert states(okun) == ["refunded"] and have(okun) == 5
    okun.wire.down = False
    await resume(okun)
    assert words(chat) == [okun.t("job.unsent") + "\n\n" + okun.t("job.back", price=5)] and pictures(chat) == []


async def test_telegram_is_asked_again_when_it_said_to_wait(
    okun: Okun, chat: Room, studio: Studio, later: Later
) -> None:
    await chat.say("/paint pike")
    okun.telegram.fault("429", "sendPhoto", times=2, retry_after=400)  # more than the gate waits by itself
    studio.finish("pike")
    await later(300)
    assert states(okun) == ["running"]
    await later(900)
    assert pictures(chat) == ["pike"] and studio.begun == ["pike"]


@settings(price_image=5)
async def test_a_picture_that_may_have_arrived_is_not_sent_twice(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 5)
    await chat.say("/paint pike")
    okun.telegram.fault("timeout", "sendPhoto")
    studio.finish("pike")
    await okun.settle()
    assert len(okun.called("sendPhoto")) == 0 and states(okun) == ["refunded"] and have(okun) == 5
    assert words(chat) == [okun.t("job.unsure") + "\n\n" + okun.t("job.back", price=5)]


# -- a disk that is full, rows that cannot be stored


async def test_on_a_full_disk_the_end_waits_and_the_work_is_done_once(
    okun: Okun, chat: Room, studio: Studio, later: Later, monkeypatch: pytest.MonkeyPatch
) -> None:
    await chat.say("/paint pike")
    with full_disk(okun, monkeypatch):
        studio.finish("pike")
        await later(200)
        assert pictures(chat) == ["pike"] and states(okun) == ["running"]
        await later(200)
    await later(120)
    assert states(okun) == ["done"] and pictures(chat) == ["pike"] and studio.begun == ["pike"]


@pytest.mark.failing
@settings(price_image=5)
async def test_an_effect_that_cannot_be_stored_is_a_failure(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 5)
    async with okun.app.db.tx() as tx:
        await tx.run("INSERT INTO meta (name, value) VALUES ('drawn pike', '0')")
    await chat.say("/paint pike")
    studio.finish("pike")
    await okun.settle()
    assert states(okun) == ["refunded"] and have(okun) == 5 and not okun.app.working
    assert okun.rows("SELECT value FROM meta WHERE name = 'drawn pike'") == [("0",)]


# -- a kill, a stop


@one_slot
@settings(price_image=5)
async def test_a_restart_goes_on_with_all_that_was_under_way(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 20)
    for what in ("pike", "perch", "carp"):
        await chat.say(f"/paint {what}")
    assert have(okun) == 5
    await okun.restart()
    assert states(okun) == ["running", "queued", "queued"] and studio.begun == ["pike"]
    await resume(okun)
    assert studio.begun == ["pike", "pike"]  # in its old place
    assert words(chat) == [doing(okun), queued(okun, 1), queued(okun, 2)]
    for what in ("pike", "perch", "carp"):
        studio.finish(what)
        await okun.settle()
    assert pictures(chat) == ["pike", "perch", "carp"] and words(chat) == []
    assert have(okun) == 5 and okun.rows("SELECT attempts FROM jobs") == [(2,), (1,), (1,)]


@settings(price_image=5, images_per_day=3)
async def test_what_ended_three_lives_is_given_back(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 5)
    await chat.say("/paint pike")
    for _ in range(2):
        await okun.restart()
        await resume(okun)
    assert studio.begun == ["pike"] * 3 and states(okun) == ["running"] and have(okun) == 0
    await okun.restart()
    await resume(okun)
    assert studio.begun == ["pike"] * 3 and states(okun) == ["refunded"] and have(okun) == 5 and used(okun) == 0
    assert words(chat) == [okun.t("error.sorry") + "\n\n" + okun.t("job.back", price=5)]


async def test_a_kill_between_the_end_and_its_words(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    await chat.say("/paint perch")
    for method in ("editMessageText", "deleteMessage"):
        okun.wire.hold(method)
    studio.fail("pike")
    studio.finish("perch")
    await okun.settle()
    assert states(okun) == ["failed", "done"] and words(chat) == [doing(okun)] * 2
    await okun.restart()
    await resume(okun)
    assert words(chat) == [okun.t("llm.blocked")] and pictures(chat) == ["perch"]
    assert studio.begun == ["pike", "perch"]


async def test_a_kill_between_the_beginning_and_the_work(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    await okun.crash()
    with contextlib.closing(sqlite3.connect(okun.path)) as database, database:
        database.execute("UPDATE jobs SET state = 'queued', attempts = 0")
    await okun.open()
    async with okun.app.db.tx() as tx:
        assert await bot.start_job(tx, 1) and not await bot.start_job(tx, 1)
    await resume(okun)
    assert studio.begun == ["pike", "pike"] and states(okun) == ["running"]


async def test_a_round_of_the_loop_leaves_those_at_work_alone(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    for _ in range(5):
        await resume(okun)
    assert studio.begun == ["pike"] and okun.rows("SELECT attempts FROM jobs") == [(1,)]


async def test_a_stop_lets_those_at_work_end_and_begins_no_others(okun: Okun, chat: Room, studio: Studio) -> None:
    okun.app.settings = dataclasses.replace(okun.app.settings, max_parallel_images=1)
    await chat.say("/paint pike")
    await chat.say("/paint perch")
    stopping = asyncio.create_task(bot.drain_jobs(okun.app, 20))
    await okun.settle()
    assert not stopping.done()
    studio.finish("pike")
    await okun.settle()
    assert stopping.done() and states(okun) == ["done", "queued"] and studio.begun == ["pike"]
    await okun.restart()
    await resume(okun)
    assert studio.begun == ["pike", "perch"]


async def test_a_stop_does_not_wait_for_ever(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/paint pike")
    stopping = asyncio.create_task(bot.drain_jobs(okun.app, 20))
    await later(21)
    assert stopping.done() and states(okun) == ["running"]


@settings(price_image=5)
async def test_a_kind_that_is_no_more_is_given_back(
    okun: Okun, chat: Room, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    await give(okun, 5)
    await chat.say("/paint pike")
    await okun.crash()
    monkeypatch.setitem(bot.JOBS, "train", bot.JOBS[KIND])
    monkeypatch.delitem(bot.JOBS, KIND)
    await okun.open()
    await resume(okun)
    assert states(okun) == ["refunded"] and have(okun) == 5
    [told] = chat.replies
    assert told.text == okun.t("button.old") + "\n\n" + okun.t("job.back", price=5) and told.buttons == []


async def test_what_ended_a_month_ago_is_deleted(okun: Okun, chat: Room, studio: Studio, later: Later) -> None:
    studio.quick = True
    await chat.say("/paint pike")
    studio.quick = False
    await chat.say("/paint perch")
    await later(bot.JOBS_KEPT_S + 60)
    await bot.jobs_clean(okun.app)
    assert states(okun) == ["running"]


# -- who is banned, who goes, what moves


@settings(price_image=5, max_parallel_images=1)
async def test_who_is_banned_gets_nothing_but_the_money_back(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 10)
    borys = okun.private("Borys")
    await give(okun, 5, BORYS)
    await chat.say("/paint pike")
    await chat.say("/paint perch")
    await borys.say("/paint carp")
    await okun.private("Owner").say(f"/admin ban {ANNA}")
    assert states(okun) == ["cancelled", "cancelled", "running"] and have(okun) == 10
    assert list(studio.under_way) == ["carp"] and pictures(chat) == []


@settings(price_image=5)
async def test_who_may_not_use_the_bot_any_more_is_not_served(okun: Okun, chat: Room, studio: Studio) -> None:
    await give(okun, 5)
    await chat.say("/paint pike")
    await okun.restart(allowed_users=frozenset({BORYS}))
    await resume(okun)
    assert studio.begun == ["pike"] and states(okun) == ["cancelled"] and have(okun) == 5


@settings(price_image=5, max_parallel_images=1)
async def test_forgetting_here_calls_off_what_was_asked_for_here(
    okun: Okun, chat: Room, group: Room, studio: Studio
) -> None:
    await give(okun, 20)
    await group.say("/paint pike", by="Anna")
    await group.say("/paint perch", by="Anna")
    await chat.say("/paint carp")
    await group.say("/forget me", by="Anna")
    await group.press(okun.t("forget.button.here"), by="Anna")
    assert okun.rows("SELECT chat_id, state FROM jobs") == [(chat.id, "running")] and have(okun) == 15
    assert list(studio.under_way) == ["carp"] and pictures(group) == []
    assert words(group)[0].startswith(okun.t("job.cancelled"))


@settings(price_image=5)
async def test_forgetting_everywhere_leaves_nothing_and_sends_nothing(
    okun: Okun, chat: Room, group: Room, studio: Studio
) -> None:
    await give(okun, 20)
    await group.say("/paint pike", by="Anna")
    await chat.say("/paint perch")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    assert states(okun) == [] and studio.under_way == {} and not okun.app.working
    assert okun.rows("SELECT * FROM ledger") == [] and okun.rows("SELECT * FROM balances") == []
    sent = len(okun.telegram.calls)
    await resume(okun)
    assert len(okun.telegram.calls) == sent and pictures(chat) == pictures(group) == []


async def test_who_only_asked_for_pictures_there_is_forgotten_there_too(
    okun: Okun, chat: Room, group: Room, studio: Studio
) -> None:
    await chat.say("hi")
    await group.say("/paint pike", by="Anna")
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM members WHERE user_id = ?", ANNA)
    assert await bot.chats_of(okun.app.db.reader, ANNA) == [group.id, chat.id]


@pytest.mark.parametrize("known", [True, False])
@settings(price_image=5, max_parallel_images=1)
async def test_a_group_that_becomes_a_supergroup_takes_its_jobs_along(okun: Okun, studio: Studio, known: bool) -> None:
    group = okun.group("Pond", "Anna", kind="group")
    await give(okun, 10)
    await group.say("/paint pike")
    await group.say("/paint perch")
    new = okun.telegram.migrate(group.chat)
    there = Room(okun, new)
    if known:
        await there.say("we are here now", by="Anna")
    await okun.take()
    assert okun.rows("SELECT chat_id, message_id, panel_id, state FROM jobs") == [
        (new.id, None, None, "running"), (new.id, None, None, "queued"),
    ]  # fmt: skip
    studio.finish("pike")
    await okun.settle()
    studio.fail("perch")
    await okun.settle()
    assert pictures(there) == ["pike"] and states(okun) == ["done", "refunded"] and have(okun) == 5
    assert okun.t("llm.blocked") + "\n\n" + okun.t("job.back", price=5) in words(there)


async def test_the_export_has_what_was_asked_for(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    head = await bot.export_head(okun.app, ANNA)
    [job] = head["jobs"]
    assert (job["kind"], job["data"], job["state"], job["chat_id"]) == (KIND, '{"what":"pike"}', "running", chat.id)


# -- the shape of it


def test_each_state_has_its_words(okun: Okun) -> None:
    jobs = [
        bot.Job(1, KIND, "images", 1, 0, 1, lang, None, None, {}, state, price, "", 0, 0, {"key": "llm.blocked"}, said,
                told=False)
        for lang, state, price, said in itertools.product(
            ("uk", "ru", "en"), ("queued", "running", "done", "failed", "refunded", "cancelled"), (0, 5), (None, "!"))
    ]  # fmt: skip
    for job in jobs:
        told = bot.job_words(okun.app, job, 3)
        assert (told is None) == (job.state == "done" and job.said is None)
        assert ("5 🪙" in (told or "")) == (job.price == 5 and job.state not in ("queued", "running", "done"))


async def test_the_jobs_of_the_terminal_are_left_to_the_terminal(okun: Okun, chat: Room, studio: Studio) -> None:
    await chat.say("/paint pike")
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE jobs SET pool = 'console images'")
    await okun.restart()
    await resume(okun)
    assert studio.begun == ["pike"] and okun.rows("SELECT state, attempts FROM jobs") == [("running", 1)]
