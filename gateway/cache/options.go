package cache

import (
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"time"
)

// Options of a Cache. A zero field means zero; Defaults has the usual values.
type Options struct {
	// Size is what the process's memory grows by at the most, index and all
	// included. 0 ("off"): nothing is cached. Default: 64 MiB.
	Size Size `config:"size"`
	// MinTTL is how long an answer with data is kept at the least, unless its
	// TTL is 0. Default: 0.
	MinTTL time.Duration `config:"min_ttl"`
	// MaxTTL is how long any answer counts as fresh at the most. Default: 24 h.
	MaxTTL time.Duration `config:"max_ttl"`
	// MaxNegativeTTL is how long an answer without data counts as fresh at the
	// most (RFC 2308). Default: 1 h.
	MaxNegativeTTL time.Duration `config:"max_negative_ttl"`
	// StaleAfter is how long a client waits for upstreams before it gets a stale
	// answer, if there is one (RFC 8767 section 5, client response timer).
	// Default: 400 ms.
	StaleAfter time.Duration `config:"stale_after"`
	// MaxStale is how long answers may be of use past their TTL, while no
	// upstream has a better one. 0: never. Default: 24 h.
	MaxStale time.Duration `config:"max_stale"`
	// File keeps the cache over restarts. Empty: nothing does.
	File string `config:"file"`

	// Log takes what an operator should see. Default: slog.Default.
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

// minSize is the least that is worth it: with less, a single large answer would
// push out most others.
const minSize = 1 << 20

// maxStale is a week, the longest that RFC 8767 section 5 thinks of.
const maxStale = 7 * 24 * time.Hour

// Check reports every option that can't be used, by its name.
func (o Options) Check(report func(option, problem string)) {
	if o.Size != 0 && o.Size < minSize {
		report("size", fmt.Sprintf("is below %v; \"off\" is for no cache", Size(minSize)))
	}
	if o.Size > 0 && uint64(o.Size) > math.MaxInt/2 {
		report("size", "is more than this machine can address")
	}
	for _, d := range []struct {
		option string
		value  time.Duration
	}{{"max_ttl", o.MaxTTL}, {"max_negative_ttl", o.MaxNegativeTTL}} {
		if d.value < time.Second {
			report(d.option, "must not be below 1s")
		}
	}
	if o.MinTTL < 0 || o.MinTTL > o.MaxTTL {
		report("min_ttl", "must be between 0s and max_ttl")
	}
	if o.StaleAfter < 0 {
		report("stale_after", "must not be below 0s")
	}
	if o.MaxStale < 0 || o.MaxStale > maxStale {
		report("max_stale", fmt.Sprintf("must be between 0s and %gh", maxStale.Hours()))
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
