package gateway

import (
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// A panicLog logs panics with their stacks, at most once in panicLogInterval.
type panicLog struct {
	log  *slog.Logger
	mu   sync.Mutex
	last time.Time
}

const panicLogInterval = 10 * time.Second

func (p *panicLog) report(v any) {
	p.mu.Lock()
	again := !p.last.IsZero() && time.Since(p.last) < panicLogInterval
	if !again {
		p.last = time.Now()
	}
	p.mu.Unlock()
	if !again {
		p.log.Error("BUG: a query caused a panic", "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	}
}
