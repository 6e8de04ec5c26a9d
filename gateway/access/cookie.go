package access

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"

	"github.com/dchest/siphash"

	"dotgate/configs/secret"
)

const (
	// CookieLen is the length of the server cookies that are made here (RFC 9018 section 4).
	CookieLen = 16
	// cookieAge is the age up to which a cookie is good, and cookieRenew the age from which the
	// client gets a new one (RFC 9018 section 4.3).
	cookieAge   = time.Hour
	cookieRenew = 30 * time.Minute
	// cookieAhead is how far the clocks of a pair may differ.
	cookieAhead = 5 * time.Minute
	// cookieSecretLen is the length of SipHash's key.
	cookieSecretLen = 16
)

// A cookieSecret makes server cookies.
type cookieSecret struct{ k0, k1 uint64 }

// cookies makes and checks the server cookies of RFC 9018: a client with a good one has received
// a reply at its address, so its address is not forged.
type cookies struct {
	secrets []cookieSecret // the first makes cookies, all of them check
}

// newCookies returns cookies with these secrets, or with a random one if there are none.
func newCookies(texts []secret.Text) (cookies, error) {
	var c cookies
	for _, text := range texts {
		s, err := parseCookieSecret(text)
		if err != nil {
			return c, err
		}
		c.secrets = append(c.secrets, s)
	}
	if c.secrets == nil {
		var key [cookieSecretLen]byte
		rand.Read(key[:]) // never fails
		c.secrets = append(c.secrets, newCookieSecret(key[:]))
	}
	return c, nil
}

func parseCookieSecret(text secret.Text) (cookieSecret, error) {
	key, err := hex.DecodeString(string(text))
	if err != nil || len(key) != cookieSecretLen {
		return cookieSecret{}, fmt.Errorf("is not 32 hexadecimal digits, such as `openssl rand -hex 16` prints")
	}
	return newCookieSecret(key), nil
}

func newCookieSecret(key []byte) cookieSecret {
	return cookieSecret{binary.LittleEndian.Uint64(key), binary.LittleEndian.Uint64(key[8:])}
}

// CheckCookieSecret reports why text is not a cookie secret.
func CheckCookieSecret(text secret.Text) error {
	_, err := parseCookieSecret(text)
	return err
}

// CheckCookie reports whether server is a server cookie that was made for the client at addr
// with that client cookie, and appends the one to send to it now.
func (c *cookies) CheckCookie(dst, client, server []byte, addr netip.Addr, now time.Time) (cookie []byte, ok bool) {
	if len(server) == CookieLen && server[0] == 1 {
		made := int32(binary.BigEndian.Uint32(server[4:]))
		// Serial number arithmetic, as the field is 32 bits wide.
		age := time.Duration(int32(uint32(now.Unix()))-made) * time.Second
		if age <= cookieAge && age >= -cookieAhead {
			for i := range c.secrets {
				var hash [8]byte
				c.secrets[i].sum(hash[:], client, server[:8], addr)
				if subtle.ConstantTimeCompare(hash[:], server[8:]) != 1 {
					continue
				}
				if i == 0 && age < cookieRenew {
					return append(dst, server...), true
				}
				ok = true
			}
		}
	}
	var made [CookieLen]byte
	made[0] = 1 // version
	binary.BigEndian.PutUint32(made[4:], uint32(now.Unix()))
	c.secrets[0].sum(made[8:], client, made[:8], addr)
	return append(dst, made[:]...), ok
}

// sum writes the hash of a cookie whose first half is head (RFC 9018 section 4.4).
func (s cookieSecret) sum(hash, client, head []byte, addr netip.Addr) {
	var buf [8 + 8 + 16]byte
	input := append(append(buf[:0], client...), head...)
	if addr.Is4() {
		ip := addr.As4()
		input = append(input, ip[:]...)
	} else {
		ip := addr.As16()
		input = append(input, ip[:]...)
	}
	binary.LittleEndian.PutUint64(hash, siphash.Hash(s.k0, s.k1, input))
}
