package transport

import (
	"golang.org/x/sys/unix"
)

// replySource4 is replySource for the data of an IPv4 control message. It reports whether
// the message has the packet's destination, which in the same form is the source of a reply
// (ip(4): IP_RECVDSTADDR and IP_SENDSRCADDR are one number).
func replySource4(kind int32, data []byte) bool {
	const addressLen = 4
	return kind == unix.IP_SENDSRCADDR && len(data) == addressLen
}
