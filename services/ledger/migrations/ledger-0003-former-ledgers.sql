-- The ids that this ledger had before it was restored from backups: what a program kept of one of them is still true of
-- the batches that the backup has.
CREATE TABLE IF NOT EXISTS former_ledgers (
    id          uuid PRIMARY KEY,
    restored_at timestamptz NOT NULL DEFAULT now()
);
