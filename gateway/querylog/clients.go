package querylog

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"dotgate/configs/files"
)

// Clients anonymises client addresses for logs and traces. The zero Clients removes
// them.
type Clients struct {
	mode  string
	block cipher.Block // of ipcrypt, or nil
}

// NewClients returns the Clients for a mode: prefix (the /24 or /48 of the address),
// ipcrypt (encrypted with the key in keyFile: addresses stay distinguishable, and can be
// decrypted with the key), none, or full. It reports problems by the name of the option:
// clients or key_file.
func NewClients(mode, keyFile string, report func(option, problem string, beside ...string)) Clients {
	c := Clients{mode: mode}
	switch mode {
	case "prefix", "none", "full":
	case "ipcrypt":
		key, err := readKey(keyFile)
		if err != nil {
			report("key_file", err.Error(), "clients")
			return Clients{}
		}
		c.block, _ = aes.NewCipher(key) // fails for other sizes only
	default:
		report("clients", fmt.Sprintf("%q does not exist; there are prefix, ipcrypt, none, full", mode))
		return Clients{}
	}
	return c
}

func readKey(file string) ([]byte, error) {
	if file == "" {
		return nil, fmt.Errorf("is needed with clients: ipcrypt")
	}
	text, err := files.Read(file, files.SecretMax)
	if err != nil {
		return nil, err
	}
	key, err := hex.DecodeString(strings.TrimSpace(string(text)))
	if err != nil || len(key) != aes.BlockSize {
		return nil, fmt.Errorf("%s does not hold 32 hexadecimal digits", file)
	}
	return key, nil
}

// Show returns the anonymised addr, or an invalid address if it must not be shown.
func (c Clients) Show(addr netip.Addr) netip.Addr {
	addr = addr.Unmap().WithZone("")
	switch {
	case !addr.IsValid():
		return addr
	case c.mode == "full":
		return addr
	case c.mode == "ipcrypt":
		return encrypt(c.block, addr)
	case c.mode == "prefix" && addr.Is4():
		return netip.PrefixFrom(addr, 24).Masked().Addr()
	case c.mode == "prefix":
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
