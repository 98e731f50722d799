"""Recordings: what they are, what is done with them, who pays, what is kept; without a network, by a model that hears
what stands in the bytes."""

from __future__ import annotations

import asyncio
import math
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ANNA, BORYS, Okun, Reply, Room, Script, TestClock, make_settings, settings
from fakes import FakeGemini, Json, voice_of

import bot

WORD = bot.SpokenWord
SEGMENT = bot.SpokenSegment
PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
HELLO = "Hello dear friends, we begin."


@pytest.fixture(autouse=True)
def no_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ffmpeg does is tried in tests/e2e."""
    monkeypatch.setattr(bot, "find_ffmpeg", lambda: None)


@pytest.fixture(autouse=True)
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def heard(*words: tuple[str, float, float], lang: str = "en", length: float = 0.0) -> bot.Transcript:
    text = " ".join(word for word, _, _ in words)
    return bot.Transcript(text, tuple(WORD(*word) for word in words), (), lang, length or words[-1][2])


async def offered(room: Room, said: str = HELLO, duration: int = 65, kind: str = "voice", **more: Any) -> Reply:
    [offer] = await room.send(kind, voice_of(said), duration=duration, **more)
    return offer


async def transcribed(room: Room, said: str = HELLO, duration: int = 65, **more: Any) -> Reply:
    """Send a recording and have it written down."""
    await offered(room, said, duration, **more)
    return (await room.press(label(room.okun, "transcript"))).replies[-1]


async def give_coins(okun: Okun, amount: int, user_id: int = ANNA) -> None:
    async with bot.money(okun.app, user_id) as tx:
        await bot.ensure_person(tx, user_id)
        await bot.post(tx, user_id, "coins", amount, "promo", f"gift {user_id}", okun.clock.now())


def coins(okun: Okun, user_id: int = ANNA) -> int:
    [(amount,)] = okun.rows("SELECT amount FROM balances WHERE user_id = ? AND currency = 'coins'", user_id)
    return int(amount)


def label(okun: Okun, want: str, lang: str = "en") -> str:
    return okun.t(f"hearing.button.{want}", lang)


# -- what is offered


async def test_a_recording_is_offered_and_not_answered(okun: Okun, chat: Room, model: Script) -> None:
    offer = await offered(chat)
    assert offer.text == okun.t("hearing.ask") and model.asks == [] and model.recordings == []
    assert offer.buttons[0] == label(okun, "talk") and label(okun, "transcript") in offer.buttons
    assert offer.reply_to == chat.last_id


@pytest.mark.parametrize("kind", ["voice", "audio", "video", "video_note"])
async def test_each_kind_is_offered(okun: Okun, chat: Room, kind: str) -> None:
    assert (await offered(chat, kind=kind)).text == okun.t("hearing.ask")


@pytest.mark.parametrize(
    ("name", "mime", "offered"),
    [("talk.flac", "audio/flac", True), ("talk.mp3", "application/octet-stream", True), ("a.ogg", "text/plain", True),
     ("talk.txt", "text/plain", False), ("a.pdf", "application/pdf", False)],
)  # fmt: skip
async def test_documents_are_offered_where_they_are_recordings(
    okun: Okun, chat: Room, name: str, mime: str, offered: bool
) -> None:
    [reply] = await chat.send("document", voice_of(HELLO), name, mime)
    assert (reply.text == okun.t("hearing.ask")) == offered


@pytest.mark.parametrize(("duration", "asks"), [(1, 0), (4, 0), (5, 1), (6, 1)])
async def test_below_five_seconds_it_is_talk(chat: Room, model: Script, duration: int, asks: int) -> None:
    offer = await offered(chat, duration=duration)
    assert (len(offer.buttons) > 0, len(model.asks)) == (bool(asks), 1 - asks)


async def test_with_a_word_it_is_talk(chat: Room, model: Script) -> None:
    [reply] = await chat.send("voice", voice_of(HELLO), duration=30, caption="what do you think?")
    assert reply.text.startswith("Heard:") and reply.buttons == []
    chat.put("voice", voice_of(HELLO), duration=30)
    chat.put("say", "well?")
    await chat.okun.take()
    assert chat.replies[-1].text.startswith("Heard:") and len(model.asks) == 2


async def test_several_at_once_are_offered_each(okun: Okun, chat: Room) -> None:
    ids = [chat.put("voice", voice_of(word), duration=30) for word in ("one", "two")]
    await okun.take()
    assert [(reply.reply_to, reply.text) for reply in chat.replies] == [(id_, okun.t("hearing.ask")) for id_ in ids]


async def test_a_forwarded_one_is_offered(okun: Okun, chat: Room) -> None:
    origin = {"type": "hidden_user", "sender_user_name": "Petro", "date": 1}
    assert (await offered(chat, forward_origin=origin)).text == okun.t("hearing.ask")


async def test_in_groups_nothing_is_offered(okun: Okun, group: Room, model: Script) -> None:
    assert await group.send("voice", voice_of(HELLO), duration=30) == []


async def test_a_form_that_asks_something_is_asked_first(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("/personas")
    await chat.press(okun.t("persona.button.new"))
    [reply] = await chat.send("voice", voice_of(HELLO), duration=30)
    assert reply.text == okun.t("form.words")


@settings(gemini_api_key="", openai_api_url="http://localhost/v1", openai_model=("fish",))
async def test_where_no_model_hears_it_is_as_it_was(okun: Okun, chat: Room) -> None:
    assert (await offered(chat)).buttons == []
    for lang, name in PEOPLE.items():
        [reply] = await okun.private(name).say("/speech")
        assert reply.text == okun.t("hearing.no_model", lang)


@settings(gemini_api_key="")
async def test_without_a_key_it_says_what_is_missing(okun: Okun) -> None:
    for lang, name in PEOPLE.items():
        [reply] = await okun.private(name).say("/speech")
        assert reply.text == okun.t("hearing.no_key", lang)


@pytest.mark.parametrize(
    ("duration", "size", "why", "talks"),
    [(1200, None, "ask", True), (1201, None, "too_long", True), (30, 20 * 1024 * 1024, "ask", True),
     (30, 20 * 1024 * 1024 + 1, "too_big", False)],
)  # fmt: skip
async def test_what_is_too_long_or_too_big_is_told_kindly(
    okun: Okun, duration: int, size: int | None, why: str, talks: bool
) -> None:
    for lang, name in PEOPLE.items():
        [offer] = await okun.private(name).send("audio", voice_of(HELLO), duration=duration, size=size)
        assert offer.text == okun.t(f"hearing.{why}", lang)
        assert (label(okun, "talk", lang) in offer.buttons) == talks
        assert (label(okun, "transcript", lang) in offer.buttons) == (why == "ask")


@settings(price_speech_minute=3)
async def test_the_price_is_told_before(okun: Okun, chat: Room) -> None:
    assert okun.t("hearing.price", price=3) in (await offered(chat)).text


# -- talk


async def test_talk_about_it_answers_the_recording(okun: Okun, chat: Room, model: Script) -> None:
    offer = await offered(chat)
    pressed = await chat.press(label(okun, "talk"))
    [reply] = pressed.replies
    assert reply.reply_to == offer.reply_to and "[audio/ogg " in reply.text and len(model.asks) == 1
    assert pressed.message.text == offer.text  # what else can be done stays there
    assert chat.rows("kind", "user_id IS NULL") == ["notice", "text"]


async def test_a_second_tap_asks_for_no_second_answer(okun: Okun, chat: Room, model: Script) -> None:
    await offered(chat)
    for _ in range(2):
        okun.telegram.press(chat.chat, okun.person("Anna"), label(okun, "talk"))
    await okun.take()
    assert len(model.asks) == 1
    await okun.later(3)
    await chat.press(label(okun, "talk"))
    assert len(model.asks) == 2


async def test_talk_goes_on_from_what_was_said(okun: Okun, chat: Room, model: Script) -> None:
    await offered(chat)
    await chat.press(label(okun, "talk"))
    await chat.say("and then?")
    assert any("[audio/ogg " in line for line in model.past) and any("[voice 65 s]" in line for line in model.past)


@settings(replies_per_hour=1)
async def test_talk_counts_as_talk(okun: Okun, chat: Room, model: Script) -> None:
    await chat.say("hi")
    await offered(chat)
    await chat.press(label(okun, "talk"))
    assert len(model.asks) == 1 and "limit" not in chat.replies[-1].text and chat.replies[-1].buttons == []


async def test_a_model_that_fails_is_told_as_in_talk(okun: Okun, chat: Room, model: Script) -> None:
    await offered(chat)
    model.always(bot.LlmError("overloaded"))
    [reply] = (await chat.press(label(okun, "talk"))).replies
    assert reply.text == okun.t("llm.overloaded")


# -- transcripts


async def test_a_transcript_is_a_quote_that_unfolds(okun: Okun) -> None:
    for lang, name in PEOPLE.items():
        room = okun.private(name)
        offer = await offered(room, f"Привіт {name}, 👋🏽 друзі.")
        [reply] = (await room.press(label(okun, "transcript", lang))).replies
        head = okun.t("hearing.head", lang, length="1:05")
        assert reply.text == f"{head}\nПривіт {name}, 👋🏽 друзі." and reply.reply_to == offer.reply_to
        [quote] = reply.raw["entities"]
        units = bot.to_units(reply.text)[quote["offset"] : quote["offset"] + quote["length"]]
        assert quote["type"] == "expandable_blockquote" and bot.from_units(units) == f"Привіт {name}, 👋🏽 друзі."
        assert [one for one in room.replies if one.id == offer.id] == []  # the message that showed how far it was


async def test_a_long_one_is_a_file_with_a_preview(okun: Okun, chat: Room) -> None:
    said = " ".join(f"word{n}," if n % 20 == 19 else f"word{n}" for n in range(900))
    await offered(chat, said, 600)
    file, preview = (await chat.press(label(okun, "transcript"))).replies
    text = okun.telegram.files[file.raw["document"]["file_id"]].data.decode()
    assert " ".join(word for word in text.split() if not word.startswith("[")) == said
    assert text.startswith("[0:00] word0") and "\n\n[0:" in text
    assert preview.text.endswith("…") and len(preview.text) < 800 and preview.entities == ["expandable_blockquote"]


@pytest.mark.parametrize(("length", "files"), [(4096, 0), (4097, 1)])
async def test_what_fits_is_a_message(okun: Okun, chat: Room, length: int, files: int) -> None:
    head = okun.t("hearing.head", length="1:05")
    said = "a" * (length - len(head) - 1)
    await transcribed(chat, said)
    assert len([one for one in chat.replies if "document" in one.raw]) == files


async def test_only_the_head_of_it_is_kept_as_a_message(okun: Okun, chat: Room) -> None:
    await transcribed(chat, "a secret of mine")
    assert not any("secret" in text for text in chat.rows("text"))


async def test_silence_is_told_and_costs_no_second_call(okun: Okun, model: Script) -> None:
    for lang, name in PEOPLE.items():
        room = okun.private(name)
        await offered(room, "")
        await room.press(label(okun, "transcript", lang))
        assert room.replies[-1].text == okun.t("hearing.silent", lang)
    assert len(model.recordings) == 1
    assert okun.rows("SELECT state FROM jobs") == [("done",)]


async def test_what_is_no_sound_is_told_and_given_back(okun: Okun, chat: Room, model: Script) -> None:
    await give_coins(okun, 60)
    await okun.restart(price_speech_minute=3)
    await chat.send("document", b"%PDF-1.7 no sound", "talk.mp3", "audio/mpeg")
    await chat.press(label(okun, "transcript"))
    assert okun.t("hearing.no_sound") in chat.replies[-1].text
    assert okun.rows("SELECT state FROM jobs") == [("refunded",)] and coins(okun) == 60 and model.recordings == []
    assert okun.rows("SELECT used FROM quotas") == [(0,)]


@pytest.mark.parametrize(
    ("kind", "key"), [("overloaded", "llm.overloaded"), ("quota", "llm.quota"), ("server", "llm.server")]
)
async def test_a_fault_is_told_in_words(okun: Okun, chat: Room, model: Script, kind: str, key: str) -> None:
    model.hears = lambda file: bot.LlmError(kind)
    await offered(chat)
    await chat.press(label(okun, "transcript"))
    assert chat.replies[-1].text == okun.t(key)
    model.hears = okun.model.hears = lambda file: heard(("again", 0.0, 1.0))
    await chat.press(okun.t("job.button.again"))
    assert chat.replies[-1].text.endswith("again")


async def test_a_file_that_telegram_has_no_more_is_told(okun: Okun, chat: Room) -> None:
    await offered(chat)
    okun.telegram.files.clear()
    await chat.press(label(okun, "transcript"))
    assert chat.replies[-1].text == okun.t("media.gone")


async def test_no_file_is_left_on_the_disk(okun: Okun, chat: Room, model: Script) -> None:
    seen: list[Path] = []

    def hears(file: bot.SoundFile) -> bot.Transcript | Exception:
        seen.append(file.path)
        assert file.path.stat().st_mode & 0o777 and file.path.parent.stat().st_mode & 0o777 == 0o700
        return bot.LlmError("server") if len(seen) == 1 else heard(("a", 0.0, 1.0))

    model.hears = hears
    for said in ("one", "two"):
        await offered(chat, said)
        await chat.press(label(okun, "transcript"))
    assert len(seen) == 2 and not any(path.exists() for path in seen)
    assert list(Path(tempfile.gettempdir()).iterdir()) == []


async def test_what_a_kill_left_is_swept(okun: Okun) -> None:
    folder = Path(tempfile.gettempdir())
    own, now, others = (
        folder / name
        for name in (
            f"{bot.speech_folder(okun.app)}dead-x",
            f"{bot.speech_folder(okun.app)}{okun.app.life}-x",
            "okun-speech-0-x",
        )
    )
    for path in (own, now, others):
        path.mkdir()
        (path / "recording.ogg").write_bytes(b"OggS")
    await bot.speech_files_loop(okun.app)
    assert not own.exists() and now.exists() and others.exists()


# -- once


async def test_the_same_again_makes_no_call_and_waits_in_no_queue(okun: Okun, chat: Room, model: Script) -> None:
    await transcribed(chat)
    await offered(chat)
    asked = len(okun.called("getFile"))
    [again] = (await chat.press(label(okun, "transcript"))).replies
    assert HELLO in again.text and again.reply_to == chat.last_id
    assert len(model.recordings) == 1 and len(okun.called("getFile")) == asked
    assert okun.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_after_a_restart_it_comes_from_the_database(okun: Okun, chat: Room) -> None:
    await transcribed(chat)
    await okun.restart()
    assert HELLO in (await transcribed(chat)).text and okun.model.recordings == []
    [cache] = [one for one in bot.cache_figures(okun.app) if one.name == "transcripts"]
    assert (cache.memory_hits, cache.disk_hits, cache.misses) == (0, 1, 0)
    await transcribed(chat)
    [cache] = [one for one in bot.cache_figures(okun.app) if one.name == "transcripts"]
    assert (cache.memory_hits, cache.disk_hits, cache.misses, cache.memory_size) == (1, 1, 0, 1)


@settings(price_speech_minute=3, speeches_per_day=1)
async def test_another_one_gets_it_too_for_nothing_and_learns_nothing_of_whose_it_was(
    okun: Okun, model: Script
) -> None:
    anna, borys = okun.private("Anna"), okun.private("Borys")
    await give_coins(okun, 10)
    await transcribed(anna)
    await offered(borys)
    [reply] = (await borys.press(label(okun, "transcript", "uk"))).replies
    assert HELLO in reply.text and "Anna" not in str(reply.raw)
    assert len(model.recordings) == 1 and okun.rows("SELECT user_id FROM jobs") == [(ANNA,)]
    assert okun.rows("SELECT user_id FROM hearings ORDER BY 1") == [(ANNA,), (BORYS,)]


async def test_ten_at_once_are_one_call(okun: Okun, model: Script) -> None:
    model.ear = asyncio.Event()
    rooms = [okun.private(f"Person{n}") for n in range(10)]
    for room in rooms:
        await offered(room)
        await room.press(label(okun, "transcript"))
    assert len(model.recordings) == 1
    model.ear.set()
    await okun.settle()
    assert len(model.recordings) == 1 and all(HELLO in room.replies[-1].text for room in rooms)
    assert okun.rows("SELECT state, count(*) FROM jobs GROUP BY state") == [("done", 10)]
    assert okun.app.hearings == {}


@settings(price_speech_minute=3, speeches_per_day=5)
async def test_of_those_at_once_one_pays(okun: Okun, model: Script) -> None:
    model.ear = asyncio.Event()
    anna, borys = okun.private("Anna"), okun.private("Borys")
    for room, id_, lang in ((anna, ANNA, "en"), (borys, BORYS, "uk")):
        await offered(room)
        await give_coins(okun, 10, id_)
        await room.press(label(okun, "transcript", lang))
    assert (coins(okun), coins(okun, BORYS)) == (4, 4)
    model.ear.set()
    await okun.settle()
    assert (coins(okun), coins(okun, BORYS)) == (4, 10)
    assert okun.rows("SELECT user_id, used FROM quotas ORDER BY 1") == [(ANNA, 1), (BORYS, 0)]


@settings(price_speech_minute=3)
async def test_who_gives_up_leaves_it_to_the_next_to_pay(okun: Okun, chat: Room, model: Script) -> None:
    model.ear = asyncio.Event()
    await give_coins(okun, 20)
    for _ in range(2):
        await offered(chat)
        await chat.press(label(okun, "transcript"))
    first = okun.rows("SELECT min(id) FROM jobs")[0][0]
    [job] = [job for job in await bot.jobs_open(okun.app.db.reader, ANNA) if job.id == first]
    assert await bot.cancel_job(okun.app, job) and coins(okun) == 14
    model.ear.set()
    await okun.settle()
    assert coins(okun) == 14 and len(model.recordings) == 1


@settings(price_speech_minute=3)
async def test_what_was_heard_is_paid_and_cannot_be_called_off(okun: Okun, chat: Room, model: Script) -> None:
    await give_coins(okun, 10)
    held = asyncio.Event()

    async def slowly(app: bot.App, job: bot.Job, recording: bot.Recording, heard: bot.Transcript) -> bot.JobEnd:
        await held.wait()
        return bot.NO_END

    end, bot.SPEECH_ENDS["transcript"] = bot.SPEECH_ENDS["transcript"], slowly
    try:
        await offered(chat)
        await chat.press(label(okun, "transcript"))
        await chat.press(okun.t("job.button.cancel"))
        held.set()
        await okun.settle()
    finally:
        bot.SPEECH_ENDS["transcript"] = end
    assert coins(okun) == 4 and okun.rows("SELECT state FROM jobs") == [("done",)]


@settings(price_speech_minute=3)
async def test_what_was_heard_is_coached_without_a_coin(okun: Okun, chat: Room, model: Script) -> None:
    await give_coins(okun, 6)
    await transcribed(chat)
    await chat.press(label(okun, "coach"))
    assert coins(okun) == 0 and okun.rows("SELECT state, price FROM jobs") == [("done", 6), ("done", 0)]


async def test_who_gives_up_does_not_take_it_from_the_others(okun: Okun, model: Script) -> None:
    model.ear = asyncio.Event()
    anna, borys = okun.private("Anna"), okun.private("Borys")
    await offered(anna)
    await anna.press(label(okun, "transcript"))
    await offered(borys)
    await borys.press(label(okun, "transcript", "uk"))
    await anna.press(okun.t("job.button.cancel"))
    assert anna.replies[-1].text == okun.t("job.cancelled")
    model.ear.set()
    await okun.settle()
    assert HELLO in borys.replies[-1].text and len(model.recordings) == 1
    assert okun.rows("SELECT user_id FROM hearings") == [(BORYS,)]


async def test_where_all_give_up_nobody_listens_on(okun: Okun, chat: Room, model: Script) -> None:
    model.ear = asyncio.Event()
    await offered(chat)
    await chat.press(label(okun, "transcript"))
    flight = okun.app.hearings[okun.rows("SELECT data FROM jobs")[0][0].split('"file_unique_id":"')[1].split('"')[0]]
    await chat.press(okun.t("job.button.cancel"))
    assert flight.task.cancelled() and okun.app.hearings == {} and list(Path(tempfile.gettempdir()).iterdir()) == []
    assert okun.rows("SELECT count(*) FROM transcripts") == [(0,)]


# -- jobs


@settings(max_parallel_speech=1)
async def test_recordings_wait_for_one_another(okun: Okun, model: Script) -> None:
    model.ear = asyncio.Event()
    anna, borys = okun.private("Anna"), okun.private("Borys")
    await offered(anna, "one")
    await anna.press(label(okun, "transcript"))
    assert anna.replies[-1].text == okun.t("job.doing.speech")
    await offered(borys, "two")
    await borys.press(label(okun, "transcript", "uk"))
    assert borys.replies[-1].text == okun.t("job.queued", "uk", place=1)
    model.ear.set()
    await okun.settle()
    assert borys.replies[-1].text.endswith("two")


@settings(speeches_per_day=1)
async def test_there_are_so_many_a_day(okun: Okun, chat: Room, model: Script) -> None:
    await transcribed(chat, "one")
    await offered(chat, "two")
    await chat.press(label(okun, "transcript"))
    assert chat.replies[-1].text == okun.t("limit.day.speeches", most=1, left="12 hours")
    assert len(model.recordings) == 1
    assert "one" in (await transcribed(chat, "one")).text  # what is known already can be had


@settings(price_speech_minute=3)
@pytest.mark.parametrize(("duration", "left"), [(59, 7), (60, 7), (61, 4), (130, 1)])
async def test_begun_minutes_cost(okun: Okun, chat: Room, duration: int, left: int) -> None:
    await give_coins(okun, 10)
    await transcribed(chat, duration=duration)
    assert coins(okun) == left


@settings(price_speech_minute=3)
async def test_who_cannot_pay_is_told(okun: Okun, chat: Room, model: Script) -> None:
    await give_coins(okun, 5)
    await offered(chat, duration=61)
    await chat.press(label(okun, "transcript"))
    assert chat.replies[-1].text == okun.t("job.short", need=6, have=5) and model.recordings == []


@settings(price_speech_minute=1)
async def test_for_a_length_that_is_not_known_the_rest_is_given_back(okun: Okun, chat: Room, model: Script) -> None:
    await give_coins(okun, 25)
    model.hears = lambda file: heard(("a", 0.0, 1.0), length=185.0)
    await chat.send("document", voice_of("a"), "talk.ogg", "audio/ogg")
    model.ear = asyncio.Event()
    await chat.press(label(okun, "transcript"))
    assert coins(okun) == 5
    model.ear.set()
    await okun.settle()
    assert coins(okun) == 21  # four minutes


@settings(price_speech_minute=3)
@pytest.mark.parametrize(("real", "left"), [(61, 7), (120, 7), (121, 10)])
async def test_what_telegram_is_told_makes_no_recording_cheaper(
    okun: Okun, chat: Room, model: Script, monkeypatch: pytest.MonkeyPatch, real: int, left: int
) -> None:
    async def parts(recording: bot.Recording, path: Path, size: int) -> list[bot.Part]:
        return [bot.Part(bot.SoundFile(path, "audio/ogg", size, real))]

    monkeypatch.setattr(bot, "sound_parts", parts)
    await give_coins(okun, 10)
    await offered(chat, duration=30)
    await chat.press(label(okun, "transcript"))
    assert coins(okun) == left and len(model.recordings) == (left < 10)
    assert (okun.t("hearing.longer", length="2:01") in chat.replies[-1].text) == (left == 10)


@settings(price_speech_minute=3)
async def test_silence_is_given_back(okun: Okun, chat: Room) -> None:
    await give_coins(okun, 10)
    await offered(chat, "")
    await chat.press(label(okun, "transcript"))
    assert coins(okun) == 10 and okun.rows("SELECT state FROM jobs") == [("done",)]


@pytest.mark.parametrize("state", ["queued", "running"])
@settings(max_parallel_speech=1)
async def test_a_restart_goes_on_with_it(okun: Okun, chat: Room, model: Script, state: str) -> None:
    model.ear = asyncio.Event()
    if state == "queued":
        other = okun.private("Borys")
        await offered(other, "first")
        await other.press(label(okun, "transcript", "uk"))
    await offered(chat)
    await chat.press(label(okun, "transcript"))
    assert okun.rows("SELECT state FROM jobs WHERE user_id = ?", ANNA) == [(state,)]
    await okun.restart()
    await bot.jobs_resume(okun.app)
    await bot.begin_jobs(okun.app)
    await okun.settle()
    assert HELLO in chat.replies[-1].text
    assert {row[0] for row in okun.rows("SELECT state FROM jobs")} == {"done"}


async def test_a_kill_between_hearing_and_telling_hears_once(okun: Okun, chat: Room, model: Script) -> None:
    await offered(chat)
    held = okun.wire.hold("sendMessage")
    await chat.press(label(okun, "transcript"))
    assert len(model.recordings) == 1
    await okun.restart()
    held.set()
    await bot.jobs_resume(okun.app)
    await bot.begin_jobs(okun.app)
    await okun.settle()
    assert HELLO in chat.replies[-1].text and okun.model.recordings == []


# -- strangers


async def test_others_may_not_press(okun: Okun, group: Room, model: Script) -> None:
    await group.send("voice", voice_of(HELLO), duration=30, by="Borys")
    await group.say("/speech", by="Anna", reply_to=group.last_id)
    pressed = await group.press(group.replies[-1].buttons[-1], by="Vira")
    assert pressed.note and pressed.replies == [] and model.recordings == []


@pytest.mark.parametrize("what", ["transcript", "transcript.", "transcript.x", "transcript.99999", "nothing.1", ".1",
                                  "talk.7", "talk", "transcript.-1", "transcript.9223372036854775808"])  # fmt: skip
async def test_forged_buttons_do_nothing(okun: Okun, chat: Room, model: Script, what: str) -> None:
    offer = await offered(chat)
    data = bot.DoPress(owner=ANNA, name="speech", arg=what).pack()
    await chat.press_data(data, offer)
    assert chat.replies[-1].text == okun.t("button.old") and model.recordings == [] and model.asks == []


async def test_what_is_in_another_chat_is_out_of_reach(okun: Okun, model: Script) -> None:
    anna, borys = okun.private("Anna"), okun.private("Borys")
    for _ in range(3):
        await borys.say("hello")
    await offered(borys, "a secret")
    message_id = borys.last_id
    offer = await offered(anna)
    for want in ("transcript", "talk"):
        await anna.press_data(bot.DoPress(owner=ANNA, name="speech", arg=f"{want}.{message_id}").pack(), offer)
    assert not any("secret" in reply.text for reply in anna.replies) and model.recordings == []


# -- /speech


async def test_speech_alone_explains(okun: Okun, group: Room) -> None:
    for lang, name in PEOPLE.items():
        assert [one.text for one in await okun.private(name).say("/speech")] == [okun.t("hearing.usage", lang)]
    assert [one.text for one in await group.say("/speech")] == [okun.t("hearing.usage")]
    await group.say("words")
    assert [one.text for one in await group.say("/speech", reply_to=group.last_id)] == [okun.t("hearing.usage")]


async def test_speech_in_reply_offers(okun: Okun, chat: Room, group: Room, model: Script) -> None:
    for room in (chat, group):
        await room.send("voice", voice_of(HELLO), duration=30, by="Anna")
        spoken = room.last_id
        [offer] = await room.say("/speech", reply_to=spoken)
        assert offer.text == okun.t("hearing.ask") and offer.reply_to == spoken
        [reply] = (await room.press(label(okun, "transcript"))).replies
        assert HELLO in reply.text and reply.reply_to == spoken
    assert len(model.recordings) == 1


async def test_speech_as_a_caption_offers(okun: Okun, chat: Room) -> None:
    [offer] = await chat.send("video", voice_of(HELLO), duration=30, caption="/speech")
    assert offer.text == okun.t("hearing.ask")


async def test_a_recording_that_was_never_seen_is_listened_to_at_once(okun: Okun, group: Room, model: Script) -> None:
    group.put("voice", voice_of(HELLO), duration=30, by="Borys")
    spoken = group.last_id
    okun.telegram.next_updates()  # as where the bot does not get all messages of a group
    replies = await group.say("/speech", reply_to=spoken)
    assert any(reply.picture for reply in replies) and len(model.recordings) == 1


@pytest.mark.parametrize(("duration", "size", "why"), [(3, None, "too_short"), (1300, None, "too_long"),
                                                       (30, 21 * 1024 * 1024, "too_big")])  # fmt: skip
async def test_speech_refuses_kindly(okun: Okun, group: Room, duration: int, size: int | None, why: str) -> None:
    await group.send("voice", voice_of(HELLO), duration=duration, size=size)
    [reply] = await group.say("/speech", reply_to=group.last_id)
    assert reply.text == okun.t(f"hearing.{why}")


async def test_somebody_elses_recording_in_a_group_is_noted_as_theirs(okun: Okun, group: Room) -> None:
    await group.send("voice", voice_of(HELLO), duration=30, by="Borys")
    await group.say("/speech", reply_to=group.last_id)
    await group.press(label(okun, "transcript"))
    assert okun.rows("SELECT user_id, chat_id FROM hearings ORDER BY 1") == [(ANNA, group.id), (BORYS, group.id)]


# -- forgetting


async def test_what_was_written_down_is_exported(okun: Okun, chat: Room) -> None:
    await transcribed(chat)
    found = await bot.export_head(okun.app, ANNA)
    assert [HELLO in one["transcript"] for one in found["transcripts"]] == [True] and found["speeches"] == []


async def test_with_a_person_their_transcripts_are_forgotten(okun: Okun, chat: Room) -> None:
    await transcribed(chat)
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.here"))
    assert okun.rows("SELECT count(*) FROM transcripts") == okun.rows("SELECT count(*) FROM hearings") == [(0,)]
    assert await bot.known_transcript(okun.app, "anything") is None and len(okun.app.transcripts) == 0


async def test_the_speaker_may_have_it_forgotten_too(okun: Okun, group: Room) -> None:
    await group.send("voice", voice_of(HELLO), duration=30, by="Borys")
    await group.say("/speech", reply_to=group.last_id)
    await group.press(label(okun, "transcript"))
    await group.say("/forget me", by="Borys")
    await group.press(okun.t("forget.button.here", "uk"), by="Borys")
    assert okun.rows("SELECT count(*) FROM transcripts") == [(0,)]


async def test_forgetting_everywhere_leaves_none(okun: Okun, chat: Room, group: Room) -> None:
    await group.send("voice", voice_of("in the group"), duration=30)
    await group.say("/speech", reply_to=group.last_id)
    await group.press(label(okun, "transcript"))
    await transcribed(chat)
    await transcribed(chat, "more")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    assert okun.rows("SELECT count(*) FROM transcripts") == [(0,)] and len(okun.app.transcripts) == 0


async def test_what_others_have_stays(okun: Okun, chat: Room) -> None:
    await transcribed(chat, "mine")
    borys = okun.private("Borys")
    await offered(borys, "theirs")
    await borys.press(label(okun, "transcript", "uk"))
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    assert okun.rows("SELECT user_id FROM hearings") == [(BORYS,)]


async def test_who_is_forgotten_while_it_is_heard_leaves_nothing(okun: Okun, chat: Room, model: Script) -> None:
    model.ear = asyncio.Event()
    await offered(chat)
    await chat.press(label(okun, "transcript"))
    await bot.forget_person(okun.app, ANNA, [ANNA], everywhere=True)
    count = len(chat.replies)
    model.ear.set()
    await okun.settle()
    assert okun.rows("SELECT count(*) FROM transcripts") == [(0,)] and len(okun.app.transcripts) == 0
    assert not any(HELLO in reply.text for reply in chat.replies) and len(chat.replies) <= count


async def test_what_nobody_wanted_for_ninety_days_goes(okun: Okun, chat: Room) -> None:
    await transcribed(chat, "old")
    okun.clock.passed += 80 * 86_400
    await transcribed(chat, "new")
    okun.clock.passed += 15 * 86_400
    await bot.transcripts_clean(okun.app)
    [(left,)] = okun.rows("SELECT transcript FROM transcripts")
    assert left.startswith('{"text":"new"')
    await transcribed(chat, "new")
    okun.clock.passed += 89 * 86_400
    await bot.transcripts_clean(okun.app)
    assert okun.rows("SELECT count(*) FROM transcripts") == [(1,)]
    assert okun.rows("SELECT count(*) FROM hearings") == [(1,)]


async def test_a_group_that_becomes_a_supergroup_takes_them_along(okun: Okun, group: Room) -> None:
    await group.send("voice", voice_of(HELLO), duration=30)
    await group.say("/speech", reply_to=group.last_id)
    await group.press(label(okun, "transcript"))
    await bot.chat_migrated(okun.app, group.id, -100777)
    assert okun.rows("SELECT chat_id FROM hearings") == [(-100777,)]


# -- models that hear: over HTTP


@pytest.fixture
async def gemini() -> AsyncIterator[FakeGemini]:
    async with FakeGemini("the-key") as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[bot.Once[Any]]:
    once: bot.Once[Any] = bot.Once(lambda: bot.open_http(make_settings()), lambda session: session.close())
    yield once
    await once.close()


Make = Callable[..., bot.Llm]
CALLS: list[bot.LlmCall] = []


@pytest.fixture
def make(gemini: FakeGemini, http: bot.Once[Any], monkeypatch: pytest.MonkeyPatch) -> Make:
    """A Llm on the fakes; its calls go to CALLS."""
    CALLS.clear()
    monkeypatch.setattr(bot, "UPLOADED_EVERY_S", 0.01)
    monkeypatch.setattr(bot, "UPLOADED_S", 0.05)

    def build(**values: Any) -> bot.Llm:
        values = {"gemini_api_key": "the-key", "gemini_api_url": gemini.url, "openai_api_key": "sk"} | values
        llm = bot.Llm(make_settings(**values), http, TestClock(), random.Random(1))
        llm.on_call = CALLS.append
        return llm

    return build


@pytest.fixture
def llm(make: Make) -> bot.Llm:
    return make()


def with_openai(gemini: FakeGemini, model: str = "whisper-1", **values: Any) -> Json:
    """Settings: only an OpenAI-compatible API, with a model that hears."""
    return {"gemini_api_key": "", "openai_api_url": f"{gemini.url}/v1", "openai_transcribe_model": (model,)} | values


@pytest.fixture
def put_file(tmp_path: Path) -> Callable[..., bot.SoundFile]:
    def put(said: str | bytes = HELLO, **values: Any) -> bot.SoundFile:
        path, data = tmp_path / "recording.ogg", voice_of(said) if isinstance(said, str) else said
        path.write_bytes(data)
        return bot.SoundFile(path, "audio/ogg", len(data), **values)

    return put


PutFile = Callable[..., bot.SoundFile]


def calls() -> list[tuple[str, str, str]]:
    return [(call.capability, call.model, call.outcome) for call in CALLS]


async def test_words_come_with_their_times(llm: bot.Llm, gemini: FakeGemini, put_file: PutFile) -> None:
    found = await llm.hear(put_file(duration_s=65.0), 5, 6)
    assert found.words == (WORD("Hello", 0, 0.5), WORD("dear", 0.5, 1), WORD("friends,", 1, 1.5), WORD("we", 2.5, 3),
                           WORD("begin.", 3, 3.5))  # fmt: skip
    assert (found.text, found.lang, found.duration_s, found.segments) == (HELLO, "en", 65.0, ())
    [ask] = gemini.requests
    assert ask.config == {"audioTranscriptionConfig": {"wordTimestamp": True, "mode": "VERBATIM"}}
    [call] = CALLS
    assert (call.capability, call.model, call.chat_id, call.user_id) == ("hear", "gemini-3.5-transcribe", 5, 6)
    assert call.usage.sound == 1 and call.micro_usd and call.micro_usd > 0


@pytest.mark.parametrize("size", [1, 2, 3, 196_607, 196_608, 196_609, 400_000])
async def test_the_recording_arrives_byte_for_byte(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, size: int
) -> None:
    data = voice_of(HELLO + " " + "a" * size)
    await llm.hear(put_file(data))
    assert gemini.requests[0].sounds == [("audio/ogg", data)]
    assert "transfer-encoding" not in gemini.requests[0].headers


async def test_nothing_said_is_an_answer(llm: bot.Llm, put_file: PutFile) -> None:
    found = await llm.hear(put_file("", duration_s=9.0))
    assert found == bot.Transcript("", (), (), "", 9.0) and calls() == [("hear", "gemini-3.5-transcribe", "ok")]


async def test_text_without_times_is_worth_less_than_the_next_way(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile
) -> None:
    gemini.rule("", "Hello all", model="gemini-3.5-transcribe")
    found = await llm.hear(put_file("One two, three"))
    assert [one.text for one in found.segments] == ["One", "two,", "three"] and found.text == "One two, three"
    assert calls() == [("hear", "gemini-3.5-transcribe", "untimed"), ("listen", "gemini-3.8-flash", "ok")]


async def test_text_without_times_is_better_than_nothing(make: Make, gemini: FakeGemini, put_file: PutFile) -> None:
    gemini.rule("", "Hello all", model="gemini-3.5-transcribe")
    found = await make(gemini_model=()).hear(put_file(duration_s=7.0))
    assert (found.text, found.segments) == ("Hello all", (SEGMENT(0.0, 7.0, "Hello all"),))


async def test_where_no_model_transcribes_one_for_talk_does(make: Make, gemini: FakeGemini, put_file: PutFile) -> None:
    found = await make(gemini_transcribe_model=()).hear(put_file(HELLO))
    assert found.segments[0] == SEGMENT(0.0, 0.5, "Hello") and found.lang == "en"
    [ask] = gemini.requests
    assert "maxOutputTokens" not in ask.config and "responseJsonSchema" in ask.config
    assert ask.contents[0]["parts"][0].keys() == {"inlineData"}


async def test_what_only_models_for_talk_take_goes_there(llm: bot.Llm, put_file: PutFile) -> None:
    await llm.hear(put_file(HELLO, talk=True))
    assert calls() == [("listen", "gemini-3.8-flash", "ok")]


async def test_after_the_transcriber_of_one_provider_comes_that_of_the_other(
    make: Make, gemini: FakeGemini, put_file: PutFile
) -> None:
    gemini.fault("404", times=1, model="gemini-3.5-transcribe")
    llm = make(openai_api_url=f"{gemini.url}/v1", openai_transcribe_model=("whisper-1",))
    assert (await llm.hear(put_file())).words[1] == WORD("dear", 0.5, 1.0)
    assert calls() == [("hear", "gemini-3.5-transcribe", "retired"), ("hear", "whisper-1", "ok")]


async def test_an_openai_api_gives_words_and_what_they_cost(make: Make, gemini: FakeGemini, put_file: PutFile) -> None:
    found = await make(**with_openai(gemini)).hear(put_file(duration_s=65.0))
    assert [word.text for word in found.words] == HELLO.split() and found.lang == "en"
    assert gemini.requests[0].body["timestamp_granularities[]"] == ["word", "segment"]
    assert CALLS[0].micro_usd == 0  # at home; elsewhere:
    price = bot.price_of("whisper-1", "2026-10-01")
    assert price and bot.cost_of(price, bot.Usage(60, sound=60)) == 6000  # of a millionth: 0.006 dollars a minute


async def test_a_model_that_knows_no_times_is_asked_without_them(
    make: Make, gemini: FakeGemini, put_file: PutFile
) -> None:
    found = await make(**with_openai(gemini, "gpt-4o-transcribe")).hear(put_file(duration_s=7.0))
    assert found.text == HELLO and found.segments == (SEGMENT(0.0, 7.0, HELLO),)
    assert calls() == [("hear", "gpt-4o-transcribe", "wording"), ("hear", "gpt-4o-transcribe", "untimed")]
    assert CALLS[1].usage == bot.Usage(20, 5, sound=18)


async def test_a_provider_that_only_transcribes_makes_no_bot_that_talks(make: Make, gemini: FakeGemini) -> None:
    llm = make(**with_openai(gemini))
    assert not llm and llm.can("hear") and not llm.can("chat") and not llm.can("listen")


async def test_broken_json_is_asked_for_once_more(make: Make, gemini: FakeGemini, put_file: PutFile) -> None:
    gemini.rule("", "Sure! Here it is: {", times=1)
    found = await make(gemini_transcribe_model=()).hear(put_file())
    assert found.segments[0].text == "Hello"
    assert [len(ask.sounds) for ask in gemini.requests] == [1, 1]
    assert "no JSON" in gemini.requests[1].text


async def test_broken_json_twice_is_an_error_in_words(make: Make, gemini: FakeGemini, put_file: PutFile) -> None:
    gemini.rule("", "Sure! Here it is: {")
    with pytest.raises(bot.NoShape):
        await make(gemini_transcribe_model=()).hear(put_file())
    assert len(gemini.requests) == 2


@pytest.mark.parametrize("kind", ["503", "500", "reset", "malformed"])
async def test_a_fault_is_tried_again_then_the_next_way_is_taken(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, kind: str
) -> None:
    gemini.fault(kind, times=1, model="gemini-3.5-transcribe")
    assert (await llm.hear(put_file())).words
    assert [capability for capability, _, _ in calls()] == ["hear", "hear"]
    gemini.fault(kind, times=3, model="gemini-3.5-transcribe")
    assert (await llm.hear(put_file())).segments
    assert calls()[-1][0] == "listen"


async def test_what_is_refused_is_told_by_the_transcribers_reason(
    make: Make, gemini: FakeGemini, put_file: PutFile
) -> None:
    gemini.fault("429", times=9, model="gemini-3.5-transcribe", per_day=True)
    with pytest.raises(bot.LlmError) as raised:
        await make(gemini_model=()).hear(put_file())
    assert raised.value.kind == "quota"


# -- large recordings


@pytest.fixture
def small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bot, "MOST_INLINE", 10)


async def test_a_large_one_goes_by_the_files_api_and_is_deleted(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, small_requests: None
) -> None:
    gemini.polls = 2
    assert (await llm.hear(put_file())).text == HELLO
    [ask] = gemini.requests
    assert ask.contents[0]["parts"][0].keys() == {"fileData"} and ask.sounds == [("audio/ogg", voice_of(HELLO))]
    assert gemini.deleted == ["files/f1"]


async def test_it_is_deleted_where_the_model_fails_too(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, small_requests: None
) -> None:
    gemini.fault("400", times=1, model="gemini-3.5-transcribe")
    await llm.hear(put_file())
    assert gemini.deleted == ["files/f1", "files/f2"] and [c for c, _, _ in calls()] == ["hear", "listen"]


async def test_one_that_is_never_ready_is_given_up(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, small_requests: None
) -> None:
    gemini.polls = 1000
    with pytest.raises(bot.LlmError):
        await llm.hear(put_file())
    assert gemini.requests == [] and len(gemini.deleted) == len(gemini.uploads) > 0


async def test_an_upload_that_fails_is_made_again(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, small_requests: None
) -> None:
    gemini.fault("503", times=1, model="upload")
    assert (await llm.hear(put_file())).text == HELLO
    assert [capability for capability, _, _ in calls()] == ["hear", "hear"]


async def test_one_that_nobody_waits_for_any_more_is_deleted(
    llm: bot.Llm, gemini: FakeGemini, put_file: PutFile, small_requests: None
) -> None:
    gemini.fault("hang", times=1, model="gemini-3.5-transcribe")
    task = asyncio.create_task(llm.hear(put_file()))
    await gemini.until(lambda: gemini.requests)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gemini.deleted == ["files/f1"]


# -- what answers mean


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(1.5, 1.5), (0, 0.0), ("1.5s", 1.5), ("0s", 0.0), ("12", 12.0), ("01:02.5", 62.5), ("1:00:02", 3602.0),
     (" 3 s", 3.0), ("", None), (None, None), ("soon", None), (-1, None), ("-1s", None), (math.nan, None),
     (math.inf, None), (True, None), ([], None), (86_400, None), ("1e3", None)],
)  # fmt: skip
def test_times_are_read_however_a_model_writes_them(value: Any, seconds: float | None) -> None:
    assert bot.seconds_in(value) == seconds


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("a", "0s", "1s"), ("b", "1s", "2s")], [("a", 0, 1), ("b", 1, 2)]),
        ([("a", None, "1s"), ("b", None, "2s")], [("a", 0, 1), ("b", 1, 2)]),  # a start of zero is left out
        ([("a", "0.5s", None), ("b", "2s", "3s")], [("a", 0.5, 0.5), ("b", 2, 3)]),
        ([("a", "2s", "1s"), ("b", "3s", "4s")], [("a", 2, 2), ("b", 3, 4)]),  # it ends before it starts
        ([("a", "0s", "0s"), (" ", "1s", "2s")], []),  # nothing but spaces; no time that is one
        ([("a", None, None)], []),
        ([], []),
    ],
)  # fmt: skip
def test_words_get_the_times_they_lack(entries: list[Any], words: list[Any]) -> None:
    given = [{"word": word, "startOffset": start, "endOffset": end} for word, start, end in entries]
    assert bot.spoken_words(given, ("word", "startOffset", "endOffset")) == [WORD(*word) for word in words]


def test_rubbish_among_words_is_left_out() -> None:
    given = [None, 5, {"word": None}, {"word": 7, "start": 0, "end": 1}, {"word": "\0x", "start": 1, "end": 2}]
    assert bot.spoken_words(given, ("word", "start", "end")) == [WORD("7", 0, 1), WORD("x", 1, 2)]


def answer_of(*parts: Json, finish: str = "STOP") -> Json:
    return {"candidates": [{"content": {"parts": list(parts)}, "finishReason": finish}]}


def said_part(text: str, *words: tuple[str, str, str], **more: Any) -> Json:
    told = [{"word": word, "startOffset": start, "endOffset": end} for word, start, end in words]
    return {"audioTranscription": {"text": text, "words": told} | more}


FILE = bot.SoundFile(Path("x"), "audio/ogg", 5, 10.0)


def test_turns_of_several_speakers_are_put_together_in_order() -> None:
    answer = answer_of(
        said_part("you see?", ("you", "3s", "3.2s"), ("see?", "3.2s", "4s"), speakerLabel="2"),
        said_part("Well,", ("Well,", "0.4s", "1s"), languageCode="uk-UA", speakerLabel="1"),
    )
    found = bot.gemini_transcript(answer, FILE)
    assert [word.text for word in found.words] == ["Well,", "you", "see?"] and found.lang == "uk"


def test_parts_with_times_of_their_own_are_segments() -> None:
    answer = answer_of(said_part("One.", startOffset="0s", endOffset="2s"),
                       said_part("Two.", startOffset="2.5s", endOffset="4s"))  # fmt: skip
    assert bot.gemini_transcript(answer, FILE).segments == (SEGMENT(0, 2, "One."), SEGMENT(2.5, 4, "Two."))


@pytest.mark.parametrize("answer", [answer_of(), answer_of({"text": " "}), answer_of(said_part(""))])
def test_an_answer_without_words_is_silence(answer: Json) -> None:
    assert bot.gemini_transcript(answer, FILE) == bot.Transcript("", (), (), "", 10.0)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [({}, "empty"), ({"candidates": []}, "empty"), (answer_of(finish="SAFETY"), "blocked"),
     ({"promptFeedback": {"blockReason": "OTHER"}}, "blocked"), (answer_of({"text": "Hi"}), "untimed"),
     (answer_of(said_part("Hi", ("Hi", "0s", "1s")), finish="MAX_TOKENS"), "request")],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_fault(answer: Json, kind: str) -> None:
    with pytest.raises(bot.LlmFault) as raised:
        bot.gemini_transcript(answer, FILE)
    assert raised.value.kind == kind


@pytest.mark.parametrize(
    ("lang", "code"),
    [("uk-UA", "uk"), ("ru", "ru"), ("english", "en"), ("Ukrainian", "uk"), ("", ""), ("zh_Hant", "zh"),
     ("welsh", ""), ("und-x", "und")],
)  # fmt: skip
def test_languages_are_told_by_their_codes(lang: str, code: str) -> None:
    assert bot.lang_code(lang) == code


# -- what files are


@pytest.mark.parametrize(
    ("head", "mime"),
    [(b"OggS\0\2", "audio/ogg"), (b"ID3\4", "audio/mp3"), (b"\xff\xfb\x90\x00", "audio/mp3"),
     (b"\xff\xf3\x44", "audio/mp3"), (b"\xff\xf1\x50\x80", "audio/aac"), (b"\xff\xf9\x50", "audio/aac"),
     (b"\0\0\0\x20ftypM4A ", "audio/m4a"), (b"\0\0\0\x20ftypisom", "video/mp4"), (b"\0\0\0\x14ftypqt  ", "video/mp4"),
     (b"RIFF\1\2\3\4WAVEfmt ", "audio/wav"), (b"fLaC\0", "audio/flac"), (b"\x1a\x45\xdf\xa3", "video/webm"),
     (b"FORM\0\0\0\1AIFF", "audio/aiff"), (b"#!AMR\n", "audio/amr"), (b"%PDF-1.7", None), (b"RIFF\1\2\3\4WEBP", None),
     (b"\x89PNG", None), (b"", None), (b"#EXTM3U\nhttp://", None), (b"PK\3\4", None), (b"\xff\xd8\xff\xe0", None)],
)  # fmt: skip
def test_files_are_known_by_their_first_bytes(head: bytes, mime: str | None) -> None:
    found = bot.sound_kind(head)
    assert (found.mime if found else None) == mime


async def measured(monkeypatch: pytest.MonkeyPatch, path: Path, told_s: int, real_s: int) -> list[bot.Part]:
    """The parts of a recording that is so long by what Telegram was told, and really."""

    async def ffmpeg(*arguments: str, may_fail: bool = False) -> str:
        if may_fail:
            return f"  Stream #0:0: Audio: opus, 48000 Hz\ntime=00:{real_s // 60:02}:{real_s % 60:02}.00"
        at = float(arguments[arguments.index("-segment_time") + 1])
        for name in ("part000.ogg", "part001.ogg"):
            (path / name).write_bytes(b"OggS")
        (path / "parts.csv").write_text(f"part000.ogg,0.0,{at}\npart001.ogg,{at},{real_s}\n")
        return ""

    monkeypatch.setattr(bot, "find_ffmpeg", lambda: "ffmpeg")
    monkeypatch.setattr(bot, "cut_with_ffmpeg", ffmpeg)
    (path / "recording").write_bytes(b"OggS" + bytes(20))
    recording = bot.Recording("id", "unique", "audio/ogg", "voice", 24, told_s)
    return await bot.sound_parts(recording, path / "recording", 24)


@pytest.mark.parametrize(
    ("told", "real", "begins"),
    [(60, 60, [0]), (0, 899, [0]), (0, 900, [0]), (0, 901, [0, 451.5]), (60, 1200, [0, 601]), (1200, 1200, [0, 601])],
)
async def test_what_is_longer_than_fifteen_minutes_goes_in_parts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: int, real: int, begins: list[float]
) -> None:
    parts = await measured(monkeypatch, tmp_path, told, real)
    assert [part.begins_s for part in parts] == begins and sum(part.file.duration_s for part in parts) == real


@pytest.mark.parametrize("told", [0, 60, 1200])
async def test_what_telegram_is_told_makes_no_recording_shorter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: int
) -> None:
    with pytest.raises(bot.BotError, match=r"hearing\.too_long"):
        await measured(monkeypatch, tmp_path, told, 1260)


def test_what_ffmpeg_says_of_a_file() -> None:
    report = (
        "  Duration: 00:20:00.52, start: 0.0, bitrate: 32 kb/s\n  Stream #0:1(und): Audio: aac (LC) (mp4a), 48000 Hz"
    )
    assert (bot.length_in(report), bot.codec_in(report)) == (1200.52, "aac")
    assert bot.length_in(f"{report}\nsize=N/A time=-00:00:00.02\rsize=N/A time=00:20:59.99 bitrate=N/A") == 1259.99
    assert (bot.length_in("  Duration: N/A, start"), bot.codec_in("  Stream #0:0: Video: h264")) == (0.0, None)
    listed = "part000.ogg,0.000000,600.020000\npart001.ogg,600.020000,900.500000\n"
    assert bot.parts_in(listed) == [("part000.ogg", 0.0, 600.02), ("part001.ogg", 600.02, 900.5)]


# -- parts


def test_parts_become_one_in_the_times_of_the_whole() -> None:
    one, two = heard(("a", 0.0, 1.0), length=600.02), heard(("b", 0.5, 1.0), length=30.0)
    whole = bot.merged([one, bot.shifted(two, 600.02)])
    assert whole.text == "a b" and whole.duration_s == pytest.approx(630.02)
    assert [word.start_s for word in whole.words] == [0.0, pytest.approx(600.52)] and whole.segments == ()


def test_where_a_part_knows_no_words_all_are_segments() -> None:
    two = bot.Transcript("b c", (), (SEGMENT(0.0, 2.0, "b c"),), "uk", 5.0)
    whole = bot.merged([heard(("a.", 0.0, 1.0), ("d", 1.1, 2.0)), bot.shifted(two, 10.0)])
    assert whole.words == () and whole.text == "a. d b c"
    assert whole.segments == (SEGMENT(0.0, 1.0, "a."), SEGMENT(1.1, 2.0, "d"), SEGMENT(10.0, 12.0, "b c"))


def test_a_silent_part_takes_nothing_from_the_others() -> None:
    silent = bot.Transcript("", (), (), "", 600.0)
    whole = bot.merged([silent, bot.shifted(heard(("b", 0.5, 1.0), lang="ru"), 600.0)])
    assert (whole.text, whole.lang, len(whole.words), whole.duration_s) == ("b", "ru", 1, 601.0)
    assert bot.merged([silent, silent]).text == ""


def test_phrases_end_with_sentences_and_pauses() -> None:
    spoken = heard(("One", 0, 1), ("two.", 1, 2), ("three", 2.1, 3), ("four", 3.49, 4), ("five", 4.5, 5))
    assert [one.text for one in bot.phrases_of(spoken)] == ["One two.", "three four", "five"]


def test_paragraphs_begin_after_pauses_and_minutes() -> None:
    spoken = heard(("One.", 0, 1), ("Two.", 2, 3), ("Three.", 5, 6), ("Four.", 6, 66))
    assert bot.timed_text(spoken) == "[0:00] One. Two.\n\n[0:05] Three.\n\n[0:06] Four.\n"


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (65.9, "1:05"), (1200, "20:00"), (3605, "1:00:05")])
def test_lengths_are_told_as_on_a_clock(seconds: float, words: str) -> None:
    assert bot.length_words(seconds) == words


def test_a_transcript_is_stored_and_read_back() -> None:
    for one in (heard(("Привіт,", 0.1234567, 0.5)), bot.Transcript("x", (), (SEGMENT(0.0, 1.0, "x"),), "", 3.5)):
        back = bot.read_transcript(bot.transcript_json(one))
        assert back.text == one.text and back.segments == one.segments and back.duration_s == one.duration_s
    assert bot.read_transcript(bot.transcript_json(heard(("a", 0.12345, 1.0)))).words == (WORD("a", 0.123, 1.0),)


@pytest.mark.parametrize(
    ("entry", "is_one"),
    [({"kind": "voice", "mime": "audio/ogg"}, True), ({"kind": "video_note", "mime": "video/mp4"}, True),
     ({"kind": "document", "mime": "audio/flac"}, True), ({"kind": "document", "mime": "application/ogg"}, True),
     ({"kind": "document", "mime": "application/octet-stream", "file_name": "talk.MP3"}, True),
     ({"kind": "document", "mime": "application/pdf", "file_name": "talk.pdf"}, False),
     ({"kind": "photo", "mime": "image/jpeg"}, False), ({"kind": "animation", "mime": "video/mp4"}, False),
     ({"kind": "sticker", "mime": "image/webp"}, False)],
)  # fmt: skip
def test_recordings_among_files(entry: Json, is_one: bool) -> None:
    found = bot.recording_of({"file_id": "f", "file_unique_id": "u", **entry}, by=7)
    assert (found is not None) == is_one and (found is None or found.by == 7)


@pytest.mark.parametrize(
    ("seconds", "minutes"), [(5, 1), (60, 1), (61, 2), (1199, 20), (1200, 20), (0, 20)]
)  # fmt: skip
def test_begun_minutes_are_paid(seconds: int, minutes: int) -> None:
    assert bot.minutes_begun({"duration_s": seconds}) == minutes
