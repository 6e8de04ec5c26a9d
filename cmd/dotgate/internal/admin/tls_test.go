package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// pair writes a certificate that signs itself, and its key.
func pair(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return certFile, keyFile
}

// TestAClientCertificateDoesInPlaceOfTheToken serves over TLS, with a certificate
// that is then replaced.
func TestAClientCertificateDoesInPlaceOfTheToken(t *testing.T) {
	t.Parallel()
	o := Defaults()
	o.Listen = Address{netip.MustParseAddrPort("127.0.0.1:0")}
	o.CertFile, o.KeyFile = pair(t, "gateway.example.com")
	clientCert, clientKey := pair(t, "operator.example.com")
	strangerCert, strangerKey := pair(t, "stranger.example.com")
	o.ClientCAFile = clientCert
	w := newWorld(t, o, "one")
	l, err := Listen(o.Listen)
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan struct{})
	go func() { defer close(served); w.Serve(ctx, l) }()
	defer func() { cancel(); <-served }()

	drain := func(certFile, keyFile string) (int, error) {
		config := &tls.Config{InsecureSkipVerify: true}
		if certFile != "" {
			own, err := tls.LoadX509KeyPair(certFile, keyFile)
			if err != nil {
				t.Fatal(err)
			}
			config.Certificates = []tls.Certificate{own}
		}
		transport := &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}
		r, err := http.NewRequest(http.MethodPost, "https://"+l.Addr().String()+"/api/upstreams/one/drain", http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(r)
		if err != nil {
			return 0, err
		}
		response.Body.Close()
		return response.StatusCode, nil
	}
	if code, err := drain("", ""); err != nil || code != http.StatusUnauthorized {
		t.Errorf("without a certificate: %d, %v", code, err)
	}
	if code, err := drain(strangerCert, strangerKey); err == nil && code == http.StatusOK {
		t.Errorf("a stranger's certificate: %d", code)
	}
	if code, err := drain(clientCert, clientKey); err != nil || code != http.StatusOK || w.ordered != "one drain" {
		t.Errorf("an operator's: %d, %v, %q", code, err, w.ordered)
	}

	if r, err := AskReady(t.Context(), o, at); err != nil || !strings.HasPrefix(r.String(), "ready: 1 of 1") {
		t.Errorf("got %v, %v", r, err)
	}
	other := o
	other.CertFile, other.KeyFile = pair(t, "other.example.com")
	if _, err := AskReady(t.Context(), other, at); err == nil {
		t.Error("another's certificate is believed")
	}
	follow := func(o Options) {
		t.Helper()
		commit, err := w.Prepare(o)
		if err != nil {
			t.Fatal(err)
		}
		commit()
	}
	follow(other)
	if r, err := AskReady(t.Context(), other, at); err != nil || !r.Ready {
		t.Errorf("the new certificate is not in use: %v, %v", r, err)
	}
	bad := other
	bad.KeyFile = o.KeyFile
	if _, err := w.Prepare(bad); err == nil {
		t.Error("a certificate with the key of another can be used")
	}
	if r, err := AskReady(t.Context(), other, at); err != nil || !r.Ready {
		t.Errorf("what can't be used changes something: %v, %v", r, err)
	}
	plain := o
	plain.CertFile, plain.KeyFile, plain.ClientCAFile = "", "", ""
	follow(plain)
	if r, err := AskReady(t.Context(), plain, at); err != nil || !r.Ready {
		t.Errorf("TLS does not end: %v, %v", r, err)
	}
}
