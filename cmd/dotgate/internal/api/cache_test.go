package api

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"dotgate/gateway/cache"
	"dotgate/gateway/wire"
)

// knowing returns a cache that has the address of a name.
func knowing(t *testing.T, name string, size cache.Size) *cache.Cache {
	t.Helper()
	o := cache.Defaults()
	o.Size = size
	c, err := cache.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	q, err := wire.NewQuery(name, "A")
	if err != nil {
		t.Fatal(err)
	}
	a, err := wire.ParseAnswer(q, q.AppendError(nil, wire.NXDomain, wire.EDE{}))
	if err != nil {
		t.Fatal(err)
	}
	c.Put(q, a)
	return c
}

func TestTheCacheIsShownAndFlushed(t *testing.T) {
	t.Parallel()
	w := newWorld("one")
	w.o.Cache = knowing(t, "www.example.com", 1<<20)
	client, _ := start(t, w)
	f := func(name, want string) {
		t.Helper()
		answers, err := client.Cached(t.Context(), name)
		for i := range answers {
			if a := &answers[i]; a.Age < 0 || a.Left <= 0 || a.Age+a.Left != Millis(10*time.Second) {
				t.Errorf("age %v, left %v", a.Age, a.Left)
			} else {
				a.Age, a.Left = 0, 0
			}
		}
		got, _ := json.Marshal(answers)
		if string(got) != want || err != nil {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
	flush := func(name string, subtree bool, want int) {
		t.Helper()
		if n, err := client.Flush(t.Context(), name, subtree); n != want || err != nil {
			t.Errorf("%s: flushed %d, %v", name, n, err)
		}
	}
	f("example.com", `[]`)
	f("WWW.example.com.", `[{"question":"www.example.com. A","do":false,"cd":false,"rcode":"NXDOMAIN","kind":"no name","state":"fresh",`+
		`"age_ms":0,"left_ms":0,"hits":0,"hits_max":3}]`)
	flush("example.com", false, 0)
	flush("example.com", true, 1)
	f("www.example.com", `[]`)
}

func TestWhatTheCacheCannotShow(t *testing.T) {
	t.Parallel()
	with, without := newWorld("one"), newWorld("one")
	with.o.Cache, without.o.Cache = knowing(t, "www.example.com", 1<<20), knowing(t, "www.example.com", 0)
	f := func(w *world, name, want string) {
		t.Helper()
		client, _ := start(t, w)
		_, shown := client.Cached(t.Context(), name)
		_, flushed := client.Flush(t.Context(), name, false)
		_, below := client.Flush(t.Context(), name, true)
		for _, err := range []error{shown, flushed, below} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: got %v, want %s", name, err, want)
			}
		}
		if body, err := client.do(t.Context(), http.MethodDelete, "/cache?name=www.example.com&subtree=yes", nil); w == with && err == nil {
			body.Close()
			t.Error("subtree=yes is taken for something")
		}
	}
	f(with, "a..b", `"a..b" is no domain name`)
	f(with, "", `"" is no domain name`)
	f(without, "example.com", "cache.size is off")
}
