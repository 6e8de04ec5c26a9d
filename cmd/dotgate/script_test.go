package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/rogpeppe/go-internal/testscript"

	"dotgate/gateway/wire"
	"dotgate/upstreams/dottest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dotgate": main})
}

// TestStories runs testdata/*.txtar. Besides what testscript has, and dotgate as
// a program, there are
//
//	upstream NAME [FAULT]...   starts an upstream, whose URL is then $NAME; if it
//	                           runs already, changes what it does wrong
//	asked NAME                 prints how many queries it got
//	ask NAME TYPE              asks the gateway at $GATEWAY, which may be about to
//	                           start, and prints what it says
//
// $GATEWAY is a free address, and $SSL_CERT_FILE trusts the upstreams. Outside
// configuration comes from nowhere.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               setUpStory,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"upstream": scriptUpstream,
			"asked":    scriptAsked,
			"ask":      scriptAsk,
		},
	})
}

// A story is the world around one script.
type story struct {
	ca        *dottest.CA
	upstreams map[string]*dottest.Server
}

func setUpStory(env *testscript.Env) error {
	s := &story{ca: dottest.NewCA(), upstreams: make(map[string]*dottest.Server)}
	env.Values["story"] = s
	env.Defer(func() {
		for _, u := range s.upstreams {
			u.Close()
		}
	})
	dir := filepath.Join(env.WorkDir, ".tmp")
	file, err := s.ca.WriteFile(dir)
	if err != nil {
		return err
	}
	gateway, err := freeAddress()
	if err != nil {
		return err
	}
	env.Setenv("SSL_CERT_FILE", file)
	env.Setenv("SSL_CERT_DIR", filepath.Join(dir, "none"))
	env.Setenv("GATEWAY", gateway)
	return nil
}

// freeAddress returns an address that a moment ago was free for UDP and TCP.
func freeAddress() (string, error) {
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		pc, err := net.ListenPacket("udp", ln.Addr().String())
		ln.Close()
		if err == nil {
			pc.Close()
			return ln.Addr().String(), nil
		}
	}
	return "", errors.New("no port is free for both UDP and TCP")
}

func storyOf(ts *testscript.TestScript) *story { return ts.Value("story").(*story) }

func scriptUpstream(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: upstream NAME [FAULT]...")
	}
	s, name := storyOf(ts), args[0]
	options := dottest.Options{CA: s.ca, RTT: time.Millisecond}
	var faults []dottest.Fault
	for _, word := range args[1:] {
		switch word {
		case "wrong-name":
			options.Certificate = s.ca.Issue(dottest.CertOptions{Names: []string{"other.example.com"}})
			continue
		case "expired":
			options.Certificate = s.ca.Issue(dottest.CertOptions{
				Names: []string{dottest.ServerName}, NotAfter: time.Now().Add(-time.Hour),
			})
			continue
		}
		fault, err := faultNamed(word)
		ts.Check(err)
		faults = append(faults, fault)
	}
	if u := s.upstreams[name]; u != nil {
		u.Set(faults...)
		return
	}
	options.Faults = faults
	u, err := dottest.Start(options)
	ts.Check(err)
	s.upstreams[name] = u
	ts.Setenv(name, fmt.Sprintf("tls://%s#%s", u.Addr(), dottest.ServerName))
}

// faultNamed returns what a word stands for: never, a response code, or a
// greeting or mangling as dottest names them.
func faultNamed(word string) (f dottest.Fault, err error) {
	switch word {
	case "never":
		f.Never = true
		return f, nil
	case "servfail":
		f.RCode = wire.ServFail
		return f, nil
	case "refused":
		f.RCode = wire.Refused
		return f, nil
	}
	if f.Greeting.UnmarshalText([]byte(word)) == nil {
		return f, nil
	}
	return f, f.Mangle.UnmarshalText([]byte(word))
}

func scriptAsked(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || storyOf(ts).upstreams[args[0]] == nil {
		ts.Fatalf("usage: asked NAME, of an upstream")
	}
	fmt.Fprintln(ts.Stdout(), storyOf(ts).upstreams[args[0]].Stats().Queries)
}

func scriptAsk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ask NAME TYPE")
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(args[0]), dns.StringToType[args[1]])
	q.SetEdns0(1232, false)
	r, err := exchangeSoon(q, ts.Getenv("GATEWAY"))
	ts.Check(err)
	fmt.Fprintln(ts.Stdout(), dns.RcodeToString[r.Rcode])
	for _, record := range r.Answer {
		fmt.Fprintln(ts.Stdout(), dns.TypeToString[record.Header().Rrtype], strings.TrimPrefix(record.String(), record.Header().String()))
	}
	for _, option := range r.IsEdns0().Option {
		if e, ok := option.(*dns.EDNS0_EDE); ok {
			fmt.Fprintln(ts.Stdout(), "EDE", e)
		}
	}
}

// exchangeSoon asks until somebody listens: a gateway in the background takes
// its time to start.
func exchangeSoon(q *dns.Msg, addr string) (*dns.Msg, error) {
	client := dns.Client{Timeout: 5 * time.Second}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	deadline := time.Now().Add(10 * time.Second)
	for {
		r, _, err := client.Exchange(q, addr)
		if !errors.Is(err, syscall.ECONNREFUSED) || time.Now().After(deadline) {
			return r, err
		}
		<-again.C
	}
}
