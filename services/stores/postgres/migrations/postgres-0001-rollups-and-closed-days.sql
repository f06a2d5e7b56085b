-- What PostgreSQL keeps beside the rows of all datasets. This migration also takes over a database in which `maintain`
-- of an earlier release made these tables: it adds what they lack. Such a `maintain` takes the same advisory locks.
DO $$ BEGIN PERFORM pg_advisory_xact_lock(7316004), pg_advisory_xact_lock(7316005); END $$;

-- A chunk holds all batches below `until_batch` that are not in an earlier chunk. `day` is the day of their acceptance.
-- `merged`: the chunk is the only one of its day. The chunks of the newest days are not merged yet.
CREATE TABLE IF NOT EXISTS rollup_chunks (
    rollup      text NOT NULL,
    until_batch bigint NOT NULL,
    day         date NOT NULL,
    row_count   bigint NOT NULL,
    merged      boolean NOT NULL DEFAULT false,
    PRIMARY KEY (rollup, until_batch)
);

-- The times and ids of the rows of a day that is over.
CREATE TABLE IF NOT EXISTS closed_days (
    dataset    text NOT NULL,
    day        int NOT NULL,       -- days since 1970-01-01 UTC
    least      bigint NOT NULL,    -- microseconds since 1970, UTC
    greatest   bigint NOT NULL,
    last_id    bigint NOT NULL,
    first_id   bigint,             -- NULL in notes of an earlier release, which are written again
    PRIMARY KEY (dataset, day)
);

-- ALTER TABLE locks a table that queries read, also where the column exists.
DO $$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'rollup_chunks'::regclass AND attname = 'merged') THEN
        ALTER TABLE rollup_chunks ADD COLUMN merged boolean NOT NULL DEFAULT false;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'closed_days'::regclass AND attname = 'first_id') THEN
        ALTER TABLE closed_days ADD COLUMN first_id bigint;
    END IF;
END $$;

CREATE INDEX IF NOT EXISTS rollup_chunks_day ON rollup_chunks (rollup, day);
CREATE INDEX IF NOT EXISTS rollup_chunks_unmerged ON rollup_chunks (rollup, until_batch) WHERE NOT merged;

-- Called by a trigger of the partition of a closed day, for a row that comes late.
CREATE OR REPLACE FUNCTION reopen_day() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM closed_days WHERE dataset = TG_ARGV[0] AND day = TG_ARGV[1]::int;
    RETURN NULL;
END $$;
