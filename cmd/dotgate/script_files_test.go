package main

import (
	"crypto/x509"
	"encoding/pem"
	"os"

	"github.com/rogpeppe/go-internal/testscript"

	"dotgate/upstreams/dottest"
)

func scriptAuthority(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: authority FILE")
	}
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), dottest.NewCA().PEM(), 0o600))
}

func scriptCertificate(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 || len(args) > 2 {
		ts.Fatalf("usage: certificate NAME [other]")
	}
	ca := storyOf(ts).ca
	if len(args) == 2 {
		ca = dottest.NewCA()
	}
	own := ca.Issue(dottest.CertOptions{Names: []string{"gateway.example.com"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	ts.Check(err)
	for suffix, block := range map[string]*pem.Block{
		".crt": {Type: "CERTIFICATE", Bytes: own.Certificate[0]},
		".key": {Type: "PRIVATE KEY", Bytes: key},
	} {
		ts.Check(os.WriteFile(ts.MkAbs(args[0])+suffix, pem.EncodeToMemory(block), 0o600))
	}
}
