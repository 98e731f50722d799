"""The speech coach: its rules with cases computed by hand, bounds included; its reports, history and talk."""

from __future__ import annotations

import asyncio
import io
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import ANNA, BORYS, NOON, TEXTS, Okun, Reply, Room, Script, settings
from fakes import voice_of
from PIL import Image
from test_pictures import Ruler

import bot
from bot import Filler, Pause, SpokenPhrase, SpokenSegment, SpokenWord, Transcript

LISTS = {"common": TEXTS.words("en", "fillers", "common")} | {
    lang: TEXTS.words(lang, "fillers", lang) for lang in bot.LANGS
}
FILLERS = {lang: bot.filler_lists(TEXTS, lang) for lang in bot.LANGS}
Times = list[tuple[float, float]]


def said(*timed: tuple[str, float, float]) -> tuple[SpokenWord, ...]:
    return bot.timed_words([SpokenWord(*one) for one in timed], [])


def at(*times: tuple[float, float]) -> tuple[SpokenWord, ...]:
    """Words without marks at these times."""
    return said(*((f"w{number}", start, end) for number, (start, end) in enumerate(times)))


def even(words: int, each_s: float, start_s: float = 0.0) -> list[SpokenWord]:
    """Words one after the other without gaps, begun where the clock says and not by adding."""
    return [SpokenWord("word", start_s + n * each_s, start_s + (n + 1) * each_s) for n in range(words)]


def read(text: str) -> tuple[SpokenWord, ...]:
    """A text of which no times matter."""
    return bot.timed_words([], [SpokenSegment(0, 60, text)])


def fillers(lang: str, text: str) -> list[str]:
    return [filler.text for filler in bot.fillers_of(read(text), FILLERS[lang])]


def fillers_at(*times: tuple[float, float]) -> list[Filler]:
    return [Filler("um", start, end) for start, end in times]


def texts(words: tuple[SpokenWord, ...]) -> list[str]:
    return [word.text for word in words]


# -- words and their times

SPLITS = [
    ("", []), ("  \n ", []), ("…", []), ("- — .", []), ("one", ["one"]), ("one two", ["one", "two"]),
    ("Well, yes.", ["Well,", "yes."]), ("так - це", ["так-", "це"]), ("это…ну", ["это…", "ну"]),
    ("это...ну", ["это…", "ну"]), ("«Да» , нет", ["«Да»,", "нет"]), ("stop—go", ["stop—", "go"]),
    ("е-е що-небудь", ["е-е", "що-небудь"]), ("it costs 3.50 now", ["it", "costs", "3.50", "now"]),
    ("[laughter] so [coughs, then] so", ["so", "so"]), ("… and then", ["and", "then"]), ("how ?..", ["how?…"]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), SPLITS)
def test_a_word_has_a_letter_or_digit_and_keeps_its_marks(text: str, words: list[str]) -> None:
    assert bot.split_speech(text) == words


SPREADS = [
    # text, start, end, words with times: by letters
    ("one two", 0.0, 6.0, [("one", 0, 3), ("two", 3, 6)]),
    ("a bcd", 10.0, 14.0, [("a", 10, 11), ("bcd", 11, 14)]),
    ("a!!! bcd.", 10.0, 14.0, [("a!!!", 10, 11), ("bcd.", 11, 14)]),  # marks take no time
    ("три два", 0.0, 0.3, [("три", 0, 0.15), ("два", 0.15, 0.3)]),
    ("a b", 5.0, 5.0, [("a", 5, 5), ("b", 5, 5)]),
    ("a b", 5.0, 4.0, [("a", 5, 5), ("b", 5, 5)]),
    ("", 0.0, 3.0, []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "start", "end", "words"), SPREADS)
def test_the_words_of_a_segment_share_its_time_by_their_letters(
    text: str, start: float, end: float, words: list[tuple[str, float, float]]
) -> None:
    assert list(bot.spread(text, start, end)) == words


def test_words_come_in_the_order_in_which_they_begin() -> None:
    assert texts(said(("c", 2, 3), ("a", 0, 1), ("b", 1, 2))) == ["a", "b", "c"]


def test_words_that_begin_together_keep_their_order() -> None:
    assert texts(said(("b", 1, 1), ("a", 1, 2), ("c", 1, 1))) == ["b", "a", "c"]


def test_segments_come_in_order_and_do_not_mingle_where_they_overlap() -> None:
    segments = [SpokenSegment(3, 7, "cc dd"), SpokenSegment(0, 4, "aa bb")]
    assert bot.timed_words([], segments) == (("aa", 0, 2), ("bb", 2, 4), ("cc", 3, 5), ("dd", 5, 7))


def test_words_with_times_go_before_segments() -> None:
    assert texts(bot.timed_words([SpokenWord("word", 0, 1)], [SpokenSegment(0, 9, "not these")])) == ["word"]


def test_a_mark_that_comes_alone_goes_with_the_word_before() -> None:
    assert said((".", 0, 0), ("one", 0, 1), (".", 1, 1), ("[music]", 1, 2), ("two", 2, 3)) == (
        ("one.", 0, 1), ("two", 2, 3)
    )  # fmt: skip


def test_a_word_of_several_words_is_divided() -> None:
    assert said((" короче  говоря", 0, 1.2)) == (("короче", 0, 0.6), ("говоря", 0.6, 1.2))


def test_a_word_that_ends_before_it_begins_has_no_length() -> None:
    assert said(("one", 2, 1)) == (("one", 2, 2),)


# -- silences

SILENCES: list[tuple[Times, list[float]]] = [
    ([], []),
    ([(0, 1)], []),
    ([(0, 1), (1, 2)], [0]),
    ([(0, 1), (1.5, 2)], [0.5]),
    ([(0, 1.8), (2.3, 3)], [0.5]),  # 2.3 - 1.8 is 0.4999999999999998
    ([(0, 1), (0.5, 2), (2.25, 3)], [0, 0.25]),  # the second overlaps the first
    ([(0, 5), (1, 2), (6, 7)], [0, 1]),  # the first lasts longer than the second: silence is from 5, not from 2
    ([(0, 1), (2, 2), (3, 4)], [1, 1]),  # one without length
]


@pytest.mark.parametrize(("times", "silences"), SILENCES)
def test_a_silence_lasts_from_the_furthest_end_so_far(times: Times, silences: list[float]) -> None:
    assert bot.silences(at(*times)) == silences


# -- speaking time

SPEAKING: list[tuple[Times, float]] = [
    ([], 0),
    ([(0, 10)], 10),
    ([(0, 10), (12, 15)], 13),
    ([(12, 15), (0, 10)], 13),  # unordered
    ([(0, 10), (10, 15)], 15),
    ([(0, 10), (8, 20)], 20),  # 22 with what overlaps twice
    ([(0, 20), (5, 6)], 20),
    ([(0, 20), (5, 6), (18, 25)], 25),
    ([(3, 3)], 0),
    ([(5, 3), (6, 8)], 2),  # the first ends before it begins
    ([(0, 0.1), (0.1, 0.3)], 0.3),
]


@pytest.mark.parametrize(("times", "seconds"), SPEAKING)
def test_speaking_time_is_the_sum_of_segments_and_what_overlaps_counts_once(times: Times, seconds: float) -> None:
    assert bot.speaking_time([SpokenSegment(start, end, "text") for start, end in times]) == seconds


def test_a_segment_without_a_word_is_no_speaking() -> None:
    segments = [SpokenSegment(0, 2, "yes"), SpokenSegment(2, 9, "[music]"), SpokenSegment(9, 10, "…")]
    assert bot.spoken_segments(read("yes"), segments) == segments[:1]


RUNS: list[tuple[Times, Times]] = [
    ([], []),
    ([(0, 1)], [(0, 1)]),
    ([(0, 1), (1.4, 2)], [(0, 2)]),
    ([(0, 1), (1.5, 2)], [(0, 1), (1.5, 2)]),  # 0.5 s is a pause
    ([(0, 5), (1, 2), (5.2, 6)], [(0, 6)]),
    ([(0, 5), (1, 2), (6, 7)], [(0, 5), (6, 7)]),
]


@pytest.mark.parametrize(("times", "segments"), RUNS)
def test_without_segments_the_runs_of_words_between_pauses_are_the_segments(times: Times, segments: Times) -> None:
    assert [(start, end) for start, end, _ in bot.spoken_segments(at(*times), [])] == segments


def test_a_full_stop_does_not_end_a_segment() -> None:
    assert bot.spoken_segments(said(("Yes.", 0, 1), ("No.", 1.2, 2)), []) == [(0, 2, "Yes. No.")]


# -- words a minute

RATES = [
    # words, seconds, WPM, its band
    (0, 0, None, ""), (1, 0, None, ""), (0, 10, 0, "slow"), (1, 1, 60, "slow"), (50, 30, 100, "comfortable"),
    (99, 60, 99, "slow"), (100, 60, 100, "comfortable"), (101, 60, 101, "comfortable"), (150, 60, 150, "comfortable"),
    (180, 60, 180, "comfortable"), (181, 60, 181, "fast"), (60, 20, 180, "comfortable"), (1, 0.2, 300, "fast"),
    (27, 9.0, 180, "comfortable"), (100, 60.01, 99.983336, "slow"), (180, 59.99, 180.030005, "fast"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "seconds", "rate", "band"), RATES)
def test_words_a_minute_are_comfortable_from_100_to_180_both_included(
    words: int, seconds: float, rate: float | None, band: str
) -> None:
    assert bot.words_a_minute(words, seconds) == rate
    assert bot.band_of(rate, bot.PACES) == band


# -- fillers: the lists

SAID = [
    # as a transcriber writes, what counts
    ("uk", "Е-е, я, еее, не пам'ятаю, ем, імені", ["е-е", "еее", "ем"]),
    ("uk", "Ммм, м-м-м, гм, хммм", ["ммм", "м-м-м", "гм", "хммм"]),
    ("uk", "коротше кажучи, ми пішли; коротше, дома", ["коротше кажучи", "коротше"]),
    ("uk", "якби я знав, як би це сказати", ["як би це сказати"]),
    ("uk", "такого типу, але він, типу, інший", ["типу"]),
    ("uk", "Тобто, значить, от, приїхали", ["тобто", "значить", "от"]),
    ("uk", "це означає, тобто значить більше", []),
    ("uk", "Так, я згоден. Він прийшов, так, і сів, так?", ["так", "так"]),
    ("uk", "власне житло, власне кажучи, є", ["власне кажучи"]),
    ("uk", "Її не було, а він їв. Є й таке: 5 мм.", []),
    ("uk", "В ПРИНЦИПІ так", ["в принципі"]),
    ("ru", "Э-э, я, эээ, не помню, эм, имени, э", ["э-э", "эээ", "эм", "э"]),
    ("ru", "эммм, ммм, м-м, хм, а-а, ааа, ну-у, нууу", ["эммм", "ммм", "м-м", "хм", "а-а", "ааа", "ну-у", "нууу"]),
    ("ru", "короче говоря, пришли. Короче, ушли.", ["короче говоря", "короче"]),
    ("ru", "этот путь короче, чем тот, и ещё короче", []),
    ("ru", "Когда она пришла, это было странно", []),
    ("ru", "её дом, ёё и ее сад", []),  # "её" folded is "ее", and that no hesitation
    ("ru", "договор такого типа, типа большой", ["типа"]),
    ("ru", "как бы то ни было, я как бы рад", ["как бы"]),
    ("ru", "в общем-то, в общем случае, в общем, да", ["в общем-то", "в общем", "да"]),
    ("ru", "Да, я согласен. Мы пришли, да, и сели. Хорошо, да?", ["да", "да"]),
    ("ru", "Я рад. Да, рад. Ты рад? Да. А он, да…", ["да"]),
    ("ru", "э–э, э‑э, э—э", ["э-э", "э-э", "э", "э"]),  # an em dash parts words
    ("ru", "вот этот дом. Вот, этот дом. Стоит, вот.", ["вот", "вот"]),
    ("ru", "это значит, что он рад. Значит, так.", ["значит", "так"]),
    ("ru", "Так, например, было. Так, начнём.", ["так"]),
    ("ru", "доска в 5 мм, э, 20 мм", ["э"]),
    ("ru", "Ёлки. ПОХОДУ всё", ["походу"]),
    ("ru", "нужно, нуль, сну, вообще-то", ["вообще-то"]),
    ("en", "Um, uh, erm, hmm, ummm, uhh, mm-hmm", ["um", "uh", "erm", "hmm", "ummm", "uhh", "mm-hmm"]),
    ("en", "I also saw him, I think so, and so did she", []),
    ("en", "So, today I, like, well, begin", ["so", "like", "well"]),
    ("en", "I like it as well, right there", []),
    ("en", "Sooo, you know, I mean it", ["sooo", "you know"]),
    ("en", "do you know him, you know", ["you know"]),
    ("en", "You know what I mean? You know.", ["you know what i mean", "you know"]),
    ("en", "this kind of thing is kind of big", ["kind of"]),
    ("en", "I don’t know, what's the word", ["i dont know", "whats the word"]),
    ("en", "the umbrella, a summer, the other er", ["er"]),
    ("en", "", []),
]  # fmt: skip


@pytest.mark.parametrize(("lang", "text", "found"), SAID)
def test_fillers_are_whole_words_and_phrases_of_the_language(lang: str, text: str, found: list[str]) -> None:
    assert fillers(lang, text) == found


@pytest.mark.parametrize(
    ("lang", "word"),
    [("ru", "когда"), ("ru", "это"), ("ru", "всегда"), ("ru", "ноты"), ("uk", "також"), ("uk", "отже"),
     ("uk", "етап"), ("uk", "їм"), ("en", "also"), ("en", "umber"), ("en", "her"), ("en", "likely")],
)  # fmt: skip
def test_a_filler_within_a_word_is_none_even_where_it_stands_alone(lang: str, word: str) -> None:
    assert fillers(lang, f"{word}, {word}. {word.upper()}, {word}") == []


def test_the_language_of_the_transcript_decides_and_hesitations_are_common_to_all() -> None:
    text = "короче, like, um, э-э, коротше"
    assert fillers("ru", text) == ["короче", "um", "э-э"]
    assert fillers("uk", text) == ["короче", "um", "э-э", "коротше"]
    assert fillers("en", text) == ["like", "um", "э-э"]
    only_common = bot.FillerLists(LISTS, "pl")
    assert [filler.text for filler in bot.fillers_of(read(text), only_common)] == ["um", "э-э"]


def test_the_longest_entry_counts_and_its_words_count_once() -> None:
    lists = bot.FillerLists({"common": {}, "ru": {"anywhere": ["короче", "говоря так", "короче говоря"]}}, "ru")
    words = read("короче говоря так короче")
    assert [filler.text for filler in bot.fillers_of(words, lists)] == ["короче говоря", "короче"]


def test_where_the_longest_entry_does_not_count_a_shorter_one_may() -> None:
    lists = bot.FillerLists({"common": {}, "en": {"set_off": ["so well"], "anywhere": ["so"]}}, "en")
    found = [[one.text for one in bot.fillers_of(read(text), lists)] for text in ("so well done", "so well, done")]
    assert found == [["so"], ["so well"]]


def test_an_honest_use_goes_before_a_filler_of_the_same_words() -> None:
    lists = bot.FillerLists({"common": {}, "en": {"anywhere": ["kind of"], "kept": ["kind of"]}}, "en")
    assert bot.fillers_of(read("kind of"), lists) == ()


@pytest.mark.parametrize(
    ("lang", "text", "found"),
    [("en", "You know, it is late.", ["you know"]), ("en", "It's, you know, the end.", ["you know"]),
     ("en", "You know it is late.", []), ("en", "I mean, that is it.", ["i mean"]), ("en", "I mean that.", []),
     ("uk", "Коротше, за годину.", ["коротше"]), ("uk", "Шлях коротше, ніж той.", []), ("uk", "Коротше за той.", []),
     ("ru", "Путь короче, чем тот.", []), ("ru", "Путь короче чем тот.", []), ("ru", "Так, например, щука.", [])],
)  # fmt: skip
def test_an_honest_use_does_not_reach_over_a_mark(lang: str, text: str, found: list[str]) -> None:
    assert fillers(lang, text) == found


@pytest.mark.parametrize(("text", "found"), [("как, бы", 1), ("как… бы", 1), ("как. Бы", 0), ("как? Бы", 0)])
def test_a_phrase_reaches_over_a_comma_but_not_over_a_stop(text: str, found: int) -> None:
    assert len(fillers("ru", text)) == found


@pytest.mark.parametrize(
    ("gaps", "found"), [((0.5, 0.5), 1), ((0.49, 0.5), 0), ((0.5, 0.49), 0), ((0.0, 0.0), 0), ((3.0, 0.5), 1)]
)
def test_a_pause_sets_a_word_off_as_a_mark_does(gaps: tuple[float, float], found: int) -> None:
    before, after = gaps
    words = said(("we", 0, 1), ("so", 1 + before, 2 + before), ("went", 2 + before + after, 4 + before + after))
    assert len(bot.fillers_of(words, FILLERS["en"])) == found


def test_a_pause_before_yes_does_not_make_it_a_filler() -> None:
    assert bot.fillers_of(said(("пришли", 0, 1), ("да", 3, 4), ("ушли", 6, 7)), FILLERS["ru"]) == ()


def test_a_filler_lasts_from_its_first_word_to_its_last() -> None:
    words = said(("Я", 0, 0.5), ("как", 1, 1.25), ("бы", 1.5, 2), ("рад", 2, 3))
    assert bot.fillers_of(words, FILLERS["ru"]) == (("как бы", 1, 2),)


@pytest.mark.parametrize("lang", FILLERS)
def test_every_entry_of_the_lists_counts_where_it_should(lang: str) -> None:
    own = LISTS[lang]
    for entry in [*LISTS["common"]["hesitations"], *own.get("hesitations", []), *own["anywhere"], *own["set_off"]]:
        assert len(fillers(lang, entry)) == 1, entry
    for entry in own["anywhere"]:
        assert fillers(lang, f"xx {entry} xx") == [bot.normal(entry)], entry
    for entry in own["set_off"]:
        assert fillers(lang, f"xx, {entry}, xx") == [bot.normal(entry)], entry
        assert bot.normal(entry) not in fillers(lang, f"xx {entry} xx"), entry
    for entry in own["tags"]:
        assert (fillers(lang, f"{entry}, xx"), len(fillers(lang, f"xx, {entry}"))) == ([], 1), entry
    for entry in own["kept"]:
        assert fillers(lang, entry.replace("#", "5")) == [], entry


@pytest.mark.parametrize("lang", FILLERS)
def test_no_entry_of_the_lists_stands_twice_and_each_is_folded(lang: str) -> None:
    lists = [entry for table in (LISTS["common"], LISTS[lang]) for entries in table.values() for entry in entries]
    assert len(set(lists)) == len(lists)
    assert [entry for entry in lists if bot.normal(entry) != entry.replace("'", "")] == []
    assert set(LISTS[lang]) | set(LISTS["common"]) <= {"hesitations", *bot.WHERE}


# -- fillers in 100 words

IN_100 = [
    (0, 0, 0, "none"), (0, 50, 0, "none"), (1, 1, 100, "many"), (1, 100, 1, "few"), (3, 100, 3, "few"),
    (301, 10_000, 3.01, "some"), (4, 100, 4, "some"), (8, 100, 8, "some"), (2, 25, 8, "some"), (9, 300, 3, "few"),
    (801, 10_000, 8.01, "many"), (1, 3, 33.333333, "many"),
]  # fmt: skip


@pytest.mark.parametrize(("count", "words", "in_100", "band"), IN_100)
def test_fillers_in_100_words_fall_into_bands_that_hold_their_upper_bound(
    count: int, words: int, in_100: float, band: str
) -> None:
    assert bot.fillers_in_100(count, words) == in_100
    assert bot.band_of(in_100, bot.FILLER_BANDS) == band


# -- clusters

CLUSTERS: list[tuple[Times, list[tuple[float, float, int]]]] = [
    ([], []),
    ([(0, 1), (1, 2)], []),  # two are no cluster
    ([(0, 0.5), (1, 1.5), (2, 2.5)], [(0, 2.5, 3)]),
    ([(0, 1), (2.9, 3), (4.9, 5)], [(0, 5, 3)]),  # gaps of 1.9 s
    ([(0, 1), (3, 4), (5, 6)], []),  # a gap of exactly 2 s parts them: 1 + 2
    ([(0, 0.3), (2.3, 2.4), (3, 4), (4, 5)], [(2.3, 5, 3)]),  # 2.3 - 0.3 is 1.9999999999999998
    ([(0, 1), (1, 2), (2, 3), (6, 7), (7, 8), (8, 9)], [(0, 3, 3), (6, 9, 3)]),
    ([(0, 9), (1, 2), (10, 11)], [(0, 11, 3)]),  # the first lasts longest
]


@pytest.mark.parametrize(("times", "clusters"), CLUSTERS)
def test_three_fillers_less_than_two_seconds_apart_are_a_cluster(
    times: Times, clusters: list[tuple[float, float, int]]
) -> None:
    assert bot.filler_clusters(fillers_at(*times)) == tuple(clusters)


@pytest.mark.parametrize(("count", "critical"), [(3, False), (4, False), (5, True), (6, True)])
def test_a_cluster_is_critical_from_five_on(count: int, critical: bool) -> None:
    (cluster,) = bot.filler_clusters(fillers_at(*((n, n + 0.5) for n in range(count))))
    assert (cluster.fillers, cluster.critical) == (count, critical)


# -- pauses

PAUSES: list[tuple[float, str]] = [
    (0.0, ""), (0.49, ""), (0.499, ""), (0.5, "natural"), (0.99, "natural"), (0.999, "natural"), (1.0, "dramatic"),
    (2.49, "dramatic"), (2.5, "long"), (4.99, "long"), (5.0, "awkward"), (60.0, "awkward"),
]  # fmt: skip


@pytest.mark.parametrize(("gap", "kind"), PAUSES)
@pytest.mark.parametrize("begin", [0.0, 0.1, 0.7, 33.3, 599.9])  # where floats are coarse in another way
def test_a_pause_is_half_a_second_or_more_and_named_by_its_length(begin: float, gap: float, kind: str) -> None:
    pauses = bot.pauses_of(at((begin, begin + 0.3), (begin + 0.3 + gap, begin + 9 + gap)))
    assert [(pause.seconds, pause.kind) for pause in pauses] == ([(gap, kind)] if kind else [])


def test_what_is_silent_before_and_after_all_words_is_no_pause() -> None:
    assert bot.pauses_of(at((7, 8))) == bot.pauses_of(()) == ()


def test_a_pause_stands_between_the_words_it_parts() -> None:
    assert bot.pauses_of(at((6, 7), (0, 5), (1, 2))) == (Pause(5, 6),)  # unordered and overlapping


def kinds(natural: int, dramatic: int, long: int, awkward: int) -> list[Pause]:
    seconds = [0.5] * natural + [1.0] * dramatic + [2.5] * long + [5.0] * awkward
    return [Pause(10.0 * n, 10.0 * n + length) for n, length in enumerate(seconds)]


@pytest.mark.parametrize(
    ("counts", "share", "too_long"),
    [((0, 0, 0, 0), 0, False), ((5, 5, 0, 0), 0, False), ((4, 3, 2, 1), 0.3, False), ((7, 7, 3, 3), 0.3, False),
     ((3, 3, 2, 2), 0.4, True), ((0, 0, 1, 0), 1, True), ((0, 0, 0, 1), 1, True), ((21, 0, 5, 4), 0.3, False)],
)  # fmt: skip
def test_long_and_awkward_pauses_are_a_fault_over_three_in_ten_of_all(
    counts: tuple[int, int, int, int], share: float, too_long: bool
) -> None:
    held = bot.held_share(kinds(*counts))
    assert held == share
    assert (held > bot.MOST_HELD) is too_long


# -- phrases

PHRASES = [
    ("", []), ("one", [1]), ("one two three", [3]), ("One two. Three!", [2, 1]), ("One? Two! Three.", [1, 1, 1]),
    ("one, two; three: four — five", [5]), ("one… two", [2]), ("one... two", [2]), ("one?.. two", [1, 1]),
    ("one?… two", [1, 1]), ("“One.” two", [1, 1]), ("(one!) two", [1, 1]), ("One?! Two", [1, 1]), ("3.5 m", [2]),
    ("и т.д., и ещё", [4]), ("one . two", [1, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "lengths"), PHRASES)
def test_a_phrase_is_ended_by_a_stop_and_not_by_an_ellipsis_or_a_comma(text: str, lengths: list[int]) -> None:
    assert [len(phrase.words) for phrase in bot.spoken_phrases(read(text))] == lengths


def test_marks_that_a_model_gives_apart_end_no_phrase_where_they_are_an_ellipsis() -> None:
    assert len(bot.spoken_phrases(said(("um", 0, 1), ("...", 1, 1), ("yes", 1, 2)))) == 1
    for mark in (".", "?", "?..", '!"'):
        assert len(bot.spoken_phrases(said(("um", 0, 1), (mark, 1, 1), ("yes", 1, 2)))) == 2, mark


@pytest.mark.parametrize(("gap", "phrases"), [(0.0, 1), (0.49, 1), (0.5, 2), (3.0, 2)])
def test_a_phrase_is_ended_by_a_pause(gap: float, phrases: int) -> None:
    assert len(bot.spoken_phrases(at((0, 1.8), (1.8 + gap, 6)))) == phrases


def test_a_stop_and_a_pause_together_end_one_phrase() -> None:
    assert [len(phrase.words) for phrase in bot.spoken_phrases(said(("One.", 0, 1), ("Two.", 3, 4)))] == [1, 1]


def test_the_end_of_a_segment_ends_no_phrase() -> None:
    words = bot.timed_words([], [SpokenSegment(0, 2, "one two"), SpokenSegment(2.2, 4, "three")])
    assert [len(phrase.words) for phrase in bot.spoken_phrases(words)] == [3]


MEANS = [
    ([], None, ""), ([1], 1, "short"), ([7], 7, "short"), ([7, 8], 7.5, "short"), ([8], 8, "balanced"),
    ([1, 15], 8, "balanced"), ([25], 25, "balanced"), ([20, 30], 25, "balanced"), ([25, 26], 25.5, "long"),
    ([7, 8, 8, 8], 7.75, "short"),
]  # fmt: skip


@pytest.mark.parametrize(("lengths", "mean", "band"), MEANS)
def test_the_mean_phrase_is_balanced_from_8_to_25_words_both_included(
    lengths: list[int], mean: float | None, band: str
) -> None:
    phrases = [SpokenPhrase(tuple(even(length, 0.5))) for length in lengths]
    assert bot.mean_phrase(phrases) == mean
    assert bot.band_of(mean, bot.PHRASE_LENGTHS) == band


def test_a_phrase_lasts_to_the_furthest_end_of_its_words() -> None:
    (phrase,) = bot.spoken_phrases(at((1, 5), (2, 3)))
    assert (phrase.start_s, phrase.end_s, phrase.seconds, phrase.wpm) == (1, 5, 4, 30)


FAULTS = [
    # words, seconds, fault
    (4, 3.0, ""),  # 80
    (4, 3.01, "slow"),
    (5, 3.76, "slow"),  # 79.79
    (3, 2.3, ""),  # 78.26, of three words
    (10, 3.0, ""),  # 200
    (10, 2.99, "fast"),
    (4, 1.0, "fast"),  # 240
    (4, 0.99, ""),  # less than a second
    (3, 1.0, ""),  # 180
    (3, 0.8, ""),  # 225, but three words
    (1, 0.29, ""),  # 207: "Well," between two pauses
    (1, 1.0, ""),  # 60
    (5, 2.0, ""),  # 150
    (1, 0.0, ""),  # no time passed
    (3, 0.0, ""),
]


@pytest.mark.parametrize(("words", "seconds", "fault"), FAULTS)
@pytest.mark.parametrize("begin", [0.0, 0.1, 41.7])
def test_a_phrase_of_four_words_and_a_second_is_flagged_over_200_and_under_80_words_a_minute(
    begin: float, words: int, seconds: float, fault: str
) -> None:
    phrase = SpokenPhrase(tuple(SpokenWord("word", begin, begin + seconds) for _ in range(words)))
    assert phrase.fault == fault


# -- rhythm

RHYTHMS = [
    # durations of phrases, std / mean, band
    ([], None, ""), ([4], None, ""), ([0, 0], None, ""), ([2, 2], 0, "uniform"), ([2, 2, 2, 2], 0, "uniform"),
    ([3, 5], 0.25, "moderate"),  # mean 4, std 1
    ([3.01, 5], 0.248439, "uniform"),  # mean 4.005, std 0.995
    ([1, 4], 0.6, "lively"),  # mean 2.5, std 1.5
    ([1.01, 4], 0.596806, "moderate"),  # mean 2.505, std 1.495
    ([1, 3], 0.5, "moderate"),
    ([2, 4, 4, 4, 5, 5, 7, 9], 0.4, "moderate"),  # mean 5, std 2: the textbook's
    ([0, 2], 1, "lively"),
    ([1, 1, 1, 9], 1.154701, "lively"),  # mean 3, variance (3 · 4 + 36) / 4 = 12
]  # fmt: skip


@pytest.mark.parametrize(("durations", "rhythm", "band"), RHYTHMS)
def test_rhythm_is_the_deviation_of_durations_by_their_mean(
    durations: list[float], rhythm: float | None, band: str
) -> None:
    phrases = [SpokenPhrase((SpokenWord("word", 10.0 * n, 10.0 * n + one),)) for n, one in enumerate(durations)]
    assert bot.rhythm_of(phrases) == rhythm
    assert bot.band_of(rhythm, bot.RHYTHMS) == band


# -- windows

LENGTHS: list[tuple[float, Times]] = [
    # seconds of speech, windows
    (0, []), (5, []), (14.9, []), (15, [(0, 15)]), (29.9, [(0, 29.9)]), (30, [(0, 30), (15, 30)]),
    (40, [(0, 30), (15, 40)]), (44.9, [(0, 30), (15, 44.9)]), (45, [(0, 30), (15, 45), (30, 45)]),
    (50, [(0, 30), (15, 45), (30, 50)]), (60, [(0, 30), (15, 45), (30, 60), (45, 60)]),
    (61, [(0, 30), (15, 45), (30, 60), (45, 61)]),
]  # fmt: skip


@pytest.mark.parametrize(("seconds", "windows"), LENGTHS)
@pytest.mark.parametrize("begin", [0.0, 7.3, 100.1])
def test_windows_of_30_seconds_begin_every_15_and_the_last_has_15_or_more(
    begin: float, seconds: float, windows: Times
) -> None:
    found = bot.pace_windows(at((begin, begin + seconds)))
    assert [(round(one.start_s - begin, 6), round(one.end_s - begin, 6)) for one in found] == windows


def test_no_word_has_no_window() -> None:
    assert bot.pace_windows(()) == ()


def test_a_window_counts_the_words_a_minute_of_its_length_pauses_included() -> None:
    # 30 words in 15 s, 15 s of silence, 10 words in 10 s
    words = [*even(30, 0.5), *even(10, 1.0, 30.0)]
    assert bot.pace_windows(words) == ((0, 30, 60), (15, 40, 24))  # 30 · 60 / 30; 10 · 60 / 25


def test_a_word_counts_in_the_window_in_which_it_begins() -> None:
    words = at((0, 1), (14, 16), (15, 16), (29.9, 31), (30, 45))
    # 0–30: 0, 14, 15, 29.9; 15–45: 15, 29.9, 30; 30–45: 30
    assert [round(one.wpm * (one.end_s - one.start_s) / 60) for one in bot.pace_windows(words)] == [4, 3, 1]


def test_a_word_without_length_at_the_very_end_counts_in_the_last_windows() -> None:
    assert bot.pace_windows(at((0, 1), (30, 30))) == ((0, 30, 4), (15, 30, 4))


def test_no_window_misses_a_word_for_the_coarseness_of_floats() -> None:
    words = even(600, 0.1, 0.7)  # 60 s
    assert [one.wpm for one in bot.pace_windows(words)] == [600, 600, 600, 600]


# -- flagged moments


def test_flagged_moments_are_clusters_phrases_and_awkward_pauses_as_they_come() -> None:
    slow = [SpokenPhrase(tuple(even(4, 1.0)))]  # 60 words a minute
    fast = [SpokenPhrase(tuple(even(10, 0.1, 8.0)))]  # 600
    phrases = [*slow, *bot.spoken_phrases(said(("fine", 4, 4.5), ("a", 11, 11.5))), *fast]
    pauses = bot.pauses_of(at((0, 2.5), (8, 8.1), (11, 11.5)))  # 5.5 s awkward, 2.9 s long
    clusters = bot.filler_clusters(fillers_at((1, 2), (2, 3), (3, 4)))
    assert bot.flagged_moments(clusters, phrases, pauses) == (
        ("slow", 0, 4), ("cluster", 1, 4), ("awkward", 2.5, 8), ("fast", 8, 9)
    )  # fmt: skip


def test_what_is_flagged_in_two_ways_is_flagged_twice() -> None:
    words = said(("um", 0, 1), ("um", 1, 2), ("um", 2, 3), ("um", 3, 4))  # 60 words a minute
    clusters = bot.filler_clusters(bot.fillers_of(words, FILLERS["en"]))
    assert len(bot.flagged_moments(clusters, bot.spoken_phrases(words), ())) == 2


# -- score

SCORES = [
    # fillers in 100, flagged, WPM, held; deductions for fillers, moments, pace, pauses; score
    (0, 0, 140, 0, (0, 0, 0, 0), 100),
    (0, 0, 100, 0.3, (0, 0, 0, 0), 100),
    (0, 0, 180, 0.3, (0, 0, 0, 0), 100),
    (0, 0, None, 0, (0, 0, 0, 0), 100),
    (3, 0, 140, 0, (6, 0, 0, 0), 94),
    (8, 0, 140, 0, (16, 0, 0, 0), 84),
    (15, 0, 140, 0, (30, 0, 0, 0), 70),
    (100, 0, 140, 0, (30, 0, 0, 0), 70),
    (0, 1, 140, 0, (0, 5, 0, 0), 95),
    (0, 6, 140, 0, (0, 30, 0, 0), 70),
    (0, 7, 140, 0, (0, 30, 0, 0), 70),
    (0, 0, 96, 0, (0, 0, 1, 0), 99),
    (0, 0, 184, 0, (0, 0, 1, 0), 99),
    (0, 0, 20, 0, (0, 0, 20, 0), 80),
    (0, 0, 0, 0, (0, 0, 20, 0), 80),
    (0, 0, 260, 0, (0, 0, 20, 0), 80),
    (0, 0, 300, 0, (0, 0, 20, 0), 80),
    (0, 0, 140, 0.4, (0, 0, 0, 5), 95),
    (0, 0, 140, 0.7, (0, 0, 0, 20), 80),
    (0, 0, 140, 1.0, (0, 0, 0, 20), 80),
    (4, 2, 200, 0.5, (8, 10, 5, 10), 67),
    (100, 50, 500, 1.0, (30, 30, 20, 20), 0),
    (0.25, 0, 140, 0, (0.5, 0, 0, 0), 100),  # 99.5: halves go up
    (0.75, 0, 140, 0, (1.5, 0, 0, 0), 99),  # 98.5
    (0.26, 0, 140, 0, (0.52, 0, 0, 0), 99),
    (0, 0, 140, 0.35, (0, 0, 0, 2.5), 98),  # 50 · (0.35 - 0.3) is 2.4999999999999996 as floats go
    (1.25, 0, 141, 0.31, (2.5, 0, 0, 0.5), 97),
]  # fmt: skip


@pytest.mark.parametrize(("in_100", "flagged", "wpm", "held", "taken", "points"), SCORES)
def test_the_score_is_100_without_what_each_fault_takes(
    in_100: float, flagged: int, wpm: float | None, held: float, taken: tuple[float, ...], points: int
) -> None:
    score = bot.speech_score(in_100, flagged, wpm, held)
    assert tuple(one.points for one in score.deductions) == taken
    assert score.points == points


def test_each_deduction_tells_what_it_is_for_and_its_most() -> None:
    score = bot.speech_score(0, 0, 140, 0)
    assert [(one.name, one.most) for one in score.deductions] == [
        ("fillers", 30), ("moments", 30), ("pace", 20), ("pauses", 20)
    ]  # fmt: skip


# -- all of it


def test_the_figures_of_a_speech_by_its_words() -> None:
    # 0–2: 4 words; 2.5 s; 4.5–5.5: 2 words; 5 s; 10.5–13.5: 3 fillers and a word
    words = [
        SpokenWord(text, start, end)
        for text, start, end in [
            ("So", 4.5, 5.0), ("yes.", 5.0, 5.5),  # unordered
            ("This", 0.0, 0.5), ("is", 0.5, 1.0), ("my", 1.0, 1.5), ("speech.", 1.5, 2.0),
            ("Um,", 10.5, 11.0), ("uh,", 11.0, 12.0), ("erm", 12.0, 13.0), ("bye", 13.0, 13.5),
        ]
    ]  # fmt: skip
    figures = bot.speech_figures(words, [], FILLERS["en"])
    assert (len(figures.words), figures.speaking_s) == (10, 6)  # 2 + 1 + 3
    assert (figures.wpm, figures.pace) == (100, "comfortable")
    assert [filler.text for filler in figures.fillers] == ["um", "uh", "erm"]  # "So yes" is not set off
    assert (figures.fillers_in_100, figures.filler_band) == (30, "many")
    assert [(pause.seconds, pause.kind) for pause in figures.pauses] == [(2.5, "long"), (5, "awkward")]
    assert (figures.held, figures.holds_too_long) == (1, True)
    assert [len(phrase.words) for phrase in figures.phrases] == [4, 2, 4]
    assert [phrase.wpm for phrase in figures.phrases] == [120, 120, 80]
    assert (figures.mean_phrase, figures.phrase_length) == (3.333333, "short")
    assert (figures.rhythm, figures.rhythm_band) == (0.408248, "moderate")  # 2, 1, 3: mean 2, std √(2/3)
    assert figures.windows == ()
    assert figures.clusters == ((10.5, 13, 3),)
    assert figures.flagged == (("awkward", 5.5, 10.5), ("cluster", 10.5, 13))
    assert figures.score is not None and figures.score.points == 40  # 100 - 30 - 10 - 0 - 20


def test_the_figures_of_a_speech_by_its_segments() -> None:
    segments = [SpokenSegment(20.0, 40.0, "word " * 50), SpokenSegment(0.0, 19.0, "word " * 47 + "um, um, um.")]
    figures = bot.speech_figures([], segments, FILLERS["en"])
    assert (len(figures.words), figures.speaking_s, figures.wpm) == (100, 39, 153.846154)
    assert (figures.fillers_in_100, figures.filler_band, len(figures.clusters)) == (3, "few", 1)
    assert figures.pauses == ((19, 20),) and figures.pauses[0].kind == "dramatic"
    assert (figures.mean_phrase, figures.phrase_length) == (50, "long")
    assert [(one.start_s, one.end_s) for one in figures.windows] == [(0, 30), (15, 40)]
    assert figures.score is not None and figures.score.points == 89  # 6 for fillers, 5 for the cluster


@pytest.mark.parametrize(("long", "too_long"), [(3, False), (4, True)])
def test_three_long_pauses_in_ten_are_not_yet_too_long(long: int, too_long: bool) -> None:
    starts = [0.0]
    for number in range(10):
        starts.append(starts[-1] + (3.0 if number < long else 1.0))  # a word of 0.5 s, then 2.5 or 0.5 s
    figures = bot.speech_figures([SpokenWord("word", start, start + 0.5) for start in starts], [], FILLERS["en"])
    assert (len(figures.pauses), figures.held, figures.holds_too_long) == (10, long / 10, too_long)


def test_segments_give_the_speaking_time_where_there_are_words_as_well() -> None:
    figures = bot.speech_figures(even(10, 0.5), [SpokenSegment(0, 10, "word " * 10)], FILLERS["en"])
    assert (figures.speaking_s, figures.wpm) == (10, 60)


@pytest.mark.parametrize("segments", [[], [SpokenSegment(0, 9, "")], [SpokenSegment(0, 9, "[silence]")]])
def test_no_word_has_no_figures_and_no_score(segments: list[SpokenSegment]) -> None:
    figures = bot.speech_figures([SpokenWord("…", 0, 1)], segments, FILLERS["uk"])
    assert (figures.words, figures.speaking_s, figures.wpm, figures.score) == ((), 0, None, None)
    assert (figures.fillers_in_100, figures.held, figures.mean_phrase, figures.rhythm) == (0, 0, None, None)
    assert (figures.pace, figures.filler_band, figures.phrase_length, figures.rhythm_band) == ("", "none", "", "")
    assert not any((figures.windows, figures.flagged, figures.clusters, figures.pauses, figures.phrases))


def test_one_word_has_a_rate_and_a_score_but_no_rhythm() -> None:
    figures = bot.speech_figures([SpokenWord("Вітаю!", 1.0, 1.5)], [], FILLERS["uk"])
    assert (figures.wpm, figures.pace, figures.mean_phrase, figures.rhythm) == (120, "comfortable", 1, None)
    assert figures.score is not None and figures.score.points == 100


def test_words_without_length_have_no_rate() -> None:
    figures = bot.speech_figures([SpokenWord("a", 1, 1), SpokenWord("b", 1, 1)], [], FILLERS["en"])
    assert (len(figures.words), figures.speaking_s, figures.wpm, figures.flagged) == (2, 0, None, ())
    assert figures.score is not None and figures.score.points == 100


def test_figures_hold_together_whatever_the_words() -> None:
    dice = random.Random(7)
    texts = ["um", "like,", "so.", "word", "you", "know", "…", "yes?", "[x]", "a b"]
    for _ in range(200):
        words = [
            SpokenWord(dice.choice(texts), start := dice.choice([0.0, 0.5, 1.0]) * dice.randrange(90),
                       start + dice.choice([-1.0, 0.0, 0.25, 3.0]))
            for _ in range(dice.randrange(40))
        ]  # fmt: skip
        figures = bot.speech_figures(words, [], FILLERS["en"])
        assert sum(len(phrase.words) for phrase in figures.phrases) == len(figures.words)
        assert [word for phrase in figures.phrases for word in phrase.words] == list(figures.words)
        assert len(figures.fillers) <= len(figures.words) and figures.speaking_s >= 0
        assert all(pause.seconds >= 0.5 for pause in figures.pauses)
        assert all(15 <= one.end_s - one.start_s <= 30 and one.wpm >= 0 for one in figures.windows)
        assert figures.score is None or 0 <= figures.score.points <= 100
        dice.shuffle(words)
        again = bot.speech_figures(words, [], FILLERS["en"])
        assert (again.speaking_s, again.wpm, again.pauses) == (figures.speaking_s, figures.wpm, figures.pauses)


# -- advice

FLAGGED = {"fast": 0.1, "slow": 3.0}  # seconds of a word


def speech_of(*timed: tuple[str, float, float]) -> bot.SpeechFigures:
    return bot.speech_figures([SpokenWord(*one) for one in timed], [], FILLERS["en"])


def paced(words: int, each_s: float, text: str = "word") -> list[tuple[str, float, float]]:
    return [(text, n * each_s, (n + 1) * each_s) for n in range(words)]


def broken(gaps: list[float], words: int = 10) -> list[tuple[str, float, float]]:
    """Phrases of some words at 120 a minute, with these pauses between them."""
    found, at_s = [], 0.0
    for gap in [*gaps, 0.0]:
        found += [(text, at_s + start, at_s + end) for text, start, end in paced(words, 0.5)]
        at_s += words * 0.5 + gap
    return found


ADVICE = [
    # words, severity of pace, fillers, pauses, phrases
    (paced(20, 0.5), "ok ok ok ok"),  # 120 words a minute, ten seconds
    (paced(20, 0.65), "notice ok ok ok"),  # 92
    (paced(20, 0.9), "important ok ok ok"),  # 67: 33 off, and one slow phrase
    (paced(30, 0.32), "notice ok ok notice"),  # 187.5; thirty words in a phrase
    (paced(80, 0.5), "ok ok notice important"),  # forty seconds without a pause, one phrase of eighty words
    (broken([0.6, 0.6, 0.6]), "ok ok ok notice"),  # four phrases of five seconds: all alike
    ([*paced(10, 0.5), *((text, 5.6 + start, 5.6 + end) for text, start, end in paced(20, 0.5))], "ok ok ok ok"),
    (broken([0.6, 0.7, 3.0]), "ok ok notice notice"),  # a third is too long
    (broken([3.0, 3.0, 0.7]), "ok ok important notice"),  # two thirds
    (broken([0.6] * 9 + [6.0]), "ok ok notice notice"),  # one in ten, but awkward
    (paced(3, 0.5), "ok ok ok important"),  # three words
]


@pytest.mark.parametrize(("timed", "severities"), ADVICE)
def test_each_advice_has_its_severity(timed: list[tuple[str, float, float]], severities: str) -> None:
    assert " ".join(one.severity for one in bot.advice_of(speech_of(*timed))) == severities


FILLED = [
    (100, (), "ok"), (100, (5, 40, 80), "ok"), (100, (5, 40, 70, 90), "notice"), (100, (5, 6, 7), "notice"),
    (100, tuple(range(5, 95, 10)), "important"), (100, (5, 6, 7, 8, 9), "important"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "fillers", "severity"), FILLED)
def test_fillers_are_worth_a_look_over_3_in_100_or_in_a_heap(
    words: int, fillers: tuple[int, ...], severity: str
) -> None:
    timed = [("um" if n in fillers else "word", start, end) for n, (_, start, end) in enumerate(paced(words, 0.5))]
    assert bot.advice_of(speech_of(*timed))[1].severity == severity


def test_advice_names_the_moments_it_is_about() -> None:
    figures = speech_of(*broken([6.0]))
    assert [[moment.kind for moment in one.moments] for one in bot.advice_of(figures)] == [[], [], ["awkward"], []]


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (1199.99, "19:59")])
def test_a_place_in_a_recording_is_told_in_minutes_and_seconds(seconds: float, words: str) -> None:
    assert bot.length_words(seconds) == words


def test_a_transcript_has_a_line_for_some_seconds_and_no_phrase_in_two() -> None:
    lines = bot.timed_lines(at(*[(start, end) for _, start, end in broken([0.6, 0.6, 2.0])]))
    assert [line.split()[0] for line in lines.splitlines()] == ["[0:00]", "[0:11]"]
    assert len(lines.split()) == 42


# -- long texts


@pytest.mark.parametrize("head", ["Head", "🐟 голова", "a\nb"])
@pytest.mark.parametrize("body", ["short", "Щось 🐟 довге " * 600, ""])
def test_a_quote_is_measured_in_utf16_units_and_fits(head: str, body: str) -> None:
    piece = bot.quoted(head, body)
    assert bot.utf16_len(piece.text) <= bot.MAX_TEXT
    if not body:
        assert piece == bot.Piece(head)
        return
    [entity] = piece.entities
    units = bot.to_units(piece.text)
    inside = bot.from_units(units[entity["offset"] : entity["offset"] + entity["length"]])
    assert (entity["type"], piece.text.startswith(head)) == ("expandable_blockquote", True)
    assert body.strip().startswith(inside.rstrip("…")) and entity["offset"] + entity["length"] == len(units)


# -- comparing


def attempt(**given: Any) -> bot.Speech:
    base = bot.Speech(1, ANNA, ANNA, "u", "f", "t", "en", 60.0, 100, 140.0, 2.0, 0.1, 0.4, 80, int(NOON))
    return base._replace(**given)


COMPARED = [
    # now, earlier ones: name, mean, best, trend
    ({"score": 80}, [{"score": 70}, {"score": 60}], "score", 65, 70, "better"),
    ({"score": 80}, [{"score": 82}], "score", 82, 82, "same"),
    ({"score": 80}, [{"score": 83}], "score", 83, 83, "worse"),
    ({"wpm": 90.0}, [{"wpm": 200.0}, {"wpm": 140.0}], "pace", 170, 140, "same"),  # 10 off, as the mean of 20 and 0 is
    ({"wpm": 120.0}, [{"wpm": 220.0}], "pace", 220, 220, "better"),
    ({"fillers": 3.0}, [{"fillers": 5.0}, {"fillers": 1.0}], "fillers", 3, 1, "same"),
    ({"fillers": 3.6}, [{"fillers": 3.0}], "fillers", 3, 3, "worse"),
    ({"held": 0.1}, [{"held": 0.3}], "pauses", 0.3, 0.3, "better"),
]  # fmt: skip


@pytest.mark.parametrize(("now", "earlier", "name", "mean", "best", "trend"), COMPARED)
def test_an_attempt_is_compared_with_the_mean_and_the_best(
    now: dict[str, Any], earlier: list[dict[str, Any]], name: str, mean: float, best: float, trend: str
) -> None:
    found = {one.name: one for one in bot.compared(attempt(**now), [attempt(**one) for one in earlier])}
    assert (found[name].mean, found[name].best, found[name].trend) == (mean, best, trend)


def test_what_was_never_measured_is_not_compared() -> None:
    assert [one.name for one in bot.compared(attempt(wpm=None), [attempt()])] == ["score", "fillers", "pauses"]
    assert bot.compared(attempt(), [attempt(wpm=None)])[0].name == "score"


# -- reports

VERDICT = {
    "overall": 7, "structure": 6, "content": 8, "language": 9, "delivery": 5, "confidence": 0.8,
    "strengths": [{"strength": "You begin with a question."}, {"strength": " "}],
    "problems": [{"problem": "The end is missing.", "cause": "You ran out of time.", "exercise": "Say the end first."}],
}  # fmt: skip


def told(ask: bot.Ask) -> str:
    """What the model says: a verdict where one is wanted, else something made of the question."""
    return json.dumps(VERDICT) if ask.schema else f"On it: {ask.said[-1].text[-40:]}"


def recording(text: str = "So um we begin. ", times: int = 8, lang: str = "en") -> Transcript:
    """Somebody who says a text again and again, two words a second, with a pause of 0.7 s after each."""
    words, at_s = [], 0.0
    for _ in range(times):
        for word in text.split():
            words.append(SpokenWord(word, at_s, at_s + 0.5))
            at_s += 0.5
        at_s += 0.7
    return Transcript(" ".join(word.text for word in words), tuple(words), (), lang, at_s)


class Coach:
    """Sends recordings that were written down already."""

    def __init__(self, okun: Okun) -> None:
        self.okun = okun

    async def hear(
        self, room: Room, transcript: Transcript, unique: str = "rec1", by: str = "", **of: Any
    ) -> list[Reply]:
        """What the bot sends to who wants to be coached on this recording."""
        by = by or room.by
        if not room.rows():
            await room.say("/help", by=by)
        before = {reply.id for reply in room.replies}
        await self.send(room, transcript, unique, by, **of)
        await self.okun.settle()
        return [reply for reply in room.replies if reply.id not in before]

    async def send(self, room: Room, transcript: Transcript, unique: str, by: str, **of: Any) -> None:
        """The end of the job that listened to it."""
        app, person = self.okun.app, self.okun.person(by)
        lang = person["language_code"]
        file = bot.Recording(
            f"file-{unique}-{by}", unique, "audio/ogg", "voice", 1000, int(transcript.duration_s), **of
        )
        who = bot.Who(room.id, 0, person["id"], lang, private=room.id > 0)
        async with app.db.tx() as tx:
            await bot.ensure_person(tx, person["id"])
            await keep(tx, unique, transcript)
            queued = await bot.put_job(tx, who, "speech", "speech", file._asdict(), 0, int(self.okun.clock.now()), "")
            job = await bot.start_job(tx, queued.id)
            assert job
        await bot.end_job(app, job, "done", end=await bot.SPEECH_ENDS["coach"](app, job, file, transcript))
        await bot.show_job(app, job.id)


async def keep(tx: bot.Tx, unique: str, transcript: Transcript) -> None:
    await tx.run(
        "INSERT OR IGNORE INTO transcripts (file_unique_id, transcript, used_at) VALUES (?, ?, ?)",
        unique, bot.transcript_json(transcript), int(NOON),
    )  # fmt: skip


def sketch(app: bot.App, lang: str, speech: bot.Speech, figures: bot.SpeechFigures) -> bytes:
    """A picture that takes no time, its colour by the score: the real ones are tested apart."""
    out = io.BytesIO()
    Image.new("RGB", (40, 40), (speech.score or 0, 0, 0)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def coach(okun: Okun, model: Script, monkeypatch: pytest.MonkeyPatch) -> Coach:
    monkeypatch.setattr(bot, "draw_speech", sketch)
    model.says = told
    return Coach(okun)


def files(okun: Okun, room: Room) -> list[str]:
    """The contents of the files that the bot sent."""
    cards = [raw["document"] for raw in okun.telegram.sent(room.chat) if "document" in raw]
    return [okun.telegram.files[card["file_id"]].data.decode() for card in cards]


async def test_a_report_is_a_picture_with_figures_and_a_verdict_folded_up(okun: Okun, chat: Room, coach: Coach) -> None:
    report, notes = await coach.hear(chat, recording())
    assert report.picture and not notes.picture
    # 32 words in 16 s: 120 a minute; 8 "um": 25 in 100, and no heap; eight phrases alike
    assert "So um we begin. So um we… · 0:21" in report.text
    assert "Score: 70 out of 100" in report.text
    assert "−30 fillers (25 in 100 words)" in report.text and "−0 pace (120 words a minute)" in report.text
    assert "−0 flagged moments (0)" in report.text and "−0 pauses (0% of them too long)" in report.text
    assert "🔴 Fillers (important): 25 in 100 words: “um” ×8." in report.text
    assert "🟢 Pace (fine): 120 words a minute, comfortable (100–180)." in report.text
    assert "🟢 Pauses (fine): 7 pauses, 0% of them longer than 2.5 s" in report.text
    assert "🟡 Phrases (worth a look): 4 words on average, choppy." in report.text
    marks = "Structure 6 · content 8 · language 9 · delivery 5"
    assert notes.text.startswith(f"What a model makes of it: 7 out of 10\n{marks}")
    assert "• You begin with a question.\n" in notes.text and "Why: You ran out of time." in notes.text
    assert notes.entities == ["expandable_blockquote"]
    [row] = okun.rows("SELECT user_id, title, lang, words, wpm, fillers, score FROM speeches")
    assert row == (ANNA, "So um we begin. So um we…", "en", 32, 120.0, 25.0, 70)


async def test_the_name_of_a_file_is_the_title(okun: Okun, chat: Room, coach: Coach) -> None:
    report, _ = await coach.hear(chat, recording(), name="My toast.mp3")
    assert report.text.startswith("My toast · 0:21")


@pytest.mark.parametrize("said", ["", "[music]"])
async def test_where_nothing_was_said_there_are_kind_words_and_no_score(
    okun: Okun, chat: Room, coach: Coach, said: str
) -> None:
    silence = Transcript(said, (), (SpokenSegment(0, 9, said),), "", 9.0)
    [reply] = await coach.hear(chat, silence)
    assert reply.text == okun.t("coach.silent") and not reply.picture
    assert okun.rows("SELECT score, words, wpm FROM speeches") == [(None, 0, None)]
    assert okun.model.asks == []


@settings(gemini_api_key="")
async def test_without_a_model_the_report_stands_and_says_so(okun: Okun, chat: Room, coach: Coach) -> None:
    report, notes = await coach.hear(chat, recording("one two three four five six. ", 3))
    assert report.picture and "Score: 100 out of 100" in report.text
    assert notes.text == okun.t("coach.no_model")


async def test_a_model_that_fails_costs_the_verdict_alone_and_can_be_asked_again(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    model.always(bot.LlmError("overloaded"))
    report, notes = await coach.hear(chat, recording())
    assert report.picture
    assert notes.text.startswith(okun.t("coach.no_verdict", why=okun.t("llm.overloaded"))[:60])
    model.says = told
    [again] = (await chat.press(okun.t("coach.button.verdict"))).replies
    assert again.text.startswith("What a model makes of it: 7 out of 10")


async def test_broken_json_twice_costs_the_verdict_alone(okun: Okun, chat: Room, coach: Coach, model: Script) -> None:
    model.always('{"overall": 11}')
    report, notes = await coach.hear(chat, recording())
    assert report.picture and notes.text.startswith("This time without a verdict")
    assert model.kinds["light"] == 2 and okun.rows("SELECT verdict FROM transcripts") == [(None,)]


@settings(daily_budget_usd=0.000001)
async def test_beyond_the_budget_no_verdict_is_asked_for(okun: Okun, chat: Room, coach: Coach) -> None:
    bot.spend(okun.app, okun.app.llm.day(), 10)
    bare = bot.Llm(okun.app.settings, okun.app.http, okun.clock, okun.dice)
    bare.may_pay = okun.app.llm.may_pay = lambda: bot.budget_left(okun.app)
    okun.app.llm = bare  # the real one, which asks nobody
    report, notes = await coach.hear(chat, recording())
    assert report.picture and okun.t("llm.budget") in notes.text


async def test_the_same_recording_of_somebody_else_costs_no_call_and_does_not_say_whose_it_was(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording(), name="Anna's secret.ogg")
    calls = len(model.asks)
    other = okun.private("Olena")
    okun.app.langs.put(14, "en")
    report, notes = await coach.hear(other, recording(), by="Olena")
    assert "secret" not in report.text and report.picture
    assert notes.text.startswith(TEXTS("uk", "coach.verdict.strengths")) is False
    assert len(model.asks) == calls + 1  # in Olena's language, Ukrainian
    await coach.hear(okun.private("Borys"), recording(), by="Borys")  # in Ukrainian, too
    assert len(model.asks) == calls + 1


async def test_ten_who_ask_at_once_cause_one_verdict(okun: Okun, chat: Room, coach: Coach, model: Script) -> None:
    people = [okun.private(f"P{number}") for number in range(10)]
    for room in people:
        await room.say("/help")
    await asyncio.gather(*(coach.send(room, recording(), "rec1", room.by) for room in people))
    assert model.kinds["light"] == 1
    assert all(any(reply.picture for reply in room.replies) for room in people)


async def test_a_verdict_outlives_a_restart(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await okun.restart()
    okun.model.always(bot.LlmError("server"))
    [notes] = (await chat.press(okun.t("coach.button.verdict"))).replies
    assert notes.text.startswith("What a model makes of it: 7 out of 10") and okun.model.asks == []


async def test_the_same_recording_again_is_the_same_attempt(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await coach.hear(chat, recording("Something else now. "))  # a better model heard something else
    assert len(okun.rows("SELECT 1 FROM speeches")) == 1
    newest = [reply for reply in chat.replies if reply.picture][-1]
    pressed = await chat.press(okun.t("coach.button.compare"), message=newest)
    assert [reply.text for reply in pressed.replies] == [okun.t("coach.compare.none")]


async def test_where_pictures_are_forbidden_the_report_comes_in_words(okun: Okun, chat: Room, coach: Coach) -> None:
    await chat.say("/help")
    okun.telegram.fault("400", "sendPhoto", text="not enough rights to send photos to the chat")
    report, _ = await coach.hear(chat, recording())
    assert not report.picture and "Score: 70 out of 100" in report.text and report.buttons


async def test_a_group_gets_the_report_without_what_is_private(okun: Okun, group: Room, coach: Coach) -> None:
    report, _ = await coach.hear(group, recording(), by="Anna")
    assert report.picture
    assert not {okun.t("coach.button.ask"), okun.t("coach.button.history")} & set(report.buttons)
    pressed = await group.press(okun.t("coach.button.summary"), by="Borys", message=report)
    assert pressed.note == okun.t("button.not_yours", "uk") and pressed.replies == []
    assert len((await group.press(okun.t("coach.button.summary"), by="Anna", message=report)).replies) == 1


# -- buttons under a report


async def test_every_button_holds_the_longest_ids(okun: Okun) -> None:
    for verb in bot.SPEECH_VERBS:
        assert len(bot.SpeechPress(owner=-(10**14), verb=verb, id=str(10**12)).pack().encode()) <= 64


async def test_the_transcript_comes_as_a_file_with_times(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    [reply] = (await chat.press(okun.t("coach.button.text"))).replies
    [text] = files(okun, chat)
    assert "[0:00] So um we begin. So um we begin." in text and "[0:" in text.splitlines()[-1]
    assert text.count("begin.") == 8 + 1  # and once in the title
    assert reply.raw["caption_entities"][0]["type"] == "expandable_blockquote"


async def test_all_figures_and_words_come_as_json(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.json"))
    [text] = files(okun, chat)
    found = json.loads(text)
    assert (found["figures"]["score"], found["figures"]["words_a_minute"]) == (70, 120)
    assert found["words"][1] == {"text": "um", "start_s": 0.5, "end_s": 1.0} and len(found["words"]) == 32
    assert found["pauses"][0]["kind"] == "natural" and found["verdict"]["overall"] == 7
    assert len(found["fillers"]) == 8 and found["windows"]


@pytest.mark.parametrize("kind", ["summary", "todo", "minutes"])
async def test_what_a_model_makes_of_it_is_made_once(
    okun: Okun, chat: Room, coach: Coach, model: Script, kind: str
) -> None:
    await coach.hear(chat, recording())
    before = len(model.asks)
    [first] = (await chat.press(okun.t(f"coach.button.{kind}"))).replies
    assert "On it:" in first.text and first.entities == ["expandable_blockquote"]
    assert "um we begin" in model.heard and "[0:00]" in model.heard and "English" in model.asks[-1].system
    await okun.restart()
    [second] = (await chat.press(okun.t(f"coach.button.{kind}"))).replies
    assert second.text == first.text and okun.model.asks == [] and len(model.asks) == before + 1


async def test_what_is_long_comes_as_a_file_with_its_beginning(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording())
    model.says = lambda ask: "A line of minutes 🐟.\n" * 400
    [reply] = (await chat.press(okun.t("coach.button.minutes"))).replies
    [text] = files(okun, chat)
    assert text.count("A line of minutes") == 400
    assert reply.text.startswith("Minutes of") and reply.raw["caption_entities"][0]["type"] == "expandable_blockquote"


async def test_a_failing_model_is_told_and_nothing_kept(okun: Okun, chat: Room, coach: Coach, model: Script) -> None:
    await coach.hear(chat, recording())
    model.always(bot.LlmError("timeout"))
    [reply] = (await chat.press(okun.t("coach.button.todo"))).replies
    assert reply.text == okun.t("llm.timeout")
    assert okun.rows("SELECT extras FROM transcripts") == [("{}",)]


async def test_an_attempt_is_put_beside_the_earlier_ones(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording(), "one")
    [alone] = (await chat.press(okun.t("coach.button.compare"))).replies
    assert alone.text == okun.t("coach.compare.none")
    await coach.hear(chat, recording("We begin now and go on. "), "two")
    [reply] = (await chat.press(okun.t("coach.button.compare"))).replies
    assert "Score: 100; mean 70, best 70 – better" in reply.text
    assert "Fillers in 100 words: 0; mean 25, best 25 – better" in reply.text
    assert "Words a minute: 120; mean 120, best 120 – about the same" in reply.text
    assert "(1 attempt)" in reply.text


@pytest.mark.parametrize("id_", ["99999999999999999999", "-1", "1x"])
async def test_an_id_that_nothing_has_leads_nowhere(okun: Okun, chat: Room, coach: Coach, id_: str) -> None:
    await coach.hear(chat, recording())
    [mine] = await chat.say("/menu")
    pressed = await chat.press_data(f"sp1:{ANNA}:json:{id_}", mine)
    assert [reply.text for reply in pressed.replies] == [okun.t("coach.gone")]


async def test_a_forged_button_leads_nowhere(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(okun.private("Borys"), recording(), by="Borys")
    theirs = okun.rows("SELECT id FROM speeches")[0][0]
    [mine] = await chat.say("/menu")
    for id_, verb, said in ((theirs, "text", "coach.gone"), (10**17, "json", "coach.gone")):
        pressed = await chat.press_data(bot.SpeechPress(owner=ANNA, verb=verb, id=str(id_)).pack(), mine)
        assert [reply.text for reply in pressed.replies] == [okun.t(said)]
    pressed = await chat.press_data(bot.SpeechPress(owner=ANNA, verb="nothing", id=str(theirs)).pack(), mine)
    assert (pressed.note, pressed.replies) == (okun.t("button.old"), [])


# -- asking about it


async def test_questions_are_answered_with_figures_and_transcript_before_the_model(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording())
    [asks] = (await chat.press(okun.t("coach.button.ask"))).replies
    assert asks.text == okun.t("coach.ask", title="So um we begin. So um we…")
    answer, again = await chat.say("Which filler is the worst?")
    assert answer.text == "On it: Which filler is the worst?" and again.text == asks.text
    system = model.asks[-1].system
    assert '"fillers_in_100_words":25' in system and "[0:00] So um we begin." in system and '"overall":7' in system
    assert model.kinds["chat"] == 1 and asks.id not in chat.chat.messages
    await chat.say("And why?")
    assert [said.text for said in model.asks[-1].said] == ["Which filler is the worst?", answer.text, "And why?"]
    assert bot.count_tokens(model.asks[-1].system) < okun.app.settings.context_tokens


async def test_asking_goes_on_after_a_restart_and_ends_with_cancel(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.ask"))
    await okun.restart()
    okun.model.says = told
    answer, _ = await chat.say("Which filler?")
    assert answer.text == "On it: Which filler?"
    await chat.say("/cancel")
    await chat.say("Hello there")
    assert "fillers_in_100_words" not in okun.model.asks[-1].system


async def test_asking_ends_with_its_button(okun: Okun, chat: Room, coach: Coach, model: Script) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.ask"))
    await chat.press(okun.t("menu.close"))
    await chat.say("Hello there")
    assert "fillers_in_100_words" not in model.asks[-1].system


async def test_the_next_recording_is_offered_while_one_is_asked_about(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.ask"))
    [offer] = await chat.send("voice", voice_of("Once more"), duration=65)
    assert offer.text == okun.t("hearing.ask") and okun.t("hearing.button.coach") in offer.buttons


@settings(context_tokens=1000)
async def test_a_long_talk_about_a_long_recording_fits_into_the_context(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording(times=400))
    await chat.press(okun.t("coach.button.ask"))
    for number in range(5):
        await chat.say(f"Question {number} " + "and so on " * 150)
        ask = model.asks[-1]
        assert bot.count_tokens(ask.system) + sum(bot.count_tokens(said.text) for said in ask.said) <= 1300
        assert ask.said[-1].role == "user" and f"Question {number}" in ask.said[-1].text


@settings(replies_per_hour=1)
async def test_answers_about_a_speech_count_as_answers(okun: Okun, chat: Room, coach: Coach, model: Script) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.ask"))
    await chat.say("First")
    calls = model.kinds["chat"]
    refused = await chat.say("Second")
    assert model.kinds["chat"] == calls == 1
    assert refused[0].text.startswith(okun.t("limit.replies", left="1 hour")[:20])


@settings(total_replies_per_hour=1)
async def test_the_limit_of_all_is_told_to_each_who_asks_about_a_speech(okun: Okun, coach: Coach) -> None:
    rooms = [okun.private("Anna"), okun.private("Borys")]
    for room in rooms:
        await coach.hear(room, recording())
        await room.press(okun.t("coach.button.ask", "en" if room is rooms[0] else "uk"))
    await rooms[0].say("First")
    for room, lang in zip(rooms, ("en", "uk"), strict=True):
        refused = await room.say("Second")
        assert refused[0].text.startswith(okun.t("limit.total", lang, left="1")[:20])


async def test_a_model_that_fails_is_told_and_asking_goes_on(
    okun: Okun, chat: Room, coach: Coach, model: Script
) -> None:
    await coach.hear(chat, recording())
    await chat.press(okun.t("coach.button.ask"))
    model.always(bot.LlmError("rate"))
    [told_so] = await chat.say("First?")
    assert told_so.text == okun.t("llm.rate")
    model.says = told
    answer, _ = await chat.say("Second?")
    assert answer.text == "On it: Second?"


# -- history


async def history(okun: Okun, room: Room, coach: Coach, count: int) -> None:
    for number in range(count):
        await coach.hear(room, recording(f"Speech number{number} begins here now. "), f"rec{number}")
        okun.clock.start += 86_400  # without running what would have happened until then


async def test_the_history_is_paged_newest_first(okun: Okun, chat: Room, coach: Coach) -> None:
    await history(okun, chat, coach, 7)
    [listed] = await chat.say("/speeches")
    assert "7 attempts" in listed.text
    assert [line[:2] for line in listed.text.splitlines()[2:]] == ["1.", "2.", "3.", "4.", "5."]
    assert "1. 100 · 19 May 2026 · Speech number6" in listed.text and "Speech number1" not in listed.text
    second = (await chat.press("▶")).message
    assert "7. 100 · 13 May 2026 · Speech number0" in second.text and "number6" not in second.text


async def test_there_is_a_word_for_who_has_none(okun: Okun, chat: Room) -> None:
    [reply] = await chat.say("/speeches")
    assert reply.text == okun.t("speeches.empty")


async def test_a_report_opens_again_from_what_is_stored(okun: Okun, chat: Room, coach: Coach) -> None:
    first, _ = await coach.hear(chat, recording())
    await okun.restart()
    await chat.say("/speeches")
    [again] = (await chat.press("1")).replies
    assert again.picture and again.text == first.text and okun.model.asks == []
    [listed] = (await chat.press(okun.t("menu.back"))).replies
    assert "1. 70" in listed.text


async def test_without_its_words_a_report_is_the_figures_alone(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    async with okun.app.db.tx() as tx:
        await tx.run("DELETE FROM transcripts")
    await okun.restart()
    await chat.say("/speeches")
    shown = (await chat.press("1")).message
    assert "Score: 70 out of 100" in shown.text and okun.t("coach.no_transcript") in shown.text
    assert "Words a minute: 120" in shown.text and not shown.picture
    pressed = await chat.press(okun.t("coach.button.summary"))
    assert [reply.text for reply in pressed.replies] == [okun.t("coach.no_transcript")]


async def test_a_speech_is_deleted_when_it_is_meant(okun: Okun, chat: Room, coach: Coach) -> None:
    await history(okun, chat, coach, 2)
    await chat.say("/speeches")
    await chat.press("1")
    await chat.press(okun.t("coach.button.delete"))
    assert len(okun.rows("SELECT 1 FROM speeches")) == 2
    pressed = await chat.press(okun.t("speeches.button.delete"))
    assert pressed.note == okun.t("speeches.deleted")
    assert okun.rows("SELECT title FROM speeches") == [("Speech number0 begins here now. Speech number0…",)]
    assert okun.rows("SELECT file_unique_id FROM transcripts") == [("rec0",)]


async def test_a_report_that_is_sent_while_its_speech_is_deleted_is_kept_nowhere(
    okun: Okun, chat: Room, coach: Coach, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: list[bot.Speech] = []
    patiently = bot.patiently

    async def slowly(app: bot.App, send: Any) -> Any:
        sent = await patiently(app, send)
        for speech in await bot.speeches_of(app.db.reader, ANNA, 0, 1):
            deleted.append(speech)
            await bot.delete_speech(app, speech)
        return sent

    monkeypatch.setattr(bot, "patiently", slowly)
    await coach.hear(chat, recording())
    [speech] = deleted
    assert okun.app.reports.peek((speech.file_unique_id, "en", speech.title)) is None


async def test_what_somebody_else_sent_too_is_not_deleted_with_it(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await coach.hear(okun.private("Borys"), recording(), by="Borys")
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    await okun.settle()
    assert okun.rows("SELECT user_id FROM speeches") == [(BORYS,)]


async def test_forgetting_takes_speeches_and_what_was_heard(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await chat.say("/forget me")
    await chat.press(okun.t("forget.button.all"))
    await okun.settle()
    assert okun.rows("SELECT 1 FROM speeches") == okun.rows("SELECT 1 FROM transcripts") == []
    assert not len(okun.app.reports) and not len(okun.app.speech_words)


async def test_progress_is_a_picture_of_the_last_attempts(okun: Okun, chat: Room, coach: Coach) -> None:
    await history(okun, chat, coach, 2)
    await chat.say("/speeches")
    [shown] = (await chat.press(okun.t("speeches.button.progress"))).replies
    assert shown.picture and shown.text == okun.t("speeches.progress", scores="100, 100")
    [back] = (await chat.press(okun.t("menu.back"))).replies
    assert "2 attempts" in back.text


async def test_in_a_group_the_history_goes_to_the_private_chat(okun: Okun, group: Room, coach: Coach) -> None:
    await coach.hear(okun.private("Anna"), recording())
    [said_so] = await group.say("/speeches", by="Anna")
    assert said_so.text == okun.t("private.sent")
    assert "1. 70" in okun.private("Anna").replies[-1].text
    [lead] = await group.say("/speeches", by="Vira")
    assert lead.text == okun.t("private.start", "ru")


async def test_speeches_are_exported(okun: Okun, chat: Room, coach: Coach) -> None:
    await coach.hear(chat, recording())
    await chat.say("/export")
    [speech] = json.loads(files(okun, chat)[-1])["speeches"]
    assert (speech["score"], speech["words"], speech["fillers"]) == (70, 32, 25.0) and "begin." in speech["transcript"]


# -- pictures


def wild(dice: random.Random, lang: str) -> bot.SpeechFigures:
    """A speech with everything that can be wrong with one."""
    at_s, words = 0.0, []
    fillers = LISTS[lang]["anywhere"]
    for number in range(dice.randrange(1, 900)):
        text = dice.choice(["слово", *fillers]) if dice.random() < 0.4 else "Щ" * dice.randrange(1, 30)
        end_s = at_s + dice.choice([0.0, 0.05, 0.2, 1.0, 6.0])
        words.append(SpokenWord(text + ("." if number % 7 == 0 else ""), at_s, end_s))
        at_s = end_s + dice.choice([0.0, 0.0, 0.5, 1.0, 3.0, 9.0])
    return bot.speech_figures(words, [], FILLERS[lang])


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_the_caption_fits_whatever_was_said(okun: Okun, lang: str) -> None:
    dice = random.Random(11)
    for _ in range(10):
        figures = wild(dice, lang)
        speech = attempt(title="Щ" * 48, duration_s=1199.0)
        caption = bot.report_caption(okun.app, lang, speech, figures)
        assert bot.utf16_len(caption) <= bot.MAX_CAPTION and not caption.endswith("……")
        lines = caption.splitlines()
        assert sum(line.startswith("−") for line in lines) == 4
        assert sum(line[:1] in "🟢🟡🔴" for line in lines if line) == 4


@pytest.fixture
def ruled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Ruler]]:
    """The canvases that pictures are drawn on in this test; they only measure."""
    made: list[Ruler] = []

    def canvas(width: int, height: int) -> Ruler:
        made.append(Ruler(width, height))
        return made[-1]

    monkeypatch.setattr(bot, "Canvas", canvas)
    yield made


def clashes(canvas: Ruler) -> list[tuple[str, str]]:
    """Words that leave the picture, or run into others on their line."""
    found = [(text, "") for text, left, right, y in canvas.written
             if left < 0 or right > canvas.width or not 20 < y < canvas.height]  # fmt: skip
    for number, (text, left, right, y) in enumerate(canvas.written):
        for other, start, end, line in canvas.written[number + 1 :]:
            if abs(y - line) < 20 and left < end and start < right:
                found.append((text, other))
    return found


@pytest.mark.parametrize("lang", bot.LANGS)
async def test_no_word_leaves_the_picture_of_a_report_or_runs_into_another(
    okun: Okun, ruled: list[Ruler], lang: str
) -> None:
    dice = random.Random(5)
    lengths = [5.0, 14.0, 29.0, 121.0, 899.0, 1200.0]
    for length in lengths:
        figures = bot.speech_figures(even(int(length * 2), 0.5), [], FILLERS[lang])
        bot.draw_speech(okun.app, lang, attempt(duration_s=length, title="Ще " * 16), figures)
    for _ in range(3):
        bot.draw_speech(okun.app, lang, attempt(duration_s=1200.0, title="Щ" * 48), wild(dice, lang))
    for canvas in ruled:
        assert clashes(canvas) == []
        for left, top, right, bottom in canvas.boxes:
            assert left >= -1 and right <= canvas.width + 1 and top >= 0 and bottom <= canvas.height
    assert len(ruled) == 9


@pytest.mark.parametrize("lang", bot.LANGS)
@pytest.mark.parametrize("count", [1, 8, 20])
async def test_no_word_leaves_the_picture_of_progress(okun: Okun, ruled: list[Ruler], lang: str, count: int) -> None:
    dice = random.Random(count)
    attempts = [
        attempt(score=dice.choice([0, 55, 100]), wpm=dice.choice([None, 0.0, 12345.6, 140.0]),
                fillers=dice.choice([0.0, 3.3, 100.0]), spoken_at=int(NOON) + number * 86_400)
        for number in range(count)
    ]  # fmt: skip
    bot.draw_progress(okun.app, lang, attempts)
    [canvas] = ruled
    inside = [(text, other) for text, other in clashes(canvas) if not other]
    assert inside == []


async def test_a_figure_stands_on_that_side_of_its_dot_where_no_line_is(okun: Okun, ruled: list[Ruler]) -> None:
    bot.draw_progress(okun.app, "en", [attempt(score=score) for score in (90, 49, 96, 4, 88)])
    lines = {text: line for text, _, _, line in ruled[0].written[:12]}
    y = {score: 184 + 356 - score / 100 * 244 for score in (90, 49, 96, 4)}
    assert lines["49"] > y[49] and lines["90"] < y[90] and lines["96"] < y[96]
    assert lines["4"] < y[4]  # below there is no room


async def test_the_pictures_are_pictures(okun: Okun) -> None:
    transcript = recording()
    report = bot.make_report(okun.app, "uk", "u", "Промова", transcript)
    assert isinstance(report.picture, bytes)
    for data in (report.picture, bot.draw_progress(okun.app, "ru", [attempt(), attempt(score=50)])):
        image = Image.open(io.BytesIO(data))
        image.load()
        assert image.width == bot.PICTURE_WIDTH and len(data) < 200_000 and len(image.getcolors(256) or ()) > 20


async def test_what_is_small_keeps_its_colour(okun: Okun) -> None:
    picture = bot.make_report(okun.app, "en", "u", "t", recording(times=3)).picture
    assert isinstance(picture, bytes)
    shown = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(256) or ()
    colours = [colour for _, colour in shown if isinstance(colour, tuple)]
    for wanted in (*bot.PAUSE_COLOURS.values(), bot.FILLER_COLOUR):
        red, green, blue = bytes.fromhex(wanted[1:])
        nearest = min(max(abs(r - red), abs(g - green), abs(b - blue)) for r, g, b in colours)
        assert nearest < 8, wanted


async def test_pauses_fillers_and_pace_change_the_picture(okun: Okun) -> None:
    said = [recording(), recording("So we we begin. "), recording(times=9), recording("So um we begin to go. "),
            recording()._replace(words=recording().words[4:])]  # fmt: skip
    pictures = {bot.make_report(okun.app, "en", "u", "t", one._replace(duration_s=30.0)).picture for one in said}
    assert len(pictures) == len(said)
