# Who may call which method of spire-server, for `experimental { auth_opa_policy_engine { local { } } }`.
#
# With policy_data.json beside it, this policy says what the built-in one says. Change the data to move a method from
# one list to another; add rules below to look at who calls, and at the request.
#
#   input.caller            SPIFFE ID of the caller; "" on the local socket and without a certificate
#   input.caller_file_path  program of a local caller
#   input.full_method       "/package.Service/Method"
#   input.req               the request; null where the method streams
package spire

# All five have to be there, true or false, for each call.
result := {
	"allow": allow,
	"allow_if_local": allow_if_local,
	"allow_if_admin": allow_if_admin,
	"allow_if_downstream": allow_if_downstream,
	"allow_if_agent": allow_if_agent,
}

default allow := false

default allow_if_local := false

default allow_if_admin := false

default allow_if_downstream := false

default allow_if_agent := false

# Whoever can connect.
allow if input.full_method in data.anybody

# Whoever may open the local socket.
allow_if_local if input.full_method in data.operators

allow_if_local if input.full_method in data.local

# Callers of admin_ids, and those whose entry has the admin flag.
allow_if_admin if input.full_method in data.operators

# Callers whose entry has the downstream flag.
allow_if_downstream if input.full_method in data.downstream

# Agents in good standing.
allow_if_agent if input.full_method in data.agents
