package peers

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
)

// Options of a Node. A zero field means its default.
type Options struct {
	// Nodes are the other gateways, HOST or HOST:PORT each; this one may be among
	// them. Empty: there are none.
	Nodes []string `config:"nodes"`
	// Listen is where others reach this one, over UDP and TCP. It is the port of
	// Nodes without one, too. Default: all addresses, port 8054.
	Listen netip.AddrPort `config:"listen"`
	// Key has the secrets that all share: the first is used, all of them are good.
	// So a new one is first added everywhere, then put first, and then the old one
	// is taken out. There is no talk without one.
	Key []Key `config:"key"`
	// KeyFile has them instead, one in each line.
	KeyFile string `config:"key_file"`
}

// Defaults returns the options that zero fields stand for.
func Defaults() Options {
	return Options{Listen: netip.AddrPortFrom(netip.IPv6Unspecified(), 8054)}
}

// Check reports every option that can't be used, by its name. It reads the file of
// keys.
func (o Options) Check(report func(option, problem string)) {
	for _, node := range o.Nodes {
		if _, _, err := splitNode(node, o.Listen.Port()); err != nil {
			report("nodes", err.Error())
		}
	}
	if len(o.Nodes) > maxNodes {
		report("nodes", fmt.Sprintf("has %d; there may be %d", len(o.Nodes), maxNodes))
	}
	if !o.Listen.IsValid() || o.Listen.Port() == 0 || o.Listen.Addr().IsMulticast() {
		report("listen", "must be an address with a port that the others know")
	}
	switch keys, err := o.keys(); {
	case len(o.Key) > 0 && o.KeyFile != "":
		report("key_file", "is given beside key; one of them must go")
	case err != nil:
		report("key_file", err.Error())
	case len(o.Nodes) > 0 && len(keys) == 0:
		report("key", "is missing, and nodes never talk in clear text; make one with `openssl rand -hex 32`, and give it to all of them")
	}
}

// keys returns the keys, from the file if there is one.
func (o Options) keys() ([]Key, error) {
	if o.KeyFile == "" {
		return o.Key, nil
	}
	text, err := os.ReadFile(o.KeyFile)
	if err != nil {
		return nil, err
	}
	var keys []Key
	lines := bufio.NewScanner(bytes.NewReader(text))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var key Key
		if err := key.UnmarshalText([]byte(line)); err != nil {
			return nil, fmt.Errorf("%s: line %d %w", o.KeyFile, n, err)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s has no key", o.KeyFile)
	}
	return keys, lines.Err()
}

// A Key is a secret of 32 octets. It is random: what people think of could be
// guessed by whoever has recorded one packet.
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

// MarshalText writes that there is one, no more.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// String returns "(hidden)".
func (k Key) String() string { return "(hidden)" }

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
