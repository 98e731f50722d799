"""What coins cost: asked for seldom, by one for all, believed only where it makes sense; else a practice water."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import AsyncIterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import NOON, TEXTS, TestClock, make_settings

import bot

USD = {"the-open-network": 5.12, "bitcoin": 61000, "ethereum": 3000.5, "solana": 150.0, "dogecoin": 0.2}
GOOD = {coin: {"usd": usd} for coin, usd in USD.items()}
PRICES = {"TON": 5.12, "BTC": 61000.0, "ETH": 3000.5, "SOL": 150.0, "DOGE": 0.2}


class HastyClock(TestClock):
    """Sleeps by moving on."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.passed += seconds
        await asyncio.sleep(0)


class Market:
    """An exchange over HTTP: (status, headers, body) in turn, the last for ever; what was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, dict[str, str], bytes]] = []
        self.asked: list[str] = []
        self.open: asyncio.Event | None = None
        self.came = asyncio.Event()
        self.url = ""

    def says(self, *answers: Any) -> None:
        """Bodies as objects or bytes, or statuses, or (status, Retry-After)."""
        self.answers = []
        for one in answers:
            if isinstance(one, int):
                self.answers.append((one, {}, b"{}"))
            elif isinstance(one, tuple):
                self.answers.append((one[0], {"Retry-After": str(one[1])}, b"{}"))
            else:
                self.answers.append((200, {}, one if isinstance(one, bytes) else bot.json_bytes(one)))

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(str(request.url))
        self.came.set()
        if self.open:
            await self.open.wait()
        status, headers, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return web.Response(status=status, headers=headers, body=body)


@pytest.fixture(autouse=True)
def read_texts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "Texts", lambda folder: TEXTS)


@pytest.fixture
async def market() -> AsyncIterator[Market]:
    market = Market()
    market.says(GOOD)
    server = web.Server(market.answer)  # type: ignore[arg-type]
    runner = web.ServerRunner(server)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    market.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield market
    if market.open:
        market.open.set()
    await runner.cleanup()


@pytest.fixture
async def app(market: Market, tmp_path: Path) -> AsyncIterator[bot.App]:
    app = make_app(tmp_path, price_api_url=f"{market.url}/api/v3")
    yield app
    await app.http.close()


def make_app(tmp_path: Path, **values: Any) -> bot.App:
    settings = make_settings(db_path=str(tmp_path / "okun.db"), **values)
    return bot.App(settings, clock=HastyClock(), dice=random.Random(3))


def clock(app: bot.App) -> HastyClock:
    assert isinstance(app.clock, HastyClock)
    return app.clock


async def price(app: bot.App, pair: str = "TON") -> float | None:
    quote = await bot.market_price(app, pair)
    return quote.usd if quote else None


# -- asking


async def test_all_pairs_are_asked_for_at_once(app: bot.App, market: Market) -> None:
    assert {pair: await price(app, pair) for pair in bot.PAIRS} == PRICES
    [asked] = market.asked
    path, _, query = asked.partition("?")
    assert path.endswith("/api/v3/simple/price")
    assert dict(part.split("=") for part in query.split("&")) == {"ids": ",".join(USD), "vs_currencies": "usd"}


async def test_a_hundred_who_ask_at_once_ask_once(app: bot.App, market: Market) -> None:
    market.open = asyncio.Event()
    askers = [asyncio.create_task(price(app, pair)) for pair in bot.PAIRS for _ in range(20)]
    await market.came.wait()
    market.open.set()
    assert [*dict.fromkeys(await asyncio.gather(*askers))] == [*PRICES.values()]
    assert len(market.asked) == 1


@pytest.mark.parametrize(("after", "requests"), [(0.0, 1), (9.9, 1), (10.1, 2), (3600.0, 2)])
async def test_a_price_holds_for_ten_seconds(app: bot.App, market: Market, after: float, requests: int) -> None:
    await price(app)
    clock(app).passed += after
    market.says({**GOOD, "the-open-network": {"usd": 6}})
    assert await price(app) == (5.12 if requests == 1 else 6.0) and len(market.asked) == requests


async def test_it_goes_through_the_proxy(market: Market, tmp_path: Path) -> None:
    app = make_app(tmp_path, price_api_url="http://prices.invalid/v3", proxy_url=market.url)
    try:
        assert await price(app) == 5.12
    finally:
        await app.http.close()
    assert market.asked[0].startswith("http://prices.invalid/v3/simple/price")


# -- what is believed

ODD: list[Any] = [
    None, True, "5.12", "", [], {}, {"usd": None}, {"usd": "5.12"}, {"usd": True}, {"usd": 0}, {"usd": -5.12},
    {"usd": []}, {"usd": 1e-320}, {"usd": 1e9}, {"usd": 1e300}, {"eur": 5.12}, {"USD": 5.12}, 5.12,
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=repr)
def test_only_a_number_above_zero_is_a_price(odd: Any) -> None:
    body = bot.json_bytes({**GOOD, "the-open-network": odd})
    assert bot.read_prices(body) == {pair: usd for pair, usd in PRICES.items() if pair != "TON"}


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"5.12", b"<html>busy</html>", b"\xff\xfe", b'{"the-open-network": {"usd": NaN}}',
     b'{"the-open-network": {"usd": Infinity}}', b'{"the-open-network": {"usd": -Infinity}}',
     b'{"status": {"error_code": 429}}'],
)  # fmt: skip
def test_rubbish_holds_no_price(body: bytes) -> None:
    assert bot.read_prices(body) == {}


def test_a_coin_the_exchange_does_not_know_leaves_the_others() -> None:
    assert bot.read_prices(bot.json_bytes({"bitcoin": {"usd": 61000}})) == {"BTC": 61000.0}


async def test_a_pair_without_a_price_keeps_its_last_one(app: bot.App, market: Market) -> None:
    await price(app)
    market.says({**GOOD, "the-open-network": {"usd": -1}, "bitcoin": {"usd": 7}})
    clock(app).passed += 20
    quote = await bot.market_price(app, "TON")
    assert quote and quote.usd == 5.12 and quote.age_s >= 20
    assert await price(app, "BTC") == 7.0


# -- failing


@pytest.mark.parametrize("fault", [500, 502, 503, 429, (429, 1), (503, 2), b"not json", {}])
async def test_what_may_pass_is_tried_again(app: bot.App, market: Market, fault: Any) -> None:
    market.says(fault, GOOD)
    assert await price(app) == 5.12 and len(market.asked) == 2
    assert len(clock(app).slept) == 1
    assert clock(app).slept[0] >= (fault[1] if isinstance(fault, tuple) else 0.05)


async def test_it_gives_up_after_three_tries(app: bot.App, market: Market) -> None:
    market.says(500)
    assert await price(app) is None and len(market.asked) == bot.PRICE_TRIES
    first, second = clock(app).slept
    assert first <= 0.5 and second <= 1.0  # exponential


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418])
async def test_what_asking_again_cannot_help_is_not_tried_again(app: bot.App, market: Market, status: int) -> None:
    market.says(status)
    assert await price(app) is None and len(market.asked) == 1


async def test_a_failure_holds_for_ten_seconds_too(app: bot.App, market: Market) -> None:
    market.says(404)
    for _ in range(20):
        assert await price(app) is None
    assert len(market.asked) == 1
    clock(app).passed += 10.1
    market.says(GOOD)
    assert await price(app) == 5.12


async def test_a_long_pause_is_kept_to_and_nobody_waits_for_it(app: bot.App, market: Market) -> None:
    market.says((429, 300))
    assert await price(app) is None and clock(app).slept == []
    market.says(GOOD)
    for _ in range(29):
        clock(app).passed += 10.2
        assert await price(app) is None
    assert len(market.asked) == 1
    clock(app).passed += 10.2
    assert await price(app) == 5.12


@pytest.mark.parametrize(
    "header",
    ["", "soon", "-5", "1e9", "Sat, 31 Dec 1999 23:59:59 GMT", "٣", "Wed, 99 Oct 2026 07:28:00 GMT", ",", "1 1 1 1",
     "Fri, 31 Dec 99999999999999 23:59:59 GMT"],
)  # fmt: skip
def test_an_odd_pause_is_none(header: str) -> None:
    assert bot.retry_pause(429, header, NOON) == 0.0


def test_a_pause_may_be_told_as_a_date() -> None:
    assert bot.retry_pause(503, formatdate(NOON + 90, usegmt=True), NOON) == 90.0


@pytest.mark.parametrize("header", ["86400", "9" * 400, formatdate(NOON + 86_400, usegmt=True)])
def test_no_pause_closes_the_market_for_a_day(header: str) -> None:
    assert bot.retry_pause(429, header, NOON) == bot.PRICES_HELD_S


async def test_an_endless_answer_is_not_read_to_its_end(app: bot.App, market: Market) -> None:
    huge = b'{"bitcoin": {"usd": 61000}, "filler": "' + b"x" * bot.MAX_PRICES_BYTES + b'"}'
    market.says(huge)
    assert await price(app, "BTC") is None
    market.says(GOOD)
    clock(app).passed += 11
    assert await price(app, "BTC") == 61000


def test_thousands_of_brackets_hold_no_price() -> None:
    assert bot.read_prices(b"[" * bot.MAX_PRICES_BYTES) == {}


async def test_while_the_exchange_is_away_nobody_waits_long_but_the_first(
    app: bot.App, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    market.says(404)
    assert (await bot.water_of(app, "TON")).practice
    monkeypatch.setattr(bot, "PRICE_SOON_S", 0.01)
    clock(app).passed += 11
    market.open = asyncio.Event()
    market.says(GOOD)
    assert (await bot.water_of(app, "TON")).practice  # it does not answer at all now
    market.open.set()
    flight = app.looks._loading.get("")
    await asyncio.gather(*([flight] if flight else ()))
    assert await bot.water_of(app, "TON") == bot.Quote(5.12)


async def test_a_refused_connection_is_no_price(tmp_path: Path) -> None:
    app = make_app(tmp_path, price_api_url="http://127.0.0.1:1/v3")
    try:
        assert await price(app) is None and len(clock(app).slept) == bot.PRICE_TRIES - 1
    finally:
        await app.http.close()


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), aiohttp.ClientPayloadError()])
async def test_a_broken_answer_is_no_price(app: bot.App, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    async def broken(app: bot.App) -> Any:
        raise error

    monkeypatch.setattr(bot, "ask_exchange", broken)
    assert await price(app) is None


@pytest.mark.parametrize(("age", "holds"), [(10.0, True), (59.9, True), (60.0, True), (60.1, False), (3600.0, False)])
async def test_the_last_good_price_holds_for_a_minute(app: bot.App, market: Market, age: float, holds: bool) -> None:
    await price(app)
    market.says(404)
    clock(app).passed += age
    quote = await bot.market_price(app, "TON")
    assert (quote and (quote.usd, round(quote.age_s, 6))) == ((5.12, age) if holds else None)
    water = await bot.water_of(app, "TON")
    assert water.practice is not holds


async def test_where_there_is_a_good_price_a_slow_exchange_is_not_waited_for(
    app: bot.App, market: Market, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bot, "PRICE_SOON_S", 0.01)
    await price(app)
    market.open = asyncio.Event()
    clock(app).passed += 30
    assert await price(app) == 5.12
    market.says({"the-open-network": {"usd": 9}})
    market.open.set()
    flight = app.looks._loading.get("")
    await asyncio.gather(*([flight] if flight else ()))
    assert await price(app) == 9.0  # the question that was under way brought it
    assert len(market.asked) == 2


# -- the practice water


def practice(now: float, pair: str = "TON", seed: str = "seed") -> float:
    quote = bot.practice_price(pair, now, seed)
    assert quote.practice and quote.age_s == 0.0
    return quote.usd


def test_the_practice_water_is_where_it_was_after_a_restart(app: bot.App, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_app(tmp_path / "other")
    assert bot.made_up_price(app, "TON") == bot.made_up_price(other, "TON")
    assert practice(NOON) == practice(NOON + 9.9) != practice(NOON + 10)


def test_nobody_knows_the_water_of_another_bot() -> None:
    walks = {(seed, pair): [practice(NOON + 10 * n, pair, seed) / bot.PAIRS[pair].about for n in range(50)]
             for seed in ("one", "two") for pair in bot.PAIRS}  # fmt: skip
    assert len({tuple(walk) for walk in walks.values()}) == len(walks)


def test_the_practice_water_is_a_random_walk() -> None:
    block_s = bot.PRACTICE_STEPS * bot.PRACTICE_STEP_S
    start = NOON // block_s * block_s - 10 * 1500
    prices = [practice(start + 10 * n) for n in range(3000)]
    steps = [math.log(after / before) for before, after in itertools.pairwise(prices)]
    spread = math.sqrt(sum(step * step for step in steps) / len(steps))
    assert 0.8 * bot.PRACTICE_PACE < spread < 1.5 * bot.PRACTICE_PACE
    assert max(map(abs, steps)) < 8 * bot.PRACTICE_PACE  # no jumps, also not from one block to the next
    assert abs(sum(step > 0 for step in steps) / len(steps) - 0.5) < 0.05


@pytest.mark.parametrize("pair", bot.PAIRS)
def test_the_practice_water_never_runs_away(pair: str) -> None:
    shares = [practice(NOON + 86_400 * day, pair) / bot.PAIRS[pair].about for day in range(500)]
    assert min(shares) > 0.5 and max(shares) < 2.0 and max(shares) / min(shares) > 1.2
