//go:build linux && (e2e || figures || load)

package e2e

import (
	"encoding/binary"
	"strings"
)

// mismatch is the prefix of the problem of a reply to another query.
const mismatch = "mismatch: "

// optLen is the length of the OPT record at the end of each query.
const optLen = 11

func newQuery(id uint16, name string) []byte {
	p := binary.BigEndian.AppendUint16(nil, id)
	p = append(p, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 1) // RD; a question and an additional record
	for label := range strings.SplitSeq(name, ".") {
		p = append(append(p, byte(len(label))), label...)
	}
	p = append(p, 0, 0, 1, 0, 1)
	return append(p, 0, 0, 41, 1232>>8, 1232&0xff, 0, 0, 0, 0, 0, 0)
}
