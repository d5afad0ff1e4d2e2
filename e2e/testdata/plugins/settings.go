package main

import (
	"context"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl"
	config "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// settings are those of all of these plugins.
type settings struct {
	Secret string `hcl:"secret"`
	Node   string `hcl:"node"`
	Label  string `hcl:"label"`
	Path   string `hcl:"path"`

	trustDomain string
}

// configured is what the plugins have in common: a log, and settings that the host may replace at any time.
type configured struct {
	config.UnimplementedConfigServer

	log  hclog.Logger
	lock sync.RWMutex
	now  *settings
}

func (c *configured) SetLogger(log hclog.Logger) {
	c.log = log
}

func (c *configured) Configure(_ context.Context, request *config.ConfigureRequest) (*config.ConfigureResponse, error) {
	next, err := parse(request.HclConfiguration)
	if err != nil {
		return nil, err
	}
	next.trustDomain = request.CoreConfiguration.TrustDomain
	c.lock.Lock()
	defer c.lock.Unlock()
	c.now = next
	c.log.Info("settings taken", "label", next.Label)
	return &config.ConfigureResponse{}, nil
}

func (c *configured) Validate(_ context.Context, request *config.ValidateRequest) (*config.ValidateResponse, error) {
	if _, err := parse(request.HclConfiguration); err != nil {
		return &config.ValidateResponse{Valid: false, Notes: []string{err.Error()}}, nil
	}
	return &config.ValidateResponse{Valid: true}, nil
}

func (c *configured) settings() (*settings, error) {
	c.lock.RLock()
	defer c.lock.RUnlock()
	if c.now == nil {
		return nil, status.Error(codes.FailedPrecondition, "not configured")
	}
	return c.now, nil
}

func parse(text string) (*settings, error) {
	parsed := new(settings)
	if err := hcl.Decode(parsed, text); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "settings cannot be read: %v", err)
	}
	if parsed.Label == "refused" {
		return nil, status.Error(codes.InvalidArgument, "this label is refused")
	}
	return parsed, nil
}
