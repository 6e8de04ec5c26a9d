package peers

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"time"

	"github.com/hashicorp/memberlist"
)

// The protocols of connections (ALPN). An incompatible version has another name, so that
// the handshake fails.
const (
	gossipProtocol = "dotgate-gossip/1"
	cacheProtocol  = "dotgate-cache/1"
)

// serverName is in every node's certificate.
const serverName = "peer.dotgate"

// An identity holds the secrets of a node, all derived from the shared keys (HKDF,
// RFC 5869): the key that encrypts packets, and a certificate, equal on all nodes, that
// both ends of each TLS connection present and verify. TLS pre-shared keys would need no
// certificate, but crypto/tls does not have them. Certificates of a CA would be three
// more files for each node, and would expire.
type identity struct {
	ring         *memberlist.Keyring
	certificates []tls.Certificate
	trusted      *x509.CertPool
}

func newIdentity(keys []Key) (*identity, error) {
	id := &identity{trusted: x509.NewCertPool()}
	var gossip [][]byte
	for _, key := range keys {
		secret, err := hkdf.Key(sha256.New, key[:], nil, "dotgate peers: gossip", 32)
		if err != nil {
			return nil, err
		}
		gossip = append(gossip, secret)
		certificate, err := certify(key)
		if err != nil {
			return nil, err
		}
		id.certificates = append(id.certificates, certificate)
		id.trusted.AddCert(certificate.Leaf)
	}
	if len(gossip) == 0 {
		return nil, errors.New("there is no key")
	}
	var err error
	id.ring, err = memberlist.NewKeyring(gossip, gossip[0])
	return id, err
}

// certify derives the certificate of a key. It is the same each time, because Ed25519
// signatures are deterministic, and it is trusted for as long as the key is configured.
func certify(key Key) (tls.Certificate, error) {
	seed, err := hkdf.Key(sha256.New, key[:], nil, "dotgate peers: identity", ed25519.SeedSize)
	if err != nil {
		return tls.Certificate{}, err
	}
	private := ed25519.NewKeyFromSeed(seed)
	public := private.Public().(ed25519.PublicKey)
	digest := sha256.Sum256(public)
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: "dotgate peers " + hex.EncodeToString(digest[:8])},
		DNSNames:              []string{serverName},
		NotBefore:             time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:              time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280 section 4.1.2.5: no end
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(nil, template, template, public, private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("BUG: %w", err)
	}
	leaf, err := x509.ParseCertificate(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private, Leaf: leaf}, err
}

func (id *identity) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: id.certificates[:1],
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: id.trusted,
		NextProtos: []string{gossipProtocol, cacheProtocol}, SessionTicketsDisabled: true,
	}
}

func (id *identity) client(protocol string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: id.certificates, // crypto/tls picks the one that the server accepts
		RootCAs: id.trusted, ServerName: serverName, NextProtos: []string{protocol},
	}
}

// explain adds to a handshake's error the setting that most likely caused it.
func explain(err error) error {
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return fmt.Errorf("%w: %w", errKey, err)
	}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" { // an alert
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	return err
}

var (
	errKey     = errors.New("the peer has another key (peers.key)")
	errRefused = errors.New("the peer refused the connection: it has another version or other keys")
)
