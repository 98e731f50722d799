"""The terminal as the chat: what is typed becomes updates, what the bot sends becomes lines."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiogram.methods import DeleteMessage, SendPhoto
from aiogram.types import BufferedInputFile, FSInputFile, InputMediaPhoto
from conftest import Script, make_settings
from PIL import Image

import bot


class Terminal:
    """A console in its own folder; `type` returns the lines that came of it."""

    def __init__(self, path: Path, **values: Any) -> None:
        self.lines: list[str] = []
        self.session = bot.ConsoleSession(self.lines.append)
        settings = make_settings(telegram_bot_token="", db_path=str(path), language="en", **values)
        self.app = bot.App(settings, session=self.session)
        self.model = self.app.llm = Script(self.app)

    async def __aenter__(self) -> Terminal:
        self._running = bot.running(self.app)
        self.inbox = await self._running.__aenter__()
        await self.inbox.open()
        self.console = bot.Console(self.app, self.session, self.inbox.take)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._running.__aexit__(None, None, None)

    async def type(self, *typed: str) -> list[str]:
        self.lines.clear()
        for line in typed:
            await self.console.feed(line)
            await self.inbox.idle()
        return list(self.lines)

    def t(self, key: str, **fields: Any) -> str:
        return self.app.texts("en", key, **fields)


@pytest.fixture
async def terminal(tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Terminal]:
    monkeypatch.chdir(tmp_path)
    shutil.copy(fresh_database, tmp_path / "okun.db")
    async with Terminal(tmp_path / "okun.db") as terminal:
        yield terminal
        assert not [name for name in terminal.app.counts if name.startswith("error")]


async def test_what_is_typed_is_answered(terminal: Terminal) -> None:
    assert await terminal.type("hi there") == ["Okun: Heard: hi there"]


async def test_an_empty_line_says_nothing(terminal: Terminal) -> None:
    assert await terminal.type("", "   ") == []


async def test_lines_of_one_answer_are_indented(terminal: Terminal) -> None:
    terminal.model.always("one\ntwo")
    assert await terminal.type("hi") == ["Okun: one\n      two"]


async def test_a_smile_is_a_message_and_a_wrong_command_is_helped(terminal: Terminal) -> None:
    assert await terminal.type(":) hi") == ["Okun: Heard: :) hi"]
    for line in (":nonsense", ":help", ":as"):
        assert await terminal.type(line) == [terminal.t("console.help")]


async def test_commands_work(terminal: Terminal) -> None:
    text, buttons = await terminal.type("/help")
    assert "/settings — " in text and buttons.strip() == f":1 {terminal.t('menu.back')}"


async def test_buttons_are_numbered_and_pressed_by_number(terminal: Terminal) -> None:
    menu = await terminal.type("/settings")
    water, back = terminal.t("fishing.button.pair"), terminal.t("menu.back")
    assert menu[1].split("  ")[-4:] == [":1 Rich layout", ":2 ✓ Plain text", f":3 {water}", f":4 {back}"]
    pressed = await terminal.type(":1")
    assert f"({terminal.t('settings.saved')})" in pressed and ":1 ✓ Rich layout" in pressed[1]
    menu = await terminal.type(":4")
    assert menu[0] == f"Okun: {terminal.t('menu.text', name='Okun')}"
    *_, last = re.findall(r":(\d+) ", menu[1])
    assert await terminal.type(f":{last}") == [f"Okun: {terminal.t('menu.closed')}"]
    assert await terminal.type(":1") == [terminal.t("console.no_button", number=1)]


@pytest.mark.parametrize("number", [0, 9, 999])
async def test_a_number_without_a_button_is_said(terminal: Terminal, number: int) -> None:
    await terminal.type("/settings")
    assert await terminal.type(f":{number}") == [terminal.t("console.no_button", number=number)]


async def test_in_a_group_it_answers_when_called(terminal: Terminal) -> None:
    assert await terminal.type(":group") == [terminal.t("console.group")]
    assert await terminal.type("okun, hi") == ["Okun: Heard: You: okun, hi"]
    assert await terminal.type("/settings") != [f"Okun: {terminal.t('error.admins_only')}"]
    assert await terminal.type(":private", "hi") == [terminal.t("console.private"), "Okun: Heard: hi"]


async def test_several_may_speak(terminal: Terminal) -> None:
    await terminal.type(":group", "okun, I'm here")
    assert await terminal.type(":as Borys") == [terminal.t("console.as", name="Borys")]
    assert await terminal.type("okun, me too") == ["Okun: Heard: Borys: okun, me too"]
    assert terminal.model.past[0] == "user: You: okun, I'm here"
    await terminal.type(":private", "alone")
    assert terminal.model.past == []
    await terminal.type(":as You", ":private", "me again")
    assert terminal.model.asks[-1].chat_id == 1


async def test_a_file_reaches_the_model(terminal: Terminal, tmp_path: Path) -> None:
    path = tmp_path / "my file.bin"
    path.write_bytes(b"data")
    await terminal.type(f":photo {path}")
    assert terminal.model.asks[0].said[-1].media == (bot.Media("image/jpeg", b"data"),)


async def test_a_recording_is_offered_and_may_be_talked_about(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a.ogg").write_bytes(b"OggS")
    offer = await terminal.type(":voice a.ogg")
    assert offer[0] == f"Okun: {terminal.t('hearing.ask')}" and terminal.t("hearing.button.coach") in offer[1]
    await terminal.type(":1")
    assert terminal.model.asks[0].said[-1].media == (bot.Media("audio/ogg", b"OggS"),)


async def test_a_file_may_have_a_caption(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    await terminal.type(":photo cat.jpg who is it?")
    assert terminal.model.heard == "[photo] who is it?"


async def test_a_text_file_is_read(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("щука")
    await terminal.type(":file notes.txt")
    assert "[contents of notes.txt]\nщука" in terminal.model.heard


async def test_a_pdf_goes_to_the_model(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7")
    await terminal.type(":file a.pdf")
    assert terminal.model.asks[0].said[-1].media == (bot.Media("application/pdf", b"%PDF-1.7"),)


@pytest.mark.parametrize("rest", ["nowhere.jpg", "", ".", "a b c"])
async def test_a_file_that_is_not_there_is_said(terminal: Terminal, rest: str) -> None:
    path = rest.partition(" ")[0]
    assert await terminal.type(f":photo {rest}") == [terminal.t("console.no_file", path=path)]


async def test_a_picture_of_the_bot_is_saved_and_its_path_shown(terminal: Terminal) -> None:
    keys = bot.keyboard([[("Once more", bot.GoPress(owner=1, name="help"))]])
    picture = BufferedInputFile(b"pixels", "perch.png")
    await terminal.app.bot(SendPhoto(chat_id=1, photo=picture, caption="Here", reply_markup=keys))
    saved, text, buttons = terminal.lines
    assert Path(saved.strip("[]")).read_bytes() == b"pixels" and saved.endswith("perch.png]")
    assert (text, buttons.strip()) == ("Okun: Here", ":1 Once more")


async def test_a_picture_from_a_file_is_saved_too(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "perch.png").write_bytes(b"pixels")
    await terminal.app.bot(SendPhoto(chat_id=1, photo=FSInputFile(tmp_path / "perch.png")))
    assert Path(terminal.lines[0].strip("[]")).read_bytes() == b"pixels"


async def test_a_later_start_goes_on_with_the_conversation(terminal: Terminal, tmp_path: Path) -> None:
    await terminal.type("first")
    async with Terminal(tmp_path / "okun.db") as again:
        assert await again.type("second") == ["Okun: Heard: second"]
        assert again.model.past == ["user: first", "model: Heard: first"]


async def test_without_a_key_it_says_so(tmp_path: Path, fresh_database: Path) -> None:
    shutil.copy(fresh_database, tmp_path / "okun.db")
    async with Terminal(tmp_path / "okun.db", gemini_api_key="") as terminal:
        lines = await terminal.type("hello river")
        assert len(lines) == 2 and lines[1] == f"Okun: {terminal.t('offline.no_key')}"


async def press(terminal: Terminal, label: str) -> list[str]:
    """The button whose label has this in it."""
    number = next(n for n, (_, text, _) in enumerate(terminal.session.buttons, 1) if label in text)
    return await terminal.type(f":{number}")


async def test_from_the_terminal_nobody_gets_a_message_or_their_stars(
    tmp_path: Path, fresh_database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(fresh_database, tmp_path / "okun.db")
    owners = frozenset({bot.CONSOLE_OWNER})
    async with Terminal(tmp_path / "okun.db", admin_ids=owners) as terminal:
        paid = bot.Payment("charge", 77, "pack:coins100:1", 50, "coins", 100, 1_700_000_000)
        async with bot.money(terminal.app, 77) as tx:
            await bot.put_payment(tx, paid)
        await terminal.type("/admin")
        await press(terminal, terminal.t("menu.to.payments"))
        await press(terminal, "1")
        await press(terminal, terminal.t("payment.button.refund"))
        assert terminal.t("error.only_telegram") in "".join(await press(terminal, "50"))
        assert (await bot.payment_by_charge(terminal.app.db.reader, "charge")).state == "paid"
        await terminal.type("/admin")
        await press(terminal, terminal.t("menu.to.broadcast"))
        said = await press(terminal, terminal.t("broadcast.button.new"))
        assert terminal.t("error.only_telegram") in "".join(said)


def still(red: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (640, 480), (red, 60, 120)).save(out, "JPEG")
    return out.getvalue()


async def drawn(terminal: Terminal, typed: str) -> list[str]:
    """What comes of a wish, after the words that it is being drawn."""
    terminal.model.easel = asyncio.Event()
    shown = await terminal.type(typed)
    terminal.model.easel.set()
    await asyncio.gather(*terminal.app.working.values())
    return terminal.lines[len(shown) :]


async def test_a_picture_is_drawn_in_the_terminal(terminal: Terminal) -> None:
    lines = await drawn(terminal, "/draw a cat")
    path, caption, buttons = lines[:3]
    assert Path(path.strip("[]")).read_bytes()[:4] == b"\x89PNG" and caption.startswith("Okun: 🎨 a cat\n")
    assert f":3 {terminal.t('draw.button.love')}" in buttons
    loved = await press(terminal, terminal.t("draw.button.love"))
    assert f":3 {terminal.t('draw.button.loved')}" in loved[-1]
    sent = await press(terminal, terminal.t("draw.button.file"))
    assert f"Okun: {terminal.t('draw.file.original')}" in sent


async def test_a_photo_with_the_command_as_its_caption_is_gone_by(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_bytes(still(200))
    await drawn(terminal, ":photo cat.jpg /draw in winter")
    [wish] = terminal.model.wishes
    assert wish.prompt.startswith("in winter") and len(wish.references) == 1


async def test_a_picture_can_be_shown_again_after_a_restart(terminal: Terminal, tmp_path: Path) -> None:
    await drawn(terminal, "/draw a cat")
    row = await terminal.app.db.reader.one("SELECT file_id FROM pictures")
    assert row
    async with Terminal(tmp_path / "okun.db") as again:
        sent = await again.app.bot(bot.DrawnPhoto(chat_id=1, photo=row["file_id"]))
        assert sent.file_id == row["file_id"] and again.lines[0] == f"[{row['file_id']}]"
        assert await bot.fetch_file(again.app.bot, row["file_id"]) == Path(row["file_id"]).read_bytes()
        with pytest.raises(bot.BotError) as caught:
            await bot.fetch_file(again.app.bot, "nowhere")
        assert caught.value.key == "media.gone"
        media = InputMediaPhoto(media=row["file_id"], caption="the same")
        await again.app.bot(bot.EditPicture(chat_id=1, message_id=sent.message_id, media=media))
        assert again.lines[-2:] == [f"[{row['file_id']}]", "Okun: the same"]


async def test_the_buttons_of_a_message_that_is_deleted_give_way_to_those_before(terminal: Terminal) -> None:
    await terminal.type("/settings", "/lang")
    message_id = terminal.session.buttons[0][0]
    await terminal.app.bot(DeleteMessage(chat_id=1, message_id=message_id))
    assert [label for _, label, _ in terminal.session.buttons][-1] == terminal.t("menu.back")
    assert f"({terminal.t('settings.saved')})" in await terminal.type(":1")
