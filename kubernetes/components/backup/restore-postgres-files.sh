# Unpacks the copy that is named, or else the newest one. The former files of the server are kept beside the new ones.
set -eu
copies=/backups/postgres-files
data=/var/lib/postgresql/data/pgdata
newest=$(find "$copies" -mindepth 1 -maxdepth 1 -name '[0-9]*' | sort | tail -n 1)
copy=${1:-$newest}
if [ ! -f "$copy/base.tar.gz" ]; then
    echo "there is no copy of the server's files: '$copy'" >&2
    exit 1
fi
if [ -e "$data/postmaster.pid" ]; then
    echo "PostgreSQL runs, or was killed: stop it first; if it was killed, delete $data/postmaster.pid" >&2
    exit 1
fi
rm -rf "$data.part"
mkdir -m 700 "$data.part"
tar -xzf "$copy/base.tar.gz" -C "$data.part"
tar -xzf "$copy/pg_wal.tar.gz" -C "$data.part/pg_wal"
[ ! -e "$data" ] || mv -T "$data" "$data-before-$(date -u +%Y-%m-%dT%H%M%S)"
mv -T "$data.part" "$data"
echo "unpacked $copy"
