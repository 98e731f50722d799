-- The truth about a fresh database, in bot.py's order. Times are epoch seconds. SQLite 3.40.

-- == Store ==

-- A name and its value: last_update_id and the like. Nobody deletes them.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- == LLM ==

-- A call to a language model, with what it cost. The hourly cleanup deletes those older than 90 days.
CREATE TABLE llm_calls (
    id            INTEGER PRIMARY KEY,
    called_at     INTEGER NOT NULL,
    provider      TEXT    NOT NULL,
    model         TEXT    NOT NULL,
    capability    TEXT    NOT NULL,
    outcome       TEXT    NOT NULL,            -- ok, cancelled, or a row of REMEDIES
    took_ms       INTEGER NOT NULL,
    input_tokens  INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0,
    thought_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    chat_id       INTEGER NOT NULL DEFAULT 0,
    user_id       INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX llm_calls__by_time ON llm_calls (called_at);  -- usage_clean

-- == Memory ==

-- Somebody who spoke where the bot hears: a user, or a channel or group that speaks as itself (id below 0).
-- Deleted when the person is forgotten.
CREATE TABLE users (
    user_id       INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    username      TEXT,
    language_code TEXT,                        -- Telegram's, as last seen
    lang          TEXT CHECK (lang IN ('uk', 'ru', 'en')),  -- chosen with /lang
    started_at    INTEGER                      -- NULL: never wrote in private, so the bot cannot either
) STRICT;

-- A chat the bot is or was in, and what was set there (NULL: as the settings say). Never deleted by itself.
CREATE TABLE chats (
    chat_id     INTEGER PRIMARY KEY,
    kind        TEXT    NOT NULL CHECK (kind IN ('private', 'group', 'supergroup', 'channel')),
    title       TEXT    NOT NULL,
    policy      TEXT CHECK (policy IN ('always', 'smart', 'mention', 'never')),
    lang        TEXT CHECK (lang IN ('uk', 'ru', 'en')),
    rich        INTEGER CHECK (rich IN (0, 1)),
    quiet_until INTEGER NOT NULL DEFAULT 0,
    told_no_key INTEGER NOT NULL DEFAULT 0 CHECK (told_no_key IN (0, 1)),
    gone_at     INTEGER                        -- blocked, kicked or left at
) STRICT;

-- A topic that was reset: messages up to this id are no context any more. Goes with its chat.
CREATE TABLE resets (
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id  INTEGER NOT NULL,
    message_row INTEGER NOT NULL,
    PRIMARY KEY (chat_id, thread_id)
) STRICT, WITHOUT ROWID;

-- A message seen or sent, whole, however Telegram split it. Goes with its chat or its speaker.
CREATE TABLE messages (
    id         INTEGER PRIMARY KEY,
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    message_id INTEGER,                        -- NULL: sent, but Telegram's answer was lost
    thread_id  INTEGER NOT NULL,               -- 0: no topic
    user_id    INTEGER REFERENCES users (user_id) ON DELETE CASCADE,  -- NULL: the bot
    sent_at    INTEGER NOT NULL,
    kind       TEXT    NOT NULL,               -- text, photo, voice …; command and notice are no talk
    text       TEXT    NOT NULL,
    media      TEXT,                           -- JSON: what the files are, by Telegram's ids
    album      TEXT,
    origin     TEXT,                           -- whom it was forwarded from
    reply_to   INTEGER,
    edited_at  INTEGER,
    sentiment  REAL    NOT NULL DEFAULT 0 CHECK (sentiment BETWEEN -1 AND 1),
    model_turn TEXT                            -- JSON: the model's own parts, to be echoed to it
) STRICT;
CREATE UNIQUE INDEX messages__by_message ON messages (chat_id, message_id);  -- memory_window, of replies
CREATE INDEX messages__newest_in_topic ON messages (chat_id, thread_id, id);  -- memory_window
CREATE INDEX messages__in_album ON messages (album) WHERE album IS NOT NULL;  -- memory_album
CREATE INDEX messages__of_speaker ON messages (user_id) WHERE user_id IS NOT NULL;  -- forgetting a person

-- == Companion ==

-- A message the bot sent unasked; what the caps count. The hourly cleanup deletes those older than two days.
CREATE TABLE unprompted (
    chat_id   INTEGER NOT NULL,
    spoken_at INTEGER NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('reply', 'spontaneous')),
    PRIMARY KEY (chat_id, spoken_at)
) STRICT, WITHOUT ROWID;

-- == Inbox ==

-- An update taken from Telegram and not yet dealt with; deleted in the commit that stores the answer.
CREATE TABLE inbox (
    update_id   INTEGER PRIMARY KEY,
    raw         TEXT    NOT NULL,              -- the update, JSON
    unprompted  INTEGER NOT NULL DEFAULT 0,    -- 1: talk that nobody addressed to the bot
    attempts    INTEGER NOT NULL DEFAULT 0,
    parked_at   INTEGER,                       -- given up after the third failure; kept a week for the owner
    reply       TEXT,                          -- JSON: an answer that is ready, and how many parts of it are sent
    received_at INTEGER NOT NULL
) STRICT;

-- An update that was taken; a redelivery of it is not handled twice. Deleted after 48 hours.
CREATE TABLE inbox_seen (
    update_id INTEGER PRIMARY KEY,
    seen_at   INTEGER NOT NULL
) STRICT;

PRAGMA user_version = 1;
