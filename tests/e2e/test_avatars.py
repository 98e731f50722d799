"""Avatars, as a process: the memory that large photos take, kills while they are looked at."""

from __future__ import annotations

import functools
import io
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from fakes import BotProcess, until
from PIL import Image

from .conftest import PATIENCE, Person, Stage
from .test_menus import pressed, t

MOST_MB = 60  # that photos of 12 megapixels take beyond what the bot has when idle
FOUND = json.dumps({"person": True, "card": "A round face, grey eyes.", "best": [1, 2, 3]})


@functools.cache
def grain(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 90).convert("RGB")


def photo(seed: int, width: int = 900, height: int = 1200, **how: Any) -> bytes:
    """A picture with as many details as a camera sees: 12 megapixels are 5 MB."""
    dice, out = random.Random(seed), io.BytesIO()
    coarse = Image.frombytes("RGB", (9, 12), dice.randbytes(9 * 12 * 3)).resize((width, height))
    Image.blend(coarse, grain(width, height), 0.3).save(out, "JPEG", quality=85, **how)
    return out.getvalue()


def memory(okun: BotProcess, name: str) -> float:
    """VmRSS, or VmHWM (the most there was since `forget_most`), in MB."""
    assert okun.process
    status = Path(f"/proc/{okun.process.pid}/status").read_text("utf-8")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found
    return int(found[1]) / 1000


def forget_most(okun: BotProcess) -> None:
    assert okun.process
    Path(f"/proc/{okun.process.pid}/clear_refs").write_text("5", "ascii")


async def said(stage: Stage, person: Person, part: str) -> str:
    """The newest message of the bot that has this in it, waited for."""

    def found() -> list[str]:
        return [text for text in stage.replies(person) if part in text]

    await stage.telegram.until(lambda: bool(found()), PATIENCE)
    return found()[-1]


async def begin(stage: Stage, person: Person) -> None:
    stage.says(person, "/avatars")
    await stage.replied(person)
    await pressed(stage, person, t("avatar.button.new"))
    await pressed(stage, person, t("avatar.button.skip"))
    stage.says(person, "Anna")
    await said(stage, person, "0 of 4–20")


def album(stage: Stage, person: Person, *photos: bytes) -> None:
    """Photos as files, as they left the camera."""
    for number, data in enumerate(photos):
        stage.telegram.document(
            person.chat, person.user, data, f"{number}.jpg", "image/jpeg", media_group_id=str(hash(photos))
        )


@pytest.mark.parametrize("progressive", [False, True])
async def test_ten_photos_of_12_megapixels_take_60_mb_at_most(stage: Stage, progressive: bool) -> None:
    anna = stage.person()
    stage.gemini.rule("photos, numbered", FOUND)
    photos = [photo(n, 3000, 4000, progressive=progressive) for n in range(10)]
    assert all(len(data) > 3_000_000 for data in photos)
    async with stage.bot() as okun:
        idle = memory(okun, "VmRSS")
        await begin(stage, anna)
        forget_most(okun)
        album(stage, anna, *photos)
        assert (await said(stage, anna, "10 of 4–20")).startswith("Taken: 10 photos.")
        assert memory(okun, "VmHWM") < idle + MOST_MB
        forget_most(okun)
        await pressed(stage, anna, t("avatar.button.train"))
        await pressed(stage, anna, t("avatar.button.train_yes"))
        await said(stage, anna, t("avatar.ready", name="Anna"))
        assert memory(okun, "VmHWM") < idle + MOST_MB


async def test_a_photo_that_is_kept_whole_while_it_is_read_is_refused_and_takes_nothing(stage: Stage) -> None:
    anna = stage.person()
    async with stage.bot() as okun:
        idle = memory(okun, "VmRSS")
        await begin(stage, anna)
        forget_most(okun)
        album(stage, anna, photo(1, 3000, 4000, progressive=True, subsampling=0))
        await said(stage, anna, t("photo.large", width="3000", height="4000"))
        assert memory(okun, "VmHWM") < idle + MOST_MB / 2


async def test_a_kill_while_photos_are_looked_at_and_while_a_model_looks(stage: Stage) -> None:
    anna = stage.person()
    stage.gemini.rule("photos, numbered", FOUND)
    stage.gemini.rule("photos, numbered", "never said", delay=3600, times=1)
    okun = stage.bot(PRICE_AVATAR=0)
    async with okun:
        await begin(stage, anna)
        album(stage, anna, *(photo(n) for n in range(5)))
        await stage.telegram.until(lambda: bool(stage.telegram.called("getFile")), PATIENCE)
        await okun.kill()
    async with okun:
        await said(stage, anna, "5 of 4–20")
        await stage.settled(okun)
        assert len([text for text in stage.replies(anna) if "Taken" in text]) == 1
        await pressed(stage, anna, t("avatar.button.train"))
        await pressed(stage, anna, t("avatar.button.train_yes"))
        await until(lambda: bool(stage.gemini.requests), PATIENCE)
        await okun.kill()
        assert okun.rows("SELECT status FROM avatars") == [("training",)]
    async with okun:
        await said(stage, anna, t("avatar.ready", name="Anna"))
        await stage.settled(okun)
        assert okun.rows("SELECT status, main FROM avatars") == [("completed", 1)]
        assert okun.rows("SELECT state, attempts FROM jobs") == [("done", 2)]
        assert len([text for text in stage.replies(anna) if "is ready" in text]) == 1
