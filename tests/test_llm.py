"""The models over HTTP: what is asked of each, what their answers and their faults become, who is asked next."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import pydantic
import pytest
from fakes import STREAM, STREAM_END, FakeGemini, Reply, Request, Server, chunk_of, response

import bot

BEST, SECOND, THIRD = "gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-2.5-flash-lite"
PNG = b"\x89PNG fish"


class Clock(bot.Clock):
    """Sleeping moves it at once."""

    def __init__(self) -> None:
        self.at = 1000.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.at += seconds
        await asyncio.sleep(0)


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini("the-key") as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def http() -> AsyncIterator[bot.Once[Any]]:
    once: bot.Once[Any] = bot.Once(lambda: bot.open_http(settings("")), lambda session: session.close())
    yield once
    await once.close()


def settings(url: str, **given: Any) -> bot.Settings:
    base = {"GEMINI_API_KEY": "the-key", "GEMINI_API_URL": url}
    found, faults = bot.read_settings({**base, **{key: str(value) for key, value in given.items()}}, {})
    assert found, faults
    return found


Make = Callable[..., bot.Llm]
CALLS: list[bot.LlmCall] = []


@pytest.fixture
def make(gemini: FakeGemini, http: bot.Once[Any], clock: Clock) -> Make:
    """A Llm on the fake, with these settings; its calls go to CALLS."""
    CALLS.clear()

    def build(url: str = "", timeout: Any = 20, **given: Any) -> bot.Llm:
        config = dataclasses.replace(settings(url or gemini.url, **given), llm_timeout=timeout)
        llm = bot.Llm(config, http, clock, random.Random(1))
        llm.on_call = CALLS.append
        return llm

    return build


@pytest.fixture
def llm(make: Make) -> bot.Llm:
    return make()


@pytest.fixture
def openai(make: Make, gemini: FakeGemini) -> bot.Llm:
    """Only an OpenAI-compatible API, with one model."""
    key = {"GEMINI_API_KEY": "", "OPENAI_API_KEY": "sk-1"}
    return make(**key, OPENAI_API_URL=gemini.url + "/v1", OPENAI_MODEL="gpt-fish")


def question(text: str = "Hello?", *before: bot.Said, system: str = "Be a fish.", **more: Any) -> bot.Ask:
    return bot.Ask(system, (*before, bot.Said("user", text, **more)), chat_id=5, user_id=6)


def outcomes() -> list[tuple[str, str]]:
    return [(call.model, call.outcome) for call in CALLS]


# -- Gemini: what is asked


@pytest.mark.parametrize(
    ("model", "level", "temperature", "config"),
    [
        (BEST, "low", "", {"thinkingConfig": {"thinkingLevel": "LOW"}}),
        (BEST, "minimal", "", {"thinkingConfig": {"thinkingLevel": "LOW"}}),  # it does not know MINIMAL
        (BEST, "high", "0.9", {"thinkingConfig": {"thinkingLevel": "HIGH"}}),  # nor a temperature
        (SECOND, "minimal", "0.9", {"thinkingConfig": {"thinkingLevel": "MINIMAL"}}),
        (SECOND, "medium", "", {"thinkingConfig": {"thinkingLevel": "MEDIUM"}}),
        (THIRD, "minimal", "", {"thinkingConfig": {"thinkingBudget": 0}}),
        (THIRD, "low", "0.9", {"thinkingConfig": {"thinkingBudget": 512}, "temperature": 0.9}),
        (THIRD, "high", "", {"thinkingConfig": {"thinkingBudget": -1}}),
        ("gemini-2.5-pro", "minimal", "", {"thinkingConfig": {"thinkingBudget": 128}}),
        ("gemma-3", "low", "0.5", {"temperature": 0.5}),
    ],
)
def test_each_model_is_asked_in_its_own_way(
    http: bot.Once[Any], model: str, level: str, temperature: str, config: dict[str, Any]
) -> None:
    provider = bot.Gemini(settings("", THINKING_LEVEL=level, GEMINI_TEMPERATURE=temperature), http)
    assert provider.body(model, question())["generationConfig"] == {**config, "maxOutputTokens": 2048}


async def test_without_a_limit_the_models_own_holds(make: Make, gemini: FakeGemini) -> None:
    await make(GEMINI_MAX_OUTPUT_TOKENS=0, GEMINI_MODEL="gemini-2.5-flash").chat(question())
    assert "maxOutputTokens" not in gemini.requests[-1].config


@pytest.mark.parametrize("model", [BEST, SECOND, THIRD, "gemini-2.5-flash", "gemini-3.5-flash"])
@pytest.mark.parametrize("level", ["minimal", "low", "medium", "high"])
async def test_every_model_takes_what_it_is_asked(make: Make, gemini: FakeGemini, model: str, level: str) -> None:
    picture = bot.Media("image/png", PNG)
    llm = make(GEMINI_MODEL=model, THINKING_LEVEL=level, GEMINI_TEMPERATURE="0.7")
    answer = await llm.chat(question("What is it?", media=(picture,)))
    assert answer.text == gemini.requests[-1].echo and answer.model == model


async def test_the_conversation_arrives_in_order_with_its_instruction(llm: bot.Llm, gemini: FakeGemini) -> None:
    before = [bot.Said("user", "Hi"), bot.Said("model", "Hello"), bot.Said("user", "one"), bot.Said("user", "two")]
    await llm.chat(question("three", *before))
    ask = gemini.requests[-1]
    assert ask.system == "Be a fish."
    assert [(c["role"], [p["text"] for p in c["parts"]]) for c in ask.contents] == [
        ("user", ["Hi"]),
        ("model", ["Hello"]),
        ("user", ["one", "two", "three"]),
    ]
    assert ask.headers["x-goog-api-key"] == "the-key"


async def test_a_conversation_that_the_bot_began_begins_with_the_user_nevertheless(
    llm: bot.Llm, gemini: FakeGemini
) -> None:
    await llm.chat(question("?", bot.Said("model", "I was bored"), bot.Said("model", "and said so")))
    assert [content["role"] for content in gemini.requests[-1].contents] == ["user", "model", "user"]


async def test_without_an_instruction_none_is_sent(llm: bot.Llm, gemini: FakeGemini) -> None:
    await llm.chat(question(system=""))
    assert "systemInstruction" not in gemini.requests[-1].body


async def test_files_arrive_as_they_are(llm: bot.Llm, gemini: FakeGemini) -> None:
    media = (bot.Media("image/png", PNG), bot.Media("audio/ogg", bytes(range(256))))
    await llm.chat(question("", media=media))
    blobs = [part["inlineData"] for part in gemini.requests[-1].contents[-1]["parts"]]
    assert [(blob["mimeType"], base64.b64decode(blob["data"])) for blob in blobs] == [
        ("image/png", PNG),
        ("audio/ogg", bytes(range(256))),
    ]


async def test_a_turn_without_anything_is_still_a_turn(llm: bot.Llm, gemini: FakeGemini) -> None:
    await llm.chat(question("", bot.Said("user", "x"), bot.Said("model", "")))
    assert all(content["parts"] for content in gemini.requests[-1].contents)


@pytest.mark.parametrize("model", [BEST, SECOND])
async def test_a_signature_goes_back_unchanged_and_only_to_the_model_that_made_it(
    make: Make, gemini: FakeGemini, model: str
) -> None:
    signature = base64.b64encode(b"thoughts").decode()
    gemini.rule("first", "A long answer in several pieces.", signature=signature)
    first = await make(GEMINI_MODEL=BEST).chat(question("first"))
    assert first.text == "A long answer in several pieces."
    assert [part.get("thoughtSignature") for part in first.raw][-1] == signature
    said = bot.Said("model", first.text, (), first.raw, first.model)
    await make(GEMINI_MODEL=model).chat(question("second", bot.Said("user", "first"), said))
    echoed = gemini.requests[-1].contents[1]["parts"]
    assert echoed == (list(first.raw) if model == BEST else [{"text": first.text}])


# -- Gemini: what is answered


async def test_the_text_grows_while_it_is_written(llm: bot.Llm, gemini: FakeGemini) -> None:
    story = "Жив собі окунь 🐟 у тихій воді, і було йому добре. " * 5
    gemini.rule(".", story, thought="The user wants a story.", chunk=7)
    shown: list[str] = []
    answer = await llm.chat(question(), shown.append)
    assert answer == bot.Answer(story, "stop", BEST, (), answer.usage)
    assert len(shown) > 10 and shown[-1] == story
    assert all(later.startswith(earlier) and later != earlier for earlier, later in itertools.pairwise(shown))


async def test_what_a_call_cost_is_reported(llm: bot.Llm, gemini: FakeGemini, clock: Clock) -> None:
    gemini.rule(".", "x" * 40, thought="y" * 80)
    await llm.chat(question("z" * 400))
    [call] = CALLS
    assert (call.provider, call.model, call.capability, call.outcome) == ("gemini", BEST, "chat", "ok")
    assert (call.chat_id, call.user_id, call.at) == (5, 6, 1000)
    assert call.usage.output == 10 and call.usage.thoughts == 20 and call.usage.input >= 100
    assert call.took_ms >= 0


async def test_an_answer_of_full_length_says_so(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.fault("max_tokens")
    answer = await llm.chat(question())
    assert answer.finish == "length" and gemini.requests[-1].echo.startswith(answer.text)


@pytest.mark.parametrize(
    "text", ["a\u2028b\u2029c\u0085d", "line\r\nline\n\nline\rline", "data: x\n\ndata: y", "👨‍👩‍👧" * 50]
)
@pytest.mark.parametrize("chunk", [1, 2, 1000])
async def test_no_sign_in_a_text_breaks_the_stream(llm: bot.Llm, gemini: FakeGemini, text: str, chunk: int) -> None:
    gemini.rule(".", text, chunk=chunk)
    assert (await llm.chat(question())).text == text


async def test_a_picture_of_megabytes_is_one_line(llm: bot.Llm, gemini: FakeGemini) -> None:
    data = base64.b64encode(random.Random(1).randbytes(4_000_000)).decode()
    gemini.rule(".", [{"text": "Look:"}, {"inlineData": {"mimeType": "image/png", "data": data}}])
    gemini.rules[0].chunk = 100
    answer = await make_unlimited(llm).chat(question())
    assert answer.text == "Look:" and answer.raw[1]["inlineData"]["data"] == data


def make_unlimited(llm: bot.Llm) -> bot.Llm:
    for provider in llm.providers:
        provider._settings = dataclasses.replace(provider._settings, gemini_max_output_tokens=0)
    return llm


# -- server-sent events


class Pieces:
    """A body that arrives in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = pieces

    async def iter_any(self) -> AsyncIterator[bytes]:
        for piece in self.pieces:
            yield piece


async def events(*pieces: bytes) -> list[bytes]:
    body: Any = Pieces(*pieces)
    return [data async for data in bot.sse(body)]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"1", b"2"]),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"1", b"2"]),
        (b"data:1\n\n", [b"1"]),
        (b"data:  1\n\n", [b" 1"]),
        (b": comment\n\nevent: x\nid: 7\ndata: 1\nretry: 5\n\n", [b"1"]),
        (b"data: 1\ndata: 2\n\n", [b"1\n2"]),
        (b"\n\n\ndata: 1\n\n\n\n", [b"1"]),
        (b"data: 1\n\ndata: 2", [b"1", b"2"]),  # the end of the body ends the event
        (b"data: 1\n", [b"1"]),
        (b"", []),
        (b"<html>portal</html>", []),
        ("data: é\u2028ї\x0b\x0c\x1c🐟\n\n".encode(), ["é\u2028ї\x0b\x0c\x1c🐟".encode()]),
    ],
)
async def test_events_are_read_however_they_arrive(body: bytes, found: list[bytes]) -> None:
    assert await events(body) == found
    assert await events(*(body[n : n + 1] for n in range(len(body)))) == found
    for at in range(len(body)):
        assert await events(body[:at], body[at:]) == found


# -- one fault, and who is asked next
# fault and its options -> the calls made, as outcomes; a capital is the model asked

ONE_FAULT: list[tuple[str, dict[str, Any], list[str]]] = [
    ("429", {}, ["A rate", "B ok"]),
    ("429", {"per_day": True}, ["A quota", "B ok"]),
    ("404", {}, ["A retired", "B ok"]),
    ("403", {}, ["A key", "B ok"]),
    ("400", {}, ["A request", "B ok"]),
    ("503", {}, ["A overloaded", "A ok"]),
    ("500", {}, ["A server", "A ok"]),
    ("malformed", {}, ["A malformed", "A ok"]),
    ("reset", {}, ["A network", "A ok"]),
    ("cut", {}, ["A cut", "A ok"]),
    ("error", {}, ["A overloaded", "A ok"]),
    ("empty", {}, ["A empty", "A ok"]),
    ("no_parts", {}, ["A empty", "A ok"]),
]


@pytest.mark.parametrize(("fault", "options", "calls"), ONE_FAULT)
async def test_one_fault_costs_no_answer(
    llm: bot.Llm, gemini: FakeGemini, fault: str, options: dict[str, Any], calls: list[str]
) -> None:
    gemini.fault(fault, **options)
    answer = await llm.chat(question())
    assert answer.text == gemini.requests[-1].echo and answer.finish == "stop"
    names = {"A": BEST, "B": SECOND, "C": THIRD}
    assert outcomes() == [(names[call[0]], call[2:]) for call in calls]


@pytest.mark.parametrize(
    ("fault", "tries"),
    [("429", 1), ("404", 1), ("403", 1), ("400", 1), ("503", 2), ("500", 3), ("malformed", 2), ("reset", 3),
     ("cut", 2), ("empty", 2), ("error", 2)],
)  # fmt: skip
async def test_a_model_that_stays_faulty_is_left_for_the_next(
    llm: bot.Llm, gemini: FakeGemini, fault: str, tries: int
) -> None:
    gemini.fault(fault, 99, BEST)
    answer = await llm.chat(question())
    assert answer.model == SECOND and [model for model, _ in outcomes()] == [BEST] * tries + [SECOND]


async def test_a_wrong_key_is_told_as_such(gemini: FakeGemini, make: Make) -> None:
    with pytest.raises(bot.LlmError) as error:
        await make(GEMINI_API_KEY="wrong").chat(question())
    assert error.value.key == "llm.key"
    assert {outcome for _, outcome in outcomes()} == {"key"}


@pytest.mark.parametrize("fault", ["blocked", "safety"])
async def test_what_one_model_refuses_no_other_is_asked(llm: bot.Llm, gemini: FakeGemini, fault: str) -> None:
    gemini.fault(fault)
    with pytest.raises(bot.LlmError) as error:
        await llm.chat(question())
    assert error.value.key == "llm.blocked" and outcomes() == [(BEST, "blocked")]


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        ("429", "llm.rate"),
        ("503", "llm.overloaded"),
        ("500", "llm.server"),
        ("404", "llm.server"),
        ("403", "llm.key"),
        ("400", "llm.request"),
        ("malformed", "llm.server"),
        ("reset", "llm.network"),
        ("empty", "llm.server"),
    ],
)
async def test_when_nobody_answers_the_reason_is_told(llm: bot.Llm, gemini: FakeGemini, fault: str, key: str) -> None:
    gemini.fault(fault, 99, retry_delay=300)
    with pytest.raises(bot.LlmError) as error:
        await llm.chat(question())
    texts = bot.Texts(bot.HERE / "locales")
    assert error.value.key in texts.keys("en")
    assert error.value.key == key or fault == "404"


async def test_where_nobody_listens_the_network_is_at_fault(make: Make, gemini: FakeGemini) -> None:
    llm = make()
    await gemini.stop()
    with pytest.raises(bot.LlmError) as error:
        await llm.chat(question())
    assert error.value.key == "llm.network"


async def test_half_an_answer_is_better_than_none(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "One two three four five six.", chunk=5)
    gemini.fault("cut", 1, chunks=3)
    gemini.fault("cut", 99, chunks=1)
    assert await llm.chat(question()) == bot.Answer("One two three f"[:15], "cut")


async def test_half_an_answer_is_dropped_for_a_whole_one(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.fault("cut", 2, BEST)
    answer = await llm.chat(question())
    assert (answer.model, answer.finish) == (SECOND, "stop")


async def test_a_model_that_stops_talking_is_waited_for_no_longer_than_set(make: Make, gemini: FakeGemini) -> None:
    gemini.rule(".", "One two three", chunk=4)
    gemini.fault("stall", 99, chunks=2)
    answer = await make(timeout=0.1).chat(question())
    assert answer == bot.Answer("One two ", "cut")


async def test_a_model_that_never_begins_is_told_as_such(make: Make, gemini: FakeGemini) -> None:
    gemini.fault("hang", 99)
    with pytest.raises(bot.LlmError) as error:
        await make(timeout=0.1).chat(question())
    assert error.value.key == "llm.timeout"


async def test_after_a_minute_of_silence_the_next_model_is_asked(
    llm: bot.Llm, gemini: FakeGemini, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bot.MODEL_TIMEOUT.sock_read == 60 and bot.MODEL_TIMEOUT.sock_connect == 10
    monkeypatch.setattr(bot, "MODEL_TIMEOUT", aiohttp.ClientTimeout(total=None, sock_read=0.05))
    gemini.fault("hang", model=BEST)
    answer = await llm.chat(question())
    assert answer.model == SECOND and outcomes() == [(BEST, "timeout"), (SECOND, "ok")]


# -- resting


async def test_a_model_rests_as_long_as_it_asks(llm: bot.Llm, gemini: FakeGemini, clock: Clock) -> None:
    gemini.fault("429", retry_delay=7, model=BEST)
    models = []
    for _ in range(3):
        models.append((await llm.chat(question())).model)
        clock.at += 4
    assert models == [SECOND, SECOND, BEST]


@pytest.mark.parametrize(("fault", "hours"), [("429", 1), ("404", 6)])
async def test_what_will_not_be_better_soon_rests_long(
    llm: bot.Llm, gemini: FakeGemini, clock: Clock, fault: str, hours: int
) -> None:
    gemini.fault(fault, model=BEST, per_day=True, retry_delay=2)  # the quota of the day: the delay means nothing
    await llm.chat(question())
    clock.at += hours * 3600 - 10
    assert (await llm.chat(question())).model == SECOND
    clock.at += 20
    assert (await llm.chat(question())).model == BEST


async def test_when_all_rest_for_a_moment_the_moment_is_waited(llm: bot.Llm, gemini: FakeGemini, clock: Clock) -> None:
    for model, delay in ((BEST, 12), (SECOND, 5), (THIRD, 30)):
        gemini.fault("429", model=model, retry_delay=delay)
    assert (await llm.chat(question())).model == SECOND
    assert clock.slept == [5]


async def test_when_all_rest_for_long_nobody_waits(llm: bot.Llm, gemini: FakeGemini, clock: Clock) -> None:
    gemini.fault("429", 99, retry_delay=60)
    for _ in range(2):
        with pytest.raises(bot.LlmError) as error:
            await llm.chat(question())
        assert error.value.key == "llm.rate"
    assert clock.slept == [] and len(gemini.requests) == 3


# -- the breaker


async def test_five_unanswered_questions_in_a_minute_and_nobody_is_asked_for_half_a_minute(
    make: Make, gemini: FakeGemini, clock: Clock
) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.fault("500", 99)
    for _ in range(5):
        with pytest.raises(bot.LlmError):
            await llm.chat(question())
    asked = len(gemini.requests)
    gemini.faults.clear()
    with pytest.raises(bot.LlmError) as error:
        await llm.chat(question())
    assert error.value.key == "llm.overloaded" and len(gemini.requests) == asked
    clock.at += 30
    assert (await llm.chat(question())).text
    assert llm.breakers["gemini", "chat"].state == "closed"


async def test_one_probe_is_enough_to_keep_it_open(make: Make, gemini: FakeGemini, clock: Clock) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.fault("500", 99)
    for _ in range(5):
        with pytest.raises(bot.LlmError):
            await llm.chat(question())
    asked = len(gemini.requests)
    clock.at += 30
    for _ in range(3):
        with pytest.raises(bot.LlmError):
            await llm.chat(question())
    assert len(gemini.requests) == asked + 3  # one question, three tries


@pytest.mark.parametrize("fault", ["503", "500", "malformed"])
async def test_one_sick_model_does_not_shut_out_the_healthy_ones(
    llm: bot.Llm, gemini: FakeGemini, clock: Clock, fault: str
) -> None:
    gemini.fault(fault, 999, model=BEST)
    answers = await asyncio.gather(*(llm.chat(question()) for _ in range(20)))
    assert {answer.model for answer in answers} == {SECOND}
    asked = len(gemini.requests)
    assert (await llm.chat(question())).model == SECOND and len(gemini.requests) == asked + 1  # it rests
    gemini.faults.clear()
    clock.at += 21
    assert (await llm.chat(question())).model == BEST


async def test_a_sick_model_is_asked_again_where_there_is_no_other(make: Make, gemini: FakeGemini) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.fault("503", 2)
    with pytest.raises(bot.LlmError):
        await llm.chat(question())
    assert (await llm.chat(question())).model == BEST


async def test_what_is_our_fault_does_not_open_it(make: Make, gemini: FakeGemini) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.fault("400", 20)
    for _ in range(10):
        with pytest.raises(bot.LlmError):
            await llm.chat(question())
    assert llm.breakers["gemini", "chat"].state == "closed"


# -- cancelling


async def test_who_cancels_is_obeyed_and_the_call_is_reported(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "One two three", chunk=4)
    gemini.fault("stall", chunks=2)
    shown: list[str] = []
    heard = asyncio.Event()

    def show(text: str) -> None:
        shown.append(text)
        if len(shown) == 2:
            heard.set()

    task = asyncio.create_task(llm.chat(question(), show))
    await heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert shown[-1] == "One two " and outcomes() == [(BEST, "cancelled")]
    assert (await llm.chat(question())).text == "One two three"


async def test_a_cancelled_probe_leaves_the_probe_to_the_next(make: Make, gemini: FakeGemini, clock: Clock) -> None:
    llm = make(GEMINI_MODEL=BEST)
    for _ in range(5):
        llm.breakers["gemini", "chat"].failed()
    clock.at += 30
    gemini.fault("hang")
    task = asyncio.create_task(llm.chat(question()))
    await gemini.until(lambda: gemini.requests)
    task.cancel()
    await asyncio.wait([task])
    assert (await llm.chat(question())).text


# -- answers that no API gives


class Odd(Server):
    """Answers everything alike."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer, self.seen = answer, list[Request]()

    def handle(self, request: Request) -> Reply:
        self.seen.append(request)
        return self.answer


def stream(*bodies: bytes) -> bytes:
    return STREAM + b"".join(chunk_of(b"data: " + body + b"\n\n") for body in bodies) + STREAM_END


ODD = [
    b"",
    b"5",
    b"null",
    b"[]",
    b'"text"',
    b"{",
    b"{}",
    b'{"error": "overloaded"}',
    b'{"error": null}',
    b'{"error": {"code": "oops"}}',
    b'{"candidates": "x"}',
    b'{"candidates": ["x"]}',
    b'{"candidates": [{"content": "x", "finishReason": "STOP"}]}',
    b'{"candidates": [{"content": {"parts": ["x"]}}]}',
    b'{"candidates": [{"content": {"parts": [{"text": 5}]}}]}',
    b'{"candidates": [{"content": {"parts": null}, "finishReason": null}], "usageMetadata": null}',
    b'{"choices": "x"}',
    b'{"choices": [5]}',
    b'{"choices": [{"delta": "x"}]}',
    b'{"choices": [{"delta": {"content": 5}}]}',
    b'{"choices": [{"delta": null, "finish_reason": null}], "usage": "x"}',
]


@pytest.mark.parametrize("body", ODD)
@pytest.mark.parametrize("api", ["gemini", "openai"])
async def test_an_odd_answer_is_a_fault_of_the_model_and_nothing_worse(
    make: Make, clock: Clock, api: str, body: bytes
) -> None:
    async with Odd(stream(body)) as server:
        openai = {"GEMINI_API_KEY": "", "OPENAI_API_URL": server.url + "/v1", "OPENAI_MODEL": "gpt-fish"}
        llm = make(server.url, **(openai if api == "openai" else {"GEMINI_MODEL": BEST}))
        breaker = llm.breakers[api, "chat"]
        for _ in range(5):
            breaker.failed()
        clock.at += 30
        with pytest.raises(bot.LlmError):
            await llm.chat(question())
        assert {call.outcome for call in CALLS} <= bot.REMEDIES.keys()
        clock.at += 30
        assert breaker.allow()  # the probe that met it has given its place back


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "malformed"), (302, None), (404, "retired"), (418, "request"), (500, "server"), (529, None)],
)
@pytest.mark.parametrize("body", [b"<html>portal</html>", b"\xff\xfe", b""])
async def test_what_is_no_json_is_a_fault_by_its_status(make: Make, status: int, kind: str | None, body: bytes) -> None:
    async with Odd(response(body, status, "text/html; charset=utf-8")) as server:
        with pytest.raises(bot.LlmError):
            await make(server.url, GEMINI_MODEL=BEST).chat(question())
    assert {call.outcome for call in CALLS} <= ({kind} if kind else bot.REMEDIES.keys())


async def test_the_key_does_not_follow_a_redirection(make: Make) -> None:
    async with Odd(response(b"{}")) as stranger:
        head = b"HTTP/1.1 307 Moved\r\nLocation: " + stranger.url.encode() + b"/x\r\nContent-Length: 0\r\n\r\n"
        async with Odd(head) as server:
            with pytest.raises(bot.LlmError):
                await make(server.url, GEMINI_MODEL=BEST).chat(question())
        assert stranger.seen == []


@pytest.mark.parametrize(
    ("status", "text", "kind", "wait"),
    [
        (429, '{"retryDelay": "34.5s"}', "rate", 34.5),
        (429, '{"quotaId": "GenerateRequestsPerDayPerProject", "retryDelay": "9s"}', "quota", None),
        (429, "", "rate", 0.0),
        (400, '{"reason": "API_KEY_INVALID"}', "key", 0.0),
        (400, "bad schema", "request", 0.0),
        (401, "", "key", 0.0),
        (403, "", "key", 0.0),
        (404, "", "retired", 0.0),
        (500, "", "server", 0.0),
        (503, "", "overloaded", 0.0),
        (504, "", "timeout", 0.0),
        (529, "", "overloaded", 0.0),
    ],
)
def test_a_refusal_of_gemini_has_a_meaning(status: int, text: str, kind: str, wait: float | None) -> None:
    fault = bot.gemini_fault(status, text)
    assert fault.kind == kind and (wait is None or fault.wait_s == wait)


# -- OpenAI-compatible


async def test_another_api_is_asked_in_its_own_way(openai: bot.Llm, gemini: FakeGemini) -> None:
    picture = bot.Media("image/png", PNG)
    before = (bot.Said("user", "Hi"), bot.Said("user", "Hi!"), bot.Said("model", "Hello"))
    answer = await openai.chat(question("What?", *before, media=(picture, bot.Media("audio/ogg", b"x"))))
    body = gemini.requests[-1].body
    assert answer.text == gemini.requests[-1].echo
    url = "data:image/png;base64," + base64.b64encode(PNG).decode()
    assert body == {
        "model": "gpt-fish",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 2048,
        "messages": [
            {"role": "system", "content": "Be a fish."},
            {"role": "user", "content": "Hi\nHi!"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": [
                {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": url}}]},
        ],
    }  # fmt: skip
    assert gemini.requests[-1].headers["authorization"] == "Bearer sk-1"


async def test_its_text_grows_and_its_usage_is_counted(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "Тихо\u2028плинуть 🐟 хвилі", chunk=3)
    shown: list[str] = []
    answer = await openai.chat(question(), shown.append)
    assert answer.text == shown[-1] == "Тихо\u2028плинуть 🐟 хвилі" and len(shown) > 3
    assert (answer.model, answer.finish, answer.raw) == ("gpt-fish", "stop", ())
    assert answer.usage.output == CALLS[0].usage.output == 5


@pytest.mark.parametrize(
    ("fault", "calls"),
    [
        ("503", ["overloaded", "ok"]),
        ("500", ["server", "ok"]),
        ("malformed", ["malformed", "ok"]),
        ("reset", ["network", "ok"]),
        ("cut", ["cut", "ok"]),
        ("error", ["overloaded", "ok"]),
        ("429", ["rate", "ok"]),  # after the rest
    ],
)
async def test_one_fault_of_it_costs_no_answer(
    openai: bot.Llm, gemini: FakeGemini, fault: str, calls: list[str]
) -> None:
    gemini.fault(fault)
    assert (await openai.chat(question())).text == gemini.requests[-1].echo
    assert [outcome for _, outcome in outcomes()] == calls


@pytest.mark.parametrize(
    ("fault", "key"), [("403", "llm.key"), ("400", "llm.request"), ("safety", "llm.blocked"), ("503", "llm.overloaded")]
)
async def test_its_refusals_are_told(openai: bot.Llm, gemini: FakeGemini, fault: str, key: str) -> None:
    gemini.fault(fault, 99)
    with pytest.raises(bot.LlmError) as error:
        await openai.chat(question())
    assert error.value.key == key


async def test_its_full_length_is_told(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "x" * 10_000)
    answer = await openai.chat(question())
    assert (len(answer.text), answer.finish) == (8192, "length")


@pytest.mark.parametrize(
    ("status", "text", "retry_after", "kind", "wait"),
    [
        (429, "", "12", "rate", 12.0),
        (429, "", "Wed, 21 Oct 2026 07:28:00 GMT", "rate", 0.0),
        (429, '{"code": "insufficient_quota"}', None, "quota", 0.0),
        (401, "", None, "key", 0.0),
        (404, "", None, "retired", 0.0),
        (502, "", None, "server", 0.0),
    ],
)
def test_a_refusal_of_openai_has_a_meaning(
    status: int, text: str, retry_after: str | None, kind: str, wait: float
) -> None:
    fault = bot.openai_fault(status, text, retry_after)
    assert (fault.kind, fault.wait_s) == (kind, wait)


async def test_a_server_at_home_needs_no_key(make: Make, gemini: FakeGemini) -> None:
    llm = make(GEMINI_API_KEY="", OPENAI_API_URL=gemini.url + "/v1", OPENAI_MODEL="llama")
    with pytest.raises(bot.LlmError):  # the fake wants one, and was not given any
        await llm.chat(question())
    assert "Authorization" not in llm.providers[0]._headers


async def test_the_second_provider_is_asked_when_the_first_is_out(make: Make, gemini: FakeGemini) -> None:
    llm = make(OPENAI_API_URL=gemini.url + "/v1", OPENAI_API_KEY="k", OPENAI_MODEL="gpt-a,gpt-b")
    gemini.fault("403", 99, "gemini*")
    gemini.fault("400", 1, "gpt-a")
    assert (await llm.chat(question())).model == "gpt-b"
    assert outcomes() == [(BEST, "key"), (SECOND, "key"), (THIRD, "key"), ("gpt-a", "request"), ("gpt-b", "ok")]


async def test_an_open_breaker_of_one_provider_leaves_the_other(make: Make, gemini: FakeGemini) -> None:
    llm = make(OPENAI_API_URL=gemini.url + "/v1", OPENAI_API_KEY="k", OPENAI_MODEL="gpt-a")
    for _ in range(5):
        llm.breakers["gemini", "chat"].failed()
    assert (await llm.chat(question())).model == "gpt-a" and len(gemini.requests) == 1


@pytest.mark.parametrize(("given", "some"), [({}, True), ({"GEMINI_API_KEY": ""}, False)])
def test_without_a_key_there_is_no_model(make: Make, given: dict[str, str], some: bool) -> None:
    assert bool(make(**given)) == some


# -- tools

TOOL = bot.ToolSpec(
    "search_chat",
    "Search this chat.",
    {"type": "object", "properties": {"query": {"type": "string", "description": "words"}}, "required": ["query"]},
)
REMIND = bot.ToolSpec("set_reminder", "Remind the asker.", {"type": "object", "properties": {}, "required": []})
DECLARED = [
    {"name": "search_chat", "description": "Search this chat.", "parameters": TOOL.parameters},
    {"name": "set_reminder", "description": "Remind the asker.", "parameters": REMIND.parameters},
]
LOOK: dict[str, Any] = {"functionCall": {"name": "search_chat", "args": {"query": "the cat"}}}
NONE = {"functionCallingConfig": {"mode": "NONE"}}
SERVER_SIDE = {"includeServerSideToolInvocations": True}


def asking(text: str = "Where is the cat?", **more: Any) -> bot.Ask:
    return dataclasses.replace(question(text), tools=(TOOL, REMIND), **more)


def told(ask: bot.Ask, answer: bot.Answer, *results: str) -> bot.Ask:
    """The question again, with what the model called and what came of it."""
    called = bot.Said("model", answer.text, raw=answer.raw, model=answer.model)
    found = tuple(bot.Result(call, text) for call, text in zip(answer.calls, results, strict=True))
    return dataclasses.replace(ask, said=(*ask.said, called, bot.Said("user", "", model=answer.model, results=found)))


@pytest.mark.parametrize(
    ("model", "search", "over", "tools", "config"),
    [
        (BEST, "off", False, [], None),
        (BEST, "off", True, [], NONE),
        (BEST, "on", False, [{"googleSearch": {}}], SERVER_SIDE),
        (BEST, "on", True, [{"googleSearch": {}}], NONE | SERVER_SIDE),
        (SECOND, "on", False, [{"googleSearch": {}}], SERVER_SIDE),
        (THIRD, "on", False, [], None),  # these take either search or functions
        ("gemini-2.5-pro", "on", True, [], NONE),
        ("gemma-3", "on", False, [], None),
    ],
)
def test_tools_and_the_search_are_asked_for_as_the_model_takes_them(
    http: bot.Once[Any], model: str, search: str, over: bool, tools: list[Any], config: Any
) -> None:
    body = bot.Gemini(settings("", WEB_SEARCH=search), http).body(model, asking(calls_over=over))
    assert body["tools"] == [{"functionDeclarations": DECLARED}, *tools]
    assert body.get("toolConfig") == config


@pytest.mark.parametrize("search", ["on", "off"])
def test_without_tools_nothing_is_said_of_them(http: bot.Once[Any], search: str) -> None:
    assert not {"tools", "toolConfig"} & bot.Gemini(settings("", WEB_SEARCH=search), http).body(BEST, question()).keys()


@pytest.mark.parametrize("model", [BEST, SECOND, THIRD])
@pytest.mark.parametrize("search", ["on", "off"])
@pytest.mark.parametrize("over", [True, False])
async def test_every_model_takes_tools(make: Make, gemini: FakeGemini, model: str, search: str, over: bool) -> None:
    await make(GEMINI_MODEL=model, WEB_SEARCH=search).chat(asking(calls_over=over))
    assert outcomes() == [(model, "ok")]


async def test_a_call_is_read_with_its_signature_and_what_was_said_before_it(llm: bot.Llm, gemini: FakeGemini) -> None:
    signature = base64.b64encode(b"why").decode()
    gemini.rule("cat", [{"text": "Let me see. "}, LOOK], signature=signature, thought="The cat?", chunk=3)
    shown: list[str] = []
    answer = await llm.chat(asking(), shown.append)
    assert answer.calls == (bot.Call("search_chat", {"query": "the cat"}),)
    assert answer.raw == ({"text": "Let me see. "}, LOOK | {"thoughtSignature": signature})
    assert (answer.text, shown[-1], answer.finish, answer.model) == ("Let me see. ", "Let me see. ", "stop", BEST)


async def test_several_calls_at_once_are_read_in_their_order(llm: bot.Llm, gemini: FakeGemini) -> None:
    remind = {"functionCall": {"name": "set_reminder", "id": "c2"}}  # without arguments, with an id
    gemini.rule("cat", [LOOK, remind])
    answer = await llm.chat(asking())
    assert answer.calls == (bot.Call("search_chat", {"query": "the cat"}), bot.Call("set_reminder", {}, "c2"))


async def test_what_came_of_a_call_goes_back_to_the_model_that_made_it(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("cat", [LOOK, {"functionCall": {"name": "set_reminder", "id": "c2"}}])
    gemini.rule("^$", "On the roof.")
    first = await llm.chat(asking())
    second = await llm.chat(told(asking(), first, "Anna: it is on the roof", "set"))
    _, called, given = gemini.requests[-1].contents
    assert called == {"role": "model", "parts": list(first.raw)} and "thoughtSignature" in first.raw[0]
    assert given["parts"] == [
        {"functionResponse": {"name": "search_chat", "response": {"result": "Anna: it is on the roof"}}},
        {"functionResponse": {"name": "set_reminder", "response": {"result": "set"}, "id": "c2"}},
    ]
    assert second.text == "On the roof." and outcomes() == [(BEST, "ok"), (BEST, "ok")]


@pytest.mark.parametrize("before", ["", "Let me see."])
async def test_another_model_hears_of_a_call_in_words(llm: bot.Llm, gemini: FakeGemini, before: str) -> None:
    gemini.rule("cat", [*([{"text": before}] if before else []), LOOK], model=BEST)
    first = await llm.chat(asking())
    gemini.fault("429", 9, BEST, retry_delay=99)
    second = await llm.chat(told(asking(), first, "Anna: it is on the roof"))
    assert second.model == SECOND
    assert [(content["role"], content["parts"]) for content in gemini.requests[-1].contents] == [
        ("user", [{"text": "Where is the cat?"}]),
        ("model", [{"text": before or "…"}]),
        ("user", [{"text": "[search_chat: Anna: it is on the roof]"}]),
    ]


async def test_rounds_may_go_from_one_model_to_another_and_back(llm: bot.Llm, gemini: FakeGemini, clock: Clock) -> None:
    gemini.rule("^$|cat|roof", [LOOK])
    first = await llm.chat(asking())
    gemini.fault("429", 1, BEST, retry_delay=7)
    ask = told(asking(), first, "on the roof")
    second = await llm.chat(ask)
    clock.at += 10
    third = await llm.chat(told(ask, second, "in the garden"))
    assert [first.model, second.model, third.model] == [BEST, SECOND, BEST]
    assert [content["parts"] for content in gemini.requests[-1].contents] == [
        [{"text": "Where is the cat?"}],
        list(first.raw),
        [{"functionResponse": {"name": "search_chat", "response": {"result": "on the roof"}}}],
        [{"text": "…"}],
        [{"text": "[search_chat: in the garden]"}],
    ]


async def test_a_model_of_another_api_hears_of_a_call_in_words(make: Make, gemini: FakeGemini) -> None:
    llm = make(GEMINI_MODEL=BEST, OPENAI_API_URL=gemini.url + "/v1", OPENAI_API_KEY="k", OPENAI_MODEL="gpt-a")
    gemini.rule("cat", [LOOK, {"functionCall": {"name": "set_reminder"}}], model=BEST)
    first = await llm.chat(asking())
    gemini.fault("403", 9, BEST)
    second = await llm.chat(told(asking(), first, "on the roof", "set"))
    assert second.model == "gpt-a"
    assert gemini.requests[-1].body["messages"][1:] == [
        {"role": "user", "content": "Where is the cat?"},
        {"role": "assistant", "content": "…"},
        {"role": "user", "content": "[search_chat: on the roof]\n[set_reminder: set]"},
    ]


async def test_the_parts_of_a_search_go_back_unchanged(make: Make, gemini: FakeGemini) -> None:
    found: list[dict[str, Any]] = [
        {"toolCall": {"toolType": "GOOGLE_SEARCH_WEB", "args": {"queries": ["rain"]}, "id": "s1"}},
        {"toolResponse": {"toolType": "GOOGLE_SEARCH_WEB", "response": {"searchSuggestions": "x"}, "id": "s1"}},
        {"text": "It rains."},
    ]
    gemini.rule("rain", found, chunk=99, signature=base64.b64encode(b"s").decode())
    llm = make(WEB_SEARCH="on")
    first = await llm.chat(asking("Does it rain?"))
    assert first.text == "It rains." and [part.keys() & {"toolCall", "toolResponse"} for part in first.raw[:2]]
    said = bot.Said("model", first.text, (), first.raw, first.model)
    await llm.chat(question("And tomorrow?", bot.Said("user", "Does it rain?"), said))
    assert gemini.requests[-1].contents[1]["parts"] == list(first.raw)


async def test_a_call_that_the_model_could_not_write_is_asked_for_again(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("cat", [], finish="MALFORMED_FUNCTION_CALL", times=1)
    assert (await llm.chat(asking())).model == BEST
    assert outcomes() == [(BEST, "empty"), (BEST, "ok")]


@pytest.mark.parametrize(
    "words",
    [
        "Function calling is not enabled for models/gemini-2.5-flash",
        "Tool use with function calling is unsupported by the model.",
        "This model does not support function calling.",
    ],
)
async def test_a_model_that_has_no_tools_is_asked_again_without_once(
    make: Make, gemini: FakeGemini, words: str
) -> None:
    llm = make(GEMINI_MODEL="gemini-2.5-flash,gemini-3.5-flash")
    gemini.lacks["gemini-2.5-flash"] = {"tools": words}
    assert (await llm.chat(asking())).model == "gemini-2.5-flash"
    assert outcomes() == [("gemini-2.5-flash", "wording"), ("gemini-2.5-flash", "ok")]
    await llm.chat(asking())
    assert len(gemini.requests) == 3 and "tools" not in gemini.requests[-1].body
    gemini.fault("404", 1, "gemini-2.5-flash")
    await llm.chat(asking())
    assert "tools" in gemini.requests[-1].body  # of the other model nothing was said


async def test_questions_that_were_asked_with_tools_at_once_are_all_asked_again_without(
    make: Make, gemini: FakeGemini
) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.lacks[BEST] = {"tools": "This model does not support function calling."}
    await asyncio.gather(llm.chat(asking()), llm.chat(asking()))
    assert sorted(outcomes()) == [(BEST, "ok"), (BEST, "ok"), (BEST, "wording"), (BEST, "wording")]


async def test_another_fault_does_not_take_the_tools_away(make: Make, gemini: FakeGemini) -> None:
    llm = make(GEMINI_MODEL=BEST)
    gemini.fault("400", text="Invalid value at 'contents[0]'")
    with pytest.raises(bot.LlmError):
        await llm.chat(asking())
    await llm.chat(asking())
    assert "tools" in gemini.requests[-1].body


# -- tools of OpenAI-compatible models


@pytest.mark.parametrize(("over", "choice"), [(False, None), (True, "none")])
async def test_another_api_is_told_of_tools_in_its_own_way(
    openai: bot.Llm, gemini: FakeGemini, over: bool, choice: str | None
) -> None:
    await openai.chat(asking(calls_over=over))
    body = gemini.requests[-1].body
    assert body["tools"] == [{"type": "function", "function": each} for each in DECLARED]
    assert body.get("tool_choice") == choice


@pytest.mark.parametrize("chunk", [1, 5, 100])
async def test_its_calls_are_put_together_from_their_pieces(openai: bot.Llm, gemini: FakeGemini, chunk: int) -> None:
    both = [{"text": "Let me see."}, LOOK, {"functionCall": {"name": "set_reminder", "args": {"at": "й"}}}]
    gemini.rule("cat", both, chunk=chunk)
    answer = await openai.chat(asking())
    one, two = answer.calls
    assert (one.name, one.args, two.name, two.args) == (
        "search_chat",
        {"query": "the cat"},
        "set_reminder",
        {"at": "й"},
    )
    assert one.id and two.id and one.id != two.id
    assert [part["id"] for part in answer.raw] == [one.id, two.id] and answer.text == "Let me see."


async def test_what_came_of_its_calls_goes_back_as_such(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("cat", [LOOK, {"functionCall": {"name": "set_reminder", "args": {}}}], times=1)
    first = await openai.chat(asking())
    second = await openai.chat(told(asking(), first, "on the roof", "set"))
    _, asked, called, *given = gemini.requests[-1].body["messages"]
    assert asked == {"role": "user", "content": "Where is the cat?"}
    assert called == {"role": "assistant", "content": None, "tool_calls": list(first.raw)}
    assert given == [
        {"role": "tool", "tool_call_id": call.id, "content": text}
        for call, text in zip(first.calls, ("on the roof", "set"), strict=True)
    ]
    assert second.text and outcomes() == [("gpt-fish", "ok")] * 2


async def test_its_calls_are_words_for_another_of_its_models(make: Make, gemini: FakeGemini) -> None:
    given = {"GEMINI_API_KEY": "", "OPENAI_API_URL": gemini.url + "/v1", "OPENAI_API_KEY": "k"}
    llm = make(**given, OPENAI_MODEL="gpt-a,gpt-b")
    gemini.rule("cat", [LOOK], model="gpt-a")
    first = await llm.chat(asking())
    gemini.fault("404", 9, "gpt-a")
    assert (await llm.chat(told(asking(), first, "on the roof"))).model == "gpt-b"
    assert gemini.requests[-1].body["messages"][2:] == [
        {"role": "assistant", "content": "…"},
        {"role": "user", "content": "[search_chat: on the roof]"},
    ]


def delta(**call: Any) -> bytes:
    return bot.json_bytes({"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]})


def piece(index: int | None, id_: str, arguments: str, name: str = "look") -> bytes:
    where = {} if index is None else {"index": index}
    return delta(**where, id=id_, type="function", function={"name": name, "arguments": arguments})


@pytest.mark.parametrize("index", [0, None])
async def test_calls_of_a_server_that_numbers_them_all_alike_are_told_apart_by_their_ids(
    make: Make, index: int | None
) -> None:
    bodies = [piece(index, "a", '{"at": 1}'), piece(index, "b", '{"at": 2}')]
    async with Odd(stream(*bodies)) as server:
        llm = make(GEMINI_API_KEY="", OPENAI_API_URL=server.url + "/v1", OPENAI_MODEL="home")
        answer = await llm.chat(asking())
    assert answer.calls == (bot.Call("look", {"at": 1}, "a"), bot.Call("look", {"at": 2}, "b"))


@pytest.mark.parametrize("arguments", ["{", "[]", "5", "null", '"x"', "{'at': 1}"])
async def test_a_call_with_arguments_that_are_no_object_is_a_fault_of_the_model(make: Make, arguments: str) -> None:
    async with Odd(stream(piece(0, "a", arguments))) as server:
        llm = make(GEMINI_API_KEY="", OPENAI_API_URL=server.url + "/v1", OPENAI_MODEL="home")
        with pytest.raises(bot.LlmError):
            await llm.chat(asking())
    assert {call.outcome for call in CALLS} == {"malformed"}


async def test_a_call_without_arguments_has_none(make: Make) -> None:
    async with Odd(stream(piece(0, "a", ""))) as server:
        llm = make(GEMINI_API_KEY="", OPENAI_API_URL=server.url + "/v1", OPENAI_MODEL="home")
        assert (await llm.chat(asking())).calls == (bot.Call("look", {}, "a"),)


REFUSALS = [
    ("tools", "tools is not supported by this model", {"tools": (TOOL,)}),
    ("tools", "registry.ollama.ai/library/gemma does not support tools", {"tools": (TOOL,)}),
    ("response_format", "Invalid parameter: 'response_format' of type 'json_schema' is not supported", {"schema": {}}),
]


@pytest.mark.parametrize(("field", "words", "more"), REFUSALS)
async def test_what_its_model_refuses_is_left_out_once_it_said_so(
    make: Make, gemini: FakeGemini, field: str, words: str, more: dict[str, Any]
) -> None:
    given = {"GEMINI_API_KEY": "", "OPENAI_API_URL": gemini.url + "/v1", "OPENAI_API_KEY": "k"}
    llm = make(**given, OPENAI_MODEL="gpt-a,gpt-b")
    gemini.lacks["gpt-a"] = {field: words}
    more = {"schema": SCHEMA} if "schema" in more else more
    ask = dataclasses.replace(question(), **more)
    assert (await llm.chat(ask)).model == "gpt-a" and outcomes() == [("gpt-a", "wording"), ("gpt-a", "ok")]
    await llm.chat(ask)
    assert len(gemini.requests) == 3 and field not in gemini.requests[-1].body
    gemini.fault("404", 1, "gpt-a")
    await llm.chat(ask)
    assert field in gemini.requests[-1].body and gemini.requests[-1].model == "gpt-b"


async def test_its_word_for_the_limit_is_learned_from_a_refusal(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.lacks["gpt-fish"] = {"max_tokens": "Unsupported parameter: use 'max_completion_tokens' instead."}
    await openai.chat(question())
    assert outcomes() == [("gpt-fish", "wording"), ("gpt-fish", "ok")]
    assert gemini.requests[-1].body["max_completion_tokens"] == 2048 and "max_tokens" not in gemini.requests[-1].body


async def test_questions_at_once_all_learn_its_word_for_the_limit(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.lacks["gpt-fish"] = {"max_tokens": "Unsupported parameter: use 'max_completion_tokens' instead."}
    await asyncio.gather(openai.chat(question()), openai.chat(question()))
    assert [kind for _, kind in sorted(outcomes())] == ["ok", "ok", "wording", "wording"]


@pytest.mark.parametrize(("field", "words", "more"), REFUSALS)
async def test_a_server_may_refuse_two_things_one_after_the_other(
    openai: bot.Llm, gemini: FakeGemini, field: str, words: str, more: dict[str, Any]
) -> None:
    limit = {"max_tokens": "Unsupported parameter: use 'max_completion_tokens' instead."}
    gemini.lacks["gpt-fish"] = {**limit, field: words}
    more = {"schema": SCHEMA} if "schema" in more else more
    await openai.chat(dataclasses.replace(question(), **more))
    assert [kind for _, kind in outcomes()] == ["wording", "wording", "ok"]


# -- answers as JSON


class Catch(pydantic.BaseModel):
    """The shape that is asked for."""

    fish: str


class Basket(pydantic.RootModel[list[str]]):
    """Several fish."""


SCHEMA = Catch.model_json_schema()
PIKE = Catch(fish="pike")


def wanting(text: str = "Which fish?") -> bot.Ask:
    return dataclasses.replace(question(text), schema=SCHEMA)


async def test_a_schema_is_asked_for_in_the_way_of_each_api(make: Make, openai: bot.Llm, gemini: FakeGemini) -> None:
    await make().chat(wanting())
    assert gemini.requests[-1].config["responseMimeType"] == "application/json"
    assert gemini.requests[-1].config["responseJsonSchema"] == SCHEMA
    await openai.chat(wanting())
    form = gemini.requests[-1].body["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}


JSON_ANSWERS = [
    '{"fish": "pike"}',
    ' \n{"fish": "pike"}\n',
    '```json\n{"fish": "pike"}\n```',
    '```\n{"fish": "pike"}```',
    'Sure! Here it is:\n\n```json\n{\n  "fish": "pike"\n}\n```\nAnything else?',
    'The answer is {"fish": "pike"}.',
    'As asked [in JSON]: {"fish": "pike"} – see {fish}.',
    '\ufeff{"fish": "pike"}',
]


@pytest.mark.parametrize("text", JSON_ANSWERS)
async def test_json_is_found_in_whatever_surrounds_it(llm: bot.Llm, gemini: FakeGemini, text: str) -> None:
    gemini.rule("", text)
    assert await llm.extract(question("Which fish?"), Catch) == PIKE
    assert gemini.requests[-1].config["responseJsonSchema"] == SCHEMA
    assert outcomes() == [(SECOND, "ok")] and CALLS[0].capability == "light"


async def test_a_list_may_be_the_answer(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("fish", 'Well: ["pike", "perch"]')
    assert (await llm.extract(question("Which fish?"), Basket)).root == ["pike", "perch"]


@pytest.mark.parametrize("text", ["I cannot say.", '{"fish": "pi', "```json\n```", '{"fish": null}'])
async def test_what_is_no_json_is_asked_for_once_more(llm: bot.Llm, gemini: FakeGemini, text: str) -> None:
    gemini.rule("", '{"fish": "pike"}')
    gemini.rule("", text, times=1)
    assert await llm.extract(question("Which fish?"), Catch) == PIKE
    first, second = gemini.requests
    assert first.config["responseJsonSchema"] == second.config["responseJsonSchema"] == SCHEMA
    asked, said, told = [(turn["role"], turn["parts"][0]["text"]) for turn in second.body["contents"]]
    assert (asked, said) == (("user", "Which fish?"), ("model", text))
    assert told[0] == "user" and ("fish: " if "null" in text else "no JSON in it") in told[1]  # what was wrong


async def test_twice_no_json_is_no_answer(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("", "I cannot say.")
    with pytest.raises(bot.LlmError):
        await llm.extract(wanting(), Catch)
    assert outcomes() == [(SECOND, "ok")] * 2


async def test_a_refusal_is_not_asked_for_twice(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.fault("blocked")
    with pytest.raises(bot.LlmError):
        await llm.extract(wanting(), Catch)
    assert len(gemini.requests) == 1


async def test_of_an_endless_answer_only_the_ends_are_sent_back(llm: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("", '{"fish": "pike"}')
    gemini.rule("", "begin " + "fish " * 20_000 + "end", times=1)
    gemini_limit = 4000
    assert await llm.extract(question("Which fish?"), Catch) == PIKE
    sent_back = gemini.requests[1].body["contents"][1]["parts"][0]["text"]
    assert sent_back.startswith("begin") and len(sent_back) < gemini_limit


DEEP = "[" * 5000
FOUND = [
    ('{"fish": "pike"} {"fish": "perch"}', "pike"),  # the first of several
    ('{"fishes": 3} or rather {"fish": "pike"}', "pike"),  # the first of the right shape
    ('[1, 2] and {"fish": ["pike"]}, so {"fish": "pike"}', "pike"),
    ('{"answer": {"fish": "carp"}} {"fish": "pike"}', "pike"),  # what lies within another value is no answer
    ('```json\n{"fish": "pike"}\n```\n```json\n{"fish": "perch"}\n```', "pike"),
    ('{ {{ [ {"fish": "pike"}', "pike"),
    ('{"fish": "a } in a \\"string\\" {"} }', 'a } in a "string" {'),
    ('{"fish": "pike", "weight": NaN, "price": -Infinity, "n": 1e999}', "pike"),
    (f'{{"fish": "pike", "nest": {"[" * 400}{"]" * 400}}}', "pike"),
    ('{"fish": "pi\\u0000ke"}', "pi\0ke"),
    ('{"fish": "\\ud83d\\ude00"}', "😀"),
    ('\u2028\0{"fish": "pike"}\0', "pike"),
    (f'{{"fish": "{"x" * 1_000_000}"}}', "x" * 1_000_000),
]
LOST = [
    "", " ", "null", "pike", '"pike"', "17", "NaN", "-Infinity", "1" * 5000, "[]", "{}", "[[[]]]", '["fish", "pike"]',
    '{"fish": 3}', '{"fish": NaN}', '{"fish": null}', '{"fish": {"fish": null}}', "{'fish': 'pike'}", '{"fish": "pike',
    DEEP, DEEP + "]" * 5000, '{"a":' * 5000, '{"fish":' + DEEP + "]" * 5000 + "}",
    '{"fish": ' + "9" * 5000 + "}", "{" * 100_000, "[{" * 50_000 + '"', "\ud83d", '{"\ud83d": "\ude00"}', "\0" * 9,
]  # fmt: skip


def test_the_first_json_of_the_shape_is_read_whatever_surrounds_it() -> None:
    for text, fish in FOUND:
        assert bot.read_json(text, Catch).fish == fish, text[:60]


def test_where_there_is_none_of_the_shape_it_is_a_value_error_that_tells_why() -> None:
    for text in LOST:
        with pytest.raises(ValueError, match=r"there is no JSON in it|: ") as caught:
            bot.read_json(text, Catch)
        assert len(str(caught.value)) < 300, text[:60]


def test_a_list_is_read_as_well_as_an_object() -> None:
    assert bot.read_json('Here: ```["pike"]``` {"fish": 1}', Basket).root == ["pike"]
    assert bot.read_json('[{"fish": "pike"}] ["perch"]', Basket).root == ["perch"]


SOUND = (  # for each of the shapes
    '{"fish": "pike", "summary": "Pike.", "facts": [{"person": "P1", "fact": "x"}], '
    '"messages": [{"n": 1, "sentiment": 0.5, "topic": "fish"}]}'
)


def rubbish(dice: random.Random) -> str:
    """Something a model might write: shuffled pieces of JSON, of chatter and of what neither can hold."""
    pieces = [
        '{"fish"', ": ", '"pike"', "}", "[", "]", "{", ",", "```json\n", "```", "Sure! ", "NaN", "1e999", "\\ud83d",
        "\ud83d", "\0", "null", '{"summary": "', '", "facts": [', '{"person": "P1", "fact": ', "]}", "🐟", "[" * 3000,
        '{"n": 1, "sentiment": ', '"messages": [', '"topic": "', "-7", "\u2029", '\\"', "9" * 5000,
    ]  # fmt: skip
    text = "".join(dice.choices(pieces, k=dice.randrange(30)))
    at, to = sorted(dice.choices(range(len(SOUND)), k=2))
    return dice.choice([text, SOUND[:at] + SOUND[to:], SOUND[:at] + text + SOUND[at:], text + SOUND])


@pytest.mark.parametrize("shape", [Catch, bot.SummaryAnswer, bot.BatchAnswer])
async def test_whatever_a_model_writes_nothing_but_an_answer_or_a_refusal_comes_of_it(
    make: Make, shape: type[pydantic.BaseModel]
) -> None:
    llm, dice, ends = make(), random.Random(4), {"answer": 0, "refusal": 0}
    asked: list[bot.Ask] = []

    async def writes(ask: bot.Ask, *args: Any, **how: Any) -> bot.Answer:
        asked.append(ask)
        return bot.Answer(rubbish(dice))

    llm.chat = writes  # type: ignore[method-assign]
    for _ in range(60):
        before = len(asked)
        try:
            assert isinstance(await llm.extract(question("Which fish?"), shape), shape)
            ends["answer"] += 1
        except bot.LlmError:
            ends["refusal"] += 1
            assert len(asked) - before == 2
    assert ends["answer"] and ends["refusal"] and sum(ends.values()) == 60


# -- capabilities

EMBED, TTS, EASEL = "gemini-embedding-001", "gemini-2.5-flash-preview-tts", "gemini-3.1-flash-image"
FISH = bot.Drawing("A pike at dawn.", "9:16", chat_id=5, user_id=6)
Job = Callable[[bot.Llm], Awaitable[Any]]
JOBS: dict[bot.Capability, tuple[str, Job]] = {
    "light": (SECOND, lambda llm: llm.extract(wanting(), Catch)),
    "embed": (EMBED, lambda llm: llm.embed(["pike", "perch"])),
    "speak": (TTS, lambda llm: llm.speak("Hello.", 5, 6)),
    "draw": (EASEL, lambda llm: llm.draw(FISH)),
}


@pytest.fixture
def able(make: Make) -> bot.Llm:
    return make(GEMINI_EMBEDDING_MODEL=EMBED, GEMINI_TTS_MODEL=TTS)


@pytest.mark.parametrize("capability", JOBS)
async def test_each_capability_has_its_models_and_reports_its_calls(able: bot.Llm, capability: bot.Capability) -> None:
    model, job = JOBS[capability]
    await job(able)
    [call] = CALLS
    assert (call.provider, call.model, call.capability, call.outcome) == ("gemini", model, capability, "ok")


async def test_what_a_voice_costs_is_counted(able: bot.Llm) -> None:
    await able.speak("Hello.", 5, 6)
    [call] = CALLS
    assert call.usage.output > 0 and (call.chat_id, call.user_id) == (5, 6)


@pytest.mark.parametrize("capability", JOBS)
async def test_each_capability_has_its_own_breaker(
    able: bot.Llm, gemini: FakeGemini, capability: bot.Capability
) -> None:
    model, job = JOBS[capability]
    gemini.fault("500", 99, model)
    if capability == "light":
        gemini.fault("500", 99, THIRD)
    for _ in range(6):
        with pytest.raises(bot.LlmError):
            await job(able)
    assert able.breakers["gemini", capability].state == "open"
    assert able.breakers["gemini", "chat"].state == "closed" and (await able.chat(question())).model == BEST


async def test_background_work_takes_no_place_of_talk(make: Make, gemini: FakeGemini) -> None:
    llm = make(MAX_PARALLEL_LLM=2)
    gemini.fault("hang", 2, SECOND)
    jobs = [asyncio.create_task(llm.extract(wanting(), Catch)) for _ in range(3)]
    await gemini.until(lambda: len(gemini.requests) == 2)
    assert llm.slots["light"].locked() and not llm.slots["chat"].locked()
    assert (await llm.chat(question())).text and len(gemini.requests) == 3  # the third job waits for a place
    for job in jobs:
        job.cancel()
    await asyncio.wait(jobs)
    assert not llm.slots["light"].locked()


CAN = [
    ({}, {"chat", "light", "draw"}),
    ({"GEMINI_IMAGE_MODEL": ""}, {"chat", "light"}),
    ({"GEMINI_EMBEDDING_MODEL": EMBED}, {"chat", "light", "embed", "draw"}),
    ({"GEMINI_TTS_MODEL": TTS}, {"chat", "light", "speak", "draw"}),
    ({"GEMINI_API_KEY": "", "GEMINI_TTS_MODEL": TTS}, set()),
    ({"GEMINI_API_KEY": "", "OPENAI_API_URL": "http://127.0.0.1:1", "OPENAI_MODEL": "m", "GEMINI_TTS_MODEL": TTS},
     {"chat", "light"}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "found"), CAN)
def test_what_can_be_done_is_known_before_it_is_tried(make: Make, given: dict[str, str], found: set[str]) -> None:
    llm = make(**given)
    capabilities: tuple[bot.Capability, ...] = ("chat", "light", "embed", "speak", "draw")
    assert {capability for capability in capabilities if llm.can(capability)} == found


async def test_light_work_goes_to_the_other_api_where_there_is_no_gemini(openai: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule("fish", '{"fish": "pike"}')
    assert await openai.extract(wanting(), Catch) == PIKE
    assert outcomes() == [("gpt-fish", "ok")] and CALLS[0].capability == "light"


# -- vectors


async def test_each_text_has_a_vector_of_its_own(able: bot.Llm, gemini: FakeGemini) -> None:
    pike, perch = await able.embed(["a pike", "a perch"])
    assert len(pike) == len(perch) == bot.VECTOR_SIZE and pike != perch
    assert await able.embed(["a perch", "a pike"]) == [perch, pike]
    assert len(gemini.requests) == 2


@pytest.mark.parametrize(("ask", "task"), [(True, "RETRIEVAL_QUERY"), (False, "RETRIEVAL_DOCUMENT")])
async def test_a_question_is_embedded_as_a_question(able: bot.Llm, gemini: FakeGemini, ask: bool, task: str) -> None:
    await able.embed(["which fish?"], question=ask)
    assert gemini.requests[-1].method == "batchEmbedContents"
    assert gemini.requests[-1].body == {
        "requests": [
            {
                "model": f"models/{EMBED}",
                "content": {"parts": [{"text": "which fish?"}]},
                "taskType": task,
                "outputDimensionality": bot.VECTOR_SIZE,
            }
        ]
    }


async def test_vectors_cost_what_their_texts_are_long(able: bot.Llm, gemini: FakeGemini) -> None:
    await able.embed(["a pike", "щука" * 1000])
    price = bot.price_of(EMBED, "2026-11-21")
    assert price and CALLS[0].usage == bot.Usage(2 + 2001) and CALLS[0].micro_usd == round(2003 * price.input)


@pytest.mark.parametrize("fault", ["503", "500", "malformed", "reset"])
async def test_one_fault_costs_no_vector(able: bot.Llm, gemini: FakeGemini, fault: str) -> None:
    gemini.fault(fault)
    assert len(await able.embed(["pike"])) == 1 and outcomes()[-1] == (EMBED, "ok")


ODD_VECTORS = [
    b"{}",
    b"[]",
    b"5",
    b"<html>portal</html>",
    b'{"embeddings": null}',
    b'{"embeddings": []}',
    b'{"embeddings": [{}]}',
    b'{"embeddings": ["x"]}',
    b'{"embeddings": [{"values": null}]}',
    b'{"embeddings": [{"values": "ab"}]}',
    b'{"embeddings": [{"values": ["a"]}]}',
    b'{"embeddings": [{"values": [null]}]}',
    b'{"embeddings": [{"values": []}]}',
    b'{"embeddings": [{"values": [1.0]}, {"values": [1.0]}]}',
]


@pytest.mark.parametrize("body", ODD_VECTORS)
async def test_odd_vectors_are_a_fault_of_the_model_and_nothing_worse(make: Make, body: bytes) -> None:
    async with Odd(response(body)) as server:
        with pytest.raises(bot.LlmError):
            await make(server.url, GEMINI_EMBEDDING_MODEL=EMBED).embed(["pike"])
    assert {call.outcome for call in CALLS} == {"malformed"}


# -- voice


async def test_a_voice_is_asked_for_and_comes_as_it_is(able: bot.Llm, gemini: FakeGemini) -> None:
    sound = bytes(range(256)) * 3
    blob = {"mimeType": "audio/wav", "data": base64.b64encode(sound).decode()}
    gemini.rule("Still", [{"text": "Here:"}, {"inlineData": blob}])
    assert await able.speak("Still waters run deep.") == bot.Media("audio/wav", sound)
    assert gemini.requests[-1].method == "generateContent"
    assert gemini.requests[-1].body == {
        "contents": [{"role": "user", "parts": [{"text": "Still waters run deep."}]}],
        "generationConfig": {
            "responseModalities": ["AUDIO"],
            "speechConfig": {"voiceConfig": {"prebuiltVoiceConfig": {"voiceName": bot.VOICE}}},
        },
    }


async def test_raw_samples_come_with_their_rate(able: bot.Llm) -> None:
    sound = await able.speak("Hello.")
    assert sound.mime == "audio/L16;codec=pcm;rate=24000" and len(sound.data) > 1000


@pytest.mark.parametrize("fault", ["empty", "no_parts", "503", "malformed", "reset"])
async def test_one_fault_costs_no_voice(able: bot.Llm, gemini: FakeGemini, fault: str) -> None:
    gemini.fault(fault)
    assert (await able.speak("Hello.")).data and outcomes()[-1] == (TTS, "ok")


SILENCES: list[dict[str, Any]] = [
    {},
    {"candidates": []},
    {"candidates": [{"finishReason": "OTHER"}]},
    {"candidates": [{"content": {"parts": []}}]},
    {"candidates": [{"content": {"parts": [{"text": "Hello."}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": ""}}]}}]},
]
ODD_SOUNDS: list[Any] = [
    [],
    5,
    {"candidates": "x"},
    {"candidates": ["x"]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"data": "AAAA"}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": 5}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": "A"}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": "x"}]}}]},
]


@pytest.mark.parametrize(
    ("body", "kind"), [*((body, "empty") for body in SILENCES), *((body, "malformed") for body in ODD_SOUNDS)]
)
async def test_an_answer_without_a_sound_is_a_fault_of_the_model(make: Make, body: Any, kind: str) -> None:
    async with Odd(response(bot.json_bytes(body))) as server:
        with pytest.raises(bot.LlmError):
            await make(server.url, GEMINI_TTS_MODEL=TTS).speak("Hello.")
    assert {call.outcome for call in CALLS} == {kind}


async def test_a_text_that_may_not_be_spoken_is_told_as_such(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.fault("blocked", 9)
    with pytest.raises(bot.LlmError) as error:
        await able.speak("Hello.")
    assert error.value.key == "llm.blocked" and len(gemini.requests) == 1


# -- pictures


def blob(data: bytes, mime: str = "image/png", **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": mime, "data": base64.b64encode(data).decode()}, **more}


@pytest.mark.parametrize("ratio", bot.RATIOS)
async def test_a_picture_is_asked_for_in_the_format_that_was_chosen(
    able: bot.Llm, gemini: FakeGemini, ratio: str
) -> None:
    drawn = await able.draw(dataclasses.replace(FISH, ratio=ratio))
    assert gemini.requests[-1].body == {
        "contents": [{"role": "user", "parts": [{"text": "A pike at dawn."}]}],
        "generationConfig": {"responseModalities": ["TEXT", "IMAGE"], "imageConfig": {"aspectRatio": ratio}},
    }
    width, height = map(int, ratio.split(":"))
    assert drawn.mime == "image/png" and bot.open_photo(drawn.data).picture.size == (64 * width, 64 * height)


async def test_where_no_format_was_chosen_the_model_chooses(able: bot.Llm, gemini: FakeGemini) -> None:
    await able.draw(bot.Drawing("A pike."))
    assert gemini.requests[-1].config == {"responseModalities": ["TEXT", "IMAGE"]}


async def test_pictures_to_go_by_go_with_the_words_in_their_order(able: bot.Llm, gemini: FakeGemini) -> None:
    references = tuple(bot.Media("image/jpeg", bytes([number]) * 99) for number in range(5))
    await able.draw(dataclasses.replace(FISH, references=references))
    [content] = gemini.requests[-1].contents
    assert content["parts"][0] == {"text": "A pike at dawn."}
    assert content["parts"][1:] == [blob(media.data, "image/jpeg") for media in references]


async def test_of_several_pictures_the_first_counts(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", [{"text": "Here are two:"}, blob(b"one"), blob(b"two")])
    assert await able.draw(FISH) == bot.Media("image/png", b"one")


async def test_what_a_model_only_thought_of_is_no_picture(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", [blob(b"a sketch", thought=True), blob(b"the picture")])
    assert await able.draw(FISH) == bot.Media("image/png", b"the picture")
    gemini.rules.clear()
    gemini.rule(".", [blob(b"a sketch", thought=True)])
    with pytest.raises(bot.LlmError):
        await able.draw(FISH)
    assert outcomes()[-1] == (EASEL, "empty")


async def test_words_for_a_picture_are_asked_about_once_more(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "I would rather describe it.", times=1)
    assert (await able.draw(FISH)).mime == "image/png"
    assert outcomes() == [(EASEL, "words"), (EASEL, "ok")]


async def test_words_instead_of_a_picture_are_told_as_such(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "I would rather describe it.")
    with pytest.raises(bot.LlmError) as error:
        await able.draw(FISH)
    assert error.value.key == "llm.words" and len(gemini.requests) == 2


@pytest.mark.parametrize("finish", sorted(bot.NO_PICTURE))
async def test_a_model_that_made_no_picture_may_be_asked_in_other_words(
    able: bot.Llm, gemini: FakeGemini, finish: str
) -> None:
    gemini.rule(".", [], finish=finish)
    with pytest.raises(bot.LlmError) as error:
        await able.draw(FISH)
    assert error.value.key == "llm.words" and len(gemini.requests) == 2


@pytest.mark.parametrize(
    "finish", ["IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION", "PROHIBITED_CONTENT", "SAFETY", "SPII"]
)
@pytest.mark.parametrize("said", [[], [{"text": "I can't draw that."}]])
async def test_a_picture_that_may_not_be_is_refused_at_once(
    make: Make, gemini: FakeGemini, finish: str, said: list[Any]
) -> None:
    gemini.rule(".", said, finish=finish)
    with pytest.raises(bot.LlmError) as error:
        await make(GEMINI_IMAGE_MODEL=f"{EASEL},{BEST}").draw(FISH)
    assert error.value.key == "llm.blocked" and outcomes() == [(EASEL, "blocked")]


async def test_a_wish_that_may_not_be_is_refused_at_once(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.fault("blocked", 9)
    with pytest.raises(bot.LlmError) as error:
        await able.draw(FISH)
    assert error.value.key == "llm.blocked" and outcomes() == [(EASEL, "blocked")]


@pytest.mark.parametrize("fault", ["empty", "no_parts", "503", "500", "malformed", "reset"])
async def test_one_fault_costs_no_picture(able: bot.Llm, gemini: FakeGemini, fault: str) -> None:
    gemini.fault(fault)
    assert (await able.draw(FISH)).data and outcomes()[-1] == (EASEL, "ok")


@pytest.mark.parametrize(
    ("fault", "options", "outcome"), [("429", {"per_day": True}, "quota"), ("429", {}, "rate"), ("404", {}, "retired")]
)
async def test_the_next_model_draws_where_the_first_one_does_not(
    make: Make, gemini: FakeGemini, fault: str, options: dict[str, Any], outcome: str
) -> None:
    gemini.fault(fault, 9, EASEL, **options)
    llm = make(GEMINI_IMAGE_MODEL=f"{EASEL},{BEST}")
    assert (await llm.draw(FISH)).data and outcomes() == [(EASEL, outcome), (BEST, "ok")]
    assert (await llm.draw(FISH)).data and len(gemini.requests) == 3  # it is not asked at all


async def test_a_model_that_is_no_more_is_passed_over(make: Make, gemini: FakeGemini) -> None:
    assert (await make(GEMINI_IMAGE_MODEL=f"gemini-2.5-flash-image,{EASEL}").draw(FISH)).data
    assert outcomes() == [("gemini-2.5-flash-image", "retired"), (EASEL, "ok")]


@pytest.mark.parametrize(("fault", "options", "key"), [
    ("429", {"per_day": True}, "llm.quota"), ("429", {"retry_delay": 300}, "llm.rate"), ("503", {}, "llm.overloaded"),
    ("400", {}, "llm.request"), ("403", {}, "llm.key"), ("reset", {}, "llm.network"), ("empty", {}, "llm.server"),
])  # fmt: skip
async def test_where_nobody_draws_the_reason_is_told(
    able: bot.Llm, gemini: FakeGemini, fault: str, options: dict[str, Any], key: str
) -> None:
    gemini.fault(fault, 99, **options)
    with pytest.raises(bot.LlmError) as error:
        await able.draw(FISH)
    assert error.value.key == key


async def test_a_picture_takes_no_longer_than_is_set(make: Make, gemini: FakeGemini) -> None:
    gemini.fault("hang", 99)
    with pytest.raises(bot.LlmError) as error:
        await make(timeout=0.1).draw(FISH)
    assert error.value.key == "llm.timeout"


async def test_a_picture_of_many_megabytes_is_read_whole(make: Make, gemini: FakeGemini) -> None:
    data = random.Random(1).randbytes(12_000_000)
    gemini.rule(".", [blob(data)])
    assert await make(timeout=60).draw(FISH) == bot.Media("image/png", data)


async def test_no_more_pictures_are_drawn_at_once_than_is_set(make: Make, gemini: FakeGemini) -> None:
    llm = make(MAX_PARALLEL_IMAGES=2)
    gemini.fault("hang", 2)
    wishes = [asyncio.create_task(llm.draw(FISH)) for _ in range(3)]
    await gemini.until(lambda: len(gemini.requests) == 2)
    assert llm.slots["draw"].locked() and not llm.slots["chat"].locked()
    for wish in wishes[:2]:
        wish.cancel()
    assert (await wishes[2]).data


ODD_PICTURES: list[Any] = [
    [], 5, {"candidates": "x"}, {"candidates": ["x"]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"data": "AAAA"}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": 5}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "A"}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AA!!AA=="}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": "x"}]}}]},
]  # fmt: skip
NO_PICTURES: list[dict[str, Any]] = [
    {}, {"candidates": []}, {"candidates": [{"finishReason": "OTHER"}]}, {"candidates": [{"content": {"parts": []}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "image/png", "data": ""}}]}}]},
    {"candidates": [{"content": {"parts": [{"inlineData": {"mimeType": "audio/wav", "data": "AAAA"}}]}}]},
    {"candidates": [{"content": {"parts": [{"text": " \u200b"}]}}]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind"), [*((body, "empty") for body in NO_PICTURES), *((body, "malformed") for body in ODD_PICTURES)]
)
async def test_an_answer_without_a_picture_is_a_fault_of_the_model(make: Make, body: Any, kind: str) -> None:
    async with Odd(response(bot.json_bytes(body))) as server:
        with pytest.raises(bot.LlmError):
            await make(server.url).draw(FISH)
    assert {call.outcome for call in CALLS} == {kind}


PICTURE_COSTS: list[tuple[dict[str, Any], bot.Usage, int]] = [  # what the server says, what it means, what it costs
    ({"promptTokenCount": 100, "candidatesTokenCount": 1130, "thoughtsTokenCount": 50,
      "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 1120}, {"modality": "TEXT", "tokenCount": 10}]},
     bot.Usage(100, 1130, 50, picture=1120), 67_430),
    ({"promptTokenCount": 100, "candidatesTokenCount": 1120}, bot.Usage(100, 1120, picture=1120), 67_250),
    ({}, bot.Usage(4, bot.PICTURE_TOKENS, picture=bot.PICTURE_TOKENS), 77_402),
]  # fmt: skip


@pytest.mark.parametrize(("said", "usage", "micro_usd"), PICTURE_COSTS)
async def test_what_a_picture_costs_is_counted(
    make: Make, said: dict[str, Any], usage: bot.Usage, micro_usd: int
) -> None:
    body = {"candidates": [{"content": {"parts": [blob(PNG)]}}], "usageMetadata": said}
    async with Odd(response(bot.json_bytes(body))) as server:
        await make(server.url).draw(FISH)
    [call] = CALLS
    assert (call.usage, call.micro_usd, call.chat_id, call.user_id) == (usage, micro_usd, 5, 6)


async def test_words_cost_what_words_cost(able: bot.Llm, gemini: FakeGemini) -> None:
    gemini.rule(".", "No." * 400)
    with pytest.raises(bot.LlmError):
        await able.draw(FISH)
    assert CALLS[0].usage.picture == 0 and CALLS[0].micro_usd and CALLS[0].micro_usd < 2000


async def test_without_budget_nothing_is_drawn(able: bot.Llm, gemini: FakeGemini) -> None:
    able.may_pay = lambda: False
    assert not able.affords("draw")
    with pytest.raises(bot.LlmError) as error:
        await able.draw(FISH)
    assert error.value.key == "llm.budget" and gemini.requests == []


# -- checking


async def test_a_model_can_be_checked_without_asking_it(make: Make, gemini: FakeGemini) -> None:
    provider = make().providers[0]
    await provider.check(BEST)
    with pytest.raises(bot.LlmFault, match="retired"):
        await provider.check("gemini-0.1")
    with pytest.raises(bot.LlmFault, match="key"):
        await make(GEMINI_API_KEY="wrong").providers[0].check(BEST)
    assert gemini.requests == []


async def test_another_apis_models_can_be_checked(make: Make, gemini: FakeGemini) -> None:
    given = {"GEMINI_API_KEY": "", "OPENAI_API_URL": gemini.url + "/v1", "OPENAI_MODEL": "x"}
    provider = make(**given, OPENAI_API_KEY="k").providers[0]
    await provider.check(BEST)
    with pytest.raises(bot.LlmFault, match="retired"):
        await provider.check("gpt-0")
    with pytest.raises(bot.LlmFault, match="key"):
        await make(**given).providers[0].check(BEST)


# -- without a model

SEED = ["Still waters run deep.", "A fish keeps quiet at night.", "The river knows the way to the sea."]


@pytest.mark.parametrize("seed", range(20))
def test_a_bot_without_a_model_strings_words_it_has_heard(seed: int) -> None:
    lines = ["we went to the river at night", "the river was cold", "the cat knows the way home"]
    said = bot.babble(lines, SEED, "where is the river?", random.Random(seed))
    heard = {word.lower().strip(".") for line in (*lines, *SEED) for word in line.split()}
    words = said.lower().strip(".").split()
    assert {word.strip(".") for word in words} <= heard
    assert 1 <= len(words) <= 18 and said[0].isupper() and said[-1] in ".!?…)"
    pairs = {(a.lower().strip("."), b.lower().strip(".")) for line in (*lines, *SEED)
             for a, b in zip(line.split(), line.split()[1:], strict=False)}  # fmt: skip
    follows = sum((a.strip("."), b.strip(".")) in pairs for a, b in itertools.pairwise(words))
    assert follows >= len(words) - 1 - said.count(" ") // 3


def test_it_begins_near_the_question() -> None:
    begins = [bot.babble([], SEED, "Tell me about the river", random.Random(n)).split()[0] for n in range(40)]
    assert begins.count("River") > 15 and len(set(begins)) > 1


def test_it_says_something_even_where_nothing_was_said() -> None:
    assert len(bot.babble([], SEED, "", random.Random(1)).split()) >= 3
    assert isinstance(bot.babble([], [], "", random.Random(1)), str)
    assert isinstance(bot.babble(["one"], [], "one", random.Random(1)), str)


def test_the_same_dice_say_the_same() -> None:
    assert bot.babble([], SEED, "x", random.Random(3)) == bot.babble([], SEED, "x", random.Random(3))


def test_bodies_are_json_as_it_stands() -> None:
    assert json.loads(bot.json_dumps({"text": "Окунь \u2028 🐟"})) == {"text": "Окунь \u2028 🐟"}


@pytest.mark.parametrize(
    ("chunks", "whole"),
    [
        (["a\ud83d", "\ude00b"], "a😀b"),  # a pair that two chunks cut apart
        (["a\ud83d", "b"], "a\ufffdb"),
        (["a\ude00b"], "a\ufffdb"),
        (["a\0b"], "ab"),
        (["Ґ", "ава 😀"], "Ґава 😀"),
    ],
)
def test_halves_of_characters_are_mended(chunks: list[str], whole: str) -> None:
    text = ""
    for chunk in chunks:
        text = bot.joined(text, chunk)
    assert text == whole


@pytest.mark.parametrize("text", ["\0", "\u202e\u202e", "\u200b", " \n", "\ufeff\u00ad"])
async def test_what_nobody_can_see_is_no_answer(make: Make, gemini: FakeGemini, text: str) -> None:
    gemini.rule(".", text)
    with pytest.raises(bot.LlmError):
        await make(GEMINI_MODEL=BEST).chat(question())


async def test_a_server_that_wants_another_word_for_the_limit_gets_it() -> None:
    provider = bot.OpenAi(settings("", OPENAI_API_URL="http://127.0.0.1:1", OPENAI_MODEL="m"), bot.Once(anything))
    assert "max_tokens" in provider.body("m", question())
    provider._limit = "max_completion_tokens"
    assert "max_completion_tokens" in provider.body("m", question())


async def anything() -> Any:
    return None
