package wire

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// A Printout is the text form of a reply. Records are lines in the format of zone files
// (RFC 1035 section 5.1). All texts are escaped and can be written to a terminal.
type Printout struct {
	Answer     []string `json:"answer,omitempty"`
	Authority  []string `json:"authority,omitempty"`
	Additional []string `json:"additional,omitempty"`
	Errors     []string `json:"extended_errors,omitempty"` // Extended DNS Errors, as in 22 (No Reachable Authority): "timeout"
}

// Print returns the text form of the reply that AppendReply makes.
func (a Answer) Print(q Query, t Terms) Printout {
	var p Printout
	var m dns.Msg
	if err := m.Unpack(a.AppendReply(nil, q, t)); err != nil {
		p.Errors = append(p.Errors, "unprintable: "+strconv.Quote(err.Error()))
		return p
	}
	p.Answer, p.Authority = lines(m.Answer), lines(m.Ns)
	for _, rr := range m.Extra {
		opt, ok := rr.(*dns.OPT)
		if !ok {
			p.Additional = append(p.Additional, lines([]dns.RR{rr})...)
			continue
		}
		for _, o := range opt.Option {
			if e, ok := o.(*dns.EDNS0_EDE); ok {
				p.Errors = append(p.Errors, printEDE(e))
			}
		}
	}
	return p
}

func lines(records []dns.RR) (lines []string) {
	for _, rr := range records {
		lines = append(lines, escape(rr.String()))
	}
	return lines
}

// escape escapes characters that could control a terminal, as zone files do. The codec
// does so for names and texts, but not for all types.
func escape(line string) string {
	if !strings.ContainsFunc(line, unprintable) {
		return line
	}
	var b strings.Builder
	for _, c := range []byte(line) {
		if unprintable(rune(c)) {
			fmt.Fprintf(&b, "\\%03d", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

func unprintable(c rune) bool { return c != '\t' && (c < ' ' || c > '~') }

func printEDE(e *dns.EDNS0_EDE) string {
	text := strconv.Itoa(int(e.InfoCode))
	if name, ok := dns.ExtendedErrorCodeToString[e.InfoCode]; ok {
		text += " (" + name + ")"
	}
	if e.ExtraText != "" {
		text += ": " + strconv.Quote(e.ExtraText)
	}
	return text
}
