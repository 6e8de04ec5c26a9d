package health

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"dotgate/gateway/statelog"
)

const (
	// noticesMax is the number of lines that may wait for the log.
	noticesMax = 16
	// noticesLimit is how long Run waits at its end for a log that does not progress.
	noticesLimit = 100 * time.Millisecond
)

// notices are the lines that wait for the log. A transition is part of a query, with
// locks held, and must not wait for a disk or a pipe.
type notices struct {
	queue   chan notice
	dropped atomic.Uint64
	outages statelog.State // of outages, which are logged once in ten seconds at most
	over    atomic.Bool    // Run has ended
}

type notice struct {
	kind  noticeKind
	level slog.Level
	text  string
	args  []any
}

// A noticeKind decides how often a line is logged.
type noticeKind uint8

const (
	always   noticeKind = iota
	wentDown            // at most once in ten seconds
	cameBack            // if the outage was logged
)

// notify queues a line for the log. If there is no room, the line is dropped and
// counted.
func (m *Monitor) notify(kind noticeKind, level slog.Level, text string, args ...any) {
	select {
	case m.notices.queue <- notice{kind, level, text, args}:
	default:
		m.notices.dropped.Add(1)
	}
}

// writeNotices writes what is queued, until ctx is done, and then what is left.
func (m *Monitor) writeNotices(ctx context.Context) {
	defer m.notices.over.Store(true)
	for {
		select {
		case n := <-m.notices.queue:
			m.writeSeldom(n)
		case <-ctx.Done():
			if len(m.notices.queue) == 0 {
				return
			}
		}
	}
}

// writeSeldom writes n unless lines of its kind come too often. An outage that lasts is
// logged later then, with the number of outages that were not logged.
func (m *Monitor) writeSeldom(n notice) {
	switch n.kind {
	case wentDown:
		m.notices.outages.Fail(func(skipped int) {
			if m.notices.over.Load() {
				return
			}
			if skipped > 0 {
				n.args = append(n.args, "outages_not_logged", skipped)
			}
			m.write(n)
		})
	case cameBack:
		m.notices.outages.Work(func() { m.write(n) })
	default:
		m.write(n)
	}
}

func (m *Monitor) write(n notice) {
	if dropped := m.notices.dropped.Swap(0); dropped > 0 {
		n.args = append(n.args, "dropped_lines", dropped)
	}
	m.log.Log(context.Background(), n.level, n.text, n.args...)
}
