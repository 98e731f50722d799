"""The gallery: one picture at a time, paged around, filtered, counted, from one query at most; and that whatever this
part of the bot shows or does is refused to whom it does not belong."""

from __future__ import annotations

import asyncio
import io
import itertools
import json
import re
from collections.abc import Iterable
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from conftest import ANNA, BORYS, KYIV, TEXTS, Later, Okun, Pressed, Reply, Room, Script, settings
from PIL import Image
from test_avatars import CARD, collected, complete, identity, shot

import bot

DAY = 86_400
WORDS = bot.time_words(TEXTS)


def wish(prompt: str = "a cat", **fields: Any) -> str:
    return bot.json_dumps(bot.Wish(prompt, **fields)._asdict())


def file_id(okun: Okun, colour: str = "red") -> str:
    """A picture that Telegram has."""
    out = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(out, "PNG")
    return str(okun.telegram.store_file("photo", out.getvalue(), width=64, height=64).card["file_id"])


async def add(
    okun: Okun, number: int = 1, by: int = ANNA, ago: float = 0, file: str | None = None, **fields: Any
) -> list[int]:
    """Put pictures into somebody's gallery, as a drawing does; their ids, oldest first."""
    row = {"me": 0, "favourite": 0, "wish": wish(), **fields}
    file, ids = file or file_id(okun), []
    async with okun.app.db.tx() as tx:
        await bot.ensure_person(tx, by)
        await tx.run("INSERT INTO chats (chat_id, kind, title) VALUES (?, 'private', '') ON CONFLICT DO NOTHING", by)
        for _ in range(number):
            made = await tx.one(  # a picture has the id of its job
                """INSERT INTO jobs (kind, pool, chat_id, thread_id, user_id, lang, data, state, price, day, queued_at)
                   VALUES ('draw', 'images', ?, 0, ?, 'en', '{}', 'done', 0, '', 0) RETURNING id""",
                by, by,
            )  # fmt: skip
            id_ = made["id"] if made else 0
            at = int(okun.clock.now() - ago)
            await tx.run(
                """INSERT INTO pictures (id, user_id, chat_id, file_id, wish, me, favourite, made_at)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?)""",
                id_, by, by, file, row["wish"], row["me"], row["favourite"], at,
            )  # fmt: skip
            ids.append(id_)
    bot.forget_gallery_cached(okun.app, by)
    return ids


async def numbered(okun: Okun, number: int, by: int = ANNA, **fields: Any) -> list[int]:
    """Pictures whose prompts tell them apart: "fish 1" is the oldest."""
    return [(await add(okun, by=by, wish=wish(f"fish {n}"), **fields))[0] for n in range(1, number + 1)]


class Gallery:
    """A gallery on the screen: the message that shows it now."""

    def __init__(self, room: Room, message: Reply) -> None:
        self.room, self.message = room, message

    @classmethod
    async def open(cls, room: Room) -> Gallery:
        [message] = await room.say("/gallery")
        return cls(room, message)

    @property
    def prompt(self) -> str:
        return self.message.text.splitlines()[0]

    @property
    def place(self) -> str:
        return next(label for label in self.message.buttons if re.fullmatch(r"\d+/\d+", label))

    async def press(self, label: str) -> str | None:
        """The note that comes; the message is the newest one where another took its place."""
        pressed = await self.room.press(label, message=self.message)
        self._take(pressed)
        return pressed.note

    async def send(self, data: str) -> str | None:
        pressed = await self.room.press_data(data, self.message)
        self._take(pressed)
        return pressed.note

    def _take(self, pressed: Pressed) -> None:
        menus = [reply for reply in pressed.replies if reply.data]
        self.message = menus[-1] if menus else pressed.message

    def data(self, label: str) -> str:
        return dict(zip(self.message.buttons, self.message.data, strict=True))[label]


@pytest.fixture
def t(okun: Okun) -> Any:
    return lambda key, **fields: okun.t(f"gallery.{key}", **fields)


# -- paging


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_an_empty_gallery_offers_to_draw(okun: Okun, lang: str) -> None:
    room = okun.private({"en": "Anna", "uk": "Borys", "ru": "Vira"}[lang])
    [reply] = await room.say("/gallery")
    assert reply.text == okun.t("gallery.empty", lang) and not reply.picture
    assert reply.buttons == [okun.t("gallery.button.draw", lang), okun.t("menu.back", lang)]
    assert reply.data[0].split(":")[2] == "draw"


async def test_the_newest_picture_comes_first_with_what_it_is(okun: Okun, chat: Room) -> None:
    await add(okun, wish=wish("an old fish"))
    [id_] = await add(
        okun, wish=wish("a cat\nin a boat " * 40, ratio="9:16"), me=1, file=(mine := file_id(okun, "blue"))
    )
    [reply] = await chat.say("/gallery")
    assert reply.picture and [call["photo"] for call in okun.called("sendPhoto")] == [mine]
    assert reply.text.startswith("a cat in a boat a cat in a boat") and "…" in reply.text
    assert len(reply.text) < 450 and "1/2 · 13 May 2026, 12:00 · 9:16" in reply.text
    assert okun.t("gallery.with") in reply.text
    assert reply.buttons[:3] == ["◀", "1/2", "▶"]
    assert okun.rows("SELECT max(id) FROM pictures") == [(id_,)]


async def test_paging_wraps_both_ways(okun: Okun, chat: Room) -> None:
    await numbered(okun, 5)
    gallery = await Gallery.open(chat)
    seen = [(gallery.prompt, gallery.place)]
    for label in "▶▶▶▶▶◀◀":
        assert await gallery.press(label) is None
        seen.append((gallery.prompt, gallery.place))
    assert seen == [(f"fish {n}", f"{6 - n}/5") for n in (5, 4, 3, 2, 1, 5, 1, 2)]
    assert len(okun.called("sendPhoto")) == 1 and len(okun.called("editMessageMedia")) == 7


async def test_one_picture_alone_has_no_pages(okun: Okun, chat: Room) -> None:
    await add(okun)
    assert not {"◀", "▶", "1/1"} & {*(await Gallery.open(chat)).message.buttons}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15])
async def test_every_step_from_every_place_is_the_right_one(okun: Okun, number: int) -> None:
    ids = [(await add(okun))[0] for _ in range(number)]
    ids.reverse()
    for place, id_ in enumerate(ids):
        for step, to in (("", place), ("<", place - 1), (">", place + 1)):
            for warm in (False, True):
                if not warm:
                    okun.app.galleries.forget_all(ANNA)
                shelf, at = await bot.gallery_shelf(okun.app, ANNA, bot.Spot(id_, step))
                assert (shelf.total, at, shelf.pictures[at].id) == (number, to % number + 1, ids[to % number])
        for n, picture in (await bot.gallery_shelf(okun.app, ANNA, bot.Spot(id_)))[0].pictures.items():
            assert ids[n - 1] == picture.id


async def test_a_press_costs_one_query_and_within_three_pictures_none(okun: Okun, chat: Room) -> None:
    await numbered(okun, 40)
    gallery = await Gallery.open(chat)
    costs = []
    for label in "▶▶▶▶▶▶▶▶◀◀":
        before = okun.app.db.reader.reads
        await gallery.press(label)
        costs.append(okun.app.db.reader.reads - before)
    assert costs == [0, 0, 0, 1, 0, 0, 0, 1, 0, 0] and gallery.prompt == "fish 34"


async def test_three_steps_around_either_end_cost_nothing(okun: Okun, chat: Room) -> None:
    await numbered(okun, 40)
    gallery = await Gallery.open(chat)
    before = okun.app.db.reader.reads
    for label in "◀◀◀▶▶▶▶▶▶":
        await gallery.press(label)
    assert okun.app.db.reader.reads == before and gallery.place == "4/40"


async def test_what_is_cached_is_bounded_and_forgotten_after_five_minutes(okun: Okun, chat: Room, later: Later) -> None:
    await numbered(okun, 3)
    gallery = await Gallery.open(chat)
    assert okun.app.caches["galleries"] is okun.app.galleries and len(okun.app.galleries) == 1
    await later(301)
    before = okun.app.db.reader.reads
    await gallery.press("▶")
    assert okun.app.db.reader.reads == before + 1 and len(okun.app.galleries) == 1


async def test_the_buttons_hold_after_a_restart_and_in_two_galleries_at_once(okun: Okun, chat: Room) -> None:
    await numbered(okun, 12)
    one, other = await Gallery.open(chat), await Gallery.open(chat)
    for _ in range(6):
        await one.press("▶")
    await okun.restart()
    await other.press("▶")
    await one.press("▶")
    assert (one.place, other.place) == ("8/12", "2/12") and one.message.id != other.message.id


async def test_pictures_that_come_and_go_meanwhile_move_the_place(okun: Okun, chat: Room) -> None:
    ids = await numbered(okun, 6)
    one, other = await Gallery.open(chat), await Gallery.open(chat)
    await one.press("▶")  # fish 5
    await numbered(okun, 2)
    await one.press("2/6")
    assert (one.prompt, one.place) == ("fish 5", "4/8")
    await other.send(f"d1:{ANNA}:gallery_delete:{ids[4]}")
    assert (other.prompt, other.place) == ("fish 4", "4/7")
    await one.press("▶")  # the picture it stood at is gone: from there on
    assert (one.prompt, one.place) == ("fish 4", "4/7")
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM pictures")
    bot.forget_gallery_cached(okun.app, ANNA)
    await one.press("▶")
    assert one.message.text == okun.t("gallery.empty") and not one.message.picture


async def test_a_shelf_that_was_read_before_a_change_is_not_kept(okun: Okun) -> None:
    await numbered(okun, 3)
    load = bot.gallery_shelf(okun.app, ANNA, bot.Spot())
    task = okun.app.spawn(load, "look")
    bot.forget_gallery_cached(okun.app, ANNA)
    await add(okun)
    await okun.settle()
    assert task.done() and (await bot.gallery_shelf(okun.app, ANNA, bot.Spot()))[0].total == 4


async def test_a_picture_that_telegram_has_no_more_is_told_passed_and_deleted(okun: Okun, chat: Room, t: Any) -> None:
    await add(okun, wish=wish("fish 1"))
    await add(okun, wish=wish("fish 2"), file="photo-9-gone")
    await add(okun, wish=wish("fish 3"))
    gallery = await Gallery.open(chat)
    await gallery.press("▶")
    assert gallery.message.text.startswith(t("lost")) and "fish 2" in gallery.message.text and gallery.place == "2/3"
    assert not gallery.message.picture
    await gallery.press("▶")
    assert gallery.prompt == "fish 1" and gallery.message.picture
    await gallery.press("◀")
    await gallery.press(t("button.delete"))
    assert gallery.message.text.startswith(t("lost"))
    assert await gallery.press(t("button.really")) == t("deleted")
    assert (gallery.prompt, gallery.place) == ("fish 1", "2/2") and gallery.message.picture


@settings(images_per_day=0)
async def test_what_is_drawn_is_in_the_gallery_at_once(okun: Okun, chat: Room) -> None:
    await numbered(okun, 2)
    gallery = await Gallery.open(chat)
    await chat.say("/draw a cat in a boat")
    await gallery.press("1/2")
    assert gallery.place == "2/3"
    await gallery.press("◀")
    assert gallery.prompt == "a cat in a boat" and gallery.place == "1/3"


# -- favourites, prompts, drawing again, deleting


async def test_the_heart_is_put_and_taken_once_however_often_it_is_tapped(okun: Okun, chat: Room, t: Any) -> None:
    await numbered(okun, 2)
    gallery = await Gallery.open(chat)
    heart = gallery.data("🤍")
    assert [await gallery.send(heart), await gallery.send(heart)] == [t("loved"), t("loved")]
    assert okun.rows("SELECT favourite FROM pictures ORDER BY id") == [(0,), (1,)] and gallery.prompt == "fish 2"
    assert await gallery.press("❤️") == t("unloved")
    assert okun.rows("SELECT favourite FROM pictures ORDER BY id") == [(0,), (0,)]


async def test_the_prompt_comes_whole_to_be_copied(okun: Okun, chat: Room, t: Any) -> None:
    prompt = "*cat* <b>in</b> a `boat` 🐟 " * 90
    await add(okun, wish=wish(prompt))
    gallery = await Gallery.open(chat)
    before = gallery.message.id
    pressed = await chat.press(t("button.prompt"))
    assert "".join(reply.text for reply in pressed.replies).split() == prompt.split()
    assert all(reply.entities == ["pre"] for reply in pressed.replies)
    assert pressed.message.id == before and pressed.message.picture and pressed.note is None


async def test_again_asks_for_the_same(okun: Okun, chat: Room, model: Script, t: Any) -> None:
    [id_] = await add(okun, wish=wish("a cat in a boat", ratio="9:16"))
    await Gallery.open(chat)
    pressed = await chat.press(t("button.again"))
    assert okun.rows("SELECT kind, json_extract(data, '$.ratio') FROM jobs WHERE id > ?", id_) == [("draw", "9:16")]
    [asked] = model.wishes
    assert "a cat in a boat" in asked.prompt and asked.ratio == "9:16" and pressed.note is None
    assert (await Gallery.open(chat)).place == "1/2"


async def test_what_is_deleted_is_asked_first_and_stays_in_the_chat(okun: Okun, chat: Room, t: Any) -> None:
    await numbered(okun, 3)
    gallery = await Gallery.open(chat)
    await gallery.press("▶")
    await gallery.press(t("button.delete"))
    assert gallery.message.text.startswith(t("ask_delete")) and gallery.message.picture
    await gallery.press(okun.t("menu.back"))
    assert (gallery.prompt, gallery.place) == ("fish 2", "2/3")
    await gallery.press(t("button.delete"))
    deleted = len(okun.called("deleteMessage"))
    assert await gallery.press(t("button.really")) == t("deleted")
    assert (gallery.prompt, gallery.place) == ("fish 1", "2/2") and len(okun.called("deleteMessage")) == deleted
    assert okun.rows("SELECT value FROM meta WHERE name = 'unclean'") == [("1",)]
    await gallery.press(t("button.delete"))
    await gallery.press(t("button.really"))  # of the last one the first is next
    assert gallery.prompt == "fish 3"
    await gallery.press(t("button.delete"))
    await gallery.press(t("button.really"))
    assert gallery.message.text == t("empty")


async def test_a_button_of_a_picture_that_is_gone_says_so(okun: Okun, chat: Room, t: Any) -> None:
    ids = await numbered(okun, 2)
    gallery = await Gallery.open(chat)
    old = dict(zip(gallery.message.buttons, gallery.message.data, strict=True))
    await gallery.send(f"d1:{ANNA}:gallery_delete:{ids[1]}")
    for label in ("🤍", t("button.prompt"), t("button.again"), t("button.delete")):
        assert await gallery.send(old[label]) == t("gone"), label
    assert await gallery.send(f"d1:{ANNA}:gallery_delete:{ids[1]}") == t("gone")
    assert gallery.prompt == "fish 1" and not okun.rows("SELECT 1 FROM jobs WHERE state <> 'done'")


# -- filters


async def filled(okun: Okun) -> None:
    """One of each kind, named after it."""
    today = okun.clock.now()
    for days in (0, 3, 20, 60):
        for me in (0, 1):
            for favourite in (0, 1):
                await add(okun, me=me, favourite=favourite, ago=days * DAY, wish=wish(f"{days} {me} {favourite}"))
    assert today == okun.clock.now()


PERIODS: dict[str, set[int]] = {"": {0, 3, 20, 60}, "1": {0}, "7": {0, 3}, "30": {0, 3, 20}, "260301-260423": {20, 60},
           "260423-260513": {0, 3, 20}, "250101-250201": set()}  # fmt: skip


async def test_filters_are_combined(okun: Okun) -> None:
    await filled(okun)
    for period, whose, favourite in itertools.product(PERIODS, ("", "a", "n"), (False, True)):
        spot = bot.Spot.of(bot.Spot(0, "", whose, favourite, period).arg)
        shelf, place = await bot.gallery_shelf(okun.app, ANNA, spot)
        seen = []
        for _ in range(shelf.total):
            seen.append(tuple(map(int, shelf.pictures[place].asked.prompt.split())))
            at = shelf.pictures[place].id
            shelf, place = await bot.gallery_shelf(okun.app, ANNA, spot._replace(at=at, step=">"))
        me, loved = {"": (0, 1), "a": (1,), "n": (0,)}[whose], (1,) if favourite else (0, 1)
        assert {*seen} == {*itertools.product(PERIODS[period], me, loved)} and len(seen) == len({*seen}), spot


async def test_a_filter_is_chosen_shown_and_cleared_by_buttons(okun: Okun, chat: Room, t: Any) -> None:
    await filled(okun)
    gallery = await Gallery.open(chat)
    assert gallery.place == "1/16"
    await gallery.press(t("button.filter"))
    assert t("all") in gallery.message.text and "16 pictures" in gallery.message.text
    for label in (t("button.with"), t("button.favourites"), t("days.7")):
        await gallery.press(label)
    assert {f"✓ {t('button.with')}", f"✓ {t('button.favourites')}", f"✓ {t('days.7')}"} <= {*gallery.message.buttons}
    assert "2 pictures" in gallery.message.text
    await gallery.press(t("button.show"))
    words = f"{t('with')}, {t('favourites')}, {t('days.7')}"
    assert (gallery.prompt, gallery.place) == ("3 1 1", "1/2") and words in gallery.message.text
    await gallery.press("▶")
    assert (gallery.prompt, gallery.place) == ("0 1 1", "2/2")
    await okun.restart()
    await gallery.press("❤️")  # it leaves the filter, which stays
    assert (gallery.prompt, words in gallery.message.text) == ("3 1 1", True)
    await gallery.press(t("button.filter"))
    await gallery.press(f"✓ {t('button.with')}")
    await gallery.press(t("button.without"))
    await gallery.press(t("button.clear"))
    assert "✓" not in "".join(gallery.message.buttons)
    await gallery.press(okun.t("menu.back"))
    assert gallery.place.endswith("/16")


async def test_an_empty_filter_says_so_and_can_be_cleared(okun: Okun, chat: Room, t: Any) -> None:
    await add(okun)
    gallery = await Gallery.open(chat)
    await gallery.press(t("button.filter"))
    await gallery.press(t("button.with"))
    assert t("button.show") not in gallery.message.buttons and "0 pictures" in gallery.message.text
    await gallery.press(okun.t("menu.back"))
    assert gallery.message.text == t("none", filter=t("with"))
    assert {t("button.filter"), t("button.clear"), t("button.draw")} <= {*gallery.message.buttons}
    await gallery.press(t("button.clear"))
    assert gallery.prompt == "a cat"


async def test_today_ends_at_midnight_of_the_bot(okun: Okun, chat: Room) -> None:
    okun.clock.set(2026, 5, 13, 23, 58)
    await add(okun)
    shelf, _ = await bot.gallery_shelf(okun.app, ANNA, bot.Spot(period="1"))
    okun.clock.set(2026, 5, 14, 0, 1)
    after, _ = await bot.gallery_shelf(okun.app, ANNA, bot.Spot(period="1"))
    assert (shelf.total, after.total) == (1, 0)


async def test_two_days_are_asked_for_and_read(okun: Okun, chat: Room, t: Any) -> None:
    await filled(okun)
    gallery = await Gallery.open(chat)
    await gallery.press(t("button.filter"))
    await gallery.press(t("button.favourites"))
    await gallery.press(t("button.dates"))
    assert gallery.message.text == t("ask_dates")
    for said, key in (
        ("last week", "no_dates"),
        ("31.02", "no_day"),
        ("1.11 2.11 3.11", "no_dates"),
        ("42", "no_dates"),
    ):
        [reply] = await chat.say(said)
        assert reply.text == t(key), said
    [shown] = await chat.say("20 April – 10 May")
    assert shown.picture and "20 Apr 2026 – 10 May 2026" in shown.text and t("favourites") in shown.text
    assert shown.buttons[1] == "1/4"
    assert len(shown.data[0].encode()) <= 64
    gallery = Gallery(chat, shown)
    await gallery.press(t("button.filter"))
    assert "✓ 20 Apr 2026 – 10 May 2026" in gallery.message.buttons


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026-11-01 2026-11-20", (2026, 11, 1), (2026, 11, 20)),
        ("1.11–20.11", (2026, 11, 1), (2026, 11, 20)),
        ("1.11-20.11", (2026, 11, 1), (2026, 11, 20)),
        ("з 1.11 по 20.11", (2026, 11, 1), (2026, 11, 20)),
        ("20.11 - 1.11", (2026, 11, 1), (2026, 11, 20)),
        ("1.11 – 30.11", (2026, 11, 1), (2026, 11, 30)),
        ("20.12 – 5.1", (2025, 12, 20), (2026, 1, 5)),
        ("1–20 листопада", (2026, 11, 1), (2026, 11, 20)),
        ("1 листопада – 20 листопада 2025", (2025, 11, 1), (2025, 11, 20)),
        ("с 20 декабря по 5 января 2026", (2025, 12, 20), (2026, 1, 5)),
        ("from Nov 1 to Nov 20", (2026, 11, 1), (2026, 11, 20)),
        ("1 Nov 2026 - 20 Nov 2026", (2026, 11, 1), (2026, 11, 20)),
        ("01.11.26-20.11.26", (2026, 11, 1), (2026, 11, 20)),
        ("01/11/2026 20/11/2026", (2026, 11, 1), (2026, 11, 20)),
        ("2026-11-20 2026-11-01", (2026, 11, 1), (2026, 11, 20)),
        ("5 мая", (2026, 5, 5), (2026, 5, 5)),
        ("29.02.2024", (2024, 2, 29), (2024, 2, 29)),
        ("30.11", (2025, 11, 30), (2025, 11, 30)),  # the latest that has begun
    ],
)
def test_days_as_people_write_them(text: str, first: tuple[int, int, int], last: tuple[int, int, int]) -> None:
    assert bot.read_days(WORDS, text, date(2026, 11, 21)) == (date(*first), date(*last))


@pytest.mark.parametrize(
    ("text", "key"),
    [("", "no_dates"), ("завтра", "no_dates"), ("5", "no_dates"), ("1.11 2.11 3.11", "no_dates"),
     ("1 кота 2 кота", "no_dates"),      ("2026 11 01", "no_dates"), ("32.11", "no_day"), ("1.13", "no_day"),
     ("29.02.2025", "no_day"), ("1.1.1999", "no_day"),
     ("9999-01-01", "no_day"), ("0.0", "no_day"), ("1.11.2026 1.1.2100", "no_day")],
)  # fmt: skip
def test_days_that_are_none(text: str, key: str) -> None:
    with pytest.raises(bot.BotError) as error:
        bot.read_days(WORDS, text, date(2026, 11, 21))
    assert error.value.key == f"gallery.{key}"


# -- statistics, profile, export


async def test_the_statistics_say_all_that_is_there_from_one_query(okun: Okun, chat: Room, t: Any) -> None:
    await add(okun, 3, ago=70 * DAY, me=1, wish=wish(ratio="9:16", style="anime"))
    await add(okun, 2, favourite=1)
    await add(okun, 5, by=BORYS)
    gallery = await Gallery.open(chat)
    before = okun.app.db.reader.reads
    await gallery.press(t("button.stats"))
    assert okun.app.db.reader.reads == before + 1
    lines = gallery.message.text.splitlines()
    assert lines[0] == t("stats", pictures="5 pictures") and lines[1] == t("by_avatar", me=3, others=2)
    assert t("favourite_count", count=2) in lines and t("formats", formats="9:16 – 3, 1:1 – 2") in lines
    assert t("styles", styles="Anime – 3, no style – 2") in lines
    assert t("first", day="04 Mar 2026, 11:00") in lines and t("last", day="13 May 2026, 12:00") in lines
    assert lines[-2:] == ["05.2026: 2", "03.2026: 3"]
    await gallery.press(okun.t("menu.back"))
    assert gallery.place == "1/5"


async def test_months_of_long_ago_are_one_line(okun: Okun, t: Any) -> None:
    drawn = [
        bot.DrawnAlike('["1:1",""]', 0, 0, int(at), int(at), 1)
        for month in range(1, 13)
        for year in (2024, 2025)
        if (at := datetime(year, month, 5, tzinfo=KYIV).timestamp())
    ]
    lines = bot.gallery_facts(okun.app, "en", drawn)
    assert lines[-1] == t("before", count=12) and lines[-2] == "01.2025: 1" and lines[-13] == "12.2025: 1"


async def exports(okun: Okun, path: Path) -> list[dict[str, Any]]:
    """What is exported of Anna."""
    return [json.loads(file.read_text("utf-8")) for file in await bot.write_export(okun.app, ANNA, path)]


async def test_profile_and_export_have_the_pictures(okun: Okun, chat: Room, tmp_path: Path) -> None:
    await chat.say("/profile")
    await add(okun, 3, wish=wish("a cat in a boat"), favourite=1)
    [profile] = await chat.say("/profile")
    assert okun.t("profile.pictures", pictures=3) in profile.text
    assert (await chat.press(okun.t("menu.to.gallery"), message=profile)).replies[0].picture
    [document] = await exports(okun, tmp_path)
    assert [one["wish"]["prompt"] for one in document["pictures"]] == ["a cat in a boat"] * 3
    assert document["pictures"][0]["favourite"] == 1 and len(document["messages"]) > 1


@pytest.mark.parametrize(("slice_", "most"), [(1, 10**6), (3, 600), (7, 1), (100, 2000)])
async def test_a_large_gallery_is_exported_in_slices_and_files(
    okun: Okun, chat: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slice_: int, most: int
) -> None:
    """Ten thousand wishes at once would take 180 MB."""
    monkeypatch.setattr(bot, "EXPORT_SLICE", slice_)
    monkeypatch.setattr(bot, "MAX_EXPORT_BYTES", most)
    await chat.say("hello")
    await numbered(okun, 10)
    await add(okun, by=BORYS, wish=wish("not hers"))
    documents = await exports(okun, tmp_path)
    found = [one["wish"]["prompt"] for document in documents for one in document.get("pictures", ())]
    assert found == [f"fish {n}" for n in range(1, 11)] and (len(documents) > 1) is (most < 10**6)
    assert [one["text"] for document in documents for one in document["messages"]].count("hello") == 1


async def test_what_is_forgotten_is_not_in_the_gallery(okun: Okun, chat: Room) -> None:
    await chat.say("hello")
    await numbered(okun, 2)
    gallery = await Gallery.open(chat)
    await bot.forget_person(okun.app, ANNA, [chat.id], everywhere=False)
    await gallery.press("▶")
    assert gallery.message.text == okun.t("gallery.empty")


# -- where, and whose


async def test_in_a_group_the_way_leads_to_private(okun: Okun, group: Room) -> None:
    await add(okun)
    [reply] = await group.say("/gallery")
    assert reply.text == okun.t("private.start")
    chat = okun.private("Anna")
    await chat.say("/start")
    count = len(chat.replies)
    [reply] = await group.say("/gallery")
    assert reply.text == okun.t("private.sent")
    assert chat.replies[count].picture and chat.replies[count].text.startswith("a cat")
    [reply] = await group.say("/gallery", by="chat")
    assert reply.text == okun.t("gallery.anonymous", "uk")


async def test_the_link_of_the_group_opens_the_gallery(okun: Okun, chat: Room) -> None:
    await add(okun)
    [reply] = await chat.say("/start gallery")
    assert reply.picture


RUBBISH = ("", "0", "1", "-1", "9" * 18, "9" * 30, "x", "1.", "1.z", "1<>", "<", ">", "1>.af30", ".269999-260101",
           ".261301-261302", ".1-2", "1.a.f", "a", "１", "2x", "21", ".f7", "1.n<")  # fmt: skip


@pytest.mark.parametrize("place", ["private", "group"])
async def test_rubbish_is_answered_kindly_and_changes_nothing(okun: Okun, place: str) -> None:
    """Ids that are nobody's, of whoever else, filters that are none."""
    room = okun.private("Borys") if place == "private" else okun.group()
    [menu] = await room.say("/menu", by="Borys")
    theirs = await numbered(okun, 3)
    before = okun.rows("SELECT * FROM pictures")
    for kind, names in (("m2", bot.PANELS), ("d1", bot.ACTS)):
        for name in names:
            if not name.startswith(("gallery", "picture")):
                continue
            for arg in (*RUBBISH, *map(str, theirs), f"1{theirs[0]}", f"0{theirs[0]}"):
                if len(data := f"{kind}:{BORYS}:{name}:{arg}") > 64:
                    continue
                pressed = await room.press_data(data, menu, by="Borys")
                shown = [*pressed.replies, pressed.message]
                assert not any("fish" in reply.text or reply.picture for reply in shown), data
                menu = next((reply for reply in pressed.replies if reply.data), pressed.message)
    assert okun.rows("SELECT * FROM pictures") == before and not okun.rows("SELECT 1 FROM jobs WHERE state <> 'done'")
    assert okun.inbox_rows == [] and not okun.failures


async def test_the_longest_position_fits_into_a_button(okun: Okun) -> None:
    owner, spot = 10**16 - 1, bot.Spot(10**10 - 1, ">", "a", True, "261101-261120")
    for name in (name for name in bot.PANELS if name.startswith(("gallery", "picture"))):
        assert len(bot.GoPress(owner=owner, name=name, arg=spot.arg).pack().encode()) <= 64
    for name in (name for name in bot.ACTS if name.startswith("gallery")):
        assert len(bot.DoPress(owner=owner, name=name, arg="1" + spot._replace(step="").arg).pack().encode()) <= 64


@pytest.mark.parametrize("arg", ["", "5", "5<", "5>", ".f", "5>.af30", "5.n261101-261120", ".a"])
def test_a_position_survives_its_button(arg: str) -> None:
    assert bot.Spot.of(arg).arg == arg


# -- whose things they are

FEATURE = ("draw", "av", "picture", "gallery", "job", "wish")  # what names of panels and acts begin with
SECRETS = ("secret", "Annusia", CARD)


def names_of(registered: Iterable[str]) -> set[str]:
    return {name for name in registered if name.startswith(FEATURE)}


async def belongings(okun: Okun, chat: Room, model: Script) -> list[str]:
    """Anna has one of everything; the ids of it all."""
    model.says = lambda ask: identity() if ask.schema else "secret fish"
    await complete(chat, "Annusia 1")
    await complete(chat, "Annusia 2", first=10)
    await collected(chat, name="Annusia 3", first=20)
    await chat.say("/draw a secret boat")
    model.draws = lambda wanted: bot.BotError("llm.blocked")
    await chat.say("/draw a secret that fails")
    model.easel = asyncio.Event()
    await chat.say("/draw a secret that takes its time")
    newest = ("SELECT max(id) FROM avatars", "SELECT min(id) FROM avatars", "SELECT id FROM pictures",
              "SELECT max(id) FROM jobs", "SELECT id FROM jobs WHERE state = 'failed'")  # fmt: skip
    return sorted({str(id_) for sql in newest for (id_,) in okun.rows(sql)})


async def buttons_from(okun: Okun, who: bot.Who, start: list[tuple[str, str]]) -> set[str]:
    """All buttons that can be found from these panels on, without pressing one that does something."""
    found, todo, seen = set[str](), start, set[tuple[str, str]]()
    while todo:
        name, arg = todo.pop()
        seen.add((name, arg))
        shown = await bot.panel_for(okun.app, who, name, who.user_id, arg)
        for data in (data for row in shown.rows for _, data in row if not isinstance(data, str)):
            found.add(data.pack())
            if isinstance(data, bot.GoPress) and names_of([data.name]) and (data.name, data.arg) not in seen:
                todo.append((data.name, data.arg))
    return found


async def every_button(okun: Okun, chat: Room) -> set[str]:
    """Anna's buttons of all that there is to draw, to train, to look at."""
    who = bot.Who(ANNA, 0, ANNA, "en", private=True)
    jobs = [("job", str(id_)) for (id_,) in okun.rows("SELECT id FROM jobs")]
    [(picture,)] = okun.rows("SELECT id FROM pictures")
    start = [("draw", ""), ("avatars", ""), ("gallery", ""), ("gallery_dates", ""), ("wish", str(picture)), *jobs]
    found = await buttons_from(okun, who, start)
    for command, label in (("/avatars", "avatar.button.new"), ("/draw", "draw.button.anew")):
        await chat.say(command)
        found |= {*(await chat.press(okun.t(label))).message.data}
    for reply in (*await chat.send("photo", shot(99)), *await chat.say("a secret lake"), *chat.replies):
        found |= {*reply.data}
    return {data for data in found if data.startswith("g1") or names_of(data.split(":")[2:3])}


def things_of(okun: Okun, user_id: int) -> list[object]:
    sqls = ("SELECT * FROM pictures WHERE user_id = ?", "SELECT * FROM avatars WHERE user_id = ?",
            "SELECT p.* FROM avatar_photos AS p JOIN avatars AS a ON a.id = p.avatar_id WHERE a.user_id = ?",
            "SELECT * FROM jobs WHERE user_id = ?", "SELECT * FROM ledger WHERE user_id = ?",
            "SELECT * FROM forms WHERE user_id = ?", "SELECT * FROM quotas WHERE user_id = ?")  # fmt: skip
    return [okun.rows(sql, user_id) for sql in sqls]


async def test_nothing_of_somebody_is_shown_to_another_or_done_for_them(okun: Okun, chat: Room, model: Script) -> None:
    ids = await belongings(okun, chat, model)
    buttons = sorted(await every_button(okun, chat))
    pressed_names = {data.split(":")[2] for data in buttons}
    assert names_of({*bot.PANELS, *bot.ACTS}) - pressed_names <= {"job", "wish", "gallery_dates"}  # what acts show
    before, menu = things_of(okun, ANNA), [reply for reply in chat.replies if reply.data][-1]
    for data in buttons:  # hers, pressed by him
        pressed = await chat.press_data(data, menu, by="Borys")
        assert pressed.note == okun.t("button.not_yours", "uk"), data
        assert pressed.replies == [] and pressed.message.raw == menu.raw, data
    forged = [data.replace(f":{ANNA}:", f":{BORYS}:", 1) for data in buttons]
    forged += [f"m2:{BORYS}:{name}:{arg}" for name in names_of(bot.PANELS) for arg in ids]
    forged += [
        f"d1:{BORYS}:{name}:{arg}" for name in names_of(bot.ACTS) for id_ in ids for arg in (id_, f"{id_}.{id_}")
    ]
    borys = okun.private("Borys")
    [screen] = await borys.say("/menu")
    calls = len(okun.telegram.calls)
    for data in forged:  # his, with what is hers in them
        pressed = await borys.press_data(data, screen)
        told = okun.telegram.calls[calls:]
        calls = len(okun.telegram.calls)
        assert not any(secret in bot.json_dumps(call.params) for call in told for secret in SECRETS), data
        assert not any(call.method in ("sendPhoto", "sendDocument", "editMessageMedia") for call in told), data
        screen = next((reply for reply in reversed(pressed.replies) if reply.data), pressed.message)
        if not screen.data:
            [screen] = await borys.say("/menu")
    assert things_of(okun, ANNA) == before
    assert not okun.rows("SELECT 1 FROM jobs WHERE user_id = ?", BORYS) and not okun.failures
    assert not okun.rows("SELECT 1 FROM pictures WHERE user_id = ?", BORYS)
    model.easel.set() if model.easel else None
