"""How PostgreSQL is reached: connections, pools, migrations, and the translation of its errors."""
