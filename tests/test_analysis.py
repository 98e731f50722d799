"""The mood of messages: rules with exact bounds, and a small list of labelled messages per language."""

from __future__ import annotations

import pytest
from conftest import Later, Okun, Room

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
    "text", ["no, this is awful", "ні, це жах", "нет, это ужас", "Не хочу. Чудово!", "not now — great"]
)
def test_a_negation_ends_with_its_clause(lexicon: bot.Lexicon, text: str) -> None:
    assert (lexicon.sentiment(text) > 0) == ("great" in text or "Чудово" in text)


def test_an_intensifier_strengthens(lexicon: bot.Lexicon) -> None:
    for plain, strong in (("good", "very good"), ("добре", "дуже добре"), ("плохо", "очень плохо")):
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


@pytest.mark.parametrize("text", ["яка риба клює", "Сьогодні ДОЩ", "рибалка зранку", "кофе на берегу", "рыбалка",
                                  "we go fishing",
                                  "Bitcoin again", "котики"])  # fmt: skip
def test_a_topic_of_the_persona(lexicon: bot.Lexicon, text: str) -> None:
    assert lexicon.on_topic(text, "okun")


@pytest.mark.parametrize("text", ["how are you", "йдемо в театр", "покупаем хлеб", "рибосома", "скот", "carpet"])
def test_no_topic_of_the_persona(lexicon: bot.Lexicon, text: str) -> None:
    assert not lexicon.on_topic(text, "okun")


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


async def test_the_mood_is_stored_with_the_message(group: Room) -> None:
    await group.say("this is great")
    await group.say("this is awful")
    [warm, cold] = group.rows("sentiment")
    assert warm > 0 > cold
