#!/usr/bin/env bash
# Builds the images, starts the pair of compose.yaml with three Unbound servers as
# upstreams, and tests each failure that the pair must survive, with clients that send 500
# queries a second. Prints a table.
#
#	docker/test-ha.sh
#
# Exit status: 0 passed, 1 failed, 3 not run (no Docker engine).
# Only images are kept, whose layers make the next run faster. Once they are built, no
# packet leaves the machine. KEEP=1 leaves the pair running. BUILD=no uses the images as
# they are, and does not compare their program. CASES, a regular expression, selects cases.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly here

say() { printf 'test-ha: %s\n' "$*" >&2; }
die() { say "FAILED: $*"; exit 1; }

if ! docker version >/dev/null 2>&1; then
	echo "test-ha: NOT RUN: no Docker engine"
	exit 3
fi
if docker compose version >/dev/null 2>&1; then
	compose=(docker compose)
elif command -v docker-compose >/dev/null; then
	compose=(docker-compose)
else
	die "Compose is missing (Debian package: docker-compose)"
fi
for tool in openssl go jq; do
	command -v $tool >/dev/null || die "$tool is missing (Debian package: ${tool/#go/golang})"
done

export COMPOSE_PROJECT_NAME=dotgate-test-$$
export DOTGATE_IMAGE=dotgate:test DOTGATE_KEEPALIVED_IMAGE=dotgate-keepalived:test
export PAIR_NET=172.28.$((1 + $$ % 250)) UPSTREAM_NET=172.29.$((1 + $$ % 250))
export PAIR_SUBNET=$PAIR_NET.0/24 PAIR_ADDRESS_A=$PAIR_NET.11 PAIR_ADDRESS_B=$PAIR_NET.12 VRRP_ADDRESS=$PAIR_NET.53
export DOTGATE_UPSTREAMS="tls://$UPSTREAM_NET.101:853#dns.example,tls://$UPSTREAM_NET.102:853#dns.example,tls://$UPSTREAM_NET.103:853#dns.example"
# The builder uses the same module proxy.
for name in GOPROXY GOSUMDB GONOSUMDB GOFLAGS; do
	[[ -n ${!name:-} ]] || export "$name=$(go env "$name")"
done
# The build runs the tests of one package only; make test runs all.
export TESTS=${TESTS:-./gateway/wire}
unset DOTGATE_LOG_LEVEL DOTGATE_HEALTH_PROBE_NAME DOTGATE_GATEWAY_LAMEDUCK DOTGATE_ENV_FILE
unset VRRP_ROUTER_ID VRRP_PRIORITY_A VRRP_PRIORITY_B VRRP_INTERVAL VERSION

compose() {
	timeout "${limit:-120}" "${compose[@]}" --project-directory "$here" -f "$here/compose.yaml" -f "$here/test/compose.yaml" "$@"
}

TEST_DIR=$(mktemp -d)
export TEST_DIR
failed='' # what failed, told last
cleanup() {
	local status=$?
	trap - EXIT INT TERM
	if ((status != 0)); then
		say "the last log lines of the containers:"
		compose logs --no-color --tail=25 2>&1 | cut -c1-200 >&2 || true
		[[ -z $failed ]] || printf 'test-ha: FAILED:\n%s' "$failed" >&2
	fi
	if [[ -n ${KEEP:-} ]]; then
		say "left running: COMPOSE_PROJECT_NAME=$COMPOSE_PROJECT_NAME, files in $TEST_DIR"
	else
		compose down --volumes --remove-orphans --timeout 1 >/dev/null 2>&1 || true
		docker image rm dotgate:test-next >/dev/null 2>&1 || true
		rm -rf "$TEST_DIR"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# container SERVICE: prints its container
container() { compose ps --quiet "$1" 2>/dev/null; }

declare -A id
find_containers() {
	local service
	for service in {node,dotgate,keepalived}-{a,b} unbound-{1,2,3} client; do
		id[$service]=$(container "$service")
		[[ -n ${id[$service]} ]] || die "$service does not run"
	done
}

# on_node NODE COMMAND...: runs in the network namespace of a node, as root
on_node() { docker exec "${id[keepalived-$1]}" "${@:2}"; }

other() { if [[ $1 == a ]]; then echo b; else echo a; fi; }

address() { local name=PAIR_ADDRESS_${1^^}; echo "${!name}"; }

# holders: prints the nodes with the shared address on their interface, "a", "b" or "a b"
holders() {
	local node
	for node in a b; do
		if on_node "$node" ip -oneline address show scope global 2>/dev/null | grep -F " $VRRP_ADDRESS/32 " >/dev/null; then
			echo "$node"
		fi
	done | paste -sd' '
}

# health NODE: prints the health of its gateway for keepalived; 0 is healthy
health() { on_node "$1" cat /run/dotgate.health 2>/dev/null || echo none; }

# moves SINCE: prints the number of moves of the address since then
moves() {
	local node
	for node in a b; do
		docker logs --since "$1" "${id[keepalived-$node]}" 2>&1
	done | grep -c 'Entering MASTER STATE' || true
}

# dig inside the client's container
ask() { docker exec "${id[client]}" dig +tries=1 "$@" 2>&1; }

all_healthy() { [[ $(health a) == 0 && $(health b) == 0 && $(holders) == [ab] ]]; }

await() { # SECONDS WHAT COMMAND...
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		((SECONDS < deadline)) || die "$what took too long (health $(health a) and $(health b), address at: $(holders))"
		sleep 0.2
	done
}

# --- build ---------------------------------------------------------------

if [[ ${BUILD:-yes} == yes ]]; then
	"$here/base-images.sh"
	say "building"
	limit=1200 compose build dotgate-a keepalived-a unbound-1 >"$TEST_DIR/build.log" 2>&1 || { tail -n 30 "$TEST_DIR/build.log" >&2; die "the images could not be built"; }
fi
for program in load delay; do
	(cd "$here/test" && CGO_ENABLED=0 go build -o "$TEST_DIR/$program" "./$program")
done
echo "FROM dotgate:test
LABEL of=\"the next version\"" | docker build --quiet --tag dotgate:test-next - >/dev/null
say "built after $SECONDS s"

# --- start ---------------------------------------------------------------

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj "/CN=test authority" \
	-keyout "$TEST_DIR/ca.key" -out "$TEST_DIR/ca.pem" 2>/dev/null
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=dns.example" \
	-keyout "$TEST_DIR/server.key" -out "$TEST_DIR/server.csr" 2>/dev/null
openssl x509 -req -in "$TEST_DIR/server.csr" -CA "$TEST_DIR/ca.pem" -CAkey "$TEST_DIR/ca.key" -CAcreateserial -days 2 \
	-extfile <(printf 'subjectAltName=DNS:dns.example\nextendedKeyUsage=serverAuth\n') -out "$TEST_DIR/server.pem" 2>/dev/null
chmod 755 "$TEST_DIR"
chmod a+r "$TEST_DIR"/*

say "starting"
compose up --detach --no-build >"$TEST_DIR/up.log" 2>&1 || { tail -n 30 "$TEST_DIR/up.log" >&2; die "compose up"; }
find_containers
await 45 "the start" all_healthy

# --- checks --------------------------------------------------------------

# fail LINE [DETAILS]: remembers what failed, for the last lines of the output
fail() { failed+="$1"$'\n'; [[ -z ${2:-} ]] || failed+="$2"$'\n'; }

# check WHAT COMMAND...: the command prints nothing if it passes
check() {
	local problem
	problem=$("${@:2}" 2>&1) || problem=${problem:-"${*:2} failed"}
	printf '%-62s %s\n' "$1" "${problem:+FAILED: }${problem:-ok}"
	[[ -z $problem ]] || fail "$1: $problem"
}

# answers DIG-ARGUMENTS...
answers() {
	local got
	got=$(ask +short +time=2 "$@")
	[[ $got == 192.0.2.53 ]] || echo "$got"
}

# status WANTED DIG-ARGUMENTS...
status() {
	local got
	got=$(ask +time=5 "${@:2}" | sed -n 's/.*status: \([A-Z]*\),.*/\1/p')
	[[ $got == "$1" ]] || echo "${got:-no reply}"
}

# quiet COMMAND...: only its exit status counts
quiet() { "$@" >/dev/null; }

# image: size, user, health check and bill of materials
image() {
	local size
	size=$(docker image inspect --format '{{.Size}}' "$DOTGATE_IMAGE")
	((size < 25000000)) || echo "it has $size octets"
	[[ $(docker image inspect --format '{{.Config.User}} {{json .Config.Healthcheck.Test}}' "$DOTGATE_IMAGE") == '65532:65532 ["CMD","/dotgate","healthcheck"]' ]] || echo "user or health check"
	docker cp "${id[dotgate-a]}:/dotgate.cdx.json" - | tar -xO | jq -e '.bomFormat == "CycloneDX" and (.components | map(.name) | index("github.com/miekg/dns"))' >/dev/null || echo "bill of materials"
}

# reproducible: a build in another directory, without the container, must make the same
# bytes. If the Go version differs, it is built in the builder's image again.
reproducible() {
	local flags='-trimpath -buildvcs=false' linker='-s -w -buildid= -X main.version=dev'
	docker cp "${id[dotgate-a]}:/dotgate" "$TEST_DIR/dotgate"
	if [[ $(go env GOVERSION) == "$(go version "$TEST_DIR/dotgate" | sed 's/.*: //')" ]]; then
		# shellcheck disable=SC2086
		(cd "$here/.." && CGO_ENABLED=0 go build $flags -ldflags="$linker" -o "$TEST_DIR/dotgate-again" ./cmd/dotgate)
	else
		docker run --rm --volume "$here/..:/elsewhere:ro" --volume "$TEST_DIR:/out" --workdir /elsewhere \
			--env GOPROXY --env GOSUMDB --env GONOSUMDB --env GOFLAGS --env CGO_ENABLED=0 golang:1.26-bookworm \
			sh -c "go build $flags -ldflags='$linker' -o /out/dotgate-again ./cmd/dotgate"
	fi
	cmp "$TEST_DIR/dotgate" "$TEST_DIR/dotgate-again"
}

echo
check "the image: below 25 MB, not root, a bill of materials" image
[[ ${BUILD:-yes} != yes ]] || check "the program is the same, byte for byte, built elsewhere" reproducible
for node in a b; do
	check "node $node answers at its own address" answers "@$(address $node)" www.example.com A
done
check "the shared address answers over UDP" answers "@$VRRP_ADDRESS" www.example.com A
check "the shared address answers over TCP" answers "@$VRRP_ADDRESS" www.example.com A +tcp
check "a name that does not exist is NXDOMAIN" status NXDOMAIN "@$VRRP_ADDRESS" www.example.org A
check "dotgate status works" quiet docker exec "${id[dotgate-a]}" /dotgate status


mkfifo "$TEST_DIR/marks"

# --- cases ---------------------------------------------------------------

row() { printf '%-52s %7s %7s %7s %8s %8s %6s  %s\n' "$@"; }

# Each case has a limit for failed queries, and one for the address:
#
#	alone      no query may fail, even without a retry. If the address moves, up to two
#	           over TCP may, and none of them if it is repeated once: if the SYN of a
#	           connection reached one node, and the next packet reaches the other, that
#	           one resets the connection.
#	udp        no query may fail over UDP, even without a retry, and none over TCP that
#	           is repeated once
#	retried    no query may fail that is repeated once, after a second
#	hot        no query for a hot name may fail, and all others get a reply, which may be
#	           SERVFAIL
#	stale      the same, and some of the answers are stale
#
#	moves=MS   the other node answers within MS ms after the last answer of the first
#	within=MS  the other node answers within MS ms after the failure
#	stays      the address does not move
#	once       it moves at most once
#
# BREAK and MEND are commands whose argument is the node with the address. MEND runs after
# the load, or in the middle of it if it is preceded by "then".
#
# run_case WHAT LOSS ADDRESS SECONDS BREAK [then] MEND
run_case() {
	local what=$1 loss=$2 address=$3 seconds=$4 break=$5 mend=${*: -1} since asking result=ok in=- moves key value line
	[[ -z ${CASES:-} || $what =~ $CASES ]] || return 0
	await 45 "being healthy before \"$what\"" all_healthy
	from=$(holders)
	since=$(date +%s.%N)
	docker exec --interactive "${id[client]}" /test/load -server "$VRRP_ADDRESS:53" \
		<"$TEST_DIR/marks" >"$TEST_DIR/report" 2>"$TEST_DIR/problems" &
	asking=$!
	exec 9>"$TEST_DIR/marks"
	sleep 1
	echo >&9
	$break "$from" >/dev/null
	sleep "$seconds"
	if [[ $6 == then ]]; then
		$mend "$from" >/dev/null
		sleep "$seconds"
	fi
	exec 9>&-
	wait $asking || die "the clients of \"$what\" failed: $(tail -n 1 "$TEST_DIR/problems")"
	moves=$(moves "$since")
	[[ $6 == then ]] || $mend "$from" >/dev/null

	local -A r
	while IFS='=' read -r key value; do r[$key]=$value; done < <(jq -r 'to_entries[] | "\(.key)=\(.value)"' "$TEST_DIR/report")
	case $address in
	moves=*) in=${r[gap]} ;;
	within=*) in=${r[moved]} ;;
	stays) ((moves == 0)) || result="FAILED: the address moved" ;;
	once) ((moves <= 1)) || result="FAILED: the address moved $moves times" ;;
	esac
	if [[ $in != - ]]; then
		((in < ${address#*=})) || result="FAILED: not within ${address#*=} ms"
		((r[moved] > 0)) || result="FAILED: the address did not move"
		in="$in ms"
	fi
	case $loss in
	alone)
		((r[failed_udp] == 0 && r[lost] == 0)) || result="FAILED: queries failed"
		((r[failed] <= (moves > 0 ? 2 : 0))) || result="FAILED: queries over TCP failed"
		;;
	udp) ((r[failed_udp] == 0 && r[lost] == 0)) || result="FAILED: queries failed" ;;
	retried) ((r[lost] == 0)) || result="FAILED: queries lost" ;;
	hot | stale)
		((r[lost_hot] == 0)) || result="FAILED: hot names lost"
		((r[unreplied] == 0)) || result="FAILED: ${r[unreplied]} queries without a reply"
		[[ $loss == hot ]] || ((r[stale] > 0)) || result="FAILED: no stale answers"
		;;
	esac
	((r[queries] > 450 * seconds)) || result="FAILED: only ${r[queries]} queries were sent"
	line=$(row "$what" "${r[queries]}" "${r[failed]}" "${r[lost]}" "${r[silent]} ms" "$in" "$moves" "$result")
	echo "$line"
	[[ $result == ok ]] || fail "$line" "$(sort -k2 "$TEST_DIR/problems" | head -n 20)"
}

# quietly COMMAND...: prints its output only if it fails
quietly() { "$@" >"$TEST_DIR/log" 2>&1 || { tail -n 20 "$TEST_DIR/log" >&2; die "$*"; }; }

nothing() { :; }

# gateway_X and keepalived_X do X to one container.
gateway_kill() { docker kill "${id[dotgate-$1]}"; }
gateway_stop() { docker stop --time 10 "${id[dotgate-$1]}"; }
gateway_start() { docker start "${id[dotgate-$1]}"; }
gateway_pause() { docker pause "${id[dotgate-$1]}"; }
gateway_unpause() { docker unpause "${id[dotgate-$1]}"; }
keepalived_kill() { docker kill "${id[keepalived-$1]}"; }
keepalived_stop() { docker stop --time 3 "${id[keepalived-$1]}"; }
keepalived_start() { docker start "${id[keepalived-$1]}"; }

# Power off: the node ends first, with its network. It starts in order.
node_kill() { docker kill "${id[node-$1]}" "${id[dotgate-$1]}" "${id[keepalived-$1]}"; }
node_start() { quietly compose up --detach --no-build --no-recreate; }
node_pause() { docker pause "${id[keepalived-$1]}" "${id[dotgate-$1]}"; }
node_unpause() { docker unpause "${id[dotgate-$1]}" "${id[keepalived-$1]}"; }

# The other node first, so that the address moves to a gateway that has just started, both
# times.
restart() {
	docker restart --time 10 "${id[dotgate-$1]}"
	sleep 0.5
	await 45 "the restart of node $1" all_healthy
}
restart_both() { restart "$(other "$1")"; restart "$1"; }

replace() {
	DOTGATE_IMAGE=dotgate:test-next quietly compose up --detach --no-build --no-deps "dotgate-$1"
	id[dotgate-$1]=$(container "dotgate-$1")
	sleep 0.5
	await 45 "the upgrade of node $1" all_healthy
}
upgrade_both() { replace "$(other "$1")"; replace "$1"; }

# sever NODE ADDRESSES: drops packets from these addresses
sever() { on_node "$1" nft "add table ip cut; add chain ip cut input { type filter hook prerouting priority -300; }; add rule ip cut input ip saddr $2 drop"; }
mend() { on_node "$1" nft "add table ip cut; delete table ip cut"; }
mend_both() { mend a; mend b; }
cut_upstreams() { sever "$1" "$UPSTREAM_NET.0/24"; }
cut_all_upstreams() { cut_upstreams "$1"; cut_upstreams "$(other "$1")"; }
part() { sever a "$PAIR_ADDRESS_B"; sever b "$PAIR_ADDRESS_A"; }
unite() { apart=$(holders); mend_both; }

unplug() { docker network disconnect "${COMPOSE_PROJECT_NAME}_upstream" "${id[node-$1]}"; }
plug() { docker network connect "${COMPOSE_PROJECT_NAME}_upstream" "${id[node-$1]}"; }

# fill NODE: fills the volume of its cache, which the node has mounted, too.
fill() { docker exec --user 65532 "${id[node-$1]}" dd if=/dev/zero of=/cache/up bs=16k 2>/dev/null || true; }
fill_and_restart_both() { fill a; fill b; restart_both "$1"; }
empty_both() { local node; for node in a b; do docker exec --user 65532 "${id[node-$node]}" rm /cache/up; done; }

echo
row case queries failed lost silence moved moves result
row "(failed: without a retry; lost: with one)" ------- ------ ---- ------- ----- ----- -------
run_case "node killed (docker kill)" retried moves=500 3 node_kill node_start
run_case "gateway killed" retried moves=500 3 gateway_kill gateway_start
run_case "node frozen (docker pause)" retried moves=500 3 node_pause node_unpause
run_case "gateway frozen" retried moves=1000 3 gateway_pause gateway_unpause
run_case "gateway stopped (docker stop)" alone within=2000 3 gateway_stop gateway_start
run_case "keepalived killed" retried moves=500 3 keepalived_kill keepalived_start
run_case "keepalived stopped" udp within=1000 3 keepalived_stop keepalived_start
run_case "rolling restart" alone any 1 restart_both nothing
run_case "rolling upgrade" alone any 1 upgrade_both nothing
run_case "upstreams silent for one node" hot within=2000 4 cut_upstreams mend
run_case "upstreams out of reach for one node" hot within=2000 4 unplug plug
run_case "upstreams silent for both" stale once 5 cut_all_upstreams then mend_both
run_case "the nodes do not reach each other" alone once 4 part then unite
[[ -z ${apart-} ]] || check "  both had the address meanwhile" test "$apart" = "a b"
run_case "no space for the cache, and a rolling restart" alone any 1 fill_and_restart_both empty_both

echo
[[ -z $failed ]] || exit 1
say "passed in $SECONDS s"
