"""Menus, personas and moods, as a process: pressed, killed, and started again."""

from __future__ import annotations

import functools
import io
from typing import Any

from PIL import Image

from .conftest import PATIENCE, TEXTS, Person, Stage, repeat_tokens


def t(key: str, **fields: str) -> str:
    """An English text of the bot's."""
    found: Any = functools.reduce(lambda table, name: table[name], key.split("."), TEXTS)
    return str(found).format(**fields)


async def pressed(stage: Stage, person: Person, label: str) -> str | None:
    """The note that a press brings."""
    telegram = stage.telegram
    telegram.press(person.chat, person.user, label)
    query = telegram.queue[-1]["callback_query"]["id"]
    await telegram.until(lambda: query in telegram.answered, PATIENCE)
    note: str | None = telegram.answered[query].get("text")
    return note


async def test_a_persona_chosen_by_buttons_answers_next_and_after_a_kill(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    okun = stage.bot()
    async with okun:
        stage.says(anna, "/menu")
        await stage.replied(anna)
        await pressed(stage, anna, t("menu.to.persona"))
        name = t("persona.is.detective.name")
        assert await pressed(stage, anna, name) == t("persona.bound", name=name)
        stage.says(anna, "k1z who are you?")
        await stage.replied(anna, 2)
        assert stage.gemini.requests[-1].system.startswith("You are Detective Sleet")
        await okun.kill()
    async with okun:
        stage.says(anna, "k2z and now?")
        await stage.replied(anna, 3)
        assert stage.gemini.requests[-1].system.startswith("You are Detective Sleet")
        await pressed(stage, anna, f"✓ {name}")  # of the life before


async def test_a_kill_in_the_wizard_loses_no_answer(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    okun = stage.bot()
    async with okun:
        stage.says(anna, "/personas")
        await stage.replied(anna)
        await pressed(stage, anna, t("persona.button.new"))
        stage.says(anna, "Captain Cat")
        await stage.replied(anna)
        await stage.telegram.until(lambda: stage.replies(anna)[-1].startswith("Who is it?"), PATIENCE)
        await okun.kill()
    stage.says(anna, "A cat who sails.")
    async with okun:
        await stage.telegram.until(lambda: stage.replies(anna)[-1].startswith("What's their story?"), PATIENCE)
        await pressed(stage, anna, t("persona.button.skip_all"))
        assert await pressed(stage, anna, t("persona.button.save")) == t("persona.saved")
        await stage.settled(okun)
        assert okun.rows("SELECT name, description FROM persona_versions") == [("Captain Cat", "A cat who sails.")]
        assert okun.rows("SELECT count(*) FROM forms") == [(0,)] and stage.gemini.requests == []


async def test_the_mood_of_a_chat_comes_as_a_picture(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("", repeat_tokens)
    async with stage.bot() as okun:
        for n in range(12):
            stage.says(anna, f"k{n}z what a lovely day")
        await stage.settled(okun)
        stage.says(anna, "/mood 24h")
        await stage.telegram.until(lambda: any("photo" in one for one in stage.telegram.sent(anna.chat)), PATIENCE)
        [photo] = [one for one in stage.telegram.sent(anna.chat) if "photo" in one]
        data = stage.telegram.files[photo["photo"][-1]["file_id"]].data
        assert Image.open(io.BytesIO(data)).size[0] == 1080
        assert t("mood.emotion.love") in photo["caption"] or t("mood.emotion.joy") in photo["caption"]
