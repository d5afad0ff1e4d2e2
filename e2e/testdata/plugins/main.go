// Plugins on upstream's SDK, for spire-server and spire-agent. The first argument says which one to be.
package main

import (
	"fmt"
	"os"

	"github.com/spiffe/spire-plugin-sdk/pluginmain"
	agentkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/keymanager/v1"
	agentnode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/nodeattestor/v1"
	svidstore "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/svidstore/v1"
	workload "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/agent/workloadattestor/v1"
	bundlepublisher "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/bundlepublisher/v1"
	credentialcomposer "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/credentialcomposer/v1"
	serverkeys "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/keymanager/v1"
	servernode "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/nodeattestor/v1"
	notifier "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/notifier/v1"
	upstreamauthority "github.com/spiffe/spire-plugin-sdk/proto/spire/plugin/server/upstreamauthority/v1"
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
	case "publisher":
		plugin := new(bundlePublisher)
		pluginmain.Serve(bundlepublisher.BundlePublisherPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "notifier":
		plugin := new(notifications)
		pluginmain.Serve(notifier.NotifierPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "composer":
		plugin := new(composers)
		pluginmain.Serve(credentialcomposer.CredentialComposerPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "upstream":
		plugin := new(authority)
		pluginmain.Serve(upstreamauthority.UpstreamAuthorityPluginServer(plugin), config.ConfigServiceServer(plugin))
	case "svid-store":
		plugin := new(svids)
		pluginmain.Serve(svidstore.SVIDStorePluginServer(plugin), config.ConfigServiceServer(plugin))
	default:
		fmt.Fprintf(os.Stderr, "no plugin is called %q\n", role)
		os.Exit(2)
	}
}
