//go:build linux && load

package e2e

import (
	"bytes"
	"fmt"
)

// The names of the bench are numbers, and so are their addresses: each side can
// compute one from the other without state. A name takes 30
// octets: 8 hexadecimal digits below figures.example.com.
const (
	digitsAt    = 12 + 1 // in a message
	digits      = 8
	questionEnd = 12 + 30 + 4
	recordLen   = 2 + 10 + 4 // of type A, its owner a pointer to the question
)

// numbered is the query for the name 0.
var numbered = newQuery(0, "00000000.figures.example.com")

const hex = "0123456789abcdef"

func putNumber(to []byte, number uint32) {
	for i := digits - 1; i >= 0; i-- {
		to[i] = hex[number&15]
		number >>= 4
	}
}

// numberOf reads the name of a query. It returns false for other names.
func numberOf(query []byte) (number uint32, ok bool) {
	if len(query) < questionEnd || !bytes.Equal(query[digitsAt+digits:questionEnd], numbered[digitsAt+digits:questionEnd]) {
		return 0, false
	}
	for _, c := range query[digitsAt : digitsAt+digits] {
		switch {
		case c >= '0' && c <= '9':
			number = number<<4 | uint32(c-'0')
		case c >= 'a' && c <= 'f':
			number = number<<4 | uint32(c-'a'+10)
		default:
			return 0, false
		}
	}
	return number, true
}

// problemOf returns what is wrong with the reply to the query for a name, or "".
func problemOf(reply []byte, number uint32) string {
	if len(reply) < 12 || reply[2]&0x80 == 0 {
		return "no reply came back"
	}
	if rcode := reply[3] & 15; rcode != 0 {
		return fmt.Sprintf("RCODE %d", rcode)
	}
	if reply[2]&0x02 != 0 {
		return "truncated"
	}
	var question [questionEnd - 12]byte
	copy(question[:], numbered[12:])
	putNumber(question[1:], number)
	rest, same := bytes.CutPrefix(reply[12:], question[:])
	if !same {
		return mismatch + "another question"
	}
	rest, pointer := bytes.CutPrefix(rest, []byte{0xc0, 12})
	if !pointer {
		rest, _ = bytes.CutPrefix(rest, question[:len(question)-4])
	}
	if len(rest) < recordLen-2 || !bytes.Equal(rest[:4], []byte{0, 1, 0, 1}) || !bytes.Equal(rest[8:10], []byte{0, 4}) {
		return mismatch + "no address first"
	}
	if [4]byte(rest[10:14]) != addressOf(number) {
		return mismatch + "another name's address"
	}
	return ""
}

func addressOf(number uint32) [4]byte {
	return [4]byte{byte(number >> 24), byte(number >> 16), byte(number >> 8), byte(number)}
}

// appendAnswer appends the upstream's answer to a query: an address for a
// number, another one for any other name of type A, and else nothing.
func appendAnswer(to, query []byte) []byte {
	address := [4]byte{192, 0, 2, 1}
	end := questionEnd
	if number, ok := numberOf(query); ok {
		address = addressOf(number)
	} else if end = endOfQuestion(query); end == 0 {
		return append(to, query[0], query[1], 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0) // FORMERR
	}
	isA := bytes.Equal(query[end-4:end], []byte{0, 1, 0, 1})
	opt := query[11] & 1
	answers := byte(0)
	if isA {
		answers = 1
	}
	to = append(to, query[0], query[1], 0x81, 0x80, 0, 1, 0, answers, 0, 0, 0, opt)
	to = append(to, query[12:end]...)
	if isA {
		to = append(to, 0xc0, 12, 0, 1, 0, 1, 0, 0, 3600>>8, 3600&0xff, 0, 4)
		to = append(to, address[:]...)
	}
	if opt != 0 {
		to = append(to, 0, 0, 41, 1232>>8, 1232&0xff, 0, 0, 0, 0, 0, 0)
	}
	return to
}

// endOfQuestion returns 0 for a query without one.
func endOfQuestion(query []byte) int {
	for at := 12; at < len(query); at += 1 + int(query[at]) {
		if query[at] == 0 && at+5 <= len(query) {
			return at + 5
		}
	}
	return 0
}
