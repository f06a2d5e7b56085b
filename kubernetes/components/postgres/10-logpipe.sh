# Run once, by the image, when the data folder is made. The pipeline's role is no superuser.
psql --username=postgres --dbname=postgres --set=ON_ERROR_STOP=1 <<'SQL'
\getenv password LOGPIPE_PASSWORD
CREATE ROLE logpipe LOGIN CREATEDB PASSWORD :'password';
GRANT pg_checkpoint, pg_monitor TO logpipe;
CREATE DATABASE logpipe OWNER logpipe;
SQL
# For backups of all files, by pg_basebackup.
echo 'host replication postgres all scram-sha-256' >>"$PGDATA/pg_hba.conf"
