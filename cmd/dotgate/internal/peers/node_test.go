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
	"dotgate/gateway/latency"
	"dotgate/gateway/wire"
	"dotgate/health"
	"dotgate/upstreams/dottest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(patientM{m}) }

// A patientM gives memberlist's goroutines time to end: its Shutdown does not wait for
// the exchange of states that is under way, which may take TCPTimeout (2 s).
type patientM struct{ *testing.M }

func (m patientM) Run() int {
	code := m.M.Run()
	for end := time.Now().Add(patience); code == 0 && goleak.Find() != nil && time.Now().Before(end); {
	}
	return code
}

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
func (u *fakeUpstream) PeerReport(string) bool { u.doubts.Add(1); return true }
func (u *fakeUpstream) ProbeNow()              { u.rechecks.Add(1) }

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
		Changed: s.changed, Cache: c, Admit: func(_ wire.Query, a wire.Answer) bool {
			_, ok := a.WithoutPrivate(func([]byte) bool { return false })
			return ok
		},
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
	eventually(t, "both see each other", func() bool { return a.sees(1) && b.sees(1) })
	return a, b
}

// sees reports whether n peers are up.
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
		if s.cache.Lookup(query(t, i)) == cache.Fresh {
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

// patience is for what happens soon, but on a busy machine. Only failing tests wait for
// all of it.
const patience = 30 * time.Second

// eventually waits until condition holds, and returns how long that took.
func eventually(t *testing.T, what string, condition func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Since(begin) > patience {
			t.Fatalf("%s: not within %v", what, patience)
		}
		<-tick.C
	}
	return time.Since(begin)
}

func TestANodeHearsThatAnUpstreamFailsAndIsBack(t *testing.T) {
	a, b := pair(t)
	a.all[1].failing.Store(true)
	a.changed <- struct{}{}
	took := eventually(t, "the other node doubts the upstream", func() bool { return b.all[1].doubts.Load() > 0 })
	t.Logf("applied after %v", took)
	if a.Status().Counts.Sent == 0 {
		t.Error("it was not announced: the states are exchanged every 10 s in any case")
	}
	time.Sleep(300 * time.Millisecond) // repetitions
	if n := b.all[1].doubts.Load(); n != 1 || b.all[0].doubts.Load() != 0 {
		t.Errorf("%d doubts of what fails, %d of what doesn't", n, b.all[0].doubts.Load())
	}
	if p := b.Status().Peers; len(p) != 1 || !p[0].Up || len(p[0].Failing) != 1 || p[0].Failing[0] != "two" || p[0].Usual["one"] != latency.Millis(12*time.Millisecond) {
		t.Errorf("the status is %+v", p)
	}
	if a.all[1].doubts.Load() != 0 {
		t.Error("a node doubts an upstream for what it said itself")
	}
	b.all[1].failing.Store(true) // so its own probe says
	a.all[1].failing.Store(false)
	a.changed <- struct{}{}
	eventually(t, "the other node probes it again", func() bool { return b.all[1].rechecks.Load() == 1 })
}

func TestAMessageThatWasOvertakenChangesNothing(t *testing.T) {
	a, b := pair(t)
	say := func(sequence int, failing bool) {
		b.handle(fmt.Appendf(nil, `{"from":%q,"sequence":%d,"states":[{"upstream":"two","failing":%t}]}`, a.name, sequence, failing))
	}
	say(1e6, true)
	say(1e6-1, false)
	say(1e6+1, true)
	if n := b.all[1].doubts.Load(); n != 1 {
		t.Errorf("one outage was reported %d times", n)
	}
}

func TestANodeThatComesLaterHearsWhatFails(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.all[0].failing.Store(true)
	a.changed <- struct{}{}
	eventually(t, "the missing peer is reported", func() bool { return a.problem() != "" })
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	eventually(t, "the report is applied", func() bool { return b.all[0].doubts.Load() == 1 })
}

func TestANodeThatStartsGetsTheAnswersOfTheOther(t *testing.T) {
	const n = 5000
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	a.fill(t, n)
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	took := eventually(t, "all answers are there", func() bool { return b.Status().Counts.Used == n })
	t.Logf("%d answers after %v", n, took)
	if found := b.has(t, n); found != n {
		t.Errorf("only %d of %d can be found", found, n)
	}
	if c := b.Status().Counts; c.Downloaded != n || c.Used != n {
		t.Errorf("counted %+v", c)
	}
	if c := a.Status().Counts; c.Uploaded != n {
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
	eventually(t, "the operator is told", func() bool { return b.rejected(otherConfiguration) == 1 })
	if b.has(t, 10) != 0 {
		t.Error("it has answers all the same")
	}
}

// A hookedCache calls before each time that its answers are about to be uploaded.
type hookedCache struct {
	Cache
	before func()
}

func (c hookedCache) WriteHot(w io.Writer) (int, error) {
	c.before()
	return c.Cache.WriteHot(w)
}

// A reload while answers are on their way: those that come after it are not taken.
func TestAnswersThatComeAfterAReloadAreDropped(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a, b := newSite(t, one, []Key{key(1)}, two), newSite(t, two, []Key{key(1)}, one)
	var reloaded atomic.Bool
	a.p.Cache = hookedCache{a.p.Cache, func() { reloaded.Store(true) }} // the digests were equal
	b.p.Digest = func() (digest [32]byte) {
		if reloaded.Load() {
			digest[0] = 1
		}
		return digest
	}
	a.run(t)
	a.fill(t, 10)
	b.run(t)
	eventually(t, "the answers have come", func() bool { return b.Status().Counts.Downloaded == 10 })
	if n := b.has(t, 10); n != 0 || b.Status().Counts.Used != 0 {
		t.Errorf("it has %d answers, used %d", n, b.Status().Counts.Used)
	}
}

func TestANodeIsMissedAndFoundAgain(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	b := newSite(t, two, []Key{key(1)}, one).run(t)
	eventually(t, "both are there", func() bool { return a.sees(1) && b.sees(1) })
	// It says that it leaves. Otherwise, it would be missed after two seconds. On a busy
	// machine, the packet may be late once.
	for try := 1; ; try++ {
		b.stop()
		took := eventually(t, "it has left", func() bool { return a.sees(0) })
		b = newSite(t, two, []Key{key(1)}, one).run(t)
		eventually(t, "it is back", func() bool { return a.sees(1) && b.sees(1) })
		if took < time.Second {
			break
		}
		if try == 4 {
			t.Errorf("it was missed after %v", took)
			break
		}
	}
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
	eventually(t, "the operator is told", func() bool { return strings.Contains(b.problem(), "peers.key") })
	a.all[0].failing.Store(true)
	a.changed <- struct{}{}
	time.Sleep(300 * time.Millisecond) // a report would be applied in a third of it
	if a.sees(1) || b.sees(1) || b.all[0].doubts.Load() != 0 || b.has(t, 10) != 0 {
		t.Error("they talk all the same")
	}
	if b.rejected(wrongKey) == 0 || a.rejected(unknownSender) == 0 {
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
		eventually(t, "they talk", func() bool { return a.sees(1) && b.sees(1) && b.has(t, 10) == 10 })
		a.all[0].failing.Store(true)
		a.changed <- struct{}{}
		eventually(t, "the report is applied", func() bool { return b.all[0].doubts.Load() == 1 })
		a.stop()
		b.stop()
	}
	f([]Key{key(1)}, []Key{key(1), key(2)})
	f([]Key{key(1), key(2)}, []Key{key(2), key(1)})
	f([]Key{key(2)}, []Key{key(2), key(1)})
}

// liar returns an engine with the right key, at an address that a knows.
func liar(t *testing.T, addr netip.AddrPort, k Key, change func(*memberlist.Config)) *memberlist.Memberlist {
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
	c.TCPTimeout, c.ProbeInterval = 5*time.Second, 500*time.Millisecond
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
	return m
}

func TestWhatALiarSaysCostsNothing(t *testing.T) {
	one, two := ownAddr(), ownAddr()
	a := newSite(t, one, []Key{key(1)}, two).run(t)
	m := liar(t, two, key(1), nil)
	eventually(t, "the liar is taken for a node", func() bool { return a.sees(1) })
	to := (&member{name: a.name, addr: one}).node()
	say := func(text string) {
		t.Helper()
		if err := m.SendReliable(to, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	before := a.rejected(malformed)
	for _, text := range []string{"{", "rubbish", "null x", `{"from":5}`, `[]`, `{"from":"liar~1","states":[{"upstream":7}]}`, strings.Repeat("x", maxMessage+1)} {
		say(text)
	}
	eventually(t, "it is counted", func() bool { return a.rejected(malformed) == before+7 })
	before = a.rejected(unknownSender)
	say(`{"from":"unlisted","states":[{"upstream":"one","failing":true}]}`)
	say(fmt.Sprintf(`{"from":%q,"states":[{"upstream":"one","failing":true}]}`, a.name))
	eventually(t, "it is counted", func() bool { return a.rejected(unknownSender) == before+2 })
	say(`{"from":"liar~1","states":[{"upstream":"unheard of","failing":true},{"upstream":"one","failing":false,"usual_ms":-1e300}]}`)
	if n := a.all[0].doubts.Load() + a.all[1].doubts.Load(); n != 0 {
		t.Errorf("%d doubts", n)
	}

	// A flood is cut off before it costs more than a packet does.
	text, _ := json.Marshal(message{From: "liar~1", States: []state{{Upstream: "one", Failing: true}, {Upstream: "two", Failing: true}}})
	calm, _ := json.Marshal(message{From: "liar~1", States: []state{{Upstream: "one"}, {Upstream: "two"}}})
	begin := time.Now()
	for i := range 5000 {
		text := text
		if i%2 == 1 {
			text = calm
		}
		_ = m.SendBestEffort(to, text)
	}
	eventually(t, "it is counted", func() bool { return a.rejected(flood) > 200 })
	n, took := a.all[0].doubts.Load(), time.Since(begin)
	if float64(n) > messageBurst+messageRate*(took.Seconds()+1) {
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
	eventually(t, "the operator is told", func() bool { return strings.Contains(a.problem(), "incompatible") })
	if a.sees(1) {
		t.Error("it is a node all the same")
	}
	if err := (*delegate)(a.Node).NotifyAlive(&memberlist.Node{Name: "x", DMin: version + 1, DMax: version + 1}); err == nil || a.rejected(otherVersion) != 1 {
		t.Errorf("got %v, counted %v", err, a.Status().Counts.Rejected)
	}
}

// serving returns a node that has met a liar which gives answers like this.
func serving(t *testing.T, upload func(net.Conn)) *site {
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
				upload(conn)
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
		clock := binary.BigEndian.AppendUint64([]byte{replyAnswers}, uint64(time.Now().UnixNano()))
		text := append(clock, "dotgate cache 1\n"...)
		other, week := query(t, 2), query(t, 3)
		text = entry(text, query(t, 4).AppendKey(nil), answer(t, other, 300).AppendReply(nil, other, wire.Terms{}))
		text = entry(text, other.AppendKey(nil), []byte("rubbish"))
		text = entry(text, week.AppendKey(nil), answer(t, week, 7*24*3600).AppendReply(nil, week, wire.Terms{}))
		conn.Write(text)
		io.Copy(conn, zeroes{}) // and that goes on
	})
	eventually(t, "it is counted", func() bool { return a.rejected(malformed) >= 2 })
	eventually(t, "what is good is used", func() bool { return a.cache.Lookup(query(t, 3)) == cache.Fresh })
	if a.cache.Lookup(query(t, 2)) != cache.Miss || a.cache.Lookup(query(t, 4)) != cache.Miss || a.cache.Lookup(query(t, 1)) != cache.Fresh {
		t.Error("answers to other questions were used, or an own one was lost")
	}
}

type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// A download from a node that sends nothing ends after a while, and does not delay the
// stop of this node.
func TestASlowNodeHoldsUpNothing(t *testing.T) {
	stuck, asked := make(chan struct{}), make(chan struct{}, 10)
	a := serving(t, func(net.Conn) {
		asked <- struct{}{}
		<-stuck
	})
	t.Cleanup(func() { close(stuck) })
	<-asked
	if a.cache.Lookup(query(t, 1)) != cache.Fresh {
		t.Error("its own answer is lost")
	}
	begin := time.Now()
	a.stop()
	if took := time.Since(begin); took > stallTimeout {
		t.Errorf("it takes %v to stop", took)
	}
}

// A client without a certificate made from the key gets no answers, whatever it sends.
func TestUnknownClientsGetNothing(t *testing.T) {
	a, _ := pair(t)
	before := a.rejected(unknownSender)
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
	// Messages of the other node are counted, too, while a busy machine lets it seem down.
	eventually(t, "they are counted", func() bool { return a.rejected(unknownSender) >= before+5 })
	// Packets: no key, too long, and as many as they like.
	conn, err := net.Dial("udp", a.o.Listen.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	before = a.rejected(flood)
	for range 1000 {
		conn.Write(make([]byte, 100))
	}
	eventually(t, "it is counted", func() bool { return a.rejected(flood) > before+50 })
	eventually(t, "the other node is there", func() bool { return a.sees(1) })
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
