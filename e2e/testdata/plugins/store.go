package main

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"

	store "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/svidstore/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// svids keeps each SVID in a file whose name is in the entry's selector "name:…".
type svids struct {
	store.UnimplementedSVIDStoreServer
	configured
}

func (p *svids) file(metadata []string) (string, error) {
	settings, err := p.settings()
	if err != nil {
		return "", err
	}
	for _, value := range metadata {
		if name, found := strings.CutPrefix(value, "name:"); found {
			return filepath.Join(settings.Path, filepath.Base(name)), nil
		}
	}
	return "", status.Error(codes.InvalidArgument, "the selector name is missing")
}

func (p *svids) PutX509SVID(_ context.Context, request *store.PutX509SVIDRequest) (*store.PutX509SVIDResponse, error) {
	path, err := p.file(request.Metadata)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(request.Svid.CertChain[0])
	if err != nil {
		return nil, err
	}
	if _, err := x509.ParsePKCS8PrivateKey(request.Svid.PrivateKey); err != nil {
		return nil, err
	}
	text, err := json.Marshal(map[string]any{
		"id":      request.Svid.SpiffeID,
		"uri":     certificate.URIs[0].String(),
		"ends":    certificate.NotAfter.Unix() == request.Svid.ExpiresAt,
		"roots":   len(request.Svid.Bundle),
		"domains": len(request.FederatedBundles),
	})
	if err != nil {
		return nil, err
	}
	return &store.PutX509SVIDResponse{}, os.WriteFile(path, text, 0o600)
}

func (p *svids) DeleteX509SVID(_ context.Context, request *store.DeleteX509SVIDRequest) (*store.DeleteX509SVIDResponse, error) {
	path, err := p.file(request.Metadata)
	if err != nil {
		return nil, err
	}
	return &store.DeleteX509SVIDResponse{}, os.Remove(path)
}
