// A workload built on go-spiffe: fetches an X509-SVID and sees it rotate, fetches and validates a JWT-SVID, and
// speaks mTLS with itself. Usage: workload SOCKET. Each line of its output is one thing that worked.
package main

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	options := workloadapi.WithClientOptions(workloadapi.WithAddr("unix://" + os.Args[1]))

	source, err := workloadapi.NewX509Source(ctx, options)
	check(err)
	defer source.Close()
	first := leaf(source)
	fmt.Println("svid", first)
	for leaf(source) == first {
		check(source.WaitUntilUpdated(ctx))
	}
	fmt.Println("rotated", leaf(source))

	svid, err := source.GetX509SVID()
	check(err)
	domain := svid.ID.TrustDomain()
	fmt.Println("mtls with", mtls(source, domain))

	jwts, err := workloadapi.NewJWTSource(ctx, options)
	check(err)
	defer jwts.Close()
	token, err := jwts.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "go", ExtraAudiences: []string{"more"}})
	check(err)
	parsed, err := jwtsvid.ParseAndValidate(token.Marshal(), jwts, []string{"more"})
	check(err)
	fmt.Println("jwt by its bundle", parsed.ID)
	client := workloadapi.WithAddr("unix://" + os.Args[1])
	valid, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "go", client)
	check(err)
	fmt.Println("jwt by the agent", valid.ID)
	if _, err := workloadapi.ValidateJWTSVID(ctx, token.Marshal(), "other", client); err == nil {
		log.Fatal("a JWT-SVID is valid for an audience that it does not name")
	}
	fmt.Println("done")
}

func leaf(source *workloadapi.X509Source) string {
	svid, err := source.GetX509SVID()
	check(err)
	return fmt.Sprintf("%s %x", svid.ID, sha256.Sum256(svid.Certificates[0].Raw))
}

// Both ends have the identity of source; the name is that which the server saw.
func mtls(source *workloadapi.X509Source, domain spiffeid.TrustDomain) string {
	authorizer := tlsconfig.AuthorizeMemberOf(domain)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", tlsconfig.MTLSServerConfig(source, source, authorizer))
	check(err)
	defer listener.Close()
	go func() {
		config := tlsconfig.MTLSClientConfig(source, source, authorizer)
		client, err := tls.Dial("tcp", listener.Addr().String(), config)
		check(err)
		defer client.Close()
		_, err = client.Write([]byte("hello"))
		check(err)
	}()
	accepted, err := listener.Accept()
	check(err)
	defer accepted.Close()
	said, err := io.ReadAll(accepted)
	check(err)
	if string(said) != "hello" {
		log.Fatalf("the client said %q", said)
	}
	return peer(accepted)
}

func peer(connection net.Conn) string {
	certificates := connection.(*tls.Conn).ConnectionState().PeerCertificates
	return certificates[0].URIs[0].String()
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
