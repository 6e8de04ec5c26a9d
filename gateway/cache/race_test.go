//go:build race

package cache

const raceEnabled = true

// scaled reduces the work of a test by ten: with the race detector it takes ten times as
// long.
func scaled(n int) int { return n / 10 }
