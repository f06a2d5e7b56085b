"""The ledger: tables in PostgreSQL that say what was accepted, published and loaded. SQL stays in this room."""
