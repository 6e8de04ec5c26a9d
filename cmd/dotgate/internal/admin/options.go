package admin

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"dotgate/configs/bounds"
	"dotgate/configs/files"
	"dotgate/configs/secret"
)

// Options of a Server. A zero field means its default.
type Options struct {
	// Listen is where it is served: IP:port, :8053 for all addresses, or off.
	Listen Address `config:"listen"`
	// Token is the bearer token, 16 characters or more, for requests that see names or
	// change anything. Without a token or client_ca_file, these requests are refused.
	Token secret.Text `config:"token"`
	// TokenFile is a file with the token in its first line, instead of token.
	TokenFile string `config:"token_file"`
	// CertFile is a PEM file with a certificate, for HTTPS; it needs key_file.
	CertFile string `config:"cert_file"`
	// KeyFile is a PEM file with the key of cert_file.
	KeyFile string `config:"key_file"`
	// ClientCAFile is a PEM file of authorities whose client certificates are accepted
	// instead of the token; it needs cert_file.
	ClientCAFile string `config:"client_ca_file"`
	// SharedAddresses are the addresses that move between this gateway and others, by VRRP or
	// routing; metrics tell whether this machine has them.
	SharedAddresses []netip.Addr `config:"shared_addresses"`
	// Objectives is the service level that each upstream is measured against, in metrics and
	// on the page.
	Objectives Objectives `config:"objectives"`
}

// Objectives of an upstream's service level.
type Objectives struct {
	// Availability is the percentage of its queries that an upstream must answer.
	Availability float64 `config:"availability"`
	// Latency is how fast an answer should be.
	Latency time.Duration `config:"latency" bounds:"1ms 1m"`
	// LatencyShare is the percentage of its answers that must be that fast.
	LatencyShare float64 `config:"latency_share"`
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
func (o Options) Check(report func(option, problem string, beside ...string)) {
	if o.Token != "" && o.TokenFile != "" {
		report("token_file", "is set, and token too; remove one of them", "token")
	} else if _, err := o.token(); err != nil {
		report("token_file", err.Error())
	}
	if o.Token != "" && len(o.Token) < tokenMin {
		report("token", fmt.Sprintf("has less than %d characters: it could be guessed", tokenMin))
	}
	if _, err := o.tls(); err != nil {
		report("cert_file", err.Error(), "key_file", "client_ca_file")
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
	bounds.Check(o, report)
}

// tokenMin is the least length of a token.
const tokenMin = 16

// token returns the token, empty if there is none.
func (o Options) token() (string, error) {
	if o.TokenFile == "" {
		return string(o.Token), nil
	}
	text, err := files.Read(o.TokenFile, files.SecretMax)
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
	pair, err := files.KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the certificate: %w", err)
	}
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}, Certificates: []tls.Certificate{pair}}
	if authorities, err := o.clientCAs(); err == nil && authorities != nil {
		// Clients without a certificate still get what needs none.
		config.ClientAuth, config.ClientCAs = tls.VerifyClientCertIfGiven, authorities
	}
	return config, nil
}

func (o Options) clientCAs() (*x509.CertPool, error) {
	if o.ClientCAFile == "" {
		return nil, nil
	}
	return files.Authorities(o.ClientCAFile)
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
