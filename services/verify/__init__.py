"""`logpipe verify`: reconciles every store against the ledger, batch by batch, by really reading the stores."""
