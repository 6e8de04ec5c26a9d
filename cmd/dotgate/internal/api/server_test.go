package api

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"dotgate/balancer"
	"dotgate/health"
	"dotgate/upstreams"
)

// start serves w until the test ends or stop is called, and returns a client.
func start(t *testing.T, w *world) (client *Client, stop func()) {
	t.Helper()
	l, err := Listen(filepath.Join(socketDir(t), "control.sock"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		w.Serve(ctx, l)
	}()
	stop = func() {
		cancel()
		<-stopped
		l.Close()
	}
	t.Cleanup(stop)
	return NewClient(nil, []string{l.Path()}), stop
}

// soon waits until something is so. Only failing tests wait for half a minute.
func soon(t *testing.T, what string, so func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: in vain", what)
		}
	}
}

// drilling starts a drill of one that would take a minute, and waits for it.
func drilling(t *testing.T, ctx context.Context, w *world, client *Client) (done chan error, report *Report) {
	t.Helper()
	done, report = make(chan error, 1), new(Report)
	r := request("one", "blackhole", time.Minute)
	r.Before = 0
	go func() {
		var err error
		*report, err = client.Drill(ctx, r, func(text string) { w.tell(Event{Text: text}) })
		done <- err
	}()
	soon(t, "begin the drill", func() bool { return w.underFault() == "one blackhole" })
	return done, report
}

func TestStatusTravels(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	w.set("two", health.Down)
	w.serve(3, 1)
	client, _ := start(t, w)
	got, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	has, _ := json.Marshal(got)
	want, _ := json.Marshal(w.Status())
	if string(has) != string(want) {
		t.Errorf("got  %s\nwant %s", has, want)
	}
	for _, part := range []string{
		`"version":"v1"`, `"listening":["192.0.2.1:53"]`, `"state":"up"`, `"reason":"it is drilled"`, `"usual_ms":20`,
		`"connections":2`, `"sent":7`, `"answered":3`, `"timed_out":1`, `"lost":1`, `"hedges":1`,
	} {
		if !strings.Contains(string(has), part) {
			t.Errorf("there is no %s in %s", part, has)
		}
	}
}

func TestOrdersTravel(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "a/b c")
	client, _ := start(t, w)
	for _, name := range []string{"one", "a/b c"} {
		if _, err := client.SetAdminState(t.Context(), name, health.Drained); err != nil || w.ordered != name+" drain" {
			t.Errorf("%v, %q", err, w.ordered)
		}
	}
	if _, err := client.SetAdminState(t.Context(), "one", health.ForcedDown); err == nil || err.Error() != "it is the last one" {
		t.Errorf("got %v", err)
	}
	if _, err := client.SetAdminState(t.Context(), "two", health.Auto); err == nil || err.Error() != `upstream: "two" does not exist` {
		t.Errorf("got %v", err)
	}
}

func TestAThousandRecentQueriesAreKeptNewestFirst(t *testing.T) {
	t.Parallel()
	var kept RecentQueries
	for i := range recentMax + 3 {
		kept.Keep("", balancer.Trace{Took: time.Duration(i) * time.Millisecond, Attempts: []balancer.AttemptTrace{{Name: "one", Err: errors.New("no"), Ended: true}}})
	}
	all := kept.Latest()
	if len(all) != recentMax || all[0].Took != Millis((recentMax+2)*time.Millisecond) || all[recentMax-1].Took != Millis(3*time.Millisecond) {
		t.Errorf("%d, from %v to %v", len(all), all[0].Took, all[len(all)-1].Took)
	}
	if a := all[0].Attempts[0]; a.Outcome != "failed" || a.Error != "no" {
		t.Errorf("%+v", a)
	}
}

func TestExplanationsTravel(t *testing.T) {
	t.Parallel()
	client, _ := start(t, newWorld("one"))
	if e, err := client.Explain(t.Context(), "www.example.com", ""); err != nil || e.Query != "www.example.com A" {
		t.Errorf("%+v, %v", e, err)
	}
	if all, err := client.RecentQueries(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("%+v, %v", all, err)
	}
}

func TestADrillEndsAtOnceWithItsClient(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	client, _ := start(t, w)
	ctx, die := context.WithCancel(t.Context())
	done, _ := drilling(t, ctx, w, client)
	if d := w.Status().Drill; d == nil || d.Upstream != "one" || d.Fault != "blackhole" {
		t.Errorf("status has %+v", d)
	}
	die()
	if err := <-done; err == nil {
		t.Error("there is no error")
	}
	soon(t, "end the drill", func() bool { return w.underFault() == "" && w.Status().Drill == nil })
}

func TestADrillThatIsEndedByHandHasAReport(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	client, _ := start(t, w)
	if err := client.EndDrill(t.Context()); err == nil || err.Error() != "no drill is running" {
		t.Errorf("got %v", err)
	}
	done, report := drilling(t, t.Context(), w, client)
	if _, err := client.Drill(t.Context(), request("two", "close", time.Minute), nil); err == nil || !strings.Contains(err.Error(), "only one can run at a time") {
		t.Errorf("got %v", err)
	}
	if err := client.EndDrill(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-done; err != nil || report.Ended != "it was ended by hand" || w.underFault() != "" {
		t.Errorf("got %+v, %v", report, err)
	}
	if !strings.HasPrefix(w.news(), "one: blackhole, for 1m0s\n") {
		t.Errorf("it tells %s", w.news())
	}
}

func TestADrillEndsWithTheGateway(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	client, stop := start(t, w)
	done, report := drilling(t, t.Context(), w, client)
	began := time.Now()
	stop()
	if took := time.Since(began); took > shutdownLimit {
		t.Errorf("the end took %v", took)
	}
	if err := <-done; err != nil || report.Ended != "the gateway is stopping" {
		t.Errorf("got %+v, %v", report, err)
	}
	if _, err := client.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no running gateway found") {
		t.Errorf("got %v", err)
	}
}

func TestARequestThatMakesNoSenseIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorld("one", "two")
	client, _ := start(t, w)
	f := func(body, want string) {
		t.Helper()
		got, err := client.do(t.Context(), http.MethodPost, "/drill", json.RawMessage(body))
		if err == nil {
			got.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %s", body, err, want)
		}
	}
	f(`{"upstraem": "one"}`, `unknown field "upstraem"`)
	f(`{"for_ms": "1m"}`, "cannot unmarshal")
	f(`{"fault": "`+strings.Repeat("x", requestSize)+`"}`, "too large")
	f(`{}`, `"" is no fault`)
	if _, err := client.do(t.Context(), http.MethodGet, "/", nil); err == nil || err.Error() != "the gateway responded 404 Not Found" {
		t.Errorf("got %v", err)
	}
}

func TestAServerThatFailsReturns(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	newWorld("one").Serve(t.Context(), l)
}

func TestStatesOfEndpoints(t *testing.T) {
	t.Parallel()
	f := func(a upstreams.AddressHistory, want string) {
		t.Helper()
		if e := endpointStatus(a); e.State != want {
			t.Errorf("%+v: got %q, want %q", a, e.State, want)
		}
	}
	now := time.Now()
	f(upstreams.AddressHistory{Transport: upstreams.DoT}, "unproven")
	f(upstreams.AddressHistory{Transport: upstreams.DoT, Open: 1, Dialled: now, Avoided: now}, "in use")
	f(upstreams.AddressHistory{Transport: upstreams.DoH, Dialled: now}, "standing by")
	f(upstreams.AddressHistory{Transport: upstreams.DoQ, Dialled: now, Result: upstreams.DialTimedOut}, "failed")
	f(upstreams.AddressHistory{Transport: upstreams.DoQ, Dialled: now, Result: upstreams.DialTimedOut, Avoided: now}, "avoided")
	f(upstreams.AddressHistory{Transport: upstreams.UDP}, "in use")
	f(upstreams.AddressHistory{Transport: upstreams.UDP, Avoided: now}, "avoided")
}
