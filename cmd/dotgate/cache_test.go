package main

import (
	"bytes"
	"testing"
	"time"

	"dotgate/cmd/dotgate/internal/api"
	"dotgate/gateway/wire"
)

func TestWhatIsCachedIsAZoneFile(t *testing.T) {
	t.Parallel()
	ms := func(d time.Duration) api.Millis { return api.Millis(d) }
	answers := []api.CachedAnswer{
		{Question: "example.com. A", RCode: "NOERROR", Kind: "positive", State: "fresh", Age: ms(7 * time.Second), Left: ms(53 * time.Second), Hits: 1, HitsMax: 3,
			Printout: wire.Printout{Answer: []string{"example.com.\t53\tIN\tA\t192.0.2.1", "example.com.\t53\tIN\tA\t192.0.2.2"}, Additional: []string{"a.\t1\tIN\tA\t192.0.2.3"}}},
		{Question: "example.com. AAAA", DO: true, CD: true, RCode: "NOERROR", Kind: "no data", State: "stale", Age: ms(time.Hour), Left: ms(-83 * time.Second), Hits: 3, HitsMax: 3,
			Printout: wire.Printout{Authority: []string{"example.com.\t30\tIN\tNS\ta."}, Errors: []string{"3 (Stale Answer)"}}},
		{Question: "example.com. MX", CD: true, RCode: "SERVFAIL", Kind: "failure", State: "expired", Age: ms(2 * time.Second), Left: ms(-time.Second), HitsMax: 3,
			Printout: wire.Printout{Errors: []string{`6 (DNSSEC Bogus): "no keys"`}}},
	}
	const want = `; example.com. A: NOERROR, fresh for another 53s, received 7s ago, 1 hit
example.com.	53	IN	A	192.0.2.1
example.com.	53	IN	A	192.0.2.2
; additional
a.	1	IN	A	192.0.2.3

; example.com. AAAA +DO +CD: NOERROR without data, stale for 1m23s, received 1h0m ago, 3 hits or more
; extended error 3 (Stale Answer)
; authority
example.com.	30	IN	NS	a.

; example.com. MX +CD: SERVFAIL, expired 1s ago, not served any more, received 2s ago, 0 hits
; extended error 6 (DNSSEC Bogus): "no keys"
`
	var out bytes.Buffer
	if err := writeCached(&out, "example.com", answers); err != nil || out.String() != want {
		t.Errorf("%v, got\n%s\nwant\n%s", err, out.String(), want)
	}
}
