package settings

import (
	"errors"
	"strings"
	"testing"

	"dotgate/configs"
)

// Whatever the file and the variable have: Load either says what is wrong, one
// line each, or returns a configuration that survives being written and read.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(configs.Document()), "quad9")
	f.Add([]byte("upstreams: [{preset: quad9, weight: 2}, 'tls://192.0.2.1:8853#dns.example']\nbootstrap: [192.0.2.1]"), "")
	f.Add([]byte("upstreams: [{url: tls://dns.example, bootstrap: [192.0.2.1], pins: [x]}]"), "tls://[2001:db8::1]")
	f.Add([]byte("gateway: &g\n  listen: [*g, :53]\n"), "tls://dns.example:99#x")
	f.Add([]byte("a: &a [*a]\n<<: *a\n? {a: b}\n: c"), ",")
	f.Add([]byte("gateway:\n\ttimeout: 5"), "1.1.1.1")
	f.Add([]byte("---\n---\n"), "\xff")
	f.Add([]byte("!!binary x: !!map []\nlog: !!null x"), " ")
	f.Add([]byte("\xef\xbb\xbflog: {level: \"\\uD800\"}"), "tls://]:[")
	f.Add([]byte("upstreams: [{urls: [tls://dns.example, https://192.0.2.1/q], tier: 1}]\nbootstrap: [192.0.2.1]"), "tls://192.0.2.1#a.example|https://192.0.2.2#b.example")
	f.Fuzz(func(t *testing.T, document []byte, upstreams string) {
		var environ []string
		if upstreams != "" {
			environ = append(environ, "DOTGATE_UPSTREAMS="+upstreams)
		}
		c, err := parse(string(document), environ...)
		if err == nil {
			sameAgain(t, c)
			return
		}
		var problems configs.Problems
		if !errors.As(err, &problems) || len(problems) == 0 {
			t.Fatalf("got %#v", err)
		}
		if n := strings.Count(err.Error(), "\n"); n != len(problems)-1 {
			t.Errorf("%d lines for %d problems: %s", n+1, len(problems), err)
		}
		for _, p := range problems {
			if p.Source == "default" {
				t.Errorf("the defaults are blamed: %v", p)
			}
			// YAML knows more line breaks than \n: \r, \u0085, \u2028, \u2029.
			if p.Line < 0 || p.Line > 1+len(document) {
				t.Errorf("the document does not have this line: %v", p)
			}
		}
	})
}
