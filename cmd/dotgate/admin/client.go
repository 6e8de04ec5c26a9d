package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
)

// AskReady asks the Server that has these options, at an address that leads to
// it, whether it is ready, and why. It believes who shows the very certificate
// that the options name.
func AskReady(ctx context.Context, o Options, at netip.AddrPort) (ready bool, why string, err error) {
	scheme, transport := "http", &http.Transport{DisableKeepAlives: true}
	if o.CertFile != "" {
		scheme = "https"
		pair, err := tls.LoadX509KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return false, "", fmt.Errorf("load the certificate (setting admin.cert_file): %w", err)
		}
		transport.TLSClientConfig = &tls.Config{
			MinVersion:         tls.VersionTLS12,
			InsecureSkipVerify: true, // whose name it has says nothing here; that it is ours does
			VerifyConnection: func(state tls.ConnectionState) error {
				if !bytes.Equal(state.PeerCertificates[0].Raw, pair.Certificate[0]) {
					return errors.New("there is another certificate than that of admin.cert_file")
				}
				return nil
			},
		}
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s://%s/readyz", scheme, at), http.NoBody)
	if err != nil {
		return false, "", err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return false, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, headerMax))
	if err != nil {
		return false, "", err
	}
	why, _, _ = strings.Cut(string(text), "\n")
	switch response.StatusCode {
	case http.StatusOK, http.StatusServiceUnavailable:
		return response.StatusCode == http.StatusOK, why, nil
	}
	return false, "", fmt.Errorf("%s is no dotgate: it says %s to /readyz", at, response.Status)
}
