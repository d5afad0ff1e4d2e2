package main

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"time"

	"github.com/spiffe/spire-plugin-sdk/pluginsdk"
	metrics "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/common/metrics/v1"
	agentstore "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/agentstore/v1"
	identityprovider "github.com/spiffe/spire-plugin-sdk/proto/spire/hostservice/server/identityprovider/v1"
	agentnode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	servernode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func proof(secret string, nonce []byte) []byte {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write(nonce)
	return mac.Sum(nil)
}

// agentNode says its name, and proves that it has the secret.
type agentNode struct {
	agentnode.UnimplementedNodeAttestorServer
	configured
}

func (p *agentNode) AidAttestation(stream agentnode.NodeAttestor_AidAttestationServer) error {
	settings, err := p.settings()
	if err != nil {
		return err
	}
	err = stream.Send(&agentnode.PayloadOrChallengeResponse{
		Data: &agentnode.PayloadOrChallengeResponse_Payload{Payload: []byte(settings.Node)},
	})
	if err != nil {
		return err
	}
	challenge, err := stream.Recv()
	if err != nil {
		return err
	}
	return stream.Send(&agentnode.PayloadOrChallengeResponse{
		Data: &agentnode.PayloadOrChallengeResponse_ChallengeResponse{
			ChallengeResponse: proof(settings.Secret, challenge.Challenge),
		},
	})
}

// serverNode believes who has the secret, and uses everything that the server offers to plugins.
type serverNode struct {
	servernode.UnimplementedNodeAttestorServer
	configured

	metrics    metrics.MetricsServiceClient
	agents     agentstore.AgentStoreServiceClient
	identities identityprovider.IdentityProviderServiceClient
}

func (p *serverNode) BrokerHostServices(broker pluginsdk.ServiceBroker) error {
	for _, client := range []pluginsdk.ServiceClient{&p.metrics, &p.agents, &p.identities} {
		if !broker.BrokerClient(client) {
			return status.Errorf(codes.FailedPrecondition, "%s is not offered", client.GRPCServiceName())
		}
	}
	return nil
}

func (p *serverNode) Attest(stream servernode.NodeAttestor_AttestServer) error {
	settings, err := p.settings()
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	node := string(first.GetPayload())
	nonce := make([]byte, 32)
	_, _ = rand.Read(nonce)
	err = stream.Send(&servernode.AttestResponse{
		Response: &servernode.AttestResponse_Challenge{Challenge: nonce},
	})
	if err != nil {
		return err
	}
	answer, err := stream.Recv()
	if err != nil {
		return err
	}
	if !hmac.Equal(answer.GetChallengeResponse(), proof(settings.Secret, nonce)) {
		return status.Error(codes.PermissionDenied, "the node does not have the secret")
	}

	id := "spiffe://" + settings.trustDomain + "/spire/agent/secret/" + node
	_, err = p.agents.GetAgentInfo(stream.Context(), &agentstore.GetAgentInfoRequest{AgentId: id})
	p.log.Info("asked after the agent", "node", node, "answer", status.Code(err).String())
	identity, err := p.identities.FetchX509Identity(stream.Context(), &identityprovider.FetchX509IdentityRequest{})
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(identity.Identity.CertChain[0])
	if err != nil {
		return err
	}
	if _, err := x509.ParsePKCS8PrivateKey(identity.Identity.PrivateKey); err != nil {
		return err
	}
	p.log.Info("got the server's identity", "id", certificate.URIs[0].String(),
		"roots", len(identity.Bundle.X509Authorities), "domain", identity.Bundle.TrustDomain)
	labels := []*metrics.Label{{Name: "node", Value: node}}
	_, err = p.metrics.IncrCounter(stream.Context(), &metrics.IncrCounterRequest{
		Key: []string{"secret", "attested"}, Val: 1, Labels: labels,
	})
	if err != nil {
		return err
	}
	_, err = p.metrics.MeasureSince(stream.Context(), &metrics.MeasureSinceRequest{
		Key: []string{"secret", "took"}, Time: time.Now().UnixNano(), Labels: labels,
	})
	if err != nil {
		return err
	}
	return stream.Send(&servernode.AttestResponse{
		Response: &servernode.AttestResponse_AgentAttributes{
			AgentAttributes: &servernode.AgentAttributes{
				SpiffeId:       id,
				SelectorValues: []string{"node:" + node},
				CanReattest:    true,
			},
		},
	})
}
