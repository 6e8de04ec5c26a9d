package wire_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/miekg/dns"

	"dotgate/gateway/wire"
)

// FuzzParseQuery compares ParseQuery, and all messages that are made from a query, with
// miekg/dns.
func FuzzParseQuery(f *testing.F) {
	for _, text := range []string{
		"flags rd; question www.Example.com. A",
		"flags rd ad cd; question . NS; opt 4096 do 10:0011223344556677 12:0000",
		"question a. A; additional a. 0 IN MX 1 a.; opt 512; additional a. 0 IN SOA a. a. 1 2 3 4 5; compress",
		"question a. A; opt version=1",
		"question a. A; opt; opt",
		"question a. A; tsig",
		"question a. IXFR; authority a. 0 IN SOA a. a. 1 2 3 4 5; opt",
		"question a. CH A; opt",
		"question a. OPT",
		"question a. A; question a. A",
		"opcode 4; question a. SOA",
	} {
		f.Add(pack(f, text), false)
	}
	f.Add(unhex(f, "abcd 0100 0001 8000 8000 0000 01 61 00 0001 0001"), true)
	f.Fuzz(func(t *testing.T, packet []byte, overTCP bool) {
		via := wire.UDP
		if overTCP {
			via = wire.TCP
		}
		original := bytes.Clone(packet)
		checkQuery(t, packet, via)
		for _, packed := range repack(packet) {
			q := checkQuery(t, packed.bytes, via)
			if isGoodQuery(packed.msg) && q == nil {
				t.Fatalf("refused %x", packed.bytes)
			}
		}
		if !bytes.Equal(packet, original) {
			t.Fatal("the packet was written to")
		}
	})
}

// checkQuery returns the query, or nil if packet is none.
func checkQuery(t *testing.T, packet []byte, via wire.Transport) *wire.Query {
	q, err := wire.ParseQuery(packet, via)
	want := expectQuery(packet)
	got := "accepted"
	var refusal *wire.Refusal
	switch {
	case errors.As(err, &refusal):
		got = refusal.RCode.String()
	case errors.Is(err, wire.ErrNotQuery):
		got = "ignored"
	case err != nil:
		t.Fatal(err)
	}
	if got != want.result {
		t.Fatalf("%x: got %s, want %s", packet, got, want.result)
	}
	if got == "ignored" {
		return nil
	}
	for _, rcode := range []wire.RCode{wire.ServFail, wire.BadVers} {
		for _, text := range []string{"", strings.Repeat("why?", 500)} {
			ede := wire.EDE{Code: wire.EDENoReachable, Text: text}
			want.checkError(t, packet, via, q.AppendError(nil, rcode, ede), rcode)
		}
	}
	if err != nil {
		return nil
	}
	d, ok := dissect(packet)
	if ok { // else a name leads through a TTL, which queries may have
		mustUnpack(t, packet)
	}
	if q.Type() != wire.Type(d.qtype) || q.String() != d.qname+" "+dns.Type(d.qtype).String() {
		t.Fatalf("%x: got %s", packet, q)
	}
	want.checkUpstream(t, packet, q.AppendUpstream(nil, 7))
	checkKey(t, packet, q)
	return &q
}

// expectation is the result of parsing a query with miekg/dns.
type expectation struct {
	result   string
	question []byte // as it is echoed
	edns, do bool
	udpSize  uint16
}

func expectQuery(packet []byte) (e expectation) {
	if len(packet) < 12 || len(packet) > wire.MaxSize || packet[2]&0x80 != 0 {
		return expectation{result: "ignored"}
	}
	count := func(i int) int { return int(binary.BigEndian.Uint16(packet[4+2*i:])) }
	if packet[2]>>3&0xf != dns.OpcodeQuery {
		return expectation{result: "NOTIMP"}
	}
	if count(0) == 0 {
		e.readRecords(packet, 12, count(1)+count(2), count(3))
		e.result = "FORMERR"
		return e
	}
	_, end, ok := readName(packet, 12, nil)
	if count(0) != 1 || !ok || end+4 > len(packet) {
		return expectation{result: "FORMERR"}
	}
	e.question = packet[12 : end+4]
	result := e.readRecords(packet, end+4, count(1)+count(2), count(3))
	switch qtype := binary.BigEndian.Uint16(packet[end:]); {
	case qtype == dns.TypeAXFR || qtype == dns.TypeIXFR:
		e.result = "REFUSED"
	case qtype == dns.TypeOPT || qtype == dns.TypeTSIG:
		e.result = "FORMERR"
	case binary.BigEndian.Uint16(packet[end+2:]) != dns.ClassINET:
		e.result = "REFUSED"
	case count(1)+count(2) > 0:
		e.result = "FORMERR"
	default:
		e.result = result
	}
	return e
}

func (e *expectation) readRecords(packet []byte, off, misplaced, additional int) (result string) {
	packet = append(bytes.Clone(packet), make([]byte, 64)...)[:len(packet)]
	for i := range misplaced + additional {
		r, ok := dissectRecord(packet, off, nil)
		if !ok {
			return "FORMERR"
		}
		off = r.end
		switch {
		case i < misplaced:
		case r.header.Rrtype == dns.TypeTSIG:
			return "REFUSED"
		case r.header.Rrtype == dns.TypeOPT:
			r.section = 3
			_, ok := (dissected{records: []dissectedRecord{r}}).optOf()
			again := e.edns
			if e.edns = true; !ok || again {
				return "FORMERR"
			}
			opt := dns.OPT{Hdr: r.header}
			e.do, e.udpSize = opt.Do(), opt.UDPSize()
			if opt.Version() != 0 {
				return "BADVERS"
			}
			if !cookiesOK(r.rdata) {
				return "FORMERR"
			}
		}
	}
	if off != len(packet) {
		return "FORMERR"
	}
	return "accepted"
}

func (e expectation) maxLen(via wire.Transport) int {
	switch {
	case via == wire.TCP:
		return 65535
	case !e.edns:
		return 512
	}
	return max(512, min(1232, int(e.udpSize)))
}

// checkError checks an error reply to packet.
func (e expectation) checkError(t *testing.T, packet []byte, via wire.Transport, reply []byte, rcode wire.RCode) {
	d, ok := dissect(reply)
	opt, optOK := d.optOf()
	if !ok || !optOK || len(reply) > e.maxLen(via) || (opt != nil) != e.edns || len(d.records) > 1 {
		t.Fatalf("%x: bad reply %x", packet, reply)
	}
	m := mustUnpack(t, reply)
	want := dns.MsgHdr{
		Id: binary.BigEndian.Uint16(packet), Response: true, Opcode: int(packet[2] >> 3 & 0xf), Rcode: int(rcode),
		RecursionDesired: packet[2]&1 != 0, RecursionAvailable: true, CheckingDisabled: packet[3]&0x10 != 0,
	}
	if want.Opcode != dns.OpcodeQuery {
		want.RecursionDesired, want.RecursionAvailable, want.CheckingDisabled = false, false, false
	}
	if !e.edns && rcode > 15 {
		want.Rcode = dns.RcodeServerFailure
	}
	if m.MsgHdr != want || !bytes.Equal(reply[12:d.questionEnd], e.question) {
		t.Fatalf("%x: bad reply %x", packet, reply)
	}
	if e.edns && (opt.header.Class != 1232 || m.IsEdns0().Do() != e.do || m.IsEdns0().Version() != 0) {
		t.Fatalf("%x: bad OPT record in %x", packet, reply)
	}
}

func (e expectation) checkUpstream(t *testing.T, packet, sent []byte) {
	d, ok := dissect(sent)
	if !ok || len(sent)%128 != 0 || len(d.records) != 1 || !bytes.Equal(sent[12:d.questionEnd], e.question) {
		t.Fatalf("%x: bad query %x", packet, sent)
	}
	m := new(dns.Msg)
	if err := m.Unpack(sent); err != nil {
		t.Fatal(err)
	}
	want := dns.MsgHdr{Id: 7, RecursionDesired: true, AuthenticatedData: true, CheckingDisabled: packet[3]&0x10 != 0}
	opt := m.IsEdns0()
	if m.MsgHdr != want || opt == nil || opt.Do() != e.do || len(opt.Option) != 1 || opt.Option[0].Option() != dns.EDNS0PADDING {
		t.Fatalf("%x: bad query %x", packet, sent)
	}
	if got := expectQuery(sent); got.result != "accepted" {
		t.Fatalf("%x: %s for %x", packet, got.result, sent)
	}
}

// checkKey changes parts of a query that the answer depends on, and other parts.
func checkKey(t *testing.T, packet []byte, q wire.Query) {
	key := string(q.AppendKey(nil))
	f := func(change func(packet []byte, typeAt int), same bool) {
		changed := bytes.Clone(packet)
		_, end, _ := readName(packet, 12, nil)
		change(changed, end)
		other, err := wire.ParseQuery(changed, wire.UDP)
		if err == nil && (string(other.AppendKey(nil)) == key) != same {
			t.Fatalf("keys of %x and %x: want same %t", packet, changed, same)
		}
	}
	f(func(p []byte, typeAt int) { respell(p[12:typeAt], ^uint64(0)) }, true)
	f(func(p []byte, _ int) { p[0]++; p[2] ^= 1; p[3] ^= 0x20 }, true)
	f(func(p []byte, _ int) { p[3] ^= 0x10 }, false)
	f(func(p []byte, typeAt int) { p[typeAt] ^= 0x20 }, false)
	f(func(p []byte, typeAt int) { p[typeAt+1] ^= 0x20 }, false)
	f(func(p []byte, _ int) {
		if p[12] > 0 {
			p[13] ^= 1
		} else {
			p[3] ^= 0x10
		}
	}, false)
}

// FuzzParseAnswer compares ParseAnswer with miekg/dns.
func FuzzParseAnswer(f *testing.F) {
	for _, message := range seedResponses(f) {
		f.Add(message, uint64(0xaaaaaaaaaaaaaaaa))
	}
	f.Fuzz(func(t *testing.T, message []byte, spelling uint64) {
		original := bytes.Clone(message)
		client := client{spelling: spelling, overTCP: true, rd: true, edns: true, do: true}
		checkAnswer(t, client, message, time.Second)
		for _, packed := range repack(message) {
			accepted := checkAnswer(t, client, packed.bytes, time.Second)
			if d, _ := dissect(packed.bytes); isGoodResponse(packed.msg) && !d.usableFor(d.qtype, true).unrelated && !accepted {
				t.Fatalf("refused %x", packed.bytes)
			}
		}
		if !bytes.Equal(message, original) {
			t.Fatal("the message was written to")
		}
	})
}

// FuzzAppendReply checks the replies to all kinds of clients.
func FuzzAppendReply(f *testing.F) {
	for i, message := range seedResponses(f) {
		f.Add(message, uint64(i), uint8(i), uint16(512+i), int64(i)*1e9)
		f.Add(message, uint64(i), uint8(0x3e), uint16(4096), int64(1e9))
		f.Add(message, uint64(i), uint8(0), uint16(0), int64(1e9))
	}
	f.Fuzz(func(t *testing.T, message []byte, spelling uint64, bits uint8, udpSize uint16, age int64) {
		bit := func(n int) bool { return bits>>n&1 != 0 }
		client := client{spelling: spelling, overTCP: bit(0), edns: bit(1), do: bit(1) && bit(2), rd: bit(3), ad: bit(4), cd: bit(5), udpSize: udpSize}
		checkAnswer(t, client, message, time.Duration(age))
	})
}

func seedResponses(tb testing.TB) [][]byte {
	const (
		q   = "flags qr rd ra; compress; question www.Example.com. A; "
		a   = "answer www.Example.com. 60 IN CNAME a.example.com.; answer a.example.com. 5 IN A 192.0.2.1; "
		opt = "opt 1232 ede=3:stale 12:000000; "
		soa = "authority example.com. 60 IN SOA ns.example.com. host.example.com. 1 2 3 4 5; "
	)
	var seeds [][]byte
	for _, text := range []string{
		q + a, q + a + opt, q + "rcode 3; " + soa + opt, q + "rcode 2; opt ede=9:", q + "rcode 17; opt do",
		q + a + opt + "additional a.example.com. 60 IN AAAA 2001:db8::1",
		q + a + soa + "additional a.example.com. 60 IN AAAA 2001:db8::1; " + opt,
		q + "answer example.com. 60 IN MX 1 a.example.com.; answer example.com. 60 IN SRV 1 2 3 a.example.com.",
		q + "answer example.com. 60 IN MINFO a.example.com. b.example.com.; answer example.com. 60 IN RP a. b.",
		q + "answer example.com. 60 IN KX 1 a.; answer example.com. 60 IN AFSDB 1 a.; answer example.com. 60 IN DNAME .",
		q + `answer example.com. 4294967295 IN TXT "text" "more"; answer a.example.com. 60 IN TYPE65280 \# 4 01610000`,
		q + "answer example.com. 60 IN HTTPS 1 . alpn=h2; answer example.com. 60 IN NAPTR 1 2 \"u\" \"s\" \"\" a.example.com.",
		q + "answer www.example.com. 60 IN RRSIG A 8 2 60 20300101000000 20200101000000 1 example.com. AAAA",
		q + "answer www.example.com. 60 IN TXT" + strings.Repeat(` "`+strings.Repeat("x", 200)+`"`, 4) + "; " + opt,
		q + "answer a.example.com. 5 IN A 192.0.2.1; answer www.Example.com. 60 IN CNAME a.example.com.; " + opt,
		q + "authority example.org. 60 IN NS ns.example.org.; " + soa + "additional a.example.org. 60 IN A 192.0.2.1; " + opt,
		q + "authority example.com. 60 IN NS a.ns.example.org.; additional A.ns.example.org. 60 IN A 192.0.2.1; additional www.example.com. 60 IN SVCB 1 b.example.; additional b.example. 60 IN A 192.0.2.1; additional x. 60 IN MX 1 www.example.com.",
		q + "rcode 3; " + soa + "authority a.example.com. 60 IN NSEC x.example.com. A; authority a.example.com. 60 IN RRSIG NSEC 8 2 60 20300101000000 20200101000000 1 Example.com. AAAA; authority b.example.org. 60 IN NSEC x.example.org. A",
		q + "answer example.com. 60 IN DNAME example.net.; answer www.example.com. 60 IN CNAME www.example.net.; answer www.example.org. 60 IN A 192.0.2.1",
		"flags qr; rcode 5", "flags qr; rcode 2; " + opt, "flags qr tc; question a. A", q + "opt; opt",
	} {
		seeds = append(seeds, pack(tb, text))
	}
	for _, text := range []string{
		"abcd 8000 0001 0001 0000 0000 01 61 00 0001 0001 00 0002 0001 016100ff 0002 c017",
		"abcd 8000 0001 0002 0000 0000 01 61 00 0001 0001 00 0010 0001 01620000 0003 020100 c01b 0001 0001 00000000 0004 c0000201",
		"abcd 8000 0001 0000 0000 0001 01 61 00 0001 0001 c00e 0029 04d0 00000000 0000",
	} {
		seeds = append(seeds, unhex(tb, text))
	}
	return seeds
}

// client has the properties of a query for a response.
type client struct {
	spelling                      uint64
	overTCP, edns, do, rd, ad, cd bool
	udpSize                       uint16
}

// ask returns the query to which message responds, in the client's spelling, or
// a query for example.com if it has no question that is passed on.
func (c client) ask(t *testing.T, message []byte) wire.Query {
	question := []byte("\x07example\x03com\x00\x00\x01\x00\x01")
	if len(message) > 12 {
		if _, end, ok := readName(message, 12, nil); ok && end+4 <= len(message) {
			question = bytes.Clone(message[12 : end+4])
		}
	}
	respell(question[:len(question)-4], c.spelling)
	if q, err := wire.ParseQuery(c.packet(question), c.via()); err == nil {
		return q
	}
	binary.BigEndian.PutUint32(question[len(question)-4:], 1<<16|1)
	q, err := wire.ParseQuery(c.packet(question), c.via())
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func (c client) packet(question []byte) []byte {
	header := dns.MsgHdr{Id: testID, RecursionDesired: c.rd, AuthenticatedData: c.ad, CheckingDisabled: c.cd}
	m := dns.Msg{MsgHdr: header}
	if c.edns {
		m.SetEdns0(c.udpSize, c.do)
	}
	packet, err := m.Pack()
	if err != nil {
		panic(err)
	}
	packet[5] = 1
	return slices.Insert(packet, 12, question...)
}

func (c client) via() wire.Transport {
	if c.overTCP {
		return wire.TCP
	}
	return wire.UDP
}

// respell changes the case of letters by the bits of spelling.
func respell(name []byte, spelling uint64) {
	for i, c := range name {
		if ('a' <= c|0x20 && c|0x20 <= 'z') && spelling>>(i%64)&1 != 0 {
			name[i] ^= 0x20
		}
	}
}

// checkAnswer reports whether message is an answer to the query of c.
func checkAnswer(t *testing.T, c client, message []byte, age time.Duration) bool {
	q := c.ask(t, message)
	d, want := expectAnswer(q.Packet(), message, c.do)
	a, err := wire.ParseAnswer(q, message)
	if (err == nil) != want {
		t.Fatalf("%x: got error %v, want none: %t", message, err, want)
	}
	if err != nil {
		return false
	}
	mustUnpack(t, message)
	if other := otherType(t, q); d.questionEnd > 12 {
		if _, err := wire.ParseAnswer(other, message); err == nil {
			t.Fatalf("%x passed for an answer to %s", message, other)
		}
	}
	u := d.usableFor(uint16(q.Type()), c.do)
	if u.endless && isResult(codeOf(message, d)) {
		if reply := a.AppendReply(nil, q, wire.Terms{}); a.RCode() != wire.ServFail || len(reply) > 600 {
			t.Fatalf("%x: endless aliases, and still %x", message, reply)
		}
		return true
	}
	c.checkReply(t, q, message, d, u, a, age)
	checkMeaning(t, q, message, u, a)
	checkStored(t, q, a, age)
	return true
}

// checkMeaning checks kind and TTL of an answer.
func checkMeaning(t *testing.T, q wire.Query, message []byte, u usable, a wire.Answer) {
	least, soa, one := uint32(1<<31-1), false, false
	kept := u.records
	if !isResult(a.RCode()) {
		kept = nil
	} else if a.Stripped() != (u.dropped > 0) {
		t.Fatalf("%x: stripped is %t, and %d records were", message, a.Stripped(), u.dropped)
	}
	for _, r := range kept {
		least = min(least, agedTTL(r.header.Ttl, 0))
		one = one || r.section == 1 && (r.header.Rrtype == uint16(q.Type()) || isSeveral(uint16(q.Type())))
		if s, ok := r.rr.(*dns.SOA); ok && r.section == 2 {
			soa = true
			least = min(least, agedTTL(s.Minttl, 0))
		}
	}
	kind := wire.Failure
	switch {
	case a.RCode() == wire.NoError && one:
		kind = wire.Positive
	case a.RCode() == wire.NoError || a.RCode() == dns.RcodeYXDomain:
		kind = wire.NoData
	case a.RCode() == wire.NXDomain:
		kind = wire.NoName
	}
	if kind != wire.Positive && !soa {
		least = min(least, 10)
	}
	if a.Kind() != kind || a.TTL() != least {
		t.Fatalf("%x: got %v for %d s, want %v for %d s", message, a.Kind(), a.TTL(), kind, least)
	}
}

func isResult(rcode wire.RCode) bool {
	return rcode == dns.RcodeSuccess || rcode == dns.RcodeNameError || rcode == dns.RcodeYXDomain
}

// checkStored checks that an answer is the same after it was stored.
func checkStored(t *testing.T, q wire.Query, a wire.Answer, age time.Duration) {
	b := a.AppendStored(nil, q)
	s, key := wire.Stored(b), q.AppendKey(nil)
	terms := wire.Terms{Age: age, EDE: wire.EDE{Code: wire.EDEStale}}
	switch {
	case len(b) != a.StoredLen() || s.Kind() != a.Kind() || s.TTL() != a.TTL() || s.RCode() != a.RCode():
		t.Fatalf("%x is not what was stored", b)
	case !bytes.Equal(s.AppendReply(nil, q, terms), a.AppendReply(nil, q, terms)):
		t.Fatalf("another reply from %x", b)
	case !wire.StoredFor(b, key) || !bytes.Equal(wire.AppendStoredKey(nil, b), key):
		t.Fatalf("%x is not for %x", b, key)
	}
	again, err := wire.KeyQuery(key)
	if err != nil || !bytes.Equal(again.AppendKey(nil), key) {
		t.Fatalf("%x makes %v, %v", key, again, err)
	}
	if back, err := wire.ParseAnswer(again, s.AppendReply(nil, again, wire.Terms{})); err != nil && s.StoredLen() < 60_000 || err == nil && back.Kind() != a.Kind() {
		t.Fatalf("%x can't be read back: %v", b, err)
	}
}

func otherType(t *testing.T, q wire.Query) wire.Query {
	packet := bytes.Clone(q.Packet())
	d, _ := dissect(packet)
	packet[d.questionEnd-3] ^= 0x20
	if q, err := wire.ParseQuery(packet, wire.UDP); err == nil {
		return q
	}
	packet[d.questionEnd-3] ^= 0x30
	q, err := wire.ParseQuery(packet, wire.UDP)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// expectAnswer reports whether message is an answer to query.
func expectAnswer(query, message []byte, sigs bool) (d dissected, ok bool) {
	d, ok = dissect(message)
	if !ok {
		return d, false
	}
	bits := binary.BigEndian.Uint16(message[2:])
	if bits>>15 != 1 || bits>>11&0xf != dns.OpcodeQuery || bits>>9&1 != 0 {
		return d, false
	}
	if _, ok := d.optOf(); !ok {
		return d, false
	}
	if d.questionEnd == 12 {
		empty := len(d.records) == 0 || d.records[0].header.Rrtype == dns.TypeOPT
		return d, empty && slices.Contains([]uint16{dns.RcodeFormatError, dns.RcodeServerFailure, dns.RcodeNotImplemented, dns.RcodeRefused}, bits&0xf)
	}
	asked, _ := dissect(query)
	if isResult(codeOf(message, d)) && d.usableFor(asked.qtype, sigs).unrelated {
		return d, false
	}
	return d, equalName(asked.qname, d.qname) && asked.qtype == d.qtype && asked.qclass == d.qclass
}

// codeOf returns the response code of a message.
func codeOf(message []byte, d dissected) wire.RCode {
	rcode := wire.RCode(message[3] & 0xf)
	if opt, _ := d.optOf(); opt != nil {
		rcode |= wire.RCode(opt.header.Ttl>>24) << 4
	}
	return rcode
}

// checkReply checks every octet that a client gets: message is what the
// upstream sent, d the same message dissected, u the usable part of it.
func (c client) checkReply(t *testing.T, q wire.Query, message []byte, d dissected, u usable, a wire.Answer, age time.Duration) {
	asked, _ := dissect(q.Packet())
	question := q.Packet()[12:asked.questionEnd]
	opt, _ := d.optOf()
	kept := u.records
	code := codeOf(message, d)
	if !isResult(code) {
		kept = nil
	}
	// First a client without a size limit.
	all := client{spelling: c.spelling, overTCP: true}
	whole := a.AppendReply(nil, all.ask(t, message), wire.Terms{Age: age})
	full, ok := dissect(whole)
	if !ok || len(full.records) != len(kept) || full.compressesNewer(whole) {
		t.Fatalf("%x: bad reply %x", message, whole)
	}
	checkRecords(t, full, mustUnpack(t, whole), kept, age)
	body := d.agedBody(message, kept, age)
	switch {
	case len(kept) == 0:
	case u.dropped == 0 && u.asSent && !d.compressesNewer(message):
		if len(whole)-full.questionEnd > len(body) || len(message) <= 512 && !bytes.Equal(whole[full.questionEnd:], body) {
			t.Fatalf("%x: reply %x has other records", message, whole)
		}
	}

	reply := a.AppendReply([]byte("prefix"), q, wire.Terms{Age: age})[len("prefix"):]
	limit, optLen := (expectation{edns: c.edns, udpSize: c.udpSize}).maxLen(c.via()), 0
	if c.edns {
		optLen = 11
	}
	fit, tc := full.fitting(limit-optLen, code == wire.NoError && a.Kind() == wire.Positive && !c.do)
	r, ok := dissect(reply)
	if !ok || len(reply) > limit {
		t.Fatalf("%x: bad reply %x", message, reply)
	}
	m := mustUnpack(t, reply)
	if want := c.replyHeader(message, code, tc); m.MsgHdr != want {
		t.Fatalf("%x: got header %s, want %s", message, &m.MsgHdr, &want)
	}
	end := len(question) + 12
	if fit > 0 {
		end = full.records[fit-1].end
	}
	if !bytes.Equal(reply[12:end], append(bytes.Clone(question), whole[len(question)+12:end]...)) {
		t.Fatalf("%x: reply %x is not %d records of %x", message, reply, fit, whole)
	}
	var ede []byte
	left := limit - end - optLen
	if ours := failureText(code); ours != "" && len(ours)+6 <= left {
		ede = append(binary.BigEndian.AppendUint16([]byte{0, 15}, uint16(2+len(ours))), "\x00\x00"+ours...)
	}
	if theirs := edeOf(opt); len(ede)+len(theirs) <= left {
		ede = append(ede, theirs...)
	}
	if tc {
		ede = nil
	}
	switch rest := r.records[fit:]; {
	case !c.edns && len(rest) == 0:
	case !c.edns || len(rest) != 1 || !bytes.Equal(rest[0].rdata, ede):
		t.Fatalf("%x: reply %x has other options", message, reply)
	case rest[0].header.Class != 1232 || m.IsEdns0().Do() != c.do || m.IsEdns0().Version() != 0 || m.IsEdns0().Z() != 0:
		t.Fatalf("%x: bad OPT record in %x", message, reply)
	}
}

// fitting returns how many records of a whole reply end within limit, and whether TC
// is due. With spare, the authority section may be missing.
func (d dissected) fitting(limit int, spare bool) (n int, tc bool) {
	counts := d.counts()
	needed := counts[0] + counts[1]
	if spare {
		needed = counts[0]
	}
	for n < len(d.records) && d.records[n].end <= limit {
		n++
	}
	switch {
	case n < needed:
		return n, true
	case n == len(d.records):
	case spare && n < counts[0]+counts[1]:
		n = counts[0]
	default:
		n = counts[0] + counts[1]
	}
	return n, false
}

func failureText(code wire.RCode) string {
	switch {
	case isResult(code) || code == wire.ServFail:
		return ""
	case code == wire.FormErr || code == wire.NotImp || code == wire.Refused:
		return "upstream answered " + code.String()
	}
	return "upstream answered an error"
}

// agedBody returns the records of message that a client sees.
func (d dissected) agedBody(message []byte, kept []dissectedRecord, age time.Duration) []byte {
	body := bytes.Clone(message)
	end := d.questionEnd
	for _, r := range kept {
		binary.BigEndian.PutUint32(body[r.ttlAt:], agedTTL(r.header.Ttl, age))
		end = r.end
	}
	return body[d.questionEnd:end]
}

func agedTTL(ttl uint32, age time.Duration) uint32 {
	if ttl > 1<<31-1 {
		return 0
	}
	return uint32(max(0, int64(ttl)-max(0, int64(age/time.Second))))
}

func (c client) replyHeader(message []byte, code wire.RCode, tc bool) dns.MsgHdr {
	if !isResult(code) {
		code = wire.ServFail
	}
	return dns.MsgHdr{
		Id: testID, Response: true, Truncated: tc, RecursionDesired: c.rd, RecursionAvailable: true,
		AuthenticatedData: (c.ad || c.do) && message[3]&0x20 != 0 && code != wire.ServFail, CheckingDisabled: c.cd, Rcode: int(code),
	}
}

// checkRecords compares record by record what miekg/dns sees before and after.
func checkRecords(t *testing.T, r dissected, m *dns.Msg, kept []dissectedRecord, age time.Duration) {
	if len(r.records) < len(kept) {
		t.Fatal("records are missing")
	}
	seen := slices.Concat(m.Answer, m.Ns, m.Extra)
	for i, before := range kept {
		after := r.records[i]
		if after.section != before.section || !equalName(after.header.Name, before.header.Name) {
			t.Fatalf("record %d: got %v, want %v", i, after.header, before.header)
		}
		if got, want := seen[i].Header().Ttl, agedTTL(before.header.Ttl, age); got != want {
			t.Fatalf("record %d: got TTL %d, want %d", i, got, want)
		}
		if before.rr == nil {
			if after.header.Rrtype != before.header.Rrtype || !bytes.Equal(after.rdata, before.rdata) {
				t.Fatalf("record %d: got %v %x, want %v %x", i, after.header, after.rdata, before.header, before.rdata)
			}
			continue
		}
		before.rr.Header().Ttl, after.rr.Header().Ttl = 0, 0
		if !equalName(before.rr.String(), after.rr.String()) {
			t.Fatalf("record %d: got %s, want %s", i, after.rr, before.rr)
		}
	}
}

// edeOf returns the Extended DNS Errors of an OPT record as they are passed on.
func edeOf(opt *dissectedRecord) (ede []byte) {
	if opt == nil {
		return nil
	}
	for rdata := opt.rdata; len(rdata) > 0; {
		size := 4 + int(binary.BigEndian.Uint16(rdata[2:]))
		if option := rdata[:size]; binary.BigEndian.Uint16(option) == dns.EDNS0EDE && size >= 6 && len(ede)+size <= 1024 {
			text := ""
			for i, r := range strings.TrimRight(string(option[6:]), "\x00") {
				if !unicode.IsPrint(r) || r == utf8.RuneError && option[6+i] != 0xef {
					r = '?'
				}
				text += string(r)
			}
			ede = append(ede, option[:6]...)
			binary.BigEndian.PutUint16(ede[len(ede)-4:], uint16(2+len(text)))
			ede = append(ede, text...)
		}
		rdata = rdata[size:]
	}
	return ede
}
