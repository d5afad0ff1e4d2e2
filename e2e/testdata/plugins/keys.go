package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"sort"

	agentkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	serverkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// keyFile keeps keys by name in a file, so that they outlive the plugin. Agent's and server's protocols have the same
// numbers.
type keyFile struct {
	configured
}

type publicKey struct {
	id, fingerprint string
	kind            int32
	pkix            []byte
}

func (k *keyFile) load() (map[string][]byte, string, error) {
	settings, err := k.settings()
	if err != nil {
		return nil, "", err
	}
	keys := map[string][]byte{}
	text, err := os.ReadFile(settings.Path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return keys, settings.Path, nil
	case err != nil:
		return nil, "", err
	}
	return keys, settings.Path, json.Unmarshal(text, &keys)
}

func (k *keyFile) generate(id string, kind int32) (*publicKey, error) {
	keys, path, err := k.load()
	if err != nil {
		return nil, err
	}
	var key crypto.Signer
	switch kind {
	case 1:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case 2:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case 3:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	case 4:
		key, err = rsa.GenerateKey(rand.Reader, 4096)
	default:
		return nil, status.Error(codes.InvalidArgument, "key type is required")
	}
	if err != nil {
		return nil, err
	}
	keys[id], err = x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(keys)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	k.log.Debug("key made", "id", id)
	return describe(id, keys[id])
}

func (k *keyFile) public(id string) (*publicKey, error) {
	keys, _, err := k.load()
	if err != nil {
		return nil, err
	}
	if keys[id] == nil {
		return nil, status.Errorf(codes.NotFound, "no key is called %q", id)
	}
	return describe(id, keys[id])
}

func (k *keyFile) publics() ([]*publicKey, error) {
	keys, _, err := k.load()
	if err != nil {
		return nil, err
	}
	var all []*publicKey
	for id, pkcs8 := range keys {
		one, err := describe(id, pkcs8)
		if err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	sort.Slice(all, func(i, j int) bool { return all[i].id < all[j].id })
	return all, nil
}

func (k *keyFile) sign(id string, digest []byte, options crypto.SignerOpts) ([]byte, string, error) {
	keys, _, err := k.load()
	if err != nil {
		return nil, "", err
	}
	if keys[id] == nil {
		return nil, "", status.Errorf(codes.NotFound, "no key is called %q", id)
	}
	key, err := x509.ParsePKCS8PrivateKey(keys[id])
	if err != nil {
		return nil, "", err
	}
	described, err := describe(id, keys[id])
	if err != nil {
		return nil, "", err
	}
	signature, err := key.(crypto.Signer).Sign(rand.Reader, digest, options)
	return signature, described.fingerprint, err
}

func describe(id string, pkcs8 []byte) (*publicKey, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, err
	}
	public := key.(crypto.Signer).Public()
	var kind int32
	switch public := public.(type) {
	case *ecdsa.PublicKey:
		kind = map[int]int32{256: 1, 384: 2}[public.Curve.Params().BitSize]
	case *rsa.PublicKey:
		kind = map[int]int32{256: 3, 512: 4}[public.Size()]
	}
	pkix, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(pkix)
	return &publicKey{id: id, kind: kind, pkix: pkix, fingerprint: hex.EncodeToString(sum[:])}, nil
}

type agentKeys struct {
	agentkeys.UnimplementedKeyManagerServer
	keyFile
}

func agentKey(key *publicKey) *agentkeys.PublicKey {
	return &agentkeys.PublicKey{
		Id: key.id, Type: agentkeys.KeyType(key.kind), PkixData: key.pkix, Fingerprint: key.fingerprint,
	}
}

func (p *agentKeys) GenerateKey(_ context.Context, request *agentkeys.GenerateKeyRequest) (*agentkeys.GenerateKeyResponse, error) {
	key, err := p.generate(request.KeyId, int32(request.KeyType))
	if err != nil {
		return nil, err
	}
	return &agentkeys.GenerateKeyResponse{PublicKey: agentKey(key)}, nil
}

func (p *agentKeys) GetPublicKey(_ context.Context, request *agentkeys.GetPublicKeyRequest) (*agentkeys.GetPublicKeyResponse, error) {
	key, err := p.public(request.KeyId)
	if err != nil {
		return nil, err
	}
	return &agentkeys.GetPublicKeyResponse{PublicKey: agentKey(key)}, nil
}

func (p *agentKeys) GetPublicKeys(context.Context, *agentkeys.GetPublicKeysRequest) (*agentkeys.GetPublicKeysResponse, error) {
	keys, err := p.publics()
	if err != nil {
		return nil, err
	}
	response := new(agentkeys.GetPublicKeysResponse)
	for _, key := range keys {
		response.PublicKeys = append(response.PublicKeys, agentKey(key))
	}
	return response, nil
}

func (p *agentKeys) SignData(_ context.Context, request *agentkeys.SignDataRequest) (*agentkeys.SignDataResponse, error) {
	var options crypto.SignerOpts = crypto.Hash(request.GetHashAlgorithm())
	if pss := request.GetPssOptions(); pss != nil {
		options = &rsa.PSSOptions{SaltLength: int(pss.SaltLength), Hash: crypto.Hash(pss.HashAlgorithm)}
	}
	signature, fingerprint, err := p.sign(request.KeyId, request.Data, options)
	if err != nil {
		return nil, err
	}
	return &agentkeys.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}

type serverKeys struct {
	serverkeys.UnimplementedKeyManagerServer
	keyFile
}

func serverKey(key *publicKey) *serverkeys.PublicKey {
	return &serverkeys.PublicKey{
		Id: key.id, Type: serverkeys.KeyType(key.kind), PkixData: key.pkix, Fingerprint: key.fingerprint,
	}
}

func (p *serverKeys) GenerateKey(_ context.Context, request *serverkeys.GenerateKeyRequest) (*serverkeys.GenerateKeyResponse, error) {
	key, err := p.generate(request.KeyId, int32(request.KeyType))
	if err != nil {
		return nil, err
	}
	return &serverkeys.GenerateKeyResponse{PublicKey: serverKey(key)}, nil
}

func (p *serverKeys) GetPublicKey(_ context.Context, request *serverkeys.GetPublicKeyRequest) (*serverkeys.GetPublicKeyResponse, error) {
	key, err := p.public(request.KeyId)
	if err != nil {
		return nil, err
	}
	return &serverkeys.GetPublicKeyResponse{PublicKey: serverKey(key)}, nil
}

func (p *serverKeys) GetPublicKeys(context.Context, *serverkeys.GetPublicKeysRequest) (*serverkeys.GetPublicKeysResponse, error) {
	keys, err := p.publics()
	if err != nil {
		return nil, err
	}
	response := new(serverkeys.GetPublicKeysResponse)
	for _, key := range keys {
		response.PublicKeys = append(response.PublicKeys, serverKey(key))
	}
	return response, nil
}

func (p *serverKeys) SignData(_ context.Context, request *serverkeys.SignDataRequest) (*serverkeys.SignDataResponse, error) {
	var options crypto.SignerOpts = crypto.Hash(request.GetHashAlgorithm())
	if pss := request.GetPssOptions(); pss != nil {
		options = &rsa.PSSOptions{SaltLength: int(pss.SaltLength), Hash: crypto.Hash(pss.HashAlgorithm)}
	}
	signature, fingerprint, err := p.sign(request.KeyId, request.Data, options)
	if err != nil {
		return nil, err
	}
	return &serverkeys.SignDataResponse{Signature: signature, KeyFingerprint: fingerprint}, nil
}
