package dottest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// A CA is a certificate authority that no client trusts by default. It issues any
// certificate, right or wrong.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// CertOptions describe a certificate. The zero value is a certificate without names.
type CertOptions struct {
	Names []string     // DNS names, wildcards included
	IPs   []netip.Addr // addresses
	// NotBefore and NotAfter bound its validity. Default: a day, of which an hour has
	// passed, or as much as the other one of the two allows.
	NotBefore, NotAfter time.Time
	// Usages are the extended key usages. Default: server authentication.
	Usages []x509.ExtKeyUsage
	// SelfSigned makes the certificate its own issuer.
	SelfSigned bool
}

// NewCA returns a certificate authority with a key of its own.
func NewCA() *CA {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "dottest CA " + rand.Text()[:8]},
		NotBefore:             now.AddDate(-10, 0, 0), // so that it can issue expired certificates
		NotAfter:              now.AddDate(10, 0, 0),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
	}
	key := newKey()
	return &CA{certificate: sign(template, template, key, key), key: key}
}

// Issue returns a certificate with a new key. It panics if o does not fit into a
// certificate, for example because of a name that is not ASCII.
func (ca *CA) Issue(o CertOptions) tls.Certificate {
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		Subject:      pkix.Name{CommonName: "dottest"},
		DNSNames:     o.Names,
		NotBefore:    o.NotBefore,
		NotAfter:     o.NotAfter,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  o.Usages,
	}
	for _, ip := range o.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	if template.NotBefore.IsZero() {
		template.NotBefore = now.Add(-time.Hour)
		if !o.NotAfter.IsZero() && o.NotAfter.Before(now) {
			template.NotBefore = o.NotAfter.Add(-time.Hour)
		}
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = template.NotBefore.Add(24 * time.Hour)
	}
	if template.ExtKeyUsage == nil {
		template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	}
	key := newKey()
	issuer, issuerKey := ca.certificate, ca.key
	if o.SelfSigned {
		issuer, issuerKey = template, key
	}
	leaf := sign(template, issuer, key, issuerKey)
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// Pool returns a pool that has ca only.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	return pool
}

// PEM returns the certificate of ca.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.certificate.Raw})
}

// WriteFile writes the certificate of ca to ca.pem in dir and returns the path.
func (ca *CA) WriteFile(dir string) (string, error) {
	path := filepath.Join(dir, "ca.pem")
	return path, os.WriteFile(path, ca.PEM(), 0o644)
}

func newKey() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic("dottest: generate a key: " + err.Error())
	}
	return key
}

func newSerial() *big.Int {
	var octets [16]byte
	rand.Read(octets[:])
	octets[0] = octets[0]&0x7f | 1 // positive and not zero, as RFC 5280 section 4.1.2.2 asks
	return new(big.Int).SetBytes(octets[:])
}

func sign(template, issuer *x509.Certificate, key, issuerKey *ecdsa.PrivateKey) *x509.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), issuerKey)
	if err != nil {
		panic("dottest: sign a certificate: " + err.Error())
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		panic("dottest: parse a certificate of our own: " + err.Error())
	}
	return certificate
}
