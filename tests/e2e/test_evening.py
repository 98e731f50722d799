"""An evening of a group with a pond, in each language: four people, from adding the bot to the leaderboard."""

from __future__ import annotations

import functools
import re
import sqlite3
import tomllib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from fakes import BOT, BotProcess, Chat, Json, until
from test_fishing import check_all

import bot

from .conftest import PATIENCE, Person, Stage, impatient

TABLES = {lang: tomllib.loads((BOT.parent / "locales" / f"{lang}.toml").read_text("utf-8")) for lang in bot.LANGS}
TON, BTC = "the-open-network", "bitcoin"
# Frames follow one another at once, prices are asked for each time that one is needed, and once.
BRISK = impatient(
    FRAME_S=0.01, PRICE_TRIES=1,
    **{"App.looks": "property(lambda app: bot.Cache(1, 10, app.clock.monotonic), lambda *_: None)"},
)  # fmt: skip


def afternoon() -> str:
    """A timezone in which no midnight comes while this runs: with it would come a new day of worms and leaderboards."""
    return f"Etc/GMT{datetime.now(UTC).hour - 12:+d}"


def words_of(message: Json) -> str:
    return str(message.get("text") or message.get("caption") or "")


class Pressed(NamedTuple):
    """What a press brought: its note, and the message as it is now, or the one that came instead."""

    note: str
    text: str


@dataclass
class Evening:
    stage: Stage
    okun: BotProcess
    lang: str
    group: Chat = field(init=False)
    anna: Person = field(init=False)  # made the group
    borys: Person = field(init=False)
    vira: Person = field(init=False)
    hlib: Person = field(init=False)  # whose Telegram speaks German

    def __post_init__(self) -> None:
        self.anna, self.borys, self.vira = (self.stage.person(name, self.lang) for name in ("Anna", "Borys", "Vira"))
        self.hlib = self.stage.person("Hlib", "de")
        people = [person.user for person in (self.anna, self.borys, self.vira, self.hlib)]
        self.group = self.stage.telegram.group("Pike & Co", people, bot_status="left")
        self.stage.telegram.member(self.group, self.anna.user, "creator")

    # -- what people do

    async def says(self, person: Person, text: str, where: Chat | None = None) -> str:
        """The newest message of the bot after these words."""
        chat = where or self.group
        self.stage.telegram.say(chat, person.user, text)
        await self.stage.settled(self.okun)
        return self.newest(chat)

    async def presses(self, person: Person, key: str, where: Chat | None = None, of: Person | None = None) -> Pressed:
        """Press the newest button that was made for somebody (`of`, else for who presses it): a text's key, a label."""
        telegram, chat = self.stage.telegram, where or self.group
        message_id, data = self.button(chat, key, (of or person).user["id"])
        telegram.press(chat, person.user, data, message_id)
        query = telegram.queue[-1]["callback_query"]["id"]
        await telegram.until(lambda: query in telegram.answered, PATIENCE)
        await self.stage.settled(self.okun)
        there = chat.messages.get(message_id)
        return Pressed(telegram.answered[query].get("text", ""), words_of(there) if there else self.newest(chat))

    async def menu(self, person: Person, *keys: str) -> str:
        """The menu, and on from button to button."""
        text = await self.says(person, "/menu")
        for key in keys:
            text = (await self.presses(person, key)).text
        return text

    async def sees(self, text: str) -> None:
        """Wait for the newest message in the group to say so: a show may go before."""
        await self.stage.telegram.until(lambda: text in self.newest(), PATIENCE)

    # -- what they see

    def t(self, key: str, **fields: Any) -> str:
        """A text of the bot's."""
        found: Any = functools.reduce(lambda table, name: table[name], key.split("."), TABLES[self.lang]["text"])
        return str(found).format(**fields) if fields else str(found)

    def says_it(self, key: str, text: str, **fields: Any) -> bool:
        """Is a text of the bot's in this one? Fields that are not given may be anything."""
        pattern = re.escape(self.t(key))
        for name, value in fields.items():
            pattern = pattern.replace(rf"\{{{name}\}}", re.escape(str(value)))
        return bool(re.search(re.sub(r"\\{\w+\\}", ".+", pattern), text))

    def label(self, key: str) -> str:
        return self.t(key) if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key) else key

    def sent(self, chat: Chat | None = None) -> list[Json]:
        return self.stage.telegram.sent(chat or self.group)

    def newest(self, chat: Chat | None = None) -> str:
        return words_of(self.sent(chat)[-1])

    def button(self, chat: Chat, key: str, owner: int) -> tuple[int, str]:
        """The newest with this label that was made for somebody: its message, its data."""
        for message in reversed(self.sent(chat)):
            for row in message.get("reply_markup", {}).get("inline_keyboard", ()):
                for one in row:
                    if one["text"] == self.label(key) and f":{owner}:" in one.get("callback_data", ""):
                        return message["message_id"], one["callback_data"]
        raise LookupError(f"no button {self.label(key)!r} of {owner}")

    # -- what there is

    def have(self, person: Person, currency: str) -> int:
        sql = "SELECT coalesce(sum(amount), 0) FROM balances WHERE user_id = ? AND currency = ?"
        return int(self.okun.rows(sql, person.user["id"], currency)[0][0])

    def lines(self, person: Person) -> list[tuple[Any, ...]]:
        """Those in the pond of the group: the pair, the leverage, the stake."""
        sql = "SELECT pair, leverage, stake FROM fishing_lines WHERE user_id = ? AND chat_id = ?"
        return self.okun.rows(sql, person.user["id"], self.group.id)

    def fish_of(self, person: Person) -> list[str]:
        """The rarities of what somebody caught, oldest first."""
        rows = self.okun.rows("SELECT fish FROM catches WHERE user_id = ? ORDER BY id", person.user["id"])
        return [bot.FISH[name].rarity for (name,) in rows]

    def price(self, coin: str, usd: float) -> None:
        self.stage.gemini.prices[coin] = usd


def age_lines(okun: BotProcess, seconds: int) -> None:
    """Let lines have been in the water for longer."""
    with sqlite3.connect(okun.database, timeout=10) as connection:
        connection.execute("UPDATE fishing_lines SET cast_at = cast_at - ?", (seconds,))
    connection.close()


async def play_the_evening(one: Evening) -> None:
    """All of it; parts of one story, each with what the one before left."""
    await the_bot_comes(one)
    await the_first_casts(one)
    await impatience(one)
    await the_first_catches(one)
    await rods_and_waters(one)
    await an_empty_tin(one)
    await bragging(one)
    await the_night(one)
    await the_leaderboard(one)


async def the_bot_comes(one: Evening) -> None:
    one.stage.telegram.membership(one.group, "member", by=one.anna.user)
    await one.stage.settled(one.okun)
    assert one.says_it("greeting.hello", one.newest())
    assert await one.says(one.hlib, f"/lang {one.lang}") == one.t("lang.set")
    said = await one.says(one.hlib, "/help")
    for name in ("cast", "hook", "status", "catches", "top"):
        assert f"/{name} — {one.t(f'command.{name}')}" in said
    assert one.t("trophies.nobody") in await one.says(one.hlib, "/top")
    kinds = bot.plural(one.lang, len(bot.FISH), TABLES[one.lang]["text"]["trophies"]["kinds"])
    assert one.says_it("trophies.empty", await one.says(one.hlib, "/catches"), all=f"{len(bot.FISH)} {kinds}")


async def the_first_casts(one: Evening) -> None:
    """Anna casts by buttons and Borys by command, Vira takes the other side first, Hlib says it twice."""
    assert "TON" in await one.menu(one.anna, "menu.to.pond")
    await one.presses(one.anna, "fishing.button.cast")
    await one.sees(one.t("fishing.lesson.1"))
    assert "👤 Anna" in one.newest() and "$5" in one.newest()
    assert one.says_it("fishing.wager", one.newest(), pair="TON", wins=one.t("fishing.goes.up"))
    assert one.t("fishing.lesson.1") in await one.says(one.borys, "/cast")
    await one.menu(one.vira, "menu.to.pond", "fishing.button.rods")
    assert one.says_it("fishing.rod_taken", (await one.presses(one.vira, "fishing.button.short")).note)
    text = await one.says(one.vira, "/cast")
    assert one.says_it("fishing.wager", text, pair="TON", wins=one.t("fishing.goes.down"))
    one.stage.telegram.say(one.group, one.hlib.user, "/cast")
    await one.says(one.hlib, "/cast")
    assert sum("👤 Hlib" in words_of(message) for message in one.sent()) == 2
    assert any(one.t("fishing.has_line") in words_of(message) for message in one.sent())
    assert [len(one.lines(person)) for person in (one.anna, one.borys, one.vira, one.hlib)] == [1, 1, 1, 1]
    assert {one.have(person, "bait") for person in (one.anna, one.borys, one.vira, one.hlib)} == {10}  # it was free


async def impatience(one: Evening) -> None:
    one.price(TON, 5.002)
    text = (await one.presses(one.anna, "fishing.button.refresh")).text
    assert bot.pnl_words(one.lang, 0.08) in text and one.t("fishing.lesson.2") in text
    before = one.okun.rows("SELECT * FROM fishing_lines"), one.okun.rows("SELECT * FROM ledger")
    note = (await one.presses(one.anna, "fishing.button.hook")).note
    assert any(one.says_it(f"fishing.quick.{number}", note) for number in range(1, bot.QUICK_JOKES + 1))
    assert (await one.presses(one.borys, "fishing.button.hook", of=one.anna)).note == one.t("button.not_yours")
    assert (one.okun.rows("SELECT * FROM fishing_lines"), one.okun.rows("SELECT * FROM ledger")) == before


async def the_first_catches(one: Evening) -> None:
    """The price falls: Anna went long, Vira short. It rises: Borys went long."""
    one.price(TON, 4.9)
    await one.presses(one.anna, "fishing.button.hook")
    assert bot.pnl_words(one.lang, -4) in one.newest() and one.have(one.anna, "dollars") == 0
    assert one.t("fishing.spared", due="−40") in one.newest()
    text = await one.says(one.vira, "/hook")
    assert bot.pnl_words(one.lang, 4) in text and one.have(one.vira, "dollars") == 40
    assert one.t("fishing.first") in text and one.t("fishing.lesson.3") in text
    one.price(TON, 10.5)
    text = await one.says(one.borys, "/hook")
    assert bot.pnl_words(one.lang, 220) in text and one.have(one.borys, "dollars") == 2200
    assert one.fish_of(one.borys) == ["legendary"]
    assert one.t("fishing.levelled", level=3, stake=bot.with_spaces(3000)) in text


async def rods_and_waters(one: Evening) -> None:
    """Borys buys the best rod and takes its other side; Hlib may not change the water, Anna may."""
    await one.menu(one.borys, "menu.to.pond", "fishing.button.rods")
    await one.presses(one.borys, one.t("fishing.button.rod", times=4, price=2000))
    assert (await one.presses(one.borys, one.t("fishing.button.pay", price=2000))).note == one.t("fishing.rod_bought")
    assert "×4" in (await one.presses(one.borys, "fishing.button.short")).note
    await one.menu(one.hlib, "menu.to.pond", "fishing.button.pair")
    assert (await one.presses(one.hlib, "BTC")).note == one.t("error.admins_only")
    await one.menu(one.anna, "menu.to.pond", "fishing.button.pair")
    assert (await one.presses(one.anna, "BTC")).note == one.t("fishing.pair_set", pair="BTC")
    await one.presses(one.borys, "fishing.button.again")
    assert one.lines(one.borys) == [("BTC", -4, 3000)] and one.lines(one.hlib)[0][0] == "TON"
    one.price(BTC, 66_000.0)
    assert bot.pnl_words(one.lang, -40) in await one.says(one.borys, "/hook")
    assert one.have(one.borys, "dollars") == 0 and one.fish_of(one.borys) == ["legendary", "trash"]


async def an_empty_tin(one: Evening) -> None:
    """Vira has a line in ten other ponds and no worms left; she buys a tin."""
    ponds = [one.stage.telegram.group(f"Pond {number}", [one.vira.user]) for number in range(10)]
    for pond in ponds:
        one.stage.telegram.say(pond, one.vira.user, "/cast")
    await one.stage.settled(one.okun)
    assert one.have(one.vira, "bait") == 0
    assert one.says_it("fishing.no_bait", await one.says(one.vira, "/cast")) and not one.lines(one.vira)
    assert await one.says(one.vira, "/buy") == one.t("private.sent")
    await one.presses(one.vira, "10 🪱 – 100 ⭐", one.vira.chat)
    one.stage.telegram.pay(one.vira.chat, one.vira.user)
    await one.stage.telegram.until(lambda: one.says_it("buy.thanks", one.newest(one.vira.chat)), PATIENCE)
    assert "BTC" in await one.says(one.vira, "/cast")
    assert one.have(one.vira, "bait") == 9 and one.lines(one.vira) == [("BTC", -2, 1000)]


async def bragging(one: Evening) -> None:
    """Borys shows his collection and tells the world; Vira opens the link."""
    assert bot.pnl_words(one.lang, 220) in await one.says(one.borys, "/catches")
    assert bot.pnl_words(one.lang, -40) in (await one.presses(one.borys, "▶")).text
    assert bot.pnl_words(one.lang, 220) in (await one.presses(one.borys, "◀")).text
    had = one.have(one.borys, "bait")
    assert (await one.presses(one.borys, "fishing.button.share")).note == one.t("trophies.shared.given")
    assert one.have(one.borys, "bait") == had + 1
    link = parse_qs(urlsplit(link_in(one.sent())).query)["url"][0]
    start = parse_qs(urlsplit(link).query)["start"][0]
    said = await one.says(one.vira, f"/start {start}", one.vira.chat)
    assert one.says_it("trophies.of", said, name="Borys", pnl=bot.pnl_words(one.lang, 220), pair="TON")


def link_in(messages: list[Json]) -> str:
    """The newest that a button leads to."""
    rows = [row for message in messages for row in message.get("reply_markup", {}).get("inline_keyboard", ())]
    return str([one["url"] for row in rows for one in row if "url" in one][-1])


async def the_night(one: Evening) -> None:
    """The bot is killed before it can show what Hlib caught; when it comes back the exchange does not answer."""
    one.stage.telegram.fault("timeout", "sendPhoto")
    one.stage.telegram.say(one.group, one.hlib.user, "/hook")
    await until(lambda: not one.stage.telegram.faults, PATIENCE)
    await one.okun.kill()
    prices = dict(one.stage.gemini.prices)
    one.stage.gemini.prices.clear()
    await one.okun.start()
    await one.sees(bot.pnl_words(one.lang, 220))
    await one.stage.settled(one.okun)
    assert sum("👤 Hlib" in words_of(message) for message in one.sent() if "photo" in message) == 1
    assert one.have(one.hlib, "dollars") == 2200

    assert one.t("fishing.no_price") in await one.says(one.vira, "/status")
    assert await one.says(one.vira, "/hook") == one.t("fishing.no_price") and one.lines(one.vira)
    await one.says(one.hlib, "/cast")
    await one.sees(one.t("fishing.practice"))
    age_lines(one.okun, 3600)
    assert one.t("fishing.practice") in await one.says(one.hlib, "/hook")

    one.stage.gemini.prices |= prices | {BTC: 60_000.0}
    assert bot.pnl_words(one.lang, 200 / 11) in await one.says(one.vira, "/hook")


async def the_leaderboard(one: Evening) -> None:
    """Places are what the catches come to, without those of practice; balances are what the ledger comes to."""
    names = {person.user["id"]: person.user["first_name"] for person in (one.anna, one.borys, one.vira, one.hlib)}
    sums = "SELECT user_id, sum(pnl) FROM catches WHERE practice = 0 GROUP BY user_id ORDER BY 2 DESC"
    board = [(names[user_id], bot.pnl_words(one.lang, pnl)) for user_id, pnl in one.okun.rows(sums)]
    assert [name for name, _ in board] == ["Hlib", "Borys", "Vira", "Anna"]
    for period in ("day", "week"):
        said = await one.says(one.borys, f"/top {period}")
        assert one.t(f"trophies.period.{period}") in said
        for place, (name, pnl) in zip((*bot.MEDALS, "4."), board, strict=True):
            assert f"{place} {name} · {pnl} · " in said
    said = await one.says(one.borys, "/top", one.borys.chat)
    assert one.says_it("trophies.own", said, place=2, total=4)
    assert one.says_it("trophies.better", said, percent=bot.decimal(one.lang, 50.0, 1))
    have = bot.amount_words({currency: one.have(one.vira, currency) for currency in bot.ICONS})
    assert one.t("balance.have", have=have) in await one.says(one.vira, "/balance", one.vira.chat)
    check_all(one.okun.rows)


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_an_evening_of_a_group(stage: Stage, lang: str) -> None:
    okun = await stage.bot(BRISK, TIMEZONE=afternoon(), GROUP_POLICY="mention").start()
    await play_the_evening(Evening(stage, okun, lang))
    await until(lambda: not okun.rows("SELECT 1 FROM jobs WHERE state IN ('queued', 'running')"), PATIENCE)
    assert await okun.stop() == 0
    refused = [call for call in stage.telegram.calls if not call.ok]
    assert refused == [] and stage.parked(okun) == 0
    assert re.findall(r"ERROR|Traceback", okun.log()) == []
