package peers

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"dotgate/configs/files"
	"dotgate/configs/secret"
)

// Options of a Node. A zero field means its default.
type Options struct {
	// Nodes are the other gateways, HOST or HOST:PORT each; the list may include this one, so that
	// all can have the same list.
	Nodes []string `config:"nodes" section:"list"`
	// Listen is the address for other gateways, over UDP and TCP. Its port is also the
	// default port of nodes.
	Listen netip.AddrPort `config:"listen"`
	// Key are the secrets that all nodes share, 64 hexadecimal digits each. The first one
	// encrypts, all are accepted. Without one, peers are refused.
	//
	// To replace a key, add the new one on all nodes, then move it to the front, then remove
	// the old one.
	Key []Key `config:"key"`
	// KeyFile is a file with the keys, one in each line, instead of key.
	KeyFile string `config:"key_file"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options {
	return Options{Listen: netip.AddrPortFrom(netip.IPv6Unspecified(), 8054)}
}

// Check reports every invalid option by its name. It reads KeyFile.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	for _, node := range o.Nodes {
		if _, _, err := splitNode(node, o.Listen.Port()); err != nil {
			report("nodes", err.Error())
		}
	}
	if len(o.Nodes) > maxNodes {
		report("nodes", fmt.Sprintf("has %d; there may be %d", len(o.Nodes), maxNodes))
	}
	if !o.Listen.IsValid() || o.Listen.Port() == 0 || o.Listen.Addr().IsMulticast() {
		report("listen", "must be an address and a port other than 0")
	}
	switch keys, err := o.keys(); {
	case len(o.Key) > 0 && o.KeyFile != "":
		report("key_file", "cannot be set together with key: remove one of them", "key")
	case err != nil:
		report("key_file", err.Error())
	case len(o.Nodes) > 0 && len(keys) == 0:
		report("key", "is missing: peers never use clear text. Make a key with `openssl rand -hex 32` and set it on all nodes", "nodes")
	}
}

// keys returns the keys, from KeyFile if it is set.
func (o Options) keys() ([]Key, error) {
	if o.KeyFile == "" {
		return o.Key, nil
	}
	keys, err := files.Texts[Key](o.KeyFile, files.SecretMax)
	if err == nil && len(keys) == 0 {
		err = fmt.Errorf("%s has no key", o.KeyFile)
	}
	return keys, err
}

// A Key is a random secret of 32 octets. A password would not do: with one recorded
// packet an attacker could guess it offline.
type Key [32]byte

var errNotKey = errors.New("is not 64 hexadecimal digits, such as `openssl rand -hex 32` prints")

// UnmarshalText reads hexadecimal digits.
func (k *Key) UnmarshalText(text []byte) error {
	if hex.DecodedLen(len(text)) != len(k) || len(text)%2 != 0 {
		return errNotKey
	}
	if _, err := hex.Decode(k[:], text); err != nil {
		return errNotKey
	}
	return nil
}

// MarshalText returns "(hidden)".
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// HidesSecret marks the type.
func (Key) HidesSecret() {}

// String returns "(hidden)".
func (k Key) String() string { return secret.Hidden }

// GoString is for %#v.
func (k Key) GoString() string { return secret.Hidden }

// splitNode reads HOST or HOST:PORT.
func splitNode(text string, usual uint16) (host string, port uint16, err error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		return addr.String(), usual, nil
	}
	host, port = text, usual
	if strings.Contains(text, ":") {
		var number string
		host, number, err = net.SplitHostPort(text)
		n, notNumber := strconv.ParseUint(number, 10, 16)
		if err != nil || notNumber != nil || n == 0 {
			return "", 0, fmt.Errorf("%q is not a node; write HOST, HOST:PORT, 192.0.2.1 or [2001:db8::1]:8054", text)
		}
		port = uint16(n)
	}
	if host == "" || len(host) > 253 || strings.ContainsAny(host, "/ \t#@") {
		return "", 0, fmt.Errorf("%q is not a node; write HOST, HOST:PORT, 192.0.2.1 or [2001:db8::1]:8054", text)
	}
	return host, port, nil
}
