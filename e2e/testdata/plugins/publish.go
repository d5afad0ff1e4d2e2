package main

import (
	"context"
	"fmt"
	"os"

	publisher "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	notifier "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	"github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// note appends a line to the file of the settings.
func (c *configured) note(what string, bundle *types.Bundle) error {
	settings, err := c.settings()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(settings.Path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = fmt.Fprintf(file, "%s %s %d\n", what, bundle.TrustDomain, len(bundle.X509Authorities))
	return err
}

// bundlePublisher writes what it gets into a file. Its first call fails.
type bundlePublisher struct {
	publisher.UnimplementedBundlePublisherServer
	configured

	failed bool
}

func (p *bundlePublisher) PublishBundle(_ context.Context, request *publisher.PublishBundleRequest) (*publisher.PublishBundleResponse, error) {
	if !p.failed {
		p.failed = true
		return nil, status.Error(codes.Unavailable, "not at once")
	}
	return &publisher.PublishBundleResponse{}, p.note("published", request.Bundle)
}

// notifications writes events into a file. It says no to a start with the label "no".
type notifications struct {
	notifier.UnimplementedNotifierServer
	configured
}

func (p *notifications) NotifyAndAdvise(_ context.Context, request *notifier.NotifyAndAdviseRequest) (*notifier.NotifyAndAdviseResponse, error) {
	settings, err := p.settings()
	if err != nil {
		return nil, err
	}
	if settings.Label == "no" {
		return nil, status.Error(codes.FailedPrecondition, "not with this bundle")
	}
	return &notifier.NotifyAndAdviseResponse{}, p.note("loaded", request.GetBundleLoaded().Bundle)
}

func (p *notifications) Notify(_ context.Context, request *notifier.NotifyRequest) (*notifier.NotifyResponse, error) {
	return &notifier.NotifyResponse{}, p.note("updated", request.GetBundleUpdated().Bundle)
}
