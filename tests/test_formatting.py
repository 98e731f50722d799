"""A model's Markdown becomes text with entities, in parts that Telegram takes."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fakes import Chat, FakeTelegram

import bot

FISH = "🐟"


def marked(piece: bot.Piece) -> list[tuple[str, str]]:
    """(type, the text it covers) of each entity, by Telegram's way of counting."""
    units = piece.text.encode("utf-16-le")
    return [
        (e["type"], units[2 * e["offset"] : 2 * (e["offset"] + e["length"])].decode("utf-16-le"))
        for e in piece.entities
    ]


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


@pytest.fixture
def telegram() -> FakeTelegram:
    return FakeTelegram()


@pytest.fixture
def chat(telegram: FakeTelegram) -> Chat:
    return telegram.private(telegram.user(7, "Anna"))


def send(telegram: FakeTelegram, piece: bot.Piece) -> Any:
    """The message as Telegram stored it; fails where Telegram refuses it."""
    params: Any = {"chat_id": 7, "text": piece.text} | ({"entities": list(piece.entities)} if piece.entities else {})
    answer = telegram.call("sendMessage", params)
    assert answer["ok"], (answer["description"], piece)
    assert telegram.unknown == []
    return answer["result"]


# -- render


@pytest.mark.parametrize(
    ("markdown", "text", "entities"),
    [
        ("plain", "plain", []),
        ("**bold** end", "bold end", [("bold", "bold")]),
        ("*italic* and _italic_", "italic and italic", [("italic", "italic"), ("italic", "italic")]),
        ("~~gone~~", "gone", [("strikethrough", "gone")]),
        ("||hidden||", "hidden", [("spoiler", "hidden")]),
        ("`code`", "code", [("code", "code")]),
        ("[site](https://example.com/a)", "site", [("text_link", "site")]),
        ("> quoted", "quoted", [("blockquote", "quoted")]),
        (f"{FISH} **жирний {FISH} текст** `код`", f"{FISH} жирний {FISH} текст код",
         [("bold", f"жирний {FISH} текст"), ("code", "код")]),
        (f"👨‍👩‍👧 **ї{FISH}** 🇺🇦 *є*", f"👨‍👩‍👧 ї{FISH} 🇺🇦 є", [("bold", f"ї{FISH}"), ("italic", "є")]),
        ("**bold _both `code` both_**", "bold both code both",
         [("bold", "bold both code both"), ("italic", "both code both"), ("code", "code")]),
        ("```python\nprint(1)\n```", "print(1)", [("pre", "print(1)")]),
        ("```\n  if a:\n    b\n```", "  if a:\n    b", [("pre", "  if a:\n    b")]),
        ("- one\n- two", "• one\n• two", []),
        ("1. one\n2. two", "1. one\n2. two", []),
    ],
)  # fmt: skip
def test_markdown_becomes_entities(markdown: str, text: str, entities: list[tuple[str, str]]) -> None:
    piece = bot.render(markdown)
    assert piece.text == text
    assert [(kind, covered.rstrip("\n")) for kind, covered in marked(piece)] == entities


@pytest.mark.parametrize(
    "text",
    [
        "List<int> and Map<String, List<T>>",
        "if a < b and c > d: pass",
        "<b>not bold</b> <script>alert(1)</script>",
        "<unknown-tag attr='1'/>",
        "5 < 6 & 7 > 3",
        "price $5 and $6",
        "2 * 3 * 4 = 24",
        "snake_case_name",
        "C:\\new\\table",
        "a # b",
        "100 % ~ok~ish",
        "f(x) = {x | x > 0}",
        "(c) 2026 … «лапки» – тире",
    ],
)
def test_what_is_no_markdown_stays_as_it_was_written(text: str) -> None:
    assert bot.render(text) == bot.Piece(text)


@pytest.mark.parametrize("code", ["List<int>", "a < b > c", "<b>html</b>", "*x* _y_ ~~z~~", "a && b || c", "$x^2$"])
def test_code_stays_as_it_was_written(code: str) -> None:
    for markdown in (f"`{code}`", f"```\n{code}\n```", f"text\n\n```c++\n{code}\n```\n\n**more**"):
        assert code in [covered.rstrip("\n") for _, covered in marked(bot.render(markdown))]


def test_the_language_of_a_code_block_is_kept() -> None:
    [entity] = bot.render("```rust\nfn main() {}\n```").entities
    assert entity["language"] == "rust"


def test_a_table_is_set_in_columns() -> None:
    piece = bot.render("| Риба | Вага |\n|---|---:|\n| окунь | 1 |\n| щука | 12 |")
    assert [kind for kind, _ in marked(piece)] == ["pre"]
    lines = piece.text.splitlines()
    assert [line.index(sign) for line, sign in zip(lines, "|+||", strict=True)] == [6] * 4
    assert lines[2].startswith("окунь")


def test_a_heading_stands_out_and_has_no_signs() -> None:
    piece = bot.render("# Заголовок\n\nтекст")
    assert piece.text == "Заголовок\n\nтекст"
    assert {kind for kind, _ in marked(piece)} >= {"bold"}


@pytest.mark.parametrize("markdown", ["$$x^2 + y^2$$", "\\(\\alpha\\)", "\\[\\frac{a}{b}\\]", "Отже, $E = mc^2$."])
def test_formulas_become_something_readable(telegram: FakeTelegram, chat: Chat, markdown: str) -> None:
    text = send(telegram, bot.render(markdown))["text"]
    assert "\\frac" not in text and "$$" not in text and "\\(" not in text


@pytest.mark.parametrize(
    ("markdown", "text", "url"),
    [
        ("[a](http://example.com/x?a<b)", "a", "http://example.com/x?a<b"),
        ("[a](https://пошта.укр/шлях)", "a", "https://пошта.укр/шлях"),
        ("<https://example.com/b>", "https://example.com/b", "https://example.com/b"),
        ("[you](tg://user?id=5)", "you", "tg://user?id=5"),
    ],
)
def test_a_link_keeps_its_address(telegram: FakeTelegram, chat: Chat, markdown: str, text: str, url: str) -> None:
    piece = bot.render(markdown)
    assert piece.text == text
    assert [entity.get("url") for entity in piece.entities] == [url]


@pytest.mark.parametrize(
    "address", ["#part", "notes.md", "/relative", "mailto:a@b.c", "javascript:alert(1)", "file:///x"]
)
def test_a_link_that_telegram_refuses_costs_only_itself(telegram: FakeTelegram, chat: Chat, address: str) -> None:
    sent = send(telegram, bot.render(f"**bold** [label]({address}) ![picture]({address})"))
    assert "label" in sent["text"]
    assert [entity["type"] for entity in sent["entities"] if entity["type"] != "email"] == ["bold"]


@pytest.mark.parametrize("text", ["", " ", "\n\n", "\t \n", "** **", "```\n```", "`", "***", "[](http://a.b)"])
def test_nothing_to_say_is_no_message_or_one_that_telegram_takes(telegram: FakeTelegram, chat: Chat, text: str) -> None:
    for part in bot.split(bot.render(text)):
        send(telegram, part)
    if not text.strip():
        assert bot.split(bot.render(text)) == []


def test_white_space_around_a_text_goes_and_entities_move_along() -> None:
    piece = bot.render("\n\n**bold**\n\n")
    assert piece.text == "bold" and marked(piece) == [("bold", "bold")]


# -- units


@pytest.mark.parametrize(
    ("text", "length"), [("", 0), ("abc", 3), ("їжак", 4), (FISH, 2), ("👨‍👩‍👧", 8), ("\ud83d", 1)]
)
def test_lengths_are_in_utf16_units(text: str, length: int) -> None:
    assert bot.utf16_len(text) == length
    assert len(bot.to_units(text)) == length


@pytest.mark.parametrize("text", ["abc", "їжак", f"a{FISH}б{FISH}", "👨‍👩‍👧"])
def test_units_and_back_is_the_same(text: str) -> None:
    assert bot.from_units(bot.to_units(text)) == text


# -- split


def parts_of(markdown: str, **limits: int) -> list[bot.Piece]:
    return bot.split(bot.render(markdown), **limits)


def test_a_short_text_is_one_part() -> None:
    piece = bot.render("**short**")
    assert bot.split(piece) == [piece]


@pytest.mark.parametrize("length", [4096, 4097])
@pytest.mark.parametrize("letter", ["a", "ї"])
def test_the_limit_itself_still_fits(length: int, letter: str) -> None:
    parts = bot.split(bot.Piece(letter * length))
    assert [len(part.text) for part in parts] == ([4096] if length == 4096 else [4096, 1])


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("one two.\n\nthree four", ["one two.", "three four"]),  # a paragraph before a line
        ("one two\nthree four fi", ["one two", "three four fi"]),  # a line before a word
        ("one two three four", ["one two three", "four"]),
        ("one\n\ntwo three four five", ["one\n\ntwo three", "four five"]),  # too early a paragraph would be a tiny part
        ("abcdefghijklmnopqrst", ["abcdefghijklmno", "pqrst"]),
    ],
)
def test_it_is_cut_at_a_paragraph_then_a_line_then_a_word(text: str, parts: list[str]) -> None:
    assert [part.text for part in bot.split(bot.Piece(text), 15)] == parts


@pytest.mark.parametrize("lead", range(4))
def test_a_cut_is_never_inside_a_surrogate_pair(lead: int) -> None:
    text = "a" * lead + FISH * 5000
    parts = bot.split(bot.Piece(text))
    assert "".join(part.text for part in parts) == text
    assert all(bot.utf16_len(part.text) <= 4096 and "\ufffd" not in part.text for part in parts)


def test_an_entity_over_a_cut_goes_on_in_the_next_part() -> None:
    parts = parts_of("**" + "word " * 1500 + "end**")
    assert len(parts) == 2
    assert [marked(part) for part in parts] == [[("bold", part.text)] for part in parts]


def test_a_code_block_over_a_cut_is_closed_and_opened_again_with_its_language() -> None:
    code = "\n".join(f"    print({n})  # {FISH}" for n in range(600))
    parts = parts_of(f"Look:\n\n```python\n{code}\n```\n\nThat is **all**.")
    blocks = [e for part in parts for e in part.entities if e["type"] == "pre"]
    assert len(parts) > 2 and len(blocks) == len(parts)
    assert {block["language"] for block in blocks} == {"python"}
    lines = [line for part in parts for kind, text in marked(part) if kind == "pre" for line in text.splitlines()]
    assert [line for line in lines if line.strip()] == code.splitlines()


def test_nested_entities_are_cut_together() -> None:
    parts = parts_of("**bold " + "_both " + "word " * 1000 + "both_ bold**")
    assert len(parts) == 2
    for part in parts:
        assert {kind for kind, _ in marked(part)} == {"bold", "italic"}


@pytest.mark.parametrize("count", [100, 101, 250, 1000])
def test_no_part_has_more_than_a_hundred_entities(telegram: FakeTelegram, chat: Chat, count: int) -> None:
    parts = parts_of(" ".join(f"**{n}**" for n in range(count)))
    assert len(parts) == -(-count // 100)
    assert [covered for part in parts for _, covered in marked(part)] == [str(n) for n in range(count)]
    for part in parts:
        send(telegram, part)


def test_entities_over_everything_count_in_every_part() -> None:
    parts = parts_of("> " + " ".join(f"**{n}**" for n in range(300)))
    assert all(len(part.entities) <= 100 for part in parts)
    assert [covered for part in parts for kind, covered in marked(part) if kind == "bold"] == [
        str(n) for n in range(300)
    ]


def test_only_white_space_is_no_part() -> None:
    assert bot.split(bot.Piece(" " * 9000)) == []
    assert [part.text for part in bot.split(bot.Piece("a" + "\n" * 9000 + "b"))] == ["a", "b"]


def essay(dice: random.Random, length: int) -> str:
    """A long answer with everything in it."""
    words = ["окунь", "river", "їжак", FISH, "**bold**", "`x < y`", "*italic*", "[link](https://e.org/a)", "2 * 3",
             "\n\n", "\n", "List<int>", "👨‍👩‍👧", "~~no~~",
             "\n\n```python\nfor i in x:\n    pass\n```\n\n"]  # fmt: skip
    text = ""
    while len(text) < length:
        text += dice.choice(words) + " "
    return text


def test_twenty_thousand_characters_arrive_whole(telegram: FakeTelegram, chat: Chat) -> None:
    piece = bot.render(essay(random.Random(1), 20_000))
    parts = bot.split(piece)
    assert len(parts) > 3
    for part in parts:
        send(telegram, part)
    assert squeezed("".join(message["text"] for message in telegram.sent(chat))) == squeezed(piece.text)
    kinds = [kind for kind, _ in marked(piece)]
    assert {kind: kinds.count(kind) for kind in ("bold", "code", "italic")} == {
        kind: sum(entity["type"] == kind for part in parts for entity in part.entities)
        for kind in ("bold", "code", "italic")
    }


SCRAPS = [*"*_`~#>|[]()<&$\\!-+=.:", " ", "  ", "\n", "\n\n", "\n    ", "```", "```py\n", "**", "||", "> ", "1. ", "- ",
          "a", "слово", "їЇ", FISH, "👨‍👩‍👧", "🇺🇦", "é", "&lt;", "&#0;", "http://a.bc/d", "[x](http://a.bc)", "[y](z)",
          "| a | b |\n|---|---|\n| 1 | 2 |\n", "\u2028", "\u00a0", "\u200b", "\ue000", "@name", "/command", "$$x$$",
          "\\(", "\\)", "<b>", "</b>", "<https://a.bc>", "![i](http://a.bc/i.png)"]  # fmt: skip


def scrap(seed: int) -> str:
    dice = random.Random(seed)
    return "".join(dice.choice(SCRAPS) for _ in range(dice.choice([5, 30, 200])))


def seeds(block: int) -> Iterator[int]:
    return iter(range(block * 60, block * 60 + 60))


@pytest.mark.parametrize("block", range(5))
def test_whatever_a_model_writes_telegram_takes_every_part(telegram: FakeTelegram, chat: Chat, block: int) -> None:
    for seed in seeds(block):
        piece = bot.render(scrap(seed))
        parts = bot.split(piece, 60, 5)
        assert squeezed("".join(part.text for part in parts)) == squeezed(piece.text), seed
        for part in parts:
            assert bot.utf16_len(part.text) <= 60 and len(part.entities) <= 5, seed
            units = part.text.encode("utf-16-le")  # fails on half a pair
            for entity in part.entities:
                assert 0 <= entity["offset"] < entity["offset"] + entity["length"] <= len(units) // 2, seed
            if part.text.strip("\u200b"):
                send(telegram, part)


@pytest.mark.parametrize("block", range(3))
def test_a_part_marks_the_same_words_as_the_whole(block: int) -> None:
    for seed in seeds(block):
        piece = bot.render(scrap(seed))
        whole, again = "", ""
        for kind in ("bold", "italic", "code", "pre", "text_link"):
            whole += squeezed("".join(text for found, text in marked(piece) if found == kind))
            again += squeezed(
                "".join(text for part in bot.split(piece, 60) for found, text in marked(part) if found == kind)
            )
        assert sorted(again) == sorted(whole), seed


# -- excerpts, rich messages


@pytest.mark.parametrize(
    ("text", "most", "line"),
    [("short", 10, "short"), ("two\n lines", 20, "two lines"), ("0123456789", 10, "0123456789"),
     ("0123456789x", 10, "012345678…"), ("two words here", 10, "two words…"), ("", 10, "")],
)  # fmt: skip
def test_an_excerpt_is_one_line(text: str, most: int, line: str) -> None:
    assert bot.excerpt(text, most) == line


@pytest.mark.parametrize(
    ("text", "rich"),
    [
        ("| a | b |\n|---|---|\n| 1 | 2 |", True),
        ("before\n\n## Heading\n\nafter", True),
        ("$$x^2$$", True),
        ("\\[x\\]", True),
        ("**bold** and a | b", False),
        ("#hashtag", False),
        ("costs $5", False),
    ],
)
def test_tables_headings_and_formulas_are_rich(text: str, rich: bool) -> None:
    assert bool(bot.RICH.search(text)) == rich
