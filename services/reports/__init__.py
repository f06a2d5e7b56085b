"""What the jobs leave behind for readers: reports of a day in the lake, windows of the last minutes in PostgreSQL."""
