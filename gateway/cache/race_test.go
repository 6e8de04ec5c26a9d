//go:build race

package cache

const raceEnabled = true

// scaled returns how many of what a test does are enough for the race detector,
// under which everything takes ten times as long.
func scaled(n int) int { return n / 10 }
