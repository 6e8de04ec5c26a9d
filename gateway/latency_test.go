package gateway

import (
	"context"
	"errors"
	"testing"
	"time"

	"dotgate/gateway/wire"
)

func TestLatencyIsOfRepliesThatWaited(t *testing.T) {
	t.Parallel()
	const delay = 20 * time.Millisecond
	g, _ := start(t, resolver(func(_ context.Context, q wire.Query) (wire.Answer, error) {
		time.Sleep(delay)
		switch nameOf(q) {
		case "failed.example.com.":
			return wire.Answer{}, errors.New("no upstream answers")
		case "servfail.example.com.":
			return wire.ParseAnswer(q, q.AppendError(nil, wire.ServFail, wire.EDE{}))
		}
		return answer(q)
	}), Options{})
	for _, network := range []string{"udp", "tcp"} {
		c := dial(t, network, g.Addrs()[0])
		for _, name := range []string{"www.example.com.", "failed.example.com.", "servfail.example.com."} {
			exchange(t, c, query(name))
		}
	}
	l, c := g.Latency(), g.Counts()
	if l.Count() != 6 || l.Quantile(0.01) < delay {
		t.Errorf("%d replies, the quickest after %v", l.Count(), l.Quantile(0.01))
	}
	if c.ServFails != (PerTransport{1, 1}) || c.Outcomes[Answered].Total() != 4 {
		t.Errorf("SERVFAIL %v of %v", c.ServFails, c.Outcomes[Answered])
	}
}
