package peers

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const hexKey = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

func TestEveryOptionThatCannotBeUsedIsReported(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		name := filepath.Join(dir, fmt.Sprint(len(text)))
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	f := func(change func(*Options), want string) {
		t.Helper()
		o := Defaults()
		o.Nodes, o.Key = []string{"dotgate-b", "192.0.2.1", "2001:db8::1", "[2001:db8::1]:99", "b.example:8054"}, []Key{{1}}
		change(&o)
		var got []string
		o.Check(func(option, problem string, beside ...string) { got = append(got, option+" "+problem) })
		if text := strings.Join(got, "; "); (want == "") != (text == "") || !strings.Contains(text, want) {
			t.Errorf("got %q, want %q", text, want)
		}
	}
	f(func(o *Options) {}, "")
	f(func(o *Options) { *o = Defaults() }, "")
	f(func(o *Options) { o.Key = nil }, "key is missing: peers never use clear text")
	f(func(o *Options) { o.KeyFile = file(hexKey + "\n") }, "key_file cannot be set together with key")
	f(func(o *Options) { o.Key, o.KeyFile = nil, file("# new\n"+hexKey+"\n\n"+strings.ToUpper(hexKey)+"\n") }, "")
	f(func(o *Options) { o.Key, o.KeyFile = nil, file("# none\n") }, "has no key")
	f(func(o *Options) { o.Key, o.KeyFile = nil, file(hexKey+"\nsecret\n") }, "line 2 is not 64 hexadecimal digits")
	f(func(o *Options) { o.Key, o.KeyFile = nil, filepath.Join(dir, "none") }, "no such file")
	f(func(o *Options) { o.Listen = netip.AddrPort{} }, "listen must be")
	f(func(o *Options) { o.Listen = netip.AddrPortFrom(o.Listen.Addr(), 0) }, "listen must be")
	f(func(o *Options) { o.Nodes = make([]string, maxNodes+1) }, "nodes has 33")
	for _, node := range []string{"", ":8054", "b:", "b:0", "b:99999", "b:dns", "a b", "[::1", "tls://b"} {
		f(func(o *Options) { o.Nodes = []string{node} }, "is not a node")
	}
}

func TestKeysAreNotShown(t *testing.T) {
	var k Key
	if err := k.UnmarshalText([]byte(hexKey)); err != nil || k[31] != 31 {
		t.Error(k[:], err)
	}
	if text := fmt.Sprintf("%v %s %v", k, k, []Key{k}); strings.Contains(text, "0 1 2") || strings.Contains(text, "0102") {
		t.Error(text)
	}
	for _, text := range []string{"", "00", hexKey + "00", hexKey[1:], hexKey[:62] + "xx"} {
		if err := k.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is taken for a key", text)
		}
	}
}

// Two nodes make the same certificate of a key, and different ones of different keys.
func TestAKeyMakesTheSameCertificateEverywhere(t *testing.T) {
	one, err := certify(key(1))
	if err != nil {
		t.Fatal(err)
	}
	again, err := certify(key(1))
	if err != nil || !one.Leaf.Equal(again.Leaf) {
		t.Error("it differs", err)
	}
	other, err := certify(key(2))
	if err != nil || one.Leaf.Equal(other.Leaf) || one.Leaf.Subject.String() == other.Leaf.Subject.String() {
		t.Error("another key makes the same", err)
	}
}
