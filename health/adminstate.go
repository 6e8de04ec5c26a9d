package health

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

// An AdminState is the operator's setting for an upstream. It overrides the State.
type AdminState uint8

const (
	Auto       AdminState = iota // no setting: the State holds
	Drained                      // gets live queries only when no other upstream is up
	ForcedDown                   // gets no live query at all
	ForcedUp                     // gets live queries, even if it fails them

	adminStates int = iota
)

var adminStateNames = [adminStates]string{Auto: "auto", Drained: "drain", ForcedDown: "down", ForcedUp: "up"}

func (a AdminState) String() string {
	if int(a) < adminStates {
		return adminStateNames[a]
	}
	return fmt.Sprintf("AdminState(%d)", uint8(a))
}

// AdminStates returns all of them.
func AdminStates() []AdminState { return []AdminState{Auto, Drained, ForcedDown, ForcedUp} }

// BreakerStates returns all values of Breaker.State.
func BreakerStates() []string {
	return []string{gobreaker.StateClosed.String(), gobreaker.StateHalfOpen.String(), gobreaker.StateOpen.String()}
}

// ParseAdminState reads what String returns.
func ParseAdminState(text string) (AdminState, error) {
	if i := slices.Index(adminStateNames[:], text); i >= 0 {
		return AdminState(i), nil
	}
	return Auto, fmt.Errorf("%q is none of %s", text, strings.Join(adminStateNames[:], ", "))
}

// SetAdminState sets the AdminState. Probes and transitions go on meanwhile, so that the
// State is right as soon as Auto is set.
func (m *Monitor) SetAdminState(a AdminState) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if AdminState(m.adminState.Swap(uint32(a))) == a {
		return
	}
	m.history = appendChange(m.history, Change{At: time.Now(), State: m.effective(), Reason: "set to " + a.String() + " by hand"})
	m.notify(always, slog.LevelWarn, "upstream is set by hand", "to", a.String())
	m.wakeProbe()
}

// A Breaker is the circuit breaker of an upstream at one moment.
type Breaker struct {
	State     string `json:"state"`             // closed, half-open or open
	Votes     uint32 `json:"votes"`             // outcomes counted since State last changed
	Failures  uint32 `json:"failures"`          // of these: failures
	InARow    uint32 `json:"failures_in_a_row"` // failures since the last success
	Abstained uint32 `json:"abstained"`         // excused outcomes
}

func (m *Monitor) breakerLocked() Breaker {
	c := m.breaker.Counts()
	return Breaker{
		State: m.breaker.State().String(), Votes: c.Requests, Failures: c.TotalFailures,
		InARow: c.ConsecutiveFailures, Abstained: c.TotalExclusions,
	}
}

// A Change is one change of an upstream between up and down, or of its AdminState.
type Change struct {
	At     time.Time
	State  State         // Up, Erroring or Down
	Lasted time.Duration // how long the state before lasted; 0 if unknown
	Reason string        // why it is down, or was; empty if there is none
}

// historyMax is the number of changes that are kept.
const historyMax = 100

func appendChange(history []Change, c Change) []Change {
	if len(history) == historyMax {
		history = slices.Delete(history, 0, historyMax/4) // seldom, so it may move them
	}
	return append(history, c)
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
	FailedProbes uint64 // probes without an answer
	Downs        uint64 // outages
}

func (c *counters) now() Counts {
	return Counts{Probes: c.probes.Load(), FailedProbes: c.failedProbes.Load(), Downs: c.downs.Load()}
}
