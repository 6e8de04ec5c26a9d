//go:build !linux && !darwin && !freebsd

package wire

// Nearly all packages need this one, so the compiler says this and nothing else.
var _ = dotgate_runs_on_Linux_macOS_and_FreeBSD_only
