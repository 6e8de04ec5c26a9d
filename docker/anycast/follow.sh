#!/bin/sh
# Announces an address while the gateway is ready.
#
#	follow.sh                          by BIRD: enables and disables the protocol "anycast"
#	follow.sh exabgp 192.0.2.53/32     by ExaBGP, as a "process" of it
#
#   DOTGATE_READY  URL of the readiness check. Default: http://127.0.0.1:8053/readyz
#   BIRD_SOCKET    BIRD's control socket, if it is not the usual one
#
# Two failures in a row withdraw it, four successes announce it again. Needs curl.
set -eu

say() { echo "follow: $*" >&2; }

daemon=${1:-bird}
route=${2:-}
case $daemon in
bird) ;;
exabgp) [ -n "$route" ] || { say "which route is to be announced?"; exit 2; } ;;
*) say "$daemon is neither bird nor exabgp"; exit 2 ;;
esac

# announce yes|no
announce() {
	case $daemon-$1 in
	bird-yes) birdc ${BIRD_SOCKET:+-s "$BIRD_SOCKET"} enable anycast >/dev/null ;;
	bird-no) birdc ${BIRD_SOCKET:+-s "$BIRD_SOCKET"} disable anycast >/dev/null ;;
	exabgp-yes) echo "announce route $route next-hop self" ;;
	exabgp-no) echo "withdraw route $route next-hop self" ;;
	esac
}

ready() { curl --silent --fail --output /dev/null --max-time 1 "${DOTGATE_READY:-http://127.0.0.1:8053/readyz}"; }

announced=
row=0 # number of checks in a row that differ from what is announced
trap 'announce no; exit 0' INT TERM
while true; do
	if ready; then now=yes needed=4; else now=no needed=2; fi
	if [ "$now" = "$announced" ]; then
		row=0
	else
		row=$((row + 1))
	fi
	if [ $row -ge $needed ] || { [ -z "$announced" ] && [ $now = no ]; }; then
		if announce $now; then
			say "announced: $now"
			announced=$now row=0
		else
			say "$daemon does not accept the command; trying again"
		fi
	fi
	sleep 0.5
done
