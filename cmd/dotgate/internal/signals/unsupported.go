//go:build !linux && !darwin && !freebsd

package signals

// The compiler says this in place of what is missing.
var _ = dotgate_runs_on_Linux_macOS_and_FreeBSD_only
