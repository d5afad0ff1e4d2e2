package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	workload "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// workloads tells programs apart by their files' names.
type workloads struct {
	workload.UnimplementedWorkloadAttestorServer
	configured
}

func (p *workloads) Attest(_ context.Context, request *workload.AttestRequest) (*workload.AttestResponse, error) {
	settings, err := p.settings()
	if err != nil {
		return nil, err
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", request.Pid))
	if err != nil {
		return nil, status.Errorf(codes.Internal, "the process cannot be looked at: %v", err)
	}
	return &workload.AttestResponse{
		SelectorValues: []string{"label:" + settings.Label, "program:" + filepath.Base(program)},
	}, nil
}
