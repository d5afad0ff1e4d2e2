package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"os"
	"sync"
	"time"

	upstream "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
)

// authority signs CAs with a root of its own, and tells of a second root once the file of the settings is there. JWT
// keys are none of its business.
type authority struct {
	upstream.UnimplementedUpstreamAuthorityServer
	configured

	lock sync.Mutex
	key  crypto.Signer
	root *x509.Certificate
}

func newRoot(name string) (crypto.Signer, *x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Minute), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, err
	}
	root, err := x509.ParseCertificate(der)
	return key, root, err
}

func (p *authority) sign(csr []byte, ttl time.Duration) ([]byte, error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	var err error
	if p.root == nil {
		if p.key, p.root, err = newRoot("first"); err != nil {
			return nil, err
		}
	}
	request, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      request.Subject, URIs: request.URIs,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(ttl),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}, p.root, request.PublicKey, p.key)
}

func (p *authority) MintX509CAAndSubscribe(request *upstream.MintX509CARequest, stream upstream.UpstreamAuthority_MintX509CAAndSubscribeServer) error {
	settings, err := p.settings()
	if err != nil {
		return err
	}
	signed, err := p.sign(request.Csr, time.Duration(request.PreferredTtl)*time.Second)
	if err != nil {
		return err
	}
	first := &types.X509Certificate{Asn1: p.root.Raw}
	err = stream.Send(&upstream.MintX509CAResponse{
		X509CaChain:       []*types.X509Certificate{{Asn1: signed}},
		UpstreamX509Roots: []*types.X509Certificate{first},
	})
	if err != nil {
		return err
	}
	for {
		select {
		case <-stream.Context().Done():
			return nil
		case <-time.After(50 * time.Millisecond):
		}
		if _, err := os.Stat(settings.Path); err != nil {
			continue
		}
		_, second, err := newRoot("second")
		if err != nil {
			return err
		}
		return stream.Send(&upstream.MintX509CAResponse{
			UpstreamX509Roots: []*types.X509Certificate{first, {Asn1: second.Raw}},
		})
	}
}
