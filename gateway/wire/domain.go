package wire

import (
	"strings"
	"sync/atomic"

	"golang.org/x/net/publicsuffix"
)

// suffixes caches which domains are public suffixes, as a look-up allocates memory: the
// hash of a domain, and in its last bit whether it is a suffix.
var suffixes [1024]atomic.Uint64

// DomainHash returns a hash of the registrable domain of the name asked for.
func (q Query) DomainHash() uint64 {
	var room [MaxKey]byte
	_, hash := registrable(q.AppendName(room[:0]))
	return hash
}

// RegistrableDomain returns the part of name, both in wire format and lower case, that
// people register: one label more than its public suffix has, two at least and four at most.
// It is name if that has fewer labels. It does not allocate for suffixes that are common.
func RegistrableDomain(name []byte) []byte {
	at, _ := registrable(name)
	return name[at:]
}

// registrable returns the offset of the registrable domain of a name, and a hash of it.
func registrable(name []byte) (at int, hash uint64) {
	var starts [4]int // the offsets of the last labels, by number modulo 4
	labels := 0
	for at := 0; name[at] != 0; at += 1 + int(name[at]) {
		starts[labels%len(starts)] = at
		labels++
	}
	for n := 2; n <= len(starts) && n <= labels; n++ {
		at = starts[(labels-n)%len(starts)]
		if hash = hashOf(name[at:]); n == labels || n == len(starts) || !isSuffix(hash, name[at:]) {
			return at, hash
		}
	}
	return 0, hashOf(name)
}

// ParentHash returns a hash of the name asked for without its first label: that of
// NameHash. It is that of the whole name if the rest is a public suffix, below which names
// have different owners.
func (q Query) ParentHash() uint64 {
	var room [MaxKey]byte
	name := q.AppendName(room[:0])
	if parent := name[1+int(name[0]):]; len(parent) > 1 && !isSuffix(hashOf(parent), parent) {
		return nameHash(parent)
	}
	return nameHash(name)
}

// hashOf returns the FNV-1a hash of text, with its upper bits, the better ones, mixed
// into the lower ones.
func hashOf(text []byte) uint64 {
	hash := uint64(14695981039346656037)
	for _, c := range text {
		hash = (hash ^ uint64(c)) * 1099511628211
	}
	return hash ^ hash>>32
}

// isSuffix reports whether a domain in wire format, with that hash, is a public suffix.
func isSuffix(hash uint64, domain []byte) bool {
	known := &suffixes[hash>>32%uint64(len(suffixes))]
	if k := known.Load(); k>>1 == hash>>1 {
		return k&1 != 0
	}
	var labels []string
	for at := 0; domain[at] != 0; at += 1 + int(domain[at]) {
		labels = append(labels, string(domain[at+1:at+1+int(domain[at])]))
	}
	text := strings.Join(labels, ".")
	suffix, _ := publicsuffix.PublicSuffix(text)
	is := suffix == text
	if hash &^= 1; is {
		hash |= 1
	}
	known.Store(hash)
	return is
}
