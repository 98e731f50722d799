"""Commands and buttons, in three languages, for whom they are meant and for whom they are not."""

from __future__ import annotations

import dataclasses

import pytest
from conftest import ANNA, BORYS, NOON, TEXTS, Later, Okun, Room, Script, settings

import bot

PEOPLE = {"en": "Anna", "uk": "Borys", "ru": "Vira"}
NAMES = "окунь, okun"
LANG_NAMES = {"uk": "Українська", "ru": "Русский", "en": "English"}
POLICIES = ("always", "smart", "mention", "never", "persona")
MENUS = ("start", "settings", "lang")
EVERY_MENU = [(lang, place, name) for lang in PEOPLE for place in ("private", "group") for name in MENUS]
langs = pytest.mark.parametrize("lang", PEOPLE)


def room_of(okun: Okun, lang: str, place: str) -> Room:
    """Where a speaker of the language may do everything."""
    if place == "private":
        return okun.private(PEOPLE[lang])
    group = okun.group()
    okun.telegram.member(group.chat, okun.person(PEOPLE[lang]), "administrator")
    return dataclasses.replace(group, by=PEOPLE[lang])


# -- the commands


@langs
async def test_start_in_private_greets_and_offers_buttons(okun: Okun, lang: str) -> None:
    [reply] = await room_of(okun, lang, "private").say("/start")
    assert reply.text == okun.t("start.private", lang, names=NAMES)
    assert reply.buttons == [okun.t(f"start.button.{name}", lang) for name in ("menu", "help", "settings", "lang")]


@langs
async def test_start_in_a_group_says_how_to_call_it(okun: Okun, lang: str) -> None:
    [reply] = await room_of(okun, lang, "group").say("/start")
    assert reply.text == okun.t("start.group", lang, names=NAMES)


@langs
@pytest.mark.parametrize("place", ["private", "group"])
async def test_help_names_every_command_of_the_place(okun: Okun, lang: str, place: str) -> None:
    [reply] = await room_of(okun, lang, place).say("/help")
    for command in bot.COMMANDS.values():
        line = f"/{command.name} — {okun.t('command.' + command.name, lang)}"
        assert (line in reply.text) == (place in command.places and not command.owner)


@langs
async def test_settings_in_private(okun: Okun, lang: str) -> None:
    [reply] = await room_of(okun, lang, "private").say("/settings")
    assert reply.text == okun.t("settings.private", lang)
    assert {okun.t("settings.rich.on", lang), f"✓ {okun.t('settings.rich.off', lang)}"} <= {*reply.buttons}
    assert reply.buttons[-1] == okun.t("menu.back", lang)


@langs
async def test_settings_in_a_group_say_what_holds(okun: Okun, lang: str) -> None:
    group = room_of(okun, lang, "group")
    [reply] = await group.say("/settings")
    assert okun.t("settings.policy_is.smart", lang) in reply.text and okun.t("settings.quiet_off", lang) in reply.text
    policies = [
        label.removeprefix("✓ ")
        for label, data in zip(reply.buttons, reply.data, strict=True)
        if ":set:policy." in data
    ]
    assert policies == [okun.t(f"settings.policy.{name}", lang) for name in POLICIES]
    assert [label for label in reply.buttons[:5] if label.startswith("✓")] == [
        f"✓ {okun.t('settings.policy.persona', lang)}"
    ]
    await group.say("/quiet 2h")
    [reply] = await group.say("/settings")
    assert okun.t("settings.quiet_on", lang) in reply.text


@langs
async def test_lang_asks_in_all_three(okun: Okun, lang: str) -> None:
    [reply] = await room_of(okun, lang, "private").say("/lang")
    names = [f"✓ {name}" if code == lang else name for code, name in LANG_NAMES.items()]
    assert (reply.text, reply.buttons) == (okun.t("lang.ask", lang), [*names, okun.t("menu.back", lang)])


@langs
@pytest.mark.parametrize("wish", bot.LANGS)
async def test_lang_sets_the_language_for_good(okun: Okun, lang: str, wish: str) -> None:
    room = room_of(okun, lang, "private")
    assert [reply.text for reply in await room.say(f"/lang {wish.upper()}")] == [okun.t("lang.set", wish)]
    await okun.restart()
    assert [reply.text for reply in await room.say("/cancel")] == [okun.t("cancel.nothing", wish)]


async def test_an_unknown_language_is_asked_again(okun: Okun, chat: Room) -> None:
    [reply] = await chat.say("/lang xx")
    assert reply.text == okun.t("lang.ask")


@settings(language="ru")
async def test_who_speaks_another_language_is_answered_in_that_of_the_bot(okun: Okun) -> None:
    okun.telegram.user(70, "Jan", "de")
    assert [reply.text for reply in await okun.private("Jan").say("/cancel")] == [okun.t("cancel.nothing", "ru")]


async def test_the_language_of_a_chat_goes_before_that_of_a_person(okun: Okun, group: Room) -> None:
    await group.say("/settings", by="Olena")
    await group.press(okun.t("settings.lang.ru", "uk"), by="Olena")
    assert [reply.text for reply in await group.say("/cancel")] == [okun.t("cancel.nothing", "ru")]


QUIETS = [("2h", 7200, {"en": "2 hours", "uk": "2 години", "ru": "2 часа"}),
          ("30 хв", 1800, {"en": "30 minutes", "uk": "30 хвилин", "ru": "30 минут"}),
          ("1д", 86400, {"en": "1 day", "uk": "1 день", "ru": "1 день"})]  # fmt: skip


@langs
@pytest.mark.parametrize(("span", "seconds", "words"), QUIETS)
async def test_quiet_says_for_how_long(okun: Okun, lang: str, span: str, seconds: int, words: dict[str, str]) -> None:
    group = room_of(okun, lang, "group")
    [reply] = await group.say(f"/quiet {span}")
    assert reply.text == okun.t("quiet.on", lang, left=words[lang])
    assert okun.rows("SELECT quiet_until FROM chats") == [(int(NOON) + seconds,)]


@langs
async def test_quiet_alone_says_how_it_stands(okun: Okun, lang: str, later: Later) -> None:
    group = room_of(okun, lang, "group")
    [reply] = await group.say("/quiet")
    assert reply.text == okun.t("quiet.usage", lang, state=okun.t("quiet.none", lang))
    await group.say("/quiet 3h")
    await later(3600)
    [reply] = await group.say("/quiet nonsense")
    left = TEXTS.span(lang, 7200)
    assert reply.text == okun.t("quiet.usage", lang, state=okun.t("quiet.left", lang, left=left))


@langs
@pytest.mark.parametrize("word", ["off", "OFF", "викл", "выкл"])
async def test_quiet_off(okun: Okun, lang: str, word: str) -> None:
    group = room_of(okun, lang, "group")
    await group.say("/quiet 2h")
    assert [reply.text for reply in await group.say(f"/quiet {word}")] == [okun.t("quiet.off", lang)]
    assert okun.rows("SELECT quiet_until FROM chats") == [(0,)]


@langs
async def test_reset_and_cancel_answer_in_the_language(okun: Okun, lang: str) -> None:
    room = room_of(okun, lang, "private")
    assert [reply.text for reply in await room.say("/reset")] == [okun.t("reset.done", lang)]
    assert [reply.text for reply in await room.say("/cancel")] == [okun.t("cancel.nothing", lang)]


SPANS = [
    ("2h", 7200), ("2 h", 7200), ("30m", 1800), ("30 min", 1800), ("5 minutes", 300), ("1 hour", 3600),
    ("2 hours", 7200),
    ("1d", 86400), ("2 days", 172800), ("30 хв", 1800), ("2 год", 7200), ("2 години", 7200), ("1д", 86400),
    ("1 день", 86400),
    ("30 мин", 1800), ("2 часа", 7200), ("2ч", 7200), ("10 мин.", 600), ("3", 10800), (" 2H ", 7200),
    ("9999h", 30 * 86400),
    ("", None), ("h", None), ("0h", None), ("0", None), ("-1h", None), ("2x", None), ("2.5h", None), ("99999h", None),
    ("2h 30m", None), ("two hours", None), ("завтра", None), ("3 months", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), SPANS)
def test_spans(text: str, seconds: int | None) -> None:
    assert bot.parse_span(text) == seconds


# -- what is a command


@pytest.mark.parametrize(
    "text", ["/help", "/HELP", "/help@okun_bot", "/help@OKUN_BOT", "/help please", "/help\nplease"]
)
async def test_a_command_is_known_however_written(okun: Okun, group: Room, text: str) -> None:
    [reply] = await group.say(text)
    assert "/settings — " in reply.text


@pytest.mark.parametrize(
    "text", ["/help@other_bot", "/nonsense", "/nonsense@other_bot", "/", "//", "/usr/bin", "a /help"]
)
async def test_what_is_not_ours_is_left_alone_in_groups(group: Room, text: str) -> None:
    assert await group.say(text) == []


async def test_an_unknown_command_is_answered_where_it_is_meant_for_us(okun: Okun, chat: Room, group: Room) -> None:
    assert [reply.text for reply in await chat.say("/nonsense")] == [okun.t("command.unknown")]
    assert [reply.text for reply in await group.say("/nonsense@okun_bot")] == [okun.t("command.unknown")]


async def test_a_command_in_a_caption_is_one(chat: Room) -> None:
    [reply] = await chat.send("photo", b"x", "/help")
    assert "/settings — " in reply.text


async def test_a_slash_that_begins_no_command_is_talk(chat: Room, model: Script) -> None:
    await chat.say("/usr/bin is full")
    assert model.heard == "/usr/bin is full"
    await chat.say("why?")
    assert model.past[0] == "user: /usr/bin is full"


async def test_a_command_of_the_other_place_says_where_it_works(
    okun: Okun, chat: Room, group: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only(name: str, place: str) -> None:
        monkeypatch.setitem(bot.COMMANDS, name, dataclasses.replace(bot.COMMANDS[name], places=(place,)))

    only("help", "private")
    only("quiet", "group")
    assert [reply.text for reply in await group.say("/help")] == [okun.t("error.only_private")]
    assert [reply.text for reply in await chat.say("/quiet")] == [okun.t("error.only_group")]


async def test_a_command_of_owners_is_unknown_to_others(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bot.COMMANDS, "cancel", dataclasses.replace(bot.COMMANDS["cancel"], owner=True))
    assert [reply.text for reply in await chat.say("/cancel")] == [okun.t("command.unknown")]
    assert "/cancel" not in (await chat.say("/help"))[0].text
    owner = okun.private("Owner")
    assert [reply.text for reply in await owner.say("/cancel")] == [okun.t("cancel.nothing")]
    assert "/cancel" in (await owner.say("/help"))[0].text


async def test_an_answer_to_a_command_goes_under_it_in_its_topic(okun: Okun) -> None:
    topic = okun.group(forum=True).topic("Fish")
    [reply] = await topic.say("/help")
    assert (reply.thread, reply.reply_to) == (topic.thread, topic.last_id)


# -- who may change a chat


@pytest.mark.parametrize("command", ["/settings", "/reset"])
async def test_only_admins_change_a_group(okun: Okun, group: Room, command: str) -> None:
    assert [reply.text for reply in await group.say(command)] == [okun.t("error.admins_only")]
    assert okun.t("error.admins_only", "uk") not in [reply.text for reply in await group.say(command, by="Olena")]
    assert okun.t("error.admins_only") not in [reply.text for reply in await group.say(command, by="Owner")]
    assert okun.t("error.admins_only", "uk") not in [reply.text for reply in await group.say(command, by="chat")]


async def test_a_channel_that_speaks_in_a_group_is_no_admin(okun: Okun, group: Room) -> None:
    channel = okun.telegram.group("News", kind="supergroup")
    channel.card |= {"type": "channel"}
    okun.telegram.post(group.chat, channel, {"text": "/settings", "entities": []})
    await okun.take()
    assert [reply.text for reply in group.replies] == [okun.t("error.admins_only", "uk")]


async def test_who_is_an_admin_is_asked_once_a_minute(okun: Okun, group: Room, later: Later) -> None:
    for _ in range(5):
        await group.say("/settings", by="Olena")
    assert len(okun.called("getChatMember")) == 1
    okun.telegram.member(group.chat, okun.person("Olena"), "member")
    await later(61)
    assert [reply.text for reply in await group.say("/settings", by="Olena")] == [okun.t("error.admins_only", "uk")]


async def test_a_new_admin_is_known_within_a_minute(okun: Okun, group: Room, later: Later) -> None:
    await group.say("/settings")
    okun.telegram.member(group.chat, okun.person("Anna"), "administrator")
    await later(61)
    [reply] = await group.say("/settings")
    assert reply.buttons


# -- every button


def test_the_kinds_of_buttons_are_panels_acts_forgetting_and_those_of_features() -> None:
    assert {*MENUS} <= bot.COMMANDS.keys() and {*bot.BUTTONS} == {"m2", "d1", "f1", "g1", "sp1", "w1"}


@pytest.mark.parametrize(("lang", "place", "name"), EVERY_MENU)
async def test_every_button_works_for_its_owner(okun: Okun, lang: str, place: str, name: str) -> None:
    room = room_of(okun, lang, place)
    bad = {okun.t(key, other) for key in ("button.old", "button.not_yours", "error.admins_only") for other in PEOPLE}
    for data in (await room.say(f"/{name}"))[0].data:
        [menu] = await room.say(f"/{name}")
        pressed = await room.press(data, message=menu)
        assert pressed.note not in bad
        assert pressed.note or pressed.replies or pressed.message.text != menu.text


@pytest.mark.parametrize(("lang", "place", "name"), EVERY_MENU)
async def test_every_button_refuses_a_stranger_kindly(okun: Okun, lang: str, place: str, name: str) -> None:
    room = room_of(okun, lang, place)
    [menu] = await room.say(f"/{name}")
    stranger = next(person for person in PEOPLE.values() if person != PEOPLE[lang])
    theirs = next(code for code, person in PEOPLE.items() if person == stranger)
    before = okun.rows("SELECT policy, lang, rich, quiet_until FROM chats")
    for data in menu.data:
        pressed = await room.press(data, by=stranger, message=menu)
        assert pressed.note == okun.t("button.not_yours", theirs) and pressed.message.raw == menu.raw
    assert okun.rows("SELECT policy, lang, rich, quiet_until FROM chats") == before and len(room.replies) == 1


@pytest.mark.parametrize("name", MENUS)
async def test_callback_data_fit_whoever_presses(okun: Okun, name: str) -> None:
    big = okun.telegram.user(2**52, "Big", "en")
    group = okun.group()
    okun.telegram.member(group.chat, big, "creator")
    for room in (okun.private("Big"), group):
        [menu] = await room.say(f"/{name}", by="Big")
        assert menu.data and all(len(data.encode()) <= 64 for data in menu.data)


FORGED = ["s1", "s1:", "s1:11", "s1:11:policy", "s1:11:policy:always", "s1:11:rich:on", "s1:11:close:", "l1:11:uk",
          "l1:11:xx", "m1:11:settings", "m1:11:cancel", "m1:11:", "k1:11:1:0", "r1:11:1:0",
          "d1", "d1:", "d1:11", "d1:11:set", "d1:11:set:", "d1:11:set:policy", "d1:11:set:policy.loud",
          "d1:11:set:policy.always.", "d1:11:set:nonsense.x", "d1:11:set:rich.", "d1:11:set:rich.1",
          "d1:11:set:told_no_key.1", "d1:11:set:__init__.on", "d1:eleven:set:rich.on", "d1:11:set:rich.on:more",
          "d1:1١:set:rich.on1", "d1:12:set:rich.on", "d1::set:rich.on", "d1:-11:set:rich.on", "d1:11:SET:rich.on",
          "d1:11:lang:xx", "d1:11:lang:", "d1:11:lang:__class__", "d1:11:menu:", "d1:11:__class__:",
          "m2", "m2:", "m2:11", "m2:11:", "m2:11::", "m2:11:nonsense:", "m2:11:set:rich.on", "m2:11:__class__:",
          "m2:11:menu", "m2:11:menu:::", "m2:12:menu:", "m2:11:cancel:", "f1", "f1:11", "f1:11:nobody", "f1:12:all",
          "m0:11:menu:", "s0:11:rich:on", "x9:11:a", ":", "::", "🐟", "null", "m2:11:🐟:🐟"]  # fmt: skip


async def test_forged_and_outdated_data_are_answered_kindly(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    before = okun.rows("SELECT * FROM chats"), okun.rows("SELECT * FROM users")
    for data in FORGED:
        pressed = await chat.press_data(data, menu)
        assert pressed.note in (okun.t("button.old"), okun.t("button.not_yours")), data
        assert pressed.message.raw == menu.raw and len(chat.replies) == 1, data
        assert (okun.rows("SELECT * FROM chats"), okun.rows("SELECT * FROM users")) == before, data
        assert okun.inbox_rows == [] and not okun.failures, data


async def test_a_forged_owner_does_not_make_an_admin(okun: Okun, group: Room) -> None:
    [menu] = await group.say("/settings", by="Olena")
    pressed = await group.press_data(f"d1:{BORYS}:set:policy.always", menu, by="Borys")
    assert pressed.note == okun.t("error.admins_only", "uk")
    pressed = await group.press_data(f"d1:{group.id}:set:policy.always", menu, by="Borys")
    assert pressed.note == okun.t("button.not_yours", "uk")
    assert okun.rows("SELECT policy FROM chats") == [(None,)]


async def test_a_forged_command_button_runs_no_command_of_owners(
    okun: Okun, chat: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(bot.COMMANDS, "cancel", dataclasses.replace(bot.COMMANDS["cancel"], owner=True))
    [menu] = await chat.say("/start")
    for data in (f"m1:{ANNA}:cancel", f"m2:{ANNA}:cancel:", f"d1:{ANNA}:cancel:"):
        assert (await chat.press_data(data, menu)).note == okun.t("button.old")


async def test_an_admin_who_is_none_any_more_changes_nothing(okun: Okun, group: Room, later: Later) -> None:
    [menu] = await group.say("/settings", by="Olena")
    okun.telegram.member(group.chat, okun.person("Olena"), "member")
    await later(61)
    pressed = await group.press(okun.t("settings.policy.always", "uk"), by="Olena", message=menu)
    assert pressed.note == okun.t("error.admins_only", "uk")
    assert okun.rows("SELECT policy FROM chats") == [(None,)]


@pytest.mark.parametrize("name", MENUS)
async def test_the_buttons_of_an_anonymous_admin_serve_any_admin(okun: Okun, group: Room, name: str) -> None:
    okun.telegram.member(group.chat, okun.person("Vira"), "creator")
    for admin in ("Olena", "Vira", "Owner"):
        [menu] = await group.say(f"/{name}", by="chat")
        pressed = await group.press(menu.data[0], by=admin, message=menu)
        assert pressed.note not in {okun.t("button.not_yours", lang) for lang in PEOPLE}
    assert (await group.press_data(menu.data[0], menu, by="Anna")).note == okun.t("button.not_yours")


async def test_the_panel_of_an_anonymous_admin_goes_on_serving_any_admin(okun: Okun, group: Room) -> None:
    [menu] = await group.say("/settings", by="chat")
    pressed = await group.press(okun.t("settings.policy.always", "uk"), by="Olena", message=menu)
    assert pressed.message.data == menu.data


async def test_a_button_pressed_twice_is_no_fault(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    label = menu.data[0]
    assert (await chat.press(label, message=menu)).note == okun.t("settings.saved")
    assert (await chat.press(label, message=menu)).note == okun.t("settings.saved")


async def test_a_press_telegram_waits_for_no_longer_is_done_all_the_same(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    okun.telegram.press(chat.chat, okun.person("Anna"), menu.data[0])
    okun.telegram.queries.clear()
    await okun.take()
    assert okun.rows("SELECT rich FROM chats") == [(1,)] and okun.inbox_rows == []


@pytest.mark.parametrize("name", ["settings", "lang"])
async def test_a_press_under_a_message_that_was_deleted_is_answered(okun: Okun, chat: Room, name: str) -> None:
    [menu] = await chat.say(f"/{name}")
    okun.telegram.press(chat.chat, okun.person("Anna"), menu.data[0])
    query = okun.telegram.queue[-1]["callback_query"]
    del chat.chat.messages[menu.id]
    await okun.take()
    assert query["id"] in okun.telegram.answered and not okun.failures and okun.inbox_rows == []


async def test_a_press_without_a_message_is_answered(okun: Okun, chat: Room) -> None:
    [menu] = await chat.say("/settings")
    okun.telegram.press(chat.chat, okun.person("Anna"), menu.data[0])
    update = okun.telegram.queue.pop()
    del update["callback_query"]["message"]
    await okun.feed(update)
    assert okun.note(update["callback_query"]["id"]) == okun.t("button.old") and okun.inbox_rows == []


@langs
async def test_settings_change_in_place_and_for_good(okun: Okun, lang: str) -> None:
    group = room_of(okun, lang, "group")
    await group.say("/settings")
    pressed = await group.press(okun.t("settings.policy.mention", lang))
    assert pressed.note == okun.t("settings.saved", lang)
    assert f"✓ {okun.t('settings.policy.mention', lang)}" in pressed.message.buttons
    assert okun.t("settings.policy_is.mention", lang) in pressed.message.text
    await okun.restart()
    [again] = await group.say("/settings")
    assert again.text == pressed.message.text and again.buttons == pressed.message.buttons
    menu = (await group.press(okun.t("menu.back", lang))).message
    assert menu.id == again.id and menu.buttons[-1] == okun.t("menu.close", lang)
    closed = (await group.press(okun.t("menu.close", lang))).message
    assert (closed.text, closed.buttons) == (okun.t("menu.closed", lang), [])


async def test_the_start_menu_leads_on_in_place(okun: Okun, chat: Room) -> None:
    for name, text in (("menu", okun.t("menu.text", name="Okun")), ("settings", okun.t("settings.private")),
                       ("lang", okun.t("lang.ask")), ("help", "/cancel — ")):  # fmt: skip
        [start] = await chat.say("/start")
        pressed = await chat.press(okun.t(f"start.button.{name}"), message=start)
        assert text in pressed.message.text and pressed.message.id == start.id and not pressed.replies


async def test_lang_by_a_button(okun: Okun, chat: Room) -> None:
    await chat.say("/lang")
    pressed = await chat.press("Русский")
    assert pressed.message.text == okun.t("lang.set", "ru")
    assert pressed.message.buttons == ["Українська", "✓ Русский", "English", okun.t("menu.back", "ru")]
    assert [reply.text for reply in await chat.say("/cancel")] == [okun.t("cancel.nothing", "ru")]


# -- a new group


def join(okun: Okun, by: str = "Anna", status: str = "member", was: str = "left") -> Room:
    group = okun.group(bot_status=was)
    okun.telegram.membership(group.chat, status, okun.person(by))
    return group


@langs
async def test_a_new_group_is_greeted_in_the_language_of_who_added_the_bot(okun: Okun, lang: str) -> None:
    group = join(okun, PEOPLE[lang])
    await okun.take()
    assert [reply.text for reply in group.replies] == [okun.t("greeting.hello", lang, names=NAMES)]


@langs
async def test_with_privacy_mode_the_greeting_says_what_is_not_heard(okun: Okun, lang: str) -> None:
    okun.telegram.can_read_all_group_messages = False
    await okun.restart()
    group = join(okun, PEOPLE[lang])
    await okun.take()
    [reply] = group.replies
    assert reply.text == f"{okun.t('greeting.hello', lang, names=NAMES)}\n\n{okun.t('greeting.privacy', lang)}"


async def test_an_administrator_hears_all(okun: Okun) -> None:
    okun.telegram.can_read_all_group_messages = False
    await okun.restart()
    group = join(okun, status="administrator")
    await okun.take()
    assert okun.t("greeting.privacy") not in group.replies[0].text


@pytest.mark.parametrize(("was", "now"), [("member", "administrator"), ("administrator", "member"),
                                          ("member", "restricted"), ("member", "left"), ("left",
                                          "kicked")])  # fmt: skip
async def test_only_a_newcomer_greets(okun: Okun, was: str, now: str) -> None:
    group = join(okun, status=now, was=was)
    await okun.take()
    assert group.replies == [] and okun.inbox_rows == []


async def test_a_group_it_left_and_came_back_to_is_known_as_such(okun: Okun, group: Room) -> None:
    await group.say("hi")
    okun.telegram.membership(group.chat, "kicked", okun.person("Olena"))
    await okun.take()
    assert okun.rows("SELECT gone_at FROM chats") == [(int(NOON),)]
    okun.telegram.membership(group.chat, "member", okun.person("Olena"))
    await okun.take()
    assert okun.rows("SELECT gone_at FROM chats") == [(None,)] and len(group.replies) == 1
    assert group.rows("kind") == ["text", "notice"]


async def test_who_unblocks_the_bot_is_not_greeted_like_a_group(okun: Okun, chat: Room) -> None:
    okun.telegram.membership(chat.chat, "kicked")
    okun.telegram.membership(chat.chat, "member")
    await okun.take()
    assert chat.replies == [] and okun.inbox_rows == []


# -- the commands that Telegram shows


async def test_commands_are_registered_per_language_and_place_once(okun: Okun) -> None:
    await bot.register_commands(okun.app)
    shown = okun.telegram.commands
    scopes = ('{"type":"all_private_chats"}', '{"type":"all_group_chats"}')
    assert shown.keys() == {(scope, lang) for scope in scopes for lang in ("", *bot.LANGS)}
    for lang in bot.LANGS:
        for scope, place in zip(scopes, ("private", "group"), strict=True):
            names = {entry["command"]: entry["description"] for entry in shown[scope, lang]}
            assert names == {
                name: okun.t(f"command.{name}", lang)
                for name, spec in bot.COMMANDS.items()
                if place in spec.places and not spec.owner
            }
        assert "quiet" in names
    assert shown[scopes[0], ""] == shown[scopes[0], "uk"]
    calls = len(okun.called("setMyCommands"))
    await bot.register_commands(okun.app)
    await okun.restart()
    await bot.register_commands(okun.app)
    assert len(okun.called("setMyCommands")) == calls == 8


async def test_commands_are_registered_anew_when_they_changed(okun: Okun, monkeypatch: pytest.MonkeyPatch) -> None:
    await bot.register_commands(okun.app)
    monkeypatch.delitem(bot.COMMANDS, "cancel")
    await bot.register_commands(okun.app)
    assert len(okun.called("setMyCommands")) == 16


async def test_half_registered_commands_are_registered_at_the_next_start(okun: Okun) -> None:
    okun.telegram.fault("400", "setMyCommands", text="BOT_COMMAND_INVALID")
    with pytest.raises(Exception, match="BOT_COMMAND_INVALID"):
        await bot.register_commands(okun.app)
    await bot.register_commands(okun.app)
    assert len(okun.telegram.commands) == 8


async def test_owners_are_shown_their_own_commands(okun: Okun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bot.COMMANDS, "cancel", dataclasses.replace(bot.COMMANDS["cancel"], owner=True))
    await bot.register_owner_commands(okun.app)  # an owner who has not started the bot is no fault
    assert okun.telegram.commands == {}
    okun.private("Owner")
    await bot.register_owner_commands(okun.app)
    await bot.register_commands(okun.app)
    [own] = [entries for (scope, _), entries in okun.telegram.commands.items() if '"chat"' in scope]
    assert "cancel" in [entry["command"] for entry in own]
    others = [entry["command"] for (scope, _), entries in okun.telegram.commands.items() if '"chat"' not in scope
              for entry in entries]  # fmt: skip
    assert "cancel" not in others and "help" in others


@pytest.mark.parametrize(("policy", "key"), [("always", "off"), ("smart", "off"), ("mention", "on"), ("never", "on")])
async def test_the_panel_does_not_promise_unasked_words_that_the_policy_forbids(
    okun: Okun, group: Room, policy: str, key: str
) -> None:
    await group.say("/settings", by="Olena")
    await group.press(okun.t(f"settings.policy.{policy}", "uk"), by="Olena")
    assert okun.t(f"settings.quiet_{key}", "uk") in group.replies[-1].text
