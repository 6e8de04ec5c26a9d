//go:build !linux

package upstreams

import "context"

// WatchNetwork returns when ctx is done: changes are not seen on this platform.
func WatchNetwork(ctx context.Context, _, _ func()) error {
	<-ctx.Done()
	return nil
}
