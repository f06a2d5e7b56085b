#!/bin/bash
# What the manifests use of the official entry point: an empty data folder is filled, with the user, the password and
# the database of the variables, and with the scripts of /docker-entrypoint-initdb.d. Then the command runs.
set -euo pipefail

[[ ${1:-} == -* ]] && set -- postgres "$@"
if [[ ${1:-} == postgres && ! -s $PGDATA/PG_VERSION ]]; then
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    password=${POSTGRES_PASSWORD:-$(cat "${POSTGRES_PASSWORD_FILE:?POSTGRES_PASSWORD is needed to make the database}")}
    mkdir -p "$PGDATA"
    chmod 700 "$PGDATA"
    # shellcheck disable=SC2086 - several options in one variable, as in the official image
    initdb -D "$PGDATA" --username="$user" --pwfile=<(printf '%s\n' "$password") --encoding=UTF8 \
        --auth-local=trust --auth-host=scram-sha-256 ${POSTGRES_INITDB_ARGS:-}
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    sockets=/var/run/postgresql
    pg_ctl -D "$PGDATA" -w -s -o "-c listen_addresses='' -c unix_socket_directories=$sockets" start
    run=(psql --no-psqlrc -q -v ON_ERROR_STOP=1 -h "$sockets" -U "$user")
    if [[ $database != postgres ]]; then
        "${run[@]}" -d postgres -v name="$database" <<<'CREATE DATABASE :"name"'
    fi
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
            *.sh) POSTGRES_USER=$user POSTGRES_DB=$database PGHOST=$sockets bash "$script" ;;
            *.sql) "${run[@]}" -d "$database" -f "$script" ;;
        esac
    done
    pg_ctl -D "$PGDATA" -w -s -m fast stop
fi
# The official server is built with this folder for its socket, where psql looks for it.
[[ ${1:-} == postgres ]] && set -- "$@" -c unix_socket_directories=/var/run/postgresql
exec "$@"
