"""The web page in headless Chromium: logged out, with a wrong token, logged in; narrow and wide; what it shows is what
the database holds."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from fakes import BOT, BotProcess, Json

from .conftest import KEY, PATIENCE, TOKEN, Stage, free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WEB_TOKEN = "open-sesame-this-is-the-web-token"
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here")


class Browser:
    """One tab of Chromium, by its remote debugging protocol; `errors`: what it complained about."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[Json]] = {}
        self.errors: list[str] = []
        self.requested: list[str] = []
        self._loaded = asyncio.Event()
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            else:
                self._note(event["method"], event["params"])

    def _note(self, name: str, params: Json) -> None:
        if name == "Page.loadEventFired":
            self._loaded.set()
        elif name == "Network.requestWillBeSent":
            self.requested.append(params["request"]["url"])
        elif name == "Runtime.exceptionThrown" or (name == "Runtime.consoleAPICalled" and params["type"] == "error"):
            self.errors.append(json.dumps(params)[:500])
        elif name == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    async def call(self, method: str, **params: Any) -> Json:
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        reply: Json = await asyncio.wait_for(answer, PATIENCE)
        assert "error" not in reply, (method, reply)
        return dict(reply["result"])

    async def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        done = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(PATIENCE):
            while not await self.run(script):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def open(self, url: str) -> None:
        self._loaded.clear()
        await self.call("Page.navigate", url=url)
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)
        await self.until("document.readyState === 'complete'")  # what was loaded may have been the page before

    async def size(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                        mobile=False)  # fmt: skip
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def type(self, text: str) -> None:
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                            **({"text": "\r"} if key == "Enter" and kind == "keyDown" else {}))  # fmt: skip

    async def enter(self, token: str) -> None:
        """Type a token into the login form and send it."""
        self._loaded.clear()
        await self.run("document.getElementById('token').focus()")
        await self.type(token)
        await self.press("Enter", 13)
        await asyncio.wait_for(self._loaded.wait(), PATIENCE)

    async def picture(self, path: Path) -> None:
        shot = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    async def close(self) -> None:
        await self._socket.close()
        await self._reader


@contextlib.asynccontextmanager
async def chromium(folder: Path, *options: str) -> AsyncIterator[Browser]:
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        CHROMIUM or "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-dev-shm-usage", "--disable-background-networking", f"--remote-debugging-port={port}",
        f"--user-data-dir={folder}", *options, "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with aiohttp.ClientSession() as http:
            tab = await debugged_tab(http, port)
            async with http.ws_connect(tab, max_msg_size=2**27) as socket:
                browser = Browser(socket)
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await browser.call(f"{domain}.enable")
                yield browser
                await browser.close()
    finally:
        process.kill()
        await process.wait()


async def debugged_tab(http: aiohttp.ClientSession, port: int) -> str:
    async with asyncio.timeout(PATIENCE):
        while True:
            with contextlib.suppress(aiohttp.ClientError, IndexError):
                async with http.get(f"http://127.0.0.1:{port}/json") as answer:
                    tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
                    return str(tabs[0]["webSocketDebuggerUrl"])
            await asyncio.sleep(0.05)


@pytest.fixture
async def browser(tmp_path: Path) -> AsyncIterator[Browser]:
    async with chromium(tmp_path / "chromium", "--lang=en", "--accept-lang=en") as browser:
        yield browser


def fill(database: Path, *, minutes: bool = True) -> None:
    """A day of a bot: an hour like any other, ten to eleven hours ago; before it the bot was down for an hour."""
    now = int(time.time()) // 60
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.executescript((BOT.parent / "schema.sql").read_text("utf-8"))
        connection.execute("INSERT INTO chats (chat_id, kind, title) VALUES (1, 'private', 'SECRET TITLE')")
        connection.execute("INSERT INTO chats (chat_id, kind, title) VALUES (-5, 'group', 'SECRET GROUP')")
        connection.execute("INSERT INTO users (user_id, name) VALUES (1, 'SECRET NAME')")
        ages = [age for age in range(1, 1440) if not 660 <= age < 720] if minutes else []
        connection.executemany(
            "INSERT INTO minutes VALUES (?, 9, 4, 2, 0, 1500, 4250, 2, 1, 250, 30, 10, 83000, 1)",
            [(now - age,) for age in ages],
        )
        connection.commit()


@pytest.fixture
async def address(stage: Stage) -> str:
    """The page of a bot with that day behind it."""
    bot = await served(stage)
    return f"http://127.0.0.1:{bot.env['WEB_PORT']}/"


async def served(stage: Stage, *, minutes: bool = True) -> BotProcess:
    bot = stage.bot(WEB_PORT=free_port(), WEB_TOKEN=WEB_TOKEN, LANGUAGE="en")
    await asyncio.to_thread(fill, bot.database, minutes=minutes)
    await bot.start()
    return bot


STEPS = {"1h": 60, "7d": 3600, "14d": 7200, "24h": 600}
SHOWN = "document.getElementById('tile-uptime')?.textContent.length > 1 && charts.every(chart => chart.drawn)"
# as wide as the window, and no text of a chart cut off
NOTHING_WIDER = "document.documentElement.scrollWidth <= innerWidth"
TEXTS_INSIDE = """[...document.querySelectorAll('figure svg text')].every(text => {
    const inner = text.getBoundingClientRect(), outer = text.closest('svg').getBoundingClientRect();
    return inner.left >= outer.left - 1 && inner.right <= outer.right + 1;
})"""


async def read_point(browser: Browser, chart: str, hours_ago: float) -> list[str]:
    """The readout of a chart at a time ago, as lines; of the time range 24h."""
    script = f"(c => (c.choose(Math.floor((24 - {hours_ago}) * 6)), c.tip.innerText))(charts.find(c => c.spec.name === '{chart}'))"  # noqa: E501
    return str(await browser.run(script)).splitlines()[1:]


async def test_logged_out_wrong_token_and_logged_in(address: str, browser: Browser, stage: Stage) -> None:
    await browser.open(address)
    assert await browser.run("document.querySelectorAll('form').length") == 1
    assert await browser.run("document.body.textContent.includes('SECRET')") is False
    assert browser.errors == []

    await browser.enter("not-the-token-but-as-long-as-it")
    assert "That is not the token" in await browser.run("document.querySelector('[role=alert]').textContent")
    assert await browser.run("document.cookie") == ""
    browser.errors.clear()  # Chromium notes the 403

    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    assert await browser.run("location.pathname") == "/"
    assert await browser.run("document.cookie") == ""  # no script can read it
    assert await browser.run("document.getElementById('health').textContent") == "All is well"
    assert WEB_TOKEN not in await browser.run("document.documentElement.outerHTML")
    assert "SECRET" not in await browser.run("document.documentElement.outerHTML")
    assert browser.errors == []
    assert all(url.startswith((address, "data:", "about:")) for url in browser.requested)

    [bot] = stage.bots
    assert await bot.stop() == 0
    left = b"".join(path.read_bytes() for path in stage.directory.iterdir() if path.is_file())
    assert b"wrong token for the web page" in left  # the log, at DEBUG, is among it
    for secret in (WEB_TOKEN, "not-the-token", TOKEN.partition(":")[2], KEY):
        assert secret.encode() not in left, secret


async def test_it_shows_what_the_database_holds(address: str, browser: Browser) -> None:
    await browser.open(address)
    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    assert await browser.run("document.getElementById('tile-people').textContent") == "2 / 1"
    # ten minutes: four messages and two replies in each, of two calls one failed
    assert await read_point(browser, "took", 5) == ["half within (p50): 1.5 s", "95 of 100 within (p95): 4.25 s"]
    assert await read_point(browser, "activity", 5) == ["heard: 40", "replies: 20"]
    assert await read_point(browser, "errors", 5) == ["in the log: 0", "failed model calls: 10"]
    assert await read_point(browser, "cost", 5) == ["0.0025 $"]
    assert await read_point(browser, "hits", 5) == ["75 %"]
    assert await read_point(browser, "memory", 5) == ["85 MB"]  # 83,000 KiB
    assert await read_point(browser, "took", 11.5) == ["bot was down"]
    assert await browser.run("document.querySelectorAll('#chart-took .gap').length") == 1
    assert browser.errors == []


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("dark", [False, True])
async def test_it_fits_narrow_and_wide_windows(
    address: str, browser: Browser, width: int, dark: bool, tmp_path: Path
) -> None:
    await browser.size(width, dark=dark)
    await browser.open(address)
    assert await browser.run(NOTHING_WIDER)
    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    for range_ in STEPS:
        await browser.run(f"document.querySelector('[data-range=\"{range_}\"]').click()")
        await browser.until(f"latest.step === {STEPS[range_]}")
        assert await browser.run(NOTHING_WIDER) and await browser.run(TEXTS_INSIDE), range_
    columns = await browser.run(
        "getComputedStyle(document.getElementById('charts')).gridTemplateColumns.split(' ').length"
    )
    assert columns == (1 if width == 360 else 2)
    assert browser.errors == []


async def test_it_can_be_used_from_the_keyboard(address: str, browser: Browser) -> None:
    await browser.open(address)
    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    await browser.run("document.querySelector('#chart-took svg').focus()")
    await browser.press("Home", 36)
    first = await browser.run("charts[0].tip.innerText")
    await browser.press("ArrowRight", 39)
    assert await browser.run("charts[0].tip.innerText") != first
    await browser.press("Escape", 27)
    assert await browser.run("charts[0].tip.hidden")
    named = "charts.every(chart => chart.title.textContent && chart.desc.textContent)"
    assert await browser.run(named)
    assert browser.errors == []


async def test_it_goes_on_by_itself_and_says_when_the_bot_is_gone(address: str, browser: Browser, stage: Stage) -> None:
    await browser.open(address)
    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    at = await browser.run("latest.at")
    await browser.until(f"latest.at > {at}")
    assert browser.errors == []
    await stage.bots[0].kill()
    await browser.run("refresh()")
    await browser.until("document.getElementById('updated').textContent.startsWith('No connection')")
    await stage.bots[0].start()  # and a restart ends no session
    await browser.run("refresh()")
    await browser.until("document.getElementById('updated').textContent.startsWith('Updated')")


async def test_logging_out_ends_it(address: str, browser: Browser) -> None:
    await browser.open(address)
    await browser.enter(WEB_TOKEN)
    await browser.until(SHOWN)
    await browser.run("document.querySelector('form').submit()")
    await browser.until("document.getElementById('token') !== null")
    await browser.open(address)
    await browser.until("document.getElementById('token') !== null")


async def test_a_bot_without_a_past_says_so(stage: Stage, browser: Browser) -> None:
    bot = await served(stage, minutes=False)
    await browser.open(f"http://127.0.0.1:{bot.env['WEB_PORT']}/")
    await browser.enter(WEB_TOKEN)
    await browser.until("!document.getElementById('empty').hidden")
    assert (await browser.run("document.getElementById('empty').textContent")).startswith("Nothing has been recorded")
    assert browser.errors == []
