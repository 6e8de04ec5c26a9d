package redis

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	"dotgate/configs/bounds"
	"dotgate/configs/files"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Options of a Cache. A zero field means zero; Defaults has the usual values.
type Options struct {
	// URL is the address of the server: redis://USER:PASSWORD@HOST:PORT/DATABASE, rediss://
	// with TLS, or unix://PATH. Several are a Redis Cluster, or Sentinels if master is set.
	// Empty for no shared cache.
	//
	// User, password and database are taken from the first.
	URL []URL `config:"url"`
	// Master is the name of the server at the Sentinels; url then has the addresses of the
	// Sentinels.
	Master string `config:"master"`
	// CAFile is a PEM file of the authorities to trust for rediss://; empty for those of the
	// system.
	CAFile string `config:"ca_file"`
	// Limit is the longest that a query waits for the shared cache before it waits for an
	// upstream.
	Limit time.Duration `config:"limit" bounds:"100us 100ms"`
	// Prefix is the beginning of all keys.
	Prefix string `config:"prefix"`

	// Log receives messages for the operator. Required.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options { return Options{Limit: 5 * time.Millisecond, Prefix: "dotgate:"} }

// Check reports every invalid option by its name. It reads CAFile.
func (o Options) Check(report func(option, problem string, beside ...string)) {
	bounds.Check(o, report)
	if o.Prefix == "" {
		report("prefix", "must not be empty: it separates the keys of dotgate from others")
	}
	if o.Master != "" && len(o.URL) == 0 {
		report("master", "requires url", "url")
	}
	if _, err := o.client(); err != nil {
		report("ca_file", err.Error(), "url")
	}
}

func (o Options) client() (*redis.UniversalOptions, error) {
	c := &redis.UniversalOptions{
		MasterName: o.Master, IsClusterMode: len(o.URL) > 1 && o.Master == "",
		// No retries: an upstream has the answer, too.
		MaxRetries: -1, DialerRetries: 1, DialTimeout: dialLimit, PoolTimeout: o.Limit,
		ContextTimeoutEnabled: true, ReadTimeout: writeLimit, WriteTimeout: writeLimit,
		PoolSize: maxReads, MinIdleConns: 2, DisableIdentity: true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	}
	for i, u := range o.URL {
		parsed, err := redis.ParseURL(string(u))
		if err != nil {
			return nil, err
		}
		c.Addrs = append(c.Addrs, parsed.Addr)
		if i == 0 {
			c.Username, c.Password, c.DB, c.TLSConfig = parsed.Username, parsed.Password, parsed.DB, parsed.TLSConfig
		}
	}
	if c.TLSConfig != nil {
		c.TLSConfig.MinVersion = tls.VersionTLS12
	}
	if o.CAFile == "" {
		return c, nil
	}
	if c.TLSConfig == nil {
		return nil, errors.New("requires rediss:// in url")
	}
	var err error
	c.TLSConfig.RootCAs, err = files.Authorities(o.CAFile)
	return c, err
}

// A URL is the address of a server. Its text form hides the password.
type URL string

// UnmarshalText parses and checks a URL.
func (u *URL) UnmarshalText(text []byte) error {
	options, err := redis.ParseURL(string(text))
	if err != nil {
		// The library's own error is not shown: it may contain the password.
		return fmt.Errorf("%s is not redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix://PATH", URL(text))
	}
	if c := options.TLSConfig; c != nil && c.InsecureSkipVerify {
		return fmt.Errorf("%s has skip_verify, but certificates are always verified: name the CA in ca_file", URL(text))
	}
	*u = URL(text)
	return nil
}

// HidesSecret marks the type.
func (URL) HidesSecret() {}

// MarshalText returns the URL without the password.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// String returns the URL without the password.
func (u URL) String() string {
	parsed, err := url.Parse(string(u))
	if err != nil {
		return "(hidden)"
	}
	return parsed.Redacted()
}

// GoString is for %#v.
func (u URL) GoString() string { return u.String() }
