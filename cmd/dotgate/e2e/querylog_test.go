//go:build linux && e2e

package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestARealReaderDecodesDnstap has dnstap-ldns read the query log of dotgate, from a file and
// through the socket of fstrm_capture.
func TestARealReaderDecodesDnstap(t *testing.T) {
	_, urls := startUpstreams(t, time.Millisecond)
	for _, way := range []string{"file", "socket"} {
		t.Run(way, func(t *testing.T) {
			dir := t.TempDir()
			captured := filepath.Join(dir, "queries.tap")
			output := captured
			var capture *process
			if way == "socket" {
				socket := filepath.Join(dir, "tap.sock")
				output = "unix:" + socket
				capture = start(t, nil, "fstrm_capture", "-t", "protobuf:dnstap.Dnstap", "-u", socket, "-w", captured, "-dddd")
				capture.await(t, "opened output file")
			}
			g := startGateway(t, urls, "DOTGATE_QUERY_LOG_OUTPUT="+output, "DOTGATE_QUERY_LOG_FORMAT=dnstap")
			if r, _ := ask(t, g.addr, "tapped.example.com"); r.Rcode != 0 {
				t.Fatal(r)
			}
			g.stop(t)
			if capture != nil {
				capture.signal(syscall.SIGTERM)
				capture.exitCode(t, stopLimit)
			}
			out, err := exec.Command("dnstap-ldns", "-r", captured).CombinedOutput()
			if err != nil {
				t.Fatalf("dnstap-ldns (package dnstap-ldns): %v\n%s", err, out)
			}
			if !strings.Contains(string(out), `CR 127.0.0.0`) || !strings.Contains(string(out), `"tapped.example.com." IN A`) {
				t.Errorf("it reads\n%s", out)
			}
		})
	}
}
