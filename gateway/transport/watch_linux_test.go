package transport_test

import (
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"dotgate/gateway"
	"dotgate/gateway/transport"
	"dotgate/gateway/wire"
)

// A noData is a gateway.Resolver to which no name has data.
type noData struct{}

func (noData) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	done(q.OwnAnswer(wire.NoError, wire.EDE{}), nil)
}

// Gateway.WatchClients retries absent addresses, also those of a reload.
func TestWatchClientsServesAbsentAddressesLater(t *testing.T) {
	transport.InNamespace(t, func() {
		var log transport.Buffer
		present, late := netip.MustParseAddrPort("127.0.0.1:5300"), netip.MustParseAddrPort("192.0.2.99:5300")
		o := gateway.Options{Listen: []netip.AddrPort{present}, Log: slog.New(slog.NewTextHandler(&log, nil))}
		g, err := gateway.New(noData{}, o)
		if err != nil {
			t.Error(err)
			return
		}
		if err := g.Listen(); err != nil {
			t.Error(err)
			return
		}
		serving, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		go func() { served <- g.Serve(serving) }()
		defer func() {
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		}()
		transport.AnsweredAt(t, present, true)
		o.Listen = append(o.Listen, late)
		c, err := g.Prepare(noData{}, o)
		if err != nil {
			t.Error(err)
			return
		}
		c.Commit()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		isServed := func() bool {
			return strings.Contains(log.String(), "clients are served there\" address="+late.String())
		}
		time.AfterFunc(0, func() {
			for ctx.Err() == nil && !isServed() {
				time.Sleep(time.Millisecond)
			}
			cancel()
		})
		transport.AddAddress(t, "lo:1", late.Addr().String())
		if err := g.WatchClients(ctx); err != nil {
			t.Error(err)
		}
		transport.AnsweredAt(t, late, true)
		if !isServed() {
			t.Errorf("not in the log:\n%s", log.String())
		}
	})
}
