package wire_test

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// testID is the ID of every message that pack makes.
const testID = 0xabcd

// pack makes a packet from text: clauses, with a semicolon between them.
//
//	flags qr rd; opcode 2; rcode 3
//	question example.com. A
//	answer example.com. 60 IN A 192.0.2.1       (also: authority, additional)
//	opt 1232 do version=1 ede=22:text 10:0011   (options by code and hex)
//	tsig
//	compress
func pack(tb testing.TB, text string) []byte {
	tb.Helper()
	m := &dns.Msg{MsgHdr: dns.MsgHdr{Id: testID}}
	for clause := range strings.SplitSeq(text, ";") {
		verb, rest, _ := strings.Cut(strings.TrimSpace(clause), " ")
		if verb == "" {
			continue
		}
		if err := addClause(m, verb, strings.TrimSpace(rest)); err != nil {
			tb.Fatalf("pack %q: %s", clause, err)
		}
	}
	packet, err := m.Pack()
	if err != nil {
		tb.Fatalf("pack %q: %s", text, err)
	}
	return packet
}

func addClause(m *dns.Msg, verb, rest string) (err error) {
	words := strings.Fields(rest)
	switch verb {
	case "flags":
		for _, word := range words {
			*flagNamed(m, word) = true
		}
	case "opcode":
		m.Opcode, err = strconv.Atoi(rest)
	case "rcode":
		m.Rcode, err = strconv.Atoi(rest)
	case "compress":
		m.Compress = true
	case "question":
		q := dns.Question{Name: words[0], Qclass: dns.ClassINET}
		if len(words) == 3 {
			q.Qclass = dns.StringToClass[words[1]]
		}
		var ok bool
		if q.Qtype, ok = dns.StringToType[words[len(words)-1]]; !ok {
			_, err = fmt.Sscanf(words[len(words)-1], "TYPE%d", &q.Qtype)
		}
		m.Question = append(m.Question, q)
	case "answer":
		err = addRecord(&m.Answer, rest)
	case "authority":
		err = addRecord(&m.Ns, rest)
	case "additional":
		err = addRecord(&m.Extra, rest)
	case "opt":
		err = addOPT(m, words)
	case "tsig":
		header := dns.RR_Header{Name: "key.", Rrtype: dns.TypeTSIG, Class: dns.ClassANY}
		m.Extra = append(m.Extra, &dns.TSIG{Hdr: header, Algorithm: dns.HmacSHA256})
	default:
		err = fmt.Errorf("unknown clause")
	}
	return err
}

func flagNamed(m *dns.Msg, name string) *bool {
	return map[string]*bool{
		"qr": &m.Response, "aa": &m.Authoritative, "tc": &m.Truncated, "rd": &m.RecursionDesired,
		"ra": &m.RecursionAvailable, "z": &m.Zero, "ad": &m.AuthenticatedData, "cd": &m.CheckingDisabled,
	}[name]
}

func addRecord(section *[]dns.RR, text string) error {
	rr, err := dns.NewRR(text)
	*section = append(*section, rr)
	return err
}

func addOPT(m *dns.Msg, words []string) error {
	opt := &dns.OPT{Hdr: dns.RR_Header{Name: ".", Rrtype: dns.TypeOPT, Class: 1232}}
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		code, data, isOption := strings.Cut(word, ":")
		switch n, err := strconv.Atoi(code); {
		case key == "do":
			opt.SetDo()
		case key == "z": // undefined flags
			opt.Hdr.Ttl |= 0x7fff
		case key == "version":
			v, err := strconv.Atoi(value)
			if err != nil {
				return err
			}
			opt.SetVersion(uint8(v))
		case key == "ede":
			info, text, _ := strings.Cut(value, ":")
			n, err := strconv.Atoi(info)
			if err != nil {
				return err
			}
			opt.Option = append(opt.Option, &dns.EDNS0_EDE{InfoCode: uint16(n), ExtraText: text})
		case err != nil:
			return err
		case isOption:
			raw, err := hex.DecodeString(data)
			if err != nil {
				return err
			}
			opt.Option = append(opt.Option, &dns.EDNS0_LOCAL{Code: uint16(n), Data: raw})
		default:
			opt.Hdr.Class = uint16(n)
		}
	}
	m.Extra = append(m.Extra, opt)
	return nil
}

// show is the inverse of pack. It fails the test unless packet is whole,
// well-formed and has testID.
func show(tb testing.TB, packet []byte) string {
	tb.Helper()
	if _, ok := dissect(packet); !ok {
		tb.Fatalf("malformed packet %x", packet)
	}
	var m dns.Msg
	if err := m.Unpack(packet); err != nil {
		tb.Fatalf("unpack %x: %s", packet, err)
	}
	if m.Id != testID {
		tb.Fatalf("got ID %#x", m.Id)
	}
	var clauses []string
	add := func(format string, args ...any) { clauses = append(clauses, fmt.Sprintf(format, args...)) }
	var flags []string
	for _, name := range []string{"qr", "aa", "tc", "rd", "ra", "z", "ad", "cd"} {
		if *flagNamed(&m, name) {
			flags = append(flags, name)
		}
	}
	add("flags %s", strings.Join(flags, " "))
	if m.Opcode != 0 {
		add("opcode %d", m.Opcode)
	}
	if m.Rcode != 0 {
		add("rcode %d", m.Rcode)
	}
	for _, q := range m.Question {
		class := ""
		if q.Qclass != dns.ClassINET {
			class = dns.Class(q.Qclass).String() + " "
		}
		add("question %s %s%s", q.Name, class, dns.Type(q.Qtype))
	}
	for name, section := range sections(&m) {
		for _, rr := range section {
			if opt, ok := rr.(*dns.OPT); ok {
				clauses = append(clauses, showOPT(opt))
				continue
			}
			add("%s %s", name, strings.Join(strings.Fields(rr.String()), " "))
		}
	}
	return strings.Join(clauses, "; ")
}

func sections(m *dns.Msg) func(yield func(string, []dns.RR) bool) {
	return func(yield func(string, []dns.RR) bool) {
		_ = yield("answer", m.Answer) && yield("authority", m.Ns) && yield("additional", m.Extra)
	}
}

func showOPT(opt *dns.OPT) string {
	words := []string{"opt", strconv.Itoa(int(opt.UDPSize()))}
	if opt.Do() {
		words = append(words, "do")
	}
	if opt.Version() != 0 {
		words = append(words, fmt.Sprintf("version=%d", opt.Version()))
	}
	for _, option := range opt.Option {
		switch o := option.(type) {
		case *dns.EDNS0_EDE:
			words = append(words, strings.TrimSuffix(fmt.Sprintf("ede=%d:%s", o.InfoCode, o.ExtraText), ":"))
		case *dns.EDNS0_PADDING:
			words = append(words, "padding")
		default:
			words = append(words, fmt.Sprintf("option=%d", option.Option()))
		}
	}
	return strings.Join(words, " ")
}

// unhex makes a packet from hexadecimal digits, with spaces where they help.
func unhex(tb testing.TB, text string) []byte {
	tb.Helper()
	packet, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		tb.Fatal(err)
	}
	return packet
}

func mustQuery(tb testing.TB, text string, via wire.Transport) wire.Query {
	tb.Helper()
	q, err := wire.ParseQuery(pack(tb, text), via)
	if err != nil {
		tb.Fatalf("%s: %s", text, err)
	}
	return q
}

func mustAnswer(tb testing.TB, q wire.Query, text string) wire.Answer {
	tb.Helper()
	a, err := wire.ParseAnswer(q, pack(tb, text))
	if err != nil {
		tb.Fatalf("%s: %s", text, err)
	}
	return a
}
