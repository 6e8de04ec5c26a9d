package dottest

import "golang.org/x/sys/unix"

// queueIsFull reports whether the queue of connections of a listening socket is full, so
// that the system drops further ones (struct tcp_info: tcpi_unacked is the length of the
// queue, tcpi_sacked its limit, which Linux exceeds by one).
func queueIsFull(fd int) (full, known bool) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.Unacked > info.Sacked, err == nil
}
