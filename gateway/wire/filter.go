package wire

import (
	"encoding/binary"
	"errors"
)

const (
	// maxTargets is the most names that additional records are kept for. A set of name
	// or mail servers has about a dozen.
	maxTargets = 64
	// maxSigners is the most zones whose denials of existence are kept. A chain seldom
	// leads through more than two zones.
	maxSigners = 8

	// maxExamined is the most records behind the answer section that are looked at.
	// Ordinary messages have some dozens. Further records are dropped.
	maxExamined = 256

	firstMeta = 128 // types from here to 255 are about messages, not names (RFC 6895 section 3.1)
	lastMeta  = 255
)

// errAliasLoop means that CNAME records form a loop, or lead through too many names.
var errAliasLoop = errors.New("endless or too long chain of aliases")

// A recordFilter selects the records of a well-formed message that are related to its
// question. Out-of-bailiwick and other unrelated records are dropped, as resolvers do:
// a client must not believe them (RFC 2181 section 5.4.1).
//
// It selects
//   - of the answer section: the CNAME chain in order, and the requested data at its
//     end,
//   - of the authority section: NS, SOA and DS records of zones that contain a name of
//     the chain, NSEC and NSEC3 records of these zones if they have signed a record of the
//     section, and the signatures of all these,
//   - of the additional section: records of a name of the chain, or of a name in the
//     data of a selected record.
type recordFilter struct {
	msg      []byte
	chain    cnameChain
	signers  nameSet
	targets  nameSet
	selected []uint16  // offsets of the selected records, in their new order
	counts   [3]uint16 // of selected records by section
	dropped  int       // number of records that are not selected
	examined int       // number of records behind the answer section so far
}

// selectAnswers selects the whole answer section, which begins at off and is in order.
// It returns the end of the section.
func (f *recordFilter) selectAnswers(off int) (end int) {
	for range f.count(1) {
		r := f.record(off)
		f.add(1, off)
		off = r.end
	}
	return off
}

// selectChain selects from the answer section, which begins at off, and returns its end.
// The error is ErrUnrelated if the section has records, but none of a name of the chain,
// or errAliasLoop.
func (f *recordFilter) selectChain(q Query, off int) (end int, err error) {
	var buf [2 * maxAliases]uint16
	aliases, ok := f.findAliases(off, buf[:0])
	if !ok {
		return 0, ErrUnrelated
	}
	f.chain = newChain(q, f.msg, off)
	if err := f.selectAliases(aliases); err != nil {
		return 0, err
	}
	last, related := int(f.chain.at[f.chain.n-1]), f.counts[0] > 0
	for range f.count(1) {
		r := f.record(off)
		if r.class == classIN && sameName(f.msg, off, last) {
			related = true
			if f.chain.isData(f.msg, r) {
				f.add(1, off)
			}
		}
		off = r.end
	}
	f.dropped += int(f.count(1) - f.counts[0])
	if !related && RCode(flagsOf(f.msg)&maskRCode) == NoError {
		return 0, ErrUnrelated
	}
	return off, nil
}

// findAliases returns the offsets of the CNAME and DNAME records, and of their
// signatures, in the answer section at off. It reports false if there are too many.
func (f *recordFilter) findAliases(off int, found []uint16) (_ []uint16, ok bool) {
	for range f.count(1) {
		r := f.record(off)
		if t := r.covered(f.msg); (t == typeCNAME || t == typeDNAME) && r.class == classIN {
			if len(found) == maxAliasRecords {
				return nil, false
			}
			found = append(found, uint16(off))
		}
		off = r.end
	}
	return found, true
}

// selectAliases follows the aliases from the question on, and selects them.
func (f *recordFilter) selectAliases(aliases []uint16) error {
	if !f.chain.followsCNAME() {
		return nil
	}
	for i := 0; ; i++ {
		name := int(f.chain.at[i])
		f.selectAliasesOf(aliases, typeDNAME, func(owner int) bool { return f.chain.isStrictlyBelow(f.msg, i, owner) })
		next, leads := f.selectAliasesOf(aliases, typeCNAME, func(owner int) bool { return sameName(f.msg, owner, name) })
		if !leads {
			return nil
		}
		if !f.chain.add(f.msg, next.end-next.rdataLen) {
			return errAliasLoop
		}
	}
}

// selectAliasesOf selects the aliases of a type whose owners are wanted, and then their
// signatures: all DNAME records, but only the first CNAME record, which it returns.
func (f *recordFilter) selectAliasesOf(aliases []uint16, t Type, wanted func(owner int) bool) (cname record, found bool) {
	for _, at := range aliases {
		if r := f.record(int(at)); r.typ == t && wanted(int(at)) && !(found && t == typeCNAME) && !f.isSelected(at) {
			f.add(1, int(at))
			cname, found = r, true
		}
	}
	for _, at := range aliases {
		if r := f.record(int(at)); found && f.chain.wantsSigs && r.typ == typeRRSIG && r.covered(f.msg) == t && wanted(int(at)) && !f.isSelected(at) {
			f.add(1, int(at))
		}
	}
	return cname, found
}

func (f *recordFilter) isSelected(at uint16) bool {
	for _, other := range f.selected {
		if other == at {
			return true
		}
	}
	return false
}

// selectOthers selects from the sections behind the answer section, which ends at off.
func (f *recordFilter) selectOthers(off int) {
	f.signers.max, f.targets.max = maxSigners, maxTargets
	for _, at := range f.selected {
		f.noteTarget(f.record(int(at)))
	}
	at := off
	for range min(f.count(2), maxExamined) {
		r := f.record(at)
		f.noteSigner(r, at)
		at = r.end
	}
	for range f.count(2) {
		r := f.record(off)
		f.addIf(2, r, off, f.wantedInAuthority(r, off))
		off = r.end
	}
	for range f.count(3) {
		r := f.record(off)
		if r.typ == typeOPT { // records behind it are dropped
			break
		}
		f.addIf(3, r, off, f.wantedInAdditional(r, off))
		off = r.end
	}
}

func (f *recordFilter) count(section int) uint16 { return binary.BigEndian.Uint16(f.msg[4+2*section:]) }

func (f *recordFilter) record(off int) record {
	r, ok := parseRecord(f.msg, off, nil)
	if !ok {
		panic("BUG: a message is no longer well-formed")
	}
	return r
}

func (f *recordFilter) add(section, off int) {
	f.selected = append(f.selected, uint16(off))
	f.counts[section-1]++
}

// addIf selects r, which is behind the answer section, if it is wanted and not beyond
// maxExamined.
func (f *recordFilter) addIf(section int, r record, off int, wanted bool) {
	if f.examined++; !wanted || f.examined > maxExamined {
		f.dropped++
		return
	}
	f.add(section, off)
	f.noteTarget(r)
}

// noteTarget adds the name in the data of r to the targets.
func (f *recordFilter) noteTarget(r record) {
	at := r.end - r.rdataLen
	switch r.typ {
	case typeNS, TypePTR:
	case typeMX, typeAFSDB, typeRT, typeKX:
		at += 2
	case typeSRV:
		at += 6
	case TypeSVCB, TypeHTTPS:
		at += 2
	default:
		return
	}
	if f.msg[at] != 0 { // the root means none, or the owner itself
		f.targets.add(f.msg, at)
	}
}

// noteSigner adds the zone that signed r's records to the signers, if r is a signature
// with an owner in that zone, and a name of the chain is in it, too.
func (f *recordFilter) noteSigner(r record, owner int) {
	if zone, ok := r.signer(f.msg); ok && f.chain.anyInSubtreeOf(f.msg, zone) && inSubtree(f.msg, owner, zone) {
		f.signers.add(f.msg, zone)
	}
}

// wantedInAuthority reports whether r is kept in the authority section.
func (f *recordFilter) wantedInAuthority(r record, owner int) bool {
	if r.class != classIN {
		return false
	}
	switch r.covered(f.msg) {
	case typeNS, typeSOA, TypeDS:
		return f.chain.anyInSubtreeOf(f.msg, owner)
	case typeNSEC, typeNSEC3:
		return f.signers.anyContains(f.msg, owner)
	}
	return false
}

// wantedInAdditional reports whether r is kept in the additional section.
func (f *recordFilter) wantedInAdditional(r record, owner int) bool {
	if r.class != classIN || r.typ >= firstMeta && r.typ <= lastMeta {
		return false
	}
	return f.chain.has(f.msg, owner) || f.targets.has(f.msg, owner)
}

// signer returns the offset of the signer's name of an RRSIG record, which is never
// compressed (RFC 4034 section 3.1.7).
func (r record) signer(msg []byte) (at int, ok bool) {
	const fixed = 18
	if r.typ != typeRRSIG || r.rdataLen <= fixed {
		return 0, false
	}
	at = r.end - r.rdataLen + fixed
	_, ok = skipPlainName(msg[:r.end], at)
	return at, ok
}
