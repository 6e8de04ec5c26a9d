package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"go.uber.org/goleak"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams/dottest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeUpstream is an upstream of which a test says how it is.
type fakeUpstream struct {
	name     string
	failing  atomic.Bool
	doubts   atomic.Int32
	rechecks atomic.Int32
}

func (u *fakeUpstream) String() string { return u.name }
func (u *fakeUpstream) Status() health.Status {
	return health.Status{Failing: u.failing.Load(), Usual: 12 * time.Millisecond}
}
func (u *fakeUpstream) Doubt(string) bool { u.doubts.Add(1); return true }
func (u *fakeUpstream) Recheck()          { u.rechecks.Add(1) }

// A site is a node with all that it has to do with.
type site struct {
	*Node
	cache   *cache.Cache
	changed chan struct{}
	all     []*fakeUpstream
	stop    func()
	log     *bytes.Buffer
}

func key(n byte) Key { return Key{0: n, 31: 1} }

func ownAddr() netip.AddrPort { return netip.AddrPortFrom(dottest.Loopback(), 8054) }

// newSite returns a node that listens at addr and knows those others; change it
// before it runs.
func newSite(t *testing.T, addr netip.AddrPort, keys []Key, others ...netip.AddrPort) *site {
	t.Helper()
	c, err := cache.New(cache.Defaults())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	s := &site{cache: c, changed: make(chan struct{}, 1), all: []*fakeUpstream{{name: "one"}, {name: "two"}}, log: new(bytes.Buffer)}
	o := Options{Listen: addr, Key: keys}
	for _, a := range others {
		o.Nodes = append(o.Nodes, a.String())
	}
	s.Node, err = New(o, Parts{
		Upstreams: func() (all []Upstream) {
			for _, u := range s.all {
				all = append(all, u)
			}
			return all
		},
		Changed: s.changed, Cache: c, Admit: func(_ wire.Query, a wire.Answer) bool { return !a.HasPrivate() },
		Digest: func() [32]byte { return [32]byte{} }, Version: "test", Log: slog.New(slog.NewTextHandler(&syncWriter{w: s.log}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// run runs s until the test ends, or stop is called.
func (s *site) run(t *testing.T) *site {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	s.stop = func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			t.Error("a node does not end within 10s")
			<-done
		}
	}
	t.Cleanup(func() { s.stop() })
	return s
}

type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (w *syncWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.w.Write(p)
}

// pair returns two nodes that know each other.
func pair(t *testing.T) (a, b *site) {
	t.Helper()
	one, two := ownAddr(), ownAddr()
	a = newSite(t, one, []Key{key(1)}, one, two).run(t) // both have the same list
	b = newSite(t, two, []Key{key(1)}, one, two).run(t)
	within(t, 5*time.Second, "both see each other", func() bool { return a.sees(1) && b.sees(1) })
	return a, b
}

// sees reports whether so many peers are up.
func (s *site) sees(n int) bool {
	up := 0
	for _, p := range s.Status().Peers {
		if p.Up {
			up++
		}
	}
	return up == n
}

func (s *site) problem() string {
	for _, p := range s.Status().Peers {
		if p.Problem != "" {
			return p.Problem
		}
	}
	return ""
}

func (s *site) rejected(r Reason) uint64 { return s.Status().Counts.Rejected[r.String()] }

func (s *site) fill(t *testing.T, n int) {
	t.Helper()
	for i := range n {
		q := query(t, i)
		s.cache.Put(q, answer(t, q, 300))
	}
}

func (s *site) has(t *testing.T, n int) (found int) {
	t.Helper()
	for i := range n {
		if s.cache.Look(query(t, i)) == cache.Fresh {
			found++
		}
	}
	return found
}

func query(t *testing.T, i int) wire.Query {
	t.Helper()
	q, err := wire.NewQuery(fmt.Sprintf("n%d.example.com", i), "A")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// answer returns one with an address and a TTL in seconds.
func answer(t *testing.T, q wire.Query, ttl uint32) wire.Answer {
	t.Helper()
	message := q.AppendError(nil, wire.NoError, wire.EDE{})
	name := q.AppendName(nil)
	end := 12 + len(name) + 4
	record := append(bytes.Clone(name), 0, 1, 0, 1)
	record = binary.BigEndian.AppendUint32(record, ttl)
	record = append(record, 0, 4, 192, 0, 2, 1)
	message = append(message[:end:end], record...)
	binary.BigEndian.PutUint16(message[6:], 1)
	binary.BigEndian.PutUint16(message[10:], 0)
	a, err := wire.ParseAnswer(q, message)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// within waits until condition holds.
func within(t *testing.T, limit time.Duration, what string, condition func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Since(begin) > limit {
			t.Fatalf("%s: not within %v", what, limit)
		}
		<-tick.C
	}
	return time.Since(begin)
}

func TestANodeHearsThatAnUpstreamFailsAndIsBack(t *testing.T) {
	a, b := pair(t)
	a.all[1].failing.Store(true)
	a.changed <- struct{}{}
	took := within(t, 2*time.Second, "the other node doubts the upstream", func() bool { return b.all[1].doubts.Load() > 0 })
	t.Logf("heard after %v", took)
	time.Sleep(300 * time.Millisecond) // repetitions
	if n := b.all[1].doubts.Load(); n != 1 || b.all[0].doubts.Load() != 0 {
		t.Errorf("%d doubts of what fails, %d of what doesn't", n, b.all[0].doubts.Load())
	}
	if p := b.Status().Peers; len(p) != 1 || !p[0].Up || len(p[0].Failing) != 1 || p[0].Failing[0] != "two" || p[0].Usual["one"] != 12*time.Millisecond {
		t.Errorf("the status is %+v", p)
	}
	b.all[1].failing.Store(true) // so its own probe says
	a.all[1].failing.Store(false)
	a.changed <- struct{}{}
	within(t, 2*time.Second, "the other node probes it again", func() bool { return b.all[1].rechecks.Load() == 1 })
	if a.all[1].doubts.Load() != 0 {
		t.Error("a node doubts an upstream for what it said itself")
	}
}

func TestANodeThatComesLaterHearsWhatFails(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.all[0].failing.Store(true)
	a.changed <- struct{}{}
	within(t, 5*time.Second, "that nobody is there is known", func() bool { return a.problem() != "" })
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	within(t, 5*time.Second, "it hears", func() bool { return b.all[0].doubts.Load() == 1 })
}

func TestANodeThatStartsGetsTheAnswersOfTheOther(t *testing.T) {
	const n = 5000
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.fill(t, n)
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	took := within(t, 30*time.Second, "all answers are there", func() bool { return b.Status().Counts.Used == n })
	t.Logf("%d answers after %v", n, took)
	if found := b.has(t, n); found != n {
		t.Errorf("only %d of %d can be found", found, n)
	}
	if c := b.Status().Counts; c.Taken != n || c.Used != n {
		t.Errorf("counted %+v", c)
	}
	if c := a.Status().Counts; c.Given != n {
		t.Errorf("counted %+v", c)
	}
}

func TestNodesWithOtherUpstreamsKeepTheirAnswers(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.fill(t, 10)
	b := newSite(t, two, []Key{key(1)}, one)
	b.p.Digest = func() [32]byte { return [32]byte{1} }
	b.run(t)
	within(t, 5*time.Second, "it is told", func() bool { return b.rejected(otherConfiguration) == 1 })
	if b.has(t, 10) != 0 {
		t.Error("it has answers all the same")
	}
}

func TestANodeIsMissedAndFoundAgain(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	within(t, 5*time.Second, "both are there", func() bool { return a.sees(1) && b.sees(1) })
	b.stop()
	within(t, time.Second, "it has left", func() bool { return a.sees(0) })
	b = newSite(t, two, []Key{key(1)}, one).run(t)
	within(t, 5*time.Second, "it is back", func() bool { return a.sees(1) && b.sees(1) })
	if n := len(a.Status().Peers); n != 1 {
		t.Errorf("one node after another at one address are %d", n)
	}
}

// Without the key there is nothing to hear and nothing to get.
func TestAnotherKeyIsNoKey(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.fill(t, 10)
	b := newSite(t, two, []Key{key(2)}, one).run(t)
	within(t, 5*time.Second, "it is told", func() bool { return strings.Contains(b.problem(), "peers.key") })
	a.all[0].failing.Store(true)
	a.changed <- struct{}{}
	time.Sleep(300 * time.Millisecond) // a word would be heard in a third of it
	if a.sees(1) || b.sees(1) || b.all[0].doubts.Load() != 0 || b.has(t, 10) != 0 {
		t.Error("they talk all the same")
	}
	if b.rejected(wrongKey) == 0 || a.rejected(stranger) == 0 {
		t.Errorf("counted %v and %v", a.Status().Counts.Rejected, b.Status().Counts.Rejected)
	}
}

// While a key is replaced, nodes have both; which is first doesn't matter.
func TestKeysCanBeReplacedOneNodeAfterAnother(t *testing.T) {
	f := func(first, second []Key) {
		t.Helper()
		one, two := ownAddr(), ownAddr()
		a := newSite(t, one, first, two).run(t)
		a.fill(t, 10)
		b := newSite(t, two, second, one).run(t)
		within(t, 5*time.Second, "they talk", func() bool { return a.sees(1) && b.sees(1) && b.has(t, 10) == 10 })
		a.all[0].failing.Store(true)
		a.changed <- struct{}{}
		within(t, 2*time.Second, "it hears", func() bool { return b.all[0].doubts.Load() == 1 })
		a.stop()
		b.stop()
	}
	f([]Key{key(1)}, []Key{key(1), key(2)})
	f([]Key{key(1), key(2)}, []Key{key(2), key(1)})
	f([]Key{key(2)}, []Key{key(2), key(1)})
}

// liar returns an engine with the right key, at an address that a knows.
func liar(t *testing.T, addr netip.AddrPort, k Key, change func(*memberlist.Config)) (*memberlist.Memberlist, *transport) {
	t.Helper()
	id, err := newIdentity([]Key{k})
	if err != nil {
		t.Fatal(err)
	}
	tr := newTransport(id, new(counts), slog.New(slog.DiscardHandler))
	tr.known, tr.serve, tr.addr = func(netip.Addr) bool { return true }, func(c net.Conn) { c.Close() }, addr
	if tr.udp, tr.tcp, err = listen(addr); err != nil {
		t.Fatal(err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name, c.Transport, c.Keyring, c.LogOutput = "liar~1", tr, id.ring, io.Discard
	c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = version, version, version
	c.TCPTimeout, c.ProbeInterval = time.Second, 500*time.Millisecond
	if change != nil {
		change(c)
	}
	if tr.serve == nil {
		t.Fatal("no server")
	}
	tr.run()
	m, err := memberlist.Create(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Shutdown() })
	return m, tr
}

func TestWhatALiarSaysCostsNothing(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	m, _ := liar(t, two, key(1), nil)
	within(t, 5*time.Second, "the liar is taken for a node", func() bool { return a.sees(1) })
	to := (&member{name: a.name, addr: one}).node()
	say := func(text string) {
		t.Helper()
		if err := m.SendReliable(to, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	before := a.rejected(malformed)
	for _, text := range []string{"{", "rubbish", "null x", `{"from":5}`, `[]`, `{"from":"liar~1","states":[{"upstream":7}]}`, strings.Repeat("x", maxWord+1)} {
		say(text)
	}
	within(t, 5*time.Second, "it is counted", func() bool { return a.rejected(malformed) == before+7 })
	before = a.rejected(stranger)
	say(`{"from":"nobody","states":[{"upstream":"one","failing":true}]}`)
	say(fmt.Sprintf(`{"from":%q,"states":[{"upstream":"one","failing":true}]}`, a.name))
	within(t, 5*time.Second, "it is counted", func() bool { return a.rejected(stranger) == before+2 })
	say(`{"from":"liar~1","states":[{"upstream":"unheard of","failing":true},{"upstream":"one","failing":false,"usual_ms":-1e300}]}`)
	if n := a.all[0].doubts.Load() + a.all[1].doubts.Load(); n != 0 {
		t.Errorf("%d doubts", n)
	}

	// A flood is cut off before it costs more than a packet does.
	text, _ := json.Marshal(word{"liar~1", []state{{Upstream: "one", Failing: true}, {Upstream: "two", Failing: true}}})
	calm, _ := json.Marshal(word{"liar~1", []state{{Upstream: "one"}, {Upstream: "two"}}})
	begin := time.Now()
	for i := range 5000 {
		text := text
		if i%2 == 1 {
			text = calm
		}
		_ = m.SendBestEffort(to, text)
	}
	took := time.Since(begin)
	within(t, 5*time.Second, "it is counted", func() bool { return a.rejected(flood) > 200 })
	if n := a.all[0].doubts.Load(); float64(n) > wordBurst+wordRate*(took.Seconds()+1) {
		t.Errorf("%d doubts of an upstream in %v", n, took)
	}
}

func TestNodesThatAreNoneAreBounded(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	d := (*delegate)(a.Node)
	refused := 0
	for i := range 1000 {
		other := &memberlist.Node{Name: fmt.Sprint("ghost~", i), Addr: net.IP{192, 0, 2, 1}, Port: uint16(i), DMin: version, DMax: version}
		if d.NotifyAlive(other) != nil {
			refused++
		}
	}
	if refused != 1000-maxNodes || len(a.members) != maxNodes {
		t.Errorf("%d of 1000 were refused, there are %d", refused, len(a.members))
	}
	if len(a.Status().Peers) != 1 {
		t.Errorf("the status shows nodes that never were: %+v", a.Status().Peers)
	}
}

func TestAnotherVersionIsNotHeard(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	liar(t, two, key(1), func(c *memberlist.Config) {
		c.DelegateProtocolVersion, c.DelegateProtocolMin, c.DelegateProtocolMax = version+1, version+1, version+1
	})
	within(t, 5*time.Second, "it is told", func() bool { return strings.Contains(a.problem(), "incompatible") })
	if a.sees(1) {
		t.Error("it is a node all the same")
	}
	if err := (*delegate)(a.Node).NotifyAlive(&memberlist.Node{Name: "x", DMin: version + 1, DMax: version + 1}); err == nil || a.rejected(otherVersion) != 1 {
		t.Errorf("got %v, counted %v", err, a.Status().Counts.Rejected)
	}
}

// serving returns a node that has met a liar which gives answers like this.
func serving(t *testing.T, give func(net.Conn)) *site {
	t.Helper()
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	q := query(t, 1)
	a.cache.Put(q, answer(t, q, 300))
	liar(t, two, key(1), func(c *memberlist.Config) {
		c.Transport.(*transport).serve = func(conn net.Conn) {
			defer conn.Close()
			var digest [32]byte
			if _, err := io.ReadFull(conn, digest[:]); err == nil {
				give(conn)
			}
		}
	})
	return a
}

func TestALiarsAnswersAreVerified(t *testing.T) {
	entry := func(to []byte, key, message []byte) []byte {
		to = binary.BigEndian.AppendUint64(to, uint64(time.Now().UnixNano()))
		to = append(to, 1)
		to = binary.BigEndian.AppendUint16(to, uint16(len(key)))
		to = binary.BigEndian.AppendUint16(to, uint16(len(message)))
		return append(append(to, key...), message...)
	}
	a := serving(t, func(conn net.Conn) {
		clock := binary.BigEndian.AppendUint64([]byte{given}, uint64(time.Now().UnixNano()))
		text := append(clock, "dotgate cache 1\n"...)
		other, week := query(t, 2), query(t, 3)
		text = entry(text, query(t, 4).AppendKey(nil), answer(t, other, 300).AppendReply(nil, other, wire.Terms{}))
		text = entry(text, other.AppendKey(nil), []byte("rubbish"))
		text = entry(text, week.AppendKey(nil), answer(t, week, 7*24*3600).AppendReply(nil, week, wire.Terms{}))
		conn.Write(text)
		io.Copy(conn, zeroes{}) // and that goes on
	})
	within(t, 10*time.Second, "it is counted", func() bool { return a.rejected(malformed) >= 2 })
	within(t, 10*time.Second, "what is good is used", func() bool { return a.cache.Look(query(t, 3)) == cache.Fresh })
	if a.cache.Look(query(t, 2)) != cache.Nothing || a.cache.Look(query(t, 4)) != cache.Nothing || a.cache.Look(query(t, 1)) != cache.Fresh {
		t.Error("answers to other questions were used, or an own one was lost")
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Who is asked for answers and says nothing is left alone after a while; the node
// stops at once in spite of it.
func TestASlowNodeHoldsUpNothing(t *testing.T) {
	stuck, asked := make(chan struct{}), make(chan struct{}, 10)
	a := serving(t, func(net.Conn) {
		asked <- struct{}{}
		<-stuck
	})
	t.Cleanup(func() { close(stuck) })
	<-asked
	if a.cache.Look(query(t, 1)) != cache.Fresh {
		t.Error("its own answer is lost")
	}
	begin := time.Now()
	a.stop()
	if took := time.Since(begin); took > stall {
		t.Errorf("it takes %v to stop", took)
	}
}

// Whoever has no certificate of ours gets nothing, whatever it sends.
func TestStrangersGetNothing(t *testing.T) {
	a, _ := pair(t)
	f := func(what string, talk func(net.Conn) error) {
		t.Helper()
		conn, err := net.Dial("tcp", a.o.Listen.String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
		if err := talk(conn); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
	f("rubbish", func(c net.Conn) error {
		c.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		return onlyAlert(c)
	})
	id, err := newIdentity([]Key{key(1)})
	if err != nil {
		t.Fatal(err)
	}
	f("no certificate", func(c net.Conn) error {
		config := id.client(cacheProtocol)
		config.Certificates = nil
		return readOne(tls.Client(c, config))
	})
	f("another certificate", func(c net.Conn) error {
		config := id.client(cacheProtocol)
		other, err := certify(key(9))
		if err != nil {
			t.Fatal(err)
		}
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &other, nil }
		return readOne(tls.Client(c, config))
	})
	f("another protocol", func(c net.Conn) error { return readOne(tls.Client(c, id.client("dotgate-cache/2"))) })
	f("an old TLS", func(c net.Conn) error {
		config := id.client(cacheProtocol)
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		return readOne(tls.Client(c, config))
	})
	within(t, time.Second, "they are counted", func() bool { return a.rejected(stranger) == 5 })
	// Packets: no key, too long, and as many as they like.
	conn, err := net.Dial("udp", a.o.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before := a.rejected(flood)
	for range 1000 {
		conn.Write(make([]byte, 100))
	}
	within(t, 5*time.Second, "it is counted", func() bool { return a.rejected(flood) > before+50 })
	if !a.sees(1) {
		t.Error("the other node is gone")
	}
}

func readOne(c *tls.Conn) error {
	if _, err := c.Write(make([]byte, 32)); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 1))
	return err
}

var errAnswer = errors.New("an alert and no more")

func onlyAlert(c net.Conn) error {
	text, err := io.ReadAll(c)
	if err == nil && len(text) < 10 {
		return errAnswer
	}
	return err
}
