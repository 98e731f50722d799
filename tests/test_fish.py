"""The catalogue, how fish are chosen, what they look like, and the shows around them."""

from __future__ import annotations

import asyncio
import io
import itertools
import math
import random
import re
from collections import Counter

import pytest
from conftest import ANNA, BORYS, TEXTS, Later, Okun, Reply, Room, Script, settings
from PIL import Image

import bot

SPANS = {"trash": (-math.inf, 0), "common": (-10, 35), "rare": (20, 85), "epic": (40, 125), "legendary": (90, math.inf)}
DRAWS = 100_000
ROD = [-4.0, -3.0, -2.5, -2.0, 2.0, 2.5, 3.0, 4.0]
EDGES = sorted({edge for fish in bot.FISH.values() for edge in (fish.low, fish.high) if math.isfinite(edge)})
POINTS = [-1e9, *EDGES, *((a + b) / 2 for a, b in itertools.pairwise(EDGES)), 1e9]
langs = pytest.mark.parametrize("lang", bot.LANGS)


def told(lang: str) -> dict[str, dict[str, str]]:
    words: dict[str, dict[str, str]] = TEXTS.words(lang, "fish")
    return words


# -- the catalogue


def test_there_are_at_least_sixty_fish_in_order_of_rarity() -> None:
    order = [list(bot.RARITIES).index(fish.rarity) for fish in bot.FISH.values()]
    assert len(bot.FISH) >= 60 and order == sorted(order)
    assert Counter(fish.rarity for fish in bot.FISH.values()).keys() == SPANS.keys()


def test_each_fish_stays_within_the_range_of_its_rarity() -> None:
    for fish in bot.FISH.values():
        low, high = SPANS[fish.rarity]
        assert low <= fish.low < fish.high <= high, fish.name
        assert fish.rod in bot.FITS and fish.level >= 1


@pytest.mark.parametrize("level", [1, 2, 6, 50])
def test_each_rarity_covers_its_range_without_a_gap_at_any_level_and_rod(level: int) -> None:
    for pnl, leverage in itertools.product(POINTS, ROD):
        here = {fish.rarity for fish in bot.that_bite(pnl, level, leverage)[0]}
        assert here == {rarity for rarity, (low, high) in SPANS.items() if low <= pnl <= high}, pnl


def test_both_ends_belong_to_a_range() -> None:
    for fish, pnl in itertools.product(bot.FISH.values(), POINTS):
        assert bot.bites(fish, pnl, 99, 4.0 if fish.rod != "short" else -4.0) == (fish.low <= pnl <= fish.high)


def test_conditions_hold_back_until_they_are_met() -> None:
    for fish in bot.FISH.values():
        pnl = fish.low if math.isfinite(fish.low) else fish.high
        assert fish.level == 1 or not bot.bites(fish, pnl, fish.level - 1, 4.0)
        assert fish.rod != "long" or not bot.bites(fish, pnl, 99, -2.0)
        assert fish.rod != "short" or not bot.bites(fish, pnl, 99, 2.0)
        assert fish.rod != "x4" or not bot.bites(fish, pnl, 99, 3.0)


def test_who_boasts_of_profit_bites_only_where_there_is_some() -> None:
    for name in ("sprat", "gudgeon", "plankton", "tench", "carp", "catfish", "toad"):
        assert not bot.bites(bot.FISH[name], 0.0, 99, 2.0) and bot.bites(bot.FISH[name], bot.FISH[name].low, 99, 2.0)


@pytest.mark.parametrize(
    "pnl", [-100, -45, -10, -5, 0, 3, 5, 10, 20, 28, 35, 37, 40, 60, 85, 87, 90, 110, 125, 126, 1000]
)
@pytest.mark.parametrize(("level", "leverage"), [(1, 2.0), (9, -4.0)])
def test_fish_come_up_as_often_as_they_weigh(pnl: float, level: int, leverage: float) -> None:
    able = {fish.name: bot.RARITIES[fish.rarity] for fish in bot.FISH.values() if bot.bites(fish, pnl, level, leverage)}
    seen = Counter(fish.name for fish in random.Random(7).choices(*bot.that_bite(pnl, level, leverage), k=DRAWS))
    assert set(seen) == set(able), "two in a hundred would hide one that never comes up"
    rarities = Counter(able.values())
    for name, weight in able.items():
        assert abs(seen[name] / DRAWS - weight / sum(able.values())) < 0.2 * weight / sum(able.values()), name
    for weight, many in rarities.items():
        share = sum(seen[name] for name in able if able[name] == weight) / DRAWS
        assert abs(share - weight * many / sum(able.values())) < 0.006, weight


def test_one_after_another_they_come_up_like_all_at_once() -> None:
    one, other = random.Random(7), random.Random(7)
    drawn = [bot.fish_for(12, 3, 2.0, one) for _ in range(500)]
    assert drawn == other.choices(*bot.that_bite(12, 3, 2.0), k=500)


def test_the_weights_are_those_of_the_game() -> None:
    assert bot.RARITIES == {"trash": 20, "common": 16, "rare": 8, "epic": 3, "legendary": 1}


# -- their words

OFF_LIMITS = re.compile(
    r"bitcoin|біткоїн|биткоин|ethereum|ефіріум|эфириум|dogecoin|binance|бінанс|бинанс|kraken|кракен|bybit"
    r"|coinbase|telegram|телеграм|google|гугл|excel|ексель|эксель|nasdaq", re.IGNORECASE)  # fmt: skip
# whoever caught it is ти or ты, of whom no past tense is said: it would have to choose a gender
GENDERED = {
    "uk": re.compile(r"\bти\s+(?:\w+\s+){0,2}\w+(?:в|ла|вся|лась|лася)\b", re.IGNORECASE),
    "ru": re.compile(r"\bты\s+(?:\w+\s+){0,2}\w+(?:л|ла|лся|лась)\b", re.IGNORECASE),
}
FOREIGN = {"uk": r"[ыэъёЫЭЪЁ]", "ru": r"[іїєґІЇЄҐ]", "en": r"[а-яіїєґё]"}
NO_TEXT = {"uk": "без тексту", "ru": "без текста", "en": "no text"}


@langs
def test_each_fish_has_a_name_a_story_and_a_prompt_of_its_own(lang: str) -> None:
    words = told(lang)
    assert list(words) == list(bot.FISH)
    for field in ("name", "story", "prompt"):
        assert len({fish[field].casefold() for fish in words.values()}) == len(words), field
    for name, fish in words.items():
        assert set(fish) == {"name", "story", "prompt"}, name
        assert 2 <= len(fish["name"]) <= 28 and 120 <= len(fish["story"]) <= 260, name
        assert 60 <= len(fish["prompt"]) <= 330 and NO_TEXT[lang] in fish["prompt"].lower(), name


@langs
def test_names_and_stories_are_set_as_one_sets_them_in_their_language(lang: str) -> None:
    for name, fish in told(lang).items():
        both = f"{fish['name']} {fish['story']}"
        assert both == " ".join(both.split()) and fish["story"][-1] in ".!?…»”", name
        assert not re.search(r"[\"'`*_<>—]", both), name
        assert not re.search(r"[a-z][а-яіїєґё]|[а-яіїєґё][a-z]", both, re.IGNORECASE), name
        assert both.count("«") == both.count("»") and both.count("“") == both.count("”"), name
        assert not OFF_LIMITS.search(both) and not re.search(FOREIGN[lang], both), name
        assert lang not in GENDERED or not GENDERED[lang].search(both), name


@langs
def test_no_two_stories_begin_alike(lang: str) -> None:
    openings = Counter(" ".join(re.findall(r"\w+", fish["story"])[:2]).casefold() for fish in told(lang).values())
    assert max(openings.values()) == 1


@langs
def test_each_show_has_its_frames(lang: str) -> None:
    for name in ("cast", "hook"):
        frames = TEXTS.words(lang, "show", name)
        assert len(frames) == len(set(frames)) == 5 and all(len(frame) < 200 for frame in frames)


# -- what they look like


def opened(data: bytes) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def test_each_fish_has_a_look_and_all_looks_differ() -> None:
    assert list(bot.LOOKS) == list(bot.FISH) and len(set(bot.LOOKS.values())) == len(bot.FISH)
    assert {look.plan for look in bot.LOOKS.values()} == set(bot.PLANS)
    worn = {trait for look in bot.LOOKS.values() for trait in look.traits.split()}
    assert set(bot.PROPS) <= worn


def test_a_fish_is_drawn_always_the_same() -> None:
    assert bot.draw_scene("carp", "common") == bot.draw_scene("carp", "common")
    assert bot.draw_scene("carp", "common") != bot.draw_scene("carp", "epic")


@pytest.mark.parametrize("plan", bot.PLANS)
def test_each_plan_is_drawn_in_its_colour(plan: str) -> None:
    fish = next(fish for fish in bot.FISH.values() if bot.LOOKS[fish.name].plan == plan)
    scene = bot.draw_scene(fish.name, fish.rarity)
    assert opened(scene).size == (bot.ART_WIDTH, bot.ART_HEIGHT)
    wanted = tuple(bytes.fromhex(bot.LOOKS[fish.name].colour[1:]))
    near = sum(  # in pixels
        n
        for n, pixel in opened(scene).getcolors(1 << 20) or ()
        if isinstance(pixel, tuple) and math.dist(pixel, wanted) < 40
    )
    assert near > 3000, "its colour is to be seen"


def test_all_of_a_fish_and_what_it_wears_is_on_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bot.Point] = []

    class Traced(bot.Brush):
        def at(self, point: bot.Point) -> bot.Point:
            seen.append(super().at(point))
            return seen[-1]

    monkeypatch.setattr(bot, "Brush", Traced)
    for fish in bot.FISH.values():
        if "pegs" in bot.LOOKS[fish.name].traits:
            continue  # a washing line goes from edge to edge
        seen.clear()
        bot.draw_scene(fish.name, fish.rarity)
        xs, ys = [x for x, _ in seen], [y for _, y in seen]
        assert min(xs) > 5 and max(xs) < bot.ART_WIDTH - 5, fish.name
        assert min(ys) > 5 and max(ys) < bot.ART_HEIGHT - 5, fish.name


@langs
def test_every_story_fits_on_its_card(lang: str) -> None:
    for name, fish in told(lang).items():
        lines = bot.wrapped(bot.drawable(fish["story"]), "Medium", bot.STORY_SIZE, bot.ART_WIDTH - 80)
        assert len(lines) <= bot.STORY_LINES, name
        assert bot.font("Bold", 46).getlength(fish["name"]) <= bot.ART_WIDTH - 80, name
        assert bot.drawable(fish["name"]) == fish["name"], "the font has all of its letters"


@pytest.mark.parametrize("pnl", ["−100,0 %", "+1000,0 %", "0,0000 %"])
def test_what_is_written_on_a_card_changes_it_only_below_the_scene(pnl: str) -> None:
    fish = bot.FISH["perch"]
    scene = bot.draw_scene(fish.name, fish.rarity)
    bare, full = (
        opened(bot.draw_card(scene, fish, name, "епічна", story, bot.CardWords(words, 1.0, facts)))
        for name, story, words, facts in (("I", "I", "I", ()), ("Кум", "Так, це мій кум.", pnl, ("TON", "лонг ×2")))
    )
    box = (0, 0, bot.ART_WIDTH, bot.ART_HEIGHT - 16)
    assert bare.crop(box).tobytes() == full.crop(box).tobytes()
    assert bare.tobytes() != full.tobytes()


def test_the_scene_is_found_again_on_a_card_of_any_size() -> None:
    fish = bot.FISH["crab"]
    scene = bot.draw_scene(fish.name, fish.rarity)
    card = opened(bot.draw_card(scene, fish, "Crab", "common", "A story.", bot.CardWords("+1 %", 1.0, ())))
    small = bot.jpeg(card.resize((card.width // 2, card.height // 2)))
    again = opened(bot.scene_in(small))
    assert again.size == (bot.ART_WIDTH, bot.ART_HEIGHT)
    middle = (bot.ART_WIDTH // 2, bot.ART_HEIGHT // 2)
    assert math.dist(again.getpixel(middle), opened(scene).getpixel(middle)) < 30  # type: ignore[arg-type]


def test_however_long_a_number_is_it_is_written_in_full() -> None:
    fish = bot.FISH["perch"]
    scene = bot.draw_scene(fish.name, fish.rarity)
    one, other = (
        bot.draw_card(scene, fish, "Perch", "epic", "A story.", bot.CardWords(f"+123456789.{last} %", 1.0, ("TON",)))
        for last in (1, 7)
    )
    assert one != other


# -- drawings by a model

DRAWN_IN: dict[str, tuple[str, tuple[int, int], str]] = {
    "as asked for": ("PNG", (1200, 900), "RGB"),
    "square": ("JPEG", (1024, 1024), "RGB"),
    "portrait": ("PNG", (768, 1376), "RGB"),
    "panorama": ("WEBP", (2000, 700), "RGB"),
    "seen through": ("PNG", (1200, 900), "RGBA"),
    "of few colours": ("PNG", (1200, 900), "P"),
    "seen through, WEBP": ("WEBP", (800, 600), "RGBA"),
}


@pytest.mark.parametrize("how", DRAWN_IN)
def test_what_a_model_drew_in_another_format_becomes_a_scene_of_its_middle(how: str) -> None:
    kind, (width, height), mode = DRAWN_IN[how]
    image = Image.new("RGBA", (width, height), (0, 0, 0, 0) if mode == "RGBA" else "white")
    side = min(width, height) // 6
    image.paste("red", (width // 2 - side, height // 2 - side, width // 2 + side, height // 2 + side))
    out = io.BytesIO()
    image.convert(mode).save(out, kind)
    scene = opened(bot.scene_drawn(out.getvalue()))
    assert scene.size == (bot.ART_WIDTH, bot.ART_HEIGHT)
    middle = scene.getpixel((bot.ART_WIDTH // 2, bot.ART_HEIGHT // 2))
    corner = scene.getpixel((20, 20))
    assert math.dist(middle, (255, 0, 0)) < 30 and math.dist(corner, (255, 255, 255)) < 30  # type: ignore[arg-type]


def smaller(width: int, height: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", smaller(1, 1), smaller(40, 30), smaller(1000, 2)],
    ids=["none", "page", "1", "tiny", "thin"],
)
async def test_what_is_no_drawing_is_left_and_the_card_stays(
    okun: Okun, chat: Room, model: Script, later: Later, data: bytes
) -> None:
    model.draws = lambda wish: bot.Media("image/png", data)
    card = await catch(okun, chat, later)
    assert len(model.wishes) == 1 and okun.rows("SELECT count(*) FROM fish_cards") == [(0,)]
    assert not [call for call in okun.telegram.calls if call.method == "editMessageMedia"]
    assert chat.replies[-1].id == card.id and card.picture


async def catch(okun: Okun, chat: Room, later: Later) -> Reply:
    """Somebody's catch, always at the same P&L; its card."""
    okun.exchange.prices["TON"] = 5.0
    await later(11)
    await chat.say("/cast")
    okun.exchange.prices["TON"] = 5.5
    await later(61)
    [card] = await chat.say("/hook")
    return card


async def test_a_catch_comes_with_its_card(okun: Okun, chat: Room, later: Later) -> None:
    card = await catch(okun, chat, later)
    [(name,)] = okun.rows("SELECT fish FROM catches")
    assert card.picture and told("en")[name]["name"] in card.text and "+20.0 %" in card.text


async def test_the_model_draws_a_fish_once_and_the_card_is_changed_in_place(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    card = await catch(okun, chat, later)
    [(name,)] = okun.rows("SELECT fish FROM catches")
    assert [wish.prompt for wish in model.wishes] == [told("en")[name]["prompt"]]
    [(kept,)] = okun.rows("SELECT file_id FROM fish_cards")
    now = next(reply for reply in chat.replies if reply.id == card.id)
    assert kept in {size["file_id"] for size in now.raw["photo"]} and now.buttons == card.buttons
    assert okun.rows("SELECT kind, state FROM jobs") == [("card", "done")]
    for _ in range(3):
        await catch(okun, chat, later)
    names = {row[0] for row in okun.rows("SELECT DISTINCT fish FROM catches")}
    assert len(model.wishes) == len(names) == okun.rows("SELECT count(*) FROM fish_cards")[0][0]


async def caught_at_work(okun: Okun, chat: Room, model: Script, later: Later) -> Reply:
    """The card of a catch whose fish is being drawn."""
    model.easel = asyncio.Event()
    return await catch(okun, chat, later)


def now(chat: Room, card: Reply) -> Reply:
    return next(reply for reply in chat.replies if reply.id == card.id)


async def test_a_drawing_that_comes_late_changes_no_word_below_the_card(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    card = await caught_at_work(okun, chat, model, later)
    before = card.text
    await chat.say("/cast")  # a worm less than it says
    assert model.easel
    model.easel.set()
    await okun.settle()
    assert okun.rows("SELECT count(*) FROM fish_cards") == [(1,)] and now(chat, card).text == before


async def test_a_drawing_that_comes_late_takes_no_button_away(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    card = await caught_at_work(okun, chat, model, later)
    pressed = await chat.press(okun.t("fishing.button.share"), message=card)
    assert okun.t("trophies.where") in pressed.message.text
    assert model.easel
    model.easel.set()
    await okun.settle()
    assert okun.t("trophies.where") in now(chat, card).text
    assert okun.rows("SELECT state FROM jobs") == [("done",)]


async def test_a_drawing_that_fails_bothers_nobody(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.draws = lambda wish: bot.LlmError("blocked")
    card = await catch(okun, chat, later)
    assert len(model.wishes) == 1 and okun.rows("SELECT count(*) FROM fish_cards") == [(0,)]
    assert chat.replies[-1].id == card.id


async def test_a_fault_of_ours_in_a_drawing_bothers_nobody_either(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    okun.may_fail = True
    model.draws = lambda wish: RuntimeError("odd")
    card = await catch(okun, chat, later)
    await later(120)
    assert chat.replies[-1].id == card.id and okun.rows("SELECT state, told FROM jobs") == [("failed", 1)]


async def test_a_drawing_that_three_lives_did_not_end_bothers_nobody(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.easel = asyncio.Event()
    card = await catch(okun, chat, later)
    for _ in range(bot.JOB_TRIES):
        await okun.restart()
        okun.model.easel = asyncio.Event()
        await bot.jobs_resume(okun.app)
        await bot.begin_jobs(okun.app)
        await okun.settle()
    assert okun.rows("SELECT state FROM jobs") == [("failed",)] and chat.replies[-1].id == card.id


async def test_cancel_has_nothing_to_do_with_a_drawing_nobody_asked_for(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.easel = asyncio.Event()
    await catch(okun, chat, later)
    [told] = await chat.say("/cancel")
    assert told.text == okun.t("cancel.nothing") and okun.rows("SELECT state FROM jobs") == [("running",)]
    model.easel.set()
    await okun.settle()
    assert okun.rows("SELECT count(*) FROM fish_cards") == [(1,)]


@settings(max_parallel_images=1)
async def test_nobody_waits_for_a_drawing_of_a_fish(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    model.easel = asyncio.Event()
    await catch(okun, chat, later)
    for number in range(bot.MOST_QUEUED):
        await chat.say(f"/draw a pike {number}")
    states = okun.rows("SELECT kind, state FROM jobs ORDER BY id")
    assert states == [("card", "running"), ("draw", "running"), *[("draw", "queued")] * (bot.MOST_QUEUED - 1)]
    assert okun.t("job.queued", place=1) in chat.replies[3].text  # before it: line, card, the first
    model.easel.set()
    await okun.settle()


@pytest.mark.parametrize("stopped", [False, True])
async def test_a_card_in_a_group_that_is_no_more_is_let_be(
    okun: Okun, group: Room, model: Script, later: Later, stopped: bool
) -> None:
    model.easel = asyncio.Event()
    await catch(okun, group, later)
    okun.telegram.migrate(group.chat)
    await okun.take()
    if stopped:  # and what was at work begins anew
        await okun.restart()
        await bot.jobs_resume(okun.app)
        await bot.begin_jobs(okun.app)
    model.easel.set()
    await okun.settle()
    assert not okun.called("editMessageMedia") and okun.rows("SELECT state FROM jobs") == [("done",)]


@settings(images_per_day=1)
async def test_a_drawing_of_a_fish_is_on_the_house(okun: Okun, chat: Room, model: Script, later: Later) -> None:
    await catch(okun, chat, later)
    await chat.say("/draw a pike")
    assert len(model.wishes) == 2 and okun.rows("SELECT used FROM quotas WHERE name = 'images'") == [(1,)]


async def test_a_fish_is_not_drawn_for_who_is_banned_or_forgotten_meanwhile(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    model.easel = asyncio.Event()
    await catch(okun, chat, later)  # takes the only place
    borys = okun.private("Borys")
    okun.dice.load(0.9)
    await catch(okun, borys, later)
    queued = okun.rows("SELECT count(*) FROM jobs WHERE state = 'queued'")
    await bot.set_access(okun.app, BORYS, "banned")
    await bot.forget_person(okun.app, ANNA, [chat.id], everywhere=True)
    model.easel.set()
    await okun.settle()
    assert queued == [(1,)] and len(model.wishes) == 1
    assert okun.rows("SELECT count(*) FROM fish_cards") == [(0,)]


async def test_a_drawing_that_telegram_has_no_more_is_made_anew(
    okun: Okun, chat: Room, model: Script, later: Later
) -> None:
    await catch(okun, chat, later)
    [(name,)] = okun.rows("SELECT fish FROM catches")
    for key in (f"drawn {name}", okun.rows("SELECT file_id FROM fish_cards")[0][0]):
        okun.app.scenes.forget(key)
    async with okun.app.db.tx() as tx:
        await tx.run("UPDATE fish_cards SET file_id = 'gone'")
    okun.app.drawings.forget(name)
    assert opened(await bot.scene_of(okun.app, bot.FISH[name])).size == (bot.ART_WIDTH, bot.ART_HEIGHT)
    assert okun.rows("SELECT count(*) FROM fish_cards") == [(0,)]


# -- shows


@pytest.mark.shows
async def test_a_cast_is_shown_frame_by_frame_and_ends_with_the_line(okun: Okun, chat: Room, later: Later) -> None:
    frames = TEXTS.words("en", "show", "cast")
    [message] = await chat.say("/cast")
    assert message.text == frames[0] and okun.rows("SELECT count(*) FROM fishing_lines") == [(1,)]
    seen = [message.text]
    for _ in frames:
        await later(bot.FRAME_S)
        seen.append(chat.replies[-1].text)
    assert seen[:5] == frames and okun.t("fishing.button.hook") in chat.replies[-1].buttons
    assert [reply.id for reply in chat.replies] == [message.id]


@pytest.mark.shows
async def test_a_hook_ends_with_the_card_in_place_of_the_frames(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/cast")
    await later(61)
    okun.exchange.prices["TON"] = 5.5
    await later(11)
    [frame] = await chat.say("/hook")
    assert okun.rows("SELECT count(*) FROM catches") == [(1,)], "settled before the show"
    await later(10)
    assert chat.replies[-1].picture and frame.id not in {reply.id for reply in chat.replies}


@pytest.mark.shows
async def test_a_show_whose_message_is_deleted_ends_all_the_same(okun: Okun, chat: Room, later: Later) -> None:
    [message] = await chat.say("/cast")
    del chat.chat.messages[message.id]
    await later(10)
    assert okun.t("fishing.button.hook") in chat.replies[-1].buttons


@pytest.mark.shows
async def test_a_pond_sees_one_show_in_half_a_minute(okun: Okun, group: Room, later: Later) -> None:
    first = TEXTS.words("en", "show", "cast")[0], TEXTS.words("uk", "show", "cast")[0]
    [shown] = await group.say("/cast")
    [plain] = await group.say("/cast", by="Borys")
    assert shown.text == first[0] and plain.text != first[1] and plain.buttons
    await later(31)
    [again] = await group.say("/cast", by="Vira")
    assert again.text == TEXTS.words("ru", "show", "cast")[0]


@pytest.mark.shows
@settings(sends_per_second=30)
async def test_frames_are_dropped_where_much_is_sent_and_the_end_is_not(okun: Okun, chat: Room, later: Later) -> None:
    [message] = await chat.say("/cast")
    pacing = okun.app.gate.pacing
    for _ in range(4):
        await later(bot.FRAME_S - 0.1)
        for other in range(20):
            pacing.book(1000 + other, okun.clock.monotonic())
        await later(0.1)
    assert "editMessageText" not in {call.method for call in okun.telegram.calls}
    await later(10)
    assert okun.t("fishing.button.hook") in chat.replies[-1].buttons and chat.replies[-1].id == message.id


@pytest.mark.shows
@pytest.mark.parametrize("text", ["message can't be edited", "message to edit not found", "MESSAGE_ID_INVALID", "odd"])
async def test_where_edits_are_refused_the_end_comes_as_a_message_and_no_frame_stays(
    okun: Okun, chat: Room, later: Later, text: str
) -> None:
    okun.telegram.fault("400", "editMessageText", 9, text=text)
    [frame] = await chat.say("/cast")
    await later(10)
    assert okun.t("fishing.button.hook") in chat.replies[-1].buttons
    assert frame.id not in {reply.id for reply in chat.replies} and len(chat.replies) == 1


@pytest.mark.shows
@pytest.mark.parametrize("seconds", [0.0, 2.0])
async def test_where_the_bot_stops_the_end_of_a_show_comes_at_once(
    okun: Okun, chat: Room, later: Later, seconds: float
) -> None:
    [frame] = await chat.say("/cast")
    await later(seconds)
    await bot.end_shows(okun.app)
    await okun.restart()
    assert [reply.id for reply in chat.replies] == [frame.id]
    assert okun.t("fishing.button.hook") in chat.replies[-1].buttons


@pytest.mark.shows
async def test_nothing_is_left_of_a_show_that_is_over(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/cast")
    assert len(okun.rows("SELECT * FROM shows")) == 1
    await later(10)
    assert okun.rows("SELECT * FROM shows") == []


@pytest.mark.shows
@pytest.mark.parametrize("gone", [False, True])
async def test_the_end_of_a_show_that_a_kill_cut_off_is_shown_once(
    okun: Okun, chat: Room, later: Later, gone: bool
) -> None:
    """Where the frame is gone, the card had come before the kill."""
    await chat.say("/cast")
    await later(61)
    [frame] = await chat.say("/hook")
    await later(1)
    await okun.crash()
    if gone:
        chat.chat.messages.pop(frame.id)
    before = len(chat.replies)
    await okun.open()
    await bot.end_shows_left(okun.app)
    assert frame.id not in {reply.id for reply in chat.replies} and okun.rows("SELECT * FROM shows") == []
    assert len(chat.replies) == before and (gone or chat.replies[-1].picture)


@pytest.mark.shows
async def test_the_end_of_a_show_of_the_day_before_yesterday_is_not_shown(okun: Okun, chat: Room, later: Later) -> None:
    await chat.say("/cast")
    await okun.crash()
    okun.clock.passed += 2 * bot.DAY_S
    before = [reply.text for reply in chat.replies]
    await okun.open()
    await bot.end_shows_left(okun.app)
    assert [reply.text for reply in chat.replies] == before and okun.rows("SELECT * FROM shows") == []


@pytest.mark.shows
async def test_a_catch_is_shown_where_the_bot_stops_in_the_middle_of_its_show(
    okun: Okun, chat: Room, later: Later
) -> None:
    await chat.say("/cast")
    await later(61)
    okun.exchange.prices["TON"] = 5.5
    await later(11)
    [frame] = await chat.say("/hook")
    await bot.end_shows(okun.app)
    await okun.restart()
    assert chat.replies[-1].picture and frame.id not in {reply.id for reply in chat.replies}
    assert okun.rows("SELECT count(*) FROM catches") == [(1,)]


@pytest.mark.shows
async def test_a_show_stays_in_its_topic(okun: Okun, later: Later) -> None:
    topic = okun.group(forum=True).topic("Fish")
    await topic.say("/cast")
    await later(61)
    okun.exchange.prices["TON"] = 5.5
    await later(11)
    await topic.say("/hook")
    await later(10)
    assert {reply.raw["message_thread_id"] for reply in topic.replies} == {topic.thread}
    assert topic.replies[-1].picture


@pytest.mark.shows
async def test_two_who_hook_at_once_in_a_group_get_both_their_cards(okun: Okun, group: Room, later: Later) -> None:
    for name in ("Anna", "Borys"):
        await group.say("/cast", by=name)
    await later(61)
    okun.exchange.prices["TON"] = 5.5
    await later(11)
    for name in ("Anna", "Borys"):
        group.put("say", "/hook", by=name)
    await okun.take()
    assert any(reply.picture for reply in group.replies[-2:]), "one of them waits for no show"
    await later(10)
    cards = [reply for reply in group.replies if reply.picture]
    assert len(cards) == 2 and all(any(name in card.text for card in cards) for name in ("Anna", "Borys"))
