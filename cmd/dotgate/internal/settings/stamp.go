package settings

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"dotgate/gateway/wire"
	"dotgate/upstreams"
)

const stampScheme = "sdns"

// The protocols of DNS stamps, by their first octet.
const (
	stampPlain = 0x00
	stampDoH   = 0x02
	stampDoT   = 0x03
	stampDoQ   = 0x04
)

// otherStamps are the protocols that no upstream has.
var otherStamps = map[byte]string{
	stampPlain: "plain DNS", 0x01: "DNSCrypt", 0x05: "an Oblivious DoH target",
	0x81: "a DNSCrypt relay", 0x85: "an Oblivious DoH relay",
}

var errStampEnd = errors.New("the DNS stamp ends too early")

// A stampReader reads the fields of a DNS stamp (draft-denis-dns-stamps). After the first
// error, it returns nothing.
type stampReader struct {
	rest []byte
	err  error
}

func (r *stampReader) take(n int) []byte {
	if r.err != nil || n > len(r.rest) {
		r.err = errStampEnd
		return nil
	}
	taken := r.rest[:n]
	r.rest = r.rest[n:]
	return taken
}

func (r *stampReader) octet() byte {
	if one := r.take(1); one != nil {
		return one[0]
	}
	return 0
}

// text reads a text behind its length.
func (r *stampReader) text() string { return string(r.take(int(r.octet()))) }

// list reads a list. The length of each element but the last has its highest bit set.
func (r *stampReader) list() (all [][]byte) {
	for more := true; more && r.err == nil; {
		length := r.octet()
		more = length >= 0x80
		if element := r.take(int(length & 0x7f)); len(element) > 0 {
			all = append(all, element)
		}
	}
	return all
}

// parseStamp reads what follows sdns://. The properties and the bootstrap addresses of a
// stamp are left aside: no option of an upstream is about the former, and queries in
// clear text are sent nowhere unless the option bootstrap says so.
func parseStamp(text string) (upstreams.Options, error) {
	var o upstreams.Options
	payload, err := base64.RawURLEncoding.DecodeString(strings.TrimRight(text, "="))
	if err != nil || len(payload) == 0 {
		return o, errors.New("it is not the base64url of a DNS stamp")
	}
	const properties = 8
	kind, r := payload[0], stampReader{rest: payload[1:]}
	if kind != stampDoH && kind != stampDoT && kind != stampDoQ {
		name := otherStamps[kind]
		if name == "" {
			name = fmt.Sprintf("the unknown protocol 0x%02x", kind)
		}
		return o, fmt.Errorf("it is a DNS stamp of %s, which is not supported; those of DNS over HTTPS, TLS and QUIC are", name)
	}
	r.take(properties)
	address, hashes, host := r.text(), r.list(), r.text()
	switch kind {
	case stampDoH:
		o.Transports, o.DoHPath = []string{upstreams.DoH}, r.text()
	case stampDoQ:
		o.Transports = []string{upstreams.DoQ}
	}
	if len(r.rest) > 0 {
		r.list()
	}
	switch {
	case r.err != nil:
		return o, r.err
	case len(r.rest) > 0:
		return o, fmt.Errorf("the DNS stamp has %d octets too many", len(r.rest))
	case kind == stampDoH && !strings.HasPrefix(o.DoHPath, "/"):
		return o, fmt.Errorf("the DNS stamp has the path %q, which does not begin with /", o.DoHPath)
	}
	for _, hash := range hashes {
		o.CertHashes = append(o.CertHashes, hex.EncodeToString(hash))
	}
	return o, stampServer(&o, kind == stampDoH, address, host)
}

// stampServer sets where the server of a DNS stamp is, and its name. Each may have a port.
func stampServer(o *upstreams.Options, overHTTPS bool, address, host string) error {
	usual, place, ofHost := uint16(dotPort), &o.Addresses, &o.Port
	if overHTTPS {
		usual, place, ofHost = dohPort, &o.DoHAddresses, &o.DoHPort
	}
	name, port, err := splitPort(host, 0)
	if err != nil {
		return fmt.Errorf("the host of the DNS stamp: %w", err)
	}
	ip, addressPort, err := splitPort(address, 0)
	switch {
	case err != nil:
		return fmt.Errorf("the address of the DNS stamp: %w", err)
	case port != 0 && addressPort != 0 && port != addressPort:
		return fmt.Errorf("the DNS stamp has the port %d with its address, and %d with its host", addressPort, port)
	}
	if port = max(port, addressPort); port == 0 {
		port = usual
	}
	if clean, err := wire.CleanName(name); err == nil {
		name = clean // internationalized names stand in stamps as they are
	}
	if name, err = serverNameOf(name); err != nil {
		return err
	}
	if ip == "" {
		o.Host, *ofHost = name, port
		return nil
	}
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return fmt.Errorf("the DNS stamp has the address %q, which is none", ip)
	}
	*place, o.ServerName = []netip.AddrPort{netip.AddrPortFrom(a, port)}, name
	return nil
}
