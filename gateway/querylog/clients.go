package querylog

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// Clients is how clients appear to whoever reads what they asked. The zero Clients
// shows none.
type Clients struct {
	how   string
	block cipher.Block // of ipcrypt, or nil
}

// NewClients returns the Clients that how says: prefix (the /24 or /48 that they are
// in), ipcrypt (encrypted with keyFile's key, so that they can be told apart, and told
// by who has the key), none, or full. It reports what can't be by the names of the
// options that are at fault: clients and key_file.
func NewClients(how, keyFile string, report func(option, problem string)) Clients {
	c := Clients{how: how}
	switch how {
	case "prefix", "none", "full":
	case "ipcrypt":
		key, err := readKey(keyFile)
		if err != nil {
			report("key_file", err.Error())
			return Clients{}
		}
		c.block, _ = aes.NewCipher(key) // fails for other sizes only
	default:
		report("clients", fmt.Sprintf("%q does not exist; there are prefix, ipcrypt, none, full", how))
		return Clients{}
	}
	return c
}

func readKey(file string) ([]byte, error) {
	if file == "" {
		return nil, fmt.Errorf("is needed with clients: ipcrypt")
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != aes.BlockSize {
		return nil, fmt.Errorf("%s does not hold 32 hexadecimal digits", file)
	}
	return key, nil
}

// Show returns addr as it may appear; an invalid address if it may not.
func (c Clients) Show(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	switch {
	case !addr.IsValid():
		return addr
	case c.how == "full":
		return addr
	case c.how == "ipcrypt":
		return encrypt(c.block, addr)
	case c.how == "prefix" && addr.Is4():
		return netip.PrefixFrom(addr, 24).Masked().Addr()
	case c.how == "prefix":
		return netip.PrefixFrom(addr, 48).Masked().Addr()
	}
	return netip.Addr{}
}

// encrypt is ipcrypt-deterministic: one block of AES over the address in its 16
// octets.
func encrypt(block cipher.Block, addr netip.Addr) netip.Addr {
	octets := addr.As16()
	block.Encrypt(octets[:], octets[:])
	return netip.AddrFrom16(octets).Unmap()
}
