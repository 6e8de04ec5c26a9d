package wire

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"iter"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
)

// RouteNames maps patterns (CleanPattern) to indexes of routes. The zero RouteNames,
// and nil, are empty. It may be read concurrently after Pack.
//
// A pattern takes its length and some 12 octets more, as lists of 100,000 names are
// common.
type RouteNames struct {
	// entries has, for each pattern, its apex as PackName makes it, and a value of four
	// octets: the route, times two, plus one if the pattern matches only the names below
	// the apex.
	entries []byte
	starts  []uint32 // of the entries of each route, and the end of the last one; nil before Pack
	count   int

	// The hash table: a slot has an offset in entries, plus one, or zero. tags has eight
	// other bits of the hash, which avoid most comparisons with entries.
	slots []uint32
	tags  []byte
	// lengths has the lengths of all apexes: most names that are looked up have no
	// suffix of one of these lengths.
	lengths [maxName + 2]bool
	// ends has the last letters of all apexes, for the same reason: of those of .local, .test
	// or .arpa, .com has none. That of the root, which ends every name, is 0.
	ends [256]bool
}

const entryTail = 4 // length of an entry's value

var nameSeed = maphash.MakeSeed()

// Add adds a pattern for a route, whose index must not be negative. If the pattern
// exists already, it is unchanged, and Add returns its route.
func (ns *RouteNames) Add(pattern string, route int) (has int, added bool, err error) {
	apex, starred := Apex(pattern)
	name, err := PackName(apex)
	if err != nil {
		return 0, false, err
	}
	value := uint32(route) << 1
	if starred {
		value |= 1
	}
	for at := range ns.places(name) {
		if there := ns.value(at, len(name)); there&1 == value&1 {
			return int(there >> 1), false, nil
		}
	}
	if 3*(ns.count+1) > 2*len(ns.slots) {
		ns.rehash(max(16, 2*len(ns.slots)))
	}
	at := len(ns.entries)
	ns.entries = binary.BigEndian.AppendUint32(append(ns.entries, name...), value)
	ns.insert(name, uint32(at))
	ns.count++
	ns.starts = nil
	return route, true, nil
}

// Pack sorts the patterns by route, in the order in which they were added, and frees
// unused memory.
func (ns *RouteNames) Pack() {
	var sizes []uint32
	for name, value := range ns.all() {
		route := int(value >> 1)
		sizes = append(sizes, make([]uint32, max(0, route+1-len(sizes)))...)
		sizes[route] += uint32(len(name) + entryTail)
	}
	starts := make([]uint32, len(sizes)+1)
	for i, size := range sizes {
		starts[i+1] = starts[i] + size
	}
	next, entries := slices.Clone(starts), make([]byte, len(ns.entries))
	for name, value := range ns.all() {
		at := &next[value>>1]
		copy(entries[*at:], name)
		binary.BigEndian.PutUint32(entries[int(*at)+len(name):], value)
		*at += uint32(len(name) + entryTail)
	}
	ns.entries, ns.starts = entries, starts
	ns.rehash(ns.count + ns.count/2 + 1)
}

// Find returns the route of the longest pattern that matches name, which is in wire
// format and lower case, and the length of name before the pattern's apex. It reports
// false if no pattern matches. It doesn't allocate.
func (ns *RouteNames) Find(name []byte) (route, below int, ok bool) {
	if ns == nil || ns.count == 0 || len(name) >= len(ns.lengths) || !ns.ends[lastLetter(name)] && !ns.ends[0] {
		return 0, 0, false
	}
	for at := 0; at < len(name); at += 1 + int(name[at]) {
		if !ns.lengths[len(name)-at] {
			continue
		}
		best, found := uint32(0), false
		for place := range ns.places(name[at:]) {
			value := ns.value(place, len(name)-at)
			starred := value&1 == 1
			if starred && at > 0 || !starred && (at == 0 || !found) {
				best, found = value, true
			}
		}
		if found {
			return int(best >> 1), at, true
		}
	}
	return 0, 0, false
}

// Patterns returns the patterns of a route, in the order in which they were added. Pack
// must have been called.
func (ns *RouteNames) Patterns(route int) iter.Seq[string] {
	return func(yield func(string) bool) {
		if ns == nil || route+1 >= len(ns.starts) {
			return
		}
		part := RouteNames{entries: ns.entries[ns.starts[route]:ns.starts[route+1]]}
		for name, value := range part.all() {
			if !yield(patternText(name, value)) {
				return
			}
		}
	}
}

// RandomPattern returns a pattern of a route, which must have one. Pack must have been
// called.
func (ns *RouteNames) RandomPattern(route int) string {
	part := RouteNames{entries: ns.entries[ns.starts[route]:ns.starts[route+1]]}
	at := rand.IntN(len(part.entries))
	for name, value := range part.all() {
		if at -= len(name) + entryTail; at < 0 {
			return patternText(name, value)
		}
	}
	return ""
}

// patternText returns the pattern of an entry in the form that CleanPattern accepts: all
// escapes are \DDD.
func patternText(name []byte, value uint32) string {
	text := NameText(name)
	if strings.Contains(text, `\`) {
		text = escaped.ReplaceAllStringFunc(text, func(pair string) string { return fmt.Sprintf(`\%03d`, pair[1]) })
	}
	if value&1 == 1 {
		return wildcard + text
	}
	return text
}

var escaped = regexp.MustCompile(`\\[^0-9]`)

// IsApex reports whether a name, as CleanName returns it, is the apex of a pattern of
// one of the routes.
func (ns *RouteNames) IsApex(name string, routes []int) bool {
	packed, err := PackName(name)
	if err != nil || ns == nil {
		return false
	}
	for at := range ns.places(packed) {
		if slices.Contains(routes, int(ns.value(at, len(packed))>>1)) {
			return true
		}
	}
	return false
}

// Len returns the number of patterns.
func (ns *RouteNames) Len() int {
	if ns == nil {
		return 0
	}
	return ns.count
}

// Digest returns a digest of all patterns, each with the element of lists for its
// route. It does not depend on the order in which patterns were added.
func (ns *RouteNames) Digest(lists []string) [sha256.Size]byte {
	type entry struct{ at, size uint32 }
	all := make([]entry, 0, ns.Len())
	at := uint32(0)
	for name := range ns.all() {
		all = append(all, entry{at, uint32(len(name))})
		at += uint32(len(name) + entryTail)
	}
	nameOf := func(e entry) []byte { return ns.entries[e.at : e.at+e.size] }
	slices.SortFunc(all, func(a, b entry) int {
		return cmp.Or(bytes.Compare(nameOf(a), nameOf(b)), cmp.Compare(ns.value(a.at, int(a.size))&1, ns.value(b.at, int(b.size))&1))
	})
	digests := make([][sha256.Size]byte, len(lists))
	for i, list := range lists {
		digests[i] = sha256.Sum256([]byte(list))
	}
	h := sha256.New()
	for _, e := range all {
		value := ns.value(e.at, int(e.size))
		h.Write(nameOf(e)) // in wire format, no name is a prefix of another
		h.Write([]byte{byte(value & 1)})
		h.Write(digests[value>>1][:])
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// equal reports whether both have the same patterns, and `routes` is true for the two
// routes of each pattern.
func (ns *RouteNames) equal(other *RouteNames, routes func(route, others int) bool) bool {
	if ns.Len() != other.Len() {
		return false
	}
	for name, value := range ns.all() {
		found := false
		for at := range other.places(name) {
			theirs := other.value(at, len(name))
			found = found || theirs&1 == value&1 && routes(int(value>>1), int(theirs>>1))
		}
		if !found {
			return false
		}
	}
	return true
}

// all returns the names of all entries, with what follows each.
func (ns *RouteNames) all() iter.Seq2[[]byte, uint32] {
	return func(yield func([]byte, uint32) bool) {
		if ns == nil {
			return
		}
		for rest := ns.entries; len(rest) > 0; {
			n := 0
			for rest[n] != 0 {
				n += 1 + int(rest[n])
			}
			n++
			if !yield(rest[:n:n], binary.BigEndian.Uint32(rest[n:])) {
				return
			}
			rest = rest[n+entryTail:]
		}
	}
}

// value returns the value of the entry at a place, whose name has n octets.
func (ns *RouteNames) value(place uint32, n int) uint32 {
	return binary.BigEndian.Uint32(ns.entries[int(place)+n:])
}

// places returns the offsets in entries of the patterns with this apex: at most two.
func (ns *RouteNames) places(name []byte) iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		if ns.count == 0 {
			return
		}
		slot, tag := ns.slot(name)
		for ; ns.slots[slot] != 0; slot = ns.nextSlot(slot) {
			if ns.tags[slot] != tag {
				continue
			}
			at := ns.slots[slot] - 1
			if end := int(at) + len(name); end < len(ns.entries) && bytes.Equal(ns.entries[at:end], name) && !yield(at) {
				return
			}
		}
	}
}

// slot returns the first slot for a name in the hash table, and its tag.
func (ns *RouteNames) slot(name []byte) (slot int, tag byte) {
	hash := maphash.Bytes(nameSeed, name)
	return int(hash & (1<<32 - 1) * uint64(len(ns.slots)) >> 32), byte(hash >> 56)
}

func (ns *RouteNames) nextSlot(slot int) int {
	if slot++; slot < len(ns.slots) {
		return slot
	}
	return 0
}

// insert puts the place of a name into the hash table, which must have a free slot.
func (ns *RouteNames) insert(name []byte, place uint32) {
	slot, tag := ns.slot(name)
	for ns.slots[slot] != 0 {
		slot = ns.nextSlot(slot)
	}
	ns.slots[slot], ns.tags[slot] = place+1, tag
	ns.lengths[len(name)] = true
	ns.ends[lastLetter(name)] = true
}

// lastLetter returns the last octet of the last label, or 0 for the root.
func lastLetter(name []byte) byte { return name[max(len(name)-2, 0)] }

func (ns *RouteNames) rehash(slots int) {
	ns.slots, ns.tags = make([]uint32, slots), make([]byte, slots)
	at := uint32(0)
	for name := range ns.all() {
		ns.insert(name, at)
		at += uint32(len(name) + entryTail)
	}
}

// Routes has the names with upstreams of their own. The zero Routes, and nil, are
// empty. It may be read concurrently.
type Routes struct {
	names   *RouteNames
	sources []string // by route
}

// NewRoutes returns the Routes for names, which must not change any more. sources has,
// for each route, an identifier of its upstreams, which is not empty.
func NewRoutes(names *RouteNames, sources []string) *Routes { return &Routes{names, sources} }

// Find is RouteNames.Find.
func (rs *Routes) Find(name []byte) (route, below int, ok bool) {
	if rs == nil {
		return 0, 0, false
	}
	return rs.names.Find(name)
}

// Source returns the source of the route for name, or "" if there is none.
func (rs *Routes) Source(name []byte) string {
	if route, _, ok := rs.Find(name); ok {
		return rs.sources[route]
	}
	return ""
}

// Equal reports whether both have the same names, with the same sources.
func (rs *Routes) Equal(other *Routes) bool {
	if rs == nil || other == nil {
		return rs.len() == other.len()
	}
	return rs.names.equal(other.names, func(a, b int) bool { return rs.sources[a] == other.sources[b] })
}

func (rs *Routes) len() int {
	if rs == nil {
		return 0
	}
	return rs.names.Len()
}
