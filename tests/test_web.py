"""The web server: who gets in, what is answered and with which headers, health, and that no secret comes out."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import logging
import re
import sqlite3
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from conftest import ANNA, NOON, TEXTS, Later, Okun, Room, settings
from prometheus_client.parser import text_string_to_metric_families

import bot

TOKEN = "open-sesame-this-is-the-web-token"
HOOK_SECRET = "the-secret-of-the-webhook"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
SAME = {"Sec-Fetch-Site": "same-origin"}
EVERYWHERE = (
    "/",
    "/stats.json",
    "/stats/cache",
    "/metrics",
    "/login",
    "/logout",
    "/favicon.ico",
    "/../bot.py",
    "/.env",
)


class Site:
    """The web server and a visitor: `get` and `post` give (status, headers, body)."""

    def __init__(self, okun: Okun) -> None:
        self.okun, self.healthy = okun, True
        self.web = bot.Web(okun.app, okun.inbox.take, lambda: self.healthy)
        self.http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        self.seen: list[str] = []  # all headers and bodies

    @property
    def port(self) -> int:
        return int(self.web._runner.addresses[0][1])

    async def call(self, method: str, path: str, **options: Any) -> tuple[int, Any, str]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.http.request(method, url, allow_redirects=False, **options) as answer:
            body = (await answer.read()).decode()
            self.seen += [str(answer.headers), body]
            return answer.status, answer.headers, body

    async def get(self, path: str, **headers: str) -> tuple[int, Any, str]:
        return await self.call("GET", path, headers=headers)

    async def login(self, token: str, path: str = "/login", **headers: str) -> tuple[int, Any, str]:
        return await self.call("POST", path, data={"token": token}, headers={**SAME, **headers})

    async def cookie(self) -> dict[str, str]:
        """The header of somebody who logged in."""
        _, headers, _ = await self.login(TOKEN)
        return {"Cookie": headers["Set-Cookie"].partition(";")[0]}

    async def raw(self, data: bytes) -> bytes:
        """The answer to bytes that need not be HTTP."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        answer = await reader.read(65536)
        writer.close()
        self.seen.append(answer.decode("latin-1"))
        return answer


@contextlib.asynccontextmanager
async def serving(okun: Okun) -> AsyncIterator[Site]:
    site = Site(okun)
    await site.web.start()
    try:
        yield site
    finally:
        await site.http.close()
        await site.web.close()


@pytest.fixture
async def site(okun: Okun) -> AsyncIterator[Site]:
    await okun.restart(web_token=TOKEN, webhook_url="https://okun.example/hook", webhook_secret=HOOK_SECRET)
    async with serving(okun) as site:
        yield site


# -- who gets in


async def test_without_a_token_only_the_health_is_served(okun: Okun) -> None:
    async with serving(okun) as site:
        for path in EVERYWHERE:
            for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer x"}):
                assert (await site.get(path, **headers))[0] == 404, path
        assert (await site.login(""))[0] == 404
        assert (await site.get("/healthz"))[0] == 200


async def test_nothing_is_told_to_strangers(okun: Okun, site: Site, chat: Room) -> None:
    await chat.say("hi")
    for path in ("/stats.json", "/stats/cache", "/metrics"):
        for headers in ({}, {"Cookie": "okun_session=1.2"}, {"Authorization": "Basic x"}, {"Authorization": TOKEN}):
            status, answer, body = await site.get(path, **headers)
            assert (status, body) == (401, "401\n") and answer["WWW-Authenticate"].startswith("Bearer"), path
    status, _, body = await site.get("/")
    assert (
        status == 200
        and 'type="password"' in body
        and "<script" not in body
        and "tile" not in body.split("</style>")[1]
    )


async def test_tools_come_in_with_the_token_alone(site: Site) -> None:
    for path in ("/", "/stats.json", "/stats/cache", "/metrics"):
        assert (await site.get(path, **BEARER))[0] == 200
        assert (await site.get(path, Authorization=f"bearer  {TOKEN} "))[0] == 200


async def test_a_browser_logs_in_and_out(site: Site) -> None:
    status, headers, body = await site.login(TOKEN)
    assert (status, headers["Location"], body) == (303, "/", "")
    cookie = headers["Set-Cookie"]
    assert {"HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=2592000"} <= {part.strip() for part in cookie.split(";")}
    assert "Secure" not in cookie and TOKEN not in cookie
    known = {"Cookie": cookie.partition(";")[0]}
    assert 'id="charts"' in (await site.get("/", **known))[2]
    assert (await site.get("/stats.json", **known))[0] == 200
    status, headers, _ = await site.call("POST", "/logout", headers={**SAME, **known})
    assert status == 303 and 'okun_session=""' in headers["Set-Cookie"] and "Max-Age=0" in headers["Set-Cookie"]


async def test_behind_a_proxy_with_tls_the_cookie_is_secure(site: Site) -> None:
    _, headers, _ = await site.login(TOKEN, **{"X-Forwarded-Proto": "https"})
    assert "Secure" in headers["Set-Cookie"]


async def test_a_session_outlives_a_restart_but_not_a_new_token(okun: Okun, site: Site) -> None:
    known = await site.cookie()
    await okun.restart()
    async with serving(okun) as again:
        assert (await again.get("/stats.json", **known))[0] == 200
    await okun.restart(web_token=TOKEN + "2")
    async with serving(okun) as other:
        assert (await other.get("/stats.json", **known))[0] == 401


async def test_a_session_ends_after_30_days(okun: Okun, site: Site) -> None:
    known = await site.cookie()
    okun.clock.start += 30 * 86_400 - 1
    assert (await site.get("/stats.json", **known))[0] == 200
    okun.clock.start += 1
    assert (await site.get("/stats.json", **known))[0] == 401


async def test_a_forged_cookie_opens_nothing(okun: Okun, site: Site) -> None:
    good = (await site.cookie())["Cookie"].partition("=")[2]
    ends, _, seal = good.partition(".")
    later_ = str(int(ends) + 1)
    for cookie in ("", ".", "x", f"{later_}.{seal}", f"{ends}.{seal[:-1]}", f"{ends}.", f"0{ends}.{seal}x",
                   f"-{ends}.{seal}", f"{ends}.{'0' * 64}", f"{'9' * 400}.{seal}", f"{ends}.секрет",
                   "9" * 7000):  # fmt: skip
        assert not site.web._door.knows(cookie), cookie
    assert site.web._door.knows(good)
    far = str(int(okun.clock.now()) + 31 * 86_400)
    assert not site.web._door.knows(f"{far}.{site.web._door._seal(far)}")


@pytest.mark.parametrize(
    "token", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "токен", "\ud800", "x" * 3000, "\0"]
)
async def test_a_wrong_token_is_refused_whatever_its_length(site: Site, token: str) -> None:
    assert site.web._door.right(token, "1.1.1.1") is False
    data = b"token=" + token.encode("utf-8", "surrogatepass")
    status, headers, body = await site.call("POST", "/login", data=data, headers={
        **SAME, "Content-Type": "application/x-www-form-urlencoded", "Accept-Language": "en"})  # fmt: skip
    assert status == 403 and "Set-Cookie" not in headers and TEXTS("en", "web.login.wrong") in body


async def test_the_token_is_compared_in_constant_time() -> None:
    names = set(bot.Door.right.__code__.co_names) | set(bot.Door.knows.__code__.co_names)
    assert "compare_digest" in names


# -- wrong tries


async def test_after_five_wrong_tries_one_has_to_wait_even_with_the_right_token(
    okun: Okun, site: Site, later: Later
) -> None:
    for _ in range(5):
        assert (await site.login("wrong-token-wrong"))[0] == 403
    for _ in range(3):
        status, headers, body = await site.login(TOKEN, **{"Accept-Language": "en"})
        assert (status, headers["Retry-After"]) == (429, "30") and "30 seconds" in body
        assert "Set-Cookie" not in headers
    status, headers, _ = await site.get("/metrics", **BEARER)
    assert (status, headers["Retry-After"]) == (429, "30")
    okun.clock.passed += 31
    assert (await site.login(TOKEN))[0] == 303


async def test_it_takes_longer_each_time_but_no_more_than_15_minutes(okun: Okun, site: Site) -> None:
    door, waits = site.web._door, []
    for _ in range(4):
        door.right("wrong", "2.2.2.2")
    for _ in range(7):
        door.right("wrong", "2.2.2.2")
        with pytest.raises(bot.Locked) as caught:
            door.right(TOKEN, "2.2.2.2")
        waits.append(round(caught.value.left_s))
        okun.clock.passed += caught.value.left_s + 0.01
    assert waits == [30, 60, 120, 240, 480, 900, 900]
    door.right("wrong", "1.1.1.1")  # somebody else is not held up


async def test_wrong_bearers_count_like_wrong_logins(site: Site) -> None:
    for _ in range(5):
        assert (await site.get("/metrics", Authorization="Bearer wrong"))[0] == 401
    assert (await site.get("/metrics", Authorization="Bearer wrong"))[0] == 429
    assert (await site.login(TOKEN))[0] == 429
    assert (await site.get("/", **BEARER))[0] == 429


async def test_who_is_in_stays_in_while_others_try(site: Site) -> None:
    known = await site.cookie()
    for _ in range(6):
        await site.login("wrong-token-wrong")
    assert (await site.get("/stats.json", **known))[0] == 200


async def test_wrong_tries_are_forgotten_after_15_quiet_minutes(okun: Okun, site: Site) -> None:
    for _ in range(2):
        for _ in range(4):
            assert site.web._door.right("wrong", "1.1.1.1") is False
        okun.clock.passed += 901
    for _ in range(5):
        site.web._door.right("wrong", "1.1.1.1")
    okun.clock.passed += 30 + 899  # the lock, and not quite as long behind it
    site.web._door.right("wrong", "1.1.1.1")
    with pytest.raises(bot.Locked) as caught:
        site.web._door.right(TOKEN, "1.1.1.1")
    assert caught.value.left_s == 60


async def test_the_right_token_clears_what_was_mistyped(site: Site) -> None:
    for _ in range(3):
        for _ in range(4):
            assert (await site.login("wrong-token-wrong"))[0] == 403
        assert (await site.login(TOKEN))[0] == 303


async def test_made_up_addresses_meet_the_limit_for_all(site: Site) -> None:
    statuses = [
        (await site.login("wrong-token-wrong", **{"X-Forwarded-For": f"10.0.{n // 250}.{n % 250}"}))[0]
        for n in range(60)
    ]
    assert statuses == [403] * 50 + [429] * 10
    assert (await site.login(TOKEN, **{"X-Forwarded-For": "10.9.9.9"}))[0] == 429


async def test_many_wrong_tries_hold_up_nobody_who_had_the_token(site: Site) -> None:
    door = site.web._door
    assert door.right(TOKEN, "1.1.1.1")
    for n in range(60):
        with contextlib.suppress(bot.Locked):
            door.right("wrong", f"10.0.0.{n}")
    assert door.right(TOKEN, "1.1.1.1")
    with pytest.raises(bot.Locked):
        door.right(TOKEN, "2.2.2.2")
    for _ in range(5):
        door.right("wrong", "1.1.1.1")
    with pytest.raises(bot.Locked):
        door.right(TOKEN, "1.1.1.1")


async def test_what_is_kept_of_tries_is_bounded(okun: Okun, site: Site) -> None:
    for n in range(5000):
        site.web._door._wrong_in_all = 0, 0.0
        site.web._door.right("wrong", f"10.{n // 65536}.{n // 256 % 256}.{n % 256}")
    assert len(site.web._door._wrong) == 2000


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.5", [], "203.0.113.5"),
        ("203.0.113.5", ["198.51.100.1"], "203.0.113.5"),  # not from a proxy of ours
        ("127.0.0.1", [], "127.0.0.1"),
        ("127.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("::1", ["6.6.6.6, 198.51.100.1"], "198.51.100.1"),  # the last is the proxy's own word
        ("127.0.0.1", ["6.6.6.6", "198.51.100.1"], "198.51.100.1"),
        ("127.0.0.1", ["rubbish"], "127.0.0.1"),
        ("127.0.0.1", ["6.6.6.6, "], "127.0.0.1"),
        ("127.0.0.1", ["2001:db8:1:2:3:4:5:6"], "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::1", [], "2001:db8:1:2::/64"),
        ("127.0.0.1", ["::ffff:198.51.100.1"], "198.51.100.1"),  # not the network that all of IPv4 is in
        ("", [], ""),
    ],
)
def test_a_try_counts_for_who_makes_it(peer: str, forwarded: list[str], address: str) -> None:
    assert bot.address_of(peer, forwarded) == address


# -- forms of other pages


@pytest.mark.parametrize(
    ("headers", "ours"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, True),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "null"}, True),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({"Sec-Fetch-Site": "none"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "http://okun.example"}, False),
        ({"Origin": "http://okun.example"}, True),
        ({"Origin": "https://OKUN.example"}, True),
        ({"Origin": "https://okun.example.evil.example"}, False),
        ({"Origin": "https://okun.example:8443"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": ""}, False),
        ({}, False),
    ],
)
async def test_forms_are_taken_from_our_own_page_alone(site: Site, headers: dict[str, str], ours: bool) -> None:
    headers = {"Host": "okun.example", **headers}
    for path, data in (("/login", {"token": TOKEN}), ("/logout", {})):
        status, answer, _ = await site.call("POST", path, data=data, headers=headers)
        assert status == (303 if ours else 403), path
        assert ("Set-Cookie" in answer) == ours


# -- headers, methods, sizes, rubbish


async def answers_of_all_kinds(site: Site) -> list[tuple[int, Any, str]]:
    big = io.BytesIO(b"token=" + b"x" * 100_000)
    return [
        await site.get("/healthz"), await site.get("/"), await site.get("/", **BEARER),
        await site.get("/stats.json", **BEARER), await site.get("/stats.json"), await site.get("/metrics", **BEARER),
        await site.get("/stats/cache", **BEARER), await site.get("/nothing"), await site.call("DELETE", "/"),
        await site.call("GET", "/login"), await site.call("POST", "/login", data=big, headers=SAME),
        await site.login("wrong-token-wrong"), await site.login(TOKEN), await site.call("POST", "/hook", data=b"{}"),
        await site.call("POST", "/hook", data=b"{", headers={"X-Telegram-Bot-Api-Secret-Token": HOOK_SECRET}),
        await site.call("HEAD", "/"), await site.call("OPTIONS", "/metrics"),
    ]  # fmt: skip


async def test_every_answer_has_its_headers(site: Site) -> None:
    answers = await answers_of_all_kinds(site)
    assert {status for status, _, _ in answers} >= {200, 303, 400, 401, 403, 404, 405, 413}
    for _, headers, _ in answers:
        assert {name: headers.get(name) for name in bot.HEADERS} == bot.HEADERS
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert "Server" not in headers


async def test_a_page_allows_its_own_script_and_nothing_else(site: Site) -> None:
    nonces = set()
    for headers in ({}, BEARER):
        _, answer, body = await site.get("/", **headers)
        policy = answer["Content-Security-Policy"]
        [nonce] = set(re.findall(r"'nonce-([^']+)'", policy))
        assert len(nonce) > 20 and f'<style nonce="{nonce}">' in body
        assert "unsafe" not in policy and "*" not in policy
        assert not re.search(r'\son\w+="|\sstyle="|javascript:|https?://(?!www\.w3\.org/2000/svg)', body)
        assert all(f'nonce="{nonce}"' in tag for tag in re.findall(r"<(?:script|style)[^>]*>", body))
        nonces.add(nonce)
    assert len(nonces) == 2


async def test_head_is_answered_without_a_body(site: Site) -> None:
    for path in ("/", "/healthz"):
        status, headers, body = await site.call("HEAD", path)
        assert (status, body) == (200, "") and int(headers["Content-Length"]) > 10


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
async def test_other_methods_are_refused(site: Site, method: str) -> None:
    for path in ("/", "/healthz", "/stats.json", "/metrics", "/stats/cache"):
        assert (await site.call(method, path, headers=BEARER))[0] == 405


@pytest.mark.parametrize("data", [b"RUBBISH\r\n\r\n",
                                  b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/9.9\r\n\r\n",
                                  b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: " + TOKEN.encode() + b"\r\n\r\n",
                                  b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n"])  # fmt: skip
async def test_what_is_no_http_is_refused_and_not_logged(
    site: Site, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    answer = await site.raw(data)
    assert answer.startswith(b"HTTP/1.") and b" 400 " in answer.split(b"\r\n")[0]
    assert b"X-Content-Type-Options: nosniff" in answer and b"Server:" not in answer
    assert TOKEN not in caplog.text and "RUBBISH" not in caplog.text
    assert (await site.get("/healthz"))[0] == 200


async def test_a_client_that_says_nothing_is_hung_up_on(okun: Okun, site: Site) -> None:
    silent = await asyncio.open_connection("127.0.0.1", site.port)
    slow = await asyncio.open_connection("127.0.0.1", site.port)
    slow[1].write(b"GET / HTTP/1.1\r\nHost: x\r\n")
    assert (await site.get("/healthz"))[0] == 200  # which has a connection that is kept
    await okun.later(bot.KEEP_ALIVE_S + 1)
    for reader, writer in (silent, slow):
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
    assert (await site.get("/healthz"))[0] == 200


async def test_a_body_that_does_not_come_is_not_waited_for(okun: Okun, site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(b"POST /login HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\nContent-Length: 100\r\n\r\ntoken=")
    while not any(one._request_in_progress for one in site.web._runner.server.connections):  # type: ignore[union-attr]
        await site.get("/healthz")
    await okun.later(bot.BODY_S + 1)
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_of_a_body_no_more_is_kept_than_is_read(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    part = b"x" * (bot.MAX_LOGIN_BYTES + 1)
    writer.write(
        b"POST /login HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    writer.write(b"%x\r\n%s\r\n" % (len(part), part))  # and no end
    async with asyncio.timeout(5):
        assert b" 413 " in await reader.readline()
    writer.close()


async def test_a_body_is_not_unpacked(okun: Okun, site: Site, chat: Room) -> None:
    chat.put("say", "hi")
    packed = gzip.compress(json.dumps(okun.telegram.next_updates()[0]).encode())
    headers = {"X-Telegram-Bot-Api-Secret-Token": HOOK_SECRET, "Content-Encoding": "gzip"}
    assert (await site.call("POST", "/hook", data=packed, headers=headers))[0] == 400
    assert okun.inbox_rows == [] and chat.rows() == []


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20_000,
                                  b"POST /login HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: same-origin\r\n"
                                  b"Content-Length: 100\r\n\r\ntoken="])  # fmt: skip
async def test_nobody_holds_up_the_end(okun: Okun, site: Site, data: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(data)  # and reads nothing
    while not any(one._request_in_progress for one in site.web._runner.server.connections):  # type: ignore[union-attr]
        await site.get("/healthz")
    closing = asyncio.create_task(site.web.close())
    await okun.later(10)
    assert closing.done()
    writer.close()


async def test_of_too_many_connections_the_oldest_goes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "MAX_CONNECTIONS", 3)
    held = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(6)]
    assert (await site.get("/healthz"))[0] == 200
    for reader, _ in held[:4]:
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(5):
                assert await reader.read() == b""
    assert len(site.web._runner.server.connections) <= 3  # type: ignore[union-attr]
    for _, writer in held:
        writer.close()


@pytest.mark.parametrize("query", ["", "?range=1h", "?range=14d", "?range=", "?range=99y", "?range[]=1", "?range=%00"])
async def test_any_range_has_an_answer(site: Site, query: str) -> None:
    status, _, body = await site.get(f"/stats.json{query}", **BEARER)
    assert status == 200 and 0 < len(json.loads(body)["columns"]["up"]) <= 200


async def test_a_fault_is_logged_without_a_word_of_the_request(
    okun: Okun, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(app: bot.App) -> bot.Figures:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(bot, "figures", broken)
    status, headers, body = await site.get("/metrics", **BEARER)
    assert (status, body) == (500, "500\n") and headers["X-Frame-Options"] == "DENY"
    assert "a fault of ours" in caplog.text and TOKEN not in caplog.text


# -- the webhook


async def test_the_webhook_stores_nothing_and_says_nothing_of_what_it_refuses(
    okun: Okun, site: Site, chat: Room, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    chat.put("say", "words-of-somebody")
    [update] = okun.telegram.next_updates()
    good, secret = json.dumps(update).encode(), {"X-Telegram-Bot-Api-Secret-Token": HOOK_SECRET}
    wrong = {"X-Telegram-Bot-Api-Secret-Token": "wrong-secret-of-somebody"}
    huge = b'{"words-of-somebody": "' + b"x" * (10 * 1024 * 1024) + b'"}'
    for data, headers, status in (
        (good, {}, 401), (good, wrong, 401), (io.BytesIO(huge), secret, 413), (good[:-1], secret, 400),
        (b"words-of-somebody", secret, 400), (b"[" * 100_000, secret, 400),
    ):  # fmt: skip
        assert (await site.call("POST", "/hook", data=data, headers=headers))[0] == status
    assert okun.inbox_rows == [] and chat.rows() == [] and chat.replies == []
    for words in ("words-of-somebody", HOOK_SECRET, "wrong-secret"):
        assert words not in caplog.text
    assert (await site.call("POST", "/hook", data=good, headers=secret))[0] == 200
    await okun.settle()
    assert len(chat.replies) == 1


async def test_ten_megabytes_without_the_secret_are_not_read(site: Site) -> None:
    answer = await site.raw(b"POST /hook HTTP/1.1\r\nHost: x\r\nContent-Length: 10485760\r\n\r\n" + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 401")


# -- health


async def health(site: Site) -> tuple[int, Any]:
    status, _, body = await site.get("/healthz")
    return status, json.loads(body)


async def test_health_names_what_is_sick_and_nothing_else(
    okun: Okun, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await health(site) == (200, {"ok": True})
    site.healthy = False
    assert await health(site) == (503, {"ok": False, "sick": ["polling"]})
    monkeypatch.setattr(okun.app, "stuck", lambda: 600.0)
    assert await health(site) == (503, {"ok": False, "sick": ["polling", "queue"]})
    site.healthy = True
    monkeypatch.setattr(okun.app, "stuck", lambda: 599.0)
    assert await health(site) == (200, {"ok": True})


async def test_a_database_that_cannot_be_written_is_sick(
    okun: Okun, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(okun.app.db, "sick", "full")
    assert await health(site) == (503, {"ok": False, "sick": ["database"]})


async def test_a_database_that_cannot_be_read_is_sick(okun: Okun, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(sql: str, *args: Any) -> None:
        raise sqlite3.DatabaseError("database disk image is malformed")

    with monkeypatch.context() as patch:
        patch.setattr(okun.app.db.reader, "one", broken)
        assert await health(site) == (503, {"ok": False, "sick": ["database"]})
    assert await health(site) == (200, {"ok": True})


async def test_a_database_that_does_not_answer_is_sick(okun: Okun, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    async def never(sql: str, *args: Any) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(okun.app.db.reader, "one", never)
    asking = asyncio.create_task(health(site))
    await asked.wait()
    await okun.later(2.1)
    assert await asking == (503, {"ok": False, "sick": ["database"]})


# -- figures


async def add_minutes(okun: Okun, *rows: tuple[Any, ...]) -> None:
    async with okun.app.db.tx() as tx:
        for row in rows:
            await tx.run(f"INSERT INTO minutes VALUES ({','.join('?' * 14)})", *row)


@settings(daily_budget_usd=2.0, language="en")
async def test_the_page_gets_points_tiles_and_caches(okun: Okun, site: Site, chat: Room) -> None:
    now = int(NOON) // 60
    await add_minutes(okun, (now - 1, 5, 4, 2, 1, 1500, 4000, 2, 1, 2500, 30, 10, 100_000, 3),
                      (now - 30, 5, 4, 0, 0, None, None, 0, 0, 0, 0, 0, 90_000, 0))  # fmt: skip
    await chat.say("hi")
    _, _, body = await site.get("/stats.json?range=1h", **BEARER, **{"Accept-Language": "en"})
    data = json.loads(body)
    assert (data["start"], data["step"], len(data["columns"]["up"])) == ((now - 60) * 60, 60, 60)
    assert {name: values[-1] for name, values in data["columns"].items()} == {
        "up": 1, "p50": 1.5, "p95": 4.0, "messages": 4, "replies": 2, "errors": 1, "llm_errors": 1, "cost": 0.0025,
        "hits": 75.0, "memory": 102.4,
    }  # fmt: skip
    assert {name: values[-30] for name, values in data["columns"].items() if values[-30] is not None} == {
        "up": 1, "messages": 4, "replies": 0, "errors": 0, "llm_errors": 0, "cost": 0.0, "memory": 92.16
    }  # fmt: skip
    assert data["columns"]["up"].count(None) == 58  # the bot was down, which is not zero
    assert (data["ok"], data["health"], data["per"]) == (True, "All is well", "per minute")
    assert data["tiles"]["people"] == "1 / 1" and data["tiles"]["today"] == "9 / 3"
    assert data["tiles"]["spent"] == "$0.00 / $2.00"
    assert {row[0] for row in data["caches"]} >= {"chats", "embeddings"}
    assert set(data["tiles"]) == set(bot.TILES)


@pytest.mark.parametrize(
    ("name", "points", "step"), [("1h", 60, 60), ("24h", 144, 600), ("7d", 168, 3600), ("14d", 168, 7200)]
)
async def test_no_chart_has_more_than_200_points(okun: Okun, site: Site, name: str, points: int, step: int) -> None:
    now = int(NOON) // 60
    await add_minutes(okun, *((now - age, 1, 1, 1, 0, 100, 100, 0, 0, 0, 1, 0, 1000, 0) for age in range(0, 20_500, 7)))
    data = json.loads((await site.get(f"/stats.json?range={name}", **BEARER))[2])
    assert (len(data["columns"]["up"]), data["step"]) == (points, step)
    assert all(len(values) == points for values in data["columns"].values())
    assert name == "1h" or None not in data["columns"]["up"]


@pytest.mark.parametrize(
    ("header", "lang"),
    [("uk-UA,uk;q=0.9,en;q=0.8", "uk"), ("de,ru;q=0.7,en;q=0.3", "ru"), ("en;q=0.2, uk;q=0.8", "uk"), ("de", "ru"),
     ("", "ru"), ("en;q=0", "ru"), (";;;q=x,,", "ru"), ("en;q=nan", "ru"), ("x" * 10_000, "ru")],
)  # fmt: skip
def test_the_page_speaks_the_language_that_the_browser_likes_best(header: str, lang: str) -> None:
    assert bot.asked_lang(header, "ru") == lang


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_the_page_is_whole_in_each_language(site: Site, lang: str) -> None:
    for headers, key in (({}, "web.login.button"), (BEARER, "web.logout")):
        _, _, body = await site.get("/", **headers, **{"Accept-Language": lang})
        assert f'<html lang="{lang}">' in body and f">{TEXTS(lang, key)}</button>" in body and "@@" not in body


async def test_caches_are_told_as_json(okun: Okun, site: Site, chat: Room) -> None:
    await chat.say("hi")
    caches = json.loads((await site.get("/stats/cache", **BEARER))[2])
    for cache in caches.values():
        assert list(cache) == [
            "hit_rate",
            "memory_hits",
            "disk_hits",
            "misses",
            "memory_size",
            "memory_bytes",
            "evictions",
        ]
    stats = okun.app.langs.stats
    assert caches["langs"]["memory_hits"] == stats.hits and caches["langs"]["misses"] == stats.misses
    assert caches["langs"]["memory_size"] == 1 and caches["langs"]["memory_bytes"] > 100
    assert caches["drawn"]["hit_rate"] is None


async def test_metrics_are_read_back(okun: Okun, site: Site, chat: Room, later: Later) -> None:
    await chat.say("hi")
    await chat.say("hi again")
    okun.app.latencies.append(3.0)
    okun.app.counts["llm ok"], okun.app.counts["llm server"], okun.app.counts["micro_usd"] = 7, 2, 1_500_000
    okun.app.errors.total = 4
    bot.note_disk(okun.app, "analyses", 5, 3)
    await later(90)
    _, headers, body = await site.get("/metrics", **BEARER)
    assert headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(body)}
    samples = {
        (one.name, *sorted(one.labels.items())): one.value for family in families.values() for one in family.samples
    }
    assert samples["okun_uptime_seconds",] == pytest.approx(90, abs=1)
    for name, value in (("updates_total", 2), ("messages_total", 2), ("replies_total", 2), ("errors_total", 4),
                        ("llm_cost_dollars_total", 1.5), ("chats", 1), ("users", 1), ("stored_messages", 4),
                        ("backlog", 0), ("reply_seconds_count", 3), ("reply_seconds_sum", 3.0)):  # fmt: skip
        assert samples[f"okun_{name}",] == value, name
    assert samples["okun_llm_calls_total", ("outcome", "ok")] == 7
    assert samples["okun_llm_calls_total", ("outcome", "server")] == 2
    assert samples["okun_reply_seconds_bucket", ("le", "2.5")] == 2
    assert samples["okun_reply_seconds_bucket", ("le", "5.0")] == 3
    assert samples["okun_cache_hits_total", ("cache", "analyses"), ("level", "disk")] == 3
    assert samples["okun_cache_entries", ("cache", "langs")] == 1
    breaker = ("capability", "chat"), ("provider", "gemini")
    assert samples["okun_breaker_state", *breaker, ("state", "closed")] == 1
    assert samples["okun_breaker_state", *breaker, ("state", "open")] == 0
    assert families["okun_reply_seconds"].type == "histogram" and families["okun_updates"].type == "counter"
    assert samples["okun_resident_memory_bytes",] > 2e7 and samples["okun_database_bytes",] > 1e5


async def test_no_words_names_or_ids_of_chats_come_out(okun: Okun, site: Site, chat: Room, group: Room) -> None:
    await chat.say("words-of-anna")
    await group.say("okun, words-of-a-group")
    bodies = "".join([(await site.get(path, **BEARER))[2] for path in ("/", "/stats.json", "/stats/cache", "/metrics")])
    for secret in ("words-of", "Anna", "Pond", str(group.id), f'"{ANNA}"', "Heard"):
        assert secret not in bodies, secret


# -- secrets


@settings(gemini_api_key="AIzaSy-a-key-of-somebody", openai_api_key="sk-another-key", language="en")
async def test_no_secret_comes_out_whatever_was_tried(
    okun: Okun, site: Site, chat: Room, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await answers_of_all_kinds(site)
    await site.raw(f"GET /{TOKEN} HTTP/1.1\r\nHost: {TOKEN}\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
    typed = "the-token-that-somebody-mistyped"
    for _ in range(7):
        await site.login(typed)
        await site.get(f"/stats.json?token={typed}", Authorization=f"Bearer {typed}")
    await chat.say("hi")
    await chat.say("/export")
    owner = okun.private("Owner")
    for command in ("/stats", "/cost", "/admin"):
        await owner.say(command)
    await owner.press(okun.t("menu.to.errors"))
    await okun.later(70)
    seal = site.web._door.session().partition(".")[2]
    told = "\n".join(re.sub("okun_session=[^;]*", "", text) for text in site.seen)
    backup = bot.make_backup(str(okun.path), okun.path.parent / "backups", 7, okun.clock.now())
    assert backup.path.stat().st_size > 100_000
    stored = b"".join(path.read_bytes() for path in okun.path.parent.rglob("*") if path.is_file())
    exported = b"".join(file.data for file in okun.telegram.files.values())
    assert b'"hi"' in exported or b"/export" in exported
    for secret in (TOKEN, HOOK_SECRET, "AIzaSy-a-key-of-somebody", "sk-another-key", "42:TEST", typed, seal):
        assert secret not in told and secret not in caplog.text, secret
        assert not any(secret in reply.text for room in (chat, owner) for reply in room.replies), secret
        assert secret.encode() not in stored + exported, secret
    assert okun.app.settings.web_token == TOKEN and "wrong token for the web page" in caplog.text
