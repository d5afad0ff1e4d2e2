// A bare grpc-go server: one bidirectional stream of raw bytes over mutual TLS 1.3, the first message answered.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"log"
	"net"
	"os"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/encoding"
)

// raw passes messages through as bytes: what the peer is measured for is transport, not protobuf.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

func enroll(_ any, stream grpc.ServerStream) error {
	var first []byte
	if err := stream.RecvMsg(&first); err != nil {
		return err
	}
	if err := stream.SendMsg(&first); err != nil {
		return err
	}
	for {
		var more []byte
		if err := stream.RecvMsg(&more); err != nil {
			return nil
		}
	}
}

func main() {
	certificate := flag.String("cert", "", "server certificate, PEM")
	key := flag.String("key", "", "server key, PEM")
	ca := flag.String("ca", "", "authority of the clients, PEM")
	flag.Parse()

	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	pem, err := os.ReadFile(*ca)
	if err != nil {
		log.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		log.Fatal("no certificate in ", *ca)
	}
	config := &tls.Config{
		Certificates:           []tls.Certificate{pair},
		ClientAuth:             tls.RequireAndVerifyClientCert,
		ClientCAs:              roots,
		MinVersion:             tls.VersionTLS13,
		CurvePreferences:       []tls.CurveID{tls.X25519},
		SessionTicketsDisabled: true,
	}
	encoding.RegisterCodec(raw{})
	server := grpc.NewServer(grpc.Creds(credentials.NewTLS(config)))
	server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "ah.fleet.v1.Fleet",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "Enroll", Handler: enroll, ServerStreams: true, ClientStreams: true,
		}},
	}, struct{}{})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Fprintf(os.Stderr, "listening address=%s\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}
