package upstreams

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

// A certificateClock is the clock that certificates are verified by: that of the system,
// but not before the program was built. A machine without a battery for its clock boots
// in the past, where no certificate is valid yet. Without TLS it has no DNS, and without
// DNS it has no NTP to set its clock.
type certificateClock struct {
	built  time.Time // zero if unknown
	log    *slog.Logger
	warned *atomic.Bool // a warning that the clock is behind was logged
}

// clockWarned is shared by all upstreams: the clock is the same.
var clockWarned atomic.Bool

func (c certificateClock) now() time.Time {
	now := time.Now()
	if !now.Before(c.built) {
		return now
	}
	if !c.warned.Swap(true) {
		c.log.Warn("the system clock was behind the build time, by which certificates are judged until it is set",
			"clock", now.UTC().Format(time.RFC3339), "built", c.built.UTC().Format(time.RFC3339))
	}
	return c.built
}

// explain adds to the error of a certificate what its text leaves open.
func (c certificateClock) explain(err error) error {
	var invalid x509.CertificateInvalidError
	if !errors.As(err, &invalid) || invalid.Reason != x509.Expired {
		return fmt.Errorf("%w: %w", errHandshake, printable{unwrapNet(err)})
	}
	now, why := time.Now(), "that is the likely cause if it is wrong"
	if now.Before(invalid.Cert.NotBefore) {
		why = "which is likely wrong: set it, by NTP or by hand"
	}
	return fmt.Errorf("%w: certificate is valid from %s to %s, and the clock of this machine says %s, %s: %w", errHandshake,
		invalid.Cert.NotBefore.Format(time.RFC3339), invalid.Cert.NotAfter.Format(time.RFC3339), now.UTC().Format(time.RFC3339), why, err)
}

// A printable is an error whose text may contain names from an unverified certificate.
// Its own text is short and has printable characters only.
type printable struct{ error }

const printableMax = 512

func (p printable) Error() string {
	text := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, p.error.Error())
	if len(text) > printableMax {
		text = strings.ToValidUTF8(text[:printableMax], "") + "…"
	}
	return text
}

func (p printable) Unwrap() error { return p.error }
