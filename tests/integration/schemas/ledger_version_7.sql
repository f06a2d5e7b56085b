-- The tables of a ledger of version 7, as the release that had it made them. An input of test_migrations.py: frozen.

CREATE SEQUENCE IF NOT EXISTS batch_ids;

-- One row a committed COPY transaction and dataset. `parts`: [[partition, offset], ...] once published.
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
    parts        jsonb
);
-- A dataset that has few batches among many of others is found without reading those. A ledger that has batches already
-- gets this index from `build_index`.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM batches) THEN
        CREATE INDEX IF NOT EXISTS batches_dataset ON batches (dataset, batch_id);
    END IF;
END $$;
CREATE INDEX IF NOT EXISTS batches_unpublished ON batches (slot, batch_id) WHERE published_at IS NULL;

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
CREATE INDEX IF NOT EXISTS requests_age ON requests (created_at);

-- Who publishes a slot's batches: a lease, renewed while its owner lives. An advisory lock would not do: a process
-- that is stopped, not dead, keeps its session and so its lock for ever.
CREATE TABLE IF NOT EXISTS slots (
    slot       int PRIMARY KEY,
    owner      uuid NOT NULL,
    renewed_at timestamptz NOT NULL
);

-- Where a slot's next message can be, in each partition of a dataset's topic: after the last one marked.
CREATE TABLE IF NOT EXISTS slot_positions (
    slot        int NOT NULL,
    dataset     text NOT NULL,
    partition   int NOT NULL,
    next_offset bigint NOT NULL,
    PRIMARY KEY (slot, dataset, partition)
);

-- How far each store's sink has come. An intent is a range whose write was begun and not yet confirmed, together with
-- those of the partitions `intent_together`.
CREATE TABLE IF NOT EXISTS sink_progress (
    store        text NOT NULL,
    dataset      text NOT NULL,
    topic_id     text NOT NULL,
    partition    int NOT NULL,
    next_offset  bigint NOT NULL,
    intent_first bigint,
    intent_last  bigint,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, dataset, partition)
);
ALTER TABLE sink_progress ADD COLUMN IF NOT EXISTS intent_together int[];
UPDATE sink_progress SET intent_together = ARRAY[partition] WHERE intent_first IS NOT NULL AND intent_together IS NULL;

-- Stores being refilled from PostgreSQL. Of the batches up to `last_batch`, those below `next_batch` are done with;
-- `range_last`: next_batch..range_last is being written. `id` is new whenever a replay begins anew.
CREATE TABLE IF NOT EXISTS replays (
    store      text NOT NULL,
    dataset    text NOT NULL,
    id         uuid NOT NULL,
    next_batch bigint NOT NULL,
    last_batch bigint NOT NULL,
    range_last bigint,
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, dataset)
);

-- The lowest batch that retention has left in place, per dataset.
CREATE TABLE IF NOT EXISTS floors (
    dataset  text PRIMARY KEY,
    batch_id bigint NOT NULL
);

-- Alerting: how far it has read its topic, and the second (of acceptance) before which all is judged.
CREATE TABLE IF NOT EXISTS alert_positions (
    partition   int PRIMARY KEY,
    topic_id    text NOT NULL,
    next_offset bigint NOT NULL,
    judged      bigint NOT NULL
);

-- Error rows of each second, as far back as a rule looks; the newest message as a sample.
CREATE TABLE IF NOT EXISTS alert_counts (
    service text NOT NULL,
    second  bigint NOT NULL,
    rows    bigint NOT NULL,
    sample  text NOT NULL,
    PRIMARY KEY (service, second)
);

-- One row an episode; of a rule and a service one at a time is open.
CREATE TABLE IF NOT EXISTS alerts (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    rule           text NOT NULL,
    service        text NOT NULL,
    threshold      bigint NOT NULL,
    window_seconds int NOT NULL,
    opened_at      timestamptz NOT NULL,
    quiet_since    timestamptz,
    resolved_at    timestamptz,
    count          bigint NOT NULL,
    peak           bigint NOT NULL,
    sample         text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS alerts_open ON alerts (rule, service) WHERE resolved_at IS NULL;

-- What is to be posted to a webhook, written in the transaction that opens or resolves the alert.
CREATE TABLE IF NOT EXISTS alert_posts (
    alert_id     bigint NOT NULL REFERENCES alerts ON DELETE CASCADE,
    event        text NOT NULL CHECK (event IN ('opened', 'resolved')),
    created_at   timestamptz NOT NULL DEFAULT now(),
    attempts     int NOT NULL DEFAULT 0,
    next_try_at  timestamptz NOT NULL DEFAULT now(),
    problem      text NOT NULL DEFAULT '',
    delivered_at timestamptz,
    PRIMARY KEY (alert_id, event)
);
CREATE INDEX IF NOT EXISTS alert_posts_due ON alert_posts (next_try_at) WHERE delivered_at IS NULL;

-- Version 2: every number that vouches for rows carries the identity of what it counts in.

-- The identity of this ledger, for those who keep positions in it elsewhere (the journal of `logpipe send`).
CREATE TABLE IF NOT EXISTS ledger (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    id       uuid NOT NULL DEFAULT gen_random_uuid()
);
INSERT INTO ledger DEFAULT VALUES ON CONFLICT DO NOTHING;

-- Every topic that batches were ever published to; a topic that was deleted and made anew has another `topic_id`.
-- `batches.topic` refers to `number`; it is NULL in batches that version 1 published, whose topic is the first one.
CREATE TABLE IF NOT EXISTS topics (
    number   smallint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name     text NOT NULL,
    topic_id text NOT NULL,
    UNIQUE (name, topic_id)
);
ALTER TABLE batches ADD COLUMN IF NOT EXISTS topic smallint;

-- `epoch` is raised whenever a slot is leased anew; `mark_published` and `advance_slot` are refused in another epoch.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS epoch bigint NOT NULL DEFAULT 0;

-- '' in both columns: a position of version 1. The first process that reads the position binds it to what is there.
ALTER TABLE slot_positions ADD COLUMN IF NOT EXISTS topic_id text NOT NULL DEFAULT '';
ALTER TABLE sink_progress ADD COLUMN IF NOT EXISTS table_id text NOT NULL DEFAULT '';
ALTER TABLE replays ADD COLUMN IF NOT EXISTS table_id text NOT NULL DEFAULT '';

-- The watermark that was last computed for each store and dataset, so that a process need not begin at the first batch.
-- It holds for the table `table_id` and the topic `topic_id`, and only while no partition stands below `offsets`.
-- `epoch` is raised when the watermark is lowered: a process that computed an older one may no longer save it.
-- The row of store '' and dataset '' has the highest id at or below which no batch can appear any more.
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

-- The latest time at which a batch that retention dropped was accepted, in microseconds.
ALTER TABLE floors ADD COLUMN IF NOT EXISTS dropped_until bigint;

-- PostgreSQL's clock as retention saw it last: a jump beyond what is plausible stops retention.
CREATE TABLE IF NOT EXISTS retention_clock (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    seen_at  timestamptz NOT NULL
);

-- An index of the topic `dead-letter`: what is counted of each letter, once however often the letter was sent.
-- `batch_id` is -1 where the letter names no batch; `line` is -1 and `row_id` NULL where a message was refused whole.
-- `letter` is the offset of the letter in the topic, NULL once the topic that had it was deleted.
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
CREATE INDEX IF NOT EXISTS dead_letters_letter ON dead_letters (letter);
CREATE TABLE IF NOT EXISTS dead_letter_index (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    topic_id    text NOT NULL,
    next_offset bigint NOT NULL
);

-- Rows of these tables are updated all the time: dead versions are removed while they are few.
ALTER TABLE batches SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 50000,
    autovacuum_vacuum_insert_scale_factor = 0, autovacuum_vacuum_insert_threshold = 200000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 100000, fillfactor = 80);
ALTER TABLE slots SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE slot_positions SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE sink_progress SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
ALTER TABLE watermarks SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Version 3: why the owner of a slot cannot publish it, for `logpipe slots`; '' while the owner can.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS stuck text NOT NULL DEFAULT '';

-- Version 5: batches from `first_batch` on were accepted under the present lease: no former owner has published them.
-- NULL: not known.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS first_batch bigint;
-- Version 7: the last owner that read the slot's batches under the epoch of its lease; not `owner`, if a process of an
-- older release has leased the slot since.
ALTER TABLE slots ADD COLUMN IF NOT EXISTS reader uuid;
-- Alerts that were resolved long ago are found without reading the others.
CREATE INDEX IF NOT EXISTS alerts_resolved ON alerts (resolved_at) WHERE resolved_at IS NOT NULL;

-- Version 6: batch ids `after` < id <= `until` were left out when the ledger was restored from a backup (`restore`).
CREATE TABLE IF NOT EXISTS id_leaps (
    after bigint PRIMARY KEY,
    until bigint NOT NULL
);

CREATE TABLE IF NOT EXISTS ledger_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  int NOT NULL
);
INSERT INTO ledger_version (version) VALUES (7)
    ON CONFLICT (only_row) DO UPDATE SET version = greatest(ledger_version.version, excluded.version);
