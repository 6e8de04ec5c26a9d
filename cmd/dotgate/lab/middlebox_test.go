//go:build linux && lab

package lab

import (
	"fmt"
	"strings"
	"time"
)

// ports are those of DNS over TLS and HTTPS.
const ports = "{ 853, 443 }"

// dialCounter has the source ports of the gateway's dials: a repeated SYN has the same
// port.
const dialCounter = `
table ip lab {
	set dials { type ipv4_addr . inet_service; size 65535; flags dynamic; }
	chain out {
		type filter hook output priority 0;
		tcp dport { 853, 443 } tcp flags & (syn | ack) == syn add @dials { ip daddr . tcp sport }
	}
}
`

// middlebox returns the rules of nftables before an upstream: chains for faults, and a
// set of flows if they are to be forgotten. Packets that pass add their flow.
func middlebox(forget time.Duration) string {
	text := `
table ip lab {
	set fresh { type ipv4_addr . inet_service; size 65535; flags dynamic; }
	chain in { type filter hook input priority 0; }
	chain out { type filter hook output priority 0; }
}
`
	if forget == 0 {
		return text
	}
	return text + fmt.Sprintf(`
table ip lab {
	set flows { type ipv4_addr . inet_service; size 65535; flags dynamic, timeout; timeout %v; }
	chain learn_in {
		type filter hook input priority 10;
		tcp dport { 853, 443 } update @flows { ip saddr . tcp sport }
	}
	chain learn_out {
		type filter hook output priority 10;
		tcp sport { 853, 443 } update @flows { ip daddr . tcp dport }
	}
}
`, forget)
}

// breakage returns the rules for f.
func breakage(f fault) string {
	var b strings.Builder
	to, from := "tcp dport "+ports, "tcp sport "+ports
	if f.port > 0 {
		to, from = fmt.Sprintf("tcp dport %d", f.port), fmt.Sprintf("tcp sport %d", f.port)
	}
	if f.prefix > 0 {
		to, from = "ip daddr "+firstPrefix+" "+to, "ip saddr "+firstPrefix+" "+from
	}
	in := func(rule string) { fmt.Fprintf(&b, "add rule ip lab in %s %s\n", to, rule) }
	out := func(rule string) { fmt.Fprintf(&b, "add rule ip lab out %s %s\n", from, rule) }
	const syn, noSYN = "tcp flags & (syn | ack) == syn", "tcp flags & (syn | ack) != syn"
	if f.has("nft-refused") {
		in("reject with tcp reset")
	}
	if f.has("nft-unreachable") {
		in("reject with icmp type host-unreachable")
	}
	if f.has("nft-prohibited") {
		in("reject with icmp type admin-prohibited")
	}
	if f.has("nft-syn") {
		in(syn + " drop")
	}
	if f.has("nft-established") {
		in(syn + " add @fresh { ip saddr . tcp sport }")
		in("ip saddr . tcp sport != @fresh drop")
		out("ip daddr . tcp dport != @fresh drop")
	}
	if f.loss > 0 {
		in(fmt.Sprintf("numgen random mod 100 < %d drop", f.loss))
		out(fmt.Sprintf("numgen random mod 100 < %d drop", f.loss))
	}
	if f.mtu > 0 {
		in(fmt.Sprintf("ip length > %d drop", f.mtu))
		out(fmt.Sprintf("ip length > %d drop", f.mtu))
	}
	if f.forget > 0 {
		in(noSYN + " ip saddr . tcp sport != @flows drop")
		out("ip daddr . tcp dport != @flows drop")
	}
	return b.String()
}

// repair removes the rules of all faults.
const repair = `
flush chain ip lab in
flush chain ip lab out
flush set ip lab fresh
`
