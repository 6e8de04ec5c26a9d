#!/usr/bin/env bash
# Builds the images, starts the pair of compose.yaml with three Unbounds as its
# upstreams, breaks it in every way that it is there for while clients ask, and
# says what the clients saw.
#
#	docker/test-pair.sh
#
# Exit status: 0 all well, 1 something failed, 3 not run (no Docker engine).
# Nothing stays but images, whose layers make the next run faster, and nothing
# leaves the machine once they are built. KEEP=1 leaves the pair running.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here

say() { printf 'test-pair: %s\n' "$*" >&2; }
die() { say "FAILED: $*"; exit 1; }

if ! docker version >/dev/null 2>&1; then
	echo "test-pair: NOT RUN: no Docker engine"
	exit 3
fi
if docker compose version >/dev/null 2>&1; then
	compose=(docker compose)
elif command -v docker-compose >/dev/null; then
	compose=(docker-compose)
else
	die "Compose is missing (Debian package: docker-compose)"
fi
command -v openssl >/dev/null || die "openssl is missing (Debian package: openssl)"

export COMPOSE_PROJECT_NAME=dotgate-test-$$
export DOTGATE_IMAGE=dotgate:test DOTGATE_KEEPALIVED_IMAGE=dotgate-keepalived:test
export TEST_NET=172.28.$((1 + $$ % 250))
export PAIR_SUBNET=$TEST_NET.0/24 PAIR_ADDRESS_A=$TEST_NET.11 PAIR_ADDRESS_B=$TEST_NET.12 VRRP_ADDRESS=$TEST_NET.53
export DOTGATE_UPSTREAMS="tls://$TEST_NET.101:853#dns.example,tls://$TEST_NET.102:853#dns.example,tls://$TEST_NET.103:853#dns.example"
# Modules come to the builder from where they come to us.
for name in GOPROXY GOSUMDB GONOSUMDB GOFLAGS; do
	[[ -n ${!name:-} ]] || ! command -v go >/dev/null || export "$name=$(go env "$name")"
done
unset DOTGATE_LOG_LEVEL DOTGATE_HEALTH_PROBE_NAME VRRP_ROUTER_ID VRRP_PRIORITY_A VRRP_PRIORITY_B VRRP_INTERVAL

compose() {
	timeout "${limit:-120}" "${compose[@]}" --project-directory "$here" -f "$here/compose.yaml" -f "$here/test/compose.yaml" "$@"
}

TEST_DIR=$(mktemp -d)
export TEST_DIR
cleanup() {
	local status=$?
	trap - EXIT INT TERM
	if ((status != 0)); then
		say "what the containers said last:"
		compose logs --no-color --tail=25 2>&1 | cut -c1-200 >&2 || true
	fi
	if [[ -n ${KEEP:-} ]]; then
		say "left running: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME, files in $TEST_DIR"
	else
		compose down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
		rm -rf "$TEST_DIR"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# container SERVICE: the one that runs it
container() { compose ps --quiet "$1" 2>/dev/null; }

now() { echo $((${EPOCHREALTIME/./} / 1000)); } # ms

# holders: the nodes that have the shared address, "a", "b" or "a b"
holders() {
	local node
	for node in a b; do
		if docker exec "${id[keepalived-$node]}" ip -oneline address show 2>/dev/null | grep -F " $VRRP_ADDRESS/32 " >/dev/null; then
			echo "$node"
		fi
	done | paste -sd' '
}

# dig inside the client's container
ask() { docker exec "${id[client]}" dig +tries=1 "$@" 2>&1; }

# all_well: both programs healthy, both upright in keepalived's eyes, one holder
all_well() {
	local node
	for node in a b; do
		[[ $(docker inspect --format '{{.State.Running}} {{.State.Health.Status}}' "${id[dotgate-$node]}") == "true healthy" ]] || return 1
		[[ $(docker exec "${id[keepalived-$node]}" cat /run/dotgate.verdict 2>/dev/null) == 0 ]] || return 1
	done
	[[ $(holders) == [ab] ]]
}

await_all_well() {
	local deadline=$((SECONDS + 45))
	until all_well; do
		((SECONDS < deadline)) || die "the pair is not well $1 (address held by: $(holders))"
		sleep 0.3
	done
}

# --- build ---------------------------------------------------------------

"$here/base-images.sh"
say "building"
limit=900 compose build dotgate-a keepalived-a unbound-1 >"$TEST_DIR/build.log" 2>&1 || { tail -n 30 "$TEST_DIR/build.log" >&2; die "the images could not be built"; }

# --- start ---------------------------------------------------------------

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test authority" \
	-keyout "$TEST_DIR/ca.key" -out "$TEST_DIR/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=dns.example" \
	-keyout "$TEST_DIR/server.key" -out "$TEST_DIR/server.csr" 2>/dev/null
openssl x509 -req -in "$TEST_DIR/server.csr" -CA "$TEST_DIR/ca.pem" -CAkey "$TEST_DIR/ca.key" -CAcreateserial -days 2 \
	-extfile <(printf 'subjectAltName=DNS:dns.example\nextendedKeyUsage=serverAuth\n') -out "$TEST_DIR/server.pem" 2>/dev/null
chmod 755 "$TEST_DIR"
chmod 644 "$TEST_DIR"/*

say "starting"
compose up --detach --no-build >"$TEST_DIR/up.log" 2>&1 || { tail -n 30 "$TEST_DIR/up.log" >&2; die "compose up"; }
declare -A id
for service in {node,dotgate,keepalived}-{a,b} unbound-{1,2,3} client; do
	id[$service]=$(container "$service")
	[[ -n ${id[$service]} ]] || die "$service does not run"
done
await_all_well "after the start"

# --- checks --------------------------------------------------------------

failures=0
row() { printf '%-44s %8s %8s %8s %12s   %s\n' "$@"; }

# check WHAT VERDICT: a line without figures
check() {
	row "$1" "" "" "" "" "$2"
	[[ $2 == ok ]] || failures=$((failures + 1))
}

# same ANSWER DIG-ARGUMENTS...
same() {
	local want=$1 got
	shift
	got=$(ask +short +time=2 "$@")
	if [[ $got == "$want" ]]; then echo ok; else echo "FAILED: $got"; fi
}

# status WANTED-REGEXP DIG-ARGUMENTS...
status() {
	local want=$1 got
	shift
	got=$(ask +time=5 "$@" | sed -n 's/.*status: \([A-Z]*\),.*/\1/p')
	if [[ $got =~ ^($want)$ ]]; then echo ok; else echo "FAILED: ${got:-no reply}"; fi
}

# story WHAT LIMIT-MS MAY-FAIL BREAK...: we BREAK something while clients ask. The
# address has to answer again within LIMIT-MS, and unless MAY-FAIL every query
# must be answered, at the latest when it is repeated.
story() {
	local what=$1 limit_ms=$2 may_fail=$3 began sent retried failed back after verdict
	shift 3
	label=story-$((stories += 1))
	docker exec "${id[client]}" ask.sh "$VRRP_ADDRESS" "$label" >"$TEST_DIR/$label" &
	local asking=$!
	sleep 1.5
	began=$(now)
	"$@" >/dev/null
	sleep 4
	docker exec "${id[client]}" touch "/run/$label"
	wait "$asking"
	# The address is back when a query is answered at once and none after it was lost.
	read -r sent retried failed back after < <(sort -n "$TEST_DIR/$label" | awk -v began="$began" '
		{ sent++; if ($2 == "retried") retried++; if ($2 == "failed") failed++ }
		$1 > began + 2000 { after++ }
		$2 != "ok" { lost = 1; back = 0 }
		$2 == "ok" && lost && !back { back = $1 - began }
		END { print sent+0, retried+0, failed+0, lost ? (back ? back : 99999) : 0, after+0 }')
	verdict=ok
	((after > 0)) || verdict="FAILED: nobody asked any more"
	((may_fail || failed == 0)) || verdict="FAILED: queries lost"
	((back <= limit_ms)) || verdict="FAILED: over $limit_ms ms"
	if ((back == 0)); then back="none lost"; else back="$back ms"; fi
	row "$what" "$sent" "$retried" "$failed" "$back" "$verdict"
	[[ $verdict == ok ]] || failures=$((failures + 1))
}
stories=0

# kill_node NODE: power off. The node goes first, and its network with it.
kill_node() { docker kill "${id[node-$1]}" "${id[dotgate-$1]}" "${id[keepalived-$1]}"; }

repair() { compose up --detach --no-build --no-recreate >"$TEST_DIR/up.log" 2>&1 || { cat "$TEST_DIR/up.log" >&2; die "compose up"; }; }

# moved FROM: the address is on the other node
moved() {
	local now_at
	now_at=$(holders)
	if [[ $now_at == [ab] && $now_at != "$1" ]]; then echo ok; else echo "FAILED: held by ${now_at:-nobody}"; fi
}

echo
row "what" asked retried failed "back after" verdict
row "----" ----- ------- ------ ---------- -------
for node in a b; do
	address=PAIR_ADDRESS_${node^^}
	check "node $node answers at its own address" "$(same 192.0.2.53 "@${!address}" www.example.com A)"
done
check "the shared address answers over UDP" "$(same 192.0.2.53 "@$VRRP_ADDRESS" www.example.com A)"
check "the shared address answers over TCP" "$(same 192.0.2.53 "@$VRRP_ADDRESS" www.example.com A +tcp)"
check "the program says how it is (dotgate status)" "$(docker exec "${id[dotgate-a]}" /dotgate status >/dev/null 2>"$TEST_DIR/status" && echo ok || echo "FAILED: $(tail -n 1 "$TEST_DIR/status")")"
check "NXDOMAIN stays NXDOMAIN" "$(status NXDOMAIN "@$VRRP_ADDRESS" www.example.org A)"

from=$(holders)
story "node $from loses power" 1000 0 kill_node "$from"
repair
await_all_well "after node $from came back"
check "  it came back and left the address there" "$(moved "$from")"

from=$(holders)
story "dotgate on node $from is killed" 1000 0 docker kill "${id[dotgate-$from]}"
check "  the address moved" "$(moved "$from")"
docker start "${id[dotgate-$from]}" >/dev/null
await_all_well "after dotgate on node $from was started again"

from=$(holders)
story "dotgate on node $from freezes" 1500 1 docker pause "${id[dotgate-$from]}"
check "  the address moved" "$(moved "$from")"
docker unpause "${id[dotgate-$from]}" >/dev/null
await_all_well "after dotgate on node $from went on"

from=$(holders)
story "dotgate on node $from is stopped in order" 0 0 docker stop --time 10 "${id[dotgate-$from]}"
check "  the address moved" "$(moved "$from")"
docker start "${id[dotgate-$from]}" >/dev/null
await_all_well "after dotgate on node $from was started again"

from=$(holders)
story "keepalived on node $from is killed" 1000 0 docker kill "${id[keepalived-$from]}"
docker start "${id[keepalived-$from]}" >/dev/null
await_all_well "after keepalived on node $from was started again"

from=$(holders)
story "keepalived on node $from is stopped in order" 500 0 docker stop --time 3 "${id[keepalived-$from]}"
docker start "${id[keepalived-$from]}" >/dev/null
await_all_well "after keepalived on node $from was started again"
check "  the address moved, and stayed there" "$(moved "$from")"

docker kill "${id[unbound-1]}" "${id[unbound-2]}" "${id[unbound-3]}" >/dev/null
sleep 4
check "no upstream left: somebody keeps the address" "$([[ $(holders) == [ab] ]] && echo ok || echo "FAILED: held by $(holders)")"
check "  and replies" "$(status 'SERVFAIL|NOERROR' "@$VRRP_ADDRESS" never-asked.example.com A)"
docker start "${id[unbound-1]}" "${id[unbound-2]}" "${id[unbound-3]}" >/dev/null
await_all_well "after the upstreams came back"
check "  the upstreams came back: it answers again" "$(same 192.0.2.53 "@$VRRP_ADDRESS" again.example.com A)"

echo
((failures == 0)) || die "$failures of the lines above"
say "all well in $SECONDS s"
