package redis

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// Options of a Cache. A zero field means zero; Defaults has the usual values.
type Options struct {
	// URL is where the server is: redis://USER:PASSWORD@HOST:PORT/DATABASE,
	// rediss:// with TLS, or unix://PATH. Several are nodes of a Redis Cluster, or
	// Sentinels if Master is set; what comes before and after the host is that of
	// the first. Empty: there is no such cache.
	URL []URL `config:"url"`
	// Master is the name that the Sentinels know the server by.
	Master string `config:"master"`
	// CAFile has the authorities to trust, PEM, for rediss://. Empty: the system's.
	CAFile string `config:"ca_file"`
	// Limit is how long a query waits for it. Default: 5 ms.
	Limit time.Duration `config:"limit"`
	// Prefix begins each key. Default: "dotgate:".
	Prefix string `config:"prefix"`

	// Log takes what an operator should see. Required.
	Log *slog.Logger `config:"-"`
}

// Defaults returns the usual values.
func Defaults() Options { return Options{Limit: 5 * time.Millisecond, Prefix: "dotgate:"} }

// maxLimit keeps clients from waiting for a cache longer than for an upstream.
const maxLimit = 100 * time.Millisecond

// Check reports every option that can't be used, by its name. It reads the file
// that is named.
func (o Options) Check(report func(option, problem string)) {
	if o.Limit <= 0 || o.Limit > maxLimit {
		report("limit", fmt.Sprintf("must be above 0s, and %v at the most", maxLimit))
	}
	if o.Prefix == "" {
		report("prefix", "must not be empty: others may have keys there too")
	}
	if o.Master != "" && len(o.URL) == 0 {
		report("master", "is of no use without url")
	}
	if _, err := o.client(); err != nil {
		report("ca_file", err.Error())
	}
}

// client returns how to get at the server.
func (o Options) client() (*redis.UniversalOptions, error) {
	c := &redis.UniversalOptions{
		MasterName: o.Master, IsClusterMode: len(o.URL) > 1 && o.Master == "",
		// Nothing is tried again here: the answer can be had elsewhere.
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
		return nil, fmt.Errorf("is of no use without rediss:// in url")
	}
	pem, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, err
	}
	c.TLSConfig.RootCAs = x509.NewCertPool()
	if !c.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", o.CAFile)
	}
	return c, nil
}

// A URL is where a server is. It is shown without the password in it.
type URL string

// UnmarshalText reads and checks it.
func (u *URL) UnmarshalText(text []byte) error {
	options, err := redis.ParseURL(string(text))
	if err != nil {
		// Not the client's own error: it may have the password.
		return fmt.Errorf("%s is not redis://HOST:PORT, rediss://HOST:PORT (TLS) or unix://PATH", URL(text))
	}
	if c := options.TLSConfig; c != nil && c.InsecureSkipVerify {
		return fmt.Errorf("%s has skip_verify, but certificates are verified here, always; ca_file names whom to trust", URL(text))
	}
	*u = URL(text)
	return nil
}

// MarshalText writes it without the password.
func (u URL) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

// String returns it without the password.
func (u URL) String() string {
	parsed, err := url.Parse(string(u))
	if err != nil {
		return "(hidden)"
	}
	return parsed.Redacted()
}
