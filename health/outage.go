package health

import (
	"fmt"
	"time"
)

// An outage is the reason why an upstream gets no live queries.
type outage struct {
	lasted     time.Duration
	adminState AdminState // not Auto if the operator has set it
	reason     error      // or nil
}

func (o *outage) Error() string {
	lasted := o.lasted.Round(time.Second)
	if o.lasted < time.Second {
		lasted = o.lasted.Round(time.Millisecond)
	}
	switch {
	case o.adminState != Auto:
		return fmt.Sprintf("set to %v by hand", o.adminState)
	case o.reason == nil:
		return fmt.Sprintf("breaker open for %v", lasted)
	}
	return fmt.Sprintf("breaker open for %v: %v", lasted, o.reason)
}

func (o *outage) Unwrap() error { return o.reason }

// Outage returns why the upstream gets no live queries, and since when; nil while it is
// up.
func (m *Monitor) Outage() error {
	if m.effective().IsUp() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return &outage{lasted: time.Since(m.changed), adminState: AdminState(m.adminState.Load()), reason: m.reason}
}
