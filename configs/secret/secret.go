// Package secret has the types of options that no output may show: not check, status,
// a log, an error nor the difference between two configurations.
package secret

import (
	"net/url"
	"strings"
)

// A Value is the value of an option that is a secret, or has one in it. Its text form
// hides it. An error about it must not contain it.
type Value interface{ HidesSecret() }

// Hidden stands for a secret in all output.
const Hidden = "(hidden)"

// A Text is a secret text.
type Text string

// HidesSecret marks the type.
func (Text) HidesSecret() {}

// UnmarshalText reads it as it is.
func (s *Text) UnmarshalText(text []byte) error {
	*s = Text(text)
	return nil
}

// MarshalText writes that there is one, no more.
func (s Text) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// String returns Hidden, or nothing if there is nothing to hide.
func (s Text) String() string {
	if s == "" {
		return ""
	}
	return Hidden
}

// GoString is for %#v.
func (s Text) GoString() string { return s.String() }

// A URL may have a secret in its user, its query or its fragment.
type URL string

// HidesSecret marks the type.
func (URL) HidesSecret() {}

// UnmarshalText reads it as it is.
func (u *URL) UnmarshalText(text []byte) error {
	*u = URL(text)
	return nil
}

// MarshalText writes what String returns.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// String returns the URL with Hidden in place of user, query and fragment.
func (u URL) String() string {
	before, _, more := strings.Cut(string(u), "?")
	before, _, fragment := strings.Cut(before, "#")
	parsed, err := url.Parse(before)
	switch {
	case err != nil:
		return Hidden
	case parsed.User != nil:
		parsed.User = nil
		before = parsed.Scheme + "://" + Hidden + "@" + parsed.Host + parsed.Path
	}
	if more || fragment {
		before += "?" + Hidden
	}
	return before
}

// GoString is for %#v.
func (u URL) GoString() string { return u.String() }
