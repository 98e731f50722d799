"""The speech coach as people meet it: a recording goes in, figures, a picture and a verdict come out, over HTTP."""

from __future__ import annotations

import json
from typing import Any

from fakes import FakeGemini, Json, until, voice_of

from .conftest import PATIENCE, TEXTS, Person, Stage

COACH: Json = TEXTS["coach"]
HEARING: Json = TEXTS["hearing"]
# 24 words in 12 s and a pause of a second after each comma
SAID = "So um, today we speak, um, about rivers and fish, um, um, um, they live there and we like them, you know, well"


def newest(stage: Stage, person: Person) -> Json:
    return stage.telegram.sent(person.chat)[-1]


async def coached(stage: Stage, person: Person, words: str = SAID) -> Json:
    """Send a voice note and press for coaching; the report."""
    before = len(stage.telegram.sent(person.chat))
    stage.telegram.voice(person.chat, person.user, voice_of(words), duration=20)
    await stage.telegram.until(lambda: len(stage.telegram.sent(person.chat)) > before, PATIENCE)
    stage.telegram.press(person.chat, person.user, HEARING["button"]["coach"])
    return await reported(stage, person)


async def reported(stage: Stage, person: Person, count: int = 1) -> Json:
    def pictures() -> list[Json]:
        sent = stage.telegram.sent(person.chat)
        found = [message for message in sent if "photo" in message]
        return found if len(found) >= count and "photo" not in sent[-1] else []

    found: list[Json] = await until(pictures, PATIENCE)
    return found[-1]


async def pressed(stage: Stage, person: Person, verb: str) -> Json:
    before = stage.telegram.sent(person.chat)[-1]["message_id"]
    stage.telegram.press(person.chat, person.user, COACH["button"][verb])
    await stage.telegram.until(lambda: newest(stage, person)["message_id"] > before, PATIENCE)
    return newest(stage, person)


def file_of(stage: Stage, message: Json) -> Any:
    return stage.telegram.files[message["document"]["file_id"]].data.decode()


async def test_a_recording_is_coached_and_every_button_answers(stage: Stage, gemini: FakeGemini) -> None:
    anna = stage.person()
    async with stage.bot(SPEECHES_PER_DAY=0) as bot:
        report = await coached(stage, anna)
        assert "Score: " in report["caption"] and "−30 fillers" in report["caption"]
        assert "[0:00] So um," in file_of(stage, await pressed(stage, anna, "text"))
        found = json.loads(file_of(stage, await pressed(stage, anna, "json")))
        assert found["figures"]["fillers"] == len(found["fillers"]) >= 6
        for verb in ("verdict", "summary", "todo", "minutes", "compare", "ask"):
            assert (await pressed(stage, anna, verb))["text"]
        stage.says(anna, "What was worst?")
        await stage.settled(bot)
    assert not stage.telegram.bugs


async def test_the_same_recording_again_asks_no_model(stage: Stage, gemini: FakeGemini) -> None:
    anna, borys = stage.person(), stage.person("Borys")
    async with stage.bot(SPEECHES_PER_DAY=0) as bot:
        first = await coached(stage, anna)
        assert bot.rows("SELECT count(*) FROM transcripts WHERE verdict IS NOT NULL") == [(1,)]
        asked = len(gemini.requests)
        again = await coached(stage, borys)
        assert again["caption"] == first["caption"] and len(gemini.requests) == asked
        await bot.kill()
    async with stage.bot(SPEECHES_PER_DAY=0):
        stage.says(anna, "/speeches")
        await stage.telegram.until(lambda: "1 attempt" in newest(stage, anna).get("text", ""), PATIENCE)
        stage.telegram.press(anna.chat, anna.user, "1")
        await stage.telegram.until(lambda: newest(stage, anna).get("caption") == first["caption"], PATIENCE)
        assert len(gemini.requests) == asked
