package main

import (
	"context"

	composer "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// composers puts a label into what workloads and servers get. It has nothing to say about agents.
type composers struct {
	composer.UnimplementedCredentialComposerServer
	configured
}

func (p *composers) ComposeServerX509CA(_ context.Context, request *composer.ComposeServerX509CARequest) (*composer.ComposeServerX509CAResponse, error) {
	settings, err := p.settings()
	if err != nil {
		return nil, err
	}
	request.Attributes.Subject.Locality = []string{settings.Label}
	return &composer.ComposeServerX509CAResponse{Attributes: request.Attributes}, nil
}

// ComposeServerX509SVID changes nothing.
func (p *composers) ComposeServerX509SVID(context.Context, *composer.ComposeServerX509SVIDRequest) (*composer.ComposeServerX509SVIDResponse, error) {
	return &composer.ComposeServerX509SVIDResponse{}, nil
}

func (p *composers) ComposeWorkloadX509SVID(_ context.Context, request *composer.ComposeWorkloadX509SVIDRequest) (*composer.ComposeWorkloadX509SVIDResponse, error) {
	settings, err := p.settings()
	if err != nil {
		return nil, err
	}
	if len(request.PublicKey) == 0 {
		return nil, status.Error(codes.InvalidArgument, "the public key is missing")
	}
	subject := request.Attributes.Subject
	subject.OrganizationalUnit = append(subject.OrganizationalUnit, settings.Label)
	subject.ExtraNames = append(subject.ExtraNames, &composer.AttributeTypeAndValue{
		Oid: "0.9.2342.19200300.100.1.1", StringValue: request.SpiffeId,
	})
	request.Attributes.ExtraExtensions = append(request.Attributes.ExtraExtensions, &composer.X509Extension{
		Oid: "1.3.6.1.4.1.99999.1", Value: []byte{5, 0},
	})
	return &composer.ComposeWorkloadX509SVIDResponse{Attributes: request.Attributes}, nil
}

func (p *composers) ComposeWorkloadJWTSVID(_ context.Context, request *composer.ComposeWorkloadJWTSVIDRequest) (*composer.ComposeWorkloadJWTSVIDResponse, error) {
	settings, err := p.settings()
	if err != nil {
		return nil, err
	}
	request.Attributes.Claims.Fields["team"] = structpb.NewStringValue(settings.Label)
	return &composer.ComposeWorkloadJWTSVIDResponse{Attributes: request.Attributes}, nil
}
