"""The three locales say the same things, everything the code says is in them, and nothing else."""

from __future__ import annotations

import ast
import itertools
import re
import string
from collections.abc import Iterator
from typing import Any

import pytest

import bot

TEXTS = bot.Texts(bot.HERE / "locales")
TREE = ast.parse((bot.HERE / "bot.py").read_text("utf-8"))
KEYS = sorted(TEXTS.keys("en"))

# What stands for the part of a key that is put together when it is used; a new one is written down here.
COMPOSED = {
    "span.{}": ["days", "hours", "minutes", "seconds"],
    "span_in.{}": ["days", "hours", "minutes", "seconds"],
    "gallery.days.{}": list(bot.GALLERY_DAYS),
    "limit.{}": ["commands", "replies", "chat", "total"],
    "limit.day.{}": ["promo", "images", "speeches"],
    "avatar.status.{}": list(bot.AVATAR_STATES),
    "avatar.doubt.{}": list(bot.DOUBTS),
    "avatar.is.{}": list(bot.GENDERS),
    "avatar.button.{}": list(bot.GENDERS),
    "hearing.button.{}": sorted(bot.SPEECH_ENDS),
    "job.doing.{}": list(bot.JOBS),
    "buy.{}": list(bot.COSTS_COINS),
    "draw.{}": list(bot.FAULTS),
    "draw.style.{}": list(bot.DRAW_STYLES),
    "draw.button.{}": [*bot.PICTURE_VERBS, "loved"],
    "ledger.reason.{}": list(bot.REASONS),
    "ledger.name.{}": list(bot.ICONS),
    "fishing.{}": ["no_bait", "has_line"],
    "fishing.quick.{}": [str(n + 1) for n in range(bot.QUICK_JOKES)],
    "fishing.lesson.{}": ["1", "2", "3"],
    "fishing.goes.{}": ["up", "down"],
    "trophies.shared.{}": ["given", "again", "enough", "full"],
    "trophies.period.{}": list(bot.PERIODS_OF_TOP),
    "trophies.button.{}": list(bot.PERIODS_OF_TOP),
    "fishing.rarity.{}": list(bot.RARITIES),
    "fishing.button.{}": [*bot.FROM_CATCH, *bot.FROM_POND],
    "promo.{}": ["unknown", "used", "expired", "used_up"],
    "payment.state.{}": ["paid", "refunding", "refunded"],
    "llm.{}": [kind for kind in bot.REMEDIES if bot.worst([kind]) == kind],
    "reply.{}": ["length", "cut"],
    "command.{}": list(bot.COMMANDS),
    "help.{}": ["private", "group"],
    "start.button.{}": ["menu", "help", "settings", "lang"],
    "menu.to.{}": [panel.name for panel in bot.PANELS.values() if panel.entry is not None],
    "persona.is.{}.name": list(bot.BUILT_IN),
    "persona.is.{}.about": list(bot.BUILT_IN),
    "persona.field.{}": [*bot.STEPS, *bot.CHOICES],
    "persona.{}.{}": [f"{name}.{value or 'chat'}" for name, values in bot.CHOICES.items() for value in values],
    "persona.ask.{}": list(bot.STEPS),
    "temper.is.{}": list(bot.TEMPERS),
    "temper.ask.{}": ["name", "line"],
    "coach.off.{}": ["fillers", "moments", "pace", "pauses"],
    "coach.part.{}": ["pace", "fillers", "pauses", "phrases"],
    "coach.severity.{}": list(bot.SEVERITIES),
    "coach.pace.{}": [*(name for _, _, name in bot.PACES), "unknown"],
    "coach.fillers.{}": [name for _, _, name in bot.FILLER_BANDS],
    "coach.pauses.{}": ["none", "missing", "fine", "held", "awkward"],
    "coach.phrases.{}": [name for _, _, name in bot.PHRASE_LENGTHS],
    "coach.rhythm.{}": [*(name for _, _, name in bot.RHYTHMS), "unknown"],
    "coach.at.{}": ["cluster", "fast", "slow", "awkward"],
    "coach.moment.{}": ["cluster", "fast", "slow", "awkward"],
    "coach.pause.{}": list(bot.PAUSE_COLOURS),
    "coach.tile.{}": ["pace", "fillers", "pauses", "phrases"],
    "coach.picture.{}": ["fillers", "pauses", "moments"],
    "coach.button.{}": list(bot.SPEECH_VERBS),
    "coach.made.{}": list(bot.MADE_PROMPTS),
    "coach.compare.{}": [name for name, *_ in bot.COMPARED],
    "coach.trend.{}": ["better", "same", "worse"],
    "speeches.picture.{}": ["score", "pace", "fillers"],
    "mood.tone.{}": [name for _, name in bot.TONES],
    "mood.emotion.{}": list(bot.EMOTIONS),
    "mood.period.{}": list(bot.PERIODS),
    "mood.over.{}": list(bot.PERIODS),
    "forget.button.{}": ["here", "all", "no"],
    "forget.done_{}": ["here", "all"],
    "stats.breaker.{}": ["open", "half-open", "closed"],
    "web.{}": ["down", "empty", "lost", "updated", "no_data", "keys"],
    "web.chart.{}": [chart.name for chart in bot.CHARTS],
    "web.unit.{}": [chart.name for chart in bot.CHARTS if chart.unit],
    "web.series.{}": list(bot.COLUMNS),
    "web.range.{}": list(bot.RANGES),
    "web.tile.{}": list(bot.TILES),
    "web.cache.{}": list(bot.CACHE_COLUMNS),
    "web.sick.{}": ["polling", "database", "queue"],
    "settings.{}.{}": [f"{name}.{value}" for name, values in bot.SETTINGS_VALUES.items() for value in values],
    "admin.is.{}": list(bot.OFFERS),
    "admin.kind.{}": ["private", "group", "supergroup", "channel"],
    "admin.button.{}": list(bot.DECISIONS),
    "broadcast.to.{}": list(bot.AUDIENCES),
    "broadcast.is.{}": ["running", "done", "cancelled"],
    "broadcast.report.{}": ["done", "stopped", "lost"],
    "cost.days.{}": list(map(str, bot.COST_DAYS)),
    "settings.policy_is.{}": ["always", "smart", "mention", "never"],
    "owner.sick.{}": sorted({*bot.SICKNESSES.values()} - {"malformed"}),
    "restore.{}": ["not_sqlite", "damaged"],
    "fault.{}": ["token", "number", "switch", "ids", "choice", "url", "webhook_path", "timezone", "hours", "secret",
                 "web_token", "unknown", "unknown_close"],
}  # fmt: skip
# calls whose first (or second) argument is a key
SAY = re.compile(r"(texts|counted|_texts|BotError|Unavailable|tell_owners|tell_owners_of|_say|t)$")


def expressions(node: ast.expr) -> Iterator[ast.expr]:
    """The node, or what a conditional expression may give."""
    if isinstance(node, ast.IfExp):
        yield from expressions(node.body)
        yield from expressions(node.orelse)
    else:
        yield node


def pattern(node: ast.expr) -> str | None:
    """A key as it is written: a literal, or an f-string with {} for what is put in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and isinstance(node.left, ast.Constant):
        return f"{node.left.value!s}{{}}"
    return None


def keys_written() -> set[str]:
    """Every key that the code names: what has a dot and stands where a key stands."""
    found = set()
    for node in ast.walk(TREE):
        arguments: list[ast.expr] = []
        if isinstance(node, ast.Call) and SAY.search(ast.unparse(node.func)):
            arguments = node.args[:2]
        elif isinstance(node, ast.Subscript) and "_flat" in ast.unparse(node.value):
            arguments = [node.slice]
        for key in itertools.chain.from_iterable(map(expressions, arguments)):
            text = pattern(key)
            if text and re.fullmatch(r"[a-z_]+(\.[a-z_{}]+)+", text):
                found.add(text)
    for name in ast.walk(TREE):  # `super().__init__(f"llm.{kind}")` of LlmError
        if isinstance(name, ast.Call) and ast.unparse(name.func) == "super().__init__" and name.args:
            text = pattern(name.args[0])
            found |= {text} if text and re.fullmatch(r"[a-z]+\.\{\}", text) else set()
    return found


def keys_used() -> set[str]:
    literal = {key for key in keys_written() if "{" not in key}
    composed = {
        prefix.replace(".{}.{}", ".{}").replace("{}", value) for prefix, values in COMPOSED.items() for value in values
    }
    return literal | composed


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def said(lang: str, key: str) -> list[str]:
    """The text, or all the forms of a noun."""
    value: Any = TEXTS.keys(lang)[key]
    return value if isinstance(value, list) else [value]


# -- the locales


@pytest.mark.parametrize("lang", bot.LANGS)
def test_each_language_has_the_same_keys(lang: str) -> None:
    assert set(KEYS) ^ set(TEXTS.keys(lang)) == set()


@pytest.mark.parametrize("lang", bot.LANGS)
def test_each_language_has_the_same_fields_in_each_text(lang: str) -> None:
    for key in KEYS:
        assert [fields(text) for text in said(lang, key)][-1] == fields(said("en", key)[-1]), key


@pytest.mark.parametrize("lang", bot.LANGS)
def test_each_text_can_be_filled_in(lang: str) -> None:
    for key in KEYS:
        for text in said(lang, key):
            assert "\ufffd" not in text.format(**dict.fromkeys(fields(text), "x")), key


@pytest.mark.parametrize("lang", bot.LANGS)
def test_each_language_has_the_same_word_lists(lang: str) -> None:
    lists = {name: type(value) for name, value in TEXTS.words("en", "words").items() if "emoji" not in name}
    assert {name: type(value) for name, value in TEXTS.words(lang, "words").items()} == lists | (
        {"emoji": dict, "emoji_emotions": dict} if lang == "en" else {}
    )
    for table in ("emotions", "time"):
        assert TEXTS.words(lang, "words", table).keys() == TEXTS.words("en", "words", table).keys()
    assert TEXTS.words(lang, "words", "topics").keys() == TEXTS.words("en", "words", "topics").keys()
    assert len(TEXTS.words(lang, "offline", "seed")) >= 20


@pytest.mark.parametrize("lang", bot.LANGS)
def test_the_long_lists_stand_folded(lang: str) -> None:
    for name in ("positive", "negative", "tell"):
        words = bot.listed(TEXTS.words(lang, "words", name))
        assert [word for word in words if bot.normal(word) != word or not word.strip(" *")] == []


@pytest.mark.parametrize("lang", bot.LANGS)
def test_no_text_is_empty_or_longer_than_a_message(lang: str) -> None:
    for key in KEYS:
        for text in said(lang, key):
            assert text.strip(), key
            assert bot.utf16_len(text) < bot.MAX_TEXT - 500, key


@pytest.mark.parametrize("lang", bot.LANGS)
def test_no_text_says_twice_what_a_paragraph_is_about(lang: str) -> None:
    for key in KEYS:
        for text in said(lang, key):
            heads = re.findall(r"(?m)^[^:{\n]{5,40}: ", text)
            assert len(set(heads)) == len(heads), key


@pytest.mark.parametrize("lang", bot.LANGS)
def test_labels_fit_on_buttons_and_notes_into_pop_ups(lang: str) -> None:
    labels = [key for key in KEYS if re.match(r"start\.button|settings\.(policy|rich|lang)\.|settings\.close$", key)]
    assert len(labels) >= 13
    for key in [*labels, "lang.name"]:
        assert len(said(lang, key)[0]) <= 40, key
    for key in KEYS:
        if key.startswith(("button.", "settings.saved", "error.")):  # answerCallbackQuery takes 200
            assert len(said(lang, key)[0]) <= 200, key


@pytest.mark.parametrize("lang", bot.LANGS)
def test_no_text_says_the_same_twice(lang: str) -> None:
    for key in KEYS:
        for text in said(lang, key):
            begun = [paragraph[:40] for paragraph in text.split("\n") if len(paragraph) > 40]
            assert len(begun) == len(set(begun)), key


@pytest.mark.parametrize(
    ("lang", "words"),
    [("en", ("picture", "avatar")), ("uk", ("картин", "аватар")), ("ru", ("картин", "аватар"))],
)
def test_who_has_all_forgotten_knows_that_pictures_go_too(lang: str, words: tuple[str, str]) -> None:
    assert all(word in TEXTS(lang, "forget.ask") for word in words)
    assert words[0] in TEXTS(lang, "forget.ask_group")


@pytest.mark.parametrize("lang", bot.LANGS)
def test_each_command_has_a_description_that_telegram_takes(lang: str) -> None:
    for name in bot.COMMANDS:
        assert 1 <= len(TEXTS(lang, f"command.{name}")) <= 256, name


# Forms of address of several people or of a stranger: pronouns, and imperatives by their endings.
FORMAL = {
    "uk": re.compile(r"\b(?:ви|вас|вам|вами|ваш\w*|[^\W\d_]{2,}(?:[йьчшж]те|іть)(?:ся|сь)?)\b", re.I),
    "ru": re.compile(r"\b(?:вы|вас|вам|вами|ваш\w*|[^\W\d_]{2,}(?:[йьчшж]те|[^\W\d_]ите)(?:сь)?)\b", re.I),
}
NOT_FORMAL = {"навіть"}
TO_SEVERAL = {"start.group", "greeting.hello", "greeting.privacy"}  # a whole group is spoken to


def formal(lang: str, key: str) -> set[str]:
    words = {word.lower() for text in said(lang, key) for word in FORMAL[lang].findall(text)}
    return words - NOT_FORMAL


@pytest.mark.parametrize(
    ("lang", "text"),
    [("uk", "Ви тут?"), ("uk", "Про вас і вам"), ("uk", "з вами"), ("uk", "у вашому чаті"), ("uk", "ВАША черга"),
     ("uk", "Натисніть кнопку"), ("uk", "додайте"), ("uk", "не турбуйтеся"), ("uk", "перешліть"), ("uk", "кличте"),
     ("ru", "Вы тут?"), ("ru", "у вас"), ("ru", "вам"), ("ru", "с вами"), ("ru", "ваши слова"), ("ru", "Нажмите"),
     ("ru", "попробуйте"), ("ru", "не беспокойтесь"), ("ru", "добавьте"), ("ru", "вернитесь")],
)  # fmt: skip
def test_formal_address_is_known_where_it_stands(lang: str, text: str) -> None:
    assert len(FORMAL[lang].findall(text)) >= 1


@pytest.mark.parametrize("lang", ["uk", "ru"])
def test_only_a_whole_group_is_addressed_in_the_plural(lang: str) -> None:
    assert {key: words for key in KEYS if (words := formal(lang, key)) and key not in TO_SEVERAL} == {}
    assert {key for key in TO_SEVERAL if not formal(lang, key)} == set()
    for key in TO_SEVERAL:  # and nobody in particular along with it
        words = {word.lower() for text in said(lang, key) for word in re.findall(r"\w+", text)}
        assert not words & {"ти", "тебе", "тобі", "твій", "твої", "твоє", "ты", "тебя", "твой", "твои"}, key


@pytest.mark.parametrize("lang", ["uk", "ru"])
def test_translations_are_translated(lang: str) -> None:
    same = {key for key in KEYS if said(lang, key) == said("en", key) and re.search("[a-z]{4}", said("en", key)[0])}
    assert same <= {"console.help", "check.model", "reminder.day", "fishing.caught", "fishing.button.rod", "fishing.of"}


# -- the code and the locales


def test_every_text_that_the_code_names_is_there() -> None:
    assert keys_used() - set(KEYS) == set()


def test_every_key_put_together_is_in_the_table_here() -> None:
    assert {key for key in keys_written() if "{" in key} ^ set(COMPOSED) == set()


def test_no_text_is_unused() -> None:
    assert set(KEYS) - keys_used() == set()


def test_every_fault_of_a_model_that_reaches_the_user_has_words() -> None:
    for kinds in itertools.combinations(bot.REMEDIES, 2):
        assert bot.LlmError(bot.worst(kinds)).key in KEYS


# -- numbers, spans, languages

FORMS = {"en": ["one", "many"], "uk": ["one", "few", "many"], "ru": ["one", "few", "many"]}


@pytest.mark.parametrize("lang", ["uk", "ru"])
@pytest.mark.parametrize(
    ("form", "numbers"),
    [
        ("one", [1, 21, 31, 101, 121, 1001]),
        ("few", [2, 3, 4, 22, 33, 104, 1002]),
        ("many", [0, 5, 9, 10, 11, 12, 13, 14, 15, 19, 20, 25, 100, 111, 112, 113, 114, 1011]),
    ],
)
def test_a_noun_agrees_with_its_number_in_slavic(lang: str, form: str, numbers: list[int]) -> None:
    assert {bot.plural(lang, n, FORMS[lang]) for n in numbers} == {form}


def test_a_noun_agrees_with_its_number_in_english() -> None:
    assert [bot.plural("en", n, FORMS["en"]) for n in (0, 1, 2, 11, 21)] == ["many", "one", "many", "many", "many"]


@pytest.mark.parametrize("lang", bot.LANGS)
def test_every_list_of_forms_has_as_many_as_the_language_needs(lang: str) -> None:
    for key in KEYS:
        value: Any = TEXTS.keys(lang)[key]
        assert not isinstance(value, list) or len(value) == len(FORMS[lang]), key


@pytest.mark.parametrize(
    ("seconds", "lang", "words"),
    [
        (0, "en", "1 second"),
        (0.2, "en", "1 second"),
        (1, "en", "1 second"),
        (59, "en", "59 seconds"),
        (60, "en", "1 minute"),
        (1800, "en", "30 minutes"),
        (3600, "en", "1 hour"),
        (7200, "uk", "2 години"),
        (5 * 3600, "uk", "5 годин"),
        (21 * 60, "ru", "21 минута"),
        (86400, "en", "1 day"),
        (5400, "en", "90 minutes"),  # not "2 hours"
        (25 * 3600, "uk", "25 годин"),
        (30 * 86400, "uk", "30 днів"),
    ],
)
def test_a_span_is_said_in_the_largest_unit_that_does_not_blur_it(seconds: float, lang: str, words: str) -> None:
    assert TEXTS.span(lang, seconds) == words


@pytest.mark.parametrize(
    ("code", "lang"),
    [
        ("uk", "uk"),
        ("ru-RU", "ru"),
        ("en-GB", "en"),
        ("EN", "en"),
        ("be", "uk"),
        ("ru_RU", "uk"),
        ("de", "uk"),
        ("", "uk"),
        (None, "uk"),
    ],
)
def test_a_language_of_ours_is_picked(code: str | None, lang: str) -> None:
    assert bot.pick_lang(code, "uk") == lang


def test_a_text_without_fields_is_left_as_it_stands() -> None:
    assert TEXTS("en", "lang.name") == "English"
    assert TEXTS("en", "console.as", name="{Anna}") == "Now {Anna} is speaking."
