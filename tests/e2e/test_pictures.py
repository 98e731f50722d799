"""Drawing, avatars and the gallery, as a process: from /start to a picture of oneself; ten people at once; models that
fail, in whatever way."""

from __future__ import annotations

import asyncio
import base64
import functools
import io
import random
from typing import Any

import pytest
from fakes import Ask, BotProcess, Json, Reply, Rule, default_parts, picture, response, until
from PIL import Image, ImageDraw

from .conftest import PATIENCE, TEXTS, Person, Stage

IMAGE = "gemini-3.1-flash-image"
CARD = "A round face, grey eyes, a mole on the left cheek, short dark curly hair."


def t(key: str, **fields: Any) -> str:
    """An English text of the bot's."""
    found: Any = functools.reduce(lambda table, name: table[name], key.split("."), TEXTS)
    return str(found).format(**fields)


@functools.cache
def shot(seed: int) -> bytes:
    """A photo that is like no other."""
    dice = random.Random(seed)

    def colour() -> tuple[int, ...]:
        return tuple(dice.randrange(256) for _ in range(3))

    image = Image.new("RGB", (600, 800), colour())
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        x, y, radius = dice.random() * 600, dice.random() * 800, (0.05 + dice.random() / 4) * 600
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), colour())
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


def identity(ask: Ask) -> str:
    return f'{{"person": true, "card": "{CARD}", "best": [3, 1, 2]}}'


def told(stage: Stage, person: Person) -> list[str]:
    """What the bot's messages in a chat say now, under a picture or without one."""
    return [one.get("text") or one.get("caption") or "" for one in stage.telegram.sent(person.chat)]


async def sees(stage: Stage, person: Person, words: str) -> None:
    await stage.telegram.until(lambda: any(words in text for text in told(stage, person)), PATIENCE)


async def press(stage: Stage, person: Person, label: str) -> str | None:
    """Press a button of the newest message that has it; the note that comes."""
    telegram = stage.telegram
    await telegram.until(lambda: any(label in labels(one) for one in telegram.sent(person.chat)), PATIENCE)
    telegram.press(person.chat, person.user, label)
    query = telegram.queue[-1]["callback_query"]["id"]
    await telegram.until(lambda: query in telegram.answered, PATIENCE)
    note: str | None = telegram.answered[query].get("text")
    return note


def labels(message: Json) -> list[str]:
    rows = message.get("reply_markup", {}).get("inline_keyboard", ())
    return [button["text"] for row in rows for button in row]


def drawn(stage: Stage, person: Person) -> list[Image.Image]:
    """The pictures that a model drew for somebody: those with the buttons of one."""
    sent = stage.telegram.sent(person.chat)
    found = [one for one in sent if "photo" in one and t("draw.button.file") in labels(one)]
    return [Image.open(io.BytesIO(stage.telegram.files[one["photo"][-1]["file_id"]].data)) for one in found]


async def drew(stage: Stage, person: Person, count: int = 1) -> None:
    await stage.telegram.until(lambda: len(drawn(stage, person)) == count, PATIENCE)


def image_asks(stage: Stage) -> list[Ask]:
    return [ask for ask in stage.gemini.requests if ask.model == IMAGE]


def send(stage: Stage, person: Person, *photos: bytes) -> None:
    if len(photos) == 1:
        stage.telegram.photo(person.chat, person.user, photos[0])
    else:
        stage.telegram.album(person.chat, person.user, photos)


async def rich(stage: Stage, person: Person, coins: int = 50) -> None:
    """Give somebody coins, as an owner would."""
    owner = stage.person("Owner")
    assert owner.user["id"] == 2
    stage.says(owner, f"/promo new GIFT {coins}")
    await stage.replied(owner)
    stage.says(person, "/promo GIFT")
    await stage.replied(person)


async def avatar_with(stage: Stage, person: Person, photos: int = 4) -> None:
    """A new avatar, up to the question whether to begin, with nothing but buttons, photos and one name."""
    await press(stage, person, t("menu.to.avatars"))
    await press(stage, person, t("avatar.button.new"))
    await press(stage, person, t("avatar.button.skip"))
    stage.says(person, "Anna")
    await sees(stage, person, t("avatar.ask.photos", photos="4 photos").strip()[:20])
    send(stage, person, *map(shot, range(photos - 1)))
    await sees(stage, person, t("avatar.taken", photos=f"{photos - 1} photos"))
    send(stage, person, shot(photos - 1))
    await press(stage, person, t("avatar.button.train"))


async def test_from_the_start_to_a_picture_of_oneself_by_buttons_photos_and_one_name(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("These are 4 photos", identity)
    stage.gemini.rule("Describe it", "A harbour at dawn, boats in the fog.")
    async with stage.bot() as okun:
        stage.says(anna, "/start")
        await stage.replied(anna)
        await press(stage, anna, t("start.button.menu"))
        await avatar_with(stage, anna)
        await press(stage, anna, t("avatar.button.train_yes"))
        await sees(stage, anna, t("avatar.ready", name="Anna"))
        await press(stage, anna, t("avatar.button.draw"))
        await sees(stage, anna, t("draw.ask"))
        send(stage, anna, shot(50))
        await press(stage, anna, t("draw.button.look"))
        await sees(stage, anna, "boats in the fog")
        await press(stage, anna, "9:16")
        await press(stage, anna, t("draw.style.oil"))
        await press(stage, anna, t("draw.button.go"))
        await stage.telegram.until(lambda: drawn(stage, anna), PATIENCE)
        [ask] = image_asks(stage)
        assert ask.config["imageConfig"] == {"aspectRatio": "9:16"}
        assert CARD in ask.text and "A harbour at dawn" in ask.text and "oil" in ask.text
        assert len({*ask.media}) >= 3
        [image] = drawn(stage, anna)
        assert (image.width * 16, image.size) == (image.height * 9, expected(ask).size)
        await stage.settled(okun)
        assert okun.rows("SELECT user_id, me, json_extract(wish, '$.ratio') FROM pictures") == [
            (anna.user["id"], 1, "9:16")
        ]
        await press(stage, anna, t("draw.button.gallery"))
        await sees(stage, anna, t("gallery.with"))
        await press(stage, anna, t("gallery.button.stats"))
        await sees(stage, anna, t("gallery.by_avatar", me=1, others=0))
        await okun.kill()
    async with okun:  # where somebody was stands in the buttons
        await press(stage, anna, t("menu.back"))
        await stage.telegram.until(lambda: "🤍" in labels(stage.telegram.sent(anna.chat)[-1]), PATIENCE)
        assert await press(stage, anna, "🤍") == t("gallery.loved")
        assert okun.rows("SELECT favourite FROM pictures") == [(1,)]


def expected(ask: Ask) -> Image.Image:
    """The picture that the model answers with."""
    return Image.open(io.BytesIO(base64.b64decode(picture(ask)["inlineData"]["data"])))


async def test_the_format_is_the_one_that_was_chosen(stage: Stage) -> None:
    anna = stage.person()
    async with stage.bot():
        for n, ratio in enumerate(("9:16", "16:9", "3:4", "4:3", "1:1"), 1):
            stage.says(anna, "/draw")
            await sees(stage, anna, t("draw.ask"))
            stage.says(anna, f"a cat in boat {n}")
            await sees(stage, anna, f"“a cat in boat {n}”")
            await press(stage, anna, ratio)
            await press(stage, anna, t("draw.button.go"))
            await drew(stage, anna, n)
            ask = image_asks(stage)[-1]
            assert ask.config["imageConfig"] == {"aspectRatio": ratio} and ask.media == []
            assert f"boat {n}" in ask.text and len(image_asks(stage)) == n
            width, height = map(int, ratio.split(":"))
            image = drawn(stage, anna)[-1]
            assert image.width * height == image.height * width


async def test_of_ten_who_draw_at_once_three_do_and_all_get_their_own(stage: Stage) -> None:
    people = [stage.person(f"Person{n}") for n in range(10)]
    at_work, most, free = 0, 0, asyncio.Event()
    whole = stage.gemini._whole

    def slow(body: bytes, rule: Rule) -> Reply:
        async def later() -> bytes:
            nonlocal at_work, most
            at_work += 1
            most = max(most, at_work)
            await free.wait()
            await asyncio.sleep(0.05)
            at_work -= 1
            return response(body)

        return later() if b"inlineData" in body else whole(body, rule)

    stage.gemini._whole = slow  # type: ignore[method-assign]
    async with stage.bot(MAX_PARALLEL_IMAGES=3) as okun:
        for n, person in enumerate(people):
            stage.says(person, f"/draw fish number {n}")
        states = "SELECT state, count(*) FROM jobs GROUP BY state ORDER BY state"
        await until(lambda: okun.rows(states) == [("queued", 7), ("running", 3)] and at_work == 3, PATIENCE)
        places = [t("job.queued", place=place) for place in range(1, 8)]
        await stage.telegram.until(
            lambda: sorted(text for person in people for text in told(stage, person) if text in places) == places,
            PATIENCE,
        )
        free.set()
        await stage.telegram.until(lambda: all(drawn(stage, person) for person in people), PATIENCE)
        await until(lambda: okun.rows(states) == [("done", 10)], PATIENCE)
        assert most == 3 and len(image_asks(stage)) == 10
        colours = []
        for n, person in enumerate(people):
            [image] = drawn(stage, person)
            [ask] = [ask for ask in image_asks(stage) if f"fish number {n}" in ask.text]
            assert image.convert("RGB").getpixel((0, 0)) == expected(ask).getpixel((0, 0))
            colours.append(image.convert("RGB").getpixel((0, 0)))
        assert len({*colours}) == 10


FAILURES: dict[str, tuple[Json, str]] = {
    "503": ({"kind": "503"}, "llm.overloaded"),
    "hang": ({"kind": "hang"}, "draw.timeout"),
    "reset": ({"kind": "reset"}, "llm.network"),
    "blocked": ({"kind": "blocked"}, "draw.blocked"),
    "malformed": ({"kind": "malformed"}, "llm.server"),
    "text": ({"reply": "I would rather not."}, "llm.words"),
}


async def refunded(stage: Stage, okun: BotProcess, person: Person, key: str) -> None:
    """The job has failed, is told why in plain words, and nothing was paid for it."""
    await until(lambda: okun.rows("SELECT state FROM jobs ORDER BY id DESC LIMIT 1") == [("refunded",)], PATIENCE)
    await sees(stage, person, t(key))
    await stage.settled(okun)
    assert okun.rows("SELECT amount FROM balances WHERE user_id = ?", person.user["id"]) == [(50,)]
    deltas = okun.rows("SELECT delta FROM ledger WHERE user_id = ? ORDER BY id", person.user["id"])
    assert deltas == [(50,), (-7,), (7,)]
    assert any(t("job.back", price=7) in text for text in told(stage, person))


@pytest.mark.parametrize("how", FAILURES)
async def test_a_model_that_does_not_draw_costs_nothing_and_says_why(stage: Stage, how: str) -> None:
    anna, (fault, key) = stage.person(), FAILURES[how]
    if "reply" in fault:
        stage.gemini.rule("", fault["reply"], model=IMAGE)
    else:
        stage.gemini.fault(fault["kind"], times=99, model=IMAGE)
    async with stage.bot(PRICE_IMAGE=7, ADMIN_IDS=2, LLM_TIMEOUT=2 if how == "hang" else 30) as okun:
        await rich(stage, anna)
        stage.says(anna, "/draw a cat in a boat")
        await refunded(stage, okun, anna, key)
        assert drawn(stage, anna) == [] and okun.rows("SELECT count(*) FROM pictures") == [(0,)]
        assert okun.rows("SELECT coalesce(sum(used), 0) FROM quotas WHERE name = 'images'") == [(0,)]
        stage.gemini.rule("", default_parts, model=IMAGE)
        stage.gemini.faults.clear()


async def test_of_two_pictures_the_first_is_sent(stage: Stage) -> None:
    anna = stage.person()

    def two(ask: Ask) -> list[Json]:
        other = Ask(ask.model, ask.method, ask.body | {"generationConfig": {}}, ask.headers, ask.at, ask.contents)
        return [{"text": "Here are two."}, picture(ask), picture(other)]

    stage.gemini.rule("", two, model=IMAGE)
    async with stage.bot() as okun:
        stage.says(anna, "/draw a cat in a boat")
        await stage.telegram.until(lambda: drawn(stage, anna), PATIENCE)
        await stage.settled(okun)
        await until(lambda: okun.rows("SELECT state FROM jobs") == [("done",)], PATIENCE)
        [image], [ask] = drawn(stage, anna), image_asks(stage)
        assert image.size == expected(ask).size and okun.rows("SELECT count(*) FROM pictures") == [(1,)]


@pytest.mark.parametrize(
    ("answer", "key"),
    [
        ("What lovely photos!", "avatar.unclear"),
        ('{"person": false, "card": "", "best": []}', "avatar.nobody"),
        ('{"person": true, "card": "A face.", "best": [1]}', "avatar.unclear"),
    ],
)
async def test_a_training_that_comes_to_nothing_is_an_error_and_given_back(stage: Stage, answer: str, key: str) -> None:
    anna = stage.person()
    stage.gemini.rule("", answer)
    async with stage.bot(PRICE_AVATAR=7, ADMIN_IDS=2) as okun:
        await rich(stage, anna)
        stage.says(anna, "/menu")
        await avatar_with(stage, anna)
        await press(stage, anna, t("avatar.button.train_yes"))
        await refunded(stage, okun, anna, key)
        assert okun.rows("SELECT status, card FROM avatars") == [("error", "")]
        assert okun.rows("SELECT sum(chosen) FROM avatar_photos") == [(0,)]
