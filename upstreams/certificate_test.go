package upstreams

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"dotgate/upstreams/dottest"
)

// A certificate that is not valid yet by the system's clock is good if the program was
// built within its time, and one that had ended by then is not.
func TestCertificatesAreVerifiedByTheBuildTimeWhileTheClockIsBehind(t *testing.T) {
	t.Parallel()
	ca, now := dottest.NewCA(), time.Now()
	year := 365 * 24 * time.Hour
	future := ca.Issue(dottest.CertOptions{Names: []string{dottest.ServerName}, NotBefore: now.Add(year), NotAfter: now.Add(2 * year)})
	for _, test := range []struct {
		built time.Time
		want  string
	}{
		{time.Time{}, "likely wrong"},
		{now.Add(-year), "likely wrong"},
		{now.Add(year + time.Hour), ""},
		{now.Add(3 * year), "clock of this machine"},
	} {
		s := dottest.NewServer(t, dottest.Options{CA: ca, Certificate: future})
		o := trusting(t, s)
		o.Built = test.built
		u := open(t, o)
		for range 2 { // the second time, the session may be resumed
			err := ask(u, "www.example.com")
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("built %v from now: got %v, want %q", test.built.Sub(now).Round(time.Hour), err, test.want)
			}
		}
	}
}

func TestAClockThatIsBehindIsWarnedOfOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is the year 2000
		var log bytes.Buffer
		built := time.Now().Add(time.Hour)
		c := certificateClock{built: built, log: slog.New(slog.NewTextHandler(&log, nil)), warned: new(atomic.Bool)}
		f := func(want time.Time, lines int) {
			t.Helper()
			if got := c.now(); !got.Equal(want) {
				t.Errorf("got %v, want %v", got, want)
			}
			if n := strings.Count(log.String(), "\n"); n != lines {
				t.Errorf("%d lines: %s", n, &log)
			}
		}
		f(built, 1)
		f(built, 1)
		time.Sleep(2 * time.Hour) // the clock is set
		f(time.Now(), 1)
		for _, want := range []string{"system clock was behind", "built=" + built.UTC().Format(time.RFC3339), fmt.Sprint("clock=", time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339))} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("no %q in %s", want, &log)
			}
		}
	})
}

// The peer chooses the names in a certificate that does not verify. They reach logs and
// the terminals of operators.
func TestNamesInCertificatesAreSafeToPrint(t *testing.T) {
	names := append([]string{"a\x1b[31mb\n.example"}, strings.Split(strings.Repeat("ä.example ", 200), " ")...)
	wrong := &tls.CertificateVerificationError{Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: names}, Host: "dns.example.com"}}
	err := certificateClock{}.explain(wrong)
	text := err.Error()
	if strings.ContainsAny(text, "\x1b\n") || len(text) > 600 || !strings.Contains(text, "certificate is valid for") {
		t.Errorf("%d octets: %q", len(text), text)
	}
	var found *tls.CertificateVerificationError
	if !errors.As(err, &found) || !errors.Is(err, errHandshake) || OutcomeOf(err) != TLSCertificate {
		t.Errorf("%v is no longer known for what it is", err)
	}
}
