package main

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/gateway/access"
	"dotgate/gateway/redis"
	"dotgate/upstreams"
)

func TestStatusIsATable(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	before := func(d time.Duration) time.Time { return now.Add(-d) }
	ms := func(n float64) api.Millis { return api.Millis(n * float64(time.Millisecond)) }
	s := api.Status{
		Version: "v1.0", PID: 12, Started: before(26*time.Hour + 3*time.Minute),
		Listening: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53")},
		OnLink: []access.Link{
			{Interface: "eth0", Prefix: netip.MustParsePrefix("192.0.2.0/24")},
			{Interface: "eth1", Prefix: netip.MustParsePrefix("198.51.100.0/22"), Excluded: "public and shorter than /24"},
		},
		Network: "tcp/853 is blocked on this network since 10:02 (no SYN-ACK at 2 of 3 upstreams); using DoH",
		Upstreams: []api.UpstreamStatus{
			{Name: "quad9", State: "up", Since: before(72 * time.Hour), Usual: ms(8.127), Patience: ms(45.25), Open: 1, Transport: "doh",
				Counts: upstreams.Counts{Sent: 12345, Answered: 12340, Resent: 2, OverRate: 3}, Rate: &api.RateStatus{Limit: 47, Learnt: true},
				Endpoints: []api.EndpointStatus{
					{Address: netip.MustParseAddrPort("[2620:fe::fe]:853"), Transport: "dot", State: "avoided", Dialled: before(10 * time.Second), Result: "dial_timeout", Avoided: now.Add(20 * time.Second)},
					{Address: netip.MustParseAddrPort("9.9.9.9:853"), Transport: "dot", State: "unproven", Without: "alpn,key_share"},
				}},
			{Name: "office", State: "down", Since: before(83 * time.Second), Reason: "connection refused", Patience: ms(200)},
			{Name: "new", State: "suspect", Reason: "3 failures in a row", Patience: ms(200)},
		},
		Clients: api.ClientStatus{
			UDP: 20000, TCP: 30, Open: 4, UnderWay: 5, Lost: 6, ServFail: 7, P50: ms(0.9), P99: ms(45), Max: ms(918),
			Outcomes: map[string]uint64{"answered": 19000, "refused_policy": 8, "refused_malformed": 1, "ignored_short": 2},
			Cache:    map[string]uint64{"hits": 7000, "misses": 12000, "stale": 3, "prefetches": 400},
		},
		Balancer: balancer.Counts{Queries: 12000, Attempts: 12100, Hedges: 80, Retries: 15, Seconds: 5, Failures: 6},
		Peers: []peers.Peer{
			{Name: "dotgate-b", Address: netip.MustParseAddrPort("192.0.2.2:8054"), Version: "v1.0", Up: true, Since: before(25 * time.Hour), Failing: []string{"office", "quad9"}},
			{Name: "dotgate-c", Problem: "no such host"},
		},
		Redis: &redis.Counts{Up: true, Reads: map[string]uint64{"hit": 50, "miss": 9, "failed": 1}, Writes: map[string]uint64{"written": 8}},
		Drill: &api.DrillStatus{Upstream: "office", Fault: "blackhole", Phase: "during", Ends: now.Add(42 * time.Second)},
	}
	want := `dotgate v1.0, process 12, up for 26h3m, on 192.0.2.1:53, [2001:db8::1]:53
DRILL of office: blackhole, phase during, the fault ends in 42s
gateway.allow: on_link is 192.0.2.0/24; not 198.51.100.0/22 of eth1 (public and shorter than /24)
tcp/853 is blocked on this network since 10:02 (no SYN-ACK at 2 of 3 upstreams); using DoH

UPSTREAM  STATE    FOR    LATENCY  PATIENCE  CONNECTIONS  VIA  SENT   ANSWERED  RESENT  REASON
quad9     up       3d     8.13ms   45.2ms    1            doh  12345  12340     2       
office    down     1m23s  -        200ms     0            -    0      0         0       connection refused
new       suspect  -      -        200ms     0            -    0      0         0       3 failures in a row
quad9: its limit is 47 queries a second (learnt); 3 were sent beyond it
quad9: [2620:fe::fe]:853 (dot) is avoided because another address or transport works better; next try at 03:04:25
quad9: 9.9.9.9:853 (dot) is asked without alpn,key_share

PEER       STATE  FOR    ADDRESS         VERSION  REPORTS FAILING  REASON
dotgate-b  up     25h0m  192.0.2.2:8054  v1.0     office, quad9    
dotgate-c  down   -      -               -        -                no such host

clients   20000 queries over UDP, 30 over TCP (4 connections), 5 waiting for upstreams
          19000 answered (7 with SERVFAIL of upstreams), 6 failed by the gateway, 9 refused, 2 ignored
cache     7000 hits, 12000 misses, 3 stale answers, 400 prefetches
redis     up, 50 hits, 9 misses, 1 reads failed, 8 answers written
latency   of cache misses: p50 0.90ms, p99 45.0ms, max 918ms
balancer  12000 queries, 12100 attempts: 80 hedges, 15 retries, 5 second opinions; 6 failures
`
	var out bytes.Buffer
	if err := writeStatus(&out, s, now); err != nil || out.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out.String(), want)
	}
	want = `tcp/853 is blocked on this network since 10:02 (no SYN-ACK at 2 of 3 upstreams); using DoH

UPSTREAM  ADDRESS            TRANSPORT  STATE     CONNECTIONS  LAST DIAL  RESULT
quad9     [2620:fe::fe]:853  dot        avoided   0            10s ago    dial_timeout
quad9     9.9.9.9:853        dot        unproven  0            -          -
`
	out.Reset()
	if err := writeEndpoints(&out, s, now); err != nil || out.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out.String(), want)
	}
}

func TestADrillsReportIsATable(t *testing.T) {
	t.Parallel()
	ms := func(n float64) *api.Millis { return new(api.Millis(n * float64(time.Millisecond))) }
	r := api.Report{
		Upstream: "quad9", Fault: "blackhole", Ended: "its time was up",
		Before:    api.Phase{Lasted: *ms(5000), Queries: 5210, Cached: 3000, P50: *ms(11.21), P99: *ms(23.4), Max: *ms(41), Extra: 12, Asked: 1700},
		During:    api.Phase{Lasted: *ms(60000), Queries: 62480, Lost: 1, ServFail: 2, Cached: 36000, P50: *ms(11.9), P99: *ms(61.2), Max: *ms(188), Extra: 340, Asked: 31},
		Suspected: ms(43.2), Down: ms(752), Back: ms(1830),
	}
	want := `                 before    during     after
lasted               5s      1m0s        0s
queries            5210     62480         0
lost                  0         1         0
SERVFAIL              0         2         0
from cache         3000     36000         0
p50              11.2ms    11.9ms         -
p99              23.4ms    61.2ms         -
max              41.0ms     188ms         -
asked twice          12       340         0
sent to quad9      1700        31         0

quad9, blackhole: suspect after 43.2ms, down after 752ms, back 1830ms after the end. The fault ended: its time was up.
`
	var out bytes.Buffer
	if err := writeReport(&out, r); err != nil || out.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out.String(), want)
	}
	f := func(suspected, down, back *api.Millis, want string) {
		t.Helper()
		if got := course(api.Report{Suspected: suspected, Down: down, Back: back}); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	f(nil, nil, ms(0), "never suspect, up at the end")
	f(ms(50), nil, ms(3), "suspect after 50.0ms, back 3.00ms after the end")
	f(ms(50), ms(700), nil, "suspect after 50.0ms, down after 700ms, not back when last seen")
}
