"""Avatars: photos that are checked one by one, a draft that is kept, a model that says who is on them; cards."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ANNA, BORYS, TEXTS, Later, Okun, Pressed, Reply, Room, Script, echo, settings
from PIL import Image, ImageDraw

import bot

DAY = 86_400
CARD = "A round face, grey eyes, a mole on the left cheek, short dark curly hair."
Answer = Callable[[bot.Ask], str | bot.Answer | Exception]


@functools.lru_cache(maxsize=200)
def shot(
    seed: int, width: int = 600, height: int = 800, kind: str = "JPEG", shades: tuple[int, int] = (0, 256)
) -> bytes:
    """A picture that is like no other: discs on a ground, in colours of these shades."""
    dice = random.Random(seed)

    def colour() -> tuple[int, ...]:
        return tuple(dice.randrange(*shades) for _ in range(3))

    image = Image.new("RGB", (width, height), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, radius = dice.random() * width, dice.random() * height, (0.05 + dice.random() / 4) * width
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour())
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def again(data: bytes, quality: int = 60, share: float = 0.9) -> bytes:
    """The same picture, smaller and saved anew."""
    image = Image.open(io.BytesIO(data))
    out = io.BytesIO()
    image.resize((round(image.width * share), round(image.height * share))).save(out, "JPEG", quality=quality)
    return out.getvalue()


def identity(person: bool = True, card: str = CARD, best: tuple[int, ...] = (3, 1, 2)) -> str:
    return json.dumps({"person": person, "card": card, "best": best})


@pytest.fixture(autouse=True)
def knows_faces(okun: Okun) -> None:
    okun.model.says = lambda ask: identity() if ask.schema else echo(ask)


def t(room: Room, key: str, **fields: Any) -> str:
    return room.okun.t(key, room.okun.person(room.by)["language_code"], **fields)


async def click(room: Room, key: str, **how: Any) -> Pressed:
    return await room.press(t(room, f"avatar.button.{key}"), **how)


def menu(room: Room) -> Reply:
    """The newest message with buttons."""
    return [reply for reply in room.replies if reply.data][-1]


async def begin(room: Room, name: str = "Me") -> Reply:
    """A new avatar, up to where photos are awaited."""
    await room.say("/avatars")
    await click(room, "new")
    await click(room, "skip")
    [asked] = await room.say(name)
    return asked


async def album(room: Room, *photos: bytes) -> list[Reply]:
    """An album, and what the bot says to it."""
    before = {reply.id for reply in room.replies}
    room.put("album", photos)
    await room.okun.take()
    await room.okun.later(1)
    return [reply for reply in room.replies if reply.id not in before]


async def collected(room: Room, count: int = 4, name: str = "Me", first: int = 0) -> None:
    """A draft with so many photos."""
    await begin(room, name)
    await album(room, *(shot(first + n) for n in range(count)))


async def train(room: Room) -> Pressed:
    """From the photos to the job."""
    await click(room, "train")
    return await click(room, "train_yes")


async def complete(room: Room, name: str = "Me", first: int = 0) -> int:
    """A finished avatar; its id."""
    await collected(room, name=name, first=first)
    await train(room)
    [(id_, status)] = room.okun.rows("SELECT id, status FROM avatars WHERE name = ?", name)
    assert status == "completed"
    return int(id_)


def avatars(okun: Okun, columns: str = "name, status, main") -> list[Any]:
    return okun.rows(f"SELECT {columns} FROM avatars ORDER BY id")


def photos(okun: Okun) -> int:
    return int(okun.rows("SELECT count(*) FROM avatar_photos")[0][0])


def coins(okun: Okun, user_id: int = ANNA) -> int:
    return int(okun.rows("SELECT coalesce(sum(delta), 0) FROM ledger WHERE user_id = ?", user_id)[0][0])


async def give(okun: Okun, room: Room, amount: int) -> None:
    await room.say("/start")
    async with bot.money(okun.app, room.id) as tx:
        await bot.post(tx, room.id, "coins", amount, "promo", "a gift", okun.clock.now())


# -- from nothing to ready


async def test_an_avatar_from_the_first_question_to_the_notice(okun: Okun, chat: Room, model: Script) -> None:
    [listed] = await chat.say("/avatars")
    assert listed.text.startswith("You don't have any avatars yet") and not okun.model.asks
    assert (await click(chat, "new")).message.text == okun.t("avatar.ask.gender")
    assert avatars(okun) == [("", "draft", 0)]
    asked = (await click(chat, "female")).message
    assert asked.text == okun.t("avatar.ask.name", low=2, high=30)
    [collecting] = await chat.say("Anna at the lake")
    assert "▱▱▱▱▱▱▱▱▱▱ 0 of 4–20" in collecting.text and "4 photos" in collecting.text
    assert avatars(okun) == [("Anna at the lake", "photos_uploading", 0)]
    [answer] = await album(chat, *(shot(n) for n in range(5)))
    assert answer.text.startswith("Taken: 5 photos.\n\nAnna at the lake\n▰▰▰▱▱▱▱▱▱▱ 5 of 4–20")
    assert avatars(okun) == [("Anna at the lake", "ready_for_training", 0)]
    assert "“Anna at the lake” from 5 photos" in (await click(chat, "train")).message.text
    pressed = await click(chat, "train_yes")
    [ask] = model.asks
    sizes = [Image.open(io.BytesIO(media.data)).size for media in ask.said[0].media]
    assert sizes == [(600, 800)] * 5 and ask.schema
    assert ask.said[0].text == "These are 5 photos, numbered from 1 in this order. It is a woman."
    assert avatars(okun, "name, status, main, card, gender") == [("Anna at the lake", "completed", 1, CARD, "female")]
    assert [row[0] for row in okun.rows("SELECT chosen FROM avatar_photos ORDER BY id")] == [1, 1, 1, 0, 0]
    assert not [reply for reply in chat.replies if reply.id == pressed.message.id]  # the job's message went
    notice = chat.replies[-1]
    assert "“Anna at the lake” is ready" in notice.text and okun.t("avatar.ready_main") in notice.text
    [(id_,)] = avatars(okun, "id")
    assert notice.data == [f"m2:{ANNA}:draw:a{id_}", f"m2:{ANNA}:avatar:{id_}"]
    card = (await click(chat, "card")).replies[-1]
    assert card.picture and card.text.splitlines()[0] == "⭐ Anna at the lake" and "Photos: 5" in card.text
    assert okun.inbox_rows == []


async def test_photos_are_shrunk_before_a_model_gets_them(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    await album(chat, *(shot(n, 1500, 2000) for n in range(4)))
    await train(chat)
    pictures = [Image.open(io.BytesIO(media.data)) for media in model.asks[-1].said[0].media]
    assert [(picture.format, max(picture.size)) for picture in pictures] == [("JPEG", 1024)] * 4
    assert {media.mime for media in model.asks[-1].said[0].media} == {"image/jpeg"}


async def test_the_notice_is_in_the_language_of_whoever_it_is_for(okun: Okun) -> None:
    room = okun.private("Borys")
    await complete(room, "Борис")
    assert room.replies[-1].text.startswith("🎉 Аватар «Борис» готовий.")


async def test_the_draft_that_has_no_name_is_the_one_that_is_gone_on_with(okun: Okun, chat: Room) -> None:
    for _ in range(3):
        await chat.say("/avatars")
        await click(chat, "new")
    assert avatars(okun) == [("", "draft", 0)]
    await chat.say("/avatars")
    await chat.press("📷 (no name yet)")
    assert (await click(chat, "continue")).message.text == okun.t("avatar.ask.gender")


async def test_there_are_five_avatars_at_most(okun: Okun, chat: Room) -> None:
    for number in range(5):
        await begin(chat, f"Nr {number}")
    [listed] = await chat.say("/avatars")
    assert okun.t("avatar.button.new") not in listed.buttons and len(avatars(okun)) == 5
    pressed = await chat.press_data(f"d1:{ANNA}:avnew:", listed)
    assert pressed.note == okun.t("avatar.many", most=5) and len(avatars(okun)) == 5


# -- names


@pytest.mark.parametrize(
    ("text", "name"),
    [("Ян", "Ян"), ("  a \n  b ", "a b"), ("👨‍👩‍👧‍👦🇺🇦", "👨‍👩‍👧‍👦🇺🇦"), ("é" * 30, "é" * 30),
     ("👍🏽" * 30, "👍🏽" * 30),
     ("*_[x](y)<b>", "*_[x](y)<b>"), ("a\u202eb\u0007c", "abc"), ("i\u0308o", "ïo"), ("🏴󠁧󠁢󠁥󠁮󠁧󠁿🏳️‍🌈", "🏴󠁧󠁢󠁥󠁮󠁧󠁿🏳️‍🌈")],
)  # fmt: skip
def test_a_name_is_kept_in_whole_characters(text: str, name: str) -> None:
    assert bot.fit_avatar_name(text) == name


@pytest.mark.parametrize(
    "text", ["a", "x" * 31, "👨‍👩‍👧‍👦" * 31, "👍🏽", "🇺🇦", "\u200b\u200b\u200b", "  ", "а\u0301", ""]
)
def test_a_name_is_of_2_to_30_characters(text: str) -> None:
    with pytest.raises(bot.BotError, match=r"avatar\.length"):
        bot.fit_avatar_name(text)


def test_a_letter_with_a_thousand_marks_is_cut() -> None:
    assert len(bot.fit_avatar_name("a" + "\u0335" * 1000 + "b")) == 13


async def test_a_name_that_does_not_fit_is_asked_for_again(okun: Okun, chat: Room) -> None:
    await begin(chat, "x")
    assert chat.replies[-1].text == okun.t("avatar.length", low=2, high=30, count=1)
    [sticker] = await chat.send("sticker")
    assert sticker.text == okun.t("form.words")
    [asked] = await chat.say("X-ray")
    assert asked.text.startswith("X-ray\n") and avatars(okun) == [("X-ray", "photos_uploading", 0)]


async def test_a_markup_name_stays_what_it_is(okun: Okun, chat: Room) -> None:
    id_ = await complete(chat, "*<b>_`[x](y)")
    assert "⭐ *<b>_`[x](y)" in (await chat.say("/avatars"))[0].buttons
    assert (await chat.press_data(f"m2:{ANNA}:avatar:{id_}", menu(chat))).replies[-1].text.startswith("⭐ *<b>_`[x](y)")


# -- photos


def test_quality_is_of_size_contrast_and_brightness() -> None:
    look = functools.partial(bot.Look, looks=0)
    assert look(512, 900, 128.0, 30.0).quality == pytest.approx(1.0)
    assert look(256, 900, 128.0, 60.0).quality == pytest.approx(0.75)
    assert look(1024, 1024, 64.0, 15.0).quality == pytest.approx(0.5 + 0.15 + 0.1)
    assert look(9000, 9000, 0.0, 0.0).quality == pytest.approx(0.5)
    doubts = [
        look(600, 600, *light).doubt for light in ((29, 40), (30, 40), (220, 40), (221, 40), (128, 15), (128, 14))
    ]
    assert doubts == ["dark", "", "", "bright", "", "flat"]
    assert look(256, 256, 40.0, 15.0).doubt == "poor"


def test_measures_are_those_of_the_picture() -> None:
    half = Image.new("L", (600, 600), 0)
    half.paste(200, (0, 0, 300, 600))
    out = io.BytesIO()
    half.save(out, "PNG")
    look = bot.look_at(out.getvalue())
    assert (look.width, look.height) == (600, 600)
    assert look.brightness == pytest.approx(100) and look.contrast == pytest.approx(100)


def test_what_looks_alike_is_near_and_nothing_else_is() -> None:
    hashes = [bot.look_at(shot(n)).looks for n in range(40)]
    for n, one in enumerate(hashes[:10]):
        for quality, share in ((95, 1.0), (40, 0.7), (20, 1.5)):
            assert bot.alike(one, bot.look_at(again(shot(n), quality, share)).looks), (n, quality)
    assert not [(a, b) for a in range(40) for b in range(a) if bot.alike(hashes[a], hashes[b])]


async def test_an_album_gets_one_answer_that_names_what_was_refused(okun: Okun, chat: Room) -> None:
    await begin(chat)
    [answer] = await album(
        chat, shot(1), shot(2, 300, 900), again(shot(1)), shot(3, shades=(0, 20)), shot(4, shades=(240, 256)),
        shot(5, shades=(120, 130)), b"\xff\xd8\xff\xe0 no picture", shot(6),
    )  # fmt: skip
    told = answer.text.split("\n\n")[0].splitlines()
    assert told == [
        "Taken: 5 photos.",
        "✖ No. 2. " + okun.t("avatar.small", width=300, height=900, least=512),
        "✖ No. 3. " + okun.t("avatar.twice"),
        "⚠ No. 4. " + okun.t("avatar.doubt.dark"),
        "⚠ No. 5. " + okun.t("avatar.doubt.bright"),
        "⚠ No. 6. " + okun.t("avatar.doubt.flat"),
        "✖ No. 7. " + okun.t("photo.broken"),
    ]
    assert photos(okun) == 5 and "5 of 4–20" in answer.text


async def test_files_are_photos_too_and_others_are_told_apart(okun: Okun, chat: Room) -> None:
    await begin(chat)
    for name, mime, data, taken in (
        ("a.jpg", "image/jpeg", shot(1), True), ("b.png", "image/png", shot(2, kind="PNG"), True),
        ("c.webp", "image/webp", shot(3, kind="WEBP"), True), ("d", "application/octet-stream", shot(4), True),
        ("e.gif", "image/gif", shot(5, kind="GIF"), False), ("f.txt", "text/plain", b"hello", False),
        ("g.heic", "image/heic", b"\0\0\0\x18ftypheic", False), ("h.svg", "image/svg+xml", b"<svg/>", False),
    ):  # fmt: skip
        downloads = len(okun.wire.downloads)
        [answer] = await chat.send("document", data, name, mime)
        assert answer.text.startswith("Taken: 1 photo." if taken else "✖ " + okun.t("photo.kind")), name
        assert len(okun.wire.downloads) - downloads == (mime != "text/plain")
    assert photos(okun) == 4
    for kind in ("sticker", "voice", "video"):
        [answer] = await chat.send(kind)
        assert answer.text.startswith("✖ " + okun.t("photo.kind")), kind
    [answer] = await chat.send("location", 50.4, 30.5)
    assert answer.text == okun.t("form.pictures") and photos(okun) == 4


async def test_what_is_too_large_is_not_even_fetched(okun: Okun, chat: Room) -> None:
    await begin(chat)
    [answer] = await chat.send("document", shot(1), "big.jpg", "image/jpeg", size=21 * 1024 * 1024)
    assert answer.text.startswith("✖ " + okun.t("media.too_big")) and okun.wire.downloads == []
    [answer] = await chat.send("document", bomb(), "bomb.png", "image/png")
    assert answer.text.startswith("✖ " + okun.t("photo.large", width=40_000, height=40_000))


def bomb() -> bytes:
    """A small file that would be a picture of 6 GB."""
    small = bytearray(shot(1, 10, 10, "PNG"))
    small[16:24] = (40_000).to_bytes(4, "big") * 2
    import zlib

    small[29:33] = zlib.crc32(small[12:29]).to_bytes(4, "big")
    return bytes(small)


async def test_the_same_photo_sent_again_is_known_without_fetching_it(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.send("photo", shot(1))
    downloads = len(okun.wire.downloads)
    [answer] = await chat.send("photo", shot(1))
    assert answer.text.startswith("✖ " + okun.t("avatar.twice")) and len(okun.wire.downloads) == downloads
    [answer] = await album(chat, shot(2), shot(2))
    assert answer.text.startswith("Taken: 1 photo.\n✖ No. 2. " + okun.t("avatar.twice")) and photos(okun) == 2


async def test_the_21st_photo_is_refused(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await album(chat, *(shot(n) for n in range(10)))
    [answer] = await album(chat, *(shot(n) for n in range(10, 19)))
    assert "▰▰▰▰▰▰▰▰▰▰ 19 of 4–20" in answer.text
    downloads = len(okun.wire.downloads)
    [answer] = await album(chat, shot(19), shot(20), shot(21))
    assert answer.text.startswith("Taken: 1 photo.\n✖ No. 2, 3. " + okun.t("avatar.full", most=20))
    assert "20 of 4–20" in answer.text and okun.t("avatar.ask.no_more") in answer.text
    assert photos(okun) == 20 and len(okun.wire.downloads) == downloads + 1


async def test_two_albums_at_once_are_both_taken(okun: Okun, chat: Room) -> None:
    await begin(chat)
    chat.put("album", [shot(n) for n in range(3)])
    chat.put("album", [shot(n) for n in range(2, 6)])
    await okun.take()
    await okun.later(2)
    assert photos(okun) == 6 and "6 of 4–20" in chat.replies[-1].text


async def test_what_telegram_does_not_give_is_told(okun: Okun, chat: Room) -> None:
    await begin(chat)
    okun.telegram.fault("400", "getFile")
    okun.telegram.fault("timeout", "download")
    [answer] = await album(chat, shot(1), shot(2), shot(3))
    assert (
        answer.text.startswith("Taken: 1 photo.\n✖ No. 1. ")
        and "✖ No. 2. " + okun.t("media.unreachable") in answer.text
    )


async def test_photos_are_looked_at_one_at_a_time(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, most, look_at = threading.Lock(), [0, 0], bot.look_at

    def counted(data: bytes) -> bot.Look:
        with lock:
            most[0] += 1
            most[1] = max(most)
        try:
            return look_at(data)
        finally:
            with lock:
                most[0] -= 1

    monkeypatch.setattr(bot, "look_at", counted)
    borys = okun.private("Borys")
    await begin(chat)
    await begin(borys)
    chat.put("album", [shot(n) for n in range(5)])
    borys.put("album", [shot(n) for n in range(5)])
    await okun.take()
    await okun.later(2)
    assert photos(okun) == 10 and most == [0, 1]


# -- collecting, leaving it, coming back


async def test_words_are_no_photos(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    [answer] = await chat.say("Is this one fine?")
    assert answer.text == okun.t("avatar.hint")
    [answer] = await chat.say("Готово")
    assert answer.text == okun.t("avatar.few", least=4)
    await album(chat, *(shot(n) for n in range(4)))
    [answer] = await chat.say("done")
    assert okun.t("avatar.button.train_yes") in answer.buttons and model.asks == []
    assert (await chat.say("Hi")) and model.heard == "Hi"  # nothing is asked there


async def test_the_caption_of_a_photo_is_no_word(okun: Okun, chat: Room) -> None:
    await begin(chat)
    [answer] = await chat.send("photo", shot(1), "done")
    assert answer.text.startswith("Taken: 1 photo.")


@pytest.mark.parametrize("way", ["/cancel", "/menu", "back", "close"])
async def test_leaving_ends_the_collecting_and_keeps_the_draft(okun: Okun, chat: Room, model: Script, way: str) -> None:
    await collected(chat, 2)
    if way.startswith("/"):
        [answer] = await chat.say(way)
        assert way != "/cancel" or answer.text == okun.t("cancel.avatar")
    else:
        await chat.press(okun.t("menu.back"))
        if way == "close":
            for _ in range(2):
                await chat.press(okun.t("menu.back"))
            await chat.press(okun.t("menu.close"))
    [answer] = await chat.send("photo", shot(9))
    assert answer.text.startswith("Heard:") and photos(okun) == 2
    assert avatars(okun) == [("Me", "photos_uploading", 0)]
    await chat.say("/avatars")
    await chat.press("📷 Me")
    assert "2 of 4–20" in (await click(chat, "more")).replies[-1].text
    [answer] = await chat.send("photo", shot(3))
    assert answer.text.startswith("Taken: 1 photo.") and photos(okun) == 3


async def test_a_photo_is_talk_where_nothing_is_collected(okun: Okun, chat: Room, model: Script) -> None:
    [answer] = await chat.send("photo", shot(1))
    assert answer.text.startswith("Heard:") and avatars(okun) == []


async def test_a_draft_outlives_a_restart_and_a_week(okun: Okun, chat: Room, later: Later) -> None:
    await collected(chat, 3)
    old = menu(chat)
    await okun.restart()
    [answer] = await chat.send("photo", shot(3))
    assert "4 of 4–20" in answer.text
    await later(8 * DAY)
    await bot.forms_clean(okun.app)
    assert okun.rows("SELECT * FROM forms") == []
    pressed = await chat.press_data(f"m2:{ANNA}:avphotos:1", menu(chat))
    assert "4 of 4–20" in pressed.message.text and old.id != pressed.message.id
    [answer] = await chat.send("photo", shot(4))
    assert "5 of 4–20" in answer.text


async def test_a_draft_that_nobody_touches_for_a_month_goes(okun: Okun, chat: Room, later: Later) -> None:
    await complete(chat, "Ready")
    await collected(chat, 3, "Draft", first=20)
    await later(29 * DAY)
    await bot.avatars_clean(okun.app)
    assert len(avatars(okun)) == 2
    await later(2 * DAY)
    await bot.avatars_clean(okun.app)
    assert avatars(okun) == [("Ready", "completed", 1)] and photos(okun) == 4
    assert "📷 Draft" not in (await chat.say("/avatars"))[0].buttons


async def test_an_album_that_is_taken_twice_is_answered_the_same(okun: Okun, chat: Room) -> None:
    await begin(chat)
    write = okun.app.db.write

    async def killed(writes: Any) -> None:
        if bot.DONE_INBOX in writes:
            await asyncio.Event().wait()
        await write(writes)

    okun.app.db.write = killed  # type: ignore[method-assign]
    [first] = await album(chat, shot(1), shot(2))
    assert len(okun.inbox_rows) == 2
    await okun.restart()
    await okun.later(1)
    assert okun.inbox_rows == [] and photos(okun) == 2
    assert [reply.text for reply in chat.replies if "Taken" in reply.text] == [first.text]


async def test_a_kill_before_the_answer_loses_no_answer(okun: Okun, chat: Room) -> None:
    await begin(chat)
    okun.wire.hold("sendMessage")
    assert await album(chat, shot(1), shot(2, 300, 300)) == [] and photos(okun) == 1
    await okun.crash()
    await okun.open()
    await okun.later(2)
    assert (
        chat.replies[-1].text.startswith("Taken: 1 photo.\n✖ No. 2. ") and photos(okun) == 1 and okun.inbox_rows == []
    )


async def test_a_cancel_while_photos_are_looked_at_ends_the_collecting(okun: Okun, chat: Room, model: Script) -> None:
    await begin(chat)
    held = okun.wire.hold("getFile")
    chat.put("photo", shot(1))
    await okun.take()
    await chat.say("/cancel")
    held.set()
    await okun.settle()
    assert photos(okun) == 1 and menu(chat).picture  # its card, which asks nothing
    [answer] = await chat.send("photo", shot(2))
    assert answer.text.startswith("Heard:") and photos(okun) == 1


async def test_an_avatar_that_is_deleted_while_photos_are_looked_at_takes_none(okun: Okun, chat: Room) -> None:
    await begin(chat)
    held = okun.wire.hold("getFile")
    chat.put("photo", shot(1))
    await okun.take()
    await chat.press_data(f"d1:{ANNA}:avdel:1", menu(chat))
    held.set()
    await okun.settle()
    assert chat.replies[-1].text == okun.t("avatar.closed") and photos(okun) == 0 and avatars(okun) == []


# -- looking through the photos


async def test_photos_are_shown_one_by_one_and_deleted(okun: Okun, chat: Room) -> None:
    await collected(chat, 4)
    shown = (await click(chat, "look")).replies[-1]
    assert shown.picture and shown.text == "Me: photo 1 of 4"
    shown = (await chat.press("◀")).message
    assert shown.text == "Me: photo 4 of 4"
    shown = (await chat.press("▶")).message
    assert shown.text == "Me: photo 1 of 4"
    okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("avatar.button.drop"))
    okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("avatar.button.drop"))
    await okun.take()
    assert photos(okun) == 3 and avatars(okun) == [("Me", "photos_uploading", 0)]
    assert menu(chat).text == "Me: photo 1 of 3"
    for left in (2, 1):
        assert (await click(chat, "drop")).message.text == f"Me: photo 1 of {left}"
    emptied = (await click(chat, "drop")).replies[-1]
    assert "0 of 4–20" in emptied.text and okun.t("avatar.button.look") not in emptied.buttons
    assert (await chat.send("photo", shot(7)))[0].text.startswith("Taken: 1 photo.")


async def test_a_photo_that_was_sent_as_a_file_is_shown(okun: Okun, chat: Room) -> None:
    await begin(chat)
    await chat.send("document", shot(1, kind="PNG"), "me.png", "image/png")
    shown = (await click(chat, "look")).replies[-1]
    assert shown.picture and shown.text == "Me: photo 1 of 1"
    downloads = len(okun.wire.downloads)
    assert (await chat.press(okun.t("menu.back"))).replies[-1].text.startswith("Me\n")
    assert (await chat.press(okun.t("menu.back"))).replies[-1].picture  # the card
    assert len(okun.wire.downloads) == downloads


@pytest.mark.parametrize("kind", ["photo", "document"])
async def test_where_telegram_lost_a_photo_there_are_words(okun: Okun, chat: Room, kind: str) -> None:
    await begin(chat)
    await chat.send(kind, shot(1), *(("me.jpg", "image/jpeg") if kind == "document" else ()))
    okun.telegram.files.clear()
    await click(chat, "look")
    shown = menu(chat)
    assert not shown.picture and shown.text == f"Me: photo 1 of 1\n\n{okun.t('avatar.lost')}"
    assert okun.t("avatar.button.drop") in shown.buttons


# -- the making


FAULTS: dict[str, tuple[Any, str]] = {
    "nobody": (identity(person=False, card="", best=()), "avatar.nobody"),
    "two": (identity(best=(1, 1, 2, 2)), "avatar.unclear"),
    "beyond": (identity(best=(1, 2, 5, 0, -1, 99)), "avatar.unclear"),
    "no card": (identity(card=" \u200b "), "avatar.unclear"),
    "no JSON": ("What a lovely person!", "avatar.unclear"),
    "other JSON": ('{"person": "who?", "card": 7}', "avatar.unclear"),
    "blocked": (bot.LlmError("blocked"), "llm.blocked"),
    "down": (bot.LlmError("server"), "llm.server"),
}


@settings(price_avatar=30)
@pytest.mark.parametrize("fault", FAULTS)
async def test_a_making_that_fails_is_an_error_and_costs_nothing(
    okun: Okun, chat: Room, model: Script, fault: str
) -> None:
    said, key = FAULTS[fault]
    await give(okun, chat, 50)
    await collected(chat)
    model.says = lambda ask: said
    assert "30 🪙" in (await click(chat, "train")).message.text
    await click(chat, "train_yes")
    assert len(model.asks) == (2 if "JSON" in fault else 1)
    assert avatars(okun) == [("Me", "error", 0)] and coins(okun) == 50
    assert okun.t(key) in chat.replies[-1].text and "30 🪙" in chat.replies[-1].text
    failed = chat.replies[-1]
    assert failed.buttons == [okun.t("job.button.again"), okun.t("avatar.button.card")]
    card = (await chat.press(okun.t("avatar.button.card"))).replies[-1]
    assert okun.t("avatar.button.more") in card.buttons
    [listed] = await chat.say("/avatars")
    assert "⚠ Me" in listed.buttons
    card = (await chat.press("⚠ Me")).replies[-1]
    assert okun.t("avatar.status.error") in card.text and okun.t(key) in card.text
    model.says = lambda ask: identity()
    await click(chat, "again")
    await click(chat, "train_yes")
    assert avatars(okun) == [("Me", "completed", 1)] and coins(okun) == 20
    assert avatars(okun, "error") == [(None,)]


async def test_json_at_the_second_try_will_do(okun: Okun, chat: Room, model: Script) -> None:
    said = iter(["Let me see…", f"```json\n{identity(best=(4, 2, 1, 3, 4, 77))}\n```"])
    model.says = lambda ask: next(said)
    await complete(chat)
    assert [row[0] for row in okun.rows("SELECT chosen FROM avatar_photos ORDER BY id")] == [1, 1, 1, 1]


@settings(price_avatar=30)
async def test_photos_that_telegram_lost_are_named(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 30)
    await collected(chat, 5)
    ids = [row[0] for row in okun.rows("SELECT file_id FROM avatar_photos ORDER BY id")]
    for number in (2, 5):
        del okun.telegram.files[ids[number - 1]]
    await train(chat)
    assert okun.t("avatar.photos_gone", numbers="2, 5") in chat.replies[-1].text
    assert avatars(okun) == [("Me", "error", 0)] and coins(okun) == 30 and model.asks == []


async def test_a_telegram_that_is_away_for_a_moment_is_asked_again(okun: Okun, chat: Room, later: Later) -> None:
    await collected(chat)
    okun.telegram.fault("timeout", "download", times=2)
    await train(chat)
    assert avatars(okun) == [("Me", "training", 0)]
    await later(60)
    assert avatars(okun) == [("Me", "completed", 1)]
    await collected(chat, name="Other", first=20)
    okun.telegram.fault("timeout", "download", times=3)
    await train(chat)
    await later(60)
    assert avatars(okun)[1] == ("Other", "error", 0) and okun.t("media.unreachable") in chat.replies[-1].text


@settings(price_avatar=30)
async def test_without_the_coins_nothing_begins(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 29)
    await collected(chat)
    pressed = await train(chat)
    assert pressed.note == okun.t("job.short", need=30, have=29)
    assert avatars(okun) == [("Me", "ready_for_training", 0)] and coins(okun) == 29 and model.asks == []


async def test_without_a_model_that_draws_no_photos_are_collected(okun: Okun, chat: Room) -> None:
    await collected(chat)
    await okun.restart(gemini_image_model=())
    await chat.say("/avatars")
    assert (await click(chat, "new")).note == okun.t("draw.no_model") and len(avatars(okun)) == 1
    await chat.press("📷 Me")
    assert (await click(chat, "train")).note == okun.t("draw.no_model")
    assert okun.rows("SELECT * FROM jobs") == []


async def test_without_a_model_it_says_so(okun: Okun, chat: Room) -> None:
    await collected(chat)
    okun.model.providers = []
    assert (await click(chat, "train")).note == okun.t("avatar.no_llm")
    pressed = await chat.press_data(f"d1:{ANNA}:avtrain:1", menu(chat))
    assert pressed.note == okun.t("avatar.no_llm") and okun.rows("SELECT * FROM jobs") == []


@settings(price_avatar=30)
async def test_two_presses_make_one_job(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 100)
    await collected(chat)
    model.held = True
    await click(chat, "train")
    for _ in range(2):
        okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("avatar.button.train_yes"))
    notes = [update["callback_query"]["id"] for update in okun.telegram.queue]
    await okun.take()
    assert len(okun.rows("SELECT * FROM jobs")) == 1 and coins(okun) == 70
    assert okun.note(notes[1]) == okun.t("avatar.closed")
    model.writing[0].end(identity())
    await okun.settle()
    assert avatars(okun) == [("Me", "completed", 1)]


@settings(price_avatar=30)
async def test_calling_it_off_and_asking_again(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 30)
    await collected(chat)
    model.held = True
    await train(chat)
    assert avatars(okun) == [("Me", "training", 0)] and coins(okun) == 0
    await chat.press(okun.t("job.button.cancel"))
    assert avatars(okun) == [("Me", "ready_for_training", 0)] and coins(okun) == 30
    await chat.say("/avatars")
    await chat.press("📷 Me")
    assert okun.t("avatar.button.train") in menu(chat).buttons  # what is cached says so, too
    await chat.press(okun.t("job.button.again"))
    assert avatars(okun) == [("Me", "training", 0)] and coins(okun) == 0
    await chat.say("/avatars")
    assert "⏳ Me" in menu(chat).buttons
    model.writing[-1].end(identity())
    await okun.settle()
    assert avatars(okun) == [("Me", "completed", 1)] and coins(okun) == 0


@settings(price_avatar=30)
async def test_again_for_what_is_at_work_shows_it_and_costs_nothing(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 60)
    await collected(chat)
    model.held = True
    await train(chat)
    await chat.press(okun.t("job.button.cancel"))
    job = menu(chat)
    await chat.say("/avatars")
    await chat.press("📷 Me")
    await train(chat)
    pressed = await chat.press(okun.t("job.button.again"), message=job)
    assert pressed.message.text == okun.t("job.doing.train") and coins(okun) == 30


@settings(price_avatar=30)
async def test_a_restart_in_the_middle_goes_on(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 30)
    await collected(chat)
    model.held = True
    await train(chat)
    await okun.restart()
    assert avatars(okun) == [("Me", "training", 0)]
    okun.model.says = lambda ask: identity()
    await bot.jobs_resume(okun.app)
    await bot.begin_jobs(okun.app)
    await okun.settle()
    assert avatars(okun) == [("Me", "completed", 1)] and coins(okun) == 0
    assert len([reply for reply in chat.replies if "is ready" in reply.text]) == 1


async def test_while_it_is_made_its_photos_stay_as_they_are(okun: Okun, chat: Room, model: Script) -> None:
    await collected(chat)
    model.held = True
    await train(chat)
    for data in ("m2:{}:avphotos:1", "m2:{}:avphoto:1", "d1:{}:avdrop:1.1", "m2:{}:avtrain:1", "d1:{}:avtrain:1",
                 "m2:{}:avgender:1", "d1:{}:avgender:1.male"):  # fmt: skip
        pressed = await chat.press_data(data.format(ANNA), menu(chat))
        assert pressed.note == okun.t("avatar.closed"), data
    assert photos(okun) == 4
    model.held, model.says = False, echo
    [answer] = await chat.send("photo", shot(9))
    assert answer.text.startswith("Heard:") and photos(okun) == 4


@settings(price_avatar=30)
async def test_deleting_what_is_being_made_calls_it_off(okun: Okun, chat: Room, model: Script) -> None:
    await give(okun, chat, 30)
    await collected(chat)
    model.held = True
    await train(chat)
    await chat.say("/avatars")
    await chat.press("⏳ Me")
    assert okun.t("avatar.delete_training") in (await click(chat, "delete")).replies[-1].text
    await click(chat, "delete_yes")
    assert avatars(okun) == [] and coins(okun) == 30 and photos(okun) == 0
    assert okun.rows("SELECT state FROM jobs") == [("cancelled",)]
    pressed = await chat.press(okun.t("job.button.again"))
    assert pressed.note == okun.t("button.old") and coins(okun) == 30


# -- cards


async def test_cards_go_round(okun: Okun, chat: Room) -> None:
    for n, name in enumerate(("One", "Two", "Three")):
        await complete(chat, name, first=20 * n)
    assert avatars(okun, "name, main") == [("One", 1), ("Two", 0), ("Three", 0)]
    await chat.say("/avatars")
    card = (await chat.press("⭐ One")).replies[-1]
    assert card.buttons[:3] == ["◀", "1/3", "▶"] and okun.t("avatar.button.main") not in card.buttons
    seen = [(await chat.press("▶")).message.text.splitlines()[0] for _ in range(3)]
    assert seen == ["👤 Two", "👤 Three", "⭐ One"]
    assert (await chat.press("◀")).message.text.startswith("👤 Three")


async def test_exactly_one_is_the_main_one_under_presses_at_once(okun: Okun, chat: Room) -> None:
    ids = [await complete(chat, name, first=20 * n) for n, name in enumerate(("One", "Two", "Three"))]
    [listed] = await chat.say("/avatars")
    for id_ in (*ids, ids[1]):
        okun.telegram._pressed(okun.person("Anna"), listed.raw, f"d1:{ANNA}:avmain:{id_}")
    await okun.take()
    assert avatars(okun, "name, main") == [("One", 0), ("Two", 1), ("Three", 0)]
    await asyncio.gather(*(bot.make_main(okun.app, ANNA, id_) for id_ in ids))
    assert sum(main for _, main in avatars(okun, "name, main")) == 1
    await begin(chat, "Draft")
    [(draft,)] = okun.rows("SELECT id FROM avatars WHERE name = 'Draft'")
    assert (await chat.press_data(f"d1:{ANNA}:avmain:{draft}", menu(chat))).note == okun.t("button.old")
    assert sum(main for _, main in avatars(okun, "name, main")) == 1


async def test_when_the_main_one_goes_another_takes_its_place(okun: Okun, chat: Room) -> None:
    await begin(chat, "Draft")
    for n, name in enumerate(("One", "Two"), 1):
        await complete(chat, name, first=20 * n)
    for _ in range(2):
        [main] = [name for name, _, main in avatars(okun) if main]
        await chat.say("/avatars")
        await chat.press(f"⭐ {main}")
        await click(chat, "delete")
        await click(chat, "delete_yes")
    assert avatars(okun) == [("Draft", "photos_uploading", 0)]
    assert await bot.main_avatar(okun.app.db.reader, ANNA) is None


async def test_renaming(okun: Okun, chat: Room) -> None:
    await complete(chat)
    await chat.say("/avatars")
    await chat.press("⭐ Me")
    asked = (await click(chat, "rename")).replies[-1]
    assert okun.t("avatar.named", name="Me") in asked.text
    [card] = await chat.say("Somebody else")
    assert card.text.startswith("⭐ Somebody else") and avatars(okun) == [("Somebody else", "completed", 1)]


async def test_a_click_on_a_card_costs_one_query_at_most(okun: Okun, chat: Room) -> None:
    ids = [await complete(chat, name, first=20 * n) for n, name in enumerate(("One", "Two"))]
    await collected(chat, 4, "Draft", first=60)
    data = [f"m2:{ANNA}:{name}" for name in ("avatars:", f"avatar:{ids[0]}", f"avatar:{ids[1]}", "avatar:3",
            "avphotos:3", "avphoto:3", "avtrain:3", "avdel:3", "avname:3", "avphotos:3")]  # fmt: skip
    data += [f"d1:{ANNA}:avmain:{ids[1]}", f"d1:{ANNA}:avdrop:3.9"]
    for round_ in range(2):
        for one in data:
            before = okun.app.db.reader.reads
            await chat.press_data(one, menu(chat))
            assert round_ == 0 or okun.app.db.reader.reads - before <= 1, one


# -- whose they are


async def test_nobody_reaches_anothers_avatars(okun: Okun, chat: Room, model: Script) -> None:
    await complete(chat, "Ready")
    await collected(chat, 4, "Draft", first=20)
    borys = okun.private("Borys")
    await borys.say("/avatars")
    before = [okun.rows(f"SELECT * FROM {table} ORDER BY id") for table in ("avatars", "avatar_photos")]
    asks = len(model.asks)
    names = ("avatar", "avgender", "avname", "avphotos", "avphoto", "avtrain", "avdel")
    forged = [f"m2:{BORYS}:{name}:{arg}" for name in names for arg in ("1", "2", "2.5", "", "x", "9" * 18)]
    acts = ("avgender:2.male", "avgender:2.", "avdrop:2.5", "avtrain:2", "avmain:1", "avgender:2.bogus", "avmain:")
    for data in (*forged, *(f"d1:{BORYS}:{one}" for one in acts)):
        pressed = await borys.press_data(data, menu(borys))
        assert pressed.note == okun.t("button.old", "uk"), data
    pressed = await borys.press_data(f"d1:{BORYS}:avdel:1", menu(borys))
    assert pressed.note == okun.t("button.old", "uk")
    for name in (*names, "avatars"):
        for kind in ("m2", "d1"):
            pressed = await borys.press_data(f"{kind}:{ANNA}:{name}:1", menu(borys))
            assert pressed.note == okun.t("button.not_yours", "uk")
    after = [okun.rows(f"SELECT * FROM {table} ORDER BY id") for table in ("avatars", "avatar_photos")]
    assert before == after and len(model.asks) == asks


async def test_another_persons_photo_cannot_be_deleted_by_way_of_ones_own_avatar(okun: Okun, chat: Room) -> None:
    await collected(chat, 4)
    borys = okun.private("Borys")
    await collected(borys, 4)
    await borys.press_data(f"d1:{BORYS}:avdrop:2.1", menu(borys))
    assert photos(okun) == 8
    await borys.press_data(f"d1:{BORYS}:avgender:2.bogus", menu(borys))
    assert avatars(okun, "gender") == [("",), ("",)]


async def test_in_groups_it_leads_to_the_private_chat(okun: Okun, group: Room) -> None:
    [answer] = await group.say("/avatars")
    assert answer.text == okun.t("error.only_private")
    [shown] = await group.say("/menu")
    assert okun.t("menu.to.avatars") not in shown.buttons
    pressed = await group.press_data(f"m2:{ANNA}:avatars:", shown)
    assert pressed.note == okun.t("error.only_private")


async def test_from_the_menu_and_back(okun: Okun, chat: Room) -> None:
    await chat.say("/menu")
    shown = (await chat.press(okun.t("menu.to.avatars"))).message
    assert shown.text.startswith("You don't have any avatars yet")
    assert okun.t("menu.to.avatars") in (await chat.press(okun.t("menu.back"))).message.buttons


# -- what is kept


async def test_avatars_are_exported_without_files(okun: Okun, chat: Room) -> None:
    await complete(chat, "Exported")
    chat.put("say", "/export")
    await okun.take()
    for _ in range(200_000):  # the file is read in a thread that `settle` does not know of
        if not okun.inbox.busy:
            break
        await asyncio.sleep(0)
    data = json.loads(okun.telegram.files[chat.replies[-1].raw["document"]["file_id"]].data)
    [avatar] = data["avatars"]
    assert (avatar["name"], avatar["card"], avatar["main"], len(avatar["photos"])) == ("Exported", CARD, 1, 4)
    assert {"file_id", "quality", "chosen"} < avatar["photos"][0].keys()


async def test_forgetting_somebody_forgets_their_avatars(okun: Okun, chat: Room, model: Script) -> None:
    await complete(chat)
    await collected(chat, 4, "Draft", first=20)
    model.held = True
    await train(chat)
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    assert model.writing[-1].ended.cancelled()
    assert avatars(okun) == [] and photos(okun) == 0
    assert (await chat.say("/avatars"))[0].text.startswith("You don't have any avatars yet")


def test_every_language_says_what_is_done_in_one_word() -> None:
    for word in ("done", "Готово", "ВСЕ", "всё", "ready", "Готово!", "That's all.", "Всё…"):
        assert TEXTS.means(word, "ready"), word
    assert not TEXTS.means("готово?!", "ready")
