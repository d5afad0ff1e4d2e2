// An Envoy, as far as its API goes: asks for secrets by the three names that have no SPIFFE ID in them, checks what it
// gets by the rules of Envoy's own messages, and takes each answer until its certificate is another one. Usage: sds SOCKET.
package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"log"
	"os"
	"strings"
	"time"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	version "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const secrets = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	check(err)
	defer connection.Close()
	client := secret.NewSecretDiscoveryServiceClient(connection)

	certificates := open(ctx, client, "default")
	first := certificates.next()
	bundle := open(ctx, client, "ROOTCA").next()
	check(bundle.GetValidationContext().GetCustomValidatorConfig().ValidateAll())
	all := open(ctx, client, "ALL").next()
	fmt.Println("ALL 1", domains(all))
	second := certificates.next()
	if pair(first) == pair(second) {
		log.Fatal("the certificate is the same")
	}
	fmt.Println("done")
}

type stream struct {
	secret.SecretDiscoveryService_StreamSecretsClient
	name string
}

// Each secret has a stream of its own, as an Envoy opens them.
func open(ctx context.Context, client secret.SecretDiscoveryServiceClient, name string) stream {
	opened, err := client.StreamSecrets(ctx)
	check(err)
	check(opened.Send(&discovery.DiscoveryRequest{
		Node: &core.Node{
			Id:            "envoy",
			UserAgentName: "envoy",
			UserAgentVersionType: &core.Node_UserAgentBuildVersion{UserAgentBuildVersion: &core.BuildVersion{
				Version: &version.SemanticVersion{MajorNumber: 1, MinorNumber: 37},
			}},
		},
		TypeUrl:       secrets,
		ResourceNames: []string{name},
	}))
	return stream{opened, name}
}

// The next secret, acknowledged.
func (s stream) next() *tlsv3.Secret {
	response, err := s.Recv()
	check(err)
	check(response.ValidateAll())
	if response.TypeUrl != secrets || len(response.Resources) != 1 {
		log.Fatalf("%d resources of %q", len(response.Resources), response.TypeUrl)
	}
	found := new(tlsv3.Secret)
	check(response.Resources[0].UnmarshalTo(found))
	check(found.ValidateAll())
	if found.Name != s.name {
		log.Fatalf("%q instead of %q", found.Name, s.name)
	}
	check(s.Send(&discovery.DiscoveryRequest{
		VersionInfo:   response.VersionInfo,
		ResponseNonce: response.Nonce,
		TypeUrl:       secrets,
		ResourceNames: []string{s.name},
	}))
	if s.name != "ALL" {
		fmt.Println(s.name, response.VersionInfo)
	}
	return found
}

func pair(found *tlsv3.Secret) string {
	certificate := found.GetTlsCertificate()
	chain := certificate.GetCertificateChain().GetInlineBytes()
	pair, err := tls.X509KeyPair(chain, certificate.GetPrivateKey().GetInlineBytes())
	check(err)
	return string(pair.Certificate[0])
}

func domains(found *tlsv3.Secret) string {
	config := new(tlsv3.SPIFFECertValidatorConfig)
	check(found.GetValidationContext().GetCustomValidatorConfig().GetTypedConfig().UnmarshalTo(config))
	check(config.ValidateAll())
	var names []string
	for _, domain := range config.TrustDomains {
		names = append(names, domain.Name)
	}
	return strings.Join(names, " ")
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
