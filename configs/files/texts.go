package files

import (
	"encoding"
	"fmt"
	"strings"
)

// Texts returns the values that the lines of the file at path are the texts of. Empty lines
// and those that begin with # count for nothing. limit is that of Read.
func Texts[T any, P interface {
	*T
	encoding.TextUnmarshaler
}](path string, limit int) (all []T, err error) {
	text, err := Read(path, limit)
	if err != nil {
		return nil, err
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		n++
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		var value T
		if err := P(&value).UnmarshalText([]byte(line)); err != nil {
			return nil, fmt.Errorf("%s: line %d %w", path, n, err)
		}
		all = append(all, value)
	}
	return all, nil
}
