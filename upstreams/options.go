package upstreams

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"
)

// Options of an Upstream. A zero field means its default.
type Options struct {
	// Name tells upstreams apart in logs and commands. Required.
	Name string `config:"name"`
	// Protocol is how it is asked: TLS, or in clear text, UDP and TCP; the latter
	// are for servers of one's own network, and for NewPlain. Default: TLS.
	Protocol string `config:"protocol"`
	// Addresses are where the service answers. Either they or Host are required.
	Addresses []netip.AddrPort `config:"addresses"`
	// Host is a name to resolve for addresses, through Bootstrap.
	Host string `config:"host"`
	// Port goes with Host. Default: 853.
	Port uint16 `config:"port"`
	// Bootstrap are resolvers to ask for Host: "192.0.2.1:53" over plain DNS,
	// "tls://192.0.2.1:853#dns.example" over DoT.
	Bootstrap []string `config:"bootstrap"`
	// ServerName is the name that the upstream's certificate must be valid for.
	// Default: Host, and without it the certificate must be valid for the
	// address itself.
	ServerName string `config:"server_name"`
	// CAFile holds the PEM certificates of the authorities to trust. Default:
	// the system's.
	CAFile string `config:"ca_file"`
	// Pins, if any, are base64 SHA-256 digests of the public keys (SPKI) one of
	// which the verified chain must contain. They come on top of verification.
	Pins []string `config:"pins"`
	// CertFile and KeyFile hold a client certificate in PEM. Default: none.
	CertFile string `config:"cert_file"`
	KeyFile  string `config:"key_file"`
	// Connections is how many connections may be open to the upstream at once.
	// A new one is dialled only when those that are open are busy. While the
	// upstream closes each after a few answers, as few as one, up to eight times as
	// many are being made at once. Default: 4.
	Connections int `config:"connections"`
	// ConnectTimeout bounds the TCP handshake. One attempt at a time may take
	// longer if the upstream has been out of reach for long. Default: 1 s.
	ConnectTimeout time.Duration `config:"connect_timeout"`
	// HandshakeTimeout bounds the TLS handshake. Default: 1.5 s.
	HandshakeTimeout time.Duration `config:"handshake_timeout"`
	// IdleTimeout is how long a connection is kept without a query. It should
	// be below what the server allows: a connection that the server closes is
	// noticed, but closing first is cheaper. Default: 8 s.
	IdleTimeout time.Duration `config:"idle_timeout"`

	// Log takes what an operator should see. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options { return Options{}.withDefaults() }

// What Options.Protocol may be.
const (
	TLS = "tls"
	UDP = "udp"
	TCP = "tcp"
)

func (o Options) withDefaults() Options {
	o.Protocol = cmp.Or(o.Protocol, TLS)
	o.Port = cmp.Or(o.Port, 853)
	o.ServerName = cmp.Or(o.ServerName, o.Host)
	o.Connections = cmp.Or(o.Connections, 4)
	o.ConnectTimeout = cmp.Or(o.ConnectTimeout, time.Second)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, 1500*time.Millisecond)
	o.IdleTimeout = cmp.Or(o.IdleTimeout, 8*time.Second)
	o.Log = cmp.Or(o.Log, slog.Default())
	return o
}

// Check reports every option that can't be used, by its name. It reads the
// files that are named.
func (o Options) Check(report func(option, problem string)) {
	if o.Name == "" {
		report("name", "is empty")
	}
	switch o.Protocol {
	case TLS:
		o.checkAddresses(report)
	case UDP, TCP:
		o.checkPlain(report)
	default:
		report("protocol", fmt.Sprintf("%q does not exist; there are tls, udp, tcp", o.Protocol))
	}
	for _, d := range []struct {
		option string
		value  time.Duration
	}{
		{"connect_timeout", o.ConnectTimeout}, {"handshake_timeout", o.HandshakeTimeout}, {"idle_timeout", o.IdleTimeout},
	} {
		if d.value <= 0 {
			report(d.option, "must be above 0")
		}
	}
	if o.Connections <= 0 {
		report("connections", "must be above 0")
	}
	if _, err := o.roots(); err != nil {
		report("ca_file", err.Error())
	}
	if _, err := o.pins(); err != nil {
		report("pins", err.Error())
	}
	if _, err := o.certificates(); err != nil {
		report("cert_file", err.Error())
	}
}

// checkPlain reports what makes no sense without TLS.
func (o Options) checkPlain(report func(option, problem string)) {
	if len(o.Addresses) == 0 {
		report("addresses", "is empty; a server that is asked in clear text needs one, a name won't do")
	}
	o.checkServers(report)
	for option, set := range map[string]bool{
		"host": o.Host != "", "server_name": o.ServerName != "", "ca_file": o.CAFile != "", "pins": len(o.Pins) > 0,
		"cert_file": o.CertFile != "", "key_file": o.KeyFile != "", "bootstrap": len(o.Bootstrap) > 0,
	} {
		if set {
			report(option, "is of no use with protocol "+o.Protocol+", which is clear text: nobody shows a certificate")
		}
	}
}

func (o Options) checkServers(report func(option, problem string)) {
	for _, a := range o.Addresses {
		if !a.IsValid() || a.Port() == 0 || a.Addr().IsUnspecified() || a.Addr().IsMulticast() {
			report("addresses", fmt.Sprintf("%s is not the address and port of a server", a))
		}
	}
}

func (o Options) checkAddresses(report func(option, problem string)) {
	switch {
	case len(o.Addresses) == 0 && o.Host == "":
		report("addresses", "is empty, and there is no host to resolve")
	case len(o.Addresses) > 0 && o.Host != "":
		report("host", "is not needed beside addresses; to check the certificate's name, set server_name")
	case o.Host != "" && len(o.Bootstrap) == 0:
		report("bootstrap", fmt.Sprintf("is empty, so %q could not be resolved; name a resolver here or give addresses and server_name", o.Host))
	}
	o.checkServers(report)
	for _, b := range o.Bootstrap {
		if _, err := parseBootstrap(b); err != nil {
			report("bootstrap", err.Error())
		}
	}
}

func (o Options) roots() (*x509.CertPool, error) {
	if o.CAFile == "" {
		return nil, nil // crypto/tls then takes the system's
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", o.CAFile)
	}
	return pool, nil
}

func (o Options) pins() (map[[sha256.Size]byte]bool, error) {
	pins := make(map[[sha256.Size]byte]bool)
	for _, text := range o.Pins {
		digest, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(text, "sha256/"))
		if err != nil || len(digest) != sha256.Size {
			return nil, fmt.Errorf("%q is not the base64 of a SHA-256 digest", text)
		}
		pins[[sha256.Size]byte(digest)] = true
	}
	return pins, nil
}

func (o Options) certificates() ([]tls.Certificate, error) {
	if o.CertFile == "" && o.KeyFile == "" {
		return nil, nil
	}
	if o.CertFile == "" || o.KeyFile == "" {
		return nil, errors.New("cert_file and key_file need each other")
	}
	certificate, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("load the client certificate: %w", err)
	}
	return []tls.Certificate{certificate}, nil
}
