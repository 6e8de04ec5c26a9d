package admin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Options of a Server. A zero field means its default.
type Options struct {
	// Listen is where operators, orchestrators and Prometheus find it.
	// Default: 127.0.0.1:8053.
	Listen Address `config:"listen"`
	// Token is the bearer token of whoever may see names or change anything.
	// Without it, and without TokenFile and ClientCAFile, nobody may.
	Token Secret `config:"token"`
	// TokenFile holds the token instead, in its first line.
	TokenFile string `config:"token_file"`
	// CertFile and KeyFile, PEM, make it HTTPS. Default: plain HTTP.
	CertFile string `config:"cert_file"`
	KeyFile  string `config:"key_file"`
	// ClientCAFile has the authorities, PEM, whose client certificates do in place
	// of the token. It needs CertFile.
	ClientCAFile string `config:"client_ca_file"`
	// SharedAddresses are those that move between this gateway and others, by VRRP
	// or a routing protocol. Metrics tell whether this machine has them. Default:
	// none.
	SharedAddresses []netip.Addr `config:"shared_addresses"`
	// Objectives are what each upstream is held to.
	Objectives Objectives `config:"objectives"`
}

// Objectives of an upstream's service level.
type Objectives struct {
	// Availability is the percentage of the queries it is asked that must get an
	// answer. Default: 99.9.
	Availability float64 `config:"availability"`
	// Latency is how quick an answer must be, and LatencyShare for which
	// percentage of them. Defaults: 100 ms and 95.
	Latency      time.Duration `config:"latency"`
	LatencyShare float64       `config:"latency_share"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options {
	return Options{
		Listen:     Address{netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 8053)},
		Objectives: Objectives{Availability: 99.9, Latency: 100 * time.Millisecond, LatencyShare: 95},
	}
}

// Check reports every option that can't be used, by its name. It reads the files
// that are named.
func (o Options) Check(report func(option, problem string)) {
	if o.Token != "" && o.TokenFile != "" {
		report("token_file", "is given beside token; one of them must go")
	} else if _, err := o.token(); err != nil {
		report("token_file", err.Error())
	}
	if o.Token != "" && len(o.Token) < tokenMin {
		report("token", fmt.Sprintf("has less than %d characters: it could be guessed", tokenMin))
	}
	if _, err := o.tls(); err != nil {
		report("cert_file", err.Error())
	}
	if _, err := o.clientCAs(); err != nil {
		report("client_ca_file", err.Error())
	}
	for _, a := range o.SharedAddresses {
		if a.IsLoopback() || a.IsUnspecified() || a.Zone() != "" {
			report("shared_addresses", fmt.Sprintf("has %v, which can't move between machines", a))
		}
	}
	for _, p := range []struct {
		option string
		value  float64
	}{{"objectives.availability", o.Objectives.Availability}, {"objectives.latency_share", o.Objectives.LatencyShare}} {
		if p.value <= 0 || p.value >= 100 {
			report(p.option, "must be above 0 and below 100, in percent")
		}
	}
	if o.Objectives.Latency <= 0 {
		report("objectives.latency", "must be above 0")
	}
}

// tokenMin is the least length of a token.
const tokenMin = 16

// token returns the token, empty if there is none.
func (o Options) token() (string, error) {
	if o.TokenFile == "" {
		return string(o.Token), nil
	}
	text, err := os.ReadFile(o.TokenFile)
	if err != nil {
		return "", err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	if line = strings.TrimSpace(line); len(line) < tokenMin {
		return "", fmt.Errorf("%s has less than %d characters in its first line: they could be guessed", o.TokenFile, tokenMin)
	}
	return line, nil
}

// tls returns nil for plain HTTP.
func (o Options) tls() (*tls.Config, error) {
	switch {
	case o.CertFile == "" && o.KeyFile == "" && o.ClientCAFile == "":
		return nil, nil
	case o.CertFile == "" && o.ClientCAFile != "":
		return nil, errors.New("is needed for client_ca_file")
	case o.CertFile == "" || o.KeyFile == "":
		return nil, errors.New("cert_file and key_file need each other")
	}
	pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}
	if authorities, err := o.clientCAs(); err == nil && authorities != nil {
		// Who has none may still see what everybody may.
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, authorities
	}
	return config, nil
}

func (o Options) clientCAs() (*x509.CertPool, error) {
	if o.ClientCAFile == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(o.ClientCAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", o.ClientCAFile)
	}
	return pool, nil
}

// An Address is where to listen. The zero Address is nowhere: "off".
type Address struct{ netip.AddrPort }

// UnmarshalText reads ADDRESS:PORT, :PORT for all addresses, or "off".
func (a *Address) UnmarshalText(text []byte) error {
	word := string(text)
	if word == "off" {
		*a = Address{}
		return nil
	}
	if strings.HasPrefix(word, ":") {
		word = "[::]" + word
	}
	addr, err := netip.ParseAddrPort(word)
	if err != nil || addr.Addr().IsMulticast() {
		return fmt.Errorf("%q is no address to listen on; write 127.0.0.1:8053, :8053 for all addresses, or off", text)
	}
	*a = Address{addr}
	return nil
}

// MarshalText writes what UnmarshalText reads.
func (a Address) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// String returns the address, or "off".
func (a Address) String() string {
	if !a.IsValid() {
		return "off"
	}
	return a.AddrPort.String()
}

// A Secret is a text that is not shown to whom it is not for.
type Secret string

// UnmarshalText reads it as it is.
func (s *Secret) UnmarshalText(text []byte) error {
	*s = Secret(text)
	return nil
}

// MarshalText writes that there is one, no more.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns "(hidden)", or nothing if there is nothing to hide.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "(hidden)"
}
