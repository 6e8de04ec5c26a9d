#!/bin/bash
# Plays many clients that ask one server: a new query every 50 ms, each for a
# name of its own, every fourth over TCP, none waiting for the one before. Stops
# when there is a file /run/LABEL, and at the latest after 800 queries.
#
#	ask.sh SERVER LABEL
#
# A client waits one second for its answer and then asks once more. Prints a
# line per query: when it was sent (ms), and "ok", "retried" or "failed".
set -u

server=$1 label=$2

now() { echo "${EPOCHREALTIME/./}"; } # µs

answered() {
	[[ $(dig "@$server" "$@" A +short +tries=1 +time=1 2>/dev/null) == 192.0.2.53 ]]
}

ask() {
	local sent wait
	sent=$(now)
	if answered "$@"; then
		echo "$((sent / 1000)) ok"
		return
	fi
	wait=$((sent + 1000000 - $(now)))
	((wait <= 0)) || sleep "$(printf '0.%06d' "$wait")"
	if answered "$@"; then
		echo "$((sent / 1000)) retried"
	else
		echo "$((sent / 1000)) failed"
	fi
}

for ((i = 0; i < 800; i++)); do
	[[ ! -e /run/$label ]] || break
	transport=+notcp
	((i % 4)) || transport=+tcp
	ask "$label-$i.example.com" "$transport" &
	sleep 0.05
done
wait
