#!/bin/sh
# Prints an identity issued by HashiCorp Vault or OpenBao, through curl and jq (docs/providers/exec.md).
#
#   vault-curl.sh PATH COMMON_NAME [URI_SAN]     such as: vault-curl.sh pki_int/issue/executor executor-1.example.com
#
# Environment: VAULT_ADDR, VAULT_CACERT (optional), VAULT_ROLE_ID_FILE and VAULT_SECRET_ID_FILE: files that hold the
# AppRole's ids; VAULT_AUTH_MOUNT where AppRole is not mounted at approle. The vault identity does all this and more by itself; this is for those who need something in between.
#
# No secret is an argument of a program, where `ps` would show it: curl and jq read them from a pipe.
set -eu

[ $# -ge 2 ] || { echo "usage: $0 PATH COMMON_NAME [URI_SAN]" >&2; exit 2; }
path=$1 name=$2 uri=${3:-}

# Posts the JSON on stdin to an API path, with the token in $1 if there is one. Vault's own errors go to stderr.
post() {
  token=$1
  body=$(cat)
  # curl reads its options from stdin; in them a quote and a backslash are escaped.
  {
    [ -z "$token" ] || printf 'header = "X-Vault-Token: %s"\n' "$token"
    [ -z "${VAULT_CACERT:-}" ] || printf 'cacert = "%s"\n' "$VAULT_CACERT"
    printf 'data = "%s"\n' "$(printf %s "$body" | sed 's/[\\"]/\\&/g')"
  } | curl --config - --silent --show-error --max-time 20 --header 'Content-Type: application/json' \
    "$VAULT_ADDR/v1/$2" | {
      answer=$(cat)
      if printf %s "$answer" | jq -e '.errors' > /dev/null; then
        printf %s "$answer" | jq -r '.errors[]' >&2
        exit 1
      fi
      printf %s "$answer"
    }
}

login=$(jq -nc --rawfile role "$VAULT_ROLE_ID_FILE" --rawfile secret "$VAULT_SECRET_ID_FILE" \
  '{role_id: ($role | rtrimstr("\n")), secret_id: ($secret | rtrimstr("\n"))}' | post "" "auth/${VAULT_AUTH_MOUNT:-approle}/login")
token=$(printf %s "$login" | jq -er .auth.client_token) || { echo "Vault gave no token" >&2; exit 1; }

issued=$(jq -nc --arg name "$name" --arg uri "$uri" \
  '{common_name: $name} + (if $uri == "" then {} else {uri_sans: $uri} end)' | post "$token" "$path")
printf %s "$issued" | jq -e '.data | {
    version: 1,
    certificate_chain: ([.certificate] + (.ca_chain // []) | join("\n")),
    private_key,
    ca_bundle: ((.ca_chain // [.issuing_ca])[-1])
  }'
