-- Up to where each partition of a foreign topic was taken into a dataset, and how many lines that were: rows that were
-- accepted, and dead letters. A transaction that accepts rows of the topic changes these rows, too (see
-- `source_progress`).
CREATE TABLE IF NOT EXISTS source_progress (
    topic        text NOT NULL,
    dataset      text NOT NULL,
    partition    int NOT NULL,
    topic_id     text NOT NULL,
    next_offset  bigint NOT NULL,
    lines        bigint NOT NULL DEFAULT 0,
    rows         bigint NOT NULL DEFAULT 0,
    dead_letters bigint NOT NULL DEFAULT 0,
    resumed_at   timestamptz,
    updated_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (topic, dataset, partition)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
