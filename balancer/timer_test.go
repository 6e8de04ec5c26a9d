package balancer

import (
	"testing"
	"testing/synctest"
	"time"
)

// Two exchanges that begin at once may set their alarms in the other order, and an exchange
// may be held up for seconds in between.
func TestAnAlarmMayBeOlderThanTheWheel(t *testing.T) {
	for _, older := range []time.Duration{time.Nanosecond, tick, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			var c timerWheel
			now := time.Now()
			fired := make(chan string, 2)
			alarm := func(name string, now time.Time, d time.Duration) {
				r := &exchange{balancer: &Balancer{}, over: true}
				c.set(r, now, d)
				go func() {
					for {
						c.mu.Lock()
						done := r.alarm.at == 0
						c.mu.Unlock()
						if done {
							fired <- name
							return
						}
						time.Sleep(tick)
					}
				}()
			}
			alarm("the later exchange", now, 40*tick)
			alarm("the older exchange", now.Add(-older), 20*tick)
			if first := <-fired; first != "the older exchange" {
				t.Errorf("%v older: %s fired first", older, first)
			}
			<-fired
			if took := time.Since(now); took < 40*tick || took > 43*tick {
				t.Errorf("%v older: the alarm at %v fired after %v", older, 40*tick, took)
			}
		})
	}
}
