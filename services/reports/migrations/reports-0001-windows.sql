-- The windows that the realtime aggregator counts: rows of a level and a service whose event time is in the ten seconds
-- from `start`. A realtime aggregator of an earlier release made this table itself.
CREATE TABLE IF NOT EXISTS realtime_windows (
    start      timestamptz NOT NULL,
    service    text NOT NULL,
    level      text NOT NULL,
    rows       bigint NOT NULL,
    PRIMARY KEY (start, service, level)
);
