"""Models of the servers Okun talks to, as strict as the real ones, and the bot as a process between them.

    telegram = FakeTelegram()                            gemini = FakeGemini()
    anna = telegram.user(1, "Anna")                      gemini.rule("weather", "It rains.", model="gemini-3.8-flash")
    chat = telegram.private(anna)                        gemini.fault("429", retry_delay=2)
    telegram.say(chat, anna, "/start")
    telegram.call("sendMessage", {"chat_id": 1, "text": "Hi"})      # the bot's side, without a network
    await telegram.start()                                          # the same over HTTP, at telegram.url

Answers come from the request, never from constants. A method, field or text the real server refuses is refused here
with its wording; field names it does not know are collected in ``FakeTelegram.unknown``, which should stay empty.
``until(condition)`` of a fake looks again after each request, so tests do not sleep.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import io
import itertools
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import parse_qs, parse_qsl, unquote

import aiohttp
import orjson

Json = dict[str, Any]
Reply = bytes | Coroutine[Any, Any, bytes]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


async def until(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """What ``condition()`` returns once it is true; for what no fake can notice (files, logs, rows)."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"still not true after {seconds} s")
        await asyncio.sleep(0.004)
    return value


# == HTTP ==============================================================================================================
# A server for one loop: whole requests in, bytes out. ``b""`` as an answer closes the connection.

REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 409: "Conflict"}
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM_END = b"0\r\n\r\n"


class Upload(bytes):
    """The bytes of a file in a request, and the name it came with."""

    name: str = ""


@dataclass(slots=True)
class Request:
    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: bytes
    write: Callable[[bytes], None]


def response(body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> bytes:
    head = f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    more = "".join(f"\r\n{name.replace('_', '-')}: {value}" for name, value in headers.items())
    return head.encode() + more.encode() + b"\r\n\r\n" + body


def chunk_of(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def read_chunks(data: bytearray, at: int) -> tuple[bytes, int] | None:
    """A chunked body that starts at ``at`` and where it ends, or None while it is incomplete."""
    pieces: list[bytes] = []
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].split(b";")[0], 16)
        at = line + 2 + size + 2
        if len(data) < at:
            return None
        if size == 0:
            return b"".join(pieces), at
        pieces.append(bytes(data[line + 2 : line + 2 + size]))
    return None


def read_multipart(body: bytes, kind: str) -> tuple[Json, dict[str, bytes]]:
    """Fields and files of a multipart/form-data body."""
    fields: Json = {}
    files: dict[str, bytes] = {}
    found = re.search(r'boundary="?([^";]+)', kind)
    for part in body.split(b"--" + found[1].encode())[1:-1] if found else ():
        head, _, data = part[2:-2].partition(b"\r\n\r\n")
        names = dict(re.findall(r'\b(name|filename)="([^"]*)"', head.decode()))
        if "filename" in names:
            files[names["name"]] = upload = Upload(data)
            upload.name = unquote(names["filename"])
        elif names["name"].endswith("[]"):
            fields.setdefault(names["name"], []).append(data.decode())
        else:
            fields[names["name"]] = data.decode()
    return fields, files


class Link(asyncio.Protocol):
    """One keep-alive connection; its requests are answered one after another."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server, self.buffer = server, bytearray()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.server.links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.links.discard(self)
        if self.task:
            self.task.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        self.serve()

    def serve(self) -> None:
        while self.task is None and (request := self.read()):
            try:
                answer = self.server.handle(request)
            except Exception as bug:  # a fault of the fake itself: stop() raises it, so that no test hides it
                self.server.bugs.append(bug)
                answer = b""
            if isinstance(answer, bytes):
                self.answer(answer)
            else:
                self.task = asyncio.get_running_loop().create_task(self.later(answer))

    async def later(self, coming: Coroutine[Any, Any, bytes]) -> None:
        try:
            answer = await coming
        except Exception as bug:
            self.server.bugs.append(bug)
            answer = b""
        self.task = None
        self.answer(answer)
        self.serve()

    def answer(self, data: bytes) -> None:
        if data:
            self.transport.write(data)
        else:
            self.transport.close()

    def read(self) -> Request | None:
        """The next whole request in the buffer, taken out of it."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return None
        first, *lines = self.buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if "chunked" in headers.get("transfer-encoding", ""):
            chunked = read_chunks(self.buffer, end + 4)
            if chunked is None:
                return None
            body, stop = chunked
        else:
            stop = end + 4 + int(headers.get("content-length", 0))
            if len(self.buffer) < stop:
                return None
            body = bytes(self.buffer[end + 4 : stop])
        del self.buffer[:stop]
        method, target, _ = first.split(" ")
        path, _, query = target.partition("?")
        return Request(method, path, query, headers, body, self.transport.write)


class Broken(ConnectionError):
    """An in-process call met a fault that over HTTP would break the connection or garble the answer."""

    def __init__(self, kind: str, answer: Json | None = None) -> None:
        super().__init__(kind)
        self.kind, self.answer = kind, answer


@dataclass(slots=True)
class Fault:
    kind: str
    target: str
    times: int
    chat_id: int | None
    options: Json


class Server:
    """What both fakes are: faults to come, something to wait for, and (once started) a port."""

    KINDS: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.links: set[Link] = set()
        self.bugs: list[Exception] = []
        self.faults: list[Fault] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._waiting: list[asyncio.Future[None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def handle(self, request: Request) -> Reply:
        raise NotImplementedError

    async def start(self, port: int = 0) -> Self:
        self._server = await asyncio.get_running_loop().create_server(lambda: Link(self), "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Close the port and every connection; raise what went wrong inside the fake."""
        if self._server:
            self._server.close()
        tasks = [link.task for link in self.links if link.task]
        for link in list(self.links):
            link.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.bugs:
            raise self.bugs[0]

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    def changed(self) -> None:
        """Let everyone who waits in until() look again."""
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, condition: Callable[[], Any], timeout: float = 10) -> Any:
        """What ``condition()`` returns once it is true; it is asked again after each request."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while not (value := condition()):
            waiter = loop.create_future()
            self._waiting.append(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                raise AssertionError(f"still not true after {timeout} s") from None
        return value

    def _add_fault(self, kind: str, target: str, times: int, chat_id: int | None, options: Json) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"no fault {kind!r}; there are {sorted(self.KINDS)}")
        self.faults.append(Fault(kind, target, times, chat_id, options))

    def _take_fault(self, name: str, chat_id: object = None) -> Fault | None:
        for fault in self.faults:
            if fnmatchcase(name, fault.target) and fault.chat_id in (None, chat_id):
                fault.times -= 1
                if fault.times <= 0:
                    self.faults.remove(fault)
                return fault
        return None


# == Telegram: what is refused =========================================================================================
# The fields of each method, the limits of texts, entities and keyboards. A line is a method and its fields, with ``!``
# where they are required and a type where it is not a string; ``+name`` stands for a group of fields.

GROUPS = {
    "send": """business_connection_id message_thread_id:int direct_messages_topic_id:int disable_notification:bool
        protect_content:bool allow_paid_broadcast:bool message_effect_id suggested_post_parameters:dict
        reply_parameters:dict reply_markup:dict ephemeral_message_parameters:dict""",
    "caption": "caption parse_mode caption_entities:list show_caption_above_media:bool",
    "edit": "business_connection_id chat_id:chat message_id:int inline_message_id reply_markup:dict",
}
METHODS_TABLE = """
getMe
getUpdates offset:int limit:int timeout:int allowed_updates:list
setWebhook url! ip_address max_connections:int allowed_updates:list drop_pending_updates:bool secret_token
    certificate:file
deleteWebhook drop_pending_updates:bool
getWebhookInfo
sendMessage chat_id!:chat text! parse_mode entities:list link_preview_options:dict +send
sendMessageDraft chat_id!:int draft_id!:int message_thread_id:int text parse_mode entities:list can_stop:bool
    keep_on_stop:bool
sendRichMessage chat_id!:chat rich_message!:dict +send
sendRichMessageDraft chat_id!:int draft_id!:int rich_message!:dict message_thread_id:int can_stop:bool keep_on_stop:bool
sendPhoto chat_id!:chat photo!:file has_spoiler:bool +caption +send
sendDocument chat_id!:chat document!:file thumbnail:file disable_content_type_detection:bool +caption +send
sendVoice chat_id!:chat voice!:file duration:int +caption +send
sendAudio chat_id!:chat audio!:file duration:int performer title thumbnail:file +caption +send
sendVideo chat_id!:chat video!:file duration:int width:int height:int thumbnail:file cover:file supports_streaming:bool
    has_spoiler:bool start_timestamp:int +caption +send
sendAnimation chat_id!:chat animation!:file duration:int width:int height:int thumbnail:file
    has_spoiler:bool +caption +send
sendVideoNote chat_id!:chat video_note!:file duration:int length:int thumbnail:file +send
sendSticker chat_id!:chat sticker!:file emoji +send
sendMediaGroup chat_id!:chat media!:list +send
sendLocation chat_id!:chat latitude!:float longitude!:float horizontal_accuracy:float live_period:int +send
sendPoll chat_id!:chat question! options!:list is_anonymous:bool type allows_multiple_answers:bool
    correct_option_ids:list explanation open_period:int is_closed:bool +send
sendInvoice chat_id!:chat title! description! payload! currency! prices!:list provider_token start_parameter photo_url
    photo_width:int photo_height:int +send
sendChatAction chat_id!:chat action! business_connection_id message_thread_id:int
forwardMessage chat_id!:chat from_chat_id!:chat message_id!:int message_thread_id:int disable_notification:bool
copyMessage chat_id!:chat from_chat_id!:chat message_id!:int +caption +send
editMessageText text parse_mode entities:list link_preview_options:dict rich_message:dict +edit
editMessageCaption +caption +edit
editMessageMedia media!:dict +edit
editMessageReplyMarkup +edit
deleteMessage chat_id!:chat message_id!:int
deleteMessages chat_id!:chat message_ids!:list
setMessageReaction chat_id!:chat message_id!:int reaction:list is_big:bool
answerCallbackQuery callback_query_id! text show_alert:bool url cache_time:int
answerPreCheckoutQuery pre_checkout_query_id! ok!:bool error_message
refundStarPayment user_id!:int telegram_payment_charge_id!
getFile file_id!
getChat chat_id!:chat
getChatMember chat_id!:chat user_id!:int
getChatAdministrators chat_id!:chat return_bots:bool
getChatMemberCount chat_id!:chat
leaveChat chat_id!:chat
pinChatMessage chat_id!:chat message_id!:int disable_notification:bool business_connection_id
unpinChatMessage chat_id!:chat message_id:int business_connection_id
setMyCommands commands!:list scope:dict language_code
getMyCommands scope:dict language_code
deleteMyCommands scope:dict language_code
setMyName name language_code
setMyDescription description language_code
setMyShortDescription short_description language_code
setChatMenuButton chat_id:int menu_button:dict
"""
# Fields inside parameters: those of each object that our bot could get wrong.
INNER = {
    "reply_parameters": """message_id chat_id allow_sending_without_reply quote quote_parse_mode quote_entities
        quote_position checklist_task_id poll_option_id ephemeral_message_id""",
    "link_preview_options": "is_disabled url prefer_small_media prefer_large_media show_above_text",
    "entity": "type offset length url user language custom_emoji_id unix_time date_time_format",
    "button": """text icon_custom_emoji_id style url callback_data web_app login_url switch_inline_query
        switch_inline_query_current_chat switch_inline_query_chosen_chat copy_text callback_game pay disabled""",
    "rich_message": "html markdown blocks media is_rtl skip_entity_detection",
    "reaction": "type emoji custom_emoji_id",
}
INNER_NAMES = {key: words(names) for key, names in INNER.items()}

MARKED = words(
    """bold italic underline strikethrough spoiler blockquote expandable_blockquote code pre text_link text_mention
    custom_emoji date_time"""
)
FOUND = words("mention hashtag cashtag bot_command url email phone_number")
ACTIONS = words(
    """typing upload_photo record_video upload_video record_voice upload_voice upload_document choose_sticker
    find_location record_video_note upload_video_note"""
)
REACTIONS = words(
    """❤ 👍 👎 🔥 🥰 👏 😁 🤔 🤯 😱 🤬 😢 🎉 🤩 🤮 💩 🙏 👌 🕊 🤡 🥱 🥴 😍 🐳 ❤‍🔥 🌚 🌭 💯 🤣 ⚡
    🍌 🏆 💔 🤨 😐 🍓 🍾 💋 🖕 😈 😴 😭 🤓 👻 👨‍💻 👀 🎃 🙈 😇 😨 🤝 ✍ 🤗 🫡 🎅 🎄
    ☃ 💅 🤪 🗿 🆒 💘 🙉 🦄 😘 💊 🙊 😎 👾 🤷‍♂ 🤷 🤷‍♀ 😡"""
)
NOT_MODIFIED = (
    "message is not modified: specified new message content and reply markup are exactly the same as a current content "
    "and reply markup of the message"
)
TOO_OLD = "query is too old and response timeout expired or query ID is invalid"
MISSING = {
    "chat_id": "chat_id is empty",
    "text": "message text is empty",
    "message_id": "message identifier is not specified",
    "callback_query_id": TOO_OLD,
}
OPT_IN = frozenset({"chat_member", "message_reaction", "message_reaction_count"})
SCOPES = words("default all_private_chats all_group_chats all_chat_administrators chat chat_administrators chat_member")
MEGABYTE = 1 << 20
TOKENS = re.compile(
    r"""(?P<url>https?://[^\s<>"]*[^\s<>".,!?;:)]|\b(?:[a-z0-9-]+\.)+(?:com|org|net|me|io|dev|ua|ru)\b(?:/[^\s<>"]*)?)
    |(?P<email>[\w.+-]+@[\w-]+\.[\w.]*\w)|(?P<mention>(?<![\w/])@[a-z]\w{3,31}\b)
    |(?P<bot_command>(?<![\w/.])/[a-z0-9_]{1,32}(?:@\w{3,32})?\b)|(?P<hashtag>(?<!\w)\#\w*[^\W\d]\w*)
    |(?P<cashtag>(?<!\w)\$(?-i:[A-Z]{3,8})\b)|(?P<phone_number>(?<!\w)\+\d{10,14}\b)""",
    re.IGNORECASE | re.VERBOSE,
)
LINK = re.compile(r"(?:tg://\S+|(?:https?://)?(?:[\w.-]+@)?[\w-]+(?:\.[\w-]+)+(?::\d+)?(?:[/?#]\S*)?)\Z", re.IGNORECASE)


class Refused(Exception):
    """The server's answer to a request it does not carry out."""

    def __init__(self, text: str, code: int = 400, **parameters: int) -> None:
        super().__init__(text)
        prefix = {400: "Bad Request: ", 403: "Forbidden: ", 409: "Conflict: "}.get(code, "")
        self.answer: Json = {"ok": False, "error_code": code, "description": prefix + text}
        if parameters:
            self.answer["parameters"] = parameters


def to_int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError("must be a number")
    return int(value)


def to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError("must be a number")
    return float(value)


def to_bool(value: Any) -> bool:
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if str(value).lower() not in known:
        raise TypeError("must be a Boolean")
    return known[str(value).lower()]


def to_str(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError("must be of type String")
    return str(value)


def to_chat(value: Any) -> int | str:
    return value if isinstance(value, str) and value.startswith("@") else to_int(value)


def to_file(value: Any) -> str | bytes:
    return value if isinstance(value, bytes) else to_str(value)


def to_json(value: Any, kind: type) -> Any:
    if isinstance(value, str):
        value = orjson.loads(value)
    if not isinstance(value, kind):
        raise TypeError(f"must be a JSON {'array' if kind is list else 'object'}")
    return value


READERS: dict[str, Callable[[Any], Any]] = {
    "int": to_int,
    "float": to_float,
    "bool": to_bool,
    "str": to_str,
    "chat": to_chat,
    "file": to_file,
    "list": functools.partial(to_json, kind=list),
    "dict": functools.partial(to_json, kind=dict),
}


@dataclass(frozen=True, slots=True)
class Method:
    readers: dict[str, Callable[[Any], Any]]
    required: tuple[str, ...]


def read_methods(table: str) -> dict[str, Method]:
    methods = {}
    for line in table.strip().replace("\n    ", " ").splitlines():
        name, *words = re.sub(r"\+(\w+)", lambda found: GROUPS[found[1]], line).split()
        fields = [word.partition(":") for word in words]
        readers = {key.rstrip("!"): READERS[kind or "str"] for key, _, kind in fields}
        methods[name] = Method(readers, tuple(key[:-1] for key, _, _ in fields if key.endswith("!")))
    return methods


METHODS = read_methods(METHODS_TABLE)


def u16len(text: str) -> int:
    """Length in UTF-16 code units, Telegram's measure."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def find_entities(text: str, taken: Sequence[Json] = ()) -> list[Json]:
    """Commands, mentions, links and the like that Telegram marks by itself, where nothing of ``taken`` is."""
    found = []
    for match in TOKENS.finditer(text):
        offset, length = u16len(text[: match.start()]), u16len(match[0])
        if not any(e["offset"] < offset + length and offset < e["offset"] + e["length"] for e in taken):
            found.append({"type": match.lastgroup, "offset": offset, "length": length})
    return found


def check_entity(entity: Any, units: bytes) -> None:
    """Refuse an entity of an unknown kind, without what its kind needs, or outside the text (UTF-16-LE ``units``)."""
    if not isinstance(entity, dict) or not all(type(entity.get(key)) is int for key in ("offset", "length")):
        raise Refused('can\'t parse MessageEntity: Field "offset" and "length" must be Numbers')
    kind, start, end = entity.get("type"), entity["offset"], entity["offset"] + entity["length"]
    if kind not in MARKED and kind not in FOUND:
        raise Refused(f'can\'t parse MessageEntity: type "{kind}" is unsupported')
    if start < 0 or end <= start or end * 2 > len(units):
        raise Refused("ENTITY_BOUNDS_INVALID")
    if any(0xDC <= units[2 * edge + 1] <= 0xDF for edge in (start, end) if 2 * edge < len(units)):
        raise Refused("ENTITY_BOUNDS_INVALID")
    if kind == "text_link" and not LINK.match(str(entity.get("url", ""))):
        raise Refused(f"can't parse MessageEntity: entity URL '{entity.get('url', '')}' is invalid")
    if kind == "text_mention" and "id" not in (entity.get("user") or {}):
        raise Refused("can't parse MessageEntity: Can't find field \"user\"")
    if kind == "custom_emoji" and not str(entity.get("custom_emoji_id", "")).isdigit():
        raise Refused("can't parse MessageEntity: invalid custom emoji identifier specified")


def trim(text: str, entities: list[Json]) -> tuple[str, list[Json]]:
    """Without the white space around it, as Telegram stores a text; entities move along or go."""
    lead, kept = len(text) - len(text.lstrip()), text.strip()
    size, moved = u16len(kept), []
    for entity in entities:
        start = max(0, entity["offset"] - lead)
        end = min(size, entity["offset"] - lead + entity["length"])
        if end > start:
            moved.append(entity | {"offset": start, "length": end - start})
    return kept, moved


def read_text(text: str, mode: str | None, given: list[Json], limit: int, too_long: str) -> tuple[str, list[Json]]:
    """The text and all its entities as the message will hold them."""
    if mode is not None:  # Okun marks its texts with entities only; whoever needs a parse mode writes it here
        raise Refused("unsupported parse_mode")
    units = text.encode("utf-16-le", "surrogatepass") if given else b""
    for entity in given:
        check_entity(entity, units)
    if len(given) > 100:
        raise Refused("ENTITIES_TOO_LONG")
    text, entities = trim(text, [e for e in given if e["type"] in MARKED])
    if u16len(text) > limit:
        raise Refused(too_long)
    found = find_entities(text, entities)
    return text, sorted(entities + found, key=lambda e: (e["offset"], -e["length"])) if found else entities


def check_button(button: Json) -> None:
    if not button.get("text"):
        raise Refused("can't parse inline keyboard button: inline keyboard button text must be non-empty")
    acts = [key for key in button if key not in ("text", "style", "icon_custom_emoji_id", "disabled")]
    if len(acts) != 1:
        raise Refused("can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard")
    if "callback_data" in button and not 1 <= len(str(button["callback_data"]).encode()) <= 64:
        raise Refused("BUTTON_DATA_INVALID")
    if "url" in button and not LINK.match(str(button["url"])):
        raise Refused(f"inline keyboard button URL '{button['url']}' is invalid: Wrong HTTP URL")


def check_keyboard(markup: Json) -> None:
    rows = markup.get("inline_keyboard", markup.get("keyboard"))
    if rows is None:
        if "remove_keyboard" not in markup and "force_reply" not in markup:
            raise Refused("can't parse reply keyboard markup JSON object")
        return
    if sum(len(row) for row in rows) > 100:
        raise Refused("reply markup is too long")
    for button in itertools.chain.from_iterable(rows):
        if "inline_keyboard" in markup:
            check_button(button)
        elif not (button if isinstance(button, str) else button.get("text")):
            raise Refused("keyboard button text must be non-empty")


def image_size(data: bytes) -> tuple[int, int] | None:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.size
    except (UnidentifiedImageError, OSError):
        return None


# == Telegram: people and chats ========================================================================================
# The world the bot lives in, and what its people do there. Everything they do becomes an update.

User = Json
ANONYMOUS: User = {"id": 1087968824, "is_bot": True, "first_name": "Group", "username": "GroupAnonymousBot"}
RIGHTS = words(
    """can_manage_chat can_delete_messages can_manage_video_chats can_restrict_members can_promote_members
    can_change_info can_invite_users can_post_stories can_edit_stories can_delete_stories can_pin_messages
    can_manage_topics can_send_welcome_messages"""
)
FOLDERS = {
    "photo": ("photos", "jpg", "image/jpeg"),
    "document": ("documents", "bin", "application/octet-stream"),
    "voice": ("voice", "oga", "audio/ogg"),
    "audio": ("music", "mp3", "audio/mpeg"),
    "video": ("videos", "mp4", "video/mp4"),
    "video_note": ("video_notes", "mp4", "video/mp4"),
    "animation": ("animations", "mp4", "video/mp4"),
    "sticker": ("stickers", "webp", "image/webp"),
}


@dataclass(slots=True)
class Chat:
    """A chat as the server knows it; ``card`` is how it looks in a message."""

    card: Json
    members: dict[int, str] = field(default_factory=dict)
    bot_status: str = "member"  # in a private chat "kicked" means that the user blocked the bot
    topics: dict[int, str] = field(default_factory=dict)
    messages: dict[int, Json] = field(default_factory=dict)
    drafts: list[Json] = field(default_factory=list)
    reactions: dict[int, list[Json]] = field(default_factory=dict)
    newest: int = 0
    migrated_to: int | None = None

    @property
    def id(self) -> int:
        return int(self.card["id"])

    @property
    def private(self) -> bool:
        return bool(self.card["type"] == "private")


@dataclass(slots=True)
class StoredFile:
    kind: str
    data: bytes
    path: str
    card: Json


def without_reply(message: Json) -> Json:
    return {key: value for key, value in message.items() if key != "reply_to_message"}


class World(Server):
    """Users, chats, messages and files, and the queue of updates."""

    def __init__(self, username: str, bot_id: int, clock: Callable[[], float]) -> None:
        super().__init__()
        self.clock = clock
        self.me: User = {"id": bot_id, "is_bot": True, "first_name": "Okun", "username": username}
        self.can_read_all_group_messages = True
        self.users: dict[int, User] = {}
        self.chats: dict[int, Chat] = {}
        self.files: dict[str, StoredFile] = {}
        self.queries: dict[str, Json] = {}  # callback and pre-checkout queries without an answer yet
        self.answered: dict[str, Json] = {}  # the bot's answer by query id
        self.payments: dict[str, str] = {}  # charge id: "paid" or "refunded"
        self.paid: dict[str, Json] = {}  # what was paid, by charge id
        self.queue: deque[Json] = deque()
        self.allowed: frozenset[str] | None = None
        self.keep = 0  # so many messages a chat and so many calls are kept; 0 keeps all
        self._update_id, self._numbers = 1000, itertools.count(1)
        self._poll: asyncio.Future[bool] | None = None

    # -- people and chats

    def user(
        self, id: int, first_name: str, language_code: str = "uk", username: str | None = None, *, is_bot: bool = False
    ) -> User:
        card: User = {"id": id, "is_bot": is_bot, "first_name": first_name, "language_code": language_code}
        self.users[id] = card | ({"username": username} if username else {})
        return self.users[id]

    def private(self, user: User) -> Chat:
        """The chat with a user who has started the bot; before this call the bot cannot write to them."""
        card = {key: user[key] for key in ("id", "first_name", "username") if key in user}
        return self.chats.setdefault(user["id"], Chat(card | {"type": "private"}))

    def group(
        self,
        title: str,
        members: Iterable[User] = (),
        *,
        forum: bool = False,
        bot_status: str = "member",
        kind: str = "supergroup",
        username: str | None = None,
    ) -> Chat:
        id = (-1_001_000_000_000 if kind == "supergroup" else -1000) - next(self._numbers)
        card: Json = {"id": id, "type": kind, "title": title}
        card |= ({"is_forum": True} if forum else {}) | ({"username": username} if username else {})
        self.chats[id] = Chat(card, {user["id"]: "member" for user in members}, bot_status)
        self.chats[id].newest = 1  # the message that the group was made; in a forum 1 is never a topic's id
        return self.chats[id]

    def member(self, chat: Chat, user: User, status: str = "member") -> None:
        """Let someone be creator, administrator, member, restricted, left or kicked."""
        chat.members[user["id"]] = status

    def topic(self, chat: Chat, name: str) -> int:
        """A new topic of a forum; its thread id is that of the service message that opened it."""
        opened = self._store(chat, {"from": ANONYMOUS, "forum_topic_created": {"name": name, "icon_color": 7322096}})
        chat.topics[opened["message_id"]] = name
        return int(opened["message_id"])

    def migrate(self, chat: Chat) -> Chat:
        """A basic group becomes a supergroup: the old id answers with the new one."""
        new = self.group(chat.card["title"])
        new.members, chat.migrated_to = dict(chat.members), new.id
        self.post(chat, ANONYMOUS, {"migrate_to_chat_id": new.id})
        self.post(new, ANONYMOUS, {"migrate_from_chat_id": chat.id})
        return new

    def last(self, chat: Chat) -> Json:
        """The newest message of a chat, whoever sent it."""
        return next(reversed(chat.messages.values()))

    # -- updates

    def push(self, raw: Json) -> int:
        """Queue an update as it stands (an update_id in it is kept); the id. Kinds not asked for are dropped."""
        self._update_id += 1
        update: Json = {"update_id": self._update_id, **raw}
        kind = next(key for key in update if key != "update_id")
        if kind in self.allowed if self.allowed is not None else kind not in OPT_IN:
            self.queue.append(update)
            if self._poll and not self._poll.done():
                self._poll.set_result(True)
        return int(update["update_id"])

    def next_updates(self) -> list[Json]:
        """Take what waits for the bot, for tests without a network."""
        taken = list(self.queue)
        self.queue.clear()
        return taken

    def post(
        self,
        chat: Chat,
        sender: User | Chat,
        content: Json,
        *,
        thread: int | None = None,
        reply_to: int | None = None,
        date: float | None = None,
        **extra: Any,
    ) -> int:
        """Any message of a user, of another bot, or (the chat itself as sender) of an anonymous administrator."""
        by = {"from": ANONYMOUS, "sender_chat": sender.card} if isinstance(sender, Chat) else {"from": sender}
        return self.push({"message": self._store(chat, by | content | extra, thread, reply_to, date)})

    def _store(
        self,
        chat: Chat,
        content: Json,
        thread: int | None = None,
        reply_to: int | None = None,
        date: float | None = None,
    ) -> Json:
        chat.newest += 1
        now = self.clock() if date is None else date
        message: Json = {"message_id": chat.newest, "date": int(now), "chat": chat.card}
        if thread is None and reply_to and "is_forum" in chat.card:
            thread = chat.messages[reply_to].get("message_thread_id")  # a reply stays in the topic
        if thread is not None:
            message |= {"message_thread_id": thread, "is_topic_message": True}
        if reply_to is not None:
            target = chat.messages[reply_to]
            message["reply_to_message"] = without_reply(target)
            if thread is None and chat.card["type"] == "supergroup" and "is_forum" not in chat.card:
                message["message_thread_id"] = target.get("message_thread_id", reply_to)
        elif thread in chat.topics:  # in a topic every other message "replies" to the one that opened it
            message["reply_to_message"] = chat.messages[thread]
        message |= content
        chat.messages[chat.newest] = message
        if self.keep and len(chat.messages) > self.keep:
            del chat.messages[next(iter(chat.messages))]
        return message

    def say(
        self,
        chat: Chat,
        user: User | Chat,
        text: str,
        *,
        thread: int | None = None,
        reply_to: int | None = None,
        date: float | None = None,
        **extra: Any,
    ) -> int:
        """A text message; commands, mentions and links in it are entities as Telegram makes them."""
        found = find_entities(text)
        content = {"text": text} | ({"entities": found} if found else {})
        return self.post(chat, user, content, thread=thread, reply_to=reply_to, date=date, **extra)

    def edit(self, chat: Chat, message_id: int, text: str) -> int:
        """The author changes the text or caption of a message."""
        old = chat.messages[message_id]
        key, marks = ("text", "entities") if "text" in old else ("caption", "caption_entities")
        kept = {name: value for name, value in old.items() if name != marks}
        found = find_entities(text)
        new = kept | {key: text, "edit_date": int(self.clock())} | ({marks: found} if found else {})
        chat.messages[message_id] = new
        return self.push({"edited_message": new})

    def press(self, chat: Chat, user: User, what: str, message_id: int | None = None) -> int:
        """Press a button by its label, its data or a part of its label: on that message, else on the newest with it."""
        wanted = [chat.messages[message_id]] if message_id else list(reversed(chat.messages.values()))
        for exact in (True, False):
            for message in wanted:
                rows = message.get("reply_markup", {}).get("inline_keyboard", ())
                for button in itertools.chain.from_iterable(rows):
                    fits = what in (button["text"], button.get("callback_data"))
                    if "callback_data" in button and (fits if exact else what in button["text"]):
                        return self._pressed(user, message, button["callback_data"])
        raise LookupError(f"no button {what!r} in chat {chat.id}")

    def _pressed(self, user: User, message: Json, data: str) -> int:
        id = str(4_000_000_000 + next(self._numbers))
        query = {"id": id, "from": user, "message": message, "chat_instance": "1", "data": data}
        self.queries[id] = query
        return self.push({"callback_query": query})

    def stop_draft(self, chat: Chat, draft_id: int | None = None) -> int:
        """Press the stop button of a draft, the newest one that has it unless told."""
        drafts = [draft for draft in chat.drafts if draft["can_stop"] and draft_id in (None, draft["draft_id"])]
        if not drafts:
            raise LookupError(f"no draft with a stop button in chat {chat.id}")
        thread = drafts[-1].get("message_thread_id")
        stopped: Json = {"chat": chat.card, "draft_id": drafts[-1]["draft_id"]}
        return self.push({"stopped_message_generation": stopped | ({"message_thread_id": thread} if thread else {})})

    def membership(self, chat: Chat, status: str, by: User | None = None) -> int:
        """Someone changes what the bot is in a chat; "kicked" in a private chat is a block."""
        old = self._card_of_member(self.me, chat.bot_status)
        chat.bot_status = status
        by = by or self.users.get(chat.id, ANONYMOUS)
        new = self._card_of_member(self.me, status)
        change = {"chat": chat.card, "from": by, "date": int(self.clock())}
        return self.push({"my_chat_member": change | {"old_chat_member": old, "new_chat_member": new}})

    @staticmethod
    def _card_of_member(user: User, status: str) -> Json:
        card: Json = {"user": user, "status": status}
        if status == "administrator":
            card |= {"can_be_edited": False, "is_anonymous": False} | dict.fromkeys(RIGHTS, True)
        elif status == "creator":
            card["is_anonymous"] = False
        elif status == "kicked":
            card["until_date"] = 0
        return card

    def pay(self, chat: Chat, user: User, message_id: int | None = None) -> int:
        """Press "pay" on the newest invoice; the payment follows by itself when the bot confirms."""
        invoices = (message for message in reversed(chat.messages.values()) if "invoice" in message)
        message = next(each for each in invoices if message_id in (None, each["message_id"]))
        id, invoice = str(7_000_000_000 + next(self._numbers)), message["invoice"]
        order = {"currency": invoice["currency"], "total_amount": invoice["total_amount"]}
        order["invoice_payload"] = self.payloads[chat.id, message["message_id"]]
        self.queries[id] = {"id": id, "from": user, "order": order, "chat": chat.id}
        return self.push({"pre_checkout_query": {"id": id, "from": user, **order}})

    def refund(self, charge: str) -> int:
        """Give the Stars of a payment back; the bot hears of it, whoever did it."""
        self.payments[charge] = "refunded"
        paid = self.paid[charge]
        refunded = paid["order"] | {"telegram_payment_charge_id": charge}
        return self.post(self.chats[paid["chat"]], paid["from"], {"refunded_payment": refunded})

    @functools.cached_property
    def payloads(self) -> dict[tuple[int, int], str]:
        """What the bot wrote into its invoices; Telegram shows it to nobody else."""
        return {}

    # -- media

    def store_file(
        self, kind: str, data: bytes, *, size: int | None = None, name: str = "", mime: str = "", **facts: Any
    ) -> StoredFile:
        """Keep a file; ``size`` is what is claimed. The same bytes have the same file_unique_id."""
        folder, ending, usual = FOLDERS[kind]
        n, digest = next(self._numbers), hashlib.sha1(kind.encode() + data).hexdigest()
        card: Json = {"file_id": f"{kind}-{n}-{digest[:12]}", "file_unique_id": "u" + digest[:15]}
        card["file_size"] = len(data) if size is None else size
        if kind in ("document", "voice", "audio", "video", "animation"):
            card["mime_type"] = mime or usual
        if name and kind in ("document", "audio", "video", "animation"):
            card["file_name"] = name
        path = f"{folder}/file_{n}.{name.rpartition('.')[2] if '.' in name else ending}"
        self.files[card["file_id"]] = stored = StoredFile(kind, data, path, card | facts)
        return stored

    def _content(self, stored: StoredFile) -> Json:
        """The field of a message that shows the file."""
        if stored.kind != "photo":
            fields: Json = {stored.kind: stored.card}
            if stored.kind == "animation":
                fields["document"] = {key: v for key, v in stored.card.items() if key.startswith(("file_", "mime"))}
            return fields
        small = self.store_file("photo", stored.data[:64], width=90, height=90)
        return {"photo": [small.card, stored.card]}

    def media(
        self,
        kind: str,
        chat: Chat,
        user: User | Chat,
        data: bytes | None = None,
        caption: str = "",
        *,
        size: int | None = None,
        name: str = "",
        mime: str = "",
        facts: Json | None = None,
        **where: Any,
    ) -> int:
        """A file of any kind from a user; ``where`` is thread, reply_to, date and fields of the message."""
        data = f"{kind} {next(self._numbers)}".encode() if data is None else data
        stored = self.store_file(kind, data, size=size, name=name, mime=mime, **(facts or {}))
        content = self._content(stored)
        if caption:
            found = find_entities(caption)
            content |= {"caption": caption} | ({"caption_entities": found} if found else {})
        return self.post(chat, user, content, **where)

    def photo(self, chat: Chat, user: User | Chat, data: bytes | None = None, caption: str = "", **where: Any) -> int:
        width, height = (image_size(data) if data else None) or (1280, 960)
        return self.media("photo", chat, user, data, caption, facts={"width": width, "height": height}, **where)

    def album(
        self, chat: Chat, user: User | Chat, photos: Iterable[bytes], caption: str = "", **where: Any
    ) -> list[int]:
        group = str(13_000_000_000 + next(self._numbers))
        captions = itertools.chain([caption], itertools.repeat(""))
        return [
            self.photo(chat, user, data, text, media_group_id=group, **where)
            for data, text in zip(photos, captions, strict=False)
        ]

    def voice(self, chat: Chat, user: User, data: bytes | None = None, *, duration: int = 3, **where: Any) -> int:
        return self.media("voice", chat, user, data, facts={"duration": duration}, **where)

    def audio(self, chat: Chat, user: User, data: bytes | None = None, *, duration: int = 3, **where: Any) -> int:
        return self.media("audio", chat, user, data, facts={"duration": duration}, **where)

    def video(self, chat: Chat, user: User, data: bytes | None = None, *, duration: int = 3, **where: Any) -> int:
        return self.media("video", chat, user, data, facts={"duration": duration, "width": 64, "height": 48}, **where)

    def video_note(self, chat: Chat, user: User, data: bytes | None = None, *, duration: int = 3, **where: Any) -> int:
        return self.media("video_note", chat, user, data, facts={"duration": duration, "length": 240}, **where)

    def animation(self, chat: Chat, user: User, data: bytes | None = None, *, duration: int = 3, **where: Any) -> int:
        facts = {"duration": duration, "width": 64, "height": 48}
        return self.media("animation", chat, user, data, facts=facts, **where)

    def sticker(self, chat: Chat, user: User, emoji: str = "🙂", data: bytes | None = None, **where: Any) -> int:
        facts = {"type": "regular", "width": 512, "height": 512, "is_animated": False, "is_video": False}
        return self.media("sticker", chat, user, data, facts=facts | {"emoji": emoji}, **where)

    def document(
        self,
        chat: Chat,
        user: User,
        data: bytes,
        name: str = "file.txt",
        mime: str = "text/plain",
        caption: str = "",
        **where: Any,
    ) -> int:
        return self.media("document", chat, user, data, caption, name=name, mime=mime, **where)

    def location(self, chat: Chat, user: User, latitude: float, longitude: float, **where: Any) -> int:
        return self.post(chat, user, {"location": {"latitude": latitude, "longitude": longitude}}, **where)

    def poll(self, chat: Chat, user: User, question: str, options: Sequence[str], **where: Any) -> int:
        return self.post(chat, user, {"poll": self._poll_card(question, options)}, **where)

    def _poll_card(self, question: str, options: Sequence[str]) -> Json:
        votes = [{"text": text, "voter_count": 0, "persistent_id": str(n)} for n, text in enumerate(options)]
        flags = dict.fromkeys(("is_closed", "allows_multiple_answers", "allows_revoting", "members_only"), False)
        poll: Json = {"id": str(next(self._numbers)), "question": question, "options": votes, "type": "regular"}
        return poll | flags | {"is_anonymous": True, "total_voter_count": 0}


# == Telegram: the methods =============================================================================================


@dataclass(slots=True)
class Call:
    """One call of the bot: what it asked, what it was told, and when (the clock of the fake)."""

    method: str
    params: Json
    answer: Json
    at: float

    @property
    def ok(self) -> bool:
        return bool(self.answer["ok"])


class FakeTelegram(World):
    """The Bot API server of one bot; ``call`` in the process, ``start`` over HTTP."""

    KINDS = words(
        """429 500 502html 400 403 401 409 migrate reset reset_after timeout timeout_after truncated malformed
        slow"""
    )
    SPOILT = frozenset({"reset_after", "timeout_after", "truncated", "malformed", "slow"})  # the call is executed

    def __init__(
        self, token: str = "42:TEST", username: str = "okun_bot", clock: Callable[[], float] = time.time
    ) -> None:
        super().__init__(username, int(token.partition(":")[0]), clock)
        self.token = token
        self.calls: list[Call] = []  # all but getUpdates
        self.unknown: list[str] = []
        self.polls = 0
        self.handed = 0  # the newest update that was given out
        self.webhook: Json = {}
        self.commands: dict[tuple[str, str], list[Json]] = {}
        snakes = {name: re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), name) for name in METHODS}
        self._handlers = {name: getattr(self, "_do_" + snake, self._do_nothing) for name, snake in snakes.items()}

    # -- for assertions

    def sent(self, chat: Chat | int) -> list[Json]:
        """The bot's messages in a chat as they are now, oldest first."""
        messages = self._known(chat).messages.values()
        return [message for message in messages if message.get("from") == self.me]

    def drafts(self, chat: Chat | int) -> list[Json]:
        """Every state of every draft in a chat, in order."""
        return self._known(chat).drafts

    def reactions(self, chat: Chat | int, message_id: int) -> list[str]:
        """The bot's reactions to a message."""
        return [reaction["emoji"] for reaction in self._known(chat).reactions.get(message_id, ())]

    def called(self, method: str, chat: Chat | int | None = None) -> list[Call]:
        """The calls of a method ("send*" for several), in one chat or in all."""
        chat_id = chat.id if isinstance(chat, Chat) else chat
        return [
            call
            for call in self.calls
            if fnmatchcase(call.method, method) and chat_id in (None, call.params.get("chat_id"))
        ]

    def _known(self, chat: Chat | int) -> Chat:
        return chat if isinstance(chat, Chat) else self.chats[chat]

    # -- a call

    def fault(self, kind: str, method: str = "*", times: int = 1, chat_id: int | None = None, **options: Any) -> None:
        """Spoil the next calls of ``method`` (or "download"): see KINDS; options are retry_after, text, to, seconds."""
        self._add_fault(kind, method, times, chat_id, options)

    def call(self, method: str, params: Mapping[str, Any], files: Mapping[str, bytes] | None = None) -> Json:
        """The answer to one call, as a dict; a fault that no answer can show raises Broken."""
        fault = self._fault_for(method, params)
        if fault is None:
            return self.execute(method, params, files or {})
        if refusal := self._refusal(fault):
            return self._log(method, dict(params), refusal)
        answer = self.execute(method, params, files or {}) if fault.kind in self.SPOILT else None
        if answer is None or fault.kind != "slow":
            raise Broken(fault.kind, answer)
        return answer

    def execute(self, method: str, params: Mapping[str, Any], files: Mapping[str, bytes]) -> Json:
        """Carry out a call, past all faults."""
        asked: Json = dict(params)
        try:
            if method not in METHODS:
                raise Refused("Not Found: method not found", 404)
            asked = self._read(method, params, files)
            answer: Json = {"ok": True, "result": self._handlers[method](asked)}
        except Refused as refused:
            answer = refused.answer
        return self._log(method, asked, answer)

    def _log(self, method: str, params: Json, answer: Json) -> Json:
        if method != "getUpdates":
            self.calls.append(Call(method, params, answer, self.clock()))
            if self.keep and len(self.calls) > 2 * self.keep:
                del self.calls[: self.keep]
        if self._waiting:
            self.changed()
        return answer

    def _read(self, name: str, params: Mapping[str, Any], files: Mapping[str, bytes]) -> Json:
        """The parameters with their types; what is missing, unreadable or unknown."""
        method, asked = METHODS[name], {}
        for key, value in {**params, **{key: data for key, data in files.items() if key in method.readers}}.items():
            reader = method.readers.get(key)
            if reader is None:
                self.unknown.append(f"{name}.{key}")
            elif value is not None and value != "":
                try:
                    asked[key] = attach(reader(value), files) if files else reader(value)
                except (TypeError, ValueError) as error:
                    raise Refused(f'can\'t parse field "{key}": {error}') from None
        for key in method.required:
            if key not in asked:
                raise Refused(MISSING.get(key) or f'parameter "{key}" is required')
        for key in asked.keys() & INNER_NAMES.keys():
            for item in asked[key] if isinstance(asked[key], list) else [asked[key]]:
                self._look_inside(name, key, item)
        return asked

    def _look_inside(self, method: str, key: str, value: Any) -> None:
        if isinstance(value, dict) and not value.keys() <= INNER_NAMES[key]:
            self.unknown += [f"{method}.{key}.{name}" for name in value.keys() - INNER_NAMES[key]]

    def _fault_for(self, method: str, params: Mapping[str, Any]) -> Fault | None:
        if not self.faults:
            return None
        chat_id = str(params.get("chat_id"))
        return self._take_fault(method, int(chat_id) if re.fullmatch(r"-?\d+", chat_id) else None)

    @staticmethod
    def _refusal(fault: Fault) -> Json | None:
        """The answer of the server itself to a call it was told to refuse."""
        after = fault.options.get("retry_after", 1)
        refusals = {
            "429": ("Too Many Requests: retry after " + str(after), 429, {"retry_after": after}),
            "500": ("Internal Server Error", 500, {}),
            "400": (fault.options.get("text", "FAULT"), 400, {}),
            "403": (fault.options.get("text", "bot was blocked by the user"), 403, {}),
            "401": ("Unauthorized", 401, {}),
            "409": ("terminated by other getUpdates request; make sure that only one bot instance is running", 409, {}),
            "migrate": (
                "group chat was upgraded to a supergroup chat",
                400,
                {"migrate_to_chat_id": fault.options.get("to", 0)},
            ),
        }
        if fault.kind not in refusals:
            return None
        text, code, parameters = refusals[fault.kind]
        return Refused(text, code, **parameters).answer

    # -- chats, texts and keyboards in a call

    def _chat(self, p: Json, key: str = "chat_id") -> Chat:
        """The chat of a call, where the bot may act."""
        id = p[key]
        chat = self.chats.get(id) if isinstance(id, int) else self._named(id)
        if chat is None:
            if id in self.users:
                raise Refused("bot can't initiate conversation with a user", 403)
            raise Refused("chat not found")
        if chat.migrated_to:
            raise Refused("group chat was upgraded to a supergroup chat", migrate_to_chat_id=chat.migrated_to)
        if chat.bot_status in ("kicked", "left"):
            kind = "supergroup" if chat.card["type"] == "supergroup" else "group"
            gone = "was kicked from" if chat.bot_status == "kicked" else "is not a member of"
            raise Refused("bot was blocked by the user" if chat.private else f"bot {gone} the {kind} chat", 403)
        return chat

    def _named(self, name: str) -> Chat | None:
        return next((c for c in self.chats.values() if f"@{c.card.get('username', '')}".lower() == name.lower()), None)

    @staticmethod
    def _thread(chat: Chat, p: Json) -> int | None:
        thread: int | None = p.get("message_thread_id")
        if thread is not None and thread not in chat.topics:
            raise Refused("message thread not found")
        return thread

    def _text(self, p: Json, key: str = "text", marks: str = "entities", limit: int = 4096) -> Json:
        """Fields of a message from the text or caption of a call; none where it is empty."""
        too_long = "message is too long" if key == "text" else "message caption is too long"
        for entity in p.get(marks, ()):
            self._look_inside(marks, "entity", entity)
        text, entities = read_text(p.get(key, ""), p.get("parse_mode"), p.get(marks, []), limit, too_long)
        return ({key: text} if text else {}) | ({marks: entities} if entities else {})

    def _body(self, p: Json) -> Json:
        """The text of a message, or its rich text."""
        if "rich_message" in p:
            return {"rich_message": rich_message(p["rich_message"])}
        content = self._text(p)
        if not content:
            raise Refused("message text is empty")
        return content | {key: p[key] for key in ("link_preview_options",) if key in p}

    def _caption(self, p: Json) -> Json:
        return self._text(p, "caption", "caption_entities", 1024)

    def _markup(self, p: Json, inline_only: bool = False) -> Json:
        """``reply_markup`` of a message: only inline keyboards belong to one."""
        markup = p.get("reply_markup")
        if not markup:
            return {}
        if inline_only and "inline_keyboard" not in markup:
            raise Refused("inline keyboard expected")
        check_keyboard(markup)
        for button in itertools.chain.from_iterable(markup.get("inline_keyboard", ())):
            self._look_inside("reply_markup", "button", button)
        return {"reply_markup": markup} if any(markup.get("inline_keyboard", ())) else {}

    def _reply_to(self, chat: Chat, p: Json) -> int | None:
        reply = p.get("reply_parameters")
        if not reply:
            return None
        target: Json | None = chat.messages.get(reply.get("message_id", 0))
        if target is None:
            if reply.get("allow_sending_without_reply"):
                return None
            raise Refused("message to be replied not found")
        if reply.get("quote", "") not in str(target.get("text", target.get("caption"))):
            raise Refused("QUOTE_TEXT_INVALID")
        return int(target["message_id"])

    def _send(self, p: Json, content: Json) -> Json:
        chat = self._chat(p)
        if chat.bot_status == "restricted":
            raise Refused("not enough rights to send text messages to the chat")
        thread, reply_to, markup = self._thread(chat, p), self._reply_to(chat, p), self._markup(p)
        return self._store(chat, {"from": self.me} | content | markup, thread, reply_to)

    def _mine(self, p: Json, what: str) -> tuple[Chat, Json]:
        """The chat and the message of a call about an earlier message."""
        if "chat_id" not in p or "message_id" not in p:
            raise Refused("message identifier is not specified")
        chat = self._chat(p)
        if p["message_id"] not in chat.messages:
            raise Refused(f"message to {what} not found")
        return chat, chat.messages[p["message_id"]]

    # -- messages

    def _do_nothing(self, p: Json) -> bool:
        """A method of which only the parameters matter."""
        if "chat_id" in p:
            self._chat(p)
        return True

    def _do_get_me(self, p: Json) -> Json:
        flags = dict.fromkeys(("supports_inline_queries", "can_connect_to_business", "has_main_web_app"), False)
        return (
            self.me | flags | {"can_join_groups": True, "can_read_all_group_messages": self.can_read_all_group_messages}
        )

    def _do_send_message(self, p: Json) -> Json:
        return self._send(p, self._body(p))

    _do_send_rich_message = _do_send_message

    def _do_send_message_draft(self, p: Json) -> bool:
        chat = self._chat(p)
        if p["draft_id"] == 0:
            raise Refused("DRAFT_ID_INVALID")
        if not chat.private:
            raise Refused("method is available only for private chats")
        self._thread(chat, p)
        content = {"rich_message": rich_message(p["rich_message"])} if "rich_message" in p else self._text(p)
        where = {key: p[key] for key in ("draft_id", "message_thread_id") if key in p}
        chat.drafts.append({"text": "", "can_stop": p.get("can_stop", False), "at": self.clock()} | where | content)
        return True

    _do_send_rich_message_draft = _do_send_message_draft

    def _file(self, kind: str, value: str | bytes, p: Json) -> StoredFile:
        """A file to send: new bytes, a file_id the server gave out, or an address."""
        facts: Json = {key: p[key] for key in words("duration width height length performer title") if key in p}
        if isinstance(value, bytes):
            return self._uploaded(kind, value, facts)
        if LINK.match(value) and "://" in value:
            return self.store_file(kind, value.encode(), **(usual_facts(kind) | facts))
        if value not in self.files:
            raise Refused("wrong remote file identifier specified: Wrong string length")
        stored = self.files[value]
        if stored.kind != kind:
            raise Refused(f"can't use file of type {stored.kind.capitalize()} as {kind.capitalize()}")
        return stored

    def _uploaded(self, kind: str, data: bytes, facts: Json) -> StoredFile:
        if not data:
            raise Refused("file must be non-empty")
        if len(data) > 50 * MEGABYTE:
            raise Refused("Request Entity Too Large", 413)
        facts = usual_facts(kind) | facts
        if kind == "photo":
            size = image_size(data)
            if size is None:
                raise Refused("IMAGE_PROCESS_FAILED")
            if len(data) > 10 * MEGABYTE or sum(size) > 10_000 or max(size) > 20 * min(size):
                raise Refused("PHOTO_INVALID_DIMENSIONS")
            facts = {"width": size[0], "height": size[1]}
        return self.store_file(kind, data, name=getattr(data, "name", ""), **facts)

    def _send_media(self, p: Json) -> Json:
        kind = next(kind for kind in FOLDERS if kind in p)
        return self._send(p, self._content(self._file(kind, p[kind], p)) | self._caption(p))

    _do_send_photo = _do_send_document = _do_send_voice = _do_send_audio = _send_media
    _do_send_video = _do_send_video_note = _do_send_animation = _do_send_sticker = _send_media

    def _input_media(self, item: Json) -> Json:
        kind = item.get("type")
        if kind not in FOLDERS or "media" not in item:
            raise Refused(f'can\'t parse InputMedia: type "{kind}" is unsupported')
        if isinstance(item["media"], str) and item["media"].startswith("attach://"):
            raise Refused("can't parse InputMedia: media not found")
        return self._content(self._file(kind, item["media"], item)) | self._caption(item)

    def _do_send_media_group(self, p: Json) -> list[Json]:
        if not p["media"]:
            raise Refused("there are no messages to send")
        if len(p["media"]) > 10:
            raise Refused("too many messages to send as an album")
        group = {"media_group_id": str(next(self._numbers))}
        contents = [self._input_media(item) | group for item in p["media"]]
        return [self._send(p, content) for content in contents]

    def _do_send_location(self, p: Json) -> Json:
        return self._send(p, {"location": {"latitude": p["latitude"], "longitude": p["longitude"]}})

    def _do_send_poll(self, p: Json) -> Json:
        if not 2 <= len(p["options"]) <= 12 or len(p["question"]) > 300:
            raise Refused("poll must have 2-12 options and a question of at most 300 characters")
        options = [option["text"] if isinstance(option, dict) else option for option in p["options"]]
        return self._send(p, {"poll": self._poll_card(p["question"], options)})

    def _do_send_invoice(self, p: Json) -> Json:
        total = check_invoice(p)
        fields = {key: p[key] for key in ("title", "description", "currency")}
        keyboard: Json = {"reply_markup": {"inline_keyboard": [[{"text": f"Pay {total}", "pay": True}]]}}
        invoice = {"invoice": fields | {"start_parameter": p.get("start_parameter", ""), "total_amount": total}}
        message = self._send(p, keyboard | invoice)
        self.payloads[message["chat"]["id"], message["message_id"]] = p["payload"]
        return message

    def _do_send_chat_action(self, p: Json) -> bool:
        if p["action"] not in ACTIONS:
            raise Refused("wrong parameter action in request")
        self._thread(self._chat(p), p)
        return True

    def _copied(self, p: Json, what: str) -> Json:
        source = self._chat(p, "from_chat_id").messages.get(p["message_id"])
        if source is None:
            raise Refused(f"message to {what} not found")
        envelope = {
            "message_id",
            "date",
            "chat",
            "from",
            "sender_chat",
            "reply_to_message",
            "message_thread_id",
            "is_topic_message",
            "edit_date",
            "reply_markup",
            "media_group_id",
        }
        return {key: value for key, value in source.items() if key not in envelope}

    def _do_copy_message(self, p: Json) -> Json:
        return {"message_id": self._send(p, self._copied(p, "copy") | self._caption(p))["message_id"]}

    def _do_forward_message(self, p: Json) -> Json:
        source = self._chat(p, "from_chat_id").messages.get(p["message_id"], {})
        origin = {"type": "user", "date": source.get("date"), "sender_user": source.get("from")}
        return self._send(p, self._copied(p, "forward") | {"forward_origin": origin})

    def _edit(self, p: Json, needs: tuple[str, ...], content: Json, drops: tuple[str, ...]) -> Json:
        """Replace ``drops`` of a message that has one of ``needs`` by the content and keyboard of a call."""
        chat, old = self._mine(p, "edit")
        if old.get("from") != self.me:
            raise Refused("message can't be edited")
        if needs and not any(key in old for key in needs):
            raise Refused(f"there is no {needs[0]} in the message to edit")
        kept = {key: value for key, value in old.items() if key not in (*drops, "reply_markup")}
        new = kept | content | self._markup(p, inline_only=True)
        if new == old:
            raise Refused(NOT_MODIFIED)
        chat.messages[old["message_id"]] = new | {"edit_date": int(self.clock())}
        return chat.messages[old["message_id"]]

    def _do_edit_message_text(self, p: Json) -> Json:
        drops = ("text", "entities", "link_preview_options", "rich_message", "edit_date")
        return self._edit(p, ("text", "rich_message"), self._body(p), drops)

    def _do_edit_message_caption(self, p: Json) -> Json:
        drops = ("caption", "caption_entities", "edit_date")
        return self._edit(p, ("caption", *FOLDERS), self._caption(p), drops)

    def _do_edit_message_media(self, p: Json) -> Json:
        drops = (*FOLDERS, "caption", "caption_entities", "edit_date")
        return self._edit(p, ("media", *FOLDERS), self._input_media(p["media"]), drops)

    def _do_edit_message_reply_markup(self, p: Json) -> Json:
        return self._edit(p, (), {}, ("edit_date",))

    def _do_delete_message(self, p: Json) -> bool:
        chat, message = self._mine(p, "delete")
        mine = message.get("from") == self.me or chat.private or chat.bot_status == "administrator"
        if not mine or self.clock() - message["date"] > 48 * 3600:
            raise Refused("message can't be deleted")
        del chat.messages[message["message_id"]]
        return True

    def _do_delete_messages(self, p: Json) -> bool:
        if not 1 <= len(p["message_ids"]) <= 100:
            raise Refused("too many message identifiers specified")
        for message_id in set(p["message_ids"]) & self._chat(p).messages.keys():
            self._do_delete_message(p | {"message_id": message_id})
        return True

    def _do_set_message_reaction(self, p: Json) -> bool:
        chat, message = self._mine(p, "react")
        reactions = p.get("reaction", [])
        if len(reactions) > 1:
            raise Refused("REACTIONS_TOO_MANY")
        if any(r.get("type") != "emoji" or r.get("emoji") not in REACTIONS for r in reactions):
            raise Refused("REACTION_INVALID")
        chat.reactions[message["message_id"]] = reactions
        return True

    # -- queries and payments

    def _answer_query(self, key: str, p: Json) -> Json:
        if p[key] not in self.queries:
            raise Refused(TOO_OLD)
        self.answered[p[key]] = p
        return self.queries.pop(p[key])

    def _do_answer_callback_query(self, p: Json) -> bool:
        if len(p.get("text", "")) > 200:
            raise Refused("MESSAGE_TOO_LONG")
        if "url" in p and not re.match(r"tg://|https://(t\.me|telegram\.me)/", p["url"]):
            raise Refused("URL_INVALID")
        self._answer_query("callback_query_id", p)
        return True

    def _do_answer_pre_checkout_query(self, p: Json) -> bool:
        if not p["ok"] and "error_message" not in p:
            raise Refused("error message must be non-empty")
        query = self._answer_query("pre_checkout_query_id", p)
        if p["ok"]:
            charge = "charge-" + query["id"]
            self.payments[charge] = "paid"
            self.paid[charge] = query
            paid = query["order"] | {"telegram_payment_charge_id": charge, "provider_payment_charge_id": ""}
            self.post(self.chats[query["chat"]], query["from"], {"successful_payment": paid})
        return True

    def _do_refund_star_payment(self, p: Json) -> bool:
        state = self.payments.get(p["telegram_payment_charge_id"])
        if state != "paid":
            raise Refused("CHARGE_ALREADY_REFUNDED" if state else "CHARGE_NOT_FOUND")
        self.refund(p["telegram_payment_charge_id"])
        return True

    # -- chats, commands and files

    def _do_get_file(self, p: Json) -> Json:
        stored = self.files.get(p["file_id"])
        if stored is None:
            raise Refused("invalid file_id")
        if stored.card["file_size"] > 20 * MEGABYTE:
            raise Refused("file is too big")
        fields = {key: stored.card[key] for key in ("file_id", "file_unique_id", "file_size")}
        return fields | {"file_path": stored.path}

    def _do_get_chat(self, p: Json) -> Json:
        gifts = ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels")
        accepted = {"accepted_gift_types": dict.fromkeys(gifts, True)}
        return self._chat(p).card | {"accent_color_id": 1, "max_reaction_count": 11} | accepted

    def _do_get_chat_member(self, p: Json) -> Json:
        chat, id = self._chat(p), p["user_id"]
        if id == self.me["id"]:
            return self._card_of_member(self.me, chat.bot_status)
        if id not in self.users:
            raise Refused("user not found")
        return self._card_of_member(self.users[id], chat.members.get(id, "member" if id == chat.id else "left"))

    def _do_get_chat_administrators(self, p: Json) -> list[Json]:
        chat = self._chat(p)
        if chat.private:
            raise Refused("there are no administrators in the private chat")
        everyone = [(self.users[id], status) for id, status in chat.members.items() if not self.users[id]["is_bot"]]
        return [
            self._card_of_member(user, status)
            for user, status in [*everyone, (self.me, chat.bot_status)]
            if status in ("administrator", "creator")
        ]

    def _do_get_chat_member_count(self, p: Json) -> int:
        return 1 + sum(status not in ("left", "kicked") for status in self._chat(p).members.values())

    def _do_leave_chat(self, p: Json) -> bool:
        chat = self._chat(p)
        if chat.private:
            raise Refused("chat member status can't be changed in private chats")
        self.membership(chat, "left", self.me)
        return True

    def _scope(self, p: Json) -> tuple[str, str]:
        scope, language = p.get("scope", {"type": "default"}), p.get("language_code", "")
        if scope.get("type") not in SCOPES:
            raise Refused("can't parse BotCommandScope: unsupported type specified")
        if not re.fullmatch(r"([a-z]{2})?", language):
            raise Refused("invalid language code specified")
        if "chat_id" in scope:
            self._chat({"chat_id": to_chat(scope["chat_id"])})
        return orjson.dumps(scope, option=orjson.OPT_SORT_KEYS).decode(), language

    def _do_set_my_commands(self, p: Json) -> bool:
        if len(p["commands"]) > 100:
            raise Refused("BOT_COMMANDS_TOO_MUCH")
        for command in p["commands"]:
            if not re.fullmatch(r"[a-z0-9_]{1,32}", command.get("command", "")):
                raise Refused("BOT_COMMAND_INVALID")
            if not 1 <= len(command.get("description", "")) <= 256:
                raise Refused("BOT_COMMAND_DESCRIPTION_INVALID")
        self.commands[self._scope(p)] = p["commands"]
        return True

    def _do_get_my_commands(self, p: Json) -> list[Json]:
        return self.commands.get(self._scope(p), [])

    def _do_delete_my_commands(self, p: Json) -> bool:
        self.commands.pop(self._scope(p), None)
        return True

    # -- getUpdates and the webhook

    def _do_get_updates(self, p: Json) -> list[Json]:
        if self.webhook:
            raise Refused(
                "can't use getUpdates method while webhook is active; use deleteWebhook to delete the webhook first",
                409,
            )
        if "allowed_updates" in p:
            self.allowed = frozenset(p["allowed_updates"]) or None
        offset = p.get("offset", 0)
        while self.queue and (len(self.queue) > -offset if offset < 0 else self.queue[0]["update_id"] < offset):
            self.queue.popleft()
        updates = list(itertools.islice(self.queue, max(1, min(100, p.get("limit", 100)))))
        self.handed = max(self.handed, *(update["update_id"] for update in updates)) if updates else self.handed
        return updates

    async def _wait_for_updates(self, params: Json) -> Json:
        """A long poll: a later poller ends it, an update ends it a millisecond later."""
        self.polls += 1
        if self._poll and not self._poll.done():
            self._poll.set_result(False)
        answer = self.execute("getUpdates", params, {})
        timeout = min(50, int(params.get("timeout", 0)))
        if timeout <= 0 or not answer["ok"] or answer["result"]:
            return answer
        self._poll = mine = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout):
                if not await mine:
                    return Refused(
                        "terminated by other getUpdates request; make sure that only one bot instance is running", 409
                    ).answer
                await asyncio.sleep(0.001)
        except TimeoutError:
            pass
        finally:
            mine.cancel()
        return self.execute("getUpdates", {"offset": params.get("offset", 0), "limit": params.get("limit", 100)}, {})

    def _do_set_webhook(self, p: Json) -> bool:
        if not re.fullmatch(r"[A-Za-z0-9_-]{0,256}", p.get("secret_token", "")):
            raise Refused("secret token contains unallowed characters")
        if not LINK.match(p["url"]) and not re.match(r"https?://(localhost|127\.)", p["url"]):
            raise Refused("bad webhook: invalid webhook URL specified")
        self.webhook = p
        if self._poll and not self._poll.done():
            self._poll.set_result(True)
        return True

    def _do_delete_webhook(self, p: Json) -> bool:
        self.webhook = {}
        if p.get("drop_pending_updates"):
            self.queue.clear()
        return True

    def _do_get_webhook_info(self, p: Json) -> Json:
        return {
            "url": self.webhook.get("url", ""),
            "has_custom_certificate": False,
            "pending_update_count": len(self.queue),
        }

    @staticmethod
    async def deliver(url: str, secret: str | None, update: Json) -> int:
        """Post an update to a webhook as Telegram does; the status of the answer."""
        headers = {"X-Telegram-Bot-Api-Secret-Token": secret} if secret is not None else {}
        async with aiohttp.ClientSession() as session, session.post(url, json=update, headers=headers) as answer:
            return answer.status

    # -- over HTTP

    def handle(self, request: Request) -> Reply:
        place, _, rest = request.path.partition("bot")
        token, _, method = rest.partition("/")
        if place not in ("/", "/file/") or unquote(token) != self.token:
            code, text = (401, "Unauthorized") if place in ("/", "/file/") else (404, "Not Found")
            return self._http(Refused(text, code).answer)
        if place == "/file/":
            return self._download(unquote(method))
        try:
            params, files = read_params(request)
        except (TypeError, ValueError):
            return self._http(Refused("can't parse request body").answer)
        fault = self._fault_for(method, params)
        if fault is None and method != "getUpdates":
            return self._http(self.execute(method, params, files))
        return self._slowly(fault, method, params, files, request)

    @staticmethod
    def _http(answer: Json) -> bytes:
        return response(orjson.dumps(answer), 200 if answer["ok"] else answer["error_code"])

    async def _slowly(
        self, fault: Fault | None, method: str, params: Json, files: dict[str, bytes], request: Request
    ) -> bytes:
        """What waits or goes wrong."""
        if fault and (refusal := self._refusal(fault)):
            return self._http(self._log(method, params, refusal))
        if fault and fault.kind not in self.SPOILT:
            return await spoil(b"", fault, request)
        if method == "getUpdates":
            answer = await self._wait_for_updates(params)
        else:
            answer = self.execute(method, params, files)
        return await spoil(self._http(answer), fault, request) if fault else self._http(answer)

    def _download(self, path: str) -> Reply:
        stored = next((stored for stored in self.files.values() if stored.path == path), None)
        if stored is None:
            return self._http(Refused("Not Found", 404).answer)
        whole = response(stored.data, kind="application/octet-stream")
        fault = self._take_fault("download") if self.faults else None
        if fault is None:
            return whole
        refusal = self._refusal(fault)
        return self._http(refusal) if refusal else spoil(whole, fault, None)


def attach(value: Any, files: Mapping[str, bytes]) -> Any:
    """A parameter with its ``attach://`` names replaced by the files of the request."""
    if isinstance(value, str) and value.startswith("attach://"):
        if value[9:] not in files:
            raise ValueError("there is no such file in the request")
        return files[value[9:]]
    if isinstance(value, list):
        return [attach(item, files) for item in value]
    return {key: attach(item, files) for key, item in value.items()} if isinstance(value, dict) else value


def rich_message(value: Json) -> Json:
    if sum(key in value for key in ("html", "markdown", "blocks")) != 1:
        raise Refused("can't parse InputRichMessage: exactly one of html, markdown and blocks must be specified")
    return value


def usual_facts(kind: str) -> Json:
    """What a description of such a file cannot be without."""
    sized = {"width": 640, "height": 480}
    facts: dict[str, Json] = {
        "photo": sized,
        "voice": {"duration": 1},
        "audio": {"duration": 1},
        "video_note": {"duration": 1, "length": 240},
    }
    facts["video"] = facts["animation"] = sized | {"duration": 1}
    facts["sticker"] = sized | {"type": "regular", "is_animated": False, "is_video": False}
    return facts.get(kind, {})


def check_invoice(p: Json) -> int:
    """The sum of an invoice the server would accept."""
    if not 1 <= len(p["title"]) <= 32 or not 1 <= len(p["description"]) <= 255:
        raise Refused("invoice title or description has a wrong length")
    if not 1 <= len(p["payload"].encode()) <= 128:
        raise Refused("INVOICE_PAYLOAD_INVALID")
    if p["currency"] != "XTR" and "provider_token" not in p:
        raise Refused("PAYMENT_PROVIDER_INVALID")
    if not p["prices"] or (p["currency"] == "XTR" and len(p["prices"]) != 1):
        raise Refused("STARS_INVOICE_INVALID")
    total = sum(to_int(price["amount"]) for price in p["prices"])
    if total <= 0:
        raise Refused("CURRENCY_TOTAL_AMOUNT_INVALID")
    return total


def read_params(request: Request) -> tuple[Json, dict[str, bytes]]:
    """Parameters and files of a request, however it carries them."""
    params: Json = dict(parse_qsl(request.query, keep_blank_values=True)) if request.query else {}
    kind = request.headers.get("content-type", "")
    if not request.body:
        return params, {}
    if kind.startswith("application/json"):
        return params | to_json(orjson.loads(request.body), dict), {}
    if kind.startswith("multipart/form-data"):
        fields, files = read_multipart(request.body, kind)
        return params | fields, files
    return params | dict(parse_qsl(request.body.decode(), keep_blank_values=True)), {}


async def spoil(whole: bytes, fault: Fault, request: Request | None) -> bytes:
    """What is left of an answer after a fault of the network; ``b""`` closes the connection."""
    head, _, body = whole.partition(b"\r\n\r\n")
    if fault.kind in ("timeout", "timeout_after", "slow"):
        await asyncio.sleep(fault.options.get("seconds", 3600 if fault.kind != "slow" else 1))
    if fault.kind == "502html":
        return response(b"<html><h1>502 Bad Gateway</h1><hr>nginx</html>", 502, "text/html")
    if fault.kind == "malformed":
        return response(body[:-1] + b",")
    if fault.kind == "truncated" and request:
        request.write(head + b"\r\n\r\n" + body[: len(body) // 2])
    return whole if fault.kind in ("timeout_after", "slow") else b""


# == Gemini: what is refused ===========================================================================================
# The messages of a request, field by field: a type after the colon, ``[x]`` for several, ``{x}`` for a map of them,
# another message by its name, ``any`` for what is not looked into.

SHAPES_TABLE = """
request contents:[content] systemInstruction:content generationConfig:config safetySettings:[safety] tools:[tool]
    toolConfig:toolConfig cachedContent:str
content role:str parts:[part]
part text:str thought:bool thoughtSignature:bytes inlineData:blob fileData:file functionCall:call
    functionResponse:result toolCall:any toolResponse:any executableCode:any codeExecutionResult:any videoMetadata:any
    mediaResolution:any
blob mimeType:str data:bytes
file mimeType:str fileUri:str
call name:str args:any id:str
result name:str response:any id:str
safety category:str threshold:str
config temperature:num topP:num topK:num candidateCount:int maxOutputTokens:int stopSequences:[str] seed:int
    responseMimeType:str responseSchema:schema responseJsonSchema:any responseModalities:[modality] mediaResolution:str
    thinkingConfig:thinking imageConfig:image speechConfig:speech audioTranscriptionConfig:transcription
    presencePenalty:num frequencyPenalty:num
thinking thinkingLevel:str thinkingBudget:int includeThoughts:bool
image aspectRatio:ratio imageSize:str
speech languageCode:str voiceConfig:voice multiSpeakerVoiceConfig:any
voice prebuiltVoiceConfig:prebuilt
prebuilt voiceName:str
transcription wordTimestamp:bool mode:mode diarization:bool languageCodes:[str] languageHints:any languageAuto:any
    customVocabulary:[str]
tool functionDeclarations:[declaration] googleSearch:any urlContext:any codeExecution:any
declaration name:str description:str parameters:schema parametersJsonSchema:any response:schema
toolConfig functionCallingConfig:calling includeServerSideToolInvocations:bool
calling mode:calls allowedFunctionNames:[str]
schema type:types format:str title:str description:str nullable:bool enum:[str] items:schema minItems:int maxItems:int
    properties:{schema} required:[str] propertyOrdering:[str] minimum:num maximum:num minLength:int maxLength:int
    pattern:str anyOf:[schema] default:any example:any
embed model:str content:content taskType:task title:str outputDimensionality:int
batch requests:[embed]
"""
ENUMS = {
    "modality": words("TEXT IMAGE AUDIO"),
    "ratio": words("1:1 2:3 3:2 3:4 4:3 4:5 5:4 9:16 16:9 21:9"),
    "mode": words("VERBATIM SMART"),
    "calls": words("AUTO ANY NONE VALIDATED"),
    "task": words(
        """TASK_TYPE_UNSPECIFIED RETRIEVAL_QUERY RETRIEVAL_DOCUMENT SEMANTIC_SIMILARITY CLASSIFICATION CLUSTERING
        QUESTION_ANSWERING FACT_VERIFICATION CODE_RETRIEVAL_QUERY"""
    ),
    "types": words("STRING NUMBER INTEGER BOOLEAN ARRAY OBJECT NULL string number integer boolean array object null"),
}
SCALARS: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "num": (int, float), "bool": (bool,)}
LEVELS = {"gemini-3.8-flash": words("LOW MEDIUM HIGH")}
GENERATING = words("generateContent streamGenerateContent")
EMBEDDING = {"embedContent": "embed", "batchEmbedContents": "batch"}  # method -> the shape of its request
MODELS = """gemini-3.8-flash gemini-3.5-flash gemini-3.5-flash-lite gemini-2.5-flash gemini-2.5-flash-lite
    gemini-3.1-flash-image gemini-3.5-transcribe gemini-2.5-flash-preview-tts gemini-embedding-001"""
STATUSES = {
    400: "INVALID_ARGUMENT",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
}
# Signatures the API accepts in place of its own.
ANY_SIGNATURE = words("skip_thought_signature_validator context_engineering_is_the_way_to_go")


def read_shapes(table: str) -> dict[str, dict[str, str]]:
    shapes = {}
    for line in table.strip().replace("\n    ", " ").splitlines():
        name, *fields = line.split()
        shapes[name] = {key: kind for key, _, kind in (each.partition(":") for each in fields)}
    return shapes


SHAPES = read_shapes(SHAPES_TABLE)


class GeminiError(Exception):
    def __init__(self, code: int, text: str, *details: Json) -> None:
        super().__init__(text)
        self.code, self.text = code, text
        error = {"code": code, "message": text, "status": STATUSES[code]}
        self.body: Json = {"error": error | ({"details": list(details)} if details else {})}


def is_base64(value: Any) -> bool:
    try:
        return isinstance(value, str) and bool(base64.b64decode(value.translate({45: 43, 95: 47}), validate=True))
    except ValueError:
        return False


def check_shape(value: Any, kind: str, path: str = "") -> None:
    """Refuse names and types the API does not know, at any depth."""
    if kind == "any":
        return
    if kind[0] in "[{":
        if not isinstance(value, list if kind[0] == "[" else dict):
            raise GeminiError(400, f"Invalid value at '{path}': not a {'list' if kind[0] == '[' else 'map'}")
        for key, item in enumerate(value) if isinstance(value, list) else value.items():
            check_shape(item, kind[1:-1], f"{path}[{key}]")
    elif kind in SHAPES:
        if not isinstance(value, dict):
            raise GeminiError(400, f"Invalid value at '{path}': not a message")
        for key, item in value.items():
            if key not in SHAPES[kind]:
                text = f"Invalid JSON payload received. Unknown name \"{key}\" at '{path}': Cannot find field."
                raise GeminiError(400, text)
            check_shape(item, SHAPES[kind][key], f"{path}.{key}".lstrip("."))
    elif kind == "bytes":
        if not is_base64(value):
            raise GeminiError(400, f"Invalid value at '{path}' (TYPE_BYTES), Base64 decoding failed for {value!r:.60}")
    elif kind in ENUMS:
        if value not in ENUMS[kind]:
            raise GeminiError(400, f"Invalid value at '{path}' (enum), {value!r}")
    elif not isinstance(value, SCALARS[kind]) or (isinstance(value, bool) and kind != "bool"):
        raise GeminiError(400, f"Invalid value at '{path}' (TYPE_{kind.upper()}), {value!r:.60}")


def check_config(model: str, config: Json) -> None:
    """Refuse settings that the model does not take."""
    if "audioTranscriptionConfig" in config and not model.endswith("-transcribe"):
        raise GeminiError(400, f"audioTranscriptionConfig is not supported by {model}.")
    if model.startswith("gemini-3"):
        for name in config.keys() & {"temperature", "topP", "topK", "candidateCount"}:
            raise GeminiError(400, f"{name} is not supported by {model}.")
    thinking = config.get("thinkingConfig", {})
    level = thinking.get("thinkingLevel")
    if level is not None:
        known = LEVELS.get(model, words("MINIMAL LOW MEDIUM HIGH")) if model.startswith("gemini-3") else ()
        if level.upper() not in known:
            raise GeminiError(400, f"Thinking level {level} is not supported for this model.")
        if "thinkingBudget" in thinking:
            raise GeminiError(400, "You can only set only one of thinking budget and thinking level.")
    structured = config.keys() & {"responseSchema", "responseJsonSchema"}
    if len(structured) > 1 or (structured and config.get("responseMimeType") != "application/json"):
        raise GeminiError(400, "A response schema needs the response mime type application/json, and only one schema.")


def check_contents(contents: list[Json]) -> None:
    """Refuse turns out of order, without content, or function answers that fit no call."""
    if not contents:
        raise GeminiError(400, "* GenerateContentRequest.contents: contents is not specified")
    previous: Json = {"role": "model"}
    for n, content in enumerate(contents):
        role, parts = content.get("role", "user" if len(contents) == 1 else ""), content.get("parts", [])
        if role not in ("user", "model"):
            raise GeminiError(400, "Please use a valid role: user, model.")
        if n and role == previous.get("role"):
            raise GeminiError(400, "Please ensure that multiturn requests alternate between user and model.")
        if not parts:
            raise GeminiError(400, f"* GenerateContentRequest.contents[{n}].parts: contents.parts must not be empty.")
        for part in parts:
            check_part(part, f"contents[{n}]")
        asked = [part["functionCall"]["name"] for part in previous.get("parts", ()) if "functionCall" in part]
        given = [part["functionResponse"]["name"] for part in parts if "functionResponse" in part]
        if sorted(asked) != sorted(given):
            raise GeminiError(
                400,
                "Please ensure that the number of function response parts is equal to the number of "
                "function call parts of the function call turn.",
            )
        previous = content
    if previous.get("role", "user") == "model":
        raise GeminiError(400, "Please ensure that multiturn requests end with a user role.")


def check_part(part: Json, path: str) -> None:
    data = part.keys() & {
        "text",
        "inlineData",
        "fileData",
        "functionCall",
        "functionResponse",
        "toolCall",
        "toolResponse",
        "executableCode",
        "codeExecutionResult",
    }
    if len(data) != 1:
        raise GeminiError(400, f"* {path}.parts.data: required oneof field 'data' must have one initialized field")
    if "inlineData" in part and not {"mimeType", "data"} <= part["inlineData"].keys():
        raise GeminiError(400, f"* {path}.parts.inlineData: mimeType and data are required")


def check_batch(model: str, requests: list[Json]) -> None:
    """Refuse what https://ai.google.dev/api/embeddings#method:-models.batchembedcontents does not allow."""
    if not requests:
        raise GeminiError(400, "* BatchEmbedContentsRequest.requests: contents is not specified")
    if len(requests) > 100:
        raise GeminiError(400, "* BatchEmbedContentsRequest.requests: at most 100 requests can be in one batch")
    for n, each in enumerate(requests):
        path = f"BatchEmbedContentsRequest.requests[{n}]"
        if each.get("model") != f"models/{model}":
            raise GeminiError(400, f"* {path}.model: must match the model of the batch: models/{model}")
        if "title" in each and each.get("taskType") != "RETRIEVAL_DOCUMENT":
            raise GeminiError(400, f"* {path}.title: only with RETRIEVAL_DOCUMENT")
        if not any(part.get("text") for part in each.get("content", {}).get("parts", ())):
            raise GeminiError(400, f"* {path}.content: contents is not specified")


def check_tools(model: str, body: Json) -> None:
    names = [d.get("name", "") for tool in body.get("tools", ()) for d in tool.get("functionDeclarations", ())]
    if len(names) != len(set(names)) or not all(re.fullmatch(r"[A-Za-z_][\w.:-]{0,63}", name) for name in names):
        raise GeminiError(400, "Invalid or duplicate function name.")
    if names and any("googleSearch" in tool for tool in body["tools"]):
        if not model.startswith("gemini-3"):
            raise GeminiError(400, "Tool use with function calling is unsupported")
        if not body.get("toolConfig", {}).get("includeServerSideToolInvocations"):
            raise GeminiError(
                400,
                "Please enable tool_config.include_server_side_tool_invocations to use built-in "
                "tools with function calling.",
            )


# == Sounds ============================================================================================================
# What is said in a recording, as the models here hear it: from its bytes.

SOUND_SIGNS = {
    "audio/ogg": rb"OggS",
    "audio/mp3": rb"ID3|\xff[\xe2-\xff]",
    "audio/m4a": rb"(?s)....ftyp",
    "video/mp4": rb"(?s)....ftyp",
    "audio/wav": rb"(?s)RIFF....WAVE",
    "audio/flac": rb"fLaC",
    "audio/aac": rb"\xff[\xf0-\xf9]",
    "audio/webm": rb"\x1a\x45\xdf\xa3",
    "video/webm": rb"\x1a\x45\xdf\xa3",
}
Heard = tuple[list[tuple[str, float, float]], float]  # words with their start and end; how long the sound is


def voice_of(words: str) -> bytes:
    """The bytes of a recording in which these words are said."""
    return b"OggS\0" + words.encode()


def heard_in(data: bytes) -> Heard:
    """Words of voice_of, half a second each, a pause of a second after a comma; in a real sound, decoded by ffmpeg,
    each stretch that is not silent is a word, called by how long it is in tenths of a second."""
    if not data.startswith(b"OggS\0") or b"\0" in data[5:]:
        return beeps_in(data)
    said, at = [], 0.0
    for word in data[5:].decode().split():
        said.append((word, at, at + 0.5))
        at += 1.5 if word.endswith(",") else 0.5
    return said, at


@functools.lru_cache(maxsize=8)
def beeps_in(data: bytes) -> Heard:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        listen = ["-af", "silencedetect=noise=-35dB:d=0.3", "-f", "null", "-"]
        done = subprocess.run(
            ["ffmpeg", "-hide_banner", "-i", file.name, "-vn", *listen], capture_output=True, text=True
        )
    if done.returncode:
        raise GeminiError(400, "Request contains an invalid argument.")
    hours, minutes, seconds = re.findall(r"time=(\d+):(\d+):([\d.]+)", done.stderr)[-1]
    length = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    edges = [(float(at), kind) for kind, at in re.findall(r"silence_(start|end): (-?[\d.]+)", done.stderr)]
    ends = [at for at, kind in edges if kind == "start"]
    starts = [at for at, kind in edges if kind == "end"]
    if not edges or edges[0][1] == "start":
        starts.insert(0, 0.0)
    if not edges or edges[-1][1] == "end":
        ends.append(length)
    loud = [(start, end) for start, end in zip(starts, ends, strict=False) if end - start > 0.1]
    return [(f"beep{round((end - start) * 10)}", round(start, 2), round(end, 2)) for start, end in loud], length


def transcription(ask: Ask) -> list[Json]:
    """What a model that transcribes says; of silence it says nothing."""
    [(_, data)] = ask.sounds
    said, length = heard_in(data)
    wish = ask.config.get("audioTranscriptionConfig", {})
    if wish.get("wordTimestamp") and length > 15 * 60:
        raise GeminiError(400, "Audio with word timestamps is limited to 15 minutes.")
    if not said:
        return []
    text = " ".join(word for word, _, _ in said)
    words = [{"word": word, "startOffset": f"{start:g}s", "endOffset": f"{end:g}s"} for word, start, end in said]
    told = {"words": words} if wish.get("wordTimestamp") else {}
    return [{"audioTranscription": {"text": text, "languageCode": "en-US"} | told}]


def check_sound(ask: Ask) -> None:
    for mime, data in ask.sounds:
        if not re.match(SOUND_SIGNS.get(mime, rb"(?!)"), data):
            raise GeminiError(400, f"Unsupported MIME type: {mime}")
    if ask.model.endswith("-transcribe"):
        if len(ask.sounds) != 1 or not ask.sounds[0][0].startswith("audio/"):
            raise GeminiError(400, "Exactly one audio part is required.")
        if "systemInstruction" in ask.body or "responseJsonSchema" in ask.config:
            raise GeminiError(400, "System instructions and schemas are not supported for this model.")


# == Gemini: the answers ===============================================================================================


@dataclass(slots=True)
class Ask:
    """One request, in Gemini's terms whatever API it came by."""

    model: str
    method: str
    body: Json
    headers: dict[str, str]
    at: float
    contents: list[Json] = field(default_factory=list)
    sounds: list[tuple[str, bytes]] = field(default_factory=list)  # (type, bytes) of recordings that came along

    @property
    def config(self) -> Json:
        return cast(Json, self.body.get("generationConfig", {}))

    @property
    def text(self) -> str:
        """What the user said last."""
        return "\n".join(part["text"] for part in self.contents[-1]["parts"] if "text" in part)

    @property
    def system(self) -> str:
        return "\n".join(part["text"] for part in self.body.get("systemInstruction", {}).get("parts", ()))

    @property
    def media(self) -> list[str]:
        """mime:hash of what came with the last turn."""
        blobs = [part["inlineData"] for part in self.contents[-1]["parts"] if "inlineData" in part]
        return [f"{blob['mimeType']}:{digest(base64.b64decode(blob['data']))}" for blob in blobs]

    @property
    def echo(self) -> str:
        media = " ".join(self.media)
        return f'echo of "{self.text}" | media={media} | turns={len(self.contents)} | model={self.model}'


Said = str | Json | list[Json]


@dataclass(slots=True)
class Rule:
    pattern: str
    reply: Said | Callable[[Ask], Said]
    model: str | None = None
    times: int | None = None
    delay: float | None = None
    chunk: int = 12
    chunk_delay: float | None = None
    finish: str = "STOP"
    thought: str | None = None
    signature: str | None = None

    def fits(self, ask: Ask) -> bool:
        here = self.times != 0 and self.model in (None, ask.model)
        return here and bool(re.search(self.pattern, ask.text, re.IGNORECASE | re.DOTALL))


def digest(data: bytes | str) -> str:
    return hashlib.sha1(data.encode() if isinstance(data, str) else data).hexdigest()[:8]


def tokens(text: str) -> int:
    return math.ceil(len(text) / 4)


def sample(schema: Json, text: str) -> Any:
    """A value that fits a response schema, its strings made of ``text``."""
    kind = str(schema.get("type", "object")).lower()
    if kind == "object":
        return {key: sample(inner, text) for key, inner in schema.get("properties", {}).items()}
    if kind == "array":
        return [sample(schema.get("items", {"type": "string"}), text)] * max(1, schema.get("minItems", 1))
    known = {"integer": 1, "number": 0.5, "boolean": True, "null": None}
    low = schema.get("minimum", 1)
    return max(low, known[kind]) if kind in ("integer", "number") else known.get(kind, schema.get("enum", [text])[0])


def picture(ask: Ask) -> Json:
    """A PNG whose colour tells what was asked, in the format that was asked for."""
    from PIL import Image

    width, _, height = ask.config.get("imageConfig", {}).get("aspectRatio", "1:1").partition(":")
    colour = tuple(hashlib.sha1(ask.echo.encode()).digest()[:3])
    file = io.BytesIO()
    Image.new("RGB", (int(width) * 64, int(height) * 64), colour).save(file, "PNG")
    return {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(file.getvalue()).decode()}}


def default_parts(ask: Ask) -> list[Json]:
    """What the model says where no rule fits: an echo in the form that was asked for."""
    modalities = ask.config.get("responseModalities", ())
    if "AUDIO" in modalities:
        sound = hashlib.sha1(ask.echo.encode()).digest() * 240
        data = base64.b64encode(sound).decode()
        return [{"inlineData": {"mimeType": "audio/L16;codec=pcm;rate=24000", "data": data}}]
    if "IMAGE" in modalities or (ask.model.endswith("-image") and not modalities):
        return [picture(ask)]
    if ask.model.endswith("-transcribe") and ask.sounds:
        return transcription(ask)
    schema = ask.config.get("responseSchema", ask.config.get("responseJsonSchema"))
    if schema and ask.sounds and "segments" in schema.get("properties", {}):
        said = [{"start": start, "end": end, "text": word} for word, start, end in heard_in(ask.sounds[0][1])[0]]
        return [{"text": orjson.dumps({"language": "en", "segments": said}).decode()}]
    if schema or ask.config.get("responseMimeType") == "application/json":
        return [{"text": orjson.dumps(sample(schema, ask.echo) if schema else {"echo": ask.echo}).decode()}]
    return [{"text": ask.echo}]


def cut_to(parts: list[Json], limit: int | None, finish: str) -> tuple[list[Json], str]:
    """The parts within so many tokens; thoughts count too."""
    left = 4 * limit if limit else 1 << 60
    kept: list[Json] = []
    for part in parts:
        text = part.get("text", "")
        if len(text) > left:
            return [*kept, part | {"text": text[:left]}] if left else kept, "MAX_TOKENS"
        left, kept = left - len(text), [*kept, part]
    return kept, finish


def pieces_of(parts: list[Json], size: int) -> list[Json]:
    """Parts as they are streamed: texts in pieces of ``size``, a signature with the last of them."""
    pieces: list[Json] = []
    for part in parts:
        text = part.get("text", "")
        bare = {key: value for key, value in part.items() if key not in ("text", "thoughtSignature")}
        starts = range(0, max(1, len(text)), size)
        pieces += [bare | {"text": text[at : at + size]} for at in starts] if "text" in part else [part]
        if "text" in part and "thoughtSignature" in part:
            pieces[-1] = pieces[-1] | {"thoughtSignature": part["thoughtSignature"]}
    return pieces


class FakeGemini(Server):
    """Gemini's v1beta API, an OpenAI-compatible one at /v1, and prices at /prices/simple/price."""

    KINDS = words(
        """429 503 500 404 403 400 malformed reset hang stall cut error blocked empty safety max_tokens no_parts"""
    )
    CODES = words("429 503 500 404 403 400")

    def __init__(self, key: str | None = None) -> None:
        super().__init__()
        self.key = key
        self.delay = 0.0  # before the first byte of an answer
        self.chunk_delay = 0.0
        self.models = MODELS.split()
        self.rules: list[Rule] = []
        self.requests: list[Ask] = []
        self.signatures: set[str] = set()
        self.lacks: dict[str, dict[str, str]] = {}  # model: fields of a request it refuses, and with which words
        self.prices = {"the-open-network": 5.0, "bitcoin": 60_000.0, "ethereum": 3000.0, "solana": 150.0}
        self.prices["dogecoin"] = 0.2
        self.uploads: dict[str, Json] = {}  # name of a file: what is known of it, "data" once it is there
        self.polls = 1  # how often an uploaded file is not ready when it is asked for
        self.deleted: list[str] = []
        self.price_requests = 0

    def rule(self, pattern: str, reply: Said | Callable[[Ask], Said], model: str | None = None, **how: Any) -> None:
        """Answer what the user's last text matches; the newest rule that fits wins. ``how`` is the fields of Rule."""
        self.rules.insert(0, Rule(pattern, reply, model, **how))

    def fault(self, kind: str, times: int = 1, model: str | None = None, **options: Any) -> None:
        """Spoil the next requests: see KINDS; options are retry_delay, per_day, text and (stall, cut) chunks."""
        self._add_fault(kind, model or "*", times, None, options)

    # -- one request

    def handle(self, request: Request) -> Reply:
        if self._waiting:
            asyncio.get_running_loop().call_soon(self.changed)
        if request.path == "/prices/simple/price":
            return self._price(request)
        if request.path.startswith("/v1/"):
            return self._openai(request)
        try:
            if re.match("/upload/v1beta/files|/v1beta/files/", request.path):
                self._check_key_of_file(request)
                return self._upload(request) if request.path.startswith("/upload") else self._file(request)
            found = re.fullmatch(r"/v1beta/models(?:/([\w.-]+))?(?::(\w+))?", request.path)
            if not found:
                raise GeminiError(404, "Not Found")
            self._check_key(request)
            return self._gemini(request, found[1], found[2])
        except GeminiError as error:
            return response(orjson.dumps(error.body), error.code)

    def _check_key(self, request: Request) -> None:
        key = request.headers.get("x-goog-api-key")
        if not key:
            raise GeminiError(403, "Method doesn't allow unregistered callers (callers without established identity).")
        if self.key is not None and key != self.key:
            kind = "type.googleapis.com/google.rpc.ErrorInfo"
            raise GeminiError(
                400,
                "API key not valid. Please pass a valid API key.",
                {"@type": kind, "reason": "API_KEY_INVALID", "domain": "googleapis.com"},
            )

    # -- files: https://ai.google.dev/gemini-api/docs/files

    def _check_key_of_file(self, request: Request) -> None:
        if "upload_id" not in request.query:  # an address that was given out needs no key
            self._check_key(request)

    def _upload(self, request: Request) -> bytes:
        head, name = request.headers, parse_qs(request.query).get("upload_id", [""])[0]
        if not name:
            if (head.get("x-goog-upload-protocol"), head.get("x-goog-upload-command")) != ("resumable", "start"):
                raise GeminiError(400, "Bad upload protocol or command")
            wanted = orjson.loads(request.body)
            if wanted.keys() - {"file"} or wanted.get("file", {}).keys() - {"displayName", "name"}:
                raise GeminiError(400, "Invalid JSON payload received. Unknown name.")
            name = f"files/f{len(self.uploads) + 1}"
            size, mime = head["x-goog-upload-header-content-length"], head["x-goog-upload-header-content-type"]
            self.uploads[name] = {"size": int(size), "mime": mime, "polls": self.polls}
            to = f"{self.url}/upload/v1beta/files?upload_id={name}"
            return response(b"", X_Goog_Upload_URL=to, X_Goog_Upload_Status="active")
        if self._take_fault("upload"):
            raise GeminiError(503, "Upload failed.")
        upload = self.uploads[name]
        if (head.get("x-goog-upload-command"), head.get("x-goog-upload-offset")) != ("upload, finalize", "0"):
            raise GeminiError(400, "Bad upload command or offset")
        if len(request.body) != upload["size"]:
            raise GeminiError(400, f"Expected {upload['size']} bytes, got {len(request.body)}")
        upload["data"] = request.body
        return response(orjson.dumps({"file": self._card(name)}))

    def _card(self, name: str) -> Json:
        upload = self.uploads[name]
        state = "PROCESSING" if upload["polls"] else "ACTIVE"
        return {"name": name, "mimeType": upload["mime"], "sizeBytes": str(upload["size"]), "state": state,
                "uri": f"{self.url}/v1beta/{name}"}  # fmt: skip

    def _file(self, request: Request) -> bytes:
        name = request.path.removeprefix("/v1beta/")
        if "data" not in self.uploads.get(name, {}):
            raise GeminiError(403, f"You do not have permission to access the File {name} or it may not exist.")
        if request.method == "DELETE":
            del self.uploads[name]["data"]
            self.deleted.append(name)
            return response(b"{}")
        upload = self.uploads[name]
        upload["polls"] = max(0, upload["polls"] - 1)
        return response(orjson.dumps(self._card(name)))

    def _sounds(self, ask: Ask) -> Iterator[tuple[str, bytes]]:
        """The recordings of a request, inside it and as files; those must be there and ready."""
        for part in (part for content in ask.contents for part in content.get("parts", ())):
            blob, file = part.get("inlineData"), part.get("fileData")
            if blob and re.match("audio/|video/", blob["mimeType"]):
                yield blob["mimeType"], base64.b64decode(blob["data"])
            if file:
                name = file["fileUri"].removeprefix(f"{self.url}/v1beta/")
                upload = self.uploads.get(name, {})
                if "data" not in upload:
                    raise GeminiError(403, f"You do not have permission to access the File {name} or it may not exist.")
                if upload["polls"] or upload["mime"] != file["mimeType"]:
                    raise GeminiError(400, f"The File {name} is not in an ACTIVE state and usage is not allowed.")
                yield upload["mime"], upload["data"]

    def _gemini(self, request: Request, model: str | None, method: str | None) -> Reply:
        if method is None:
            cards = [
                {
                    "name": f"models/{name}",
                    "inputTokenLimit": 1 << 20,
                    "supportedGenerationMethods": sorted(EMBEDDING) if "embedding" in name else ["generateContent"],
                }
                for name in self.models
            ]
            if model is None:
                return response(orjson.dumps({"models": cards}))
            return response(orjson.dumps(cards[self.models.index(self._model(model))]))
        ask = self._read(request, self._model(model or ""), method)
        self._check_lacks(ask)
        fault = self._take_fault(ask.model) if self.faults else None
        self._refuse(fault, ask)
        if fault and fault.kind in ("malformed", "reset", "hang"):
            return self._no_answer(fault)
        if method == "embedContent":
            return response(orjson.dumps({"embedding": self._vector(ask.body)}))
        if method == "batchEmbedContents":
            vectors = [self._vector(each) for each in ask.body["requests"]]
            return response(orjson.dumps({"embeddings": vectors}))
        return self._answer(request, ask, fault, method == "streamGenerateContent")

    def _model(self, name: str) -> str:
        if name not in self.models:
            raise GeminiError(
                404, f"models/{name} is not found for API version v1beta, or is not supported for generateContent."
            )
        return name

    def _read(self, request: Request, model: str, method: str) -> Ask:
        """The request, checked at every level."""
        if method not in GENERATING | EMBEDDING.keys() or request.method != "POST":
            raise GeminiError(404, f"Method not found: {method}")
        try:
            body = orjson.loads(request.body)
        except ValueError as error:
            raise GeminiError(400, f"Invalid JSON payload received. {error}") from None
        ask = Ask(model, method, body, request.headers, time.time())
        self.requests.append(ask)
        if len(request.body) > 20 << 20:
            raise GeminiError(400, "Request payload size exceeds the limit: 20971520 bytes.")
        check_shape(body, EMBEDDING.get(method, "request"))
        if (method in EMBEDDING) != ("embedding" in model):
            raise GeminiError(404, f"models/{model} is not supported for {method}.")
        if method == "batchEmbedContents":
            check_batch(model, body.get("requests", []))
            ask.contents = [{"parts": each["content"]["parts"]} for each in body["requests"]]
            return ask
        ask.contents = [body.get("content", {})] if method == "embedContent" else body.get("contents", [])
        check_contents(ask.contents)
        if method == "embedContent":
            return ask
        check_config(model, ask.config)
        ask.sounds = list(self._sounds(ask))
        if ask.sounds and re.search("transcri|write down", " ".join([ask.text, model]), re.IGNORECASE):
            check_sound(ask)  # elsewhere sounds are any bytes
        check_tools(model, body)
        if "systemInstruction" in body and not body["systemInstruction"].get("parts"):
            raise GeminiError(400, "* GenerateContentRequest.system_instruction.parts: must not be empty.")
        self._check_signatures(ask)
        return ask

    def _check_lacks(self, ask: Ask) -> None:
        for name, text in self.lacks.get(ask.model, {}).items():
            if name in ask.body or name in ask.config:
                raise GeminiError(400, text)

    def _check_signatures(self, ask: Ask) -> None:
        """A 3.x model wants its signature back with each call made since the user last spoke."""
        for content in reversed(ask.contents):
            calls = [part for part in content["parts"] if "functionCall" in part]
            if content.get("role", "user") == "user" and not any("functionResponse" in p for p in content["parts"]):
                return
            given = calls[0].get("thoughtSignature") if calls else None
            if calls and ask.model.startswith("gemini-3") and given not in self.signatures | ANY_SIGNATURE:
                raise GeminiError(400, "Function call is missing a thought_signature in functionCall parts.")

    def _refuse(self, fault: Fault | None, ask: Ask) -> None:
        if fault is None or fault.kind not in self.CODES:
            return
        details: list[Json] = []
        text = fault.options.get("text") or {
            "503": "The model is overloaded. Please try again later.",
            "404": f"models/{ask.model} is not found for API version v1beta",
            "429": "You exceeded your current quota.",
        }.get(fault.kind, "Fault.")
        if fault.kind == "429":
            span = "Day" if fault.options.get("per_day") else "Minute"
            quota = f"GenerateRequestsPer{span}PerProjectPerModel-FreeTier"
            details.append({"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": quota}]})
            details.append(
                {
                    "@type": "type.googleapis.com/google.rpc.RetryInfo",
                    "retryDelay": f"{fault.options.get('retry_delay', 1)}s",
                }
            )
        raise GeminiError(int(fault.kind), text, *details)

    @staticmethod
    async def _no_answer(fault: Fault) -> bytes:
        if fault.kind == "malformed":
            return response(b'{"candidates": [{"content": {"parts": [{"te')
        if fault.kind == "hang":
            await asyncio.Event().wait()
        return b""

    @staticmethod
    def _vector(request: Json) -> Json:
        """A ContentEmbedding of hashed words: texts with common words are near each other."""
        size = request.get("outputDimensionality", 768)
        text = " ".join(part.get("text", "") for part in request["content"]["parts"])
        vector = [0.0] * size
        for word in re.findall(r"\w+", text.lower()):
            place = int.from_bytes(hashlib.sha1(word.encode()).digest()[:8])
            vector[place % size] += 1.0 if place >> 63 else -1.0
        length = math.hypot(*vector) or 1.0
        return {"values": [value / length for value in vector]}

    # -- what is said, and how

    def _say(self, ask: Ask) -> tuple[Rule, list[Json]]:
        rule = next((rule for rule in self.rules if rule.fits(ask)), None) or Rule("", default_parts)
        if rule.times:
            rule.times -= 1
        said: Any = rule.reply(ask) if callable(rule.reply) else rule.reply
        if isinstance(said, str):
            said = {"text": said}
        parts: list[Json] = [said] if isinstance(said, dict) else list(said)
        call = next((n for n, part in enumerate(parts) if "functionCall" in part), None)
        signature = rule.signature
        if call is not None and signature is None and ask.model.startswith("gemini-3"):
            signature = base64.b64encode(hashlib.sha1(ask.echo.encode()).digest()).decode()
        if signature:
            self.signatures.add(signature)
            at = len(parts) - 1 if call is None else call
            parts[at] = parts[at] | {"thoughtSignature": signature}
        return rule, [{"text": rule.thought, "thought": True}, *parts] if rule.thought else parts

    def _answer(self, request: Request, ask: Ask, fault: Fault | None, stream: bool) -> Reply:
        rule, said = self._say(ask)
        parts, finish = cut_to(said, ask.config.get("maxOutputTokens"), rule.finish)
        kind = fault.kind if fault else ""
        if kind == "max_tokens":
            parts, finish = cut_to(parts, max(1, tokens(parts[-1].get("text", "")) // 2), "MAX_TOKENS")
        elif kind in ("safety", "no_parts"):
            parts, finish = [], "SAFETY" if kind == "safety" else finish
        tail = {"usageMetadata": self._usage(ask, parts), "modelVersion": ask.model, "responseId": digest(ask.echo)}
        if kind in ("blocked", "empty"):
            refused = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}} if kind == "blocked" else {}
            chunks: list[Json] = [refused | tail]
        else:
            pieces = [[piece] for piece in pieces_of(parts, rule.chunk)] if stream else [parts]
            chunks = [self._candidate(piece) | tail for piece in pieces or [[]]]
            chunks[-1]["candidates"][0]["finishReason"] = finish
        if kind == "error":
            chunks = [*chunks[:-1], GeminiError(503, "The model is overloaded.").body]
        bodies = [orjson.dumps(chunk) for chunk in chunks]
        if not stream:
            return self._whole(bodies[0], rule)
        if "alt=sse" not in request.query:
            return self._whole(b"[" + b",".join(bodies) + b"]", rule)
        return self._stream(request, [b"data: %s\r\n\r\n" % body for body in bodies], rule, fault)

    @staticmethod
    def _candidate(parts: list[Json]) -> Json:
        return {"candidates": [{"index": 0} | ({"content": {"role": "model", "parts": parts}} if parts else {})]}

    @staticmethod
    def _usage(ask: Ask, parts: list[Json]) -> Json:
        prompt = tokens(orjson.dumps(ask.body).decode()) if not ask.media else 258 * len(ask.media) + tokens(ask.text)
        thoughts = sum(tokens(part.get("text", "")) for part in parts if "thought" in part)
        said = sum(tokens(part["text"]) if "text" in part else 1290 for part in parts if "thought" not in part)
        usage: Json = {"candidatesTokenCount": said}
        if sound := sum(math.ceil(len(data) / 1000) for _, data in ask.sounds):
            prompt += sound
            usage["promptTokensDetails"] = [{"modality": "AUDIO", "tokenCount": sound}]
        usage |= {"promptTokenCount": prompt, "totalTokenCount": prompt + said + thoughts}
        return usage | ({"thoughtsTokenCount": thoughts} if thoughts else {})

    def _whole(self, body: bytes, rule: Rule) -> Reply:
        delay = self.delay if rule.delay is None else rule.delay

        async def later() -> bytes:
            await asyncio.sleep(delay)
            return response(body)

        return later() if delay else response(body)

    async def _stream(self, request: Request, events: list[bytes], rule: Rule, fault: Fault | None) -> bytes:
        """Events one by one; a "stall" stops talking and a "cut" hangs up after so many of them."""
        await asyncio.sleep(self.delay if rule.delay is None else rule.delay)
        gap = self.chunk_delay if rule.chunk_delay is None else rule.chunk_delay
        stop = fault.options.get("chunks", 1) if fault and fault.kind in ("stall", "cut") else len(events)
        if not gap:
            request.write(STREAM + b"".join(map(chunk_of, events[:stop])))
        for n, event in enumerate(events[:stop] if gap else ()):
            await asyncio.sleep(gap if n else 0)
            request.write((b"" if n else STREAM) + chunk_of(event))
        if fault and fault.kind == "stall":
            await asyncio.Event().wait()
        return b"" if fault and fault.kind == "cut" else STREAM_END

    # -- the neighbours

    def _price(self, request: Request) -> bytes:
        asked = parse_qs(request.query)
        self.price_requests += 1
        known = {coin: {"usd": self.prices[coin]} for coin in asked["ids"][0].split(",") if coin in self.prices}
        return response(orjson.dumps(known))

    def _openai(self, request: Request) -> Reply:
        try:
            if not request.headers.get("authorization", "").startswith("Bearer "):
                raise GeminiError(403, "You didn't provide an API key.")
            if request.path == "/v1/models":
                names = [*self.models, *LISTENERS]
                return response(orjson.dumps({"object": "list", "data": [{"id": name} for name in names]}))
            if request.path == "/v1/audio/transcriptions":
                return self._transcribe(request)
            if request.path != "/v1/chat/completions":
                raise GeminiError(404, "Unknown request URL")
            ask = openai_ask(request)
            self.requests.append(ask)
            self._check_lacks(ask)
            fault = self._take_fault(ask.model) if self.faults else None
            self._refuse(fault, ask)
        except GeminiError as error:
            code = 401 if error.code == 403 else error.code
            return response(
                orjson.dumps(
                    {
                        "error": {
                            "message": error.text,
                            "type": STATUSES[error.code].lower(),
                            "param": None,
                            "code": None,
                        }
                    }
                ),
                code,
            )
        if fault and fault.kind in ("malformed", "reset", "hang"):
            return self._no_answer(fault)
        return self._complete(request, ask, fault)

    def _transcribe(self, request: Request) -> bytes:
        """https://platform.openai.com/docs/api-reference/audio/createTranscription"""
        fields, files = read_multipart(request.body, request.headers.get("content-type", ""))
        if unknown := sorted(fields.keys() - TRANSCRIPTION_FIELDS):
            raise GeminiError(400, f"Unrecognized request argument supplied: {', '.join(unknown)}")
        model, form = fields.get("model", ""), fields.get("response_format", "json")
        data: Any = files.get("file", b"")
        ask = Ask(model, "audio.transcriptions", fields, request.headers, time.time(), [{"parts": [{"text": ""}]}])
        ask.sounds = [("", bytes(data))]
        self.requests.append(ask)
        if model not in LISTENERS:
            raise GeminiError(404, f"The model `{model}` does not exist")
        if not data or not re.search(r"\.(flac|mp3|mp4|mpeg|mpga|m4a|og[ga]|wav|webm)$", data.name):
            raise GeminiError(400, "Invalid file format.")
        if form == "verbose_json" and model != "whisper-1":
            raise GeminiError(400, f"response_format 'verbose_json' is not compatible with model '{model}'.")
        if "timestamp_granularities[]" in fields and form != "verbose_json":
            raise GeminiError(400, "timestamp_granularities are only supported with response_format verbose_json.")
        self._refuse(self._take_fault(model) if self.faults else None, ask)
        said, length = heard_in(bytes(data))
        answer: Json = {"text": " ".join(word for word, _, _ in said)}
        if form == "json":
            used = {
                "type": "tokens",
                "input_tokens": 20,
                "output_tokens": 5,
                "input_token_details": {"audio_tokens": 18},
            }
            return response(orjson.dumps(answer | {"usage": used}))
        granularities = fields.get("timestamp_granularities[]", ["segment"])
        answer |= {
            "language": "english",
            "duration": length,
            "usage": {"type": "duration", "seconds": math.ceil(length)},
        }
        if "word" in granularities:
            answer["words"] = [{"word": word, "start": start, "end": end} for word, start, end in said]
        if "segment" in granularities and said:
            answer["segments"] = [{"id": 0, "start": said[0][1], "end": said[-1][2], "text": " " + answer["text"]}]
        return response(orjson.dumps(answer))

    def _complete(self, request: Request, ask: Ask, fault: Fault | None) -> Reply:
        rule, said = self._say(ask)
        limit = ask.body.get("max_completion_tokens", ask.body.get("max_tokens"))
        parts, finish = cut_to([part for part in said if "thought" not in part], limit, rule.finish)
        if fault and fault.kind in ("safety", "blocked", "no_parts", "empty"):
            parts, finish = [], "SAFETY"
        reason = {"STOP": "stop", "MAX_TOKENS": "length"}.get(finish, "content_filter")
        count = self._usage(ask, parts)
        usage = {
            "prompt_tokens": count["promptTokenCount"],
            "completion_tokens": count["candidatesTokenCount"],
            "total_tokens": count["totalTokenCount"],
        }
        base = {"id": "chatcmpl-" + digest(ask.echo), "created": int(ask.at), "model": ask.model}
        calls = openai_calls(parts, digest(ask.echo))
        reason = "tool_calls" if calls else reason
        if not ask.body.get("stream"):
            text = "".join(part.get("text", "") for part in parts)
            message: Json = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return self._whole(orjson.dumps(base | {"choices": [choice], "usage": usage}), rule)
        deltas = [{"content": piece["text"]} for piece in pieces_of(parts, rule.chunk) if "text" in piece]
        deltas += [{"tool_calls": [piece]} for call in calls for piece in pieces_of_call(call, rule.chunk)]
        chunks: list[Json] = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
        chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
        if ask.body.get("stream_options", {}).get("include_usage"):
            chunks.append({"choices": [], "usage": usage})
        if fault and fault.kind == "error":
            chunks = [*chunks[:1], {"error": {"message": "overloaded", "code": 503}}]
        events = [b"data: %s\n\n" % orjson.dumps(base | chunk) for chunk in chunks]
        return self._stream(request, [b": PROCESSING\n\n", *events, b"data: [DONE]\n\n"], rule, fault)


LISTENERS = ("whisper-1", "gpt-4o-transcribe")
TRANSCRIPTION_FIELDS = words("model response_format timestamp_granularities[] language prompt temperature")
OPENAI_FIELDS = words(
    """model messages stream stream_options temperature top_p max_tokens max_completion_tokens stop tools tool_choice
    response_format reasoning_effort user seed"""
)


def openai_ask(request: Request) -> Ask:
    """A chat completion request in Gemini's terms."""
    try:
        body = orjson.loads(request.body)
    except ValueError as error:
        raise GeminiError(400, f"We could not parse the JSON body of your request. {error}") from None
    if unknown := sorted(body.keys() - OPENAI_FIELDS):
        raise GeminiError(400, f"Unrecognized request argument supplied: {', '.join(unknown)}")
    if not body.get("messages") or not body.get("model"):
        raise GeminiError(400, "you must provide a model and a messages parameter")
    contents: list[Json] = []
    for n, message in enumerate(body["messages"]):
        if message.get("role") not in ("system", "developer", "user", "assistant", "tool"):
            raise GeminiError(400, f"Invalid value: messages[{n}].role")
        if message["role"] not in ("system", "developer"):
            role = "model" if message["role"] == "assistant" else "user"
            contents.append({"role": role, "parts": openai_parts(message.get("content") or "")})
    if not contents:
        raise GeminiError(400, "messages must hold more than system messages")
    check_openai(body)
    return Ask(body["model"], "chat.completions", body, request.headers, time.time(), contents)


def openai_parts(content: str | list[Json]) -> list[Json]:
    if isinstance(content, str):
        return [{"text": content}]
    parts: list[Json] = []
    for item in content:
        if item.get("type") == "text":
            parts.append({"text": item["text"]})
            continue
        sound: Json = item.get("input_audio", {})
        image = re.fullmatch(r"data:([\w/.+-]+);base64,(.+)", item.get("image_url", {}).get("url", ""))
        if not image and not sound:
            raise GeminiError(400, f"Invalid content part: {item.get('type')}")
        mime, data = (image[1], image[2]) if image else (f"audio/{sound['format']}", sound["data"])
        if not is_base64(data):
            raise GeminiError(400, "Invalid base64 data")
        parts.append({"inlineData": {"mimeType": mime, "data": data}})
    return parts


def openai_calls(parts: list[Json], mark: str) -> list[Json]:
    calls = [part["functionCall"] for part in parts if "functionCall" in part]
    return [
        {
            "index": n,
            "id": f"call_{mark}_{n}",
            "type": "function",
            "function": {"name": call["name"], "arguments": orjson.dumps(call.get("args", {})).decode()},
        }
        for n, call in enumerate(calls)
    ]


def pieces_of_call(call: Json, size: int) -> list[Json]:
    """A call as it is streamed: its id and name, then its arguments in pieces, told apart by the index."""
    function = call["function"]
    starts = range(0, len(function["arguments"]), size)
    return [
        call | {"function": {"name": function["name"], "arguments": ""}},
        *({"index": call["index"], "function": {"arguments": function["arguments"][at : at + size]}} for at in starts),
    ]


def check_openai(body: Json) -> None:
    """Refuse answers of tools that fit no call, calls without an answer, and settings without what they are about."""
    if "tool_choice" in body and not body.get("tools"):
        raise GeminiError(400, "'tool_choice' is only allowed when 'tools' are specified.")
    form = body.get("response_format", {"type": "text"})
    name = form.get("json_schema", {}).get("name", "")
    if form["type"] == "json_schema" and not re.fullmatch(r"[\w-]{1,64}", name):
        raise GeminiError(400, "Missing required parameter: 'response_format.json_schema.name'.")
    waiting: list[str] = []
    for message in [*body["messages"], {"role": "user", "content": ""}]:
        if message.get("role") == "tool":
            answer_call(waiting, message)
            continue
        if waiting:
            raise GeminiError(400, f"The following tool_call_ids did not have response messages: {', '.join(waiting)}")
        waiting = [call["id"] for call in message.get("tool_calls", ())]
        if message.get("content") is None and not waiting:
            raise GeminiError(400, "Invalid value for 'content': expected a string, got null.")


def answer_call(waiting: list[str], message: Json) -> None:
    if message.get("tool_call_id") not in waiting:
        raise GeminiError(
            400, "messages with role 'tool' must be a response to a preceeding message with 'tool_calls'."
        )
    waiting.remove(message["tool_call_id"])


# == The bot as a process ==============================================================================================

BOT = Path(__file__).resolve().parent.parent / "bot.py"


class BotProcess:
    """``python bot.py`` in a directory of its own, between the fakes; settings are keywords, None drops one."""

    command: tuple[str, ...] = ()  # instead of ``python bot.py``

    def __init__(self, telegram: FakeTelegram, gemini: FakeGemini, tmp_path: Path, **env: str | int | None) -> None:
        self.telegram, self.directory = telegram, tmp_path
        self.database, self.log_file = tmp_path / "okun.db", tmp_path / "bot.log"
        self.process: asyncio.subprocess.Process | None = None
        settings: dict[str, str | int | None] = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",
            "TELEGRAM_BOT_TOKEN": telegram.token,
            "TELEGRAM_API_URL": telegram.url,
            "GEMINI_API_KEY": gemini.key or "test-key",
            "GEMINI_API_URL": gemini.url,
            "PRICE_API_URL": gemini.url + "/prices",
            "DB_PATH": str(self.database),
            "WEB_PORT": 0,
            "SENDS_PER_SECOND": 0,
            "COMMANDS_PER_MINUTE": 0,
            "BUTTONS_PER_MINUTE": 0,
            "REPLIES_PER_HOUR": 0,
            "CHAT_REPLIES_PER_HOUR": 0,
            "BACKUP_HOURS": 0,
            "LOG_LEVEL": "DEBUG",
        }
        self.env = {key: str(value) for key, value in (settings | env).items() if value is not None}

    async def launch(self, *args: str) -> asyncio.subprocess.Process:
        with self.log_file.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *(self.command or (sys.executable, str(BOT))),
                *args,
                cwd=self.directory,
                env=self.env,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self.process

    async def start(self, *args: str, seconds: float = 30) -> Self:
        """Start the bot and wait until it asks for updates (or has set a webhook)."""
        before = self.telegram.polls
        process = await self.launch(*args)
        ended = asyncio.ensure_future(process.wait())
        ended.add_done_callback(lambda _: self.telegram.changed())
        telegram = self.telegram
        await telegram.until(lambda: ended.done() or telegram.polls > before or telegram.webhook, seconds)
        if ended.done():
            raise AssertionError(f"the bot ended with {ended.result()}:\n{self.log()}")
        return self

    async def run(self, *args: str, seconds: float = 30) -> int:
        """Start the bot with arguments such as --check and wait for its exit code."""
        return await self._ended(await self.launch(*args), seconds)

    async def stop(self, with_signal: signal.Signals = signal.SIGTERM, seconds: float = 30) -> int:
        """Ask the bot to end; its exit code."""
        assert self.process is not None
        if self.process.returncode is None:
            self.process.send_signal(with_signal)
        return await self._ended(self.process, seconds)

    async def kill(self) -> None:
        if self.process and self.process.returncode is None:
            await self.stop(signal.SIGKILL)

    async def _ended(self, process: asyncio.subprocess.Process, seconds: float) -> int:
        try:
            return await asyncio.wait_for(process.wait(), seconds)
        except TimeoutError:
            process.kill()
            await process.wait()
            raise AssertionError(f"the bot did not end within {seconds} s:\n{self.log()[-5000:]}") from None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *exc: object) -> None:
        await self.kill()

    def log(self) -> str:
        return self.log_file.read_text("utf-8", "replace") if self.log_file.exists() else ""

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Rows of the bot's database, read beside it."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=5)
        try:
            return connection.execute(sql, values).fetchall()
        finally:
            connection.close()
