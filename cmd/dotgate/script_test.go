package main

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
//	                           runs already, changes what it does wrong; over-https is
//	                           no fault, but lets it have both transports, at the ports
//	                           $NAME_DOT_PORT and $NAME_DOH_PORT
//	authority FILE             writes the certificate of another authority
//	certificate NAME [AUTHORITY]  writes a client's certificate NAME.crt, and its key,
//	                           of the upstreams' authority or of another
//	asked NAME                 prints how many queries it got
//	handshakes NAME            prints how many full TLS handshakes it had
//	ask NAME TYPE              asks the gateway at $GATEWAY, which may be about to
//	                           start, and prints what it says
//	await NAME TYPE            asks until it says NOERROR, and prints that
//	exits CODE PROGRAM ARG...  is exec that wants this exit code
//	until REGEXP PROGRAM ARG...  is exec, again and again, until it prints that
//	expand FILE                puts the values of variables into a file
//	plain NAME                 starts a server that speaks plain DNS, at the address $NAME,
//	                           and says its name
//	load RATE                  asks for RATE names a second, until unload, which
//	                           prints how many, and how many were lost
//	get PATH [CODE] [TOKEN]    asks for a page of $ADMIN, and prints it
//	becomes PATH CODE [REGEXP]  asks for it until that is its code, and that is in it,
//	                           and prints it
//
// $GATEWAY and $ADMIN are addresses of the story's own, and $SSL_CERT_FILE trusts the upstreams. No other
// variable is passed on.
func TestStories(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup:               func(env *testscript.Env) error { return setUpStory(t, env) },
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"upstream":    scriptUpstream,
			"asked":       scriptAsked,
			"handshakes":  scriptHandshakes,
			"authority":   scriptAuthority,
			"certificate": scriptCertificate,
			"ask":         scriptAsk,
			"await":       scriptAwait,
			"exits":       scriptExits,
			"until":       scriptUntil,
			"expand":      scriptExpand,
			"load":        scriptLoad,
			"unload":      scriptUnload,
			"plain":       scriptPlain,
			"get":         scriptGet,
			"becomes":     scriptBecomes,
		},
	})
}

// storyPatience is for what happens within a second or two, but on a busy machine. Only
// failing stories wait for all of it.
const storyPatience = time.Minute

// A story is the world around one script.
type story struct {
	tb        testing.TB // ends servers when all stories have ended
	ca        *dottest.CA
	upstreams map[string]*dottest.Server
	load      *load // or nil
}

func setUpStory(t *testing.T, env *testscript.Env) error {
	s := &story{tb: t, ca: dottest.NewCA(), upstreams: make(map[string]*dottest.Server)}
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
	env.Setenv("SSL_CERT_FILE", file)
	env.Setenv("SSL_CERT_DIR", filepath.Join(dir, "none"))
	own := dottest.Loopback()
	env.Setenv("GATEWAY", netip.AddrPortFrom(own, 5300).String())
	env.Setenv("ADMIN", netip.AddrPortFrom(own, 8053).String())
	env.Setenv("DOTGATE_ADMIN_LISTEN", netip.AddrPortFrom(own, 8053).String())
	env.Setenv("DOTGATE_CONTROL_SOCKET", filepath.Join(dir, "control.sock")) // its own, as stories run at once
	env.Setenv("GORACE", "atexit_sleep_ms=0")                                // or the race detector sleeps for a second after each dotgate
	return nil
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
		if word == overHTTPS {
			for _, other := range s.upstreams { // all have the same port over TLS
				options.Addr = netip.AddrPortFrom(dottest.Loopback(), other.Addr().Port()).String()
			}
			continue
		}
		if word == "wants-certificate" {
			faults = append(faults, dottest.Fault{ClientCAs: s.ca.Pool()})
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
	url := fmt.Sprintf("tls://%s#%s", u.Addr(), dottest.ServerName)
	if slices.Contains(args, overHTTPS) {
		https := dottest.NewHTTPSServer(s.tb, dottest.HTTPSOptions{Certificate: s.ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}})})
		url += fmt.Sprintf("|https://%s/dns-query#%s", https.Addr(), dottest.ServerName)
		ts.Setenv(name+"_DOH_PORT", strconv.Itoa(int(https.Addr().Port())))
	}
	ts.Setenv(name, url)
	ts.Setenv(name+"_DOT_PORT", strconv.Itoa(int(u.Addr().Port())))
}

// overHTTPS has an upstream answer over HTTPS as well.
const overHTTPS = "over-https"

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

func scriptHandshakes(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 || storyOf(ts).upstreams[args[0]] == nil {
		ts.Fatalf("usage: handshakes NAME, of an upstream")
	}
	stats := storyOf(ts).upstreams[args[0]].Stats()
	fmt.Fprintln(ts.Stdout(), stats.Handshakes-stats.Resumed)
}

func scriptAsk(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ask NAME TYPE")
	}
	r, err := exchangeSoon(ts.Getenv("GATEWAY"), args[0], args[1], func(*dns.Msg) bool { return true })
	ts.Check(err)
	writeReply(ts.Stdout(), r)
}

func scriptAwait(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: await NAME TYPE")
	}
	r, err := exchangeSoon(ts.Getenv("GATEWAY"), args[0], args[1], func(r *dns.Msg) bool { return r.Rcode == dns.RcodeSuccess })
	ts.Check(err)
	writeReply(ts.Stdout(), r)
}

func writeReply(w io.Writer, r *dns.Msg) {
	fmt.Fprintln(w, dns.RcodeToString[r.Rcode])
	for _, record := range r.Answer {
		header := record.Header()
		fmt.Fprintln(w, dns.TypeToString[header.Rrtype], strings.TrimPrefix(record.String(), header.String()))
	}
	opt := r.IsEdns0()
	if opt == nil {
		fmt.Fprintln(w, "no OPT record")
		return
	}
	for _, option := range opt.Option {
		if e, ok := option.(*dns.EDNS0_EDE); ok {
			fmt.Fprintln(w, "EDE", e)
		}
	}
}

// exchangeSoon asks until a server listens, as a gateway in the background takes
// its time to start, and until the reply will do.
func exchangeSoon(addr, name, qtype string, enough func(*dns.Msg) bool) (*dns.Msg, error) {
	t, known := dns.StringToType[qtype]
	if !known {
		return nil, fmt.Errorf("%s is no type", qtype)
	}
	q := new(dns.Msg).SetQuestion(dns.Fqdn(name), t)
	q.SetEdns0(1232, false)
	client := dns.Client{Timeout: 5 * time.Second}
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for deadline := time.Now().Add(storyPatience); ; <-again.C {
		r, _, err := client.Exchange(q, addr)
		switch {
		case err == nil && enough(r):
			return r, nil
		case err != nil && !errors.Is(err, syscall.ECONNREFUSED):
			return nil, err
		case time.Now().After(deadline):
			return nil, fmt.Errorf("%s %s: in vain: %v, %w", name, qtype, r, err)
		}
	}
}

func scriptExits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROGRAM ARG...")
	}
	code := 0
	var exit *exec.ExitError
	if err := ts.Exec(args[1], args[2:]...); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if args[0] != strconv.Itoa(code) {
		ts.Fatalf("%s exits with %d, not %s", args[1], code, args[0])
	}
}
