package redis

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"dotgate/gateway/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func query(t testing.TB, name string) wire.Query {
	t.Helper()
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// message returns the response to q with an address and a TTL in seconds.
func message(q wire.Query, ttl uint32) []byte {
	m := q.AppendError(nil, wire.NoError, wire.EDE{})
	name := q.AppendName(nil)
	end := 12 + len(name) + 4
	m = append(append(m[:end:end], name...), 0, 1, 0, 1)
	m = binary.BigEndian.AppendUint32(m, ttl)
	m = append(m, 0, 4, 192, 0, 2, 1)
	binary.BigEndian.PutUint16(m[6:], 1)
	binary.BigEndian.PutUint16(m[10:], 0)
	return m
}

func answer(t testing.TB, q wire.Query, ttl uint32) wire.Answer {
	t.Helper()
	a, err := wire.ParseAnswer(q, message(q, ttl))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// What comes back has the TTL that is left, and never more than it had.
func TestAnAnswerComesBackWithWhatIsLeftOfItsTTL(t *testing.T) {
	t.Parallel()
	q := query(t, "www.example.com")
	came := time.Now()
	value, err := encode(q, answer(t, q, 1000), came)
	if err != nil {
		t.Fatal(err)
	}
	f := func(after time.Duration, want uint32, wantErr error) {
		t.Helper()
		a, err := decode(q, value, came.Add(after))
		if !errors.Is(err, wantErr) || err == nil && a.TTL() != want {
			t.Errorf("after %v: got %d, %v; want %d, %v", after, a.TTL(), err, want, wantErr)
		}
		if err == nil && !bytes.Contains(a.AppendReply(nil, q, wire.Terms{}), []byte{192, 0, 2, 1}) {
			t.Errorf("after %v: the address is gone", after)
		}
	}
	f(0, 1000, nil)
	f(100*time.Second, 900, nil)
	f(900*time.Second, 100, nil)
	f(901*time.Second, 0, errExpiring)
	f(2000*time.Second, 0, errExpiring)
	f(100*365*24*time.Hour, 0, errExpiring)
	f(-time.Second, 1000, nil) // the other one's clock is ahead a little
	f(-time.Minute, 0, errInvalid)
}

func TestWhatIsNoAnswerToTheQueryIsNotTakenForOne(t *testing.T) {
	t.Parallel()
	q, other := query(t, "www.example.com"), query(t, "other.example.com")
	now := time.Now()
	stamp := binary.BigEndian.AppendUint64(nil, uint64(now.UnixNano()))
	for what, value := range map[string][]byte{
		"nothing": nil, "too short": stamp[:7], "no message": stamp, "rubbish": append(bytes.Clone(stamp), "rubbish, and more of it"...),
		"another name":         append(bytes.Clone(stamp), message(other, 300)...),
		"cut":                  append(bytes.Clone(stamp), message(q, 300)[:40]...),
		"an error":             append(bytes.Clone(stamp), q.AppendError(nil, wire.ServFail, wire.EDE{})...),
		"a query":              append(bytes.Clone(stamp), q.AppendUpstream(nil, 1)...),
		"of the end of time":   append([]byte("\x7f\xff\xff\xff\xff\xff\xff\xff"), message(q, 300)...),
		"of the begin of time": append([]byte("\x80\x00\x00\x00\x00\x00\x00\x00"), message(q, 300)...),
	} {
		if a, err := decode(q, value, now); err == nil || !a.IsZero() {
			t.Errorf("%s: got an answer, %v", what, err)
		}
	}
	if _, err := decode(q, append(stamp, message(q, 300)...), now); err != nil {
		t.Error(err)
	}
}

// A resolver that always knows.
type knowing struct{ t testing.TB }

func (k knowing) Ask(_ context.Context, q wire.Query, done func(wire.Answer, error)) {
	done(answer(k.t, q, 300), nil)
}

// No query waits for a server that refuses connections or never answers.
func TestAnUnreachableServerCostsNothing(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	for _, at := range []net.Addr{silent.Addr(), gone.Addr()} {
		o := Defaults()
		o.URL, o.Log = []URL{URL("redis://" + at.String())}, slog.New(slog.DiscardHandler)
		c, err := New(o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- c.Run(ctx) }()
		for range 100 {
			answered := false
			c.Before(knowing{t}, [32]byte{}).Ask(t.Context(), query(t, "www.example.com"), func(_ wire.Answer, err error) { answered = err == nil })
			if !answered {
				t.Fatal("no answer at once")
			}
		}
		n := c.Counts()
		for result, reads := range n.Reads {
			if reads > 0 {
				t.Errorf("%v: %d reads: %s", at, reads, result)
			}
		}
		if n.Up {
			t.Errorf("%v is up", at)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// A telling knows for what it is asked.
type telling struct{ knowing }

type tellingKey struct{}

func (k telling) Ask(ctx context.Context, q wire.Query, done func(wire.Answer, error)) {
	*ctx.Value(tellingKey{}).(*bool) = true
	k.knowing.Ask(ctx, q, done)
}

// The trace of a query reaches the Resolver behind the cache, whether or not the cache is
// read.
func TestTheTraceOfAQueryIsPassedOn(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.URL, o.Log = []URL{"redis://127.0.0.1:1"}, slog.New(slog.DiscardHandler)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.client.Close()
	f := func(next Resolver, want bool) {
		t.Helper()
		told := false
		ctx := context.WithValue(t.Context(), tellingKey{}, &told)
		answered := make(chan error, 1)
		c.Before(next, [32]byte{}).Ask(ctx, query(t, "www.example.com"), func(_ wire.Answer, err error) { answered <- err })
		if err := <-answered; err != nil || told != want {
			t.Errorf("%v, told %v, want %v", err, told, want)
		}
	}
	f(telling{knowing{t}}, true)
	f(knowing{t}, false)
	c.up.Store(true) // although no server listens
	f(telling{knowing{t}}, true)
	for range maxReads {
		c.reads <- struct{}{}
	}
	f(telling{knowing{t}}, true)
}

func TestEveryOptionThatCannotBeUsedIsReported(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	none := filepath.Join(dir, "none.pem")
	if err := os.WriteFile(none, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(change func(*Options), want string) {
		t.Helper()
		o := Defaults()
		o.URL = []URL{"redis://127.0.0.1:6379/1"}
		change(&o)
		var got []string
		o.Check(func(option, problem string, beside ...string) { got = append(got, option+" "+problem) })
		if text := strings.Join(got, "; "); (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	f(func(*Options) {}, "")
	f(func(o *Options) { *o = Defaults() }, "")
	f(func(o *Options) { o.URL = append(o.URL, "redis://127.0.0.1:6380") }, "")
	f(func(o *Options) { o.URL = []URL{"unix:///run/redis.sock"} }, "")
	f(func(o *Options) { o.Limit = 0 }, "limit must be between 100us and 100ms")
	f(func(o *Options) { o.Limit = time.Second }, "limit must be between 100us and 100ms")
	f(func(o *Options) { o.Prefix = "" }, "prefix must not be empty")
	f(func(o *Options) { o.URL, o.Master = nil, "main" }, "master requires url")
	f(func(o *Options) { o.CAFile = none }, "ca_file requires rediss://")
	f(func(o *Options) { o.URL, o.CAFile = []URL{"rediss://a"}, none }, "holds no PEM certificate")
	f(func(o *Options) { o.URL, o.CAFile = []URL{"rediss://a"}, none+"x" }, "no such file")
}

func TestPasswordsAreNotShown(t *testing.T) {
	t.Parallel()
	var u URL
	if err := u.UnmarshalText([]byte("rediss://me:secret@redis.example:6380/2")); err != nil {
		t.Fatal(err)
	}
	if text := u.String(); strings.Contains(text, "secret") || !strings.Contains(text, "redis.example:6380/2") {
		t.Error(text)
	}
	for _, text := range []string{"", "redis.example", "http://me:secret@redis.example", "redis://me:secret@redis.example:port", "redis://me:secret@a/b/c", "rediss://me:secret@a?skip_verify=true"} {
		err := u.UnmarshalText([]byte(text))
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

// A reload binds queries to other keys: what the Resolver of before answers, even later,
// is not found by the next one.
func TestConfigurationsShareNoKeys(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.URL, o.Log = []URL{"redis://127.0.0.1:1"}, slog.New(slog.DiscardHandler)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	defer c.client.Close()
	q := query(t, "www.corp.example")
	old, next, again := c.Before(knowing{t}, [32]byte{1}).(*before), c.Before(knowing{t}, [32]byte{2}).(*before), c.Before(knowing{t}, [32]byte{1}).(*before)
	old.put(q, answer(t, q, 300)) // it began before the reload
	written := <-c.queue
	if written.key != old.key(q) || written.key == next.key(q) || written.key != again.key(q) {
		t.Errorf("wrote %q; the keys are %q, then %q, then %q", written.key, old.key(q), next.key(q), again.key(q))
	}
}
