package admin

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestManyThatWatchCostWhatOneCosts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var made atomic.Int64
		rs := &rounds{interval: time.Second, make: func() ([]byte, error) {
			n := made.Add(1)
			time.Sleep(100 * time.Millisecond) // fake time
			return fmt.Append(nil, n), nil
		}}
		ctx, cancel := context.WithTimeout(t.Context(), 9950*time.Millisecond)
		defer cancel()
		var watching sync.WaitGroup
		for i := range 50 {
			watching.Go(func() {
				time.Sleep(time.Duration(i) * 17 * time.Millisecond)
				got := 0
				if _, err := rs.recent(ctx); err == nil {
					got++
				}
				for {
					if _, err := rs.wait(ctx); err != nil {
						break
					}
					got++
				}
				if got < 9 || got > 11 {
					t.Errorf("watcher %d was told %d times", i, got)
				}
			})
		}
		watching.Wait()
		synctest.Wait()
		if n := made.Load(); n != 10 {
			t.Errorf("the text was made %d times, want 10", n)
		}
		time.Sleep(time.Minute)
		if n := made.Load(); n > 11 {
			t.Errorf("the text was made %d times although nothing watches", n)
		}
	})
}

func TestATextIsMadeAfterItWasAskedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var now atomic.Int64
		var broken atomic.Bool
		rs := &rounds{make: func() ([]byte, error) {
			seen := now.Load()
			time.Sleep(time.Second)
			if broken.Load() {
				return nil, errors.New("broken")
			}
			return fmt.Append(nil, seen), nil
		}}
		f := func(want string) {
			t.Helper()
			if got, err := rs.wait(t.Context()); string(got) != want || (err != nil) != (want == "") {
				t.Errorf("got %s, %v, want %s", got, err, want)
			}
		}
		f("0")
		now.Store(1)
		go f("1")
		synctest.Wait()
		time.Sleep(1500 * time.Millisecond) // its round is under way
		now.Store(2)
		f("2")
		broken.Store(true)
		f("")
	})
}
