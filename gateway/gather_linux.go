package gateway

import (
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// gatherFor is how long a busy socket is left alone, after a packet came, for
	// more to come. The system makes it half as long again.
	gatherFor = 100 * time.Microsecond
	// gatherWindow is how long packets are counted to know whether it is busy.
	gatherWindow = 2 * time.Millisecond
)

// A gatherer lets packets gather, as network cards do with their interrupts. To
// wake up costs several times as much as to answer from the cache: at 20 000
// queries a second, three that share a wake-up cost a third less, and wait for a
// tenth of a millisecond more.
type gatherer struct {
	above float64 // packets a second from which on it waits; 0: never

	begun   time.Time // the window
	count   int       // packets since
	busy    bool
	backlog bool // the last batch was full: there is no need to wait for more
}

// noted takes note of packets that were read, as many as there was room for or
// not.
func (g *gatherer) noted(packets int, full bool) {
	g.count += packets
	g.backlog = full
	now := time.Now()
	if passed := now.Sub(g.begun); passed >= gatherWindow {
		g.busy = g.above > 0 && float64(g.count) > g.above*passed.Seconds()
		g.begun, g.count = now, 0
	}
}

// pays reports whether it is worth it to wait.
func (g *gatherer) pays() bool { return g.busy && !g.backlog }

// wait waits for packets to gather, if that pays.
//
// It keeps its processor meanwhile. To sleep as goroutines do would wait in Go's
// poller, whose clock has milliseconds, and which each packet wakes up; to tell
// the scheduler that this is a system call that waits would cost what is saved.
func (g *gatherer) wait() {
	if !g.pays() {
		return
	}
	pause := unix.NsecToTimespec(int64(gatherFor))
	// A signal may cut it short, which does no harm.
	_, _, _ = syscall.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
}
