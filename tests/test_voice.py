"""Answers as voice notes: where they are switched on, what is spoken and what is better read, what a failure does."""

from __future__ import annotations

import io
import struct
import wave
from collections.abc import Awaitable, Callable

import pytest
from conftest import Okun, Room, Script, settings

import bot

OGG = bot.Media("audio/ogg", b"OggS" + bytes(24))
PCM = bot.Media("audio/L16;codec=pcm;rate=24000", struct.pack("<2400h", *(n % 256 * 64 for n in range(2400))))
PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
TABLE = "| a | b |\n|---|---|\n| 1 | 2 |"
speaking = settings(gemini_tts_model=("gemini-2.5-flash-preview-tts",))
needs_ffmpeg = pytest.mark.skipif(bot.find_ffmpeg() is None, reason="there is no ffmpeg")


class Voice:
    """A model that speaks: what it was asked to say, and what comes of it: a sound, or an exception."""

    def __init__(self, sound: bot.Media | Exception) -> None:
        self.sound = sound
        self.spoken: list[str] = []

    async def __call__(self, text: str, chat_id: int = 0, user_id: int = 0) -> bot.Media:
        self.spoken.append(text)
        if isinstance(self.sound, Exception):
            raise self.sound
        return self.sound


def give_voice(okun: Okun, sound: bot.Media | Exception = OGG) -> Voice:
    voice = Voice(sound)
    okun.model.speak = voice  # type: ignore[method-assign]
    return voice


@pytest.fixture
def voice(okun: Okun) -> Voice:
    return give_voice(okun)


@pytest.fixture
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: None)


async def switched_on(room: Room, by: str | None = None) -> Room:
    [reply] = await room.say("/voice on", by=by)
    assert reply.text in (room.okun.t("voice.on", lang) for lang in PEOPLE)
    return room


# -- on and off


@speaking
async def test_it_is_switched_on_and_off(okun: Okun, voice: Voice) -> None:
    for lang, name in PEOPLE.items():
        chat = okun.private(name)
        said = [reply.text for text in ("", " on", "", " off", "") for reply in await chat.say(f"/voice{text}")]
        assert said == [okun.t(f"voice.{key}", lang) for key in ("is_off", "on", "is_on", "off", "is_off")]
    assert okun.rows("SELECT DISTINCT voice FROM chats") == [(0,)]


@speaking
async def test_on_and_off_may_be_said_in_any_language(okun: Okun, chat: Room, voice: Voice) -> None:
    for words, then in (("ON on увімкни включи", "on"), ("OFF off вимкни выключи", "off")):
        for word in words.split():
            assert [reply.text for reply in await chat.say(f"/voice {word}")] == [okun.t(f"voice.{then}")]


@speaking
async def test_what_is_neither_changes_nothing(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    for args in ("loud", "on please", "1 2", "onn"):
        assert [reply.text for reply in await chat.say(f"/voice {args}")] == [okun.t("voice.is_on")]


@speaking
async def test_in_a_group_only_administrators_change_it(okun: Okun, group: Room, voice: Voice) -> None:
    for text in ("/voice on", "/voice off"):
        assert [reply.text for reply in await group.say(text)] == [okun.t("error.admins_only")]
    assert okun.rows("SELECT voice FROM chats") == [(0,)]
    await switched_on(group, by="Olena")
    await switched_on(group, by="chat")
    await group.say("/voice off", by="Borys")
    assert okun.rows("SELECT voice FROM chats") == [(1,)]


@speaking
async def test_it_holds_for_one_chat_and_over_a_restart(okun: Okun, chat: Room, group: Room, voice: Voice) -> None:
    await switched_on(chat)
    await okun.restart()
    give_voice(okun)
    [reply] = await chat.say("hello")
    assert "voice" in reply.raw
    [reply] = await group.say("okun, hello")
    assert "voice" not in reply.raw


async def test_without_a_model_that_speaks_it_says_so(okun: Okun) -> None:
    for lang, name in PEOPLE.items():
        assert [reply.text for reply in await okun.private(name).say("/voice on")] == [okun.t("voice.no_model", lang)]
    assert okun.rows("SELECT DISTINCT voice FROM chats") == [(0,)]


@speaking
async def test_without_ffmpeg_plain_sound_is_refused_plainly(okun: Okun, no_ffmpeg: None) -> None:
    give_voice(okun, PCM)
    for lang, name in PEOPLE.items():
        assert [reply.text for reply in await okun.private(name).say("/voice on")] == [okun.t("voice.no_ffmpeg", lang)]
    assert okun.rows("SELECT DISTINCT voice FROM chats") == [(0,)]


@speaking
async def test_without_ffmpeg_a_model_that_gives_voice_notes_will_do(okun: Okun, chat: Room, no_ffmpeg: None) -> None:
    for mime in ("audio/ogg", "audio/ogg; codecs=opus", "application/ogg"):
        give_voice(okun, bot.Media(mime, OGG.data))
        [reply] = await (await switched_on(chat)).say("hello")
        assert okun.telegram.files[reply.raw["voice"]["file_id"]].data == OGG.data


@speaking
async def test_a_model_that_cannot_be_tried_now_is_named(okun: Okun, chat: Room, no_ffmpeg: None) -> None:
    give_voice(okun, bot.LlmError("overloaded"))
    assert [reply.text for reply in await chat.say("/voice on")] == [okun.t("llm.overloaded")]


@speaking
async def test_with_ffmpeg_nothing_is_spoken_to_try_it(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: "/usr/bin/ffmpeg")
    voice = give_voice(okun, PCM)
    await switched_on(chat)
    assert voice.spoken == []


# -- the note


@speaking
async def test_the_note_answers_and_is_stored_as_text(okun: Okun, chat: Room, voice: Voice, model: Script) -> None:
    model.always("**Well**, hello!")
    [reply] = await (await switched_on(chat)).say("hello")
    assert (voice.spoken, reply.text, reply.reply_to) == (["Well, hello!"], "", chat.last_id)
    assert okun.telegram.files[reply.raw["voice"]["file_id"]].data == OGG.data
    assert chat.rows("message_id, kind, text", "user_id IS NULL")[-1] == (reply.id, "text", "**Well**, hello!")
    await chat.say("what did you say?")
    assert "model: **Well**, hello!" in model.past


@speaking
async def test_the_note_comes_to_its_topic(okun: Okun, voice: Voice) -> None:
    topic = okun.group(forum=True).topic("Fish")
    await topic.say("hello")
    await bot.set_chat(okun.app, topic.id, voice=1)
    [reply] = await topic.say("okun, hello")
    assert "voice" in reply.raw and (reply.thread, reply.reply_to) == (topic.thread, topic.last_id)
    assert okun.called("sendVoice")[0]["message_thread_id"] == topic.thread  # not only because it is a reply
    assert topic.rows("thread_id", "user_id IS NULL") == [topic.thread]


@speaking
async def test_what_is_spoken_is_one_message(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    assert len(await chat.say("hello")) == 1
    assert len(okun.called("sendVoice")) == 1 and okun.called("sendMessage")[1:] == []


@speaking
async def test_commands_and_notices_are_never_spoken(okun: Okun, chat: Room, voice: Voice, model: Script) -> None:
    await switched_on(chat)
    model.always(bot.LlmError("overloaded"))
    assert [reply.text for reply in await chat.say("hello")] == [okun.t("llm.overloaded")]
    [reply] = await chat.say("/help")
    assert reply.text and voice.spoken == []


READ = {
    "long": "word " * 301,
    "code": "Try this:\n```\nprint(1)\n```",
    "link": "See https://example.com",
    "hidden link": "See [this](https://example.com)",
    "table": f"So:\n\n{TABLE}",
    "heading": "# So\n\nit is",
    "formula": "It is $$x^2$$",
}


@speaking
async def test_what_is_better_read_goes_as_text(chat: Room, voice: Voice, model: Script) -> None:
    await switched_on(chat)
    for name, text in READ.items():
        model.always(text)
        replies = await chat.say("hello")
        assert all("voice" not in reply.raw for reply in replies) and replies[0].text, name
        assert chat.rows("text", "user_id IS NULL")[-1] == text
    assert voice.spoken == []


SPEAKABLE = [
    ("Hello!", "Hello!"),
    ("**Hello**, _you_", "Hello, you"),
    ("- one\n- two", "• one\n• two"),
    ("x" * 1500, "x" * 1500),
    ("x" * 1501, None),
    ("**" + "x" * 1500 + "**", "x" * 1500),
    ("`x`", "x"),
    *((text, None) for text in READ.values()),
]


@pytest.mark.parametrize(("text", "spoken"), SPEAKABLE)
def test_what_is_spoken_is_without_markup(text: str, spoken: str | None) -> None:
    assert bot.speakable(text) == spoken


@pytest.mark.parametrize("text", ["***", "---", "👍", "😂😂😂", "…", "?!"])
def test_what_has_no_words_is_not_spoken(text: str) -> None:
    assert bot.speakable(text) is None


@speaking
async def test_an_answer_without_words_goes_as_text(chat: Room, voice: Voice, model: Script) -> None:
    await switched_on(chat)
    model.always("👍")
    [reply] = await chat.say("hello")
    assert (reply.text, voice.spoken) == ("👍", [])


@speaking
async def test_without_the_model_that_spoke_it_writes(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    await okun.restart(gemini_tts_model=())
    assert [reply.text for reply in await chat.say("hello")] == ["Heard: hello"]


# -- what fails

FAILURES = {
    "the model": bot.LlmError("overloaded"),
    "the model, for good": bot.LlmError("blocked"),
    "the program": bot.Unavailable("voice.failed"),
    "the machine": OSError("no more processes"),
}


@speaking
async def test_where_speaking_fails_it_writes(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    for name, failure in FAILURES.items():
        voice.sound = failure
        assert [reply.text for reply in await chat.say(f"fails: {name}")] == [f"Heard: fails: {name}"]
    voice.sound = OGG
    [reply] = await chat.say("again")
    assert "voice" in reply.raw


@speaking
async def test_where_ffmpeg_is_gone_it_writes(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    give_voice(okun)
    await switched_on(chat)
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: None)
    give_voice(okun, PCM)
    [reply] = await chat.say("hello")
    assert (reply.text, reply.reply_to) == ("Heard: hello", chat.last_id)


#  what Telegram says where a chat or a person takes no voice notes
FORBIDDEN = [
    "VOICE_MESSAGES_FORBIDDEN",
    "not enough rights to send voice notes to the chat",
    "CHAT_SEND_VOICES_FORBIDDEN",
]


@speaking
async def test_where_voice_notes_are_forbidden_it_writes(okun: Okun, group: Room, voice: Voice) -> None:
    await switched_on(group, by="Olena")
    for words in FORBIDDEN:
        okun.telegram.fault("400", "sendVoice", text=words)
        [reply] = await group.say("okun, hello")
        assert (reply.text, reply.reply_to) == ("Heard: Anna: okun, hello", group.last_id)
    assert okun.inbox_rows == [] and okun.rows("SELECT gone_at FROM chats") == [(None,)]


@speaking
async def test_who_is_gone_gets_neither(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    chat.chat.bot_status = "kicked"
    assert await chat.say("hello") == [] and okun.inbox_rows == []


@speaking
async def test_a_lost_answer_sends_no_second_note(okun: Okun, chat: Room, voice: Voice) -> None:
    await switched_on(chat)
    okun.telegram.fault("timeout_after", "sendVoice")
    [reply] = await chat.say("hello")
    assert "voice" in reply.raw and chat.rows("message_id, text", "user_id IS NULL")[-1] == (None, "Heard: hello")


@speaking
async def test_telegram_is_down_and_comes_back(
    okun: Okun, chat: Room, voice: Voice, later: Callable[[float], Awaitable[None]]
) -> None:
    await switched_on(chat)
    okun.wire.down = True
    assert await chat.say("hello") == []
    okun.wire.down = False
    await later(60)
    assert ["voice" in reply.raw for reply in chat.replies] == [False, True]


# -- ffmpeg


def wav(samples: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(24000)
        sound.writeframes(samples)
    return file.getvalue()


#  a sound of 2,400 samples, and how many milliseconds that is
SOUNDS = {
    "pcm": (PCM, 100),
    "pcm of another rate": (bot.Media("audio/l16; rate=16000; channels=1", PCM.data), 150),
    "wav": (bot.Media("audio/x-wav", wav(PCM.data)), 100),
}


def milliseconds(note: bytes) -> int:
    """How long an OGG with Opus is: samples of 48 kHz up to its last page, but for those to be skipped."""
    (until,) = struct.unpack_from("<q", note, note.rindex(b"OggS") + 6)
    (skipped,) = struct.unpack_from("<H", note, note.index(b"OpusHead") + 10)
    return int((until - skipped) / 48)


@needs_ffmpeg
@pytest.mark.parametrize("name", SOUNDS)
async def test_ffmpeg_makes_a_voice_note_of_it(name: str) -> None:
    sound, length = SOUNDS[name]
    note = await bot.to_voice_note(sound)
    assert note.startswith(b"OggS") and b"OpusHead" in note[:64] and milliseconds(note) == length


async def test_a_voice_note_stays_as_it_is(no_ffmpeg: None) -> None:
    assert await bot.to_voice_note(OGG) == OGG.data


async def test_without_ffmpeg_there_is_no_voice_note(no_ffmpeg: None) -> None:
    with pytest.raises(bot.BotError, match=r"voice\.no_ffmpeg"):
        await bot.to_voice_note(PCM)


@needs_ffmpeg
@pytest.mark.parametrize("sound", [bot.Media("audio/wav", b"no wav"), bot.Media("audio/L16;rate=0", PCM.data),
                                   bot.Media("audio/L16", b"")])  # fmt: skip
async def test_what_is_no_sound_fails_in_words(sound: bot.Media) -> None:
    with pytest.raises(bot.Unavailable, match=r"voice\.failed"):
        await bot.to_voice_note(sound)


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/ffmpeg", "/dev/null"])
async def test_a_program_that_fails_is_told_apart_from_a_sound(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: program)
    with pytest.raises((bot.Unavailable, OSError)):
        await bot.to_voice_note(bot.Media(PCM.mime, PCM.data * 100))


@needs_ffmpeg
@speaking
async def test_plain_sound_reaches_the_chat_as_a_voice_note(okun: Okun, chat: Room) -> None:
    give_voice(okun, PCM)
    await switched_on(chat)
    chat.put("say", "hello")
    await okun.take()
    await okun.inbox.idle()  # ffmpeg takes time of its own
    note = okun.telegram.files[chat.replies[-1].raw["voice"]["file_id"]]
    assert note.data.startswith(b"OggS") and b"OpusHead" in note.data[:64]


@speaking
async def test_a_program_that_fails_lets_it_write(okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    give_voice(okun, PCM)
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: "/bin/false")
    await switched_on(chat)
    chat.put("say", "hello")
    await okun.take()
    await okun.inbox.idle()
    assert chat.replies[-1].text == "Heard: hello"
