package health

import (
	"fmt"
	"time"
)

// An outage is why an upstream gets no live queries.
type outage struct {
	lasted time.Duration
	order  Order // what it is for, if it is by hand
	reason error // or nil
}

func (o *outage) Error() string {
	lasted := o.lasted.Round(time.Second)
	if o.lasted < time.Second {
		lasted = o.lasted.Round(time.Millisecond)
	}
	switch {
	case o.order != Auto:
		return fmt.Sprintf("set to %v by hand", o.order)
	case o.reason == nil:
		return fmt.Sprintf("breaker open for %v", lasted)
	}
	return fmt.Sprintf("breaker open for %v: %v", lasted, o.reason)
}

func (o *outage) Unwrap() error { return o.reason }

// Outage returns why the upstream gets no live queries, and for how long it has
// had none; nil while it is up.
func (m *Monitor) Outage() error {
	if m.Up() {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return &outage{lasted: time.Since(m.changed), order: Order(m.order.Load()), reason: m.reason}
}
