"""The mood of messages: rules with exact bounds, and a small list of labelled messages per language."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from typing import Any

import pytest
from conftest import TEXTS, Later, Okun, Room, settings

import bot

# -- sentiment


@pytest.mark.parametrize("text", ["this is great", "це чудово", "это прекрасно", "👍", "❤️"])
def test_warm_words_are_above_zero(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.sentiment(text) > 0


@pytest.mark.parametrize("text", ["this is awful", "це жах", "это ужасно", "👎", "😡"])
def test_cold_words_are_below_zero(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.sentiment(text) < 0


@pytest.mark.parametrize(
    "text", ["", "   ", "the train leaves at nine", "потяг о дев'ятій", "поезд в девять", "123", "!?"]
)
def test_plain_words_are_zero(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.sentiment(text) == 0


@pytest.mark.parametrize(("one", "other"), [("good", "not good"), ("добре", "не добре"), ("хорошо", "не хорошо"),
                                            ("good", "don't feel good"), ("good", "don’t feel good")])  # fmt: skip
def test_a_negation_turns_the_sign(lexicon: bot.Lexicon, one: str, other: str) -> None:
    assert lexicon.sentiment(one) > 0 > lexicon.sentiment(other)


@pytest.mark.parametrize("text", ["не погано", "not bad", "не плохо", "без проблеми"])
def test_a_negated_cold_word_is_no_complaint(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.sentiment(text) >= 0


@pytest.mark.parametrize(
    "text", ["no, this is awful", "ні, це жах", "нет, это ужас", "Не треба. Чудово!", "not now — great"]
)
def test_a_negation_ends_with_its_clause(lexicon: bot.Lexicon, text: str) -> None:
    assert (lexicon.sentiment(text) > 0) == ("great" in text or "Чудово" in text)


def test_an_intensifier_strengthens(lexicon: bot.Lexicon) -> None:
    for plain, strong in (("good", "very good"), ("гарно", "дуже гарно"), ("плохо", "очень плохо")):
        assert abs(lexicon.sentiment(strong)) > abs(lexicon.sentiment(plain)) > 0


def test_more_of_the_same_is_stronger_and_bounded(lexicon: bot.Lexicon) -> None:
    assert 0 < lexicon.sentiment("good") < lexicon.sentiment("good good") < lexicon.sentiment("good " * 400) <= 1
    assert lexicon.sentiment("awful 😡🤬🖕" * 300) >= -1


@pytest.mark.parametrize("pair", [("ЧУДОВО", "чудово"), ("ужасно", "УЖАСНО"), ("завжди найкращий", "завжди НАЙКРАЩИЙ")])
def test_case_does_not_matter(lexicon: bot.Lexicon, pair: tuple[str, str]) -> None:
    assert lexicon.sentiment(pair[0]) == lexicon.sentiment(pair[1]) != 0


def test_letters_are_folded() -> None:
    assert bot.normal("Ёж, Ґанок, з’їв, з'їв, з`їв") == "еж, ганок, зїв, зїв, зїв"
    assert bot.normal("❤\ufe0f") == "❤"


def test_an_emoji_counts_with_and_without_its_variation_selector(lexicon: bot.Lexicon) -> None:
    assert lexicon.sentiment("❤") == lexicon.sentiment("❤️") > 0


def test_a_word_is_whole_unless_it_is_a_stem() -> None:
    stems = bot.Stems(["cat", "fish*"])
    assert "cat" in stems and "fishing" in stems and "fish" in stems
    assert "cats" not in stems and "fis" not in stems and "catfish" not in stems


# fifteen messages a language as people write them; the sign they should get
LABELLED = {
    "uk": [
        ("дякую, ти мене врятував!", 1), ("нарешті п'ятниця, ура", 1), ("який чудовий вечір", 1),
        ("люблю вас усіх ❤️", 1),
        ("мені дуже сподобався фільм", 1), ("вітаю з днем народження 🎉", 1), ("ахахах я не можу", 1),
        ("смачнющий борщ, смачно", 1),
        ("мене все бісить", -1), ("голова болить другий день", -1), ("не люблю понеділки", -1), ("яка ж це фігня", -1),
        ("знову обстріл, страшно", -1), ("я так втомилась", -1), ("ти ідіот?", -1),
    ],
    "ru": [
        ("спасибо огромное, выручил", 1), ("ура, получилось!", 1), ("обожаю этот город", 1), ("какая красота 😍", 1),
        ("очень вкусно получилось", 1), ("поздравляю!!!", 1), ("ржу в голос", 1), ("рада тебя видеть", 1),
        ("всё плохо", -1), ("меня это бесит", -1), ("мне не нравится", -1), ("опять всё сломалось", -1),
        ("устал как собака", -1), ("он просто идиот", -1), ("грустно 😢", -1),
    ],
    "en": [
        ("thank you so much!", 1), ("this is awesome", 1), ("i love this song", 1), ("happy birthday 🎉", 1),
        ("lol that's hilarious", 1), ("best day ever", 1), ("so proud of you", 1), ("not bad at all", 1),
        ("i hate mondays", -1), ("my head hurts", -1), ("this sucks", -1), ("i'm so tired of this", -1),
        ("that was not nice", -1), ("worst service ever 😡", -1), ("i don't like it, it's ugly", -1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("lang", LABELLED)
def test_signs_agree_with_people(lexicon: bot.Lexicon, lang: str) -> None:
    wrong = [(text, found) for text, sign in LABELLED[lang] if (found := lexicon.sentiment(text)) * sign <= 0]
    assert 1 - len(wrong) / len(LABELLED[lang]) >= 0.85, wrong


# -- the hand-labelled list

SAID: list[dict[str, Any]] = tomllib.loads((bot.HERE / "tests" / "mood" / "labelled.toml").read_text("utf-8"))[
    "message"
]


def test_the_hand_labelled_list_is_large_enough() -> None:
    assert min(Counter(entry["lang"] for entry in SAID)[lang] for lang in bot.LANGS) >= 50
    assert len({entry["text"] for entry in SAID}) == len(SAID) >= 150
    assert {entry["sign"] for entry in SAID} == {-1, 0, 1}


def test_the_sign_of_the_sentiment_agrees_with_people(lexicon: bot.Lexicon) -> None:
    found = [(sign_of(lexicon.sentiment(entry["text"])), entry) for entry in SAID]
    missed = [f"{entry['sign']:+} but {sign:+}: {entry['text']}" for sign, entry in found if sign != entry["sign"]]
    share = 1 - len(missed) / len(SAID)
    assert share >= 0.8, "\n".join([f"{share:.3f}", *missed])


def test_the_language_agrees_with_people(lexicon: bot.Lexicon) -> None:
    missed = [(entry["lang"], found, entry["text"]) for entry in SAID
              if (found := lexicon.mood(entry["text"]).lang) != entry["lang"]]  # fmt: skip
    assert 1 - len(missed) / len(SAID) >= 0.97, missed


def sign_of(sentiment: float) -> int:
    return (sentiment > 0) - (sentiment < 0)


# -- what else a message tells


SHORT = {
    "uk": ["ні", "що", "привіт", "ти де", "дякую", "зрозумів", "добре", "мабуть", "Київ", "Wi-Fi не працює", "є", "їду",
           "НІ", "ґанок", "ага, прийду", "будь ласка", "завтра о сьомій", "на добраніч", "смачно", "ось"],
    "ru": ["нет", "что", "привет", "ты где", "спасибо", "понял", "хорошо", "наверно", "да", "Wi-Fi не работает", "ещё",
           "выезжаю", "НЕТ", "ёлка", "сейчас приду", "пожалуйста", "завтра в семь", "спокойной ночи", "вкусно", "вот"],
    "en": ["no", "what", "hi", "where are you", "thanks", "got it", "OK", "maybe", "Kyiv tomorrow", "lol", "brb",
           "yes!", "NO", "see you at 7", "wifi is down"],
    "": ["", "123", "😂", "!?", "...", "12:30", "https://example.com/привет", "@okun_bot", "👍👍"],
}  # fmt: skip


@pytest.mark.parametrize("lang", SHORT)
def test_the_language_of_short_messages(lexicon: bot.Lexicon, lang: str) -> None:
    missed = [(text, found) for text in SHORT[lang] if (found := lexicon.mood(text).lang) != lang]
    assert len(missed) <= len(SHORT[lang]) * (0.1 if lang else 0), missed


def test_a_language_that_nothing_tells_is_none_rather_than_a_wrong_one(lexicon: bot.Lexicon) -> None:
    for text in ("угу", "ок", "круто", "норм", "ну", "12 грн", "😂 ага"):
        assert lexicon.mood(text).lang == "", text


FELT = [
    ("я тебе кохаю ❤️", "love"), ("люблю тебя", "love"), ("i love you so much", "love"),
    ("ура!!! 🎉", "joy"), ("ахахах", "joy"), ("happy birthday", "joy"), ("рада тебя видеть", "joy"),
    ("ого, нічого собі 😮", "surprise"), ("wow, unbelievable", "surprise"), ("ничего себе!", "surprise"),
    ("мені сумно 😢", "sadness"), ("так грустно", "sadness"), ("i am sad", "sadness"),
    ("мені страшно", "fear"), ("я боюсь", "fear"), ("i am scared", "fear"),
    ("мене це бісить 😡", "anger"), ("как же бесит", "anger"), ("i am furious", "anger"),
    ("потяг о дев'ятій", ""), ("поезд в девять", ""), ("the train leaves at nine", ""), ("", ""), ("42", ""),
]  # fmt: skip


def test_emotions(lexicon: bot.Lexicon) -> None:
    missed = [(text, found, felt) for text, felt in FELT if (found := lexicon.mood(text).emotion) != felt]
    assert len(missed) <= 2, missed


def test_an_emotion_is_the_one_named_most_often_and_of_equals_the_first() -> None:
    assert bot.emotion_of(["fear", "anger", "anger"], 0.9, attacks=False) == "anger"
    assert bot.emotion_of(["anger", "love"], 0.0, attacks=False) == "love"
    assert bot.emotion_of([], 0.35, attacks=True) == "joy"
    assert bot.emotion_of([], -0.35, attacks=False) == "sadness" and bot.emotion_of([], -0.35, attacks=True) == "anger"
    assert bot.emotion_of([], 0.34, attacks=False) == bot.emotion_of([], -0.34, attacks=True) == ""


def test_an_attack_on_a_person_is_a_conflict_and_grief_is_none(lexicon: bot.Lexicon) -> None:
    for text in ("ти ідіот?", "он просто идиот", "shut up, you idiot", "заткнись"):
        mood = lexicon.mood(text)
        assert mood.conflict and mood.sentiment < 0, text
    for text in ("мені сумно", "всё плохо", "this is awful", "the train leaves at nine", "дурниця яка"):
        assert not lexicon.mood(text).conflict, text


def test_a_question_is_marked_however_it_ends(lexicon: bot.Lexicon) -> None:
    for text in ("ти де?", "правда?)))", "where are you?!", "хто йде на рибалку", "(чому?)", "a " * 1500 + "why?"):
        assert lexicon.mood(text).question, text[-20:]
    for text in ("я тут", "кто-то звонил", "де-небудь зустрінемось", "what-ever", ""):
        assert not lexicon.mood(text).question, text
        assert lexicon.mood(text).question == lexicon.open_question(text)


def test_a_bracketed_aside_is_no_smile(lexicon: bot.Lexicon) -> None:
    for text in (
        "потяг о дев'ятій (завтра)",
        "поезд в девять (вечера)",
        "meet at nine (north side)",
        "f=(a+b)",
        "1) tea",
    ):
        assert lexicon.sentiment(text) == 0, text


def test_smiles_and_frowns_count_with_and_without_eyes(lexicon: bot.Lexicon) -> None:
    for text in ("потяг :)", "потяг:)", "потяг)", "потяг)))", "потяг ;-)", "потяг =)", "потяг :D", "(завтра) потяг)"):
        assert lexicon.sentiment(text) > 0, text
    for text in ("потяг :(", "потяг:(", "потяг(((", "потяг :-(", "потяг =("):
        assert lexicon.sentiment(text) < 0, text


def test_a_word_drawn_out_counts_as_the_word(lexicon: bot.Lexicon) -> None:
    for text in ("goooood", "чудооооово", "хорошооооо", "ааааа чудово"):
        assert lexicon.sentiment(text) > 0, text


def test_addresses_say_nothing(lexicon: bot.Lexicon) -> None:
    for text in ("https://good.example/awful", "@idiot_bot", "/love_me", "good@great.com"):
        assert lexicon.mood(text) == bot.NO_MOOD, text


def test_whatever_is_written_has_a_mood_within_its_bounds(lexicon: bot.Lexicon) -> None:
    dice = random.Random(11)
    pieces = ["good", "жах", "не ", "дуже ", "👍", "😡", ")", "(", ":", "D", "?", "\0", "\ud83d", "\u202e", "а" * 500,
              "/", "@", " ", "\n", "ё", "ґ", "'", "1" * 50, "🏳️‍🌈", "ي", "中", "не очень", "кто-",
              "http://"]  # fmt: skip
    for _ in range(500):
        mood = lexicon.mood("".join(dice.choices(pieces, k=dice.randrange(40))))
        assert -1 <= mood.sentiment <= 1 and mood.emotion in ("", *bot.EMOTIONS) and mood.lang in ("", *bot.LANGS)
        assert mood.question in (True, False) and mood.conflict in (True, False)
    assert lexicon.mood("good " * 200_000).sentiment <= 1


def test_what_a_message_says_does_not_depend_on_what_was_read_before() -> None:
    texts = [entry["text"] for entry in SAID]
    fresh, used = bot.Lexicon(TEXTS), bot.Lexicon(TEXTS)
    backwards = {text: used.mood(text) for text in reversed(texts)}
    assert [fresh.mood(text) for text in texts] == [backwards[text] for text in texts]


# -- open questions and topics

OPEN = [
    "Is it raining?", "Really ?", "where is everybody", "Why not", "how does this work", "хто йде на риболовлю",
    "Чому так",
    "де мій гачок", "А хто це був", "кто идёт на рыбалку", "Почему так", "сколько стоит", "куда все делись",
    "hm (really?)",
]  # fmt: skip
NOT_OPEN = [
    "It is raining.", "кто-то звонил", "где-то тут", "как-то так", "хтось прийшов", "howdy",
    "кудась поїхав", "якось так", "? that is the question.", "whole milk", "", "...", "декому пощастило",
]  # fmt: skip


@pytest.mark.parametrize("text", OPEN)
def test_an_open_question(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.open_question(text)


@pytest.mark.parametrize("text", NOT_OPEN)
def test_no_open_question(lexicon: bot.Lexicon, text: str) -> None:
    assert not lexicon.open_question(text)


TOPICAL = ["яка риба клює", "Сьогодні ДОЩ", "рибалка зранку", "кофе на берегу", "рыбалка", "we go fishing",
           "Bitcoin again", "котики"]  # fmt: skip


@pytest.mark.parametrize("text", TOPICAL)
def test_a_topic_of_the_persona(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.on_topic(text, bot.built_in_persona(TEXTS, "okun").topics)
    assert not lexicon.on_topic(text, bot.Stems([]))


@pytest.mark.parametrize("text", ["how are you", "йдемо в театр", "покупаем хлеб", "рибосома", "скот", "carpet"])
def test_no_topic_of_the_persona(lexicon: bot.Lexicon, text: str) -> None:
    assert not lexicon.on_topic(text, bot.built_in_persona(TEXTS, "okun").topics)


@settings(group_policy="smart", random_reply_chance=0.0, smart_reply_chance=1.0)
async def test_what_a_chat_joins_in_on_is_what_its_persona_likes(okun: Okun, group: Room) -> None:
    okun.dice.always = 0.5
    assert await group.say("the pike is biting") != []
    await bot.set_chat(okun.app, group.id, persona=next(key for key in bot.BUILT_IN if key != "okun"))
    await okun.later(600)
    assert await group.say("the pike is biting") == []


# -- conflict


def test_a_mean_of_exactly_minus_four_tenths_is_a_conflict() -> None:
    assert bot.in_conflict([(1, -0.4), (2, -0.4)])
    assert bot.in_conflict([(1, -0.8), (2, -0.2), (3, -0.2)])
    assert not bot.in_conflict([(1, -0.4), (2, -0.39)])


def test_one_angry_speaker_is_no_conflict() -> None:
    assert not bot.in_conflict([(1, -1.0)] * 9)
    assert not bot.in_conflict([(1, -1.0)] * 5 + [(2, 0.0)])
    assert bot.in_conflict([(1, -1.0)] * 5 + [(2, -0.01)])


def test_silence_is_no_conflict() -> None:
    assert not bot.in_conflict([])


async def conflict(okun: Okun, room: Room) -> bool:
    recent = await bot.recent_moods(okun.app.db.reader, room.id, room.thread or 0, okun.clock.now())
    return bot.in_conflict(recent)


async def quarrel(room: Room, times: int = 1) -> None:
    for _ in range(times):
        await room.say("you are an idiot and this is awful")
        await room.say("shut up, i hate you, you liar", by="Borys")


async def test_two_angry_speakers_are_a_conflict(okun: Okun, group: Room) -> None:
    await quarrel(group)
    assert await conflict(okun, group)


async def test_a_conflict_ends_ten_minutes_later(okun: Okun, group: Room, later: Later) -> None:
    await quarrel(group)
    await later(600)
    assert await conflict(okun, group)
    await later(1)
    assert not await conflict(okun, group)


async def test_only_the_last_ten_messages_count(okun: Okun, group: Room) -> None:
    await quarrel(group, 5)
    for _ in range(4):
        await group.say("the train leaves at nine", by="Vira")
    assert await conflict(okun, group)
    for _ in range(6):
        await group.say("the train leaves at nine", by="Vira")
    assert not await conflict(okun, group)


async def test_the_bots_own_words_do_not_count(okun: Okun, group: Room) -> None:
    await quarrel(group)
    for _ in range(9):
        await group.say("okun, you are an idiot")
    assert await conflict(okun, group)


async def test_a_quarrel_in_one_topic_is_not_one_in_another(okun: Okun) -> None:
    forum = okun.group(forum=True)
    loud, calm = forum.topic("Loud"), forum.topic("Calm")
    await quarrel(loud)
    await calm.say("hello")
    assert await conflict(okun, loud) and not await conflict(okun, calm)


async def test_the_mood_is_stored_with_the_message_and_anew_with_its_edit(group: Room, lexicon: bot.Lexicon) -> None:
    columns = "sentiment, emotion, lang, question, conflict"
    texts = ["this is great", "ти ідіот?", "ты где", "потяг"]
    for text in texts:
        await group.say(text)
    assert group.rows(columns) == [tuple(lexicon.mood(text)) for text in texts]
    await group.edit(group.last_id, "яке чудо ❤️, чи не так?")
    assert group.rows(columns)[-1] == tuple(lexicon.mood("яке чудо ❤️, чи не так?")) != tuple(lexicon.mood("потяг"))


@settings(local_analysis=False)
async def test_without_local_analysis_nothing_is_read_into_messages(okun: Okun, group: Room) -> None:
    await quarrel(group)
    await group.edit(group.last_id, "this is awful?")
    assert set(group.rows("sentiment, emotion, lang, question, conflict")) == {tuple(bot.NO_MOOD)}
    assert not await conflict(okun, group)
