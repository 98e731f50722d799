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
CREATE INDEX llm_calls__of_person ON llm_calls (user_id, called_at);  -- load_profile

-- What a model cost on a day (of TIMEZONE, as 2026-11-21), all its calls together. The hourly cleanup deletes those
-- older than 400 days.
CREATE TABLE costs (
    day            TEXT    NOT NULL,
    provider       TEXT    NOT NULL,
    model          TEXT    NOT NULL,
    capability     TEXT    NOT NULL,
    calls          INTEGER NOT NULL,
    failed         INTEGER NOT NULL,           -- of the calls
    unpriced       INTEGER NOT NULL,           -- of the calls: answered, but the table has no price for the model
    input_tokens   INTEGER NOT NULL,
    output_tokens  INTEGER NOT NULL,
    thought_tokens INTEGER NOT NULL,
    cached_tokens  INTEGER NOT NULL,
    micro_usd      INTEGER NOT NULL,           -- millionths of a dollar
    PRIMARY KEY (day, provider, model, capability)
) STRICT, WITHOUT ROWID;

-- == Limits ==

-- A user or a chat that an owner banned, or allowed beyond ALLOWED_USERS and ALLOWED_CHATS. Deleted when an owner takes
-- it back; stays when the person is forgotten, without a word of theirs.
CREATE TABLE access (
    id         INTEGER PRIMARY KEY,            -- of the user; of a group, below 0
    verdict    TEXT    NOT NULL CHECK (verdict IN ('banned', 'allowed')),
    decided_at INTEGER NOT NULL
) STRICT;

-- How much of what is counted by the day a person has used. Deleted two days later: neither a restart nor being
-- forgotten is a way to get more.
CREATE TABLE quotas (
    user_id INTEGER NOT NULL,
    name    TEXT    NOT NULL,
    day     TEXT    NOT NULL,                  -- of TIMEZONE, as 2026-11-21
    used    INTEGER NOT NULL,
    PRIMARY KEY (user_id, name, day)
) STRICT, WITHOUT ROWID;

-- == Ledger ==

-- What somebody has of a currency: always the sum of their rows in ledger, by the trigger below, and never negative.
-- Goes with the person.
CREATE TABLE balances (
    user_id  INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    currency TEXT    NOT NULL CHECK (currency IN ('coins', 'bait', 'dollars')),
    amount   INTEGER NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (user_id, currency)
) STRICT, WITHOUT ROWID;

-- A change of a balance; its reference is what it happened for, and happens once. Never changed; goes with the person.
CREATE TABLE ledger (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id   INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    currency  TEXT    NOT NULL,
    delta     INTEGER NOT NULL CHECK (delta <> 0),
    reason    TEXT    NOT NULL,                -- a text key under ledger.reason
    reference TEXT    NOT NULL UNIQUE,
    posted_at INTEGER NOT NULL
) STRICT;
CREATE INDEX ledger__of_person ON ledger (user_id, id);  -- operations_of
CREATE TRIGGER ledger__posted AFTER INSERT ON ledger BEGIN
    INSERT OR IGNORE INTO balances (user_id, currency, amount) VALUES (new.user_id, new.currency, 0);
    UPDATE balances SET amount = amount + new.delta WHERE user_id = new.user_id AND currency = new.currency;
END;

-- Stars that somebody paid, by Telegram's charge id. Never deleted, so that they can be given back: no word of the
-- payer is in it.
CREATE TABLE payments (
    charge_id  TEXT    PRIMARY KEY,
    user_id    INTEGER NOT NULL,
    pack       TEXT    NOT NULL,               -- as the invoice had it
    stars      INTEGER NOT NULL,
    currency   TEXT    NOT NULL,               -- of what was bought; '': nothing that we know
    units      INTEGER NOT NULL,
    paid_at    INTEGER NOT NULL,
    state      TEXT    NOT NULL CHECK (state IN ('paid', 'refunding', 'refunded')),
    taken_back INTEGER NOT NULL DEFAULT 0,     -- units, with the refund
    changed_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX payments__of_person ON payments (user_id, paid_at);  -- payments_of
CREATE INDEX payments__by_time ON payments (paid_at);  -- payments_newest
CREATE INDEX payments__unsettled ON payments (state) WHERE state = 'refunding';  -- refunds_left

-- A code that gives something to whoever enters it. Made and deleted by an owner.
CREATE TABLE promos (
    code       TEXT    PRIMARY KEY,            -- in capitals
    currency   TEXT    NOT NULL,
    amount     INTEGER NOT NULL CHECK (amount > 0),
    uses       INTEGER NOT NULL,               -- how often it may be used
    used       INTEGER NOT NULL DEFAULT 0 CHECK (used <= uses),
    expires_at INTEGER,                        -- NULL: never
    made_at    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who used a code; stays when they are forgotten, or they could use it again. Goes with the code.
CREATE TABLE promo_uses (
    code       TEXT    NOT NULL REFERENCES promos (code) ON DELETE CASCADE,
    user_id    INTEGER NOT NULL,
    used_at    INTEGER NOT NULL,
    message_id INTEGER NOT NULL,               -- that named it: taken again, it is no second use; 0: forgotten
    PRIMARY KEY (code, user_id)
) STRICT, WITHOUT ROWID;

-- == Memory ==

-- Somebody who spoke where the bot hears: a user, or a channel or group that speaks as itself (id below 0).
-- Deleted when the person is forgotten.
CREATE TABLE users (
    user_id       INTEGER PRIMARY KEY,
    name          TEXT NOT NULL,
    username      TEXT,
    language_code TEXT,                        -- Telegram's, as last seen
    lang          TEXT CHECK (lang IN ('uk', 'ru', 'en')),  -- chosen with /lang
    started_at    INTEGER,                     -- NULL: never wrote in private, so the bot cannot either
    drawing       TEXT NOT NULL DEFAULT ''     -- JSON: how they wanted their last picture
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
    gone_at     INTEGER,                       -- blocked, kicked or left at
    voice       INTEGER NOT NULL DEFAULT 0 CHECK (voice IN (0, 1)),  -- 1: answers with voice notes
    persona     TEXT    NOT NULL DEFAULT 'okun',  -- a built-in one; counts where persona_id is NULL
    persona_id  INTEGER REFERENCES personas (id) ON DELETE SET NULL,
    temper      TEXT    NOT NULL DEFAULT 'neutral',  -- likewise
    temper_id   INTEGER REFERENCES tempers (id) ON DELETE SET NULL,
    pair        TEXT    NOT NULL DEFAULT 'TON'  -- what the water of its pond follows, a row of PAIRS
) STRICT;
CREATE INDEX chats__bound_to ON chats (persona_id) WHERE persona_id IS NOT NULL;  -- chats_bound
CREATE INDEX chats__in_temper ON chats (temper_id) WHERE temper_id IS NOT NULL;  -- its foreign key

-- A topic that was reset: messages up to this id are no context any more. Goes with its chat.
CREATE TABLE resets (
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id  INTEGER NOT NULL,
    message_row INTEGER NOT NULL,
    PRIMARY KEY (chat_id, thread_id)
) STRICT, WITHOUT ROWID;

-- A message seen or sent, whole, however Telegram split it. Goes with its chat or its speaker.
CREATE TABLE messages (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given out twice: resets count by it
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
    model_turn TEXT,                           -- JSON: the model's own parts, to be echoed to it
    lang       TEXT    NOT NULL DEFAULT '',    -- what Lexicon.mood saw in it: here and in the next three
    emotion    TEXT    NOT NULL DEFAULT '',
    question   INTEGER NOT NULL DEFAULT 0 CHECK (question IN (0, 1)),
    conflict   INTEGER NOT NULL DEFAULT 0 CHECK (conflict IN (0, 1)),
    topic      TEXT,                           -- what a model says it is about; NULL: none was asked
    persona    TEXT                            -- of the bot's own: who it was then
) STRICT;
CREATE UNIQUE INDEX messages__by_message ON messages (chat_id, message_id);  -- memory_window, of replies
CREATE INDEX messages__newest_in_topic ON messages (chat_id, thread_id, id);  -- memory_window
CREATE INDEX messages__in_album ON messages (album) WHERE album IS NOT NULL;  -- memory_album
CREATE INDEX messages__of_speaker ON messages (user_id, chat_id) WHERE user_id IS NOT NULL;  -- forget_slice
CREATE INDEX messages__own ON messages (chat_id) WHERE user_id IS NULL;  -- forget_own_slice
CREATE INDEX messages__by_time ON messages (sent_at);  -- retention_slice
CREATE INDEX messages__in_time ON messages (chat_id, sent_at) WHERE user_id IS NOT NULL;  -- mood_sample

-- Who ever spoke in a chat, and the row of their first message, which may be gone: what the bot said since then may
-- quote them. Goes with the person or the chat.
CREATE TABLE members (
    chat_id   INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    user_id   INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    first_row INTEGER NOT NULL,
    PRIMARY KEY (user_id, chat_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX members__in_chat ON members (chat_id, user_id);  -- PUT_MEMBER

-- == Panels ==

-- Something that a person makes in a chat, question by question: what was answered so far, and what is asked now.
-- Deleted when it is done or dropped; the hourly cleanup deletes those untouched for a week; goes with the person or
-- the chat.
CREATE TABLE forms (
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    kind       TEXT    NOT NULL,               -- persona, temper
    data       TEXT    NOT NULL,               -- JSON
    asks       TEXT    NOT NULL,               -- what the next words answer; '': nothing
    message_id INTEGER,                        -- where the question stands
    changed_at INTEGER NOT NULL,
    PRIMARY KEY (chat_id, user_id, kind)
) STRICT, WITHOUT ROWID;
CREATE INDEX forms__of_person ON forms (user_id);  -- export_head

-- == Jobs ==

-- Slow work that somebody asked for. The hourly cleanup deletes those that ended 30 days ago; goes with the person or
-- the chat.
CREATE TABLE jobs (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    kind       TEXT    NOT NULL,               -- a row of JOBS
    pool       TEXT    NOT NULL,               -- the queue it waits in
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id  INTEGER NOT NULL,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    lang       TEXT    NOT NULL,
    message_id INTEGER,                        -- what it was asked in, to reply to
    panel_id   INTEGER,                        -- the message that shows how far it is
    data       TEXT    NOT NULL,               -- JSON: what is to be done
    state      TEXT    NOT NULL CHECK (state IN ('queued', 'running', 'done', 'failed', 'refunded', 'cancelled')),
    price      INTEGER NOT NULL,               -- in coins, taken when it was queued
    day        TEXT    NOT NULL,               -- whose quota it uses
    attempts   INTEGER NOT NULL DEFAULT 0,
    queued_at  INTEGER NOT NULL,
    ended_at   INTEGER,
    error      TEXT,                           -- JSON: why it failed, a text key and its fields
    said       TEXT,                           -- what its message says when it is done; NULL: it goes
    told       INTEGER NOT NULL DEFAULT 0 CHECK (told IN (0, 1)),  -- 1: its end was shown
    update_id  INTEGER,                        -- it was asked for in; taken again, it is no second job
    UNIQUE (update_id, kind)                   -- job_asked
) STRICT;
CREATE INDEX jobs__in_queue ON jobs (pool, id) WHERE state = 'queued';  -- jobs_queued
CREATE INDEX jobs__left ON jobs (id) WHERE told = 0;  -- jobs_left
CREATE INDEX jobs__of_person ON jobs (user_id, state);  -- jobs_open
CREATE INDEX jobs__in_chat ON jobs (chat_id, user_id);  -- forget_derived
CREATE INDEX jobs__ended ON jobs (ended_at);  -- jobs_clean

-- == Recall ==

-- The words of a message that are worth finding, folded, each once; empty where there are none, so that the newest row
-- tells how far the index got. Goes with its message.
CREATE TABLE passages (
    id       INTEGER PRIMARY KEY REFERENCES messages (id) ON DELETE CASCADE,
    chat_key TEXT NOT NULL,                    -- the chat's id as in terms: n for its minus
    words    TEXT NOT NULL
) STRICT;

-- A group's id before it became a supergroup: its older passages are found by it. Goes with its chat.
CREATE TABLE former_chats (
    former_id INTEGER PRIMARY KEY,
    chat_id   INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE
) STRICT;
CREATE INDEX former_chats__of_chat ON former_chats (chat_id);  -- load_chat

-- What is indexed: each word with its chat before it. A word of one chat cannot be found from another, and a common
-- word costs only as much as this chat said it.
CREATE VIEW passage_terms AS
    SELECT id, CASE words WHEN '' THEN ''
                          ELSE chat_key || 'x' || replace(words, ' ', ' ' || chat_key || 'x') END AS terms
    FROM passages;
-- The index. It keeps no text of its own; entries come and go with passages, by these triggers.
CREATE VIRTUAL TABLE recall USING fts5 (
    terms, content = 'passage_terms', content_rowid = 'id', tokenize = 'unicode61 remove_diacritics 0'
);
INSERT INTO recall (recall, rank) VALUES ('automerge', 0);  -- merged in small steps: merge_index
CREATE TRIGGER passages__added AFTER INSERT ON passages WHEN new.words <> '' BEGIN
    INSERT INTO recall (rowid, terms) SELECT id, terms FROM passage_terms WHERE id = new.id;
END;
CREATE TRIGGER passages__gone BEFORE DELETE ON passages WHEN old.words <> '' BEGIN
    INSERT INTO recall (recall, rowid, terms) SELECT 'delete', id, terms FROM passage_terms WHERE id = old.id;
END;
CREATE TRIGGER passages__changing BEFORE UPDATE ON passages WHEN old.words <> '' BEGIN
    INSERT INTO recall (recall, rowid, terms) SELECT 'delete', id, terms FROM passage_terms WHERE id = old.id;
END;
CREATE TRIGGER passages__changed AFTER UPDATE ON passages WHEN new.words <> '' BEGIN
    INSERT INTO recall (rowid, terms) SELECT id, terms FROM passage_terms WHERE id = new.id;
END;

-- The vector of a text by an embedding model: float32, little-endian. Whose text it is, is not said; a forgotten
-- person's are deleted by their hashes. The hourly cleanup deletes those unused for 30 days.
CREATE TABLE embeddings_cache (
    text_hash TEXT    NOT NULL,
    model     TEXT    NOT NULL,
    vector    BLOB    NOT NULL,
    used_at   INTEGER NOT NULL,
    PRIMARY KEY (text_hash, model)
) STRICT, WITHOUT ROWID;

-- == Knowledge ==

-- Something known about a person in a chat, told with /remember or noticed in talk. Goes with the person or the chat.
CREATE TABLE facts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- of an old list's buttons
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    text       TEXT    NOT NULL,
    told       INTEGER NOT NULL CHECK (told IN (0, 1)),  -- 1: the person said to remember it
    learned_at INTEGER NOT NULL,
    used_at    INTEGER NOT NULL                -- last asked about, or heard again
) STRICT;
CREATE INDEX facts__of_person ON facts (user_id);  -- facts_everywhere
CREATE INDEX facts__in_chat ON facts (chat_id, user_id);  -- facts_of

-- The rolling summary of a topic: messages up to until_row are in it. Deleted when somebody in it is forgotten; goes
-- with its chat.
CREATE TABLE summaries (
    chat_id   INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id INTEGER NOT NULL,
    text      TEXT    NOT NULL,
    until_row INTEGER NOT NULL,
    made_at   INTEGER NOT NULL,
    PRIMARY KEY (chat_id, thread_id)
) STRICT, WITHOUT ROWID;

-- What a model made of a text. The hourly cleanup deletes those unused for 30 days, forgetting a person those of their
-- chats.
CREATE TABLE analysis_cache (
    text_hash TEXT    PRIMARY KEY,
    chat_id   INTEGER NOT NULL,
    result    TEXT    NOT NULL,                -- JSON
    used_at   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX analysis_cache__of_chat ON analysis_cache (chat_id);  -- analyses_slice
CREATE INDEX analysis_cache__by_use ON analysis_cache (used_at);  -- analyses_clean

-- == Analysis ==

-- What people said in a chat in an hour (epoch / 3600): how many messages, the sum of their sentiments in thousandths,
-- how many questions, attacks, and messages with each emotion. Always what messages come to, by the triggers below;
-- goes with the messages or the chat.
CREATE TABLE mood_hours (
    chat_id   INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    hour      INTEGER NOT NULL,
    messages  INTEGER NOT NULL,
    sentiment INTEGER NOT NULL,
    questions INTEGER NOT NULL,
    conflicts INTEGER NOT NULL,
    joy       INTEGER NOT NULL,
    love      INTEGER NOT NULL,
    surprise  INTEGER NOT NULL,
    sadness   INTEGER NOT NULL,
    fear      INTEGER NOT NULL,
    anger     INTEGER NOT NULL,
    PRIMARY KEY (chat_id, hour)
) STRICT, WITHOUT ROWID;

-- What one person said in a chat in an hour, likewise. Goes with the messages, the person or the chat.
CREATE TABLE member_hours (
    chat_id   INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    hour      INTEGER NOT NULL,
    user_id   INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    messages  INTEGER NOT NULL,
    sentiment INTEGER NOT NULL,
    PRIMARY KEY (chat_id, hour, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX member_hours__of_person ON member_hours (user_id, chat_id);  -- load_profile
CREATE TRIGGER messages__felt AFTER INSERT ON messages
WHEN new.user_id IS NOT NULL AND new.kind <> 'command' BEGIN
    INSERT INTO mood_hours (chat_id, hour, messages, sentiment, questions, conflicts, joy, love, surprise, sadness,
                            fear, anger)
    VALUES (new.chat_id, new.sent_at / 3600, 1, CAST(round(new.sentiment * 1000) AS INTEGER), new.question,
            new.conflict, new.emotion = 'joy', new.emotion = 'love', new.emotion = 'surprise',
            new.emotion = 'sadness', new.emotion = 'fear', new.emotion = 'anger')
    ON CONFLICT (chat_id, hour) DO UPDATE SET messages = messages + 1, sentiment = sentiment + excluded.sentiment,
        questions = questions + excluded.questions, conflicts = conflicts + excluded.conflicts,
        joy = joy + excluded.joy, love = love + excluded.love, surprise = surprise + excluded.surprise,
        sadness = sadness + excluded.sadness, fear = fear + excluded.fear, anger = anger + excluded.anger;
    INSERT INTO member_hours (chat_id, hour, user_id, messages, sentiment)
    VALUES (new.chat_id, new.sent_at / 3600, new.user_id, 1, CAST(round(new.sentiment * 1000) AS INTEGER))
    ON CONFLICT (chat_id, hour, user_id) DO UPDATE SET messages = messages + 1,
        sentiment = sentiment + excluded.sentiment;
END;
CREATE TRIGGER messages__gone AFTER DELETE ON messages
WHEN old.user_id IS NOT NULL AND old.kind <> 'command' BEGIN
    UPDATE mood_hours SET messages = messages - 1,
        sentiment = sentiment - CAST(round(old.sentiment * 1000) AS INTEGER),
        questions = questions - old.question, conflicts = conflicts - old.conflict,
        joy = joy - (old.emotion = 'joy'), love = love - (old.emotion = 'love'),
        surprise = surprise - (old.emotion = 'surprise'), sadness = sadness - (old.emotion = 'sadness'),
        fear = fear - (old.emotion = 'fear'), anger = anger - (old.emotion = 'anger')
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600;
    DELETE FROM mood_hours WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND messages < 1;
    UPDATE member_hours SET messages = messages - 1,
        sentiment = sentiment - CAST(round(old.sentiment * 1000) AS INTEGER)
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND user_id = old.user_id;
    DELETE FROM member_hours
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND user_id = old.user_id AND messages < 1;
END;
CREATE TRIGGER messages__felt_no_more AFTER UPDATE OF sentiment, emotion, question, conflict, kind ON messages
WHEN old.user_id IS NOT NULL AND old.kind <> 'command' BEGIN
    UPDATE mood_hours SET messages = messages - 1,
        sentiment = sentiment - CAST(round(old.sentiment * 1000) AS INTEGER),
        questions = questions - old.question, conflicts = conflicts - old.conflict,
        joy = joy - (old.emotion = 'joy'), love = love - (old.emotion = 'love'),
        surprise = surprise - (old.emotion = 'surprise'), sadness = sadness - (old.emotion = 'sadness'),
        fear = fear - (old.emotion = 'fear'), anger = anger - (old.emotion = 'anger')
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600;
    DELETE FROM mood_hours WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND messages < 1;
    UPDATE member_hours SET messages = messages - 1,
        sentiment = sentiment - CAST(round(old.sentiment * 1000) AS INTEGER)
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND user_id = old.user_id;
    DELETE FROM member_hours
    WHERE chat_id = old.chat_id AND hour = old.sent_at / 3600 AND user_id = old.user_id AND messages < 1;
END;
CREATE TRIGGER messages__felt_anew AFTER UPDATE OF sentiment, emotion, question, conflict, kind ON messages
WHEN new.user_id IS NOT NULL AND new.kind <> 'command' BEGIN
    INSERT INTO mood_hours (chat_id, hour, messages, sentiment, questions, conflicts, joy, love, surprise, sadness,
                            fear, anger)
    VALUES (new.chat_id, new.sent_at / 3600, 1, CAST(round(new.sentiment * 1000) AS INTEGER), new.question,
            new.conflict, new.emotion = 'joy', new.emotion = 'love', new.emotion = 'surprise',
            new.emotion = 'sadness', new.emotion = 'fear', new.emotion = 'anger')
    ON CONFLICT (chat_id, hour) DO UPDATE SET messages = messages + 1, sentiment = sentiment + excluded.sentiment,
        questions = questions + excluded.questions, conflicts = conflicts + excluded.conflicts,
        joy = joy + excluded.joy, love = love + excluded.love, surprise = surprise + excluded.surprise,
        sadness = sadness + excluded.sadness, fear = fear + excluded.fear, anger = anger + excluded.anger;
    INSERT INTO member_hours (chat_id, hour, user_id, messages, sentiment)
    VALUES (new.chat_id, new.sent_at / 3600, new.user_id, 1, CAST(round(new.sentiment * 1000) AS INTEGER))
    ON CONFLICT (chat_id, hour, user_id) DO UPDATE SET messages = messages + 1,
        sentiment = sentiment + excluded.sentiment;
END;

-- == Personas ==

-- A persona that a user made. Deleted by its maker, or goes with them.
CREATE TABLE personas (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,  -- of old lists' buttons
    user_id INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    version INTEGER NOT NULL,                  -- the one that counts
    link    TEXT UNIQUE                        -- of its deep link; NULL: never shared
) STRICT;
CREATE INDEX personas__of_person ON personas (user_id);  -- personas_of

-- A persona as it was saved at one time. The oldest of many go; all go with the persona.
CREATE TABLE persona_versions (
    persona_id   INTEGER NOT NULL REFERENCES personas (id) ON DELETE CASCADE,
    version      INTEGER NOT NULL,
    saved_at     INTEGER NOT NULL,
    name         TEXT    NOT NULL,
    description  TEXT    NOT NULL,
    bio          TEXT    NOT NULL,
    character    TEXT    NOT NULL,
    speech       TEXT    NOT NULL,
    likes        TEXT    NOT NULL,
    dislikes     TEXT    NOT NULL,
    goals        TEXT    NOT NULL,
    taboos       TEXT    NOT NULL,
    style        TEXT    NOT NULL,
    verbosity    TEXT    NOT NULL,
    most         INTEGER NOT NULL CHECK (most BETWEEN 1 AND 3),  -- messages in one answer
    group_policy TEXT    NOT NULL,             -- '': as the chat has it
    media_policy TEXT    NOT NULL,
    PRIMARY KEY (persona_id, version)
) STRICT, WITHOUT ROWID;

-- A temper that somebody made for a chat: a line of the prompt. Goes with its maker or its chat.
CREATE TABLE tempers (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    chat_id INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    name    TEXT    NOT NULL,
    line    TEXT    NOT NULL
) STRICT;
CREATE INDEX tempers__of_chat ON tempers (chat_id);  -- tempers_of
CREATE INDEX tempers__of_person ON tempers (user_id);  -- export_head

-- == Companion ==

-- A message the bot sent unasked; what the caps count. The hourly cleanup deletes those older than two days.
CREATE TABLE unprompted (
    chat_id   INTEGER NOT NULL,
    spoken_at INTEGER NOT NULL,
    kind      TEXT    NOT NULL CHECK (kind IN ('reply', 'spontaneous')),
    PRIMARY KEY (chat_id, spoken_at)
) STRICT, WITHOUT ROWID;

-- == Reminders ==

-- Something to say to a person at a time. Deleted in the commit that stores that it was said, or by the person.
CREATE TABLE reminders (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,  -- of an old list's buttons
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id  INTEGER NOT NULL,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    message_id INTEGER,                        -- what it was asked in, to reply to
    text       TEXT    NOT NULL,
    due_at     INTEGER NOT NULL,
    UNIQUE (chat_id, user_id, due_at, text)    -- the same asked twice is one
) STRICT;
CREATE INDEX reminders__due ON reminders (due_at);  -- reminders_due
CREATE INDEX reminders__of_person ON reminders (user_id);  -- reminders_of

-- == Avatars ==

-- Somebody as the bot draws them. Deleted by them; goes with the person.
CREATE TABLE avatars (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    name       TEXT    NOT NULL,
    gender     TEXT    NOT NULL DEFAULT '' CHECK (gender IN ('', 'male', 'female')),
    status     TEXT    NOT NULL CHECK (status IN ('draft', 'photos_uploading', 'ready_for_training', 'training',
                                                  'completed', 'error', 'cancelled')),
    main       INTEGER NOT NULL DEFAULT 0 CHECK (main IN (0, 1)),
    card       TEXT    NOT NULL DEFAULT '',    -- what never changes about them, as a model wrote it
    error      TEXT,                           -- JSON: why the training failed, a text key and its fields
    made_at    INTEGER NOT NULL,
    changed_at INTEGER NOT NULL
) STRICT;
CREATE INDEX avatars__of_person ON avatars (user_id, status);  -- avatars_of
CREATE UNIQUE INDEX avatars__main ON avatars (user_id) WHERE main = 1;  -- main_avatar

-- A photo of an avatar, at Telegram. Goes with it.
CREATE TABLE avatar_photos (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    avatar_id      INTEGER NOT NULL REFERENCES avatars (id) ON DELETE CASCADE,
    file_id        TEXT    NOT NULL,
    file_unique_id TEXT    NOT NULL,
    document       INTEGER NOT NULL CHECK (document IN (0, 1)),  -- 1: sent as a file
    width          INTEGER NOT NULL,
    height         INTEGER NOT NULL,
    quality        REAL    NOT NULL,           -- 0 to 1
    looks          TEXT    NOT NULL,           -- a hash that is close for pictures that look alike, hex
    chosen         INTEGER NOT NULL DEFAULT 0 CHECK (chosen IN (0, 1)),  -- 1: goes with requests to draw them
    added_at       INTEGER NOT NULL,
    UNIQUE (avatar_id, file_unique_id)
) STRICT;
CREATE INDEX avatar_photos__of_avatar ON avatar_photos (avatar_id, added_at);  -- photos_of

-- == Drawing ==

-- A picture that was drawn for somebody, at Telegram. Deleted by them; goes with the person or the chat.
CREATE TABLE pictures (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id     INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    chat_id     INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    file_id     TEXT    NOT NULL,
    original_id TEXT,                          -- of the file that was sent on request
    wish        TEXT    NOT NULL,              -- JSON: what was asked for, to ask for it again
    me          INTEGER NOT NULL CHECK (me IN (0, 1)),  -- 1: with an avatar
    favourite   INTEGER NOT NULL DEFAULT 0 CHECK (favourite IN (0, 1)),
    made_at     INTEGER NOT NULL
) STRICT;
CREATE INDEX pictures__of_person ON pictures (user_id, id, me, favourite, made_at);  -- pictures_around, all it asks
CREATE INDEX pictures__in_chat ON pictures (chat_id, user_id);  -- forget_derived

-- == Hearing ==

-- A recording written down, by Telegram's id of the file, and what models made of it. Whose it was is not said; a
-- forgotten person's are deleted by their speeches. The hourly cleanup deletes those unused for 90 days.
CREATE TABLE transcripts (
    file_unique_id TEXT    PRIMARY KEY,
    transcript     TEXT    NOT NULL,           -- JSON of a Transcript
    verdict        TEXT,                       -- JSON: what a model thinks of the speech
    extras         TEXT    NOT NULL DEFAULT '{}',  -- JSON: summary, to-do, minutes, by name and language
    used_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX transcripts__by_use ON transcripts (used_at);  -- transcripts_clean

-- Whose recording was written down, or for whom, and where: forgetting them there deletes the transcript.
CREATE TABLE hearings (
    file_unique_id TEXT    NOT NULL REFERENCES transcripts (file_unique_id) ON DELETE CASCADE,
    user_id        INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    chat_id        INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    PRIMARY KEY (file_unique_id, user_id, chat_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX hearings__in_chat ON hearings (chat_id, user_id);  -- forget_transcripts
CREATE INDEX hearings__of_person ON hearings (user_id);  -- forget_all_transcripts

-- == Coach ==

-- A time that somebody spoke to be coached; its figures, for the history. Deleted by them; goes with the person or the
-- chat.
CREATE TABLE speeches (
    id             INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id        INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    chat_id        INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    file_unique_id TEXT    NOT NULL,
    file_id        TEXT    NOT NULL,
    title          TEXT    NOT NULL,           -- the first words, or the name of the file
    lang           TEXT    NOT NULL,           -- as heard
    duration_s     REAL    NOT NULL,
    words          INTEGER NOT NULL,
    wpm            REAL,                       -- words a minute; NULL: too few to tell
    fillers        REAL    NOT NULL,           -- in 100 words
    held           REAL    NOT NULL,           -- share of pauses that were too long, 0 to 1
    rhythm         REAL,                       -- std / mean of the phrases' durations; NULL: too few to tell
    score          INTEGER,                    -- 0 to 100; NULL: nothing was said
    spoken_at      INTEGER NOT NULL,
    UNIQUE (user_id, file_unique_id)
) STRICT;
CREATE INDEX speeches__of_person ON speeches (user_id, id);  -- speeches_of
CREATE INDEX speeches__in_chat ON speeches (chat_id, user_id);  -- forget_derived
CREATE INDEX speeches__of_recording ON speeches (file_unique_id);  -- unhear

-- == Fishing ==

-- Somebody who fishes; goes with the person.
CREATE TABLE anglers (
    user_id    INTEGER PRIMARY KEY REFERENCES users (user_id) ON DELETE CASCADE,
    rod        TEXT    NOT NULL,               -- the one in use, a row of RODS, with its side: "2", "-2.5"
    rods       TEXT    NOT NULL,               -- all they have, by a comma
    experience INTEGER NOT NULL DEFAULT 0,
    gift_day   INTEGER NOT NULL,               -- of the last bait that was given for a day, as catches.day
    lessons    INTEGER NOT NULL,               -- steps of the introduction that are done, of LESSONS
    started_at INTEGER NOT NULL
) STRICT;

-- A grant that happens once in a lifetime; stays when the person is forgotten, or they could have it again.
CREATE TABLE starting_grants (
    user_id    INTEGER PRIMARY KEY,
    granted_at INTEGER NOT NULL
) STRICT;

-- A line in the water. Deleted in the transaction that makes it a catch; goes with the person or the chat.
CREATE TABLE fishing_lines (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    thread_id  INTEGER NOT NULL,
    pair       TEXT    NOT NULL,
    leverage   REAL    NOT NULL,               -- below 0: short
    stake      INTEGER NOT NULL,               -- dollars
    entry      REAL    NOT NULL,               -- dollars for one coin
    practice   INTEGER NOT NULL CHECK (practice IN (0, 1)),  -- 1: the price was made up, because none could be had
    cast_at    INTEGER NOT NULL,
    update_id  INTEGER NOT NULL,               -- what asked for it: after a crash it may ask again
    UNIQUE (user_id, chat_id)
) STRICT;
CREATE INDEX fishing_lines__in_chat ON fishing_lines (chat_id);  -- merge_ponds

-- What somebody pulled out. Goes with the person or the chat.
CREATE TABLE catches (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    line_id    INTEGER NOT NULL UNIQUE,        -- one line makes one catch
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    fish       TEXT    NOT NULL,               -- a row of FISH
    pair       TEXT    NOT NULL,
    leverage   REAL    NOT NULL,
    stake      INTEGER NOT NULL,
    entry      REAL    NOT NULL,
    exit       REAL    NOT NULL,
    practice   INTEGER NOT NULL CHECK (practice IN (0, 1)),
    pnl        REAL    NOT NULL,               -- in %
    dollars    INTEGER NOT NULL,               -- the change of the balance
    cast_at    INTEGER NOT NULL,
    caught_at  INTEGER NOT NULL,
    day        INTEGER NOT NULL,               -- of caught_at in TIMEZONE, days since 1970-01-01
    first      INTEGER NOT NULL CHECK (first IN (0, 1)),  -- 1: their first of this kind
    experience INTEGER NOT NULL,               -- of the angler, with it
    update_id  INTEGER NOT NULL,               -- what asked for it, as of lines
    shared     INTEGER NOT NULL DEFAULT 0 CHECK (shared IN (0, 1))
) STRICT;
CREATE INDEX catches__of_person ON catches (user_id, fish, pnl);  -- trophies_of
CREATE INDEX catches__in_pond ON catches (chat_id, user_id);  -- forget_derived

-- How people stand in a pond and in all waters, within a day, a week (from Monday), a month and all time: always what
-- their catches come to, by the triggers below, without those of practice, whose prices were made up. A row goes with
-- its last catch; the hourly cleanup deletes those of periods that are over.
CREATE TABLE standings (
    pond    INTEGER NOT NULL,                  -- a chat; 0: all waters
    period  TEXT    NOT NULL CHECK (period IN ('day', 'week', 'month', 'all')),
    since   INTEGER NOT NULL,                  -- its first day, as in catches; 0 of all time
    user_id INTEGER NOT NULL,
    catches INTEGER NOT NULL,
    pnl     INTEGER NOT NULL,                  -- sum, in millionths of a %: floats would drift as catches come and go
    PRIMARY KEY (pond, period, since, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX standings__best_first ON standings (pond, period, since, pnl DESC, user_id, catches);  -- standings_in
CREATE VIEW catch_standings AS  -- each catch in each of the eight standings that it counts in
SELECT c.id, CASE w.everywhere WHEN 1 THEN 0 ELSE c.chat_id END AS pond, p.period,
    CASE p.period WHEN 'day' THEN c.day WHEN 'week' THEN c.day - (c.day + 3) % 7 WHEN 'month'
        THEN CAST(julianday(c.day * 86400, 'unixepoch', 'start of month') - 2440587.5 AS INTEGER) ELSE 0 END AS since,
    c.user_id, CAST(round(max(-1e9, min(1e9, c.pnl)) * 1e6) AS INTEGER) AS pnl
FROM catches AS c, (SELECT 0 AS everywhere UNION ALL SELECT 1) AS w,
    (SELECT 'day' AS period UNION ALL SELECT 'week' UNION ALL SELECT 'month' UNION ALL SELECT 'all') AS p
WHERE c.practice = 0;
CREATE TRIGGER catches__counted AFTER INSERT ON catches BEGIN
    INSERT INTO standings (pond, period, since, user_id, catches, pnl)
    SELECT pond, period, since, user_id, 1, pnl FROM catch_standings WHERE id = new.id
    ON CONFLICT (pond, period, since, user_id) DO UPDATE SET catches = catches + 1, pnl = pnl + excluded.pnl;
END;
CREATE TRIGGER catches__gone BEFORE DELETE ON catches BEGIN
    UPDATE standings SET catches = standings.catches - 1, pnl = standings.pnl - c.pnl FROM catch_standings AS c
    WHERE c.id = old.id AND (standings.pond, standings.period, standings.since, standings.user_id) =
        (c.pond, c.period, c.since, c.user_id);
    DELETE FROM standings WHERE catches = 0 AND (pond, period, since, user_id) IN
        (SELECT pond, period, since, user_id FROM catch_standings WHERE id = old.id);
END;
CREATE TRIGGER catches__moving BEFORE UPDATE OF chat_id ON catches BEGIN
    UPDATE standings SET catches = standings.catches - 1, pnl = standings.pnl - c.pnl FROM catch_standings AS c
    WHERE c.id = old.id AND (standings.pond, standings.period, standings.since, standings.user_id) =
        (c.pond, c.period, c.since, c.user_id);
    DELETE FROM standings WHERE catches = 0 AND (pond, period, since, user_id) IN
        (SELECT pond, period, since, user_id FROM catch_standings WHERE id = old.id);
END;
CREATE TRIGGER catches__moved AFTER UPDATE OF chat_id ON catches BEGIN
    INSERT INTO standings (pond, period, since, user_id, catches, pnl)
    SELECT pond, period, since, user_id, 1, pnl FROM catch_standings WHERE id = new.id
    ON CONFLICT (pond, period, since, user_id) DO UPDATE SET catches = catches + 1, pnl = pnl + excluded.pnl;
END;

-- Frames that are being shown, in a message of ours, and the panel that they lead to: after a crash it is shown at
-- once. Deleted when it stands there; goes with the person or the chat.
CREATE TABLE shows (
    chat_id    INTEGER NOT NULL REFERENCES chats (chat_id) ON DELETE CASCADE ON UPDATE CASCADE,
    message_id INTEGER NOT NULL,
    thread_id  INTEGER NOT NULL,
    user_id    INTEGER NOT NULL REFERENCES users (user_id) ON DELETE CASCADE,
    lang       TEXT    NOT NULL,
    panel      TEXT    NOT NULL,
    arg        TEXT    NOT NULL,
    begun_at   INTEGER NOT NULL,
    PRIMARY KEY (chat_id, message_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX shows__of_person ON shows (user_id);  -- chats_of

-- The drawing of a fish, at Telegram: one for all.
CREATE TABLE fish_cards (
    fish    TEXT    PRIMARY KEY,
    file_id TEXT    NOT NULL,
    made_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- == Owner ==

-- A message of an owner to all chats of a kind, sent to one after another by id. The hourly cleanup deletes those older
-- than 30 days.
CREATE TABLE broadcasts (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id    INTEGER NOT NULL,               -- the owner, in whose private chat the message is
    message_id INTEGER NOT NULL,
    audience   TEXT    NOT NULL CHECK (audience IN ('all', 'private', 'groups')),
    state      TEXT    NOT NULL CHECK (state IN ('draft', 'running', 'done', 'cancelled')),
    panel_id   INTEGER,                        -- the message that shows how far it is
    after_chat INTEGER,                        -- the last chat that was dealt with; NULL: none yet
    total      INTEGER NOT NULL DEFAULT 0,     -- chats when it began
    sent       INTEGER NOT NULL DEFAULT 0,
    gone       INTEGER NOT NULL DEFAULT 0,     -- chats where nobody is any more
    failed     INTEGER NOT NULL DEFAULT 0,
    made_at    INTEGER NOT NULL
) STRICT;

-- == Web ==

-- What happened in a minute (epoch / 60), for the charts. The hourly cleanup deletes those older than 14 days.
CREATE TABLE minutes (
    minute       INTEGER PRIMARY KEY,
    updates      INTEGER NOT NULL,
    messages     INTEGER NOT NULL,             -- stored
    replies      INTEGER NOT NULL,
    errors       INTEGER NOT NULL,             -- logged
    p50_ms       INTEGER,                      -- from an update to its answer; NULL: there was none
    p95_ms       INTEGER,
    llm_calls    INTEGER NOT NULL,
    llm_errors   INTEGER NOT NULL,
    micro_usd    INTEGER NOT NULL,
    cache_hits   INTEGER NOT NULL,
    cache_misses INTEGER NOT NULL,
    rss_kb       INTEGER NOT NULL,             -- memory of the process
    backlog      INTEGER NOT NULL              -- turns and updates at work or waiting
) STRICT;

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

PRAGMA user_version = 7;
