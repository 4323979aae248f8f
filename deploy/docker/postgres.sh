#!/bin/sh
# PostgreSQL with one database for each of Weft's control services. Each opens its own only, as the user
# it runs as (peer), over the socket in /run/postgresql. There is no other way in, so there is no password.
set -eu
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
data=/var/lib/postgresql/data

if [ ! -s "$data/PG_VERSION" ]; then
    rm -rf "$data.new"
    "$bin/initdb" --auth=reject --auth-local=peer --encoding=UTF8 -D "$data.new" >/dev/null
    {
        echo "local all postgres peer"
        for service in identity placement policy; do
            echo "local $service weft-$service peer"
        done
    } >"$data.new/pg_hba.conf"
    # Alone, one command on each line: nobody can connect before all is there.
    {
        for service in identity placement policy; do
            echo "CREATE ROLE \"weft-$service\" LOGIN;"
            echo "CREATE DATABASE $service OWNER \"weft-$service\";"
            echo "REVOKE ALL ON DATABASE $service FROM PUBLIC;"
        done
    } | "$bin/postgres" --single -E -D "$data.new" postgres >/dev/null
    mv "$data.new" "$data"
fi
exec "$bin/postgres" -D "$data" -c listen_addresses= -c unix_socket_directories=/run/postgresql
