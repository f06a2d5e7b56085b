"""How PostgreSQL is reached: connections, pools, and the translation of its errors."""
