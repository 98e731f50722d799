"""Recordings as people send them: real files, made by ffmpeg, on their way through the bot as a process to models that
hear them; long, large, silent and broken ones; what stays of them in memory and on the disk."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Ask, BotProcess, FakeGemini, Json, until, voice_of

from .conftest import PATIENCE, TEXTS, Person, Stage

HEARING: Json = TEXTS["hearing"]
needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="there is no ffmpeg")
Sound = Callable[..., bytes]
# a second of sound, two seconds into each ten
BEEPS = "aevalsrc='0.5*sin(2*PI*440*t)*between(mod(t,10),2,3)':s=8000:d={}"


@pytest.fixture
def sound(tmp_path: Path) -> Sound:
    """A file that ffmpeg makes: beeps (or silence) of so many seconds."""

    def make(name: str, seconds: float, *how: str, source: str = BEEPS, picture: bool = False) -> bytes:
        path = tmp_path / name
        inputs = ["-f", "lavfi", "-i", source.format(seconds)]
        inputs += ["-f", "lavfi", "-i", f"testsrc=s=32x32:r=2:d={seconds}", "-pix_fmt", "yuv420p"] if picture else []
        subprocess.run(["ffmpeg", "-v", "error", "-y", *inputs, *how, "-shortest", str(path)], check=True)
        return path.read_bytes()

    return make


def opus(sound: Sound, seconds: float, name: str = "a.ogg", **more: Any) -> bytes:
    """A voice note; made quickly."""
    how = ("-c:a", "libopus", "-b:a", "8k", "-compression_level", "0", "-frame_duration", "60")
    return sound(name, seconds, *how, **more)


def speech_bot(stage: Stage, **settings: Any) -> BotProcess:
    """A bot whose temporary files are in the stage's own directory."""
    (stage.directory / "tmp").mkdir(exist_ok=True)
    return stage.bot(TMPDIR=str(stage.directory / "tmp"), SPEECHES_PER_DAY=0, **settings)


def left_on_disk(stage: Stage) -> list[Path]:
    return list((stage.directory / "tmp").rglob("*"))


async def press(stage: Stage, person: Person, want: str) -> None:
    stage.telegram.press(person.chat, person.user, HEARING["button"][want])


async def transcribed(stage: Stage, bot: BotProcess, person: Person) -> Json:
    """Press for a transcript of what was sent last; the stored one, once the job has ended."""
    await offered(stage, person)
    count = len(bot.rows("SELECT 1 FROM jobs"))
    await press(stage, person, "transcript")
    await ended(bot, count + 1)
    return newest(bot)


async def offered(stage: Stage, person: Person) -> None:
    await told(stage, person, HEARING["ask"])


async def told(stage: Stage, person: Person, words: str) -> None:
    """Wait until this is what the newest message says."""
    await stage.telegram.until(lambda: stage.replies(person)[-1:] == [words], PATIENCE)


async def ended(bot: BotProcess, count: int = 1) -> list[str]:
    """How the jobs ended, once so many have."""
    sql = "SELECT state FROM jobs WHERE ended_at IS NOT NULL ORDER BY id"
    rows = await until(lambda: found if len(found := bot.rows(sql)) >= count else None, 3 * PATIENCE)
    return [row[0] for row in rows]


def newest(bot: BotProcess) -> Json:
    """What the newest job heard."""
    sql = """SELECT t.transcript FROM jobs AS j
             LEFT JOIN transcripts AS t ON t.file_unique_id = json_extract(j.data, '$.file_unique_id')
             ORDER BY j.id DESC LIMIT 1"""
    [(stored,)] = bot.rows(sql)
    return json.loads(stored) if stored else {}


def beeps(seconds: int) -> list[float]:
    """When they begin."""
    return [10.0 * n + 2 for n in range(-(-(seconds - 2) // 10))]


def starts(transcript: Json) -> list[float]:
    return [start for _, start, _ in transcript["words"]]


def transcriptions(gemini: FakeGemini) -> list[Ask]:
    return [ask for ask in gemini.requests if ask.sounds]


# -- kinds of files


KINDS = [
    ("voice", "a.ogg", ("-c:a", "libopus", "-b:a", "16k"), "audio/ogg"),
    ("audio", "a.mp3", ("-c:a", "libmp3lame", "-b:a", "16k"), "audio/mp3"),
    ("audio", "a.m4a", ("-c:a", "aac", "-b:a", "24k"), "audio/m4a"),
    ("audio", "a.wav", (), "audio/wav"),
    ("audio", "a.flac", (), "audio/flac"),
    ("document", "a.aac", ("-c:a", "aac", "-b:a", "24k"), "audio/aac"),
    ("document", "b.mp3", ("-c:a", "libmp3lame", "-q:a", "4", "-write_xing", "0"), "audio/mp3"),
    ("document", "a.webm", ("-c:a", "libopus"), "audio/ogg"),
    ("video", "a.mp4", ("-c:a", "aac", "-b:a", "24k", "-c:v", "mpeg4"), "audio/m4a"),
    ("video_note", "b.mp4", ("-c:a", "aac", "-b:a", "24k", "-c:v", "mpeg4", "-movflags", "faststart"), "audio/m4a"),
    ("document", "a.mov", ("-c:a", "pcm_s16le", "-c:v", "mpeg4"), "audio/ogg"),
    ("document", "a.mkv", ("-c:a", "libvorbis", "-c:v", "mpeg4"), "audio/ogg"),
]


@needs_ffmpeg
async def test_files_are_heard(stage: Stage, gemini: FakeGemini, sound: Sound) -> None:
    async with speech_bot(stage) as bot:
        for kind, name, how, mime in KINDS:
            data, person = sound(name, 20, *how, picture="-c:v" in how), stage.person(name)
            facts = {"duration": 20} if kind != "document" else {"name": name, "mime": "application/octet-stream"}
            getattr(stage.telegram, kind)(person.chat, person.user, data, **facts)
            found = await transcribed(stage, bot, person)
            assert starts(found) == pytest.approx(beeps(20), abs=0.2), name
            assert found["duration_s"] == pytest.approx(20, abs=0.3), name
            ask = transcriptions(gemini)[-1]
            assert (ask.model, ask.sounds[0][0]) == ("gemini-3.5-transcribe", mime), name
            cut = kind in ("video", "video_note") or name in ("a.webm", "a.mov", "a.mkv")
            assert (ask.sounds[0][1] != data) == cut, name
            assert left_on_disk(stage) == [], name
        assert len(transcriptions(gemini)) == len(KINDS)
        # a type that is wrong does no harm
        anna, data = stage.person(), sound("c.mp3", 12, "-c:a", "libmp3lame", "-b:a", "16k")
        stage.telegram.document(anna.chat, anna.user, data, "talk.ogg", "audio/ogg")
        assert starts(await transcribed(stage, bot, anna)) == pytest.approx(beeps(12), abs=0.2)
        assert transcriptions(gemini)[-1].sounds[0][0] == "audio/mp3"


RUBBISH = [b"\x89PNG\r\n\x1a\n" + bytes(5000), b"OggS" + bytes(5000), b"ID3" + b"x" * 500, b"",
           b"#EXTM3U\nfile:///etc/passwd\n"]  # fmt: skip


@needs_ffmpeg
async def test_what_is_no_sound_is_told(stage: Stage, gemini: FakeGemini, sound: Sound) -> None:
    async with speech_bot(stage) as bot:
        for number, rubbish in enumerate(RUBBISH):
            person = stage.person(f"Person{number}")
            stage.telegram.document(person.chat, person.user, rubbish, "talk.mp3", "audio/mpeg")
            await transcribed(stage, bot, person)
            await told(stage, person, HEARING["no_sound"])
        anna, silent_film = stage.person(), sound("a.mp4", 8, "-an", "-c:v", "mpeg4", picture=True)
        stage.telegram.video(anna.chat, anna.user, silent_film, duration=8)
        await transcribed(stage, bot, anna)
        await told(stage, anna, HEARING["no_sound"])
        assert set(await ended(bot, 6)) == {"failed"}
    assert transcriptions(gemini) == [] and left_on_disk(stage) == []


@needs_ffmpeg
async def test_silence_is_told(stage: Stage, gemini: FakeGemini, sound: Sound) -> None:
    anna, data = stage.person(), opus(sound, 30, source="anullsrc=r=8000:d={}")
    async with speech_bot(stage) as bot:
        stage.telegram.voice(anna.chat, anna.user, data, duration=30)
        await transcribed(stage, bot, anna)
        await told(stage, anna, HEARING["silent"])
        stage.telegram.voice(anna.chat, anna.user, data, duration=30)
        await offered(stage, anna)
        await press(stage, anna, "transcript")
        await stage.telegram.until(lambda: stage.replies(anna).count(HEARING["silent"]) == 2, PATIENCE)
    assert len(transcriptions(gemini)) == 1


# -- long and large


@needs_ffmpeg
async def test_twenty_minutes_go_in_parts_and_come_back_as_one(stage: Stage, gemini: FakeGemini, sound: Sound) -> None:
    anna, data = stage.person(), opus(sound, 1200)
    async with speech_bot(stage) as bot:
        stage.telegram.voice(anna.chat, anna.user, data, duration=1200)
        found = await transcribed(stage, bot, anna)
        assert await ended(bot) == ["done"]
        edits = [call.params["text"] for call in stage.telegram.called("editMessageText", anna.chat)]
        assert starts(found) == pytest.approx(beeps(1200), abs=0.3)
        assert found["duration_s"] == pytest.approx(1200, abs=1) and len(transcriptions(gemini)) == 2
        assert any(HEARING["part"].format(number=2, count=2) in text for text in edits)
        assert left_on_disk(stage) == []
        # MP3 is made anew for it: a frame needs those before it
        borys, data = stage.person("Borys"), sound("a.mp3", 901, "-b:a", "16k")
        stage.telegram.document(borys.chat, borys.user, data, "talk.mp3", "audio/mpeg")
        found = await transcribed(stage, bot, borys)
        assert starts(found) == pytest.approx(beeps(901), abs=0.3) and len(transcriptions(gemini)) == 4


@needs_ffmpeg
async def test_twenty_one_minutes_are_too_many(stage: Stage, gemini: FakeGemini, sound: Sound) -> None:
    """Whether Telegram says how long it is, or the file itself, or Telegram was told a lie."""
    anna, borys, vira = stage.person(), stage.person("Borys"), stage.person("Vira")
    data = opus(sound, 1260, source="anullsrc=r=8000:d={}")
    async with speech_bot(stage) as bot:
        stage.telegram.audio(anna.chat, anna.user, data, duration=1260)
        await told(stage, anna, HEARING["too_long"])
        stage.telegram.document(borys.chat, borys.user, data, "talk.ogg", "audio/ogg")
        await transcribed(stage, bot, borys)
        await told(stage, borys, HEARING["too_long"])
        stage.telegram.voice(vira.chat, vira.user, data, duration=60)
        await transcribed(stage, bot, vira)
        await told(stage, vira, HEARING["too_long"])
        small = stage.person("Halyna")
        stage.telegram.audio(small.chat, small.user, voice_of("hello"), duration=60, size=21 << 20)
        await told(stage, small, HEARING["too_big"])
        stage.says(small, "/speech", reply_to=small.chat.newest - 1)
        assert await stage.replied(small, 2) == [HEARING["too_big"]] * 2
    assert transcriptions(gemini) == []


# -- models


async def test_broken_json_twice_is_told_in_words(stage: Stage, gemini: FakeGemini) -> None:
    anna = stage.person()
    gemini.rule("", "Sure, here it is: {")
    async with speech_bot(stage, GEMINI_TRANSCRIBE_MODEL="") as bot:
        stage.telegram.voice(anna.chat, anna.user, voice_of("hello"), duration=30)
        await transcribed(stage, bot, anna)
        assert await ended(bot) == ["failed"]
        await told(stage, anna, TEXTS["llm"]["server"])
    assert len(transcriptions(gemini)) == 2


async def test_an_openai_compatible_api_hears_as_well(stage: Stage, gemini: FakeGemini) -> None:
    anna = stage.person()
    openai = {"OPENAI_API_URL": f"{gemini.url}/v1", "OPENAI_API_KEY": "sk-1", "OPENAI_TRANSCRIBE_MODEL": "whisper-1"}
    async with speech_bot(stage, GEMINI_API_KEY=None, **openai) as bot:
        stage.telegram.voice(anna.chat, anna.user, voice_of("one two, three"), duration=30)
        assert starts(await transcribed(stage, bot, anna)) == [0.0, 0.5, 2.0]
    assert [ask.method for ask in gemini.requests] == ["audio.transcriptions"]


async def test_the_same_again_makes_no_call(stage: Stage, gemini: FakeGemini) -> None:
    anna, borys = stage.person("Anna"), stage.person("Borys")
    async with speech_bot(stage) as bot:
        stage.telegram.voice(anna.chat, anna.user, voice_of("one two"), duration=30)
        await transcribed(stage, bot, anna)
        stage.telegram.voice(borys.chat, borys.user, voice_of("one two"), duration=30)
        await offered(stage, borys)
        await press(stage, borys, "transcript")
        await stage.telegram.until(lambda: stage.replies(borys)[-1].endswith("one two"), PATIENCE)
        assert len(transcriptions(gemini)) == 1 and bot.rows("SELECT count(*) FROM jobs") == [(1,)]


async def test_the_check_names_the_models_that_hear(stage: Stage) -> None:
    bot = speech_bot(stage)
    assert await bot.run("--check") == 0
    assert "gemini-3.5-transcribe" in bot.log()
    assert ("ffmpeg for recordings" if shutil.which("ffmpeg") else "no ffmpeg") in bot.log()


# -- what stays of them


async def test_a_kill_leaves_nothing_on_the_disk_and_the_job_goes_on(stage: Stage, gemini: FakeGemini) -> None:
    anna = stage.person()
    gemini.fault("hang", times=1)
    bot = speech_bot(stage)
    await bot.start()
    stage.telegram.voice(anna.chat, anna.user, voice_of("one two"), duration=30)
    await offered(stage, anna)
    await press(stage, anna, "transcript")
    await gemini.until(lambda: transcriptions(gemini), PATIENCE)
    await bot.kill()
    assert len(left_on_disk(stage)) == 2
    await bot.start()
    await ended(bot)
    assert newest(bot)["text"] == "one two"
    await until(lambda: not left_on_disk(stage), PATIENCE)


def peak_memory(bot: BotProcess) -> int:
    """The most that the process has held so far, in bytes."""
    assert bot.process
    status = Path(f"/proc/{bot.process.pid}/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def noise(seconds: int, mark: int) -> bytes:
    """A WAV file of noise, 176 kB a second."""
    data = os.urandom(1 << 16) * (seconds * 176_400 // (1 << 16)) + struct.pack("<I", mark)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 2, 44_100, 176_400, 4,
                       16, b"data", len(data))  # fmt: skip
    return head + data


@needs_ffmpeg
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="/proc tells how much memory a process holds")
async def test_ten_large_recordings_at_once_are_never_held_in_memory(stage: Stage, gemini: FakeGemini) -> None:
    people = [stage.person(f"Person{n}") for n in range(10)]
    async with speech_bot(stage, MAX_PARALLEL_SPEECH=10) as bot:
        stage.telegram.voice(people[0].chat, people[0].user, voice_of("to warm up"), duration=30)
        await transcribed(stage, bot, people[0])
        before = peak_memory(bot)
        for number, person in enumerate(people):
            stage.telegram.audio(person.chat, person.user, noise(70 if number % 2 else 105, number), duration=105)
        for person in people:
            await offered(stage, person)
            await press(stage, person, "transcript")
        assert set(await ended(bot, 11)) == {"done"}
        grown = peak_memory(bot) - before
    assert sum(len(ask.sounds[0][1]) for ask in transcriptions(gemini)) > 140 << 20
    assert sorted(gemini.deleted) == sorted(gemini.uploads) and len(gemini.uploads) == 5
    assert grown < 20 << 20  # less than one of them
