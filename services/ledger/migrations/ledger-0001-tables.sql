-- The tables of the ledger. This migration also takes over a ledger of any release that made its tables without
-- migrations: it creates the tables and columns that such a ledger lacks, and leaves the rest as it is.

CREATE SEQUENCE IF NOT EXISTS batch_ids;

-- One row for each batch.
CREATE TABLE IF NOT EXISTS batches (
    batch_id     bigint PRIMARY KEY,
    slot         int NOT NULL,
    dataset      text NOT NULL,
    rows         int NOT NULL,
    checksum     bigint NOT NULL,
    xid          xid8 NOT NULL,
    created_at   bigint NOT NULL,  -- microseconds since 1970, UTC
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    published_at timestamptz,
    parts        jsonb,            -- [[partition, offset], ...] once the batch is published
    topic        smallint          -- topics.number; NULL in batches of version 1, which are in the first topic
);

-- Requests that came with an Idempotency-Key.
CREATE TABLE IF NOT EXISTS requests (
    idempotency_key text PRIMARY KEY,
    body_hash       bytea NOT NULL,
    dataset         text NOT NULL,
    first_batch     bigint NOT NULL,
    last_batch      bigint NOT NULL,
    rows            int NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now()
);

-- The process that publishes a slot's batches. Ownership is a lease that its owner renews. An advisory lock would not
-- do: a process that is stopped and not dead keeps its session, and with the session its lock, for ever.
CREATE TABLE IF NOT EXISTS slots (
    slot        int PRIMARY KEY,
    owner       uuid NOT NULL,
    renewed_at  timestamptz NOT NULL,
    epoch       bigint NOT NULL DEFAULT 0,  -- raised by each lease; a change of the slot is refused in another epoch
    stuck       text NOT NULL DEFAULT '',   -- why the owner cannot publish the slot; '' while it can
    first_batch bigint,                     -- no former owner has published this batch or a later one; NULL: not known
    reader      uuid                        -- the last owner that read the slot's batches under the epoch of its lease
);

-- The offset that follows the last message that a slot has marked as published, by partition of a dataset's topic.
CREATE TABLE IF NOT EXISTS slot_positions (
    slot        int NOT NULL,
    dataset     text NOT NULL,
    partition   int NOT NULL,
    next_offset bigint NOT NULL,
    topic_id    text NOT NULL DEFAULT '',  -- '': of version 1; its first reader binds the position to the topic
    PRIMARY KEY (slot, dataset, partition)
);

-- The offset up to which each store has committed. A pending range (`intent_first` to `intent_last`) is a range whose
-- write was begun and not confirmed, together with the pending ranges of the partitions in `intent_together`.
CREATE TABLE IF NOT EXISTS sink_progress (
    store           text NOT NULL,
    dataset         text NOT NULL,
    topic_id        text NOT NULL,
    partition       int NOT NULL,
    next_offset     bigint NOT NULL,
    intent_first    bigint,
    intent_last     bigint,
    updated_at      timestamptz NOT NULL DEFAULT now(),
    intent_together int[],
    table_id        text NOT NULL DEFAULT '',  -- '': of version 1; its first reader binds the position to the table
    PRIMARY KEY (store, dataset, partition)
);

-- Stores that are being refilled from PostgreSQL. Of the batches up to `last_batch`, those below `next_batch` are
-- written, and next_batch to range_last are being written. A replay that starts over has another `id`.
CREATE TABLE IF NOT EXISTS replays (
    store      text NOT NULL,
    dataset    text NOT NULL,
    id         uuid NOT NULL,
    next_batch bigint NOT NULL,
    last_batch bigint NOT NULL,
    range_last bigint,
    updated_at timestamptz NOT NULL DEFAULT now(),
    table_id   text NOT NULL DEFAULT '',
    PRIMARY KEY (store, dataset)
);

-- The lowest batch of a dataset that retention keeps.
CREATE TABLE IF NOT EXISTS floors (
    dataset       text PRIMARY KEY,
    batch_id      bigint NOT NULL,
    dropped_until bigint  -- the latest time of acceptance of a batch that retention dropped, in microseconds
);

-- The identity of this ledger, for programs that keep positions in it elsewhere (the journal of `logpipe send`).
CREATE TABLE IF NOT EXISTS ledger (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO ledger DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Every topic that batches were ever published to. A topic that was deleted and created again has another `topic_id`.
CREATE TABLE IF NOT EXISTS topics (
    number   smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text NOT NULL,
    topic_id text NOT NULL,
    UNIQUE (name, topic_id)
);

-- The watermark that was last computed for each store and dataset, so that a process need not begin at the first batch.
-- It is valid for the table `table_id` and the topic `topic_id`, while no partition stands below `offsets`. `epoch` is
-- raised when the watermark is lowered: a process that computed an older one may no longer save it. The row of store ''
-- and dataset '' has the highest id at or below which no batch can appear any more.
CREATE TABLE IF NOT EXISTS watermarks (
    store    text NOT NULL,
    dataset  text NOT NULL,
    table_id text NOT NULL DEFAULT '',
    topic_id text NOT NULL DEFAULT '',
    offsets  jsonb NOT NULL DEFAULT '{}',
    batch_id bigint NOT NULL DEFAULT 0,
    epoch    bigint NOT NULL DEFAULT 0,
    saved_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, dataset)
);

-- PostgreSQL's clock as retention last saw it: an implausible jump stops retention.
CREATE TABLE IF NOT EXISTS retention_clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seen_at  timestamptz NOT NULL
);

-- An index of the topic `dead-letter`: one row for each dead letter, however often it was sent. `batch_id` is -1 where
-- the letter names no batch. `line` is -1 and `row_id` NULL where a whole message was refused. `letter` is the offset
-- of the letter in the topic, NULL once the topic that had it was deleted.
CREATE TABLE IF NOT EXISTS dead_letters (
    store      text NOT NULL,
    dataset    text NOT NULL,
    batch_id   bigint NOT NULL,
    topic      text NOT NULL,
    partition  int NOT NULL,
    "offset"   bigint NOT NULL,
    line       int NOT NULL,
    row_id     bigint,
    rows       int NOT NULL,
    letter     bigint,
    indexed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, dataset, batch_id, topic, partition, "offset", line)
);
CREATE TABLE IF NOT EXISTS dead_letter_index (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    topic_id    text NOT NULL,
    next_offset bigint NOT NULL
);

-- Batch ids after < id <= until were left out when the ledger was restored from a backup.
CREATE TABLE IF NOT EXISTS id_leaps (
    after bigint PRIMARY KEY,
    until bigint NOT NULL
);

-- Releases without migrations read this number and leave the tables alone when it is 7 or more.
CREATE TABLE IF NOT EXISTS ledger_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  int NOT NULL
);

-- A ledger of version 7 has all columns and indexes. Each statement here locks a table that other processes use, so the
-- statements run only where the ledger is new or of an earlier version.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM ledger_version WHERE version >= 7) THEN
        ALTER TABLE batches ADD COLUMN IF NOT EXISTS topic smallint;
        ALTER TABLE slots
            ADD COLUMN IF NOT EXISTS epoch bigint NOT NULL DEFAULT 0,
            ADD COLUMN IF NOT EXISTS stuck text NOT NULL DEFAULT '',
            ADD COLUMN IF NOT EXISTS first_batch bigint,
            ADD COLUMN IF NOT EXISTS reader uuid;
        ALTER TABLE slot_positions ADD COLUMN IF NOT EXISTS topic_id text NOT NULL DEFAULT '';
        ALTER TABLE sink_progress
            ADD COLUMN IF NOT EXISTS intent_together int[],
            ADD COLUMN IF NOT EXISTS table_id text NOT NULL DEFAULT '';
        UPDATE sink_progress SET intent_together = ARRAY[partition]
            WHERE intent_first IS NOT NULL AND intent_together IS NULL;
        ALTER TABLE replays ADD COLUMN IF NOT EXISTS table_id text NOT NULL DEFAULT '';
        ALTER TABLE floors ADD COLUMN IF NOT EXISTS dropped_until bigint;

        -- A dataset that has few batches among many of others is found without reading the others. A ledger that has
        -- batches already gets this index later, beside their use (`schema.build_index`).
        IF NOT EXISTS (SELECT FROM batches) THEN
            CREATE INDEX IF NOT EXISTS batches_dataset ON batches (dataset, batch_id);
        END IF;
        CREATE INDEX IF NOT EXISTS batches_unpublished ON batches (slot, batch_id) WHERE published_at IS NULL;
        CREATE INDEX IF NOT EXISTS requests_age ON requests (created_at);
        CREATE INDEX IF NOT EXISTS dead_letters_letter ON dead_letters (letter);

        -- Rows of these tables are updated all the time: dead versions are removed while they are few.
        ALTER TABLE batches SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
            autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
            autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000, fillfactor = 80);
        ALTER TABLE slots SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
        ALTER TABLE slot_positions SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
        ALTER TABLE sink_progress SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
        ALTER TABLE watermarks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
    END IF;
END $$;

INSERT INTO ledger_version (version) VALUES (7)
    ON CONFLICT (only_row) DO UPDATE SET version = greatest(ledger_version.version, excluded.version);
