#!/bin/sh
# Prints an identity signed by a CA of plain openssl (docs/providers/exec.md).
#
#   openssl-ca.sh CA_DIRECTORY TRUST_DOMAIN
#
# CA_DIRECTORY holds ca.pem and ca-key.pem. An executor becomes spiffe://TRUST_DOMAIN/ah/agent/$AH_NAME, an access
# point spiffe://TRUST_DOMAIN/ah/serve with the names localhost and $AH_NAME. Certificates last a day.
#
# For small set-ups and trials: whoever can read the CA's key can be anybody.
set -eu
umask 077

[ $# -eq 2 ] || { echo "usage: $0 CA_DIRECTORY TRUST_DOMAIN" >&2; exit 2; }
ca=$1 domain=$2

# A name becomes a path segment of a SPIFFE ID; what cannot is refused here and not signed.
case $AH_NAME in
  *[!a-zA-Z0-9._-]* | "" | . | ..) echo "'$AH_NAME' cannot be a part of a SPIFFE ID" >&2; exit 1 ;;
esac
case $AH_ROLE in
  access-point) usage=serverAuth names="URI:spiffe://$domain/ah/serve,DNS:localhost,DNS:$AH_NAME,IP:127.0.0.1" ;;
  *) usage=clientAuth names="URI:spiffe://$domain/ah/agent/$AH_NAME" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$AH_NAME" \
  -keyout "$work/key.pem" -out "$work/request.pem" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
cat > "$work/extensions" <<END
subjectAltName = $names
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = $usage
END
# A random serial number needs no file that two runs would fight over.
openssl x509 -req -in "$work/request.pem" -CA "$ca/ca.pem" -CAkey "$ca/ca-key.pem" \
  -set_serial "0x$(openssl rand -hex 16)" -days 1 -extfile "$work/extensions" \
  -out "$work/cert.pem" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }

# Chain leaf first, the key, the authorities. Nothing else may go to stdout.
cat "$work/cert.pem" "$work/key.pem" "$ca/ca.pem"
