package wire

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/idna"
)

// CleanName returns a domain name of the configuration in the form in which names are
// compared and shown: lower case, without the dot at its end ("." is the root), with
// internationalized labels as A-labels (RFC 5891). A text that no query can match (an
// address, a prefix, a URL, a port, a space) is an error that says what to write
// instead.
func CleanName(text string) (string, error) {
	if strings.Contains(text, "*") {
		return "", fmt.Errorf("%q has a wildcard; write one name, without *", text)
	}
	return cleanName(text)
}

// CleanPattern is CleanName for patterns, which match several names: "corp.example"
// matches that name and all names below it, "*.corp.example" only the names below it, as
// in RFC 4592 section 2.1.1.
func CleanPattern(text string) (string, error) {
	top, starred := strings.CutPrefix(text, wildcard)
	switch {
	case text == "*" || text == wildcard:
		return "", fmt.Errorf("%q is every name; write \".\"", text)
	case strings.Contains(top, "*"):
		return "", fmt.Errorf("%q: * stands for whole labels, once, at the start; write *.corp.example for all names below corp.example", text)
	case !starred:
		return cleanName(text)
	}
	top, err := cleanName(top)
	if err != nil {
		return "", err
	}
	return wildcard + top, nil
}

// Apex returns the name at the top of a pattern, and whether the pattern matches only
// the names below it.
func Apex(pattern string) (name string, below bool) { return strings.CutPrefix(pattern, wildcard) }

const wildcard = "*."

func cleanName(text string) (string, error) {
	if err := nameProblem(text); err != nil {
		return "", fmt.Errorf("%q %w", text, err)
	}
	name, err := asciiName(text)
	if err != nil {
		return "", fmt.Errorf("%q is no domain name: %w", text, err)
	}
	if name != "." {
		name = strings.TrimSuffix(name, ".")
	}
	packed, err := PackName(name)
	if err != nil {
		return "", fmt.Errorf("%q is no domain name", text)
	}
	name = strings.ToLower(name)
	if label := name[strings.LastIndexByte(name, '.')+1:]; name != "." && strings.Trim(label, "0123456789") == "" && len(packed) > 1 {
		return "", fmt.Errorf("%q ends in a number, which no domain name does; the names of addresses end in in-addr.arpa and ip6.arpa, as in 10.in-addr.arpa", text)
	}
	return name, nil
}

// nameProblem returns why text can't be meant as a name, and what to write.
func nameProblem(text string) error {
	switch {
	case text == "":
		return errors.New("is empty, not a domain name")
	case strings.Contains(text, "://"):
		return errors.New("is a URL, not a domain name; write the name alone")
	}
	if err := addressProblem(text); err != nil {
		return err
	}
	host, port, hasPort := strings.Cut(text, ":")
	switch {
	case hasPort && isDigits(port):
		return fmt.Errorf("has a port, which names do not have; write %s", host)
	case text[0] == '~': // systemd-resolved has it before names that are for one link
		return fmt.Errorf("begins with ~, which names do not; write %s", strings.TrimLeft(text, "~."))
	case text[0] == '.' && text != ".":
		return fmt.Errorf("begins with a dot; write %s", strings.TrimLeft(text, "."))
	case strings.Contains(text, "/") && !strings.HasSuffix(strings.ToLower(strings.TrimSuffix(text, ".")), ".in-addr.arpa"): // RFC 2317 has some there
		return errors.New("has a /, which names do not have; write the name alone")
	}
	for _, r := range text {
		if r <= ' ' || r == 0x7f || strings.ContainsRune(`,;:"'@()[]{}<>|=+&#$%!?`+"`", r) {
			return fmt.Errorf("has %s, which names do not have; write one name, such as corp.example", strconv.QuoteRune(r))
		}
	}
	return nil
}

// addressProblem returns which name to write instead of an address or a prefix, or nil if
// text is neither.
func addressProblem(text string) error {
	if p, err := netip.ParsePrefix(text); err == nil {
		return fmt.Errorf("is a prefix of addresses; their names are %s", reverseNames(p))
	}
	if a, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return fmt.Errorf("is an address; its name is %s", reverseNames(netip.PrefixFrom(a.WithZone(""), a.BitLen())))
	}
	if a, err := netip.ParseAddrPort(text); err == nil {
		return fmt.Errorf("is an address and a port; the name of the address is %s", reverseNames(netip.PrefixFrom(a.Addr().WithZone(""), a.Addr().BitLen())))
	}
	return nil
}

func isDigits(text string) bool { return text != "" && strings.Trim(text, "0123456789") == "" }

// idn maps as browsers do (UTS #46), so that configured names equal those in queries.
// Names that are not host names, as _tcp.bücher.example, pass.
var idn = idna.New(idna.MapForLookup(), idna.Transitional(false), idna.StrictDomainName(false), idna.BidiRule())

func asciiName(text string) (string, error) {
	for i := range len(text) {
		if text[i] >= 0x80 {
			return idn.ToASCII(text)
		}
	}
	return text, nil
}

// reverseNames returns the reverse zone of p for an error message: one name or, if p
// ends within a label, the first and the last of several.
func reverseNames(p netip.Prefix) string {
	bits, suffix := 8, "in-addr.arpa"
	if p.Addr().Is6() {
		bits, suffix = 4, "ip6.arpa"
	}
	count := (p.Bits() + bits - 1) / bits
	octets := p.Masked().Addr().AsSlice()
	name := func() string {
		labels := strings.Split(hex.EncodeToString(octets), "")
		if bits == 8 {
			labels = strings.Split(netip.AddrFrom4([4]byte(octets)).String(), ".")
		}
		labels = labels[:count]
		slices.Reverse(labels)
		return strings.Join(append(labels, suffix), ".")
	}
	first, spare := name(), count*bits-p.Bits()
	if spare == 0 {
		return first
	}
	octets[(p.Bits()-1)/8] |= (1<<spare - 1) << (count * bits % 8)
	return fmt.Sprintf("the %d from %s to %s", 1<<spare, first, name())
}

// Patterns maps patterns to values. The zero Patterns has none.
type Patterns[T any] struct {
	names  RouteNames
	values []T
}

// Add sets the value for a pattern, which must be as CleanPattern returns it. It reports
// whether the pattern is new.
func (ps *Patterns[T]) Add(pattern string, value T) (added bool, err error) {
	at, added, err := ps.names.Add(pattern, len(ps.values))
	switch {
	case err != nil:
	case added:
		ps.values = append(ps.values, value)
	default:
		ps.values[at] = value
	}
	return added, err
}

// Find returns the value of the longest pattern that matches name, as RouteNames.Find does.
func (ps *Patterns[T]) Find(name []byte) (value T, below int, ok bool) {
	at, below, ok := ps.names.Find(name)
	if ok {
		value = ps.values[at]
	}
	return value, below, ok
}
