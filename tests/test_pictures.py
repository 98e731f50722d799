"""Pictures: that they are pictures, that they show what they should, and that words stay within them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import random
import string
import zlib
from typing import Any

import pytest
from conftest import ANNA, BORYS, KYIV, NOON, TEXTS, Later, Okun, Room
from PIL import Image

import bot

LETTERS = {
    "uk": "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",
    "ru": "абвгдеёжзийклмнопрстуфхцчшщъыьэюя",
    "en": string.ascii_lowercase,
}
MARKS = "0123456789–−—·%…+.,:;!?()«»“”’'/№&@#-‹›"
HOUR = 3600


class Ruler(bot.Canvas):
    """A canvas that notes where words and boxes stand."""

    written: list[tuple[str, float, float, float]]  # text, from, to, line
    boxes: list[tuple[float, float, float, float]]

    def __init__(self, width: int, height: int) -> None:
        super().__init__(width, height)
        self.written, self.boxes = [], []

    def box(self, left: float, top: float, right: float, bottom: float, colour: str, radius: float = 0.0) -> None:
        super().box(left, top, right, bottom, colour, radius)
        self.boxes.append((left, top, right, bottom))

    def text(self, x: float, y: float, text: str, size: int, colour: str = bot.BRIGHT, **how: Any) -> float:
        width = super().text(x, y, text, size, colour, **how)
        left = {"l": x, "m": x - width / 2, "r": x - width}[how.get("anchor", "ls")[0]]
        self.written.append((text, left, left + width, y))
        return width

    def png(self) -> bytes:
        return b""


@pytest.fixture
def ruled(monkeypatch: pytest.MonkeyPatch) -> list[Ruler]:
    """The canvases that pictures are drawn on in this test; they only measure."""
    made: list[Ruler] = []

    def canvas(width: int, height: int) -> Ruler:
        made.append(Ruler(width, height))
        return made[-1]

    monkeypatch.setattr(bot, "Canvas", canvas)
    return made


def picture(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def report(period: str = "7d", **given: Any) -> bot.MoodReport:
    span = bot.PERIODS[period]
    starts = bot.step_starts(span, NOON, KYIV)
    steps = tuple(bot.Step(at, n % 5 * 7, (n % 7 - 3) / 4) for n, at in enumerate(starts))
    base = bot.MoodReport(
        period, steps, sum(step.messages for step in steps), 0.31, 41, 3, 12,
        (("joy", 0.4), ("anger", 0.15), ("love", 0.1), ("sadness", 0.05), ("fear", 0.02), ("surprise", 0.01)),
        (("Anna", 300), ("Borys", 120), ("Vira", 30), ("Olena", 7), ("Ґалаґан Її", 1)),
        ("риболовля", "weather", "ёлка"), ((int(NOON) + HOUR, int(NOON) + 3 * HOUR),),
        tuple(float(hour % 6) for hour in range(24)), int(NOON),
    )  # fmt: skip
    return dataclasses.replace(base, **given)


HUGE = {
    "steps": tuple(bot.Step(int(NOON) - 21_600 * n, 98_765_432, -1.0) for n in range(28, 0, -1)),
    "messages": 2_000_000_000, "sentiment": -0.999, "questions": 10**9, "conflicts": 10**9, "people": 10**9,
    "members": tuple(("Щ" * 50, 10**9 - n) for n in range(5)), "topics": tuple("Щ" * 40 for _ in range(6)),
    "emotions": tuple((emotion, 1 / 7) for emotion in bot.EMOTIONS),
    "awake": ((int(NOON) + HOUR, int(NOON) + 2 * HOUR), (int(NOON) + 24 * HOUR, int(NOON) + 31 * HOUR)),
}  # fmt: skip
EMPTY = {"topics": (), "members": (), "emotions": (), "awake": (), "ahead": ()}


# -- letters


@pytest.mark.parametrize("lang", LETTERS)
def test_every_letter_and_mark_that_we_write_can_be_drawn(lang: str) -> None:
    letters = LETTERS[lang] + LETTERS[lang].upper() + MARKS
    assert [letter for letter in letters if not bot.has_glyph(letter)] == []
    assert bot.drawable(letters) == letters


def test_letters_look_each_their_own_way() -> None:
    letters = sorted({letter for letters in LETTERS.values() for letter in letters})
    face = bot.font("Medium", 40)
    looks: dict[bytes, str] = {}
    for letter in letters:
        looks.setdefault(bytes(face.getmask(letter)), letter)
    twins = {"а": "a", "е": "e", "о": "o", "р": "p", "с": "c", "у": "y", "х": "x", "і": "i", "ї": "ї"}
    assert [letter for letter in letters if letter not in looks.values() and letter not in twins] == []


NAMES = {
    "😀": "–", "👩‍👩‍👧": "–", "❤️": "–", "": "–", " \n ": "–", "\0": "–", "\ud83d": "–", "שלום": "–",
    "\u202e\u200b\ufe0f": "–", "Anna 🐟": "Anna", "🐟 Ґандзя\n\u2029 Ї": "Ґандзя Ї", "a\nb\x85c": "a b c",
    "x\ty": "x y", "❤️ Оля ❤️": "Оля",
}  # fmt: skip


def test_what_the_font_lacks_is_left_out_and_of_nothing_a_dash_remains() -> None:
    for name, shown in NAMES.items():
        assert bot.drawable(name) == shown, ascii(name)


def test_any_name_is_drawn_within_its_room() -> None:
    dice, canvas = random.Random(3), bot.Canvas(400, 80)
    planes = [range(0x20), range(0x80, 0xA1), range(0x300, 0x370), range(0x400, 0x530), range(0x590, 0x700),
              range(0x900, 0x980), range(0x2000, 0x2070), range(0x4E00, 0x4E20), range(0xD800, 0xE000),
              range(0xFE00, 0xFE10), range(0x1F300, 0x1F700), range(0xE0000, 0xE0080)]  # fmt: skip
    names = [*NAMES, "Щ" * 1000, "…" * 50, "a" + "\u0301" * 60, " ".join("Щі" * 30)]
    names += ["".join(chr(dice.choice(dice.choice(planes))) for _ in range(dice.randrange(60))) for _ in range(40)]
    for name in names:
        assert canvas.text(0, 40, name, 30, most=100.0) <= 100, ascii(name)[:60]


def test_what_is_too_long_is_cut_with_dots_and_what_fits_is_not() -> None:
    canvas = bot.Canvas(400, 80)
    whole = canvas.text(0, 40, "Щука", 30)
    assert canvas.text(0, 40, "Щука", 30, most=whole) == whole
    cut = canvas.text(0, 40, "Щука велика", 30, most=whole)
    assert 0 < cut <= whole
    assert canvas.text(0, 40, "Щука", 30, most=1) < whole / 2


# -- the canvas


def test_a_canvas_becomes_a_png_of_its_size_with_what_was_drawn() -> None:
    canvas = bot.Canvas(120, 60)
    canvas.box(10, 10, 50, 50, bot.WARM, 8)
    canvas.line([(60, 30), (110, 30)], bot.COLD, 4)
    canvas.dot(85, 15, bot.BRIGHT, 6)
    image = picture(canvas.png()).convert("RGB")
    assert image.format is None and image.size == (120, 60)
    colours = [image.getpixel(at) for at in ((30, 30), (85, 30), (85, 15), (115, 55))]
    for found, drawn in zip(colours, (bot.WARM, bot.COLD, bot.BRIGHT, bot.GROUND), strict=True):
        assert found == pytest.approx(rgb(drawn), abs=16)  # of 256 colours the nearest


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def test_a_box_without_room_is_none_and_harms_nothing() -> None:
    canvas = bot.Canvas(40, 40)
    for left, top, right, bottom in ((10, 10, 10, 30), (10, 10, 10.4, 30), (30, 10, 10, 30), (10, 30, 20, 10)):
        canvas.box(left, top, right, bottom, bot.WARM, 20)
    canvas.line([], bot.WARM, 6)
    canvas.line([(5, 5)], bot.WARM, 6)
    assert set(picture(canvas.png()).convert("RGB").tobytes()) == {*rgb(bot.GROUND)}


def test_letters_leave_their_mark_and_others_leave_another() -> None:
    def drawn(text: str) -> bytes:
        canvas = bot.Canvas(100, 40)
        canvas.text(5, 30, text, 24)
        return picture(canvas.png()).convert("RGB").tobytes()

    assert len({drawn(text) for text in ("Щ", "Ш", "ї", "і", "–", "−.", "12 %")}) == 7


def test_the_ceiling_of_an_axis_is_the_next_number_that_reads_well() -> None:
    for most in (*range(1500), 9999, 10_000, 10_001, 123_456_789, 10**12):
        ceiling = bot.nice_ceiling(most)
        assert max(1, most) <= ceiling <= max(1, most) * 2.5 and len(str(ceiling).rstrip("0")) <= 2, most


def test_a_colour_between_two_is_between_them() -> None:
    assert bot.blend("#000000", "#ffffff", 0) == "#000000" and bot.blend("#000000", "#ffffff", 1) == "#ffffff"
    assert bot.blend("#102030", "#304050", 0.5) == "#203040"


# -- the picture of /mood


def test_the_picture_is_a_png_and_no_two_reports_look_alike(okun: Okun) -> None:
    seen = set()
    drawn: list[tuple[str, dict[str, Any]]] = [
        ("uk", {}),
        ("en", {"sentiment": -0.5, "members": (("Vira", 5),), "topics": ("дощ",)}),
    ]
    for lang, given in drawn:
        data = bot.draw_mood(okun.app, lang, "Ставок", report(**given))
        image = picture(data)
        assert (image.format, image.width) == ("PNG", bot.PICTURE_WIDTH) and image.height > image.width
        rgb_image = image.convert("RGB")
        colours = rgb_image.getcolors(1 << 24) or []
        ground = max(count for count, _ in colours)
        assert len(colours) > 50 and ground < rgb_image.width * rgb_image.height * 0.9  # it is not blank
        assert len(data) < 1_000_000
        seen.add(rgb_image.tobytes())
    assert len(seen) == 2


@pytest.mark.parametrize("lang", bot.LANGS)
def test_no_word_leaves_the_picture_or_runs_into_another(okun: Okun, ruled: list[Ruler], lang: str) -> None:
    drawn: list[tuple[str, dict[str, Any]]] = [
        ("24h", {}), ("7d", HUGE), ("30d", EMPTY), ("30d", {"sentiment": 1.0, "emotions": HUGE["emotions"]}),
    ]  # fmt: skip
    for period, given in drawn:
        bot.draw_mood(okun.app, lang, "Щ" * 128, report(period, **given))
    for canvas in ruled:
        for text, left, right, y in canvas.written:
            assert bot.drawable(text) == text.replace("\u00a0", " "), text
            assert left >= 0 and right <= canvas.width and 0 < y < canvas.height, (text, left, right, y)
        lines: dict[float, list[tuple[float, float, str]]] = {}
        for text, left, right, y in canvas.written:
            lines.setdefault(y, []).append((left, right, text))
        for line in lines.values():
            for one, other in itertools.pairwise(sorted(line)):
                assert one[1] <= other[0], (one, other)
        for left, top, right, bottom in canvas.boxes:
            assert min(left, top) >= 0 and right <= canvas.width and bottom <= canvas.height


@pytest.mark.parametrize("lang", bot.LANGS)
@pytest.mark.parametrize("given", [{}, EMPTY, {"sentiment": -0.47, "emotions": (("fear", 0.996),), "conflicts": 0}])
def test_the_picture_and_the_text_say_the_same(
    okun: Okun, ruled: list[Ruler], lang: str, given: dict[str, Any]
) -> None:
    told = report("24h", **given)
    bot.draw_mood(okun.app, lang, "Pond", told)
    shown = [text for text, *_ in ruled[0].written]
    words = "\n".join(bot.mood_facts(okun.app, lang, told))
    sentiment = bot.sentiment_words(lang, told.sentiment)
    assert sentiment in shown and f"({sentiment})" in words
    assert okun.t(f"mood.tone.{bot.tone_of(told.sentiment)}", lang) in shown
    for _, name, share in bot.emotion_words(okun.app, lang, told):
        entry = f"{name} {bot.percent(lang, share)}"
        assert (entry in shown) == (entry in words) == (share >= 0.005), entry
    for name, count in told.members:
        assert name in shown and str(count) in shown and f"{name} ({count})" in words
    for topic in told.topics:
        assert topic in shown and topic in words
    assert bot.awake_words(okun.app, lang, told) in shown and bot.awake_words(okun.app, lang, told) in words


def test_shares_of_emotions_add_up_and_calm_is_the_rest(okun: Okun) -> None:
    shares = bot.emotion_words(okun.app, "en", report(emotions=(("joy", 0.5), ("fear", 0.2))))
    assert shares == [("joy", "joy", 0.5), ("", "calm", pytest.approx(0.3)), ("fear", "worry", 0.2)]
    shares = bot.emotion_words(okun.app, "en", report(emotions=(("joy", 0.6), ("fear", 0.4))))
    assert [key for key, *_ in shares] == ["joy", "fear", ""] and shares[-1][2] == pytest.approx(0)
    assert bot.emotion_words(okun.app, "en", report(emotions=())) == [("", "calm", 1.0)]


def test_a_tone_has_a_word_on_each_side_of_its_bound(okun: Okun) -> None:
    bounds = {1: "warm", 0.35: "warm", 0.349: "light", 0.1: "light", 0.099: "even", 0: "even", -0.1: "even",
              -0.101: "cool", -0.35: "cool", -0.351: "heavy", -1: "heavy"}  # fmt: skip
    assert {value: bot.tone_of(value) for value in bounds} == bounds


def test_figures_stand_as_the_language_writes_them() -> None:
    said = {-0.25: "−0.25", 0.0: "+0.00", -0.001: "+0.00", 0.126: "+0.13", 1.0: "+1.00"}
    assert {value: bot.sentiment_words("en", value) for value in said} == said
    for lang in ("uk", "ru"):
        assert {value: bot.sentiment_words(lang, value) for value in said} == {
            value: words.replace(".", ",") for value, words in said.items()
        }
        assert [bot.percent(lang, share) for share in (0, 0.2, 0.996, 1)] == [
            "0\u00a0%", "20\u00a0%", "100\u00a0%", "100\u00a0%",
        ]  # fmt: skip
    assert [bot.percent("en", share) for share in (0, 0.2, 0.996, 1)] == ["0%", "20%", "100%", "100%"]


# -- pictures are kept


async def felt(room: Room, count: int = 24) -> None:
    """So many messages of Anna and Borys in turn, put where they are stored."""
    mood, users = bot.Mood(0.5, "joy", "uk"), (ANNA, BORYS)
    rows = [
        (room.id, 900 + n, 0, users[n % 2], int(NOON) - 60, "text", "щука", None, None, None, None, *mood, None, None)
        for n in range(count)
    ]
    await room.okun.app.db.write({
        bot.PUT_CHAT: [(room.id, "supergroup", "Pond")],
        bot.PUT_USER: [(ANNA, "Anna", None, None, None), (BORYS, "Borys", None, None, None)],
        bot.PUT_MESSAGE: rows,
    })  # fmt: skip


async def mood_of(room: Room, words: str = "/mood 7d", by: str | None = None) -> bytes:
    """The picture that the bot sends."""
    [reply] = await room.say(words, by=by)
    return room.okun.telegram.files[reply.raw["photo"][-1]["file_id"]].data


async def test_a_picture_is_drawn_once_for_all_who_ask_within_five_minutes(
    okun: Okun, group: Room, later: Later
) -> None:
    await felt(group)
    stats = okun.app.drawn.stats
    first = await mood_of(group)
    await later(100)
    assert await mood_of(group, by="Anna") == first and (stats.hits, stats.misses) == (1, 1)
    await later(199)
    assert await mood_of(group) == first and (stats.hits, stats.misses) == (2, 1)
    await later(2)
    await mood_of(group)
    assert (stats.hits, stats.misses) == (2, 2)


async def test_periods_languages_and_chats_have_each_their_own_picture(okun: Okun, group: Room) -> None:
    lake = okun.group("Lake")
    await felt(group)
    await felt(lake, 12)
    asked = [(group, "/mood 7d", "Anna"), (group, "/mood 30d", "Anna"), (group, "/mood 7d", "Borys"),
             (lake, "/mood 7d", "Anna")]  # fmt: skip
    first = [await mood_of(*one) for one in asked]
    assert len(set(first)) == len(asked) == okun.app.drawn.stats.misses
    assert [await mood_of(*one) for one in asked] == first
    assert okun.app.drawn.stats.misses == okun.app.drawn.stats.hits == len(asked)


async def test_who_asks_while_a_picture_is_drawn_gets_the_same_one(
    okun: Okun, group: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, draw = list[str](), bot.draw_mood

    def counted(app: bot.App, lang: str, title: str, told: bot.MoodReport) -> bytes:
        drawn.append(lang)
        return draw(app, lang, title, told)

    monkeypatch.setattr(bot, "draw_mood", counted)  # the cache counts who asks, not what is drawn
    await felt(group)
    async with okun.app.drawing:
        for by in ("Anna", "Borys", "Vira", "Anna", "Borys"):
            group.put("say", "/mood 7d", by=by)
        await okun.take()
        assert not drawn and not group.replies
    await okun.settle()
    assert sorted(drawn) == ["en", "ru", "uk"]  # one for each language
    pictures = [okun.telegram.files[reply.raw["photo"][-1]["file_id"]].data for reply in group.replies]
    assert len(pictures) == 5 and len(set(pictures)) == 3


async def test_pictures_are_drawn_one_at_a_time(okun: Okun, group: Room) -> None:
    rooms = [group, okun.group("Lake"), okun.group("Creek")]
    for room in rooms:
        await felt(room)
    async with okun.app.drawing:
        for room in rooms:
            room.put("say", "/mood 7d")
        await okun.take()
        assert not any(room.replies for room in rooms) and okun.app.drawing.locked()
    await okun.settle()
    assert all(room.replies[-1].picture for room in rooms) and not okun.app.drawing.locked()


async def test_after_a_forgetting_a_picture_is_drawn_anew(okun: Okun, group: Room) -> None:
    lake, stats = okun.group("Lake"), okun.app.drawn.stats
    for room in (group, lake):
        await felt(room)
    first, of_lake = await mood_of(group), await mood_of(lake)
    await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    assert await mood_of(group) != first and (stats.hits, stats.misses) == (0, 3)
    assert await mood_of(lake) == of_lake and (stats.hits, stats.misses) == (1, 3)


async def test_a_picture_begun_before_a_forgetting_is_not_kept(okun: Okun, group: Room) -> None:
    await felt(group)
    async with okun.app.drawing:
        group.put("say", "/mood 7d")
        await okun.take()
        await bot.forget_person(okun.app, BORYS, [group.id], everywhere=False)
    await okun.settle()
    assert len(okun.app.drawn) == 0
    await mood_of(group)
    assert len(okun.app.drawn) == 1


async def test_where_a_chat_takes_no_pictures_the_words_come_alone(okun: Okun, group: Room) -> None:
    await felt(group, 12)
    okun.telegram.fault("400", "sendPhoto", text="not enough rights to send photos to the chat")
    [reply] = await group.say("/mood 7d")
    assert "photo" not in reply.raw and "12 messages" in reply.text
    [reply] = await group.say("/mood 7d")
    sent = picture(okun.telegram.files[reply.raw["photo"][-1]["file_id"]].data)
    assert sent.width == bot.PICTURE_WIDTH and TEXTS("en", "mood.button.text") in reply.buttons


# -- photos that people send


def scene(width: int = 900, height: int = 1200) -> Image.Image:
    """Four corners of four colours, so that it is seen how a picture lies."""
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((30, 200, 30), (width // 2, 0, width, height // 2))
    image.paste((30, 30, 200), (0, height // 2, width // 2, height))
    image.paste((90, 90, 90), (width // 2, height // 2, width, height))
    return image


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


def corners(photo: bot.Photo) -> list[tuple[int, ...]]:
    """The colours of the corners, clockwise from the upper left one, to the nearest ten."""
    image = photo.picture
    right, low = image.width - 20, image.height - 20
    found = (image.getpixel(at) for at in ((20, 20), (right, 20), (right, low), (20, low)))
    return [tuple(round(shade, -1) for shade in colour) for colour in found]


RED, GREEN, GREY, BLUE = (200, 30, 30), (30, 200, 30), (90, 90, 90), (30, 30, 200)
AS_SENT = [RED, GREEN, GREY, BLUE]
sizes = pytest.mark.parametrize(("width", "height"), [(600, 800), (1700, 2300)])


@sizes
@pytest.mark.parametrize(
    ("kind", "how"), [("JPEG", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"progressive": True})]
)
def test_photos_of_the_usual_kinds_are_opened_and_shrunk(kind: str, how: Any, width: int, height: int) -> None:
    photo = bot.open_photo(encoded(scene(width, height), kind, **how))
    assert (photo.picture.mode, photo.width, photo.height) == ("RGB", width, height)
    assert max(photo.picture.size) == min(max(width, height), 1024)
    assert corners(photo) == AS_SENT
    again = Image.open(io.BytesIO(bot.jpeg(photo.picture)))
    assert (again.format, again.size) == ("JPEG", photo.picture.size)


def test_a_small_photo_stays_as_small_as_it_is() -> None:
    photo = bot.open_photo(encoded(scene(300, 200), "PNG"))
    assert photo.picture.size == (300, 200) == (photo.width, photo.height)


@sizes
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "turned"),
    [(1, AS_SENT), (2, [GREEN, RED, BLUE, GREY]), (3, [GREY, BLUE, RED, GREEN]), (4, [BLUE, GREY, GREEN, RED]),
     (5, [RED, BLUE, GREY, GREEN]), (6, [BLUE, RED, GREEN, GREY]), (7, [GREY, GREEN, RED, BLUE]),
     (8, [GREEN, GREY, BLUE, RED])],
)  # fmt: skip
def test_a_photo_lies_as_the_camera_was_held(
    kind: str, orientation: int, turned: list[Any], width: int, height: int
) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    how = {"lossless": True} if kind == "WEBP" else {}
    photo = bot.open_photo(encoded(scene(width, height), kind, exif=exif, **how))
    assert (photo.width, photo.height) == ((width, height) if orientation < 5 else (height, width))
    assert (photo.picture.width > photo.picture.height) == (orientation >= 5)
    assert corners(photo) == turned


@sizes
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_a_camera_wrote_wrongly_about_a_photo_does_no_harm(kind: str, width: int, height: int) -> None:
    exif = Image.Exif()
    exif[0x112], exif[0x100], exif[0x11A] = 6, 4000, 72.0
    right = exif.tobytes()
    for tag in (b"\x01\x00\x00\x04", b"\x01\x1a\x00\x05"):  # a number, a fraction
        wrong = right.replace(tag, tag[:3] + b"\x02").replace(tag[1::-1] + tag[:1:-1], tag[1::-1] + b"\x02\x00")
        assert wrong != right
        how = {"lossless": True} if kind == "WEBP" else {}
        photo = bot.open_photo(encoded(scene(width, height), kind, exif=wrong, **how))
        assert (photo.width, photo.height) == (height, width) and corners(photo) == [BLUE, RED, GREEN, GREY]


@sizes
def test_what_can_be_seen_through_lies_on_white(width: int, height: int) -> None:
    clear = scene(width, height)
    mask = Image.new("L", clear.size, 255)
    mask.paste(0, (0, 0, width // 2, height // 2))
    clear.putalpha(mask)
    for kind in ("PNG", "WEBP"):
        photo = bot.open_photo(encoded(clear, kind, **({"lossless": True} if kind == "WEBP" else {})))
        assert corners(photo) == [(260, 260, 260), GREEN, GREY, BLUE]
    half = clear.convert("LA")
    assert corners(bot.open_photo(encoded(half, "PNG")))[0] == (260, 260, 260)
    named = bot.open_photo(encoded(scene(width, height), "PNG", transparency=RED))
    assert corners(named) == [(260, 260, 260), GREEN, GREY, BLUE]


@sizes
def test_palettes_shades_and_colours_of_print_are_read(width: int, height: int) -> None:
    image = scene(width, height)
    palette = image.quantize(16)
    assert corners(bot.open_photo(encoded(palette, "PNG"))) == AS_SENT
    index = palette.getpixel((5, 5))
    assert corners(bot.open_photo(encoded(palette, "PNG", transparency=index)))[0] == (260, 260, 260)
    assert corners(bot.open_photo(encoded(image.convert("CMYK"), "JPEG"))) == AS_SENT
    shades = corners(bot.open_photo(encoded(image.convert("L"), "JPEG")))
    assert shades == [(80,) * 3, (130,) * 3, (90,) * 3, (50,) * 3]


@sizes
def test_one_bit_and_sixteen_are_as_bright_as_eight(width: int, height: int) -> None:
    grey = scene(width, height).convert("L")
    deep = Image.frombytes("I;16", grey.size, bytes(byte for shade in grey.tobytes() for byte in (shade, shade)))
    assert corners(bot.open_photo(encoded(deep, "PNG"))) == [(80,) * 3, (130,) * 3, (90,) * 3, (50,) * 3]
    line = Image.new("1", (width, height), 1)
    line.paste(0, (0, 0, width // 2, height))
    assert corners(bot.open_photo(encoded(line, "PNG"))) == [(0,) * 3, (260,) * 3, (260,) * 3, (0,) * 3]


@pytest.mark.parametrize(
    "data",
    [encoded(scene(90, 90), "GIF"), encoded(scene(90, 90), "TIFF"), encoded(scene(90, 90), "BMP"), b"hello", b"",
     b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", b"<svg xmlns='http://www.w3.org/2000/svg'/>"],
    ids=["gif", "tiff", "bmp", "text", "nothing", "heic", "svg"],
)  # fmt: skip
def test_what_is_no_photo_is_refused(data: bytes) -> None:
    with pytest.raises(bot.BotError, match=r"^photo\.kind$"):
        bot.open_photo(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_damaged_photos_are_refused_and_nothing_else_is_raised(kind: str) -> None:
    whole, dice = encoded(scene(450, 600), kind), random.Random(3)
    for length in (len(whole) // 2, len(whole) * 3 // 4):
        with pytest.raises(bot.BotError, match=r"^photo\.broken$"):
            bot.open_photo(whole[:length])
    for _ in range(40):
        data = bytearray(whole)
        for _ in range(dice.randrange(1, 20)):
            data[dice.randrange(len(data))] = dice.randrange(256)
        with contextlib.suppress(bot.BotError):
            bot.open_photo(bytes(data[: dice.randrange(len(data))] if dice.random() < 0.3 else data))


def chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def claimed(width: int, height: int, extra: bytes = b"") -> bytes:
    """A PNG of a few bytes that claims this size."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + body


@pytest.mark.parametrize(("width", "height"), [(10_000, 10_000), (60_000, 60_000), (5000, 4000)])
def test_what_would_take_too_much_is_refused_before_it_is_read(width: int, height: int) -> None:
    with pytest.raises(bot.BotError) as refused:
        bot.open_photo(claimed(width, height))
    assert (refused.value.key, refused.value.fields) == ("photo.large", {"width": width, "height": height})


def test_bombs_of_other_kinds_are_no_photos() -> None:
    burst = zlib.compress(b"a" * 50_000_000)
    for extra in (chunk(b"zTXt", b"k\0\0" + burst), chunk(b"iCCP", b"k\0\0" + burst)):
        with pytest.raises(bot.BotError, match=r"^photo\.broken$"):
            bot.open_photo(claimed(900, 900, extra))


def test_how_much_a_jpeg_takes_is_known_from_its_scans() -> None:
    """One that is not in a single scan is kept whole until the last one, whatever size is wanted."""
    plain, halved = encoded(scene(), "JPEG"), encoded(scene(), "JPEG", progressive=True)
    full = encoded(scene(), "JPEG", progressive=True, subsampling=0)
    print_ = encoded(scene().convert("CMYK"), "JPEG", progressive=True, subsampling=0)
    assert [bot.scanned(data) for data in (plain, halved, full, print_)] == [
        (3, False), (3, True), (6, True), (8, True)
    ]  # fmt: skip
    assert bot.scanned(encoded(scene().convert("L"), "JPEG")) == (2, False)
    start = plain.index(b"\xff\xda")
    one_colour = plain[:start] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + plain[start + 14 :]
    assert bot.scanned(one_colour) == (3, True)
    for rubbish in (b"", b"\xff\xd8", b"\xff\xd8" + b"\xff" * 50, plain[:start], b"rubbish"):
        assert bot.scanned(rubbish) == (6, True)


@pytest.mark.parametrize(
    ("width", "height", "how", "taken"),
    [(10_000, 10_000, {}, True), (3000, 4000, {"progressive": True}, True),
     (3000, 4000, {"progressive": True, "subsampling": 0}, False), (3000, 4000, {"padding": 17_000_000}, True)],
)  # fmt: skip
def test_what_decoding_takes_is_what_is_bounded(width: int, height: int, how: dict[str, Any], taken: bool) -> None:
    padding = how.pop("padding", 0)
    data = encoded(scene(), "JPEG", **how) + b"\0" * padding
    large = Image.Image()
    large._size, large.format = (width, height), "JPEG"
    assert (bot.decoding_bytes(large, data) <= bot.MAX_PHOTO_BYTES) is taken
    large.format = "PNG"
    assert bot.decoding_bytes(large, data) == len(data) + 4 * width * height


def test_a_jpeg_of_100_megapixels_is_read_within_bounds() -> None:
    data = encoded(Image.new("L", (10_000, 10_000), 90), "JPEG")
    photo = bot.open_photo(data)
    assert (photo.width, photo.height, photo.picture.size) == (10_000, 10_000, (1024, 1024))
    assert corners(photo) == [GREY] * 4
    with pytest.raises(bot.BotError, match=r"^photo\.large$"):
        bot.open_photo(encoded(Image.new("L", (6000, 6000), 90), "JPEG", progressive=True))
