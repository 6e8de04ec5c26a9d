#!/usr/bin/env bash
# Builds the images, starts the pair of compose.yaml with three Unbounds as its
# upstreams, breaks it in every way that it is there for while clients ask 500
# times a second, and says what the clients saw.
#
#	docker/test-ha.sh
#
# Exit status: 0 all well, 1 something failed, 3 not run (no Docker engine).
# Nothing stays but images, whose layers make the next run faster, and nothing
# leaves the machine once they are built. KEEP=1 leaves the pair running, BUILD=no
# takes the images as they are, so that their program is not compared, and STORIES,
# a regular expression, plays only those stories.
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
# Modules come to the builder from where they come to us.
for name in GOPROXY GOSUMDB GONOSUMDB GOFLAGS; do
	[[ -n ${!name:-} ]] || export "$name=$(go env "$name")"
done
# That tests are part of a build is tried with one package; make test has run them all.
export TESTS=${TESTS:-./gateway/wire}
unset DOTGATE_LOG_LEVEL DOTGATE_HEALTH_PROBE_NAME DOTGATE_GATEWAY_LAMEDUCK DOTGATE_ENV_FILE
unset VRRP_ROUTER_ID VRRP_PRIORITY_A VRRP_PRIORITY_B VRRP_INTERVAL VERSION

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
		docker image rm dotgate:test-next >/dev/null 2>&1 || true
		rm -rf "$TEST_DIR"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# container SERVICE: the one that runs it
container() { compose ps --quiet "$1" 2>/dev/null; }

declare -A id
find_containers() {
	local service
	for service in {node,dotgate,keepalived}-{a,b} unbound-{1,2,3} client; do
		id[$service]=$(container "$service")
		[[ -n ${id[$service]} ]] || die "$service does not run"
	done
}

# on_node NODE COMMAND...: run in its network, as root there
on_node() { docker exec "${id[keepalived-$1]}" "${@:2}"; }

other() { if [[ $1 == a ]]; then echo b; else echo a; fi; }

address() { local name=PAIR_ADDRESS_${1^^}; echo "${!name}"; }

# holders: the nodes that show the shared address, "a", "b" or "a b"
holders() {
	local node
	for node in a b; do
		if on_node "$node" ip -oneline address show scope global 2>/dev/null | grep -F " $VRRP_ADDRESS/32 " >/dev/null; then
			echo "$node"
		fi
	done | paste -sd' '
}

# verdict NODE: what its keepalived thinks of its gateway; 0 is well
verdict() { on_node "$1" cat /run/dotgate.verdict 2>/dev/null || echo none; }

# moves SINCE: how often a node took the address since then
moves() {
	local node
	for node in a b; do
		docker logs --since "$1" "${id[keepalived-$node]}" 2>&1
	done | grep -c 'Entering MASTER STATE' || true
}

# dig inside the client's container
ask() { docker exec "${id[client]}" dig +tries=1 "$@" 2>&1; }

all_well() { [[ $(verdict a) == 0 && $(verdict b) == 0 && $(holders) == [ab] ]]; }

await() { # SECONDS WHAT COMMAND...
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@"; do
		((SECONDS < deadline)) || die "$what took too long (verdicts $(verdict a) and $(verdict b), address at: $(holders))"
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
await 45 "the start" all_well

# --- checks --------------------------------------------------------------

failures=0

# check WHAT COMMAND...: the command prints nothing if all is well
check() {
	local problem
	problem=$("${@:2}" 2>&1) || problem=${problem:-"${*:2} failed"}
	printf '%-62s %s\n' "$1" "${problem:+FAILED: }${problem:-ok}"
	[[ -z $problem ]] || failures=$((failures + 1))
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

# quiet COMMAND...: only how it ends counts
quiet() { "$@" >/dev/null; }

# image: what is promised of it
image() {
	local size
	size=$(docker image inspect --format '{{.Size}}' "$DOTGATE_IMAGE")
	((size < 25000000)) || echo "it has $size octets"
	[[ $(docker image inspect --format '{{.Config.User}} {{json .Config.Healthcheck.Test}}' "$DOTGATE_IMAGE") == '65532:65532 ["CMD","/dotgate","healthcheck"]' ]] || echo "user or health check"
	docker cp "${id[dotgate-a]}:/dotgate.cdx.json" - | tar -xO | jq -e '.bomFormat == "CycloneDX" and (.components | map(.name) | index("github.com/miekg/dns"))' >/dev/null || echo "bill of materials"
}

# reproducible: another directory, another machine as far as the compiler can tell,
# and the same bytes. Another compiler may make others: then it is built in the
# builder's image once more.
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
check "what does not exist does not exist" status NXDOMAIN "@$VRRP_ADDRESS" www.example.org A
check "the gateway says how it is (dotgate status)" quiet docker exec "${id[dotgate-a]}" /dotgate status


mkfifo "$TEST_DIR/marks"

# --- stories -------------------------------------------------------------

row() { printf '%-52s %7s %7s %7s %8s %8s %6s  %s\n' "$@"; }

# Each has a limit for what clients may lose, and for the address:
#
#	alone      no query may fail, even without a retry
#	retried    no query may fail that is repeated once, after a second
#	hot        no query may fail for a name that others ask for, too, and all get
#	           a reply, if only that it failed
#	stale      the same, and some of the answers are past their time
#
#	moves=MS   the other node answers so long after the last answer of the first
#	within=MS  the other node answers so long after the break
#	stays      the address stays where it is
#	once       it moves once at most
#
# BREAK and MEND are commands that get the node which has the address. MEND comes
# after the clients, or in the middle of their time if it is preceded by "then".
#
# story WHAT LOSS ADDRESS SECONDS BREAK [then] MEND
story() {
	local what=$1 loss=$2 address=$3 seconds=$4 break=$5 mend=${*: -1} since asking verdict=ok in=- moves key value
	[[ -z ${STORIES:-} || $what =~ $STORIES ]] || return 0
	await 45 "being well before \"$what\"" all_well
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
	stays) ((moves == 0)) || verdict="FAILED: the address moved" ;;
	once) ((moves <= 1)) || verdict="FAILED: the address moved $moves times" ;;
	esac
	if [[ $in != - ]]; then
		((in < ${address#*=})) || verdict="FAILED: not within ${address#*=} ms"
		((r[moved] > 0)) || verdict="FAILED: the address did not move"
		in="$in ms"
	fi
	case $loss in
	alone) ((r[failed] == 0)) || verdict="FAILED: queries failed" ;;
	retried) ((r[lost] == 0)) || verdict="FAILED: queries lost" ;;
	hot | stale)
		((r[lost_hot] == 0)) || verdict="FAILED: hot names lost"
		((r[unreplied] == 0)) || verdict="FAILED: ${r[unreplied]} queries without a reply"
		[[ $loss == hot ]] || ((r[stale] > 0)) || verdict="FAILED: no stale answers"
		;;
	esac
	((r[queries] > 450 * seconds)) || verdict="FAILED: only ${r[queries]} queries were asked"
	row "$what" "${r[queries]}" "${r[failed]}" "${r[lost]}" "${r[silent]} ms" "$in" "$moves" "$verdict"
	if [[ $verdict != ok ]]; then
		failures=$((failures + 1))
		sort -k2 "$TEST_DIR/problems" | head -n 20
	fi
}

# quietly COMMAND...: what it says is told if it fails
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

# Power off: the node goes first, and its network with it. It starts in order.
node_kill() { docker kill "${id[node-$1]}" "${id[dotgate-$1]}" "${id[keepalived-$1]}"; }
node_start() { quietly compose up --detach --no-build --no-recreate; }
node_pause() { docker pause "${id[keepalived-$1]}" "${id[dotgate-$1]}"; }
node_unpause() { docker unpause "${id[dotgate-$1]}" "${id[keepalived-$1]}"; }

# The other node first: so each of the two moves the address to a gateway that has
# just begun.
restart() {
	docker restart --time 10 "${id[dotgate-$1]}"
	sleep 0.5
	await 45 "the restart of node $1" all_well
}
restart_both() { restart "$(other "$1")"; restart "$1"; }

replace() {
	DOTGATE_IMAGE=dotgate:test-next quietly compose up --detach --no-build --no-deps "dotgate-$1"
	id[dotgate-$1]=$(container "dotgate-$1")
	sleep 0.5
	await 45 "the upgrade of node $1" all_well
}
upgrade_both() { replace "$(other "$1")"; replace "$1"; }

# sever NODE ADDRESSES: what comes from there is lost
sever() { on_node "$1" nft "add table ip cut; add chain ip cut input { type filter hook prerouting priority -300; }; add rule ip cut input ip saddr $2 drop"; }
mend() { on_node "$1" nft "add table ip cut; delete table ip cut"; }
mend_both() { mend a; mend b; }
cut_upstreams() { sever "$1" "$UPSTREAM_NET.0/24"; }
cut_all_upstreams() { cut_upstreams "$1"; cut_upstreams "$(other "$1")"; }
part() { sever a "$PAIR_ADDRESS_B"; sever b "$PAIR_ADDRESS_A"; }
unite() { apart=$(holders); mend_both; }

unplug() { docker network disconnect "${COMPOSE_PROJECT_NAME}_upstream" "${id[node-$1]}"; }
plug() { docker network connect "${COMPOSE_PROJECT_NAME}_upstream" "${id[node-$1]}"; }

# fill NODE: the volume of its cache. The node has it, too.
fill() { docker exec --user 65532 "${id[node-$1]}" dd if=/dev/zero of=/cache/up bs=16k 2>/dev/null || true; }
fill_and_restart_both() { fill a; fill b; restart_both "$1"; }
empty_both() { local node; for node in a b; do docker exec --user 65532 "${id[node-$node]}" rm /cache/up; done; }

echo
row story queries failed lost silence moved moves verdict
row "(failed: without a retry; lost: with one)" ------- ------ ---- ------- ----- ----- -------
story "node killed (docker kill)" retried moves=500 3 node_kill node_start
story "gateway killed" retried moves=500 3 gateway_kill gateway_start
story "node frozen (docker pause)" retried moves=500 3 node_pause node_unpause
story "gateway frozen" retried moves=1000 3 gateway_pause gateway_unpause
story "gateway stopped (docker stop)" alone within=2000 3 gateway_stop gateway_start
story "keepalived killed" retried moves=500 3 keepalived_kill keepalived_start
story "keepalived stopped" alone within=1000 3 keepalived_stop keepalived_start
story "rolling restart" alone any 1 restart_both nothing
story "rolling upgrade" alone any 1 upgrade_both nothing
story "upstreams silent for the one node" hot within=2000 4 cut_upstreams mend
story "upstreams out of reach for the one node" hot within=2000 4 unplug plug
story "upstreams silent for both" stale once 5 cut_all_upstreams then mend_both
story "the two can't see each other" alone once 4 part then unite
[[ -z ${apart-} ]] || check "  both had the address meanwhile" test "$apart" = "a b"
story "no room for the cache, and a rolling restart" alone any 1 fill_and_restart_both empty_both

echo
((failures == 0)) || die "$failures of the lines above"
say "all well in $SECONDS s"
