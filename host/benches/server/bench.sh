#!/usr/bin/env bash
# bench.sh: the whole server under load, over HTTP, on PostgreSQL.
#
# Builds a release binary, starts a private PostgreSQL and the server, loads 100 organizations (5 people and 10 tenant
# policies in each) and 2,000 agents through the API, and runs wrk against three routes. The server has CPU 0; PostgreSQL
# and the load share CPU 1. Prints medians as a table. Everything is on 127.0.0.1 and in a temporary folder.
#
#   RUNS=3 SECS=10 CONNS=32 ROUTES="get_agent list_agents create_agent" host/benches/server/bench.sh
#   BENCH_BINARY=target/release/kaizen    use this binary in place of building one
#   BENCH_AGAINST=other/kaizen            run this one too, on a database of its own: bursts of SECS against each in turns,
#                                         RUNS pairs, and the median of the pairs' ratios. What the machine does meanwhile
#                                         falls on both, so that a difference of a few percent can be told from its noise.
set -euo pipefail
cd "$(dirname "$0")"
RUNS=${RUNS:-3} SECS=${SECS:-10} CONNS=${CONNS:-32} ROUTES=${ROUTES:-get_agent list_agents create_agent}
SERVER_CPU=${SERVER_CPU:-0} LOAD_CPU=${LOAD_CPU:-1}
for tool in wrk python3 taskset; do
    command -v $tool >/dev/null || { echo "bench.sh: install $tool first (apt-get install wrk python3 util-linux)" >&2; exit 1; }
done
PG_BIN=${PG_BIN:-$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1)}
[ -x "${PG_BIN:-}/postgres" ] || { echo "bench.sh: install PostgreSQL first (apt-get install postgresql)" >&2; exit 1; }

BINARY=${BENCH_BINARY:-}
if [ -z "$BINARY" ]; then
    root=$(cd ../../.. && pwd)
    (cd "$root" && cargo build --release --bin kaizen)
    BINARY=${CARGO_TARGET_DIR:-$root/target}/release/kaizen
fi
BINARY=$(realpath "$BINARY")
AGAINST=${BENCH_AGAINST:+$(realpath "$BENCH_AGAINST")}

tmp=$(mktemp -d)
chmod 755 "$tmp"
servers=() ports=() postgres=
finish() {
    [ ${#servers[@]} = 0 ] || kill "${servers[@]}" 2>/dev/null || true
    [ -z "$postgres" ] || kill -INT "$postgres" 2>/dev/null || true
    wait 2>/dev/null || true
    rm -rf "$tmp"
}
trap finish EXIT
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
until_port() {
    for _ in $(seq 300); do (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return; sleep 0.1; done
    echo "bench.sh: nothing listens on port $1; $2 says:" >&2; tail -20 "$2" >&2; exit 1
}

# PostgreSQL refuses to run as root.
as_pg=()
if [ "$(id -u)" = 0 ]; then as_pg=(setpriv --reuid=postgres --regid=postgres --clear-groups); fi
mkdir "$tmp/pg"
[ "$(id -u)" != 0 ] || chown postgres "$tmp/pg"
(cd "$tmp" && "${as_pg[@]}" "$PG_BIN/initdb" -D "$tmp/pg" -U studio -A trust >/dev/null)
pg_port=$(free_port)
(cd "$tmp" && exec taskset -c "$LOAD_CPU" "${as_pg[@]}" "$PG_BIN/postgres" -D "$tmp/pg" -p "$pg_port" -k "$tmp/pg" -h 127.0.0.1) >"$tmp/pg.log" 2>&1 &
postgres=$!
until_port "$pg_port" "$tmp/pg.log"
export KAIZEN_LOG=warn
# start NUMBER BINARY: a server with a database and data of its own
start() {
    local port ops
    "$PG_BIN/createdb" -h 127.0.0.1 -p "$pg_port" -U studio "studio$1"
    port=$(free_port) ops=$(free_port)
    export KAIZEN_DATABASE_URL=postgres://studio@127.0.0.1:$pg_port/studio$1 KAIZEN_DATA_DIR=$tmp/data$1
    KAIZEN_LISTEN=127.0.0.1:$port KAIZEN_OPS_LISTEN=127.0.0.1:$ops KAIZEN_EGRESS_ALLOW_PRIVATE=127.0.0.1/32 \
        taskset -c "$SERVER_CPU" "$2" serve >"$tmp/server$1.log" 2>&1 &
    servers+=($!) ports+=("$port")
    until_port "$port" "$tmp/server$1.log"
    mkdir "$tmp/seed$1"
    SEED_DIR=$tmp/seed$1 python3 seed.py "$2" "http://127.0.0.1:$port" >&2
}
start 0 "$BINARY"
[ -z "$AGAINST" ] || start 1 "$AGAINST"
"$PG_BIN/vacuumdb" -qaz -h 127.0.0.1 -p "$pg_port" -U studio

ticks() { awk '{sub(/^.*\) /, ""); print $12 + $13}' "/proc/${servers[$1]}/stat"; }
# once SERVER SECONDS ROUTE: one burst; a line of JSON
once() {
    local before line requests
    before=$(ticks "$1")
    line=$(SEED_DIR=$tmp/seed$1 taskset -c "$LOAD_CPU" wrk -t1 -c"$CONNS" -d"$2s" -s routes.lua "http://127.0.0.1:${ports[$1]}" -- "$3" | grep '^{')
    requests=$(grep -o '[0-9]*}$' <<<"$line" | tr -d '}')
    echo "${line%\}},\"server\":$1,\"cpu_ms\":$(awk "BEGIN {print ($(ticks "$1") - $before) * 10 / $requests}")}"
}
echo
echo "| route | binary | req/s | p50 ms | p99 ms | errors | CPU ms/req | server RSS MiB |"
echo "|---|---|---:|---:|---:|---:|---:|---:|"
for route in $ROUTES; do
    for server in "${!servers[@]}"; do once "$server" 2 "$route" >/dev/null; done
    # Each pair in the other order, so that whoever comes second has no advantage.
    for run in $(seq "$RUNS"); do
        for i in "${!servers[@]}"; do once $(((i + run) % ${#servers[@]})) "$SECS" "$route"; done
    done | python3 report.py "$route" "${servers[@]}"
done
echo
echo "machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) CPUs; $("$PG_BIN/postgres" --version)"
for binary in "$BINARY" ${AGAINST:+"$AGAINST"}; do echo "$binary: $("$binary" --version)"; done
