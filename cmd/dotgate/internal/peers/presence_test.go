package peers

import (
	"fmt"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
)

// A peer that comes and goes fills no log: its changes are logged at most once in ten
// seconds, also when each time it is another process at the same address.
func TestAPeerThatComesAndGoesFillsNoLog(t *testing.T) {
	f := func(name func(i int) string, leaves bool, state memberlist.NodeStateType, want ...string) {
		t.Helper()
		addr := ownAddr()
		synctest.Test(t, func(t *testing.T) {
			s := newSite(t, addr, []Key{key(1)})
			d := (*delegate)(s.Node)
			for i := range 100 {
				other := memberlist.Node{Name: name(i), Addr: net.IPv4(192, 0, 2, 1), Port: 8054, State: state}
				d.NotifyJoin(&other)
				time.Sleep(100 * time.Millisecond)
				if leaves {
					d.NotifyLeave(&other)
				}
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			var got []string
			for line := range strings.Lines(s.log.String()) {
				_, line, _ = strings.Cut(line, "msg=")
				line, _, _ = strings.Cut(line, " peer=")
				got = append(got, strings.Trim(line, `"`))
			}
			if strings.Join(got, ", ") != strings.Join(want, ", ") {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
	same, other := func(int) string { return "b~1" }, func(i int) string { return fmt.Sprint("b~", i) }
	// 100 changes in 20 seconds, after which it is gone, or there.
	f(same, true, memberlist.StateDead, "a peer joined", "a peer is unreachable", "a peer joined", "a peer is unreachable", "a peer joined", "a peer is unreachable")
	f(other, true, memberlist.StateLeft, "a peer joined", "a peer left", "a peer joined", "a peer left", "a peer joined", "a peer left")
	f(other, false, memberlist.StateLeft, "a peer joined", "a peer was replaced by a new process", "a peer joined", "a peer was replaced by a new process", "a peer joined")
}
