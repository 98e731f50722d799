"""Menus, walked: a test presses every button there is, as whom it was made for and as others, with all that can be
forged; what panels show, what a press costs, and how pictures and texts take each other's place."""

from __future__ import annotations

import dataclasses
import io
import random
import re
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, TEXTS, Later, Okun, Pressed, Reply, Room, settings
from PIL import Image

import bot

PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
langs = pytest.mark.parametrize("lang", PEOPLE)
places = pytest.mark.parametrize("place", ["private", "group"])
TALK = {"en": "What a lovely day, I love it!", "uk": "Який чудовий день, дуже люблю!",
        "ru": "Какой чудесный день, очень люблю!"}  # fmt: skip
LONG_NAME = "Щ" * 50
TABLES = ("SELECT id, user_id, version, link FROM personas", "SELECT * FROM persona_versions", "SELECT * FROM tempers",
          "SELECT id, user_id, text FROM facts", "SELECT id, user_id, text FROM reminders",
          "SELECT chat_id, policy, lang, rich, voice, quiet_until, persona, persona_id, temper, temper_id FROM chats",
          "SELECT chat_id, user_id, kind, data FROM forms", "SELECT user_id, lang FROM users WHERE lang IS NOT NULL",
          "SELECT count(*) FROM messages WHERE user_id IS NOT NULL", "SELECT * FROM ledger", "SELECT * FROM payments",
          "SELECT * FROM promos", "SELECT id, name, status, main FROM avatars", "SELECT id, chosen FROM avatar_photos",
          "SELECT id, favourite FROM pictures", "SELECT id, state FROM jobs")  # fmt: skip


def room_of(okun: Okun, lang: str, place: str) -> Room:
    """Where a speaker of the language may do everything."""
    if place == "private":
        return okun.private(PEOPLE[lang])
    group = okun.group()
    okun.telegram.member(group.chat, okun.person(PEOPLE[lang]), "administrator")
    return dataclasses.replace(group, by=PEOPLE[lang])


def who_of(okun: Okun, room: Room) -> bot.Who:
    person = okun.person(room.by)
    return bot.Who(room.id, 0, person["id"], person["language_code"], room.chat.private)


def entries_in(place: str, *, owner: bool = False) -> list[bot.PanelSpec]:
    """The panels that have a place in a menu there."""
    specs = bot.PANELS.values()
    return [s for s in specs if s.entry is not None and place in s.places and (owner or not s.owner)]


def state(okun: Okun) -> list[object]:
    """All that a button may change."""
    return [okun.rows(sql) for sql in TABLES]


async def talk(room: Room, lang: str = "en", times: int = 12) -> None:
    """Enough for a mood."""
    for number in range(times):
        room.put("say", f"{TALK[lang]} {number}", by=None if number % 3 or room.chat.private else "Olena")
    await room.okun.take()


async def enrich(okun: Okun, room: Room, lang: str, talked: int = 12) -> None:
    """Give a person one of everything that panels show, and of lists more than a page."""
    who, owner = who_of(okun, room), okun.person(room.by)["id"]
    await talk(room, lang, talked)
    for number in range(7):
        await room.say(f"/remember {number}: I keep {number} fish")
        await bot.set_reminder(okun.app, who, NOON + 86_400 + number, f"Feed fish {number}")
        payment = bot.Payment(f"charge {number}", owner, "pack:coins100:1", 50, "coins", 100, int(NOON) + number)
        await bot.take_payment(okun.app, payment)
        await bot.begin_refund(okun.app, payment, 0)
    await bot.save_temper(okun.app, who, LONG_NAME, "Yawn 🐟 " * 60)
    traits: dict[str, Any] = dict.fromkeys(bot.TRAITS, "Ї" * 500)
    id_ = await bot.save_persona(okun.app, who, owner, None, bot.PersonaText(LONG_NAME, "🐟" * 2500, **traits))
    for number in range(7):
        await bot.save_persona(okun.app, who, owner, id_, bot.PersonaText(LONG_NAME, f"Of version {number}", **traits))
    await bot.save_persona(okun.app, who, owner, None, bot.PersonaText("Тінь 🌘", "Щ" * 2500))


STATES = ("completed", "completed", "error", "ready_for_training", "draft")


async def pictured(okun: Okun, room: Room) -> None:
    """Give a person avatars in every state, and a gallery."""
    owner, now = okun.person(room.by)["id"], int(NOON)
    fault = bot.json_dumps({"key": "avatar.photos_gone", "numbers": "1, 2"})
    async with okun.app.db.tx() as tx:
        await bot.ensure_person(tx, owner)
        for id_, status in enumerate(STATES, 1):
            await tx.run(
                """INSERT INTO avatars (id, user_id, name, gender, status, main, error, made_at, changed_at)
                   VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)""",
                id_, owner, "" if status == "draft" else "Щ" * 30, "" if id_ == 1 else "female", status, id_ == 1,
                fault if status == "error" else None, now, now,
            )  # fmt: skip
            for number in range(0 if status == "draft" else 4):
                await tx.run(
                    """INSERT INTO avatar_photos (avatar_id, file_id, file_unique_id, document, width, height, quality,
                         looks, chosen, added_at) VALUES (?, ?, ?, 0, 600, 600, 1, ?, 1, ?)""",
                    id_, photo_at_telegram(okun), f"{id_} {number}", f"{number:032x}", now,
                )  # fmt: skip
        for number in range(3):
            wish = bot.Wish("Щука 🐟 " * 50, style="oil", avatar_id=1 if number % 2 else None)
            made = await bot.put_job(
                tx, who_of(okun, room), "draw", "images", wish._asdict(), 0, now - 86_400 * 9 * number, ""
            )
            await tx.run("UPDATE jobs SET state = 'done', told = 1, ended_at = ? WHERE id = ?", now, made.id)
            await bot.put_picture(tx, made, photo_at_telegram(okun), wish, now - 86_400 * 9 * number)
    okun.app.avatars.forget(owner)


def photo_at_telegram(okun: Okun) -> str:
    out = io.BytesIO()
    Image.new("RGB", (600, 600), "red").save(out, "PNG")
    return str(okun.telegram.store_file("photo", out.getvalue(), width=600, height=600).card["file_id"])


# -- the walker

LAST = (
    "psave",
    "pdrop",
    "pdel",
    "tdel",
    "mdel",
    "rdel",
    "gallery_delete",
    "avdrop",
    "avdel",
)  # after these there is less to see
ALIKE = 4  # buttons that differ in nothing but a number are pressed so often


@dataclass
class Walk:
    """Where a walker came: what each button shows, and on which panel it stands."""

    room: Room
    message: Reply
    shown: dict[str, Reply] = field(default_factory=dict)  # by the data that were pressed
    parent: dict[str, str] = field(default_factory=dict)
    alike: Counter[str] = field(default_factory=Counter)

    @property
    def root(self) -> str:
        return f"m2:{self.message.data[-1].split(':')[1]}:menu:"

    @property
    def close(self) -> str:
        return self.root.replace(":menu:", ":close:")

    def kinds(self) -> dict[str, str]:
        """One button of each kind: those that lead to the same panel, or do the same."""
        return {":".join(data.split(":")[::2][:2]): data for data in self.parent}

    async def press(self, data: str, by: str | None = None) -> Pressed:
        """Press; the menu is the newest message with buttons, where the kind of message changed."""
        pressed = await self.room.press_data(data, self.message, by)
        menus = [reply for reply in pressed.replies if reply.data]
        self.message = menus[-1] if menus else pressed.message
        if not self.message.data:  # forgotten, or closed
            [self.message] = await self.room.say("/menu")
        return pressed


def rank(data: str) -> int:
    """Ways first, then what changes something, then what takes something away, and forgetting at the very end."""
    kind, _, name, *_ = [*data.split(":"), ""]
    return 20 if kind == "f1" else 0 if kind == "m2" else 2 + LAST.index(name) if name in LAST else 1


def likeness(data: str) -> str:
    """The same for buttons that differ in nothing but numbers, or in what a gallery filters by."""
    return re.sub(r"\d+[dh]?|(?<=\d)[<>.][.anf\d]*$", "#", data)


def bad_notes(okun: Okun) -> set[str]:
    keys = ("button.old", "button.not_yours", "error.admins_only", "form.over", "persona.gone", "temper.gone",
            "persona.version_gone", "persona.link_gone", "memory.gone", "reminder.gone")  # fmt: skip
    return {okun.t(key, lang) for key in keys for lang in PEOPLE}


async def walk(room: Room, deepest: int = 20, alike: int = ALIKE) -> Walk:
    """Press every button that can be found from /menu on, the nearest first."""
    okun = room.okun
    [menu] = await room.say("/menu")
    walked, todo = Walk(room, menu), deque([*menu.data[:-1]])
    walked.shown[walked.root] = menu
    walked.parent |= dict.fromkeys(menu.data[:-1], walked.root)
    while todo:
        data = min(todo, key=rank)
        todo.remove(data)
        if rank(data) > deepest:
            break
        pressed = await walked.press(data)
        assert pressed.note not in bad_notes(okun), data
        assert okun.inbox_rows == [], data
        shown = walked.shown[data] = walked.message
        for found in shown.data:
            assert len(found.encode()) <= 64
            like = likeness(found)
            if found in walked.parent or found == walked.root or walked.alike[like] >= alike:
                continue
            if found.split(":")[2:3] == ["close"]:
                continue
            walked.alike[like] += 1
            walked.parent[found] = data
            todo.append(found)
    return walked


def way_back(walked: Walk, data: str) -> list[str]:
    """The panels that the last button of each leads back to, from what a button showed up to the menu, or to where a
    message of its own is closed."""
    backs: list[str] = []
    while data not in (walked.root, walked.close) and len(backs) < 9:
        if data not in walked.shown:  # enough of its like were pressed
            data = next(one for one in walked.shown if likeness(one) == likeness(data))
        data = walked.shown[data].data[-1]
        backs.append(data)
    return backs


@langs
@places
async def test_every_button_of_every_panel_works_and_leads_back(okun: Okun, lang: str, place: str) -> None:
    room = room_of(okun, lang, place)
    await enrich(okun, room, lang, talked=12 if (lang, place) == ("uk", "group") else 0)  # pictures take their time
    if place == "private":
        await pictured(okun, room)
    walked = await walk(room)
    assert {spec.name for spec in entries_in(place)} <= {data.split(":")[2] for data in walked.parent}
    names = {data.split(":")[2] for data in walked.parent}
    if place == "private":
        assert {
            *("picture", "gallery_filter", "gallery_ask", "gallery_stats", "gallery_drop", "gallery_delete"),
            *("avatar", "avgender", "avname", "avphotos", "avphoto", "avdrop", "avtrain", "avmain", "avdel"),
            *("draw_set", "draw_go", "again", "love", "prompt", "file"),
        } <= names
    for data in walked.parent:
        if not data.startswith("f1"):
            assert way_back(walked, data)[-1] in (walked.root, walked.close), data
    pressed = await walked.press(walked.root)
    assert {*walked.message.data} == {*walked.shown[walked.root].data} and pressed.message.id == walked.message.id
    last = walked.message.data[-1]
    assert last.split(":")[2] == "close"
    closed = await room.press_data(last, walked.message)
    assert not closed.message.data


@places
async def test_a_click_costs_one_query_at_most(okun: Okun, place: str) -> None:
    """The second round; before what changes something, the panel on which its button stands is shown once more."""
    room = room_of(okun, "uk", place)
    await enrich(okun, room, "uk", talked=12 if place == "private" else 0)
    walked, costs = await walk(room, deepest=1, alike=1), {}
    await bot.balance_of(okun.app, BORYS)  # on the walk a line was cast: what is left of the bait is read anew
    for data in sorted(walked.parent, key=rank):
        if rank(data) == 20 or data.split(":")[2] in ("sum", "export"):  # these are work, not clicks
            continue
        if rank(data):
            await walked.press(walked.parent[data])
        before = okun.app.db.reader.reads
        await walked.press(data)
        if (reads := okun.app.db.reader.reads - before) > 1:
            costs[data] = reads
    assert costs == {}


# -- whose buttons they are, and when


async def test_every_kind_of_button_refuses_a_stranger(okun: Okun) -> None:
    group = room_of(okun, "uk", "group")
    await enrich(okun, group, "uk", talked=0)
    walked = await walk(group, deepest=0)
    kinds, before = walked.kinds(), state(okun)
    assert {f"m2:{spec.name}" for spec in entries_in("group")} <= {*kinds}
    assert {"d1:pbind", "d1:tset", "d1:tdel", "d1:pdel", "d1:mdel", "d1:rdel", "d1:set", "d1:quiet", "d1:lang",
            "d1:export", "d1:sum", "d1:plink", "d1:proll", "f1:here"} <= {*kinds}  # fmt: skip
    for stranger, lang in (("Anna", "en"), ("Olena", "uk")):
        for data in (*kinds.values(), walked.root, f"m2:{BORYS}:close:"):
            menu, count = walked.message, len(group.replies)
            pressed = await group.press_data(data, menu, by=stranger)
            assert pressed.note == okun.t("button.not_yours", lang), data
            assert pressed.message.raw == menu.raw and len(group.replies) == count, data
    assert state(okun) == before


async def test_every_kind_of_button_works_after_a_restart(okun: Okun) -> None:
    chat = room_of(okun, "uk", "private")
    await enrich(okun, chat, "uk", talked=0)
    await pictured(okun, chat)
    walked = await walk(chat, deepest=1)
    await okun.restart()
    for data in sorted(walked.kinds().values(), key=rank):
        pressed = await walked.press(data)
        assert pressed.note not in bad_notes(okun), data
    assert okun.rows("SELECT count(*) FROM personas") == [(0,)] and okun.inbox_rows == []


async def test_a_form_goes_on_after_a_crash(okun: Okun, chat: Room) -> None:
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.new"))
    await okun.restart()
    await chat.say(LONG_NAME)
    await okun.restart()
    await chat.say("An old shadow " * 100)
    await okun.restart()
    pressed = await chat.press(okun.t("persona.button.skip_all"))
    await okun.restart()
    assert (await chat.press(okun.t("persona.button.save"), message=pressed.message)).note == okun.t("persona.saved")
    assert okun.rows("SELECT name, bio FROM persona_versions") == [(LONG_NAME, "")]


# -- rubbish

RUBBISH = ("", "0", "-1", "1.", ".1", "..", "1.1.1", "9" * 19, "9" * 20, "9" * 40, "1." + "9" * 30, "9" * 30 + ".0",
           "²", "٣", "1e9", "🐟", "__class__", "7d.🐟", "7d." + "x" * 40, "24h." + "9" * 40, "x" * 40, "' OR 1=1 --",
           "null", "here", "okun\n", "999999h", "%s", "{name}")  # fmt: skip
WITHOUT_ARGS = (
    "export",
    "sum",
    "pnew",
    "avnew",
    "tnew",
    "psave",
    "pdrop",
    "plink",
    "enter",
    "shop",
    "gallery_ask",
    "cast",
    "hook",
)  # they do the same whatever is there


@places
async def test_rubbish_is_answered_kindly_and_changes_nothing(okun: Okun, place: str) -> None:
    room = room_of(okun, "en", place)
    [menu] = await room.say("/menu")
    before, wrong = state(okun), []
    panels = [name for name in bot.PANELS if name != "draw"]  # it begins a draft; test_drawing looks at its rubbish
    names = [*(("m2", name) for name in panels), *(("d1", name) for name in bot.ACTS if name not in WITHOUT_ARGS)]
    for kind, name in names:
        longest = 64 - len(f"{kind}:{ANNA}:{name}:")
        for arg in (*RUBBISH, f"7d.{'x' * 64}"[:longest], f"1.{'9' * 64}"[:longest]):
            okun.telegram._pressed(okun.person("Anna"), menu.raw, f"{kind}:{ANNA}:{name}:{arg}")
            query = okun.telegram.queue[-1]["callback_query"]["id"]
            await okun.take()
            if query not in okun.telegram.answered or okun.failures:
                wrong.append((name, arg, *okun.failures))
                okun.app.counts.clear()
            for reply in room.replies:
                assert all(len(data.encode()) <= 64 for data in reply.data), (name, arg)
        assert state(okun) == before, name
    assert not wrong and okun.inbox_rows == []


@pytest.mark.parametrize("arg", ["x" * 40, "9" * 30])
async def test_a_summary_of_rubbish_is_refused_in_words(okun: Okun, chat: Room, arg: str) -> None:
    await talk(chat)
    [menu] = await chat.say("/menu")
    pressed = await chat.press_data(f"d1:{ANNA}:sum:{arg}", menu)
    assert okun.t("summary.usage") in (pressed.note, pressed.message.text, *(reply.text for reply in pressed.replies))
    assert not okun.failures and okun.inbox_rows == []


@settings(gemini_api_key="")
async def test_a_summary_that_cannot_be_made_says_why(okun: Okun, chat: Room) -> None:
    await talk(chat)
    await chat.say("/menu")
    await chat.press(okun.t("menu.to.summary"))
    pressed = await chat.press("24h")
    assert okun.t("summary.no_llm") in (pressed.note, pressed.message.text, *(reply.text for reply in pressed.replies))


async def test_a_summary_of_nothing_says_so(okun: Okun, group: Room) -> None:
    await group.say("/menu")
    await group.press(okun.t("menu.to.summary"))
    pressed = await group.press(okun.t("summary.button.since"))
    texts = (pressed.note, pressed.message.text, *(reply.text for reply in pressed.replies))
    assert okun.t("summary.nothing") in texts or any(okun.t("summary.head", messages="") in (t or "") for t in texts)


async def test_a_link_that_nobody_made_is_not_put_into_our_mouth(okun: Okun, group: Room) -> None:
    [menu] = await group.say("/menu")
    pressed = await group.press_data(f"m2:{ANNA}:pshare: https.//evil.example buy!", menu)
    assert "evil" not in pressed.message.text and pressed.note is not None


async def test_what_is_another_persons_stays_theirs(okun: Okun, chat: Room) -> None:
    borys = okun.private("Borys")
    await enrich(okun, borys, "uk", talked=0)
    [menu] = await chat.say("/menu")
    walked, before = Walk(chat, menu), state(okun)
    ids = {name: okun.rows(f"SELECT id FROM {name}")[0][0] for name in ("personas", "facts", "reminders", "tempers")}
    persona = ids["personas"]
    for kind, name, arg in (
        ("m2", "p", persona), ("m2", "pd", persona), ("m2", "ph", persona), ("m2", "ph", f"{persona}.0"),
        ("m2", "pv", f"{persona}.1"), ("d1", "pbind", persona), ("d1", "plink", persona), ("d1", "pedit", persona),
        ("d1", "pdel", persona), ("d1", "proll", f"{persona}.1"), ("d1", "ptake", persona), ("m2", "offer", persona),
        ("d1", "mdel", f"{ids['facts']}.0"), ("d1", "rdel", f"{ids['reminders']}.0"), ("m2", "td", ids["tempers"]),
        ("d1", "tdel", ids["tempers"]), ("d1", "tset", ids["tempers"]),
    ):  # fmt: skip
        pressed = await walked.press(f"{kind}:{ANNA}:{name}:{arg}")
        assert pressed.note in bad_notes(okun), name
        assert LONG_NAME not in walked.message.text and not pressed.replies, name
        assert (await walked.press(f"{kind}:{BORYS}:{name}:{arg}")).note == okun.t("button.not_yours"), name
    assert state(okun) == before and not okun.failures


async def test_a_draft_of_a_persona_that_was_deleted_meanwhile_is_saved_anew_or_dropped(okun: Okun, chat: Room) -> None:
    await enrich(okun, chat, "en", talked=0)
    [menu] = await chat.say("/personas")
    walked = Walk(chat, menu)
    await walked.press(f"d1:{ANNA}:pedit:1")
    await walked.press(f"d1:{ANNA}:pdel:1")
    assert okun.t("persona.button.continue") in walked.message.buttons
    assert (await walked.press(f"d1:{ANNA}:psave:")).note == okun.t("persona.saved")
    assert okun.rows("SELECT id, version FROM personas") == [(2, 1), (3, 1)]
    assert okun.rows("SELECT name FROM persona_versions WHERE persona_id = 3") == [(LONG_NAME,)]
    await walked.press(f"d1:{ANNA}:pedit:3")
    await walked.press(f"d1:{ANNA}:pdel:3")
    await walked.press(f"m2:{ANNA}:pform:")
    assert (await walked.press(f"d1:{ANNA}:pdrop:")).note == okun.t("persona.dropped")
    assert okun.rows("SELECT count(*) FROM forms") == [(0,)] and okun.rows("SELECT id FROM personas") == [(2,)]
    assert okun.t("persona.button.new") in walked.message.buttons


# -- long texts

TRAIT_WORDS: dict[str, Any] = {trait: f"{trait} {'Ґ' * 480} end" for trait in bot.TRAITS}
LONG = bot.PersonaText(LONG_NAME, "".join(f"{number:04d}-" for number in range(500)), **TRAIT_WORDS)  # 2500 letters


async def read_on(walked: Walk) -> str:
    """All pages of what is shown, from this one on until it comes back."""
    texts: list[str] = []
    while walked.message.text not in texts[:1]:
        texts.append(walked.message.text)
        onward = [data for data, label in zip(walked.message.data, walked.message.buttons, strict=True) if label == "▶"]
        if not onward:
            break
        await walked.press(onward[0])
    return "".join(texts)


def squeezed(text: str) -> str:
    return "".join(text.split())


async def test_the_offer_shows_every_trait_and_every_letter(okun: Okun, chat: Room) -> None:
    borys = who_of(okun, okun.private("Borys"))
    id_ = await bot.save_persona(okun.app, borys, BORYS, None, LONG)
    [offer] = await chat.say(f"/start persona_{await bot.link_of(okun.app, id_)}")
    walked, use = Walk(chat, offer), okun.t("persona.button.use")
    assert len(offer.text.encode("utf-16-le")) <= 8192 and use in offer.buttons
    read = squeezed(await read_on(walked))
    assert read.startswith(squeezed(okun.t("persona.offer", name=LONG_NAME, about=LONG_NAME)[:100]))
    assert LONG.description in read and use in walked.message.buttons
    for trait, words in TRAIT_WORDS.items():
        assert squeezed(f"{okun.t(f'persona.field.{trait}')}: {words}") in read
    for choice in bot.CHOICES:
        assert squeezed(f"{okun.t(f'persona.field.{choice}')}: ") in read
    assert read.count(squeezed(TRAIT_WORDS["bio"])) == 1


async def test_the_card_and_a_version_are_shown_whole_too(okun: Okun, chat: Room) -> None:
    who = who_of(okun, chat)
    id_ = await bot.save_persona(okun.app, who, ANNA, None, LONG)
    await bot.save_persona(okun.app, who, ANNA, id_, LONG._replace(name="Light", bio="A new one"))
    [card] = await chat.say("/personas light")
    walked = Walk(chat, card)
    for data, bio in (("", "A new one"), (f"m2:{ANNA}:pv:{id_}.1", TRAIT_WORDS["bio"])):
        if data:
            await walked.press(data)
        read = squeezed(await read_on(walked))
        assert LONG.description in read and squeezed(bio) in read
        assert all(squeezed(words) in read for trait, words in TRAIT_WORDS.items() if trait != "bio")
    await walked.press(walked.message.data[0])  # restored, from whichever page
    read = squeezed(await read_on(walked))
    assert squeezed(TRAIT_WORDS["bio"]) in read and "Light" not in read


async def test_back_from_the_sharing_of_one_s_own_leads_to_its_card(okun: Okun, chat: Room) -> None:
    id_ = await bot.save_persona(okun.app, who_of(okun, chat), ANNA, None, bot.PersonaText("Shadow", "An old one"))
    await chat.say("/persona shadow")
    for command, share in (("/personas shadow", id_), ("/persona", "here")):
        walked = Walk(chat, (await chat.say(command))[0])
        await walked.press(f"d1:{ANNA}:plink:{share}")
        assert walked.message.buttons == [okun.t("persona.button.unshare"), okun.t("menu.back")]
        await walked.press(walked.message.data[-1])
        assert walked.message.text.startswith("Shadow\n\nAn old one")
        await walked.press(walked.message.data[-1])
        assert walked.message.text == okun.t("personas.list", count=1, most=10)
    await chat.say("/persona granny")
    walked = Walk(chat, (await chat.say("/persona"))[0])
    await walked.press(f"d1:{ANNA}:plink:here")
    await walked.press(walked.message.data[-1])
    assert okun.t("persona.is.granny.about") in walked.message.text


# -- what is so already


async def test_what_is_marked_and_pressed_again_costs_no_call(okun: Okun, group: Room) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    for command, key in (("lang", "lang.name"), ("persona", "persona.is.poet.name"), ("temper", "temper.is.sad"),
                         ("settings", "settings.policy.never"), ("settings", "settings.policy.persona"),
                         ("settings", "settings.rich.on")):  # fmt: skip
        await group.say(f"/{command}")
        marked, panel = f"✓ {okun.t(key)}", group.replies[-1]
        if command != "lang":
            panel = (await group.press(okun.t(key), message=panel)).message
        first = (await group.press(marked, message=panel)).message  # of languages the text says that it is set
        edits = len(okun.called("editMessageText"))
        for _ in range(2):
            again = await group.press(marked, message=first)
            assert again.message.raw == first.raw and not again.replies, key
            assert again.note or command == "lang"
        assert len(okun.called("editMessageText")) == edits, key
        if command != "lang":
            assert first.raw == panel.raw, key


async def test_the_policy_of_the_persona_can_be_chosen_again(okun: Okun, group: Room) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    await group.say("hi")
    text = bot.PersonaText("Shadow", "An old one", group_policy="mention")
    await bot.save_persona(okun.app, who_of(okun, group), ANNA, None, text)
    await group.say("/persona shadow")
    [panel] = await group.say("/settings")
    own = f"✓ {okun.t('settings.policy.persona')}"
    assert own in panel.buttons and okun.t("settings.policy_is.mention") in panel.text
    panel = (await group.press(okun.t("settings.policy.always"), message=panel)).message
    assert own not in panel.buttons and okun.t("settings.policy_is.always") in panel.text
    assert len(await group.say("nice weather")) == 1
    pressed = await group.press(okun.t("settings.policy.persona"))
    assert pressed.note == okun.t("settings.saved") and own in pressed.message.buttons
    assert okun.t("settings.policy_is.mention") in pressed.message.text
    assert okun.rows("SELECT policy FROM chats WHERE chat_id = ?", group.id) == [(None,)]
    assert await group.say("nice weather") == [] and len(await group.say("shadow, hi")) == 1
    await group.say("/persona off")
    [panel] = await group.say("/settings")
    assert own in panel.buttons and okun.t(f"settings.policy_is.{okun.settings.group_policy}") in panel.text


async def test_who_was_forgotten_finds_nothing_behind_old_buttons(okun: Okun, chat: Room) -> None:
    await enrich(okun, chat, "en")
    walked = await walk(chat, deepest=0)
    old = walked.message
    await walked.press(f"f1:{ANNA}:all")
    assert okun.rows("SELECT count(*) FROM personas") == [(0,)]
    for data in walked.kinds().values():
        if rank(data) == 0:
            pressed = await chat.press_data(data, old)
            [now] = [*pressed.replies, pressed.message][:1]
            old = now if now.data else old
            assert not re.search(f"{LONG_NAME}|Тінь|Yawn|I keep . fish|Feed fish|{TALK['en']}", now.text), data
    assert not okun.failures


# -- pictures and texts


async def test_a_picture_takes_the_place_of_a_text_and_a_text_that_of_a_picture(okun: Okun, chat: Room) -> None:
    await talk(chat)
    [menu] = await chat.say("/menu")
    pressed = await chat.press(okun.t("menu.to.mood"), message=menu)
    [picture] = pressed.replies
    assert picture.picture and menu.id not in chat.chat.messages
    assert okun.t("mood.button.text") in picture.buttons
    [words] = (await chat.press(okun.t("mood.button.text"), message=picture)).replies
    assert not words.picture and picture.id not in chat.chat.messages
    assert picture.text.splitlines()[0] == words.text.splitlines()[0] and okun.t("mood.steps") in words.text
    [again] = (await chat.press(okun.t("mood.button.picture"), message=words)).replies
    assert again.picture and words.id not in chat.chat.messages
    [back] = (await chat.press(okun.t("menu.back"), message=again)).replies
    assert back.text == okun.t("menu.text", name="Okun") and again.id not in chat.chat.messages
    assert [reply.id for reply in chat.replies if reply.data] == [back.id]


async def test_a_picture_changes_in_place_and_is_another_one(okun: Okun, chat: Room) -> None:
    await talk(chat)
    [week] = await chat.say("/mood")
    pressed = await chat.press(okun.t("mood.period.30d"), message=week)
    assert pressed.message.id == week.id and not pressed.replies and pressed.message.picture
    assert pressed.message.raw["photo"][-1]["file_unique_id"] != week.raw["photo"][-1]["file_unique_id"]
    assert f"✓ {okun.t('mood.period.30d')}" in pressed.message.buttons


async def test_where_photos_are_forbidden_words_take_the_place(okun: Okun, group: Room) -> None:
    await talk(group)
    [menu] = await group.say("/menu")
    okun.telegram.fault("400", "sendPhoto", times=2, text="not enough rights to send photos to the chat")
    [words] = (await group.press(okun.t("menu.to.mood"), message=menu)).replies
    assert not words.picture and okun.t("mood.part.members") in words.text and menu.id not in group.chat.messages
    assert okun.t("menu.back") in words.buttons
    [told] = await group.say("/mood 30d")
    assert not told.picture and okun.t("mood.button.text") in told.buttons and told.reply_to == group.last_id
    assert okun.rows("SELECT gone_at FROM chats") == [(None,)]  # it is no less a member for that
    back = (await group.press(okun.t("menu.back"), message=words)).message
    assert (back.id, back.text) == (words.id, okun.t("menu.text", name="Okun"))


async def test_a_picture_that_may_not_be_changed_any_more_becomes_words(okun: Okun, group: Room) -> None:
    await talk(group)
    [week] = await group.say("/mood")
    for method in ("editMessageMedia", "sendPhoto"):
        okun.telegram.fault("400", method, text="not enough rights to send photos to the chat")
    [words] = (await group.press(okun.t("mood.period.30d"), message=week)).replies
    assert not words.picture and f"✓ {okun.t('mood.period.30d')}" in words.buttons
    assert week.id not in group.chat.messages


async def test_a_press_is_answered_even_where_the_bot_may_not_write(okun: Okun, group: Room) -> None:
    await talk(group)
    [menu] = await group.say("/menu")
    group.chat.bot_status = "restricted"
    pressed = await group.press(okun.t("menu.to.mood"), message=menu)
    assert not pressed.replies and menu.id in group.chat.messages and okun.inbox_rows == []
    group.chat.bot_status = "member"
    assert (await group.press(okun.t("menu.to.mood"), message=menu)).replies[0].picture


async def test_two_taps_at_once_leave_one_menu(okun: Okun, chat: Room) -> None:
    await talk(chat)
    [menu] = await chat.say("/menu")
    for _ in range(2):
        okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("menu.to.mood"), menu.id)
    await okun.take()
    assert len([reply for reply in chat.replies if reply.data]) == 1
    assert len(okun.telegram.answered) == 2


async def test_a_picture_stays_in_its_topic(okun: Okun) -> None:
    forum = okun.group(forum=True)
    topic = forum.topic("Fish")
    await talk(topic)
    [menu] = await topic.say("/menu")
    [picture] = (await topic.press(okun.t("menu.to.mood"), message=menu)).replies
    assert picture.picture and picture.thread == topic.thread


async def test_the_buttons_of_a_picture_too_old_to_be_deleted_go_on_working(
    okun: Okun, chat: Room, later: Later
) -> None:
    await talk(chat)
    [picture] = await chat.say("/mood 7d")
    await later(49 * 3600)
    for _ in range(2):
        [menu] = (await chat.press(okun.t("menu.back"), message=picture)).replies
        assert menu.text == okun.t("menu.text", name="Okun") and picture.id in chat.chat.messages


async def test_a_press_under_a_picture_that_telegram_does_not_show_the_bot_brings_the_panel(
    okun: Okun, chat: Room
) -> None:
    await talk(chat)
    [picture] = await chat.say("/mood 7d")
    okun.telegram.press(chat.chat, okun.person("Anna"), okun.t("menu.back"), picture.id)
    update = okun.telegram.queue.pop()
    message = update["callback_query"]["message"]
    hidden = {"chat": message["chat"], "message_id": message["message_id"], "date": 0}  # an InaccessibleMessage
    await okun.feed({**update, "callback_query": {**update["callback_query"], "message": hidden}})
    assert okun.note(update["callback_query"]["id"]) is None and not okun.failures and okun.inbox_rows == []
    assert chat.replies[-1].text == okun.t("menu.text", name="Okun")


async def test_a_caption_of_the_longest_names_and_topics_fits(okun: Okun) -> None:
    group = okun.group("Щ🐟" * 60)
    for number in range(8):
        okun.telegram.user(500 + number, "Щ🐟" * 32, "ru")
        person = okun.telegram.users[500 + number]
        okun.telegram.say(group.chat, person, f"{'щастя' * 20}{number} {'рыбалка' * 14}{number} 🎉")
        okun.telegram.say(group.chat, person, f"{'щастя' * 20}{number} {'рыбалка' * 14}{number} 🎉")
    await okun.take()
    [picture] = await group.say("/mood 24h")
    assert picture.picture and len(picture.text.encode("utf-16-le")) <= 2048 and picture.data


async def test_two_admins_at_once_change_one_chat_and_both_see_how_it_stands(okun: Okun, group: Room) -> None:
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    keys = {"Anna": ["poet", "comic", "coach"], "Olena": ["granny", "okun", "teacher"]}
    menus = {name: (await group.say("/persona", by=name))[0] for name in keys}
    for rest in range(3):
        for name, menu in menus.items():
            owner = okun.person(name)["id"]
            okun.telegram.press(group.chat, okun.person(name), f"d1:{owner}:pbind:{keys[name][rest]}", menu.id)
    await okun.take()
    [key] = okun.rows("SELECT persona FROM chats")[0]
    assert key in ("coach", "teacher") and len(okun.telegram.answered) == 6
    for name, lang in (("Anna", "en"), ("Olena", "uk")):
        assert okun.t(f"persona.is.{key}.name", lang) in (await group.say("/menu", by=name))[0].text


async def test_who_was_forgotten_while_a_form_asked_is_not_asked_on(okun: Okun, chat: Room) -> None:
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.new"))
    await chat.say("Shadow")
    [question] = [reply for reply in chat.replies if reply.data][-1:]
    [ask] = await chat.say("/forget me")
    await chat.press_data(f"f1:{ANNA}:all", ask)
    await chat.press_data(f"d1:{ANNA}:psave:", question)
    for data in (f"d1:{ANNA}:pskip:bio", f"d1:{ANNA}:pcyc:style", f"m2:{ANNA}:pq:name", f"m2:{ANNA}:pform:"):
        assert (await chat.press_data(data, question)).note == okun.t("form.over"), data
    [reply] = await chat.say("An old shadow")
    assert reply.text == "Heard: An old shadow"
    assert okun.rows("SELECT count(*) FROM forms") == okun.rows("SELECT count(*) FROM personas") == [(0,)]


# -- what panels show


@langs
@places
async def test_the_menu_shows_all_there_is_here(okun: Okun, lang: str, place: str) -> None:
    [menu] = await room_of(okun, lang, place).say("/menu")
    entries = sorted(entries_in(place), key=lambda spec: spec.entry or 0)
    names = [okun.t(f"menu.to.{spec.name}", lang) for spec in entries]
    assert menu.buttons == [*names, okun.t("menu.close", lang)] and len(names) >= (12 if place == "private" else 13)
    assert (okun.t("menu.to.quiet", lang) in names) == (place == "group")
    assert menu.text == okun.t("menu.text", lang, name=okun.t("persona.is.okun.name", lang))


@langs
async def test_the_profile_says_how_it_is(okun: Okun, lang: str, later: Later) -> None:
    group = room_of(okun, lang, "group")
    await talk(group, lang, 24)
    [reply] = await group.say("/profile")
    name = PEOPLE[lang]
    said = okun.rows("SELECT count(*) FROM messages WHERE user_id = ? AND text NOT LIKE '/%'", okun.person(name)["id"])
    lines = reply.text.splitlines()
    assert lines[0] == name
    assert okun.t("profile.here", lang, messages=TEXTS.counted(lang, "mood.messages", said[0][0])) in lines
    assert any(line.startswith(okun.t("profile.tone", lang, tone="")[:5]) for line in lines)
    assert okun.t("profile.has", lang, facts=0, reminders=0, personas=0, most=10) in lines
    assert okun.t("profile.lang", lang, language=okun.t("lang.name", lang)) in lines
    assert [
        okun.t(f"menu.to.{way}", lang) for way in ("memory", "reminders", "personas", "lang", "balance", "privacy")
    ] == (reply.buttons[:-1])


async def test_the_profile_of_somebody_new_has_their_name(okun: Okun, group: Room) -> None:
    [reply] = await group.say("/profile")
    assert reply.text.splitlines()[0] == "Anna"
    assert okun.t("profile.new") in reply.text


async def test_the_profile_of_an_anonymous_administrator_is_the_chats(okun: Okun, group: Room) -> None:
    [reply] = await group.say("/profile", by="chat")
    assert reply.text.splitlines()[0] != "?"


@langs
async def test_the_quiet_panel_mutes_and_unmutes(okun: Okun, lang: str, later: Later) -> None:
    group = room_of(okun, lang, "group")
    await group.say("/menu")
    await group.press(okun.t("menu.to.quiet", lang))
    pressed = await group.press(TEXTS.span(lang, 7200))
    assert pressed.note == okun.t("quiet.on", lang, left=TEXTS.span(lang, 7200))
    assert okun.t("quiet.left", lang, left=TEXTS.span(lang, 7200)) in pressed.message.text
    assert okun.rows("SELECT quiet_until FROM chats") == [(int(NOON) + 7200,)]
    await later(3600)
    back = (await group.press(okun.t("menu.back", lang))).message
    pressed = await group.press(okun.t("menu.to.quiet", lang), message=back)
    assert okun.t("quiet.left", lang, left=TEXTS.span(lang, 3600)) in pressed.message.text
    pressed = await group.press(okun.t("quiet.button.off", lang))
    assert pressed.note == okun.t("quiet.off", lang) and okun.t("quiet.none", lang) in pressed.message.text
    assert okun.t("quiet.button.off", lang) not in pressed.message.buttons


@settings(retention_days=7)
async def test_the_privacy_panel_says_for_how_long(okun: Okun, chat: Room) -> None:
    [reply] = await chat.say("/privacy")
    assert TEXTS.span("en", 7 * 86_400) in reply.text and okun.t("privacy.models") in reply.text
    ask = (await chat.press(okun.t("privacy.button.forget"))).message
    assert ask.text == okun.t("forget.ask") and ask.id == reply.id
    assert (await chat.press(okun.t("menu.back"))).message.text == reply.text


async def test_the_settings_in_a_group_are_for_its_admins_alone(okun: Okun, group: Room) -> None:
    [menu] = await group.say("/menu")
    pressed = await group.press(okun.t("menu.to.settings"), message=menu)
    assert pressed.note == okun.t("error.admins_only") and pressed.message.raw == menu.raw
    for act, arg in (("pbind", "poet"), ("tset", "sad"), ("tdel", "1"), ("set", "policy.always"), ("plink", "here"),
                     ("ptake", "poet")):  # fmt: skip
        assert (await group.press_data(f"d1:{ANNA}:{act}:{arg}", menu)).note == okun.t("error.admins_only"), act
    assert okun.rows("SELECT policy, persona, temper FROM chats") == [(None, "okun", "neutral")]


# -- caches


@langs
async def test_what_was_changed_shows_in_the_very_next_panel(okun: Okun, lang: str) -> None:
    group = room_of(okun, lang, "group")
    await group.say("/menu")

    async def into(*names: str) -> Reply:
        """Press back to the menu, then these one after another."""
        message = group.replies[-1]
        while okun.t("menu.close", lang) not in message.buttons:
            message = (await group.press(okun.t("menu.back", lang), message=message)).message
        for name in names:
            message = (await group.press(name, message=message)).message
        return message

    poet = okun.t("persona.is.poet.name", lang)
    panel = await into(okun.t("menu.to.persona", lang), poet)
    assert f"✓ {poet}" in panel.buttons and poet in panel.text
    assert (await into()).text == okun.t("menu.text", lang, name=poet)
    sad = okun.t("temper.is.sad", lang)
    assert f"✓ {sad}" in (await into(okun.t("menu.to.temper", lang), sad)).buttons
    never = okun.t("settings.policy.never", lang)
    assert f"✓ {never}" in (await into(okun.t("menu.to.settings", lang), never)).buttons
    other = next(one for one in PEOPLE if one != lang)
    panel = await into(okun.t("menu.to.settings", lang), okun.t(f"settings.lang.{other}", lang))
    assert okun.t("settings.policy_is.never", other) in panel.text
    assert panel.buttons[-1] == okun.t("menu.back", other)
    back = (await group.press(panel.data[-1], message=panel)).message
    assert back.text == okun.t("menu.text", other, name=okun.t("persona.is.poet.name", other))


async def test_the_profile_counts_what_is_new_at_once(okun: Okun, chat: Room) -> None:
    await chat.say("hi")

    async def has() -> str:
        [reply] = await chat.say("/profile")
        return next(line for line in reply.text.splitlines() if line.startswith(okun.t("profile.has")[:5]))

    def said(facts: int, reminders: int, personas: int) -> str:
        return okun.t("profile.has", facts=facts, reminders=reminders, personas=personas, most=10)

    assert await has() == said(0, 0, 0)
    await chat.say("/remember I keep a perch")
    assert await has() == said(1, 0, 0)
    await chat.say("/reminders in 2 hours feed the perch")
    assert await has() == said(1, 1, 0)
    await bot.save_persona(okun.app, who_of(okun, chat), ANNA, None, bot.PersonaText("Shadow", "An old one"))
    assert await has() == said(1, 1, 1)
    await okun.later(7300)
    await bot.say_due(okun.app)
    await okun.settle()
    assert await has() == said(1, 0, 1)
    await chat.say("/forget perch")
    assert await has() == said(0, 0, 1)


async def test_a_persona_that_is_changed_or_deleted_is_so_wherever_it_is_bound(okun: Okun, chat: Room) -> None:
    owner = who_of(okun, chat)
    await chat.say("hi")
    id_ = await bot.save_persona(okun.app, owner, ANNA, None, bot.PersonaText("Shadow", "An old one"))
    group = okun.group()
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    await group.say("/persona Shadow")
    assert okun.t("menu.text", name="Shadow") == (await group.say("/menu"))[0].text
    await bot.save_persona(okun.app, owner, ANNA, id_, bot.PersonaText("Light", "A new one"))
    assert okun.t("menu.text", name="Light") == (await group.say("/menu"))[0].text
    [menu] = await chat.say("/personas")
    await chat.press("Light", message=menu)
    await chat.press(okun.t("persona.button.delete"))
    await chat.press(okun.t("persona.button.delete_yes"))
    assert okun.t("menu.text", name="Okun") == (await group.say("/menu"))[0].text


# -- a day

WORDS = {
    "en": "fish river perch morning bread coffee train rain garden music film sister friend money work school letter "
    "mountain bicycle window summer winter market soup doctor holiday story kitchen engine paper",
    "uk": "риба річка окунь ранок хліб кава потяг дощ сад музика фільм сестра друг гроші робота школа лист гора "
    "велосипед вікно літо зима ринок борщ лікар відпустка історія кухня двигун папір",
    "ru": "рыба река окунь утро хлеб кофе поезд дождь сад музыка фильм сестра друг деньги работа школа письмо гора "
    "велосипед окно лето зима рынок суп врач отпуск история кухня двигатель бумага",
}
LOOKED_AT = ("persona", "personas", "temper", "mood", "memory", "profile", "settings", "quiet", "lang", "help")


async def look_around(okun: Okun, room: Room, name: str, dice: random.Random) -> None:
    """Open the menu, look at some panels, change the temper or the language of oneself now and then."""
    [menu, *_] = [reply for reply in await room.say("/menu", by=name) if reply.data]
    walked, owner = Walk(room, menu), okun.person(name)["id"]
    for panel in dice.sample(LOOKED_AT, 3):
        await walked.press(f"m2:{owner}:{panel}:{'7d.text' if panel == 'mood' else ''}", name)
        await walked.press(f"m2:{owner}:menu:", name)
    if dice.random() < 0.2:
        await walked.press(f"d1:{owner}:lang:{dice.choice(list(PEOPLE))}", name)


async def a_while(okun: Okun, room: Room, people: list[str], dice: random.Random) -> None:
    """Some half an hour of talk: now and then somebody talks with the bot for some turns, or looks through the menu."""

    def text(name: str) -> str:
        return " ".join(dice.choices(WORDS[okun.person(name)["language_code"]].split(), k=dice.randint(2, 7)))

    for _ in range(dice.randint(8, 15)):
        for name in dice.choices(people, k=dice.randint(1, 4)):
            room.put("say", text(name), by=name)
        await okun.take()
        await bot.index_messages(okun.app)
        if dice.random() < 0.15:
            name = dice.choice(people)
            for _ in range(dice.randint(1, 5)):
                await room.say(f"Okun, {text(name)}?", by=name)
                await bot.index_messages(okun.app)
                await okun.later(dice.randint(15, 60))
        if dice.random() < 0.05:
            await look_around(okun, room, dice.choice(people), dice)
        await okun.later(dice.randint(20, 180))


async def test_a_day_of_use_is_answered_from_caches_nine_times_in_ten(okun: Okun) -> None:
    dice, people = random.Random(11), [f"Member{number}" for number in range(16)]
    for number, name in enumerate(people):
        okun.telegram.user(200 + number, name, [*PEOPLE][number % 3])
    rooms = [(okun.group(f"Pond {n}", *people[n * 3 : n * 3 + 7]), people[n * 3 : n * 3 + 7]) for n in range(4)]
    rooms += [(okun.private(name), [name]) for name in people[:5]]
    began = okun.clock.now()
    while okun.clock.now() < began + 86_400:
        await a_while(okun, *dice.choice(rooms), dice)
        await okun.later(dice.randint(600, 5400))
    asked = {name: (cache.stats.hits, cache.stats.misses) for name, cache in okun.app.caches.items()}
    assert bot.hit_rate(okun.app.caches.values()) >= 0.90, asked
    assert sum(map(sum, asked.values())) > 1500
