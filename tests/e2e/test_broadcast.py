"""A message to two hundred chats, as a process: killed in the middle, it goes on where it was."""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from typing import Any

from fakes import BotProcess, until

from .conftest import PATIENCE, TEXTS, Person, Stage

CHATS, BLOCKED = 200, 12


def t(key: str, **fields: str | int) -> str:
    """An English text of the bot's."""
    found: Any = functools.reduce(lambda table, name: table[name], key.split("."), TEXTS)
    return str(found).format(**fields)


async def press(stage: Stage, person: Person, label: str) -> None:
    """Press the newest button of this label, and wait until that is answered."""
    await stage.telegram.until(lambda: shown(stage, person, label), PATIENCE)
    stage.telegram.press(person.chat, person.user, label)
    query = stage.telegram.queue[-1]["callback_query"]["id"]
    await stage.telegram.until(lambda: query in stage.telegram.answered, PATIENCE)


def shown(stage: Stage, person: Person, label: str) -> bool:
    rows = [message.get("reply_markup", {}).get("inline_keyboard", ()) for message in stage.telegram.sent(person.chat)]
    return any(button["text"] == label for markup in rows for row in markup for button in row)


def many(stage: Stage, okun: BotProcess) -> list[Person]:
    """People who wrote to the bot once, as far as its database knows."""
    people = [stage.person(f"Person {n}") for n in range(CHATS)]
    with contextlib.closing(sqlite3.connect(okun.database)) as database, database:
        database.executemany(
            "INSERT INTO chats (chat_id, kind, title) VALUES (?, 'private', ?)",
            [(person.chat.id, f"Person {person.chat.id}") for person in people],
        )
    return people


def sent(okun: BotProcess) -> int:
    rows = okun.rows("SELECT sent + gone + failed FROM broadcasts")
    return int(rows[0][0]) if rows else 0


async def test_a_broadcast_is_killed_and_reaches_everybody(stage: Stage) -> None:
    telegram, owner = stage.telegram, stage.person("Owner")
    okun = stage.bot(ADMIN_IDS=owner.user["id"], SENDS_PER_SECOND=100)
    async with okun:
        await stage.settled(okun)
    people = many(stage, okun)
    for person in people[:: CHATS // BLOCKED][:BLOCKED]:
        telegram.fault("403", "copyMessage", chat_id=person.chat.id)
    async with okun:
        stage.says(owner, "/admin")
        await stage.replied(owner)
        await press(stage, owner, t("menu.to.broadcast"))
        await press(stage, owner, t("broadcast.button.new"))
        stage.says(owner, "Great news for everybody")
        await press(stage, owner, t("broadcast.to.all", n=CHATS + 1))
        await press(stage, owner, t("broadcast.button.send", n=CHATS + 1))
        await until(lambda: sent(okun) >= CHATS // 3, PATIENCE)
        await okun.kill()
    before = sent(okun)
    assert before < CHATS
    async with okun:
        await until(lambda: okun.rows("SELECT state FROM broadcasts") == [("done",)], PATIENCE)
        [(total, arrived, gone, failed)] = okun.rows("SELECT total, sent, gone, failed FROM broadcasts")
        await telegram.until(lambda: stage.replies(owner)[-1].startswith("📣"), PATIENCE)
    counts = [len(stage.replies(person)) for person in people]
    blocked = {person.chat.id for person in people[:: CHATS // BLOCKED][:BLOCKED]}
    assert [count for person, count in zip(people, counts, strict=True) if person.chat.id in blocked] == [0] * BLOCKED
    others = sorted(count for person, count in zip(people, counts, strict=True) if person.chat.id not in blocked)
    assert others[:-1] == [1] * (CHATS - BLOCKED - 1) and others[-1] in (1, 2)  # the one under way at the kill
    assert (total, arrived, gone, failed) == (CHATS + 1, CHATS + 1 - BLOCKED, BLOCKED, 0)
    assert {row[0] for row in okun.rows("SELECT chat_id FROM chats WHERE gone_at IS NOT NULL")} == blocked
    assert stage.replies(owner)[-1] == "\n".join(
        [t("broadcast.report.done", n=total, total=total), t("broadcast.counts", sent=arrived, gone=gone, failed=0)]
    )
