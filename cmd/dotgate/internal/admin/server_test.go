package admin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"dotgate/balancer"
	"dotgate/cmd/dotgate/internal/api"
	"dotgate/cmd/dotgate/internal/peers"
	"dotgate/cmd/dotgate/internal/tracing"
	"dotgate/gateway"
	"dotgate/gateway/access"
	"dotgate/gateway/cache"
	"dotgate/gateway/querylog"
	"dotgate/gateway/redis"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A world is a gateway of which all that operators see is made up.
type world struct {
	*Server
	members []api.Member
	states  map[string]*health.Status
	history map[string]*upstreams.History
	clients gateway.Counts
	usage   cache.Usage
	ordered string
}

const testToken = "0123456789abcdef"

func newWorld(t *testing.T, o Options, names ...string) *world {
	t.Helper()
	w := &world{states: make(map[string]*health.Status), history: make(map[string]*upstreams.History)}
	for _, name := range names {
		w.states[name] = &health.Status{State: health.Up, Answered: time.Now()}
		w.history[name] = &upstreams.History{Addresses: []upstreams.AddressHistory{{Transport: upstreams.DoT, Address: netip.MustParseAddrPort("192.0.2.1:853")}, {}}}
		u := &fake{w, name}
		w.members = append(w.members, api.Member{Upstream: u, Monitor: u})
	}
	if reflect.DeepEqual(o, Options{}) {
		o = Defaults()
	}
	log := slog.New(slog.DiscardHandler)
	options := api.Options{
		Version: "v1", Gateway: w, Balancer: counting{}, Cache: holding{world: w}, Members: w.Members, Process: w, Log: log,
		Outage:     func() string { return "" },
		Network:    upstreams.NewNetwork(slog.New(slog.DiscardHandler)),
		LogDropped: func() uint64 { return 17 },
		Redis:      func() redis.Counts { return redis.Counts{} },
		Peers:      func() peers.Status { return peers.Status{Peers: []peers.Peer{{Name: "b"}}} },
	}
	var err error
	w.Server, err = New(o, Parts{
		Options: options, Control: api.New(options), Recent: func() time.Duration { return time.Minute },
		QueryLog: func() querylog.Counts { return querylog.Counts{} },
		Tracing:  func() tracing.Counts { return tracing.Counts{} },
		Reloads:  func() Reloads { return Reloads{Done: 2, Failed: 1, Last: time.Unix(1e9, 0)} },
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) Members() []api.Member         { return w.members }
func (w *world) Addrs() []netip.AddrPort       { return nil }
func (w *world) OnLink() []access.Link         { return nil }
func (w *world) Latency() gateway.Latency      { return gateway.Latency{} }
func (w *world) Counts() gateway.Counts        { return w.clients }
func (w *world) Reload() (api.Reloaded, error) { return api.Reloaded{}, nil }

func (w *world) Explain(_ context.Context, name, recordType string) (api.Explanation, error) {
	return api.Explanation{Query: name + " " + recordType}, nil
}

func (w *world) RecentQueries() *api.RecentQueries { return new(api.RecentQueries) }

func (w *world) Yield() {}

func (w *world) Health() api.Health { return api.Health{} }

func (w *world) SetAdminState(name string, o health.AdminState) error {
	w.ordered = name + " " + o.String()
	return nil
}

// holding is a cache; counting, a balancer.
type holding struct {
	api.Cache
	world *world
}

func (h holding) Usage() cache.Usage { return h.world.usage }

type counting struct{}

func (counting) Counts() balancer.Counts               { return balancer.Counts{Hedges: 3} }
func (counting) Candidates() []balancer.CandidateTrace { return nil }

type fake struct {
	world *world
	name  string
}

func (f *fake) String() string                                     { return f.name }
func (f *fake) Addresses() []netip.AddrPort                        { return nil }
func (f *fake) Counts() upstreams.Counts                           { return upstreams.Counts{Sent: 7, Handshakes: 3, Resumed: 1} }
func (f *fake) History() upstreams.History                         { return *f.world.history[f.name] }
func (f *fake) LastFailure() upstreams.Failure                     { return upstreams.Failure{} }
func (f *fake) Drill(ctx context.Context, _ upstreams.Drill) error { <-ctx.Done(); return nil }
func (f *fake) Status() health.Status                              { return *f.world.states[f.name] }
func (f *fake) Changes() []health.Change                           { return nil }

// ask asks w and returns the code and the body.
func (w *world) ask(method, path string, header ...string) (int, string) {
	r := httptest.NewRequest(method, "http://127.0.0.1:8053"+path, http.NoBody)
	for i := 0; i+1 < len(header); i += 2 {
		if header[i] == "Host" {
			r.Host = header[i+1]
		}
		r.Header.Set(header[i], header[i+1])
	}
	recorder := httptest.NewRecorder()
	w.Handler(context.Background()).ServeHTTP(recorder, r)
	text, _ := io.ReadAll(recorder.Result().Body)
	return recorder.Code, string(text)
}

func TestReadinessGoesByEvidence(t *testing.T) {
	t.Parallel()
	f := func(change func(*world), code int, want string) {
		t.Helper()
		w := newWorld(t, Options{}, "one", "two")
		change(w)
		if got, text := w.ask("GET", "/readyz"); got != code || !strings.HasPrefix(text, want) {
			t.Errorf("%d %s\nwant %d %s", got, text, code, want)
		}
		if got, text := w.ask("GET", "/livez"); got != 200 || text != "ok\n" {
			t.Errorf("live: %d %s", got, text)
		}
	}
	silence := func(w *world) {
		for _, s := range w.states {
			s.Answered = time.Now().Add(-time.Hour)
		}
	}
	f(func(*world) {}, 200, "ready: 2 of 2 upstreams answered lately\n")
	f(func(w *world) {
		w.states["two"].State, w.states["two"].Reason, w.states["two"].Since = health.Down, "it is dead", time.Now().Add(-12*time.Second)
	}, 200, "ready: 1 of 2 upstreams answered lately\ndegraded: two is down for 12s: it is dead\n")
	f(func(w *world) {
		w.states["one"].AdminState, w.states["one"].Reason = health.ForcedUp, "set to up by hand"
	},
		200, "ready: 2 of 2 upstreams answered lately\ndegraded: one is up: set to up by hand\n")
	f(func(w *world) { w.history["one"].NotAfter = time.Now().Add(24 * time.Hour) },
		200, "ready: 2 of 2 upstreams answered lately\ndegraded: one: its certificate ends at 2")
	f(silence, 503, "not ready: no upstream answered lately, and the cache is empty\n")
	f(func(w *world) { silence(w); w.usage.Answers = 9 }, 200, "ready: no upstream answered lately, but the cache has 9 answers\n")
	f(func(w *world) { w.Drain() }, 503, "not ready: the gateway is about to stop\n")
}

func TestLameduckEndsKeptAliveConnections(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{}, "one")
	server := httptest.NewServer(w.Handler(t.Context()))
	defer server.Close()
	client := server.Client()
	f := func(code int, closes bool) {
		t.Helper()
		r, err := client.Get(server.URL + "/readyz")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		_, _ = io.Copy(io.Discard, r.Body)
		if r.StatusCode != code || r.Close != closes {
			t.Errorf("%d, closes: %v", r.StatusCode, r.Close)
		}
	}
	f(200, false)
	w.Drain()
	f(503, true)
}

func TestChangesNeedAToken(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{}, "one")
	if code, text := w.ask("POST", "/api/upstreams/one/drain"); code != 403 || !strings.Contains(text, "admin.token_file") {
		t.Errorf("without any: %d %s", code, text)
	}
	o := Defaults()
	o.Token = testToken
	w = newWorld(t, o, "one")
	for _, header := range [][]string{nil, {"Authorization", "Bearer "}, {"Authorization", "Bearer " + testToken + "0"}, {"Authorization", testToken}} {
		for _, path := range []string{"/api/upstreams/one/drain", "/api/drill"} {
			if code, _ := w.ask("POST", path, header...); code != 401 || w.ordered != "" {
				t.Errorf("%s with %v: %d, %q", path, header, code, w.ordered)
			}
		}
	}
	if code, text := w.ask("POST", "/api/upstreams/one/drain", "Authorization", "Bearer "+testToken); code != 200 || w.ordered != "one drain" {
		t.Errorf("%d %s, %q", code, text, w.ordered)
	}
	if code, _ := w.ask("GET", "/readyz", "Host", "rebound.example.com"); code != http.StatusMisdirectedRequest {
		t.Errorf("another's name: %d", code)
	}
	if code, _ := w.ask("GET", "/readyz", "Host", "localhost:8053"); code != 200 {
		t.Errorf("localhost: %d", code)
	}
}

func TestProfilesAreForThoseWithTheToken(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Token = testToken
	w := newWorld(t, o, "one")
	for _, path := range []string{"/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/goroutine", "/debug/pprof/profile?seconds=1"} {
		if code, _ := w.ask("GET", path); code != 401 {
			t.Errorf("%s without it: %d", path, code)
		}
	}
	code, text := w.ask("GET", "/debug/pprof/goroutine?debug=1", "Authorization", "Bearer "+testToken)
	if code != 200 || !strings.Contains(text, "TestProfilesAreForThoseWithTheToken") {
		t.Errorf("%d %s", code, text)
	}
}

func TestEverythingIsAMetricFromTheStart(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.SharedAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	w := newWorld(t, o, "one")
	code, text := w.ask("GET", "/metrics")
	if code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	for _, m := range Metrics() {
		if !regexp.MustCompile(`(?m)^` + m.Name + `(_count)?(\{| )`).MatchString(text) {
			t.Errorf("%s is missing", m.Name)
		}
		for _, label := range m.Labels {
			if slices.Contains([]string{"client", "name", "qname", "address_of_client"}, label) {
				t.Errorf("%s has the label %s", m.Name, label)
			}
		}
	}
	for _, o := range upstreams.Outcomes() {
		for address, transport := range map[string]string{"192.0.2.1:853": "dot", "other": ""} {
			line := fmt.Sprintf("dotgate_upstream_attempts_total{address=%q,outcome=%q,transport=%q,upstream=\"one\"} 0\n", address, o, transport)
			if !strings.Contains(text, line) {
				t.Errorf("there is no %s", line)
			}
		}
	}
	for _, line := range []string{
		`dotgate_upstream_handshakes_total{kind="full",upstream="one"} 2`,
		`dotgate_upstream_handshakes_total{kind="resumed",upstream="one"} 1`,
		`dotgate_upstream_connection_reuses_total{upstream="one"} 4`,
		`dotgate_config_reloads_total{result="failed"} 1`,
		`dotgate_upstream_slo_error_budget_ratio{objective="availability",upstream="one",window="30d"} 1`,
		`dotgate_client_outcomes_total{outcome="refused_malformed",transport="udp"} 0`,
		`dotgate_shared_address_held{address="192.0.2.1"} 0`,
	} {
		if !strings.Contains(text, line+"\n") {
			t.Errorf("there is no %s", line)
		}
	}
	lint(t, text)
}

func TestASharedAddressIsHeldByTheNodeThatHasIt(t *testing.T) {
	t.Parallel()
	all, err := held()
	if err != nil {
		t.Fatal(err)
	}
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		if all[netip.MustParseAddr(loopback)] {
			t.Errorf("%s counts as shown", loopback)
		}
	}
	// The address that this machine would ask another one from, if it has any.
	if conn, err := net.Dial("udp", "192.0.2.1:53"); err == nil {
		defer conn.Close()
		if addr := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr(); !all[addr.Unmap()] {
			t.Errorf("%v is not held: %v", addr, all)
		}
	}
	o := Defaults()
	for _, bad := range []string{"127.0.0.1", "::", "fe80::1%eth0"} {
		o.SharedAddresses = []netip.Addr{netip.MustParseAddr(bad)}
		if _, err := newTerms(o); err == nil || !strings.Contains(err.Error(), "admin.shared_addresses has "+bad) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// lint asks promtool, where it is installed (package prometheus). The end-to-end
// tests insist on it.
func lint(t *testing.T, text string) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Log("promtool is not here to look at the metrics; make e2e has it do so")
		return
	}
	check := exec.Command(promtool, "check", "metrics")
	check.Stdin = strings.NewReader(text)
	if out, err := check.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

func TestServiceLevelsOfAllWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, Options{}, "one")
		at := func() map[string]Level {
			levels := make(map[string]Level)
			for _, l := range w.watch.levels(w.members[0]) {
				levels[l.Window] = l
			}
			return levels
		}
		ask := func(answered, failed uint64) {
			a := &w.history["one"].Addresses[0].Attempts
			a[upstreams.GotNoError] += answered
			a[upstreams.Reset] += failed
		}
		pass := func(d time.Duration) {
			for range d / lookEvery {
				w.watch.look(time.Now())
				time.Sleep(lookEvery) // fake time
			}
		}
		f := func(window string, asked uint64, availability, budget float64) {
			t.Helper()
			l := at()[window]
			if l.Asked != asked || l.Availability < availability-1e-9 || l.Availability > availability+1e-9 || l.Budget < budget-1e-6 || l.Budget > budget+1e-6 {
				t.Errorf("%s: %+v, want %d asked, %v, budget %v", window, l, asked, availability, budget)
			}
		}
		f("30d", 0, 1, 1)
		w.watch.look(time.Now())
		ask(9990, 10)
		f("5m", 10000, 0.999, 0)
		pass(10 * time.Minute)
		f("5m", 0, 1, 1)
		f("1h", 10000, 0.999, 0)
		ask(0, 10000)
		f("5m", 10000, 0, 1-1/0.001)
		pass(2 * time.Hour)
		f("1h", 0, 1, 1)
		f("30d", 20000, 0.4995, 1-0.5005/0.001)
	})
}

func TestOptionsThatCanNotBe(t *testing.T) {
	t.Parallel()
	short := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(short, []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(change func(*Options), want ...string) {
		t.Helper()
		o := Defaults()
		change(&o)
		var got []string
		o.Check(func(option, problem string, beside ...string) { got = append(got, option+" "+problem) })
		if len(got) != len(want) {
			t.Errorf("got %q, want %q", got, want)
			return
		}
		for i := range want {
			if !strings.Contains(got[i], want[i]) {
				t.Errorf("got %q, want %q", got, want)
			}
		}
	}
	f(func(*Options) {})
	f(func(o *Options) { o.Token = "short" }, "token has less than 16 characters")
	f(func(o *Options) { o.Token, o.TokenFile = testToken, short }, "token_file is set, and token too")
	f(func(o *Options) { o.TokenFile = short }, "in its first line")
	f(func(o *Options) { o.TokenFile = short + ".none" }, "no such file")
	f(func(o *Options) { o.CertFile = short }, "cert_file and key_file need each other")
	f(func(o *Options) { o.ClientCAFile = short }, "is needed for client_ca_file", "holds no PEM certificate")
	f(func(o *Options) { o.Objectives.Availability = 100 }, "objectives.availability must be above 0 and below 100")
	f(func(o *Options) { o.Objectives.Latency = 0 }, "objectives.latency must be between 1ms and 1m")
	for _, text := range []string{"", "8053", "here:8053", "[ff02::1]:8053"} {
		if err := new(Address).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for an address", text)
		}
	}
}

func TestThePageIsAllItNeedsAndEventsFollow(t *testing.T) {
	t.Parallel()
	w := newWorld(t, Options{}, "one")
	w.clients.Outcomes[gateway.Answered] = gateway.PerTransport{wire.UDP: 5}
	code, text := w.ask("GET", "/")
	if code != 200 || regexp.MustCompile(`(src|href)="?(https?:)?//`).MatchString(text) {
		t.Errorf("%d; or it loads something", code)
	}
	stopping, stop := context.WithCancel(t.Context())
	stop() // after the first one
	recorder := httptest.NewRecorder()
	w.Handler(stopping).ServeHTTP(recorder, httptest.NewRequest("GET", "http://127.0.0.1/events", http.NoBody))
	if got := recorder.Body.String(); !strings.HasPrefix(got, `data: {"at":`) || !strings.Contains(got, `"queries":5`) || !strings.HasSuffix(got, "}\n\n") {
		t.Errorf("got %s", got)
	}
}
