#!/bin/sh
# Writes keepalived's configuration from the environment and becomes keepalived.
#
#   VRRP_ADDRESS    the address that the pair shares (required)
#   VRRP_PEER       the other node's own address (required)
#   VRRP_INTERFACE  where the address goes. Default: where the peer is
#   VRRP_ROUTER_ID  tells pairs in one network apart, 1 to 255. Default: 53
#   VRRP_PRIORITY   101 to 254, the same on both nodes unless one is to be
#                   preferred; then the difference must be below 50. Default: 200
#   VRRP_INTERVAL   seconds between two advertisements. Default: 0.1
set -eu

say() { echo "keepalived: $*" >&2; }
die() {
	say "$*"
	exit 1
}

# number NAME VALUE MIN MAX
number() {
	case $2 in
	'' | *[!0-9]*) die "$1 is \"$2\", not a number" ;;
	esac
	if [ "$2" -lt "$3" ] || [ "$2" -gt "$4" ]; then
		die "$1 is $2, not within $3 to $4"
	fi
}

[ -n "${VRRP_ADDRESS:-}" ] || die "VRRP_ADDRESS is not set: which address does the pair share?"
[ -n "${VRRP_PEER:-}" ] || die "VRRP_PEER is not set: which address has the other node?"
case $VRRP_ADDRESS in
*[!0-9.]*) die "VRRP_ADDRESS is \"$VRRP_ADDRESS\", not an IPv4 address" ;;
esac
ip -4 route get "$VRRP_ADDRESS" >/dev/null || die "no route to VRRP_ADDRESS $VRRP_ADDRESS"
router=${VRRP_ROUTER_ID:-53}
priority=${VRRP_PRIORITY:-200}
number VRRP_ROUTER_ID "$router" 1 255
number VRRP_PRIORITY "$priority" 101 254 # 100 may be taken from it

route=$(ip -oneline route get "$VRRP_PEER") || die "no route to VRRP_PEER $VRRP_PEER"
interface=${VRRP_INTERFACE:-$(echo "$route" | sed -n 's/.* dev \([^ ]*\).*/\1/p')}
source=$(echo "$route" | sed -n 's/.* src \([^ ]*\).*/\1/p')

# A keepalived that was killed could not take its address along.
ip address del "$VRRP_ADDRESS/32" dev "$interface" 2>/dev/null || true

# Neighbours send to one node while the address is just leaving it, and what it
# was asked before is yet to be answered from there: so both nodes have the address
# all the time, where nobody can see it. For that, they must neither answer for
# addresses of other interfaces than the one asked on, nor ask with them.
if [ "$(cat /proc/sys/net/ipv4/conf/all/arp_ignore)" -ge 1 ] && [ "$(cat /proc/sys/net/ipv4/conf/all/arp_announce)" -ge 2 ]; then
	ip address replace "$VRRP_ADDRESS/32" dev lo scope host
else
	say "net.ipv4.conf.all.arp_ignore is not 1 or arp_announce not 2: queries that are under way when the address moves are lost"
fi

# A gateway that crashed leaves a closed port, and the kernel would say so: clients
# would not wait for the other node to take over, but fail.
nft -f - <<END || say "nftables can't be used here: when the gateway crashes, clients are told so until the address has moved"
table ip dotgate
delete table ip dotgate
table ip dotgate {
	chain output {
		type filter hook output priority filter
		ip saddr $VRRP_ADDRESS icmp type destination-unreachable icmp code port-unreachable drop
		ip saddr $VRRP_ADDRESS tcp sport 53 tcp flags & (rst | ack) == rst | ack drop
	}
}
END

# Keepalived learns from this file, at once, whether the gateway can answer.
verdict=/run/dotgate.verdict
echo 2 >$verdict
while true; do
	dotgate healthcheck --watch $verdict || true
	echo 2 >$verdict
	sleep 1
done &

cat >/run/keepalived.conf <<END
global_defs {
	router_id dotgate
	vrrp_version 3
	max_auto_priority -1
	# Tell the neighbours at once, and again a second later.
	vrrp_garp_master_delay 1
	vrrp_garp_master_repeat 2
	vrrp_garp_master_refresh 30
	vrrp_garp_lower_prio_delay 1
	vrrp_garp_lower_prio_repeat 2
}

track_file dotgate {
	# What "dotgate healthcheck --watch" thinks: 1 if the gateway has no upstream, 2
	# if it can't answer at all. A node that is worse than the other steps back
	# instead of out: if neither is well, the checks may be what is broken, and one
	# of the two keeps the address.
	file $verdict
	weight -50
}

vrrp_instance dotgate {
	# Equal priorities: the address moves when its holder is worse than the
	# other node, and not back when it is as good again.
	state BACKUP
	priority $priority
	interface $interface
	virtual_router_id $router
	advert_int ${VRRP_INTERVAL:-0.1}
	unicast_src_ip $source
	unicast_peer {
		$VRRP_PEER
	}
	virtual_ipaddress {
		$VRRP_ADDRESS/32 dev $interface
	}
	track_file {
		dotgate
	}
}
END

exec keepalived --dont-fork --log-console --no-syslog --vrrp \
	--use-file=/run/keepalived.conf --pid=/run/keepalived.pid --vrrp_pid=/run/vrrp.pid
