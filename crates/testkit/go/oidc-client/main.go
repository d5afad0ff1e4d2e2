// A client of OpenID Connect that knows nothing but the issuer: it follows the discovery document to the keys, and
// verifies a token by them. Usage: oidc-client ISSUER AUDIENCE TOKEN-FILE ROOTS-FILE
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
)

func main() {
	log.SetFlags(0)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(read(os.Args[4])) {
		log.Fatal("no roots")
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}}
	ctx = oidc.ClientContext(ctx, client)
	provider, err := oidc.NewProvider(ctx, os.Args[1])
	check(err)
	verifier := provider.Verifier(&oidc.Config{ClientID: os.Args[2]})
	token, err := verifier.Verify(ctx, strings.TrimSpace(string(read(os.Args[3]))))
	check(err)
	fmt.Println("verified", token.Subject)
}

func read(path string) []byte {
	bytes, err := os.ReadFile(path)
	check(err)
	return bytes
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
