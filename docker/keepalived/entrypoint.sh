#!/bin/sh
# Writes keepalived's configuration from the environment and becomes keepalived.
#
#   VRRP_ADDRESS    the address that the pair shares (required)
#   VRRP_PEER       the other node's own address (required)
#   VRRP_INTERFACE  interface of the address. Default: that of the route to the peer
#   VRRP_ROUTER_ID  number of the pair, 1 to 255, unique in a network. Default: 53
#   VRRP_PRIORITY   101 to 254, equal on both nodes, or less than 50 higher on
#                   the preferred one. Default: 200
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
number VRRP_PRIORITY "$priority" 101 254 # a failing gateway subtracts up to 100

route=$(ip -oneline route get "$VRRP_PEER") || die "no route to VRRP_PEER $VRRP_PEER"
interface=${VRRP_INTERFACE:-$(echo "$route" | sed -n 's/.* dev \([^ ]*\).*/\1/p')}
source=$(echo "$route" | sed -n 's/.* src \([^ ]*\).*/\1/p')

# A keepalived that was killed left its address on the interface.
ip address del "$VRRP_ADDRESS/32" dev "$interface" 2>/dev/null || true

# While the address moves, neighbours still send to the old node, and that has queries in
# progress to answer: so both nodes always have the address on lo. They must neither answer
# ARP requests for addresses of other interfaces, nor use those in their own requests.
if [ "$(cat /proc/sys/net/ipv4/conf/all/arp_ignore)" -ge 1 ] && [ "$(cat /proc/sys/net/ipv4/conf/all/arp_announce)" -ge 2 ]; then
	ip address replace "$VRRP_ADDRESS/32" dev lo scope host
else
	say "net.ipv4.conf.all.arp_ignore is not 1 or arp_announce not 2: queries in progress are lost when the address moves"
fi

# After a crash of the gateway, the kernel would reject queries, and clients would fail
# instead of waiting for the other node.
nft -f - <<END || say "nftables can't be used here: when the gateway crashes, queries are rejected until the address has moved"
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

# Keepalived watches this file, which has the health of the gateway.
health=/run/dotgate.health
echo 2 >$health
while true; do
	dotgate healthcheck --watch $health || true
	echo 2 >$health
	sleep 1
done &

cat >/run/keepalived.conf <<END
global_defs {
	router_id dotgate
	vrrp_version 3
	max_auto_priority -1
	# Gratuitous ARP at once, and again a second later.
	vrrp_garp_master_delay 1
	vrrp_garp_master_repeat 2
	vrrp_garp_master_refresh 30
	vrrp_garp_lower_prio_delay 1
	vrrp_garp_lower_prio_repeat 2
}

track_file dotgate {
	# Written by "dotgate healthcheck --watch": 0 if the gateway is healthy, 1 if it has no
	# upstream, 2 if it does not answer. A failing node gets a lower priority instead of
	# the state FAULT: if both fail, one of them keeps the address.
	file $health
	weight -50
}

vrrp_instance dotgate {
	# Equal priorities: the address moves if its node is less healthy than the other one,
	# and does not move back when both are equal again.
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
