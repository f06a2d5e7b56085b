"""`logpipe kafka-source`: takes a foreign topic into a dataset, by the committer and the publisher of the ingest API.

A message holds one JSON object, or NDJSON. Each of its lines becomes a row of the dataset or a dead letter, exactly
once. From there a row is a row like any other.

`source.py` does these steps in this order, for the messages of all assigned partitions:

1. The topic id is compared with the id at the start. A topic that was created again has other messages at the same
   offsets, so the process stops and says what to do.
2. The messages are decoded (`decoding.py`). Nothing that a message contains is an error of the process.
3. The dead letters go to topic `dead-letter`, in one Kafka transaction, and the process waits for its commit.
4. One PostgreSQL transaction moves the offsets by compare-and-set, stores the rows and writes the ledger rows of their
   batches. Messages without any row move the offsets alone.

Dead letters precede the offsets, because two systems cannot commit together. After a crash between steps 3 and 4, the
next owner reads the messages again and sends the same dead letters again. A dead letter is known by topic, partition,
offset and line, so it counts once; and it cannot be lost, because the offset moves only after it is in Kafka. A good
neighbour of a bad line is in the transaction of step 4, so it is stored once, however often step 3 is repeated.

A process that lost its partitions (a rebalance, or a zombie that was suspended) is fenced in step 4: its offsets are
no longer those of the ledger, and nothing is stored. Kafka's consumer group only shares out the partitions; no offset
is committed to it. After any failure the positions are read from the ledger again, so an unknown outcome of a COMMIT
is settled by looking.
"""
