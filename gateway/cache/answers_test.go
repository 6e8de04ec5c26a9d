package cache

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// reply returns the result for a query and the reply as text: code, TTLs and EDEs.
func (c *Cache) reply(t testing.TB, q wire.Query, stale bool) string {
	t.Helper()
	get := c.Append
	if stale {
		get = c.AppendStale
	}
	packet, found := get([]byte("prefix"), q)
	if found == Miss || found == Expired {
		if string(packet) != "prefix" {
			t.Errorf("%x was appended to nothing", packet)
		}
		return "nothing"
	}
	var m dns.Msg
	if err := m.Unpack(packet[len("prefix"):]); err != nil {
		t.Fatal(err)
	}
	words := []string{map[Result]string{Fresh: "fresh", FreshRenew: "due", Stale: "stale"}[found], dns.RcodeToString[m.Rcode]}
	for _, section := range [][]dns.RR{m.Answer, m.Ns} {
		for _, rr := range section {
			words = append(words, fmt.Sprint(rr.Header().Ttl))
		}
	}
	if opt := m.IsEdns0(); opt != nil {
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				words = append(words, fmt.Sprint("ede=", e.InfoCode))
			}
		}
	}
	return strings.Join(words, " ")
}

// A scene is an event after a pause, and the replies of the cache after it.
type scene struct {
	after  time.Duration
	answer []string // stored first, unless it is nil
	fresh  string   // reply of Append; empty: not called
	stale  string   // reply of AppendStale; empty: not called
}

// play plays scenes for www.example.com. A.
func play(t *testing.T, name string, change func(*Options), scenes ...scene) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := open(t, change)
			q := ask(t, "www.example.com A")
			for i, s := range scenes {
				time.Sleep(s.after)
				if s.answer != nil {
					c.Put(q, says(t, q, s.answer...))
				}
				if s.fresh != "" {
					if got := c.reply(t, q, false); got != s.fresh {
						t.Errorf("%d: got %s, want %s", i, got, s.fresh)
					}
				}
				if s.stale != "" {
					if got := c.reply(t, q, true); got != s.stale {
						t.Errorf("%d: got %s, want %s", i, got, s.stale)
					}
				}
			}
		})
	})
}

func TestAnswersFromFreshToExpired(t *testing.T) {
	const a = "www.example.com. 100 IN A 192.0.2.1"
	long := "www.example.com. 1000000 IN A 192.0.2.2"
	positive, servfail, refused := []string{a}, []string{"SERVFAIL"}, []string{"REFUSED"}
	noName := []string{"NXDOMAIN", soa(600, 300)}

	play(t, "positive", nil,
		scene{0, nil, "nothing", "nothing"},
		scene{0, positive, "fresh NOERROR 100", "fresh NOERROR 100"},
		scene{1500 * time.Millisecond, nil, "fresh NOERROR 99", ""},
		scene{98*time.Second + 499*time.Millisecond, nil, "due NOERROR 1", ""},
		scene{time.Millisecond, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{24*time.Hour - time.Millisecond, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{time.Millisecond, nil, "nothing", "nothing"})
	play(t, "least of its records", nil,
		scene{0, []string{a, "www.example.com. 10 IN A 192.0.2.2"}, "fresh NOERROR 100 10", ""},
		scene{9 * time.Second, nil, "fresh NOERROR 91 1", ""},
		scene{time.Second, nil, "nothing", ""})
	play(t, "no name", nil,
		scene{0, noName, "fresh NXDOMAIN 300", ""},
		scene{299 * time.Second, nil, "fresh NXDOMAIN 1", ""},
		scene{time.Second, nil, "nothing", "stale NXDOMAIN 30 ede=19"},
		scene{time.Minute - time.Second, nil, "nothing", "stale NXDOMAIN 30 ede=19"},
		scene{time.Second, nil, "nothing", "nothing"})
	play(t, "a SOA record that ends before its minimum", nil,
		scene{0, []string{"NXDOMAIN", soa(100, 300)}, "fresh NXDOMAIN 100", ""},
		scene{100*time.Second - time.Millisecond, nil, "fresh NXDOMAIN 1", ""},
		scene{time.Millisecond, nil, "nothing", ""})
	play(t, "no name at the end of an alias", nil,
		scene{0, []string{"NXDOMAIN", "www.example.com. 1000 IN CNAME no.example.com.", soa(600, 300)}, "fresh NXDOMAIN 300 300", ""},
		scene{299 * time.Second, nil, "fresh NXDOMAIN 1 1", ""},
		scene{time.Second, nil, "nothing", ""})
	play(t, "a SOA record that forbids it", func(o *Options) { o.MinTTL = time.Hour },
		scene{0, []string{"NXDOMAIN", soa(600, 0)}, "nothing", "nothing"},
		scene{0, []string{soa(0, 600)}, "nothing", "nothing"})
	play(t, "no data", nil,
		scene{0, []string{soa(600, 300)}, "fresh NOERROR 300", ""},
		scene{300 * time.Second, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{23 * time.Hour, nil, "nothing", "stale NOERROR 30 ede=3"})
	play(t, "no SOA", func(o *Options) { o.MinTTL = time.Hour },
		scene{0, []string{"NXDOMAIN"}, "fresh NXDOMAIN", ""},
		scene{9999 * time.Millisecond, nil, "fresh NXDOMAIN", ""},
		scene{time.Millisecond, nil, "nothing", ""})
	play(t, "not to be kept", func(o *Options) { o.MinTTL = time.Hour },
		scene{0, []string{"www.example.com. 0 IN A 192.0.2.1"}, "nothing", "nothing"},
		scene{0, []string{"www.example.com. 2147483648 IN A 192.0.2.1"}, "nothing", "nothing"},
		scene{0, []string{a, "www.example.com. 0 IN A 192.0.2.2"}, "nothing", "nothing"})
	play(t, "max TTL", nil,
		scene{0, []string{long}, "fresh NOERROR 86400", ""},
		scene{time.Hour, nil, "fresh NOERROR 82800", ""},
		scene{23 * time.Hour, nil, "nothing", ""})
	play(t, "max negative TTL", nil,
		scene{0, []string{soa(1000000, 1000000)}, "fresh NOERROR 3600", ""},
		scene{time.Hour, nil, "nothing", ""})
	play(t, "min TTL", func(o *Options) { o.MinTTL = 5 * time.Minute },
		scene{0, positive, "fresh NOERROR 300", ""},
		scene{299 * time.Second, nil, "fresh NOERROR 1", ""},
		scene{time.Second, nil, "nothing", ""})
	play(t, "no clamp for errors", func(o *Options) { o.MinTTL = time.Hour },
		scene{0, servfail, "fresh SERVFAIL", "nothing"},
		scene{time.Second, nil, "nothing", "nothing"})
	play(t, "no cut for errors", func(o *Options) { o.MaxTTL, o.MaxNegativeTTL = time.Second, time.Second },
		scene{0, servfail, "fresh SERVFAIL", ""},
		scene{time.Second, servfail, "fresh SERVFAIL", ""},
		scene{1999 * time.Millisecond, nil, "fresh SERVFAIL", ""},
		scene{time.Millisecond, nil, "nothing", ""})
	play(t, "no min TTL for negative answers", func(o *Options) { o.MinTTL = time.Hour },
		scene{0, noName, "fresh NXDOMAIN 300", ""},
		scene{300 * time.Second, nil, "nothing", ""})
	play(t, "never stale", func(o *Options) { o.MaxStale = 0 },
		scene{0, positive, "", ""},
		scene{100 * time.Second, nil, "nothing", "nothing"})

	// RFC 9520
	play(t, "errors are repeated", nil,
		scene{0, servfail, "fresh SERVFAIL", "nothing"},
		scene{999 * time.Millisecond, nil, "fresh SERVFAIL", ""},
		scene{time.Millisecond, nil, "nothing", ""},
		scene{0, servfail, "fresh SERVFAIL", ""},
		scene{1999 * time.Millisecond, nil, "fresh SERVFAIL", ""},
		scene{time.Millisecond, refused, "fresh SERVFAIL ede=0", ""},
		scene{4 * time.Second, servfail, "fresh SERVFAIL", ""},
		scene{4999 * time.Millisecond, nil, "fresh SERVFAIL", ""},
		scene{time.Millisecond, servfail, "fresh SERVFAIL", ""},
		scene{5 * time.Second, nil, "nothing", "nothing"},
		scene{5 * time.Second, servfail, "fresh SERVFAIL", ""},
		scene{time.Second, nil, "nothing", "nothing"},
		scene{0, servfail, "fresh SERVFAIL", ""},
		scene{0, positive, "fresh NOERROR 100", ""})
	play(t, "errors hide nothing", nil,
		scene{0, positive, "fresh NOERROR 100", ""},
		scene{0, servfail, "fresh NOERROR 100", "fresh NOERROR 100"},
		scene{100 * time.Second, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{0, servfail, "stale NOERROR 30 ede=3", "stale NOERROR 30 ede=3"},
		scene{4 * time.Second, nil, "stale NOERROR 30 ede=3", ""},
		scene{time.Second, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{0, refused, "stale NOERROR 30 ede=3", ""},
		scene{0, positive, "fresh NOERROR 100", ""},
		scene{100 * time.Second, nil, "nothing", "stale NOERROR 30 ede=3"},
		scene{24 * time.Hour, servfail, "fresh SERVFAIL", "nothing"})
	play(t, "errors hide no name", nil,
		scene{0, noName, "", ""},
		scene{0, servfail, "fresh NXDOMAIN 300", ""},
		scene{301 * time.Second, servfail, "stale NXDOMAIN 30 ede=19", ""},
		scene{time.Minute, servfail, "fresh SERVFAIL", "nothing"})

	// After three hits, one hit in the last tenth gets FreshRenew.
	play(t, "due", nil,
		scene{0, positive, "fresh NOERROR 100", ""},
		scene{0, nil, "fresh NOERROR 100", ""},
		scene{89 * time.Second, nil, "fresh NOERROR 11", ""},
		scene{time.Second, nil, "due NOERROR 10", ""},
		scene{0, nil, "fresh NOERROR 10", ""},
		scene{0, positive, "fresh NOERROR 100", ""},
		scene{95 * time.Second, nil, "fresh NOERROR 5", ""},
		scene{0, nil, "due NOERROR 5", ""},
		scene{0, servfail, "fresh NOERROR 5", ""})
	play(t, "errors are never due", nil,
		scene{0, servfail, "fresh SERVFAIL", ""},
		scene{0, nil, "fresh SERVFAIL", ""},
		scene{999 * time.Millisecond, nil, "fresh SERVFAIL", ""})
}

func TestTheKeyHasAllThatAnAnswerDependsOn(t *testing.T) {
	c := open(t, nil)
	stored := ask(t, "wWw.example.com A")
	c.Put(stored, says(t, stored, "www.example.com. 100 IN A 192.0.2.1"))
	f := func(text string, want bool) {
		t.Helper()
		q := ask(t, text)
		reply, found := c.Append(nil, q)
		if (found != Miss) != want {
			t.Errorf("%s: found %d", text, found)
		}
		if _, _, ok := c.Get(q); ok != want || (c.Lookup(q) == Fresh) != want {
			t.Errorf("%s: got a copy: %t", text, ok)
		}
		var m dns.Msg
		if want && (m.Unpack(reply) != nil || m.Question[0].Name != strings.Fields(text)[0]+"." || m.Id != wire.ID(q.Packet())) {
			t.Errorf("%s: reply %v", text, &m)
		}
	}
	f("wWw.example.com A", true)
	f("www.EXAMPLE.com A", true)
	f("www.example.com A plain tcp", true)
	f("www.example.com AAAA", false)
	f("www.example.com A do", false)
	f("www.example.com A cd", false)
	f("ww.example.com A", false)
	f("example.com A", false)
}

func TestGetReturnsACopyWithItsTerms(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, func(o *Options) { o.Size = minSize })
		q := ask(t, "www.example.com A")
		c.Put(q, says(t, q, "www.example.com. 100 IN A 192.0.2.1"))
		time.Sleep(10 * time.Second)
		a, terms, ok := c.Get(q)
		want, _ := c.Append(nil, q)
		fill(t, c, 10_000)
		c.Close()
		if got := a.AppendReply(nil, q, terms); !ok || string(got) != string(want) {
			t.Errorf("got %x, want %x", got, want)
		}
	})
}

// fill stores n names in c, always the same.
func fill(t testing.TB, c *Cache, n int) { fillFrom(t, c, 1<<40, n) }

func fillFrom(t testing.TB, c *Cache, first uint64, n int) {
	m := newTemplate(t, 30)
	for i := range uint64(n) {
		q := m.number(first + i)
		c.Put(q, m.answer(q))
	}
}

func TestZeroAndClosedCachesAreEmpty(t *testing.T) {
	closed := open(t, nil)
	closed.Close()
	for name, c := range map[string]*Cache{"zero": {}, "off": open(t, func(o *Options) { o.Size = 0 }), "closed": closed} {
		q := ask(t, "www.example.com A")
		a := says(t, q, "www.example.com. 100 IN A 192.0.2.1")
		c.Put(q, a)
		if _, found := c.Append(nil, q); found != Miss || c.Lookup(q) != Miss || c.Usage().Answers != 0 {
			t.Errorf("%s: holds something", name)
		}
		if _, found := c.AppendStale(nil, q); found != Miss {
			t.Errorf("%s: holds something stale", name)
		}
		if n, err := c.FlushSubtree("."); n != 0 || err != nil {
			t.Errorf("%s: flushed %d, %v", name, n, err)
		}
		c.Close()
	}
}

func TestHitsDoNotAllocate(t *testing.T) {
	c := open(t, nil)
	q := ask(t, "www.example.com A")
	c.Put(q, says(t, q, "www.example.com. 100 IN A 192.0.2.1"))
	miss := ask(t, "www.example.org A")
	buf := make([]byte, 0, 2048)
	if n := testing.AllocsPerRun(1000, func() {
		c.Append(buf, q)
		c.AppendStale(buf, q)
		c.Append(buf, miss)
		c.Lookup(q)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	c := open(t, func(o *Options) { o.Size = minSize })
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			m, reply := newTemplate(t, 40), []byte(nil)
			for i := range uint64(scaled(20_000)) {
				q := m.number(i * 7919 % 12_000)
				want := m.answer(q)
				var found Result
				if reply, found = c.Append(reply[:0], q); found == Miss {
					c.Put(q, want)
				} else if !sameButTTL(reply, want.AppendReply(nil, q, wire.Terms{})) {
					t.Errorf("%v: %x", q, reply)
				}
				switch i % 5000 {
				case 0:
					c.Flush(strings.Fields(q.String())[0])
				case 1:
					c.Usage()
				}
			}
		})
	}
	all.Wait()
}

// sameButTTL compares replies to the queries of a template.
func sameButTTL(a, b []byte) bool {
	const fromEnd = 11 + 6 // an OPT record, and the data with its length
	ttlAt := len(a) - fromEnd - 4
	return len(a) == len(b) && bytes.Equal(a[:ttlAt], b[:ttlAt]) && bytes.Equal(a[ttlAt+4:], b[ttlAt+4:])
}

func TestFlush(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, nil)
		for _, text := range []string{"www.example.com A", "www.example.com AAAA do", "WWW.example.com A cd", "a.www.example.com A", "example.com A", "example.org A"} {
			q := ask(t, text)
			c.Put(q, says(t, q, strings.Fields(text)[0]+". 100 IN "+map[bool]string{true: "A 192.0.2.1", false: "AAAA 2001:db8::1"}[strings.Contains(text, "A") && !strings.Contains(text, "AAAA")]))
		}
		f := func(flush func(string) (int, error), name string, want, left int) {
			t.Helper()
			if n, err := flush(name); n != want || err != nil || c.Usage().Answers != left {
				t.Errorf("%s: %d, %v; %d are left", name, n, err, c.Usage().Answers)
			}
		}
		f(c.Flush, "ww.example.com", 0, 6)
		f(c.Flush, "WWW.example.com", 3, 3)
		f(c.FlushSubtree, "www.example.com", 1, 2)
		f(c.FlushSubtree, "EXAMPLE.com.", 1, 1)
		f(c.FlushSubtree, ".", 1, 0)
		for _, flush := range []func(string) (int, error){c.Flush, c.FlushSubtree, func(n string) (int, error) { _, err := c.Show(n); return 0, err }} {
			if _, err := flush("a..b"); err == nil {
				t.Error("no error")
			}
		}
	})
}

// shown returns the entries for www.example.com, one in each line.
func (c *Cache) shown(t *testing.T) (lines []string) {
	t.Helper()
	entries, err := c.Show("wwW.example.com.")
	if err != nil {
		t.Error(err)
	}
	for _, e := range entries {
		line := fmt.Sprintf("%s do=%t cd=%t %v (%v) age=%v left=%v usable=%t hits=%d %s %s %s %s", e.Question, e.DO, e.CD, e.RCode, e.Kind,
			e.Age, e.Left, e.Usable, e.Hits, e.Answer, e.Authority, e.Additional, e.Errors)
		lines = append(lines, strings.Join(strings.Fields(line), " "))
	}
	return lines
}

func TestShow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, func(o *Options) { o.MaxTTL = 50 * time.Second })
		f := func(want ...string) {
			t.Helper()
			if got := c.shown(t); !slices.Equal(got, want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
		}
		put := func(text string, records ...string) (q wire.Query) {
			q = ask(t, text)
			c.Put(q, says(t, q, records...))
			return q
		}
		f()
		asked := put("wWw.example.com A", "www.example.com. 100 IN A 192.0.2.1")
		put("www.example.com A cd", "www.example.com. 40 IN CNAME other.example.com.", "other.example.com. 30 IN A 192.0.2.2")
		put("www.example.com TXT do", "NXDOMAIN", soa(600, 10))
		put("www.example.com AAAA", "SERVFAIL")
		put("www.example.com AAAA", "SERVFAIL")
		put("www.example.org A", "www.example.org. 100 IN A 192.0.2.1")
		put("a.www.example.com A", "a.www.example.com. 100 IN A 192.0.2.1")
		for range 5 {
			c.Append(nil, asked)
		}
		time.Sleep(1500 * time.Millisecond)
		f("www.example.com. A do=false cd=false NOERROR (positive) age=1.5s left=48.5s usable=true hits=3 [www.example.com. 49 IN A 192.0.2.1] [] [] []",
			"www.example.com. A do=false cd=true NOERROR (positive) age=1.5s left=28.5s usable=true hits=0 "+
				"[www.example.com. 39 IN CNAME other.example.com. other.example.com. 29 IN A 192.0.2.2] [] [] []",
			"www.example.com. AAAA do=false cd=false SERVFAIL (failure) age=1.5s left=500ms usable=true hits=0 [] [] [] []",
			"www.example.com. TXT do=true cd=false NXDOMAIN (no name) age=1.5s left=8.5s usable=true hits=0 "+
				"[] [example.com. 9 IN SOA ns.example.com. host.example.com. 1 2 3 4 10] [] []")
		time.Sleep(60 * time.Second)
		f("www.example.com. A do=false cd=false NOERROR (positive) age=1m1.5s left=-11.5s usable=true hits=3 [www.example.com. 30 IN A 192.0.2.1] [] [] [3 (Stale Answer)]",
			"www.example.com. A do=false cd=true NOERROR (positive) age=1m1.5s left=-31.5s usable=true hits=0 "+
				"[www.example.com. 30 IN CNAME other.example.com. other.example.com. 30 IN A 192.0.2.2] [] [] [3 (Stale Answer)]",
			"www.example.com. AAAA do=false cd=false SERVFAIL (failure) age=1m1.5s left=-59.5s usable=false hits=0 [] [] [] []",
			"www.example.com. TXT do=true cd=false NXDOMAIN (no name) age=1m1.5s left=-51.5s usable=true hits=0 "+
				"[] [example.com. 30 IN SOA ns.example.com. host.example.com. 1 2 3 4 10] [] [19 (Stale NXDOMAIN Answer)]")
	})
}

// A caller that has seen Miss need not look again before Changes changes.
func TestAMissHoldsUntilAnAnswerIsPut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := open(t, nil)
		q := ask(t, "www.example.com A")
		f := func(want Result) {
			t.Helper()
			if _, found := c.Append(nil, q); found != want {
				t.Errorf("got %v, want %v", found, want)
			}
		}
		before := c.Changes()
		f(Miss)
		if c.Changes() != before {
			t.Error("a look-up has changed something")
		}
		c.Put(q, says(t, q, "www.example.com. 300 IN A 192.0.2.1"))
		if c.Changes() == before {
			t.Error("an answer was put, and nothing has changed")
		}
		f(Fresh)
		time.Sleep(301 * time.Second) // fake time
		f(Expired)
	})
}
