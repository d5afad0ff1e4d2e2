// Plugins on upstream's SDK, for spire-server and spire-agent. The first argument says which one to be.
package main

import (
	"fmt"
	"os"

	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	agentkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	agentnode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	workload "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	serverkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	servernode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	config "github.com/spiffe/spire-plugin-sdk/proto/spire/service/common/config/v1"
)

func main() {
	role := ""
	if len(os.Args) > 1 {
		role = os.Args[1]
	}
	switch role {
	case "agent-node":
		plugin := new(agentNode)
		pluginmain.Serve(agentnode.NodeAttestorPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "server-node":
		plugin := new(serverNode)
		pluginmain.Serve(servernode.NodeAttestorPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "workload":
		plugin := new(workloads)
		pluginmain.Serve(workload.WorkloadAttestorPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "agent-keys":
		plugin := new(agentKeys)
		pluginmain.Serve(agentkeys.KeyManagerPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "server-keys":
		plugin := new(serverKeys)
		pluginmain.Serve(serverkeys.KeyManagerPluginServer(plugin), config.ConfigServiceServer(plugin))
	default:
		fmt.Fprintf(os.Stderr, "no plugin is called %q\n", role)
		os.Exit(2)
	}
}
