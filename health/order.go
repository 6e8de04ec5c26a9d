package health

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// An Order is what the operator wants of an upstream, whatever is known of it.
type Order uint8

const (
	Auto       Order = iota // what is known decides
	Drained                 // down for live queries, but asked when nobody else is up
	ForcedDown              // gets no live query at all
	ForcedUp                // gets live queries, even if it fails them

	orders int = iota
)

var orderNames = [orders]string{Auto: "auto", Drained: "drain", ForcedDown: "down", ForcedUp: "up"}

func (o Order) String() string {
	if int(o) < orders {
		return orderNames[o]
	}
	return fmt.Sprintf("Order(%d)", uint8(o))
}

// Orders returns all there are.
func Orders() []Order { return []Order{Auto, Drained, ForcedDown, ForcedUp} }

// BreakerStates returns all that a Breaker's State may be.
func BreakerStates() []string {
	return []string{gobreaker.StateClosed.String(), gobreaker.StateHalfOpen.String(), gobreaker.StateOpen.String()}
}

// ParseOrder reads what String returns.
func ParseOrder(text string) (Order, error) {
	if i := slices.Index(orderNames[:], text); i >= 0 {
		return Order(i), nil
	}
	return Auto, fmt.Errorf("%q is none of %s", text, strings.Join(orderNames[:], ", "))
}

// Order sets what the operator wants, until the next one. Probes and votes go on
// meanwhile, so that what is known holds at once with Auto.
func (m *Monitor) Order(o Order) {
	m.mu.Lock()
	changed := Order(m.order.Swap(uint32(o))) != o
	if changed {
		m.history = appendChange(m.history, Change{At: time.Now(), State: stateOf(m.Up()), Reason: "set to " + o.String() + " by hand"})
	}
	m.mu.Unlock()
	if changed {
		m.log.Warn("upstream is set by hand", "to", o.String())
		m.nudge()
	}
}

// A Breaker is the circuit breaker of an upstream at one moment.
type Breaker struct {
	State     string // closed, half-open or open
	Votes     uint32 // since it last changed
	Failures  uint32 // of these
	InARow    uint32 // failures since the last success
	Abstained uint32 // outcomes that said nothing about the upstream
}

func (m *Monitor) breakerNow() Breaker {
	c := m.breaker.Counts()
	state := gobreaker.StateClosed
	if !m.up.Load() {
		state = m.breaker.State()
	}
	return Breaker{
		State: state.String(), Votes: c.Requests, Failures: c.TotalFailures,
		InARow: c.ConsecutiveFailures, Abstained: c.TotalExclusions,
	}
}

// A Change is when an upstream went up or down.
type Change struct {
	At     time.Time
	State  State         // Up or Down
	Lasted time.Duration // the state before; 0 if that is not known
	Reason string        // why it is down, or was; empty if there is none
}

// historyMax is how many changes are kept.
const historyMax = 100

// noteLocked keeps a change of state, which has just been made.
func (m *Monitor) noteLocked(lasted time.Duration) {
	c := Change{At: m.changed, State: stateOf(m.up.Load()), Lasted: lasted}
	if m.reason != nil {
		c.Reason = m.reason.Error()
	}
	if c.State == Down {
		m.counts.downs.Add(1)
	}
	m.history = appendChange(m.history, c)
}

func appendChange(history []Change, c Change) []Change {
	if len(history) == historyMax {
		history = slices.Delete(history, 0, historyMax/4) // seldom, so it may move them
	}
	return append(history, c)
}

func stateOf(up bool) State {
	if up {
		return Up
	}
	return Down
}

// Changes returns the latest changes, at most a hundred, the newest last.
func (m *Monitor) Changes() []Change {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.history)
}

type counters struct{ probes, failedProbes, downs atomic.Uint64 }

func (c *counters) probed(err error) {
	c.probes.Add(1)
	if err != nil {
		c.failedProbes.Add(1)
	}
}

// Counts are totals since New.
type Counts struct {
	Probes       uint64 // sent
	FailedProbes uint64 // of these: without an answer
	Downs        uint64 // times that the upstream went down
}

func (c *counters) now() Counts {
	return Counts{Probes: c.probes.Load(), FailedProbes: c.failedProbes.Load(), Downs: c.downs.Load()}
}
