"""The models over HTTP: what is asked of each, what their answers and their faults become, who is asked next."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
import json
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
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
