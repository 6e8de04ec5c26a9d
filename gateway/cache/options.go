package cache

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"

	"dotgate/configs/bounds"
)

// Options of a Cache. A zero field means zero, not the default: see Defaults.
type Options struct {
	// Size is the most by which the cache makes the process grow, 1MiB or more (less in a
	// container whose memory limit has no room for it); off for no cache.
	Size Size `config:"size" bounds:"1MiB 1024GiB off"`
	// MinTTL is the shortest time that an answer with data is kept, whatever its TTL; above
	// 0s, changes are seen late.
	//
	// An answer with a TTL of 0 is not kept.
	MinTTL time.Duration `config:"min_ttl" bounds:"0s 168h"`
	// MaxTTL is the longest time that any answer is fresh.
	MaxTTL time.Duration `config:"max_ttl" bounds:"1s 168h"`
	// MaxNegativeTTL is the longest time that an answer without data is fresh: that a name
	// does not exist, or has no record of that type.
	//
	// RFC 2308.
	MaxNegativeTTL time.Duration `config:"max_negative_ttl" bounds:"1s 168h"`
	// StaleAfter is how long a client waits for upstreams before it gets a stale answer, if
	// there is one.
	//
	// RFC 8767 section 5, client response timer.
	StaleAfter time.Duration `config:"stale_after" bounds:"0s 1m"`
	// MaxStale is how long after its end an answer may be given while no upstream has a
	// better one; 0s for never, at most 168h.
	//
	// RFC 8767 section 5.
	MaxStale time.Duration `config:"max_stale" bounds:"0s 168h"`
	// File is a file that keeps the cache over restarts, written every 10 minutes and at the
	// end. It is not read if upstreams, routes, gateway.ecs or gateway.block_private differ
	// from those that it was written with. Empty for none.
	File string `config:"file"`

	// Log is for messages to the operator. Default: slog.Default.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options {
	return Options{
		Size:           64 << 20,
		MaxTTL:         24 * time.Hour,
		MaxNegativeTTL: time.Hour,
		StaleAfter:     400 * time.Millisecond,
		MaxStale:       24 * time.Hour,
	}
}

// The bounds of Options.Size and MaxStale.
const (
	minSize  = 1 << 20
	maxStale = 7 * 24 * time.Hour
)

// Check reports every invalid option by its name.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	bounds.Check(o, report)
	if o.Size > 0 && uint64(o.Size) > math.MaxInt/2 {
		report("size", "is more than this machine can address")
	}
	if o.MinTTL > o.MaxTTL {
		report("min_ttl", "is above max_ttl", "max_ttl")
	}
}

// A Size is a number of bytes. As text it has a unit, as in 64MiB; 0 is "off".
type Size int64

var units = []struct {
	name string
	size Size
}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}, {"B", 1}}

// UnmarshalText reads a number with a unit, "off" or "0".
func (s *Size) UnmarshalText(text []byte) error {
	if t := string(text); t == "off" || t == "0" {
		*s = 0
		return nil
	}
	for _, unit := range units {
		number, ok := strings.CutSuffix(string(text), unit.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseFloat(strings.TrimRight(number, " "), 64)
		if err != nil || n-n != 0 || n < 0 || number != strings.TrimLeft(number, "+-") {
			break
		}
		if n *= float64(unit.size); n >= math.MaxInt64 {
			return fmt.Errorf("%s is out of range", text)
		}
		*s = Size(n)
		return nil
	}
	if _, err := strconv.ParseFloat(string(text), 64); err == nil {
		return fmt.Errorf("%q has no unit; write %sMiB", text, text)
	}
	return fmt.Errorf("%q is not a size; write one such as 64MiB, 1GiB or off", text)
}

// MarshalText writes what UnmarshalText reads.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns the size with the largest unit that divides it.
func (s Size) String() string {
	if s == 0 {
		return "off"
	}
	for _, unit := range units[:3] {
		if s%unit.size == 0 {
			return strconv.FormatInt(int64(s/unit.size), 10) + unit.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B"
}
