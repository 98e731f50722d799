"""The fakes refuse what the real servers refuse, and answer from the request."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import aiohttp
import orjson
import pytest
from aiogram.types import CallbackQuery, ChatFullInfo, Message, Update
from fakes import BotProcess, Broken, Chat, FakeGemini, FakeTelegram, Json, Upload
from PIL import Image
from pydantic import TypeAdapter

KEY = {"x-goog-api-key": "k"}


@pytest.fixture
def telegram() -> FakeTelegram:
    return FakeTelegram()


@pytest.fixture
def chat(telegram: FakeTelegram) -> Chat:
    return telegram.private(telegram.user(7, "Anna", username="anna"))


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini() as server:
        yield server


@pytest.fixture
async def web() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def refusal(telegram: FakeTelegram, method: str, **params: Any) -> str:
    answer = telegram.call(method, params)
    assert not answer["ok"], answer
    return str(answer["description"])


def send(telegram: FakeTelegram, text: str = "hi", **params: Any) -> Json:
    answer = telegram.call("sendMessage", {"chat_id": 7, "text": text, **params})
    assert answer["ok"], answer
    result: Json = answer["result"]
    return result


def png(width: int = 8, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "PNG")
    return file.getvalue()


async def ask(
    web: aiohttp.ClientSession,
    gemini: FakeGemini,
    body: Json,
    how: str = "generateContent",
    model: str = "gemini-3.8-flash",
) -> Json:
    async with web.post(f"{gemini.url}/v1beta/models/{model}:{how}", json=body, headers=KEY) as answer:
        found: Json = await answer.json()
        return found


def turn(text: str, role: str = "user") -> Json:
    return {"role": role, "parts": [{"text": text}]}


# == Telegram ==========================================================================================================


def test_a_text_is_one_to_4096_utf16_units_after_trimming(telegram: FakeTelegram, chat: Chat) -> None:
    assert send(telegram, "🐟" * 2048 + " \n")["text"] == "🐟" * 2048
    assert refusal(telegram, "sendMessage", chat_id=7, text="🐟" * 2049) == "Bad Request: message is too long"
    assert refusal(telegram, "sendMessage", chat_id=7, text=" \n ") == "Bad Request: message text is empty"
    assert "caption is too long" in refusal(telegram, "sendDocument", chat_id=7, document=b"x", caption="c" * 1025)


@pytest.mark.parametrize(
    "entity",
    [
        {"type": "bold", "offset": 1, "length": 3},
        {"type": "bold", "offset": 0, "length": 1},  # half of the fish
        {"type": "bold", "offset": -1, "length": 1},
        {"type": "shiny", "offset": 0, "length": 2},
        {"type": "text_link", "offset": 0, "length": 2, "url": "not a link"},
        {"type": "text_link", "offset": 0, "length": 2},
        {"type": "bold", "offset": "0", "length": 2},
    ],
)
def test_an_entity_that_does_not_fit_the_text_is_refused(telegram: FakeTelegram, chat: Chat, entity: Json) -> None:
    description = refusal(telegram, "sendMessage", chat_id=7, text="🐟a", entities=[entity])
    assert "can't parse MessageEntity" in description or "ENTITY_BOUNDS_INVALID" in description


def test_entities_move_with_the_trimmed_text_and_links_are_found(telegram: FakeTelegram, chat: Chat) -> None:
    bold, url = {"type": "bold", "offset": 0, "length": 4}, {"type": "url", "offset": 5, "length": 19}
    assert send(telegram, "  bold https://example.com ", entities=[bold | {"length": 6}])["entities"] == [bold, url]
    many = [{"type": "bold", "offset": n, "length": 1} for n in range(101)]
    assert "ENTITIES_TOO_LONG" in refusal(telegram, "sendMessage", chat_id=7, text="x" * 101, entities=many)


def test_buttons_need_text_and_at_most_64_bytes_of_data(telegram: FakeTelegram, chat: Chat) -> None:
    def keyboard(*buttons: Json) -> Json:
        return {"inline_keyboard": [[button] for button in buttons]}

    assert send(telegram, reply_markup=keyboard({"text": "ok", "callback_data": "д" * 32}))["reply_markup"]
    for bad, why in [
        ({"text": "long", "callback_data": "д" * 33}, "BUTTON_DATA_INVALID"),
        ({"text": "", "callback_data": "x"}, "must be non-empty"),
        ({"text": "nothing"}, "Text buttons are unallowed"),
    ]:
        assert why in refusal(telegram, "sendMessage", chat_id=7, text="x", reply_markup=keyboard(bad))
    many = keyboard(*[{"text": "b", "callback_data": "b"}] * 101)
    assert "too long" in refusal(telegram, "sendMessage", chat_id=7, text="x", reply_markup=many)


def test_unknown_methods_fail_and_unknown_names_are_noted(telegram: FakeTelegram, chat: Chat) -> None:
    assert telegram.call("sendSomething", {})["error_code"] == 404
    assert "is required" in refusal(telegram, "sendChatAction", chat_id=7)
    assert "can't parse field" in refusal(telegram, "sendMessage", chat_id=[7], text="x")
    assert telegram.unknown == []
    send(telegram, reply_parameters={"message_id": 1, "allow_sending_without_reply": True, "colour": 1}, shade=2)
    assert telegram.unknown == ["sendMessage.shade", "sendMessage.reply_parameters.colour"]


def test_the_bot_writes_only_where_it_may(telegram: FakeTelegram, chat: Chat) -> None:
    telegram.user(8, "Stranger")
    group = telegram.group("Pond")
    assert "chat not found" in refusal(telegram, "sendMessage", chat_id=999, text="x")
    assert "can't initiate conversation" in refusal(telegram, "sendMessage", chat_id=8, text="x")
    telegram.membership(chat, "kicked")
    telegram.membership(group, "kicked")
    assert refusal(telegram, "sendMessage", chat_id=7, text="x") == "Forbidden: bot was blocked by the user"
    assert "kicked from the supergroup chat" in refusal(telegram, "sendMessage", chat_id=group.id, text="x")
    old = telegram.group("Old", kind="group")
    new = telegram.migrate(old)
    moved = telegram.call("sendMessage", {"chat_id": old.id, "text": "x"})
    assert moved["parameters"] == {"migrate_to_chat_id": new.id}


def test_replies_and_topics_must_exist(telegram: FakeTelegram, chat: Chat) -> None:
    reply = {"message_id": 99}
    assert "message to be replied not found" in refusal(
        telegram, "sendMessage", chat_id=7, text="x", reply_parameters=reply
    )
    assert send(telegram, reply_parameters=reply | {"allow_sending_without_reply": True})
    forum = telegram.group("Forum", forum=True)
    thread = telegram.topic(forum, "Carp")
    assert send(telegram, chat_id=forum.id, message_thread_id=thread)["is_topic_message"]
    for missing in (1, thread + 1):
        assert "message thread not found" in refusal(
            telegram, "sendMessage", chat_id=forum.id, text="x", message_thread_id=missing
        )


def test_an_edit_must_change_something_of_the_bots_own(telegram: FakeTelegram, chat: Chat) -> None:
    mine = send(telegram, "one")["message_id"]
    assert "message is not modified" in refusal(telegram, "editMessageText", chat_id=7, message_id=mine, text="one")
    assert telegram.call("editMessageText", {"chat_id": "7", "message_id": str(mine), "text": "two"})["ok"]
    assert [message["text"] for message in telegram.sent(chat)] == ["two"]
    assert "message to edit not found" in refusal(telegram, "editMessageText", chat_id=7, message_id=55, text="x")
    telegram.say(chat, telegram.users[7], "hers")
    theirs = telegram.last(chat)["message_id"]
    assert "can't be edited" in refusal(telegram, "editMessageText", chat_id=7, message_id=theirs, text="x")


def test_only_telegrams_own_reactions_and_actions_exist(telegram: FakeTelegram, chat: Chat) -> None:
    telegram.say(chat, telegram.users[7], "look")
    heart, fish = ({"type": "emoji", "emoji": emoji} for emoji in "❤🐟")
    assert telegram.call("setMessageReaction", {"chat_id": 7, "message_id": 1, "reaction": [heart]})["ok"]
    assert telegram.reactions(chat, 1) == ["❤"]
    assert "REACTION_INVALID" in refusal(telegram, "setMessageReaction", chat_id=7, message_id=1, reaction=[fish])
    assert "TOO_MANY" in refusal(telegram, "setMessageReaction", chat_id=7, message_id=1, reaction=[heart, heart])
    assert "wrong parameter action" in refusal(telegram, "sendChatAction", chat_id=7, action="fishing")


def test_a_draft_needs_an_id_and_a_private_chat_and_can_be_stopped(telegram: FakeTelegram, chat: Chat) -> None:
    group = telegram.group("Pond")
    assert "DRAFT_ID_INVALID" in refusal(telegram, "sendMessageDraft", chat_id=7, draft_id=0, text="x")
    assert "private chats" in refusal(telegram, "sendMessageDraft", chat_id=group.id, draft_id=1, text="x")
    assert telegram.call("sendMessageDraft", {"chat_id": 7, "draft_id": 3, "text": "he", "can_stop": True})["ok"]
    telegram.stop_draft(chat)
    assert telegram.next_updates()[0]["stopped_message_generation"]["draft_id"] == 3
    rich = {"html": "<b>x</b>", "markdown": "x"}
    assert "exactly one" in refusal(telegram, "sendRichMessage", chat_id=7, rich_message=rich)


def test_a_query_is_answered_once(telegram: FakeTelegram, chat: Chat) -> None:
    send(telegram, reply_markup={"inline_keyboard": [[{"text": "Hook 🎣", "callback_data": "g1:hook"}]]})
    telegram.press(chat, telegram.users[7], "Hook")
    query = CallbackQuery.model_validate(telegram.next_updates()[0]["callback_query"])
    assert query.data == "g1:hook"
    assert telegram.call("answerCallbackQuery", {"callback_query_id": query.id})["ok"]
    assert "query is too old" in refusal(telegram, "answerCallbackQuery", callback_query_id=query.id)
    with pytest.raises(LookupError):
        telegram.press(chat, telegram.users[7], "Sink")


def test_files_are_real_and_at_most_20_mb_come_back(telegram: FakeTelegram, chat: Chat) -> None:
    assert "IMAGE_PROCESS_FAILED" in refusal(telegram, "sendPhoto", chat_id=7, photo=b"no picture")
    assert "PHOTO_INVALID_DIMENSIONS" in refusal(telegram, "sendPhoto", chat_id=7, photo=png(4, 100))
    sent = telegram.call("sendPhoto", {"chat_id": 7, "photo": "attach://f"}, {"f": png()})["result"]
    again = telegram.call("sendPhoto", {"chat_id": 7, "photo": sent["photo"][-1]["file_id"]})["result"]
    assert again["photo"][-1] == sent["photo"][-1]
    assert "wrong remote file" in refusal(telegram, "sendPhoto", chat_id=7, photo="made-up")
    assert "can't use file of type" in refusal(telegram, "sendVoice", chat_id=7, voice=sent["photo"][-1]["file_id"])
    telegram.voice(chat, telegram.users[7], size=25 << 20)
    assert "file is too big" in refusal(telegram, "getFile", file_id=telegram.last(chat)["voice"]["file_id"])


def test_commands_have_telegrams_form(telegram: FakeTelegram, chat: Chat) -> None:
    good = {"command": "cast", "description": "Cast the line"}
    scope = {"type": "chat", "chat_id": 7}
    assert telegram.call("setMyCommands", {"commands": [good], "scope": scope, "language_code": "uk"})["ok"]
    assert telegram.call("getMyCommands", {"scope": scope, "language_code": "uk"})["result"] == [good]
    assert "COMMAND_INVALID" in refusal(telegram, "setMyCommands", commands=[good | {"command": "Cast"}])
    assert "DESCRIPTION_INVALID" in refusal(telegram, "setMyCommands", commands=[good | {"description": ""}])
    assert "chat not found" in refusal(telegram, "setMyCommands", commands=[good], scope=scope | {"chat_id": 1})


def test_what_people_do_is_what_aiogram_reads(telegram: FakeTelegram, chat: Chat) -> None:
    anna, group = telegram.users[7], telegram.group("Pond", [telegram.users[7]])
    telegram.say(chat, anna, "/start@okun_bot hi @anna, see example.com")
    telegram.say(group, group, "from nobody")
    telegram.album(chat, anna, [png(), png(9)], "two")
    telegram.sticker(chat, anna)
    telegram.document(chat, anna, b"text")
    telegram.poll(chat, anna, "Fish?", ["yes", "no"])
    telegram.location(chat, anna, 50.4, 30.5)
    for kind in ("audio", "video", "video_note", "animation", "voice"):
        getattr(telegram, kind)(chat, anna)
    telegram.membership(group, "administrator")
    updates = [Update.model_validate(raw) for raw in telegram.next_updates()]
    first, anonymous = updates[0].message, updates[1].message
    assert first and [e.type for e in first.entities or []] == ["bot_command", "mention", "url"]
    assert anonymous and anonymous.sender_chat and anonymous.sender_chat.id == group.id
    assert [update.update_id for update in updates] == list(range(1001, 1015))
    ChatFullInfo.model_validate(telegram.call("getChat", {"chat_id": group.id})["result"])
    Message.model_rebuild()
    TypeAdapter(list[Message]).validate_python(telegram.sent(chat))


def test_stars_are_paid_and_refunded_once(telegram: FakeTelegram, chat: Chat) -> None:
    order = {"chat_id": 7, "title": "Bait", "description": "100", "payload": "p1", "currency": "XTR"}
    assert "STARS_INVOICE_INVALID" in refusal(telegram, "sendInvoice", **order, prices=[])
    assert telegram.call("sendInvoice", {**order, "prices": [{"label": "100", "amount": 50}]})["ok"]
    telegram.pay(chat, telegram.users[7])
    query = telegram.next_updates()[0]["pre_checkout_query"]
    assert telegram.call("answerPreCheckoutQuery", {"pre_checkout_query_id": query["id"], "ok": True})["ok"]
    payment = telegram.next_updates()[0]["message"]["successful_payment"]
    assert (payment["invoice_payload"], payment["total_amount"]) == ("p1", 50)
    refund = {"user_id": 7, "telegram_payment_charge_id": payment["telegram_payment_charge_id"]}
    assert telegram.call("refundStarPayment", refund)["ok"]
    told = telegram.next_updates()[-1]["message"]["refunded_payment"]
    assert told == {key: payment[key] for key in payment if key != "provider_payment_charge_id"}
    assert "ALREADY_REFUNDED" in refusal(telegram, "refundStarPayment", **refund)


def test_faults_strike_as_often_as_told(telegram: FakeTelegram, chat: Chat) -> None:
    telegram.fault("429", "send*", times=2, chat_id=7, retry_after=5)
    telegram.fault("reset_after", "sendMessage")
    limited = telegram.call("sendMessage", {"chat_id": 7, "text": "a"})
    assert limited["parameters"] == {"retry_after": 5} and telegram.call("getMe", {})["ok"]
    assert not telegram.call("sendMessage", {"chat_id": "7", "text": "a"})["ok"]
    with pytest.raises(Broken, match="reset_after"):
        telegram.call("sendMessage", {"chat_id": 7, "text": "b"})
    assert [message["text"] for message in telegram.sent(chat)] == ["b"] and send(telegram, "c")


async def test_the_http_front_reads_every_kind_of_body(
    telegram: FakeTelegram, chat: Chat, web: aiohttp.ClientSession
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b'{"chat_id": 7, '
        yield b'"text": "chunked"}'

    async with telegram:
        url = f"{telegram.url}/bot{telegram.token}/"
        markup = orjson.dumps({"inline_keyboard": [[{"text": "b", "callback_data": "b"}]]}).decode()
        await web.get(url + "sendMessage?chat_id=7&text=get")
        await web.post(url + "sendMessage", data={"chat_id": "7", "text": "form", "reply_markup": markup})
        await web.post(url + "sendMessage", data=pieces(), headers={"content-type": "application/json"})
        form = aiohttp.FormData({"chat_id": "7", "document": "attach://x", "caption": "multipart"})
        form.add_field("x", b"\r\n--bytes\r\n", filename="a.txt")
        await web.post(url + "sendDocument", data=form)
        assert [m.get("text", m.get("caption")) for m in telegram.sent(chat)] == ["get", "form", "chunked", "multipart"]
        card = telegram.sent(chat)[-1]["document"]
        path = telegram.call("getFile", {"file_id": card["file_id"]})["result"]["file_path"]
        file = await web.get(f"{telegram.url}/file/bot{telegram.token}/{path}")
        assert (await file.read(), card["file_name"]) == (b"\r\n--bytes\r\n", "a.txt")
        assert (await web.get(f"{telegram.url}/bot1:WRONG/getMe")).status == 401


async def test_a_long_poll_ends_with_an_update_or_a_rival(
    telegram: FakeTelegram, chat: Chat, web: aiohttp.ClientSession
) -> None:
    async def poll(**params: Any) -> Json:
        async with web.post(f"{telegram.url}/bot{telegram.token}/getUpdates", json=params) as answer:
            found: Json = await answer.json()
            return found

    async with telegram:
        first = asyncio.create_task(poll(timeout=30, allowed_updates=["message"]))
        await telegram.until(lambda: telegram.polls == 1)
        second = asyncio.create_task(poll(timeout=30))
        assert (await first)["error_code"] == 409
        telegram.push({"edited_message": {}})
        update_id = telegram.say(chat, telegram.users[7], "hi")
        assert [update["update_id"] for update in (await second)["result"]] == [update_id]
        assert len((await poll())["result"]) == 1 and (await poll(offset=update_id + 1))["result"] == []
        telegram.call("setWebhook", {"url": "https://example.com/hook"})
        assert (await poll())["error_code"] == 409


@pytest.mark.parametrize("kind", ["reset", "reset_after", "truncated", "malformed", "502html", "slow", "401"])
async def test_a_broken_answer_looks_broken_over_http(
    telegram: FakeTelegram, chat: Chat, web: aiohttp.ClientSession, kind: str
) -> None:
    async with telegram:
        telegram.fault(kind, "sendMessage", seconds=0)
        try:
            async with web.post(
                f"{telegram.url}/bot{telegram.token}/sendMessage", json={"chat_id": 7, "text": "x"}
            ) as answer:
                got: object = orjson.loads(await answer.read())["ok"]
        except (aiohttp.ClientError, ValueError) as error:
            got = type(error)
    expected = {"slow": True, "401": False, "malformed": orjson.JSONDecodeError, "502html": orjson.JSONDecodeError}
    expected["truncated"] = aiohttp.ClientPayloadError
    assert got == expected.get(kind, aiohttp.ServerDisconnectedError)
    assert len(telegram.sent(chat)) == (kind not in ("reset", "502html", "401"))


# == Gemini ============================================================================================================


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"contents": []}, "not specified"),
        ({"contents": [turn("a"), turn("b")]}, "alternate"),
        ({"contents": [turn("a"), turn("b", "model")]}, "end with a user role"),
        ({"contents": [turn("a", "assistant")]}, "valid role"),
        ({"contents": [{"role": "user", "parts": []}]}, "must not be empty"),
        ({"contents": [{"role": "user", "parts": [{"txt": "a"}]}]}, "Unknown name \"txt\" at 'contents[0].parts[0]'"),
        ({"contents": [{"role": "user", "parts": [{"inlineData": {"mimeType": "a/b", "data": "!"}}]}]}, "Base64"),
        ({"generationConfig": {"temperature": 1}}, "temperature is not supported"),
        ({"generationConfig": {"thinkingConfig": {"thinkingLevel": "minimal"}}}, "not supported for this model"),
        ({"generationConfig": {"maxOutputTokens": "9"}}, "TYPE_INT"),
        ({"generationConfig": {"responseSchema": {"type": "STRING"}}}, "application/json"),
        ({"tools": [{"functionDeclarations": [{"name": "a b"}]}]}, "function name"),
        ({"colour": 1}, 'Unknown name "colour"'),
    ],
)
async def test_gemini_refuses_what_it_does_not_know(
    gemini: FakeGemini, web: aiohttp.ClientSession, change: Json, why: str
) -> None:
    error = (await ask(web, gemini, {"contents": [turn("hi")]} | change))["error"]
    assert why in error["message"] and error["status"] == "INVALID_ARGUMENT"


async def test_gemini_echoes_the_request_and_honours_the_limit(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    data = base64.b64encode(b"sound").decode()
    said = {"role": "user", "parts": [{"text": "hello"}, {"inlineData": {"mimeType": "audio/ogg", "data": data}}]}
    answer = await ask(web, gemini, {"contents": [turn("a"), turn("b", "model"), said]})
    text = answer["candidates"][0]["content"]["parts"][0]["text"]
    sound = hashlib.sha1(b"sound").hexdigest()[:8]
    assert text == f'echo of "hello" | media=audio/ogg:{sound} | turns=3 | model=gemini-3.8-flash'
    short = await ask(web, gemini, {"contents": [turn("a")], "generationConfig": {"maxOutputTokens": 2}})
    candidate = short["candidates"][0]
    assert (candidate["content"]["parts"][0]["text"], candidate["finishReason"]) == ("echo of ", "MAX_TOKENS")


async def test_a_function_call_wants_its_signature_back(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    gemini.rule("roll", {"functionCall": {"name": "dice", "args": {}}}, times=1)
    said = await ask(web, gemini, {"contents": [turn("roll")]})
    call = said["candidates"][0]["content"]
    result = {"role": "user", "parts": [{"functionResponse": {"name": "dice", "response": {"value": 4}}}]}
    bare = {"role": "model", "parts": [{"functionCall": call["parts"][0]["functionCall"]}]}
    assert "candidates" in await ask(web, gemini, {"contents": [turn("roll"), call, result]})
    for reply, why in (([bare, result], "thought_signature"), ([call, turn("4")], "number of function response")):
        assert why in (await ask(web, gemini, {"contents": [turn("roll"), *reply]}))["error"]["message"]


async def test_a_stream_comes_in_pieces_and_can_be_cut(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    url = f"{gemini.url}/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
    gemini.rule("tell", "one two three", chunk=4, thought="hm")
    async with web.post(url, json={"contents": [turn("tell")]}, headers=KEY) as answer:
        lines = (await answer.text()).split("\r\n\r\n")
    chunks = [orjson.loads(line.removeprefix("data: ")) for line in lines if line]
    parts = [chunk["candidates"][0]["content"]["parts"][0] for chunk in chunks]
    assert [part["text"] for part in parts] == ["hm", "one ", "two ", "thre", "e"] and parts[0]["thought"]
    assert "finishReason" in chunks[-1]["candidates"][0] and chunks[-1]["usageMetadata"]["thoughtsTokenCount"] == 1
    gemini.fault("cut", chunks=2)
    with pytest.raises(aiohttp.ClientPayloadError):
        async with web.post(url, json={"contents": [turn("tell")]}, headers=KEY) as answer:
            await answer.read()


async def test_gemini_errors_carry_their_details(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    gemini.fault("429", model="gemini-3.8-flash", retry_delay=7, per_day=True)
    quota, retry = (await ask(web, gemini, {"contents": [turn("a")]}))["error"]["details"]
    assert retry["retryDelay"] == "7s" and "PerDay" in quota["violations"][0]["quotaId"]
    assert (await ask(web, gemini, {"contents": [turn("a")]}, model="gemini-1.0"))["error"]["code"] == 404
    gemini.fault("blocked")
    blocked = await ask(web, gemini, {"contents": [turn("a")]})
    assert blocked["promptFeedback"]["blockReason"] and "candidates" not in blocked
    gemini.key = "other"
    assert (await ask(web, gemini, {"contents": [turn("a")]}))["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert (await web.get(gemini.url + "/v1beta/models")).status == 403


async def test_like_texts_have_like_vectors(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    async def vector(text: str) -> list[float]:
        body = {"content": {"parts": [{"text": text}]}, "outputDimensionality": 256}
        answer = await ask(web, gemini, body, "embedContent", "gemini-embedding-001")
        return cast(list[float], answer["embedding"]["values"])

    base, near, far = [await vector(text) for text in ("big green pike", "green pike", "stock market news")]
    likeness = [sum(a * b for a, b in zip(base, other, strict=True)) for other in (near, far)]
    assert likeness[0] > 0.5 > likeness[1]


def batch_of(*texts: str, model: str = "gemini-embedding-001", **more: Any) -> Json:
    return {"requests": [{"model": f"models/{model}", "content": {"parts": [{"text": t}]}, **more} for t in texts]}


async def test_a_batch_has_a_vector_for_each_text_in_its_order(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    async def vectors(*texts: str) -> list[Json]:
        body = batch_of(*texts, outputDimensionality=8)
        return cast(
            list[Json], (await ask(web, gemini, body, "batchEmbedContents", "gemini-embedding-001"))["embeddings"]
        )

    pike, carp = await vectors("pike", "carp")
    assert len(pike["values"]) == 8 and pike != carp
    assert await vectors("carp", "pike") == [carp, pike]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({"requests": []}, "not specified"),
        (batch_of(*"ab" * 51), "at most 100"),
        (batch_of("a", model="gemini-embedding-002"), "must match"),
        (batch_of("a", title="A"), "only with RETRIEVAL_DOCUMENT"),
        (batch_of(""), "not specified"),
        (batch_of("a", taskType="SEARCH"), "enum"),
        ({"content": {"parts": [{"text": "a"}]}}, "Unknown name"),
    ],
)
async def test_a_batch_that_is_not_as_it_should_be_is_refused(
    gemini: FakeGemini, web: aiohttp.ClientSession, body: Json, problem: str
) -> None:
    answer = await ask(web, gemini, body, "batchEmbedContents", "gemini-embedding-001")
    assert answer["error"]["code"] == 400 and problem in answer["error"]["message"]


async def test_a_field_that_a_model_lacks_is_refused_in_words(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    gemini.lacks["gemini-2.5-flash"] = {"tools": "Function calling is not enabled for models/gemini-2.5-flash"}
    body = {"contents": [turn("a")], "tools": [{"functionDeclarations": [{"name": "look"}]}]}
    assert "not enabled" in (await ask(web, gemini, body, model="gemini-2.5-flash"))["error"]["message"]
    assert "error" not in await ask(web, gemini, body, model="gemini-3.5-flash")


CALL: Json = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
ASKED: Json = {"role": "user", "content": "hi"}
CALLED: Json = {"role": "assistant", "content": None, "tool_calls": [CALL]}


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"messages": [ASKED, CALLED]}, "did not have response"),
        ({"messages": [ASKED, CALLED, ASKED]}, "did not have response"),
        ({"messages": [ASKED, {"role": "tool", "tool_call_id": "c1", "content": "x"}]}, "must be a response"),
        ({"messages": [ASKED, CALLED, {"role": "tool", "tool_call_id": "c2", "content": "x"}]}, "must be a response"),
        ({"messages": [{"role": "user", "content": None}]}, "expected a string"),
        ({"messages": [ASKED], "tool_choice": "none"}, "only allowed when"),
        ({"messages": [ASKED], "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "name"),
    ],
)
async def test_the_openai_front_refuses_what_does_not_fit(
    gemini: FakeGemini, web: aiohttp.ClientSession, more: Json, problem: str
) -> None:
    url, key = gemini.url + "/v1/chat/completions", {"authorization": "Bearer k"}
    answer = await web.post(url, json={"model": "gpt-x", **more}, headers=key)
    assert answer.status == 400 and problem in (await answer.json())["error"]["message"]


async def test_the_openai_front_streams_calls_in_pieces(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    calls = [{"functionCall": {"name": name, "args": {"at": "the old bridge"}}} for name in ("look", "listen")]
    gemini.rule("fish", calls)
    url, key = gemini.url + "/v1/chat/completions", {"authorization": "Bearer k"}
    body = {"model": "gpt-x", "messages": [{"role": "user", "content": "fish?"}], "stream": True}
    text = await (await web.post(url, json=body, headers=key)).text()
    events = [orjson.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
    pieces = [piece for event in events for piece in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [piece["index"] for piece in pieces if "id" in piece] == [0, 1] and len(pieces) > 4
    written = "".join(piece["function"]["arguments"] for piece in pieces if piece["index"] == 1)
    assert orjson.loads(written) == {"at": "the old bridge"}
    assert events[-1]["choices"][0]["finish_reason"] == "tool_calls"


async def test_the_openai_front_streams_comments_and_usage(gemini: FakeGemini, web: aiohttp.ClientSession) -> None:
    url = gemini.url + "/v1/chat/completions"
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    body: Json = {"model": "gpt-x", "messages": messages}
    assert (await web.post(url, json=body)).status == 401
    key = {"authorization": "Bearer k"}
    assert (await web.post(url, json=body | {"colour": 1}, headers=key)).status == 400
    whole = await (await web.post(url, json=body, headers=key)).json()
    assert whole["choices"][0]["message"]["content"] == 'echo of "hi" | media= | turns=1 | model=gpt-x'
    more = {"stream": True, "stream_options": {"include_usage": True}}
    text = await (await web.post(url, json=body | more, headers=key)).text()
    events = text.split("\n\n")
    assert events[0].startswith(":") and events[-2] == "data: [DONE]"
    assert orjson.loads(events[-3][6:])["choices"] == []


def test_an_upload_keeps_its_name_in_the_process_too(telegram: FakeTelegram, chat: Chat) -> None:
    upload = Upload(b"data")
    upload.name = "words.txt"
    telegram.call("sendDocument", {"chat_id": 7, "document": upload})
    assert telegram.sent(chat)[0]["document"]["file_name"] == "words.txt"


# == The process =======================================================================================================

STUB = """
import json, os, signal, sqlite3, sys, urllib.request
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("settings", sorted(os.environ))
database = sqlite3.connect(os.environ["DB_PATH"])
if "--check" in sys.argv:
    sys.exit(3)
def call(method, **params):
    request = urllib.request.Request(f"{os.environ['TELEGRAM_API_URL']}/bot{os.environ['TELEGRAM_BOT_TOKEN']}/{method}",
                                     json.dumps(params).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))["result"]
database.execute("CREATE TABLE heard (text TEXT)")
offset = 0
while True:
    for update in call("getUpdates", timeout=30, offset=offset):
        offset = update["update_id"] + 1
        database.execute("INSERT INTO heard VALUES (?)", [update["message"]["text"]])
        database.commit()
        call("sendMessage", chat_id=update["message"]["chat"]["id"], text="heard")
"""


async def test_a_bot_runs_between_the_fakes_until_it_is_stopped(
    telegram: FakeTelegram, chat: Chat, gemini: FakeGemini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr("fakes.BOT", tmp_path / "stub.py")
    async with telegram:
        bot = BotProcess(telegram, gemini, tmp_path, WEB_PORT=None, LANGUAGE="en")
        assert await bot.run("--check") == 3
        await bot.start()
        telegram.say(chat, telegram.users[7], "hello")
        await telegram.until(lambda: telegram.sent(chat))
        assert await bot.stop() == 0
        assert bot.rows("SELECT text FROM heard WHERE text = ?", "hello") == [("hello",)]
        assert "'LANGUAGE'" in bot.log()
        assert "WEB_PORT" not in bot.log()
        with pytest.raises(AssertionError, match="ended with 1"):
            await bot.start()  # its table exists already
        assert await telegram.deliver(telegram.url + "/hook", "secret", {"update_id": 1}) == 404


async def test_a_call_can_be_executed_without_an_answer_in_time(
    telegram: FakeTelegram, chat: Chat, gemini: FakeGemini, web: aiohttp.ClientSession
) -> None:
    async def lost(url: str, body: Json) -> None:
        with pytest.raises(TimeoutError):
            async with web.post(url, json=body, headers=KEY, timeout=aiohttp.ClientTimeout(total=0.05)) as answer:
                await answer.read()

    async with telegram:
        telegram.fault("timeout_after", "sendMessage")
        telegram.fault("timeout", "sendMessage")
        for _ in range(2):
            await lost(f"{telegram.url}/bot{telegram.token}/sendMessage", {"chat_id": 7, "text": "x"})
        assert len(telegram.sent(chat)) == 1
    for kind in ("hang", "stall"):
        gemini.fault(kind)
        url = f"{gemini.url}/v1beta/models/gemini-3.8-flash:streamGenerateContent?alt=sse"
        await lost(url, {"contents": [turn("hi")]})
