package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"

	"dotgate/configs/files"
)

// healthMax is more than /healthz says of a hundred upstreams.
const healthMax = 1 << 20

// AskReady asks the Server that has these options, at an address that leads to
// it, whether it is ready, and why. It believes a server that shows the very certificate
// that the options name.
func AskReady(ctx context.Context, o Options, at netip.AddrPort) (r Readiness, err error) {
	scheme, transport := "http", &http.Transport{DisableKeepAlives: true}
	if o.CertFile != "" {
		scheme = "https"
		pair, err := files.KeyPair(o.CertFile, o.KeyFile)
		if err != nil {
			return r, fmt.Errorf("load the certificate (setting admin.cert_file): %w", err)
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
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("%s://%s/healthz", scheme, at), http.NoBody)
	if err != nil {
		return r, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return r, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return r, fmt.Errorf("%s is no dotgate: it says %s to /healthz", at, response.Status)
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, healthMax)).Decode(&r); err != nil {
		return r, fmt.Errorf("read what %s says to /healthz: %w", at, err)
	}
	return r, nil
}
