"""What must be true of the file as a whole: its order, its SQL, its names, the form of the project."""

from __future__ import annotations

import ast
import contextlib
import itertools
import os
import re
import sqlite3
import subprocess
import symtable
import sys
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

import bot

HERE = bot.HERE
SOURCE = (HERE / "bot.py").read_text("utf-8")
TREE = ast.parse(SOURCE)
FORM = [
    "bot.py",
    "schema.sql",
    "requirements.txt",
    ".env.example",
    "README.md",
    "LICENSE",
    "pyproject.toml",
    ".gitignore",
    ".ci/run",
    "locales/en.toml",
    "locales/uk.toml",
    "locales/ru.toml",
    "tests/*.py",
    "tests/e2e/*.py",
    "tests/schemas/v*.sql",
    "tests/recall/*.toml",
    "tests/mood/*.toml",
]

# -- sections

SECTIONS = [(line.split()[2], n) for n, line in enumerate(SOURCE.splitlines(), 1) if line.startswith("# == ")]


def section_of(line: int) -> int:
    """The number of the section a line stands in; 0 is what precedes the first."""
    return sum(start <= line for _, start in SECTIONS)


def title(number: int) -> str:
    return SECTIONS[number - 1][0] if number else "the imports"


def definitions() -> dict[str, int]:
    """Names of the module -> the line that first gives them a meaning."""
    found: dict[str, int] = {}
    for node in TREE.body:
        for name in names_made(node):
            found.setdefault(name, node.lineno)
    return found


def names_made(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            yield inner.name
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
        elif isinstance(inner, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name.partition(".")[0] for alias in inner.names)


def references() -> Iterator[tuple[str, int]]:
    """(name, line) of what each function and class takes from the module."""
    waiting = symtable.symtable(SOURCE, "bot.py", "exec").get_children()
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        for symbol in table.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                yield symbol.get_name(), table.get_lineno()
    for node in TREE.body:  # what is run while the module is read
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
                    yield inner.id, inner.lineno


def test_a_section_uses_only_what_stands_above_it() -> None:
    made = definitions()
    down = {
        f"{title(section_of(line))} (line {line}) uses {name} of {title(section_of(made[name]))}"
        for name, line in references()
        if name in made and section_of(made[name]) > section_of(line)
    }
    assert down == set()


def test_the_docstring_names_the_sections_in_their_order() -> None:
    found = re.search(r"Sections[^:]*:\n(.*?)\.\n", ast.get_docstring(TREE) or "", re.DOTALL)
    assert found and [name.strip() for name in re.split(r",\s*", found[1])] == [name for name, _ in SECTIONS]


def test_each_section_opens_with_a_promise() -> None:
    lines = SOURCE.splitlines()
    for name, start in SECTIONS:
        assert re.fullmatch(r"# == \w+ =+", lines[start - 1]) and len(lines[start - 1]) == 119, name
        promise = 0
        while lines[start + promise].startswith("# "):
            promise += 1
        assert 1 <= promise <= 6, name


def test_the_blocks_of_a_feature_stand_in_their_order() -> None:
    usual, inbox = ["rules", "queries", "actions", "handlers"], ["rules", "queries", "handlers", "actions"]
    blocks = [(section_of(n), line[5:]) for n, line in enumerate(SOURCE.splitlines(), 1) if line.startswith("# -- ")]
    assert {name for _, name in blocks} <= set(usual)
    for (before, one), (after, two) in itertools.pairwise(blocks):
        order = inbox if title(after) == "Inbox" else usual  # the inbox itself calls what handles events
        assert before < after or order.index(one) < order.index(two), (title(after), one, two)


# -- SQL

VERB = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|REPLACE)\b")
# read by no query of ours: what they are for
NO_QUERY = {
    "chats__in_temper": "its foreign key: a temper that is deleted is looked for in all chats",
}


def statements() -> list[tuple[str, int]]:
    """(SQL, line) of every literal that is a statement."""
    return [
        (node.value, node.lineno)
        for node in ast.walk(TREE)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and VERB.match(node.value)
    ]


@pytest.fixture(scope="module")
def database() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:")
    connection.executescript((HERE / "schema.sql").read_text("utf-8"))
    yield connection
    connection.close()


def explain(database: sqlite3.Connection, sql: str, how: str = "EXPLAIN") -> list[tuple[object, ...]]:
    places = re.sub(r"'[^']*'", "", sql).count("?")
    return database.execute(f"{how} {sql}", [1] * places).fetchall()


@pytest.mark.parametrize(("sql", "line"), [pytest.param(sql, line, id=f"line {line}") for sql, line in statements()])
def test_every_statement_compiles(database: sqlite3.Connection, sql: str, line: int) -> None:
    explain(database, sql)


def test_no_statement_is_put_together() -> None:
    for node in ast.walk(TREE):
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
            assert not VERB.match(text), ast.unparse(node)


def test_there_are_statements() -> None:
    assert len(statements()) > 30


def test_every_index_is_chosen_by_some_query(database: sqlite3.Connection) -> None:
    plans = " ".join(str(row[3]) for sql, _ in statements() for row in explain(database, sql, "EXPLAIN QUERY PLAN"))
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL").fetchall()
    chosen = {name for (name,) in rows if re.search(rf"\b{name}\b", plans)}
    assert {name for (name,) in rows} - chosen == NO_QUERY.keys()


def test_no_query_on_messages_reads_them_all(database: sqlite3.Connection) -> None:
    for sql, line in statements():
        for row in explain(database, sql, "EXPLAIN QUERY PLAN"):
            assert not re.match(r"SCAN (messages|m)\b(?!.*USING.*INDEX)", str(row[3])), (line, row[3])


def test_every_foreign_key_that_cascades_is_indexed(database: sqlite3.Connection) -> None:
    for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        for key in database.execute(f"PRAGMA foreign_key_list({table})").fetchall():
            [plan] = database.execute(f"EXPLAIN QUERY PLAN SELECT 1 FROM {table} WHERE {key[3]} = 1").fetchall()
            assert plan[3].startswith("SEARCH"), (table, key[3])


def test_every_table_is_strict(database: sqlite3.Connection) -> None:
    tables = database.execute("PRAGMA table_list").fetchall()
    loose = [row[1] for row in tables if row[0] == "main" and row[2] == "table" and not row[5]]
    assert [name for name in loose if not name.startswith("sqlite_")] == []


def test_every_table_and_column_is_used() -> None:
    schema = (HERE / "schema.sql").read_text("utf-8")
    code = "\n".join(sql for sql, _ in statements())
    for table in re.findall(r"^CREATE TABLE (\w+)", schema, re.MULTILINE):
        assert re.search(rf"\b(INTO|FROM|UPDATE|JOIN) {table}\b", code), table
    for column in re.findall(r"^    (\w+)\s+(?:INTEGER|TEXT|REAL|BLOB)\b", schema, re.MULTILINE):
        assert re.search(rf"\b{column}\b", code), column


def test_each_table_says_what_a_row_is(database: sqlite3.Connection) -> None:
    schema = (HERE / "schema.sql").read_text("utf-8")
    for before in re.findall(r"^(.*)\nCREATE (?:VIRTUAL )?TABLE", schema, re.MULTILINE):
        assert before.startswith("-- ")


def test_each_index_names_its_reader() -> None:
    schema = (HERE / "schema.sql").read_text("utf-8")
    for name, reader in re.findall(r"^CREATE (?:UNIQUE )?INDEX (\w+).*?;\s*(?:-- (\w+))?", schema, re.MULTILINE):
        assert reader in definitions() or name in NO_QUERY, name


def test_the_schema_says_its_version() -> None:
    last = (HERE / "schema.sql").read_text("utf-8").strip().splitlines()[-1]
    assert last == f"PRAGMA user_version = {bot.SCHEMA_VERSION};"


# -- transactions

FUNCTIONS = [node for node in ast.walk(TREE) if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)]


def own_query(node: ast.Await) -> bool:
    """`await tx.run(…)`, or `await some_query(tx, …)`."""
    call = node.value
    if not isinstance(call, ast.Call):
        return False
    if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name) and call.func.value.id == "tx":
        return True
    return bool(call.args) and isinstance(call.args[0], ast.Name) and call.args[0].id == "tx"


def transactions() -> list[ast.AsyncWith]:
    return [
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.AsyncWith)
        and any(re.search(r"(db\.tx|\bmoney)\(.*\)$", ast.unparse(i.context_expr)) for i in node.items)
    ]


def test_a_transaction_awaits_nothing_but_its_own_queries() -> None:
    assert len(transactions()) > 5
    for block in transactions():
        assert [ast.unparse(item.optional_vars) for item in block.items if item.optional_vars] == ["tx"]
        for statement in block.body:
            for node in ast.walk(statement):
                assert not isinstance(node, ast.AsyncWith | ast.AsyncFor), ast.unparse(node)
                assert not isinstance(node, ast.Await) or own_query(node), ast.unparse(node)


def test_a_query_in_a_transaction_awaits_nothing_but_its_own() -> None:
    for function in FUNCTIONS:
        if any(argument.arg == "tx" for argument in function.args.args):
            for node in ast.walk(function):
                assert not isinstance(node, ast.Await) or own_query(node), (function.name, ast.unparse(node))


# -- names, functions


def decorated(function: ast.FunctionDef | ast.AsyncFunctionDef, *names: str) -> bool:
    return any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in names
        for one in function.decorator_list
    )


def test_handlers_are_named_as_such() -> None:
    handlers = [function for function in FUNCTIONS if decorated(function, "command", "button")]
    assert len(handlers) > 8
    assert [handler.name for handler in handlers if not handler.name.startswith("on_")] == []


@pytest.mark.parametrize(
    ("decorator", "parameters"),
    [("command", ["app", "who", "args"]), ("button", ["app", "who", "press", "data"]), ("cleanup", ["app"]),
     ("loop", ["app"])],
)  # fmt: skip
def test_what_is_registered_takes_what_it_is_given(decorator: str, parameters: list[str]) -> None:
    found = [function for function in FUNCTIONS if decorated(function, decorator)]
    assert found
    for function in found:
        assert isinstance(function, ast.AsyncFunctionDef)
        assert [argument.arg for argument in function.args.args] == parameters, function.name


def test_callback_data_is_versioned_and_says_who_may_press() -> None:
    assert bot.BUTTONS
    for prefix, (data, _) in bot.BUTTONS.items():
        assert re.fullmatch(r"[a-z]{1,3}\d", prefix)
        assert next(iter(data.model_fields)) == "owner"


def test_nothing_is_global() -> None:
    assert not [node for node in ast.walk(TREE) if isinstance(node, ast.Global)]


def test_nothing_is_caught_silently() -> None:
    for node in ast.walk(TREE):
        if isinstance(node, ast.ExceptHandler):
            kind = ast.unparse(node.type) if node.type else "everything"
            assert kind != "everything"
            if kind in ("Exception", "BaseException"):
                text = ast.unparse(node)
                assert re.search(r"\braise\b|log\.|settle|_failed|append\(error\)", text), text


def test_functions_are_short() -> None:
    lengths = sorted((node.end_lineno or 0) - node.lineno + 1 for node in FUNCTIONS)
    assert lengths[len(lengths) // 2] <= 10
    assert sum(length <= 30 for length in lengths) >= 0.95 * len(lengths)
    assert lengths[-1] <= 60


def test_every_function_says_what_it_takes_and_gives() -> None:
    for function in FUNCTIONS:
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        bare = [a.arg for a in arguments if a.annotation is None and a.arg not in ("self", "cls")]
        assert not bare and function.returns is not None, function.name


def test_no_name_is_defined_twice() -> None:
    names = [node.name for node in TREE.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert sorted(names) == sorted(set(names))


def test_nothing_is_left_unused() -> None:
    words = Counter(re.findall(r"\w+", re.sub(r"^# .*$", "", SOURCE, flags=re.MULTILINE)))
    registered = {function.name for function in FUNCTIONS if function.decorator_list}
    unused = {name for name in definitions() if words[name] == 1 and name not in registered}
    assert unused - {"annotations"} == set()


# -- importing


def test_importing_starts_nothing(tmp_path: Path) -> None:
    script = """
import logging, os, signal, sys, threading
handlers = logging.getLogger().handlers[:], signal.getsignal(signal.SIGTERM)
import bot
assert threading.active_count() == 1, threading.enumerate()
assert (logging.getLogger().handlers, signal.getsignal(signal.SIGTERM)) == handlers
assert os.listdir(".") == []
heavy = {"PIL", "telegramify_markdown", "pythonjsonlogger", "aiohttp_socks", "uvloop", "aiohttp.web"} & set(sys.modules)
print(*sorted(heavy - {"aiohttp.web"}))
"""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", "")


def test_reading_the_module_only_defines() -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign,
               ast.AnnAssign, ast.If, ast.Try)  # fmt: skip
    first, *rest = TREE.body
    assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    for node in rest:
        assert isinstance(node, allowed), ast.unparse(node)


# -- the project


def test_there_are_only_files_of_the_form() -> None:
    if (HERE / ".git").exists():
        listed = subprocess.check_output(["git", "ls-files"], cwd=HERE, text=True).split()
    else:  # an unpacked copy
        listed = [str(path.relative_to(HERE)) for path in HERE.glob("*.py")]
    assert [name for name in listed if not any(fnmatchcase(name, pattern) for pattern in FORM)] == []


def test_lines_of_the_schema_are_not_too_long() -> None:
    lines = (HERE / "schema.sql").read_text("utf-8").splitlines()
    assert [n for n, line in enumerate(lines, 1) if len(line) > 120] == []


def test_a_new_database_takes_the_schema_as_it_stands() -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript((HERE / "schema.sql").read_text("utf-8"))
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_readme_names_every_command() -> None:
    told = set(re.findall(r"`/([a-z]+)`", (bot.HERE / "README.md").read_text("utf-8").partition("## Commands")[2]))
    assert set(bot.COMMANDS) <= told
