"""Drawing: how a picture is asked for, what goes to the model, what comes back, and what can be done with it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import ANNA, BORYS, TEXTS, Okun, Reply, Room, Script, drawn, mark, settings
from PIL import Image

import bot

PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
langs = pytest.mark.parametrize("lang", PEOPLE)


def still(red: int, size: tuple[int, int] = (640, 480), kind: str = "JPEG") -> bytes:
    """A picture of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, (red, 60, 120)).save(out, kind)
    return out.getvalue()


def red_of(media: bot.Media) -> int:
    """The red of a picture that went to the model, about."""
    with Image.open(io.BytesIO(media.data)) as image:
        return int(image.convert("RGB").getpixel((5, 5))[0])  # type: ignore[index]


def reds(model: Script) -> list[int]:
    """What the last request carried, by colour, to the nearest ten."""
    return [round(red_of(media), -1) for media in model.wishes[-1].references]


def form(okun: Okun, user_id: int = ANNA) -> bot.Wish:
    return bot.Wish.of(okun.app.forms[user_id, user_id, "draw"].data["wish"])


def jobs(okun: Okun, columns: str = "state") -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in okun.rows(f"SELECT {columns} FROM jobs ORDER BY id")]


def pictures(okun: Okun, columns: str = "id") -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in okun.rows(f"SELECT {columns} FROM pictures ORDER BY id")]


def used(okun: Okun, user_id: int = ANNA) -> int:
    """Pictures of today that count."""
    return int(sum(n for (n,) in okun.rows("SELECT used FROM quotas WHERE name = 'images' AND user_id = ?", user_id)))


async def pay(okun: Okun, user_id: int, coins: int) -> None:
    async with bot.money(okun.app, user_id) as tx:
        await bot.ensure_person(tx, user_id)
        await bot.post(tx, user_id, "coins", coins, "pack", f"test {user_id} {coins}", okun.clock.now())


def coins(okun: Okun, user_id: int = ANNA) -> int:
    return int(sum(n for (n,) in okun.rows("SELECT amount FROM balances WHERE user_id = ?", user_id)))


async def avatar(okun: Okun, room: Room, user_id: int = ANNA, *, photos: int = 3, status: str = "completed",
                 main: bool = True, name: str = "Ann", first: int = 10) -> int:  # fmt: skip
    """An avatar as it is when it was made, with photos that Telegram has."""
    files = [okun.telegram.store_file("photo", still(first + 10 * n)).card["file_id"] for n in range(photos)]
    async with okun.app.db.tx() as tx:
        await bot.ensure_person(tx, user_id)
        row = await tx.one(
            """INSERT INTO avatars (user_id, name, status, main, card, made_at, changed_at)
               VALUES (?, ?, ?, ?, 'Green eyes, a scar on the chin.', 1, 1) RETURNING id""",
            user_id, name, status, int(main),
        )  # fmt: skip
        assert row
        for n, file_id in enumerate(files):
            await tx.run(
                """INSERT INTO avatar_photos (avatar_id, file_id, file_unique_id, width, height, quality, looks, chosen,
                     document, added_at) VALUES (?, ?, ?, 640, 480, 1, '', 1, 0, ?)""",
                row["id"], file_id, f"u{file_id}", n,
            )  # fmt: skip
    return int(row["id"])


async def asked(room: Room, words: str) -> Reply:
    """Ask for a picture, and let it be drawn after it was said that it is; the message that says how it stands now."""
    model = room.okun.model
    model.easel = asyncio.Event()
    [shown] = await room.say(words)
    model.easel.set()
    await room.okun.settle()
    model.easel = None
    return Reply(room.chat.messages[shown.id])


async def draw(room: Room, words: str = "a cat in a boat", **where: Any) -> Reply:
    """Have a picture drawn; the message with it."""
    sent = await room.say(f"/draw {words}", **where)
    return next(reply for reply in sent if reply.picture)


@pytest.fixture
def gallery(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A gallery that only says that it is one."""

    async def show(app: bot.App, who: bot.Who, owner: int, arg: str) -> bot.Panel:
        return bot.Panel("the gallery")

    spec = bot.PanelSpec("gallery", show, None, ("private", "group"), False, False, "menu")
    monkeypatch.setitem(bot.PANELS, "gallery", spec)
    yield


# -- asked for at once


async def test_a_picture_is_drawn_sent_and_kept(okun: Okun, chat: Room, model: Script) -> None:
    picture = await draw(chat)
    assert picture.picture and picture.reply_to == chat.last_id
    assert picture.text == "🎨 a cat in a boat\n1:1"
    assert [(wish.prompt, wish.ratio, wish.references) for wish in model.wishes] == [("a cat in a boat", "1:1", ())]
    [(owner, chat_id, file_id, me)] = pictures(okun, "user_id, chat_id, file_id, me")
    assert (owner, chat_id, me) == (ANNA, chat.id, 0)
    assert file_id in [size["file_id"] for size in picture.raw["photo"]]
    assert chat.replies == [picture]  # what said how far it was is gone


async def test_while_it_is_drawn_the_chat_sees_so(okun: Okun, chat: Room, model: Script) -> None:
    model.easel = asyncio.Event()
    [shown] = await chat.say("/draw a cat")
    assert Reply(chat.chat.messages[shown.id]).text == okun.t("job.doing.draw")
    model.easel.set()
    await okun.settle()
    assert [reply.picture for reply in chat.replies] == [True]


@langs
async def test_it_is_drawn_in_each_language(okun: Okun, lang: str) -> None:
    room = okun.private(PEOPLE[lang])
    [panel] = await room.say("/draw")
    assert okun.t("draw.ask", lang) in panel.text
    [shown] = await room.say("кіт у човні")
    await room.press(okun.t("draw.style.water", lang), message=shown)
    await room.press("9:16")
    pressed = await room.press(okun.t("draw.button.go", lang))
    picture = next(reply for reply in pressed.replies if reply.picture)
    assert picture.text == f"🎨 кіт у човні\n9:16 · {okun.t('draw.style.water', lang)}"
    assert okun.t("draw.button.again", lang) in picture.buttons


async def test_the_id_of_a_picture_is_that_of_its_job(okun: Okun, chat: Room) -> None:
    """Its buttons are sent with it, before there is a row."""
    picture = await draw(chat)
    [id_] = jobs(okun, "id")
    assert pictures(okun) == [id_]
    assert all(data.endswith(f":{id_}") for data in picture.data)


@pytest.mark.parametrize(("words", "key"), [("x", "draw.short"), ("  y ", "draw.short"), ("z" * 2001, "draw.long"),
                          ("\u200b\u200b\u200b", "draw.short")])  # fmt: skip
async def test_a_wish_is_of_2_to_2000_characters(okun: Okun, chat: Room, words: str, key: str) -> None:
    [reply] = await chat.say(f"/draw {words}")
    assert reply.text == okun.t(key, most=2000, have=2001)
    assert jobs(okun) == []


async def test_2000_characters_are_drawn_and_shown_in_short(okun: Okun, chat: Room, model: Script) -> None:
    picture = await draw(chat, "ї" * 2000)
    assert model.wishes[0].prompt == "ї" * 2000 and len(picture.text) < 250


async def test_without_a_model_it_says_what_is_missing(okun: Okun, chat: Room) -> None:
    for values in (
        {"gemini_image_model": ()},
        {"gemini_api_key": "", "gemini_image_model": ("gemini-3.1-flash-image",)},
    ):
        await okun.restart(**values)
        assert [r.text for r in await chat.say("/draw a cat")] == [okun.t("draw.no_model")]
        assert [r.text for r in await chat.say("/draw")] == [okun.t("draw.no_model")]
        assert [r.text for r in await chat.say("draw a cat")] == [okun.t("draw.no_model")]
        [menu] = await chat.say("/menu")
        assert okun.t("draw.no_model") in (await chat.press(okun.t("menu.to.draw"), message=menu)).message.text
    assert jobs(okun) == []


@settings(daily_budget_usd=0.01, price_image=5)
async def test_without_a_budget_nothing_is_begun(okun: Okun, chat: Room) -> None:
    await pay(okun, ANNA, 5)
    okun.app.spent = okun.app.llm.day(), 20_000
    okun.model.may_pay = lambda: bot.budget_left(okun.app)
    [reply] = await chat.say("/draw a cat")
    assert reply.text == okun.t("llm.budget") and jobs(okun) == [] and coins(okun) == 5


@settings(images_per_day=2)
async def test_so_many_a_day(okun: Okun, chat: Room) -> None:
    await draw(chat)
    await draw(chat)
    [reply] = await chat.say("/draw a third")
    assert reply.text.startswith(okun.t("limit.day.images", most=2, left="").split(":")[0])
    assert used(okun) == 2 and len(pictures(okun)) == 2


# -- photos to go by


async def test_in_reply_to_a_photo_it_is_changed(okun: Okun, chat: Room, model: Script) -> None:
    photo = chat.put("photo", still(200))
    await okun.take()
    await draw(chat, "make it winter", reply_to=photo)
    assert reds(model) == [200]
    assert model.wishes[0].ratio == ""  # as the photo is
    assert model.wishes[0].prompt.startswith("make it winter\n\nThe picture came with the wish")


async def test_in_reply_to_one_of_an_album_all_of_it_goes_along(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("album", [still(10), still(90), still(170)])
    await okun.later(2)
    await draw(chat, "join them", reply_to=chat.last_id)
    assert sorted(reds(model)) == [10, 90, 170]
    assert "The 3 pictures came with the wish" in model.wishes[0].prompt


async def test_a_photo_with_the_command_as_its_caption(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("photo", still(130), "/draw in watercolour")
    assert reds(model) == [130] and model.wishes[0].prompt.startswith("in watercolour")
    assert len(pictures(okun)) == 1


async def test_an_album_with_the_command_as_its_caption(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("album", [still(10), still(90), still(170), still(250)], "/draw all of them at a table")
    await okun.later(2)
    assert sorted(reds(model)) == [10, 90, 170, 250] and len(model.wishes) == 1


async def test_a_document_and_a_still_sticker_are_pictures_too(okun: Okun, chat: Room, model: Script) -> None:
    document = chat.put("document", still(80, kind="PNG"), "cat.png", "image/png")
    sticker = chat.put("sticker", "🙂", still(160, (512, 512), "WEBP"))
    await okun.take()
    await draw(chat, "as a poster", reply_to=document)
    assert reds(model) == [80]
    await draw(chat, "as a poster", reply_to=sticker)
    assert reds(model) == [160]


async def test_what_is_no_picture_is_refused_before_it_costs(okun: Okun, chat: Room) -> None:
    [reply] = await chat.send("document", b"%PDF", "a.pdf", "application/pdf", "/draw this")
    assert reply.text == okun.t("photo.kind") and jobs(okun) == []
    [reply] = await chat.send("video", b"moving", caption="/draw this")
    assert reply.text == okun.t("photo.kind") and jobs(okun) == []


async def test_in_reply_to_something_else_the_words_alone_are_drawn(okun: Okun, chat: Room, model: Script) -> None:
    voice = chat.put("voice", b"la la")
    await okun.take()
    await draw(chat, "a song", reply_to=voice)
    assert model.wishes[0].references == ()


async def test_in_reply_to_words_those_are_drawn(okun: Okun, group: Room, model: Script) -> None:
    said = group.put("say", "a perch with a crown", by="Borys")
    await okun.take()
    await group.say("/draw", reply_to=said)
    assert [wish.prompt for wish in model.wishes] == ["a perch with a crown"]
    assert pictures(okun, "user_id") == [ANNA]


async def test_a_large_photo_is_shrunk_for_the_model(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("photo", still(100, (3000, 2000)), "/draw smaller")
    [media] = model.wishes[0].references
    assert media.mime == "image/jpeg"
    with Image.open(io.BytesIO(media.data)) as image:
        assert max(image.size) == bot.PHOTO_SIDE


@settings(price_image=3)
async def test_a_photo_that_is_gone_costs_nothing(okun: Okun, chat: Room, model: Script) -> None:
    await pay(okun, ANNA, 3)
    photo = chat.put("photo", still(10))
    await okun.take()
    file_id = chat.chat.messages[photo]["photo"][-1]["file_id"]
    del okun.telegram.files[file_id]
    await chat.say("/draw make it winter", reply_to=photo)
    assert okun.t("media.gone") in chat.replies[-1].text
    assert (jobs(okun), coins(okun), used(okun), model.wishes) == (["refunded"], 3, 0, [])


@settings(price_image=3)
async def test_a_damaged_photo_costs_nothing(okun: Okun, chat: Room, model: Script) -> None:
    await pay(okun, ANNA, 3)
    await chat.send("document", still(10)[:300], "cat.jpg", "image/jpeg", "/draw winter")
    assert okun.t("photo.broken") in chat.replies[-1].text
    assert (jobs(okun), coins(okun), model.wishes) == (["refunded"], 3, [])


# -- put together


async def test_the_panel_asks_and_draws(okun: Okun, chat: Room, model: Script) -> None:
    [panel] = await chat.say("/draw")
    assert panel.text == okun.t("draw.ask") and okun.t("draw.button.go") not in panel.buttons
    assert "✓ 1:1" in panel.buttons and f"✓ {okun.t('draw.style.none')}" in panel.buttons
    [ready] = await chat.say("a lighthouse at night")
    assert "“a lighthouse at night”" in ready.text and chat.replies == [ready]
    await chat.press("16:9")
    pressed = await chat.press(okun.t("draw.style.oil"))
    assert "✓ 16:9" in pressed.message.buttons and f"✓ {okun.t('draw.style.oil')}" in pressed.message.buttons
    assert jobs(okun) == []
    drawn_ = await chat.press(okun.t("draw.button.go"))
    assert [reply.picture for reply in drawn_.replies] == [True]
    [wish] = model.wishes
    assert wish.ratio == "16:9" and wish.prompt == f"a lighthouse at night\n\nStyle: {bot.DRAW_STYLES['oil']}."
    assert okun.rows("SELECT 1 FROM forms") == []
    await chat.say("thanks")
    assert model.heard == "thanks"  # talk again


@pytest.mark.parametrize("ratio", bot.RATIOS)
async def test_each_format_reaches_the_model_and_the_picture_has_it(
    okun: Okun, chat: Room, model: Script, ratio: str
) -> None:
    await chat.say("/draw")
    await chat.say("a lighthouse")
    await chat.press("16:9" if ratio == "1:1" else "1:1")
    await chat.press(ratio)
    await chat.press(okun.t("draw.button.go"))
    assert model.wishes[0].ratio == ratio
    [(file_id,)] = okun.rows("SELECT file_id FROM pictures")
    with Image.open(io.BytesIO(okun.telegram.files[file_id].data)) as image:
        width, _, height = ratio.partition(":")
        assert image.width * int(height) == image.height * int(width)


@pytest.mark.parametrize("style", bot.DRAW_STYLES)
async def test_each_style_is_told_in_its_own_words(okun: Okun, chat: Room, model: Script, style: str) -> None:
    await chat.say("/draw")
    await chat.say("a lighthouse")
    await chat.press(okun.t(f"draw.style.{style}"))
    await chat.press(okun.t("draw.button.go"))
    told = [other for other, words in bot.DRAW_STYLES.items() if words in model.wishes[0].prompt]
    assert told == [style]


async def test_words_can_be_written_anew(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.say("a cat")
    [panel] = await chat.say("a dog")
    assert "a dog" in panel.text and "a cat" not in panel.text
    pressed = await chat.press(okun.t("draw.button.anew"))
    assert pressed.message.text == okun.t("draw.ask") and form(okun).prompt == ""


async def test_the_last_format_holds_for_the_next_picture(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.say("a cat")
    await chat.press("3:4")
    await chat.press(okun.t("draw.style.comic"))
    await chat.press(okun.t("draw.button.go"))
    await okun.restart()
    await draw(chat, "a dog")
    assert (okun.model.wishes[0].ratio, okun.model.wishes[0].prompt) == ("3:4", "a dog")
    [panel] = await chat.say("/draw")
    assert "✓ 3:4" in panel.buttons


async def test_photos_come_one_by_one_or_as_an_album(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    [panel] = await chat.send("photo", still(20))
    assert okun.t("draw.ask_photos") in panel.text and f"✓ {okun.t('draw.button.as_photo')}" in panel.buttons
    await chat.send("album", [still(100), still(180)], "join them")
    await okun.later(2)
    [panel] = chat.replies
    assert "3 photos" in panel.text and "join them" in panel.text
    await chat.press(okun.t("draw.button.go"))
    assert sorted(reds(model)) == [20, 100, 180] and model.wishes[0].ratio == ""


async def test_photos_can_be_left_out_again(okun: Okun, chat: Room, model: Script) -> None:
    async with okun.app.db.tx() as tx:
        await bot.ensure_person(tx, ANNA)
        await bot.keep_taste(tx, ANNA, bot.Wish("", "4:3"), quick=False)
    await chat.say("/draw")
    await chat.send("photo", still(20), "a cat")
    await chat.press(okun.t("draw.button.bare"))
    await chat.press(okun.t("draw.button.go"))
    assert (model.wishes[0].references, model.wishes[0].ratio, model.wishes[0].prompt) == ((), "4:3", "a cat")


async def test_no_more_photos_than_a_request_may_carry(okun: Okun, chat: Room) -> None:
    await chat.say("/draw")
    await chat.send("album", [still(n * 10) for n in range(10)])
    await okun.later(2)
    [refused] = [
        reply
        for reply in [*await chat.send("album", [still(n * 10 + 105) for n in range(5)]), *(await later_(okun, chat))]
        if "14" in reply.text
    ]
    assert refused.text == okun.t("draw.many", most=14) and len(form(okun).files) == 10


async def later_(okun: Okun, chat: Room) -> list[Reply]:
    before = {reply.id for reply in chat.replies}
    await okun.later(2)
    return [reply for reply in chat.replies if reply.id not in before]


async def test_a_photo_without_words_opens_the_panel_with_it(okun: Okun, chat: Room, model: Script) -> None:
    photo = chat.put("photo", still(50))
    await okun.take()
    [panel] = await chat.say("/draw", reply_to=photo)
    assert okun.t("draw.button.look") in panel.buttons and okun.t("draw.ask_photos") in panel.text
    [panel] = await chat.send("photo", still(60), "/draw")
    assert len(form(okun).files) == 1  # the new one
    await chat.say("as a stamp")
    await chat.press(okun.t("draw.button.go"))
    assert reds(model) == [60]


async def test_the_format_of_a_photo_is_not_the_last_one_that_was_chosen(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.say("a cat")
    await chat.press("16:9")
    await chat.press(okun.t("draw.button.go"))
    await chat.say("/draw")
    await chat.send("photo", still(60), "as a stamp")
    await chat.press(okun.t("draw.button.go"))
    await draw(chat, "a dog")
    assert [wish.ratio for wish in model.wishes] == ["16:9", "", "16:9"]


async def test_a_photo_is_described_and_that_is_drawn(okun: Okun, chat: Room, model: Script) -> None:
    model.says = lambda ask: f"A red thing, {red_of(ask.said[-1].media[0])}" if "paints" in ask.system else "talk"
    await chat.say("/draw")
    await chat.send("photo", still(210))
    pressed = await chat.press(okun.t("draw.button.look"))
    [panel] = [pressed.message]
    assert "A red thing, 2" in panel.text and form(okun).files == ()
    assert "English" in model.asks[-1].system
    await chat.press(okun.t("draw.button.go"))
    assert model.wishes[0].prompt.startswith("A red thing") and model.wishes[0].references == ()


@settings(max_parallel_updates=1)
async def test_a_photo_that_waits_to_be_looked_at_holds_up_nobody(okun: Okun, chat: Room, model: Script) -> None:
    model.says = lambda ask: "a perch"
    await chat.say("/draw")
    await chat.send("photo", still(210))
    for _ in range(2):  # large files of others
        await okun.app.heavy.acquire()
    await chat.press(okun.t("draw.button.look"))
    assert len(await okun.private("Borys").say("/help")) == 1 and model.asks == []
    for _ in range(2):
        okun.app.heavy.release()
    await okun.settle()
    assert len(model.asks) == 1


@settings(replies_per_hour=1)
async def test_to_describe_a_photo_counts_as_talk(okun: Okun, chat: Room, model: Script) -> None:
    model.says = lambda ask: "a perch"
    await chat.send("photo", still(140), "/draw")
    await chat.press(okun.t("draw.button.look"))
    await chat.press(okun.t("draw.button.anew"))
    await chat.send("photo", still(150))
    await chat.press(okun.t("draw.button.look"))
    assert len(model.asks) == 1 and form(okun).files
    assert chat.replies[-1].text == okun.t("limit.replies", left=okun.app.texts.span("en", 3600, into=True))


async def test_a_photo_that_cannot_be_described_can_be_drawn_by(okun: Okun, chat: Room, model: Script) -> None:
    model.always(bot.LlmError("overloaded"))
    await chat.say("/draw")
    await chat.send("photo", still(210))
    pressed = await chat.press(okun.t("draw.button.look"))
    assert pressed.replies[-1].text == okun.t("llm.overloaded") and len(form(okun).files) == 1


async def test_quick_draws_as_soon_as_it_is_told(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.press("16:9")
    pressed = await chat.press(okun.t("draw.button.quick"))
    assert okun.t("draw.quick") in pressed.message.text
    sent = await chat.say("a cat")
    assert [reply.picture for reply in sent] == [True] and model.wishes[0].ratio == "16:9"
    assert chat.replies == sent  # the panel that asked is gone
    await okun.restart()
    [panel] = await chat.say("/draw")
    assert okun.t("draw.quick") in panel.text and "✓ 16:9" in panel.buttons
    await chat.press(okun.t("draw.button.quick"))
    [ready] = await chat.say("a dog")
    assert okun.t("draw.button.go") in ready.buttons


@settings(images_per_day=1)
async def test_quick_keeps_what_it_may_not_draw_and_lets_talk_be_talk(okun: Okun, chat: Room, model: Script) -> None:
    await draw(chat)
    await chat.say("/draw")
    await chat.press(okun.t("draw.button.quick"))
    [refused] = await chat.say("a dog")
    assert "1 a day" in refused.text and form(okun).prompt == "a dog"
    [reply] = await chat.say("what a pity")
    assert reply.text == "Heard: what a pity"


async def test_two_presses_at_once_draw_once(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    [panel] = await chat.say("a cat")
    for _ in range(2):
        okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("draw.button.go"), panel.id)
    await okun.take()
    assert len(model.wishes) == 1 and jobs(okun) == ["done"] and len(pictures(okun)) == 1


@settings(price_image=5)
async def test_what_cannot_be_paid_stays_put_together(okun: Okun, chat: Room) -> None:
    await chat.say("/draw")
    [panel] = await chat.say("a cat")
    assert okun.t("draw.price", price=5) in panel.text
    pressed = await chat.press(okun.t("draw.button.go"))
    assert pressed.note and "5 🪙" in pressed.note and jobs(okun) == [] and form(okun).prompt == "a cat"
    await pay(okun, ANNA, 5)
    await chat.press(okun.t("draw.button.go"))
    assert jobs(okun) == ["done"] and coins(okun) == 0


async def test_a_draft_outlives_a_restart(okun: Okun, chat: Room) -> None:
    await chat.say("/draw")
    [panel] = await chat.say("a cat")
    await okun.restart()
    await chat.press(okun.t("draw.style.toy"), message=panel)
    await okun.restart()
    await chat.press(okun.t("draw.button.go"), message=panel)
    assert bot.DRAW_STYLES["toy"] in okun.model.wishes[0].prompt


async def test_in_a_group_the_command_alone_says_how(okun: Okun, group: Room) -> None:
    assert [reply.text for reply in await group.say("/draw")] == [okun.t("draw.wordless")]
    photo = group.put("photo", still(10))
    await okun.take()
    assert [reply.text for reply in await group.say("/draw", reply_to=photo)] == [okun.t("draw.wordless")]


@pytest.mark.parametrize(
    "arg", ["0", "a", "a0", "a9", "p", "p7", "j", "j7", "a" + "9" * 30, "x" * 30, "🐟", "' OR 1 --"]
)
async def test_rubbish_begins_no_draft(okun: Okun, chat: Room, arg: str) -> None:
    [menu] = await chat.say("/menu")
    pressed = await chat.press_data(f"m2:{ANNA}:draw:{arg}", menu)
    assert pressed.note and okun.rows("SELECT 1 FROM forms") == []


@pytest.mark.parametrize(
    "arg", ["", "x", "ratio", "ratio.9", "ratio.99999999999999999999", "style.nothing", "me.7", "🐟."]
)
async def test_rubbish_changes_no_draft(okun: Okun, chat: Room, arg: str) -> None:
    await chat.say("/draw")
    [panel] = await chat.say("a cat")
    before = form(okun)
    await chat.press_data(f"d1:{ANNA}:draw_set:{arg}", panel)
    assert form(okun) == before


@pytest.mark.parametrize("name", ["draw_set", "draw_go", "draw_look"])
async def test_without_a_draft_its_buttons_say_so(okun: Okun, chat: Room, name: str) -> None:
    [menu] = await chat.say("/menu")
    pressed = await chat.press_data(f"d1:{ANNA}:{name}:ratio.1", menu)
    said = [pressed.note, *(reply.text for reply in pressed.replies)]
    assert okun.t("draw.over") in said and jobs(okun) == []


# -- with an avatar


async def test_with_me_the_card_and_the_photos_go_along(okun: Okun, chat: Room, model: Script) -> None:
    await avatar(okun, chat)
    await chat.say("/draw")
    await chat.say("on a horse")
    me = okun.t("draw.button.me", name="Ann")
    assert f"✓ {me}" in (await chat.press(me)).message.buttons
    pressed = await chat.press(okun.t("draw.button.go"))
    assert reds(model) == [10, 20, 30]
    [wish] = model.wishes
    assert (
        "Green eyes, a scar on the chin." in wish.prompt
        and "The first 3 pictures are photos of one person" in wish.prompt
    )
    assert "came with the wish" not in wish.prompt
    assert pictures(okun, "me") == [1] and pressed.replies[-1].text.endswith("1:1 · Ann")


@pytest.mark.parametrize(("gender", "told"), [("female", "It is a woman. Green eyes"), ("", "about them. Green eyes")])
async def test_what_was_said_of_an_avatar_goes_along(
    okun: Okun, chat: Room, model: Script, gender: str, told: str
) -> None:
    id_ = await avatar(okun, chat)
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE avatars SET gender = ? WHERE id = ?", gender, id_)
    await chat.say("/draw me on a horse")
    assert told in model.wishes[-1].prompt


@settings(price_image=4)
async def test_photos_that_cannot_be_had_for_a_moment_are_not_told_to_be_lost(
    okun: Okun, chat: Room, model: Script
) -> None:
    await pay(okun, ANNA, 4)
    await avatar(okun, chat)
    okun.telegram.fault("timeout", "download", times=1)
    await chat.say("/draw me on a horse")
    assert jobs(okun) == ["refunded"] and coins(okun) == 4 and not model.wishes
    assert okun.t("media.unreachable") in chat.replies[-1].text


async def test_with_me_and_photos_both_go_along(okun: Okun, chat: Room, model: Script) -> None:
    await avatar(okun, chat)
    await chat.say("/draw")
    await chat.send("photo", still(200), "me in this place")
    await chat.press(okun.t("draw.button.me", name="Ann"))
    await chat.press(okun.t("draw.button.go"))
    assert reds(model) == [10, 20, 30, 200]
    assert "The other picture came with the wish" in model.wishes[0].prompt


async def test_with_me_can_be_taken_back(okun: Okun, chat: Room, model: Script) -> None:
    await avatar(okun, chat)
    await chat.say("/draw")
    await chat.say("on a horse")
    me = okun.t("draw.button.me", name="Ann")
    await chat.press(me)
    await chat.press(f"✓ {me}")
    await chat.press(okun.t("draw.button.go"))
    assert model.wishes[0].references == () and pictures(okun, "me") == [0]


@pytest.mark.parametrize("how", [{"status": "training"}, {"main": False}])
async def test_only_who_is_ready_and_the_main_one_is_offered(okun: Okun, chat: Room, how: dict[str, Any]) -> None:
    await avatar(okun, chat, **how)
    [panel] = await chat.say("/draw")
    assert not any("Ann" in label for label in panel.buttons)


async def test_from_its_card_any_avatar_is_drawn(okun: Okun, chat: Room, model: Script) -> None:
    id_ = await avatar(okun, chat, main=False)
    [menu] = await chat.say("/menu")
    pressed = await chat.press_data(f"m2:{ANNA}:draw:a{id_}", menu)
    assert f"✓ {okun.t('draw.button.me', name='Ann')}" in pressed.message.buttons
    await chat.say("as a knight")
    await chat.press(okun.t("draw.button.go"))
    assert reds(model) == [10, 20, 30]


async def test_nobody_draws_with_anothers_avatar(okun: Okun, chat: Room, model: Script) -> None:
    id_ = await avatar(okun, chat, BORYS)
    [menu] = await chat.say("/menu")
    assert (await chat.press_data(f"m2:{ANNA}:draw:a{id_}", menu)).note == okun.t("draw.no_avatar")
    await chat.say("/draw")
    [panel] = await chat.say("as a knight")
    assert (await chat.press_data(f"d1:{ANNA}:draw_set:me.{id_}", panel)).note == okun.t("draw.no_avatar")
    assert form(okun).avatar_id is None


@settings(price_image=4)
async def test_where_too_few_photos_are_left_it_costs_nothing(okun: Okun, chat: Room, model: Script) -> None:
    await pay(okun, ANNA, 4)
    id_ = await avatar(okun, chat, photos=4)
    files = [row[0] for row in okun.rows("SELECT file_id FROM avatar_photos ORDER BY id")]
    who = bot.Who(chat.id, 0, ANNA, "en", private=True)
    await chat.say("hi")
    del okun.telegram.files[files[0]]
    await bot.begin_drawing(okun.app, who, bot.Wish("me", avatar_id=id_))
    await okun.settle()
    assert reds(model) == [20, 30, 40] and jobs(okun) == ["done"]
    await pay(okun, ANNA, 40)
    del okun.telegram.files[files[1]]
    await bot.begin_drawing(okun.app, who, bot.Wish("me again", avatar_id=id_))
    await okun.settle()
    assert jobs(okun) == ["done", "refunded"] and coins(okun) == 40 and len(model.wishes) == 1
    assert okun.t("draw.faceless") in chat.replies[-1].text


async def test_an_avatar_that_was_deleted_is_left_out_of_the_draft(okun: Okun, chat: Room, model: Script) -> None:
    id_ = await avatar(okun, chat)
    await chat.say("/draw")
    await chat.say("on a horse")
    await chat.press(okun.t("draw.button.me", name="Ann"))
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM avatars WHERE id = ?", id_)
    assert (await chat.press(okun.t("draw.button.go"))).note == okun.t("draw.no_avatar")
    await chat.press("9:16")
    assert form(okun).avatar_id is None
    await chat.press(okun.t("draw.button.go"))
    assert jobs(okun) == ["done"] and model.wishes[0].references == ()


async def test_photos_of_an_avatar_leave_less_room_for_others(okun: Okun, chat: Room) -> None:
    id_ = await avatar(okun, chat, photos=6)
    who = bot.Who(chat.id, 0, ANNA, "en", private=True)
    with pytest.raises(bot.BotError) as caught:
        await bot.begin_drawing(okun.app, who, bot.Wish("me", files=tuple("abcdefghi"), avatar_id=id_))
    assert (caught.value.key, caught.value.fields) == ("draw.many", {"most": 8})


# -- in talk


@pytest.mark.parametrize(
    "said",
    ["намалюй кота в човні", "Окуню, намалюй мені, будь ласка, кота в човні", "нарисуй мне кота в човні",
     "okun, draw me кота в човні", "Draw please кота в човні", "@okun_bot намалюй кота в човні",
     "Окунь! Малюй: кота в човні"],
)  # fmt: skip
async def test_a_plain_wish_needs_no_talk_with_the_model(okun: Okun, chat: Room, model: Script, said: str) -> None:
    okun.app.me = okun.app.me.model_copy(update={"username": "okun_bot"}) if okun.app.me else None
    [picture] = await chat.say(said)
    assert picture.picture and [wish.prompt for wish in model.wishes] == ["кота в човні"]
    assert model.asks == []


@pytest.mark.parametrize("said", ["draw", "what did you draw yesterday?", "намалюєш кота?", "I draw cats",
                                  "малюнок кота", "домалюй хвіст", "redraw it", "don't draw a cat",
                                  "drawing is fun"])  # fmt: skip
async def test_other_talk_of_drawing_is_talk(okun: Okun, chat: Room, model: Script, said: str) -> None:
    [reply] = await chat.say(said)
    assert reply.text == f"Heard: {said}" and model.wishes == []


async def test_in_a_group_only_who_calls_the_bot_gets_a_picture(okun: Okun, group: Room, model: Script) -> None:
    assert await group.say("draw a cat") == []
    assert model.wishes == []
    [picture] = await group.say("okun, draw a cat")
    assert picture.picture and picture.reply_to == group.last_id


async def test_a_photo_with_such_words_is_gone_by(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("photo", still(140), "перемалюй це взимку")
    assert reds(model) == [140] and model.wishes[0].prompt.startswith("перемалюй це взимку\n") and model.asks == []
    await chat.send("album", [still(20), still(220)], "draw them together")
    await okun.later(2)
    assert sorted(reds(model)) == [20, 220] and len(model.wishes) == 2


@pytest.mark.parametrize(
    "said", ["намалюй мене на коні", "нарисуй меня на коні", "draw me on a horse", "/draw мене на коні"]
)
async def test_me_is_who_the_main_avatar_is_of(okun: Okun, chat: Room, model: Script, said: str) -> None:
    sent = await chat.say(said)
    assert sent[-1].text == okun.t("draw.who") and jobs(okun) == []
    await avatar(okun, chat)
    await chat.say(said)
    assert reds(model) == [10, 20, 30] and "Green eyes" in model.wishes[0].prompt


async def test_with_a_photo_me_is_who_is_on_it(okun: Okun, chat: Room, model: Script) -> None:
    await chat.send("photo", still(140), "намалюй мене на коні")
    assert reds(model) == [140]


@settings(replies_per_hour=1)
async def test_such_wishes_count_as_talk(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("draw a cat")
    await chat.say("draw a dog")
    assert [wish.prompt for wish in model.wishes] == ["a cat"]


def calls(*args: dict[str, str]) -> Callable[[bot.Ask], str | bot.Answer]:
    """A model that calls the tool with these, then says what it was told."""

    def say(ask: bot.Ask) -> str | bot.Answer:
        results = ask.said[-1].results
        if results:
            return " / ".join(str(result.text) for result in results)
        return bot.Answer("", calls=tuple(bot.Call("draw", one) for one in args))

    return say


async def test_the_model_may_draw_for_whoever_asks(okun: Okun, group: Room, model: Script) -> None:
    model.says = calls({"prompt": "a perch in a suit", "ratio": "9:16", "style": "oil", "me": "no"})
    await group.say("okun, I'd love to see a perch in a suit", by="Borys")
    [wish] = model.wishes
    assert (wish.ratio, wish.user_id) == ("9:16", BORYS) and "oil painting" in wish.prompt
    [picture] = [reply for reply in group.replies if reply.picture]
    assert picture.reply_to == group.last_id and pictures(okun, "user_id") == [BORYS]
    assert "being drawn" in group.replies[-2].text or "being drawn" in group.replies[-1].text


async def test_the_model_draws_once_for_a_message(okun: Okun, chat: Room, model: Script) -> None:
    model.says = calls({"prompt": "a cat"}, {"prompt": "a dog"})
    await chat.say("could I see a cat and then a dog?")
    assert [wish.prompt for wish in model.wishes] == ["a cat"]
    assert any("one picture for each message" in reply.text for reply in chat.replies)


async def test_the_model_draws_whoever_asks_by_their_avatar(okun: Okun, group: Room, model: Script) -> None:
    await avatar(okun, group, BORYS)
    model.says = calls({"prompt": "on a horse", "ratio": "", "style": "nonsense", "me": "yes"})
    [reply] = await group.say("okun, how would I look on a horse?", by="Vira")
    assert "no avatar" in reply.text and model.wishes == []
    await group.say("okun, how would I look on a horse?", by="Borys")
    assert reds(model) == [10, 20, 30] and model.wishes[0].ratio == "1:1"


async def test_the_model_is_told_why_it_cannot_draw(okun: Okun, chat: Room) -> None:
    await okun.restart(gemini_image_model=())
    okun.model.says = calls({"prompt": "a cat"})
    [reply] = await chat.say("could I see a cat?")
    assert "GEMINI_IMAGE_MODEL" in reply.text


async def test_a_photo_goes_along_with_what_the_model_draws(okun: Okun, chat: Room, model: Script) -> None:
    model.says = calls({"prompt": "in winter"})
    await chat.send("photo", still(90), "how would that look in winter?")
    assert reds(model) == [90] and model.wishes[0].ratio == ""


# -- what comes of it


FAULTS = {"blocked": "draw.blocked", "quota": "draw.quota", "timeout": "draw.timeout", "words": "llm.words",
          "server": "llm.server", "budget": "llm.budget", "overloaded": "llm.overloaded", "key": "llm.key"}  # fmt: skip


@settings(price_image=7, images_per_day=5)
@pytest.mark.parametrize("kind", FAULTS)
async def test_what_fails_is_given_back_and_said(okun: Okun, chat: Room, model: Script, kind: str) -> None:
    await pay(okun, ANNA, 7)
    model.draws = lambda wish: bot.LlmError(kind)
    now = await asked(chat, "/draw a cat")
    assert now.text == f"{okun.t(FAULTS[kind])}\n\n{okun.t('job.back', price=7)}"
    assert now.buttons == [okun.t("job.button.again"), okun.t("job.button.change")]
    assert (jobs(okun), coins(okun), used(okun), pictures(okun)) == (["refunded"], 7, 0, [])


@langs
async def test_a_refusal_is_told_in_each_language(okun: Okun, model: Script, lang: str) -> None:
    room = okun.private(PEOPLE[lang])
    model.draws = lambda wish: bot.LlmError("blocked")
    assert (await asked(room, "/draw a cat")).text == okun.t("draw.blocked", lang)


async def test_what_was_refused_can_be_changed(okun: Okun, chat: Room, model: Script) -> None:
    model.draws = lambda wish: bot.LlmError("blocked") if "cat" in wish.prompt else drawn(wish)
    await chat.say("/draw")
    await chat.say("a rude cat")
    await chat.press("4:3")
    model.easel = asyncio.Event()
    await chat.press(okun.t("draw.button.go"))
    model.easel.set()
    await okun.settle()
    await chat.press(okun.t("job.button.change"))
    assert (form(okun).prompt, form(okun).ratio) == ("a rude cat", "4:3")
    await chat.say("a polite dog")
    await chat.press(okun.t("draw.button.go"))
    assert jobs(okun) == ["failed", "done"] and model.wishes[-1].ratio == "4:3"


async def test_in_a_group_a_refused_wish_can_only_be_repeated(okun: Okun, group: Room, model: Script) -> None:
    model.draws = lambda wish: bot.LlmError("blocked")
    assert (await asked(group, "/draw a cat")).buttons == [okun.t("job.button.again")]


@pytest.mark.parametrize("data", [b"", b"not a picture", still(1)[:200], still(1, (2100, 100), "PNG")])
async def test_what_is_no_picture_is_said(okun: Okun, chat: Room, model: Script, data: bytes) -> None:
    model.draws = lambda wish: bot.Media("image/png", data)
    assert (await asked(chat, "/draw a cat")).text == okun.t("draw.broken") and pictures(okun) == []


async def test_what_is_too_large_for_a_photo_is_sent_smaller(okun: Okun, chat: Room, model: Script) -> None:
    model.draws = lambda wish: bot.Media("image/png", still(70, (9000, 1500), "PNG"))
    await draw(chat)
    [file_id] = pictures(okun, "file_id")
    with Image.open(io.BytesIO(okun.telegram.files[file_id].data)) as image:
        assert max(image.size) == bot.PHOTO_SIDE and image.format == "JPEG"


async def test_bytes_beyond_the_limit_are_sent_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    data = still(70, (800, 600), "PNG")
    assert bot.as_photo(data) == data
    monkeypatch.setattr(bot, "MAX_SENT_BYTES", len(data) - 1)
    assert bot.as_photo(data)[:2] == b"\xff\xd8"


async def test_where_photos_are_forbidden_it_says_so(okun: Okun, group: Room) -> None:
    okun.telegram.fault("400", "sendPhoto", text="not enough rights to send photos to the chat")
    await group.say("/draw a cat")
    assert {reply.text for reply in group.replies} == {okun.t("draw.forbidden")}


@settings(price_image=5)
async def test_what_was_drawn_in_vain_costs_no_coins_but_counts(okun: Okun, group: Room, model: Script) -> None:
    await pay(okun, ANNA, 5)
    okun.telegram.fault("400", "sendPhoto", text="not enough rights to send photos to the chat")
    await group.say("/draw a cat")
    assert jobs(okun) == ["refunded"] and coins(okun) == 5 and len(model.wishes) == 1
    assert used(okun) == 1  # else a group that forbids pictures would have the model draw without end


async def test_photos_to_go_by_are_held_two_at_once(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    async def fetch(aiogram_bot: Any, file_id: str) -> bytes:
        held.append(file_id)
        return still(10)

    monkeypatch.setattr(bot, "fetch_file", fetch)
    async with okun.app.drawing:
        asked = [asyncio.create_task(bot.reference(okun.app, str(n))) for n in range(5)]
        await okun.settle()
        assert len(held) == 2
    await asyncio.gather(*asked)
    assert len(held) == 5


@settings(max_parallel_images=3)
async def test_ten_at_once_are_drawn_three_by_three(okun: Okun, group: Room, model: Script) -> None:
    model.easel = asyncio.Event()
    people = [f"Fisher {n}" for n in range(10)]
    for name in people:
        okun.telegram.member(group.chat, okun.person(name))
        group.put("say", f"/draw a boat of {name}", by=name)
    await okun.take()
    assert len(model.wishes) == 3
    waiting = okun.rows("SELECT panel_id FROM jobs WHERE state = 'queued' ORDER BY id")
    places = [Reply(group.chat.messages[panel_id]).text for (panel_id,) in waiting]
    assert places == [okun.t("job.queued", place=n) for n in range(1, 8)]
    model.easel.set()
    await okun.settle()
    assert len(model.wishes) == 10 and jobs(okun) == ["done"] * 10
    captions = sorted(reply.text.splitlines()[0] for reply in group.replies if reply.picture)
    assert captions == sorted(f"🎨 a boat of {name}" for name in people)


@settings(price_image=2)
async def test_a_restart_goes_on_and_pays_once(okun: Okun, chat: Room, model: Script) -> None:
    await pay(okun, ANNA, 10)
    model.easel = asyncio.Event()
    await chat.say("/draw a cat")
    assert len(model.wishes) == 1
    await okun.restart()
    await bot.jobs_resume(okun.app)
    await bot.begin_jobs(okun.app)
    await okun.settle()
    assert [wish.prompt for wish in okun.model.wishes] == ["a cat"]
    assert jobs(okun) == ["done"] and coins(okun) == 8 and len([r for r in chat.replies if r.picture]) == 1


async def test_a_wish_that_is_taken_twice_is_drawn_once(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.press(okun.t("draw.button.quick"))
    okun.wire.hold("deleteMessage")  # the job's row is there, the update's end is not
    okun.wire.hold("sendMessage")
    chat.put("say", "a cat")
    await okun.take()
    await okun.restart()
    await okun.settle()
    assert len(jobs(okun)) == 1 and okun.model.asks == []


async def test_who_is_forgotten_leaves_no_picture(okun: Okun, chat: Room, model: Script) -> None:
    picture = await draw(chat)
    model.easel = asyncio.Event()
    await chat.say("/draw a dog")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    model.easel.set()
    await okun.settle()
    assert pictures(okun) == [] and jobs(okun) == []
    assert (await chat.press(okun.t("draw.button.file"), message=picture)).note == okun.t("draw.gone")


# -- what can be done with it


async def test_again_draws_the_same_wish(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/draw")
    await chat.send("photo", still(40), "a cat")
    await chat.press(okun.t("draw.style.anime"))
    await chat.press("9:16")
    await chat.press(okun.t("draw.button.go"))
    [first] = chat.replies
    pressed = await chat.press(okun.t("draw.button.again"))
    assert [reply.picture for reply in pressed.replies] == [True] and pressed.replies[0].reply_to == first.id
    assert (model.wishes[0].prompt, model.wishes[0].ratio) == (model.wishes[1].prompt, model.wishes[1].ratio)
    assert [mark(media.data) for media in model.wishes[0].references] == [
        mark(m.data) for m in model.wishes[1].references
    ]
    assert first in chat.replies  # it stays


async def test_again_tapped_twice_draws_once(okun: Okun, chat: Room, model: Script) -> None:
    picture = await draw(chat)
    model.easel = asyncio.Event()
    await chat.press(okun.t("draw.button.again"), message=picture)
    second = await chat.press(okun.t("draw.button.again"), message=picture)
    assert second.note == okun.t("draw.already")
    model.easel.set()
    await okun.settle()
    assert len(model.wishes) == 2


async def test_the_prompt_is_shown_whole_and_can_be_changed(okun: Okun, chat: Room, model: Script) -> None:
    words = "a cat " * 300
    picture = await draw(chat, words)
    pressed = await chat.press(okun.t("draw.button.prompt"), message=picture)
    [shown] = pressed.replies
    assert shown.text == words.strip() and shown.reply_to == picture.id
    await chat.press(okun.t("draw.button.change"), message=shown)
    assert form(okun).prompt == words.strip()
    await chat.say("a dog")
    await chat.press(okun.t("draw.button.go"))
    assert model.wishes[-1].prompt == "a dog" and picture.id in [reply.id for reply in chat.replies]


async def test_in_a_group_the_prompt_says_how_to_change_it(okun: Okun, group: Room) -> None:
    picture = await draw(group)
    [shown] = (await group.press(okun.t("draw.button.prompt"), message=picture)).replies
    assert shown.text == f"a cat in a boat\n\n{okun.t('draw.change_here')}"
    assert shown.buttons == [okun.t("menu.close")]


async def test_a_favourite_is_marked_and_unmarked(okun: Okun, chat: Room) -> None:
    picture = await draw(chat)
    pressed = await chat.press(okun.t("draw.button.love"), message=picture)
    assert okun.t("draw.button.loved") in pressed.message.buttons and pictures(okun, "favourite") == [1]
    pressed = await chat.press(okun.t("draw.button.loved"), message=picture)
    assert okun.t("draw.button.love") in pressed.message.buttons and pictures(okun, "favourite") == [0]


async def test_the_original_is_sent_as_a_file_and_then_by_its_id(okun: Okun, chat: Room, model: Script) -> None:
    picture = await draw(chat)
    pressed = await chat.press(okun.t("draw.button.file"), message=picture)
    [sent] = pressed.replies
    file_id = sent.raw["document"]["file_id"]
    assert pressed.note == okun.t("menu.moment") and sent.text == okun.t("draw.file.original")
    assert okun.telegram.files[file_id].data == drawn(model.wishes[0]).data
    assert pictures(okun, "original_id") == [file_id]
    await okun.restart()
    [again] = (await chat.press(okun.t("draw.button.file"), message=picture)).replies
    assert again.raw["document"]["file_id"] == file_id and okun.wire.downloads == []


@settings(max_parallel_updates=1)
async def test_a_copy_that_is_being_fetched_holds_up_nobody(okun: Okun, chat: Room) -> None:
    picture = await draw(chat)
    await okun.restart()
    fetching = okun.wire.hold("getFile")
    assert (await chat.press(okun.t("draw.button.file"), message=picture)).replies == []
    assert len(await okun.private("Borys").say("/help")) == 1
    fetching.set()
    await okun.settle()
    assert chat.replies[-1].text == okun.t("draw.file.copy")


async def test_after_a_restart_the_file_is_telegrams_copy_and_says_so(okun: Okun, chat: Room) -> None:
    picture = await draw(chat)
    await okun.restart()
    [sent] = (await chat.press(okun.t("draw.button.file"), message=picture)).replies
    [(photo, file)] = pictures(okun, "file_id, original_id")
    assert sent.text == okun.t("draw.file.copy")
    assert okun.telegram.files[file].data == okun.telegram.files[photo].data


async def test_only_a_few_originals_are_kept_and_none_that_is_large(okun: Okun, chat: Room, model: Script) -> None:
    for number in range(10):
        await draw(chat, f"boat {number}")
    assert [*okun.app.originals] == pictures(okun)[2:]
    noise = Image.effect_noise((2400, 2400), 90)
    out = io.BytesIO()
    noise.save(out, "PNG")
    assert len(out.getvalue()) > bot.MOST_ORIGINAL_BYTES
    model.draws = lambda wish: bot.Media("image/png", out.getvalue())
    await draw(chat, "noise")
    assert [*okun.app.originals] == pictures(okun)[2:-1]


@pytest.mark.usefixtures("gallery")
async def test_the_gallery_opens_in_a_message_of_its_own(okun: Okun, chat: Room) -> None:
    picture = await draw(chat)
    [opened] = (await chat.press(okun.t("draw.button.gallery"), message=picture)).replies
    assert opened.text == "the gallery" and picture in chat.replies


async def test_from_a_group_the_gallery_opens_in_private(okun: Okun, group: Room) -> None:
    picture = await draw(group)
    pressed = await group.press(okun.t("draw.button.gallery"), message=picture)
    assert [reply.text for reply in pressed.replies] == [okun.t("private.start")]
    await okun.private("Anna").say("/start")
    pressed = await group.press(okun.t("draw.button.gallery"), message=picture)
    assert [reply.text for reply in pressed.replies] == [okun.t("private.sent")]
    assert okun.private("Anna").replies[-1].picture


@pytest.mark.usefixtures("gallery")
async def test_from_a_group_the_gallery_is_opened_in_private(okun: Okun, group: Room, model: Script) -> None:
    await group.say("/draw a cat")
    picture = next(reply for reply in group.replies if reply.picture)
    button = okun.t("draw.button.gallery")
    assert [reply.text for reply in (await group.press(button, message=picture)).replies] == [okun.t("private.start")]
    chat = okun.private("Anna")
    await chat.say("/start")
    pressed = await group.press(button, message=picture)
    assert okun.t("private.sent") in [reply.text for reply in pressed.replies]
    assert chat.replies[-1].text == "the gallery"


async def test_nobody_presses_anothers_buttons(okun: Okun, group: Room, model: Script) -> None:
    picture = await draw(group)
    for data in picture.data:
        pressed = await group.press_data(data, picture, by="Borys")
        assert pressed.note == okun.t("button.not_yours", "uk") and pressed.replies == []
    assert len(model.wishes) == 1 and pictures(okun, "favourite, original_id") == [(0, None)]


@pytest.mark.usefixtures("gallery")
async def test_a_forged_button_reaches_nobodys_picture(okun: Okun, group: Room, model: Script) -> None:
    picture = await draw(group)
    [id_] = pictures(okun)
    for verb in bot.PICTURE_VERBS:
        pressed = await group.press_data(f"g1:{BORYS}:{verb}:{id_}", picture, by="Borys")
        assert pressed.note == okun.t("draw.gone", "uk") and pressed.replies == []
    for rubbish in (
        "g1",
        f"g1:{ANNA}",
        f"g1:{ANNA}:x:{id_}",
        f"g1:{ANNA}:love:x",
        f"g1:{ANNA}:love:{10**30}",
        f"g1:{ANNA}:love:-1",
    ):
        assert (await group.press_data(rubbish, picture)).note in (okun.t("button.old"), okun.t("draw.gone"))
    wish = await group.press_data(f"m2:{BORYS}:wish:{id_}", picture, by="Borys")
    assert wish.note == okun.t("draw.gone", "uk")
    assert len(model.wishes) == 1 and pictures(okun, "favourite") == [0]


async def test_a_press_before_the_picture_is_stored_is_asked_to_wait(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("hi")
    model.easel = asyncio.Event()
    [panel] = await chat.say("/draw a cat")
    [id_] = jobs(okun, "id")
    assert (await chat.press_data(f"g1:{ANNA}:love:{id_}", panel)).note == okun.t("menu.moment")
    model.easel.set()
    await okun.settle()


async def test_an_anonymous_administrators_picture_is_any_administrators(
    okun: Okun, group: Room, model: Script
) -> None:
    sent = await group.say("/draw a cat", by="chat")
    picture = next(reply for reply in sent if reply.picture)
    assert pictures(okun, "user_id") == [group.id]
    love = okun.t("draw.button.love", "uk")
    assert (await group.press(love, by="Olena", message=picture)).note is None
    assert pictures(okun, "favourite") == [1]
    assert (await group.press(okun.t("draw.button.loved", "uk"), by="Borys", message=picture)).note == okun.t(
        "button.not_yours", "uk"
    )
    await group.press_data(f"g1:{group.id}:again:{pictures(okun)[0]}", picture, by="Olena")
    assert pictures(okun, "user_id") == [group.id, group.id]


# -- rules


@pytest.mark.parametrize(
    ("text", "wish"),
    [("draw a cat", "a cat"), ("DRAW A CAT", "A CAT"), ("намалюй: кота!", "кота!"),
     ("нарисуй-ка кота", "кота"), ("окунь, ну намалюй кота", "кота"),
     ("draw", ""), ("a cat", None), ("", None), ("окунь okun draw x", "x"),
     ("намалюй мене", "мене"), ("draw me as me", "me as me")],
)  # fmt: skip
def test_what_is_to_be_drawn_follows_the_verb(text: str, wish: str | None) -> None:
    assert bot.asked_to_draw(bot.draw_words(TEXTS), text, ["окунь", "okun"]) == wish


def test_every_button_fits_into_64_bytes() -> None:
    for verb in bot.PICTURE_VERBS:
        assert len(bot.PicturePress(owner=-(10**13), verb=verb, id=str(10**12)).pack().encode()) <= 64


@pytest.mark.parametrize("size", [(2100, 100), (100, 2100)])
def test_what_is_too_narrow_for_a_photo_is_not_even_sent(size: tuple[int, int]) -> None:
    with pytest.raises(bot.BotError) as caught:
        bot.as_photo(still(1, size, "PNG"))
    assert caught.value.key == "draw.broken"
    assert bot.as_photo(still(1, (2000, 100), "PNG"))
