-- The tables of the alerts. A release without migrations has made the same tables; this migration takes them over.

-- The offset up to which alerting has read its topic, and the second of acceptance below which all is judged.
CREATE TABLE IF NOT EXISTS alert_positions (
    partition   int PRIMARY KEY,
    topic_id    text NOT NULL,
    next_offset bigint NOT NULL,
    judged      bigint NOT NULL
);

-- The number of error rows in each second, as far back as a rule looks, with the newest message as a sample.
CREATE TABLE IF NOT EXISTS alert_counts (
    service text NOT NULL,
    second  bigint NOT NULL,
    rows    bigint NOT NULL,
    sample  text NOT NULL,
    PRIMARY KEY (service, second)
);

-- One row for each episode. At most one episode of a rule and a service is open.
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
-- Alerts that were resolved long ago are found without reading the others.
CREATE INDEX IF NOT EXISTS alerts_resolved ON alerts (resolved_at) WHERE resolved_at IS NOT NULL;

-- The events to be posted to a webhook, written in the transaction that opens or resolves the alert.
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
