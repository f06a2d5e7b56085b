-- The tables of a ledger of version 1, which it does not name, as the release that had it made them. An input of test_migrations.py: frozen.

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
