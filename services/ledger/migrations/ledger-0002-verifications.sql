-- What `logpipe verify` last found, by store and dataset, so that it can be seen after the command has ended. The counts
-- are rows. A verification that did not look at everything never lowers them (see `verifications`).
CREATE TABLE IF NOT EXISTS verifications (
    store      text NOT NULL,
    dataset    text NOT NULL,
    missing    bigint NOT NULL,
    extra      bigint NOT NULL,
    duplicated bigint NOT NULL,
    altered    bigint NOT NULL,
    batches    bigint NOT NULL,
    ended_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (store, dataset)
);
