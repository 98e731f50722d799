"""Settings are read from text, all faults are told at once, and .env.example documents exactly what there is."""

from __future__ import annotations

import ast
import itertools
import zoneinfo
from collections.abc import Mapping
from io import StringIO
from typing import Any

import pytest
from dotenv import dotenv_values

import bot

ENV_HEADER = """\
# Settings of Okun. Copy this file to .env beside bot.py; only TELEGRAM_BOT_TOKEN is needed.
# A line that begins with # shows the default. `NAME=` with nothing after it means the default, too;
# for BOT_NAMES, QUIET_HOURS and GEMINI_IMAGE_MODEL it means none. The environment goes before .env.
"""
UNCOMMENTED = ("TELEGRAM_BOT_TOKEN", "GEMINI_API_KEY", "ADMIN_IDS")


def env_example() -> str:
    """What .env.example should say."""
    blocks = [ENV_HEADER]
    for group, specs in itertools.groupby(bot.SETTINGS.items(), lambda item: item[1].metadata["group"]):
        lines = [f"# -- {group} --"]
        for name, spec in specs:
            hidden = "" if name in UNCOMMENTED else "#"
            lines += [f"# {spec.metadata['meaning']}", f"{hidden}{name}={spec.metadata['default']}"]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def read(dotenv: Mapping[str, str | None] | None = None, /, **environ: str) -> bot.Settings:
    settings, faults = bot.read_settings(environ, dotenv or {})
    assert settings is not None, faults
    return settings


def faults_of(dotenv: Mapping[str, str | None] | None = None, /, **environ: str) -> list[tuple[str, str]]:
    settings, faults = bot.read_settings(environ, dotenv or {})
    assert (settings is None) == bool(faults)
    return [(fault.name, fault.key) for fault in faults]


# -- values


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("TELEGRAM_BOT_TOKEN", "123456:ABC-def_1", "123456:ABC-def_1"),
        ("GEMINI_API_KEY", " key ", "key"),
        ("ADMIN_IDS", "1, 2 3,,", frozenset({1, 2, 3})),
        ("ALLOWED_CHATS", "-1001234567890", frozenset({-1001234567890})),
        ("DB_PATH", "data/my fish.db", "data/my fish.db"),
        ("TIMEZONE", "America/New_York", zoneinfo.ZoneInfo("America/New_York")),
        ("LANGUAGE", "EN", "en"),
        ("LANGUAGE", "en_US:en", "en"),  # gettext's list, as desktops set it
        ("LANGUAGE", "ru_RU.UTF-8", "ru"),
        ("LANGUAGE", "de_DE:de", "uk"),
        ("BOT_NAMES", "окунь, perch ,", ("окунь", "perch")),
        ("GROUP_POLICY", "Never", "never"),
        ("RANDOM_REPLY_CHANCE", "1", 1.0),
        ("RANDOM_REPLY_CHANCE", "0", 0.0),
        ("UNPROMPTED_PER_HOUR", "0", 0),
        ("SPONTANEOUS", "YES", True),
        ("SPONTANEOUS", "false", False),
        ("RICH_MESSAGES", "1", True),
        ("RICH_MESSAGES", "off", False),
        ("GEMINI_API_URL", "http://127.0.0.1:8081/", "http://127.0.0.1:8081"),
        ("GEMINI_MODEL", "a,b", ("a", "b")),
        ("GEMINI_TEMPERATURE", "0.7", 0.7),
        ("PROXY_URL", "socks5://user:pass@host:1080", "socks5://user:pass@host:1080"),
        ("WEBHOOK_SECRET", "a" * 256, "a" * 256),
        ("WEB_PORT", "65535", 65535),
        ("LOG_LEVEL", "debug", "DEBUG"),
        ("THINKING_LEVEL", "Minimal", "minimal"),
    ],
)
def test_each_kind_of_value_is_read(name: str, text: str, value: Any) -> None:
    assert getattr(read(**{name: text}), name.lower()) == value


@pytest.mark.parametrize(
    ("name", "text", "key"),
    [
        ("TELEGRAM_BOT_TOKEN", "hello", "token"),
        ("TELEGRAM_BOT_TOKEN", "123:", "token"),
        ("TELEGRAM_BOT_TOKEN", "123:ABC def", "token"),
        ("ADMIN_IDS", "1;2", "ids"),
        ("ADMIN_IDS", "@anna", "ids"),
        ("TIMEZONE", "Europe/Atlantis", "timezone"),
        ("TIMEZONE", "../../etc/passwd", "timezone"),
        ("TIMEZONE", "Europe", "timezone"),
        ("LANGUAGE", "de", "choice"),
        ("RANDOM_REPLY_CHANCE", "1.01", "number"),
        ("RANDOM_REPLY_CHANCE", "-0.1", "number"),
        ("RANDOM_REPLY_CHANCE", "nan", "number"),
        ("RANDOM_REPLY_CHANCE", "1%", "number"),
        ("UNPROMPTED_PER_HOUR", "4.5", "number"),
        ("UNPROMPTED_PER_HOUR", "-1", "number"),
        ("UNPROMPTED_PER_HOUR", "9" * 5000, "number"),
        ("GEMINI_TEMPERATURE", "2.1", "number"),
        ("GEMINI_TEMPERATURE", "inf", "number"),
        ("SPONTANEOUS", "maybe", "switch"),
        ("QUIET_HOURS", "23", "hours"),
        ("QUIET_HOURS", "23-25", "hours"),
        ("QUIET_HOURS", "-1-8", "hours"),
        ("GEMINI_API_URL", "generativelanguage.googleapis.com", "url"),
        ("GEMINI_API_URL", "ftp://host", "url"),
        ("GEMINI_API_URL", "http://", "url"),
        ("GEMINI_API_URL", "http://host:99999", "url"),
        ("GEMINI_API_URL", "http://[host", "url"),
        ("WEBHOOK_SECRET", "with space", "secret"),
        ("WEBHOOK_SECRET", "a" * 257, "secret"),
        ("WEB_PORT", "65536", "number"),
        ("LLM_TIMEOUT", "0", "number"),
        ("CONTEXT_TOKENS", "499", "number"),
    ],
)
def test_a_value_that_cannot_be_used_is_a_fault(name: str, text: str, key: str) -> None:
    assert faults_of(**{name: text}) == [(name, key)]


ALL_DAY = set(range(24))


@pytest.mark.parametrize(
    ("text", "hours"),
    [
        ("23-8", {23, 0, 1, 2, 3, 4, 5, 6, 7}),
        ("1-5", {1, 2, 3, 4}),
        ("0 - 3", {0, 1, 2}),
        ("22-24", {22, 23}),
        ("22-0", {22, 23}),
        ("24-2", {0, 1}),
        ("0-24", ALL_DAY),
        ("", set()),
    ],
)
def test_quiet_hours_go_over_midnight(text: str, hours: set[int]) -> None:
    quiet = read(QUIET_HOURS=text).quiet_hours
    assert {hour for hour in ALL_DAY if quiet is not None and hour in quiet} == hours


# -- where they come from


def test_with_nothing_set_every_default_is_usable() -> None:
    settings = read()
    assert settings.db_path == "okun.db"
    assert settings.timezone == zoneinfo.ZoneInfo("Europe/Kyiv")
    assert settings.bot_names == ("окунь", "okun")
    assert settings.gemini_temperature is None


def test_the_environment_goes_before_the_file() -> None:
    settings = read({"DB_PATH": "file.db", "WEB_PORT": "1"}, DB_PATH="environment.db")
    assert (settings.db_path, settings.web_port) == ("environment.db", 1)


@pytest.mark.parametrize("name", ["ADMIN_ID", "ADMIN_IDS"])
def test_owners_may_be_named_in_the_singular(name: str) -> None:
    assert read({name: "7"}).admin_ids == {7}
    assert read(**{name: "8"}).admin_ids == {8}


def test_the_environments_alias_goes_before_the_files_name() -> None:
    assert read({"ADMIN_IDS": "7"}, ADMIN_ID="8").admin_ids == {8}
    assert read({"ADMIN_ID": "7"}, ADMIN_IDS="8").admin_ids == {8}


@pytest.mark.parametrize("empty", ["", " ", None])
def test_the_line_of_the_two_that_is_filled_in_counts_in_whatever_order_they_stand(empty: str | None) -> None:
    lines = [("ADMIN_IDS", "5"), ("ADMIN_ID", empty)]
    assert read(dict(lines)).admin_ids == read(dict(reversed(lines))).admin_ids == {5}
    lines = [("ADMIN_IDS", empty), ("ADMIN_ID", "5")]
    assert read(dict(lines)).admin_ids == read(dict(reversed(lines))).admin_ids == {5}
    assert read({"ADMIN_IDS": "5"}, ADMIN_ID="").admin_ids == {5}


def test_of_both_lines_filled_in_the_plural_counts() -> None:
    lines = [("ADMIN_IDS", "5, 6"), ("ADMIN_ID", "7")]
    assert read(dict(lines)).admin_ids == read(dict(reversed(lines))).admin_ids == {5, 6}


@pytest.mark.parametrize("value", ["", "  ", None])
def test_an_empty_value_means_the_default(value: str | None) -> None:
    settings = read({"WEB_PORT": value, "LANGUAGE": value, "GEMINI_MODEL": value})
    assert (settings.web_port, settings.language) == (8080, "uk")
    assert settings.gemini_model[0] == "gemini-3.8-flash"


def test_an_empty_value_switches_off_what_has_no_other_way() -> None:
    settings = read({"QUIET_HOURS": "", "BOT_NAMES": "", "GEMINI_IMAGE_MODEL": ""})
    assert (settings.quiet_hours, settings.bot_names, settings.gemini_image_model) == (None, (), ())


# -- faults


def test_all_faults_are_told_at_once() -> None:
    found = faults_of({"WEB_PRT": "1", "LANGUAGE": "de"}, WEB_PORT="x", TIMEZONE="Mars", TELEGRAM_BOT_TOKEN="y")
    assert sorted(found) == [
        ("LANGUAGE", "choice"),
        ("TELEGRAM_BOT_TOKEN", "token"),
        ("TIMEZONE", "timezone"),
        ("WEB_PORT", "number"),
        ("WEB_PRT", "unknown_close"),
    ]


@pytest.mark.parametrize(
    ("name", "key", "close"),
    [
        ("TELEGRAM_TOKEN", "unknown_close", "TELEGRAM_BOT_TOKEN"),
        ("web_prt", "unknown_close", "WEB_PORT"),
        ("GEMINI_KEY", "unknown_close", "GEMINI_API_KEY"),
        ("XYZZY", "unknown", None),
    ],
)
def test_an_unknown_name_in_the_file_is_a_fault_with_the_closest_known_name(
    name: str, key: str, close: str | None
) -> None:
    _, [fault] = bot.read_settings({}, {name: "1"})
    assert (fault.name, fault.key, fault.fields.get("close")) == (name, key, close)


def test_the_environment_may_hold_other_names() -> None:
    assert faults_of(PATH="/bin", XYZZY="1") == []


@pytest.mark.parametrize("lang", bot.LANGS)
def test_a_fault_shows_the_value_but_nothing_of_a_secret(lang: str, capsys: pytest.CaptureFixture[str]) -> None:
    secrets = {
        "TELEGRAM_BOT_TOKEN": "tok secret-1",
        "WEBHOOK_SECRET": "hook secret-2",
        "PROXY_URL": "gopher://me:secret-3@host",
    }
    _, faults = bot.read_settings({**secrets, "WEB_PORT": "eighty"}, {})
    bot.tell_faults(bot.Texts(bot.HERE / "locales"), lang, faults)
    told = capsys.readouterr().err
    assert all(name in told for name in secrets)
    assert "eighty" in told and "65535" in told
    assert "secret-" not in told


def test_every_fault_has_words_in_every_language() -> None:
    texts = bot.Texts(bot.HERE / "locales")
    keys = {key for _, key in faults_of(**dict.fromkeys(bot.SETTINGS, "\x00 ="))} | {"unknown", "unknown_close"}
    for lang in bot.LANGS:
        assert {f"fault.{key}" for key in keys} <= texts.keys(lang).keys()


# -- what is documented, and what is read


def test_the_example_documents_exactly_the_settings() -> None:
    # python -c "import test_settings as t; open('../.env.example', 'w').write(t.env_example())"  (in tests/)
    assert (bot.HERE / ".env.example").read_text("utf-8") == env_example()


@pytest.mark.parametrize("uncommented", [False, True])
def test_the_example_can_be_used_as_it_is_and_says_the_defaults(uncommented: bool) -> None:
    text = (bot.HERE / ".env.example").read_text("utf-8")
    if uncommented:
        text = "\n".join(line.removeprefix("#") if "=" in line else line for line in text.splitlines())
    given = dotenv_values(stream=StringIO(text))
    given = {name: value for name, value in given.items() if name in bot.SETTINGS}
    assert given.keys() == (bot.SETTINGS.keys() if uncommented else set(UNCOMMENTED))
    assert read(given) == read()


def test_settings_stand_together_with_their_group_and_say_what_they_mean() -> None:
    groups = [spec.metadata["group"] for spec in bot.SETTINGS.values()]
    assert len(list(itertools.groupby(groups))) == len(set(groups))
    for spec in bot.SETTINGS.values():
        assert 5 <= len(spec.metadata["meaning"]) <= 110 and "\n" not in spec.metadata["meaning"]


def names_read(tree: ast.Module) -> set[str]:
    """Names of settings that some function reads: `settings.name`, or by its name in os.environ and the like."""
    found = set()
    for top in tree.body:
        if isinstance(top, ast.ClassDef) and top.name == "Settings":
            continue
        for node in ast.walk(top):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value).split(".")[-1].lstrip("_") == "settings":
                found.add(node.attr.upper())
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".get") and node.args:
                name = node.args[0]
                found.add(str(name.value) if isinstance(name, ast.Constant) else "")
    return found


def test_every_setting_is_read_somewhere() -> None:
    tree = ast.parse((bot.HERE / "bot.py").read_text("utf-8"))
    secrets = {"WEBHOOK_SECRET"} & names_read(tree)  # not only by the list of what logs must not show
    assert secrets
    assert bot.SETTINGS.keys() - names_read(tree) == set()


@pytest.mark.parametrize("url", ["https://host/{token}", "https://host/a b", "https://host/%7B", "https://host/login"])
def test_a_webhook_has_a_path_of_its_own(url: str) -> None:
    _, faults = bot.read_settings({"WEBHOOK_URL": url}, {})
    assert [(fault.name, fault.key) for fault in faults] == [("WEBHOOK_URL", "webhook_path")]
    assert bot.read_settings({"WEBHOOK_URL": "https://host:8443/tele_gram-1/x"}, {})[1] == []
