//go:build !race

package cache

const raceEnabled = false

func scaled(n int) int { return n }
